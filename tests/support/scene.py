"""A running bot and its backup, scripts that run in Docker's place, and what must hold afterwards.

The truth about the old database is what a wrapper around docker copies away at the very moment the bot has stopped.
"""

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.containers import BotShop, State
from tests.support.keys import Key
from tests.support.shop import Completed, Rows

LONG = pytest.mark.long
BOTH_COMPOSES = pytest.mark.parametrize(
    ("mode", "compose"),
    [
        ("sqlite", "v2"),
        ("sqlcipher", "v1"),
        pytest.param("sqlite", "v1", marks=LONG),
        pytest.param("sqlcipher", "v2", marks=LONG),
    ],
    indirect=True,
)
"""Compose 2 with SQLite or Compose 1 with SQLCipher, see conftest.py; all four combinations in the long form."""

ONE_COMPOSE = pytest.mark.parametrize(
    ("mode", "compose"),
    [
        ("sqlite", "v2"),
        pytest.param("sqlcipher", "v1", marks=LONG),
        pytest.param("sqlite", "v1", marks=LONG),
        pytest.param("sqlcipher", "v2", marks=LONG),
    ],
    indirect=True,
)
"""Compose 2 alone; all four combinations in the long form."""


def alternating(name: str, *values: str) -> pytest.MarkDecorator:
    """Each value once, Compose 2 with SQLite and Compose 1 with SQLCipher in turn; all of them in the long form."""
    short = (("sqlite", "v2"), ("sqlcipher", "v1"))
    return pytest.mark.parametrize(
        (name, "mode", "compose"),
        [
            pytest.param(value, mode, compose, marks=() if (mode, compose) == short[number % 2] else LONG)
            for number, value in enumerate(values)
            for mode in ("sqlite", "sqlcipher")
            for compose in ("v1", "v2")
        ],
        indirect=["mode", "compose"],
    )


LIVE_ROW = "SELECT 1 FROM customers WHERE name = 'came after the backup'"
"""Gives a row in the live database (Shop.change_data), none in what is restored."""


# --- a running shop and its backup -----------------------------------------------------------------------------------


@dataclass
class Scene:
    """A shop whose bot writes, a backup from before, and what that backup holds, to the row."""

    shop: BotShop
    key: Key
    backup: Path
    expected: Rows
    began: float

    def restore(self, *args: object, key: Key | None = None, **options: Any) -> Completed:
        """The restore, not asked for confirmation."""
        return self.shop.restore(self.backup, "--force", *args, key=key or self.key, **options)

    @property
    def truth(self) -> Path:
        """The copy of the old database that `intercept(shop, stop=KEEP_TRUTH)` makes once the bot has stopped."""
        return self.shop.path / "truth" / self.shop.db_path.name


def intercept(shop: BotShop, **scripts: str) -> dict[str, str]:
    """An environment in which a shell script runs instead of Docker's `stop` and `start`.

    In it `real "$@"` is what Docker would have done, $SHOP is the shop's folder, $PPID the restore, and `nth` counts
    the calls of this command, beginning with 1. All other commands go through.
    """
    folder = shop.path / "bin"
    folder.mkdir(exist_ok=True)
    real = shutil.which("docker", path=shop.environment()["PATH"])
    cases = "\n".join(f"{command}) {script}\n;;" for command, script in scripts.items())
    wrapper = folder / "docker"
    wrapper.write_text(
        f'#!/bin/sh\nSHOP={shop.path}\nreal() {{ {real} "$@"; }}\n'
        'command=$1; nth() { echo >>"$SHOP/bin/$command.calls"; wc -l <"$SHOP/bin/$command.calls"; }\n'
        f'case "$command" in\n{cases}\nesac\nexec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    return {"PATH": f"{folder}:{shop.environment()['PATH']}"}


def kill_at(shop: BotShop, number: int, *, after: bool) -> dict[str, str]:
    """An environment in which the restore is killed before or after its call of docker with that number, from 1 on.

    $SHOP/calls has a line for each call.
    """
    env = intercept(shop)
    wrapper = shop.path / "bin/docker"
    real = wrapper.read_text().splitlines()[-1].removeprefix("exec ")
    kill = ([f"{real} >/dev/null 2>&1"] if after else []) + ['kill -9 "$PPID"; sleep 0.2; exit 1']
    count = [f'echo "$1" >>{shop.path}/calls', f"[ $(wc -l <{shop.path}/calls) = {number} ] || exec {real}"]
    wrapper.write_text("\n".join(["#!/bin/sh", *count, *kill, ""]))
    return env


KEEP_TRUTH = 'real "$@"; code=$?; [ -e $SHOP/truth ] || cp -a "$SHOP/data" "$SHOP/truth"; exit $code'


def report_of(done: Completed) -> dict[str, Any]:
    """What --json printed: one object, alone on standard output."""
    report: dict[str, Any] = json.loads(done.out)
    return report


def check_code(done: Completed, code: int, error: str = "") -> None:
    """The exit code, and the error's id that goes with it."""
    assert done.ended == (code, error), done.text
    assert "Traceback" not in done.text, done.text


def check_restored(scene: Scene) -> None:
    """The live database holds the backup's rows and nothing else but what the bot wrote since."""
    rows = scene.shop.rows_in_place()
    since = [row for row in rows.pop("bot_log", []) if row not in scene.expected.get("bot_log", [])]
    assert rows == {name: found for name, found in scene.expected.items() if name != "bot_log"}
    assert all(at > scene.began for _, at, _ in since)


def check_old(scene: Scene) -> None:
    """The live database is the old one, with every row that it had when the bot stopped, and the bot's since."""
    old, live = scene.shop.rows(scene.truth), scene.shop.rows_in_place()
    assert ("came after the backup",) in [row[1:2] for row in live["customers"]]
    assert set(old.pop("bot_log")) <= set(live.pop("bot_log"))
    assert live == old


def check_clean(shop: BotShop) -> None:
    """Nothing lies about beside the database."""
    known = {f"{shop.db_path.name}{suffix}" for suffix in ("", "-wal", "-shm")}
    assert {path.name for path in shop.db_path.parent.iterdir()} <= known


def check_writing_to_the_live_file(shop: BotShop) -> None:
    """The bot's next rows land in the file that has the path now, which the bot has open."""
    shop.wait_rows(2)
    described = shop.inspect()
    assert described
    descriptors = Path(f"/proc/{described['State']['Pid']}/fd").iterdir()
    assert shop.db_path.stat().st_ino in [status.st_ino for path in descriptors if (status := stat_of(path))]


def untouched(before: State, after: State) -> bool:
    """Whether nobody stopped or started a container; its health may come and go on a busy machine."""
    return replace(after, health=before.health) == before


def stat_of(path: Path) -> os.stat_result | None:
    """None when it has gone in the meantime."""
    try:
        return path.stat()
    except OSError:
        return None
