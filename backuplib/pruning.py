"""Removing the backups that the policy does not keep, here and at the remotes, and saying why each other one is kept.

Kept whatever the policy says: the newest one, the newest one that was proved, the safety backup of the last restore,
what has not this tool's names, or is an SQL dump of the bot's; and what may not be whole at a remote, which takes the
place of no other. The oldest are removed first, and each backup before
its checksum: an interruption leaves whole backups, and at most one checksum without a backup.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from backuplib import errors, proofs
from backuplib.backup_file import BACKUP_NAME, SQL_DUMP, BackupFile, BackupInfo, checksum_path, recorded_checksum
from backuplib.files import fsync_folder
from backuplib.formatting import instant, plural, printable, quoted
from backuplib.outcome import LastRestore, UnknownOutcomeError
from backuplib.proofs import Proof, UnknownProofsError
from backuplib.remote import Remote
from backuplib.retention import Decision, Policy, decide, is_safety_backup

FOREIGN, OF_THE_BOT = "not a name of this tool's", "an SQL dump of the bot's (--bots-too)"
LAST_SAFETY = "safety backup of the last restore"

Digest = Callable[[BackupInfo], str | None]
Say = Callable[[str], object]


@dataclass(frozen=True)
class Rule:
    """What is kept: by the policy, and whatever that says.

    :param proved: by the SHA-256 of the backup.
    :param safety_backup: name of the one of the last restore; empty without one, None when that is not known.
    :param bots_too: SQL dumps of the bot's follow the policy, too.
    """

    policy: Policy
    proved: Mapping[str, Proof]
    safety_backup: str | None
    bots_too: bool

    @classmethod
    def of(cls, policy: Policy, db_path: Path, backup_dir: Path, *, bots_too: bool, warn: Say) -> Self:
        """Return the rule for the backups of a database, with what was proved and restored.

        :raises RefusedError: when it cannot be told which backups were proved.
        """
        try:
            proved = proofs.by_checksum(proofs.read(backup_dir))
        except UnknownProofsError as error:
            path = backup_dir / proofs.NAME
            raise errors.RefusedError(
                f"not known which backups were proved: {error}",
                hint=f"Run this as root, or as whom the restores are run; a file that nobody knows: mv {quoted(path)} "
                f"{quoted(f'{path}.unknown')}",
            ) from None
        safety: str | None = ""
        try:
            last = LastRestore.of(Path(os.path.realpath(db_path)), backup_dir)
            safety = Path(last.safety_backup).name if last and last.safety_backup else ""
        except UnknownOutcomeError as error:
            warn(f"not known which is the safety backup of the last restore, so all are kept: {error}")
            safety = None
        return cls(policy, proved, safety, bots_too)

    def decide(self, backups: Sequence[BackupInfo], digest: Digest) -> list[Decision]:
        """Decide for each backup of a place whether it is kept, newest first.

        :param digest: returns the SHA-256 of a backup that may have been proved, None of any other.
        """
        others = {item.path: reason for item in backups if (reason := self._not_ruled(item))}
        ours = [item for item in backups if item.path not in others]
        always = {item.path: [LAST_SAFETY] for item in ours if self._may_be_last_safety_backup(item)}
        for series in (is_safety_backup, lambda item: not is_safety_backup(item)):
            for item, proof in self._last_proved(filter(series, ours), digest):
                always.setdefault(item.path, []).append(f"last proved: {proof.how} {instant(proof.when)}")
        now, sure = datetime.now().astimezone(), [item for item in ours if not item.doubt] or ours
        decided = decide(sure, self.policy, now, always)
        newest = max((item.created for item in sure), default=now)
        for decision in decide(ours, self.policy, now, always):
            if (item := decision.backup) not in sure:  # it takes the place of no other, and stays as long as if it did
                stays = decision.reasons or item.created >= newest
                decided.append(Decision(item, (item.doubt,) if stays else ()))
        decided += [Decision(item, (others[item.path],)) for item in backups if item.path in others]
        return sorted(decided, key=lambda decision: decision.backup.created, reverse=True)

    def _not_ruled(self, backup: BackupInfo) -> str:
        if not BACKUP_NAME.fullmatch(backup.path.name):
            return FOREIGN
        return "" if self.bots_too or backup.kind != SQL_DUMP else OF_THE_BOT

    def _may_be_last_safety_backup(self, backup: BackupInfo) -> bool:
        return is_safety_backup(backup) if self.safety_backup is None else backup.path.name == self.safety_backup

    def _last_proved(self, backups: Iterable[BackupInfo], digest: Digest) -> list[tuple[BackupInfo, Proof]]:
        """Return the newest backup that was proved, with its latest proof; nothing without one."""
        newest_first = sorted(backups, key=lambda item: item.created, reverse=True)
        found = ((item, self.proved.get(digest(item) or "")) for item in newest_first)
        return next(([(item, proof)] for item, proof in found if proof), [])

    def may_be_proved(self, name: str, recorded: str | None) -> bool:
        """Whether there is a proof of a backup of this name, or with this checksum beside it."""
        return recorded in self.proved or any(proof.name == name for proof in self.proved.values())


# --- here --------------------------------------------------------------------------------------------------------


def decide_here(rule: Rule, backups: Sequence[BackupInfo]) -> list[Decision]:
    """Decide about the backups in the backup folder; what counts as proved is what its content says."""

    def digest(backup: BackupInfo) -> str | None:
        with contextlib.suppress(errors.RefusedError):  # it is damaged, or gone: nobody needs it for its proof
            if rule.may_be_proved(backup.path.name, recorded_checksum(backup.path)):
                with contextlib.closing(BackupFile(backup.path)) as file:
                    file.verify()
                    return file.expected
        return None

    return rule.decide(backups, digest)


def remove_here(decisions: Sequence[Decision]) -> Iterator[Path]:
    """Remove what is not kept, and yield each path when that is gone.

    :raises RefusedError: when one cannot be removed, saying how many were.
    """
    for removed, path in enumerate(_to_remove(decisions)):
        try:
            path.unlink(missing_ok=True)
            checksum_path(path).unlink(missing_ok=True)
            fsync_folder(path.parent)
        except OSError as error:
            raise errors.RefusedError(
                f"cannot remove {path}: {error.strerror}",
                hint=f"Check: ls -ld {quoted(path.parent)}; or run this as root.",
                state=f"{plural(removed, 'older backup')} removed before that." if removed else "",
            ) from None
        yield path


def _to_remove(decisions: Sequence[Decision]) -> list[Path]:
    """Return what is not kept, the oldest first."""
    return [decision.backup.path for decision in reversed(decisions) if not decision.reasons]


# --- the command -------------------------------------------------------------------------------------------------


def prune_here(rule: Rule, backups: Sequence[BackupInfo], say: Say, *, dry_run: bool) -> None:
    """Say why backups in the backup folder are kept, and remove the others; RefusedError when one cannot be removed."""
    decisions = decide_here(rule, backups)
    _say_kept(decisions, "", say)
    for path in _to_remove(decisions) if dry_run else remove_here(decisions):
        say(f"{'would remove' if dry_run else 'removed'} {printable(str(path))}")


def prune_remotes(rule: Rule, remotes: Sequence[Remote], say: Say, warn: Say, *, dry_run: bool) -> None:
    """Do the same at each remote. What a lock or missing permission keeps there is told, and no error.

    :raises NotEverywhereError: when one of them could not be pruned; the others were.
    """
    failures = []
    for remote in remotes:
        try:
            _prune_at(rule, remote, say, dry_run=dry_run)
        except errors.RemoteError as error:
            warn(f"{remote.place} was not pruned, or not all of it: {error}")
            failures.append(error)
    if failures:
        raise errors.NotEverywhereError(
            f"not every remote was pruned: {'; '.join(dict.fromkeys(map(str, failures)))}",
            hint=f"The next prune removes what is left. {failures[0].hint}",
            state="The backups here were pruned." if not dry_run else "",
        )


def _prune_at(rule: Rule, remote: Remote, say: Say, *, dry_run: bool) -> None:
    def digest(backup: BackupInfo) -> str | None:
        """Return what stands beside it there: to read all of it would take a download."""
        with contextlib.suppress(errors.ChecksumUnreadableError):
            return remote.checksum(backup.path.name) if rule.may_be_proved(backup.path.name, None) else None
        return None

    decisions = rule.decide(remote.backups(), digest)
    _say_kept(decisions, remote.at(""), say)
    for path in _to_remove(decisions):
        name = remote.at(printable(path.name))
        if lock := remote.lock(path.name):
            say(f"kept {name}: {lock}")
        elif dry_run:
            say(f"would remove {name}, if the remote lets us")
        else:
            say(_removed(remote, path.name))


def _removed(remote: Remote, name: str) -> str:
    """Remove a backup at a remote, and return what came of it."""
    shown = remote.at(printable(name))
    try:
        remote.remove(name)
    except errors.RemoteLockedError as error:
        return f"kept {shown}: {error}"
    return f"removed {shown}"


def _say_kept(decisions: Sequence[Decision], place: str, say: Say) -> None:
    for decision in decisions:
        if decision.reasons:
            name = place + decision.backup.path.name if place else str(decision.backup.path)
            say(f"kept {printable(name)}: {', '.join(decision.reasons)}")
