"""Backup files: their names, checksums and outermost layer."""

import calendar
import contextlib
import functools
import hashlib
import math
import os
import re
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from backuplib import errors
from backuplib.armor import PIECE, begins_like_message, leads_to_message, message_in, plain_text
from backuplib.console import Step
from backuplib.database import SQLITE_MAGIC
from backuplib.files import CHUNK, open_regular
from backuplib.folder import resolved
from backuplib.formatting import megabytes, quoted, shown
from backuplib.gzip_stream import GZIP_HEAD
from backuplib.packets import HIDDEN_RECIPIENT, MessagePackets, read_message
from backuplib.ram_folder import available_memory
from backuplib.sparse import is_mostly_holes
from backuplib.storage import begins_plain

HEAD = PIECE  # bytes that tell what a file is


def outer_layer(head: bytes, name: str, size: int) -> str:
    """Tell from its first bytes what a backup file is: "openpgp", "gzip" or "database".

    SQLCipher databases look like noise, so whatever is not known counts as a database, unless it is named so. So do
    SQL dumps, whatever their name. But noise may look like an OpenPGP message, one in 650 does: what has whole pages
    (4096 bytes is SQLCipher's default, 1024 was until version 3) counts as one only if a public key can open it.

    :param size: of the file, in bytes.
    :raises DamagedMessageError: when the name says encrypted and the content does not.
    """
    like_database = size % 1024 == 0 and not name.endswith(ENCRYPTED_NAMES)
    if begins_like_message(head, sure=like_database):
        return "openpgp"
    if head.startswith(GZIP_HEAD):
        return "gzip"
    if not head.startswith(SQLITE_MAGIC):
        from backuplib.sql_dump import looks_like_sql_dump

        if looks_like_sql_dump(head):
            return "database"
        if leads_to_message(head):
            return "openpgp"
        if name.endswith(ENCRYPTED_NAMES):
            what = "is empty" if not head else "does not begin like an OpenPGP message: it is damaged, or another file"
            raise errors.DamagedMessageError(
                f"{name} {what}", hint=f"Copy it again. {errors.choose_another_backup_hint()}"
            )
    return "database"


# Names that this tool gives to backups; a .raw.tar holds the files of a database that could not be read.
BACKUP_NAME = re.compile(r"db_backup_(\d{8}_\d{6})(\.raw\.tar|\.db)(\.gz)?(\.gpg)?")
ENCRYPTED_NAMES = (".gpg", ".pgp", ".asc")
_NAME_WITH_TIME = re.compile(r"db_backup_(\d{8}_\d{6})\.")

LOCAL = "local"  # where a backup is that lies in the backup folder

# Kinds of backups. One made before a restore has a line that says so in its checksum file, where sha256sum skips it.
ORDINARY, BEFORE_A_RESTORE, AS_THEY_WERE, SQL_DUMP = "ordinary", "before a restore", "files as they were", "SQL dump"
_KIND_LINE = re.compile(rf"^# kind: ({BEFORE_A_RESTORE})\r?$", re.MULTILINE)
_SIGNATURE_LINE = re.compile(r"^# signature: ([A-Za-z0-9+/=]{1,4000})\r?$", re.MULTILINE)

# Where clocks differ from UTC, in seconds: no name of a backup is from elsewhere.
_PARTS_OF_HOURS = (-9.5, -3.5, -2.5, 3.5, 4.5, 5.5, 5.75, 6.5, 8.75, 9.5, 10.5, 12.75, 13.75)
_OFFSETS = {int(hours * 3600) for hours in (*range(-12, 15), *_PARTS_OF_HOURS)}

# Seconds from the time in its name to that of its file: the bot takes the name first, and then writes.
_WRITING = (-30, 120)


@dataclass(frozen=True)
class BackupInfo:
    """A backup; ``key_ids`` are those that open it, as far as its packets tell.

    ``place``: "local", the backup folder, or a remote, where ``path`` is its name alone.
    Of kind "ordinary" is what neither its name, its checksum file nor its first bytes call otherwise.
    """

    path: Path
    created: datetime
    size: int
    encrypted: bool
    key_ids: tuple[str, ...] = ()
    kind: str = ORDINARY
    place: str = LOCAL
    sha256: str | None = None  # what stands beside it at a remote
    doubt: str = ""  # why it is not known to be whole, at a remote

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Return what a file is as a backup, None if it is none: by its name, or by how it begins."""
        own = BACKUP_NAME.fullmatch(path.name)
        if path.is_symlink() or not path.is_file() or (not own and path.name.startswith(".")):
            return None
        head, size, layer, message = b"", path.stat().st_size, "", MessagePackets()
        with contextlib.suppress(OSError), open_regular(path) as file:
            head = file.read(HEAD)
        with contextlib.suppress(errors.DamagedMessageError):
            layer = outer_layer(head, path.name, size)
        if layer == "openpgp":
            message = read_message(message_in(head))
        if not own and not message.encrypted and not _begins_like_backup(head, layer):
            return None
        encrypted = layer == "openpgp" or (not layer and path.name.endswith(ENCRYPTED_NAMES))  # it cannot be told
        kind = _kind(path, own, b"" if layer == "openpgp" else head)
        return cls(path, backup_time(path), size, encrypted, tuple(dict.fromkeys(message.recipients)), kind)

    @property
    def opened_by(self) -> str:
        """What opens it, for people."""
        if not self.encrypted:
            return "PLAIN: not encrypted"
        if self.place != LOCAL and not self.key_ids:
            return "opened by a key that is not known here"
        ids = [key_id for key_id in self.key_ids if key_id != HIDDEN_RECIPIENT]
        named = [f"key ID {' or '.join(ids)}"] if ids else []
        hidden = [] if ids and len(ids) == len(self.key_ids) else ["a key that it does not name"]
        return f"opened by {' or '.join([*named, *hidden])}"

    def recorded_checksum(self) -> str | None:
        """Return the SHA-256 that stands beside it, if one can be read there."""
        with contextlib.suppress(errors.ChecksumUnreadableError):
            return recorded_checksum(self.path) if self.place == LOCAL else self.sha256
        return None

    def checksum_of_content(self) -> str | None:
        """Return the SHA-256 of a file here after reading it; None when it cannot be read, or has another beside it."""
        with contextlib.suppress(errors.RefusedError), contextlib.closing(BackupFile(self.path)) as file:
            file.verify()
            return file.expected
        return None

    def checksum_state(self, progress: Callable[[int], object] = lambda _: None) -> str:
        """Return "ok", "MISMATCH", "none" or "unreadable", after reading the whole file; progress is told the bytes."""
        try:
            with contextlib.closing(BackupFile(self.path)) as file:
                if file.expected is None:
                    return "none"
                while piece := file.read(CHUNK):
                    progress(len(piece))
                file.verify()
        except errors.ChecksumMismatchError:
            return "MISMATCH"
        except errors.RefusedError:
            return "unreadable"
        return "ok"


def _unpacked(head: bytes) -> bytes:
    """Return the first bytes of what a file holds that may be gzipped; nothing when that is damaged."""
    with contextlib.suppress(zlib.error):
        return zlib.decompressobj(31).decompress(head, HEAD) if head.startswith(GZIP_HEAD) else head
    return b""


def _begins_like_backup(head: bytes, layer: str) -> bool:
    """Whether a file that has none of our names begins like a database or dump, gzipped or not."""
    from backuplib.sql_dump import looks_like_sql_dump

    head = _unpacked(head)
    return layer in ("gzip", "database") and (begins_plain(head) or looks_like_sql_dump(head))


def _kind(path: Path, own: re.Match[str] | None, head: bytes) -> str:
    """Return the kind of a backup; ``head`` are its first bytes, when it is not encrypted."""
    if own and own[2] == ".raw.tar":
        return AS_THEY_WERE
    with contextlib.suppress(OSError), open_regular(checksum_path(path)) as file:
        if match := _KIND_LINE.search(plain_text(file.read(CHUNK))):
            return match[1]
    if not (content := _unpacked(head)):
        return ORDINARY
    from backuplib.sql_dump import looks_like_sql_dump

    return SQL_DUMP if looks_like_sql_dump(content) else ORDINARY


def backup_time(path: Path) -> datetime:
    """Return when a backup was made: what its name says, else when the file was changed.

    A name is in the zone of the machine or container that made it: in the one where it says when the file was written.
    A copy may have been written at any time; its name counts as one of this machine.
    """
    written = path.stat().st_mtime
    match = _NAME_WITH_TIME.match(path.name)
    with contextlib.suppress(ValueError, OverflowError, OSError):
        if match:
            named = time.strptime(match[1], "%Y%m%d_%H%M%S")
            as_utc = calendar.timegm(named)
            for offset in _OFFSETS:
                if _WRITING[0] <= written - (as_utc - offset) <= _WRITING[1]:
                    return datetime.fromtimestamp(as_utc - offset).astimezone()
    return named_time(path.name) or datetime.fromtimestamp(written).astimezone()


def named_time(name: str) -> datetime | None:
    """Return when a backup was made by its name alone, taken for one of this machine's zone; None: it has no time."""
    with contextlib.suppress(ValueError, OverflowError, OSError):
        if match := _NAME_WITH_TIME.match(name):
            return datetime(*time.strptime(match[1], "%Y%m%d_%H%M%S")[:6]).astimezone()
    return None


def checksum_text(name: str, digest: str, kind: str) -> str:
    """Return what a checksum file holds: the line of sha256sum, and for a kind that is not ordinary a comment."""
    return f"{digest}  {name}\n" + ("" if kind == ORDINARY else f"# kind: {kind}\n")


def checksum_path(backup: Path) -> Path:
    """Return the path of a backup's checksum file."""
    return backup.with_name(backup.name + ".sha256")


def text_beside(backup: Path) -> str | None:
    """Return what a backup's checksum file holds, or None when there is none.

    :raises ChecksumUnreadableError: when it cannot be read.
    """
    path = checksum_path(backup)
    try:
        with open_regular(path) as file:
            return plain_text(file.read(CHUNK)).replace("\r", "\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise errors.ChecksumUnreadableError(
            f"cannot read {path}: {error.strerror}", hint=f"Check: ls -l {quoted(path)}"
        ) from None


def recorded_kind(beside: str) -> str:
    """Return the kind of a backup as the text of its checksum file has it."""
    match = _KIND_LINE.search(beside)
    return match[1] if match else ORDINARY


def recorded_signature(beside: str) -> str:
    """Return the signature, in base64, that the text of a checksum file has; empty without one."""
    match = _SIGNATURE_LINE.search(beside)
    return match[1] if match else ""


def signature_line(signature: str) -> str:
    """Return the line of a checksum file that has a signature, in base64, of what :func:`checksum_text` returns."""
    return f"# signature: {signature}\n" if signature else ""


def recorded_checksum(backup: Path) -> str | None:
    """Return the SHA-256 that stands beside a backup, or None when there is none.

    :raises ChecksumUnreadableError: when the checksum file is there and cannot be understood.
    """
    text = text_beside(backup)
    return None if text is None else checksum_in(text, backup.name, checksum_path(backup))


def checksum_in(text: str, name: str, path: Path) -> str:
    """Return the SHA-256 of a backup of this name that stands in the text of a checksum file.

    :raises ChecksumUnreadableError: when there is none, or it cannot be told which one is meant.
    """
    lines = [
        (one or following.rstrip(" \t"), (tagged or plain).lower())
        for one, tagged, plain, following in _CHECKSUM_LINE.findall(text)
    ]
    digests = {digest for _, digest in lines}
    named = [digest for one, digest in lines if _same_name(one, name)]
    if named or len(digests) == 1:
        return str(named[-1] if named else digests.pop())
    raise errors.ChecksumUnreadableError(
        f"{path} has {len(digests)} checksums, and none names {name}"
        if digests
        else f"{path} has no SHA-256 checksum in it",
        hint="Write it anew where the backup was made, and copy it here: "
        f"sha256sum {quoted(name)} > {quoted(path.name)}",
    )


# What sha256sum writes, also with --tag, and openssl, and a sum alone; a line that begins with # is a comment. A name
# has the blanks behind it, too: to leave them out here would cost the square of the line's length.
_CHECKSUM_LINE = re.compile(
    r"^[ \t]*\\?(?:SHA(?:2-)?256 ?\((.*)\) ?= ?([0-9a-f]{64})|([0-9a-f]{64})(?:[ \t]+\*?(.*))?)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)


def _same_name(listed: str, name: str) -> bool:
    """Whether a checksum file's line names a file: in whatever folder, and escaped as sha256sum does that."""
    return listed == name or re.split(r"[/\\]", listed.replace("\\\\", "\\"))[-1] == name


class Backup(ABC):
    """A backup that is hashed while it is read: what is checked is what is decrypted.

    :param path: how it is called, for people.
    :param name: its own, which its checksum file has, too.
    :param size: in bytes.
    :param beside: the text of its checksum file; empty without one.
    :param expected: its SHA-256, if known: from beside it, or from when it was read before.
    """

    here = True  # so that reading it once more costs little

    def __init__(
        self, path: Path, name: str, size: int, *, beside: str, expected: str | None, created: datetime
    ) -> None:
        self.path, self.name, self.size, self.created = path, name, size, created
        self.beside, self.expected = beside, expected
        self._unreported = expected is not None
        self._digest, self._position = hashlib.sha256(), 0
        self.progress: Callable[[int], object] = lambda _: None

    @property
    @abstractmethod
    def layer(self) -> str:
        """What it is, see :func:`outer_layer`."""

    @abstractmethod
    def _restart(self) -> None:
        """Go to the beginning."""

    def _begin(self) -> None:  # noqa: B027 - a file needs nothing
        """Begin what takes the main thread: another one may read on."""

    @abstractmethod
    def _read(self, size: int) -> bytes:
        """Read on; empty at the end; OperatorError when that fails."""

    @abstractmethod
    def close(self) -> None:
        """Give back what it takes to read it."""

    @property
    @abstractmethod
    def mismatch_hint(self) -> str:
        """What to do when it does not match its checksum."""

    def refuse_larger(self, limit: float) -> None:
        """Refuse what has more bytes than the limit; NoMemoryError."""
        if self.size > limit:
            raise errors.NoMemoryError(
                f"the backup alone has {megabytes(self.size)}, and the database in it may have {megabytes(limit)}: it "
                f"is in memory twice, and {megabytes(available_memory())} are free",
                hint="Stop other programs, or use a machine with more memory; MAX_DATABASE_MB in .env can be a limit, "
                "too.",
            )

    def beginning(self) -> bytes:
        """Return its first bytes, from which an OpenPGP message can be told and tried."""
        self.rewind()
        return self.read(CHUNK)

    def rewind(self) -> None:
        """Go to the beginning."""
        self._restart()
        self._digest, self._position = hashlib.sha256(), 0

    def read(self, size: int, /) -> bytes:
        """Read on; empty at the end; OperatorError when the disk, or the remote, fails."""
        data = self._read(size)
        self._digest.update(data)
        self._position += len(data)
        self.progress(self._position)
        return data

    def verify(self) -> bool:
        """Read to the end, and compare all that was read since the beginning with the checksum.

        :returns: whether that is news: there is a checksum, and nothing was compared with it before.
        :raises ChecksumMismatchError: when it does not match.
        """
        while self.read(CHUNK):
            pass
        digest = self._digest.hexdigest()
        if self.expected not in (None, digest):
            raise errors.ChecksumMismatchError(
                f"{self.path.name} does not match its checksum: the file is corrupted or was replaced",
                hint=self.mismatch_hint,
            )
        self.expected, news, self._unreported = digest, self._unreported, False
        return news

    @contextlib.contextmanager
    def reading(self, step: Step) -> Iterator[None]:
        """Read it from its beginning; a checksum that does not match says more than any other error."""
        self.rewind()
        self._begin()
        self.progress = step.progress
        try:
            yield
        except errors.WrongPassphraseError:  # there may be another try
            raise
        except errors.OperatorError:
            self._compare(step)
            raise
        self._compare(step)

    def _compare(self, step: Step) -> None:
        if self.verify():
            step.notes.append("✅ Checksum verified")


class BackupFile(Backup):
    """A backup in a file, opened once.

    :param limit: bytes that it may have.
    :raises BackupNotFoundError: when it is not a file that can be read.
    :raises NotABackupError: when it is a sparse file, which would take hours to read.
    :raises NoMemoryError: when it is larger than the limit.
    """

    def __init__(self, path: Path, limit: float = math.inf) -> None:
        try:
            place = resolved(path, mounted=False)
            beside = text_beside(place)
            self._file = open_regular(place)
        except OSError as error:
            denied = f"Look who may read it: ls -l {quoted(path)}. As root: {errors.same_command(root=True)}"
            raise errors.BackupNotFoundError(
                f"cannot read the backup {path}: {error.strerror}",
                hint=denied
                if isinstance(error, PermissionError)
                else f"See what is there: {errors.restore_command('--list')}",
            ) from None
        try:
            super().__init__(
                path,
                path.name,
                os.fstat(self._file.fileno()).st_size,
                beside=beside or "",
                expected=None if beside is None else checksum_in(beside, path.name, checksum_path(path)),
                created=backup_time(place),
            )
            self._refuse_sparse()
            self.refuse_larger(limit)
        except errors.OperatorError:
            self.close()
            raise

    def _refuse_sparse(self) -> None:
        if is_mostly_holes(self._file.fileno()):
            raise errors.NotABackupError(
                f"{self.path} is a sparse file: of its {megabytes(self.size)} most was never written, so it is no "
                "backup",
                hint=f"Look at it: ls -ls {quoted(self.path)}. {errors.choose_another_backup_hint()}",
            )

    @functools.cached_property
    def layer(self) -> str:
        """What it is, see :func:`outer_layer`."""
        return outer_layer(os.pread(self._file.fileno(), HEAD, 0), self.path.name, self.size)

    @property
    def mismatch_hint(self) -> str:
        """What to do when it does not match its checksum."""
        see = f"See: sha256sum {quoted(shown(self.path))}"
        return f"Copy it again from where it was made, or use another backup. {see}"

    def _restart(self) -> None:
        self._file.seek(0)

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            raise errors.RefusedError(
                f"cannot read the backup {self.path}: {error.strerror}", hint=errors.CHECK_DISK
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
