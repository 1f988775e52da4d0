"""One at a time: restores, recoveries and backups of one database; and nobody else has it open."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import MakeShop, StartTerminal
from tests.support.containers import wait_until
from tests.support.shop import Shop, open_way_to_python
from tests.support.strace import Hit, strace
from tests.support.terminal import Terminal

NOBODY = 65534


@pytest.fixture
def plain_shop(make_shop: MakeShop) -> tuple[Shop, Path]:
    """A shop without keys, and a backup of other rows than it has."""
    shop = make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None)
    backup = shop.create_backup()
    shop.change_data()
    return shop, backup


@pytest.fixture
def waiting(plain_shop: tuple[Shop, Path], terminal: StartTerminal) -> Terminal:
    """A restore that waits for an answer, and so holds the lock."""
    shop, backup = plain_shop
    started = terminal(shop, backup)
    started.expect("Continue")
    return started


@pytest.mark.needs("root")
@pytest.mark.parametrize("what", ["restore", "recover"])
def test_second_run_is_refused_and_told_who_is_running_since_when(
    plain_shop: tuple[Shop, Path], waiting: Terminal, what: str
) -> None:
    shop, backup = plain_shop
    before = shop.snapshot()
    done = shop.restore("--recover") if what == "recover" else shop.restore("--force", backup)
    assert done.ended == (3, "locked"), done.text
    assert str(waiting.process.pid) in done.error["message"]
    assert "restore_backup.py" in done.error["message"]
    assert re.search(r"\d\d:\d\d", done.error["message"])
    assert shop.snapshot() == before


@pytest.mark.needs("root")
def test_verifying_needs_no_lock(plain_shop: tuple[Shop, Path], waiting: Terminal) -> None:
    shop, backup = plain_shop
    assert shop.restore("--verify-only", backup).code == 0


@pytest.mark.deep
@pytest.mark.needs("root", "strace")
def test_list_tells_a_running_restore_from_one_that_was_killed(
    plain_shop: tuple[Shop, Path], tmp_path: Path, waiting: Terminal
) -> None:
    """Not the outcome of an earlier run; nor is one called cut off that goes on. Also where the database is a link."""
    shop, backup = plain_shop
    shop.db_path.parent.joinpath("real").mkdir()
    (shop.backups / "restore.log").write_text("2025-01-01T00:00:00+00:00 7 outcome: restored\n")
    waiting.process.kill()
    waiting.wait()
    running = re.compile(r"^🔄 .*: python\S* restore_backup\.py .*\(pid \d+\)", re.MULTILINE)
    slow = strace(tmp_path / "log", [Hit("rename", 1, "delay_exit=10s", (f"{shop.db_path}.restore-state.json.tmp",))])
    with shop.start_restore("--force", backup, wrapper=slow) as process:
        wait_until(lambda: list(shop.db_path.parent.glob("*.restore-state.json")), "the switch has begun")
        listed = shop.restore("--list")
        made = shop.run("database_backup.py", "create")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    assert running.search(listed.err), listed.text
    assert "switching since" in listed.err
    assert (listed.report["running"]["doing"], listed.report["interrupted"]) == ("switching", None)
    assert "--recover" not in listed.err
    assert "restored" not in listed.err
    assert made.code == 3, made.text
    assert str(listed.report["running"]["pid"]) in made.err
    wait_until(lambda: not running.search(shop.restore("--list").err), "nothing holds the lock")
    shop.db_path.rename(shop.db_path.parent / "real" / "shop.db")
    (journal,) = shop.db_path.parent.glob("*.restore-state.json")
    journal.rename(shop.db_path.parent / "real" / journal.name)
    shop.db_path.symlink_to("real/shop.db")
    listed = shop.restore("--list")
    assert "--recover" in listed.err
    assert listed.report["interrupted"]
    assert listed.report["last_restore"] is None
    assert "last restore" not in listed.err


@pytest.mark.needs("root")
def test_lock_ends_with_its_process_even_by_sigkill(plain_shop: tuple[Shop, Path], waiting: Terminal) -> None:
    shop, backup = plain_shop
    waiting.process.kill()
    waiting.process.wait(10)
    done = shop.restore("--force", backup)
    assert done.code == 0, done.text


@pytest.mark.needs("root")
def test_backup_is_made_while_a_restore_waits_for_an_answer(plain_shop: tuple[Shop, Path], waiting: Terminal) -> None:
    """Somebody may have gone for lunch. What the restore waits for is told meanwhile, and that it is suspended."""
    shop, _ = plain_shop
    done = shop.run("database_backup.py", "create")
    assert done.code == 0, done.text
    told = shop.restore("--list")
    assert "waiting for the confirmation since" in told.err, told.text
    assert told.report["running"]["pid"] == waiting.process.pid
    waiting.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: "suspended: fg" in shop.restore("--list").err, "it is suspended")
    waiting.process.send_signal(signal.SIGCONT)
    waiting.send("n\n")
    assert waiting.wait() == 10
    assert [path.name for path in shop.db_path.parent.iterdir()] == ["shop.db"]


@pytest.mark.needs("strace")
def test_restore_waits_for_a_backup_to_end(plain_shop: tuple[Shop, Path], tmp_path: Path) -> None:
    shop, backup = plain_shop
    before = shop.rows()
    slow = strace(tmp_path / "log", [Hit(call, 1, "delay_enter=4s") for call in ("link", "linkat")])
    process = shop.start("database_backup.py", "create", wrapper=slow)
    wait_until(lambda: any(shop.backups.glob(".db_backup_*.tmp")), "the backup is being written")
    done = shop.restore("--force", backup)
    out, err = process.communicate(timeout=60)
    assert done.code == 0, done.text
    assert re.search(r"Waiting for \S*python.*database_backup\.py \(pid \d+\)", done.err)
    assert process.returncode == 0, err
    assert shop.backup_rows(shop.path / out.strip(), None) == before
    assert shop.rows() == shop.backup_rows(backup, None)


@pytest.mark.deep
@pytest.mark.needs("strace")
def test_of_two_restores_at_the_same_moment_exactly_one_wins(plain_shop: tuple[Shop, Path], tmp_path: Path) -> None:
    shop, backup = plain_shop
    new = shop.backup_rows(backup, None)
    # The winner, until the other has ended: in the preflight, which the lock comes before.
    stopped = [Hit("rename", 1, "signal=SIGSTOP", (f"{shop.db_path}.restore-probe",))]
    running = [
        shop.start_restore("--force", backup, wrapper=strace(tmp_path / f"log{number}", stopped)) for number in (1, 2)
    ]
    wait_until(lambda: any(process.poll() is not None for process in running), "one of them ends", 100)
    for process in running:
        while process.poll() is None:
            os.killpg(process.pid, signal.SIGCONT)
            time.sleep(0.1)
    ended = [process.communicate(timeout=100) for process in running]
    assert sorted(process.returncode for process in running) == [0, 3], ended
    assert shop.rows() == new
    assert [path.name for path in shop.db_path.parent.iterdir()] == ["shop.db"]


# --- processes outside of any container that have it open ------------------------------------------------------------


@pytest.mark.parametrize("journal_mode", ["WAL", "DELETE"])
def test_idle_holder_is_named_and_nothing_is_touched(make_shop: MakeShop, mode: str, journal_mode: str) -> None:
    shop = make_shop(mode, PGP_PUBLIC_KEY_BASE64=None)
    backup = shop.create_backup()
    with closing(shop.connect()) as connection:
        connection.execute(f"PRAGMA journal_mode={journal_mode}")
    shop.change_data()
    with shop.held_open() as holder:
        before = shop.snapshot()
        for more in ([], ["--no-restart"], ["--stop-first"]):
            done = shop.restore("--force", *more, backup)
            assert done.ended == (3, "database-in-use"), done.text
            assert f"{holder.pid}" in done.error["message"]
            assert "writer.py" in done.error["message"]
        assert shop.snapshot() == before
    assert shop.restore("--force", backup).code == 0


@pytest.fixture
def nobodys_shop(make_shop: MakeShop) -> Iterator[tuple[Shop, Path]]:
    """A shop that belongs to an unprivileged user, where that user can reach it; Python too."""
    shop = make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None)
    backup = shop.create_backup()
    shop.change_data()
    open_way_to_python()
    with tempfile.TemporaryDirectory(prefix="nobody-") as folder:
        Path(folder).chmod(0o755)
        own = Shop(path=Path(folder, "shop"), mode=shop.mode, settings=shop.settings)
        shutil.copytree(shop.path, own.path)
        (Path(folder) / "shop-home").mkdir()
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", folder], check=True)
        yield own, own.backups / backup.name


def unprivileged(shop: Shop, *args: object) -> tuple[int, str]:
    """A restore as that user."""
    wrapper = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    done = shop.restore("--allow-swap", *args, wrapper=wrapper, env={"PYTHONDONTWRITEBYTECODE": "1"})
    return done.code, done.text


@pytest.mark.needs("root")
@pytest.mark.parametrize(("answer", "code"), [("n", 10), ("y", 0)])
def test_unprivileged_user_is_asked_before_the_menu_whether_to_go_on_without_root(
    nobodys_shop: tuple[Shop, Path], answer: str, code: int
) -> None:
    """With the command for root. --force answers the other question."""
    shop, backup = nobodys_shop
    before = shop.snapshot()
    wrapper = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    argv = [*wrapper, sys.executable, "restore_backup.py", "--allow-swap", "--no-restart", "--force"]
    started = Terminal(argv, cwd=shop.path, env=shop.environment({"PYTHONDONTWRITEBYTECODE": "1"}))
    try:
        gap = r"(?:\s|\\|\x1b\[\d*m)+"  # it may be longer than a line
        started.expect(gap.join([r"sudo \S+", "restore_backup.py", "--no-restart", "--force", "--allow-swap"]))
        started.expect(r"\[y/N\] ")
        assert backup.name not in started.output
        started.send(f"{answer}\n")
        if not code:
            started.expect("leave: ")
            started.send("1\n")
        assert started.wait() == code, started.output
        assert started.output.count("cannot tell whether") == 1
    finally:
        started.end()
    assert (shop.snapshot() == before) == bool(code)


@pytest.mark.needs("root")
def test_unprivileged_user_without_a_terminal_is_told_all_that_is_missing(nobodys_shop: tuple[Shop, Path]) -> None:
    shop, backup = nobodys_shop
    before = shop.snapshot()
    code, text = unprivileged(shop, backup)
    assert code == 3, text
    for word in ("--force", "cannot tell whether", f"sudo {sys.executable} restore_backup.py backups/{backup.name} "):
        assert word in text
    assert shop.snapshot() == before


@pytest.mark.needs("root")
def test_unprivileged_user_takes_the_risk_with_force_unless_a_holder_is_seen(nobodys_shop: tuple[Shop, Path]) -> None:
    shop, backup = nobodys_shop
    with shop.db_path.open("rb") as database:
        holder = subprocess.Popen(
            ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sleep", "60"], stdin=database
        )
    try:
        code, text = unprivileged(shop, "--force", backup)
        assert code == 3, text
        assert str(holder.pid) in text
    finally:
        holder.kill()
        holder.wait(10)
    code, text = unprivileged(shop, "--force", backup)
    assert code == 0, text
    assert shop.rows() == shop.backup_rows(backup, None)
    assert shop.db_path.stat().st_uid == NOBODY
