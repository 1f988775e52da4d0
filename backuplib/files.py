"""Durable files and locks."""

import contextlib
import errno
import fcntl
import io
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from backuplib.folder import AnchoredPath

CHUNK = 1 << 20  # bytes that a stream handles at a time
NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}  # link() on filesystems without them


def open_folder(folder: Path) -> int:
    """Return a descriptor of a folder, for locking it or looking up names in it."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = open_folder(folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_file(path: Path) -> io.FileIO:
    """Create a file for reading and writing, mode 0600 from the start; FileExistsError for a name in use, or a link."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return io.FileIO(descriptor, "r+")


def open_regular(path: Path | str, flags: int = os.O_RDONLY) -> io.FileIO:
    """Open a file that may have been planted: a named pipe would block, a device might never end, a link leads away.

    :param flags: those of open(2); O_CREAT makes it with mode 0600.
    :raises OSError: also when it is a link, or not a regular file.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return _Regular(descriptor, "r" if flags & os.O_ACCMODE == os.O_RDONLY else "a")


class _Regular(io.FileIO):
    """A file that never blocks: one of the kernel's, which is regular by its status only, has nothing to read yet."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read on; OSError where that would block."""
        data: bytes | None = super().read(size)
        if data is None:
            raise OSError(errno.EAGAIN, "not a file on a disk", self.name)
        return data


def write_all(file: io.FileIO, data: bytes | memoryview) -> None:
    """Write all of the data to an unbuffered file; a single write may be short without an error."""
    view = memoryview(data)
    while view:
        view = view[file.write(view[: 8 * CHUNK]) :]


def name_without_replacing(file: Path, descriptor: int, name: Path) -> None:
    """Give an open file a new name, or raise FileExistsError; the old name may remain as a second link.

    :param file: the old name.
    """
    try:
        os.link(file, name)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if os.path.lexists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(name)) from None
        os.rename(file, name)
    refuse_exchanged(descriptor, name)


def refuse_exchanged(descriptor: int, name: Path) -> None:
    """Make sure that an open file is what was given a name, after the fact: OSError when others had exchanged it."""
    if not os.path.samestat(name.lstat(), os.fstat(descriptor)):
        raise OSError(errno.ESTALE, "another file was put in the place of the one that was opened", str(name))


def link_or_copy(file: Path, name: Path) -> None:
    """Give a regular file one more name, without reading it; where the filesystem has no hard links, to a copy of it.

    :raises OSError: also when it is no regular file, or was exchanged, or the name is taken.
    """
    descriptor = os.open(file, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)  # the end of such a one ends no lock of SQLite
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(file))
        os.link(file, name, follow_symlinks=False)
        refuse_exchanged(descriptor, name)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        copy_durably(file, name)
    finally:
        os.close(descriptor)


def flock(descriptor: int, operation: int) -> bool:
    """Take a kernel lock without waiting; False when another process holds it."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


Identity = tuple[int, int, int, int]


def file_identity(path: Path | int) -> Identity:
    """Return device, inode, size and mtime (ns): equal while a path is the same, unchanged file."""
    status = os.fstat(path) if isinstance(path, int) else os.lstat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def same_file(one: Path, other: Path) -> bool:
    """Whether two names exist and are links to one file."""
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except FileNotFoundError:
        return False


def stat_or_none(path: Path) -> os.stat_result | None:
    """Return the status of a file, None when it does not exist; any other error is raised: it does not prove that.

    Of a link, its own.
    """
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def mount_point(path: Path) -> Path:
    """Return where the filesystem of a path, links resolved, is mounted, bind mounts included."""
    points = {unescaped(line.split()[4]) for line in _mountinfo()}
    place = Path(str(path) if isinstance(path, AnchoredPath) else os.path.realpath(path))
    return next((above for above in (place, *place.parents) if str(above) in points), Path("/"))


def filesystem_type(path: Path) -> str:
    """Return the type of a path's filesystem, as the kernel names it ("ext4", "tmpfs", …); empty: it does not tell.

    By its device, whatever is mounted over what; where that is in no list, as in subvolumes of btrfs, by its name.
    """
    device = path.stat().st_dev
    number, point = f"{os.major(device)}:{os.minor(device)}", str(mount_point(path))
    mounts = [line.partition(" - ") for line in _mountinfo()]
    found = [kind for mount, _, kind in mounts if mount.split()[2] == number]
    found = found or [kind for mount, _, kind in mounts if unescaped(mount.split()[4]) == point]
    return found[-1].split()[0] if found else ""


def _mountinfo() -> list[str]:
    return Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()


def unescaped(name: str) -> str:
    """Return a path of /proc/self/mountinfo, which has blanks and other signs as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)


@contextlib.contextmanager
def replacing(path: Path, suffix: str) -> Iterator[io.FileIO]:
    """Yield a new file that replaces ``path`` durably when the block succeeds, and is removed when it fails.

    :param suffix: added to the name meanwhile.
    """
    temporary = path.with_name(path.name + suffix)
    temporary.unlink(missing_ok=True)
    try:
        with create_file(temporary) as file:
            yield file
            os.fsync(file.fileno())
            temporary.rename(path)
            refuse_exchanged(file.fileno(), path)
    except BaseException:
        drop_quietly(temporary)
        raise
    fsync_folder(path.parent)


def same_content(one: Path, other: Path) -> bool:
    """Whether two files, which may have been planted, hold the same bytes; OSError when they cannot be read."""
    with open_regular(one) as first, open_regular(other) as second:
        while (piece := first.read(CHUNK)) == second.read(CHUNK):
            if not piece:
                return True
    return False


def copy_content(source: Path, target: Path) -> None:
    """Copy what is in a file that may have been planted to a new one; OSError when it is not a regular file."""
    with open_regular(source) as old, create_file(target) as new:
        shutil.copyfileobj(old, new, CHUNK)


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file with its metadata; the copy appears under its name only when it is complete.

    What is copied, and whose metadata it gets, is one file that was opened; OSError when it is not a regular one.
    """
    with open_regular(source) as old, replacing(target, ".restore-new") as new:
        shutil.copyfileobj(old, new, CHUNK)
        copy_metadata(old.fileno(), new.fileno())


def copy_metadata(source: int, target: int) -> None:
    """Give an open file the owner, mode and extended attributes (ACL included) of another one that is open.

    :raises OSError: when one cannot be set; the bot might then be unable to open its database.
    """
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        os.setxattr(target, name, os.getxattr(source, name))


def fit_into_folder(descriptor: int, folder: Path, user: tuple[int, set[int]] | None) -> None:
    """Give a new file the owner, group and mode with which those can write to it who can write into its folder.

    :param user: the user and the groups who must be able to; None: the folder's owner.
    :raises OSError: when the owner cannot be set.
    """
    status = folder.stat()
    uid, groups = user or (status.st_uid, {status.st_gid})
    by_group = status.st_mode & stat.S_IWGRP and (not user or (uid != status.st_uid and status.st_gid in groups))
    default_acl = "system.posix_acl_default" in os.listxattr(folder)  # the group's bits are its mask
    owner = uid if uid and not by_group and os.geteuid() == 0 else status.st_uid
    os.fchown(descriptor, owner, status.st_gid)
    os.fchmod(descriptor, 0o660 if by_group or default_acl else 0o640)


def give_to_owner_of(folder: Path, descriptor: int) -> None:
    """Give a new file that root has made in somebody's folder to its owner; on a filesystem without owners, nothing.

    Never a file that was there before: it may be another name of one that is none of theirs.
    """
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            status = folder.stat()
            os.fchown(descriptor, status.st_uid, status.st_gid)


def is_ours(descriptor: int) -> bool:
    """Whether an open file is this user's, has no other name, and nobody else may read or write it."""
    status = os.fstat(descriptor)
    return status.st_uid == os.geteuid() and status.st_nlink == 1 and not status.st_mode & 0o077


def who_else_wrote(descriptor: int) -> str:
    """Return why somebody else than this user or root can have written what an open file says; empty when nobody can.

    One with another name is not believed, nor one without any.
    """
    status = os.fstat(descriptor)
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to uid {status.st_uid}"
    if status.st_mode & 0o022:
        return f"its mode is {stat.S_IMODE(status.st_mode):04o}"
    return "" if status.st_nlink == 1 else f"it has {status.st_nlink} names"


def is_believable(descriptor: int) -> bool:
    """Whether only this user or root can have written what an open file says."""
    return not who_else_wrote(descriptor)


def drop_quietly(path: Path) -> None:
    """Remove a file of ours if possible; otherwise the next run does."""
    with contextlib.suppress(OSError):
        path.unlink()


def drop(*paths: Path) -> None:
    """Remove files that may exist, durably."""
    for path in paths:
        path.unlink(missing_ok=True)
    fsync_folder(paths[0].parent)
