"""Whole runs with real servers off the host: SFTP, WebDAV and S3, and all that goes wrong there.

Every day each server and each fault comes once; all cells of the matrix are long. In which words a fault is told stands
in unit/test_remote.py; here it is that nothing is touched, and which exit code that has.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import MakeShop
from tests.support import needs
from tests.support.keys import Keys
from tests.support.remotes import KINDS, Proxy, Server, only, serving, small_disk
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
    shop.env["PATH"] = f"{os.environ['PATH']}:{os.path.dirname(str(needs.find('rclone')))}"
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
    done = shop.run("database_backup.py", "push")
    assert done.code == 0, done.text
    assert server.names() == {f"{name}{end}" for name in (backup.name, safety) for end in ("", ".sha256")}
    assert "# kind: before a restore" in server.get(f"{safety}.sha256").decode()
    done = restore(shop, server, "latest", keys, "--verify-only")
    assert done.report["backup"] == f"{server.place}/{backup.name}"


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("program", [DEBIAN, "newest"])
def test_both_rclones_do_all_of_it(shop: Shop, server: Server, keys: Keys, tmp_path: Path, program: str) -> None:
    if program == DEBIAN:
        needs.require("rclone 1.60")
        shop.env["PATH"] = only(DEBIAN, tmp_path / "debian")
    test_backup_is_pushed_and_comes_back(shop, server, keys)


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
    shop.env["PATH"] = f"{os.environ['PATH']}:{os.path.dirname(str(needs.find('rclone')))}"
    done = shop.run("database_backup.py", "create")
    assert done.code == 11, done.text
    assert f"Not copied to {server.place}" in done.err
    assert "The backup is made, and safe here" in done.err
    return done, shop
