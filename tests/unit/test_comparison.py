"""What two databases hold, and what will be lost. Tables and their order; the words below them are not looked at."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from backuplib.comparison import MOST_TABLES, Contents, differing, read_contents, read_live, row_comparison, tables_of
from backuplib.database import Engine
from backuplib.ram_folder import RamFolder


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """An empty database in memory."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        yield connection


def contents(**rows: int | None) -> Contents:
    return Contents(rows, {f"table {name}": f"CREATE TABLE {name} (a)" for name in rows}, 0)


def compared(live: Contents, backup: Contents) -> list[list[str]]:
    """The lines of the tables that differ, below their heading."""
    lines = row_comparison(tables_of(live, backup))
    return [line.split() for line in lines[1:] if not line[0].isdigit()]


# --- comparing -------------------------------------------------------------------------------------------------------


def test_what_loses_most_comes_first_then_what_gains_most() -> None:
    live = contents(a=10, b=500, c=3, d=1, same=7)
    backup = contents(a=9, b=0, c=4, d=1001, same=7)
    assert compared(live, backup) == [
        ["b", "500", "0", "-500"],
        ["a", "10", "9", "-1"],
        ["d", "1", "1,001", "+1,000"],
        ["c", "3", "4", "+1"],
    ]


def test_table_that_is_only_in_one_of_them_has_no_difference_and_its_place() -> None:
    assert compared(contents(a=10, gone=200), contents(a=5, new=3)) == [
        ["gone", "200", "none"],
        ["a", "10", "5", "-5"],
        ["new", "none", "3"],
    ]


def test_table_that_cannot_be_counted_in_either_is_no_difference() -> None:
    assert compared(contents(search=None), contents(search=None)) == []


def test_equal_databases_are_said_in_one_line() -> None:
    assert len(row_comparison(tables_of(contents(a=1), contents(a=1)))) == 1


def test_no_more_tables_are_shown_than_fit_on_a_screen() -> None:
    live = Contents({f"t{number:03}": number for number in range(1, 101)}, {}, 0)
    backup = Contents(dict.fromkeys(live.rows, 0), {}, 0)
    lines = row_comparison(tables_of(live, backup))
    assert len(lines) == 1 + MOST_TABLES + 1
    assert lines[1].split()[0] == "t100"
    assert str(100 - MOST_TABLES) in lines[-1]


def test_name_of_a_table_steers_no_terminal_and_takes_no_second_line() -> None:
    evil = "x\x1b[2J\n" + "y" * 200
    lines = row_comparison(tables_of(Contents({evil: 1}, {}, 0), contents()))
    assert len(lines) == 2
    assert "\x1b" not in lines[1]
    assert len(lines[1]) < 80


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
