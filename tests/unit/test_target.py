"""The database to replace: what it may be, the names beside it, and the new file before it takes its name."""

import fcntl
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backuplib.errors import CannotWriteError, DatabaseInUseError, LockedError, NoSpaceError, UnsuitableTargetError
from backuplib.files import file_identity, flock, open_folder
from backuplib.image import DatabaseImage
from backuplib.target import Target, is_immutable, is_mount_point

CONTENT = b"SQLite format 3\0" + bytes(range(256)) * 64


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A database in a folder of its own."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shop.db").write_bytes(b"old")
    return Target(tmp_path / "data/shop.db")


@pytest.fixture
def image() -> DatabaseImage:
    """The new database."""
    image = DatabaseImage(10**6, bare=True)
    image.feed(CONTENT)
    image.finish()
    return image


def names(target: Target) -> list[str]:
    return sorted(path.name for path in target.path.parent.iterdir())


# --- what it may be --------------------------------------------------------------------------------------------------


def test_links_are_followed(target: Target, tmp_path: Path) -> None:
    """A rename replaces the link, not the database behind it."""
    (tmp_path / "link.db").symlink_to("data/shop.db")
    assert Target.resolve(tmp_path / "link.db") == target
    assert Target.resolve(tmp_path / "data/../data/shop.db") == target


def test_target_need_not_be_there(target: Target) -> None:
    absent = Target.resolve(target.path.with_name("new.db"))
    assert not absent.exists
    assert absent.change_marker() == []


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["folder", "pipe", "folder that is not there", "sidecar that is a pipe"])
def test_what_cannot_be_replaced_is_refused(target: Target, kind: str) -> None:
    path = target.path.with_name("odd.db")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder that is not there":
        path = path / "shop.db"
    else:
        path = target.path
        os.mkfifo(f"{path}-wal")
    with pytest.raises(UnsuitableTargetError):
        Target.resolve(path)


def test_mount_points_are_known() -> None:
    assert is_mount_point(Path("/proc"))
    assert not is_mount_point(Path("/proc/self"))


def test_file_without_attributes_is_not_immutable(target: Target) -> None:
    assert not is_immutable(target.path)
    assert not is_immutable(target.path.with_name("none"))


# --- looks -----------------------------------------------------------------------------------------------------------


def test_marker_changes_with_the_database_and_with_its_wal(target: Target) -> None:
    before = target.change_marker()
    assert target.change_marker() == before
    wal = Path(f"{target.path}-wal")
    wal.write_bytes(b"1")
    with_wal = target.change_marker()
    assert with_wal != before
    wal.write_bytes(b"12")
    assert target.change_marker() != with_wal
    wal.unlink()
    assert target.change_marker() == before
    target.path.write_bytes(b"changed")
    assert target.change_marker() != before


def test_name_of_the_set_aside_is_free(target: Target) -> None:
    first = target.new_set_aside()
    first.touch()
    second = target.new_set_aside()
    assert second != first
    assert first.name.startswith("shop.db.backup-")


def test_lock_is_had_once_and_its_owner_is_told(target: Target) -> None:
    said: list[str] = []
    with target.lock(said.append):
        with pytest.raises(LockedError, match=f"pid {os.getpid()}"), target.lock(said.append, patience=0.1):
            pass
        (waiting,) = said
        assert f"pid {os.getpid()}" in waiting
    with target.lock(said.append):
        pass
    assert len(said) == 1


def test_backup_that_runs_is_waited_for(target: Target) -> None:
    said: list[str] = []
    folder = open_folder(target.path.parent)
    assert flock(folder, fcntl.LOCK_SH)
    ended = threading.Timer(0.5, os.close, (folder,))
    ended.start()
    with target.lock(said.append, patience=30):
        assert not ended.is_alive()
    assert len(said) == 1


def test_folder_that_cannot_be_locked_is_told(target: Target) -> None:
    with pytest.raises(UnsuitableTargetError), Target(target.path / "x").lock(print):
        pass


@pytest.fixture
def holder(target: Target) -> Iterator[int]:
    """A process that has the -wal open; its pid."""
    wal = Path(f"{target.path}-wal")
    wal.touch()
    with wal.open("rb") as file:
        process = subprocess.Popen(["sleep", "60"], stdin=file)
    yield process.pid
    process.kill()
    process.wait()


def test_database_that_somebody_has_open_is_refused_naming_who(target: Target, holder: int) -> None:
    with pytest.raises(DatabaseInUseError) as raised:
        target.refuse_holders()
    assert f"pid {holder}" in str(raised.value)
    assert f"kill {holder}" in raised.value.hint


def test_processes_of_the_containers_that_will_be_stopped_are_expected(target: Target, holder: int) -> None:
    cgroup = Path(f"/proc/{holder}/cgroup").read_text().strip()
    target.refuse_holders([cgroup])


# --- tries -----------------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_the_tries(target: Target) -> None:
    before = file_identity(target.path)
    target.refuse_unreplaceable(1)
    assert names(target) == ["shop.db"]
    assert file_identity(target.path) == before


def test_too_little_room_is_refused(target: Target) -> None:
    with pytest.raises(NoSpaceError):
        target.refuse_unreplaceable(1 << 60)
    assert names(target) == ["shop.db"]


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(target: Target) -> None:
    keep = [
        "shop.db",
        "shop.db-wal",
        "shop.db.backup-20250130-153045",
        "shop.db.restore-state.json",
        "other.db.restore-new",
    ]
    left = [
        "shop.db.restore-new",
        "shop.db.restore-probe",
        "shop.db.restore-probe2",
        "shop.db.restore-state.json.tmp",
        "shop.db.backup-20250130-153045.restore-new",
    ]
    for name in keep + left:
        (target.path.parent / name).touch()
    target.clear_leftovers()
    assert names(target) == sorted(keep)
    target.clear_leftovers()


def test_name_with_special_characters_is_taken_as_it_is(target: Target) -> None:
    odd = Target(target.path.with_name("shop[12].db"))
    for name in ("shop[12].db.backup-x.restore-new", "shop1.db.backup-x.restore-new"):
        (target.path.parent / name).touch()
    odd.clear_leftovers()
    assert names(target) == ["shop.db", "shop1.db.backup-x.restore-new"]


# --- the new file ----------------------------------------------------------------------------------------------------


def test_new_file_is_complete_and_has_the_old_ones_mode(target: Target, image: DatabaseImage) -> None:
    target.path.chmod(0o640)
    told: list[int] = []
    candidate = target.write_candidate(image, None, told.append)
    assert target.candidate.read_bytes() == CONTENT
    assert candidate == file_identity(target.candidate)
    assert stat.S_IMODE(target.candidate.stat().st_mode) == 0o640
    assert told[-1] == len(CONTENT)
    assert target.path.read_bytes() == b"old"


@pytest.mark.needs("root")
@pytest.mark.parametrize("exists", [True, False])
def test_owner_is_that_of_the_old_file_or_else_of_the_folder(
    target: Target, image: DatabaseImage, exists: bool
) -> None:
    os.chown(target.path.parent, 1234, 2345)
    os.chown(target.path, 3456, 4567)
    target.path.chmod(0o644)
    if not exists:
        target.path.unlink()
    target.write_candidate(image, None)
    status = target.candidate.stat()
    assert (status.st_uid, status.st_gid) == ((3456, 4567) if exists else (1234, 2345))
    assert stat.S_IMODE(status.st_mode) == (0o644 if exists else 0o640)


@pytest.mark.needs("root")
@pytest.mark.parametrize("exists", [True, False])
def test_user_of_the_bot_counts_only_where_no_old_file_tells(
    target: Target, image: DatabaseImage, exists: bool
) -> None:
    os.chown(target.path, 3456, 4567)
    if not exists:
        target.path.unlink()
    target.write_candidate(image, (5678, {5678}))
    assert target.candidate.stat().st_uid == (3456 if exists else 5678)


def test_what_lies_under_the_name_of_the_new_file_is_replaced_and_not_followed(
    target: Target, image: DatabaseImage, tmp_path: Path
) -> None:
    (tmp_path / "victim").write_bytes(b"kept")
    target.candidate.symlink_to(tmp_path / "victim")
    target.write_candidate(image, None)
    assert (tmp_path / "victim").read_bytes() == b"kept"
    assert target.candidate.read_bytes() == CONTENT


def test_new_file_that_cannot_be_written_is_not_left(target: Target, image: DatabaseImage) -> None:
    gone = Target(target.path.with_name("gone") / "shop.db")
    with pytest.raises(CannotWriteError):
        gone.write_candidate(image, None)

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        target.write_candidate(image, None, fail)
    assert names(target) == ["shop.db"]
