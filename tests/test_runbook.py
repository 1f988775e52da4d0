"""Every command block of README.md and RUNBOOK.md that can be run is run, word for word; so are the examples.

A block of RUNBOOK.md says above itself in which situation it is run (`<!-- run: … -->`), or why it is not. README.md's
two set-up commands are CI's own: `.ci/run` starts the tests with one, test_drill.py stands for the other.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import MakeHost, MakeShop, SshTerminal, StartTerminal
from tests.support.containers import wait_until
from tests.support.keys import GpgHome, Keys, gpg_home
from tests.support.shop import BACKUP, DB_PASS, ROOT, Completed, Shop
from tests.support.ssh import CONFIRM, MENU, Host
from tests.support.terminal import COMPLETION

SAFETY = "backups/db_backup_20250130_153045"
NOT_RUN = ("python3 -m venv", "$ python restore_backup.py")
RUN_ELSEWHERE = {f"ssh -t host '{MENU}'", *COMPLETION.values()}
"""Blocks of README.md that test_ssh.py and test_completion.py run, on terminals."""


# --- the blocks ------------------------------------------------------------------------------------------------------


def runbook_blocks() -> list[tuple[str, str]]:
    """Situation and commands of each block in RUNBOOK.md."""
    text = (ROOT / "RUNBOOK.md").read_text(encoding="utf-8")
    found = re.findall(r"(?:<!-- ([^>]*) -->\n)?```(\w+)\n(.*?)```\n", text, re.DOTALL)
    assert found
    for mark, kind, code in found:
        assert kind == "text" or re.match(r"(not )?run: .", mark), f"say above it how it is to be run:\n{code}"
    return [(mark.removeprefix("run: "), code) for mark, _, code in found if mark.startswith("run: ")]


def readme_blocks() -> list[str]:
    """The command blocks of README.md, which are indented there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [re.sub("^    ", "", block, flags=re.MULTILINE) for block in re.findall(r"\n\n((?:    .*\n)+)", text)]
    commands = ("$ ", "python", "cat ", "ssh ", "{ ", "eval ", "gpg ", "./")
    return [block for block in blocks if block.startswith(commands)]


def is_run_elsewhere(block: str) -> bool:
    """Whether other tests run each of its lines, or CI does."""
    return block.startswith(NOT_RUN) or set(block.strip().splitlines()) <= RUN_ELSEWHERE


def blocks_for(situation: str) -> list[str]:
    return [code for where, code in runbook_blocks() if where == situation]


SITUATIONS = (
    "at home",
    "host",
    "cut off",
    "terminal",
    "terminal on the host",
    "raw",
    "raw, unpacked",
    "new machine",
    "keys",
)


def test_every_situation_is_known() -> None:
    assert {where for where, _ in runbook_blocks()} == set(SITUATIONS)


# --- where they are run ----------------------------------------------------------------------------------------------


def on_host(host: Host, code: str, **env: str) -> Completed:
    """Type it in the shop's folder on the host, without a terminal."""
    return run_bash(code, host.shop.path, host.shop.environment({"PATH": path_of(host.folder), **env}))


def path_of(folder: Path) -> str:
    """PATH with the Python of these tests as `python`."""
    return f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def run_bash(code: str, cwd: Path, env: dict[str, str]) -> Completed:
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", code],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=90,
        check=False,
        start_new_session=True,
    )
    return Completed(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def shm(tmp_path: Path) -> Path:
    """Stands for /dev/shm in the blocks, where the caller may have files of those names."""
    folder = tmp_path / "shm"
    folder.mkdir()
    return folder


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
    done = on_host(host, code)
    assert done.code == 0, done.text


@pytest.mark.deep
@pytest.mark.parametrize("code", blocks_for("at home"))
def test_block_at_home(host: Host, code: str) -> None:
    shutil.copy(ROOT / "examples/verify-newest.sh", host.folder / "away")
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
    done = on_host(host, code)
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
    env = {"PATH": path_of(host.folder)}
    done = host.shop.restore(BACKUP, "--force", key=host.key, env=env, as_json=False)
    assert done.code == 0, done.text
    found = re.search(
        r"to undo +(python restore_backup.py (backups/db_backup_\d+_\d+\.db\.gz\.gpg))$", done.out, re.MULTILINE
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
    rescued = run_bash(code, host.folder / "away", {**host.away(), "GNUPGHOME": str(own_gpg.path)})
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
    done = run_bash(code, shop.path, shop.environment({"PATH": path_of(shop.path)}))
    assert done.code == 0, done.text
    found = shop.rows(shop.path / "rescued.db")
    assert 0 < len(found["customers"]) < len(rows["customers"])
    assert found["orders"] == rows["orders"]


@pytest.mark.deep
def test_block_for_a_new_machine(host: Host, shm: Path) -> None:
    (code,) = blocks_for("new machine")
    rows = host.shop.backup_rows(host.shop.path / BACKUP, host.key)
    shutil.rmtree(host.shop.db_path.parent)
    (shm / "key.b64").write_text(host.key.private_b64)
    (shm / "passphrase").write_text(f"{host.key.passphrase}\n")
    done = on_host(host, code.replace("/dev/shm", str(shm)))
    assert done.code == 0, done.text
    assert host.shop.rows() == rows
    assert list(shm.iterdir()) == []


def test_block_that_makes_keys_makes_keys_that_work(make_shop: MakeShop, own_gpg: GpgHome, tmp_path: Path) -> None:
    """With what the block leaves: public key into .env, a backup, its restore with the subkey alone."""
    (code,) = blocks_for("keys")
    away = tmp_path / "keys"
    away.mkdir()
    done = run_bash(code, away, {**os.environ, "GNUPGHOME": str(own_gpg.path)})
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
@pytest.mark.parametrize("code", [block for block in readme_blocks() if not is_run_elsewhere(block)])
def test_block_of_the_readme(host: Host, code: str) -> None:
    code = code.replace("/run/secrets/passphrase", str(host.folder / "away/passphrase"))
    done = host.type(code) if "ssh host" in code else on_host(host, code)
    if "--force" in code or "restore_backup.py backups/" not in code:
        assert done.code == 0, done.text
    else:  # it asks, which takes a terminal
        assert done.code == 3, done.text
        assert "--force" in done.text


# --- examples --------------------------------------------------------------------------------------------------------


@pytest.mark.deep
def test_newest_backup_that_cannot_be_restored_is_told(host: Host) -> None:
    shutil.copy(ROOT / "examples/verify-newest.sh", host.folder / "away")
    newest = host.shop.backups / "db_backup_20250131_120000.db.gz.gpg"
    newest.write_bytes((host.shop.path / BACKUP).read_bytes()[:-100])
    done = host.type("KEY_COMMAND='cat key.b64' PASSPHRASE_COMMAND='cat passphrase' ./verify-newest.sh host shopbot")
    assert done.code == 4, done.text
    assert "Nothing was touched" in done.out


@pytest.mark.deep
@pytest.mark.parametrize("unit", ["shopbot-backup.service", "shopbot-drill.service"])
def test_commands_of_the_units_run(host: Host, unit: str) -> None:
    text = (ROOT / "examples" / unit).read_text()
    commands = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert commands
    assert (ROOT / "examples" / unit.replace(".service", ".timer")).is_file()
    for command in commands:
        done = on_host(host, command.replace("/srv/shopbot/ops/.venv/bin/python", sys.executable))
        assert done.code == 0, done.text


@pytest.mark.deep
def test_lines_for_cron_are_silent_when_all_is_well(host: Host) -> None:
    lines = re.findall(r"^[\d*]\S* \S+ \S+ \S+ \S+ +(.*)$", (ROOT / "examples/crontab").read_text(), re.MULTILINE)
    assert len(lines) == 3
    with closing(host.shop.connect()) as connection:
        connection.execute("DELETE FROM items")  # those of orders that are gone would be told
    for line in lines[:2]:
        code = line.replace("/srv/shopbot/ops", str(host.shop.path)).replace(".venv/bin/python", sys.executable)
        done = on_host(host, code)
        assert (done.code, done.text) == (0, "") or "not encrypted" in done.text
