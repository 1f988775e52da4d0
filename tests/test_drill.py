"""restore_backup.py --drill: proves what it says, fails when that does not hold, leaves nothing and touches nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.containers import wait_until
from tests.support.needs import require
from tests.support.shop import copy_program

NOBODY = 65534
PROOFS = 15
"""Keys, and in each mode: backup, restore, undo, four refusals."""


class Place(NamedTuple):
    """The program's folder, an empty home, and a RAM folder's parent that nobody else uses."""

    program: Path
    home: Path
    ram: Path


@pytest.fixture
def place() -> Iterator[Place]:
    """A copy of the program where any user can get at it, as pytest's own folders are not."""
    folder, ram = Path(tempfile.mkdtemp(prefix="drill-")), Path(tempfile.mkdtemp(prefix="drill-", dir="/dev/shm"))
    made = Place(folder / "shopbot", folder / "home", ram)
    for path in (made.program, made.home, folder / "python", folder / "packages"):
        path.mkdir()
    copy_program(made.program)
    if os.geteuid() == 0:
        for path in (folder, made.home, ram):
            os.chown(path, NOBODY, NOBODY)
    folder.chmod(0o755)
    yield made
    shutil.rmtree(folder)
    shutil.rmtree(ram)


def start(place: Place, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Start a drill with the environment given and nothing else in it."""
    return spawn([sys.executable, str(place.program / "restore_backup.py"), "--drill", *options], environment)


def start_unprivileged(place: Place, *options: str) -> subprocess.Popen[str]:
    """Start a drill as an unprivileged user: nobody, or who runs the tests when that is not root.

    Nobody may not be able to reach this Python (root's home is closed), so it is mounted where they can: in a mount
    namespace that ends with the drill.
    """
    environment = {"XDG_RUNTIME_DIR": str(place.ram), "HOME": str(place.home)}
    if os.geteuid() != 0:
        return start(place, *options, **environment)
    require("mount")
    python, packages = place.program.parent / "python", place.program.parent / "packages"
    executable = python / Path(sys.executable).resolve().relative_to(sys.base_prefix)
    environment |= {"PYTHONPATH": str(packages), "LD_LIBRARY_PATH": str(python / "lib")}
    mount = 'mount --bind "$1" "$2" && mount --bind "$3" "$4" && shift 4 && exec "$@"'
    mounts = [sys.base_prefix, str(python), sysconfig.get_path("purelib"), str(packages)]
    become = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "env", "-i"]
    drill = [str(executable), str(place.program / "restore_backup.py"), "--drill", *options]
    settings = [f"{name}={value}" for name, value in environment.items()]
    return spawn(["unshare", "-m", "sh", "-c", mount, "sh", *mounts, *become, *settings, *drill], dict(os.environ))


def spawn(argv: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a command away from our terminal."""
    return subprocess.Popen(
        argv,
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a drill and return exit code, standard output and standard error."""
    with process:
        try:
            out, err = process.communicate(timeout=100)
        finally:
            process.kill()
    return process.returncode, out, err


@contextmanager
def killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Whatever the test does, the process ends."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder, but for what Python caches when it imports a module."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def processes_naming(path: Path) -> list[str]:
    """Command lines that name a path: gpg agents, reapers and children of a drill."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes()
        except OSError:  # it has ended
            continue
        if os.fsencode(path) in line:
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def wait_until_gone(folder: Path, *, seconds: float) -> None:
    """Wait for a RAM folder to go, and then for all processes that name it.

    A run that begins at this moment, of another test, may just be looking whether it is to be removed.
    """
    wait_until(lambda: not folder.exists(), f"{folder} is gone", seconds)
    wait_until(lambda: not processes_naming(folder), f"nothing is left that names {folder}", seconds + 5)


def ram_folder(process: subprocess.Popen[str]) -> Path:
    """The RAM folder that a drill names in its first line."""
    assert process.stderr
    line = process.stderr.readline()
    assert line.startswith("🎯 Drill in "), line
    return Path(line.removeprefix("🎯 Drill in ").partition(":")[0])


# --- it proves a restore, with nothing configured --------------------------------------------------------------------


def test_drill_proves_a_restore_in_both_modes_with_an_empty_environment(place: Place) -> None:
    process = start(place)
    with killed_at_the_end(process):
        folder = ram_folder(process)
        code, out, err = finish(process)
    assert code == 0, err
    proofs = [line for line in err.splitlines() if line.startswith("✅ ")]
    assert len(proofs) == PROOFS
    for mode in ("SQLite", "SQLCipher"):
        ours = "\n".join(line for line in proofs if f" {mode}: " in line)
        assert ours.count("refused with exit code 4") == 3
        assert ours.count("refused with exit code 3") == 1
        assert "backed up" in ours
        assert "restored" in ours
        assert "undone" in ours
    passed, proved, not_proved = out.splitlines()
    assert passed.startswith("✅ Drill passed in ")
    assert "throwaway keys and sample data" in proved
    assert "our Docker, your key and your .env were not tried: " in not_proved
    assert not_proved.endswith(" --check")
    assert "on this machine a restore works" not in out + err
    wait_until_gone(folder, seconds=0.1)


@pytest.mark.deep
def test_drill_works_for_an_unprivileged_user_and_leaves_nothing(place: Place) -> None:
    code, out, err = finish(start_unprivileged(place))
    assert code == 0, err
    assert f"🎯 Drill in {place.ram}/" in err
    assert out.startswith("✅ Drill passed in ")
    assert list(place.ram.iterdir()) == []
    assert list(place.home.iterdir()) == []


def judge_json(out: str, err: str) -> None:
    """One object, alone on standard output."""
    report = json.loads(out)
    assert report["exit_code"] == 0
    assert report["outcome"] == "drill passed"
    proved = report["drill"]["proved"]
    assert len(proved) == PROOFS
    assert all(proof["what"] in err and proof["seconds"] >= 0 for proof in proved)
    assert report["drill"]["seconds"] >= sum(proof["seconds"] for proof in proved) - 1
    assert "✅ Drill passed in " in err


# --- nothing of the operator's is used or touched --------------------------------------------------------------------

HOSTILE = b"""RUNTIME_ENVIRONMENT=PROD
DB_NAME=live.db
DATA_DIR=elsewhere
DB_ENCRYPTION=true
DB_PASS='it''s "weird" ${HOME}'
DB_BACKUP_PATH=safe
DB_BACKUP_RETENTION_DAYS=many
PGP_PUBLIC_KEY_BASE64=!!!
"""


@pytest.mark.deep
@pytest.mark.parametrize(
    "env_file",
    [pytest.param(HOSTILE, id="hostile"), pytest.param(b"\xff\xfe not text", id="broken", marks=pytest.mark.long)],
)
def test_settings_of_the_operator_neither_reach_the_drill_nor_are_touched(place: Place, env_file: bytes) -> None:
    (place.program / ".env").write_bytes(env_file)
    for folder in ("elsewhere", "safe", "data", "backups"):
        (place.program / folder).mkdir()
    (place.program / "elsewhere" / "live.db").write_bytes(b"the operator's")
    (place.program / "safe" / "db_backup_20250130_120000.db.gz.gpg").write_bytes(b"the operator's, too")
    before = contents(place.program)
    settings = {"HOME": str(place.home), "DB_PASS": "another", "DB_ENCRYPTION": "perhaps", "DATA_DIR": "/nowhere"}
    code, out, err = finish(start(place, "--json", **settings))
    assert code == 0, err
    judge_json(out, err)
    assert contents(place.program) == before
    assert list(place.home.iterdir()) == []


# --- it fails when a restore does not keep its promises --------------------------------------------------------------

TOUCH_FIRST = """
real_decrypt = Restorer.decrypt_and_decompress

def touch_first(self, plan, ram):
    os.utime(plan.target.path)
    return real_decrypt(self, plan, ram)

Restorer.decrypt_and_decompress = touch_first
"""

KEEP_SOMETHING_ELSE = """
def keep_something_else(self, *_, **__):
    self.report.safety_backup = str(self.options.backup_file)
    return self.options.backup_file

Restorer.back_up = keep_something_else
"""

SABOTAGES = {
    "backup copies the main file without its WAL": (
        "database_backup.py",
        "DatabaseBackup._copied = lambda self, copy: bool(__import__('shutil').copyfile(self.db_path, copy))",
        "SQLite: restored",
        "restored content",
    ),
    "ciphertext that is not authentic is believed": (
        "backuplib/openpgp.py",
        "refuse_message = lambda *_: None",
        "SQLite: one flipped bit",
        "exit code 0",
    ),
    "checksum is not compared": (
        "restore_backup.py",
        "BackupFile.verify = lambda self: True",
        "SQLite: one flipped bit, checksum beside it",
        "exit code 4",
    ),
    "restore changes nothing and says that it did": (
        "restore_backup.py",
        "Restorer.swap = lambda self, plan, *_: None",
        "SQLite: restored",
        "restored content",
    ),
    "database is touched before the backup is verified": (
        "restore_backup.py",
        TOUCH_FIRST,
        "SQLite: one flipped bit",
        "folder",
    ),
    "safety backup holds something else": (
        "restore_backup.py",
        KEEP_SOMETHING_ELSE,
        "SQLite: undone",
        "safety backup",
    ),
}


@pytest.mark.deep
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (number % 2)) for number, name in enumerate(SABOTAGES)]
)
def test_drill_notices_a_restore_that_breaks_a_promise(place: Place, name: str) -> None:
    script, code, unproved, found = SABOTAGES[name]
    sabotage(place.program / script, code)
    exit_code, out, err = finish(start(place, HOME=str(place.home)))
    assert exit_code == 1, err
    assert found in err.partition("❌")[2]
    assert f"✅ {unproved}" not in err
    assert "Drill passed" not in out + err


def sabotage(script: Path, code: str) -> None:
    """Have a module run some code at its end, a script before its main program."""
    text = script.read_text(encoding="utf-8")
    end = text.find('\nif __name__ == "__main__":\n    sys.exit(')
    module, call = (text, "") if end < 0 else (text[:end], text[end:])
    script.write_text(f"{module}\n{code}\n{call}", encoding="utf-8")


# --- it leaves nothing behind, however it ends -----------------------------------------------------------------------


@pytest.mark.deep
@pytest.mark.parametrize("proofs", [0, 2, pytest.param(9, marks=pytest.mark.long)])
def test_killed_drill_of_a_user_leaves_no_file_and_no_process(place: Place, proofs: int) -> None:
    with killed_at_the_end(start_unprivileged(place)) as process:
        folder = ram_folder(process)
        assert folder.parent == place.ram
        read_proofs(process, proofs)
        time.sleep(0.15)  # into what comes next
        process.kill()
        wait_until_gone(folder, seconds=3)
        deadline = time.monotonic() + 3  # the RAM folders of its children
        while time.monotonic() < deadline and list(place.ram.iterdir()):
            time.sleep(0.05)
    assert list(place.ram.iterdir()) == []
    assert processes_naming(place.ram) == []


@pytest.mark.deep
def test_killed_drill_leaves_no_ram_folder_and_no_agent(place: Place) -> None:
    with killed_at_the_end(start(place)) as process:
        folder = ram_folder(process)
        read_proofs(process, 2)
        process.kill()
        wait_until_gone(folder, seconds=3)


@pytest.mark.deep
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_drill_with_its_code_and_leaves_nothing(place: Place, number: signal.Signals) -> None:
    with killed_at_the_end(start_unprivileged(place)) as process:
        folder = ram_folder(process)
        read_proofs(process, 1)
        process.send_signal(number)
        code, out, err = finish(process)
    assert code == 128 + number, err
    assert "Drill passed" not in out + err
    wait_until_gone(folder, seconds=0.1)


def read_proofs(process: subprocess.Popen[str], number: int) -> None:
    """Read a drill's lines until it has proved so many things."""
    assert process.stderr
    for _ in range(number):
        line = process.stderr.readline()
        assert line.startswith("✅ "), line + process.stderr.read()
