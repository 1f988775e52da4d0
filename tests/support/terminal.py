"""A program on a real pseudo-terminal, which is its controlling terminal: for prompts, Ctrl-C and lost connections."""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

COMPLETION = {
    "bash": 'eval "$(activate-global-python-argcomplete --dest=-)"',
    "zsh": 'autoload -U compinit && compinit -u && eval "$(activate-global-python-argcomplete --dest=-)"',
}
"""README.md's commands that set up completion in a shell."""


PASTE, PASSPHRASE = "Paste the private key", r"🔑 Passphrase[^\n]*: "
"""The secret prompts."""

SHELL = r"SHELL\$ "
"""The prompt of an interactive shell."""


def interactive_shell(folder: Path, env: Mapping[str, str]) -> "Terminal":
    """An interactive bash in a folder, which keeps its history in a file there."""
    own = {"PS1": "SHELL$ ", "HISTFILE": str(folder / "history")}
    terminal = Terminal(["bash", "--norc", "--noprofile", "-i"], cwd=folder, env={**env, **own})
    terminal.expect(SHELL)
    return terminal


class Terminal:
    """One program on its own terminal. `output` is all that it has shown so far."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: int | None = None,
        pass_fds: Sequence[int] = (),
        size: tuple[int, int] = (50, 200),
    ) -> None:
        """`stdin`: another descriptor than the terminal, such as a pipe; the caller closes its copy.

        `size`: lines and columns.
        """
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self._seen = 0
        self._bytes = b""
        # A session leader gets the terminal that it opens as its controlling one: the shell does, then is replaced.
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", ': <>"$0"; exec "$@"', os.ttyname(slave), *argv],
            cwd=cwd,
            env={**env, "TERM": "xterm"},
            stdin=slave if stdin is None else stdin,
            stdout=slave,
            stderr=slave,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        os.close(slave)

    @property
    def output(self) -> str:
        """Everything shown, line ends as on the terminal (CR LF)."""
        return self._bytes.decode(errors="replace")

    @property
    def ended(self) -> tuple[int, str]:
        """Wait for the end of a run with --json, whose object is the last line; exit code and the error's id."""
        return self.wait(), (json.loads(self.output.splitlines()[-1])["error"] or {"id": ""})["id"]

    def expect(self, pattern: str, timeout: float = 30) -> str:
        """Wait for a regular expression in what came since the last match; returns what matched."""
        deadline = time.monotonic() + timeout
        while True:
            match = re.search(pattern, self.output[self._seen :])
            if match:
                self._seen += match.end()
                return match[0]
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"{pattern!r} did not come within {timeout} s; the terminal shows:\n{self.output}")

    def send(self, text: str) -> None:
        """Type it. Enter is a newline, Ctrl-C \\x03, Ctrl-D \\x04."""
        data = text.encode()
        while data:
            data = data[os.write(self.master, data) :]

    def close_master(self) -> None:
        """The connection is lost: SIGHUP, and EIO for whoever reads or writes the terminal."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def wait(self, timeout: float = 60) -> int:
        """The exit code (negative: the signal), with all output read. The terminal's end may come before it."""
        deadline = time.monotonic() + timeout
        while self.master >= 0 and self._read(deadline - time.monotonic()):
            pass
        try:
            return self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s; the terminal shows:\n{self.output}") from None

    def end(self) -> None:
        """Clean up, whatever state it is in."""
        self.close_master()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    def _read(self, timeout: float) -> bool:
        """Take what is there, waiting for it; False at the terminal's end and when time is up."""
        if self.master < 0 or not select.select([self.master], [], [], max(0.0, timeout))[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # EIO: every process has closed its side
            return False
        self._bytes += data
        return bool(data)


def echoes(terminal: Terminal) -> bool:
    """Whether it shows what is typed."""
    return bool(termios.tcgetattr(terminal.master)[3] & termios.ECHO)


def wait_for_quiet(terminal: Terminal) -> None:
    """Wait until what is typed is not shown: a prompt may be seen before that is switched."""
    deadline = time.monotonic() + 5
    while echoes(terminal):
        assert time.monotonic() < deadline, terminal.output
        time.sleep(0.01)
