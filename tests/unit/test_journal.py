"""The crash journal: what was written comes back, and what others could have written is refused."""

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backuplib.errors import UnfinishedRestoreError
from backuplib.journal import Journal
from backuplib.target import Target
from tests.support.journals import begun_journal


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A database, in a folder of its own."""
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/shop.db"
    path.write_bytes(b"old")
    return Target(path)


@pytest.fixture
def journal(target: Target) -> Journal:
    """What a restore writes down first."""
    return begun_journal(
        target,
        containers=("shopbot-bot-1", "shopbot-worker-1"),
        unhealthy=("shopbot-worker-1",),
        safety_backup=target.path.parent / "db_backup_20250130_153045.db.gz",
        backup="/srv/shopbot/backups/db_backup_20250130_120000.db.gz.gpg",
        made="2025-01-30T12:00:00+00:00",
    )


def written(journal: Journal) -> dict[str, Any]:
    journal.write()
    data = json.loads(Target(journal.target).journal.read_text())
    assert isinstance(data, dict)
    return data


# --- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["begun", "switching", "rolling back", "committed"])
def test_what_was_written_comes_back(journal: Journal, target: Target, state: str) -> None:
    journal.state = state
    journal.backup = journal.backup if state == "begun" else "offsite:shopbot/db_backup_20250130_120000.db.gz.gpg"
    journal.new_inode = 1234
    journal.write()
    assert Journal.load(target) == journal


def test_what_there_is_none_of_comes_back_as_none(journal: Journal, target: Target) -> None:
    bare = replace(journal, containers=(), unhealthy=(), safety_backup=None, existed=False)
    bare.write()
    assert Journal.load(target) == bare


def test_journal_that_is_written_again_is_the_one_that_counts(journal: Journal, target: Target) -> None:
    journal.write()
    journal.state = "committed"
    journal.write()
    loaded = Journal.load(target)
    assert loaded
    assert loaded.state == "committed"
    assert sorted(path.name for path in target.path.parent.iterdir()) == ["shop.db", "shop.db.restore-state.json"]


def test_journal_is_private(journal: Journal, target: Target) -> None:
    journal.write()
    assert stat.S_IMODE(target.journal.stat().st_mode) == 0o600


def test_no_journal_is_none_also_after_it_was_removed(journal: Journal, target: Target) -> None:
    assert Journal.load(target) is None
    journal.write()
    journal.remove()
    assert Journal.load(target) is None
    journal.remove()  # once more does no harm


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'"x"',
        b"\0" * 300,
        b"\xff\xfe",
        b'{"target": 1}',
        b"[" * 100_000,
    ],
    ids=["empty", "cut", "null", "list", "object", "text", "zeros", "no UTF-8", "target only", "deep"],
)
def test_junk_is_refused(target: Target, text: bytes) -> None:
    target.journal.write_bytes(text)
    with pytest.raises(UnfinishedRestoreError) as raised:
        Journal.load(target)
    assert str(target.journal) in str(raised.value)
    assert target.journal.read_bytes() == text


@pytest.mark.parametrize("missing", sorted({*Journal.__dataclass_fields__} - {"forgeable"}))
def test_journal_that_lacks_something_is_refused(journal: Journal, target: Target, missing: str) -> None:
    data = written(journal)
    del data[missing]
    target.journal.write_text(json.dumps(data))
    with pytest.raises(UnfinishedRestoreError):
        Journal.load(target)


def test_journal_that_says_more_than_this_version_knows_is_refused(journal: Journal, target: Target) -> None:
    target.journal.write_text(json.dumps(written(journal) | {"version": 2}))
    with pytest.raises(UnfinishedRestoreError):
        Journal.load(target)


@pytest.mark.parametrize(
    "change",
    [
        {"state": "done"},
        {"state": 7},
        {"containers": "bot"},
        {"containers": [1]},
        {"unhealthy": "bot"},
        {"new_inode": "x"},
        {"existed": None},
        {"new_inode": True},
        {"unsaved": 1},
        {"safety_backup": 7},
        {"safety_backup": "backups/relative"},
        {"set_aside": "/a\0b"},
        {"started": "yesterday\n✅ Database restored"},
        {"started": "2025-01-30\n15:30:45+00:00"},
        {"started": "2025-01-30T15:30:45"},
        {"made": "long ago"},
        {"made": "2025-01-30\x1b12:00:00+00:00"},
        {"backup": "backups/relative"},
        {"containers": ["--project-directory=/evil"]},
        {"containers": ["bot\n✅ Database restored"]},
        {"containers": ["bot"] * 101},
        {"unhealthy": ["-f"]},
    ],
    ids=str,
)
def test_value_of_the_wrong_kind_is_refused(journal: Journal, target: Target, change: dict[str, object]) -> None:
    target.journal.write_text(json.dumps(written(journal) | change))
    with pytest.raises(UnfinishedRestoreError):
        Journal.load(target)


OTHERS: dict[str, Callable[[Path], dict[str, object]]] = {
    "another target": lambda data: {
        "target": str(data / "other.db"),
        "set_aside": str(data / "other.db.backup-20250130-153045"),
        "candidate": str(data / "other.db.restore-new"),
    },
    "set aside elsewhere": lambda data: {"set_aside": str(data.parent / "shop.db.backup-20250130-153045")},
    "set aside up and down": lambda data: {"set_aside": f"{data}/../data/shop.db.backup-20250130-153045"},
    "another file as set aside": lambda data: {"set_aside": str(data / "keys.db")},
    "set aside with a tail": lambda data: {"set_aside": str(data / "shop.db.backup-20250130-153045.x")},
    "set aside of another database": lambda data: {"set_aside": str(data / "bot.db.backup-20250130-153045")},
    "the target as set aside": lambda data: {"set_aside": str(data / "shop.db")},
    "another candidate": lambda data: {"candidate": str(data / "keys.db")},
    "candidate elsewhere": lambda _: {"candidate": "/etc/shadow"},
}
"""Whoever may write into the folder can write a journal, and a restore may run as root."""


@pytest.mark.parametrize("change", OTHERS.values(), ids=[*OTHERS])
def test_journal_that_names_other_files_is_refused(
    journal: Journal, target: Target, change: Callable[[Path], dict[str, object]]
) -> None:
    data = written(journal)
    target.journal.write_text(json.dumps(data | change(target.path.parent)))
    with pytest.raises(UnfinishedRestoreError):
        Journal.load(target)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_journal_that_is_no_file_is_neither_followed_nor_waited_for(
    journal: Journal, target: Target, tmp_path: Path, kind: str
) -> None:
    journal.write()
    elsewhere = target.journal.rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(target.journal)
    elif kind == "link":
        target.journal.symlink_to(elsewhere)
    else:
        target.journal.mkdir()
    with pytest.raises(UnfinishedRestoreError):
        Journal.load(target)


# --- what others could have planted --------------------------------------------------------------------------------


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """A file of somebody else's, elsewhere on the same filesystem."""
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere/shadow"
    path.write_bytes(b"not the bot's")
    return path


def fake(path: Path, kind: str, roots: Path) -> None:
    """What the bot can put under a name in its folder."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(roots)
    elif kind == "dangling link":
        path.symlink_to(roots.with_name("gone"))
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(3 * 10**12)
    else:
        os.link(roots, path)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "dangling link", "hard link", "sparse"])
@pytest.mark.parametrize("name", ["", ".backup-20250130-153045", ".backup-20250130-153045-wal", ".restore-new", "-wal"])
def test_what_no_restore_leaves_under_its_names_is_refused(
    journal: Journal, target: Target, roots: Path, name: str, kind: str
) -> None:
    """Renamed or opened, it would be followed, waited for, or given away; root's own inode number helps nobody."""
    planted = Path(f"{target.path}{name}")
    journal.state, journal.new_inode = "rolling back", roots.stat().st_ino
    journal.write()
    fake(planted, kind, roots)
    with pytest.raises(UnfinishedRestoreError) as raised:
        Journal.load(target)
    assert str(planted) in str(raised.value)
    assert roots.read_bytes() == b"not the bot's"


def test_files_of_each_moment_of_a_restore_are_not_taken_for_planted(journal: Journal, target: Target) -> None:
    wal = Path(f"{target.path}-wal")
    wal.write_bytes(b"unreadable, set aside as it is")
    journal.write()
    for step in (
        lambda: target.candidate.write_bytes(b"new"),
        lambda: os.link(wal, f"{journal.set_aside}-wal"),
        lambda: os.link(target.path, journal.set_aside),
        wal.unlink,
        lambda: target.candidate.rename(target.path),
        lambda: journal.set_aside.rename(target.path),
    ):
        step()
        assert Journal.load(target)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
@pytest.mark.parametrize("how", ["another user's", "open to others", "another name"])
def test_journal_that_others_could_have_written_counts_for_the_files_only(
    journal: Journal, target: Target, tmp_path: Path, how: str
) -> None:
    journal.write()
    if how == "another user's":
        os.chown(target.journal, 1000, 1000)
    elif how == "open to others":
        target.journal.chmod(0o620)
    else:
        os.link(target.journal, tmp_path / "kept for later")
    loaded = Journal.load(target)
    assert loaded
    assert loaded.forgeable
    assert loaded.forgeable in loaded.what_happened
    assert "others could have written" in loaded.what_happened
    assert (loaded.containers, loaded.unhealthy, loaded.safety_backup, loaded.backup, loaded.made) == (
        (),
        (),
        None,
        "",
        "",
    )
    assert (loaded.state, loaded.set_aside, loaded.existed) == (journal.state, journal.set_aside, journal.existed)


# --- what is live ----------------------------------------------------------------------------------------------------


def test_new_database_is_known_by_its_inode(journal: Journal, target: Target) -> None:
    def is_live() -> bool:
        return journal.new_is_live

    assert not is_live()
    old = journal.what_is_live
    target.candidate.write_bytes(b"new")
    journal.new_inode = target.candidate.stat().st_ino
    assert not is_live()
    target.candidate.rename(target.path)
    assert is_live()
    assert journal.what_is_live != old
    target.path.unlink()
    assert not is_live()


def test_what_the_disk_does_not_tell_is_not_guessed(journal: Journal, target: Target) -> None:
    told = journal.what_is_live
    folder = target.path.parent
    folder.rename(folder.with_name("away"))
    folder.symlink_to(folder)
    with pytest.raises(OSError, match="symbolic links"):
        assert journal.new_is_live
    assert journal.live() == "unknown"
    assert journal.what_is_live != told


def test_where_there_is_no_database_none_is_live(journal: Journal, exchanged: Journal) -> None:
    assert exchanged.live() == "new"
    exchanged.target.unlink()
    assert (journal.live(), exchanged.live()) == ("missing", "missing")
    assert exchanged.what_is_live == f"There is no database {exchanged.target}"


@pytest.fixture
def exchanged(journal: Journal, target: Target) -> Journal:
    """The new database is live, the old one set aside."""
    target.candidate.write_bytes(b"new")
    journal.state, journal.new_inode = "switching", target.candidate.stat().st_ino
    os.link(target.path, journal.set_aside)
    target.candidate.rename(target.path)
    return journal


def test_no_state_of_a_restore_is_disputed(journal: Journal, target: Target) -> None:
    assert not journal.disputed  # begun
    target.candidate.write_bytes(b"new")
    journal.state, journal.new_inode = "switching", target.candidate.stat().st_ino
    assert not journal.disputed
    os.link(target.path, journal.set_aside)
    assert not journal.disputed
    target.candidate.rename(target.path)
    assert not journal.disputed
    journal.state = "committed"
    assert not journal.disputed


def test_old_database_that_was_put_back_is_not_disputed(exchanged: Journal) -> None:
    exchanged.target.unlink()
    os.link(exchanged.set_aside, exchanged.target)
    assert not exchanged.disputed
    exchanged.target.unlink()
    exchanged.target.write_bytes(exchanged.set_aside.read_bytes())  # as cp does it
    assert not exchanged.disputed


@pytest.mark.parametrize("content", [b"what somebody put there", None])
def test_database_that_somebody_put_there_is_disputed(exchanged: Journal, content: bytes | None) -> None:
    kept = exchanged.target.rename(exchanged.target.with_name("bad.db"))  # its inode is not free
    if content is not None:
        exchanged.target.write_bytes(content)
    assert exchanged.disputed
    assert kept.exists()


def test_committed_restore_is_not_disputed_whatever_became_of_it_since(exchanged: Journal) -> None:
    exchanged.state = "committed"
    exchanged.target.rename(exchanged.target.with_name("moved.db"))
    exchanged.target.write_bytes(b"written anew")
    assert not exchanged.disputed
