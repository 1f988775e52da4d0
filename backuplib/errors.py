"""What can go wrong, as it is told to the operator, and the exit code of each."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from enum import IntEnum
from pathlib import Path

from backuplib.formatting import printable, shown


class ExitCode(IntEnum):
    """The one registry of exit codes; the README explains each to the operator."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    REFUSED = 3
    CANNOT_DECRYPT = 4
    UNSOUND_BACKUP = 5
    NO_SAFETY_BACKUP = 6
    CANNOT_STOP = 7
    ROLLED_BACK = 8
    ROLLED_BACK_SERVICES_DOWN = 9
    DECLINED = 10
    ROLLBACK_FAILED = 20
    SIGHUP = 129
    SIGINT = 130
    SIGTERM = 143


class OperatorError(Exception):
    """A failure that is explained to the operator: what happened, and as ``hint`` what to do or type next.

    ``state`` says what state things are in, where the exit code does not tell.
    """

    exit_code = ExitCode.REFUSED

    def __init__(self, message: str, *, hint: str = "", state: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.state = state


STATE = {
    ExitCode.UNEXPECTED: "The database is as it was before, or was rolled back to that.",
    ExitCode.CANNOT_STOP: "The database was not touched; the services that ran are running.",
    ExitCode.ROLLED_BACK: "The database is as it was before; the services that ran are running.",
    ExitCode.ROLLED_BACK_SERVICES_DOWN: "The database is as it was before, but the services are NOT running.",
    ExitCode.ROLLBACK_FAILED: "A PERSON IS NEEDED NOW.",
}
"""What state things are in after a failure, by exit code; after all others nothing was touched."""


RESTORED = "The restored database is live; the services that ran are running."
"""What state things are in after a failure that comes when the restore is done."""


CHECK_DISK = "Check the disk: dmesg | tail"
"""What to do about an error of the disk."""


class UsageError(OperatorError):
    """The command line cannot be understood."""

    exit_code = ExitCode.USAGE


class DeclinedError(OperatorError):
    """The operator said no."""

    exit_code = ExitCode.DECLINED


class RefusedError(OperatorError):
    """Something needed is missing or in the way; nothing was touched."""

    exit_code = ExitCode.REFUSED


class InUseError(RefusedError):
    """Some process has the database open."""


class CommandError(OperatorError):
    """A command that this tool runs is missing, failed or did not end in time.

    :param output: what it wrote on standard output all the same.
    """

    def __init__(self, message: str, *, hint: str = "", output: str = "") -> None:
        super().__init__(message, hint=hint)
        self.output = output


class DecryptionError(OperatorError):
    """The backup cannot be decrypted, or its ciphertext is damaged or not authenticated."""

    exit_code = ExitCode.CANNOT_DECRYPT


class PassphraseError(DecryptionError):
    """The passphrase does not open the private key."""


class UnsoundBackupError(OperatorError):
    """What the backup holds is not a sound database."""

    exit_code = ExitCode.UNSOUND_BACKUP

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(printable(message), hint=hint)  # SQLite quotes names from the backup


class BackupError(OperatorError):
    """A backup could not be made."""

    exit_code = ExitCode.NO_SAFETY_BACKUP


class UnreadableDatabaseError(BackupError):
    """The database cannot be opened, so that no consistent copy of it can be made."""


class CannotStopError(OperatorError):
    """The services could not be stopped, or the database is still in use after that."""

    exit_code = ExitCode.CANNOT_STOP


class SwitchError(OperatorError):
    """Failed after the services were stopped, and rolled back."""

    exit_code = ExitCode.ROLLED_BACK


class ServicesDownError(OperatorError):
    """The services do not come up."""

    exit_code = ExitCode.ROLLED_BACK_SERVICES_DOWN


class RollbackError(OperatorError):
    """The rollback itself failed: a person is needed."""

    exit_code = ExitCode.ROLLBACK_FAILED


class UnreadableError(Exception):
    """The live database cannot be opened; what is there is kept byte for byte."""


def explain(error: BaseException) -> str:
    """Return an error in words for people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def restore_command(*arguments: str) -> str:
    """Return a command line for restore_backup.py, to be copied into a shell as it is."""
    found, own = shutil.which("python"), sys.executable
    # In the same folder, too: the Pythons of virtual environments are links to one file, but have other packages.
    on_path = found and all(os.path.realpath(of(found)) == os.path.realpath(of(own)) for of in (str, os.path.dirname))
    python = "python" if on_path else shown(Path(own))
    return shlex.join([python, shown(Path(__file__).parents[1] / "restore_backup.py"), *arguments])


def another_backup() -> str:
    """Return the hint for a backup that is of no use."""
    return f"Restore another backup; to see them: {restore_command('--list')}"


def missing_module(error: ModuleNotFoundError) -> RefusedError:
    """Return the refusal for a Python that lacks a package, or a program folder that lacks a file."""
    return RefusedError(
        f"{sys.executable} does not have the package {error.name}",
        hint="Use the Python that has it (. .venv/bin/activate), or install all: pip install -r requirements.txt",
    )
