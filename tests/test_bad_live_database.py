"""The live database in bad shape, which is why one restores: it works, and what was there is kept byte for byte."""

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import MakeShop
from tests.support import writer
from tests.support.keys import GpgHome, Keys
from tests.support.matrix import Tell
from tests.support.shop import SIDECARS, Completed, Shop
from tests.support.strace import KILL, Hit, Stage, aim, make_stage, read_log, spread, strace, touching

Files = dict[str, bytes]


def files(shop: Shop) -> Files:
    """The database and its sidecars, but the -shm, which holds no data."""
    paths = [Path(f"{shop.db_path}{suffix}") for suffix in ("", *SIDECARS)]
    return {path.name: path.read_bytes() for path in paths if path.exists() and path.suffix != ".db-shm"}


# --- what can have happened to it ------------------------------------------------------------------------------------


def corrupt_header(shop: Shop) -> None:
    """At rest, and its first bytes overwritten."""
    with shop.db_path.open("r+b") as file:
        file.write(os.urandom(200))


def corrupt_header_beside_wal(shop: Shop) -> None:
    """The same under a hot WAL that does not hold the first page."""
    with closing(shop.connect()) as connection:
        connection.execute("CREATE TABLE bot_log (id INTEGER PRIMARY KEY, at REAL, note TEXT)")
    shop.leave_hot_wal()
    corrupt_header(shop)


def noise(shop: Shop) -> None:
    """Nothing but noise in all of its files."""
    shop.db_path.write_bytes(os.urandom(50_000))
    for suffix in ("-wal", "-journal"):
        Path(f"{shop.db_path}{suffix}").write_bytes(os.urandom(20_000))


def missing_beside_wal(shop: Shop) -> None:
    """The main file is gone, its WAL is not."""
    shop.leave_hot_wal()
    shop.db_path.unlink()


def emptied_beside_wal(shop: Shop) -> None:
    """The main file was truncated to nothing, its WAL was not."""
    shop.leave_hot_wal()
    os.truncate(shop.db_path, 0)


def emptied_beside_journal(shop: Shop) -> None:
    """The same in rollback mode."""
    shop.leave_hot_journal()
    os.truncate(shop.db_path, 0)


def cut_short(shop: Shop) -> None:
    """Half of it is left."""
    os.truncate(shop.db_path, shop.db_path.stat().st_size // 2)


def other_passphrase(shop: Shop) -> None:
    """A SQLCipher database under another passphrase than DB_PASS, with rows that only its WAL holds."""
    for suffix in ("", *SIDECARS):
        Path(f"{shop.db_path}{suffix}").unlink(missing_ok=True)
    other = Shop(path=shop.path, mode="sqlcipher", settings={**shop.settings, "DB_PASS": "another one"})
    with closing(other.connect()) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("INSERT INTO customers (name) VALUES ('under another passphrase')")
    other.leave_hot_wal()


def schema_that_is_no_text(shop: Shop) -> None:
    """What SQLite says of it cannot be decoded."""
    shop.break_schema()


SHAPES: list[Callable[[Shop], None]] = [
    corrupt_header,
    corrupt_header_beside_wal,
    noise,
    missing_beside_wal,
    emptied_beside_wal,
    emptied_beside_journal,
    cut_short,
    other_passphrase,
    schema_that_is_no_text,
]


@pytest.mark.parametrize("spoil", SHAPES, ids=lambda shape: shape.__name__)
def test_restore_works_and_keeps_what_was_there_byte_for_byte(
    make_shop: MakeShop, keys: Keys, mode: str, spoil: Callable[[Shop], None], tmp_path: Path
) -> None:
    shop = make_shop(mode)
    backup = shop.create_backup()
    new = shop.rows()
    shop.change_data()
    spoil(shop)
    before = files(shop)
    options = ["--convert"] if spoil is other_passphrase and mode == "sqlite" else []  # for SQLCipher's only
    done = shop.restore("--force", *options, backup, key=keys.rsa)
    assert done.code == 0, done.text
    assert shop.rows() == new
    assert [path.name for path in shop.db_path.parent.iterdir()] == ["shop.db"]
    raw = sorted(shop.backups.glob("db_backup_*.raw.tar.gz.gpg"))
    assert raw, done.text
    plain = tmp_path / "raw.tar"
    plain.write_bytes(shop.decrypted(raw[0], keys.rsa))
    saved = saved_files(plain)
    assert saved.keys() == before.keys()
    assert [name for name in saved if saved[name] != before[name]] == [], "not the bytes that were there"
    assert Path(f"{raw[0]}.sha256").exists()


@pytest.mark.parametrize("encrypted", [False, True])
def test_command_that_the_report_prints_for_unreadable_files_rescues_them(
    make_shop: MakeShop, gpg: GpgHome, keys: Keys, encrypted: bool
) -> None:
    """The bot runs by now: nothing is unpacked over its database, nor next to it. The key is never on the host."""
    shop = make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=keys.open.public_b64 if encrypted else None)
    backup = shop.create_backup()
    shop.change_data()
    old = shop.rows()
    with shop.db_path.open("r+b") as file:
        file.write(b"broken!!" * 2)
    done = shop.restore("--force", backup, as_json=False, key=keys.open if encrypted else None)
    assert done.code == 0, done.text
    assert "to undo" not in done.out
    printed = re.search(r"^   to rescue +(.*)$", done.out, re.MULTILINE)
    assert printed
    assert printed[1].count("ssh HOST") == 2 * encrypted
    live = shop.snapshot()
    home = 'gpg() { command gpg --homedir "$HOME_OF_KEY" --batch "$@"; }; ssh() { (cd "$SHOP" && bash -c "$2"); }; '
    rescued = subprocess.run(
        ["/bin/bash", "-c", home + printed[1]],
        cwd="/" if encrypted else shop.path,
        env=shop.environment({"HOME_OF_KEY": str(gpg.path), "SHOP": str(shop.path.parent)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert rescued.returncode == 0, rescued.stderr
    path = Path(rescued.stdout.strip())
    try:
        assert path.parent == Path("/dev/shm")
        assert shop.rows(path) == old
    finally:
        path.unlink()
    assert shop.snapshot() == live


@pytest.mark.deep
@pytest.mark.needs("strace")
def test_database_on_a_broken_disk_is_replaced_when_the_operator_gives_it_up(stage: Stage) -> None:
    """No byte of it can be read, so it cannot be saved, and must not be copied either to be set aside."""
    before = stage.shop.snapshot()
    done = broken_disk(stage, "1+")
    assert done.ended == (6, "backup-failed"), done.text
    assert "Input/output error" in done.error["message"]  # the system's words
    assert "--skip-backup" in done.error["hint"]
    assert stage.shop.snapshot() == before
    done = broken_disk(stage, "1+", "--skip-backup")  # the new one cannot be read here, either: it has the same path
    assert done.ended == (8, "rolled-back"), done.text
    assert [path.name for path in stage.data.iterdir()] == ["shop.db"]
    calls = read_log(stage.log)
    linked = max(i for i, call in enumerate(calls) if call.name == "linkat")
    reads = sum(call.injected for call in calls[:linked] if call.thread == calls[linked].thread)
    done = broken_disk(stage, f"1..{reads}", "--skip-backup")
    assert done.code == 0, done.text
    assert stage.outcome() == "new"


def broken_disk(stage: Stage, when: str, *options: str) -> Completed:
    """A restore whose reads of the live database fail, those of these numbers."""
    hits = [Hit("pread64", when, "error=EIO", (str(stage.shop.db_path),))]
    hits += [Hit(call, "1+", "error=EIO", hits[0].paths) for call in ("copy_file_range", "sendfile")]
    if not options:  # a read with --skip-backup is one of the new database
        hits.append(replace(hits[0], call="read"))
    wrapper = strace(stage.log, hits, ("pread64", "read", "copy_file_range", "sendfile", "linkat"))
    return stage.shop.restore("--force", *options, stage.backup, wrapper=wrapper)


@pytest.fixture
def stage(make_shop: MakeShop, mode: str) -> Stage:
    """At rest: what lies in a WAL can be read all the same."""
    stage = make_stage(make_shop(mode, PGP_PUBLIC_KEY_BASE64=None), "wal")
    stage.shop.rows_in_place()
    return stage


def test_hot_journal_is_no_damage_and_is_saved_as_a_database(shop: Shop, keys: Keys) -> None:
    backup = shop.create_backup()
    new = shop.rows()
    shop.change_data()
    old = shop.rows()
    shop.leave_hot_journal()
    done = shop.restore("--force", backup, key=keys.rsa)
    assert done.code == 0, done.text
    assert shop.rows() == new
    made = sorted({*shop.backups.glob("db_backup_*.db.gz.gpg")} - {backup})
    assert made
    assert all(shop.backup_rows(path, keys.rsa) == old for path in made)


# --- kill points in the swap of a database that cannot be opened -----------------------------------------------------


def other_rows(shop: Shop) -> object:
    """What a database under the other passphrase holds, sidecars included; its own key may fold its WAL."""
    folder = shop.path / "look"
    shutil.copytree(shop.db_path.parent, folder)
    try:
        with closing(writer.connect(str(folder / shop.db_path.name), "another one")) as connection:
            return connection.execute("SELECT (SELECT count(*) FROM customers), count(*) FROM bot_log").fetchone()
    except Exception as error:  # noqa: BLE001 - sqlcipher3 has error classes of its own; what it says is the answer
        return str(error)
    finally:
        shutil.rmtree(folder)


def main_file(shop: Shop) -> object:
    """The main file's bytes. Sidecars of noise are cleared away by whatever opens the database."""
    return shop.db_path.read_bytes()


def saved_files(backup: Path) -> Files:
    """What a raw backup that is not encrypted holds."""
    with tarfile.open(backup) as tar:
        return {item.name: tar.extractfile(item).read() for item in tar if not item.name.endswith("-shm")}  # type: ignore[union-attr]


@pytest.mark.deep
@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("mode", "spoil", "look"),
    [
        pytest.param("sqlite", noise, main_file, marks=pytest.mark.long),
        ("sqlite", emptied_beside_wal, files),
        pytest.param("sqlcipher", other_passphrase, other_rows, marks=pytest.mark.long),
    ],
    ids=["noise", "emptied beside WAL", "other passphrase"],
)
@pytest.mark.parametrize("count", [6, pytest.param(None, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_killed_swap_of_an_unreadable_database_ends_whole(  # noqa: PLR0917 - pytest passes by keyword
    make_shop: MakeShop,
    mode: str,
    spoil: Callable[[Shop], None],
    look: Callable[[Shop], object],
    count: int | None,
    tell: Tell,
) -> None:
    shop = make_shop(mode, PGP_PUBLIC_KEY_BASE64=None)
    backup = shop.create_backup()
    new = shop.rows()
    shop.change_data()
    spoil(shop)
    old, before = look(shop), files(shop)
    stage = Stage(shop, backup)
    stage.keep()
    assert stage.plain_restore().code == 0
    stage.reset()
    assert stage.restore().code == 0
    calls = stage.calls()
    begun = next(i for i, call in enumerate(calls) if call.name == "rename" and call.paths[-1].endswith("state.json"))
    points = [index for index in touching(calls, stage.folders) if index > begun and aim(calls, (index, KILL))]
    ends = {"old": 0, "new": 0}
    for index in spread(points, count):
        stage.reset()
        killed = stage.restore(*(aim(calls, (index, KILL)) or []))
        assert killed.code == -9, killed.text
        assert any(saved_files(path) == before for path in shop.backups.glob("*.raw.tar.gz")), "not saved"
        recovered = stage.plain_recover()
        assert recovered.code == 0, f"killed at {calls[index]}: {recovered.text}"
        names = sorted(path.name for path in stage.data.iterdir())
        is_new = names == ["shop.db"] and shop.db_path.stat().st_size > 0 and look(shop) != old
        assert look(shop) == old or (is_new and shop.rows() == new), f"killed at {calls[index]}: {names}"
        assert {*names} <= {"shop.db", *(f"shop.db{suffix}" for suffix in SIDECARS)}, f"leftovers: {names}"
        ends["new" if is_new else "old"] += 1
    tell(f"unreadable database: {sum(ends.values())} kill points: {ends}")
