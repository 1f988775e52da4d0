"""A host of the operator's: Debian's sshd on a loopback port, its client, and the commands that README.md names.

As README.md's first command leaves a Debian: a .venv in the shop's folder, and no `python` on PATH.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support import needs
from tests.support.containers import wait_until
from tests.support.keys import Key
from tests.support.shop import BACKUP, Completed, Shop

MENU = "cd shopbot && PATH=.venv/bin:$PATH python restore_backup.py"
RESTORE = f"{MENU} {BACKUP}"
CONFIRM = r"Continue\? \[y/N\] "

SSHD = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/operator.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
ForceCommand {folder}/login
SetEnv "PATH={path}" LC_ALL=C.UTF-8 HOME={folder}/home
"""

CLIENT = """\
Host host other
HostName 127.0.0.1
Port {port}
User root
IdentityFile {folder}/operator
IdentitiesOnly yes
UserKnownHostsFile {folder}/known_hosts
BatchMode yes
LogLevel ERROR
"""

# Where an operator lands: in a home folder that has the shop in it.
LOGIN = '#!/bin/bash\ncd {folder}/home && exec {become} /bin/bash -c "$SSH_ORIGINAL_COMMAND"\n'


@dataclass
class Host:
    """A machine with a shop in ~/shopbot, reached as `ssh host`; `folder/bin` comes first in its PATH.

    `become`: the command by which a login, which is root's, becomes another user's.
    """

    folder: Path
    shop: Shop
    key: Key
    path: str
    become: Sequence[str] = ()

    def type(self, script: str, timeout: float = 60) -> Completed:
        """What an operator types at home, run by bash; key.b64 and passphrase lie in the folder. No terminal."""
        return run_bash(script, self.folder / "away", self.away(), timeout)

    def on_host(self, script: str, timeout: float = 90) -> Completed:
        """What is typed in the shop's folder on the host; the first command that fails ends it. No terminal."""
        strict = [*self.become, "/bin/bash", "-euo", "pipefail"]
        env = self.shop.environment({"PATH": self.path, "HOME": str(self.folder / "home")})
        return run_bash(script, self.shop.path, env, timeout, strict)

    def away(self) -> dict[str, str]:
        """The environment at the operator's own machine."""
        return {**os.environ, "PATH": f"{self.folder}/away/bin:{self.path}"}

    def log_in_as(self, *become: str) -> None:
        """From now on, who logs in becomes another user."""
        self.become = become
        write_login(self.folder, become)

    def slow_down(self, program: str, script: str) -> None:
        """Put a script before a program of the host; it ends with the program itself."""
        path = self.folder / "bin" / program
        real = shutil.which(program)
        if program == "python":
            path, real = self.shop.path / ".venv/bin/python", sys.executable
            path.unlink()
        path.write_text(f"#!/bin/sh\n{script.format(folder=self.folder, real=real)}\n")
        path.chmod(0o755)

    def is_restored(self) -> bool:
        """Whether the database is the backup's (300 orders) and not the one before (fewer)."""
        return self.shop.is_restored()

    def log(self) -> str:
        """The log of restores; empty when there is none."""
        path = self.shop.backups / "restore.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def ended(self) -> str:
        """Wait until the log says how the run ended; returns that, and what `--list` says over a new connection."""
        wait_until(lambda: "outcome: " in self.log(), "the log says how it ended", 60)
        wait_until(lambda: not list(self.shop.db_path.parent.glob("*.restore-*")), "nothing is left over")
        done = self.type(f"ssh host '{MENU} --list'")
        assert done.code == 0, done.text
        return f"{self.log().splitlines()[-1]}\n{done.out}"


def run_bash(
    script: str, cwd: Path, env: dict[str, str], timeout: float, bash: Sequence[str] = ("/bin/bash",)
) -> Completed:
    """Run a script, without a terminal."""
    done = subprocess.run(
        [*bash, "-c", script],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout,
        encoding="utf-8",
        check=False,
        start_new_session=True,
    )
    return Completed(done.returncode, done.stdout, done.stderr)


def set_up_host(folder: Path, shop: Shop, key: Key, cleanup: ExitStack, tracer: Sequence[str] = ()) -> Host:
    """A machine that runs sshd, whose shop has changed since its backup BACKUP was made.

    `tracer`: a command to run sshd under, such as `strace -D`, with all that is done on the host.
    """
    shop.back_up_then_change()
    make_venv(shop.path)
    for name in ("bin", "home", "away/bin"):
        (folder / name).mkdir(parents=True)
    (folder / "home/shopbot").symlink_to(shop.path)
    (folder / "away/key.b64").write_text(key.private_b64)
    (folder / "away/passphrase").write_text(f"{key.passphrase}\n")
    wrapper = folder / "away/bin/ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {needs.find("ssh")} -F {folder}/client "$@"\n')
    wrapper.chmod(0o755)
    path = f"{folder}/bin:{without_python(folder / 'path')}"
    start_sshd(folder, path, cleanup, tracer)
    return Host(folder, shop, key, path)


def make_venv(folder: Path) -> None:
    """What README.md's first command makes, with the packages of the Python that runs the tests, and no download."""
    venv.create(folder / ".venv", symlinks=True)
    (site,) = folder.glob(".venv/lib/python*/site-packages")
    (site / "tests.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")


def without_python(folder: Path) -> str:
    """This machine's PATH as on Debian, where no program is called `python`."""
    folders = []
    for number, place in enumerate(needs.PATH.split(":")):
        if (Path(place) / "python").exists():
            mirror = folder / str(number)
            mirror.mkdir(parents=True)
            for program in Path(place).iterdir():
                if program.name != "python":
                    (mirror / program.name).symlink_to(program)
            folders.append(str(mirror))
        else:
            folders.append(place)
    path = ":".join(folders)
    assert shutil.which("python", path=path) is None
    return path


def write_login(folder: Path, become: Sequence[str] = ()) -> None:
    """What a login runs: the command that was sent, in the home folder."""
    (folder / "login").write_text(LOGIN.format(folder=folder, become=shlex.join(become)))
    (folder / "login").chmod(0o755)


def start_sshd(folder: Path, path: str, cleanup: ExitStack, tracer: Sequence[str]) -> None:
    """Own host key, own configuration, own authorized key; ended by its process id."""
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it when it is root, and no init has made it here
    for name in ("host", "operator"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, timeout=30)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {"folder": folder, "port": port, "path": path}
    for name, text in {"sshd_config": SSHD, "client": CLIENT}.items():
        (folder / name).write_text(text.format(**values))
    write_login(folder)
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    with (folder / "sshd.log").open("wb") as log:
        server = subprocess.Popen(
            [*tracer, str(needs.find("sshd")), "-D", "-e", "-f", str(folder / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    cleanup.callback(server.wait, 30)
    cleanup.callback(server.terminate)

    def listens() -> bool:
        assert server.poll() is None, (folder / "sshd.log").read_text()
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
        return False

    wait_until(listens, "sshd listens")
