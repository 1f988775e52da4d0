"""The backups as people and programs see them."""

import gzip
import hashlib
import io
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from backuplib.backup_file import BackupInfo, backup_time, checksum_path
from backuplib.console import Report
from backuplib.errors import BackupNotFoundError
from backuplib.listing import (
    backup_table,
    checksum_states,
    choose_backup,
    show_backups,
    show_last_restore,
)
from backuplib.target import Target
from backuplib.terminal import Terminal


@pytest.fixture
def backups(tmp_path: Path) -> list[BackupInfo]:
    """Two backups; the older one's checksum matches, the newer one has none."""
    found = []
    for name, encrypted in (("db_backup_20250131_120000.db.gz.gpg", True), ("db_backup_20250130_120000.db.gz", False)):
        path = tmp_path / name
        path.write_bytes(gzip.compress(name.encode()))
        found.append(BackupInfo(path, backup_time(path), path.stat().st_size, encrypted))
    old = found[1].path
    checksum_path(old).write_text(f"{hashlib.sha256(old.read_bytes()).hexdigest()}  {old.name}\n")
    return found


def test_table_has_a_heading_and_a_line_for_each(backups: list[BackupInfo]) -> None:
    heading, *lines = backup_table(backups, ["none", "ok"])
    assert heading.split() == ["age", "size", "key", "ID", "checksum", "name"]
    assert [line.split()[-1] for line in lines] == [item.path.name for item in backups]
    assert [line.split()[-2] for line in lines] == ["none", "ok"]
    assert lines[1].split()[-3] != lines[0].split()[-3]  # what is not encrypted stands out


def test_table_fits_beside_a_number(tmp_path: Path) -> None:
    path = tmp_path / "db_backup_20250130_120000.db.gz.gpg"
    made = datetime.now().astimezone() - timedelta(days=999.5)
    info = BackupInfo(path, made, 999_000_000_000, encrypted=True, key_ids=("A" * 16, "B" * 16))
    assert max(map(len, backup_table([info]))) <= 80 - len("10 ")
    assert max(map(len, backup_table([info], ["MISMATCH"]))) <= 80
    assert max(map(len, backup_table([replace(info, key_ids=())], ["unreadable"]))) <= 80


def test_keys_that_open_a_backup_are_shown(report: Report, screen: io.StringIO, tmp_path: Path) -> None:
    def info(*key_ids: str) -> BackupInfo:
        return BackupInfo(tmp_path / "x.gpg", datetime.now().astimezone(), 1, encrypted=True, key_ids=key_ids)

    assert info("A" * 16).opened_by == "A" * 16
    assert info("0" * 16).opened_by == "hidden"
    assert info().opened_by == "encrypted"
    assert info("A" * 16, "B" * 16).opened_by == f"{'A' * 16}+1"
    show_backups(report.console, [info("A" * 16, "B" * 16)], tmp_path)
    assert "B" * 16 in screen.getvalue()


def test_states_of_checksums_are_in_the_order_of_the_backups(report: Report, backups: list[BackupInfo]) -> None:
    assert checksum_states(report.console, backups) == ["none", "ok"]
    assert checksum_states(report.console, []) == []


def test_backups_are_returned_as_json_shows_them(report: Report, backups: list[BackupInfo], tmp_path: Path) -> None:
    told = show_backups(report.console, backups, tmp_path)
    assert told[1] == {
        "path": str(backups[1].path),
        "created": backups[1].created.isoformat(),
        "bytes": backups[1].size,
        "encrypted": False,
        "key_ids": [],
        "checksum": "ok",
    }
    assert show_backups(report.console, [], tmp_path) == []


def test_nothing_is_chosen_without_a_backup(tmp_path: Path) -> None:
    with pytest.raises(BackupNotFoundError):
        choose_backup([], tmp_path, Terminal())


def test_restore_that_runs_was_interrupted_or_has_ended_is_told(
    report: Report, screen: io.StringIO, tmp_path: Path
) -> None:
    target = Target(tmp_path / "shop.db")

    def told() -> str:
        screen.seek(0)
        screen.truncate()
        show_last_restore(report.console, target, tmp_path)
        return screen.getvalue()

    assert told() == ""
    (tmp_path / "restore.log").write_text("2025-01-30T12:00:00+00:00 7 outcome: restored\n")
    assert "restored" in told()
    target.journal.touch()
    assert "--recover" in told()
    with target.lock():
        assert "--recover" not in told()
        assert "pid" in told()
