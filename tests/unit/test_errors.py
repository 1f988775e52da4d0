"""Each kind of failure has an identity that scripts can hold on to, an exit code, and a state."""

import errno
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import restore_backup
from backuplib.errors import (
    DiskFailureError,
    EndedBySignalError,
    ExitCode,
    MissingPackageError,
    OperatorError,
    TooLargeError,
    UnsoundBackupError,
    UsageError,
    WrongSettingError,
    explain,
    restore_command,
    writing_hint,
)


def all_below(kind: type[OperatorError]) -> Iterator[type[OperatorError]]:
    for below in kind.__subclasses__():
        yield below
        yield from all_below(below)


KINDS = sorted(all_below(OperatorError), key=lambda kind: kind.__name__)


def test_the_settings_error_counts_too() -> None:
    assert WrongSettingError in KINDS
    assert UsageError in KINDS


def test_identities_are_unique() -> None:
    ids = [kind.id for kind in KINDS]
    assert len(ids) == len({*ids}) > 30


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_identity_is_kebab_case_of_the_name(kind: type[OperatorError]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.id)
    assert kind.id.replace("-", "") + "error" == kind.__name__.lower()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_exit_code_is_one_of_a_failure(kind: type[OperatorError]) -> None:
    assert kind.exit_code in ExitCode
    assert kind.exit_code != ExitCode.DONE


def test_identities_that_scripts_know() -> None:
    """They are promised; one that is to be renamed has to be renamed here, too."""
    codes = {kind.id: int(kind.exit_code) for kind in KINDS}
    known = {
        "usage": 2,
        "wrong-setting": 3,
        "backup-not-found": 3,
        "checksum-mismatch": 3,
        "database-in-use": 3,
        "locked": 3,
        "no-space": 3,
        "no-terminal": 3,
        "docker-unreachable": 3,
        "unfinished-restore": 3,
        "wrong-key": 4,
        "wrong-passphrase": 4,
        "key-has-no-secret-part": 4,
        "damaged-message": 4,
        "unauthenticated-message": 4,
        "damaged-gzip": 5,
        "damaged-database": 5,
        "wrong-db-pass": 5,
        "backup-failed": 6,
        "cannot-stop": 7,
        "rolled-back": 8,
        "services-down": 9,
        "declined": 10,
        "rollback-failed": 20,
    }
    assert {name: codes.get(name) for name in known} == known


# --- exit codes ------------------------------------------------------------------------------------------------------


def test_numbers_are_the_promised_ones() -> None:
    assert [*map(int, ExitCode)] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 20, 129, 130, 131, 143]


@pytest.mark.parametrize("code", ExitCode)
def test_exit_code_says_what_it_means_and_what_state_it_leaves(code: ExitCode) -> None:
    assert code.meaning
    assert not code.meaning.endswith(".")
    assert code.state.endswith(".") == (code is not ExitCode.DONE)
    assert [item for item in ExitCode if item == int(code)] == [code]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_end_by_a_signal_has_the_code_that_a_shell_gives(number: signal.Signals) -> None:
    assert EndedBySignalError(number).exit_code == 128 + number


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [(), ("--list",), ("--target-path", "/srv/it's here/shop.db"), ("$(reboot)", "a\nb", "--", "*")],
    ids=["none", "option", "blank and quote", "shell"],
)
def test_command_can_be_copied_into_a_shell(arguments: tuple[str, ...]) -> None:
    python, script, *rest = shlex.split(restore_command(*arguments))
    assert rest == list(arguments)
    assert Path(script).resolve() == Path(restore_backup.__file__).resolve()
    assert "python" in Path(python).name


def test_hint_names_the_python_that_runs_where_another_one_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shlex.split(restore_command())[0] != "python"


def test_hint_names_the_python_of_a_folder_that_is_on_the_path_of_one_command_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`PATH=.venv/bin:$PATH python …`: the shell into which the hint is copied has no such PATH."""
    python = tmp_path / "venv/python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(python))
    for path, found in ((str(python.parent), "python"), ("venv", "venv/python")):
        monkeypatch.setenv("PATH", path)
        assert shlex.split(restore_command())[0] == found


def test_error_of_the_system_is_explained_with_its_file() -> None:
    assert explain(OSError(28, "No space left on device", "/srv/x")) == "/srv/x: No space left on device"
    assert explain(OSError(28, "No space left on device")) == "No space left on device"
    assert explain(OSError("said by a library")) == "said by a library"
    assert explain(ValueError("what")) == "what"
    assert explain(ValueError()) == "ValueError"


def test_names_from_a_backup_steer_no_terminal() -> None:
    assert "\x1b" not in str(UnsoundBackupError("table x\x1b[2J is damaged"))


@pytest.mark.parametrize(
    "error",
    [
        UnsoundBackupError("x"),
        TooLargeError(1),
        MissingPackageError("gnupg"),
        DiskFailureError(OSError(5, "I/O error")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_that_knows_what_to_do_says_so(error: OperatorError) -> None:
    assert error.hint


def test_read_only_filesystem_has_words_of_its_own() -> None:
    read_only = OSError(errno.EROFS, "Read-only file system", "/proc/self/x")
    assert "mount -o remount,rw /proc" in writing_hint(read_only, Path("/proc/self"), "df")
    assert writing_hint(OSError(errno.ENOSPC, "full"), Path("/proc"), "df") == "df"
    assert "/proc is mounted read-only" in DiskFailureError(read_only).hint


def test_lack_of_permission_is_no_broken_disk() -> None:
    hint = DiskFailureError(PermissionError(errno.EACCES, "Permission denied", "/srv/my data")).hint
    assert "ls -ld '/srv/my data'" in hint
    assert "dmesg" not in hint


@pytest.mark.parametrize(
    ("module", "package"), [("dotenv", "python-dotenv"), ("sqlcipher3", "sqlcipher3-binary"), ("isal", "isal")]
)
def test_missing_package_is_named_as_pip_knows_it(module: str, package: str) -> None:
    assert f" {package} " in str(MissingPackageError(module))
