"""Commands that are printed to be typed next have the options of this run, and no secret."""

import shlex
import sys
from pathlib import Path

import pytest

from backuplib import typed
from backuplib.errors import choose_another_backup_hint, restore_command, same_command
from restore_backup import parse

BACKUP = "/srv/my backups/x.gpg"
TARGET = ["--target-path", "/srv/it's here/shop.db"]
SERVICES = ["--compose-file", "/srv/c.yml", "--service", "bot", "--service", "web"]
KEY = ["--key-stdin", "--passphrase-fd", "7"]


@pytest.fixture(autouse=True)
def nothing_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is typed in a test is forgotten after it."""
    monkeypatch.setattr(typed, "_options", None)


def words(command: str) -> list[str]:
    """A command without the Python and the script."""
    python, script, *rest = shlex.split(command)
    assert "python" in Path(python).name
    assert Path(script).name == "restore_backup.py"
    return rest


def test_nothing_is_carried_over_from_nothing() -> None:
    assert words(restore_command("--recover")) == ["--recover"]
    assert words(same_command(backup="x")) == ["x"]


def test_recovery_is_of_the_same_database_and_services() -> None:
    parse([BACKUP, *TARGET, *SERVICES, *KEY, "--force", "--convert"])
    assert words(restore_command("--recover")) == ["--recover", *TARGET, *SERVICES]


def test_undo_has_what_a_restore_of_it_takes_and_asks_again() -> None:
    parse([BACKUP, *TARGET, "--no-restart", *KEY, "--force", "--skip-backup", "--stop-first", "--convert"])
    assert words(restore_command("safety.gpg")) == ["safety.gpg", *TARGET, "--no-restart", "--convert"]


def test_what_is_typed_already_is_not_said_twice() -> None:
    parse([BACKUP, *TARGET, "--no-restart"])
    assert words(restore_command("x", "--no-restart")) == ["x", "--no-restart", *TARGET]


@pytest.mark.parametrize("option", ["--list", "--help", "--drill"])
def test_what_takes_no_option_has_none(option: str) -> None:
    parse([BACKUP, *TARGET, *SERVICES, *KEY])
    assert words(restore_command(option)) == [option]
    assert "--target-path" not in choose_another_backup_hint()


def test_other_script_has_no_option_of_this_one() -> None:
    parse([BACKUP, *TARGET])
    assert "--target-path" not in restore_command("rescue", "-", script="database_backup.py")


def test_same_command_has_all_that_was_typed_and_more() -> None:
    parse([BACKUP, *TARGET, *SERVICES, *KEY, "--skip-backup", "--backup-db-pass"])
    command = words(same_command("--force", without=["backup_db_pass"]))
    assert command[0] == BACKUP
    assert command[-1] == "--force"
    given = [*TARGET, *SERVICES, *KEY, "--skip-backup"]
    assert sorted(command[1:-1]) == sorted(given)
    assert words(same_command(backup="y"))[0] == "y"


def test_paths_are_shown_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parse(["b.gpg", "--target-path", "data/shop.db"])
    assert words(same_command()) == ["b.gpg", "--target-path", "data/shop.db"]


def test_command_that_may_hold_a_secret_is_not_shown() -> None:
    parse([BACKUP, "--key-stdin", "--passphrase-command", "echo hunter2"])
    for command in (same_command(), same_command(root=True), restore_command("x"), restore_command("--recover")):
        assert "hunter2" not in command
    assert "--passphrase-command …" in same_command()


def test_sudo_gets_the_python_by_its_path_and_no_descriptor() -> None:
    """It has another PATH, and closes all but the standard streams."""
    parse([BACKUP, *KEY])
    sudo, python, _, *rest = shlex.split(same_command(root=True))
    assert (sudo, Path(python).absolute()) == ("sudo", Path(sys.executable))
    assert rest == [BACKUP, "--key-stdin", "--passphrase-command", "CMD"]


@pytest.mark.parametrize("secret", [["--passphrase-command", "echo hunter2"], ["--passphrase-command=echo\nhunter2"]])
def test_command_line_is_shown_without_the_commands_in_it(secret: list[str]) -> None:
    shown = typed.without_secrets(["restore_backup.py", "x", *secret, "--force"])
    assert "hunter2" not in " ".join(shown)
    assert shown[:2] == ["restore_backup.py", "x"]
    assert shown[-1] == "--force"
