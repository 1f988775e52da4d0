"""How a database lies on the disk: plain or as ciphertext. Told by its bytes."""

import os
import zlib
from pathlib import Path

from backuplib.database import SMALLEST_PAGE, SQLITE_MAGIC
from backuplib.files import open_regular

_PAGE = 4096  # of SQLite and of SQLCipher 4; where one begins, smaller ones do, too
_SAMPLES = 64  # pages that are looked at
_NODES = (b"\x02", b"\x05", b"\x0a", b"\x0d")  # the first byte of a page that is a b-tree's
_NOISE = 0.9  # what noise is at least compressed to; text and numbers get smaller


def is_plain(path: Path) -> bool:
    """Whether a file is an SQLite database that is not encrypted, damaged or not."""
    with open_regular(path) as file:
        return file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC


def looks_encrypted(path: Path) -> bool:
    """Whether a file can be a SQLCipher database: whole pages, most of them noise.

    Random bytes look the same. What is no ciphertext: text, zeros, half a page too many, and the pages of a plain
    database whose first one is damaged.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size % SMALLEST_PAGE or file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC:
            return False
        written = noise = 0
        for start in range(0, size, max(_PAGE, size // _SAMPLES // _PAGE * _PAGE)):
            file.seek(start)
            page = file.read(_PAGE)
            written += any(page)  # a page of zeros tells nothing
            noise += _is_noise(page, size // SMALLEST_PAGE)
    return 2 * noise > written


def _is_noise(page: bytes, pages: int) -> bool:
    """Whether a page does not begin as SQLite's do, and cannot be compressed.

    A page full of pictures cannot be either, but it has the header of a b-tree's node, or the number of the next page.
    """
    cells, content = int.from_bytes(page[3:5]), int.from_bytes(page[5:7])
    node = page[:1] in _NODES and 8 + 2 * cells <= content <= _PAGE
    return not node and int.from_bytes(page[:4]) > pages and len(zlib.compress(page, 1)) > _NOISE * len(page)
