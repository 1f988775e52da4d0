"""Databases: their files, their keys, and whether they are sound."""

import hashlib
import os
from contextlib import closing
from pathlib import Path

import pytest

from backuplib.database import (
    SIDECARS,
    Engine,
    anchored_database,
    check_database,
    cipher_key,
    database_files,
    quoted_passphrase,
    refuse_irregular,
    sidecars,
)
from backuplib.errors import DamagedDatabaseError, EmptyBackupError, UnsoundBackupError, UnsuitableTargetError
from backuplib.formatting import quoted_identifier
from backuplib.secret import Secret

PLAIN = Engine(None)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A plain database of many pages."""
    path = tmp_path / "shop.db"
    path.touch()
    with closing(PLAIN.connect(path)) as connection:
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE t (a UNIQUE)")
        connection.executemany("INSERT INTO t VALUES (?)", [(f"{number:0500}",) for number in range(100)])
        connection.commit()
    return path


def test_files_of_a_database_are_those_that_exist(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    assert database_files(path) == []
    for suffix in ("-wal", "-journal", "-shm", "-other", ".bak"):
        Path(f"{path}{suffix}").touch()
    assert [file.name for file in sidecars(path)] == ["shop.db-wal", "shop.db-shm", "shop.db-journal"]
    path.touch()
    assert database_files(path) == [path, *sidecars(path)]


def test_named_pipe_beside_a_database_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    refuse_irregular([tmp_path / "file"])
    with pytest.raises(UnsuitableTargetError):
        refuse_irregular([tmp_path / "file", tmp_path / "pipe"])


@pytest.mark.parametrize("name", ["t", 'a "quoted" one', "it's", "drop table t; --", "größe"])
def test_name_of_a_table_is_quoted(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.db").touch()
    with closing(PLAIN.connect(tmp_path / "a.db")) as connection:
        connection.execute(f"CREATE TABLE {quoted_identifier(name)} (a)")
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [(name,)]


def test_passphrase_and_raw_key_are_written_as_sqlcipher_takes_them() -> None:
    assert quoted_passphrase(Secret("it's")) == "'it''s'"
    salt, key = bytes(range(16)), hashlib.pbkdf2_hmac("sha1", b"it's", bytes(range(16)), 4000, 32)
    assert cipher_key(Secret("it's"), salt, 1) == f"\"x'{key.hex()}{salt.hex()}'\""


def test_key_that_is_derived_here_is_the_one_that_sqlcipher_derives(tmp_path: Path) -> None:
    engine = Engine(Secret("it's a pässphrase"))
    path = tmp_path / "shop.db"
    path.touch()
    with closing(engine.connect(path)) as connection:  # empty: by passphrase
        connection.execute("CREATE TABLE t (a)")
        connection.commit()
    with closing(engine.connect(path)) as connection:  # by key
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]
    assert b"it's" not in path.read_bytes()
    with pytest.raises(UnsoundBackupError):
        check_database(PLAIN, path)


def test_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for mode in ("ro", "rw"):
        with pytest.raises(PLAIN.errors):
            PLAIN.connect(tmp_path / "none.db", mode=mode).execute("SELECT 1 FROM sqlite_master")
    assert list(tmp_path.iterdir()) == []


# --- soundness -------------------------------------------------------------------------------------------------------


def test_sound_database_is_accepted_and_left_alone(database: Path) -> None:
    before = database.read_bytes()
    check_database(PLAIN, database)
    assert database.read_bytes() == before
    assert [path.name for path in database.parent.iterdir()] == ["shop.db"]


def test_database_without_a_table_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.touch()
    with closing(PLAIN.connect(path)) as connection:
        connection.execute("PRAGMA user_version=1")
    with pytest.raises(EmptyBackupError):
        check_database(PLAIN, path)


@pytest.mark.parametrize("change", [-4096, 4096, 100])
def test_database_of_another_length_is_refused(database: Path, change: int) -> None:
    os.truncate(database, database.stat().st_size + change)
    with pytest.raises(UnsoundBackupError):
        check_database(PLAIN, database)


def test_damaged_page_is_refused(database: Path) -> None:
    with database.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 300)
    with pytest.raises(UnsoundBackupError):
        check_database(PLAIN, database)


def test_index_that_misses_a_row_is_refused(database: Path) -> None:
    with closing(PLAIN.connect(database)) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE type = 'index'").fetchone()[0]
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("CREATE TABLE other (a UNIQUE)")
        empty = connection.execute("SELECT max(rootpage) FROM sqlite_master").fetchone()[0]
        connection.execute("UPDATE sqlite_master SET rootpage = ? WHERE type = 'index' AND tbl_name = 't'", (empty,))
        connection.commit()
        assert root != empty
    with pytest.raises(DamagedDatabaseError):
        check_database(PLAIN, database)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"noise" * 1000)
    with pytest.raises(UnsoundBackupError):
        check_database(PLAIN, tmp_path / "a")


# --- what others may have planted ------------------------------------------------------------------------------------


@pytest.mark.needs("root")
def test_link_is_followed_only_where_nobody_else_can_have_made_it(tmp_path: Path) -> None:
    data, link = tmp_path / "data", tmp_path / "data/shop.db"
    data.mkdir(mode=0o755)
    link.symlink_to(tmp_path / "real.db")
    assert str(anchored_database(link)) == str(tmp_path / "real.db")
    assert str(anchored_database(tmp_path / "none")) == str(tmp_path / "none")
    for mode, owner, owner_of_link in ((0o777, 0, 0), (0o755, 1000, 0), (0o755, 0, 1000)):
        data.chmod(mode)
        os.chown(data, owner, owner)
        os.lchown(link, owner_of_link, 0)
        with pytest.raises(UnsuitableTargetError):
            anchored_database(link)
    link.unlink()
    os.chown(data, 1000, 1000)
    link.touch()
    anchored_database(link)  # a file may be anybody's


def test_sidecar_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").touch()
    (tmp_path / "shop.db-wal").symlink_to("victim")
    with pytest.raises(UnsuitableTargetError):
        refuse_irregular([tmp_path / "shop.db-wal"])
    refuse_irregular([tmp_path / "victim"])


# --- what the bot can plant beside a database ------------------------------------------------------------------------


@pytest.mark.timeout(10)
@pytest.mark.parametrize("suffix", SIDECARS)
@pytest.mark.parametrize("kind", ["pipe", "link", "dangling link", "sparse"])
def test_sidecar_that_sqlite_has_not_made_is_refused_and_does_not_count_as_the_databases(
    tmp_path: Path, suffix: str, kind: str
) -> None:
    """SQLite would wait for it, write where it leads to, or read it for hours; what it leads to is open elsewhere."""
    database, elsewhere = tmp_path / "shop.db", tmp_path / "elsewhere"
    database.write_bytes(b"x")
    planted = tmp_path / f"shop.db{suffix}"
    if kind == "pipe":
        os.mkfifo(planted)
    elif kind == "sparse":
        planted.touch()
        os.truncate(planted, 9 * 10**9)
    else:
        planted.symlink_to(elsewhere)
        if kind == "link":
            elsewhere.write_bytes(b"in use")
    assert sidecars(database) == [planted]
    with pytest.raises(UnsuitableTargetError) as raised:
        refuse_irregular(sidecars(database))
    assert str(planted) in str(raised.value)
    if kind != "sparse":
        assert database_files(database) == [database]
