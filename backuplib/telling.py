"""The child that asks PING_URL and writes to NOTIFY_URLS: a program of its own, so that it can be ended at any moment.

It imports nothing of this tool. The addresses, which are secrets, come on standard input; for each of them a line on
standard output tells what became of it: its number, and a reason, which is empty when it was told, and null when it
takes the package apprise, which is missing. No reason holds a word of the address or of the answer. The kernel ends the
child at its deadline, whatever it does then.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

MOST_MEMORY = 512 << 20  # bytes: an answer without end takes no more
MOST_ANSWER = 64  # bytes that are read of an answer

# What healthchecks.io answers, with status 200, when it has done nothing; these words are its own documentation's.
_NOT_TAKEN = {b"OK (not found)": "it does not know that check", b"OK (rate limited)": "it is asked too often"}


_NO_POST = ("status 405", "status 501")
_HEADERS = {"Content-Type": "text/plain; charset=utf-8", "User-Agent": "restore-backup"}


class _NoRedirects(HTTPRedirectHandler):
    """Follows nothing: the address is a secret of one server."""

    def redirect_request(self, *_: Any) -> None:
        """Leave the answer as it is."""


def ping(url: str, text: str, seconds: float) -> str:
    """Ask a URL, and return why that failed; empty when it has not.

    :param text: sent along, where the server takes a text.
    """
    reason = _asked(Request(url, data=text.encode(), headers=_HEADERS), seconds)  # noqa: S310 - as config.py: http, https
    if reason in _NO_POST:
        reason = _asked(Request(url, headers=_HEADERS), seconds)  # noqa: S310 - the same
    return reason


def _asked(request: Request, seconds: float) -> str:
    try:
        with build_opener(_NoRedirects).open(request, timeout=seconds) as answer:
            return _NOT_TAKEN.get(answer.read1(MOST_ANSWER).strip(), "")
    except (OSError, HTTPException, ValueError, MemoryError) as error:
        return reason_of(error)


_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (ssl.SSLCertVerificationError, "its certificate is not accepted"),
    (ssl.SSLError, "no TLS connection to it is possible"),
    (socket.gaierror, "its name cannot be resolved"),
    (TimeoutError, "no answer"),
    (HTTPException, "its answer is not HTTP"),
    (MemoryError, "its answer is too large"),
)


def reason_of(error: BaseException) -> str:
    """Return an error in words that are ours, or the system's: others may have written those of the error."""
    if isinstance(error, HTTPError):
        redirects = 300 <= error.code < 400
        return f"it redirects (status {error.code}), and is not followed" if redirects else f"status {error.code}"
    cause = error.reason if isinstance(error, URLError) else error
    known = (text for kind, text in _REASONS if isinstance(cause, kind))
    return next(known, (isinstance(cause, OSError) and cause.strerror) or type(cause).__name__)


def notify(url: str, title: str, text: str) -> str:
    """Write to an address of apprise's, and return why that failed; empty when it has not."""
    import apprise

    try:
        there = apprise.Apprise()
        if not there.add(url):
            return "apprise does not know such an address, or lacks a package for it"
        told = there.notify(title=title, body=text, body_format=apprise.NotifyFormat.TEXT)
    except Exception as error:  # noqa: BLE001 - of somebody else's program; its words may hold the address
        return type(error).__name__
    return "" if told else "apprise could not deliver it"


def teller(order: Mapping[str, Any]) -> Callable[[str], str | None]:
    """Return what tells one address; its reason is None when this Python lacks the package for that."""
    if "title" not in order:
        return lambda url: ping(url, order["text"], order["seconds"])
    try:
        import apprise  # noqa: F401 - once, before the threads
    except ImportError:
        return lambda _: None
    return lambda url: notify(url, order["title"], order["text"])


def main() -> None:
    """Tell all addresses side by side, and report each as soon as it is known."""
    order = json.load(sys.stdin)
    signal.setitimer(signal.ITIMER_REAL, order["seconds"])  # its signal ends a process that does not handle it
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    logging.disable()
    tell = teller(order)

    def report(number: int, url: str) -> None:
        sys.stdout.write(json.dumps([number, tell(url)]) + "\n")
        sys.stdout.flush()

    threads = [threading.Thread(target=report, args=item) for item in enumerate(order["urls"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
