"""What is copied of a damaged database: shapes of tables, and ranges of rowids."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from backuplib.database import Engine, check_database
from backuplib.salvage import LAST, Salvage, in_words, merged, pieces

TABLES = (
    "CREATE TABLE plain (a, b)",
    "CREATE TABLE counted (id INTEGER PRIMARY KEY AUTOINCREMENT, a UNIQUE)",
    "CREATE TABLE keyed (k TEXT, n INT, v, PRIMARY KEY (n, k)) WITHOUT ROWID",
    "CREATE TABLE strict_one (a INTEGER NOT NULL, b TEXT CHECK (b != 'x')) STRICT",
    "CREATE TABLE made (a, twice GENERATED ALWAYS AS (a * 2) STORED)",
    'CREATE TABLE "odd ""name""" ("a, b", "rowid" TEXT, "select")',
    "CREATE VIRTUAL TABLE words USING fts5 (text)",
    "CREATE VIRTUAL TABLE boxes USING rtree (id, low, high)",
)
ROWS = (
    "INSERT INTO plain VALUES (1, 2.5), (NULL, x'00ff'), ('ä', CAST(x'ff41' AS TEXT)), (9223372036854775807, '')",
    "INSERT INTO plain (rowid, a) VALUES (-5, 'low'), (9223372036854775807, 'high')",
    "INSERT INTO counted (id, a) VALUES (7, 'seven'), (900, 'much')",
    "DELETE FROM counted WHERE id = 900",
    "INSERT INTO keyed VALUES ('b', 1, 'x'), ('a', 2, 'y')",
    "INSERT INTO strict_one VALUES (1, 'y')",
    "INSERT INTO made (a) VALUES (21)",
    'INSERT INTO "odd ""name""" VALUES (1, 2, 3)',
    "INSERT INTO words VALUES ('hello world')",
    "INSERT INTO boxes VALUES (1, 2, 3)",
    "CREATE INDEX by_a ON plain (a) WHERE a IS NOT NULL",
    "CREATE VIEW seen AS SELECT * FROM plain",
    "CREATE TRIGGER fires AFTER INSERT ON plain BEGIN DELETE FROM made; END",
    "PRAGMA user_version = 42",
)


def made(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.create_function("own", 1, lambda value: value, deterministic=True)
        for statement in statements:
            connection.execute(statement)
    return path


def salvaged(damaged: Path) -> tuple[Salvage, Path]:
    new = damaged.with_name("new.db")
    salvage = Salvage(Engine(None), damaged, new)
    salvage.run()
    return salvage, new


def dump(path: Path) -> list[str]:
    """All that is in a database; a text that is no UTF-8 with the characters that stand for its bytes."""
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = lambda data: data.decode(errors="surrogateescape")
        return [*connection.iterdump(), str(connection.execute("SELECT rowid, typeof(b) FROM plain").fetchall())]


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le"])
def test_all_kinds_of_tables_are_copied_with_all_they_hold(tmp_path: Path, encoding: str) -> None:
    damaged = made(
        tmp_path / "damaged.db", f"PRAGMA encoding = '{encoding}'", "PRAGMA page_size = 1024", *TABLES, *ROWS
    )
    salvage, new = salvaged(damaged)
    assert salvage.notes == []
    assert [table.notes for table in salvage.tables.values()] == [[]] * len(salvage.tables)
    assert sorted(dump(new)) == sorted(dump(damaged))
    assert check_database(Engine(None), new)
    with closing(sqlite3.connect(new)) as connection:
        found = [
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("encoding", "page_size", "user_version")
        ]
        assert found == [encoding, 1024, 42]
        assert connection.execute("SELECT text FROM words WHERE words MATCH 'world'").fetchall() == [("hello world",)]


def test_table_with_a_function_of_the_bots_own_keeps_its_rows(tmp_path: Path) -> None:
    damaged = made(
        tmp_path / "damaged.db",
        "CREATE TABLE t (a INTEGER CHECK (own(a) > 0), b)",
        "INSERT INTO t VALUES (1, 'x')",
        "CREATE INDEX i ON t (own(a))",
    )
    salvage, new = salvaged(damaged)
    assert "own" in salvage.tables["t"].notes[0]
    assert salvage.notes[0].startswith("the index i is missing")
    with closing(sqlite3.connect(new)) as connection:
        assert connection.execute("SELECT * FROM t").fetchall() == [(1, "x")]


def test_row_that_a_constraint_refuses_is_counted(tmp_path: Path) -> None:
    damaged = made(tmp_path / "damaged.db", "CREATE TABLE t (a)", "INSERT INTO t VALUES (1), (NULL), (NULL)")
    made(
        damaged,
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_master SET sql = 'CREATE TABLE t (a NOT NULL)'",
    )
    salvage, _ = salvaged(damaged)
    assert (salvage.tables["t"].rows, salvage.tables["t"].notes) == (1, ["2 rows: NOT NULL constraint failed: t.a"])


def test_ranges_of_rowids() -> None:
    assert list(pieces(1, 10)) == [(1, 1), (2, 3), (4, 7), (8, 10)]
    assert merged([(4, 7), (1, 1), (2, 3), (9, 9)]) == [(1, 7), (9, 9)]
    assert [in_words(gap) for gap in ((1, 7), (9, 9), (5000, LAST))] == ["1 to 7", "9", "5,000 and higher"]
