"""A child process that looks at a foreign database, whose SQL may be hostile: with limits, and killed at its deadline.

One instruction of SQLite can take days, deaf to signals and to every callback, and can ask for any amount of memory.
The child shares the memory of its parent as it was when it was forked, so that nothing is copied.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from backuplib import errors
from backuplib.processes import CAP_IPC_LOCK, ENDING, KEYBOARD, lock_memory

# How long looking at a database may take, and a second more for each MB: a hundred times what is usual.
PATIENCE_SECONDS = 60.0

ROOM = 512_000_000  # bytes that looking at a database may take beside it

POLL_SECONDS = 0.1  # how often the parent listens for signals

_NOBODY = 65534
_CLONE_NEWNET, _CAPABILITY_VERSION_3 = 0x40000000, 0x20080522  # linux/sched.h, linux/capability.h
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 8, 38  # linux/prctl.h


class Inspection:
    """Work that is done in a child, from now on; its result is what JSON can hold.

    Make it before any thread starts: a lock that another thread holds would never be free in the child.

    :param work: takes a function that tells its progress; returns, or raises OperatorError.
    :param seconds: after which it is killed.
    :param memory: bytes that it may take beyond what this process has.
    :param largest_file: bytes of the largest file that it may write.
    :param unprivileged: the work opens no file, nor imports a module, so that root's child gives up its rights.
    """

    def __init__(
        self,
        work: Callable[[Callable[[int], object]], object],
        *,
        seconds: float,
        memory: int,
        largest_file: int = 0,
        unprivileged: bool = False,
    ) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._pipe, writer = os.pipe()
        self._child = os.fork()
        if not self._child:
            os.close(self._pipe)
            _be_the_child(work, writer, _Limits(seconds, memory, largest_file), unprivileged=unprivileged)
        os.close(writer)

    def result(
        self, listen: Callable[[], object] = lambda: None, progress: Callable[[int], object] = lambda _: None
    ) -> Any:
        """Wait for the result.

        :param listen: raises what a signal asks for; called ten times a second.
        :param progress: is told what the work tells.
        :raises OperatorError: what the work raised, of the same class.
        :raises CheckTimeoutError: when it did not end in time.
        :raises CheckFailedError: when it took too much memory, or crashed.
        """
        answer = b""
        try:
            while True:
                listen()
                left = max(0.0, self._deadline - time.monotonic())
                if select.select([self._pipe], [], [], min(left, POLL_SECONDS))[0]:
                    if not (piece := os.read(self._pipe, 1 << 16)):
                        break
                    *lines, answer = (answer + piece).split(b"\n")
                    for line in lines:
                        told = json.loads(line)
                        if "progress" not in told:
                            return self._end(told)
                        progress(told["progress"])
                elif not left:  # and this process was not merely suspended meanwhile
                    raise errors.CheckTimeoutError(self._seconds)
        finally:
            status = self.close()
        if -status == signal.SIGXCPU:
            raise errors.CheckTimeoutError(self._seconds)
        how = f"signal {-status}" if status < 0 else f"exit code {status}"
        raise errors.CheckFailedError(f"the process that checks the database has ended ({how})")

    @staticmethod
    def _end(told: dict[str, Any]) -> Any:
        if name := told.get("error"):
            raise _error_of(name, told)
        return told["result"]

    def close(self) -> int:
        """End the child, whatever it does, and return its exit code; may be called again."""
        if not self._child:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        os.close(self._pipe)
        self._child = 0
        return status


@dataclass(frozen=True)
class _Limits:
    seconds: float
    memory: int
    largest_file: int


def _error_of(name: str, told: dict[str, str]) -> errors.OperatorError:
    """Return an error of the child as it was there."""
    kinds: list[type[errors.OperatorError]] = [errors.OperatorError]
    while (kind := kinds.pop()).__name__ != name:
        kinds += kind.__subclasses__()
    error = kind.__new__(kind)
    errors.OperatorError.__init__(error, told["message"], hint=told["hint"])
    return error


def _be_the_child(
    work: Callable[[Callable[[int], object]], object], writer: int, limits: _Limits, *, unprivileged: bool
) -> NoReturn:
    """Do the work, tell its result in one line, and end without anything that this process would do at its end."""

    def tell(told: dict[str, object]) -> None:
        line = json.dumps(told).encode() + b"\n"
        while line:
            line = line[os.write(writer, line) :]

    try:
        _give_up_rights(limits, unprivileged=unprivileged)
        try:
            told: dict[str, object] = {"result": work(lambda done: tell({"progress": done}))}
        except errors.OperatorError as error:
            told = {"error": type(error).__name__, "message": str(error), "hint": error.hint}
        except MemoryError:
            told = _failed("it takes too much memory")
        except Exception as error:  # noqa: BLE001 - of a foreign database, whose values its text may hold
            told = _failed(type(error).__name__)
        tell(told)
    finally:
        os._exit(1)  # it has nothing to close, and no traceback of it may show


def _failed(why: str) -> dict[str, object]:
    hint = errors.choose_another_backup_hint()
    return {"error": "CheckFailedError", "message": f"the database could not be checked: {why}", "hint": hint}


def _give_up_rights(limits: _Limits, *, unprivileged: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for number in {*ENDING, *KEYBOARD}:  # the parent hears them, and ends this
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    lock_memory()  # a child does not inherit it
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # rather this than the parent
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + limits.memory, size + limits.memory))
    resource.setrlimit(resource.RLIMIT_CPU, (int(limits.seconds) + 2, int(limits.seconds) + 3))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error of the write instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.largest_file, limits.largest_file))
    if os.geteuid() == 0:
        libc.unshare(_CLONE_NEWNET)  # no network
        if unprivileged:
            _become_nobody(libc)


def _become_nobody(libc: ctypes.CDLL) -> None:
    """Keep of root's rights the one to lock memory, without which no more could be allocated: see mlockall(2)."""
    libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    with contextlib.suppress(PermissionError):  # root without that capability
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    lock = 1 << CAP_IPC_LOCK
    # Effective, permitted and inheritable capabilities, the lower half of each first.
    libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)(lock, lock, 0, 0, 0, 0))
