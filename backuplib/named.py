"""The backup file that was named: what is none is told before a key is asked for, with what to type instead."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from backuplib.backup_file import BackupInfo
from backuplib.errors import (
    BackupNotFoundError,
    NotABackupError,
    OperatorError,
    rescue_command,
    restore_command,
    same_command,
)
from backuplib.formatting import quoted, shown
from backuplib.listing import LATEST, choose_latest
from backuplib.remote import Remote, is_elsewhere, split

ELSEWHERE = re.compile(r"[A-Za-z][\w.+@-]*:")  # the beginning of a URL, or of HOST:PATH, as it was typed


def refuse_misnamed(
    file: Path, backup_dir: Path, database: Path, listed: Callable[[], Sequence[BackupInfo]] = lambda: ()
) -> None:
    """Refuse what was named as the backup file, and is none.

    :param database: the one that is replaced.
    :param listed: lists the backups, newest first; called when one has to be proposed.
    :raises BackupNotFoundError: when it is not there: where it is, or which one is the newest.
    :raises NotABackupError: saying what it is.
    """
    if _is_missing(file):
        raise _not_there(file, backup_dir, listed)
    if os.path.isdir(file):
        raise NotABackupError(
            f"{file} is a folder, not a backup file",
            hint="Name a file in it; to see those that are backups: "
            f"DB_BACKUP_PATH={quoted(file)} {restore_command('--list')}",
        )
    if file.name.endswith(".sha256") and os.path.isfile(backup := file.with_suffix("")):
        raise NotABackupError(
            f"{file} is the checksum of a backup, not the backup",
            hint=f"Name the backup: {same_command(backup=shown(backup))}",
        )
    refuse_unrestorable(file, database)


def refuse_unrestorable(file: Path, database: Path) -> None:
    """Refuse a file that can be there, and be chosen, but not be restored.

    :raises NotABackupError: saying what it is.
    """
    with contextlib.suppress(OSError):  # one of them is not there, or cannot be looked at
        if os.path.samefile(file, database):
            raise NotABackupError(
                f"{file} is the live database itself, not a backup of it",
                hint=f"Name a backup; to see them: {restore_command('--list')}",
            )
    if ".raw.tar" in file.name:
        raise NotABackupError(
            f"{file} holds the files of a database that could not be read: they can be rescued, not restored",
            hint=f"Copy them here first: rclone copy {quoted(file)} ."
            if is_elsewhere(file)
            else f"To make a database of what they hold: {rescue_command(file)}",
        )


def _is_missing(file: Path) -> bool:
    """Whether there is nothing of this name; not when that cannot be told."""
    try:
        os.lstat(file)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # opening it tells why
    return False


def _not_there(file: Path, backup_dir: Path, listed: Callable[[], Sequence[BackupInfo]]) -> BackupNotFoundError:
    elsewhere = backup_dir / file.name
    if os.path.isfile(elsewhere):
        return BackupNotFoundError(
            f"there is no file {file}",
            hint=f"It is in another folder, so name it: {same_command(backup=shown(elsewhere))} "
            "(paths on the command line are relative to the current folder)",
        )
    newest = None
    with contextlib.suppress(OperatorError):  # the folder cannot be read
        newest = next(iter(listed()), None)
    propose = f"The newest one here is {quoted(shown(newest.path))}; to see all" if newest else "To see the backups"
    see = f"{propose}: {restore_command('--list')}"
    if ELSEWHERE.match(shown(file)):
        return BackupNotFoundError(
            f"there is no file {file}: a backup elsewhere is read through rclone only, as REMOTE:PATH",
            hint=f"Copy it here first, with the .sha256 beside it, and name the copy. {see}",
        )
    return BackupNotFoundError(f"there is no file {file}", hint=see)


def resolved(path: Path, places: Sequence[str], variables: Mapping[str, str], say: Callable[[str], object]) -> Path:
    """Return what REMOTE:PATH names: REMOTE:latest is the newest backup there, which is said.

    REMOTE alone stands for the configured place at that remote, if there is one.
    """
    place, name = split(path)
    if name != LATEST.name:
        return path
    if place.endswith(":"):
        place = next((one for one in places if one.startswith(place)), place)
    there = Remote(place, variables)
    return Path(there.at(choose_latest(there.backups(), place, say).name))
