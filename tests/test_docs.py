"""Each option, setting and exit code stands where operators look: README.md, --help and .env.example."""

import importlib
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeShop
from tests.support.shop import ROOT, SETTINGS

OPTIONS = (
    "--help",
    "--target-path",
    "--no-restart",
    "--key-stdin",
    "--skip-backup",
    "--force",
    "--verify-only",
    "--stop-first",
    "--compose-file",
    "--service",
    "--passphrase-fd",
    "--passphrase-command",
    "--recover",
    "--list",
    "--drill",
    "--json",
    "--allow-swap",
)
EXIT_CODES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 129, 130, 143)
DEFAULTS = {"DB_NAME": "shop.db", "DATA_DIR": "data", "DB_BACKUP_PATH": "backups", "DB_BACKUP_RETENTION_DAYS": "7"}


@pytest.fixture(scope="module")
def readme() -> str:
    """README.md."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def help_text() -> str:
    """What `restore_backup.py --help` prints."""
    command = [sys.executable, "restore_backup.py", "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True, timeout=30).stdout


def stands_in(word: str, text: str) -> bool:
    """Whether it is there as a word of its own: --list is not in --list-all."""
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


def row(text: str, key: str) -> str:
    """What a table of the README says in the row of this key."""
    found = re.search(rf"^\|[ `]*{re.escape(key)}\b[^|]*\|(.*)\|\s*$", text, re.MULTILINE)
    assert found, f"no row for {key}"
    return found[1]


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [*OPTIONS, "backup_file"])
def test_option_stands_in_readme_and_help(readme: str, help_text: str, option: str) -> None:
    assert stands_in(option, help_text)
    assert stands_in(option, readme) or option == "--help"


def test_readme_and_contract_know_every_option_that_help_prints(readme: str, help_text: str) -> None:
    printed = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", help_text))
    assert printed >= set(OPTIONS)
    assert [option for option in sorted(printed - {"--help"}) if not stands_in(option, readme)] == []


def test_every_option_that_the_readme_names_exists(readme: str, help_text: str) -> None:
    lines = [line for line in readme.splitlines() if "restore_backup.py" in line]
    named = {option for line in lines for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)}
    assert [option for option in sorted(named) if not stands_in(option, help_text)] == []


@pytest.mark.parametrize("command", ["create", "list", "verify", "prune"])
def test_backup_command_stands_in_readme_and_help(readme: str, command: str) -> None:
    arguments = [sys.executable, "database_backup.py", "--help"]
    printed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
    assert stands_in(command, printed)
    assert re.search(rf"database_backup\.py[^\n]*\b{command}\b", readme)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_setting_stands_in_readme_and_env_example(readme: str, name: str) -> None:
    assert row(readme, name)
    assert re.search(rf"^#? ?{name}=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(("name", "default"), DEFAULTS.items())
def test_defaults_in_readme_and_env_example_are_those_of_the_program(readme: str, name: str, default: str) -> None:
    assert stands_in(default, row(readme, name))
    assert f"\n{name}={default}\n" in (ROOT / ".env.example").read_text(encoding="utf-8")


def test_env_example_is_valid_as_it_stands(tmp_path: Path) -> None:
    from config import load_settings

    (tmp_path / ".env").write_bytes((ROOT / ".env.example").read_bytes())
    settings = load_settings(tmp_path, {})
    assert settings.db_path == tmp_path / "data" / "shop.db"
    assert settings.encrypted


# --- exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", EXIT_CODES)
def test_exit_code_stands_in_readme_and_help(readme: str, help_text: str, code: int) -> None:
    assert re.search(rf"(?<![\d.]){code}(?![\d.])", help_text[help_text.lower().index("exit codes") :])
    table = readme[readme.lower().index("exit code") :]
    assert re.search(rf"^\|[^|]*(?<!\d){code}(?!\d)[^|]*\|", table, re.MULTILINE), f"no row for exit code {code}"


def test_program_has_no_other_exit_codes() -> None:
    from backuplib.errors import ExitCode

    assert sorted(map(int, ExitCode)) == list(EXIT_CODES)


# --- --json ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["--list"], ["--recover"], ["no such file"], ["--bogus"]])
def test_readme_describes_what_json_holds(make_shop: MakeShop, readme: str, args: list[str]) -> None:
    """Every key and no other, whatever the outcome; what there is none of is null."""
    table = readme[readme.index("## Output for programs") :]
    described = [
        key for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", cell)
    ]
    report = json.loads(make_shop("sqlite").restore("--json", *args).out)
    assert sorted(report) == sorted(described)
    assert [key for key, value in report.items() if value == ""] == []


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_that_the_readme_links_to_exist(readme: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", readme) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_requirements_are_pinned_to_exact_versions() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r ")):
                assert re.fullmatch(r"[A-Za-z0-9-]+==[0-9][0-9A-Za-z.]*(\s*;.*)?", line), f"{name}: {line}"


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--no-such-option", 2), ("--list", 0)])
def test_what_needs_no_package_starts_without_them(tmp_path: Path, option: str, code: int) -> None:
    """A broken installation does not keep the operator from the help and the list of backups."""
    environment = {"PATH": "/usr/bin:/bin", "DATA_DIR": str(tmp_path), "DB_BACKUP_PATH": str(tmp_path)}
    argv = [sys.executable, "-X", "importtime", str(ROOT / "restore_backup.py"), option]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", done.stderr, re.MULTILINE))
    assert "argparse" in imported
    assert not imported & {"rich", "gnupg", "sqlcipher3", "sqlite3", "isal"}


# --- the ids of errors -----------------------------------------------------------------------------------------------


def test_readme_names_the_id_of_every_error_beside_its_exit_code(readme: str) -> None:
    """Each kind of error that is made anywhere, and no other."""
    from backuplib.errors import EndedBySignalError, OperatorError

    files = [*ROOT.glob("*.py"), *ROOT.glob("backuplib/*.py")]
    for file in files:
        importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    source = "".join(file.read_text(encoding="utf-8") for file in files)

    def kinds(base: type[OperatorError]) -> Iterator[type[OperatorError]]:
        for kind in base.__subclasses__():
            yield kind
            yield from kinds(kind)

    made = [kind for kind in kinds(OperatorError) if re.search(rf"(?<!class ){kind.__name__}\(", source)]
    assert [kind_id for kind_id, count in Counter(kind.id for kind in kinds(OperatorError)).items() if count > 1] == []
    assert [kind.id for kind in made if not re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.id)] == []
    ids: dict[str, list[str]] = defaultdict(list)
    for kind in made:
        code = "129, 130, 143" if kind is EndedBySignalError else str(int(kind.exit_code))
        ids[code].append(kind.id)
    table = readme[readme.index("| exit code | `error.id` |") :]
    described = dict(re.findall(r"^\| ([\d, ]+) \| (`.*`) \|$", table, re.MULTILINE))
    assert described == {code: ", ".join(f"`{kind_id}`" for kind_id in sorted(found)) for code, found in ids.items()}
