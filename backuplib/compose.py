"""The containers of a compose project."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backuplib.errors import (
    CannotStopError,
    CommandFailedError,
    DatabaseInUseError,
    DockerUnreachableError,
    MissingProgramError,
    ServicesDownError,
    UnsuitableTargetError,
    UnusableComposeFileError,
)
from backuplib.formatting import quoted
from backuplib.processes import run_command

SETTLE_SECONDS = 5.0
"""How long a service without a health check must run without a restart to count as up."""


START_SECONDS = 60.0
"""How long services may take to be running; one with a health check gets what that allows on top."""


STOP_SECONDS = 600.0
"""Longest wait for a compose command; the grace period before a kill is the service's own."""


@dataclass(frozen=True)
class Container:
    """What `docker inspect` says of a container."""

    id: str
    name: str
    service: str
    project: str
    compose_files: tuple[Path, ...]
    oneoff: bool
    running: bool
    status: str
    health: str
    health_seconds: float
    check_interval: float
    stop_seconds: float
    restart_count: int
    exit_code: int
    mounts: tuple[tuple[Path, bool], ...]

    @classmethod
    def from_inspect(cls, data: dict[str, Any]) -> Container:
        """Read one element of the JSON of `docker inspect`."""
        state, config = data["State"], data["Config"]
        labels = config.get("Labels") or {}
        folder = Path(labels.get("com.docker.compose.project.working_dir", "/"))
        files = labels.get("com.docker.compose.project.config_files", "")
        check = config.get("Healthcheck") or {}
        return cls(
            id=data["Id"],
            name=data["Name"].lstrip("/"),
            service=labels.get("com.docker.compose.service", ""),
            project=labels.get("com.docker.compose.project", ""),
            compose_files=tuple(_compose_file(folder, name) for name in files.split(",") if name),
            oneoff=labels.get("com.docker.compose.oneoff", "").lower() == "true",
            running=bool(state["Running"]) and not state.get("Restarting", False),
            status=state["Status"],
            health=(state.get("Health") or {}).get("Status", ""),
            health_seconds=_health_seconds(check),
            check_interval=(check.get("Interval") or 30e9) / 1e9 if check.get("Test") else 0.0,
            stop_seconds=config.get("StopTimeout") or 10.0,
            restart_count=data["RestartCount"],
            exit_code=state["ExitCode"],
            mounts=tuple((Path(mount["Source"]), mount["RW"]) for mount in data["Mounts"] if mount.get("Source")),
        )

    @property
    def active(self) -> bool:
        """Whether it runs, or will in a moment: it restarts in a loop."""
        return self.running or self.status == "restarting"

    def writes_into(self, folder: Path) -> bool:
        """Whether a host folder, or one above it, is mounted writable."""
        return any(writable and (source == folder or source in folder.parents) for source, writable in self.mounts)


def _compose_file(folder: Path, name: str) -> Path:
    """Return the path of a compose file from its label, which Compose v1 writes relative to where it was called."""
    path = folder / name
    return (path if path.is_file() else folder / path.name).resolve()


def _health_seconds(check: dict[str, Any]) -> float:
    """How long a health check may take to come to a verdict (Docker gives nanoseconds; its defaults: 30 s, 3)."""
    interval = check.get("Interval") or 30e9
    attempts = check.get("Retries") or 3
    return float((check.get("StartPeriod") or 0) + attempts * (interval + (check.get("Timeout") or 30e9))) / 1e9


def docker_containers() -> list[Container]:
    """Return all containers of the Docker engine.

    :raises DockerUnreachableError: when Docker is not installed or does not answer.
    """
    try:
        ids = run_command(["docker", "ps", "-aq", "--no-trunc"], timeout=30).split()
        return [Container.from_inspect(data) for data in json.loads(_inspect(ids))] if ids else []
    except CommandFailedError as error:
        raise DockerUnreachableError(
            f"Docker cannot be reached: {error}",
            hint="Run this with sudo, or join the group: sudo usermod -aG docker $USER, and log in anew. Is Docker "
            "running? systemctl status docker. When nothing is to be stopped: --no-restart",
        ) from None


def _inspect(ids: Sequence[str]) -> str:
    try:
        return run_command(["docker", "inspect", *ids], timeout=30)
    except CommandFailedError as error:
        if "No such object" in str(error):  # a container has gone since it was listed
            return error.output
        raise


@dataclass(frozen=True)
class ComposeProject:
    """The containers of one compose file, under whatever project name they run."""

    files: tuple[Path, ...]
    name: str | None
    command: tuple[str, ...]

    @classmethod
    def find(cls, file: Path) -> ComposeProject:
        """Find the compose command and the project name that a compose file runs under.

        :raises UnusableComposeFileError: when the file is invalid, or runs under two names.
        :raises MissingProgramError: when there is no Compose.
        """
        file = file.resolve()
        command = compose_command()
        matching = [item for item in docker_containers() if file in item.compose_files and not item.oneoff]
        running = {item.project for item in matching if item.running}
        names = running or {item.project for item in matching}
        if len(names) > 1:
            raise UnusableComposeFileError(
                f"{file.name} runs under more than one project name: {', '.join(sorted(names))}",
                hint=f"Stop the one that is not meant: {' '.join(command)} -p NAME -f {quoted(file)} stop",
            )
        found = next((item for item in matching if item.project in names), None)
        project = cls(found.compose_files if found else (file,), found.project if found else None, command)
        project.services()
        return project

    def services(self) -> list[str]:
        """Return the names of all services of the file.

        :raises UnusableComposeFileError: when the file is not valid.
        """
        try:
            return self._run("config", "--services").split()
        except CommandFailedError as error:
            raise UnusableComposeFileError(
                f"the compose file cannot be used: {error}", hint="Correct it, or name another one with --compose-file."
            ) from None

    def owns(self, item: Container) -> bool:
        """Whether a container is one of this project's services, and not of `compose run`."""
        return item.project == self.name and not item.oneoff and bool(set(self.files) & set(item.compose_files))

    def containers(self) -> list[Container]:
        """Return the containers of the project's services."""
        return [item for item in docker_containers() if self.owns(item)]

    def running(self) -> list[str]:
        """Return the names of the services that run now."""
        return sorted({item.service for item in self.containers() if item.active})

    def choose_services(self, wanted: Sequence[str], pending: Sequence[str]) -> tuple[str, ...]:
        """Return the services to stop and start: those that run now or are pending.

        :param wanted: if any, no others.
        :param pending: services that a restore before this one stopped, and that have not come up again.
        :raises UnusableComposeFileError: when a wanted one is not there.
        """
        known = {*self.services(), *(item.service for item in self.containers())}  # those in a profile, too
        if unknown := sorted(set(wanted) - known):
            raise UnusableComposeFileError(
                f"no service {', '.join(unknown)} in {self.files[0].name}",
                hint=f"Its services are: {', '.join(sorted(known))}",
            )
        found = {*self.running(), *(known & {*pending})}
        return tuple(name for name in sorted(found) if not wanted or name in wanted)

    def refuse_strangers(self, database: Path, services: Sequence[str]) -> list[str]:
        """Refuse when a container can write to a database, except those of the services that will be stopped.

        :returns: the IDs of the latter.
        :raises DatabaseInUseError: naming the container.
        :raises UnsuitableTargetError: when the database is mounted as a single file.
        """
        containers = docker_containers()
        stopping = [item.id for item in containers if self.owns(item) and item.service in services]
        for item in containers:
            if item.active and any(source == database for source, _ in item.mounts):
                raise UnsuitableTargetError(
                    f"{database} is mounted into container {item.name} as a single file: the container would keep the "
                    "old one",
                    hint="Mount its folder instead, and create the container anew.",
                )
            if item.active and item.writes_into(database.parent) and item.id not in stopping:
                raise DatabaseInUseError(
                    f"container {item.name} runs and can write to {database.parent}, and is not among the services to "
                    f"stop ({', '.join(services) or 'none'})",
                    hint=f"Stop it (docker stop {item.name}), or name its service or compose file.",
                )
        return stopping

    def outlook(self, services: Sequence[str]) -> dict[str, str]:
        """Say what will happen to services: an estimate from their health checks and grace periods."""
        items = [item for item in self.containers() if item.service in services]
        if not items:
            return {"services": "none runs"}
        up = 1 + max(item.check_interval for item in items)
        longest = up + max(item.stop_seconds for item in items)
        return {
            "services": f"{', '.join(services)} will be stopped",
            "downtime": f"estimated {up:.0f} s, {longest:.0f} s if they must be killed",
        }

    def stop(self, services: Sequence[str]) -> None:
        """Stop services gracefully.

        :raises CannotStopError: when one still runs; exit codes of Compose are not believed.
        """
        try:
            self._run("stop", *services)
        except CommandFailedError as error:
            raise CannotStopError(f"the services could not be stopped: {error}") from None
        still = [name for name in self.running() if name in services]
        if still:
            raise CannotStopError(f"still running after `compose stop`: {', '.join(still)}")

    def start(self, services: Sequence[str]) -> None:
        """Start services that exist; :meth:`wait` tells whether they came up."""
        try:
            self._run("start", *services)
        except CommandFailedError as error:
            raise ServicesDownError(
                f"the services could not be started: {error}", hint=self._logs_hint(services)
            ) from None

    def wait(self, services: Sequence[str]) -> float:
        """Wait until services are up, and stay up; return the time (monotonic) at which the last one was.

        :raises ServicesDownError: when one exits, restarts in a loop, is unhealthy, or takes too long.
        """
        began = time.monotonic()
        up: dict[str, float] = {}
        while True:
            now = time.monotonic()
            items = [item for item in self.containers() if item.service in services]
            missing = {*services} - {item.service for item in items}
            if missing and now - began > SETTLE_SECONDS:
                raise ServicesDownError(
                    f"the container of service {', '.join(sorted(missing))} no longer exists",
                    hint=f"Create it: {shlex.join(self._argv('up', '-d', *sorted(missing)))}",
                )
            for item in items:
                self._check(item, now - began)
                if item.running and item.health in ("", "healthy"):
                    up.setdefault(item.id, now)
            settled = all(item.id in up and (item.health or now - up[item.id] >= SETTLE_SECONDS) for item in items)
            if settled and not missing:
                return max(up.values(), default=began)
            time.sleep(0.2)

    def _check(self, item: Container, waited: float) -> None:
        reason = ""
        if item.status == "restarting" or item.restart_count:
            reason = f"restarts in a loop (exit code {item.exit_code})"
        elif item.health == "unhealthy":
            reason = "is unhealthy"
        elif item.status in ("exited", "dead") and waited > SETTLE_SECONDS / 5:
            reason = f"has ended with exit code {item.exit_code}"
        elif waited > START_SECONDS + (item.health_seconds if item.health else 0):
            reason = f"is not up after {waited:.0f} s ({item.health or item.status})"
        if reason:
            raise ServicesDownError(f"service {item.service} {reason}", hint=self._logs_hint([item.service]))

    def _logs_hint(self, services: Sequence[str]) -> str:
        return f"Look why: {shlex.join(self._argv('logs', '--tail', '50', *services))}"

    def _argv(self, *arguments: str) -> list[str]:
        project = ["-p", self.name] if self.name else []
        files = [word for file in self.files for word in ("-f", str(file))]
        return [*self.command, *project, *files, *arguments]

    def _run(self, *arguments: str) -> str:
        return run_command(self._argv(*arguments), timeout=STOP_SECONDS, cwd=self.files[0].parent)


def compose_command() -> tuple[str, ...]:
    """Return how Compose is called here: `docker compose` when there, else `docker-compose`."""
    for command in (("docker", "compose"), ("docker-compose",)):
        with contextlib.suppress(CommandFailedError):
            run_command([*command, "version"], timeout=30)
            return command
    raise MissingProgramError(
        "Docker Compose is not installed",
        hint="Install it (apt-get install docker-compose), or restore without stopping anything: --no-restart",
    )
