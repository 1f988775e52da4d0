"""The parser of a command line, which tells what was probably meant."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

from backuplib.errors import UsageError, restore_command
from backuplib.formatting import plural, printable, shortened


class CommandLine(argparse.ArgumentParser):
    """A parser that takes no abbreviation, and leaves the end to the caller, as all errors do."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)  # nothing here is done on a guess

    def error(self, message: str) -> NoReturn:
        """Show the usage; UsageError always."""
        self._refuse(message)

    def parse_known_args(  # type: ignore[override]  # what argparse's overloads say, in one
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse a command line, or what a subcommand gets of it; what is not known is refused here.

        :raises UsageError: naming it, and what is like it; not its value, which may be a secret.
        """
        words = sys.argv[1:] if args is None else args
        known = dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z-]+", self.format_help()))
        # argparse takes what has a blank in it for an argument
        self._refuse_options([word for word in words if re.match(r"--[\w-]+=.*\s", word)], known, known)
        result, unknown = super().parse_known_args(words, namespace)
        self._refuse_options([word for word in unknown if word.startswith("-")], known)
        if unknown:
            self._refuse(f"{plural(len(unknown), 'word')} too many, from {shortened(unknown[0], 60)} on")
        return result, []

    def _refuse_options(self, words: Sequence[str], known: Collection[str], right: Collection[str] = ()) -> None:
        for option in (word.partition("=")[0] for word in words):
            if option not in right:
                self._refuse(f"unknown option {printable(option)}", like(option, known))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a subcommand that there is not."""
        if isinstance(action.choices, Mapping) and value not in action.choices:
            self._refuse(
                f"unknown command {shortened(str(value), 60)}",
                like(str(value), action.choices),
                f"It is one of {', '.join(action.choices)}. ",
            )
        super()._check_value(action, value)

    def _refuse(self, message: str, meant: str = "", otherwise: str = "") -> NoReturn:
        self.print_usage(sys.stderr)
        script, *subcommand = self.prog.split()
        first = f"Did you mean {meant}? " if meant else otherwise
        raise UsageError(message, hint=f"{first}See: {restore_command(*subcommand, '--help', script=script)}")


def like(word: str, known: Collection[str]) -> str:
    """Return what a mistyped word was probably meant to be: the one that begins so, or looks like it; else empty."""
    plain = word.lower().replace("_", "-")
    begun = [name for name in known if plain.strip("-") and name.strip("-").startswith(plain.strip("-"))]
    found = begun if len(begun) == 1 else difflib.get_close_matches(plain, known, n=1)
    return found[0] if found else ""
