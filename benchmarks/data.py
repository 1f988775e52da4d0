"""Inputs of the benchmark: databases, keys and backups, generated once in a folder outside the repository.

The databases are the same on every machine (seeded generator); the keys are not, since only their algorithm matters.
"""

from __future__ import annotations

import base64
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MB = 1_000_000
DB_PASS = "it's only a benchmark"
KEY_PASSPHRASE = "only a benchmark"
SCHEMA = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, email TEXT, joined INTEGER, balance REAL);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER REFERENCES customers, placed INTEGER, total REAL,
                     status TEXT, note TEXT);
CREATE TABLE products (id INTEGER PRIMARY KEY, title TEXT, description TEXT, price REAL, picture BLOB);
"""
INDEXES = """
CREATE INDEX orders_by_customer ON orders (customer, placed);
CREATE INDEX customers_by_email ON customers (email);
"""


@dataclass(frozen=True)
class Key:
    """A key pair in a gpg home (for the rivals), and exported (for the tool)."""

    home: Path
    secret: bytes
    public: bytes
    passphrase: str


@dataclass(frozen=True)
class Sample:
    """A database, and a backup of it that ``key`` decrypts."""

    database: Path
    backup: Path
    key: Key
    encrypted: bool

    @property
    def size(self) -> int:
        """Bytes of the database."""
        return self.database.stat().st_size


# --- databases ---------------------------------------------------------------------------------------------------


def database(folder: Path, size_mb: int, *, encrypted: bool = False) -> Path:
    """Return a database of about ``size_mb`` million bytes, generated on the first call."""
    path = folder / f"{'sqlcipher' if encrypted else 'plain'}-{size_mb}.db"
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        with closing(connect(partial, encrypted=encrypted)) as connection:
            _fill(connection, size_mb * MB)
        partial.rename(path)
    return path


def sql_dump(source: Path) -> Path:
    """Return a plain database's dump by the sqlite3 shell, made on the first call."""
    path = source.with_suffix(".sql")
    if not path.exists():
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            subprocess.run(["sqlite3", str(source), ".dump"], stdout=file, check=True)
        partial.rename(path)
    return path


def connect(path: Path, *, encrypted: bool) -> Any:
    """Open a database in either mode."""
    if not encrypted:
        return sqlite3.connect(path, isolation_level=None)
    from sqlcipher3 import dbapi2

    connection = dbapi2.connect(str(path), isolation_level=None)
    quoted = DB_PASS.replace("'", "''")
    connection.execute(f"PRAGMA key='{quoted}'")
    return connection


def _fill(connection: Any, size: int) -> None:
    """Fill it like a shop: text, numbers and blobs; about a third is text that compresses well."""
    rng = random.Random(size)
    words = [_word(rng) for _ in range(3000)]
    connection.execute("PRAGMA cache_size=-200000")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA journal_mode=OFF")
    connection.executescript(SCHEMA)
    connection.execute("BEGIN")
    unit = max(1, size // 21_000)  # one product (about 10 kB), ten customers and sixty orders
    for start in range(0, unit, 500):
        ids = range(start, min(start + 500, unit))
        connection.executemany("INSERT INTO products VALUES (?,?,?,?,?)", _products(rng, words, ids))
        connection.executemany("INSERT INTO customers VALUES (?,?,?,?,?)", _customers(rng, words, ids))
        connection.executemany("INSERT INTO orders VALUES (?,?,?,?,?,?)", _orders(rng, words, ids, unit * 10))
    connection.execute("COMMIT")
    connection.executescript(INDEXES)
    connection.execute("PRAGMA journal_mode=WAL")


def _word(rng: random.Random) -> str:
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyzäöü", k=rng.randint(2, 11)))


def _text(rng: random.Random, words: list[str], count: int) -> str:
    return " ".join(rng.choices(words, k=count))


def _products(rng: random.Random, words: list[str], ids: range) -> Iterator[tuple[object, ...]]:
    for number in ids:
        picture = rng.randbytes(rng.randint(2000, 8000))
        yield (
            number,
            _text(rng, words, 4),
            _text(rng, words, rng.randint(200, 700)),
            rng.randint(1, 9999) / 100,
            picture,
        )


def _customers(rng: random.Random, words: list[str], ids: range) -> Iterator[tuple[object, ...]]:
    for number in range(ids.start * 10, ids.stop * 10):
        yield number, _text(rng, words, 2), f"{_word(rng)}.{number}@example.org", _moment(rng), rng.gauss(50, 20)


def _orders(rng: random.Random, words: list[str], ids: range, customers: int) -> Iterator[tuple[object, ...]]:
    for number in range(ids.start * 60, ids.stop * 60):
        status = rng.choice(("paid", "sent", "open", "cancelled"))
        note = _text(rng, words, rng.randint(5, 25))
        yield number, rng.randrange(customers), _moment(rng), rng.randint(1, 99999) / 100, status, note


def _moment(rng: random.Random) -> int:
    return 1_700_000_000 + rng.randrange(40_000_000)


# --- keys and backups --------------------------------------------------------------------------------------------


def key(folder: Path, algorithm: str, passphrase: str = "") -> Key:
    """Return a key pair, made on the first call.

    :param folder: with a path short enough for the sockets of gpg's agent.
    """
    home = folder / f"gpg-{algorithm}"
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback"]
    gpg += ["--passphrase", passphrase]
    if not (home / "made").exists():
        home.mkdir(mode=0o700, exist_ok=True)
        subprocess.run([*gpg, "--quick-gen-key", "benchmark", algorithm, "cert,sign,encr", "0"], check=True)
        (home / "made").touch()
    secret, public = (subprocess.check_output([*gpg, option]) for option in ("--export-secret-keys", "--export"))
    return Key(home, secret, public, passphrase)


def settings(database_path: Path, backups: Path, public: bytes, *, encrypted: bool) -> dict[str, str]:
    """Return the tool's environment for a database."""
    return os.environ | {
        "RUNTIME_ENVIRONMENT": "TEST",
        "DB_NAME": database_path.name,
        "DATA_DIR": str(database_path.parent),
        "DB_ENCRYPTION": "true" if encrypted else "false",
        "DB_PASS": DB_PASS if encrypted else "",
        "DB_BACKUP_PATH": str(backups),
        "PGP_PUBLIC_KEY_BASE64": base64.b64encode(public).decode(),
    }


def sample(folder: Path, size_mb: int, owner: Key, *, encrypted: bool = False) -> Sample:
    """Return a database and its backup by database_backup.py, made on the first call."""
    source = database(folder, size_mb, encrypted=encrypted)
    backups = folder / f"backups-{source.stem}-{owner.home.name}"
    if not any(backups.glob("*.gpg")):
        environment = settings(source, backups, owner.public, encrypted=encrypted)
        create = [sys.executable, str(ROOT / "database_backup.py"), "create"]
        subprocess.run(create, env=environment, check=True, stdout=subprocess.DEVNULL)
    return Sample(source, next(backups.glob("*.gpg")), owner, encrypted)
