"""What is named as the backup and is none is told as what it is, with what to type instead."""

import os
import shlex
from datetime import datetime
from pathlib import Path

import pytest

from backuplib.backup_file import BackupInfo
from backuplib.errors import BackupNotFoundError, NotABackupError, OperatorError, RefusedError
from backuplib.named import refuse_misnamed

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
