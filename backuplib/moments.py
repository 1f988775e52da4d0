"""Moments as people write them: `now`, `14:00`, `yesterday 14:00`, `2025-01-30 14:00 +02:00`, `2 hours ago`.

They say until when something counts. So of two readings the earlier one is taken, and never more than what was written:
a time that comes twice when clocks are changed is the first one, one that does not come ends where the clocks jump, and
`14:00` alone is the last one that has been. What is odd is said.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from backuplib.errors import UsageError
from backuplib.formatting import instant, printable

FORMS = (
    "now; 2 hours ago (seconds, minutes, hours, days, weeks); 14:00, which is the last one that has been; yesterday "
    "14:00; 2025-01-30, which is the end of that day; 2025-01-30 14:00; 2025-01-30T14:00:05+02:00. A zone may stand "
    "behind it: +02:00, UTC, Europe/Berlin; without one it is that of this machine"
)

_AGO = re.compile(r"([0-9]{1,6}) (second|minute|hour|day|week)s? ago", re.IGNORECASE)
_OFFSET = re.compile(r"([+-])([0-9]{2})(?::?([0-5][0-9]))?")
_DAY = r"(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2}|today|yesterday)"
_TIME = r"(?P<time>[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?)"
_ZONE = rf"(?P<zone>{_OFFSET.pattern}|[A-Z][\w/+-]*)"
_WITH_TIME = re.compile(rf"(?:{_DAY}[T ])?{_TIME} ?{_ZONE}?", re.IGNORECASE | re.ASCII)
_DAY_ALONE = re.compile(rf"{_DAY}(?: {_ZONE})?", re.IGNORECASE | re.ASCII)

_LEAST = datetime.resolution
_ONE_DAY = timedelta(days=1)

Say = Callable[[str], object]


def parse_time(text: str, now: datetime, say: Say = lambda _: None) -> datetime:
    """Return the moment that a text means, in the zone of this machine.

    :param now: with a zone.
    :param say: is told what is odd: a time that comes twice or not at all, a moment in the future.
    :raises UsageError: when it is in none of the forms, naming them.
    """
    words = " ".join(text.split())
    try:
        if words.lower() == "now":
            return now.astimezone()
        if ago := _AGO.fullmatch(words):
            return (now - timedelta(**{f"{ago[2].lower()}s": int(ago[1])})).astimezone()
        return _read(words, now, say).astimezone()
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"{printable(text)!r} is no time that can be read: {error}", hint=f"It must be one of these: {FORMS}."
        ) from None


def _read(words: str, now: datetime, say: Say) -> datetime:
    """Return the moment of a day, a time, or both; ValueError when the text cannot be read."""
    if not (found := _WITH_TIME.fullmatch(words) or _DAY_ALONE.fullmatch(words)):
        raise ValueError("it has none of the known forms")
    said = found.groupdict()
    zone = _Zone.of(said["zone"])
    today = now.astimezone(zone.info).date()
    if not said["day"]:
        clock = _time(said["time"])
        try:
            has_been = zone.moment(today, clock) <= now
        except ValueError:  # today, when the clocks change, it is in another zone
            has_been = False
        return zone.moment(today if has_been else today - _ONE_DAY, clock, say)
    words = said["day"].lower()
    day = {"today": today, "yesterday": today - _ONE_DAY}.get(words) or date.fromisoformat(words)
    if "time" not in said:
        return zone.moment(day + _ONE_DAY, time()) - _LEAST
    moment = zone.moment(day, _time(said["time"]), say)
    if moment > now:
        say(f"{instant(moment)} is in the future")
    return moment


def _time(text: str) -> time:
    return time.fromisoformat(text if text[2] == ":" else f"0{text}")


class _Zone:
    """A zone: ``info`` None: that of this machine, where it must be called so, if there is a ``name``."""

    def __init__(self, info: tzinfo | None, name: str = "") -> None:
        self.info, self.name = info, name

    @classmethod
    def of(cls, word: str | None) -> _Zone:
        """Return the zone that a word means; ValueError when there is no such zone."""
        if not word:
            return cls(None)
        if word.upper() in ("Z", "UTC", "GMT"):
            return cls(UTC)
        if offset := _OFFSET.fullmatch(word):
            sign, hours, minutes = offset.groups()
            return cls(timezone(timedelta(hours=int(f"{sign}{hours}"), minutes=int(f"{sign}{minutes or 0}"))))
        if "/" not in word:
            return cls(None, word)
        try:
            return cls(ZoneInfo(word))
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"this machine knows no zone {word}") from None

    def moment(self, day: date, clock: time, say: Say = lambda _: None) -> datetime:
        """Return when the clocks of the zone show this: the first time, or, where they jump over it, just before."""
        shown = datetime.combine(day, clock)
        first, second = (self._as_read(shown.replace(fold=fold)) for fold in (0, 1))
        if first > second:
            last = self._jump(second, first) - _LEAST
            say(f"{shown} does not come: the clocks jump over it; it counts as {instant(last)}")
            return last
        if self.name:
            if not (called := [moment for moment in (first, second) if f"{moment.astimezone():%Z}" == self.name]):
                raise ValueError(f"{self.name} is not what the zone of this machine is called then: {first:%Z}")
            return called[0]
        if first < second:
            say(
                f"{shown} comes twice, as the clocks are set back: it counts as {instant(first)}, the first; "
                f"the second is {instant(second)}"
            )
        return first

    def _as_read(self, shown: datetime) -> datetime:
        if self.info is not None:
            return shown.replace(tzinfo=self.info).astimezone()
        # not astimezone: it has the order of the two reversed where the clocks jump
        seconds = shown.replace(microsecond=0).timestamp()
        return datetime.fromtimestamp(seconds).astimezone() + timedelta(microseconds=shown.microsecond)

    def _jump(self, before: datetime, after: datetime) -> datetime:
        """Return when the clocks jump between two moments."""
        start = before.astimezone(UTC).replace(microsecond=0)

        def has_jumped(seconds: int) -> bool:
            return self._offset(start + timedelta(seconds=seconds)) != self._offset(start)

        seconds = bisect_left(range(int((after - start).total_seconds()) + 1), x=True, key=has_jumped)
        return start + timedelta(seconds=seconds)

    def _offset(self, moment: datetime) -> timedelta | None:
        return moment.astimezone(self.info).utcoffset()
