"""Whole runs with real servers off the host: SFTP, WebDAV and S3, and all that goes wrong there.

Every day each server and each fault comes once; all cells of the matrix are long. In which words a fault is told stands
in unit/test_remote.py; here it is that nothing is touched, and which exit code that has.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import pytest

from backuplib import proofs
from backuplib.proofs import Proof
from backuplib.remote import NO_CHECKSUM
from tests.conftest import MakeShop
from tests.support import needs
from tests.support.keys import Keys
from tests.support.remotes import KINDS, Proxy, Server, free_port, only, serving, small_disk
from tests.support.shop import Completed, Shop, everything

Serve = Callable[[str], Server]

DEBIAN = "/usr/bin/rclone"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """servers(kind): started when first asked for."""
    started: dict[str, Server] = {}
    with ExitStack() as running:

        def serve(kind: str) -> Server:
            if kind not in started:
                started[kind] = running.enter_context(serving(kind, tmp_path_factory.mktemp(kind)))
            return started[kind]

        yield serve


@pytest.fixture
def server(servers: Serve, kind: str, tmp_path: Path) -> Server:
    """A server of the kind, with a folder of the test's own as the place."""
    found = servers(kind)
    return replace(found, place=f"{found.place}/{tmp_path.name}")


@pytest.fixture
def shop(make_shop: MakeShop, server: Server) -> Shop:
    """A shop that has the server as its remote; its backup is larger than what is read before a key is asked for."""
    shop = make_shop("sqlite", **server.settings())
    with closing(shop.connect()) as connection:
        connection.execute("CREATE TABLE pictures AS SELECT randomblob(3000000) AS picture")
    return shop


def everyday(*kinds: str) -> pytest.MarkDecorator:
    """All kinds of servers; those that are not named are long."""
    return pytest.mark.parametrize(
        "kind", [pytest.param(kind, marks=[] if kind in kinds else [pytest.mark.long]) for kind in KINDS]
    )


def restore(shop: Shop, server: Server, name: str, keys: Keys, *options: str) -> Completed:
    """Restore from there."""
    return shop.restore(f"{server.place}/{name}", "--force", *options, key=keys.rsa)


# --- there and back --------------------------------------------------------------------------------------------------


@everyday("s3")
def test_backup_is_pushed_and_comes_back(shop: Shop, server: Server, keys: Keys) -> None:
    """By its name, without any backup here; the safety backup is pushed later, and is not the latest."""
    done = shop.run("database_backup.py", "create")
    assert done.code == 0, done.text
    backup = shop.path / done.out.strip()
    assert f"Copied to {server.place}" in done.err
    assert server.names() == {backup.name, f"{backup.name}.sha256"}
    assert server.get(backup.name) == backup.read_bytes()
    rows = shop.rows()
    shop.change_data()
    shutil.rmtree(shop.backups)
    done = restore(shop, server, backup.name, keys)
    assert done.code == 0, done.text
    assert done.report["backup"] == f"{server.place}/{backup.name}"
    assert "Checksum verified" in done.err
    assert shop.rows() == rows
    safety = Path(done.report["safety_backup"]).name
    assert safety not in server.names()
    last = shop.restore("--list").report["last_restore"]
    assert (last["backup"], last["live"]) == (f"{server.place}/{backup.name}", "new")
    done = shop.run("database_backup.py", "push")
    assert done.code == 0, done.text
    assert server.names() == {f"{name}{end}" for name in (backup.name, safety) for end in ("", ".sha256")}
    assert "# kind: before a restore" in server.get(f"{safety}.sha256").decode()
    done = restore(shop, server, "latest", keys, "--verify-only")
    assert done.report["backup"] == f"{server.place}/{backup.name}"


@everyday("s3")
@pytest.mark.needs("rclone 1.60")
def test_rclone_of_debian_does_all_of_it(shop: Shop, server: Server, keys: Keys, tmp_path: Path) -> None:
    shop.env["PATH"] = only(DEBIAN, tmp_path / "debian")
    test_backup_is_pushed_and_comes_back(shop, server, keys)


# --- which one -------------------------------------------------------------------------------------------------------


def put_there(server: Server, time: str, content: bytes, kind: str = "") -> str:
    """A backup that is at the remote only; its name."""
    name = f"db_backup_{time}.db.gz.gpg"
    server.put(name, content)
    server.put(f"{name}.sha256", f"{sha256(content).hexdigest()}  {name}\n{kind}".encode())
    return name


@everyday("webdav")
def test_lists_latest_and_at_know_the_backups_of_all_places(shop: Shop, server: Server, keys: Keys) -> None:
    """One of the places does not answer: that is told, and in nobody's way."""
    shop.env["TZ"] = "UTC"
    newest = shop.create_backup()
    old = put_there(server, "20250130_120000", newest.read_bytes())
    older = put_there(server, "20250128_120000", newest.read_bytes())
    safety = put_there(server, "20250129_120000", newest.read_bytes(), "# kind: before a restore\n")
    shop.change_data()
    shop.env |= {"BACKUP_REMOTES": f"down:x {server.place}", **server.variables(free_port(), "DOWN")}

    done = shop.restore("--list")
    assert done.code == 0, done.text
    assert "down:x is not known" in done.report["warnings"][0]
    found = {tuple(item[key] for key in ("place", "path", "kind", "checksum")) for item in done.report["backups"]}
    assert found == {
        ("local", str(newest), "ordinary", "ok"),
        (server.place, f"{server.place}/{newest.name}", "ordinary", "not read"),
        (server.place, f"{server.place}/{old}", "ordinary", "not read"),
        (server.place, f"{server.place}/{safety}", "before a restore", "not read"),
        (server.place, f"{server.place}/{older}", "ordinary", "not read"),
    }

    done = shop.restore("--verify-only", "latest", key=keys.rsa)
    assert done.report["backup"] == str(newest), done.text
    assert f"here and at {server.place}" in done.err
    done = shop.restore("--force", "--at", "2025-01-30 11:59:59", "--from", server.place, key=keys.rsa)
    assert done.report["backup"] == f"{server.place}/{older}", done.text
    assert shop.is_restored()
    assert re.search(rf"the one after it: {old}.*\n.*left out: 1 newer one", done.err)

    done = shop.run("database_backup.py", "list")
    assert done.code == 0, done.text
    marks = {line.split()[-1]: line.split()[-2] for line in done.out.splitlines() if "db_backup_" in line}
    assert (marks[newest.name], marks[old]) == ("L2", "2")
    assert "proof" in done.out.splitlines()[1].split()  # of the two runs above
    assert max(map(len, done.out.splitlines())) <= 80


@everyday()
def test_fault_at_a_remote_leads_to_an_offer(shop: Shop, server: Server, keys: Keys) -> None:
    shop.env["TZ"] = "UTC"
    newest = shop.create_backup()
    old = put_there(server, "20250130_120000", newest.read_bytes())
    exchanged(server, newest.name)
    done = restore(shop, server, "latest", keys)
    assert (done.code, done.report["error"]["id"]) == (3, "checksum-mismatch"), done.text
    hint = done.report["error"]["hint"]
    assert f"to take the next older one, made 2025-01-30 12:00:00 UTC, at {server.place}: " in hint
    assert f" {server.place}/{old} --key-stdin --force" in hint


# --- faults ----------------------------------------------------------------------------------------------------------


def truncated(server: Server, name: str) -> None:
    server.put(name, server.get(name)[:-100])


def exchanged(server: Server, name: str) -> None:
    content = server.get(name)
    server.put(name, content[:-100] + bytes(100))


def truncated_without_checksum(server: Server, name: str) -> None:
    truncated(server, name)
    server.delete(f"{name}.sha256")


def missing(server: Server, name: str) -> None:
    server.delete(name)


FAULTS: dict[str, tuple[Callable[[Server, str], None], tuple[int, str]]] = {
    "missing": (missing, (3, "backup-not-found")),
    "truncated": (truncated, (3, "checksum-mismatch")),
    "exchanged": (exchanged, (3, "checksum-mismatch")),
    "truncated, no checksum": (truncated_without_checksum, (4, "damaged-message")),
}
EVERY_DAY = {("webdav", "truncated, no checksum"), ("sftp", "exchanged")}


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        pytest.param(kind, fault, marks=[] if (kind, fault) in EVERY_DAY else [pytest.mark.long])
        for kind in KINDS
        for fault in FAULTS
    ],
)
def test_object_that_is_not_what_was_pushed_touches_nothing(shop: Shop, server: Server, keys: Keys, fault: str) -> None:
    backup = shop.create_backup()
    shop.change_data()
    spoil, ended = FAULTS[fault]
    spoil(server, backup.name)
    before = everything(shop)
    done = restore(shop, server, backup.name, keys)
    assert done.ended == ended, done.text
    assert everything(shop) == before


NETWORK = {
    "gone": {(3, "remote-broken"), (3, "remote-unreachable")},
    "stalls": {(3, "remote-stalled")},
    "corrupts": {(3, "checksum-mismatch"), (0, "")},  # SFTP sees it, and rclone reads that part once more
}


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        pytest.param(kind, fault, marks=[] if (kind, fault) == ("s3", "gone") else [pytest.mark.long])
        for kind in KINDS
        for fault in NETWORK
    ],
)
def test_network_that_fails_in_the_stream_touches_nothing(shop: Shop, server: Server, keys: Keys, fault: str) -> None:
    backup = shop.create_backup()
    shop.change_data()
    before = everything(shop)
    with Proxy(server.port, fault, after=1_300_000) as proxy:
        shop.write_env(**server.settings(proxy.port))
        if server.kind == "sftp":
            shop.write_env(RCLONE_CONFIG_OFFSITE_KNOWN_HOSTS_FILE=None)
        done = restore(shop, server, backup.name, keys)
        assert proxy.hit.is_set()
    assert done.ended in NETWORK[fault], done.text
    assert shop.is_restored() if done.code == 0 else everything(shop) == before


@everyday()
def test_stream_that_breaks_when_the_services_would_be_down_touches_nothing(
    shop: Shop, server: Server, keys: Keys
) -> None:
    """With --stop-first the database is as before; so is what was made on the way."""
    backup = shop.create_backup()
    shop.change_data()
    before = shop.snapshot()
    with Proxy(server.port, "gone", after=1_300_000) as proxy:
        shop.write_env(**server.settings(proxy.port))
        done = restore(shop, server, backup.name, keys, "--stop-first")
    assert done.code == 3, done.text
    assert {name: (state.inode, state.sha256) for name, state in shop.snapshot().items()} == {
        name: (state.inode, state.sha256) for name, state in before.items()
    }


@pytest.mark.long
@pytest.mark.parametrize("kind", ["s3"])
def test_what_comes_without_a_checksum_is_compared_with_what_the_server_says(
    shop: Shop, server: Server, keys: Keys
) -> None:
    """S3 has an MD5 of what it was given: what changes on the way is no damage of the backup."""
    backup = shop.create_backup()
    server.delete(f"{backup.name}.sha256")
    before = everything(shop)
    with Proxy(server.port, "corrupts", after=1_300_000) as proxy:
        shop.write_env(**server.settings(proxy.port))
        done = restore(shop, server, backup.name, keys)
    assert done.ended == (3, "checksum-mismatch"), done.text
    assert "md5" in done.error["message"]
    assert everything(shop) == before
    done = shop.restore(f"{server.place}/{backup.name}", "--verify-only", key=keys.rsa)
    assert done.code == 3, "the proxy is gone"
    shop.write_env(**server.settings())
    done = restore(shop, server, backup.name, keys, "--verify-only")
    assert done.code == 0, done.text
    assert "no checksum beside" in done.err


@everyday("sftp")
def test_remote_that_is_read_only_gets_no_backup_and_the_one_here_is_safe(
    make_shop: MakeShop, tmp_path: Path, kind: str
) -> None:
    with serving(kind, tmp_path / "server", read_only=True) as server:
        done, shop = create_in_vain(make_shop, server)
    assert re.search("does not permit|rclone failed", done.err)
    assert "remote-denied" not in done.out
    assert shop.sha256sum_accepts(shop.path / done.out.strip())


@everyday("webdav")
def test_remote_that_is_full_gets_no_backup_and_the_one_here_is_safe(
    make_shop: MakeShop, tmp_path: Path, kind: str
) -> None:
    with (
        small_disk(tmp_path / "disk", "1M" if kind != "s3" else "80M") as disk,
        serving(kind, tmp_path / "server", files=disk) as server,
    ):
        fill(disk)
        done, shop = create_in_vain(make_shop, server)
    assert shop.sha256sum_accepts(shop.path / done.out.strip())


def fill(disk: Path) -> None:
    """Leave no room."""
    with (disk / "rest").open("wb") as file:
        while True:
            try:
                os.write(file.fileno(), bytes(1 << 16))
            except OSError:
                return


def create_in_vain(make_shop: MakeShop, server: Server) -> tuple[Completed, Shop]:
    """Make a backup that does not get there."""
    shop = make_shop("sqlite", **server.settings())
    done = shop.run("database_backup.py", "create")
    assert done.code == 11, done.text
    assert f"Not copied to {server.place}" in done.err
    assert "The backup is made, and safe here" in done.err
    return done, shop


def test_create_if_changed_makes_good_what_the_last_backup_lacks(make_shop: MakeShop, tmp_path: Path) -> None:
    """A remote that was down, and a signature; when it lacks nothing, no remote is asked."""
    needs.require("rclone")
    there = tmp_path / "there"
    shop = make_shop("sqlite", BACKUP_REMOTES=f"here:{there}", RCLONE_CONFIG_HERE_TYPE="local")
    shop.env["PATH"] = f"{os.environ['PATH']}:{os.path.dirname(str(needs.find('rclone')))}"

    def create(*options: str) -> tuple[int, int]:
        """Make a backup; the exit code, and how many there are then."""
        code = shop.run("database_backup.py", "create", *options).code
        return code, len([*shop.backups.glob("*.gpg")])

    there.touch()  # no folder
    assert create("--no-sign") == (11, 1)
    assert create("--no-sign", "--if-changed") == (11, 1)
    there.unlink()
    assert create("--no-sign", "--if-changed") == (0, 1)
    assert len([*there.glob("*.gpg")]) == 1
    assert create("--if-changed") == (0, 2)
    shutil.rmtree(there)
    assert create("--if-changed") == (0, 2)
    assert not there.exists()


# --- prune -----------------------------------------------------------------------------------------------------------

OLD = [f"db_backup_2025010{day}_120000.db.gz.gpg" for day in (1, 2, 3)]


def beside(name: str, content: bytes = b"backup") -> bytes:
    """The checksum file of a backup."""
    return f"{sha256(content).hexdigest()}  {name}\n".encode()


@everyday("webdav")
def test_prune_removes_there_what_the_policy_does_not_keep(shop: Shop, server: Server) -> None:
    """The proved one stays, by its checksum there; what lies there beside the backups is left alone."""
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in OLD}
    for name in OLD:
        server.put(name, name.encode())
        server.put(f"{name}.sha256", beside(name, name.encode()))
    server.put("notes.txt", b"mine")
    server.put(half := "db_backup_20250104_120000.db.gz.gpg", b"half")
    proofs.record(shop.backups, Proof(digests[OLD[0]], OLD[0], datetime.now().astimezone(), "verified"))
    shop.write_env(BACKUP_KEEP="last=1")
    there = server.names()
    tried = shop.run("database_backup.py", "prune", "--dry-run")
    assert (tried.code, server.names()) == (0, there), tried.text
    assert f"would remove {server.place}/{OLD[1]}, if the remote lets us" in tried.out
    done = shop.run("database_backup.py", "prune")
    assert done.code == 0, done.text
    _, interrupted, newest, proved, removed = done.out.splitlines()
    assert interrupted == f"kept {server.place}/{half}: {NO_CHECKSUM}"  # it is newer than all
    assert newest == f"kept {server.place}/{OLD[2]}: newest, last"
    assert proved.startswith(f"kept {server.place}/{OLD[0]}: last proved: verified ")
    assert removed == f"removed {server.place}/{OLD[1]}"
    assert server.names() == there - {OLD[1], f"{OLD[1]}.sha256"}


@pytest.mark.parametrize("kind", ["sftp", pytest.param("webdav", marks=pytest.mark.long)])
def test_prune_tells_what_a_remote_keeps_and_that_is_no_error(make_shop: MakeShop, tmp_path: Path, kind: str) -> None:
    with serving(kind, tmp_path / "server", read_only=True) as server:
        folder = tmp_path / "server/files/shopbot"
        folder.mkdir()
        for name in OLD[:2]:
            (folder / name).write_bytes(b"backup")
            (folder / f"{name}.sha256").write_bytes(beside(name))
        there = {path.name for path in folder.iterdir()}
        shop = make_shop("sqlite", BACKUP_KEEP="last=1", **server.settings())
        done = shop.run("database_backup.py", "prune")
        assert done.code == 0, done.text
        assert re.search(rf"^kept \S+{OLD[0]}: .*cannot be removed", done.out, re.MULTILINE)
        assert {path.name for path in folder.iterdir()} == there


@pytest.mark.long
@pytest.mark.parametrize("kind", ["s3"])
def test_prune_leaves_what_an_object_lock_keeps(make_shop: MakeShop, servers: Serve, kind: str) -> None:
    """S3 would hide it: a removal makes a new version, and the locked one stays."""
    server = replace(servers(kind), place="offsite:locked/shopbot")
    server.rclone("mkdir", "--s3-bucket-object-lock-enabled", "offsite:locked")
    lock = ("--s3-object-lock-supported=true", "--s3-object-lock-mode=COMPLIANCE", "--s3-object-lock-retain-until-date")
    for name, options in zip(OLD, ((*lock, "24h"), (*lock, "1s"), ()), strict=True):
        server.rclone("rcat", *options, f"{server.place}/{name}", given=b"backup")
        server.put(f"{name}.sha256", beside(name))
    shop = make_shop("sqlite", BACKUP_KEEP="last=1", **server.settings())
    time.sleep(1.1)
    done = shop.run("database_backup.py", "prune")
    assert done.code == 0, done.text
    assert done.out.splitlines()[1:] == [
        f"kept {server.place}/{OLD[2]}: newest, last",
        *re.findall(rf"kept \S+{OLD[0]}: an object lock keeps it until [0-9].*", done.out),
        f"removed {server.place}/{OLD[1]}",
    ]
    assert server.names() == {f"{name}{end}" for name in (OLD[0], OLD[2]) for end in ("", ".sha256")}


def test_prune_of_a_remote_that_is_gone_is_told_within_seconds_and_the_backups_here_are_pruned(
    make_shop: MakeShop,
) -> None:
    needs.require("rclone")
    gone = {"TYPE": "webdav", "URL": f"http://127.0.0.1:{free_port()}"}
    variables = {f"RCLONE_CONFIG_OFFSITE_{name}": text for name, text in gone.items()}
    shop = make_shop("sqlite", BACKUP_KEEP="last=1", BACKUP_REMOTES="offsite:shopbot", **variables)
    for name in OLD:
        (shop.backups / name).write_bytes(b"backup")
    done = shop.run("database_backup.py", "prune")
    assert done.code == 11, done.text
    assert "offsite:shopbot was not pruned, or not all of it" in done.err
    assert [path.name for path in shop.backups.iterdir()] == [OLD[2]]
