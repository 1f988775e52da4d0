"""The backups as people see them: the menu and --list."""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from backuplib import proofs
from backuplib.backup_file import AS_THEY_WERE, BEFORE_A_RESTORE, LOCAL, ORDINARY, SQL_DUMP, BackupInfo
from backuplib.console import Console, Report
from backuplib.errors import BackupNotFoundError, DeclinedError, UnfinishedRestoreError, explain, restore_command
from backuplib.formatting import (
    IN_THE_FUTURE,
    age,
    aligned,
    display_width,
    instant,
    megabytes,
    plural,
    printable,
    shortened,
)
from backuplib.journal import Journal
from backuplib.openpgp import Recipient
from backuplib.outcome import LastRestore, UnknownOutcomeError
from backuplib.remote import named
from backuplib.running import RECOVERING, SWITCHING, running
from backuplib.selection import Places, grouped
from backuplib.style import Kind
from backuplib.target import Target
from backuplib.terminal import Terminal

COLUMNS = 80


@dataclass(frozen=True)
class Row:
    """A backup as a line of a table.

    :param places: where it is.
    :param checksum: its state; empty where that is not shown.
    :param proved: when it last went through all checks of a restore, as far as that is recorded.
    """

    backup: BackupInfo
    places: tuple[str, ...] = (LOCAL,)
    checksum: str = ""
    proved: datetime | None = None


def choose_backup(backups: Sequence[BackupInfo], places: Places, terminal: Terminal) -> Path:
    """Let the operator choose a backup from a menu; its checksum is compared when it is opened.

    :raises BackupNotFoundError: when there is no backup.
    :raises DeclinedError: when the operator leaves.
    """
    if not backups:
        raise BackupNotFoundError(f"there is no backup {places}", hint="Name a file, or check DB_BACKUP_PATH.")
    proved = proofs_in(places.folder, terminal.say)
    rows = in_rows([(item, "", proved.get(item.recorded_checksum() or "")) for item in backups])
    heading, *lines = backup_table(rows, places.marked, COLUMNS - len(f"{len(rows)} "))
    for line in explanations(rows, places.marked, places.silent):
        terminal.say(line)
    chosen = terminal.choose("Which backup?", lines, heading)
    if chosen is None:
        raise DeclinedError("no backup was chosen")
    return named(rows[chosen].backup)


def show_backups(report: Report, backups: Sequence[BackupInfo], places: Places) -> list[dict[str, Any]]:
    """Print backups and return them for --json."""
    console, proved = report.console, proofs_in(places.folder, report.warn)
    checksums = checksum_states(console, backups)
    if not backups:
        console.result(f"no backup {places}")
        return []
    found = [(item, state, proof_of(item, state, proved)) for item, state in zip(backups, checksums, strict=True)]
    rows = in_rows(found)
    console.result(f"{plural(len(rows), 'backup')} {places.in_short}")
    heading, *lines = backup_table(rows, places.marked)
    console.result(heading, kind=Kind.ASIDE)
    for line, row in zip(lines, rows, strict=True):
        console.result(line, kind=Kind.FAILURE if row.checksum == "MISMATCH" else None)
    for line in explanations(rows, places.marked, places.silent):
        console.result(line, kind=Kind.ASIDE)
    return [
        {
            "path": str(named(item)),
            "place": item.place,
            "created": item.created.isoformat(),
            "bytes": item.size,
            "encrypted": item.encrypted,
            "key_ids": list(item.key_ids),
            "checksum": state,
            "kind": item.kind,
            "proved": proof.when.isoformat() if proof else None,
        }
        for item, state, proof in found
    ]


# --- proofs and copies -------------------------------------------------------------------------------------------


def proofs_in(folder: Path, say: Callable[[str], object]) -> dict[str, proofs.Proof]:
    """Return the latest proof of each content, by its SHA-256; say when they cannot be read."""
    try:
        return proofs.by_checksum(proofs.read(folder))
    except proofs.UnknownProofsError as error:
        say(f"when backups were proved is not known: {printable(str(error))}")
        return {}


def proof_of(item: BackupInfo, state: str, proved: Mapping[str, proofs.Proof]) -> proofs.Proof | None:
    """Return the proof of a backup whose checksum was compared; one without a checksum is read, if that can tell."""
    if state in BAD:
        return None
    digest = item.recorded_checksum()
    if not digest and item.place == LOCAL and item.path.name in {proof.name for proof in proved.values()}:
        digest = item.checksum_of_content()
    return proved.get(digest or "")


def in_rows(found: Sequence[tuple[BackupInfo, str, proofs.Proof | None]]) -> list[Row]:
    """Return backups as rows, newest first; copies of one are one row, which says what is known of the first."""
    known = {id(item): (state, proof) for item, state, proof in found}
    rows = []
    for group in grouped([item for item, _, _ in found]):
        kind = next((item.kind for item in group if item.kind != ORDINARY), ORDINARY)
        proved = [proof.when for item in group if (proof := known[id(item)][1])]
        state = known[id(group[0])][0]
        places = tuple(item.place for item in group)
        rows.append(Row(replace(group[0], kind=kind), places, state, max(proved, default=None)))
    return rows


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
    console.result(f"⚠️  A {journal.what_happened}. {recover}")
    console.result(f"   {printable(journal.what_is_live)}")
    return {"started": journal.started, "live": journal.live()}


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
    """Read all backups that are here, and return the states of the checksums of all."""
    done = 0
    here = [item for item in backups if item.place == LOCAL]
    with console.step("🔎 Checksums...", sum(item.size for item in here)) as step:

        def progress(count: int) -> None:
            nonlocal done
            done += count
            step.progress(done)

        return [_checksum_state(item, progress) for item in backups]


def _checksum_state(item: BackupInfo, progress: Callable[[int], object]) -> str:
    if item.place == LOCAL:
        return item.checksum_state(progress)
    return NOT_READ if item.sha256 else "none"


# --- the table ---------------------------------------------------------------------------------------------------

PLAIN, FUTURE = "PLAIN", "future?"

BAD = ("MISMATCH", "unreadable")  # checksums
NOT_READ = "not read"  # that of one at a remote

# Marks behind the date of what is not ordinary, and what they say
MARKS = {BEFORE_A_RESTORE: "*", AS_THEY_WERE: "!", SQL_DUMP: "~", ORDINARY: ""}
SAYING = {
    BEFORE_A_RESTORE: "made before a restore",
    AS_THEY_WERE: "files as they were, for database_backup.py rescue",
    SQL_DUMP: "SQL dump",
}


def backup_table(rows: Sequence[Row], remotes: Sequence[str] = (), room: int = COLUMNS) -> list[str]:
    """Return the lines that show backups, a heading first, at most as wide as there is room.

    Times are those of this machine. Where keys differ, each has a letter, see :func:`explanations`: before the state of
    the checksum, unless that is bad, since no key opens such a file. Where there are remotes, marks say which place has
    a backup. What is beside the names of ours becomes shorter, or is left out, where that is too wide.
    """
    lines = []
    for ages, sizes in ((brief_age, True), (briefest_age, True), (None, True), (None, False)):
        lines = _lines(rows, remotes, ages, sizes=sizes)
        if max(map(display_width, lines)) <= room:
            break
    return lines


def _lines(
    rows: Sequence[Row], remotes: Sequence[str], ages: Callable[[datetime], str] | None, *, sizes: bool
) -> list[str]:
    backups = [row.backup for row in rows]
    keys, times = key_names(backups), [item.created.astimezone() for item in backups]
    zones = dict.fromkeys(f"{time:%Z}" for time in times)
    made = (f"{time:%Y-%m-%d %H:%M}{MARKS[item.kind]}" for time, item in zip(times, backups, strict=True))
    letters = [keys[item.opened_by] if len(keys) > 1 else "" for item in backups]
    states = [
        row.checksum if row.checksum in BAD else f"{key} {'-' if row.checksum == NOT_READ else row.checksum}".strip()
        for key, row in zip(letters, rows, strict=True)
    ]
    wide = ages == brief_age or max(map(len, states)) >= len("checksum")
    what = ("checksum" if wide else "sum") if any(row.checksum for row in rows) else "key"
    columns = [
        [f"made ({'/'.join(zones)})", *made],
        ["age", *(ages(item.created) for item in backups)] if ages else [],
        ["size", *(brief_size(item.size) for item in backups)] if sizes else [],
        [what, *states] if any(states) else [],
        ["proof", *(briefest_age(row.proved) if row.proved else "" for row in rows)]
        if any(row.proved for row in rows)
        else [],
        ["at", *(place_marks(row.places, remotes) for row in rows)] if remotes else [],
        ["name", *(printable(item.path.name) for item in backups)],
    ]
    filled = [column for column in columns if column]
    right = [index for index, column in enumerate(filled) if column[0] in ("age", "size")]
    return aligned([*zip(*filled, strict=True)], right=right, gap=" ")


def place_marks(places: Sequence[str], remotes: Sequence[str]) -> str:
    """Return where a backup is: L for local, and the numbers of the remotes that have it."""
    return "".join("L" if place == LOCAL else f"{remotes.index(place) + 1}" for place in places)


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


def briefest_age(made: datetime) -> str:
    """Return how long ago something was in five columns."""
    text = brief_age(made)
    return {FUTURE: "?", "just now": "now"}.get(text) or re.sub(r" (min|[a-z])[a-z]*", r"\1", text)


def explanations(rows: Sequence[Row], remotes: Sequence[str] = (), silent: Sequence[str] = ()) -> list[str]:
    """Return the lines that say what marks and letters of the table stand for, as far as they occur.

    :param silent: the remotes that do not answer.
    """
    backups = [row.backup for row in rows]
    keys = key_names(backups)
    lines = [*keys] if len(keys) == 1 else [f"{name}: {way}" for way, name in keys.items() if name != PLAIN]
    kinds = {item.kind for item in backups}
    lines += [f"{MARKS[kind]} {saying}" for kind, saying in SAYING.items() if kind in kinds]
    if any(row.checksum == NOT_READ for row in rows):
        lines.append("- at a remote, and not read for this list")
    if any(row.proved for row in rows):
        lines.append("proof: how long ago it went through all checks of a restore")
    if remotes:
        lines.append("at L: local")
        for number, place in enumerate(remotes, 1):
            lines.append(f"at {number}: {shortened(place, 50)}{', which does not answer' if place in silent else ''}")
    if future := [item for item in backups if brief_age(item.created) == FUTURE]:
        lines.append(f"⚠️  {plural(len(future), 'backup')} made after now, {instant(datetime.now().astimezone())}?")
        lines.append("   A clock was wrong, or the name is in another zone.")
    return lines
