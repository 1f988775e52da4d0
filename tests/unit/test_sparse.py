"""Files with holes: told in a moment, whatever their size; no honest file is taken for one."""

import os
from pathlib import Path

import pytest

from backuplib.sparse import MOST_EXTENTS, MOST_HOLES, is_mostly_holes

SIZES = {"9 GB": 9 * 10**9, "3 TB": 3 * 10**12}


def sparse(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for start, data in pieces:
            os.pwrite(file.fileno(), data, start)
    return path


@pytest.mark.timeout(5)
@pytest.mark.parametrize("size", SIZES.values(), ids=[*SIZES])
def test_planted_file_is_told_at_once(tmp_path: Path, size: int) -> None:
    for pieces in ((), ((0, b"a" * 4096),), ((0, b"a"), (size // 2, b"b"), (size - 1, b"c"))):
        path = sparse(tmp_path / "planted", size, *pieces)
        assert is_mostly_holes(path)
        with path.open("rb") as file:
            assert is_mostly_holes(file.fileno())


def test_what_is_small_or_mostly_written_is_none(tmp_path: Path) -> None:
    assert not is_mostly_holes(sparse(tmp_path / "empty", 0))
    assert not is_mostly_holes(sparse(tmp_path / "small", MOST_HOLES))
    written = 2 * MOST_HOLES // 9
    path = sparse(tmp_path / "written", written + MOST_HOLES + 4096)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, written)
        file.write(b"x" * written)
    assert not is_mostly_holes(path)


def test_file_that_its_filesystem_has_compressed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has few blocks, and no holes."""
    path = tmp_path / "compressed"
    path.write_bytes(b"x" * (2 * MOST_HOLES))
    status = path.stat()
    few = os.stat_result([*status[:10]], {"st_blocks": 8})
    monkeypatch.setattr(os, "fstat", lambda _: few)
    with path.open("rb") as file:
        assert not is_mostly_holes(file.fileno())


@pytest.mark.timeout(10)
def test_many_holes_before_a_large_one_hide_nothing(tmp_path: Path) -> None:
    pieces = [(number * 16384, b"x") for number in range(MOST_EXTENTS + 1)]
    assert is_mostly_holes(sparse(tmp_path / "pieces", SIZES["3 TB"], *pieces))


def test_what_cannot_be_looked_at_is_none(tmp_path: Path) -> None:
    planted = sparse(tmp_path / "planted", SIZES["9 GB"])
    link = tmp_path / "link"
    link.symlink_to(planted)
    assert not is_mostly_holes(link), "what it leads to is not looked at"
    assert not is_mostly_holes(tmp_path / "none")
