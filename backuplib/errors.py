"""What can go wrong, as it is told to the operator: each kind has an identity, an exit code, and a hint."""

import os
import re
import shlex
import shutil
import signal
import sys
from enum import IntEnum
from pathlib import Path
from typing import ClassVar, Self

from backuplib.formatting import megabytes, printable, shown

AS_BEFORE, RUNNING = "The database is as it was before", "the services that ran are running."


class ExitCode(IntEnum):
    """The one registry of exit codes: each with what it means and the state it leaves, in words for the operator."""

    meaning: str
    state: str

    def __new__(cls, code: int, meaning: str, state: str = "Nothing was touched.") -> Self:
        """Make a member: an int with two texts."""
        member = int.__new__(cls, code)
        member._value_, member.meaning, member.state = code, meaning, state
        return member

    DONE = 0, "done", ""
    UNEXPECTED = 1, "unexpected error (a bug)", f"{AS_BEFORE}, or was rolled back to that."
    USAGE = 2, "usage"
    REFUSED = 3, "refused: setting, bot, missing file, checksum, space, lock, Docker, no terminal, database in use"
    CANNOT_DECRYPT = 4, "cannot decrypt: wrong key or passphrase, damaged or unauthenticated message"
    UNSOUND_BACKUP = 5, "the backup is not a sound database"
    NO_SAFETY_BACKUP = 6, "the safety backup could not be made"
    CANNOT_STOP = 7, "the services could not be stopped", f"The database was not touched; {RUNNING}"
    ROLLED_BACK = 8, "failed later; rolled back", f"{AS_BEFORE}; {RUNNING}"
    SERVICES_DOWN = 9, "rolled back, but the services do not come up", f"{AS_BEFORE}, but the services are NOT running."
    DECLINED = 10, "declined at the confirmation"
    ROLLBACK_FAILED = 20, "the rollback itself failed", "Manual intervention required."
    SIGHUP = 129, "ended by SIGHUP before the switch"
    SIGINT = 130, "ended by SIGINT before the switch"
    SIGQUIT = 131, "ended by SIGQUIT before the switch"
    SIGTERM = 143, "ended by SIGTERM before the switch"


class OperatorError(Exception):
    """A failure that is explained to the operator: what happened, and as ``hint`` what to do or type next.

    Its ``id`` is stable: the name of the class in kebab-case without "Error". ``state`` says what state things are in,
    where that is not what the exit code says. ``log`` is what a container printed: shown, and written down nowhere.
    """

    exit_code: ExitCode = ExitCode.REFUSED
    id: ClassVar[str] = "operator"

    def __init__(self, message: str, *, hint: str = "", state: str = "", log: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.state = state
        self.log = log

    def __init_subclass__(cls) -> None:
        """Derive the identity."""
        cls.id = re.sub(r"(?<=.)([A-Z])", r"-\1", cls.__name__.removesuffix("Error")).lower()


class UnexpectedError(OperatorError):
    """A bug, told with its traceback."""

    exit_code = ExitCode.UNEXPECTED


class EndedBySignalError(OperatorError):
    """A signal ended the run before the switch."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"ended by {name}")
        self.exit_code = ExitCode[name]


CHECK_DISK = "Check the disk: dmesg | tail"


def restore_command(*arguments: str, script: str = "restore_backup.py") -> str:
    """Return a command line for a script of this tool, to be copied into a shell as it is."""
    found, own = shutil.which("python"), sys.executable
    # In the same folder, too: the Pythons of virtual environments are links to one file, but have other packages.
    on_path = found and all(os.path.realpath(of(found)) == os.path.realpath(of(own)) for of in (str, os.path.dirname))
    python = "python" if on_path else shown(Path(own))
    return shlex.join([python, shown(Path(__file__).parents[1] / script), *arguments])


def rescue_command(backup: Path) -> str:
    """Return the command that makes a database of the files that a safety backup holds as they were."""
    encrypted = backup.suffix == ".gpg"
    rescue = restore_command("rescue", "-" if encrypted else shown(backup), script="database_backup.py")
    return f"gpg -d {shlex.quote(shown(backup))} | {rescue}" if encrypted else rescue


def choose_another_backup_hint() -> str:
    """Return the hint for a backup that cannot be used."""
    return f"Restore another backup; to see them: {restore_command('--list')}"


def explain(error: BaseException) -> str:
    """Return an error in words for people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


class UsageError(OperatorError):
    """The command line cannot be understood."""

    exit_code = ExitCode.USAGE


class DeclinedError(OperatorError):
    """The operator said no."""

    exit_code = ExitCode.DECLINED


class RefusedError(OperatorError):
    """Something needed is missing or in the way."""


class DiskFailureError(RefusedError):
    """The disk fails at a place that has no words of its own for it."""

    def __init__(self, error: OSError) -> None:
        super().__init__(explain(error), hint=CHECK_DISK)


class MissingPackageError(RefusedError):
    """This Python lacks a package."""

    def __init__(self, name: str | None) -> None:
        package = {"dotenv": "python-dotenv", "gnupg": "python-gnupg", "sqlcipher3": "sqlcipher3-binary"}
        super().__init__(
            f"missing Python package {package.get(name or '', name)} in {sys.executable}",
            hint="Use the Python that has it (. .venv/bin/activate), or install all: pip install -r requirements.txt",
        )


class ForeignConfigError(RefusedError):
    """The config.py that Python finds is another program's."""

    def __init__(self, file: Path) -> None:
        super().__init__(
            f"{file} is not this tool's config.py, but another program's, such as the bot's",
            hint="Put all files of this tool, config.py and backuplib among them, into a folder of their own, and run "
            'it there: README.md, "Into the bot\'s repository".',
        )


class WrongSettingError(RefusedError):
    """A setting is missing or wrong."""


class UnusablePublicKeyError(WrongSettingError):
    """A key in PGP_PUBLIC_KEY_BASE64 has expired, is revoked, or cannot encrypt."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message,
            hint="Extend it where the private key is (gpg --quick-set-expire FINGERPRINT 2y, and once more with '*' "
            "behind it for the subkeys), or use another key; then set PGP_PUBLIC_KEY_BASE64 in .env to the output of: "
            "gpg --armor --export KEY-ID | base64 -w0. A restore with --skip-backup does not need it.",
        )


class NoTerminalError(RefusedError):
    """Something has to be asked for, and there is no terminal."""


class NoPassphraseError(RefusedError):
    """The descriptor or command that was named gives no passphrase."""


class BackupNotFoundError(RefusedError):
    """The backup file is not there, is not a file, or cannot be read."""


class ChecksumMismatchError(RefusedError):
    """The backup is not the file that the checksum was made of."""


class ChecksumUnreadableError(RefusedError):
    """The checksum file cannot be read or understood."""


class UnsuitableTargetError(RefusedError):
    """The target cannot be replaced by a rename."""


class EncryptionDiffersError(RefusedError):
    """The database to replace is encrypted and the new one would not be, or the reverse."""


class DatabaseInUseError(RefusedError):
    """Some process has the database open, or that cannot be ruled out."""


class LockedError(RefusedError):
    """Another restore or backup is running."""


class NoSpaceError(RefusedError):
    """Too little room on a disk."""


class CannotWriteError(RefusedError):
    """The folder of the database cannot be written, or what is in it not be replaced."""


class NoMemoryError(RefusedError):
    """Too little memory, or no RAM folder."""


class SwapEnabledError(RefusedError):
    """Decrypted data could be swapped out to a disk."""


class UnusableComposeFileError(RefusedError):
    """The compose file is missing or ambiguous, or there is no container of a service."""


class FolderNotMountedError(RefusedError):
    """No container of the bot has the folder of the database."""


class SettingsDifferError(RefusedError):
    """A container of the bot runs with other settings than ours."""


class UnfinishedRestoreError(RefusedError):
    """An interrupted restore cannot be finished or undone without a person: its journal is unreadable or disputed."""


class CommandFailedError(OperatorError):
    """A command that this tool runs failed or did not end in time; ``output`` is its standard output until then."""

    def __init__(self, message: str, *, hint: str = "", output: str = "") -> None:
        super().__init__(message, hint=hint)
        self.output = output


class MissingProgramError(CommandFailedError):
    """A program that this tool runs is not installed, or cannot be run."""


class DockerUnreachableError(CommandFailedError):
    """Docker does not answer."""


class DecryptionError(OperatorError):
    """The backup cannot be decrypted."""

    exit_code = ExitCode.CANNOT_DECRYPT


class UnusableKeyError(DecryptionError):
    """What was given is no private key, or a damaged one."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint or "Export it again: gpg --export-secret-keys KEY-ID | base64 -w0")


class KeyHasNoSecretPartError(UnusableKeyError):
    """What was given is a public key, or has no secret part where the message needs it (left out, on a smartcard)."""


class UnsupportedFormatError(DecryptionError):
    """The key or the message is in a format that gpg does not read."""


class WrongKeyError(DecryptionError):
    """The message is encrypted to another key."""


class WrongPassphraseError(DecryptionError):
    """The passphrase does not open the private key."""


class NotEncryptedError(DecryptionError):
    """The message is not encrypted, or not to a key."""


class GpgFailedError(DecryptionError):
    """gpg did not decrypt, for a reason that this tool does not know; the person's own gpg has said why."""


class DecryptionTimeoutError(DecryptionError):
    """gpg computed for longer than a message of that size takes."""


class DamagedMessageError(DecryptionError):
    """The ciphertext is damaged, incomplete, or no OpenPGP message."""


class UnauthenticatedMessageError(DecryptionError):
    """Nothing in the message shows whether its content was changed."""


class UnsoundBackupError(OperatorError):
    """What the backup holds is not a sound database."""

    exit_code = ExitCode.UNSOUND_BACKUP

    def __init__(self, message: str, *, hint: str = "") -> None:
        # printable: SQLite quotes names from the backup
        super().__init__(printable(message), hint=hint or choose_another_backup_hint())


class DamagedGzipError(UnsoundBackupError):
    """The gzip layer is damaged."""


class EmptyBackupError(UnsoundBackupError):
    """The backup holds nothing, or a database without a table."""


class NotADatabaseError(UnsoundBackupError):
    """The backup holds something else."""


class DamagedDatabaseError(UnsoundBackupError):
    """The database in the backup is damaged."""


class UnknownSchemaError(UnsoundBackupError):
    """The schema of the database in the backup takes a newer SQLite, or is damaged."""


class NeedsTheBotError(UnsoundBackupError):
    """The database cannot be built anew without a function or collation that only the bot has."""


class WrongDbPassError(UnsoundBackupError):
    """No passphrase that is known opens the database in the backup."""


class ConvertRequiredError(UnsoundBackupError):
    """The backup is not in the configured format, and --convert was not given."""


class CannotConvertError(UnsoundBackupError):
    """The backup is not in the configured format, and the conversion failed."""


class CheckTimeoutError(UnsoundBackupError):
    """The check of the database did not end in time; ``seconds``: what it had."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the check of the database did not end within {seconds:.0f} s")


class CheckFailedError(UnsoundBackupError):
    """The process that checks the database took too much memory, or crashed."""


class TooLargeError(UnsoundBackupError):
    """The backup unpacks to more than memory, or MAX_DATABASE_MB, allows; ``limit`` in bytes."""

    def __init__(self, limit: float) -> None:
        super().__init__(
            f"the backup unpacks to more than {megabytes(limit)}, which is all that memory, or MAX_DATABASE_MB, allows",
            hint="Is it the right file? If it is, raise MAX_DATABASE_MB in .env, or restore on a machine with more "
            "memory.",
        )


class BackupFailedError(OperatorError):
    """A backup could not be made."""

    exit_code = ExitCode.NO_SAFETY_BACKUP


class DatabaseLockedError(BackupFailedError):
    """Somebody holds the database locked, so that no consistent copy of it can be made now."""


class UnreadableDatabaseError(BackupFailedError):
    """The database cannot be opened, so that no consistent copy of it can be made."""


class DatabaseUnsoundError(UnreadableDatabaseError):
    """The copy of the database is not sound: a backup that holds it could not be restored."""


class CannotStopError(OperatorError):
    """The services could not be stopped, or the database is still in use after that."""

    exit_code = ExitCode.CANNOT_STOP


class RolledBackError(OperatorError):
    """Failed after the services were stopped, and rolled back."""

    exit_code = ExitCode.ROLLED_BACK


class ServicesDownError(OperatorError):
    """The services do not come up; ``services`` is the clause that says which."""

    exit_code = ExitCode.SERVICES_DOWN

    def __init__(self, message: str, *, services: str, hint: str = "", log: str = "") -> None:
        super().__init__(message, hint=hint, state=f"{AS_BEFORE}, {services}.", log=log)
        self.services = services


class RollbackFailedError(OperatorError):
    """The rollback itself failed: manual intervention required."""

    exit_code = ExitCode.ROLLBACK_FAILED
