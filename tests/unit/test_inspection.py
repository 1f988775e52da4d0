"""The child that looks at foreign databases: real forks, real limits, real signals."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backuplib.errors import CheckFailedError, CheckTimeoutError, DamagedDatabaseError
from backuplib.inspection import Inspection

MB = 1_000_000
ENDLESS = "SELECT instr(zeroblob(400000000), zeroblob(200000000) || x'01')"


def inspect(
    work: Callable[[], object], *, seconds: float = 20, memory: int = 200 * MB, unprivileged: bool = False
) -> object:
    return Inspection(lambda _: work(), seconds=seconds, memory=memory, unprivileged=unprivileged).result()


def sql(statement: str) -> Callable[[], object]:
    """One instruction of SQLite."""

    def work() -> object:
        with contextlib.closing(sqlite3.connect(":memory:")) as connection:
            return connection.execute(statement).fetchone()

    return work


def test_result_is_what_the_work_returns() -> None:
    assert inspect(lambda: {"tables": 3, "names": ["ä", None]}) == {"tables": 3, "names": ["ä", None]}
    assert inspect(lambda: "x" * 3_000_000) == "x" * 3_000_000  # more than a pipe holds


def test_memory_is_shared_and_not_copied() -> None:
    image = memoryview(bytearray(b"x" * (300 * MB)))
    assert inspect(lambda: image[299 * MB], memory=50 * MB) == ord("x")


def test_error_of_the_work_is_raised_as_it_was() -> None:
    def work() -> object:
        raise DamagedDatabaseError("page 3 is missing", hint="another one")

    with pytest.raises(DamagedDatabaseError) as raised:
        inspect(work)
    assert (str(raised.value), raised.value.hint) == ("page 3 is missing", "another one")


def test_one_instruction_without_end_is_ended_at_the_deadline() -> None:
    began = time.monotonic()
    with pytest.raises(CheckTimeoutError):
        inspect(sql(ENDLESS), seconds=1, memory=2000 * MB)
    assert time.monotonic() - began < 3


def test_memory_without_end_is_refused() -> None:
    with pytest.raises(CheckFailedError):
        inspect(lambda: len(b"x" * (500 * MB)), memory=100 * MB)


def test_crash_is_told_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for work in (lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: 1 / 0, lambda: int("a row")):
        with pytest.raises(CheckFailedError) as raised:
            inspect(work)
        assert "row" not in str(raised.value)
    assert inspect(lambda: os.write(1, b"a row") + os.write(2, b"a row")) == 10
    assert capfd.readouterr() == ("", "")


def test_signal_is_heard_within_a_second() -> None:
    """By a parent that ends, and takes the child along."""
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
from backuplib.inspection import Inspection
from backuplib.processes import Signals
import sqlite3
signals = Signals(); signals.install()
child = Inspection(lambda _: sqlite3.connect(":memory:").execute("{ENDLESS}").fetchone(), seconds=60, memory=10**10)
print(child._child, flush=True)
try:
    child.result(signals.check)
except BaseException as error:
    print(type(error).__name__)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    child = int(process.stdout.readline())
    time.sleep(0.3)
    process.terminate()
    out, _ = process.communicate(timeout=2)
    assert out.strip() == "Interrupted"
    assert not Path(f"/proc/{child}").exists()


def test_child_goes_with_its_parent() -> None:
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
from backuplib.inspection import Inspection
import time
child = Inspection(lambda _: time.sleep(60), seconds=60, memory=10**9)
print(child._child, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        time.sleep(0.3)
        process.kill()
    deadline = time.monotonic() + 2
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while "State:\tZ" not in Path(f"/proc/{child}/status").read_text():
            assert time.monotonic() < deadline


def test_progress_is_told() -> None:
    told: list[int] = []
    child = Inspection(lambda tell: [tell(number) for number in range(3)] and "done", seconds=20, memory=200 * MB)
    assert child.result(progress=told.append) == "done"
    assert told == [0, 1, 2]


def test_child_writes_no_larger_file_than_it_may(tmp_path: Path) -> None:
    def write(size: int) -> Callable[[Callable[[int], object]], object]:
        return lambda _: (tmp_path / "file").write_bytes(b"x" * size)

    assert Inspection(write(1000), seconds=20, memory=200 * MB, largest_file=1000).result() == 1000
    with pytest.raises(CheckFailedError):
        Inspection(write(1001), seconds=20, memory=200 * MB, largest_file=1000).result()


@pytest.mark.needs("root")
def test_child_has_no_network_and_no_rights(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)

    def work() -> object:
        found = []
        for attempt in (lambda: socket.socket().connect(("127.0.0.1", port)), secret.read_bytes):
            try:
                attempt()
                found.append("allowed")
            except OSError:
                found.append("refused")
        return found

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert inspect(work, unprivileged=True) == ["refused", "refused"]
        assert inspect(work) == ["refused", "allowed"]


@pytest.mark.needs("root")
def test_nobody_may_lock_what_memory_it_takes_and_has_no_other_right() -> None:
    """What is locked counts against a limit, usually 8 MB, for all others."""

    def work() -> object:
        taken = bytearray(100 * MB)
        rights = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if "\t" in line)
        return [rights["CapEff"], rights["CapPrm"], rights["Uid"].split()[0], len(taken)]

    assert inspect(work, unprivileged=True) == ["0000000000004000", "0000000000004000", "65534", 100 * MB]


@pytest.mark.needs("root")
def test_root_without_capabilities_has_none_to_give_up() -> None:
    script = (
        "from backuplib.inspection import Inspection; "
        "print(Inspection(lambda _: 1, seconds=9, memory=2**28, unprivileged=True).result())"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("1\n", "")
