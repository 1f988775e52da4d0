"""Who watches the shop is told how commands end, and what a bad watcher costs; `status` from the command line."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ONE_MODE
from tests.support import listener as answers
from tests.support.keys import Keys
from tests.support.listener import Answer, Listener, listening, status
from tests.support.plugin import metrics, plugin
from tests.support.shop import DB_PASS, Shop

TOKEN = "to-ken-4711"
CANARIES = (DB_PASS, "customers", "orders", "came after the backup", "db_backup_")


@pytest.fixture
def server() -> Iterator[Listener]:
    with listening() as found:
        yield found


def warnings(err: str) -> list[str]:
    """The lines that say who could not be told."""
    return [line for line in err.splitlines() if "told" in line]


@pytest.mark.needs("apprise")
@ONE_MODE
def test_commands_tell_how_they_end_and_no_secret(shop: Shop, keys: Keys, server: Listener) -> None:
    json_url = server.url.replace("http", "json")
    shop.write_env(PING_URL=f"{server.url}/{TOKEN}", NOTIFY_URLS=f"{json_url}/notified", DB_PASS=DB_PASS)
    backup = shop.back_up_then_change()
    assert server.paths == [f"/{TOKEN}/start", f"/{TOKEN}"]
    server.requests.clear()

    done = shop.restore(backup, "--force", key=keys.rsa)
    assert done.code == 0, done.text
    assert server.paths.index(f"/{TOKEN}/start") < server.paths.index(f"/{TOKEN}")
    (notified,) = [json.loads(body) for _, path, body in server.requests if path == "/notified"]
    assert notified["title"].endswith(": restored")
    assert str(shop.db_path) in notified["message"]
    server.requests.clear()

    done = shop.restore(backup, "--force", key=keys.other)
    assert done.code == 4, done.text
    assert sorted(server.paths) == sorted([f"/{TOKEN}/fail", "/notified"])
    assert all(f"exit code 4, {done.error['id']}" in body for _, _, body in server.requests)
    server.requests.clear()

    assert shop.restore(backup, "--verify-only").code == 3  # no key
    assert server.paths == []
    sent = b"".join(server.raw).decode()
    for canary in (*CANARIES, str(keys.rsa.passphrase), str(keys.other.passphrase)):
        assert canary not in sent
    assert not [line for line in done.err.splitlines() if TOKEN in line]


@ONE_MODE
def test_wrong_settings_are_told(shop: Shop, server: Listener) -> None:
    shop.write_env(PING_URL=f"{server.url}/{TOKEN}", DB_ENCRYPTION="yes")
    assert shop.run("database_backup.py", "prune", "--dry-run").code == 3
    assert server.paths == []  # which would do nothing
    assert shop.run("database_backup.py", "create").code == 3
    assert server.paths == [f"/{TOKEN}/start", f"/{TOKEN}/fail"]
    assert server.requests[-1][2].endswith(": exit code 3, wrong-setting")


LONG = pytest.mark.long


@ONE_MODE
@pytest.mark.parametrize(
    "answer",
    [
        status(500, body=b"\x1b[2Jforeign words"),
        pytest.param(answers.drips, marks=LONG),
        pytest.param(answers.never_ends, marks=LONG),
        pytest.param(answers.redirects_without_end, marks=LONG),
        pytest.param(answers.is_silent, marks=LONG),
    ],
)
def test_bad_watcher_changes_nothing(shop: Shop, server: Listener, answer: Answer) -> None:
    server.answer = answer
    json_url = server.url.replace("http", "json")
    shop.write_env(PING_URL=f"{server.url}/{TOKEN}", NOTIFY_URLS=f"{json_url}/{TOKEN}")
    done = shop.run("database_backup.py", "create", timeout=30)
    assert done.code == 0
    assert Path(done.out.strip()).is_file()
    expected = [] if answer is answers.never_ends else ["⚠️  PING_URL (127.0.0.1) could not be told"]
    assert [line.partition(":")[0] for line in warnings(done.err)] == expected
    assert (TOKEN in done.text, "foreign" in done.text) == (False, False)


@ONE_MODE
def test_status_from_the_command_line(shop: Shop) -> None:
    shop.create_backup()
    done = shop.run("database_backup.py", "status")
    assert (done.code, plugin(done.out).status, done.err) == (0, "OK", "")
    done = shop.run("database_backup.py", "status", "--prometheus")
    assert (done.code, "shopbot_backup_status" in metrics(done.out)) == (0, True)
    shop.write_env(DB_ENCRYPTION="yes")
    done = shop.run("database_backup.py", "status", "--json")
    report = json.loads(done.out)
    assert (done.code, report["status"], report["exit_code"], len(report["public_keys"])) == (3, "UNKNOWN", 3, 1)
    done = shop.run("database_backup.py", "status", "--bogus")
    assert (done.code, plugin(done.out).status) == (3, "UNKNOWN")
    assert "Traceback" not in done.text
