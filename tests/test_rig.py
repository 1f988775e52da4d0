"""The rig itself: what other tests stand on must really be there."""

import os
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from sqlcipher3 import dbapi2 as sqlcipher

from tests.conftest import MakeBotShop, MakeShop
from tests.support.containers import Bot, BotShop, Compose, wait_until
from tests.support.keys import GpgHome, Keys
from tests.support.shop import Shop, filled_pipe
from tests.support.terminal import Terminal


def test_keys_open_what_they_encrypted(gpg: GpgHome, keys: Keys) -> None:
    for key in (keys.rsa, keys.open):
        cipher = gpg.run("--trust-model", "always", "--recipient", key.fingerprint, "--encrypt", stdin=b"data")
        unlock = () if key.passphrase is None else ("--passphrase", key.passphrase)
        subprocess.run(["gpgconf", "--homedir", str(gpg.path), "--kill", "all"], check=True)
        assert gpg.run(*unlock, "--decrypt", stdin=cipher) == b"data"


def test_looking_at_rows_changes_nothing(shop: Shop) -> None:
    shop.leave_hot_wal()
    before = shop.snapshot()
    rows = shop.rows()
    assert {name: len(found) for name, found in rows.items()} == {
        "audit": 0,
        "bot_log": 20,
        "customers": 100,
        "items": 900,
        "orders": 300,
    }
    assert shop.snapshot() == before


def test_hot_wal_rows_are_in_the_wal_only(shop: Shop) -> None:
    shop.leave_hot_wal()
    Path(f"{shop.db_path}-wal").unlink()
    assert "bot_log" not in shop.rows()


def test_hot_journal_takes_the_changes_back_and_without_it_they_show(shop: Shop) -> None:
    before = shop.rows()
    shop.leave_hot_journal()
    assert shop.rows() == before
    Path(f"{shop.db_path}-journal").unlink()
    # Half a transaction may also be a malformed database.
    with suppress(sqlite3.DatabaseError, sqlcipher.DatabaseError):
        assert shop.rows() != before


@pytest.mark.needs("root")
def test_snapshot_sees_owner_mode_attributes_names_and_bytes(shop: Shop) -> None:
    seen = [shop.snapshot()]
    changes: tuple[Callable[[], None], ...] = (
        lambda: os.chown(shop.db_path, 1000, 1000),
        lambda: shop.db_path.chmod(0o640),
        lambda: os.setxattr(shop.db_path, "user.shop", b"1"),
        lambda: Path(f"{shop.db_path}-journal").touch(),
        shop.change_data,
    )
    for change in changes:
        change()
        assert shop.snapshot() not in seen
        seen.append(shop.snapshot())


def test_held_open_holds_no_lock_but_the_file(shop: Shop) -> None:
    inode = shop.db_path.stat().st_ino
    with shop.held_open() as process:
        held = [os.stat(entry).st_ino for entry in Path(f"/proc/{process.pid}/fd").iterdir() if entry.exists()]
        assert inode in held
        with closing(shop.connect()) as connection:
            connection.execute("DELETE FROM items")
    assert process.returncode == 0


def test_terminal_is_the_controlling_one_and_can_be_lost(tmp_path: Path) -> None:
    script = 'read a; echo "pipe said $a"; read b </dev/tty; echo "terminal said $b"; sleep 60'
    reading = filled_pipe(b"one\n")
    started = Terminal(["sh", "-c", script], cwd=tmp_path, env=dict(os.environ), stdin=reading)
    os.close(reading)
    try:
        started.expect("pipe said one")
        started.send("two\n")
        started.expect("terminal said two")
        started.close_master()
        assert started.wait(10) < 0
    finally:
        started.end()


def test_ctrl_c_reaches_the_program_on_the_terminal(tmp_path: Path) -> None:
    started = Terminal(["/bin/sh", "-c", "echo go; exec sleep 60"], cwd=tmp_path, env=dict(os.environ))
    try:
        started.expect("go")
        started.send("\x03")
        assert started.wait(10) == -2
    finally:
        started.end()


@pytest.mark.docker
@pytest.mark.long
def test_bot_really_writes_and_keeps_the_database_open(bot_shop: BotShop) -> None:
    assert bot_shop.state().running
    assert bot_shop.state("redis").running
    assert Path(f"{bot_shop.db_path}-wal").exists()
    bot_shop.stop()
    assert not bot_shop.state().running
    assert bot_shop.state().exit_code == 0
    assert not Path(f"{bot_shop.db_path}-wal").exists()
    assert len(bot_shop.rows()["bot_log"]) >= 5


@pytest.mark.docker
@pytest.mark.long
def test_deaf_bot_is_killed_and_leaves_a_hot_wal(make_bot_shop: MakeBotShop, mode: str, compose: Compose) -> None:
    shop = make_bot_shop(mode, compose, Bot(deaf=True))
    shop.up("bot")
    count = shop.wait_rows()
    shop.stop("bot")
    assert shop.state().exit_code == 137
    assert Path(f"{shop.db_path}-wal").stat().st_size > 0
    assert len(shop.rows()["bot_log"]) >= count


@pytest.mark.docker
@pytest.mark.long
def test_bot_crashes_over_and_over_without_the_rows_it_needs(make_bot_shop: MakeBotShop, compose: Compose) -> None:
    shop = make_bot_shop("sqlite", compose, Bot(needs="SELECT 1 FROM customers WHERE id = 1000"))
    shop.up()
    wait_until(lambda: shop.state().restart_count >= 2, "the bot crashes again and again")
    assert "not the one I need" in shop.logs()


@pytest.mark.docker
@pytest.mark.long
def test_health_follows_the_database_and_the_script(make_bot_shop: MakeBotShop, compose: Compose) -> None:
    shop = make_bot_shop("sqlite", compose, Bot(health=True, healthy_if="SELECT 1 FROM customers", profile="shop"))
    shop.up()
    shop.wait_health("healthy")
    shop.set_health("exit 1")
    shop.wait_health("unhealthy")


@pytest.mark.docker
@pytest.mark.long
def test_only_the_asked_compose_is_found(compose: Compose) -> None:
    environment = os.environ | compose.env
    found = subprocess.run(["docker", "compose", "version"], env=environment, capture_output=True, check=False)
    assert (found.returncode == 0) == (compose.name == "v2")
    subprocess.run([*compose.command, "version"], env=environment, capture_output=True, check=True)


def test_sqlcipher_shop_is_not_readable_as_sqlite(make_shop: MakeShop) -> None:
    shop = make_shop("sqlcipher")
    with closing(sqlite3.connect(shop.db_path)) as connection, pytest.raises(sqlite3.DatabaseError):
        connection.execute("SELECT * FROM customers")
