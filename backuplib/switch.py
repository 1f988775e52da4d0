"""Renames by which the new database takes the place of the old one, and back."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from backuplib.database import SIDECARS, sidecars
from backuplib.errors import InUseError, UnreadableError
from backuplib.files import NO_HARD_LINKS, copy_durably, drop, fsync_folder
from backuplib.formatting import quoted

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from backuplib.database import Engine
    from backuplib.journal import Journal


def fold(engine: Engine, database: Path) -> sqlite3.Connection:
    """Bring a database to rest: all it has committed in the main file, sidecars empty; keep others out.

    The connection that is returned holds the lock; close it after the file has lost its name.

    :raises InUseError: when somebody has it open.
    :raises UnreadableError: when it cannot be opened.
    """
    try:
        connection = engine.connect(database, mode="rw", timeout=2)
    except engine.errors as error:
        raise UnreadableError(str(error)) from None
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # else an idle reader goes unnoticed
            left = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if left != (0, 0, 0):
                raise InUseError(f"the WAL of {database} cannot be emptied: another process reads it")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
        else:
            connection.execute("BEGIN EXCLUSIVE")
        for sidecar in sidecars(database):
            if not sidecar.name.endswith("-shm") and sidecar.stat().st_size:
                raise UnreadableError(f"{sidecar.name} still holds data")
    except engine.errors as error:
        connection.close()
        if "locked" in str(error) or "busy" in str(error):
            raise InUseError(
                f"{database} is locked by another process", hint=f"Find it: fuser -v {quoted(database)}"
            ) from None
        raise UnreadableError(str(error)) from None
    except BaseException:
        connection.close()
        raise
    return connection


def link_aside(database: Path, name: Path, *, folded: bool) -> None:
    """Give a database a second name, by link where the filesystem has links; with its sidecars unless it is folded.

    Nothing is read, since an unreadable one may lie on a broken disk. The main file comes last, as the sign of a whole.
    """
    beside = [] if folded else [path for path in sidecars(database) if not path.name.endswith("-shm")]
    for path in [*beside, database]:
        if path.exists():
            second = name.with_name(name.name + path.name[len(database.name) :])
            try:
                os.link(path, second, follow_symlinks=False)
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                copy_durably(path, second)
    fsync_folder(database.parent)


def remove_sidecars(database: Path) -> None:
    """Remove a database's sidecars, durably."""
    for path in sidecars(database):
        path.unlink()
    fsync_folder(database.parent)


def put_back(engine: Engine, journal: Journal) -> None:
    """Make the old database live again, by renames only; may be cut off anywhere and called again.

    Nobody may have the database open.
    """
    target, set_aside = journal.target, journal.set_aside
    if journal.new_is_live:
        with contextlib.suppress(UnreadableError):
            fold(engine, target).close()
        remove_sidecars(target)
        if journal.existed:
            os.rename(set_aside, target)
        else:
            target.unlink()
        fsync_folder(target.parent)
    for suffix in SIDECARS:  # they were set aside with it if the old database could not be read
        copy = set_aside.with_name(set_aside.name + suffix)
        if copy.exists():
            live = target.with_name(target.name + suffix)
            copy.unlink() if live.exists() else copy.rename(live)
    drop(journal.set_aside, journal.candidate)


class Undo:
    """What takes back the steps of the switch; registered before each step, run last in, first out."""

    def __init__(self) -> None:
        self._actions: list[Callable[[], None]] = []
        self.swapping = False

    def add(self, action: Callable[[], None]) -> None:
        """Register what takes back the step that comes now."""
        self._actions.append(action)

    def run(self) -> None:
        """Take the steps back; the first action that fails ends it."""
        while self._actions:
            self._actions.pop()()
