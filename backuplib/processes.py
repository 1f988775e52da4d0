"""Running commands, protecting this process, and finding out who has a file open."""

import contextlib
import ctypes
import io
import itertools
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from backuplib.errors import CommandFailedError, MissingProgramError
from backuplib.files import stat_or_none
from backuplib.formatting import printable

CAP_IPC_LOCK, CAP_SYS_PTRACE = 14, 19  # linux/capability.h: lock any amount of memory; inspect any process


# What is a secret, or may hold one, and no child's business; rclone's variables are given to rclone alone.
_WITHHELD = re.compile(r"DB_PASS|PING_URL|NOTIFY_URLS|RCLONE_.*", re.DOTALL)


def child_environment(**extra: str) -> dict[str, str]:
    """Return our environment without secrets, for a child process."""
    return {name: value for name, value in os.environ.items() if not _WITHHELD.fullmatch(name)} | extra


def run_command(
    argv: list[str], *, timeout: float, env: Mapping[str, str] | None = None, errors_too: bool = False
) -> str:
    """Run a command as :func:`command_output` does, and return what it prints as text."""
    return command_output(argv, timeout=timeout, env=env, errors_too=errors_too).decode(errors="replace")


def command_output(
    argv: list[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    errors_too: bool = False,
    given: bytes | None = None,
) -> bytes:
    """Run a command in a session of its own and return its standard output.

    :param timeout: seconds after which it is killed.
    :param errors_too: return its standard error, too.
    :param given: its standard input.
    :raises CommandFailedError: with the last lines of its standard error.
    """
    try:
        process = start_apart(
            argv,
            stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if errors_too else subprocess.PIPE,
            env=child_environment() if env is None else env,
        )
    except FileNotFoundError:
        raise MissingProgramError(
            f"{argv[0]} is not installed", hint=f"Install the package that provides {argv[0]}."
        ) from None
    except OSError as error:
        raise CommandFailedError(f"{argv[0]} cannot be run: {error.strerror}") from None
    with process:
        try:
            output, messages = process.communicate(given, timeout=timeout)
        except BaseException as error:
            process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise CommandFailedError(f"`{' '.join(argv[:4])} …` did not end within {timeout:.0f} s") from None
    if process.returncode:
        last = " / ".join((messages or output).decode(errors="replace").strip().splitlines()[-3:])
        raise CommandFailedError(
            f"`{' '.join(argv)[:100]}` failed with exit code {process.returncode}: {last or 'no message'}",
            output=output.decode(errors="replace"),
            messages=(messages or b"").decode(errors="replace"),
        )
    return bytes(output)


def has_capability(number: int) -> bool:
    """Whether this process has a capability."""
    match = re.search(r"^CapEff:\s+([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(match and int(match[1], 16) >> number & 1)


def harden_process() -> None:
    """Keep this process's memory out of core dumps, other processes and, if permitted, the swap area."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # inherited by gpg
    pr_set_dumpable = 4
    ctypes.CDLL(None).prctl(pr_set_dumpable, 0, 0, 0, 0)
    lock_memory()
    os.umask(0o077)


def lock_memory() -> None:
    """Keep this process's memory out of the swap area, if that is permitted."""
    # With a limit, locking makes later allocations fail; CAP_IPC_LOCK lifts the limit.
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY or has_capability(CAP_IPC_LOCK):
        mcl_current_future_onfault = 1 | 2 | 4
        ctypes.CDLL(None).mlockall(mcl_current_future_onfault)  # whether it was done tells memory_is_locked()


def memory_is_locked() -> bool:
    """Whether all memory of this process stays out of the swap area: what the kernel says, whatever mlockall did."""
    text = Path("/proc/self/status").read_text()
    locked, resident = (re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE) for name in ("VmLck", "VmRSS"))
    return bool(locked and resident and int(locked[1]) >= int(resident[1]))


class Interrupted(BaseException):
    """A signal that ends the run, before the switch."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """SIGHUP, SIGINT, SIGQUIT and SIGTERM end the run until the switch begins, and SIGTSTP suspends it.

    Then, and after the first, none of them does any more. Behind the shield those of the keyboard are answered: who
    gets no answer presses on. A restore that has stopped the services, and nothing more, hears SIGINT and SIGTERM
    again, see :meth:`heard`.
    """

    def __init__(self) -> None:
        self._ignored = False
        self._ended_by: int | None = None
        self.can_be_taken_back = False  # SIGINT is heard behind the shield
        self.answer: Callable[[], object] = lambda: None  # to a key that comes too late
        self.before_suspension: Callable[[], object] = lambda: None
        self.after_suspension: Callable[[], object] = lambda: None  # also when nobody told of its beginning

    def install(self, *numbers: int) -> None:
        """Handle the signals, or some of those that end the run, also again after a shield."""
        self._ignored = False
        for number in numbers or ENDING:
            signal.signal(number, self._received)
        if not numbers:
            for number in BACKGROUND:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGTSTP, self._suspended)
            signal.signal(signal.SIGCONT, lambda *_: self.after_suspension())

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Hear SIGINT and SIGTERM behind the shield, for work that can still be taken back; not the loss of a terminal.

        :raises Interrupted: for a signal; nothing remains of it, so that what is taken back is not interrupted.
        """
        self.can_be_taken_back = True
        self.install(signal.SIGINT, signal.SIGTERM)
        try:
            yield
            self.shield()
        finally:
            self.can_be_taken_back = False
            self._ended_by = None
            self.shield()

    def shield(self) -> None:
        """Let nothing interrupt until the end; a signal that has already arrived still ends the run."""
        self.ignore()
        for number in KEYBOARD:
            signal.signal(number, self.answered)
        self.check()

    def ignore(self) -> None:
        """Ignore the signals, and never stop as a process in the background."""
        self._ignored = True  # for a signal that has arrived and is not handled yet
        for number in (*ENDING, *KEYBOARD, *BACKGROUND):
            signal.signal(number, signal.SIG_IGN)

    def check(self) -> None:
        """Raise what SQLite (in a callback) or Python (in a destructor) has swallowed."""
        if self._ended_by is not None:
            raise Interrupted(self._ended_by)

    def _received(self, number: int, _frame: object) -> None:
        if not self._ignored:
            self.ignore()  # a second signal would interrupt the cleanup
            self._ended_by = number
            raise Interrupted(number)

    def answered(self, _number: int, _frame: object) -> None:
        """Answer a key that comes too late."""
        self.answer()

    def _suspended(self, number: int, _frame: object) -> None:
        self.before_suspension()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # returns when it goes on; at once where no shell could continue it
        if not self._ignored:
            signal.signal(number, self._suspended)
        self.after_suspension()


ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
KEYBOARD = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP)
BACKGROUND = (signal.SIGTTIN, signal.SIGTTOU)  # which stop a process there that uses the terminal


def start_apart(argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, where no key of the keyboard reaches it.

    Behind the shield it ignores them, so that none ends it before it has that session: a handler is not inherited.

    :param options: those of Popen.
    """
    handlers = {number: signal.getsignal(number) for number in KEYBOARD}
    answered = {n: one for n, one in handlers.items() if getattr(one, "__func__", None) is Signals.answered}
    try:
        for number in answered:
            signal.signal(number, signal.SIG_IGN)
        return subprocess.Popen(argv, start_new_session=True, **options)
    finally:
        for number, handler in answered.items():
            signal.signal(number, handler)


def open_streams() -> None:
    """Open /dev/null for standard streams that are closed, as some wrappers leave them.

    Else the next file to be opened, even the database, gets that number and receives what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdin = sys.stdin or io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = sys.stdout or io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.stderr = sys.stderr or io.TextIOWrapper(io.FileIO(2, "w", closefd=False))


def close_streams() -> None:
    """Flush the standard streams; a closed pipe must not change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


_INTERPRETER = re.compile(r"(python|pypy|sh|bash|dash|node|perl|php|ruby)[\d.]*")
_SCRIPT = re.compile(r"[\w./+-]{1,200}")


def command_of(process: Path) -> str:
    """Return which program a process runs, given its folder in /proc, and of an interpreter which script.

    No more of its command line, which may hold a secret, and which any user can write like a sentence of ours.
    """
    try:
        program, *arguments = (process / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return "?"
    words = [Path(program).name]
    if _INTERPRETER.fullmatch(words[0]) and "-c" not in arguments[:3]:
        scripts = (Path(word).name for word in arguments if not word.startswith("-") and _SCRIPT.fullmatch(word))
        words += [name for name in (next(scripts, ""),) if name]
    return printable(" ".join(words).strip())[:60] or "?"


def lock_owner(descriptor: int) -> str:
    """Return which process holds the lock on an open folder, and since when it has been running."""
    for pid in lock_pids("FLOCK", os.fstat(descriptor)):
        process = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            since = datetime.fromtimestamp(process.stat().st_ctime).astimezone()
            return f"{command_of(process)} (pid {pid}) since {since:%H:%M:%S}"
    return "a process that is not visible from here"


def lock_pids(kind: str, *files: os.stat_result) -> list[int]:
    """Return which processes hold a lock on one of the files, as the kernel lists it: "FLOCK", or of any sort "WRITE".

    Not those that are not visible from here, as in another PID namespace: they have no number, or one that is not above
    0.
    """
    names = {f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}" for file in files}
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    held = [fields for fields in locks if kind in fields and "->" not in fields]  # an arrow: it waits for the lock
    found = (int(pid) for fields in held for pid, name in itertools.pairwise(fields) if name in names)
    return [pid for pid in found if pid > 0]


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
        """The command that ends it; a container's restart policy may restart a process that is killed."""
        container = re.search(r"[0-9a-f]{64}", self.cgroup)
        return f"docker stop {container[0][:12]}" if container else f"kill {self.pid}"


def find_holders(paths: Sequence[Path]) -> tuple[list[Holder], int]:
    """Return the processes that have one of the files open, and how many processes could not be inspected.

    Files are compared by device and inode: inside a container their paths differ.
    """
    files = {(status.st_dev, status.st_ino) for path in paths if (status := stat_or_none(path)) is not None}
    holders, hidden = [], 0
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        if holds := _holds(process, files):
            cgroup = ""
            with contextlib.suppress(OSError):
                cgroup = (process / "cgroup").read_text()
            holders.append(Holder(int(process.name), command_of(process), cgroup))
        hidden += holds is None
    return holders, hidden


def _holds(process: Path, files: set[tuple[int, int]]) -> bool | None:
    """Whether a process has one of the files open; None when that cannot be told, such as without permission."""
    for _ in range(2):  # the kernel also denies access to a process that is just ending
        try:
            opened = [_status(path) for path in (process / "fd").iterdir()]
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            return False
        except OSError:
            continue
        if any((status.st_dev, status.st_ino) in files for status in opened if status):
            return True
        if None not in opened:
            return False
    return None


def _status(path: Path) -> os.stat_result | Literal[False] | None:
    """Return the status of an open file; False when it was closed since it was listed, None when it has none for us.

    Of a file in another user's FUSE filesystem, or in one whose server is gone, not even root gets it.
    """
    try:
        return path.stat()  # which the kernel follows, to the file that is open there
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
