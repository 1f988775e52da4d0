"""Over real SSH: Debian's sshd on a loopback port, and its client. The commands are the README's, word for word."""

import os
import re
import shlex
import signal
import subprocess

import pytest

from tests.conftest import MakeBotShop, MakeHost, SshTerminal
from tests.support.containers import Bot, Compose, wait_until
from tests.support.shop import Completed
from tests.support.ssh import CONFIRM, MENU, RESTORE, Host
from tests.support.terminal import Terminal

pytestmark = pytest.mark.deep

# --- recipes ---------------------------------------------------------------------------------------------------------

WITH_COMMAND = f"""cat key.b64 | ssh host '{RESTORE} --key-stdin --force --passphrase-command "cat {{passphrase}}"'"""

WITH_DESCRIPTOR = f"""\
{{ cat passphrase; echo; cat key.b64; }} | ssh host 'IFS= read -r p && {RESTORE} \
    --key-stdin --force --passphrase-fd 3 3< <(printf "%s\\n" "$p")'"""


def with_command(host: Host, more: str = "") -> str:
    """The key piped, the passphrase from a command on the host."""
    return WITH_COMMAND.format(passphrase=host.folder / "away/passphrase").replace("--force", f"--force {more}".strip())


def test_key_piped_and_passphrase_through_a_command(host: Host) -> None:
    done = host.type(with_command(host))
    assert done.code == 0, done.text
    assert host.is_restored()
    assert "Database restored successfully" in done.out
    assert "tmux" not in done.text


def test_key_and_passphrase_through_the_connection_alone(host: Host) -> None:
    done = host.type(WITH_DESCRIPTOR)
    assert done.code == 0, done.text
    assert host.is_restored()


def test_json_comes_back_alone_on_standard_output(host: Host) -> None:
    done = host.type(with_command(host, "--verify-only --json") + " | python3 -m json.tool")
    assert done.code == 0, done.text
    assert '"outcome": "verified"' in done.out
    assert not host.is_restored()


def test_with_a_terminal_everything_is_asked_for(host: Host, ssh_terminal: SshTerminal) -> None:
    client = ssh_terminal(host, "-t", MENU)
    client.expect("in tmux it would go on")
    client.expect("Number, or q to leave: ")
    client.send("1\n")
    client.expect("Paste the private key.*: ")
    client.send(host.key.private_b64 + "\n")
    client.expect("Passphrase of the private key: ")
    client.send(f"{host.key.passphrase}\n")
    client.expect(CONFIRM)
    client.send("y\n")
    assert client.wait() == 0, client.output
    assert host.is_restored()
    assert host.key.private_b64[:40] not in client.output
    assert str(host.key.passphrase) not in client.output


def test_in_tmux_no_tmux_is_recommended(host: Host, ssh_terminal: SshTerminal) -> None:
    client = ssh_terminal(host, "-t", f"export TMUX=/tmp/tmux-0/default,1,0; {RESTORE}")
    client.expect("Paste the private key.*: ")
    assert "in tmux it would go on" not in client.output


@pytest.mark.parametrize(
    ("pipe", "options", "lacks"),
    [
        ("", "", ["--key-stdin", "--force", "--passphrase-command"]),
        ("", "--force", ["--key-stdin", "--passphrase-command"]),
        ("cat key.b64 | ", "--key-stdin", ["--force", "--passphrase-command"]),
        ("cat key.b64 | ", "--key-stdin --force", ["--passphrase-command"]),
    ],
    ids=["nothing", "no key", "no confirmation", "no passphrase"],
)
def test_without_a_terminal_it_is_refused_with_all_options_named(
    host: Host, pipe: str, options: str, lacks: list[str]
) -> None:
    """A terminal is no way for whom pipes the key in: it would show it."""
    before = host.shop.snapshot()
    done = host.type(f"{pipe}ssh host '{RESTORE} {options} --json'")
    assert done.ended == (3, "no-terminal"), done.text
    assert [option for option in lacks if option not in done.error["hint"]] == []
    assert ("ssh -t" in done.error["hint"]) == (not pipe)
    assert host.shop.snapshot() == before


def test_without_a_terminal_and_without_a_file_it_is_refused(host: Host) -> None:
    done = host.type(f"ssh host '{MENU} --json'")
    assert done.ended == (3, "no-terminal"), done.text
    assert "--list" in done.error["hint"]


def test_key_piped_into_a_forced_terminal_ends_soon_and_touches_nothing(host: Host) -> None:
    """The terminal would show the key and cut it at 4095 characters."""
    before = host.shop.snapshot()
    shown = host.type(f"cat key.b64 | ssh -tt host '{RESTORE} --key-stdin --force --json'", timeout=30)
    done = Completed(shown.code, shown.out.splitlines()[-1], "")
    assert done.ended == (3, "refused"), shown.text
    assert "ssh -tt" in done.error["hint"]
    assert host.shop.snapshot() == before


# --- the connection is lost ------------------------------------------------------------------------------------------

SLOW_GPG = 'case "$*" in *--{action}*) touch {{folder}}/slow; sleep 3;; esac; exec {{real}} "$@"'
SLOW_RENAME = (
    'exec strace -f --seccomp-bpf -qq -o /dev/null -e trace=rename -e inject=rename:delay_enter=500ms {real} "$@"'
)


def wait_for_slow(host: Host) -> None:
    """Wait until the slowed program runs."""
    wait_until((host.folder / "slow").exists, "the slowed program runs", 60)


def lose(client: Terminal) -> None:
    """The client dies without a word, as with a laptop that is closed; the server sees the connection break."""
    client.process.send_signal(signal.SIGKILL)
    client.process.wait(10)


def start_with_terminal(host: Host, ssh_terminal: SshTerminal) -> Terminal:
    """A run with `ssh -t` whose key and passphrase are on the host (a file descriptor is not passed on)."""
    key, passphrase = host.folder / "away/key.b64", host.folder / "away/passphrase"
    return ssh_terminal(
        host, "-t", f'{RESTORE} --key-stdin --passphrase-command "cat {passphrase}" <{shlex.quote(str(key))}'
    )


def test_lost_at_the_confirmation_nothing_is_touched(host: Host, ssh_terminal: SshTerminal) -> None:
    before = host.shop.snapshot()
    client = start_with_terminal(host, ssh_terminal)
    client.expect(CONFIRM)
    lose(client)
    ended = host.ended()
    assert "SIGHUP" in ended
    assert "last restore" not in ended  # none has touched anything
    assert host.shop.snapshot() == before


@pytest.mark.parametrize("action", ["decrypt", "encrypt"], ids=["decryption", "safety backup"])
def test_lost_before_the_switch_nothing_is_touched(host: Host, ssh_terminal: SshTerminal, action: str) -> None:
    before = host.shop.snapshot()
    host.slow_down("gpg", SLOW_GPG.format(action=action))
    client = start_with_terminal(host, ssh_terminal)
    if action == "encrypt":
        client.expect(CONFIRM)
        client.send("y\n")
    wait_for_slow(host)
    lose(client)
    assert "SIGHUP" in host.ended()
    # The safety backup opens the database, which leaves a -shm and an empty -wal while it does; nothing else.
    assert host.shop.snapshot()["shop.db"] == before["shop.db"]
    assert not host.is_restored()


@pytest.mark.needs("strace")
def test_lost_during_the_switch_it_ends_by_itself(host: Host, ssh_terminal: SshTerminal) -> None:
    host.slow_down("python", SLOW_RENAME)
    client = start_with_terminal(host, ssh_terminal)
    client.expect(CONFIRM)
    client.send("y\n")
    journal = host.shop.db_path.with_name("shop.db.restore-state.json")
    wait_until(journal.exists, "the switch has begun", 60)
    lose(client)
    assert re.search(r"^last restore: .*, restored$", host.ended(), re.MULTILINE)
    assert host.is_restored()
    assert "Database restored successfully" in host.log()


def test_without_a_terminal_a_lost_connection_does_not_end_it(host: Host) -> None:
    """Nothing tells a program without a terminal that the connection is gone: it goes on to its end."""
    host.slow_down("gpg", SLOW_GPG.format(action="decrypt"))
    client = subprocess.Popen(
        ["/bin/bash", "-c", with_command(host).replace("| ssh", "| exec ssh")],
        cwd=host.folder / "away",
        env=host.away(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    with client:
        wait_for_slow(host)
        os.killpg(client.pid, signal.SIGKILL)
    assert re.search(r"^last restore: .*, restored$", host.ended(), re.MULTILINE)
    assert host.is_restored()


@pytest.mark.docker
@pytest.mark.parametrize("compose", ["v2"], indirect=True)
def test_lost_while_the_bot_is_stopped_the_bot_runs_afterwards(
    make_bot_shop: MakeBotShop, compose: Compose, make_host: MakeHost, ssh_terminal: SshTerminal
) -> None:
    """The bot is deaf to SIGTERM, so that stopping it takes a while."""
    shop = make_bot_shop("sqlite", compose, Bot(deaf=True, grace="3s"))
    host = make_host(shop)
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in compose.env.items())
    host.slow_down("python", f'export {variables}\nexec {{real}} "$@"')
    shop.up()
    shop.wait_rows()
    client = start_with_terminal(host, ssh_terminal)
    client.expect(CONFIRM)
    client.send("y\n")
    client.expect("Stopping Docker containers")
    lose(client)
    assert re.search(r"^last restore: .*, restored$", host.ended(), re.MULTILINE)
    assert shop.state().running
    assert shop.state("redis").running
    assert len(shop.rows_in_place()["orders"]) == 300
