"""The folder in RAM: private, really in RAM, and gone afterwards."""

import stat
from pathlib import Path

import pytest

from backuplib.errors import NoMemoryError
from backuplib.files import filesystem_type
from backuplib.ram_folder import RamFolder, available_memory, swap_on_disk

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def test_folder_is_private_in_ram_and_gone_afterwards() -> None:
    with RamFolder() as ram:
        assert stat.S_IMODE(ram.path.stat().st_mode) == 0o700
        assert filesystem_type(ram.path) in ("tmpfs", "ramfs")
        assert ram.free > 0
        (ram.path / "decrypted").write_bytes(b"x")
    assert not ram.path.exists()
    ram.close()  # once more does no harm


def test_two_folders_do_not_meet() -> None:
    with RamFolder() as one, RamFolder() as other:
        assert one.path != other.path
        assert one.path.exists()


def test_folder_on_a_disk_is_never_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if filesystem_type(tmp_path) in ("tmpfs", "ramfs"):
        return  # where /tmp is in RAM, it may be used
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with RamFolder() as ram:
        assert ram.path.parent != tmp_path


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(NoMemoryError):
        RamFolder(1 << 60)


@pytest.mark.parametrize(
    ("swaps", "on_disk"),
    [
        ("", False),
        (HEAD, False),
        (HEAD + "/dev/zram0\t\tpartition\t1000\t0\t100\n", False),
        (HEAD + "/dev/sda2\t\tpartition\t1000\t0\t-2\n", True),
        (HEAD + "/swapfile\t\tfile\t1000\t0\t-2\n", True),
        (HEAD + "/dev/zram0\t\tpartition\t1000\t0\t100\n/dev/sda2\t\tpartition\t1000\t0\t-2\n", True),
    ],
    ids=["none", "heading", "zram", "partition", "file", "both"],
)
def test_swap_on_a_disk_is_told_from_compressed_memory(swaps: str, on_disk: bool) -> None:
    assert swap_on_disk(swaps) is on_disk


def test_kernel_is_asked() -> None:
    assert filesystem_type(Path("/proc")) == "proc"
    assert available_memory() > 1_000_000
