"""One restore of a database at a time: its lock file, and what others can tell by it."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backuplib.errors import CannotWriteError, LockedError
from backuplib.running import Turn, running, taking_turn
from tests.support.shop import ROOT


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "shop.db.restore-lock"


HOLDING = """
import sys, pathlib
from backuplib.running import taking_turn
with taking_turn(pathlib.Path(sys.argv[1])) as turn, turn.waiting("the passphrase"):
    print("there", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(lock: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that waits for a passphrase."""
    argv = [sys.executable, "-c", HOLDING, str(lock)]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"there\n"
        yield process
        process.kill()


def test_second_one_is_refused_and_told_what_the_first_waits_for(lock: Path) -> None:
    with holder(lock) as process:
        with pytest.raises(LockedError, match=rf"\(pid {process.pid}\), waiting for the passphrase since ."):
            taking_turn(lock).__enter__()
        assert process.stdin
        process.stdin.close()
        assert process.wait(10) == 0
    assert not lock.exists()
    with taking_turn(lock):
        assert lock.stat().st_mode & 0o777 == 0o600
    assert not lock.exists()


def test_what_a_killed_one_left_is_in_nobodys_way_and_tells_nothing(lock: Path) -> None:
    with holder(lock) as process:
        process.kill()
        process.wait(10)
    assert lock.exists()
    assert running(lock) is None
    with taking_turn(lock):
        pass
    assert not lock.exists()


def test_one_that_is_suspended_is_told_by_the_kernel(lock: Path) -> None:
    with holder(lock) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        runs = running(lock)
    assert runs
    assert (runs.pid, runs.doing, runs.suspended) == (process.pid, "waiting for the passphrase", True)
    assert f"kill -CONT {process.pid}" in str(runs)


def test_what_it_does_is_told_while_it_does_it(lock: Path) -> None:
    assert running(lock) is None
    with taking_turn(lock) as turn:
        began = running(lock)
        assert began
        assert (began.pid, began.doing, began.suspended) == (os.getpid(), "at work", False)
        with turn.waiting("the confirmation"):
            assert "waiting for the confirmation" in str(running(lock))
        turn.say("switching")
        told = running(lock)
        assert told
        assert told.doing == "switching"
        assert told.as_dict()["doing"] == "switching"
        assert told.since
        assert abs(told.since.timestamp() - time.time()) < 10


@pytest.mark.parametrize("content", [b"", b"at home\n", b"\x1b[2J\n", b"at work and more\n", bytes(1000)])
def test_words_that_others_write_there_are_not_told(lock: Path, content: bytes) -> None:
    with taking_turn(lock):
        lock.write_bytes(content)
        told = running(lock)
    assert told
    assert told.doing == ""
    assert told.as_dict()["doing"] is None


def test_what_was_planted_is_not_written_to(lock: Path) -> None:
    """The bot may write there: a second name of its database, for one."""
    database = lock.with_name("shop.db")
    database.write_bytes(b"content")
    os.link(database, lock)
    with taking_turn(lock):
        assert database.read_bytes() == b"content"
    assert database.read_bytes() == b"content"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_refused_and_stays(lock: Path, kind: str) -> None:
    if kind == "link":
        lock.symlink_to("shop.db")
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    with pytest.raises(CannotWriteError, match=lock.name):
        taking_turn(lock).__enter__()
    assert os.path.lexists(lock)
    assert not lock.with_name("shop.db").exists()
    assert running(lock) is None


def test_one_that_ends_meanwhile_is_not_in_the_way(lock: Path) -> None:
    """Who only looks holds the lock for a moment, too."""
    with holder(lock) as process:
        assert process.stdin
        threading.Timer(0.3, process.stdin.close).start()
        with taking_turn(lock):
            pass


def test_turn_of_nobody_says_nothing() -> None:
    with Turn().waiting("an answer"):
        pass


def test_lock_file_of_no_year_tells_no_moment() -> None:
    """Who plants it gives it any time that the filesystem holds; a tmpfs holds all."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, holder(lock := Path(folder, "lock")) as process:
        os.utime(lock, (1e12, 1e12))
        runs = running(lock)
    assert runs
    assert (runs.pid, runs.as_dict()["since"]) == (process.pid, None)
    assert str(runs).endswith(", waiting for the passphrase")
