"""The operator's terminal."""

import contextlib
import errno
import os
import re
import select
import signal
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from backuplib import quiet
from backuplib.armor import holds_private_key
from backuplib.console import for_terminal, harmless, in_words, shown_encoding
from backuplib.errors import DeclinedError
from backuplib.processes import Interrupted, Signals
from backuplib.secret import Secret
from backuplib.style import Kind, kind_of

PAGE = 15  # lines of a menu shown at a time; a terminal has 24
QUIET_SECONDS = 0.3  # a paste has ended when so long nothing has come
ENDLESS_SECONDS = 30  # and what comes for so long is no paste
LINES_AFTER_A_KEY = 20  # at most, are taken off again
EMPTY_LINE_QUIETS, OPEN_BLOCK_QUIETS = 3, 30  # how often it has to be quiet until an empty line is the end


class Terminal:
    """The operator's terminal, if ``present``; opened as /dev/tty, so that standard input may be a pipe."""

    def __init__(self) -> None:
        self._encoding = shown_encoding("utf-8")
        self._modes: list[list[Any]] = []  # of the terminal: the shell's, and what it was changed to
        self._question = ""
        self._suspensions, self._given_back = 0, False
        self.present = False
        with contextlib.suppress(OSError):
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
            self.present = True

    @contextlib.contextmanager
    def held(self, signals: Signals) -> Iterator[None]:
        """Keep echo off, but for questions; at the end discard all that nobody asked for, before the shell gets it.

        A part of a pasted key would be shown there, run as a command, and kept in the history. So it is when the shell
        gets the terminal because of Ctrl-Z; after `fg` echo is off again, and what was being asked is asked again.
        """
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC) if self.present else -1
        try:
            if _in_foreground(descriptor):
                shells = quiet.shells or termios.tcgetattr(descriptor)
                self._modes = [shells, _changed(shells, off=termios.ECHO)]
                _set_mode(descriptor, self._modes[-1], flush=False)
                signals.before_suspension = lambda: self._give_back(descriptor)
                signals.after_suspension = lambda: self._take_again(descriptor)
            yield
        finally:
            signals.ignore()  # one more Ctrl-C would leave the rest of a paste to the shell
            self._give_back(descriptor)
            self._modes = []
            if self.present:
                os.close(descriptor)

    def _give_back(self, descriptor: int) -> None:
        """Discard what was typed, and make the terminal what it was for the shell."""
        with contextlib.suppress(OSError, termios.error):  # the terminal is gone
            if self._modes and _in_foreground(descriptor):
                _set_mode(descriptor, _changed(self._modes[0], off=termios.ICANON | termios.ECHO))
                _discard(descriptor)
                _set_mode(descriptor, self._modes[0])
                self._given_back = True

    def _take_again(self, descriptor: int) -> None:
        """Make the terminal again what it was when the run was suspended, unless it is that already."""
        with contextlib.suppress(OSError, termios.error):
            if self._modes and _in_foreground(descriptor):
                ours, flags = self._modes[-1], termios.ECHO | termios.ICANON
                if self._given_back or (termios.tcgetattr(descriptor)[3] ^ ours[3]) & flags:
                    _set_mode(descriptor, ours)
                    self._given_back = False
                    self._suspensions += 1
                    os.write(descriptor, in_words(self._question, self._encoding).encode())

    def say(self, text: str, kind: Kind | None = None) -> None:
        """Show lines; ``kind``: how they look; None: as the mark at the beginning of each tells."""
        with self._opened() as (descriptor, write):
            for line in harmless(text).splitlines():  # what others take for a line end is none here
                write(f"{for_terminal(line, kind or kind_of(line), descriptor, self._encoding)}\n")

    def confirm(self, question: str) -> bool:
        """Ask a yes/no question; the default is no."""
        return self.ask(f"{question} [y/N] ").strip().lower() in ("y", "yes")

    def ask(self, question: str) -> str:
        """Ask for a line; input typed before the question is discarded."""
        return self._line(question, on=termios.ECHO).decode(errors="replace").strip("\n")

    def choose(self, title: str, choices: Sequence[str], heading: str = "") -> int | None:
        """Show a menu, a page at a time, and return the index of the choice; None when the operator quits."""
        width = len(str(len(choices)))
        lines = [f"{number:>{width}} {text}" for number, text in enumerate(choices, 1)]
        self.say(title, Kind.QUESTION)
        self.say(f"{'':{width}} {heading}" if heading else "", Kind.ASIDE)
        self.say("\n".join(lines[:PAGE]))
        visible = PAGE
        while True:
            more = visible < len(lines)
            answer = self.ask(f"Number, {'m for older ones, ' if more else ''}or q to leave: ").strip().lower()
            if answer in ("q", ""):
                return None
            if answer == "m" and more:
                self.say("\n".join(lines[visible : visible + PAGE]))
                visible += PAGE
            if answer.isdecimal() and 1 <= int(answer) <= len(choices):
                return int(answer) - 1

    def secret(self, question: str) -> Secret:
        """Ask for a passphrase, without echo.

        :raises DeclinedError: at the second Ctrl-D; the first may have been meant to end the key.
        """
        for _ in range(2):
            if line := self._line(question, off=termios.ECHO):
                return Secret(line.removesuffix(b"\n"))
        raise DeclinedError("no passphrase was given")

    def _line(self, question: str, *, on: int = 0, off: int = 0) -> bytes:
        """Ask for a line in a mode of the terminal; without a line end it was ended by Ctrl-D."""
        with self._opened() as (reader, write), self._asking(reader, question, on=on | termios.ICANON, off=off):
            line, suspensions = b"", self._suspensions
            while not line.endswith(b"\n") and (byte := os.read(reader, 1)):
                if suspensions != self._suspensions:
                    line, suspensions = b"", self._suspensions
                line += byte
            if off:
                write("\n")
        return line

    def private_key(self) -> Secret:
        """Ask for the private key, without echo: pasted in any form, in pieces; Ctrl-D or an empty line ends it, too.

        What is pasted after it is discarded.
        """
        # In canonical mode a terminal truncates lines at 4095 characters; an RSA-4096 key is longer.
        question = "🔑 Paste the private key in base64 (hidden), then Enter: "
        with self._opened() as (reader, write), self._asking(reader, question, off=termios.ICANON | termios.ECHO):
            pasted = self._read_paste(reader)
            _discard(reader)
            write("\n")
        return Secret(pasted)

    def _read_paste(self, reader: int) -> bytes:
        """Read up to the end of the key, Ctrl-D, or an empty line."""
        pasted, quiets, suspensions = b"", 0, self._suspensions
        while True:
            if select.select([reader], [], [], QUIET_SECONDS)[0]:
                piece, quiets = os.read(reader, 4096), 0
                if suspensions != self._suspensions:
                    pasted, suspensions = b"", self._suspensions
                pasted += piece
                if not piece or b"\4" in piece:
                    return _unframed(pasted.partition(b"\4")[0])
            else:
                quiets += 1
                key = _whole_key(_unframed(pasted)) if quiets == 1 else None
                if key or _ends_with_empty_line(_unframed(pasted), quiets):
                    return key or _unframed(pasted)

    @contextlib.contextmanager
    def _asking(self, descriptor: int, question: str, *, on: int = 0, off: int = 0) -> Iterator[None]:
        """Ask in a mode of the terminal; what was typed before or is left afterwards is discarded."""
        before = termios.tcgetattr(descriptor)
        try:
            self._modes.append(_changed(before, on=on, off=off))
            _set_mode(descriptor, self._modes[-1])
            self._question = for_terminal(question, Kind.QUESTION, descriptor, self._encoding)
            os.write(descriptor, in_words(self._question, self._encoding).encode())
            yield
        finally:
            self._question = ""
            self._modes.pop()
            _set_mode(descriptor, before)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[int, Callable[[str], object]]]:
        with hangup_when_lost():
            # os.open: in text mode, open() seeks, which fails on a terminal
            descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                yield descriptor, lambda text: os.write(descriptor, in_words(text, self._encoding).encode())
                termios.tcgetattr(descriptor)  # fails when the terminal is gone: the input may be incomplete
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def hangup_when_lost() -> Iterator[None]:
    """End the run like SIGHUP when the terminal is gone: the signal may come later, or only to a parent."""
    try:
        yield
    except (OSError, termios.error) as error:
        if error.args[0] not in (errno.EIO, errno.ENXIO):
            raise
        raise Interrupted(signal.SIGHUP) from None


def _in_foreground(descriptor: int) -> bool:
    """Whether this terminal is ours to be set: in the background that would stop the process."""
    return descriptor >= 0 and os.tcgetpgrp(descriptor) == os.getpgrp()


def _changed(mode: list[Any], *, on: int = 0, off: int = 0) -> list[Any]:
    return [*mode[:3], (mode[3] | on) & ~off, *mode[4:]]


def _set_mode(descriptor: int, mode: list[Any], *, flush: bool = True) -> None:
    """Set the mode of a terminal; ``flush``: discard what was typed before."""
    while True:
        try:
            return termios.tcsetattr(descriptor, termios.TCSAFLUSH if flush else termios.TCSANOW, mode)
        except termios.error as error:  # in the background it stops the process, and `fg` interrupts it
            if error.args[0] != errno.EINTR:
                raise


def _discard(reader: int) -> None:
    """Discard what comes until it is quiet."""
    deadline = time.monotonic() + ENDLESS_SECONDS
    while time.monotonic() < deadline and select.select([reader], [], [], QUIET_SECONDS)[0]:
        if not os.read(reader, 4096):
            return


def _unframed(pasted: bytes) -> bytes:
    """Remove what a terminal in bracketed paste mode puts around a paste; line ends are newlines then."""
    return re.sub(rb"\x1b\[20[01]~", b"", pasted).replace(b"\r", b"\n")


def _whole_key(pasted: bytes) -> bytes | None:
    """Return the lines that are a whole private key, without what was pasted after it; None when it is not whole."""
    ends = [line.end() for line in re.finditer(rb"\n|(?<=-----)$", pasted)]
    return next((pasted[:end] for end in reversed(ends[-LINES_AFTER_A_KEY:]) if holds_private_key(pasted[:end])), None)


def _ends_with_empty_line(pasted: bytes, quiets: int) -> bool:
    """Whether the operator has ended what is no key; the empty line in an armor, before a pause, is not meant so."""
    in_block = pasted.rfind(b"--BEGIN ") > pasted.rfind(b"--END ")
    return quiets == (OPEN_BLOCK_QUIETS if in_block else EMPTY_LINE_QUIETS) and bool(
        re.search(rb"(^|\n)[ \t]*\n\Z", pasted)
    )
