"""Backups that are chosen by their time: --at, latest, --from, and what follows on one that has a fault."""

import gzip
import hashlib
import os
from pathlib import Path

import pytest

from backuplib.errors import UsageError
from restore_backup import parse
from tests.conftest import MakeShop, StartTerminal
from tests.support.keys import GpgHome, Keys
from tests.support.shop import Shop, everything, filled_pipe
from tests.support.terminal import PASSPHRASE, PASTE, wait_for_quiet

TIMES = ("20250128_120000", "20250129_120000", "20250130_120000")


def backups_of(shop: Shop, suffix: str) -> list[Path]:
    """Three backups of the same rows, at noon on three days, and rows that have changed since."""
    made = shop.create_backup()
    content = made.read_bytes()
    made.unlink()
    Path(f"{made}.sha256").unlink()
    found = [put(shop.backups / f"db_backup_{time}{suffix}", content) for time in TIMES]
    shop.change_data()
    return found


def put(path: Path, content: bytes) -> Path:
    """A backup with a checksum that is right."""
    path.write_bytes(content)
    Path(f"{path}.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
    return path


@pytest.fixture
def plain(make_shop: MakeShop) -> tuple[Shop, list[Path]]:
    """A shop whose backups are not encrypted, and three of them; the clock of the host has UTC."""
    shop = make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None)
    shop.env["TZ"] = "UTC"
    return shop, backups_of(shop, ".db.gz")


def test_newest_backup_until_a_moment_is_restored_and_told_with_its_neighbours(plain: tuple[Shop, list[Path]]) -> None:
    shop, (older, chosen, newer) = plain
    done = shop.restore("--force", "--at", "2025-01-30 11:59")
    assert done.code == 0, done.text
    assert shop.is_restored()
    assert done.report["backup"] == str(chosen)
    lines = [line for line in done.err.splitlines() if "2025-01-" in line]
    assert f"until 2025-01-30 11:59:00 UTC is {chosen.name}, made 2025-01-29 12:00:00 UTC" in lines[0]
    assert older.name in lines[1]
    assert newer.name in lines[2]


@pytest.mark.parametrize(
    "args",
    [
        ["--at", "noon"],
        ["--at", ""],
        ["--at", "now", "backup.db.gz"],
        ["--at", "now", "latest"],
        *(["--at", "now", instead] for instead in ("--list", "--check", "--recover", "--drill")),
        ["--from", "local", "backup.db.gz"],
        *(["--from", "local", instead] for instead in ("--check", "--recover", "--drill")),
    ],
    ids=" ".join,
)
def test_options_that_contradict_each_other_are_refused(args: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(args)


def test_what_cannot_be_chosen_is_refused_and_touches_nothing(plain: tuple[Shop, list[Path]]) -> None:
    shop, (oldest, *_) = plain
    before = everything(shop)
    for code, error, hint, *args in (
        (3, "backup-not-found", oldest.name, "--at", "2025-01-28 11:59:59"),
        (2, "usage", "2 hours ago", "--at", "noon"),
        (2, "usage", "BACKUP_REMOTES", "--from", "moon:", "latest"),
    ):
        done = shop.restore("--force", *args)
        assert (done.code, done.report["error"]["id"]) == (code, error), done.text
        assert hint in done.report["error"]["hint"]
        assert f"{oldest.name} --at" not in done.report["error"]["hint"]
    assert everything(shop) == before


def test_fault_without_a_terminal_names_the_command_for_the_next_older_one(plain: tuple[Shop, list[Path]]) -> None:
    shop, (_, older, newest) = plain
    newest.write_bytes(newest.read_bytes()[:-100])
    before = everything(shop)
    done = shop.restore("--force", "latest")
    assert (done.code, done.report["error"]["id"]) == (3, "checksum-mismatch"), done.text
    assert "next older one, made 2025-01-29 12:00:00 UTC, that is here: " in done.report["error"]["hint"]
    assert f" {older.relative_to(shop.path)} --force" in done.report["error"]["hint"]
    assert everything(shop) == before
    Path(f"{newest}.sha256").unlink()  # so that it is found when the services would have been stopped
    done = shop.restore("--force", "--stop-first", "--at", "now")
    assert (done.code, done.report["error"]["id"]) == (5, "damaged-gzip"), done.text
    hint = done.report["error"]["hint"]
    assert f" {older.relative_to(shop.path)} --force --stop-first" in hint
    # what was named, and not chosen by its time, has no other in its place
    assert "next older" not in shop.restore("--force", newest).report["error"]["hint"]


def test_fault_on_a_terminal_leads_to_a_question_and_no_is_the_refusal(
    plain: tuple[Shop, list[Path]], terminal: StartTerminal
) -> None:
    shop, (_, older, newest) = plain
    content = bytearray(gzip.decompress(newest.read_bytes()))
    content[3 * 4096 : 5 * 4096] = bytes(2 * 4096)
    put(newest, gzip.compress(content))
    before = everything(shop)
    at = terminal(shop, "--json", "--force", "--at", "2025-01-30")
    at.expect(r"Take the next older one, made 2025-01-29 12:00:00 UTC, that is here\? \[y/N\] ")
    at.send("\n")
    assert at.ended == (5, "damaged-database")
    assert everything(shop) == before
    at = terminal(shop, "--json", "--force", "latest")
    at.expect(r"Take the next older one")
    at.send("y\n")
    assert at.ended == (0, "")
    assert shop.is_restored()
    assert str(older) in at.output.splitlines()[-1]


@pytest.mark.parametrize("piped", [False, pytest.param(True, marks=pytest.mark.long)], ids=["key typed", "key piped"])
def test_key_and_passphrase_are_asked_for_once_for_all_that_are_tried(
    make_shop: MakeShop, terminal: StartTerminal, keys: Keys, gpg: GpgHome, *, piped: bool
) -> None:
    """Two damaged ones, whose checksums match, are left behind: one cut off, one that is no database inside."""
    shop = make_shop("sqlite")
    shop.env["TZ"] = "UTC"
    _, middle, newest = backups_of(shop, ".db.gz.gpg")
    put(newest, newest.read_bytes()[:-100])
    put(middle, gpg.encrypt(gzip.compress(b"no database"), "--recipient", keys.rsa.fingerprint))
    stdin = filled_pipe(keys.rsa.private_b64.encode()) if piped else None
    at = terminal(shop, "--json", "--force", "latest", *["--key-stdin"] * piped, stdin=stdin)
    if stdin is None:
        at.expect(PASTE)
        wait_for_quiet(at)
        at.send(f"{keys.rsa.private_b64}\n")
    else:
        os.close(stdin)
    at.expect(PASSPHRASE)
    wait_for_quiet(at)
    at.send(f"{keys.rsa.passphrase}\n")
    for day in ("29", "28"):
        at.expect(rf"next older one, made 2025-01-{day} 12:00:00 UTC, that is here\? \[y/N\] ")
        at.send("y\n")
    assert at.ended == (0, "")
    assert shop.is_restored()
    assert at.output.count("Paste the private key") == (not piped)
    assert at.output.count("Passphrase of the private key") == 1


def test_wrong_key_is_no_fault_of_the_backup(make_shop: MakeShop, keys: Keys) -> None:
    shop = make_shop("sqlite")
    backups_of(shop, ".db.gz.gpg")
    done = shop.restore("--force", "latest", key=keys.other)
    assert (done.code, done.report["error"]["id"]) == (4, "wrong-key"), done.text
    assert "next older" not in done.report["error"]["hint"]
