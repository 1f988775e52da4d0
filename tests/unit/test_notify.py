"""Who is told how a command ended: in which order, what is sent, and what a bad server costs."""

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backuplib import notify
from backuplib.console import Report
from backuplib.errors import DeclinedError, EndedBySignalError, RolledBackError
from backuplib.notify import Watchers, host_of, ping_address, scheme_of
from backuplib.secret import Secret
from tests.support import listener as answers
from tests.support.containers import wait_until
from tests.support.listener import Listener, listening

TOKEN = "to-ken-4711"


@dataclass(frozen=True)
class Addresses:
    ping_url: Secret | None = None
    notify_urls: tuple[Secret, ...] = ()
    db_path: Path = Path("/srv/shop/data/shop.db")


@pytest.fixture
def server() -> Iterator[Listener]:
    with listening() as found:
        yield found


@pytest.fixture
def watchers(report: Report, server: Listener) -> Watchers:
    """Of `create`, told to the server."""
    return watching(report, server.url)


def watching(report: Report, url: str, command: str = "create", *notified: str) -> Watchers:
    watchers = Watchers(report)
    urls = tuple(map(Secret, notified))
    watchers.watch(command, Addresses(Secret(f"{url}/ping/{TOKEN}") if url else None, urls))
    return watchers


def fail(report: Report, error: Exception) -> None:
    """End the report with an error, as the commands do."""
    with report.failures():
        raise error


# --- the dead-man switch ---------------------------------------------------------------------------------------------


def test_beginning_and_success_are_told_in_this_order(watchers: Watchers, server: Listener, report: Report) -> None:
    report.begins()
    watchers.end()
    assert server.paths == [f"/ping/{TOKEN}/start", f"/ping/{TOKEN}"]
    assert {method for method, _, _ in server.requests} == {"POST"}
    assert server.requests[1][2] == f"create on {os.uname().nodename}: exit code 0"
    assert report.warnings == []


def test_failure_is_told_with_code_and_id_and_no_word_of_the_error(
    watchers: Watchers, server: Listener, report: Report
) -> None:
    report.begins()
    fail(report, RolledBackError("rows of table customers: Ada Lovelace", hint="her passphrase"))
    watchers.end()
    assert server.paths[-1] == f"/ping/{TOKEN}/fail"
    assert server.requests[-1][2] == f"create on {os.uname().nodename}: exit code 8, rolled-back"
    assert b"Ada" not in b"".join(server.raw)
    assert report.exit_code == 8


def test_what_stands_behind_a_question_mark_stays_there() -> None:
    assert (
        ping_address("https://hc.example/key/slug/?create=1#x", "/start")
        == "https://hc.example/key/slug/start?create=1"
    )
    assert ping_address("https://hc.example/uuid", "") == "https://hc.example/uuid"


@pytest.mark.parametrize(
    "url",
    ["ftp://hc.example/x", "file:///etc/passwd", "hc.example/x", "https://", "http://h:port/", "http://a/\x7fb", "ä"],
)
def test_what_is_no_web_address_is_not_asked(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - without a text, which could show the address
        ping_address(url)


def test_without_addresses_nothing_is_done(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "start_apart", None)  # would raise
    for watchers in (Watchers(report), watching(report, "")):
        report.begins()
        watchers.end()
    assert report.warnings == []


@pytest.mark.parametrize(
    ("error", "begun", "told"),
    [
        (DeclinedError("no"), False, []),
        (EndedBySignalError(signal.SIGHUP), False, []),
        (EndedBySignalError(signal.SIGTERM), True, ["/start", "/fail"]),
        (RolledBackError("x"), False, ["/fail"]),
    ],
)
def test_who_leaves_before_it_begins_tells_nobody(
    report: Report, server: Listener, error: Exception, begun: bool, told: list[str]
) -> None:
    watchers = watching(report, server.url, "restore")
    if begun:
        report.begins()
    fail(report, error)
    watchers.end()
    assert server.paths == [f"/ping/{TOKEN}{suffix}" for suffix in told]


# --- bad servers -----------------------------------------------------------------------------------------------------


def nobody() -> str:
    """The address of a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_server_that_is_down_is_told_once(report: Report) -> None:
    watchers = watching(report, nobody())
    report.begins()
    watchers.end()
    assert report.warnings == ["PING_URL (127.0.0.1) could not be told: Connection refused"]


def test_slow_server_costs_the_deadline_and_no_more(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "PING_SECONDS", 0.8)
    with listening(answers.drips) as server:
        watchers = watching(report, server.url)
        began = time.monotonic()
        report.begins()
        assert time.monotonic() - began < 0.5  # the work is not held up
        watchers.end()
        assert time.monotonic() - began < 4
    (warning,) = report.warnings
    assert warning.startswith("PING_URL (127.0.0.1) could not be told: no answer")


def test_signal_ends_the_telling_and_nothing_else(report: Report, server: Listener) -> None:
    server.answer = answers.is_silent
    watchers = watching(report, server.url)
    fail(report, RolledBackError("x"))
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    began = time.monotonic()
    watchers.end()
    timer.cancel()
    assert time.monotonic() - began < 3
    assert report.warnings == ["SIGTERM came before everybody was told"]
    assert report.exit_code == 8


def test_lost_terminal_does_not_end_it(report: Report, server: Listener) -> None:
    def slow(connection: socket.socket) -> None:
        time.sleep(0.5)
        answers.OK(connection)

    server.answer = slow
    watchers = watching(report, server.url)
    with report.failures():
        pass  # afterwards all signals are ignored
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGHUP))
    timer.start()
    watchers.end()
    assert not timer.is_alive()
    assert (server.paths, report.warnings) == ([f"/ping/{TOKEN}"], [])


def test_no_process_can_be_started(watchers: Watchers, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(notify, "start_apart", no_process)
    report.begins()
    watchers.end()
    assert report.warnings == ["not everybody could be told: Resource temporarily unavailable"]
    assert report.exit_code == 0


def test_child_has_no_secret_in_arguments_or_environment(
    watchers: Watchers, report: Report, server: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PASS", "canary-pass")
    monkeypatch.setenv("PING_URL", "canary-url")
    monkeypatch.setenv("RCLONE_CONFIG_X_PASS", "canary-rclone")
    server.answer = answers.is_silent
    report.begins()
    (child,) = watchers._tellings
    of = Path(f"/proc/{child._process.pid}")
    wait_until(lambda: of.joinpath("cmdline").read_bytes(), "the child has its command line")  # a moment after exec
    seen = of.joinpath("cmdline").read_bytes() + of.joinpath("environ").read_bytes()
    child.end()
    assert b"telling.py" in seen
    assert b"canary" not in seen
    assert TOKEN.encode() not in seen


# --- addresses of apprise's ------------------------------------------------------------------------------------------


def test_name_of_an_address_is_no_secret() -> None:
    assert host_of(Secret("https://user:secret@hc.example:8000/uuid")) == "hc.example"
    assert scheme_of(Secret("tgram://123456:bot-token/chat")) == "tgram"
    assert scheme_of(Secret("bot-token")) == "without a scheme"


@pytest.fixture
def orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A child in the place of ours that tells nobody, and writes down what it was to tell."""
    monkeypatch.setattr(notify, "CHILD", tmp_path / "child.py")
    (tmp_path / "child.py").write_text(
        "import sys, json\n"
        "order = sys.stdin.read()\n"
        f"open({str(tmp_path / 'orders')!r}, 'a').write(order + '\\n')\n"
        "for number, _ in enumerate(json.loads(order)['urls']): print(json.dumps([number, '']))\n"
    )
    (tmp_path / "orders").touch()
    return tmp_path / "orders"


def test_restore_is_told_to_all_addresses(report: Report, orders: Path) -> None:
    report.target = "/srv/other/copy.db"
    report.outcome = "restored"
    watching(report, "", "restore", "tgram://bot/chat", "mailto://x").end()
    host = os.uname().nodename
    assert json.loads(orders.read_text()) == {
        "urls": ["tgram://bot/chat", "mailto://x"],
        "seconds": 10,
        "title": f"restore on {host}: restored",
        "text": f"restore of /srv/other/copy.db on {host}: exit code 0 (done)",
    }
    assert report.warnings == []


@pytest.mark.parametrize(
    ("run", "error", "told"),
    [
        ("create failed", None, False),
        ("recover nothing to recover", None, False),
        ("recover recovered", None, True),
        ("restore failed", DeclinedError("no"), False),
        ("prune failed", RolledBackError("customers"), True),
    ],
)
def test_failures_and_restores_are_told(
    report: Report, orders: Path, run: str, error: Exception | None, told: bool
) -> None:
    command, _, report.outcome = run.partition(" ")
    watchers = watching(report, "", command, "json://x")
    if error:
        fail(report, error)
    watchers.end()
    assert bool(orders.read_text()) == told
    if error and told:
        order, host = json.loads(orders.read_text()), os.uname().nodename
        assert order["title"] == f"{command} on {host}: FAILED"
        how = "exit code 8, rolled-back (failed later; rolled back)"
        assert order["text"] == f"prune of /srv/shop/data/shop.db on {host}: {how}"


@pytest.mark.needs("apprise")
def test_answer_without_end_costs_apprise_its_deadline(
    report: Report, server: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead-man switch is told meanwhile; of an address that may be a token, its scheme is named."""
    monkeypatch.setattr(notify, "NOTIFY_SECONDS", 2.0)
    server.answer = lambda connection: None if server.paths[-1].startswith("/ping") else answers.never_ends(connection)
    began = time.monotonic()
    watching(report, "", "restore", f"{server.url.replace('http', 'json')}/{TOKEN}").end()
    assert time.monotonic() - began < 5
    (warning,) = report.warnings
    assert warning.startswith("NOTIFY_URLS, number 1 (json), could not be told: ")
    assert TOKEN not in warning


def test_missing_package_is_said_with_how_to_install_it(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("python3", path="/usr/bin:/bin") or "")
    watching(report, "", "restore", f"json://{TOKEN}").end()
    (warning,) = report.warnings
    assert "the Python package apprise is missing. Install it: " in warning
    assert warning.endswith(".venv/bin/pip install -q apprise")
    assert TOKEN not in warning
