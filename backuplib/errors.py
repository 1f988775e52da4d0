"""What can go wrong, as it is told to the operator: each kind has an identity, an exit code, and a hint."""

import errno
import os
import re
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Collection
from enum import IntEnum
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Self

from backuplib import typed
from backuplib.files import mount_point
from backuplib.folder import name_of
from backuplib.formatting import megabytes, printable, quoted, shown

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
    CANNOT_DECRYPT = (
        4,
        "cannot decrypt: wrong key or passphrase, damaged or unauthenticated message; not signed as required",
    )
    UNSOUND_BACKUP = 5, "the backup is not a sound database"
    NO_SAFETY_BACKUP = 6, "the safety backup could not be made"
    CANNOT_STOP = 7, "the services could not be stopped", f"The database was not touched; {RUNNING}"
    ROLLED_BACK = 8, "failed later; rolled back", f"{AS_BEFORE}; {RUNNING}"
    SERVICES_DOWN = 9, "rolled back, but the services do not come up", f"{AS_BEFORE}, but the services are NOT running."
    DECLINED = 10, "declined at the confirmation"
    NOT_EVERYWHERE = 11, "done and safe here, but not at every remote", "What is here stays as it is."
    ROLLBACK_FAILED = 20, "the rollback itself failed", "Manual intervention required."
    SIGHUP = 129, "ended by SIGHUP before the switch"
    SIGINT = 130, "ended by SIGINT before the switch"
    SIGQUIT = 131, "ended by SIGQUIT before the switch"
    SIGTERM = 143, "ended by SIGTERM before the switch"


SHOWN_ONLY = "what it says of a database is shown, and recorded nowhere"


class OperatorError(Exception):
    """A failure that is explained to the operator: what happened, and as ``hint`` what to do or type next.

    Its ``id`` is stable: the name of the class in kebab-case without "Error". ``state`` says what state things are in,
    where that is not what the exit code says. ``log`` is what a container printed: shown, and written down nowhere.

    :param recorded: the message for the log on the disk, where the other one may quote what a database holds.
    """

    exit_code: ExitCode = ExitCode.REFUSED
    id: ClassVar[str] = "operator"
    quotes_database: ClassVar[bool] = False  # its message may name tables, or count rows

    def __init__(
        self, message: str, *, hint: str = "", state: str = "", log: str = "", recorded: str | None = None
    ) -> None:
        super().__init__(printable(message))  # names of files and of processes are chosen by others
        self.hint = printable(hint)
        self.state = printable(state)
        self.log = log
        self._recorded = recorded

    @property
    def recorded(self) -> str:
        """The message for the log on the disk, which holds nothing of what a database does."""
        if self._recorded is not None:
            return printable(self._recorded)
        return f"{self.id} ({SHOWN_ONLY})" if self.quotes_database else str(self)

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


def writing_hint(error: OSError, folder: Path, otherwise: str) -> str:
    """Return the hint for what cannot be written in a folder: its own one for a filesystem that is read-only."""
    if error.errno != errno.EROFS:
        return otherwise
    place = mount_point(folder)
    return (
        f"{place} is mounted read-only. To make it writable, as root: mount -o remount,rw {quoted(place)}. Was it so "
        "before? A failing disk becomes read-only by itself: dmesg | tail"
    )


FOLDER = Path(__file__).parents[1]  # the tool's, with its scripts


def restore_command(*arguments: str, script: str = "restore_backup.py") -> str:
    """Return a command line for a script of this tool, to be copied into a shell as it is.

    One for a restore, or for what belongs to it, has the options of this run that are meant for that, too.
    """
    more = typed.carried(arguments) if script == "restore_backup.py" else []
    return typed.joined([_python(), shown(FOLDER / script), *arguments, *more])


def same_command(*more: str, backup: str = "", without: Collection[str] = (), root: bool = False) -> str:
    """Return the command line of this restore, with more options, to be typed again.

    :param backup: the backup file, instead of the one that was named.
    :param without: names of options that are left out.
    :param root: with sudo, which has another PATH, and closes the file descriptors that it is given.
    """
    had = typed.given(without={*without, *(typed.DESCRIPTORS if root else ())})
    if root and typed.given(["passphrase_fd"]):
        more = (*more, "--passphrase-command", "CMD")
    python = ["sudo", shown(Path(sys.executable))] if root else [_python()]
    named = [backup] if backup else typed.backup_file()
    return typed.joined([*python, shown(FOLDER / "restore_backup.py"), *named, *had, *more])


def inspecting_hint() -> str:
    """Return what this run would take to see all processes, with the command where that is another user's."""
    if os.geteuid() == 0:
        return (
            "It takes the capability CAP_SYS_PTRACE, which root lacks here, as in a container: run it outside of that."
        )
    return f"As root it can: {same_command(root=True)}"


def _python() -> str:
    """Return the Python that runs this, as it is typed."""
    found, own = shutil.which("python"), sys.executable
    # In the same folder, too: the Pythons of virtual environments are links to one file, but have other packages.
    same = found and all(os.path.realpath(of(found)) == os.path.realpath(of(own)) for of in (str, os.path.dirname))
    # By way of a relative folder it was found by PATH=.venv/bin:$PATH, which the shell had for one command only.
    on_path = found and same and os.path.isabs(found)
    return "python" if on_path else shown(Path(own))


def rescue_command(backup: Path) -> str:
    """Return the command that makes a database of the files that a safety backup holds as they were.

    An encrypted one is decrypted where the key is: the command is typed there.
    """
    if backup.suffix != ".gpg":
        return restore_command("rescue", shown(backup), script="database_backup.py")
    sent = f"cat {shlex.quote(str(backup.absolute()))}"
    return f"ssh HOST {shlex.quote(sent)} | gpg -d | {rescue_from_elsewhere()}"


def rescue_from_elsewhere() -> str:
    """Return the command that has this machine rescue what is piped into it on another one."""
    rescue = restore_command("rescue", "-", script="database_backup.py")
    return f"ssh HOST {shlex.quote(f'cd {shlex.quote(os.getcwd())} && {rescue}')}"


def choose_another_backup_hint() -> str:
    """Return the hint for a backup that cannot be used."""
    return f"Restore another backup; to see them: {restore_command('--list')}"


def explain(error: BaseException) -> str:
    """Return an error in words for people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{name_of(str(error.filename))}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def recorded(error: BaseException) -> str:
    """Return an error in words for the log on the disk; the words of an engine may quote the schema of a database."""
    if isinstance(error, OperatorError):
        return error.recorded
    return explain(error) if isinstance(error, OSError) and error.strerror else type(error).__name__


def recorded_traceback(error: BaseException) -> str:
    """Return where an error came from, without its words and without those of the errors before it."""
    return "".join([*traceback.format_tb(error.__traceback__), recorded(error)])


class UsageError(OperatorError):
    """The command line cannot be understood."""

    exit_code = ExitCode.USAGE


class DeclinedError(OperatorError):
    """The operator said no."""

    exit_code = ExitCode.DECLINED


class RefusedError(OperatorError):
    """Something needed is missing or in the way."""


class DiskFailureError(RefusedError):
    """The disk fails, or does not let us, at a place that has no words of its own for it."""

    def __init__(self, error: OSError) -> None:
        hint = writing_hint(error, Path(error.filename or "."), CHECK_DISK)
        if isinstance(error, PermissionError):
            hint = f"It needs other permissions: ls -ld {quoted(error.filename or '.')}; or run this as root."
        super().__init__(explain(error), hint=hint)


class MissingPackageError(RefusedError):
    """This Python lacks a package."""

    def __init__(self, name: str | None) -> None:
        package = {"dotenv": "python-dotenv", "gnupg": "python-gnupg", "sqlcipher3": "sqlcipher3-binary"}
        super().__init__(
            f"missing Python package {package.get(name or '', name)} in {sys.executable}", hint=_packages_hint()
        )


def _packages_hint() -> str:
    """Return the commands with which the packages are there: system Pythons, such as Debian's, refuse `pip install`."""
    venv = FOLDER / ".venv"
    python = venv / "bin/python"
    again = typed.joined([shown(python), *typed.without_secrets(sys.argv)])
    if os.path.exists(python) and Path(sys.prefix).resolve() != venv.resolve():
        return f"Use the Python of the virtual environment: {again}"
    # A program of its own on Debian: `python3 -m venv` is there without it, and fails.
    first = "" if find_spec("ensurepip") else "apt-get install python3-venv, as root, and then "
    make = typed.joined(["python3", "-m", "venv", shown(venv)])
    install = typed.joined([shown(venv / "bin/pip"), "install", "-q", "-r", shown(FOLDER / "requirements.txt")])
    return f"Install it: {first}{make} && {install} && {again}"


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


class CheckFoundProblemsError(RefusedError):
    """--check has found what a restore would be refused for."""


class NoTerminalError(RefusedError):
    """Something has to be asked for, and there is no terminal."""


class NotABackupError(RefusedError):
    """What was named as the backup is something else."""


class NotEncryptedAsNamedError(RefusedError):
    """The backup is not encrypted, and its name says that it is."""


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
    """A command that this tool runs failed or did not end in time.

    ``output`` is its standard output until then, ``messages`` all of its standard error.
    """

    def __init__(self, message: str, *, hint: str = "", output: str = "", messages: str = "") -> None:
        super().__init__(message, hint=hint)
        self.output, self.messages = output, messages


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


class SignatureMissingError(DecryptionError):
    """The backup is not signed, and has to be."""


class SignatureOfAnotherError(DecryptionError):
    """The backup is signed by somebody who is not trusted, and has to be signed by who is."""


class SignatureInvalidError(DecryptionError):
    """The backup's signature is not of this file, has expired, or its key is revoked; and it has to be signed."""


class SignatureUncheckedError(DecryptionError):
    """It cannot be told who signed the backup, and it has to be signed."""


class UnsoundBackupError(OperatorError):
    """What the backup holds is not a sound database."""

    exit_code = ExitCode.UNSOUND_BACKUP
    quotes_database = True

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint or choose_another_backup_hint())


class DamagedGzipError(UnsoundBackupError):
    """The gzip layer is damaged."""

    quotes_database = False


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

    quotes_database = False


class ConvertRequiredError(UnsoundBackupError):
    """The backup is not in the configured format, and --convert was not given."""

    quotes_database = False


class CannotConvertError(UnsoundBackupError):
    """The backup is not in the configured format, and the conversion failed."""


class CheckTimeoutError(UnsoundBackupError):
    """The check of the database did not end in time; ``seconds``: what it had."""

    quotes_database = False

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the check of the database did not end within {seconds:.0f} s")


class CheckFailedError(UnsoundBackupError):
    """The process that checks the database took too much memory, or crashed."""

    quotes_database = False


class TooLargeError(UnsoundBackupError):
    """The backup unpacks to more than memory, or MAX_DATABASE_MB, allows; ``limit`` in bytes."""

    quotes_database = False

    def __init__(self, limit: float) -> None:
        super().__init__(
            f"the backup unpacks to more than {megabytes(limit)}, which is all that memory, or MAX_DATABASE_MB, allows",
            hint="Is it the right file? If it is, raise MAX_DATABASE_MB in .env, or restore on a machine with more "
            "memory.",
        )


class BackupFailedError(OperatorError):
    """A backup could not be made."""

    exit_code = ExitCode.NO_SAFETY_BACKUP


class CannotSignError(BackupFailedError):
    """There is no signing key that can be used."""


class DatabaseLockedError(BackupFailedError):
    """Somebody holds the database locked, so that no consistent copy of it can be made now."""


class UnreadableDatabaseError(BackupFailedError):
    """The database cannot be opened, so that no consistent copy of it can be made."""

    quotes_database = True


class DatabaseUnsoundError(UnreadableDatabaseError):
    """The copy of the database is not sound: a backup that holds it could not be restored."""


class NotEverywhereError(OperatorError):
    """What is safe here is not at every remote."""

    exit_code = ExitCode.NOT_EVERYWHERE


class RemoteError(OperatorError):
    """Something is wrong with a remote; ``place``: with which."""

    place = ""


class MissingRcloneError(RemoteError):
    """Remotes are configured, or one was named, and rclone is not installed."""


class RemoteUnknownError(RemoteError):
    """rclone has no remote of this name."""


class RemoteUnreachableError(RemoteError):
    """The server of a remote does not answer."""


class RemoteStalledError(RemoteUnreachableError):
    """The server of a remote answers no more."""


class RemoteDeniedError(RemoteError):
    """A remote does not let us do that."""


class RemoteLockedError(RemoteDeniedError):
    """A remote does not let us remove or replace what is there."""


class RemoteFullError(RemoteError):
    """A remote has no room left."""


class RemoteBrokenError(RemoteError):
    """What a remote sends ended too early, or is longer than what it said."""


class RemoteConflictError(RemoteError):
    """A remote has another backup of the same name."""


class RemoteFailedError(RemoteError):
    """rclone failed for a reason that this tool does not know; rclone's own words say why."""


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
