"""Whether a database was written to since its last backup: each write is seen, and what is in doubt counts as one."""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backuplib import changes
from backuplib.backup_file import checksum_path
from backuplib.changes import MOST_NOTED, NAME, Changes
from tests.support import writer

GRAIN = 0.025  # seconds: more than a step of the kernel's clock
MODES = ["DELETE", "PERSIST", "TRUNCATE", "WAL"]


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the notes, in a folder that is not there yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / NAME


@pytest.fixture(params=[None, "passphrase"], ids=["sqlite", "sqlcipher"])
def passphrase(request: pytest.FixtureRequest) -> str | None:
    """Of a SQLCipher database; None: plain SQLite."""
    return request.param  # type: ignore[no-any-return]


class Scene:
    """A database with a connection of its bot's, and its last backup."""

    def __init__(self, folder: Path, passphrase: str | None, journal_mode: str) -> None:
        self.path, self.backups, self.passphrase = folder / "shop.db", folder / "backups", passphrase
        self.backups.mkdir()
        self.bot = self.connect()
        self.bot.execute(f"PRAGMA journal_mode={journal_mode}")
        self.bot.execute("CREATE TABLE t (x)")
        self.bot.execute("INSERT INTO t VALUES (1)")
        self.backup = self.backups / "db_backup_20250130_120000.db.gz"
        self.backup.write_bytes(b"backup")
        checksum_path(self.backup).write_text("checksum")
        self.changes = Changes(self.path, self.backups, b"key")
        self.note()

    def connect(self) -> sqlite3.Connection:
        return writer.connect(str(self.path), self.passphrase)

    def note(self) -> None:
        """Note the backup as one of the state of now."""
        time.sleep(2 * GRAIN)
        self.changes.note(self.backup, self.changes.state())

    def unchanged(self) -> bool:
        """Whether nothing was written since the backup."""
        return self.changes.unchanged_since() == self.backup


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    """Makes a scene; its bot ends with the test."""
    scenes: list[Scene] = []

    def make(passphrase: str | None = None, journal_mode: str = "WAL") -> Scene:
        scenes.append(Scene(tmp_path, passphrase, journal_mode))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.bot.close()


@pytest.mark.parametrize("journal_mode", MODES)
def test_each_commit_is_seen_and_reading_is_none(
    made: Callable[..., Scene], passphrase: str | None, journal_mode: str
) -> None:
    scene = made(passphrase, journal_mode)
    for number in (2, 3, 4):
        with closing(scene.connect()) as reader:
            assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
        assert scene.unchanged()
        size = scene.path.stat().st_size
        scene.bot.execute("UPDATE t SET x = ?", (number,))  # of the same size
        assert scene.path.stat().st_size == size
        assert not scene.unchanged()
        scene.note()
    assert scene.unchanged()


def test_transaction_that_has_begun_to_write_is_seen(made: Callable[..., Scene]) -> None:
    scene = made(journal_mode="DELETE")
    scene.bot.execute("BEGIN IMMEDIATE")
    scene.bot.execute("INSERT INTO t VALUES (2)")  # in memory and in the journal
    assert not scene.unchanged()
    scene.bot.execute("ROLLBACK")


def test_wal_that_begins_anew_is_seen(made: Callable[..., Scene]) -> None:
    scene = made()
    scene.bot.execute("PRAGMA wal_checkpoint(RESTART)")
    scene.note()
    size = Path(f"{scene.path}-wal").stat().st_size
    scene.bot.execute("UPDATE t SET x = 2")
    assert Path(f"{scene.path}-wal").stat().st_size == size
    assert not scene.unchanged()


@pytest.mark.parametrize(("journal_mode", "written"), [("DELETE", ""), ("WAL", "-wal")])
def test_times_that_are_set_back_by_hand_hide_nothing(
    made: Callable[..., Scene], journal_mode: str, written: str
) -> None:
    scene = made(journal_mode=journal_mode)
    if written:
        scene.bot.execute("PRAGMA wal_checkpoint(RESTART)")
        scene.note()
    file = Path(f"{scene.path}{written}")
    before = file.stat()
    scene.bot.execute("UPDATE t SET x = 2")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert not scene.unchanged()


def test_exchanged_database_is_seen_whatever_its_times(made: Callable[..., Scene], tmp_path: Path) -> None:
    scene = made(journal_mode="DELETE")
    copy, status = tmp_path / "copy.db", scene.path.stat()
    copy.write_bytes(scene.path.read_bytes())
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.rename(scene.path)
    assert not scene.unchanged()


def test_endless_wal_is_in_doubt_at_once(made: Callable[..., Scene]) -> None:
    scene = made(journal_mode="DELETE")
    with Path(f"{scene.path}-wal").open("wb") as wal:
        wal.truncate(9 << 30)  # sparse
    began = time.monotonic()
    assert scene.changes.state() is None
    assert time.monotonic() - began < 1


def test_removed_database_is_a_change(made: Callable[..., Scene]) -> None:
    scene = made(journal_mode="DELETE")
    scene.path.unlink()
    assert not scene.unchanged()
    assert scene.changes.state() is None


def test_write_that_is_too_young_to_be_told_from_the_next_is_not_noted(
    made: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may come in the same step of the clock, and leave the same times."""
    scene, wait = made(), time.sleep
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setattr(changes, "STEP_NS", 60_000_000_000)
    assert scene.changes.state() is None  # as of a bot that writes all the time
    assert min(waited) > 60
    scene.changes.note(scene.backup, None)
    assert not scene.unchanged()
    monkeypatch.undo()
    wait(GRAIN)
    assert scene.changes.state() is not None


def test_times_in_whole_seconds_are_waited_for_longer(
    made: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = made(journal_mode="DELETE")
    second = time.time_ns() // 1_000_000_000 * 1_000_000_000
    waited: list[float] = []
    monkeypatch.setattr(changes, "_state_of", lambda _: [1, 2, 3, second, second])
    monkeypatch.setattr(time, "sleep", waited.append)
    assert scene.changes.state() is None
    assert min(waited) >= 2


def test_write_during_the_copy_is_seen_though_the_note_comes_after_it(made: Callable[..., Scene]) -> None:
    scene = made()
    time.sleep(2 * GRAIN)
    state = scene.changes.state()
    scene.bot.execute("INSERT INTO t VALUES (2)")
    scene.changes.note(scene.backup, state)
    assert not scene.unchanged()


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p", "virtiofs", "vfat", ""])
def test_filesystem_that_others_may_write_to_unseen_is_never_unchanged(
    made: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    scene = made()
    monkeypatch.setattr(changes, "filesystem_type", lambda _: kind)
    assert not scene.unchanged()


def test_backup_that_is_not_as_it_was_left_does_not_count(made: Callable[..., Scene]) -> None:
    scene = made()
    content = scene.backup.read_bytes()

    def damage() -> None:
        status = scene.backup.stat()
        scene.backup.write_bytes(b"BACKUP")
        os.utime(scene.backup, ns=(status.st_atime_ns, status.st_mtime_ns))

    def spoil_checksum() -> None:
        checksum_path(scene.backup).write_text("garbage")

    for spoil in (scene.backup.unlink, damage, checksum_path(scene.backup).unlink, spoil_checksum):
        assert scene.unchanged()
        spoil()
        assert not scene.unchanged()
        scene.backup.write_bytes(content)
        checksum_path(scene.backup).write_text("checksum")
        scene.note()
    assert scene.unchanged()


def test_other_key_or_options_are_a_reason_for_a_new_backup(made: Callable[..., Scene]) -> None:
    scene = made()
    assert scene.unchanged()
    other = Changes(scene.path, scene.backups, b"another key")
    assert other.unchanged_since() is None
    assert other.unwritten_since() == scene.backup
    scene.bot.execute("UPDATE t SET x = 2")
    assert other.unwritten_since() is None


def test_places_that_have_the_last_backup_are_noted_until_there_is_another(made: Callable[..., Scene]) -> None:
    scene, far = made(), ["offsite:shopbot", "nas:"]
    assert scene.changes.is_pushed_to([])
    assert not scene.changes.is_pushed_to(far)
    scene.changes.note_pushed(scene.backup.with_name("another.db"), far)
    assert not scene.changes.is_pushed_to(far)
    scene.changes.note_pushed(scene.backup, far)
    assert scene.unchanged()
    assert scene.changes.is_pushed_to(far[:1])
    assert not scene.changes.is_pushed_to([*far, "new:"])
    scene.note()
    assert not scene.changes.is_pushed_to(far)


@pytest.mark.parametrize("change", ["mode", "second name", pytest.param("owner", marks=pytest.mark.needs("root"))])
def test_note_that_others_may_have_written_is_not_believed(
    made: Callable[..., Scene], notes: Path, change: str
) -> None:
    scene = made()
    note = notes
    assert note.parent.stat().st_mode & 0o777 == 0o700
    assert note.stat().st_mode & 0o777 == 0o600
    if change == "owner":
        os.chown(note, 65534, 65534)
    elif change == "mode":
        note.chmod(0o666)
    else:
        os.link(note, scene.backups / "second")
    assert not scene.unchanged()
    scene.note()
    assert scene.unchanged()


JUNK = ["", "[]", "nonsense", '{"%s": 5}', '{"%s": {"name": "../x"}}', '{"%s": {}}', "[" * 9000]


@pytest.mark.parametrize("text", JUNK)
def test_note_that_cannot_be_understood_does_not_count(made: Callable[..., Scene], notes: Path, text: str) -> None:
    scene = made()
    notes.write_text(text.replace("%s", f"{scene.path} {scene.backups}"))
    assert not scene.unchanged()


def test_databases_and_folders_are_noted_each_and_not_without_end(made: Callable[..., Scene], notes: Path) -> None:
    scene = made()
    for number in range(MOST_NOTED - 1):
        Changes(scene.path.with_name(f"{number}.db"), scene.backups, b"").note(scene.backup, [[1], [], []])
    assert scene.unchanged()
    Changes(scene.path.with_name("more.db"), scene.backups, b"").note(scene.backup, [[1], [], []])
    assert not scene.unchanged()
    assert len(json.loads(notes.read_text())) == MOST_NOTED
