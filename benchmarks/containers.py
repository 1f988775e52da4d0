"""A bot in a real container, and its downtime: from the kill signal to the start, according to Docker's events."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.containers import IMAGE, Compose, NotAvailable, compose_v1, compose_v2, import_image

COMPOSE = """\
services:
  bot:
    image: {image}
    command: ["/bin/busybox", "sh", "-c", "trap 'exit 0' TERM; while :; do /bin/busybox sleep 3600 & wait; done"]
    network_mode: none
    volumes:
      - ./data:/data
"""


NoDockerError = NotAvailable
"""Docker, Compose or a static busybox is missing: downtime cannot be measured here."""


@dataclass(frozen=True)
class Bot:
    """A running bot whose database is data/shop.db in its folder."""

    folder: Path
    environment: dict[str, str]
    container: str

    @property
    def database(self) -> Path:
        return self.folder / "data" / "shop.db"

    @property
    def compose_file(self) -> Path:
        return self.folder / "docker-compose.prod.yml"

    def downtime(self, work: Callable[[], object]) -> float:
        """Run ``work``, which stops and starts the bot; return the seconds from the kill signal to the start."""
        # Start listening first: Docker keeps only its last 256 events, of all containers.
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
        raise RuntimeError("docker events ended before the bot was started")


@contextmanager
def running_bot(folder: Path) -> Iterator[Bot]:
    """Run a bot in a folder; its container is removed afterwards.

    :raises NoDockerError: naming what is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    import_image()
    compose = _compose(Path(tempfile.mkdtemp(prefix="docker-config-", dir=folder)))
    environment = os.environ | compose.env
    file = folder / "docker-compose.prod.yml"
    file.write_text(COMPOSE.format(image=IMAGE))
    command = (*compose.command, "-f", str(file))
    subprocess.run([*command, "up", "-d"], env=environment, check=True, capture_output=True)
    try:
        container = subprocess.check_output([*command, "ps", "-q", "bot"], env=environment, text=True).strip()
        yield Bot(folder, environment, container)
    finally:
        subprocess.run([*command, "down", "-t", "2"], env=environment, check=False, capture_output=True)


def _compose(folder: Path) -> Compose:
    """Compose 2, else Compose 1, with its settings in the folder."""
    try:
        return compose_v2(folder)
    except NotAvailable:
        return compose_v1(folder)
