"""`database_backup.py rescue`: what a damaged database still holds becomes a database that restores."""

import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import ONE_MODE, MakeShop
from tests.support.keys import GpgHome, Keys, gpg_home
from tests.support.shop import SIDECARS, Completed, Rows, Shop

RESCUED = "rescued.db"


def rescue(shop: Shop, source: object, *options: object, **run: object) -> Completed:
    """Into rescued.db in the shop's folder; there is none from before."""
    (shop.path / RESCUED).unlink(missing_ok=True)
    return shop.run("database_backup.py", "rescue", source, "--to", RESCUED, *options, **run)


def pack(shop: Shop, name: str = "old.raw.tar.gz") -> Path:
    """The database's files as a raw safety backup has them."""
    path = shop.path / name
    with tarfile.open(path, "w:gz") as tar:
        for suffix in ("", *SIDECARS):
            if Path(f"{shop.db_path}{suffix}").exists():
                tar.add(f"{shop.db_path}{suffix}", arcname=f"shop.db.backup-20250130-120000{suffix}")
    return path


def spoil(shop: Shop, *pages: int) -> None:
    """These pages become noise."""
    with shop.db_path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * 4096)
            file.write(os.urandom(4096))


def schema(shop: Shop, path: Path) -> set[tuple[str, str]]:
    with closing(shop.connect(path)) as connection:
        return set(connection.execute("SELECT type, name FROM sqlite_master"))


def others(rows: Rows) -> Rows:
    """All tables but the one that is damaged here."""
    return {name: found for name, found in rows.items() if name != "customers"}


# --- what there is, and how it is given ------------------------------------------------------------------------------


def test_database_that_is_sound_is_taken_as_it_is_with_what_only_its_wal_holds(shop: Shop) -> None:
    shop.leave_hot_wal()
    rows = shop.rows()
    done = rescue(shop, pack(shop))
    assert (done.code, done.out) == (0, f"{RESCUED}\n"), done.text
    assert "Nothing is lost" in done.err
    assert shop.rows(shop.path / RESCUED) == rows
    assert (shop.path / RESCUED).stat().st_mode & 0o777 == 0o600


def test_half_a_transaction_in_a_hot_journal_is_taken_back(shop: Shop) -> None:
    shop.leave_hot_journal()
    assert rescue(shop, pack(shop)).code == 0
    assert shop.rows(shop.path / RESCUED) == shop.rows()


@pytest.fixture
def own_gpg(keys: Keys) -> Iterator[GpgHome]:
    """gpg as the operator has it at home."""
    with gpg_home() as home:
        home.run("--import", stdin=keys.open.private_binary)
        yield home


def test_file_is_decrypted_by_the_operators_own_gpg_or_comes_from_standard_input(
    shop: Shop, keys: Keys, own_gpg: GpgHome
) -> None:
    plain = pack(shop)
    encrypted = plain.with_suffix(".gz.gpg")
    encrypted.write_bytes(
        own_gpg.run("--trust-model", "always", "-o", "-", "-e", "-r", keys.open.fingerprint, str(plain))
    )
    at_home = {"GNUPGHOME": str(own_gpg.path)}
    with plain.open("rb") as one, encrypted.open("rb") as other:
        assert rescue(shop, "-", stdin=one.fileno()).code == 0
        assert rescue(shop, "-", stdin=other.fileno(), env=at_home).code == 0
    assert rescue(shop, encrypted, env=at_home).code == 0
    assert shop.rows(shop.path / RESCUED) == shop.rows()
    done = rescue(shop, encrypted)
    assert (done.code, "ssh" in done.err, (shop.path / RESCUED).exists()) == (4, True, False), done.text


def test_pages_of_a_wal_are_enough_where_the_main_file_is_gone(shop: Shop) -> None:
    shop.leave_hot_wal()
    with closing(shop.connect()) as connection:  # all pages go through the WAL anew
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("VACUUM")
        shutil.copyfile(f"{shop.db_path}-wal", shop.path / "copy.db-wal")
    rows = shop.rows()
    shutil.copyfile(shop.path / "copy.db-wal", f"{shop.db_path}-wal")
    os.truncate(shop.db_path, 0)
    assert rescue(shop, pack(shop)).code == 0
    assert shop.rows(shop.path / RESCUED) == rows
    shop.db_path.unlink()
    assert rescue(shop, pack(shop)).code == 0
    assert shop.rows(shop.path / RESCUED) == rows


# --- damaged ---------------------------------------------------------------------------------------------------------


def test_rows_around_a_damaged_page_are_saved_and_the_result_restores(shop: Shop) -> None:
    rows = shop.rows()
    before = schema(shop, shop.db_path)
    shop.content()
    spoil(shop, 21)
    done = rescue(shop, shop.db_path)
    assert done.code == 0, done.text
    found = shop.rows(shop.path / RESCUED)
    assert others(found) == others(rows)
    assert set(found["customers"]) < set(rows["customers"])
    assert len(rows["customers"]) - len(found["customers"]) <= 2  # those two of that page
    assert re.search(rf"^ +customers +{len(found['customers'])} +rowids \d", done.err, re.MULTILINE), done.text
    assert schema(shop, shop.path / RESCUED) == before
    assert shop.restore("--force", shop.path / RESCUED).code == 0
    assert shop.rows() == found


def test_beginning_of_a_database_of_which_only_half_is_left_is_saved(shop: Shop) -> None:
    rows = shop.rows()
    shop.content()
    os.truncate(shop.db_path, shop.db_path.stat().st_size // 2 + 100)
    done = rescue(shop, shop.db_path)
    assert done.code == 0, done.text
    found = shop.rows(shop.path / RESCUED)
    assert 10 < len(found["customers"]) < 100
    assert set(found["customers"]) < set(rows["customers"])
    assert " and higher" in done.err


@ONE_MODE
@pytest.mark.parametrize("length", [16, 100])
def test_plain_database_whose_header_is_damaged_is_saved(shop: Shop, length: int) -> None:
    rows = shop.rows()
    shop.content()
    with shop.db_path.open("r+b") as file:
        file.write(os.urandom(length))
    done = rescue(shop, shop.db_path)
    assert done.code == 0, done.text
    assert shop.rows(shop.path / RESCUED) == rows


def test_table_that_cannot_be_read_at_all_is_said_to_be_lost(shop: Shop) -> None:
    rows = shop.rows()
    with closing(shop.connect()) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'customers'").fetchone()[0]
    shop.content()
    spoil(shop, root)
    done = rescue(shop, shop.db_path)
    assert done.code == 0, done.text
    assert re.search(r"^ +customers +0 +all$", done.err, re.MULTILINE), done.text
    assert others(shop.rows(shop.path / RESCUED)) == others(rows)


def test_nothing_that_can_be_read_is_said_and_leaves_no_file(shop: Shop) -> None:
    shop.db_path.write_bytes(os.urandom(50_000 // 4096 * 4096))
    done = rescue(shop, shop.db_path)
    assert done.code == 5, done.text
    assert not (shop.path / RESCUED).exists()


# --- what else can be wrong ------------------------------------------------------------------------------------------


def test_wrong_setting_is_named(make_shop: MakeShop) -> None:
    shop = make_shop("sqlcipher")
    tar = pack(shop)
    for settings in ({"DB_PASS": "another"}, {"DB_ENCRYPTION": "false"}):
        done = rescue(shop, tar, env=settings)
        assert (done.code, "DB_PASS='…'" in done.err) == (5, True), done.text
    plain = make_shop("sqlite")
    assert rescue(shop, pack(plain)).code == 0
    assert plain.rows(shop.path / RESCUED) == plain.rows()


@ONE_MODE
def test_file_that_is_there_is_not_overwritten(shop: Shop) -> None:
    before = shop.snapshot()
    done = shop.run("database_backup.py", "rescue", pack(shop), "--to", shop.db_path)
    assert done.code == 3, done.text
    assert shop.snapshot() == before


@ONE_MODE
def test_schema_that_would_do_more_than_make_a_database_does_not(shop: Shop) -> None:
    shop.content()
    with closing(shop.connect()) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql = 'ATTACH ''evil.db'' AS evil' WHERE name = 'turnover'")
    spoil(shop, 21)
    done = rescue(shop, shop.db_path)
    assert done.code == 0, done.text
    assert "turnover is missing" in done.err
    assert list(shop.path.rglob("evil.db")) == []


@ONE_MODE
def test_names_in_an_archive_are_nobodys_files(shop: Shop) -> None:
    tar = shop.path / "evil.tar"
    with tarfile.open(tar, "w") as archive:
        archive.add(shop.db_path, arcname="../../../../../tmp/evil.db")
        link = tarfile.TarInfo("/evil-wal")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    done = rescue(shop, tar)
    assert done.code == 0, done.text
    assert shop.rows(shop.path / RESCUED) == shop.rows()
    assert not Path("/tmp/evil.db").exists()


@pytest.mark.deep
@pytest.mark.needs("strace")
def test_nothing_is_written_but_in_ram(shop: Shop) -> None:
    shop.content()
    spoil(shop, 21)
    log = shop.path / "strace.log"
    wrapper = ("strace", "-f", "-qq", "-y", "-o", str(log), "-e", "trace=openat,open,creat,rename")
    done = shop.run("database_backup.py", "rescue", pack(shop), wrapper=wrapper)
    assert done.code == 0, done.text
    Path(done.out.strip()).unlink()
    opened = re.findall(r'open\w*\([^"]*"([^"]+)", \S*O_(?:WRONLY|RDWR|CREAT)', log.read_text())
    assert any(RESCUED in path for path in opened)
    ram = ("/dev/shm/", "/run/restore-backup-", "/dev/null", "/proc/", "/dev/tty")
    assert [path for path in opened if not path.startswith(ram) and "__pycache__" not in path] == []
