"""Backups at other places, which rclone reaches: object storage, SFTP, WebDAV and many more.

A place is an rclone path, such as ``offsite:shopbot``. What was found by trying, with rclone 1.60 and 1.75:

* `cat` of an object that S3 does not have ends with 0 and nothing; `lsjson --stat` calls it a folder;
* `rcat` leaves no checksum where an object is large, `copyto` does;
* `--immutable` is not to be relied on: a name is looked up before, and nothing complete is ever overwritten.

A checksum file is written after its backup: a backup without one is what an interrupted copy has left. It has comments
with what a list says of a backup, and is believed about that backup alone: whoever can add files there can write any
name into one. So all of them are copied here, where each keeps its own name. What is read there is foreign text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from backuplib import errors
from backuplib.armor import plain_text
from backuplib.backup_file import (
    AS_THEY_WERE,
    BEFORE_A_RESTORE,
    ENCRYPTED_NAMES,
    HEAD,
    LOCAL,
    ORDINARY,
    SQL_DUMP,
    Backup,
    BackupFile,
    BackupInfo,
    checksum_in,
    checksum_text,
    named_time,
    outer_layer,
    recorded_checksum,
    recorded_signature,
    signature_line,
)
from backuplib.files import CHUNK, open_regular
from backuplib.formatting import instant, megabytes
from backuplib.ram_folder import RamFolder
from backuplib.rclone import LOOK_SECONDS, MOVE, PLACE, Rclone, Stream

SLOWEST = 20_000  # bytes a second
MOST_RECORD = 1 << 16  # bytes of a checksum file that are read
PROBE = ".may-we-remove"

# How the checksum files of a place are copied here: all of them, without asking for times and hashes
_EACH_RECORD = (
    *("--max-depth=1", "--include=/*.sha256", f"--max-size={MOST_RECORD}B", "--max-transfer=64M"),
    *("--ignore-checksum", "--use-server-modtime", "--no-check-dest"),
)


@dataclass(frozen=True)
class Record:
    """What stands in the checksum file of a backup at a remote."""

    digest: str = ""
    kind: str = ORDINARY
    made: datetime | None = None
    key_ids: tuple[str, ...] = ()


NO_RECORD = Record()
NO_CHECKSUM = "no checksum there: an interrupted copy, or somebody else's"
UNREADABLE = "its checksum there cannot be understood"
NO_BACKUPS = (".sha256", ".partial")  # the latter is how rclone calls what it has not copied to its end


def whole(backups: Sequence[BackupInfo]) -> list[BackupInfo]:
    """Return those of the backups at a place that are whole as far as is known; all, where none has a checksum."""
    return [item for item in backups if not item.doubt] or [*backups]


@dataclass(frozen=True)
class Remote:
    """A place for backups.

    :param place: an rclone path.
    :param variables: RCLONE_…, given to rclone alone.
    """

    place: str
    variables: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    # --- looking ---------------------------------------------------------------------------------------------

    def backups(self) -> list[BackupInfo]:
        """Return the backups there, newest first: what has a name or a record of ours.

        :raises RemoteError: when that cannot be looked up; a folder that is not there has none.
        """
        found = [self._info(name, size, record) for name, (size, record) in self._contents().items()]
        return sorted(filter(None, found), key=lambda item: (item.created, item.path.name), reverse=True)

    def lacking(self, backups: Sequence[BackupInfo]) -> list[BackupInfo]:
        """Return those that are not there, or differ, by name, size and checksum; RemoteError as for the list."""
        there = self._contents()

        def has(backup: BackupInfo) -> bool:
            size, record = there.get(backup.path.name, (None, None))
            with contextlib.suppress(errors.ChecksumUnreadableError):
                digest = record.digest if record else ""
                return size == backup.size and "" != digest == (recorded_checksum(backup.path) or digest)
            return False

        return [backup for backup in backups if not has(backup)]

    def _contents(self) -> dict[str, tuple[int, Record | None]]:
        """Return by name the size of what is there, and what stands beside it; None: there is no checksum file."""
        try:
            listed = self._json("lsjson", "--files-only", "--no-modtime", "--no-mimetype", self.place)
        except errors.BackupNotFoundError:
            return {}
        sizes = {str(item["Name"]): int(item["Size"]) for item in listed}
        beside = [name for name in sizes if f"{name}.sha256" in sizes]
        records = self._records(beside) if beside else {}
        return {name: (size, records.get(name)) for name, size in sizes.items()}

    def _records(self, names: Sequence[str]) -> dict[str, Record]:
        """Return what stands beside backups there; an unknown digest where that cannot be read."""
        with RamFolder() as ram:
            folder = ram.path / "records"
            with contextlib.suppress(errors.BackupNotFoundError):  # one of them has just been removed
                self._rclone.run("copy", *_EACH_RECORD, self.place, str(folder))
            return {name: _record_in(folder, name) for name in names}

    def _info(self, name: str, size: int, record: Record | None) -> BackupInfo | None:
        doubt = NO_CHECKSUM if record is None else "" if record.digest else UNREADABLE
        record = record or NO_RECORD
        made = record.made or named_time(name)
        if not made or name.endswith(NO_BACKUPS):
            return None
        kind = AS_THEY_WERE if ".raw.tar" in name else record.kind
        encrypted, beside = name.endswith(ENCRYPTED_NAMES), record.digest or None
        return BackupInfo(Path(name), made, size, encrypted, record.key_ids, kind, self.place, beside, doubt)

    def checksum(self, name: str) -> str | None:
        """Return the SHA-256 that stands beside a backup there; None without a checksum file.

        :raises ChecksumUnreadableError: when there is one that cannot be understood.
        """
        text = self.beside(name)
        return checksum_in(text, name, Path(self.at(f"{name}.sha256"))) if text else None

    def beside(self, name: str) -> str:
        """Return the text of the checksum file of a backup there; empty without one."""
        with contextlib.suppress(errors.BackupNotFoundError):
            return _lines(self._rclone.run("cat", f"--count={MOST_RECORD}", self.at(f"{name}.sha256")))
        return ""

    def size(self, name: str) -> int | None:
        """Return how many bytes an object has; None when it is not there."""
        found = self.look_up(name, "--no-modtime")
        return None if found is None else int(found["Size"])

    def look_up(self, name: str, *options: str) -> dict[str, Any] | None:
        """Return what rclone says of an object; None when it is not there, or a folder is, which S3 says, too."""
        try:
            found = self._json("lsjson", "--stat", "--no-mimetype", *options, self.at(name))
        except errors.BackupNotFoundError:
            return None
        return None if found.get("IsDir", True) else dict(found)

    def lock(self, name: str) -> str:
        """Return which object lock keeps a backup there, for people; empty without one that rclone knows of.

        S3 lets a locked object be removed all the same: what is locked is a version, which is then hidden. An old
        rclone, such as 1.60, does not tell.
        """
        try:
            said = self._json("lsjson", "--stat", "--no-modtime", "--metadata", self.at(name)).get("Metadata") or {}
        except errors.BackupNotFoundError:
            return ""
        if said.get("object-lock-legal-hold-status") == "ON":
            return "an object lock keeps it: legal hold"
        if not (until := said.get("object-lock-retain-until-date")):
            return ""
        try:
            end = datetime.fromisoformat(until)
        except ValueError:
            return "an object lock keeps it, until when cannot be understood"
        return f"an object lock keeps it until {instant(end)}" if end > datetime.now().astimezone() else ""

    def open(self, name: str, limit: float = math.inf) -> RemoteBackup:
        """Open a backup there for reading.

        :param limit: bytes that it may have.
        :raises BackupNotFoundError: when it is not there.
        :raises NoMemoryError: when it is larger than the limit.
        """
        return RemoteBackup(self, name, limit)

    # --- changing --------------------------------------------------------------------------------------------

    def push(self, backup: Path) -> bool:
        """Copy a backup there, then its checksum; return False where that has been done before, and it is whole.

        :raises ChecksumMismatchError: when it is not the file that its checksum was made of.
        :raises RemoteConflictError: when another backup has its name there.
        """
        info = BackupInfo.of(backup)
        if not info:
            raise errors.NotABackupError(f"{backup} is not a backup")
        with contextlib.closing(BackupFile(backup)) as file:
            file.verify()
            digest, size, beside = str(file.expected), file.size, file.beside
        size_there = self.size(backup.name)
        recorded = None if size_there is None else self.checksum(backup.name)
        if recorded not in (None, digest):
            raise errors.RemoteConflictError(
                f"{self.place} has another backup called {backup.name}: its checksum differs",
                hint=f"Find out which one is right, and rename or remove the other: {self.to_type('lsl')}",
            )
        if recorded and size_there == size:
            return False
        # What is there without a checksum, or with ours and another size, is not whole, whatever its time.
        source, seconds = os.path.realpath(backup), LOOK_SECONDS + size / SLOWEST
        self._rclone.run("copyto", "--ignore-times", source, self.at(backup.name), way=MOVE, seconds=seconds)
        record = record_text(info, digest, recorded_signature(beside)).encode()
        self._rclone.run("rcat", self.at(f"{backup.name}.sha256"), way=MOVE, given=record)
        return True

    def remove(self, name: str) -> None:
        """Remove a backup there, then its checksum file; what is not there need not be removed.

        :raises RemoteLockedError: where an object lock, or missing permission, forbids it.
        """
        for each in (name, f"{name}.sha256"):
            try:
                self._rclone.run("deletefile", self.at(each), way=MOVE)
            except errors.BackupNotFoundError:
                continue
            except errors.RemoteDeniedError as error:
                raise errors.RemoteLockedError(
                    f"{each} cannot be removed: {error}",
                    hint="That may be meant so, against whoever gets the credentials of this host: then old backups "
                    "are removed by a rule of the storage's own.",
                ) from None

    def may_remove(self) -> bool | None:
        """Whether what we have put there can be removed by us: tried with a small object; None: not known.

        Where it cannot, that object stays, and is tried again the next time.
        """
        with contextlib.suppress(errors.OperatorError):
            if self.size(PROBE) is None:
                self._rclone.run("rcat", self.at(PROBE), way=MOVE, given=b"May this be removed? --check has tried.\n")
            with contextlib.suppress(errors.RemoteDeniedError):
                self._rclone.run("deletefile", self.at(PROBE), way=MOVE)
            return self.size(PROBE) is None
        return None

    # --- rclone ----------------------------------------------------------------------------------------------

    def at(self, name: str) -> str:
        """Return the rclone path of an object there."""
        return f"{self.place}{'' if self.place.endswith((':', '/')) else '/'}{name}"

    def to_type(self, command: str) -> str:
        """Return a command of rclone's about the place, as it is typed in a shell."""
        return self._rclone.to_type(command)

    @property
    def _rclone(self) -> Rclone:
        return Rclone(self.place, self.variables)

    def _json(self, *arguments: str) -> Any:
        output = self._rclone.run(*arguments)
        try:
            return json.loads(output)
        except ValueError:
            raise self._rclone.explained("its answer cannot be understood") from None

    def stream(self, name: str, offset: int) -> Stream:
        """Begin to read an object behind its first bytes."""
        return self._rclone.stream("cat", f"--offset={offset}", self.at(name))

    def beginning(self, name: str, count: int) -> bytes:
        """Return the first bytes of an object."""
        with contextlib.closing(self._rclone.stream("cat", f"--count={count}", self.at(name))) as stream:
            return b"".join(iter(lambda: stream.read(count), b""))


def remotes(places: Sequence[str], variables: Mapping[str, str]) -> list[Remote]:
    """Return the configured remotes: BACKUP_REMOTES, and the variables that are rclone's."""
    return [Remote(place, variables) for place in places]


# --- a backup there ----------------------------------------------------------------------------------------------


class RemoteBackup(Backup):
    """A backup at a remote, read from there without a copy on a disk.

    Its first bytes are kept, and the others begin to flow when they are read: not while an operator types a key.
    """

    here = False

    def __init__(self, remote: Remote, name: str, limit: float) -> None:
        text = remote.beside(name)
        found = remote.look_up(name, *([] if text else ["--hash"]))
        if found is None:
            raise errors.BackupNotFoundError(
                f"there is no {name} at {remote.place}", hint=f"See what is there: {remote.to_type('lsf')}"
            )
        size = int(found["Size"])
        expected = checksum_in(text, name, Path(f"{remote.at(name)}.sha256")) if text else None
        made = read_record(text, name).made or named_time(name)
        written = datetime.fromisoformat(found["ModTime"]).astimezone()
        super().__init__(Path(remote.at(name)), name, size, beside=text, expected=expected, created=made or written)
        self._hashes: dict[str, str] = found.get("Hashes", {})
        self._other = self._hasher()
        self.refuse_larger(limit)
        self._remote = remote
        self._stream: Stream | None = None
        self._head = remote.beginning(name, CHUNK)
        if len(self._head) != min(size, CHUNK):
            raise self._broken(len(self._head))

    @property
    def layer(self) -> str:
        """What it is, see :func:`outer_layer`."""
        return outer_layer(self._head[:HEAD], self.name, self.size)

    @property
    def mismatch_hint(self) -> str:
        """What to do when it does not match its checksum."""
        return f"Use another backup, or this one from another place: {errors.restore_command('--list')}"

    def _restart(self) -> None:
        self.close()
        self._other = self._hasher()

    def _hasher(self) -> Any:
        """Return what hashes as the server has done it, for a backup without a checksum beside it; None: it has not."""
        name = next((name for name in ("sha256", "sha1", "md5") if self._hashes.get(name)), "")
        return hashlib.new(name, usedforsecurity=False) if name else None

    def read(self, size: int, /) -> bytes:
        """Read on; empty at the end; OperatorError when the remote fails."""
        data = super().read(size)
        if self._other:
            self._other.update(data)
        return data

    def verify(self) -> bool:
        """Compare it with its checksum; without one, what came with what the server says of it."""
        news = super().verify()
        if self._other and self._other.hexdigest() != self._hashes[self._other.name]:
            what = f"what came of {self.path.name} does not match the {self._other.name}"
            raise errors.ChecksumMismatchError(
                f"{what} that {self._remote.place} has of it",
                hint=_try_again(),
            )
        return news

    def _begin(self) -> None:
        if not self._stream and self.size > len(self._head):
            self._stream = self._remote.stream(self.name, len(self._head))

    def _read(self, size: int) -> bytes:
        begin = self._position
        if begin < len(self._head):
            return self._head[begin : begin + size]
        self._begin()
        stream = self._stream
        if not stream:  # the first bytes are all
            return b""
        if stream.failure:  # gpg has been told that the message ends here
            raise stream.failure
        try:
            return self._flowing(stream, begin, size)
        except errors.OperatorError as error:
            stream.failure = error
            raise

    def _flowing(self, stream: Stream, begin: int, size: int) -> bytes:
        """Read what comes behind the first bytes."""
        try:
            data = stream.read(size)
        except errors.RemoteError as error:
            what = f"{self.name} broke off after {megabytes(begin)} of {megabytes(self.size)}"
            raise type(error)(f"{what}: {error}", hint=error.hint) from None
        if begin + len(data) > self.size or (not data and begin < self.size):
            raise self._broken(begin + len(data))
        return data

    def _broken(self, count: int) -> errors.RemoteBrokenError:
        return errors.RemoteBrokenError(
            f"{self._remote.place} sent {count:,} bytes of {self.name}, and says that it has {self.size:,}",
            hint=_try_again(),
        )

    def close(self) -> None:
        """End the transfer."""
        if self._stream:
            self._stream.close()
        self._stream = None


def _try_again() -> str:
    return f"Try again; or see the other backups and places: {errors.restore_command('--list')}"


# --- what stands beside it ---------------------------------------------------------------------------------------


_COMMENT = re.compile(r"^# (kind|made|keys): (.{1,500})$", re.MULTILINE)


def record_text(info: BackupInfo, digest: str, signature: str = "") -> str:
    """Return the checksum file of a backup at a remote: that of sha256sum, its signature, and comments for the list."""
    keys = f"# keys: {' '.join(info.key_ids)}\n" if info.key_ids else ""
    signed = checksum_text(info.path.name, digest, info.kind) + signature_line(signature)
    return f"{signed}# made: {info.created.isoformat()}\n{keys}"


def read_record(text: str, name: str) -> Record:
    """Return what the text of the checksum file of a backup says; without a digest where that cannot be understood."""
    said, digest, made = dict(_COMMENT.findall(text)), "", None
    with contextlib.suppress(errors.ChecksumUnreadableError):
        digest = checksum_in(text, name, Path(f"{name}.sha256"))
    with contextlib.suppress(ValueError, OverflowError):
        made = datetime.fromisoformat(said.get("made", "")).astimezone()
    kind = said.get("kind", ORDINARY)
    keys = re.findall(r"\b[0-9A-F]{16}\b", said.get("keys", ""))
    return Record(digest, kind if kind in (BEFORE_A_RESTORE, SQL_DUMP) else ORDINARY, made, tuple(keys[:20]))


def _record_in(folder: Path, name: str) -> Record:
    """Return what the checksum file of a backup says that was copied into a folder, if it was."""
    with contextlib.suppress(OSError), open_regular(folder / f"{name}.sha256") as file:
        return read_record(_lines(file.read(MOST_RECORD)), name)
    return NO_RECORD


def _lines(data: bytes) -> str:
    return plain_text(data).replace("\r\n", "\n").replace("\r", "\n")


# --- names on the command line -----------------------------------------------------------------------------------


def is_elsewhere(path: Path) -> bool:
    """Whether what was named is REMOTE:PATH: as a path of this machine it would be absolute."""
    return not path.is_absolute() and bool(PLACE.fullmatch(str(path)))


def split(path: Path) -> tuple[str, str]:
    """Return place and name of REMOTE:PATH."""
    match = re.fullmatch(r"(.*[:/])([^:/]*)", str(path), re.DOTALL)
    place, name = match.groups() if match else ("", str(path))
    return place if place.endswith(":") else place.rstrip("/"), name


def opened(path: Path, variables: Mapping[str, str], limit: float) -> RemoteBackup:
    """Open what was named as REMOTE:PATH; errors as :meth:`Remote.open` has them."""
    place, name = split(path)
    return Remote(place, variables).open(name, limit)


def named(backup: BackupInfo) -> Path:
    """Return how a backup is named on the command line, wherever it is."""
    return backup.path if backup.place == LOCAL else Path(Remote(backup.place).at(backup.path.name))
