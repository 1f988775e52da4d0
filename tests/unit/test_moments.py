"""Moments as people write them, where clocks are changed, too."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backuplib.errors import UsageError
from backuplib.moments import parse_time

Zone = Callable[[str], None]

NOW = datetime(2025, 1, 30, 15, 30, 20, tzinfo=UTC)
ZONES = ["UTC", "Europe/Berlin", "Pacific/Apia", "America/St_Johns", "Asia/Kolkata", "Atlantic/Azores"]


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zone]:
    """zone(name): that of this machine from here on."""

    def change(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield change
    monkeypatch.undo()
    time.tzset()


def read(text: str, now: datetime = NOW) -> tuple[str, list[str]]:
    """The moment in UTC, to the second, and what was said."""
    said: list[str] = []
    return f"{parse_time(text, now, said.append).astimezone(UTC):%Y-%m-%d %H:%M:%S}", said


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("now", "2025-01-30 15:30:20"),
        (" NOW ", "2025-01-30 15:30:20"),
        ("2 hours ago", "2025-01-30 13:30:20"),
        ("1 hour ago", "2025-01-30 14:30:20"),
        ("90  minutes ago", "2025-01-30 14:00:20"),
        ("0 seconds ago", "2025-01-30 15:30:20"),
        ("3 Days ago", "2025-01-27 15:30:20"),
        ("1 week ago", "2025-01-23 15:30:20"),
        ("16:30", "2025-01-30 15:30:00"),  # in Berlin it is 16:30:20
        ("16:30:21", "2025-01-29 15:30:21"),  # of today it would be in the future
        ("9:05", "2025-01-30 08:05:00"),
        ("15:30Z", "2025-01-30 15:30:00"),
        ("23:59 UTC", "2025-01-29 23:59:00"),
        ("today", "2025-01-30 22:59:59"),
        ("today 9:05", "2025-01-30 08:05:00"),
        ("yesterday", "2025-01-29 22:59:59"),
        ("yesterday 14:00", "2025-01-29 13:00:00"),
        ("Yesterday 14:00 UTC", "2025-01-29 14:00:00"),
        ("2025-01-28", "2025-01-28 22:59:59"),
        ("2025-01-28 UTC", "2025-01-28 23:59:59"),
        ("2025-01-28 14:00", "2025-01-28 13:00:00"),
        ("2025-01-28T14:00", "2025-01-28 13:00:00"),
        ("2025-01-28 14:00:05.25", "2025-01-28 13:00:05"),
        ("2025-01-28T14:00:05+02:00", "2025-01-28 12:00:05"),
        ("2025-01-28T14:00:05.123456+02:00", "2025-01-28 12:00:05"),
        ("2025-01-28T14:00:05Z", "2025-01-28 14:00:05"),
        ("2025-01-28 14:00 +0530", "2025-01-28 08:30:00"),
        ("2025-01-28 14:00 -03", "2025-01-28 17:00:00"),
        ("2025-01-28 14:00 America/St_Johns", "2025-01-28 17:30:00"),
        ("2025-01-28 14:00:00 CET", "2025-01-28 13:00:00"),  # as this tool shows it
        ("2024-07-01 14:00 CEST", "2024-07-01 12:00:00"),
    ],
)
def test_every_form_is_read_in_the_zone_of_this_machine_or_in_its_own(zone: Zone, text: str, means: str) -> None:
    zone("Europe/Berlin")
    assert read(text) == (means, [])


WRONG = (
    [
        "",
        " ",
        "noon",
        "tomorrow",
        "ago",
        "2 ago",
        "-2 hours ago",
        "2 months ago",
        "1.5 hours ago",
        "in 2 hours",
        "2025",
    ],
    [
        "2025-01",
        "2025-1-30",
        "30.01.2025",
        "01/30/2025",
        "2025-02-30",
        "2025-01-30 24:00",
        "2025-01-30 14",
        "9999-12-31",
    ],
    [
        "14",
        "14:60",
        "14:00:60",
        "25:00",
        "2 pm",
        "2025-01-3014:00",
        "2025-01-30-05",
        "todayZ",
        "UTC",
        "+02:00",
        "latest",
    ],
    ["14:00 CEST", "14:00 EST", "14:00 Europe/Bonn", "14:00 Europe/", "14:00 ../../etc/passwd", "14:00 CET CET"],
    ["14:00 +25:00", "14:00 +02:60", "14:00 +2", "٢٠٢٥-01-30", "14:00\n14:00", "999999 weeks ago", "x\x1b[2J"],
)


@pytest.mark.parametrize("text", [text for texts in WRONG for text in texts])
def test_what_cannot_be_read_is_refused_naming_the_forms(zone: Zone, text: str) -> None:
    zone("Europe/Berlin")
    with pytest.raises(UsageError) as refusal:
        parse_time(text, NOW)
    assert "2025-01-30 14:00" in refusal.value.hint
    assert "end of that day" in refusal.value.hint
    assert str(refusal.value).isprintable()


def test_zone_of_another_time_of_the_year_is_told(zone: Zone) -> None:
    zone("Europe/Berlin")
    with pytest.raises(UsageError, match=r"CEST.*CET"):
        parse_time("2025-01-28 14:00 CEST", NOW)


def test_last_time_that_has_been_may_be_of_the_day_before_the_clocks_change(zone: Zone) -> None:
    zone("Europe/Berlin")
    now = datetime(2025, 10, 26, 0, 40, tzinfo=UTC)  # 02:40 CEST, and at 14:00 it will be CET
    assert read("14:00 CEST", now) == ("2025-10-25 12:00:00", [])
    assert read("14:00", now) == ("2025-10-25 12:00:00", [])
    with pytest.raises(UsageError, match=r"CET.*CEST"):
        parse_time("14:00 CET", now)


def test_time_that_comes_twice_is_the_first_one_and_told(zone: Zone) -> None:
    zone("Europe/Berlin")
    now = datetime(2025, 10, 27, tzinfo=UTC)
    moment, (said,) = read("2025-10-26 02:30", now)
    assert moment == "2025-10-26 00:30:00"
    assert "02:30:00 CEST" in said
    assert "02:30:00 CET" in said
    assert read("2025-10-26 02:30 CEST", now) == ("2025-10-26 00:30:00", [])
    assert read("2025-10-26 02:30 CET", now) == ("2025-10-26 01:30:00", [])
    assert read("2025-10-26 02:30 +01:00", now) == ("2025-10-26 01:30:00", [])
    assert read("2025-10-26", now) == ("2025-10-26 22:59:59", [])


def test_time_that_does_not_come_ends_where_the_clocks_jump_and_is_told(zone: Zone) -> None:
    zone("Europe/Berlin")
    now = datetime(2025, 4, 1, tzinfo=UTC)
    for text in ("2025-03-30 02:00", "2025-03-30 02:30", "2025-03-30 02:59:59.9", "2025-03-30 02:30 CET"):
        moment, (said,) = read(text, now)
        assert moment == "2025-03-30 00:59:59", text
        assert "01:59:59 CET" in said
    assert read("2025-03-30 03:00", now) == ("2025-03-30 01:00:00", [])
    assert read("2025-03-30 01:59:59", now) == ("2025-03-30 00:59:59", [])


def test_day_that_does_not_come_ends_where_the_clocks_jump(zone: Zone) -> None:
    zone("Pacific/Apia")
    for text in ("2011-12-30", "2011-12-30 12:00"):
        assert read(text)[0] == "2011-12-30 09:59:59"
    assert read("2011-12-31 00:00")[0] == "2011-12-30 10:00:00"


def test_midnight_that_comes_twice_ends_the_day_at_its_first(zone: Zone) -> None:
    zone("Atlantic/Azores")
    assert read("2024-10-26") == ("2024-10-26 23:59:59", [])
    zone("America/St_Johns")  # its clocks were changed at one minute past midnight
    assert read("2010-11-06") == ("2010-11-07 02:29:59", [])


def test_moment_in_the_future_is_told(zone: Zone) -> None:
    zone("UTC")
    moment, (said,) = read("2052-01-30 14:00")
    assert moment == "2052-01-30 14:00:00"
    assert "future" in said
    assert read("today 15:30:21")[1]
    assert read("today")[1] == []


MOMENTS = st.integers(631152000, 2051222400).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
LATER = datetime(2040, 1, 1, tzinfo=UTC)


@given(moment=MOMENTS, hours=st.integers(-30, 30), name=st.sampled_from(ZONES))
def test_nothing_later_than_what_was_written_ever_counts(moment: datetime, hours: int, name: str) -> None:
    """Whatever the clocks do: what counts is shown on them as at or before that, and all of that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", name)
        time.tzset()
        written = moment.astimezone().replace(tzinfo=None) + timedelta(hours=hours)  # it may not come at all
        said: list[str] = []
        until = parse_time(written.isoformat(), LATER, said.append)
        assert until.astimezone().replace(tzinfo=None) <= written
        if not said:
            assert until.astimezone().replace(tzinfo=None) == written
        other = (until + timedelta(seconds=1)).astimezone().replace(tzinfo=None)
        assert other > written or said
        if hours == 0:  # a moment's own time means it, or the first of two
            assert until <= moment
            assert (until == moment) or said
    time.tzset()


@given(moment=MOMENTS, minutes=st.integers(-14 * 60, 14 * 60))
def test_moment_with_its_zone_is_that_moment(moment: datetime, minutes: int) -> None:
    there = moment.astimezone(timezone(timedelta(minutes=minutes)))
    for text in (there.isoformat(), f"{there:%Y-%m-%d %H:%M:%S.%f %z}"):
        assert parse_time(text, LATER) == moment
