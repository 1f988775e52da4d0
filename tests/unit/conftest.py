"""Fixtures of the unit tests: one module of backuplib each, real files, no shop, no containers."""

import contextlib
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from backuplib.console import Console, Report
from backuplib.processes import BACKGROUND, ENDING, KEYBOARD, Signals
from tests.support.inspected import FakeDocker

TAKEN_OVER = {*ENDING, *KEYBOARD, *BACKGROUND, signal.SIGCONT}


@pytest.fixture
def signals() -> Iterator[Signals]:
    """Signals, whatever they do to this process undone afterwards."""
    before = {number: signal.getsignal(number) for number in TAKEN_OVER}
    yield Signals()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def screen() -> io.StringIO:
    """What the operator reads, results and all; it shows ASCII only."""
    return io.StringIO()


@pytest.fixture
def report(signals: Signals, screen: io.StringIO) -> Report:
    """A report whose console writes to the screen."""
    with contextlib.redirect_stderr(screen), contextlib.redirect_stdout(screen):
        return Report(Console(), signals)


@pytest.fixture
def fake_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDocker:
    """A `docker` in PATH that prints what the test puts there; it has no containers."""
    docker = FakeDocker(tmp_path / "docker")
    monkeypatch.setenv("PATH", f"{docker.folder}:{os.environ['PATH']}")
    return docker
