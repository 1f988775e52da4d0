"""What prune keeps whatever the policy says, here and at a remote, and in which order it removes the rest."""

import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backuplib import errors, proofs
from backuplib.backup_file import BEFORE_A_RESTORE, BackupInfo, checksum_path, checksum_text
from backuplib.outcome import LastRestore
from backuplib.proofs import Proof
from backuplib.pruning import LAST_SAFETY, Rule, decide_here, prune_here, prune_remotes, remove_here
from backuplib.remote import Remote
from backuplib.retention import Policy

NOW = datetime.now().astimezone()
LAST_1 = Policy({"last": 1})


class Folder:
    """A backup folder, and what is said about it."""

    def __init__(self, path: Path) -> None:
        self.path, self.db_path = path / "backups", path / "data/shop.db"
        self.path.mkdir()
        self.db_path.parent.mkdir()
        self.said: list[str] = []
        self.warned: list[str] = []

    def backup(self, hours: float, kind: str = "ordinary", content: bytes = b"", name: str = "") -> Path:
        """A backup of so many hours ago, with its checksum."""
        made = NOW - timedelta(hours=hours)
        path = self.path / (name or f"db_backup_{made:%Y%m%d_%H%M%S}.db.gz.gpg")
        path.write_bytes(content or name.encode() + b"backup" + str(hours).encode())
        checksum_path(path).write_text(checksum_text(path.name, digest(path), kind))
        os.utime(path, (made.timestamp(), made.timestamp()))
        return path

    def proved(self, path: Path, days: float = 0) -> None:
        proofs.record(self.path, Proof(digest(path), path.name, NOW - timedelta(days=days), "verified"))

    def restored_over(self, safety_backup: Path) -> None:
        """A restore has ended that made this safety backup."""
        LastRestore(str(self.db_path), NOW.isoformat(), "restored", "new", safety_backup=str(safety_backup)).write(
            self.path
        )

    def backups(self) -> list[BackupInfo]:
        return [info for path in self.path.iterdir() if (info := BackupInfo.of(path))]

    def rule(self, policy: Policy = LAST_1, *, bots_too: bool = False) -> Rule:
        return Rule.of(policy, self.db_path, self.path, bots_too=bots_too, warn=self.warned.append)

    def kept(self, *, bots_too: bool = False) -> dict[str, tuple[str, ...]]:
        """The reasons of those that are kept, by their names."""
        decisions = decide_here(self.rule(bots_too=bots_too), self.backups())
        return {item.backup.path.name: item.reasons for item in decisions if item.reasons}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty backup folder."""
    return Folder(tmp_path)


def digest(path: Path) -> str:
    """SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_newest_one_that_was_proved_is_kept_with_how_and_when(folder: Folder) -> None:
    newest, _, proved, older = (folder.backup(hours) for hours in (1, 2, 3, 4))
    folder.proved(older)
    folder.proved(proved, days=2)
    kept = folder.kept()
    assert [*kept] == [newest.name, proved.name]
    assert kept[newest.name] == ("newest", "last")
    (reason,) = kept[proved.name]
    assert reason.startswith(f"last proved: verified {NOW - timedelta(days=2):%Y-%m-%d}")


def test_proof_counts_for_a_content_not_for_a_name_or_what_stands_beside_it(folder: Folder) -> None:
    folder.backup(1)
    damaged, forged, copy = folder.backup(2), folder.backup(3), folder.backup(4)
    folder.proved(damaged)
    damaged.write_bytes(b"damaged since")
    checksum_path(forged).write_text(f"{digest(copy)}  {forged.name}\n")
    folder.proved(copy)
    checksum_path(copy).unlink()
    assert [*folder.kept()][1:] == [copy.name]


def test_proved_safety_backup_does_not_take_the_place_of_a_proved_ordinary_one(folder: Folder) -> None:
    folder.backup(1)
    folder.backup(2, BEFORE_A_RESTORE)
    safety, ordinary = folder.backup(3, BEFORE_A_RESTORE), folder.backup(4)
    for path in (safety, ordinary):
        folder.proved(path)
    assert {safety.name, ordinary.name} < {*folder.kept()}


def test_proofs_that_are_not_believed_are_a_refusal_not_a_loss(folder: Folder) -> None:
    (folder.path / proofs.NAME).write_bytes(b"")
    (folder.path / proofs.NAME).chmod(0o666)
    with pytest.raises(errors.RefusedError, match="not known which backups were proved") as caught:
        folder.rule()
    assert f"mv {folder.path}/proofs.jsonl " in caught.value.hint


def test_safety_backup_of_the_last_restore_is_kept_and_all_of_them_when_that_is_not_known(folder: Folder) -> None:
    folder.backup(1)
    _, last, older = (folder.backup(hours, BEFORE_A_RESTORE) for hours in (2, 3, 4))
    folder.restored_over(last)
    assert folder.kept()[last.name] == (LAST_SAFETY,)
    assert older.name not in folder.kept()
    (folder.path / "last-restore.json").chmod(0o666)
    assert {last.name, older.name} <= {*folder.kept()}
    assert "not known which is the safety backup of the last restore, so all are kept" in folder.warned[-1]


def test_what_is_not_ours_by_name_is_kept_and_the_bots_dumps_until_the_operator_says_so(folder: Folder) -> None:
    folder.backup(1)
    other = folder.backup(2, content=b"SQLite format 3\0", name="before the upgrade.db")
    dump = folder.backup(
        3, content=b"BEGIN TRANSACTION;\nCREATE TABLE t (x);\nCOMMIT;\n", name="db_backup_20250101_000000.db"
    )
    dump2 = folder.backup(
        4, content=b"BEGIN TRANSACTION;\nCREATE TABLE u (x);\nCOMMIT;\n", name="db_backup_20240101_000000.db"
    )
    kept = folder.kept()
    assert kept[other.name] == ("not a name of this tool's",)
    assert kept[dump.name] == kept[dump2.name] == ("an SQL dump of the bot's (--bots-too)",)
    kept = folder.kept(bots_too=True)
    assert kept[dump.name] == ("newest", "last")
    assert dump2.name not in kept


def test_oldest_is_removed_first_each_with_its_checksum_and_what_fails_says_how_many_were(folder: Folder) -> None:
    newest, *old = (folder.backup(hours) for hours in (1, 2, 3, 4))
    removing = remove_here(decide_here(folder.rule(), folder.backups()))
    assert next(removing) == old[2]
    assert not checksum_path(old[2]).exists()
    old[1].unlink()
    old[1].mkdir()  # which unlink() does not remove
    with pytest.raises(errors.RefusedError, match="cannot remove") as caught:
        next(removing)
    assert caught.value.state == "1 older backup removed before that."
    assert newest.exists()
    assert old[0].exists()


def test_dry_run_says_the_same_and_removes_nothing(folder: Folder) -> None:
    newest, old = folder.backup(1), folder.backup(2)
    before = sorted(folder.path.iterdir())
    prune_here(folder.rule(), folder.backups(), folder.said.append, dry_run=True)
    assert folder.said == [f"kept {newest}: newest, last", f"would remove {old}"]
    assert sorted(folder.path.iterdir()) == before
    folder.said.clear()
    prune_here(folder.rule(), folder.backups(), folder.said.append, dry_run=False)
    assert folder.said == [f"kept {newest}: newest, last", f"removed {old}"]
    assert sorted(folder.path.iterdir()) == [newest, checksum_path(newest)]


# --- remotes ---------------------------------------------------------------------------------------------------------


class Place(Remote):
    """A remote that holds what it is given; rclone itself is asked in test_remotes.py."""

    def fill(self, names: Sequence[str], *, locked: Sequence[str] = (), down: bool = False) -> None:
        state = {"there": [*names], "locked": locked, "down": down, "sums": {}, "locks": {}, "doubts": {}}
        object.__setattr__(self, "state", state)

    def backups(self) -> list[BackupInfo]:
        if self.state["down"]:  # type: ignore[attr-defined]
            raise errors.RemoteUnreachableError(f"{self.place} does not answer", hint="Wait.")
        made = [(name, datetime.strptime(name[10:25], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)) for name in self.there]
        doubts = self.state["doubts"]  # type: ignore[attr-defined]
        return [
            BackupInfo(Path(name), when, 1, encrypted=True, place=self.place, doubt=doubts.get(name, ""))
            for name, when in made
        ]

    @property
    def there(self) -> list[str]:
        return self.state["there"]  # type: ignore[attr-defined,no-any-return]

    def checksum(self, name: str) -> str | None:
        return self.state["sums"].get(name)  # type: ignore[attr-defined,no-any-return]

    def lock(self, name: str) -> str:
        return self.state["locks"].get(name, "")  # type: ignore[attr-defined,no-any-return]

    def remove(self, name: str) -> None:
        if name in self.state["locked"]:  # type: ignore[attr-defined]
            raise errors.RemoteLockedError(f"{name} cannot be removed: AccessDenied")
        self.there.remove(name)


NAMES = [f"db_backup_2025010{day}_120000.db.gz.gpg" for day in (1, 2, 3, 4, 5)]


def test_remote_keeps_the_newest_the_proved_and_what_is_locked_which_is_no_error(folder: Folder) -> None:
    remote = Place("offsite:shop")
    remote.fill(NAMES, locked=NAMES[:1])
    remote.state["sums"] = {NAMES[1]: "a" * 64, NAMES[2]: "b" * 64}  # type: ignore[attr-defined]
    for name, sha256 in ((NAMES[1], "a" * 64), (NAMES[2], "c" * 64)):  # the latter is another content there
        proofs.record(folder.path, Proof(sha256, name, NOW, "restored"))
    prune_remotes(folder.rule(), [remote], folder.said.append, folder.warned.append, dry_run=False)
    assert remote.there == [NAMES[0], NAMES[1], NAMES[4]]
    assert [line.partition(" 20")[0] for line in folder.said] == [
        f"kept offsite:shop/{NAMES[4]}: newest, last",
        f"kept offsite:shop/{NAMES[1]}: last proved: restored",
        f"kept offsite:shop/{NAMES[0]}: {NAMES[0]} cannot be removed: AccessDenied",
        f"removed offsite:shop/{NAMES[2]}",
        f"removed offsite:shop/{NAMES[3]}",
    ]
    assert folder.warned == []


def test_remote_keeps_what_may_be_an_interrupted_copy_and_it_takes_the_place_of_no_other(folder: Folder) -> None:
    """Neither as the newest, nor in the count; an old one goes when a whole one would."""
    remote = Place("offsite:shop")
    remote.fill(NAMES)
    remote.state["doubts"] = dict.fromkeys((NAMES[0], *NAMES[3:]), "no checksum there")  # type: ignore[attr-defined]
    prune_remotes(folder.rule(), [remote], folder.said.append, folder.warned.append, dry_run=False)
    assert remote.there == NAMES[2:]
    assert folder.said[:3] == [
        f"kept offsite:shop/{NAMES[4]}: no checksum there",
        f"kept offsite:shop/{NAMES[3]}: no checksum there",
        f"kept offsite:shop/{NAMES[2]}: newest, last",
    ]


def test_where_no_backup_at_a_remote_has_a_checksum_the_rule_holds_for_them_as_they_are(folder: Folder) -> None:
    remote = Place("offsite:shop")
    remote.fill(NAMES)
    remote.state["doubts"] = dict.fromkeys(NAMES, "no checksum there")  # type: ignore[attr-defined]
    prune_remotes(folder.rule(), [remote], folder.said.append, folder.warned.append, dry_run=False)
    assert remote.there == NAMES[4:]


def test_remote_that_does_not_answer_is_told_and_the_others_are_pruned(folder: Folder) -> None:
    down, up = Place("nas:shop"), Place("offsite:")
    down.fill(NAMES, down=True)
    up.fill(NAMES)
    with pytest.raises(errors.NotEverywhereError) as caught:
        prune_remotes(folder.rule(), [down, up], folder.said.append, folder.warned.append, dry_run=False)
    assert int(caught.value.exit_code) == 11
    assert "nas:shop does not answer" in str(caught.value)
    assert folder.warned == ["nas:shop was not pruned, or not all of it: nas:shop does not answer"]
    assert (down.there, up.there) == (NAMES, NAMES[4:])


def test_dry_run_removes_nothing_at_a_remote(folder: Folder) -> None:
    remote = Place("offsite:shop")
    remote.fill(NAMES, locked=NAMES)
    prune_remotes(folder.rule(), [remote], folder.said.append, folder.warned.append, dry_run=True)
    remote.state["locks"] = {NAMES[1]: "an object lock keeps it"}  # type: ignore[attr-defined]
    folder.said.clear()
    prune_remotes(folder.rule(), [remote], folder.said.append, folder.warned.append, dry_run=True)
    assert remote.there == NAMES
    assert folder.said[1:3] == [
        f"would remove offsite:shop/{NAMES[0]}, if the remote lets us",
        f"kept offsite:shop/{NAMES[1]}: an object lock keeps it",
    ]
