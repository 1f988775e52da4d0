"""The terminal that the operator sits at."""

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator, Sequence

from backuplib.console import in_words, shown_encoding
from backuplib.errors import DeclinedError
from backuplib.processes import Interrupted
from backuplib.secret import Secret

PAGE = 15
"""Lines of a menu at a time; a terminal has 24."""


class Terminal:
    """The terminal that the operator sits at, reached as /dev/tty, so that standard input may be a pipe."""

    def __init__(self) -> None:
        self._encoding = shown_encoding("utf-8")
        self.present = False
        """Whether there is one."""
        with contextlib.suppress(OSError):
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
            self.present = True

    def say(self, text: str) -> None:
        """Print a line."""
        with self._opened() as (_, write):
            write(f"{text}\n")

    def confirm(self, question: str) -> bool:
        """Ask a question whose answer is no unless it is y or yes. What was typed before it does not count."""
        return self.ask(f"{question} [y/N] ").strip().lower() in ("y", "yes")

    def ask(self, question: str) -> str:
        """Ask for a line."""
        with self._opened() as (reader, write):
            import termios

            termios.tcflush(reader, termios.TCIFLUSH)
            write(question)
            line = b""
            while not line.endswith(b"\n"):
                byte = os.read(reader, 1)
                if not byte:
                    break
                line += byte
        return line.decode(errors="replace").strip("\n")

    def choose(self, title: str, choices: Sequence[str], heading: str = "") -> int | None:
        """Let one of several be chosen by number; None when the operator leaves.

        :param heading: stands over the choices; what does not fit on a screen is shown when it is asked for.
        """
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

    def passphrase(self) -> Secret:
        """Ask for the passphrase, without echo.

        :raises DeclinedError: at Ctrl-D, for the second time: the first may have been meant to end the key.
        """
        return self._secret("🔑 Passphrase of the private key: ")

    def backup_db_pass(self) -> Secret:
        """Ask for the passphrase that the database in the backup was made under, without echo.

        :raises DeclinedError: at Ctrl-D, for the second time.
        """
        return self._secret("🔑 DB_PASS of the time when the backup was made: ")

    def _secret(self, question: str) -> Secret:
        import getpass

        for _ in range(2):
            with contextlib.suppress(EOFError), hangup_when_lost():
                return Secret(getpass.getpass(in_words(question, self._encoding)))
        raise DeclinedError("no passphrase was given")

    def private_key(self) -> Secret:
        """Let the private key be pasted, without echo: one line of any length, or many lines up to Ctrl-D."""
        import termios

        with self._opened() as (reader, write):
            before = termios.tcgetattr(reader)
            raw = termios.tcgetattr(reader)
            # A terminal in canonical mode cuts a line at 4095 characters; an RSA-4096 key is longer.
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
        """Read up to Ctrl-D, or to where the key is whole."""
        pasted = bytearray()
        while b"\4" not in pasted and not _is_whole(pasted):
            piece = os.read(reader, 4096)
            if not piece:
                break
            pasted += piece
        return pasted.partition(b"\4")[0]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[int, Callable[[str], object]]]:
        import termios

        with hangup_when_lost():
            # os.open: in text mode, open() wants to seek, which a terminal cannot
            descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                yield descriptor, lambda text: os.write(descriptor, in_words(text, self._encoding).encode())
                termios.tcgetattr(descriptor)  # fails when the terminal is gone: what was read may have been its end
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def hangup_when_lost() -> Iterator[None]:
    """End the run as SIGHUP does when the terminal is gone: the signal itself may come later, or to a parent only."""
    import termios

    try:
        yield
    except (OSError, termios.error) as error:
        if error.args[0] not in (errno.EIO, errno.ENXIO):
            raise
        raise Interrupted(signal.SIGHUP) from None


def _is_whole(pasted: bytearray) -> bool:
    """Whether what was pasted is a whole key, so that nobody has to press Ctrl-D after it.

    No tool wraps base64 at more than 76 characters, so a long first line is all of it.
    """
    lines = pasted.replace(b"\r", b"\n").lstrip(b"\n").split(b"\n")
    if lines[0].startswith(b"-----BEGIN PGP"):
        return any(line.startswith(b"-----END PGP") for line in lines[:-1])
    return len(lines) > 1 and len(lines[0]) > 100
