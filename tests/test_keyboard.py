"""Every key at every moment: what it does to the run, the bot, the database, the terminal and the shell.

In an interactive shell on a real terminal, with a real bot. A moment is a prompt, or a phase that is slowed down.
"""

import contextlib
import fcntl
import os
import shutil
import struct
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Prepare
from tests.support.containers import BotShop, Compose, wait_until
from tests.support.keys import Key, Keys
from tests.support.scene import (
    LONG,
    Scene,
    check_clean,
    check_restored,
    check_writing_to_the_live_file,
    intercept,
    untouched,
)
from tests.support.ssh import CONFIRM
from tests.support.terminal import PASSPHRASE, PASTE, SHELL, interactive_shell, wait_for_quiet

pytestmark = [pytest.mark.docker, pytest.mark.needs("root", "bash")]

ORDER = ("key", "passphrase", "decrypting", "question", "stopping", "starting")
STOP_FIRST = ("question", "key", "passphrase", "stopping", "decrypting", "starting")
PROMPTS = {"key": PASTE, "passphrase": PASSPHRASE, "question": CONFIRM}

KEYS = {"Ctrl-C": "\x03", "Ctrl-\\": "\x1c", "Ctrl-Z": "\x1a"}
ENDS_WITH = {"Ctrl-C": 130, "Ctrl-\\": 131, "hangup": 129}
"""Where nothing has been stopped; otherwise, and with all other presses, the run goes on."""

ACCIDENT = "echo pasted-by-accident\r"


class Run:
    """A restore in an interactive shell, driven from moment to moment."""

    def __init__(self, scene: Scene, key: Key, order: tuple[str, ...]) -> None:
        self.shop, self.order = scene.shop, order
        self._answers = {"key": f"{key.private_b64}\r", "passphrase": f"{key.passphrase}\r", "question": "y\r"}
        self.shell = interactive_shell(self.shop.path, self.shop.environment(slowed_down(self.shop)))
        options = " --stop-first" if order == STOP_FIRST else ""
        self.shell.send(f"{sys.executable} restore_backup.py {scene.backup}{options}\r")

    def go_to(self, moment: str) -> None:
        """Answer what is asked for until a moment comes."""
        if moment == "decrypting" and self.order == ORDER:
            (self.shop.path / "bin/slow").touch()
        for step in self.order[: self.order.index(moment)]:
            if step in PROMPTS:
                self.shell.expect(PROMPTS[step])
                self.answer(step)
        if moment in PROMPTS:
            self.shell.expect(PROMPTS[moment])
        else:
            wait_until((self.shop.path / "bin" / moment).exists, moment)

    def answer(self, prompt: str) -> None:
        """Type the answer to a prompt."""
        if prompt != "question":
            wait_for_quiet(self.shell)
        self.shell.send(self._answers[prompt])

    def go_on(self, moment: str, *, again: bool) -> None:
        """Answer what is asked for from a moment on; ``again``: its own question is shown once more."""
        for step in self.order[self.order.index(moment) :]:
            if step in PROMPTS:
                if step != moment or again:
                    self.shell.expect(PROMPTS[step])
                self.answer(step)

    def press(self, what: str) -> None:
        """Press a key, or have something else happen to the terminal."""
        if what in KEYS:
            self.shell.send(KEYS[what])
        elif what == "hangup":
            self.shell.close_master()
        elif what == "resize":
            fcntl.ioctl(self.shell.master, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
        else:
            self.shell.send(ACCIDENT * 3)

    def ended(self) -> int:
        """Wait for the shell's prompt; the run's exit code. The terminal echoes again, and nothing was handed on."""
        self.shell.expect(SHELL, 60)
        self.shell.send("echo CODE=$?; stty -a | grep -ow -- '-\\?echo'\r")
        code = self.shell.expect(r"CODE=\d+").removeprefix("CODE=")
        assert self.shell.expect(r"\n-?echo").strip() == "echo"
        assert "\npasted-by-accident" not in self.shell.output  # it may be shown where the question echoes
        return int(code)

    def is_gone(self) -> bool:
        """Whether no process of the tool is left."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "cwd") == str(self.shop.path):
                    return False
        return True


def slowed_down(shop: BotShop) -> dict[str, str]:
    """An environment in which Docker's stop and start take their time; gpg's decryption, too, once bin/slow is there.

    Each leaves a file when it begins. After the stop decryption is slow.
    """
    slow = 'touch "$SHOP/bin/{}"; sleep 1.5; real "$@"; code=$?; touch "$SHOP/bin/slow"; exit $code'
    env = intercept(shop, stop=slow.format("stopping"), start=slow.format("starting"))
    gpg, folder = shop.path / "bin/gpg", shop.path / "bin"
    slowly = f"[ ! -e {folder}/slow ] || {{ touch {folder}/decrypting; sleep 2; }}"
    gpg.write_text(f'#!/bin/sh\ncase $* in *--decrypt*) {slowly};; esac\nexec {shutil.which("gpg")} "$@"\n')
    gpg.chmod(0o755)
    return env


@pytest.fixture
def scene(prepare: Prepare, mode: str, compose: Compose, keys: Keys) -> Scene:
    """A bot, and a backup for a key with a passphrase."""
    return prepare(mode, compose, PGP_PUBLIC_KEY_BASE64=keys.rsa.public_b64)


@pytest.fixture
def run(request: pytest.FixtureRequest, scene: Scene, keys: Keys) -> Iterator[Run]:
    """A run in the order that the moment asks for."""
    run = Run(scene, keys.rsa, STOP_FIRST if "stopped" in request.node.callspec.id else ORDER)
    yield run
    run.shell.end()


SHORT = {
    ("key", "Ctrl-Z"),
    ("key", "paste"),
    ("passphrase", "Ctrl-\\"),
    ("decrypting, stopped", "Ctrl-C"),
    ("question", "paste"),
    ("question", "resize"),
    ("stopping", "Ctrl-C"),
    ("starting", "Ctrl-Z"),
    ("starting", "hangup"),
}
"""What is always run; the whole matrix, in alternating modes, in the long form."""

MODES = ("sqlite", "sqlcipher") * 4

MATRIX = pytest.mark.parametrize(
    ("moment", "what", "mode", "compose"),
    [
        pytest.param(moment, what, mode, "v2", marks=() if (moment, what) in SHORT else LONG)
        for number, moment in enumerate((*ORDER, "decrypting, stopped"))
        for what, mode in zip((*KEYS, "hangup", "resize", "paste"), MODES[number % 2 :], strict=False)
    ],
    indirect=["mode", "compose"],
)


NAMES = {"Ctrl-C": "SIGINT", "Ctrl-\\": "SIGQUIT", "hangup": "SIGHUP"}


@MATRIX
def test_key_at_a_moment(scene: Scene, run: Run, moment: str, what: str) -> None:
    shop, stopped = scene.shop, "stopped" in moment
    moment = moment.removesuffix(", stopped")
    touched = stopped or moment in ("stopping", "starting")
    before, old = shop.state(), shop.db_path.stat().st_ino
    code = ENDS_WITH.get(what, 0) if not touched or (stopped and what == "Ctrl-C") else 0
    if (moment, what) == ("question", "paste"):
        code = 10
    run.go_to(moment)
    run.press(what)
    if what == "Ctrl-Z" and not touched:
        run.shell.expect(SHELL)
        run.shell.send("fg\r")
    if what == "hangup":
        wait_until(run.is_gone, "the run's end", 60)
    else:
        if not code:
            run.go_on(moment, again=what == "Ctrl-Z" or (moment, what) == ("passphrase", "paste"))
        assert run.ended() == code, run.shell.output
    if what in KEYS and touched and not code:
        assert ("Ctrl-C starts them again" if stopped else "Too late to stop: finishing, about ") in run.shell.output
    last = (shop.backups / "restore.log").read_text(encoding="utf-8").splitlines()[-1]
    assert last.endswith({0: "restored", 10: "not confirmed"}.get(code) or f"ended by {NAMES[what]}")
    if code:
        assert shop.db_path.stat().st_ino == old
        assert stopped or untouched(before, shop.state())
    else:
        assert shop.state().started_at > before.started_at
        check_restored(scene)
    check_writing_to_the_live_file(shop)
    check_clean(shop)
