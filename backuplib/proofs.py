"""Proofs that a backup restores: a line for each restore and each --verify-only that has gone through all checks.

They lie in the backup folder. Whoever may write there can replace the file, so it is believed only as this user's or
root's, and read strictly. A proof is of a content, by its SHA-256: what has only the name of a proved backup has none.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from backuplib import __version__
from backuplib.errors import explain
from backuplib.files import CHUNK, create_file, fsync_folder, is_believable, open_regular, write_all
from backuplib.folder import anchored_folder

NAME = "proofs.jsonl"
MOST_BYTES = CHUNK // 4  # a file that has more becomes NAME.1, in the place of the one before
LONGEST_LINE = 4096
ATTEMPTS = 5

RESTORED, VERIFIED = "restored", "verified"


class UnknownProofsError(Exception):
    """The file is there, and cannot be read or believed."""


@dataclass(frozen=True)
class Proof:
    """That a backup went through all checks of a restore.

    :param name: the backup's, without its folder.
    :param when: with a zone.
    :param how: "restored" or "verified".
    :param version: of this tool.
    """

    sha256: str
    name: str
    when: datetime
    how: str
    version: str = __version__

    @classmethod
    def parse(cls, line: bytes) -> Self | None:
        """Return what a line says; None for one that was not written here."""
        try:
            said = json.loads(line)
            proof = cls(**{**said, "when": datetime.fromisoformat(said["when"]), "version": said["version"]})
            proof.when.astimezone(UTC)  # OverflowError for what no clock says
            right = (
                proof.when.tzinfo is not None
                and proof.how in (RESTORED, VERIFIED)
                and re.fullmatch(r"[0-9a-f]{64}", proof.sha256)
                and re.fullmatch(r"[^/\0]{1,255}", proof.name)
                and re.fullmatch(r"[0-9A-Za-z.+-]{1,40}", proof.version)
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return None
        return proof if right else None

    def line(self) -> bytes:
        """Return it as a line of the file."""
        said = {"sha256": self.sha256, "name": self.name, "when": self.when.isoformat(timespec="seconds")}
        return json.dumps(said | {"how": self.how, "version": self.version}).encode() + b"\n"


def record(backup_dir: Path, proof: Proof) -> None:
    """Append a proof durably; OSError when that is not possible.

    What has the file's name and is somebody else's, or no file, gets another name.
    """
    path, line = anchored_folder(backup_dir) / NAME, proof.line()
    for _ in range(ATTEMPTS):
        with contextlib.suppress(FileExistsError):  # somebody else has just made one
            if _appended(path, line):
                return
    raise FileExistsError(errno.EEXIST, "others keep putting a file of theirs there", str(path))


def _appended(path: Path, line: bytes) -> bool:
    """Append to the file; or make it when there is none, or give it another name, and return False.

    Another name gets what is long enough, and what is not to be believed.
    """
    try:
        file = open_regular(path, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError:
        create_file(path).close()  # it is written by appending only: another process may be doing that already
        fsync_folder(path.parent)
        return False
    except OSError:
        if not os.path.lexists(path) or stat.S_ISREG(os.lstat(path).st_mode):
            raise
        ours = False  # a link, a folder, a pipe
    else:
        with file:
            status, ours = os.fstat(file.fileno()), is_believable(file.fileno())
            if ours and status.st_size < MOST_BYTES:
                last = os.pread(file.fileno(), 1, max(0, status.st_size - 1))
                write_all(file, line if last in (b"", b"\n") else b"\n" + line)  # a power cut tore the last one
                os.fsync(file.fileno())
                return True
    path.rename(path.with_name(f"{NAME}.1" if ours else f"{NAME}.not-ours"))
    return False


def read(backup_dir: Path) -> list[Proof]:
    """Return the proofs in the order in which they were written; lines that are none are passed over.

    :raises UnknownProofsError: when a file is there, and is not this user's or root's, or cannot be read.
    """
    return [*_read(backup_dir / f"{NAME}.1"), *_read(backup_dir / NAME)]


def _read(path: Path) -> Iterator[Proof]:
    try:
        with open_regular(path) as file:
            if not is_believable(file.fileno()):
                raise UnknownProofsError(f"{path} is not this user's alone, nor root's: it could say anything")
            data = file.read(CHUNK)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnknownProofsError(explain(error)) from None
    for line in data.split(b"\n"):
        if len(line) <= LONGEST_LINE and (proof := Proof.parse(line)):
            yield proof


def by_checksum(proofs: Iterable[Proof]) -> dict[str, Proof]:
    """Return for each SHA-256 the latest of its proofs."""
    return {proof.sha256: proof for proof in sorted(proofs, key=lambda proof: proof.when)}
