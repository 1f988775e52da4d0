"""A private folder in RAM that is removed when its process ends, however it ends."""

import contextlib
import ctypes
import fcntl
import os
import re
import secrets
import shutil
import stat
import subprocess
from pathlib import Path
from typing import ClassVar, Self

from backuplib.errors import NoMemoryError
from backuplib.files import CHUNK, filesystem_type, flock, open_folder
from backuplib.folder import mount_place
from backuplib.formatting import megabytes
from backuplib.processes import memory_is_locked, start_apart

GPG_HOME_LIMIT = 80  # bytes; with paths from about 90 on, gpg's sockets do not fit and imports fail silently

# A process of its own, which survives our SIGKILL: at the end of its input it ends the agent and removes the folder.
# It is the only cleanup, also when we end normally.
REAPER = """
trap '' HUP INT QUIT TERM PIPE
read -r ended # empty when we are killed
if [ -d "$1/gnupg" ]; then
    gpgconf --homedir "$1/gnupg" --kill all
    gpgconf --homedir "$1/gnupg" --remove-socketdir
    rm -rf "$1"/* # before the umount: an agent that starts now notices that its home is gone
    used=1
fi
if [ "$used" ] || [ -z "$ended" ]; then # its home may be in a mount namespace that only the agent still has
    # A gpg that outlives us may be starting an agent, a few forks away.
    for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        left=$(printf %s "$1/gnupg" | grep -lsaF -f - /proc/[0-9]*/cmdline)
        for process in $left; do
            process=${process%/cmdline}
            kill -KILL "${process#/proc/}"
        done
        if [ -z "$left" ] && { [ "$ended" ] || [ "$round" -gt 5 ]; }; then break; fi
        sleep 0.1
    done
fi
umount -l "$1"
rm -rf "$1"
"""


_CLONE_NEWNS = 0x00020000
_MS_NOSUID_NODEV_NOEXEC, MS_BIND, _MS_REC_SLAVE = 2 | 4 | 8, 1 << 12, 1 << 14 | 1 << 19


def enter_private_mounts() -> None:
    """Give this process its own mount namespace.

    There a RAM folder can be a tmpfs that is never swapped out, and folders are reached where nobody else has a name.

    Call it before any thread starts. Without root it has no effect. Mounts made outside later still appear inside.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0:
        return
    entered = libc.unshare(_CLONE_NEWNS) == 0 and libc.mount(b"none", b"/", None, _MS_REC_SLAVE, None) == 0
    RamFolder.private_mounts, RamFolder.not_mounted = entered, os.strerror(ctypes.get_errno())
    if entered:
        RamFolder.not_mounted = "not enough memory, or /run cannot be written"  # if it is not mounted all the same
        mount_place()


class RamFolder:
    """A private folder in RAM (mode 0700) for ``need`` bytes, removed when closed and when this process is killed.

    A tmpfs that cannot be swapped out if :func:`enter_private_mounts` succeeded, else a folder in XDG_RUNTIME_DIR or
    /dev/shm. Never on a disk: NoMemoryError when neither has that much room.
    """

    private_mounts: ClassVar[bool] = False
    not_mounted: ClassVar[str] = "that takes root"  # why there is no tmpfs that is never swapped out

    def __init__(self, need: int = CHUNK) -> None:
        self._mounted = False
        if self.private_mounts and available_memory() >= need and os.access("/run", os.W_OK):
            self._make(Path("/run"))
            options = b"noswap,mode=0700,size=100%"  # noswap: Linux 6.4 and newer
            libc = ctypes.CDLL(None, use_errno=True)
            path = os.fsencode(self.path)
            self._mounted = not libc.mount(b"restore-backup", path, b"tmpfs", _MS_NOSUID_NODEV_NOEXEC, options)
            if self._mounted:
                return
            RamFolder.not_mounted = os.strerror(ctypes.get_errno())  # EINVAL before Linux 6.4
            self.close()
        self._make(self._fitting_parent(need))

    def _make(self, parent: Path) -> None:
        """Start the reaper, then make the folder; the lock, which it has before its name, marks it as in use."""
        self.path = parent / f"restore-backup-{secrets.token_hex(4)}"
        self._reaper = _start_reaper("reaper", self.path, subprocess.PIPE)
        unlocked = self.path.with_name(f".{self.path.name}")
        unlocked.mkdir(mode=0o700)
        self._lock = open_folder(unlocked)
        flock(self._lock, fcntl.LOCK_EX)
        unlocked.rename(self.path)

    def _fitting_parent(self, need: int) -> Path:
        refused = []
        for parent in _parents():
            reason = self._unfit(parent, need)
            if not reason:
                return parent
            refused.append(f"{parent} {reason}")
        raise NoMemoryError(
            f"no RAM folder for {megabytes(need)}: {'; '.join(refused)}",
            hint="Enlarge one (as root: mount -o remount,size=90% /dev/shm), or use a machine with more memory. "
            "Decrypted data is never written to a disk.",
        )

    @staticmethod
    def _unfit(folder: Path, need: int) -> str:
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
            return "is not a writable directory"
        status = folder.stat()
        private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
        if not private and not (status.st_uid == 0 and status.st_mode & stat.S_ISVTX):
            return "is open to others, who could exchange what is in it"
        if filesystem_type(folder) not in ("tmpfs", "ramfs"):
            return "is not in RAM"
        if len(os.fsencode(folder)) + len("/restore-backup-12345678/gnupg") > GPG_HOME_LIMIT:
            return "has too long a path"
        if shutil.disk_usage(folder).free < need or available_memory() < need:
            return f"has room for {megabytes(min(shutil.disk_usage(folder).free, available_memory()))}"
        return ""

    @property
    def swappable(self) -> bool:
        """Whether its content may be swapped out to a disk."""
        return not self._mounted and swap_on_disk()

    def unprotected(self) -> list[str]:
        """Return what could be swapped out to a disk, and why; nothing where there is no such swap."""
        if not swap_on_disk():
            return []
        found = [] if not self.swappable else [f"what is in the RAM folder (no tmpfs with noswap: {self.not_mounted})"]
        if not memory_is_locked():
            found.append(
                "the memory of this process (it could not be locked, which takes root or `ulimit -l unlimited`)"
            )
        return found

    @property
    def free(self) -> int:
        """Bytes that still fit."""
        return min(shutil.disk_usage(self.path).free, available_memory())

    def require(self, need: int, purpose: str) -> None:
        """Raise NoMemoryError unless so many bytes fit."""
        if self.free < need:
            raise NoMemoryError(
                f"not enough RAM to {purpose}: {megabytes(self.free)} free in {self.path}, {megabytes(need)} needed",
                hint="Stop other programs, or use a machine with more memory.",
            )

    def close(self) -> None:
        """Have the reaper end the gpg agent and remove the folder."""
        if self._reaper.stdin and not self._reaper.stdin.closed:
            os.close(self._lock)
            with contextlib.suppress(OSError):  # it was killed
                self._reaper.stdin.write(b"ended\n")
                self._reaper.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it continues on its own
                self._reaper.wait(timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parents() -> list[Path]:
    """Where RAM folders may be, beside /run; root's XDG_RUNTIME_DIR may be what `su` handed on from somebody else."""
    session = os.environ.get("XDG_RUNTIME_DIR") if os.geteuid() else None
    return [Path(parent) for parent in (session, "/dev/shm") if parent]  # noqa: S108 - looked at before it is used


def _start_reaper(name: str, folder: Path, stdin: int) -> subprocess.Popen[bytes]:
    return start_apart(
        ["/bin/sh", "-c", REAPER, name, str(folder)],
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": ":".join(filter(None, (os.environ.get("PATH"), os.defpath)))},
        cwd="/",
    )


def remove_leftovers() -> None:
    """End the agents, and remove the folders, of runs whose process and reaper were both killed."""
    for left in (path for parent in (Path("/run"), *_parents()) for path in parent.glob("restore-backup-*")):
        with contextlib.suppress(OSError):
            status = left.lstat()
            # a mount belongs to our parent process, and hides its lock
            ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            if ours and status.st_dev == left.parent.stat().st_dev:
                descriptor = open_folder(left)
                if flock(descriptor, fcntl.LOCK_EX):
                    _start_reaper("leftovers", left, subprocess.DEVNULL).wait(timeout=30)
                os.close(descriptor)


def swap_on_disk(swaps: str | None = None) -> bool:
    """Whether memory can be swapped out to anything but compressed RAM (zram), according to /proc/swaps."""
    text = Path("/proc/swaps").read_text() if swaps is None else swaps
    return any(line and not line.startswith("/dev/zram") for line in text.splitlines()[1:])


def available_memory() -> int:
    """Return MemAvailable: bytes that programs can still allocate without swapping."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0
