"""What the bot's containers say is believed before what the settings say: real containers, a real bot."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Prepare
from tests.support.containers import Bot, BotShop, Compose, call, wait_until
from tests.support.scene import (
    KEEP_TRUTH,
    LIVE_ROW,
    LONG,
    ONE_COMPOSE,
    alternating,
    check_clean,
    check_code,
    check_old,
    check_restored,
    check_writing_to_the_live_file,
    intercept,
    untouched,
)
from tests.support.shop import DB_PASS

pytestmark = pytest.mark.docker

DATA = "./data:/srv/database"
ON_THE_RESTORED_ONE = "NOT EXISTS (SELECT 1 FROM customers WHERE name = 'came after the backup')"


def started(shop: BotShop, *services: str) -> dict[str, str]:
    """When the containers of services were started."""
    return {name: shop.state(name).started_at for name in services}


def is_up(shop: BotShop, service: str) -> Callable[[], bool]:
    return lambda: shop.state(service).running


# --- which containers have the database ------------------------------------------------------------------------------


@alternating("service", "worker", "reader")
def test_only_what_has_the_database_is_stopped(prepare: Prepare, mode: str, compose: Compose, service: str) -> None:
    """A worker that has a folder above it, a reader, a proxy, and redis, with a volume of its own."""
    scene = prepare(mode, compose, services=())
    shop, others = scene.shop, ["redis", "proxy", "reader"]
    shop.change_services(
        worker={"volumes": [".:/srv/shop"]},
        proxy={"volumes": ["./backups:/www:ro"]},
        reader={"volumes": [f"{DATA}:ro"]},
    )
    shop.up()
    shop.wait_health("healthy")
    if service == "reader":  # it has the old database open, and would go on with it
        call("docker", "exec", "-d", shop.state("reader").id, "sh", "-c", "sleep 1000 < /srv/database/shop.db")
        others.remove("reader")
    before, restarted = started(shop, *others), started(shop, "bot", service)
    done = scene.restore()
    check_code(done, 0)
    assert set(done.report["services"]) == {"bot", "worker", service}
    assert started(shop, *others) == before
    assert all(now > restarted[name] for name, now in started(shop, *restarted).items())
    assert f"✅ {', '.join(sorted({'bot', 'worker', service}))} ({', '.join(sorted(others))} go on)" in done.err
    check_writing_to_the_live_file(shop)
    check_restored(scene)


@ONE_COMPOSE
def test_replica_that_was_stopped_by_hand_stays_stopped(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose, Bot(), services=())
    scene.shop.run_compose("up", "-d", "--scale", "bot=3", "bot")
    containers = call(
        "docker", "ps", "-q", "--filter", f"label=com.docker.compose.project={scene.shop.project}"
    ).split()
    assert len(containers) == 3
    call("docker", "stop", "-t", "2", containers[0])
    check_code(scene.restore(), 0)
    states = call("docker", "inspect", "-f", "{{.State.Running}}", *containers).split()
    assert states == ["false", "true", "true"]


@ONE_COMPOSE
def test_what_shares_the_network_of_the_bot_is_started_after_it(prepare: Prepare, mode: str, compose: Compose) -> None:
    """Else it would go on in a network that is no more."""
    scene = prepare(mode, compose, services=())
    scene.shop.change_services(proxy={"network_mode": "service:bot"})
    scene.shop.up("bot", "proxy")
    scene.shop.wait_health("healthy")
    before = started(scene.shop, "proxy")
    check_code(scene.restore(), 0)
    after = started(scene.shop, "bot", "proxy")
    assert before["proxy"] < after["bot"] < after["proxy"]


@alternating("where", "a volume", "another folder")
def test_folder_that_no_container_has_is_refused(prepare: Prepare, mode: str, compose: Compose, where: str) -> None:
    scene = prepare(mode, compose, services=())
    shop = scene.shop
    name = "elsewhere" if where == "another folder" else f"{shop.project}_named"
    described = json.loads(shop.compose_file.read_text()) | {"volumes": {"named": {}}, "version": "3.8"}
    volumes = described["services"]["bot"]["volumes"]
    volumes[0] = "./elsewhere:/app/data" if where == "another folder" else "named:/app/data"
    shop.compose_file.write_text(json.dumps(described))
    shop.up("bot")
    before, snapshot = shop.state(), shop.snapshot()
    done = scene.restore()
    check_code(done, 3, "folder-not-mounted")
    assert name in done.error["message"]
    assert "DATA_DIR" in done.error["hint"]
    assert untouched(before, shop.state())
    assert shop.snapshot() == snapshot
    verified = scene.restore("--verify-only")
    check_code(verified, 0)
    assert any(name in text for text in verified.report["warnings"])


# --- with what settings they run -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "mode", "environment"),
    [
        ("DB_NAME", "sqlite", {"DB_NAME": "database.db"}),
        ("DB_ENCRYPTION", "sqlite", {"DB_ENCRYPTION": "true"}),
        ("DB_ENCRYPTION", "sqlcipher", {"DB_ENCRYPTION": "True"}),  # bots compare with 'true'
        ("DB_PASS", "sqlcipher", {"DB_PASS": "s3cret-of-the-bot"}),
    ],
    ids=["name", "encryption", "encryption by half", "passphrase"],
)
@pytest.mark.parametrize("compose", ["v2"], indirect=True)
def test_setting_that_differs_is_refused_by_name(
    prepare: Prepare, mode: str, compose: Compose, setting: str, environment: dict[str, str]
) -> None:
    scene = prepare(mode, compose, services=())
    shop = scene.shop
    described = json.loads(shop.compose_file.read_text())["services"]["bot"]["environment"]
    shop.change_services(bot={"environment": described | environment})
    shop.up("bot")
    before, inode = shop.state(), shop.db_path.stat().st_ino
    done = scene.restore()
    check_code(done, 3, "settings-differ")
    assert setting in done.error["message"]
    verified = scene.restore("--verify-only")
    check_code(verified, 0)
    assert any(setting in text for text in verified.report["warnings"])
    assert "s3cret" not in done.text + verified.text
    assert DB_PASS not in done.text + verified.text
    assert untouched(before, shop.state())
    assert shop.db_path.stat().st_ino == inode


# --- up as before ----------------------------------------------------------------------------------------------------


@ONE_COMPOSE
def test_what_was_unhealthy_before_counts_as_up_when_it_runs(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose, Bot(health=True), services=())
    scene.shop.set_health("exit 1")
    scene.shop.up("bot")
    scene.shop.wait_health("unhealthy")
    done = scene.restore()
    check_code(done, 0)
    assert any("unhealthy before" in text for text in done.report["warnings"])
    check_restored(scene)


@ONE_COMPOSE
def test_one_crash_at_the_start_is_no_loop(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose, Bot(interval=0.05))
    count = 'real inspect -f "{{.RestartCount}}" "$2"'
    script = f'touch "$SHOP/ctl/crash"; real "$@"; while [ $({count}) = 0 ]; do :; done; rm "$SHOP/ctl/crash"; exit 0'
    done = scene.restore(env=intercept(scene.shop, start=script))
    check_code(done, 0)
    assert scene.shop.state().restart_count > 0
    check_restored(scene)


@ONE_COMPOSE
def test_health_check_that_is_due_late_is_run_at_once(prepare: Prepare, mode: str, compose: Compose) -> None:
    """The downtime is the time until it works, not until Docker's next turn in a minute."""
    scene = prepare(mode, compose, Bot(health=True), services=())
    shop = scene.shop
    test = ["CMD-SHELL", "[ -e /dev/shm/healthy ] && [ -e /app/ctl/ready ]"]
    shop.change_services(bot={"healthcheck": {"test": test, "interval": "60s", "timeout": "3s", "retries": 1}})
    (shop.path / "ctl/ready").touch()
    shop.up("bot")
    shop.wait_rows()
    script = '(sleep 2; touch "$SHOP/ctl/ready") & real "$@"; exit $?'
    done = scene.restore(env=intercept(shop, stop='rm "$SHOP/ctl/ready"; real "$@"; exit $?', start=script))
    check_code(done, 0)
    assert 2 < done.report["downtime_seconds"] < 15
    assert "bot healthy" in done.err
    check_restored(scene)


@pytest.mark.parametrize(("mode", "compose"), [("sqlcipher", "v1")], indirect=True)
def test_log_of_what_does_not_come_up_is_shown_and_not_kept(prepare: Prepare, mode: str, compose: Compose) -> None:
    """Its last lines say why; they may hold anything, so they are printed, without the passphrase, and not logged."""
    scene = prepare(mode, compose, Bot(needs=LIVE_ROW))
    done = scene.restore(env=intercept(scene.shop, stop=KEEP_TRUTH))
    check_code(done, 8, "rolled-back")
    assert "the database is not the one I need" in done.error["message"]
    assert "│ bot: the database is not the one I need ?[31m, opened with ***" in done.err
    assert "not the one I need" not in (scene.shop.backups / "restore.log").read_text()
    check_old(scene)


# --- the look after the start ----------------------------------------------------------------------------------------


@alternating("how", "DELETE FROM customers WHERE ", "DELETE FROM items WHERE id > 10 AND ")
def test_tables_that_the_bot_empties_undo_the_restore(prepare: Prepare, mode: str, compose: Compose, how: str) -> None:
    scene = prepare(mode, compose, Bot(health=True, at_start=(f"{how}{ON_THE_RESTORED_ONE}",)))
    done = scene.restore(env=intercept(scene.shop, stop=KEEP_TRUTH))
    check_code(done, 8, "rolled-back")
    assert how.split()[2] in done.error["message"]
    check_old(scene)
    check_writing_to_the_live_file(scene.shop)
    check_clean(scene.shop)


@ONE_COMPOSE
def test_rows_in_the_report_are_those_that_are_there(prepare: Prepare, mode: str, compose: Compose) -> None:
    scene = prepare(mode, compose, Bot(health=True, at_start=("DELETE FROM customers WHERE id <= 20",)))
    done = scene.restore()
    check_code(done, 0)
    assert done.report["tables"]["customers"]["backup"] == 100
    assert done.report["rows"]["customers"] == 80
    assert "bot_log" in done.report["rows"]


@ONE_COMPOSE
def test_database_that_its_bot_keeps_locked_is_restored_with_a_warning(
    prepare: Prepare, mode: str, compose: Compose
) -> None:
    scene = prepare(mode, compose, Bot(health=True))
    shop = scene.shop
    shop.bot = Bot(health=True, at_start=("PRAGMA locking_mode=EXCLUSIVE",))
    shop.write_compose_file()
    done = scene.restore(env=intercept(shop, stop=KEEP_TRUTH))
    check_code(done, 0)
    assert any("could not be looked at" in text for text in done.report["warnings"])
    shop.stop("bot")
    rows = shop.rows()
    assert rows["customers"] == scene.expected["customers"]


ROLLBACK_JOURNAL_BOT = """
import json, pathlib, signal, sqlite3, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
seen = open("/app/data/seen", "a", buffering=1)
while True:
    began = time.monotonic()
    try:
        c = sqlite3.connect("/app/data/shop.db", timeout=5, isolation_level=None)
        c.execute("INSERT INTO small VALUES (1)")
        c.close()
        print("ok", time.monotonic() - began, file=seen)
    except sqlite3.Error as error:
        print("FAILED", time.monotonic() - began, error, file=seen)
    time.sleep(0.2)
"""


@pytest.mark.parametrize(
    ("megabytes", "mode", "compose"),
    [pytest.param(megabytes, "sqlite", "v2", marks=LONG) for megabytes in (150, 1000)],
    indirect=["mode", "compose"],
)
def test_look_does_not_hold_up_the_writes_of_a_bot_with_a_rollback_journal(
    prepare: Prepare, mode: str, compose: Compose, megabytes: int
) -> None:
    scene = prepare(mode, compose, Bot(), services=())
    shop = scene.shop
    with shop.connect() as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("CREATE TABLE small (a)")
        connection.execute("CREATE TABLE large (id INTEGER PRIMARY KEY, a, b)")
        connection.execute(
            "INSERT INTO large (a, b) WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
            " SELECT random(), zeroblob(60) FROM n",
            (megabytes * 8000,),
        )
        connection.execute("CREATE INDEX by_a ON large (a)")
    connection.close()
    backup = shop.create_backup()
    (shop.path / "ctl/bot.py").write_text(ROLLBACK_JOURNAL_BOT)
    command = json.loads(shop.compose_file.read_text())["services"]["bot"]["command"]
    shop.change_services(bot={"command": [command[0], "/app/ctl/bot.py"]})
    shop.up("bot")
    wait_until((shop.db_path.parent / "seen").exists, "the bot writes")
    done = shop.restore("--force", backup, key=scene.key, timeout=300)
    check_code(done, 0)
    time.sleep(3)
    writes = [line.split() for line in (shop.db_path.parent / "seen").read_text().splitlines()]
    assert not [line for line in writes if line[0] == "FAILED"]
    assert max(float(line[1]) for line in writes) < 3
    assert done.report["rows"]["large"] == megabytes * 8000


# --- the new file fits its folder ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "mode_of_folder", "user"),
    [
        ((0, 2000), 0o2775, "3000:2000"),
        ((3000, 3000), 0o755, "3000:3000"),
        ((0, 0), 0o777, "3000"),
        ((0, 0), 0o755, ""),
    ],
    ids=["by its group", "by its owner", "by all", "by root"],
)
@pytest.mark.parametrize(("mode", "compose"), [("sqlite", "v2")], indirect=True)
def test_new_database_can_be_written_by_the_user_of_the_container(  # noqa: PLR0917 - pytest passes by keyword
    prepare: Prepare, mode: str, compose: Compose, owner: tuple[int, int], mode_of_folder: int, user: str
) -> None:
    scene = prepare(mode, compose, Bot(), services=())
    shop = scene.shop
    for path in shop.db_path.parent.iterdir():
        path.unlink()
    os.chown(shop.db_path.parent, *owner)
    shop.db_path.parent.chmod(mode_of_folder)
    idle: dict[str, Any] = {"command": ["/bin/sleep", "1000"], "stop_grace_period": "0s"}
    shop.change_services(bot=idle | ({"user": user} if user else {}))
    shop.up("bot")
    check_code(scene.restore(), 0)
    wait_until(is_up(shop, "bot"), "the bot runs")
    write = "exec 3<>/app/data/shop.db && : >/app/data/shop.db-wal && rm /app/data/shop.db-wal"
    subprocess.run(["docker", "exec", shop.state().id, "sh", "-c", write], check=True)
    assert not Path(shop.db_path).stat().st_mode & 0o007
