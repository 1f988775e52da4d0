"""What was begun, so that the next run can finish or undo it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from backuplib.errors import UnfinishedRestoreError, explain
from backuplib.files import (
    CHUNK,
    fsync_folder,
    open_regular,
    replacing,
    same_content,
    same_file,
    stat_or_none,
    write_all,
)
from backuplib.formatting import quoted
from backuplib.target import Target

STATES = ("begun", "switching", "rolling back", "committed")


@dataclass
class Journal:
    """What was begun, beside the target, so that the next run can finish or undo it. Holds no secret.

    States: "begun" (services may be stopped, the database is untouched), "switching" (old or new is live), "rolling
    back" (old is to be live), "committed" (new is live, only the old one is left to be cleared away).

    ``containers`` are the names of those that are stopped and started, ``unhealthy`` of those that were so before; they
    are looked up among the bot's own. ``backup`` is what is restored, ``made`` when that was made, for people only.
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

    @property
    def _path(self) -> Path:
        return Target(self.target).journal

    def write(self) -> None:
        """Make the journal durable; OSError when that is not possible; the one before it is still there then."""
        with replacing(self._path, ".tmp") as file:
            write_all(file, json.dumps(asdict(self), default=str, indent=1).encode())

    @classmethod
    def load(cls, target: Target) -> Journal | None:
        """Return the journal of a restore that was interrupted, if there is one.

        :raises UnfinishedRestoreError: when it is there and cannot be read.
        """
        path = target.journal
        try:
            with open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
                data = json.loads(file.read(CHUNK))
            if data["target"] != str(target.path):
                raise UnfinishedRestoreError(
                    f"{path} describes a restore of another database: the folder was copied or moved",
                    hint="If it was moved, move it back, and recover there. In a copy, decide by hand which database "
                    "is to stay, as in section 7 of RUNBOOK.md.",
                )
            journal = cls(**{name: _value(annotation, data.pop(name)) for name, annotation in _KINDS.items()})
            if data or journal.state not in STATES:
                raise ValueError("it says what this version does not know")
            datetime.fromisoformat(journal.started)
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
        return journal

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

    def live(self) -> str:
        """Look which database is the target: "new", "old" or "neither"; OSError when the disk does not tell."""
        return "neither" if self.disputed else "new" if self.new_is_live else "old"

    @property
    def what_is_live(self) -> str:
        """Which database is the target, for people; also when the disk does not tell."""
        try:
            what = {"neither": "neither the new nor the old", "new": "the new", "old": "the old"}[self.live()]
        except OSError as error:
            return f"Which database is live in {self.target} cannot be told ({error.strerror})"
        return f"The database that is live in {self.target} is {what} one"

    @property
    def disputed(self) -> bool:
        """Whether the target is neither the new file nor what was set aside: somebody has stepped in."""
        if self.state == "committed" or self._is_new(self.target) or self._is_new(self.candidate):
            return False
        if not self.set_aside.exists() or same_file(self.target, self.set_aside):
            return False
        return not self.target.exists() or not same_content(self.target, self.set_aside)


_KINDS = {item.name: str(item.type) for item in fields(Journal)}


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
