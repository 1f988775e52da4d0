"""README, "Into the bot's repository": the tool in a bot that has a config.py, and a DatabaseBackup, of its own."""

import gzip
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from config import load_settings
from tests.conftest import MakeShop
from tests.support.containers import BotShop, call
from tests.support.keys import Keys
from tests.support.needs import compose_plugin
from tests.support.shop import PROGRAM, ROOT, Completed, Shop, quote_for_env

DB_PASS = """it's $9.99 "today" #1"""
"""What a .env can spoil: a quote, a variable, a comment."""

BOT = {
    # Older versions start tunnels when this is imported; all of them exit without their settings.
    "config.py": """\
import os
import sys
from pathlib import Path

from dotenv import load_dotenv

Path(__file__).with_name("tunnel").touch()
load_dotenv(".env")
TOKEN = os.environ.get("TOKEN") or sys.exit("TOKEN is not set")
DB_NAME = os.environ.get("DB_NAME")
DB_BACKUP_PATH = os.environ.get("DB_BACKUP_PATH", "./backups")
DB_BACKUP_RETENTION_DAYS = int(os.environ.get("DB_BACKUP_RETENTION_DAYS", "7"))
""",
    "bot.py": "import config\n",
    "utils/__init__.py": "",
    "utils/db_backup.py": "class DatabaseBackup:\n    '''The bot's own, as it was.'''\n",
    "jobs/__init__.py": "",
    # As the bot calls it, in an executor and with positional arguments.
    "jobs/database_backup_job.py": """\
import asyncio
import json

import config
from utils.db_backup import get_backup_handler


async def cycle():
    call = asyncio.get_running_loop().run_in_executor
    handler = await call(None, get_backup_handler)
    path = await call(None, handler.create_backup, True, True)
    valid = path is not None and await call(None, handler.verify_backup, path)
    removed = await call(None, handler.cleanup_old_backups, config.DB_BACKUP_RETENTION_DAYS)
    backups = await call(None, handler.list_backups)
    print(json.dumps({"path": path, "valid": valid, "removed": removed, "backups": backups}, default=str))


asyncio.run(cycle())
""",
}

LIKE_THE_IMAGE = "import sys\nsys.modules.update(dict.fromkeys(['isal', 'rich', 'argcomplete']))\n"
"""A sitecustomize.py that takes away the packages that the bot's image does not have."""


def readme_block(first_line: str) -> list[str]:
    """The lines of the README's command block that begins with this one."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text[text.index(f"\n\n    {first_line}\n") :].lstrip("\n").partition("\n\n")[0].splitlines()
    return [line.removeprefix("    ").replace("TOOL", str(ROOT)) for line in lines]


def move_in(shop: Shop) -> None:
    """What the README says: the shop becomes a bot's repository with the tool in ops/."""
    for name in PROGRAM:
        path = shop.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, text in BOT.items():
        path = shop.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    make, copy, link, install, run = readme_block("mkdir ops")
    assert ".venv" in install
    assert "ops/restore_backup.py --list" in run
    done = subprocess.run(["/bin/bash", "-ec", f"{make}\n{copy}\n{link}"], cwd=shop.path, check=False)
    assert done.returncode == 0


@pytest.fixture
def bot(make_shop: MakeShop) -> Shop:
    """A bot's repository with the tool in ops/."""
    shop = make_shop("sqlcipher", DB_NAME="database.db", DB_PASS=DB_PASS, DB_BACKUP_PATH="./backups")
    move_in(shop)
    return shop


# --- in a folder of its own ------------------------------------------------------------------------------------------


def test_a_folder_of_its_own(bot: Shop, keys: Keys) -> None:
    """Backup, change, restore with the tool in ops/: links lead where they should, the bot's config.py is not run."""
    rows, made = bot.rows(), bot.run("ops/database_backup.py", "create")
    assert made.code == 0, made.text
    bot.change_data()
    changed = bot.rows()
    backup = bot.backups / Path(made.out.strip()).name
    done = bot.run("ops/restore_backup.py", backup, "--force", key=keys.rsa)
    assert done.code == 0, done.text
    assert bot.rows() == rows
    (kept,) = set(bot.backups.glob("*.gpg")) - {backup}
    assert bot.backup_rows(kept, keys.rsa) == changed
    assert {path.name for path in (bot.path / "ops").iterdir() if path.is_symlink()} == {
        ".env",
        "data",
        "backups",
        "docker-compose.prod.yml",
        "docker-compose.dev.yml",
    }
    assert not bot.db_path.is_symlink()
    assert not (bot.path / "tunnel").exists()


def test_compose_file_that_is_not_made_yet_is_named(bot: Shop) -> None:
    """It is made from a template, so its link dangles until then."""
    bot.write_env(RUNTIME_ENVIRONMENT="PROD")
    made = bot.run("ops/database_backup.py", "create")
    key = ("--key-stdin", "--passphrase-command", "false")  # else it is named among what is missing
    done = bot.run("ops/restore_backup.py", made.out.strip(), "--force", "--json", *key)
    assert done.ended == (3, "unusable-compose-file"), done.text
    assert str(bot.path / "ops/docker-compose.prod.yml") in done.error["message"]


@pytest.mark.docker
@pytest.mark.parametrize("mode", ["sqlcipher"])
def test_services_are_found_through_the_link_to_the_compose_file(bot_shop: BotShop, keys: Keys) -> None:
    bot_shop.write_env(DB_BACKUP_PATH="./backups")
    move_in(bot_shop)
    made = bot_shop.run("ops/database_backup.py", "create")
    assert made.code == 0, made.text
    bot_shop.change_data()
    done = bot_shop.run("ops/restore_backup.py", made.out.strip(), "--force", "--json", key=keys.rsa)
    assert done.code == 0, done.text
    assert "bot" in str(done.report["services"])
    assert bot_shop.is_restored()


# --- a config.py that is not ours ------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["restore_backup.py", "database_backup.py"])
@pytest.mark.parametrize(
    "foreign",
    [
        BOT["config.py"],
        "raise RuntimeError('no tunnel')\n",
        "TOKEN = 'all is well'\n",
        "class Settings: ...\ndef load_settings(): ...\nEnvironment = None\n",
        "this is no Python\n",
    ],
    ids=["exits", "raises", "lacks our names", "has our names", "broken"],
)
def test_scripts_beside_the_bots_config_say_so(make_shop: MakeShop, script: str, foreign: str) -> None:
    shop = make_shop("sqlite")
    (shop.path / "config.py").write_text(foreign)
    before = shop.snapshot()
    arguments = {"restore_backup.py": ["--list"], "database_backup.py": ["create"]}[script]
    done = shop.run(script, *arguments)
    assert done.code == 3, done.text
    assert done.out == ""
    assert str(shop.path / "config.py") in done.err
    assert "Traceback" not in done.err
    assert shop.snapshot() == before
    assert not (shop.path / "tunnel").exists()


def test_foreign_config_has_an_identity_for_programs(make_shop: MakeShop) -> None:
    shop = make_shop("sqlite")
    (shop.path / "config.py").write_text(BOT["config.py"])
    assert shop.restore("--list").ended == (3, "foreign-config")


def test_a_package_of_the_bots_that_comes_before_our_config_is_told(make_shop: MakeShop) -> None:
    """Python takes a folder `config` before a file."""
    shop = make_shop("sqlite")
    (shop.path / "config").mkdir()
    (shop.path / "config/__init__.py").write_text(BOT["config.py"])
    done = shop.restore("--list")
    assert done.ended == (3, "foreign-config")
    assert str(shop.path / "config/__init__.py") in done.error["message"]


def test_where_the_bots_config_is_imported_already_the_class_is_not_had(bot: Shop) -> None:
    """An exception there, since the process is the bot's; the README's way is a process of its own."""
    code = "import config, sys; sys.path.insert(0, 'ops'); import database_backup"
    done = run_python(bot, "-c", code)
    assert done.code == 1
    assert f"ForeignConfigError: {bot.path / 'config.py'} is not" in done.err


# --- under the bot's own backups -------------------------------------------------------------------------------------


def like_the_image(shop: Shop) -> dict[str, str]:
    """The environment of a Python that has no more packages than the bot's image."""
    folder = shop.path / "image"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(LIKE_THE_IMAGE)
    return {"PYTHONPATH": str(folder)}


def run_python(shop: Shop, *arguments: str, **settings: str) -> Completed:
    """Python in the bot's repository, as its container has it: settings in the environment."""
    env = shop.environment({**like_the_image(shop), "TOKEN": "1:x", **shop.settings, **settings})
    done = subprocess.run(
        [sys.executable, *arguments], cwd=shop.path, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    return Completed(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def adapted(bot: Shop) -> Shop:
    """The same with the adapter; in a container there is no .env."""
    (copy,) = readme_block("cp TOOL/examples/bot/db_backup.py utils/db_backup.py")
    subprocess.run(copy.split(), cwd=bot.path, check=True)
    (bot.path / "ops/.env").unlink()
    (bot.path / ".env").rename(bot.path / "env of the container")
    return bot


def cycle(shop: Shop, **settings: str) -> dict[str, Any]:
    """What the bot's job got."""
    done = run_python(shop, "-m", "jobs.database_backup_job", **settings)
    assert done.code == 0, done.text
    return {**json.loads(done.out), "log": done.err}


def test_callers_of_the_bots_class_get_backups_of_ours(adapted: Shop, keys: Keys) -> None:
    rows, old = adapted.rows(), adapted.backups / "db_backup_20250101_000000.db.gz.gpg"
    old.write_bytes(b"of the bot")
    os.utime(old, (1, 1))
    got = cycle(adapted)
    assert got["valid"] is True, got["log"]
    assert got["removed"] == 1
    backup = Path(got["path"])
    assert adapted.backup_rows(backup, keys.rsa) == rows
    assert adapted.sha256sum_accepts(backup)
    (listed,) = got["backups"]
    assert listed.pop("created")
    assert listed == {
        "path": str(backup),
        "filename": backup.name,
        "size": backup.stat().st_size,
        "compressed": True,
        "encrypted": True,
    }


def test_remote_that_is_out_of_reach_is_in_the_log_and_the_backup_here_counts(adapted: Shop) -> None:
    old = adapted.backups / "db_backup_20250101_000000.db.gz.gpg"
    old.write_bytes(b"of the bot")
    os.utime(old, (1, 1))
    got = cycle(adapted, BACKUP_REMOTES="no-such-remote:shop")
    assert (got["valid"], got["removed"]) == (True, 1), got["log"]
    assert "Not copied to no-such-remote:shop" in got["log"]
    assert "no-such-remote:shop was not pruned" in got["log"]


def test_failures_are_none_false_and_0_and_the_log_says_why(adapted: Shop) -> None:
    got = cycle(adapted, DB_PASS="another")
    assert (got["path"], got["valid"], got["removed"], got["backups"]) == (None, False, 0, [])
    assert "Check DB_ENCRYPTION and DB_PASS" in got["log"]
    assert DB_PASS not in got["log"]
    code = """
from utils.db_backup import DatabaseBackup
handler = DatabaseBackup("data/database.db", "backups")
made = handler.create_backup()
print(handler.restore_backup(made), handler.verify_backup(made))
made.write_bytes(made.read_bytes() + b"x")
print(handler.verify_backup(made))
made.with_name(made.name + ".sha256").unlink()
print(handler.verify_backup(made))
"""
    before = adapted.snapshot()
    done = run_python(adapted, "-c", code)
    assert done.out.splitlines() == ["False True", "False", "False"], done.text
    assert "ops/.venv/bin/python ops/restore_backup.py" in done.err
    assert adapted.snapshot() == before
    shutil.rmtree(adapted.path / "ops")
    assert cycle(adapted)["path"] is None


def test_adapter_hands_on_both_flags_and_lists_the_newest_first(adapted: Shop, keys: Keys) -> None:
    code = """
from utils.db_backup import get_backup_handler
handler = get_backup_handler()
for compress in (True, False):
    for encrypt in (True, False):
        made = handler.create_backup(compress, encrypt)
        print(made, handler.verify_backup(made))
for backup in handler.list_backups():
    print(backup["path"], backup["compressed"], backup["encrypted"])
"""
    done = run_python(adapted, "-c", code)
    lines = [re.sub(r".*_\d{6}", "", line) for line in done.out.splitlines()]
    assert lines[:4] == [".db.gz.gpg True", ".db.gz True", ".db.gpg True", ".db True"], done.text
    newest_first = [".db False False", ".db.gpg False True", ".db.gz True False", ".db.gz.gpg True True"]
    assert lines[4:] == newest_first


def test_backup_and_restore_work_without_isal(shop: Shop, keys: Keys) -> None:
    """What is made without it is the same gzip, and restores with it, and without it."""
    rows = shop.rows()
    done = shop.run("database_backup.py", "create", env=like_the_image(shop))
    assert done.code == 0, done.text
    backup = Path(done.out.strip())
    assert shop.backup_rows(backup, keys.rsa) == rows
    for env in (like_the_image(shop), {}):
        shop.change_data()
        done = shop.restore(backup, "--force", "--skip-backup", key=keys.rsa, env=env)
        assert done.code == 0, done.text
        assert shop.rows() == rows


def test_passphrase_is_on_no_command_line(adapted: Shop) -> None:
    """A Python in the place of the bot's notes what it is called with."""
    calls, python = adapted.path / "calls", adapted.path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s " "$@" >>{calls}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    code = f"import sys; sys.executable = {str(python)!r}; from utils.db_backup import get_backup_handler; "
    done = run_python(adapted, "-c", f"{code} print(get_backup_handler().create_backup(True, True))")
    assert ".db.gz.gpg" in done.out, done.text
    assert calls.read_text() == f"{adapted.path}/ops/database_backup.py create "


# --- the API of our own class ----------------------------------------------------------------------------------------


def test_encrypt_false_makes_a_plain_backup_though_there_is_a_key(shop: Shop) -> None:
    """Without a warning: that was asked for. It is mode 0600, and a SQLCipher database stays one."""
    code = "from database_backup import get_backup_handler; print(get_backup_handler().create_backup(True, False))"
    made = [shop.run("-c", code), shop.run("database_backup.py", "create", "--no-encrypt")]
    for done in made:
        assert (done.code, done.err) == (0, "")
        backup = Path(done.out.strip())
        assert re.fullmatch(r"db_backup_\d{8}_\d{6}\.db\.gz", backup.name)
        assert stat.S_IMODE(backup.stat().st_mode) == 0o600
        assert shop.backup_rows(backup, None) == shop.rows()
        assert gzip.decompress(backup.read_bytes()).startswith(b"SQLite format 3") == (shop.mode == "sqlite")


def test_handler_is_one_of_the_settings(shop: Shop, keys: Keys) -> None:
    code = "from database_backup import get_backup_handler as get; h = get(); print(h.create_backup(True, True))"
    done = shop.run("-c", code)
    backup = Path(done.out.strip())
    assert backup.parent == shop.backups
    assert shop.backup_rows(backup, keys.rsa) == shop.rows()


@pytest.mark.deep
def test_a_package_of_the_bots_may_hold_the_class(make_shop: MakeShop, keys: Keys) -> None:
    """One line here: database_backup.py says where it is."""
    shop = make_shop("sqlcipher")
    (shop.path / "shop").mkdir()
    (shop.path / "database_backup.py").rename(shop.path / "shop/db_backup.py")
    (shop.path / "database_backup.py").write_text("from shop.db_backup import DatabaseBackup  # noqa: F401\n")
    rows = shop.rows()
    backup = shop.run("-m", "shop.db_backup", "create").out.strip()
    shop.change_data()
    done = shop.restore(backup, "--force", key=keys.rsa)
    assert done.code == 0, done.text
    assert shop.rows() == rows
    drill = shop.restore("--drill", timeout=100)
    assert drill.code == 0, drill.text


# --- one .env for both -----------------------------------------------------------------------------------------------

V1 = pytest.param("v1", marks=pytest.mark.needs("docker compose v1", "docker compose v2"))
V2 = pytest.param("v2", marks=pytest.mark.needs("docker compose v2"))


def as_compose_reads(folder: Path, flavour: str) -> dict[str, str]:
    """What a container gets of the .env there through `env_file`; the second version turns YAML into JSON."""
    file = folder / "docker-compose.yml"
    file.write_text('version: "3.8"\nservices: {bot: {image: none, env_file: [.env]}}\n')
    if flavour == "v1":
        file.write_text(call("docker-compose", "-f", str(file), "config"))
    shown = json.loads(call(str(compose_plugin()), "-f", str(file), "config", "--format", "json"))
    return {name: value.replace("$$", "$") for name, value in shown["services"]["bot"]["environment"].items()}


@pytest.mark.parametrize("flavour", [V1, V2])
def test_values_quoted_as_the_readme_says_are_read_alike(tmp_path: Path, flavour: str) -> None:
    """By this tool, by Compose for the bot's container, and by the bot on the host, which expands variables."""
    values = [
        DB_PASS,
        "pa$word",
        "$",
        "$$x",
        "{x}",
        " blanks ",
        "'",
        '"',
        "a=b;c|d&e`f!g%h~i*",
        "pässwörd ✅",
        "x" * 500,
    ]
    (readme,) = readme_block("DB_PASS='it\\'s $9.99 \"today\" #1'")
    lines = [readme.removeprefix("DB_PASS="), *map(quote_for_env, values[1:])]
    (tmp_path / ".env").write_text("".join(f"P{number}={line}\n" for number, line in enumerate(lines)))
    expected = {f"P{number}": value for number, value in enumerate(values)}
    assert dotenv_values(tmp_path / ".env", interpolate=False) == expected
    assert dotenv_values(tmp_path / ".env") == expected
    assert as_compose_reads(tmp_path, flavour) == expected
    (tmp_path / ".env").write_text(f"DB_ENCRYPTION=true\n{readme}\n")
    db_pass = load_settings(tmp_path, {}).db_pass
    assert db_pass
    assert db_pass.reveal() == DB_PASS


@pytest.mark.needs("docker compose v1", "docker compose v2")
def test_what_the_readme_warns_of_is_read_differently(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BARE=pa$word\nBACKSLASHES='a\\\\b'\nBRACES='${HOME}'\n")
    ours = dotenv_values(tmp_path / ".env", interpolate=False)
    second, first = as_compose_reads(tmp_path, "v2"), as_compose_reads(tmp_path, "v1")
    assert (ours["BARE"], second["BARE"]) == ("pa$word", "pa")
    assert ours["BACKSLASHES"] != second["BACKSLASHES"]
    assert ours["BRACES"] != first["BRACES"]
