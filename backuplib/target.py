"""The database to replace, and every name beside it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from backuplib import errors, files
from backuplib.database import anchored_database, database_files, refuse_irregular, sidecars
from backuplib.folder import AnchoredPath, moved
from backuplib.formatting import megabytes, plural, quoted
from backuplib.image import DatabaseImage
from backuplib.locks import LOCK_SECONDS, TRY_SECONDS
from backuplib.processes import CAP_SYS_PTRACE, find_holders, has_capability, lock_owner
from backuplib.storage import is_plain, looks_encrypted


@dataclass(frozen=True)
class Target:
    """The database to replace, whether it is there or not; ``path`` is absolute, links resolved.

    What is done to it, or beside it, is done in its folder as it was opened when ``path`` is from :meth:`resolve`.
    """

    path: Path

    @classmethod
    def resolve(cls, path: Path) -> Target:
        """Follow links, and look what is there.

        :raises UnsuitableTargetError: when it is neither a regular file nor absent, its folder is not there, or it is a
            link that others may have made.
        """
        try:
            target = cls(anchored_database(path))
        except (FileNotFoundError, NotADirectoryError):
            folder = Path(os.path.realpath(path)).parent
            raise errors.UnsuitableTargetError(
                f"there is no folder {folder}", hint=f"Make it: mkdir -p {quoted(folder)}"
            ) from None
        except OSError as error:
            raise errors.UnsuitableTargetError(
                f"cannot open the folder of {path}: {errors.explain(error)}",
                hint="Of a link that is meant, set DATA_DIR and DB_NAME in .env to what it leads to: "
                f"readlink -f {quoted(path)}"
                if error.errno == errno.ELOOP
                else f"Check: ls -ld {quoted(path.parent)}",
            ) from None
        status = files.stat_or_none(target.path)
        if status and not stat.S_ISREG(status.st_mode):
            raise errors.UnsuitableTargetError(
                f"{target.path} is not a regular file", hint="Name a database file with --target-path."
            )
        refuse_irregular(sidecars(target.path))
        return target

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.restore-{suffix}")

    @property
    def candidate(self) -> Path:
        """Where the new database is written before it takes the target's name."""
        return self._beside("new")

    @property
    def journal(self) -> Path:
        """Where an unfinished restore is written down."""
        return self._beside("state.json")

    @property
    def lock_file(self) -> Path:
        """What tells that a restore is running, and which."""
        return self._beside("lock")

    def new_set_aside(self) -> Path:
        """Return a free name for the old database."""
        while True:
            path = self.path.with_name(f"{self.path.name}.backup-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
            if not path.exists():
                return path
            time.sleep(1 - time.time() % 1)

    def left_aside(self) -> list[Path]:
        """Return what has the name of an old database that a restore has set aside."""
        names = re.compile(rf"{re.escape(self.path.name)}\.backup-\d{{8}}-\d{{6}}")
        return sorted(path for path in self.path.parent.iterdir() if names.fullmatch(path.name))

    @property
    def exists(self) -> bool:
        """Whether there is a database to replace."""
        return self.path.exists()

    def change_marker(self) -> list[files.Identity]:
        """What changes whenever something is written to the database; empty when nothing is there."""
        wal = self.path.with_name(self.path.name + "-wal")
        return [files.file_identity(path) for path in (self.path, wal) if path.exists()]

    @contextlib.contextmanager
    def lock(self, say: Callable[[str], object], patience: float = LOCK_SECONDS) -> Iterator[None]:
        """Hold the kernel's lock on the target's folder, so that no backup is made meanwhile.

        :param say: is told who is waited for.
        :param patience: seconds that a backup may take to end.
        :raises LockedError: when somebody still holds it then.
        """
        try:
            folder = files.open_folder(self.path.parent)
        except OSError as error:
            raise errors.UnsuitableTargetError(f"cannot read the folder {self.path.parent}: {error.strerror}") from None
        try:
            until, told = time.monotonic() + patience, False
            while not files.flock(folder, fcntl.LOCK_EX):
                who = lock_owner(folder)
                if time.monotonic() > until:
                    raise errors.LockedError(
                        f"another restore or backup is running in {self.path.parent}: {who}", hint="Wait for it to end."
                    )
                if not told:
                    say(f"⏳ Waiting for {who} to end, up to {patience:.0f} s")
                told = True
                time.sleep(TRY_SECONDS)
            yield
        finally:
            os.close(folder)

    @property
    def exposed(self) -> str:
        """Say that others can lead SQLite elsewhere; nothing when they cannot, or that is not known."""
        if not isinstance(self.path, AnchoredPath) or not self.path.folder.exposed:
            return ""
        return (
            f"others can rename the folders above {self.path.parent} while this runs, and have SQLite make files "
            "elsewhere; run by root, outside of containers, this does not depend on those names"
        )

    def refuse_moved(self) -> None:
        """Refuse when the name leads to another folder than the one that was opened.

        :raises UnsuitableTargetError: saying which.
        """
        if text := moved(self.path):
            folder = self.path.parent
            hint = f"Find out who does that: ls -ld {quoted(folder)} {quoted(folder.parent)}"
            raise errors.UnsuitableTargetError(text, hint=hint)

    def refuse_holders(self, expected: Sequence[str] = ()) -> int:
        """Refuse when a process has the database open, except those in the expected containers.

        :returns: how many processes could not be inspected: one of them may have it open.
        :raises DatabaseInUseError: naming who.
        """
        holders, hidden = find_holders(database_files(self.path))
        strangers = [item for item in holders if not any(container in item.cgroup for container in expected)]
        if strangers:
            commands = "; ".join(sorted({item.ending for item in strangers}))
            raise errors.DatabaseInUseError(
                f"{self.path} is in use by {', '.join(map(str, strangers))}",
                hint=f"End it ({commands}); or, if a compose file runs it, name that with --compose-file.",
            )
        return hidden if self.exists else 0

    def hidden_from_us(self) -> int:
        """Return how many processes, of which one may have the database open, root could inspect and we cannot."""
        # Where even root may not look, there is no better way to run this.
        return 0 if has_capability(CAP_SYS_PTRACE) or not self.exists else find_holders(database_files(self.path))[1]

    def unseen(self, hidden: int) -> str:
        """Say what cannot be told of so many processes."""
        return f"cannot tell whether {self.path} is in use: no permission to inspect {plural(hidden, 'process')}"

    def refuse_other_encryption(self, *, encrypted: bool) -> None:
        """Refuse when the database is encrypted and the new one would not be, or the reverse.

        What cannot be read, or is neither a plain database nor ciphertext, is not refused: somebody restores over it
        for that reason.

        :param encrypted: whether the settings say that it is.
        :raises EncryptionDiffersError: saying what is there and what the settings say.
        """
        with contextlib.suppress(OSError):
            if encrypted and is_plain(self.path):
                raise errors.EncryptionDiffersError(
                    f"{self.path} is an unencrypted SQLite database, but DB_ENCRYPTION is true",
                    hint="If the bot does not use encryption, set DB_ENCRYPTION=false in .env. To replace this file "
                    f"by an encrypted database, add --convert: {errors.same_command('--convert')}",
                )
            if not encrypted and looks_encrypted(self.path):
                raise errors.EncryptionDiffersError(
                    f"{self.path} looks encrypted, as by SQLCipher, but DB_ENCRYPTION is not true",
                    hint="If the bot uses SQLCipher, set DB_ENCRYPTION=true and DB_PASS in .env. To replace this file "
                    f"by a database WITHOUT encryption, add --convert: {errors.same_command('--convert')}",
                )

    def refuse_unreplaceable(self, size: int) -> None:
        """Refuse when the switch could not be done in the target's folder: tries create, link and rename.

        :param size: bytes that are needed there at the least.
        :raises UnsuitableTargetError: when it is a mount point.
        :raises CannotWriteError: when one of them is not possible.
        :raises NoSpaceError: when there is too little room.
        """
        path, folder = self.path, self.path.parent
        if is_mount_point(path):
            raise errors.UnsuitableTargetError(f"{path} is a mount point of its own: it cannot be replaced by a rename")
        probe, second = self._beside("probe"), self._beside("probe2")
        try:
            try:
                self.clear_leftovers()
                files.create_file(probe).close()
                os.rename(probe, second)
                if self.exists:
                    with contextlib.suppress(FileExistsError):
                        os.link(path, probe, follow_symlinks=False)
            finally:
                with contextlib.suppress(OSError):
                    files.drop(probe, second)
        except OSError as error:
            if error.errno not in files.NO_HARD_LINKS or not second.parent.exists() or is_immutable(path):
                raise errors.CannotWriteError(
                    f"the database cannot be replaced in {folder}: {error.strerror}",
                    hint=errors.writing_hint(
                        error,
                        folder,
                        f"Check: ls -ld {quoted(folder)}; lsattr {quoted(path)}. It needs the permissions of the "
                        "file's owner.",
                    ),
                ) from None
        free = shutil.disk_usage(folder).free
        if free < size:
            raise errors.NoSpaceError(
                f"too little space in {folder}: {megabytes(free)} free, more than {megabytes(size)} needed",
                hint=f"Make room: df -h {quoted(folder)}",
            )

    def clear_leftovers(self) -> None:
        """Remove what a run left that was killed before its switch; the lock says that none is alive."""
        copies = self.path.parent.glob(f"{glob.escape(self.path.name)}.backup-*.restore-new")
        files.drop(*map(self._beside, ("new", "probe", "probe2", "state.json.tmp")), *copies)

    def write_candidate(
        self,
        image: DatabaseImage,
        user: tuple[int, set[int]] | None,
        progress: Callable[[int], object] = lambda _: None,
    ) -> files.Identity:
        """Write the new file beside the target: complete, durable, with owner and mode, read back; return its identity.

        :param user: the user and the groups that must be able to write to it, where there is no old one to tell.
        :raises RefusedError: when it cannot be written.
        """
        path, folder = self.candidate, self.path.parent
        try:
            path.unlink(missing_ok=True)
            with files.create_file(path) as file:
                os.posix_fallocate(file.fileno(), 0, image.size)
                image.write_to(file, progress)
                if self.exists:
                    with files.open_regular(self.path) as old:
                        files.copy_metadata(old.fileno(), file.fileno())
                else:
                    files.fit_into_folder(file.fileno(), folder, user)
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that the disk is read
                proved = image.is_in(file)
            files.fsync_folder(folder)
            if not proved:
                raise errors.RefusedError(f"{path} does not hold what was written to it", hint=errors.CHECK_DISK)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise (errors.NoSpaceError if full else errors.CannotWriteError)(
                f"the new database cannot be written in {folder}: {error.strerror}",
                hint=errors.writing_hint(
                    error,
                    folder,
                    f"It needs {megabytes(image.size)} and the file owner's permissions: df -h {quoted(folder)}",
                ),
            ) from None
        return files.file_identity(path)


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted on a path, a single file included (os.path.ismount does not see those)."""
    return files.mount_point(path) == Path(str(path))


def is_immutable(path: Path) -> bool:
    """Whether the file has the attribute that chattr +i sets."""
    get_flags, immutable = 0x80086601, 0x10  # FS_IOC_GETFLAGS, FS_IMMUTABLE_FL of linux/fs.h
    with contextlib.suppress(OSError), files.open_regular(path) as file:
        flags = bytearray(8)
        fcntl.ioctl(file, get_flags, flags)
        return bool(int.from_bytes(flags[:4], sys.byteorder) & immutable)
    return False
