# ruff: noqa: N802, ARG002 - names and arguments are those of SQLite
"""A read-only file system of SQLite whose one file is a buffer: a database is checked where it lies in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import apsw

from backuplib.database import newest_connection
from backuplib.storage import JOURNAL_BYTES

_NAME = "buffer"


class _File:
    """The file; see sqlite3_io_methods for its methods."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def xRead(self, amount: int, offset: int) -> bytes | memoryview:
        piece = self._view[offset : offset + amount]
        if offset or amount < JOURNAL_BYTES.stop:
            return piece
        # A database with the WAL flag needs a -wal and a -shm: it is not set in what SQLite reads.
        flags = bytes(piece[JOURNAL_BYTES]).replace(b"\2", b"\1")
        return bytes(piece[: JOURNAL_BYTES.start]) + flags + bytes(piece[JOURNAL_BYTES.stop :])

    def xFileSize(self) -> int:
        return len(self._view)

    def xLock(self, level: int) -> None:
        pass

    def xUnlock(self, level: int) -> None:
        pass

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, operation: int, pointer: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return 4096

    def xDeviceCharacteristics(self) -> int:
        return 0

    def xClose(self) -> None:
        pass


class _FileSystem(apsw.VFS):
    def __init__(self, view: memoryview) -> None:
        self._view = view
        super().__init__(_NAME, base="")

    def xOpen(self, name: object, flags: list[int]) -> _File:  # type: ignore[override]  # it has what SQLite calls
        flags[1] = flags[0]
        return _File(self._view)

    def xAccess(self, pathname: str, flags: int) -> bool:
        return False

    def xFullPathname(self, name: str) -> str:
        return name


@contextlib.contextmanager
def opened_buffer(view: memoryview) -> Iterator[Any]:
    """Open the database in a buffer; not as read-only, since SQLite does not look at CHECK constraints then."""
    system = _FileSystem(view)
    try:
        with contextlib.closing(newest_connection(f"file:database?vfs={_NAME}")) as connection:
            connection.execute("PRAGMA query_only=ON")
            yield connection
    finally:
        system.unregister()
