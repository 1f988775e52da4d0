"""The restored database in memory: fed in pieces, refused when incomplete, written out to the byte."""

import gzip
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from backuplib.database import Engine
from backuplib.errors import (
    CheckFailedError,
    DamagedDatabaseError,
    DamagedGzipError,
    EmptyBackupError,
    NoMemoryError,
    NotADatabaseError,
    TooLargeError,
    UnsoundBackupError,
)
from backuplib.files import create_file
from backuplib.image import DatabaseImage, begun_check, explain_unreadable, opened_image
from backuplib.ram_folder import RamFolder
from backuplib.secret import Secret

LIMIT = 10**7


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database in WAL mode, of a hundred rows."""
    path = tmp_path_factory.mktemp("image") / "shop.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (a); CREATE TABLE u (a)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 100,)] * 100)
        connection.commit()
    return path.read_bytes()


def image_of(*pieces: bytes, limit: int = LIMIT, folder: Path | None = None, bare: bool = False) -> DatabaseImage:
    image = DatabaseImage(limit, folder, bare=bare)
    for piece in pieces:
        image.feed(piece)
    image.finish()
    return image


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_content_is_taken_gzipped_or_not_however_it_is_cut(content: bytes, size: int) -> None:
    content = content[:4096]
    for stream in (content, gzip.compress(content)):
        image = image_of(*(stream[start : start + size] for start in range(0, len(stream), size)))
        assert image.buffer.getvalue() == content
        assert (image.size, image.header) == (4096, content[:100])
        assert image.plain


def test_bare_database_that_begins_like_gzip_is_not_unpacked() -> None:
    """A SQLCipher database begins with its salt."""
    noise = b"\x1f\x8b\x08" + bytes(1000)
    assert image_of(noise, bare=True).buffer.getvalue() == noise
    with pytest.raises(DamagedGzipError):
        image_of(noise)


def test_limit_holds(content: bytes) -> None:
    assert image_of(content, limit=len(content)).size == len(content)
    for stream in (content, gzip.compress(content)):
        with pytest.raises(TooLargeError):
            image_of(stream, limit=len(content) - 1)


def test_truncated_gzip_is_refused(content: bytes) -> None:
    with pytest.raises(DamagedGzipError):
        image_of(gzip.compress(content)[:-5])


@pytest.mark.parametrize(
    ("cut", "error"),
    [(0, EmptyBackupError), (1, NotADatabaseError), (511, NotADatabaseError), (4096, DamagedDatabaseError)],
)
def test_incomplete_database_is_refused(content: bytes, cut: int, error: type[UnsoundBackupError]) -> None:
    with pytest.raises(error):
        image_of(content[:cut]).refuse_incomplete()


def test_complete_database_is_not_refused(content: bytes) -> None:
    image_of(content).refuse_incomplete()


def test_image_is_written_and_compared_to_the_byte(content: bytes, tmp_path: Path) -> None:
    image = image_of(content)
    with create_file(tmp_path / "a") as file:
        image.write_to(file)
        assert image.is_in(file)
        file.seek(5000)
        file.write(b"?")
        assert not image.is_in(file)
        file.seek(5000)
        file.write(content[5000:5001])
        assert image.is_in(file)
        file.seek(0, 2)
        file.write(b"\0")
        assert not image.is_in(file)
        file.truncate(len(content) - 1)
        assert not image.is_in(file)


def test_image_in_the_ram_folder_is_the_same(content: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "ram"
    folder.mkdir()
    image = image_of(content[:5000], content[5000:], folder=folder)
    assert image.buffer.getvalue() == b""
    assert (image.size, image.header, image.plain) == (len(content), content[:100], True)
    with create_file(tmp_path / "a") as file:
        image.write_to(file)
        assert image.is_in(file)
    image.wipe()
    assert list(folder.iterdir()) == []
    assert (tmp_path / "a").read_bytes() == content


@pytest.mark.needs("root", "mount")
def test_full_ram_folder_is_told_as_such(content: bytes, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], check=True)
    try:
        with pytest.raises(NoMemoryError):
            image_of(content, bytes(2 << 20), folder=tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_database_in_wal_mode_is_opened_in_memory_and_stays_as_it_is(content: bytes) -> None:
    image = image_of(content)
    with opened_image(image, Engine(None)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (100,)
    assert image.buffer.getvalue() == content


CIPHER = Engine(Secret("it's"))


@pytest.mark.parametrize("engine", [Engine(None), CIPHER], ids=["sqlite", "sqlcipher"])
def test_journal_mode_is_set_in_the_first_page_alone(content: bytes, engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    if engine.db_pass:
        path.touch()
        with closing(engine.connect(path)) as connection:
            connection.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (a); CREATE TABLE u (a)")
        content = path.read_bytes()
    with RamFolder() as ram:
        image = image_of(content, folder=ram.path if engine.db_pass else None)
        image.set_journal_mode("wal", engine)
        assert written(image, tmp_path / "same") == content
        for mode in ("delete", "wal"):
            image.set_journal_mode(mode, engine)
            changed = written(image, tmp_path / mode)
            assert (changed[:4096] != content[:4096]) == (mode == "delete" or engine is CIPHER)
            assert changed[4096:] == content[4096:]
            path.write_bytes(changed)
            assert list(ram.path.iterdir()) == [image.path] * (engine is CIPHER)
            with closing(engine.connect(path)) as connection:
                assert connection.execute("SELECT count(*) FROM u").fetchone() == (0,)
                assert connection.execute("PRAGMA journal_mode").fetchone() == (mode,)
            with opened_image(image, engine) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_pages_that_nothing_refers_to_are_checked_beside(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    path.touch()
    with closing(CIPHER.connect(path)) as connection:
        connection.executescript(
            f"PRAGMA journal_mode={mode}; CREATE TABLE t (a); CREATE TABLE u (a);"
            "INSERT INTO u VALUES (randomblob(40000)); DROP TABLE u"
        )
    content = path.read_bytes()
    free = len(content) - 4096 + 100
    damaged = content[:free] + bytes([content[free] ^ 1]) + content[free + 1 :]
    with RamFolder() as ram:
        with begun_check(image_of(content, folder=ram.path), CIPHER) as (whole, beside):
            assert (whole.result()["tables"], beside.result()) == (1, [])
        with begun_check(image_of(damaged, folder=ram.path), CIPHER) as (whole, beside):
            assert whole.result()["tables"] == 1
            with pytest.raises(UnsoundBackupError):
                beside.result()


def written(image: DatabaseImage, path: Path) -> bytes:
    """What is written of it, and proved."""
    with create_file(path) as file:
        image.write_to(file)
        assert image.is_in(file)
    return path.read_bytes()


@pytest.mark.parametrize("engine", [Engine(None), CIPHER], ids=["sqlite", "sqlcipher"])
@pytest.mark.parametrize(
    "odd", [b"", b"x", b"noise" * 2000, bytes(8192), b"SQLite format 3\0\x10\0\7\7" + bytes(4076)], ids=range(5)
)
def test_journal_mode_of_what_is_no_database_is_not_set(odd: bytes, engine: Engine, tmp_path: Path) -> None:
    """Damage is for the check to find, and nothing is made of nothing."""
    with RamFolder() as ram:
        image = image_of(odd, bare=True, folder=ram.path if engine.db_pass else None)
        image.set_journal_mode("wal", engine)
        assert written(image, tmp_path / "a") == odd


def test_wiped_image_lets_go_of_its_memory(content: bytes) -> None:
    image = image_of(content)
    image.wipe()
    assert image.buffer.closed


def test_check_that_takes_too_much_memory_says_nothing_about_the_database(tmp_path: Path) -> None:
    path = tmp_path / "bomb.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "PRAGMA ignore_check_constraints=ON; CREATE TABLE t (a CHECK (length(hex(zeroblob(499000000))) > a));"
            "INSERT INTO t VALUES (1)"
        )
    image = image_of(path.read_bytes())
    with begun_check(image, Engine(None)) as (check, _), pytest.raises(CheckFailedError) as raised:
        check.result()
    assert "memory" in str(raised.value)


def test_what_is_no_database_is_told_from_a_damaged_one(content: bytes) -> None:
    error = sqlite3.DatabaseError("malformed")
    assert isinstance(explain_unreadable(image_of(b"noise" * 1000), Engine(None), error), NotADatabaseError)
    assert isinstance(explain_unreadable(image_of(content), Engine(None), error), DamagedDatabaseError)
