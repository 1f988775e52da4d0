"""Copying backups to the remotes: the new one after `create`, and with `push` all that one of them lacks.

What a restore keeps as its safety backup stays here: the bot is down then, and waits for no server. `push` copies it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from backuplib import errors
from backuplib.backup_file import BackupInfo
from backuplib.formatting import megabytes, plural, printable
from backuplib.remote import Remote

Say = Callable[[str], object]


def push_new(remotes: Sequence[Remote], backup: Path, say: Say) -> None:
    """Copy a backup that has just been made to each remote, and say so.

    :raises NotEverywhereError: when it is not at all of them; the others have it.
    """
    info = BackupInfo.of(backup)
    failures = [error for remote in remotes for error in _copied(remote, [info] if info else [], say)]
    if failures:
        raise _not_everywhere(failures, f"The backup is made, and safe here: {backup}")


def push_missing(remotes: Sequence[Remote], backups: Sequence[BackupInfo], say: Say) -> None:
    """Copy to each remote what it lacks, the newest first, and say what was done.

    :raises RefusedError: when there is no remote.
    :raises NotEverywhereError: when one lacks something afterwards; the others have all.
    """
    if not remotes:
        raise errors.WrongSettingError(
            "BACKUP_REMOTES is not set: there is nowhere to copy to",
            hint='Set it in .env to rclone paths, such as offsite:shopbot; README.md, "Off the host", shows how.',
        )
    failures: list[errors.OperatorError] = []
    for remote in remotes:
        try:
            lacking = remote.lacking(backups)
        except errors.RemoteError as error:
            failures.append(_told(remote, error, say))
            continue
        failed = list(_copied(remote, lacking, say))
        failures += failed
        if not failed:
            say(f"✅ {remote.place} has all {plural(len(backups), 'backup')}")
    if failures:
        raise _not_everywhere(failures, "")


def _copied(remote: Remote, backups: Sequence[BackupInfo], say: Say) -> Iterator[errors.OperatorError]:
    """Copy backups to a remote; yield what failed, and end where the others would fail, too."""
    for backup in backups:
        began = time.monotonic()
        try:
            copied = remote.push(backup.path)
        except errors.OperatorError as error:
            yield _told(remote, error, say, backup.path.name)
            if isinstance(error, errors.RemoteError) and not isinstance(error, errors.RemoteConflictError):
                return
        else:
            name, how = printable(backup.path.name), f"({time.monotonic() - began:.1f} s)"
            if copied:
                say(f"✅ Copied to {remote.place}: {name}, {megabytes(backup.size)} {how}")


def _told(remote: Remote, error: errors.OperatorError, say: Say, name: str = "") -> errors.OperatorError:
    say(f"⚠️  Not copied to {remote.place}: {f'{printable(name)}: ' if name else ''}{error}")
    if error.hint:
        say(f"   {error.hint}")
    return error


def _not_everywhere(failures: Sequence[errors.OperatorError], state: str) -> errors.NotEverywhereError:
    """Return the error at the end; above it stands of each what to do."""
    push = errors.restore_command("push", script="database_backup.py")
    return errors.NotEverywhereError(
        f"not every remote has what is here: {'; '.join(dict.fromkeys(map(str, failures)))}",
        hint=f"To copy what a remote lacks: {push}",
        state=state,
    )
