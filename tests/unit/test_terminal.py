"""The terminal: when a pasted key is whole, and a menu on a real terminal."""

import base64
import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backuplib.terminal import _is_complete
from tests.support.shop import ROOT
from tests.support.terminal import Terminal

LONG = base64.b64encode(random.Random(1).randbytes(3000))
WRAPPED = b"\n".join(re.findall(rb".{1,76}", LONG))
ARMOR = b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n" + WRAPPED + b"\n=abcd\n-----END PGP PRIVATE KEY BLOCK-----"


@pytest.mark.parametrize(
    ("pasted", "whole"),
    [
        (b"", False),
        (b"\n\n", False),
        (LONG, False),
        (LONG + b"\n", True),
        (LONG + b"\r", True),
        (b"\n" + LONG + b"\n", True),
        (WRAPPED + b"\n", False),
        (WRAPPED[:77], False),
        (ARMOR, False),
        (ARMOR + b"\n", True),
        (ARMOR.replace(b"\n", b"\r") + b"\r", True),
        (ARMOR[:500], False),
    ],
    ids=[
        "nothing",
        "empty lines",
        "one line without its end",
        "one line",
        "one line, carriage return",
        "empty line before",
        "wrapped: Ctrl-D ends it",
        "first line of it",
        "armor without its end",
        "armor",
        "armor, carriage returns",
        "part of armor",
    ],
)
def test_end_of_a_pasted_key_is_seen(pasted: bytes, whole: bool) -> None:
    assert _is_complete(bytearray(pasted)) is whole


@contextmanager
def running(call: str) -> Iterator[Terminal]:
    """A program that prints what a call of the terminal's returns."""
    script = f"from backuplib.terminal import Terminal; print('returned', {call})"
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
