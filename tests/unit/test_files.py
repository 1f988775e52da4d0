"""Durable files: whole under their name or not there, and nothing planted is followed or waited for."""

import fcntl
import io
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backuplib.files import (
    copy_durably,
    copy_metadata,
    create_file,
    drop,
    drop_quietly,
    file_identity,
    filesystem_type,
    fit_into_folder,
    flock,
    give_to_owner_of,
    mount_point,
    name_without_replacing,
    open_folder,
    open_regular,
    replacing,
    same_file,
    stat_or_none,
    unescaped,
    write_all,
)
from tests.support.shop import ROOT


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- replacing -------------------------------------------------------------------------------------------------------


def test_replacing_gives_the_name_to_the_new_content(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"old")
    with replacing(path, ".tmp") as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["state.json"]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_replacing_keeps_the_old_content_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replacing(path, ".tmp") as file:
            file.write(b"half of the n")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state.json"]


def test_replacing_does_not_write_through_a_link_that_lies_under_the_temporary_name(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "state.json"
    victim.write_bytes(b"not ours")
    (tmp_path / "state.json.tmp").symlink_to(victim)
    with replacing(path, ".tmp") as file:
        file.write(b"new")
    assert victim.read_bytes() == b"not ours"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["state.json", "victim"]


def test_replacing_starts_anew_where_a_killed_run_left_its_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "state.json.tmp").write_bytes(b"a longer rest of what was killed")
    with replacing(tmp_path / "state.json", ".tmp") as file:
        file.write(b"new")
    assert (tmp_path / "state.json").read_bytes() == b"new"


# --- creating and opening --------------------------------------------------------------------------------------------


def test_new_file_is_private_from_its_first_byte(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with create_file(tmp_path / "new") as file:
            assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize("target", ["there", "not there"])
def test_new_file_does_not_take_a_name_that_a_link_has(tmp_path: Path, target: str) -> None:
    (tmp_path / "there").write_bytes(b"kept")
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "link")
    assert not (tmp_path / "not there").exists()
    assert (tmp_path / "there").read_bytes() == b"kept"


@pytest.mark.timeout(10)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_named_pipe_is_refused_at_once(tmp_path: Path, flags: int) -> None:
    os.mkfifo(tmp_path / "pipe")
    open_files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="regular"):
        open_regular(tmp_path / "pipe", flags)
    assert len(os.listdir("/proc/self/fd")) == open_files


@pytest.mark.parametrize("path", ["/dev/zero", "/proc"])
def test_device_and_folder_are_no_files(path: str) -> None:
    with pytest.raises(OSError, match="regular"):
        open_regular(Path(path))


def test_regular_file_is_read_appended_to_and_made(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for text in (b"one\n", b"two\n"):
        with open_regular(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW) as file:
            file.write(text)
    with open_regular(log) as file:
        assert file.read() == b"one\ntwo\n"
        assert not file.writable()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


class ShortWriter(io.FileIO):
    """Takes seven bytes at a time, as a disk that is nearly full may do."""

    def write(self, data: Any, /) -> int:
        return super().write(memoryview(data)[:7])


def test_all_is_written_where_each_write_is_short(tmp_path: Path) -> None:
    with ShortWriter(tmp_path / "a", "w") as file:
        write_all(file, bytes(range(100)))
    assert (tmp_path / "a").read_bytes() == bytes(range(100))


# --- names -----------------------------------------------------------------------------------------------------------


def test_name_that_is_free_is_given(tmp_path: Path) -> None:
    with create_file(tmp_path / "a") as file:
        file.write(b"content")
        name_without_replacing(tmp_path / "a", file.fileno(), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"content"


@pytest.mark.parametrize("taken", ["file", "dangling link"])
def test_name_that_is_taken_is_not_given(tmp_path: Path, taken: str) -> None:
    one, other = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"new")
    if taken == "file":
        other.write_bytes(b"old")
    else:
        other.symlink_to("nowhere")
    before = other.lstat()
    with one.open("rb") as file, pytest.raises(FileExistsError):
        name_without_replacing(one, file.fileno(), other)
    assert other.lstat() == before
    assert one.read_bytes() == b"new"


def test_drop_removes_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    drop(tmp_path / "a", tmp_path / "b")
    drop_quietly(tmp_path / "c")
    drop_quietly(tmp_path)  # not a file: left alone
    assert names(tmp_path) == []


# --- owner, mode, attributes -----------------------------------------------------------------------------------------


def test_mode_is_copied(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.touch()
    old.chmod(0o2664)
    with create_file(tmp_path / "new") as file, old.open("rb") as source:
        copy_metadata(source.fileno(), file.fileno())
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o2664


@pytest.mark.needs("root")
def test_owner_and_set_id_bits_are_copied(tmp_path: Path) -> None:
    """In this order: a change of owner takes the set-ID bits away."""
    old = tmp_path / "old"
    old.touch()
    os.chown(old, 1234, 2345)
    old.chmod(0o6750)
    with create_file(tmp_path / "new") as file, old.open("rb") as source:
        copy_metadata(source.fileno(), file.fileno())
    status = (tmp_path / "new").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 2345, 0o6750)


@pytest.mark.needs("setfacl")
def test_access_control_lists_are_copied(tmp_path: Path) -> None:
    """user 1234 may read: version 2, then tag, rights and ID of each entry (acl_ea.h of Linux)."""
    name, nobody = "system.posix_acl_access", 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, 4, 1234), (4, 4, nobody), (16, 4, nobody), (32, 0, nobody)]
    value = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + number.to_bytes(4, "little")
        for tag, rights, number in entries
    )
    old = tmp_path / "old"
    old.touch()
    os.setxattr(old, name, value)
    with create_file(tmp_path / "new") as file, old.open("rb") as source:
        copy_metadata(source.fileno(), file.fileno())
    assert os.getxattr(tmp_path / "new", name) == value


# --- a new file in its folder ----------------------------------------------------------------------------------------


def fitted(folder: Path, user: tuple[int, set[int]] | None) -> tuple[int, int, int]:
    """Owner, group and mode of a new file that fits into its folder."""
    with create_file(folder / "new") as file:
        fit_into_folder(file.fileno(), folder, user)
    status = (folder / "new").stat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


BOT = (1000, {1000, 3000})
"""Its user, and its groups."""


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    ("owner", "mode", "user", "expected"),
    [
        # Nobody says who must be able to write: the folder's owner, and its group where that may write to the folder.
        ((1234, 2345), 0o755, None, (1234, 2345, 0o640)),
        ((1234, 2345), 0o775, None, (1234, 2345, 0o660)),
        ((1234, 2345), 0o2775, None, (1234, 2345, 0o660)),
        ((0, 0), 0o755, None, (0, 0, 0o640)),
        # The bot owns the folder.
        ((1000, 1000), 0o755, BOT, (1000, 1000, 0o640)),
        ((1000, 2345), 0o775, BOT, (1000, 2345, 0o640)),
        # It may write there as one of a group.
        ((1234, 3000), 0o775, BOT, (1234, 3000, 0o660)),
        ((1234, 3000), 0o2770, BOT, (1234, 3000, 0o660)),
        # It is of the group, which may not write; or of another one.
        ((1234, 3000), 0o755, BOT, (1000, 3000, 0o640)),
        ((1234, 2345), 0o775, BOT, (1000, 2345, 0o640)),
        # All may write there.
        ((0, 0), 0o777, BOT, (1000, 0, 0o640)),
        ((0, 0), 0o1777, (1000, set()), (1000, 0, 0o640)),
        # The bot is root, and can write to everything: the folder's owner shall, too.
        ((1234, 2345), 0o755, (0, {0}), (1234, 2345, 0o640)),
        ((0, 0), 0o755, (0, set()), (0, 0, 0o640)),
    ],
    ids=str,
)
def test_new_file_can_be_written_by_the_bot(
    tmp_path: Path, owner: tuple[int, int], mode: int, user: Any, expected: tuple[int, int, int]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, *owner)
    folder.chmod(mode)
    assert fitted(folder, user) == expected


WRITE = "import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR))"


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user can reach: pytest's are root's alone."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "data"


@pytest.mark.needs("root", "python3")
@pytest.mark.parametrize(
    ("owner", "mode"), [((1000, 1000), 0o755), ((1234, 3000), 0o775), ((1234, 3000), 0o2770), ((0, 0), 0o777)]
)
def test_process_of_the_bot_can_really_write_to_the_new_file(
    reachable: Path, owner: tuple[int, int], mode: int
) -> None:
    reachable.mkdir()
    os.chown(reachable, *owner)
    reachable.chmod(mode)
    fitted(reachable, BOT)
    command = ["python3", "-c", WRITE, str(reachable / "new")]
    for user, can in ((1000, True), (5678, False)):
        done = subprocess.run(
            command,
            user=user,
            group=user,
            extra_groups=[3000] if can else [],
            cwd="/",
            capture_output=True,
            check=False,
        )
        assert (done.returncode == 0) is can


@pytest.mark.needs("root", "setfacl")
def test_new_file_keeps_what_the_default_list_of_its_folder_grants(reachable: Path) -> None:
    """The mode's bits of the group are the mask of the list."""
    reachable.mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:1000:rw", str(reachable)], check=True)
    assert fitted(reachable, None)[2] == 0o660
    shown = subprocess.run(
        ["getfacl", "-cn", str(reachable / "new")], capture_output=True, text=True, check=True
    ).stdout
    assert "user:1000:rw-\n" in shown
    assert "#effective" not in shown.partition("group:")[0]


def test_new_file_fits_where_nobody_may_change_owners(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert fitted(tmp_path, (os.geteuid(), {os.getegid()})) == (os.geteuid(), tmp_path.stat().st_gid, 0o640)


# --- a durable copy --------------------------------------------------------------------------------------------------


def test_durable_copy_has_content_and_mode(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_bytes(b"content")
    old.chmod(0o640)
    copy_durably(old, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o640
    assert names(tmp_path) == ["copy", "old"]


# --- identity and locks ----------------------------------------------------------------------------------------------


def test_identity_changes_with_content_and_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    before = file_identity(path)
    assert file_identity(path) == before
    path.write_bytes(b"xy")
    changed = file_identity(path)
    assert changed != before
    other = tmp_path / "b"
    other.write_bytes(b"xy")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)
    assert file_identity(path) != changed


def test_same_file_is_one_inode_and_not_a_link_to_it(tmp_path: Path) -> None:
    one, other, link = (tmp_path / name for name in ("a", "b", "c"))
    one.touch()
    os.link(one, other)
    link.symlink_to(one)
    assert same_file(one, other)
    assert not same_file(one, link)
    assert not same_file(one, tmp_path / "none")


def test_status_that_cannot_be_had_is_not_taken_for_absence(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    assert stat_or_none(tmp_path / "none") is None
    assert stat_or_none(tmp_path / "file/below") is None
    assert stat_or_none(tmp_path / "file") is not None
    with pytest.raises(OSError, match="symbolic links"):
        stat_or_none(tmp_path / "loop/file")


def test_lock_is_had_once(tmp_path: Path) -> None:
    one, other = open_folder(tmp_path), open_folder(tmp_path)
    try:
        assert flock(one, fcntl.LOCK_EX)
        assert not flock(other, fcntl.LOCK_SH)
        assert flock(one, fcntl.LOCK_UN)
        assert flock(other, fcntl.LOCK_EX)
    finally:
        os.close(one)
        os.close(other)


# --- files that root makes for others --------------------------------------------------------------------------------


@pytest.mark.needs("root")
def test_file_that_root_makes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4712)
    with create_file(tmp_path / "new") as file:
        give_to_owner_of(tmp_path, file.fileno())
    status = (tmp_path / "new").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (4711, 4712, 0o600)


def test_file_that_cannot_be_given_stays_as_it_is(tmp_path: Path) -> None:
    give_to_owner_of(tmp_path, 9999)  # as a filesystem without owners: fchown fails
    with create_file(tmp_path / "new") as file:
        give_to_owner_of(tmp_path / "gone", file.fileno())
        assert os.fstat(file.fileno()).st_uid == os.geteuid()


# --- mounts ----------------------------------------------------------------------------------------------------------


@pytest.mark.needs("mount")
def test_filesystem_is_the_one_that_is_seen_and_not_one_that_is_mounted_below(tmp_path: Path) -> None:
    """What is on a disk is not in RAM because something of that name was."""
    (tmp_path / "top/ram").mkdir(parents=True)
    (tmp_path / "disk/ram").mkdir(parents=True)
    mounts = "mount -t tmpfs none top/ram && mount --bind disk top"
    look = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from backuplib.files import *; "
    look += "print(filesystem_type(Path('top/ram')))"
    argv = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", sys.executable, "-c", look]
    said = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said == f"{filesystem_type(tmp_path)}\n"


def test_place_where_a_filesystem_is_mounted_is_known(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc/self")
    assert mount_point(Path("/proc")) == Path("/proc")
    assert mount_point(tmp_path / "link" / "status") == Path("/proc")
    assert mount_point(Path("/proc/no/such/file")) == Path("/proc")
    assert tmp_path.is_relative_to(mount_point(tmp_path / "x"))
    assert unescaped(r"/srv/a\040b\134c") == r"/srv/a b\c"
