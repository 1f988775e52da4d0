"""What `docker inspect` says of a container, and what follows from it; no engine is asked."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backuplib.compose import START_SECONDS, ComposeProject, Container, _health_seconds
from backuplib.errors import ServicesDownError

SECOND = 10**9

INSPECT: dict[str, Any] = {
    "Id": "4f3c0e9d2b6a7f18c5d4e3b2a1908f7e6d5c4b3a29180f7e6d5c4b3a29180f7e",
    "Created": "2025-01-30T12:00:00.123456789Z",
    "Path": "python",
    "Args": ["-m", "bot"],
    "State": {
        "Status": "running",
        "Running": True,
        "Paused": False,
        "Restarting": False,
        "OOMKilled": False,
        "Dead": False,
        "Pid": 4711,
        "ExitCode": 0,
        "Error": "",
        "StartedAt": "2025-01-30T12:00:01.123456789Z",
        "FinishedAt": "0001-01-01T00:00:00Z",
        "Health": {"Status": "healthy", "FailingStreak": 0, "Log": []},
    },
    "Name": "/shopbot-bot-1",
    "RestartCount": 0,
    "HostConfig": {"RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0}},
    "Mounts": [
        {"Type": "bind", "Source": "/srv/shopbot/data", "Destination": "/app/data", "Mode": "rw", "RW": True},
        {"Type": "bind", "Source": "/srv/shopbot/config", "Destination": "/app/config", "Mode": "ro", "RW": False},
        {
            "Type": "volume",
            "Name": "cache",
            "Source": "/var/lib/docker/volumes/cache/_data",
            "Destination": "/cache",
            "RW": True,
        },
        {"Type": "tmpfs", "Source": "", "Destination": "/tmp", "Mode": "", "RW": True},
    ],
    "Config": {
        "Hostname": "4f3c0e9d2b6a",
        "User": "1000:1000",
        "Env": ["DB_NAME=shop.db"],
        "Healthcheck": {
            "Test": ["CMD", "python", "-c", "import bot"],
            "Interval": 2 * SECOND,
            "Timeout": 3 * SECOND,
            "StartPeriod": 10 * SECOND,
            "Retries": 4,
        },
        "StopTimeout": 20,
        "Labels": {
            "com.docker.compose.project": "shopbot",
            "com.docker.compose.service": "bot",
            "com.docker.compose.oneoff": "False",
            "com.docker.compose.container-number": "1",
            "com.docker.compose.project.working_dir": "/srv/shopbot",
            "com.docker.compose.project.config_files": "/srv/shopbot/docker-compose.prod.yml",
            "com.docker.compose.version": "2.32.4",
        },
    },
}
"""As Docker 27 prints it, shortened."""


def inspected(**changes: Any) -> Container:
    """The container with some of its values changed: State_Status="exited" changes State.Status."""
    data = copy.deepcopy(INSPECT)
    for name, value in changes.items():
        part, _, key = name.partition("_")
        (data[part] if key else data).update({key or part: value})
    return Container.from_inspect(data)


def labelled(**labels: str) -> Container:
    return inspected(
        Config_Labels={f"com.docker.compose.{name.replace('__', '.')}": text for name, text in labels.items()}
    )


# --- reading ---------------------------------------------------------------------------------------------------------


def test_all_that_is_used_is_read() -> None:
    assert inspected() == Container(
        id=INSPECT["Id"],
        name="shopbot-bot-1",
        service="bot",
        project="shopbot",
        compose_files=(Path("/srv/shopbot/docker-compose.prod.yml"),),
        oneoff=False,
        running=True,
        status="running",
        health="healthy",
        health_seconds=10 + 4 * (2 + 3),
        check_interval=2.0,
        stop_seconds=20,
        restart_count=0,
        exit_code=0,
        mounts=(
            (Path("/srv/shopbot/data"), True),
            (Path("/srv/shopbot/config"), False),
            (Path("/var/lib/docker/volumes/cache/_data"), True),
        ),
    )


def test_container_that_no_compose_made_is_of_no_service() -> None:
    for item in (inspected(Config_Labels=None), inspected(Config_Labels={})):
        assert (item.service, item.project, item.compose_files, item.oneoff) == ("", "", (), False)


def test_what_docker_leaves_out_has_dockers_defaults() -> None:
    item = inspected(State_Health=None, Config_Healthcheck=None, Config_StopTimeout=None, Mounts=[])
    assert (item.health, item.check_interval, item.stop_seconds, item.mounts) == ("", 0.0, 10.0, ())


def test_container_of_compose_run_is_no_service() -> None:
    assert labelled(service="bot", oneoff="True").oneoff  # both versions of Compose write it with a capital


def test_path_that_compose_v1_wrote_relative_to_where_it_was_called_is_found(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "docker-compose.prod.yml").touch()
    for name in ("docker-compose.prod.yml", "./docker-compose.prod.yml", "shop/docker-compose.prod.yml"):
        item = labelled(project__working_dir=str(shop), project__config_files=name)
        assert item.compose_files == ((shop / "docker-compose.prod.yml").resolve(),)


def test_each_file_of_compose_v2_is_named(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("one.yml", "two.yml")]
    item = labelled(project__working_dir=str(tmp_path), project__config_files=",".join(names))
    assert [str(path) for path in item.compose_files] == names


def test_links_to_a_compose_file_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real.yml").touch()
    (tmp_path / "link.yml").symlink_to("real.yml")
    item = labelled(project__working_dir=str(tmp_path), project__config_files=str(tmp_path / "link.yml"))
    assert item.compose_files == ((tmp_path / "real.yml").resolve(),)


@pytest.mark.parametrize(
    ("check", "seconds"),
    [
        ({}, 3 * 60),
        ({"Test": ["CMD", "true"], "Interval": SECOND, "Timeout": SECOND, "Retries": 1}, 2),
        ({"Interval": SECOND, "Timeout": SECOND, "Retries": 1, "StartPeriod": 60 * SECOND}, 62),
        ({"Interval": 0, "Timeout": 0, "Retries": 0, "StartPeriod": 0}, 3 * 60),
    ],
)
def test_health_check_may_take_what_it_allows_itself(check: dict[str, Any], seconds: float) -> None:
    assert _health_seconds(check) == seconds


def test_health_check_that_is_switched_off_is_none() -> None:
    assert inspected(Config_Healthcheck={"Test": ["NONE"]}).check_interval == 0


# --- what follows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "restarting", "status", "is_running", "active"),
    [
        (True, False, "running", True, True),
        (True, False, "paused", True, True),
        (True, True, "restarting", False, True),
        (False, False, "exited", False, False),
        (False, False, "created", False, False),
        (False, False, "dead", False, False),
    ],
)
def test_container_that_restarts_in_a_loop_does_not_run_but_will(
    running: bool, restarting: bool, status: str, is_running: bool, active: bool
) -> None:
    item = inspected(State_Running=running, State_Restarting=restarting, State_Status=status)
    assert (item.running, item.active) == (is_running, active)


@pytest.mark.parametrize(
    ("folder", "writes"),
    [
        ("/srv/shopbot/data", True),
        ("/srv/shopbot/data/deeper", True),
        ("/srv/shopbot", False),
        ("/srv/shopbot/data2", False),
        ("/srv/shopbot/config", False),
        ("/var/lib/docker/volumes/cache/_data/x", True),
    ],
)
def test_container_writes_into_what_is_mounted_writable_and_below(folder: str, writes: bool) -> None:
    assert inspected().writes_into(Path(folder)) is writes


FILE = Path("/srv/shopbot/docker-compose.prod.yml")


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
def test_project_owns_the_services_of_its_file_and_name(changes: dict[str, Any], owned: bool) -> None:
    assert ComposeProject((FILE,), "shopbot", ("docker", "compose")).owns(replace(inspected(), **changes)) is owned


@pytest.mark.parametrize(
    ("changes", "waited", "down"),
    [
        ({}, 0, False),
        ({}, START_SECONDS, False),
        ({"health": "starting"}, START_SECONDS + 29, False),
        ({"health": "starting"}, START_SECONDS + 31, True),
        ({"health": "unhealthy"}, 0, True),
        ({"health": "", "status": "created", "running": False}, START_SECONDS + 1, True),
        ({"status": "restarting", "running": False}, 0, True),
        ({"restart_count": 1}, 0, True),
        ({"status": "exited", "running": False}, 0.5, False),  # as it was before the start
        ({"status": "exited", "running": False}, 2, True),
        ({"status": "dead", "running": False}, 2, True),
    ],
)
def test_service_is_down_when_it_will_not_come_up_by_waiting(
    changes: dict[str, Any], waited: float, down: bool
) -> None:
    project = ComposeProject((FILE,), "shopbot", ("docker", "compose"))
    item = replace(inspected(), **changes)
    if not down:
        project._check(item, waited)
        return
    with pytest.raises(ServicesDownError) as raised:
        project._check(item, waited)
    assert "bot" in str(raised.value)
    assert "logs" in raised.value.hint
