"""Backup files: told apart by their first bytes, and held against the checksum beside them."""

import gzip
import hashlib
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backuplib.backup_file import (
    BACKUP_NAME,
    BackupFile,
    BackupInfo,
    backup_time,
    checksum_path,
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


def test_time_is_what_the_name_says(tmp_path: Path) -> None:
    made = backup_time(tmp_path / NAME)  # it need not be there
    assert f"{made:%Y%m%d_%H%M%S}" == "20250130_120000"
    assert made.tzinfo is not None


@pytest.mark.parametrize("name", ["copy.db.gz", "db_backup_20251332_256199.db.gz"])
def test_time_is_that_of_the_file_where_its_name_does_not_tell(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (1_700_000_000, 1_700_000_000))
    assert backup_time(tmp_path / name).timestamp() == 1_700_000_000


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
