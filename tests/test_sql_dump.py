"""SQL dumps: what comes in is what was dumped, in both engines, and nothing that a dump says can do anything else."""

import contextlib
import io
import itertools
import os
import resource
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlcipher3 import dbapi2 as sqlcipher

from backuplib import sql_dump
from backuplib.errors import ExitCode, NeedsTheBotError
from backuplib.newest import NewestSQLite
from backuplib.sql_dump import LoadedDump, UnusableDumpError, load_sql_dump, looks_like_sql_dump
from tests.support.dumps import DUMPERS, Dumper, Table, build, databases, dump_like_the_bot, quoted

ENGINES: dict[str, Any] = {"sqlite": NewestSQLite, "sqlcipher": sqlcipher.connect}
MEGABYTE = 1 << 20


@pytest.fixture(params=ENGINES)
def empty(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An open, empty database in RAM, of either engine."""
    with closing(open_empty(request.param)) as connection:
        yield connection


def open_empty(engine: str, path: Path | str = ":memory:") -> Any:
    connection = ENGINES[engine](str(path), isolation_level=None, cached_statements=0)
    if engine == "sqlcipher":
        connection.execute("PRAGMA key='it''s secret'")
    return connection


def load(dump: bytes | str, connection: Any, megabytes: int = 256, seconds: float = 60) -> LoadedDump:
    stream = io.BytesIO(dump.encode() if isinstance(dump, str) else dump)
    return load_sql_dump(stream, connection, limit_bytes=megabytes * MEGABYTE, limit_seconds=seconds)


def content(connection: Any) -> tuple[list[Any], dict[str, list[str]]]:
    """Schema, and the rows of each table; as text, so that 1, 1.0 and '1' are told apart."""
    schema = connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%' ORDER BY 1, 2"
    ).fetchall()
    tables = [name for kind, name, *_ in schema if kind == "table"]
    return [tuple(row) for row in schema], {
        name: sorted(map(repr, map(tuple, connection.execute(f"SELECT * FROM {quoted(name)}")))) for name in tables
    }


# --- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dumper", DUMPERS.values(), ids=DUMPERS)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(made=databases(), chunk=st.sampled_from([7, 64, MEGABYTE]))
def test_what_was_dumped_comes_back(
    made: list[Table], chunk: int, dumper: Dumper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_dump, "_CHUNK", chunk)
    with closing(build(made)) as source:
        dump = dumper(source)
        expected_schema, expected_rows = content(source)
    for engine in ENGINES:
        with closing(open_empty(engine)) as target:
            loaded = load(dump, target)
            schema, rows = content(target)
            if dumper is dump_like_the_bot:  # it leaves the sequence to be counted anew
                rows.pop("sqlite_sequence", None)
                expected_rows.pop("sqlite_sequence", None)
            assert (schema, rows) == (expected_schema, expected_rows)
            assert (loaded.tables, loaded.size) == (len(made), len(dump))
            assert target.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


SHOP = """
    CREATE TABLE users(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, balance REAL CHECK (balance > -1e9));
    CREATE TABLE orders(id TEXT PRIMARY KEY, user REFERENCES users, total AS (length(note)), note) WITHOUT ROWID;
    INSERT INTO users(name, balance) VALUES ('Ада; -- "', 0.1), (char(13,10) || 'b', 9e999), ('c', -5.5), (NULL, NULL);
    INSERT INTO orders VALUES ('o;1', 1, 'x'), ('o2', 2, X'00FF');
    DELETE FROM users WHERE id = 4;
    CREATE VIRTUAL TABLE search USING fts5(body, tokenize='porter');
    INSERT INTO search VALUES ('sending parcels'), ('o''neill');
    CREATE VIRTUAL TABLE old_search USING fts4(body);
    INSERT INTO old_search VALUES ('another parcel');
    CREATE VIRTUAL TABLE places USING rtree(id, west, east);
    INSERT INTO places VALUES (1, 2.5, 3.5);
    CREATE INDEX by_name ON users(lower(name));
    CREATE VIEW rich AS SELECT * FROM users WHERE balance > 1 /* ; */;
    CREATE TRIGGER log AFTER INSERT ON users BEGIN
        INSERT INTO orders VALUES (new.id, new.id, CASE WHEN 1 THEN 'end;' END); -- END;
    END;
    ANALYZE;
"""


@pytest.mark.parametrize("dumper", DUMPERS.values(), ids=DUMPERS)
def test_search_tables_sequence_and_generated_columns_come_back(dumper: Dumper, empty: Any) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as source:
        source.executescript(SHOP)
        if dumper is dump_like_the_bot:  # it writes the values of generated columns, too, which nothing could load
            source.executescript("DROP TABLE orders; CREATE TABLE orders(id)")
        load(dumper(source), empty)
        for query in (
            "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY 1",
            "SELECT *, typeof(balance) FROM users",
            "SELECT * FROM orders",
            "SELECT rowid, * FROM search WHERE search MATCH 'send'",
            "SELECT rowid, * FROM old_search WHERE old_search MATCH 'parcel'",
            "SELECT * FROM places WHERE west < 3",
            "SELECT * FROM rich",
        ):
            assert list(map(tuple, empty.execute(query))) == source.execute(query).fetchall(), query
    assert empty.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    if dumper is not dump_like_the_bot:
        assert empty.execute("SELECT seq FROM sqlite_sequence").fetchall() == [(4,)]
    empty.execute("INSERT INTO search VALUES ('written later')")
    assert empty.execute("SELECT body FROM search('later')").fetchall() == [("written later",)]


def test_a_dump_fills_an_encrypted_file_that_opens_again(tmp_path: Path) -> None:
    with closing(open_empty("sqlcipher", tmp_path / "shop.db")) as target:
        load("BEGIN; CREATE TABLE t(a); INSERT INTO t VALUES('for nobody''s eyes'); COMMIT;", target)
    assert b"eyes" not in (tmp_path / "shop.db").read_bytes()
    with closing(open_empty("sqlcipher", tmp_path / "shop.db")) as again:
        assert again.execute("SELECT a FROM t").fetchall() == [("for nobody's eyes",)]


@pytest.mark.parametrize(("written", "stored"), [
    ("nan", None), ("inf", float("inf")), ("-inf", float("-inf")), ("-Inf", float("-inf")), ("1e+300", 1e300),
    ("1.5000000000000000071e+300", 1.5e300), ("-0.0", -0.0), ("9007199254740993", 9007199254740993), ("5e-324", 5e-324),
    ("-9223372036854775808", -(2**63)), ("0.30000000000000004", 0.30000000000000004), ("1e999", float("inf")),
    ("'inf, nan'", "inf, nan"), ("'a'',nan,'''", "a',nan,'"), ("X'00ff'", b"\0\xff"), ("x''", b""), ("''", ""),
    (r"replace('a\nb','\n',char(10))", "a\nb"), (r"unistr('tab\u0009\\ \+01f4e6')", "tab\t\\ \U0001f4e6"),
    (r"replace(replace('a\r\nb','\r',char(13)),'\n',char(10))", "a\r\nb"), ("CAST('7' AS INTEGER)", 7), ("TRUE", 1),
    ("'a\0b'", "a\0b"), ("'\0'", "\0"), ("'it''s\0;'", "it's\0;"), ("/* ; */ 1 -- ;\n", 1),
    ("'CRLF\r\n;'", "CRLF\r\n;"),
])  # fmt: skip
@pytest.mark.parametrize("neighbour", ["'x'", f"X'{'ab' * 40_000}'"], ids=["short", "long"])
def test_a_value_is_stored_as_its_dumper_meant_it(written: str, stored: object, neighbour: str, empty: Any) -> None:
    row = f'INSERT INTO "nan" ("inf", nan) VALUES ({written}, {neighbour});\n'
    load(f'BEGIN TRANSACTION;\nCREATE TABLE "nan" ("inf", nan);\n{row}{row}COMMIT;\n', empty)
    assert repr(empty.execute('SELECT "inf" FROM "nan"').fetchall()) == repr([(stored,), (stored,)])


@pytest.mark.parametrize("padding", ["NULL", f"X'{'ab' * 40_000}'"], ids=["short", "long"])
def test_text_that_is_not_utf8_keeps_its_bytes(padding: str, empty: Any) -> None:
    dump = b"BEGIN;CREATE TABLE t(a, b, c);INSERT INTO t VALUES('\xff''\xe9', 'ok', %s);COMMIT;" % padding.encode()
    load(dump, empty)
    assert empty.execute("SELECT typeof(a), hex(a), b FROM t").fetchall() == [("text", "FF27E9", "ok")]


def test_leftovers_of_dropped_tables_and_foreign_statistics_are_no_error(empty: Any) -> None:
    load(
        """BEGIN; CREATE TABLE t(a); DELETE FROM sqlite_sequence; ANALYZE sqlite_schema;
            INSERT INTO sqlite_stat3 VALUES(1); INSERT INTO t VALUES(1); COMMIT;""",
        empty,
    )
    assert empty.execute("SELECT a FROM t").fetchall() == [(1,)]


def test_layout_pragmas_and_utf16_come_through(empty: Any) -> None:
    head = "PRAGMA encoding='UTF-16le'; PRAGMA user_version=7; PRAGMA application_id=99; PRAGMA foreign_keys=ON;\n"
    load("\ufeff" + head + "BEGIN; CREATE TABLE t(a, b); INSERT INTO t VALUES('ü\0ü', 1.5e300);COMMIT;", empty)
    assert empty.execute("PRAGMA encoding").fetchone() == ("UTF-16le",)
    assert empty.execute("SELECT a, b FROM t").fetchall() == [("ü\0ü", 1.5e300)]
    assert [int(empty.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("user_version", "application_id")] == [
        7,
        99,
    ]
    assert int(empty.execute("PRAGMA foreign_keys").fetchone()[0]) == 0


REFUSED_TODAY = {
    "foreign key": ("a REFERENCES gone(id)", "7"),
    "check": ("a CHECK (a > 0)", "-7"),
    "not null": ("a TEXT NOT NULL, b DEFAULT 'NOT NULL' CHECK (b IS NOT NULL)", "NULL, 1"),
    "not null, commented": ("a TEXT CONSTRAINT must NOT /* , ( */ NULL ON CONFLICT ABORT UNIQUE, b", "NULL, 1"),
}


@pytest.mark.parametrize("what", REFUSED_TODAY)
def test_rows_that_a_constraint_would_refuse_are_loaded_and_the_schema_stays(what: str, empty: Any) -> None:
    columns, row = REFUSED_TODAY[what]
    rows = f"INSERT INTO t VALUES({row});" * 2
    load(f"BEGIN; CREATE TABLE t({columns}); {rows} CREATE INDEX i ON t(a); COMMIT;", empty)
    assert empty.execute("SELECT count(*) FROM t").fetchall() == [(2,)]
    (sql,) = empty.execute("SELECT sql FROM sqlite_master WHERE name = 't'").fetchone()
    assert sql == f"CREATE TABLE t({columns})"
    said = str(empty.execute("PRAGMA integrity_check").fetchall())
    assert "missing from index" not in said
    assert "wrong #" not in said


OF_THE_BOT = {
    "collation of a column": ("CREATE TABLE t(a COLLATE de);", []),
    "function in a CHECK": ("CREATE TABLE t(a CHECK (a REGEXP 'x'));", []),
    "function of a virtual column": ("CREATE TABLE t(a, b AS (slug(a)));", []),
    "collation of an index": ("CREATE TABLE t(a); CREATE INDEX i ON t(a COLLATE de);", ["i"]),
    "collation of a column with an index": ("CREATE TABLE t(a COLLATE de, b); CREATE INDEX i ON t(b, a);", ["i"]),
    "function in an index": ("CREATE TABLE t(a); CREATE INDEX i ON t(slug(a)); CREATE INDEX j ON t(a);", ["i"]),
    "function in a partial index": ("CREATE TABLE t(a); CREATE INDEX i ON t(a) WHERE slug(a);", ["i"]),
    "index on a virtual column": ("CREATE TABLE t(a, b AS (slug(a))); CREATE INDEX i ON t(b);", ["i"]),
}


@pytest.mark.parametrize("what", OF_THE_BOT)
def test_what_only_the_bot_can_build_is_left_out_and_named(what: str, empty: Any) -> None:
    create, left_out = OF_THE_BOT[what]
    loaded = load(f"BEGIN; {create} COMMIT;", empty)
    names = {name for (name,) in empty.execute("SELECT name FROM sqlite_master").fetchall()}
    assert "t" in names
    assert not names & set(left_out)
    assert [text.split()[1] for text in loaded.left_out] == left_out
    assert names >= {"j"} if "j ON" in create else True


NOT_WITHOUT_THE_BOT = {
    "unique column": "CREATE TABLE t(a COLLATE de UNIQUE);",
    "primary key": "CREATE TABLE t(a COLLATE de PRIMARY KEY) WITHOUT ROWID;",
    "stored column": "CREATE TABLE t(a, b AS (slug(a)) STORED);",
}


@pytest.mark.parametrize("what", NOT_WITHOUT_THE_BOT)
def test_what_a_table_needs_from_the_bot_is_refused(what: str, empty: Any) -> None:
    with pytest.raises(NeedsTheBotError, match=r"\bt\b|_t_.*(de|slug)"):
        load(f"BEGIN; {NOT_WITHOUT_THE_BOT[what]} COMMIT;", empty)


def test_a_function_of_the_bot_in_a_row_is_refused(empty: Any) -> None:
    with pytest.raises(UnusableDumpError, match="slug"):
        load("BEGIN; CREATE TABLE t(a CHECK (slug(a))); INSERT INTO t VALUES(slug('x')); COMMIT;", empty)


def test_progress_counts_up_to_the_size_of_the_dump(empty: Any) -> None:
    dump = b"BEGIN; CREATE TABLE t(a);" + b"INSERT INTO t VALUES('%s');\n" % (b"x" * 1000) * 3000 + b"COMMIT;"
    seen: list[int] = []
    loaded = load_sql_dump(io.BytesIO(dump), empty, progress=seen.append, limit_bytes=64 * MEGABYTE, limit_seconds=60)
    assert seen == sorted(seen)
    assert seen[-1] == loaded.size == len(dump)
    assert len(seen) > 3
    assert loaded.statements == 3003


# --- what is recognised ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [
    b"BEGIN TRANSACTION;\n", b"PRAGMA foreign_keys=OFF;", b"\xef\xbb\xbfbegin;",
    b"-- dump\n\n/* of\n*/ CREATE TABLE t(a);",
    b"\r\n\r\nINSERT INTO t VALUES(1);", b"/* a long licence" + b" text" * 2000, b"-- cut off", b"COMMIT;", b"CREATE",
])  # fmt: skip
def test_sql_text_is_recognised(head: bytes) -> None:
    assert looks_like_sql_dump(head)


@pytest.mark.parametrize("head", [
    b"", b"   \n", b"\x1f\x8b\x08\0BEGIN;", b"\x85\x01\x8c\x03BEGIN;", b"SQLite format 3\0", b"hello there", b"{}",
    b"-----BEGIN PGP MESSAGE-----\n\nhQEMA\n", b"-----BEGIN PGP MESSAGE-----\n\nBEGIN ;\n", b"BEGINNING",
    b"/*\0\1\2", b"--\0",
])  # fmt: skip
def test_other_files_are_not_taken_for_sql(head: bytes) -> None:
    assert not looks_like_sql_dump(head)


def test_noise_is_not_taken_for_sql() -> None:
    assert not any(
        looks_like_sql_dump(os.urandom(64)) or looks_like_sql_dump(b"--" + os.urandom(1024)) for _ in range(2000)
    )


fragments = st.lists(st.sampled_from([
    ";", "'a;b'", '"x;y"', "--c;\n", "/*;*/", "/* ' */", "CREATE", "create", "TEMP", "TRIGGER", "END", "end", "BEGIN",
    "\n", " ", "\r\n", "x", "[a;]", "`;`", "-", "/", "*", "''", "(", ")", "1", "ENDS", "ü",
]), max_size=14)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(fragments=fragments)
def test_statements_end_where_sqlite_says(fragments: list[str]) -> None:
    text = " ".join([*fragments, ";"])
    ends = (end for end in range(1, len(text) + 1) if text[end - 1] == ";" and sqlite3.complete_statement(text[:end]))
    found = sql_dump._STATEMENT.match(text.encode())
    assert (len(found[0].decode()) if found else None) == next(ends, None)


# --- what is refused -------------------------------------------------------------------------------------------------

T = "CREATE TABLE t(a, b);"
HOSTILE = {
    "attach": "ATTACH 'loot.db' AS x; CREATE TABLE x.t(a);",
    "attach in pieces": "/*;*/ AT/**/TACH 'loot.db' AS x;",
    "attach after a comment": "-- harmless\n/* ; */attach database 'loot.db' as x;",
    "attach behind a NUL": T + "INSERT INTO t VALUES(1, 2)\0; ATTACH 'loot.db' AS x;",
    "attach in memory": "ATTACH ':memory:' AS x;",
    "detach": "DETACH main;",
    "vacuum into": "VACUUM INTO 'loot.db';",
    "read a database beside it": "ATTACH 'victim.db' AS v; DELETE FROM v.t;",
    "load_extension in a row": T + "INSERT INTO t VALUES(load_extension('evil'), 1);",
    "load_extension in a default": "CREATE TABLE t(a DEFAULT (load_extension('evil')), b); INSERT INTO t(b) VALUES(1);",
    "load_extension in a check": "CREATE TABLE t(a CHECK(load_extension('evil')));INSERT INTO t VALUES(1);",
    "load_extension in a column": "CREATE TABLE t(a, b AS (load_extension('evil')) STORED);INSERT INTO t VALUES(1);",
    "load_extension in an index": T + "INSERT INTO t VALUES(1, 2); CREATE INDEX i ON t(load_extension('evil'));",
    "fts3_tokenizer": T + "INSERT INTO t VALUES(fts3_tokenizer('simple', X'4141414141414141'), 1);",
    "readfile": T + "INSERT INTO t VALUES(readfile('/etc/passwd'), 1);",
    "writefile": T + "INSERT INTO t VALUES(writefile('loot.db', 'x'), 1);",
    "edit": T + "INSERT INTO t VALUES(edit('x', 'touch loot.db'), 1);",
    "sqlcipher_export": T + "INSERT INTO t VALUES(sqlcipher_export('main'), 1);",
    "shell command": ".shell touch loot.db\n;",
    "schema update": T + "PRAGMA writable_schema=ON; UPDATE sqlite_master SET sql='CREATE TABLE t(z)';",
    "schema delete": T + "PRAGMA writable_schema=ON; DELETE FROM sqlite_schema;",
    "schema row of a table": "PRAGMA writable_schema=ON; INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql)"
    "VALUES('table','t','t',1,'CREATE TABLE t(a)');",
    "schema row, quoted": "PRAGMA writable_schema=ON;"
    " INSERT INTO \"main\".[sqlite_master] VALUES('table','t','t',1,'x');",
    "schema row, two statements": "INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql)VALUES('table','f','f',0,"
    "'CREATE VIRTUAL TABLE f USING fts5(x); CREATE TABLE y(a)');",
    "schema row, strange module": "INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql)VALUES('table','f','f',0,"
    "'CREATE VIRTUAL TABLE f USING fts4aux(main, f)');",
    "module for files": "CREATE VIRTUAL TABLE f USING csv(filename='/etc/passwd');",
    "module for tokens": "CREATE VIRTUAL TABLE f USING fts3tokenize('simple');",
    "functions for a module": "CREATE VIRTUAL TABLE f USING fts4(a, compress=load_extension, uncompress=hex);",
    "virtual table without content": "CREATE VIRTUAL TABLE f USING fts5(a); CREATE TABLE t(a);",
    "virtual table over a table": "CREATE TABLE f(a); CREATE VIRTUAL TABLE f USING fts5(a); CREATE TABLE f_data(a);",
    "damaged virtual table": "CREATE VIRTUAL TABLE f USING rtree(i, a, b); CREATE TABLE f_node(nodeno INTEGER "
    "PRIMARY KEY, data); INSERT INTO f_node VALUES(1, X'00'); CREATE TABLE f_parent(a); CREATE TABLE f_rowid(a);",
    "temporary folder": "PRAGMA temp_store_directory='/tmp';",
    "schema version": "PRAGMA schema_version=1;",
    "key": "PRAGMA key='x';",
    "rekey": "PRAGMA rekey='x';",
    "log file of SQLCipher": "PRAGMA cipher_log='loot.db';",
    "profile of SQLCipher": "PRAGMA cipher_profile='loot.db';",
    "trusted schema": "PRAGMA trusted_schema=ON;",
    "recursion": T + "INSERT INTO t "
    "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x, 1 FROM r;",
    "select": "SELECT 1;",
    "rows from a select": T + "INSERT INTO t SELECT 1, 2;",
    "table from a select": "CREATE TABLE t AS SELECT 1 AS a;",
    "select among the values": T + "INSERT INTO t VALUES((SELECT 1), 2);",
    "select among more rows": T + "INSERT INTO t VALUES(1, 2); INSERT INTO t VALUES(1, 2), (3, (SELECT 4));",
    "trigger before the rows": T + "CREATE TRIGGER r AFTER INSERT ON t BEGIN DELETE FROM t; END;"
    "INSERT INTO t VALUES(1, 2);",
    "trigger that never runs": T + "CREATE TRIGGER r INSERT ON t WHEN 0 BEGIN SELECT 1; END;"
    "INSERT INTO t VALUES(1, 2);",
    "trigger on a view": T + "CREATE VIEW v AS SELECT * FROM t; CREATE TRIGGER r INSTEAD OF INSERT ON v BEGIN"
    " INSERT INTO t VALUES(load_extension('evil'), 1); END; INSERT INTO v VALUES(1, 2);",
    "temporary trigger": T + "CREATE TEMP TRIGGER r AFTER INSERT ON t BEGIN SELECT load_extension('evil'); END;",
    "temporary table": "CREATE TEMP TABLE t(a);",
    "temporary view": T + "CREATE TEMPORARY VIEW v AS SELECT * FROM t;",
    "upsert": "CREATE TABLE t(a PRIMARY KEY); INSERT INTO t VALUES(1) ON CONFLICT(a) DO UPDATE SET a=2;",
    "drop": T + "DROP TABLE t;",
    "alter": T + "ALTER TABLE t RENAME TO u;",
    "delete": T + "DELETE FROM t;",
    "update": T + "UPDATE t SET a=1;",
    "savepoint": T + "SAVEPOINT s;",
    "explain": "EXPLAIN ATTACH 'loot.db' AS x;",
    "own commit first": T + "COMMIT; INSERT INTO t VALUES(1, 2); BEGIN;",
    "reindex of another file": "REINDEX loot.t;",
    "huge blob": T + "INSERT INTO t VALUES(zeroblob(1000000000), zeroblob(1000000000));",
    "exploding text": T + "INSERT INTO t VALUES(1, " + "replace(" * 12 + "'x'" + ",'x','xxxxxxxxxx')" * 12 + ");",
    "exploding columns": "CREATE TABLE t(a, " + ", ".join(f"c{n} AS (zeroblob(900000000)) STORED" for n in range(50))
    + "); INSERT INTO t VALUES(1);",
    "many pages": "CREATE TABLE t(a, b DEFAULT (zeroblob(9000000)));" + "INSERT INTO t(a) VALUES(1);" * 40,
}  # fmt: skip


@pytest.mark.parametrize("sql", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_dump_is_refused_and_touches_nothing(
    sql: str, empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect("victim.db")) as victim:
        victim.executescript("CREATE TABLE t(a); INSERT INTO t VALUES(1);")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UnusableDumpError) as refused:
        load(f"BEGIN TRANSACTION;\n{sql}\nCREATE TABLE more(a);\nCOMMIT;\n", empty, megabytes=64)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert refused.value.exit_code == ExitCode.UNSOUND_BACKUP
    assert refused.value.hint
    assert [row[1] for row in empty.execute("PRAGMA database_list")] == ["main"]


def test_outside_of_a_transaction_nothing_more_is_allowed(
    empty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for sql in ("VACUUM INTO 'loot.db'", "ATTACH 'loot.db' AS x", "PRAGMA cipher_log='loot.db'", "CREATE TABLE t(a)"):
        with pytest.raises(UnusableDumpError):
            load(f"{sql};", empty)
    assert not list(tmp_path.iterdir())


def test_time_is_limited(empty: Any) -> None:
    slow = "CREATE TABLE t(a, b AS (length(hex(zeroblob(9000000 + a)))) STORED);" + "INSERT INTO t VALUES(1);" * 3000
    with pytest.raises(UnusableDumpError, match="time"):
        load(f"BEGIN; {slow} COMMIT;", empty, seconds=0.3)


@pytest.mark.parametrize("last", ["-NULL", "-1", "-inf", "-nan", "X'00'", "replace('a\\n','\\n',char(10))"])
def test_a_statement_is_not_read_again_and_again(last: str, empty: Any) -> None:
    """What neither of two patterns takes would be looked for from each position anew, which no clock could end."""
    rows = "(1.12345,2)" + ",(1,'x')" * 4000 + f",(1,{last})"
    began = time.monotonic()
    with contextlib.suppress(UnusableDumpError):
        load(f"BEGIN; CREATE TABLE t(a, b); INSERT INTO t VALUES{rows}; COMMIT;", empty)
    assert time.monotonic() - began < 2


def test_limits_are_lifted_afterwards(empty: Any) -> None:
    memory = resource.getrlimit(resource.RLIMIT_AS)
    load("BEGIN; CREATE TABLE t(a); COMMIT;", empty, megabytes=1)
    with pytest.raises(UnusableDumpError):
        load("BEGIN; ATTACH 'x' AS y; COMMIT;", empty)
    assert resource.getrlimit(resource.RLIMIT_AS) == memory
    empty.execute("ATTACH ':memory:' AS other")
    empty.execute("INSERT INTO t VALUES(zeroblob(3000000))")
    assert empty.execute("SELECT name, 'a' LIKE ? FROM sqlite_master", ("%" * 300 + "a",)).fetchall() == [("t", 1)]


@pytest.mark.parametrize("dumper", DUMPERS.values(), ids=DUMPERS)
def test_a_dump_cut_off_anywhere_is_refused(dumper: Dumper, empty: Any) -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as source:
        source.executescript("""CREATE TABLE t(a PRIMARY KEY, b); INSERT INTO t VALUES (1, 'x;y'), (2, 'COMMIT;');
            CREATE VIEW v AS SELECT 1; CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT 1; SELECT 2; END;""")
        dump = dumper(source).rstrip()
    for end in range(len(dump)):
        with pytest.raises(UnusableDumpError, match=r"incomplete|outside"):
            load(dump[:end], empty)
    assert load(dump, empty).tables == 1


@pytest.mark.parametrize("ending", [
    "ROLLBACK; -- due to errors\n", "/****** CORRUPTION ERROR *******/\nCOMMIT;\n",
    "COMMIT;\n/****** ERROR: (11) x ******/\n",
    "/**** ERROR: (11) database disk image is malformed *****/\nROLLBACK; -- due to errors\n", "ROLLBACK;COMMIT;\n",
    "COMMIT;\nBEGIN;\n", "COMMIT;\nCREATE TABLE u(a);\n", "COMMIT", "COMMIT; /* ", "COMMIT; 'x",
])  # fmt: skip
def test_what_its_dumper_could_not_finish_is_refused(ending: str, empty: Any) -> None:
    with pytest.raises(UnusableDumpError, match=r"incomplete|outside"):
        load(f"BEGIN TRANSACTION;\nCREATE TABLE t(a);\nINSERT INTO t VALUES(1);\n{ending}", empty)


@pytest.mark.needs("sqlite3")
def test_a_dump_of_a_damaged_database_is_refused(empty: Any, tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    with closing(sqlite3.connect(path)) as source:
        source.executescript("CREATE TABLE t(a); CREATE INDEX i ON t(a);")
        source.executemany("INSERT INTO t VALUES(?)", [("x" * 100,)] * 1000)
        source.commit()
    image = bytearray(path.read_bytes())
    image[8 * 4096 : 16 * 4096] = b"\xff" * 8 * 4096
    path.write_bytes(image)
    dump = subprocess.run(["sqlite3", path, ".dump"], check=False, capture_output=True, timeout=60).stdout
    with pytest.raises(UnusableDumpError):
        load(dump, empty)


def test_a_dump_without_tables_is_refused(empty: Any) -> None:
    with pytest.raises(UnusableDumpError, match="table"):
        load("PRAGMA foreign_keys=OFF; BEGIN TRANSACTION; COMMIT;", empty)


# --- how errors read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("good_rows", [0, 1, 700])
@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("INSERT INTO t VALUES(1, 2, 'SECRET');", "table t has 2 columns but 3 values were supplied"),
        ("INSERT INTO t VALUES('SECRET', 7;", "incomplete input"),
        ("INSERT INTO t 'SECRET' x;", "syntax error"),
        ("INSERT INTO t VALUES('a' 'SECRET', 'x' y);", "syntax error"),
        ("INSERT INTO t VALUES(1, SECRET);", "no such column"),
        ("INSERT INTO t VALUES('SECRET', substr());", "wrong number of arguments to function substr()"),
        ("INSERT INTO t VALUES('SECRET', load_extension('SECRET'));", "must not use the function load_extension"),
    ],
)
def test_an_error_names_line_statement_and_table_and_no_value(bad: str, why: str, good_rows: int, empty: Any) -> None:
    good = "INSERT INTO t VALUES('two\nlines', 0.5);\n" * good_rows
    with pytest.raises(UnusableDumpError) as refused:
        load(f"BEGIN;\n\nCREATE TABLE t(a,\n b);\n{good}{bad}\n{good}COMMIT;", empty)
    assert (refused.value.line, refused.value.statement) == (5 + 2 * good_rows, 3 + good_rows)
    at = f"SQL dump, line {5 + 2 * good_rows}, statement {3 + good_rows} (INSERT INTO t…): "
    assert str(refused.value).startswith(at + why)
    assert "SECRET" not in str(refused.value)
    assert refused.value.__suppress_context__


def test_an_error_message_cannot_steer_the_terminal(empty: Any) -> None:
    with pytest.raises(UnusableDumpError) as refused:
        load("BEGIN; CREATE \x1b[2J \x1b]0;owned\x07;", empty)
    assert str(refused.value).isprintable()


def test_an_error_of_the_stream_is_passed_on(empty: Any) -> None:
    class Broken(io.RawIOBase):
        parts = itertools.chain([b"BEGIN; CREATE TABLE t(a);"], itertools.repeat(None))

        def read(self, _size: int = -1) -> bytes:
            part = next(self.parts)
            if part is None:
                raise ConnectionError("gpg says no")
            return part

    with pytest.raises(ConnectionError):
        load_sql_dump(Broken(), empty, limit_bytes=MEGABYTE, limit_seconds=9)  # type: ignore[arg-type]
