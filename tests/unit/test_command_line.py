"""A mistyped command line: what was probably meant, and nothing done on a guess."""

import pytest

from backuplib.command_line import like
from backuplib.errors import UsageError
from database_backup import _command_line as backup_line
from restore_backup import command_line as restore_line


def told(argv: list[str], *, of_backup: bool = False) -> UsageError:
    """The refusal of a command line."""
    with pytest.raises(UsageError) as raised:
        (backup_line() if of_backup else restore_line()).parse_args(argv)
    return raised.value


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--verify", "--verify-only"),
        ("--verfy-only", "--verify-only"),
        ("--verify_only", "--verify-only"),
        ("--keystdin", "--key-stdin"),
        ("--target", "--target-path"),
        ("--target-file=x", "--target-path"),
        ("--Force", "--force"),
        ("-force", "--force"),
        ("--passphrase", "--passphrase-fd"),
    ],
)
def test_option_that_was_probably_meant_is_named(typed: str, meant: str) -> None:
    error = told([typed, "b.gpg"])
    assert str(error) == f"unknown option {typed.partition('=')[0]}"
    assert error.hint.startswith(f"Did you mean {meant}? See: ")


def test_option_that_is_like_nothing_is_not_explained() -> None:
    assert told(["--quux"]).hint.startswith("See: ")


@pytest.mark.parametrize(
    "argv", [["--passphrase-comand", "echo hunter2", "b.gpg"], ["--passphrase-comand=echo hunter2"]]
)
def test_value_of_an_unknown_option_is_not_shown(argv: list[str]) -> None:
    error = told(argv)
    assert "hunter2" not in str(error) + error.hint
    assert "--passphrase-command" in error.hint


def test_second_backup_file_is_one_too_many() -> None:
    assert str(told(["a.gpg", "b.gpg"])) == "1 word too many, from b.gpg on"


@pytest.mark.parametrize(("typed", "meant"), [("creat", "create"), ("lst", "list"), ("List", "list"), ("pr", "prune")])
def test_command_that_was_probably_meant_is_named(typed: str, meant: str) -> None:
    error = told([typed], of_backup=True)
    assert str(error) == f"unknown command {typed}"
    assert error.hint.startswith(f"Did you mean {meant}? See: ")


def test_command_that_is_like_nothing_is_told_with_all_that_there_are() -> None:
    assert "create, push, list, verify, rescue, prune" in told(["quux"], of_backup=True).hint


def test_options_of_a_subcommand_are_its_own() -> None:
    error = told(["create", "--no-encript"], of_backup=True)
    assert error.hint.startswith("Did you mean --no-encrypt? See: ")
    assert error.hint.endswith("database_backup.py create --help")
    assert told(["list", "--no-encrypt"], of_backup=True).hint.startswith("See: ")


def test_likeness_is_none_to_nothing() -> None:
    assert like("", ["--force"]) == ""
    assert like("--", ["--force"]) == ""
