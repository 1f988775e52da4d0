"""What the next run makes of a restore that was cut off when others have had their hands in the folder since."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ONE_MODE, MakeShop
from tests.support.strace import KILL, Hit, Stage, aim, make_stage

pytestmark = pytest.mark.needs("strace")


@pytest.fixture
def stage(make_shop: MakeShop, mode: str) -> Stage:
    """Both modes, with rows that only the WAL holds."""
    return make_stage(make_shop(mode, PGP_PUBLIC_KEY_BASE64=None), "wal")


def cut_off_after_the_rename(stage: Stage) -> Path:
    """The new database is live, the old one set aside; returns where."""
    new, live = f"{stage.shop.db_path}.restore-new", str(stage.shop.db_path)
    assert stage.restore().code == 0
    calls = stage.calls()
    renamed = next(i for i, call in enumerate(calls) if call.name == "rename" and call.paths == (new, live))
    hits = aim(calls, (next(i for i, c in enumerate(calls) if i > renamed and c.name == "fsync"), KILL))
    assert hits
    stage.reset()
    assert stage.restore(*hits).code == -9
    return next(path for path in stage.data.glob("*.backup-*"))


def journal(stage: Stage) -> Path:
    return stage.shop.db_path.with_name("shop.db.restore-state.json")


def test_folder_that_came_back_from_a_copy_keeps_the_old_database(stage: Stage) -> None:
    """As after `cp -a data data.kept`, and `mv data.kept data` later on: no inode is what the journal knows."""
    set_aside = cut_off_after_the_rename(stage)
    kept = stage.data.with_name("data.kept")
    shutil.copytree(stage.data, kept)
    shutil.rmtree(stage.data)
    kept.rename(stage.data)
    done = stage.plain_recover()
    assert done.ended == (3, "unfinished-restore"), done.text
    assert str(set_aside) in done.error["message"]
    assert stage.shop.rows(set_aside) == stage.old
    assert stage.shop.rows() == stage.new
    assert stage.plain_restore().ended == (3, "unfinished-restore")


@ONE_MODE
def test_database_that_was_moved_away_by_hand_costs_nobody_the_old_one(stage: Stage) -> None:
    set_aside = cut_off_after_the_rename(stage)
    stage.shop.db_path.rename(stage.data / "bad.db")
    assert stage.plain_recover().ended == (3, "unfinished-restore")
    assert stage.shop.rows(set_aside) == stage.old


@ONE_MODE
@pytest.mark.deep
def test_copied_folder_does_not_recover_the_original(stage: Stage) -> None:
    """Its lock is another one, and its files as well."""
    cut_off_after_the_rename(stage)
    copy = stage.shop.path / "copy"
    shutil.copytree(stage.data, copy)
    before = stage.shop.snapshot()
    done = stage.shop.restore("--recover", "--target-path", copy / "shop.db")
    assert done.ended == (3, "unfinished-restore"), done.text
    assert "another database" in done.error["message"]
    assert str(stage.shop.db_path) not in done.text, "a path out of a journal is not printed"
    assert stage.shop.snapshot() == before


@pytest.mark.deep
@pytest.mark.parametrize("journal_mode", ["WAL", "DELETE"])
def test_database_that_somebody_has_open_is_not_replaced_under_him(stage: Stage, journal_mode: str) -> None:
    """He would go on writing into a file that is gone."""
    set_aside = cut_off_after_the_rename(stage)
    told = json.loads(journal(stage).read_text())
    journal(stage).write_text(json.dumps(told | {"state": "rolling back"}))
    with closing(stage.shop.connect()) as connection:
        connection.execute(f"PRAGMA journal_mode={journal_mode}")
    with stage.shop.held_open() as holder:
        done = stage.plain_recover()
        assert done.ended == (20, "rollback-failed"), done.text
        assert f"pid {holder.pid}" in done.error["message"]
        assert set_aside.exists()
    assert stage.plain_recover().code == 0
    assert stage.outcome() == "old"


@ONE_MODE
@pytest.mark.deep
def test_database_that_got_the_inode_of_a_restore_taken_back_is_left_alone(stage: Stage) -> None:
    """The journal stays when it cannot be removed, or the bot does not come up; the inode is free then."""
    set_aside = cut_off_after_the_rename(stage)
    told = json.loads(journal(stage).read_text())
    journal(stage).write_text(json.dumps(told | {"state": "rolling back"}))
    done = stage.recover(Hit("unlink", 1, "error=EPERM", (str(journal(stage)),)))
    assert done.code == 0, done.text
    assert not set_aside.exists()
    by_hand = stage.data / "by-hand.db"
    shutil.copyfile(stage.shop.db_path, by_hand)
    told = json.loads(journal(stage).read_text())
    if told["new_inode"] is not None:
        told["new_inode"] = by_hand.stat().st_ino  # what a file system does that gives numbers out again
        journal(stage).write_text(json.dumps(told))
    for sidecar in stage.data.glob("shop.db-*"):
        sidecar.unlink()
    by_hand.rename(stage.shop.db_path)
    expected = stage.shop.rows()
    done = stage.plain_recover()
    assert done.code == 0, done.text
    assert stage.shop.rows() == expected


def other(**changes: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | changes)


SPOILT: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "cut short": lambda text: text[:100],
    "list": lambda _: "[]",
    "null": lambda _: "null",
    "zeros": lambda _: "\0" * 300,
    "other version": other(version=2),
    "no containers": other(containers=None),
    "no set-aside": other(set_aside=None),
}


@pytest.mark.deep
def test_journal_that_cannot_be_understood_is_refused_and_nothing_is_touched(make_shop: MakeShop) -> None:
    stage = make_stage(make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None), "wal")
    cut_off_after_the_rename(stage)
    sound = journal(stage).read_text()
    for name, spoil in SPOILT.items():
        journal(stage).write_text(spoil(sound))
        before = stage.shop.snapshot()
        for run in (stage.plain_recover, stage.plain_restore):
            done = run()
            assert done.ended == (3, "unfinished-restore"), f"{name}: {done.text}"
            assert "Traceback" not in done.text
            assert str(journal(stage)) in done.error["message"]
        assert stage.shop.snapshot() == before, name
