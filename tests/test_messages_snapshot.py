"""The ten most likely mistakes of an operator, each made for real; every word of what they read is in snapshots/.

After a change that is meant, `UPDATE_SNAPSHOTS=1 pytest tests/test_messages_snapshot.py` writes them anew: read the
difference as somebody would who is tired and sees it for the first time.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeShop, StartTerminal
from tests.support.keys import Keys
from tests.support.shop import BACKUP, DB_PASS, Completed, Shop, filled_pipe

SNAPSHOTS = Path(__file__).parent / "snapshots"
NOBODY = 50000 + os.getpid() % 10000


@pytest.fixture
def plain(make_shop: MakeShop) -> Shop:
    """A shop that has changed since its backup BACKUP was made."""
    return with_backup(make_shop("sqlite"))


def with_backup(shop: Shop) -> Shop:
    """The shop with a backup of a fixed name, changed since."""
    shop.back_up_then_change()
    return shop


def normalised(text: str, shop: Shop) -> str:
    """The text without what differs from one machine, or one moment, to the next."""
    text = text.replace("\r\n", "\n").replace(str(shop.path), "/srv/shopbot")
    text = re.sub(r"^⚠️  cannot tell whether .*\n", "", text, flags=re.MULTILINE)  # even root may not look at pid 1
    for pattern, replacement in (
        (r"\b[0-9A-F]{16}\b", "0123456789ABCDEF"),
        (r"\b[0-9A-F]{4}…[0-9A-F]{4}\b", "0123…CDEF"),
        (r"(?<=:\d\d) \S+, [\d,]+ days ago", " UTC, 662 days ago"),
        (r" \(\d+\.\d s\)", ""),
        (r"\(pid \d+\)", "(pid 4711)"),
        (r"\(kill \d+\)", "(kill 4711)"),
        (re.escape(shop.path.name), "shopbot"),
        (r"\b\d+ processes\b", "100 processes"),
        (re.escape(sys.executable), "python"),
        (r"apt-get install python3-venv, as root, and then ", ""),  # where the package is missing
        (r"(?<=--passphrase-fd )\d+", "3"),
        (r"(?<=in use by ).*(?= \(pid)", "python bot.py"),
        (r"(?<=Docker cannot be reached: )[\s\S]*?(?=\n   )", "<what docker says>"),
        (r"\d+(\.\d+)? (kB|MB)", "N kB"),
    ):
        text = re.sub(pattern, replacement, text)
    return text


def restore(shop: Shop, *args: object, **options: Any) -> Completed:
    """A restore as people read it."""
    return shop.restore(*args, as_json=False, **options)


def judge(name: str, done: Completed, shop: Shop, code: int) -> None:
    """What was printed is what the snapshot holds; nothing was touched."""
    assert done.code == code, done.text
    shown = f"{normalised(done.text, shop)}[exit code {done.code}]\n"
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")
    assert not shop.is_restored(), "the database was restored"


def test_wrong_file(plain: Shop, keys: Keys) -> None:
    """A file that lies about and is no backup."""
    (plain.path / "notes.txt").write_text("Call the provider about the disk. " * 50)
    judge("wrong_file", restore(plain, "notes.txt", "--force", key=keys.rsa), plain, 5)


def test_mistyped_file(plain: Shop, keys: Keys) -> None:
    judge("mistyped_file", restore(plain, "backups/db_backup_20250131.gpg", "--force", key=keys.rsa), plain, 3)


def test_wrong_passphrase(plain: Shop, keys: Keys) -> None:
    command = ["--key-stdin", "--passphrase-command", "echo wrong"]
    done = restore(plain, BACKUP, "--force", *command, stdin=keys.rsa.private_b64.encode())
    judge("wrong_passphrase", done, plain, 4)


@pytest.mark.needs("root")
def test_wrong_passphrase_typed_three_times(plain: Shop, keys: Keys, terminal: StartTerminal) -> None:
    stdin = filled_pipe(keys.rsa.private_b64.encode())
    try:
        started = terminal(plain, BACKUP, "--key-stdin", stdin=stdin)
    finally:
        os.close(stdin)
    for _ in range(3):
        started.expect("Passphrase of the private key: ")
        started.send("wrong\n")
    code = started.wait()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|.*\r(?!\n)", "", started.output)
    shown = re.sub(r"^.*Decrypting backup.*\n", "", shown, flags=re.MULTILINE)  # progress, gone from the screen
    judge("wrong_passphrase_typed", Completed(code, shown, ""), plain, 4)


def test_wrong_key(plain: Shop, keys: Keys) -> None:
    judge("wrong_key", restore(plain, BACKUP, "--force", key=keys.other), plain, 4)


def test_public_key_in_place_of_the_private_one(plain: Shop, keys: Keys) -> None:
    done = restore(plain, BACKUP, "--force", "--key-stdin", stdin=keys.rsa.public_b64.encode())
    judge("public_key", done, plain, 4)


def test_no_terminal(plain: Shop) -> None:
    """ssh without -t."""
    judge("no_terminal", restore(plain, BACKUP), plain, 3)


@pytest.mark.needs("root", "docker")
def test_not_in_the_docker_group(make_shop: MakeShop, keys: Keys, tmp_path: Path) -> None:
    """The engine's socket is there, and not for this user."""
    shop = with_backup(make_shop("sqlite", RUNTIME_ENVIRONMENT="PROD"))
    (shop.path / "docker-compose.prod.yml").write_text("services:\n  bot:\n    image: shopbot\n")
    for path in (shop.path, *shop.path.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    for path in (tmp_path, *tmp_path.parents):
        path.chmod(path.stat().st_mode | 0o011)
    with engine_socket() as address:
        become = ["env", "--unset=HOME", "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        options = ("--force", "--allow-swap")
        done = restore(shop, BACKUP, *options, key=keys.rsa, wrapper=become, env={"DOCKER_HOST": f"unix://{address}"})
    judge("no_docker_group", done, shop, 3)


@contextmanager
def engine_socket() -> Iterator[str]:
    """A socket as Docker's is: of root, and of nobody else."""
    address = f"/run/docker-{os.getpid()}.sock"
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(address)
        os.chmod(address, 0o660)
        try:
            server.listen()
            yield address
        finally:
            os.unlink(address)


@pytest.fixture
def full_disk() -> Iterator[list[Path]]:
    """Folders appended here are unmounted afterwards."""
    mounted: list[Path] = []
    yield mounted
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path, room: int, mounted: list[Path]) -> None:
    """Put a disk over the folder that holds the same files and so many bytes more."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    size = sum(-(-len(content) // 4096) * 4096 for content in files.values()) + room
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    mounted.append(folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.needs("root", "mount")
def test_disk_full(plain: Shop, keys: Keys, full_disk: list[Path]) -> None:
    fill(plain.db_path.parent, 16384, full_disk)
    judge("disk_full", restore(plain, BACKUP, "--force", key=keys.rsa), plain, 3)


@pytest.mark.needs("root", "mount")
def test_disk_of_the_backups_full(plain: Shop, keys: Keys, full_disk: list[Path]) -> None:
    fill(plain.backups, 16384, full_disk)
    judge("disk_of_backups_full", restore(plain, BACKUP, "--force", key=keys.rsa), plain, 6)


def test_bot_started_by_hand(plain: Shop, keys: Keys) -> None:
    with plain.held_open():
        judge("bot_started_by_hand", restore(plain, BACKUP, "--force", key=keys.rsa), plain, 3)


def test_wrong_folder(plain: Shop) -> None:
    """Called from one folder above: paths on the command line are relative to that."""
    done = subprocess.run(
        [sys.executable, f"{plain.path.name}/restore_backup.py", BACKUP, "--force"],
        cwd=plain.path.parent,
        env=plain.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        start_new_session=True,
    )
    outside = Completed(done.returncode, "", (done.stdout + done.stderr).replace(str(plain.path.parent), "/srv"))
    judge("wrong_folder", outside, plain, 3)


def test_no_env_file(plain: Shop, keys: Keys) -> None:
    (plain.path / ".env").unlink()
    judge("no_env_file", restore(plain, BACKUP, "--force", key=keys.rsa), plain, 3)


def test_python_without_the_packages(plain: Shop, keys: Keys) -> None:
    """The virtual environment was not activated."""
    command = [sys.executable, "-S", "restore_backup.py", BACKUP, "--force"]
    options: dict[str, Any] = {"cwd": plain.path, "env": plain.environment(), "stdin": subprocess.DEVNULL}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False, **options)
    judge("no_packages", Completed(done.returncode, done.stdout, done.stderr), plain, 3)
    command = [sys.executable, "-S", "database_backup.py", "create"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False, **options)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr


def test_backup_from_before_encryption_was_switched_on(make_shop: MakeShop, keys: Keys) -> None:
    """The oldest backups hold plain SQLite."""
    old = make_shop("sqlite").create_backup()
    shop = make_shop("sqlcipher")
    shop.change_data()
    shutil.copy(old, shop.path / BACKUP)
    judge("backup_from_before_encryption", restore(shop, BACKUP, "--force", key=keys.rsa), shop, 5)


def test_encryption_lost_from_the_env_file(make_shop: MakeShop, keys: Keys) -> None:
    shop = with_backup(make_shop("sqlcipher"))
    shop.write_env(DB_ENCRYPTION=None)
    judge("encryption_lost", restore(shop, BACKUP, "--force", key=keys.rsa), shop, 3)


def test_encryption_that_the_bot_would_not_see(plain: Shop, keys: Keys) -> None:
    plain.write_env(DB_ENCRYPTION="True", DB_PASS="secret")
    judge("encryption_misspelt", restore(plain, BACKUP, "--force", key=keys.rsa), plain, 3)


def test_backup_of_an_older_sqlcipher(make_shop: MakeShop) -> None:
    """SQLCipher 3: its files look like noise to version 4."""
    from sqlcipher3 import dbapi2

    shop = make_shop("sqlcipher")
    shop.change_data()
    old = "backups/db_backup_20250130_120000.db"
    with closing(dbapi2.connect(str(shop.path / old), isolation_level=None)) as connection:
        connection.execute("PRAGMA key = '" + DB_PASS.replace("'", "''") + "'")
        connection.execute("PRAGMA cipher_compatibility = 3")
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    judge("backup_of_an_older_sqlcipher", restore(shop, old, "--force"), shop, 5)
