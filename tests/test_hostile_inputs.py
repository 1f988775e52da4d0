"""What the bot's user can plant in data/ and backups/, and what a backup of a stranger's holds, against whole runs."""

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from backuplib.target import Target
from tests.conftest import MakeShop
from tests.support.inspected import FakeDocker, inspect_data, mounted
from tests.support.journals import begun_journal
from tests.support.shop import Shop


@pytest.fixture
def shop(make_shop: MakeShop) -> Shop:
    """A plain shop whose backups need no key."""
    return make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None)


# --- nothing of a database in the log --------------------------------------------------------------------------------

CANARY, ROWS = "Canary", 48_151
FINDS = f"CREATE TABLE {CANARY}_t ({CANARY}_c INTEGER CONSTRAINT {CANARY}_check CHECK ({CANARY}_c < 5))"


def with_canaries(shop: Shop, table: str) -> None:
    """Tables whose names and numbers of rows are known wherever they turn up, and a row that a constraint refuses."""
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) SELECT i FROM n"
    with closing(shop.connect()) as connection:
        connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY)")
        connection.execute(f"INSERT INTO {table} {numbers}")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(FINDS)
        connection.execute(f"INSERT INTO {CANARY}_t VALUES (7)")
        connection.commit()


def test_log_names_and_counts_nothing_of_a_database(shop: Shop) -> None:
    """It lies on a disk, beside backups that are encrypted so that nobody reads there what the database holds."""
    with_canaries(shop, f"{CANARY}_backup")
    backup = shop.create_backup()
    with closing(shop.connect()) as connection:
        connection.execute(f"ALTER TABLE {CANARY}_backup RENAME TO {CANARY}_live")
    dump, torn = shop.backups / "dump.db", shop.backups / "torn.db"
    dump.write_text(f"BEGIN;\n{FINDS};\nINSERT INTO {CANARY}_t VALUES (1);\nCOMMIT;\n")
    torn.write_text(f"BEGIN;\n{FINDS};\nINSERT INTO {CANARY}_other VALUES (1);\nCOMMIT;\n")
    shown = ""
    for named, code in ((backup, 0), (torn, 5), (dump, 0)):
        done = shop.restore(named, "--force")
        assert done.code == code, done.text
        shown += done.err
    with closing(shop.connect()) as connection:  # no SQLite reads this any more
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(f"UPDATE sqlite_master SET sql = 'CREATE {CANARY}'")
        connection.commit()
    done = shop.restore(dump, "--force")
    assert done.code == 0, done.text
    shown += done.err
    for canary in (f"{CANARY}_t", f"{CANARY}_live", f"{CANARY}_other", f"{ROWS:,}"):
        assert canary in shown, f"the operator reads it: {shown}"
    for name in ("restore.log", "last-restore.json"):
        kept = (shop.backups / name).read_text()
        assert [line for line in kept.splitlines() if CANARY in line or f"{ROWS:,}" in line or str(ROWS) in line] == []
    log = (shop.backups / "restore.log").read_text()
    assert "Database restored successfully" in log
    assert "unusable-dump" in log


# --- a planted journal -----------------------------------------------------------------------------------------------


@contextmanager
def journal(shop: Shop, **values: object) -> Iterator[Path]:
    """A journal of a restore that is to be taken back."""
    target = Target(shop.db_path.resolve())
    begun_journal(target, **values).write()
    yield target.journal
    target.journal.unlink(missing_ok=True)


@pytest.mark.needs("root")
def test_planted_journal_starts_and_stops_only_what_has_the_database(make_shop: MakeShop, tmp_path: Path) -> None:
    shop = make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None, RUNTIME_ENVIRONMENT="PROD")
    file = shop.path / "docker-compose.prod.yml"
    file.write_text("services: {}\n")
    docker = FakeDocker(tmp_path / "docker")
    labels = {"project.working_dir": str(shop.path), "project.config_files": str(file)}
    stopped = {"State_Running": False, "State_Status": "exited", "State_Health": None, "Config_Healthcheck": None}
    running: dict[str, object] = {"State_Health": None, "Config_Healthcheck": None, "Config_Env": []}
    folders = {"bot": [mounted(shop.db_path.parent)], "redis": [], "db": [mounted(shop.db_path.parent)]}
    for service, mounts in folders.items():
        own = labels | ({"project": "neighbour", "project.config_files": "/srv/x.yml"} if service == "db" else {})
        docker.has(inspect_data(service=service, Mounts=mounts, labels=own, **stopped))
        docker.has(inspect_data(service=service, Mounts=mounts, labels=own, **running), after="start")
    path = {"PATH": f"{docker.folder}:{os.environ['PATH']}"}
    names = [f"shopbot-{service}-1" for service in ("bot", "redis")]

    with journal(shop, containers=names) as planted:
        os.chown(planted, 1000, 1000)
        done = shop.restore("--recover", env=path)
    assert done.code == 0, done.text
    assert "start" not in {call[0] for call in docker.calls}
    assert "docker start shopbot-bot-1" in done.err

    with journal(shop, containers=names):
        done = shop.restore("--recover", env=path)
    assert done.code == 0, done.text
    started = [call[1:] for call in docker.calls if call[0] in {"start", "stop"}]
    assert started == [[f"{b'bot'.hex():0<64}"]]
    assert "shopbot-redis-1" in done.err

    with journal(shop, containers=["shopbot-db-1"]):
        done = shop.restore("--recover", env=path)
    assert done.ended == (9, "services-down"), done.text
    assert len([call for call in docker.calls if call[0] in {"start", "stop"}]) == 1


@pytest.mark.needs("root")
def test_journal_of_others_exchanges_nothing_under_who_uses_the_database(shop: Shop) -> None:
    other = shop.db_path.with_name("shop.db.backup-20250130-153045")
    other.write_bytes(b"the bot's choice")
    rows, inode = shop.rows(), shop.db_path.stat().st_ino
    with journal(shop, state="rolling back", new_inode=inode) as planted, shop.held_open():
        os.chown(planted, 1000, 1000)
        done = shop.restore("--recover")
        assert done.ended == (3, "unfinished-restore"), done.text
        assert "rm data/shop.db.restore-state.json" in done.error["hint"]
        assert shop.rows_in_place() == rows


def test_recovery_of_the_files_alone_calls_no_database_whole_where_there_is_none(shop: Shop) -> None:
    shop.db_path.unlink()
    with journal(shop, existed=False, containers=["shopbot-bot-1"]):
        done = shop.restore("--recover", "--no-restart")
    assert (done.code, done.report["outcome"]) == (0, "services pending"), done.text
    assert "There is no database" in done.err
    assert "whole" not in done.err


# --- what never ends -------------------------------------------------------------------------------------------------

SPARSE = {"-wal": 9 * 10**9, "-journal": 9 * 10**9, "-shm": 9 * 10**9}


@pytest.mark.parametrize("suffix", SPARSE)
def test_sparse_sidecar_is_refused_at_once(shop: Shop, suffix: str) -> None:
    backup = shop.create_backup()
    planted = Path(f"{shop.db_path}{suffix}")
    planted.touch()
    os.truncate(planted, SPARSE[suffix])
    began = time.monotonic()
    assert shop.restore(backup, "--force").ended == (3, "unsuitable-target")
    assert shop.run("database_backup.py", "create").code == 3
    assert time.monotonic() - began < 60, "copied, it would fill the memory"


def test_sparse_backup_delays_nothing(shop: Shop) -> None:
    """It costs the bot nothing, and would take hours to read."""
    backup = shop.create_backup()
    planted = shop.backups / "db_backup_20250131_120000.db.gz.gpg"
    planted.touch()
    os.truncate(planted, 3 * 10**12)
    planted.with_name(f"{planted.name}.sha256").write_text(f"{'0' * 64}  {planted.name}\n")
    listed = {item["path"]: item["checksum"] for item in shop.restore("--list").report["backups"]}
    assert listed == {str(planted): "unreadable", str(backup): "ok"}
    assert shop.restore(planted, "--force").ended == (3, "not-a-backup")
    assert shop.restore(backup, "--force").code == 0


def test_plain_backup_under_an_encrypted_name_is_refused(shop: Shop) -> None:
    backup = shop.create_backup()
    forged = backup.rename(backup.with_name(f"{backup.name}.gpg"))
    before = shop.snapshot()
    assert shop.restore(forged, "--force").ended == (3, "not-encrypted-as-named")
    assert shop.snapshot() == before
