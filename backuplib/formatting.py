"""Sizes, times, names and tables as people read them."""

import contextlib
import itertools
import shlex
import time
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path


def printable(text: str) -> str:
    """Return a name from a backup, or a text with some, as what can neither steer a terminal nor begin a line."""
    return "".join(char if char.isprintable() else "?" for char in text)


def shown(path: Path) -> str:
    """Return a path for people: relative to the current folder when it lies below it, and harmless to a terminal."""
    with contextlib.suppress(ValueError, OSError):
        return printable(str(path.absolute().relative_to(Path.cwd())))
    return printable(str(path))


def quoted(path: Path | str) -> str:
    """Return a path as it is typed in a shell."""
    return shlex.quote(str(path))


def quoted_identifier(name: str) -> str:
    """Return the name of a table or column quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def megabytes(size: float) -> str:
    """Return a size for people, in kB, MB or GB (powers of ten)."""
    unit, factor = next(((unit, factor) for unit, factor in (("GB", 1e9), ("MB", 1e6)) if size >= factor), ("kB", 1e3))
    return f"{size / factor:.0f} {unit}" if size >= 100 * factor else f"{size / factor:.1f} {unit}"


def instant(moment: datetime) -> str:
    """Return a moment for people: date, time and zone of this machine."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %Z}"


IN_THE_FUTURE = "in the future: clock?"
CLOCKS_DIFFER = 5  # seconds at most, of what was made just now: those of two machines, or of a disk in a network


def age(timestamp: float) -> str:
    """Return how long ago something was, for people; what lies in the future is no age."""
    seconds = time.time() - timestamp
    if seconds < -CLOCKS_DIFFER:
        return IN_THE_FUTURE
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            number = int(seconds // size)
            return f"{plural(number, unit)} ago"
    return "just now"


def plural(number: float, noun: str) -> str:
    """Return a number of things in words."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{round(number, 1) if number % 1 else int(number):,} {noun}{ending}"


def display_width(text: str) -> int:
    """Return the columns that a text takes on a terminal.

    A wide character takes two; one that is drawn over another, or chooses how that is drawn, takes none.
    """
    if text.isascii():
        return len(text)
    drawn = [char for char in text if unicodedata.category(char) not in {"Mn", "Me", "Cf"}]
    return len(drawn) + sum(unicodedata.east_asian_width(char) in {"W", "F"} for char in drawn)


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return a text filled up with blanks to so many columns; ``right``: on its left."""
    blanks = " " * (width - display_width(text))
    return blanks + text if right else text + blanks


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = (), gap: str = "  ") -> list[str]:
    """Return rows as lines with aligned columns; those in ``right`` to the right."""
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            padded(cell, width, right=index in right)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def shortened(name: str, width: int) -> str:
    """Return a name from a database cut to so many columns, and harmless to a terminal."""
    name = printable(name)
    if display_width(name) <= width:
        return name
    ends = itertools.accumulate(map(display_width, name))
    return f"{name[: sum(1 for _ in itertools.takewhile(lambda end: end < width, ends))]}…"


def some_of(names: Sequence[str], width: int) -> str:
    """Return as many of the names as fit, and how many more there are."""
    names = [shortened(name, width) for name in names]
    ends = itertools.accumulate(display_width(name) + 2 for name in names)  # each with the comma behind it
    number = max(1, sum(1 for _ in itertools.takewhile(lambda end: end - 2 <= width, ends)))
    more = len(names) - number
    return ", ".join(names[:number]) + (f" and {more:,} more" if more else "")


def row_count(rows: int | None) -> str:
    """Return a number of rows; None: they cannot be counted."""
    return "?" if rows is None else f"{rows:,}"
