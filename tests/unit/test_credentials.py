"""Where key and passphrases come from, without a terminal."""

import os
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backuplib import typed
from backuplib.credentials import Credentials, read_descriptor, tell_waiting
from backuplib.errors import DamagedMessageError, NoTerminalError, RefusedError, WrongPassphraseError
from backuplib.openpgp import ImportedKey
from backuplib.secret import Secret
from backuplib.terminal import Terminal

PROTECTED = ImportedKey("A" * 40, protected=True, warnings=())
OPEN = ImportedKey("A" * 40, protected=False, warnings=())


@pytest.fixture
def nobody() -> Terminal:
    """No terminal, wherever the tests run."""
    terminal = Terminal()
    terminal.present = False
    return terminal


def pipe_with(data: bytes) -> int:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


# --- file descriptors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "secret"),
    [
        (b"hunter2\n", b"hunter2"),
        (b"hunter2", b"hunter2"),
        (b"hunter2\r\n", b"hunter2"),
        (b"hunter2\nsecond\n", b"hunter2"),
        (b" hunter2\t\n", b" hunter2\t"),
        ("pässwörd\n".encode(), "pässwörd".encode()),
        ("\ufeffpässwörd\n".encode(), "pässwörd".encode()),
        ("pässwörd\r\nsecond".encode("utf-16"), "pässwörd".encode()),
        ("pässwörd\r\n".encode("utf-16-le"), "pässwörd".encode()),
        (b"s\xe9cret\n", b"s\xe9cret"),
        (b"\n", b""),
        (b"", b""),
    ],
)
def test_first_line_of_a_descriptor_is_the_passphrase(data: bytes, secret: bytes) -> None:
    number = pipe_with(data)
    found = read_descriptor(number, "--passphrase-fd")
    assert found is not None
    assert found.reveal_bytes() == secret
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(number)  # closed: no child gets it


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("option", "instead"),
    [("--passphrase-fd", "--force"), ("--backup-db-pass-fd", "--force --backup-db-pass")],
)
def test_terminal_which_would_show_a_passphrase_is_refused(
    option: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, number = os.openpty()
    options = Namespace(backup_file=Path("/b.db"), force=True, passphrase_fd=None, backup_db_pass_fd=None)
    setattr(options, option[2:].replace("-", "_"), number)
    monkeypatch.setattr(typed, "_options", options)
    with pytest.raises(RefusedError, match="would show") as raised:
        read_descriptor(number, option)
    assert raised.value.hint.endswith(f"restore_backup.py /b.db {instead}")
    for descriptor in (master, number):
        os.close(descriptor)


def test_no_option_is_none() -> None:
    assert read_descriptor(None, "--passphrase-fd") is None


def test_descriptor_that_is_closed_is_refused_naming_the_option() -> None:
    number = pipe_with(b"")
    os.close(number)
    with pytest.raises(RefusedError) as raised:
        read_descriptor(number, "--passphrase-fd")
    assert f"--passphrase-fd {number}" in str(raised.value)


@pytest.mark.parametrize("number", [-1, 1 << 40])
def test_number_that_is_no_descriptor_is_refused(number: int) -> None:
    with pytest.raises(RefusedError):
        read_descriptor(number, "--passphrase-fd")


def test_descriptor_for_writing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        read_descriptor(os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT), "--passphrase-fd")


def test_folder_is_refused(tmp_path: Path) -> None:
    number = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(RefusedError):
        read_descriptor(number, "--passphrase-fd")
    os.close(number)  # open() refuses a folder before it takes it over


# --- unlocking -------------------------------------------------------------------------------------------------------


def tried(credentials: Credentials, key: ImportedKey) -> list[bytes | None]:
    """What was tried."""
    attempts: list[bytes | None] = []
    credentials.unlock(key, lambda secret: attempts.append(None if secret is None else secret.reveal_bytes()))
    return attempts


def test_key_without_a_passphrase_is_used_without_one(nobody: Terminal) -> None:
    assert tried(Credentials(nobody), OPEN) == [None]
    assert tried(Credentials(nobody, passphrase=Secret("x")), OPEN) == [None]


def test_passphrase_that_was_given_is_tried(nobody: Terminal) -> None:
    assert tried(Credentials(nobody, passphrase=Secret("hunter2")), PROTECTED) == [b"hunter2"]
    assert tried(Credentials(nobody, passphrase=Secret("")), PROTECTED) == [b""]  # gpg's words are for later


def test_passphrase_is_the_first_line_of_a_command(nobody: Terminal) -> None:
    command = r"printf 'it\047s\nsecond'"
    assert tried(Credentials(nobody, passphrase_command=command), PROTECTED) == [b"it's"]


def test_bytes_of_a_command_are_the_passphrase(nobody: Terminal) -> None:
    assert tried(Credentials(nobody, passphrase_command=r"printf 's\351cret\n'"), PROTECTED) == [b"s\xe9cret"]


@pytest.mark.parametrize("given", ["ö", "o\u0308"])
def test_other_spellings_of_the_same_passphrase_are_tried_until_one_is_right(nobody: Terminal, given: str) -> None:
    attempts: list[bytes] = []

    def attempt(secret: Secret | None) -> None:
        assert secret
        attempts.append(secret.reveal_bytes())
        if len(attempts) == 2:
            return
        raise WrongPassphraseError("x")

    Credentials(nobody, passphrase=Secret(given)).unlock(PROTECTED, attempt)
    assert attempts[0] == given.encode()
    assert {*attempts} == {"ö".encode(), "o\u0308".encode()}


def test_passphrase_that_was_given_and_is_wrong_is_tried_once(nobody: Terminal) -> None:
    attempts = 0

    def attempt(_: Secret | None) -> None:
        nonlocal attempts
        attempts += 1
        raise WrongPassphraseError("x")

    with pytest.raises(WrongPassphraseError):
        Credentials(nobody, passphrase=Secret("x")).unlock(PROTECTED, attempt)
    assert attempts == 1


@pytest.mark.parametrize("command", ["", "  ", "printf 'hunter2", "false hunter2", "no-such-program hunter2"])
def test_command_that_gives_nothing_is_refused_and_its_arguments_are_not_shown(nobody: Terminal, command: str) -> None:
    with pytest.raises(RefusedError) as raised:
        tried(Credentials(nobody, passphrase_command=command), PROTECTED)
    assert "hunter2" not in str(raised.value) + raised.value.hint
    assert raised.value.__cause__ is None


def test_passphrase_that_cannot_be_asked_for_is_refused_with_the_options_to_use(nobody: Terminal) -> None:
    with pytest.raises(NoTerminalError) as raised:
        Credentials(nobody, key_stdin=True).unlock(PROTECTED, lambda _: None)
    assert "--passphrase-command 'CMD'" in raised.value.hint
    assert "--passphrase-fd 3 3< <(CMD)" in raised.value.hint
    assert "ssh -t" not in raised.value.hint  # the key is piped in


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_passphrase_of_a_damaged_message_is_not_asked_for_again_where_another_is_tried(
    nobody: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer versions of gpg tell the damage at once, so that the passphrase has opened nothing yet."""
    asked: list[str] = []

    def secret(prompt: str) -> Secret:
        asked.append(prompt)
        return Secret(b"right")

    def damaged(_: Secret | None) -> None:
        raise DamagedMessageError("it is cut off")

    nobody.present = True
    monkeypatch.setattr(nobody, "secret", secret)
    credentials = Credentials(nobody)
    credentials.keep = True
    with pytest.raises(DamagedMessageError):
        credentials.unlock(PROTECTED, damaged)
    assert tried(credentials, PROTECTED) == [b"right"]
    assert len(asked) == 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for is told at once."""
    monkeypatch.setattr("backuplib.credentials.WAITING_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
def test_what_is_waited_for_is_said_once() -> None:
    reader, writer = os.pipe()
    said: list[str] = []
    with ThreadPoolExecutor(1) as beside:
        read = beside.submit(read_descriptor, reader, "--passphrase-fd", said.append)
        while not said:
            time.sleep(0.01)
        assert not read.done()
        os.write(writer, b"hun")
        time.sleep(0.15)
        os.write(writer, b"ter2\n")
        os.close(writer)
        secret = read.result(5)
    assert secret
    assert secret.reveal() == "hunter2"
    assert said == [f"⏳ Waiting for file descriptor {reader} (--passphrase-fd)"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("data", [b"hunter2", b""])
def test_what_is_there_or_at_its_end_is_not_waited_for(data: bytes) -> None:
    said: list[str] = []
    tell_waiting(pipe_with(data), "the key", said.append)
    assert said == []


def test_passphrase_of_the_backups_database_is_none_unless_it_differs(nobody: Terminal) -> None:
    assert Credentials(nobody).backup_db_pass() is None
    given = Credentials(nobody, db_pass=Secret("x")).backup_db_pass()
    assert given
    assert given.reveal() == "x"
