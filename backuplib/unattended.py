"""A run without a terminal: all that it would have to ask for is named at once, with the command that has it all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backuplib.errors import NoTerminalError, restore_command, same_command


class Asked(Protocol):
    """The options that answer a question."""

    backup_file: Path | None
    key_stdin: bool
    passphrase_fd: int | None
    passphrase_command: str | None
    force: bool
    backup_db_pass: bool
    allow_swap: bool


@dataclass(frozen=True)
class Questions:
    """What a run asks, as far as it can be known before it begins.

    :param encrypted: whether the backup takes a key.
    :param replaced: the database that is replaced, if there is a question about it.
    :param compose_file: what is the matter with the compose file, if anything.
    :param swap: whether decrypted data could be swapped out to a disk.
    :param unseen: what cannot be told without root, if anything.
    """

    encrypted: bool
    replaced: Path | None = None
    compose_file: str = ""
    swap: bool = False
    unseen: str = ""


@dataclass(frozen=True)
class Missing:
    """An answer that no option gives, and the words that would."""

    what: str
    words: tuple[str, ...] = ()


def refuse_unanswered(asked: Questions, options: Asked) -> None:
    """Refuse a run that has to ask, and cannot.

    :raises NoTerminalError: naming all that is missing, with the command line that has it.
    """
    missing = list(unanswered(asked, options))
    if not missing:
        return
    missing += beside(asked, options)
    command = same_command(
        *(word for item in missing for word in item.words),
        backup="" if options.backup_file else "BACKUP",
        without=["backup_db_pass"],
        root=bool(asked.unseen) and not options.force and os.geteuid() != 0,
    )
    hint = ""
    if not options.backup_file:
        hint += f"BACKUP is one of those that `{restore_command('--list')}` shows. "
    if asked.encrypted and options.passphrase_command is None and options.passphrase_fd is None:
        missing.append(Missing("the passphrase, if the key has one (--passphrase-command or --passphrase-fd)"))
        command += " --passphrase-command 'CMD'"
        hint += "CMD prints the passphrase, or: --passphrase-fd 3 3< <(CMD). "
    # never beside --key-stdin: a terminal on a pipe would show the key
    hint += "Type" if options.key_stdin else "Connect with a terminal (ssh -t), which asks for all of it, or type"
    hint += f" one command that has all of it: {command}"
    raise NoTerminalError(
        f"there is no terminal to ask on, and the command line lacks {'; '.join(item.what for item in missing)}",
        hint=hint,
    )


def unanswered(asked: Questions, options: Asked) -> Iterator[Missing]:
    """Return what keeps a run without a terminal from beginning."""
    if options.backup_file is None:
        yield Missing("the backup file")
    if asked.encrypted and not options.key_stdin:
        yield Missing("the private key, on standard input (--key-stdin)", ("--key-stdin",))
    if asked.replaced and not options.force:
        yield Missing(f"the confirmation that {asked.replaced} is replaced (--force)", ("--force",))
    if options.backup_db_pass:
        yield Missing("what --backup-db-pass asks for (--backup-db-pass-fd N)", ("--backup-db-pass-fd", "N"))


def beside(asked: Questions, options: Asked) -> Iterator[Missing]:
    """Return what has a refusal of its own where it is missing alone, so that it is not the next one."""
    if asked.unseen and not options.force:
        yield Missing(
            f"the rights to look at all processes ({'sudo' if os.geteuid() else 'CAP_SYS_PTRACE'}): {asked.unseen}"
        )
    if asked.compose_file:
        yield Missing(
            f"the compose file, as {asked.compose_file} (--compose-file FILE, or --no-restart to stop nothing)",
            ("--compose-file", "FILE"),
        )
    if asked.swap and not options.allow_swap:
        yield Missing(
            "leave to go on with swap on, to which decrypted data could be written (--allow-swap)", ("--allow-swap",)
        )
