"""The backups as people see them: the menu and --list."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backuplib.backup_file import BackupInfo
from backuplib.console import Console, last_outcome
from backuplib.errors import BackupNotFoundError, DeclinedError, NoTerminalError, restore_command
from backuplib.formatting import age, aligned, megabytes, plural, printable, shown
from backuplib.openpgp import Recipient
from backuplib.style import Kind
from backuplib.target import Target
from backuplib.terminal import Terminal


def named_backup(file: Path, backup_dir: Path) -> Path:
    """Return the backup file that was named.

    :raises BackupNotFoundError: when it is not there but in the backup folder: where it is.
    """
    elsewhere = backup_dir / file.name
    if not file.exists() and elsewhere.is_file():
        raise BackupNotFoundError(
            f"there is no file {file}",
            hint=f"It is in another folder, so name it: {restore_command(shown(elsewhere))} "
            "(paths on the command line are relative to the current folder)",
        )
    return file


def choose_backup(backups: Sequence[BackupInfo], backup_dir: Path, terminal: Terminal) -> Path:
    """Let the operator choose a backup from a menu; its checksum is compared when it is opened.

    :raises NoTerminalError: when there is none to choose on.
    :raises BackupNotFoundError: when there is no backup.
    :raises DeclinedError: when the operator leaves.
    """
    if not terminal.present:
        raise NoTerminalError(
            "no backup file was named, and there is no terminal to choose one",
            hint=f"Name one; to see them: {restore_command('--list')}",
        )
    if not backups:
        raise BackupNotFoundError(f"there is no backup in {backup_dir}", hint="Name a file, or check DB_BACKUP_PATH.")
    heading, *lines = backup_table(backups)
    chosen = terminal.choose("Which backup?", lines, heading)
    if chosen is None:
        raise DeclinedError("no backup was chosen")
    return backups[chosen].path


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
    for key_ids, opened_by in {item.key_ids: item.opened_by for item in backups if item.key_ids[1:]}.items():
        console.result(f"{opened_by}: any of the keys {', '.join(key_ids)}")
    return [
        {
            "path": str(item.path),
            "created": item.created.isoformat(),
            "bytes": item.size,
            "encrypted": item.encrypted,
            "key_ids": list(item.key_ids),
            "checksum": checksum,
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


def show_last_restore(console: Console, target: Target, backup_dir: Path) -> None:
    """Print whether a restore is running, was interrupted, or how the last one ended."""
    if owner := target.restore_running():
        console.result(f"🔄 A restore is running: {owner}")
        return
    if outcome := last_outcome(backup_dir):
        console.result(f"last restore: {outcome}")
    if target.journal.exists():
        console.result(f"⚠️  A restore was interrupted. To finish or undo it: {restore_command('--recover')}")


def checksum_states(console: Console, backups: Sequence[BackupInfo]) -> list[str]:
    """Read all backups and return the states of their checksums."""
    done = 0
    with console.step("🔎 Checksums...", sum(item.size for item in backups)) as step:

        def progress(count: int) -> None:
            nonlocal done
            done += count
            step.progress(done)

        return [item.checksum_state(progress) for item in backups]


def backup_table(backups: Sequence[BackupInfo], checksums: Sequence[str] = ()) -> list[str]:
    """Return the lines that show backups, a heading first; with numbers before them they fit into 80 columns."""
    rows = [("age", "size", "key ID", *(["checksum"] if checksums else []), "name")]
    for item, checksum in itertools.zip_longest(backups, checksums):
        facts = (age(item.created.timestamp()).removesuffix(" ago"), megabytes(item.size), item.opened_by)
        rows.append((*facts, *([checksum] if checksums else []), printable(item.path.name)))
    return aligned(rows, right=(0, 1), gap=" ")
