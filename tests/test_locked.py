"""A database that somebody else holds: waited for, then refused by name. A copy is whole, or it is not made."""

import os
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ONE_MODE, MakeShop
from tests.support.keys import Keys
from tests.support.shop import Completed, Shop

ROLLBACK, EXCLUSIVE = "journal_mode=DELETE", "locking_mode=EXCLUSIVE"

IMPATIENT = """
from backuplib.errors import OperatorError
from database_backup import DatabaseBackup
try:
    print(DatabaseBackup("data/shop.db", "backups", patience=1).{method}())
except OperatorError as error:
    raise SystemExit(f"{{error.id}}, {{int(error.exit_code)}}: {{error}}")
"""


def impatient(shop: Shop, method: str = "create_backup", **options: Any) -> Completed:
    """The class as a bot calls it, waiting for a second only; what failed is on standard error, by its id."""
    return shop.run("-c", IMPATIENT.format(method=method), **options)


def names(shop: Shop, backup: Path, keys: Keys) -> set[str]:
    """The names of the customers in a backup."""
    return {row[1] for row in shop.backup_rows(backup, keys.rsa)["customers"]}


# --- somebody holds it locked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pragmas", [(ROLLBACK,), (ROLLBACK, EXCLUSIVE), (EXCLUSIVE,)], ids=" ".join)
def test_locked_database_is_refused_naming_who_holds_it(shop: Shop, pragmas: tuple[str, ...]) -> None:
    with shop.held_locked(*pragmas) as writer:
        before = shop.snapshot()
        done = impatient(shop)
        assert shop.snapshot() == before
    assert done.err.splitlines()[-1].startswith("database-locked, 6: "), done.text
    assert f"(pid {writer.pid})" in done.err.splitlines()[-1]
    assert "up to 1 s" in done.err
    assert list(shop.backups.iterdir()) == []


@ONE_MODE
@pytest.mark.long
def test_command_waits_for_a_minute(shop: Shop) -> None:
    with shop.held_locked(ROLLBACK) as writer:
        began = time.monotonic()
        done = shop.run("database_backup.py", "create", timeout=90)
        assert 60 < time.monotonic() - began < 65
    assert (done.code, done.out) == (6, "")
    assert f"(pid {writer.pid})" in done.err


@pytest.mark.parametrize("pragmas", [(ROLLBACK,), (ROLLBACK, EXCLUSIVE), (EXCLUSIVE,)], ids=" ".join)
def test_lock_that_ends_is_waited_for(shop: Shop, keys: Keys, pragmas: tuple[str, ...]) -> None:
    with shop.held_locked(*pragmas) as writer:
        running = shop.start("database_backup.py", "create")
        assert running.stderr
        said = running.stderr.readline()
        assert f"(pid {writer.pid})" in said
        assert "up to 60 s" in said
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert names(shop, Path(out.strip()), keys) == {"committed late"}


def test_long_transaction_in_wal_mode_is_no_obstacle(shop: Shop, keys: Keys) -> None:
    rows = shop.rows()
    with shop.held_locked("journal_mode=WAL"):
        done = impatient(shop)
    assert (done.code, "Waiting" in done.err) == (0, False), done.text
    assert shop.backup_rows(Path(done.out.strip()), keys.rsa) == rows


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_waiting(shop: Shop, number: signal.Signals) -> None:
    with shop.held_locked(ROLLBACK):
        running = shop.start("database_backup.py", "create")
        assert running.stderr
        assert "Waiting" in running.stderr.readline()
        began = time.monotonic()
        running.send_signal(number)
        _, err = running.communicate(timeout=20)
        assert time.monotonic() - began < 3
        assert running.returncode == 128 + number, err
    assert list(shop.backups.iterdir()) == []


# --- nobody does: its writer was killed ------------------------------------------------------------------------------


def test_hot_journal_is_rolled_back_in_the_copy_though_somebody_has_the_database_open(shop: Shop, keys: Keys) -> None:
    with closing(shop.connect()) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    rows = shop.rows()
    with shop.held_open():
        shop.leave_hot_journal()
        before = shop.snapshot()
        backup = shop.create_backup()
        assert shop.snapshot() == before
    assert shop.backup_rows(backup, keys.rsa) == rows


def test_journal_of_a_writer_that_lives_is_never_copied(shop: Shop) -> None:
    """The database cannot be read, for another reason, and a journal lies beside it."""
    with shop.held_locked(ROLLBACK, "cache_size=1000", "cache_spill=0") as writer:  # it keeps no reader out yet
        assert Path(f"{shop.db_path}-journal").exists()
        done = impatient(shop, env={"DB_ENCRYPTION": "true", "DB_PASS": "wrong"})
    assert "database-locked, 6: " in done.err, done.text
    assert f"(pid {writer.pid})" in done.err


# --- what is copied is checked ---------------------------------------------------------------------------------------


def damage(shop: Shop) -> None:
    """A page in the middle is noise; it opens all the same."""
    content = bytearray(shop.content())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = os.urandom(4096)
    shop.db_path.write_bytes(content)


def test_damaged_database_is_no_backup(shop: Shop) -> None:
    damage(shop)
    done = impatient(shop)
    assert ", 6: " in done.err, done.text
    assert list(shop.backups.iterdir()) == []


def test_damaged_database_is_kept_byte_for_byte_by_a_restore(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    rows = shop.rows()
    damage(shop)
    done = shop.restore("--force", backup, key=keys.rsa)
    assert done.code == 0, done.text
    assert ".raw.tar" in done.report["safety_backup"]
    assert any("saved unchanged" in text for text in done.report["warnings"])
    assert shop.rows() == rows


def test_index_without_its_entries_is_found_before_the_backup_is_stored(make_shop: MakeShop) -> None:
    shop = make_shop("sqlite")
    with closing(shop.connect()) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("CREATE TABLE empty (customer)")
        connection.execute("CREATE INDEX no_rows ON empty (customer)")
        connection.execute(
            "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'no_rows') "
            "WHERE name = 'orders_by_customer'"
        )
    done = impatient(shop)
    assert "database-unsound, 6: " in done.err, done.text
    assert list(shop.backups.iterdir()) == []


def test_what_only_the_bot_has_is_no_damage(make_shop: MakeShop, keys: Keys) -> None:
    shop = make_shop("sqlite")
    with closing(shop.connect()) as connection:
        connection.create_collation("own", lambda one, other: (one > other) - (one < other))
        connection.execute("CREATE INDEX by_name ON customers (name COLLATE own)")
    done = impatient(shop)
    assert (done.code, "collation own" in done.err) == (0, True), done.text
    assert shop.backup_rows(Path(done.out.strip()), keys.rsa) == shop.rows()


def test_files_that_somebody_has_open_are_not_saved_byte_for_byte(shop: Shop) -> None:
    with shop.held_open() as holder:
        done = impatient(shop, "create_raw_backup")
    assert "database-in-use, 3: " in done.err, done.text
    assert f"(pid {holder.pid})" in done.err
    assert list(shop.backups.iterdir()) == []
    assert impatient(shop, "create_raw_backup").code == 0


@pytest.mark.needs("root", "unshare")
@pytest.mark.parametrize("method", ["create_backup", "create_raw_backup"])
def test_lock_of_a_process_that_is_not_visible_counts(shop: Shop, method: str) -> None:
    """As in a container, whose /proc does not show the host's processes."""
    alone = ("unshare", "--pid", "--fork", "--mount-proc")
    with shop.held_locked(EXCLUSIVE) if method == "create_backup" else shop.held_open():
        done = impatient(shop, method, wrapper=alone)
    assert "database-locked, 6: " in done.err, done.text
    assert "is locked by another process" in done.err
    assert list(shop.backups.iterdir()) == []
