#!/usr/bin/env python3
# PYTHON_ARGCOMPLETE_OK
"""Bring the bot's database back from an encrypted backup.

The backup is verified before anything is touched, swapped in atomically, and rolled back by itself if anything
fails. The bot is down for seconds; the private key, its passphrase and the decrypted data are never on a disk.

Six phases: 1 safety backup, 2 stop services, 3 decrypt and decompress, 4 integrity check, 5 atomic swap,
6 cleanup and restart. Read :meth:`Restorer.restore` first: it is the table of contents.
"""

if __name__ == "__main__":
    from backuplib import quiet

    quiet.begin()  # before the imports, which take a while

import argparse
import contextlib
import functools
import inspect
import itertools
import math
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import backuplib.own_config  # noqa: F401 - refuses a bot's config.py before it is imported below
from backuplib import __version__, errors, proofs, remote, typed
from backuplib.backup_file import BEFORE_A_RESTORE, Backup, BackupFile, BackupInfo
from backuplib.bot import Bot
from backuplib.command_line import CommandLine
from backuplib.comparison import Contents, differing, read_live, row_comparison, tables_of, total_loss
from backuplib.console import OUTCOME, Console, Report
from backuplib.containers import Container
from backuplib.credentials import Access, Credentials, read_descriptor
from backuplib.database import Engine, size_of_files
from backuplib.files import CHUNK, Identity, drop_quietly
from backuplib.formatting import age, aligned, instant, megabytes, plural, printable, quoted, shown, some_of
from backuplib.image import DatabaseImage, begun_check
from backuplib.inspection import Inspection
from backuplib.journal import Journal
from backuplib.listing import choose_backup, show_backups, show_restores
from backuplib.locks import LOCK_SECONDS
from backuplib.named import latest_at, refuse_misnamed, refuse_plain_as_encrypted, refuse_unrestorable
from backuplib.notify import Watchers
from backuplib.openpgp import ImportedKey, Keyring
from backuplib.outcome import RESTORED, SERVICES_DOWN
from backuplib.processes import Signals, close_streams, harden_process, open_streams
from backuplib.ram_folder import RamFolder, available_memory, enter_private_mounts, remove_leftovers, swap_on_disk
from backuplib.recovery import refuse_forged_exchange, told_of_leftovers, within_reach
from backuplib.remote import is_elsewhere, remotes
from backuplib.running import ANSWER, AT_WORK, CONFIRMATION, RECOVERING, SWITCHING, Turn, taking_turn
from backuplib.secret import Secret
from backuplib.selection import LATEST, Places, Selection, contradiction
from backuplib.signing import INVALID, UNKNOWN, SigningFolder
from backuplib.storage import journal_mode
from backuplib.style import Kind
from backuplib.switch import Switch
from backuplib.target import Target
from backuplib.terminal import Terminal
from backuplib.unattended import Questions, refuse_unanswered
from config import Environment, Settings, load_settings, survey_settings
from database_backup import DatabaseBackup

MOST_FINDINGS = 20  # warnings about what a sound database holds
FOUND = "a finding about what the database holds: shown, and recorded nowhere"  # what the log says of one

# How long a lock of a bot's is waited for that will be stopped anyway.
LOCKED_BOT_SECONDS = 5.0

MEMORY_BESIDE = 30_000_000  # bytes that a restore takes beside this process and the database: gpg, its agent, a child

# --- values ------------------------------------------------------------------------------------------------------


@dataclass
class Options:
    """What the command line asks for."""

    backup_file: Path | None = None
    at: str | None = None
    from_: str | None = None
    target_path: Path | None = None
    no_restart: bool = False
    key_stdin: bool = False
    skip_backup: bool = False
    force: bool = False
    verify_only: bool = False
    stop_first: bool = False
    compose_file: Path | None = None
    service: list[str] = field(default_factory=list)
    passphrase_fd: int | None = None
    passphrase_command: str | None = None
    recover: bool = False
    allow_swap: bool = False
    convert: bool = False
    backup_db_pass: bool = False
    backup_db_pass_fd: int | None = None
    list: bool = False
    drill: bool = False
    check: bool = False
    json: bool = False


@dataclass(frozen=True)
class Plan:
    """What will be done: made by the preflight, shown to the operator, followed by the phases."""

    backup: Backup
    target: Target
    configured: bool
    bot: Bot | None
    stopping: list[Container]
    user: tuple[int, set[int]] | None  # who must be able to write to a database where there is none yet
    outlook: dict[str, str]
    backup_db_pass: Secret | None = None


@dataclass(frozen=True)
class SafetyBackup:
    """The safety backup, and in what state the live files were when it began."""

    path: Path | None
    files: list[Identity]


# --- the restore -------------------------------------------------------------------------------------------------


class Restorer:
    """Restores one backup. :meth:`restore` is the whole story; each phase is a method.

    :param report: what happened goes there, and what the operator reads through it.
    :param terminal: the operator's terminal, if there is one.
    """

    def __init__(
        self, settings: Settings, options: Options, *, terminal: Terminal, credentials: Credentials, report: Report
    ) -> None:
        self.settings = settings
        self.options = options
        self.terminal = terminal
        self.credentials = credentials
        self.report = report
        self.console = report.console
        self.signals = report.signals
        self.engine = Engine(settings.db_pass)
        self.signing = SigningFolder(settings.signing_dir, settings.shop_folders)
        self.told_unseen = False
        places = Places.of(settings.backup_dir, remotes(settings.remotes, settings.rclone), options.from_)
        self.selection = Selection(places, self.list_backups, report.warn, self.console.line)
        self.keyring: Keyring | None = None  # and the key in it: what opened one backup is tried on the next
        self.key: ImportedKey | None = None
        self.turn = Turn()  # where others can read what this waits for
        self.beside = ThreadPoolExecutor(1)  # concurrent with the check; a third thread would slow it down on two cores

    def restore(self) -> None:
        """Restore the backup; an OperatorError has the exit code of what went wrong, and the state that leaves."""
        target = self.resolve_target()
        self.settle_before(target)
        if self.terminal.present and "SSH_CONNECTION" in os.environ and not {"TMUX", "STY"} & set(os.environ):
            self.console.line("💡 A connection lost before the services stop ends this run; in tmux it would go on")
        pending: tuple[str, ...] = ()
        with contextlib.ExitStack() as cleanup:
            if not self.options.verify_only:
                Journal.load(target)  # one that cannot be understood is refused before what is left is cleared away
                self.turn = cleanup.enter_context(taking_turn(target.lock_file))
                self.credentials.waiting = self.turn.waiting
                pending = self.recover_first(target)
                cleanup.callback(drop_quietly, target.candidate)
            cleanup.callback(self.beside.shutdown)
            ram = cleanup.enter_context(self.ram_folder())
            plan = self.preflight(target, pending, ram)
            cleanup.callback(plan.backup.close)
            if self.options.stop_first and not self.options.verify_only:
                self.confirm(plan)
                self.restore_stopped(plan, ram)
            else:
                plan, image, ahead, contents = self.prepare(plan, ram, cleanup)  # 3, 4
                lost = self.compare(plan, contents, ram)
                if self.options.verify_only:
                    self.show_plan(plan, lost)
                    self.prove(plan, proofs.VERIFIED)
                    self.report.outcome = "verified"
                    return
                self.confirm(plan, lost)
                cleanup.enter_context(target.lock(self.console.line))  # from here no backup is made by others
                candidate = self.finish_candidate(plan, image, ahead)  # leaves room in memory for phase 1
                safety = self.create_safety_backup(plan)  # 1
                with self.switch(plan, safety) as switch:
                    self.stop_services(plan, switch)  # 2
                    self.swap(plan, switch, candidate, safety)  # 5
                    self.cleanup_and_restart(plan, switch)  # 6

    def restore_stopped(self, plan: Plan, ram: RamFolder) -> None:
        """The phases in literal order, for a bot that must stop writing now or a machine short of memory.

        Key and passphrase come before them: the bot is not stopped for what is missing, wrong or still to be typed.
        """
        access = self.access(plan.backup, ram) if plan.backup.layer == "openpgp" else None
        with self.selection.naming_another(), plan.target.lock(self.console.line):
            self.restore_locked(plan, ram, access)

    def restore_locked(self, plan: Plan, ram: RamFolder, access: Access | None) -> None:
        """The same, once no backup is made by others."""
        safety = self.create_safety_backup(plan)  # 1
        with self.switch(plan, safety) as switch:
            self.stop_services(plan, switch)  # 2
            with self.signals.heard():
                image = self.decrypt_and_decompress(plan, ram, access)  # 3
                with begun_check(image, self.engine) as check:
                    self.show_loss(*self.compare(plan, self.check_integrity(check), ram))  # 4
                candidate = self.finish_candidate(plan, image, None)
            self.swap(plan, switch, candidate, safety)  # 5
            self.cleanup_and_restart(plan, switch)  # 6

    # --- preflight -------------------------------------------------------------------------------------------

    def resolve_target(self) -> Target:
        """Return the database to replace."""
        target = Target.resolve(self.options.target_path or self.settings.db_path)
        self.report.target = str(target.path)
        if text := target.exposed:
            self.report.warn(text)
        if not self.options.target_path:
            self.database = Path(str(target.path))
        return target

    @functools.cached_property
    def database(self) -> Path:
        """The configured database, links resolved; of a run without another target, as :meth:`resolve_target` did."""
        return Path(os.path.realpath(self.settings.db_path))

    def is_configured(self, target: Path) -> bool:
        """Whether a target, links resolved, is the configured database."""
        return target == self.database

    def settle_before(self, target: Target) -> None:
        """Settle what has to do with who calls this, and from where, before the menu and before a key is asked for.

        :raises RefusedError: when a question will come that cannot be asked, or a key that would be shown.
        :raises DeclinedError: when the operator would rather be root.
        """
        if self.options.key_stdin and sys.stdin.isatty():
            raise errors.RefusedError(
                "--key-stdin was given, but standard input is a terminal, which would show the key and cut it",
                hint="Pipe the key in without a terminal (ssh, not ssh -tt), or leave --key-stdin out and paste it.",
            )
        named = self.options.backup_file
        there = latest_at(named, self.settings.remotes, self.settings.rclone) if named else None
        if self.options.at is not None or named == LATEST or there:
            at, self.options.at, self.options.from_ = self.options.at, None, None  # what is typed next names a file
            self.options.backup_file = self.selection.by_time(at, there)
        elif named and not is_elsewhere(named):
            refuse_misnamed(named, self.settings.backup_dir, target.path, self.list_backups)
        hidden = 0 if self.options.verify_only else target.hidden_from_us()
        unseen = target.unseen(hidden) if hidden else ""
        if not self.terminal.present:
            try:
                refuse_unanswered(self.questions(target, unseen), self.options)
            except errors.NoTerminalError:
                self.check_encryption(target)  # where that is refused, answers are for nothing
                raise
        if not unseen:
            return
        self.warn_unseen(f"{unseen}. {errors.inspecting_hint()}")
        question = "⚠️  Go on without knowing?"
        if self.terminal.present and not self.terminal.confirm(question):
            raise errors.DeclinedError("not gone on without that", hint=errors.inspecting_hint())

    def questions(self, target: Target, unseen: str) -> Questions:
        """Return what will be asked, as far as that can be known before anything is done."""
        options, configured = self.options, self.is_configured(target.path)
        encrypted, swappable, problem = True, False, ""
        if options.backup_file and not options.key_stdin:
            with contextlib.closing(self.opened(options.backup_file)) as backup:
                encrypted = backup.layer == "openpgp"
        if not options.allow_swap and swap_on_disk():
            with RamFolder() as ram:
                swappable = ram.swappable
        if options.verify_only:
            return Questions(encrypted, swap=swappable)
        try:
            self.compose_file(configured)
        except errors.UnusableComposeFileError as error:
            problem = str(error)
        replaced = target.path if configured or target.exists else None
        return Questions(encrypted, replaced, problem, swappable, unseen)

    def preflight(self, target: Target, pending: Sequence[str], ram: RamFolder) -> Plan:
        """Find out all that can be known before anything is touched.

        :param pending: services that a restore before this one stopped, and that have not come up again.
        :raises RefusedError: when something is missing or in the way.
        """
        configured = self.is_configured(target.path)
        self.check_encryption(target)
        if not (self.options.verify_only or self.options.skip_backup) and size_of_files(target.path):
            self.backups_of(target.path).recipients()  # whether a safety backup can be encrypted
            self.backups_of(target.path).refuse_unsignable()
        backup = self.open_backup(target, ram)
        if not self.options.verify_only:
            with contextlib.suppress(OSError):
                self.backups_of(target.path).remove_leftovers()
        bot, stopping, user, outlook = None, [], None, {"services": "Docker is not touched"}
        try:
            if bot := self.find_bot(configured):
                self.ask_the_bot(bot)
                user = bot.user()
                stopping = bot.concerned(self.options.service, pending)
                outlook = bot.outlook(stopping)
        except errors.OperatorError as error:
            if not self.options.verify_only:
                raise
            outlook = {"services": f"not known: {error}"}
        if not self.options.verify_only:
            self.refuse_users(target, bot, stopping)
            self.report.services = sorted({str(item) for item in stopping})
        return Plan(backup, target, configured, bot, stopping, user, outlook, self.credentials.backup_db_pass())

    def list_backups(self) -> list[BackupInfo]:
        """Return the backups in the backup folder, newest first."""
        return self.backups_of(self.settings.db_path).list_backups()

    def open_backup(self, target: Target, ram: RamFolder) -> Backup:
        """Open the backup that was named or is chosen, and see that it may be restored, and that there is room for it.

        Where it was chosen by its time, and has a fault, the next one is offered.
        """
        if self.options.backup_file is None:
            with self.turn.waiting(ANSWER):
                self.options.backup_file = choose_backup(self.selection.backups(), self.selection.places, self.terminal)
            self.options.from_ = None
        while True:
            try:
                backup = self.open_file(self.options.backup_file, target, ram)
            except errors.OperatorError as error:
                self.options.backup_file = self.choose_another(error)
            else:
                break
        if not self.options.verify_only:
            self.check_memory(target, backup)
            target.refuse_unreplaceable(backup.size)
        return backup

    def choose_another(self, error: errors.OperatorError) -> Path:
        """Return the backup that is taken in place of one with a fault; raise the error when none is."""
        with self.turn.waiting(ANSWER):
            return self.selection.another(error, self.terminal)

    def open_file(self, path: Path, target: Target, ram: RamFolder) -> Backup:
        """Open a backup, and look what it is, and who signed it: no other way leads to one that is restored."""
        refuse_unrestorable(path, target.path)
        self.report.backup = str(path)
        backup = self.opened(path, self.image_limit())
        refuse_plain_as_encrypted(backup)
        if backup.expected is None:
            self.report.warn(f"no checksum beside {backup.name}: only its content can tell whether it is whole")
        if backup.here and (self.options.stop_first or (backup.layer == "openpgp" and not self.options.key_stdin)):
            # before services stop, or somebody has to paste a key, for nothing
            with self.console.step("🔎 Checksum...", backup.size) as step, backup.reading(step):
                pass
        self.check_origin(backup, ram)
        return backup

    def opened(self, path: Path, limit: float = math.inf) -> Backup:
        """Open a backup, here or at a remote."""
        return remote.opened(path, self.settings.rclone, limit) if is_elsewhere(path) else BackupFile(path, limit)

    def check_encryption(self, target: Target) -> None:
        """Refuse, without --convert, to replace an encrypted database by a plain one, or the reverse."""
        try:
            target.refuse_other_encryption(encrypted=self.settings.encrypted)
        except errors.EncryptionDiffersError as error:
            if not (self.options.convert or self.options.verify_only):
                raise
            self.report.warn(f"{error}; a restore replaces it with --convert only")

    def check_memory(self, target: Target, backup: Backup) -> None:
        """Refuse early when the restored database, or the safety backup's copy of the live one, would not fit."""
        live = 0 if self.options.skip_backup else size_of_files(target.path)
        need, what = max((live, "the safety backup"), (backup.size, "the restored database"))
        if need > (free := available_memory()):
            raise errors.NoMemoryError(
                f"too little memory: {what} takes at least {megabytes(need)}, and {megabytes(free)} are free",
                hint="Stop other programs, or use a machine with more memory.",
            )

    def compose_file(self, configured: bool) -> Path | None:
        """Return the compose file of the bot, or None when Docker is not to be touched.

        :raises UnusableComposeFileError: when it is not there, or cannot be told.
        """
        if self.options.no_restart or not configured:
            return None
        file = self.options.compose_file
        environment = self.settings.environment
        if file is None and environment is Environment.TEST:
            return None
        if file is None and environment is not None:
            file = self.settings.base_dir / environment.value
        if file is not None and os.path.isfile(file):
            return file
        env_file = self.settings.base_dir / ".env"
        unset = "RUNTIME_ENVIRONMENT is not set" if env_file.exists() else f"there is no {env_file}"
        raise errors.UnusableComposeFileError(
            f"there is no compose file {file}" if file else unset,
            hint="Bring .env back with all its settings (.env.example shows them; RUNTIME_ENVIRONMENT is PROD "
            "or DEV), name the compose file with --compose-file, or use --no-restart when nothing is to be "
            "stopped.",
        )

    def find_bot(self, configured: bool) -> Bot | None:
        """Return the containers of the bot's compose file, or None when Docker is not to be touched."""
        try:
            file = self.compose_file(configured)
        except errors.UnusableComposeFileError as error:
            if self.options.verify_only or not self.terminal.present:
                raise errors.UnusableComposeFileError(
                    f"{error}, so the bot's services are not known", hint=error.hint
                ) from None
            with self.turn.waiting(ANSWER):
                file = self.ask_compose_file(str(error))
            # as options, so that what is printed to be typed next names them, too
            self.options.compose_file, self.options.no_restart = file, file is None
        return Bot.find(file, self.database, self.settings.db_pass) if file else None

    def ask_the_bot(self, bot: Bot) -> None:
        """Compare what the bot's containers have with our settings: what differs is refused, or said by --verify-only.

        :raises RefusedError: naming the setting, or the folders that they have.
        """
        if bot.name is None:
            self.report.warn(
                f"{bot.file.name} has no containers here: whether the bot has {shown(bot.folder)}, and its settings, "
                "could not be looked at"
            )
        try:
            bot.refuse_planted_link(self.options.target_path or self.settings.db_path)
            if not self.options.service:
                bot.refuse_elsewhere()
            bot.refuse_differences(encrypted=self.settings.encrypted)
        except (errors.FolderNotMountedError, errors.SettingsDifferError, errors.UnsuitableTargetError) as error:
            if not self.options.verify_only:
                raise
            self.report.warn(f"a restore would be refused: {error}")

    def ask_compose_file(self, problem: str) -> Path | None:
        """Let the operator name the compose file; None: go on without Docker."""
        known = [self.settings.base_dir / item.value for item in (Environment.PROD, Environment.DEV)]
        choices = [f"production: {known[0]}", f"development: {known[1]}", "another path", "go on without Docker"]
        chosen = self.terminal.choose(f"{problem}. Which compose file runs the bot?", choices)
        if chosen is None:
            raise errors.DeclinedError("no compose file was chosen")
        if chosen == 3:
            return None
        file = known[chosen] if chosen < 2 else Path(self.terminal.ask("Path: ").strip()).expanduser().absolute()
        if not file.is_file():
            raise errors.UnusableComposeFileError(
                f"there is no compose file {file}", hint="Name it with --compose-file."
            )
        return file

    def refuse_users(self, target: Target, bot: Bot | None, stopping: Sequence[Container]) -> None:
        """Refuse when the database is in use by anything but the containers that will be stopped, naming who it is."""
        target.refuse_moved()
        if bot:
            bot.refuse_strangers(stopping)
        if hidden := target.refuse_holders([item.id for item in stopping]):
            self.warn_unseen(target.unseen(hidden))

    def warn_unseen(self, text: str) -> None:
        """Say once that it cannot be told whether the database is in use."""
        if not self.told_unseen:
            self.report.warn(text)
        self.told_unseen = True

    def ram_folder(self) -> RamFolder:
        """Make the RAM folder, and refuse one that could be swapped out to a disk."""
        ram = RamFolder()
        if ram.swappable and not self.options.allow_swap:
            question = "⚠️  Swap is on, and decrypted data could be written to it. Continue?"
            with self.turn.waiting(ANSWER):
                accepted = self.terminal.present and self.terminal.confirm(question)
            if not accepted:
                ram.close()
                raise errors.SwapEnabledError(
                    "swap is on, and decrypted data could be written to it",
                    hint="Run this as root (it then uses memory that is never swapped), turn swap off (swapoff -a), "
                    "or accept it: --allow-swap",
                )
        if left := ram.unprotected():
            self.report.warn(f"swap is on, and to it could be written: {'; '.join(left)}")
        return ram

    def check_origin(self, backup: Backup, ram: RamFolder) -> None:
        """Look who signed the backup.

        :raises DecryptionError: when REQUIRE_SIGNATURE is yes, and it was neither this host nor one that is trusted.
        """
        self.origin = self.signing.origin(backup, ram)
        self.report.signature = self.origin.as_dict()
        if self.settings.require_signature:
            self.origin.refuse_unless_trusted(self.signing.path, backup.path)
        elif self.origin.state in (INVALID, UNKNOWN):
            self.report.warn(self.origin.sentence(backup.name))

    # --- phases 3 and 4: prepare -----------------------------------------------------------------------------

    def prepare(
        self, plan: Plan, ram: RamFolder, cleanup: contextlib.ExitStack
    ) -> tuple[Plan, DatabaseImage, Future[Identity] | None, Contents]:
        """Phases 3 and 4; where the backup was chosen by its time, and has a fault, the next one is offered."""
        self.credentials.keep = self.selection.has_another
        cleanup.callback(self.credentials.forget)
        while True:
            attempt, ahead = cleanup.enter_context(contextlib.ExitStack()), None
            try:
                image = self.decrypt_and_decompress(plan, ram)  # 3
                check = attempt.enter_context(begun_check(image, self.engine))
                ahead = self.write_ahead(plan, image)
                contents = self.check_integrity(check)  # 4
            except errors.OperatorError as error:
                self.options.backup_file = self.choose_another(error)
            else:
                self.credentials.forget()
                return plan, image, ahead, contents
            attempt.close()
            self.start_over(plan, ram, ahead)
            cleanup.callback(self.beside.shutdown)
            plan = replace(plan, backup=self.open_backup(plan.target, ram))
            cleanup.callback(plan.backup.close)

    def start_over(self, plan: Plan, ram: RamFolder, ahead: Future[Identity] | None) -> None:
        """Clear away what a backup with a fault has left, for the next one; its checks are forked before any thread."""
        self.beside.shutdown()
        self.beside = ThreadPoolExecutor(1)
        if ahead:
            drop_quietly(plan.target.candidate)
        for image in ram.path.glob("image-*.db"):
            image.unlink()

    def access(self, backup: Backup, ram: RamFolder) -> Access:
        """Read key and passphrase, and try them on the beginning of the backup.

        :raises DecryptionError: when they do not open it.
        """
        keyring = self.keyring = self.keyring or Keyring(ram)
        beginning = backup.beginning()
        right: list[Secret | None] = []

        def compare_checksum() -> None:  # one that does not match says more than any other error
            if backup.verify():
                self.console.line("✅ Checksum verified")

        def usable(key: ImportedKey) -> ImportedKey:
            try:
                keyring.refuse_unopenable(beginning, backup.size)
            except errors.DecryptionError:
                compare_checksum()
                raise
            return key

        def use(secret: Secret) -> ImportedKey:
            if self.key:
                keyring.forget_private()  # it was another one
            self.key = keyring.import_private(secret)
            secret.wipe()
            self.report.warn(*usable(self.key).warnings)
            return self.key

        def attempt(passphrase: Secret | None) -> None:
            try:
                keyring.try_to_open(beginning, passphrase)
            except errors.WrongPassphraseError:
                raise
            except errors.DecryptionError:
                compare_checksum()
                raise
            right.append(passphrase)

        key = usable(self.key) if self.key else self.credentials.import_key(use)  # there when another backup is tried
        self.credentials.unlock(key, attempt)
        return Access(keyring, key, right[-1])

    def image_limit(self, copies: int = 1) -> int:
        """Bytes that the database may have in memory, so many times, with the cache of the check beside it."""
        room = max(0, available_memory() - MEMORY_BESIDE)
        limit: int = room * 100 // (100 * copies + (30 if self.engine.db_pass else 15))
        return min(limit, self.settings.max_database_bytes or limit)

    def decrypt_and_decompress(self, plan: Plan, ram: RamFolder, access: Access | None = None) -> DatabaseImage:
        """Phase 3: the database in memory; nothing of it counts before gpg has said that it is authentic.

        :param access: what opens the backup, when that was asked for before.
        :raises DecryptionError: wrong key or passphrase, damaged or unauthenticated message.
        :raises UnsoundBackupError: when the gzip layer is damaged.
        """
        backup, limit = plan.backup, self.image_limit()
        if backup.layer == "openpgp":
            image = self.decrypt(backup, access or self.access(backup, ram), ram, limit)
        else:
            if not self.settings.encrypted:
                self.report.warn("the backup is not encrypted")
            image = self.new_image(ram, limit, bare=backup.layer == "database")
            with (
                self.report.phase("decompress"),
                self.console.step("📦 Decompressing...", backup.size) as step,
                backup.reading(step),
            ):
                while piece := backup.read(CHUNK):
                    image.feed(piece)
        image.finish()
        image.refuse_other_content()
        with self.console.step("📦 Decompressing...") as step:
            step.done(megabytes(image.size), recorded="")
        image = self.convert(plan, image, ram)
        self.report.database_bytes = image.size
        if mode := journal_mode(self.engine, plan.target.path, ram.path / "live-page.db"):
            image.set_journal_mode(mode, self.engine)  # as in the database that it replaces
        return image

    def new_image(self, ram: RamFolder, limit: int, *, bare: bool = False) -> DatabaseImage:
        """Return what takes up the decrypted stream: in a buffer, or where SQLCipher can open it."""
        return DatabaseImage(limit, ram.path if self.engine.db_pass else None, bare=bare)

    def decrypt(self, backup: Backup, access: Access, ram: RamFolder, limit: int) -> DatabaseImage:
        """Decrypt with the key and passphrase that open the beginning."""
        fingerprint = access.key.fingerprint
        image = self.new_image(ram, limit)
        with self.report.phase("decrypt"), self.console.step("🔓 Decrypting backup...", backup.size) as step:
            try:
                with backup.reading(step):
                    access.keyring.decrypt(backup, access.passphrase, image.feed, limit)
                image.finish()
                if image.holds_message:  # encrypted twice; a third time is refused
                    outer, image = image, self.new_image(ram, limit := self.image_limit())
                    with outer.opened() as message:
                        access.keyring.decrypt(message, access.passphrase, image.feed, limit)
                    outer.wipe()
            finally:
                if access.passphrase is not None:
                    access.passphrase.wipe()
            step.done(f"key {fingerprint[:4]}…{fingerprint[-4:]}")
        self.report.key_fingerprint = fingerprint
        return image

    def convert(self, plan: Plan, image: DatabaseImage, ram: RamFolder) -> DatabaseImage:
        """Make what an older backup holds a database of the configured mode, in RAM."""
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
        conversion.require_convert_option(source, self.engine, convert=self.options.convert)
        limit = self.image_limit(copies=2)
        converted = self.new_image(ram, limit, bare=True)
        with self.report.phase("convert"), self.console.step("🔁 Converting...", image.size) as step:
            result = conversion.convert(
                image,
                source,
                self.engine,
                ram,
                converted.feed,
                limit=limit,
                listen=self.signals.check,
                progress=step.progress,
            )
            step.done(result.done, recorded="")
        converted.finish()
        self.report.warn(*result.warnings, recorded=FOUND)
        return converted

    def check_integrity(self, check: Sequence[Inspection]) -> Contents:
        """Phase 4: prove that the image is a sound database of the configured mode, and return what it holds.

        :param check: what looks at it, in children that were begun before any thread.
        :raises UnsoundBackupError: saying what is wrong with it.
        """
        with self.report.phase("check"), self.console.step("🔎 Integrity check...") as step:
            whole, beside = check
            contents = Contents.from_json(whole.result(self.signals.check))
            contents.refuse_unsound()
            contents = contents.with_findings(beside.result(self.signals.check))
            step.done(f"ok, {plural(contents.tables, 'table')}", recorded="ok")
        self.report.warn(*(finding.text for finding in contents.findings[:MOST_FINDINGS]), recorded=FOUND)
        if (more := len(contents.findings) - MOST_FINDINGS) > 0:
            self.report.warn(f"{plural(more, 'more finding')} of this kind", recorded=FOUND)
        return contents

    def compare(self, plan: Plan, contents: Contents, ram: RamFolder) -> tuple[str, Kind]:
        """Show what the backup holds beside what the live database holds, and return what will be lost."""
        live, unknown = None, ("there is no live database to compare with", Kind.FACT)
        try:
            live = read_live(self.engine, plan.target.path, ram, self.signals.check)
        except (errors.OperatorError, OSError) as error:
            unknown = ("not known: the live database cannot be read", Kind.WARNING)
            what = "the live database cannot be read"
            self.report.warn(f"{what}: {errors.explain(error)}", recorded=f"{what}: {errors.recorded(error)}")
        self.report.tables = tables_of(live, contents)
        facts = [
            ("size", f"{megabytes(self.report.database_bytes or 0)}, {plural(len(contents.rows), 'table')}"),
            ("format", ", ".join(filter(None, (self.report.format, self.report.conversion)))),
        ]
        if live and live.user_version != contents.user_version:
            facts.append(("version", f"user_version {live.user_version} now, {contents.user_version} in the backup"))
        if live and (changed := differing(live.schema, contents.schema)):
            facts.append(("schema", f"differs: {some_of(changed, 44)}"))
        for text, kind in row_comparison(live, contents) if live else []:
            self.console.line(f"   {text}", kind=kind, record=False)
        for text in in_columns(facts):
            self.console.line(f"   {text}", kind=Kind.FACT, record=False)
        return total_loss(live, contents) if live else unknown

    def show_plan(self, plan: Plan, lost: tuple[str, Kind] | None = None) -> None:
        """Show what will be done: which database is replaced, by what, who is down meanwhile, and what will be lost."""
        made = plan.backup.created
        facts = [
            *([] if self.options.verify_only else [("target", str(plan.target.path))]),
            ("backup", plan.backup.name),
            ("made", f"{instant(made)}, {age(made.timestamp())}"),
            ("signed", str(self.origin)),
            *plan.outlook.items(),
        ]
        if self.options.stop_first and "downtime" in plan.outlook:
            facts.append(("", "and as long as decrypting and checking take (--stop-first)"))
        for line in in_columns(facts):
            self.console.line(f"   {printable(line)}", kind=Kind.FACT)
        if lost:  # last, so that it is still there when the question comes
            self.show_loss(*lost)

    def prove(self, plan: Plan, how: str) -> None:
        """Record that the backup went through all checks; when that cannot be written, a warning says so."""
        if (sha256 := plan.backup.expected) is None:  # known of what was read to its end
            return
        now = datetime.now().astimezone()
        try:
            proofs.record(self.settings.backup_dir, proofs.Proof(sha256, plan.backup.name, now, how))
        except OSError as error:
            self.report.warn(f"no proof of this backup recorded: {errors.explain(error)}")
            return
        if self.options.verify_only:
            noted = shown(self.settings.backup_dir / proofs.NAME)
            self.console.line(f"   {in_columns([('proof', f'recorded in {noted}')])[0]}", kind=Kind.FACT)

    def show_loss(self, text: str, kind: Kind) -> None:
        """Show the total of what will be lost."""
        self.console.line(f"   {in_columns([('lost', text)])[0]}", kind=kind, record=False)

    def confirm(self, plan: Plan, lost: tuple[str, Kind] | None = None) -> None:
        """Ask before anything is touched; DeclinedError unless the answer is yes.

        :param lost: what will be lost, and how that looks, where it is known already.
        """
        if self.options.skip_backup:
            self.report.warn("--skip-backup: the database as it is now will not be kept")
        self.show_plan(plan, lost)
        if self.options.force or (not plan.configured and not plan.target.exists):
            return
        question = (
            f"⚠️  Warning: This will restore over {self.kind_of_database()} database. Continue?"
            if plan.configured
            else f"⚠️  {shown(plan.target.path)} exists. Overwrite?"
        )
        with self.turn.waiting(CONFIRMATION):
            answer = self.terminal.confirm(question)
        self.console.record(f"{question} [y/N] {'y' if answer else 'n'}")
        if not answer:
            raise errors.DeclinedError("not confirmed")

    def kind_of_database(self) -> str:
        """Return which database the configured one is, by the environment or the compose file that was chosen."""
        file = self.options.compose_file
        known = {self.settings.environment, *(item for item in Environment if file and file.name == item.value)}
        if Environment.PROD in known:
            return "production"
        return "development" if Environment.DEV in known else "the configured"

    # --- phase 1 and the new file ----------------------------------------------------------------------------

    def create_safety_backup(self, plan: Plan) -> SafetyBackup:
        """Phase 1: keep what is there now; byte for byte when it cannot be read.

        What no copy can be made of while somebody has it is kept when nobody has any more: it is set aside whole by
        the switch, and :meth:`Switch.clear_away` backs that up before it is removed.

        :raises BackupFailedError: when it could not be kept.
        """
        self.report.begins()
        files = plan.target.change_marker()
        if self.options.skip_backup:
            return SafetyBackup(None, files)
        if not files:
            self.console.line("✅ No database there yet: nothing to back up")
            return SafetyBackup(None, files)
        patience = LOCKED_BOT_SECONDS if plan.stopping else LOCK_SECONDS
        try:
            with self.report.phase("safety backup"):
                path = self.back_up("💾 Pre-restore backup...", plan.target.path, patience=patience)
        except (errors.DatabaseLockedError, errors.DatabaseInUseError) as error:
            if isinstance(error, errors.DatabaseLockedError) and not plan.stopping:
                raise
            self.report.warn(f"{error}: it is backed up when nobody uses it any more, from what the switch sets aside")
            return SafetyBackup(None, [])
        self.console.line(f"✅ Pre-restore backup created: {shown(path)}")
        for line in self.signing.announced():
            self.console.line(line)
        return SafetyBackup(path, files)

    def backups_of(self, database: Path, **options: Any) -> DatabaseBackup:
        """Return what makes and lists the backups of a database; see its class for the options."""
        shared: dict[str, Any] = {"settings": self.settings, "engine": self.engine, "signing": self.signing}
        return DatabaseBackup(database, self.settings.backup_dir, **shared, **options)

    def back_up(self, label: str, database: Path, *, quiet: bool = False, patience: float = LOCK_SECONDS) -> Path:
        """Back a database up, or its files byte for byte when it cannot be read; note the path in the report.

        :param patience: seconds that a lock of somebody's is waited for.
        :raises DatabaseLockedError, DatabaseInUseError: when no copy can be made while somebody has it.
        :raises BackupFailedError: when neither works.
        """
        backups = self.backups_of(database, locked=True, quiet=quiet, patience=patience, kind=BEFORE_A_RESTORE)
        try:
            with self.console.step(label, size_of_files(database)) as step:
                backups.progress, backups.say = step.progress, step.say
                backups.found = partial(step.say, record=f"⚠️  {FOUND}")
                try:
                    path = backups.create_backup()
                except errors.UnreadableDatabaseError as error:
                    what = "its files are saved unchanged"
                    self.report.warn(f"{error}; {what}", recorded=f"{error.recorded}; {what}")
                    path = backups.create_raw_backup()
        except (errors.DatabaseLockedError, errors.DatabaseInUseError):
            raise
        except (errors.OperatorError, OSError) as error:
            raise errors.BackupFailedError(
                f"no safety backup: {errors.explain(error)}",
                hint=getattr(error, "hint", ""),
                recorded=f"no safety backup: {errors.recorded(error)}",
            ) from None
        self.report.safety_backup = str(path)
        return path

    def write_ahead(self, plan: Plan, image: DatabaseImage) -> Future[Identity] | None:
        """Begin to write the new file beside the check, when nobody has to agree first; None when somebody has."""
        ahead = self.options.force and not self.options.verify_only and image.size
        return self.beside.submit(self.write_candidate, plan, image) if ahead else None

    def write_candidate(
        self, plan: Plan, image: DatabaseImage, progress: Callable[[int], object] = lambda _: None
    ) -> Identity:
        """Write the new file beside the target."""
        with self.report.phase("write"):
            return plan.target.write_candidate(image, plan.user, progress)

    def finish_candidate(self, plan: Plan, image: DatabaseImage, ahead: Future[Identity] | None) -> Identity:
        """Return the new file, written now or begun before; the image in memory is not needed any more."""
        with self.console.step("💽 Writing the new database...", None if ahead else image.size) as step:
            candidate = ahead.result() if ahead else self.write_candidate(plan, image, step.progress)
        image.wipe()
        return candidate

    # --- phases 2, 5 and 6: switch ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def switch(self, plan: Plan, safety: SafetyBackup) -> Iterator[Switch]:
        """From here nothing interrupts; whatever fails is taken back."""
        self.signals.shield()
        journal = Journal(
            target=plan.target.path,
            state="begun",
            set_aside=plan.target.new_set_aside(),
            candidate=plan.target.candidate,
            existed=plan.target.exists,
            new_inode=None,
            containers=tuple(item.name for item in plan.stopping),
            unhealthy=tuple(item.name for item in plan.stopping if item.health == "unhealthy"),
            safety_backup=safety.path,
            unsaved=not self.options.skip_backup,
            started=datetime.now().astimezone().isoformat(timespec="seconds"),
            backup=str(plan.backup.path),
            made=plan.backup.created.isoformat(),
        )
        switch = self.switch_of(journal, plan.bot)
        self.turn.say(SWITCHING)
        switch.begin()
        with self.report.phase("switch"):
            try:
                yield switch
            except BaseException as error:
                switch.roll_back(error)
                raise
        self.report.outcome = "restored"
        switch.clear_away(RESTORED)
        self.prove(plan, proofs.RESTORED)

    def switch_of(self, journal: Journal, bot: Bot | None) -> Switch:
        """Return the switch that a journal describes."""
        return Switch(
            journal,
            bot if journal.containers else None,
            self.engine,
            self.report,
            self.back_up,
            recover_command=errors.restore_command("--recover"),
            backup_dir=self.settings.backup_dir,
        )

    def stop_services(self, plan: Plan, switch: Switch) -> None:
        """Phase 2: stop the services that run, and make sure that nobody has the database open.

        :raises CannotStopError: when one still runs, or the database is still in use.
        """
        switch.stop_services()
        try:
            self.refuse_users(plan.target, plan.bot, ())
        except (OSError, errors.OperatorError) as error:
            raise errors.CannotStopError(
                errors.explain(error), hint=getattr(error, "hint", errors.CHECK_DISK)
            ) from None

    def swap(self, plan: Plan, switch: Switch, candidate: Identity, safety: SafetyBackup) -> None:
        """Phase 5: the old database gets a second name, the new one takes its first.

        :raises OperatorError: when it fails; the old one is then put back.
        """
        with self.report.phase("swap"), self.console.step("⚙️  Swapping...") as step:
            unsaved = not self.options.skip_backup and plan.target.change_marker() != safety.files
            switch.exchange(candidate, lambda: self.refuse_users(plan.target, plan.bot, ()), unsaved=unsaved)
            journal = switch.journal
            where = f"old database set aside: {shown(journal.set_aside)}" if journal.existed else shown(journal.target)
            step.done(where)

    def cleanup_and_restart(self, plan: Plan, switch: Switch) -> None:
        """Phase 6: start the services that ran; the restore counts when they are up and the database is sound.

        :raises OperatorError: when not; the old database is then put back.
        """
        with contextlib.closing(self.engine.look(plan.target.path, immutable=True)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
        restored = {name: rows["backup"] for name, rows in self.report.tables.items() if rows["backup"] is not None}
        self.report.rows = {**restored}
        if plan.stopping:
            switch.start_services()
            switch.check_live(restored)
        plan.target.refuse_moved()
        switch.commit()

    # --- recovery --------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Only finish or undo a restore that was interrupted."""
        target = self.resolve_target()
        Journal.load(target)
        with contextlib.ExitStack() as alone:
            with contextlib.suppress(errors.CannotWriteError):  # on a full disk the lock on the folder must do
                alone.enter_context(taking_turn(target.lock_file)).say(RECOVERING)
            alone.enter_context(target.lock(self.console.line))
            self.report.begins()
            switch = self.interrupted(target)
            pending = switch and switch.journal.containers and self.options.no_restart
            if switch and pending:
                self.settle(switch)
            elif switch:
                switch.resume()
            try:
                target.clear_leftovers()
            except OSError as error:
                self.report.warn(f"{errors.explain(error)}; clean up with: {errors.restore_command('--recover')}")
            with contextlib.suppress(OSError):
                self.backups_of(target.path).remove_leftovers()
        if not switch:
            self.console.line("✅ Nothing to recover: there is no journal of an interrupted restore")
            self.report.warn(*told_of_leftovers(target))
        self.report.outcome = "services pending" if pending else "recovered" if switch else "nothing to recover"

    def settle(self, switch: Switch) -> None:
        """Put the files right without Docker; the services are left to the next run, for which the journal stays."""
        switch.settle_files()
        journal = switch.journal
        sign, whole = ("✅", ", and whole") if journal.live() in ("new", "old") else ("⚠️ ", "")
        self.console.line(f"{sign} {journal.what_is_live}{whole}")
        self.console.line(f"⏳ To finish, with the services: {errors.same_command(without={'no_restart'})}")

    def recover_first(self, target: Target) -> tuple[str, ...]:
        """Recover before a restore; return the services that did not come up again.

        The database is whole then, and another backup may be just what they need: that must not be in its way.
        """
        if not Journal.load(target):
            self.report.warn(*told_of_leftovers(target))
            return ()
        self.turn.say(RECOVERING)
        with target.lock(self.console.line):
            pending = self.recover_locked(target)
        self.signals.install()  # that was the end of the other run: this one can be left again
        self.turn.say(AT_WORK)
        return pending

    def recover_locked(self, target: Target) -> tuple[str, ...]:
        """The same, once no backup is made by others."""
        switch = self.interrupted(target)
        if not switch:
            return ()
        pending: tuple[str, ...] = ()
        try:
            switch.resume()
        except errors.ServicesDownError as error:
            self.report.warn(f"{error}; they will be started after this restore")
            if switch.journal.state == "committed":
                switch.clear_away(SERVICES_DOWN)
            pending = switch.journal.containers
        return pending

    def interrupted(self, target: Target) -> Switch | None:
        """Return the switch of a restore that was interrupted, and let nothing interrupt from here; None without one.

        :raises OperatorError: when it cannot be finished or undone yet; it can be tried again.
        """
        journal = Journal.load(target)
        if not journal:
            return None
        if journal.disputed:
            raise errors.UnfinishedRestoreError(
                f"{target.path} matches neither the restored nor the previous database, which is {journal.set_aside}; "
                "probably replaced manually after a restore was interrupted, or the folder came back from a copy",
                hint=f"To stay with it, once you have looked: rm {quoted(shown(target.journal))}. To go back to the "
                "old one, follow section 7 of RUNBOOK.md.",
            )
        refuse_forged_exchange(journal)
        self.signals.shield()
        self.console.line(f"🩹 A {journal.what_happened}")
        # refused here when Docker does not answer: that is no reason to undo a restore
        asked = journal.containers or journal.forgeable
        bot = self.find_bot(self.is_configured(target.path)) if asked else None
        if journal.containers and not bot:
            names = printable(", ".join(journal.containers))
            self.report.warn(f"Docker is not touched: {names}, stopped by that restore, may still have to be started")
        self.report.warn(*within_reach(journal, bot, self.options.service))
        return self.switch_of(journal, bot)


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
  cat key.b64 | ssh host 'cd shopbot && PATH=.venv/bin:$PATH python \\
      restore_backup.py FILE --force --key-stdin \\
      --passphrase-command "cat /run/secrets/passphrase"'
      without a terminal

exit codes:
{codes}
  After 2 to 6, 10 and 129 to 143 nothing was touched.

settings (from the environment, else from .env beside the script):
  RUNTIME_ENVIRONMENT, DB_NAME, DATA_DIR, DB_ENCRYPTION (true or false,
  nothing else), DB_PASS, DB_BACKUP_PATH, DB_BACKUP_RETENTION_DAYS,
  BACKUP_KEEP, BACKUP_REMOTES, BACKUP_MAX_AGE_HOURS, PGP_PUBLIC_KEY_BASE64,
  SIGNING_DIR, REQUIRE_SIGNATURE, MAX_DATABASE_MB, PING_URL, NOTIFY_URLS
"""


def named_file(name: str) -> Path:
    """Return the backup that was named: where no file has that name, it may be REMOTE:PATH, or the newest one."""
    path = Path(name)
    return path if (path == LATEST or is_elsewhere(path)) and not os.path.lexists(name) else absolute(name)


def absolute(path: str) -> Path:
    """Return a path on the command line, which is relative to the current folder."""
    return Path(path).absolute()


def command_line() -> CommandLine:
    """Return the parser of the command line."""
    codes = [textwrap.fill(f"{code:3d}  {code.meaning}", 78, subsequent_indent=" " * 5) for code in errors.ExitCode]
    parser = CommandLine(
        prog="restore_backup.py",
        usage="%(prog)s [options] [backup_file]",
        description=DESCRIPTION,
        epilog=EXAMPLES.format(codes="\n".join(codes)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    what = "the backup: .db.gz.gpg, .db.gz or .db, latest, or REMOTE:PATH through rclone; left out: a menu"
    parser.add_argument("backup_file", nargs="?", type=named_file, help=what)
    parser.add_argument(
        "--at", metavar="TIME", help="the newest backup until then, as '2025-01-30 14:00', '2 hours ago'"
    )
    parser.add_argument("--from", dest="from_", metavar="PLACE", help="look for it at local, or one of BACKUP_REMOTES")
    group = parser.add_argument_group("key and passphrase")
    add = group.add_argument
    add("--key-stdin", action="store_true", help="read the private key from standard input: base64, armored or binary")
    either = group.add_mutually_exclusive_group().add_argument
    either("--passphrase-fd", type=int, metavar="N", help="read the passphrase from this file descriptor")
    either("--passphrase-command", metavar="CMD", help="run this (no shell); its first line is the passphrase")
    add("--allow-swap", action="store_true", help="go on though decrypted data could be swapped out to a disk")
    add = parser.add_argument_group("what is restored, and how").add_argument
    add("--target-path", type=absolute, metavar="PATH", help="restore there; Docker is touched for the bot's only")
    add("--force", action="store_true", help="do not ask for confirmation")
    add("--skip-backup", action="store_true", help="make no safety backup (dangerous)")
    add("--stop-first", action="store_true", help="stop the services first, then decrypt and check")
    group = parser.add_argument_group("backups of older versions of the bot")
    group.add_argument(
        "--convert", action="store_true", help="restore SQLCipher 1-3, or from or over the other mode, as configured"
    )
    either = group.add_mutually_exclusive_group().add_argument
    either("--backup-db-pass", action="store_true", help="ask for the DB_PASS that the backup was made under")
    either("--backup-db-pass-fd", type=int, metavar="N", help="read that DB_PASS from this file descriptor")
    add = parser.add_argument_group("services").add_argument
    add("--no-restart", action="store_true", help="do not touch Docker at all: neither stop nor start")
    add("--compose-file", type=absolute, metavar="PATH", help="the compose file that runs the bot")
    add(
        "--service",
        action="append",
        metavar="NAME",
        help="stop this one (repeatable), not those that have the database",
    )
    add = parser.add_argument_group("instead of a restore").add_mutually_exclusive_group().add_argument
    add("--verify-only", action="store_true", help="decrypt, check and compare the backup; touch nothing")
    add("--check", action="store_true", help="look at what a restore needs, without the key; touch nothing here")
    add("--recover", action="store_true", help="only finish or undo a restore that was interrupted")
    add("--list", action="store_true", help="show the backups, and how the last restore ended")
    add("--drill", action="store_true", help="prove with sample data that the tool works here; touch nothing of yours")
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print one JSON object on standard output at the end")
    return parser


def parse(argv: list[str] | None) -> Options:
    """Parse the command line; UsageError when it cannot be understood."""
    parser = command_line()
    if "_ARGCOMPLETE" in os.environ:  # set by the shell while it completes a command line
        import argcomplete

        argcomplete.autocomplete(parser)
    options: Options = parser.parse_args(argv, namespace=Options())
    readers = {"--key-stdin": 0 if options.key_stdin else None}
    readers |= {"--passphrase-fd": options.passphrase_fd, "--backup-db-pass-fd": options.backup_db_pass_fd}
    for one, other in itertools.combinations(readers, 2):
        if readers[one] is not None and readers[one] == readers[other]:
            parser.error(f"{one} and {other} both read file descriptor {readers[one]}")
    if wrong := contradiction(options):
        parser.error(wrong)
    typed.remember(options)
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    open_streams()
    signals = Signals()
    signals.install()
    as_json = "--json" in (sys.argv if argv is None else argv)  # also when the rest cannot be understood
    report = Report(Console(as_json=as_json), signals)
    watchers = Watchers(report)
    with report.failures():
        options = parse(argv)
        harden_process()
        remove_leftovers()
        if not (options.verify_only or options.list or options.check or options.drill):
            watchers.watch("recover" if options.recover else "restore", survey_settings()[0])
        run(options, report)
    if as_json:
        report.console.json(report.as_dict())
    watchers.end()
    report.console.close()
    close_streams()
    return report.exit_code


def run(options: Options, report: Report) -> None:
    """Do what the command line asks for."""
    if options.drill:
        from backuplib import drill

        report.drill = drill.run(report.console, Path(inspect.getfile(DatabaseBackup)))
        report.outcome = "drill passed"
        return
    say = report.console.line
    passphrase = read_descriptor(options.passphrase_fd, "--passphrase-fd", say)
    db_pass = read_descriptor(options.backup_db_pass_fd, "--backup-db-pass-fd", say)
    if options.list:
        show_list(options, report)
        return
    if options.check:
        check(options, report)
        return
    terminal = Terminal()
    credentials = Credentials(
        terminal,
        key_stdin=options.key_stdin,
        passphrase=passphrase,
        passphrase_command=options.passphrase_command,
        db_pass=db_pass,
        ask_db_pass=options.backup_db_pass,
        say=say,
    )
    with terminal.held(report.signals):
        restore(options, report, terminal, credentials)


def check(options: Options, report: Report) -> None:
    """Look at what a restore with these options would need, without the key; nothing is asked, nothing touched."""
    from backuplib import doctor

    if options.backup_file and is_elsewhere(options.backup_file):
        raise errors.UsageError(
            "--check looks at the backups here, and whether each remote answers",
            hint=f"To check that one: {errors.restore_command('--verify-only', str(options.backup_file))}",
        )
    settings, wrong = survey_settings()
    settings.with_open_folder()  # or it is refused, as a restore would be
    enter_private_mounts()
    terminal = Terminal()
    asking_nothing = replace(options, verify_only=True)
    restorer = Restorer(settings, asking_nothing, terminal=terminal, credentials=Credentials(terminal), report=report)
    named = options.target_path or settings.db_path
    target = Path(os.path.realpath(named))
    backups = restorer.backups_of(target)
    subject = doctor.Subject(
        env_file=settings.base_dir / ".env",
        warnings=settings.warnings,
        wrong=wrong,
        target=named,
        db_pass=settings.db_pass,
        backup_dir=settings.backup_dir,
        backup_file=None if options.backup_file == LATEST else options.backup_file,
        public_key=settings.public_key,
        signing=restorer.signing,
        require_signature=settings.require_signature,
        services=options.service,
        skip_backup=options.skip_backup,
        allow_swap=options.allow_swap,
        convert=options.convert,
        memory_limit=restorer.image_limit(),
        max_age_hours=settings.max_age_hours,
        find_bot=lambda: restorer.find_bot(restorer.is_configured(target)),
        list_backups=backups.list_backups,
        recipients=backups.recipients,
        remotes=remote.remotes(settings.remotes, settings.rclone),
    )
    doctor.run(subject, report)


def show_list(options: Options, report: Report) -> None:
    """Show the backups, and how the last restore ended."""
    settings = load_settings().with_open_folder()
    report.warn(*settings.warnings)
    backups = DatabaseBackup(settings.db_path, settings.backup_dir, settings=settings)
    places = Places.of(settings.backup_dir, remotes(settings.remotes, settings.rclone), options.from_)
    report.backups = show_backups(report, places.backups(backups.list_backups, report.warn), places)
    restores = show_restores(report.console, Target(Path(os.path.realpath(settings.db_path))), settings.backup_dir)
    report.running, report.interrupted, report.last_restore = restores
    report.outcome = "listed"


def restore(options: Options, report: Report, terminal: Terminal, credentials: Credentials) -> None:
    """Restore, only verify, or only recover."""
    console, settings = report.console, load_settings()
    report.warn(*settings.warnings)
    enter_private_mounts()
    settings = settings.with_open_folder()
    restorer = Restorer(settings, options, terminal=terminal, credentials=credentials, report=report)
    if options.verify_only:
        restorer.restore()
        console.result("✅ Backup verified: it can be restored. The database was not touched.", kind=Kind.DONE)
        return
    log = console.log_to(settings.backup_dir)
    report.log = str(log) if log else None
    began = time.monotonic()
    if options.recover:
        restorer.recover()
    else:
        restorer.restore()
        console.result("✅ Database restored successfully", kind=Kind.DONE)
        for line in summary(report, time.monotonic() - began):
            console.result(f"   {line}", kind=Kind.FACT, record=not line.startswith("rows "))
    console.record(f"{OUTCOME}{report.outcome}")


def summary(report: Report, seconds: float) -> list[str]:
    """Return the lines of the report at the end of a restore; the undo fits into 80 columns, so as to be copied."""
    rows, tables = sum(rows or 0 for rows in report.rows.values()), len(report.rows)
    facts = [
        ("backup", shown(Path(report.backup))),
        ("into", f"{shown(Path(report.target))}, in {seconds:.1f} s"),
        ("rows", f"{rows:,} in {plural(tables, 'table')}"),
    ]
    if report.downtime_seconds is not None:
        facts.append(("down", f"for {report.downtime_seconds:.1f} s"))
    if report.safety_backup:
        kept = Path(report.safety_backup)
        facts.append(("kept", shown(kept)))
        if ".raw.tar" in kept.name:
            facts.append(("to rescue", errors.rescue_command(kept)))
        else:
            facts.append(("to undo", errors.restore_command(shown(kept))))
    if report.log:
        facts.append(("log", shown(Path(report.log))))
    return aligned(facts)


def in_columns(facts: Sequence[tuple[str, str]]) -> list[str]:
    """Return facts as lines, below each other wherever they are printed."""
    return aligned([(f"{name:<8}", text) for name, text in facts])


if __name__ == "__main__":
    sys.exit(main())
