"""Folders in which others can write: opened once, and what is in them is reached through that, never by name again.

Whoever owns a folder above can rename it, or put a link in its place, at any moment; whoever can write in it can do the
same with each file. So a folder is resolved and opened once, and all that is done in it is done in the one that was
opened:

- As root, after :func:`backuplib.ram_folder.enter_private_mounts`, it is mounted, by its descriptor, where only this
  process and its children see it: no name on the way there is anybody else's, and the kernel follows no link in it
  (Linux 5.10 and newer; before that it is mounted without).
- Else it is reached through /proc/self/fd. SQLite finds out what that leads to, and opens a database and its sidecars
  by the name that the folder has at that moment. Whether it has the right database is looked at when that is open; but
  who can rename folders above could have it open, or make, a sidecar elsewhere, which is said: :attr:`Folder.exposed`.

An :class:`AnchoredPath` is such a place: a path that is called by its name, and reached through the folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import stat
import weakref
from collections.abc import Generator, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PosixPath
from typing import Any, ClassVar, Self, cast

# Where folders are mounted: a place that each kernel with sysfs has and that nothing started here asks for (container
# runtimes mask it, too). Nobody else sees what is mounted there, and nothing is left when this process is killed.
PLACE = "/sys/firmware"

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_NOSYMFOLLOW, _MS_BIND = 2, 4, 8, 32, 256, 4096  # linux/mount.h
_KEPT = 1 | _MS_NOEXEC | 1024 | 2048  # of the mount that it is in: read-only, noexec, noatime, nodiratime


_MOST_LINKS = 40  # on the way to a folder, as the kernel has it


class Folder:
    """A folder, opened: the same one whatever its name leads to later.

    :param path: links in it are followed, this once, but for those of other users that lead to what is not theirs.
    :param mounted: reach it where it is mounted, if that is possible.
    :raises OSError: when it cannot be opened; ELOOP for such a link.

    ``exposed``: others can rename folders above, and it is not mounted, so that SQLite is not safe from that.
    """

    private: ClassVar[bool] = False  # whether folders can be mounted where nobody else sees them
    _numbers: ClassVar[Iterator[int]] = itertools.count(1)
    names: ClassVar[dict[str, str]] = {}  # by where they are reached

    def __init__(self, path: Path, *, mounted: bool = True) -> None:
        self._descriptor, self.path, above = _opened(str(path))
        weakref.finalize(self, os.close, self._descriptor)
        own = f"/proc/self/fd/{self._descriptor}"
        os.stat(own)  # FileNotFoundError where there is no /proc
        self.at = (mounted and self.private and self._mounted(own)) or own
        self.names[self.at] = str(self.path)
        self.exposed = self.at == own and any(map(_can_be_renamed_by_others, above))

    def _mounted(self, source: str) -> str:
        """Mount it, and return where; nothing where that is not possible."""
        place = f"{PLACE}/{next(self._numbers)}{self.path}"
        os.makedirs(place)
        if not _mount(source, place, _MS_BIND):
            return ""
        kept = os.fstatvfs(self._descriptor).f_flag & _KEPT
        _mount(None, place, _MS_REMOUNT | _MS_BIND | _MS_NOSUID | _MS_NODEV | _MS_NOSYMFOLLOW | kept)
        return place

    @property
    def anchor(self) -> AnchoredPath:
        """The folder itself, for what is in it: ``folder.anchor / name``."""
        return AnchoredPath.of(self.path, self)

    @property
    def has_its_name(self) -> bool:
        """Whether its name leads to it, at this moment."""
        try:
            named = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(named, os.fstat(self._descriptor))


def _opened(path: str) -> tuple[int, Path, list[os.stat_result]]:
    """Open a folder, and return its path without links, which lead nowhere else between a look and a step here.

    :returns: its descriptor, that path, and what the folders above it are.
    """
    with contextlib.suppress(OSError):
        os.stat(f"{path}/.")  # what is mounted when somebody asks for it
    found, left = ["/"], [*reversed(Path(path).absolute().parts[1:])]
    links: list[tuple[str, int]] = []  # with their owners
    above: list[os.stat_result] = []
    here = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        while left:
            name = left.pop()
            place = os.path.join(*found, name)
            try:
                there = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            except OSError as error:
                raise OSError(error.errno, error.strerror, place) from None
            if stat.S_ISLNK((status := os.fstat(there)).st_mode):
                left += reversed(Path(os.readlink("", dir_fd=there)).parts)
                os.close(there)
                links.append((place, status.st_uid))
                if len(links) > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), place)
            else:
                above.append(os.fstat(here))
                os.close(here)
                here = there
                found = ["/"] if name == "/" else found[:-1] or ["/"] if name == ".." else [*found, name]
        status = os.fstat(here)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        for place, owner in links:
            if owner not in {*_trusted(), status.st_uid}:
                raise OSError(errno.ELOOP, "a link of another user's, and it leads to what is not that user's", place)
    except BaseException:
        os.close(here)
        raise
    return here, Path(*found), above


def _can_be_renamed_by_others(folder: os.stat_result) -> bool:
    """Whether others than root and this user can rename what is in a folder that is not theirs alone to change."""
    group = stat.S_IWGRP if folder.st_gid != os.getegid() else 0
    open_to_others = folder.st_mode & (stat.S_IWOTH | group) and not folder.st_mode & stat.S_ISVTX
    return folder.st_uid not in {0, os.geteuid()} or bool(open_to_others)


def _trusted() -> set[int]:
    """Return whose links to folders are followed wherever they lead: root's, this user's, and those of who called sudo.

    Those of others are when they lead to what belongs to them, as SymLinksIfOwnerMatch has it in web servers.
    """
    sudo = os.environ.get("SUDO_UID", "") if os.geteuid() == 0 else ""
    return {0, os.geteuid(), *([int(sudo)] if sudo.isdecimal() else [])}


class AnchoredPath(PosixPath):
    """A path in a folder that was opened: ``str`` is its name, for people; the system is given where it is reached.

    Paths that are made from it are in the same folder; those above it are plain ones.
    """

    folder: Folder

    @classmethod
    def of(cls, path: Path, folder: Folder) -> Self:
        """Return a path, which is in the folder or is that itself."""
        made = cls(str(path))
        made.folder = folder
        return made

    def _made(self, path: Path) -> Self:
        above = self.folder.path.parts
        return self.of(path, self.folder) if path.parts[: len(above)] == above else cast(Self, Path(str(path)))

    def __fspath__(self) -> str:
        """Return where it is reached."""
        return os.path.join(self.folder.at, *self.parts[len(self.folder.path.parts) :])

    def __reduce__(self) -> Any:
        return Path, (str(self),)  # of a copy, only the name counts

    def __truediv__(self, key: str | os.PathLike[str]) -> Self:
        return self._made(Path(str(self)) / str(key))

    def with_name(self, name: str) -> Self:
        """Return what is beside it under another name."""
        return self._made(Path(str(self)).with_name(name))

    def with_suffix(self, suffix: str) -> Self:
        """Return what is beside it with another suffix."""
        return self._made(Path(str(self)).with_suffix(suffix))

    @property
    def parent(self) -> Self:
        """The folder that it is in."""
        return self._made(Path(str(self)).parent)

    @property
    def parents(self) -> Sequence[Self]:
        """The folders that it is in."""
        return [self._made(path) for path in Path(str(self)).parents]

    def iterdir(self) -> Generator[Self, None, None]:
        """Return what is in it."""
        return (self / name for name in os.listdir(self))

    def glob(self, pattern: str, **_: Any) -> Generator[Self, None, None]:
        """Return what is in it under names that fit."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def resolve(self, strict: bool = False) -> Self:  # noqa: ARG002 - of the class above
        """Return it: its folder is resolved."""
        return self


def mount_place() -> None:
    """Make a place for folders in the mount namespace of this process, if that is possible."""
    flags, mode = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "mode=0700"
    Folder.private = any(  # a kernel before 6.4 does not know noswap
        _mount("restore-backup", PLACE, flags, "tmpfs", options) for options in (f"noswap,{mode}", mode)
    )


def _mount(source: str | None, place: str, flags: int, kind: str | None = None, options: str | None = None) -> bool:
    words = [os.fsencode(word) if word is not None else None for word in (source, place, kind, options)]
    return bool(ctypes.CDLL(None, use_errno=True).mount(*words[:3], flags, words[3]) == 0)


def anchored(path: Path, *, mounted: bool = True) -> AnchoredPath:
    """Return a path in its folder, which is opened unless it was before; the last name is not followed.

    :param mounted: see :class:`Folder`; SQLite needs it, which finds out the names of folders by itself.
    :raises OSError: when the folder cannot be opened.
    """
    return path if isinstance(path, AnchoredPath) else Folder(path.parent, mounted=mounted).anchor / path.name


def anchored_folder(path: Path) -> AnchoredPath:
    """Return a folder, opened; OSError when it cannot be."""
    return path if isinstance(path, AnchoredPath) else Folder(path).anchor


def resolved(path: Path, *, mounted: bool = True) -> AnchoredPath:
    """Return what a path leads to, in its folder; a link is followed if nobody else can have made it.

    :raises OSError: ELOOP when somebody else can; when a folder cannot be opened.
    """
    place = anchored(path, mounted=mounted)
    if not place.is_symlink():
        return place
    if may_be_planted(place):
        raise OSError(errno.ELOOP, "a link that others than this user and root may have made", str(place))
    return anchored(Path(os.path.realpath(place.folder.path / os.readlink(place))), mounted=mounted)


def may_be_planted(link: Path) -> bool:
    """Whether somebody else than this user and root can have made a link, who can lead it anywhere."""
    ours, folder = {0, os.geteuid()}, link.parent.stat()
    return link.lstat().st_uid not in ours or folder.st_uid not in ours or bool(folder.st_mode & 0o022)


def moved(path: Path) -> str:
    """Say that the name of a path's folder leads to another one than was opened; nothing when it does not."""
    if not isinstance(path, AnchoredPath) or path.folder.has_its_name:
        return ""
    return f"{path.folder.path} was moved or replaced meanwhile: it does not lead to the folder that was opened"


def name_of(reached: str) -> str:
    """Return the name of a path that may be where a file is reached, as errors of the system have it."""
    for at, name in Folder.names.items():
        if reached == at or reached.startswith(f"{at}/"):
            return name + reached[len(at) :]
    return reached


def is_open(descriptor: int) -> bool:
    """Whether this process has a file open more than once: by way of this descriptor, and of another one."""
    wanted = os.fstat(descriptor)
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            found = os.fstat(number)
        except OSError:  # it was closed since it was listed
            continue
        if number != descriptor and os.path.samestat(found, wanted) and stat.S_ISREG(found.st_mode):
            return True
    return False
