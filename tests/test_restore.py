"""Restores that succeed: every way to give the key, every form of a backup, every state of the old database."""

import gzip
import hashlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import pytest
from sqlcipher3 import dbapi2 as sqlcipher

from backuplib import proofs
from backuplib.backup_file import HEAD
from backuplib.files import CHUNK
from tests.conftest import ONE_MODE, MakeShop
from tests.support.keys import GpgHome, Key, Keys
from tests.support.shop import DB_PASS, Completed, FileState, Shop

DONE = "✅ Database restored successfully"


def encrypted(gpg: GpgHome, key: Key, content: bytes, *options: str) -> bytes:
    """A message by the real gpg."""
    return gpg.encrypt(content, "--recipient", key.fingerprint, *options)


def saved(shop: Shop) -> list[Path]:
    """The backups in the backup folder, oldest first."""
    return sorted(path for path in shop.backups.glob("db_backup_*") if path.suffix != ".sha256")


def restored(done: Completed, shop: Shop, database: bytes) -> None:
    """The run was a success, the database is the backup's to the byte, and nothing else is left beside it."""
    assert done.code == 0, done.text
    assert DONE in done.text
    assert shop.db_path.read_bytes() == database
    assert [path.name for path in shop.db_path.parent.iterdir()] == [shop.db_path.name]


def tree(folder: Path) -> dict[str, FileState]:
    """Everything below a folder, the compiled program apart."""
    return {
        str(path.relative_to(folder)): FileState.of(path)
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def write_backup(shop: Shop, name: str, content: bytes) -> Path:
    """A file in the backup folder."""
    path = shop.backups / name
    path.write_bytes(content)
    return path


# --- the whole of it -------------------------------------------------------------------------------------------------


def test_restore_brings_back_every_row_and_the_undo_brings_back_what_was_there(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    database, then = shop.decrypted(backup, keys.rsa), shop.rows()
    shop.change_data()
    changed = shop.rows()
    assert changed != then
    restored(shop.restore(backup, "--force", key=keys.rsa), shop, database)
    assert shop.rows() == then
    backups = saved(shop)
    assert len(backups) == 2
    undo = backups[-1]
    assert shop.backup_rows(undo, keys.rsa) == changed
    done = shop.restore(undo, "--force", key=keys.rsa)
    assert done.code == 0, done.text
    assert shop.rows() == changed


def test_run_reads_as_in_the_contract(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    done = shop.restore(backup, "--force", key=keys.rsa, as_json=False)
    said = done.err + done.out
    expected = (
        "✅ Checksum verified",
        r"🔓 Decrypting backup\.\.\. +✅ key [0-9A-F]{4}…[0-9A-F]{4}",
        r"📦 Decompressing\.\.\. +✅ \d+ kB",
        r"🔎 Integrity check\.\.\. +✅ ok, 4 tables",
        r"✅ Pre-restore backup created: backups/db_backup_\d{8}_\d{6}\.db\.gz\.gpg",
        r"⚙️  Swapping\.\.\. +✅ old database set aside: data/shop\.db\.backup-\d{8}-\d{6}",
        DONE,
    )
    for pattern in expected:
        assert re.search(f"^{pattern}", said, re.MULTILINE), pattern
    assert DONE in done.out
    fingerprint = keys.rsa.fingerprint
    assert f"key {fingerprint[:4]}…{fingerprint[-4:]}" in said
    assert "\x1b" not in said, "no terminal: plain lines"


def test_header_values_survive(shop: Shop, keys: Keys) -> None:
    with closing(shop.connect()) as connection:
        connection.execute("PRAGMA user_version=42")
        connection.execute("PRAGMA application_id=4711")
    backup = shop.create_backup()
    shop.change_data()
    with closing(shop.connect()) as connection:
        connection.execute("PRAGMA user_version=43")
    done = shop.restore(backup, "--force", key=keys.rsa)
    assert done.code == 0, done.text
    with closing(shop.connect()) as connection:
        names = ("user_version", "application_id")
        assert [str(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in names] == ["42", "4711"]


def set_journal_mode(shop: Shop, path: Path, mode: str) -> None:
    with closing(shop.connect(path)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS t (a)")
        connection.execute(f"PRAGMA journal_mode={mode}")


def journal_mode(shop: Shop) -> str:
    with closing(shop.connect()) as connection:
        connection.execute("SELECT count(*) FROM t").fetchone()
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


@pytest.mark.parametrize("live", ["delete", "wal", "wal, in use until it was killed", "empty", "unreadable", "absent"])
def test_journal_mode_is_that_of_the_database_that_is_replaced(live: str, make_shop: MakeShop, mode: str) -> None:
    """Without one: that of the backup; a dump has none, and gets what the bot would have made."""
    shop = make_shop(mode, PGP_PUBLIC_KEY_BASE64=None)
    dump = "delete" if mode == "sqlite" else "wal"
    for kind, own in (("dump", dump), ("delete", "delete"), ("wal", "wal")):
        backup = shop.backups / f"{kind}.db"
        if kind == "dump":
            backup.write_bytes(b"BEGIN; CREATE TABLE t (a); INSERT INTO t VALUES ('x'); COMMIT;")
        else:
            set_journal_mode(shop, backup, kind)
        for path in shop.db_path.parent.iterdir():
            path.unlink()
        if live in ("empty", "unreadable"):
            shop.db_path.write_bytes(b"" if live == "empty" else b"core dumped" * 1000)
        elif live != "absent":
            set_journal_mode(shop, shop.db_path, live.partition(",")[0])
        if "killed" in live:
            shop.leave_hot_wal()
        done = shop.restore(backup, "--force", *["--stop-first"] * (kind == "wal"))
        assert done.code == 0, done.text
        assert journal_mode(shop) == (live.partition(",")[0] if live.startswith(("delete", "wal")) else own), kind


# --- key and passphrase ----------------------------------------------------------------------------------------------


def fd(key: Key) -> tuple[list[str], dict[str, Any]]:
    """Key and passphrase from two pipes."""
    return [], {"key": key}


def command(key: Key) -> tuple[list[str], dict[str, Any]]:
    """Key from a pipe, passphrase from a command, whose words are split but not given to a shell."""
    words = shlex.join(["printf", "%s\\nsecond line\\n", key.passphrase or ""])
    return ["--key-stdin", "--passphrase-command", words], {"stdin": key.private_b64.encode()}


def wrapped(key: Key) -> tuple[list[str], dict[str, Any]]:
    """The base64 in lines with CRLF and blanks around."""
    text = key.private_b64
    lines = "\r\n".join(text[i : i + 64] for i in range(0, len(text), 64))
    return with_command(key, f"\r\n  {lines}  \r\n\r\n".encode())


def binary_export(key: Key) -> tuple[list[str], dict[str, Any]]:
    """Base64 of the binary export, without a newline at its end."""
    import base64

    return with_command(key, base64.b64encode(key.private_binary))


def with_command(key: Key, stdin: bytes) -> tuple[list[str], dict[str, Any]]:
    """This on standard input, the passphrase from a command."""
    return [*command(key)[0]], {"stdin": stdin}


@pytest.mark.parametrize("source", [fd, command, wrapped, binary_export])
def test_key_and_passphrase_from_everywhere(
    make_shop: MakeShop, keys: Keys, gpg: GpgHome, source: Callable[[Key], tuple[list[str], dict[str, Any]]]
) -> None:
    shop = make_shop("sqlite")
    database = shop.db_path.read_bytes()
    backup = write_backup(shop, "b.db.gz.gpg", encrypted(gpg, keys.rsa, gzip.compress(database)))
    shop.change_data()
    args, options = source(keys.rsa)
    restored(shop.restore(backup, "--force", *args, **options), shop, database)


@ONE_MODE
def test_key_without_a_passphrase_needs_none(shop: Shop, keys: Keys, gpg: GpgHome) -> None:
    database = shop.db_path.read_bytes()
    backup = write_backup(shop, "b.db.gz.gpg", encrypted(gpg, keys.open, gzip.compress(database)))
    shop.change_data()
    restored(shop.restore(backup, "--force", key=keys.open), shop, database)


@ONE_MODE
def test_own_keyring_and_its_settings_are_neither_read_nor_written(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    home = Path(shop.environment()["HOME"], ".gnupg")
    home.mkdir(mode=0o700)
    for name in ("gpg.conf", "gpg-agent.conf"):
        (home / name).write_text("no-such-option\n")  # whoever reads it fails
    before = [(path, path.stat().st_mtime_ns) for path in [home, *sorted(home.rglob("*"))]]
    done = shop.restore(backup, "--force", key=keys.rsa, env={"GNUPGHOME": str(home)})
    assert done.code == 0, done.text
    assert [(path, path.stat().st_mtime_ns) for path in [home, *sorted(home.rglob("*"))]] == before


# --- forms of a backup -----------------------------------------------------------------------------------------------

Form = Callable[[bytes, GpgHome, Keys], bytes]


def members(database: bytes) -> bytes:
    """Two gzip members, with zero padding behind, as some tools leave it."""
    half = len(database) // 2
    return gzip.compress(database[:half]) + gzip.compress(database[half:]) + bytes(512)


def plain_members(database: bytes, _gpg: GpgHome, _keys: Keys) -> bytes:
    """The same, not encrypted."""
    return members(database)


def plain_gzip(database: bytes, _gpg: GpgHome, _keys: Keys) -> bytes:
    """Gzipped only."""
    return gzip.compress(database)


def bare(database: bytes, _gpg: GpgHome, _keys: Keys) -> bytes:
    """The database file itself."""
    return database


def as_the_bot_does(database: bytes, gpg: GpgHome, keys: Keys) -> bytes:
    """Gzipped and encrypted."""
    return encrypted(gpg, keys.open, gzip.compress(database))


FORMS: list[tuple[str, Form]] = [
    ("backup.db.gz.gpg", as_the_bot_does),
    ("backup.db.gz", plain_gzip),
    ("backup.db", bare),
    ("not-compressed.db.gpg", lambda db, gpg, keys: encrypted(gpg, keys.open, db)),
    ("armored.db.gz.gpg", lambda db, gpg, keys: encrypted(gpg, keys.open, gzip.compress(db), "--armor")),
    ("compressed-by-gpg.gpg", lambda db, gpg, keys: encrypted(gpg, keys.open, db, "--compress-algo", "zlib")),
    ("signed-too.gpg", lambda db, gpg, keys: encrypted(gpg, keys.open, gzip.compress(db), "--sign", "-u", "other")),
    ("two-keys.gpg", lambda db, gpg, keys: encrypted(gpg, keys.open, gzip.compress(db), "-r", keys.rsa.fingerprint)),
    ("hidden.gpg", lambda db, gpg, keys: encrypted(gpg, keys.other, gzip.compress(db), "-R", keys.open.fingerprint)),
    ("members.db.gz.gpg", lambda db, gpg, keys: encrypted(gpg, keys.open, members(db))),
    ("members.db.gz", plain_members),
    ("gzip-named.db", plain_gzip),
    ("database-named.db.gz", bare),
    ("message-named.db", as_the_bot_does),
    ("no-suffix", as_the_bot_does),
    ("ümlaut 'and' blank.db.gz.gpg", as_the_bot_does),
]


@pytest.mark.parametrize(("name", "make"), FORMS, ids=[name for name, _ in FORMS])
def test_every_form_of_a_backup_restores_whatever_its_name(
    shop: Shop, keys: Keys, gpg: GpgHome, name: str, make: Form
) -> None:
    database = shop.db_path.read_bytes()
    backup = write_backup(shop, name, make(database, gpg, keys))
    shop.change_data()
    restored(shop.restore(f"backups/{name}", "--force", "--skip-backup", key=keys.open), shop, database)
    assert backup.exists()


@pytest.mark.parametrize("salt", ["85020c03", "a3010203", "d2ea0102"])
def test_bare_sqlcipher_database_whose_salt_looks_like_a_message_restores(make_shop: MakeShop, salt: str) -> None:
    """A session key for RSA-4096, compressed data, encrypted data: to the first bytes' eye."""
    shop = make_shop("sqlcipher", PGP_PUBLIC_KEY_BASE64=None)
    database = shop.backups / "db_backup_20250130_120000.db"
    quoted = "'" + DB_PASS.replace("'", "''") + "'"
    with closing(sqlcipher.connect(str(database), isolation_level=None)) as made:
        made.execute(f"PRAGMA key = {quoted}")
        made.execute(f"PRAGMA cipher_salt = \"x'{salt}{'5a' * 12}'\"")
        made.execute("PRAGMA journal_mode = WAL")  # the live database's, so that no byte changes
        made.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    content = database.read_bytes()
    assert content.startswith(bytes.fromhex(salt))
    restored(shop.restore(database, "--force"), shop, content)


def test_unencrypted_backup_needs_no_key(shop: Shop) -> None:
    database = shop.db_path.read_bytes()
    backup = write_backup(shop, "b.db.gz", gzip.compress(database))
    shop.change_data()
    restored(shop.restore(backup, "--force"), shop, database)


@ONE_MODE
def test_missing_checksum_is_said_and_no_obstacle(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    Path(f"{backup}.sha256").unlink()
    done = shop.restore(backup, "--force", key=keys.rsa)
    assert done.code == 0, done.text
    assert any(backup.name in warning for warning in done.report["warnings"]), done.text
    assert "Checksum verified" not in done.err


@ONE_MODE
@pytest.mark.needs("strace")
def test_a_backup_is_read_once_when_its_key_is_piped(shop: Shop, keys: Keys, tmp_path: Path) -> None:
    """Hashed, decrypted and decompressed in one pass; its beginning tells what it is, and if the key opens it."""
    backup = shop.create_backup()
    log = tmp_path / "reads"
    reads = ["strace", "-f", "-qq", "-e", "trace=read,pread64,readv,mmap", "-P", str(backup), "-o", str(log)]
    done = shop.restore(backup, "--force", key=keys.rsa, wrapper=reads)
    assert done.code == 0, done.text
    assert done.err.index("✅ Checksum verified") < done.err.index("🔓 Decrypting backup...")
    counts = [int(count) for count in re.findall(r"= (\d+)$", log.read_text(), re.MULTILINE)]
    size = backup.stat().st_size
    assert sum(counts) == min(size, HEAD) + min(size, CHUNK) + size


@ONE_MODE
@pytest.mark.parametrize("checksum", [True, False], ids=["checksum", "no checksum"])
def test_backup_changed_between_its_check_and_its_decryption_is_refused(
    shop: Shop, keys: Keys, tmp_path: Path, *, checksum: bool
) -> None:
    """In place, by the command that gives the passphrase: in this order the backup has been hashed before that."""
    backup = shop.create_backup()
    if not checksum:
        Path(f"{backup}.sha256").unlink()
    before = shop.snapshot()
    script = tmp_path / "passphrase"
    script.write_text(f"#!/bin/sh\nprintf x >>{shlex.quote(str(backup))}\ncat {shlex.quote(str(tmp_path / 'it'))}\n")
    script.chmod(0o700)
    (tmp_path / "it").write_text(keys.rsa.passphrase or "")
    command = ["--key-stdin", "--passphrase-command", script]
    done = shop.restore(backup, "--force", "--stop-first", *command, stdin=keys.rsa.private_b64.encode())
    assert done.ended == (3, "checksum-mismatch"), done.text
    assert shop.snapshot() == before


# --- states of the old database --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(), ("--stop-first",)], ids=["prepared", "stop first"])
def test_rows_in_a_hot_wal_are_kept_in_the_safety_backup_and_never_reach_the_new_file(
    shop: Shop, keys: Keys, order: tuple[str, ...]
) -> None:
    backup = shop.create_backup()
    database, then = shop.decrypted(backup, keys.rsa), shop.rows()
    shop.leave_hot_wal(rows=200)
    old = shop.rows()
    assert len(old["bot_log"]) == 200
    restored(shop.restore(backup, "--force", *order, key=keys.rsa), shop, database)
    assert shop.rows() == then
    assert shop.backup_rows(saved(shop)[-1], keys.rsa) == old


def test_hot_journal_is_rolled_back_in_the_safety_backup_and_never_reaches_the_new_file(shop: Shop, keys: Keys) -> None:
    with closing(shop.connect()) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    backup = shop.create_backup()
    database, then = shop.decrypted(backup, keys.rsa), shop.rows()
    shop.change_data()
    old = shop.rows()
    shop.leave_hot_journal()
    restored(shop.restore(backup, "--force", key=keys.rsa), shop, database)
    assert shop.rows() == then
    assert shop.backup_rows(saved(shop)[-1], keys.rsa) == old


def test_sidecars_of_a_database_that_is_gone_never_reach_the_new_file(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    database, then = shop.decrypted(backup, keys.rsa), shop.rows()
    shop.leave_hot_wal()
    shop.db_path.unlink()
    assert Path(f"{shop.db_path}-wal").exists()
    done = shop.restore(backup, "--force", key=keys.rsa)
    assert done.code == 0, done.text
    assert shop.db_path.read_bytes() == database
    assert shop.rows() == then
    assert not Path(f"{shop.db_path}-wal").exists()


@pytest.mark.needs("root")
def test_absent_target_is_created_with_the_owner_of_its_folder(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    database = shop.decrypted(backup, keys.rsa)
    shop.db_path.unlink()
    os.chown(shop.db_path.parent, 1000, 1001)
    done = shop.restore(backup, "--force", key=keys.rsa)
    restored(done, shop, database)
    status = shop.db_path.stat()
    assert (status.st_uid, status.st_gid) == (1000, 1001)
    assert status.st_mode & 0o007 == 0
    assert saved(shop) == [backup]
    assert "othing to back up" in done.err
    assert "set aside" not in done.err


@pytest.mark.parametrize("state", ["header overwritten", "unknown encryption"])
def test_old_database_that_cannot_be_read_is_kept_byte_for_byte_with_its_sidecars(
    shop: Shop, make_shop: MakeShop, keys: Keys, state: str
) -> None:
    backup = shop.create_backup()
    database = shop.decrypted(backup, keys.rsa)
    if state == "header overwritten":
        with shop.db_path.open("r+b") as file:
            file.write(b"overwritten by something" * 20)
    else:
        shop.db_path.write_bytes(make_shop("sqlcipher", DB_PASS="another one").db_path.read_bytes())
    wal = Path(f"{shop.db_path}-wal")
    wal.write_bytes(b"rows that nobody can read yet" * 200)
    files = (shop.db_path.read_bytes(), wal.read_bytes())
    options = ["--convert"] if state == "unknown encryption" else []
    restored(shop.restore(backup, "--force", *options, key=keys.rsa), shop, database)
    kept = saved(shop)[-1]
    assert kept != backup
    content = shop.decrypted(kept, keys.rsa)
    assert all(file in content for file in files)


def test_old_database_of_zero_bytes_is_no_obstacle(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    database = shop.decrypted(backup, keys.rsa)
    shop.db_path.write_bytes(b"")
    restored(shop.restore(backup, "--force", key=keys.rsa), shop, database)


# --- options ---------------------------------------------------------------------------------------------------------


def test_target_elsewhere_is_relative_to_the_current_folder_and_leaves_the_live_one_alone(
    shop: Shop, keys: Keys, tmp_path: Path
) -> None:
    backup = shop.create_backup()
    then = shop.rows()
    shop.change_data()
    before = shop.snapshot()
    here = tmp_path / "here"
    here.mkdir()
    done = shop.run(
        str(shop.path / "restore_backup.py"),
        os.path.relpath(backup, here),
        "--target-path",
        "copy.db",
        key=keys.rsa,
        wrapper=("env", "-C", str(here)),
    )
    assert done.code == 0, done.text
    assert [path.name for path in here.iterdir()] == ["copy.db"]
    assert shop.rows(here / "copy.db") == then
    assert shop.snapshot() == before
    assert saved(shop) == [backup], "nothing was there that a safety backup could hold"


def test_existing_target_elsewhere_is_overwritten_only_by_force_and_kept_in_a_backup(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    then = shop.rows()
    shop.change_data()
    changed = shop.rows()
    target = shop.path / "copy.db"
    target.write_bytes(shop.db_path.read_bytes())
    done = shop.restore(backup, "--target-path", "copy.db", key=keys.rsa)
    assert done.ended == (3, "no-terminal"), done.text
    assert "--force" in done.error["hint"]
    assert shop.rows(target) == changed
    done = shop.restore(backup, "--target-path", "copy.db", "--force", key=keys.rsa)
    assert done.code == 0, done.text
    assert shop.rows(target) == then
    assert shop.backup_rows(saved(shop)[-1], keys.rsa) == changed


@pytest.mark.timeout(60)
def test_backups_may_lie_in_the_folder_of_the_database(shop: Shop, keys: Keys) -> None:
    shop.write_env(DB_BACKUP_PATH="data")
    backup = shop.create_backup()
    then = shop.rows()
    shop.change_data()
    changed = shop.rows()
    done = shop.restore(backup, "--force", key=keys.rsa, timeout=30)
    assert done.code == 0, done.text
    assert shop.rows() == then
    assert shop.backup_rows(saved(shop)[-1], keys.rsa) == changed


def test_verify_only_touches_nothing_and_needs_neither_force_nor_docker(
    make_shop: MakeShop, mode: str, keys: Keys
) -> None:
    shop = make_shop(mode, RUNTIME_ENVIRONMENT="PROD")
    backup = shop.create_backup()
    shop.leave_hot_wal()
    before = tree(shop.path)
    done = shop.restore(backup, "--verify-only", key=keys.rsa, as_json=False)
    assert done.code == 0, done.text
    assert "verified" in done.out
    assert DONE not in done.text
    assert "recorded in backups/proofs.jsonl" in done.err
    (proof,) = proofs.read(shop.backups)
    sha256 = hashlib.sha256(backup.read_bytes()).hexdigest()
    assert (proof.sha256, proof.name, proof.how) == (sha256, backup.name, "verified")
    (shop.backups / proofs.NAME).unlink()
    after = tree(shop.path)
    assert {**after, "backups": before["backups"]} == before  # the folder itself, which has had that file


@pytest.mark.needs("root")
def test_backup_is_verified_though_no_proof_can_be_recorded(make_shop: MakeShop) -> None:
    shop = make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None)
    backup = shop.create_backup()
    kept = backup.rename(shop.path / backup.name)
    shop.write_env(DB_BACKUP_PATH="/proc/self")  # where nobody makes a file
    done = shop.restore(kept, "--verify-only")
    assert (done.code, done.report["outcome"]) == (0, "verified"), done.text
    assert [
        text for text in done.report["warnings"] if re.match("no proof of this backup recorded: /proc/[0-9]+/", text)
    ]


def test_restore_leaves_a_proof_of_what_was_restored_and_a_refused_one_none(make_shop: MakeShop) -> None:
    shop = make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None)
    backup = shop.create_backup()
    damaged = write_backup(shop, "damaged.db.gz", backup.read_bytes()[:-100])
    assert shop.restore(damaged, "--verify-only").code == 5
    assert proofs.read(shop.backups) == []
    before = datetime.now().astimezone() - timedelta(seconds=1)
    for args in (("--force",), ("--force", "--stop-first")):
        assert shop.restore(backup, *args).code == 0
    found = proofs.read(shop.backups)
    assert [(proof.name, proof.how) for proof in found] == [(backup.name, "restored")] * 2
    assert {proof.sha256 for proof in found} == {hashlib.sha256(backup.read_bytes()).hexdigest()}
    assert all(before <= proof.when <= datetime.now().astimezone() for proof in found)


def test_verify_only_works_without_a_live_database(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    shop.db_path.unlink()
    done = shop.restore(backup, "--verify-only", key=keys.rsa)
    assert done.code == 0, done.text
    assert list(shop.db_path.parent.iterdir()) == []


def test_rows_that_refer_to_nothing_are_told_and_no_reason_to_refuse(shop: Shop, keys: Keys) -> None:
    shop.change_data()  # without the items of the orders that it removes
    done = shop.restore(shop.create_backup(), "--verify-only", key=keys.rsa)
    assert done.code == 0, done.text
    assert "table items: 126 rows with a foreign key to no row of orders" in done.report["warnings"]


def test_operator_sees_what_will_be_lost(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    shop.change_data()
    for args in (("--verify-only",), ("--force",)):
        said = shop.restore(backup, *args, key=keys.rsa).err
        lines = {line.split()[0]: line for line in said.splitlines()}
        assert "101" in lines["customers"]
        assert "100" in lines["customers"]
        assert "258" in lines["orders"]
        assert "300" in lines["orders"]


def test_skip_backup_makes_none_and_says_that_it_is_dangerous(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    database = shop.decrypted(backup, keys.rsa)
    shop.leave_hot_wal()
    done = shop.restore(backup, "--force", "--skip-backup", key=keys.rsa)
    restored(done, shop, database)
    assert saved(shop) == [backup]
    assert re.search(r"⚠️.*--skip-backup", done.err)


def test_stop_first_runs_the_phases_in_literal_order(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    database = shop.decrypted(backup, keys.rsa)
    shop.change_data()
    changed = shop.rows()
    done = shop.restore(backup, "--force", "--stop-first", key=keys.rsa)
    restored(done, shop, database)
    assert shop.backup_rows(saved(shop)[-1], keys.rsa) == changed
    steps = ("Pre-restore backup", "Decrypting", "Decompressing", "Integrity check", "Swapping")
    assert [done.err.index(step) for step in steps] == sorted(done.err.index(step) for step in steps)


def test_undo_as_it_is_printed_keeps_what_the_restore_was_told_about_services_and_target(
    make_shop: MakeShop, mode: str, tmp_path: Path
) -> None:
    """Without a compose file, from another folder, blanks in the paths: typed as it stands, it undoes the restore."""
    shop = make_shop(mode, PGP_PUBLIC_KEY_BASE64=None, RUNTIME_ENVIRONMENT="PROD")
    shop.path = shop.path.rename(tmp_path / "my shop")
    backup = shop.create_backup()
    for options in (["--no-restart"], ["--no-restart", "--target-path", tmp_path / "a copy.db"]):
        target = tmp_path / "a copy.db" if "--target-path" in options else shop.db_path
        if not target.exists():
            assert shop.restore(backup, *options).code == 0
        with closing(shop.connect(target)) as connection:
            connection.execute("DELETE FROM orders WHERE id > 7")
        before = shop.rows(target)
        done = shop.restore(backup, "--force", *options, as_json=False)
        assert done.code == 0, done.text
        assert shop.rows(target) != before
        undo = re.search(r"to undo +(.*)$", done.out, re.MULTILINE)
        assert undo
        ended = subprocess.run(
            ["/bin/bash", "-c", f"{undo[1]} --force"],
            cwd=shop.path,
            env=shop.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"{undo[1]}: {ended.stderr}"
        assert shop.rows(target) == before


@ONE_MODE
def test_results_of_steps_stand_below_each_other(shop: Shop, keys: Keys) -> None:
    """In columns as terminals count them: a picture takes two, what chooses its colours none."""
    done = shop.restore(shop.create_backup(), "--force", key=keys.rsa)
    heads = [line.partition("✅")[0] for line in done.err.splitlines() if re.search(r"\.\.\. +✅", line)]
    widths = {
        head.strip(): sum((east_asian_width(sign) == "W") + (sign != "\N{VARIATION SELECTOR-16}") for sign in head)
        for head in heads
    }
    assert "⚙️  Swapping..." in widths
    assert set(widths.values()) == {35}, widths


@ONE_MODE
def test_list_shows_newest_first_without_touching_anything(shop: Shop) -> None:
    older = shop.create_backup()
    newer = shop.create_backup()
    newer.write_bytes(b"damaged")
    before = tree(shop.path)
    done = shop.restore("--list", as_json=False)
    assert done.code == 0
    lines = [line for line in done.out.splitlines() if "db_backup_" in line]
    assert [path.name in line for path, line in zip((newer, older), lines, strict=True)] == [True, True]
    assert "MISMATCH" in lines[0]
    assert "ok" in lines[1]
    assert all("just now" in line for line in lines)
    assert tree(shop.path) == before


@ONE_MODE
def test_nothing_to_recover_is_no_failure(shop: Shop) -> None:
    before = shop.snapshot()
    done = shop.restore("--recover")
    assert done.code == 0, done.text
    assert shop.snapshot() == before


# --- --json ----------------------------------------------------------------------------------------------------------


def test_json_is_the_only_thing_on_standard_output(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    done = shop.restore(backup, "--force", "--json", key=keys.rsa)
    assert done.code == 0, done.text
    report = json.loads(done.out)
    assert report["exit_code"] == 0
    assert report["error"] is None
    assert report["backup"] == str(backup)
    assert report["target"] == str(shop.db_path)
    assert report["safety_backup"] == str(saved(shop)[-1])
    assert report["key_fingerprint"] == keys.rsa.fingerprint
    assert report["tables"]["customers"] == {"live": 100, "backup": 100}
    assert DONE in done.err


@pytest.mark.parametrize("args", [("--verify-only",), ("--recover",), ("--list",)])
def test_json_with_what_is_no_restore(make_shop: MakeShop, keys: Keys, args: tuple[str, ...]) -> None:
    shop = make_shop("sqlite")
    backup = shop.create_backup()
    done = shop.restore(*args, "--json", *([backup] if "--verify-only" in args else []), key=keys.rsa)
    assert done.code == 0, done.text
    assert json.loads(done.out)["exit_code"] == 0


def test_json_on_failure_has_code_error_and_hint(make_shop: MakeShop, keys: Keys) -> None:
    shop = make_shop("sqlite")
    done = shop.restore("backups/missing.gpg", "--force", "--json", key=keys.rsa)
    assert done.code == 3
    report = json.loads(done.out)
    assert report["exit_code"] == 3
    assert report["error"]["id"] == "backup-not-found"
    assert "missing.gpg" in report["error"]["message"]
    assert report["error"]["hint"]
    assert "missing.gpg" in done.err


def test_json_on_a_wrong_setting(make_shop: MakeShop) -> None:
    shop = make_shop("sqlite", RUNTIME_ENVIRONMENT="STAGING")
    done = shop.restore("backups/missing.gpg", "--force", "--json")
    assert done.code == 3
    error = json.loads(done.out)["error"]
    assert error["id"] == "wrong-setting"
    assert "STAGING" in error["message"]


@pytest.mark.parametrize("wrong", ["--no-such-option", "--passphrase-fd=three", "--passphrase-fd=0"])
def test_json_on_a_usage_error(make_shop: MakeShop, wrong: str) -> None:
    done = make_shop("sqlite").restore("--json", "--key-stdin", wrong)
    assert done.code == 2
    report = json.loads(done.out)
    assert report["exit_code"] == 2
    assert report["outcome"] == "failed"
    assert report["error"]["id"] == "usage"
    assert wrong.partition("=")[0] in report["error"]["message"]
    assert report["error"]["message"] in done.err
    assert "--help" in report["error"]["hint"]


# --- Docker is not touched -------------------------------------------------------------------------------------------


@contextmanager
def docker_that_notes_calls(folder: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """An environment in which each call of Docker is noted and fails; and the notes."""
    folder.mkdir()
    notes, program = folder / "notes", folder / "docker"
    program.write_text(f'#!/bin/sh\necho "$0 $*" >> {shlex.quote(str(notes))}\nexit 1\n')
    program.chmod(0o755)
    yield {"PATH": f"{folder}:{os.environ['PATH']}"}, notes


@pytest.mark.parametrize(
    ("environment", "args"),
    [("PROD", ["--no-restart"]), ("TEST", []), ("PROD", ["--target-path", "copy.db"])],
)
def test_docker_is_not_touched_with(
    make_shop: MakeShop, keys: Keys, tmp_path: Path, environment: str, args: list[str]
) -> None:
    shop = make_shop("sqlite", RUNTIME_ENVIRONMENT=environment)
    (shop.path / "docker-compose.prod.yml").write_text("services: {bot: {image: none}}\n")
    backup = shop.create_backup()
    with docker_that_notes_calls(tmp_path / "bin") as (env, notes):
        done = shop.restore(backup, "--force", *args, key=keys.rsa, env=env)
        assert done.code == 0, done.text
        assert not notes.exists(), notes.read_text()
        done = shop.restore(backup, "--force", key=keys.rsa, env=env | {"RUNTIME_ENVIRONMENT": "PROD"})
        assert done.ended == (3, "docker-unreachable"), "the control: without the option it asks Docker"
        assert notes.exists()


def test_verifying_works_where_docker_does_not_answer(make_shop: MakeShop, keys: Keys, tmp_path: Path) -> None:
    shop = make_shop("sqlite", RUNTIME_ENVIRONMENT="PROD")
    (shop.path / "docker-compose.prod.yml").write_text("services: {bot: {image: none}}\n")
    backup = shop.create_backup()
    with docker_that_notes_calls(tmp_path / "bin") as (env, notes):
        done = shop.restore(backup, "--verify-only", key=keys.rsa, env=env)
        assert done.code == 0, done.text
        assert re.search(r"services +not known", done.err), done.text
        assert not re.search(r"\b(stop|start|up|restart)\b", notes.read_text())


# --- names and passphrases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passphrase", ['it\'s "quoted" pässwörd', "$HOME `id` # \\ ' ''", "x'414243'", " "])
def test_any_database_passphrase_works_from_backup_to_restore(make_shop: MakeShop, keys: Keys, passphrase: str) -> None:
    shop = make_shop("sqlcipher", DB_PASS=passphrase)
    backup = shop.create_backup()
    database = shop.decrypted(backup, keys.rsa)
    shop.leave_hot_wal()
    restored(shop.restore(backup, "--force", key=keys.rsa), shop, database)


@pytest.mark.parametrize(
    "names",
    [
        ('it\'s "my" shöp.db', "dätä 'x'", "bäck ups"),
        ("100%25 ?mode=memory#x.db", "a&b;c", "d=e"),
        ("-rf.db", "--data", "--backups"),
        ("new\nline.db", "da\nta", "back\nups"),
    ],
    ids=["quotes and umlauts", "URI characters", "dashes", "line breaks"],
)
def test_any_name_works_from_backup_to_restore(
    make_shop: MakeShop, mode: str, keys: Keys, names: tuple[str, str, str]
) -> None:
    shop = make_shop(mode, **dict(zip(("DB_NAME", "DATA_DIR", "DB_BACKUP_PATH"), names, strict=True)))
    then = shop.rows()
    done = shop.run("database_backup.py", "create")
    assert done.code == 0, done.text
    (backup,) = saved(shop)
    database = shop.decrypted(backup, keys.rsa)
    shop.leave_hot_wal()
    restored(shop.restore(backup, "--force", key=keys.rsa), shop, database)
    assert shop.rows() == then
    sums = [path.name for path in shop.backups.glob("*.sha256")]
    assert len(sums) == 2
    subprocess.run(["sha256sum", "--check", "--strict", *sums], cwd=shop.backups, check=True, timeout=30)


def test_name_that_is_not_utf_8_works_from_backup_to_restore(make_shop: MakeShop, mode: str, keys: Keys) -> None:
    shop = make_shop(mode)
    old = shop.db_path
    shop.env["DB_NAME"] = shop.settings["DB_NAME"] = os.fsdecode(b"sh\xf6p.db")
    old.rename(shop.db_path)
    backup = shop.create_backup()
    elsewhere = backup.with_name(os.fsdecode(b"s\xe4fe.db.gz.gpg"))
    backup.rename(elsewhere)
    database = shop.decrypted(elsewhere, keys.rsa)
    restored(shop.restore(elsewhere, "--force", key=keys.rsa), shop, database)
