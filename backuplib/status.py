"""How the backups are, for a monitoring system: `database_backup.py status`.

It looks and changes nothing, waits for no lock, and needs no key. Each look is a method of :class:`Checkup`; what one
of them cannot see, such as without permission, is said to be not known. Whatever happens, there is an answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from backuplib import errors, notify, proofs
from backuplib.backup_file import LOCAL, ORDINARY, SQL_DUMP, BackupInfo
from backuplib.console import Unbreakable
from backuplib.database import size_of_files
from backuplib.doctor import EXPORT_KEY, Finding, existing, owner
from backuplib.formatting import CLOCKS_DIFFER, age, instant, megabytes, plural, shown
from backuplib.journal import Journal
from backuplib.monitoring import (
    CODES,
    CRITICAL,
    OK,
    UNKNOWN,
    WARNING,
    Figure,
    exposition,
    plugin_line,
)
from backuplib.openpgp import Recipient
from backuplib.outcome import ROLLBACK_FAILED, SERVICES_DOWN, LastRestore, UnknownOutcomeError
from backuplib.proofs import UnknownProofsError
from backuplib.ram_folder import available_memory
from backuplib.remote import PROBE, Remote, whole
from backuplib.running import running
from backuplib.selection import grouped
from backuplib.state import State
from backuplib.target import Target

CRITICAL_AGE = 2  # times the age from which on a backup is too old
PROOF_DAYS = 35  # without a proof: one a month, and a few days
EXPIRY_DAYS = 14  # before a public key expires
ENDED_DAYS = 7  # that a restore counts which left services down, or could not be rolled back
FEW_BACKUPS = 3  # for which there should be room
CHECKSUM_SECONDS = 30.0  # that reading the newest backup may take

DAY, HOUR = 86400, 3600


@dataclass(frozen=True)
class Subject:
    """What is looked at, as the settings have it.

    ``wrong``: the settings that cannot be used, by field. ``given``: those that the environment has, so that they count
    where `.env` cannot be read. ``notified``: whether NOTIFY_URLS is set. ``unwritten_since``: returns the last backup,
    if it is known that nothing was written since.
    """

    db_path: Path
    backup_dir: Path
    public_key: bytes | None
    max_age_hours: int
    notified: bool
    remotes: Sequence[Remote]
    warnings: Sequence[str]
    wrong: Mapping[str, errors.RefusedError]
    given: Collection[str]
    list_backups: Callable[[], list[BackupInfo]]
    recipients: Callable[[], list[Recipient]]
    unwritten_since: Callable[[], Path | None] = lambda: None


class _TooSlow(Exception):  # noqa: N818 - no error: the end of a look
    """Reading a backup takes too long."""


class Checkup:
    """The looks. What one of them finds, those after it use."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.target = Target(Path(os.path.realpath(subject.db_path)))
        self.state = State(str(subject.db_path))
        self._oldest: BackupInfo | None = None
        self._there: dict[str, Future[tuple[list[BackupInfo], bool | None]]] = {}

    def run(self) -> State:
        """Look at everything; what fails leaves the others."""
        with ThreadPoolExecutor(max(1, len(self.subject.remotes))) as pool:
            if self._known("remotes"):
                self._there = {remote.place: pool.submit(_look_at, remote) for remote in self.subject.remotes}
            for name, (look, needed) in LOOKS.items():
                if lacking := [item for item in needed if not self._known(item)]:
                    text = f"{name} not looked at: {', '.join(lacking)} not known"
                    self.state.findings.append(Finding(name, UNKNOWN, text))
                else:
                    self._look(name, look)
        return self.state

    def _known(self, setting: str) -> bool:
        """Whether a setting is right, and really ours: without .env, only what the environment has is."""
        names = SETTINGS_OF[setting]
        read = "env_file" not in self.subject.wrong or names <= {*self.subject.given}
        return read and setting not in self.subject.wrong

    def _look(self, name: str, look: Callable[[Checkup], Said]) -> None:
        try:
            for item in look(self):
                self.state.findings.append(Finding(name, *item))
        except errors.OperatorError as error:
            self.state.findings.append(Finding(name, UNKNOWN, f"{name}: {error}", error.hint))
        except ModuleNotFoundError as error:
            text = f"{name} not looked at: {errors.MissingPackageError(error.name)}"
            self.state.findings.append(Finding(name, UNKNOWN, text))
        except OSError as error:
            text = f"{name} could not be looked at: {errors.explain(error)}"
            self.state.findings.append(Finding(name, UNKNOWN, text))

    # --- settings --------------------------------------------------------------------------------------------

    def settings(self) -> Said:
        """Settings that are wrong, and what is odd about them."""
        for error in self.subject.wrong.values():
            yield UNKNOWN, str(error), error.hint
        for text in self.subject.warnings:
            yield WARNING, text
        if self.subject.notified and not find_spec("apprise"):
            yield WARNING, f"NOTIFY_URLS is set, and {notify.package_hint()}"
        if not self.subject.wrong and not self.subject.warnings:
            yield OK, "settings are right"

    # --- backups ---------------------------------------------------------------------------------------------

    def backup(self) -> Said:
        """The newest backup here, and its age."""
        folder = self.subject.backup_dir
        found = self.subject.list_backups()
        self._oldest = min(found, key=lambda item: item.created, default=None)
        yield from self._newest(LOCAL, found, "age", f"in {shown(folder)}", "newest backup")

    def remote(self) -> Said:
        """The newest backup at each remote; one that does not answer holds no backup for whoever needs it now."""
        for place, future in self._there.items():
            try:
                found, self.state.removable[place] = future.result()
            except errors.OperatorError as error:
                yield WARNING, f"{error}: what is there is not known", error.hint
                continue
            locked = " (locked)" if self.state.removable[place] is False else ""
            yield from self._newest(place, found, f"age_{place}", f"at {place}", f"newest at {place}{locked}")

    def _newest(self, place: str, found: Sequence[BackupInfo], label: str, where: str, what: str) -> Said:
        """Judge the newest of the backups at a place that a restore would take for the latest."""
        now, hours = self.state.looked, self.subject.max_age_hours
        ordinary = [item for item in found if item.kind in (ORDINARY, SQL_DUMP)]
        made = [item for item in ordinary if item.created.timestamp() <= now + CLOCKS_DIFFER]
        make = "To make one: " if place == LOCAL else "To copy what is here there: "
        hint = make + errors.restore_command("create" if place == LOCAL else "push", script="database_backup.py")
        if not made and ordinary:
            yield UNKNOWN, f"how old the {what} is, is not known: its time is in the future", "Look at the clocks."
            return
        if not made:
            but = " but what was made before a restore" if found else ""
            yield CRITICAL, f"no backup {where}{but}", hint
            return
        newest = self.state.newest[place] = max(whole(made), key=lambda item: item.created)
        unsure = [item for item in made if item.doubt and item.created >= newest.created]
        old, limit = self.state.age_of(newest), hours * HOUR
        text = f"{what} {_old(newest.created.timestamp())}"
        if old > limit and self._has_all(newest):
            self.state.figures.append(Figure(label, old, "s", minimum="0"))
            yield OK, f"{text}, nothing was written since"
            return
        self.state.figures.append(Figure(label, old, "s", str(limit), str(CRITICAL_AGE * limit), "0"))
        if unsure:
            text += f" ({'' if newest.doubt else f'a newer {unsure[0].path.name} not counted: '}{unsure[0].doubt})"
        status = CRITICAL if old > CRITICAL_AGE * limit else WARNING if old > limit else OK
        yield (OK, text) if status == OK else (status, f"{text}, more than {plural(hours, 'hour')}", f"Why? {hint}")

    def _has_all(self, newest: BackupInfo) -> bool:
        """Whether it is known that nothing was written since the newest backup at a place was made."""
        here = self.state.newest.get(LOCAL)
        if not here or not self._known("db_path") or self.subject.unwritten_since() != here.path:
            return False
        return newest is here or (newest.sha256 is not None and len(grouped([here, newest])) == 1)

    def checksum(self) -> Said:
        """Whether the newest backup here is the file that its checksum was made of."""
        newest = self.state.newest.get(LOCAL)
        if not newest:
            return
        name, until = newest.path.name, time.monotonic() + CHECKSUM_SECONDS

        def in_time(_: int) -> None:
            if time.monotonic() > until:
                raise _TooSlow

        self.state.figures.append(Figure("size", newest.size, "B", minimum="0"))
        try:
            state = self.state.checksum = newest.checksum_state(in_time)
        except _TooSlow:
            yield UNKNOWN, f"checksum of {name} not compared: reading it takes more than {CHECKSUM_SECONDS:.0f} s"
            return
        yield {
            "ok": (OK, "checksum ok"),
            "MISMATCH": (CRITICAL, f"{name} does not match its checksum", "It is corrupted or was replaced."),
            "none": (UNKNOWN, f"no checksum beside {name}"),
        }.get(state, (UNKNOWN, f"{name} or its checksum cannot be read"))

    def proof(self) -> Said:
        """When a backup was last proved to restore; before the first proof, its time runs from the oldest backup."""
        try:
            found = proofs.read(self.subject.backup_dir)
        except UnknownProofsError as error:
            yield UNKNOWN, f"when a backup was last proved is not known: {error}"
            return
        prove = errors.restore_command("latest", "--verify-only")
        hint = f"To prove that the newest one restores, which takes the key: {prove}"
        made = [item for item in found if item.when.timestamp() <= self.state.looked + CLOCKS_DIFFER]
        if found and not made:
            text = "when a backup was last proved is not known: its time is in the future"
            yield UNKNOWN, text, f"Look at the clock. {hint}"
            return
        last = self.state.proof = max(made, key=lambda item: item.when, default=None)
        since = last.when if last else self._oldest and self._oldest.created
        if not since:
            return
        seconds = max(0, self.state.looked - int(since.timestamp()))
        self.state.figures.append(Figure("unproved", seconds, "s", str(PROOF_DAYS * DAY), minimum="0"))
        said = f"proved {age(since.timestamp())}" if last else "never proved"
        if seconds > PROOF_DAYS * DAY:
            text = f"no backup was proved to restore for {plural(seconds // DAY, 'day')}"
            yield WARNING, text, hint
        else:
            yield OK, said

    # --- restores --------------------------------------------------------------------------------------------

    def restore(self) -> Said:
        """Whether a restore is running, or was interrupted."""
        folder = self.target.path.parent
        if not os.access(folder, os.R_OK | os.X_OK):
            yield UNKNOWN, f"whether a restore was interrupted is not known: no access to {folder}"
            return
        lock_file = self.target.lock_file
        self.state.running = running(lock_file)
        if not self.state.running and lock_file.exists() and not os.access(lock_file, os.R_OK):
            yield UNKNOWN, f"whether a restore is running is not known: no permission to read {lock_file}"
            return
        self.state.interrupted = False
        if self.state.running:
            yield OK, f"a restore is running: {self.state.running}"
            return
        recover = f"To finish or undo it: {errors.restore_command('--recover')}"
        try:
            journal = Journal.load(self.target)
        except errors.UnfinishedRestoreError as error:
            self.state.interrupted = True
            yield CRITICAL, f"a restore was interrupted: {error}", error.hint
            return
        if journal:
            self.state.interrupted = True
            yield CRITICAL, f"a {journal.what_happened}", recover
        else:
            yield OK, "no restore is running, and none was interrupted"

    def last_restore(self) -> Said:
        """How the last restore ended."""
        try:
            last = LastRestore.of(self.target.path, self.subject.backup_dir)
        except UnknownOutcomeError as error:
            yield UNKNOWN, f"how the last restore ended is not known: {error}"
            return
        if not last:
            yield OK, "no restore has touched the database"
            return
        self.state.last_restore = last.as_dict()
        ended = datetime.fromisoformat(last.ended)
        recent = self.state.looked - ended.timestamp() < ENDED_DAYS * DAY
        bad = recent and last.outcome in (SERVICES_DOWN, ROLLBACK_FAILED)
        text = f"last restore, {instant(ended)}: {last.outcome}"
        yield (CRITICAL, text, "RUNBOOK.md, sections 6 and 7.") if bad else (OK, text)

    # --- the next backup -------------------------------------------------------------------------------------

    def public_key(self) -> Said:
        """Whether the next backup can be encrypted, and until when."""
        if not self.subject.public_key:
            yield WARNING, "no public key: backups are not encrypted", EXPORT_KEY
            return
        try:
            self.state.recipients = self.subject.recipients()
        except errors.WrongSettingError as error:
            yield CRITICAL, f"{error}: no backup can be made", error.hint
            return
        for item in self.state.recipients:
            if item.expires is None:
                yield OK, f"public key of {owner(item)} does not expire"
                continue
            left = item.expires - self.state.looked
            limit = EXPIRY_DAYS * DAY
            figure = Figure(f"key_{item.fingerprint[-16:]}_expires", left, "s", f"{limit}:", "0:")
            self.state.figures.append(figure)
            text = f"public key of {owner(item)} expires in {plural(left // DAY, 'day')}"
            yield (WARNING, text, f"Extend it where the private key is. {EXPORT_KEY}") if left < limit else (OK, text)

    def room(self) -> Said:
        """Whether disk and memory have room for the next backup, about."""
        state, folder = self.state, existing(self.subject.backup_dir)
        state.disk_free_bytes = free = shutil.disk_usage(folder).free
        newest = state.newest.get(LOCAL)
        if newest:
            need = state.needed_bytes = newest.size
            figure = Figure("disk_free", free, "B", f"{FEW_BACKUPS * need}:", f"{need}:", "0")
            state.figures.append(figure)
            text = f"{megabytes(free)} free in {shown(folder)}, and the newest backup has {megabytes(need)}"
            status = CRITICAL if free < need else WARNING if free < FEW_BACKUPS * need else OK
            yield (status, text) if status == OK else (status, text, f"Make room: df -h {shown(folder)}")

    def memory(self) -> Said:
        """Whether memory has room for the copy of the database that a backup is made from."""
        state, path = self.state, self.target.path
        live = size_of_files(path)
        if not live:
            yield WARNING, f"no database {shown(path)}: no backup can be made"
            return
        state.memory_needed_bytes, state.memory_free_bytes = live, available_memory()
        state.figures.append(Figure("memory_free", state.memory_free_bytes, "B", f"{live}:", minimum="0"))
        text = f"{megabytes(state.memory_free_bytes)} of memory available, and a backup takes {megabytes(live)}"
        yield (OK if state.memory_free_bytes > live else WARNING), text


def _look_at(remote: Remote) -> tuple[list[BackupInfo], bool | None]:
    """Return what is at a remote, and False where --check could not remove there; else that is not known."""
    found = remote.backups()
    with contextlib.suppress(errors.OperatorError):
        return found, False if remote.size(PROBE) is not None else None
    return found, None


def _old(timestamp: float) -> str:
    text = age(timestamp)
    return f"{text.removesuffix(' ago')} old" if text.endswith(" ago") else "made just now"


Said = Iterator[tuple[str, ...]]  # status, text, and perhaps a hint

# The names that stand behind a field of the settings
SETTINGS_OF: Mapping[str, frozenset[str]] = {
    "backup_dir": frozenset({"DB_BACKUP_PATH"}),
    "db_path": frozenset({"DATA_DIR", "DB_NAME"}),
    "public_key": frozenset({"PGP_PUBLIC_KEY_BASE64"}),
    "remotes": frozenset({"BACKUP_REMOTES"}),
}

# Each look, with the settings without which it cannot be made
LOOKS: Mapping[str, tuple[Callable[[Checkup], Said], tuple[str, ...]]] = {
    "settings": (Checkup.settings, ()),
    "backup": (Checkup.backup, ("backup_dir",)),
    "remote": (Checkup.remote, ("remotes",)),
    "checksum": (Checkup.checksum, ("backup_dir",)),
    "proof": (Checkup.proof, ("backup_dir",)),
    "restore": (Checkup.restore, ("db_path",)),
    "last-restore": (Checkup.last_restore, ("db_path", "backup_dir")),
    "public-key": (Checkup.public_key, ("public_key",)),
    "room": (Checkup.room, ("backup_dir",)),
    "memory": (Checkup.memory, ("db_path",)),
}


# --- the answer ------------------------------------------------------------------------------------------------------


def answer(words: Sequence[str], parse: Callable[[], argparse.Namespace], find: Callable[[], Subject]) -> int:
    """Look, print one answer, whatever happens, and return the plugin's exit code.

    --prometheus prints nothing but a whole answer, so that no half of one is taken over, and ends with 0 then.

    :param parse: the command line.
    :param find: what is looked at.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which leaves no traceback
    try:
        parse()
        state = Checkup(find()).run()
    except errors.OperatorError as error:
        state = _failed(str(error), error.hint)
    except Exception as error:  # noqa: BLE001 - a bug; a plugin answers in one line, without a traceback
        state = _failed(f"unexpected error, a bug in the tool: {type(error).__name__}: {error}")
    out, failed = Unbreakable(sys.stdout), any(item.name == FAILED for item in state.findings)
    if "--json" in words:
        print(json.dumps(state.as_dict()), file=out)
    elif "--prometheus" not in words:
        print(plugin_line(state.status, state.text, state.figures), file=out)
    elif failed:
        print(plugin_line(state.status, state.text), file=Unbreakable(sys.stderr))
    else:
        out.write(exposition(state.gauges(), database=state.database))
        return 0
    return CODES[state.status]


FAILED = "status"


def _failed(text: str, hint: str = "") -> State:
    return State(findings=[Finding(FAILED, UNKNOWN, text, hint)])
