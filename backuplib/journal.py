"""What was begun, so that the next run can finish or undo it.

The journal lies beside the database, where the bot can write, and may as well be its work: it is a hint, not an order.
Each field is read strictly, and nothing in it names a file, a container or a command by itself. Whoever plants one, or
puts an old one back, can at most make the next run

- refuse (exit 3), or tell that a container of some name does not exist, or
- leave the database that is there, or the one under the set-aside's name: both lie in this folder, are regular files,
  and have no name anywhere else. One that somebody else could have written, and by which there was no database before,
  never removes the one that is there: that is a refusal.

Containers are looked up anew, and only those count that have the database's folder or that ``--service`` names. Of a
journal whose file somebody else than this user or root could have written, they do not count at all, nor does what it
says of backups: the files are settled while nobody has them open, and the operator is told which services are stopped.

Whoever can write in the folder can also remove a journal. What the restore had set aside stays then, under a name that
tells what it is (see :meth:`Target.left_aside`); the next run says so, and touches neither that nor a container.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from backuplib.database import SIDECARS
from backuplib.errors import UnfinishedRestoreError, explain
from backuplib.files import (
    CHUNK,
    fsync_folder,
    open_regular,
    replacing,
    same_content,
    same_file,
    stat_or_none,
    who_else_wrote,
    write_all,
)
from backuplib.formatting import quoted
from backuplib.rclone import names_a_backup
from backuplib.sparse import is_mostly_holes
from backuplib.target import Target

STATES = ("begun", "switching", "rolling back", "committed")

LIVE = {
    "new": "The database that is live in {} is the new one",
    "old": "The database that is live in {} is the old one",
    "neither": "The database that is live in {} is neither the new nor the old one",
    "missing": "There is no database {}",
}

MOST_CONTAINERS = 100
_CONTAINER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")  # what Docker takes for a name


@dataclass
class Journal:
    """What was begun, beside the target, so that the next run can finish or undo it. Holds no secret.

    States: "begun" (services may be stopped, the database is untouched), "switching" (old or new is live), "rolling
    back" (old is to be live), "committed" (new is live, only the old one is left to be cleared away).

    ``containers`` are the names of those that are stopped and started, ``unhealthy`` of those that were so before; they
    are looked up among the bot's own. ``backup`` is what is restored, ``made`` when that was made, for people only.
    ``forgeable`` says why somebody else could have written a journal that was loaded; empty when nobody could.
    """

    target: Path
    state: str
    set_aside: Path
    candidate: Path
    existed: bool
    new_inode: int | None
    containers: tuple[str, ...]
    unhealthy: tuple[str, ...]
    safety_backup: Path | None
    unsaved: bool
    started: str
    backup: str
    made: str
    forgeable: str = field(default="", init=False, compare=False)

    @property
    def _path(self) -> Path:
        return Target(self.target).journal

    def write(self) -> None:
        """Make the journal durable; OSError when that is not possible; the one before it is still there then."""
        with replacing(self._path, ".tmp") as file:
            values = {name: getattr(self, name) for name in _KINDS}
            write_all(file, json.dumps(values, default=str, indent=1).encode())

    @classmethod
    def load(cls, target: Target) -> Journal | None:
        """Return the journal of a restore that was interrupted, if there is one.

        :raises UnfinishedRestoreError: when it is there and cannot be read.
        """
        path = target.journal
        try:
            with open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
                forgeable = who_else_wrote(file.fileno())
                data = json.loads(file.read(CHUNK))
            if data["target"] != str(target.path):
                raise UnfinishedRestoreError(
                    f"{path} describes a restore of another database: the folder was copied or moved",
                    hint="If it was moved, move it back, and recover there. In a copy, decide by hand which database "
                    "is to stay, as in section 7 of RUNBOOK.md.",
                )
            journal = cls(**{name: _value(annotation, data.pop(name)) for name, annotation in _KINDS.items()})
            if data or not journal._is_possible():
                raise ValueError("it says what no restore writes")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UnfinishedRestoreError(
                f"{path} cannot be read: {explain(error)}",
                hint="It describes an interrupted restore. Before anything else keep a copy of "
                f"{quoted(target.path.parent)}.",
            ) from None
        journal.refuse_other_files()
        journal.target, journal.candidate = target.path, target.candidate  # in the folder that was opened
        journal.set_aside = target.path.with_name(journal.set_aside.name)
        journal.refuse_planted()
        journal._believe_less(forgeable)
        return journal

    def _is_possible(self) -> bool:
        """Whether the values can be those of a restore; ValueError for what is no moment."""
        moments = [(self.started, datetime.fromisoformat(self.started))]
        moments += [(self.made, datetime.fromisoformat(self.made))] if self.made else []
        return (
            self.state in STATES
            and all(text == moment.isoformat() and moment.tzinfo for text, moment in moments)
            and (not self.backup or names_a_backup(self.backup))
            and len(self.containers) <= MOST_CONTAINERS
            and all(map(_CONTAINER.fullmatch, (*self.containers, *self.unhealthy)))
        )

    def _believe_less(self, forgeable: str) -> None:
        """Forget what counts only when nobody else could have written it."""
        self.forgeable = forgeable
        if forgeable:
            self.containers = self.unhealthy = ()
            self.backup = self.made = ""
            self.safety_backup = None

    def refuse_other_files(self) -> None:
        """Refuse to rename or remove anything but what a restore of the target makes.

        Whoever may write into the folder, the bot for one, can write a journal, and this may run as root.

        :raises UnfinishedRestoreError: naming the journal.
        """
        moment = self.set_aside.name.removeprefix(f"{self.target.name}.backup-")
        own = self.set_aside.parent == self.target.parent and re.fullmatch(r"\d{8}-\d{6}", moment)
        if not own or self.candidate != Target(self.target).candidate:
            raise UnfinishedRestoreError(
                f"{self._path} refers to files that do not belong to a restore of {self.target}",
                hint=f"Keep a copy of {quoted(self.target.parent)} before anything else.",
            )

    def refuse_planted(self) -> None:
        """Refuse what lies under one of our names, and was not put there by a restore.

        :raises UnfinishedRestoreError: naming it.
        """
        for path, what in self._planted():
            raise UnfinishedRestoreError(
                f"{path} {what}: a restore that is interrupted leaves no such file",
                hint=f"Find out who made it, then remove it: ls -lis {quoted(path)}",
            )

    def _planted(self) -> Iterator[tuple[Path, str]]:
        """Return each of our names under which something lies that no restore has put there, and what it is."""
        databases = (self.target, self.set_aside)
        paths = [
            *databases,
            self.candidate,
            *(path.with_name(path.name + suffix) for path in databases for suffix in SIDECARS),
        ]
        found = [(path, status) for path in paths if (status := stat_or_none(path)) is not None]
        files = [(status.st_dev, status.st_ino) for _, status in found]
        for path, status in found:
            if not stat.S_ISREG(status.st_mode):
                yield path, "is not a regular file"
            elif status.st_nlink > files.count((status.st_dev, status.st_ino)):
                yield path, "has another name elsewhere (a hard link)"
            elif is_mostly_holes(path):
                yield path, "is a sparse file, most of which was never written"

    def remove(self) -> None:
        """Say that nothing is unfinished any more."""
        self._path.unlink(missing_ok=True)
        fsync_folder(self.target.parent)

    def _is_new(self, path: Path) -> bool:
        status = stat_or_none(path)
        return status is not None and status.st_ino == self.new_inode

    @property
    def new_is_live(self) -> bool:
        """Whether the target is the new file."""
        return self._is_new(self.target)

    @property
    def what_happened(self) -> str:
        """That a restore was interrupted, for people, and why that may not be true."""
        doubt = f" (others could have written its journal: {self.forgeable})" if self.forgeable else ""
        return f"restore begun at {self.started} was interrupted{doubt}"

    def live(self) -> str:
        """Look which database is the target, see LIVE; "unknown" when the disk does not tell."""
        try:
            return self._live()
        except OSError:
            return "unknown"

    @property
    def what_is_live(self) -> str:
        """Which database is the target, for people; also when the disk does not tell."""
        try:
            return LIVE[self._live()].format(self.target)
        except OSError as error:
            return f"Which database is live in {self.target} cannot be told ({error.strerror})"

    def _live(self) -> str:
        if stat_or_none(self.target) is None:
            return "missing"
        return "neither" if self.disputed else "new" if self.new_is_live else "old"

    @property
    def disputed(self) -> bool:
        """Whether the target is neither the new file nor what was set aside: somebody has stepped in."""
        if self.state == "committed" or self._is_new(self.target) or self._is_new(self.candidate):
            return False
        if not self.set_aside.exists() or same_file(self.target, self.set_aside):
            return False
        return not self.target.exists() or not same_content(self.target, self.set_aside)


_KINDS = {item.name: str(item.type) for item in fields(Journal) if item.init}


def _value(kind: str, value: object) -> Any:
    """Return a value of the JSON as the kind that a field has; ValueError when it is of another one."""
    if kind.endswith(" | None") and value is None:
        return None
    match kind.removesuffix(" | None"), value:
        case ("bool", bool()) | ("str", str()):
            return value
        case "int", int() if not isinstance(value, bool):
            return value
        case "Path", str() if value.startswith("/") and "\0" not in value:
            return Path(value)
        case "tuple[str, ...]", list() if all(isinstance(item, str) for item in value):
            return tuple(value)
    raise ValueError(f"a value is not of the kind {kind}")
