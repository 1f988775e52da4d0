"""A run without a terminal names at once all that it lacks, and a command that has it."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from backuplib import typed
from backuplib.errors import NoTerminalError
from backuplib.unattended import Questions, refuse_unanswered
from restore_backup import parse

TARGET = Path("/srv/shop.db")
ALL = Questions(
    encrypted=True, replaced=TARGET, compose_file="there is no .env", swap=True, unseen="cannot tell whether it is used"
)
ANSWERS = ["--key-stdin", "--force", "--passphrase-command", "--compose-file", "--allow-swap"]


@pytest.fixture(autouse=True)
def nothing_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is typed in a test is forgotten after it."""
    monkeypatch.setattr(typed, "_options", None)


def refused(asked: Questions, *argv: str) -> NoTerminalError:
    """The refusal of a command line."""
    with pytest.raises(NoTerminalError) as raised:
        refuse_unanswered(asked, parse([*argv]))
    return raised.value


def command(error: NoTerminalError) -> list[str]:
    """The arguments of the command that the hint proposes."""
    line = error.hint.partition("one command that has all of it: ")[2]
    return shlex.split(line.partition("restore_backup.py ")[2])


def test_all_is_named_at_once() -> None:
    error = refused(ALL)
    for word in ("backup file", "private key", str(TARGET), "passphrase", "no .env", "swap", "cannot tell"):
        assert word in str(error)
    words = command(error)
    assert words[0] == "BACKUP"
    assert [option for option in ANSWERS if option not in words] == []
    assert "--list" in error.hint


@pytest.mark.parametrize(
    "typed_options",
    [
        ["b.gpg"],
        ["b.gpg", "--force"],
        ["b.gpg", "--key-stdin"],
        ["b.gpg", "--key-stdin", "--passphrase-command", "cat secret"],
        ["b.gpg", "--key-stdin", "--backup-db-pass", "--force"],
        ["--key-stdin", "--force", "--passphrase-fd", "3"],
        [],
    ],
    ids=" ".join,
)
def test_command_that_is_proposed_is_not_refused(typed_options: list[str]) -> None:
    """Which also has all that was typed."""
    words = [word.replace("N", "5") for word in command(refused(ALL, *typed_options, "--no-restart", "--convert"))]
    options = parse(words)
    refuse_unanswered(replace(ALL, unseen=""), options)
    assert options.no_restart
    assert options.convert
    assert options.allow_swap
    assert options.passphrase_command or options.passphrase_fd is not None


@pytest.mark.parametrize("options", [["b.gpg", "--force", "--key-stdin"], ["b.gpg", "--verify-only", "--key-stdin"]])
def test_run_that_has_what_it_takes_goes_on(options: list[str]) -> None:
    """Whether the key has a passphrase is not known yet; what else is missing has a refusal of its own."""
    asked = Questions(encrypted=True) if "--verify-only" in options else ALL
    refuse_unanswered(asked, parse(options))


def test_plain_backup_takes_no_key() -> None:
    refuse_unanswered(Questions(encrypted=False), parse(["b.db"]))
    error = refused(Questions(encrypted=False, replaced=TARGET), "b.db")
    assert command(error) == ["b.db", "--force"]
    assert "key" not in str(error)


def test_terminal_is_proposed_but_never_beside_a_piped_key() -> None:
    """A terminal on a pipe would show the key."""
    assert "ssh -t" in refused(ALL, "b.gpg").hint
    assert "ssh -t" not in refused(ALL, "b.gpg", "--key-stdin").hint


def test_force_is_no_answer_to_who_has_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given, it is the last word of a run that cannot ask; not given, root is proposed beside it."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    error = refused(ALL, "b.gpg", "--key-stdin")
    assert "look at all processes (sudo): cannot tell" in str(error)
    assert re.search(r"sudo \S*python\S* \S*restore_backup.py b.gpg ", error.hint)
    assert "sudo" not in refused(ALL, "b.gpg", "--force").hint
    monkeypatch.setattr("os.geteuid", lambda: 0)
    error = refused(ALL, "b.gpg", "--key-stdin")
    assert "CAP_SYS_PTRACE" in str(error)  # sudo would not help
    assert "sudo" not in str(error) + error.hint


def test_passphrase_of_the_database_is_read_where_it_cannot_be_asked_for() -> None:
    words = command(refused(Questions(encrypted=False), "b.db", "--backup-db-pass"))
    assert words == ["b.db", "--backup-db-pass-fd", "N"]
