"""A shop whose bot runs in a real container, started by a real Compose, version 1 or 2."""

import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import writer
from tests.support.needs import compose_plugin, is_there
from tests.support.shop import Shop

IMAGE = "restore-backup-tests:1"
PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"


class NotAvailable(Exception):  # noqa: N818 - no error: a part that this machine does not have
    """This machine does not have it; the message is its name, as in support/needs.py."""


def call(*argv: str, timeout: float = 60, **options: Any) -> str:
    """Run a command; its standard output. AssertionError with its messages when it fails."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    done = subprocess.run(argv, text=True, timeout=timeout, check=False, **{**streams, **options})
    assert done.returncode == 0, f"{argv} ended with {done.returncode}:\n{done.stdout}{done.stderr or ''}"
    return str(done.stdout)


def wait_until(condition: Callable[[], object], what: str, timeout: float = 30) -> None:
    """Poll until the condition holds; AssertionError that says `what` did not happen."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)


# --- engine, image, Compose ------------------------------------------------------------------------------------------


def import_image(name: str = IMAGE, programs: dict[str, str] | None = None, *changes: str) -> str:
    """The name of an image with a static busybox, imported when the engine does not have it (nothing is pulled).

    `programs`: shell scripts for its /bin. `changes`: instructions as of a Dockerfile.
    """
    if subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False).returncode == 0:
        return name
    busybox = shutil.which("busybox")
    if not busybox:
        raise NotAvailable("busybox")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(os.path.realpath(busybox), "bin/busybox")
        for applet in call(busybox, "--list").split():
            if applet != "busybox":
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        for program, script in (programs or {}).items():
            file = tarfile.TarInfo(f"bin/{program}")
            file.mode, file.size = 0o755, len(script)
            tar.addfile(file, io.BytesIO(script.encode()))
    options = [word for change in changes for word in ("--change", change)]
    command = ["docker", "import", *options, "-", name]
    subprocess.run(command, input=archive.getvalue(), capture_output=True, check=True, timeout=60)
    return name


def import_stand_in() -> str:
    """The name of an image that stands in for the bot and for redis, under the compose files as they are shipped.

    As a bot it holds the database open; it ends at SIGTERM.
    """
    wait = 'trap "exit 0" TERM; while :; do sleep 1000 & wait $!; done\n'
    bot = '#!/bin/sh\n[ -d /app/data ] && exec 3<>"/app/data/${DB_NAME:-shop.db}"\n' + wait
    programs = {"bot": bot, "redis-server": "#!/bin/sh\n" + wait, "redis-cli": "#!/bin/sh\necho PONG\n"}
    return import_image("restore-backup-tests-stand-in:1", programs, 'CMD ["/bin/bot"]')


@dataclass(frozen=True)
class Compose:
    """One flavour of Compose. With `env`, it is the only one that a program finds as it should."""

    name: str
    command: tuple[str, ...]
    env: dict[str, str]


def compose_v1(folder: Path) -> Compose:
    """docker-compose 1.x, in an environment where `docker compose` does not exist."""
    env = {"DOCKER_CONFIG": str(folder)}
    if not is_there("docker compose v1"):
        raise NotAvailable("docker compose v1")
    if (
        subprocess.run(
            ["docker", "compose", "version"], env=os.environ | env, capture_output=True, check=False
        ).returncode
        == 0
    ):
        env["PATH"] = f"{hide_compose_plugin(folder)}:{os.environ['PATH']}"
    return Compose("v1", ("docker-compose",), env)


def hide_compose_plugin(folder: Path) -> Path:
    """A folder for PATH with a `docker` that knows no compose, for machines that have the plugin system-wide."""
    wrapper = folder / "bin/docker"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\ncase "$1" in compose) echo "docker: unknown command: docker compose" >&2; exit 1;; esac\n'
        f'exec {shutil.which("docker")} "$@"\n'
    )
    wrapper.chmod(0o755)
    return wrapper.parent


def compose_v2(folder: Path) -> Compose:
    """`docker compose`, and nothing else."""
    plugin = compose_plugin()
    if plugin is None:
        raise NotAvailable("docker compose v2")
    (folder / "cli-plugins").mkdir()
    (folder / "cli-plugins/docker-compose").symlink_to(plugin)
    return Compose("v2", ("docker", "compose"), {"DOCKER_CONFIG": str(folder)})


# --- the shop --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """A container, as `docker inspect` tells it. `health` is "" without a health check."""

    id: str
    status: str
    running: bool
    started_at: str
    restart_count: int
    health: str
    exit_code: int


@dataclass(frozen=True)
class Bot:
    """How the bot behaves.

    deaf         ignores SIGTERM and is killed after `grace`: a hot WAL is left
    health       has a health check (every second): ctl/health, a shell script; it says what `healthy_if` says
    healthy_if   healthy only if this query gave a row when the bot started
    needs        crashes at the start, over and over, if this query gives no row
    at_start     statements that it executes at each start
    note         what it writes into bot_log
    profile      belongs to this Compose profile
    project      runs under this Compose project name (otherwise: the folder's name)
    file         name of the compose file
    """

    deaf: bool = False
    health: bool = False
    healthy_if: str | None = None
    needs: str | None = None
    at_start: tuple[str, ...] = ()
    note: str = "tick"
    interval: float = 0.005
    grace: str = ""
    restart: str = "always"
    profile: str | None = None
    project: str | None = None
    file: str = "docker-compose.prod.yml"


@dataclass
class BotShop(Shop):
    """A shop with the services `bot`, a real writer on data/, and `redis`, a stand-in. See `make_bot_shop`."""

    compose: Compose = field(default_factory=lambda: Compose("none", (), {}))
    bot: Bot = field(default_factory=Bot)

    @property
    def compose_file(self) -> Path:
        return self.path / self.bot.file

    @property
    def project(self) -> str:
        return self.bot.project or self.settings.get("COMPOSE_PROJECT_NAME") or self.path.name

    def write_compose_file(self) -> None:
        """The compose file and the bot's orders; also after `bot` was changed."""
        control = self.path / "ctl"
        control.mkdir(exist_ok=True)
        # As of this start: a container that is started again keeps its files.
        self.set_health('test "$(cat /dev/shm/healthy)" = "$(cut -d" " -f22 /proc/1/stat)"')
        orders = {
            "role": "bot",
            "db": f"/app/data/{self.db_path.name}",
            "passphrase": self.passphrase,
            "crash_if_exists": "/app/ctl/crash",
            **{
                name: getattr(self.bot, name)
                for name in ("deaf", "needs", "healthy_if", "at_start", "note", "interval")
            },
        }
        (control / "bot.json").write_text(json.dumps(orders), encoding="utf-8")
        services = {"bot": self._bot_service(), "redis": IDLE_SERVICE}
        # JSON is YAML, and both Composes read it.
        self.compose_file.write_text(json.dumps({"services": services}, indent=2), encoding="utf-8")

    def _bot_service(self) -> dict[str, Any]:
        python, site = os.path.realpath(sys.executable), sysconfig.get_paths()["purelib"]
        host = [path for path in ("/usr", "/lib", "/lib64", sys.base_prefix, site) if Path(path).exists()]
        service: dict[str, Any] = {
            "image": IMAGE,
            "command": [python, "/app/writer.py", "/app/ctl/bot.json"],
            "network_mode": "none",
            "restart": self.bot.restart,
            "stop_grace_period": self.bot.grace or ("1s" if self.bot.deaf else "10s"),
            "env_file": ".env",
            "environment": {"PYTHONPATH": site, "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"},
            "volumes": [
                f"./{self.settings.get('DATA_DIR', 'data')}:/app/data",
                f"./{self.settings.get('DB_BACKUP_PATH', 'backups')}:/app/backups",
                "./ctl:/app/ctl:ro",
                f"{writer.__file__}:/app/writer.py:ro",
                *(f"{path}:{path}:ro" for path in dict.fromkeys(host)),
            ],
        }
        if self.bot.health:
            test = ["CMD", "/bin/busybox", "sh", "/app/ctl/health"]
            service["healthcheck"] = {"test": test, "interval": "1s", "timeout": "3s", "retries": 5}
        if self.bot.profile:
            service["profiles"] = [self.bot.profile]
        return service

    def change_services(self, **services: dict[str, Any]) -> None:
        """Change a service in the compose file, or add one."""
        described = json.loads(self.compose_file.read_text())
        for name, changes in services.items():
            described["services"][name] = described["services"].get(name, IDLE_SERVICE) | changes
        self.compose_file.write_text(json.dumps(described), encoding="utf-8")

    def set_health(self, script: str) -> None:
        """What the health check runs from now on, in the bot's container: "exit 1" makes it unhealthy."""
        (self.path / "ctl/health").write_text(script + "\n")

    def set_crash(self, crash: bool) -> None:
        """Whether the bot crashes at its next starts."""
        (self.path / "ctl/crash").touch() if crash else (self.path / "ctl/crash").unlink(missing_ok=True)

    # --- Compose and Docker ---

    def run_compose(self, *args: str, timeout: float = 60) -> str:
        """A Compose command on this shop, as the operator would type it; its standard output."""
        options = ["-f", str(self.compose_file)]
        options += ["-p", self.bot.project] if self.bot.project else []
        options += ["--profile", self.bot.profile] if self.bot.profile else []
        argv = (*self.compose.command, *options, *args)
        return call(*argv, timeout=timeout, cwd=self.path, env=self.environment())

    def up(self, *services: str) -> None:
        """Create and start all services, or those named."""
        self.run_compose("up", "-d", *services)

    def stop(self, *services: str) -> None:
        """Stop all services, or those named, as the operator would."""
        self.run_compose("stop", *services)

    def down(self) -> None:
        """Remove the containers, networks and volumes of this shop's project, without grace."""
        label = f"label={PROJECT_LABEL}={self.project}"
        containers = call("docker", "ps", "-aq", "--filter", label).split()
        if containers:
            call("docker", "rm", "-f", "-v", *containers)
        for kind in ("network", "volume"):
            names = call("docker", kind, "ls", "-q", "--filter", label).split()
            if names:
                call("docker", kind, "rm", *names)

    def inspect(self, service: str = "bot") -> dict[str, Any] | None:
        """All that `docker inspect` knows; None when the service has no container."""
        labels = (f"label={PROJECT_LABEL}={self.project}", f"label={SERVICE_LABEL}={service}")
        found = call("docker", "ps", "-aq", "--filter", labels[0], "--filter", labels[1]).split()
        if not found:
            return None
        described: dict[str, Any] = json.loads(call("docker", "inspect", found[0]))[0]
        return described

    def state(self, service: str = "bot") -> State:
        """The state of a service's container; AssertionError when there is none."""
        described = self.inspect(service)
        assert described, f"{service} has no container"
        state = described["State"]
        return State(
            id=described["Id"],
            status=state["Status"],
            running=state["Running"],
            started_at=state["StartedAt"],
            restart_count=described["RestartCount"],
            health=state.get("Health", {}).get("Status", ""),
            exit_code=state["ExitCode"],
        )

    def states(self) -> dict[str, State]:
        """The states of both services; equal before and after: nobody touched them."""
        return {service: self.state(service) for service in ("bot", "redis")}

    def logs(self, service: str = "bot") -> str:
        """What a service's container printed, on both streams."""
        return call("docker", "logs", self.state(service).id, stderr=subprocess.STDOUT)

    # --- what the bot does ---

    def bot_rows(self) -> int:
        """How many rows are in bot_log, read in place through a connection like any other."""
        with closing(self.connect()) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'bot_log'").fetchone():
                return 0
            return int(connection.execute("SELECT count(*) FROM bot_log").fetchone()[0])

    def wait_rows(self, number: int = 5, timeout: float = 30) -> int:
        """Wait until the bot has written that many rows more than there are now; returns how many there are then."""
        start = self.bot_rows()
        count = start

        def enough() -> bool:
            nonlocal count
            count = self.bot_rows()
            return count >= start + number

        try:
            wait_until(enough, f"{number} more rows in bot_log than {start}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.state()}\n{self.logs()}") from None
        return count

    def wait_health(self, health: str, timeout: float = 30) -> None:
        """Wait for "healthy" or "unhealthy"."""
        wait_until(lambda: self.state().health == health, f"the bot is {health}", timeout)


IDLE_SERVICE = {
    "image": IMAGE,
    "command": ["/bin/sh", "-c", 'trap "exit 0" TERM; while :; do sleep 1000 & wait $$!; done'],
    "network_mode": "none",
    "restart": "always",
    "stop_grace_period": "2s",
}
