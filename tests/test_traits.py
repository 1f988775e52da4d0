"""What databases may be like, each as a plain database, with SQLCipher, and as a dump: restored, or refused saying why.

In process, through what a restore calls; some of them are restored whole.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3.dump import _iterdump  # type: ignore[attr-defined]  # of connections of any kind
from typing import Any
from zlib import crc32

import pytest
from sqlcipher3 import dbapi2 as sqlcipher

from backuplib import conversion
from backuplib.comparison import examine
from backuplib.database import SQLITE_MAGIC, Engine, check_pages, quoted_passphrase, written_by_newer
from backuplib.errors import UnsoundBackupError
from backuplib.image import DatabaseImage, explain_unreadable, opened_image
from backuplib.newest import NewestSQLite
from backuplib.ram_folder import RamFolder
from backuplib.secret import Secret
from tests.support.keys import Keys
from tests.support.shop import Shop

DB_PASS = 'it\'s "the" pass'
FORMS = ("plain", "sqlcipher", "dump", "dump into sqlcipher", "plain into sqlcipher")
COUNT = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) "


@dataclass(frozen=True)
class Trait:
    """SQL that makes the table t, perhaps others; ``then`` gives entries of the schema another SQL.

    ``warns``: words in the warning, everywhere or by form. ``refused``: the id of the error, by form.
    """

    sql: str
    then: dict[str, str] = field(default_factory=dict)
    warns: str | dict[str, str] = ""
    refused: dict[str, str] = field(default_factory=dict)
    edit: Callable[[bytes], bytes] = lambda data: data
    reserved: int = 0
    forms: tuple[str, ...] = FORMS


DUMPS = ("dump", "dump into sqlcipher")
FILES = ("plain", "sqlcipher", "plain into sqlcipher")
BUILT = (*DUMPS, "plain into sqlcipher")
PLAIN_ONLY = ("plain", *DUMPS)
ROWS = "CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 'x'), (2, 'Y'), (3, NULL);"
CONVERTED_PAGES: str | dict[str, str] = {"plain into sqlcipher": "pages of [0-9]+ bytes became SQLCipher's 4096"}
BOT = "SQLite 3[.0-9]+ has no {}"

TRAITS = {
    # the file
    **{
        f"pages of {size}": Trait(
            f"PRAGMA page_size = {size}; PRAGMA cipher_page_size = {size}; {ROWS}",
            warns=CONVERTED_PAGES,
            refused={"sqlcipher": "convert-required"},
        )
        for size in (1024, 2048, 8192, 16384, 32768, 65536)
    },
    "pages of 512": Trait(f"PRAGMA page_size = 512; {ROWS}", {}, CONVERTED_PAGES, {"sqlcipher": "wrong-db-pass"}),
    "pages of 4096": Trait(f"PRAGMA page_size = 4096; {ROWS}"),
    "UTF-16le": Trait(f"PRAGMA encoding = 'UTF-16le'; {ROWS} INSERT INTO t VALUES ('ä€😀', 'ü');"),
    "UTF-16be": Trait(f"PRAGMA encoding = 'UTF-16be'; {ROWS} INSERT INTO t VALUES ('ä€😀', 'ü');"),
    "auto_vacuum full": Trait(
        f"PRAGMA auto_vacuum = FULL; {ROWS} CREATE TABLE u AS SELECT zeroblob(9999); DROP TABLE u;"
    ),
    "auto_vacuum incremental": Trait(
        f"PRAGMA auto_vacuum = 2; {ROWS} CREATE TABLE u AS SELECT zeroblob(99999); DROP TABLE u;"
    ),
    "reserved bytes": Trait(ROWS, reserved=32, forms=PLAIN_ONLY),
    "WAL": Trait(f"PRAGMA journal_mode = WAL; {ROWS}"),
    "free pages": Trait(f"{ROWS} CREATE TABLE u AS SELECT zeroblob(99999); DROP TABLE u;"),
    "versions": Trait(f"PRAGMA user_version = -5; PRAGMA application_id = 99; {ROWS}"),
    "overflow pages": Trait(
        "CREATE TABLE t (a UNIQUE); INSERT INTO t VALUES (hex(zeroblob(30000))), (zeroblob(200000));"
    ),
    # tables
    "no rows": Trait("CREATE TABLE t (a)"),
    "10,000 tables": Trait(
        ROWS + f"BEGIN; {''.join(f'CREATE TABLE t{i} (a, b);' for i in range(10_000))} COMMIT;", forms=FORMS[:3]
    ),
    "300 columns": Trait(f"CREATE TABLE t ({', '.join(f'c{i}' for i in range(300))}); INSERT INTO t (c7) VALUES (1);"),
    "STRICT": Trait(
        "CREATE TABLE t (a INT, b TEXT, c BLOB, d REAL, e ANY) STRICT; INSERT INTO t VALUES (1, 'x', x'00', 2, '3');"
    ),
    "WITHOUT ROWID": Trait(
        "CREATE TABLE t (a, b, c, PRIMARY KEY (b DESC, a)) WITHOUT ROWID; INSERT INTO t VALUES (1, 2, 3), (2, 1, 4);"
    ),
    "AUTOINCREMENT": Trait(
        "CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO t VALUES (7); DELETE FROM t;"
    ),
    "rowids at the ends": Trait(
        "CREATE TABLE t (a INTEGER PRIMARY KEY); INSERT INTO t VALUES (-9223372036854775808), (9223372036854775807);"
    ),
    "virtual columns": Trait(
        "CREATE TABLE t (a, b INT NOT NULL AS (a * 2), c AS (b || 'x')); "
        "INSERT INTO t VALUES (1); CREATE INDEX i ON t (b, c);"
    ),
    "stored columns": Trait("CREATE TABLE t (a, b TEXT AS (upper(a)) STORED UNIQUE); INSERT INTO t VALUES ('x');"),
    "column added": Trait(f"{ROWS} ALTER TABLE t ADD COLUMN c TEXT NOT NULL DEFAULT 'none';"),
    "column dropped": Trait(f"{ROWS} ALTER TABLE t DROP COLUMN b;"),
    "defaults": Trait(
        "CREATE TABLE t (a DEFAULT (abs(-1)), b DEFAULT CURRENT_TIMESTAMP, c DEFAULT -1.5e3); "
        "INSERT INTO t DEFAULT VALUES;"
    ),
    "odd names": Trait(
        'CREATE TABLE t (a); CREATE TABLE "a""b; '
        '--\n😀" ("select" NOT NULL, "x.y"); INSERT INTO "a""b; --\n😀" VALUES (1, 2);'
    ),
    "values of all kinds": Trait(
        "CREATE TABLE t (a); "
        "INSERT INTO t VALUES (9e999), (-0.0), (1e-300), (x''), (''), (9223372036854775807), (char(0, 1, 127));"
    ),
    # indexes, constraints
    "partial index": Trait(f"{ROWS} CREATE INDEX i ON t (a) WHERE b IS NOT NULL;"),
    "index on an expression": Trait(f"{ROWS} CREATE UNIQUE INDEX i ON t (lower(b), a DESC);"),
    "collations of SQLite": Trait(
        "CREATE TABLE t (a COLLATE NOCASE UNIQUE, b COLLATE RTRIM); "
        "INSERT INTO t VALUES ('A', 'x '), ('b', 'X'); CREATE INDEX i ON t (b);"
    ),
    "statistics": Trait(f"{ROWS} CREATE INDEX i ON t (a); ANALYZE;"),
    "CHECK": Trait("CREATE TABLE t (a CHECK (a > 0 OR typeof(a) = 'text')); INSERT INTO t VALUES (1), ('x'), (NULL);"),
    "foreign keys": Trait(
        "CREATE TABLE p (a PRIMARY KEY); "
        "CREATE TABLE t (a REFERENCES p ON DELETE CASCADE); INSERT INTO p VALUES (1); INSERT INTO t VALUES (1), (NULL);"
    ),
    # views, triggers
    "views": Trait(
        f"{ROWS} CREATE VIEW v AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 9) "
        "SELECT sum(x) OVER () FROM c; "
        "CREATE VIEW broken AS SELECT * FROM gone;"
    ),
    "triggers": Trait(
        f"{ROWS} CREATE VIEW v AS SELECT a FROM t; "
        "CREATE TRIGGER r INSTEAD OF INSERT ON v BEGIN INSERT INTO t VALUES (new.a, 'end;'); END;"
    ),
    # JSON, search, maps
    "JSON": Trait(
        "CREATE TABLE t (a CHECK (json_valid(a))); "
        "INSERT INTO t VALUES ('{\"x\": [1]}'); CREATE INDEX i ON t (json_extract(a, '$.x[0]'));"
    ),
    "jsonb": Trait(
        "CREATE TABLE t (a BLOB, b AS (a ->> '$.x')); "
        "INSERT INTO t VALUES (jsonb('{\"x\": 1}')); CREATE INDEX i ON t (b);"
    ),
    "FTS4": Trait(
        f"{ROWS} CREATE VIRTUAL TABLE f USING fts4(x, tokenize=porter); INSERT INTO f VALUES ('sending parcels');"
    ),
    "FTS5": Trait(
        f"{ROWS} CREATE VIRTUAL TABLE f USING fts5(x, y, tokenize='trigram'); "
        "INSERT INTO f VALUES ('sending parcels', 'x');"
    ),
    "FTS5, content elsewhere": Trait(
        f"{ROWS} CREATE VIRTUAL TABLE f USING fts5(b, content='t', content_rowid='a'); "
        "INSERT INTO f (f) VALUES ('rebuild');"
    ),
    "FTS5 without content": Trait(
        f"{ROWS} CREATE VIRTUAL TABLE f USING fts5(x, content=''); INSERT INTO f (rowid, x) VALUES (1, 'parcel');"
    ),
    "R-tree": Trait(
        f"{ROWS} CREATE VIRTUAL TABLE r USING rtree(id, a, b, +note); INSERT INTO r VALUES (1, 2.5, 3.5, 'x');"
    ),
    "geopoly": Trait(
        f"{ROWS} CREATE VIRTUAL TABLE g USING geopoly(n); "
        "INSERT INTO g (_shape, n) VALUES ('[[0,0],[1,0],[0,1],[0,0]]', 'x');",
        forms=PLAIN_ONLY,
        refused=dict.fromkeys(DUMPS, "unusable-dump"),
    ),
    # of a newer SQLite than Debian 12 has
    "1_000": Trait("CREATE TABLE t (a CHECK (a < 1_000)); INSERT INTO t VALUES (1);"),
    "concat": Trait("CREATE TABLE t (a CHECK (length(concat(a, 'x')) > 1)); INSERT INTO t VALUES ('abc');"),
    "order in an aggregate": Trait(f"{ROWS} CREATE VIEW v AS SELECT group_concat(a ORDER BY b) FROM t;"),
    "fractions of seconds": Trait(
        "CREATE TABLE t (a); "
        "INSERT INTO t VALUES ('2025-01-01 00:00:00.5'); CREATE INDEX i ON t (unixepoch(a, 'subsec'));"
    ),
    # rows that a constraint would refuse today
    "row against a CHECK": Trait(ROWS, {"t": "CREATE TABLE t (a CHECK (a > 1), b)"}, "t: 1 row a CHECK would refuse"),
    "NULL against NOT NULL": Trait(ROWS, {"t": "CREATE TABLE t (a, b NOT NULL)"}, "t: 1 row with NULL in b"),
    "number in TEXT": Trait(
        ROWS,
        {"t": "CREATE TABLE t (a TEXT, b)"},
        dict.fromkeys(FILES, "t: 3 rows with a number"),
    ),
    "text in a STRICT table": Trait(
        ROWS,
        {"t": "CREATE TABLE t (a INT, b BLOB) STRICT"},
        dict.fromkeys(FILES, "another type than BLOB"),
        dict.fromkeys(DUMPS, "unusable-dump"),
    ),
    "duplicates": Trait(
        f"{ROWS} CREATE INDEX i ON t (a); UPDATE t SET a = 1;",
        {"i": "CREATE UNIQUE INDEX i ON t (a)"},
        "the UNIQUE index i would refuse",
        dict.fromkeys(DUMPS, "unusable-dump"),
    ),
    "reference to no row": Trait(
        "CREATE TABLE p (a PRIMARY KEY); CREATE TABLE t (a REFERENCES p); INSERT INTO t VALUES (1);",
        warns="t: 1 row with a foreign key to no row of p",
    ),
    "reference to no table": Trait(
        "CREATE TABLE t (a REFERENCES gone (x)); INSERT INTO t VALUES (1);", warns="foreign key"
    ),
    # what only the bot has
    "collation of the bot": Trait(
        "CREATE TABLE t (a COLLATE de); INSERT INTO t VALUES ('b'), ('A'), ('c'); CREATE INDEX i ON t (a);",
        warns=BOT.format("collation de"),
    ),
    "collation of the bot, no index": Trait("CREATE TABLE t (a COLLATE de); INSERT INTO t VALUES ('b'), ('A');"),
    "unique by a collation of the bot": Trait(
        "CREATE TABLE t (a COLLATE de UNIQUE); INSERT INTO t VALUES ('b'), ('A'), ('c');",
        warns=BOT.format("collation de"),
        refused=dict.fromkeys(BUILT, "needs-the-bot"),
    ),
    "function of the bot in an index": Trait(
        "CREATE TABLE t (a); INSERT INTO t VALUES ('b'), ('A'); CREATE INDEX i ON t (slug(a));",
        warns=BOT.format("function slug"),
    ),
    "function of the bot in a CHECK": Trait(
        "CREATE TABLE t (a CHECK (a REGEXP '.')); INSERT INTO t VALUES ('b');", warns=BOT.format("function regexp")
    ),
    "function of the bot in a stored column": Trait(
        "CREATE TABLE t (a, b AS (slug(a)) STORED); INSERT INTO t VALUES ('B');",
        refused=dict.fromkeys(BUILT, "needs-the-bot"),
    ),
    "tokenizer of the bot": Trait(
        f"{ROWS} CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f VALUES ('parcel');",
        {"f": "CREATE VIRTUAL TABLE f USING fts5(x, tokenize='simple')"},
        BOT.format("tokenizer simple"),
    ),
    "tokenizer of the bot, FTS4": Trait(
        f"{ROWS} CREATE VIRTUAL TABLE f USING fts4(x); INSERT INTO f VALUES ('parcel');",
        {"f": "CREATE VIRTUAL TABLE f USING fts4(x, tokenize=icu)"},
        BOT.format("tokenizer icu"),
        dict.fromkeys(DUMPS, "unusable-dump"),
    ),
    # neither
    "schema that nothing understands": Trait(
        ROWS,
        {"t": "CREATE TABLE t (a ~ b)"},
        {"sqlcipher": "does not understand the schema of t"},
        {"plain": "unknown-schema"},
        forms=("plain", "sqlcipher"),
    ),
    "schema of a far newer SQLite": Trait(
        ROWS,
        {"t": "CREATE TABLE t (a ~ b)"},
        "does not understand the schema of t",
        edit=lambda data: data[:96] + b"\x00\x7f\xff\xff" + data[100:],
        forms=("plain",),
    ),
    "latin-1 in the schema": Trait(
        "CREATE TABLE t (a DEFAULT 'XXYY'); INSERT INTO t DEFAULT VALUES;",
        edit=lambda data: data.replace(b"'XXYY'", b"'\xe4\xf6\xfc\xdf'"),
        forms=("plain",),
    ),
    "no table": Trait(
        "PRAGMA user_version = 1; CREATE TABLE t (a); DROP TABLE t;",
        refused={**dict.fromkeys(FILES, "empty-backup"), **dict.fromkeys(DUMPS, "unusable-dump")},
    ),
}


# --- how they are made -----------------------------------------------------------------------------------------------


def slug(text: object) -> str:
    return str(text).lower()


def german(one: str, other: str) -> int:
    return (one.lower() > other.lower()) - (one.lower() < other.lower())


def matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


@contextlib.contextmanager
def made(trait: Trait, path: Path, passphrase: str | None) -> Iterator[Any]:
    """The open database, with all that the bot registers."""
    path.touch()
    opened: Any = sqlcipher.connect(path, isolation_level=None) if passphrase else NewestSQLite(str(path))
    with contextlib.closing(opened) as connection:
        if passphrase:
            connection.execute(f"PRAGMA key = {quoted_passphrase(Secret(passphrase))}")
        connection.create_collation("de", german)
        connection.create_function("slug", 1, slug, deterministic=True)
        connection.create_function("regexp", 2, matches, deterministic=True)
        if trait.reserved:
            connection.reserve_bytes("main", trait.reserved)
        if passphrase:
            connection.executescript(trait.sql)
        else:
            connection.exec_trace = None  # allow many statements in one text
            connection.execute(trait.sql).fetchall()
        if trait.then:
            connection.execute("PRAGMA writable_schema = ON")
            for name, sql in trait.then.items():
                connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, name))
        yield connection


def database(trait: Trait, folder: Path, passphrase: str | None) -> bytes:
    path = folder / "made.db"
    with made(trait, path, passphrase):
        pass
    assert not [*folder.glob("made.db-*")]
    return trait.edit(path.read_bytes())


class _Dumped:
    """A connection, and its cursor, as Python's dump wants them."""

    row_factory = None

    def __init__(self, connection: Any) -> None:
        self.execute = connection.execute

    def cursor(self) -> Any:
        return self


def dump(trait: Trait, folder: Path) -> bytes:
    """As Python writes it, from the schema as it is before ``then``; that is put in as text."""
    with made(Trait(trait.sql), folder / "dumped.db", None) as connection:
        text = "\n".join(_iterdump(_Dumped(connection)))
        for name, sql in trait.then.items():
            (old,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
            in_literal = f"{old};" not in text  # a virtual table, but for Debian 12's Python
            old, new = (one.replace("'", "''") if in_literal else one for one in (old, sql))
            text = text.replace(old, new)
    return text.encode()


# --- as a restore goes -----------------------------------------------------------------------------------------------


def restored(data: bytes, engine: Engine, ram: RamFolder) -> tuple[list[str], dict[str, int | None]]:
    """What a restore says of a backup, and the rows that it counts."""
    image = taken(data, ram.path if engine.db_pass else None)
    said: list[str] = []
    source = conversion.recognise(image, engine, ram, None)
    if source and not source.as_configured:
        conversion.require_convert_option(source, engine, convert=data.startswith(SQLITE_MAGIC))
        converted = DatabaseImage(1 << 30, ram.path if engine.db_pass else None, bare=True)
        said += conversion.convert(image, source, engine, ram, converted.feed, limit=1 << 28).warnings
        converted.finish()
        image = converted
    image.refuse_incomplete()
    try:
        with opened_image(image, engine) as connection:
            newer = image.path is not None or written_by_newer(image.header)
            contents = examine(engine, connection, image.size, newer=newer)
            if engine.db_pass:
                check_pages(connection)
    except engine.errors as error:
        raise explain_unreadable(image, engine, error) from error
    contents.refuse_unsound()
    image.wipe()
    return said + [finding.text for finding in contents.findings], contents.rows


def taken(data: bytes, folder: Path | None = None) -> DatabaseImage:
    image = DatabaseImage(1 << 30, folder)
    image.feed(data)
    image.finish()
    return image


OTHER_SETTINGS = {
    "derivation": "PRAGMA kdf_iter = 1000;",
    "no HMAC": "PRAGMA cipher_use_hmac = OFF;",
    "plaintext header": "PRAGMA cipher_plaintext_header_size = 32;",
}


@pytest.mark.parametrize("settings", OTHER_SETTINGS)
def test_other_cipher_settings_are_told_as_that_and_never_as_no_encryption(settings: str, tmp_path: Path) -> None:
    data = database(Trait(OTHER_SETTINGS[settings] + ROWS), tmp_path, DB_PASS)
    assert data.startswith(SQLITE_MAGIC) == (settings == "plaintext header")
    for engine, words, kind in (
        (Engine(Secret(DB_PASS)), "another passphrase or other cipher settings", "wrong-db-pass"),
        (Engine(None), "may be encrypted with SQLCipher", "not-a-database"),
    ):
        with RamFolder() as ram, pytest.raises(UnsoundBackupError, match=words) as caught:
            restored(data, engine, ram)
        assert caught.value.id == kind


DAILY = {"WAL", "STRICT", "FTS5", "NULL against NOT NULL", "collation of the bot", "1_000"}
LONG = {"10,000 tables"}


def marks(name: str, form: str) -> list[pytest.MarkDecorator]:
    """Every day in all forms; or deep in one of them, and not the same one for each trait; else long."""
    if name in DAILY:
        return []
    forms = list(TRAITS[name].forms)
    deep = form == forms[crc32(name.encode()) % len(forms)] and name not in LONG
    return [pytest.mark.deep if deep else pytest.mark.long]


CASES = [
    pytest.param(name, form, id=f"{name}, {form}", marks=marks(name, form))
    for name, trait in TRAITS.items()
    for form in trait.forms
]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_database_is_restored_or_refused_saying_why(name: str, form: str, tmp_path: Path) -> None:
    trait = TRAITS[name]
    engine = Engine(Secret(DB_PASS) if "sqlcipher" in form else None)
    if "dump" in form:
        data = dump(trait, tmp_path)
    else:
        data = database(trait, tmp_path, DB_PASS if form == "sqlcipher" else None)
    with RamFolder() as ram:
        if form in trait.refused:
            with pytest.raises(UnsoundBackupError) as caught:
                restored(data, engine, ram)
            assert caught.value.id == trait.refused[form]
            return
        said, rows = restored(data, engine, ram)
    wanted = trait.warns if isinstance(trait.warns, str) else trait.warns.get(form, "")
    assert [text for text in said if not re.search(wanted or "^$", text, re.IGNORECASE)] == []
    assert bool(said) == bool(wanted)
    assert "t" in rows


def test_there_are_enough_traits() -> None:
    assert len(TRAITS) >= 40


@pytest.mark.parametrize(
    "name", ["row against a CHECK", "function of the bot in an index", "tokenizer of the bot", "1_000"]
)
def test_what_create_makes_of_such_a_database_is_restored(
    name: str, mode: str, make_shop: Callable[..., Shop], keys: Keys, tmp_path: Path
) -> None:
    trait, shop = TRAITS[name], make_shop(mode)
    for file in shop.db_path.parent.iterdir():
        file.unlink()
    data = database(trait, tmp_path, shop.passphrase)
    shop.db_path.write_bytes(data)
    backup = shop.create_backup()
    shop.db_path.write_bytes(data[:-1] + b"?")
    done = shop.run("restore_backup.py", backup, "--force", "--json", "--skip-backup", key=keys.rsa)
    assert done.code == 0, done.text
    if mode == "sqlite":  # SQLCipher encrypts the copy anew
        assert shop.db_path.read_bytes()[100:] == data[100:]
    assert isinstance(trait.warns, str)
    assert not trait.warns or re.search(trait.warns, "\n".join(done.report["warnings"]), re.IGNORECASE)
