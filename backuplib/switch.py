"""The switch: renames by which the new database takes the place of the old one, and the one way back.

A run that fails and the run after a SIGKILL go the same way: what the journal says was begun is undone, or finished.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from backuplib import errors
from backuplib.bot import SETTLE_SECONDS, Bot, expected_seconds
from backuplib.comparison import look_at_live, lost_tables
from backuplib.console import Report
from backuplib.database import SIDECARS, Engine, database_files, sidecars
from backuplib.files import Identity, drop, file_identity, fsync_folder, link_or_copy, stat_or_none
from backuplib.formatting import plural, quoted, shown
from backuplib.journal import Journal
from backuplib.locks import is_locked
from backuplib.outcome import (
    NEW,
    OLD,
    RECOVERED,
    ROLLBACK_FAILED,
    ROLLED_BACK,
    SERVICES_DOWN,
    UNKNOWN,
    LastRestore,
    identity,
)
from backuplib.processes import Interrupted, find_holders

if TYPE_CHECKING:
    import sqlite3


class UnreadableError(Exception):
    """The live database cannot be opened; what is there is kept byte for byte."""


@dataclass
class Switch:
    """From the first step that is not harmless to the last: what is done, undone or finished is what the journal says.

    :param journal: what was begun; written down by this class only.
    :param bot: whose containers are stopped and started; None when there are none to touch.
    :param back_up: backs up a database file, with a label for the progress; quiet when nobody has it open.
    :param recover_command: what finishes or undoes this by hand.
    :param backup_dir: where it is written down how this ended.
    """

    journal: Journal
    bot: Bot | None
    engine: Engine
    report: Report
    back_up: Callable[..., Path]
    recover_command: str
    backup_dir: Path
    _stopped: float | None = None

    def begin(self) -> None:
        """Write down what is begun, before the first step that matters; CannotWriteError when that is not possible."""
        try:
            self._write_down(state="begun")
        except errors.CannotWriteError:
            with contextlib.suppress(OSError):
                self.journal.remove()
            raise

    def _write_down(self, **changes: object) -> None:
        before = {name: getattr(self.journal, name) for name in changes}
        vars(self.journal).update(changes)
        try:
            self.journal.write()
        except OSError as error:
            vars(self.journal).update(before)
            text = f"cannot write in {self.journal.target.parent}: {error.strerror}"
            raise errors.CannotWriteError(text, hint=errors.CHECK_DISK) from None

    def stop_services(self) -> None:
        """Stop the services; CannotStopError when one still runs."""
        if self.bot:
            with self.report.console.step("🛑 Stopping Docker containers...") as step:
                items, text = self.bot.stopping(self.journal.containers)
                self._stopped = time.monotonic()
                stop, start = expected_seconds(items)
                rest = start if all(item.check for item in items) else start + SETTLE_SECONDS
                self.report.finished = self._stopped + stop + rest
                with self.report.phase("stop"):
                    self.bot.stop(items)
                self.report.finished = time.monotonic() + rest
                step.done(text)

    def exchange(self, candidate: Identity, refuse_users: Callable[[], None], *, unsaved: bool) -> None:
        """Set the old database aside and rename the new one into its place; at each moment one of them is whole.

        :param candidate: the identity that the new file was proved with.
        :param refuse_users: called right before the renames.
        :param unsaved: the old database holds what the safety backup does not.
        :raises OperatorError, OSError: when it fails.
        """
        journal = self.journal
        self._write_down(state="switching", new_inode=candidate[1], unsaved=unsaved)
        target, checkpointed = journal.target, True
        before = stat_or_none(target)
        with contextlib.ExitStack() as guard:
            try:
                if target.exists() and target.stat().st_size:
                    guard.enter_context(contextlib.closing(checkpoint_and_lock(self.engine, target)))
                elif sidecars(target):  # opening it would delete them
                    raise UnreadableError("the main file is missing or empty")
            except UnreadableError as error:
                what = "its files are set aside unchanged"
                self.report.warn(
                    f"the old database cannot be opened ({error}): {what}",
                    recorded=f"the old database cannot be opened: {what}",
                )
                checkpointed = False
            refuse_users()
            if file_identity(journal.candidate) != candidate:
                raise errors.RolledBackError(f"{journal.candidate} is not the file that was verified")
            if before and not os.path.samestat(before, target.lstat()):
                raise errors.RolledBackError(f"{target} was replaced by another file meanwhile")
            link_aside(target, journal.set_aside, checkpointed=checkpointed)
            remove_sidecars(target)
            os.rename(journal.candidate, target)
            fsync_folder(target.parent)
        if file_identity(target) != candidate:
            raise errors.RolledBackError(f"{target} is not the file that was verified")

    def start_services(self) -> None:
        """Start the services and wait until they are up.

        :raises ServicesDownError: when one does not come up, or Docker does not tell.
        """
        if not self.bot:
            return
        with self.report.console.step("🔄 Starting Docker containers...") as step:
            try:
                with self.report.phase("start"):
                    coming = self.bot.start(self.journal.containers, self.journal.unhealthy)
            except errors.CommandFailedError as error:
                raise errors.ServicesDownError(
                    f"Docker does not tell whether the services run: {error}",
                    hint=error.hint,
                    services="and whether the services run is not known",
                ) from None
            down = ""
            if self._stopped is not None:
                self.report.downtime_seconds = round(coming.up_at - self._stopped, 3)
                down = f"; down for {coming.up_at - self._stopped:.1f} s"
            step.done(f"{coming}{down}")
        for item in coming.still_unhealthy:
            self.report.warn(
                f"{item} was unhealthy before, and counts as up because it runs; its health check says: {item.health}"
            )

    def check_live(self, expected: Mapping[str, int | None]) -> None:
        """Look at the restored database while the services use it, without holding up their writes.

        :param expected: rows by table, as they were restored.
        :raises RolledBackError: when it is not sound, or a table has lost most of its rows.
        """
        try:
            with self.report.phase("post-restore check"), self.report.console.step("🔎 Post-restore check...") as step:
                look = look_at_live(self.engine, self.journal.target)
                self.report.rows = look.rows
                step.done(f"{look.checked}, {plural(len(look.rows), 'table')}", look.checked)
        except (errors.DatabaseInUseError, errors.CheckTimeoutError, errors.CheckFailedError) as error:
            what = "the restored database could not be looked at while the services use it"
            self.report.warn(f"{what}: {error}", recorded=f"{what}: {error.id}")
            return
        except errors.UnsoundBackupError as error:
            what = "the restored database is not sound"
            raise errors.RolledBackError(f"{what}: {error}", recorded=f"{what}: {error.recorded}") from None
        if lost := lost_tables(expected, look.rows):
            what = "the restored database has been emptied since the services were started"
            raise errors.RolledBackError(
                f"{what}: {lost}",
                recorded=what,
                hint="Some bots drop all tables when one is missing: is the backup of an older version of the bot? If "
                "it is meant to do so: stop the bot, and add --no-restart.",
            )

    def commit(self) -> None:
        """From here the new database is the one that counts; OSError when that cannot be written down."""
        self.journal.state = "committed"
        self.journal.write()

    def roll_back(self, error: BaseException) -> None:
        """Take back what a run did that failed, and raise what tells the state things are in.

        :raises EndedBySignalError: for a signal; DiskFailureError: the database had not been touched.
        :raises RolledBackError: the database had been touched, and is as before.
        :raises ServicesDownError: the database is as before, but the services do not come up.
        :raises RollbackFailedError: manual intervention required.
        """
        if isinstance(error, Interrupted):
            error = errors.EndedBySignalError(error.number)
        cause, console, touched = errors.explain(error), self.report.console, self.journal.state != "begun"
        recorded = errors.recorded(error)
        console.line(f"❌ Restore failed: {cause}", record=f"❌ Restore failed: {recorded}")
        if touched:
            console.line("🔄 Rolling back…")
        with self._ending(ROLLED_BACK if touched else ""):
            self.undo()
        with self.clearing_up():
            self.journal.remove()
        if touched:
            if not isinstance(error, (errors.OperatorError, OSError, *self.engine.errors)):
                console.line("".join(traceback.format_exception(error)), record=errors.recorded_traceback(error))
            log, hint = getattr(error, "log", ""), getattr(error, "hint", "")
            raise errors.RolledBackError(cause, hint=hint, log=log, recorded=recorded) from None
        told = errors.DiskFailureError(error) if isinstance(error, OSError) else error
        if self._stopped is not None and isinstance(told, errors.OperatorError):
            told.state = f"The database was not touched; {errors.RUNNING}"
        if isinstance(told, (errors.EndedBySignalError, errors.DiskFailureError)):
            raise told from None

    def undo(self) -> None:
        """Back to the old database, with the services running, from wherever the journal says this got to.

        :raises RollbackFailedError: when services cannot be stopped (putting the old database back under them could
            damage it), or the old database cannot be put back.
        :raises ServicesDownError: when the services do not come up; the old database is live then.
        """
        if self.journal.state == "begun":
            self.report.console.line("✅ The database was not touched")
        else:
            self._put_old_back()
        self.start_services()

    def _put_old_back(self) -> None:
        """Make the old database live again; the journal stays, and says so. RollbackFailedError when that fails."""
        self.journal.state = "rolling back"
        try:
            with contextlib.suppress(OSError):
                self.journal.write()
            if self.journal.disputed:
                raise errors.UnfinishedRestoreError("somebody has replaced the database meanwhile")
            if self.journal.new_is_live:
                self._refuse_users_of_new()
            put_back(self.engine, self.journal)
        except (OSError, errors.OperatorError) as error:
            raise self._stuck(f"the old database could not be put back: {errors.explain(error)}") from None
        self.report.console.line("✅ Rollback successful - database restored to pre-restore state")
        self.journal.new_inode = None  # it is free, and a database that comes here later may get it
        with contextlib.suppress(OSError):
            self.journal.write()

    def _refuse_users_of_new(self) -> None:
        """Stop the services, and make sure that nobody else has the new database open."""
        if self.bot:
            self.bot.stop(self.bot.stopping(self.journal.containers)[0])
        holders, _ = find_holders(database_files(self.journal.target))
        if holders:  # one that is idle, and not in WAL mode, shows in no lock
            raise errors.DatabaseInUseError(f"{self.journal.target} is in use by {', '.join(map(str, holders))}")

    def _stuck(self, message: str) -> errors.RollbackFailedError:
        """Return the error that says what is where."""
        kept = self.journal.set_aside if os.path.lexists(self.journal.set_aside) else None
        where = f"{self.journal.what_is_live}{f'; the old one is kept as {kept}' if kept else ''}"
        where += "; the services may be down" if self.bot else ""
        return errors.RollbackFailedError(f"{message}. {where}", hint=f"Remove the cause, then: {self.recover_command}")

    def resume(self) -> None:
        """End a restore that was interrupted: with the new database if that is live and sound, else with the old one.

        :raises ServicesDownError: when the services do not come up; its state says which database is live.
        :raises RollbackFailedError: manual intervention required.
        """
        try:
            with self._ending(""):
                if self.journal.state == "committed":
                    self.start_services()
                elif self.journal.state == "switching" and self.journal.new_is_live:
                    self._finish_or_undo()
                else:
                    self.undo()
        except errors.ServicesDownError as error:
            if self.journal.state == "committed":
                error.state = f"The restored database is live, {error.services}."
            raise
        except OSError as error:
            self._note(ROLLBACK_FAILED)
            raise self._stuck(f"the recovery cannot go on: {errors.explain(error)}") from None
        self.clear_away(RECOVERED)

    def settle_files(self) -> None:
        """Do the part of :meth:`resume` that needs no services, such as at boot before Docker starts any of them.

        The old database is put back where it is to be live. A new one that is live stays: whether it is kept is decided
        when the services come up with it, by :meth:`resume`, for which the journal stays, too.

        :raises RollbackFailedError: manual intervention required.
        """
        journal = self.journal
        if journal.state == "rolling back" or (journal.state == "switching" and not journal.new_is_live):
            self._put_old_back()

    def _finish_or_undo(self) -> None:
        try:
            self.start_services()
            self.check_live({})
        except errors.OperatorError as error:
            what = "❌ It cannot be finished"
            self.report.console.line(f"{what}: {error}", record=f"{what}: {error.recorded}")
            self.undo()
        else:
            self.commit()
            self.report.console.line("✅ The restore is finished: the new database is live")

    @contextlib.contextmanager
    def _ending(self, outcome: str) -> Iterator[None]:
        """Write down how the block ended: what it raises that leaves something to do; else the outcome, if any."""
        try:
            yield
        except (errors.ServicesDownError, errors.RollbackFailedError) as error:
            self._note(SERVICES_DOWN if isinstance(error, errors.ServicesDownError) else ROLLBACK_FAILED)
            raise
        if outcome:
            self._note(outcome)

    def _note(self, outcome: str) -> None:
        """Write down in the backup folder how this ended, and which database is live."""
        journal = self.journal
        try:
            LastRestore(
                target=str(journal.target),
                ended=datetime.now().astimezone().isoformat(timespec="seconds"),
                outcome=outcome,
                live={"new": NEW, "old": OLD}.get(journal.live(), UNKNOWN),
                backup=journal.backup or None,
                made=journal.made or None,
                safety_backup=str(journal.safety_backup) if journal.safety_backup else None,
                file=identity(journal.target),
            ).write(self.backup_dir)
        except OSError as error:
            self.report.warn(f"how this ended could not be written down for --list: {errors.explain(error)}")

    def clear_away(self, outcome: str) -> None:
        """At the end: keep what was written after the safety backup, then remove the old database and the journal.

        :param outcome: written down before the journal goes, so that one of them tells it at any time.
        """
        set_aside = self.journal.set_aside
        with self.clearing_up():
            copies = database_files(set_aside)
            if copies and self.journal.unsaved:
                first = self.journal.safety_backup is None  # it was locked, or in use, before the services stopped
                try:
                    with self.report.phase("safety backup" if first else "last writes"):
                        label = "💾 Pre-restore backup..." if first else "💾 Keeping the last writes..."
                        path = self.back_up(label, set_aside, quiet=True)
                    done = "Pre-restore backup created" if first else "Last writes kept"
                    self.report.console.line(f"✅ {done}: {shown(path)}")
                    self.journal.safety_backup = path
                except errors.OperatorError as error:
                    stays = f"The old database stays as {set_aside}: remove it if you do not need it"
                    self.report.warn(f"{error}. {stays}", recorded=f"{error.recorded}. {stays}")
                    copies = []
            self._note(outcome)
            if copies:
                drop(*copies)
            self.journal.remove()

    @contextlib.contextmanager
    def clearing_up(self) -> Iterator[None]:
        """What cannot be removed is a warning: the next run removes it."""
        try:
            yield
        except OSError as error:
            self.report.warn(f"{errors.explain(error)}; clean up with: {self.recover_command}")


# --- the renames -----------------------------------------------------------------------------------------------


def checkpoint_and_lock(engine: Engine, database: Path) -> sqlite3.Connection:
    """Move all that a database has committed into its main file, leave its sidecars empty, and keep others out.

    :returns: the connection that holds the lock; close it after the file has lost its name.
    :raises DatabaseInUseError: when somebody has it open.
    :raises UnreadableError: when it cannot be opened.
    """
    try:
        with contextlib.ExitStack() as opened:
            if database.with_name(f"{database.name}-wal").exists():
                # Looked at first: closing a read-write connection would fold the WAL into what cannot be read.
                with contextlib.closing(engine.look(database, timeout=2)) as look:
                    look.execute("SELECT count(*) FROM sqlite_master").fetchone()
            connection = opened.enter_context(contextlib.closing(engine.connect(database, mode="rw", timeout=2)))
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA schema_version").fetchone()  # no more: the schema may take a newer SQLite
            if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # else an idle reader goes unnoticed
                left = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if left != (0, 0, 0):
                    raise errors.DatabaseInUseError(
                        f"the WAL of {database} cannot be emptied: another process reads it"
                    )
                connection.execute("BEGIN EXCLUSIVE")
                connection.execute("COMMIT")
            else:
                connection.execute("BEGIN EXCLUSIVE")
            for sidecar in sidecars(database):
                if not sidecar.name.endswith("-shm") and sidecar.stat().st_size:
                    raise UnreadableError(f"{sidecar.name} still holds data")
            opened.pop_all()
            return connection
    except engine.errors as error:
        if is_locked(error):
            raise errors.DatabaseInUseError(
                f"{database} is locked by another process", hint=f"Find it: fuser -v {quoted(database)}"
            ) from None
        raise UnreadableError(str(error)) from None


def link_aside(database: Path, name: Path, *, checkpointed: bool) -> None:
    """Give a database a second name, by link where the filesystem has links; with its sidecars unless those are empty.

    Nothing is read, since an unreadable one may lie on a broken disk. The main file comes last, as the sign of a whole.
    """
    beside = [] if checkpointed else [path for path in sidecars(database) if not path.name.endswith("-shm")]
    for path in [*beside, database]:
        if path.exists():
            link_or_copy(path, name.with_name(name.name + path.name[len(database.name) :]))
    fsync_folder(database.parent)


def remove_sidecars(database: Path) -> None:
    """Remove a database's sidecars, durably."""
    for path in sidecars(database):
        path.unlink()
    fsync_folder(database.parent)


def put_back(engine: Engine, journal: Journal) -> None:
    """Make the old database live again, by renames only; may be interrupted anywhere and called again.

    Nobody may have the database open.
    """
    target, set_aside = journal.target, journal.set_aside
    if journal.new_is_live:
        with contextlib.suppress(UnreadableError):
            checkpoint_and_lock(engine, target).close()
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
