"""What `docker inspect` says of a container, as a value; and a `docker` that prints it, where no engine is needed."""

import copy
import json
from pathlib import Path
from typing import Any

from backuplib.containers import Container

SECOND = 10**9
"""In nanoseconds, as Docker counts."""

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
        "Pid": 0,
        "ExitCode": 0,
        "Error": "",
        "StartedAt": "2025-01-30T12:00:01.123456789Z",
        "FinishedAt": "0001-01-01T00:00:00Z",
        "Health": {"Status": "healthy", "FailingStreak": 0, "Log": []},
    },
    "Name": "/shopbot-bot-1",
    "RestartCount": 0,
    "HostConfig": {
        "NetworkMode": "shopbot_default",
        "PidMode": "",
        "IpcMode": "private",
        "GroupAdd": None,
        "RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0},
    },
    "Mounts": [
        {"Type": "bind", "Source": "/srv/shopbot/data", "Destination": "/bot/data", "Mode": "rw", "RW": True},
        {"Type": "bind", "Source": "/srv/shopbot/config", "Destination": "/bot/config", "Mode": "ro", "RW": False},
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
        "Env": ["PATH=/usr/bin:/bin", "DB_NAME=shop.db", "DB_PASS=pa=ss'word", "DB_ENCRYPTION=true", "TOKEN=123:abc"],
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
"""As Docker 27 prints it, shortened. No process has its Pid."""


def inspect_data(**changes: Any) -> dict[str, Any]:
    """INSPECT with some of its values changed: State_Status="exited" changes State.Status, service="x" all of one."""
    data = copy.deepcopy(INSPECT)
    if service := changes.pop("service", None):
        data["Id"], data["Name"] = f"{service.encode().hex():0<64}", f"/shopbot-{service}-1"
        data["Config"]["Labels"]["com.docker.compose.service"] = service
    for name, value in changes.pop("labels", {}).items():
        data["Config"]["Labels"][f"com.docker.compose.{name}"] = value
    for name, value in changes.items():
        part, _, key = name.partition("_")
        (data[part] if key else data).update({key or part: value})
    return data


def inspected(**changes: Any) -> Container:
    """The container of INSPECT, changed."""
    return Container.from_inspect(inspect_data(**changes))


def mounted(
    source: Path | str, inside: str = "/bot/data", *, writable: bool = True, volume: str = ""
) -> dict[str, Any]:
    """One of its mounts."""
    kind = {"Type": "volume", "Name": volume} if volume else {"Type": "bind"}
    return {**kind, "Source": str(source), "Destination": inside, "Mode": "", "RW": writable}


SCRIPT = r"""#!/bin/sh
cd "${0%/*}/containers" || exit
echo "$*" >>../calls
command=$1
shift
if [ -f "../$command.fails" ]; then
    cat "../$command.fails" >&2
    exit 1
fi
code=0
case $command in
ps)
    state='"Running": true' label=
    case " $* " in *' -a '*) state= ;; esac
    case $* in
    *label=*=*) label="\"com.docker.compose.project\": \"${*##*=}\"" ;;
    *label=*) label='"com.docker.compose.project"' ;;
    esac
    for file in *.json; do
        grep -qF "$state" "$file" && grep -qF "$label" "$file" && echo "${file%.json}"
    done ;;
inspect)
    comma='['
    for id in "$@"; do
        [ "$id" = --type=container ] && continue
        if [ -f "$id.json" ]; then
            printf %s "$comma"
            cat "$id.json"
            comma=,
        else
            echo "Error response from daemon: No such container: $id" >&2
            code=1
        fi
    done
    [ "$comma" = , ] || printf '['
    echo ']' ;;
start | stop)
    for id in "$@"; do
        [ ! -f "$id.$command" ] || cp "$id.$command" "$id.json"
    done ;;
exec) code=$(cat "$1.exec") ;;
logs) for id in "$@"; do :; done; cat "$id.log"; echo 'and of standard error' >&2 ;;
esac
exit "$code"
"""


class FakeDocker:
    """A folder with a `docker` that prints what the test has put there: a real child process, and no engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "containers").mkdir(parents=True)
        script = folder / "docker"
        script.write_text(SCRIPT)
        script.chmod(0o755)

    def has(self, *containers: dict[str, Any], after: str = "") -> None:
        """It has these containers; or they are so after each `docker start` or `docker stop`."""
        for data in containers:
            path = self.folder / "containers" / f"{data['Id']}.{after or 'json'}"
            path.write_text(json.dumps(data))

    def forget(self, identity: str) -> None:
        """A container is removed."""
        (self.folder / "containers" / f"{identity}.json").unlink()

    def logs(self, identity: str, text: bytes) -> None:
        """What a container has printed."""
        (self.folder / "containers" / f"{identity}.log").write_bytes(text)

    def probes(self, identity: str, code: int) -> None:
        """With what a command ends that is run inside."""
        (self.folder / "containers" / f"{identity}.exec").write_text(f"{code}\n")

    def fails(self, command: str, message: str = "refused") -> None:
        """A command of Docker fails, and nothing comes of it."""
        (self.folder / f"{command}.fails").write_text(f"{message}\n")

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of each call until now."""
        path = self.folder / "calls"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def called(self, command: str) -> list[list[str]]:
        """The arguments of the calls of one command."""
        return [words for name, *words in self.calls if name == command]
