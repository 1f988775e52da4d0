"""The backups as people see them: the menu and --list."""

import re
import string
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from backuplib.backup_file import AS_THEY_WERE, BEFORE_A_RESTORE, ORDINARY, SQL_DUMP, BackupInfo
from backuplib.console import Console
from backuplib.errors import BackupNotFoundError, DeclinedError, UnfinishedRestoreError, explain, restore_command
from backuplib.formatting import (
    CLOCKS_DIFFER,
    IN_THE_FUTURE,
    age,
    aligned,
    instant,
    megabytes,
    plural,
    printable,
    shown,
)
from backuplib.journal import Journal
from backuplib.openpgp import Recipient
from backuplib.outcome import LastRestore, UnknownOutcomeError
from backuplib.running import RECOVERING, SWITCHING, running
from backuplib.style import Kind
from backuplib.target import Target
from backuplib.terminal import Terminal


def choose_backup(backups: Sequence[BackupInfo], backup_dir: Path, terminal: Terminal) -> Path:
    """Let the operator choose a backup from a menu; its checksum is compared when it is opened.

    :raises BackupNotFoundError: when there is no backup.
    :raises DeclinedError: when the operator leaves.
    """
    if not backups:
        raise BackupNotFoundError(f"there is no backup in {backup_dir}", hint="Name a file, or check DB_BACKUP_PATH.")
    heading, *lines = backup_table(backups)
    for line in explanations(backups):
        terminal.say(line)
    chosen = terminal.choose("Which backup?", lines, heading)
    if chosen is None:
        raise DeclinedError("no backup was chosen")
    return backups[chosen].path


LATEST = Path("latest")  # the word, not a file


def choose_latest(backups: Sequence[BackupInfo], backup_dir: Path | str, say: Callable[[str], object]) -> Path:
    """Return the newest backup, and say which one that is, which one is older, and what was left out.

    Left out is what was made before a restore, what can only be rescued, and what has a time in the future.

    :param backups: newest first.
    :raises BackupNotFoundError: when there is none.
    """
    now = time.time() + CLOCKS_DIFFER
    fit = [item for item in backups if item.kind in (ORDINARY, SQL_DUMP) and item.created.timestamp() <= now]
    if not fit:
        raise BackupNotFoundError(
            f"there is no backup in {backup_dir}" + (" but what was made before a restore" if backups else ""),
            hint=f"Name a file; to see what is there: {restore_command('--list')}",
        )
    left_out = backups.index(fit[0])
    say(f"✅ latest is {_told(fit[0])}")
    say(f"   the one before it: {_told(fit[1]) if fit[1:] else 'none'}")
    if left_out:
        say(f"   left out: {plural(left_out, 'newer one')}, made before a restore, or in the future")
    return fit[0].path


def _told(item: BackupInfo) -> str:
    return f"{printable(item.path.name)}, made {instant(item.created)}, {age(item.created.timestamp())}"


def show_backups(console: Console, backups: Sequence[BackupInfo], backup_dir: Path) -> list[dict[str, Any]]:
    """Print backups and return them for --json."""
    checksums = checksum_states(console, backups)
    if not backups:
        console.result(f"no backup in {backup_dir}")
        return []
    console.result(f"{plural(len(backups), 'backup')} in {shown(backup_dir)}")
    heading, *lines = backup_table(backups, checksums)
    console.result(heading, kind=Kind.ASIDE)
    for line, checksum in zip(lines, checksums, strict=True):
        console.result(line, kind=Kind.FAILURE if checksum == "MISMATCH" else None)
    for line in explanations(backups):
        console.result(line, kind=Kind.ASIDE)
    return [
        {
            "path": str(item.path),
            "created": item.created.isoformat(),
            "bytes": item.size,
            "encrypted": item.encrypted,
            "key_ids": list(item.key_ids),
            "checksum": checksum,
            "kind": item.kind,
        }
        for item, checksum in zip(backups, checksums, strict=True)
    ]


def who_opens(backup: Path, recipients: Sequence[Recipient]) -> list[str]:
    """Return a line for each key that opens a backup: its ID as the backup has it, and whose it is."""
    info = BackupInfo.of(backup)
    owners = {key_id: recipient.user_id for recipient in recipients for key_id in recipient.key_ids}
    return (
        [f"🔑 Opened by key ID {key_id}: {owners.get(key_id, '')}".rstrip(": ") for key_id in info.key_ids]
        if info
        else []
    )


Shown = dict[str, Any] | None


def show_restores(console: Console, target: Target, backup_dir: Path) -> tuple[Shown, Shown, Shown]:
    """Print which restore is running, which was interrupted, and how the last one ended; return each for --json."""
    runs = running(target.lock_file)
    if runs:
        console.result(f"🔄 A restore is running: {runs.who}")
        console.result(f"   {runs.state}")
        if runs.doing in ("", SWITCHING, RECOVERING):  # which database is live may change at any moment
            return runs.as_dict(), None, None
    interrupted = None if runs else show_interrupted(console, target)
    last = show_last_restore(console, target, backup_dir)
    return runs.as_dict() if runs else None, interrupted, last


def show_interrupted(console: Console, target: Target) -> Shown:
    """Print which database is live when a restore was interrupted."""
    recover = f"To finish or undo it: {restore_command('--recover')}"
    try:
        if not (journal := Journal.load(target)):
            return None
    except UnfinishedRestoreError as error:
        console.result(f"⚠️  A restore was interrupted. {recover}")
        console.result(f"   {printable(f'{error}. {error.hint}')}")
        return {"started": None, "live": "unknown"}
    console.result(f"⚠️  A restore begun at {printable(journal.started)} was interrupted. {recover}")
    console.result(f"   {printable(journal.what_is_live)}")
    try:
        live = journal.live()
    except OSError:
        live = "unknown"
    return {"started": printable(journal.started), "live": live}


def show_last_restore(console: Console, target: Target, backup_dir: Path) -> Shown:
    """Print how the last restore of a database ended that touched something, and which is live."""
    try:
        last = LastRestore.of(target.path, backup_dir)
        lines = last.lines() if last else []
    except (UnknownOutcomeError, OSError) as error:
        console.result(f"last restore: not known, {printable(explain(error))}")
        return None
    for line in lines:
        console.result(line)
    return last.as_dict() if last else None


def checksum_states(console: Console, backups: Sequence[BackupInfo]) -> list[str]:
    """Read all backups and return the states of their checksums."""
    done = 0
    with console.step("🔎 Checksums...", sum(item.size for item in backups)) as step:

        def progress(count: int) -> None:
            nonlocal done
            done += count
            step.progress(done)

        return [item.checksum_state(progress) for item in backups]


PLAIN, FUTURE = "PLAIN", "future?"

BAD = ("MISMATCH", "unreadable")  # checksums

# Marks behind the date of what is not ordinary, and what they say
MARKS = {BEFORE_A_RESTORE: "*", AS_THEY_WERE: "!", SQL_DUMP: "~", ORDINARY: ""}
SAYING = {
    BEFORE_A_RESTORE: "made before a restore",
    AS_THEY_WERE: "files as they were, for database_backup.py rescue",
    SQL_DUMP: "SQL dump",
}


def backup_table(backups: Sequence[BackupInfo], checksums: Sequence[str] = ()) -> list[str]:
    """Return the lines that show backups, a heading first; with numbers before them they fit into 80 columns.

    Times are those of this machine. Where keys differ, each has a letter, see :func:`explanations`: before the state of
    the checksum, unless that is bad, since no key opens such a file.
    """
    keys, times = key_names(backups), [item.created.astimezone() for item in backups]
    zones = dict.fromkeys(f"{time:%Z}" for time in times)
    made = (f"{time:%Y-%m-%d %H:%M}{MARKS[item.kind]}" for time, item in zip(times, backups, strict=True))
    letters = [keys[item.opened_by] if len(keys) > 1 else "" for item in backups]
    states = [
        state if state in BAD else f"{key} {state}".strip() for key, state in zip(letters, checksums, strict=False)
    ]
    columns = [
        [f"made ({'/'.join(zones)})", *made],
        ["age", *(brief_age(item.created) for item in backups)],
        ["size", *(brief_size(item.size) for item in backups)],
        *([["checksum", *states]] if checksums else [["key", *letters]] if any(letters) else []),
        ["name", *(printable(item.path.name) for item in backups)],
    ]
    return aligned([*zip(*columns, strict=True)], right=(1, 2), gap=" ")


def key_names(backups: Sequence[BackupInfo]) -> dict[str, str]:
    """Return a letter for each of the ways in which backups are opened; PLAIN for what is not encrypted."""
    ways = dict.fromkeys(item.opened_by for item in backups if item.encrypted)
    letters = {way: string.ascii_uppercase[number] if number < 26 else f"{number}" for number, way in enumerate(ways)}
    return letters | {item.opened_by: PLAIN for item in backups if not item.encrypted}


def brief_size(size: int) -> str:
    """Return a size in six columns."""
    return re.sub(r"(\d\d)\.\d ", r"\1 ", megabytes(size))


def brief_age(made: datetime) -> str:
    """Return how old a backup is in eight columns."""
    text = age(made.timestamp()).removesuffix(" ago").replace("minutes", "min")
    return FUTURE if text == IN_THE_FUTURE else text


def explanations(backups: Sequence[BackupInfo]) -> list[str]:
    """Return the lines that say what marks and letters of the table stand for, as far as they occur."""
    keys = key_names(backups)
    lines = [*keys] if len(keys) == 1 else [f"{name}: {way}" for way, name in keys.items() if name != PLAIN]
    kinds = {item.kind for item in backups}
    lines += [f"{MARKS[kind]} {saying}" for kind, saying in SAYING.items() if kind in kinds]
    if future := [item for item in backups if brief_age(item.created) == FUTURE]:
        lines.append(f"⚠️  {plural(len(future), 'backup')} made after now, {instant(datetime.now().astimezone())}?")
        lines.append("   A clock was wrong, or the name is in another zone.")
    return lines
