"""Which backups are kept, and why; pure: nothing here looks at a disk or a clock.

A policy says it as restic does (``forget --keep-…``): ``daily=14`` keeps the newest backup of each of the last 14 days
that have one; ``last=24`` the newest 24. Days without a backup do not count, so that an outage uses nothing up, and a
backup may be kept for several reasons. Hours, days, weeks (ISO 8601: from Monday), months and years are those of this
machine's zone; an hour that the clock goes through twice is two. Each series is looked at by itself: what was made
before a restore does not take the place of an ordinary backup of that day.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self

from backuplib.backup_file import AS_THEY_WERE, BEFORE_A_RESTORE, BackupInfo
from backuplib.formatting import CLOCKS_DIFFER, plural

Bucket = Callable[[datetime], str]  # what is equal for backups of one period

PERIODS: Mapping[str, Bucket] = {
    "hourly": lambda made: f"{made:%Y-%m-%d %H:00 %Z}",
    "daily": lambda made: f"{made:%Y-%m-%d}",
    "weekly": lambda made: f"{made:%G-W%V}",
    "monthly": lambda made: f"{made:%Y-%m}",
    "yearly": lambda made: f"{made:%Y}",
}
LAST = "last"

NEWEST, IN_THE_FUTURE = "newest", "its time is in the future"


class PolicyError(ValueError):
    """A text is no policy; says why."""


@dataclass(frozen=True)
class Policy:
    """What is kept: so many of each period, or what is younger than so many days.

    :param counts: by "last" and the names of periods.
    """

    counts: Mapping[str, int]
    days: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what a text such as ``last=24 daily=14`` says.

        :raises PolicyError: saying what is wrong with it.
        """
        counts: dict[str, int] = {}
        for word in text.split():
            name, _, number = word.partition("=")
            if name not in (LAST, *PERIODS) or not re.fullmatch("[0-9]{1,5}", number):
                raise PolicyError(f"{word!r} is none of last=N, {', '.join(f'{name}=N' for name in PERIODS)}")
            if name in counts:
                raise PolicyError(f"{name} is given twice")
            counts[name] = int(number)
        if not any(counts.values()):
            raise PolicyError("it would keep nothing")
        return cls(counts)

    @classmethod
    def younger_than(cls, days: int) -> Self:
        """Return the policy that keeps what is not older than so many days."""
        return cls({}, days)

    def __str__(self) -> str:
        """Return it as it is written in the settings."""
        if self.days is not None:
            return f"younger than {plural(self.days, 'day')}"
        return " ".join(f"{name}={number}" for name, number in self.counts.items())


@dataclass(frozen=True)
class Decision:
    """A backup and why it is kept; without a reason it is to be removed."""

    backup: BackupInfo
    reasons: tuple[str, ...]


def decide(
    backups: Sequence[BackupInfo],
    policy: Policy,
    now: datetime,
    always: Mapping[Path, Sequence[str]],
    zone: tzinfo | None = None,
) -> list[Decision]:
    """Decide for each backup whether it is kept, newest first.

    :param always: reasons for which backups are kept whatever the policy says, by their paths.
    :param zone: of the periods; None: this machine's.
    """
    ordered = sorted(backups, key=lambda backup: (backup.created, backup.path.name), reverse=True)
    present = [backup for backup in ordered if backup.created <= now + timedelta(seconds=CLOCKS_DIFFER)]
    reasons: dict[Path, list[str]] = {backup.path: [IN_THE_FUTURE] for backup in ordered}
    reasons |= {backup.path: [] for backup in present}
    for series in _series(present):
        reasons[series[0].path].append(NEWEST)
        for backup, reason in _kept_by(policy, series, now, zone):
            reasons[backup.path].append(reason)
    return [Decision(backup, (*reasons[backup.path], *always.get(backup.path, ()))) for backup in ordered]


def is_safety_backup(backup: BackupInfo) -> bool:
    """Whether a backup was made before a restore."""
    return backup.kind in (BEFORE_A_RESTORE, AS_THEY_WERE)


def _series(backups: Sequence[BackupInfo]) -> list[list[BackupInfo]]:
    """Return the backups of each series, in their order; those of one kind are one, but for the safety backups."""
    found: dict[str, list[BackupInfo]] = {}
    for backup in backups:
        found.setdefault(BEFORE_A_RESTORE if is_safety_backup(backup) else backup.kind, []).append(backup)
    return [*found.values()]


def _kept_by(
    policy: Policy, series: Sequence[BackupInfo], now: datetime, zone: tzinfo | None
) -> list[tuple[BackupInfo, str]]:
    """Return what a policy keeps of a series, newest first, each with a reason; a backup may come several times."""
    if policy.days is not None:
        seconds, reason = policy.days * 86400, str(policy)  # more days than a date can have are a policy, too
        return [(backup, reason) for backup in series if (now - backup.created).total_seconds() <= seconds]
    kept = [(backup, LAST) for backup in series[: policy.counts.get(LAST, 0)]]
    for name, bucket in PERIODS.items():
        count = policy.counts.get(name, 0)
        kept += [
            (backup, f"{name} {period}") for period, backup in _newest_of_each(series, bucket, zone, count).items()
        ]
    return kept


def _newest_of_each(
    series: Sequence[BackupInfo], bucket: Bucket, zone: tzinfo | None, count: int
) -> dict[str, BackupInfo]:
    """Return the newest backup of each of the last periods that have one, so many at most."""
    newest: dict[str, BackupInfo] = {}
    for backup in series:
        period = bucket(backup.created.astimezone(zone))
        if period not in newest and len(newest) == count:
            break
        newest.setdefault(period, backup)
    return newest
