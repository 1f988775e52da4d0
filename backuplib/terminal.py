"""The operator's terminal."""

import contextlib
import errno
import os
import signal
import termios
from collections.abc import Callable, Iterator, Sequence

from backuplib.console import in_words, shown_encoding
from backuplib.errors import DeclinedError
from backuplib.processes import Interrupted
from backuplib.secret import Secret

PAGE = 15  # lines of a menu shown at a time; a terminal has 24


class Terminal:
    """The operator's terminal, if ``present``; opened as /dev/tty, so that standard input may be a pipe."""

    def __init__(self) -> None:
        self._encoding = shown_encoding("utf-8")
        self.present = False
        with contextlib.suppress(OSError):
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
            self.present = True

    def say(self, text: str) -> None:
        with self._opened() as (_, write):
            write(f"{text}\n")

    def confirm(self, question: str) -> bool:
        """Ask a yes/no question; the default is no."""
        return self.ask(f"{question} [y/N] ").strip().lower() in ("y", "yes")

    def ask(self, question: str) -> str:
        """Ask for a line; input typed before the question is discarded."""
        with self._opened() as (reader, write):
            termios.tcflush(reader, termios.TCIFLUSH)
            write(question)
            line = b""
            while not line.endswith(b"\n") and (byte := os.read(reader, 1)):
                line += byte
        return line.decode(errors="replace").strip("\n")

    def choose(self, title: str, choices: Sequence[str], heading: str = "") -> int | None:
        """Show a menu, a page at a time, and return the index of the choice; None when the operator quits."""
        width = len(str(len(choices)))
        lines = [f"{number:>{width}} {text}" for number, text in enumerate(choices, 1)]
        self.say("\n".join([title, *([f"{'':{width}} {heading}"] if heading else []), *lines[:PAGE]]))
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
        import getpass

        for _ in range(2):
            with contextlib.suppress(EOFError), hangup_when_lost():
                return Secret(getpass.getpass(in_words(question, self._encoding)))
        raise DeclinedError("no passphrase was given")

    def private_key(self) -> Secret:
        """Ask for the private key, without echo: one line of any length, or several lines up to Ctrl-D."""
        with self._opened() as (reader, write):
            before = termios.tcgetattr(reader)
            raw = termios.tcgetattr(reader)
            # In canonical mode a terminal truncates lines at 4095 characters; an RSA-4096 key is longer.
            raw[3] &= ~(termios.ICANON | termios.ECHO)
            try:
                termios.tcsetattr(reader, termios.TCSAFLUSH, raw)
                write("🔑 Paste the private key in base64 (hidden), then Enter, or Ctrl-D if wrapped: ")
                pasted = self._read_paste(reader)
            finally:
                termios.tcsetattr(reader, termios.TCSAFLUSH, before)
                write("\n")
        return Secret(pasted)

    @staticmethod
    def _read_paste(reader: int) -> bytearray:
        """Read up to Ctrl-D or the end of the key."""
        pasted = bytearray()
        while b"\4" not in pasted and not _is_complete(pasted) and (piece := os.read(reader, 4096)):
            pasted += piece
        return pasted.partition(b"\4")[0]

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


def _is_complete(pasted: bytearray) -> bool:
    """Whether a key is complete without Ctrl-D: tools wrap base64 at 76 characters, so a longer line is all of it."""
    lines = pasted.replace(b"\r", b"\n").lstrip(b"\n").split(b"\n")
    if lines[0].startswith(b"-----BEGIN PGP"):
        return any(line.startswith(b"-----END PGP") for line in lines[:-1])
    return len(lines) > 1 and len(lines[0]) > 100
