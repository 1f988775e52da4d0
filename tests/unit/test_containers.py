"""What `docker inspect` says of a container, and where it has a folder of this host; no engine is asked."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from backuplib.containers import HealthCheck, Mount, inspect_containers, list_containers
from backuplib.errors import DockerUnreachableError, MissingProgramError
from tests.support.inspected import INSPECT, SECOND, FakeDocker, inspect_data, inspected, mounted

ID = str(INSPECT["Id"])

# --- reading ---------------------------------------------------------------------------------------------------------


def test_all_that_is_used_is_read() -> None:
    item = inspected(HostConfig_GroupAdd=["2345"], State_Pid=4711)
    assert vars(item) == {
        "id": ID,
        "name": "shopbot-bot-1",
        "service": "bot",
        "project": "shopbot",
        "compose_files": (Path("/srv/shopbot/docker-compose.prod.yml"),),
        "compose_command": "docker compose",
        "oneoff": False,
        "running": True,
        "status": "running",
        "pid": 4711,
        "started_at": "2025-01-30T12:00:01.123456789Z",
        "restart_count": 0,
        "exit_code": 0,
        "health": "healthy",
        "check": HealthCheck(("python", "-c", "import bot"), interval=2, timeout=3, retries=4, start_period=10),
        "stop_seconds": 20,
        "user": "1000:1000",
        "groups": ("2345",),
        "joined": (),
        "mounts": (
            Mount(Path("/srv/shopbot/data"), PurePosixPath("/bot/data"), writable=True),
            Mount(Path("/srv/shopbot/config"), PurePosixPath("/bot/config"), writable=False),
            Mount(Path("/var/lib/docker/volumes/cache/_data"), PurePosixPath("/cache"), writable=True, volume="cache"),
        ),
        "settings": {"DB_NAME": "shop.db", "DB_PASS": "pa=ss'word", "DB_ENCRYPTION": "true"},
    }


def test_secrets_of_its_environment_are_not_in_what_is_printed_of_it() -> None:
    assert "pa=ss'word" not in repr(inspected())
    assert "123:abc" not in f"{vars(inspected())}"  # not even read


def test_container_that_no_compose_made_is_of_no_service() -> None:
    for item in (inspected(Config_Labels=None), inspected(Config_Labels={})):
        assert (item.service, item.project, item.compose_files, item.oneoff) == ("", "", (), False)
        assert str(item) == "shopbot-bot-1"


def test_what_docker_leaves_out_has_dockers_defaults() -> None:
    item = inspected(
        State_Health=None,
        Config_Healthcheck=None,
        Config_StopTimeout=None,
        Config_User="",
        Config_Env=None,
        HostConfig={},
        Mounts=[],
    )
    assert (item.health, item.check, item.stop_seconds, item.user) == ("", None, 10.0, "")
    assert (item.groups, item.joined, item.mounts, item.settings) == ((), (), (), {})


def test_health_that_docker_calls_none_is_none() -> None:
    assert inspected(State_Health={"Status": "none"}).health == ""


@pytest.mark.parametrize(
    ("text", "settings"),
    [("ANOTHER_DB_NAME=x", {}), ("DB_NAME=", {"DB_NAME": ""}), ("DB_PASS=a=b", {"DB_PASS": "a=b"})],
)
def test_setting_that_a_container_does_not_have_is_not_given(text: str, settings: dict[str, str]) -> None:
    assert inspected(Config_Env=[text]).settings == settings


def test_container_of_compose_run_is_no_service() -> None:
    assert inspected(labels={"oneoff": "True"}).oneoff  # both versions of Compose write it with a capital


@pytest.mark.parametrize(("version", "command"), [("1.29.2", "docker-compose"), ("2.32.4", "docker compose")])
def test_hints_name_the_compose_that_made_it(version: str, command: str) -> None:
    assert inspected(labels={"version": version}).compose_command == command


@pytest.mark.parametrize("mode", ["NetworkMode", "PidMode", "IpcMode"])
def test_container_that_shares_with_another_says_with_which(mode: str) -> None:
    assert inspected(HostConfig={mode: f"container:{'1f' * 32}"}).joined == ("1f" * 32,)


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


# --- compose files ---------------------------------------------------------------------------------------------------


def test_path_that_compose_v1_wrote_relative_to_where_it_was_called_is_found(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "docker-compose.prod.yml").touch()
    for name in ("docker-compose.prod.yml", "./docker-compose.prod.yml", "shop/docker-compose.prod.yml"):
        item = inspected(labels={"project.working_dir": str(shop), "project.config_files": name})
        assert item.compose_files == ((shop / "docker-compose.prod.yml").resolve(),)


def test_compose_file_of_a_stranger_that_cannot_be_looked_at_is_no_obstacle(tmp_path: Path) -> None:
    """It may lie where we have no permission, or have a name that this system does not take."""
    for odd in (tmp_path / ("x" * 300) / "c.yml", Path("/proc/self/mem/c.yml"), tmp_path / "not there" / "c.yml"):
        labels = {"com.docker.compose.project.config_files": str(odd), "com.docker.compose.project": "theirs"}
        item = inspected(Config_Labels=labels)
        assert [path.name for path in item.compose_files] == ["c.yml"]


def test_each_file_of_compose_v2_is_named(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("one.yml", "two.yml")]
    item = inspected(labels={"project.working_dir": str(tmp_path), "project.config_files": ",".join(names)})
    assert [str(path) for path in item.compose_files] == names


def test_links_to_a_compose_file_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real.yml").touch()
    (tmp_path / "link.yml").symlink_to("real.yml")
    item = inspected(labels={"project.config_files": str(tmp_path / "link.yml")})
    assert item.compose_files == ((tmp_path / "real.yml").resolve(),)


# --- health check ----------------------------------------------------------------------------------------------------

SHELL = ("/bin/sh", "-c")


@pytest.mark.parametrize(
    ("check", "seconds"),
    [
        ({}, 3 * 60),
        ({"Interval": SECOND, "Timeout": SECOND, "Retries": 1}, 2),
        ({"Interval": SECOND // 2, "Timeout": SECOND, "Retries": 2, "StartPeriod": 60 * SECOND}, 63),
        ({"Interval": 0, "Timeout": 0, "Retries": 0, "StartPeriod": 0}, 3 * 60),
    ],
)
def test_health_check_may_take_what_it_allows_itself(check: dict[str, Any], seconds: float) -> None:
    """Where nothing is given, Docker has 30 s, 30 s and 3 attempts."""
    read = HealthCheck.from_config({"Test": ["CMD", "true"], **check}, SHELL)
    assert read
    assert read.allowed == seconds


@pytest.mark.parametrize("config", [{}, {"Test": None}, {"Test": []}, {"Test": ["NONE"]}, {"Interval": SECOND}])
def test_health_check_that_is_switched_off_is_none(config: dict[str, Any]) -> None:
    assert HealthCheck.from_config(config, SHELL) is None
    assert inspected(Config_Healthcheck=config).check is None


@pytest.mark.parametrize(
    ("test", "command"),
    [
        (["CMD", "python", "-c", "import bot; print('a b')"], ("python", "-c", "import bot; print('a b')")),
        (["CMD-SHELL", "wget -q localhost || exit 1"], ("/bin/sh", "-c", "wget -q localhost || exit 1")),
    ],
)
def test_command_of_a_health_check_is_that_which_docker_runs(test: list[str], command: tuple[str, ...]) -> None:
    check = inspected(Config_Healthcheck={"Test": test}).check
    assert check
    assert check.command == command


def test_shell_of_a_health_check_is_that_of_the_image() -> None:
    check = inspected(Config_Healthcheck={"Test": ["CMD-SHELL", "a | b"]}, Config_Shell=["/bin/bash", "-ec"]).check
    assert check
    assert check.command == ("/bin/bash", "-ec", "a | b")


# --- mounts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "inside", "writes"),
    [
        ("/srv/shopbot/data", "/bot/data", True),
        ("/srv/shopbot/data/deeper", "/bot/data", True),
        ("/srv/shopbot/config", "/bot/config", False),
        ("/var/lib/docker/volumes/cache/_data", "/cache", True),
        ("/var/lib/docker/volumes/cache/_data/x", "/cache", True),
        ("/srv/shopbot", None, False),
        ("/srv/shopbot/data2", None, False),
        ("/", None, False),
    ],
)
def test_container_has_what_is_mounted_and_below_and_may_write_there_or_not(
    folder: str, inside: str | None, writes: bool
) -> None:
    mount = inspected().mount_of(Path(folder))
    assert (mount and str(mount.inside)) == inside
    assert inspected().writes_into(Path(folder)) is writes


PARENT = mounted("/srv/shopbot", "/bot")


@pytest.mark.parametrize(
    ("others", "inside"),
    [
        ([], {"/bot"}),
        ([mounted("/srv/other", "/bot/data")], set()),
        ([mounted("/srv/other", "/bot/data", volume="other")], set()),
        ([mounted("/srv/shopbot/data", "/bot/data")], {"/bot/data"}),
        ([mounted("/srv/other", "/bot/data"), mounted("/srv/shopbot/data", "/elsewhere")], {"/elsewhere"}),
        ([mounted("/srv/other", "/bot/data2")], {"/bot"}),
        ([mounted("/srv/other", "/bot/dat")], {"/bot"}),
        ([mounted("/srv/other", "/bot/data/cache")], {"/bot"}),
        ([mounted("/srv/other", "/")], {"/bot"}),
    ],
    ids=str,
)
def test_mount_that_lies_over_the_folder_hides_it(others: list[dict[str, Any]], inside: set[str]) -> None:
    """In whatever order Docker names them."""
    found = {
        str(mount.inside)
        for mounts in ([*others, PARENT], [PARENT, *others])
        if (mount := inspected(Mounts=mounts).mount_of(Path("/srv/shopbot/data")))
    }
    assert found == inside


def test_folder_below_one_that_is_hidden_is_hidden() -> None:
    item = inspected(Mounts=[PARENT, mounted("/srv/other", "/bot/data")])
    assert item.mount_of(Path("/srv/shopbot/data/deeper")) is None
    assert item.mount_of(Path("/srv/shopbot/backups")) is not None


def test_links_to_what_is_mounted_are_followed(tmp_path: Path) -> None:
    """Docker follows them when the container is started; the folder that is asked for has none."""
    real = tmp_path / "disk/data"
    real.mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk")
    for source in (tmp_path / "link", tmp_path / "link/data"):
        assert inspected(Mounts=[mounted(source)]).writes_into(real)
    assert not inspected(Mounts=[mounted(tmp_path / "gone/data")]).writes_into(real)


def test_database_that_is_mounted_alone_is_not_its_folder(tmp_path: Path) -> None:
    (tmp_path / "shop.db").touch()
    assert inspected(Mounts=[mounted(tmp_path / "shop.db", "/bot/data/shop.db")]).mount_of(tmp_path) is None


@pytest.mark.parametrize("turned", [False, True])
def test_folder_that_is_mounted_twice_can_be_written_where_it_can_through_one_of_them(turned: bool) -> None:
    """As where an export reads what the bot writes."""
    data = Path("/srv/shopbot/data")
    mounts = [mounted(data, "/export", writable=False), mounted("/srv/shopbot", "/bot")]
    item = inspected(Mounts=mounts[::-1] if turned else mounts)
    assert item.writes_into(data)
    mount = item.mount_of(data)
    assert mount
    assert mount.writable


def test_mount_is_told_by_its_source_or_the_name_of_its_volume() -> None:
    bind, _, volume = inspected().mounts
    assert "/srv/shopbot/data" in str(bind)
    assert "/bot/data" in str(bind)
    assert "volume cache" in str(volume)
    assert "/var/lib" not in str(volume)


# --- who it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "added", "identity"),
    [
        ("", [], (0, set())),
        ("0", [], (0, set())),
        ("1000", [], (1000, set())),
        ("1000:2000", ["3000", "4000"], (1000, {2000, 3000, 4000})),
        (":2000", [], (0, {2000})),
        ("bot", [], None),
        ("bot:2000", [], None),
        ("1000:staff", [], None),
        ("1000", ["staff"], None),
    ],
)
def test_user_of_a_container_that_does_not_run_is_told_where_it_is_given_as_numbers(
    user: str, added: list[str], identity: tuple[int, set[int]] | None
) -> None:
    """A name is one of the image's own /etc/passwd."""
    assert inspected(Config_User=user, HostConfig_GroupAdd=added).identity() == identity


def test_user_of_a_container_that_runs_is_that_of_its_process() -> None:
    """Whatever name it is given by, and with its groups."""
    item = inspected(Config_User="bot", State_Pid=os.getpid())
    assert item.identity() == (os.geteuid(), {os.getegid(), *os.getgroups()})


@pytest.fixture
def other_user() -> Iterator[int]:
    """A process of another user, of three groups; its pid."""
    with subprocess.Popen(["sleep", "60"], user=1234, group=2345, extra_groups=[3456, 4567]) as process:
        yield process.pid
        process.kill()


@pytest.mark.needs("root")
def test_groups_of_a_container_that_runs_are_all_that_its_process_has(other_user: int) -> None:
    assert inspected(Config_User="", State_Pid=other_user).identity() == (1234, {2345, 3456, 4567})


# --- asking ----------------------------------------------------------------------------------------------------------


def test_containers_are_listed_and_described(fake_docker: FakeDocker) -> None:
    one, other = inspect_data(service="bot"), inspect_data(service="redis", State_Running=False)
    fake_docker.has(one, other)
    assert list_containers() == [one["Id"]]
    assert sorted(list_containers("-a")) == sorted([one["Id"], other["Id"]])
    assert [item.service for item in inspect_containers([other["Id"], one["Id"]])] == ["redis", "bot"]


def test_container_that_has_gone_meanwhile_is_left_out(fake_docker: FakeDocker) -> None:
    fake_docker.has(inspect_data())
    assert [item.id for item in inspect_containers(["1f" * 32, ID])] == [ID]
    assert inspect_containers(["1f" * 32]) == []


def test_nothing_is_asked_about_no_containers(fake_docker: FakeDocker) -> None:
    assert inspect_containers([]) == []
    assert fake_docker.calls == []


def test_docker_that_does_not_answer_is_told_and_how_to_do_without_it(fake_docker: FakeDocker) -> None:
    fake_docker.fails("ps", "permission denied while trying to connect to the Docker daemon socket")
    with pytest.raises(DockerUnreachableError) as raised:
        list_containers()
    assert "permission denied" in str(raised.value)
    assert "--no-restart" in raised.value.hint


def test_docker_that_is_not_installed_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingProgramError) as raised:
        list_containers()
    assert "docker is not installed" in str(raised.value)
    assert "--no-restart" in raised.value.hint
