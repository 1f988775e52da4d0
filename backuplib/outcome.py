"""How the last restore of a database ended, and which database is live since then: a small file of facts.

It lies in the backup folder, one for all databases that share the folder. Whoever may write there can replace it, so
it is believed only as this user's or root's, read strictly, and what is live is looked up.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from backuplib.errors import explain, restore_command
from backuplib.files import CHUNK, is_believable, open_regular, replacing, stat_or_none, write_all
from backuplib.folder import anchored_folder
from backuplib.formatting import aligned, instant, printable, shown
from backuplib.rclone import names_a_backup

NAME = "last-restore.json"
MOST_DATABASES = 20  # that share a backup folder

RESTORED, ROLLED_BACK, RECOVERED = "restored", "rolled back", "recovered"
SERVICES_DOWN, ROLLBACK_FAILED = "services down", "rollback failed"
OUTCOMES = (RESTORED, ROLLED_BACK, RECOVERED, SERVICES_DOWN, ROLLBACK_FAILED)

NEW, OLD, UNKNOWN, REPLACED, MISSING = "new", "old", "unknown", "replaced", "missing"

_MOMENTS, _PATHS = ("ended", "made", "undoes"), ("backup", "safety_backup")

_STATX_BTIME, _AT_FDCWD = 0x800, -100  # linux/stat.h, linux/fcntl.h


class UnknownOutcomeError(Exception):
    """The file is there, and cannot be read or understood."""


@dataclass(frozen=True)
class LastRestore:
    """How the last restore of a database ended that touched something.

    :param ended: when, as ISO 8601 with a zone, as ``made`` (the backup) and ``undoes`` (the restore that was undone).
    :param live: "new", what the backup held, "old", what was there before, or "unknown".
    :param file: what tells the file that was live then from any other; empty when there was none.
    """

    target: str
    ended: str
    outcome: str
    live: str
    backup: str | None = None
    made: str | None = None
    safety_backup: str | None = None
    undoes: str | None = None
    file: Sequence[int] = field(default=())

    @classmethod
    def of(cls, target: Path, folder: Path) -> Self | None:
        """Return what is known of a database; None when no restore of it has touched anything.

        :raises UnknownOutcomeError: when that cannot be read.
        """
        found = _read(folder).get(str(target))
        return cls.checked(found, target) if found is not None else None

    @classmethod
    def checked(cls, values: Any, target: Path) -> Self:
        """Return what the file says of a database; UnknownOutcomeError for anything that was not written here."""
        try:
            last = cls(**values)
            said = asdict(last)
            moments = [datetime.fromisoformat(said[name]) for name in _MOMENTS if said[name] is not None]
            zoned = [moment.tzinfo for moment in moments if instant(moment)]
        except (TypeError, ValueError, OverflowError):
            raise UnknownOutcomeError(f"{NAME} is not what was written there") from None
        paths = [said[name] for name in _PATHS if said[name] is not None]
        right = (
            last.target == str(target)
            and last.outcome in OUTCOMES
            and last.live in (NEW, OLD, UNKNOWN)
            and said["ended"] is not None
            and all(zoned)
            and all(isinstance(path, str) and names_a_backup(path) for path in paths)
            and isinstance(said["file"], list)
            and all(type(number) is int for number in said["file"])
        )
        if not right:
            raise UnknownOutcomeError(f"{NAME} is not what was written there")
        return last

    def write(self, folder: Path) -> None:
        """Write it down durably in the place of what was known of this database; OSError when that is not possible."""
        try:
            known = _read(folder)
        except UnknownOutcomeError:
            known = {}  # whoever changed it, this is a fact
        before = None
        with contextlib.suppress(UnknownOutcomeError):
            if (found := known.pop(self.target, None)) is not None:
                before = self.checked(found, Path(self.target))
        values = asdict(self)
        if before and self.live == before.live == NEW:
            undone = self.backup and before.safety_backup and _same(self.backup, before.safety_backup)
            values["undoes"] = before.ended if undone else None
        kept = dict(list(known.items())[-(MOST_DATABASES - 1) :])
        with replacing(anchored_folder(folder) / NAME, ".tmp") as file:
            write_all(file, json.dumps(kept | {self.target: values}, indent=1).encode())
            os.fchmod(file.fileno(), 0o644)  # it holds no secret, and the shop's user asks, too

    def live_now(self) -> str:
        """Look which database is live at this moment: that of then, unless its file is another one."""
        now = identity(Path(self.target))
        return MISSING if not now else self.live if [*now] == [*self.file] else REPLACED

    def as_dict(self) -> dict[str, Any]:
        """Return it as --json shows it."""
        return {name: value for name, value in asdict(self).items() if name != "file"} | {"live": self.live_now()}

    def lines(self) -> list[str]:
        """Return it for people."""
        target = Path(self.target)
        how = {
            RESTORED: "restored" if not self.undoes else "undone",
            ROLLED_BACK: "failed, rolled back",
            RECOVERED: "interrupted, then recovered"
            + {NEW: ": the NEW database", OLD: ": the OLD one"}.get(self.live, ""),
            SERVICES_DOWN: "the services did not come up",
            ROLLBACK_FAILED: "failed, and so did its rollback",
        }[self.outcome]
        live = {
            NEW: f"the NEW database, from the backup: {shown(target)}"
            if not self.undoes
            else f"the one from before the restore of {_instant(self.undoes)}",
            OLD: f"the OLD database, as before that restore: {shown(target)}",
            UNKNOWN: f"not known. Finish or undo it: {restore_command('--recover')}",
            REPLACED: f"another one: {shown(target)} was replaced after that restore",
            MISSING: f"none: there is no {shown(target)}",
        }[self.live_now()]
        facts = [("backup", shown(Path(self.backup)))] if self.backup else []
        facts += [("made", _instant(self.made))] if self.made else []
        facts += [("live", live)]
        facts += [("kept", shown(Path(self.safety_backup)))] if self.safety_backup else []
        return [
            f"last restore: {_instant(self.ended)}, {how}",
            *(f"   {printable(line)}" for line in aligned(facts)),
        ]


def identity(path: Path) -> tuple[int, ...]:
    """Return what tells a file from any other that is put in its place, whatever is written to it; empty without one.

    The number of its inode, which a later file may get, and when it was made, where the filesystem notes that.
    """
    status = stat_or_none(path)
    return (status.st_ino, _made(path)) if status else ()


def _made(path: Path) -> int:
    """Return when a file was made, in nanoseconds; 0 where that is not known."""
    buffer = ctypes.create_string_buffer(256)  # struct statx
    statx = getattr(ctypes.CDLL(None), "statx", None)
    if not statx or statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME, buffer):
        return 0
    known, seconds, nanoseconds = struct.unpack_from("=I76xqI", buffer)
    return seconds * 10**9 + nanoseconds if known & _STATX_BTIME else 0


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _instant(text: str) -> str:
    return instant(datetime.fromisoformat(text))


def _read(folder: Path) -> dict[str, Any]:
    """Return what the file holds, by target; nothing when there is none.

    :raises UnknownOutcomeError: when it cannot be read or understood.
    """
    path = folder / NAME
    try:
        with open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
            if not is_believable(file.fileno()):
                raise UnknownOutcomeError(f"{path} is not this user's alone, nor root's: it could say anything")
            data = json.loads(file.read(CHUNK))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UnknownOutcomeError(explain(error)) from None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise UnknownOutcomeError(f"{path} is not what was written there")
    return data
