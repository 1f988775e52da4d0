"""Backup files: their names, checksums and outermost layer."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import re
import stat
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from backuplib.database import SQLITE_MAGIC
from backuplib.errors import CHECK_DISK, DecryptionError, RefusedError, another_backup, restore_command
from backuplib.files import CHUNK, file_sha256, open_regular
from backuplib.formatting import megabytes, quoted, shown
from backuplib.gzip_stream import GZIP_MAGIC
from backuplib.openpgp import _openpgp_packet
from backuplib.ram_folder import available_memory

if TYPE_CHECKING:
    from collections.abc import Callable

SQL_BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:--|/\*|(?i:BEGIN|CREATE|INSERT|PRAGMA)\b)")


def outer_layer(head: bytes, name: str, size: int) -> str:
    """Tell from its first bytes what a backup file is: "openpgp", "gzip" or "database".

    SQLCipher databases look like noise, so whatever is not known counts as a database, unless it is named .gpg. So do
    SQL dumps, whatever their name. But noise may look like an OpenPGP message, one in 650 does: what has whole pages
    (4096 bytes is SQLCipher's default, 1024 was until version 3) counts as one only if a public key can open it.

    :param size: of the file, in bytes.
    :raises DecryptionError: when the name says encrypted and the content does not.
    """
    like_database = size % 1024 == 0 and not name.endswith(".gpg")
    if head.startswith(b"-----BEGIN PGP") or _openpgp_packet(head, sure=like_database):
        return "openpgp"
    if head.startswith(GZIP_MAGIC + b"\x08"):
        return "gzip"
    if name.endswith(".gpg") and not head.startswith(SQLITE_MAGIC) and not SQL_BEGINS.match(head):
        what = "is empty" if not head else "does not begin like an OpenPGP message: it is damaged, or another file"
        raise DecryptionError(f"{name} {what}", hint=f"Take another copy of it. {another_backup()}")
    return "database"


BACKUP_NAME = re.compile(r"db_backup_(\d{8}_\d{6})(\.raw\.tar|\.db)(\.gz)?(\.gpg)?")
"""Names of backups; a .raw.tar holds the files of a database that could not be read."""


@dataclass(frozen=True)
class BackupInfo:
    """A backup in the backup folder."""

    path: Path
    created: datetime
    size: int
    encrypted: bool

    def checksum_state(self, until: float = math.inf, progress: Callable[[int], object] = lambda _: None) -> str:
        """Return "ok", "MISMATCH", "none" or "unreadable", after reading the whole file; else "not read".

        :param until: a time of the monotonic clock at which reading ends.
        :param progress: is told the size of each piece that was read.
        """
        digest = hashlib.sha256()
        try:
            expected = recorded_checksum(self.path)
            if expected is None:
                return "none"
            with io.FileIO(self.path) as file:
                while piece := file.read(CHUNK):
                    if time.monotonic() > until:
                        return "not read"
                    digest.update(piece)
                    progress(len(piece))
        except (OSError, RefusedError):
            return "unreadable"
        return "ok" if digest.hexdigest() == expected else "MISMATCH"


def backup_time(path: Path) -> datetime:
    """Return when a backup was made: what its name says, else when the file was changed."""
    match = BACKUP_NAME.fullmatch(path.name)
    with contextlib.suppress(ValueError):
        if match:
            return datetime.strptime(match[1], "%Y%m%d_%H%M%S").astimezone()
    return datetime.fromtimestamp(path.stat().st_mtime).astimezone()


def checksum_path(backup: Path) -> Path:
    """Return the path of a backup's checksum file."""
    return backup.with_name(backup.name + ".sha256")


def recorded_checksum(backup: Path) -> str | None:
    """Return the SHA-256 that stands beside a backup, or None when there is none.

    :raises RefusedError: when the checksum file is there and cannot be understood.
    """
    path = checksum_path(backup)
    try:
        with open_regular(path) as file:
            text = file.read(CHUNK).decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RefusedError(f"cannot read {path}: {error.strerror}", hint=f"Look: ls -l {quoted(path)}") from None
    match = re.match(r"\\?([0-9a-fA-F]{64})\b", text)
    if not match:
        raise RefusedError(
            f"{path} is not a checksum of sha256sum", hint=f"If you trust the backup without it, move it away: {path}"
        )
    return match[1].lower()


def check_checksum(backup: Path, file: io.FileIO) -> str:
    """Compare a backup with the checksum beside it and say what was found.

    :raises RefusedError: when it does not match.
    """
    expected = recorded_checksum(backup)
    if expected is None:
        return "no checksum beside it"
    if file_sha256(file) != expected:
        raise RefusedError(
            f"{backup.name} does not match its checksum: the file was damaged or exchanged",
            hint=f"Copy it again from where it was made, or use another backup. To see: sha256sum {quoted(backup)}",
        )
    return "checksum ok"


class BackupFile:
    """The backup, opened once and hashed while it is read: what is checked is what is decrypted.

    :param limit: bytes that it may have.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise RefusedError(
                f"cannot read the backup {path}: {error.strerror}",
                hint=f"See what is there: {restore_command('--list')}",
            ) from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RefusedError(f"{path} is not a file", hint=f"See what is there: {restore_command('--list')}")
        self._file = io.FileIO(descriptor)
        self.size = os.fstat(descriptor).st_size
        if self.size > limit:
            raise too_little_memory(self.size, limit)
        self.created = backup_time(path)
        self.layer = outer_layer(os.pread(descriptor, 64, 0), path.name, self.size)
        self.progress: Callable[[int], object] = lambda _: None
        self.expected = recorded_checksum(path)
        """SHA-256 that the file must have, if that is known: from beside it, or from when it was read before."""
        self._unsaid = self.expected is not None
        self.rewind()

    def rewind(self) -> None:
        """Go to the beginning."""
        self._file.seek(0)
        self._digest = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        """Read on; empty at the end."""
        try:
            data = self._file.read(size)
        except OSError as error:
            raise RefusedError(f"cannot read the backup {self.path}: {error.strerror}", hint=CHECK_DISK) from None
        self._digest.update(data)
        self.progress(self._file.tell())
        return data

    def verify(self) -> bool:
        """Read to the end, and compare all that was read since the beginning with the checksum.

        :returns: whether that is news: there is a checksum, and nothing was compared with it before.
        :raises RefusedError: when it does not match.
        """
        while self.read(CHUNK):
            pass
        digest = self._digest.hexdigest()
        if self.expected not in (None, digest):
            raise RefusedError(
                f"{self.path.name} does not match its checksum: the file is damaged or was exchanged",
                hint="Copy it again from where it was made, or use another backup. "
                f"See: sha256sum {quoted(shown(self.path))}",
            )
        self.expected, news, self._unsaid = digest, self._unsaid, False
        return news

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def too_little_memory(size: int, limit: int) -> RefusedError:
    """Return the error for a backup that alone has more bytes than a database may have here."""
    return RefusedError(
        f"the backup alone has {megabytes(size)}, and the database in it may have {megabytes(limit)}: it is in memory "
        f"twice, and {megabytes(available_memory())} are free",
        hint="End other programs, or use a machine with more memory; MAX_DATABASE_MB in .env can be a limit, too.",
    )
