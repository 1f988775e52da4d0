"""Turns what an older backup holds into a database of the configured mode, in RAM only.

An SQL dump, a database of SQLCipher 1 to 3, one made under an older passphrase, or one of the other mode: each is
recognised, and converted or refused with the option that allows it. What is there already is never changed: the
backup file is not written to, and a database is exported (or rekeyed) from a copy in the RAM folder.

What survives: rows with their rowids, schema, sqlite_sequence, user_version, application_id, encoding, auto_vacuum and
the WAL flag. What cannot: a SQLCipher database has the bot's page size (4096) and 80 reserved bytes on each page, so
the page size of an unencrypted one is lost on the way there. A dump says nothing of WAL: the bot's mode is set.
"""

import contextlib
import io
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from backuplib.database import (
    DERIVATIONS,
    RAW_KEY,
    SQLITE_MAGIC,
    Engine,
    check_integrity,
    distrust_schema,
    quoted_identifier,
    quoted_passphrase,
    raw_key,
    sidecars,
)
from backuplib.errors import CannotConvertError, ConvertRequiredError, NoMemoryError, TooLargeError, WrongDbPassError
from backuplib.files import CHUNK, create_file
from backuplib.formatting import megabytes
from backuplib.ram_folder import RamFolder
from backuplib.secret import Secret
from backuplib.sql_dump import load_sql_dump, looks_like_sql_dump

_FIRST_PAGE = 65536  # bytes of the largest there is: what recognising takes
_PAGE_SIZES = (4096, 1024, 8192, 2048, 16384, 32768, 65536)  # 512 leaves too little beside SQLCipher's own bytes
_DEFAULT_PAGES = {1: 1024, 2: 1024, 3: 1024, 4: 4096}
_BOTS_VERSION = 4
_ROOM = 4 * CHUNK
_CACHE = "PRAGMA cache_size = -65536"  # 64 MB: with the default, pages are encrypted again and again
_SLOWEST = 1e6  # bytes of dump a second, below which it is ended
_PATIENCE = 60  # seconds on top

# All that an export does; a schema that makes it do more is not one that SQLite wrote.
_EXPORTING = frozenset({
    sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_READ,
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE, sqlite3.SQLITE_REINDEX,
    sqlite3.SQLITE_FUNCTION,
})  # fmt: skip


class Image(Protocol):
    """A backup's content in memory."""

    buffer: io.BytesIO
    header: bytes
    size: int


@dataclass(frozen=True)
class Source:
    """What a backup holds.

    :param name: for people: "SQLite", "SQLCipher 4", "SQLCipher 3", "SQL dump".
    :param version: of SQLCipher; 0 when it is not encrypted.
    :param key: what opens it, as `PRAGMA key` takes it.
    :param page_size: of a SQLCipher database.
    :param as_configured: whether the bot can open it as it is.
    """

    name: str
    version: int = 0
    key: str = field(default="", repr=False)
    page_size: int = 0
    as_configured: bool = False

    @property
    def is_dump(self) -> bool:
        """Whether it is SQL text."""
        return self.name == "SQL dump"

    @property
    def only_key_differs(self) -> bool:
        """Whether the bot could open it, were it not for the passphrase."""
        return self.version == _BOTS_VERSION and self.page_size == _DEFAULT_PAGES[_BOTS_VERSION]

    def plan(self, engine: Engine) -> str:
        """Return what has to be done to it, for people; empty when nothing."""
        if self.as_configured:
            return ""
        target = _target(engine)
        if self.is_dump:
            return f"loaded into a new {target} database"
        if engine.db_pass and self.only_key_differs:
            return "rekeyed to today's DB_PASS"
        return f"exported to {target}" + (" under today's DB_PASS" if engine.db_pass else "")


def _target(engine: Engine) -> str:
    return f"SQLCipher {_BOTS_VERSION}" if engine.db_pass else "SQLite (not encrypted)"


@dataclass(frozen=True)
class Converted:
    """What was done, for people, and what the operator should know of it."""

    done: str
    warnings: tuple[str, ...] = ()


# --- recognising ---------------------------------------------------------------------------------------------------


def recognise(image: Image, engine: Engine, ram: RamFolder, backup_pass: Secret | None) -> Source | None:
    """Tell what a backup holds; None when that cannot be told (noise, or no passphrase here opens it).

    :param engine: the configured one.
    :param backup_pass: the passphrase that the backup was made under, if the operator gave one.
    :raises WrongDbPassError: when that passphrase is none, or does not open the backup.
    """
    if backup_pass is not None:
        _check_passphrase(backup_pass)
    with image.buffer.getbuffer() as view:
        head = bytes(view[:_FIRST_PAGE])
    if head.startswith(SQLITE_MAGIC):
        return Source("SQLite", as_configured=not engine.db_pass)
    if looks_like_sql_dump(head):
        return Source("SQL dump")
    if image.size < min(_PAGE_SIZES) or not (engine.db_pass or backup_pass):
        return None
    with _scratch(ram.path / "probe.db") as probe:
        with create_file(probe) as file:
            file.write(head)
            file.truncate(16 * image.size)  # sparse: one that is too short can be told, too
        found = _recognise_sqlcipher(probe, image.size, engine, backup_pass)
    if found is None and backup_pass is not None:
        both = "neither DB_PASS nor the passphrase of --backup-db-pass opens" if engine.db_pass else ""
        raise WrongDbPassError(
            f"{both or 'the passphrase of --backup-db-pass does not open'} the database in the backup",
            hint="Run this again with the passphrase that DB_PASS was when the backup was made. If that is what you "
            "gave, the backup is damaged or no SQLCipher database: restore another one (--list).",
        )
    return found


def _check_passphrase(backup_pass: Secret) -> None:
    hint = "Run this again and give the passphrase that DB_PASS was when the backup was made."
    try:
        text = backup_pass.reveal()
    except UnicodeDecodeError:
        raise WrongDbPassError("the passphrase of --backup-db-pass is not UTF-8 text", hint=hint) from None
    if not text or "\0" in text:
        what = "holds a NUL character" if text else "is empty"
        raise WrongDbPassError(f"the passphrase of --backup-db-pass {what}", hint=hint)


def _recognise_sqlcipher(probe: Path, size: int, engine: Engine, backup_pass: Secret | None) -> Source | None:
    if engine.db_pass:
        with (
            contextlib.suppress(*engine.errors),
            contextlib.closing(engine.connect(probe, mode="ro", immutable=True)) as it,
        ):
            it.execute("PRAGMA schema_version").fetchone()
            return Source("SQLCipher 4", 4, page_size=_DEFAULT_PAGES[4], as_configured=True)
    for secret in filter(None, (backup_pass, engine.db_pass)):
        for version in DERIVATIONS:
            key = _raw_key(secret, probe, version)
            for page_size in sorted(_PAGE_SIZES, key=lambda size: size != _DEFAULT_PAGES[version]):
                usual = page_size == _DEFAULT_PAGES[version]
                if (usual or not size % page_size) and _opens(probe, key, version, page_size):
                    return Source(f"SQLCipher {version}", version, key, page_size)
    return None


def _raw_key(secret: Secret, database: Path, version: int) -> str:
    """Return the key itself as `PRAGMA key` takes it: to derive it anew for each page size would take seconds."""
    if RAW_KEY.fullmatch(secret.reveal()):
        return quoted_passphrase(secret)
    with io.FileIO(database) as file:
        salt = file.read(16)
    return raw_key(secret, salt, *DERIVATIONS[version])


def _opens(path: Path, key: str, version: int, page_size: int) -> bool:
    module = _sqlcipher()
    try:
        with contextlib.closing(_connect(module, f"{path.as_uri()}?mode=ro&immutable=1")) as connection:
            _set_key(connection, key, version, page_size)
            connection.execute("PRAGMA schema_version").fetchone()
    except module.Error:
        return False
    return True


# --- converting ----------------------------------------------------------------------------------------------------


def require_convert_option(source: Source, engine: Engine, *, convert: bool) -> None:
    """Refuse what the operator has to ask for.

    :param convert: whether the operator did.
    :raises ConvertRequiredError: saying what the backup holds, what the bot has, and the option to type.
    """
    if convert or source.as_configured or source.is_dump or (engine.db_pass and source.only_key_differs):
        return
    if not source.version:
        raise ConvertRequiredError(
            "the backup holds an unencrypted SQLite database, but DB_ENCRYPTION is true",
            hint="It was made before encryption was switched on. To restore it encrypted under today's DB_PASS, add "
            "--convert; for a bot without encryption, set DB_ENCRYPTION=false.",
        )
    if not engine.db_pass:
        raise ConvertRequiredError(
            f"the backup holds a {source.name} database, but DB_ENCRYPTION is false",
            hint="To restore it WITHOUT encryption, add --convert; else set DB_ENCRYPTION=true and DB_PASS in .env.",
        )
    pages = "" if source.version < _BOTS_VERSION else f" with pages of {source.page_size} bytes"
    bots = "" if source.version < _BOTS_VERSION else f" with pages of {_DEFAULT_PAGES[_BOTS_VERSION]}"
    raise ConvertRequiredError(
        f"the backup holds a {source.name} database{pages}; the bot's are SQLCipher {_BOTS_VERSION}{bots}",
        hint="To restore it in the bot's format, add --convert. The backup file stays as it is.",
    )


def convert(
    image: Image,
    source: Source,
    engine: Engine,
    ram: RamFolder,
    sink: Callable[[bytes], object],
    *,
    limit: int,
    progress: Callable[[int], object] = lambda _size: None,
) -> Converted:
    """Convert a backup that is not as configured, and give the new database to ``sink`` piece by piece.

    The image is used up: its memory is needed. Nothing is written outside the RAM folder.

    :param limit: bytes of the new database at which it stops.
    :param progress: is told how much of a dump was read.
    :raises UnsoundBackupError: when it is not sound; what was given to the sink is then of no use.
    :raises NoMemoryError: when the RAM folder is too small.
    """
    with _scratch(ram.path / "backup.db") as old, _scratch(ram.path / "converted.db") as new:
        create_file(new).close()
        try:
            if source.is_dump:
                done = _load(image, engine, new, min(limit, ram.free), progress)
            else:
                _write_out(image, old, ram)
                if engine.db_pass and source.only_key_differs:
                    done = _rekey(source, engine.db_pass, old, image.size)
                    old.rename(new)
                else:
                    done = _export(source, engine, old, new, image.size, limit=limit)
                    old.unlink()
        except (sqlite3.Error, _sqlcipher().Error, UnicodeDecodeError, OSError, MemoryError) as error:
            if isinstance(error, MemoryError) or "is full" in str(error):
                raise TooLargeError(limit) from None
            raise CannotConvertError(f"the {source.name} in the backup cannot be converted: {error}") from None
        with io.FileIO(new) as file:
            for piece in iter(lambda: file.read(CHUNK), b""):
                sink(piece)
    return done


def _write_out(image: Image, path: Path, ram: RamFolder) -> None:
    if ram.free < image.size + _ROOM:
        raise NoMemoryError(
            f"too little room in RAM to convert the database: {megabytes(ram.free)} free in {ram.path}, "
            f"{megabytes(image.size + _ROOM)} needed",
            hint="Use a machine with more memory, or stop the bot first: --stop-first",
        )
    with create_file(path) as file, image.buffer.getbuffer() as view:
        for start in range(0, image.size, CHUNK):
            file.write(view[start : start + CHUNK])
    _release(image)


def _release(image: Image) -> None:
    image.buffer.seek(0)
    image.buffer.truncate()


def _load(image: Image, engine: Engine, new: Path, limit: int, progress: Callable[[int], object]) -> Converted:
    module = _sqlcipher() if engine.db_pass else sqlite3
    image.buffer.seek(0)
    with contextlib.closing(_connect(module, f"{new.as_uri()}?mode=rw", cached_statements=0)) as connection:
        if engine.db_pass:
            connection.execute(f"PRAGMA key = {quoted_passphrase(engine.db_pass)}")
        _write_fast(connection)
        loaded = load_sql_dump(
            image.buffer,
            connection,
            progress=progress,
            limit_bytes=limit,
            limit_seconds=_PATIENCE + image.size / _SLOWEST,
        )
        _release(image)
        connection.execute("PRAGMA journal_mode = WAL")
    problems = tuple(f"the dump leaves foreign key violations: {text}" for text in loaded.foreign_key_problems)
    return Converted(f"{loaded.statements:,} statements of SQL → {_target(engine)}", problems)


def _rekey(source: Source, db_pass: Secret, path: Path, size: int) -> Converted:
    """Encrypt every page anew; nothing else of the database changes."""
    with contextlib.closing(_open_source(source, path)) as connection:
        _check_source(source, connection, size)
        (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
        _write_fast(connection)
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute(f"PRAGMA rekey = {quoted_passphrase(db_pass)}")
        connection.execute(f"PRAGMA journal_mode = {'WAL' if journal == 'wal' else 'DELETE'}")
    return Converted("from the passphrase of the backup to today's DB_PASS")


def _export(source: Source, engine: Engine, old: Path, new: Path, size: int, *, limit: int) -> Converted:
    """Build the database anew with sqlcipher_export, and carry over what that leaves out."""
    with contextlib.closing(_open_source(source, old)) as connection:
        _check_source(source, connection, size)
        ask = _asker(connection)
        values = {name: ask(f"main.{name}") for name in ("user_version", "application_id", "auto_vacuum", "page_size")}
        journal = ask("main.journal_mode")
        connection.execute(
            "ATTACH ? AS converted KEY ?",
            (f"{new.as_uri()}?mode=rw", engine.db_pass.reveal() if engine.db_pass else ""),
        )
        if not engine.db_pass:
            connection.execute(f"PRAGMA converted.page_size = {int(values['page_size'])}")
        connection.execute(f"PRAGMA converted.auto_vacuum = {int(values['auto_vacuum'])}")
        _write_fast(connection, "converted.")
        connection.execute(f"PRAGMA converted.max_page_count = {max(1, limit // int(ask('converted.page_size')))}")
        tables = _tables_with_rowids(connection)
        with _only_exporting(connection):
            connection.execute("SELECT sqlcipher_export('converted')").fetchone()
            _restore_rowids(connection, tables)
        for name in ("user_version", "application_id"):
            connection.execute(f"PRAGMA converted.{name} = {int(values[name])}")
        connection.execute("DETACH converted")
    with contextlib.closing(engine.connect(new)) as connection:
        connection.execute(f"PRAGMA journal_mode = {'WAL' if journal == 'wal' else 'DELETE'}")
    return Converted(f"{source.name} → {_target(engine)}", _page_size_notes(int(values["page_size"]), source, engine))


def _page_size_notes(page_size: int, source: Source, engine: Engine) -> tuple[str, ...]:
    if not engine.db_pass or page_size == _DEFAULT_PAGES[_BOTS_VERSION] or 0 < source.version < _BOTS_VERSION:
        return ()
    return (f"pages of {page_size} bytes became SQLCipher's {_DEFAULT_PAGES[_BOTS_VERSION]}",)


def _check_source(source: Source, connection: Any, size: int) -> None:
    """Look at the database before the export: that would leave a damaged index, or pages that nobody reads, behind."""
    hashed = source.version > 1  # SQLCipher 1 has no checksums on its pages
    check_integrity(Engine(Secret(source.key) if hashed else None), connection, size)


@contextlib.contextmanager
def _only_exporting(connection: Any) -> Iterator[None]:
    """No more than an export takes is done meanwhile, whatever the schema says."""

    def authorize(action: int, _first: str, _second: str, _database: str, trigger: str | None) -> int:
        return sqlite3.SQLITE_OK if action in _EXPORTING and not trigger else sqlite3.SQLITE_DENY

    connection.execute("PRAGMA ignore_check_constraints = ON")  # what is there came in by them
    connection.set_authorizer(authorize)
    try:
        yield
    finally:
        connection.set_authorizer(None)


@dataclass(frozen=True)
class _Table:
    """A table as the export needs to know it; ``rowid`` is the name by which its rows' numbers can be reached."""

    name: str
    rowid: str
    columns: tuple[str, ...]


def _tables_with_rowids(connection: Any) -> list[_Table]:
    found = []
    for name, without_rowid in connection.execute(
        "SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'shadow') "
        "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    ).fetchall():
        columns = connection.execute("SELECT name, hidden FROM pragma_table_xinfo(?)", (name,)).fetchall()
        taken = {column.lower() for column, _ in columns}
        rowid = next((alias for alias in ("rowid", "oid", "_rowid_") if alias not in taken), None)
        if not without_rowid and rowid:  # else nobody can tell how its rows are numbered
            names = tuple(quoted_identifier(column) for column, hidden in columns if not hidden)
            found.append(_Table(quoted_identifier(name), rowid, names))
    return found


def _restore_rowids(connection: Any, tables: list[_Table]) -> None:
    """Copy those tables again whose rows were numbered anew; full-text indexes and programs may refer to rowids.

    The triggers of the new database are not in force yet: sqlcipher_export enters them in its schema as text.
    """
    for table in tables:
        span = f"SELECT min({table.rowid}), max({table.rowid}), count(*) FROM {{}}.{table.name}"
        before, after = (connection.execute(span.format(schema)).fetchone() for schema in ("main", "converted"))
        if before != after:
            names = ", ".join((table.rowid, *table.columns))
            connection.execute(f"DELETE FROM converted.{table.name}")
            connection.execute(f"INSERT INTO converted.{table.name} ({names}) SELECT {names} FROM main.{table.name}")


# --- connections ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A name in the RAM folder whose files are gone afterwards."""
    try:
        yield path
    finally:
        for left in (path, *sidecars(path)):
            left.unlink(missing_ok=True)


def _sqlcipher() -> Any:
    import sqlcipher3.dbapi2 as module

    return module


def _connect(module: Any, uri: str, *, cached_statements: int = 128) -> Any:
    connection = module.connect(uri, uri=True, isolation_level=None, cached_statements=cached_statements)
    if module is not sqlite3:
        connection.execute("PRAGMA cipher_log_level = NONE")
    return connection


def _set_key(connection: Any, key: str, version: int, page_size: int) -> None:
    connection.execute(f"PRAGMA key = {key}")
    connection.execute(f"PRAGMA cipher_compatibility = {version}")
    connection.execute(f"PRAGMA cipher_page_size = {page_size}")


def _open_source(source: Source, path: Path) -> Any:
    connection = _connect(_sqlcipher(), f"{path.as_uri()}?mode=rw")
    if source.version:
        _set_key(connection, source.key, source.version, source.page_size)
    _guard(connection)
    return connection


def _guard(connection: Any) -> None:
    """The schema is not trusted; sorting stays in memory."""
    distrust_schema(sqlite3 if isinstance(connection, sqlite3.Connection) else _sqlcipher(), connection)
    connection.execute("PRAGMA temp_store = MEMORY")


def _write_fast(connection: Any, schema: str = "") -> None:
    """A file that is thrown away when anything fails needs no care; a statement that fails is still taken back."""
    _guard(connection)
    connection.execute(_CACHE.replace("cache_size", f"{schema}cache_size"))
    connection.execute(f"PRAGMA {schema}journal_mode = MEMORY")
    connection.execute(f"PRAGMA {schema}synchronous = OFF")


def _asker(connection: Any) -> Callable[[str], str]:
    return lambda name: str(connection.execute(f"PRAGMA {name}").fetchone()[0])
