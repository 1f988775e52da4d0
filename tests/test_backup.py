"""Backups: consistent while the bot writes, readable with standard tools, encrypted on every way they take."""

import base64
import gzip
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import ONE_MODE, MakeShop
from tests.support.keys import ECC, IN_2020, GpgHome, Key, Keys, gpg_home
from tests.support.shop import DB_PASS, ROOT, Completed, Shop

NAME = re.compile(r"db_backup_\d{8}_\d{6}\.db\.gz\.gpg")
CANARY = "canary-row-" + "0123456789" * 4

BUSY = """
import sys
from tests.support.writer import connect
connection = connect(sys.argv[1], sys.argv[2] or None)
connection.execute("CREATE TABLE debit (id INTEGER PRIMARY KEY, pad TEXT)")
connection.execute("CREATE TABLE credit (id INTEGER PRIMARY KEY, pad TEXT)")
connection.execute("PRAGMA wal_autocheckpoint=50")
print("ready", flush=True)
while True:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO debit (pad) VALUES (hex(randomblob(400)))")
    connection.execute("UPDATE customers SET photo = randomblob(1500) WHERE id = abs(random() % 100)")
    connection.execute("INSERT INTO credit (pad) VALUES (hex(randomblob(400)))")
    connection.execute("COMMIT")
"""


@contextmanager
def busy_writer(shop: Shop) -> Iterator[subprocess.Popen[str]]:
    """A process that meanwhile commits as fast as it can: one row into each of two tables per transaction."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(shop.db_path), shop.passphrase or ""],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
        assert process.poll() is None, "the writer was disturbed"
    finally:
        process.kill()
        process.communicate()


def committed(shop: Shop) -> int:
    """How many transactions the busy writer has committed so far."""
    with closing(shop.connect()) as connection:
        return int(connection.execute("SELECT count(*) FROM credit").fetchone()[0])


def create(shop: Shop, **settings: str) -> Completed:
    """`database_backup.py create`, with these settings in the environment."""
    return shop.run("database_backup.py", "create", env=settings)


def refused(done: Completed, shop: Shop) -> str:
    """What was said of a backup that could not be made, and that left nothing."""
    assert done.code in (3, 6), done.text
    assert done.out == ""
    assert "Traceback" not in done.err
    assert list(shop.backups.iterdir()) == []
    return done.err


# --- content ---------------------------------------------------------------------------------------------------------


def test_every_backup_under_a_busy_writer_is_a_state_that_was_committed(shop: Shop, keys: Keys) -> None:
    with busy_writer(shop):
        made = []
        for _ in range(3):
            before = committed(shop)
            backup = shop.create_backup()
            made.append((before, backup, committed(shop)))
    for before, backup, after in made:
        rows = shop.backup_rows(backup, keys.rsa)
        debit, credit = ([row[0] for row in rows[name]] for name in ("debit", "credit"))
        assert sorted(debit) == sorted(credit) == list(range(1, len(debit) + 1))
        assert before <= len(debit) <= after
        assert len(rows["customers"]) == 100
    assert made[0][2] < made[-1][0], "the writer stood still"


def test_rows_that_only_the_wal_holds_are_in_the_backup_and_the_database_stays_untouched(
    shop: Shop, keys: Keys
) -> None:
    shop.leave_hot_wal()
    rows, before = shop.rows(), shop.snapshot()
    assert len(rows["bot_log"]) == 20
    backup = shop.create_backup()
    assert shop.backup_rows(backup, keys.rsa) == rows
    assert shop.snapshot() == before


def test_half_a_transaction_in_a_hot_journal_is_not_in_the_backup(shop: Shop, keys: Keys) -> None:
    shop.leave_hot_journal()
    rows = shop.rows()
    assert shop.backup_rows(shop.create_backup(), keys.rsa) == rows
    assert shop.rows() == rows


def test_backup_while_the_bot_is_idle_leaves_its_files_alone(shop: Shop, keys: Keys) -> None:
    with shop.held_open():
        before = shop.snapshot()
        backup = shop.create_backup()
        assert shop.snapshot() == before
    assert shop.backup_rows(backup, keys.rsa) == shop.rows()


def test_quiet_database_gets_no_sidecars_and_keeps_its_bytes(shop: Shop) -> None:
    before = shop.snapshot()
    assert list(before) == ["shop.db"]
    shop.create_backup()
    assert shop.snapshot() == before


def test_header_values_survive(shop: Shop, keys: Keys) -> None:
    with closing(shop.connect()) as connection:
        connection.execute("PRAGMA user_version=42")
        connection.execute("PRAGMA application_id=4711")
    backup = shop.create_backup()
    copy = shop.path / "copy.db"
    copy.write_bytes(shop.decrypted(backup, keys.rsa))
    with closing(shop.connect(copy)) as connection:
        values = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")]
        assert [int(value) for value in values] == [42, 4711]
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


# --- standard tools --------------------------------------------------------------------------------------------------


@ONE_MODE
def test_sha256sum_accepts_the_checksum_and_notices_a_change(shop: Shop) -> None:
    backup = shop.create_backup()
    assert shop.sha256sum_accepts(backup)
    content = bytearray(backup.read_bytes())
    content[len(content) // 2] ^= 1
    backup.write_bytes(content)
    assert not shop.sha256sum_accepts(backup)


def pipeline(home: GpgHome, backup: Path, database: Path, key: Key) -> str:
    """The commands of somebody who has lost this program."""
    commands = (
        'gpg --homedir "$1" --batch --pinentry-mode loopback --passphrase-fd 0 -d "$2" | gunzip > "$3" && '
        'sqlite3 "$3" "PRAGMA integrity_check; SELECT count(*) FROM customers; SELECT sum(total) FROM orders"'
    )
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", commands, "bash", home.path, backup, database],
        input=key.passphrase,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


@pytest.mark.needs("sqlite3")
def test_gpg_gunzip_and_sqlite3_read_the_backup(make_shop: MakeShop, keys: Keys) -> None:
    shop = make_shop("sqlite")
    backup = shop.create_backup()
    with gpg_home() as home:
        home.run("--import", stdin=keys.rsa.private_binary)
        assert pipeline(home, backup, shop.path / "by-hand.db", keys.rsa) == "ok\n100\n56437.5\n"


def test_sqlcipher_stays_sqlcipher_in_the_backup(make_shop: MakeShop, keys: Keys) -> None:
    shop = make_shop("sqlcipher")
    with closing(shop.connect()) as connection:
        connection.execute("INSERT INTO customers (name) VALUES (?)", (CANARY,))
    content = shop.decrypted(shop.create_backup(), keys.rsa)
    assert not content.startswith(b"SQLite format 3")
    assert CANARY.encode() not in content
    copy = shop.path / "copy.db"
    copy.write_bytes(content)
    with closing(sqlite3.connect(copy)) as connection, pytest.raises(sqlite3.DatabaseError, match="not a database"):
        connection.execute("SELECT * FROM customers")
    assert shop.rows_in_place(copy) == shop.rows()


# --- files and names -------------------------------------------------------------------------------------------------


def test_command_prints_the_path_alone_and_files_are_0600_under_any_umask(shop: Shop) -> None:
    done = shop.run("database_backup.py", "create", wrapper=("sh", "-c", 'umask 0; exec "$@"', "sh"))
    assert done.code == 0, done.text
    backup = Path(done.out.removesuffix("\n"))
    assert backup.parent == shop.backups
    assert NAME.fullmatch(backup.name)
    assert {path.name: path.stat().st_mode & 0o777 for path in shop.backups.iterdir()} == {
        backup.name: 0o600,
        f"{backup.name}.sha256": 0o600,
    }
    checksum, signature = (shop.backups / f"{backup.name}.sha256").read_text().splitlines()
    assert checksum == f"{digest(backup)}  {backup.name}"
    assert signature.startswith("# signature: ")


@ONE_MODE
@pytest.mark.parametrize("to", [">&-", ">/dev/full", "| true", "2>&1 | true"])
def test_output_that_nobody_gets_does_not_change_how_a_command_ends(shop: Shop, to: str) -> None:
    silent = ("bash", "-c", f'"$@" {to}; exit ${{PIPESTATUS[0]}}', "bash")
    done = shop.run("database_backup.py", "create", wrapper=silent)
    assert (done.code, done.out) == (0, "")
    assert done.err.count("\n") == (not to.startswith("2"))  # who can open it
    assert len(list(shop.backups.glob("*.sha256"))) == 1
    assert shop.run("database_backup.py", "list", wrapper=silent).code == 0
    assert shop.run("database_backup.py", "verify", "no-such-file", wrapper=silent).code == 3


def digest(path: Path) -> str:
    """SHA-256 by the real tool."""
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True, timeout=30).stdout[:64]


@ONE_MODE
def test_backups_made_in_the_same_second_do_not_collide(shop: Shop, keys: Keys) -> None:
    running = [shop.start("database_backup.py", "create") for _ in range(3)]
    outcomes = [(process, *process.communicate(timeout=60)) for process in running]
    assert [process.returncode for process, _, _ in outcomes] == [0, 0, 0], outcomes
    made = {Path(out.strip()) for _, out, _ in outcomes}
    assert len(made) == 3
    assert {path.name for path in shop.backups.iterdir()} == {
        name for path in made for name in (path.name, f"{path.name}.sha256")
    }
    rows = shop.rows()
    for backup in made:
        assert NAME.fullmatch(backup.name)
        assert shop.sha256sum_accepts(backup)
        assert shop.backup_rows(backup, keys.rsa) == rows


def test_backup_folder_is_made_when_absent(make_shop: MakeShop, keys: Keys) -> None:
    shop = make_shop("sqlite", DB_BACKUP_PATH="kept ü")
    shop.backups.rmdir()
    assert shop.backup_rows(shop.create_backup(), keys.rsa) == shop.rows()


def test_without_compression_the_database_file_itself_is_in_the_backup(shop: Shop, keys: Keys) -> None:
    code = (
        "from database_backup import DatabaseBackup; "
        "print(DatabaseBackup('data/shop.db', 'backups').create_backup(compress=False))"
    )
    for public_key, suffix, key in ((keys.open.public_b64, ".db.gpg", keys.open), ("", ".db", None)):
        done = shop.run("-c", code, env={"PGP_PUBLIC_KEY_BASE64": public_key})
        assert done.code == 0, done.text
        backup = Path(done.out.strip())
        assert re.fullmatch(rf"db_backup_\d{{8}}_\d{{6}}{re.escape(suffix)}", backup.name)
        assert shop.sha256sum_accepts(backup)
        copy = shop.path / "copy.db"
        copy.write_bytes(decrypted(backup, key))
        assert shop.rows_in_place(copy) == shop.rows()
        copy.unlink()


def decrypted(backup: Path, key: Key | None) -> bytes:
    """A backup's content, which is not compressed."""
    if key is None:
        return backup.read_bytes()
    with gpg_home() as home:
        home.run("--import", stdin=key.private_binary)
        return home.run("--decrypt", str(backup))


def test_without_public_key_the_backup_is_gzipped_private_and_warned_about(shop: Shop) -> None:
    shop.write_env(PGP_PUBLIC_KEY_BASE64=None)
    done = create(shop)
    assert done.code == 0
    assert "PGP_PUBLIC_KEY_BASE64" in done.err
    backup = Path(done.out.strip())
    assert re.fullmatch(r"db_backup_\d{8}_\d{6}\.db\.gz", backup.name)
    assert backup.stat().st_mode & 0o777 == 0o600
    assert shop.backup_rows(backup, None) == shop.rows()


# --- cut off ---------------------------------------------------------------------------------------------------------


@ONE_MODE
@pytest.mark.deep
@pytest.mark.needs("strace")
@pytest.mark.parametrize("call", ["fsync:when=1", "fsync:when=2", "link:when=1", "link:when=2", "fsync:when=3"])
def test_killed_backup_is_whole_or_absent_and_the_next_one_clears_up(shop: Shop, keys: Keys, call: str) -> None:
    name, when = call.split(":")
    # Without -f: the calls of the program alone, not those of gpg.
    inject = ("strace", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e")
    killed = shop.run("database_backup.py", "create", wrapper=(*inject, f"inject={name}:signal=SIGKILL:{when}"))
    assert killed.code in (-9, 137), killed.text
    left = {path.name for path in shop.backups.iterdir()}
    assert left, "the kill came too early to leave anything"
    if call.startswith("fsync:") and call != "fsync:when=3":
        assert not any(name.startswith("db_backup_") for name in left)
    for name in filter(NAME.fullmatch, left):
        assert shop.sha256sum_accepts(shop.backups / name)
    backup = shop.create_backup()
    names = {path.name for path in shop.backups.iterdir()}
    whole = {name for name in names if NAME.fullmatch(name)}
    assert {backup.name} <= whole
    assert names == whole | {f"{name}.sha256" for name in whole}
    for name in whole:
        assert shop.backup_rows(shop.backups / name, keys.rsa) == shop.rows()
        assert shop.sha256sum_accepts(shop.backups / name)


@ONE_MODE
@pytest.mark.needs("strace")
def test_clearing_up_spares_the_backup_that_another_process_is_making(shop: Shop, keys: Keys) -> None:
    slow = (
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=fsync",
        "-e",
        "inject=fsync:delay_enter=2000000:when=1",
    )
    first = shop.start("database_backup.py", "create", wrapper=slow)
    deadline = time.monotonic() + 20
    while not list(shop.backups.glob(".*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    second = shop.create_backup()
    assert first.poll() is None, "the first one was not slow enough to be met"
    out, err = first.communicate(timeout=30)
    assert first.returncode == 0, err
    for backup in (Path(out.strip()), second):
        assert shop.backup_rows(backup, keys.rsa) == shop.rows()


# --- secrets ---------------------------------------------------------------------------------------------------------


@ONE_MODE
def test_own_keyring_is_neither_read_nor_written(shop: Shop) -> None:
    home = Path(shop.environment()["HOME"], ".gnupg")
    other = shop.path.parent / "other-home"
    for folder in (home, other):
        folder.mkdir(mode=0o700)
        (folder / "gpg.conf").write_text("no-such-option\n")  # whoever reads it fails
        (folder / "gpg-agent.conf").write_text("no-such-option\n")
    before = [(path, path.stat().st_mtime_ns) for folder in (home, other) for path in [folder, *folder.rglob("*")]]
    done = create(shop, GNUPGHOME=str(other))
    assert done.code == 0, done.text
    after = [(path, path.stat().st_mtime_ns) for folder in (home, other) for path in [folder, *folder.rglob("*")]]
    assert after == before


# --- refused ---------------------------------------------------------------------------------------------------------


def test_wrong_database_passphrase_is_refused_by_name(make_shop: MakeShop) -> None:
    shop = make_shop("sqlcipher")
    before = shop.snapshot()
    assert "DB_PASS" in refused(create(shop, DB_PASS="wrong"), shop)
    assert shop.snapshot() == before


def test_mode_that_is_not_the_databases_is_refused_by_name(make_shop: MakeShop) -> None:
    assert "DB_ENCRYPTION" in refused(create(shop := make_shop("sqlite"), DB_ENCRYPTION="true", DB_PASS=DB_PASS), shop)
    assert "DB_ENCRYPTION" in refused(create(shop := make_shop("sqlcipher"), DB_ENCRYPTION="false"), shop)


@ONE_MODE
def test_missing_database_is_refused_and_not_created(shop: Shop) -> None:
    shop.db_path.unlink()
    assert str(shop.db_path) in refused(create(shop), shop)
    assert list(shop.db_path.parent.iterdir()) == []


@ONE_MODE
def test_missing_data_folder_is_refused_by_name(shop: Shop) -> None:
    said = refused(create(shop, DATA_DIR="nowhere"), shop)
    assert "nowhere" in said
    assert "DATA_DIR" in said


def test_what_is_no_public_key_is_refused_by_name(make_shop: MakeShop, keys: Keys) -> None:
    shop = make_shop("sqlite")
    for value in (keys.open.private_b64, "bm90IGEga2V5"):
        said = refused(create(shop, PGP_PUBLIC_KEY_BASE64=value), shop)
        assert "PGP_PUBLIC_KEY_BASE64" in said
        assert ("PRIVATE" in said) == (value == keys.open.private_b64)
        assert value not in said


@ONE_MODE
def test_backup_folder_that_is_a_file_is_refused_by_name(shop: Shop) -> None:
    shop.backups.rmdir()
    shop.backups.write_text("in the way")
    done = create(shop)
    assert done.code in (3, 6)
    assert str(shop.backups) in done.err
    assert "Traceback" not in done.err


# --- if changed ------------------------------------------------------------------------------------------------------


def test_create_if_changed_makes_no_backup_of_what_it_has_and_one_of_what_was_written(shop: Shop) -> None:
    """While the bot has it open, and just after a write."""
    with closing(shop.connect()) as bot:
        bot.execute("PRAGMA journal_mode=WAL")
    with shop.held_open():
        shop.change_data()
        shop.backups.rmdir()  # the first one makes it
        first = shop.create_backup()
        names = sorted(shop.backups.iterdir())
        told, silent = (shop.run("database_backup.py", "create", "--if-changed", *more) for more in ((), ("--quiet",)))
        assert (told.code, told.out, silent.code, silent.text) == (0, "", 0, "")
        assert f"Nothing was written since backups/{first.name}" in told.err
        assert sorted(shop.backups.iterdir()) == names
        with closing(shop.connect()) as bot:
            bot.execute("UPDATE customers SET name = 'changed' WHERE id = 1")
        done = shop.run("database_backup.py", "create", "--if-changed")
        assert done.code == 0, done.text
        assert Path(done.out.strip()) not in names
    again = shop.run("database_backup.py", "create", "--if-changed", env={"PGP_PUBLIC_KEY_BASE64": ""})
    assert again.out.endswith(".db.gz\n"), again.text


# --- list, verify, prune ---------------------------------------------------------------------------------------------


@ONE_MODE
def test_list_shows_newest_first_with_size_encryption_and_checksum(shop: Shop) -> None:
    plain = Path(create(shop, PGP_PUBLIC_KEY_BASE64="").out.strip())
    encrypted, damaged, bare = (shop.create_backup() for _ in range(3))
    damaged.write_bytes(b"damaged")
    Path(f"{bare}.sha256").unlink()
    (shop.backups / "notes.txt").touch()
    done = shop.run("database_backup.py", "list")
    assert done.code == 0
    _, heading, *lines = done.out.splitlines()
    assert heading.split()[2:] == ["age", "size", "checksum", "name"]
    for path, line in zip((bare, damaged, encrypted, plain), lines, strict=False):
        assert line.endswith(path.name)
        made = datetime.strptime(path.name[10:25], "%Y%m%d_%H%M%S").astimezone()
        assert line.startswith(f"{made:%Y-%m-%d %H:%M} ")
    assert ["PLAIN" in line for line in lines[:4]] == [False, False, False, True]
    assert [line.split()[-2] for line in lines[:4]] == ["none", "MISMATCH", "ok", "ok"]
    assert "opened by key ID" in lines[4]
    lines = lines[:4]
    assert all(re.search(r"\d (kB|bytes)", line) for line in lines)


def test_create_names_who_can_open_it_and_the_list_shows_that(shop: Shop, gpg: GpgHome, keys: Keys) -> None:
    both = gpg.run("--export", keys.rsa.fingerprint, keys.other.fingerprint)
    done = create(shop, PGP_PUBLIC_KEY_BASE64=base64.b64encode(both).decode())
    ids = re.findall(r"key ID ([0-9A-F]{16}): (\w+)", done.err)
    assert [name for _, name in ids] == ["shop", "other"]
    copy = shop.backups / "from the bot's host.asc"
    copy.write_bytes(gpg.encrypt(b"x", "--armor", "--recipient", keys.open.fingerprint))
    listed = {
        Path(item["path"]).name: item for item in shop.run("restore_backup.py", "--list", "--json").report["backups"]
    }
    assert listed[Path(done.out.strip()).name]["key_ids"] == [key_id for key_id, _ in ids]
    assert listed[copy.name]["encrypted"]
    assert len(listed[copy.name]["key_ids"]) == 1


@pytest.mark.parametrize("state", ["expired", "revoked", "cannot encrypt"])
def test_public_key_that_cannot_encrypt_is_refused_by_name(shop: Shop, state: str) -> None:
    with gpg_home() as home:
        if state == "expired":
            key = home.generate(ECC, "gone", None, "Expire-Date: 30d\n", IN_2020)
        elif state == "revoked":
            key = home.generate(ECC, "gone", None)
            revocation = (home.path / f"openpgp-revocs.d/{key.fingerprint}.rev").read_text()
            home.run("--import", stdin=revocation.replace(":-----BEGIN", "-----BEGIN").encode())
            key = home.export("gone", None)
        else:
            key = home.generate("Key-Type: EDDSA\nKey-Curve: ed25519\nKey-Usage: sign\n", "gone", None)
    before = shop.snapshot()
    done = create(shop, PGP_PUBLIC_KEY_BASE64=key.public_b64)
    assert done.code == 3, done.text
    assert key.fingerprint[-16:] in done.err
    assert {"cannot encrypt": "no part that encrypts"}.get(state, state) in done.err
    assert shop.snapshot() == before


def test_verify_says_how_far_it_went(shop: Shop) -> None:
    encrypted = shop.create_backup()
    done = shop.run("database_backup.py", "verify", encrypted)
    assert (done.code, "checksum ok" in done.out, "key" in done.out) == (0, True, True)
    plain = Path(create(shop, PGP_PUBLIC_KEY_BASE64="").out.strip())
    done = shop.run("database_backup.py", "verify", plain)
    assert (done.code, "checksum ok" in done.out, "4 tables" in done.out) == (0, True, True)
    Path(f"{plain}.sha256").unlink()
    done = shop.run("database_backup.py", "verify", plain)
    assert (done.code, "no checksum" in done.out) == (0, True)


def test_verify_reads_uncompressed_backups_too(shop: Shop) -> None:
    code = "from database_backup import DatabaseBackup as B; print(B('data/shop.db', 'backups').create_backup(False))"
    backup = Path(shop.run("-c", code, env={"PGP_PUBLIC_KEY_BASE64": ""}).out.strip())
    done = shop.run("database_backup.py", "verify", backup)
    assert (done.code, "4 tables" in done.out) == (0, True), done.text


def test_verify_refuses_damaged_missing_and_unsound_backups(shop: Shop) -> None:
    backup = Path(create(shop, PGP_PUBLIC_KEY_BASE64="").out.strip())
    good = backup.read_bytes()
    backup.write_bytes(good[:-100])
    done = shop.run("database_backup.py", "verify", backup)
    assert (done.code, backup.name in done.err) == (3, True), done.text
    Path(f"{backup}.sha256").unlink()
    done = shop.run("database_backup.py", "verify", backup)
    assert done.code == 5, done.text
    backup.write_bytes(gzip.compress(os.urandom(8192)))
    done = shop.run("database_backup.py", "verify", backup)
    assert done.code == 5, done.text
    assert "restore_backup.py --verify-only" in done.err  # which knows what older versions of the bot made
    done = shop.run("database_backup.py", "verify", "backups/missing.db.gz")
    assert (done.code, "missing.db.gz" in done.err) == (3, True), done.text


def backup_of(shop: Shop, days_ago: float) -> Path:
    """A file that counts as a backup of that day, with its checksum."""
    day = datetime.now().astimezone() - timedelta(days=days_ago)
    path = shop.backups / f"db_backup_{day:%Y%m%d_%H%M%S}.db.gz.gpg"
    path.write_bytes(b"backup")
    Path(f"{path}.sha256").write_text("0" * 64 + f"  {path.name}\n")
    return path


def test_prune_removes_what_is_older_than_the_retention_and_nothing_else(make_shop: MakeShop) -> None:
    shop = make_shop("sqlite", DB_BACKUP_RETENTION_DAYS="30")
    kept = [backup_of(shop, days) for days in (0.5, 29)]
    old = [backup_of(shop, days) for days in (31, 400)]
    notes = shop.backups / "db_backup_notes.txt"
    notes.touch()
    done = shop.run("database_backup.py", "prune")
    assert done.code == 0
    assert all(path.name in done.out for path in old)
    assert {path.name for path in shop.backups.iterdir()} == {
        notes.name,
        *(name for path in kept for name in (path.name, f"{path.name}.sha256")),
    }


def test_prune_always_keeps_the_newest_backup(make_shop: MakeShop) -> None:
    shop = make_shop("sqlite")
    newest, older = backup_of(shop, 100), backup_of(shop, 200)
    assert shop.run("database_backup.py", "prune").code == 0
    assert newest.exists()
    assert not older.exists()


def test_prune_keeps_what_the_policy_names_and_says_why(make_shop: MakeShop) -> None:
    shop = make_shop("sqlite", BACKUP_KEEP="last=1 yearly=2")
    newest, older, oldest = backup_of(shop, 100), backup_of(shop, 100.0001), backup_of(shop, 900)
    tried = shop.run("database_backup.py", "prune", "--dry-run")
    done = shop.run("database_backup.py", "prune")
    assert (tried.code, tried.err, done.code, done.err) == (0, "", 0, "")
    assert tried.out.replace("would remove", "removed") == done.out
    head, *lines = done.out.splitlines()
    assert head.startswith("keeping last=1 yearly=2; times are ")
    assert lines == [
        f"kept {newest}: newest, last, yearly {newest.name[10:14]}",
        f"kept {oldest}: yearly {oldest.name[10:14]}",
        f"removed {older}",
    ]
    assert {path.suffix for path in shop.backups.iterdir() if path.name.startswith(newest.name)} == {".gpg", ".sha256"}
    assert older not in shop.backups.iterdir()
    assert shop.run("database_backup.py", "prune").out.splitlines()[1:] == lines[:2]
    refused = shop.run("database_backup.py", "prune", env={"BACKUP_KEEP": "daily=14 days=3"})
    assert refused.code == 3
    assert "BACKUP_KEEP is 'daily=14 days=3'" in refused.err
    assert newest.exists()


def test_usage_error_is_2(make_shop: MakeShop) -> None:
    shop = make_shop("sqlite")
    assert [shop.run("database_backup.py", *args).code for args in ((), ("nonsense",), ("verify",))] == [2, 2, 2]
