"""Telling others how a command began and ended: PING_URL, a dead-man switch, and NOTIFY_URLS, addresses of apprise's.

Nothing of that changes how the command ends, or when the bot is up again: the beginning is told beside the work, the
end when the work is done and its result is printed. A child does it (see telling.py), which is killed at its deadline.
The addresses hold tokens: they go to it through a pipe, and no word of them is printed but a host or a scheme.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from backuplib import typed
from backuplib.console import Report
from backuplib.errors import FOLDER, ExitCode
from backuplib.formatting import printable, quoted, shown
from backuplib.processes import Interrupted, start_apart
from backuplib.secret import Secret

PING_SECONDS, NOTIFY_SECONDS = 5.0, 10.0  # that one telling may take
START_SECONDS = 2.0  # that the beginning, if it has not been told yet, holds up the end

ENDING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)  # signals that end the telling

# With these codes a person left before anything had begun: no failure, and nothing to be told.
LEFT = {ExitCode.DECLINED, ExitCode.SIGHUP, ExitCode.SIGINT, ExitCode.SIGQUIT, ExitCode.SIGTERM}

CHILD = Path(__file__).with_name("telling.py")

NOTHING_TO_RECOVER = "nothing to recover"

# What the child keeps of our environment: where programs, certificates and the way out of this network are.
_KEPT = re.compile(
    r"PATH|HOME|LANG|LC_ALL|TZ|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|(https?|all|no)_proxy", re.IGNORECASE
)


class Addresses(Protocol):
    """The settings that say who is told, and of which database."""

    @property
    def ping_url(self) -> Secret | None:
        """A dead-man switch."""

    @property
    def notify_urls(self) -> tuple[Secret, ...]:
        """Addresses of apprise's."""

    @property
    def db_path(self) -> Path:
        """The configured database."""


def ping_address(url: str, suffix: str = "") -> str:
    """Return the URL that is asked: a suffix belongs to the path, before what stands behind a question mark.

    :raises ValueError: when it is no http or https URL; its message must not be shown.
    """
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(url)
    right = parts.scheme in ("http", "https") and parts.hostname and url.isascii() and url.isprintable()
    if not right or parts.port == 0:  # which is also looked at because it may be no number
        raise ValueError
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}{suffix}", fragment=""))


def host_of(url: Secret) -> str:
    """Return the host that PING_URL names, the one part of it that is no secret."""
    from urllib.parse import urlsplit

    return printable(urlsplit(url.reveal()).hostname or "")


def scheme_of(url: Secret) -> str:
    """Return which kind of address one of apprise's is: what follows, the host too, may be a token."""
    match = re.match(r"([a-z][a-z0-9+.-]{0,19})://", url.reveal())
    return match[1] if match else "without a scheme"


def package_hint() -> str:
    """Return that apprise is missing, and how it is installed, where this tool has its packages."""
    venv = FOLDER / ".venv"
    make = "" if os.path.exists(venv / "bin/pip") else f"python3 -m venv {quoted(shown(venv))} && "
    install = typed.joined([shown(venv / "bin/pip"), "install", "-q", "apprise"])
    return f"the Python package apprise is missing. Install it: {make}{install}"


@dataclass(frozen=True)
class _Address:
    """Who is told: by which name people know it, and the URL."""

    name: str
    url: str


class _Telling:
    """A child that tells some addresses; it runs until they are told, or its time is over."""

    def __init__(self, addresses: Sequence[_Address], seconds: float, text: str, title: str | None = None) -> None:
        self._addresses = addresses
        self._seconds = seconds
        self.until = time.monotonic() + seconds
        order = {"urls": [item.url for item in addresses], "seconds": seconds, "text": text}
        order |= {} if title is None else {"title": title}
        self._process = start_apart(
            [sys.executable, "-P", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)},
        )
        if self._process.stdin:
            with contextlib.suppress(OSError):  # it has died
                self._process.stdin.write(json.dumps(order).encode())
                self._process.stdin.close()
            self._process.stdin = None

    def failures(self, until: float) -> Iterator[str]:
        """Wait for the child, at most until then, and return who could not be told, and why."""
        output = b""
        try:
            output = self._process.communicate(timeout=max(0.0, until - time.monotonic()))[0]
        except subprocess.TimeoutExpired as error:
            output = error.output or b""
        finally:
            self.end()
        reasons = dict(json.loads(line) for line in output.splitlines(keepends=True) if line.endswith(b"\n"))
        for number, address in enumerate(self._addresses):
            reason = reasons.get(number, f"no answer within {self._seconds:.0f} s")
            if reason != "":
                yield f"{address.name} could not be told: {reason or package_hint()}"

    def end(self) -> None:
        """Kill the child, with what it may have started."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        if self._process.stdout:
            self._process.stdout.close()


class Watchers:
    """Those who are told of one command. There are none until :meth:`watch` names them."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._command = ""
        self._ping: Secret | None = None
        self._notified: tuple[Secret, ...] = ()
        self._database = Path()
        self._begun = False
        self._tellings: list[_Telling] = []

    def watch(self, command: str, addresses: Addresses) -> None:
        """Take the addresses of the settings; the report tells when the command begins."""
        self._command, self._database = command, addresses.db_path
        self._ping, self._notified = addresses.ping_url, addresses.notify_urls
        self._report.begins = self.begin

    def begin(self) -> None:
        """Tell the dead-man switch that the command begins, and do not wait for that."""
        self._begun = True
        with contextlib.suppress(Exception):  # no process can be started: the end will tell, if that goes on
            self._tell_ping("/start", f"{self._command} on {_host()}")

    def end(self) -> None:
        """Tell how the command ended, which stays as it is; a signal ends this, and nothing else.

        Not the one that says that the terminal is gone: just then nobody may read how it ended.
        """
        report = self._report
        code = next((code for code in ExitCode if code == report.exit_code), ExitCode.UNEXPECTED)
        if not self._command or (code in LEFT and not self._begun):
            return
        untold: list[str] = []
        try:
            report.signals.install(*ENDING)
            untold += self._told(code)
        except Interrupted as interrupt:
            untold.append(f"{signal.Signals(interrupt.number).name} came before everybody was told")
        except Exception as error:  # noqa: BLE001 - whatever it is, the command has ended as it has
            reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
            untold.append(f"not everybody could be told: {reason}")
        finally:
            report.signals.ignore()
            for item in self._tellings:
                item.end()
        for text in dict.fromkeys(untold):
            report.warn(text)

    def _told(self, code: ExitCode) -> Iterator[str]:
        """Tell all, and return who could not be told, and why."""
        begun, error_id = [*self._tellings], (self._report.error or {}).get("id")
        how = f"exit code {code}" + (f", {error_id}" if error_id else "")
        if self._notified and (code or self._is_restore()):
            database = printable(self._report.target or str(self._database))
            self._tell_notified(
                f"{self._command} on {_host()}: {'FAILED' if code else self._report.outcome}",
                f"{self._command} of {database} on {_host()}: {how} ({code.meaning})",
            )
        for item in begun:
            yield from item.failures(min(item.until, time.monotonic() + START_SECONDS))
        self._tell_ping("/fail" if code else "", f"{self._command} on {_host()}: {how}")
        for item in self._tellings[len(begun) :]:
            yield from item.failures(item.until)

    def _is_restore(self) -> bool:
        """Whether a command that has done what it should is told, too."""
        return self._command in ("restore", "recover") and self._report.outcome != NOTHING_TO_RECOVER

    def _tell_ping(self, suffix: str, text: str) -> None:
        if self._ping:
            address = _Address(f"PING_URL ({host_of(self._ping)})", ping_address(self._ping.reveal(), suffix))
            self._tellings.append(_Telling([address], PING_SECONDS, text))

    def _tell_notified(self, title: str, text: str) -> None:
        addresses = [
            _Address(f"NOTIFY_URLS, number {number} ({scheme_of(url)}),", url.reveal())
            for number, url in enumerate(self._notified, 1)
        ]
        self._tellings.append(_Telling(addresses, NOTIFY_SECONDS, text, title))


def _host() -> str:
    return printable(os.uname().nodename)
