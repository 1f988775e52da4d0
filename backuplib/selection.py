"""Which backup is meant: the newest one, or the newest until a moment, among those here and at the remotes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol, Self

from backuplib import errors
from backuplib.backup_file import LOCAL, ORDINARY, SQL_DUMP, BackupInfo
from backuplib.formatting import CLOCKS_DIFFER, age, instant, megabytes, plural, printable, shown
from backuplib.moments import parse_time
from backuplib.remote import named

Say = Callable[[str], object]

LATEST = Path("latest")  # the word, not a file

# What is wrong with a backup itself, so that another one may do; and what is not, though it is told of a backup.
FAULTS = (
    errors.ChecksumMismatchError,
    errors.ChecksumUnreadableError,
    errors.DamagedMessageError,
    errors.UnauthenticatedMessageError,
    errors.UnsoundBackupError,
)
NO_FAULTS = (
    errors.WrongDbPassError,
    errors.ConvertRequiredError,
    errors.CannotConvertError,
    errors.NeedsTheBotError,
    errors.TooLargeError,
)


class Place(Protocol):
    """Where backups are, besides the backup folder."""

    @property
    def place(self) -> str:
        """How it is called."""

    def backups(self) -> list[BackupInfo]:
        """Return the backups there; OperatorError when they cannot be looked up."""


# --- places ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Places:
    """Where backups are looked for.

    :param folder: the backup folder.
    :param only: one place alone, "local" or a remote's; empty: all of them.
    :param silent: the remotes that have not answered.
    """

    folder: Path
    remotes: Sequence[Place] = ()
    only: str = ""
    silent: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path, remotes: Sequence[Place], asked: str | None) -> Self:
        """Return all places, or the one that --from asks for; of a remote's the name alone will do.

        :raises UsageError: when there is no such place.
        """
        places = [LOCAL, *(remote.place for remote in remotes)]
        meant = [place for place in places if asked in (place, place.partition(":")[0], f"{place.partition(':')[0]}:")]
        if asked is None:
            return cls(folder, remotes)
        if asked in places or len(meant) == 1:
            return cls(folder, remotes, asked if asked in places else meant[0])
        unset = "" if remotes else "; BACKUP_REMOTES is not set, so that there is no other"
        raise errors.UsageError(
            f"--from {printable(asked)} is {'more than one' if meant else 'none'} of the places where backups are",
            hint=f"It must be one of these: {', '.join(places)}{unset}.",
        )

    @property
    def remote(self) -> list[str]:
        """The names of the remotes that are looked at."""
        return [remote.place for remote in self._asked]

    @property
    def marked(self) -> list[str]:
        """The remotes that have marks in a table: none, where only one place is looked at."""
        return [] if self.only else self.remote

    @property
    def in_short(self) -> str:
        """How they are called where the names of remotes are told beside it."""
        if self.only or not self.remotes:
            return str(self)
        return f"in {shown(self.folder)} and at {plural(len(self.remotes), 'remote')}"

    def __str__(self) -> str:
        """Return it for people, as in "there is no backup …"."""
        looked = [f"in {shown(self.folder)}"] if self.only in ("", LOCAL) else []
        return " or ".join([*looked, *(f"at {printable(place)}" for place in self.remote)])

    @property
    def _asked(self) -> list[Place]:
        return [remote for remote in self.remotes if self.only in ("", remote.place)]

    def backups(self, local: Callable[[], list[BackupInfo]], say: Say) -> list[BackupInfo]:
        """Return the backups there, newest first.

        :param local: lists those in the backup folder.
        :param say: is told of a remote that does not answer.
        :raises OperatorError: when the only place that is looked at does not answer.
        """
        here = local() if self.only in ("", LOCAL) else []
        if self.only and self._asked:
            return self._asked[0].backups()
        return gather(here, self._asked, say, self.silent)


def gather(
    local: Iterable[BackupInfo], remotes: Sequence[Place], say: Say, silent: list[str] | None = None
) -> list[BackupInfo]:
    """Return backups of all places, newest first; the remotes are asked at the same time.

    :param say: is told of a remote that does not answer, and is left out; ``silent`` gets its name.
    """
    found = [*local]
    asked = [(remote, *_asked(remote)) for remote in remotes]
    for remote, thread, answer in asked:
        try:
            found += answer.result()
        except errors.OperatorError as error:
            say(f"what is at {printable(remote.place)} is not known: {error}")
            if silent is not None:
                silent.append(remote.place)
        thread.join()
    return sorted(found, key=_order, reverse=True)


def _asked(remote: Place) -> tuple[threading.Thread, Future[list[BackupInfo]]]:
    """Begin to ask a remote, in a thread that keeps no run from being ended."""
    answer: Future[list[BackupInfo]] = Future()

    def ask() -> None:
        try:
            answer.set_result(remote.backups())
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is waited for
            answer.set_exception(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread, answer


def _order(item: BackupInfo) -> tuple[datetime, str]:
    return item.created, item.path.name


# --- copies ------------------------------------------------------------------------------------------------------


def grouped(backups: Iterable[BackupInfo]) -> list[list[BackupInfo]]:
    """Return backups, newest first, each with its copies at other places; the one in the backup folder comes first.

    It is the same backup when name, size, and what is known of its checksum are the same. Of its copies at remotes,
    those that have a checksum come first.
    """
    groups: dict[tuple[str, int], list[list[BackupInfo]]] = {}
    for item in sorted(backups, key=lambda item: (item.place != LOCAL, bool(item.doubt))):
        alike = groups.setdefault((item.path.name, item.size), [])
        for group in alike:
            known = {other.recorded_checksum() for other in (*group, item)} - {None}
            if len(known) <= 1 and item.place not in {other.place for other in group}:
                group.append(item)
                break
        else:
            alike.append([item])
    return sorted(
        (group for alike in groups.values() for group in alike), key=lambda group: _order(group[0]), reverse=True
    )


# --- one of them -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A backup that was chosen by its time.

    :param before: the next older one, which comes into question, too; ``after``: the next newer one.
    :param left_out: how many are newer and were not taken: made before a restore, to be rescued, or in the future.
    :param copies: the same one at other places.
    :param at: until when; None: now.
    :param instead: what else could be taken, in this order: copies, namesakes, then older ones, all with their copies.
    :param namesakes: of the same name and time, and not the same: one of them is damaged, or an interrupted copy.
    :param unsure: newer ones that were not taken, since they may not be whole.
    """

    chosen: BackupInfo
    before: BackupInfo | None
    after: BackupInfo | None
    left_out: int
    copies: tuple[BackupInfo, ...] = ()
    at: datetime | None = None
    instead: tuple[BackupInfo, ...] = ()
    namesakes: tuple[BackupInfo, ...] = ()
    unsure: tuple[BackupInfo, ...] = ()

    def next(self) -> Choice:
        """Return the choice when this one cannot be used."""
        return replace(self, chosen=self.instead[0], instead=self.instead[1:])

    def tell(self, say: Say) -> None:
        """Say which one it is, which ones are beside it, and what was left out."""
        what = f"the newest until {instant(self.at)}" if self.at else "latest"
        say(f"✅ {what} is {told(self.chosen)}{self._places()}")
        if self.chosen.doubt:
            say(f"   it may not be whole: {self.chosen.doubt}")
        for item in self.namesakes:
            say(f"   of the same name, but not the same: {_where(item)}, {megabytes(item.size)}")
        say(f"   the one before it: {told(self.before) if self.before else 'none'}")
        if self.at:
            say(f"   the one after it: {told(self.after) if self.after else 'none'}")
        if self.left_out:
            say(f"   left out: {plural(self.left_out, 'newer one')}, made before a restore, or in the future")
        for item in self.unsure[:1]:
            more = f" (and {plural(len(self.unsure) - 1, 'more such one')})" if self.unsure[1:] else ""
            say(f"   left out: {told(item)}, {_where(item)}: {item.doubt}{more}")

    def _places(self) -> str:
        if self.chosen.place == LOCAL and not self.copies:
            return ""
        return f", {' and '.join(_where(item) for item in (self.chosen, *self.copies))}"


def _where(item: BackupInfo) -> str:
    return "here" if item.place == LOCAL else f"at {printable(item.place)}"


def told(item: BackupInfo) -> str:
    """Return a backup for people: its name, and when it was made."""
    return f"{printable(item.path.name)}, made {instant(item.created)}, {age(item.created.timestamp())}"


def choose(
    backups: Iterable[BackupInfo], at: datetime | None = None, *, now: datetime | None = None, where: object = ""
) -> Choice:
    """Return the newest backup that was not made after a moment; one at several places counts once.

    Left out is what was made before a restore, what can only be rescued, and what has a time in the future; and what
    may not be whole, as long as there is another one, unless no backup at that place has a checksum.

    :param at: with a zone; None: now.
    :param where: the places, for people.
    :raises BackupNotFoundError: when there is none, saying what there is.
    """
    backups = [*backups]
    now = now or datetime.now().astimezone()
    latest = now + timedelta(seconds=CLOCKS_DIFFER)
    until = at if at and at < now else latest
    groups = grouped(backups)
    fit = [group for group in groups if _is_fit(group) and group[0].created <= latest]
    sure_places = {item.place for item in backups if not item.doubt}
    unsure = [group for group in fit if all(item.doubt and item.place in sure_places for item in group)]
    if any(group[0].created <= until and group not in unsure for group in fit):
        fit = [group for group in fit if group not in unsure]
    taken = [group for group in fit if group[0].created <= until]
    if not taken:
        raise _nothing(groups, fit, at, where)
    later = fit[: len(fit) - len(taken)]
    (chosen, *copies), *older = taken
    newer = groups[: groups.index(taken[0])]
    passed = [group for group in newer if group not in fit and (until == latest or group[0].created <= until)]
    namesakes = [group[0] for group in older if _order(group[0]) == _order(chosen)]
    return Choice(
        chosen,
        before=next((group[0] for group in older if _order(group[0]) != _order(chosen)), None),
        after=later[-1][0] if later else None,
        left_out=len([group for group in passed if group not in unsure]),
        copies=tuple(copies),
        at=at,
        instead=(*copies, *(item for group in older for item in group)),
        namesakes=tuple(namesakes),
        unsure=tuple(group[0] for group in passed if group in unsure),
    )


def _is_fit(group: Sequence[BackupInfo]) -> bool:
    return all(item.kind in (ORDINARY, SQL_DUMP) for item in group)


def _nothing(
    groups: Sequence[Sequence[BackupInfo]], fit: Sequence[Sequence[BackupInfo]], at: datetime | None, where: object
) -> errors.BackupNotFoundError:
    list_command = f"to see what is there: {errors.restore_command('--list')}"
    there = f"there is no backup {where}".rstrip()
    if fit:
        oldest = fit[-1][0]
        take = errors.same_command(backup=shown(named(oldest)))
        return errors.BackupNotFoundError(
            f"{there} that was made until {instant(at)}" if at else there,
            hint=f"The oldest one is {told(oldest)}. To take it: {take}; {list_command}",
        )
    but = " but what was made before a restore, or in the future" if groups else ""
    return errors.BackupNotFoundError(f"{there}{but}", hint=f"Name a file; {list_command}")


class Person(Protocol):
    """Who is asked, if there is a terminal."""

    @property
    def present(self) -> bool:
        """Whether there is one."""

    def confirm(self, question: str) -> bool:
        """Ask a yes/no question."""


class Selection:
    """Takes backups by their time, and when one has a fault, offers another.

    :param local: lists the backups in the backup folder, newest first.
    :param warn: is told of remotes that do not answer, and of odd times; ``say``: of what is chosen.
    """

    def __init__(self, places: Places, local: Callable[[], list[BackupInfo]], warn: Say, say: Say) -> None:
        self.places, self._local, self._warn, self._say = places, local, warn, say
        self._choice: Choice | None = None

    @property
    def has_another(self) -> bool:
        """Whether there is another one to take in place of what was chosen."""
        return bool(self._choice and self._choice.instead)

    def backups(self) -> list[BackupInfo]:
        """Return the backups of all places, newest first."""
        return self.places.backups(self._local, self._warn)

    def by_time(self, text: str | None, there: Place | None = None) -> Path:
        """Return the newest backup until a moment, as it is written, or until now; say which one that is.

        :param there: the only place to look at.
        :raises BackupNotFoundError: when there is none.
        """
        if there:
            self.places = Places(self.places.folder, [there], there.place)
        at = parse_time(text, datetime.now().astimezone(), self._warn) if text else None
        self._choice = choose(self.backups(), at, where=self.places)
        self._choice.tell(self._say)
        return named(self._choice.chosen)

    def another(self, error: errors.OperatorError, person: Person) -> Path:
        """Return the backup that is taken in place of one that has a fault.

        :raises OperatorError: the same, when there is no other, or it is not taken; its hint then has the command.
        """
        if not (what := self._name_another(error)) or not self._choice:
            raise error
        if person.present:
            self._say(f"❌ {printable(self._choice.chosen.path.name)}: {error}")
            if person.confirm(f"⚠️  Take {what}?"):
                self._choice = self._choice.next()
                return named(self._choice.chosen)
        raise error

    @contextlib.contextmanager
    def naming_another(self) -> Iterator[None]:
        """Name the command for another one in the hint of an error that is a fault of the backup."""
        try:
            yield
        except errors.OperatorError as error:
            self._name_another(error)
            raise

    def _name_another(self, error: errors.OperatorError) -> str:
        """Return what to take in place of a backup that has a fault, and put its command into the error's hint.

        Empty when that is no fault of the backup, or there is no other.
        """
        is_fault = isinstance(error, FAULTS) and not isinstance(error, NO_FAULTS)
        if not is_fault or not self._choice or not self.has_another:
            return ""
        before, item = self._choice.chosen, self._choice.next().chosen
        which = f"the next older one, made {instant(item.created)},"
        if _order(item) == _order(before):
            which = "the same one" if len(grouped([before, item])) == 1 else "the one of the same name"
        what = f"{which} {'that is here' if item.place == LOCAL else f'at {printable(item.place)}'}"
        otherwise = f"{error.hint.rstrip('.')}; to" if error.hint else "To"
        error.hint = f"{otherwise} take {what}: {errors.same_command(backup=shown(named(item)))}"
        return what


class Asked(Protocol):
    """Options that have to do with the choice of a backup."""

    backup_file: Path | None
    at: str | None
    from_: str | None
    list: bool
    check: bool
    recover: bool
    drill: bool


def contradiction(options: Asked) -> str:
    """Return what contradicts itself on a command line; empty when nothing does.

    :raises UsageError: when the time cannot be read.
    """
    instead = next((f"--{name}" for name in ("list", "check", "recover", "drill") if getattr(options, name)), "")
    if options.at is not None:
        parse_time(options.at, datetime.now().astimezone())
        if options.backup_file:
            return "--at chooses the backup, so that none can be named beside it"
        if instead:
            return f"--at chooses a backup, and {instead} takes none"
    if options.from_ is not None:
        if options.backup_file not in (None, LATEST):
            return "--from says where the backup is looked for, so that none but latest can be named beside it"
        if instead not in ("", "--list"):
            return f"--from says where a backup is looked for, and {instead} takes none"
    return ""
