"""How the backups are: each state is judged, said in a plugin's grammar, and what cannot be seen is not known."""

import argparse
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from backuplib import notify, proofs, status
from backuplib.backup_file import BEFORE_A_RESTORE, LOCAL, BackupInfo, checksum_path, checksum_text
from backuplib.doctor import Finding
from backuplib.errors import MissingProgramError, RemoteUnreachableError, UnusablePublicKeyError, WrongSettingError
from backuplib.monitoring import exposition
from backuplib.openpgp import Recipient
from backuplib.outcome import LastRestore
from backuplib.proofs import Proof
from backuplib.remote import Remote
from backuplib.running import taking_turn
from backuplib.state import State
from backuplib.status import Checkup, Subject
from backuplib.target import Target
from tests.support.journals import begun_journal
from tests.support.plugin import STATUSES, Plugin, alerts, metrics, plugin

KEY = Recipient("F" * 24 + "0123456789ABCDEF", frozenset({"A1" * 8}), "Shop <shop@example.org>")
FOREIGN = "evil | 'x'=1;2;3\nSHOPBOT BACKUP OK - \x1b[2J\u202e"
DAY = 86400

Ask = Callable[..., Plugin]


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """A database, a backup of three hours ago, a key that does not expire."""
    for folder in ("data", "backups"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data/shop.db").write_bytes(b"x" * 10_000)
    return Subject(
        db_path=tmp_path / "data/shop.db",
        backup_dir=tmp_path / "backups",
        public_key=b"key",
        max_age_hours=26,
        notified=False,
        remotes=(),
        warnings=(),
        wrong={},
        given=(),
        list_backups=lambda: [backup(tmp_path, hours=3)],
        recipients=lambda: [KEY],
    )


def backup(folder: Path, hours: float = 0, kind: str = "ordinary", name: str = "db_backup_x.db.gz") -> BackupInfo:
    """A backup with its checksum."""
    path, content = folder / "backups" / name, b"content"
    path.write_bytes(content)
    checksum_path(path).write_text(checksum_text(name, hashlib.sha256(content).hexdigest(), kind))
    made = datetime.now().astimezone() - timedelta(hours=hours)
    return BackupInfo(path, made, len(content), encrypted=False, kind=kind)


@pytest.fixture
def ask(subject: Subject, capsys: pytest.CaptureFixture[str]) -> Ask:
    """ask(**changes of the subject): the answer; its exit code is that of its status, in all three forms."""

    def answer(*words: str, **changes: Any) -> int:
        changed = replace(subject, **changes)
        return status.answer(["status", *words], argparse.Namespace, lambda: changed)

    def asked(**changes: Any) -> Plugin:
        code = answer(**changes)
        found = plugin(capsys.readouterr().out)
        assert code == STATUSES[found.status]
        assert answer("--json", **changes) == code
        report = json.loads(capsys.readouterr().out)
        assert (report["status"], report["exit_code"]) == (found.status, code)
        assert answer("--prometheus", **changes) == 0
        exposed = metrics(capsys.readouterr().out)
        assert [*exposed["shopbot_backup_status"].values()] == [code]
        return found

    return asked


def findings(subject: Subject, name: str) -> list[Finding]:
    return [item for item in Checkup(subject).run().findings if item.name == name]


# --- all of it -------------------------------------------------------------------------------------------------------


def test_all_is_well(ask: Ask) -> None:
    answer = ask()
    assert (answer.status, answer.text) == ("OK", "newest backup 3 hours old, checksum ok, never proved")
    assert {*answer.figures} == {"age", "size", "unproved", "disk_free", "memory_free"}
    assert 3 * 3600 <= answer.value("age") < 3 * 3600 + 60
    assert answer.figures["age"]["warn"] == str(26 * 3600)
    assert answer.figures["age"]["crit"] == str(52 * 3600)
    assert {answer.judged(label) for label in answer.figures} == {"OK"}


def test_nothing_is_touched(subject: Subject, tmp_path: Path) -> None:
    backups = subject.list_backups()

    def everything() -> list[tuple[str, int, int, int]]:
        stats = [(str(path), path.stat()) for path in sorted(tmp_path.rglob("*"))]
        return [(name, found.st_mtime_ns, found.st_ino, found.st_size) for name, found in stats]

    before = everything()
    state = Checkup(replace(subject, list_backups=lambda: backups)).run()
    assert everything() == before
    assert {item.name for item in state.findings} == {*status.LOOKS} - {"remote"}
    assert state.checksum == "ok"


def test_the_worst_comes_first_and_not_known_is_told_when_nothing_is_worse(ask: Ask, subject: Subject) -> None:
    unknown = WrongSettingError("MAX_DATABASE_MB is 'x'")
    answer = ask(wrong={"max_database_bytes": unknown})
    assert answer.status == "UNKNOWN"
    answer = ask(wrong={"max_database_bytes": unknown}, warnings=["mode 0644"], list_backups=list)
    assert answer.status == "CRITICAL"
    assert [part[:8] for part in answer.text.split("; ")] == ["no backu", "mode 064", "MAX_DATA"]


def test_json_has_all_of_it(subject: Subject) -> None:
    report = Checkup(subject).run().as_dict()
    assert report["backups"][0]["place"] == "local"
    assert report["backups"][0]["checksum"] == "ok"
    assert report["backups"][0]["age_seconds"] >= 3 * 3600
    assert report["public_keys"] == [{"fingerprint": KEY.fingerprint, "user_id": KEY.user_id, "expires": None}]
    assert report["room"]["needed_bytes"] == 7
    assert report["room"]["memory_needed_bytes"] == 10_000
    assert (report["running"], report["interrupted"], report["last_restore"]) == (None, False, None)


# --- the newest backup -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "expected"), [(25.9, "OK"), (26.1, "WARNING"), (51.9, "WARNING"), (52.1, "CRITICAL"), (9999, "CRITICAL")]
)
def test_age_is_judged_as_its_figure_says(ask: Ask, tmp_path: Path, hours: float, expected: str) -> None:
    answer = ask(list_backups=lambda: [backup(tmp_path, hours)])
    assert answer.judged("age") == expected
    assert (answer.status == "OK") == (expected == "OK")
    if expected != "OK":
        assert answer.text.startswith("newest backup ") or hours == 9999
        assert "more than 26 hours" in answer.text


def test_old_backup_is_fine_when_it_is_known_that_nothing_was_written_since(ask: Ask, tmp_path: Path) -> None:
    """Here, and at a remote that has the same one; not where another is the newest one."""
    made = backup(tmp_path, 53)
    same = replace(made, path=Path(made.path.name), place="nas:b", sha256=made.recorded_checksum())
    known: dict[str, Any] = {"list_backups": lambda: [made], "unwritten_since": lambda: made.path}
    answer = ask(**known, remotes=[At("nas:b", found=[same])])
    assert (answer.status, answer.judged("age"), answer.judged("age_nas:b")) == ("OK", "OK", "OK")
    unwritten = "2 days old, nothing was written since"
    assert answer.text.startswith(f"newest backup {unwritten}, newest at nas:b {unwritten}, ")
    for other in (
        replace(same, sha256="b" * 64),
        replace(same, sha256=None),
        replace(same, path=Path("db_backup_y.db.gz")),
    ):
        assert ask(**known, remotes=[At("nas:b", found=[other])]).status == "CRITICAL"
    for not_known in (None, tmp_path / "backups/db_backup_y.db.gz"):
        answer = ask(**known | {"unwritten_since": lambda path=not_known: path})
        assert (answer.status, "nothing was written" in answer.text) == ("CRITICAL", False)


def test_setting_says_what_is_too_old(ask: Ask) -> None:
    assert ask(max_age_hours=2).status == "WARNING"
    assert ask(max_age_hours=1).status == "CRITICAL"


@pytest.mark.parametrize(
    ("hours", "kind", "expected"),
    [(1, BEFORE_A_RESTORE, "CRITICAL"), (1, "files as they were", "CRITICAL"), (-10, "ordinary", "UNKNOWN")],
)
def test_what_latest_would_not_restore_is_not_the_newest(
    ask: Ask, tmp_path: Path, hours: float, kind: str, expected: str
) -> None:
    assert ask(list_backups=lambda: [backup(tmp_path, hours, kind)]).status == expected
    both = [backup(tmp_path, hours, kind), backup(tmp_path, 4, name="db_backup_y.db.gz")]
    assert ask(list_backups=lambda: both).text.startswith("newest backup 4 hours old")


def test_no_backup_is_critical(ask: Ask) -> None:
    answer = ask(list_backups=list)
    assert answer.status == "CRITICAL"
    assert "age" not in answer.figures


def damage(path: Path) -> None:
    path.write_bytes(b"other")


def lose_checksum(path: Path) -> None:
    checksum_path(path).unlink()


def spoil_checksum(path: Path) -> None:
    checksum_path(path).write_text("no checksum")


@pytest.mark.parametrize(
    ("change", "expected"),
    [(damage, "CRITICAL"), (lose_checksum, "UNKNOWN"), (spoil_checksum, "UNKNOWN"), (Path.unlink, "UNKNOWN")],
)
def test_checksum(ask: Ask, tmp_path: Path, change: Callable[[Path], None], expected: str) -> None:
    made = backup(tmp_path)
    change(made.path)
    assert ask(list_backups=lambda: [made]).status == expected


def test_reading_a_large_backup_ends_in_time(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "CHECKSUM_SECONDS", -1.0)
    answer = ask()
    assert (answer.status, "not compared" in answer.text) == ("UNKNOWN", True)


# --- proofs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proved_days", "oldest_days", "expected"),
    [(0, 1, "OK"), (0, 36, "WARNING"), (1, 400, "OK"), (34, 400, "OK"), (36, 400, "WARNING")],
)
def test_proof(ask: Ask, tmp_path: Path, proved_days: int, oldest_days: int, expected: str) -> None:
    """Zero days: it never was."""
    if proved_days:
        when = datetime.now().astimezone() - timedelta(days=proved_days)
        proofs.record(tmp_path / "backups", Proof("ab" * 32, "db_backup_x.db.gz", when, "verified"))
    oldest = replace(backup(tmp_path), created=datetime.now().astimezone() - timedelta(days=oldest_days))
    answer = ask(list_backups=lambda: [backup(tmp_path, 1), oldest])
    assert answer.status == answer.judged("unproved") == expected
    assert (f"proved {proved_days} day" in answer.text) == (proved_days in (1, 34))


def test_proof_of_a_clock_that_was_wrong_silences_nothing(ask: Ask, tmp_path: Path) -> None:
    def prove(days: float) -> None:
        when = datetime.now().astimezone() + timedelta(days=days)
        proofs.record(tmp_path / "backups", Proof("ab" * 32, "db_backup_x.db.gz", when, "verified"))

    prove(3650)
    answer = ask()
    assert (answer.status, "its time is in the future" in answer.text) == ("UNKNOWN", True)
    prove(-36)
    answer = ask()
    assert (answer.status, answer.judged("unproved")) == ("WARNING", "WARNING")
    prove(1 / DAY)  # clocks differ
    assert ask().status == "OK"


def test_planted_proofs_are_not_believed(ask: Ask, subject: Subject) -> None:
    path = subject.backup_dir / proofs.NAME
    path.write_bytes(Proof("ab" * 32, "x", datetime.now().astimezone(), "verified").line())
    path.chmod(0o666)
    answer = ask()
    assert (answer.status, "proved is not known" in answer.text) == ("UNKNOWN", True)


# --- restores --------------------------------------------------------------------------------------------------------


def test_restore_that_runs_is_said(ask: Ask, subject: Subject) -> None:
    with taking_turn(Target(subject.db_path).lock_file):
        answer = ask()
        assert answer.status == "OK"
        assert re.search(rf"a restore is running: .+ \(pid {os.getpid()}\), at work since", answer.text)
        exposed = {
            name: value for gauge in Checkup(subject).run().gauges() for name, value in [(gauge.name, gauge.values)]
        }
        assert exposed["shopbot_backup_restore_running"] == {(): 1}


def test_restore_that_was_interrupted_is_critical(ask: Ask, subject: Subject) -> None:
    target = Target(subject.db_path)
    begun_journal(target).write()
    answer = ask()
    assert (answer.status, "begun at 2025-01-30T15:30:45+00:00 was interrupted" in answer.text) == ("CRITICAL", True)
    target.journal.chmod(0o666)
    assert "others could have written" in ask().text
    target.journal.write_text("{}")
    assert ask().status == "CRITICAL"


@pytest.mark.parametrize(
    ("outcome", "days", "expected"),
    [
        ("restored", 1, "OK"),
        ("rolled back", 1, "OK"),
        ("recovered", 1, "OK"),
        ("services down", 1, "CRITICAL"),
        ("rollback failed", 6, "CRITICAL"),
        ("services down", 8, "OK"),
    ],
)
def test_how_the_last_restore_ended(ask: Ask, subject: Subject, outcome: str, days: int, expected: str) -> None:
    ended = (datetime.now().astimezone() - timedelta(days=days)).isoformat()
    LastRestore(str(subject.db_path), ended, outcome, "new").write(subject.backup_dir)
    assert ask().status == expected
    assert outcome in findings(subject, "last-restore")[0].text


def test_planted_outcome_is_not_known(ask: Ask, subject: Subject) -> None:
    (subject.backup_dir / "last-restore.json").write_text("[]")
    assert ask().status == "UNKNOWN"


# --- the next backup -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "expected"), [(15, "OK"), (13, "WARNING"), (-1, "CRITICAL")])
def test_expiry_of_the_public_key_is_judged_as_its_figure_says(ask: Ask, days: int, expected: str) -> None:
    expiring = replace(KEY, expires=int(time.time()) + days * DAY + 60)
    answer = ask(recipients=lambda: [KEY, expiring])
    assert answer.judged("key_0123456789ABCDEF_expires") == expected
    if days > 0:  # else the program refuses the key before
        assert answer.status == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UnusablePublicKeyError("has expired"), "CRITICAL"),
        (WrongSettingError("no public key"), "CRITICAL"),
        (MissingProgramError("gpg is not installed"), "UNKNOWN"),
        (ModuleNotFoundError(name="gnupg"), "UNKNOWN"),
    ],
)
def test_public_key_that_cannot_be_used(ask: Ask, error: Exception, expected: str) -> None:
    def fail() -> list[Recipient]:
        raise error

    assert ask(recipients=fail).status == expected


def test_no_public_key_is_a_warning(ask: Ask) -> None:
    assert ask(public_key=None).status == "WARNING"


@pytest.mark.parametrize(("free", "expected"), [(6, "CRITICAL"), (20, "WARNING"), (21, "OK")])
def test_room_on_the_disk(ask: Ask, monkeypatch: pytest.MonkeyPatch, free: int, expected: str) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    answer = ask()
    assert answer.status == answer.judged("disk_free") == expected


def test_room_in_memory(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "available_memory", lambda: 9_000)
    answer = ask()
    assert answer.status == answer.judged("memory_free") == "WARNING"


def test_no_database_is_a_warning(ask: Ask, subject: Subject) -> None:
    subject.db_path.unlink()
    assert ask().status == "WARNING"


def test_missing_apprise_is_a_warning_with_how_to_install_it(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "find_spec", lambda _: None)
    assert ask().status == "OK"
    answer = ask(notified=True)
    assert (answer.status, notify.package_hint() in answer.text) == ("WARNING", True)


# --- remotes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class At(Remote):
    """A remote that has what a test says."""

    found: Any = ()
    probe: int | None = None

    def backups(self) -> list[BackupInfo]:
        if isinstance(self.found, Exception):
            raise self.found
        return list(self.found)

    def size(self, name: str) -> int | None:
        return self.probe if name.startswith(".") else None


def test_each_remote_is_judged_for_itself(ask: Ask, subject: Subject, tmp_path: Path) -> None:
    def there(hours: float, place: str) -> BackupInfo:
        return replace(backup(tmp_path, hours), path=Path("x.db.gz"), place=place)

    good, late = At("offsite:shopbot", found=[there(4, "offsite:shopbot")]), At("nas:b", found=[there(30, "nas:b")])
    answer = ask(remotes=[good])
    assert answer.text == "newest backup 3 hours old, newest at offsite:shopbot 4 hours old, checksum ok, never proved"
    assert answer.value("age_offsite:shopbot") >= 4 * 3600
    answer = ask(remotes=[good, late])
    assert (answer.status, answer.judged("age_nas:b"), answer.judged("age")) == ("WARNING", "WARNING", "OK")
    assert ask(remotes=[good, At("empty:")]).status == "CRITICAL"
    locked = Checkup(replace(subject, remotes=[replace(good, probe=42), late])).run()
    assert locked.removable == {"offsite:shopbot": False, "nas:b": None}
    told = [item.text for item in locked.findings if item.name == "remote"]
    assert [text.partition(" (locked)")[1:2] for text in told] == [(" (locked)",), ("",)]


def test_newest_at_a_remote_is_the_newest_that_has_a_checksum(ask: Ask, tmp_path: Path) -> None:
    """A newer one that has none, such as an interrupted copy, is told; where none has one, they are what there is."""
    doubt = "no checksum there: an interrupted copy, or somebody else's"
    old = replace(backup(tmp_path, 30), path=Path("old.db.gz"), place="nas:b")
    cut = replace(old, path=Path("new.db.gz"), created=old.created + timedelta(hours=29), doubt=doubt)
    answer = ask(remotes=[At("nas:b", found=[cut, old])])
    assert (answer.status, answer.value("age_nas:b") >= 30 * 3600) == ("WARNING", True)
    assert f"newest at nas:b 1 day old (a newer new.db.gz not counted: {doubt})" in answer.text
    answer = ask(remotes=[At("nas:b", found=[cut, replace(old, doubt=doubt)])])
    assert (answer.status, f"newest at nas:b 1 hour old ({doubt})" in answer.text) == ("OK", True)


def test_remote_that_does_not_answer_is_a_warning_in_its_own_words(ask: Ask) -> None:
    error = RemoteUnreachableError("offsite: does not answer: connection refused")
    answer = ask(remotes=[At("offsite:", found=error)])
    assert answer.status == "WARNING"
    assert answer.text.startswith("offsite: does not answer: connection refused: what is there is not known; ")


@pytest.mark.needs("rclone")
def test_real_remote(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / f"there/db_backup_{datetime.now().astimezone():%Y%m%d_%H%M%S}.db.gz.gpg").write_bytes(b"x")
    place = f"here:{tmp_path}/there"
    answer = ask(remotes=[Remote(place, {"RCLONE_CONFIG_HERE_TYPE": "local"})])
    assert (answer.status, answer.value(f"age_{place}") < 60) == ("OK", True)


# --- what cannot be seen ---------------------------------------------------------------------------------------------


def test_without_env_file_only_what_the_environment_has_is_looked_at(ask: Ask, subject: Subject) -> None:
    wrong = {"env_file": WrongSettingError("cannot read .env: Permission denied")}
    answer = ask(wrong=wrong, list_backups=list, public_key=None)
    assert (answer.status, [*answer.figures]) == ("UNKNOWN", [])
    answer = ask(wrong=wrong, given=["DB_BACKUP_PATH"])
    assert (answer.status, answer.value("age") > 0, "memory_free" in answer.figures) == ("UNKNOWN", True, False)
    answer = ask(wrong=wrong, given=["DB_BACKUP_PATH"], list_backups=list)
    assert answer.status == "CRITICAL"  # that is known


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "/srv/x"), WrongSettingError("x")])
def test_what_cannot_be_looked_at_leaves_the_rest(ask: Ask, error: Exception) -> None:
    def fail() -> list[BackupInfo]:
        raise error

    answer = ask(list_backups=fail)
    assert answer.status == "UNKNOWN"
    assert "memory_free" in answer.figures


@pytest.mark.parametrize("form", ["", "--json", "--prometheus"])
@pytest.mark.parametrize("error", [RuntimeError(FOREIGN), WrongSettingError("x | y"), MemoryError()])
def test_there_is_one_line_whatever_happens(capsys: pytest.CaptureFixture[str], error: Exception, form: str) -> None:
    def fail() -> Subject:
        raise error

    assert status.answer(["status", form], argparse.Namespace, fail) == 3
    out, err = capsys.readouterr()
    if form == "--prometheus":
        assert (out, plugin(err).status) == ("", "UNKNOWN")
    elif form == "--json":
        assert json.loads(out)["status"] == "UNKNOWN"
    else:
        assert (plugin(out).status, err) == ("UNKNOWN", "")


def test_foreign_names_end_no_line_and_make_no_figure(ask: Ask, tmp_path: Path) -> None:
    made = replace(backup(tmp_path), path=tmp_path / f"backups/{FOREIGN}")
    there = At(f"a={FOREIGN}", found=[made])
    key = replace(KEY, user_id=FOREIGN, expires=int(time.time()) + DAY)
    answer = ask(
        list_backups=lambda: [made], warnings=[FOREIGN], remotes=[there], recipients=lambda: [key], max_age_hours=26
    )
    assert (answer.status, "x" in answer.figures) == ("WARNING", False)


def test_name_that_is_not_utf8_does_not_spoil_the_metrics(subject: Subject) -> None:
    state = State('/srv/"x"\\\udcff\n/shop.db', newest={LOCAL: subject.list_backups()[0]})
    exposed = metrics(exposition(state.gauges(), database=state.database))
    assert [*exposed["shopbot_backup_status"]] == ['database="/srv/\\"x\\"\\\\??/shop.db"']


# --- the parser itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "right"),
    [
        ("SHOPBOT BACKUP OK - x\n", True),
        ("SHOPBOT BACKUP OK - x | 'a'=1s;2;3;0 'b c'=4\n", True),
        ("SHOPBOT BACKUP OK - x | 'a'=1 'a'=2\n", False),
        ("SHOPBOT BACKUP OK - x | 'a'=1x\n", False),
        ("SHOPBOT BACKUP OK - x | 'a'=1;b\n", False),
        ("SHOPBOT BACKUP OK - x\ny\n", False),
        ("SHOPBOT BACKUP FINE - x\n", False),
    ],
)
def test_parser_takes_what_the_guidelines_say(printed: str, right: bool) -> None:
    if right:
        plugin(printed)
    else:
        with pytest.raises(AssertionError):
            plugin(printed)


def test_ranges_are_those_of_the_guidelines() -> None:
    cases = {"10": [-1, 11], "10:": [9], "~:10": [11], "10:20": [9, 21], "@10:20": [10, 20]}
    assert {text: [value for value in (-1, 9, 10, 11, 20, 21) if alerts(text, value)] for text in cases} == {
        "10": [-1, 11, 20, 21],
        "10:": [-1, 9],
        "~:10": [11, 20, 21],
        "10:20": [-1, 9, 21],
        "@10:20": [10, 11, 20],
    }
    assert all(alerts(text, value) for text, values in cases.items() for value in values)
