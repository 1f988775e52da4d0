"""Completion in real, interactive bash and zsh, as the README sets it up: Tab completes options and backups."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import MakeShop
from tests.support.needs import require
from tests.support.shop import Shop
from tests.support.terminal import COMPLETION, Terminal

START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "--no-rcs", "--no-globalrcs", "-i"],
}


@pytest.fixture(params=["bash", "zsh"])
def shell_name(request: pytest.FixtureRequest) -> str:
    """Both shells in turn."""
    require(request.param)
    return str(request.param)


@pytest.fixture
def shop(make_shop: MakeShop) -> Shop:
    """A shop whose script can be called by its name, with a backup to be named."""
    shop = make_shop("sqlite")
    script = shop.path / "restore_backup.py"
    script.chmod(0o755)
    (shop.backups / "db_backup_20250130_120000.db.gz.gpg").touch()
    (shop.path / ".env").write_text("DB_ENCRYPTION=nonsense\n")  # nothing is read while a line is completed
    return shop


@pytest.fixture
def shell(shop: Shop, shell_name: str) -> Iterator[Callable[[], Terminal]]:
    """An interactive shell in the shop's folder, with completion set up."""
    with ExitStack() as running:

        def start() -> Terminal:
            path = f"{Path(sys.executable).parent}:{shop.path}:{os.environ['PATH']}"
            env = shop.environment({"PATH": path, "PS1": "ready> ", "HISTFILE": "/dev/null", "INPUTRC": "/dev/null"})
            started = Terminal(START[shell_name], cwd=shop.path, env=env)
            running.callback(started.end)
            started.expect("ready> ")
            started.send(f"{COMPLETION[shell_name]}; echo set-''up $?\n")
            started.expect("set-up 0")
            started.expect("ready> ")
            return started

        yield start


def shows(started: Terminal, text: str) -> None:
    """Wait for a text, whatever the shell puts around its letters to draw them."""
    started.expect(r"(?:\x1b\[[0-9;?]*[A-Za-z]|[\r\x08])*".join(map(re.escape, text)))


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("python restore_backup.py --compo", "--compose-file"),
        pytest.param("python restore_backup.py --list --js", "--json", marks=pytest.mark.deep),
        pytest.param("./restore_backup.py --verify-", "--verify-only", marks=pytest.mark.deep),
        ("./restore_backup.py backups/db_b", "backups/db_backup_20250130_120000.db.gz.gpg"),
    ],
)
def test_tab_completes(shell: Callable[[], Terminal], typed: str, completed: str) -> None:
    started = shell()
    started.send(f"{typed}\t")
    shows(started, completed)


def test_completion_starts_nothing(shell: Callable[[], Terminal], shop: Shop) -> None:
    before = shop.snapshot()
    started = shell()
    started.send("./restore_backup.py --veri\t")
    shows(started, "--verify-only")
    assert shop.snapshot() == before
    assert not (shop.backups / "restore.log").exists()
