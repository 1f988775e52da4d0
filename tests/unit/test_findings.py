"""What three versions of SQLite say of databases that are really damaged, or odd, and the kind of each message."""

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from sqlcipher3 import dbapi2 as sqlcipher

from backuplib.comparison import examine
from backuplib.database import Engine
from backuplib.errors import DamagedDatabaseError, UnknownSchemaError
from backuplib.findings import CONTENT, MESSAGES, STRUCTURE, UNCHECKED, Finding, classify, find, refuse_damaged
from backuplib.newest import NewestSQLite

ENGINES: dict[str, Callable[[str], Any]] = {
    "apsw": NewestSQLite,
    "sqlcipher3": lambda name: sqlcipher.connect(name, isolation_level=None),
    "sqlite3": lambda name: sqlite3.connect(name, isolation_level=None),
}
Edit = Callable[[bytearray], None]
PAGE = 512


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def findings_in(path: Path, engine: str, *, newer: bool = False) -> list[Finding]:
    with closing(ENGINES[engine](str(path))) as connection:
        trusted = "ON" if engine == "sqlite3" else "OFF"  # SQLite 3.40 takes its own JSON functions for unsafe
        connection.execute(f"PRAGMA trusted_schema = {trusted}")
        connection.execute("PRAGMA cell_size_check = ON")
        return find(connection, newer=newer)


def make(path: Path, *statements: str, setup: Callable[[Any], object] = lambda _: None) -> Path:
    """A database with small pages; a statement that begins with a name and a colon gives that table another SQL."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        setup(connection)
        connection.execute(f"PRAGMA page_size = {PAGE}")
        for statement in statements:
            name, changed, sql = statement.partition(": ")
            if changed and name.isidentifier():
                connection.execute("PRAGMA writable_schema = ON")
                connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, name))
                connection.execute("PRAGMA writable_schema = RESET")
            else:
                connection.execute(statement)
    return path


def register(connection: Any) -> None:
    """What a bot has on its connection."""
    connection.create_collation("de", lambda one, other: (one.lower() > other.lower()) - (one.lower() < other.lower()))
    connection.create_function("slug", 1, lambda text: str(text).lower(), deterministic=True)
    connection.create_function("regexp", 2, lambda pattern, text: bool(re.search(pattern, text)), deterministic=True)


# --- structure -------------------------------------------------------------------------------------------------------

# A table over several pages, another with long values, both with an index, and free pages
SHOP = (
    "PRAGMA auto_vacuum = {vacuum}",
    "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)",
    "CREATE INDEX i ON t (b)",
    "CREATE TABLE long (a)",
    "CREATE TABLE gone (a)",
    "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) INSERT INTO t SELECT i, 'row ' || i FROM n",
    "INSERT INTO gone SELECT b || hex(zeroblob(200)) FROM t",
    "INSERT INTO long VALUES (hex(zeroblob(2000)))",
    "DROP TABLE gone",
)


def number(data: bytearray, at: int, size: int = 4) -> int:
    return int.from_bytes(data[at : at + size])


def put(data: bytearray, at: int, value: int, size: int = 4) -> None:
    data[at : at + size] = value.to_bytes(size)


def page_of(data: bytearray, kind: int, holds: bytes = b"") -> int:
    """Where the first page of a b-tree of this kind begins: 13 is a table's leaf, 5 is above leaves."""
    starts = range(PAGE, len(data), PAGE)
    return next(at for at in starts if data[at] == kind and holds in data[at : at + PAGE])


def leaf(edit: Callable[[bytearray, int], None]) -> Edit:
    """Edit the first leaf of the table t."""
    return lambda data: edit(data, page_of(data, 13, b"row 1"))


def trunk(edit: Callable[[bytearray, int], None]) -> Edit:
    """Edit the first page of the list of free pages."""
    return lambda data: edit(data, (number(data, 32) - 1) * PAGE)


def swap_cells(data: bytearray, at: int) -> None:
    data[at + 8 : at + 12] = data[at + 10 : at + 12] + data[at + 8 : at + 10]


def double_cell(data: bytearray, at: int) -> None:
    data[at + 8 : at + 10] = data[at + 10 : at + 12]


def cut_overflow(data: bytearray) -> None:
    """End the chain of pages of the long value after the first."""
    at = page_of(data, 13, b"0" * 30)
    first = number(data, at + PAGE - 4)
    put(data, (first - 1) * PAGE, 0)


def flatten(data: bytearray) -> None:
    """Let the root of t have a page at the level below its others."""
    at = page_of(data, 5)
    put(data, at + number(data, at + 12, 2), number(data, 32))


DAMAGE: dict[str, tuple[str, str, Edit]] = {
    "a page of zeros": ("NONE", r"btreeInitPage\(\) returns error code 11", leaf(lambda d, at: put(d, at, 0, PAGE))),
    "cells in another order": ("NONE", "Rowid … out of order", leaf(swap_cells)),
    "two cells in one place": ("NONE", "Multiple uses for byte|Rowid", leaf(double_cell)),
    "a cell out of the page": ("NONE", r"Offset \d+ out of range", leaf(lambda d, at: put(d, at + 8, 3, 2))),
    "a cell over the end": (
        "NONE",
        "Extends off end of page|btreeInit|Offset 511",
        leaf(lambda d, at: put(d, at + 8, 511, 2)),
    ),
    "wrong fragmentation": ("NONE", "Fragmentation of", leaf(lambda d, at: put(d, at + 7, 9, 1))),
    "wrong free space": ("NONE", "free space corruption|btreeInit", leaf(lambda d, at: put(d, at + 1, PAGE - 8, 2))),
    "a value cut off": ("NONE", "overflow list|missing from overflow|database disk", cut_overflow),
    "a page that is free and used": ("NONE", "2nd reference to page|btreeInit|never used|depth", flatten),
    "the list of free pages lost": ("NONE", "never used", lambda d: put(d, 32, 0, 8)),
    "the list of free pages too short": ("NONE", "size is|overflow list|free", lambda d: put(d, 36, number(d, 36) + 1)),
    "a free page that is not there": ("NONE", "invalid page number", trunk(lambda d, at: put(d, at + 8, 9999))),
    "too many free pages": ("NONE", "leaf count too big", trunk(lambda d, at: put(d, at + 4, 9999))),
    "a free page that is used": ("NONE", "2nd reference to page", trunk(lambda d, at: put(d, at + 8, 2))),
    "wrong map of pointers": ("FULL", "Bad ptr map entry", lambda d: put(d, PAGE + 1, 77)),
    "wrong largest root": ("FULL", r"max rootpage \(\d+\) disagrees", lambda d: put(d, 52, 99)),
    "vacuum without a largest root": ("NONE", "incremental_vacuum enabled", lambda d: put(d, 64, 1)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_in_each_wording_and_is_refused(damage: str, engine: str, tmp_path: Path) -> None:
    vacuum, words, edit = DAMAGE[damage]
    path = make(tmp_path / "a.db", *(sql.format(vacuum=vacuum) for sql in SHOP))
    assert findings_in(path, engine) == []
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)
    found = findings_in(path, engine)
    assert [finding.kind for finding in found] == [STRUCTURE]
    lost = "" if engine == "apsw" else "|^database disk image is malformed$"  # the others read a row ahead
    assert re.search(words + lost, found[0].text), found
    with pytest.raises(DamagedDatabaseError, match="corrupted"):
        refuse_damaged(found)


MISFIT = {
    "a row that the index lacks": (
        r"row \d+ missing from index i",
        ["CREATE INDEX i ON t (b)", "i: CREATE INDEX i ON t (a)"],
    ),
    "an index that was partial": (
        r"wrong # of entries in index i|row 2 missing from index i",
        ["CREATE INDEX i ON t (b) WHERE b > 'c'", "i: CREATE INDEX i ON t (b)"],
    ),
    "keys in another order": (
        r"row not in PRIMARY KEY order for k",
        [
            "CREATE TABLE k (a, b, PRIMARY KEY (a)) WITHOUT ROWID",
            "INSERT INTO k VALUES (1, 'z'), (2, 'b'), (3, 'a')",
            "k: CREATE TABLE k (b, a, PRIMARY KEY (b DESC)) WITHOUT ROWID",
        ],
    ),
}


@pytest.mark.parametrize("misfit", MISFIT)
def test_an_index_that_does_not_fit_its_table_is_damage(misfit: str, engine: str, tmp_path: Path) -> None:
    words, statements = MISFIT[misfit]
    table = ["CREATE TABLE t (a, b)", "INSERT INTO t VALUES (1, 'd'), (2, 'c'), (3, 'b')"]
    found = findings_in(make(tmp_path / "a.db", *table, *statements), engine)
    assert [finding.kind for finding in found] == [STRUCTURE]
    assert re.fullmatch(words, found[0].text)


@pytest.mark.parametrize("modern", ["apsw", "sqlcipher3"])  # SQLite 3.40 does not look
def test_damaged_search_and_map_tables_are_damage(modern: str, tmp_path: Path) -> None:
    made = ["CREATE VIRTUAL TABLE f USING fts5(x)", "INSERT INTO f VALUES ('parcel')", "DELETE FROM f_content"]
    assert (
        findings_in(make(tmp_path / "f.db", *made), modern)[0].text == "malformed inverted index for FTS5 table main.f"
    )
    made = [
        "CREATE VIRTUAL TABLE g USING fts4(x)",
        "INSERT INTO g VALUES ('parcel')",
        "UPDATE g_content SET c0x = 'no'",
    ]
    assert (
        findings_in(make(tmp_path / "g.db", *made), modern)[0].text == "malformed inverted index for FTS4 table main.g"
    )
    made = [
        "CREATE VIRTUAL TABLE r USING rtree(i, a, b)",
        "INSERT INTO r VALUES (8765432, 1, 2)",
        "DELETE FROM r_rowid",
    ]
    (found,) = findings_in(make(tmp_path / "r.db", *made), modern)
    assert found.text.startswith("In RTree main.r:")
    assert "8765432" not in found.text, "a key is a value of a row"


# One message at least for each line of the table; those of the tests above are really made, by each of three versions
LITERALS = {
    CONTENT: """
        CHECK constraint failed in t
        NULL value in t.a
        non-INTEGER value in t.a
        NUMERIC value in t.a
        TEXT value in t.a
        non-unique entry in index i
    """,
    STRUCTURE: """
        row 1 missing from index i
        row 1 values differ from index i
        rowid not at end-of-record for row 2 of index i
        wrong # of entries in index i
        row not in PRIMARY KEY order for t
        database disk image is malformed
        malformed inverted index for FTS4 table main.f
        In RTree main.r: Node 1 missing from database
        unable to validate the inverted index for FTS5 table main.f: SQL logic error
        Tree 2 page 3 cell 0: 2nd reference to page 4
        Freelist: invalid page number 99
        Main freelist: invalid page number 99
        Freelist: failed to get page 9
        Tree 2 page 3: unable to get the page. error code=10
        Page 3: btreeInitPage() returns error code 11
        Tree 2 page 3: free space corruption
        On tree page 2 cell 1: Rowid 5 out of order
        Tree 2 page 2 cell 1: Rowid -5 out of order
        On page 5 at right child: Child page depth differs
        Tree 1 page 1 cell 3: Offset 5 out of range 100..508
        Tree 2 page 2 cell 4: Extends off end of page
        Multiple uses for byte 40 of page 2
        Page 2: Fragmentation of 5 bytes reported as 0 on page 2
        Tree 2 page 2 cell 0: overflow list length is 3 but should be 9
        Freelist: size is 3 but should be 4
        Freelist: freelist leaf count too big on page 5
        Failed to read ptrmap key=3
        Tree 2 page 2 cell 0: 2 of 4 pages missing from overflow list starting at 7
        Bad ptr map entry key=3 expected=(1,0) got=(5,2)
        Pointer map page 2 is referenced
        Page 2: pointer map referenced
        Page 5 is never used
        Page 5: never used
        max rootpage (4) disagrees with header (99)
        incremental_vacuum enabled with a max rootpage of zero
        Outstanding page count goes from 1 to 2 during this analysis
    """,
}


def literals() -> list[tuple[str, str]]:
    return [(kind, message.strip()) for kind, text in LITERALS.items() for message in text.strip().split("\n")]


@pytest.mark.parametrize(("kind", "message"), literals())
def test_message_is_of_its_kind(kind: str, message: str) -> None:
    assert classify(message)[0] == kind
    assert any(pattern.fullmatch(message) for pattern, _, _ in MESSAGES)


def test_each_line_of_the_table_is_tested_and_what_is_not_in_it_is_damage() -> None:
    messages = [message for _, message in literals()]
    assert [pattern.pattern for pattern, _, _ in MESSAGES if not any(map(pattern.fullmatch, messages))] == []
    for message in (
        "something new",
        "row 1 missing from index i\nCHECK constraint failed in t",
        "not CHECK constraint failed in t",
    ):
        assert classify(message)[0] == STRUCTURE


# --- content ---------------------------------------------------------------------------------------------------------

CONTENTS = {
    "check": (
        2,
        "a CHECK would refuse",
        ["CREATE TABLE t (a)", "INSERT INTO t VALUES (-1), (-2), (3)", "t: CREATE TABLE t (a CHECK (a > 0))"],
    ),
    "null": (
        1,
        "with NULL in b, which is NOT NULL",
        ["CREATE TABLE t (a, b)", "INSERT INTO t VALUES (1, NULL), (1, 2)", "t: CREATE TABLE t (a, b NOT NULL)"],
    ),
    "strict": (
        1,
        "with another type than INT in a",
        ["CREATE TABLE t (a)", "INSERT INTO t VALUES ('x'), (2)", "t: CREATE TABLE t (a INT) STRICT"],
    ),
    "number": (
        1,
        "with a number in a, which is TEXT",
        ["CREATE TABLE t (a)", "INSERT INTO t VALUES (1), ('x')", "t: CREATE TABLE t (a TEXT)"],
    ),
    "text": (
        1,
        "with text in a, which is numeric",
        ["CREATE TABLE t (a)", "INSERT INTO t VALUES ('1'), ('x')", "t: CREATE TABLE t (a INT)"],
    ),
    "unique": (
        1,
        "that the UNIQUE index i would refuse",
        [
            "CREATE TABLE t (a)",
            "CREATE INDEX i ON t (a)",
            "INSERT INTO t VALUES (1), (1), (2)",
            "i: CREATE UNIQUE INDEX i ON t (a)",
        ],
    ),
    "foreign key": (
        2,
        "with a foreign key to no row of p",
        ["CREATE TABLE p (a PRIMARY KEY)", "CREATE TABLE t (a REFERENCES p)", "INSERT INTO t VALUES (1), (1), (NULL)"],
    ),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_content_is_counted_by_table_and_no_damage(what: str, engine: str, tmp_path: Path) -> None:
    count, words, statements = CONTENTS[what]
    (found,) = findings_in(make(tmp_path / "a.db", *statements), engine)
    rows = "1 row" if count == 1 else f"{count} rows"
    assert found == Finding(CONTENT, f"table t: {rows} {words}", "t", count)
    refuse_damaged([found])


def test_counts_go_beyond_the_hundred_messages_that_are_usual(engine: str, tmp_path: Path) -> None:
    many = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) INSERT INTO t SELECT NULL, i FROM n"
    path = make(tmp_path / "a.db", "CREATE TABLE t (a, b)", many, "t: CREATE TABLE t (a NOT NULL, b CHECK (b > 400))")
    assert sorted(finding.count for finding in findings_in(path, engine)) == [400, 500]


def test_damage_is_not_hidden_behind_content(engine: str, tmp_path: Path) -> None:
    many = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) INSERT INTO t SELECT NULL, i FROM n"
    index = ("CREATE INDEX i ON t (b)", "i: CREATE INDEX i ON t (a, b)")
    path = make(tmp_path / "a.db", "CREATE TABLE t (a, b)", many, *index, "t: CREATE TABLE t (a NOT NULL, b)")
    assert STRUCTURE in [finding.kind for finding in findings_in(path, engine)]


def test_names_that_look_like_messages_change_no_kind(engine: str, tmp_path: Path) -> None:
    name = "a.b\nPage 5: never used"
    table = f'CREATE TABLE "{name}" (c)', f'INSERT INTO "{name}" VALUES (NULL)'
    with closing(sqlite3.connect(make(tmp_path / "a.db", *table), isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, '(c)', '(\"c.d\" NOT NULL)')")
    (found,) = findings_in(tmp_path / "a.db", engine)
    assert (found.kind, found.table, found.count) == (CONTENT, name, 1)
    assert "\n" not in found.text


# --- what is not here ------------------------------------------------------------------------------------------------

OF_THE_BOT = {
    "collation in an index": ("de", ["CREATE TABLE t (a COLLATE de)", "CREATE INDEX i ON t (a)"]),
    "collation of a key": ("de", ["CREATE TABLE t (a COLLATE de PRIMARY KEY, b UNIQUE) WITHOUT ROWID"]),
    "collation in a CHECK": ("de", ["CREATE TABLE t (a CHECK (a < 'zz' COLLATE de))"]),
    "function in an index": ("slug", ["CREATE TABLE t (a)", "CREATE INDEX i ON t (slug(a))"]),
    "function in a partial index": ("slug", ["CREATE TABLE t (a)", "CREATE INDEX i ON t (a) WHERE slug(a) > 'm'"]),
    "function in a CHECK": ("slug", ["CREATE TABLE t (a CHECK (slug(a) IS NOT NULL))"]),
    "REGEXP in a CHECK": ("regexp", ["CREATE TABLE t (a CHECK (a REGEXP '.'))"]),
    "function in a column": ("slug", ["CREATE TABLE t (a, b TEXT NOT NULL AS (slug(a)))", "CREATE INDEX i ON t (b)"]),
}


@pytest.mark.parametrize("what", OF_THE_BOT)
def test_what_only_the_bot_has_is_named_and_the_rest_is_checked(what: str, engine: str, tmp_path: Path) -> None:
    name, statements = OF_THE_BOT[what]
    rows = "INSERT INTO t (a) VALUES ('b'), ('A'), ('c'), ('D')"
    if "collation of a key" in what:
        rows = "INSERT INTO t VALUES ('b', 1), ('A', 2), ('c', 3), ('D', 4)"
    other = ("CREATE TABLE other (a)", "INSERT INTO other VALUES (NULL)")
    path = make(tmp_path / "a.db", *statements, rows, *other, "other: CREATE TABLE other (a NOT NULL)", setup=register)
    content, unchecked = findings_in(path, engine)
    assert (content.kind, content.table) == (CONTENT, "other")
    assert (unchecked.kind, unchecked.table) == (UNCHECKED, "t")
    assert name in unchecked.text.lower()
    data = bytearray(path.read_bytes())
    put(data, 32, 0, 8)
    put(data, page_of(data, 13), 0, PAGE)
    path.write_bytes(data)
    assert [finding.kind for finding in findings_in(path, engine)] == [STRUCTURE]


def test_function_that_sqlite_refuses_in_a_schema_is_replaced(engine: str, tmp_path: Path) -> None:
    made = ["CREATE TABLE t (a)", "INSERT INTO t VALUES ('x')", "t: CREATE TABLE t (a CHECK (a <= date('now')))"]
    (found,) = findings_in(make(tmp_path / "a.db", *made), engine)
    assert found.kind == UNCHECKED
    assert "refuses the function date" in found.text


@pytest.mark.parametrize("modern", ["apsw", "sqlcipher3"])
@pytest.mark.parametrize("check", ["load_extension(a) IS NULL", "a MATCH 'x'", "substr(a, 1, 2, 3, 4)"])
def test_schema_with_a_function_that_could_harm_is_not_opened(check: str, modern: str, tmp_path: Path) -> None:
    path = make(tmp_path / "a.db", "CREATE TABLE t (a)", f"t: CREATE TABLE t (a CHECK ({check}))")
    with pytest.raises(UnknownSchemaError, match="schema of t: "):
        findings_in(path, modern)


FAILING = {
    "malformed JSON": "CREATE TABLE t (a, b AS (json_extract(a, '$.x')) CHECK (b > 0))",
    "integer overflow": "CREATE TABLE t (a, b INT AS (abs(-9223372036854775808 + a * 0)))",
}


@pytest.mark.parametrize("why", FAILING)
def test_a_row_that_cannot_be_looked_at_leaves_the_rest_checked(why: str, engine: str, tmp_path: Path) -> None:
    rest = ("CREATE TABLE u (a)", "INSERT INTO u VALUES (NULL)", "u: CREATE TABLE u (a NOT NULL)")
    path = make(
        tmp_path / "a.db", "CREATE TABLE t (a)", "INSERT INTO t VALUES ('secret 8765432')", f"t: {FAILING[why]}", *rest
    )
    found = {finding.kind: finding for finding in findings_in(path, engine)}
    assert set(found) == {CONTENT, UNCHECKED}
    assert (found[CONTENT].table, found[UNCHECKED].table) == ("u", "t")
    assert why in found[UNCHECKED].text
    assert "8765432" not in found[UNCHECKED].text


VIRTUAL = {
    "module": ("vec0", "CREATE TABLE f (a)", "CREATE VIRTUAL TABLE f USING vec0(e float[3])"),
    "tokenizer of FTS5": (
        "simple",
        "CREATE VIRTUAL TABLE f USING fts5(x)",
        "CREATE VIRTUAL TABLE f USING fts5(x, tokenize='simple 1')",
    ),
    "tokenizer of FTS4": (
        "icu",
        "CREATE VIRTUAL TABLE f USING fts4(x)",
        "CREATE VIRTUAL TABLE f USING fts4(x, tokenize=icu de)",
    ),
}


@pytest.mark.parametrize("what", VIRTUAL)
@pytest.mark.parametrize("modern", ["apsw", "sqlcipher3"])
def test_virtual_table_that_only_the_bot_can_open_is_left_out(what: str, modern: str, tmp_path: Path) -> None:
    name, create, changed = VIRTUAL[what]
    good = ("CREATE VIRTUAL TABLE g USING fts4(x)", "INSERT INTO g VALUES ('parcel')")
    path = make(
        tmp_path / "a.db",
        create,
        *good,
        "CREATE TABLE u (a)",
        "INSERT INTO u VALUES (NULL)",
        "u: CREATE TABLE u (a NOT NULL)",
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'f'", (changed,))
        if name == "vec0":
            connection.execute("DELETE FROM sqlite_master WHERE name = 'f'")
            connection.execute("INSERT INTO sqlite_master VALUES ('table', 'f', 'f', 0, ?)", (changed,))
            connection.execute("PRAGMA writable_schema = RESET")
            connection.execute("VACUUM")
    content, unchecked = findings_in(path, modern)
    assert (content.kind, content.table) == (CONTENT, "u")
    assert (unchecked.kind, unchecked.table) == (UNCHECKED, "f")
    assert name in unchecked.text.lower()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE g_content SET c0x = 'no'")
    assert [finding.kind for finding in findings_in(path, modern)] == [STRUCTURE]


@pytest.mark.parametrize("what", ["tokenizer of FTS5", "tokenizer of FTS4"])
def test_pages_are_checked_beside_a_search_table_that_cannot_be_opened(what: str, tmp_path: Path) -> None:
    """SQLCipher's are not, where they belong to no table: their authentication codes are."""
    _, create, changed = VIRTUAL[what]
    free = ("CREATE TABLE gone AS SELECT zeroblob(5000) AS a", "DROP TABLE gone")
    path = make(tmp_path / "a.db", create, *free, f"f: {changed}")
    data = bytearray(path.read_bytes())
    put(data, 32, 0, 8)
    path.write_bytes(data)
    (found,) = findings_in(path, "apsw")
    assert "never used" in found.text


def test_schema_that_is_not_understood_is_left_out_only_where_a_newer_sqlite_may_have_made_it(
    engine: str, tmp_path: Path
) -> None:
    path = make(tmp_path / "a.db", "CREATE TABLE t (a)", "CREATE TABLE u (a)", "INSERT INTO u VALUES (NULL)")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = 'CREATE TABLE t (a ~ FUTURE)' WHERE name = 't'")
        connection.execute("UPDATE sqlite_master SET sql = 'CREATE TABLE u (a NOT NULL)' WHERE name = 'u'")
    with pytest.raises(UnknownSchemaError, match=r"schema of t: near \"~\": syntax error"):
        findings_in(path, engine)
    content, unchecked = findings_in(path, engine, newer=True)
    assert (content.kind, content.table, unchecked.kind, unchecked.table) == (CONTENT, "u", UNCHECKED, "t")
    data = bytearray(path.read_bytes())
    put(data, 2 * PAGE, 0, PAGE)
    path.write_bytes(data)
    assert [finding.kind for finding in findings_in(path, engine, newer=True)] == [STRUCTURE]


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le"])
def test_names_that_are_not_text_are_escaped(encoding: str, engine: str, tmp_path: Path) -> None:
    made = (
        "CREATE TABLE tXXYYZZ (a)",
        "INSERT INTO tXXYYZZ VALUES (NULL)",
        "tXXYYZZ: CREATE TABLE tXXYYZZ (a NOT NULL)",
    )
    path = make(tmp_path / "a.db", f"PRAGMA encoding = '{encoding}'", *made)
    bad = {"UTF-8": b"t\xe4\xf6\xfc\xff\xfe\xfa", "UTF-16le": "t".encode("utf-16le") + b"\x00\xdc" * 6}[encoding]
    path.write_bytes(path.read_bytes().replace("tXXYYZZ".encode(encoding), bad))
    (found,) = findings_in(path, engine)
    assert (found.kind, found.count) == (CONTENT, 1)
    assert found.text.isprintable()


# --- as plain data ---------------------------------------------------------------------------------------------------


def test_examination_is_plain_data(tmp_path: Path) -> None:
    path = make(tmp_path / "a.db", "PRAGMA user_version = 7", *CONTENTS["null"][2])
    engine = Engine(None)
    with closing(engine.look(path, mode="rw")) as connection:
        contents = examine(engine, connection, path.stat().st_size)
    assert json.loads(json.dumps(asdict(contents))) == {
        "rows": {"t": 2},
        "schema": {"table t": "CREATE TABLE t (a, b NOT NULL)"},
        "user_version": 7,
        "tables": 1,
        "findings": [
            {"kind": CONTENT, "text": "table t: 1 row with NULL in b, which is NOT NULL", "table": "t", "count": 1}
        ],
    }
    path.write_bytes(path.read_bytes() + bytes(PAGE))
    with closing(engine.look(path, mode="rw")) as connection:
        contents = examine(engine, connection, path.stat().st_size)
    assert [finding.kind for finding in contents.findings] == [STRUCTURE]
    assert contents.rows == {}
