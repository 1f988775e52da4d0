"""Programs that hold a database open: the bot in its container, and processes that leave one in a bad state.

Stands alone (standard library and sqlcipher3), because the bot runs it inside a container. One JSON object says what
to do, in the file named on the command line or on standard input: `role`, `db`, `passphrase` (null: plain SQLite), …
"""

import json
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any


def connect(db: str, passphrase: str | None) -> sqlite3.Connection:
    """A connection in autocommit mode; SQLCipher when there is a passphrase. The database is created when absent."""
    if passphrase is None:
        return sqlite3.connect(db, timeout=10, isolation_level=None)
    from sqlcipher3 import dbapi2

    connection: sqlite3.Connection = dbapi2.connect(db, timeout=10, isolation_level=None)
    connection.execute("PRAGMA key = '" + passphrase.replace("'", "''") + "'")
    return connection


def make_slow_to_check(db: str) -> None:
    """A database of half a megabyte on which integrity_check takes minutes, for what its schema has it compute.

    Not for SQLCipher's, which leaves the constraints alone in a database that is opened read-only.
    """
    connection = connect(db, None)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    connection.execute("CREATE TABLE t (a CHECK (length(replace(hex(zeroblob(300000 + a)), '00', 'xyz')) > a))")
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000) INSERT INTO t SELECT i FROM n"
    )
    connection.close()


def kill_self() -> None:
    """End as by power loss: no destructor, no checkpoint, no removal of sidecars."""
    os.kill(os.getpid(), signal.SIGKILL)


# --- the bot ---------------------------------------------------------------------------------------------------------


def run_bot(config: dict[str, Any]) -> None:
    """Insert a row every few milliseconds into bot_log, each in its own transaction, until SIGTERM.

    `deaf`: ignore SIGTERM, as a bot does that runs as PID 1 without a handler. `crash_if_exists`: exit 1 at once when
    that file is there. `needs`, `healthy_if`: a query that must give a row, else the bot exits 1, or is unhealthy.
    `at_start`: statements that are executed first.
    """
    if config.get("crash_if_exists") and Path(config["crash_if_exists"]).exists():
        sys.exit("bot: told to crash")
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN if config.get("deaf") else lambda number, _: stopping.append(number))
    connection = connect(config["db"], config["passphrase"])
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    for statement in config.get("at_start", ()):
        connection.execute(statement)
    if config.get("needs") and not has_row(connection, config["needs"]):
        sys.exit(f"bot: the database is not the one I need \033[31m, opened with {config['passphrase']}")
    connection.execute("CREATE TABLE IF NOT EXISTS bot_log (id INTEGER PRIMARY KEY, at REAL, note TEXT)")
    if not config.get("healthy_if") or has_row(connection, config["healthy_if"]):
        Path("/dev/shm/healthy").write_text(
            Path("/proc/1/stat").read_text().split()[21]
        )  # when the container was started
    while not stopping:
        connection.execute("INSERT INTO bot_log (at, note) VALUES (?, ?)", (time.time(), config.get("note", "tick")))
        time.sleep(config.get("interval", 0.005))
    connection.close()


def has_row(connection: sqlite3.Connection, query: str) -> bool:
    """Whether the query runs and gives a row."""
    try:
        return connection.execute(query).fetchone() is not None
    except Exception:  # noqa: BLE001 - sqlite3 and sqlcipher3 have error classes of their own
        return False


# --- processes that leave something behind ---------------------------------------------------------------------------


def leave_hot_wal(config: dict[str, Any]) -> None:
    """Commit `rows` rows to bot_log that only the WAL holds, then die."""
    connection = connect(config["db"], config["passphrase"])
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("CREATE TABLE IF NOT EXISTS bot_log (id INTEGER PRIMARY KEY, at REAL, note TEXT)")
    for number in range(config["rows"]):
        connection.execute("INSERT INTO bot_log (at, note) VALUES (?, ?)", (float(number), config["note"]))
    kill_self()


def leave_hot_journal(config: dict[str, Any]) -> None:
    """Die in mid-transaction, in rollback mode, when changed pages are already in the main file."""
    connection = connect(config["db"], config["passphrase"])
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA cache_size=2")
    connection.execute("PRAGMA cache_spill=1")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE customers SET name = 'never committed', photo = zeroblob(4000)")
    connection.execute("UPDATE items SET title = 'never committed'")
    kill_self()


def hold_open(config: dict[str, Any]) -> None:
    """Hold an idle connection, with no lock, until standard input ends. Says "ready" on standard output."""
    connection = connect(config["db"], config["passphrase"])
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    print("ready", flush=True)
    sys.stdin.read()
    connection.close()


def hold_lock(config: dict[str, Any]) -> None:
    """Hold a write transaction, half of which is in the main file already, until standard input ends; then commit it.

    Each customer gets `note` as a name. `pragmas` come first, such as journal_mode=DELETE. Says "ready".
    """
    connection = connect(config["db"], config["passphrase"])
    for pragma in ("cache_size=2", "cache_spill=1", *config["pragmas"]):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE customers SET name = ?, photo = zeroblob(4000)", (config["note"],))
    print("ready", flush=True)
    sys.stdin.read()
    connection.execute("COMMIT")
    connection.close()


ROLES = {
    "bot": run_bot,
    "hot-wal": leave_hot_wal,
    "hot-journal": leave_hot_journal,
    "hold": hold_open,
    "lock": hold_lock,
}

if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text(encoding="utf-8") if sys.argv[1:] else sys.stdin.readline()
    settings = json.loads(text)
    ROLES[settings["role"]](settings)
