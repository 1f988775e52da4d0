"""What was begun, so that the next run can finish or undo it."""

from __future__ import annotations

import filecmp
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from backuplib.errors import RefusedError
from backuplib.files import (
    CHUNK,
    create_file,
    drop_quietly,
    fsync_folder,
    open_regular,
    same_file,
    stat_or_none,
    write_all,
)
from backuplib.formatting import quoted
from backuplib.target import candidate_path


@dataclass
class Journal:
    """What was begun, beside the target, so that the next run can finish or undo it. Holds no secret.

    States: "switching" (old or new is live), "rolling back" (old is to be live), "committed" (new is live, only the
    old one is left to be cleared away).
    """

    target: Path
    state: str
    set_aside: Path
    candidate: Path
    existed: bool
    new_inode: int | None
    services: tuple[str, ...]
    compose_files: tuple[Path, ...]
    project: str | None
    safety_backup: Path | None
    unsaved: bool
    started: str

    @staticmethod
    def path(target: Path) -> Path:
        """Return where the journal of a target is."""
        return target.with_name(target.name + ".restore-state.json")

    def write(self) -> None:
        """Make the journal durable."""
        path = self.path(self.target)
        temporary = path.with_name(path.name + ".tmp")
        temporary.unlink(missing_ok=True)
        try:
            with create_file(temporary) as file:
                write_all(file, json.dumps(asdict(self), default=str, indent=1).encode())
                os.fsync(file.fileno())
            temporary.rename(path)
        except OSError:
            drop_quietly(temporary)
            raise
        fsync_folder(path.parent)

    @classmethod
    def load(cls, target: Path) -> Journal | None:
        """Return the journal of a restore that was cut off, if there is one.

        :raises RefusedError: when it is there and cannot be read.
        """
        path = cls.path(target)
        try:
            with open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
                data = json.loads(file.read(CHUNK))
            if data["target"] != str(target):
                raise RefusedError(
                    f"{path} tells of a restore into {data['target']}: the folder was copied or moved",
                    hint="If it was moved, move it back, and recover there. In a copy, decide by hand which database "
                    "is to stay, as in section 7 of RUNBOOK.md.",
                )
            journal = cls(
                **data
                | {name: Path(data[name]) for name in ("target", "set_aside", "candidate")}
                | {"safety_backup": Path(data["safety_backup"]) if data["safety_backup"] else None}
                | {"compose_files": tuple(map(Path, data["compose_files"])), "services": tuple(data["services"])}
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RefusedError(
                f"{path} cannot be read: {error}",
                hint=f"It tells of a restore that was cut off. Keep a copy of {target.parent} before anything else.",
            ) from None
        journal.refuse_other_files()
        return journal

    def refuse_other_files(self) -> None:
        """Refuse to rename or remove anything but what a restore of the target makes.

        Whoever may write into the folder, the bot for one, can write a journal, and this may run as root.

        :raises RefusedError: naming what the journal tells of.
        """
        moment = self.set_aside.name.removeprefix(f"{self.target.name}.backup-")
        own = self.set_aside.parent == self.target.parent and re.fullmatch(r"\d{8}-\d{6}", moment)
        if not own or self.candidate != candidate_path(self.target):
            raise RefusedError(
                f"{self.path(self.target)} names files that are not those of a restore of {self.target}",
                hint=f"Keep a copy of {quoted(self.target.parent)} before anything else.",
            )

    def remove(self) -> None:
        """Say that nothing is unfinished any more."""
        self.path(self.target).unlink(missing_ok=True)
        fsync_folder(self.target.parent)

    @property
    def new_is_live(self) -> bool:
        """Whether the target is the new file."""
        status = stat_or_none(self.target)
        return status is not None and status.st_ino == self.new_inode

    @property
    def what_is_live(self) -> str:
        """Which database is the target, for people; also when the disk does not tell."""
        try:
            return f"{self.target} is {'the new one' if self.new_is_live else 'the old one'}"
        except OSError as error:
            return f"{self.target} cannot be looked at ({error.strerror})"

    @property
    def disputed(self) -> bool:
        """Whether the target is neither the new file nor what was set aside: somebody has stepped in."""
        if self.state == "committed" or self.new_is_live or self.candidate.exists() or not self.set_aside.exists():
            return False
        if same_file(self.target, self.set_aside):
            return False
        return not self.target.exists() or not filecmp.cmp(self.target, self.set_aside, shallow=False)
