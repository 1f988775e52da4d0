"""Which backup is taken: the newest, or the newest until a moment, among those of all places."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backuplib.backup_file import AS_THEY_WERE, BEFORE_A_RESTORE, LOCAL, ORDINARY, SQL_DUMP, BackupInfo, checksum_path
from backuplib.errors import (
    BackupNotFoundError,
    ChecksumMismatchError,
    DamagedDatabaseError,
    ExitCode,
    NoSpaceError,
    RemoteUnreachableError,
    UsageError,
    WrongDbPassError,
    WrongKeyError,
)
from backuplib.selection import Choice, Places, Selection, choose, gather, grouped

NOW = datetime(2025, 1, 30, 12, tzinfo=UTC)
FAR, FARTHER = "offsite:shopbot", "nas:"


def made(hours: float, place: str = LOCAL, kind: str = ORDINARY, size: int = 1000, name: str = "") -> BackupInfo:
    """A backup that was made so many hours ago."""
    created = NOW - timedelta(hours=hours)
    name = name or f"db_backup_{created:%Y%m%d_%H%M%S}.db.gz.gpg"
    return BackupInfo(
        Path("/backups" if place == LOCAL else "") / name, created, size, encrypted=True, kind=kind, place=place
    )


@dataclass(frozen=True)
class Remote:
    """A place that answers with these backups, once those are asked, too, whom it waits for."""

    place: str
    there: Sequence[BackupInfo] = ()
    waits: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    error: Exception | None = None

    def backups(self) -> list[BackupInfo]:
        self.waits.wait()
        if self.error:
            raise self.error
        return [*self.there]


# --- one of them -----------------------------------------------------------------------------------------------------


def test_latest_is_the_newest_at_any_place_but_safety_backups_raw_ones_and_those_of_the_future() -> None:
    unfit = [made(-1), made(1, kind=BEFORE_A_RESTORE), made(2, FAR, AS_THEY_WERE)]
    newest, older = made(3, FAR, SQL_DUMP), made(4)
    choice = choose([older, *unfit, newest], now=NOW)
    assert (choice.chosen, choice.before, choice.after, choice.left_out) == (newest, older, None, 3)
    just_now = made(-1 / 3600)  # clocks of two machines differ by a second
    assert choose([older, just_now], now=NOW).chosen == just_now


def test_newest_until_a_moment_has_its_neighbours_and_is_never_later() -> None:
    one, two, three, four = made(1), made(2), made(3), made(4)
    safety, raw, future = made(2.5, kind=BEFORE_A_RESTORE), made(1.5, kind=AS_THEY_WERE), made(-1)
    backups = [one, two, three, four, safety, raw, future]
    choice = choose(backups, two.created, now=NOW)
    assert (choice.before, choice.chosen, choice.after, choice.left_out) == (three, two, one, 0)
    choice = choose(backups, two.created - timedelta(seconds=1), now=NOW)
    assert (choice.before, choice.chosen, choice.after, choice.left_out) == (four, three, two, 1)
    for at in (NOW, NOW + timedelta(hours=9)):  # a moment in the future makes no backup from there one
        choice = choose(backups, at, now=NOW)
        assert (choice.before, choice.chosen, choice.after) == (two, one, None)


def test_without_one_it_is_told_what_there_is() -> None:
    oldest = made(5)
    with pytest.raises(BackupNotFoundError, match="until 2025-01-30 ") as refusal:
        choose([made(2), oldest], made(6).created, now=NOW, where="in backups")
    assert refusal.value.exit_code == ExitCode.REFUSED
    assert str(oldest.path) in refusal.value.hint
    for backups in ([made(1, kind=BEFORE_A_RESTORE), made(-2)], []):
        with pytest.raises(BackupNotFoundError, match="in backups") as refusal:
            choose(backups, now=NOW, where="in backups")
        assert ("before a restore" in str(refusal.value)) == bool(backups)
        assert "--list" in refusal.value.hint


def test_choice_is_told_with_times_zone_places_and_neighbours() -> None:
    said: list[str] = []
    one, two = made(1), made(2)
    choose([one, replace(one, place=FAR, path=Path(one.path.name)), two, made(-1)], now=NOW).tell(said.append)
    assert one.path.name in said[0]
    assert f"{one.created.astimezone():%Y-%m-%d %H:%M:%S %Z}" in said[0]
    assert said[0].endswith(f", here and at {FAR}")
    assert two.path.name in said[1]
    assert "1 newer one" in said[2]
    said.clear()
    choose([one, two], two.created, now=NOW).tell(said.append)
    assert f"until {two.created.astimezone():%Y-%m-%d %H:%M:%S %Z} is {two.path.name}" in said[0]
    assert said[1].endswith("none")
    assert one.path.name in said[2]


KINDS = st.sampled_from([ORDINARY, SQL_DUMP, BEFORE_A_RESTORE, AS_THEY_WERE])
BACKUPS = st.lists(
    st.builds(made, st.integers(-3, 9), st.sampled_from([LOCAL, FAR, FARTHER]), KINDS, st.integers(1, 2)),
    unique_by=lambda item: (item.place, item.path.name, item.size),
)


@given(backups=BACKUPS, hours=st.none() | st.integers(-4, 10))
def test_what_is_chosen_is_what_a_look_at_each_of_them_would_choose(
    backups: list[BackupInfo], hours: int | None
) -> None:
    at = None if hours is None else NOW - timedelta(hours=hours)
    marked = {(item.path.name, item.size) for item in backups if item.kind not in (ORDINARY, SQL_DUMP)}
    fit = [item for item in backups if (item.path.name, item.size) not in marked and item.created <= NOW]
    until = [item.created for item in fit if at is None or item.created <= at]
    try:
        choice = choose(backups, at, now=NOW)
    except BackupNotFoundError:
        assert not until
        return
    assert choice.chosen in fit
    assert choice.chosen.created == max(until)
    assert at is None or choice.chosen.created <= at
    assert choice.after is None or (at and choice.after.created > at and choice.after in fit)
    assert choice.before is None or (choice.before.created <= choice.chosen.created and choice.before in fit)
    assert all(item in fit and item.created <= choice.chosen.created for item in choice.instead)


# --- copies ----------------------------------------------------------------------------------------------------------


def test_same_backup_at_several_places_counts_once_and_costs_no_transfer() -> None:
    here, older = made(1), made(2)
    far, farther = (replace(here, place=place, path=Path(here.path.name)) for place in (FAR, FARTHER))
    choice = choose([far, older, here, farther], now=NOW)
    assert (choice.chosen, choice.copies, choice.before) == (here, (far, farther), older)
    assert choice.instead == (far, farther, older)
    following = choice.next()
    assert (following.chosen, following.instead) == (far, (farther, older))


def test_other_size_or_checksum_is_another_backup(tmp_path: Path) -> None:
    here = replace(made(1), path=tmp_path / "db_backup_20250130_110000.db.gz.gpg")
    far = replace(here, place=FAR, path=Path(here.path.name))
    assert grouped([here, replace(far, size=999)]) == [[here], [replace(far, size=999)]]
    checksum_path(here.path).write_text(f"{'a' * 64}  {here.path.name}\n")
    other, same = replace(far, sha256="b" * 64), replace(far, sha256="a" * 64)
    assert len(grouped([here, other])) == 2
    assert grouped([same, here, far]) == [[here, same], [far]]  # one place has it once
    assert grouped([here, far]) == [[here, far]]


def test_copy_that_may_not_be_whole_is_left_out_and_told(tmp_path: Path) -> None:
    """As long as there is another; where no backup at a place has a checksum, they are what there is."""
    unsure = replace(made(1, FAR), doubt="no checksum there")
    whole, older, here = made(2, FAR), replace(made(3, FAR), doubt="no checksum there"), made(4)
    choice = choose([unsure, whole, older, here], now=NOW)
    assert (choice.chosen, choice.before, choice.left_out) == (whole, here, 0)
    assert (choice.unsure, choice.instead) == ((unsure,), (here,))
    said: list[str] = []
    choice.tell(said.append)
    assert said[-1].startswith(f"   left out: {unsure.path.name}, made ")
    assert said[-1].endswith(f", at {FAR}: no checksum there")
    assert choose([unsure, whole, older], older.created, now=NOW).chosen == older
    said.clear()
    choice = choose([unsure, older, here], now=NOW)
    assert (choice.chosen, choice.before) == (unsure, older)
    choice.tell(said.append)
    assert said[1] == "   it may not be whole: no checksum there"
    copy = replace(unsure, place=FARTHER, doubt="")
    assert choose([unsure, copy, whole], now=NOW).chosen == copy


def test_other_content_of_the_same_name_is_no_older_one() -> None:
    """Such as a truncated copy at one place and the whole one at another."""
    cut, whole, older = made(1, FAR, size=10), made(1, FARTHER), made(2)
    choice = choose([cut, whole, older], now=NOW)
    assert (choice.chosen, choice.before, choice.namesakes, choice.instead) == (cut, older, (whole,), (whole, older))
    said: list[str] = []
    selection = Selection(Places(Path("/"), [Remote(FAR, [cut]), Remote(FARTHER, [whole])]), list, print, said.append)
    selection.by_time(None)
    assert said[1] == f"   of the same name, but not the same: at {FARTHER}, 1.0 kB"
    with pytest.raises(ChecksumMismatchError) as raised, selection.naming_another():
        raise ChecksumMismatchError("it differs")
    assert raised.value.hint.startswith(f"To take the one of the same name at {FARTHER}: ")


def test_safety_backup_is_one_wherever_that_is_recorded() -> None:
    here = made(1)
    far = replace(here, place=FAR, path=Path(here.path.name), kind=BEFORE_A_RESTORE)
    assert choose([here, far, made(2)], now=NOW).chosen == made(2)


# --- another one -----------------------------------------------------------------------------------------------------


@dataclass
class Person:
    """Somebody at a terminal, or nobody, who answers a question."""

    present: bool
    answer: bool = False

    def confirm(self, question: str) -> bool:
        assert question.endswith("?")
        return self.answer


def test_fault_leads_to_an_offer_of_a_copy_then_of_older_ones_and_nothing_else_does(tmp_path: Path) -> None:
    here, older = made(3), made(9)
    far = replace(here, place=FAR, path=Path(here.path.name))
    said: list[str] = []

    def chosen() -> Selection:
        places = Places(tmp_path, [Remote(FAR, [far])])
        selection = Selection(places, lambda: [here, older], said.append, said.append)
        assert selection.by_time(None) == here.path
        return selection

    for no_fault in (WrongKeyError("wrong"), WrongDbPassError("wrong"), BackupNotFoundError("gone"), NoSpaceError("x")):
        with pytest.raises(type(no_fault)) as raised:
            chosen().another(no_fault, Person(present=True, answer=True))
        assert "take" not in raised.value.hint
    for person in (Person(present=False), Person(present=True)):
        with pytest.raises(ChecksumMismatchError) as raised:
            chosen().another(ChecksumMismatchError("it differs", hint="Copy it again."), person)
        assert raised.value.hint.startswith(f"Copy it again; to take the same one at {FAR}: ")
        assert raised.value.hint.endswith(f" {FAR}/{here.path.name}")
    selection, yes = chosen(), Person(present=True, answer=True)
    assert selection.another(ChecksumMismatchError("it differs"), yes) == Path(f"{FAR}/{here.path.name}")
    assert selection.another(DamagedDatabaseError("it is damaged"), yes) == older.path
    assert not selection.has_another
    with pytest.raises(DamagedDatabaseError):
        selection.another(DamagedDatabaseError("it is damaged, too"), yes)
    assert said[-1].endswith("it is damaged")


# --- places ----------------------------------------------------------------------------------------------------------


def test_remotes_are_asked_at_the_same_time_and_one_that_fails_is_told() -> None:
    said: list[str] = []
    down = RemoteUnreachableError("nas: does not answer")
    both = threading.Barrier(2, timeout=30)
    remotes = [Remote(FAR, [made(1, FAR), made(3, FAR)], both), Remote(FARTHER, waits=both, error=down), Remote("b:")]
    assert gather([made(2)], remotes, said.append) == [made(1, FAR), made(2), made(3, FAR)]
    assert len(said) == 1
    assert "nas: does not answer" in said[0]


def test_bug_in_a_look_is_not_taken_for_a_remote_that_is_down() -> None:
    with pytest.raises(ZeroDivisionError):
        gather([], [Remote(FAR, error=ZeroDivisionError())], print)


def test_one_place_alone_is_looked_at(tmp_path: Path) -> None:
    remotes = [Remote(FAR, [made(1, FAR)]), Remote(FARTHER, error=RemoteUnreachableError("down"))]

    def found(asked: str | None) -> tuple[list[BackupInfo], list[str]]:
        said: list[str] = []
        places = Places.of(tmp_path, remotes, asked)
        found = places.backups(lambda: [made(2)], said.append)
        assert len(places.silent) == len(said)
        return found, said

    assert found("local") == ([made(2)], [])
    assert found(FAR) == ([made(1, FAR)], [])
    assert found("offsite") == found("offsite:") == found(FAR)
    assert found(None)[0] == [made(1, FAR), made(2)]
    assert len(found(None)[1]) == 1
    with pytest.raises(RemoteUnreachableError):
        found(FARTHER)
    for wrong in ("moon:", ""):
        with pytest.raises(UsageError, match=f"--from {wrong} is none") as refusal:
            found(wrong)
        assert FAR in refusal.value.hint
    with pytest.raises(UsageError) as refusal:
        Places.of(tmp_path, (), FAR)
    assert "BACKUP_REMOTES" in refusal.value.hint
    with pytest.raises(UsageError, match="more than one"):
        Places.of(tmp_path, [Remote("nas:a"), Remote("nas:b")], "nas")
    assert str(Places(tmp_path, remotes, FAR)) == f"at {FAR}"
    assert str(Places(tmp_path, remotes)) == f"in {tmp_path} or at {FAR} or at {FARTHER}"


def test_choice_has_no_next_when_all_have_been_tried() -> None:
    choice = choose([made(1)], now=NOW)
    assert choice == Choice(made(1), None, None, 0)
