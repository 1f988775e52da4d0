"""What --list says of the last restore, and what is asked before one: facts only."""

import json
import re
from pathlib import Path

import pytest

from backuplib.console import Console, Report
from backuplib.credentials import Credentials
from backuplib.processes import Signals
from backuplib.terminal import Terminal as OwnTerminal
from config import load_settings
from restore_backup import Options, Restorer
from tests.conftest import MakeShop, StartTerminal
from tests.support.shop import Shop

QUESTION = "⚠️  Warning: This will restore over {} database. Continue? [y/N] "


@pytest.fixture
def plain_shop(make_shop: MakeShop) -> tuple[Shop, Path]:
    """A shop without keys, and a backup of other rows than it has."""
    shop = make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None)
    return shop, shop.back_up_then_change()


def test_latest_is_the_newest_that_was_not_made_before_a_restore(plain_shop: tuple[Shop, Path]) -> None:
    shop, backup = plain_shop
    expected = shop.rows()
    newest = shop.create_backup()
    assert shop.restore("--force", backup).code == 0  # leaves a safety backup that is newer
    done = shop.restore("--force", "latest")
    assert done.code == 0, done.text
    assert done.report["backup"] == str(newest)
    assert re.search(
        rf"latest is {newest.name}.*the one before it: {backup.name}.*left out: 1 newer", done.err, re.DOTALL
    )
    assert shop.rows() == expected


def record(shop: Shop) -> bytes:
    return (shop.backups / "last-restore.json").read_bytes()


def test_only_what_touched_something_counts_and_an_undo_is_told(plain_shop: tuple[Shop, Path]) -> None:
    shop, backup = plain_shop
    assert shop.restore("--list").report["last_restore"] is None
    restored = shop.restore("--force", backup)
    assert restored.code == 0, restored.text
    before = record(shop)
    damaged = shop.backups / "db_backup_20240101_000000.db.gz"
    damaged.write_bytes(backup.read_bytes()[:1000])
    nothing = shop.restore("--recover")
    assert (nothing.code, nothing.report["outcome"]) == (0, "nothing to recover")
    assert "outcome: nothing to recover" in (shop.backups / "restore.log").read_text()
    assert shop.restore("--force", damaged).code == 5
    assert shop.restore("--verify-only", backup).code == 0
    assert record(shop) == before
    told = shop.restore("--list").report
    last = told["last_restore"]
    safety = restored.report["safety_backup"]
    assert (last["outcome"], last["live"], last["undoes"]) == ("restored", "new", None)
    assert (last["backup"], last["target"], last["safety_backup"]) == (str(backup), str(shop.db_path), safety)
    kinds = {item["path"]: item["kind"] for item in told["backups"]}
    assert (kinds[safety], kinds[str(backup)]) == ("before a restore", "ordinary")
    undone = shop.restore("--force", safety)
    assert undone.code == 0, undone.text
    listed = shop.restore("--list", as_json=False)
    assert re.search(r"^last restore: .*, undone$", listed.out, re.MULTILINE), listed.text
    assert max(map(len, listed.out.splitlines()[1:4])) <= 80
    assert json.loads(record(shop))[str(shop.db_path)]["undoes"] == last["ended"]


def test_restore_into_another_file_says_nothing_of_the_configured_database(plain_shop: tuple[Shop, Path]) -> None:
    shop, backup = plain_shop
    assert shop.restore("--force", "--target-path", shop.path / "other.db", backup).code == 0
    assert shop.restore("--list").report["last_restore"] is None


def test_database_that_was_put_there_by_hand_is_not_called_the_restored_one(plain_shop: tuple[Shop, Path]) -> None:
    shop, backup = plain_shop
    assert shop.restore("--force", backup).code == 0
    copy = shop.db_path.read_bytes()
    shop.db_path.unlink()
    shop.db_path.write_bytes(copy)
    listed = shop.restore("--list")
    assert listed.report["last_restore"]["live"] == "replaced", listed.text


# --- the question ----------------------------------------------------------------------------------------------------


@pytest.mark.needs("root")
def test_question_stands_below_what_is_about_to_happen(plain_shop: tuple[Shop, Path], terminal: StartTerminal) -> None:
    """Also where it comes first."""
    shop, backup = plain_shop
    zone = {"RUNTIME_ENVIRONMENT": "PROD", "TZ": "Europe/Berlin", "NO_COLOR": "1"}
    at = terminal(shop, backup, "--no-restart", "--stop-first", env=zone)
    at.expect(re.escape(QUESTION.format("production")))
    *_, target, named, made, signed, services, _ = at.output.splitlines()
    assert target.split(maxsplit=1) == ["target", str(shop.db_path)]
    assert named.split() == ["backup", backup.name]
    assert re.fullmatch(r" +made +2025-01-30 12:00:00 CET, \d+ days ago", made)
    assert signed.split(maxsplit=1) == ["signed", "no: there is no signature beside it"]
    assert services.split(maxsplit=1) == ["services", "Docker is not touched"]
    at.send("n\n")
    assert at.wait() == 10


@pytest.mark.parametrize(
    ("environment", "file", "kind"),
    [
        ("PROD", None, "production"),
        ("PROD", "other.yml", "production"),
        ("DEV", None, "development"),
        ("DEV", "docker-compose.prod.yml", "production"),
        ("TEST", "docker-compose.dev.yml", "development"),
        ("TEST", None, "the configured"),
        ("", "docker-compose.prod.yml", "production"),
        ("", None, "the configured"),
    ],
)
def test_question_says_production_for_production_only(
    tmp_path: Path, environment: str, file: str | None, kind: str
) -> None:
    restorer = Restorer(
        load_settings(tmp_path, {"RUNTIME_ENVIRONMENT": environment}),
        Options(compose_file=tmp_path / file if file else None),
        terminal=OwnTerminal(),
        credentials=Credentials(OwnTerminal()),
        report=Report(Console(), Signals()),
    )
    assert restorer.kind_of_database() == kind
