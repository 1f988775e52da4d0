"""`create --if-changed` where nothing was written, compared with `create`, and with a copy that is told by its hash.

    python benchmarks/if_changed.py                 10 and 100 MB, five turns

Prints the times, and what backups of every five minutes take with a BACKUP_KEEP, at the size that they really have.
Needs the sqlite3 shell, and a quiet machine.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, it is not in a package

from backuplib.retention import Policy
from benchmarks import data
from benchmarks.data import MB, ROOT
from benchmarks.measure import interleave, median, run

KEEP = "last=24 hourly=48 daily=14 weekly=8 monthly=12 yearly=2"


class Contest:
    """A database that nobody writes to, and its backup."""

    def __init__(self, source: Path, public: bytes, folder: Path) -> None:
        self.database, self.backups, self.copy = folder / "shop.db", folder / "backups", folder / "copy.db"
        shutil.copyfile(source, self.database)
        self.environment = data.settings(self.database, self.backups, public, encrypted=False)
        self.environment["XDG_STATE_HOME"] = str(folder)
        self.create()
        self.size = max(path.stat().st_size for path in self.backups.glob("*.gpg"))

    def _create(self, *options: str) -> float:
        argv = [sys.executable, str(ROOT / "database_backup.py"), "create", "--quiet", *options]
        return run(argv, env=self.environment).seconds

    def create(self) -> float:
        """A new backup."""
        return self._create()

    def if_changed(self) -> float:
        """None: nothing was written."""
        before = sorted(self.backups.iterdir())
        seconds = self._create("--if-changed")
        if sorted(self.backups.iterdir()) != before:
            raise AssertionError("a backup was made")
        return seconds

    def copied(self) -> float:
        """A copy under SQLite's lock, and its hash: what tells the same with other programs."""
        self.copy.unlink(missing_ok=True)
        began = time.perf_counter()
        run(["sqlite3", str(self.database), f".backup '{self.copy}'"])
        run(["sha256sum", str(self.copy)])
        return time.perf_counter() - began

    def started(self) -> float:
        """No look: what it takes to start Python with the tool's modules."""
        return run([sys.executable, str(ROOT / "database_backup.py"), "--help"], env=self.environment).seconds


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mb", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "restore-backup-benchmark")
    given = parser.parse_args()
    given.data.mkdir(parents=True, exist_ok=True)
    public = data.key(given.data, "rsa3072").public
    most = sum(Policy.parse(KEEP).counts.values())
    for size in given.mb:
        with tempfile.TemporaryDirectory(dir=given.data) as folder:
            contest = Contest(data.database(given.data, size), public, Path(folder))
            contestants = {
                "create --if-changed": contest.if_changed,
                "of that, its start": contest.started,
                "create": contest.create,
                ".backup, sha256sum": contest.copied,
            }
            times = interleave(contestants, given.repeat)
        print(f"{size} MB")
        for name, taken in times.items():
            print(f"  {name:24}{median(taken) * 1000:8.0f} ms")
        print(f"  a backup has {contest.size / MB:.1f} MB; {KEEP}: {most} at most, {most * contest.size / MB:.0f} MB")
        print(f"  all of a day's, every five minutes: 288, {288 * contest.size / MB:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
