"""The backups as people and programs see them."""

import gzip
import hashlib
import io
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backuplib.backup_file import LOCAL, BackupInfo, backup_time, checksum_path
from backuplib.console import Report
from backuplib.errors import BackupNotFoundError
from backuplib.listing import (
    Row,
    backup_table,
    briefest_age,
    checksum_states,
    choose_backup,
    explanations,
    in_rows,
    show_backups,
    show_interrupted,
    show_restores,
)
from backuplib.outcome import LastRestore, identity
from backuplib.proofs import Proof, record
from backuplib.remote import Remote
from backuplib.running import taking_turn
from backuplib.selection import Places
from backuplib.target import Target
from backuplib.terminal import Terminal
from tests.support.journals import begun_journal

FAR = ["offsite:shopbot", "nas:backups/shopbot"]


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


def rows(backups: Sequence[BackupInfo], states: Sequence[str] = ()) -> list[Row]:
    """Backups that are here, with the states of their checksums."""
    return [Row(item, checksum=state) for item, state in zip(backups, states or [""] * len(backups), strict=True)]


def test_table_has_a_heading_and_a_line_for_each(backups: list[BackupInfo]) -> None:
    heading, *lines = backup_table(rows(backups, ["none", "ok"]))
    assert heading.split() == ["made", f"({backups[0].created:%Z})", "age", "size", "checksum", "name"]
    assert [line.split()[-1] for line in lines] == [item.path.name for item in backups]
    assert [line.split()[-2] for line in lines] == ["none", "ok"]
    assert [line[:16] for line in lines] == ["2025-01-31 12:00", "2025-01-30 12:00"]
    assert [line.split()[-3] for line in lines] == ["A", "PLAIN"]


def test_keys_have_a_column_only_where_they_differ(backups: list[BackupInfo]) -> None:
    one = replace(backups[0], key_ids=("A" * 16, "B" * 16))
    assert backup_table(rows([one, one], ["MISMATCH", "ok"]))[0].split()[2:] == ["age", "size", "checksum", "name"]
    assert explanations(rows([one, one])) == [f"opened by key ID {'A' * 16} or {'B' * 16}"]
    other = replace(backups[0], key_ids=("B" * 16,))
    assert [line.split()[-2] for line in backup_table(rows([one, other, one]))[1:]] == ["A", "B", "A"]
    assert explanations(rows([one, other])) == [
        f"A: opened by key ID {'A' * 16} or {'B' * 16}",
        f"B: opened by key ID {'B' * 16}",
    ]
    assert explanations(rows([backups[1]])) == ["PLAIN: not encrypted"]


def test_what_is_not_ordinary_has_a_mark_that_is_explained(backups: list[BackupInfo]) -> None:
    assert len(explanations(rows([backups[0]]))) == 1
    kinds = ["before a restore", "files as they were", "SQL dump", "ordinary"]
    given = [replace(backups[0], kind=kind) for kind in kinds]
    _, *lines = backup_table(rows(given))
    marks = [line[16:17] for line in lines]
    assert len({*marks}) == 4
    assert marks[-1] == " "
    said = explanations(rows(given))[1:]
    assert [line[0] for line in said] == marks[:-1]
    assert "before a restore" in said[0]


def test_times_are_those_of_this_machine_in_summer_and_in_winter(
    backups: list[BackupInfo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    summer = replace(backups[0], created=datetime(2025, 7, 1, 10, tzinfo=UTC))
    heading, *lines = backup_table(rows([summer, replace(summer, created=datetime(2025, 1, 1, 23, 30, tzinfo=UTC))]))
    monkeypatch.undo()
    time.tzset()
    assert heading.startswith("made (CEST/CET) ")
    assert [line[:16] for line in lines] == ["2025-07-01 12:00", "2025-01-02 00:30"]


def test_time_in_the_future_is_told_as_that(backups: list[BackupInfo]) -> None:
    future = replace(backups[0], created=datetime.now().astimezone() + timedelta(hours=1))
    assert "future?" in backup_table(rows([future]))[1]
    assert "clock" in explanations(rows([future]))[-1]


@pytest.mark.parametrize("seconds", [1, 90, 3500, 86000, 86400 * 999.5, -5000])
def test_table_fits_into_80_columns_beside_a_number(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "db_backup_20250130_120000.db.gz.gpg"
    made = datetime.now().astimezone() - timedelta(seconds=seconds)
    info = BackupInfo(path, made, 999_000_000_000, encrypted=True, key_ids=("A" * 16, "B" * 16))
    marked, other = replace(info, kind="before a restore"), replace(info, key_ids=())
    plain = replace(info, encrypted=False, key_ids=())
    for given in ([info], [marked], [marked, other], [marked, other, plain]):
        assert max(map(len, backup_table(rows(given), room=77))) <= 77
        assert max(map(len, explanations(rows(given)))) <= 80
        for state in ("MISMATCH", "unreadable", "none", "not read"):
            told = rows(given, [state] * len(given))
            assert max(map(len, backup_table(told))) <= 80
            far = [replace(row, places=(LOCAL, *FAR), proved=made) for row in told]
            for room in (77, 80):
                assert max(map(len, backup_table(far, FAR, room))) <= room
            assert max(map(len, explanations(far, [*FAR, "x:" + 99 * "y"]))) <= 80
    assert backup_table(rows([marked, other], ["MISMATCH", "ok"]))[1].split()[-2] == "MISMATCH"


def test_places_have_marks_only_where_there_are_remotes(backups: list[BackupInfo]) -> None:
    far = replace(backups[0], place=FAR[1], path=Path(backups[0].path.name), sha256="a" * 64)
    told = in_rows([(far, "not read", None), (backups[0], "ok", None), (backups[1], "ok", None)])
    assert [row.places for row in told] == [(LOCAL, FAR[1]), (LOCAL,)]
    assert [row.checksum for row in told] == ["ok", "ok"]
    heading, one, two = backup_table(told, FAR)
    assert heading.split()[-2:] == ["at", "name"]
    assert (one.split()[-2], two.split()[-2]) == ("L2", "L")
    said = explanations(told, FAR)
    assert [line for line in said if line.startswith("at ")] == ["at L: local", f"at 1: {FAR[0]}", f"at 2: {FAR[1]}"]
    assert "at" not in backup_table(rows(backups))[0].split()
    only_there = in_rows([(far, "not read", None)])
    assert backup_table(only_there, FAR)[1].split()[-3:] == ["-", "2", far.path.name]
    assert [line for line in explanations(only_there, FAR) if line.startswith("- ")]


def test_proof_is_that_of_the_content(report: Report, backups: list[BackupInfo], tmp_path: Path) -> None:
    without, checked = backups
    digests = [hashlib.sha256(item.path.read_bytes()).hexdigest() for item in backups]
    when = datetime.now().astimezone() - timedelta(days=3)

    def told(*proved: Proof) -> list[str | None]:
        (tmp_path / "proofs.jsonl").unlink(missing_ok=True)
        for proof in proved:
            record(tmp_path, proof)
        found = show_backups(report, [*backups, far], Places(tmp_path, [Remote(FAR[0])]))
        return [item["proved"] for item in found]

    far = replace(checked, place=FAR[0], path=Path("db_backup_20240130_120000.db.gz"), sha256=digests[1])
    said = when.isoformat(timespec="seconds")
    assert told() == [None, None, None]
    assert told(Proof(digests[1], checked.path.name, when, "verified")) == [None, said, said]
    assert told(Proof(digests[0], without.path.name, when, "restored")) == [said, None, None]  # read for that
    assert told(Proof("0" * 64, checked.path.name, when, "restored")) == [None, None, None]
    checked.path.write_bytes(b"changed")  # it is not what was proved any more
    assert told(Proof(digests[1], checked.path.name, when, "verified")) == [None, None, said]


def test_proof_has_a_column_that_is_explained(backups: list[BackupInfo]) -> None:
    when = datetime.now().astimezone() - timedelta(days=3, hours=1)
    proved = [Row(backups[0], checksum="ok", proved=when), Row(backups[1], checksum="ok")]
    heading, one, two = backup_table(proved)
    assert heading.split()[-2:] == ["proof", "name"]
    assert (one.split()[-2], two.split()[-2]) == ("3d", "ok")
    assert [line for line in explanations(proved) if line.startswith("proof: ")]
    assert "proof" not in backup_table(rows(backups))[0]


def test_proofs_that_are_not_believed_are_told(report: Report, backups: list[BackupInfo], tmp_path: Path) -> None:
    (tmp_path / "proofs.jsonl").touch()
    (tmp_path / "proofs.jsonl").chmod(0o666)
    assert [item["proved"] for item in show_backups(report, backups, Places(tmp_path))] == [None, None]
    assert len(report.warnings) == 1
    assert "not known" in report.warnings[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "now"), (90, "1min"), (3500, "58min"), (86000, "23h"), (86400 * 999.5, "999d"), (-5000, "?")],
)
def test_age_in_few_columns(seconds: float, text: str) -> None:
    assert briefest_age(datetime.now().astimezone() - timedelta(seconds=seconds)) == text


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
    told = show_backups(report, backups, Places(tmp_path))
    assert told[1] == {
        "path": str(backups[1].path),
        "place": "local",
        "created": backups[1].created.isoformat(),
        "bytes": backups[1].size,
        "encrypted": False,
        "key_ids": [],
        "checksum": "ok",
        "kind": "ordinary",
        "proved": None,
    }
    assert show_backups(report, [], Places(tmp_path)) == []
    far = replace(backups[0], place=FAR[0], path=Path("a.gpg"), sha256=None)
    told = show_backups(report, [far, replace(far, sha256="a" * 64)], Places(tmp_path, [Remote(FAR[0])]))
    assert [item["path"] for item in told] == [f"{FAR[0]}/a.gpg"] * 2
    assert [item["place"] for item in told] == [FAR[0]] * 2
    assert [item["checksum"] for item in told] == ["none", "not read"]


def test_nothing_is_chosen_without_a_backup(tmp_path: Path) -> None:
    with pytest.raises(BackupNotFoundError):
        choose_backup([], Places(tmp_path), Terminal())


def test_interrupted_restore_is_told_with_what_is_live_and_who_could_have_made_it_up(
    report: Report, screen: io.StringIO, tmp_path: Path
) -> None:
    target = Target(tmp_path / "shop.db")
    target.path.touch()
    journal = begun_journal(target, existed=False)
    journal.write()
    live = show_interrupted(report.console, target)
    assert live == {"started": journal.started, "live": "old"}
    assert "others could have written" not in screen.getvalue()
    target.path.unlink()
    target.journal.chmod(0o666)
    live = show_interrupted(report.console, target)
    assert live == {"started": journal.started, "live": "missing"}
    assert "others could have written its journal: its mode is 0666" in screen.getvalue()


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
