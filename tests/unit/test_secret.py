"""A secret does not show itself."""

import logging

import pytest

from backuplib.secret import Secret


@pytest.mark.parametrize("value", ["pässwörd", "pässwörd".encode(), bytearray("pässwörd".encode())])
def test_value_comes_back_only_when_it_is_asked_for(value: str | bytes | bytearray) -> None:
    secret = Secret(value)
    assert secret.reveal() == "pässwörd"
    assert secret.reveal_bytes() == "pässwörd".encode()


def test_no_text_shows_it(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret("hunter2")
    logging.getLogger("x").error("%s %r", secret, [secret])
    for text in (str(secret), repr(secret), f"{secret}", f"{[secret]}", f"{ {'x': secret} }", caplog.text):
        assert "hunter2" not in text
    assert not hasattr(secret, "__dict__")


def test_wiped_secret_is_empty() -> None:
    secret = Secret("hunter2")
    assert secret
    secret.wipe()
    assert not secret
    assert b"hunter2" not in secret.reveal_bytes()


def test_empty_secret_is_false() -> None:
    assert not Secret("")
    assert Secret(" ")


def test_what_was_given_is_not_shared() -> None:
    given = bytearray(b"hunter2")
    Secret(given).wipe()
    assert given == b"hunter2"
