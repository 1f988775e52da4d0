"""What is named as the backup and is none is told as what it is, with what to type instead."""

import gzip
import hashlib
import os
import shlex
import subprocess
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from backuplib.backup_file import BackupFile, BackupInfo, checksum_path
from backuplib.errors import (
    BackupNotFoundError,
    NotABackupError,
    NotEncryptedAsNamedError,
    OperatorError,
    RefusedError,
    UsageError,
)
from backuplib.named import latest_at, refuse_misnamed, refuse_plain_as_encrypted

NAME = "db_backup_20250130_120000.db.gz.gpg"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the backups, with one backup; called from the folder above, with the live database in it."""
    (tmp_path / "shop.db").write_bytes(b"x")
    backups = tmp_path / "backups"
    backups.mkdir()
    (backups / NAME).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return backups


def refusal(named: str, folder: Path) -> OperatorError:
    """The refusal of what was typed."""
    newest = BackupInfo(folder / NAME, datetime.now().astimezone(), 1, encrypted=True)
    with pytest.raises(OperatorError) as raised:
        refuse_misnamed(Path(named).absolute(), folder, folder.parent / "shop.db", lambda: [newest])
    return raised.value


def test_backup_is_one_whatever_its_name(folder: Path) -> None:
    for name in (NAME, "x", "latest"):
        (folder / name).write_bytes(b"x")
        refuse_misnamed(folder / name, folder, folder.parent / "shop.db")


def test_backup_in_the_other_folder_is_found(folder: Path) -> None:
    error = refusal(NAME, folder)
    assert isinstance(error, BackupNotFoundError)
    assert f" backups/{NAME} " in error.hint


@pytest.mark.parametrize("named", ["latest", "newest", "backups/db_backup_2025.gpg", "no/such/folder/x.gpg"])
def test_what_is_not_there_is_told_with_the_newest_one(folder: Path, named: str) -> None:
    error = refusal(named, folder)
    assert str(error) == f"there is no file {folder.parent / named}"
    assert f"newest one here is backups/{NAME};" in error.hint
    assert "--list" in error.hint


@pytest.mark.parametrize("named", ["https://example.org/x.gpg", "offsite:shopbot/x.gpg", "me@host:x.gpg"])
def test_place_elsewhere_is_told_as_such(folder: Path, named: str) -> None:
    error = refusal(named, folder)
    assert "through rclone only" in str(error)
    assert "Copy it here" in error.hint


def test_file_with_a_colon_in_its_name_may_be_missing_too(folder: Path) -> None:
    assert "through rclone only" not in str(refusal("backups/12:00.gpg", folder))


def test_folder_is_told_with_a_list_of_what_is_in_it(folder: Path) -> None:
    error = refusal("backups", folder)
    assert isinstance(error, NotABackupError)
    assert "is a folder" in str(error)
    assert f"DB_BACKUP_PATH={folder} " in error.hint


def test_checksum_is_told_with_its_backup(folder: Path) -> None:
    (folder / f"{NAME}.sha256").touch()
    error = refusal(f"backups/{NAME}.sha256", folder)
    assert "checksum of a backup" in str(error)
    assert shlex.split(error.hint)[-1] == f"backups/{NAME}"


def test_raw_files_are_for_rescue(folder: Path) -> None:
    (folder / "db_backup_20250130_120000.raw.tar.gz.gpg").touch()
    error = refusal("backups/db_backup_20250130_120000.raw.tar.gz.gpg", folder)
    assert "rescued, not restored" in str(error)
    assert "database_backup.py rescue -" in error.hint


@pytest.mark.parametrize("how", ["itself", "link", "hard link"])
def test_live_database_is_no_backup_of_itself(folder: Path, how: str) -> None:
    live = folder.parent / "shop.db"
    if how == "link":
        (folder / "x.db").symlink_to(live)
    elif how == "hard link":
        os.link(live, folder / "x.db")
    error = refusal("shop.db" if how == "itself" else "backups/x.db", folder)
    assert isinstance(error, NotABackupError)
    assert "live database itself" in str(error)


def test_folder_that_cannot_be_listed_does_not_hide_what_is_missing(folder: Path) -> None:
    def denied() -> list[BackupInfo]:
        raise RefusedError("cannot read the folder")

    with pytest.raises(BackupNotFoundError):
        refuse_misnamed(folder / "x", folder, folder.parent / "shop.db", denied)


# --- the newest one at a place ---


def test_name_of_a_remote_stands_for_its_one_place_and_for_none_of_several() -> None:
    def at(name: str, *places: str) -> str | None:
        found = latest_at(Path(name), places, {})
        return found.place if found else None

    assert at("offsite:latest", "nas:b", "offsite:shopbot") == "offsite:shopbot"
    assert at("offsite:latest", "nas:b") == "offsite:"
    assert at("offsite:b/latest", "offsite:a", "offsite:b") == "offsite:b"
    assert at("offsite:latest", "offsite:a", "offsite:") == "offsite:"
    assert at("latest", "offsite:a") is at("offsite:x.gpg", "offsite:a") is None
    with pytest.raises(UsageError, match="offsite:latest is at more than one of the places") as refusal:
        at("offsite:latest", "offsite:a", "nas:b", "offsite:b")
    assert "one of these: offsite:a/latest, offsite:b/latest; " in refusal.value.hint
    assert " offsite:a/latest" in refusal.value.hint.rpartition(": ")[2]


# --- not what its name says ------------------------------------------------------------------------------------------

PLAIN = {
    "gzip": gzip.compress(b"SQLite format 3\0"),
    "database": b"SQLite format 3\0".ljust(4096, b"\0"),
    "dump": b"BEGIN;\nCREATE TABLE orders (id);\nCOMMIT;\n",
}


@pytest.mark.parametrize("suffix", [".gpg", ".pgp", ".asc"])
@pytest.mark.parametrize("content", PLAIN.values(), ids=[*PLAIN])
def test_plain_backup_under_an_encrypted_name_is_refused_until_it_has_a_true_one(
    folder: Path, content: bytes, suffix: str
) -> None:
    named = folder / f"a ba'ckup.db{suffix}"
    named.write_bytes(content)
    checksum_path(named).write_text(f"{hashlib.sha256(content).hexdigest()}  {named.name}\n")
    with closing(BackupFile(named)) as backup, pytest.raises(NotEncryptedAsNamedError) as raised:
        refuse_plain_as_encrypted(backup)
    commands = raised.value.hint.partition(": ")[2].partition("; then: ")[0]
    subprocess.run(commands, shell=True, check=True)
    with closing(BackupFile(folder / "a ba'ckup.db")) as backup:
        refuse_plain_as_encrypted(backup)
        assert backup.verify()
    assert not named.exists()


def test_encrypted_backup_may_have_any_name(folder: Path) -> None:
    message = bytes.fromhex("85020c03") + bytes(528)
    for name in ("x.gpg", "x.db", "x"):
        (folder / name).write_bytes(message)
        with closing(BackupFile(folder / name)) as backup:
            refuse_plain_as_encrypted(backup)
