"""Power loss, as far as it can be had: the order of writes, fsyncs, links and renames in the log of a real run."""

from collections.abc import Sequence

import pytest

from tests.conftest import MakeShop
from tests.support.strace import Call, Stage, fail_after_rename, make_stage, role, touching

pytestmark = [pytest.mark.needs("strace"), pytest.mark.deep]

WRITES = ("write", "pwrite64", "ftruncate", "fallocate", "sendfile", "copy_file_range", "fchown", "fchmod")
SYNCS = ("fsync", "fdatasync")
JOURNAL = "shop.db.restore-state.json"
NEW = "shop.db.restore-new"
ASIDE = "shop.db.backup-TIME"


@pytest.fixture(params=["wal", "journal"])
def stage(make_shop: MakeShop, mode: str, request: pytest.FixtureRequest) -> Stage:
    """Both modes and kinds of sidecar; backups are not encrypted, so that one thread writes them."""
    return make_stage(make_shop(mode, PGP_PUBLIC_KEY_BASE64=None), request.param)


class Story:
    """The calls of a run that change something, in order; positions in it are what the tests compare."""

    def __init__(self, stage: Stage, calls: Sequence[Call]) -> None:
        self.calls = [calls[index] for index in touching(calls, stage.folders)]

    def all(self, names: str | tuple[str, ...], *roles: str) -> list[int]:
        """Where calls of these names have these files as their first arguments."""
        wanted = (names,) if isinstance(names, str) else names
        return [
            index
            for index, call in enumerate(self.calls)
            if call.name in wanted and tuple(role(path) for path in call.paths[: len(roles)]) == roles
        ]

    def first(self, names: str | tuple[str, ...], *roles: str, after: int = -1) -> int:
        """The first of them after a position; there has to be one."""
        found = [index for index in self.all(names, *roles) if index > after]
        assert found, f"no {names} of {roles} after {after} in:\n{self}"
        return found[0]

    def last(self, names: str | tuple[str, ...], *roles: str, before: int) -> int:
        """The last of them before a position; there has to be one."""
        found = [index for index in self.all(names, *roles) if index < before]
        assert found, f"no {names} of {roles} before {before} in:\n{self}"
        return found[-1]

    def assert_synced_before_rename(self, rename: int) -> None:
        """The renamed file was written, then fsynced, and not written after that."""
        name = role(self.calls[rename].path)
        assert self.last(SYNCS, name, before=rename) > self.last(WRITES, name, before=rename), str(self)

    def synced_folder(self, after: int, folder: str = "data") -> int:
        """Where the folder is fsynced first after a position."""
        return self.first("fsync", folder, after=after)

    def __str__(self) -> str:
        return "\n".join(f"{index:4} {call}" for index, call in enumerate(self.calls))


@pytest.fixture
def story(stage: Stage) -> Story:
    """A restore that goes well."""
    done = stage.restore()
    assert done.code == 0, done.text
    return Story(stage, stage.calls())


def test_each_file_is_durable_before_it_gets_its_name_and_the_name_right_after(story: Story) -> None:
    renames = story.all("rename", NEW) + story.all("rename", f"{JOURNAL}.tmp")
    backups = story.all(("rename", "link"), ".db_backup_N.tmp")
    assert len(story.all("rename", NEW, "shop.db")) == 1
    assert len(story.all("rename", f"{JOURNAL}.tmp", JOURNAL)) == 3  # begun, switching, committed
    assert backups
    for rename in renames + backups:
        story.assert_synced_before_rename(rename)
    for rename in renames:
        following = story.calls[rename + 1]
        assert (following.name, role(following.path)) == ("fsync", "data"), str(story)
    for rename in backups:
        story.synced_folder(rename, "backups")


def test_journal_is_durable_before_what_it_announces(story: Story) -> None:
    announced = story.synced_folder(story.first("rename", f"{JOURNAL}.tmp", JOURNAL))
    for act in (
        story.first("linkat", "shop.db", ASIDE),
        story.first("rename", NEW, "shop.db"),
        *story.all("unlink", "shop.db-wal")[-1:],
    ):
        assert announced < act, str(story)
    committed = story.synced_folder(story.all("rename", f"{JOURNAL}.tmp", JOURNAL)[-1])
    assert committed < story.first("unlink", ASIDE)
    gone = story.synced_folder(story.first("unlink", ASIDE))
    forgotten = story.first("unlink", JOURNAL)
    assert gone < forgotten
    assert story.synced_folder(forgotten)


def test_safety_backup_and_candidate_are_durable_before_the_journal(story: Story) -> None:
    begun = story.first("rename", f"{JOURNAL}.tmp", JOURNAL)
    backup = story.first(("rename", "link"), ".db_backup_N.tmp", "db_backup_TIME.db.gz")
    assert story.synced_folder(backup, "backups") < begun
    assert story.last("fsync", "data", before=begun) > story.last(SYNCS, NEW, before=begun), str(story)


def test_old_database_is_folded_linked_and_stripped_in_an_order_that_power_loss_cannot_hurt(story: Story) -> None:
    begun = story.first("rename", f"{JOURNAL}.tmp", JOURNAL)
    link = story.first("linkat", "shop.db", ASIDE)
    swap = story.first("rename", NEW, "shop.db")
    folded = [index for index in story.all(WRITES, "shop.db") if begun < index < link]
    if folded:
        assert story.last(SYNCS, "shop.db", before=link) > folded[-1], str(story)
    linked = story.synced_folder(link)
    sidecars = [
        i for suffix in ("-wal", "-shm", "-journal") for i in story.all("unlink", f"shop.db{suffix}") if link < i
    ]
    assert all(linked < index < swap for index in sidecars), str(story)
    if sidecars:
        assert max(sidecars) < story.synced_folder(max(sidecars)) < swap
    assert linked < swap < story.synced_folder(swap) < story.all("rename", f"{JOURNAL}.tmp", JOURNAL)[-1]


def test_rollback_is_durable_before_the_journal_goes(stage: Stage) -> None:
    story = Story(stage, fail_after_rename(stage, "unlink"))
    swap = story.first("rename", NEW, "shop.db")
    back = story.first("rename", ASIDE, "shop.db")
    assert swap < story.first("rename", f"{JOURNAL}.tmp", JOURNAL, after=swap) < back, str(story)
    assert back < story.synced_folder(back) < story.first("unlink", JOURNAL), str(story)
    assert story.synced_folder(story.first("unlink", JOURNAL))
