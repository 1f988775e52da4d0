"""Where the private key and the passphrases come from."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass

from backuplib.errors import CommandFailedError, NoPassphraseError, NoTerminalError, WrongPassphraseError, explain
from backuplib.openpgp import ImportedKey, Keyring, decode_private_key
from backuplib.processes import run_command
from backuplib.secret import Secret
from backuplib.terminal import Terminal

PASSPHRASE_TRIES = 3


@dataclass(frozen=True)
class Access:
    """A private key in its keyring, and the callback that supplies its passphrase to an attempt to decrypt."""

    keyring: Keyring
    key: ImportedKey
    unlock: Callable[[Callable[[Secret | None], None]], None]


class Credentials:
    """Where the private key and the passphrases come from.

    :param key_stdin: the key is on standard input.
    :param passphrase: the key's, when it came through a descriptor.
    :param passphrase_command: command whose first line of output is the key's passphrase.
    :param db_pass: the passphrase that the database in the backup was made under, when it came through a descriptor.
    :param ask_db_pass: ask for that passphrase.
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
    ) -> None:
        self._terminal = terminal
        self._key_stdin = key_stdin
        self._passphrase = passphrase
        self._passphrase_command = passphrase_command
        self._db_pass = db_pass
        self._ask_db_pass = ask_db_pass

    def private_key(self) -> Secret:
        """Read the private key.

        :raises NoTerminalError: when there is no way to ask for it.
        """
        if self._key_stdin:
            return decode_private_key(Secret(sys.stdin.buffer.read()))
        if not self._terminal.present:
            raise NoTerminalError(
                "there is no terminal to paste the private key into",
                hint="Pipe it in with --key-stdin, or connect with a terminal: ssh -t",
            )
        return decode_private_key(self._terminal.private_key())

    def unlock(self, key: ImportedKey, attempt: Callable[[Secret | None], None]) -> None:
        """Call ``attempt`` with the passphrase; on a terminal, ask again when it was wrong."""
        if not key.protected:
            attempt(None)
            return
        given = self._given_passphrase()
        if given is not None or not self._terminal.present:
            if given is None:
                raise NoTerminalError(
                    "the private key has a passphrase, and there is no terminal to ask for it",
                    hint="Use --passphrase-fd N or --passphrase-command CMD, or connect with a terminal: ssh -t",
                )
            attempt(given)
            return
        for left in reversed(range(PASSPHRASE_TRIES)):
            try:
                attempt(self._terminal.passphrase())
            except WrongPassphraseError as error:
                if not left:
                    raise
                self._terminal.say(f"❌ {error}; {left} more {'tries' if left > 1 else 'try'}")
            else:
                return

    def backup_db_pass(self) -> Secret | None:
        """Return the passphrase that the database in the backup was made under; None when no option says it differs.

        :raises NoTerminalError: when there is no way to ask for it.
        """
        if self._db_pass or not self._ask_db_pass:
            return self._db_pass
        if not self._terminal.present:
            raise NoTerminalError(
                "there is no terminal to ask for the passphrase of --backup-db-pass",
                hint="Use --backup-db-pass-fd N, or connect with a terminal: ssh -t",
            )
        return self._terminal.backup_db_pass()

    def _given_passphrase(self) -> Secret | None:
        if self._passphrase_command is not None:
            return _first_line(_command_output(self._passphrase_command).encode())
        return self._passphrase


def read_descriptor(number: int | None, option: str) -> Secret | None:
    """Return the first line of a file descriptor; None when no option gave one.

    To be called first of all: the next file that is opened could get the number of one that is closed.

    :raises NoPassphraseError: when it cannot be read, naming the option.
    """
    if number is None:
        return None
    try:
        os.fstat(number)  # a number that no descriptor can have makes fdopen() raise what is no OSError
        # A standard stream stays open: it may be a terminal, and what is opened next would get its number.
        with os.fdopen(number, "rb", closefd=number > 2) as file:
            return _first_line(file.read())
    except (OSError, OverflowError) as error:
        raise NoPassphraseError(
            f"cannot read the file descriptor of {option} {number}: {explain(error)}",
            hint=f"Give it in the shell: {option} 3 3< <(command that prints the passphrase)",
        ) from None


def _command_output(command: str) -> str:
    hint = "Give a program with arguments, as a shell would split them: --passphrase-command 'cat /run/secrets/x'"
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise NoPassphraseError(f"--passphrase-command cannot be understood: {error}", hint=hint) from None
    if not argv:
        raise NoPassphraseError("--passphrase-command is empty", hint=hint)
    try:
        return run_command(argv, timeout=120)
    except CommandFailedError:  # its words would show the arguments, which may be secret
        raise NoPassphraseError(f"--passphrase-command failed: {argv[0]}", hint=f"Try it by hand. {hint}") from None


def _first_line(data: bytes) -> Secret:
    return Secret(data.partition(b"\n")[0].removesuffix(b"\r"))
