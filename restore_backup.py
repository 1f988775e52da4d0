#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Bring the bot's database back from an encrypted backup.

The backup is verified before anything is touched, swapped in atomically, and rolled back by itself if anything
fails. The bot is down for seconds; the private key, its passphrase and the decrypted data are never on a disk.

Six phases: 1 safety backup, 2 stop services, 3 decrypt and decompress, 4 integrity check, 5 atomic swap,
6 cleanup and restart. Read :meth:`Restorer.restore` first: it is the table of contents.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import ctypes
import errno
import fcntl
import filecmp
import glob
import hashlib
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import stat
import sys
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from config import Environment, ExitCode, OperatorError, Secret, Settings, load_settings
from database_backup import (
    CAP_SYS_PTRACE,
    CHUNK,
    GZIP_MAGIC,
    NO_HARD_LINKS,
    SIDECARS,
    SQLITE_MAGIC,
    BackupError,
    BackupInfo,
    CommandError,
    DatabaseBackup,
    DecryptionError,
    Engine,
    GzipDecoder,
    ImportedKey,
    Keyring,
    PassphraseError,
    RamFolder,
    RefusedError,
    UnreadableDatabaseError,
    UnsoundBackupError,
    another_backup,
    available_memory,
    backup_time,
    begins_like_key,
    check_integrity,
    check_pages,
    check_structure,
    command_of,
    create_file,
    database_files,
    enter_private_mounts,
    flock,
    fsync_folder,
    harden_process,
    has_capability,
    lock_owner,
    megabytes,
    missing_module,
    open_folder,
    open_regular,
    outer_layer,
    printable,
    quoted,
    quoted_identifier,
    recorded_checksum,
    refuse_irregular,
    restore_command,
    run_command,
    shown,
    sidecars,
    too_large,
    write_all,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

# --- constants ---------------------------------------------------------------------------------------------------

SETTLE_SECONDS = 5.0
"""How long a service without a health check must run without a restart to count as up."""

START_SECONDS = 60.0
"""How long services may take to be running; one with a health check gets what that allows on top."""

STOP_SECONDS = 600.0
"""Longest wait for a compose command; the grace period before a kill is the service's own."""

PASSPHRASE_TRIES = 3

PAGE = 15
"""Lines of a menu at a time; a terminal has 24."""

MENU_SECONDS = 3.0
"""How long the menu may be kept waiting by checksums."""

MOST_TABLES = 12
"""Tables in the comparison: with the facts and the question below it, it fits on a screen of 24 lines."""

NAME_COLUMNS = 40
"""Longest name of a table in the comparison."""

CHECK_SECONDS = 60.0
"""How long the check of a backup's database may take, and a second more for each MB: a hundred times what is usual."""

CHECK_DISK = "Check the disk: dmesg | tail"
"""What to do about an error of the disk."""

# --- errors ------------------------------------------------------------------------------------------------------


class UsageError(OperatorError):
    """The command line cannot be understood."""

    exit_code = ExitCode.USAGE


class DeclinedError(OperatorError):
    """The operator said no."""

    exit_code = ExitCode.DECLINED


class CannotStopError(OperatorError):
    """The services could not be stopped, or the database is still in use after that."""

    exit_code = ExitCode.CANNOT_STOP


class SwitchError(OperatorError):
    """Failed after the services were stopped, and rolled back."""

    exit_code = ExitCode.ROLLED_BACK


class ServicesDownError(OperatorError):
    """The services do not come up."""

    exit_code = ExitCode.ROLLED_BACK_SERVICES_DOWN


class RollbackError(OperatorError):
    """The rollback itself failed: a person is needed."""

    exit_code = ExitCode.ROLLBACK_FAILED


class InUseError(RefusedError):
    """Some process has the database open."""


class Interrupted(BaseException):
    """A signal that ends the run, before the switch."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


# --- values ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    backup_file: Path | None = None
    target_path: Path | None = None
    no_restart: bool = False
    key_stdin: bool = False
    skip_backup: bool = False
    force: bool = False
    verify_only: bool = False
    stop_first: bool = False
    compose_file: Path | None = None
    service: tuple[str, ...] = ()
    passphrase_fd: int | None = None
    passphrase_command: str | None = None
    recover: bool = False
    allow_swap: bool = False
    convert: bool = False
    backup_db_pass: bool = False
    backup_db_pass_fd: int | None = None


@dataclass(frozen=True)
class Plan:
    """What will be done: made by the preflight, shown to the operator, followed by the phases."""

    backup: BackupFile
    target: Path
    configured: bool
    project: ComposeProject | None
    services: tuple[str, ...]
    outlook: dict[str, str]
    backup_db_pass: Secret | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a database to replace."""
        return self.target.exists()


@dataclass(frozen=True)
class Contents:
    """What a database holds: rows by table (None: cannot be counted), its schema by name, its user_version."""

    rows: dict[str, int | None]
    schema: dict[str, str]
    user_version: int


@dataclass(frozen=True)
class Candidate:
    """The new database file beside the target, complete, durable and proved; not yet under its name."""

    path: Path
    identity: tuple[int, int, int, int]


@dataclass
class Report:
    """What happened, for the operator and for --json."""

    backup: str = ""
    target: str = ""
    outcome: str = "failed"
    phases: list[dict[str, Any]] = field(default_factory=list)
    key_fingerprint: str | None = None
    database_bytes: int | None = None
    format: str | None = None
    conversion: str | None = None
    tables: dict[str, dict[str, int | None]] = field(default_factory=dict)
    services: list[str] = field(default_factory=list)
    downtime_seconds: float | None = None
    safety_backup: str | None = None
    log: str | None = None
    backups: list[dict[str, Any]] = field(default_factory=list)
    drill: dict[str, object] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    exit_code: int = 0
    error: dict[str, str] | None = None
    started: float = field(default_factory=time.monotonic, repr=False)

    def add_phase(self, name: str, began: float) -> None:
        """Note a phase that ends now; ``began`` is a time of the monotonic clock."""
        now = time.monotonic()
        self.phases.append({"name": name, "began": round(began - self.started, 3), "seconds": round(now - began, 3)})

    def as_dict(self) -> dict[str, Any]:
        """Return the report as --json shows it: what there is none of is null."""
        return {name: None if value == "" else value for name, value in asdict(self).items() if name != "started"}


def file_identity(path: Path | int) -> tuple[int, int, int, int]:
    """Return what tells whether a path still is the same, unchanged file: device, inode, size, mtime in ns."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def same_file(one: Path, other: Path) -> bool:
    """Whether two names exist and are links to one file."""
    try:
        return os.path.samestat(one.lstat(), other.lstat())
    except FileNotFoundError:
        return False


# --- signals -----------------------------------------------------------------------------------------------------


class Signals:
    """SIGHUP, SIGINT and SIGTERM end the run until the switch begins; then, and after the first, they are ignored."""

    def __init__(self) -> None:
        self._ignored = False
        self._ended_by: int | None = None

    def install(self) -> None:
        """Take the signals over, also again after a shield."""
        self._ignored = False
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)

    def shield(self) -> None:
        """From here to the end nothing interrupts."""
        self.ignore()
        self.check()

    def ignore(self) -> None:
        """Have them ignored, also while the run is ending.

        By the kernel, not by a handler: a child would not inherit that, and a signal to the whole group could end it in
        the moment before it has a session of its own.
        """
        self._ignored = True  # for one that has arrived and was not handled yet
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def check(self) -> None:
        """Raise again what was swallowed: SQLite does that while it calls back into Python, Python in a destructor."""
        if self._ended_by is not None:
            raise Interrupted(self._ended_by)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if not self._ignored:
            self.ignore()  # a second one would interrupt the cleaning up
            self._ended_by = number
            raise Interrupted(number)


# --- who has the database open -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Holder:
    """A process that has the database or one of its sidecars open."""

    pid: int
    command: str
    cgroup: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"

    @property
    def ending(self) -> str:
        """The command that ends it; a process killed in a container may be started again by its restart policy."""
        container = re.search(r"[0-9a-f]{64}", self.cgroup)
        return f"docker stop {container[0][:12]}" if container else f"kill {self.pid}"


def find_holders(database: Path) -> tuple[list[Holder], int]:
    """Return the processes that have the database open, and how many processes could not be looked at.

    Files are compared by device and inode, since inside a container they have other paths.
    """
    files = {
        (status.st_dev, status.st_ino)
        for path in database_files(database)
        if (status := stat_or_none(path)) is not None
    }
    holders, hidden = [], 0
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        holds = _holds(process, files)
        if holds:
            holders.append(_holder(process))
        hidden += holds is None
    return holders, hidden


def _holds(process: Path, files: set[tuple[int, int]]) -> bool | None:
    """Whether a process has one of the files open; None when it may not be looked at."""
    for _ in range(2):  # twice, since the kernel also denies a look at what has ended this moment
        with contextlib.suppress(PermissionError):
            try:
                return any(_identity(descriptor) in files for descriptor in (process / "fd").iterdir())
            except (FileNotFoundError, ProcessLookupError):  # it has ended
                return False
    return None


def _identity(descriptor: Path) -> tuple[int, int]:
    """Device and inode behind an entry of /proc/PID/fd, which may be listed even where it may not be looked at."""
    try:
        status = descriptor.stat()
    except FileNotFoundError:  # closed since it was listed
        return (0, 0)
    return status.st_dev, status.st_ino


def stat_or_none(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):  # any other error does not tell that there is no such file
        return None


def _holder(process: Path) -> Holder:
    cgroup = ""
    with contextlib.suppress(OSError):
        cgroup = (process / "cgroup").read_text()
    return Holder(int(process.name), command_of(process), cgroup)


# --- Docker ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Container:
    """What `docker inspect` says of a container."""

    id: str
    name: str
    service: str
    project: str
    compose_files: tuple[Path, ...]
    oneoff: bool
    running: bool
    status: str
    health: str
    health_seconds: float
    check_interval: float
    stop_seconds: float
    restart_count: int
    exit_code: int
    mounts: tuple[tuple[Path, bool], ...]

    @classmethod
    def from_inspect(cls, data: dict[str, Any]) -> Container:
        """Read one element of the JSON of `docker inspect`."""
        state, config = data["State"], data["Config"]
        labels = config.get("Labels") or {}
        folder = Path(labels.get("com.docker.compose.project.working_dir", "/"))
        files = labels.get("com.docker.compose.project.config_files", "")
        check = config.get("Healthcheck") or {}
        return cls(
            id=data["Id"],
            name=data["Name"].lstrip("/"),
            service=labels.get("com.docker.compose.service", ""),
            project=labels.get("com.docker.compose.project", ""),
            compose_files=tuple(_compose_file(folder, name) for name in files.split(",") if name),
            oneoff=labels.get("com.docker.compose.oneoff", "").lower() == "true",
            running=bool(state["Running"]) and not state.get("Restarting", False),
            status=state["Status"],
            health=(state.get("Health") or {}).get("Status", ""),
            health_seconds=_health_seconds(check),
            check_interval=(check.get("Interval") or 30e9) / 1e9 if check.get("Test") else 0.0,
            stop_seconds=config.get("StopTimeout") or 10.0,
            restart_count=data["RestartCount"],
            exit_code=state["ExitCode"],
            mounts=tuple((Path(mount["Source"]), mount["RW"]) for mount in data["Mounts"] if mount.get("Source")),
        )

    @property
    def active(self) -> bool:
        """Whether it runs, or will in a moment: it restarts in a loop."""
        return self.running or self.status == "restarting"

    def writes_into(self, folder: Path) -> bool:
        """Whether a host folder, or one above it, is mounted writable."""
        return any(writable and (source == folder or source in folder.parents) for source, writable in self.mounts)


def _compose_file(folder: Path, name: str) -> Path:
    """Return the path of a compose file from its label, which Compose v1 writes relative to where it was called."""
    path = folder / name
    return (path if path.is_file() else folder / path.name).resolve()


def _health_seconds(check: dict[str, Any]) -> float:
    """How long a health check may take to come to a verdict (Docker gives nanoseconds; its defaults: 30 s, 3)."""
    interval = check.get("Interval") or 30e9
    attempts = check.get("Retries") or 3
    return float((check.get("StartPeriod") or 0) + attempts * (interval + (check.get("Timeout") or 30e9))) / 1e9


def docker_containers() -> list[Container]:
    """Return all containers of the Docker engine.

    :raises CommandError: when Docker is not installed or does not answer.
    """
    try:
        ids = run_command(["docker", "ps", "-aq", "--no-trunc"], timeout=30).split()
        return [Container.from_inspect(data) for data in json.loads(_inspect(ids))] if ids else []
    except CommandError as error:
        raise CommandError(
            f"Docker cannot be reached: {error}",
            hint="Run this with sudo, or join the group: sudo usermod -aG docker $USER, and log in anew. Is Docker "
            "running? systemctl status docker. When nothing is to be stopped: --no-restart",
        ) from None


def _inspect(ids: Sequence[str]) -> str:
    try:
        return run_command(["docker", "inspect", *ids], timeout=30)
    except CommandError as error:
        if "No such object" in str(error):  # a container has gone since it was listed
            return error.output
        raise


@dataclass(frozen=True)
class ComposeProject:
    """The containers of one compose file, under whatever project name they run."""

    files: tuple[Path, ...]
    name: str | None
    command: tuple[str, ...]

    @classmethod
    def find(cls, file: Path) -> ComposeProject:
        """Find the compose command and the project name that a compose file runs under.

        :raises RefusedError: when there is no Compose, the file is invalid, or it runs under two names.
        """
        file = file.resolve()
        command = compose_command()
        matching = [item for item in docker_containers() if file in item.compose_files and not item.oneoff]
        running = {item.project for item in matching if item.running}
        names = running or {item.project for item in matching}
        if len(names) > 1:
            raise RefusedError(
                f"{file.name} runs under more than one project name: {', '.join(sorted(names))}",
                hint=f"Stop the one that is not meant: {' '.join(command)} -p NAME -f {quoted(file)} stop",
            )
        found = next((item for item in matching if item.project in names), None)
        project = cls(found.compose_files if found else (file,), found.project if found else None, command)
        project.services()
        return project

    def services(self) -> list[str]:
        """Return the names of all services of the file.

        :raises RefusedError: when the file is not valid.
        """
        try:
            return self._run("config", "--services").split()
        except CommandError as error:
            raise RefusedError(
                f"the compose file cannot be used: {error}", hint="Correct it, or name another one with --compose-file."
            ) from None

    def owns(self, item: Container) -> bool:
        """Whether a container is one of this project's services, and not of `compose run`."""
        return item.project == self.name and not item.oneoff and bool(set(self.files) & set(item.compose_files))

    def containers(self) -> list[Container]:
        """Return the containers of the project's services."""
        return [item for item in docker_containers() if self.owns(item)]

    def running(self) -> list[str]:
        """Return the names of the services that run now."""
        return sorted({item.service for item in self.containers() if item.active})

    def outlook(self, services: Sequence[str]) -> dict[str, str]:
        """Say what will happen to services: an estimate from their health checks and grace periods."""
        items = [item for item in self.containers() if item.service in services]
        if not items:
            return {"services": "none runs"}
        up = 1 + max(item.check_interval for item in items)
        longest = up + max(item.stop_seconds for item in items)
        return {
            "services": f"{', '.join(services)} will be stopped",
            "downtime": f"estimated {up:.0f} s, {longest:.0f} s if they must be killed",
        }

    def stop(self, services: Sequence[str]) -> None:
        """Stop services gracefully.

        :raises CannotStopError: when one still runs; exit codes of Compose are not believed.
        """
        try:
            self._run("stop", *services)
        except CommandError as error:
            raise CannotStopError(f"the services could not be stopped: {error}") from None
        still = [name for name in self.running() if name in services]
        if still:
            raise CannotStopError(f"still running after `compose stop`: {', '.join(still)}")

    def start(self, services: Sequence[str]) -> None:
        """Start services that exist; :meth:`wait` tells whether they came up."""
        try:
            self._run("start", *services)
        except CommandError as error:
            raise ServicesDownError(
                f"the services could not be started: {error}", hint=self._logs_hint(services)
            ) from None

    def wait(self, services: Sequence[str]) -> float:
        """Wait until services are up, and stay up; return the time (monotonic) at which the last one was.

        :raises ServicesDownError: when one exits, restarts in a loop, is unhealthy, or takes too long.
        """
        began = time.monotonic()
        up: dict[str, float] = {}
        while True:
            now = time.monotonic()
            items = [item for item in self.containers() if item.service in services]
            missing = {*services} - {item.service for item in items}
            if missing and now - began > SETTLE_SECONDS:
                raise ServicesDownError(
                    f"no container of service {', '.join(sorted(missing))} is there any more",
                    hint=f"Create it: {shlex.join(self._argv('up', '-d', *sorted(missing)))}",
                )
            for item in items:
                self._check(item, now - began)
                if item.running and item.health in ("", "healthy"):
                    up.setdefault(item.id, now)
            settled = all(item.id in up and (item.health or now - up[item.id] >= SETTLE_SECONDS) for item in items)
            if settled and not missing:
                return max(up.values(), default=began)
            time.sleep(0.2)

    def _check(self, item: Container, waited: float) -> None:
        reason = ""
        if item.status == "restarting" or item.restart_count:
            reason = f"restarts in a loop (exit code {item.exit_code})"
        elif item.health == "unhealthy":
            reason = "is unhealthy"
        elif item.status in ("exited", "dead") and waited > SETTLE_SECONDS / 5:
            reason = f"has ended with exit code {item.exit_code}"
        elif waited > START_SECONDS + (item.health_seconds if item.health else 0):
            reason = f"is not up after {waited:.0f} s ({item.health or item.status})"
        if reason:
            raise ServicesDownError(f"service {item.service} {reason}", hint=self._logs_hint([item.service]))

    def _logs_hint(self, services: Sequence[str]) -> str:
        return f"Look why: {shlex.join(self._argv('logs', '--tail', '50', *services))}"

    def _argv(self, *arguments: str) -> list[str]:
        project = ["-p", self.name] if self.name else []
        files = [word for file in self.files for word in ("-f", str(file))]
        return [*self.command, *project, *files, *arguments]

    def _run(self, *arguments: str) -> str:
        return run_command(self._argv(*arguments), timeout=STOP_SECONDS, cwd=self.files[0].parent)


def compose_command() -> tuple[str, ...]:
    """Return how Compose is called here: `docker compose` when there, else `docker-compose`."""
    for command in (("docker", "compose"), ("docker-compose",)):
        with contextlib.suppress(CommandError):
            run_command([*command, "version"], timeout=30)
            return command
    raise RefusedError(
        "Docker Compose is not installed",
        hint="Install it (apt-get install docker-compose), or restore without stopping anything: --no-restart",
    )


# --- the backup file and the database image ----------------------------------------------------------------------


class BackupFile:
    """The backup, opened once and hashed while it is read: what is checked is what is decrypted.

    :param limit: bytes that it may have.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise RefusedError(
                f"cannot read the backup {path}: {error.strerror}",
                hint=f"See what is there: {restore_command('--list')}",
            ) from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RefusedError(f"{path} is not a file", hint=f"See what is there: {restore_command('--list')}")
        self._file = io.FileIO(descriptor)
        self.size = os.fstat(descriptor).st_size
        if self.size > limit:
            raise too_little_memory(self.size, limit)
        self.created = backup_time(path)
        self.layer = outer_layer(os.pread(descriptor, 64, 0), path.name, self.size)
        self.progress: Callable[[int], object] = lambda _: None
        self.expected = recorded_checksum(path)
        """SHA-256 that the file must have, if that is known: from beside it, or from when it was read before."""
        self._unsaid = self.expected is not None
        self.rewind()

    def rewind(self) -> None:
        """Go to the beginning."""
        self._file.seek(0)
        self._digest = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        """Read on; empty at the end."""
        try:
            data = self._file.read(size)
        except OSError as error:
            raise RefusedError(f"cannot read the backup {self.path}: {error.strerror}", hint=CHECK_DISK) from None
        self._digest.update(data)
        self.progress(self._file.tell())
        return data

    def verify(self) -> bool:
        """Read to the end, and compare all that was read since the beginning with the checksum.

        :returns: whether that is news: there is a checksum, and nothing was compared with it before.
        :raises RefusedError: when it does not match.
        """
        while self.read(CHUNK):
            pass
        digest = self._digest.hexdigest()
        if self.expected not in (None, digest):
            raise RefusedError(
                f"{self.path.name} does not match its checksum: the file is damaged or was exchanged",
                hint="Copy it again from where it was made, or use another backup. "
                f"See: sha256sum {quoted(shown(self.path))}",
            )
        self.expected, news, self._unsaid = digest, self._unsaid, False
        return news

    def close(self) -> None:
        """Close the file."""
        self._file.close()


SMALLEST_PAGE = 512
"""Bytes of the smallest SQLite database."""


class DatabaseImage:
    """The restored database as bytes in memory; takes the decrypted stream piece by piece.

    :param limit: bytes at which it refuses more.
    :param bare: what comes is the database itself: a SQLCipher database may begin like gzip by chance.
    """

    def __init__(self, limit: int, *, bare: bool = False) -> None:
        self.buffer = io.BytesIO()
        self.path: Path | None = None
        """The file that it went on as, instead of the buffer."""
        self.header = b""
        self.size = 0
        self._limit = limit
        self._head = b""
        self._sink: Callable[[bytes], None] | None = self._collect if bare else None
        self._decoder: GzipDecoder | None = None

    def feed(self, data: bytes) -> None:
        """Take a piece of the backup's content, which is gzipped or not."""
        if self._sink is None:
            self._head += data
            if len(self._head) < len(GZIP_MAGIC):
                return
            data = self._head
            self._choose_sink()
        if self._sink:
            self._sink(data)

    def finish(self) -> None:
        """Say that the stream has ended.

        :raises UnsoundBackupError: when it is cut off.
        """
        if self._sink is None:
            self._choose_sink()
            self._collect(self._head)
        if self._decoder:
            self._decoder.finish()
        with self.buffer.getbuffer() as view:
            self.header = bytes(view[:100])

    def _choose_sink(self) -> None:
        if self._head.startswith(GZIP_MAGIC):
            self._decoder = GzipDecoder(self._collect, self._limit)
            self._sink = self._decoder.feed
        else:
            self._sink = self._collect

    def _collect(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._limit:
            raise too_large(self._limit)
        try:
            self.buffer.write(data)
        except MemoryError:
            raise too_large(self.buffer.tell()) from None

    def move_to(self, path: Path) -> None:
        """Go on as a file in the RAM folder, where SQLCipher can open it, and let go of the buffer."""
        with create_file(path) as file:
            self.write_to(file)
        self.wipe()
        self.path = path

    def write_to(self, file: io.FileIO, progress: Callable[[int], object] = lambda _: None) -> None:
        """Write the database to a file."""
        for piece in self._pieces(8 * CHUNK):
            write_all(file, piece)
            progress(file.tell())

    def is_in(self, file: io.FileIO) -> bool:
        """Whether a file holds the database, to the byte."""
        file.seek(0)
        found = bytearray(CHUNK)
        for piece in self._pieces(CHUNK):
            count = file.readinto(memoryview(found)[: len(piece)])
            if found[:count] != bytes(piece):
                return False
        return not file.read(1)

    def _pieces(self, size: int) -> Iterator[bytes | memoryview]:
        yield self.header  # not from the buffer: a check may have it changed for a moment
        if self.path:
            with io.FileIO(self.path) as file:
                file.seek(len(self.header))
                yield from iter(lambda: file.read(size), b"")
        else:
            with self.buffer.getbuffer() as view:
                for start in range(len(self.header), len(view), size):
                    yield view[start : start + size]

    def wipe(self) -> None:
        """Overwrite the database in memory and let go of it."""
        if self.path:
            self.path.unlink()
            return
        with self.buffer.getbuffer() as view:
            ctypes.memset((ctypes.c_char * len(view)).from_buffer(view), 0, len(view))
        self.buffer.close()

    @property
    def plain(self) -> bool:
        """Whether it is an unencrypted SQLite database."""
        return self.header.startswith(SQLITE_MAGIC)

    def missing_pages(self) -> float:
        """Return how many pages an unencrypted database lacks (SQLite file format, section 1.3; 1 means 65536)."""
        if not self.plain:
            return 0
        page_size = int.from_bytes(self.header[16:18]) if self.header[16:18] != b"\0\1" else 65536
        return int.from_bytes(self.header[28:32]) - self.size / max(page_size, SMALLEST_PAGE)


SQLITE_DBCONFIG_DEFENSIVE = 1010
"""From sqlite3.h: no SQL can damage the database file."""


@contextlib.contextmanager
def opened_image(image: DatabaseImage, engine: Engine) -> Iterator[sqlite3.Connection]:
    """Open a database image for checking: SQLite in memory, SQLCipher in the RAM folder."""
    if image.path:
        with contextlib.closing(engine.connect(image.path, mode="ro", immutable=True)) as connection:
            yield connection
        return
    with contextlib.closing(engine.connect(":memory:")) as connection:
        if defend := getattr(connection, "setconfig", None):  # Python 3.12 and newer
            defend(SQLITE_DBCONFIG_DEFENSIVE)
        with image.buffer.getbuffer() as view:
            # In memory there is no WAL, so a database with the WAL flag cannot be opened: clear it on the copy only.
            view[18:20] = b"\1\1"
            connection.deserialize(view)  # copies
            view[18:20] = image.header[18:20]
        yield connection


def check_image_pages(image: DatabaseImage, engine: Engine) -> None:
    """Check the pages of a SQLCipher image, over a connection of its own."""
    with opened_image(image, engine) as connection:
        check_pages(connection)


SQLITE_OK, SQLITE_DENY, SQLITE_FUNCTION = 0, 1, 31
"""What an authorizer is asked and answers; the same in both engines."""


def only_counting(action: int, _first: str | None, name: str | None, _database: str | None, view: str | None) -> int:
    """Deny what counting rows does not take: a hostile view, behind a full-text index, never comes to an end."""
    return SQLITE_DENY if view or (action == SQLITE_FUNCTION and name not in ("count", "like")) else SQLITE_OK


def read_contents(connection: sqlite3.Connection, errors: tuple[type[Exception], ...]) -> Contents:
    """Count the rows of each table and note the schema."""
    connection.set_authorizer(only_counting)
    objects = connection.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    schema = {f"{kind} {name}": str(sql) for kind, name, sql in objects}
    rows: dict[str, int | None] = {}
    for name in sorted(key.removeprefix("table ") for key in schema if key.startswith("table ")):
        try:
            rows[name] = connection.execute(f"SELECT count(*) FROM {quoted_identifier(name)}").fetchone()[0]
        except errors:  # a virtual table whose module is not here, or whose rows come from a view
            rows[name] = None
    return Contents(rows, schema, connection.execute("PRAGMA user_version").fetchone()[0])


def too_little_memory(size: int, limit: int) -> RefusedError:
    """Return the error for a backup that alone has more bytes than a database may have here."""
    return RefusedError(
        f"the backup alone has {megabytes(size)}, and the database in it may have {megabytes(limit)}: it is in memory "
        f"twice, and {megabytes(available_memory())} are free",
        hint="End other programs, or use a machine with more memory; MAX_DATABASE_MB in .env can be a limit, too.",
    )


def explain_unreadable(image: DatabaseImage, engine: Engine, error: Exception) -> UnsoundBackupError:
    """Say why an image is not a sound database of the configured mode."""
    hint = another_backup()
    if not image.path and not image.plain:
        return UnsoundBackupError(
            "this is no backup of an SQLite database: it is something else, or a database encrypted with SQLCipher",
            hint="If the bot uses SQLCipher, set DB_ENCRYPTION=true and DB_PASS in .env. If only this backup does, add "
            f"--convert --backup-db-pass, which asks for its passphrase. {another_backup()}",
        )
    if not image.path:
        return UnsoundBackupError(f"the database is damaged: {error}", hint=hint)
    os.truncate(image.path, image.size * 16)  # sparse: one that is too short can be opened then, and tells its length
    if (pages := _read_page_count(engine, image.path)) is not None:
        missing = pages - image.size / 4096
        short = f"{missing:g} pages are missing" if missing > 0 else str(error)
        return UnsoundBackupError(f"the database is damaged: {short}", hint=hint)
    return UnsoundBackupError(
        "DB_PASS does not open the database in the backup: it was made under another passphrase, or is not a "
        "SQLCipher database",
        hint="If it was made under another passphrase, add --backup-db-pass, which asks for it. To make that the bot's "
        "again, set DB_PASS in .env.",
    )


def _read_page_count(engine: Engine, path: Path) -> int | None:
    """Return the number of pages that a database says it has; None when it cannot be opened."""
    try:
        with contextlib.closing(engine.connect(path, mode="ro", immutable=True)) as connection:
            connection.execute("PRAGMA writable_schema=ON")  # a damaged schema does not keep it from being opened
            return int(connection.execute("PRAGMA page_count").fetchone()[0])
    except engine.errors:
        return None


# --- switch, rollback and journal --------------------------------------------------------------------------------


class UnreadableError(Exception):
    """The live database cannot be opened; what is there is kept byte for byte."""


@dataclass
class Journal:
    """What was begun, beside the target, so that the next run can finish or undo it. Holds no secret.

    States: "switching" (old or new is live), "rolling back" (old is to be live), "committed" (new is live, only the
    old one is left to be cleared away).
    """

    target: Path
    state: str
    set_aside: Path
    candidate: Path
    existed: bool
    new_inode: int | None
    services: tuple[str, ...]
    compose_files: tuple[Path, ...]
    project: str | None
    safety_backup: Path | None
    unsaved: bool
    started: str

    @staticmethod
    def path(target: Path) -> Path:
        """Return where the journal of a target is."""
        return target.with_name(target.name + ".restore-state.json")

    def write(self) -> None:
        """Make the journal durable."""
        path = self.path(self.target)
        temporary = path.with_name(path.name + ".tmp")
        temporary.unlink(missing_ok=True)
        try:
            with create_file(temporary) as file:
                write_all(file, json.dumps(asdict(self), default=str, indent=1).encode())
                os.fsync(file.fileno())
            temporary.rename(path)
        except OSError:
            drop_quietly(temporary)
            raise
        fsync_folder(path.parent)

    @classmethod
    def load(cls, target: Path) -> Journal | None:
        """Return the journal of a restore that was cut off, if there is one.

        :raises RefusedError: when it is there and cannot be read.
        """
        path = cls.path(target)
        try:
            with open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
                data = json.loads(file.read(CHUNK))
            if data["target"] != str(target):
                raise RefusedError(
                    f"{path} tells of a restore into {data['target']}: the folder was copied or moved",
                    hint="If it was moved, move it back, and recover there. In a copy, decide by hand which database "
                    "is to stay, as in section 7 of RUNBOOK.md.",
                )
            journal = cls(
                **data
                | {name: Path(data[name]) for name in ("target", "set_aside", "candidate")}
                | {"safety_backup": Path(data["safety_backup"]) if data["safety_backup"] else None}
                | {"compose_files": tuple(map(Path, data["compose_files"])), "services": tuple(data["services"])}
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RefusedError(
                f"{path} cannot be read: {error}",
                hint=f"It tells of a restore that was cut off. Keep a copy of {target.parent} before anything else.",
            ) from None
        journal.refuse_other_files()
        return journal

    def refuse_other_files(self) -> None:
        """Refuse to rename or remove anything but what a restore of the target makes.

        Whoever may write into the folder, the bot for one, can write a journal, and this may run as root.

        :raises RefusedError: naming what the journal tells of.
        """
        moment = self.set_aside.name.removeprefix(f"{self.target.name}.backup-")
        own = self.set_aside.parent == self.target.parent and re.fullmatch(r"\d{8}-\d{6}", moment)
        if not own or self.candidate != candidate_path(self.target):
            raise RefusedError(
                f"{self.path(self.target)} names files that are not those of a restore of {self.target}",
                hint=f"Keep a copy of {quoted(self.target.parent)} before anything else.",
            )

    def remove(self) -> None:
        """Say that nothing is unfinished any more."""
        self.path(self.target).unlink(missing_ok=True)
        fsync_folder(self.target.parent)

    @property
    def new_is_live(self) -> bool:
        """Whether the target is the new file."""
        status = stat_or_none(self.target)
        return status is not None and status.st_ino == self.new_inode

    @property
    def what_is_live(self) -> str:
        """Which database is the target, for people; also when the disk does not tell."""
        try:
            return f"{self.target} is {'the new one' if self.new_is_live else 'the old one'}"
        except OSError as error:
            return f"{self.target} cannot be looked at ({error.strerror})"

    @property
    def disputed(self) -> bool:
        """Whether the target is neither the new file nor what was set aside: somebody has stepped in."""
        if self.state == "committed" or self.new_is_live or self.candidate.exists() or not self.set_aside.exists():
            return False
        if same_file(self.target, self.set_aside):
            return False
        return not self.target.exists() or not filecmp.cmp(self.target, self.set_aside, shallow=False)


def fold(engine: Engine, database: Path) -> sqlite3.Connection:
    """Bring a database to rest: all it has committed in the main file, sidecars empty; keep others out.

    The connection that is returned holds the lock; close it after the file has lost its name.

    :raises InUseError: when somebody has it open.
    :raises UnreadableError: when it cannot be opened.
    """
    try:
        connection = engine.connect(database, mode="rw", timeout=2)
    except engine.errors as error:
        raise UnreadableError(str(error)) from None
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # else an idle reader goes unnoticed
            left = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if left != (0, 0, 0):
                raise InUseError(f"the WAL of {database} cannot be emptied: another process reads it")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
        else:
            connection.execute("BEGIN EXCLUSIVE")
        for sidecar in sidecars(database):
            if not sidecar.name.endswith("-shm") and sidecar.stat().st_size:
                raise UnreadableError(f"{sidecar.name} still holds data")
    except engine.errors as error:
        connection.close()
        if "locked" in str(error) or "busy" in str(error):
            raise InUseError(
                f"{database} is locked by another process", hint=f"Find it: fuser -v {quoted(database)}"
            ) from None
        raise UnreadableError(str(error)) from None
    except BaseException:
        connection.close()
        raise
    return connection


def link_aside(database: Path, name: Path, *, folded: bool) -> None:
    """Give a database a second name, by link where the filesystem has links; with its sidecars unless it is folded.

    Nothing is read, since an unreadable one may lie on a broken disk. The main file comes last, as the sign of a whole.
    """
    beside = [] if folded else [path for path in sidecars(database) if not path.name.endswith("-shm")]
    for path in [*beside, database]:
        if path.exists():
            second = name.with_name(name.name + path.name[len(database.name) :])
            try:
                os.link(path, second, follow_symlinks=False)
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                copy_durably(path, second)
    fsync_folder(database.parent)


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file with owner, mode and attributes; it appears under its name when it is complete."""
    temporary = target.with_name(target.name + ".restore-new")
    temporary.unlink(missing_ok=True)
    try:
        with source.open("rb") as old, create_file(temporary) as new:
            shutil.copyfileobj(old, new, CHUNK)
            copy_metadata(source, new.fileno())
            os.fsync(new.fileno())
        temporary.rename(target)
    except OSError:
        drop_quietly(temporary)
        raise


def copy_metadata(source: Path, descriptor: int) -> None:
    """Give an open file the owner, mode and extended attributes (ACL included) of another one.

    :raises OSError: when one cannot be set; without them the bot might not be able to open its database.
    """
    status = source.stat()
    os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        os.setxattr(descriptor, name, os.getxattr(source, name))


def remove_sidecars(database: Path) -> None:
    """Remove a database's sidecars, durably."""
    for path in sidecars(database):
        path.unlink()
    fsync_folder(database.parent)


def put_back(engine: Engine, journal: Journal) -> None:
    """Make the old database live again, by renames only; may be cut off anywhere and called again.

    Nobody may have the database open.
    """
    target, set_aside = journal.target, journal.set_aside
    if journal.new_is_live:
        with contextlib.suppress(UnreadableError):
            fold(engine, target).close()
        remove_sidecars(target)
        if journal.existed:
            os.rename(set_aside, target)
        else:
            target.unlink()
        fsync_folder(target.parent)
    for suffix in SIDECARS:  # they were set aside with it if the old database could not be read
        copy = set_aside.with_name(set_aside.name + suffix)
        if copy.exists():
            live = target.with_name(target.name + suffix)
            copy.unlink() if live.exists() else copy.rename(live)
    drop(journal.set_aside, journal.candidate)


def drop_quietly(path: Path) -> None:
    """Remove a file of ours if it is there and that is possible; the next run does it otherwise."""
    with contextlib.suppress(OSError):
        path.unlink()


def drop(*paths: Path) -> None:
    """Remove files that may be there, durably."""
    for path in paths:
        path.unlink(missing_ok=True)
    fsync_folder(paths[0].parent)


# --- console: what people read and type --------------------------------------------------------------------------


WORDS = str.maketrans({"✅": "[ok]", "❌": "[FAILED]", "⚠": "[!]", "…": "...", "\N{VARIATION SELECTOR-16}": ""})


def in_words(text: str, encoding: str) -> str:
    """Return a text as an encoding can show it: ✅ and ❌ as words, other pictures as nothing."""
    try:
        "✅…".encode(encoding)
    except UnicodeEncodeError:
        return text.translate(WORDS).encode(encoding, "ignore").decode(encoding)
    return text


def shown_encoding(encoding: str) -> str:
    """Return the encoding in which what is written will be shown.

    In the locale C Python writes UTF-8, and hides the setting from its environment; where none is set, it may be right.
    """
    with contextlib.suppress(OSError):
        settings = dict(item.partition(b"=")[::2] for item in Path("/proc/self/environ").read_bytes().split(b"\0"))
        locale = next(filter(None, (settings.get(name) for name in (b"LC_ALL", b"LC_CTYPE", b"LANG"))), b"")
        if locale and not re.search(rb"utf-?8", locale, re.IGNORECASE):
            return "ascii"
    return encoding


class Unbreakable(io.TextIOBase):
    """A stream whose reader may vanish (EIO, EPIPE) without an error: the log tells how the run ended."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._encoding = shown_encoding(stream.encoding or "ascii")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding that its reader has; rich draws with what it can show."""
        return self._encoding

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def fileno(self) -> int:
        """The descriptor; rich asks it for the width."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write what can be written."""
        text = in_words(text, self._encoding)
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


class Console:
    """Lines for people, on standard error, and in the log file once there is one. Outcomes are on standard output."""

    def __init__(self) -> None:
        self._stream = Unbreakable(sys.stderr)
        self._results = Unbreakable(sys.stdout)
        self._log: io.FileIO | None = None

    def log_to(self, folder: Path) -> Path | None:
        """Keep a copy of all lines from now on in the log file of a folder; None when that cannot be written."""
        path = folder / LOG_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._log = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)
        except OSError as error:
            self.line(f"⚠️  No log file: {path}: {error.strerror}")
            return None
        return path

    def line(self, text: str) -> None:
        """Print a line, in which nothing steers the terminal."""
        text = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", text)
        self.record(text)
        print(text, file=self._stream)

    def lines(self, texts: Sequence[str]) -> None:
        """Print several lines."""
        for text in texts:
            self.line(text)

    def result(self, text: str) -> None:
        """Print a line that belongs to the outcome."""
        self.record(text)
        print(text, file=self._results)

    def json(self, data: object) -> None:
        """Print the JSON object; from the start, --json has made it the only thing on standard output."""
        print(json.dumps(data), file=self._results)

    def results_to_stderr(self) -> None:
        """Leave standard output to the JSON object."""
        self.result = self.line  # type: ignore[method-assign]

    @contextlib.contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Step]:
        """A step that takes a while: on a terminal with progress while it runs; a line when it is done.

        :param total: bytes to be done, when that is known.
        """
        step = Step(label)
        began = time.monotonic()
        try:
            with self._progress(step, total):
                yield step
        except BaseException:
            self.lines(step.notes)
            self.line(f"{label:<{35 - step.wide}}❌")
            raise
        self.lines(step.notes)
        if step.result:
            seconds = time.monotonic() - began
            line = f"{label:<{35 - step.wide}}✅ {step.result}"
            elapsed = f" ({seconds:.1f} s)"
            fits = len(line + elapsed) + step.wide + 1 <= 80
            self.line(line + elapsed if seconds >= 0.1 and fits else line)

    @contextlib.contextmanager
    def _progress(self, step: Step, total: int | None) -> Iterator[None]:
        if not self._stream.isatty() or os.environ.get("TERM") == "dumb":
            yield
            return
        from rich.console import Console as RichConsole
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = [SpinnerColumn(), TextColumn("{task.description}")]
        if total:  # no more than this fits into 80 columns
            columns += [BarColumn(10), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True)]
        else:
            columns.append(TimeElapsedColumn())
        rich_console = RichConsole(file=self._stream)  # type: ignore[arg-type]
        with Progress(*columns, console=rich_console, transient=True, refresh_per_second=8) as progress:
            task = progress.add_task(step.label, total=total)
            step.progress = lambda done: progress.update(task, completed=done)
            yield

    def record(self, text: str) -> None:
        """Write a line to the log file only."""
        if self._log:
            stamp = datetime.now().astimezone().isoformat(timespec="seconds")
            with contextlib.suppress(OSError):
                self._log.write(f"{stamp} {os.getpid()} {text}\n".encode(errors="replace"))

    def close(self) -> None:
        """Make the log durable."""
        if self._log:
            with contextlib.suppress(OSError):
                os.fsync(self._log.fileno())
            self._log.close()
            self._log = None


class Step:
    """One step of the run: ``progress`` takes the bytes done so far, ``done`` what it did."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.result = ""
        self.notes: list[str] = []
        """Lines that come before its own one: on a terminal there is room for them only when its progress is gone."""
        self.progress: Callable[[int], object] = lambda _: None

    def done(self, text: str) -> None:
        """Say what the step did."""
        self.result = text

    @property
    def wide(self) -> int:
        """Columns that the label takes beyond one a character: a picture takes two, a variation selector none."""
        return len(re.findall(r"[\U0001F300-\U0001FAFF]", self.label)) - self.label.count("\N{VARIATION SELECTOR-16}")


LOG_NAME = "restore.log"


OUTCOME = "outcome: "


def last_outcome(folder: Path) -> str:
    """Return how the last restore ended, from the log file; empty when there was none."""
    try:
        with open_regular(folder / LOG_NAME) as file:
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"not known, {explain(error)}"
    found = next((match for line in reversed(lines) if (match := re.match(r"(\S+ \d+) (.*)", line))), None)
    if found and not found[2].startswith(OUTCOME):
        return f"{found[1]} did not say how it ended: killed, or the machine went down"
    return f"{found[1]} {found[2].removeprefix(OUTCOME)}" if found else ""


def restore_at_work(target: Path) -> str:
    """Return which process restores a database at this moment, and since when; empty when none does."""
    with contextlib.suppress(OSError):
        folder = open_folder(target.parent)
        try:
            return "" if flock(folder, fcntl.LOCK_SH) else lock_owner(folder)
        finally:
            os.close(folder)
    return ""


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = (), gap: str = "  ") -> list[str]:
    """Return rows as lines with aligned columns; those in ``right`` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        gap.join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


class Terminal:
    """The terminal that the operator sits at, reached as /dev/tty, so that standard input may be a pipe."""

    def __init__(self) -> None:
        self._encoding = shown_encoding("utf-8")
        self.present = False
        """Whether there is one."""
        with contextlib.suppress(OSError):
            os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
            self.present = True

    def say(self, text: str) -> None:
        """Print a line."""
        with self._opened() as (_, write):
            write(f"{text}\n")

    def confirm(self, question: str) -> bool:
        """Ask a question whose answer is no unless it is y or yes. What was typed before it does not count."""
        return self.ask(f"{question} [y/N] ").strip().lower() in ("y", "yes")

    def ask(self, question: str) -> str:
        """Ask for a line."""
        with self._opened() as (reader, write):
            import termios

            termios.tcflush(reader, termios.TCIFLUSH)
            write(question)
            line = b""
            while not line.endswith(b"\n"):
                byte = os.read(reader, 1)
                if not byte:
                    break
                line += byte
        return line.decode(errors="replace").strip("\n")

    def choose(self, title: str, choices: Sequence[str], heading: str = "") -> int | None:
        """Let one of several be chosen by number; None when the operator leaves.

        :param heading: stands over the choices; what does not fit on a screen is shown when it is asked for.
        """
        width = len(str(len(choices)))
        lines = [f"{number:>{width}} {text}" for number, text in enumerate(choices, 1)]
        self.say("\n".join([title, *([f"{'':{width}} {heading}"] if heading else []), *lines[:PAGE]]))
        visible = PAGE
        while True:
            more = visible < len(lines)
            answer = self.ask(f"Number, {'m for older ones, ' if more else ''}or q to leave: ").strip().lower()
            if answer in ("q", ""):
                return None
            if answer == "m" and more:
                self.say("\n".join(lines[visible : visible + PAGE]))
                visible += PAGE
            if answer.isdecimal() and 1 <= int(answer) <= len(choices):
                return int(answer) - 1

    def passphrase(self) -> Secret:
        """Ask for the passphrase, without echo.

        :raises DeclinedError: at Ctrl-D, for the second time: the first may have been meant to end the key.
        """
        return self._secret("🔑 Passphrase of the private key: ")

    def backup_db_pass(self) -> Secret:
        """Ask for the passphrase that the database in the backup was made under, without echo.

        :raises DeclinedError: at Ctrl-D, for the second time.
        """
        return self._secret("🔑 DB_PASS of the time when the backup was made: ")

    def _secret(self, question: str) -> Secret:
        import getpass

        for _ in range(2):
            with contextlib.suppress(EOFError), hangup_when_lost():
                return Secret(getpass.getpass(in_words(question, self._encoding)))
        raise DeclinedError("no passphrase was given")

    def private_key(self) -> Secret:
        """Let the private key be pasted, without echo: one line of any length, or many lines up to Ctrl-D."""
        import termios

        with self._opened() as (reader, write):
            before = termios.tcgetattr(reader)
            raw = termios.tcgetattr(reader)
            # A terminal in canonical mode cuts a line at 4095 characters; an RSA-4096 key is longer.
            raw[3] &= ~(termios.ICANON | termios.ECHO)
            try:
                termios.tcsetattr(reader, termios.TCSAFLUSH, raw)
                write("🔑 Paste the private key in base64 (hidden), then Enter, or Ctrl-D if wrapped: ")
                pasted = self._read_paste(reader)
            finally:
                termios.tcsetattr(reader, termios.TCSAFLUSH, before)
                write("\n")
        return Secret(pasted)

    @staticmethod
    def _read_paste(reader: int) -> bytearray:
        """Read up to Ctrl-D, or to where the key is whole."""
        pasted = bytearray()
        while b"\4" not in pasted and not _is_whole(pasted):
            piece = os.read(reader, 4096)
            if not piece:
                break
            pasted += piece
        return pasted.partition(b"\4")[0]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[int, Callable[[str], object]]]:
        import termios

        with hangup_when_lost():
            # os.open: in text mode, open() wants to seek, which a terminal cannot
            descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                yield descriptor, lambda text: os.write(descriptor, in_words(text, self._encoding).encode())
                termios.tcgetattr(descriptor)  # fails when the terminal is gone: what was read may have been its end
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def hangup_when_lost() -> Iterator[None]:
    """End the run as SIGHUP does when the terminal is gone: the signal itself may come later, or to a parent only."""
    import termios

    try:
        yield
    except (OSError, termios.error) as error:
        if error.args[0] not in (errno.EIO, errno.ENXIO):
            raise
        raise Interrupted(signal.SIGHUP) from None


def _is_whole(pasted: bytearray) -> bool:
    """Whether what was pasted is a whole key, so that nobody has to press Ctrl-D after it.

    No tool wraps base64 at more than 76 characters, so a long first line is all of it.
    """
    lines = pasted.replace(b"\r", b"\n").lstrip(b"\n").split(b"\n")
    if lines[0].startswith(b"-----BEGIN PGP"):
        return any(line.startswith(b"-----END PGP") for line in lines[:-1])
    return len(lines) > 1 and len(lines[0]) > 100


def decode_private_key(given: Secret) -> Secret:
    """Return the key as gpg reads it, from base64 of a binary or armored export, or from such an export itself.

    :raises DecryptionError: when it is empty or none of these.
    """
    hint = "Export it again: gpg --export-secret-keys KEY-ID | base64 -w0"
    raw = _strip_to_key(given.reveal_bytes())
    if not raw.strip():
        raise DecryptionError("no private key was given: what came is empty", hint=hint)
    if begins_like_key(raw):
        return Secret(raw)
    text = b"".join(raw.split())
    try:
        return Secret(_strip_to_key(base64.b64decode(text, validate=True)))
    except binascii.Error:
        what = "is truncated" if re.fullmatch(rb"[A-Za-z0-9+/]{20,}=*", text) else "is not base64, nor an OpenPGP key"
        raise DecryptionError(f"the private key {what}", hint=hint) from None


def _strip_to_key(raw: bytes) -> bytes:
    """Take away what editors and mail programs put before a key."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raw = raw.decode("utf-16", errors="replace").encode()
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    armor = raw.find(b"-----BEGIN PGP")
    return raw[max(armor, 0) :]


class Credentials:
    """Where the private key and its passphrase come from."""

    def __init__(self, options: Options, terminal: Terminal) -> None:
        self._options = options
        self._terminal = terminal

    def private_key(self) -> Secret:
        """Read the private key.

        :raises RefusedError: when there is no way to ask for it.
        """
        if self._options.key_stdin:
            return decode_private_key(Secret(sys.stdin.buffer.read()))
        if not self._terminal.present:
            raise RefusedError(
                "there is no terminal to paste the private key into",
                hint="Pipe it in with --key-stdin, or connect with a terminal: ssh -t",
            )
        return decode_private_key(self._terminal.private_key())

    def unlock(self, key: ImportedKey, attempt: Callable[[Secret | None], None]) -> None:
        """Call ``attempt`` with the passphrase; on a terminal, ask again when it was wrong."""
        if not key.protected:
            attempt(None)
            return
        given = self._given_passphrase()
        if given is not None or not self._terminal.present:
            if given is None:
                raise RefusedError(
                    "the private key has a passphrase, and there is no terminal to ask for it",
                    hint="Use --passphrase-fd N or --passphrase-command CMD, or connect with a terminal: ssh -t",
                )
            attempt(given)
            return
        for left in reversed(range(PASSPHRASE_TRIES)):
            try:
                attempt(self._terminal.passphrase())
            except PassphraseError as error:
                if not left:
                    raise
                self._terminal.say(f"❌ {error}; {left} more {'tries' if left > 1 else 'try'}")
            else:
                return

    def backup_db_pass(self) -> Secret | None:
        """Return the passphrase that the database in the backup was made under; None when no option says it differs.

        :raises RefusedError: when there is no way to ask for it.
        """
        if self._options.backup_db_pass_fd is not None:
            return _from_descriptor(self._options.backup_db_pass_fd, "--backup-db-pass-fd")
        if not self._options.backup_db_pass:
            return None
        if not self._terminal.present:
            raise RefusedError(
                "there is no terminal to ask for the passphrase of --backup-db-pass",
                hint="Use --backup-db-pass-fd N, or connect with a terminal: ssh -t",
            )
        return self._terminal.backup_db_pass()

    def _given_passphrase(self) -> Secret | None:
        if self._options.passphrase_fd is not None:
            return _from_descriptor(self._options.passphrase_fd, "--passphrase-fd")
        if self._options.passphrase_command is not None:
            return _first_line(_command_output(self._options.passphrase_command).encode())
        return None


def check_descriptors(options: Options) -> None:
    """Refuse descriptors that cannot be read, before one of our own files gets such a number.

    :raises RefusedError: naming the option.
    """
    given = {"--passphrase-fd": options.passphrase_fd, "--backup-db-pass-fd": options.backup_db_pass_fd}
    for option, number in given.items():
        if number is not None:
            try:
                os.fstat(number)
                if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                    raise OSError(errno.EBADF, "it is open for writing only")
            except (OSError, OverflowError) as error:
                raise _unreadable(number, option, error) from None


def _from_descriptor(number: int, option: str) -> Secret:
    try:
        # A standard stream stays open: it may be a terminal, and what is opened next would get its number.
        with os.fdopen(number, "rb", closefd=number > 2) as file:
            return _first_line(file.read())
    except OSError as error:
        raise _unreadable(number, option, error) from None


def _unreadable(number: int, option: str, error: Exception) -> RefusedError:
    return RefusedError(
        f"cannot read the file descriptor of {option} {number}: {explain(error)}",
        hint=f"Give it in the shell: {option} 3 3< <(command that prints the passphrase)",
    )


def _command_output(command: str) -> str:
    hint = "Give a program with arguments, as a shell would split them: --passphrase-command 'cat /run/secrets/x'"
    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise RefusedError(f"--passphrase-command cannot be understood: {error}", hint=hint) from None
    if not argv:
        raise RefusedError("--passphrase-command is empty", hint=hint)
    try:
        return run_command(argv, timeout=120)
    except CommandError:  # its words would show the arguments, which may be secret
        raise RefusedError(f"--passphrase-command failed: {argv[0]}", hint=f"Try it by hand. {hint}") from None


def _first_line(data: bytes) -> Secret:
    return Secret(data.partition(b"\n")[0].removesuffix(b"\r"))


# --- the restore -------------------------------------------------------------------------------------------------


class Undo:
    """What takes back the steps of the switch; registered before each step, run last in, first out."""

    def __init__(self) -> None:
        self._actions: list[Callable[[], None]] = []
        self.swapping = False

    def add(self, action: Callable[[], None]) -> None:
        """Register what takes back the step that comes now."""
        self._actions.append(action)

    def run(self) -> None:
        """Take the steps back; the first action that fails ends it."""
        while self._actions:
            self._actions.pop()()


@dataclass(frozen=True)
class Access:
    """A private key in its keyring, and what calls an attempt to decrypt with the passphrase of that key."""

    keyring: Keyring
    key: ImportedKey
    unlock: Callable[[Callable[[Secret | None], None]], None]


@dataclass(frozen=True)
class SafetyBackup:
    """The safety backup, and in what state the live files were when it began."""

    path: Path | None
    files: list[tuple[int, int, int, int]]


class Restorer:
    """Restores one backup. :meth:`restore` is the whole story; each phase is a method.

    :param console: where progress goes.
    :param terminal: the operator's terminal, if there is one.
    """

    def __init__(
        self,
        settings: Settings,
        options: Options,
        *,
        console: Console,
        terminal: Terminal,
        signals: Signals,
        report: Report,
    ) -> None:
        self.settings = settings
        self.options = options
        self.console = console
        self.terminal = terminal
        self.signals = signals
        self.engine = Engine(settings.db_pass)
        self.report = report
        self.beside = ThreadPoolExecutor(1)
        """Does one thing after another beside the check: a third at once would only slow it down on two cores."""

    def restore(self) -> Report:
        """Restore the backup and return the report.

        :raises OperatorError: with the exit code of what went wrong; the database is then as it was.
        """
        target = self.resolve_target()
        if self.terminal.present and "SSH_CONNECTION" in os.environ and not {"TMUX", "STY"} & set(os.environ):
            self.console.line("💡 A connection lost before the services stop ends this run; in tmux it would go on")
        owed: tuple[str, ...] = ()
        with contextlib.ExitStack() as cleanup:
            if not self.options.verify_only:
                cleanup.enter_context(self.lock(target))
                owed = self.recover_first(target)
                cleanup.callback(drop_quietly, candidate_path(target))
            cleanup.callback(self.beside.shutdown)
            plan = self.preflight(target, owed)
            cleanup.callback(plan.backup.close)
            ram = cleanup.enter_context(self.ram_folder())
            if self.options.stop_first and not self.options.verify_only:
                self.confirm(plan)
                self.restore_stopped(plan, ram)
            else:
                image = self.decrypt_and_decompress(plan, ram)  # 3
                ahead = self.write_ahead(plan, image)
                contents = self.check_integrity(image)  # 4
                self.compare(plan, contents, ram)
                if self.options.verify_only:
                    self.report.outcome = "verified"
                    return self.report
                self.confirm(plan)
                safety = self.create_safety_backup(plan)  # 1
                candidate = self.finish_candidate(plan, image, ahead)
                with self.switch(plan, safety, candidate) as (journal, undo):
                    stopped = self.stop_services(plan, undo)  # 2
                    self.swap(plan, journal, candidate, safety, undo)  # 5
                    self.cleanup_and_restart(plan, journal, undo, stopped)  # 6
        return self.report

    def restore_stopped(self, plan: Plan, ram: RamFolder) -> None:
        """The phases in literal order, for a bot that must stop writing now or a machine short of memory.

        Key and passphrase come before them: the bot is not stopped for what is missing, wrong or still to be typed.
        """
        access = self.tried_access(plan.backup, ram) if plan.backup.layer == "openpgp" else None
        safety = self.create_safety_backup(plan)  # 1
        with self.switch(plan, safety, None) as (journal, undo):
            stopped = self.stop_services(plan, undo)  # 2
            image = self.decrypt_and_decompress(plan, ram, access)  # 3
            self.compare(plan, self.check_integrity(image), ram)  # 4
            candidate = self.finish_candidate(plan, image, None)
            journal.new_inode = candidate.identity[1]
            self.write_journal(journal)
            self.swap(plan, journal, candidate, safety, undo)  # 5
            self.cleanup_and_restart(plan, journal, undo, stopped)  # 6

    # --- preflight -------------------------------------------------------------------------------------------

    def resolve_target(self) -> Path:
        """Return the path of the database to replace, links resolved.

        :raises RefusedError: when it is not a regular file or absent, or its folder is not there.
        """
        target = Path(os.path.realpath(self.options.target_path or self.settings.db_path))
        if not target.parent.is_dir():
            raise RefusedError(f"there is no folder {target.parent}", hint=f"Make it: mkdir -p {quoted(target.parent)}")
        status = stat_or_none(target)
        if status and not stat.S_ISREG(status.st_mode):
            raise RefusedError(f"{target} is not a regular file", hint="Name a database file with --target-path.")
        refuse_irregular(sidecars(target))
        return target

    @contextlib.contextmanager
    def lock(self, target: Path) -> Iterator[None]:
        """Hold the kernel's lock on the target's folder: one restore at a time, and no backup meanwhile."""
        try:
            folder = open_folder(target.parent)
        except OSError as error:
            raise RefusedError(f"cannot read the folder {target.parent}: {error.strerror}") from None
        try:
            if not flock(folder, fcntl.LOCK_EX):
                raise RefusedError(
                    f"another restore or backup is at work in {target.parent}: {lock_owner(folder)}",
                    hint="Wait for it to end.",
                )
            yield
        finally:
            os.close(folder)

    def preflight(self, target: Path, owed: Sequence[str]) -> Plan:
        """Find out all that can be known before anything is touched.

        :param owed: services that a restore before this one stopped, and that have not come up again.
        :raises RefusedError: when something is missing or in the way.
        """
        if self.options.key_stdin and sys.stdin.isatty():
            raise RefusedError(
                "--key-stdin was given, but standard input is a terminal, which would show the key and cut it",
                hint="Pipe the key in without a terminal (ssh, not ssh -tt), or leave --key-stdin out and paste it.",
            )
        self.report.target = str(target)
        configured = target == Path(os.path.realpath(self.settings.db_path))
        path = self.choose_backup()
        self.report.backup = str(path)
        backup = BackupFile(path, self.image_limit())
        if backup.expected is None:
            self.warn(f"no checksum beside {backup.path.name}: only its content can tell whether it is whole")
        if self.options.stop_first or (backup.layer == "openpgp" and not self.options.key_stdin):
            self.verify_early(backup)
        if not self.options.verify_only:
            self.check_memory(target, backup)
            self.check_confirmable(target, configured)
            self.check_folder(target, backup.size)
        try:
            project = self.find_project(configured)
            services = self.choose_services(project, owed)
            outlook = project.outlook(services) if project else {"services": "Docker is not touched"}
        except OperatorError as error:
            if not self.options.verify_only:
                raise
            project, services, outlook = None, (), {"services": f"not known: {error}"}
        if not self.options.verify_only:
            self.check_users(target, project, services)
            self.report.services = list(services)
        backup_db_pass = Credentials(self.options, self.terminal).backup_db_pass()
        return Plan(backup, target, configured, project, services, outlook, backup_db_pass)

    def verify_early(self, backup: BackupFile) -> None:
        """Compare the backup with its checksum before services stop, or somebody has to paste a key, for nothing."""
        with self.console.step("🔎 Checksum...", backup.size) as step, self.reading(backup, step):
            pass

    @contextlib.contextmanager
    def reading(self, backup: BackupFile, step: Step) -> Iterator[None]:
        """Read the backup from its beginning; a checksum that does not match says more than any other error."""

        def compare() -> None:
            if backup.verify():
                step.notes.append("✅ Checksum verified")

        backup.rewind()
        backup.progress = step.progress
        try:
            yield
        except PassphraseError:  # there may be another try
            raise
        except OperatorError:
            compare()
            raise
        compare()

    def choose_backup(self) -> Path:
        """Return the backup file: the one named, or one chosen from a menu."""
        if self.options.backup_file:
            return self.named_backup(self.options.backup_file)
        if not self.terminal.present:
            raise RefusedError(
                "no backup file was named, and there is no terminal to choose one",
                hint=f"Name one; to see them: {restore_command('--list')}",
            )
        backups = DatabaseBackup(self.settings.db_path, self.settings.backup_dir, settings=self.settings).list_backups()
        if not backups:
            raise RefusedError(
                f"there is no backup in {self.settings.backup_dir}", hint="Name a file, or check DB_BACKUP_PATH."
            )
        checksums = checksum_states(self.console, backups, time.monotonic() + MENU_SECONDS)
        heading, *lines = backup_table(backups, checksums)
        chosen = self.terminal.choose("Which backup?", lines, heading)
        if chosen is None:
            raise DeclinedError("no backup was chosen")
        return backups[chosen].path

    def named_backup(self, file: Path) -> Path:
        """Return the backup file that was named; when it is not there but elsewhere, say where."""
        elsewhere = self.settings.backup_dir / file.name
        if not file.exists() and elsewhere.is_file():
            raise RefusedError(
                f"there is no file {file}",
                hint=f"It is in another folder, so name it: {restore_command(shown(elsewhere))} "
                "(paths on the command line are relative to the current folder)",
            )
        return file

    def check_memory(self, target: Path, backup: BackupFile) -> None:
        """Refuse early when the safety backup's copy of the live database would not fit beside the restored one."""
        live = 0 if self.options.skip_backup else sum(path.stat().st_size for path in database_files(target))
        need = live + (0 if self.options.stop_first else backup.size)
        if need > (free := available_memory()):
            raise RefusedError(
                f"too little memory: the restore takes at least {megabytes(need)} beside the backup, "
                f"{megabytes(live)} of it for the safety backup, and {megabytes(free)} are free",
                hint="End other programs, use a machine with more memory, or add --stop-first, which takes less.",
            )

    def check_confirmable(self, target: Path, configured: bool) -> None:
        """Refuse early when the question that will come cannot be asked."""
        if (configured or target.exists()) and not self.options.force and not self.terminal.present:
            raise RefusedError(
                f"this will replace {target}, and there is no terminal to confirm it",
                hint="Add --force, or connect with a terminal: ssh -t",
            )

    def check_folder(self, target: Path, size: int) -> None:
        """Refuse when the switch could not be done in the target's folder: tries create, link and rename."""
        if is_mount_point(target):
            raise RefusedError(f"{target} is a mount point of its own: it cannot be replaced by a rename")
        probe, second = (target.with_name(f"{target.name}.restore-{name}") for name in ("probe", "probe2"))
        try:
            try:
                self.clear_leftovers(target)
                create_file(probe).close()
                os.rename(probe, second)
                if target.exists():
                    with contextlib.suppress(FileExistsError):
                        os.link(target, probe, follow_symlinks=False)
            finally:
                with contextlib.suppress(OSError):
                    drop(probe, second)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS or not second.parent.exists() or is_immutable(target):
                raise RefusedError(
                    f"the database cannot be replaced in {target.parent}: {error.strerror}",
                    hint=f"Look: ls -ld {quoted(target.parent)}; lsattr {quoted(target)}. "
                    "It takes the rights of the file's owner.",
                ) from None
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise RefusedError(
                f"too little space in {target.parent}: {megabytes(free)} free, more than {megabytes(size)} needed",
                hint=f"Make room: df -h {quoted(target.parent)}",
            )

    def clear_leftovers(self, target: Path) -> None:
        """Remove what a run left that was killed before its switch; the lock says that none is alive."""
        copies = target.parent.glob(f"{glob.escape(target.name)}.backup-*.restore-new")
        ours = ("new", "probe", "probe2", "state.json.tmp")
        drop(*(target.with_name(f"{target.name}.restore-{name}") for name in ours), *copies)
        with contextlib.suppress(OSError):
            DatabaseBackup(target, self.settings.backup_dir, settings=self.settings).remove_leftovers()

    def find_project(self, configured: bool) -> ComposeProject | None:
        """Return the bot's compose project, or None when Docker is not to be touched."""
        if self.options.no_restart or not configured:
            return None
        file = self.options.compose_file
        environment = self.settings.environment
        if file is None and environment is Environment.TEST:
            return None
        if file is None and environment is not None:
            file = self.settings.base_dir / environment.value
        if file is not None and file.is_file():
            return ComposeProject.find(file)
        env_file = self.settings.base_dir / ".env"
        unset = "RUNTIME_ENVIRONMENT is not set" if env_file.exists() else f"there is no {env_file}"
        problem = f"there is no compose file {file}" if file else unset
        if self.options.verify_only or not self.terminal.present:
            raise RefusedError(
                f"{problem}, so the bot's services are not known",
                hint="Bring .env back with all its settings (.env.example shows them; RUNTIME_ENVIRONMENT is PROD or "
                "DEV), name the compose file with --compose-file, or use --no-restart when nothing is to be stopped.",
            )
        chosen = self.ask_compose_file(problem)
        return ComposeProject.find(chosen) if chosen else None

    def ask_compose_file(self, problem: str) -> Path | None:
        """Let the operator name the compose file; None: go on without Docker."""
        known = [self.settings.base_dir / item.value for item in (Environment.PROD, Environment.DEV)]
        choices = [f"production: {known[0]}", f"development: {known[1]}", "another path", "go on without Docker"]
        chosen = self.terminal.choose(f"{problem}. Which compose file runs the bot?", choices)
        if chosen is None:
            raise DeclinedError("no compose file was chosen")
        if chosen == 3:
            return None
        file = known[chosen] if chosen < 2 else Path(self.terminal.ask("Path: ").strip()).expanduser().absolute()
        if not file.is_file():
            raise RefusedError(f"there is no compose file {file}", hint="Name it with --compose-file.")
        return file

    def choose_services(self, project: ComposeProject | None, owed: Sequence[str]) -> tuple[str, ...]:
        """Return the services to stop and start: those that run now or are owed, limited by --service."""
        if not project:
            return ()
        known = {*project.services(), *(item.service for item in project.containers())}  # those in a profile, too
        if unknown := sorted(set(self.options.service) - known):
            raise RefusedError(
                f"no service {', '.join(unknown)} in {project.files[0].name}",
                hint=f"Its services are: {', '.join(sorted(known))}",
            )
        wanted = {*project.running(), *(known & {*owed})}
        return tuple(name for name in sorted(wanted) if not self.options.service or name in self.options.service)

    def check_users(self, target: Path, project: ComposeProject | None, services: Sequence[str]) -> None:
        """Refuse when the database is in use by anything but the services that will be stopped.

        :raises InUseError: naming who has it open.
        """
        stopping: list[Container] = []
        if project:
            containers = docker_containers()
            stopping = [item for item in containers if project.owns(item) and item.service in services]
            for item in containers:
                if item.active and any(source == target for source, _ in item.mounts):
                    raise RefusedError(
                        f"{target} is mounted into container {item.name} as a single file: the container would keep "
                        "the old one",
                        hint="Mount its folder instead, and create the container anew.",
                    )
                if item.active and item.writes_into(target.parent) and item.id not in {known.id for known in stopping}:
                    raise InUseError(
                        f"container {item.name} runs and can write to {target.parent}, and is not among the services "
                        f"to stop ({', '.join(services) or 'none'})",
                        hint=f"Stop it (docker stop {item.name}), or name its service or compose file.",
                    )
        self.refuse_holders(target, [item.id for item in stopping])

    def refuse_holders(self, target: Path, expected: Sequence[str] = ()) -> None:
        """Refuse when a process has the database open, except those in the expected containers.

        :raises InUseError: naming who.
        """
        holders, hidden = find_holders(target)
        strangers = [item for item in holders if not any(container in item.cgroup for container in expected)]
        if strangers:
            commands = "; ".join(sorted({item.ending for item in strangers}))
            raise InUseError(
                f"{target} is in use by {', '.join(map(str, strangers))}",
                hint=f"End it ({commands}); or, if a compose file runs it, name that with --compose-file.",
            )
        if not hidden or not target.exists():
            return
        unseen = f"cannot verify that nobody has {target} open: {plural(hidden, 'process')} cannot be looked at"
        # Where even root may not look, there is no better way to run this: then it is only said.
        if not self.options.force and not has_capability(CAP_SYS_PTRACE):
            raise InUseError(unseen, hint="Run this as root; or, if you know that nothing has it open, add --force.")
        if unseen not in self.report.warnings:
            self.warn(unseen)

    def ram_folder(self) -> RamFolder:
        """Make the RAM folder, and refuse one that could be swapped out to a disk."""
        ram = RamFolder()
        if ram.swappable and not self.options.allow_swap:
            question = "⚠️  Swap is on, and decrypted data could be written to it. Continue?"
            if not self.terminal.present or not self.terminal.confirm(question):
                ram.close()
                raise RefusedError(
                    "swap is on, and decrypted data could be written to it",
                    hint="Run this as root (it then uses memory that is never swapped), turn swap off (swapoff -a), "
                    "or accept it: --allow-swap",
                )
        return ram

    # --- phases 3 and 4: prepare -----------------------------------------------------------------------------

    def access(self, ram: RamFolder) -> Access:
        """Read the private key into a throwaway keyring.

        :raises DecryptionError: when it is no usable key.
        """
        keyring, credentials = Keyring(ram), Credentials(self.options, self.terminal)
        secret = credentials.private_key()
        key = keyring.import_private(secret)
        secret.wipe()
        for warning in key.warnings:
            self.warn(warning)
        return Access(keyring, key, lambda attempt: credentials.unlock(key, attempt))

    def tried_access(self, backup: BackupFile, ram: RamFolder) -> Access:
        """Read key and passphrase, and try them on the beginning of the backup.

        :raises DecryptionError: when they do not open it.
        """
        access = self.access(ram)
        right: list[Secret | None] = []

        def attempt(passphrase: Secret | None) -> None:
            backup.rewind()
            access.keyring.try_to_open(backup.read(CHUNK), passphrase)
            right.append(passphrase)

        access.unlock(attempt)
        return replace(access, unlock=lambda attempt: attempt(right[-1]))

    def decrypt_and_decompress(self, plan: Plan, ram: RamFolder, access: Access | None = None) -> DatabaseImage:
        """Phase 3: the database in memory; nothing of it counts before gpg has said that it is authentic.

        :param access: what opens the backup, when that was asked for before.
        :raises DecryptionError: wrong key or passphrase, damaged or unauthenticated message.
        :raises UnsoundBackupError: when the gzip layer is damaged.
        """
        backup = plan.backup
        limit = self.image_limit()
        if backup.layer == "openpgp":
            image = self.decrypt(backup, access or self.access(ram), limit)
        else:
            if not self.settings.encrypted:
                self.warn("the backup is not encrypted")
            image = DatabaseImage(limit, bare=backup.layer == "database")
            with (
                self.phase("decompress"),
                self.console.step("📦 Decompressing...", backup.size) as step,
                self.reading(backup, step),
            ):
                while piece := backup.read(CHUNK):
                    image.feed(piece)
        image.finish()
        with self.console.step("📦 Decompressing...") as step:
            step.done(megabytes(image.size))
        image = self.convert(plan, image, ram)
        self.report.database_bytes = image.size
        if self.engine.db_pass:
            self.move_into_ram_folder(image, ram)
        return image

    @staticmethod
    def move_into_ram_folder(image: DatabaseImage, ram: RamFolder) -> None:
        """Put a SQLCipher database where it can be opened for its check.

        :raises RefusedError: when there is no room for it.
        """
        if ram.free < image.size:
            raise RefusedError(
                f"too little room in RAM to check the database: {megabytes(ram.free)} free in {ram.path}, "
                f"{megabytes(image.size)} needed",
                hint="Use a machine with more memory, or stop the bot first: --stop-first",
            )
        image.move_to(ram.path / "image.db")

    def image_limit(self) -> int:
        """Bytes that the database may have: it is in memory twice, once to be kept and once to be checked."""
        limit = available_memory() // 9 * 4
        return min(limit, self.settings.max_database_bytes or limit)

    def convert(self, plan: Plan, image: DatabaseImage, ram: RamFolder) -> DatabaseImage:
        """Make what an older backup holds a database of the configured mode, in RAM.

        :raises UnsoundBackupError: when that takes an option that was not given, or is not possible.
        """
        if image.plain and not self.engine.db_pass:
            self.report.format = "SQLite"
            return image
        try:
            import conversion
        except ModuleNotFoundError:  # a bot's repository may hold the three files of a restore alone
            return image
        source = conversion.recognise(image, self.engine, ram, plan.backup_db_pass)
        if source is None:
            return image  # phase 4 says what is wrong with it
        self.report.format, self.report.conversion = source.name, source.plan(self.engine) or None
        if source.as_configured:
            return image
        conversion.refuse_without_leave(source, self.engine, convert=self.options.convert)
        limit = self.image_limit()
        converted = DatabaseImage(limit, bare=True)
        with self.phase("convert"), self.console.step("🔁 Converting...", image.size) as step:

            def progress(size: int) -> None:
                self.signals.check()
                step.progress(size)

            result = conversion.convert(image, source, self.engine, ram, converted.feed, limit=limit, progress=progress)
            self.signals.check()
            step.done(result.done)
        converted.finish()
        for warning in result.warnings:
            self.warn(warning)
        return converted

    def decrypt(self, backup: BackupFile, access: Access, limit: int) -> DatabaseImage:
        """Decrypt, with the passphrase that is asked for if it was not before."""
        fingerprint = access.key.fingerprint
        images: list[DatabaseImage] = []

        def attempt(passphrase: Secret | None) -> None:
            image = DatabaseImage(limit)
            with self.phase("decrypt"), self.console.step("🔓 Decrypting backup...", backup.size) as step:
                try:
                    with self.reading(backup, step):
                        access.keyring.decrypt(backup, passphrase, image.feed, limit)
                finally:
                    if passphrase is not None:
                        passphrase.wipe()
                step.done(f"key {fingerprint[:4]}…{fingerprint[-4:]}")
            images.append(image)

        access.unlock(attempt)
        self.report.key_fingerprint = fingerprint
        return images[-1]

    def check_integrity(self, image: DatabaseImage) -> Contents:
        """Phase 4: prove that the image is a sound database of the configured mode, and return what it holds.

        :raises UnsoundBackupError: saying what is wrong with it.
        """
        if not image.size:
            raise UnsoundBackupError("the backup is empty", hint=another_backup())
        if image.size < SMALLEST_PAGE:
            raise UnsoundBackupError(
                f"the backup does not hold a database, but {image.size} bytes of something else",
                hint=another_backup(),
            )
        if (missing := image.missing_pages()) > 0:
            raise UnsoundBackupError(
                f"the database is damaged: {missing:g} pages are missing",
                hint=another_backup(),
            )
        seconds = CHECK_SECONDS + image.size / 1e6
        deadline = time.monotonic() + seconds
        with self.phase("check"), self.console.step("🔎 Integrity check...") as step:
            try:
                with opened_image(image, self.engine) as connection:
                    # Also lets a signal through, which Python would hold back until SQLite returns.
                    connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
                    pages = self.beside.submit(check_image_pages, image, self.engine) if image.path else None
                    tables = check_structure(self.engine, connection, image.size)
                    if pages:
                        pages.result()
                    contents = read_contents(connection, self.engine.errors)
            except (*self.engine.errors, MemoryError) as error:
                self.signals.check()
                if time.monotonic() > deadline:
                    raise UnsoundBackupError(
                        f"the check of the database did not end within {seconds:.0f} s", hint=another_backup()
                    ) from None
                raise explain_unreadable(image, self.engine, error) from None
            step.done(f"ok, {plural(tables, 'table')}")
        return contents

    def compare(self, plan: Plan, contents: Contents, ram: RamFolder) -> None:
        """Show what the backup holds beside what the live database holds, and what will be done."""
        live = self.live_contents(plan.target, ram)
        for name in sorted({*contents.rows, *(live.rows if live else ())}):
            self.report.tables[name] = {
                "live": live.rows.get(name) if live else None,
                "backup": contents.rows.get(name),
            }
        facts = [("backup", f"of {plan.backup.created:%Y-%m-%d %H:%M:%S}, {age(plan.backup.created.timestamp())}")]
        facts.append(("size", f"{megabytes(self.report.database_bytes or 0)}, {plural(len(contents.rows), 'table')}"))
        facts.append(("format", ", ".join(filter(None, (self.report.format, self.report.conversion)))))
        if live and live.user_version != contents.user_version:
            facts.append(("version", f"user_version {live.user_version} now, {contents.user_version} in the backup"))
        if live and (changed := differing(live.schema, contents.schema)):
            facts.append(("schema", f"differs: {some_of(changed, 44)}"))
        facts.extend(plan.outlook.items())
        # the facts last, so that they are still there when the question comes
        self.console.lines([f"   {line}" for line in [*self.row_comparison(live), *aligned(facts)]])

    def row_comparison(self, live: Contents | None) -> list[str]:
        """Return the lines that say what will be lost: the tables whose number of rows differs."""
        if not live:
            return ["there is no live database to compare with"]
        differ = [(name, rows["live"], rows["backup"]) for name, rows in self.report.tables.items()]
        differ = [row for row in differ if row[1] != row[2]]
        same = len(self.report.tables) - len(differ)
        if not differ:
            return ["every table has as many rows as now"]
        differ.sort(key=lambda row: most_lost_first(*row[1:]))
        rows = [("table", "now", "backup", "difference")]
        for name, now, then in differ[:MOST_TABLES]:
            change = f"{then - now:+,}" if now is not None and then is not None else ""
            rows.append((shortened(name, NAME_COLUMNS), row_count(now), row_count(then), change))
        more = len(differ) - MOST_TABLES
        rest = [f"{plural(more, 'more table')} with fewer or more rows"] if more > 0 else []
        return [
            *aligned(rows, right=(1, 2, 3)),
            *rest,
            *([f"{plural(same, 'other table')} with as many rows as now"] if same else []),
        ]

    def live_contents(self, target: Path, ram: RamFolder) -> Contents | None:
        """Count the rows of the live database without changing it; None when that cannot be done."""
        if not target.exists() or not target.stat().st_size:
            return None
        try:
            with self.open_live(target, ram) as connection:
                return read_contents(connection, self.engine.errors)
        except (*self.engine.errors, OSError) as error:
            self.warn(f"the live database cannot be read: {explain(error)}")
            return None

    @contextlib.contextmanager
    def open_live(self, target: Path, ram: RamFolder) -> Iterator[sqlite3.Connection]:
        """Open the live database for reading, leaving it and its sidecars as they are."""
        beside = sidecars(target)
        path, immutable = target, not beside
        holders, hidden = find_holders(target)
        if beside and not holders and (not hidden or has_capability(CAP_SYS_PTRACE)):
            # Its user was killed: opening it would roll it back or fold it, so a copy is opened.
            path = ram.path / "live.db"
            for file in [target, *beside]:
                shutil.copyfile(file, path.with_name(path.name + file.name[len(target.name) :]))
        mode = "rw" if path != target else "ro"
        with contextlib.closing(self.engine.connect(path, mode=mode, immutable=immutable, timeout=5)) as connection:
            yield connection
        if path != target:
            drop(path, *sidecars(path))

    def confirm(self, plan: Plan) -> None:
        """Ask before anything is touched.

        :raises DeclinedError: unless the answer is yes.
        """
        if self.options.skip_backup:
            self.warn("--skip-backup: the database as it is now will not be kept")
        if self.options.force or (not plan.configured and not plan.exists):
            return
        question = (
            "⚠️  Warning: This will restore over production database. Continue?"
            if plan.configured
            else f"⚠️  {shown(plan.target)} exists. Overwrite?"
        )
        answer = self.terminal.confirm(question)
        self.console.record(f"{question} [y/N] {'y' if answer else 'n'}")
        if not answer:
            raise DeclinedError("not confirmed")

    # --- phase 1 and the new file ----------------------------------------------------------------------------

    def create_safety_backup(self, plan: Plan) -> SafetyBackup:
        """Phase 1: keep what is there now; byte for byte when it cannot be read.

        :raises BackupError: when it could not be kept.
        """
        files = self.written_state(plan.target)
        if self.options.skip_backup:
            return SafetyBackup(None, files)
        if not files:
            self.console.line("✅ No database there yet: nothing to back up")
            return SafetyBackup(None, files)
        with self.phase("safety backup"):
            path = self.back_up("💾 Pre-restore backup...", plan.target)
        self.console.line(f"✅ Pre-restore backup created: {shown(path)}")
        return SafetyBackup(path, files)

    def back_up(self, label: str, database: Path, *, quiet: bool = False) -> Path:
        """Back a database up, or its files byte for byte when it cannot be read; note the path in the report.

        :raises BackupError: when neither works.
        """
        backups = DatabaseBackup(
            database, self.settings.backup_dir, settings=self.settings, engine=self.engine, locked=True, quiet=quiet
        )
        try:
            with self.console.step(label, sum(path.stat().st_size for path in database_files(database))) as step:
                backups.progress = step.progress
                try:
                    path = backups.create_backup()
                except UnreadableDatabaseError as error:
                    self.warn(f"{error}; its files are kept as they are")
                    path = backups.create_raw_backup()
        except (OperatorError, OSError) as error:
            raise BackupError(f"no safety backup: {explain(error)}", hint=getattr(error, "hint", "")) from None
        self.report.safety_backup = str(path)
        return path

    @staticmethod
    def written_state(target: Path) -> list[tuple[int, int, int, int]]:
        """What changes whenever something is written to the database; empty when nothing is there."""
        wal = target.with_name(target.name + "-wal")
        return [file_identity(path) for path in (target, wal) if path.exists()]

    def write_ahead(self, plan: Plan, image: DatabaseImage) -> Future[Candidate] | None:
        """Begin to write the new file beside the check, when nobody has to agree first; None when somebody has."""
        if not self.options.force or self.options.verify_only or not image.size:
            return None
        return self.beside.submit(self.write_candidate, plan, image)

    def finish_candidate(self, plan: Plan, image: DatabaseImage, ahead: Future[Candidate] | None) -> Candidate:
        """Return the new file, written now or begun before; the image in memory is not needed any more.

        :raises RefusedError: when it cannot be written.
        """
        with self.console.step("💽 Writing the new database...", None if ahead else image.size) as step:
            candidate = ahead.result() if ahead else self.write_candidate(plan, image, step.progress)
        image.wipe()
        return candidate

    def write_candidate(
        self, plan: Plan, image: DatabaseImage, progress: Callable[[int], object] = lambda _: None
    ) -> Candidate:
        """Write the new file beside the target: complete, durable, with owner and mode, and read back.

        :raises RefusedError: when it cannot be written; it is gone then.
        """
        path = candidate_path(plan.target)
        try:
            with self.phase("write"):
                path.unlink(missing_ok=True)
                with create_file(path) as file:
                    os.posix_fallocate(file.fileno(), 0, image.size)
                    image.write_to(file, progress)
                    if plan.exists:
                        copy_metadata(plan.target, file.fileno())
                    else:
                        folder = plan.target.parent.stat()
                        os.fchown(file.fileno(), folder.st_uid, folder.st_gid)
                        os.fchmod(file.fileno(), 0o640)
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that the disk is read
                    proved = image.is_in(file)
                fsync_folder(path.parent)
            if not proved:
                raise RefusedError(f"{path} does not hold what was written to it", hint=CHECK_DISK)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise RefusedError(
                f"the new database cannot be written in {path.parent}: {error.strerror}",
                hint=f"It takes {megabytes(image.size)} and the rights of the file's owner: "
                f"df -h {quoted(path.parent)}",
            ) from None
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Candidate(path, file_identity(path))

    # --- phases 2, 5 and 6: switch ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def switch(self, plan: Plan, safety: SafetyBackup, candidate: Candidate | None) -> Iterator[tuple[Journal, Undo]]:
        """From here nothing interrupts; whatever fails is taken back, last step first."""
        self.signals.shield()
        journal = self.open_journal(plan, safety, candidate)
        undo = Undo()
        began = time.monotonic()
        try:
            yield journal, undo
        except BaseException as error:
            self.roll_back(journal, undo, error)
            raise
        finally:
            self.report.add_phase("switch", began)
        self.report.outcome = "restored"
        self.clear_away(journal)

    def open_journal(self, plan: Plan, safety: SafetyBackup, candidate: Candidate | None) -> Journal:
        """Write down what is begun, before the first step that matters."""
        journal = Journal(
            target=plan.target,
            state="switching",
            set_aside=set_aside_path(plan.target),
            candidate=candidate_path(plan.target),
            existed=plan.exists,
            new_inode=candidate.identity[1] if candidate else None,
            services=plan.services,
            compose_files=plan.project.files if plan.project else (),
            project=plan.project.name if plan.project else None,
            safety_backup=safety.path,
            unsaved=not self.options.skip_backup,
            started=datetime.now().astimezone().isoformat(timespec="seconds"),
        )
        try:
            self.write_journal(journal)
        except RefusedError:
            drop_quietly(Journal.path(plan.target))
            raise
        return journal

    @staticmethod
    def write_journal(journal: Journal) -> None:
        """Make the journal durable before the database is touched.

        :raises RefusedError: when that cannot be had.
        """
        try:
            journal.write()
        except OSError as error:
            raise RefusedError(f"cannot write in {journal.target.parent}: {error.strerror}") from None

    def stop_services(self, plan: Plan, undo: Undo) -> float | None:
        """Phase 2: stop the services that run, and make sure that nobody has the database open.

        :returns: the time (monotonic) since which they are down; None when there is none to stop.
        :raises CannotStopError: when that cannot be had.
        """
        began = None
        if plan.project and plan.services:
            project, began = plan.project, time.monotonic()
            undo.add(lambda: self.start_services(project, plan.services, began))
            with self.phase("stop"), self.console.step("🛑 Stopping Docker containers...") as step:
                project.stop(plan.services)
                step.done(", ".join(plan.services))
        try:
            self.check_users(plan.target, plan.project, ())
        except (OSError, OperatorError) as error:
            raise CannotStopError(explain(error), hint=getattr(error, "hint", CHECK_DISK)) from None
        return began

    def swap(self, plan: Plan, journal: Journal, candidate: Candidate, safety: SafetyBackup, undo: Undo) -> None:
        """Phase 5: the old database gets a second name, the new one takes its first.

        :raises OperatorError: when it fails; the undo then puts the old one back.
        """
        target = plan.target
        undo.swapping = True
        undo.add(lambda: self.put_old_back(journal))
        with self.phase("swap"), self.console.step("⚙️  Swapping...") as step:
            journal.unsaved = not self.options.skip_backup and self.written_state(target) != safety.files
            self.exchange(plan, journal.set_aside, candidate.path)
            if file_identity(target) != candidate.identity:
                raise SwitchError(f"{target} is not the file that was verified")
            step.done(f"old database set aside: {shown(journal.set_aside)}" if journal.existed else shown(target))

    def exchange(self, plan: Plan, name: Path, candidate: Path) -> None:
        """Set the old database aside and rename the new one into its place; at each moment one of them is whole."""
        target, folded = plan.target, True
        with contextlib.ExitStack() as guard:
            try:
                if target.exists() and target.stat().st_size:
                    guard.enter_context(contextlib.closing(fold(self.engine, target)))
                elif sidecars(target):  # opening it would delete them
                    raise UnreadableError("the main file is missing or empty")
            except UnreadableError as error:
                self.warn(f"the old database cannot be opened ({error}): its files are set aside as they are")
                folded = False
            self.check_users(target, plan.project, ())
            link_aside(target, name, folded=folded)
            remove_sidecars(target)
            os.rename(candidate, target)
            fsync_folder(target.parent)

    def cleanup_and_restart(self, plan: Plan, journal: Journal, undo: Undo, stopped: float | None) -> None:
        """Phase 6: start the services that ran; the restore counts when they are up and the database is sound.

        :raises OperatorError: when not; the undo then puts the old one back.
        """
        with contextlib.closing(self.engine.connect(plan.target, mode="ro", immutable=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if plan.project and plan.services:
            project = plan.project
            undo.add(lambda: self.stop_for_rollback(project, journal))
            self.start_services(project, plan.services, stopped)
            with self.phase("post-restore check"):
                self.check_live(plan.target)
        journal.state = "committed"
        journal.write()

    def check_live(self, target: Path) -> None:
        """Check the restored database while the services use it.

        :raises SwitchError: when it is not sound.
        """
        try:
            with (
                self.console.step("🔎 Post-restore check...") as step,
                contextlib.closing(self.engine.connect_reader(target)) as connection,
            ):
                step.done(f"ok, {plural(check_integrity(self.engine, connection, None), 'table')}")
        except (*self.engine.errors, UnsoundBackupError) as error:
            raise SwitchError(f"the restored database is not sound: {error}") from None

    def start_services(self, project: ComposeProject, services: Sequence[str], stopped: float | None) -> None:
        """Start services and wait until they are up.

        :raises ServicesDownError: when one does not come up.
        """
        with self.console.step("🔄 Starting Docker containers...") as step:
            try:
                with self.phase("start"):
                    project.start(services)
                    up = project.wait(services)
            except CommandError as error:
                raise ServicesDownError(f"the services cannot be looked at: {error}", hint=error.hint) from None
            states = {item.service: item.health or "running" for item in project.containers()}
            down = ""
            if stopped is not None:
                self.report.downtime_seconds = round(up - stopped, 3)
                down = f"; down for {up - stopped:.1f} s"
            step.done(", ".join(f"{name} {states.get(name, '')}" for name in services) + down)

    # --- rollback, recovery and what is left -----------------------------------------------------------------

    def roll_back(self, journal: Journal, undo: Undo, error: BaseException) -> None:
        """Take back what was done, say how that went, and raise what tells the state things are in.

        :raises SwitchError: rolled back.
        :raises ServicesDownError: rolled back, but the services do not come up.
        :raises RollbackError: a person is needed.
        """
        cause = explain(error)
        self.console.line(f"❌ Restore failed: {cause}")
        if undo.swapping:
            self.console.line("🔄 Rolling back…")
            journal.state = "rolling back"
            with contextlib.suppress(OSError):
                journal.write()
        undo.run()
        with self.clearing_up(journal.target):
            journal.remove()
        if undo.swapping:
            if not isinstance(error, (OperatorError, OSError, *self.engine.errors)):
                self.console.line("".join(traceback.format_exception(error)))
            raise SwitchError(cause, hint=getattr(error, "hint", "")) from None

    def stop_for_rollback(self, project: ComposeProject, journal: Journal) -> None:
        """Stop the services again, so that the old database can be put back.

        :raises RollbackError: when they cannot be stopped: putting it back under them could damage it.
        """
        try:
            project.stop(journal.services)
        except OperatorError as error:
            raise RollbackError(
                f"{error}. The new database is live, the old one is set aside",
                hint=f"Stop the services by hand, then: {self.recover_command(journal.target)}",
            ) from None

    def put_old_back(self, journal: Journal) -> None:
        """Make the old database live again.

        :raises RollbackError: saying what is where.
        """
        try:
            holders = find_holders(journal.target)[0] if journal.new_is_live else []
            if holders:  # one that is idle, and not in WAL mode, shows in no lock
                raise InUseError(f"{journal.target} is in use by {', '.join(map(str, holders))}")
            put_back(self.engine, journal)
        except (OSError, OperatorError) as error:
            raise RollbackError(
                f"the old database could not be put back: {error}. It is whole as {journal.set_aside}; "
                f"{journal.what_is_live}",
                hint=f"Remove the cause, then: {self.recover_command(journal.target)}",
            ) from None
        self.console.line("✅ Rollback successful - database restored to pre-restore state")
        journal.new_inode = None  # it is free, and a database that comes here later may get it
        with contextlib.suppress(OSError):
            journal.write()

    def clear_away(self, journal: Journal) -> None:
        """After the commit: keep what was written after the safety backup, then remove the old database."""
        with self.clearing_up(journal.target):
            copies = database_files(journal.set_aside)
            if copies and journal.unsaved:
                try:
                    with self.phase("last writes"):
                        path = self.back_up("💾 Keeping the last writes...", journal.set_aside, quiet=len(copies) == 1)
                    self.console.line(f"✅ Last writes kept: {shown(path)}")
                except OperatorError as error:
                    self.warn(
                        f"{error}. The old database stays as {journal.set_aside}: remove it if you do not need it"
                    )
                    copies = []
            if copies:
                drop(*copies)
            journal.remove()

    def recover_command(self, target: Path) -> str:
        """Return the command that finishes or undoes what was begun with a database."""
        return restore_command("--recover", *same_place(target, self.settings, self.options))

    @contextlib.contextmanager
    def clearing_up(self, target: Path) -> Iterator[None]:
        """Nothing is unfinished any more: what cannot be removed is only said, and the next run does it."""
        try:
            yield
        except OSError as error:
            self.warn(f"{explain(error)}; clear up with: {self.recover_command(target)}")

    def recover(self) -> Report:
        """Only finish or undo a restore that was cut off."""
        target = self.resolve_target()
        self.report.target = str(target)
        with self.lock(target):
            found = self.recover_cut_off(target)
            with self.clearing_up(target):
                self.clear_leftovers(target)
            if not found:
                self.console.line("✅ Nothing to recover: no restore was cut off")
        self.report.outcome = "recovered"
        return self.report

    def recover_first(self, target: Path) -> tuple[str, ...]:
        """Recover before a restore; return the services that did not come up again.

        The database is whole then, and another backup may be just what they need: that must not be in its way.
        """
        owed: tuple[str, ...] = ()
        try:
            if not self.recover_cut_off(target):
                return owed
        except ServicesDownError as error:
            self.warn(f"{error}; they get their next chance after this restore")
            journal = Journal.load(target)
            if journal and journal.state == "committed":
                self.clear_away(journal)
            owed = journal.services if journal else ()
        self.signals.install()  # that was the end of the other run: this one can be left again
        return owed

    def recover_cut_off(self, target: Path) -> bool:
        """Finish or undo a restore that was cut off; False when there was none.

        :raises OperatorError: when that is not possible yet; it can be tried again.
        """
        journal = Journal.load(target)
        if not journal:
            return False
        if journal.disputed:
            raise RefusedError(
                f"{target} is neither the new database nor the old one, which is {journal.set_aside}: it was exchanged "
                "by hand after a restore was cut off, or the folder came back from a copy",
                hint=f"To stay with it, once you have looked: rm {shlex.quote(shown(journal.path(target)))}. To go "
                "back to the old one, follow section 7 of RUNBOOK.md.",
            )
        self.signals.shield()
        self.console.line(f"🩹 A restore begun at {journal.started} was cut off")
        services = () if self.options.no_restart else journal.services
        project = ComposeProject(journal.compose_files, journal.project, compose_command()) if services else None
        if project:
            docker_containers()  # refused here when Docker does not answer: that is no reason to undo a restore
        try:
            self.finish_or_undo(journal, project, services)
        except OSError as error:
            raise RollbackError(
                f"the recovery cannot go on: {explain(error)}. {journal.what_is_live}",
                hint=f"Remove the cause, then: {self.recover_command(target)}",
            ) from None
        self.clear_away(journal)
        return True

    def finish_or_undo(self, journal: Journal, project: ComposeProject | None, services: Sequence[str]) -> None:
        """End a restore that was cut off with the new database, or else with the old one.

        :raises OSError: when that cannot be written down; it can be tried again.
        """
        if journal.state == "switching" and journal.new_is_live:
            try:
                self.finish_recovery(journal, project, services)
            except OperatorError as error:
                self.console.line(f"❌ It cannot be finished: {error}")
                journal.state = "rolling back"
                journal.write()
        elif journal.state == "committed" and project:
            try:
                self.start_services(project, services, None)
            except ServicesDownError as error:
                state = "The restored database is live, but the services are NOT running."
                raise ServicesDownError(str(error), hint=error.hint, state=state) from None
        if journal.state != "committed":
            self.undo_recovery(journal, project, services)

    def finish_recovery(self, journal: Journal, project: ComposeProject | None, services: Sequence[str]) -> None:
        """The new database is live: start the services, and count the restore as done when they are up."""
        remaining = journal.set_aside.exists()
        if project:
            self.start_services(project, services, None)
        self.check_live(journal.target)
        journal.state = "committed"
        journal.write()
        self.console.line(f"✅ The restore is finished{': the new database is live' if remaining else ''}")

    def undo_recovery(self, journal: Journal, project: ComposeProject | None, services: Sequence[str]) -> None:
        """Back to the old database."""
        if project and journal.new_is_live:
            project.stop(services)
        self.put_old_back(journal)
        if project:
            self.start_services(project, services, None)
        journal.unsaved = False

    # --- reporting -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note in the report how long something took."""
        self.signals.check()
        began = time.monotonic()
        try:
            yield
        finally:
            self.report.add_phase(name, began)

    def warn(self, text: str) -> None:
        """Say something that the operator should know, and note it in the report."""
        self.report.warnings.append(text)
        self.console.line(f"⚠️  {printable(text)}")


def explain(error: BaseException) -> str:
    """Return an error in words for people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def candidate_path(target: Path) -> Path:
    """Return where the new database is written before it takes the target's name."""
    return target.with_name(target.name + ".restore-new")


def set_aside_path(target: Path) -> Path:
    """Return a free name for the old database."""
    while True:
        path = target.with_name(f"{target.name}.backup-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
        if not path.exists():
            return path
        time.sleep(1 - time.time() % 1)


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted on a path, a single file included (os.path.ismount does not see those)."""
    mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return any(_unescape(line.split()[4]) == str(path) for line in mounts)


def _unescape(name: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)


def is_immutable(path: Path) -> bool:
    """Whether the file has the attribute that chattr +i sets."""
    get_flags, immutable = 0x80086601, 0x10  # FS_IOC_GETFLAGS, FS_IMMUTABLE_FL of linux/fs.h
    with contextlib.suppress(OSError), path.open("rb") as file:
        flags = bytearray(8)
        fcntl.ioctl(file, get_flags, flags)
        return bool(int.from_bytes(flags[:4], sys.byteorder) & immutable)
    return False


def age(timestamp: float) -> str:
    """Return how long ago something was, for people."""
    seconds = max(0, time.time() - timestamp)
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            number = int(seconds // size)
            return f"{plural(number, unit)} ago"
    return "just now"


def plural(number: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the names under which two schemas are not the same."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def most_lost_first(now: int | None, then: int | None) -> tuple[bool, int]:
    """Return by what tables are sorted, given their rows: first what loses rows, in each half the most first."""
    change = (then or 0) - (now or 0)
    return change >= 0, -abs(change)


def shortened(name: str, width: int) -> str:
    """Return a name from a database so that it takes no more columns, and cannot do anything to a terminal."""
    name = printable(name)
    return name if len(name) <= width else f"{name[: width - 1]}…"


def some_of(names: Sequence[str], width: int) -> str:
    """Return as many of the names as fit, and how many more there are."""
    names = [shortened(name, width) for name in names]
    number = max([1, *(count for count in range(1, len(names) + 1) if len(", ".join(names[:count])) <= width)])
    more = len(names) - number
    return ", ".join(names[:number]) + (f" and {more:,} more" if more else "")


def row_count(rows: int | None) -> str:
    return "none" if rows is None else f"{rows:,}"


# --- command line ------------------------------------------------------------------------------------------------

STATE = {
    ExitCode.UNEXPECTED: "The database is as it was before, or was rolled back to that.",
    ExitCode.CANNOT_STOP: "The database was not touched; the services that ran are running.",
    ExitCode.ROLLED_BACK: "The database is as it was before; the services that ran are running.",
    ExitCode.ROLLED_BACK_SERVICES_DOWN: "The database is as it was before, but the services are NOT running.",
    ExitCode.ROLLBACK_FAILED: "A PERSON IS NEEDED NOW.",
}
"""What state things are in after a failure, by exit code; after all others nothing was touched."""

RESTORED = "The restored database is live; the services that ran are running."
"""What state things are in after a failure that comes when the restore is done."""


DESCRIPTION = """\
Bring the bot's database back from an encrypted backup: verified before anything
is touched, swapped in atomically, rolled back by itself if anything fails. What
is missing (backup, key, passphrase) is asked for on the terminal.
"""

EXAMPLES = """\
examples:
  restore_backup.py
      choose a backup from a menu; asks for key and passphrase
  restore_backup.py --verify-only FILE
      prove that a backup can be restored; touch nothing
  cat key.b64 | ssh host 'cd shopbot && python restore_backup.py FILE --force \\
      --key-stdin --passphrase-command "cat /run/secrets/passphrase"'
      without a terminal

exit codes:
  0 done, 1 bug, 2 usage, 3 refused, 4 cannot decrypt, 5 unsound backup,
  6 no safety backup, 7 services cannot be stopped, 8 failed and rolled back,
  9 rolled back but services down, 10 declined, 20 rollback failed: a person is
  needed, 129, 130, 143 ended by SIGHUP, SIGINT, SIGTERM before the switch.
  After 2 to 6, 10 and 129 to 143 nothing was touched.

settings (from the environment, else from .env beside the script):
  RUNTIME_ENVIRONMENT, DB_NAME, DATA_DIR, DB_ENCRYPTION, DB_PASS,
  DB_BACKUP_PATH, DB_BACKUP_RETENTION_DAYS, PGP_PUBLIC_KEY_BASE64,
  MAX_DATABASE_MB
"""


class CommandLine(argparse.ArgumentParser):
    """A parser that leaves the end to :func:`main`, as all errors do."""

    def error(self, message: str) -> NoReturn:
        """Show the usage.

        :raises UsageError: always.
        """
        self.print_usage(sys.stderr)
        raise UsageError(message, hint=f"See: {restore_command('--help')}")


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = CommandLine(
        prog="restore_backup.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # nothing here is done on a guess
    )
    parser.add_argument(
        "backup_file", nargs="?", type=Path, help="the backup: .db.gz.gpg, .db.gz or .db; left out: a menu"
    )
    add = parser.add_argument_group("key and passphrase").add_argument
    add("--key-stdin", action="store_true", help="read the private key from standard input: base64, armored or binary")
    add("--passphrase-fd", type=int, metavar="N", help="read the passphrase from this file descriptor")
    add("--passphrase-command", metavar="CMD", help="run this (no shell); its first line is the passphrase")
    add("--allow-swap", action="store_true", help="go on though decrypted data could be swapped out to a disk")
    add = parser.add_argument_group("what is restored, and how").add_argument
    add("--target-path", type=Path, metavar="PATH", help="restore there; Docker is touched for the bot's database only")
    add("--force", action="store_true", help="do not ask for confirmation")
    add("--skip-backup", action="store_true", help="make no safety backup (dangerous)")
    add("--stop-first", action="store_true", help="stop the services first, then decrypt and check")
    add = parser.add_argument_group("backups of older versions of the bot").add_argument
    add("--convert", action="store_true", help="restore SQLCipher 1-3, or the other mode, in the configured format")
    add("--backup-db-pass", action="store_true", help="ask for the DB_PASS that the backup was made under")
    add("--backup-db-pass-fd", type=int, metavar="N", help="read that DB_PASS from this file descriptor")
    add = parser.add_argument_group("services").add_argument
    add("--no-restart", action="store_true", help="do not touch Docker at all: neither stop nor start")
    add("--compose-file", type=Path, metavar="PATH", help="the compose file that runs the bot")
    add("--service", action="append", default=[], metavar="NAME", help="stop this service only (may be repeated)")
    add = parser.add_argument_group("instead of a restore").add_argument
    add("--verify-only", action="store_true", help="decrypt, check and compare the backup; touch nothing")
    add("--recover", action="store_true", help="only finish or undo a restore that was cut off")
    add("--list", action="store_true", help="show the backups, and how the last restore ended")
    add("--drill", action="store_true", help="prove on this machine that a restore works; touches nothing of yours")
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print one JSON object on standard output at the end")
    return parser


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, Options]:
    """Parse the command line.

    :raises UsageError: when it cannot be understood.
    """
    parser = command_line()
    if "_ARGCOMPLETE" in os.environ:  # set by the shell while it completes a command line
        import argcomplete

        argcomplete.autocomplete(parser)
    arguments = parser.parse_args(argv)
    names = set(Options.__dataclass_fields__) - {"service"}
    if arguments.passphrase_command and arguments.passphrase_fd is not None:
        parser.error("--passphrase-fd and --passphrase-command: use one of them")
    options = Options(**{name: getattr(arguments, name) for name in names}, service=tuple(arguments.service))
    if options.passphrase_fd == 0 and options.key_stdin:
        parser.error("--passphrase-fd 0 and --key-stdin both read standard input")
    if options.backup_db_pass and options.backup_db_pass_fd is not None:
        parser.error("--backup-db-pass and --backup-db-pass-fd: use one of them")
    if options.backup_db_pass_fd is not None and options.backup_db_pass_fd in (
        options.passphrase_fd,
        0 if options.key_stdin else None,
    ):
        parser.error(f"--backup-db-pass-fd {options.backup_db_pass_fd} is read by another option, too")
    for path in ("backup_file", "target_path", "compose_file"):
        if (value := getattr(options, path)) is not None:
            options = replace(options, **{path: value.absolute()})
    return arguments, options


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code: the one place where errors end."""
    open_streams()
    signals = Signals()
    signals.install()
    console = Console()
    report = Report()
    as_json = "--json" in (sys.argv if argv is None else argv)  # also when the rest cannot be understood
    if as_json:
        console.results_to_stderr()
    try:
        try:
            arguments, options = parse(argv)
            harden_process()
            check_descriptors(options)
            run(arguments, options, console, signals, report)
        finally:
            signals.ignore()  # to the last: Python's own end would hand them back to the kernel and change the code
            signals.check()
    except OperatorError as error:
        tell_failure(console, report, error.exit_code, str(error), error.hint, state=error.state)
    except Interrupted as interrupt:
        name = signal.Signals(interrupt.number).name
        tell_failure(console, report, ExitCode(128 + interrupt.number), f"ended by {name}", "")
    except ModuleNotFoundError as error:
        refused = missing_module(error)
        tell_failure(console, report, refused.exit_code, str(refused), refused.hint)
    except OSError as error:  # of the disk, at a place that has no words of its own for it
        console.record(traceback.format_exc())
        tell_failure(console, report, ExitCode.REFUSED, explain(error), CHECK_DISK)
    except Exception as error:  # noqa: BLE001 - a bug, told with its traceback and a code of its own
        console.line(traceback.format_exc())
        tell_failure(console, report, ExitCode.UNEXPECTED, f"{type(error).__name__}: {error}", "")
    if as_json:
        console.json(report.as_dict())
    console.close()
    close_streams()
    return report.exit_code


def run(arguments: argparse.Namespace, options: Options, console: Console, signals: Signals, report: Report) -> None:
    """Do what the command line asks for."""
    if arguments.drill:
        import drill

        report.drill = drill.run(console)
        report.outcome = "drill passed"
        return
    settings = load_settings()
    if arguments.list:
        report.backups = show_list(console, settings)
        report.outcome = "listed"
        return
    enter_private_mounts()
    restorer = Restorer(settings, options, console=console, terminal=Terminal(), signals=signals, report=report)
    if options.verify_only:
        restorer.restore()
        console.result("✅ Backup verified: it can be restored. Nothing was touched.")
        return
    log = console.log_to(settings.backup_dir)
    report.log = str(log) if log else None
    began = time.monotonic()
    if options.recover:
        restorer.recover()
    else:
        restorer.restore()
        console.result("✅ Database restored successfully")
        for line in summary(report, settings, options, time.monotonic() - began):
            console.result(f"   {line}")
    console.record(f"{OUTCOME}{report.outcome}")


def tell_failure(console: Console, report: Report, code: ExitCode, message: str, hint: str, *, state: str = "") -> None:
    """Print what happened, what state things are in, and what to do; note it in the report."""
    report.exit_code = int(code)
    report.error = {"message": message, "hint": hint}
    console.line(f"❌ {message}")
    bug = "This is a bug in the tool. " if code == ExitCode.UNEXPECTED else ""
    usual = RESTORED if report.outcome == "restored" else STATE.get(code, "Nothing was touched.")
    console.line(f"   {bug}{state or usual}")
    if hint:
        console.line(f"   {hint}")
    console.record(f"{OUTCOME}{code.name.lower().replace('_', ' ')}: {message}")


def summary(report: Report, settings: Settings, options: Options, seconds: float) -> list[str]:
    """Return the lines of the report at the end of a restore; the undo fits into 80 columns, so as to be copied."""
    rows = sum(table["backup"] or 0 for table in report.tables.values())
    facts = [
        ("backup", shown(Path(report.backup))),
        ("into", f"{shown(Path(report.target))}, in {seconds:.1f} s"),
        ("rows", f"{rows:,} in {plural(sum(item['backup'] is not None for item in report.tables.values()), 'table')}"),
    ]
    if report.downtime_seconds is not None:
        facts.append(("down", f"for {report.downtime_seconds:.1f} s"))
    if report.safety_backup:
        kept = Path(report.safety_backup)
        facts.append(("kept", shown(kept)))
        if ".raw.tar" in kept.name:
            facts.append(("to rescue", rescue_command(kept)))
        else:
            facts.append(("to undo", undo_command(kept, Path(report.target), settings, options)))
    if report.log:
        facts.append(("log", shown(Path(report.log))))
    return aligned(facts)


def undo_command(kept: Path, target: Path, settings: Settings, options: Options) -> str:
    """Return the command that brings back what was there before."""
    return restore_command(shown(kept), *same_place(target, settings, options))


def rescue_command(kept: Path) -> str:
    """Return the command that unpacks the files of a database that could not be read, in RAM, to be looked at."""
    decrypt = "gpg -d" if kept.suffix == ".gpg" else "cat"
    folder = "d=$(mktemp -d /dev/shm/rescue.XXXXXX)"
    return f'{folder}; {decrypt} {quoted(shown(kept))} | tar -xz -C "$d" && echo "$d"'


def same_place(target: Path, settings: Settings, options: Options) -> list[str]:
    """Return the options with which another run has the same target and the same services."""
    words = [] if target == Path(os.path.realpath(settings.db_path)) else ["--target-path", shown(target)]
    words += ["--no-restart"] if options.no_restart else []
    words += ["--compose-file", shown(options.compose_file)] if options.compose_file else []
    return words + [word for name in options.service for word in ("--service", name)]


def show_list(console: Console, settings: Settings) -> list[dict[str, Any]]:
    """Print the backups and how the last restore ended; return the backups for --json."""
    backups = DatabaseBackup(settings.db_path, settings.backup_dir, settings=settings).list_backups()
    checksums = checksum_states(console, backups)
    listed = [
        {
            "path": str(item.path),
            "created": item.created.isoformat(),
            "bytes": item.size,
            "encrypted": item.encrypted,
            "checksum": checksum,
        }
        for item, checksum in zip(backups, checksums, strict=True)
    ]
    if backups:
        console.result(f"{plural(len(backups), 'backup')} in {shown(settings.backup_dir)}")
        for line in backup_table(backups, checksums):
            console.result(line)
    else:
        console.result(f"no backup in {settings.backup_dir}")
    target = Path(os.path.realpath(settings.db_path))
    if owner := restore_at_work(target):
        console.result(f"🔄 A restore is at work: {owner}")
        return listed
    if outcome := last_outcome(settings.backup_dir):
        console.result(f"last restore: {outcome}")
    if Journal.path(target).exists():
        console.result(f"⚠️  A restore was cut off. To finish or undo it: {restore_command('--recover')}")
    return listed


def checksum_states(console: Console, backups: Sequence[BackupInfo], until: float = math.inf) -> list[str]:
    """Read backups, newest first, and return the states of their checksums.

    :param until: a time of the monotonic clock after which nothing is read.
    """
    done = 0
    with console.step("🔎 Checksums...", sum(item.size for item in backups)) as step:

        def progress(count: int) -> None:
            nonlocal done
            done += count
            step.progress(done)

        return [item.checksum_state(until, progress) for item in backups]


def backup_table(backups: Sequence[BackupInfo], checksums: Sequence[str]) -> list[str]:
    """Return the lines that show backups, a heading first; with numbers before them they fit into 80 columns."""
    rows = [("age", "size", "content", "checksum", "name")]
    for item, checksum in zip(backups, checksums, strict=True):
        content = "encrypted" if item.encrypted else "PLAIN"
        rows.append((age(item.created.timestamp()), megabytes(item.size), content, checksum, item.path.name))
    return aligned(rows, right=(0, 1), gap=" ")


def open_streams() -> None:
    """Put /dev/null where a standard stream is closed, as cron and some wrappers leave them.

    Else the next file that is opened, the database even, would get that number, and be printed into.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdin = sys.stdin or io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = sys.stdout or io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.stderr = sys.stderr or io.TextIOWrapper(io.FileIO(2, "w", closefd=False))


def close_streams() -> None:
    """Flush the standard streams; a reader that has gone must not change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
