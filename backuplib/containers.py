"""Containers: what Docker says of them, by `docker inspect`, and where they have a folder of this host."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from backuplib import errors
from backuplib.formatting import printable
from backuplib.processes import run_command

COMPOSE = "com.docker.compose."

NOTHING_TO_STOP = "When nothing is to be stopped: --no-restart"

SETTINGS = ("DB_NAME", "DB_ENCRYPTION", "DB_PASS")  # what is read of a container's environment


@dataclass(frozen=True)
class Mount:
    """A folder of this host, or a volume, inside a container."""

    source: Path
    inside: PurePosixPath
    writable: bool
    volume: str = ""

    def leads_to(self, path: Path) -> bool:
        """Whether it is this file or folder, whose path has no links in it."""
        try:
            return os.path.realpath(self.source) == str(path) or self.source.samefile(path)
        except OSError:  # without permission for /var/lib/docker, or not there any more
            return False

    def __str__(self) -> str:
        return f"{f'volume {self.volume}' if self.volume else self.source} as {self.inside}"


@dataclass(frozen=True)
class HealthCheck:
    """A container's health check; times in seconds, with Docker's defaults where none are given."""

    command: tuple[str, ...]
    interval: float = 30.0
    timeout: float = 30.0
    retries: int = 3
    start_period: float = 0.0

    @classmethod
    def from_config(cls, data: Mapping[str, Any], shell: Sequence[str]) -> HealthCheck | None:
        """Read `Config.Healthcheck`; None when there is no check, or it is switched off."""
        kind, *words = data.get("Test") or ["NONE"]
        if kind == "NONE":
            return None
        command = (*shell, *words) if kind == "CMD-SHELL" else tuple(words)
        times = {name: (data.get(key) or 0) / 1e9 for name, key in _TIMES.items()}  # Docker gives nanoseconds
        given = {name: value for name, value in times.items() if value}
        return cls(command, retries=data.get("Retries") or 3, **given)

    @property
    def allowed(self) -> float:
        """How long it may take to come to a verdict."""
        return self.start_period + self.retries * (self.interval + self.timeout)


_TIMES = {"interval": "Interval", "timeout": "Timeout", "start_period": "StartPeriod"}


@dataclass(frozen=True)
class Container:
    """What `docker inspect` says of a container. ``settings`` are those that a bot has in its environment."""

    id: str
    name: str
    service: str
    project: str
    compose_files: tuple[Path, ...]
    compose_command: str
    oneoff: bool
    running: bool
    status: str
    pid: int
    started_at: str
    restart_count: int
    exit_code: int
    health: str
    check: HealthCheck | None
    stop_seconds: float
    user: str
    groups: tuple[str, ...]
    joined: tuple[str, ...]
    mounts: tuple[Mount, ...]
    settings: Mapping[str, str] = field(repr=False)

    @classmethod
    def from_inspect(cls, data: dict[str, Any]) -> Container:
        """Read one element of the JSON of `docker inspect`."""
        state, config, host = data["State"], data["Config"], data["HostConfig"]
        labels = {name.removeprefix(COMPOSE): text for name, text in (config.get("Labels") or {}).items()}
        folder = Path(labels.get("project.working_dir", "/"))
        files = labels.get("project.config_files", "")
        environment = dict(text.partition("=")[::2] for text in config.get("Env") or ())
        modes = (str(host.get(name) or "") for name in ("NetworkMode", "PidMode", "IpcMode"))
        return cls(
            id=data["Id"],
            name=data["Name"].lstrip("/"),
            service=labels.get("service", ""),
            project=labels.get("project", ""),
            compose_files=tuple(_compose_file(folder, name) for name in files.split(",") if name),
            compose_command="docker-compose" if labels.get("version", "").startswith("1.") else "docker compose",
            oneoff=labels.get("oneoff", "").lower() == "true",
            running=bool(state["Running"]) and not state.get("Restarting", False),
            status=state["Status"],
            pid=state.get("Pid") or 0,
            started_at=state.get("StartedAt", ""),
            restart_count=data["RestartCount"],
            exit_code=state["ExitCode"],
            health=(state.get("Health") or {}).get("Status", "").replace("none", ""),
            check=HealthCheck.from_config(config.get("Healthcheck") or {}, config.get("Shell") or ("/bin/sh", "-c")),
            stop_seconds=config.get("StopTimeout") or 10.0,
            user=config.get("User") or "",
            groups=tuple(map(str, host.get("GroupAdd") or ())),
            joined=tuple(mode.removeprefix("container:") for mode in modes if mode.startswith("container:")),
            mounts=tuple(
                Mount(Path(item["Source"]), PurePosixPath(item["Destination"]), item["RW"], item.get("Name") or "")
                for item in data["Mounts"]
                if item.get("Source")
            ),
            settings={name: environment[name] for name in SETTINGS if name in environment},
        )

    def __str__(self) -> str:
        return printable(self.service or self.name)

    @property
    def active(self) -> bool:
        """Whether it runs, or will in a moment: it restarts in a loop."""
        return self.running or self.status == "restarting"

    def mount_of(self, folder: Path) -> Mount | None:
        """Return the mount through which the container has a folder of this host, or None.

        Also when a folder above it is mounted, and a link or a bind mount leads there; not when another mount of the
        container hides it. Of several it is one that may be written to, if there is such a one.
        """
        for mount in sorted(self.mounts, key=lambda mount: not mount.writable):
            for above in (folder, *folder.parents):
                if mount.leads_to(above):
                    inside = mount.inside / folder.relative_to(above)
                    over = (other.inside for other in self.mounts if other.inside.is_relative_to(mount.inside))
                    if not any(inside.is_relative_to(other) and other != mount.inside for other in over):
                        return mount
        return None

    def has_alone(self, file: Path) -> bool:
        """Whether a file of this host is mounted by itself, not with its folder."""
        return any(mount.leads_to(file) for mount in self.mounts)

    def writes_into(self, folder: Path) -> bool:
        """Whether the container has a folder of this host, and may write there."""
        mount = self.mount_of(folder)
        return mount is not None and mount.writable

    def identity(self) -> tuple[int, set[int]] | None:
        """Return the user and the groups, as numbers, that the container runs as; None when that cannot be told."""
        with contextlib.suppress(OSError):
            lines = (line.split() for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
            found = {words[0]: [int(word) for word in words[1:]] for words in lines if words[0] in _IDENTITY}
            return found["Uid:"][1], {found["Gid:"][1], *found["Groups:"]}
        user, _, group = self.user.partition(":")
        numbers = [*filter(None, (group,)), *self.groups]
        if not (user or "0").isdigit() or not all(number.isdigit() for number in numbers):
            return None  # names of the container's own /etc/passwd
        return int(user or 0), {int(number) for number in numbers}


_IDENTITY = ("Uid:", "Gid:", "Groups:")


def _compose_file(folder: Path, name: str) -> Path:
    """Return the path of a compose file from its label, which Compose v1 writes relative to where it was called.

    Of another project it may be anything, in a folder that we may not look into.
    """
    path = folder / name
    return Path(os.path.realpath(path if os.path.isfile(path) else folder / path.name))


def list_containers(*options: str) -> list[str]:
    """Return the IDs of the engine's containers: those that run or restart, unless the options of `docker ps` say more.

    :raises DockerUnreachableError: when Docker is not installed or does not answer.
    """
    return _docker("ps", "-q", "--no-trunc", *options).split()


def inspect_containers(ids: Sequence[str]) -> list[Container]:
    """Return what Docker says of containers; one that has gone since it was listed is left out.

    :raises DockerUnreachableError: when Docker does not answer.
    """
    described = json.loads(_docker("inspect", "--type=container", *ids)) if ids else []
    return [Container.from_inspect(data) for data in described]


def _more_rights() -> str:
    """Return what lets another user than root reach Docker."""
    if os.geteuid() == 0:
        return ""
    return (
        ". Is it for root only? Join the group (sudo usermod -aG docker $USER, and log in again), or run this with "
        f"sudo: {errors.same_command(root=True)}"
    )


def _docker(*arguments: str) -> str:
    try:
        return run_command(["docker", *arguments], timeout=30)
    except errors.MissingProgramError as error:
        raise errors.MissingProgramError(str(error), hint=f"{error.hint} {NOTHING_TO_STOP}") from None
    except errors.CommandFailedError as error:
        if "no such container" in str(error).lower():
            return error.output
        raise errors.DockerUnreachableError(
            f"Docker cannot be reached: {error}",
            hint=f"Is Docker running? systemctl status docker. {NOTHING_TO_STOP}{_more_rights()}",
        ) from None
