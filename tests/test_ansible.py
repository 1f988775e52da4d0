"""The playbooks of examples/ansible, run by ansible-core against two hosts, each with an sshd and a shop of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import MakeShop
from tests.support.containers import wait_until
from tests.support.keys import Key, Keys
from tests.support.needs import find
from tests.support.shop import BACKUP, ROOT, Completed
from tests.support.ssh import Host, set_up_host

pytestmark = [pytest.mark.deep, pytest.mark.needs("root", "sshd", "ssh", "ssh-keygen", "ansible-playbook", "strace")]

# --- two hosts, and the machine that has the key ----------------------------------------------------------------------

CALLS = "execve,write,writev,pwrite64,pwritev,pwritev2,sendfile,copy_file_range,splice,mount"
STRACE = ("strace", "-f", "--seccomp-bpf", "-q", "-v", "-y", "-xx", "-s", "20000000", "-e", f"trace={CALLS}", "-o")


@dataclass
class Fleet:
    """Two hosts, and the controller, where Ansible runs and key and passphrase are; all of it under strace."""

    hosts: dict[str, Host]
    folder: Path
    cleanup: ExitStack

    def play(self, *arguments: str) -> Completed:
        """Run ansible-playbook in the examples' folder, without a terminal."""
        env = {
            **os.environ,
            "HOME": str(self.folder),
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=no",  # no connection is kept when the playbook has ended
            "LC_ALL": "C.UTF-8",
        }
        done = subprocess.run(
            [*STRACE, str(self.log("controller")), "-A", str(find("ansible-playbook")), *arguments],
            cwd=self.folder / "ansible",
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            encoding="utf-8",
            check=False,
            start_new_session=True,
        )
        return Completed(done.returncode, done.stdout, done.stderr)

    def log(self, name: str) -> Path:
        """What was traced there."""
        return self.folder / f"{name}.strace"

    def restored(self) -> list[str]:
        """The names of the hosts whose database is the backup's."""
        return [name for name, host in self.hosts.items() if host.is_restored()]

    def end(self) -> None:
        """End the hosts, so that all that was traced is in the logs."""
        self.cleanup.close()
        wait_until(
            lambda: all(self.log(name).read_bytes().endswith(b"+++\n") for name in self.hosts), "the hosts have ended"
        )


@pytest.fixture
def fleet(make_shop: MakeShop, keys: Keys, tmp_path: Path) -> Iterator[Fleet]:
    """Two hosts, `one` and `two`; the inventory says how to reach them, and what prints key and passphrase."""
    with ExitStack() as cleanup:
        fleet = Fleet({}, tmp_path, cleanup)
        for name in ("one", "two"):
            tracer = [*STRACE, str(fleet.log(name)), "-D"]
            fleet.hosts[name] = set_up_host(tmp_path / name, make_shop("sqlite"), keys.rsa, cleanup, tracer)
        away = tmp_path / "one/away"
        shutil.copytree(ROOT / "examples/ansible", tmp_path / "ansible")
        (tmp_path / "ansible/inventory.ini").write_text(
            f"""[shops]
one ansible_ssh_executable={tmp_path}/one/away/bin/ssh
two ansible_ssh_executable={tmp_path}/two/away/bin/ssh
[shops:vars]
ansible_host=host
ansible_user=root
folder=shopbot
key_command=cat {away}/key.b64
passphrase_command=cat {away}/passphrase
"""
        )
        yield fleet


# --- what strace saw -------------------------------------------------------------------------------------------------

HEX = r"(?:\\x[0-9a-f]{2})*"
FROM_TO = ("copy_file_range", "splice")
UNSEEN = ("sendfile", *FROM_TO)
"""What is written is not among the arguments; in the first two, the file that is written comes second."""


def text_of(hexadecimal: str) -> bytes:
    """The bytes that strace wrote as \\x41\\x42."""
    return bytes.fromhex(hexadecimal.replace("\\x", ""))


def pieces_of(key: Key) -> list[bytes]:
    """What must be nowhere: passphrase and private key, as they are sent and as they are inside."""
    passphrase = str(key.passphrase)
    armor = [line for line in key.private_armor.encode().splitlines() if len(line) == 64]
    sent = key.private_b64.encode()
    return [
        passphrase.encode(),
        json.dumps(passphrase)[1:-1].encode(),
        *(sent[start : start + 40] for start in range(0, len(sent) - 40, 40)),
        *armor[-10:],
    ]


def leaks(log: Path, secrets: list[bytes]) -> list[str]:
    """The files outside RAM that a secret was written into; the programs with one in their arguments or environment."""
    ram, found, seen = ["/dev/shm"], [], 0
    for line in log.read_text().splitlines():
        call = re.match(r"\d+ +(\w+)\(", line)
        if not call:
            continue
        strings = [text_of(text) for text in re.findall(f'"({HEX})"', line)]
        if call[1] == "mount":
            ram += [os.fsdecode(strings[1])] if b"tmpfs" in strings else []
            continue
        if call[1] == "execve":
            place = f"execve {strings[0]!r}"
        else:
            places = [os.fsdecode(text_of(text)) for text in re.findall(rf"\d+<({HEX})>", line)]
            place = places[call[1] in FROM_TO]
        if re.match(r"(pipe|socket|anon_inode):|/dev/(null|tty)$|/proc/", place):
            continue
        if any(place.startswith(f"{folder}/") for folder in ram):
            continue
        seen += 1
        data = b"".join(strings)
        if call[1] in UNSEEN or any(secret in data for secret in secrets):
            found.append(place)
    assert seen, "strace saw nothing"
    return found


NAIVE = """
- hosts: shops
  gather_facts: false
  tasks:
    - no_log: true
      ansible.builtin.command:
        cmd: "true"
        stdin: "{{ lookup('ansible.builtin.pipe', key_command) }}"
"""


@pytest.mark.long
def test_a_key_in_the_arguments_of_a_module_is_on_the_disks_of_the_hosts(fleet: Fleet, keys: Keys) -> None:
    """What the playbooks avoid, and that the search finds it."""
    (fleet.folder / "ansible/naive.yml").write_text(NAIVE)
    done = fleet.play("naive.yml", "-e", f"ansible_python_interpreter={sys.executable}")
    assert done.code == 0, done.text
    fleet.end()
    for name in fleet.hosts:
        assert [place for place in leaks(fleet.log(name), pieces_of(keys.rsa)) if "/.ansible/tmp/" in place]


# --- the playbooks ---------------------------------------------------------------------------------------------------


def check_secrets(fleet: Fleet, done: Completed, key: Key) -> None:
    """Key and passphrase are in nothing that was printed, and on no disk; the hosts are ended."""
    secrets = pieces_of(key)
    assert [secret for secret in secrets if secret in done.text.encode()] == []
    fleet.end()
    assert {name: leaks(fleet.log(name), secrets) for name in (*fleet.hosts, "controller")} == {
        "one": [],
        "two": [],
        "controller": [],
    }


def test_restores_go_host_by_host_end_at_the_first_that_fails_and_leave_no_secret(fleet: Fleet, keys: Keys) -> None:
    inventory = fleet.folder / "ansible/inventory.ini"
    inventory.write_text(inventory.read_text().replace("[shops:vars]", "three\n[shops:vars]"))
    with (fleet.hosts["two"].shop.path / BACKUP).open("ab") as backup:
        backup.write(b"more")
    done = fleet.play("restore.yml", "-vvv", "-e", f"what={BACKUP}", "-e", "sure=y")
    assert done.code == 2, done.text
    assert fleet.restored() == ["one"]
    assert "Database restored successfully" in done.out
    assert "does not match its checksum" in done.out
    assert "three" not in done.out
    check_secrets(fleet, done, keys.rsa)


@pytest.mark.long
def test_back_up_verify_and_restore(fleet: Fleet, keys: Keys) -> None:
    before = {name: host.shop.rows() for name, host in fleet.hosts.items()}
    options = ("-e", f"what={BACKUP}", "-e", "sure=y")
    done = fleet.play("backup.yml", "verify.yml", "restore.yml", *options)
    assert done.code == 0, done.text
    assert fleet.restored() == ["one", "two"]
    assert [done.out.count(said) for said in ("made.said:", "verified.said:", "restored.said:")] == [2, 2, 2]
    for name, host in fleet.hosts.items():
        newest = max(host.shop.backups.glob("db_backup_*.gpg"))
        assert host.shop.backup_rows(newest, keys.rsa) == before[name]
    check_secrets(fleet, done, keys.rsa)


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["-e", "sure=y"], "Say what to restore"),
        (["-e", f"what={BACKUP}"], "y to the question"),
        (
            ["-e", f"what={BACKUP}", "-e", "sure=y", "-e", "key_command=false"],
            "key_command failed (1); the host was not touched",
        ),
        (
            ["-e", f"what={BACKUP}", "-e", "sure=y", "-e", "passphrase_command=no-such-program"],
            "passphrase_command cannot be run",
        ),
        (["-e", f"what={BACKUP}", "-e", "sure=y", "-e", "passphrase_command=true"], "the passphrase is empty"),
        (
            ["-e", f"what={BACKUP}", "-e", "sure=y", "-e", "ansible_host=nowhere.invalid"],
            "no connection; if it was lost",
        ),
    ],
    ids=["nothing named", "not confirmed", "no key", "no program", "empty passphrase", "unreachable"],
)
def test_nothing_is_restored_and_the_second_host_is_not_come_to(fleet: Fleet, options: list[str], why: str) -> None:
    done = fleet.play("restore.yml", *options)
    assert done.code, done.text
    assert why in done.text, done.text
    assert "one  " in done.out
    assert "two" not in done.out
    assert fleet.restored() == []


@pytest.mark.long
def test_status_of_every_host_is_shown_and_one_that_is_not_ok_fails(fleet: Fleet) -> None:
    """The first host has a backup of today, which was proved; the other one's is old."""
    done = fleet.play("backup.yml", "verify.yml", "--limit", "one")
    assert done.code == 0, done.text
    done = fleet.play("status.yml")
    assert done.code == 2, done.text
    for head, said in (
        (r"ok: \[one\] =>", "SHOPBOT BACKUP OK"),
        (r"fatal: \[two\]: FAILED! =>", "SHOPBOT BACKUP CRITICAL"),
    ):
        assert re.search(rf"^{head} \n(?:    .*\n)*    - {said} - ", done.out, re.MULTILINE), done.text


@pytest.mark.long
def test_in_check_mode_nothing_is_run(fleet: Fleet) -> None:
    done = fleet.play("restore.yml", "--check", "-e", f"what={BACKUP}", "-e", "sure=y")
    assert done.code == 0, done.text
    assert fleet.restored() == []
    assert not fleet.hosts["one"].log()
