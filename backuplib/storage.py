"""How a database lies on the disk: plain or as ciphertext, and in which journal mode. Told by its bytes."""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from backuplib.database import SMALLEST_PAGE, SQLITE_MAGIC, Engine, sidecars
from backuplib.files import create_file, drop, open_regular, write_all

if TYPE_CHECKING:
    import sqlite3

# Bytes 18 and 19 of the header, which say how to write and to read the file. "delete" is SQLite's name for all modes
# with a rollback journal: which of them is not in the file.
JOURNAL_MODES = {b"\1\1": "delete", b"\2\2": "wal"}
JOURNAL_BYTES = slice(18, 20)

_PAGE = 4096  # of SQLite and of SQLCipher 4; where one begins, smaller ones do, too
_SAMPLES = 64  # pages that are looked at
_NODES = (b"\x02", b"\x05", b"\x0a", b"\x0d")  # the first byte of a page that is a b-tree's
_NOISE = 0.9  # what noise is at least compressed to; text and numbers get smaller


def begins_plain(page: bytes) -> bool:
    """Whether this is the beginning of an SQLite database that is not encrypted."""
    return page.startswith(SQLITE_MAGIC) and not has_plaintext_header(page)


def has_plaintext_header(page: bytes) -> bool:
    """Whether this begins a SQLCipher database made with cipher_plaintext_header_size: SQLite's header before noise.

    SQLite file format, section 1.3: byte 20 counts the bytes that each page reserves (SQLCipher's at least 16), the
    three after it are always the same.
    """
    header = page.startswith(SQLITE_MAGIC) and page[20:21] >= b"\x10" and page[21:24] == b"\x40\x20\x20"
    return header and _cannot_be_compressed(page[128:_PAGE])


def is_plain(path: Path) -> bool:
    """Whether a file is an SQLite database that is not encrypted, damaged or not."""
    with open_regular(path) as file:
        return begins_plain(file.read(_PAGE))


def looks_encrypted(path: Path) -> bool:
    """Whether a file can be a SQLCipher database: whole pages, most of them noise.

    Random bytes look the same. What is no ciphertext: text, zeros, half a page too many, and the pages of a plain
    database whose first one is damaged.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        page = file.read(_PAGE)
        if size % SMALLEST_PAGE or page.startswith(SQLITE_MAGIC):
            return has_plaintext_header(page)
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
    return not node and int.from_bytes(page[:4]) > pages and _cannot_be_compressed(page)


def _cannot_be_compressed(data: bytes) -> bool:
    return len(zlib.compress(data, 1)) > _NOISE * len(data)


def journal_mode(engine: Engine, path: Path, scratch: Path) -> str:
    """Return the journal mode that a database is in, "wal" or "delete"; empty when that cannot be told.

    Of a SQLCipher database, a copy of the first page is opened, so that nothing appears beside the database.

    :param scratch: a free name in the RAM folder.
    """
    try:
        with open_regular(path) as file:
            page, size = file.read(_PAGE), os.fstat(file.fileno()).st_size
        if begins_plain(page):
            return JOURNAL_MODES.get(page[JOURNAL_BYTES], "")
        if not engine.db_pass or size < SMALLEST_PAGE:
            return ""
        with create_file(scratch) as copy:
            write_all(copy, page)
            copy.truncate(16 * size)  # sparse; the header tells more pages when the last ones are only in the WAL
        with contextlib.closing(engine.connect(scratch)) as connection:
            return _journal_mode_of(connection)
    except (*engine.errors, OSError):
        return ""
    finally:
        drop(scratch, *sidecars(scratch))


def _journal_mode_of(connection: sqlite3.Connection) -> str:
    connection.execute("PRAGMA schema_version").fetchone()  # reads the header, or fails
    connection.execute("PRAGMA writable_schema=ON")  # the rest of the schema may lie on pages that are not there
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])
