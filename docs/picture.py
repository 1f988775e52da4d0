#!/usr/bin/env python3
"""Makes docs/restore.svg, the picture of a restore in README.md: `sudo python docs/picture.py`.

It shows a real run: a shop with a bot in a container, restored on a terminal of 80 columns, rendered by rich. Needs a
running Docker.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from rich.cells import chop_cells  # noqa: E402 - beside the others, after the path is set
from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

from tests.conftest import new_folder, set_up  # noqa: E402
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

COLUMNS = 80
BACKUP = "backups/db_backup_20250130_120000.db.gz.gpg"


def main() -> None:
    """Make a shop, restore it, draw the terminal."""
    with tempfile.TemporaryDirectory(prefix="picture-") as folder, gpg_home() as home:
        keys = make_keys(home)
        (Path(folder) / "docker").mkdir()
        import_image()
        try:
            compose = compose_v2(Path(folder) / "docker")
        except NotAvailable:
            compose = compose_v1(Path(folder) / "docker")
        path = new_folder(Path(folder))
        shop = BotShop(path, "sqlcipher", env=compose.env, compose=compose, bot=Bot(health=True, interval=0.2))
        set_up(shop, keys, {"RUNTIME_ENVIRONMENT": "PROD"})
        shop.write_compose_file()
        try:
            seen = restore(shop, keys.rsa.private_b64, str(keys.rsa.passphrase))
        finally:
            shop.down()
    draw(seen)


def restore(shop: BotShop, key: str, passphrase: str) -> str:
    """Restore the shop and return what the terminal showed, with the command."""
    with closing(shop.connect()) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER PRIMARY KEY, content BLOB)")
        for _ in range(30):
            connection.execute("INSERT INTO photos (content) VALUES (randomblob(1000000))")
    shop.up()
    shop.wait_rows(20)
    made = shop.create_backup()
    made.rename(shop.path / BACKUP)
    checksum = Path(f"{made}.sha256").read_text().replace(made.name, Path(BACKUP).name)
    (shop.path / f"{BACKUP}.sha256").write_text(checksum)
    with closing(shop.connect()) as connection:
        connection.execute("DELETE FROM orders WHERE id > 40")  # the mistake to undo
        connection.execute("DELETE FROM items WHERE order_id > 40")
    shop.wait_health("healthy")
    env = shop.environment({"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
    terminal = Terminal(["python", "restore_backup.py", BACKUP], cwd=shop.path, env={**env, "COLUMNS": str(COLUMNS)})
    try:
        terminal.expect("Paste the private key[^:]*: ")
        terminal.send(f"{key}\n")
        terminal.expect("Passphrase of the private key: ")
        terminal.send(f"{passphrase}\n")
        terminal.expect(r"\[y/N\] ")
        terminal.send("y\n")
        code = terminal.wait(180)
    finally:
        terminal.end()
    if code:
        raise SystemExit(f"the restore ended with {code}:\n{terminal.output}")
    # Printed only on machines where even root must not inspect process 1.
    shown = re.sub(r"⚠️  cannot verify [^\n]*\n", "", terminal.output)
    return f"$ python restore_backup.py {BACKUP}\r\n{shown}".replace(str(shop.path), "/srv/shopbot")


TOKEN = re.compile(r"\x1b\[(?P<number>[0-9;?]*)(?P<what>[A-Za-z])|(?P<end>\r?\n)|(?P<start>\r)|(?P<text>[^\x1b\r\n]+)")


def final_lines(shown: str) -> list[str]:
    """Return what remains on the screen, like a terminal: progress is erased, long lines are wrapped."""
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
        elif token["text"]:
            lines[row] += token["text"]
    # Most terminals show a character with a variation selector in one cell, rich in two.
    narrow = [line.replace("\ufe0f", "") for line in lines]
    return [part for line in narrow for part in chop_cells(line, COLUMNS) or [""]]


# Each in an element of its own, so that it has its own cell, whatever its width in the reader's font.
OWN_CELL = re.compile(r"^ +|[\U0001F300-\U0001FAFF\u2600-\u27BF]\ufe0f?")


def draw(shown: str) -> None:
    """Write the picture with rich."""
    lines = "\n".join(final_lines(shown)).rstrip().split("\n")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        for line in lines:
            text = Text(line, no_wrap=True, overflow="ignore")
            text.highlight_regex(OWN_CELL, "not bold")
            console.print(text, highlight=False, crop=False)
    picture = console.export_svg(title="ssh -t host", unique_id="restore")
    # Readers' machines must not fetch a font from a server.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    (ROOT / "docs/restore.svg").write_text(picture, encoding="utf-8")
    print(f"docs/restore.svg: {len(lines)} lines")


if __name__ == "__main__":
    main()
