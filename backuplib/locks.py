"""SQLite's locks on the files of a database: one of our own, and who holds those that keep us out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from backuplib.files import open_regular, stat_or_none
from backuplib.processes import command_of, find_holders, lock_pids

LOCK_SECONDS = 60.0  # how long a lock of somebody's is waited for
TRY_SECONDS = 0.2  # of that, SQLite waits so long at a time: it lets no signal through

# What both engines say while somebody else holds a lock; compared as a whole, since other messages quote a schema.
LOCKED = ("database is locked", "database table is locked", "locking protocol")

# The bytes of a database that SQLite locks, PENDING, RESERVED and SHARED (os_unix.c): they are one range.
_FIRST_BYTE, _BYTES = 0x40000000, 512


def is_locked(error: Exception) -> bool:
    """Whether a database could not be read because somebody else holds a lock on it."""
    return str(error) in LOCKED


@contextlib.contextmanager
def locked(database: Path, *, exclusive: bool = False) -> Iterator[bool]:
    """Keep the files of a database as they are, by SQLite's own locks; False when somebody's lock is in the way.

    Shared, nobody writes in rollback mode or rolls a journal back; SQLite itself gives no such lock on a database whose
    journal is hot, unless it may roll it back. Exclusive, nobody does in WAL mode either: who has it open then holds a
    lock all the time.

    The locks are not this process's, but this open file's: the process's are lost when anything here closes the file.
    """
    kind, mode = (fcntl.F_WRLCK, os.O_RDWR) if exclusive else (fcntl.F_RDLCK, os.O_RDONLY)
    with open_regular(database, mode) as file:
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, _FIRST_BYTE, _BYTES, 0))
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True


def lock_holders(paths: Sequence[Path]) -> str:
    """Say which processes keep others out of the files, as far as that is known."""
    pids = lock_pids("WRITE", *filter(None, map(stat_or_none, paths)))
    if names := [f"{command_of(Path(f'/proc/{pid}'))} (pid {pid})" for pid in sorted({*pids})]:
        return ", ".join(names)
    users = ", ".join(map(str, find_holders(paths)[0]))
    return f"another process; those that have it open: {users}" if users else "another process"
