"""Whoever is refused can type what they read: the command that is printed works, as it stands, where it is read."""

import os
import re
import shlex
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeShop
from tests.support.keys import Key, Keys
from tests.support.shop import BACKUP, Completed, Shop


@pytest.fixture
def shop(make_shop: MakeShop) -> Shop:
    """A shop that has changed since its backup was made."""
    shop = make_shop("sqlite")
    shop.back_up_then_change()
    return shop


def typed(shop: Shop, command: str, stdin: bytes = b"") -> Completed:
    """What a shell makes of a command, without a terminal."""
    done = subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=shop.path,
        env=shop.environment(),
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )
    return Completed(done.returncode, done.stdout.decode(), done.stderr.decode())


# --- without a terminal ----------------------------------------------------------------------------------------------


def secret_of(shop: Shop, key: Key) -> str:
    """A command that prints the key's passphrase."""
    (shop.path / "passphrase").write_text(f"{key.passphrase}\n")
    return "cat passphrase"


def proposed(refused: Completed) -> str:
    """The command at the end of a hint."""
    return refused.error["hint"].rpartition(": ")[2]


@pytest.mark.parametrize("options", [(), ("--key-stdin",)], ids=["nothing given", "key piped"])
def test_command_that_is_proposed_restores(shop: Shop, keys: Keys, options: tuple[str, ...]) -> None:
    before = shop.snapshot()
    refused = shop.restore(BACKUP, "--no-restart", *options, stdin=keys.rsa.private_b64.encode())
    assert refused.ended == (3, "no-terminal"), refused.text
    assert "Checksum" not in refused.err
    assert shop.snapshot() == before
    command = proposed(refused).replace("CMD", secret_of(shop, keys.rsa))
    assert "--no-restart" in command
    done = typed(shop, command, keys.rsa.private_b64.encode())
    assert done.code == 0, f"{command}: {done.text}"
    assert shop.is_restored()


def test_passphrase_that_turns_out_to_be_missing_is_told_with_the_whole_command(shop: Shop, keys: Keys) -> None:
    piped = keys.rsa.private_b64.encode()
    refused = shop.restore(BACKUP, "--key-stdin", "--force", stdin=piped)
    assert refused.ended == (3, "no-terminal"), refused.text
    assert "ssh -t" not in refused.error["hint"]
    command = proposed(refused).replace("CMD", secret_of(shop, keys.rsa))
    done = typed(shop, command, piped)
    assert done.code == 0, f"{command}: {done.text}"


# --- waiting for standard input --------------------------------------------------------------------------------------


def test_key_that_does_not_come_is_waited_for_aloud(shop: Shop, keys: Keys) -> None:
    reader, writer = os.pipe()
    process = shop.start_restore(BACKUP, "--key-stdin", "--force", stdin=reader)
    os.close(reader)
    assert process.stderr
    lines = iter(process.stderr.readline, "")
    assert "⏳ Waiting for the private key on standard input\n" in lines
    os.write(writer, keys.rsa.private_b64.encode())
    os.close(writer)
    rest = process.communicate(timeout=30)[1]
    assert "⏳" not in rest
    assert process.returncode == 3, rest  # the passphrase is missing


def test_file_to_rescue_that_does_not_come_is_waited_for_aloud(shop: Shop) -> None:
    reader, writer = os.pipe()
    process = shop.start("database_backup.py", "rescue", "-", stdin=reader)
    os.close(reader)
    assert process.stderr
    assert process.stderr.readline() == "⏳ Waiting for the file on standard input\n"
    os.close(writer)
    process.communicate(timeout=30)
    assert process.returncode not in (0, 1)


# --- packages --------------------------------------------------------------------------------------------------------

BARE = [sys.executable, "-S"]
"""A Python without packages, as the system's is."""


def test_python_without_packages_is_told_the_one_of_the_virtual_environment(shop: Shop) -> None:
    """With the command as it was typed, but for what may be secret. One without packages, too: how to fill it."""
    venv.create(shop.path / ".venv", with_pip=False)
    away = shop.path.parent
    argv = [f"{shop.path.name}/restore_backup.py", f"{shop.path.name}/{BACKUP}", "--passphrase-command", "echo hunter2"]
    done = typed(shop, f"cd {shlex.quote(str(away))} && {shlex.join([*BARE, *argv])}")
    assert done.code == 3, done.text
    hint = done.err.splitlines()[-1]
    assert hint.endswith(f": {shop.path.name}/.venv/bin/python {argv[0]} {argv[1]} --passphrase-command …")
    done = typed(shop, f"cd {shlex.quote(str(away))} && {hint.partition(': ')[2]}")
    assert done.code == 3, done.text
    venv_here = f"{shop.path.name}/.venv"
    install = f"{venv_here}/bin/pip install -q -r {shop.path.name}/requirements.txt"
    assert f"python3 -m venv {venv_here} && {install} && {venv_here}/bin/python {argv[0]}" in done.err


def test_command_with_the_virtual_environment_works_as_it_is_printed(shop: Shop) -> None:
    (shop.path / ".venv").symlink_to(sys.prefix)
    done = typed(shop, shlex.join([*BARE, "database_backup.py", "verify", BACKUP]))
    assert done.code == 3, done.text
    hint = done.err.splitlines()[-1]
    assert "Use the Python of the virtual environment: .venv/bin/python database_backup.py" in hint
    done = typed(shop, hint.partition(": ")[2])
    assert done.code == 0, done.text


# --- read-only -------------------------------------------------------------------------------------------------------


@pytest.fixture
def read_only() -> Iterator[list[Path]]:
    """Folders appended here are unmounted afterwards."""
    mounted: list[Path] = []
    yield mounted
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.needs("root", "mount")
@pytest.mark.parametrize(("folder", "ended"), [("data", (3, "cannot-write")), ("backups", (6, "backup-failed"))])
def test_folder_that_is_mounted_read_only_is_told_as_that(
    shop: Shop, keys: Keys, read_only: list[Path], folder: str, ended: tuple[int, str]
) -> None:
    place = shop.path / folder
    subprocess.run(["mount", "--bind", place, place], check=True)
    read_only.append(place)
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    done = shop.restore(BACKUP, "--force", key=keys.rsa)
    assert done.ended == ended, done.text
    assert f"mount -o remount,rw {place}" in done.error["hint"]
    if folder == "backups":
        assert re.search(r"No log file: \S+restore.log: Read-only file system\. .*remount,rw", done.err), done.err
    assert not shop.is_restored()
