"""Measures time or peak memory of commands, and compares commands fairly."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Done:
    """A command that succeeded."""

    seconds: float
    output: str


def run(argv: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None, secret: str = "") -> Done:
    """Run a command and return its time and output.

    :param secret: passphrase, passed through a pipe; ``{fd}`` in the arguments is replaced by its descriptor.
    :raises RuntimeError: when it fails, with the end of its standard error.
    """
    reader, writer = os.pipe()
    os.write(writer, secret.encode() + b"\n")
    os.close(writer)
    began = time.perf_counter()
    done = subprocess.run(
        [word.replace("{fd}", str(reader)) for word in argv],
        input=stdin,
        env=env,
        pass_fds=[reader],
        capture_output=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    os.close(reader)
    if done.returncode:
        raise RuntimeError(f"{argv[:3]} … ended with {done.returncode}:\n{done.stderr.decode()[-2000:]}")
    return Done(seconds, done.stdout.decode())


def interleave(contestants: Mapping[str, Callable[[], float]], repeat: int) -> dict[str, list[float]]:
    """Run contestants in turns, so that a disturbance affects all of them; the first round is warm-up."""
    runs: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(repeat + 1):
        for name, work in contestants.items():
            seconds = work()
            if number or repeat == 1:
                runs[name].append(seconds)
    return {name: times[-repeat:] for name, times in runs.items()}


def median(times: Sequence[float]) -> float:
    return statistics.median(times)


# --- memory ------------------------------------------------------------------------------------------------------


@dataclass
class Memory:
    """Peaks in bytes; files in a tmpfs are memory that belongs to no process."""

    process: int = 0
    children: int = 0
    ram_files: int = 0
    total: int = 0  # at one moment: less than the sum of the peaks


def peak_memory(argv: Sequence[str], *, stdin: bytes, env: Mapping[str, str]) -> Memory:
    """Run a command and return the peaks of its process, of its descendants together and the growth of its tmpfs.

    Sampled every 10 ms: proportional set sizes (proc(5), smaps_rollup), which count what processes share once; tmpfs
    use is read in the command's own mount namespace. Included: other programs' tmpfs files. Not included: the page
    cache, which the kernel reclaims, and gpg's agent (a few MB), which is not a descendant.
    """
    before = _tmpfs_use(os.getpid())
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
    memory, ended = Memory(), threading.Event()

    def sample() -> None:
        while not ended.wait(0.01):
            own, *others = (_proportional(pid) for pid in _family(process.pid))
            ram_files = max(0, _tmpfs_use(process.pid) - before)
            memory.process = max(memory.process, own)
            memory.children = max(memory.children, sum(others))
            memory.ram_files = max(memory.ram_files, ram_files)
            memory.total = max(memory.total, own + sum(others) + ram_files)

    sampler = threading.Thread(target=sample)
    sampler.start()
    _, errors = process.communicate(stdin)
    ended.set()
    sampler.join()
    if process.returncode:
        raise RuntimeError(f"{argv[:3]} … ended with {process.returncode}:\n{errors.decode()[-2000:]}")
    return memory


def _proportional(pid: int) -> int:
    text = _read(f"/proc/{pid}/smaps_rollup")
    return sum(int(size) for size in re.findall(r"^Pss_(?:Anon|File):\s+(\d+) kB", text, re.MULTILINE)) * 1024


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # it has ended
        return ""


def _family(root: int) -> list[int]:
    """Return a process and its descendants."""
    family = [root]
    for member in family:
        family += map(int, _read(f"/proc/{member}/task/{member}/children").split())
    return family


def _tmpfs_use(pid: int) -> int:
    """Bytes used in all tmpfs visible to a process."""
    used = {}
    for line in _read(f"/proc/{pid}/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] == "tmpfs":
            path = f"/proc/{pid}/root{fields.split()[4]}"
            try:
                device, status = os.stat(path).st_dev, os.statvfs(path)
            except OSError:
                continue
            if f"{os.major(device)}:{os.minor(device)}" != fields.split()[2]:  # unmounted meanwhile
                continue
            used[device] = (status.f_blocks - status.f_bfree) * status.f_frsize
    return sum(used.values())
