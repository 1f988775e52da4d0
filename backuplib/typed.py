"""The options with which this run was called, for the commands that are printed to be typed next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from backuplib.formatting import shown

HIDDEN = "…"  # in place of a command that may hold a secret

# What another restore takes, too: the same database and services, the same leave.
CARRIED = ("target_path", "no_restart", "compose_file", "service", "allow_swap", "convert")
OF_RECOVERY = CARRIED[:4]

DESCRIPTORS = ("passphrase_fd", "backup_db_pass_fd")

INSTEAD = {"--list", "--drill", "--help", "--version"}  # what takes no other option

_options: object = None


def remember(options: object) -> None:
    """Note the options of this run: an object that has each under its name; what is changed in it later counts."""
    global _options  # noqa: PLW0603 - there is one command line in a process
    _options = options


def given(names: Iterable[str] | None = None, without: Collection[str] = ()) -> list[str]:
    """Return the options that were given, as they are typed: some of them, or all."""
    found = vars(_options) if _options else {}
    return [word for name in names or found if name not in without for word in _words(name, found.get(name))]


def _words(name: str, value: object) -> list[str]:
    """Return an option as it is typed; none for an argument, and for what was not given."""
    option = f"--{name.rstrip('_').replace('_', '-')}"  # from_ is --from
    if name == "backup_file" or value is None or value is False:
        return []
    if value is True:
        return [option]
    values = value if isinstance(value, list) else [HIDDEN if name == "passphrase_command" else value]
    return [word for item in values for word in (option, shown(item) if isinstance(item, Path) else str(item))]


def backup_file() -> list[str]:
    """Return the backup file that was named, if there was one."""
    path = getattr(_options, "backup_file", None)
    return [shown(path)] if path else []


def carried(arguments: Sequence[str]) -> list[str]:
    """Return the options of this run that belong to another one with these arguments, less what they name already."""
    if INSTEAD & {*arguments}:
        return []
    names = OF_RECOVERY if "--recover" in arguments else CARRIED
    return given(name for name in names if f"--{name.replace('_', '-')}" not in arguments)


def joined(words: Iterable[str]) -> str:
    """Return words as they are typed in a shell."""
    return " ".join(word if word == HIDDEN else shlex.quote(word) for word in words)


def without_secrets(argv: Sequence[str]) -> list[str]:
    """Return a command line without the commands in it."""
    shown_words = [re.sub(r"^(--passphrase-command)=.*", rf"\1={HIDDEN}", word, flags=re.DOTALL) for word in argv]
    return [
        HIDDEN if before == "--passphrase-command" else word
        for before, word in zip(["", *shown_words], shown_words, strict=False)
    ]
