"""The screen as it is: which signs a locale can show, what NO_COLOR and TERM=dumb ask for, and lines that fit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeShop, StartTerminal
from tests.support.shop import ROOT, Shop
from tests.support.terminal import Terminal

CONFIRM = r"Warning: This will restore over the configured database\. Continue\? \[y/N\] "
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def shop(make_shop: MakeShop) -> Shop:
    """A shop whose backups need no key."""
    return make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None)


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    ("locale", "pictures"),
    [
        ({"LC_ALL": "C"}, False),
        ({"LC_ALL": "", "LC_CTYPE": "", "LANG": "C"}, False),
        ({"LC_ALL": "", "LC_CTYPE": "", "LANG": "de_DE.ISO-8859-1"}, False),
        ({"LC_ALL": "", "LC_CTYPE": "C.UTF-8", "LANG": "C"}, True),
        ({"LC_ALL": "", "LC_CTYPE": "", "LANG": ""}, True),
    ],
)
def test_pictures_only_where_the_locale_can_show_them(
    shop: Shop, terminal: StartTerminal, locale: dict[str, str], pictures: bool
) -> None:
    """Python alone takes the locale C for UTF-8. Where nothing is set, as under cron, nothing is known against it."""
    backup = shop.create_backup()
    at = terminal(shop, backup, env=locale)
    at.expect(CONFIRM)
    at.send("y\n")
    assert at.wait() == 0, at.output
    piped = shop.restore(backup, "--force", env=locale, as_json=False).text
    for shown in (at.output, piped):
        assert shown.isascii() != pictures
        assert ("✅ Database restored successfully" if pictures else "[ok] Database restored successfully") in shown
    assert "✅ Database restored successfully" in (shop.backups / "restore.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("setting", ["NO_COLOR=1", "TERM=dumb"])
def test_no_colours_where_none_are_wanted(shop: Shop, setting: str) -> None:
    argv = ["env", setting, sys.executable, "restore_backup.py", str(shop.create_backup()), "--force"]
    at = Terminal(argv, cwd=shop.path, env=shop.environment())
    try:
        assert at.wait() == 0, at.output
    finally:
        at.end()
    assert not COLOURS.search(at.output)


def test_name_in_a_question_steers_no_terminal(shop: Shop, terminal: StartTerminal) -> None:
    target = shop.path / "x\x1b[2J.db"
    target.write_bytes(shop.content())
    at = terminal(shop, shop.create_backup(), "--target-path", target)
    asked = at.expect(r"exists\. Overwrite\? \[y/N\]")
    at.send("n\n")
    assert at.wait() == 10, at.output
    assert asked
    assert "\x1b[2J" not in at.output


PROGRESS = """
import time
from backuplib.console import Console
for label in ("💽 Writing the new database...", "🔓 Decrypting backup..."):
    with Console().step(label, 999_900_000) as step:
        for done in range(100_000_000, 999_900_000, 80_000_000):
            step.progress(done)
            time.sleep(0.1)
"""


def test_progress_with_rate_and_time_left_takes_one_line_of_80_columns() -> None:
    at = Terminal([sys.executable, "-c", PROGRESS], cwd=ROOT, env={**os.environ, "COLUMNS": "80", "LC_ALL": "C.UTF-8"})
    try:
        assert at.wait() == 0, at.output
    finally:
        at.end()
    frames = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame) for frame in re.split(r"[\r\n]+", at.output)]
    shown = [frame for frame in frames if "MB/s" in frame]
    assert shown
    assert [frame for frame in shown if not re.search(r"[\d.]+/999\.9 MB +[\d.]+ MB/s +\d\d:\d\d", frame)] == []


def test_commands_in_hints_can_be_copied_when_a_folder_has_blanks(shop: Shop, tmp_path: Path) -> None:
    backup = shop.create_backup()
    target = tmp_path / "no such folder" / "copy.db"
    done = shop.restore(backup, "--target-path", target)
    assert done.ended == (3, "unsuitable-target"), done.text
    hint = re.search(r"mkdir -p .*$", done.error["hint"])
    assert hint
    subprocess.run(["/bin/sh", "-c", hint[0]], check=True)
    assert shop.restore(backup, "--target-path", target).code == 0


def test_help_fits_into_80_columns() -> None:
    command = [sys.executable, "restore_backup.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True, env={"COLUMNS": "80"})
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
