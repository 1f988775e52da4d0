"""What will be lost: what an operator reads before the question, and what --json holds of it."""

import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import MakeShop
from tests.support.shop import Completed, Shop

Verify = Callable[..., Completed]

NO_LIVE_DATABASE = "lost      there is no live database to compare with"


@pytest.fixture
def shop(make_shop: MakeShop, mode: str) -> Shop:
    """A shop whose backups need no key, so that nothing else is said."""
    return make_shop(mode, PGP_PUBLIC_KEY_BASE64=None)


def execute(shop: Shop, *statements: str) -> None:
    """Change the live database."""
    with closing(shop.connect()) as connection:
        for statement in statements:
            connection.execute(statement)


def comparison(done: Completed) -> list[str]:
    """The lines of the comparison and of the facts below it, as they stand above a question."""
    assert done.code == 0, done.text
    lines = [line.removeprefix("   ") for line in done.err.splitlines() if line.startswith("   ")]
    return [line for line in lines if not line.startswith("proof ")]  # which comes when all is done


def verify(shop: Shop, backup: Path, *args: object) -> Completed:
    """--verify-only, which must not touch anything."""
    before = shop.snapshot()
    done = shop.restore(backup, "--verify-only", *args)
    assert shop.snapshot() == before
    return done


def test_rows_schema_version_and_size_of_both_are_compared(shop: Shop) -> None:
    execute(shop, "PRAGMA user_version = 3", "CREATE TABLE old (a)", "INSERT INTO old VALUES (1), (2)")
    backup = shop.create_backup()
    shop.change_data()
    execute(
        shop, "PRAGMA user_version = 4", "DROP TABLE old", "CREATE TABLE new (a)", "CREATE INDEX by_day ON orders (day)"
    )
    lines = comparison(verify(shop, backup))
    assert [re.sub(" +", " ", line) for line in lines[:7]] == [
        "table now backup",
        "audit 42 0 -42 rows",
        "customers 101 100 -1 row",
        "new 0 none table will be gone: 0 rows",
        "orders 258 300 +42 rows",
        "old none 2 new table: 2 rows",
        "1 other table with unchanged row count",
    ]
    facts = dict(line.split(maxsplit=1) for line in lines[7:])
    assert facts["backup"] == backup.name
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+, just now", facts["made"])
    assert re.fullmatch(r"[\d.]+ kB, 5 tables", facts["size"])
    assert facts["version"] == "user_version 4 now, 3 in the backup"
    assert facts["schema"] == "differs: index by_day, table new, table old"
    assert facts["services"] == "Docker is not touched"
    assert lines[-1].split(maxsplit=1) == ["lost", "at least 43 rows in 2 tables; 1 table will be gone"]


def test_what_loses_most_comes_first_and_all_fits_on_a_screen(shop: Shop) -> None:
    """Two hundred tables differ, one by much, one has a long name; the question must still find room."""
    long = "a table whose name is too long for a line of a terminal, and then some, and still some more"
    numbered = [f"t{number:03}" for number in range(200)]
    execute(shop, *(f'CREATE TABLE "{name}" (a)' for name in ("zz", long, *numbered)))
    backup = shop.create_backup()
    execute(shop, *(f'INSERT INTO "{name}" VALUES (1)' for name in (long, *numbered)))
    execute(shop, *["INSERT INTO zz VALUES (1), (2), (3)"] * 2, "PRAGMA user_version = 4")
    execute(shop, *(f"CREATE INDEX i{name} ON {name} (a)" for name in numbered))
    done = verify(shop, backup, "--json")
    lines = comparison(done)
    assert lines[1].split() == ["zz", "6", "0", "-6", "rows"]
    assert "193 more tables with fewer or more rows" in lines
    assert len(lines) <= 22
    assert [line for line in lines if len(line) > 77] == []
    assert any("a table whose name" in line and line.split()[-4:] == ["1", "0", "-1", "row"] for line in lines)
    assert json.loads(done.out)["tables"][long] == {"live": 1, "backup": 0}


def test_names_in_a_backup_cannot_write_on_the_screen(shop: Shop) -> None:
    """Whoever has the public key can make a backup; a table's name could erase the lines above it."""
    evil = "x\x1b[2J\r\noutcome: restored"
    execute(shop, f'CREATE TABLE "{evil}" (a)', f'INSERT INTO "{evil}" VALUES (1)')
    backup = shop.create_backup()
    execute(shop, f'DROP TABLE "{evil}"')
    done = shop.restore(backup, "--force")
    assert done.code == 0, done.text
    assert "x?[2J??outcome: restored" in done.err
    assert "\x1b" not in done.text
    log = (shop.backups / "restore.log").read_text()
    assert [line.split(" ", 2)[2] for line in log.splitlines() if " outcome: " in line and "x" not in line[-30:]] == [
        "outcome: restored"
    ]


def test_live_database_that_is_missing_or_cannot_be_read_is_said(shop: Shop) -> None:
    backup = shop.create_backup()
    shop.db_path.write_bytes(b"noise" * 5000)
    done = verify(shop, backup)
    assert any("live database" in warning for warning in done.report["warnings"]), done.text
    assert comparison(done)[-1].split(maxsplit=1) == ["lost", "not known: the live database cannot be read"]
    for path in shop.db_path.parent.iterdir():
        path.unlink()
    done = verify(shop, backup)
    assert not any("live database" in warning for warning in done.report["warnings"]), done.text
    assert comparison(done)[-1] == NO_LIVE_DATABASE


def test_another_target_is_what_it_is_compared_with(shop: Shop, tmp_path: Path) -> None:
    backup = shop.create_backup()
    shop.change_data()
    target = tmp_path / "copy.db"
    assert comparison(verify(shop, backup, "--target-path", target))[-1] == NO_LIVE_DATABASE
    assert shop.restore(backup, "--target-path", target).code == 0
    assert comparison(verify(shop, backup, "--target-path", target))[0] == "unchanged row count in every table"
