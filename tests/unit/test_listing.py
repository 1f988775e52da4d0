"""The backups as people and programs see them."""

import gzip
import hashlib
import io
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backuplib.backup_file import AS_THEY_WERE, BEFORE_A_RESTORE, BackupInfo, backup_time, checksum_path
from backuplib.console import Report
from backuplib.errors import BackupNotFoundError
from backuplib.listing import (
    backup_table,
    checksum_states,
    choose_backup,
    choose_latest,
    explanations,
    show_backups,
    show_restores,
)
from backuplib.outcome import LastRestore, identity
from backuplib.running import taking_turn
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


def test_latest_is_neither_a_safety_backup_nor_from_the_future(backups: list[BackupInfo], tmp_path: Path) -> None:
    said: list[str] = []
    assert choose_latest(backups, tmp_path, said.append) == backups[0].path
    assert backups[1].path.name in said[1]
    future = replace(backups[0], created=datetime.now().astimezone() + timedelta(hours=1))
    unfit = [future, *(replace(backups[0], kind=kind) for kind in (BEFORE_A_RESTORE, AS_THEY_WERE))]
    assert choose_latest([*unfit, backups[1]], tmp_path, said.append) == backups[1].path
    assert "none" in said[-2]
    assert "3 newer ones" in said[-1]
    for nothing in (unfit, []):
        with pytest.raises(BackupNotFoundError):
            choose_latest(nothing, tmp_path, said.append)


def test_table_has_a_heading_and_a_line_for_each(backups: list[BackupInfo]) -> None:
    heading, *lines = backup_table(backups, ["none", "ok"])
    assert heading.split() == ["made", f"({backups[0].created:%Z})", "age", "size", "checksum", "name"]
    assert [line.split()[-1] for line in lines] == [item.path.name for item in backups]
    assert [line.split()[-2] for line in lines] == ["none", "ok"]
    assert [line[:16] for line in lines] == ["2025-01-31 12:00", "2025-01-30 12:00"]
    assert [line.split()[-3] for line in lines] == ["A", "PLAIN"]


def test_keys_have_a_column_only_where_they_differ(backups: list[BackupInfo]) -> None:
    one = replace(backups[0], key_ids=("A" * 16, "B" * 16))
    assert backup_table([one, one], ["MISMATCH", "ok"])[0].split()[2:] == ["age", "size", "checksum", "name"]
    assert explanations([one, one]) == [f"opened by key ID {'A' * 16} or {'B' * 16}"]
    other = replace(backups[0], key_ids=("B" * 16,))
    assert [line.split()[-2] for line in backup_table([one, other, one])[1:]] == ["A", "B", "A"]
    assert explanations([one, other]) == [
        f"A: opened by key ID {'A' * 16} or {'B' * 16}",
        f"B: opened by key ID {'B' * 16}",
    ]
    assert explanations([backups[1]]) == ["PLAIN: not encrypted"]


def test_what_is_not_ordinary_has_a_mark_that_is_explained(backups: list[BackupInfo]) -> None:
    assert len(explanations([backups[0]])) == 1
    kinds = ["before a restore", "files as they were", "SQL dump", "ordinary"]
    given = [replace(backups[0], kind=kind) for kind in kinds]
    _, *lines = backup_table(given)
    marks = [line[16:17] for line in lines]
    assert len({*marks}) == 4
    assert marks[-1] == " "
    said = explanations(given)[1:]
    assert [line[0] for line in said] == marks[:-1]
    assert "before a restore" in said[0]


def test_times_are_those_of_this_machine_in_summer_and_in_winter(
    backups: list[BackupInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    summer = replace(backups[0], created=datetime(2025, 7, 1, 10, tzinfo=UTC))
    heading, *lines = backup_table([summer, replace(summer, created=datetime(2025, 1, 1, 23, 30, tzinfo=UTC))])
    monkeypatch.undo()
    time.tzset()
    assert heading.startswith("made (CEST/CET) ")
    assert [line[:16] for line in lines] == ["2025-07-01 12:00", "2025-01-02 00:30"]


def test_time_in_the_future_is_told_as_that(backups: list[BackupInfo]) -> None:
    future = replace(backups[0], created=datetime.now().astimezone() + timedelta(hours=1))
    assert "future?" in backup_table([future])[1]
    assert "clock" in explanations([future])[-1]


@pytest.mark.parametrize("seconds", [1, 90, 3500, 86000, 86400 * 999.5, -5000])
def test_table_fits_into_80_columns_beside_a_number(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "db_backup_20250130_120000.db.gz.gpg"
    made = datetime.now().astimezone() - timedelta(seconds=seconds)
    info = BackupInfo(path, made, 999_000_000_000, encrypted=True, key_ids=("A" * 16, "B" * 16))
    marked, other = replace(info, kind="before a restore"), replace(info, key_ids=())
    plain = replace(info, encrypted=False, key_ids=())
    for given in ([info], [marked], [marked, other], [marked, other, plain]):
        assert max(map(len, backup_table(given))) <= 80 - len("10 ")
        assert max(map(len, explanations(given))) <= 80
        for state in ("MISMATCH", "unreadable", "none"):
            assert max(map(len, backup_table(given, [state] * len(given)))) <= 80
    assert backup_table([marked, other], ["MISMATCH", "ok"])[1].split()[-2] == "MISMATCH"


def test_keys_that_open_a_backup_are_shown(tmp_path: Path) -> None:
    def opened_by(*key_ids: str) -> str:
        return BackupInfo(tmp_path / "x", datetime.now().astimezone(), 1, encrypted=True, key_ids=key_ids).opened_by

    assert opened_by("A" * 16) == f"opened by key ID {'A' * 16}"
    assert opened_by("0" * 16) == opened_by() == "opened by a key that it does not name"
    assert opened_by("A" * 16, "0" * 16) == f"opened by key ID {'A' * 16} or a key that it does not name"


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
        "kind": "ordinary",
    }
    assert show_backups(report.console, [], tmp_path) == []


def test_nothing_is_chosen_without_a_backup(tmp_path: Path) -> None:
    with pytest.raises(BackupNotFoundError):
        choose_backup([], tmp_path, Terminal())


def test_restore_that_runs_was_interrupted_or_has_ended_is_told(
    report: Report, screen: io.StringIO, tmp_path: Path
) -> None:
    target = Target(tmp_path / "shop.db")
    target.path.touch()

    def told() -> tuple[str, list[bool]]:
        screen.seek(0)
        screen.truncate()
        running, interrupted, last = show_restores(report.console, target, tmp_path)
        return screen.getvalue(), [running is not None, interrupted is not None, last is not None]

    assert told() == ("", [False, False, False])
    (tmp_path / "restore.log").write_text("2025-01-30T12:00:00+00:00 7 outcome: restored\n")
    assert told() == ("", [False, False, False])  # the log is no fact
    LastRestore(str(target.path), "2025-01-30T12:00:00+00:00", "restored", "new", file=identity(target.path)).write(
        tmp_path
    )
    text, kinds = told()
    assert kinds == [False, False, True]
    assert text.startswith("last restore: ")
    target.journal.touch()
    text, kinds = told()
    assert kinds == [False, True, True]
    assert "--recover" in text
    with taking_turn(target.lock_file) as turn:
        with turn.waiting("an answer"):
            text, kinds = told()
        assert kinds == [True, False, True]
        assert f"(pid {os.getpid()})" in text
        assert "waiting for an answer" in text
        assert "--recover" not in text
        turn.say("switching")
        text, kinds = told()
        assert kinds == [True, False, False]  # which database is live may change at any moment
        assert "last restore" not in text
