"""backuplib/folder.py: a folder is opened once, and what is in it is reached through that."""

import copy
import errno
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from backuplib.database import Engine
from backuplib.errors import UnsuitableTargetError, explain
from backuplib.folder import AnchoredPath, anchored, anchored_folder, moved, resolved
from tests.support import writer
from tests.support.shop import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file in it."""
    made = tmp_path / "data"
    made.mkdir()
    (made / "file").write_text("ours")
    return made


def exchange(folder: Path) -> Path:
    """Put another folder, with another file, in the place of one; return where that is now."""
    away = folder.rename(folder.with_name("away"))
    folder.mkdir()
    (folder / "file").write_text("another one")
    return away


# --- paths -----------------------------------------------------------------------------------------------------------


def test_a_path_is_called_by_its_name_and_reached_through_its_folder(folder: Path) -> None:
    path = anchored(folder / "file")
    away = exchange(folder)
    assert path == folder / "file"
    assert f"{path}" == str(folder / "file")
    assert path.read_text() == "ours"
    path.with_name("more").touch()
    path.rename(path.with_name("renamed"))
    assert sorted(os.listdir(away)) == ["more", "renamed"]
    assert os.listdir(folder) == ["file"]


def test_paths_that_are_made_from_one_are_in_the_same_folder(folder: Path) -> None:
    path = anchored(folder / "file")
    made = [path.with_name("a.b"), path.with_suffix(".c"), path.parent / "d", *path.parent.iterdir()]
    made += [*path.parent.glob("fi*"), path.parent, path.resolve(), path.absolute(), path.parents[0]]
    for one in made:
        assert isinstance(one, AnchoredPath)
        assert one.folder is path.folder
    assert [*path.parent.glob("[!f]*")] == []
    assert type(path.parent.parent) is type(path / "/etc") is type(Path())
    assert copy.deepcopy(path) == folder / "file"


def test_an_error_of_the_system_shows_the_name(folder: Path) -> None:
    for reach in (os.stat, open, os.listdir):
        with pytest.raises(FileNotFoundError) as raised:
            reach(anchored(folder) / "none")
        assert explain(raised.value).startswith(f"{folder / 'none'}: ")


def test_it_is_told_when_the_name_leads_elsewhere(folder: Path) -> None:
    path = anchored(folder / "file")
    assert moved(path) == moved(folder / "file") == ""
    away = exchange(folder)
    assert str(folder) in moved(path)
    (folder / "file").unlink()
    folder.rmdir()
    assert moved(path)
    away.rename(folder)
    assert moved(path) == ""


def test_a_folder_that_cannot_be_opened_is_an_error(folder: Path) -> None:
    for path, number in ((folder / "none/file", errno.ENOENT), (folder / "file/file", errno.ENOTDIR)):
        with pytest.raises(OSError, match=str(path.parent)) as raised:
            anchored(path)
        assert raised.value.errno == number


def test_descriptors_go_with_the_paths(folder: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        anchored(folder / "file").read_text()
    assert len(os.listdir("/proc/self/fd")) == before


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["data", "{0}/data", "one/../data/.", "two"])
def test_links_of_ours_to_a_folder_are_followed(folder: Path, to: str) -> None:
    above = folder.parent
    (above / "one").symlink_to(folder)
    (above / "two").symlink_to("one")
    (above / "link").symlink_to(to.format(above))
    path = anchored(above / "link/file")
    assert path == folder / "file"
    assert path.read_text() == "ours"


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="symbolic links"):
        anchored_folder(tmp_path / "circle")


@pytest.mark.needs("root")
def test_a_link_of_another_user_is_followed_to_what_is_that_users_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    os.lchown(link, 1234, 1234)
    (folder.with_name("more")).symlink_to("link")
    with pytest.raises(OSError, match="another user") as raised:
        anchored(folder.with_name("more") / "file")
    assert raised.value.filename == str(link)
    os.chown(folder, 1234, 1234)
    assert anchored(link / "file").read_text() == "ours"
    os.chown(folder, 1235, 1235)
    monkeypatch.setenv("SUDO_UID", "1234")
    assert anchored(link / "file").read_text() == "ours"


def test_a_link_in_the_folder_is_followed_only_when_nobody_else_can_have_made_it(folder: Path) -> None:
    other = folder.parent / "other"
    other.touch()
    (folder / "link").symlink_to("../other")
    assert resolved(folder / "link") == other
    assert resolved(folder / "file") == folder / "file"
    folder.chmod(0o777)
    with pytest.raises(OSError, match="others"):
        resolved(folder / "link")


# --- SQLite, which finds out the names of folders by itself ----------------------------------------------------------


def test_a_database_that_is_a_link_when_it_is_opened_is_refused(folder: Path) -> None:
    database = anchored(folder / "shop.db")
    for path in (folder / "shop.db", folder.parent / "other.db"):
        with closing(writer.connect(str(path), None)) as connection:
            connection.execute(f"CREATE TABLE of_{path.stem} (a)")
    (folder / "shop.db").rename(folder / "old.db")
    (folder / "shop.db").symlink_to("../other.db")
    for opening in (Engine(None).connect, Engine(None).look):
        with pytest.raises(UnsuitableTargetError, match=r"shop\.db"):
            opening(database)


def test_a_database_is_opened_where_its_folder_is_now(folder: Path) -> None:
    database = anchored(folder / "shop.db")
    with closing(writer.connect(str(folder / "shop.db"), None)) as connection:
        connection.execute("CREATE TABLE ours (a)")
    exchange(folder)
    with closing(writer.connect(str(folder / "shop.db"), None)) as connection:
        connection.execute("CREATE TABLE other (a)")
    for opening in (Engine(None).connect, Engine(None).look):
        with closing(opening(database)) as connection:
            assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("ours",)]


# --- mounted for this process alone ----------------------------------------------------------------------------------

MOUNTED = """
import os, sqlite3, sys
from pathlib import Path
from backuplib.folder import anchored
from backuplib.ram_folder import enter_private_mounts
enter_private_mounts()
path = anchored(Path(sys.argv[1]) / "file")
Path(sys.argv[1]).rename(sys.argv[1] + "-away")
Path(sys.argv[1]).mkdir()
sqlite3.connect(path.with_name("shop.db")).execute("CREATE TABLE t (a)")
path.with_name("link").symlink_to("file")
try:
    followed = path.with_name("link").read_text()
except OSError as error:
    followed = error.strerror
flags = os.statvfs(path.parent).f_flag
print(path.read_text(), followed, flags & os.ST_NOSUID and flags & os.ST_NODEV and "restricted", path.folder.at)
"""


@pytest.mark.needs("root", "private mounts")
def test_as_root_it_is_mounted_where_no_link_is_followed_and_nobody_else_looks(folder: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    argv = [sys.executable, "-c", MOUNTED, str(folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    content, *followed, restricted, at = done.stdout.split()
    assert (content, " ".join(followed), restricted) == ("ours", "Too many levels of symbolic links", "restricted")
    assert at.endswith(str(folder))
    assert "shop.db" in os.listdir(f"{folder}-away")
    assert os.listdir(folder) == []
    assert Path("/proc/self/mountinfo").read_text() == before
    assert not os.path.exists(at)


READ_ONLY = """
import subprocess, sys
from pathlib import Path
from backuplib.folder import anchored
from backuplib.ram_folder import enter_private_mounts
enter_private_mounts()
for options in (["--bind", sys.argv[1]], ["-o", "remount,bind,ro"]):
    subprocess.run(["mount", *options, sys.argv[1]], check=True)
anchored(Path(sys.argv[1]) / "file").with_name("new").touch()
"""


@pytest.mark.needs("root", "private mounts")
def test_a_mount_that_is_read_only_stays_so(folder: Path) -> None:
    argv = [sys.executable, "-c", READ_ONLY, str(folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Read-only file system" in done.stderr
    assert os.listdir(folder) == ["file"]
