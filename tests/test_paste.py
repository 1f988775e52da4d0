"""A key is pasted at a prompt that a run in an interactive shell shows: nothing of it is seen, run, or kept there."""

import gzip
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeShop
from tests.support.keys import GpgHome, Keys
from tests.support.shop import Shop
from tests.support.terminal import SHELL, Terminal, interactive_shell

pytestmark = pytest.mark.needs("bash")


@pytest.fixture
def plain_shop(make_shop: MakeShop, keys: Keys) -> Shop:
    """A shop with a plain database."""
    return make_shop("sqlite")


@pytest.fixture
def backup(plain_shop: Shop, gpg: GpgHome, keys: Keys) -> Path:
    """A backup for a key without a passphrase."""
    content = gzip.compress(plain_shop.db_path.read_bytes())
    return plain_shop.back_up_then_change(gpg.encrypt(content, "--recipient", keys.open.fingerprint))


@pytest.fixture
def shell(plain_shop: Shop) -> Iterator[Terminal]:
    terminal = interactive_shell(plain_shop.path, plain_shop.environment())
    yield terminal
    terminal.end()


def wrapped(text: str, columns: int) -> str:
    return "\r".join(re.findall(f".{{1,{columns}}}", text)) + "\r"


def paste(shell: Terminal, backup: Path, text: str, piece: int = 4096) -> None:
    """Start a run, and paste at its prompt as a terminal does."""
    shell.send(f"{sys.executable} restore_backup.py {backup} --verify-only; echo CODE=$?\r")
    shell.expect("Paste the private key[^\n]*: ")
    for at in range(0, len(text), piece):
        shell.send(text[at : at + piece])
        time.sleep(0.02)


def leave(shell: Terminal, shop: Shop, pasted: str) -> int:
    """The run's exit code, after a look at what was shown and what the shell keeps."""
    code = int(shell.expect(r"CODE=\d+").removeprefix("CODE="))
    shell.expect(SHELL)
    time.sleep(0.5)  # for what the shell would still get
    shell.send("exit\r")
    shell.wait()
    for line in re.split(r"[\r\n]+", pasted):
        if len(line) > 30 and not line.startswith("-----"):
            assert line[5:30] not in shell.output
            assert line[5:30] not in (shop.path / "history").read_text()
    return code


@pytest.mark.parametrize("piece", [4096, 200], ids=["at once", "in pieces"])
@pytest.mark.parametrize(
    "form", ["wrapped at 180", "wrapped at 76", "public first", "private first", "under a note", "commands below"]
)
def test_pasted_key_opens_the_backup_and_nothing_of_it_reaches_the_shell(
    shell: Terminal, plain_shop: Shop, keys: Keys, backup: Path, *, form: str, piece: int
) -> None:
    key = keys.open.private_armor.replace("\n", "\r")
    public = key.replace("PRIVATE", "PUBLIC")  # with the right name and no public key in it: it must not matter
    text = {
        "wrapped at 180": wrapped(keys.open.private_b64, 180),
        "wrapped at 76": wrapped(keys.open.private_b64, 76),
        "public first": public + key,
        "private first": key + public,
        "under a note": "The key of the shop, and where its passphrase is, which is long: " + "x" * 99 + "\r" + key,
        "commands below": key + "echo this-was-pasted-below-the-key-and-is-no-command\r" * 9,
    }[form]
    paste(shell, backup, text, piece)
    assert leave(shell, plain_shop, text) == 0, shell.output


@pytest.mark.parametrize("form", ["damaged", "public", "a word"])
def test_what_is_no_key_is_ended_by_an_empty_line_and_does_not_reach_the_shell(
    shell: Terminal, plain_shop: Shop, keys: Keys, backup: Path, form: str
) -> None:
    damaged = keys.open.private_armor.replace("\n", "\r").replace("B", "%")
    text = {
        "damaged": damaged,
        "public": wrapped(keys.open.public_b64, 99),
        "a word": "hello-and-some-more-than-30-letters\r",
    }
    paste(shell, backup, text[form] + "\r")
    assert leave(shell, plain_shop, text[form]) == 4, shell.output
    assert "❌" in shell.output


def test_what_is_typed_while_the_run_is_busy_is_neither_shown_nor_run(
    shell: Terminal, plain_shop: Shop, keys: Keys, backup: Path
) -> None:
    key = wrapped(keys.open.private_b64, 180)
    paste(shell, backup, key)
    time.sleep(0.5)
    shell.send("echo typed-ahead-and-longer-than-30-letters\r")
    assert leave(shell, plain_shop, "echo typed-ahead-and-longer-than-30-letters") == 0
