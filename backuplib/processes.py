"""Commands that are run, this process itself, and who has a file open."""

import contextlib
import ctypes
import io
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType

from backuplib.errors import CommandFailedError, MissingProgramError
from backuplib.files import stat_or_none


def child_environment(**extra: str) -> dict[str, str]:
    """Return the environment for a child process: ours without the database passphrase."""
    return {name: value for name, value in os.environ.items() if name != "DB_PASS"} | extra


def run_command(
    argv: list[str], *, timeout: float, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """Run a command out of the terminal's reach and return its standard output.

    :param timeout: seconds after which it is killed.
    :raises CommandFailedError: with the last lines of its standard error.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env=child_environment() if env is None else env,
            cwd=cwd,
            start_new_session=True,  # a Ctrl-C must not reach it
            check=False,
        )
    except FileNotFoundError:
        raise MissingProgramError(
            f"{argv[0]} is not installed", hint=f"Install the package that provides {argv[0]}."
        ) from None
    except OSError as error:
        raise CommandFailedError(f"{argv[0]} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise CommandFailedError(f"`{' '.join(argv[:4])} …` did not end within {timeout:.0f} s") from None
    output = done.stdout.decode(errors="replace")
    if done.returncode:
        last = " / ".join(done.stderr.decode(errors="replace").strip().splitlines()[-3:])
        raise CommandFailedError(
            f"`{' '.join(argv)[:100]}` failed with exit code {done.returncode}: {last or 'no message'}", output=output
        )
    return output


CAP_IPC_LOCK, CAP_SYS_PTRACE = 14, 19
"""Numbers of capabilities (linux/capability.h): to lock any amount of memory; to look at any process."""


def has_capability(number: int) -> bool:
    """Whether this process has a capability."""
    match = re.search(r"^CapEff:\s+([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(match and int(match[1], 16) >> number & 1)


def harden_process() -> None:
    """Keep this process's memory out of core dumps, out of other processes, and out of the swap area if it may."""
    libc = ctypes.CDLL(None)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # inherited by gpg
    pr_set_dumpable = 4
    libc.prctl(pr_set_dumpable, 0, 0, 0, 0)
    # With a limit, locking makes later allocations fail; CAP_IPC_LOCK is above it.
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY or has_capability(CAP_IPC_LOCK):
        mcl_current_future_onfault = 1 | 2 | 4
        libc.mlockall(mcl_current_future_onfault)
    os.umask(0o077)


class Interrupted(BaseException):
    """A signal that ends the run, before the switch."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """SIGHUP, SIGINT and SIGTERM end the run until the switch begins; then, and after the first, they are ignored."""

    def __init__(self) -> None:
        self._ignored = False
        self._ended_by: int | None = None

    def install(self) -> None:
        """Take the signals over, also again after a shield."""
        self._ignored = False
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)

    def shield(self) -> None:
        """From here to the end nothing interrupts."""
        self.ignore()
        self.check()

    def ignore(self) -> None:
        """Have them ignored, also while the run is ending.

        By the kernel, not by a handler: a child would not inherit that, and a signal to the whole group could end it in
        the moment before it has a session of its own.
        """
        self._ignored = True  # for one that has arrived and was not handled yet
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def check(self) -> None:
        """Raise again what was swallowed: SQLite does that while it calls back into Python, Python in a destructor."""
        if self._ended_by is not None:
            raise Interrupted(self._ended_by)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if not self._ignored:
            self.ignore()  # a second one would interrupt the cleaning up
            self._ended_by = number
            raise Interrupted(number)


def open_streams() -> None:
    """Put /dev/null where a standard stream is closed, as cron and some wrappers leave them.

    Else the next file that is opened, the database even, would get that number, and be printed into.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdin = sys.stdin or io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = sys.stdout or io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.stderr = sys.stderr or io.TextIOWrapper(io.FileIO(2, "w", closefd=False))


def close_streams() -> None:
    """Flush the standard streams; a reader that has gone must not change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def command_of(process: Path) -> str:
    """Return the command line of a process, given its folder in /proc, as far as a message has room."""
    try:
        program, *arguments = (process / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return "?"
    return " ".join([Path(program).name, *arguments]).strip()[:100] or "?"


def lock_owner(descriptor: int) -> str:
    """Say which process holds the lock on an open folder, and since when it runs."""
    status = os.fstat(descriptor)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if file in fields and "FLOCK" in fields and "->" not in fields:
            process = Path("/proc") / fields[fields.index(file) - 1]
            with contextlib.suppress(OSError):
                since = datetime.fromtimestamp(process.stat().st_ctime).astimezone()
                return f"{command_of(process)} (pid {process.name}) since {since:%H:%M:%S}"
    return "a process that cannot be seen from here"


@dataclass(frozen=True)
class Holder:
    """A process that has the database or one of its sidecars open."""

    pid: int
    command: str
    cgroup: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"

    @property
    def ending(self) -> str:
        """The command that ends it; a process killed in a container may be started again by its restart policy."""
        container = re.search(r"[0-9a-f]{64}", self.cgroup)
        return f"docker stop {container[0][:12]}" if container else f"kill {self.pid}"


def find_holders(paths: Sequence[Path]) -> tuple[list[Holder], int]:
    """Return the processes that have one of the files open, and how many processes could not be looked at.

    Files are compared by device and inode, since inside a container they have other paths.
    """
    files = {(status.st_dev, status.st_ino) for path in paths if (status := stat_or_none(path)) is not None}
    holders, hidden = [], 0
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        holds = _holds(process, files)
        if holds:
            holders.append(_holder(process))
        hidden += holds is None
    return holders, hidden


def _holds(process: Path, files: set[tuple[int, int]]) -> bool | None:
    """Whether a process has one of the files open; None when it may not be looked at."""
    for _ in range(2):  # twice, since the kernel also denies a look at what has ended this moment
        with contextlib.suppress(PermissionError):
            try:
                return any(_identity(descriptor) in files for descriptor in (process / "fd").iterdir())
            except (FileNotFoundError, ProcessLookupError):  # it has ended
                return False
    return None


def _identity(descriptor: Path) -> tuple[int, int]:
    """Device and inode behind an entry of /proc/PID/fd, which may be listed even where it may not be looked at."""
    try:
        status = descriptor.stat()
    except FileNotFoundError:  # closed since it was listed
        return (0, 0)
    return status.st_dev, status.st_ino


def _holder(process: Path) -> Holder:
    cgroup = ""
    with contextlib.suppress(OSError):
        cgroup = (process / "cgroup").read_text()
    return Holder(int(process.name), command_of(process), cgroup)
