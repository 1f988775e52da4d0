"""The one way back: from wherever the journal says that a restore got to, on real databases.

A test lets a restore get somewhere, reads the journal anew, as the next run does, and looks what is live then.
"""

import contextlib
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from backuplib.bot import Bot
from backuplib.console import Report
from backuplib.database import Engine, database_files
from backuplib.errors import (
    AS_BEFORE,
    BackupFailedError,
    CannotStopError,
    CannotWriteError,
    DiskFailureError,
    ExitCode,
    OperatorError,
    RefusedError,
    RollbackFailedError,
    RolledBackError,
    ServicesDownError,
)
from backuplib.files import Identity, file_identity
from backuplib.journal import Journal
from backuplib.newest import NewestSQLite
from backuplib.outcome import LastRestore
from backuplib.secret import Secret
from backuplib.switch import Switch, checkpoint_and_lock, link_aside, put_back, remove_sidecars
from backuplib.target import Target
from tests.support.inspected import INSPECT, FakeDocker, inspect_data, mounted
from tests.support.journals import begun_journal

OLD, NEW = "old", "new"

CONTAINER, FILE = "shopbot-bot-1", Path("/srv/shopbot/docker-compose.prod.yml")
"""What the journal names, and the compose file that its label does."""


class Cut(BaseException):
    """The process ends here."""


@dataclass
class Scene:
    """A folder with the old database, and what a restore has prepared beside it."""

    target: Target
    engine: Engine
    report: Report
    bot: Bot | None = None

    def make_database(self, path: Path, row: str, *, wal: bool = False) -> None:
        """A database of one row, which is in the -wal alone if wanted."""
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        path.touch()
        with contextlib.closing(self.engine.connect(path)) as connection:
            connection.execute("PRAGMA synchronous=OFF")
            if wal:
                connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE t (a)")
            if wal:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("INSERT INTO t VALUES (?)", (row,))
            copies = [Path(shutil.copy(file, f"{file}.copy")) for file in database_files(path)]
        for copy in copies:  # as a process leaves them that is killed
            if not copy.name.endswith("-shm.copy"):
                copy.rename(copy.with_suffix(""))
            else:
                copy.unlink()

    def row(self, path: Path) -> str:
        """The row in a database."""
        with contextlib.closing(self.engine.connect(path)) as connection:
            return str(connection.execute("SELECT a FROM t").fetchone()[0])

    @property
    def live(self) -> str:
        """Which database is live."""
        return self.row(self.target.path)

    @property
    def names(self) -> list[str]:
        """The files in the folder; of a database in WAL mode that nobody has open there is one."""
        return sorted(path.name for path in self.target.path.parent.iterdir())

    def back_up(self, _label: str, database: Path, *, quiet: bool = False) -> Path:
        """Note what would be kept."""
        assert quiet == (len(database_files(database)) == 1)
        path = Path(f"{self.target.path.parent}.kept")
        with path.open("a") as file:
            file.write(f"{self.row(database)}\n")
        return path

    @property
    def kept(self) -> list[str]:
        """The rows of what was backed up after the exchange, in a killed process, too."""
        path = Path(f"{self.target.path.parent}.kept")
        return path.read_text().split() if path.exists() else []

    def prepare(self, **changes: Any) -> tuple[Switch, Identity]:
        """The new file is there, and the journal is begun."""
        self.make_database(self.target.candidate, NEW)
        candidate = file_identity(self.target.candidate)
        values: dict[str, Any] = {
            "existed": self.target.exists,
            "containers": (CONTAINER,) if self.bot else (),
            "unsaved": False,
            "backup": "/srv/shopbot/backups/db_backup_20250130_120000.db.gz.gpg",
            "made": "2025-01-30T12:00:00+00:00",
        }
        switch = self.switch(begun_journal(self.target, **values | changes))
        switch.begin()
        return switch, candidate

    def switch(self, journal: Journal) -> Switch:
        """The switch that a journal tells of."""
        return Switch(
            journal,
            engine=self.engine,
            bot=self.bot,
            report=self.report,
            back_up=self.back_up,
            recover_command="restore_backup.py --recover",
            backup_dir=self.backups,
        )

    @property
    def backups(self) -> Path:
        """Where it is written down how a restore ended."""
        folder = Path(f"{self.target.path.parent}.backups")
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def noted(self) -> tuple[str, str] | None:
        """How the last restore ended, as it is written down, and which database is live since then."""
        last = LastRestore.of(self.target.path, self.backups)
        return (last.outcome, last.live_now()) if last else None

    def next_run(self) -> Switch:
        """What the next run finds."""
        journal = Journal.load(self.target)
        assert journal
        assert not journal.disputed
        return self.switch(journal)

    def recover(self) -> None:
        """What the next run does, if anything is left to be done."""
        if Journal.load(self.target):
            self.next_run().resume()
        self.target.clear_leftovers()


@pytest.fixture
def scene(tmp_path: Path, report: Report) -> Scene:
    """A plain database whose last row is in its WAL."""
    return make_scene(tmp_path / "data", report)


def make_scene(folder: Path, report: Report, engine: Engine | None = None) -> Scene:
    folder.mkdir()
    scene = Scene(Target(folder / "shop.db"), engine or Engine(None), report)
    scene.make_database(scene.target.path, OLD, wal=True)
    assert scene.names == ["shop.db", "shop.db-wal"]
    return scene


# --- how far a restore can get ---------------------------------------------------------------------------------------


def begun(scene: Scene) -> None:
    scene.prepare()


def about_to_exchange(scene: Scene) -> None:
    """Its journal says so, and nothing has a second name."""
    switch, candidate = scene.prepare()

    def refuse() -> None:
        raise Cut

    with pytest.raises(Cut):
        switch.exchange(candidate, refuse, unsaved=True)


def set_aside(scene: Scene) -> None:
    """The old database has two names."""
    about_to_exchange(scene)
    checkpoint_and_lock(scene.engine, scene.target.path).close()
    link_aside(scene.target.path, scene.next_run().journal.set_aside, checkpointed=True)


def about_to_rename(scene: Scene) -> None:
    set_aside(scene)
    remove_sidecars(scene.target.path)


def exchanged(scene: Scene) -> None:
    """The new database is live; what the old one has beyond the safety backup is not kept yet."""
    switch, candidate = scene.prepare()
    switch.exchange(candidate, lambda: None, unsaved=True)


def rolling_back(scene: Scene) -> None:
    exchanged(scene)
    journal = scene.next_run().journal
    journal.state = "rolling back"
    journal.write()


def put_back_already(scene: Scene) -> None:
    rolling_back(scene)
    put_back(scene.engine, scene.next_run().journal)


def committed(scene: Scene) -> None:
    exchanged(scene)
    scene.next_run().commit()


Stage = Callable[[Scene], None]
TO_OLD: list[Stage] = [begun, about_to_exchange, set_aside, about_to_rename, rolling_back, put_back_already]
TO_NEW: list[Stage] = [exchanged, committed]


# --- after an interruption -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", TO_OLD)
def test_what_was_not_exchanged_ends_with_the_old_database(scene: Scene, stage: Stage) -> None:
    stage(scene)
    scene.recover()
    assert scene.live == OLD
    assert scene.names == ["shop.db"]
    assert scene.kept == []


@pytest.mark.parametrize("stage", TO_NEW)
def test_what_was_exchanged_ends_with_the_new_database(scene: Scene, stage: Stage) -> None:
    stage(scene)
    scene.recover()
    assert scene.names == ["shop.db"]
    assert scene.live == NEW
    assert scene.kept == [OLD]


@pytest.mark.parametrize("stage", [*TO_OLD, *TO_NEW])
def test_recovery_that_is_called_again_finds_nothing_to_do(scene: Scene, stage: Stage) -> None:
    stage(scene)
    scene.recover()
    assert scene.noted == ("recovered", scene.live)
    before, noted = file_identity(scene.target.path), sorted(scene.backups.iterdir())
    scene.recover()
    assert file_identity(scene.target.path) == before
    assert sorted(scene.backups.iterdir()) == noted == [scene.backups / "last-restore.json"]


def test_recovery_by_a_journal_that_is_not_believed_is_noted_without_its_backup(scene: Scene) -> None:
    """As root recovers what the shop's user began."""
    rolling_back(scene)
    scene.target.journal.chmod(0o666)
    scene.recover()
    assert scene.noted == ("recovered", OLD)
    last = LastRestore.of(scene.target.path, scene.backups)
    assert last
    assert (last.backup, last.made) == (None, None)


def test_sqlcipher_database_comes_back_alike(tmp_path: Path, report: Report) -> None:
    """Under a raw key, which takes no time to derive."""
    scene = make_scene(tmp_path / "data", report, Engine(Secret(f"x'{'2b' * 32}'")))
    rolling_back(scene)
    scene.recover()
    assert scene.names == ["shop.db"]
    assert scene.live == OLD


def test_new_database_that_is_not_sound_gives_way_to_the_old_one(scene: Scene) -> None:
    exchanged(scene)
    with scene.target.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 200)
    scene.recover()
    assert scene.live == OLD
    assert scene.names == ["shop.db"]


def test_where_no_database_was_there_is_none_again(scene: Scene) -> None:
    for path in database_files(scene.target.path):
        path.unlink()
    rolling_back(scene)
    assert scene.live == NEW
    scene.recover()
    assert scene.names == []


def test_words_of_a_damaged_schema_are_not_taken_for_a_lock(scene: Scene) -> None:
    """The engine quotes the name of a table that makes no sense; nobody has the database."""
    for path in database_files(scene.target.path):
        path.unlink()
    scene.make_database(scene.target.path, OLD)
    with contextlib.closing(scene.engine.connect(scene.target.path)) as connection:
        connection.execute("CREATE TABLE blocked_users (busy)")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET rootpage = 9999 WHERE name = 'blocked_users'")
    exchanged(scene)
    assert scene.live == NEW


@pytest.mark.parametrize("missing", [False, True])
def test_sidecars_of_an_empty_or_missing_database_come_back_with_it(scene: Scene, missing: bool) -> None:
    """Opening it would remove them; the rows may be in the WAL still."""
    wal = Path(f"{scene.target.path}-wal")
    before = wal.read_bytes()
    if missing:
        scene.target.path.unlink()
    else:
        os.truncate(scene.target.path, 0)
    exchanged(scene)
    assert not wal.exists()
    assert scene.live == NEW
    switch = scene.next_run()
    switch.undo()
    switch.clear_away("restored")
    assert wal.read_bytes() == before
    assert scene.names == (["shop.db-wal"] if missing else ["shop.db", "shop.db-wal"])


def test_old_database_does_not_meet_the_sidecars_of_the_new_one(scene: Scene) -> None:
    """Where the new one cannot be opened, SQLite does not remove them."""
    exchanged(scene)
    scene.target.path.write_bytes(b"noise" * 3000)
    Path(f"{scene.target.path}-shm").write_bytes(b"stale" * 1000)
    scene.next_run().undo()
    assert "shop.db-shm" not in scene.names
    assert scene.live == OLD


def test_unreadable_database_comes_back_byte_for_byte_with_its_sidecars(scene: Scene) -> None:
    wal = Path(f"{scene.target.path}-wal")
    scene.target.path.write_bytes(b"noise" * 5000)
    before = {path: path.read_bytes() for path in (scene.target.path, wal)}
    inodes = [path.stat().st_ino for path in before]
    exchanged(scene)
    assert not wal.exists()
    assert scene.live == NEW
    switch = scene.next_run()
    switch.undo()
    switch.clear_away("restored")
    assert {path: path.read_bytes() for path in before} == before
    assert [path.stat().st_ino for path in before] == inodes  # by renames: a copy might not fit, or not be readable
    assert scene.names == ["shop.db", "shop.db-wal"]


# --- killed on the way back ------------------------------------------------------------------------------------------


def is_killed(number: int, work: Callable[[], None]) -> bool:
    """Do something in a child that is killed before the nth line it runs of the modules that write; False: it ends."""
    child = os.fork()
    if not child:
        sys.settrace(killer(number))
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def killer(number: int) -> Callable[[FrameType, str, object], Any]:
    """A trace function that ends its process before the nth line."""
    left = number

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if Path(frame.f_code.co_filename).name not in ("switch.py", "journal.py", "files.py"):
            return None
        if event == "line":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of fork beside threads, which pytest-xdist has
@pytest.mark.parametrize(("stage", "expected"), [(rolling_back, {OLD}), (exchanged, {NEW}), (committed, {NEW})])
@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.long)])
def test_recovery_may_be_killed_before_each_of_its_lines(
    tmp_path: Path, report: Report, stage: Stage, expected: set[str], step: int
) -> None:
    for number in itertools.count(1, step):
        scene = make_scene(tmp_path / f"{number}", report)
        stage(scene)
        if not is_killed(number, scene.next_run().resume):
            assert number > 40
            return
        scene.recover()
        assert scene.names == ["shop.db"]
        assert scene.live in expected
        assert scene.noted == ("recovered", scene.live)
        assert OLD in scene.kept or NEW not in expected


# --- a run that fails ------------------------------------------------------------------------------------------------


def test_failure_before_the_exchange_stays_the_error_it_is(scene: Scene) -> None:
    switch, _ = scene.prepare()
    before = file_identity(scene.target.path)
    error = RefusedError("x")
    switch.roll_back(error)  # raises nothing: the caller raises the error again
    assert error.state == ""
    assert file_identity(scene.target.path) == before
    assert Journal.load(scene.target) is None
    assert scene.noted is None


def test_failure_after_the_stop_says_that_the_services_run_again(scene: Scene) -> None:
    switch, _ = scene.prepare()
    switch._stopped = 1.0
    error = RefusedError("x")
    switch.roll_back(error)
    assert error.state == ExitCode.CANNOT_STOP.state


@pytest.mark.parametrize(
    "error",
    [RefusedError("the cause", hint="what to do"), OSError(28, "the cause"), ValueError("the cause"), Cut("the cause")],
    ids=lambda error: type(error).__name__,
)
def test_failure_after_the_exchange_is_rolled_back_and_says_so(scene: Scene, error: BaseException) -> None:
    switch, candidate = scene.prepare()
    switch.exchange(candidate, lambda: None, unsaved=True)
    with pytest.raises(RolledBackError) as raised:
        switch.roll_back(error)
    assert raised.value.exit_code == ExitCode.ROLLED_BACK
    assert "the cause" in str(raised.value)
    assert raised.value.hint == getattr(error, "hint", "")
    assert scene.live == OLD
    assert scene.names == ["shop.db"]
    assert scene.noted == ("rolled back", OLD)


def test_end_that_cannot_be_written_down_is_a_warning(scene: Scene) -> None:
    switch, candidate = scene.prepare()
    switch.exchange(candidate, lambda: None, unsaved=True)
    (scene.backups / "last-restore.json.tmp").mkdir()
    with pytest.raises(RolledBackError):
        switch.roll_back(RefusedError("the cause"))
    assert scene.names == ["shop.db"]
    (warning,) = scene.report.warnings
    assert "--list" in warning


def test_bug_is_told_with_its_traceback(scene: Scene, screen: io.StringIO) -> None:
    switch, candidate = scene.prepare()
    switch.exchange(candidate, lambda: None, unsaved=True)
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        with pytest.raises(RolledBackError):
            switch.roll_back(error)
    assert "test_bug_is_told_with_its_traceback" in screen.getvalue()


def test_disk_that_fails_after_the_stop_is_told_with_the_state_it_leaves(scene: Scene) -> None:
    switch, _ = scene.prepare()
    switch._stopped = 1.0
    with pytest.raises(DiskFailureError) as raised:
        switch.roll_back(OSError(5, "Input/output error", str(scene.target.path)))
    assert raised.value.state == ExitCode.CANNOT_STOP.state
    assert str(scene.target.path) in str(raised.value)
    assert Journal.load(scene.target) is None


# --- where the way back is blocked -----------------------------------------------------------------------------------


@pytest.fixture
def holder(scene: Scene) -> Iterator[Callable[[], None]]:
    """Call it to have another process hold the live database open."""
    with contextlib.ExitStack() as running:

        def hold() -> None:
            with scene.target.path.open("rb") as file:
                process = subprocess.Popen(["sleep", "60"], stdin=file)
            running.callback(process.wait)
            running.callback(process.kill)

        yield hold


def test_database_that_somebody_has_open_is_not_replaced_under_him(scene: Scene, holder: Callable[[], None]) -> None:
    exchanged(scene)
    switch = scene.next_run()
    holder()
    with pytest.raises(RollbackFailedError) as raised:
        switch.undo()
    assert raised.value.exit_code == 20
    assert str(switch.journal.set_aside) in str(raised.value)
    assert switch.recover_command in raised.value.hint
    assert scene.live == NEW
    assert scene.row(switch.journal.set_aside) == OLD
    assert scene.next_run().journal.state == "rolling back"


def test_way_back_is_open_again_when_its_obstacle_is_gone(scene: Scene, holder: Callable[[], None]) -> None:
    exchanged(scene)
    run = scene.next_run()
    run.journal.candidate.mkdir()  # dropping it will fail
    with pytest.raises(RollbackFailedError):
        run.undo()
    scene.target.candidate.rmdir()
    scene.recover()
    assert scene.live == OLD
    assert scene.names == ["shop.db"]


def test_new_database_stays_where_the_old_one_is_gone(scene: Scene) -> None:
    rolling_back(scene)
    scene.next_run().journal.set_aside.unlink()
    with pytest.raises(RollbackFailedError):
        scene.next_run().resume()
    assert scene.live == NEW
    assert Journal.load(scene.target)


# --- with services ---------------------------------------------------------------------------------------------------


@pytest.fixture
def with_bot(scene: Scene, fake_docker: FakeDocker) -> Scene:
    """A scene whose bot is healthy whenever it runs."""
    scene.bot = Bot(FILE, scene.target.path, "shopbot")
    fake_docker.has(in_container(scene))
    fake_docker.has(in_container(scene), after="start")
    fake_docker.has(in_container(scene, State_Running=False, State_Status="exited"), after="stop")
    return scene


def in_container(scene: Scene, **changes: Any) -> dict[str, Any]:
    """The bot's container, as Docker tells of it."""
    return inspect_data(Mounts=[mounted(scene.target.path.parent)], **changes)


@pytest.fixture
def unstartable(with_bot: Scene, fake_docker: FakeDocker) -> Scene:
    """A scene whose Docker always fails."""
    fake_docker.fails("ps")
    return with_bot


UNKNOWN = "and whether the services run is not known."


@pytest.mark.parametrize(
    ("stage", "error", "live", "state"),
    [
        (begun, ServicesDownError, OLD, f"{AS_BEFORE}, {UNKNOWN}"),
        (about_to_exchange, ServicesDownError, OLD, f"{AS_BEFORE}, {UNKNOWN}"),
        (about_to_rename, ServicesDownError, OLD, f"{AS_BEFORE}, {UNKNOWN}"),
        (put_back_already, ServicesDownError, OLD, f"{AS_BEFORE}, {UNKNOWN}"),
        (rolling_back, RollbackFailedError, NEW, ""),  # services that cannot be stopped may use it
        (exchanged, RollbackFailedError, NEW, ""),
        (committed, ServicesDownError, NEW, f"The restored database is live, {UNKNOWN}"),
    ],
)
def test_docker_that_does_not_answer_ends_it_in_a_state_that_is_told(
    unstartable: Scene, stage: Stage, error: type[OperatorError], live: str, state: str
) -> None:
    stage(unstartable)
    with pytest.raises(error) as raised:
        unstartable.next_run().resume()
    assert type(raised.value) is error
    assert raised.value.state == state
    assert unstartable.live == live
    assert unstartable.noted == ("rollback failed" if error is RollbackFailedError else "services down", live)
    assert unstartable.next_run().journal.containers == (CONTAINER,)  # they are still owed a start
    if error is RollbackFailedError:
        assert "is the new one" in str(raised.value)
        assert "services may be down" in str(raised.value)


@pytest.mark.parametrize("stage", [about_to_rename, exchanged, committed])
@pytest.mark.parametrize(
    ("changes", "clause"),
    [
        ({"State_Health": {"Status": "unhealthy"}}, "but bot is unhealthy."),
        ({"State_Running": False, "State_Restarting": True, "RestartCount": 4}, "but bot is NOT running."),
        ({"Name": "/another"}, f"but {CONTAINER} is NOT running."),
    ],
    ids=["unhealthy", "restarts", "gone"],
)
def test_services_that_do_not_come_up_are_told_with_the_database_that_is_live(
    with_bot: Scene, fake_docker: FakeDocker, stage: Stage, changes: dict[str, Any], clause: str
) -> None:
    fake_docker.has(in_container(with_bot, **changes), after="start")
    fake_docker.logs(str(INSPECT["Id"]), b"last words\n")
    stage(with_bot)
    with pytest.raises(ServicesDownError) as raised:
        with_bot.next_run().resume()
    assert raised.value.exit_code == ExitCode.SERVICES_DOWN
    live = "The restored database is live" if stage is committed else AS_BEFORE
    assert raised.value.state == f"{live}, {clause}"
    assert with_bot.live == (NEW if stage is committed else OLD)
    assert with_bot.noted == ("services down", with_bot.live)
    assert Journal.load(with_bot.target)
    assert ("last words" in raised.value.log) == ("Name" not in changes)


def test_services_that_come_up_later_end_it(unstartable: Scene) -> None:
    about_to_rename(unstartable)
    with pytest.raises(ServicesDownError):
        unstartable.next_run().resume()
    unstartable.bot = None
    unstartable.recover()
    assert unstartable.live == OLD
    assert unstartable.names == ["shop.db"]


@pytest.mark.parametrize("stage", [*TO_OLD, *TO_NEW])
def test_files_are_settled_before_the_services_can_be_looked_at(with_bot: Scene, stage: Stage) -> None:
    """At boot, before Docker starts any of them; the run that starts them is the one that ends it."""
    stage(with_bot)
    bot, with_bot.bot = with_bot.bot, None
    for _ in range(2):
        with_bot.next_run().settle_files()
        assert Journal.load(with_bot.target)
        assert with_bot.live == (OLD if stage in TO_OLD else NEW)
    assert bool(database_files(with_bot.next_run().journal.set_aside)) == (stage in TO_NEW)
    with_bot.bot = bot
    with_bot.recover()
    assert with_bot.live == (OLD if stage in TO_OLD else NEW)
    assert with_bot.names == ["shop.db"]
    assert with_bot.kept == ([] if stage in TO_OLD else [OLD])


def test_inode_of_a_restore_taken_back_is_forgotten(unstartable: Scene) -> None:
    """The file system may give it to a database that comes later, which must not be taken for the new one."""
    rolling_back(unstartable)
    bot, unstartable.bot = unstartable.bot, None
    switch = unstartable.next_run()
    unstartable.bot = bot
    switch.undo()
    assert unstartable.next_run().journal.new_inode is None


def test_services_are_stopped_and_started_by_their_ids_and_the_time_between_is_told(
    with_bot: Scene, fake_docker: FakeDocker, screen: io.StringIO
) -> None:
    switch, _ = with_bot.prepare()
    switch.stop_services()
    switch.start_services()
    assert fake_docker.called("stop") == [[INSPECT["Id"]]]
    assert fake_docker.called("start") == [[INSPECT["Id"]]]
    downtime = with_bot.report.downtime_seconds
    assert downtime is not None
    assert 0 < downtime < 10
    assert f"bot healthy; down for {downtime:.1f} s" in screen.getvalue()


def test_services_that_still_run_are_not_taken_for_stopped(with_bot: Scene, fake_docker: FakeDocker) -> None:
    fake_docker.has(in_container(with_bot), after="stop")
    switch, _ = with_bot.prepare()
    with pytest.raises(CannotStopError) as raised:
        switch.stop_services()
    assert "bot" in str(raised.value)


def test_service_that_was_unhealthy_before_is_up_when_it_runs_and_that_is_a_warning(
    with_bot: Scene, fake_docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is judged as one without a health check."""
    monkeypatch.setattr("backuplib.bot.SETTLE_SECONDS", 0.1)
    sick = in_container(with_bot, State_Health={"Status": "unhealthy"})
    fake_docker.has(sick)
    fake_docker.has(sick, after="start")
    switch, _ = with_bot.prepare(unhealthy=(CONTAINER,))
    switch.start_services()
    (warning,) = with_bot.report.warnings
    assert "unhealthy" in warning


def test_services_come_back_after_a_failure_before_the_exchange(with_bot: Scene, fake_docker: FakeDocker) -> None:
    switch, _ = with_bot.prepare()
    switch.stop_services()
    error = RefusedError("x")
    switch.roll_back(error)
    assert error.state == ExitCode.CANNOT_STOP.state
    assert len(fake_docker.called("start")) == 1
    assert Journal.load(with_bot.target) is None


def test_log_of_what_did_not_come_up_is_told_after_the_rollback(with_bot: Scene) -> None:
    switch, candidate = with_bot.prepare()
    switch.exchange(candidate, lambda: None, unsaved=True)
    with pytest.raises(RolledBackError) as raised:
        switch.roll_back(ServicesDownError("service bot is unhealthy", services="but x", log="last words"))
    assert raised.value.log == "last words"
    assert raised.value.state == ""  # what its exit code says: they run again
    assert with_bot.live == OLD


# --- the look after the start ----------------------------------------------------------------------------------------


class ImpatientEngine(Engine):
    """Waits for a lock for a moment only."""

    def look(self, path: Path | str, *, mode: str = "ro", immutable: bool = False, timeout: float = 0.2) -> Any:
        """Whatever is wanted."""
        return super().look(path, mode=mode, immutable=immutable, timeout=min(timeout, 0.2))


def test_restored_database_with_its_rows_is_fine_and_they_are_reported(scene: Scene, screen: io.StringIO) -> None:
    exchanged(scene)
    scene.next_run().check_live({"t": 1})
    assert scene.report.rows == {"t": 1}
    assert "ok, 1 table" in screen.getvalue()
    assert scene.report.warnings == []


def test_database_that_the_bot_has_emptied_is_rolled_back(scene: Scene) -> None:
    exchanged(scene)
    with pytest.raises(RolledBackError) as raised:
        scene.next_run().check_live({"t": 2, "orders": 1000})
    assert "orders had 1,000 rows" in str(raised.value)
    assert scene.report.rows == {"t": 1}


def test_restored_database_that_is_not_sound_is_rolled_back(scene: Scene) -> None:
    exchanged(scene)
    with scene.target.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 200)
    with pytest.raises(RolledBackError):
        scene.next_run().check_live({})


def test_restored_database_that_the_bot_keeps_locked_is_a_warning(tmp_path: Path, report: Report) -> None:
    scene = make_scene(tmp_path / "data", report, ImpatientEngine(None))
    exchanged(scene)
    # Of the library that looks: in one process, another one's locks do not keep it out.
    with contextlib.closing(NewestSQLite(str(scene.target.path))) as bot:
        bot.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        bot.execute("INSERT INTO t VALUES ('x')")
        scene.next_run().check_live({"t": 1000})
    (warning,) = report.warnings
    assert "locked" in warning


# --- forward ---------------------------------------------------------------------------------------------------------


def test_exchange_sets_the_old_database_aside_whole_and_without_a_copy(scene: Scene) -> None:
    inode = scene.target.path.stat().st_ino
    switch, candidate = scene.prepare()
    asked: list[list[str]] = []
    switch.exchange(candidate, lambda: asked.append(scene.names), unsaved=False)
    aside = switch.journal.set_aside
    assert len(asked) == 1
    assert aside.name not in asked[0]
    assert aside.stat().st_ino == inode
    assert scene.names == ["shop.db", aside.name, "shop.db.restore-state.json"]
    assert (scene.live, scene.row(aside)) == (NEW, OLD)


def test_candidate_that_was_changed_meanwhile_is_noticed(scene: Scene) -> None:
    switch, candidate = scene.prepare()
    scene.make_database(scene.target.candidate, "planted")
    with pytest.raises(RolledBackError) as raised:
        switch.exchange(candidate, lambda: None, unsaved=False)
    with pytest.raises(RolledBackError):
        switch.roll_back(raised.value)
    assert scene.live == OLD


def test_nothing_begins_where_the_journal_cannot_be_written(scene: Scene) -> None:
    Path(f"{scene.target.journal}.tmp").mkdir()
    with pytest.raises(CannotWriteError):
        scene.prepare()
    assert not scene.target.journal.exists()


@pytest.mark.parametrize("unsaved", [True, False])
def test_last_writes_are_kept_before_the_old_database_goes(scene: Scene, unsaved: bool) -> None:
    switch, candidate = scene.prepare()
    switch.exchange(candidate, lambda: None, unsaved=unsaved)
    switch.commit()
    switch.clear_away("restored")
    assert scene.kept == ([OLD] if unsaved else [])
    assert scene.names == ["shop.db"]
    assert scene.noted == ("restored", NEW)
    last = LastRestore.of(scene.target.path, scene.backups)
    assert last
    assert last.safety_backup == (f"{scene.target.path.parent}.kept" if unsaved else None)


def test_old_database_stays_where_its_last_writes_cannot_be_kept(scene: Scene) -> None:
    switch, candidate = scene.prepare()
    switch.exchange(candidate, lambda: None, unsaved=True)
    switch.commit()

    def fail(*_: object, **__: object) -> Path:
        raise BackupFailedError("disk full")

    switch.back_up = fail
    switch.clear_away("restored")
    assert scene.row(switch.journal.set_aside) == OLD
    assert len(scene.report.warnings) == 1
    assert Journal.load(scene.target) is None


def test_what_cannot_be_cleared_away_is_a_warning(scene: Scene) -> None:
    switch, candidate = scene.prepare()
    switch.exchange(candidate, lambda: None, unsaved=False)
    switch.commit()
    os.unlink(switch.journal.set_aside)
    switch.journal.set_aside.mkdir()
    switch.clear_away("restored")
    (warning,) = scene.report.warnings
    assert switch.recover_command in warning
