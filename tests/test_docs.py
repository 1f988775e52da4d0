"""Each option, setting and exit code stands where operators look: README.md, --help and .env.example."""

import importlib
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import config
from backuplib.errors import EndedBySignalError, ExitCode, OperatorError
from restore_backup import command_line
from tests.conftest import MakeShop
from tests.support.shop import ROOT, SETTINGS

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


@pytest.fixture(scope="module")
def readme() -> str:
    """README.md."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


def printed_help(script: str) -> str:
    """What `SCRIPT --help` prints."""
    command = [sys.executable, script, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True, timeout=30).stdout


def table(readme: str, head: str) -> dict[str, str]:
    """The table of the README whose first heading this is: the first cell of each row, and the others."""
    rows = readme[readme.index(f"\n| {head} |") :].strip().partition("\n\n")[0].splitlines()[2:]
    return dict(re.fullmatch(r"\| ?(.*?) \| ?(.*) ?\|", row).groups() for row in rows)  # type: ignore[union-attr,misc]


def words_of(cells: Iterable[str]) -> list[str]:
    """What is written as code in these cells."""
    return [word for cell in cells for word in re.findall(r"`([^` ]+)[^`]*`", cell)]


# --- options ---------------------------------------------------------------------------------------------------------


def options() -> set[str]:
    """The options that the program takes, and the argument."""
    actions = command_line()._actions
    return {name for action in actions for name in action.option_strings or [action.dest]} - {"-h"}


def test_help_shows_every_option_and_no_other() -> None:
    shown = printed_help("restore_backup.py")
    assert {*OPTION.findall(shown), "backup_file"} == options()
    assert "backup_file" in shown


def test_readme_explains_every_option_and_no_other(readme: str) -> None:
    explained = words_of(table(readme, "option"))
    assert len(explained) == len(set(explained))
    assert {*explained} - {"-h"} == options()


def test_every_option_in_a_command_of_the_documents_exists(readme: str) -> None:
    text = readme + (ROOT / "RUNBOOK.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "restore_backup.py" in line]
    assert lines
    assert {option for line in lines for option in OPTION.findall(line)} <= options()


BARE_PYTHON = re.compile(r"(?<![\w/.])(?<!PATH=\.venv/bin:\$PATH )python (?=\S*\.py)")


def test_every_command_of_the_documents_finds_its_python_on_a_plain_debian(readme: str) -> None:
    """Which has no `python`: .venv/bin/python on the host; over SSH the same by way of PATH, for that command alone."""
    text = "\n".join([readme, (ROOT / "RUNBOOK.md").read_text(encoding="utf-8"), printed_help("restore_backup.py")])
    lines = [line for line in text.replace(" \\\n", " ").splitlines() if "_backup.py" in line and "<Tab>" not in line]
    assert BARE_PYTHON.search("cd shopbot && python restore_backup.py")
    assert [line for line in lines if BARE_PYTHON.search(line)] == []


def test_env_example_says_what_keeps_two_folders_of_one_name_apart() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert re.search(r"^#COMPOSE_PROJECT_NAME=\S+$", text, re.MULTILINE)


def test_backup_commands_stand_in_readme_and_help(readme: str) -> None:
    shown = printed_help("database_backup.py")
    commands = set(re.findall(r"^ {4}(\w+) ", shown, re.MULTILINE))
    assert commands == {"create", "push", "list", "verify", "rescue", "prune", "status"}
    named = {word for line in readme.splitlines() if "database_backup.py" in line for word in re.findall(r"\w+", line)}
    assert commands <= named


# --- settings --------------------------------------------------------------------------------------------------------


def settings_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names that the program asks for when it reads its settings."""
    asked = set()
    text = config._Values.text

    def note(values: Any, name: str, default: str) -> str:
        asked.add(name)
        return {"DB_ENCRYPTION": "true", "DB_PASS": "x"}.get(name) or text(values, name, default)

    monkeypatch.setattr(config._Values, "text", note)
    config.load_settings(tmp_path, {})
    return asked


def env_example() -> dict[str, str]:
    """The settings in .env.example."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    return dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", text, re.MULTILINE))


def test_readme_and_env_example_have_every_setting_and_no_other(
    readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = settings_read(tmp_path, monkeypatch)
    assert set(words_of(table(readme, "name"))) == read
    assert set(env_example()) - {"BOT_IMAGE", "REDIS_IMAGE"} == read  # those two are the compose files'
    assert set(SETTINGS) == read  # which the tests keep away from the programs that they run


def test_defaults_in_readme_and_env_example_are_those_of_the_program(readme: str, tmp_path: Path) -> None:
    settings = config.load_settings(tmp_path, {})
    defaults = {
        "DB_NAME": settings.db_path.name,
        "DATA_DIR": settings.db_path.parent.name,
        "DB_BACKUP_PATH": settings.backup_dir.name,
        "DB_BACKUP_RETENTION_DAYS": str(settings.retention_days),
        "MAX_DATABASE_MB": str(settings.max_database_bytes),
        "BACKUP_MAX_AGE_HOURS": str(settings.max_age_hours),
    }
    said = {name: row.rpartition("|")[2].strip().partition(":")[0] for name, row in table(readme, "name").items()}
    assert {name: said[f"`{name}`"] for name in defaults} == defaults
    assert {name: env_example()[name] for name in defaults} == defaults


def test_env_example_is_valid_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes((ROOT / ".env.example").read_bytes())
    settings = config.load_settings(tmp_path, {})
    assert settings.db_path == tmp_path / "data" / "shop.db"
    assert settings.encrypted


# --- exit codes ------------------------------------------------------------------------------------------------------


def test_readme_and_help_explain_every_exit_code_and_no_other(readme: str) -> None:
    codes = sorted(ExitCode)
    assert sorted(int(code) for cell in table(readme, "code") for code in cell.split(",")) == codes
    shown = printed_help("restore_backup.py")
    part = shown[shown.lower().index("exit codes") :].partition("\n\n")[0]
    assert {int(number) for number in re.findall(r"(?<![\d.])\d+(?![\d.])", part)} == {*codes}


# --- --json ---------------------------------------------------------------------------------------------------------


def test_readme_describes_what_json_holds(make_shop: MakeShop, readme: str) -> None:
    """Every key and no other, whatever the outcome; what there is none of is null."""
    described = sorted(words_of(table(readme, "key")))
    shop = make_shop("sqlite")
    for args in (["--list"], ["--recover"], ["no such file"], ["--bogus"]):
        report = json.loads(shop.restore(*args).out)
        assert sorted(report) == described, args
        assert [key for key, value in report.items() if value == ""] == [], args


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_that_the_readme_links_to_exist(readme: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", readme) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_requirements_are_pinned_to_exact_versions() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r ")):
                assert re.fullmatch(r"[A-Za-z0-9-]+==[0-9][0-9A-Za-z.]*(\s*;.*)?", line), f"{name}: {line}"


def test_what_needs_no_package_starts_without_them(tmp_path: Path) -> None:
    """A broken installation does not keep the operator from the help and the list of backups."""
    environment = {"PATH": "/usr/bin:/bin", "DATA_DIR": str(tmp_path), "DB_BACKUP_PATH": str(tmp_path)}
    for option, code in (("--help", 0), ("--no-such-option", 2), ("--list", 0)):
        argv = [sys.executable, "-X", "importtime", str(ROOT / "restore_backup.py"), option]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        imported = set(re.findall(r"^import time:.*\| +(\w+)$", done.stderr, re.MULTILINE))
        assert "argparse" in imported
        assert not imported & {"rich", "gnupg", "sqlcipher3", "sqlite3", "apsw", "isal"}, option


# --- the ids of errors -----------------------------------------------------------------------------------------------


def test_readme_names_the_id_of_every_error_beside_its_exit_code(readme: str) -> None:
    """Each kind of error that is made anywhere, and no other."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("backuplib/*.py")]
    for file in files:
        importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    source = "".join(file.read_text(encoding="utf-8") for file in files)

    def kinds(base: type[OperatorError]) -> Iterator[type[OperatorError]]:
        for kind in base.__subclasses__():
            yield kind
            yield from kinds(kind)

    ids: dict[str, list[str]] = defaultdict(list)
    for kind in kinds(OperatorError):
        made = rf"(?<!class ){kind.__name__}\(|^ +errors\.{kind.__name__},$"  # the latter: in a table of reasons
        if re.search(made, source, re.MULTILINE):
            code = "129, 130, 131, 143" if kind is EndedBySignalError else str(int(kind.exit_code))
            ids[code].append(kind.id)
    described = {code: words_of([cell]) for code, cell in table(readme, "exit code").items()}
    assert described == {code: sorted(found) for code, found in ids.items()}


def test_pictures_that_the_readme_shows_are_scenes_that_are_made_anew(readme: str) -> None:
    made = {f"docs/{name}.svg" for name in re.findall(r'Scene\("([\w-]+)"', (ROOT / "docs/picture.py").read_text())}
    shown = {*re.findall(r"\((docs/[\w-]+\.svg)\)", readme)} - {"docs/benchmark.svg"}
    assert shown == made
