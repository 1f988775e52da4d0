"""What a database's bytes tell: whether it is encrypted, whatever has happened to it, and its journal mode."""

import base64
import os
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlcipher3 import dbapi2 as sqlcipher

from backuplib.database import Engine
from backuplib.ram_folder import RamFolder
from backuplib.secret import Secret
from backuplib.storage import is_plain, journal_mode, looks_encrypted

PLAIN, CIPHER = Engine(None), Engine(Secret("it's"))
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
    "other derivation": ("kdf_iter = 1000",),
    "no HMAC": ("cipher_use_hmac = OFF",),
    "plaintext header": ("cipher_plaintext_header_size = 32", "cipher_salt = \"x'00112233445566778899aabbccddeeff'\""),
    "plaintext header, small pages": ("cipher_plaintext_header_size = 32", "cipher_page_size = 1024"),
    "long plaintext header, no HMAC": ("cipher_plaintext_header_size = 96", "cipher_use_hmac = OFF"),
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


# --- journal mode ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [PLAIN, CIPHER], ids=["sqlite", "sqlcipher"])
@pytest.mark.parametrize(("setting", "mode"), [("WAL", "wal"), ("TRUNCATE", "delete")])
def test_journal_mode_is_told_without_a_trace(engine: Engine, setting: str, mode: str, tmp_path: Path) -> None:
    path = make(tmp_path / "a.db", *(["key"] if engine.db_pass else []), f"journal_mode = {setting}")
    with closing(engine.connect(path)) as connection:  # so many tables that the schema needs more than one page
        connection.execute("BEGIN")
        for number in range(300):
            connection.execute(f"CREATE TABLE t{number} (a)")
        connection.execute("COMMIT")
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    with RamFolder() as ram:
        assert journal_mode(engine, path, ram.path / "page.db") == mode
        assert list(ram.path.iterdir()) == []
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("engine", [PLAIN, CIPHER], ids=["sqlite", "sqlcipher"])
def test_journal_mode_is_told_beside_a_writer(engine: Engine, tmp_path: Path) -> None:
    path = make(tmp_path / "a.db", *(["key"] if engine.db_pass else []), "journal_mode = WAL")
    with RamFolder() as ram, closing(engine.connect(path)) as writer:
        writer.execute("CREATE TABLE u AS SELECT * FROM t")
        writer.execute("BEGIN EXCLUSIVE")
        assert journal_mode(engine, path, ram.path / "page.db") == "wal"


def test_journal_mode_of_a_plain_database_needs_no_right_setting(tmp_path: Path) -> None:
    """It is about to be replaced by an encrypted one."""
    assert journal_mode(CIPHER, make(tmp_path / "a.db", "journal_mode = WAL"), tmp_path / "page.db") == "wal"


def test_journal_mode_is_not_guessed(tmp_path: Path) -> None:
    other = make(tmp_path / "other.db", "key", "journal_mode = WAL")
    assert journal_mode(Engine(Secret("another")), other, tmp_path / "page.db") == ""
    for number, content in enumerate([*NO_DATABASES.values(), zlib.compress(os.urandom(9000))]):
        path = tmp_path / f"{number}.db"
        path.write_bytes(content)
        for engine in (PLAIN, CIPHER):
            assert journal_mode(engine, path, tmp_path / "page.db") == ""
    assert journal_mode(CIPHER, tmp_path / "none.db", tmp_path / "page.db") == ""
    assert not (tmp_path / "page.db").exists()
