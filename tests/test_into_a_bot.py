"""README, "Into the bot's repository": the files in a bot that has a DatabaseBackup, and settings, of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeShop
from tests.support.keys import Keys
from tests.support.shop import PROGRAM, Shop

BOT = {
    "bot/__init__.py": "",
    "bot/config.py": 'TOKEN = "of the messenger"\n',
    "bot/utils/__init__.py": "",
    "bot/utils/db_backup.py": "class DatabaseBackup:\n    '''The bot's own, as it was.'''\n",
    "bot/nightly.py": """\
import sys
from bot import config
from bot.utils.db_backup import DatabaseBackup

assert config.TOKEN
print(DatabaseBackup(*sys.argv[1:]).create_backup())
""",
}


@pytest.fixture
def bot(make_shop: MakeShop) -> Shop:
    """A shop that is a bot's repository, with packages of its own."""
    shop = make_shop("sqlcipher")
    for name, text in BOT.items():
        path = shop.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return shop


def nightly(shop: Shop) -> Path:
    """The bot makes its nightly backup, by its own import path."""
    command = [sys.executable, "-m", "bot.nightly", "data/shop.db", "backups"]
    done = subprocess.run(
        command, cwd=shop.path, env=shop.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def round_trip(shop: Shop, keys: Keys) -> None:
    """Backup by the bot, change, restore: the rows are back, and what was there is kept."""
    rows, backup = shop.rows(), nightly(shop)
    shop.change_data()
    changed = shop.rows()
    done = shop.restore(backup, "--force", key=keys.rsa)
    assert done.code == 0, done.text
    assert shop.rows() == rows
    (kept,) = set(shop.backups.glob("*.gpg")) - {backup}
    assert shop.backup_rows(kept, keys.rsa) == changed


def test_the_bots_module_takes_the_class_from_here(bot: Shop, keys: Keys) -> None:
    """One line in the bot; its callers stay as they are."""
    (bot.path / "bot/utils/db_backup.py").write_text("from database_backup import DatabaseBackup  # noqa: F401\n")
    round_trip(bot, keys)


@pytest.mark.deep
def test_the_class_lives_in_the_bots_module(bot: Shop, keys: Keys) -> None:
    """One line here: database_backup.py says where it is."""
    (bot.path / "database_backup.py").rename(bot.path / "bot/utils/db_backup.py")
    (bot.path / "database_backup.py").write_text("from bot.utils.db_backup import DatabaseBackup  # noqa: F401\n")
    round_trip(bot, keys)
    drill = bot.restore("--drill", timeout=100)
    assert drill.code == 0, drill.text


def test_names_that_are_taken_a_folder_of_its_own(bot: Shop, keys: Keys) -> None:
    """The bot has a config.py of its own at the top: the tool in ops/, with links to what it shares with the bot."""
    ops = bot.path / "ops"
    ops.mkdir()
    for name in PROGRAM:
        (bot.path / name).rename(ops / name)
    for name in (".env", "data", "backups", "docker-compose.prod.yml"):
        (ops / name).symlink_to(f"../{name}")
    (bot.path / "config.py").write_text("TOKEN = 'the bot has this name already'\n")
    rows, backup = bot.rows(), bot.run("ops/database_backup.py", "create")
    assert backup.code == 0, backup.text
    bot.change_data()
    done = bot.run("ops/restore_backup.py", bot.path / backup.out.strip(), "--force", key=keys.rsa)
    assert done.code == 0, done.text
    assert bot.rows() == rows
    assert not bot.db_path.is_symlink()
