"""restore_backup.py --check: on a shop as it should be, with containers, and for a user who may not look at much."""

from contextlib import closing
from typing import Any

import pytest

from tests.conftest import ONE_MODE, MakeShop, Prepare, StartTerminal
from tests.support.containers import Bot, Compose
from tests.support.keys import ECC, GpgHome
from tests.support.scene import BOTH_COMPOSES
from tests.support.shop import DB_PASS, Completed, Shop, everything, open_way_to_python


def checks(done: Completed) -> dict[str, list[dict[str, str]]]:
    """What each check has found, by its name."""
    found: dict[str, list[dict[str, str]]] = {}
    for check in done.report["checks"]:
        assert {*check} == {"name", "status", "text", "hint"}
        found.setdefault(check["name"], []).append(check)
    return found


def problems(done: Completed) -> set[str]:
    return {check["name"] for check in done.report["checks"] if check["status"] == "problem"}


def test_shop_as_it_should_be_passes_without_a_terminal_and_untouched(shop: Shop) -> None:
    backup = shop.create_backup()
    before = everything(shop)
    done = shop.restore("--check")
    assert (done.code, done.report["outcome"], done.report["error"]) == (0, "checked", None), done.text
    found = checks(done)
    assert {name for name, items in found.items() for item in items if item["status"] == "warning"} == set()
    assert backup.name in found["newest-backup"][0]["text"]
    (opened,) = found["opened-by"]
    assert "shop <shop@example.org>" in opened["text"]
    if shop.mode == "sqlcipher":
        assert "opens with DB_PASS" in found["database"][0]["text"]
    assert everything(shop) == before
    assert not (shop.backups / "restore.log").exists()
    assert DB_PASS not in done.text


@ONE_MODE
def test_all_that_is_wrong_is_told_at_once_and_nothing_is_asked(
    make_shop: MakeShop, terminal: StartTerminal, gpg: GpgHome, mode: str
) -> None:
    soon = gpg.generate(ECC, "soon", None, "Expire-Date: 20d\n")
    shop = make_shop(mode, RUNTIME_ENVIRONMENT="PROD", PGP_PUBLIC_KEY_BASE64=soon.public_b64, DATA_DIRS="canary")
    backup = shop.create_backup()
    backup.write_bytes(backup.read_bytes()[:-1])
    (shop.path / ".env").chmod(0o644)
    asked = terminal(shop, "--check", "--json")
    assert asked.ended == (3, "check-found-problems")
    assert "Which compose file" not in asked.output
    done = shop.restore("--check", as_json=False)
    assert done.code == 3
    for sign, name in (("❌ ", "docker"), ("❌ ", "checksum"), ("⚠️  ", "settings"), ("⚠️  ", "public-key")):
        assert any(line.startswith(f"{sign}{name}: ") for line in done.out.splitlines()), done.out
    assert "❌ a restore would be refused: 2 problems" in done.err
    assert done.err.splitlines()[-1].endswith(" --check")
    assert "19 days" in done.out
    assert "canary" not in done.text


@ONE_MODE
def test_link_that_others_may_have_made_is_a_problem_as_it_is_for_a_restore(shop: Shop) -> None:
    shop.create_backup()
    shop.db_path.rename(shop.path / "real.db")
    shop.db_path.symlink_to("../real.db")
    shop.db_path.parent.chmod(0o777)
    done = shop.restore("--check")
    assert done.ended == (3, "check-found-problems"), done.text
    assert problems(done) == {"database"}


@ONE_MODE
@pytest.mark.needs("root")
def test_what_a_user_may_not_look_at_is_never_called_right(make_shop: MakeShop, mode: str) -> None:
    shop = make_shop(mode)
    shop.create_backup()
    shop.db_path.parent.chmod(0o700)
    shop.backups.chmod(0o700)
    for folder in (shop.path, *shop.path.parents):
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(folder.stat().st_mode | 0o011)
    open_way_to_python()
    user = ["env", "--unset=HOME", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    (shop.path / ".env").chmod(0o644)
    done = shop.restore("--check", "--allow-swap", wrapper=user)
    assert done.ended == (3, "check-found-problems"), done.text
    found = checks(done)
    hidden = ("database", "in-use", "last-restore", "newest-backup", "checksum", "opened-by", "room")
    assert [name for name in hidden for item in found[name] if item["status"] == "ok"] == []
    assert {"rights", "newest-backup"} <= problems(done)
    assert [item["status"] for item in found["rights"]] == ["problem"] * 2  # the database's folder, and the backups'
    (shop.path / ".env").chmod(0o600)
    closed = shop.restore("--check", "--allow-swap", wrapper=user)
    assert closed.ended == (3, "check-found-problems"), closed.text
    assert problems(closed) == {"settings"}
    assert {name for name, items in checks(closed).items() if items[0]["status"] == "ok"} <= {
        "packages",
        "gpg",
        "memory",
    }


@BOTH_COMPOSES
@pytest.mark.docker
def test_bot_is_compared_with_the_settings(prepare: Prepare, mode: str, compose: Compose) -> None:
    shop = prepare(mode, compose, Bot(health=True), DB_NAME="shop.db").shop
    before = shop.state()
    right = shop.restore("--check")
    assert right.code == 0, right.text
    found = checks(right)
    for name in ("docker", "mounts", "bot-settings", "services"):
        assert [item["status"] for item in found[name]] == ["ok"], right.text
    assert "bot will be stopped" in found["services"][0]["text"]
    assert shop.state() == before

    (shop.path / "elsewhere").mkdir()
    with closing(shop.connect(shop.path / "elsewhere/shop.db")) as connection:
        connection.execute("CREATE TABLE customers (id)")
    elsewhere = shop.restore("--check", env={"DATA_DIR": "elsewhere"})
    assert elsewhere.ended == (3, "check-found-problems"), elsewhere.text
    assert "mounts" in problems(elsewhere)
    assert str(shop.path / "data") in checks(elsewhere)["mounts"][0]["text"]

    settings: dict[str, Any] = {"DB_ENCRYPTION": "true", "DB_PASS": "s3cret of mine", "DB_NAME": "other.db"}
    other = shop.restore("--check", env=settings)
    assert other.ended == (3, "check-found-problems"), other.text
    told = " ".join(item["text"] for item in checks(other)["bot-settings"] if item["status"] == "problem")
    assert "DB_NAME" in told
    assert ("DB_PASS" in told) == (mode == "sqlcipher")
    assert "s3cret" not in other.text
    assert DB_PASS not in other.text
    assert shop.state() == before
