"""Backup files: told apart by their first bytes, and held against the checksum beside them."""

import gzip
import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from backuplib.backup_file import (
    BACKUP_NAME,
    BEFORE_A_RESTORE,
    BackupFile,
    BackupInfo,
    backup_time,
    checksum_path,
    checksum_text,
    outer_layer,
    recorded_checksum,
)
from backuplib.console import Step
from backuplib.errors import (
    BackupNotFoundError,
    ChecksumMismatchError,
    ChecksumUnreadableError,
    DamagedMessageError,
    NoMemoryError,
    NotABackupError,
    WrongPassphraseError,
)

MESSAGE = bytes.fromhex("85010c03fbcf2caaf10121060108008f686d115dbb851e74")
PASSPHRASE_MESSAGE = bytes.fromhex("8c0d04090302034af37d4371ce8960d25401b82c56c945c8")
DATABASE = b"SQLite format 3\0\x10\0\1\1\0@  "
NOISE = bytes.fromhex("37a1c04b9e55d2310c6f")
DUMP = b"PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n"
NAME = "db_backup_20250130_120000.db.gz"


def plant(path: Path, kind: str) -> None:
    """Something that is no regular file."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link in a circle":
        path.symlink_to(path)


# --- the outermost layer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "name", "size", "layer"),
    [
        (MESSAGE, "a.gpg", 5001, "openpgp"),
        (MESSAGE, "a.db", 5001, "openpgp"),
        (MESSAGE, "a.db", 4096, "openpgp"),
        (b"-----BEGIN PGP MESSAGE-----\n\n", "a.asc", 5001, "openpgp"),
        (PASSPHRASE_MESSAGE, "a.gpg", 4096, "openpgp"),
        (PASSPHRASE_MESSAGE, "a.db", 5001, "openpgp"),
        (PASSPHRASE_MESSAGE, "a.db", 8192, "database"),  # whole pages: rather a SQLCipher database that looks like one
        (gzip.compress(b"", mtime=0), "a.db.gz", 20, "gzip"),
        (gzip.compress(b"", mtime=0), "a.db.gz.gpg", 20, "gzip"),
        (b"\x1f\x8b\x07", "a.db", 4096, "database"),
        (DATABASE, "a.db", 4096, "database"),
        (DATABASE, "a.db.gz.gpg", 4096, "database"),
        (NOISE, "a.db.gz", 4096, "database"),
        (NOISE, "a", 77, "database"),
        (DUMP, "a.sql", 77, "database"),
        (DUMP, "a.gpg", 77, "database"),
        (b"", "a.db", 0, "database"),
    ],
)
def test_layer_is_told_by_content(head: bytes, name: str, size: int, layer: str) -> None:
    assert outer_layer(head, name, size) == layer


@pytest.mark.parametrize("head", [b"", NOISE, b"<html>"])
def test_file_that_is_named_encrypted_and_is_not_is_refused(head: bytes) -> None:
    with pytest.raises(DamagedMessageError):
        outer_layer(head, "a.db.gz.gpg", 4096)


# --- names and times -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".db", ".db.gz", ".db.gz.gpg", ".db.gpg", ".raw.tar", ".raw.tar.gz.gpg"])
def test_names_of_backups(ending: str) -> None:
    assert BACKUP_NAME.fullmatch(f"db_backup_20250130_120000{ending}")


@pytest.mark.parametrize(
    "name",
    [
        f"{NAME}.sha256",
        f"{NAME}.gpg.part",
        f".{NAME}",
        f"{NAME}\n",
        "db_backup_2025013_120000.db",
        "db_backup_20250130_120000.tar",
        "shop.db",
    ],
)
def test_names_of_other_files(name: str) -> None:
    assert not BACKUP_NAME.fullmatch(name)


@pytest.fixture
def in_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """in_zone("Europe/Berlin"): from now on this machine is there."""

    def move(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


def file_of(folder: Path, name: str, written: datetime) -> Path:
    """A file of that name, written then."""
    path = folder / name
    path.touch()
    os.utime(path, (written.timestamp(),) * 2)
    return path


ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "America/St_Johns")


@pytest.mark.parametrize("maker", [*ZONES, "Pacific/Kiritimati", "Etc/GMT+12"])
@pytest.mark.parametrize("month", [1, 7])
@pytest.mark.parametrize("seconds", [-20, 0, 90], ids=["the check took a while", "at once", "writing took a while"])
def test_name_is_in_the_zone_that_the_time_of_its_file_tells(
    tmp_path: Path, in_zone: Callable[[str], None], maker: str, month: int, seconds: int
) -> None:
    made = datetime(2025, month, 30, 12, 0, 17, tzinfo=UTC)
    name = f"db_backup_{made.astimezone(ZoneInfo(maker)):%Y%m%d_%H%M%S}.db.gz.gpg"
    path = file_of(tmp_path, name, made + timedelta(seconds=seconds))
    for reader in ZONES:
        in_zone(reader)
        assert backup_time(path) == made
        assert backup_time(path).utcoffset() == made.astimezone(ZoneInfo(reader)).utcoffset()


@pytest.mark.parametrize("hour", [0, 1], ids=["in summer time", "in winter time"])
def test_hour_that_comes_twice_is_told_by_the_time_of_its_file(
    tmp_path: Path, in_zone: Callable[[str], None], hour: int
) -> None:
    in_zone("Europe/Berlin")
    made = datetime(2025, 10, 26, hour, 30, tzinfo=UTC)  # both are 02:30 there
    assert backup_time(file_of(tmp_path, "db_backup_20251026_023000.db.gz", made)) == made


def test_name_of_a_copy_counts_as_one_of_this_machine(tmp_path: Path, in_zone: Callable[[str], None]) -> None:
    """Copied at 15:07:30: no zone has its name at that time."""
    in_zone("Europe/Berlin")
    copy = file_of(tmp_path, NAME, datetime(2025, 1, 30, 14, 7, 30, tzinfo=UTC))
    assert backup_time(copy) == datetime(2025, 1, 30, 11, tzinfo=UTC)
    os.utime(copy, (0, 0))
    assert backup_time(copy) == datetime(2025, 1, 30, 11, tzinfo=UTC)


def test_name_of_a_zone_that_does_not_exist_is_none_of_another_zone(
    tmp_path: Path, in_zone: Callable[[str], None]
) -> None:
    """A quarter of an hour, or 15 hours, from UTC."""
    in_zone("UTC")
    made = datetime(2025, 1, 30, 12, tzinfo=UTC)
    for apart in (timedelta(minutes=15), timedelta(hours=15), timedelta(days=3)):
        assert backup_time(file_of(tmp_path, NAME, made - apart)) == made


@pytest.mark.parametrize("name", ["copy.db.gz", "db_backup_20251332_256199.db.gz", "db_backup_00000000_000000.db.gz"])
def test_time_is_that_of_the_file_where_its_name_does_not_tell(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (1_700_000_000, 1_700_000_000))
    assert backup_time(tmp_path / name).timestamp() == 1_700_000_000


# --- kinds -----------------------------------------------------------------------------------------------------------


def kind_of(path: Path) -> str:
    info = BackupInfo.of(path)
    assert info
    return info.kind


def test_kind_is_recorded_beside_a_backup_where_sha256sum_skips_it(backup: Path) -> None:
    assert kind_of(backup) == "ordinary"
    note_checksum(backup)
    assert checksum_path(backup).read_text() == checksum_text(NAME, digest_of(backup), "ordinary")
    assert kind_of(backup) == "ordinary"
    checksum_path(backup).write_text(checksum_text(NAME, digest_of(backup), BEFORE_A_RESTORE))
    assert kind_of(backup) == "before a restore"
    assert recorded_checksum(backup) == digest_of(backup)
    done = subprocess.run(["sha256sum", "-c", "--strict", f"{NAME}.sha256"], cwd=backup.parent, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("text", ["files as they were", "of mine", "before a restore, or not", "\x1b[2J"])
def test_kind_that_others_invent_is_none(backup: Path, text: str) -> None:
    checksum_path(backup).write_text(f"{digest_of(backup)}  {NAME}\n# kind: {text}\n")
    assert kind_of(backup) == "ordinary"


@pytest.mark.timeout(10)
def test_kind_is_not_waited_for(backup: Path) -> None:
    os.mkfifo(checksum_path(backup))
    assert kind_of(backup) == "ordinary"


def test_kind_is_told_by_what_a_file_holds(tmp_path: Path) -> None:
    dump = b"BEGIN TRANSACTION;\nCREATE TABLE t (a);\n"
    for name, content, kind in (
        ("db_backup_20250130_120000.raw.tar.gz.gpg", b"", "files as they were"),
        ("db_backup_20250130_120000.db.gz", gzip.compress(dump), "SQL dump"),
        ("of the bot.sql", dump, "SQL dump"),
        ("db_backup_20250130_120001.db.gz", gzip.compress(b"SQLite format 3\0" + bytes(5000)), "ordinary"),
        ("db_backup_20250130_120002.db.gz", b"\x1f\x8b damaged", "ordinary"),
        ("db_backup_20250130_120003.db.gz.gpg", b"damaged", "ordinary"),
    ):
        (tmp_path / name).write_bytes(content)
        assert kind_of(tmp_path / name) == kind, name


# --- checksums -------------------------------------------------------------------------------------------------------


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A backup without a checksum."""
    path = tmp_path / NAME
    path.write_bytes(gzip.compress(b"content" * 1000))
    return path


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def note_checksum(path: Path, digest: str | None = None) -> None:
    checksum_path(path).write_text(f"{digest or digest_of(path)}  {path.name}\n")


@pytest.mark.parametrize(
    "form",
    ["{0}  name\n", "{0} *name\n", "{0}  name\r\n", "{0}\n", "{0}", "\\{0}  na\\nme\n", "{0}  name\n{0}  other\n"],
    ids=["text", "binary", "CRLF", "alone", "no line break", "escaped name", "two files"],
)
@pytest.mark.parametrize("upper", [False, True])
def test_checksum_is_read_from_what_sha256sum_writes(backup: Path, form: str, upper: bool) -> None:
    digest = digest_of(backup)
    checksum_path(backup).write_text(form.format(digest.upper() if upper else digest))
    assert recorded_checksum(backup) == digest


OTHER = "1" * 64


@pytest.mark.parametrize(
    "text",
    [
        f"{{0}}  {NAME}\n{OTHER}  other.gz\n",
        f"{OTHER}  other.gz\n{{0}}  {NAME}\n",
        f"{OTHER} *other.gz\r\n{{0}} *{NAME}\r\n",
        f"{OTHER}  {NAME}\n{{0}}  {NAME}\n",
        f"{OTHER}  other.gz\n{{0}}  ./backups/{NAME}",
        f"{OTHER}  other.gz\n{{0}}  C:\\backups\\{NAME}",
        f"SHA256 (other.gz) = {OTHER}\nSHA256 (/b/{NAME}) = {{0}}\n",
        f"SHA256({NAME})= {{0}}\nSHA256(other.gz)= {OTHER}\n",
        f"SHA2-256({NAME})= {{0}}\nSHA2-256(other.gz)= {OTHER}\n",
        f"# sums of\n# {OTHER}  {NAME}\n\n{{0}}  {NAME}\n",
        f"SHA256 hash of {NAME}:\n{{0}}\nCertUtil: -hashfile command completed\n",
        f"\\{{0}}  a\\\\b\\\\{NAME}\n{OTHER}  other.gz\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8", "utf-16"])
def test_line_that_names_the_backup_counts_and_of_several_the_last(backup: Path, text: str, encoding: str) -> None:
    digest = digest_of(backup)
    for given in (digest, digest.upper()):
        checksum_path(backup).write_bytes(text.format(given).encode(encoding))
        assert recorded_checksum(backup) == digest


def test_several_checksums_of_which_none_names_the_backup_are_told_as_that(backup: Path) -> None:
    checksum_path(backup).write_text(f"{OTHER}  other.gz\n{digest_of(backup)}  another.gz\n")
    with pytest.raises(ChecksumUnreadableError, match="2 checksums") as raised:
        recorded_checksum(backup)
    assert "move" not in raised.value.hint


def test_no_checksum_is_none(backup: Path) -> None:
    assert recorded_checksum(backup) is None


@pytest.mark.parametrize("text", ["", "\n", "0" * 63, "0" * 65, "0" * 63 + "g", "# " + "0" * 64, "\0" * 80])
def test_file_that_holds_no_checksum_is_not_taken_for_none(backup: Path, text: str) -> None:
    checksum_path(backup).write_text(text)
    with pytest.raises(ChecksumUnreadableError):
        recorded_checksum(backup)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["folder", "pipe", "link in a circle"])
def test_checksum_that_cannot_be_read_is_not_taken_for_none(backup: Path, kind: str) -> None:
    path = checksum_path(backup)
    plant(path, kind)
    with pytest.raises(ChecksumUnreadableError):
        recorded_checksum(backup)


# --- the file, read once ---------------------------------------------------------------------------------------------


@pytest.fixture
def opened(backup: Path) -> Iterator[BackupFile]:
    """The backup, opened, with a checksum that matches."""
    note_checksum(backup)
    with closing(BackupFile(backup)) as file:
        yield file


@pytest.fixture
def corrupted(backup: Path) -> Iterator[BackupFile]:
    """The backup, opened, with a checksum that does not match."""
    note_checksum(backup, "0" * 64)
    with closing(BackupFile(backup)) as file:
        yield file


def test_file_that_matches_is_news_once(opened: BackupFile) -> None:
    assert opened.layer == "gzip"
    opened.read(10)
    assert opened.verify()
    opened.rewind()
    assert not opened.verify()


def test_file_that_does_not_match_is_refused(corrupted: BackupFile) -> None:
    with pytest.raises(ChecksumMismatchError):
        corrupted.verify()


def test_file_without_a_checksum_must_stay_as_it_was_read_first(backup: Path) -> None:
    with closing(BackupFile(backup)) as file:
        assert not file.verify()
        file.rewind()
        assert not file.verify()
        with backup.open("r+b") as other:
            other.seek(20)
            other.write(b"changed")
        file.rewind()
        with pytest.raises(ChecksumMismatchError):
            file.verify()


def test_file_is_the_one_that_was_opened_whatever_gets_its_name(opened: BackupFile, backup: Path) -> None:
    content = backup.read_bytes()
    other = backup.with_name("other")
    other.write_bytes(b"planted")
    other.rename(backup)
    assert opened.read(1 << 20) == content
    assert opened.verify()


def test_checksum_says_more_than_any_other_error(corrupted: BackupFile) -> None:
    def fail_in(error: Exception) -> None:
        with corrupted.reading(Step("")):
            corrupted.read(10)
            raise error

    with pytest.raises(ChecksumMismatchError):
        fail_in(DamagedMessageError("x"))
    with pytest.raises(WrongPassphraseError):  # which is asked for again
        fail_in(WrongPassphraseError("x"))


def test_error_stays_where_the_checksum_matches(opened: BackupFile) -> None:
    def fail() -> None:
        with opened.reading(Step("")):
            raise DamagedMessageError("x")

    with pytest.raises(DamagedMessageError):
        fail()


def test_reading_reads_from_the_beginning_and_tells_how_far_it_is(opened: BackupFile, backup: Path) -> None:
    told: list[int] = []
    step = Step("")
    step.progress = told.append
    opened.read(10)
    with opened.reading(step):
        content = opened.read(30)
    assert content == backup.read_bytes()[:30]
    assert told[-1] == opened.size == backup.stat().st_size
    assert len(step.notes) == 1


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["nothing", "folder", "pipe"])
def test_what_is_no_file_is_not_found(tmp_path: Path, kind: str) -> None:
    path = tmp_path / NAME
    plant(path, kind)
    with pytest.raises(BackupNotFoundError):
        BackupFile(path)


def test_file_beyond_the_limit_is_refused(backup: Path) -> None:
    size = backup.stat().st_size
    BackupFile(backup, size).close()
    with pytest.raises(NoMemoryError):
        BackupFile(backup, size - 1)


# --- for lists -------------------------------------------------------------------------------------------------------


def test_states_of_checksums(backup: Path) -> None:
    info = BackupInfo(backup, backup_time(backup), backup.stat().st_size, encrypted=False)
    told: list[int] = []
    assert info.checksum_state() == "none"
    note_checksum(backup)
    assert info.checksum_state(progress=told.append) == "ok"
    assert sum(told) == info.size
    note_checksum(backup, "0" * 64)
    assert info.checksum_state() == "MISMATCH"
    checksum_path(backup).write_text("?")
    assert info.checksum_state() == "unreadable"
    backup.unlink()
    assert info.checksum_state() == "unreadable"


# --- what takes for ever to read -------------------------------------------------------------------------------------


@pytest.mark.timeout(10)
def test_sparse_file_is_refused_and_its_checksum_is_unreadable_at_once(backup: Path) -> None:
    note_checksum(backup, "0" * 64)
    os.truncate(backup, 3 * 10**12)
    with pytest.raises(NotABackupError):
        BackupFile(backup)
    info = BackupInfo.of(backup)
    assert info
    assert info.checksum_state() == "unreadable"


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text", ["0" * 64 + "  x" + " " * 900_000 + "y", "SHA256 (" + ") = " * 200_000, " " * 900_000 + "0" * 64 + "y"]
)
def test_checksum_file_made_to_take_hours_does_not(backup: Path, text: str) -> None:
    checksum_path(backup).write_text(text)
    with suppress(ChecksumUnreadableError):
        recorded_checksum(backup)
