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
import contextlib
import fcntl
import glob
import inspect
import math
import os
import shlex
import shutil
import signal
import stat
import sys
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from backuplib.backup_file import BackupFile
from backuplib.comparison import MOST_TABLES, NAME_COLUMNS, differing, most_lost_first, read_contents
from backuplib.compose import ComposeProject, compose_command, docker_containers
from backuplib.console import OUTCOME, Console, Report, last_outcome
from backuplib.credentials import Access, Credentials, check_descriptors
from backuplib.database import (
    SMALLEST_PAGE,
    Engine,
    check_integrity,
    check_structure,
    database_files,
    refuse_irregular,
    sidecars,
)
from backuplib.errors import (
    CHECK_DISK,
    RESTORED,
    STATE,
    BackupError,
    CannotStopError,
    CommandError,
    DeclinedError,
    ExitCode,
    InUseError,
    OperatorError,
    PassphraseError,
    RefusedError,
    RollbackError,
    ServicesDownError,
    SwitchError,
    UnreadableDatabaseError,
    UnreadableError,
    UnsoundBackupError,
    UsageError,
    another_backup,
    explain,
    missing_module,
    restore_command,
)
from backuplib.files import (
    CHUNK,
    NO_HARD_LINKS,
    copy_metadata,
    create_file,
    drop,
    drop_quietly,
    file_identity,
    flock,
    fsync_folder,
    open_folder,
    stat_or_none,
)
from backuplib.formatting import (
    age,
    aligned,
    megabytes,
    plural,
    printable,
    quoted,
    row_count,
    shortened,
    shown,
    some_of,
)
from backuplib.image import DatabaseImage, check_image_pages, explain_unreadable, opened_image
from backuplib.journal import Journal
from backuplib.openpgp import Keyring
from backuplib.processes import (
    CAP_SYS_PTRACE,
    Interrupted,
    Signals,
    close_streams,
    find_holders,
    harden_process,
    has_capability,
    lock_owner,
    open_streams,
)
from backuplib.ram_folder import RamFolder, available_memory, enter_private_mounts
from backuplib.switch import Undo, fold, link_aside, put_back, remove_sidecars
from backuplib.target import Candidate, candidate_path, is_immutable, is_mount_point, restore_at_work, set_aside_path
from backuplib.terminal import Terminal
from config import Environment, load_settings
from database_backup import DatabaseBackup

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    from backuplib.backup_file import BackupInfo
    from backuplib.comparison import Contents
    from backuplib.compose import Container
    from backuplib.console import Step
    from backuplib.secret import Secret
    from config import Settings

# --- constants ---------------------------------------------------------------------------------------------------


MENU_SECONDS = 3.0
"""How long the menu may be kept waiting by checksums."""


CHECK_SECONDS = 60.0
"""How long the check of a backup's database may take, and a second more for each MB: a hundred times what is usual."""


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


# --- the restore -------------------------------------------------------------------------------------------------


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
        self.credentials = Credentials(
            terminal,
            key_stdin=options.key_stdin,
            passphrase_fd=options.passphrase_fd,
            passphrase_command=options.passphrase_command,
            backup_db_pass=options.backup_db_pass,
            backup_db_pass_fd=options.backup_db_pass_fd,
        )
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
        backup_db_pass = self.credentials.backup_db_pass()
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
        holders, hidden = find_holders(database_files(target))
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
        keyring = Keyring(ram)
        secret = self.credentials.private_key()
        key = keyring.import_private(secret)
        secret.wipe()
        for warning in key.warnings:
            self.warn(warning)
        return Access(keyring, key, lambda attempt: self.credentials.unlock(key, attempt))

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
        from backuplib import conversion

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
        holders, hidden = find_holders(database_files(target))
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
            holders = find_holders(database_files(journal.target))[0] if journal.new_is_live else []
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


# --- command line ------------------------------------------------------------------------------------------------


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
            check_descriptors(
                {"--passphrase-fd": options.passphrase_fd, "--backup-db-pass-fd": options.backup_db_pass_fd}
            )
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
        from backuplib import drill

        report.drill = drill.run(console, Path(inspect.getfile(DatabaseBackup)))
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


if __name__ == "__main__":
    sys.exit(main())
