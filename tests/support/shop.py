"""A shop folder as operators have it: the program's files, .env, data/ and backups/; the real program runs in it."""

import gzip
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import writer
from tests.support.keys import Key, gpg_home

ROOT = Path(__file__).parents[2]
PROGRAM = ("config.py", "database_backup.py", "restore_backup.py", "backuplib")
SETTINGS = (
    "RUNTIME_ENVIRONMENT",
    "DB_NAME",
    "DATA_DIR",
    "DB_ENCRYPTION",
    "DB_PASS",
    "DB_BACKUP_PATH",
    "DB_BACKUP_RETENTION_DAYS",
    "BACKUP_KEEP",
    "MAX_DATABASE_MB",
    "PGP_PUBLIC_KEY_BASE64",
    "BACKUP_MAX_AGE_HOURS",
    "PING_URL",
    "NOTIFY_URLS",
    "BACKUP_REMOTES",
)
BACKUP = "backups/db_backup_20250130_120000.db.gz.gpg"
"""A backup of a name that does not change, in the shop's folder."""

DB_PASS = """it's "quoted" pässwörd"""
SIDECARS = ("-wal", "-shm", "-journal")
PIPE_ROOM = 65536

Rows = dict[str, list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Completed:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams; for assertions on words, wherever they are printed."""
        return (json.dumps(self.report, ensure_ascii=False) if self.report else self.out) + self.err

    @property
    def report(self) -> dict[str, Any]:
        """The object that --json printed, alone on standard output; empty without it, and when the run was killed."""
        return json.loads(self.out) if self.out.startswith("{") else {}

    @property
    def error(self) -> dict[str, str]:
        """The error's `id`, `message` and `hint`, each empty when there was none."""
        return self.report.get("error") or {"id": "", "message": "", "hint": ""}

    @property
    def ended(self) -> tuple[int, str]:
        """Exit code and the error's id: what a failure is known by, whatever its words."""
        return self.code, self.error["id"]


@dataclass(frozen=True)
class FileState:
    """What must not change about a file. Of a -shm only its presence counts: every reader writes its marks there."""

    inode: int
    mode: str
    owner: str
    xattrs: tuple[tuple[str, bytes], ...]
    size: int | None
    sha256: str | None

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """The state of a file now; ACLs are among the extended attributes."""
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) and not path.name.endswith("-shm") else None
        return cls(
            inode=status.st_ino,
            mode=stat.filemode(status.st_mode),
            owner=f"{status.st_uid}:{status.st_gid}",
            xattrs=tuple(
                (name, os.getxattr(path, name, follow_symlinks=False))
                for name in sorted(os.listxattr(path, follow_symlinks=False))
            ),
            size=None if content is None else len(content),
            sha256=None if content is None else hashlib.sha256(content).hexdigest(),
        )


@dataclass
class Shop:
    """A shop folder. `env`: added to the environment of every command run in it. See the fixture `make_shop`."""

    path: Path
    mode: str
    settings: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)

    # --- folder and settings ---

    @property
    def db_path(self) -> Path:
        return self.path / self.settings.get("DATA_DIR", "data") / self.settings.get("DB_NAME", "shop.db")

    @property
    def backups(self) -> Path:
        return self.path / self.settings.get("DB_BACKUP_PATH", "backups")

    @property
    def passphrase(self) -> str | None:
        """The SQLCipher passphrase; None for plain SQLite."""
        return self.settings.get("DB_PASS") if self.mode == "sqlcipher" else None

    def write_env(self, **settings: str | None) -> None:
        """Change settings in .env; None takes a setting out."""
        merged: dict[str, str | None] = {**self.settings, **settings}
        self.settings = {name: value for name, value in merged.items() if value is not None}
        lines = [f"{name}={quote_for_env(value)}\n" for name, value in self.settings.items()]
        (self.path / ".env").touch(mode=0o600)
        (self.path / ".env").write_text("".join(lines), encoding="utf-8")

    # --- the database ---

    def connect(self, path: Path | None = None) -> sqlite3.Connection:
        """A connection in autocommit mode to the live database, in place, or to another file of the same mode."""
        return writer.connect(str(path or self.db_path), self.passphrase)

    def rows(self, path: Path | None = None) -> Rows:
        """Every table's rows, sorted. Reads a copy, sidecars included, so looking changes nothing; nobody may write."""
        source = path or self.db_path
        with tempfile.TemporaryDirectory(prefix="rows-") as folder:
            copy = Path(folder, "copy.db")
            for suffix in ("", *SIDECARS):
                if Path(f"{source}{suffix}").exists() and suffix != "-shm":
                    shutil.copyfile(f"{source}{suffix}", f"{copy}{suffix}")
            return self.rows_in_place(copy)

    def rows_in_place(self, path: Path | None = None) -> Rows:
        """The same through a connection to the file itself; also while others write, but a hot WAL gets folded."""
        with closing(self.connect(path)) as connection:
            connection.execute("BEGIN")
            names = connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
            ).fetchall()
            return {
                name: sorted(map(tuple, connection.execute(f'SELECT * FROM "{name}"').fetchall()), key=repr)
                for (name,) in names
            }

    def change_data(self) -> None:
        """Committed changes that tell the live database from a backup made before."""
        with closing(self.connect()) as connection:
            connection.execute("INSERT INTO customers (name) VALUES ('came after the backup')")
            connection.execute("DELETE FROM orders WHERE id % 7 = 0")

    def is_restored(self) -> bool:
        """Whether it holds what it was made with, as its backup does (300 orders), and not what `change_data` left."""
        return len(self.rows()["orders"]) == 300

    def content(self) -> bytes:
        """The database as one file, complete."""
        with closing(self.connect()) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return self.db_path.read_bytes()

    def snapshot(self) -> dict[str, FileState]:
        """Everything in the data folder that a refused restore must leave alone; compare with ==."""
        folder = self.db_path.parent
        return {str(path.relative_to(folder)): FileState.of(path) for path in sorted(folder.rglob("*"))}

    # --- other processes that have it open ---

    def leave_hot_wal(self, rows: int = 20, note: str = "only in the WAL") -> None:
        """A process commits rows to bot_log and is killed: they are in the -wal and nowhere else."""
        self._run_writer("hot-wal", rows=rows, note=note)
        assert Path(f"{self.db_path}-wal").stat().st_size > 0

    def leave_hot_journal(self) -> None:
        """A process is killed in mid-transaction in rollback mode: main file half changed, -journal hot."""
        with closing(self.connect()) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
        before = self.db_path.read_bytes()
        self._run_writer("hot-journal")
        assert Path(f"{self.db_path}-journal").stat().st_size > 0
        assert self.db_path.read_bytes() != before

    @contextmanager
    def held_open(self) -> Iterator[subprocess.Popen[str]]:
        """A process outside of any container holds an idle connection meanwhile."""
        with self._held("hold") as process:
            yield process

    @contextmanager
    def held_locked(self, *pragmas: str, note: str = "committed late") -> Iterator[subprocess.Popen[str]]:
        """A process holds a write transaction meanwhile, half of it in the main file, and commits it afterwards."""
        with self._held("lock", pragmas=pragmas, note=note) as process:
            yield process

    @contextmanager
    def _held(self, role: str, **config: object) -> Iterator[subprocess.Popen[str]]:
        with self._start_writer(role, **config) as process:
            assert process.stdin
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
            process.stdin.close()

    def break_schema(self) -> None:
        """A name in the schema becomes a byte that is no UTF-8, as a flipped bit does it."""
        with closing(self.connect()) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("PRAGMA writable_schema=ON")
            connection.execute("INSERT INTO sqlite_master VALUES ('table', X'FF', 't', 0, '')")

    def _start_writer(self, role: str, **config: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, writer.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin
        settings = {"role": role, "db": str(self.db_path), "passphrase": self.passphrase, **config}
        process.stdin.write(json.dumps(settings) + "\n")
        process.stdin.flush()
        return process

    def _run_writer(self, role: str, **config: object) -> None:
        process = self._start_writer(role, **config)
        process.communicate(timeout=60)
        assert process.returncode == -9

    # --- backups ---

    def sha256sum_accepts(self, backup: Path) -> bool:
        """What the real tool says to the checksum file, from within the folder, as operators call it."""
        command = ["sha256sum", "--check", "--strict", f"{backup.name}.sha256"]
        return subprocess.run(command, cwd=self.backups, capture_output=True, check=False, timeout=30).returncode == 0

    def create_backup(self) -> Path:
        """A new backup, made by `database_backup.py create`."""
        done = self.run("database_backup.py", "create")
        assert done.code == 0, done.text
        return self.path / done.out.strip()

    def back_up_then_change(self, message: bytes | None = None) -> Path:
        """A backup named BACKUP with its checksum, and rows that have changed since.

        `message`: what is in the backup, without a checksum; otherwise `database_backup.py create` makes it.
        """
        backup = self.path / BACKUP
        if message is None:
            made = self.create_backup()
            backup = made.rename(backup.with_suffix("") if made.suffix == ".gz" else backup)
            checksum = Path(f"{made}.sha256")
            Path(f"{backup}.sha256").write_text(checksum.read_text().replace(made.name, backup.name))
            checksum.unlink()
        else:
            backup.write_bytes(message)
            backup.chmod(0o600)
        self.change_data()
        return backup

    def decrypted(self, backup: Path, key: Key | None) -> bytes:
        """The database in a backup, got with gpg and gzip alone. No key: the backup is not encrypted."""
        if key is None:
            return gzip.decompress(backup.read_bytes())
        with gpg_home() as home:
            home.run("--import", stdin=key.private_binary)
            unlock = () if key.passphrase is None else ("--passphrase-fd", "0")
            return gzip.decompress(home.run(*unlock, "--decrypt", str(backup), stdin=(key.passphrase or "").encode()))

    def backup_rows(self, backup: Path, key: Key | None) -> Rows:
        """The rows in a backup, read without the program."""
        with tempfile.TemporaryDirectory(prefix="rows-") as folder:
            database = Path(folder, "backup.db")
            database.write_bytes(self.decrypted(backup, key))
            return self.rows_in_place(database)

    # --- the program ---

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of commands: this one, less our settings, with a home folder of the shop's own.

        Without the width that the tests' own runner has set for its workers.
        """
        ours = (*SETTINGS, "COLUMNS", "AWS_CA_BUNDLE")  # with the last one, rclone 1.60 reaches no S3 at all
        inherited = {
            name: value for name, value in os.environ.items() if name not in ours and not name.startswith("RCLONE_")
        }
        own = {"HOME": str(self.path.parent / f"{self.path.name}-home"), "LC_ALL": "C.UTF-8"}
        return {**inherited, **own, **self.env, **(extra or {})}

    def run(self, script: str, *args: object, **options: Any) -> Completed:
        """Run one of the program's scripts to its end; `options` as in `start`. Kills it after `timeout` seconds."""
        timeout = options.pop("timeout", 60)
        process = self.start(script, *args, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{script} {args} took longer than {timeout} s:\n{out}{err}") from None
        return Completed(process.returncode, out, err)

    def start(
        self,
        script: str,
        *args: object,
        stdin: bytes | int | None = None,
        key: Key | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        wrapper: Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        """Start a script in the shop folder, without a controlling terminal.

        `stdin`: bytes come through a pipe, None is /dev/null. `key`: adds --key-stdin and --passphrase-fd with what
        they need. `wrapper`: a command to run it under, such as strace.
        """
        options: list[str] = []
        ours: list[int] = []
        if key is not None:
            stdin, options = key.private_b64.encode(), ["--key-stdin"]
            if key.passphrase is not None:
                ours.append(filled_pipe(key.passphrase.encode() + b"\n"))
                options += ["--passphrase-fd", str(ours[0])]
        source = filled_pipe(stdin) if isinstance(stdin, bytes) else stdin
        try:
            return subprocess.Popen(
                [*wrapper, sys.executable, script, *options, *map(str, args)],
                cwd=self.path,
                env=self.environment(env),
                stdin=subprocess.DEVNULL if source is None else source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                pass_fds=[*pass_fds, *ours],
                start_new_session=True,
            )
        finally:
            for descriptor in ours + ([source] if isinstance(stdin, bytes) and source is not None else []):
                os.close(descriptor)

    def restore(self, *args: object, as_json: bool = True, **options: Any) -> Completed:
        """`restore_backup.py --json ARGS` to its end; options: stdin, key, env, timeout, pass_fds, wrapper.

        `as_json`: False where it is about what people read on standard output.
        """
        return self.run("restore_backup.py", *["--json"] * as_json, *args, **options)

    def start_restore(self, *args: object, **options: Any) -> subprocess.Popen[str]:
        """`restore_backup.py ARGS`, started; options as in `start`."""
        return self.start("restore_backup.py", *args, **options)


def everything(shop: Shop) -> dict[str, FileState]:
    """Data and backups; the log and the proofs are there to be written to."""
    written = ("restore.log", "proofs.jsonl")
    backups = {path.name: FileState.of(path) for path in shop.backups.iterdir() if path.name not in written}
    return shop.snapshot() | backups


def quote_for_env(value: str) -> str:
    """A value as it stands in .env, in single quotes. Without a backslash and ${, both Composes read it alike."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def filled_pipe(data: bytes) -> int:
    """The reading end of a pipe that holds `data` and then ends; the caller closes it."""
    assert len(data) < PIPE_ROOM, "more than a pipe holds: use stdin=subprocess.PIPE and communicate()"
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading


def cpu_time(pid: int) -> float:
    """Seconds of CPU time that a process and its children have taken so far."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:15]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") + sum(cpu_time_or_none(int(child)) for child in children)


def cpu_time_or_none(pid: int) -> float:
    """The same of a process that may have ended."""
    with suppress(OSError):
        return cpu_time(pid)
    return 0


def open_way_to_python() -> None:
    """The tests' Python may lie in a folder of the caller's own: let others through, without letting them look."""
    for path in Path(sys.executable).parents:
        if not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)


def copy_program(folder: Path) -> None:
    """The program's files into a shop folder, as after a clone."""
    for name in PROGRAM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)  # compiled, since each shop would do that anew
        else:
            shutil.copyfile(ROOT / name, folder / name)


def fill_with_sample_data(connection: sqlite3.Connection) -> None:
    """Customers, orders and items with every storage class, an index, a view, a trigger; in WAL mode."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("BEGIN")
    for statement in SCHEMA:
        connection.execute(statement)
    connection.executemany(
        "INSERT INTO customers VALUES (?, ?, ?, ?)",
        [
            (i, f"Kundin {i} 'Ä' ✅", None if i % 3 else f"{i}@example.org", bytes([i % 256]) * 1500)
            for i in range(1, 101)
        ],
    )
    connection.executemany(
        "INSERT INTO orders VALUES (?, ?, ?, ?)",
        [(i, i % 100 + 1, i * 1.25, f"2025-01-{i % 28 + 1:02}") for i in range(1, 301)],
    )
    connection.executemany(
        "INSERT INTO items VALUES (?, ?, ?, ?)", [(i, i % 300 + 1, f"item {i}", -i) for i in range(1, 901)]
    )
    connection.execute("COMMIT")


SCHEMA = (
    "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT, photo BLOB)",
    "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER REFERENCES customers, total REAL, day TEXT)",
    "CREATE TABLE items (id INTEGER PRIMARY KEY, order_id INTEGER REFERENCES orders, title TEXT, count INTEGER)",
    "CREATE TABLE audit (what TEXT, id INTEGER)",
    "CREATE INDEX orders_by_customer ON orders (customer)",
    "CREATE VIEW turnover AS SELECT customer, sum(total) AS total FROM orders GROUP BY customer",
    "CREATE TRIGGER order_deleted AFTER DELETE ON orders BEGIN INSERT INTO audit VALUES ('deleted', old.id); END",
)
