"""Every command block of README.md and RUNBOOK.md that can be run is run, word for word; so are the examples.

The host is as README.md's first command leaves a Debian: a .venv in the shop's folder, and no `python` on PATH. Here
all is run as root; test_unprivileged.py runs the same as a user of the group `docker`.

A block of RUNBOOK.md says above itself in which situation it is run (`<!-- run: … -->`), or why it is not.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from backuplib import proofs
from backuplib.proofs import Proof
from tests.conftest import MakeHost, MakeShop, SshTerminal, StartTerminal
from tests.support.containers import wait_until
from tests.support.documents import blocks_for, readme_blocks, runbook_blocks, ssh_blocks_of_the_readme
from tests.support.keys import GpgHome, Keys, gpg_home
from tests.support.plugin import metrics, plugin
from tests.support.remotes import serving
from tests.support.shop import BACKUP, DB_PASS, ROOT, Completed, Shop
from tests.support.ssh import CONFIRM, MENU, Host, make_venv, run_bash
from tests.support.terminal import COMPLETION
from tests.support.units import FOLDER_OF_UNITS, commands_of

SAFETY = "backups/db_backup_20250130_153045"
MENU_BLOCK = f"ssh -t host '{MENU}'\n"

RUN_ELSEWHERE = {
    "python3 -m venv .venv && .venv/bin/pip install -q -r requirements": ".ci/bare-machine, both of them",
    MENU_BLOCK: "test_ssh.py, on a terminal",
    "mkdir ops\n": "test_into_a_bot.py",
    "cp TOOL/examples/bot/db_backup.py utils/db_backup.py\n": "test_into_a_bot.py",
    "DB_PASS='it\\'s $9.99": "a setting: test_into_a_bot.py",
    "BACKUP_REMOTES='offsite:shopbot ": "a setting: test_config.py",
    ".venv/bin/python restore_backup.py offsite:latest\n": "test_remotes.py, with key and passphrase",
    f"{COMPLETION['bash']}\n": "test_completion.py",
    f"{COMPLETION['zsh']}\n": "test_completion.py",
    "prepare, bot up ": "a picture",
    "init: true\nshm_size:": "lines of a compose file",
}
"""Beginnings of the blocks of README.md that are not run here, and where they are."""


# --- the blocks ------------------------------------------------------------------------------------------------------

SITUATIONS = (
    "at home",
    "host",
    "cut off",
    "terminal",
    "terminal on the host",
    "litestream",
    "raw",
    "raw, unpacked",
    "new machine",
    "new machine, at home",
    "new machine, from a remote",
    "copies",
    "keys",
    "watched",
)


def test_every_situation_is_known() -> None:
    assert {where for where, _ in runbook_blocks()} == set(SITUATIONS)


def test_every_block_of_the_readme_is_run_here_or_elsewhere() -> None:
    others = [block for block in readme_blocks() if block not in README_BLOCKS]
    ours = [[begin for begin in RUN_ELSEWHERE if block.startswith(begin)] for block in others]
    assert [block for block, found in zip(others, ours, strict=True) if not found] == []
    assert {begin for found in ours for begin in found} == set(RUN_ELSEWHERE)


README_BLOCKS = [block for block in ssh_blocks_of_the_readme() if block != MENU_BLOCK]


# --- where they are run ----------------------------------------------------------------------------------------------


@pytest.fixture
def own_gpg(keys: Keys) -> Iterator[GpgHome]:
    """gpg as the operator has it at home, except that it need not ask for the passphrase."""
    with gpg_home() as home:
        (home.path / "passphrase").write_text(f"{keys.rsa.passphrase}\n", encoding="utf-8")
        (home.path / "gpg.conf").write_text(f"batch\npinentry-mode loopback\npassphrase-file {home.path}/passphrase\n")
        yield home


# --- RUNBOOK.md ------------------------------------------------------------------------------------------------------


@pytest.mark.deep
@pytest.mark.parametrize("code", blocks_for("host"))
def test_block_on_the_host(host: Host, code: str) -> None:
    assert host.on_host("command -v python").code
    done = host.on_host(code)
    assert done.code == 0, done.text


@pytest.mark.deep
@pytest.mark.parametrize("code", blocks_for("at home"))
def test_block_at_home(host: Host, code: str) -> None:
    copy_verify_newest(host)
    before = host.shop.snapshot()
    done = host.type(code)
    assert done.code == 0, done.text
    if "--force" in code:
        assert host.is_restored()
    else:
        assert host.shop.snapshot() == before


@pytest.mark.deep
@pytest.mark.parametrize("code", blocks_for("cut off"))
def test_block_after_a_restore_was_cut_off(host: Host, code: str) -> None:
    cut_off(host)
    done = host.on_host(code)
    assert done.code == 0, done.text
    assert {path.name for path in host.shop.db_path.parent.iterdir()} <= {"shop.db", "shop.db-wal", "shop.db-shm"}
    assert host.is_restored() == ("--recover" in code)
    assert len(host.shop.rows()["orders"]) in (300, 258)
    assert "Nothing to recover" in host.shop.restore("--recover").text


def cut_off(host: Host) -> None:
    """Kill a restore when the new database has just taken its place."""
    slow = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=rename"]
    slow += ["-e", "inject=rename:delay_exit=500ms"]
    inode = host.shop.db_path.stat().st_ino
    with host.shop.start_restore(BACKUP, "--force", key=host.key, wrapper=slow) as process:
        wait_until(lambda: host.shop.db_path.stat().st_ino != inode, "the new database is in place", 60)
        # Not strace: what it has traced could start no program any more, and the reaper has to.
        (program,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(program), signal.SIGKILL)
        process.communicate(timeout=30)
    assert list(host.shop.db_path.parent.glob("*.restore-state.json"))


@pytest.mark.deep
def test_block_on_a_terminal(host: Host, ssh_terminal: SshTerminal) -> None:
    """In tmux, as it is recommended."""
    (code,) = blocks_for("terminal")
    connect, restore = code.splitlines()
    # A login shell would take the host's own PATH; and every test has tmux sessions of its own.
    (host.folder / "home/.tmux.conf").write_text('set -g default-command "exec /bin/bash --norc"\n')
    (host.folder / "tmux").mkdir(mode=0o700)
    match = re.fullmatch(r"ssh -t host '(.*)'", connect)
    assert match
    client = ssh_terminal(host, "-t", f"export TMUX_TMPDIR={host.folder}/tmux; {match[1]}")
    client.expect(r"[#$] ")
    client.send(f"{restore}\n")
    client.expect("Number, or q to leave: ")
    client.send("1\n")
    client.expect("Paste the private key")
    client.expect(": ")
    client.send(f"{host.key.private_b64}\n")
    client.expect("Passphrase of the private key: ")
    client.send(f"{host.key.passphrase}\n")
    client.expect(r"\[y/N\]")
    client.send("y\n")
    client.expect("Database restored successfully")
    client.expect("to undo")
    client.expect(r"[#$] ")  # what is typed before is thrown away
    client.send("exit\n")
    client.wait()
    assert host.is_restored()


@pytest.mark.deep
def test_undo_as_the_report_prints_it_and_as_the_runbook_does(host: Host, terminal: StartTerminal) -> None:
    before = host.shop.rows()
    done = host.type(README_BLOCKS[0])
    assert done.code == 0, done.text
    found = re.search(
        r"to undo +(\.venv/bin/python restore_backup.py (backups/db_backup_\d+_\d+\.db\.gz\.gpg))$",
        done.out,
        re.MULTILINE,
    )
    assert found, done.out
    (code,) = blocks_for("terminal on the host")
    assert code.strip() == found[1].replace(found[2], f"{SAFETY}.db.gz.gpg")
    undo = terminal(host.shop, found[2])
    undo.expect("Paste the private key.*: ")
    undo.send(f"{host.key.private_b64}\n")
    undo.expect("Passphrase of the private key: ")
    undo.send(f"{host.key.passphrase}\n")
    undo.expect(CONFIRM)
    undo.send("y\n")
    assert undo.wait() == 0, undo.output
    assert host.shop.rows() == before


@pytest.mark.deep
def test_block_for_a_raw_safety_backup(make_host: MakeHost, make_shop: MakeShop, own_gpg: GpgHome, mode: str) -> None:
    """The live database is damaged, so the restore keeps its files as they are; what they hold is restored."""
    host, (code,) = make_host(make_shop(mode)), blocks_for("raw")
    shop = host.shop
    rows = shop.rows()
    spoil_customers(shop.db_path)
    done = shop.restore(BACKUP, "--force", key=host.key)
    assert done.code == 0, done.text
    (raw,) = shop.backups.glob("*.raw.tar.gz.gpg")
    raw.rename(shop.path / f"{SAFETY}.raw.tar.gz.gpg")
    own_gpg.run("--import", stdin=host.key.private_binary)
    rescued = run_bash(code, host.folder / "away", {**host.away(), "GNUPGHOME": str(own_gpg.path)}, 60)
    assert rescued.code == 0, rescued.text
    path = Path(rescued.out.strip())
    try:
        assert path.parent == Path("/dev/shm")
        assert path.stat().st_mode & 0o777 == 0o600
        assert re.search(r"customers +\d+ +rowids \d", rescued.err), rescued.text
        assert shop.restore(path, "--force").code == 0
    finally:
        path.unlink()
    found = shop.rows()
    assert 0 < len(found["customers"]) < len(rows["customers"])
    assert set(found["customers"]) < set(rows["customers"])
    assert {name: found[name] for name in rows if name != "customers"} == {
        name: rows[name] for name in rows if name != "customers"
    }


def spoil_customers(database: Path) -> None:
    """A page of the sample data's largest table, in its middle, becomes noise."""
    with database.open("r+b") as file:
        file.seek(20 * 4096)
        file.write(os.urandom(4096))


@pytest.mark.deep
def test_block_for_unpacked_files(shop: Shop) -> None:
    (code,) = blocks_for("raw, unpacked")
    rows = shop.rows()
    shutil.move(shop.db_path, shop.path / "shop.db")
    spoil_customers(shop.path / "shop.db")
    make_venv(shop.path)
    done = run_bash(code, shop.path, shop.environment(), 60)
    assert done.code == 0, done.text
    found = shop.rows(shop.path / "rescued.db")
    assert 0 < len(found["customers"]) < len(rows["customers"])
    assert found["orders"] == rows["orders"]


@pytest.mark.deep
@pytest.mark.needs("rsync")
def test_blocks_for_a_new_machine(host: Host) -> None:
    """From the copies that the line in the crontab made, to the database."""
    rows = host.shop.backup_rows(host.shop.path / BACKUP, host.key)
    (copy,), (fetch, restore), (look,) = map(blocks_for, ("copies", "new machine, at home", "new machine"))
    env = {**host.away(), "HOME": str(host.folder / "home")}
    copied = run_bash(copy.replace("/var/backups/shopbot", str(host.shop.backups)), host.folder / "away", env, 60)
    assert copied.code == 0, copied.text
    shutil.move(host.shop.path / ".env", host.folder / "away/.env")
    for folder in (host.shop.backups, host.shop.db_path.parent):
        shutil.rmtree(folder)
    for done in (host.type(f"set -e\n{fetch}"), host.on_host(look), host.type(restore)):
        assert done.code == 0, done.text
    assert host.shop.rows() == rows
    assert (host.shop.path / ".env").stat().st_mode & 0o777 == (host.folder / "away/.env").stat().st_mode & 0o777


@pytest.mark.deep
@pytest.mark.needs("rclone")
def test_block_for_a_new_machine_with_a_remote(host: Host, ssh_terminal: SshTerminal, tmp_path: Path) -> None:
    """From nothing but .env, rclone's configuration, key and passphrase."""
    rows = host.shop.backup_rows(host.shop.path / BACKUP, host.key)
    (code,) = blocks_for("new machine, from a remote")
    with serving("webdav", tmp_path / "server") as server:
        settings = {name.removeprefix("RCLONE_CONFIG_OFFSITE_"): text for name, text in server.variables().items()}
        configured = host.folder / "home/.config/rclone/rclone.conf"
        configured.parent.mkdir(parents=True)
        configured.write_text("[offsite]\n" + "".join(f"{key.lower()} = {text}\n" for key, text in settings.items()))
        host.shop.write_env(BACKUP_REMOTES=server.place)
        pushed = host.on_host(".venv/bin/python database_backup.py push")
        assert pushed.code == 0, pushed.text
        for folder in (host.shop.backups, host.shop.db_path.parent):
            shutil.rmtree(folder)
        shown = ssh_terminal(host, "-t", f"cd shopbot && {code}")
        shown.expect("Paste the private key.*: ")
        shown.send(f"{host.key.private_b64}\n")
        shown.expect("Passphrase of the private key: ")
        shown.send(f"{host.key.passphrase}\n")
        shown.expect(CONFIRM)
        shown.send("y\n")
        assert shown.wait() == 0, shown.output
    assert host.shop.rows() == rows
    assert not list(host.shop.backups.glob("*.gpg"))


def test_block_that_makes_keys_makes_keys_that_work(make_shop: MakeShop, own_gpg: GpgHome, tmp_path: Path) -> None:
    """With what the block leaves: public key into .env, a backup, its restore with the subkey alone."""
    (code,) = blocks_for("keys")
    away = tmp_path / "keys"
    away.mkdir()
    done = run_bash(f"set -e\n{code}", away, {**os.environ, "GNUPGHOME": str(own_gpg.path)}, 60)
    assert done.code == 0, done.text
    shop = make_shop("sqlcipher", DB_PASS=DB_PASS, PGP_PUBLIC_KEY_BASE64=(away / "public.b64").read_text())
    rows, backup = shop.rows(), shop.create_backup()
    shop.change_data()
    options = ("--force", "--key-stdin", "--passphrase-command", f"cat {own_gpg.path}/passphrase")
    done = shop.restore(backup, *options, stdin=(away / "key.b64").read_bytes())
    assert done.code == 0, done.text
    assert shop.rows() == rows
    paper = (away / "paper.asc").read_bytes()
    assert paper.startswith(b"-----BEGIN PGP PRIVATE KEY BLOCK-----")


# --- README.md -------------------------------------------------------------------------------------------------------


@pytest.mark.deep
@pytest.mark.parametrize("code", README_BLOCKS)
def test_block_of_the_readme(host: Host, code: str) -> None:
    """The first one is that of "The bad night"."""
    done = host.type(code.replace("/run/secrets/passphrase", str(host.folder / "away/passphrase")))
    assert done.code == 0, done.text
    assert host.is_restored() == ("--force" in code)


# --- examples --------------------------------------------------------------------------------------------------------


def copy_verify_newest(host: Host) -> None:
    """The script at home, and on the host a backup that was just made by its name; its file is the oldest."""
    shutil.copy(ROOT / "examples/verify-newest.sh", host.folder / "away")
    newest = copy_of_backup(host, datetime.now().astimezone())
    os.utime(newest, (0, 0))


def copy_of_backup(host: Host, made: datetime, kind: str = "") -> Path:
    """The host's backup under the name of another moment, with its checksum."""
    backup = host.shop.path / BACKUP
    copy = backup.with_name(f"db_backup_{made:%Y%m%d_%H%M%S}.db.gz.gpg")
    shutil.copy(backup, copy)
    checksum = Path(f"{backup}.sha256").read_text().replace(backup.name, copy.name)
    Path(f"{copy}.sha256").write_text(f"# kind: {kind}\n{checksum}" if kind else checksum)
    return copy


def verify_newest(host: Host, arguments: str = "host shopbot", **env: str) -> Completed:
    """The script, as the operator's crontab calls it."""
    settings = " ".join(f"{name}={value}" for name, value in env.items())
    return host.type(
        f"{settings} KEY_COMMAND='cat key.b64' PASSPHRASE_COMMAND='cat passphrase' ./verify-newest.sh {arguments}"
    )


@pytest.mark.deep
def test_newest_backup_that_cannot_be_restored_is_told(host: Host) -> None:
    copy_verify_newest(host)
    newest = copy_of_backup(host, datetime.now().astimezone() + timedelta(seconds=5))
    newest.write_bytes(newest.read_bytes()[:-100])
    os.utime(newest, (0, 0))
    done = verify_newest(host)
    assert done.code == 3, done.text
    assert newest.name in done.out


@pytest.mark.deep
def test_newest_backup_is_told_when_it_is_too_old_or_there_is_none(host: Host) -> None:
    """A safety backup is none that a schedule made: it does not hide that the schedule stands still."""
    copy_verify_newest(host)
    for path in host.shop.backups.glob("db_backup_2*"):
        if BACKUP not in str(path):
            path.unlink()
    copy_of_backup(host, datetime.now().astimezone(), kind="before a restore")
    made = datetime.now().astimezone() - timedelta(hours=27, minutes=30)
    old = copy_of_backup(host, made)
    (host.folder / "away/passphrase").write_text(str(host.key.passphrase))  # as password stores print it
    done = verify_newest(host)
    assert done.code == 1, done.text
    assert old.name in done.out
    assert "27 hours" in done.out
    assert verify_newest(host, BACKUP_MAX_AGE_HOURS="28").text == ""
    done = verify_newest(host, "host shopbot elsewhere")
    assert done.code == 3, done.text
    assert "no backup in elsewhere" in done.out
    host.shop.backups.rename(host.shop.path / "elsewhere")
    host.shop.write_env(DB_BACKUP_PATH="elsewhere")
    assert verify_newest(host, BACKUP_MAX_AGE_HOURS="28").text == ""


@pytest.mark.deep
def test_blocks_of_who_watches(host: Host, tmp_path: Path) -> None:
    line, textfile = blocks_for("watched")
    host.shop.create_backup()
    done = host.on_host(line)
    assert (done.code, plugin(done.out).status) == (1, "WARNING"), done.text  # the host's first backup is years old
    proofs.record(host.shop.backups, Proof("ab" * 32, "x", datetime.now().astimezone(), "verified"))
    done = host.on_host(line)
    assert (done.code, plugin(done.out).text) == (0, "newest backup made just now, checksum ok, proved just now")
    (tmp_path / "node").mkdir()
    done = host.on_host(textfile.replace("/var/lib/prometheus/node-exporter", str(tmp_path / "node")))
    assert (done.code, done.text) == (0, "")
    assert "shopbot_backup_status" in metrics((tmp_path / "node/shopbot.prom").read_text())
    assert [path.name for path in (tmp_path / "node").iterdir()] == ["shopbot.prom"]


@pytest.mark.needs("systemd-analyze")
def test_units_are_understood_by_systemd(tmp_path: Path) -> None:
    units = [*(ROOT / "examples").glob("*.service"), *(ROOT / "examples").glob("*.timer")]
    assert len(units) == 9
    for unit in units:
        text = unit.read_text().replace(f"{FOLDER_OF_UNITS}/.venv/bin/python", "/usr/bin/env")
        (tmp_path / unit.name).write_text(text.replace(FOLDER_OF_UNITS, str(tmp_path)))
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.deep
def test_commands_of_the_units_run(host: Host) -> None:
    """The drill is the RUNBOOK's; test_services_recovery.py runs those at boot."""
    folder = str(host.shop.path)
    for command in commands_of("shopbot-backup.service"):
        done = host.on_host(command.replace(FOLDER_OF_UNITS, folder))
        assert done.code == 0, done.text
    (status,) = commands_of("shopbot-status.service")
    assert f"{status.removeprefix(FOLDER_OF_UNITS + '/')}\n" == blocks_for("watched")[0]
    (drill,) = commands_of("shopbot-drill.service")
    assert f"{drill.removeprefix(FOLDER_OF_UNITS + '/')}\n" in blocks_for("host")


@pytest.mark.deep
def test_lines_for_cron_are_silent_when_all_is_well(host: Host) -> None:
    text = (ROOT / "examples/crontab").read_text()
    lines = re.findall(r"^[\d*]\S* \S+ \S+ \S+ \S+ +(.*)$", text, re.MULTILINE)
    backup, prune, drill, copy, verify = lines
    assert f"{copy}\n" in blocks_for("copies")
    with closing(host.shop.connect()) as connection:
        connection.execute("DELETE FROM items")  # those of orders that are gone would be told
    for line in (backup, prune, drill.replace("--drill", "--version")):  # the drill itself is the RUNBOOK's
        done = host.on_host(line.replace(FOLDER_OF_UNITS, str(host.shop.path)))
        assert (done.code, done.text) == (0, "")
    shutil.copy(ROOT / "examples/verify-newest.sh", host.folder / "away")
    program, arguments = verify.split(maxsplit=1)
    assert Path(program).name == "verify-newest.sh"
    done = verify_newest(host, arguments.replace("/ops", "").replace("/var/backups/shopbot", "backups"))
    assert (done.code, done.text) == (0, "")
    assert [proof.how for proof in proofs.read(host.shop.backups)] == ["verified"]
