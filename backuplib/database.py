"""SQLite and SQLCipher databases: their files, how they are opened, and whether they are sound."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from backuplib.errors import DamagedDatabaseError, EmptyBackupError, UnsoundBackupError, UnsuitableTargetError
from backuplib.files import open_regular, stat_or_none
from backuplib.findings import STRUCTURE, Finding, find, is_damaged, refuse_damaged
from backuplib.folder import AnchoredPath, anchored, is_open, may_be_planted, resolved
from backuplib.formatting import megabytes, plural, quoted
from backuplib.inspection import PATIENCE_SECONDS, ROOM, Inspection
from backuplib.schema import Placeholders
from backuplib.secret import Secret
from backuplib.sparse import is_mostly_holes

if TYPE_CHECKING:
    import sqlite3

SIDECARS = ("-wal", "-shm", "-journal")  # -wal and -journal hold data of the database, -shm does not
SQLITE_MAGIC = b"SQLite format 3\0"
SMALLEST_PAGE = 512  # bytes, also of the smallest SQLite database
RAW_KEY = re.compile(r"x'(?:[0-9a-f]{64}|[0-9a-f]{96})'", re.IGNORECASE)  # a passphrase like this is the key itself
# Key derivation by version of SQLCipher: PBKDF2 with HMAC of this hash, number of rounds
DERIVATIONS = {4: ("sha512", 256_000), 3: ("sha1", 64_000), 2: ("sha1", 4_000), 1: ("sha1", 4_000)}


def sidecars(database: Path) -> list[Path]:
    """Return what has the names of a database's sidecars: also a planted link, wherever it leads to."""
    named = (database.with_name(database.name + suffix) for suffix in SIDECARS)
    return [path for path in named if os.path.lexists(path)]


def database_files(database: Path) -> list[Path]:
    """Return the existing files of a database, itself and its sidecars: not what a planted link leads to."""
    beside = [path for path in sidecars(database) if path.is_file() and not path.is_symlink()]
    return [*([database] if os.path.lexists(database) else []), *beside]


def size_of_files(database: Path) -> int:
    """Return the bytes of a database and its sidecars, which come and go while it is in use."""
    found = (stat_or_none(path) for path in [database, *sidecars(database)])
    return sum(status.st_size for status in found if status)


def refuse_irregular(files: list[Path]) -> None:
    """Refuse, with UnsuitableTargetError, a planted named pipe or link: SQLite would open it, and may block.

    So is a sparse file, which takes no room on the disk and all of the memory that it would be copied into.
    """
    for path in files:
        if is_mostly_holes(path):
            raise UnsuitableTargetError(
                f"{path} is a sparse file: of its {megabytes(path.lstat().st_size)} most was never written, so SQLite "
                "has not made it",
                hint=f"Find out who made it, then move it away: ls -ls {quoted(path)}",
            )
        if path.is_symlink() or not path.is_file():
            raise UnsuitableTargetError(
                f"{path} is not a regular file", hint=f"Find out who made it, then remove it: ls -l {quoted(path)}"
            )


def anchored_database(path: Path) -> AnchoredPath:
    """Return a database in its folder, which is opened; a link is followed, but for one that leads where others want.

    :raises UnsuitableTargetError: for a link that somebody else than this user or root may have made.
    :raises OSError: when the folder cannot be opened.
    """
    database = anchored(path)
    if database.is_symlink() and may_be_planted(database):
        raise UnsuitableTargetError(
            f"{database} is a link, and others than this user and root may have made it: it is not followed",
            hint=f"If it is meant, set DATA_DIR and DB_NAME in .env to what it leads to: readlink {quoted(database)}",
        )
    return resolved(database)


def quoted_passphrase(passphrase: Secret) -> str:
    """Return a passphrase as an SQL string: `PRAGMA key` takes no bound parameter."""
    return "'" + passphrase.reveal().replace("'", "''") + "'"


def cipher_key(passphrase: Secret, salt: bytes, version: int) -> str:
    """Return the value for `PRAGMA key`: the raw key, so that SQLCipher does not derive it at each opening."""
    # An empty file has no salt, and SQLCipher takes as raw key what looks like one.
    if len(salt) < 16 or RAW_KEY.fullmatch(passphrase.reveal()):
        return quoted_passphrase(passphrase)
    digest, rounds = DERIVATIONS[version]
    key = hashlib.pbkdf2_hmac(digest, passphrase.reveal_bytes(), salt, rounds, 32)
    return f"\"x'{key.hex()}{salt.hex()}'\""


def file_uri(path: Path | str, mode: str, *, immutable: bool = False) -> str:
    """Return a path as SQLite opens it."""
    return "file:" + quote(os.fsencode(path)) + f"?mode={mode}" + ("&immutable=1" if immutable else "")


@contextlib.contextmanager
def the_file_itself(path: Path | str) -> Iterator[None]:
    """Make sure that what SQLite opens in the block is the file of that name: it resolves links in a path by itself.

    :raises UnsuitableTargetError: when it is a link, or others exchanged it meanwhile. Nothing has been read then.
    """
    if not isinstance(path, AnchoredPath):
        yield
        return
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)  # its end ends no lock
    except FileNotFoundError:
        yield
        raise
    try:
        refuse_irregular([path])
        yield
        if not is_open(descriptor):
            raise UnsuitableTargetError(
                f"{path} is not the file that was opened: it was replaced meanwhile",
                hint=f"Find out who did that: ls -l {quoted(path)}",
            )
    finally:
        os.close(descriptor)


class Engine:
    """Opens databases: SQLite, or SQLCipher when there is a passphrase."""

    def __init__(self, db_pass: Secret | None) -> None:
        self.db_pass = db_pass
        self.name = "SQLCipher" if db_pass else "SQLite"
        self._keys: dict[bytes, str] = {}

    @property
    def _module(self) -> Any:
        if self.db_pass:
            import sqlcipher3.dbapi2 as module
        else:
            import sqlite3 as module
        return module

    @property
    def errors(self) -> tuple[type[Exception], type[Exception], type[Exception], type[Exception]]:
        """The engine's exceptions.

        UnicodeDecodeError, since its messages may quote a corrupted schema. MemoryError, since SQLCipher says so of
        whatever is asked after a page that is not authentic.
        """
        if self.db_pass:
            return (self._module.Error, self._module.Error, UnicodeDecodeError, MemoryError)
        from backuplib.newest import NewestSQLite

        return (self._module.Error, NewestSQLite.Error, UnicodeDecodeError, MemoryError)

    @property
    def out_of_memory(self) -> tuple[type[Exception], ...]:
        """What says nothing about a database. With SQLCipher there is no such error: a damaged page has the same."""
        from backuplib.newest import NewestSQLite

        return () if self.db_pass else (MemoryError, NewestSQLite.NoMemoryError)

    def connect(
        self,
        path: Path | str,
        *,
        mode: str = "rw",
        immutable: bool = False,
        timeout: float = 5.0,
        key_of: Path | None = None,
    ) -> sqlite3.Connection:
        """Open an existing database.

        :param mode: "ro" or "rw".
        :param immutable: nobody changes it: without locks and sidecars; existing sidecars are not read.
        :param timeout: seconds to wait for a lock.
        :param key_of: database whose key and salt a new SQLCipher database shall get.
        """
        uri = file_uri(path, mode, immutable=immutable)
        with the_file_itself(path):
            connection: sqlite3.Connection = self._module.connect(
                uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
            )
        try:
            if self.db_pass:
                connection.execute("PRAGMA cipher_log_level=NONE")
                connection.execute(f"PRAGMA key = {self._key(key_of or path, self.db_pass)}")
            distrust_schema(self._module, connection)
            connection.execute("PRAGMA temp_store=MEMORY")  # else sorting writes rows into files in /var/tmp
        except BaseException:
            connection.close()
            raise
        return connection

    def look(
        self, path: Path | str, *, mode: str = "ro", immutable: bool = False, timeout: float = 5.0
    ) -> Any:  # of apsw or sqlcipher3, whose connections have little in common but execute()
        """Open a database to look at it, whatever wrote it: a plain one with the newest SQLite that there is.

        That is another library than :meth:`connect` has, and takes its locks for this process, too: closing one of
        their connections ends the locks of the other's on the same file.

        :param mode: "ro" leaves out CHECK constraints, which SQLite does not read from a read-only file.
        """
        connection: Any
        if self.db_pass:
            connection = self.connect(path, mode=mode, immutable=immutable, timeout=timeout)
        else:
            with the_file_itself(path):
                connection = newest_connection(file_uri(path, mode, immutable=immutable))
            connection.set_busy_timeout(int(timeout * 1000))
        connection.execute("PRAGMA query_only=ON")
        return connection

    def prepare(self, path: Path | None) -> None:
        """Do what children could not, without rights, or would each do again: import the engine, derive the key."""
        _ = self.errors
        if self.db_pass and path:
            self._key(path, self.db_pass)

    def _key(self, path: Path | str, db_pass: Secret) -> str:
        """Derive a key once for each salt: it takes 0.15 s, some of it while the bot is down."""
        with open_regular(path) as file:
            salt = file.read(16) or b""
        if salt not in self._keys:
            self._keys[salt] = cipher_key(db_pass, salt, 4)
        return self._keys[salt]

    def connect_reader(self, path: Path, *, timeout: float = 30.0) -> sqlite3.Connection:
        """Open a database that others may be using, to read it without leaving traces."""
        return self.connect(path, mode=mode_for_reading(path), timeout=timeout)


def mode_for_reading(path: Path) -> str:
    """Return the mode in which a database that others may be using is read without leaving traces.

    Read-only when there is a WAL or journal, since closing would checkpoint it or roll it back; else read-write,
    since closing a read-only connection would leave empty sidecars behind.
    """
    beside = (path.with_name(path.name + suffix) for suffix in ("-wal", "-journal"))
    return "ro" if any(sidecar.exists() for sidecar in beside) else "rw"


def newest_connection(uri: str) -> Any:
    """Open a plain database with the newest SQLite that there is, whose schema may be hostile."""
    from backuplib.newest import NewestSQLite

    connection = NewestSQLite(uri)
    distrust_schema(NewestSQLite, connection)
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection


def distrust_schema(module: Any, connection: Any) -> None:
    """Disarm a hostile schema, and have cells checked before they are used.

    SQLite 3.38 to 3.40 list their own JSON functions as unsafe, and so report sound databases as corrupted: with these
    versions, unsafe functions are refused by name.
    """
    unsafe = _unsafe_functions(module)
    mistaken = {name for name in unsafe if name.startswith(("json", "->"))}

    def authorize(action: int, _first: str | None, name: str | None, _database: str | None, _source: str | None) -> int:
        refused = action == module.SQLITE_FUNCTION and name in unsafe - mistaken
        return int(module.SQLITE_DENY if refused else module.SQLITE_OK)

    if mistaken:
        connection.set_authorizer(authorize)
    connection.execute(f"PRAGMA trusted_schema={'ON' if mistaken else 'OFF'}")
    connection.execute("PRAGMA cell_size_check=ON")


@functools.cache
def _unsafe_functions(module: Any) -> frozenset[str]:
    innocuous = 0x200000
    with contextlib.closing(getattr(module, "connect", module)(":memory:")) as connection:
        rows = connection.execute("SELECT name FROM pragma_function_list WHERE NOT flags & ?", (innocuous,))
        return frozenset(name for (name,) in rows)


def check_database(engine: Engine, path: Path) -> tuple[str, list[str]]:
    """Check a database file that nobody else has open, in a child; return the result and what else was found, in words.

    :raises UnsoundBackupError: when it is not sound, or could not be checked.
    """
    tables, found = begun_check_of(engine, path).result()
    return f"database ok, {plural(tables, 'table')}", found


def begun_check_of(engine: Engine, path: Path) -> Inspection:
    """Begin what :func:`check_database` does; the result is the number of tables, and what else was found."""
    size = path.stat().st_size
    engine.prepare(path)

    def work(_: object) -> tuple[int, list[str]]:
        try:
            with contextlib.closing(engine.look(path, mode="rw")) as connection:
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # a database in WAL mode gets no -shm then
                tables, findings = check_integrity(engine, connection, size, newer=may_be_newer(engine, path))
                return tables, [finding.text for finding in findings]
        except engine.out_of_memory:
            raise MemoryError from None
        except engine.errors as error:
            raise UnsoundBackupError(f"not a sound {engine.name} database: {error}") from None

    return Inspection(work, seconds=PATIENCE_SECONDS + size / 1e6, memory=size + ROOM)


def check_integrity(
    engine: Engine, connection: Any, size: int, *, newer: bool = False, placeholders: Placeholders | None = None
) -> tuple[int, list[Finding]]:
    """Check size, structure and pages of an open database; return the number of its tables, and what else was found.

    :param size: bytes of its file. integrity_check does not notice a page too many, cipher_integrity_check not one
        that is missing.
    :raises UnsoundBackupError: saying what is wrong.
    """
    if engine.db_pass:
        check_pages(connection)
    tables, findings = find_all(
        connection, size, newer=newer, encrypted=engine.db_pass is not None, placeholders=placeholders
    )
    refuse_damaged(findings)
    if not tables:
        raise EmptyBackupError("the database has no tables")
    return tables, findings


def find_all(
    connection: Any,
    size: int | None,
    *,
    encrypted: bool,
    newer: bool = False,
    foreign_keys: bool = True,
    placeholders: Placeholders | None = None,
) -> tuple[int, list[Finding]]:
    """Look at size, structure and content of an open database; return the number of its tables, and what was found.

    :param size: bytes of its file; None while somebody may write to it.
    :returns: no tables when it is damaged.
    """
    connection.execute("PRAGMA writable_schema = ON")  # else nothing can be asked where the schema cannot be read
    # With less, the same pages are read, decrypted and checked again and again; more is no faster.
    kilobytes = 65536 if size is None else max(8192, size // 4000 if encrypted else min(size // 8192, 65536))
    connection.execute(f"PRAGMA cache_size = -{kilobytes}")
    # int: SQLCipher returns its page size as text
    pages, page_size = (int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "page_size"))
    connection.execute("PRAGMA writable_schema = RESET")
    if size is not None and pages * page_size != size:
        missing = (pages * page_size - size) / page_size
        what = missing_pages_text(missing) if missing > 0 else f"it is {plural(-missing, 'page')} too long"
        return 0, [Finding(STRUCTURE, what)]
    findings = find(connection, newer=newer, content=foreign_keys, placeholders=placeholders)
    if is_damaged(findings):
        return 0, findings
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()
    return tables, findings


def may_be_newer(engine: Engine, path: Path) -> bool:
    """Whether a newer SQLite than ours may have written a database, see :func:`written_by_newer`."""
    with open_regular(path) as file:
        return engine.db_pass is not None or written_by_newer(file.read(100))


def written_by_newer(header: bytes) -> bool:
    """Whether a plain database was last written by a newer SQLite than the one that looks at it.

    SQLite file format, sections 1.3.5 and 1.3.16: the version counts when both counters agree.
    """
    from apsw import SQLITE_VERSION_NUMBER

    valid = header[24:28] == header[92:96]
    return valid and int.from_bytes(header[96:100]) > SQLITE_VERSION_NUMBER


def missing_pages_text(number: float) -> str:
    return f"{plural(number, 'page')} {'is' if number == 1 else 'are'} missing"


def check_pages(connection: Any) -> None:
    """Check the authentication code of every page of a SQLCipher database, free pages included."""
    problems = [str(row[0]) for row in connection.execute("PRAGMA cipher_integrity_check")]
    if problems:
        raise DamagedDatabaseError(f"the database is corrupted: {problems[0]}")
