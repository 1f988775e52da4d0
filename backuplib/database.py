"""SQLite and SQLCipher databases: their files, how they are opened, and whether they are sound."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from backuplib.errors import DamagedDatabaseError, EmptyBackupError, UnsoundBackupError, UnsuitableTargetError
from backuplib.formatting import plural
from backuplib.secret import Secret

if TYPE_CHECKING:
    import sqlite3

SIDECARS = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database; the -wal and -journal hold data of it, the -shm does not."""


SQLITE_MAGIC = b"SQLite format 3\0"


SMALLEST_PAGE = 512
"""Bytes of the smallest SQLite database."""


def sidecars(database: Path) -> list[Path]:
    """Return the sidecars of a database that exist."""
    return [path for path in (database.with_name(database.name + suffix) for suffix in SIDECARS) if path.exists()]


def database_files(database: Path) -> list[Path]:
    """Return the database and its sidecars, those that exist."""
    return [path for path in [database, *sidecars(database)] if path.exists()]


def refuse_irregular(files: list[Path]) -> None:
    """Refuse what SQLite would open beside a database and wait for: a named pipe that somebody planted.

    :raises UnsuitableTargetError: naming the file.
    """
    for path in files:
        if not path.is_file():
            raise UnsuitableTargetError(
                f"{path} is not a regular file", hint=f"See who made it, then remove it: ls -l {path}"
            )


RAW_KEY = re.compile(r"x'(?:[0-9a-f]{64}|[0-9a-f]{96})'", re.IGNORECASE)
"""A SQLCipher passphrase of this form is the key itself, with or without a salt."""


DERIVATIONS = {4: ("sha512", 256_000), 3: ("sha1", 64_000), 2: ("sha1", 4_000), 1: ("sha1", 4_000)}
"""How each version of SQLCipher derives a key from a passphrase: PBKDF2 with HMAC of this hash, so many rounds."""


def raw_key(passphrase: Secret, salt: bytes, digest: str, rounds: int) -> str:
    """Return the key that a passphrase gives with a salt, as `PRAGMA key` takes it."""
    key = hashlib.pbkdf2_hmac(digest, passphrase.reveal_bytes(), salt, rounds, 32)
    return f"\"x'{key.hex()}{salt.hex()}'\""


def quoted_passphrase(passphrase: Secret) -> str:
    """Return a passphrase as `PRAGMA key` takes it, which takes no bound parameter."""
    return "'" + passphrase.reveal().replace("'", "''") + "'"


def quoted_identifier(name: str) -> str:
    """Return the name of a table or column as it stands in SQL."""
    return '"' + name.replace('"', '""') + '"'


class Engine:
    """Opens databases: SQLite, or SQLCipher when there is a passphrase."""

    def __init__(self, db_pass: Secret | None) -> None:
        self.db_pass = db_pass
        self._keys: dict[bytes, str] = {}

    @property
    def name(self) -> str:
        """Name for people."""
        return "SQLCipher" if self.db_pass else "SQLite"

    @property
    def _module(self) -> Any:
        if self.db_pass:
            import sqlcipher3.dbapi2 as module
        else:
            import sqlite3 as module
        return module

    @property
    def errors(self) -> tuple[type[Exception], type[UnicodeDecodeError]]:
        """The exceptions of this engine; those of sqlite3 and sqlcipher3 are not related.

        Damage in a schema can be quoted in the engine's message, which then is no UTF-8.
        """
        return (self._module.Error, UnicodeDecodeError)

    def connect(
        self,
        path: Path | str,
        *,
        mode: str = "rw",
        immutable: bool = False,
        timeout: float = 5.0,
        key_of: Path | None = None,
    ) -> sqlite3.Connection:
        """Open a database.

        :param mode: "ro" or "rw"; the file must exist.
        :param immutable: promise that nobody changes it: no lock, no sidecar, and existing ones are not read.
        :param timeout: seconds to wait for a lock.
        :param key_of: an existing database whose key and salt a new SQLCipher database shall have.
        """
        uri = "file:" + quote(os.fsencode(path)) + f"?mode={mode}" + ("&immutable=1" if immutable else "")
        connection: sqlite3.Connection = self._module.connect(
            uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
        )
        try:
            if self.db_pass:
                connection.execute("PRAGMA cipher_log_level=NONE")
                connection.execute(f"PRAGMA key = {self._key(Path(key_of or path), self.db_pass)}")
            distrust_schema(self._module, connection)
            connection.execute("PRAGMA temp_store=MEMORY")  # sorting would write rows into files in /var/tmp
        except BaseException:
            connection.close()
            raise
        return connection

    def _key(self, path: Path, db_pass: Secret) -> str:
        """Return the value for `PRAGMA key`, which takes no bound parameter.

        Each opening by passphrase costs SQLCipher 4 a derivation of 0.15 s (PBKDF2, HMAC-SHA-512, 256,000 rounds, salt
        in the first 16 bytes of the file), some of them while the bot is down. So it is done once; raw keys are given.
        """
        with io.FileIO(path) as file:
            salt = file.read(16)
        # no salt in a file that is empty; and what looks like a raw key is taken as one by SQLCipher
        if len(salt) < 16 or RAW_KEY.fullmatch(db_pass.reveal()):
            return quoted_passphrase(db_pass)
        if salt not in self._keys:
            self._keys[salt] = raw_key(db_pass, salt, *DERIVATIONS[4])
        return self._keys[salt]

    def connect_reader(self, path: Path) -> sqlite3.Connection:
        """Open a database that others may be using, to read it and leave no trace.

        Read-only where a WAL or journal holds data, since closing would fold or roll that into the database; else
        read-write, since closing a read-only connection would leave empty sidecars behind.
        """
        beside = (path.with_name(path.name + suffix) for suffix in ("-wal", "-journal"))
        mode = "ro" if any(sidecar.exists() for sidecar in beside) else "rw"
        return self.connect(path, mode=mode, timeout=30)


def distrust_schema(module: Any, connection: sqlite3.Connection) -> None:
    """Take from a hostile schema what it could do when it is read; cells are checked before they are used.

    SQLite 3.38 to 3.40 hold their own functions for JSON to be unsafe, and so sound databases to be damaged: there the
    functions that are unsafe are refused by name.
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
    with contextlib.closing(module.connect(":memory:")) as connection:
        rows = connection.execute("SELECT name FROM pragma_function_list WHERE NOT flags & ?", (innocuous,))
        return frozenset(name for (name,) in rows)


def check_database(engine: Engine, path: Path) -> str:
    """Check a database file that nobody else has open, and say what was found.

    :raises UnsoundBackupError: when it is not a sound database of the engine.
    """
    try:
        with contextlib.closing(engine.connect(path, mode="ro", immutable=True)) as connection:
            tables = check_integrity(engine, connection, path.stat().st_size)
    except engine.errors as error:
        raise UnsoundBackupError(f"not a sound {engine.name} database: {error}") from None
    return f"database ok, {plural(tables, 'table')}"


def check_integrity(engine: Engine, connection: sqlite3.Connection, size: int | None) -> int:
    """Check an open database wholly and return the number of its tables.

    :param size: bytes of its file, when that is known and nobody writes to it: integrity_check does not notice a
        page too many, and cipher_integrity_check does not notice one that is missing.
    :raises UnsoundBackupError: saying what is wrong with it.
    """
    tables = check_structure(engine, connection, size)
    if engine.db_pass and size is not None:
        check_pages(connection)
    return tables


def check_structure(engine: Engine, connection: sqlite3.Connection, size: int | None) -> int:
    """Check size and structure of an open database and return the number of its tables.

    :raises UnsoundBackupError: saying what is wrong with it.
    """
    # With the default cache of 8 MB, pages are decrypted and their cells checked again and again. What SQLCipher has
    # decrypted once had better stay.
    kilobytes = 65536 if size is None else max(8192, size // 900 if engine.db_pass else min(size // 8192, 65536))
    connection.execute(f"PRAGMA cache_size = -{kilobytes}")
    tables: int = connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]
    # int: SQLCipher gives its page size as text
    pages, page_size = (int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "page_size"))
    if size is not None and pages * page_size != size:
        missing = (pages * page_size - size) / page_size
        what = missing_pages_text(missing) if missing > 0 else f"it is {plural(-missing, 'page')} too long"
        raise DamagedDatabaseError(f"the database is incomplete: {what}")
    problems = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
    if problems != ["ok"]:
        raise DamagedDatabaseError(f"the database is damaged: {problems[0]}")
    if not tables:
        raise EmptyBackupError("the database holds no table: it is empty")
    return tables


def missing_pages_text(number: float) -> str:
    """Say how many pages are missing."""
    return f"{plural(number, 'page')} {'is' if number == 1 else 'are'} missing"


def check_pages(connection: sqlite3.Connection) -> None:
    """Check the authentication code of each page of a SQLCipher database, of those that hold nothing as well.

    :raises UnsoundBackupError: saying which is wrong.
    """
    problems = [str(row[0]) for row in connection.execute("PRAGMA cipher_integrity_check")]
    if problems:
        raise DamagedDatabaseError(f"the database is damaged: {problems[0]}")
