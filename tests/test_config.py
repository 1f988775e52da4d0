"""Settings: where they come from, their defaults, and what is said of a wrong one."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from backuplib.errors import WrongSettingError
from backuplib.secret import Secret
from config import Environment, Settings, load_settings, survey_settings
from database_backup import DatabaseBackup, get_backup_handler
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


# --- remotes ---------------------------------------------------------------------------------------------------------


def test_remotes_are_paths_of_rclone_and_its_variables_come_along(tmp_path: Path) -> None:
    """From .env, too, where the environment comes first."""
    given = {"BACKUP_REMOTES": " offsite:shopbot\tnas:/srv/backups offsite:shopbot ", "RCLONE_CONFIG_NAS_PASS": "x"}
    settings = load(tmp_path, given, RCLONE_CONFIG_NAS_PASS="y", RCLONE_CONFIG_NAS_TYPE="sftp")
    assert settings.remotes == ("offsite:shopbot", "nas:/srv/backups")
    assert settings.rclone == {"RCLONE_CONFIG_NAS_PASS": "y", "RCLONE_CONFIG_NAS_TYPE": "sftp"}
    assert "RCLONE_CONFIG_NAS_PASS" not in repr(settings)
    assert not any("mistyped" in text for text in settings.warnings)
    assert load(tmp_path / "elsewhere").remotes == ()


@pytest.mark.parametrize("place", ["backups", "/srv/backups", "-x:y", ":sftp,host=nas,pass=secret:", "https://nas/x"])
def test_remote_that_is_no_path_of_rclone_is_refused(tmp_path: Path, place: str) -> None:
    """With nothing before the colon its credentials would stand in a command line."""
    told = refused(tmp_path, BACKUP_REMOTES=f"offsite:shopbot {place}")
    assert "BACKUP_REMOTES is" in told
    assert "offsite:shopbot" in told


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


# --- what is odd, and no reason to refuse -----------------------------------------------------------------------------


def warnings_of(folder: Path, text: str, environ: Mapping[str, str] | None = None, *, mode: int = 0o600) -> list[str]:
    """What is said of an .env that holds this text."""
    (folder / ".env").write_text(text, encoding="utf-8")
    (folder / ".env").chmod(mode)
    return list(load_settings(folder, environ or {}).warnings)


def test_settings_that_are_right_cause_no_warning(tmp_path: Path) -> None:
    assert load(tmp_path).warnings == ()
    assert warnings_of(tmp_path, "# a comment\n\nexport DB_NAME='it\\'s.db'\nBOT_TOKEN=x\nDB_PASSWORD=postgres\n") == []


@pytest.mark.parametrize(
    ("mode", "told"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o602, True)]
)
def test_env_file_that_others_can_read_or_change_is_told(tmp_path: Path, mode: int, told: bool) -> None:
    said = warnings_of(tmp_path, "DB_NAME=a.db\n", mode=mode)
    assert [f"mode {mode:04o}" in text and f"chmod 600 {tmp_path}/.env" in text for text in said] == [True] * told


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("DB_NAME=a.db\nDB_PASS='it's secret'\n", "line 2"),
        ("DB_NAME=a.db\n\n\n  DB_PASS: secret word\n", "line 4"),
        ("DB_PASS='secret\nDATA_DIR=x\nBOT_TOKEN='secret'\nDB_NAME=a.db\n", "lines 1 to 3"),
        ("=secret\nDB_NAME=a.db", "line 1"),
    ],
)
def test_line_that_cannot_be_parsed_is_told_by_its_number_without_its_content(
    tmp_path: Path, text: str, lines: str, caplog: pytest.LogCaptureFixture
) -> None:
    (said,) = warnings_of(tmp_path, text)
    assert f"{tmp_path}/.env, {lines}: " in said
    assert "secret" not in said
    assert load_settings(tmp_path, {}).db_path.name == "a.db"  # the others are read
    assert caplog.text == ""  # python-dotenv's own words, without the file's name


def test_line_that_cannot_be_parsed_is_told_with_the_error_that_comes_of_it(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DB_ENCRYPTION=true\nDB_PASS='it's secret'\n")
    said = refused(tmp_path)
    assert "DB_PASS is not set" in said
    assert "line 2" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("PGP_PUBLIC_KEY_BASE46", "PGP_PUBLIC_KEY_BASE64"),
        ("PGP_PUBLIC_KEY", "PGP_PUBLIC_KEY_BASE64"),
        ("GPG_PUBLIC_KEY_BASE64", "PGP_PUBLIC_KEY_BASE64"),
        ("pgp_public_key_base64", "PGP_PUBLIC_KEY_BASE64"),
        ("DBNAME", "DB_NAME"),
        ("DB_BACKUP_RETENTION_DAY", "DB_BACKUP_RETENTION_DAYS"),
    ],
)
def test_name_that_is_almost_that_of_a_setting_is_told_without_its_value(tmp_path: Path, name: str, right: str) -> None:
    for said in (warnings_of(tmp_path, f"{name}=canary"), warnings_of(tmp_path, "", {name: "canary"})):
        assert len(said) == 1
        assert name in said[0]
        assert right in said[0]
        assert "canary" not in said[0]
    if right != "PGP_PUBLIC_KEY_BASE64":
        assert warnings_of(tmp_path, f"{name}=canary\n{right}=7\n") == []  # then it is another program's


@pytest.mark.parametrize("value", ["change me", "Change_Me!", "changeme", "<passphrase>", "your-passphrase", "XXXX"])
def test_placeholder_is_told(tmp_path: Path, value: str) -> None:
    text = f"DB_PASS='{value}'\nDB_ENCRYPTION="
    assert [text.startswith("DB_PASS is a placeholder") for text in warnings_of(tmp_path, f"{text}true")] == [True]
    assert warnings_of(tmp_path, f"{text}false") == []  # where it counts for nothing


@pytest.mark.parametrize("value", ["change me not", "correct horse", "your mother knows", "<", "todo list", ".."])
def test_passphrase_that_is_a_real_one_is_no_placeholder(tmp_path: Path, value: str) -> None:
    assert warnings_of(tmp_path, f"DB_PASS='{value}'\nDB_ENCRYPTION=true") == []


def test_all_wrong_settings_are_found_at_once_and_the_others_are_read(tmp_path: Path) -> None:
    environ = {"RUNTIME_ENVIRONMENT": "STAGING", "DB_ENCRYPTION": "yes", "MAX_DATABASE_MB": "x", "DB_BACKUP_PATH": "b"}
    settings, wrong = survey_settings(tmp_path, environ | {"PGP_PUBLIC_KEY_BASE64": "?", "DB_NAME": "/"})
    assert sorted(wrong) == ["db_pass", "db_path", "environment", "max_database_bytes", "public_key"]
    assert settings.backup_dir == tmp_path / "b"
    assert (settings.environment, settings.db_pass, settings.public_key) == (None, None, None)


def test_both_programs_tell_what_is_odd_on_standard_error_each_time(tmp_path: Path) -> None:
    """Once a run; what is printed for programs, and the exit code, are as ever."""
    copy_program(tmp_path)
    for folder in ("data", "backups"):
        (tmp_path / folder).mkdir()
    with closing(sqlite3.connect(tmp_path / "data/shop.db")) as connection:
        connection.execute("CREATE TABLE customers (id)")
    (tmp_path / ".env").write_text("RUNTIME_ENVIRONMENT=TEST\nPGP_PUBLIC_KEY_BASE46=canary\nDB_NAME='it's canary'\n")
    (tmp_path / ".env").chmod(0o644)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            start_new_session=True,
        )
        told = [line for line in done.stderr.splitlines() if line.startswith("⚠️  ")]
        assert done.returncode == 0, done.stderr
        for sign in ("mode 0644", ".env, line 3:", "PGP_PUBLIC_KEY_BASE46"):
            assert [sign in line for line in told].count(True) == 1, done.stderr
        assert "canary" not in done.stdout + done.stderr
        return done

    made = run("database_backup.py", "create", "--quiet")
    assert "PGP_PUBLIC_KEY_BASE64 is not set: the backup is not encrypted" in made.stderr
    assert Path(made.stdout.strip()).is_file()
    run("database_backup.py", "list")
    run("restore_backup.py", "--list")
    run("restore_backup.py", "--verify-only", made.stdout.strip())
    assert len(json.loads(run("restore_backup.py", "--recover", "--json").stdout)["warnings"]) == 3


def test_class_in_a_program_of_others_logs_what_is_odd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("os.environ", {"PGP_PUBLIC_KEY_BASE46": "canary"})
    get_backup_handler()
    DatabaseBackup(tmp_path / "shop.db", tmp_path)
    assert caplog.text.count("PGP_PUBLIC_KEY_BASE46") == 2
    assert "canary" not in caplog.text


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


# --- who watches -----------------------------------------------------------------------------------------------------


def test_addresses_of_who_watches_are_secrets(tmp_path: Path) -> None:
    environ = {"PING_URL": " https://hc.example/to-ken ", "NOTIFY_URLS": "tgram://bot/chat\n  mailto://x"}
    settings = load_settings(tmp_path, environ)
    assert settings.ping_url
    assert settings.ping_url.reveal() == "https://hc.example/to-ken"
    assert [url.reveal() for url in settings.notify_urls] == ["tgram://bot/chat", "mailto://x"]
    assert "to-ken" not in repr(settings)
    assert "bot" not in repr(settings)
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [("PING_URL", "htps://to-ken/x"), ("PING_URL", "to-ken"), ("NOTIFY_URLS", "tgram://to-ken\x1b[2J \udcff")],
)
def test_address_that_cannot_be_used_is_a_warning_and_keeps_nobody_from_a_restore(
    tmp_path: Path, name: str, value: str
) -> None:
    settings = load_settings(tmp_path, {name: value})
    assert (settings.ping_url, settings.notify_urls) == (None, ())
    (warning,) = settings.warnings
    assert name in warning
    assert "to-ken" not in warning


def test_age_that_is_too_old_is_a_number_of_hours(tmp_path: Path) -> None:
    assert load_settings(tmp_path, {}).max_age_hours == 26
    assert load_settings(tmp_path, {"BACKUP_MAX_AGE_HOURS": "48"}).max_age_hours == 48
    with pytest.raises(WrongSettingError, match="BACKUP_MAX_AGE_HOURS is 'a day'"):
        load_settings(tmp_path, {"BACKUP_MAX_AGE_HOURS": "a day"})
