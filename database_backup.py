#!/usr/bin/env python3
"""Encrypted backups of the bot's SQLite or SQLCipher database.

A backup is a complete, consistent database file (committed WAL content included), compressed with gzip and encrypted
with OpenPGP, beside it a checksum in the format of sha256sum.
"""

from __future__ import annotations

import argparse
import contextlib
import copy as copying
import fcntl
import functools
import hashlib
import io
import logging
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import backuplib.own_config  # noqa: F401 - refuses a bot's config.py before it is imported below
from backuplib import errors, files
from backuplib.armor import Readable
from backuplib.backup_file import (
    ORDINARY,
    BackupFile,
    BackupInfo,
    backup_time,
    checksum_path,
    checksum_text,
    recorded_signature,
    text_beside,
)
from backuplib.changes import Changes
from backuplib.command_line import CommandLine
from backuplib.console import Console, Report
from backuplib.database import (
    Engine,
    anchored_database,
    begun_check_of,
    check_database,
    database_files,
    refuse_irregular,
    sidecars,
    size_of_files,
)
from backuplib.folder import anchored_folder, moved
from backuplib.formatting import age, quoted, shortened, shown
from backuplib.gzip_stream import GzipDecoder, GzipReader
from backuplib.inspection import Inspection
from backuplib.listing import show_backups, who_opens
from backuplib.locks import LOCK_SECONDS, TRY_SECONDS, is_locked, lock_holders, locked
from backuplib.notify import Watchers
from backuplib.openpgp import Keyring, Recipient
from backuplib.processes import Signals, close_streams, find_holders, harden_process, lock_owner, open_streams
from backuplib.pruning import Rule, decide_here, prune_here, prune_remotes, remove_here
from backuplib.pushing import push_missing, push_new
from backuplib.ram_folder import RamFolder, enter_private_mounts, remove_leftovers
from backuplib.remote import remotes
from backuplib.retention import Policy
from backuplib.selection import Places
from backuplib.signing import SigningFolder
from config import Settings, load_settings, survey_settings

if TYPE_CHECKING:
    import sqlite3

P = ParamSpec("P")

logger = logging.getLogger(__name__)

WATCHED = ("create", "push", "prune")  # commands whose end is told to PING_URL and NOTIFY_URLS
PAGES_AT_ONCE = 4096  # of the copy, between two looks for a signal


def _in_its_folders(
    create: Callable[Concatenate[DatabaseBackup, P], Path],
) -> Callable[Concatenate[DatabaseBackup, P], Path]:
    """Open the folder of the database, and what it is there, once for all that is done, whatever is renamed meanwhile.

    Where a backup is made, by its caller's name of the folder, is what is returned.
    """

    @functools.wraps(create)
    def run(self: DatabaseBackup, /, *args: P.args, **kwargs: P.kwargs) -> Path:
        held = copying.copy(self)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # which is told with what to do
            held.db_path = anchored_database(self.db_path)
        made = create(held, *args, **kwargs)
        if text := moved(made) or moved(held.db_path):
            hint = "Find out who does that, and where that folder is now."
            raise errors.BackupFailedError(f"{text}; the backup {made.name} is in it", hint=hint)
        return self.backup_dir / made.name

    return run


class DatabaseBackup:
    """Makes, lists, verifies and removes backups of one database.

    :param settings: passphrase and public key; read with :func:`config.load_settings` when left out.
    :param engine: opens the database; one that has opened it before knows its key already.
    :param locked: the caller holds the lock on the database's folder (a restore does).
    :param quiet: nobody has the database open; without sidecars it is read without making any.
    :param patience: seconds that a lock of somebody's is waited for.
    :param kind: of the backups that it makes, recorded beside them.
    :param signing: where the key is that signs them; None: they are not signed.
    """

    def __init__(
        self,
        db_path: Path | str,
        backup_dir: Path | str,
        *,
        settings: Settings | None = None,
        engine: Engine | None = None,
        locked: bool = False,
        quiet: bool = False,
        patience: float = LOCK_SECONDS,
        kind: str = ORDINARY,
        signing: SigningFolder | None = None,
    ) -> None:
        self.db_path = (db_path if isinstance(db_path, Path) else Path(db_path)).absolute()
        self.backup_dir = (backup_dir if isinstance(backup_dir, Path) else Path(backup_dir)).absolute()
        self._settings = settings or _load_settings()
        self._engine = engine or Engine(self._settings.db_pass)
        self._locked = locked
        self._quiet = quiet
        self._patience = patience
        self._kind = kind
        self._signing = signing
        self.progress: Callable[[int], object] = lambda _: None  # is told how many bytes of the database have been read
        self.say: Callable[[str], object] = logger.warning  # is told what is waited for, and odd
        self.found: Callable[[str], object] | None = None  # is told what the check of the copy finds; None: ``say`` is

    @_in_its_folders
    def create_backup(self, compress: bool = True, encrypt: bool = True) -> Path:
        """Back up the database, consistent even while it is written to, and return the backup's path.

        It is copied under SQLite's own lock, and the copy is checked before it is stored. No plaintext of an encrypted
        backup is written to a disk. The file, of mode 0600 and the folder's owner's, appears when it is complete.

        :param encrypt: False: not even where a public key is configured.
        :raises UnusablePublicKeyError: when a public key has expired, is revoked, or cannot encrypt.
        :raises DatabaseLockedError: when somebody holds the database locked, naming who.
        :raises BackupFailedError: when it cannot be read or is not sound, or the backup cannot be written.
        :raises RefusedError: when there is no RAM folder that holds a copy.
        """
        if encrypt:
            self.recipients()
        if not self.db_path.is_file():
            raise errors.UnreadableDatabaseError(
                f"there is no database {self.db_path}", hint="Check DATA_DIR and DB_NAME in .env."
            )
        if not self.db_path.stat().st_size:  # opening it would delete the sidecars beside it
            raise errors.UnreadableDatabaseError(f"{self.db_path} is empty")
        refuse_irregular(sidecars(self.db_path))
        need = size_of_files(self.db_path)
        with self._no_restore_meanwhile(), RamFolder(need + files.CHUNK) as ram:
            copy = ram.path / "copy.db"
            try:
                files.create_file(copy).close()
                self._when_unlocked(lambda: self._copied(copy))
            except self._engine.errors as error:
                raise errors.UnreadableDatabaseError(
                    f"cannot read {self.db_path} as a {self._engine.name} database: {error}",
                    hint="Check DB_ENCRYPTION and DB_PASS in .env.",
                ) from None
            with contextlib.closing(begun_check_of(self._engine, copy)) as check:  # beside compression and encryption
                prove = functools.partial(self._say_or_refuse, check)
                return self._store(copy, ".db", ram, compress=compress, encrypt=encrypt, prove=prove)

    def recipients(self) -> list[Recipient]:
        """Return the public keys that backups are encrypted to.

        :raises WrongSettingError: when they are no public keys, or one of them cannot encrypt, naming it.
        """
        if not self._settings.public_key:
            return []
        with RamFolder(files.CHUNK) as ram:
            return Keyring(ram).import_public(self._settings.public_key)

    def signer(self) -> bytes:
        """Return the public half of the key that the next backup is signed with; empty where it will not be signed.

        Something else where that is not known, or there is no key yet.
        """
        if not self._signing:
            return b""
        try:
            return self._signing.public_halves()[0] or b"a new key"
        except (errors.OperatorError, OSError):
            return b"not known" if self._settings.require_signature else b""

    def signer_of(self, backup: Path) -> bytes:
        """Return the same of a backup that has just been made."""
        with contextlib.suppress(errors.ChecksumUnreadableError):
            return self.signer() if recorded_signature(text_beside(backup) or "") else b""
        return b"unreadable"

    def refuse_unsignable(self) -> None:
        """Refuse, because of REQUIRE_SIGNATURE, when a backup could not be signed.

        :raises CannotSignError: saying why.
        """
        if self._signing and self._settings.require_signature:
            with RamFolder(files.CHUNK) as ram:
                self._signature("", ram)

    @_in_its_folders
    def create_raw_backup(self) -> Path:
        """Save the database's files byte for byte, sidecars included, as a tar: for one that cannot be read.

        :raises DatabaseInUseError, DatabaseLockedError: when somebody has them open, naming who.
        :raises BackupFailedError: when the files cannot be read or the backup cannot be written.
        """
        paths = database_files(self.db_path)
        if holders := find_holders(paths)[0]:
            raise errors.DatabaseInUseError(f"{self.db_path} is in use by {', '.join(map(str, holders))}")
        with RamFolder(sum(path.stat().st_size for path in paths) + files.CHUNK) as ram:
            copy = ram.path / "raw.tar"
            try:
                self._when_unlocked(lambda: self._copied_as_they_are(paths, copy))
            except OSError as error:
                raise errors.BackupFailedError(
                    f"cannot read {self.db_path}: {error.strerror}",
                    hint=f"Check: ls -l {quoted(self.db_path)}; dmesg | tail. When it is unrecoverable, restore "
                    "without keeping it: --skip-backup",
                ) from None
            return self._store(copy, ".raw.tar", ram)

    def verify_backup(self, path: Path | str) -> str:
        """Check a backup as far as that goes without the private key, and say how far that was.

        :raises RefusedError: when the checksum does not match or the file is not there.
        :raises UnsoundBackupError: when an unencrypted backup does not hold a sound database.
        """
        with contextlib.closing(BackupFile(Path(path))) as backup:
            signed = [self._origin(backup)] if self._signing else []
            checksum = "; ".join(["checksum ok" if backup.verify() else "no checksum beside it", *signed])
            verify_only = errors.restore_command("--verify-only", shown(backup.path))
            if backup.layer == "openpgp":
                return f"{checksum}; content not checked: that needs the key: {verify_only}"
            with RamFolder(files.CHUNK) as ram:
                copy = ram.path / "copy.db"
                with files.create_file(copy) as target:
                    room = ram.free // 10 * 9
                    decoder = GzipDecoder(target.write, min(room, self._settings.max_database_bytes or room))
                    feed = decoder.feed if backup.layer == "gzip" else target.write
                    backup.rewind()
                    for piece in iter(lambda: backup.read(files.CHUNK), b""):
                        feed(piece)
                    if backup.layer == "gzip":
                        decoder.finish()
                try:
                    result, found = check_database(self._engine, copy)
                    return "; ".join([checksum, result, *found])
                except (
                    errors.UnsoundBackupError
                ) as error:  # an SQL dump, an older SQLCipher: a restore tells what it is
                    error.hint = f"If the bot was older then, it may restore all the same: {verify_only}"
                    raise

    def _origin(self, backup: BackupFile) -> str:
        with RamFolder(files.CHUNK) as ram:
            return self._signing.origin(backup, ram).sentence("it") if self._signing else ""

    def list_backups(self) -> list[BackupInfo]:
        """Return what restores in the backup folder, newest first, whatever its name.

        :raises RefusedError: when the folder cannot be read.
        """
        try:
            names = os.listdir(self.backup_dir)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise errors.RefusedError(
                f"cannot read the folder {self.backup_dir}: {error.strerror}",
                hint=f"Check: ls -ld {quoted(self.backup_dir)}; or run this as root.",
            ) from None
        found = filter(None, (BackupInfo.of(self.backup_dir / name) for name in names))
        return sorted(found, key=lambda backup: (backup.created, backup.path.name), reverse=True)

    def cleanup_old_backups(self, retention_days: int) -> list[Path]:
        """Remove backups of our names older than that many days, and return their paths.

        What :mod:`backuplib.pruning` keeps in any case stays: the newest one, for one.

        :raises RefusedError: when one cannot be removed, saying how many were.
        """
        rule = self.retention(Policy.younger_than(retention_days), bots_too=True)
        return [*remove_here(decide_here(rule, self.list_backups()))]

    def retention(self, policy: Policy, *, bots_too: bool) -> Rule:
        """Return what is kept by a policy, and whatever that says; RefusedError when it cannot be told what was proved.

        :param bots_too: SQL dumps of the bot's are removed, too.
        """
        return Rule.of(policy, self.db_path, self.backup_dir, bots_too=bots_too, warn=self.say)

    @contextlib.contextmanager
    def _no_restore_meanwhile(self) -> Iterator[None]:
        """Share the lock that a restore takes for itself."""
        folder = files.open_folder(self.db_path.parent)
        try:
            if not self._locked and not files.flock(folder, fcntl.LOCK_SH):
                raise errors.LockedError(
                    f"a restore is running in {self.db_path.parent}: {lock_owner(folder)}",
                    hint="Make the backup when the restore has ended.",
                )
            yield
        finally:
            os.close(folder)

    def _when_unlocked(self, attempt: Callable[[], bool]) -> None:
        """Try again while somebody holds a lock that is in the way; DatabaseLockedError when that takes too long."""
        until, told = time.monotonic() + self._patience, False
        while not attempt():
            who = lock_holders(database_files(self.db_path))
            if not told:
                self.say(f"⏳ Waiting for a lock held by {who}, up to {self._patience:.0f} s")
                told = True
            if time.monotonic() > until:
                raise errors.DatabaseLockedError(
                    f"{self.db_path} is locked by {who}",
                    hint="Try again when it has finished. With PRAGMA locking_mode=EXCLUSIVE it has to be stopped.",
                )
            time.sleep(TRY_SECONDS)

    def _copied(self, copy: Path) -> bool:
        """Copy the database under SQLite's lock, or return False while somebody else's is in the way."""
        try:
            with (
                contextlib.closing(self._open_source()) as source,
                contextlib.closing(self._engine.connect(copy, key_of=self.db_path)) as target,
            ):
                source.execute("BEGIN")  # from here on it is one state, and nothing is waited for
                source.execute("PRAGMA schema_version").fetchone()  # no more: the schema may take a newer SQLite
                target.execute("PRAGMA journal_mode=OFF")
                target.execute("PRAGMA synchronous=OFF")
                source.backup(target, pages=PAGES_AT_ONCE, progress=lambda *_: None)  # which lets signals through
        except self._engine.errors as error:
            if is_locked(error):
                return False
            if not self.db_path.with_name(f"{self.db_path.name}-journal").exists():
                raise
            return self._copied_with_journal(copy)
        return True

    def _open_source(self) -> sqlite3.Connection:
        if self._quiet and not sidecars(self.db_path):
            return self._engine.connect(self.db_path, mode="ro", immutable=True)
        return self._engine.connect_reader(self.db_path, timeout=TRY_SECONDS)

    def _copied_with_journal(self, copy: Path) -> bool:
        """Copy the database and the journal of a writer that was killed, and roll that back in the copy alone."""
        journal = self.db_path.with_name(f"{self.db_path.name}-journal")
        with locked(self.db_path) as held:
            if not held:
                return False
            files.copy_content(journal, copy.with_name(f"{copy.name}-journal"))
            copy.unlink()
            files.copy_content(self.db_path, copy)
        with contextlib.closing(self._engine.connect(copy)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
        return True

    def _say_or_refuse(self, check: Inspection) -> None:
        """Wait for the check of a copy, which is that of a restore, and say what it found; refuse what is damaged."""
        try:
            _, found = check.result()
        except errors.UnsoundBackupError as error:
            raise errors.DatabaseUnsoundError(
                f"{self.db_path}: {shortened(str(error), 200)}",
                hint=f"Restore a sound backup: {errors.restore_command('--list')}. What this one still holds can be "
                "rescued: RUNBOOK.md, section 4.",
            ) from None
        for text in found:
            (self.found or self.say)(f"⚠️  {text}")

    def _copied_as_they_are(self, paths: Sequence[Path], copy: Path) -> bool:
        """Put the files into a tar, or return False while somebody holds a lock on the database."""
        with contextlib.ExitStack() as lock:
            if self.db_path.exists() and not lock.enter_context(locked(self.db_path, exclusive=True)):
                return False
            with tarfile.open(copy, "w") as tar:
                for path in paths:
                    with files.open_regular(path) as file:
                        tar.addfile(tar.gettarinfo(arcname=path.name, fileobj=file), file)
        return True

    def _store(
        self,
        copy: Path,
        kind: str,
        ram: RamFolder,
        *,
        compress: bool = True,
        encrypt: bool = True,
        prove: Callable[[], object] = lambda: None,
    ) -> Path:
        """Compress, encrypt and write a file in the RAM folder as a new backup.

        :param prove: raises what keeps it from being a backup; called before it gets its name.
        """
        key = self._settings.public_key if encrypt else None
        if encrypt and not key:
            self.say("⚠️  PGP_PUBLIC_KEY_BASE64 is not set: the backup is not encrypted")
        suffix = kind + (".gz" if compress else "") + (".gpg" if key else "")
        try:
            self.backup_dir.mkdir(parents=True, exist_ok=True)
            self.backup_dir = anchored_folder(self.backup_dir)
            self.remove_leftovers()
            with self._temporary() as target, self._temporary() as checksum:
                digest = self._write(copy, target, ram, compress=compress, key=key)
                for file in (target, checksum):
                    files.give_to_owner_of(self.backup_dir, file.fileno())
                os.fsync(target.fileno())
                prove()
                return self._publish(target, checksum, suffix, digest, ram)
        except OSError as error:
            raise errors.BackupFailedError(
                f"cannot write the backup in {self.backup_dir}: {error.strerror}",
                hint=errors.writing_hint(
                    error,
                    self.backup_dir,
                    f"Check space and permissions: df -h {quoted(self.backup_dir)}; ls -ld {quoted(self.backup_dir)}",
                ),
            ) from None

    def _write(self, copy: Path, target: io.FileIO, ram: RamFolder, *, compress: bool, key: bytes | None) -> str:
        """Write the backup's content and return its SHA-256."""
        digest = hashlib.sha256()

        def sink(data: bytes) -> None:
            digest.update(data)
            files.write_all(target, data)

        with io.FileIO(copy) as plain:
            level = 0 if self._settings.encrypted else 1
            content: Readable = GzipReader(plain, level, self.progress) if compress else plain
            if key:
                keyring = Keyring(ram)
                keyring.encrypt(content, keyring.import_public(key), sink)
            else:
                for piece in iter(lambda: content.read(files.CHUNK), b""):
                    sink(piece)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[io.FileIO]:
        """A file without a lasting name in the backup folder; the lock on it tells that its process lives."""
        while True:
            path = self.backup_dir / f".db_backup_{os.getpid()}_{time.time_ns()}.tmp"
            file = files.create_file(path)
            if files.flock(file.fileno(), fcntl.LOCK_EX) and os.fstat(file.fileno()).st_nlink:
                break
            file.close()  # another process took it for a leftover before it was locked
        file.name = path
        try:
            yield file
        finally:
            file.close()
            path.unlink(missing_ok=True)

    def _signature(self, text: str, ram: RamFolder) -> str:
        """Return the line that signs a checksum file's text; nothing where that is not asked for, or not possible."""
        if not self._signing:
            if self._settings.require_signature:
                self.say("⚠️  The backup is not signed, and REQUIRE_SIGNATURE is yes: a restore refuses it")
            return ""
        try:
            return self._signing.sign(text, ram)
        except errors.OperatorError as error:
            if self._settings.require_signature:
                raise
            self.say(f"⚠️  The backup is not signed: {error}")
            return ""

    def _publish(self, target: io.FileIO, checksum: io.FileIO, suffix: str, digest: str, ram: RamFolder) -> Path:
        """Give a complete backup its name: the first second of the clock from now on that is not taken.

        The checksum gets its name first, so that no backup is ever seen without one.
        """
        while True:
            path = self.backup_dir / f"db_backup_{datetime.now().astimezone():%Y%m%d_%H%M%S}{suffix}"
            with contextlib.suppress(FileExistsError):
                if not os.path.lexists(path):
                    text = checksum_text(path.name, digest, self._kind)
                    signed = text + self._signature(text, ram)
                    checksum.seek(0)
                    files.write_all(checksum, signed.encode())
                    os.fsync(checksum.fileno())
                    files.name_without_replacing(checksum.name, checksum.fileno(), checksum_path(path))
                    break
            time.sleep(1 - time.time() % 1)
        try:
            os.utime(target.fileno())  # when it gets its name: the check took a while
            files.name_without_replacing(target.name, target.fileno(), path)
        except OSError:
            checksum_path(path).unlink(missing_ok=True)
            raise
        files.fsync_folder(self.backup_dir)
        return path

    def remove_leftovers(self) -> None:
        """Remove the temporary files of backups whose process is gone; a living one holds a lock on its file."""
        for path in self.backup_dir.glob(".db_backup_*.tmp"):
            with contextlib.suppress(OSError), files.open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
                if files.flock(file.fileno(), fcntl.LOCK_EX):
                    # a checksum got its name before the process was killed, and its backup never did
                    named = os.fstat(file.fileno()).st_nlink > 1
                    for checksum in self.backup_dir.glob("db_backup_*.sha256") if named else ():
                        if files.same_file(checksum, path) and not os.path.lexists(checksum.with_suffix("")):
                            checksum.unlink()
                    path.unlink()


def get_backup_handler() -> DatabaseBackup:
    """Return the DatabaseBackup of the configured database and backup folder, under the name that bots call.

    :raises WrongSettingError: when a setting is missing or wrong.
    """
    settings = _load_settings()
    return DatabaseBackup(settings.db_path, settings.backup_dir, settings=settings)


def _load_settings() -> Settings:
    """Read the settings for a program that has this as a library: what is odd about them goes to its log."""
    settings = load_settings()
    for text in settings.warnings:
        logger.warning(text)
    return settings


# --- command line ------------------------------------------------------------------------------------------------


def _command_line() -> CommandLine:
    parser = CommandLine(
        prog="database_backup.py", description="Make, list, verify, remove and rescue backups of the bot's database."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    create = commands.add_parser("create", help="make a backup, print its path, and copy it to BACKUP_REMOTES")
    create.add_argument("--no-compress", action="store_true", help="do not compress it")
    create.add_argument("--no-encrypt", action="store_true", help="do not encrypt it, though a public key is set")
    create.add_argument("--no-sign", action="store_true", help="do not sign it: for a bot, whom the key is kept from")
    create.add_argument("--if-changed", action="store_true", help="not if nothing was written since the last backup")
    create.add_argument("--quiet", action="store_true", help="do not say which keys open it, for cron")
    commands.add_parser("push", help="copy to each of BACKUP_REMOTES what it lacks, newest first")
    commands.add_parser("list", help="show the backups, newest first")
    commands.add_parser("verify", help="check a backup as far as that goes without the private key").add_argument(
        "file", type=Path
    )
    rescue = commands.add_parser("rescue", help="make a database of what a damaged one, or a .raw.tar backup, holds")
    rescue.add_argument("file", help="a .raw.tar backup, a database, or -: standard input")
    rescue.add_argument("--to", type=Path, metavar="FILE", help="the new database; left out: a file in /dev/shm")
    prune = commands.add_parser("prune", help="remove what BACKUP_KEEP or DB_BACKUP_RETENTION_DAYS does not keep")
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    prune.add_argument("--bots-too", action="store_true", help="remove SQL dumps of the bot's, too")
    status = commands.add_parser("status", help="say how the backups are, as a monitoring plugin does")
    form = status.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="all that was found, as one JSON object")
    form.add_argument("--prometheus", action="store_true", help="metrics, for the textfile collector of node_exporter")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    open_streams()
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["status"]:
        return _status(words)
    logging.basicConfig(format="⚠️  %(message)s", level=logging.WARNING)
    signals = Signals()
    signals.install()
    report = Report(Console(), signals)
    watchers = Watchers(report)
    with report.failures():
        arguments = _command_line().parse_args(argv)
        harden_process()
        remove_leftovers()
        if arguments.command in WATCHED and not getattr(arguments, "dry_run", False):
            watchers.watch(arguments.command, survey_settings()[0])
            watchers.begin()
        _run(arguments, report)
    watchers.end()
    close_streams()
    return report.exit_code


def _status(words: list[str]) -> int:
    """Look how the backups are, for a monitoring system: in its manner, with exit codes of its own."""
    from backuplib import status
    from backuplib.remote import remotes

    def subject() -> status.Subject:
        settings, wrong = survey_settings()
        backups = DatabaseBackup(settings.db_path, settings.backup_dir, settings=settings)
        return status.Subject(
            db_path=settings.db_path,
            backup_dir=settings.backup_dir,
            public_key=settings.public_key,
            max_age_hours=settings.max_age_hours,
            notified=bool(settings.notify_urls),
            remotes=remotes(settings.remotes, settings.rclone),
            warnings=settings.warnings,
            wrong=wrong,
            given=[name for name, value in os.environ.items() if value],
            list_backups=backups.list_backups,
            recipients=backups.recipients,
            unwritten_since=Changes(backups.db_path, backups.backup_dir, b"").unwritten_since,
        )

    harden_process()
    code = status.answer(words, lambda: _command_line().parse_args(words), subject)
    close_streams()
    return code


def _run(arguments: argparse.Namespace, report: Report) -> None:
    console, settings = report.console, load_settings()
    report.warn(*settings.warnings)
    if arguments.command in ("create", "rescue"):
        enter_private_mounts()
    kept_from_bot = arguments.command == "create" and arguments.no_sign
    signing = None if kept_from_bot else SigningFolder(settings.signing_dir, settings.shop_folders)
    settings = settings.with_open_folder()
    backups = DatabaseBackup(settings.db_path, settings.backup_dir, settings=settings, signing=signing)
    if arguments.command == "create":
        _create(arguments, settings, backups, report)
        for line in signing.announced() if signing else ():
            console.line(line)
    elif arguments.command == "push":
        push_missing(remotes(settings.remotes, settings.rclone), backups.list_backups(), console.result)
    elif arguments.command == "verify":
        console.result(f"✅ {shown(arguments.file)}: {backups.verify_backup(arguments.file)}")
    elif arguments.command == "rescue":
        from backuplib.rescue import rescue

        console.result(str(rescue(arguments.file, arguments.to, settings.db_pass, report)))
    elif arguments.command == "prune":
        backups.say = report.warn
        rule = backups.retention(settings.policy, bots_too=arguments.bots_too)
        console.result(f"keeping {settings.policy}; times are {time.strftime('%Z')}")
        report.signals.shield()  # an end in between could not say what was removed
        prune_here(rule, backups.list_backups(), console.result, dry_run=arguments.dry_run)
        report.signals.install()  # a server may take its time
        places = remotes(settings.remotes, settings.rclone)
        prune_remotes(rule, places, console.result, report.warn, dry_run=arguments.dry_run)
    else:
        all_places = Places.of(settings.backup_dir, remotes(settings.remotes, settings.rclone), None)
        show_backups(report, all_places.backups(backups.list_backups, report.warn), all_places)


def _create(arguments: argparse.Namespace, settings: Settings, backups: DatabaseBackup, report: Report) -> None:
    """Make a backup and print its path, unless nothing was written since the last one and that is to be no reason."""
    backups.say = report.console.line
    how = (arguments.no_compress, arguments.no_encrypt, settings.public_key, settings.encrypted, backups.signer())
    changes = Changes(settings.db_path, settings.backup_dir, repr(how).encode())
    if arguments.if_changed and (last := changes.unchanged_since()):
        if not arguments.quiet:
            made = age(backup_time(last).timestamp())
            report.console.line(f"✅ Nothing was written since {shown(last)}, made {made}: no new backup")
        if not changes.is_pushed_to(settings.remotes):
            _push(changes, last, settings, report)
        return
    state = changes.state()
    backup = backups.create_backup(compress=not arguments.no_compress, encrypt=not arguments.no_encrypt)
    how = (*how[:-1], backups.signer_of(backup))
    changes = replace(changes, how=repr(how).encode())
    try:
        changes.note(backup, state)
    except OSError as error:
        if arguments.if_changed:
            report.warn(f"not noted, so that the next --if-changed makes a backup, too: {errors.explain(error)}")
    if not arguments.quiet:
        for line in who_opens(backup, [] if arguments.no_encrypt else backups.recipients()):
            report.console.line(line)
    report.console.result(str(backup))
    _push(changes, backup, settings, report)


def _push(changes: Changes, backup: Path, settings: Settings, report: Report) -> None:
    """Copy the last backup to the remotes, if there are any, and note that they have it."""
    if settings.remotes:
        push_new(remotes(settings.remotes, settings.rclone), backup, report.console.line)
        with contextlib.suppress(OSError):  # the next --if-changed looks there once more
            changes.note_pushed(backup, settings.remotes)


if __name__ == "__main__":
    sys.exit(main())
