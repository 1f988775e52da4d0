"""Echo is off from the first line of a run on, and on again at its end, whatever end that is."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.shop import ROOT
from tests.support.terminal import Terminal, echoes

ENDS = {
    "end": ("", 0),
    "usage error": ("raise SystemExit(2)", 2),
    "bug": ("raise ZeroDivisionError", 1),
    "Ctrl-C": ("import time; print('waits', flush=True); time.sleep(30)", -2),
    "given back before": ("termios.tcsetattr(0, termios.TCSANOW, quiet.shells)", 0),
}

SCRIPT = """
import os, termios
from backuplib import quiet
quiet.begin()
if not os.fork():
    raise SystemExit  # a child, which gives nothing back
os.wait()
print("echo", bool(termios.tcgetattr(0)[3] & termios.ECHO), flush=True)
"""

Start = Callable[..., Terminal]


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Start:
    """Starts Python on a terminal."""

    def run(*argv: str, **env: str) -> Terminal:
        started = Terminal([sys.executable, *argv], cwd=ROOT, env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"} | env)
        request.addfinalizer(started.end)
        return started

    return run


@pytest.mark.parametrize(("end", "code"), ENDS.values(), ids=[*ENDS])
def test_echo_is_off_until_the_end(start: Start, end: str, code: int) -> None:
    terminal = start("-c", SCRIPT + end)
    terminal.expect("echo False")
    if code < 0:
        terminal.expect("waits")
        terminal.send("\x03")
    assert terminal.wait() == code
    assert echoes(terminal)


@pytest.mark.parametrize("option", ["--list", "--check", "-h"])
def test_run_that_asks_nothing_leaves_the_terminal_alone(start: Start, option: str) -> None:
    terminal = start("-c", SCRIPT, option)
    terminal.expect("echo True")
    assert terminal.wait() == 0


def test_pager_has_the_terminal_to_itself(start: Start) -> None:
    piped = f"subprocess.run([sys.executable, '-c', {SCRIPT!r}], stdout=subprocess.PIPE, text=True).stdout"
    terminal = start("-c", f"import subprocess, sys\nprint({piped})")
    terminal.expect("echo True")
    assert terminal.wait() == 0


def test_restore_begins_with_it_before_all_other_imports(start: Start, tmp_path: Path) -> None:
    """The first module that it imports besides is one of the test's."""
    (tmp_path / "argparse.py").write_text(
        "import termios\nprint('echo', bool(termios.tcgetattr(0)[3] & termios.ECHO))\nraise SystemExit(3)\n"
    )
    terminal = start("restore_backup.py", PYTHONPATH=str(tmp_path))
    terminal.expect(r"echo \w+")
    assert terminal.wait() == 3
    assert "echo False" in terminal.output
    assert echoes(terminal)


def test_usage_error_gives_the_terminal_back(start: Start) -> None:
    terminal = start("restore_backup.py", "--nonsense")
    assert terminal.wait() == 2
    assert echoes(terminal)
