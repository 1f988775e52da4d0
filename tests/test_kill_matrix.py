"""SIGKILL at each system call that touches the database, its backups or the journal: old or new, whole, always.

In CI a sample of points; all of them: pytest -m long tests/test_kill_matrix.py (POINTS=20 before it: so many a test)
"""

import os
import time
from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest

from tests.conftest import MakeShop
from tests.support.matrix import EVERY, Tally, Tell
from tests.support.strace import (
    KILL,
    Call,
    Hit,
    Stage,
    aim,
    fail_after_rename,
    killed,
    make_stage,
    random_hits,
    spread,
    touching,
)

pytestmark = [pytest.mark.needs("strace"), pytest.mark.deep]

SAMPLE = 5
"""Points of each test in CI."""


def judge(tally: Tally, stage: Stage, number: int, label: str) -> None:
    """Recover from a kill, every fourth time by a whole new restore, and judge."""
    with tally.judging(label):
        tally.outcomes[restored_anew(stage) if number % 4 == 3 else recovered(stage)] += 1


def recovered(stage: Stage) -> str:
    """Recover; everything must be whole and clean, and a second recovery finds nothing to do."""
    first = stage.plain_recover()
    assert first.code == 0, first.text
    outcome = stage.outcome()
    assert stage.backup_leftovers() == [], f"after --recover: {stage.backup_leftovers()}"
    assert stage.notes(outcome), "what is written down of it is false"
    assert outcome == "old" or stage.keeps_old(), "the old rows are in no backup"
    second = stage.plain_recover()
    assert second.code == 0, second.text
    assert "othing to recover" in second.text, second.text
    assert stage.outcome() == outcome
    return outcome


def restored_anew(stage: Stage) -> str:
    """A whole new restore right after the kill, without --recover."""
    done = stage.plain_restore()
    assert done.code == 0, done.text
    assert stage.outcome() == "new"
    assert stage.backup_leftovers() == [], f"after a new restore: {stage.backup_leftovers()}"
    assert stage.notes("new")
    return "new, by a new restore"


# --- points ----------------------------------------------------------------------------------------------------------


Point = tuple[str, list[Hit]]


def kill_points(
    stage: Stage, calls: Sequence[Call], after: int = -1, also: Sequence[tuple[int, str]] = ()
) -> list[Point]:
    """One point for each call, from a run with the same other hits (`also`)."""
    points = []
    for index in touching(calls, stage.folders):
        hits = aim(calls, (index, KILL), *also) if index > after else None
        if hits:
            points.append((f"killed at {calls[index]}", hits))
    return points


def plain_points(stage: Stage) -> list[Point]:
    """The points of a restore that goes well."""
    done = stage.restore()
    assert done.code == 0, done.text
    return kill_points(stage, stage.calls())


def rollback_points(stage: Stage) -> list[Point]:
    """The points of a rollback: something fails right after the new database took the name."""
    points: list[Point] = []
    # Two failures, since one call cannot both fail and kill: kills at fsync need the other one.
    for failing in ("fsync", "unlink"):
        calls = fail_after_rename(stage, failing)
        index = next(i for i, call in enumerate(calls) if call.injected)
        found = kill_points(stage, calls, after=index, also=[(index, "error=EIO")])
        points += [point for point in found if (point[1][0].call == "fsync") == (failing == "unlink")]
    return points


# --- the tests -------------------------------------------------------------------------------------------------------


def run_points(stage: Stage, points: Sequence[Point], count: int | None) -> Tally:
    """Kill a restore at each point."""
    tally = Tally("kill points")
    for number, (label, hits) in enumerate(spread(points, count)):
        killed(stage, *hits)
        judge(tally, stage, number, label)
    return tally


def run_recovery_points(stage: Stage, bases: Sequence[Point], count: int | None) -> Tally:
    """Kill a restore, then the recovery from it at each of its points, and recover again."""
    tally = Tally("kill points")
    for base, hits in bases:
        killed(stage, *hits)
        done = stage.recover()
        assert done.code == 0, done.text
        for number, (label, again) in enumerate(spread(kill_points(stage, stage.calls()), count)):
            killed(stage, *hits)
            stopped = stage.recover(*again)
            assert stopped.code == -9, f"{base}, recovery not {label}: {stopped.code} {stopped.text}"
            judge(tally, stage, number, f"{base}, recovery {label}")
    return tally


def unencrypted(make_shop: MakeShop, mode: str, state: str) -> Stage:
    return make_stage(make_shop(mode, PGP_PUBLIC_KEY_BASE64=None), state)


@pytest.fixture(params=["wal", "journal"])
def stage(make_shop: MakeShop, mode: str, request: pytest.FixtureRequest) -> Stage:
    """Both modes; rows that only the -wal holds, and a transaction that only the -journal can take back."""
    return unencrypted(make_shop, mode, request.param)


def bases_of(stage: Stage, points: Sequence[Point], count: int) -> list[Point]:
    """Points from the first one on at which there is a journal; before it there is nothing to recover."""
    begin = next(i for i, (_, hits) in enumerate(points) if hits[0].call in ("link", "linkat") and i > len(points) // 3)
    return spread(points[begin:], count)


def test_killed_restore_leaves_old_or_new_whole(stage: Stage, tell: Tell) -> None:
    run_points(stage, plain_points(stage), SAMPLE).report(tell, "restore")


def test_killed_rollback_leaves_the_old_whole(stage: Stage, tell: Tell) -> None:
    tally = run_points(stage, rollback_points(stage), SAMPLE)
    tally.report(tell, "rollback")


def test_killed_recovery_can_be_repeated(stage: Stage, tell: Tell) -> None:
    bases = bases_of(stage, plain_points(stage), 3)[1:2]
    run_recovery_points(stage, bases, SAMPLE).report(tell, "recovery")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_anywhere_in_a_restore(stage: Stage, tell: Tell) -> None:
    run_points(stage, plain_points(stage), EVERY).report(tell, "restore")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_anywhere_in_a_rollback(stage: Stage, tell: Tell) -> None:
    run_points(stage, rollback_points(stage), EVERY).report(tell, "rollback")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_anywhere_in_a_recovery(stage: Stage, tell: Tell) -> None:
    bases = bases_of(stage, plain_points(stage), 4)
    bases += spread(rollback_points(stage), 2)
    run_recovery_points(stage, bases, EVERY and EVERY // 4).report(tell, "recovery")


# --- soak ------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.long)])
def test_soak_of_restores_in_a_row_loses_nothing(make_shop: MakeShop, mode: str, rounds: int, tell: Tell) -> None:
    """Many in a row on one database, each hit at random; between them a writer that is killed."""
    seed = int(os.environ.get("SOAK_SEED", time.time_ns() % 100_000))
    random = Random(seed)
    shop = make_shop(mode, PGP_PUBLIC_KEY_BASE64=None)
    backups = [shop.create_backup()]
    shop.change_data()
    backups.append(shop.create_backup())
    contents = [shop.backup_rows(backup, None) for backup in backups]
    ends: Counter[str] = Counter()
    for number in range(rounds):
        if random.random() < 0.5:
            shop.leave_hot_wal(rows=5, note=f"round {number}")
        backup = number % 2
        stage = Stage(shop, backups[backup], old=shop.rows(), new=contents[backup])
        done = stage.restore(*random_hits(random, 30))
        at_once = shop.restore("--recover")
        assert at_once.code == 0, f"seed {seed}, round {number}: {done.text}{at_once.text}"
        outcome = stage.outcome()
        same = stage.old == stage.new
        assert same or done.code in (0, -9) or outcome == "old", f"seed {seed}, round {number}: {done.text}"
        assert done.code != 0 or outcome == "new" or same, f"seed {seed}, round {number}: {done.text}"
        assert done.code in (0, 3, 6, 8, -9, 129, 130, 143), f"seed {seed}, round {number}: {done.text}"
        ends[f"exit {done.code}, {'same rows' if same else outcome}"] += 1
    tell(f"soak {mode}, seed {seed}: {rounds} restores, lost or mixed: 0; {dict(sorted(ends.items()))}")
