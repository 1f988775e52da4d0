"""What two databases hold, and what will be lost. Tables and their order; the words below them are not looked at."""

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backuplib.comparison import (
    FEWEST_ROWS,
    MOST_TABLES,
    Contents,
    count_in_slices,
    differing,
    look_at_live,
    lost_tables,
    others_write,
    read_contents,
    read_live,
    row_comparison,
    tables_of,
    total_loss,
)
from backuplib.database import Engine
from backuplib.errors import DatabaseInUseError, EmptyBackupError, UnsoundBackupError
from backuplib.formatting import display_width
from backuplib.ram_folder import RamFolder
from backuplib.secret import Secret
from backuplib.style import Kind
from tests.support.shop import ROOT
from tests.support.writer import make_slow_to_check


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """An empty database in memory."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        yield connection


def contents(**rows: int | None) -> Contents:
    return Contents(rows, {f"table {name}": f"CREATE TABLE {name} (a)" for name in rows}, 0)


def compared(live: Contents, backup: Contents) -> list[list[str]]:
    """The lines of the tables that differ, below their heading."""
    lines = [text for text, _ in row_comparison(live, backup)]
    return [re.split(" {2,}", line) for line in lines[1:] if not line[0].isdigit()]


# --- comparing -------------------------------------------------------------------------------------------------------


def test_what_loses_most_comes_first_then_what_gains_most() -> None:
    live = contents(a=10, b=500, c=3, d=1, same=7)
    backup = contents(a=9, b=0, c=4, d=1001, same=7)
    assert compared(live, backup) == [
        ["b", "500", "0", "-500 rows"],
        ["a", "10", "9", "-1 row"],
        ["d", "1", "1,001", "+1,000 rows"],
        ["c", "3", "4", "+1 row"],
    ]


def test_table_that_will_be_gone_is_its_loss() -> None:
    assert compared(contents(a=10, gone=200, empty=0), contents(a=5, new=3)) == [
        ["gone", "200", "none", "table will be gone: 200 rows"],
        ["a", "10", "5", "-5 rows"],
        ["empty", "0", "none", "table will be gone: 0 rows"],
        ["new", "none", "3", "new table: 3 rows"],
    ]


def test_losses_are_marked_and_nothing_else_is() -> None:
    lines = row_comparison(contents(a=10, gone=2, c=1, same=1), contents(a=5, new=3, c=2, same=1))
    assert {text.split()[0]: kind for text, kind in lines} == {
        "table": Kind.ASIDE,
        "a": Kind.LOSS,
        "gone": Kind.LOSS,
        "new": Kind.PLAIN,
        "c": Kind.PLAIN,
        "1": Kind.ASIDE,
    }


def test_table_that_cannot_be_counted_is_not_called_gone() -> None:
    """Its rows are not known, of an index whose module is not here; that it is there is known."""
    assert compared(contents(search=None), contents(search=None)) == []
    assert compared(contents(search=5), contents(search=None)) == [["search", "5", "?", "cannot be counted"]]
    assert compared(contents(search=None), contents(search=5)) == [["search", "?", "5", "cannot be counted"]]
    assert compared(contents(search=None), contents(a=1)) == [
        ["search", "?", "none", "table will be gone"],
        ["a", "none", "1", "new table: 1 row"],
    ]


@pytest.mark.parametrize(
    ("live", "backup", "words"),
    [
        ({"a": 10, "b": 5, "gone": 35}, {"a": 7, "b": 5}, "at least 38 rows in 2 tables; 1 table will be gone"),
        ({"a": 1}, {"a": 0}, "at least 1 row in 1 table"),
        ({"a": 1, "gone": 0}, {"a": 1}, "1 table will be gone"),
        ({"gone": None, "more": None}, {}, "2 tables will be gone"),
    ],
)
def test_total_of_what_will_be_lost(live: dict[str, int | None], backup: dict[str, int | None], words: str) -> None:
    assert total_loss(contents(**live), contents(**backup)) == (words, Kind.TOTAL_LOSS)


def test_gains_are_set_against_no_loss() -> None:
    assert total_loss(contents(a=10, b=0), contents(a=0, b=1000))[0] == "at least 10 rows in 1 table"


def test_where_nothing_is_lost_that_is_said_of_what_was_counted_only() -> None:
    assert total_loss(contents(a=1), contents(a=1, b=2)) == ("no table will have fewer rows than now", Kind.FACT)
    assert (
        total_loss(contents(a=1), contents(a=None))[0] == "no table that can be counted will have fewer rows than now"
    )


def test_equal_databases_are_said_in_one_line() -> None:
    assert len(row_comparison(contents(a=1), contents(a=1))) == 1


def test_no_more_tables_are_shown_than_fit_on_a_screen() -> None:
    live = Contents({f"t{number:03}": number for number in range(1, 101)}, {}, 0)
    backup = Contents(dict.fromkeys(live.rows, 0), {}, 0)
    lines = row_comparison(live, backup)
    assert len(lines) == 1 + MOST_TABLES + 1
    assert lines[1][0].split()[0] == "t100"
    assert str(100 - MOST_TABLES) in lines[-1][0]
    assert lines[-1][1] == Kind.LOSS


@pytest.mark.parametrize("rows", [1, 123_456_789_012])
def test_name_of_a_table_steers_no_terminal_and_takes_no_second_line(rows: int) -> None:
    evil = "x\x1b[2J\n" + "注" * 200
    lines = [text for text, _ in row_comparison(Contents({evil: rows}, {}, 0), contents())]
    assert len(lines) == 2
    assert "\x1b" not in lines[1]
    assert display_width(f"   {lines[1]}") <= 80
    assert lines[1].endswith(f"none  table will be gone: {rows:,} row{'s' if rows > 1 else ''}")


def test_tables_of_no_live_database() -> None:
    assert tables_of(None, contents(a=1)) == {"a": {"live": None, "backup": 1}}
    assert tables_of(contents(b=2), contents(a=1)) == {
        "a": {"live": None, "backup": 1},
        "b": {"live": 2, "backup": None},
    }


def test_differing_names_what_is_in_one_of_them_or_not_the_same() -> None:
    one = {"table a": "CREATE TABLE a (x)", "table b": "CREATE TABLE b (x)", "index i": "CREATE INDEX i ON a (x)"}
    other = {"table a": "CREATE TABLE a (x)", "table b": "CREATE TABLE b (x, y)", "view v": "CREATE VIEW v AS SELECT 1"}
    assert differing(one, other) == ["index i", "table b", "view v"]
    assert differing(one, one) == []


# --- reading ---------------------------------------------------------------------------------------------------------


def test_rows_schema_and_version_are_read(connection: sqlite3.Connection) -> None:
    connection.executescript(
        """
        PRAGMA user_version = 7;
        CREATE TABLE "it's 'odd'" (id INTEGER PRIMARY KEY AUTOINCREMENT);
        INSERT INTO "it's 'odd'" DEFAULT VALUES;
        CREATE TABLE empty (a);
        CREATE INDEX by_a ON empty (a);
        """
    )
    read = read_contents(connection, (sqlite3.Error,))
    assert read.rows == {"it's 'odd'": 1, "empty": 0}
    assert sorted(read.schema) == ["index by_a", "table empty", "table it's 'odd'"]
    assert read.user_version == 7


ENDLESS = "WITH RECURSIVE r (a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM r) SELECT a, a AS rowid FROM r"


@pytest.mark.timeout(20)
def test_view_that_never_ends_behind_a_table_is_not_counted(connection: sqlite3.Connection) -> None:
    connection.executescript(
        f"CREATE VIEW endless AS {ENDLESS}; CREATE TABLE a (x); INSERT INTO a VALUES (1);"
        "CREATE VIRTUAL TABLE search USING fts5 (a, content='endless');"
    )
    read = read_contents(connection, (sqlite3.Error,))
    assert read.rows["search"] is None
    assert read.rows["a"] == 1
    assert "endless" not in read.rows


def test_table_whose_module_is_not_here_is_not_counted(connection: sqlite3.Connection) -> None:
    connection.executescript(
        "PRAGMA writable_schema=ON;"
        "INSERT INTO sqlite_master VALUES ('table', 'm', 'm', 0, 'CREATE VIRTUAL TABLE m USING botmodule (a)');"
        "PRAGMA writable_schema=RESET;"
    )
    assert read_contents(connection, (sqlite3.Error,)).rows == {"m": None}


def test_database_whose_user_was_killed_is_counted_and_left_alone(tmp_path: Path) -> None:
    """Opening it would fold its WAL."""
    path, engine = tmp_path / "shop.db", Engine(None)
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (a); INSERT INTO t VALUES (1), (2);")
        for suffix in ("", "-wal"):
            Path(f"{path}{suffix}").write_bytes(Path(f"{tmp_path}/a.db{suffix}").read_bytes())
    before = {file.name: file.read_bytes() for file in tmp_path.glob("shop.db*")}
    with RamFolder() as ram:
        read = read_live(engine, path, ram)
        left = list(ram.path.iterdir())
    assert read
    assert read.rows == {"t": 2}
    assert {file.name: file.read_bytes() for file in tmp_path.glob("shop.db*")} == before
    assert len(before) == 2
    assert left == []


@pytest.mark.parametrize("empty", [True, False])
def test_nothing_is_in_a_database_that_is_empty_or_not_there(tmp_path: Path, empty: bool) -> None:
    if empty:
        (tmp_path / "shop.db").touch()
    with RamFolder() as ram:
        assert read_live(Engine(None), tmp_path / "shop.db", ram) is None


# --- counting in slices ----------------------------------------------------------------------------------------------


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> int:
    """So many rows make a slice."""
    monkeypatch.setattr("backuplib.comparison.SLICE_ROWS", 10)
    return 10


@pytest.fixture(params=["sqlite", "sqlcipher"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Both; under a raw key, which takes no time to derive."""
    return Engine(Secret(f"x'{'2b' * 32}'") if request.param == "sqlcipher" else None)


@pytest.fixture
def empty(engine: Engine, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """An empty database."""
    (tmp_path / "shop.db").touch()
    with contextlib.closing(engine.connect(tmp_path / "shop.db")) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        yield connection


TABLES = {
    "without a key": ("t (x)", "(x) VALUES (:n)"),
    "key": ("t (id INTEGER PRIMARY KEY, x)", "VALUES (:n, 1)"),
    "negative key": ("t (id INTEGER PRIMARY KEY, x)", "VALUES (:n - 20, 1)"),
    "far apart": ("t (id INTEGER PRIMARY KEY, x)", "VALUES (:n * 800000000000000000 - 8000000000000000000, 1)"),
    "descending key": ("t (id INTEGER PRIMARY KEY DESC, x)", "VALUES (:n, 1)"),
    "column rowid": ("t (rowid TEXT, x)", "VALUES ('same', 1)"),
    "column ROWID": ("t (ROWID TEXT, x)", "VALUES ('same', 1)"),
    "columns with two of the names": ("t (rowid TEXT, oid)", "VALUES (NULL, NULL)"),
    "columns with all of the names": ("t (rowid, _rowid_, oid)", "VALUES (1, 1, 1)"),
    "key called rowid": ("t (rowid INTEGER PRIMARY KEY, x)", "VALUES (:n - 5, 1)"),
    "generated column rowid": ("t (x, rowid AS (1))", "(x) VALUES (:n)"),
    "without rowid": ("t (k TEXT PRIMARY KEY) WITHOUT ROWID", "VALUES ('k' || :n)"),
    "full-text index": ("VIRTUAL t USING fts5 (x)", "VALUES ('text')"),
    "r-tree": ("VIRTUAL t USING rtree (id, a, b)", "VALUES (:n - 3, 0, 1)"),
}


@pytest.mark.parametrize(("table", "values"), TABLES.values(), ids=[*TABLES])
def test_rows_are_counted_in_slices_as_they_are_at_once(
    empty: sqlite3.Connection, slices: int, table: str, values: str
) -> None:
    name = table.removeprefix("VIRTUAL ")
    empty.execute(f"CREATE {'VIRTUAL ' if name != table else ''}TABLE {name}")
    for number in range(2 * slices + 2):
        assert count_in_slices(empty, "t") == number
        empty.execute(f"INSERT INTO t {values}", {"n": number})


def test_counting_in_slices_does_what_the_authorizer_allows(empty: sqlite3.Connection, slices: int) -> None:
    empty.execute("CREATE TABLE t (x)")
    empty.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(2 * slices + 1)])
    empty.execute("CREATE VIRTUAL TABLE f USING fts5 (x)")
    assert read_contents(empty, (sqlite3.Error,), in_slices=True).rows["t"] == 2 * slices + 1
    assert read_contents(empty, (sqlite3.Error,), in_slices=True).rows["f"] == 0


def test_first_and_last_rowid_that_there_can_be_are_counted(empty: sqlite3.Connection, slices: int) -> None:
    empty.execute("CREATE TABLE t (x)")
    empty.executemany("INSERT INTO t (rowid) VALUES (?)", [(-(2**63),), (0,), *((2**63 - 1 - n,) for n in range(8))])
    assert count_in_slices(empty, "t") == slices  # a full slice, behind which no rowid can be


def test_name_that_must_be_quoted_is_counted(empty: sqlite3.Connection, slices: int) -> None:
    empty.execute("""CREATE TABLE "it's ""odd"" [x]" (a)""")
    empty.executemany("""INSERT INTO "it's ""odd"" [x]" VALUES (?)""", [(n,) for n in range(25)])
    assert count_in_slices(empty, """it's "odd" [x]""") == 25


def test_bot_can_write_between_any_two_slices(engine: Engine, empty: sqlite3.Connection, slices: int) -> None:
    """With a rollback journal, a writer waits for every reader."""
    empty.execute("PRAGMA journal_mode=DELETE")
    empty.execute("CREATE TABLE t (x)")
    empty.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(6 * slices)])
    empty.execute("CREATE TABLE written (x)")
    path = Path(empty.execute("PRAGMA database_list").fetchone()[2])
    written = 0
    with contextlib.closing(engine.connect(path, timeout=0)) as bot:

        def write(statement: str) -> None:
            nonlocal written
            if "LIMIT" in statement:  # a slice is about to begin
                bot.execute("INSERT INTO written VALUES (1)")
                written += 1

        empty.set_trace_callback(write)
        assert count_in_slices(empty, "t") == 6 * slices
    assert written == 7


def test_lock_that_is_met_while_counting_is_not_a_table_that_cannot_be_counted(
    engine: Engine, empty: sqlite3.Connection
) -> None:
    empty.execute("CREATE TABLE t (x)")
    path = Path(empty.execute("PRAGMA database_list").fetchone()[2])

    def lock(statement: str) -> None:
        if "LIMIT" in statement:
            bot.execute("BEGIN EXCLUSIVE")
        elif "user_version" in statement:
            bot.execute("ROLLBACK")

    with contextlib.closing(engine.connect(path)) as bot, contextlib.closing(engine.connect(path, timeout=0)) as reader:
        reader.set_trace_callback(lock)
        with pytest.raises(engine.errors, match="locked"):
            read_contents(reader, engine.errors, in_slices=True)


# --- tables that have lost their rows --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "lost"),
    [
        ({"a": 100}, {"a": 100}, False),
        ({"a": 100}, {"a": 50}, False),
        ({"a": 100}, {"a": 49}, True),
        ({"a": 100}, {"a": 0}, True),
        ({"a": 100}, {}, True),
        ({"a": 100}, {"a": 5000, "b": 1}, False),
        ({}, {"a": 5}, False),
        ({"a": FEWEST_ROWS}, {"a": 0}, True),
        ({"a": FEWEST_ROWS - 1}, {"a": 0}, False),
        ({"a": FEWEST_ROWS - 1}, {}, False),
        ({"a": None}, {}, False),
        ({"a": None}, {"a": 0}, False),
        ({"a": 100}, {"a": None}, False),  # cannot be counted: nothing is known
        ({"a": 100}, {"b": 100}, False),
        ({"a": 100}, {"b": 50}, False),
        ({"a": 100}, {"b": 49}, True),
        ({"a": 100}, {"a": 0, "b": 100}, True),  # emptied, and not renamed
        ({"a": 100, "b": 100}, {"b": 100}, True),  # what was there before is not its new name
        ({"a": 100}, {"b": None}, True),
    ],
    ids=str,
)
def test_table_that_has_lost_most_of_its_rows_is_told(
    before: dict[str, int | None], now: dict[str, int | None], lost: bool
) -> None:
    assert bool(lost_tables(before, now)) is lost


def test_each_lost_table_is_named_with_its_rows() -> None:
    text = lost_tables({"orders": 12345, "users": 9, "kept": 7}, {"orders": 3, "users": 0, "kept": 7})
    assert "orders had 12,345 rows, and has 3" in text
    assert "users had 9 rows, and has 0" in text
    assert "kept" not in text


def test_lost_tables_with_odd_names_or_in_great_number_stay_one_short_line() -> None:
    text = lost_tables({"x\x1b[2J\n" + "y" * 200: 10, **{f"t{number}": 10 for number in range(500)}}, {})
    assert text.isprintable()
    assert len(text) < 200
    assert "more" in text


# --- the look after the start ----------------------------------------------------------------------------------------


class ImpatientEngine(Engine):
    """Waits for a lock for a moment only."""

    def look(self, path: Path | str, *, mode: str = "ro", immutable: bool = False, timeout: float = 0.2) -> Any:
        """Whatever is wanted."""
        return super().look(path, mode=mode, immutable=immutable, timeout=min(timeout, 0.2))


BOT = """
import json, select, sys
sys.path.insert(0, sys.argv[2])
from tests.support.writer import connect
db, passphrase, statements, loop = json.loads(sys.argv[1])
connection = connect(db, passphrase)
connection.execute("PRAGMA busy_timeout=1000")
for statement in statements:
    connection.execute(statement).fetchall()
if loop:
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("INSERT INTO written VALUES (1)")
print("ready", flush=True)
while loop and not select.select([sys.stdin], [], [], 0.001)[0]:
    connection.execute("INSERT INTO written VALUES (1)")
sys.stdin.read()
"""

StartBot = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_bot(engine: Engine, tmp_path: Path) -> Iterator[StartBot]:
    """Another process that has the database open, and goes on writing if wanted, until its input ends."""
    with contextlib.ExitStack() as running:

        def start(*statements: str, loop: bool = False) -> subprocess.Popen[str]:
            passphrase = engine.db_pass.reveal() if engine.db_pass else None
            settings = json.dumps([str(tmp_path / "shop.db"), passphrase, statements, loop])
            process = running.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", BOT, settings, str(ROOT)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            running.callback(process.kill)
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            return process

        yield start


def filled(connection: sqlite3.Connection, journal: str) -> None:
    """Some tables, in a journal mode."""
    connection.execute(f"PRAGMA journal_mode={journal}")
    connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, x)")
    connection.executemany("INSERT INTO orders (x) VALUES (?)", [(n,) for n in range(37)])
    connection.execute("CREATE TABLE written (x)")


BOTH_JOURNALS = pytest.mark.parametrize("journal", ["wal", "delete"])


@BOTH_JOURNALS
def test_database_that_a_bot_has_open_is_checked_and_its_rows_counted(
    engine: Engine, empty: sqlite3.Connection, start_bot: StartBot, tmp_path: Path, journal: str
) -> None:
    filled(empty, journal)
    empty.close()
    start_bot("INSERT INTO orders (x) VALUES (1)")  # in WAL mode the row is nowhere else
    look = look_at_live(engine, tmp_path / "shop.db")
    assert look.checked == "ok"
    assert look.rows == {"orders": 38, "written": 0}


@BOTH_JOURNALS
def test_database_that_a_bot_keeps_locked_is_not_taken_for_unsound(
    engine: Engine, empty: sqlite3.Connection, start_bot: StartBot, tmp_path: Path, journal: str
) -> None:
    filled(empty, journal)
    empty.close()
    start_bot("PRAGMA locking_mode=EXCLUSIVE", "INSERT INTO orders (x) VALUES (1)")
    with pytest.raises(DatabaseInUseError):
        look_at_live(ImpatientEngine(engine.db_pass), tmp_path / "shop.db")


@pytest.mark.timeout(60)
@BOTH_JOURNALS
def test_bot_goes_on_writing_while_its_database_is_looked_at(
    engine: Engine, empty: sqlite3.Connection, start_bot: StartBot, tmp_path: Path, journal: str
) -> None:
    filled(empty, journal)
    empty.close()
    bot = start_bot(loop=True)
    looks = [look_at_live(engine, tmp_path / "shop.db")]
    while len(looks) < 10 or looks[-1].rows == looks[0].rows:
        looks.append(look_at_live(engine, tmp_path / "shop.db"))
    bot.communicate(timeout=20)
    assert bot.returncode == 0  # not "database is locked"
    counts = [look.rows["written"] or 0 for look in looks]
    assert counts == sorted(counts)
    assert {look.checked for look in looks} == {"ok"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_bot_that_waits_a_second_for_a_lock_is_not_held_up_by_a_large_database(
    engine: Engine, start_bot: StartBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rollback journal; the whole check would take some seconds."""
    monkeypatch.setattr("backuplib.comparison.CHECKED_AT_ONCE", 10**5)
    make_slow_to_check(str(tmp_path / "shop.db"))
    bot = start_bot("CREATE TABLE written (x)", "DELETE FROM t WHERE rowid > 1000", loop=True)
    look = look_at_live(engine, tmp_path / "shop.db")
    bot.communicate(timeout=20)
    assert bot.returncode == 0
    assert look.checked != "ok"
    assert look.rows["t"] == 1000


@BOTH_JOURNALS
def test_database_that_is_damaged_is_told(
    engine: Engine, empty: sqlite3.Connection, tmp_path: Path, journal: str
) -> None:
    filled(empty, journal)
    empty.close()
    with (tmp_path / "shop.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 200)
    with pytest.raises((*engine.errors, UnsoundBackupError)):
        look_at_live(engine, tmp_path / "shop.db")


def test_file_that_is_no_database_is_told(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "shop.db").write_bytes(b"noise" * 3000)
    with pytest.raises(UnsoundBackupError, match="not a database"):
        look_at_live(engine, tmp_path / "shop.db")


@pytest.mark.parametrize(
    ("text", "locked"),
    [
        ("database is locked", True),
        ("database table is locked: orders", True),
        ("attempt to write a readonly database", True),
        ('malformed database schema (locked) - near "busy": syntax error', False),
        ("no such table: readonly", False),
    ],
)
def test_names_in_the_database_do_not_make_it_a_locked_one(text: str, locked: bool) -> None:
    assert others_write(sqlite3.DatabaseError(text)) == locked


def test_tables_of_a_full_text_index_are_not_judged(engine: Engine, empty: sqlite3.Connection, tmp_path: Path) -> None:
    """A bot that has it merged at its start leaves fewer rows in them."""
    empty.execute("CREATE VIRTUAL TABLE search USING fts5(a)")
    for word in ("one", "two", "three", "four", "five"):
        empty.execute("INSERT INTO search VALUES (?)", (word,))
    before = read_contents(empty, engine.errors).rows
    empty.set_authorizer(None)
    empty.execute("INSERT INTO search(search) VALUES ('optimize')")
    look = look_at_live(engine, tmp_path / "shop.db")
    assert look.rows["search"] == 5
    assert look.rows["search_data"] is None
    assert not lost_tables(before, look.rows)


def test_database_whose_tables_are_all_gone_is_told(engine: Engine, empty: sqlite3.Connection, tmp_path: Path) -> None:
    filled(empty, "delete")
    empty.execute("DROP TABLE orders")
    empty.execute("DROP TABLE written")
    with pytest.raises(EmptyBackupError):
        look_at_live(engine, tmp_path / "shop.db")


def test_look_leaves_no_sidecars_where_none_were(engine: Engine, empty: sqlite3.Connection, tmp_path: Path) -> None:
    filled(empty, "wal")
    empty.close()
    look_at_live(engine, tmp_path / "shop.db")
    assert [path.name for path in tmp_path.iterdir()] == ["shop.db"]
