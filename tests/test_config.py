"""Settings: where they come from, their defaults, and what is said of a wrong one."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from backuplib.errors import WrongSettingError
from backuplib.secret import Secret
from config import Environment, Settings, load_settings
from tests.support.keys import Keys
from tests.support.shop import PROGRAM, copy_program, quote_for_env

NASTY_PASSPHRASES = (
    """it's "quoted" pässwörd""",
    "$HOME ${HOME} $(id) `id`",
    "hash # not a comment",
    " blanks around ",
    "back\\slash\\n and 'quotes' \\' mixed",
    "= equals; semicolon & ✅",
    "'",
)


def load(folder: Path, env_file: Mapping[str, str] | None = None, **environ: str) -> Settings:
    """Settings of a folder with that .env, under that environment and no other."""
    if env_file is not None:
        lines = (f"{name}={quote_for_env(value)}\n" for name, value in env_file.items())
        (folder / ".env").write_text("".join(lines), encoding="utf-8")
    return load_settings(folder, environ)


def refused(folder: Path, **environ: str) -> str:
    """What an operator reads about a wrong setting: message and hint."""
    with pytest.raises(WrongSettingError) as caught:
        load(folder, None, **environ)
    assert int(caught.value.exit_code) == 3
    return f"{caught.value} {caught.value.hint}"


def revealed(secret: Secret | None) -> str | None:
    """The text of a secret."""
    return None if secret is None else secret.reveal()


# --- where values come from ------------------------------------------------------------------------------------------


def test_defaults_without_any_setting(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.environment is None
    assert settings.db_path == tmp_path / "data" / "shop.db"
    assert settings.backup_dir == tmp_path / "backups"
    assert settings.retention_days == 7
    assert settings.db_pass is None
    assert settings.public_key is None


def test_every_setting_is_read_from_the_env_file(tmp_path: Path, keys: Keys) -> None:
    settings = load(
        tmp_path,
        {
            "RUNTIME_ENVIRONMENT": "DEV",
            "DB_NAME": "other.db",
            "DATA_DIR": "there",
            "DB_ENCRYPTION": "true",
            "DB_PASS": "secret",
            "DB_BACKUP_PATH": "kept",
            "DB_BACKUP_RETENTION_DAYS": "30",
            "PGP_PUBLIC_KEY_BASE64": keys.rsa.public_b64,
        },
    )
    assert settings.environment is Environment.DEV
    assert settings.db_path == tmp_path / "there" / "other.db"
    assert settings.backup_dir == tmp_path / "kept"
    assert settings.retention_days == 30
    assert revealed(settings.db_pass) == "secret"
    assert settings.public_key == keys.rsa.public_binary


def test_environment_comes_before_the_env_file(tmp_path: Path) -> None:
    settings = load(tmp_path, {"DB_NAME": "file.db", "DATA_DIR": "file"}, DB_NAME="environment.db")
    assert settings.db_path == tmp_path / "file" / "environment.db"


@pytest.mark.parametrize("name", ["PROD", "DEV", "TEST"])
def test_runtime_environment_names_the_compose_file(tmp_path: Path, name: str) -> None:
    environment = load(tmp_path, None, RUNTIME_ENVIRONMENT=name).environment
    assert environment is not None
    assert environment.value == {"PROD": "docker-compose.prod.yml", "DEV": "docker-compose.dev.yml", "TEST": ""}[name]


def test_absolute_paths_stay_and_relative_ones_do_not_follow_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, elsewhere = tmp_path / "base", tmp_path / "elsewhere"
    base.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    settings = load(base, None, DATA_DIR=str(elsewhere), DB_BACKUP_PATH="../kept")
    assert settings.db_path == elsewhere / "shop.db"
    assert settings.backup_dir.resolve() == tmp_path / "kept"


def test_scripts_find_their_settings_from_any_folder(tmp_path: Path) -> None:
    base, elsewhere = tmp_path / "base", tmp_path / "elsewhere"
    base.mkdir()
    elsewhere.mkdir()
    copy_program(base)
    (base / ".env").write_text("DB_BACKUP_PATH=kept\n")
    (base / "kept").mkdir()
    (base / "kept" / "db_backup_20250130_120000.db.gz").touch()
    for script in (["database_backup.py", "list"], ["restore_backup.py", "--list"]):
        done = subprocess.run(
            [sys.executable, base / script[0], script[1]],
            cwd=elsewhere,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        assert "db_backup_20250130_120000.db.gz" in done.stdout


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passphrase", NASTY_PASSPHRASES)
def test_any_character_works_in_the_database_passphrase(tmp_path: Path, passphrase: str) -> None:
    from_file = load(tmp_path, {"DB_ENCRYPTION": "true", "DB_PASS": passphrase})
    assert revealed(from_file.db_pass) == passphrase
    from_environment = load(tmp_path, None, DB_ENCRYPTION="true", DB_PASS=passphrase)
    assert revealed(from_environment.db_pass) == passphrase


@pytest.mark.parametrize(
    "line", ["DB_PASS=plain#word$HOME", "DB_PASS='plain#word$HOME' # why", "export DB_PASS=plain#word$HOME"]
)
def test_ways_of_writing_a_line_of_the_env_file(tmp_path: Path, line: str) -> None:
    (tmp_path / ".env").write_text(f"DB_ENCRYPTION=true\n{line}\n")
    assert revealed(load(tmp_path).db_pass) == "plain#word$HOME"


@pytest.mark.parametrize("edit", ["\ufeff", "\r\n"], ids=["byte order mark", "CRLF"])
def test_env_file_saved_by_a_windows_editor(tmp_path: Path, edit: str) -> None:
    text = "DB_NAME=windows.db\nDATA_DIR=there\n"
    text = text.replace("\n", edit) if edit == "\r\n" else edit + text
    (tmp_path / ".env").write_bytes(text.encode())
    assert load(tmp_path).db_path == tmp_path / "there" / "windows.db"


@pytest.mark.parametrize(("value", "on"), [("true", True), ("false", False), ("", False)])
def test_encryption_is_true_or_false_and_not_set_is_false(tmp_path: Path, value: str, on: bool) -> None:
    assert load(tmp_path, None, DB_ENCRYPTION=value, DB_PASS="x").encrypted is on
    assert load(tmp_path, {"DB_ENCRYPTION": value, "DB_PASS": "x"}).encrypted is on


@pytest.mark.parametrize("value", ["True", "TRUE", "1", "yes", "on", " true", "False", "0", "no", "off", "maybe"])
def test_encryption_is_refused_where_the_bot_might_read_it_otherwise(tmp_path: Path, value: str) -> None:
    """Bots say `== "true"`: all of these are no to them, some of which look like yes."""
    said = refused(tmp_path, DB_ENCRYPTION=value, DB_PASS="secret")
    assert f"DB_ENCRYPTION is {value!r}" in said
    assert "true or false" in said
    assert "secret" not in said


def test_database_passphrase_is_not_used_without_encryption(tmp_path: Path) -> None:
    assert load(tmp_path, None, DB_ENCRYPTION="false", DB_PASS="left over").db_pass is None


def test_wrapped_public_key_is_accepted(tmp_path: Path, keys: Keys) -> None:
    text = keys.rsa.public_b64
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76)) + "\n"
    assert load(tmp_path, None, PGP_PUBLIC_KEY_BASE64=wrapped).public_key == keys.rsa.public_binary


# --- wrong values ----------------------------------------------------------------------------------------------------

WRONG = [
    ("RUNTIME_ENVIRONMENT", "STAGING", "PROD"),
    ("DB_NAME", "folder/shop.db", "DATA_DIR"),
    ("DB_NAME", "..", "DATA_DIR"),
    ("DB_BACKUP_RETENTION_DAYS", "a week", "number"),
    ("DB_BACKUP_RETENTION_DAYS", "-1", "number"),
    ("DB_BACKUP_RETENTION_DAYS", "1.5", "number"),
    ("DB_BACKUP_RETENTION_DAYS", "٣", "number"),
]


@pytest.mark.parametrize(("name", "value", "right"), WRONG)
def test_wrong_setting_is_named_with_its_value_and_what_would_be_right(
    tmp_path: Path, name: str, value: str, right: str
) -> None:
    said = refused(tmp_path, **{name: value})
    assert name in said
    assert value in said
    assert right in said


@pytest.mark.parametrize("value", ["not*base64", "Schlüssel"])
def test_wrong_public_key_is_named_without_its_value(tmp_path: Path, value: str) -> None:
    """Somebody may have put a private one there, or a passphrase."""
    said = refused(tmp_path, PGP_PUBLIC_KEY_BASE64=value)
    assert "PGP_PUBLIC_KEY_BASE64" in said
    assert "gpg --armor --export" in said
    assert value not in said


@pytest.mark.parametrize("environ", [{}, {"DB_PASS": ""}])
def test_encryption_without_passphrase_is_refused(tmp_path: Path, environ: dict[str, str]) -> None:
    said = refused(tmp_path, DB_ENCRYPTION="true", **environ)
    assert "DB_PASS" in said
    assert "DB_ENCRYPTION" in said


def test_passphrase_that_is_not_utf_8_is_refused_without_showing_it(tmp_path: Path) -> None:
    said = refused(tmp_path, DB_ENCRYPTION="true", DB_PASS=os.fsdecode(b"secret p\xe4ss"))
    assert "DB_PASS" in said
    assert "UTF-8" in said
    assert "secret" not in said
    assert "xe4" not in said


def test_nul_in_the_passphrase_is_refused_without_showing_it(tmp_path: Path) -> None:
    said = refused(tmp_path, DB_ENCRYPTION="true", DB_PASS="secret\0word")
    assert "DB_PASS" in said
    assert "secret" not in said


def test_env_file_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"DB_NAME=\xff\xfe.db\n")
    assert ".env" in refused(tmp_path)


def test_wrong_setting_ends_both_commands_with_3_and_no_traceback(tmp_path: Path) -> None:
    copy_program(tmp_path)
    for script in (["database_backup.py", "create"], ["restore_backup.py", "missing.gpg"]):
        done = subprocess.run(
            [sys.executable, *script],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "RUNTIME_ENVIRONMENT": "STAGING"},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            start_new_session=True,
        )
        assert done.returncode == 3
        assert "RUNTIME_ENVIRONMENT" in done.stderr
        assert "STAGING" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


# --- secrets and side effects ----------------------------------------------------------------------------------------


def test_settings_do_not_show_secrets(tmp_path: Path, keys: Keys) -> None:
    settings = load(
        tmp_path, None, DB_ENCRYPTION="true", DB_PASS="canary-word", PGP_PUBLIC_KEY_BASE64=keys.rsa.public_b64
    )
    assert "canary-word" not in f"{settings!r} {settings} {settings.db_pass!r} {settings.db_pass}"


WATCH = """
import os, signal, sys, logging
events = []
CHANGES = ("subprocess.", "socket.connect", "tempfile.") + tuple(
    "os." + call for call in "mkdir remove rename putenv unsetenv chdir chmod system exec fork posix_spawn".split()
)
def hook(event, args):
    if event == "open" and isinstance(args[0], str):
        if os.path.basename(args[0]) == ".env" or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            events.append(f"open {args[0]}")
    elif event.startswith(CHANGES):
        events.append(event)
before = dict(os.environ), os.getcwd(), logging.root.handlers[:], signal.getsignal(signal.SIGINT)
umask = os.umask(0o22)
sys.addaudithook(hook)
__import__(sys.argv[1])
after = dict(os.environ), os.getcwd(), logging.root.handlers[:], signal.getsignal(signal.SIGINT)
import json
print(json.dumps({"events": events, "same": before == after and os.umask(0) == 0o22}))
"""


@pytest.mark.parametrize("module", ["config", "database_backup", "restore_backup"])
def test_import_has_no_side_effects(tmp_path: Path, module: str) -> None:
    copy_program(tmp_path)
    (tmp_path / ".env").write_text("RUNTIME_ENVIRONMENT=nonsense\nDB_ENCRYPTION=nonsense\n")
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCH, module],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "DB_NAME": "../nonsense"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert json.loads(done.stdout) == {"events": [], "same": True}
    assert done.stderr == ""
    assert {path.name for path in tmp_path.iterdir()} <= {".env", *PROGRAM}
