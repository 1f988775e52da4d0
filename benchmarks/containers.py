"""A bot in a real container, and how long it was down: from the kill signal to the start, by Docker's own events."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

IMAGE = "restore-benchmark-bot"
COMPOSE = """\
services:
  bot:
    image: {image}
    command: ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; while :; do /bin/busybox sleep 3600 & wait; done"]
    network_mode: none
    volumes:
      - ./data:/data
"""


class NoDockerError(Exception):
    """Docker, Compose or a static busybox is missing: downtime cannot be measured here."""


@dataclass(frozen=True)
class Bot:
    """A running bot whose database is data/shop.db in its folder."""

    folder: Path
    compose: tuple[str, ...]
    environment: dict[str, str]
    container: str

    @property
    def database(self) -> Path:
        """The live database."""
        return self.folder / "data" / "shop.db"

    @property
    def compose_file(self) -> Path:
        """The file that runs it."""
        return self.folder / "docker-compose.prod.yml"

    def downtime(self, work: Callable[[], object]) -> float:
        """Do what stops the bot and starts it again; return the seconds from the kill signal to the start."""
        # Listening from before: Docker keeps only its last 256 events, of all containers.
        events = ["docker", "events", "--since", f"{time.time():.6f}", "--format", "{{json .}}"]
        events += ["--filter", f"container={self.container}", "--filter", "event=kill", "--filter", "event=start"]
        with subprocess.Popen(events, stdout=subprocess.PIPE, text=True) as listener:
            try:
                work()
                began = 0
                for line in listener.stdout or ():
                    event = json.loads(line)
                    if event["Action"] == "start" and began:
                        return float(event["timeNano"] - began) / 1e9
                    began = began or event["timeNano"]
            finally:
                listener.terminate()
        raise RuntimeError("Docker stopped telling its events")


@contextmanager
def running_bot(folder: Path) -> Iterator[Bot]:
    """Start a bot in a folder, and remove its container at the end.

    :raises NoDockerError: naming what is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    environment = _environment(folder)
    compose = _compose(environment)
    _image()
    file = folder / "docker-compose.prod.yml"
    file.write_text(COMPOSE.format(image=IMAGE))
    command = (*compose, "-f", str(file))
    subprocess.run([*command, "up", "-d"], env=environment, check=True, capture_output=True)
    try:
        container = subprocess.check_output([*command, "ps", "-q", "bot"], env=environment, text=True).strip()
        yield Bot(folder, command, environment, container)
    finally:
        subprocess.run([*command, "down", "-t", "2"], env=environment, check=False, capture_output=True)


def _environment(folder: Path) -> dict[str, str]:
    """COMPOSE_V2_PLUGIN may name a plugin that is not installed where Docker looks for it."""
    plugin = os.environ.get("COMPOSE_V2_PLUGIN")
    if not plugin:
        return dict(os.environ)
    plugins = folder / "docker-config" / "cli-plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    link = plugins / "docker-compose"
    link.unlink(missing_ok=True)
    link.symlink_to(plugin)
    return os.environ | {"DOCKER_CONFIG": str(plugins.parent)}


def _compose(environment: dict[str, str]) -> tuple[str, ...]:
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], env=environment, check=False, capture_output=True)
            if not done.returncode:
                return command
    raise NoDockerError("no Docker Compose")


def _image() -> None:
    """Make the image from the machine's own static busybox: nothing is pulled."""
    if subprocess.run(["docker", "image", "inspect", IMAGE], check=False, capture_output=True).returncode == 0:
        return
    busybox = shutil.which("busybox")
    if not busybox:
        raise NoDockerError("no busybox (apt-get install busybox-static)")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(os.path.realpath(busybox), "bin/busybox")
    done = subprocess.run(["docker", "import", "-", IMAGE], input=archive.getvalue(), check=False, capture_output=True)
    if done.returncode:
        raise NoDockerError(done.stderr.decode().strip())
