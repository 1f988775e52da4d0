"""What a restore would need, looked at without the key: each check tells what is, and what it cannot tell."""

import gzip
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from backuplib import doctor
from backuplib.backup_file import BackupInfo, checksum_path
from backuplib.bot import Bot
from backuplib.console import Report
from backuplib.database import Engine
from backuplib.doctor import CHECKS, OK, PROBLEM, UNKNOWN, WARNING, Checkup, Finding, Subject
from backuplib.errors import (
    CheckFoundProblemsError,
    DockerUnreachableError,
    RemoteUnreachableError,
    UnusablePublicKeyError,
    WrongSettingError,
)
from backuplib.files import create_file
from backuplib.formatting import instant
from backuplib.openpgp import Recipient
from backuplib.remote import Remote
from backuplib.running import taking_turn
from backuplib.secret import Secret
from backuplib.signing import SigningFolder
from backuplib.target import Target
from tests.support.inspected import FakeDocker, inspect_data, mounted
from tests.support.journals import begun_journal

DB_PASS = "pa=ss'word"  # of the bot in tests/support/inspected.py
KEY_ID = "A1" * 8
OURS = Recipient("F" * 24 + "0123456789ABCDEF", frozenset({KEY_ID}), "Shop <shop@example.org>")

NEEDED = {name for name in CHECKS if name not in ("mounts", "bot-settings", "services", "remotes")}
"""What is always looked at, whether there is a bot or a remote or not."""


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """A plain database, a backup of it that is not encrypted, a public key, and no Docker."""
    for folder in ("data", "backups"):
        (tmp_path / folder).mkdir()
    make_database(tmp_path / "data/shop.db", None)
    backups = [backup(tmp_path, gzip.compress(b"x" * 70_000))]
    return Subject(
        env_file=tmp_path / ".env",
        warnings=(),
        wrong={},
        target=tmp_path / "data/shop.db",
        db_pass=None,
        backup_dir=tmp_path / "backups",
        backup_file=None,
        public_key=b"key",
        signing=SigningFolder(tmp_path / "signing"),
        require_signature=False,
        services=(),
        skip_backup=False,
        allow_swap=True,
        convert=False,
        memory_limit=1 << 30,
        max_age_hours=26,
        find_bot=lambda: None,
        list_backups=lambda: backups,
        recipients=lambda: [OURS],
    )


class Place(Remote):
    """A remote that says what the test wants."""

    def backups(self) -> list[BackupInfo]:
        if self.place == "dead:":
            raise RemoteUnreachableError("dead: does not answer", hint="Check the network.")
        made = datetime.now().astimezone() - timedelta(hours=int(self.variables["hours"]))
        return [BackupInfo(Path("db_backup_x.gpg"), made, 9, encrypted=True, place=self.place)]

    def may_remove(self) -> bool | None:
        return {"yes": True, "no": False}.get(self.variables["may"])


@pytest.mark.parametrize(
    ("hours", "may", "status", "said"),
    [
        ("1", "yes", OK, "lets us remove them"),
        ("1", "no", OK, "does not let us remove them"),
        ("1", "?", OK, "is not known"),
        ("27", "no", WARNING, "27 hours|1 day ago"),
    ],
)
def test_remotes_are_told_with_their_newest_and_with_what_they_permit(
    subject: Subject, hours: str, may: str, status: str, said: str
) -> None:
    """One that does not answer is a warning: a restore from here needs none."""
    places = [Place("dead:"), Place("nas:", {"hours": hours, "may": may})]
    found = list(Checkup(replace(subject, remotes=places)).remotes())
    assert [item[0] for item in found] == [WARNING, status]
    assert "does not answer" in found[0][1]
    assert "nas: has 1 backup, the newest of" in found[1][1]
    assert re.search(said, found[1][1])
    assert ("push" in found[1][2]) if status == WARNING else found[1][2:] == ()


def make_database(path: Path, db_pass: str | None) -> None:
    """A database with one table."""
    create_file(path).close()
    with closing(Engine(Secret(db_pass) if db_pass else None).connect(path)) as connection:
        connection.execute("CREATE TABLE customers (id)")


def backup(folder: Path, content: bytes, *key_ids: str, days: float = 0, name: str = "new.db.gz") -> BackupInfo:
    """A backup with its checksum."""
    path = folder / "backups" / name
    path.write_bytes(content)
    checksum_path(path).write_text(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    made = datetime.now().astimezone() - timedelta(days=days)
    return BackupInfo(path, made, len(content), encrypted=bool(key_ids), key_ids=key_ids)


def found(subject: Subject, *names: str, **changes: Any) -> list[Finding]:
    """What the checks of these names find, or all of them."""
    chosen = {*names} or {*CHECKS}
    needed = {other for name in chosen for other in CHECKS[name][1] if other in CHECKS}
    with mock.patch.object(doctor, "CHECKS", {name: CHECKS[name] for name in CHECKS if name in chosen | needed}):
        return [finding for finding in Checkup(replace(subject, **changes)).findings() if finding.name in chosen]


def statuses(subject: Subject, *names: str, **changes: Any) -> list[str]:
    return [finding.status for finding in found(subject, *names, **changes)]


# --- all of them -----------------------------------------------------------------------------------------------------


def test_everything_is_looked_at_and_nothing_is_touched(subject: Subject, tmp_path: Path) -> None:
    def everything() -> list[tuple[str, int, int, bytes]]:
        paths = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        folders = [
            (str(path), path.stat().st_mtime_ns, 0, b"") for path in sorted(tmp_path.rglob("*")) if path.is_dir()
        ]
        return folders + [(str(of), of.stat().st_mtime_ns, of.stat().st_ino, of.read_bytes()) for of in paths]

    before = everything()
    findings = found(subject)
    assert {finding.name for finding in findings} == NEEDED
    assert not [finding for finding in findings if finding.status == PROBLEM]
    assert all(finding.text for finding in findings)
    assert everything() == before


def test_problems_are_counted_at_the_end_and_are_an_error_of_their_own(subject: Subject, report: Report) -> None:
    with pytest.raises(CheckFoundProblemsError) as raised:
        doctor.run(replace(subject, list_backups=list, target=subject.target.parent), report)
    assert (int(raised.value.exit_code), raised.value.id) == (3, "check-found-problems")
    problems = [check["name"] for check in report.checks if check["status"] == PROBLEM]
    assert problems == ["database", "newest-backup"]
    assert "2 problems" in str(raised.value)
    assert report.outcome == "checked"


def test_what_is_found_is_said_with_what_to_do(subject: Subject, report: Report, screen: Any) -> None:
    doctor.run(replace(subject, public_key=None), report)
    assert report.outcome == "checked"
    assert {*map(tuple, report.checks)} == {("name", "status", "text", "hint")}
    (line,) = [line for line in screen.getvalue().splitlines() if "public-key" in line]
    assert line.startswith("[!]")
    assert "gpg --armor --export" in screen.getvalue()
    assert screen.getvalue().splitlines()[-1].startswith("[ok] Nothing was found that would refuse a restore: ")


def test_foreign_names_steer_no_terminal(subject: Subject, tmp_path: Path, report: Report, screen: Any) -> None:
    planted = backup(tmp_path, gzip.compress(b""), name="a\x1b[2Jb\nc.db.gz")
    doctor.run(replace(subject, list_backups=lambda: [planted]), report)
    assert "\x1b" not in screen.getvalue()
    assert "\nc.db" not in screen.getvalue()


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/srv/x"), ModuleNotFoundError(name="gnupg")]
)
def test_what_cannot_be_looked_at_is_unknown_and_never_right(subject: Subject, error: Exception) -> None:
    def fail() -> Any:
        raise error

    assert statuses(subject, "newest-backup", "checksum", "opened-by", "room", list_backups=fail) == [UNKNOWN] * 4
    assert statuses(subject, "public-key", recipients=fail) == [UNKNOWN]


# --- this machine ----------------------------------------------------------------------------------------------------


def test_wrong_settings_are_all_told_and_what_depends_on_them_is_not_looked_at(subject: Subject) -> None:
    wrong = {name: WrongSettingError(f"{name} is wrong", hint="Right it.") for name in ("db_pass", "environment")}
    findings = found(subject, wrong=wrong, warnings=["odd"])
    assert [(item.status, item.text, item.hint) for item in findings if item.name == "settings"] == [
        (PROBLEM, "db_pass is wrong", "Right it."),
        (PROBLEM, "environment is wrong", "Right it."),
        (WARNING, "odd", ""),
    ]
    unknown = {item.name for item in findings if item.status == UNKNOWN}
    assert unknown >= {"docker", "mounts", "bot-settings", "services", "in-use", "database"}
    assert "newest-backup" not in unknown


def test_env_file_that_cannot_be_read_leaves_nothing_but_the_machine_to_look_at(subject: Subject) -> None:
    findings = found(subject, wrong={"env_file": WrongSettingError("cannot read .env")})
    known = {item.name for item in findings if item.status != UNKNOWN}
    assert known == {"settings", "packages", "gpg", "memory"}


def test_missing_packages_are_told_all_at_once(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dotenv", "gnupg", "sqlcipher3"):
        monkeypatch.setitem(sys.modules, name, None)
    told = found(subject, "packages")
    assert [item.status for item in told] == [PROBLEM] * 2  # SQLCipher is not needed here
    assert "python-dotenv" in told[0].text
    assert "python-gnupg" in told[1].text
    assert all(item.hint for item in told)
    assert len(found(subject, "packages", db_pass=Secret("x"))) == 3


def test_missing_gpg_is_a_problem(subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "GnuPG" in found(subject, "gpg")[0].text
    monkeypatch.setenv("PATH", str(tmp_path))
    assert statuses(subject, "gpg") == [PROBLEM]
    assert statuses(subject, "gpg", public_key=None) == [WARNING]  # backups that are not encrypted still restore


# --- the bot ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_bot(subject: Subject, fake_docker: FakeDocker, tmp_path: Path) -> Callable[..., list[Finding]]:
    """with_bot(container, …): what the checks find when the engine has these containers of the compose file."""
    file = tmp_path / "docker-compose.prod.yml"
    file.touch()

    def look(*containers: dict[str, Any], **changes: Any) -> list[Finding]:
        for data in containers:
            data["Config"]["Labels"]["com.docker.compose.project.config_files"] = str(file)
        fake_docker.has(*containers)
        changes |= {"db_pass": Secret(DB_PASS), "convert": True}  # the database itself may stay plain
        return found(subject, find_bot=lambda: Bot.find(file, subject.target, changes["db_pass"]), **changes)

    return look


def bot_with(folder: Path, **changes: Any) -> dict[str, Any]:
    return inspect_data(service="bot", Mounts=[mounted(folder)], **changes)


def test_bot_that_is_as_we_are_is_right(subject: Subject, with_bot: Callable[..., list[Finding]]) -> None:
    told = {item.name: item for item in with_bot(bot_with(subject.target.parent))}
    assert told.keys() == CHECKS.keys() - {"remotes"}
    assert not [item for item in told.values() if item.status == PROBLEM]
    assert [told[name].status for name in ("docker", "mounts", "bot-settings", "services")] == [OK] * 4
    assert "bot healthy" in told["docker"].text
    assert "DB_NAME, DB_ENCRYPTION, DB_PASS" in told["bot-settings"].text
    assert "bot will be stopped" in told["services"].text
    assert DB_PASS not in str(told)


def test_all_settings_that_differ_are_told_at_once(subject: Subject, with_bot: Callable[..., list[Finding]]) -> None:
    other = ["DB_NAME=other.db", "DB_ENCRYPTION=false", "DB_PASS=s3cret of the bot"]
    told = [item for item in with_bot(bot_with(subject.target.parent, Config_Env=other)) if item.name == "bot-settings"]
    assert [item.status for item in told] == [PROBLEM] * 3
    for name, item in zip(("DB_NAME", "DB_ENCRYPTION", "DB_PASS"), told, strict=True):
        assert name in item.text
        assert item.hint
    assert "s3cret" not in str(told)
    assert DB_PASS not in str(told)


def test_bot_with_another_folder_is_a_problem_and_its_settings_are_not_called_right(
    tmp_path: Path, with_bot: Callable[..., list[Finding]]
) -> None:
    told = {item.name: item for item in with_bot(bot_with(tmp_path / "elsewhere"))}
    assert told["mounts"].status == PROBLEM
    assert str(tmp_path / "elsewhere") in told["mounts"].text
    assert told["bot-settings"].status == UNKNOWN


def test_settings_that_no_container_has_are_not_called_right(
    subject: Subject, with_bot: Callable[..., list[Finding]]
) -> None:
    told = {item.name: item for item in with_bot(bot_with(subject.target.parent, Config_Env=["PATH=/bin"]))}
    assert told["bot-settings"].status == UNKNOWN


def test_stranger_that_can_write_to_the_database_is_a_problem(
    subject: Subject, with_bot: Callable[..., list[Finding]], fake_docker: FakeDocker
) -> None:
    fake_docker.has(inspect_data(service="other", Mounts=[mounted(subject.target.parent)]))
    told = {item.name: item for item in with_bot(bot_with(subject.target.parent))}
    assert told["services"].status == PROBLEM
    assert "other" in told["services"].text
    assert told["in-use"].status == UNKNOWN


def test_bot_that_is_not_here_is_unknown(with_bot: Callable[..., list[Finding]]) -> None:
    told = {item.name: item for item in with_bot()}
    assert told["docker"].status == UNKNOWN
    assert told.keys() & {"mounts", "bot-settings", "services"} == set()


def test_docker_that_does_not_answer_is_a_problem_and_what_it_would_tell_unknown(subject: Subject) -> None:
    def unreachable() -> Bot:
        raise DockerUnreachableError("permission denied", hint="sudo usermod -aG docker $USER")

    names = ("docker", "mounts", "bot-settings", "services", "in-use")
    told = found(subject, *names, find_bot=unreachable)
    assert [item.status for item in told] == [PROBLEM, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN]
    assert "usermod" in told[0].hint


# --- the database ----------------------------------------------------------------------------------------------------


def test_database_is_told_as_what_it_is(subject: Subject, tmp_path: Path) -> None:
    assert statuses(subject, "database") == [OK]
    assert statuses(subject, "database", target=tmp_path / "data/gone.db") == [WARNING]
    assert statuses(subject, "database", target=tmp_path / "nowhere/shop.db") == [PROBLEM]
    assert statuses(subject, "database", db_pass=Secret("x")) == [PROBLEM]  # DB_ENCRYPTION is true, and it is plain
    assert statuses(subject, "database", db_pass=Secret("x"), convert=True) == [OK]
    (tmp_path / "data/text.db").write_text("a text\n" * 1000)
    assert statuses(subject, "database", target=tmp_path / "data/text.db") == [WARNING]
    make_database(tmp_path / "data/cipher.db", "right")
    assert statuses(subject, "database", target=tmp_path / "data/cipher.db", db_pass=Secret("right")) == [OK]
    (told,) = found(subject, "database", target=tmp_path / "data/cipher.db", db_pass=Secret("wrong"))
    assert (told.status, "DB_PASS" in told.text) == (WARNING, True)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["cipher.db", "shop.db", "text.db"]


def test_link_that_a_restore_would_not_follow_is_a_problem(subject: Subject, tmp_path: Path) -> None:
    link = tmp_path / "data/link.db"
    link.symlink_to(subject.target)
    assert statuses(subject, "database", target=link) == [OK]
    link.parent.chmod(0o777)
    (told,) = found(subject, "database", target=link)
    assert (told.status, str(link) in told.text) == (PROBLEM, True)


def test_restore_that_runs_or_was_interrupted_is_told(subject: Subject) -> None:
    target = Target(subject.target)
    assert statuses(subject, "last-restore") == [OK]
    with taking_turn(target.lock_file):
        assert statuses(subject, "last-restore") == [PROBLEM]
    target.journal.write_text("{")
    assert statuses(subject, "last-restore") == [PROBLEM]
    journal = begun_journal(target, state="switching", new_inode=1)
    os.link(target.path, journal.set_aside)
    journal.write()
    (told,) = found(subject, "last-restore")
    assert told.status == WARNING
    assert "--recover" in told.hint
    assert "others could have written" not in told.text
    target.journal.chmod(0o666)
    (told,) = found(subject, "last-restore")
    assert "others could have written" in told.text
    target.path.unlink()
    target.path.write_bytes(b"somebody's own")
    assert statuses(subject, "last-restore") == [PROBLEM]


# --- keys and backups ------------------------------------------------------------------------------------------------


def test_missing_public_key_is_a_warning(subject: Subject) -> None:
    (told,) = found(subject, "public-key", public_key=None)
    assert told.status == WARNING
    assert "PGP_PUBLIC_KEY_BASE64" in told.text


@pytest.mark.parametrize(("days", "status"), [(None, OK), (31, OK), (29.5, WARNING)])
def test_public_key_that_expires_soon_is_a_warning(subject: Subject, days: float | None, status: str) -> None:
    expires = None if days is None else int(time.time() + days * 86400)
    told = found(subject, "public-key", recipients=lambda: [OURS, replace(OURS, expires=expires)])
    assert [item.status for item in told] == [OK, status]
    assert "Shop <shop@example.org> (0123456789ABCDEF)" in told[1].text
    assert ("29 days" in told[1].text and "--quick-set-expire" in told[1].hint) == (status == WARNING)


def test_public_key_that_cannot_encrypt_is_a_problem(subject: Subject) -> None:
    def expired() -> list[Recipient]:
        raise UnusablePublicKeyError("key A1 has expired")

    assert statuses(subject, "public-key", recipients=expired) == [PROBLEM]
    assert statuses(subject, "public-key", recipients=expired, skip_backup=True) == [WARNING]  # a restore would go on


def test_newest_backup_is_told_with_its_instant(subject: Subject, tmp_path: Path) -> None:
    (told,) = found(subject, "newest-backup")
    made = subject.list_backups()[0].created
    assert told.status == OK
    assert instant(made) in told.text
    assert "--verify-only" in told.hint
    old = backup(tmp_path, b"", days=2, name="db_backup_20250130_120000.db.gz")
    assert statuses(subject, "newest-backup", list_backups=lambda: [old]) == [WARNING]
    assert statuses(subject, "newest-backup", backup_file=old.path, list_backups=lambda: [old]) == [OK]
    assert statuses(subject, "newest-backup", backup_file=tmp_path / "gone") == [PROBLEM]


def test_file_that_is_no_backup_is_told_as_that(subject: Subject, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no backup at all\n")
    (told,) = found(subject, "newest-backup", backup_file=notes)
    assert (told.status, told.text) == (PROBLEM, f"{notes} is not a backup")
    assert "create" not in told.hint
    (told,) = found(subject, "newest-backup", backup_file=subject.target)
    assert (told.status, "live database" in told.text) == (PROBLEM, True)
    make_database(tmp_path / "copy.db", "secret")  # noise, which a restore may open
    (tmp_path / "link").symlink_to(backup(tmp_path, b"", name="db_backup_20250130_120000.db.gz").path)
    for name in ("copy.db", "link"):
        (told,) = found(subject, "newest-backup", backup_file=tmp_path / name)
        assert told.status == OK, told.text


def test_no_backup_is_a_problem_and_one_that_cannot_be_restored_is_none(subject: Subject, tmp_path: Path) -> None:
    raw = backup(tmp_path, b"x", KEY_ID, name="db_backup_20250130_120000.raw.tar.gz.gpg")
    for backups in ([], [raw]):
        told = found(subject, "newest-backup", "checksum", list_backups=lambda backups=backups: backups)
        assert [item.status for item in told] == [PROBLEM, UNKNOWN]
        assert "database_backup.py create" in told[0].hint


def test_checksum_is_compared(subject: Subject) -> None:
    path = subject.list_backups()[0].path
    assert statuses(subject, "checksum") == [OK]
    checksum_path(path).unlink()
    assert statuses(subject, "checksum") == [UNKNOWN]
    checksum_path(path).write_text("0" * 64)
    assert statuses(subject, "checksum") == [PROBLEM]
    checksum_path(path).write_text("nothing")
    assert statuses(subject, "checksum") == [PROBLEM]


def test_who_can_open_the_backup_is_told(subject: Subject, tmp_path: Path) -> None:
    def told(*key_ids: str, **changes: Any) -> list[tuple[str, str]]:
        made = backup(tmp_path, b"x", *key_ids)
        items = found(subject, "opened-by", "public-key", list_backups=lambda: [made], **changes)
        return [(item.status, item.text) for item in items if item.name == "opened-by"]

    assert [status for status, _ in told()] == [WARNING]  # everybody can
    ((status, text),) = told(KEY_ID)
    assert (status, KEY_ID in text, OURS.user_id in text) == (OK, True, True)
    assert [status for status, _ in told("B2" * 8)] == [WARNING, WARNING]  # another key; and ours does not
    assert [status for status, _ in told(KEY_ID, "B2" * 8)] == [OK, WARNING]
    assert [status for status, _ in told("0" * 16)] == [UNKNOWN]
    assert [status for status, _ in told(KEY_ID, public_key=None)] == [UNKNOWN]


def test_room_is_told_with_how_the_size_is_known(subject: Subject, tmp_path: Path) -> None:
    (told,) = found(subject, "room")
    assert told.status == OK
    assert "70.0 kB, as its gzip trailer says" in told.text
    assert statuses(subject, "room", memory_limit=69_999) == [PROBLEM]
    message = backup(tmp_path, bytes.fromhex("84 5e") + b"\x03" + bytes(93) + b"\xd2\x00", KEY_ID, name="new.db.gz.gpg")
    options: dict[str, Any] = {"list_backups": lambda: [message]}
    (told,) = found(subject, "room", **options)
    assert (told.status, "estimated by the live database" in told.text) == (OK, True)
    assert statuses(subject, "room", memory_limit=message.size, **options) == [WARNING]
    assert statuses(subject, "room", memory_limit=message.size - 1, **options) == [PROBLEM]  # that is certain
    subject.target.unlink()
    (told,) = found(subject, "room", **options)
    assert (told.status, "only the key tells" in told.text) == (UNKNOWN, True)
