"""The file that is replaced: what it was stays, and what cannot be replaced is refused before anything is touched."""

import gzip
import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import MakeShop
from tests.support.keys import GpgHome, Keys
from tests.support.needs import require
from tests.support.shop import Completed, FileState, Shop, filled_pipe
from tests.support.terminal import Terminal

pytestmark = pytest.mark.needs("root")

WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
"""root as any other user: permissions count, and processes of others cannot be looked at."""


@pytest.fixture
def ready(make_shop: MakeShop, keys: Keys, gpg: GpgHome) -> Callable[[str], tuple[Shop, Path]]:
    """A shop that has changed since its backup was made; and that backup."""

    def make(mode: str) -> tuple[Shop, Path]:
        shop = make_shop(mode)
        message = gpg.encrypt(gzip.compress(shop.db_path.read_bytes()), "--recipient", keys.open.fingerprint)
        return shop, shop.back_up_then_change(message)

    return make


def in_own_mounts(commands: str) -> tuple[str, ...]:
    """A wrapper that runs shell commands in a mount namespace of its own first."""
    require("mount")
    return ("unshare", "--mount", "--propagation", "private", "sh", "-euc", f'{commands}; exec "$@"', "sh")


def refused(done: Completed, error: str, *values: object) -> None:
    """Refused by the preflight, which names these values."""
    assert done.ended == (3, error), done.text
    for value in values:
        assert str(value) in f"{done.error['message']} {done.error['hint']}"
    assert "Nothing was touched" in done.err
    assert "Traceback" not in done.err


# --- what it was stays -----------------------------------------------------------------------------------------------


@pytest.mark.needs("setfacl", "getfacl")
def test_owner_mode_attributes_and_acl_are_kept(
    ready: Callable[[str], tuple[Shop, Path]], mode: str, keys: Keys
) -> None:
    shop, backup = ready(mode)
    database = shop.db_path
    os.chown(database, 1000, 1000)
    database.chmod(0o640)
    os.setxattr(database, "user.shop", b"\x00value")
    subprocess.run(["setfacl", "-m", "u:1234:rw,g:4321:r", database], check=True)
    before = FileState.of(database)
    assert {name for name, _ in before.xattrs} == {"user.shop", "system.posix_acl_access"}
    acl = subprocess.run(["getfacl", "-n", database], capture_output=True, check=True).stdout
    done = shop.restore(backup, "--force", key=keys.open)
    assert done.code == 0, done.text
    after = FileState.of(database)
    assert replace(after, inode=0, size=0, sha256="") == replace(before, inode=0, size=0, sha256="")
    assert after.inode != before.inode
    assert subprocess.run(["getfacl", "-n", database], capture_output=True, check=True).stdout == acl


@pytest.mark.parametrize("bits", [0o600, 0o644, 0o660, 0o444])
def test_mode_does_not_depend_on_the_umask(ready: Callable[[str], tuple[Shop, Path]], keys: Keys, bits: int) -> None:
    shop, backup = ready("sqlite")
    shop.db_path.chmod(bits)
    done = shop.restore(backup, "--force", key=keys.open, wrapper=("sh", "-c", 'umask 0; exec "$@"', "sh"))
    assert done.code == 0, done.text
    assert stat.S_IMODE(shop.db_path.stat().st_mode) == bits
    for path in shop.backups.glob("db_backup_*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_symlink_stays_and_the_file_behind_it_is_replaced(
    ready: Callable[[str], tuple[Shop, Path]], mode: str, keys: Keys
) -> None:
    shop, backup = ready(mode)
    volume = shop.path / "volume"
    volume.mkdir()
    real = volume / "real.db"
    shop.db_path.rename(real)
    shop.db_path.symlink_to("../volume/real.db")
    done = shop.restore(backup, "--force", key=keys.open)
    assert done.code == 0, done.text
    assert os.readlink(shop.db_path) == "../volume/real.db"
    assert len(shop.rows(real)["orders"]) == 300
    assert [path.name for path in volume.iterdir()] == ["real.db"]
    assert [path.name for path in shop.db_path.parent.iterdir()] == ["shop.db"]


def test_symlinked_data_folder_is_followed(ready: Callable[[str], tuple[Shop, Path]], keys: Keys) -> None:
    shop, backup = ready("sqlite")
    volume = shop.path / "volume"
    shop.db_path.parent.rename(volume)
    shop.db_path.parent.symlink_to(volume)
    done = shop.restore(backup, "--force", key=keys.open)
    assert done.code == 0, done.text
    assert shop.db_path.parent.is_symlink()
    assert shop.is_restored()


def test_configured_database_by_another_name_counts_as_the_configured_one(
    ready: Callable[[str], tuple[Shop, Path]], keys: Keys
) -> None:
    shop, backup = ready("sqlite")
    link = shop.path / "link.db"
    link.symlink_to(shop.db_path)
    shop.write_env(RUNTIME_ENVIRONMENT=None)
    for name in ("link.db", "data/../data/shop.db"):
        before = shop.snapshot()
        done = shop.restore(backup, "--force", "--target-path", name, key=keys.open)
        refused(done, "unusable-compose-file", "RUNTIME_ENVIRONMENT")
        assert shop.snapshot() == before


# --- what cannot be replaced -----------------------------------------------------------------------------------------


def make_folder(path: Path) -> None:
    """A folder under the target's name."""
    path.mkdir()


def make_fifo(path: Path) -> None:
    """A FIFO, which blocks whoever opens it."""
    os.mkfifo(path)


def make_device(path: Path) -> None:
    """A character device: /dev/null's."""
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def make_socket(path: Path) -> None:
    """The name of a socket."""
    os.mknod(path, stat.S_IFSOCK | 0o666)


def make_link_to_folder(path: Path) -> None:
    """A symlink to a folder."""
    path.symlink_to(path.parent)


@pytest.mark.parametrize("make", [make_folder, make_fifo, make_device, make_socket, make_link_to_folder])
def test_target_that_is_no_regular_file_is_refused(
    ready: Callable[[str], tuple[Shop, Path]], keys: Keys, make: Callable[[Path], None]
) -> None:
    shop, backup = ready("sqlite")
    shop.db_path.unlink()
    make(shop.db_path)
    before = shop.snapshot()
    refused(shop.restore(backup, "--force", key=keys.open, timeout=20), "unsuitable-target", shop.db_path.parent)
    assert shop.snapshot() == before


def test_missing_folder_is_refused_by_name(ready: Callable[[str], tuple[Shop, Path]], keys: Keys) -> None:
    shop, backup = ready("sqlite")
    done = shop.restore(backup, "--force", "--target-path", "no/such/x.db", key=keys.open)
    refused(done, "unsuitable-target", shop.path / "no/such")
    assert not (shop.path / "no").exists()


def test_single_file_bind_mount_is_refused(ready: Callable[[str], tuple[Shop, Path]], keys: Keys) -> None:
    shop, backup = ready("sqlite")
    before = shop.snapshot()
    database = shlex.quote(str(shop.db_path))
    done = shop.restore(backup, "--force", key=keys.open, wrapper=in_own_mounts(f"mount --bind {database} {database}"))
    refused(done, "unsuitable-target", shop.db_path)
    assert shop.snapshot() == before


def test_bind_mounted_file_with_a_blank_in_its_name_is_refused(
    make_shop: MakeShop, keys: Keys, ready: Callable[[str], tuple[Shop, Path]]
) -> None:
    shop, backup = ready("sqlite")
    target = shop.path / "my shöp.db"
    shutil.copyfile(shop.db_path, target)
    inode = target.stat().st_ino
    name = shlex.quote(str(target))
    mounted = in_own_mounts(f"mount --bind {name} {name}")
    done = shop.restore(backup, "--force", "--target-path", target, key=keys.open, wrapper=mounted)
    refused(done, "unsuitable-target", target)
    assert target.stat().st_ino == inode


def test_read_only_folder_is_refused(ready: Callable[[str], tuple[Shop, Path]], keys: Keys) -> None:
    shop, backup = ready("sqlite")
    before = shop.snapshot()
    folder = shlex.quote(str(shop.db_path.parent))
    mounts = f"mount --bind {folder} {folder}; mount -o remount,ro,bind {folder}"
    done = shop.restore(backup, "--force", key=keys.open, wrapper=in_own_mounts(mounts))
    refused(done, "cannot-write", shop.db_path.parent)
    assert shop.snapshot() == before


def test_folder_without_write_permission_is_refused(ready: Callable[[str], tuple[Shop, Path]], keys: Keys) -> None:
    shop, backup = ready("sqlite")
    shop.db_path.parent.chmod(0o555)
    before = shop.snapshot()
    done = shop.restore(backup, "--force", key=keys.open, wrapper=WITHOUT_CAPABILITIES)
    refused(done, "cannot-write", shop.db_path.parent, "Permission denied")
    assert shop.snapshot() == before


@pytest.fixture
def immutable() -> Iterator[Callable[[Path], None]]:
    """Sets the attribute that forbids every change; taken off afterwards."""
    changed: list[Path] = []

    def make(path: Path) -> None:
        subprocess.run(["chattr", "+i", path], check=True)
        changed.append(path)

    yield make
    for path in changed:
        subprocess.run(["chattr", "-i", path], check=True)


@pytest.mark.needs("chattr")
@pytest.mark.parametrize("which", ["file", "folder"])
def test_immutable_file_or_folder_is_refused(
    ready: Callable[[str], tuple[Shop, Path]], keys: Keys, immutable: Callable[[Path], None], which: str
) -> None:
    shop, backup = ready("sqlite")
    before = shop.snapshot()
    immutable(shop.db_path if which == "file" else shop.db_path.parent)
    refused(shop.restore(backup, "--force", key=keys.open), "cannot-write", "not permitted")
    assert shop.snapshot() == before


# --- as any other user -----------------------------------------------------------------------------------------------


def test_without_root_it_is_not_claimed_that_nobody_has_the_database_open(
    ready: Callable[[str], tuple[Shop, Path]], keys: Keys
) -> None:
    shop, backup = ready("sqlite")
    before = shop.snapshot()
    command = [*WITHOUT_CAPABILITIES, sys.executable, "restore_backup.py", str(backup), "--key-stdin", "--json"]
    stdin = filled_pipe(keys.open.private_b64.encode())
    terminal = Terminal(command, cwd=shop.path, env=shop.environment(), stdin=stdin)
    os.close(stdin)
    try:
        terminal.expect(r"cannot tell whether[\s\S]*CAP_SYS_PTRACE[\s\S]*\[y/N\] ")
        terminal.send("\n")
        assert terminal.ended == (10, "declined"), terminal.output
    finally:
        terminal.end()
    assert "sudo" not in terminal.output  # it is root, and has not the capability
    assert shop.snapshot() == before


def test_without_root_force_says_that_it_cannot_verify(
    ready: Callable[[str], tuple[Shop, Path]], mode: str, keys: Keys
) -> None:
    shop, backup = ready(mode)
    done = shop.restore(backup, "--force", key=keys.open, wrapper=WITHOUT_CAPABILITIES)
    assert done.code == 0, done.text
    assert [str(shop.db_path) in warning for warning in done.report["warnings"]].count(True) == 1, done.text
    assert shop.is_restored()


def test_owner_that_cannot_be_given_is_a_failure_and_not_a_database_that_the_bot_cannot_open(
    ready: Callable[[str], tuple[Shop, Path]], keys: Keys
) -> None:
    shop, backup = ready("sqlite")
    os.chown(shop.db_path, 1000, 1000)
    shop.db_path.chmod(0o666)
    before = shop.snapshot()
    done = shop.restore(backup, "--force", key=keys.open, wrapper=WITHOUT_CAPABILITIES)
    refused(done, "cannot-write", shop.db_path.parent)
    assert shop.snapshot() == before


# --- space -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path, int], None]]:
    """Puts a filesystem of so many bytes over a folder, with what the folder held."""
    require("mount")
    mounted: list[Path] = []

    def mount(folder: Path, size: int) -> None:
        held = {path.name: path.read_bytes() for path in folder.iterdir()}
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
        mounted.append(folder)
        for name, content in held.items():
            (folder / name).write_bytes(content)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.needs("setfacl", "getfacl")
@pytest.mark.parametrize("room", [0, 8 * 4096, 32 * 4096])
def test_too_little_space_is_refused_and_leaves_everything_as_it_was(
    ready: Callable[[str], tuple[Shop, Path]],
    mode: str,
    keys: Keys,
    small_disk: Callable[[Path, int], None],
    room: int,
) -> None:
    shop, backup = ready(mode)
    pages = -(-shop.db_path.stat().st_size // 4096) * 4096
    small_disk(shop.db_path.parent, pages + room)
    subprocess.run(["setfacl", "-m", "u:1234:rw", shop.db_path], check=True)
    before = shop.snapshot()
    refused(shop.restore(backup, "--force", key=keys.open), "no-space", shop.db_path.parent)
    assert shop.snapshot() == before


def test_too_little_space_for_the_safety_backup_is_6(
    ready: Callable[[str], tuple[Shop, Path]], mode: str, keys: Keys, small_disk: Callable[[Path, int], None]
) -> None:
    shop, backup = ready(mode)
    room = 3 * 4096
    small_disk(shop.backups, -(-backup.stat().st_size // 4096) * 4096 + room)
    names = {path.name for path in shop.backups.iterdir()}
    before = shop.snapshot()
    done = shop.restore(backup, "--force", key=keys.open)
    assert done.ended == (6, "backup-failed"), done.text
    assert "No space left" in done.error["message"]  # the system's words
    assert "Nothing was touched" in done.err
    assert shop.snapshot() == before
    assert {path.name for path in shop.backups.iterdir()} - {"restore.log"} == names


def test_backup_that_fits_after_all_is_restored_on_a_small_disk(
    ready: Callable[[str], tuple[Shop, Path]], keys: Keys, small_disk: Callable[[Path, int], None]
) -> None:
    shop, backup = ready("sqlite")
    small_disk(shop.db_path.parent, 2 * shop.db_path.stat().st_size + 32 * 4096)
    done = shop.restore(backup, "--force", key=keys.open)
    assert done.code == 0, done.text
    assert shop.is_restored()
    assert [path.name for path in shop.db_path.parent.iterdir()] == ["shop.db"]
