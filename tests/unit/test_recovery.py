"""What a journal may make the next run stop or start, whoever wrote it; and what is told where it was removed."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backuplib.bot import Bot
from backuplib.errors import UnfinishedRestoreError
from backuplib.journal import Journal
from backuplib.recovery import refuse_forged_exchange, told_of_leftovers, within_reach
from backuplib.target import Target
from tests.support.inspected import FakeDocker, inspect_data, mounted
from tests.support.journals import begun_journal

FILE = Path("/srv/shopbot/docker-compose.prod.yml")
STOPPED = {"State_Running": False, "State_Status": "exited"}
NOWHERE = [mounted("/srv/shopbot/redis", "/data")]


@pytest.fixture
def target(tmp_path: Path) -> Target:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shop.db").write_bytes(b"live")
    return Target(tmp_path / "data/shop.db")


@pytest.fixture
def bot(target: Target) -> Bot:
    return Bot(FILE, target.path, "shopbot")


def journal(target: Target, *services: str) -> Journal:
    """One that names the containers of these services."""
    return begun_journal(target, containers=tuple(f"shopbot-{service}-1" for service in services))


def of(service: str, target: Target, **changes: Any) -> dict[str, Any]:
    """A container that has the database's folder, unless its mounts are given."""
    changes = {"Mounts": [mounted(target.path.parent)], "Config_Healthcheck": None, "State_Health": None} | changes
    return inspect_data(service=service, **changes)


def test_journal_reaches_those_that_have_the_folder_and_what_shares_with_them(
    target: Target, bot: Bot, fake_docker: FakeDocker
) -> None:
    main = of("bot", target, **STOPPED)
    reader = of("reader", target, Mounts=[mounted(target.path.parent, writable=False)])
    tunnel = of("tunnel", target, Mounts=[], HostConfig={"NetworkMode": f"container:{main['Id']}"})
    fake_docker.has(main, reader, tunnel)
    planted = journal(target, "bot", "reader", "tunnel")
    assert [*within_reach(planted, bot, ())] == []
    assert len(planted.containers) == 3


def test_journal_does_not_reach_other_services_of_the_project(
    target: Target, bot: Bot, fake_docker: FakeDocker
) -> None:
    fake_docker.has(of("bot", target, **STOPPED), of("redis", target, Mounts=NOWHERE, **STOPPED))
    fake_docker.has(of("caddy", target, Mounts=[]))
    planted = journal(target, "bot", "redis", "caddy")
    told = " ".join(within_reach(planted, bot, ()))
    assert planted.containers == ("shopbot-bot-1",)
    assert "docker start shopbot-redis-1" in told
    assert "start shopbot-caddy-1" not in told, "it runs"


def test_service_that_the_command_line_names_is_reached_whatever_it_has(
    target: Target, bot: Bot, fake_docker: FakeDocker
) -> None:
    fake_docker.has(of("bot", target, **STOPPED), of("redis", target, Mounts=NOWHERE, **STOPPED))
    planted = journal(target, "bot", "redis")
    assert [*within_reach(planted, bot, ["redis"])] == []
    assert planted.containers == ("shopbot-bot-1", "shopbot-redis-1")


def test_journal_does_not_reach_another_project(target: Target, bot: Bot, fake_docker: FakeDocker) -> None:
    """What no container of the bot has as its name is missing, and told as that when the bot is started."""
    fake_docker.has(of("bot", target), of("db", target, labels={"project": "neighbour"}, **STOPPED))
    planted = journal(target, "bot", "db")
    assert [*within_reach(planted, bot, ())] == []
    assert [item.name for item in bot.stopping(planted.containers)[0]] == ["shopbot-bot-1"]


def test_container_that_is_gone_stays_in_the_journal(target: Target, bot: Bot, fake_docker: FakeDocker) -> None:
    fake_docker.has(of("bot", target))
    real = journal(target, "bot", "worker")
    assert [*within_reach(real, bot, ())] == []
    assert real.containers == ("shopbot-bot-1", "shopbot-worker-1")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_services_that_a_journal_of_others_may_have_stopped_are_told_with_the_command(
    target: Target, bot: Bot, fake_docker: FakeDocker
) -> None:
    fake_docker.has(of("bot", target, **STOPPED), of("worker", target), of("redis", target, Mounts=NOWHERE, **STOPPED))
    journal(target, "bot", "redis").write()
    os.chown(target.journal, 1000, 1000)
    planted = Journal.load(target)
    assert planted
    told = " ".join(within_reach(planted, bot, ()))
    assert planted.containers == ()
    assert "1000" in told
    assert "docker start shopbot-bot-1" in told
    assert "worker" not in told
    assert "redis" not in told
    assert not {"stop", "start"} & {call[0] for call in fake_docker.calls}


@pytest.mark.parametrize("state", ["switching", "rolling back"])
def test_journal_of_others_that_says_there_was_no_database_removes_none(target: Target, state: str) -> None:
    told = replace(journal(target), state=state, existed=False, new_inode=target.path.stat().st_ino)
    told.write()
    refuse_forged_exchange(told)  # as it is our own
    target.journal.chmod(0o666)
    planted = Journal.load(target)
    assert planted
    with pytest.raises(UnfinishedRestoreError, match="could have been written by others") as raised:
        refuse_forged_exchange(planted)
    assert f"rm {target.journal}" in raised.value.hint
    planted.new_inode = 1  # the database is not what that restore has made
    refuse_forged_exchange(planted)


def test_what_was_set_aside_is_told_where_there_is_no_journal(target: Target) -> None:
    assert [*told_of_leftovers(target)] == []
    left = target.path.with_name("shop.db.backup-20250130-153045")
    for name in (left.name, f"{left.name}-wal", "shop.db.backup-of-mine", "bot.db.backup-20250130-153045"):
        target.path.with_name(name).write_bytes(b"old")
    (told,) = told_of_leftovers(target)
    assert left.name in told
    assert left.read_bytes() == b"old"
