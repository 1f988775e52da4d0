"""How a line looks on a terminal: colour and weight by its kind, and breaks between words."""

import os
import re
from enum import Enum, auto

from backuplib.formatting import display_width


class Kind(Enum):
    """What a line is to its reader."""

    PLAIN = auto()
    FACT = auto()  # a first column that names it, and what it says
    STEP = auto()  # something done on the way
    DONE = auto()  # all that was asked for
    WARNING = auto()
    FAILURE = auto()
    LOSS = auto()
    TOTAL_LOSS = auto()
    QUESTION = auto()
    ASIDE = auto()  # headings, logs, tips: not what one looks for first


# Codes of SGR: weight, and the standard colours, which every theme shows legibly.
_CODES = {
    Kind.FACT: "2",
    Kind.STEP: "32",
    Kind.DONE: "1;32",
    Kind.WARNING: "33",
    Kind.FAILURE: "31",
    Kind.LOSS: "31",
    Kind.TOTAL_LOSS: "1;31",
    Kind.QUESTION: "1",
    Kind.ASIDE: "2",
}
# What of a line is styled, where that is not all of it: its mark, or the column that names it.
_PARTS = {Kind.STEP: re.compile(r"\S+"), Kind.FACT: re.compile(r" *\S+(?: \S+)*(?=  )")}
_MARKS = {"✅": Kind.STEP, "⚠": Kind.WARNING, "❌": Kind.FAILURE, "💡": Kind.ASIDE}
_LABEL = re.compile(r"[^✅⚠❌💡\[]*?\.\.\. +")  # of a step; "[" begins a mark in words


def kind_of(text: str) -> Kind:
    """Return the kind of a line by the mark at its beginning, or behind the label of a step."""
    return _MARKS.get(text[_end(_LABEL, text) :][:1], Kind.PLAIN)


def _end(pattern: re.Pattern[str], text: str, begin: int = 0) -> int:
    """Return where a pattern ends that matches there, else where it would begin."""
    found = pattern.match(text, begin)
    return found.end() if found else begin


def is_dumb_terminal() -> bool:
    """Whether nothing is known of what the terminal can do, or that it can do nothing."""
    return os.environ.get("TERM", "") in {"", "dumb", "unknown"}


def styled(text: str, kind: Kind) -> str:
    """Return a text for a terminal in the style of its kind; as it is where NO_COLOR or TERM asks for that.

    What others have written in it must have been made harmless before.
    """
    bare = text.lstrip(" ")
    if not bare or kind not in _CODES or os.environ.get("NO_COLOR") or is_dumb_terminal():
        return text
    return f"{text[: -len(bare)]}\x1b[{_CODES[kind]}m{bare}\x1b[0m"


def drawn(text: str, kind: Kind, columns: int) -> str:
    """Return a text for a terminal of so many columns: wrapped, and styled but for the label of a step."""
    first, *others = [part for line in text.split("\n") for part in wrapped(line, columns)]
    begin = _end(_LABEL, first)
    end = _end(_PARTS[kind], first, begin) if kind in _PARTS else len(first)
    first = first[:begin] + styled(first[begin:end], kind) + first[end:]
    return "\n".join([first, *(line if kind in _PARTS else styled(line, kind) for line in others)])


# --- wrapping --------------------------------------------------------------------------------------------------------

# Programs that commands in our texts begin with, so that these can be copied whole.
_PROGRAMS = (
    r"\S*python[\d.]*|'[^']*python[\d.]*'|pip|gpg|docker|docker-compose|sudo|systemctl|journalctl|dmesg|tail|cat|df|ls|"
    "lsattr|mkdir|rm|mv|chmod|chown|mount|swapoff|kill|fuser|sha256sum|gunzip|rclone"
)
# After a colon, or a column of its own; to the end of the sentence.
_COMMAND = re.compile(rf"(?<=[: ] )((?:{_PROGRAMS}) .*?)(?: *$|\. (?=[A-Z])|\.$|,? (?=\(|and |or ))")
# What stays left of all lines: a label or a first column, and a picture.
_HEAD = re.compile(rf" *(?:{_LABEL.pattern}|\S.*? {{2,}})?(?:[^\w\s!-~]\ufe0f? +)?")


def wrapped(text: str, columns: int) -> list[str]:
    """Return the lines of a line that may be too long: no word is broken, and a command has a line of its own.

    A word that is longer than a line stays whole. A command that is longer goes on behind a backslash.
    """
    columns -= text.count("\N{VARIATION SELECTOR-16}")  # some terminals take a column more for it
    if display_width(text) <= columns:
        return [text]
    head = text[: _end(_HEAD, text)]
    if display_width(head) > columns // 2:
        head = " " * (len(text) - len(text.lstrip(" ")))
    hang = head if head.endswith("│ ") else " " * (display_width(head) or 3)
    lines = [head]
    for number, part in enumerate(_COMMAND.split(text)):
        command, room = number % 2 == 1, 0
        for word in [part] if command else re.findall(r" *\S+", part if number else part.removeprefix(head)):
            if (lines == [head] and not command) or display_width(lines[-1] + word) <= room:
                lines[-1] += word
            else:
                bare = word.lstrip(" ")
                if display_width(hang + bare) <= columns:
                    lines.append(hang + bare)
                elif command and display_width(bare) > columns:
                    lines += _continued(hang, bare, columns)
                else:
                    lines.append(bare)
            room = columns
    *others, last = [line.rstrip(" ") for line in lines]
    return [*others, last + text[len(text.rstrip(" ")) :]]  # behind a question, its blank stays


_SHELL_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""")


def _continued(hang: str, command: str, columns: int) -> list[str]:
    """Return a command as lines that a shell takes for one; whole where its words cannot be told."""
    first, *words = _SHELL_WORD.findall(command)
    if " ".join([first, *words]) != command:
        return [command]
    lines = [hang + first]
    for word in words:
        if display_width(f"{lines[-1]} {word} \\") <= columns:
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(f"{hang}  {word}")
    return lines
