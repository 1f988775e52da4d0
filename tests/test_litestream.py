"""Point in time with Litestream: RUNBOOK.md's blocks, run word for word, and what it says that Litestream cannot do."""

import os
import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlcipher3

from tests.conftest import MakeShop
from tests.support.containers import wait_until
from tests.support.documents import blocks_for
from tests.support.needs import PATH, find
from tests.support.shop import Completed, Rows, Shop
from tests.support.ssh import make_venv, run_bash

pytestmark = pytest.mark.needs("litestream")

CONFIGURATION = """\
socket:
  enabled: true
  path: {ram}.socket
dbs:
  - path: {shop.db_path}
    replica:
      type: file
      path: {folder}/replica
      sync-interval: 50ms
"""

# On the PATH of the host: Litestream with its configuration here instead of in /etc, and what starts and stops it.
LITESTREAM = '#!/bin/sh\ncommand=$1\nshift\nexec {program} "$command" -config {folder}/litestream.yml "$@"\n'
SYSTEMCTL = """\
#!/bin/sh
case "$*" in
"start litestream")
    litestream replicate >>{folder}/log 2>&1 &
    echo $! >{folder}/pid ;;
"stop litestream")
    kill $(cat {folder}/pid)
    for i in $(seq 300); do [ -e /proc/$(cat {folder}/pid)/exe ] || exit 0; sleep 0.1; done
    exit 1 ;;
*) exit 1 ;;
esac
"""


@dataclass
class Replicated:
    """A shop whose database Litestream replicates into `folder`; what comes back goes to `ram` and `.db`."""

    shop: Shop
    folder: Path
    ram: Path

    def type(self, script: str) -> Completed:
        """What is typed in the shop's folder; the first command that fails ends it."""
        env = self.shop.environment({"PATH": f"{self.folder}:{PATH}"})
        script = script.replace("/dev/shm/shop.db", f"{self.ram}.db")
        done = run_bash(script, self.shop.path, env, 60, ("/bin/bash", "-euo", "pipefail"))
        assert done.code == 0, done.text
        return done

    def settle(self) -> str:
        """Wait until the replica has all that was written; returns that moment."""
        wait_until(Path(f"{self.ram}.socket").exists, "Litestream runs")
        self.type(f"{find('litestream')} sync -wait -socket {self.ram}.socket {self.shop.db_path}")
        return datetime.now(UTC).isoformat().replace("+00:00", "Z")

    def rows(self, path: Path | None = None) -> Rows:
        """The rows of the shop, without what Litestream keeps for itself in the database."""
        return {name: rows for name, rows in self.shop.rows(path).items() if not name.startswith("_litestream_")}

    def replica(self, options: str = "") -> Rows:
        """The rows that the replica has, now or at a moment."""
        path = self.folder / "replica.db"
        self.type(f'litestream restore -o {path} {options} "$(realpath data)/shop.db"')
        rows = self.rows(path)
        path.unlink()
        return rows


@pytest.fixture
def replicated(make_shop: MakeShop, tmp_path: Path) -> Iterator[Replicated]:
    """Plain SQLite, and Litestream at work."""
    folder = tmp_path / "litestream"
    folder.mkdir()
    one = Replicated(make_shop("sqlite"), folder, Path(f"/dev/shm/litestream-{uuid.uuid4().hex[:10]}"))
    make_venv(one.shop.path)
    values = {"shop": one.shop, "folder": folder, "ram": one.ram, "program": find("litestream")}
    for name, text in {"litestream.yml": CONFIGURATION, "litestream": LITESTREAM, "systemctl": SYSTEMCTL}.items():
        (folder / name).write_text(text.format(**values))
        (folder / name).chmod(0o755)
    try:
        one.type("systemctl start litestream")
        yield one
    finally:
        with suppress(ProcessLookupError):
            os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
        for path in one.ram.parent.glob(f"{one.ram.name}*"):
            path.unlink()


def test_blocks_bring_back_a_moment_between_two_backups(replicated: Replicated) -> None:
    look, restore = (code.replace("2025-01-30T12:00:00Z", replicated.settle()) for code in blocks_for("litestream"))
    before = replicated.rows()
    replicated.shop.change_data()
    moment_after = replicated.settle()
    after = replicated.rows()
    looked = replicated.type(look)
    assert re.search(r"orders +258 +300 +\+42", looked.err), looked.text
    assert replicated.rows() == after

    refused = replicated.shop.restore(f"{replicated.ram}.db", "--force")
    assert refused.ended == (3, "database-in-use"), refused.text
    assert "litestream" in refused.text

    replicated.type(restore)
    assert not Path(f"{replicated.ram}.db").exists()
    replicated.settle()
    assert replicated.rows() == before
    replicated.shop.change_data()
    replicated.settle()
    assert replicated.replica() == replicated.rows()
    assert replicated.replica(f"-timestamp {moment_after}") == after


def litestream_refuses(folder: Path, database: Path, more: str = "") -> str:
    """What it says on standard error when it fails to replicate a database once."""
    configuration = f"dbs: [{{path: {database}, replica: {{type: file, path: {folder}/replica{more}}}}}]"
    (folder / "litestream.yml").write_text(configuration)
    command = [str(find("litestream")), "replicate", "-once", "-config", f"{folder}/litestream.yml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode
    assert not (folder / "replica").exists()
    return done.stderr


def test_what_litestream_cannot_do_is_what_the_runbook_says(tmp_path: Path) -> None:
    """Should it learn one of these, the RUNBOOK can say so."""
    database = tmp_path / "shop.db"
    with closing(sqlcipher3.connect(database)) as connection:
        connection.executescript("PRAGMA key = 'x'; PRAGMA journal_mode = WAL; CREATE TABLE orders (id)")
    assert "file is not a database" in litestream_refuses(tmp_path, database)
    assert "age encryption is not currently supported" in litestream_refuses(
        tmp_path, database, ", age: {recipients: [age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kdqgvfsssvhl3w5]}"
    )
