"""Converts what an older backup holds into a database of the configured mode, in RAM only.

Sources: an SQL dump, SQLCipher 1 to 3, another passphrase, the other mode. The backup file itself is never changed.

Preserved: rows, rowids, schema, sqlite_sequence, user_version, application_id, encoding, auto_vacuum, WAL flag. Lost:
the page size, when a database becomes SQLCipher (4096, with 80 reserved bytes). A dump has no journal mode and gets the
bot's: WAL with SQLCipher, else SQLite's default, a rollback journal.
"""

import contextlib
import io
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backuplib.database import (
    Engine,
    check_integrity,
    cipher_key,
    distrust_schema,
    quoted_passphrase,
    sidecars,
)
from backuplib.errors import CannotConvertError, ConvertRequiredError, TooLargeError, WrongDbPassError, same_command
from backuplib.files import CHUNK, create_file
from backuplib.findings import CONTENT
from backuplib.formatting import quoted_identifier
from backuplib.image import LARGEST_PAGE, DatabaseImage
from backuplib.inspection import PATIENCE_SECONDS, Inspection
from backuplib.ram_folder import RamFolder
from backuplib.schema import Placeholders, read_schema, set_table_sql, without_not_null
from backuplib.secret import Secret
from backuplib.sql_dump import load_sql_dump, looks_like_sql_dump
from backuplib.storage import begins_plain

_PAGE_SIZES = (4096, 1024, 8192, 2048, 16384, 32768, 65536)  # 512 leaves too little beside SQLCipher's own bytes
_DEFAULT_PAGES = {4: 4096, 3: 1024, 2: 1024, 1: 1024}  # by version of SQLCipher
_BOTS_VERSION, _BOTS_PAGES = 4, _DEFAULT_PAGES[4]
_ROOM = 4 * CHUNK
_MEMORY = 1_000_000_000  # bytes that a conversion may take beside the RAM folder: statements and values as long as that
_SLOWEST = 1e6  # bytes of dump a second, below which the load is aborted
_PATIENCE = 60  # seconds added to that

# All that an export does; a schema that makes it do more was not written by SQLite.
_EXPORTING = frozenset({
    sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_READ,
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE, sqlite3.SQLITE_REINDEX,
    sqlite3.SQLITE_FUNCTION,
})  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What a backup holds."""

    name: str  # "SQLite", "SQLCipher 4", "SQLCipher 3", …, or "SQL dump"
    version: int = 0  # of SQLCipher; 0: not encrypted
    key: str = field(default="", repr=False)  # as `PRAGMA key` takes it
    page_size: int = 0
    as_configured: bool = False  # the bot can open it without conversion

    @property
    def is_dump(self) -> bool:
        return self.name == "SQL dump"

    @property
    def only_key_differs(self) -> bool:
        """Whether it has the bot's format, whatever the passphrase."""
        return (self.version, self.page_size) == (_BOTS_VERSION, _BOTS_PAGES)

    def plan(self, engine: Engine) -> str:
        """Return what has to be done to it, for people; empty when nothing."""
        if self.as_configured:
            return ""
        if self.is_dump:
            return f"loaded into a new {_target(engine)} database"
        if engine.db_pass and self.only_key_differs:
            return "rekeyed to the current DB_PASS"
        return f"exported to {_target(engine)}" + (" with the current DB_PASS" if engine.db_pass else "")


def _target(engine: Engine) -> str:
    return f"SQLCipher {_BOTS_VERSION}" if engine.db_pass else "SQLite (not encrypted)"


@dataclass(frozen=True)
class Converted:
    done: str  # for people
    warnings: tuple[str, ...] = ()


# --- recognising ---------------------------------------------------------------------------------------------------


def recognise(image: DatabaseImage, engine: Engine, ram: RamFolder, backup_pass: Secret | None) -> Source | None:
    """Recognise what a backup holds; None for noise, or when no known passphrase opens it.

    :param engine: the configured one.
    :param backup_pass: the passphrase that the database in the backup has, if the operator gave one.
    :raises WrongDbPassError: when that passphrase is invalid or wrong.
    """
    if backup_pass is not None:
        _check_passphrase(backup_pass)
    with image.opened() as file:
        head = file.read(LARGEST_PAGE)
    if begins_plain(head):
        return Source("SQLite", as_configured=not engine.db_pass)
    if looks_like_sql_dump(head):
        return Source("SQL dump")
    if image.size < min(_PAGE_SIZES) or not (engine.db_pass or backup_pass):
        return None
    with image.probe(ram.path / "probe.db") as probe:
        found = _recognise_sqlcipher(probe, head[:16], image.size, engine, backup_pass)
    if found is None and backup_pass is not None:
        wrong = "neither DB_PASS nor --backup-db-pass opens" if engine.db_pass else "--backup-db-pass does not open"
        raise WrongDbPassError(
            f"{wrong} the database in the backup: it has another passphrase or other cipher settings",
            hint="Run this again with the DB_PASS of the time when the backup was made. If that is what you gave, the "
            "backup is corrupted or not a SQLCipher database: restore another one (--list).",
        )
    return found


def _check_passphrase(backup_pass: Secret) -> None:
    hint = "Run this again with the DB_PASS of the time when the backup was made."
    try:
        text = backup_pass.reveal()
    except UnicodeDecodeError:
        raise WrongDbPassError("the passphrase of --backup-db-pass is not UTF-8 text", hint=hint) from None
    if not text or "\0" in text:
        what = "contains a NUL character" if text else "is empty"
        raise WrongDbPassError(f"the passphrase of --backup-db-pass {what}", hint=hint)


def _recognise_sqlcipher(
    probe: Path, salt: bytes, size: int, engine: Engine, backup_pass: Secret | None
) -> Source | None:
    if engine.db_pass:
        with (
            contextlib.suppress(*engine.errors),
            contextlib.closing(engine.connect(probe, mode="ro", immutable=True)) as it,
        ):
            it.execute("PRAGMA schema_version").fetchone()
            return Source("SQLCipher 4", 4, page_size=_DEFAULT_PAGES[4], as_configured=True)
    for secret in filter(None, (backup_pass, engine.db_pass)):
        for version, usual in _DEFAULT_PAGES.items():
            key = cipher_key(secret, salt, version)
            for page_size in sorted(_PAGE_SIZES, key=lambda size: size != usual):
                if (page_size == usual or not size % page_size) and _opens(probe, key, version, page_size):
                    return Source(f"SQLCipher {version}", version, key, page_size)
    return None


def _opens(path: Path, key: str, version: int, page_size: int) -> bool:
    module = _sqlcipher()
    with (
        contextlib.suppress(module.Error),
        contextlib.closing(_connect(module, path, "mode=ro&immutable=1")) as connection,
    ):
        _set_key(connection, key, version, page_size)
        connection.execute("PRAGMA schema_version").fetchone()
        return True
    return False


# --- converting ----------------------------------------------------------------------------------------------------


def require_convert_option(source: Source, engine: Engine, *, convert: bool) -> None:
    """Refuse a conversion that the operator has to ask for, unless ``convert`` says so.

    :raises ConvertRequiredError: naming both formats and the option.
    """
    if convert or source.as_configured or source.is_dump or (engine.db_pass and source.only_key_differs):
        return
    if not source.version:
        raise ConvertRequiredError(
            "the backup holds an unencrypted SQLite database, but DB_ENCRYPTION is true",
            hint="If the bot does not use encryption, set DB_ENCRYPTION=false. To restore it encrypted with the "
            f"current DB_PASS, add --convert: {same_command('--convert')}",
        )
    if not engine.db_pass:
        raise ConvertRequiredError(
            f"the backup holds a {source.name} database, but DB_ENCRYPTION is false",
            hint="If the bot uses SQLCipher, set DB_ENCRYPTION=true and DB_PASS in .env. To restore it WITHOUT "
            f"encryption, add --convert: {same_command('--convert')}",
        )
    raise ConvertRequiredError(
        f"the backup holds a {source.name} database with pages of {source.page_size} bytes; the bot uses SQLCipher "
        f"{_BOTS_VERSION} with pages of {_BOTS_PAGES}",
        hint="To restore it in the bot's format (the backup file is not changed), add --convert: "
        f"{same_command('--convert')}",
    )


def convert(
    image: DatabaseImage,
    source: Source,
    engine: Engine,
    ram: RamFolder,
    sink: Callable[[bytes], object],
    *,
    limit: int,
    listen: Callable[[], object] = lambda: None,
    progress: Callable[[int], object] = lambda _size: None,
) -> Converted:
    """Convert a backup that is not as configured, in a child, and write the new database to ``sink``.

    The image is emptied, since its memory is needed. Nothing is written outside the RAM folder.

    :param limit: maximum bytes of the new database.
    :param listen: raises what a signal asks for.
    :param progress: receives the number of bytes read from a dump.
    :raises UnsoundBackupError: when it is not sound; discard what the sink received.
    :raises NoMemoryError: when the RAM folder is too small.
    """
    with _scratch(image.path or ram.path / "backup.db") as old, _scratch(ram.path / "converted.db") as new:
        if not source.is_dump:
            ram.require(image.size + _ROOM, "convert the database")
        create_file(new).close()
        seconds = PATIENCE_SECONDS + image.size / 1e6
        look = Inspection(
            lambda tell: asdict(_converted(image, source, engine, old, new, limit=min(limit, ram.free), progress=tell)),
            seconds=seconds,
            memory=image.size + _MEMORY,
            largest_file=limit + image.size + _ROOM,
        )
        done = look.result(listen, progress)
        image.wipe()
        with io.FileIO(new) as file:
            for piece in iter(lambda: file.read(CHUNK), b""):
                sink(piece)
    return Converted(done["done"], tuple(done["warnings"]))


def _converted(
    image: DatabaseImage,
    source: Source,
    engine: Engine,
    old: Path,
    new: Path,
    *,
    limit: int,
    progress: Callable[[int], object],
) -> Converted:
    """Leave the new database at ``new``; ``old`` is for the one in the image, or has it."""
    try:
        if source.is_dump:
            return _load(image, engine, new, limit, progress)
        if not image.path:
            with create_file(old) as file:
                image.write_to(file)
        if engine.db_pass and source.only_key_differs:
            done = _rekey(source, engine.db_pass, old, image.size)
            old.rename(new)
            return done
        return _export(source, engine, old, new, image.size, limit=limit)
    except (*engine.errors, sqlite3.Error, _sqlcipher().Error, OSError, MemoryError) as error:
        if isinstance(error, MemoryError) or "is full" in str(error):
            raise TooLargeError(limit) from None
        raise CannotConvertError(f"cannot convert the backup ({source.name}): {error}") from None


def _load(image: DatabaseImage, engine: Engine, new: Path, limit: int, progress: Callable[[int], object]) -> Converted:
    from backuplib.newest import NewestSQLite

    module = _sqlcipher() if engine.db_pass else NewestSQLite
    with image.opened() as dump, contextlib.closing(_connect(module, new, cached_statements=0)) as connection:
        if engine.db_pass:
            connection.execute(f"PRAGMA key = {quoted_passphrase(engine.db_pass)}")
        _guard(module, connection)
        _write_fast(connection)
        seconds = _PATIENCE + image.size / _SLOWEST
        loaded = load_sql_dump(dump, connection, progress=progress, limit_bytes=limit, limit_seconds=seconds)
        if engine.db_pass:
            connection.execute("PRAGMA journal_mode = WAL")
    return Converted(f"{loaded.statements:,} SQL statements → {_target(engine)}", loaded.left_out)


def _rekey(source: Source, db_pass: Secret, path: Path, size: int) -> Converted:
    """Encrypt every page with the new passphrase; nothing else of the database changes."""
    with _opened_source(source, path, size) as (connection, _, _):
        journal = _value(connection, "journal_mode")
        _write_fast(connection)
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute(f"PRAGMA rekey = {quoted_passphrase(db_pass)}")
        connection.execute(f"PRAGMA journal_mode = {'WAL' if journal == 'wal' else 'DELETE'}")
    return Converted("from the backup's passphrase to the current DB_PASS")


def _export(source: Source, engine: Engine, old: Path, new: Path, size: int, *, limit: int) -> Converted:
    """Rebuild the database with sqlcipher_export, and copy what that leaves out."""
    with _opened_source(source, old, size) as (connection, placeholders, doubtful):
        kept = {name: int(_value(connection, f"main.{name}")) for name in ("user_version", "application_id")}
        page_size, auto_vacuum = (int(_value(connection, f"main.{name}")) for name in ("page_size", "auto_vacuum"))
        journal = _value(connection, "main.journal_mode")
        passphrase = engine.db_pass.reveal() if engine.db_pass else ""
        connection.execute("ATTACH ? AS converted KEY ?", (f"{new.as_uri()}?mode=rw", passphrase))
        if not engine.db_pass:
            connection.execute(f"PRAGMA converted.page_size = {page_size}")
        connection.execute(f"PRAGMA converted.auto_vacuum = {auto_vacuum}")
        _write_fast(connection, "converted.")
        pages = max(1, limit // int(_value(connection, "converted.page_size")))
        connection.execute(f"PRAGMA converted.max_page_count = {pages}")
        tables = _tables_with_rowids(connection)
        # Rows may have NULL where the schema, made NOT NULL later, does not allow it.
        relaxed = {entry.name: entry.sql for entry in read_schema(connection) if entry.name in doubtful}
        for name, sql in relaxed.items():
            set_table_sql(connection, "main", name, without_not_null(sql))
        _copy_all(connection, placeholders)
        with _only_exporting(connection):
            _restore_rowids(connection, tables)
        for name, sql in relaxed.items():
            set_table_sql(connection, "converted", name, sql)
        left_out = placeholders.leave_out("converted")
        for name, value in kept.items():
            connection.execute(f"PRAGMA converted.{name} = {value}")
        connection.execute("DETACH converted")
    with contextlib.closing(engine.connect(new)) as connection:
        connection.execute(f"PRAGMA journal_mode = {'WAL' if journal == 'wal' else 'DELETE'}")
    changed = engine.db_pass and page_size != _BOTS_PAGES and source.version in (0, _BOTS_VERSION)
    notes = [f"pages of {page_size} bytes became SQLCipher's {_BOTS_PAGES}"] if changed else []
    return Converted(f"{source.name} → {_target(engine)}", (*notes, *left_out))


def _copy_all(connection: Any, placeholders: Placeholders) -> None:
    """Export, anew with a placeholder for each name that only the bot has."""
    while True:
        connection.execute("BEGIN")
        try:
            with _only_exporting(connection):
                connection.execute("SELECT sqlcipher_export('converted')").fetchone()
        except connection.Error as error:
            connection.execute("ROLLBACK")
            if not placeholders.for_lack(error):
                raise
        else:
            connection.execute("COMMIT")
            return


@contextlib.contextmanager
def _only_exporting(connection: Any) -> Iterator[None]:
    """Allow only what an export takes, whatever the schema says."""

    def authorize(action: int, _first: str, _second: str, _database: str, trigger: str | None) -> int:
        return sqlite3.SQLITE_OK if action in _EXPORTING and not trigger else sqlite3.SQLITE_DENY

    connection.execute("PRAGMA ignore_check_constraints = ON")  # existing rows may violate them
    connection.set_authorizer(authorize)
    try:
        yield
    finally:
        connection.set_authorizer(None)


def _tables_with_rowids(connection: Any) -> list[tuple[str, str, list[str]]]:
    """Return name, name of the rowid and columns of each table whose rowids are accessible."""
    found = []
    for name, without_rowid in connection.execute(
        "SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'shadow') "
        "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    ).fetchall():
        columns = connection.execute("SELECT name, hidden FROM pragma_table_xinfo(?)", (name,)).fetchall()
        taken = {column.lower() for column, _ in columns}
        rowid = next((alias for alias in ("rowid", "oid", "_rowid_") if alias not in taken), None)
        if not without_rowid and rowid:
            visible = [quoted_identifier(column) for column, hidden in columns if not hidden]
            found.append((quoted_identifier(name), rowid, visible))
    return found


def _restore_rowids(connection: Any, tables: list[tuple[str, str, list[str]]]) -> None:
    """Copy tables again whose rows got new rowids, since full-text indexes and programs may refer to them.

    The new database's triggers do not fire yet: sqlcipher_export writes them into its schema as text.
    """
    for table, rowid, columns in tables:
        span = f"SELECT min({rowid}), max({rowid}), count(*) FROM "
        before, after = (connection.execute(f"{span}{name}.{table}").fetchone() for name in ("main", "converted"))
        if before != after:
            names = ", ".join((rowid, *columns))
            connection.execute(f"DELETE FROM converted.{table}")
            connection.execute(f"INSERT INTO converted.{table} ({names}) SELECT {names} FROM main.{table}")


# --- connections ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A name in the RAM folder whose files are removed afterwards."""
    try:
        yield path
    finally:
        for left in (path, *sidecars(path)):
            left.unlink(missing_ok=True)


def _sqlcipher() -> Any:
    import sqlcipher3.dbapi2 as module

    return module


def _connect(module: Any, path: Path, query: str = "mode=rw", *, cached_statements: int = 128) -> Any:
    uri = f"{path.as_uri()}?{query}"
    if module is not _sqlcipher():
        return module(uri, cached_statements=cached_statements)
    connection = module.connect(uri, uri=True, isolation_level=None, cached_statements=cached_statements)
    connection.execute("PRAGMA cipher_log_level = NONE")
    return connection


def _set_key(connection: Any, key: str, version: int, page_size: int) -> None:
    connection.execute(f"PRAGMA key = {key}")
    connection.execute(f"PRAGMA cipher_compatibility = {version}")
    connection.execute(f"PRAGMA cipher_page_size = {page_size}")


@contextlib.contextmanager
def _opened_source(source: Source, path: Path, size: int) -> Iterator[tuple[Any, Placeholders, set[str]]]:
    """Open and check the database: an export would silently drop a corrupted index, or pages that it does not read.

    Yields the placeholders for what only the bot has, too, and the tables with rows that a constraint would refuse.
    """

    def opened() -> Any:
        connection = _connect(_sqlcipher(), path)
        if source.version:
            _set_key(connection, source.key, source.version, source.page_size)
        _guard(_sqlcipher(), connection)
        return connection

    hashed = source.version > 1  # pages of SQLCipher 1 have no authentication code
    with contextlib.closing(opened()) as checking:
        needed = Placeholders(checking)
        engine = Engine(Secret(source.key) if hashed else None)
        _, findings = check_integrity(engine, checking, size, placeholders=needed)
    with contextlib.closing(opened()) as connection:
        placeholders = Placeholders(connection, spare="sqlcipher_export")
        placeholders.adopt(needed)
        yield connection, placeholders, {finding.table for finding in findings if finding.kind == CONTENT}


def _guard(module: Any, connection: Any) -> None:
    distrust_schema(module, connection)
    connection.execute("PRAGMA temp_store = MEMORY")  # else sorting writes rows into files in /var/tmp


def _write_fast(connection: Any, schema: str = "") -> None:
    """Trade durability for speed: the file is discarded when anything fails. Failed statements are still undone."""
    connection.execute(f"PRAGMA {schema}cache_size = -65536")  # 64 MB: the default encrypts pages again and again
    connection.execute(f"PRAGMA {schema}journal_mode = MEMORY")
    connection.execute(f"PRAGMA {schema}synchronous = OFF")


def _value(connection: Any, name: str) -> str:
    return str(connection.execute(f"PRAGMA {name}").fetchone()[0])
