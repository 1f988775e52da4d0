"""Real servers on loopback that rclone reaches, and a proxy before them that cuts, stalls and corrupts.

with serving("sftp", folder) as server:       "webdav", "s3"
    shop.write_env(**server.settings())       BACKUP_REMOTES=offsite:shopbot, and how rclone gets there
    server.names()                            what is there
"""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.support import needs
from tests.support.containers import wait_until

KINDS = ("sftp", "webdav", "s3")
PLACE = "offsite:shopbot"
NEEDED = {"sftp": ("rclone", "sshd", "ssh-keygen", "root"), "webdav": ("rclone",), "s3": ("rclone", "weed")}

SSHD = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/client.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
Subsystem sftp internal-sftp
ForceCommand internal-sftp {options} -d {folder}/files
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A server, as the remote `offsite`; what it keeps is reached with rclone from outside of the shop, too."""

    kind: str
    port: int
    folder: Path
    options: Mapping[str, str]
    place: str = PLACE

    def variables(self, port: int | None = None, name: str = "OFFSITE") -> dict[str, str]:
        """How rclone gets there; `port`: by way of a proxy."""
        at = port or self.port
        where = {"sftp": {"PORT": f"{at}"}, "webdav": {"URL": f"http://127.0.0.1:{at}"}}
        where["s3"] = {"ENDPOINT": f"http://127.0.0.1:{at}"}
        return {f"RCLONE_CONFIG_{name}_{key}": text for key, text in {**self.options, **where[self.kind]}.items()}

    def settings(self, port: int | None = None) -> dict[str, str]:
        """The lines of .env."""
        return {"BACKUP_REMOTES": self.place, **self.variables(port)}

    def rclone(self, *arguments: str, given: bytes = b"") -> bytes:
        """What rclone prints."""
        inherited = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
        env = {**inherited, **self.variables(), "RCLONE_CONFIG": str(self.folder / "rclone.conf")}
        program = str(needs.find("rclone"))
        done = subprocess.run([program, *arguments], env=env, input=given, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def names(self) -> set[str]:
        """The names of what is there."""
        at, _, folder = self.place.rpartition("/")
        if at:  # one that is not there cannot be listed; its parent can
            listed = self.rclone("lsf", "-R", "--files-only", "--include", f"/{folder}/*", at).decode().split()
            return {name.removeprefix(f"{folder}/") for name in listed}
        return {*self.rclone("lsf", "--files-only", self.place).decode().split()}

    def get(self, name: str) -> bytes:
        """What is in an object."""
        return self.rclone("cat", f"{self.place}/{name}")

    def put(self, name: str, content: bytes) -> None:
        """Make or replace an object."""
        self.rclone("rcat", f"{self.place}/{name}", given=content)

    def delete(self, name: str) -> None:
        """Remove an object."""
        self.rclone("deletefile", f"{self.place}/{name}")


@contextmanager
def serving(kind: str, folder: Path, *, read_only: bool = False, files: Path | None = None) -> Iterator[Server]:
    """A server of this kind until the end of the block.

    :param files: the folder that it keeps its files in.
    """
    needs.require(*NEEDED[kind])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rclone.conf").touch()
    if files:
        (folder / "files").symlink_to(files)
    else:
        (folder / "files").mkdir(exist_ok=True)
    with ExitStack() as cleanup:
        yield {"sftp": _sftp, "webdav": _webdav, "s3": _s3}[kind](folder, read_only, cleanup)


def _sftp(folder: Path, read_only: bool, cleanup: ExitStack) -> Server:
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "client"):
        if not (folder / name).exists():
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, timeout=30)
    port = free_port()
    options = "-R" if read_only else ""
    (folder / "sshd_config").write_text(SSHD.format(port=port, folder=folder, options=options))
    run([str(needs.find("sshd")), "-D", "-e", "-f", str(folder / "sshd_config")], folder, port, cleanup)
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    options_of_rclone = {"TYPE": "sftp", "HOST": "127.0.0.1", "USER": "root", "KEY_FILE": str(folder / "client")}
    return Server("sftp", port, folder, {**options_of_rclone, "SHELL_TYPE": "none"})


def _webdav(folder: Path, read_only: bool, cleanup: ExitStack) -> Server:
    port = free_port()
    argv = [str(needs.find("rclone")), "serve", "webdav", "--addr", f"127.0.0.1:{port}", str(folder / "files")]
    argv += ["--user", "shop", "--pass", "correct horse", "--config", str(folder / "rclone.conf")]
    argv += ["--dir-cache-time=0s"]  # what tests put there is seen at once
    run([*argv, *["--read-only"] * read_only], folder, port, cleanup)
    obscured = subprocess.run(
        [argv[0], "obscure", "correct horse"], capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()
    return Server("webdav", port, folder, {"TYPE": "webdav", "VENDOR": "other", "USER": "shop", "PASS": obscured})


SECRET = "a-secret-of-thirty-two-characters"


def _s3(folder: Path, read_only: bool, cleanup: ExitStack) -> Server:
    """SeaweedFS; its users share the secret: an administrator, one that may only read, and a host that pushes."""
    users = {
        "shop": ["Admin", "Read", "Write", "List", "Tagging"],
        "reader": ["Read", "List"],
        "host": ["Read", "Write", "List"],
    }
    identities = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": SECRET}], "actions": actions}
        for name, actions in users.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    ports = [free_port() for _ in range(4)]
    argv = [str(needs.find("weed")), "-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    argv += [f"-dir={folder / 'files'}", "-master.volumeSizeLimitMB=64", "-volume.max=40", "-filer", "-s3"]
    argv += [f"-s3.config={folder / 's3.json'}", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    names = ("master", "volume", "filer", "s3")
    argv += [f"-{name}.port={port}" for name, port in zip(names, ports, strict=True)]
    grpc = [free_port() for _ in range(4)]
    argv += [f"-{name}.port.grpc={port}" for name, port in zip(names, grpc, strict=True)]
    run(argv, folder, ports[3], cleanup)
    options = {"TYPE": "s3", "PROVIDER": "Other", "ACCESS_KEY_ID": "shop", "SECRET_ACCESS_KEY": SECRET}
    server = Server("s3", ports[3], folder, options, place="offsite:bucket/shopbot")

    def has_bucket() -> bool:
        with contextlib.suppress(AssertionError):
            server.rclone("mkdir", "offsite:bucket")
            server.put("ready", b"x")
            server.delete("ready")
            return True
        return False

    wait_until(has_bucket, "SeaweedFS takes an object", 60)
    if read_only:
        server.options = {**options, "ACCESS_KEY_ID": "reader"}
    return server


def run(argv: list[str], folder: Path, port: int, cleanup: ExitStack) -> int:
    """Start a server, and wait until it listens; returns its process id, by which it is ended."""
    log = cleanup.enter_context((folder / "server.log").open("ab"))
    env = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=env)

    def end() -> None:
        server.terminate()
        try:
            server.wait(1)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()

    cleanup.callback(end)

    def listens() -> bool:
        assert server.poll() is None, (folder / "server.log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
        return False

    wait_until(listens, f"{argv[0]} listens", 60)
    return server.pid


# --- the network between ---------------------------------------------------------------------------------------------


@dataclass
class Proxy:
    """Passes connections on to a server, until it has sent `after` bytes in one of them: then comes the fault.

    "gone": it is cut, and nobody listens any more. "stalls": nothing comes any more. "corrupts": one bit is another.
    """

    to: int
    fault: str
    after: int
    port: int = 0
    hit: threading.Event = field(default_factory=threading.Event)
    _open: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.hit.is_set() and self.fault == "stalls":  # rclone goes on in a new connection, if it can
                    self._open.append(client)
                    continue
                server = socket.create_connection(("127.0.0.1", self.to))
                self._open += [client, server]
                for work in (self._pass_on, self._back):
                    threading.Thread(target=work, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _back(self, client: socket.socket, server: socket.socket) -> None:
        count = 0
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 14):
                count += len(data)
                if count > self.after and self._is_hit(client, data):
                    return
                client.sendall(data if not (count > self.after and self.fault == "corrupts") else _flipped(data))
            client.shutdown(socket.SHUT_WR)

    def _is_hit(self, client: socket.socket, data: bytes) -> bool:
        """What a connection comes to that has brought so much; whether nothing more is passed on."""
        self.hit.set()
        if self.fault == "gone":
            client.sendall(data[: len(data) // 2])
            self._end()
            return True
        if self.fault == "stalls":
            time.sleep(600)
        return False


def _flipped(data: bytes) -> bytes:
    """The same with one bit changed in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system that is soon full; root's, and able to mount."""
    needs.require("root", "mount")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], check=True, timeout=30)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)


def only(program: str, folder: Path) -> str:
    """A PATH on which `rclone` is this one, and all else as before."""
    folder.mkdir(exist_ok=True)
    (folder / "rclone").symlink_to(program)
    return f"{folder}:{os.environ['PATH']}"
