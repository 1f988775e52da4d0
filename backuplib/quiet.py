"""Echo, off from the first line of a run on: a key that is pasted right behind the command is not shown.

It takes the standard library alone, and comes before all other imports, which take a second on a busy machine.
:meth:`backuplib.terminal.Terminal.held` goes on from there.
"""

import atexit
import contextlib
import os
import sys
import termios
from typing import Any

ASKS_NOTHING = {"--list", "--check", "--drill", "--version", "--help", "-h"}

shells: list[Any] = []  # the mode that the terminal had before; empty where it was left alone


def begin() -> None:
    """Switch echo off until the end, where a person has the terminal for this run alone: no pager, nothing piped."""
    if ASKS_NOTHING & {*sys.argv} or not all(map(os.isatty, range(3))):
        return
    with contextlib.suppress(OSError, termios.error):
        mode = termios.tcgetattr(0)
        if mode[3] & termios.ECHO and _in_foreground():
            shells[:] = mode
            atexit.register(_give_back, os.getpid())
            _set_local_modes(mode, mode[3] & ~termios.ECHO)


def _give_back(pid: int) -> None:
    """Switch echo on again, unless that was done; not at the end of a child."""
    with contextlib.suppress(OSError, termios.error):  # the terminal is gone
        mode = termios.tcgetattr(0)
        if os.getpid() == pid and _in_foreground():
            _set_local_modes(mode, mode[3] | termios.ECHO)


def _in_foreground() -> bool:
    return os.tcgetpgrp(0) == os.getpgrp()


def _set_local_modes(mode: list[Any], local: int) -> None:
    termios.tcsetattr(0, termios.TCSANOW, [*mode[:3], local, *mode[4:]])
