"""A system call fails with ENOSPC, EIO, EROFS … at each place in turn; and file systems that are really full.

In CI a sample; all faults: pytest -m long tests/test_fault_matrix.py (POINTS=20: so many a test)
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest

from tests.conftest import MakeShop
from tests.support.matrix import EVERY, Tally, Tell
from tests.support.shop import Completed, Shop
from tests.support.strace import (
    CHANGING,
    KILL,
    LOOKING,
    Call,
    Hit,
    Stage,
    after_rename,
    aim,
    fail_after_rename,
    killed,
    make_stage,
    role,
    spread,
    strace,
    touching,
)

pytestmark = pytest.mark.needs("strace")

REAL_DISK = pytest.mark.needs("root", "mount", "setfacl")
"""A file system of its own, and a database with an owner and an ACL."""

FAULTS = {
    "write": ("ENOSPC", "EIO", "EDQUOT", "EROFS"),
    "pwrite64": ("ENOSPC", "EIO", "EDQUOT"),
    "fallocate": ("ENOSPC", "EDQUOT", "EIO"),
    "ftruncate": ("EIO", "ENOSPC"),
    "fsync": ("EIO", "ENOSPC", "EDQUOT"),
    "fdatasync": ("EIO", "ENOSPC"),
    "link": ("EXDEV", "EPERM", "ENOSPC", "EIO", "EROFS"),
    "linkat": ("EXDEV", "EPERM", "ENOSPC", "EIO", "EROFS"),
    "rename": ("EXDEV", "EIO", "EROFS", "ENOSPC", "EPERM", "EDQUOT"),
    "unlink": ("EPERM", "EIO", "EROFS"),
    "openat": ("EROFS", "ENOSPC", "EIO", "EPERM", "EDQUOT"),
    "fchown": ("EPERM",),
    "fchmod": ("EPERM",),
}
"""What each call can fail with."""

JOURNAL = ".restore-state.json"


Fault = tuple[str, list[Hit], set[int]]


def faults(
    stage: Stage, calls: Sequence[Call], after: int = -1, also: Sequence[tuple[int, str]] = (), *, every: bool
) -> list[Fault]:
    """The faults of each call, with the exit codes that are right; one error in turn, or every one."""
    turn = {name: cycle(errors) for name, errors in FAULTS.items()}
    found = []
    for index in touching(calls, stage.folders):
        name = calls[index].name
        if index <= after or name not in FAULTS or (also and calls[index].path.endswith("restore.log")):
            continue
        for error in FAULTS[name] if every else (next(turn[name]),):
            hits = aim(calls, (index, f"error={error}"), *also)
            if hits:
                codes = {8, 20} if also else codes_of_one_fault(calls, index)
                found.append((f"{error} from {calls[index]}", hits, codes))
    return found


def codes_of_one_fault(calls: Sequence[Call], index: int) -> set[int]:
    """Before the journal says "switching", nothing was touched; 0 where it can do without that call."""
    path = calls[index].path
    if path.endswith("restore.log"):
        return {0}
    written = [i for i, call in enumerate(calls) if call.name == "rename" and call.paths[-1].endswith(JOURNAL)]
    begun, switching = written[:2]
    durable = next(i for i, call in enumerate(calls) if i > switching and call.name == "fsync")
    if index > begun:
        return {0, 8} if index > durable else {3}
    return {0, 6} if "db_backup_" in path or path.endswith("backups") else {0, 3, 6}


def rows_now(stage: Stage) -> str:
    """Which rows are live, whatever lies beside them."""
    rows = stage.shop.rows()
    return "old" if rows == stage.old else "new" if rows == stage.new else "NEITHER"


def judge(stage: Stage, done: Completed, allowed: set[int], *, whole_at_once: bool = True) -> str:
    """The right code; old rows when it says failed, new ones when it says done; clean after the next run."""
    assert done.code in allowed, f"exit code {done.code}, not in {sorted(allowed)}: {done.text}"
    said = "new" if done.code == 0 else "old"
    if done.code != 20:
        assert rows_now(stage) == said, f"exit code {done.code}, but the rows are {rows_now(stage)}: {done.text}"
    else:
        assert "--recover" in done.text
        live = {"old": "is the old one", "new": ".backup-"}[rows_now(stage)]
        assert live in done.text, "it does not say where the old database is"
    after = stage.plain_recover()
    assert after.code == 0, f"after exit code {done.code}, --recover: {after.text}"
    outcome = stage.outcome()
    assert done.code == 20 or outcome == said, f"exit code {done.code}, and after --recover {outcome}: {after.text}"
    assert stage.backup_leftovers() == []
    assert stage.notes(outcome), "what is written down of it is false"
    assert outcome == "old" or stage.keeps_old(), "the old rows are in no backup"
    return f"exit {done.code}, {outcome}"


def run_faults(stage: Stage, chosen: Sequence[Fault], calls: Sequence[str] = CHANGING) -> Tally:
    """Run a restore with each fault."""
    tally = Tally("faults")
    for label, hits, codes in chosen:
        stage.reset()
        done = stage.restore(*hits, calls=calls)
        with tally.judging(label):
            assert "(INJECTED)" in stage.log.read_text(errors="replace"), f"nothing was hit by {hits}"
            tally.outcomes[judge(stage, done, codes)] += 1
    return tally


def lasting_faults(stage: Stage) -> list[Fault]:
    """From each call on, all such calls fail: the disk is full, gone, or read-only by the kernel's will."""
    codes = {0, 3, 6, 8, 20}
    found: list[Fault] = [
        (f"{label} and all after it", [replace(hit, when=f"{hit.when}+") for hit in hits], codes)
        for label, hits, _ in plain_faults(stage)
        if hits[0].call != "unlink"
    ]
    # unlink by its path, since it would fail in the RAM folder as well, whatever happens to the disk
    calls = stage.calls()
    paths = {calls[index].path for index in touching(calls, stage.folders) if calls[index].name == "unlink"}
    found += [
        (f"{error} from each unlink of {Path(path).name}", [Hit("unlink", "1+", f"error={error}", (path,))], codes)
        for path, error in zip(sorted(paths), cycle(FAULTS["unlink"]), strict=False)
        if role(path) == Path(path).name
    ]
    return found


def looking_faults(stage: Stage) -> list[Fault]:
    """EIO from each look at a file: it is not taken for one that is not there, nor for an error in the program."""
    done = stage.restore(calls=LOOKING)
    assert done.code == 0, done.text
    calls = stage.calls()
    folders = tuple(f"{folder}/" for folder in stage.folders)
    found: list[Fault] = []
    for index, call in enumerate(calls):
        if f"{call.path}/".startswith(folders) and not call.creates and (hits := aim(calls, (index, "error=EIO"))):
            found.append((f"EIO from {call}", hits, {0, 3, 6, 7, 8}))
    return found


@pytest.fixture(params=["wal", "journal"])
def stage(make_shop: MakeShop, mode: str, request: pytest.FixtureRequest) -> Stage:
    """Both modes and kinds of sidecar; backups are not encrypted."""
    return make_stage(make_shop(mode, PGP_PUBLIC_KEY_BASE64=None), request.param)


def plain_faults(stage: Stage, *, every: bool = False) -> list[Fault]:
    """The faults of a restore that would go well."""
    done = stage.restore()
    assert done.code == 0, done.text
    return faults(stage, stage.calls(), every=every)


def rollback_faults(stage: Stage, *, every: bool = False) -> list[Fault]:
    """The faults of a rollback, after something else failed: two failures, since one call cannot be hit twice."""
    found: list[Fault] = []
    for failing in ("fsync", "unlink"):
        calls = fail_after_rename(stage, failing)
        index = next(i for i, call in enumerate(calls) if call.injected)
        new = faults(stage, calls, index, [(index, "error=EIO")], every=every)
        found += [fault for fault in new if (fault[1][0].call == "fsync") == (failing == "unlink")]
    return found


@pytest.mark.deep
def test_one_fault_ends_clean(stage: Stage, tell: Tell) -> None:
    run_faults(stage, spread(plain_faults(stage), 5)).report(tell, "one fault")


@pytest.mark.deep
def test_fault_of_a_look_ends_clean(stage: Stage, tell: Tell) -> None:
    run_faults(stage, spread(looking_faults(stage), 4), LOOKING).report(tell, "fault of a look")


@pytest.mark.deep
def test_fault_in_the_rollback_is_told_and_recovered(stage: Stage, tell: Tell) -> None:
    run_faults(stage, spread(rollback_faults(stage), 3)).report(tell, "fault in rollback")


@pytest.mark.deep
def test_lasting_fault_loses_nothing(stage: Stage, tell: Tell) -> None:
    chosen = spread(lasting_faults(stage), 4)[1:]
    run_faults(stage, chosen).report(tell, "lasting fault")


def recovery_faults(stage: Stage, calls: Sequence[Call]) -> list[Fault]:
    """Each error of each call of a recovery in the data folder; 20 where it says that it must be called again."""
    found: list[Fault] = []
    for index in touching(calls, [stage.data]):
        for error in FAULTS.get(calls[index].name, ()):
            hits = aim(calls, (index, f"error={error}"))
            if hits:
                found.append((f"{error} from {calls[index]}", hits, {0, 20}))
    return found


def run_recovery_faults(stage: Stage, count: int | None) -> Tally:
    """Kill a restore before and after the rename, and let the recovery fail at its calls; then recover again."""
    tally = Tally("faults")
    assert stage.restore().code == 0
    calls = stage.calls()
    rename = next(
        i for i, call in enumerate(calls) if call.paths[-1:] == (str(stage.shop.db_path),) and "rename" in call.name
    )
    for index in (rename, next(after_rename(stage, calls))):
        kill = aim(calls, (index, KILL)) or []
        killed(stage, *kill)
        assert stage.recover().code == 0
        for label, hits, codes in spread(recovery_faults(stage, stage.calls()), count):
            killed(stage, *kill)
            done = stage.recover(*hits)
            with tally.judging(f"killed at {calls[index]}, recovery: {label}"):
                assert done.code in codes, f"exit code {done.code}: {done.text}"
                assert done.code == 0 or "--recover" in done.text, done.text
                assert rows_now(stage) in {"old", "new"}, f"the rows are {rows_now(stage)}: {done.text}"
                assert stage.plain_recover().code == 0
                outcome = stage.outcome()
                assert outcome == "old" or stage.keeps_old(), "the old rows are in no backup"
                tally.outcomes[f"exit {done.code}, {outcome}"] += 1
    return tally


@pytest.mark.deep
def test_fault_in_the_recovery_is_told_and_recovered(stage: Stage, tell: Tell) -> None:
    run_recovery_faults(stage, 2).report(tell, "fault in recovery")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_any_fault_in_the_recovery(stage: Stage, tell: Tell) -> None:
    run_recovery_faults(stage, EVERY and EVERY // 2).report(tell, "fault in recovery")


@pytest.mark.deep
def test_fault_of_the_journal_with_stop_first_is_refused(stage: Stage) -> None:
    """It is written a second time there, when the services are down already."""
    path = f"{stage.shop.db_path}.restore-state.json.tmp"
    wrapper = strace(stage.log, [Hit("openat", 2, "error=ENOSPC", (path,))])
    done = stage.shop.restore("--force", "--stop-first", stage.backup, wrapper=wrapper)
    assert judge(stage, done, {3}) == "exit 3, old"
    assert "No space left" in done.err
    assert "Traceback" not in done.err


@pytest.mark.deep
def test_folder_that_cannot_be_looked_at_is_no_bug_of_the_program(stage: Stage) -> None:
    hit = Hit("newfstatat", "1+", "error=EIO", (f"{stage.shop.db_path}-wal",))
    done = stage.restore(hit, calls=LOOKING)
    assert judge(stage, done, {3}) == "exit 3, old"
    assert done.error["id"] == "disk-failure"
    assert done.error["message"].endswith("shop.db-wal: Input/output error")  # the system's words
    assert "\n   Nothing was touched.\n" in done.err
    assert "Traceback" not in done.err


@pytest.mark.deep
def test_database_that_cannot_be_looked_at_is_not_taken_for_an_exchanged_one(make_shop: MakeShop) -> None:
    """A restore was killed after its rename, and one of the recovery's looks at the database fails."""
    stage = make_stage(make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None), "wal")
    assert stage.restore().code == 0
    calls = stage.calls()
    kill = aim(calls, (next(after_rename(stage, calls)), KILL)) or []
    codes = set()
    for when in range(1, 8):
        killed(stage, *kill)
        hit = Hit("newfstatat", when, "error=EIO", (str(stage.shop.db_path),))
        done = stage.shop.restore("--recover", wrapper=strace(stage.log, [hit], LOOKING))
        if "(INJECTED)" not in stage.log.read_text(errors="replace"):
            break
        assert done.code in {0, 3, 20}, done.text
        assert done.code == 0 or "shop.db: Input/output error" in done.error["message"], done.text
        codes.add(done.code)
        assert stage.plain_recover().code == 0
        assert stage.outcome()
    assert when > 4
    assert codes > {0}


@pytest.mark.deep
def test_backup_that_does_not_get_its_name_leaves_no_checksum(stage: Stage) -> None:
    """The checksum gets its name first, so that no backup is ever seen without one."""
    hits = [Hit(call, 2, "error=ENOSPC") for call in ("link", "linkat")]
    done = stage.shop.run("database_backup.py", "create", wrapper=strace(stage.log, hits))
    assert done.code == 6, done.text
    assert stage.backup_leftovers() == []
    assert list(stage.shop.backups.glob("db_backup_*.gz")) == [stage.backup]


@pytest.mark.deep
def test_hint_to_recover_names_a_target_that_is_not_the_configured_one(stage: Stage) -> None:
    target = stage.shop.path / "elsewhere.db"
    journal = f"{target}{JOURNAL}"
    wrapper = strace(stage.log, [Hit("unlink", 1, "error=EPERM", (journal,))])
    done = stage.shop.restore("--target-path", target, stage.backup, wrapper=wrapper)
    assert done.code == 0, done.text
    assert Path(journal).exists()
    assert "--recover --target-path elsewhere.db" in done.err
    assert stage.shop.restore("--recover", "--target-path", target).code == 0
    assert not Path(journal).exists()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_any_one_fault_ends_clean(stage: Stage, tell: Tell) -> None:
    run_faults(stage, spread(plain_faults(stage, every=True), EVERY)).report(tell, "one fault")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_any_fault_of_a_look_ends_clean(stage: Stage, tell: Tell) -> None:
    run_faults(stage, spread(looking_faults(stage), EVERY), LOOKING).report(tell, "fault of a look")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_any_fault_in_the_rollback(stage: Stage, tell: Tell) -> None:
    chosen = spread(rollback_faults(stage, every=True), EVERY)
    run_faults(stage, chosen).report(tell, "fault in rollback")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_any_lasting_fault(stage: Stage, tell: Tell) -> None:
    chosen = spread(lasting_faults(stage), EVERY)
    run_faults(stage, chosen).report(tell, "lasting fault")


# --- really full -----------------------------------------------------------------------------------------------------


@pytest.fixture
def put_on_tmpfs() -> Iterator[Callable[[Path, int], None]]:
    """put_on_tmpfs(folder, size): the folder's content on a small file system of its own."""
    with ExitStack() as mounted:

        def put(folder: Path, size: int) -> None:
            kept = folder.with_name(f"{folder.name}-before")
            folder.rename(kept)
            folder.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
            mounted.callback(subprocess.run, ["umount", str(folder)], check=True)
            subprocess.run(["cp", "-a", f"{kept}/.", str(folder)], check=True)

        yield put


def leave_free(folder: Path, size: int) -> None:
    """Fill a file system up to so many bytes."""
    status = os.statvfs(folder)
    with (folder / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, max(1, status.f_bavail * status.f_bsize - size))


def changed_shop(make_shop: MakeShop, mode: str) -> tuple[Shop, Path]:
    """A shop with a backup and other rows than in it; owner, mode, attributes and ACL of the database's own."""
    shop = make_shop(mode, PGP_PUBLIC_KEY_BASE64=None)
    backup = shop.back_up_then_change()
    shop.db_path.chmod(0o640)
    os.chown(shop.db_path, 1000, 1000)
    subprocess.run(["setfacl", "-m", "u:1234:r", str(shop.db_path)], check=True)
    return shop, backup


@REAL_DISK
@pytest.mark.parametrize("free", [0, 160 * 1024])
def test_full_data_folder_is_refused_and_stays_as_it_is(
    make_shop: MakeShop, mode: str, put_on_tmpfs: Callable[[Path, int], None], free: int
) -> None:
    shop, backup = changed_shop(make_shop, mode)
    put_on_tmpfs(shop.db_path.parent, 4 << 20)
    leave_free(shop.db_path.parent, free)
    before = shop.snapshot()
    done = shop.restore("--force", backup)
    assert done.ended == (3, "no-space"), done.text
    assert shop.snapshot() == before


@REAL_DISK
def test_full_backup_folder_stops_the_restore_before_anything_is_touched(
    make_shop: MakeShop, mode: str, put_on_tmpfs: Callable[[Path, int], None]
) -> None:
    shop, backup = changed_shop(make_shop, mode)
    put_on_tmpfs(shop.backups, 4 << 20)
    leave_free(shop.backups, 20 * 1024)
    before, names = shop.snapshot(), sorted(shop.backups.iterdir())
    done = shop.restore("--force", backup)
    assert done.ended == (6, "backup-failed"), done.text
    assert "space" in done.error["message"]  # the system's word
    assert shop.snapshot() == before
    assert sorted({*shop.backups.iterdir()} - {shop.backups / "restore.log"}) == sorted(
        {*names} - {shop.backups / "restore.log"}
    )


@REAL_DISK
def test_no_room_to_fold_the_wal_loses_nothing(
    make_shop: MakeShop, mode: str, put_on_tmpfs: Callable[[Path, int], None]
) -> None:
    """The new file fits, but the old one cannot take up what its WAL holds: it is set aside with it."""
    shop, backup = changed_shop(make_shop, mode)
    new = shop.backup_rows(backup, None)
    put_on_tmpfs(shop.db_path.parent, 4 << 20)
    shop.leave_hot_wal(rows=300, note="x" * 1000)
    old = shop.rows()
    leave_free(shop.db_path.parent, 280 * 1024)
    done = shop.restore("--force", backup)
    assert done.code == 0, done.text
    assert shop.rows() == new
    assert shop.backup_rows(max(shop.backups.glob("db_backup_*.db.gz")), None) == old
    assert {path.name for path in shop.db_path.parent.iterdir()} == {"shop.db", "filler"}
