"""The backup file that was named: what is none is told before a key is asked for, with what to type instead."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from backuplib.backup_file import ENCRYPTED_NAMES, Backup, BackupInfo, checksum_path
from backuplib.errors import (
    BackupNotFoundError,
    NotABackupError,
    NotEncryptedAsNamedError,
    OperatorError,
    UsageError,
    choose_another_backup_hint,
    rescue_command,
    restore_command,
    same_command,
)
from backuplib.formatting import quoted, shown
from backuplib.remote import Remote, is_elsewhere, split
from backuplib.selection import LATEST

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


def refuse_plain_as_encrypted(backup: Backup) -> None:
    """Refuse a backup that is not encrypted under a name that says so: whoever can write there can make one, keyless.

    :raises NotEncryptedAsNamedError: with the commands that give it a true name, for the person who made it so.
    """
    if backup.layer == "openpgp" or not backup.name.endswith(ENCRYPTED_NAMES):
        return
    renamed = backup.path.with_suffix("")
    moves = [(backup.path, renamed), (checksum_path(backup.path), checksum_path(renamed))]
    commands = [f"mv -n {quoted(shown(old))} {quoted(shown(new))}" for old, new in moves if os.path.lexists(old)]
    rename = f"If you know that it is yours, give it a true name: {' && '.join(commands)}"
    raise NotEncryptedAsNamedError(
        f"{backup.name} is not encrypted, though its name says so: anybody could have put it there",
        hint=f"{rename}; then: {same_command(backup=shown(renamed))}" if backup.here else choose_another_backup_hint(),
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


def latest_at(path: Path, places: Sequence[str], variables: Mapping[str, str]) -> Remote | None:
    """Return the remote whose newest backup is meant by REMOTE:latest; None for what is no such name.

    REMOTE alone stands for the configured place at that remote, if there is one.

    :raises UsageError: when there are several.
    """
    place, name = split(path)
    if not is_elsewhere(path) or name != LATEST.name:
        return None
    if not place.endswith(":") or place in places:
        return Remote(place, variables)
    configured = [one for one in places if one.startswith(place)]
    names = [f"{one}/{LATEST}" for one in configured]
    if len(names) > 1:
        raise UsageError(
            f"{path} is at more than one of the places where backups are",
            hint=f"Name one of these: {', '.join(names)}; such as: {same_command(backup=shown(Path(names[0])))}",
        )
    return Remote(configured[0] if configured else place, variables)
