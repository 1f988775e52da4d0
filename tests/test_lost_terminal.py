"""Lost connections, Ctrl-C and closed streams: the switch goes on to its end, and the log tells how it ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import ONE_MODE, MakeShop
from tests.support.containers import wait_until
from tests.support.keys import Keys
from tests.support.shop import ROOT, filled_pipe
from tests.support.strace import Hit, Stage, after_rename, aim, make_stage, strace
from tests.support.terminal import Terminal

StartSlow = Callable[..., Terminal]


@pytest.fixture
def stage(make_shop: MakeShop, mode: str) -> Stage:
    """Both modes, with rows that only the WAL holds."""
    return make_stage(make_shop(mode, PGP_PUBLIC_KEY_BASE64=None), "wal")


@pytest.fixture
def slow(stage: Stage) -> Iterator[StartSlow]:
    """slow(hit, …): a restore on its own terminal, with calls that are slowed down or fail."""
    with ExitStack() as running:

        def start(*hits: Hit) -> Terminal:
            argv = [*strace(stage.log, hits), sys.executable, "restore_backup.py", "--force", str(stage.backup)]
            started = Terminal(argv, cwd=stage.shop.path, env=stage.shop.environment())
            running.callback(started.end)
            return started

        yield start


def delayed_swap(stage: Stage) -> Hit:
    """The rename of the new database over the old one takes 2 s."""
    return aimed(stage, "rename", str(stage.shop.db_path), "delay_enter=2s")


def aimed(stage: Stage, name: str, last_path: str, action: str) -> Hit:
    """A hit of the call that has this path as its last one, counted by a first run."""
    stage.reset()
    assert stage.restore().code == 0
    calls = stage.calls()
    index = next(i for i, call in enumerate(calls) if call.name == name and call.paths[-1:] == (last_path,))
    hits = aim(calls, (index, action))
    assert hits
    stage.reset()
    return hits[0]


def failing_swap(stage: Stage) -> list[Hit]:
    """The switch fails after the rename; the rollback's rename takes 2 s."""
    stage.reset()
    assert stage.restore().code == 0
    calls = stage.calls()
    failing = aim(calls, (next(i for i in after_rename(stage, calls) if calls[i].name == "fsync"), "error=EIO"))
    assert failing
    stage.reset()
    assert stage.restore(*failing).code == 8
    calls = stage.calls()
    back = max(i for i, call in enumerate(calls) if call.name == "rename" and call.paths[-1] == str(stage.shop.db_path))
    error = next(i for i, call in enumerate(calls) if call.injected)
    hits = aim(calls, (error, "error=EIO"), (back, "delay_enter=2s"))
    assert hits
    stage.reset()
    return hits


def swap_begun(stage: Stage) -> None:
    """Wait until the old database is set aside."""
    wait_until(lambda: any(stage.data.glob("*.backup-*")), "the old database is set aside")


def ended(stage: Stage, started: Terminal) -> None:
    """Wait for the end of the program, which may have lost its terminal."""
    started.process.wait(60)
    wait_until(lambda: not any(stage.data.glob("*.restore-state.json")), "the journal is gone")


def log(stage: Stage) -> str:
    return (stage.shop.backups / "restore.log").read_text(encoding="utf-8")


@pytest.mark.deep
@pytest.mark.needs("strace")
def test_terminal_lost_during_the_swap(stage: Stage, slow: StartSlow) -> None:
    started = slow(delayed_swap(stage))
    swap_begun(stage)
    started.close_master()
    ended(stage, started)
    assert stage.outcome() == "new"
    assert "Database restored successfully" in log(stage)


@pytest.mark.deep
@pytest.mark.needs("strace")
def test_terminal_lost_during_the_rollback(stage: Stage, slow: StartSlow) -> None:
    started = slow(*failing_swap(stage))
    started.expect("Rolling back")
    started.close_master()
    ended(stage, started)
    assert stage.outcome() == "old"
    assert "Rollback successful" in log(stage)


@ONE_MODE
@pytest.mark.deep
@pytest.mark.needs("strace")
def test_ctrl_c_again_and_again_does_not_stop_the_swap(stage: Stage, slow: StartSlow) -> None:
    started = slow(delayed_swap(stage))
    swap_begun(stage)
    for _ in range(3):
        started.send("\x03")
    assert started.wait() == 0, started.output
    assert stage.outcome() == "new"


@ONE_MODE
@pytest.mark.deep
@pytest.mark.needs("strace")
def test_ctrl_c_again_and_again_does_not_stop_the_rollback(stage: Stage, slow: StartSlow) -> None:
    started = slow(*failing_swap(stage))
    started.expect("Rolling back")
    for _ in range(3):
        started.send("\x03")
    assert started.wait() == 8, started.output
    assert "Rollback successful - database restored to pre-restore state" in started.output
    assert stage.outcome() == "old"


@ONE_MODE
@pytest.mark.deep
@pytest.mark.needs("strace")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signal_to_the_whole_group_does_not_stop_the_swap(
    stage: Stage, slow: StartSlow, number: signal.Signals
) -> None:
    started = slow(delayed_swap(stage))
    swap_begun(stage)
    for _ in range(2):
        os.killpg(started.process.pid, number)
    assert started.wait() == 0, started.output
    assert stage.outcome() == "new"
    assert "Database restored successfully" in log(stage)


@pytest.mark.needs("root")
@ONE_MODE
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)], ids=["TERM", "HUP", "INT"]
)
def test_signal_before_the_switch_ends_it_and_nothing_is_touched(
    stage: Stage, number: signal.Signals, code: int
) -> None:
    before = stage.shop.snapshot()
    argv = [sys.executable, "restore_backup.py", str(stage.backup)]
    started = Terminal(argv, cwd=stage.shop.path, env=stage.shop.environment())
    try:
        started.expect("Continue")
        started.process.send_signal(number)
        assert started.wait() == code, started.output
    finally:
        started.end()
    assert stage.shop.snapshot() == before
    assert signal.Signals(number).name in log(stage)


@pytest.mark.parametrize(
    ("given", "prompt"),
    [((), "Paste the private key"), (("key",), "Passphrase"), (("key", "passphrase"), "Continue")],
    ids=["key", "passphrase", "confirmation"],
)
def test_terminal_lost_at_a_prompt_ends_it_though_the_signal_reaches_a_parent_only(
    make_shop: MakeShop, keys: Keys, given: tuple[str, ...], prompt: str
) -> None:
    """The shell that called it leads the session and does not care: all that comes is EIO."""
    shop = make_shop("sqlite")
    backup = shop.create_backup()
    before = shop.snapshot()
    key, passphrase = filled_pipe(keys.rsa.private_b64.encode()), filled_pipe(f"{keys.rsa.passphrase}\n".encode())
    options = {"key": ["--key-stdin"], "passphrase": ["--passphrase-fd", str(passphrase)]}
    argv = [sys.executable, "restore_backup.py", str(backup), *(word for name in given for word in options[name])]
    started = Terminal(
        ["/bin/sh", "-c", "trap '' HUP; \"$@\"; exit $?", "sh", *argv],
        cwd=shop.path,
        env=shop.environment(),
        stdin=key if "key" in given else None,
        pass_fds=(passphrase,),
    )
    try:
        started.expect(prompt)
        started.close_master()
        assert started.process.wait(60) == 129
    finally:
        started.end()
        os.close(key)
        os.close(passphrase)
    assert shop.snapshot() == before
    said = (shop.backups / "restore.log").read_text(encoding="utf-8")
    assert "SIGHUP" in said
    assert "Traceback" not in said


@pytest.mark.needs("root")
@ONE_MODE
@pytest.mark.deep
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=["TERM", "HUP", "INT"])
def test_signal_again_and_again_before_the_switch_ends_it_as_one_does(stage: Stage, number: signal.Signals) -> None:
    """The next ones meet it while it cleans up, and while it says how it ended."""
    before = stage.shop.snapshot()
    argv = [sys.executable, "restore_backup.py", str(stage.backup)]
    for _ in range(3):
        started = Terminal(argv, cwd=stage.shop.path, env=stage.shop.environment())
        try:
            started.expect("Continue")
            while started.process.poll() is None:
                started.process.send_signal(number)
                time.sleep(0.001)
            assert started.wait() == 128 + number, started.output
            assert "Traceback" not in started.output
            assert number.name in started.output
        finally:
            started.end()
    assert stage.shop.snapshot() == before
    assert stage.backup_leftovers() == []


DROPPED = """
import os, signal
from backuplib.processes import Interrupted, Signals

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

signals = Signals()
signals.install()
Dying()
print("went on")
try:
    signals.shield()
except Interrupted:
    print("ended before the switch")
"""


def test_signal_that_python_drops_ends_the_run_before_the_switch() -> None:
    """What is raised in a destructor is printed and forgotten."""
    done = subprocess.run([sys.executable, "-c", DROPPED], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "went on\nended before the switch\n", done.stderr


# --- streams that are closed -----------------------------------------------------------------------------------------


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@ONE_MODE
@pytest.mark.deep
@pytest.mark.parametrize("stream", ["stdout", "stderr", "both"])
@pytest.mark.parametrize(
    "fails", [False, pytest.param(True, marks=pytest.mark.needs("strace"))], ids=["done", "rolled back"]
)
def test_pipe_whose_reader_has_gone_changes_nothing(stage: Stage, stream: str, *, fails: bool) -> None:
    hits = failing_swap(stage)[:1] if fails else []
    gone = closed_pipe()
    try:
        done = subprocess.run(
            [*(strace(stage.log, hits) if fails else []), sys.executable, "restore_backup.py", "--force", stage.backup],
            cwd=stage.shop.path,
            env=stage.shop.environment(),
            stdin=subprocess.DEVNULL,
            stdout=gone if stream != "stderr" else subprocess.DEVNULL,
            stderr=gone if stream != "stdout" else subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
    finally:
        os.close(gone)
    assert done.returncode == (8 if fails else 0)
    assert stage.outcome() == ("old" if fails else "new")
    assert ("Rollback successful" if fails else "Database restored successfully") in log(stage)


@ONE_MODE
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_stream_that_is_closed_from_the_start_changes_nothing(stage: Stage, closed: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "restore_backup.py", "--force", stage.backup],
        cwd=stage.shop.path,
        env=stage.shop.environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert stage.outcome() == "new"
    assert "Database restored successfully" in log(stage)


@ONE_MODE
def test_log_that_cannot_be_written_is_said_and_changes_nothing(stage: Stage) -> None:
    """A folder has its name."""
    (stage.shop.backups / "restore.log").unlink(missing_ok=True)
    Path(stage.shop.backups, "restore.log").mkdir()
    done = stage.plain_restore()
    assert done.code == 0, done.text
    assert str(stage.shop.backups / "restore.log") in done.err
    assert stage.outcome() == "new"
