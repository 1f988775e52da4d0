"""docs/locked-remotes.md: its lines, on servers that enforce them; then what a thief does with the host's rights."""

import hashlib
import hmac
import http.client
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backuplib.doctor import REMOVING
from backuplib.remote import PROBE, Remote
from tests.conftest import MakeShop
from tests.support import needs
from tests.support.keys import Keys
from tests.support.remotes import SECRET, Server, free_port, only, run, serving
from tests.support.shop import ROOT, Shop

pytestmark = pytest.mark.deep

DEBIAN = "/usr/bin/rclone"
PAGE = (ROOT / "docs/locked-remotes.md").read_text(encoding="utf-8")

MakeHost = Callable[[dict[str, str]], Shop]

RCLONES = pytest.mark.parametrize(
    "rclone", ["rclone", pytest.param(DEBIAN, marks=[pytest.mark.long, pytest.mark.needs("rclone 1.60")])]
)


def blocks(kind: str) -> list[str]:
    """The blocks of the page that are of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def settings(text: str, **values: str) -> dict[str, str]:
    """The lines of an .env, with other values where they are of this machine."""
    lines = dict(line.split("=", 1) for line in text.splitlines())
    assert values.keys() <= lines.keys()
    return {name: value.strip("'") for name, value in lines.items()} | values


@pytest.fixture
def make_host(make_shop: MakeShop, tmp_path: Path, rclone: str, monkeypatch: pytest.MonkeyPatch) -> MakeHost:
    """make_host(lines): a shop with these lines in .env, and this one as its rclone, and ours."""

    def make(lines: dict[str, str]) -> Shop:
        shop = make_shop("sqlite", **lines)
        shop.env["PATH"] = only(str(needs.find(rclone)), tmp_path / "bin")
        monkeypatch.setenv("PATH", shop.env["PATH"])
        monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
        return shop

    return make


def lets_remove(shop: Shop, lines: dict[str, str]) -> set[bool | None]:
    """What --check says about the remote, and what is found there by now, when it has left its file."""
    (said,) = [check["text"] for check in shop.restore("--check").report["checks"] if check["name"] == "remotes"]
    (answer,) = [answer for answer, words in REMOVING.items() if words in said]
    place = Remote(lines["BACKUP_REMOTES"], {name: text for name, text in lines.items() if name.startswith("RCLONE_")})
    assert place.size(PROBE) is not None
    return {answer, place.may_remove()}


# --- S3 --------------------------------------------------------------------------------------------------------------


def s3(port: int, user: str, request: str, body: bytes = b"", header: tuple[str, str] | None = None) -> tuple[int, str]:
    """Send a signed request such as "PUT /bucket?policy"; returns status and answer."""
    method, target = request.split()
    path, _, query = target.partition("?")
    query = query if "=" in query or not query else f"{query}="
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    sent = {
        "host": f"127.0.0.1:{port}",
        "x-amz-content-sha256": digest,
        "x-amz-date": now,
        **dict([header] if header else []),
    }
    names = ";".join(sorted(sent))
    canonical = [method, path, query, *(f"{name}:{sent[name]}" for name in sorted(sent)), "", names, digest]
    scope = f"{now[:8]}/us-east-1/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256("\n".join(canonical).encode()).hexdigest()])
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    sent["authorization"] = f"AWS4-HMAC-SHA256 Credential={user}/{scope}, SignedHeaders={names}, Signature={signature}"
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, target, body, sent)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def lock_configuration() -> bytes:
    """lock.json, in the form in which aws sends it."""
    lock = json.loads(blocks("json")[0])
    rule = lock["Rule"]["DefaultRetention"]
    return (
        f"<ObjectLockConfiguration><ObjectLockEnabled>{lock['ObjectLockEnabled']}</ObjectLockEnabled><Rule>"
        f"<DefaultRetention><Mode>{rule['Mode']}</Mode><Days>{rule['Days']}</Days></DefaultRetention></Rule>"
        "</ObjectLockConfiguration>"
    ).encode()


def set_policy(port: int) -> None:
    """What the page's policy.json makes of the bucket."""
    assert s3(port, "shop", "PUT /shop-backups?policy", blocks("json")[1].encode())[0] == 204


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SeaweedFS, with the page's bucket as its administrator has made it."""
    with serving("s3", tmp_path_factory.mktemp("s3")) as server:
        lock = ("x-amz-bucket-object-lock-enabled", "true")
        assert s3(server.port, "shop", "PUT /shop-backups", header=lock)[0] == 200
        assert s3(server.port, "shop", "PUT /shop-backups?object-lock", lock_configuration())[0] == 200
        set_policy(server.port)
        yield server


@RCLONES
def test_thief_of_a_host_can_neither_remove_nor_replace_what_is_in_the_bucket(
    bucket: Server, make_host: MakeHost, keys: Keys, rclone: str
) -> None:
    lines = settings(
        blocks("ini")[0],
        RCLONE_CONFIG_OFFSITE_ENDPOINT=f"http://127.0.0.1:{bucket.port}",
        RCLONE_CONFIG_OFFSITE_ACCESS_KEY_ID="host",
        RCLONE_CONFIG_OFFSITE_SECRET_ACCESS_KEY=SECRET,
    )
    shop = make_host(lines)
    done = shop.run("database_backup.py", "create")
    assert done.code == 0, done.text
    name = Path(done.out.strip()).name
    assert lets_remove(shop, lines) == {False}

    status, versions = s3(bucket.port, "host", "GET /shop-backups?versions")
    assert status == 200
    (version,) = re.findall(rf"<Key>shopbot/{name}</Key><VersionId>(\w+)<", versions)
    this_version = f"DELETE /shop-backups/shopbot/{name}?versionId={version}"
    bypass = ("x-amz-bypass-governance-retention", "true")
    suspended = b"<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>"
    forbidden = [
        s3(bucket.port, "host", f"DELETE /shop-backups/shopbot/{name}"),
        s3(bucket.port, "host", this_version, header=bypass),
        s3(bucket.port, "host", "DELETE /shop-backups"),
        s3(bucket.port, "host", "DELETE /shop-backups?policy"),
        s3(bucket.port, "host", "PUT /shop-backups?object-lock", lock_configuration().replace(b">90<", b">1<")),
        s3(bucket.port, "host", "PUT /shop-backups?versioning", suspended),
    ]
    assert {status for status, _ in forbidden} <= {403, 409}, forbidden  # refused, or contrary to the lock
    assert s3(bucket.port, "shop", "DELETE /shop-backups?policy")[0] == 204
    assert s3(bucket.port, "shop", this_version, header=bypass)[0] == 403  # the lock holds against everybody
    set_policy(bucket.port)

    time.sleep(2.2)  # a second is what the storage tells times by
    assert s3(bucket.port, "host", f"PUT /shop-backups/shopbot/{name}", b"something else")[0] == 200
    place = f"offsite:shop-backups/shopbot/{name}"
    replaced = shop.restore(place, "--verify-only", key=keys.rsa)
    assert replaced.code in (3, 4), replaced.text
    if rclone == DEBIAN:
        return
    _, versions = s3(bucket.port, "host", "GET /shop-backups?versions")
    times = re.findall(rf"<Key>shopbot/{name}</Key><VersionId>{version}<.*?<LastModified>([^<]+)<", versions, re.DOTALL)
    moment = (datetime.fromisoformat(*times) + timedelta(seconds=1)).isoformat(timespec="seconds")
    then = shop.restore(place, "--verify-only", key=keys.rsa, env={"RCLONE_S3_VERSION_AT": moment})
    assert then.code == 0, (moment, versions, then.text)


# --- SFTP ------------------------------------------------------------------------------------------------------------

SSHD = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/server
AuthorizedKeysFile /srv/shopbot.pub
PidFile none
UsePAM no
StrictModes no
Subsystem sftp /usr/lib/openssh/sftp-server
"""
ACCOUNT = "shopbot:x:4711:4711::/nonexistent:/usr/sbin/nologin\n"

# In a mount namespace: /srv is a folder in memory, and the account stands in passwd and group.
START = """\
set -e
mount -t tmpfs -o mode=755 none /srv
mount --bind passwd /etc/passwd
mount --bind group /etc/group
install -m 644 client.pub /srv/shopbot.pub
{folders}
exec {sshd} -D -e -f sshd_config
"""


@dataclass
class Machine:
    """The other machine: `port` of its sshd, its files below `srv`."""

    folder: Path
    port: int
    pid: int

    @property
    def backups(self) -> Path:
        """Where the host's backups lie."""
        return Path(f"/proc/{self.pid}/root/srv/backups/shopbot")

    def as_root(self, script: str) -> None:
        """Run a command there."""
        subprocess.run(["nsenter", "-m", "-t", str(self.pid), "sh", "-c", script], check=True, timeout=30)

    def everything(self) -> dict[str, tuple[int, int, bytes]]:
        """Owner, mode and content of all that is in the folder of the account and beside it."""
        paths = [self.backups.parent, *self.backups.parent.rglob("*")]
        return {
            str(path): (path.stat().st_uid, path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
            for path in paths
        }

    def sftp(self, *commands: str) -> str:
        """Commands of sftp's with the host's key, whatever becomes of each; what it says of them."""
        options = ["-P", str(self.port), "-i", f"{self.folder}/client", "-o", f"UserKnownHostsFile={self.folder}/known"]
        done = subprocess.run(
            ["sftp", "-F", "none", "-b", "-", *options, "shopbot@127.0.0.1"],
            input="".join(f"-{command}\n" for command in commands),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """OpenSSH with the page's account, folder and configuration."""
    folder, port = tmp_path / "machine", free_port()
    folder.mkdir()
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("server", "client"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, timeout=30)
    _, folders = next(code for code in blocks("bash") if code.startswith("useradd")).split("\n", 1)
    (configuration,) = blocks("sshd")
    (folder / "sshd_config").write_text(SSHD.format(port=port, folder=folder) + configuration)
    (folder / "passwd").write_text(Path("/etc/passwd").read_text() + ACCOUNT)
    (folder / "group").write_text(Path("/etc/group").read_text() + "shopbot:x:4711:\n")
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'server.pub').read_text()}")
    script = START.format(folders=folders, sshd=needs.find("sshd"))
    with ExitStack() as cleanup:
        pid = run(["unshare", "--mount", "sh", "-c", script], folder, port, cleanup)
        yield Machine(folder, port, pid)


@RCLONES
@pytest.mark.needs("root", "mount", "sshd", "ssh", "ssh-keygen", "rclone")
def test_thief_of_a_host_can_neither_remove_nor_replace_what_is_at_the_other_machine(
    machine: Machine, make_host: MakeHost, keys: Keys
) -> None:
    lines = settings(
        blocks("ini")[1],
        RCLONE_CONFIG_OFFSITE_HOST="127.0.0.1",
        RCLONE_CONFIG_OFFSITE_PORT=f"{machine.port}",
        RCLONE_CONFIG_OFFSITE_KEY_FILE=f"{machine.folder}/client",
        RCLONE_CONFIG_OFFSITE_KNOWN_HOSTS_FILE=f"{machine.folder}/known",
    )
    shop = make_host(lines)
    done = shop.run("database_backup.py", "create")
    assert done.code == 0, done.text
    name = Path(done.out.strip()).name
    assert {name, f"{name}.sha256"} == {path.name for path in machine.backups.iterdir()}
    assert lets_remove(shop, lines) == {False}

    for path in machine.backups.iterdir():
        os.utime(path, (0, 0))
    take_away, _ = blocks("crontab")
    machine.as_root(take_away.split(" ", 5)[5])
    before = machine.everything()
    (machine.folder / "junk").write_bytes(b"junk")
    thefts = [f"rm shopbot/{name}", f"rename shopbot/{name} shopbot/gone", f"put junk shopbot/{name}"]
    thefts += [f"chmod 777 shopbot/{name}", f"ln -s {name} shopbot/link", f"ln shopbot/{name} shopbot/hard"]
    thefts += ["rename shopbot gone", "rmdir shopbot", "mkdir shopbot/folder", "put junk junk"]
    said = machine.sftp(*thefts)
    assert machine.everything() == before, said
    machine.sftp("put junk shopbot/new")
    assert (machine.backups / "new").read_bytes() == b"junk"
    done = shop.restore(f"offsite:shopbot/{name}", "--verify-only", key=keys.rsa)
    assert done.code == 0, done.text
