"""Backups of older versions of the bot, made by tools that are not ours: recognised, converted in RAM or refused."""

import functools
import gzip
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sqlcipher3 import dbapi2 as sqlcipher

from backuplib import conversion
from backuplib.database import Engine
from backuplib.errors import ExitCode, OperatorError, UnsoundBackupError, WrongDbPassError
from backuplib.image import DatabaseImage
from backuplib.ram_folder import RamFolder
from backuplib.secret import Secret
from backuplib.sql_dump import UnusableDumpError
from tests.conftest import MakeShop, StartTerminal
from tests.support import needs, writer
from tests.support.dumps import DUMPERS, Table, build, databases, dump_by_shell
from tests.support.keys import Keys, gpg_home
from tests.support.shop import DB_PASS, Shop, cpu_time, filled_pipe

MEGABYTE = 1 << 20
OLD_PASS = """the "old" one, it's ö"""
TARGETS = {"sqlite": None, "sqlcipher": DB_PASS}

# --- databases by other tools ----------------------------------------------------------------------------------------

# Understood by SQLite 3.15, which is what Debian's sqlcipher 3.4.1 is made of.
SAMPLE = """
CREATE TABLE hidden (a, b); CREATE TABLE keyed (a UNIQUE, b);
INSERT INTO hidden VALUES (1, 2), ('x', 3.5), (x'00ff', NULL); DELETE FROM hidden WHERE a = 1;
INSERT INTO keyed SELECT * FROM hidden; DELETE FROM keyed WHERE a = 'x'; INSERT INTO keyed VALUES (9, 9);
CREATE TABLE counted (id INTEGER PRIMARY KEY AUTOINCREMENT, t TEXT NOT NULL DEFAULT 'it''s', CHECK (id > 0));
INSERT INTO counted VALUES (41, 'Kundin Ä ✅'), (42, 'gone'); DELETE FROM counted WHERE id = 42;
CREATE TABLE "na""me ;" ("or der" TEXT PRIMARY KEY, rowid TEXT) WITHOUT ROWID; INSERT INTO "na""me ;" VALUES ('k', 'v');
CREATE TABLE child (id INTEGER PRIMARY KEY, c INTEGER REFERENCES counted); INSERT INTO child VALUES (1, 41), (2, NULL);
CREATE TABLE many (n INTEGER, t TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
INSERT INTO many SELECT i, 'row ' || i FROM n;
DELETE FROM many WHERE n % 3 = 0;
CREATE INDEX by_t ON many (t COLLATE NOCASE DESC); CREATE UNIQUE INDEX partly ON many (n) WHERE n > 10;
CREATE VIRTUAL TABLE texts USING fts4 (t); INSERT INTO texts VALUES ('full text'); ANALYZE;
CREATE VIEW turnover AS SELECT count(*) AS c FROM many;
CREATE TRIGGER inserted AFTER INSERT ON hidden BEGIN INSERT INTO child (c) VALUES (41); END;
CREATE TRIGGER deleted AFTER DELETE ON hidden BEGIN DELETE FROM child; END;
PRAGMA user_version = 4711; PRAGMA application_id = 252006673;
"""
# What only newer tools know.
NEWER = """
CREATE TABLE made (a, twice AS (a * 2), stored TEXT AS (a || 'x') STORED); INSERT INTO made VALUES (1), (2);
DELETE FROM made WHERE a = 1;
CREATE TABLE typed (i INT, t TEXT) STRICT; INSERT INTO typed VALUES (1, 'x');
CREATE TABLE document (title TEXT); INSERT INTO document VALUES ('gone'), ('second');
DELETE FROM document WHERE rowid = 1;
CREATE VIRTUAL TABLE words USING fts5 (title, content = 'document'); INSERT INTO words (words) VALUES ('rebuild');
CREATE VIRTUAL TABLE area USING rtree (id, a, b); INSERT INTO area VALUES (1, 2, 3);
CREATE INDEX expression ON many (n * 2);
"""


@dataclass(frozen=True)
class Made:
    """How a database is made: what comes before its content."""

    version: int
    settings: str = ""
    newer: bool = False
    name: str = ""

    @property
    def found(self) -> str:
        return f"SQLCipher {self.version}" if self.version else "SQLite"


FORMATS = {
    "SQLite": Made(0, "PRAGMA journal_mode = WAL;", newer=True),
    "SQLCipher 1": Made(1, "PRAGMA kdf_iter = 4000; PRAGMA cipher_use_hmac = OFF;"),
    "SQLCipher 2": Made(2, "PRAGMA kdf_iter = 4000;"),
    "SQLCipher 3": Made(3, "PRAGMA journal_mode = WAL;"),
    "SQLCipher 3, large pages": Made(3, "PRAGMA cipher_page_size = 4096;"),
    "SQLCipher 4": Made(4, "PRAGMA journal_mode = WAL;", newer=True),
    "SQLCipher 4, large pages": Made(4, "PRAGMA cipher_page_size = 16384;", newer=True),
}


@functools.cache
def database(made: Made, passphrase: str = OLD_PASS, script: str = SAMPLE) -> bytes:
    """A database file by the sqlite3 shell, by Debian's sqlcipher 3.4.1, or by SQLCipher 4."""
    key = "PRAGMA key = '" + passphrase.replace("'", "''") + "';\n" if made.version else ""
    sql = key + made.settings + script + (NEWER if made.newer and script is SAMPLE else "")
    program = tool(made.version)
    with tempfile.TemporaryDirectory(prefix="made-") as folder:
        path = Path(folder, "made.db")
        if program is None:
            with closing(
                (sqlcipher if made.version else sqlite3).connect(str(path), isolation_level=None)
            ) as connection:
                connection.executescript(sql)
        else:
            subprocess.run(
                [program, "-batch", str(path)], input=sql.encode(), check=True, capture_output=True, timeout=60
            )
        assert [file.name for file in Path(folder).iterdir()] == ["made.db"]
        return path.read_bytes()


def tool(version: int) -> str | None:
    """What writes databases of this version; without a tool of the newest formats, the Python package does."""
    if version == 0:
        return needs.find("sqlite3")
    if version == 4:
        return needs.sqlcipher_program(4)
    needs.require("sqlcipher 3")
    return needs.sqlcipher_program(3)


@pytest.mark.needs("sqlite3", "sqlcipher 3", "sqlcipher 4")
def test_the_databases_are_made_by_other_tools() -> None:
    """In CI, which has all of them."""
    assert [program for program in map(tool, (0, 1, 2, 3, 4)) if program is None] == []


# --- what is compared ------------------------------------------------------------------------------------------------

PROPERTIES = ("user_version", "application_id", "auto_vacuum", "encoding", "page_size", "journal_mode")


@dataclass(frozen=True)
class Contents:
    """Everything that a program can see of a database."""

    schema: list[tuple[Any, ...]]
    rows: dict[str, list[str]]
    properties: dict[str, str]

    def but(self, **properties: str) -> "Contents":
        return Contents(self.schema, self.rows, {**self.properties, **properties})


def contents(connection: Any) -> Contents:
    """Rows with their types and rowids; the sequence among them, statistics not."""
    schema = connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%' ORDER BY 1, 2"
    ).fetchall()
    rows = {}
    for (name,) in [(name,) for kind, name, *_ in schema if kind == "table"]:
        quoted = '"' + name.replace('"', '""') + '"'
        columns = {str(column[1]).lower() for column in connection.execute(f"PRAGMA table_xinfo({quoted})")}
        rowid = next((alias for alias in ("rowid", "oid", "_rowid_") if alias not in columns), "NULL")
        try:
            found = connection.execute(f"SELECT {rowid}, * FROM {quoted}").fetchall()
        except connection.Error:  # WITHOUT ROWID
            found = connection.execute(f"SELECT * FROM {quoted}").fetchall()
        rows[name] = sorted(repr(tuple(row)) for row in found)
    properties = {name: str(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in PROPERTIES}
    return Contents([tuple(row) for row in schema], rows, properties)


def read(data: bytes, passphrase: str | None, *settings: str) -> Contents:
    """What a file holds, read without the program."""
    with tempfile.TemporaryDirectory(prefix="read-") as folder:
        path = Path(folder, "read.db")
        path.write_bytes(data)
        with closing(writer.connect(str(path), passphrase)) as connection:
            for setting in settings:
                connection.execute(setting)
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            if passphrase:
                assert connection.execute("PRAGMA cipher_integrity_check").fetchall() == []
                assert data[:15] != b"SQLite format 3"
            return contents(connection)


@functools.cache
def original(made: Made, passphrase: str = OLD_PASS, script: str = SAMPLE) -> Contents:
    """What a made database holds, read by its own engine."""
    settings = [f"PRAGMA cipher_compatibility = {made.version}"] if made.version else []
    page_size = re.search(r"PRAGMA cipher_page_size = \d+", made.settings)
    data = database(made, passphrase, script)
    if made.version == 1:  # no checksums to look at
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            with closing(writer.connect(file.name, passphrase)) as connection:
                connection.execute(settings[0])
                return contents(connection)
    return read(data, passphrase if made.version else None, *settings, *([page_size[0]] if page_size else []))


# --- the conversion as a library ------------------------------------------------------------------------------------


@pytest.fixture
def ram() -> Iterator[RamFolder]:
    with RamFolder() as folder:
        yield folder
        assert list(folder.path.iterdir()) == [], "nothing is left behind"


def engine_for(passphrase: str | None) -> Engine:
    return Engine(Secret(passphrase) if passphrase else None)


def image_of(data: bytes) -> DatabaseImage:
    image = DatabaseImage(256 * MEGABYTE)
    image.feed(data)
    image.finish()
    return image


@dataclass(frozen=True)
class Outcome:
    """What came out; `data` is None when the image was right as it was."""

    found: str
    plan: str
    data: bytes | None
    warnings: tuple[str, ...] = ()


def converted(
    data: bytes,
    passphrase: str | None,
    ram: RamFolder,
    *,
    backup_pass: str | None = None,
    convert: bool = True,
    limit: int = 256 * MEGABYTE,
) -> Outcome:
    """The whole path, as a restore goes it."""
    image, engine = image_of(data), engine_for(passphrase)
    source = conversion.recognise(image, engine, ram, None if backup_pass is None else Secret(backup_pass))
    assert source
    if source.as_configured:
        assert image.buffer.getvalue() == data
        return Outcome(source.name, source.plan(engine), None)
    conversion.require_convert_option(source, engine, convert=convert)
    sink = io.BytesIO()
    result = conversion.convert(image, source, engine, ram, sink.write, limit=limit)
    return Outcome(source.name, source.plan(engine), sink.getvalue(), result.warnings)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_becomes_the_configured_one(name: str, target: str, ram: RamFolder) -> None:
    made, passphrase = FORMATS[name], TARGETS[target]
    before = original(made)
    outcome = converted(database(made), passphrase, ram, backup_pass=OLD_PASS if made.version else None)
    assert outcome.found == made.found
    if name == "SQLite" and target == "sqlite":
        assert outcome == Outcome("SQLite", "", None)
        return
    assert outcome.data is not None
    expected = before.but(page_size="4096") if target == "sqlcipher" else before
    assert read(outcome.data, passphrase) == expected
    assert ("rekeyed" in outcome.plan) == (name == "SQLCipher 4" and target == "sqlcipher")
    lost = name.startswith("SQLCipher 4, large") and target == "sqlcipher"
    assert [bool(re.search(r"16384.*4096", text)) for text in outcome.warnings] == [True] * lost


@pytest.mark.parametrize("name", [name for name, made in FORMATS.items() if made.version])
def test_todays_passphrase_needs_no_option_for_it(name: str, ram: RamFolder) -> None:
    made = FORMATS[name]
    outcome = converted(database(made, DB_PASS), DB_PASS, ram)
    assert outcome.found == made.found
    if name == "SQLCipher 4":
        assert outcome == Outcome("SQLCipher 4", "", None), "untouched, to the byte"
        return
    assert outcome.data is not None
    assert read(outcome.data, DB_PASS) == original(made, DB_PASS).but(page_size="4096")


def test_a_passphrase_that_was_not_needed_changes_nothing(ram: RamFolder) -> None:
    data = database(FORMATS["SQLCipher 4"], DB_PASS)
    assert converted(data, DB_PASS, ram, backup_pass=OLD_PASS) == Outcome("SQLCipher 4", "", None)


def test_rekeying_keeps_every_page_where_it_was(ram: RamFolder) -> None:
    """Not built anew: free pages and the order of pages stay."""
    script = SAMPLE + "CREATE TABLE big AS SELECT randomblob(2000) FROM many; DROP TABLE big;"
    made = FORMATS["SQLCipher 4"]
    data = database(made, OLD_PASS, script)
    outcome = converted(data, DB_PASS, ram, backup_pass=OLD_PASS, convert=False)
    assert outcome.data is not None
    assert len(outcome.data) == len(data)
    assert read(outcome.data, DB_PASS) == original(made, OLD_PASS, script)


# --- refusals --------------------------------------------------------------------------------------------------------


def refusal(*arguments: Any, **options: Any) -> OperatorError:
    with pytest.raises(UnsoundBackupError) as caught:
        converted(*arguments, **options)
    assert caught.value.exit_code == ExitCode.UNSOUND_BACKUP
    said = f"{caught.value} {caught.value.hint}"
    for secret in (DB_PASS, OLD_PASS, "not it"):
        assert secret not in said
    return caught.value


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [name for name, made in FORMATS.items() if made.version])
def test_a_wrong_passphrase_is_refused(name: str, target: str, ram: RamFolder) -> None:
    error = refusal(database(FORMATS[name]), TARGETS[target], ram, backup_pass="not it")
    assert error.id == "wrong-db-pass"
    assert "--backup-db-pass" in str(error)
    assert ("DB_PASS" in str(error)) == (target == "sqlcipher")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [name for name, made in FORMATS.items() if made.version])
def test_without_a_passphrase_that_opens_it_nothing_is_claimed(name: str, target: str, ram: RamFolder) -> None:
    image = image_of(database(FORMATS[name]))
    assert conversion.recognise(image, engine_for(TARGETS[target]), ram, None) is None


@pytest.mark.parametrize(
    ("name", "target", "facts"),
    [
        ("SQLite", "sqlcipher", "SQLite.* DB_ENCRYPTION is true"),
        ("SQLCipher 1", "sqlcipher", "SQLCipher 1 .*SQLCipher 4"),
        ("SQLCipher 3", "sqlcipher", "SQLCipher 3 .*SQLCipher 4"),
        ("SQLCipher 4, large pages", "sqlcipher", "SQLCipher 4 .*16384 .*SQLCipher 4 .*4096"),
        ("SQLCipher 2", "sqlite", "SQLCipher 2 .*DB_ENCRYPTION is false"),
        ("SQLCipher 4", "sqlite", "SQLCipher 4 .*DB_ENCRYPTION is false"),
    ],
)
def test_a_conversion_has_to_be_asked_for(name: str, target: str, facts: str, ram: RamFolder) -> None:
    backup_pass = OLD_PASS if FORMATS[name].version else None
    error = refusal(database(FORMATS[name]), TARGETS[target], ram, backup_pass=backup_pass, convert=False)
    assert error.id == "convert-required"
    assert re.search(facts, str(error))
    assert "--convert" in error.hint


@pytest.mark.parametrize("passphrase", [b"", b"a\0b", b"\xff\xfe"])
def test_what_cannot_be_a_passphrase_is_refused(passphrase: bytes, ram: RamFolder) -> None:
    with pytest.raises(WrongDbPassError, match="--backup-db-pass"):
        conversion.recognise(image_of(b"x" * 4096), engine_for(None), ram, Secret(passphrase))


@pytest.mark.parametrize("data", [b"", b"short", os.urandom(512), os.urandom(8192)])
def test_noise_is_nothing_that_is_known(data: bytes, ram: RamFolder) -> None:
    assert conversion.recognise(image_of(data), engine_for(DB_PASS), ram, None) is None
    if data:
        with pytest.raises(WrongDbPassError):
            conversion.recognise(image_of(data * (2048 // len(data) + 1)), engine_for(None), ram, Secret(OLD_PASS))


# --- damage ----------------------------------------------------------------------------------------------------------


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.deep
@pytest.mark.parametrize("name", ["SQLite", "SQLCipher 2", "SQLCipher 3", "SQLCipher 4"])
@pytest.mark.parametrize("damage", ["page short", "page long", "half a page short"])
def test_a_database_that_is_not_whole_is_not_converted(name: str, damage: str, ram: RamFolder) -> None:
    made = FORMATS[name]
    data, page = database(made), 1024 if made.version in (2, 3) else 4096
    cut = {"page short": data[:-page], "page long": data + bytes(page), "half a page short": data[: -page // 2]}[damage]
    error = refusal(cut, DB_PASS, ram, backup_pass=OLD_PASS if made.version else None)
    assert error.id in ("damaged-database", "cannot-convert"), error


@pytest.mark.parametrize("name", ["SQLCipher 2", "SQLCipher 3", "SQLCipher 4"])
def test_one_flipped_bit_is_found_before_the_conversion(name: str, ram: RamFolder) -> None:
    data = database(FORMATS[name])
    refusal(flipped(data, len(data) - 1500), DB_PASS, ram, backup_pass=OLD_PASS)


def test_a_damaged_index_is_not_mended_in_silence(ram: RamFolder, tmp_path: Path) -> None:
    """An export would build it anew, and nobody would learn that the backup was damaged."""
    path = tmp_path / "damaged.db"
    path.write_bytes(database(FORMATS["SQLite"]))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = 'CREATE INDEX by_t ON many (n)' WHERE name = 'by_t'")
    assert refusal(path.read_bytes(), DB_PASS, ram).id == "damaged-database"


# --- a hostile schema ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE x AS SELECT load_extension('/tmp/evil.so')",
        "CREATE TABLE x(a); ATTACH '{file}' AS evil",
        "ATTACH '{file}' AS evil",
        "CREATE TABLE x(a DEFAULT (writefile('{file}', 'x')))",
        "VACUUM INTO '{file}'",
    ],
)
def test_a_schema_that_sqlite_did_not_write_does_nothing(sql: str, ram: RamFolder, tmp_path: Path) -> None:
    path, target = tmp_path / "hostile.db", tmp_path / "written"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE x (a)")
        connection.execute("INSERT INTO x VALUES (1)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = ?", (sql.format(file=target),))
    try:
        outcome = converted(path.read_bytes(), DB_PASS, ram)
        assert outcome.data is not None
        assert read(outcome.data, DB_PASS).rows == {"x": ["(1, 1)"]}
    except UnsoundBackupError:
        pass
    assert not target.exists()


def test_triggers_do_not_fire_and_views_are_not_read(ram: RamFolder) -> None:
    script = """
    CREATE TABLE t (a); CREATE TABLE log (what); INSERT INTO t VALUES (1), (2); DELETE FROM t WHERE a = 1;
    CREATE TRIGGER i AFTER INSERT ON t BEGIN INSERT INTO log VALUES ('inserted'); END;
    CREATE TRIGGER d BEFORE DELETE ON t BEGIN INSERT INTO log VALUES ('deleted'); SELECT raise(ABORT, 'no'); END;
    CREATE VIEW v AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT * FROM n;
    """
    outcome = converted(database(Made(0), script=script), DB_PASS, ram)
    assert outcome.data is not None
    assert read(outcome.data, DB_PASS).rows == {"t": ["(2, 2)"], "log": []}


@pytest.mark.parametrize("passphrase", TARGETS.values(), ids=TARGETS)
def test_a_schema_cannot_call_what_sqlite_calls_unsafe(passphrase: str | None, tmp_path: Path) -> None:
    path = tmp_path / "hostile.db"
    path.touch()
    for call in ("fts3_tokenizer('simple')", "load_extension('x')", "rtreecheck('t')", "snippet(a)"):
        with closing(engine_for(passphrase).connect(path)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t (a)")
            connection.execute(f"CREATE VIEW v AS SELECT {call} FROM t")
            with pytest.raises(engine_for(passphrase).errors, match=r"unsafe use|not authorized|no such function"):
                connection.execute("SELECT * FROM v")
            connection.execute("DROP VIEW v")


# --- what survives ---------------------------------------------------------------------------------------------------

LAYOUTS = [
    ("UTF-16le", 1, 1024, "WAL"),
    ("UTF-16be", 2, 8192, "DELETE"),
    ("UTF-8", 2, 65536, "WAL"),
    ("UTF-16le", 0, 2048, "DELETE"),
]


PATHS = ("0 sqlcipher", "3 sqlite", "3 sqlcipher", "4 sqlite", "4 sqlcipher")


@pytest.mark.deep
@pytest.mark.parametrize(
    ("path", "layout"),
    [(path, layout) for number, path in enumerate(PATHS) for layout in LAYOUTS[number % 2 :: 2]],
)
def test_layout_survives(path: str, layout: tuple[str, int, int, str], ram: RamFolder) -> None:
    encoding, auto_vacuum, page_size, journal = layout
    version, _, target = path.partition(" ")
    usual = path == "4 sqlcipher"  # only the passphrase differs
    size = f"PRAGMA {'cipher_' if version != '0' else ''}page_size = {page_size};" if not usual else ""
    made = Made(
        int(version), f"{size} PRAGMA encoding = '{encoding}'; PRAGMA auto_vacuum = {auto_vacuum};"
        f"PRAGMA journal_mode = {journal};",
    )  # fmt: skip
    before = original(made)
    assert before.properties == {
        "user_version": "4711", "application_id": "252006673", "auto_vacuum": str(auto_vacuum), "encoding": encoding,
        "page_size": str(4096 if usual else page_size), "journal_mode": journal.lower(),
    }  # fmt: skip
    outcome = converted(database(made), TARGETS[target], ram, backup_pass=OLD_PASS if made.version else None)
    assert outcome.data is not None
    expected = before.but(page_size="4096") if target == "sqlcipher" else before
    assert read(outcome.data, TARGETS[target]) == expected


@pytest.mark.needs("sqlite3")
def test_reserved_bytes_of_a_plain_database_stay_where_sqlcipher_has_no_say(ram: RamFolder, tmp_path: Path) -> None:
    path = tmp_path / "reserved.db"
    subprocess.run(
        ["sqlite3", "-batch", path, ".filectrl reserve_bytes 32", "VACUUM", SAMPLE],
        check=True,
        capture_output=True,
        timeout=60,
    )
    data = path.read_bytes()
    assert data[20] == 32
    assert converted(data, None, ram) == Outcome("SQLite", "", None)
    outcome = converted(data, DB_PASS, ram)
    assert outcome.data is not None
    assert read(outcome.data, DB_PASS) == read(data, None)


def test_the_sequence_of_dropped_tables_is_no_error(ram: RamFolder) -> None:
    script = "CREATE TABLE s (id INTEGER PRIMARY KEY AUTOINCREMENT); DROP TABLE s; CREATE TABLE t (a);"
    outcome = converted(database(Made(0), script=script), DB_PASS, ram)
    assert outcome.data is not None
    assert "t" in read(outcome.data, DB_PASS).rows


@pytest.mark.parametrize("target", TARGETS)
def test_search_tables_still_find_and_constraints_still_hold(target: str, ram: RamFolder, tmp_path: Path) -> None:
    outcome = converted(database(FORMATS["SQLCipher 4"]), TARGETS[target], ram, backup_pass=OLD_PASS)
    assert outcome.data is not None
    path = tmp_path / "result.db"
    path.write_bytes(outcome.data)
    with closing(writer.connect(str(path), TARGETS[target])) as connection:

        def ask(sql: str) -> list[Any]:
            return connection.execute(sql).fetchall()

        assert ask("SELECT title FROM words WHERE words MATCH 'second'") == [("second",)]
        connection.execute("INSERT INTO words (words) VALUES ('integrity-check')")
        assert ask("SELECT t FROM texts WHERE texts MATCH 'full'") == [("full text",)]
        assert ask("SELECT id FROM area WHERE a > 1 AND b < 4") == [(1,)]
        connection.execute("INSERT INTO counted (t) VALUES ('next')")
        assert ask("SELECT max(id) FROM counted") == [(43,)]
        with pytest.raises(Exception, match="CHECK"):
            connection.execute("INSERT INTO counted VALUES (-1, 'x')")


# --- dumps -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop_database() -> Iterator[sqlite3.Connection]:
    """The sample as a plain database, less what dumpers cannot carry."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.executescript(SAMPLE.replace("CREATE VIRTUAL TABLE", "-- "))
        yield connection


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dumper", DUMPERS)
def test_a_dump_becomes_the_configured_format_unasked(
    dumper: str, target: str, shop_database: sqlite3.Connection, ram: RamFolder
) -> None:
    dump = DUMPERS[dumper](shop_database)
    outcome = converted(dump, TARGETS[target], ram, convert=False)
    assert outcome.found == "SQL dump"
    assert outcome.data is not None
    result, before = read(outcome.data, TARGETS[target]), contents(shop_database)
    assert result.schema == before.schema
    assert result.properties["journal_mode"] == ("wal" if TARGETS[target] else "delete"), "the bot's"

    def without_rowids(rows: dict[str, list[str]]) -> dict[str, list[str]]:
        return {name: sorted(row.partition(", ")[2] for row in rows[name]) for name in ("hidden", "keyed", "many")}

    assert without_rowids(result.rows) == without_rowids(before.rows)
    for name in ("counted", "child", 'na"me ;'):
        assert result.rows[name] == before.rows[name]


@pytest.mark.parametrize("target", TARGETS)
def test_a_dump_says_its_encoding_and_its_version(target: str, ram: RamFolder) -> None:
    dump = (
        b"PRAGMA encoding='UTF-16le'; BEGIN; CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE c (p REFERENCES p);"
        b"INSERT INTO c VALUES (7); COMMIT; PRAGMA user_version=3;"
    )
    outcome = converted(dump, TARGETS[target], ram)
    assert outcome.data is not None
    properties = read(outcome.data, TARGETS[target]).properties
    assert (properties["encoding"], properties["user_version"]) == ("UTF-16le", "3")


@pytest.mark.parametrize("target", TARGETS)
def test_a_bad_dump_is_refused_and_leaves_nothing(target: str, ram: RamFolder) -> None:
    with pytest.raises(UnusableDumpError, match="line 2, statement 2") as caught:
        converted(b"BEGIN;\nATTACH 'x' AS y; COMMIT;", TARGETS[target], ram)
    assert caught.value.exit_code == ExitCode.UNSOUND_BACKUP


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SQLite", "SQLCipher 3"])
def test_more_than_the_limit_is_refused(name: str, ram: RamFolder) -> None:
    backup_pass = OLD_PASS if FORMATS[name].version else None
    error = refusal(database(FORMATS[name]), DB_PASS, ram, backup_pass=backup_pass, limit=16384)
    assert error.id == "too-large"
    assert "16.4 kB" in str(error)


def test_the_image_is_let_go_of_before_the_copy_grows(ram: RamFolder) -> None:
    image, engine = image_of(database(FORMATS["SQLite"])), engine_for(DB_PASS)
    source = conversion.recognise(image, engine, ram, None)
    assert source
    gone: list[bool] = []
    conversion.convert(image, source, engine, ram, lambda _: gone.append(image.buffer.closed), limit=MEGABYTE)
    assert gone[0]


def test_nothing_shows_a_secret() -> None:
    source = conversion.Source("SQLCipher 3", 3, key="\"x'c0ffee'\"", page_size=1024)
    assert "c0ffee" not in repr(source)


# --- property: any database, each way -------------------------------------------------------------------------------


def check_each_way(tables: list[Table]) -> None:
    with closing(build(tables)) as source, RamFolder() as ram:
        plain = source.serialize()
        before = read(plain, None)
        encrypted = converted(plain, DB_PASS, ram).data
        assert encrypted is not None
        assert read(encrypted, DB_PASS) == before
        rekeyed = converted(encrypted, OLD_PASS, ram, backup_pass=DB_PASS, convert=False).data
        assert rekeyed is not None
        back = converted(rekeyed, None, ram, backup_pass=OLD_PASS).data
        assert back is not None
        assert read(back, None) == before


@pytest.mark.deep
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables=databases())
def test_any_database_comes_through_each_way(tables: list[Table]) -> None:
    check_each_way(tables)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables=databases())
def test_any_database_comes_through_each_way_long(tables: list[Table]) -> None:
    check_each_way(tables)


# --- the command -----------------------------------------------------------------------------------------------------


def backup_of(shop: Shop, data: bytes) -> Path:
    path = shop.backups / "db_backup_20200101_000000.db.gz"
    path.write_bytes(gzip.compress(data, 1))
    return path


def backup_pass_option(passphrase: str = OLD_PASS) -> tuple[list[object], dict[str, Any]]:
    descriptor = filled_pipe(passphrase.encode() + b"\n")
    return ["--backup-db-pass-fd", descriptor], {"pass_fds": [descriptor]}


@pytest.mark.parametrize("name", ["SQLCipher 3", "SQLCipher 4"])
def test_restore_under_an_older_passphrase(name: str, make_shop: MakeShop, mode: str) -> None:
    shop = make_shop(mode)
    made = FORMATS[name]
    backup = backup_of(shop, database(made))
    before = shop.snapshot()
    options, extra = backup_pass_option()
    refused = shop.restore(backup, "--force", *options, **extra)
    if (name, mode) != ("SQLCipher 4", "sqlcipher"):
        assert refused.ended == (5, "convert-required"), refused.text
        assert "--convert" in refused.error["hint"]
        assert shop.snapshot() == before
        options, extra = backup_pass_option()
        done = shop.restore(backup, "--force", "--convert", *options, **extra)
    else:
        done = refused
    assert done.code == 0, done.text
    assert OLD_PASS not in done.text
    assert read(shop.db_path.read_bytes(), shop.passphrase).rows == original(made).rows


def test_restore_of_a_plain_backup_into_an_encrypted_bot(make_shop: MakeShop) -> None:
    shop = make_shop("sqlcipher")
    backup = backup_of(shop, database(FORMATS["SQLite"]))
    before = shop.snapshot()
    refused = shop.restore(backup, "--force")
    assert refused.ended == (5, "convert-required"), refused.text
    assert "--convert" in refused.error["hint"]
    assert shop.snapshot() == before
    done = shop.restore(backup, "--force", "--convert")
    assert done.code == 0, done.text
    assert read(shop.db_path.read_bytes(), DB_PASS).rows == original(FORMATS["SQLite"]).rows


@pytest.mark.parametrize("name", ["SQL dump", "SQLite", "SQLCipher 4"])
def test_live_database_of_the_other_mode_is_not_replaced_unasked(name: str, make_shop: MakeShop, mode: str) -> None:
    """DB_ENCRYPTION was lost from .env, or is new there: no customer's data becomes readable on the disk for that."""
    shop = make_shop(mode)
    other = database(FORMATS["SQLite" if mode == "sqlcipher" else "SQLCipher 4"])
    shop.content()
    shop.db_path.write_bytes(other)
    sql = "BEGIN; CREATE TABLE t (a); INSERT INTO t VALUES ('from the backup'); COMMIT;"
    backup = backup_of(shop, sql.encode() if name == "SQL dump" else database(FORMATS[name], DB_PASS, sql))
    descriptor = backup_pass_option(DB_PASS) if (name, mode) == ("SQLCipher 4", "sqlite") else ([], {})
    before = shop.snapshot()
    refused = shop.restore(backup, "--force")
    assert refused.ended == (3, "encryption-differs"), refused.text
    assert "DB_ENCRYPTION" in refused.error["message"]
    assert "--convert" in refused.error["hint"]
    assert shop.snapshot() == before
    done = shop.restore(backup, "--force", "--convert", *descriptor[0], **descriptor[1])
    assert done.code == 0, done.text
    assert shop.rows() == {"t": [("from the backup",)]}
    assert shop.db_path.read_bytes().startswith(b"SQLite format 3") == (mode == "sqlite")


def test_live_database_of_the_other_mode_is_refused_before_a_key_is_asked_for(make_shop: MakeShop, mode: str) -> None:
    shop = make_shop(mode)
    backup = shop.create_backup()
    for path in shop.db_path.parent.iterdir():
        path.unlink()
    elsewhere = shop.path / "elsewhere.db"
    for path in (shop.db_path, elsewhere):
        path.write_bytes(database(FORMATS["SQLite" if mode == "sqlcipher" else "SQLCipher 4"]))
    before = shop.snapshot()
    for options in (["--force"], [], ["--force", "--stop-first"], ["--force", "--target-path", elsewhere]):
        assert shop.restore(backup, *options).ended == (3, "encryption-differs"), options
        assert shop.snapshot() == before
    assert shop.restore(backup, "--target-path", shop.path / "new.db").ended == (3, "no-terminal")


def test_verify_only_warns_of_a_live_database_of_the_other_mode(make_shop: MakeShop, mode: str, keys: Keys) -> None:
    shop = make_shop(mode)
    backup = shop.create_backup()
    shop.db_path.write_bytes(database(FORMATS["SQLite" if mode == "sqlcipher" else "SQLCipher 4"]))
    before = shop.snapshot()
    done = shop.restore(backup, "--verify-only", key=keys.rsa)
    assert done.code == 0, done.text
    assert [text for text in done.report["warnings"] if "DB_ENCRYPTION" in text and "--convert" in text]
    assert shop.snapshot() == before


def test_functions_for_json_in_a_schema_are_no_damage(make_shop: MakeShop, mode: str) -> None:
    """SQLite 3.38 to 3.40, which Debian 12 has, take their own for unsafe."""
    script = """
    CREATE TABLE docs (doc TEXT CHECK (json_valid(doc)), n AS (json_extract(doc, '$.n')));
    CREATE INDEX by_n ON docs (doc ->> '$.n'); INSERT INTO docs VALUES ('{"n": 7}');
    """
    shop = make_shop(mode, PGP_PUBLIC_KEY_BASE64=None)
    for path in shop.db_path.parent.iterdir():
        path.unlink()
    with closing(shop.connect()) as live, closing(sqlite3.connect(":memory:")) as source:
        live.executescript(script)
        source.executescript(script)
        dump = backup_of(shop, dump_by_shell(source))
    for backup in (shop.create_backup(), dump):
        done = shop.restore(backup, "--force")
        assert done.code == 0, done.text
        assert shop.rows() == {"docs": [('{"n": 7}', 7)]}


def test_restore_of_an_encrypted_dump_needs_no_option(
    make_shop: MakeShop, mode: str, keys: Keys, shop_database: sqlite3.Connection
) -> None:
    shop = make_shop(mode)
    backup = shop.backups / "db_backup_20200101_000000.db.gz.gpg"
    with gpg_home() as home:
        home.run("--import", stdin=keys.rsa.public_binary)
        recipient = ("--trust-model", "always", "-r", keys.rsa.fingerprint)
        backup.write_bytes(home.run(*recipient, "--encrypt", stdin=gzip.compress(dump_by_shell(shop_database))))
    done = shop.restore(backup, "--force", key=keys.rsa)
    assert done.code == 0, done.text
    result = read(shop.db_path.read_bytes(), shop.passphrase)
    assert result.rows["counted"] == contents(shop_database).rows["counted"]


def test_restore_of_a_small_bare_dump_with_stop_first(make_shop: MakeShop, mode: str) -> None:
    shop = make_shop(mode)
    backup = shop.backups / "old.db"
    backup.write_bytes(b"BEGIN; CREATE TABLE t (a); INSERT INTO t VALUES ('x'); COMMIT;")
    done = shop.restore(backup, "--force", "--stop-first")
    assert done.code == 0, done.text
    assert shop.rows() == {"t": [("x",)]}


@pytest.mark.deep
def test_a_signal_while_a_dump_is_loaded_ends_the_run(make_shop: MakeShop, mode: str) -> None:
    """SQLite calls back into Python for each statement, and swallows what a signal raises there."""
    shop = make_shop(mode)
    backup = shop.backups / "dump.db"
    backup.write_text(
        "BEGIN; CREATE TABLE t (a, b);\n"
        + "".join(f"INSERT INTO t VALUES ({n}, 'row {n}');\n" for n in range(400_000))
        + "CREATE INDEX i ON t (b); COMMIT;"
    )
    before = shop.snapshot()
    took = cpu_time_of(lambda: shop.restore(backup, "--verify-only"))
    for tenths in (3, 4, 5):
        process = shop.start_restore(backup, "--force")
        while cpu_time(process.pid) < took * tenths / 10:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM, out + err
        assert "SIGTERM" in err
        assert "--list" not in err
        assert shop.snapshot() == before


def cpu_time_of(run: Callable[[], object]) -> float:
    """Seconds of CPU time that the processes take which it starts: they do not depend on what else runs."""
    before = os.times()
    run()
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["dump.sql", "dump.db.gz", "db_backup_20200101_000000.db.gz"])
def test_the_name_of_a_dump_does_not_matter(name: str, pack: Callable[[bytes], bytes], make_shop: MakeShop) -> None:
    shop = make_shop("sqlite")
    backup = shop.backups / name
    backup.write_bytes(pack("-- über; uns\nBEGIN; CREATE TABLE t (a); INSERT INTO t VALUES ('x'); COMMIT;".encode()))
    done = shop.restore(backup, "--force")
    assert done.code == 0, done.text
    assert shop.rows() == {"t": [("x",)]}


@pytest.mark.parametrize(
    ("name", "mode", "options", "expected"),
    [
        ("SQLite", "sqlite", [], (0, None)),
        ("SQLite", "sqlcipher", ["--convert"], (0, "exported to SQLCipher 4 with the current DB_PASS")),
        ("SQLCipher 3", "sqlcipher", ["fd"], (5, "exported to SQLCipher 4 with the current DB_PASS")),
        ("SQLCipher 4", "sqlcipher", ["fd"], (0, "rekeyed to the current DB_PASS")),
        ("SQLCipher 4", "sqlite", ["fd", "--convert"], (0, "exported to SQLite (not encrypted)")),
    ],
)
def test_verify_only_and_json_say_what_was_found_and_what_would_be_done(
    name: str, mode: str, options: list[str], expected: tuple[int, str | None], make_shop: MakeShop
) -> None:
    code, conversion_said = expected
    shop = make_shop(mode)
    backup = backup_of(shop, database(FORMATS[name]))
    before = shop.snapshot()
    more, extra = backup_pass_option() if "fd" in options else ([], {})
    plain = [option for option in options if option != "fd"]
    done = shop.restore(backup, "--verify-only", "--json", *plain, *more, **extra)
    assert done.code == code, done.text
    report = json.loads(done.out)
    assert (report["format"], report["conversion"]) == (FORMATS[name].found, conversion_said)
    assert shop.snapshot() == before
    assert not code or "--convert" in report["error"]["hint"]
    assert code or name in done.err


def test_wrong_older_passphrase_is_refused(make_shop: MakeShop, mode: str) -> None:
    shop = make_shop(mode)
    backup = backup_of(shop, database(FORMATS["SQLCipher 4"]))
    before = shop.snapshot()
    options, extra = backup_pass_option("not it")
    done = shop.restore(backup, "--force", "--convert", *options, **extra)
    assert done.ended == (5, "wrong-db-pass"), done.text
    assert "--backup-db-pass" in f"{done.error['message']} {done.error['hint']}"
    assert "not it" not in done.text
    assert shop.snapshot() == before


def test_each_refusal_names_the_option_to_type(make_shop: MakeShop, mode: str) -> None:
    shop = make_shop(mode)
    done = shop.restore(backup_of(shop, database(FORMATS["SQLCipher 4"])), "--force")
    assert done.ended == (5, "wrong-db-pass" if mode == "sqlcipher" else "not-a-database"), done.text
    assert "--backup-db-pass" in f"{done.error['message']} {done.error['hint']}"


def test_the_older_passphrase_is_asked_for_without_echo(make_shop: MakeShop, terminal: StartTerminal) -> None:
    shop = make_shop("sqlcipher")
    backup = backup_of(shop, database(FORMATS["SQLCipher 4"]))
    asked = terminal(shop, backup, "--force", "--backup-db-pass")
    asked.expect("DB_PASS of the time when the backup was made")
    asked.send(OLD_PASS + "\n")
    assert asked.wait() == 0, asked.output
    assert OLD_PASS not in asked.output
    assert read(shop.db_path.read_bytes(), DB_PASS).rows == original(FORMATS["SQLCipher 4"]).rows


def test_without_a_terminal_asking_is_refused_at_once(make_shop: MakeShop) -> None:
    shop = make_shop("sqlcipher")
    done = shop.restore(backup_of(shop, b"x"), "--force", "--backup-db-pass")
    assert done.ended == (3, "no-terminal"), done.text
    assert "--backup-db-pass-fd" in done.error["hint"]


@pytest.mark.parametrize(
    "options",
    [["--backup-db-pass", "--backup-db-pass-fd", "5"], ["--backup-db-pass-fd", "0", "--key-stdin"]],
)
def test_options_that_exclude_each_other(options: list[str], make_shop: MakeShop) -> None:
    assert make_shop("sqlite").restore("x", *options).ended == (2, "usage")


@pytest.mark.needs("strace")
def test_nothing_is_written_outside_ram_but_the_target(make_shop: MakeShop, tmp_path: Path) -> None:
    """Neither SQLite's temporary files nor the plain pages of the backup come near a disk."""
    shop = make_shop("sqlcipher")
    backup = backup_of(shop, database(FORMATS["SQLCipher 3"]))
    log = tmp_path / "strace.log"
    options, extra = backup_pass_option()
    wrapper = ["strace", "-f", "-qq", "-e", "trace=openat,open,creat", "-o", str(log)]
    done = shop.restore(backup, "--verify-only", "--convert", *options, **extra, wrapper=wrapper)
    assert done.code == 0, done.text
    writes = [
        line for line in log.read_text(errors="replace").splitlines() if re.search(r"O_WRONLY|O_RDWR|creat\(", line)
    ]
    allowed = r'"(/run/restore-backup-|/dev/|/proc/|[^"]*(__pycache__|/proofs.jsonl"))|restore-backup-[0-9a-f]{8}/'
    elsewhere = [line for line in writes if not re.search(allowed, line)]
    assert any("converted.db" in line for line in writes)
    assert elsewhere == []
