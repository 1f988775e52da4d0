"""The restore is killed, cut off or signalled while it stops and starts the real bot: nothing lost, bot up again."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from backuplib.target import Target
from tests.conftest import MakeBotShop, Prepare, StartTerminal
from tests.support.containers import Bot, BotShop, Compose, import_image, wait_until
from tests.support.keys import Keys
from tests.support.matrix import EVERY, Tally, Tell
from tests.support.scene import (
    KEEP_TRUTH,
    LIVE_ROW,
    LONG,
    ONE_COMPOSE,
    Scene,
    alternating,
    check_clean,
    check_code,
    check_old,
    check_restored,
    check_writing_to_the_live_file,
    intercept,
    kill_at,
    untouched,
)
from tests.support.shop import Completed, Rows, filled_pipe
from tests.support.strace import KILL as KILL_SIGNAL
from tests.support.strace import Hit, random_hits, spread, strace
from tests.support.units import FOLDER_OF_UNITS, commands_of

pytestmark = pytest.mark.docker

KILL = 'kill -9 "$PPID"; sleep 0.2; exit 1'
"""The restore is gone, as by power loss or the kernel's memory killer."""

TRUTH = '[ -e "$SHOP/truth" ] || cp -a "$SHOP/data" "$SHOP/truth"'

KILL_POINTS = {
    "before the stop": {"stop": KILL},
    "after the stop": {"stop": f'real "$@"; {TRUTH}; {KILL}'},
    "before the start": {"stop": KEEP_TRUTH, "start": KILL},
    "after the start": {"stop": KEEP_TRUTH, "start": f'real "$@"; {KILL}'},
}
ROLLBACK_KILL_POINTS = {
    "before the rollback's stop": {"stop": f"if [ $(nth) = 2 ]; then {KILL}; fi; {KEEP_TRUTH}"},
    "after the rollback's stop": {"stop": f'n=$(nth); real "$@"; {TRUTH}; if [ $n = 2 ]; then {KILL}; fi; exit 0'},
    "before the rollback's start": {"stop": KEEP_TRUTH, "start": f"if [ $(nth) = 2 ]; then {KILL}; fi"},
}


def restore_killed(scene: Scene, *options: str, **scripts: str) -> None:
    """A restore that is killed where the scripts say."""
    done = scene.restore(*options, env=intercept(scene.shop, **scripts))
    assert done.code == -signal.SIGKILL, done.text
    assert Path(f"{scene.shop.db_path}.restore-state.json").exists()


def recover(scene: Scene) -> Completed:
    """--recover, twice: the second time there is nothing to do."""
    done = scene.shop.restore("--recover")
    check_code(done, 0)
    state = scene.shop.state()
    again = scene.shop.restore("--recover")
    check_code(again, 0)
    assert "Nothing to recover" in again.text
    assert scene.shop.state().started_at == state.started_at
    return done


def check_whole(scene: Scene, *, new: bool) -> None:
    """The bot runs, on the whole new database or on the whole old one, and nothing is left over."""
    assert scene.shop.state().running
    check_writing_to_the_live_file(scene.shop)
    if new:
        check_restored(scene)
    elif scene.truth.exists():
        check_old(scene)
    else:
        assert is_old(scene)
    check_clean(scene.shop)


def is_old(scene: Scene) -> bool:
    """Whether the live database is the old one."""
    return "came after the backup" in [row[1] for row in scene.shop.rows_in_place()["customers"]]


def check_last_writes_kept(scene: Scene) -> None:
    """Every row that the old database held when the bot stopped is in one of the backups."""
    truth = scene.shop.rows(scene.truth)
    kept = sorted(scene.shop.backups.glob("*.db.gz.gpg"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    assert any(holds(scene.shop.backup_rows(path, scene.key), truth) for path in kept)


def holds(rows: Rows, others: Rows) -> bool:
    """Whether a database has all rows of another one; bot_log may have more: a bot that runs again goes on writing."""
    log, other_log = rows.get("bot_log", []), others["bot_log"]
    return {**rows, "bot_log": None} == {**others, "bot_log": None} and set(other_log) <= set(log)


# --- killed ----------------------------------------------------------------------------------------------------------


@alternating("point", *KILL_POINTS)
def test_killed_restore_is_finished_or_undone(prepare: Prepare, mode: str, compose: Compose, point: str) -> None:
    scene = prepare(mode, compose)
    restore_killed(scene, **KILL_POINTS[point])
    new = "start" in point
    done = recover(scene)
    assert "🩹" in done.err
    check_whole(scene, new=new)
    if new:
        check_last_writes_kept(scene)


@alternating("point", *ROLLBACK_KILL_POINTS)
def test_killed_rollback_ends_with_the_old_database(prepare: Prepare, mode: str, compose: Compose, point: str) -> None:
    scene = prepare(mode, compose, Bot(health=True, healthy_if=LIVE_ROW))
    restore_killed(scene, **ROLLBACK_KILL_POINTS[point])
    recover(scene)
    check_whole(scene, new=False)
    assert scene.shop.state().health == "healthy"


@alternating("point", "after the start", "after the stop")
def test_next_restore_recovers_first(prepare: Prepare, mode: str, compose: Compose, point: str) -> None:
    scene = prepare(mode, compose)
    restore_killed(scene, **KILL_POINTS[point])
    done = scene.restore()
    check_code(done, 0)
    assert "🩹" in done.err
    check_whole(scene, new=True)
    if scene.truth.exists():
        check_last_writes_kept(scene)


@ONE_COMPOSE
def test_deaf_bot_and_killed_restore_lose_no_row(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose, Bot(deaf=True, health=True))
    restore_killed(scene, **KILL_POINTS["after the stop"])
    recover(scene)
    assert Path(f"{scene.truth}-wal").stat().st_size > 0
    check_whole(scene, new=False)


@alternating("option", "--stop-first", "--skip-backup")
def test_killed_restore_in_other_forms_is_recovered(prepare: Prepare, mode: str, compose: Compose, option: str) -> None:
    scene = prepare(mode, compose)
    restore_killed(scene, option, **KILL_POINTS["after the stop"])
    recover(scene)
    check_whole(scene, new=False)


@alternating("point", "after the stop", "before the start")
def test_bot_that_runs_again_before_the_recovery_loses_nothing(
    prepare: Prepare, mode: str, compose: Compose, point: str
) -> None:
    """Somebody started it by hand; or the engine did, after a reboot."""
    scene = prepare(mode, compose)
    restore_killed(scene, **KILL_POINTS[point])
    scene.shop.run_compose("start", "bot")
    scene.shop.wait_rows()
    written = scene.shop.rows_in_place()["bot_log"]
    recover(scene)
    check_whole(scene, new=point == "before the start")
    assert set(written) <= set(scene.shop.rows_in_place()["bot_log"])


@ONE_COMPOSE
def test_bot_that_runs_on_the_new_database_in_mid_rollback_is_stopped_first(
    prepare: Prepare, mode: str, compose: Compose
) -> None:
    scene = prepare(mode, compose, Bot(health=True, healthy_if=LIVE_ROW))
    restore_killed(scene, **ROLLBACK_KILL_POINTS["after the rollback's stop"])
    scene.shop.run_compose("start", "bot")
    scene.shop.wait_rows()
    recover(scene)
    check_whole(scene, new=False)
    assert scene.shop.state().health == "healthy"


@ONE_COMPOSE
def test_recovery_may_itself_be_killed(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose)
    restore_killed(scene, **KILL_POINTS["before the start"])
    env = intercept(scene.shop, start=KILL)
    for _ in range(2):
        assert scene.shop.restore("--recover", env=env).code == -signal.SIGKILL
    recover(scene)
    check_whole(scene, new=True)
    check_last_writes_kept(scene)


@ONE_COMPOSE
def test_new_database_on_which_the_bot_does_not_come_up_is_undone_by_the_recovery(
    prepare: Prepare, mode: str, compose: Compose
) -> None:
    scene = prepare(mode, compose, Bot(health=True, healthy_if=LIVE_ROW))
    restore_killed(scene, **KILL_POINTS["before the start"])
    recover(scene)
    check_whole(scene, new=False)
    assert scene.shop.state().health == "healthy"


@alternating("restart", "always", "no")
def test_backup_on_which_the_bot_comes_up_restores_after_one_on_which_it_does_not(
    prepare: Prepare, mode: str, compose: Compose, restart: str
) -> None:
    """It does not come up on the old database either, as that is why one restores: exit 9 must be no dead end."""
    scene = prepare(mode, compose, Bot(restart=restart), services=())
    shop = scene.shop
    with closing(shop.connect()) as connection:
        connection.execute("INSERT INTO customers (name) VALUES ('needed')")
        good, expected = shop.create_backup(), shop.rows()
        connection.execute("DELETE FROM customers WHERE name = 'needed'")
    shop.up("bot")
    shop.wait_rows()
    shop.bot = replace(shop.bot, needs="SELECT 1 FROM customers WHERE name = 'needed'")
    shop.write_compose_file()
    check_code(scene.restore(), 9, "services-down")
    done = shop.restore("--force", good, key=scene.key)
    check_code(done, 0)
    assert "🩹" in done.err
    check_whole(replace(scene, backup=good, expected=expected), new=True)


@ONE_COMPOSE
def test_recovery_says_that_the_restored_database_is_live_when_the_bot_does_not_come_up(
    prepare: Prepare, mode: str, compose: Compose, tmp_path: Path
) -> None:
    """Killed after the commit, and then the bot got a fault of its own."""
    scene = prepare(mode, compose)
    shop = scene.shop
    journal = f"{shop.db_path}.restore-state.json"
    check_code(scene.restore(wrapper=strace(tmp_path / "log", [Hit("unlink", 1, KILL_SIGNAL, (journal,))])), -9)
    assert Path(journal).exists()
    subprocess.run(["docker", "stop", "-t", "1", shop.state().id], capture_output=True, check=True)
    shop.bot = replace(shop.bot, needs="SELECT 1 FROM customers WHERE name = 'nobody'")
    shop.write_compose_file()
    done = shop.restore("--recover")
    check_code(done, 9, "services-down")
    assert "The restored database is live, but bot is NOT running." in done.err
    check_restored(scene)


@ONE_COMPOSE
def test_recovery_that_does_not_touch_docker_names_what_was_stopped(
    prepare: Prepare, mode: str, compose: Compose
) -> None:
    scene = prepare(mode, compose)
    restore_killed(scene, **KILL_POINTS["after the stop"])
    done = scene.shop.restore("--recover", "--no-restart")
    check_code(done, 0)
    assert done.report["outcome"] == "services pending"
    assert any(f"{scene.shop.project}-bot-1" in text for text in done.report["warnings"])
    assert re.search(r"To finish, with the services: .*restore_backup.py --recover --json$", done.err, re.MULTILINE)
    assert not scene.shop.state().running
    recover(scene)
    check_whole(scene, new=False)


@ONE_COMPOSE
def test_recovery_without_docker_is_refused_and_works_later(
    prepare: Prepare, mode: str, compose: Compose, tmp_path: Path
) -> None:
    scene = prepare(mode, compose)
    restore_killed(scene, **KILL_POINTS["before the start"])
    Target(scene.shop.db_path).lock_file.unlink()  # which a refusal does not leave either
    before = scene.shop.snapshot()
    done = scene.shop.restore("--recover", env={"DOCKER_HOST": f"unix://{tmp_path}/no.sock"})
    check_code(done, 3, "docker-unreachable")
    assert scene.shop.snapshot() == before
    recover(scene)
    check_whole(scene, new=True)


# --- the machine is started anew in between --------------------------------------------------------------------------


class Engine:
    """A Docker engine of our own, which may be stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers; it starts containers that it should."""
        options = [f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec", f"-p={self.folder}/pid"]
        (self.folder / "pid").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["dockerd", f"--host={self.host}", *options, "--bridge=none", "--iptables=false"],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, f"dockerd answers\n{(self.folder / 'log').read_text()[-2000:]}", 60)

    def _answers(self) -> bool:
        argv = ["docker", f"--host={self.host}", "info"]
        return subprocess.run(argv, capture_output=True, timeout=30, check=False).returncode == 0

    def stop(self) -> None:
        """As at the machine's shutdown: containers end, the engine does."""
        if self._process:
            self._process.terminate()
            self._process.wait(60)
            self._process = None
        shutil.rmtree(self.folder / "exec", ignore_errors=True)


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine that all of this test's commands use; stopped afterwards."""
    own = Engine(tmp_path_factory.mktemp("e"))
    own.start()
    monkeypatch.setenv("DOCKER_HOST", own.host)
    import_image()
    try:
        yield own
    finally:
        own.stop()


@pytest.mark.usefixtures("docker")
@alternating("point", "after the stop", "before the start")
def test_reboot_in_the_middle_loses_nothing(
    engine: Engine, prepare: Prepare, mode: str, compose: Compose, point: str
) -> None:
    """The bot has `restart: always`: the engine starts it, whatever state the restore was in."""
    scene = prepare(mode, compose)
    restore_killed(scene, **KILL_POINTS[point])
    assert not scene.shop.state().running
    engine.stop()
    engine.start()
    wait_until(lambda: scene.shop.state().running, "the engine has started the bot again")
    scene.shop.wait_rows()
    written = scene.shop.rows_in_place()["bot_log"]
    recover(scene)
    check_whole(scene, new=point == "before the start")
    assert set(written) <= set(scene.shop.rows_in_place()["bot_log"])


BOOTS = {
    "before the start": (KILL_POINTS, Bot(health=True, restart="unless-stopped"), True),
    "after the rollback's stop": (ROLLBACK_KILL_POINTS, Bot(health=True, healthy_if=LIVE_ROW), False),
}
"""Where the power fails; the bot, which the engine starts at boot or not; whether the new database is live at last."""


@pytest.mark.usefixtures("docker")
@pytest.mark.parametrize("point", BOOTS)
@ONE_COMPOSE
def test_units_recover_at_boot_before_the_bot_starts(
    engine: Engine, prepare: Prepare, mode: str, compose: Compose, point: str
) -> None:
    """The files before the engine starts, which is when it starts the bot; the services, and the end of it, after."""
    points, bot, new = BOOTS[point]
    scene = prepare(mode, compose, bot)
    shop = scene.shop
    restore_killed(scene, **points[point])
    engine.stop()
    at_boot(shop, "shopbot-recover-files.service")
    assert is_old(scene) != new
    engine.start()
    if bot.restart == "always":
        wait_until(lambda: shop.state().running, "the engine has started the bot again")
        shop.wait_rows()
    else:
        assert not shop.state().running
    written = shop.rows_in_place().get("bot_log", [])
    at_boot(shop, "shopbot-recover.service")
    check_whole(scene, new=new)
    assert set(written) <= set(shop.rows_in_place()["bot_log"])
    assert shop.state().health == "healthy"
    again = shop.restore("--recover")
    check_code(again, 0)
    assert "Nothing to recover" in again.text


def at_boot(shop: BotShop, unit: str) -> None:
    """What systemd runs for a unit of the examples."""
    for command in commands_of(unit):
        program, script, *options = command.replace(FOLDER_OF_UNITS, str(shop.path)).split()
        assert program == f"{shop.path}/.venv/bin/python"
        done = shop.run(script, *options)
        assert done.code == 0, done.text


# --- signals ---------------------------------------------------------------------------------------------------------


PAUSE = 'touch "$SHOP/now"; sleep 1.5'
"""Tells the test that the moment has come, and gives it time."""

MOMENTS = {
    "stop": {"stop": f"{PAUSE}; {KEEP_TRUTH}"},
    "swap": {"stop": f'real "$@"; {TRUTH}; touch "$SHOP/now"; exit 0'},
    "start": {"stop": KEEP_TRUTH, "start": PAUSE},
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def repeated_signals(process: subprocess.Popen[str]) -> Iterator[None]:
    """All three signals, over and over, to the whole group of a process, as from an impatient operator."""
    enough = threading.Event()

    def send() -> None:
        while not enough.wait(0.005):  # so often that some come in the moment when a child is being started
            for number in SIGNALS:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def finish_under_signals(scene: Scene, **scripts: str) -> Completed:
    """A restore that gets signals from the moment on that its scripts tell."""
    process = scene.shop.start_restore(
        scene.backup, "--force", "--json", key=scene.key, env=intercept(scene.shop, **scripts)
    )
    try:
        wait_until((scene.shop.path / "now").exists, "the moment comes", 60)
        with repeated_signals(process):
            out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    return Completed(process.returncode, out, err)


@alternating("moment", *MOMENTS)
def test_signals_do_not_interrupt_the_switch(prepare: Prepare, mode: str, compose: Compose, moment: str) -> None:
    scene = prepare(mode, compose)
    check_code(finish_under_signals(scene, **MOMENTS[moment]), 0)
    check_whole(scene, new=True)
    check_last_writes_kept(scene)


@alternating("moment", "rollback's stop", "rollback's start")
def test_signals_do_not_interrupt_a_rollback(prepare: Prepare, mode: str, compose: Compose, moment: str) -> None:
    scene = prepare(mode, compose, Bot(health=True, healthy_if=LIVE_ROW))
    pause = f"if [ $(nth) = 2 ]; then {PAUSE}; fi"
    scripts = {"stop": f"{pause}; {KEEP_TRUTH}"} if "stop" in moment else {"stop": KEEP_TRUTH, "start": pause}
    check_code(finish_under_signals(scene, **scripts), 8, "rolled-back")
    check_whole(scene, new=False)


@ONE_COMPOSE
def test_signal_before_the_switch_ends_the_run_and_touches_nothing(
    prepare: Prepare, mode: str, compose: Compose, keys: Keys
) -> None:
    scene = prepare(mode, compose, PGP_PUBLIC_KEY_BASE64=keys.rsa.public_b64)
    state, inode = scene.shop.state(), scene.shop.db_path.stat().st_ino
    marker = scene.shop.path / "asked"
    command = scene.shop.path / "passphrase"
    command.write_text(f'#!/bin/sh\ntouch "{marker}"\nsleep 20\n')
    command.chmod(0o755)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)):
        for options, moment in (((), key_is_awaited), (("--passphrase-command", str(command)), marker_is_there)):
            key = keys.rsa.private_b64.encode() if options else subprocess.PIPE
            process = scene.shop.start_restore(scene.backup, "--force", "--key-stdin", *options, stdin=key)
            try:
                wait_until(lambda: moment(process, marker), "the restore waits", 30)  # noqa: B023 - called at once
                os.killpg(process.pid, number)
                _, err = process.communicate(timeout=15)
            finally:
                process.kill()
            marker.unlink(missing_ok=True)
            assert process.returncode == code, err
            assert "Traceback" not in err
            assert untouched(state, scene.shop.state())
            assert scene.shop.db_path.stat().st_ino == inode
            check_clean(scene.shop)
    scene.shop.wait_rows(2)


def key_is_awaited(process: subprocess.Popen[str], _marker: Path) -> bool:
    """It has its RAM folder and sleeps in read(0): the key's pipe is open and empty."""
    with suppress(OSError):
        return Path(f"/proc/{process.pid}/syscall").read_text().startswith("0 0x0 ")
    return False


def marker_is_there(_process: subprocess.Popen[str], marker: Path) -> bool:
    """The passphrase command runs."""
    return marker.exists()


# --- the terminal is lost --------------------------------------------------------------------------------------------


@alternating("moment", "stop", "start", "rollback")
def test_lost_terminal_changes_nothing(
    prepare: Prepare, terminal: StartTerminal, mode: str, compose: Compose, moment: str
) -> None:
    rollback = moment == "rollback"
    scene = prepare(mode, compose, Bot(health=True, healthy_if=LIVE_ROW if rollback else None))
    scripts = {"stop": f"if [ $(nth) = 2 ]; then {PAUSE}; fi; {KEEP_TRUTH}"} if rollback else MOMENTS[moment]
    reading = filled_pipe(scene.key.private_b64.encode())
    started = terminal(scene.shop, scene.backup, "--key-stdin", stdin=reading, env=intercept(scene.shop, **scripts))
    os.close(reading)
    started.expect(r"Continue\? \[y/N\]", 60)
    started.send("y\n")
    wait_until((scene.shop.path / "now").exists, "the moment comes", 60)
    started.close_master()
    assert started.wait(60) == (8 if rollback else 0)
    check_whole(scene, new=not rollback)
    log = (scene.shop.backups / "restore.log").read_text()
    assert ("Rollback successful" if rollback else "Database restored successfully") in log


@ONE_COMPOSE
def test_ctrl_c_on_the_terminal_during_the_switch_does_not_interrupt(
    prepare: Prepare, terminal: StartTerminal, mode: str, compose: Compose
) -> None:
    scene = prepare(mode, compose)
    reading = filled_pipe(scene.key.private_b64.encode())
    env = intercept(scene.shop, **MOMENTS["stop"])
    started = terminal(scene.shop, scene.backup, "--key-stdin", "--force", stdin=reading, env=env)
    os.close(reading)
    wait_until((scene.shop.path / "now").exists, "the moment comes", 60)
    for _ in range(3):
        started.send("\x03")
        time.sleep(0.2)
    assert started.wait(60) == 0
    check_whole(scene, new=True)


@ONE_COMPOSE
def test_closed_pipes_do_not_change_the_outcome(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose, Bot(health=True, healthy_if=LIVE_ROW))
    process = scene.shop.start_restore(
        scene.backup, "--force", "--json", key=scene.key, env=intercept(scene.shop, **MOMENTS["stop"])
    )
    wait_until((scene.shop.path / "now").exists, "the moment comes", 60)
    for stream in (process.stdout, process.stderr):
        assert stream
        stream.close()
    try:
        assert process.wait(60) == 8
    finally:
        process.kill()
        process.wait()
    check_whole(scene, new=False)


# --- killed at each call of docker -----------------------------------------------------------------------------------


@pytest.mark.timeout(3500)
@pytest.mark.parametrize("points", [5, pytest.param(EVERY, marks=LONG)])
@alternating("rolls_back", "", LIVE_ROW)
def test_killed_at_any_call_of_docker_loses_nothing(  # noqa: PLR0917 - pytest passes by keyword
    prepare: Prepare, mode: str, compose: Compose, rolls_back: str, points: int | None, tell: Tell
) -> None:
    """Before and after each: what looks at the containers, stops them, starts them, waits for them."""
    scene = prepare(mode, compose, Bot(health=True, healthy_if=rolls_back or None))
    shop, calls, tally = scene.shop, scene.shop.path / "calls", Tally("kill points")
    assert scene.restore(env=kill_at(shop, 0, after=False)).code == (8 if rolls_back else 0)
    total = len(calls.read_text().splitlines())
    chosen = [(number, after) for number in range(1, total + 1) for after in (False, True)]
    for number, after in spread(chosen, points):
        calls.unlink()
        if not is_old(scene):
            shop.change_data()
        written = set(shop.rows_in_place()["bot_log"])
        done = scene.restore(env=kill_at(shop, number, after=after))
        with tally.judging(f"killed {'after' if after else 'before'} call {number} of {total}"):
            if len(calls.read_text().splitlines()) < number:  # it had to wait for less than the time before
                assert done.code == (8 if rolls_back else 0), done.text
                tally.outcomes["not reached"] += 1
                continue
            assert done.code == -signal.SIGKILL, done.text
            check_code(shop.restore("--recover"), 0)
            new = not is_old(scene)
            check_whole(scene, new=new)
            assert new or written <= set(shop.rows_in_place()["bot_log"])
            tally.outcomes["new" if new else "old"] += 1
    tally.report(tell, f"docker's calls, {'rollback' if rolls_back else 'restore'}, {mode}, Compose {compose.name}")


# --- the soak --------------------------------------------------------------------------------------------------------


def random_fault(shop: BotShop, random: Random) -> dict[str, Any]:
    """How a restore is hit: by nothing, at Docker's stop or start, or at a system call, of its children's as well."""
    at_docker: list[dict[str, str]] = [
        {"stop": KEEP_TRUTH},
        {"stop": "exit 1"},
        {"stop": KEEP_TRUTH, "start": "if [ $(nth) = 1 ]; then exit 1; fi"},
        *KILL_POINTS.values(),
    ]
    if random.random() < 0.5:
        return {"env": intercept(shop, **random.choice(at_docker))}
    return {"env": intercept(shop, stop=KEEP_TRUTH), "wrapper": strace(shop.path / "strace", random_hits(random, 60))}


@pytest.mark.timeout(3500)
@pytest.mark.parametrize("rounds", [4, pytest.param(100, marks=LONG)])
@ONE_COMPOSE
def test_restores_in_a_row_under_random_faults_lose_nothing(  # noqa: PLR0917 - pytest passes by keyword
    make_bot_shop: MakeBotShop,
    compose: Compose,
    mode: str,
    keys: Keys,
    rounds: int,
    tell: Tell,
) -> None:
    """Restores of a database that its bot writes to all the time: each ends as the whole old or the whole new one."""
    seed = int(os.environ.get("SOAK_SEED", time.time_ns() % 100_000))
    random = Random(seed)
    shop = make_bot_shop(mode, compose, Bot(health=True), PGP_PUBLIC_KEY_BASE64=keys.open.public_b64)
    outcomes: Counter[str] = Counter()
    expected, backup = shop.rows(), shop.create_backup()
    shop.up("bot")
    shop.wait_rows()
    for number in range(rounds):
        forget_last_round(shop.path)
        shop.change_data()
        written = set(shop.rows_in_place()["bot_log"])
        scene = Scene(shop, keys.open, backup, expected, time.time())
        done = scene.restore(**random_fault(shop, random))
        print(f"seed {seed}, round {number}: {done.code} {done.text}")  # shown when it fails
        warned = " ".join(done.report.get("warnings", ()))
        if done.code or "--recover" in warned:
            recover(scene)
        new = not is_old(scene)
        assert new or done.code
        assert new is False or done.code in (0, -signal.SIGKILL)
        if stays := re.search(rf"{re.escape(str(shop.db_path))}\.backup-[\d-]+", warned):
            aside = Path(stays[0])
            assert holds(shop.rows(aside), shop.rows(scene.truth))
            aside.unlink()
        check_whole(scene, new=new)
        if not new:
            assert written <= set(shop.rows_in_place()["bot_log"])
        elif not stays:
            check_last_writes_kept(scene)
        outcomes[f"exit {done.code}, {'new' if new else 'old'}"] += 1
    tell(
        f"soak under a busy bot, {mode}, Compose {compose.name}, seed {seed}: {rounds} restores, "
        f"lost or mixed: 0; {dict(sorted(outcomes.items()))}"
    )


def forget_last_round(folder: Path) -> None:
    """The wrapper begins to count anew, and may copy the database again."""
    shutil.rmtree(folder / "truth", ignore_errors=True)
    for path in (folder / "bin").glob("*.calls"):
        path.unlink()
