"""The terminal: when a pasted key is whole, and a menu on a real terminal."""

import base64
import random
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from backuplib.terminal import _ends_with_empty_line, _unframed, _whole_key
from tests.support.shop import ROOT
from tests.support.terminal import Terminal

KEY = b"\x94\x58\x04" + random.Random(1).randbytes(87) + b"\xb4\xfa" + random.Random(2).randbytes(250)
PUBLIC = b"\x98\x33\x04" + random.Random(3).randbytes(50)
LINE = base64.b64encode(KEY)
WRAPPED = b"\n".join(re.findall(rb".{1,76}", LINE))
ARMOR = b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n" + WRAPPED + b"\n-----END PGP PRIVATE KEY BLOCK-----"
PUBLIC_ARMOR = ARMOR.replace(b"PRIVATE", b"PUBLIC").replace(WRAPPED, base64.b64encode(PUBLIC))


@pytest.mark.parametrize(
    ("pasted", "key"),
    [
        (b"", None),
        (b"\n\n", None),
        (b"hunter2\n", None),
        (LINE, None),
        (LINE + b"\n", LINE + b"\n"),
        (b"\n" + LINE + b"\n", b"\n" + LINE + b"\n"),
        (WRAPPED + b"\n", WRAPPED + b"\n"),
        (WRAPPED[:77], None),
        (WRAPPED[:154], None),
        (ARMOR, ARMOR),
        (ARMOR + b"\n", ARMOR + b"\n"),
        (ARMOR[:-30], None),
        (PUBLIC_ARMOR + b"\n", None),
        (PUBLIC_ARMOR + b"\n" + ARMOR + b"\n", PUBLIC_ARMOR + b"\n" + ARMOR + b"\n"),
        (ARMOR + b"\n" + PUBLIC_ARMOR[:20], ARMOR + b"\n"),
        (b"the key of the shop:\n" + ARMOR + b"\n", b"the key of the shop:\n" + ARMOR + b"\n"),
        (LINE + b"\nrm -rf $HOME\nls", LINE + b"\n"),
        (b"\x1b[200~" + LINE.replace(b"\n", b"\r") + b"\x1b[201~\r", LINE + b"\n"),
    ],
    ids=[
        "nothing",
        "empty lines",
        "a word",
        "one line without its end",
        "one line",
        "empty line before",
        "wrapped",
        "first line of it",
        "two lines of it",
        "armor without the last line end",
        "armor",
        "armor without its end",
        "public block",
        "public block, private block",
        "private block, a part of a public one",
        "note above",
        "commands below",
        "bracketed",
    ],
)
def test_whole_key_is_seen_in_what_was_pasted(pasted: bytes, key: bytes | None) -> None:
    assert _whole_key(_unframed(pasted)) == key


@pytest.mark.parametrize(
    ("pasted", "quiets"),
    [
        (b"\n", 3),
        (b"hello\n\n", 3),
        (b"hello\n  \n", 3),
        (PUBLIC_ARMOR + b"\n\n", 3),
        (b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n", 30),  # rather a pause in the paste
        (ARMOR[:300] + b"\n\n", 30),
        (b"hello\n", None),
        (b"hello", None),
        (b"", None),
    ],
)
def test_empty_line_ends_what_is_no_key_when_nothing_more_comes(pasted: bytes, quiets: int | None) -> None:
    ends = [number for number in range(100) if _ends_with_empty_line(pasted, number)]
    assert ends == ([] if quiets is None else [quiets])


def running(call: str) -> AbstractContextManager[Terminal]:
    """A program that prints what a call of the terminal's returns."""
    return script(f"from backuplib.terminal import Terminal; print('returned', {call})")


@contextmanager
def script(script: str) -> Iterator[Terminal]:
    """A program on a terminal."""
    terminal = Terminal([sys.executable, "-c", script], cwd=ROOT, env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"})
    try:
        yield terminal
    finally:
        terminal.end()


def test_one_of_several_is_chosen_by_its_number() -> None:
    with running("Terminal().choose('Which?', [f'choice {n}' for n in range(1, 21)], 'heading')") as terminal:
        terminal.expect("Number")
        assert "heading" in terminal.output
        assert "choice 15" in terminal.output
        assert "choice 16" not in terminal.output
        terminal.send("m\r")
        terminal.expect("choice 20")
        for wrong in ("0", "21", "x", "m"):
            terminal.expect("Number")
            terminal.send(f"{wrong}\r")
        terminal.expect("Number")
        terminal.send("16\r")
        terminal.expect("returned 15")
        assert terminal.wait() == 0


@pytest.mark.parametrize("answer", ["q", "Q", ""])
def test_menu_can_be_left(answer: str) -> None:
    with running("Terminal().choose('Which?', ['a', 'b'])") as terminal:
        terminal.expect("Number")
        terminal.send(f"{answer}\r")
        terminal.expect("returned None")


HELD = """
import select, termios
from backuplib.processes import Signals
from backuplib.terminal import Terminal
signals = Signals()
signals.install()
with Terminal().held(signals):
    print("held", flush=True)
mode = termios.tcgetattr(0)[3]
print("echo", bool(mode & termios.ECHO), "lines", bool(mode & termios.ICANON), "left", select.select([0], [], [], 0)[0])
"""


def test_key_of_the_keyboard_does_not_hand_the_rest_of_a_paste_to_the_shell() -> None:
    with script(HELD) as terminal:
        terminal.expect("held")
        for text in ("pasted\r", "\x03", "more\r", "\x1c", "and more\r"):
            terminal.send(text)
            time.sleep(0.1)
        terminal.expect(r"echo True lines True left \[\]", 5)
        assert terminal.wait() == 0
