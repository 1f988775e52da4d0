"""Compare the tool with the commands that an operator would type instead, in turns, on generated data.

    python benchmarks/run.py                     everything: about 17 minutes, and 5 GB in the data folder
    python benchmarks/run.py --quick             small data, to check that it works; its ratios mean nothing
    python benchmarks/run.py --only restore      one measure

Prints a table and writes results.md, results.json and benchmark.svg. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, it is not in a package

from benchmarks import data, picture
from benchmarks.containers import Bot, NoDockerError, running_bot
from benchmarks.data import MB, ROOT, Sample
from benchmarks.measure import Done, interleave, median, peak_memory, run

RESTORE = str(ROOT / "restore_backup.py")
STRAIGHTFORWARD = str(Path(__file__).with_name("straightforward.py"))
NEEDED = ("bash", "gpg", "gunzip", "gzip", "sqlite3")

# --- the rivals --------------------------------------------------------------------------------------------------

# Prints the time after each stage, for the chart.
SHELL = """
set -euo pipefail
echo $EPOCHREALTIME
gpg -d --quiet --batch "$F" | gunzip > "$T"
echo $EPOCHREALTIME
test "$(CHECK)" = ok
echo $EPOCHREALTIME
sync "$T"; mv "$T" "$DB"
echo $EPOCHREALTIME
"""
SHELL_STAGES = ("decrypt and decompress", "check", "write")
CHECK_PLAIN = """sqlite3 "$T" 'PRAGMA integrity_check'"""
CHECK_SQLCIPHER = """"$PYTHON" -c "
import os
from sqlcipher3 import dbapi2
connection = dbapi2.connect(os.environ['T'])
connection.execute('PRAGMA key=\\"%s\\"' % os.environ['DB_PASS'].replace('\\"', '\\"\\"'))
print(connection.execute('PRAGMA integrity_check').fetchone()[0])" """
SHELL_OWN_HOME = """
set -euo pipefail
export GNUPGHOME=$(mktemp -d /dev/shm/benchmark.XXXXXX)
trap 'gpgconf --kill all; rm -rf "$GNUPGHOME"' EXIT
gpg --quiet --batch --import "$KEY"
gpg -d --quiet --batch --pinentry-mode loopback --passphrase-fd 3 "$F" 3<<< "$PASSPHRASE" | gunzip > "$T"
test "$(sqlite3 "$T" 'PRAGMA integrity_check')" = ok
sync "$T"; mv "$T" "$DB"
"""
SHELL_DUMP = """
set -euo pipefail
rm -f "$T"; sqlite3 "$T" < "$F"
test "$(sqlite3 "$T" 'PRAGMA integrity_check')" = ok
sync "$T"; mv "$T" "$DB"
"""
SHELL_CREATE = """
set -euo pipefail
rm -f "$T" "$T.gz" "$T.gz.gpg"
sqlite3 "$DB" ".backup '$T'"; gzip -6 "$T"; gpg --quiet --batch --trust-model always -r benchmark -e "$T.gz"
"""


def bash(script: str, environment: Mapping[str, str]) -> Done:
    """Run a shell script of a rival."""
    return run(["bash", "-c", script], env=environment)


# --- the bench ---------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One line of the table; a smaller ratio is better, ``aim`` is its upper bound."""

    measure: str
    tool: str
    rival: str
    ratio: float | None
    aim: float | None
    runs: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Bench:
    """State of all measures: folder of the data, number of runs, results."""

    folder: Path
    repeat: int
    plain_mb: int
    sqlcipher_mb: int
    sizes: list[int]
    rows: list[Row] = field(default_factory=list)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    downtime: dict[str, dict[int, float]] = field(default_factory=dict)

    def work(self, name: str) -> Path:
        """Return an empty folder."""
        path = self.folder / "work" / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def sample(self, size_mb: int, *, encrypted: bool = False) -> Sample:
        """Return a database with a backup for an RSA-3072 key without a passphrase."""
        owner = data.key(self.folder, "rsa3072")
        print(f"  data: {size_mb} MB{' SQLCipher' if encrypted else ''}", file=sys.stderr)
        return data.sample(self.folder, size_mb, owner, encrypted=encrypted)

    def add(self, measure: str, runs: dict[str, list[float]], rival: str, aim: float | None) -> None:
        """Add a row that compares the tool's median with a rival's."""
        tool, other = median(runs["tool"]), median(runs[rival])
        row = Row(measure, f"{tool:.2f} s", f"{rival}: {other:.2f} s", tool / other, aim, runs)
        self.rows.append(row)


@dataclass
class Job:
    """A restore of one sample over an existing database of the same content, by the tool or by a rival."""

    sample: Sample
    folder: Path
    details: dict[str, list[tuple[float, dict[str, float]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shutil.copyfile(self.sample.database, self.target)
        os.sync()

    @property
    def target(self) -> Path:
        """The live database."""
        return self.folder / "shop.db"

    def environment(self, public: bytes = b"") -> dict[str, str]:
        """Return the environment of the tool and the shell commands."""
        backups = self.folder / "backups"
        settings = data.settings(self.target, backups, public, encrypted=self.sample.encrypted)
        names = {
            "F": self.sample.backup,
            "T": self.folder / "temporary.db",
            "DB": self.target,
            "PYTHON": sys.executable,
            "SIGNING_DIR": self.folder.parent / "signing",
        }
        home = {"GNUPGHOME": str(self.sample.key.home)}
        return settings | home | {name: str(value) for name, value in names.items()}

    def argv(self, *options: str) -> list[str]:
        """Return the tool's command line."""
        restore = [sys.executable, RESTORE, str(self.sample.backup), "--key-stdin", "--force", "--json"]
        return [*restore, *(("--passphrase-fd", "{fd}") if self.sample.key.passphrase else ()), *options]

    @property
    def key(self) -> bytes:
        """The private key as the tool takes it."""
        return base64.b64encode(self.sample.key.secret)

    def tool(self) -> float:
        """Restore with the tool, without Docker and safety backup, which the rivals do not have."""
        argv = self.argv("--no-restart", "--skip-backup")
        done = run(argv, stdin=self.key, env=self.environment(), secret=self.sample.key.passphrase)
        self.note("tool", done, stages_of(json.loads(done.output.splitlines()[-1])))
        return done.seconds

    def shell(self) -> float:
        """Restore with shell commands."""
        script = SHELL.replace("CHECK", CHECK_SQLCIPHER if self.sample.encrypted else CHECK_PLAIN)
        done = bash(script, self.environment())
        clock = [float(line) for line in done.output.split()]
        self.note("shell", done, {name: clock[i + 1] - clock[i] for i, name in enumerate(SHELL_STAGES)})
        return done.seconds

    def straightforward(self) -> float:
        """Restore with the reference script."""
        argv = [sys.executable, STRAIGHTFORWARD, str(self.sample.backup), str(self.target)]
        done = run(argv, stdin=self.sample.key.secret, env=self.environment())
        self.note("straightforward", done, json.loads(done.output))
        return done.seconds

    def note(self, name: str, done: Done, stages: dict[str, float]) -> None:
        """Record the stages of a run; the remaining time is start-up and rest."""
        rest = {"start-up and rest": max(0.0, done.seconds - sum(stages.values()))}
        self.details.setdefault(name, []).append((done.seconds, stages | rest))

    def median_stages(self) -> dict[str, dict[str, float]]:
        """Return the stages of each contestant's median run."""
        return {name: sorted(runs, key=lambda item: item[0])[len(runs) // 2][1] for name, runs in self.details.items()}


def stages_of(report: dict[str, Any]) -> dict[str, float]:
    """Return the tool's phases; a phase that overlaps an earlier one counts with the time that it adds."""
    stages: dict[str, float] = {}
    end = 0.0
    for phase in report["phases"]:
        if phase["name"] == "switch":  # the sum of the phases inside it
            continue
        began = phase.get("began", end)
        finished = began + phase["seconds"]
        stages[phase["name"]] = stages.get(phase["name"], 0) + max(0.0, finished - max(end, began))
        end = max(end, finished)
    return stages


# --- measures ----------------------------------------------------------------------------------------------------


def measure_restore(bench: Bench) -> None:
    """Restore a plain database, compared with the shell, the straightforward method and the limit."""
    sample = bench.sample(bench.plain_mb)
    job = Job(sample, bench.work("restore"))
    parts = limit_parts(sample, job.folder)
    contestants = {"tool": job.tool, "shell": job.shell, "straightforward": job.straightforward, **parts}
    runs = interleave(contestants, bench.repeat)
    alone = {name: median(runs[name]) for name in parts}
    runs["limit"] = [max(alone["gpg -d"], alone["igzip"]) + max(alone["integrity_check"], alone["write and fsync"])]
    bench.stages = job.median_stages()
    name = f"restore, plain {bench.plain_mb} MB"
    bench.add(name, runs, "shell", 0.55)
    bench.add(name, runs, "straightforward", 0.65)
    bench.add(name, runs, "limit", 1.30)


def limit_parts(sample: Sample, folder: Path) -> dict[str, Callable[[], float]]:
    """Return the steps that every tool needs, timed alone: a tool can only overlap them."""
    gpg = ["gpg", "--homedir", str(sample.key.home), "--quiet", "--batch", "-d", str(sample.backup)]
    compressed = folder / "image.gz"
    with compressed.open("wb") as file:
        subprocess.run(gpg, stdout=file, check=True)
    return {
        "gpg -d": lambda: timed(lambda: subprocess.run(gpg, stdout=subprocess.DEVNULL, check=True)),
        "igzip": lambda: timed(lambda: decompress(compressed)),
        "integrity_check": lambda: integrity_check(sample.database),
        "write and fsync": lambda: write_and_sync(sample.database, folder / "written.db"),
    }


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def decompress(path: Path) -> None:
    """Decompress with ISA-L and discard the output."""
    from isal import isal_zlib

    member = isal_zlib.decompressobj(31)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 16):
            member.decompress(piece)


def integrity_check(path: Path) -> float:
    """Check an image in RAM."""
    image = bytearray(path.read_bytes())
    image[18:20] = b"\1\1"  # a database in WAL mode cannot be opened in memory
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(image)
        return timed(lambda: connection.execute("PRAGMA integrity_check").fetchall())


def write_and_sync(source: Path, path: Path) -> float:
    """Write a copy of a file durably."""
    content = memoryview(source.read_bytes())

    def work() -> None:
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(content), MB):
                file.write(content[start : start + MB])
            os.fsync(file.fileno())

    seconds = timed(work)
    path.unlink()
    return seconds


def measure_sqlcipher(bench: Bench) -> None:
    """Restore a SQLCipher database."""
    job = Job(bench.sample(bench.sqlcipher_mb, encrypted=True), bench.work("sqlcipher"))
    runs = interleave({"tool": job.tool, "shell": job.shell}, bench.repeat)
    bench.stages |= {f"{name}, SQLCipher": stages for name, stages in job.median_stages().items()}
    bench.add(f"restore, SQLCipher {bench.sqlcipher_mb} MB", runs, "shell", 0.40)


def measure_fixed(bench: Bench) -> None:
    """Restore 1 MB with an expensive key: RSA-4096 with a passphrase."""
    owner = data.key(bench.folder, "rsa4096", data.KEY_PASSPHRASE)
    job = Job(data.sample(bench.folder, 1, owner), bench.work("fixed"))
    secret = job.folder / "key"
    secret.write_bytes(owner.secret)
    environment = job.environment() | {"KEY": str(secret), "PASSPHRASE": owner.passphrase}
    shell = {"shell": lambda: bash(SHELL_OWN_HOME, environment).seconds}
    bench.add("fixed cost: 1 MB, RSA-4096", interleave({"tool": job.tool, **shell}, bench.repeat), "shell", 0.50)


def measure_create(bench: Bench) -> None:
    """Make a backup."""
    sample = bench.sample(bench.plain_mb)
    job = Job(sample, bench.work("create"))
    environment = job.environment(sample.key.public)

    def tool() -> float:
        done = run([sys.executable, str(ROOT / "database_backup.py"), "create"], env=environment)
        Path(done.output.strip()).unlink()
        return done.seconds

    runs = interleave({"tool": tool, "shell": lambda: bash(SHELL_CREATE, environment).seconds}, bench.repeat)
    bench.add(f"create_backup, plain {bench.plain_mb} MB", runs, "shell", 0.25)


def measure_dump(bench: Bench) -> None:
    """Restore an SQL dump, as in backups of older bots, in both modes, and measure the loading rate."""
    source = bench.sample(bench.sqlcipher_mb)
    dump = data.sql_dump(source.database)
    for encrypted in (False, True):
        mode = "SQLCipher" if encrypted else "SQLite"
        job = Job(replace(source, backup=dump, encrypted=encrypted), bench.work("dump"))
        shell = {"shell": lambda job=job: bash(SHELL_DUMP, job.environment()).seconds}
        runs = interleave({"tool": job.tool, **({} if encrypted else shell)}, bench.repeat)
        if not encrypted:
            bench.add(f"restore, SQL dump {dump.stat().st_size / MB:.0f} MB", runs, "shell", None)
        rate = dump.stat().st_size / MB / job.median_stages()["tool"]["convert"]
        bench.rows.append(Row(f"SQL dump into {mode}", f"{rate:.0f} MB/s", "50 MB/s", 50 / rate, 1.00, runs))


def measure_downtime(bench: Bench) -> None:
    """Measure the bot's downtime at several sizes, in both orders of phases."""
    for size_mb in bench.sizes:
        sample = bench.sample(size_mb)
        folder = bench.work(f"bot-{size_mb}")
        try:
            with running_bot(folder) as bot:
                runs = interleave(downtime_contestants(sample, bot), bench.repeat)
        except NoDockerError as missing:
            bench.rows.append(Row("downtime", f"not measured: {missing}", "", None, None))
            return
        for name, times in runs.items():
            bench.downtime.setdefault(name, {})[size_mb] = median(times)
        bench.add(f"downtime, {size_mb} MB", runs, "stop; mv; start", 1.30)
        bench.add(f"downtime, {size_mb} MB", runs, "tool --stop-first", None)
    tool = bench.downtime["tool"].values()
    spread = f"{min(tool):.2f} to {max(tool):.2f} s"
    bench.rows.append(Row("downtime, largest to smallest", spread, "itself", max(tool) / min(tool), 1.20))


def downtime_contestants(sample: Sample, bot: Bot) -> dict[str, Callable[[], float]]:
    """Return restores that stop and start the bot and return its downtime."""
    job = Job(sample, bot.database.parent)
    environment = job.environment() | bot.environment
    argv = job.argv("--skip-backup", "--compose-file", str(bot.compose_file))
    new = bot.folder / "data" / "new.db"

    def tool(*options: str) -> float:
        settings = environment | {"RUNTIME_ENVIRONMENT": "PROD"}
        return bot.downtime(lambda: run([*argv, *options], stdin=job.key, env=settings))

    def rival() -> float:
        shutil.copyfile(sample.database, new)
        os.sync()
        commands = f'docker stop {bot.container}; mv "{new}" "{bot.database}"; docker start {bot.container}'
        return bot.downtime(lambda: bash(commands, environment))

    return {"tool": tool, "tool --stop-first": lambda: tool("--stop-first"), "stop; mv; start": rival}


def measure_memory(bench: Bench) -> None:
    """Measure peak memory, with and without a safety backup, one run each."""
    cases = [(size_mb, False) for size_mb in sorted({*bench.sizes, bench.plain_mb})] + [(bench.sqlcipher_mb, True)]
    for size_mb, encrypted in cases:
        sample = bench.sample(size_mb, encrypted=encrypted)
        job = Job(sample, bench.work("memory"))
        for options, what in (((), ""), (("--skip-backup",), ", --skip-backup")):
            environment = job.environment(sample.key.public)
            peak = peak_memory(job.argv("--no-restart", *options), stdin=job.key, env=environment)
            parts = (peak.process, peak.children, peak.ram_files)
            allowed = 1.3 * sample.size + 80 * MB if encrypted else 1.15 * sample.size + 60 * MB
            own, children, files = (f"{part / MB:.0f}" for part in parts)
            tool = f"{peak.total / MB:.0f} MB (process {own}, children {children}, RAM files {files})"
            name = f"memory, {'SQLCipher' if encrypted else 'plain'} {size_mb} MB{what}"
            rival = f"{'1.3 × database + 80' if encrypted else '1.15 × database + 60'} MB: {allowed / MB:.0f} MB"
            bench.rows.append(Row(name, tool, rival, peak.total / allowed, 1.00, {"bytes": [peak.total, *parts]}))


def measure_growth(bench: Bench) -> None:
    """Restore at several sizes: the cost of each further 100 MB must not grow."""
    samples = {size_mb: bench.sample(size_mb) for size_mb in bench.sizes}
    jobs = {size_mb: Job(sample, bench.work(f"growth-{size_mb}")) for size_mb, sample in samples.items()}
    runs = interleave({str(size_mb): job.tool for size_mb, job in jobs.items()}, bench.repeat)
    times = {size_mb: median(runs[str(size_mb)]) for size_mb in bench.sizes}
    for small, large in zip(bench.sizes, bench.sizes[1:], strict=False):
        added = (times[large] - times[small]) / (large - small) * 100
        what = f"{times[small]:.2f} s → {times[large]:.2f} s"
        own = {"small": runs[str(small)], "large": runs[str(large)]}
        bench.rows.append(Row(f"growth, {small} → {large} MB", what, f"{added:.2f} s per 100 MB", None, None, own))


MEASURES = {
    "restore": measure_restore,
    "sqlcipher": measure_sqlcipher,
    "fixed": measure_fixed,
    "create": measure_create,
    "dump": measure_dump,
    "downtime": measure_downtime,
    "memory": measure_memory,
    "growth": measure_growth,
}

# --- output ------------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """Return the results as a Markdown table."""
    lines = [("measure", "tool", "rival", "ratio", "aim", "")]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        aim = "" if row.aim is None else f"≤ {row.aim:.2f}"
        verdict = "" if row.aim is None or row.ratio is None else "✅" if row.ratio <= row.aim else "❌"
        lines.append((row.measure, row.tool, row.rival, ratio, aim, verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    shown = ["| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(
        [shown[0] + " |", "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
        + [line + " |" for line in shown[1:]]
    )


def machine() -> dict[str, str | float | None]:
    """Return the properties of this machine that the times depend on."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?: ?")
    gpg = subprocess.check_output(["gpg", "--version"], text=True).splitlines()[0]
    return {
        "cpu": model.partition(":")[2].strip(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "gpg": gpg,
    }


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="small data and one run of each")
    add("--sizes", default="", metavar="MB,MB,…", help="sizes for downtime, memory and growth (default: 10,100,1000)")
    add("--repeat", type=int, default=0, metavar="N", help="runs of each contestant, after one warm-up run")
    add("--only", action="append", choices=MEASURES, help="only this measure (may be repeated)")
    add("--data", type=Path, default=Path(tempfile.gettempdir()) / "restore-benchmark", help="folder of the data")
    add("--out", type=Path, default=Path(__file__).with_name("results"), help="folder of the results")
    return parser.parse_args()


def main() -> int:
    """Run the measures, print the table and write the files."""
    given = arguments()
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing:
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
        return 2
    given.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    plain_mb, sqlcipher_mb, sizes, repeat = (30, 20, "5,10,30", 1) if given.quick else (300, 200, "10,100,1000", 5)
    sizes_mb = sorted(int(size) for size in (given.sizes or sizes).split(","))
    bench = Bench(given.data.absolute(), given.repeat or repeat, plain_mb, sqlcipher_mb, sizes_mb)
    if os.getloadavg()[0] > 0.5:
        print("⚠️  other programs are running: times are not reliable, ratios may be", file=sys.stderr)
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only or MEASURES:
        print(f"{name} …", file=sys.stderr)
        MEASURES[name](bench)
        save(bench, given.out)  # after each measure, so that an interrupted run keeps its results
    shutil.rmtree(bench.folder / "work", ignore_errors=True)
    print(table(bench.rows))
    return 0


def save(bench: Bench, folder: Path) -> None:
    """Write the results so far."""
    results = {"machine": machine(), "repeat": bench.repeat, "rows": [asdict(row) for row in bench.rows]}
    results |= {"stages": bench.stages, "downtime": bench.downtime}
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (folder / "results.md").write_text(table(bench.rows) + "\n")
    picture.draw(bench.stages, bench.downtime, folder / "benchmark.svg")


if __name__ == "__main__":
    sys.exit(main())
