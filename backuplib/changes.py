"""Whether a database was written to since its last backup, told without reading it: by what the kernel notes of files.

Noted of a backup is the state that the database's files had before they were copied: device, inode, size, and the times
of the last write and of the last change, which no program can set back. SQLite writes each commit into one of them. As
root it gives -wal and -journal their owner whenever it opens them, to read, too, which changes that last time: of these
a hash of the content is noted in its place. The database itself is not opened: that would end locks of SQLite's which
this process holds.

What is in doubt counts as a write: a state so young that the clock's grain would hide the next write, a filesystem that
other machines write to, a backup or checksum file that is not as it was left, another public key, a signature that is
not the one that the next backup would have. So does what writes nothing new, such as a WAL that is folded into the
database when the bot stops.

Noted is also which remotes have that backup, so that one that lacks it gets it although nothing was written.

The note is in the home of the user, out of the bot's reach, and believed only as that user's or root's: whoever could
write it could make backups stop unseen. Where it is not found, there is just one more backup.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backuplib.backup_file import BACKUP_NAME, checksum_path
from backuplib.files import CHUNK, filesystem_type, is_believable, open_regular, replacing, write_all
from backuplib.folder import anchored, resolved

NAME = "restore-backup/last-backups.json"  # in the user's folder for such things
MOST_NOTED = 50  # databases with their backup folders

STEP_NS = 20_000_000  # in which the times of files advance, and more
WHOLE_STEP_NS = 2_000_000_000  # the same where they have whole seconds
MOST_HASHED = 256 * CHUNK  # bytes of a -wal; SQLite folds it after 4 MB
LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "reiserfs", "tmpfs", "xfs", "zfs"}

State = list[list[int | str]]  # of the database, its -wal and its -journal; empty where there is none
TIME = 3  # where in each is the time of the last write


@dataclass(frozen=True)
class Changes:
    """What is known of the last backup of a database.

    :param how: what else a backup depends on, such as the public key, and whose signature it has.
    """

    database: Path
    backup_dir: Path
    how: bytes

    def unchanged_since(self) -> Path | None:
        """Return the last backup, when another one would be the same; None when there is any doubt."""
        return self.unwritten_since() if self._said().get("how") == self._hashed_how else None

    def unwritten_since(self) -> Path | None:
        """Return the last backup, when nothing was written since, however it was made; None when there is any doubt."""
        if not BACKUP_NAME.fullmatch(str((said := self._said()).get("name"))):
            return None
        backup = self.backup_dir / str(said["name"])
        now = self._note(backup, self._state_now())
        return backup if now and {key: said.get(key) for key in now} == now | {"how": said.get("how")} else None

    def is_pushed_to(self, places: Sequence[str]) -> bool:
        """Whether it was noted of each of these places that it has the last backup."""
        pushed = self._said().get("pushed")
        return all(isinstance(pushed, list) and place in pushed for place in places)

    def state(self) -> State | None:
        """Return the state of the database's files; None when it would not tell a write that comes now.

        To be taken before they are copied. After a write just now it waits for the next step of the clock.
        """
        for _ in range(2):
            state = self._state_now()
            if state is None:
                return None
            moments = [moment for file in state for moment in file[TIME:] if isinstance(moment, int)]
            whole_seconds = not any(moment % 1_000_000_000 for moment in moments)  # as old filesystems note them
            if time.time_ns() - max(moments) > (step := WHOLE_STEP_NS if whole_seconds else STEP_NS):
                return state
            time.sleep(2 * step / 1e9)
        return None

    def _state_now(self) -> State | None:
        try:
            hashed = [_hashed(self._path.with_name(self._path.name + suffix)) for suffix in ("-wal", "-journal")]
            state = [_state_of(self._path), *hashed]
        except OSError:  # it is planted, too large, or just being removed
            return None
        return state if state[0] and filesystem_type(self._path) in LOCAL else None

    def note(self, backup: Path, state: State | None) -> None:
        """Note of what state of the database a backup is; OSError when that cannot be written."""
        self._write(self._note(backup, state))

    def note_pushed(self, backup: Path, places: Sequence[str]) -> None:
        """Note that these places have a backup, if it is the last one; OSError when that cannot be written."""
        said = self._said()
        if said.get("name") == backup.name:
            self._write(said | {"pushed": [*places]})

    def _said(self) -> dict[str, Any]:
        """Return what is noted of the last backup; nothing when that cannot be told."""
        try:
            said = _read(_notes()).get(self._key)
        except OSError:  # its folder cannot be opened: that is told when it is backed up
            return {}
        return said if isinstance(said, dict) else {}

    def _write(self, note: dict[str, Any] | None) -> None:
        path = _notes()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = _read(path)
        known.pop(self._key, None)
        kept = dict(list(known.items())[-(MOST_NOTED - 1) :])
        with replacing(path, ".tmp") as file:
            write_all(file, json.dumps(kept | {self._key: note}, indent=1).encode())

    @functools.cached_property
    def _path(self) -> Path:
        """The database in its folder, which is opened once; OSError when that cannot be."""
        return resolved(anchored(self.database, mounted=False), mounted=False)

    @property
    def _key(self) -> str:
        """One database may have several backup folders, each with its last backup."""
        return f"{self._path} {os.path.realpath(str(self.backup_dir))}"  # its name, wherever it is reached

    def _note(self, backup: Path, state: State | None) -> dict[str, Any] | None:
        """Return what is noted; None: nothing that could be compared."""
        file, beside = _state_of(backup), _state_of(checksum_path(backup))
        if not (state and file and beside):
            return None
        said = {"name": backup.name, "backup": file, "beside": beside, "database": state}
        return said | {"how": self._hashed_how}

    @property
    def _hashed_how(self) -> str:
        return hashlib.sha256(self.how).hexdigest()


def _notes() -> Path:
    """Return the file with the notes: where the XDG base directories have the state of programs."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return Path(state if os.path.isabs(state) else os.path.expanduser("~/.local/state")) / NAME


def _state_of(path: Path) -> list[int | str]:
    """Return what changes with each write to a file, its exchange and its removal; empty when it does not exist."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return []
    return [*_identity(status), status.st_ctime_ns]


def _hashed(path: Path) -> list[int | str]:
    """Return the same of a sidecar, with a hash of its content; OSError when it has too much of that."""
    try:
        with open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
            status, content = os.fstat(file.fileno()), hashlib.sha256()
            if status.st_size > MOST_HASHED:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
            for piece in iter(lambda: file.read(CHUNK), b""):
                content.update(piece)
    except FileNotFoundError:
        return []
    return [*_identity(status), content.hexdigest()]


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> dict[str, Any]:
    """Return what is noted, by database; nothing when that cannot be read, or is not to be believed."""
    try:
        with open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
            data = json.loads(file.read(CHUNK)) if is_believable(file.fileno()) else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
