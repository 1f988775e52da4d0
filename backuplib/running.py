"""One restore of a database at a time: which one is running, and what it does or waits for, is told by its lock file.

The file lies beside the database, where others can write: nothing in it is believed but one of a few words.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from backuplib.errors import CannotWriteError, LockedError, writing_hint
from backuplib.files import create_file, drop_quietly, flock, open_regular
from backuplib.formatting import instant, printable, quoted
from backuplib.processes import command_of, lock_pids

AT_WORK, SWITCHING, RECOVERING = "at work", "switching", "recovering"
KEY, PASSPHRASE, DB_PASS = "the private key", "the passphrase", "DB_PASS"
ANSWER, CONFIRMATION = "an answer", "the confirmation"

_WAITING = "waiting for "
_WAITED_FOR = (KEY, PASSPHRASE, DB_PASS, ANSWER, CONFIRMATION)
_DOING = {AT_WORK, SWITCHING, RECOVERING, *(_WAITING + what for what in _WAITED_FOR)}
_WIDTH = 40  # of the word in the file, so that one write replaces the one before

_MOMENT, _TRY = 1.0, 0.05  # seconds that somebody may hold the lock who only looks; so often it is tried


class Turn:
    """What a restore tells others while it runs; without a file, nobody."""

    def __init__(self, file: io.FileIO | None = None) -> None:
        self._file = file

    def say(self, doing: str) -> None:
        """Tell what is being done from now on."""
        with contextlib.suppress(OSError):  # a full disk: it is still running
            if self._file:
                os.pwrite(self._file.fileno(), f"{doing:<{_WIDTH}}\n".encode(), 0)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Tell that a person is waited for."""
        self.say(_WAITING + what)
        try:
            yield
        finally:
            self.say(AT_WORK)


@contextlib.contextmanager
def taking_turn(path: Path) -> Iterator[Turn]:
    """Hold the lock file of a database, so that no other restore or recovery of it begins; it is gone afterwards.

    What is left of it by a run that was killed is in nobody's way.

    :raises LockedError: when another restore runs, saying what it is doing.
    :raises CannotWriteError: when it cannot be made.
    """
    try:
        file = _taken(path)
    except OSError as error:
        raise CannotWriteError(
            f"cannot make {path}: {error.strerror}",
            hint=writing_hint(
                error, path.parent, f"Check: ls -ld {quoted(path.parent)} {quoted(path)}; df -h {quoted(path.parent)}"
            ),
        ) from None
    try:
        turn = Turn(file)
        turn.say(AT_WORK)
        yield turn
    finally:
        drop_quietly(path)
        file.close()


def _taken(path: Path) -> io.FileIO:
    """Return the lock file, made anew and locked: what others may have put there is never written to."""
    until = time.monotonic() + _MOMENT
    while True:
        with contextlib.suppress(FileExistsError):
            file = create_file(path)
            try:
                if flock(file.fileno(), fcntl.LOCK_EX) and os.fstat(file.fileno()).st_nlink:
                    return file
            except OSError:
                drop_quietly(path)
                raise
            file.close()  # somebody took it for a leftover before it was locked
            continue
        if not _left_over(path):
            if time.monotonic() > until:
                runs = running(path) or "by a process that is not visible from here"
                raise LockedError(
                    f"another restore of this database is running: {runs}",
                    hint="Wait for it to end, or end it in its own terminal (Ctrl-C).",
                )
            time.sleep(_TRY)


def _left_over(path: Path) -> bool:
    """Remove a lock file that nobody holds; False when somebody does."""
    try:
        with open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as left:
            if not flock(left.fileno(), fcntl.LOCK_EX):
                return False
            if os.path.samestat(os.fstat(left.fileno()), path.lstat()):
                path.unlink()
    except FileNotFoundError:
        pass
    return True


@dataclass(frozen=True)
class Running:
    """A restore that runs; of what is not known, ``doing`` is empty and ``since`` None.

    ``pid`` is 0 when it is not visible from here.
    """

    pid: int
    command: str
    doing: str
    since: datetime | None
    suspended: bool

    @property
    def who(self) -> str:
        """Which process it is, for people."""
        return f"{printable(self.command)} (pid {self.pid})" if self.pid else "a process that is not visible from here"

    @property
    def state(self) -> str:
        """What it does, or waits for, for people."""
        if self.suspended:
            return f"suspended: fg in its terminal, or kill -CONT {self.pid}"
        return (self.doing or "running") + (f" since {instant(self.since)}" if self.since else "")

    def __str__(self) -> str:
        return f"{self.who}, {self.state}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as --json shows it; null is what is not known."""
        since = self.since.isoformat(timespec="seconds") if self.since else None
        return {"pid": self.pid or None, "doing": self.doing or None, "suspended": self.suspended, "since": since}


def running(path: Path) -> Running | None:
    """Return the restore that holds a lock file, None when none does: the kernel tells, not the file."""
    try:
        status = path.lstat()
        pid = next(iter(lock_pids("FLOCK", status)), 0)
        if not pid and not _is_held(path):
            return None
    except OSError:
        return None
    process, doing, state = Path(f"/proc/{pid}"), "", ""
    with contextlib.suppress(OSError), open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
        doing = file.read(_WIDTH).decode(errors="replace").strip()
    with contextlib.suppress(OSError):
        state = (process / "stat").read_text(errors="replace").rpartition(") ")[2][:1]
    return Running(
        pid,
        command_of(process),
        doing if doing in _DOING else "",
        _moment(status.st_mtime),
        suspended=state == "T",
    )


def _moment(seconds: float) -> datetime | None:
    """Return the time of a file, to which others may give any; None for what is in no calendar."""
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(seconds).astimezone()
    return None


def _is_held(path: Path) -> bool:
    """Whether somebody holds the lock whom /proc/locks does not show, as those of another PID namespace."""
    with open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
        return not flock(file.fileno(), fcntl.LOCK_SH)
