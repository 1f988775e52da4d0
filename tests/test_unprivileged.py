"""A user without any rights runs everything on files of its own: what works, works; what needs root is said.

So does the shop's user of RUNBOOK.md: in the group `docker`, the owner of data and backups, which the bot runs as, too.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ONE_MODE, MakeBotShop, MakeHost, MakeShop
from tests.support.containers import Bot, BotShop, Compose, wait_until
from tests.support.documents import blocks_for, ssh_blocks_of_the_readme
from tests.support.keys import Key, Keys, with_system_settings
from tests.support.needs import skip
from tests.support.plugin import plugin
from tests.support.shop import ROOT, Completed, Shop, open_way_to_python
from tests.support.ssh import Host

UID = 50000 + os.getpid() % 10000
"""Of nobody: no name, no home, no group that has files; and no other test process has it."""

pytestmark = pytest.mark.needs("root")

AS_USER = ["env", "--unset=HOME", "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs"]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """pytest's own is closed to other users, and made so again by every pytest that starts meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="user-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def user_shop(make_shop: MakeShop, mode: str) -> Shop:
    """A shop that belongs to the user."""
    shop = make_shop(mode)
    for path in (shop.path, *shop.path.rglob("*")):
        os.chown(path, UID, UID)
    open_way_to_python()
    return shop


def as_user(shop: Shop, script: str, *args: object, key: Key | None = None, **options: object) -> Completed:
    """Run a script as the user; swap of this machine is not the matter here."""
    return shop.run(script, *args, key=key, wrapper=AS_USER, **options)


def restore(shop: Shop, *args: object, **options: Any) -> Completed:
    """restore_backup.py as the user."""
    return shop.restore("--allow-swap", *args, wrapper=AS_USER, **options)


def backup_of(shop: Shop) -> Path:
    """A backup that the user may read."""
    made = as_user(shop, "database_backup.py", "create")
    assert made.code == 0, made.text
    return shop.path / made.out.strip()


@ONE_MODE
def test_python_of_the_tests_can_be_run_by_the_user(user_shop: Shop) -> None:
    """If not, the other tests would fail for no fault of the program's."""
    command = [*AS_USER, sys.executable, "-c", "import gnupg, sqlcipher3, isal, os; print(os.getuid())"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=user_shop.path)
    assert done.stdout.strip() == str(UID), done.stderr


def test_monitoring_user_sees_what_it_may_see(make_shop: MakeShop) -> None:
    shop = make_shop("sqlite")
    open_way_to_python()
    shop.create_backup()
    done = as_user(shop, "database_backup.py", "status")
    found = plugin(done.out)
    assert (done.code, found.status, "Permission denied" in found.text) == (3, "UNKNOWN", True)
    assert (done.err, [*found.figures]) == ("", [])
    shop.backups.chmod(0o755)
    done = as_user(shop, "database_backup.py", "status", env={"DB_BACKUP_PATH": str(shop.backups)})
    found = plugin(done.out)
    assert (done.code, found.status, found.value("age") < 600) == (3, "UNKNOWN", True)
    assert "cannot be read" in found.text  # its checksum


def test_backup_verify_list_and_restore(user_shop: Shop, keys: Keys) -> None:
    rows = user_shop.rows()
    backup = backup_of(user_shop)
    assert backup.stat().st_uid == UID
    assert as_user(user_shop, "database_backup.py", "verify", backup).code == 0
    listed = restore(user_shop, "--list")
    assert backup.name in listed.text
    verified = restore(user_shop, backup, "--verify-only", key=keys.rsa)
    assert verified.code == 0, verified.text

    user_shop.change_data()
    for path in user_shop.db_path.parent.iterdir():
        os.chown(path, UID, UID)
    changed = user_shop.rows()
    done = restore(user_shop, backup, "--force", key=keys.rsa)
    assert done.code == 0, done.text
    assert user_shop.rows() == rows
    assert user_shop.db_path.stat().st_uid == UID
    safety = next(path for path in user_shop.backups.glob("*.gpg") if path != backup)
    assert user_shop.backup_rows(safety, keys.rsa) == changed


@ONE_MODE
@pytest.mark.deep  # takes a user namespace, which a chroot has none of
@pytest.mark.needs("mount")
def test_system_wide_gpg_settings_are_not_read(user_shop: Shop, keys: Keys, tmp_path: Path) -> None:
    """Those that say dry-run would let gpg import no key."""
    backup = backup_of(user_shop)
    wrapper = [*with_system_settings(tmp_path, "dry-run"), *AS_USER]
    restored = user_shop.restore("--allow-swap", "--force", backup, key=keys.rsa, wrapper=wrapper)
    assert restored.code == 0, restored.text
    made = user_shop.run("database_backup.py", "create", wrapper=wrapper)
    assert made.code == 0, made.text


@ONE_MODE
def test_backup_folder_that_cannot_be_read_is_not_called_empty(user_shop: Shop) -> None:
    backup_of(user_shop)
    os.chown(user_shop.backups, 0, 0)
    user_shop.backups.chmod(0o700)
    for done in (
        restore(user_shop, "--list"),
        *(as_user(user_shop, "database_backup.py", word) for word in ("list", "prune")),
    ):
        assert done.code == 3, done.text
        assert str(user_shop.backups) in done.err
        assert "Permission denied" in done.err


@ONE_MODE
def test_what_root_makes_in_the_users_folder_is_the_users(user_shop: Shop, keys: Keys) -> None:
    """Backups, the safety backup among them, each with its checksum; what is believed stays root's."""
    backup = user_shop.create_backup()
    user_shop.change_data()
    changed = user_shop.rows()
    done = user_shop.restore(backup, "--force", key=keys.rsa)
    assert done.code == 0, done.text
    safety = Path(done.report["safety_backup"])
    made = {path.name: path.stat() for path in user_shop.backups.iterdir()}
    roots = {"restore.log": 0o600, "last-restore.json": 0o644, "proofs.jsonl": 0o600}
    for name, mode in roots.items():
        status = made.pop(name)
        assert (status.st_uid, status.st_mode & 0o7777) == (0, mode)
    assert {*made} == {f"{path.name}{end}" for path in (backup, safety) for end in ("", ".sha256")}
    assert {(of.st_uid, of.st_gid, oct(of.st_mode & 0o7777)) for of in made.values()} == {(UID, UID, "0o600")}
    undone = restore(user_shop, safety, "--force", key=keys.rsa)
    assert undone.code == 0, undone.text
    assert user_shop.rows() == changed


@ONE_MODE
def test_how_the_last_restore_ended_is_told_to_the_owner_of_the_backups_or_said_to_be_unknown(
    user_shop: Shop, keys: Keys
) -> None:
    """Root restored; somebody else asks how it ended."""
    backup = backup_of(user_shop)
    assert "last restore" not in restore(user_shop, "--list").text
    assert user_shop.restore("--force", backup, key=keys.rsa).code == 0
    listed = restore(user_shop, "--list")
    assert listed.report["last_restore"]["live"] == "new", listed.text
    record = user_shop.backups / "last-restore.json"
    record.chmod(0o600)
    listed = restore(user_shop, "--list")
    assert listed.code == 0, listed.text
    assert listed.report["last_restore"] is None
    assert f"last restore: not known, {record}: Permission denied" in listed.err


@ONE_MODE
def test_processes_that_cannot_be_looked_at_are_not_called_nobody(user_shop: Shop, keys: Keys) -> None:
    """Without root nobody can tell who has the database open: that is said, and --force takes the responsibility."""
    backup = backup_of(user_shop)
    before = user_shop.snapshot()
    done = restore(user_shop, backup, "--force", key=keys.rsa)
    assert any(str(user_shop.db_path) in warning for warning in done.report["warnings"]), done.text
    assert done.code == 0 or user_shop.snapshot() == before


@ONE_MODE
def test_own_process_that_has_the_database_open_is_found(user_shop: Shop, keys: Keys) -> None:
    backup = backup_of(user_shop)
    holder = "import sys; file = open(sys.argv[1], 'rb'); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [*AS_USER, sys.executable, "-c", holder, str(user_shop.db_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=user_shop.path,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        before = user_shop.snapshot()
        done = restore(user_shop, backup, "--force", "--no-restart", key=keys.rsa)
        process.stdin.close()
    assert done.ended == (3, "database-in-use"), done.text
    assert f"pid {process.pid}" in done.error["message"]
    assert user_shop.snapshot() == before


@ONE_MODE
def test_wrong_passphrase_and_damage_are_refused_the_same_way(user_shop: Shop, keys: Keys) -> None:
    backup = backup_of(user_shop)
    damaged = user_shop.backups / "db_backup_20250130_120000.db.gz.gpg"
    damaged.write_bytes(backup.read_bytes()[:-1])
    os.chown(damaged, UID, UID)
    before = user_shop.snapshot()
    wrong = restore(user_shop, backup, "--force", key=Key(**{**vars(keys.rsa), "passphrase": "wrong"}))
    assert wrong.ended == (4, "wrong-passphrase"), wrong.text
    cut = restore(user_shop, damaged, "--force", key=keys.rsa)
    assert cut.ended == (4, "damaged-message"), cut.text
    assert user_shop.snapshot() == before


@ONE_MODE
def test_checksum_that_cannot_be_read_is_refused(user_shop: Shop, keys: Keys) -> None:
    """Root made the backup and handed over the backup alone."""
    backup = user_shop.create_backup()
    os.chown(f"{backup}.sha256", 0, 0)
    before = user_shop.snapshot()
    done = restore(user_shop, backup, "--force", key=keys.rsa)
    assert done.ended == (3, "checksum-unreadable"), done.text
    assert f"{backup.name}.sha256" in done.error["message"]
    assert user_shop.snapshot() == before


@ONE_MODE
@pytest.mark.parametrize("problem", ["folder not writable", "database of another user", "backups not writable"])
def test_missing_rights_are_refused_before_anything_is_touched(user_shop: Shop, keys: Keys, problem: str) -> None:
    backup = backup_of(user_shop)
    if problem == "folder not writable":
        os.chown(user_shop.db_path.parent, 0, 0)
    elif problem == "database of another user":
        os.chown(user_shop.db_path, 0, 0)
        user_shop.db_path.chmod(0o600)
    else:
        os.chown(user_shop.backups, 0, 0)
    before = user_shop.snapshot()
    done = restore(user_shop, backup, "--force", key=keys.rsa)
    assert done.ended == ((6, "backup-failed") if problem == "backups not writable" else (3, "cannot-write")), done.text
    assert "Traceback" not in done.text
    assert user_shop.snapshot() == before


def test_nothing_is_left_in_ram_and_nothing_in_a_home(user_shop: Shop, keys: Keys) -> None:
    backup = backup_of(user_shop)
    assert restore(user_shop, backup, "--verify-only", key=keys.rsa).code == 0
    deadline = time.monotonic() + 3
    while left := things_of_the_user():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def things_of_the_user() -> list[str]:
    """RAM folders and processes of the user's."""
    found = [str(path) for path in Path("/dev/shm").glob("restore-backup-*") if path.stat().st_uid == UID]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"Uid:\t{UID}\t" in (process / "status").read_text():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


@ONE_MODE
def test_memory_cannot_be_looked_into_by_the_same_user(user_shop: Shop, keys: Keys, tmp_path: Path) -> None:
    """Not dumpable: the kernel gives its files in /proc to root, and ptrace by its own user is refused."""
    backup = backup_of(user_shop)
    ready, go = user_shop.path / "ready", user_shop.path / "go"
    script = user_shop.path / "ask"
    script.write_text(
        f"#!/bin/sh\necho $PPID > {ready}.new; mv {ready}.new {ready}\n"
        f"while [ ! -e {go} ]; do sleep 0.05; done\necho wrong\n"
    )
    script.chmod(0o755)
    key = Key(**{**vars(keys.rsa), "passphrase": None})
    options = ("--verify-only", "--allow-swap", "--passphrase-command", script)
    running = user_shop.start_restore(backup, *options, key=key, wrapper=AS_USER)
    try:
        wait_until(ready.exists, "the passphrase is asked for")
        pid = ready.read_text().strip()
        assert re.search(rf"^Uid:\t{UID}\t", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
        look = subprocess.run([*AS_USER, "cat", f"/proc/{pid}/environ"], capture_output=True, text=True, check=False)
        assert look.returncode != 0
        assert "ermission denied" in look.stderr
        assert re.search(r"Max core file size\s+0\s+0\s", Path(f"/proc/{pid}/limits").read_text())
    finally:
        go.touch()
        running.communicate(timeout=60)
    assert running.returncode == 4


@pytest.mark.needs("prlimit")
def test_small_limit_of_locked_memory_does_no_harm(user_shop: Shop, keys: Keys) -> None:
    """Users may lock 64 kB or 8 MB: locking more must not make the restore fail."""
    backup = backup_of(user_shop)
    with closing(user_shop.connect()) as connection:
        connection.execute("SELECT 1")
    for limit in (0, 65536, 8 << 20):
        wrapper = ["prlimit", f"--memlock={limit}:{limit}", *AS_USER]
        done = user_shop.restore(backup, "--verify-only", "--allow-swap", key=keys.rsa, wrapper=wrapper)
        assert done.code == 0, f"{limit}: {done.text}"


# --- the shop's user, with a bot -------------------------------------------------------------------------------------


@dataclass
class UsersHost:
    """A host whose logins become the shop's user; the bot runs as that user, too."""

    host: Host
    shop: BotShop


@pytest.fixture
def users_host(make_bot_shop: MakeBotShop, compose: Compose, make_host: MakeHost) -> UsersHost:
    """Its bot is up; the key's passphrase is in a file of the user's, too."""
    socket = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")).stat()
    if socket.st_mode & 0o060 != 0o060:
        skip("a socket of Docker that its group may use")
    shop = make_bot_shop("sqlite", compose, Bot(health=True))
    shop.change_services(bot={"user": f"{UID}:{UID}"})
    host = make_host(shop)
    shutil.copy(host.folder / "away/passphrase", host.folder / "home")
    for path in (shop.path, *shop.path.rglob("*"), host.folder / "home", host.folder / "home/passphrase"):
        os.chown(path, UID, UID, follow_symlinks=False)
    user = ["setpriv", f"--reuid={UID}", f"--regid={UID}", f"--groups={socket.st_gid}", "--no-new-privs"]
    host.log_in_as(*with_reachable_python(host.folder / "reachable"), *user)
    shop.up()
    shop.wait_rows()
    shop.wait_health("healthy")
    return UsersHost(host, shop)


def with_reachable_python(folder: Path) -> list[str]:
    """The beginning of a command that finds the Python of the tests, which may be in a folder closed to others."""
    script = []
    needed = [Path(sys.base_prefix), Path(sysconfig.get_paths()["purelib"])]
    closed = [next((top for top in reversed(path.parents) if not top.stat().st_mode & 0o001), None) for path in needed]
    for top in filter(None, dict.fromkeys(closed)):
        for path in [path for path in needed if path.is_relative_to(top)]:
            place = folder / top.name / path.relative_to(top)
            place.mkdir(parents=True)
            script.append(shlex.join(["mount", "--bind", str(path), str(place)]))
        script.append(shlex.join(["mount", "--rbind", str(folder / top.name), str(top)]))
    return ["unshare", "--mount", "sh", "-ec", "\n".join([*script, 'exec "$@"']), "sh"]


def accept_swap(code: str) -> str:
    """Swap of this machine is not the matter here."""
    return re.sub(r"(restore_backup\.py) (?=backups/|latest)", r"\1 --allow-swap ", code)


@pytest.mark.docker
@pytest.mark.needs("mount")
@pytest.mark.parametrize("compose", ["v2"], indirect=True)
def test_blocks_of_the_documents_as_the_user_of_the_shop(users_host: UsersHost) -> None:
    """Word for word; the bot goes on, on what was restored."""
    host, shop = users_host.host, users_host.shop
    assert host.on_host("id -u").out.strip() == str(UID)
    assert host.on_host("command -v python").code
    assert host.on_host(".venv/bin/python database_backup.py create").code == 0
    script = host.folder / "away/verify-newest.sh"
    script.write_text(accept_swap((ROOT / "examples/verify-newest.sh").read_text()))
    script.chmod(0o755)
    for block in dict.fromkeys([*ssh_blocks_of_the_readme(), *blocks_for("at home"), *blocks_for("host")]):
        if "ssh -t" in block:  # test_ssh.py, on a terminal
            continue
        code = accept_swap(block).replace("/run/secrets/passphrase", str(host.folder / "home/passphrase"))
        began = shop.state().started_at
        done = host.on_host(code) if block in blocks_for("host") else host.type(code)
        assert done.code == 0, f"{block}\n{done.text}"
        assert shop.state().running
        assert (shop.state().started_at > began) == ("--force" in block)
        if "--force" in block:
            assert len(shop.rows_in_place()["orders"]) == 300
            assert shop.db_path.stat().st_uid == UID
            with closing(shop.connect()) as connection:
                connection.execute("DELETE FROM orders WHERE id % 7 = 0")
