"""Where the private key and the passphrases come from."""

import contextlib
import os
import select
import shlex
import sys
import unicodedata
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from backuplib.armor import plain_text
from backuplib.errors import (
    CommandFailedError,
    DecryptionError,
    NoPassphraseError,
    NoTerminalError,
    WrongKeyError,
    WrongPassphraseError,
    explain,
    same_command,
)
from backuplib.openpgp import ImportedKey, Keyring, decode_private_key
from backuplib.processes import command_output
from backuplib.running import DB_PASS, KEY, PASSPHRASE
from backuplib.secret import Secret
from backuplib.terminal import Terminal

PASSPHRASE_TRIES = 3
WAITING_SECONDS = 1.0  # after which it is said what is waited for


@dataclass(frozen=True)
class Access:
    """A private key in its keyring, and its passphrase, if it has one."""

    keyring: Keyring
    key: ImportedKey
    passphrase: Secret | None


class Credentials:
    """Supplies the private key, its passphrase, and ``db_pass``, the passphrase of the database in the backup.

    What is asked for takes a terminal: :mod:`backuplib.unattended` refuses a run without one before that. ``say`` is
    told what is waited for.
    """

    def __init__(
        self,
        terminal: Terminal,
        *,
        key_stdin: bool = False,
        passphrase: Secret | None = None,
        passphrase_command: str | None = None,
        db_pass: Secret | None = None,
        ask_db_pass: bool = False,
        say: Callable[[str], object] = print,
    ) -> None:
        self._terminal, self._key_stdin, self._say = terminal, key_stdin, say
        self._passphrase, self._passphrase_command = passphrase, passphrase_command
        self._db_pass, self._ask_db_pass = db_pass, ask_db_pass
        self.keep = False  # a passphrase that was typed, for another backup
        self.waiting: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()  # is told for what

    def private_key(self) -> Secret:
        """Read the private key."""
        if self._key_stdin:
            tell_waiting(sys.stdin.fileno(), "the private key on standard input", self._say)
            with self.waiting(KEY):
                return decode_private_key(Secret(sys.stdin.buffer.read()))
        with self.waiting(KEY):
            return decode_private_key(self._terminal.private_key())

    def forget(self) -> None:
        """Keep no passphrase any longer."""
        self.keep = False
        if self._passphrase:
            self._passphrase.wipe()
        self._passphrase = None

    def import_key(self, use: Callable[[Secret], ImportedKey]) -> ImportedKey:
        """Return what ``use`` makes of the private key; on a terminal, ask once more when it is another one."""
        try:
            return use(self.private_key())
        except WrongKeyError as error:
            if self._key_stdin:
                raise
            self._terminal.say(f"❌ {error}; 1 more try")
            return use(self.private_key())

    def unlock(self, key: ImportedKey, attempt: Callable[[Secret | None], None]) -> None:
        """Call ``attempt`` with the passphrase; on a terminal, ask again when it was wrong.

        :raises NoTerminalError: when there is no way to ask for it, which could not be known before.
        """
        if not key.protected:
            attempt(None)
        elif self._passphrase_command is not None:
            _try_spellings(_first_line(_command_output(self._passphrase_command)), attempt)
        elif self._passphrase is not None:
            _try_spellings(self._passphrase, attempt)
        elif not self._terminal.present:
            raise NoTerminalError(
                "the private key has a passphrase, and there is no terminal to ask for it",
                hint="Read it from a file descriptor (--passphrase-fd 3 3< <(CMD)), or let a command print it: "
                f"{same_command()} --passphrase-command 'CMD'",
            )
        else:
            self._ask_until_right(attempt)

    def _ask_until_right(self, attempt: Callable[[Secret | None], None]) -> None:
        for left in reversed(range(PASSPHRASE_TRIES)):
            with self.waiting(PASSPHRASE):
                typed = self._terminal.secret("🔑 Passphrase of the private key: ")
            try:
                _try_spellings(typed, attempt)
            except WrongPassphraseError as error:
                if not left:
                    raise
                self._terminal.say(f"❌ {error}; {left} more {'tries' if left > 1 else 'try'}")
            except DecryptionError:  # the message's fault: the passphrase may open another one
                self._passphrase = typed if self.keep else None
                raise
            else:
                self._passphrase = typed if self.keep else None
                return

    def backup_db_pass(self) -> Secret | None:
        """Return the passphrase of the database in the backup; None: no option says that it differs from DB_PASS."""
        if self._db_pass or not self._ask_db_pass:
            return self._db_pass
        with self.waiting(DB_PASS):
            return self._terminal.secret("🔑 DB_PASS of the time when the backup was made: ")


def tell_waiting(descriptor: int, what: str, say: Callable[[str], object]) -> None:
    """Say what is waited for when a file descriptor has nothing within a second, and is not at its end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(WAITING_SECONDS * 1000):
        say(f"⏳ Waiting for {what}")


def read_descriptor(number: int | None, option: str, say: Callable[[str], object] = print) -> Secret | None:
    """Return the first line of a file descriptor; None when the option was not given.

    Call it before any file is opened, which could get the number of a closed descriptor.

    :param say: is told what is waited for.
    :raises NoPassphraseError: when it cannot be read, naming the option.
    """
    if number is None:
        return None
    try:
        os.fstat(number)  # unlike fdopen, it refuses all that is not a descriptor with OSError or OverflowError
        if os.isatty(number):
            asking = ["--backup-db-pass"] if option == "--backup-db-pass-fd" else []
            command = same_command(*asking, without={option[2:].replace("-", "_")})
            raise NoPassphraseError(
                f"{option} {number} is a terminal, which would show the passphrase",
                hint=f"There it is asked for, and not shown: {command}",
            )
        tell_waiting(number, f"file descriptor {number} ({option})", say)
        # Standard streams stay open: the next file to be opened would get their number.
        with os.fdopen(number, "rb", closefd=number > 2) as file:
            return _first_line(file.read())
    except (OSError, OverflowError) as error:
        raise NoPassphraseError(
            f"cannot read the file descriptor of {option} {number}: {explain(error)}",
            hint=f"Give it in the shell: {option} 3 3< <(command that prints the passphrase)",
        ) from None


def _command_output(command: str) -> bytes:
    hint = "Give a program with arguments, quoted as for a shell: --passphrase-command 'cat /run/secrets/x'"
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise NoPassphraseError(f"cannot parse --passphrase-command: {error}", hint=hint) from None
    if not argv:
        raise NoPassphraseError("--passphrase-command is empty", hint=hint)
    try:
        return command_output(argv, timeout=120)
    except CommandFailedError:  # its message contains the arguments, which may be secret
        raise NoPassphraseError(f"--passphrase-command failed: {argv[0]}", hint=f"Try it manually. {hint}") from None


def _first_line(data: bytes) -> Secret:
    line = plain_text(data).partition("\n")[0].removesuffix("\r")
    return Secret(line.encode(errors="surrogateescape"))


def _try_spellings(passphrase: Secret, attempt: Callable[[Secret | None], None]) -> None:
    """Try a passphrase as it is, then with its accents composed and decomposed: keyboards and programs differ in that.

    :raises WrongPassphraseError: when none is right.
    """
    text = passphrase.reveal_bytes().decode(errors="surrogateescape")
    spellings = dict.fromkeys([text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)])
    *others, last = (Secret(spelling.encode(errors="surrogateescape")) for spelling in spellings)
    for other in others:
        with contextlib.suppress(WrongPassphraseError):
            attempt(other)
            return
    attempt(last)
