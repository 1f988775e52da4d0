"""The database to replace, and every name beside it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from backuplib.files import flock, open_folder
from backuplib.processes import lock_owner


@dataclass(frozen=True)
class Candidate:
    """The new database file beside the target, complete, durable and proved; not yet under its name."""

    path: Path
    identity: tuple[int, int, int, int]


def candidate_path(target: Path) -> Path:
    """Return where the new database is written before it takes the target's name."""
    return target.with_name(target.name + ".restore-new")


def set_aside_path(target: Path) -> Path:
    """Return a free name for the old database."""
    while True:
        path = target.with_name(f"{target.name}.backup-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
        if not path.exists():
            return path
        time.sleep(1 - time.time() % 1)


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted on a path, a single file included (os.path.ismount does not see those)."""
    mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return any(_unescape(line.split()[4]) == str(path) for line in mounts)


def _unescape(name: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)


def is_immutable(path: Path) -> bool:
    """Whether the file has the attribute that chattr +i sets."""
    get_flags, immutable = 0x80086601, 0x10  # FS_IOC_GETFLAGS, FS_IMMUTABLE_FL of linux/fs.h
    with contextlib.suppress(OSError), path.open("rb") as file:
        flags = bytearray(8)
        fcntl.ioctl(file, get_flags, flags)
        return bool(int.from_bytes(flags[:4], sys.byteorder) & immutable)
    return False


def restore_at_work(target: Path) -> str:
    """Return which process restores a database at this moment, and since when; empty when none does."""
    with contextlib.suppress(OSError):
        folder = open_folder(target.parent)
        try:
            return "" if flock(folder, fcntl.LOCK_SH) else lock_owner(folder)
        finally:
            os.close(folder)
    return ""
