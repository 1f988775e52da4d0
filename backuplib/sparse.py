"""Files with holes: a planted one has any size, costs nothing, and takes hours to read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from backuplib.files import open_regular

MOST_HOLES = 64_000_000  # bytes that are read within a moment, whatever they are
MOST_EXTENTS = 10_000  # that are looked at


def is_mostly_holes(file: Path | int) -> bool:
    """Whether less than a tenth of a large file was ever written; False for what cannot be looked at.

    No backup is such a file, nor a sidecar: SQLite writes those from the beginning to the end. The blocks alone do not
    tell: filesystems that compress have few of them, too.

    :param file: a regular file, or the descriptor of one, whose position is not kept.
    """
    try:
        status = os.lstat(file) if isinstance(file, Path) else os.fstat(file)
        if not _is_sparse(status.st_size, status.st_blocks * 512):
            return False
        if isinstance(file, Path):
            with open_regular(file, os.O_RDONLY | os.O_NOFOLLOW) as opened:
                return is_mostly_holes(opened.fileno())
        return _is_sparse(status.st_size, sum(end - start for start, end in _written(file, status.st_size)))
    except OSError:
        return False


def _is_sparse(size: int, written: int) -> bool:
    return size - written > MOST_HOLES and written * 10 < size


def _written(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Return where data begins and ends; what lies behind so many holes is not looked at."""
    end = 0
    for _ in range(MOST_EXTENTS):
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole from there on
                return
            raise
        yield start, (end := os.lseek(descriptor, start, os.SEEK_HOLE))
        if end >= size:
            return
