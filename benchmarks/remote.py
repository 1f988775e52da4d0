"""Restore from a remote as a stream, compared with `rclone copy` and a restore of the copy; S3 on loopback.

    python benchmarks/remote.py                 300 MB, three turns
    python benchmarks/remote.py --mb 10         small data, to check that it works; its ratio means nothing

Prints the ratio of the times and the peaks of memory. Needs rclone, weed (SeaweedFS), and a quiet machine.
"""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, it is not in a package

from benchmarks import data
from benchmarks.data import MB, ROOT, Sample
from benchmarks.measure import interleave, median, peak_memory, run
from tests.support import needs
from tests.support.remotes import Server, serving


class Contest:
    """Both ways to a restored database, from the same backup at the same server."""

    def __init__(self, sample: Sample, server: Server, folder: Path) -> None:
        self.sample, self.server, self.folder = sample, server, folder
        self.target = folder / "shop.db"
        self.copies = folder / "copies"
        settings = data.settings(self.target, folder / "backups", sample.key.public, encrypted=False)
        path = f"{settings['PATH']}:{os.path.dirname(str(needs.find('rclone')))}"
        inherited = {name: text for name, text in settings.items() if name != "AWS_CA_BUNDLE"}
        self.environment = {**inherited, **server.settings(), "RCLONE_CONFIG": os.devnull, "PATH": path}
        self.key = base64.b64encode(sample.key.secret)

    def argv(self, backup: str) -> list[str]:
        """The restore, without Docker and safety backup."""
        options = ["--key-stdin", "--force", "--json", "--no-restart", "--skip-backup"]
        return [sys.executable, str(ROOT / "restore_backup.py"), backup, *options]

    @property
    def there(self) -> str:
        """The backup at the remote."""
        return f"{self.server.place}/{self.sample.backup.name}"

    def prepare(self) -> None:
        """A live database, and no copy."""
        shutil.copyfile(self.sample.database, self.target)
        shutil.rmtree(self.copies, ignore_errors=True)
        os.sync()

    def streamed(self) -> float:
        """One command."""
        self.prepare()
        return run(self.argv(self.there), stdin=self.key, env=self.environment).seconds

    def copied(self) -> float:
        """Two commands: a copy with its checksum, and its restore."""
        self.prepare()
        began = time.perf_counter()
        for name in (self.there, f"{self.there}.sha256"):
            run(["rclone", "copy", name, str(self.copies)], env=self.environment)
        run(self.argv(str(self.copies / self.sample.backup.name)), stdin=self.key, env=self.environment)
        return time.perf_counter() - began


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mb", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "restore-backup-benchmark")
    given = parser.parse_args()
    given.data.mkdir(parents=True, exist_ok=True)
    sample = data.sample(given.data, given.mb, data.key(given.data, "rsa3072"))
    with tempfile.TemporaryDirectory(dir=given.data) as folder, serving("s3", Path(folder, "server")) as server:
        contest = Contest(sample, server, Path(folder))
        for source in (sample.backup, Path(f"{sample.backup}.sha256")):
            server.rclone("copyto", str(source), f"{server.place}/{source.name}")
        times = interleave({"streamed": contest.streamed, "copied": contest.copied}, given.repeat)
        contest.prepare()
        peak = peak_memory(contest.argv(contest.there), stdin=contest.key, env=contest.environment)
    streamed, copied = median(times["streamed"]), median(times["copied"])
    sizes = f"{sample.size / MB:.0f} MB, backup of {sample.backup.stat().st_size / MB:.0f} MB"
    print(f"restore of {sizes}, from S3 on loopback")
    print(f"  streamed                {streamed:6.2f} s")
    print(f"  rclone copy, restore    {copied:6.2f} s")
    print(f"  ratio                   {streamed / copied:6.2f}")
    print(f"  peak of memory          {peak.total / MB:6.0f} MB ({peak.children / MB:.0f} MB: rclone, gpg, checks)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
