"""What becomes of one telling: with a good server, and with bad ones. Here it is not ended from outside."""

import json
import time
from pathlib import Path

import pytest

from backuplib import telling
from tests.support import listener as answers
from tests.support.listener import Answer, listening, says, status

TOKEN = "to-ken-4711"


def test_text_is_sent_and_nothing_else_that_is_ours() -> None:
    with listening() as server:
        assert telling.ping(f"{server.url}/{TOKEN}", "exit code 0, ä", 5) == ""
    assert server.requests == [("POST", f"/{TOKEN}", "exit code 0, ä")]
    names = {line.partition(b":")[0].lower() for line in server.raw[0].partition(b"\r\n\r\n")[0].splitlines()[1:]}
    assert names == {b"host", b"content-type", b"content-length", b"user-agent", b"accept-encoding", b"connection"}


@pytest.mark.parametrize("refusal", [405, 501])
def test_server_that_takes_no_text_is_asked_without(refusal: int) -> None:
    with listening() as server:
        server.answer = lambda connection: (
            answers.OK(connection) if server.requests[-1][0] == "GET" else status(refusal)(connection)
        )
        assert telling.ping(f"{server.url}/{TOKEN}", "x", 5) == ""
    assert server.requests == [("POST", f"/{TOKEN}", "x"), ("GET", f"/{TOKEN}", "")]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(500), "status 500"),
        (status(404, body=b"\x1b[2Jnot here"), "status 404"),
        (status(302, "Location: /again"), "it redirects (status 302), and is not followed"),
        (status(302, "Location: file:///etc/passwd"), "it redirects (status 302), and is not followed"),
        (status(307, "Location: http://127.0.0.1:1/"), "it redirects (status 307), and is not followed"),
        (answers.redirects_without_end, "it redirects (status 302), and is not followed"),
        (says(b"\x16\x03\x01 garbage\r\n\r\n"), "its answer is not HTTP"),
        (says(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000), "its answer is not HTTP"),
        (status(200, body=b"OK (not found)"), "it does not know that check"),
        (status(200, body=b"OK (rate limited)"), "it is asked too often"),
        (answers.never_ends, ""),
        (status(201), ""),
        (answers.is_silent, "no answer"),
    ],
)
def test_what_a_server_answers_is_told_in_words_of_ours(answer: Answer, reason: str) -> None:
    with listening(answer) as server:
        began = time.monotonic()
        assert telling.ping(f"{server.url}/{TOKEN}", "x", 0.5) == reason
        assert time.monotonic() - began < 3
    assert server.paths == [f"/{TOKEN}"]


def test_server_that_wants_tls_and_has_none() -> None:
    with listening() as server:
        server.talks_first = says(b"this is no TLS at all")
        url = server.url.replace("http:", "https:")
        assert telling.ping(url, "x", 5) == "no TLS connection to it is possible"


@pytest.mark.parametrize(
    ("url", "reason"),
    [("http://127.0.0.1:1/x", "Connection refused"), ("http://no-such-host.invalid/", "its name cannot be resolved")],
)
def test_server_that_cannot_be_reached(url: str, reason: str) -> None:
    assert telling.ping(url, "x", 5) == reason


@pytest.mark.needs("apprise")
@pytest.mark.filterwarnings("ignore")  # its plugins have some
def test_apprise_tells_and_its_failures_are_said_without_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with listening() as server:
        url = f"{server.url.replace('http', 'json')}/{TOKEN}"
        assert telling.notify(url, "title", "some_text *x* <b>") == ""
        sent = json.loads(server.requests[0][2])
        assert (sent["title"], sent["message"]) == ("title", "some_text *x* <b>")
        server.answer = status(500)
        assert telling.notify(url, "title", "text") == "apprise could not deliver it"
    for unknown in (f"no-such-kind://{TOKEN}", TOKEN, "tgram://"):
        assert telling.notify(unknown, "t", "x") == "apprise does not know such an address, or lacks a package for it"
    assert [*tmp_path.iterdir()] == []
