"""Proves that the tool works on this machine, without touching the operator's data: `restore_backup.py --drill`.

In a RAM folder, with throwaway keys and a sample shop, plain and encrypted: the real scripts back it up while it is
being written to, restore it after changes, undo that, and must refuse a corrupted backup, another key's, and a wrong
passphrase.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from backuplib.backup_file import checksum_path
from backuplib.console import Console, with_time
from backuplib.database import Engine, check_database
from backuplib.errors import ExitCode, OperatorError, restore_command
from backuplib.files import create_file
from backuplib.openpgp import Keyring
from backuplib.ram_folder import RamFolder, enter_private_mounts
from backuplib.secret import Secret
from backuplib.signing import THIS_HOST
from backuplib.style import Kind

ROOM = 64 << 20  # bytes that the drill needs in RAM, its children's copies included

SCHEMA = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT UNIQUE, balance REAL, photo BLOB);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers, cents INTEGER, note TEXT);
CREATE TABLE order_log (order_id INTEGER, what TEXT);
CREATE INDEX orders_by_customer ON orders (customer_id);
CREATE VIEW turnover AS SELECT customer_id, sum(cents) AS cents FROM orders GROUP BY customer_id;
CREATE TRIGGER log_order AFTER INSERT ON orders BEGIN INSERT INTO order_log VALUES (new.id, 'ordered'); END;
PRAGMA user_version = 7;
"""

CHANGES = """
DELETE FROM orders WHERE id % 3 = 0;
UPDATE customers SET balance = balance + 1, photo = NULL WHERE id % 2 = 0;
DROP VIEW turnover;
CREATE TABLE vouchers (code TEXT PRIMARY KEY, cents INTEGER);
INSERT INTO vouchers VALUES ('came after the backup', 500);
"""


class DrillFailedError(OperatorError):
    """A promise of the restore did not hold here: a bug, since the drill uses nothing of the operator's."""

    exit_code = ExitCode.UNEXPECTED


def run(console: Console, backup_script: Path) -> dict[str, object]:
    """Run the drill and return what it proved, with times, for --json.

    :param backup_script: file of the class DatabaseBackup, which may be elsewhere in a bot's repository.
    :raises DrillFailedError: when a promise of the restore did not hold.
    :raises RefusedError: when the machine lacks gpg or a RAM folder.
    """
    enter_private_mounts()
    began = time.monotonic()
    with RamFolder(ROOM) as ram:
        console.line(f"🎯 Drill in {ram.path}: throwaway keys and sample data; your own data is not touched")
        drill = Drill(console)
        with drill.proving("two throwaway keys made, with passphrases"):
            home = Keyring(ram).home
            own, foreign = make_key(home, "drill"), make_key(home, "somebody else")
            run_child(["gpgconf", "--homedir", str(home), "--kill", "all"], child_settings())
        # A copy has no .env beside it: not even a broken one of the operator's has an effect.
        parts, program = Path(__file__).parent, ram.path / "program"
        shutil.copytree(parts, program / parts.name)
        for name in ("config.py", "restore_backup.py"):
            shutil.copyfile(parts.with_name(name), program / name)
        shutil.copyfile(backup_script, program / "database_backup.py")
        for db_pass in (None, f"""it's a "drill" {secrets.token_hex(8)}"""):
            drill.prove_mode(Shop(ram.path, db_pass, own), foreign)
    require(not ram.path.exists(), f"the RAM folder {ram.path} still exists")
    seconds = round(time.monotonic() - began, 1)
    console.result(f"✅ Drill passed in {seconds} s, for SQLite and for SQLCipher", kind=Kind.DONE)
    console.result("   Proved: backup, restore, undo and refusals work here, with throwaway keys and sample data")
    console.result(f"   Your Docker, your key and your .env were not tried: {restore_command('--check')}")
    return {"seconds": seconds, "proved": drill.proved}


def require(holds: bool, otherwise: str) -> None:
    """Fail the drill unless something holds; unlike assert, also under python -O."""
    if not holds:
        raise DrillFailedError(
            f"drill failed: {otherwise}", hint="Do not rely on restores here until this is understood."
        )


class Drill:
    """What is proved: :meth:`prove_mode` is the whole story."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.proved: list[dict[str, object]] = []

    def prove_mode(self, shop: Shop, foreign: Key) -> None:
        """Backup, restore, undo and refusals in one mode."""
        mode = shop.engine.name
        with contextlib.closing(shop.open_new()) as writer:
            original = read_contents(writer)
            rows = sum(len(content) for content in original.values())
            with self.proving(f"{mode}: {rows:,} rows backed up while a writer had the last in its WAL"):
                require(shop.wal.stat().st_size > 0, "the sample database has nothing in its WAL")
                backup = shop.back_up(shop.key)
            writer.executescript(CHANGES)
            changed = read_contents(writer)
        with self.proving(f"{mode}: restored after changes; all rows and the schema as in the backup"):
            safety_backup = shop.restore(backup)
            require(shop.read() == original, "the restored content is not that of the backup")
        with self.proving(f"{mode}: undone with the safety backup; all rows and the schema as changed"):
            shop.restore(safety_backup)
            require(shop.read() == changed, "the safety backup does not hold what was there before the restore")
        damaged = shop.folder / "damaged.db.gz.gpg"
        # The last bit is in the authentication code: the content can be read in full, but must not be trusted.
        damaged.write_bytes(backup.read_bytes()[:-1] + bytes([backup.read_bytes()[-1] ^ 1]))
        self.prove_refused(shop, f"{mode}: one flipped bit", damaged, ExitCode.CANNOT_DECRYPT)
        shutil.copyfile(checksum_path(backup), checksum_path(damaged))
        self.prove_refused(shop, f"{mode}: one flipped bit, checksum beside it", damaged, ExitCode.REFUSED)
        other = shop.back_up(foreign)
        self.prove_refused(shop, f"{mode}: backup for another key", other, ExitCode.CANNOT_DECRYPT)
        self.prove_refused(shop, f"{mode}: wrong passphrase", backup, ExitCode.CANNOT_DECRYPT, "wrong")

    def prove_refused(self, shop: Shop, what: str, backup: Path, code: ExitCode, passphrase: str = "") -> None:
        """Prove that a restore is refused with an exit code and leaves the database unchanged."""
        with self.proving(f"{what}: refused with exit code {code:d}, data untouched"):
            before = shop.files()
            expect(code, shop.run_restore(backup, passphrase or shop.key.passphrase), f"{what} (restore_backup.py)")
            require(shop.files() == before, f"{what}: refused, but files in the database's folder changed")

    @contextlib.contextmanager
    def proving(self, what: str) -> Iterator[None]:
        """Record and print what was proved, with its time, when the block completes."""
        began = time.monotonic()
        yield
        seconds = round(time.monotonic() - began, 2)
        self.proved.append({"what": what, "seconds": seconds})
        self._console.line(with_time(f"✅ {what}", seconds))


# --- the sample shop ---------------------------------------------------------------------------------------------


class Shop:
    """A sample shop in a folder of its own in RAM, and the real scripts on it; ``db_pass`` None: SQLite."""

    def __init__(self, ram: Path, db_pass: str | None, key: Key) -> None:
        self.engine = Engine(Secret(db_pass) if db_pass else None)
        self.key = key
        self.folder = ram / self.engine.name.lower()
        self._program, self._data, self._signing = ram / "program", self.folder / "data", ram / "signing"
        self._database, self.wal = self._data / "shop.db", self._data / "shop.db-wal"
        self._db_pass = db_pass or ""
        self._data.mkdir(parents=True)

    def open_new(self) -> sqlite3.Connection:
        """Make the sample database; while the connection is open, its last committed rows are in the WAL only."""
        create_file(self._database).close()
        connection = self.engine.connect(self._database)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SCHEMA)
        for half in (range(1, 1001), range(1001, 2001)):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("BEGIN")
            customers = [(i, f"Käufer {i} 'Ü' ✅", None if i % 3 else f"{i}@example.org", i / 7) for i in half]
            connection.executemany("INSERT INTO customers VALUES (?, ?, ?, ?, randomblob(200))", customers)
            connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", [(i, i, i * 199, "") for i in half])
            connection.execute("COMMIT")
        return connection

    def read(self) -> dict[str, list[str]]:
        """Check the database and read all of it."""
        check_database(self.engine, self._database)
        with contextlib.closing(self.engine.connect(self._database)) as connection:
            return read_contents(connection)

    def files(self) -> dict[str, tuple[int, int, bytes]]:
        """Return inode, mtime and content of all files in the database's folder."""
        stats = {path: path.stat() for path in self._data.iterdir()}
        return {path.name: (stat.st_ino, stat.st_mtime_ns, path.read_bytes()) for path, stat in stats.items()}

    def back_up(self, key: Key) -> Path:
        """Make a backup for a key, with the real script."""
        done = self._run("database_backup.py", "create", key=key)
        expect(ExitCode.DONE, done, "database_backup.py create")
        return Path(done.stdout.decode().strip())

    def restore(self, backup: Path) -> Path:
        """Restore a backup, and return the safety backup that was made."""
        done = self.run_restore(backup, self.key.passphrase)
        expect(ExitCode.DONE, done, "restore_backup.py")
        report = json.loads(done.stdout.splitlines()[-1])
        require(bool(report["safety_backup"]), "the restore made no safety backup")
        require(report["signature"]["state"] == THIS_HOST, "the backup does not count as signed here")
        return Path(report["safety_backup"])

    def run_restore(self, backup: Path, passphrase: str) -> subprocess.CompletedProcess[bytes]:
        """Run the real script; the private key and its passphrase come through pipes."""
        with piped(passphrase) as descriptor:
            options = ["--key-stdin", "--passphrase-fd", str(descriptor), "--force", "--allow-swap", "--json"]
            return self._run("restore_backup.py", str(backup), *options, key=self.key, pass_fds=(descriptor,))

    def _run(
        self, script: str, *arguments: str, key: Key, pass_fds: tuple[int, ...] = ()
    ) -> subprocess.CompletedProcess[bytes]:
        settings = child_settings(
            RUNTIME_ENVIRONMENT="TEST",
            DB_NAME=self._database.name,
            DATA_DIR=str(self._data),
            DB_ENCRYPTION="true" if self._db_pass else "false",
            DB_PASS=self._db_pass,
            DB_BACKUP_PATH=str(self.folder / "backups"),
            DB_BACKUP_RETENTION_DAYS="7",
            PGP_PUBLIC_KEY_BASE64=key.public,
            SIGNING_DIR=str(self._signing),
            XDG_STATE_HOME=str(self._signing.with_name("state")),
        )
        argv = [sys.executable, str(self._program / script), *arguments]
        return run_child(argv, settings, stdin=key.private if pass_fds else b"", pass_fds=pass_fds)


def read_contents(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Return every row of every table and view, and the schema, with types: 1 is neither 1.0 nor '1'."""
    schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    queries = {"schema": "SELECT type, name, tbl_name, sql FROM sqlite_master", "user_version": "PRAGMA user_version"}
    queries |= {name: f'SELECT * FROM "{name}"' for kind, name, *_ in schema if kind in ("table", "view")}
    return {name: sorted(map(repr, connection.execute(query))) for name, query in queries.items()}


# --- keys and child processes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A throwaway key pair in base64, as operators pass it, and its passphrase."""

    public: str
    private: bytes = field(repr=False)
    passphrase: str = field(repr=False)


def make_key(home: Path, name: str) -> Key:
    """Make a key pair with gpg."""
    passphrase = f"Schlüssel {secrets.token_hex(8)}"
    parameters = (
        "Key-Type: eddsa\nKey-Curve: ed25519\nKey-Usage: sign\nSubkey-Type: ecdh\nSubkey-Curve: cv25519\n"
        f"Subkey-Usage: encrypt\nName-Real: {name}\nExpire-Date: 0\nPassphrase: {passphrase}\n%commit\n"
    )
    gpg = ["gpg", "--homedir", str(home), "--batch", "--pinentry-mode", "loopback"]

    def call(*arguments: str, stdin: str = "") -> bytes:
        with piped(passphrase) as descriptor:  # for whenever the agent asks: it may have forgotten it
            argv = [*gpg, "--passphrase-fd", str(descriptor), *arguments]
            done = run_child(argv, child_settings(LANG="C.UTF-8"), stdin=stdin.encode(), pass_fds=(descriptor,))
        expect(ExitCode.DONE, done, f"gpg {arguments[0]}")
        return base64.b64encode(done.stdout)

    call("--gen-key", stdin=parameters)
    private = call("--export-secret-keys", f"={name}")
    return Key(call("--export", f"={name}").decode(), private, passphrase)


@contextlib.contextmanager
def piped(secret: str) -> Iterator[int]:
    """Give the reading end of a pipe that has a secret as its only line."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(secret.encode() + b"\n")
    try:
        yield reader
    finally:
        os.close(reader)


def child_settings(**settings: str) -> dict[str, str]:
    """Return a child's whole environment: what it needs to find Python, packages, gpg and the RAM folder."""
    needed = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "XDG_RUNTIME_DIR")
    inherited = {name: os.environ[name] for name in needed if name in os.environ}
    return {"PATH": os.defpath, **inherited, **settings}


_LIBC = ctypes.CDLL(None)


def _die_with_the_drill() -> None:
    """Have the kernel kill this child with the drill, so that it does not write where the RAM folder was."""
    pr_set_pdeathsig = 1
    _LIBC.prctl(pr_set_pdeathsig, signal.SIGKILL)


def run_child(
    argv: list[str], env: dict[str, str], *, stdin: bytes = b"", pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[bytes]:
    """Run a child in a session of its own, whatever its exit code; it gets its secrets through pipes."""
    try:
        return subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            env=env,
            pass_fds=pass_fds,
            timeout=120,
            start_new_session=True,
            preexec_fn=_die_with_the_drill,  # safe: the drill has no threads
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DrillFailedError(f"drill failed: {Path(argv[0]).name} {argv[1]} did not end within 120 s") from None


def expect(code: ExitCode, done: subprocess.CompletedProcess[bytes], what: str) -> None:
    """Fail the drill unless a child exited with a code."""
    said = " / ".join(line.strip() for line in done.stderr.decode(errors="replace").splitlines()[-3:])
    require(done.returncode == code, f"{what} ended with exit code {done.returncode} instead of {code:d}: {said}")
