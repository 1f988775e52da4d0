#!/usr/bin/env python3
"""Makes the pictures in docs/ that README.md shows: `sudo python docs/picture.py`, or only those named behind it.

Each is a real run on a terminal of its size, in a shop with a bot in a container, rendered by rich. Needs a running
Docker.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rich.cells import cell_len  # noqa: E402 - beside the others, after the path is set
from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

from config import SIGNING_DIR  # noqa: E402
from tests.conftest import set_up  # noqa: E402
from tests.support.containers import (  # noqa: E402
    Bot,
    BotShop,
    NotAvailable,
    compose_v1,
    compose_v2,
    import_image,
)
from tests.support.keys import gpg_home, make_keys  # noqa: E402
from tests.support.terminal import Terminal  # noqa: E402

BACKUP = "backups/db_backup_20250130_120000.db.gz.gpg"
# What the pictures call the shop's folder, and the one that the signing key is in: see stand_in
FOLDER, SIGNING = "/srv/shopbot", str(SIGNING_DIR.parent)
USAGE = 2  # exit code


# --- the scenes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A picture: the terminal's size, the command, and what is done at its prompts, to an exit code.

    ``whole``: with what has been scrolled away.
    """

    name: str
    act: Callable[[Stage, Terminal], int]
    command: str = ""
    columns: int = 80
    lines: int = 24
    prepare: Callable[[Stage], None] = lambda _: None
    whole: bool = False


@dataclass
class Stage:
    """The shop that all scenes are played in, one after another, and its key."""

    shop: BotShop
    signing: Path
    key: str
    passphrase: str

    def execute(self, *statements: str) -> None:
        """Change the live database."""
        with closing(self.shop.connect()) as connection:
            for statement in statements:
                connection.execute(statement)

    def restart(self, bot: Bot) -> None:
        """Have the bot behave in another way from now on."""
        self.shop.bot = bot
        self.shop.write_compose_file()
        self.shop.run_compose("restart", "bot")
        self.shop.wait_health("healthy")


def unlock(stage: Stage, terminal: Terminal) -> None:
    """Type key and passphrase."""
    terminal.expect("Paste the private key[^:]*: ")
    terminal.send(f"{stage.key}\n")
    terminal.expect("Passphrase of the private key: ")
    terminal.send(f"{stage.passphrase}\n")


def say_yes(stage: Stage, terminal: Terminal) -> int:
    """A restore to its end."""
    unlock(stage, terminal)
    terminal.expect(r"\[y/N\] ")
    terminal.send("y\n")
    return terminal.wait(180)


def look_at_the_question(stage: Stage, terminal: Terminal) -> int:
    """A restore as far as its question: the picture shows what is on the screen then."""
    unlock(stage, terminal)
    terminal.expect(r"\[y/N\] ")
    return 0


def look_at_the_menu(_stage: Stage, terminal: Terminal) -> int:
    """The menu, before a choice is made."""
    terminal.expect("to leave: ")
    return 0


def watch(_stage: Stage, terminal: Terminal) -> int:
    """A command that asks nothing."""
    return terminal.wait(300)


def make_a_mistake(stage: Stage) -> None:
    """What the restore of the first picture is to undo."""
    stage.execute("DELETE FROM orders WHERE id > 40", "DELETE FROM items WHERE order_id > 40")


def add_what_the_backup_lacks(stage: Stage) -> None:
    """Work since the backup, and a table that came with an update."""
    stage.execute(
        "CREATE TABLE IF NOT EXISTS coupons (code TEXT PRIMARY KEY, cents INTEGER)",
        "INSERT OR IGNORE INTO coupons SELECT 'C' || id, 500 FROM orders WHERE id <= 35",
        "INSERT INTO orders (customer, total, day) SELECT customer, total, '2025-02-01' FROM orders WHERE id <= 120",
        "DELETE FROM items WHERE id > 880",
    )


def update_the_bot(stage: Stage) -> None:
    """A bot that crashes without the table that its update brought."""
    add_what_the_backup_lacks(stage)
    stage.restart(replace(stage.shop.bot, at_start=("SELECT count(*) FROM coupons",)))


RESTORE = f"restore_backup.py {BACKUP}"
SCENES = (
    Scene("menu", look_at_the_menu, "restore_backup.py"),
    Scene("restore", say_yes, RESTORE, prepare=make_a_mistake, whole=True),
    Scene("comparison", look_at_the_question, RESTORE, prepare=add_what_the_backup_lacks),
    Scene("comparison-120", look_at_the_question, RESTORE, columns=120, lines=40),
    Scene("failure", say_yes, RESTORE, prepare=update_the_bot),
    Scene("failure-120", say_yes, RESTORE, columns=120, lines=40),
    Scene("check", watch, "restore_backup.py --check", whole=True),
    Scene("drill", watch, "restore_backup.py --drill", whole=True),
)
ENDS = {"failure": 8, "failure-120": 8}  # exit codes; the others end with 0
MAY_END = {"check": 3}  # where it finds something


def main(names: list[str]) -> None:
    """Make the shop, play the scenes in it, draw what the terminal shows."""
    if unknown := set(names) - {scene.name for scene in SCENES}:
        raise SystemExit(f"no scene {', '.join(sorted(unknown))}; there are: {', '.join(item.name for item in SCENES)}")
    with the_stage() as stage:
        for scene in SCENES:
            scene.prepare(stage)
            if not names or scene.name in names:
                play(scene, stage)


def play(scene: Scene, stage: Stage) -> None:
    """Run a scene's command on a terminal, and draw it; an option that this version does not have is left out."""
    script, *arguments = scene.command.split()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    terminal = Terminal(
        ["python", script, *arguments],
        cwd=stage.shop.path,
        env=stage.shop.environment({"PATH": path}),
        size=(scene.lines, scene.columns),
    )
    try:
        code = scene.act(stage, terminal)
    finally:
        terminal.end()
    if code == USAGE and "unrecognized arguments" in terminal.output:
        print(f"docs/{scene.name}.svg: not made, this version has no {arguments[-1]}")
        return
    if code not in {ENDS.get(scene.name, 0), MAY_END.get(scene.name, 0)}:
        raise SystemExit(f"{scene.name} ended with {code}:\n{terminal.output}")
    shown = terminal.output.replace(str(stage.shop.path), FOLDER).replace(str(stage.signing), SIGNING)
    shown = shown.replace(stage.shop.path.name, Path(FOLDER).name)
    rows = screen_rows(f"$ python {scene.command}\r\n{shown}", scene.columns)
    draw(scene, rows if scene.whole else rows[-scene.lines :])


def stand_in(name: str) -> Path:
    """Make a folder whose path is as long as a name, so that lines break at the same words."""
    path = Path(f"{tempfile.gettempdir()}/{uuid.uuid4().hex}"[: len(name)])
    path.mkdir(mode=0o700)
    return path


@contextmanager
def the_stage() -> Iterator[Stage]:
    """A shop whose bot runs, with a menu of backups."""
    with tempfile.TemporaryDirectory(prefix="picture-") as folder, gpg_home() as home:
        keys = make_keys(home)
        docker = Path(folder) / "docker"
        docker.mkdir()
        import_image()
        try:
            compose = compose_v2(docker)
        except NotAvailable:
            compose = compose_v1(docker)
        path, signing = stand_in(FOLDER), stand_in(SIGNING)
        shop = BotShop(path, "sqlcipher", env=compose.env, compose=compose, bot=Bot(health=True, interval=0.2))
        try:
            set_up(shop, keys, {"RUNTIME_ENVIRONMENT": "PROD", "SIGNING_DIR": str(signing / SIGNING_DIR.name)})
            (path / ".env").chmod(0o600)
            shop.write_compose_file()
            stage = Stage(shop, signing, keys.rsa.private_b64, str(keys.rsa.passphrase))
            fill(stage)
            yield stage
        finally:
            shop.down()
            for leftover in (path, signing):
                shutil.rmtree(leftover)


def fill(stage: Stage) -> None:
    """Start the bot, and make backups: one of a fixed name, and those of the days until now."""
    shop = stage.shop
    photos = ["INSERT INTO photos (content) VALUES (randomblob(1000000))"] * 30
    stage.execute("CREATE TABLE photos (id INTEGER PRIMARY KEY, content BLOB)", *photos)
    shop.up()
    shop.wait_rows(20)
    made = shop.create_backup("--no-sign")  # a signature is of the name, too
    checksum = Path(f"{made}.sha256").read_text()
    now = datetime.now().astimezone()
    times = [now - timedelta(hours=hours) for hours in (2, 26, 50, 74, 170, 338)]
    for name in (*(f"backups/db_backup_{time:%Y%m%d_%H}0000.db.gz.gpg" for time in times), BACKUP):
        os.link(made, shop.path / name)
        (shop.path / f"{name}.sha256").write_text(checksum.replace(made.name, Path(name).name))
    for leftover in (made, Path(f"{made}.sha256")):
        leftover.unlink()
    shop.wait_health("healthy")


# --- the screen ------------------------------------------------------------------------------------------------------

TOKEN = re.compile(
    r"(?P<style>\x1b\[[0-9;]*m)|\x1b\[(?P<number>[0-9;?]*)(?P<what>[A-Za-z])|(?P<end>\r?\n)|(?P<start>\r)"
    r"|(?P<text>[^\x1b\r\n]+)"
)
# Printed only on machines where even root must not inspect process 1.
HIDDEN_PROCESSES = re.compile(r"⚠  cannot tell whether .* is in use")


def screen_rows(shown: str, columns: int) -> list[Text]:
    """Return the rows of a terminal, its scroll-back too: progress is erased, long lines are wrapped."""
    lines = [""]
    row = 0
    for token in TOKEN.finditer(shown):
        if token["end"]:
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token["what"] == "A":
            row = max(0, row - int(token["number"] or 1))
        elif token["what"] == "K":
            lines[row] = ""
        elif token["text"] or token["style"]:
            lines[row] += token[0]
    while lines and not lines[-1]:
        lines.pop()
    # Most terminals show a character with a variation selector in one cell, rich in two.
    texts = [Text.from_ansi(line.replace("\ufe0f", "")) for line in lines]
    return [part for text in without_warning(texts) for part in chopped(text, columns)]


def without_warning(lines: list[Text]) -> Iterator[Text]:
    """Leave out the warning about processes that cannot be inspected, with its continuation lines."""
    leaving = False
    for line in lines:
        leaving = bool(HIDDEN_PROCESSES.match(line.plain)) or (leaving and line.plain.startswith("   "))
        if not leaving:
            yield line


def chopped(text: Text, columns: int) -> list[Text]:
    """Return the rows that a line takes."""
    rows = [end // columns for end in accumulate(cell_len(char) for char in text.plain)]
    breaks = [place for place in range(1, len(rows)) if rows[place - 1] != rows[place] and place < len(rows) - 1]
    return list(text.divide(breaks))


# Each in an element of its own, so that it has its own cell, whatever its width in the reader's font.
PICTURE = "[\U0001f300-\U0001faff\u2600-\u27bf]"
OWN_CELL = re.compile(f"^ +| {{2,}}|{PICTURE}|(?<={PICTURE}) +")


def draw(scene: Scene, rows: list[Text]) -> None:
    """Write the picture with rich."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=scene.columns, file=nowhere, force_terminal=True)
        for text in rows:
            text.no_wrap, text.overflow = True, "ignore"
            text.highlight_regex(OWN_CELL, "not underline")
            console.print(text, highlight=False, crop=False)
    size = "" if scene.whole else f"   {scene.columns}×{scene.lines}"
    picture = console.export_svg(title=f"ssh -t host{size}", unique_id=scene.name)
    # Readers' machines must not fetch a font from a server.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    (ROOT / f"docs/{scene.name}.svg").write_text(picture, encoding="utf-8")
    print(f"docs/{scene.name}.svg: {len(rows)} lines")


if __name__ == "__main__":
    main(sys.argv[1:])
