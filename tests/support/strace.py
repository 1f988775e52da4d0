"""Kill, slow down or fail one system call of the program: `strace` counts the calls of a first run, then hits one.

`when=N` counts the calls of one name in each thread, among those on the given paths if there are any (a call's first
path is compared). The shops here make backups that are not encrypted, unless asked otherwise: that saves gpg's time,
and the safety backup is then written by the main thread, whose calls can be told from others.
"""

import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

from backuplib.folder import PLACE
from backuplib.outcome import LastRestore
from tests.support.keys import Key
from tests.support.needs import require
from tests.support.shop import SIDECARS, Completed, Rows, Shop

CHANGING = (
    *("unlink", "unlinkat", "rename", "renameat", "renameat2", "link", "linkat", "fsync", "fdatasync", "ftruncate"),
    *("fallocate", "pwrite64", "write", "openat", "copy_file_range", "sendfile", "fchown", "fchmod"),
)
"""What changes a file, a folder, or what of them is durable."""

LOOKING = ("newfstatat", "openat", "flock", "pread64", "getdents64")
"""What looks at a file or a folder."""

KILL = "signal=SIGKILL"

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One system call of a run. `paths`: of its arguments, the first one first; absolute."""

    thread: int
    name: str
    paths: tuple[str, ...]
    creates: bool
    injected: bool

    @property
    def path(self) -> str:
        return self.paths[0] if self.paths else ""

    def __str__(self) -> str:
        return f"{self.name}({', '.join(role(path) for path in self.paths)})"


@dataclass(frozen=True)
class Hit:
    """What is done to the N-th call of a name ("N+": and to all after it); `paths`: only calls on these count."""

    call: str
    when: int | str
    action: str
    paths: tuple[str, ...] = ()


def role(path: str) -> str:
    """A file's name without what differs from run to run."""
    name = re.sub(r"\d{8}[-_]\d{6}", "TIME", Path(path).name)
    return re.sub(r"\.db_backup_\d+_\d+", ".db_backup_N", name)


def strace(log: Path, hits: Sequence[Hit] = (), calls: Sequence[str] = CHANGING) -> list[str]:
    """The command to put before the program: its calls go to `log`, and those of `hits` are hit."""
    require("root", "strace")  # the paths behind descriptors: the program lets nobody but root look at its own
    injections = [word for hit in hits for word in ("-e", f"inject={hit.call}:{hit.action}:when={hit.when}")]
    paths = [word for path in {path: None for hit in hits for path in hit.paths} for word in reached_as(path)]
    trace = ["-e", f"trace={','.join(calls)}"]
    # With this filter other calls cost nothing; but a signal at the filter's stop is dropped by the kernel.
    fast = [] if any(hit.action.startswith("signal") for hit in hits) else ["--seccomp-bpf"]
    return ["strace", "-f", *fast, "-qq", "-y", "-s", "0", "-o", str(log), *trace, *injections, *paths]


def reached_as(path: str) -> Iterator[str]:
    """Words for a call on a path, which the program may reach in a folder that it has mounted for itself."""
    for place in ("", *(f"{PLACE}/{number}" for number in range(1, 5))):
        yield from ("-P", f"{place}{path}")


def by_name(text: str) -> str:
    """A path, or a text with some, by name: a folder that the program has mounted for itself has its own place."""
    return re.sub(rf"{PLACE}/\d+(?=/)", "", text)


LINE = re.compile(r"(\d+) +(\w+)\((.*?)(?:\) += | <unfinished|$)")
PATH = re.compile(r'"(/[^"]*)"|\d+<(/[^>]*)>')


def read_log(log: Path) -> list[Call]:
    """The calls of a run, in order."""
    calls = []
    for line in by_name(log.read_text(errors="replace")).splitlines():
        match = LINE.match(line)
        if match:
            thread, name, arguments = match.groups()
            found = [PATH.search(arguments)] if "write" in name or name == "sendfile" else PATH.finditer(arguments)
            paths = tuple(one[1] or one[2] for one in found if one)
            calls.append(Call(int(thread), name, paths, "O_CREAT" in arguments, "(INJECTED)" in line))
    return calls


def touching(calls: Sequence[Call], folders: Sequence[Path]) -> list[int]:
    """The indexes of calls that change something in these folders. Not the -shm: it holds no data."""
    inside = tuple(f"{folder}/" for folder in folders)
    return [
        index
        for index, call in enumerate(calls)
        if (call.name != "openat" or call.creates)
        and any(f"{path}/".startswith(inside) for path in call.paths)
        and not (call.path.endswith("-shm") and call.name in ("pwrite64", "ftruncate"))
    ]


def random_hits(random: Random, length: int) -> list[Hit]:
    """One fault at a random one of the first so many calls of a name, or none: SIGKILL, another signal, an error."""
    call = random.choice(["fsync", "rename", "unlink", "write", "pwrite64", "linkat", "fdatasync"])
    signals = ("signal=SIGKILL", "signal=SIGTERM", "signal=SIGINT", "signal=SIGHUP")
    action = random.choice([*signals, "error=EIO", "error=ENOSPC"])
    return [] if random.random() < 0.1 else [Hit(call, random.randint(1, length), action)]


def aim(calls: Sequence[Call], *targets: tuple[int, str]) -> list[Hit] | None:
    """Hits for calls of a run read before, by (index, action); None when they cannot be told from other calls.

    Looks are counted on their path only: how many of /proc are looked at depends on what else runs here.
    """
    chosen = [calls[index] for index, _ in targets]
    if len({call.name for call in chosen}) < len(chosen):
        return None
    own_paths = tuple(dict.fromkeys(call.path for call in chosen))
    for paths in ((), own_paths):
        if any(role(path) != Path(path).name for path in paths):
            continue
        if not paths and any(call.name in LOOKING for call in chosen):
            continue
        hits = [hit for index, action in targets if (hit := first_hit(calls, index, action, paths))]
        if len(hits) == len(targets):
            return hits
    return None


def first_hit(calls: Sequence[Call], index: int, action: str, paths: tuple[str, ...]) -> Hit | None:
    """The hit of one call, unless another thread comes to the same number: which is first differs from run to run."""
    call = calls[index]
    counted = [i for i, one in enumerate(calls) if one.name == call.name and (not paths or one.path in paths)]
    others = Counter(calls[i].thread for i in counted if calls[i].thread != call.thread)
    number = sum(calls[i].thread == call.thread for i in counted if i <= index)
    return None if any(other >= number for other in others.values()) else Hit(call.name, number, action, paths)


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """So many of them, evenly spread, the first and the last included; all of them without a number."""
    if count is None or len(items) <= count:
        return list(items)
    return [items[round(number * (len(items) - 1) / max(1, count - 1))] for number in range(count)]


# --- a shop that is brought back to its first state for each run -----------------------------------------------------


@dataclass
class Stage:
    """A shop as a restore meets it: `old` rows live, `new` rows in `backup`; `reset` puts all of it back."""

    shop: Shop
    backup: Path
    key: Key | None = None
    old: Rows = field(default_factory=dict)
    new: Rows = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = self.shop.path.parent / f"{self.shop.path.name}.strace"
        self.data = self.shop.db_path.parent
        self.folders = (self.data, self.shop.backups)
        self._kept = self.shop.path.parent / f"{self.shop.path.name}-kept"

    def keep(self) -> None:
        """Remember the folders as they are now, for `reset`."""
        for folder in self.folders:
            shutil.copytree(folder, self._kept / folder.name)

    def reset(self) -> None:
        """Everything as when `keep` was called, in new inodes."""
        for folder in self.folders:
            shutil.rmtree(folder)
            shutil.copytree(self._kept / folder.name, folder)

    def restore(self, *hits: Hit, calls: Sequence[str] = CHANGING) -> Completed:
        """A restore under strace."""
        return self.shop.restore("--force", self.backup, key=self.key, wrapper=strace(self.log, hits, calls))

    def recover(self, *hits: Hit) -> Completed:
        """A recovery under strace."""
        return self.shop.restore("--recover", wrapper=strace(self.log, hits))

    def plain_restore(self) -> Completed:
        """A restore that nothing happens to."""
        return self.shop.restore("--force", self.backup, key=self.key)

    def plain_recover(self) -> Completed:
        """A recovery that nothing happens to."""
        return self.shop.restore("--recover")

    def calls(self) -> list[Call]:
        """The calls of the last run under strace."""
        return read_log(self.log)

    # --- what must hold afterwards ---

    def outcome(self) -> str:
        """Return "old" or "new"; AssertionError for anything between, a sidecar that does not belong, a leftover."""
        names = sorted(path.name for path in self.data.iterdir())
        own = {self.shop.db_path.name + suffix for suffix in ("", *SIDECARS)}
        assert set(names) <= own, f"leftovers in the data folder: {names}"
        rows = self.shop.rows()
        which = "old" if rows == self.old else "new" if rows == self.new else ""
        assert which, f"neither the old rows nor the new ones: {describe(rows)}; {names}"
        hot = [
            path.name
            for path in self.data.iterdir()
            if path.name.endswith(("-wal", "-journal")) and path.stat().st_size
        ]
        assert which == "old" or not hot, f"the new database has sidecars that hold data: {hot}"
        with closing(self.shop.connect()) as bot:
            assert bot.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert self.shop.rows_in_place() == rows, "the rows change when the bot opens the database"
        return which

    def backup_leftovers(self) -> list[str]:
        """What lies in the backup folder that is no backup, no checksum of one, no log and not the last outcome."""
        names = {path.name for path in self.shop.backups.iterdir()}
        whole = {name for name in names if re.fullmatch(r"db_backup_\d{8}_\d{6}\.(db|raw\.tar)\.gz(\.gpg)?", name)}
        return sorted(names - whole - {f"{name}.sha256" for name in whole} - {"restore.log", "last-restore.json"})

    def notes(self, outcome: str) -> bool:
        """Whether what is written down of the last restore, if anything is, says that this one is live."""
        last = LastRestore.of(self.shop.db_path, self.shop.backups)
        return last is None or last.live_now() == outcome

    def keeps_old(self) -> bool:
        """Whether the old rows are in a safety backup (which is not encrypted here)."""
        made = sorted(set(self.shop.backups.glob("db_backup_*.gz")) - {self.backup}, reverse=True)
        return any(self._rows_of(path) == self.old for path in made)

    def _rows_of(self, backup: Path) -> Rows:
        if ".raw.tar" not in backup.name:
            return self.shop.backup_rows(backup, None)
        with tempfile.TemporaryDirectory(prefix="raw-") as folder, tarfile.open(backup) as tar:
            for item in tar:  # Debian 12's Python has no filter for extractall()
                content = tar.extractfile(item)
                assert content
                (Path(folder) / item.name).write_bytes(content.read())
            return self.shop.rows(next(path for path in Path(folder).iterdir() if not path.name.endswith(SIDECARS)))


def describe(rows: Rows) -> str:
    """How many rows each table has."""
    return ", ".join(f"{name}: {len(found)}" for name, found in rows.items())


def hot_wal(shop: Shop) -> None:
    """Committed rows that only the -wal holds."""
    shop.leave_hot_wal()


def hot_journal(shop: Shop) -> None:
    """A transaction cut off: the old rows are in the -journal only."""
    shop.leave_hot_journal()


STATES: dict[str, Callable[[Shop], None]] = {"wal": hot_wal, "journal": hot_journal}


def make_stage(shop: Shop, state: str, key: Key | None = None) -> Stage:
    """A shop with a backup, changed afterwards, then left in one of STATES."""
    new = shop.rows()
    # An old name, so that no run waits for a second of the clock that is free.
    backup = shop.create_backup().rename(shop.backups / "db_backup_20250130_120000.db.gz")
    for old_name in shop.backups.glob("*.sha256"):
        old_name.unlink()
    checksum = subprocess.run(["sha256sum", backup.name], cwd=shop.backups, capture_output=True, check=True).stdout
    (shop.backups / f"{backup.name}.sha256").write_bytes(checksum)
    shop.change_data()
    STATES[state](shop)
    stage = Stage(shop, backup, key, old=shop.rows(), new=new)
    assert stage.old != stage.new
    stage.keep()
    # The first run writes byte code, and so has more calls than the others.
    warm = stage.plain_restore()
    assert warm.code == 0, warm.text
    stage.reset()
    return stage


# --- restores that are cut off or fail --------------------------------------------------------------------------------


def killed(stage: Stage, *hits: Hit) -> None:
    """Start from the first state and restore until killed."""
    stage.reset()
    done = stage.restore(*hits)
    assert done.code == -9, f"not killed by {hits}: {done.code} {done.text}"


def fail_after_rename(stage: Stage, failing: str) -> list[Call]:
    """The calls of a restore whose first call of that name fails after the new database took the name."""
    stage.reset()
    done = stage.restore()
    assert done.code == 0, done.text
    calls = stage.calls()
    hits = aim(calls, (next(i for i in after_rename(stage, calls) if calls[i].name == failing), "error=EIO"))
    assert hits
    stage.reset()
    done = stage.restore(*hits)
    assert done.code == 8, done.text
    return stage.calls()


def after_rename(stage: Stage, calls: Sequence[Call]) -> Iterator[int]:
    """The calls that change something after the new database took the name."""
    new = f"{stage.shop.db_path}.restore-new"
    rename = next(
        i for i, call in enumerate(calls) if call.name == "rename" and call.paths == (new, str(stage.shop.db_path))
    )
    return (i for i in touching(calls, stage.folders) if i > rename)
