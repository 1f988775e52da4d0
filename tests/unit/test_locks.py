"""SQLite's locks, held by real connections in this process and in others."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from backuplib.locks import is_locked, lock_holders, locked

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database of one row, in rollback mode."""
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.execute("INSERT INTO t VALUES (1)")
    return path


@contextmanager
def holding(database: Path, *statements: str) -> Iterator[int]:
    """A process, whose number this is, that has executed these statements and keeps its connection meanwhile."""
    command = [sys.executable, "-c", HOLD, str(database), *statements]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.stdin.close()


def can_write(database: Path) -> bool:
    with closing(sqlite3.connect(database, isolation_level=None, timeout=0)) as connection:
        try:
            connection.execute("INSERT INTO t VALUES (2)")
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
            return False
        return True


def test_shared_lock_keeps_writers_out_and_lets_readers_in(database: Path) -> None:
    with holding(database, "BEGIN", "SELECT * FROM t"), locked(database) as held:
        assert held
        with closing(sqlite3.connect(database, timeout=0)) as connection:
            assert connection.execute("SELECT * FROM t").fetchall() == [(1,)]
        assert not can_write(database)  # nor does that close take the lock away
        assert not can_write(database)
    assert can_write(database)


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_writer_keeps_the_shared_lock_out(database: Path, begin: str) -> None:
    with holding(database, begin), locked(database) as held:
        assert not held


def test_exclusive_lock_is_not_had_while_somebody_has_the_database_open_in_wal_mode(database: Path) -> None:
    idle = holding(database, "PRAGMA journal_mode=WAL", "INSERT INTO t VALUES (2)")
    with idle, locked(database, exclusive=True) as held:
        assert not held
    with locked(database, exclusive=True) as held:
        assert held
        assert not can_write(database)


def test_holder_is_named_and_who_waits_for_it_is_not(database: Path) -> None:
    with holding(database, "BEGIN EXCLUSIVE") as pid, database.open("r+b") as file:
        waits = subprocess.Popen(
            [sys.executable, "-c", "import fcntl; fcntl.lockf(0, fcntl.LOCK_EX, 0, 0x40000000)"], stdin=file
        )
        try:
            assert lock_holders([database]).endswith(f"(pid {pid})")
        finally:
            waits.kill()
            waits.wait()


def test_who_has_it_open_is_not_said_to_hold_the_lock(database: Path) -> None:
    with holding(database, "SELECT * FROM t") as pid:
        said = lock_holders([database])
    assert said.startswith("another process; those that have it open: ")
    assert f"(pid {pid})" in said
    assert lock_holders([database]) == "another process"


def test_lock_on_a_sidecar_is_somebodys(database: Path) -> None:
    with holding(database, "PRAGMA journal_mode=WAL", "BEGIN IMMEDIATE", "INSERT INTO t VALUES (2)") as pid:
        assert f"(pid {pid})" in lock_holders([Path(f"{database}-shm")])
        assert f"(pid {os.getpid()})" not in lock_holders([Path(f"{database}-shm")])


def test_words_of_a_schema_are_not_taken_for_a_lock() -> None:
    assert not is_locked(sqlite3.DatabaseError("malformed database schema (database is locked)"))
