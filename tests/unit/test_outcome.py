"""How the last restore ended, and which database is live since then: facts, and nothing that others could invent."""

import json
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from backuplib.outcome import MOST_DATABASES, NAME, LastRestore, UnknownOutcomeError, identity


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A database in a folder of its own; the backups are in the one above."""
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/shop.db"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def last(target: Path, tmp_path: Path) -> LastRestore:
    """How a restore of it ended."""
    return LastRestore(
        target=str(target),
        ended="2025-01-30T15:30:45+01:00",
        outcome="restored",
        live="new",
        backup=str(tmp_path / "db_backup_20250130_120000.db.gz"),
        made="2025-01-30T12:00:00+01:00",
        safety_backup=str(tmp_path / "db_backup_20250130_153044.db.gz"),
        file=[*identity(target)],
    )


def told(last: LastRestore) -> str:
    return "\n".join(last.lines())


def test_what_was_written_is_read(last: LastRestore, target: Path, tmp_path: Path) -> None:
    assert LastRestore.of(target, tmp_path) is None
    last.write(tmp_path)
    assert LastRestore.of(target, tmp_path) == last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", NAME]
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o644  # for the shop's user, who asks, too


@pytest.mark.needs("root")
@pytest.mark.parametrize("change", ["owner", "mode", "second name"])
def test_what_others_may_have_written_is_not_believed(
    last: LastRestore, target: Path, tmp_path: Path, change: str
) -> None:
    last.write(tmp_path)
    if change == "owner":
        os.chown(tmp_path / NAME, 65534, 65534)
    elif change == "mode":
        (tmp_path / NAME).chmod(0o666)
    else:
        os.link(tmp_path / NAME, tmp_path / "second")
    with pytest.raises(UnknownOutcomeError):
        LastRestore.of(target, tmp_path)


@pytest.mark.parametrize(
    ("outcome", "live", "words"),
    [
        ("restored", "new", ("restored", "the NEW database")),
        ("rolled back", "old", ("rolled back", "the OLD database")),
        ("recovered", "new", ("interrupted, then recovered: the NEW database", "the NEW database")),
        ("recovered", "old", ("interrupted, then recovered: the OLD one", "the OLD database")),
        ("services down", "old", ("the services did not come up", "the OLD database")),
        ("services down", "new", ("the services did not come up", "the NEW database")),
        ("rollback failed", "unknown", ("so did its rollback", "not known")),
    ],
)
def test_each_end_is_told_with_the_database_that_is_live(
    last: LastRestore, outcome: str, live: str, words: tuple[str, str]
) -> None:
    first, *facts = replace(last, outcome=outcome, live=live).lines()
    assert first.startswith("last restore: 2025-01-30 ")
    assert words[0] in first
    (fact,) = [line for line in facts if line.startswith("   live ")]
    assert words[1] in fact


def test_moments_are_told_in_the_zone_of_this_machine(last: LastRestore) -> None:
    moment = datetime.fromisoformat(last.ended).astimezone()
    assert f"{moment:%Y-%m-%d %H:%M:%S %Z}" in last.lines()[0]


def test_what_the_bot_writes_changes_nothing(last: LastRestore, target: Path) -> None:
    with target.open("ab") as file:
        file.write(b"more" * 10000)
    os.utime(target, (0, 0))
    assert last.live_now() == "new"


@pytest.mark.parametrize("how", ["renamed over it", "in its inode's place"])
def test_another_file_in_its_place_is_told(last: LastRestore, target: Path, how: str) -> None:
    copy = target.with_name("copy.db")
    if how == "renamed over it":
        copy.write_bytes(target.read_bytes())
        copy.rename(target)
    else:  # a filesystem may give the new one the number that is free now
        target.unlink()
        target.write_bytes(b"content")
    assert last.live_now() == "replaced"
    assert "replaced" in told(last)
    assert last.as_dict()["live"] == "replaced"


def test_missing_database_is_not_called_live(last: LastRestore, target: Path) -> None:
    target.unlink()
    assert last.live_now() == "missing"
    assert "NEW" not in told(last)
    rolled_back = replace(last, outcome="rolled back", live="old", file=[])  # there was none before
    assert "OLD" not in told(rolled_back)
    target.touch()
    assert rolled_back.live_now() == "replaced"


def test_restore_of_the_safety_backup_is_told_as_an_undo(last: LastRestore, target: Path, tmp_path: Path) -> None:
    last.write(tmp_path)
    assert last.safety_backup
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    undo = replace(last, backup=str(link / Path(last.safety_backup).name), ended="2025-01-30T16:00:00+01:00")
    undo.write(tmp_path)
    read = LastRestore.of(target, tmp_path)
    assert read
    assert read.undoes == last.ended
    assert "undone" in read.lines()[0]
    assert "NEW" not in told(read)


@pytest.mark.parametrize("change", [{"live": "old", "outcome": "rolled back"}, {"backup": "/another.db.gz"}])
def test_nothing_else_is_an_undo(last: LastRestore, target: Path, tmp_path: Path, change: dict[str, str]) -> None:
    last.write(tmp_path)
    replace(last, **{"backup": last.safety_backup} | change).write(tmp_path)  # type: ignore[arg-type]
    read = LastRestore.of(target, tmp_path)
    assert read
    assert read.undoes is None
    assert "undone" not in told(read)


def test_databases_that_share_the_folder_each_have_their_own(last: LastRestore, target: Path, tmp_path: Path) -> None:
    last.write(tmp_path)
    for number in range(MOST_DATABASES - 1):
        replace(last, target=f"/srv/{number}.db", outcome="rolled back").write(tmp_path)
    assert LastRestore.of(target, tmp_path) == last
    assert LastRestore.of(Path("/srv/another.db"), tmp_path) is None
    replace(last, target="/srv/one too many.db").write(tmp_path)
    assert LastRestore.of(target, tmp_path) is None  # the file does not grow without end


# --- what others could have written ----------------------------------------------------------------------------------


def write_values(folder: Path, last: LastRestore, **changes: Any) -> None:
    last.write(folder)
    data = json.loads((folder / NAME).read_text())
    data[last.target] |= changes
    (folder / NAME).write_text(json.dumps(data))


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "\x1b[2J"},
        {"outcome": ["restored"]},
        {"live": "yours"},
        {"target": "/etc/passwd"},
        {"ended": "yesterday"},
        {"ended": None},
        {"ended": "2025-01-30T15:30:45"},
        {"ended": "0001-01-01T00:00:00+14:00"},
        {"made": 7},
        {"undoes": "2025-01-30"},
        {"backup": "relative"},
        {"backup": ["/x"]},
        {"safety_backup": "/x\0y"},
        {"file": 7},
        {"file": ["1", 2]},
        {"more": 1},
    ],
)
def test_value_that_was_not_written_here_is_not_believed(
    last: LastRestore, target: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    write_values(tmp_path, last, **change)
    with pytest.raises(UnknownOutcomeError):
        LastRestore.of(target, tmp_path)


@pytest.mark.parametrize("name", ["target", "ended", "outcome", "live"])
def test_value_that_is_missing_makes_it_not_known(last: LastRestore, target: Path, tmp_path: Path, name: str) -> None:
    last.write(tmp_path)
    data = json.loads((tmp_path / NAME).read_text())
    del data[last.target][name]
    (tmp_path / NAME).write_text(json.dumps(data))
    with pytest.raises(UnknownOutcomeError):
        LastRestore.of(target, tmp_path)


def test_names_of_files_steer_no_terminal(last: LastRestore, target: Path, tmp_path: Path) -> None:
    write_values(tmp_path, last, backup="/x\x1b[2J\nlast restore: none")
    read = LastRestore.of(target, tmp_path)
    assert read
    assert all(line.isprintable() for line in read.lines())


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "kind", ["pipe", "link", "folder", "noise", "list", "deep", "endless", "one that is no object"]
)
def test_file_that_is_odd_is_not_known_and_is_replaced_where_it_can_be(
    last: LastRestore, target: Path, tmp_path: Path, kind: str
) -> None:
    path, victim = tmp_path / NAME, tmp_path / "victim"
    content = {"noise": "\0\1", "list": "[]", "deep": "[" * 100_000, "one that is no object": f'{{"{target}": 7}}'}
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        victim.write_text("{}")
        path.symlink_to(victim)
    elif kind == "folder":
        path.mkdir()
    elif kind == "endless":
        with path.open("wb") as file:
            file.truncate(64 << 30)
    else:
        path.write_text(content[kind])
    with pytest.raises(UnknownOutcomeError):
        LastRestore.of(target, tmp_path)
    if kind != "folder":
        last.write(tmp_path)
        assert LastRestore.of(target, tmp_path) == last
    if kind == "link":
        assert victim.read_text() == "{}"
