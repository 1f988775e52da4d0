"""What a database's bytes tell: whether it is encrypted, whatever has happened to it."""

import base64
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlcipher3 import dbapi2 as sqlcipher

from backuplib.storage import is_plain, looks_encrypted

Edit = Callable[[bytes], bytes]


def make(path: Path, *settings: str, rows: int = 60, cell: Callable[[int], object] = os.urandom) -> Path:
    """A database of many pages, by default full of what cannot be compressed, as pictures cannot; some are free."""
    with closing((sqlcipher if "key" in settings[:1] else sqlite3).connect(path, isolation_level=None)) as connection:
        for setting in settings:
            connection.execute("PRAGMA key = 'it''s'" if setting == "key" else f"PRAGMA {setting}")
        connection.execute("CREATE TABLE t (a, b UNIQUE)")
        connection.execute("BEGIN")
        # both within a page and over several, so that there are all kinds of pages
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(cell(90 + 311 * (i % 40)), i) for i in range(rows)])
        connection.execute("COMMIT")
        connection.execute("DELETE FROM t WHERE b < ?", (rows // 5,))
    return path


CIPHERS = {
    "SQLCipher 4": (),
    "SQLCipher 4, WAL": ("journal_mode = WAL",),
    "SQLCipher 4, pages of 1024": ("cipher_page_size = 1024",),
    "SQLCipher 4, pages of 65536": ("cipher_page_size = 65536",),
    "SQLCipher 3": ("cipher_compatibility = 3",),
    "SQLCipher 2": ("cipher_compatibility = 2",),
    "SQLCipher 1": ("cipher_compatibility = 1",),
}


@pytest.mark.parametrize("name", CIPHERS)
def test_sqlcipher_looks_encrypted_whatever_it_holds(name: str, tmp_path: Path) -> None:
    for rows, cell in ((0, os.urandom), (60, os.urandom), (2000, "x".__mul__)):
        path = make(tmp_path / f"{rows}.db", "key", *CIPHERS[name], rows=rows, cell=cell)
        assert looks_encrypted(path)
        assert not is_plain(path)


def damaged(beginning: bytes) -> Edit:
    """What happens to the first bytes; the rest stays."""
    return lambda data: beginning + data[len(beginning) :]


DAMAGES: dict[str, Edit] = {
    "header zeroed": damaged(bytes(100)),
    "header overwritten": damaged(os.urandom(200)),
    "first page zeroed": damaged(bytes(4096)),
    "first page overwritten": damaged(os.urandom(4096)),
    "first page of text": damaged(b"core dumped\n" * 341),
}


def short(_: int) -> bytes:
    """A thumbnail: several of them on a page."""
    return os.urandom(400)


PAGES = ("page_size = 4096", "page_size = 1024", "auto_vacuum = FULL")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("setting", PAGES)
def test_plain_database_does_not_look_encrypted_though_its_beginning_is_lost(
    setting: str, damage: str, tmp_path: Path
) -> None:
    contents = [(5, "x".__mul__), (60, os.urandom), (600, os.urandom), (601, short), (2000, "row {}".format)]
    for rows, cell in contents:
        path = make(tmp_path / f"{rows}.db", setting, rows=rows, cell=cell)
        assert is_plain(path)
        assert not looks_encrypted(path)
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
        assert not is_plain(path)
        assert not looks_encrypted(path), rows


@pytest.mark.parametrize("damage", ["header zeroed", "first page zeroed", "first page of text"])
def test_sqlcipher_database_looks_encrypted_though_its_beginning_is_lost(damage: str, tmp_path: Path) -> None:
    path = make(tmp_path / "a.db", "key")
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert looks_encrypted(path)


NO_DATABASES = {
    "nothing": b"",
    "a few bytes": os.urandom(16),
    "text": b"2025-01-30 12:00:00 error: disk full\n" * 1024,
    "zeros": bytes(8192),
    "base64": base64.b64encode(os.urandom(6144)),
    "noise, half a page too many": os.urandom(50_000),
    "SQLite's magic before noise": b"SQLite format 3\0" + os.urandom(8176),
}


@pytest.mark.parametrize("content", NO_DATABASES.values(), ids=NO_DATABASES)
def test_what_is_no_database_does_not_look_encrypted(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(content)
    assert not looks_encrypted(path)


def test_noise_in_whole_pages_cannot_be_told_from_sqlcipher(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(os.urandom(8192))
    assert looks_encrypted(tmp_path / "a.db")


def test_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.db")
    for look in (is_plain, looks_encrypted):
        with pytest.raises(OSError, match="not a regular file"):
            look(tmp_path / "a.db")
