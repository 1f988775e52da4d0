"""Restores while the real bot runs in its container, under Compose 1 and 2: what happens to services and data.

The truth about the old database is what a wrapper around docker copies away at the very moment the bot has stopped.
"""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from backuplib.locks import lock_holders
from config import Environment
from tests.conftest import MakeBotShop, Prepare, StartTerminal
from tests.support import writer
from tests.support.containers import (
    IMAGE,
    PROJECT_LABEL,
    Bot,
    Compose,
    call,
    compose_v1,
    compose_v2,
    import_stand_in,
    wait_until,
)
from tests.support.keys import GpgHome, Key, Keys
from tests.support.scene import (
    BOTH_COMPOSES,
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
    report_of,
    untouched,
)
from tests.support.shop import DB_PASS, ROOT, Completed

pytestmark = pytest.mark.docker

# --- restore under a busy bot ----------------------------------------------------------------------------------------


def test_restore_under_a_busy_bot_loses_nothing(
    make_bot_shop: MakeBotShop, mode: str, compose: Compose, keys: Keys, tmp_path: Path
) -> None:
    shop = make_bot_shop(mode, compose)
    shop.up()
    shop.wait_rows(20)
    backup = shop.create_backup()
    scene = Scene(shop, keys.rsa, backup, shop.backup_rows(backup, keys.rsa), time.time())
    shop.change_data()
    shop.wait_rows(20)
    before, inode = shop.states(), shop.db_path.stat().st_ino

    done = scene.restore("--json", env=intercept(shop, stop=KEEP_TRUTH))

    check_code(done, 0)
    after = shop.states()
    assert after["redis"] == before["redis"]  # it has nothing to do with the database
    assert "✅ bot (redis goes on)" in done.err
    assert after["bot"].running
    assert after["bot"].id == before["bot"].id
    assert after["bot"].started_at > before["bot"].started_at
    assert after["bot"].restart_count == before["bot"].restart_count
    assert shop.db_path.stat().st_ino != inode
    check_writing_to_the_live_file(shop)
    check_restored(scene)
    check_clean(shop)

    report = report_of(done)
    assert report["exit_code"] == 0
    assert report["outcome"] == "restored"
    assert report["services"] == ["bot"]
    assert 0 < report["downtime_seconds"] < 30
    assert report["tables"]["customers"] == {"live": 101, "backup": 100}
    # The rows written between the safety backup and the stop are in the fresh one, to the last.
    safety = Path(report["safety_backup"])
    old = shop.rows(scene.truth)
    assert shop.backup_rows(safety, keys.rsa) == old
    first = min(set(shop.backups.glob("*.db.gz.gpg")) - {backup}, key=lambda path: path.stat().st_mtime_ns)
    assert first != safety
    earlier = shop.backup_rows(first, keys.rsa)
    assert set(earlier["bot_log"]) < set(old["bot_log"])
    # And it restores like any other.
    target = tmp_path / "elsewhere.db"
    check_code(shop.restore(safety, "--target-path", target, "--force", key=keys.rsa), 0)
    assert shop.rows(target) == old
    assert shop.states() == after


@pytest.mark.parametrize(
    ("environment", "mode", "compose"),
    [
        ("PROD", "sqlite", "v2"),
        ("DEV", "sqlcipher", "v1"),
        pytest.param("PROD", "sqlcipher", "v1", marks=LONG),
        pytest.param("DEV", "sqlite", "v2", marks=LONG),
    ],
    indirect=["mode", "compose"],
)
def test_compose_files_as_they_are_shipped(
    make_bot_shop: MakeBotShop, environment: str, mode: str, compose: Compose, keys: Keys
) -> None:
    image, file = import_stand_in(), Environment[environment].value
    settings = {"RUNTIME_ENVIRONMENT": environment, "BOT_IMAGE": image, "REDIS_IMAGE": image}
    project = f"another-{uuid.uuid4().hex[:10]}"  # two folders of one name share one without
    shop = make_bot_shop(mode, compose, Bot(file=file), **settings, COMPOSE_PROJECT_NAME=project)
    shutil.copyfile(ROOT / file, shop.compose_file)
    expected, backup = shop.rows(), shop.create_backup()
    shop.change_data()
    shop.up()
    shop.wait_health("healthy")
    before, described = shop.states(), shop.inspect()
    assert described
    assert described["Config"]["Labels"][PROJECT_LABEL] == project
    assert {mount["Destination"] for mount in described["Mounts"]} >= {"/app/data", "/app/backups"}
    assert shop.passphrase is None or f"DB_PASS={shop.passphrase}" in described["Config"]["Env"]
    done = shop.restore(backup, "--force", key=keys.rsa)
    check_code(done, 0)
    assert "bot healthy" in done.err
    assert untouched(before["redis"], shop.state("redis"))
    assert shop.state().running
    assert shop.state().started_at > before["bot"].started_at
    assert shop.rows() == expected
    check_clean(shop)


@BOTH_COMPOSES
def test_stop_first_restores_as_well(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose)
    before = scene.shop.state()
    done = scene.restore("--stop-first", "--json", env=intercept(scene.shop, stop=KEEP_TRUTH))
    check_code(done, 0)
    assert scene.shop.state().started_at > before.started_at
    assert scene.shop.state().restart_count == 0
    check_writing_to_the_live_file(scene.shop)
    check_restored(scene)
    check_clean(scene.shop)
    report = report_of(done)
    assert report["downtime_seconds"] > 0
    kept = [scene.shop.backup_rows(path, scene.key) for path in scene.shop.backups.glob("*.db.gz.gpg")]
    assert scene.shop.rows(scene.truth) in kept


@BOTH_COMPOSES
def test_bot_that_keeps_its_database_locked_is_backed_up_when_it_has_stopped(
    make_bot_shop: MakeBotShop, mode: str, compose: Compose, keys: Keys
) -> None:
    exclusive = Bot(at_start=("PRAGMA locking_mode=EXCLUSIVE",))
    shop = make_bot_shop(mode, compose, exclusive, PGP_PUBLIC_KEY_BASE64=keys.open.public_b64)
    scene = Scene(shop, keys.open, shop.create_backup(), shop.rows(), time.time())
    shop.change_data()
    shop.up()
    wait_until(lambda: "(pid " in lock_holders([shop.db_path]), "the bot holds its lock")
    done = scene.restore(env=intercept(shop, stop=KEEP_TRUTH))
    check_code(done, 0)
    assert f"{shop.db_path} is locked by " in "".join(done.report["warnings"])
    assert shop.backup_rows(Path(done.report["safety_backup"]), keys.open) == shop.rows(scene.truth)
    assert len(list(shop.backups.glob("*.sha256"))) == 2  # that one, and what was restored
    shop.stop()
    check_restored(scene)


@ONE_COMPOSE
def test_damaged_database_that_the_bot_has_open_is_saved_when_it_has_stopped(
    make_bot_shop: MakeBotShop, mode: str, compose: Compose, keys: Keys
) -> None:
    shop = make_bot_shop(mode, compose, PGP_PUBLIC_KEY_BASE64=keys.open.public_b64)
    scene = Scene(shop, keys.open, shop.create_backup(), shop.rows(), time.time())
    shop.up()
    shop.wait_rows()
    noise = os.urandom(4096)
    with shop.db_path.open("r+b") as file:
        file.seek(20 * 4096)  # a page that the bot does not write to
        file.write(noise)
    done = scene.restore()
    check_code(done, 0)
    assert f"{shop.db_path} is in use by " in "".join(done.report["warnings"])
    (raw,) = shop.backups.glob("*.raw.tar.gz.gpg")
    assert done.report["safety_backup"] == str(raw)
    assert noise in shop.decrypted(raw, keys.open)
    shop.stop()
    check_restored(scene)


@ONE_COMPOSE
def test_stop_first_stops_nothing_before_key_and_passphrase_are_there_and_open_the_backup(
    prepare: Prepare, mode: str, compose: Compose, keys: Keys, terminal: StartTerminal
) -> None:
    scene = prepare(mode, compose, PGP_PUBLIC_KEY_BASE64=keys.rsa.public_b64)
    shop, rsa, key_stdin = scene.shop, keys.rsa, ("--force", "--stop-first", "--key-stdin")
    before, data, backups = shop.state(), shop.db_path.stat().st_ino, sorted(shop.backups.glob("db_*"))
    no_gpg = {"PATH": path_without("gpg", shop.path)}
    wrong = Key(**{**vars(rsa), "passphrase": "not this one"})
    for done, code, error in (
        (shop.restore(scene.backup, "--force", "--stop-first"), 3, "no-terminal"),
        (shop.restore(scene.backup, *key_stdin, stdin=b""), 4, "unusable-key"),
        (shop.restore(scene.backup, *key_stdin, stdin=rsa.public_b64.encode()), 4, "key-has-no-secret-part"),
        (shop.restore(scene.backup, *key_stdin, stdin=rsa.private_b64.encode()), 3, "no-terminal"),
        (scene.restore("--stop-first", key=wrong), 4, "wrong-passphrase"),
        (scene.restore("--stop-first", key=keys.other), 4, "wrong-key"),
        (scene.restore("--stop-first", "--skip-backup", key=rsa, env=no_gpg), 3, "missing-program"),
    ):
        check_code(done, code, error)
        assert "Nothing was touched" in done.err
    at = terminal(shop, scene.backup, "--force", "--stop-first")
    at.expect("Paste the private key")
    at.send("\x03")
    assert at.wait() == 130, at.output
    assert untouched(before, shop.state())
    assert shop.db_path.stat().st_ino == data
    assert sorted(shop.backups.glob("db_*")) == backups
    check_clean(shop)


@ONE_COMPOSE
def test_stop_first_with_a_damaged_backup_starts_the_bot_again(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose)
    content = scene.backup.read_bytes()
    scene.backup.write_bytes(content[: len(content) // 2])
    Path(f"{scene.backup}.sha256").unlink()
    done = scene.restore("--stop-first", env=intercept(scene.shop, stop=KEEP_TRUTH))
    check_code(done, 4, "damaged-message")
    check_old(scene)
    check_writing_to_the_live_file(scene.shop)
    check_clean(scene.shop)


@pytest.mark.parametrize(
    ("mode", "compose", "number"),
    [
        ("sqlite", "v2", signal.SIGINT),
        pytest.param("sqlite", "v1", signal.SIGTERM, marks=LONG),
    ],
    indirect=["mode", "compose"],
)
def test_signal_while_a_stopped_bot_waits_for_the_check_starts_it_again(
    prepare: Prepare, mode: str, compose: Compose, *, number: int, gpg: GpgHome, keys: Keys, tmp_path: Path
) -> None:
    scene = prepare(mode, compose)
    slow = tmp_path / "slow.db"
    with closing(sqlite3.connect(slow)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.execute("CREATE TABLE t (a CHECK (length(hex(randomblob(3000000))) > 0))")
        connection.executemany("INSERT INTO t VALUES (?)", [(1,)] * 2000)  # a minute
    scene.backup.write_bytes(gpg.encrypt(slow.read_bytes(), "--recipient", keys.open.fingerprint))
    Path(f"{scene.backup}.sha256").unlink()
    env = intercept(scene.shop, stop=KEEP_TRUTH)
    running = scene.shop.start_restore(scene.backup, "--force", "--stop-first", key=scene.key, env=env)
    wait_until(lambda: not scene.shop.state().running, "the bot has been stopped")
    time.sleep(1)
    os.kill(running.pid, signal.SIGHUP)  # a lost connection ends nothing from here on
    time.sleep(1)
    os.kill(running.pid, number)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 128 + number, said
    assert "The database was not touched; the services that ran are running." in said
    check_old(scene)
    check_writing_to_the_live_file(scene.shop)
    check_clean(scene.shop)


# --- what is started does not come up --------------------------------------------------------------------------------


BAD_STARTS = {
    "unhealthy": Bot(health=True, healthy_if=LIVE_ROW),
    "crash loop": Bot(needs=LIVE_ROW),
    "exits": Bot(needs=LIVE_ROW, restart="no"),
}


@pytest.mark.parametrize(
    ("kind", "mode", "compose"),
    [
        pytest.param(kind, mode, compose, marks=[] if (number + (mode == "sqlite") + (compose == "v1")) % 2 else LONG)
        for number, kind in enumerate(BAD_STARTS)
        for mode in ("sqlite", "sqlcipher")
        for compose in ("v1", "v2")
    ],
    indirect=["mode", "compose"],
)
def test_bot_that_does_not_come_up_on_the_new_database_gets_the_old_one_back(
    prepare: Prepare, kind: str, mode: str, compose: Compose
) -> None:
    scene = prepare(mode, compose, BAD_STARTS[kind])
    inode = scene.shop.db_path.stat().st_ino
    done = scene.restore("--json", env=intercept(scene.shop, stop=KEEP_TRUTH))
    check_code(done, 8, "rolled-back")
    assert "❌ Restore failed: " in done.err
    assert "🔄 Rolling back…" in done.err
    assert "✅ Rollback successful - database restored to pre-restore state" in done.err
    assert "bot" in report_of(done)["error"]["message"]
    assert report_of(done)["exit_code"] == 8
    assert scene.shop.db_path.stat().st_ino == inode
    check_writing_to_the_live_file(scene.shop)
    check_old(scene)
    check_clean(scene.shop)
    state = scene.shop.state()
    assert state.running
    assert state.health in ("", "healthy")


@BOTH_COMPOSES
def test_rollback_keeps_what_only_the_wal_of_a_killed_bot_held(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose, Bot(deaf=True, health=True, healthy_if=LIVE_ROW))
    done = scene.restore(env=intercept(scene.shop, stop=KEEP_TRUTH))
    check_code(done, 8, "rolled-back")
    assert Path(f"{scene.truth}-wal").stat().st_size > 0
    check_old(scene)
    check_writing_to_the_live_file(scene.shop)
    check_clean(scene.shop)


@BOTH_COMPOSES
def test_last_writes_of_a_killed_bot_are_in_the_safety_backup(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose, Bot(deaf=True, health=True))
    done = scene.restore("--json", env=intercept(scene.shop, stop=KEEP_TRUTH))
    check_code(done, 0)
    assert Path(f"{scene.truth}-wal").stat().st_size > 0
    assert scene.shop.backup_rows(Path(report_of(done)["safety_backup"]), scene.key) == scene.shop.rows(scene.truth)
    check_restored(scene)
    check_writing_to_the_live_file(scene.shop)
    check_clean(scene.shop)


@BOTH_COMPOSES
def test_bot_that_starts_on_neither_database_leaves_the_old_one(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose, Bot(restart="no"))
    done = scene.restore("--json", env=intercept(scene.shop, stop=f'touch "$SHOP/ctl/crash"; {KEEP_TRUTH}'))
    check_code(done, 9, "services-down")
    assert "✅ Rollback successful - database restored to pre-restore state" in done.err
    assert "but bot is NOT running" in done.err
    assert "docker logs" in report_of(done)["error"]["hint"]
    assert not scene.shop.state().running
    assert scene.shop.rows() == scene.shop.rows(scene.truth)
    scene.shop.set_crash(crash=False)
    check_next_run_starts_the_bot(scene)


@BOTH_COMPOSES
def test_whole_database_is_checked_once_more_when_the_bot_is_up(prepare: Prepare, mode: str, compose: Compose) -> None:
    """That it is sound is said, and is not part of the downtime; one that is not gets the old one back."""
    scene = prepare(mode, compose)
    done = scene.restore("--json")
    check_code(done, 0)
    lines = [line for line in done.err.splitlines() if "✅" in line]
    (number,) = [number for number, line in enumerate(lines) if line.startswith("🔎 Post-restore check...")]
    assert lines[number - 1].startswith("🔄 Starting Docker containers...")
    assert "✅ ok, 5 tables" in lines[number]  # those of the backup, and the one that the bot makes
    check = next(phase for phase in report_of(done)["phases"] if phase["name"] == "post-restore check")
    start = next(phase for phase in report_of(done)["phases"] if phase["name"] == "start")
    assert check["began"] >= start["began"] + start["seconds"] - 0.01
    damage = 'dd if=/dev/urandom of="$SHOP/data/shop.db" bs=4096 seek=20 count=2 conv=notrunc 2>/dev/null'
    env = intercept(scene.shop, stop=KEEP_TRUTH, start=f'[ $(nth) != 1 ] || {damage}; real "$@"; exit $?')
    done = scene.restore(env=env)
    check_code(done, 8, "rolled-back")
    assert re.search(r"Post-restore check\.\.\. +❌", done.err)
    assert "❌ Restore failed: " in done.err
    check_writing_to_the_live_file(scene.shop)
    check_restored(scene)
    check_clean(scene.shop)


# --- Docker fails, or lies -------------------------------------------------------------------------------------------


@alternating("script", "exit 1", "exit 0", 'real stop "$2"; exit 1')
def test_services_that_cannot_be_stopped_go_on(prepare: Prepare, mode: str, compose: Compose, script: str) -> None:
    scene = prepare(mode, compose, Bot(health=True, restart="no"), services=("bot", "redis"))
    before, inode = scene.shop.states(), scene.shop.db_path.stat().st_ino
    both = ("--service", "bot", "--service", "redis")
    done = scene.restore("--json", *both, env=intercept(scene.shop, stop=script))
    check_code(done, 7, "cannot-stop")
    assert report_of(done)["exit_code"] == 7
    assert "✅ Rollback successful" not in done.err
    after = scene.shop.states()
    assert all(state.running for state in after.values())
    if "real" not in script:
        assert all(untouched(before[service], after[service]) for service in before)
    assert scene.shop.db_path.stat().st_ino == inode
    check_writing_to_the_live_file(scene.shop)
    assert len(scene.shop.rows_in_place()["customers"]) == 101
    check_clean(scene.shop)


@ONE_COMPOSE
def test_start_that_fails_and_did_its_work_is_not_believed(prepare: Prepare, mode: str, compose: Compose) -> None:
    """The containers are looked at."""
    scene = prepare(mode, compose)
    check_code(scene.restore(env=intercept(scene.shop, start='real "$@"; exit 1')), 0)
    check_writing_to_the_live_file(scene.shop)
    check_restored(scene)


@alternating("failure", "exit 1", "exit 0")
def test_start_that_does_not_work_once_is_rolled_back(
    prepare: Prepare, mode: str, compose: Compose, failure: str
) -> None:
    scene = prepare(mode, compose, Bot(health=True))
    script = f"if [ $(nth) = 1 ]; then {failure}; fi"
    done = scene.restore(env=intercept(scene.shop, stop=KEEP_TRUTH, start=script))
    check_code(done, 8, "rolled-back")
    check_old(scene)
    check_writing_to_the_live_file(scene.shop)
    check_clean(scene.shop)


@alternating("failure", "exit 1", "exit 0")
def test_start_that_never_works_leaves_the_old_database_and_says_so(
    prepare: Prepare, mode: str, compose: Compose, failure: str
) -> None:
    scene = prepare(mode, compose, Bot(health=True))
    done = scene.restore(env=intercept(scene.shop, stop=KEEP_TRUTH, start=failure))
    check_code(done, 9, "services-down")
    assert "NOT running" in done.err
    assert scene.shop.rows() == scene.shop.rows(scene.truth)
    check_next_run_starts_the_bot(scene)


@BOTH_COMPOSES
def test_container_that_is_removed_while_it_is_stopped_is_named_at_once(
    prepare: Prepare, mode: str, compose: Compose
) -> None:
    """As by `docker container prune` in a crontab."""
    scene = prepare(mode, compose, services=("bot", "redis"))
    prune = f'real "$@"; {shutil.which("docker")} rm {scene.shop.state().id} >/dev/null; exit 0'
    began = time.monotonic()
    done = scene.restore(env=intercept(scene.shop, stop=prune))
    check_code(done, 9, "services-down")
    assert "bot" in done.error["message"]
    assert "up -d" in done.error["hint"]
    assert time.monotonic() - began < 50
    scene.shop.up("bot")
    check_code(scene.shop.restore("--recover"), 0)
    scene.shop.wait_rows(2)
    check_clean(scene.shop)


def check_next_run_starts_the_bot(scene: Scene) -> None:
    """Once the cause is gone, the next run has the services up that this restore had stopped; nothing is left over."""
    done = scene.shop.restore("--recover")
    check_code(done, 0)
    check_old(scene)
    check_writing_to_the_live_file(scene.shop)
    check_clean(scene.shop)


# --- which services --------------------------------------------------------------------------------------------------


@ONE_COMPOSE
def test_stopped_services_stay_stopped(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose, services=("bot", "redis"))
    scene.shop.stop()
    before = scene.shop.states()
    done = scene.restore("--json")
    check_code(done, 0)
    assert scene.shop.states() == before
    assert scene.shop.rows() == scene.expected
    assert report_of(done)["services"] == []
    check_clean(scene.shop)


@ONE_COMPOSE
def test_containers_that_were_never_created_are_not_created(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose, services=())
    check_code(scene.restore(), 0)
    assert scene.shop.inspect("bot") is None
    assert scene.shop.inspect("redis") is None
    assert scene.shop.rows() == scene.expected
    check_clean(scene.shop)


@alternating("stopped", "redis", "bot")
def test_only_what_ran_is_started_again(prepare: Prepare, mode: str, compose: Compose, stopped: str) -> None:
    scene = prepare(mode, compose, services=("bot", "redis"))
    scene.shop.stop(stopped)
    other = "bot" if stopped == "redis" else "redis"
    before = scene.shop.states()
    check_code(scene.restore(), 0)
    after = scene.shop.states()
    assert after[stopped] == before[stopped]
    assert after[other].running
    assert (after[other].started_at > before[other].started_at) == (other == "bot")
    check_restored(scene)


def another_name() -> str:
    """A project name that no folder has."""
    return f"other-{uuid.uuid4().hex[:8]}"


@BOTH_COMPOSES
def test_bot_under_another_project_name_and_in_a_profile_is_found(
    prepare: Prepare, mode: str, compose: Compose
) -> None:
    scene = prepare(mode, compose, Bot(health=True, project=another_name(), profile="shop"))
    before = scene.shop.state()
    check_code(scene.restore(), 0)
    assert scene.shop.state().started_at > before.started_at
    check_writing_to_the_live_file(scene.shop)
    check_restored(scene)


@ONE_COMPOSE
def test_file_that_runs_under_two_project_names_is_refused(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose)
    name = another_name()
    try:
        scene.shop.run_compose("-p", name, "up", "-d", "redis")
        before = scene.shop.state()
        done = scene.restore()
        check_code(done, 3, "unusable-compose-file")
        assert name in done.error["message"]
        assert scene.shop.project in done.error["message"]
        assert untouched(before, scene.shop.state())
    finally:
        remove_project(name)


def remove_project(name: str) -> None:
    """All containers and networks of a project."""
    for container in call("docker", "ps", "-aq", "--filter", f"label={PROJECT_LABEL}={name}").split():
        call("docker", "rm", "-f", container)
    for network in call("docker", "network", "ls", "-q", "--filter", f"label={PROJECT_LABEL}={name}").split():
        call("docker", "network", "rm", network)


@BOTH_COMPOSES
def test_bot_started_by_the_other_compose_is_stopped_and_started(
    prepare: Prepare, mode: str, compose: Compose, tmp_path: Path
) -> None:
    """An operator who moved from docker-compose to docker compose, or back."""
    scene = prepare(mode, compose)
    folder = tmp_path / "other-docker-config"
    folder.mkdir()
    scene.shop.compose = (compose_v1 if compose.name == "v2" else compose_v2)(folder)
    scene.shop.env = scene.shop.compose.env
    before = scene.shop.state()
    check_code(scene.restore(), 0)
    assert scene.shop.state().id == before.id
    assert scene.shop.state().started_at > before.started_at
    check_writing_to_the_live_file(scene.shop)
    check_restored(scene)


@ONE_COMPOSE
def test_service_limits_what_is_stopped(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose, services=("bot", "redis"))
    before = scene.shop.states()
    for service, code, error, named in (
        ("redis", 3, "database-in-use", "bot"),
        ("no-such", 3, "unusable-compose-file", "no-such"),
        ("bot", 0, "", ""),
    ):
        done = scene.restore("--service", service)
        check_code(done, code, error)
        assert named in done.error["message"]
        assert scene.shop.state("redis") == before["redis"]
        assert untouched(before["bot"], scene.shop.state("bot")) == (code != 0)
    check_writing_to_the_live_file(scene.shop)
    check_restored(scene)


@pytest.mark.parametrize(
    ("file", "environment"), [("docker-compose.dev.yml", "DEV"), ("my own.yml", None), ("my own.yml", "TEST")]
)
@ONE_COMPOSE
def test_compose_file_is_told_by_setting_or_option(
    prepare: Prepare, mode: str, compose: Compose, file: str, environment: str | None
) -> None:
    bot = Bot(health=True, file=file, project=another_name())
    scene = prepare(mode, compose, bot, RUNTIME_ENVIRONMENT=environment)
    before = scene.shop.state()
    check_code(scene.restore(*(() if environment == "DEV" else ("--compose-file", file))), 0)
    assert scene.shop.state().started_at > before.started_at
    check_restored(scene)


@ONE_COMPOSE
def test_without_a_compose_file_and_terminal_it_is_refused(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose, services=(), RUNTIME_ENVIRONMENT=None)
    before = scene.shop.snapshot()
    done = scene.restore()
    check_code(done, 3, "unusable-compose-file")
    assert "RUNTIME_ENVIRONMENT" in done.error["message"]
    scene.shop.write_env(RUNTIME_ENVIRONMENT="DEV")
    done = scene.restore()
    check_code(done, 3, "unusable-compose-file")
    assert "docker-compose.dev.yml" in done.error["message"]
    assert scene.shop.snapshot() == before


@ONE_COMPOSE
def test_another_target_leaves_the_bot_alone(prepare: Prepare, mode: str, compose: Compose, tmp_path: Path) -> None:
    scene = prepare(mode, compose)
    before = scene.shop.state()
    target = tmp_path / "copy.db"
    check_code(scene.restore("--target-path", target), 0)
    verified = scene.restore("--verify-only")
    check_code(verified, 0)
    promised = r"services +bot will be stopped\n +downtime +estimated \d+ s, \d+ s if they must be killed\n"
    assert re.search(promised, verified.text), verified.text
    assert scene.shop.rows(target) == scene.expected
    assert untouched(before, scene.shop.state())
    scene.shop.wait_rows(2)


@ONE_COMPOSE
def test_no_restart_is_refused_while_the_bot_runs_and_works_when_it_does_not(
    prepare: Prepare, mode: str, compose: Compose
) -> None:
    scene = prepare(mode, compose)
    before, inode = scene.shop.state(), scene.shop.db_path.stat().st_ino
    done = scene.restore("--no-restart")
    check_code(done, 3, "database-in-use")
    assert "pid" in done.error["message"]
    assert f"docker stop {before.id[:12]}" in done.error["hint"]  # killed, it would be started again
    assert untouched(before, scene.shop.state())
    assert scene.shop.db_path.stat().st_ino == inode
    scene.shop.wait_rows(2)
    scene.shop.stop("bot")
    stopped = scene.shop.state()
    check_code(scene.restore("--no-restart"), 0)
    assert scene.shop.state() == stopped
    assert scene.shop.rows() == scene.expected


# --- Docker is not as it should be -----------------------------------------------------------------------------------


@BOTH_COMPOSES
def test_docker_that_is_missing_or_silent_is_refused_and_the_compose_file_is_not_read(
    prepare: Prepare, mode: str, compose: Compose, tmp_path: Path
) -> None:
    scene = prepare(mode, compose)
    before, inode = scene.shop.state(), scene.shop.db_path.stat().st_ino
    done = scene.restore(env={"DOCKER_HOST": f"unix://{tmp_path}/no.sock"})
    check_code(done, 3, "docker-unreachable")
    assert "--no-restart" in done.error["hint"]
    done = scene.restore(env={"PATH": path_without("docker", tmp_path)})
    check_code(done, 3, "missing-program")
    assert untouched(before, scene.shop.state())
    assert scene.shop.db_path.stat().st_ino == inode
    check_clean(scene.shop)
    scene.shop.compose_file.write_text("services: {bot: {image: none, environment: ['X=${DB_PASS:?}']")
    check_code(scene.restore(), 0)
    check_writing_to_the_live_file(scene.shop)


def path_without(name: str, folder: Path) -> str:
    """A PATH with all programs but those whose names begin like this."""
    programs = folder / "programs"
    programs.mkdir()
    for place in os.environ["PATH"].split(":"):
        for program in Path(place).glob("*") if place else []:
            if not program.name.startswith(name) and not (programs / program.name).is_symlink():
                (programs / program.name).symlink_to(program)
    return str(programs)


# --- somebody else uses the database ---------------------------------------------------------------------------------


@contextmanager
def container(*options: str, command: tuple[str, ...] = ("/bin/sleep", "1000")) -> Iterator[str]:
    """A container outside of any Compose project; its name."""
    name = f"outsider-{uuid.uuid4().hex[:8]}"
    call("docker", "run", "-d", "--name", name, "--network", "none", *options, IMAGE, *command)
    try:
        yield name
    finally:
        call("docker", "rm", "-f", name)


@ONE_COMPOSE
def test_container_outside_of_the_project_is_refused_and_named(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose)
    before = scene.shop.state()
    data = scene.shop.db_path.parent
    for volume, error in (
        (f"{data}:/somewhere", "database-in-use"),
        (f"{scene.shop.path}:/above", "database-in-use"),
        (f"{scene.shop.db_path}:/app/shop.db", "unsuitable-target"),
    ):
        with container("-v", volume) as name:
            done = scene.restore()
        check_code(done, 3, error)
        assert name in done.error["message"]
    assert untouched(before, scene.shop.state())
    check_clean(scene.shop)


@ONE_COMPOSE
def test_container_outside_of_the_project_that_restarts_in_a_loop_is_refused_and_named(
    prepare: Prepare, mode: str, compose: Compose
) -> None:
    """It may open the old file in any moment, the one before the rename included."""
    scene = prepare(mode, compose)
    with container("-v", f"{scene.shop.db_path.parent}:/data", "--restart=always", command=("/bin/false",)) as name:
        wait_until(lambda: int(call("docker", "inspect", "-f", "{{.RestartCount}}", name)) > 5, "it is between starts")
        done = scene.restore()
        check_code(done, 3, "database-in-use")
        assert name in done.error["message"]
    check_clean(scene.shop)


@ONE_COMPOSE
def test_database_mounted_as_a_single_file_is_refused(prepare: Prepare, mode: str, compose: Compose) -> None:
    """The bot itself: after a rename on the host its container would keep the old file."""
    scene = prepare(mode, compose, services=())
    described = json.loads(scene.shop.compose_file.read_text())
    described["services"]["bot"]["volumes"].append("./data/shop.db:/app/alone.db")
    scene.shop.compose_file.write_text(json.dumps(described))
    scene.shop.up("bot")
    scene.shop.wait_rows()
    before = scene.shop.state()
    done = scene.restore()
    check_code(done, 3, "unsuitable-target")
    assert untouched(before, scene.shop.state())


@ONE_COMPOSE
def test_run_container_of_the_project_is_refused_and_named(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose)
    bot = scene.shop.state().id
    name = f"oneoff-{uuid.uuid4().hex[:8]}"
    scene.shop.run_compose("run", "-d", "--name", name, "bot", "/bin/sleep", "1000")
    try:
        started = call("docker", "inspect", "-f", "{{.State.StartedAt}}", bot)
        done = scene.restore()
        check_code(done, 3, "database-in-use")
        assert name in done.error["message"]
        assert call("docker", "inspect", "-f", "{{.State.StartedAt}}", bot) == started
    finally:
        call("docker", "rm", "-f", name)


@alternating("journal_mode", "WAL", "DELETE")
def test_idle_process_on_the_host_is_refused_and_named(
    prepare: Prepare, mode: str, compose: Compose, journal_mode: str
) -> None:
    scene = prepare(mode, compose, services=("bot",) if journal_mode == "WAL" else ())
    if journal_mode == "DELETE":
        with closing(scene.shop.connect()) as connection:
            assert connection.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
    before = scene.shop.inspect()
    inode = scene.shop.db_path.stat().st_ino
    with scene.shop.held_open() as holder:
        for options in ((), ("--no-restart",), ("--stop-first",)):
            done = scene.restore(*options)
            check_code(done, 3, "database-in-use")
            assert str(holder.pid) in done.error["message"]
    assert (scene.shop.inspect() is None) == (before is None)
    if before:
        assert scene.shop.state().started_at == before["State"]["StartedAt"]
    assert scene.shop.db_path.stat().st_ino == inode
    check_clean(scene.shop)


@ONE_COMPOSE
def test_process_that_opens_it_during_the_stop_undoes_the_stop(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose)
    inode = scene.shop.db_path.stat().st_ino
    orders = scene.shop.path / "hold.json"
    orders.write_text(
        json.dumps({"role": "hold", "db": str(scene.shop.db_path), "passphrase": scene.shop.passphrase}) + "\n"
    )
    script = (
        'real "$@"; mkfifo "$SHOP/gate"; exec 9<>"$SHOP/gate"; '
        f'{sys.executable} {writer.__file__} {orders} <"$SHOP/gate" >"$SHOP/held" 2>&1 & '
        'echo $! >"$SHOP/held.pid"; until grep -q ready "$SHOP/held"; do sleep 0.05; done; exit 0'
    )
    try:
        done = scene.restore(env=intercept(scene.shop, stop=script))
        check_code(done, 7, "cannot-stop")
        assert (scene.shop.path / "held.pid").read_text().strip() in done.error["message"]
        assert scene.shop.state().running
        assert scene.shop.db_path.stat().st_ino == inode
        assert len(scene.shop.rows_in_place()["customers"]) == 101
        check_writing_to_the_live_file(scene.shop)
        check_clean(scene.shop)
    finally:
        os.kill(int((scene.shop.path / "held.pid").read_text()), 9)


@ONE_COMPOSE
def test_container_that_mounts_the_folder_during_the_stop_undoes_the_stop(
    prepare: Prepare, mode: str, compose: Compose
) -> None:
    """It holds nothing yet, but may open the old file a moment before the rename, and write into it afterwards."""
    scene = prepare(mode, compose)
    inode = scene.shop.db_path.stat().st_ino
    name = f"outsider-{uuid.uuid4().hex[:8]}"
    run = f'{shutil.which("docker")} run -d --name {name} --network none -v "$SHOP/data:/data" {IMAGE} /bin/sleep 1000'
    try:
        done = scene.restore(env=intercept(scene.shop, stop=f'real "$@"; {run}; exit 0'))
        check_code(done, 7, "cannot-stop")
        assert name in done.error["message"]
        assert scene.shop.state().running
        assert scene.shop.db_path.stat().st_ino == inode
        check_clean(scene.shop)
    finally:
        call("docker", "rm", "-f", name)


# --- refusals touch nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "compose"), [("sqlcipher", "v2"), pytest.param("sqlite", "v1", marks=LONG)], indirect=True
)
def test_refusals_leave_the_bot_running_untouched(prepare: Prepare, mode: str, compose: Compose, keys: Keys) -> None:
    scene = prepare(mode, compose, services=("bot", "redis"))
    shop, states, inode = scene.shop, scene.shop.states(), scene.shop.db_path.stat().st_ino

    def check_untouched(done: Completed, code: int, error: str) -> None:
        check_code(done, code, error)
        assert all(untouched(state, shop.state(service)) for service, state in states.items())
        assert shop.db_path.stat().st_ino == inode
        check_clean(shop)

    check_untouched(scene.restore(key=keys.other), 4, "wrong-key")
    check_untouched(scene.restore(key=Key(**{**vars(keys.open), "private_armor": "nothing"})), 4, "unusable-key")
    check_untouched(shop.restore(shop.backups / "missing.db.gz.gpg", "--force", key=keys.open), 3, "backup-not-found")
    check_untouched(shop.restore(scene.backup, key=keys.open), 3, "no-terminal")
    check_untouched(shop.restore(scene.backup, "--force"), 3, "no-terminal")
    with changed_bytes(scene.backup):
        check_untouched(scene.restore(), 3, "checksum-mismatch")
        Path(f"{scene.backup}.sha256").unlink()
        check_untouched(scene.restore(), 4, "damaged-message")
    if mode == "sqlcipher":
        shop.write_env(DB_PASS="another one")
        check_untouched(scene.restore(), 3, "settings-differ")
        shop.write_env(DB_PASS=DB_PASS)
    shop.wait_rows(2)


@contextmanager
def changed_bytes(path: Path) -> Iterator[None]:
    """A bit is flipped in the last bytes meanwhile: all plaintext can still be had, but it is not authentic."""
    content = path.read_bytes()
    path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    try:
        yield
    finally:
        path.write_bytes(content)


@ONE_COMPOSE
def test_failing_commands_are_told_with_their_words(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose)
    env = intercept(scene.shop, stop='echo "the engine is on fire" >&2; exit 1')
    done = scene.restore(env=env)
    check_code(done, 7, "cannot-stop")
    assert "the engine is on fire" in done.error["message"]


@pytest.mark.parametrize("compose", ["v2", pytest.param("v1", marks=LONG)], indirect=True)
def test_nothing_of_the_bots_passphrase_reaches_docker(prepare: Prepare, compose: Compose) -> None:
    """DB_PASS in the environment of the tool is not handed on to the children that do not need it."""
    scene = prepare("sqlcipher", compose)
    env = intercept(scene.shop, stop='env >"$SHOP/seen"; real "$@"; exit')
    check_code(scene.restore(env={**env, "DB_PASS": DB_PASS}), 0)
    seen = subprocess.run(["cat", scene.shop.path / "seen"], capture_output=True, text=True, check=True).stdout
    assert "PATH=" in seen
    assert "DB_PASS" not in seen
