"""Whole runs under strace: key, passphrase, DB_PASS and rows leave RAM in no way but the one they must."""

import base64
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from backuplib import armor
from backuplib.folder import PLACE
from backuplib.packets import packets
from backuplib.signing import SigningFolder
from tests.conftest import MakeShop
from tests.support.containers import wait_until
from tests.support.keys import PASSPHRASE, Key, Keys
from tests.support.remotes import serving
from tests.support.shop import DB_PASS, Completed, Shop
from tests.support.strace import by_name

ROW = "row-canary-7c1d0e5a"

# --- canaries --------------------------------------------------------------------------------------------------------


def secrets_of(key: Key) -> dict[str, bytes]:
    """What must not be seen: passphrase, DB_PASS, and pieces of the private key in each form that it takes."""
    canaries = {
        "passphrase": PASSPHRASE.encode(),
        "DB_PASS": DB_PASS.encode(),
        "DB_PASS, quoted for the pragma": DB_PASS.replace("'", "''").encode(),
    }
    armor = key.private_armor.encode()
    body = b"".join(line for line in armor.partition(b"\n\n")[2].splitlines() if not line.startswith((b"=", b"-")))
    for number, piece in enumerate(private_pieces(key, key.private_binary)):
        canaries |= {
            f"private key, binary, piece {number}": piece[6:36],
            f"private key, hexadecimal, piece {number}": piece[6:36].hex().encode(),
            f"private key, base64 of binary, piece {number}": base64.b64encode(piece)[8:48],
        }
    for number, piece in enumerate(private_pieces(key, base64.b64decode(body))):  # each export has a salt of its own
        line = base64.b64encode(piece)
        start = -(-armor.index(line) // 3) * 3
        canaries |= {
            f"private key, from the armor, piece {number}": piece[6:36],
            f"private key, line {number} of the armor": line,
            f"private key, armor in base64, piece {number}": base64.b64encode(armor[start : start + 42]),
        }
    return canaries


def private_pieces(key: Key, exported: bytes) -> list[bytes]:
    """What is private in an export, in pieces of 48 bytes: a line of an armor each."""
    pieces = [exported[start : start + 48] for start in range(0, len(exported) - 48, 48)]
    private = [piece for piece in pieces if piece[6:36] not in key.public_binary]
    assert len(private) >= 2
    return private


def secrets_of_host(signing: SigningFolder) -> dict[str, bytes]:
    """The same of the key that signs, which is on a disk only in its own folder."""
    exported = armor.unwrap((signing.path / "key.asc").read_bytes())
    number = next(packets(exported)).body[-30:-2]  # its end, before a checksum
    return {
        "signing key": number,
        "signing key, hexadecimal": number.hex().upper().encode(),
        "signing key, line of its armor": base64.b64encode(exported[48:96]),
    }


def seen_in(data: bytes, canaries: dict[str, bytes]) -> list[str]:
    """The names of the canaries that occur in the data, also as Python and JSON write them down."""
    found = []
    for name, canary in canaries.items():
        text = canary.decode(errors="ignore")
        forms = {canary, repr(canary)[2:-1].encode(), repr(text)[1:-1].encode(), text.encode("unicode_escape")}
        if any(form and form in data for form in forms if len(form) >= 12):
            found.append(name)
    return found


def test_canaries_are_found_where_they_are_and_nowhere_else(keys: Keys, signing: SigningFolder) -> None:
    """The search itself, on what holds them and on what does not."""
    for key in (keys.rsa, keys.other):
        canaries = secrets_of(key)
        for data in (key.private_binary, key.private_armor.encode(), key.private_b64.encode()):
            assert len(seen_in(b"before" + data + b"after", canaries)) >= 2
        assert not seen_in(key.public_binary + key.public_b64.encode(), canaries)
        assert seen_in(repr({"passphrase": PASSPHRASE}).encode(), canaries) == ["passphrase"]
    host = secrets_of_host(signing)
    exported = (signing.path / "key.asc").read_bytes()
    assert len(seen_in(exported + armor.unwrap(exported), host)) == 2
    public = (signing.path / "public.asc").read_bytes()
    assert not seen_in(public + armor.unwrap(public), host)


# --- strace ----------------------------------------------------------------------------------------------------------

CALLS = (
    "execve,open,openat,openat2,creat,write,writev,pwrite64,pwritev,pwritev2,sendfile,copy_file_range,splice,"
    "mmap,mount,connect,link,linkat,symlink,symlinkat,rename,renameat,renameat2,mknod,mknodat,umask"
)
STRACE = ("strace", "-f", "--seccomp-bpf", "-v", "-y", "-xx", "-e", f"trace={CALLS}")
WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2", "sendfile", "copy_file_range", "splice")


@dataclass(frozen=True)
class Call:
    """One system call, as strace wrote it; strings and paths are in hexadecimal there."""

    pid: str
    name: str
    arguments: str
    result: str

    @property
    def strings(self) -> list[bytes]:
        """Its string arguments."""
        return [unhex(text) for text in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', self.arguments)]

    @property
    def written_to(self) -> str:
        """What the descriptor that it writes to stands for: a path, or like "pipe:[123]"."""
        number = {"sendfile": 0, "copy_file_range": 2, "splice": 2}.get(self.name, 0)
        return path_of(re.findall(r"\d+<(?:[^<>]*)>", self.arguments)[number])

    @property
    def opened(self) -> str:
        """The path that was opened."""
        return path_of(self.result)

    @property
    def failed(self) -> bool:
        return self.result.startswith("-1")


def unhex(text: str) -> bytes:
    """The bytes that strace wrote as \\x41\\x42."""
    return bytes.fromhex(text.replace("\\x", ""))


def path_of(descriptor: str) -> str:
    """The path in `3<\\x2f…>`."""
    found = re.search(r"<([^<>]*)>", descriptor)
    if not found:
        return ""
    text = found[1].removesuffix("(deleted)")
    path = re.sub(r"(?:\\x[0-9a-f]{2})+", lambda match: os.fsdecode(unhex(match[0])), text).removesuffix(" (deleted)")
    return by_name(path)


@dataclass(frozen=True)
class Trace:
    """All calls of a run and of its children."""

    calls: list[Call]
    done: Completed

    def of(self, *names: str) -> Iterator[Call]:
        """The calls of these names that did not fail."""
        return (call for call in self.calls if call.name in names and not call.failed)

    @property
    def ram(self) -> list[str]:
        """Folders in RAM: /dev/shm, and each tmpfs that the run mounted without swap."""
        mounted = []
        for call in self.of("mount"):
            strings = call.strings
            if strings[2:3] == [b"tmpfs"] and strings[1] != PLACE.encode():
                assert b"noswap" in strings[-1]
                mounted.append(os.fsdecode(strings[1]))
        return [*mounted, "/dev/shm"]

    def in_ram(self, path: str) -> bool:
        """Whether a path lies in one of them."""
        return any(path == folder or path.startswith(f"{folder}/") for folder in self.ram)

    def opened_for_writing(self) -> list[Call]:
        """What was opened for writing or created."""
        flags = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
        return [
            c for c in self.of("open", "openat", "openat2", "creat") if c.name == "creat" or flags.search(c.arguments)
        ]


def traced(shop: Shop, tmp_path: Path, script: str, *args: object, **options: object) -> Trace:
    """Run one of the program's scripts under strace."""
    log = tmp_path / "strace"
    strace = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-v",
        "-y",
        "-xx",
        "-s",
        "20000000",
        "-e",
        f"trace={CALLS}",
        "-o",
        str(log),
    ]
    done = shop.run(script, *args, wrapper=strace, timeout=110, **options)
    return Trace(parsed(log), done)


def parsed(log: Path) -> list[Call]:
    """strace's log; a call that it wrote in two parts is put together."""
    calls, begun = [], {}
    with log.open(encoding="ascii") as lines:
        for line in lines:
            pid, _, text = line.rstrip("\n").partition(" ")
            text = text.lstrip()
            if text.endswith("<unfinished ...>"):
                begun[pid] = text.removesuffix("<unfinished ...>").rstrip()
                continue
            if resumed := re.match(r"<\.\.\. \w+ resumed>", text):
                text = begun.pop(pid) + text[resumed.end() :]
            if match := re.fullmatch(r"(\w+)\((.*)\)\s+= (.*)", text):
                calls.append(Call(pid, *match.groups()))
    assert calls
    return calls


# --- what a run may write --------------------------------------------------------------------------------------------

DEVICES = r"/dev/(null|tty|pts/\d+|ptmx)|/proc/.*|(pipe|socket|anon_inode):.*"
BYTECODE = r".*/__pycache__/[^/]+\.pyc(\.\d+)?"
BACKUPS = r"backups/(\.db_backup_\d+_\d+\.tmp|db_backup_\d{8}_\d{6}(\.raw\.tar|\.db)\.gz\.gpg(\.sha256)?)"
DATABASE = (
    r"data/shop\.db"
    r"(-wal|-shm|-journal|\.restore-(new|probe|probe2|lock)|\.backup-\d{8}-\d{6}|\.restore-state\.json(\.tmp)?)?"
)
LOG = r"backups/(restore\.log|last-restore\.json\.tmp|proofs\.jsonl)"


def check_files(trace: Trace, shop: Shop, *allowed: str) -> None:
    """Every file opened for writing is in RAM or is one of those."""
    inside = re.escape(f"{shop.path}/")
    notes = re.escape(f"{shop.path}-home/.local/state/restore-backup/last-backups.json") + r"(\.tmp)?"  # --if-changed's
    pattern = re.compile("|".join([DEVICES, BYTECODE, notes, *(f"{inside}(?:{rule})" for rule in allowed)]))
    paths = {call.opened for call in trace.opened_for_writing()}
    assert [path for path in sorted(paths) if not trace.in_ram(path) and not pattern.fullmatch(path)] == []


def check_writes(trace: Trace, shop: Shop, canaries: dict[str, bytes]) -> None:
    """No secret was written into a file outside RAM, and no row except into the database itself, when that is plain."""
    database = re.compile(re.escape(f"{shop.path}/") + f"(?:{DATABASE})")
    files = 0
    for call in trace.of(*WRITES):
        path = call.written_to
        if trace.in_ram(path) or re.fullmatch(DEVICES, path):
            continue
        assert call.name not in ("sendfile", "copy_file_range", "splice"), f"{path} is filled unseen"
        files += 1
        data = b"".join(call.strings)
        assert seen_in(data, canaries) == [], path
        if not (shop.mode == "sqlite" and database.fullmatch(path)):
            assert ROW.encode() not in data, path
    assert files, "strace saw no write to a file"
    for call in trace.of("mmap"):
        if "PROT_WRITE" in call.arguments and "MAP_SHARED" in call.arguments and "MAP_ANON" not in call.arguments:
            path = path_of(call.arguments)
            assert trace.in_ram(path) or path.endswith("-shm"), f"{path} is mapped writable"


def check_children(trace: Trace, canaries: dict[str, bytes]) -> None:
    """No child had a secret in its arguments or environment."""
    started, *children = trace.of("execve")
    assert b"restore_backup.py" in started.strings or b"database_backup.py" in started.strings
    assert any(call.strings[0].endswith(b"/gpg") for call in children)
    for call in children:
        data = b"\0".join(call.strings)
        assert seen_in(data, canaries) == [], call.strings[:3]
        assert not any(text.startswith(b"DB_PASS=") for text in call.strings)


def check_connections(trace: Trace) -> None:
    """Only gpg's agent in the RAM folder was spoken to: no network, no agent of the operator's."""
    for call in trace.of("connect"):
        assert "AF_UNIX" in call.arguments, call.arguments
        path = os.fsdecode(call.strings[0])
        # where the user has a session, gpg puts the sockets of each home but the default one there
        own = trace.in_ram(path) or re.fullmatch(r"/run/user/\d+/gnupg/d\.\w+/S\.[\w.-]+", path)
        assert own or path.startswith("/var/run/nscd"), path


def check_output(shop: Shop, done: Completed, canaries: dict[str, bytes]) -> None:
    """No secret in output or log; rows neither."""
    log = shop.backups / "restore.log"
    for data in (done.text.encode(), log.read_bytes() if log.exists() else b""):
        assert seen_in(data, canaries) == []
        assert ROW.encode() not in data


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def canary_shop(shop: Shop) -> Shop:
    """A shop with a row that must be recognised wherever it turns up."""
    with closing(shop.connect()) as connection:
        connection.execute("INSERT INTO customers (name) VALUES (?)", (ROW,))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return shop


@pytest.mark.needs("root", "strace")
@pytest.mark.parametrize("order", ["prepared", "stop first"])
def test_restore_writes_no_secret_outside_ram(
    canary_shop: Shop, keys: Keys, signing: SigningFolder, tmp_path: Path, order: str
) -> None:
    canaries = secrets_of(keys.rsa) | secrets_of_host(signing)
    rows = canary_shop.rows()
    backup = canary_shop.create_backup()
    canary_shop.change_data()
    canary_shop.leave_hot_wal()
    options = ["--force", "--json", *(["--stop-first"] if order == "stop first" else [])]
    environment = {"DB_PASS": DB_PASS} if canary_shop.mode == "sqlcipher" else {}
    trace = traced(canary_shop, tmp_path, "restore_backup.py", backup, *options, key=keys.rsa, env=environment)
    assert trace.done.code == 0, trace.done.text
    assert canary_shop.rows() == rows
    check_files(trace, canary_shop, DATABASE, BACKUPS, LOG)
    check_writes(trace, canary_shop, canaries)
    check_children(trace, canaries)
    check_connections(trace)
    check_output(canary_shop, trace.done, canaries)


@pytest.mark.needs("root", "strace")
def test_verify_only_writes_nothing_outside_ram(canary_shop: Shop, keys: Keys, tmp_path: Path) -> None:
    backup = canary_shop.create_backup()
    trace = traced(canary_shop, tmp_path, "restore_backup.py", backup, "--verify-only", key=keys.rsa)
    assert trace.done.code == 0, trace.done.text
    # Reading a database in WAL mode makes the sidecars that its own users make.
    check_files(trace, canary_shop, r"data/shop\.db(-wal|-shm)?|backups/proofs\.jsonl")
    check_children(trace, secrets_of(keys.rsa))
    check_connections(trace)
    check_output(canary_shop, trace.done, secrets_of(keys.rsa))


@pytest.mark.deep
@pytest.mark.needs("root", "strace")
def test_sorting_writes_nothing_outside_ram(canary_shop: Shop, keys: Keys, tmp_path: Path) -> None:
    """Counting this full-text index's rows sorts those of its table, and SQLite's cache does not hold them."""
    with closing(canary_shop.connect()) as connection:
        connection.execute("CREATE TABLE articles (id INTEGER, text TEXT)")
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
            "INSERT INTO articles SELECT -i, hex(randomblob(150)) FROM n"
        )
        connection.execute("CREATE VIRTUAL TABLE search USING fts5(text, content='articles', content_rowid='id')")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    backup = canary_shop.create_backup()
    trace = traced(canary_shop, tmp_path, "restore_backup.py", backup, "--verify-only", "--json", key=keys.rsa)
    assert trace.done.code == 0, trace.done.text
    assert json.loads(trace.done.out)["tables"]["search"] == {"live": 20000, "backup": 20000}
    check_files(trace, canary_shop, r"data/shop\.db(-wal|-shm)?|backups/proofs\.jsonl")


@pytest.mark.needs("root", "strace")
def test_refused_restore_writes_no_secret_outside_ram(canary_shop: Shop, keys: Keys, tmp_path: Path) -> None:
    """The last byte is wrong: by then all of the content has been decrypted."""
    backup = canary_shop.create_backup()
    content = bytearray(backup.read_bytes())
    content[-1] ^= 1
    damaged = backup.with_name("db_backup_20250130_120000.db.gz.gpg")
    damaged.write_bytes(content)
    trace = traced(canary_shop, tmp_path, "restore_backup.py", damaged, "--force", key=keys.rsa)
    assert trace.done.code == 4, trace.done.text
    check_files(trace, canary_shop, DATABASE, LOG)
    check_writes(trace, canary_shop, secrets_of(keys.rsa))
    assert not any(
        ROW.encode() in b"".join(c.strings) for c in trace.of(*WRITES) if c.written_to.endswith("restore-new")
    )


@pytest.mark.needs("root", "strace")
def test_backup_writes_no_secret_outside_ram(
    canary_shop: Shop, keys: Keys, signing: SigningFolder, tmp_path: Path
) -> None:
    canary_shop.leave_hot_wal()
    environment = {"DB_PASS": DB_PASS} if canary_shop.mode == "sqlcipher" else {}
    trace = traced(canary_shop, tmp_path, "database_backup.py", "create", env=environment)
    assert trace.done.code == 0, trace.done.text
    check_files(trace, canary_shop, r"data/shop\.db(-wal|-shm)?", BACKUPS)
    canaries = secrets_of(keys.rsa) | secrets_of_host(signing)
    check_writes(trace, canary_shop, canaries)
    for call in trace.of(*WRITES):  # not even what the database is made of: only its encryption
        if not trace.in_ram(call.written_to) and not re.fullmatch(DEVICES, call.written_to):
            assert ROW.encode() not in b"".join(call.strings)
    written = sum(int(c.result) for c in trace.of(*WRITES) if c.written_to.startswith(f"{canary_shop.backups}/"))
    assert written == sum(path.stat().st_size for path in canary_shop.backups.iterdir())
    check_children(trace, canaries)
    check_connections(trace)
    check_output(canary_shop, trace.done, canaries)


@pytest.mark.long
@pytest.mark.needs("root", "strace")
def test_drill_writes_nothing_of_the_operators(make_shop: MakeShop, keys: Keys, tmp_path: Path) -> None:
    """Its own key and database are thrown away, but they are treated no worse: files in RAM only."""
    shop = make_shop("sqlcipher")
    before = shop.snapshot()
    trace = traced(shop, tmp_path, "restore_backup.py", "--drill", env={"DB_PASS": DB_PASS})
    assert trace.done.code == 0, trace.done.text
    check_files(trace, shop)
    canaries = secrets_of(keys.rsa)
    for call in list(trace.of("execve"))[1:]:
        assert seen_in(b"\0".join(call.strings), canaries) == [], call.strings[:3]
    check_connections(trace)
    check_output(shop, trace.done, canaries)
    assert shop.snapshot() == before


@pytest.mark.needs("root", "strace", "rclone")
def test_restore_from_a_remote_puts_no_ciphertext_on_a_disk(make_shop: MakeShop, keys: Keys, tmp_path: Path) -> None:
    """Nor a credential into a command line, rclone's variables into another program, or DB_PASS into rclone."""
    with serving("webdav", tmp_path / "server") as server:
        shop = make_shop("sqlcipher", **server.settings())
        backup = shop.create_backup()
        content = backup.read_bytes()
        shutil.rmtree(shop.backups)
        options = ["--force", "--skip-backup"]
        trace = traced(
            shop,
            tmp_path,
            "restore_backup.py",
            f"{server.place}/{backup.name}",
            *options,
            key=keys.rsa,
            env={"DB_PASS": DB_PASS},
        )
    assert trace.done.code == 0, trace.done.text
    check_files(trace, shop, DATABASE, LOG)
    check_children(trace, secrets_of(keys.rsa))
    pieces = [content[start : start + 40] for start in range(0, len(content) - 40, 4096)]
    to_pipes = 0
    for call in trace.of(*WRITES):
        if any(piece in data for data in call.strings for piece in pieces):
            assert call.written_to.startswith(("pipe:", "socket:")) or trace.in_ram(call.written_to), call.written_to
            to_pipes += call.written_to.startswith("pipe:")
    assert to_pipes, "strace saw nothing flow"
    password = server.options["PASS"].encode()
    for call in list(trace.of("execve"))[1:]:
        argv, _, environment = call.arguments.partition("], [")
        variables = [unhex(text) for text in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', environment)]
        assert password not in b"\0".join(unhex(text) for text in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', argv))
        is_rclone = call.strings[0].endswith(b"/rclone")
        assert any(text.startswith(b"RCLONE_") for text in variables) == is_rclone, call.strings[:2]


# --- loggers and tracebacks ------------------------------------------------------------------------------------------

CUSTOMIZED = """
import importlib, logging, os, re, sys

logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
logging.getLogger("canary").debug("all loggers are open")
fault, _, argument = os.environ.get("FAULT", "").partition("=")
if fault:
    module, _, name = fault.partition(":")
    *owners, name = name.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    real = getattr(owner, name)

    def fail(*args, **options):
        if argument and not any(re.search(argument, str(item)) for item in args):
            return real(*args, **options)
        raise RuntimeError(f"forced in {fault}")

    setattr(owner, name, fail)
"""


@pytest.fixture
def chatty(tmp_path: Path) -> dict[str, str]:
    """An environment in which every Python logs at DEBUG; with FAULT=module:name it fails there."""
    folder = tmp_path / "customized"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CUSTOMIZED)
    return {"PYTHONPATH": str(folder)}


def test_debug_log_shows_no_secret(canary_shop: Shop, keys: Keys, chatty: dict[str, str]) -> None:
    backup = canary_shop.create_backup()
    canary_shop.change_data()
    done = canary_shop.restore(backup, "--force", "--json", key=keys.rsa, env=chatty)
    assert done.code == 0, done.text
    assert "DEBUG:canary:all loggers are open" in done.err
    check_output(canary_shop, done, secrets_of(keys.rsa))


def test_debug_log_of_a_backup_shows_no_secret(canary_shop: Shop, keys: Keys, chatty: dict[str, str]) -> None:
    done = canary_shop.run("database_backup.py", "create", env=chatty)
    assert done.code == 0, done.text
    assert "DEBUG:canary" in done.err
    check_output(canary_shop, done, secrets_of(keys.rsa))


FAULTS = {
    "importing the key": ("gnupg:GPG.import_keys", 1),
    "decrypting": ("gnupg:GPG.decrypt_file", 1),
    "reading the status": ("gnupg:Crypt.handle_status", 4),
    "gunzip": ("isal.isal_zlib:decompressobj", 1),
    "writing the new file": ("os:posix_fallocate", 1),
    "setting aside": (r"os:link=\.backup-", 8),
    "the swap itself": (r"os:rename=/data/shop\.db$", 8),
}


@pytest.mark.deep
@pytest.mark.parametrize("where", FAULTS)
@pytest.mark.parametrize("mode", ["sqlcipher"])
def test_unexpected_error_shows_no_secret_and_changes_nothing(
    canary_shop: Shop, keys: Keys, chatty: dict[str, str], where: str
) -> None:
    fault, code = FAULTS[where]
    backup = canary_shop.create_backup()
    canary_shop.change_data()
    rows = canary_shop.rows()
    done = canary_shop.restore(backup, "--force", "--json", key=keys.rsa, env={**chatty, "FAULT": fault})
    assert "forced in" in done.text
    assert done.code == code, done.text
    check_output(canary_shop, done, secrets_of(keys.rsa))
    assert canary_shop.rows() == rows
    assert sorted(path.name for path in canary_shop.db_path.parent.iterdir()) == ["shop.db"]


@pytest.mark.parametrize("bad", ["wrong passphrase", "wrong key", "not a key"])
@pytest.mark.parametrize("mode", ["sqlcipher"])
def test_refusals_show_no_secret_at_debug(canary_shop: Shop, keys: Keys, chatty: dict[str, str], bad: str) -> None:
    backup = canary_shop.create_backup()
    key = {
        "wrong passphrase": Key(**{**vars(keys.rsa), "passphrase": "wr" + PASSPHRASE}),
        "wrong key": keys.other,
        "not a key": Key(**{**vars(keys.rsa), "private_armor": keys.rsa.private_armor[:-300]}),
    }[bad]
    done = canary_shop.restore(backup, "--force", key=key, env=chatty)
    error = {"wrong passphrase": "wrong-passphrase", "wrong key": "wrong-key", "not a key": "unusable-key"}[bad]
    assert done.ended == (4, error), done.text
    check_output(canary_shop, done, secrets_of(keys.rsa) | secrets_of(keys.other))


@pytest.mark.deep
@pytest.mark.needs("root", "strace")
def test_passphrase_command_leaves_the_passphrase_out_of_everything(
    canary_shop: Shop, keys: Keys, tmp_path: Path
) -> None:
    file = tmp_path / "passphrase"
    file.write_text(PASSPHRASE + "\n")
    backup = canary_shop.create_backup()
    key = Key(**{**vars(keys.rsa), "passphrase": None})
    options = ("--force", "--passphrase-command", f"cat {file}")
    trace = traced(canary_shop, tmp_path, "restore_backup.py", backup, *options, key=key)
    assert trace.done.code == 0, trace.done.text
    canaries = secrets_of(keys.rsa)
    check_writes(trace, canary_shop, canaries)
    check_children(trace, canaries)
    check_output(canary_shop, trace.done, canaries)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.needs("root", "strace")
def test_files_are_private_from_the_first_byte_whatever_the_umask(
    canary_shop: Shop, keys: Keys, tmp_path: Path
) -> None:
    canary_shop.db_path.chmod(0o666)
    backup = canary_shop.create_backup()
    canary_shop.change_data()
    log = tmp_path / "strace"
    strace = f'umask 0; exec {" ".join(STRACE)} -s 200 -o {log} "$@"'
    done = canary_shop.restore(backup, "--force", key=keys.rsa, wrapper=["sh", "-c", strace, "sh"])
    assert done.code == 0, done.text
    created = 0
    trace = Trace(parsed(log), done)
    for call in trace.opened_for_writing():
        mode = re.search(r"O_CREAT.*, (0\d+)$", call.arguments)
        ours = re.fullmatch(re.escape(f"{canary_shop.path}/") + f"(?:{DATABASE}|{BACKUPS}|{LOG})", call.opened)
        if mode and ours and not call.opened.endswith(("-wal", "-shm", "-journal")):
            assert mode[1] == "0600", call.opened
            assert "O_NOFOLLOW" in call.arguments, call.opened
            created += 1
    assert created >= 5  # new database, journal, safety backup, its checksum, log
    for path in canary_shop.backups.iterdir():
        if path not in (backup, backup.with_name(f"{backup.name}.sha256")):
            private = 0o644 if path.name == "last-restore.json" else 0o600  # it says what the list says to everybody
            assert stat.S_IMODE(path.stat().st_mode) == private, path


def test_backup_is_private_whatever_the_umask(canary_shop: Shop) -> None:
    done = canary_shop.run("database_backup.py", "create", wrapper=["sh", "-c", 'umask 0; exec "$@"', "sh"])
    assert done.code == 0, done.text
    for path in canary_shop.backups.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


PLANTED = (
    "data/shop.db.restore-new",
    "data/shop.db.restore-probe",
    "data/shop.db.restore-probe2",
    "data/shop.db.restore-state.json.tmp",
    "backups/restore.log",
    "backups/proofs.jsonl",
    "backups/.db_backup_1_1.tmp",
)


@pytest.mark.parametrize("name", [*PLANTED, "names of the safety backup", "checksums of the safety backup"])
@pytest.mark.parametrize(
    "dangling", [False, pytest.param(True, marks=pytest.mark.deep)], ids=["existing victim", "dangling"]
)
def test_planted_symlink_is_not_followed(
    make_shop: MakeShop, keys: Keys, tmp_path: Path, name: str, dangling: bool
) -> None:
    """Whoever may write into the folders must not make the tool, which runs as root, write elsewhere."""
    shop = make_shop("sqlite")
    backup = shop.create_backup()
    rows = shop.rows()
    shop.change_data()
    victim = tmp_path / "victim"
    if not dangling:
        victim.write_text("precious")
        victim.chmod(0o644)
    links = [shop.path / name]
    if "safety" in name:
        now = datetime.now().astimezone()
        end = ".sha256" if "checksums" in name else ""
        times = (now + timedelta(seconds=second) for second in range(1, 4))
        links = [shop.backups / f"db_backup_{time:%Y%m%d_%H%M%S}.db.gz.gpg{end}" for time in times]
    for link in links:
        link.symlink_to(victim)
    done = shop.restore(backup, "--force", key=keys.rsa)
    assert done.code == 0, done.text
    assert shop.rows() == rows
    assert victim.exists() != dangling
    if not dangling:
        assert victim.read_text() == "precious"
        assert stat.S_IMODE(victim.stat().st_mode) == 0o644
    assert not shop.db_path.is_symlink()


@pytest.mark.parametrize(
    ("name", "code", "error"),
    [
        ("backups/{backup}.sha256", 3, "checksum-unreadable"),
        ("backups/restore.log", 0, ""),
        ("backups/proofs.jsonl", 0, ""),
        ("backups/.db_backup_1_1.tmp", 0, ""),
        ("data/shop.db.restore-state.json", 3, "unfinished-restore"),
        ("data/shop.db-journal", 3, "unsuitable-target"),
    ],
)
def test_planted_pipe_is_not_waited_for(make_shop: MakeShop, keys: Keys, name: str, code: int, error: str) -> None:
    """Opening a named pipe would last until somebody opens its other end."""
    shop = make_shop("sqlite")
    backup = shop.create_backup()
    rows = shop.rows()
    pipe = shop.path / name.format(backup=backup.name)
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    done = shop.restore(backup, "--force", key=keys.rsa)
    assert done.ended == (code, error), done.text
    if code:
        assert pipe.name in done.error["message"]
    assert shop.restore("--list").code == 0
    assert "Traceback" not in shop.run("database_backup.py", "create").text
    pipe.unlink(missing_ok=True)
    assert shop.rows() == rows


def test_planted_journal_reaches_no_file_elsewhere(make_shop: MakeShop, tmp_path: Path) -> None:
    """A bot that was taken over can write into the data folder, and must not make root remove or replace files."""
    shop = make_shop("sqlite")
    victim, other = tmp_path / "victim", tmp_path / "other"
    for file in (victim, other):
        file.write_text("precious")
    bait = shop.db_path.with_name("bait")
    before = shop.rows()
    for state, target, new_inode, set_aside, candidate in (
        ("switching", shop.db_path, 1, victim, other),
        ("committed", shop.db_path, 1, victim, other),
        ("switching", victim, victim.stat().st_ino, bait, bait),
        ("rolling back", shop.db_path, 1, shop.db_path, shop.db_path),
        ("rolling back", shop.db_path, 1, f"{shop.db_path}.backup-/../../../victim", other),
    ):
        bait.write_text("bait")
        planted = {
            "target": target,
            "state": state,
            "set_aside": set_aside,
            "candidate": candidate,
            "existed": True,
            "new_inode": new_inode,
            "containers": [],
            "unhealthy": [],
            "safety_backup": None,
            "unsaved": False,
            "started": "2025-01-30T12:00:00+00:00",
        }
        journal = shop.db_path.with_name("shop.db.restore-state.json")
        journal.write_text(json.dumps(planted, default=str))
        done = shop.restore("--recover")
        assert done.ended == (3, "unfinished-restore"), done.text
        assert journal.name in f"{done.error['message']} {done.error['hint']}"
        assert (victim.read_text(), other.read_text(), shop.rows()) == ("precious", "precious", before)


def test_checksum_without_end_is_refused(make_shop: MakeShop, keys: Keys) -> None:
    shop = make_shop("sqlite")
    backup = shop.create_backup()
    checksum = backup.with_name(backup.name + ".sha256")
    checksum.unlink()
    checksum.symlink_to("/dev/zero")
    done = shop.restore(backup, "--force", key=keys.rsa)
    assert done.ended == (3, "checksum-unreadable"), done.text
    assert checksum.name in done.error["message"]


def test_exchanged_backup_is_not_believed(canary_shop: Shop, keys: Keys) -> None:
    """What was checked is what is decrypted: the file is opened once, so exchanging its name changes nothing."""
    backup = canary_shop.create_backup()
    rows = canary_shop.rows()
    canary_shop.change_data()
    exchange = (
        "import builtins, os, sys; real = os.fstat\n"
        "def fstat(descriptor):\n"
        "    name = os.readlink(f'/proc/self/fd/{descriptor}')\n"
        f"    if name == {str(backup)!r}:\n"
        f"        open({str(backup)!r} + '.other', 'wb').write(b'other')\n"
        f"        os.replace({str(backup)!r} + '.other', {str(backup)!r})\n"
        "    return real(descriptor)\n"
        "os.fstat = fstat\n"
    )
    folder = canary_shop.path / "customized"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(exchange)
    done = canary_shop.restore(backup, "--force", key=keys.rsa, env={"PYTHONPATH": str(folder)})
    assert done.code == 0, done.text
    assert canary_shop.rows() == rows
    assert backup.read_bytes() == b"other"


# --- the process -----------------------------------------------------------------------------------------------------


@pytest.mark.needs("prlimit")
def test_backup_that_crashes_leaves_no_core(canary_shop: Shop, tmp_path: Path) -> None:
    """It holds DB_PASS and decrypted pages; gpg is where it is stopped, and the limit is one that it inherits."""
    gpg = tmp_path / "gpg"
    gpg.write_text(f'#!/bin/sh\ncat /proc/$PPID/limits > {tmp_path}/limits\nexec {shutil.which("gpg")} "$@"\n')
    gpg.chmod(0o700)
    unlimited = ["prlimit", "--core=unlimited"]
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = canary_shop.run("database_backup.py", "create", env=path, wrapper=unlimited)
    assert done.code == 0, done.text
    assert re.search(r"Max core file size\s+0\s+0\s", (tmp_path / "limits").read_text())


@pytest.mark.needs("root")
def test_process_leaves_no_core_and_locks_its_memory(canary_shop: Shop, keys: Keys, tmp_path: Path) -> None:
    """Seen from outside while it waits for the passphrase."""
    backup = canary_shop.create_backup()
    ready, go = tmp_path / "ready", tmp_path / "go"
    key = Key(**{**vars(keys.rsa), "passphrase": None})
    script = tmp_path / "ask"
    script.write_text(
        f"#!/bin/sh\necho $PPID > {ready}.new; mv {ready}.new {ready}\n"
        f"while [ ! -e {go} ]; do sleep 0.05; done\necho '{PASSPHRASE}'\n"
    )
    script.chmod(0o700)
    running = canary_shop.start_restore(backup, "--verify-only", "--passphrase-command", script, key=key)
    try:
        wait_until(ready.exists, "the passphrase is asked for")
        pid = ready.read_text().strip()
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size\s+0\s+0\s", limits)
        assert seen_in(Path(f"/proc/{pid}/cmdline").read_bytes(), secrets_of(keys.rsa)) == []
        status = Path(f"/proc/{pid}/status").read_text()
        locked = re.search(r"VmLck:\s+(\d+) kB", status)
        assert locked
        assert int(locked[1]) > 0, "memory is not locked though root may do so"
    finally:
        go.touch()
        out, err = running.communicate(timeout=60)
    assert running.returncode == 0, out + err
