"""The bot, as its containers tell of it: which are concerned, whether they agree with us, and whether they come up.

Docker is a script that prints what the test gives it; whose values they are, is in tests/support/inspected.py.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backuplib.bot import (
    LOG_COLUMNS,
    LOG_LINES,
    MOST_RESTARTS,
    SETTLE_SECONDS,
    START_SECONDS,
    Bot,
    Coming,
    named,
    passes,
)
from backuplib.containers import Container, HealthCheck
from backuplib.errors import (
    CannotStopError,
    DatabaseInUseError,
    DockerUnreachableError,
    FolderNotMountedError,
    ServicesDownError,
    SettingsDifferError,
    UnsuitableTargetError,
    UnusableComposeFileError,
)
from backuplib.processes import Holder
from backuplib.secret import Secret
from tests.support.inspected import SECOND, FakeDocker, inspect_data, inspected, mounted

FILE = Path("/srv/shopbot/docker-compose.prod.yml")
DATABASE = Path("/srv/shopbot/data/shop.db")
DB_PASS = "pa=ss'word"  # as in the environment of the container

READ_ONLY = [mounted(DATABASE.parent, writable=False)]
NOWHERE = [mounted("/srv/shopbot/redis", "/data")]
STOPPED = {"State_Running": False, "State_Status": "exited"}
RESTARTING = {"State_Running": True, "State_Restarting": True, "State_Status": "restarting"}

Data = dict[str, Any]


@pytest.fixture
def bot() -> Bot:
    """The bot of the compose file, whose settings are the container's."""
    return Bot(FILE, DATABASE, "shopbot", Secret(DB_PASS))


def of(service: str, **changes: Any) -> Data:
    """A container of a service, without health check unless that is asked for."""
    health = {} if "Config_Healthcheck" in changes else {"Config_Healthcheck": None, "State_Health": None}
    return inspect_data(service=service, **health, **changes)


# --- which are the bot's ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "owned"),
    [
        ({}, True),
        ({"oneoff": True}, False),
        ({"project": "another"}, False),
        ({"compose_files": (Path("/srv/other/docker-compose.prod.yml"),)}, False),
        ({"compose_files": (Path("/srv/shopbot/override.yml"), FILE)}, True),
    ],
)
def test_bot_owns_the_services_of_its_file_and_project(bot: Bot, changes: dict[str, Any], owned: bool) -> None:
    assert bot.owns(replace(inspected(), **changes)) is owned


def test_containers_come_in_the_order_in_which_they_were_started(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(
        of("bot", State_StartedAt="2025-01-30T12:00:03Z"),
        of("redis", State_StartedAt="2025-01-30T12:00:01Z", **STOPPED),
        of("caddy", State_StartedAt="2025-01-30T12:00:02Z"),
        of("run", labels={"oneoff": "True"}),
        of("stranger", labels={"project": "another"}),
    )
    assert [item.service for item in bot.containers()] == ["redis", "caddy", "bot"]


def test_container_that_shares_with_another_comes_after_it(bot: Bot, fake_docker: FakeDocker) -> None:
    """Which has been restarted since: without that one running, it cannot be started."""
    main = of("bot", State_StartedAt="2025-01-30T12:00:09Z")
    shares = {"NetworkMode": f"container:{main['Id']}"}
    fake_docker.has(main, of("tunnel", State_StartedAt="2025-01-30T12:00:01Z", HostConfig=shares))
    assert [item.service for item in bot.containers()] == ["bot", "tunnel"]


def test_file_without_containers_asks_for_none(fake_docker: FakeDocker) -> None:
    assert Bot(FILE, DATABASE, None).containers() == []
    assert fake_docker.calls == []


def test_name_of_the_project_is_found_by_the_path_of_the_file(tmp_path: Path, fake_docker: FakeDocker) -> None:
    file = tmp_path / "docker-compose.prod.yml"
    file.touch()
    (tmp_path / "link.yml").symlink_to(file)
    ours = {"project.config_files": str(file)}
    fake_docker.has(of("bot", labels={**ours, "project": "renamed"}), of("stranger"))
    found = Bot.find(tmp_path / "link.yml", DATABASE)
    assert (found.file, found.name) == (file, "renamed")
    assert [item.service for item in found.containers()] == ["bot"]


def test_file_without_containers_has_no_project(tmp_path: Path, fake_docker: FakeDocker) -> None:
    (tmp_path / "a.yml").touch()
    fake_docker.has(of("stranger"), of("run", labels={"project.config_files": f"{tmp_path}/a.yml", "oneoff": "True"}))
    assert Bot.find(tmp_path / "a.yml", DATABASE).name is None


def in_projects(file: Path, **running: bool) -> Iterator[Data]:
    """A container of the file in each of these projects."""
    file.touch()
    for name, runs in running.items():
        labels = {"project": name, "project.config_files": str(file)}
        yield of(name, labels={**labels, "service": "bot"}, **({} if runs else STOPPED))


def test_project_that_runs_counts_before_one_that_does_not(tmp_path: Path, fake_docker: FakeDocker) -> None:
    fake_docker.has(*in_projects(tmp_path / "a.yml", old=False, new=True))
    assert Bot.find(tmp_path / "a.yml", DATABASE).name == "new"


def test_project_that_restarts_in_a_loop_counts_as_one_that_runs(tmp_path: Path, fake_docker: FakeDocker) -> None:
    """As a bot does that has lost its database."""
    old, new = in_projects(tmp_path / "a.yml", old=False, new=True)
    fake_docker.has(old, {**new, "State": {**new["State"], "Restarting": True, "Status": "restarting"}})
    assert Bot.find(tmp_path / "a.yml", DATABASE).name == "new"


@pytest.mark.parametrize("running", [True, False])
def test_file_that_runs_under_two_names_is_refused(tmp_path: Path, fake_docker: FakeDocker, running: bool) -> None:
    fake_docker.has(*in_projects(tmp_path / "a.yml", one=running, other=running))
    with pytest.raises(UnusableComposeFileError) as raised:
        Bot.find(tmp_path / "a.yml", DATABASE)
    assert "one, other" in str(raised.value)


def test_docker_that_does_not_answer_is_told(fake_docker: FakeDocker) -> None:
    fake_docker.fails("ps")
    with pytest.raises(DockerUnreachableError):
        Bot.find(FILE, DATABASE)


# --- which are stopped and started -----------------------------------------------------------------------------------


def concerned(bot: Bot, *services: str, pending: tuple[str, ...] = ()) -> str:
    return named(bot.concerned(services, pending))


def test_those_that_run_and_may_write_to_the_database_are_concerned(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(
        of("bot"),
        of("worker", **RESTARTING),
        of("replica", **STOPPED),
        of("reader", Mounts=READ_ONLY),
        of("redis", Mounts=NOWHERE),
        of("caddy", Mounts=[]),
    )
    assert concerned(bot) == "bot, worker"


def test_container_that_an_earlier_restore_stopped_is_concerned(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(of("bot", **STOPPED), of("worker", **STOPPED), of("redis", Mounts=NOWHERE, **STOPPED))
    assert concerned(bot) == ""
    assert concerned(bot, pending=("shopbot-bot-1", "shopbot-redis-1", "another")) == "bot"


@pytest.mark.parametrize("mode", ["NetworkMode", "PidMode", "IpcMode"])
def test_container_that_shares_with_one_that_is_stopped_goes_with_it(
    bot: Bot, fake_docker: FakeDocker, mode: str
) -> None:
    """When that is started again, what it shares is another one."""
    main = of("bot")
    shares = {"HostConfig": {mode: f"container:{main['Id']}"}, "Mounts": []}
    fake_docker.has(main, of("tunnel", **shares), of("other", **shares, **STOPPED), of("redis", Mounts=[]))
    assert concerned(bot) == "bot, tunnel"


def test_services_that_are_named_are_concerned_whatever_they_have(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(of("bot"), of("redis", Mounts=NOWHERE), of("replica", **STOPPED))
    assert concerned(bot, "redis") == "redis"
    assert concerned(bot, "redis", "replica") == "redis"


def test_service_that_is_not_there_is_refused_naming_those_that_are(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(of("bot"), of("redis"))
    with pytest.raises(UnusableComposeFileError) as raised:
        bot.concerned(["bto", "bot"], ())
    assert "bto" in str(raised.value)
    assert "bot, redis" in raised.value.hint


def test_reader_that_has_the_database_open_is_stopped_too(
    bot: Bot, fake_docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on with the old one."""
    reader, idle = of("reader", Mounts=READ_ONLY), of("idle", Mounts=READ_ONLY)
    fake_docker.has(reader, idle)
    assert concerned(bot) == ""
    holder = Holder(4711, "python", f"0::/system.slice/docker-{reader['Id']}.scope\n")
    monkeypatch.setattr("backuplib.bot.find_holders", lambda _: ([holder], 0))
    assert concerned(bot) == "reader"


# --- whether they agree with us --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mounts", [None, READ_ONLY, [mounted("/srv/shopbot", "/bot")]])
def test_bot_that_has_the_folder_is_not_elsewhere(bot: Bot, fake_docker: FakeDocker, mounts: list[Data] | None) -> None:
    fake_docker.has(of("redis", Mounts=NOWHERE), of("bot", **STOPPED, **({"Mounts": mounts} if mounts else {})))
    bot.refuse_elsewhere()


def test_bot_without_containers_is_not_elsewhere(bot: Bot, fake_docker: FakeDocker) -> None:
    bot.refuse_elsewhere()


def test_bot_that_has_another_folder_is_refused_naming_what_it_has(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(
        of(
            "bot",
            Mounts=[mounted("/srv/old/data"), mounted("/var/lib/docker/volumes/v/_data", "/v\x1b[2J", volume="v")],
        ),
        of("redis", Mounts=[]),
    )
    with pytest.raises(FolderNotMountedError) as raised:
        bot.refuse_elsewhere()
    text = str(raised.value)
    assert str(DATABASE.parent) in text
    assert "bot has /srv/old/data as /bot/data" in text
    assert "bot has volume v as /v" in text
    assert text.isprintable()
    assert "DATA_DIR" in raised.value.hint


def test_bot_that_has_no_folder_at_all_is_refused(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(of("bot", Mounts=[]))
    with pytest.raises(FolderNotMountedError) as raised:
        bot.refuse_elsewhere()
    assert "none of them" in str(raised.value)


def environment(**settings: str) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


AGREE: dict[str, tuple[list[str], str | None]] = {
    "all the same": (environment(DB_NAME="shop.db", DB_ENCRYPTION="true", DB_PASS=DB_PASS), DB_PASS),
    "none is given": ([], DB_PASS),
    "none is given, plain": ([], None),
    "empty, so plain": (environment(DB_NAME="", DB_ENCRYPTION="", DB_PASS=""), None),
    "plain": (environment(DB_NAME="shop.db", DB_ENCRYPTION="false"), None),
    "plain in other words": (environment(DB_ENCRYPTION="no"), None),
    "a passphrase that is not used": (environment(DB_ENCRYPTION="false", DB_PASS="x"), None),
    "only some": (environment(DB_PASS=DB_PASS), DB_PASS),
}


@pytest.mark.parametrize(("env", "db_pass"), AGREE.values(), ids=[*AGREE])
def test_settings_that_agree_or_are_not_given_are_fine(
    fake_docker: FakeDocker, env: list[str], db_pass: str | None
) -> None:
    fake_docker.has(of("bot", Config_Env=env))
    ours = Bot(FILE, DATABASE, "shopbot", Secret(db_pass) if db_pass else None)
    ours.refuse_differences(encrypted=bool(db_pass))


DIFFER: dict[str, tuple[dict[str, str], str | None, str, str]] = {
    "name": ({"DB_NAME": "database.db"}, None, "DB_NAME=database.db", "DB_NAME=database.db"),
    "encrypted": ({"DB_ENCRYPTION": "true"}, None, "DB_ENCRYPTION=true", "DB_ENCRYPTION=true"),
    "plain": ({"DB_ENCRYPTION": "false"}, DB_PASS, "DB_ENCRYPTION=false", "DB_ENCRYPTION=false"),
    "plain in other words": ({"DB_ENCRYPTION": "TRUE"}, DB_PASS, "DB_ENCRYPTION=TRUE", "DB_ENCRYPTION=false"),
    "plain, since it is empty": ({"DB_ENCRYPTION": ""}, DB_PASS, "DB_ENCRYPTION=,", "DB_ENCRYPTION=false"),
    "no passphrase": ({"DB_PASS": ""}, DB_PASS, "DB_PASS", ".env"),
    "passphrase": ({"DB_PASS": "hunter2"}, DB_PASS, "DB_PASS", ".env"),
    "passphrase as Compose left it": ({"DB_PASS": "gate"}, "gate$word", "DB_PASS", "single quotes"),
}


@pytest.mark.parametrize(("env", "db_pass", "text", "hint"), DIFFER.values(), ids=[*DIFFER])
def test_setting_that_differs_is_named_and_no_secret(
    fake_docker: FakeDocker, env: dict[str, str], db_pass: str | None, text: str, hint: str
) -> None:
    fake_docker.has(of("bot", Config_Env=environment(**env)))
    ours = Bot(FILE, DATABASE, "shopbot", Secret(db_pass) if db_pass else None)
    with pytest.raises(SettingsDifferError) as raised:
        ours.refuse_differences(encrypted=bool(db_pass))
    error = raised.value
    assert text in str(error)
    assert "shopbot-bot-1" in str(error)
    assert hint in error.hint
    for secret in filter(None, (db_pass, env.get("DB_PASS"))):
        assert secret not in f"{error} {error.hint}"


def test_name_that_is_a_link_to_the_database_agrees(tmp_path: Path, fake_docker: FakeDocker) -> None:
    """The path that is replaced is the one behind the link."""
    (tmp_path / "shop.db").symlink_to("shop-2025.db")
    fake_docker.has(of("bot", Mounts=[mounted(tmp_path)], Config_Env=["DB_NAME=shop.db"]))
    Bot(FILE, tmp_path / "shop-2025.db", "shopbot").refuse_differences(encrypted=False)
    with pytest.raises(SettingsDifferError):
        Bot(FILE, tmp_path / "shop-2024.db", "shopbot").refuse_differences(encrypted=False)


@pytest.mark.parametrize(
    ("user", "writable", "planted"), [("", True, True), ("0:0", True, True), ("1000", True, False), ("", False, False)]
)
def test_link_that_the_bot_can_have_made_as_root_is_refused(
    tmp_path: Path, fake_docker: FakeDocker, user: str, writable: bool, planted: bool
) -> None:
    link = tmp_path / "shop.db"
    link.symlink_to("shop-2025.db")
    fake_docker.has(of("bot", Mounts=[mounted(tmp_path, writable=writable)], Config_User=user))
    bot = Bot(FILE, tmp_path / "shop-2025.db", "shopbot")
    bot.refuse_planted_link(bot.database)  # which is none
    with pytest.raises(UnsuitableTargetError) if planted else nullcontext() as raised:
        bot.refuse_planted_link(link)
    assert not raised or f"readlink -f {link}" in raised.value.hint


def test_name_that_a_container_gives_its_database_steers_no_terminal(fake_docker: FakeDocker) -> None:
    fake_docker.has(of("bot", Config_Env=["DB_NAME=a\x1b[2J\n✅ restored"]))
    with pytest.raises(SettingsDifferError) as raised:
        Bot(FILE, DATABASE, "shopbot").refuse_differences(encrypted=False)
    assert f"{raised.value} {raised.value.hint}".isprintable()


OTHER = {"Config_Env": ["DB_NAME=other.db"]}


@pytest.mark.parametrize(
    ("containers", "differs"),
    [
        ([of("bot"), of("redis", Mounts=NOWHERE, **OTHER)], False),  # has nothing to do with the database
        ([of("bot"), of("old", **OTHER, **STOPPED)], False),
        ([of("bot", **RESTARTING), of("old", **OTHER, **STOPPED)], False),
        ([of("bot"), of("worker", **OTHER)], True),
        ([of("bot", **OTHER, **RESTARTING)], True),
        ([of("bot", **OTHER, **STOPPED)], True),  # none runs: what was there last counts
    ],
)
def test_settings_count_of_those_that_run_and_have_the_folder(
    bot: Bot, fake_docker: FakeDocker, containers: list[Data], differs: bool
) -> None:
    fake_docker.has(*containers)
    if not differs:
        bot.refuse_differences(encrypted=True)
        return
    with pytest.raises(SettingsDifferError):
        bot.refuse_differences(encrypted=True)


# --- who else may write ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"Mounts": READ_ONLY}, {"Mounts": NOWHERE}, STOPPED],
    ids=["reader", "elsewhere", "stopped"],
)
def test_container_that_cannot_write_to_the_database_is_no_stranger(
    bot: Bot, fake_docker: FakeDocker, changes: Data
) -> None:
    fake_docker.has(of("bot"), of("other", labels={"project": "another"}, **changes))
    bot.refuse_strangers(bot.concerned((), ()))


def test_container_that_can_write_and_is_not_stopped_is_refused_naming_it(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(of("bot"), of("other", labels={"project": "another"}))
    stopping = bot.concerned((), ())
    with pytest.raises(DatabaseInUseError) as raised:
        bot.refuse_strangers(stopping)
    assert "shopbot-other-1" in str(raised.value)
    assert "docker stop shopbot-other-1" in raised.value.hint
    with pytest.raises(DatabaseInUseError):
        bot.refuse_strangers([])


def test_database_that_is_mounted_alone_is_refused(bot: Bot, fake_docker: FakeDocker) -> None:
    """A container keeps the file that it was started with, whatever has its name later."""
    fake_docker.has(of("bot"), of("other", Mounts=[mounted(DATABASE, "/shop.db")]))
    with pytest.raises(UnsuitableTargetError) as raised:
        bot.refuse_strangers(bot.concerned((), ()))
    assert "shopbot-other-1" in str(raised.value)


def test_database_that_is_mounted_alone_through_a_link_is_refused(tmp_path: Path, fake_docker: FakeDocker) -> None:
    (tmp_path / "disk").mkdir()
    database = tmp_path / "disk/shop.db"
    database.touch()
    (tmp_path / "data").symlink_to("disk")
    fake_docker.has(of("other", Mounts=[mounted(tmp_path / "data/shop.db", "/shop.db")]))
    with pytest.raises(UnsuitableTargetError):
        Bot(FILE, database, "shopbot").refuse_strangers([])


def test_bot_that_has_the_database_alone_is_not_told_to_use_another_folder(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(of("bot", Mounts=[mounted(DATABASE, "/bot/data/shop.db")]))
    with pytest.raises(UnsuitableTargetError) as raised:
        bot.refuse_elsewhere()
    assert "Mount its folder" in raised.value.hint


def test_container_is_described_once(bot: Bot, fake_docker: FakeDocker) -> None:
    """While the services are down, each look counts."""
    one, other = of("one", Mounts=[]), of("other", Mounts=[])
    fake_docker.has(one)
    bot.refuse_strangers([])
    fake_docker.has(other)
    bot.refuse_strangers([])
    assert fake_docker.called("inspect") == [["--type=container", one["Id"]], ["--type=container", other["Id"]]]
    fake_docker.forget(one["Id"])
    bot.refuse_strangers([])


# --- what will happen ------------------------------------------------------------------------------------------------


def test_outlook_says_what_is_stopped_and_what_goes_on(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(
        of("bot", Config_StopTimeout=20),
        of("redis", Mounts=NOWHERE),
        of("caddy", Mounts=[]),
        of("old", **STOPPED),
        of("reader", Mounts=READ_ONLY),
    )
    outlook = bot.outlook(bot.concerned((), ()))
    assert outlook["services"] == "bot will be stopped; caddy, reader, redis go on (reader may only read it)"
    assert outlook["downtime"] == "estimated 1 s, 21 s if they must be killed"


def test_outlook_with_one_other(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(of("bot"), of("redis", Mounts=NOWHERE))
    assert bot.outlook(bot.concerned((), ()))["services"] == "bot will be stopped; redis goes on"


def test_outlook_where_nothing_is_stopped_estimates_no_downtime(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(of("bot", **STOPPED), of("redis", Mounts=NOWHERE))
    assert bot.outlook([]) == {"services": "none that has the database is running; redis goes on"}


@pytest.mark.parametrize(("interval", "seconds"), [(30, 2), (0.5, 1.5)])
def test_downtime_does_not_wait_for_the_next_turn_of_a_health_check(
    bot: Bot, fake_docker: FakeDocker, interval: float, seconds: float
) -> None:
    check = {"Test": ["CMD", "true"], "Interval": int(interval * SECOND)}
    fake_docker.has(of("bot", Config_Healthcheck=check, Config_StopTimeout=None))
    assert bot.outlook(bot.concerned((), ()))["downtime"].startswith(f"estimated {seconds:.0f} s, ")


def test_user_is_that_of_who_writes(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(
        of("reader", Config_User="1", Mounts=READ_ONLY),
        of("redis", Config_User="2", Mounts=NOWHERE),
        of("bot", Config_User="1000:2000", **STOPPED),
    )
    assert bot.user() == (1000, {2000})


def test_user_is_not_told_where_nobody_writes(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(of("reader", Config_User="1", Mounts=READ_ONLY))
    assert bot.user() is None


def test_preflight_asks_docker_once(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(of("bot"), of("redis", Mounts=NOWHERE))
    bot.refuse_elsewhere()
    bot.refuse_differences(encrypted=True)
    bot.outlook(bot.concerned([], []))
    bot.user()
    assert len(fake_docker.called("ps")) == len(fake_docker.called("inspect")) == 1


# --- stop ------------------------------------------------------------------------------------------------------------


def test_containers_are_found_again_by_their_names(bot: Bot, fake_docker: FakeDocker) -> None:
    """One that was made anew has another ID."""
    fake_docker.has(of("bot"), of("redis"), of("old", **STOPPED), of("stranger", labels={"project": "another"}))
    these, text = bot.stopping(["shopbot-bot-1", "shopbot-stranger-1", "nobody"])
    assert [item.name for item in these] == ["shopbot-bot-1"]
    assert text == "bot (redis goes on)"
    assert bot.stopping(["shopbot-bot-1", "shopbot-redis-1"])[1] == "bot, redis"


def test_containers_are_stopped_all_at_once_by_their_ids(bot: Bot, fake_docker: FakeDocker) -> None:
    one, other = of("bot"), of("worker", State_StartedAt="2025-01-30T12:00:02Z")
    fake_docker.has(one, other)
    fake_docker.has(of("bot", **STOPPED), of("worker", **STOPPED), after="stop")
    bot.stop(bot.containers())
    assert fake_docker.called("stop") == [[one["Id"], other["Id"]]]


def test_nothing_is_stopped_where_nothing_is_to_be(bot: Bot, fake_docker: FakeDocker) -> None:
    bot.stop([])
    assert fake_docker.called("stop") == []


@pytest.mark.parametrize("still", [STOPPED, {}], ids=["stopped", "runs"])
def test_stop_that_fails_is_no_stop(bot: Bot, fake_docker: FakeDocker, still: Data) -> None:
    fake_docker.has(of("bot"))
    items = bot.containers()
    fake_docker.has(of("bot", **still))
    fake_docker.fails("stop", "context canceled")
    with pytest.raises(CannotStopError, match="context canceled"):
        bot.stop(items)


@pytest.mark.parametrize("still", [{}, RESTARTING], ids=["runs", "restarts"])
def test_stop_that_says_it_worked_is_not_believed(bot: Bot, fake_docker: FakeDocker, still: Data) -> None:
    fake_docker.has(of("bot"), of("worker", **STOPPED))
    items = bot.containers()
    fake_docker.has(of("bot", **still))
    with pytest.raises(CannotStopError, match="still running after `docker stop`: bot"):
        bot.stop(items)


# --- start -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No container has to stay up for long."""
    monkeypatch.setattr("backuplib.bot.SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("backuplib.bot.PROBE_SECONDS", 0.0)


def test_containers_are_started_in_the_order_in_which_they_were_started_before(
    bot: Bot, fake_docker: FakeDocker, at_once: None
) -> None:
    times = {"bot": "2025-01-30T12:00:03Z", "redis": "2025-01-30T12:00:01Z", "caddy": "2025-01-30T12:00:02Z"}
    before = {name: of(name, State_StartedAt=time, **STOPPED) for name, time in times.items()}
    fake_docker.has(*before.values())
    fake_docker.has(*map(of, times), after="start")
    coming = bot.start(["shopbot-bot-1", "shopbot-redis-1", "shopbot-caddy-1"])
    assert fake_docker.called("start") == [[before[name]["Id"] for name in ("redis", "caddy", "bot")]]
    assert {item.service for item in coming.items} == {*times}
    assert coming.settled


def test_nothing_is_started_where_nothing_is_to_be(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(of("bot", **STOPPED))
    assert bot.start([]).settled
    assert fake_docker.called("start") == []


def test_exit_code_of_the_start_is_not_believed(bot: Bot, fake_docker: FakeDocker, at_once: None) -> None:
    """It fails, and yet all of them run."""
    fake_docker.has(of("bot"))
    fake_docker.fails("start", "context canceled")
    assert bot.start(["shopbot-bot-1"]).settled


def test_container_that_does_not_come_up_is_told_with_the_end_of_its_log(bot: Bot, fake_docker: FakeDocker) -> None:
    down = of("bot", **health("unhealthy"))
    fake_docker.has(of("redis"), down)
    fake_docker.logs(down["Id"], b"last words\n")
    fake_docker.fails("start", "port is already allocated")
    with pytest.raises(ServicesDownError) as raised:
        bot.start(["shopbot-bot-1", "shopbot-redis-1"])
    error = raised.value
    assert "bot is unhealthy" in str(error)
    assert "port is already allocated" in str(error)
    assert "docker logs --tail 50 shopbot-bot-1" in error.hint
    assert error.services == "but bot is unhealthy"
    assert error.log == "last words\nand of standard error"


def test_names_that_others_may_have_written_forge_no_line(bot: Bot, fake_docker: FakeDocker, tmp_path: Path) -> None:
    """Labels, and what a journal names."""
    forged = "bot\n✅ Database restored successfully\x1b[2J"
    with pytest.raises(ServicesDownError) as down:
        bot.start([forged])
    assert f"{down.value} {down.value.services}".isprintable()
    assert inspected(labels={"service": forged}).service == forged
    assert named([inspected(labels={"service": forged})]).isprintable()
    for name in ("one\n✅", "other"):
        fake_docker.has(
            of(name.strip("\n✅"), labels={"project": name, "project.config_files": str(tmp_path / "a.yml")})
        )
    (tmp_path / "a.yml").touch()
    with pytest.raises(UnusableComposeFileError) as ambiguous:
        Bot.find(tmp_path / "a.yml", DATABASE)
    assert str(ambiguous.value).isprintable()


def test_container_that_is_gone_is_told_and_how_to_make_it(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(of("redis"))
    with pytest.raises(ServicesDownError) as raised:
        bot.start(["shopbot-bot-1", "shopbot-redis-1"])
    assert "shopbot-bot-1 no longer exists" in str(raised.value)
    assert raised.value.services == "but shopbot-bot-1 is NOT running"
    assert f"docker compose -p shopbot -f {FILE} up -d" in raised.value.hint


# --- its log ---------------------------------------------------------------------------------------------------------


def log_of(bot: Bot, docker: FakeDocker, text: bytes) -> list[str]:
    docker.logs(inspected().id, text)
    return bot._log_of(inspected()).splitlines()


def test_log_is_its_last_lines_cut_short(bot: Bot, fake_docker: FakeDocker) -> None:
    lines = log_of(bot, fake_docker, b"".join(b"%d %s\n" % (number, b"x" * 1000) for number in range(100)))
    assert len(lines) == LOG_LINES
    assert lines[0].startswith("96 x")
    assert lines[-1] == "and of standard error"
    assert max(map(len, lines)) == LOG_COLUMNS
    assert fake_docker.called("logs") == [["--tail", str(LOG_LINES), inspected().id]]


def test_log_steers_no_terminal_whatever_it_holds(bot: Bot, fake_docker: FakeDocker) -> None:
    lines = log_of(bot, fake_docker, b"\x1b[2J\xff\x00 a\rb \xe2\x80\xae\n")
    assert all(line.isprintable() for line in lines)


def test_passphrase_of_the_database_is_not_in_its_log(bot: Bot, fake_docker: FakeDocker) -> None:
    lines = log_of(bot, fake_docker, b"x" * 195 + f" key: {DB_PASS}\nkey: {DB_PASS}.\n".encode())
    assert not any("pa=s" in line for line in lines)
    assert "key: ***." in lines


@pytest.mark.parametrize("db_pass", [None, Secret("")])
def test_log_is_left_as_it_is_without_a_passphrase(fake_docker: FakeDocker, db_pass: Secret | None) -> None:
    bot = Bot(FILE, DATABASE, "shopbot", db_pass)
    assert log_of(bot, fake_docker, b"a line\n")[0] == "a line"


def test_log_that_cannot_be_read_is_told_as_that(bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.fails("logs", "configured logging driver does not support reading")
    assert "logging driver" in bot._log_of(inspected())


# --- coming up -------------------------------------------------------------------------------------------------------

CHECK = {"Test": ["CMD", "true"], "Interval": SECOND // 2, "Timeout": SECOND // 2, "Retries": 3, "StartPeriod": SECOND}
"""Comes to a verdict within 4 s, and is not run by us: its next turn is near."""

SLOW_CHECK = {**CHECK, "Interval": 30 * SECOND}


def health(status: str, check: Data = CHECK) -> Data:
    return {"State_Health": {"Status": status}, "Config_Healthcheck": check}


Watch = Callable[..., Coming]


@pytest.fixture
def watch(fake_docker: FakeDocker) -> Watch:
    """watch(data, …, unhealthy=(…)): containers that did not run, and have been started; looked at once."""

    def begin(*containers: Data, unhealthy: tuple[str, ...] = ()) -> Coming:
        fake_docker.has(*containers)
        before = [{**data, "State": {**data["State"], "Running": False, "Status": "exited"}} for data in containers]
        coming = Coming([Container.from_inspect(data) for data in before], unhealthy)
        coming.look()
        return coming

    return begin


def after(coming: Coming, seconds: float) -> Coming:
    """The same, looked at so much later."""
    coming._now += seconds
    return coming


def test_container_without_a_health_check_is_up_when_it_stays_up(watch: Watch) -> None:
    coming = watch(of("bot"))
    assert not coming.settled
    assert not after(coming, SETTLE_SECONDS - 0.5).settled
    assert after(coming, 1).settled
    assert coming.down() is None
    assert str(coming) == "bot running"


def test_container_with_a_health_check_is_up_when_it_is_healthy(watch: Watch, fake_docker: FakeDocker) -> None:
    coming = watch(of("bot", **health("starting")))
    assert not after(coming, 30).settled
    assert coming.down() is None
    fake_docker.has(of("bot", **health("healthy")))
    coming.look()
    assert coming.settled
    assert str(coming) == "bot healthy"


def test_one_that_is_up_does_not_make_up_for_another(watch: Watch) -> None:
    coming = watch(of("bot", **health("healthy")), of("worker"))
    assert not coming.settled
    assert after(coming, SETTLE_SECONDS + 1).settled
    assert str(coming) == "bot healthy, worker running"


def test_one_crash_at_the_start_is_no_loop(watch: Watch, fake_docker: FakeDocker) -> None:
    """It must stay up longer then."""
    coming = watch(of("bot", RestartCount=1, State_ExitCode=1))
    assert coming.down() is None
    assert not after(coming, 1.5 * SETTLE_SECONDS).settled
    assert after(coming, SETTLE_SECONDS + 1).settled


def test_restarts_from_before_are_no_loop(fake_docker: FakeDocker) -> None:
    """A container that runs already, as after a recovery, keeps its count when it is started."""
    before = of("bot", RestartCount=70)
    fake_docker.has(before)
    coming = Coming([Container.from_inspect(before)], ())
    coming.look()
    assert coming.down() is None
    assert after(coming, SETTLE_SECONDS + 1).settled
    fake_docker.has(of("bot", RestartCount=70 + MOST_RESTARTS + 1))
    coming.look()
    down = coming.down()
    assert down
    assert "4 times" in down[1]


def test_restarts_from_before_the_stop_do_not_hide_a_loop(fake_docker: FakeDocker) -> None:
    """Docker counts anew when it starts a container that did not run."""
    coming = Coming([Container.from_inspect(of("bot", RestartCount=70, **STOPPED))], ())
    fake_docker.has(of("bot", RestartCount=MOST_RESTARTS + 1, **RESTARTING))
    coming.look()
    assert coming.down()


def test_time_that_counts_begins_anew_with_each_start(watch: Watch, fake_docker: FakeDocker) -> None:
    coming = watch(of("bot"))
    began = coming.up_at
    fake_docker.has(of("bot", RestartCount=1, State_StartedAt="2025-01-30T12:00:09Z"))
    coming.look()
    assert coming.up_at > began
    fake_docker.has(of("bot", RestartCount=1, **RESTARTING))
    coming.look()
    assert not after(coming, 10 * SETTLE_SECONDS).settled


def test_time_when_all_are_up_is_that_of_the_last_one(watch: Watch, fake_docker: FakeDocker) -> None:
    coming = watch(of("bot"), of("worker", **STOPPED))
    first = coming.up_at
    fake_docker.has(of("worker"))
    coming.look()
    assert coming.up_at > first
    last = coming.up_at
    coming.look()
    assert coming.up_at == last


@pytest.mark.parametrize(
    ("changes", "waited", "reason"),
    [
        ({}, 10 * START_SECONDS, ""),  # it is up
        (health("starting"), START_SECONDS + 3, ""),
        (health("starting"), START_SECONDS + 5, "is not up after 65 s (starting)"),
        (health("unhealthy"), 0, "is unhealthy"),
        ({"State_Status": "created", "State_Running": False}, START_SECONDS - 1, ""),
        ({"State_Status": "created", "State_Running": False}, START_SECONDS + 1, "is not up after 61 s (created)"),
        ({**RESTARTING, "RestartCount": MOST_RESTARTS}, 0, ""),
        (
            {**RESTARTING, "RestartCount": MOST_RESTARTS + 1, "State_ExitCode": 3},
            0,
            "restarts in a loop (4 times so far, exit code 3)",
        ),
        ({**STOPPED, "State_ExitCode": 137}, 0.5, ""),  # as it was before the start
        ({**STOPPED, "State_ExitCode": 137}, 2, "has ended with exit code 137"),
        ({"State_Running": False, "State_Status": "dead"}, 2, "has ended with exit code 0"),
    ],
    ids=str,
)
def test_container_is_down_when_it_will_not_come_up_by_waiting(
    watch: Watch, changes: Data, waited: float, reason: str
) -> None:
    coming = watch(of("redis"), of("bot", **changes))
    down = after(coming, waited).down()
    assert (down[1] if down else "") == reason
    if down:
        assert down[0].service == "bot"
        assert not coming.settled


def test_container_that_was_unhealthy_before_is_judged_as_one_without_a_health_check(watch: Watch) -> None:
    coming = watch(of("bot", **health("unhealthy")), unhealthy=("shopbot-bot-1",))
    assert coming.down() is None
    assert not coming.settled
    assert after(coming, SETTLE_SECONDS + 1).settled
    assert str(coming) == "bot running"
    assert named(coming.still_unhealthy) == "bot"


def test_container_that_has_become_healthy_is_not_told_as_unhealthy(watch: Watch) -> None:
    coming = watch(of("bot", **health("healthy")), of("redis"), unhealthy=("shopbot-bot-1", "shopbot-redis-1"))
    assert coming.still_unhealthy == []


@pytest.mark.parametrize(
    ("states", "text"),
    [
        ([health("unhealthy"), {}], "but bot is unhealthy"),
        ([STOPPED, {}], "but bot is NOT running"),
        ([health("unhealthy"), STOPPED], "but worker is NOT running"),
        ([STOPPED, STOPPED], "but bot, worker are NOT running"),
    ],
)
def test_what_is_down_is_what_does_not_run_and_else_what_is_not_well(
    watch: Watch, states: list[Data], text: str
) -> None:
    coming = after(watch(of("bot", **states[0]), of("worker", **states[1])), 2)
    down = coming.down()
    assert down
    assert coming.what_is_down(*down) == text


def test_replicas_that_are_down_are_one_service(watch: Watch) -> None:
    replica = {**of("bot", **STOPPED), "Id": "2f" * 32, "Name": "/shopbot-bot-2"}
    coming = after(watch(of("bot", **STOPPED), replica), 2)
    down = coming.down()
    assert down
    assert coming.what_is_down(*down) == "but bot is NOT running"


# --- its own health check, run by us ---------------------------------------------------------------------------------


def test_health_check_whose_turn_is_far_off_is_run_at_once(watch: Watch, fake_docker: FakeDocker) -> None:
    data = of("bot", **health("starting", SLOW_CHECK))
    fake_docker.probes(data["Id"], 0)
    coming = watch(data)
    assert fake_docker.called("exec") == [[data["Id"], "true"]]
    assert not after(coming, 0.7).settled  # it must go on passing
    assert after(coming, 0.7).settled
    assert coming.up_at < coming._now


def test_health_check_that_fails_only_at_first_is_run_until_it_passes(watch: Watch, fake_docker: FakeDocker) -> None:
    data = of("bot", **health("starting", SLOW_CHECK))
    fake_docker.probes(data["Id"], 1)
    coming = watch(data)
    assert not after(coming, START_SECONDS).settled
    assert coming.down() is None
    fake_docker.probes(data["Id"], 0)
    coming.look()
    passed = coming.up_at
    fake_docker.probes(data["Id"], 1)
    coming.look()
    assert not after(coming, 5).settled
    fake_docker.probes(data["Id"], 0)
    coming.look()
    assert coming.up_at > passed


@pytest.mark.parametrize(
    "changes",
    [
        health("starting", CHECK),  # its next turn is near
        health("healthy", SLOW_CHECK),
        health("unhealthy", SLOW_CHECK),
        {**health("starting", SLOW_CHECK), **RESTARTING},
        {},
    ],
    ids=str,
)
def test_health_check_is_not_run_where_docker_knows_or_soon_will(
    watch: Watch, fake_docker: FakeDocker, changes: Data
) -> None:
    watch(of("bot", **changes))
    assert fake_docker.called("exec") == []


def test_health_check_of_what_was_unhealthy_before_is_not_run(watch: Watch, fake_docker: FakeDocker) -> None:
    watch(of("bot", **health("starting", SLOW_CHECK)), unhealthy=("shopbot-bot-1",))
    assert fake_docker.called("exec") == []


def test_health_check_passes_with_exit_code_0(fake_docker: FakeDocker) -> None:
    item, check = inspected(), HealthCheck(("/bin/sh", "-c", "a | b"))
    fake_docker.probes(item.id, 0)
    assert passes(item, check)
    assert fake_docker.called("exec") == [[item.id, "/bin/sh", "-c", "a", "|", "b"]]
    fake_docker.probes(item.id, 1)
    assert not passes(item, check)


@pytest.mark.timeout(10)
def test_health_check_that_does_not_end_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert not passes(inspected(), HealthCheck(("true",), timeout=0.2))


# --- for people ------------------------------------------------------------------------------------------------------


def test_services_are_named_once_each_in_order() -> None:
    items = [Container.from_inspect(of(name)) for name in ("worker", "bot")]
    assert named([*items, replace(items[0], id="another", name="shopbot-worker-2")]) == "bot, worker"
    assert named([]) == ""
