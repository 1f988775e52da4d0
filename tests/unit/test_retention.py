"""Which backups are kept, and why: what a policy says holds over days, outages and clock changes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from backuplib.backup_file import AS_THEY_WERE, BEFORE_A_RESTORE, ORDINARY, SQL_DUMP, BackupInfo
from backuplib.retention import PERIODS, Decision, Policy, PolicyError, decide

NOW = datetime(2025, 1, 30, 12, 0, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


def backup(made: datetime, kind: str = ORDINARY, name: str = "") -> BackupInfo:
    """A backup of that moment."""
    return BackupInfo(Path(name or f"{made:%Y%m%d_%H%M%S}{kind}"), made, 1, encrypted=True, kind=kind)


def ago(**span: float) -> BackupInfo:
    """A backup that was made so long ago."""
    return backup(NOW - timedelta(**span))


def reasons(
    backups: Sequence[BackupInfo],
    policy: str,
    now: datetime = NOW,
    always: Mapping[Path, Sequence[str]] | None = None,
    zone: tzinfo = UTC,
) -> list[tuple[str, ...]]:
    """Why each backup is kept, newest first; empty: it is removed."""
    return [decision.reasons for decision in decide(backups, Policy.parse(policy), now, always or {}, zone)]


# --- the setting -----------------------------------------------------------------------------------------------------


def test_policy_is_read_and_shown_as_it_is_written() -> None:
    text = "last=24 hourly=48 daily=14 weekly=8 monthly=12 yearly=2"
    assert str(Policy.parse(text)) == text
    assert Policy.parse("  yearly=0\tlast=1\n").counts == {"yearly": 0, "last": 1}
    assert str(Policy.younger_than(7)) == "younger than 7 days"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "would keep nothing"),
        ("daily=0 last=0", "would keep nothing"),
        ("daily", "'daily' is none of last=N, hourly=N"),
        ("daily=", "'daily=' is none"),
        ("daily=-1", "is none"),
        ("daily=1.5", "is none"),
        ("daily=٣", "is none"),
        ("daily=1000000", "is none"),
        ("Daily=3", "is none"),
        ("days=3", "is none"),
        ("daily=3,weekly=2", "is none"),
        ("daily = 3", "is none"),
        ("daily=3 daily=3", "given twice"),
    ],
)
def test_what_is_no_policy_is_refused_saying_why(text: str, why: str) -> None:
    with pytest.raises(PolicyError, match=why):
        Policy.parse(text)


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_each_reason_is_told() -> None:
    backups = [ago(hours=1), ago(hours=2), ago(days=1), ago(days=1, hours=1), ago(days=40), ago(days=400)]
    assert reasons(backups, "last=2 daily=2 weekly=2 monthly=2 yearly=1") == [
        ("newest", "last", "daily 2025-01-30", "weekly 2025-W05", "monthly 2025-01", "yearly 2025"),
        ("last",),
        ("daily 2025-01-29",),
        (),
        ("weekly 2024-W51", "monthly 2024-12"),
        (),
    ]
    assert reasons(backups[:2], "hourly=5") == [
        ("newest", "hourly 2025-01-30 11:00 UTC"),
        ("hourly 2025-01-30 10:00 UTC",),
    ]


def test_days_without_a_backup_use_nothing_up() -> None:
    assert [*map(bool, reasons([ago(days=days) for days in (0, 30, 31, 200, 500)], "daily=4"))] == [True] * 4 + [False]


def test_weeks_are_those_of_iso_8601_also_where_years_meet() -> None:
    sunday, monday, new_year = (
        backup(datetime(*day, 12, tzinfo=UTC)) for day in ((2024, 12, 29), (2024, 12, 30), (2025, 1, 1))
    )
    assert reasons([sunday, monday, new_year], "weekly=2") == [("newest", "weekly 2025-W01"), (), ("weekly 2024-W52",)]


def test_days_are_those_of_the_zone() -> None:
    late, early = backup(datetime(2025, 1, 29, 22, 30, tzinfo=UTC)), backup(datetime(2025, 1, 29, 23, 30, tzinfo=UTC))
    assert [*map(bool, reasons([late, early], "daily=9"))] == [True, False]
    assert [*map(bool, reasons([late, early], "daily=9", zone=BERLIN))] == [True, True]


def test_hour_that_the_clock_goes_through_twice_is_two_hours() -> None:
    summer, winter = (backup(datetime(2024, 10, 27, hour, 30, tzinfo=UTC)) for hour in (0, 1))  # both 02:30 in Berlin
    assert reasons([summer, winter], "hourly=9", zone=BERLIN) == [
        ("newest", "hourly 2024-10-27 02:00 CET"),
        ("hourly 2024-10-27 02:00 CEST",),
    ]


def test_safety_backup_does_not_take_the_place_of_an_ordinary_one() -> None:
    ordinary, dump = ago(hours=3), backup(NOW - timedelta(hours=9), SQL_DUMP)
    before, raw = (backup(NOW - timedelta(hours=h), kind) for h, kind in ((1, BEFORE_A_RESTORE), (2, AS_THEY_WERE)))
    assert reasons([ordinary, before, raw, dump], "daily=1") == [
        ("newest", "daily 2025-01-30"),
        (),
        ("newest", "daily 2025-01-30"),
        ("newest", "daily 2025-01-30"),
    ]


def test_time_in_the_future_is_kept_and_takes_no_place() -> None:
    backups = [ago(days=-400), ago(seconds=-3), ago(hours=1), ago(hours=2)]
    assert reasons(backups, "last=1") == [("its time is in the future",), ("newest", "last"), (), ()]


def test_days_of_retention_are_a_policy_too_and_the_newest_stays() -> None:
    old = [ago(days=8), ago(days=9)]
    assert all(item.reasons for item in decide(old, Policy.younger_than(10**9), NOW, {}, UTC))  # more than there are
    kept = decide([ago(days=6.9), *old], Policy.younger_than(7), NOW, {}, UTC)
    assert [item.reasons for item in kept] == [("newest", "younger than 7 days"), (), ()]
    assert [item.reasons for item in decide(old, Policy.younger_than(7), NOW, {}, UTC)] == [("newest",), ()]


def test_what_is_always_kept_says_so_and_takes_no_place() -> None:
    backups = [ago(hours=1), ago(hours=2), ago(hours=3)]
    assert reasons(backups, "last=2", always={backups[2].path: ["last proven"], Path("another"): ["x"]}) == [
        ("newest", "last"),
        ("last",),
        ("last proven",),
    ]


# --- 200 days --------------------------------------------------------------------------------------------------------

policies = st.dictionaries(st.sampled_from(["last", *PERIODS]), st.integers(1, 12), min_size=1, max_size=4).map(Policy)

days = st.lists(
    st.tuples(
        st.lists(st.integers(0, 24 * 60 - 1), max_size=3),  # minutes at which a backup is made; none: an outage
        st.integers(0, 3).map(lambda number: number == 0),  # whether prune is run at the end of the day
    ),
    min_size=200,
    max_size=200,
)


def lived(policy: Policy, days: Sequence[tuple[list[int], bool]], shifts: Mapping[int, int]) -> None:
    """Let days pass: backups are made, prune is run, the clock is set; what the policy says must hold each time.

    `shifts`: by the day, the hours by which the clock is wrong from then on.
    """
    made: list[BackupInfo] = []  # ever
    there: list[BackupInfo] = []
    due: set[Path] = set()  # what the policy has kept of all that was ever made, at each prune until now
    wrong = timedelta()
    for number, (minutes, prune) in enumerate(days):
        wrong = timedelta(hours=shifts[number]) if number in shifts else wrong
        day = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(days=number) + wrong
        for minute in sorted(minutes):
            new = backup(day + timedelta(minutes=minute), name=f"{len(made)}")
            for collection in (made, there):
                collection.append(new)
            due.add(new.path)
        if prune:
            there = pruned(policy, made, there, day + timedelta(days=1), due, exact=not shifts)


def pruned(
    policy: Policy,
    made: Sequence[BackupInfo],
    there: Sequence[BackupInfo],
    now: datetime,
    due: set[Path],
    *,
    exact: bool,
) -> list[BackupInfo]:
    """What is left of the backups after a prune, about which all that is promised is asserted."""
    kept = kept_of(decide(there, policy, now, {}, BERLIN))
    ideal = named(policy, [item for item in made if item.created <= now])
    due &= ideal
    assert due <= paths(kept), "something is gone that the policy names"
    if exact:
        assert paths(kept) == ideal, "more or less is left than if nothing had been removed before"
    past = [item for item in there if item.created <= now]
    assert not past or max(past, key=lambda item: (item.created, item.path.name)) in kept
    assert {item.path for item in there if item.created > now + timedelta(seconds=5)} <= paths(kept)
    assert kept_of(decide(kept, policy, now, {}, BERLIN)) == kept, "a second prune removes more"
    return kept


def named(policy: Policy, backups: Sequence[BackupInfo]) -> set[Path]:
    """What a policy names, and the newest one: looked up in another way than in the program."""
    ordered = sorted(backups, key=lambda item: (item.created, item.path.name), reverse=True)
    found = paths(ordered[: max(1, policy.counts.get("last", 0))])
    for name, same in SAME.items():
        periods = [(same(item.created.astimezone(BERLIN)), item.path) for item in ordered]
        groups = [next(group) for _, group in groupby(periods, itemgetter(0))]
        found |= {path for _, path in groups[: policy.counts.get(name, 0)]}
    return found


SAME: dict[str, Callable[[datetime], object]] = {
    "hourly": lambda made: (made.date(), made.hour, made.utcoffset()),
    "daily": lambda made: made.date(),
    "weekly": lambda made: made.isocalendar()[:2],
    "monthly": lambda made: (made.year, made.month),
    "yearly": lambda made: made.year,
}


def kept_of(decisions: Sequence[Decision]) -> list[BackupInfo]:
    """The backups that are kept."""
    return [decision.backup for decision in decisions if decision.reasons]


def paths(backups: Collection[BackupInfo]) -> set[Path]:
    """What tells them apart."""
    return {item.path for item in backups}


SLOW = settings(deadline=None, suppress_health_check=[*HealthCheck], derandomize=True)


@settings(SLOW, max_examples=6)
@given(policies, days)
def test_200_days_leave_exactly_what_the_policy_says_of_all_that_was_ever_made(
    policy: Policy, days: list[tuple[list[int], bool]]
) -> None:
    lived(policy, days, {})


clock_changes = st.dictionaries(
    st.integers(0, 199), st.sampled_from([-24 * 400, -24 * 40, -25, -1, 0, 1, 25, 24 * 40]), max_size=8
)


@settings(SLOW, max_examples=6)
@given(policies, days, clock_changes)
def test_clock_that_is_set_forth_and_back_loses_nothing_that_the_policy_names(
    policy: Policy, days: list[tuple[list[int], bool]], shifts: dict[int, int]
) -> None:
    lived(policy, days, shifts)


@pytest.mark.long
@settings(SLOW, max_examples=400)
@given(policies, days, clock_changes)
def test_many_times_200_days(policy: Policy, days: list[tuple[list[int], bool]], shifts: dict[int, int]) -> None:
    lived(policy, days, {})
    lived(policy, days, shifts)


moments = st.lists(st.integers(0, 300 * 24).map(lambda hours: ago(hours=hours)), unique_by=lambda item: item.path)


@settings(SLOW, max_examples=100)
@given(policies, moments)
@example(Policy({"last": 1}), [])
def test_a_new_backup_takes_at_most_one_place_of_each_rule(policy: Policy, backups: list[BackupInfo]) -> None:
    now = NOW + timedelta(hours=1)
    before = paths(kept_of(decide(backups, policy, now, {}, BERLIN)))
    after = paths(kept_of(decide([*backups, backup(now)], policy, now, {}, BERLIN)))
    assert len(before - after) <= len(policy.counts) + 1  # the newest was one
    assert after <= before | {backup(now).path}
