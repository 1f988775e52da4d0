"""The RAM folder: it is one, it cannot be swapped out unasked, and it goes with the process, however that ends."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from backuplib.errors import RefusedError
from backuplib.files import filesystem_type
from backuplib.ram_folder import GPG_HOME_LIMIT, RamFolder, remove_leftovers, swap_on_disk
from tests.conftest import MakeShop, StartTerminal
from tests.support.containers import wait_until
from tests.support.keys import Keys
from tests.support.needs import find, require, skip
from tests.support.shop import ROOT, Shop, open_way_to_python

REFUSED = 3
PREFIX = "restore-backup-"
NOBODY = 65534

needs_root = pytest.mark.needs("root", "mount")
"""Mounts, swap and users of other names."""

# As root, but without the right to mount: then the folder is in /dev/shm.
WITHOUT_MOUNTS = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]

# --- what is left of a run -------------------------------------------------------------------------------------------


def mounts_of_runs() -> set[str]:
    """Mount points of the tool's in any mount namespace."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            text = (process / "mountinfo").read_text(errors="replace")
            found |= {point for line in text.splitlines() if PREFIX in (point := line.split()[4])}
    return found


def folders_of(pid: int) -> set[str]:
    """The RAM folders that a process holds locked, as it sees them."""
    found = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if match := re.match(rf".*/{PREFIX}[^/ ]+", os.readlink(entry)):
                    found.add(match[0])
    return found


def belongs_to(pid: int, folder: str) -> bool:
    """Whether a child of the process is the one that will clean the folder up; it looks at those of others, too."""
    with suppress(OSError):
        return any(f"\nPPid:\t{pid}\n" in Path(f"/proc/{item}/status").read_text() for item in reapers(folder))
    return False


def processes_with(folder: str) -> list[str]:
    """Command lines of processes that name the folder: agent, reaper, gpg."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if folder in command:
                found.append(command)
    return found


def traces_of(folder: str) -> list[str]:
    """Everything that a run with this RAM folder may have left."""
    left = [f"process: {command}" for command in processes_with(folder)]
    left += [f"mount: {point}" for point in mounts_of_runs() if point.startswith(folder)]
    left += [f"folder: {folder}"] if os.path.lexists(folder) else []
    sockets = Path("/run/user").glob("*/gnupg/d.*") if Path("/run/user").is_dir() else iter(())
    return left + [f"socket folder: {path}" for path in sockets if not any(path.iterdir())]


def wait_for_no_traces(folder: str, seconds: float) -> None:
    """AssertionError with what is still there after that time."""
    deadline = time.monotonic() + seconds
    while left := traces_of(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


# --- SIGKILL ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def large_shop(make_shop: MakeShop, mode: str) -> Shop:
    """So large that decrypting and checking takes long enough to be hit in the middle."""
    shop = make_shop(mode)
    with closing(shop.connect()) as connection:
        connection.execute("BEGIN")
        for _ in range(24):
            connection.execute("INSERT INTO customers (name, photo) VALUES ('large', randomblob(1000000))")
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return shop


@dataclass(frozen=True)
class Moment:
    """When to kill: the first time that something is seen, and some time after that."""

    name: str
    seen: Callable[[int, str], object]
    delay: float = 0.0


def home_has(pattern: str) -> Callable[[int, str], object]:
    """Something of that name is in the RAM folder, looked at through the process's own root."""
    return lambda pid, folder: next(Path(f"/proc/{pid}/root{folder}").glob(pattern), None)


def agent_runs(_pid: int, folder: str) -> bool:
    """Its agent is there, though it may not listen yet."""
    return any(command.startswith("gpg-agent ") for command in processes_with(folder))


MOMENTS = (
    Moment("folder made", lambda _pid, _folder: True),
    Moment("home made", home_has("gnupg")),
    Moment("keyring begun", home_has("gnupg/pubring.kbx")),
    *(Moment(f"agent begins, {ms} ms", agent_runs, ms / 1000) for ms in (0, 1, 2)),
    Moment("agent listens", home_has("gnupg/S.gpg-agent")),
    Moment("key imported", home_has("gnupg/private-keys-v1.d/*.key")),
    *(
        Moment(f"{ms} ms after the import", home_has("gnupg/private-keys-v1.d/*.key"), ms / 1000)
        for ms in (30, 100, 200)
    ),
    *(Moment(f"{ms} ms after the import", home_has("gnupg/private-keys-v1.d/*.key"), ms / 1000) for ms in (350, 600)),
)


@pytest.mark.deep
@needs_root
@pytest.mark.parametrize("place", ["private mount", pytest.param("/dev/shm", marks=pytest.mark.long)])
def test_sigkill_during_decryption_leaves_nothing_in_ram(large_shop: Shop, keys: Keys, place: str) -> None:
    backup = large_shop.create_backup()
    before = large_shop.snapshot()
    killed = [kill_at(moment, large_shop, backup, keys, place) for moment in MOMENTS]
    assert sum(alive for _, alive in killed) >= 10, f"the run was over too soon: {killed}"
    time.sleep(2)  # a gpg that was just starting its agent must not have done so after all
    assert [left for folder, _ in killed for left in traces_of(folder)] == []
    assert large_shop.snapshot() == before


def kill_at(moment: Moment, shop: Shop, backup: Path, keys: Keys, place: str) -> tuple[str, bool]:
    """Kill one run at that moment; nothing may be left 3 seconds later. Its folder, and whether it was still alive."""
    wrapper = WITHOUT_MOUNTS if place == "/dev/shm" else []
    process = shop.start_restore(backup, "--verify-only", key=keys.rsa, wrapper=wrapper)
    try:
        folder = wait_for_folder(process)
        assert folder.startswith("/dev/shm/") == (place == "/dev/shm")
        while process.poll() is None and not moment.seen(process.pid, folder):
            time.sleep(0.001)
        time.sleep(moment.delay)
        alive = process.poll() is None
    finally:
        process.kill()
        process.communicate()
    wait_for_no_traces(folder, 3)
    return folder, alive


def wait_for_folder(process: subprocess.Popen[str]) -> str:
    """The RAM folder of a run that has just been started."""
    deadline = time.monotonic() + 30
    while not (found := {folder for folder in folders_of(process.pid) if belongs_to(process.pid, folder)}):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return found.pop()


@pytest.mark.deep
@needs_root
def test_agent_that_starts_only_after_the_kill_is_ended_too(large_shop: Shop, keys: Keys) -> None:
    """By a gpg that the kill left behind, a few forks later: here another program stands in for it."""
    process = large_shop.start_restore(large_shop.create_backup(), "--verify-only", key=keys.rsa)
    try:
        folder = wait_for_folder(process)
        while process.poll() is None and not home_has("gnupg/S.gpg-agent")(process.pid, folder):
            time.sleep(0.001)
    finally:
        process.kill()
        process.communicate()
    time.sleep(0.3)
    late = subprocess.Popen([f"gpg-agent --homedir {folder}/gnupg", "30"], executable="/bin/sleep")
    try:
        assert late.wait(3) == -signal.SIGKILL
    finally:
        late.kill()
        late.wait()
    wait_for_no_traces(folder, 3)


@pytest.mark.deep
@needs_root
@pytest.mark.parametrize("place", ["private mount", "/dev/shm"])
def test_sigkill_during_a_backup_leaves_nothing(large_shop: Shop, place: str) -> None:
    wrapper = WITHOUT_MOUNTS if place == "/dev/shm" else []
    before = large_shop.rows()
    for delay in (0.0, 0.05, 0.2):
        process = large_shop.start("database_backup.py", "create", wrapper=wrapper)
        try:
            folder = wait_for_folder(process)
            time.sleep(delay)
        finally:
            process.kill()
            process.communicate()
        wait_for_no_traces(folder, 3)
    for backup in large_shop.backups.glob("db_backup_*.gpg"):  # of one that was faster than its kill
        assert large_shop.sha256sum_accepts(backup)
    assert large_shop.rows() == before
    large_shop.create_backup()
    assert not list(large_shop.backups.glob(".db_backup_*.tmp"))  # of the killed ones


@pytest.mark.deep
@needs_root
def test_end_of_a_run_leaves_nothing(shop: Shop, keys: Keys) -> None:
    """However it ends: done, refused, ended by a signal."""
    backup = shop.create_backup()
    for how in ("done", "wrong key", "SIGTERM", "SIGINT", "SIGHUP"):
        key = keys.other if how == "wrong key" else keys.rsa
        process = shop.start_restore(backup, "--verify-only", key=key)
        folder = wait_for_folder(process)
        if how.startswith("SIG"):
            process.send_signal(signal.Signals[how])
        process.communicate(timeout=60)
        assert process.returncode == {"done": 0, "wrong key": 4, "SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129}[how]
        wait_for_no_traces(folder, 3)


@pytest.mark.deep
@needs_root
def test_without_its_reaper_the_private_mount_still_goes_with_the_processes(large_shop: Shop, keys: Keys) -> None:
    """The out-of-memory killer may take all of them at once: the tmpfs has no name that outlives them."""
    backup = large_shop.create_backup()
    process = large_shop.start_restore(backup, "--verify-only", key=keys.rsa)
    folder = wait_for_folder(process)
    while not home_has("gnupg/private-keys-v1.d/*.key")(process.pid, folder):
        assert process.poll() is None
        time.sleep(0.001)
    namespace = os.readlink(f"/proc/{process.pid}/ns/mnt")
    assert namespace != os.readlink("/proc/self/ns/mnt")
    held = os.open(f"/proc/{process.pid}/ns/mnt", os.O_RDONLY)  # else its number may soon be that of another run's
    for _ in range(3):
        for pid in in_namespace(namespace):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    os.close(held)
    process.communicate()
    assert not [point for point in mounts_of_runs() if point.startswith(folder)]
    left = Path(folder)
    if left.exists():  # the empty mount point
        assert not list(left.iterdir())
        left.rmdir()


@pytest.mark.deep
@needs_root
@pytest.mark.parametrize("wrapper", [(), WITHOUT_MOUNTS], ids=["private mount", "without"])
def test_agent_that_outlives_tool_and_reaper_is_ended_by_the_next_command(
    shop: Shop, keys: Keys, wrapper: Sequence[str]
) -> None:
    backup = shop.create_backup()
    waiting = ("--verify-only", "--key-stdin", "--passphrase-command", "sleep 20")
    process = shop.start_restore(backup, *waiting, stdin=keys.rsa.private_b64.encode(), wrapper=wrapper)
    folder = wait_for_folder(process)
    while not agent_runs(process.pid, folder):
        assert process.poll() is None
        time.sleep(0.01)
    reaper = next(reapers(folder))
    for number in (signal.SIGSTOP, signal.SIGKILL):  # neither may see the other's end
        for pid in (process.pid, reaper):
            os.kill(pid, number)
    process.communicate()
    assert agent_runs(0, folder)
    assert shop.run("restore_backup.py", "--list").code == 0
    wait_for_no_traces(folder, 3)


def reapers(folder: str) -> Iterator[int]:
    """The processes that will clean a folder up when its user has ended."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if command.startswith(b"/bin/sh\0") and f"\0reaper\0{folder}\0".encode() in command:
                yield int(process.name)


def in_namespace(namespace: str) -> list[int]:
    """The processes in a mount namespace."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(process / "ns/mnt") == namespace:
                found.append(int(process.name))
    return found


@pytest.mark.deep
@needs_root
def test_mount_is_seen_by_nobody_else(large_shop: Shop, keys: Keys) -> None:
    """Others find an empty folder where the tool has its tmpfs."""
    backup = large_shop.create_backup()
    process = large_shop.start_restore(backup, "--verify-only", key=keys.rsa)
    try:
        folder = wait_for_folder(process)
        while not home_has("gnupg")(process.pid, folder):
            assert process.poll() is None
            time.sleep(0.001)
        lines = Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()
        mount = next(line for line in lines if line.split()[4] == folder)
        options = mount.split()[5] + "," + mount.split()[-1]
        for option in ("noswap", "nosuid", "nodev", "noexec", "mode=700"):
            assert option in options.split(","), mount
        assert folder not in Path("/proc/self/mountinfo").read_text()
        assert not list(Path(folder).iterdir())
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    finally:
        process.kill()
        process.communicate()
    wait_for_no_traces(folder, 3)


# --- what counts as RAM ----------------------------------------------------------------------------------------------


def test_filesystem_is_recognised_by_what_the_kernel_says(tmp_path: Path) -> None:
    assert filesystem_type(Path("/dev/shm")) == "tmpfs"
    assert filesystem_type(Path("/proc")) == "proc"
    named = subprocess.run(["stat", "-f", "-c", "%T", "/"], capture_output=True, text=True, check=True).stdout
    assert filesystem_type(Path("/")) not in ("tmpfs", "ramfs", "")
    assert "tmpfs" not in named


@pytest.fixture
def without_private_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user, or a root that may not mount."""
    monkeypatch.setattr(RamFolder, "private_mounts", False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


@contextmanager
def opened(need: int = 1 << 20) -> Iterator[RamFolder]:
    """A RAM folder, gone afterwards."""
    folder = RamFolder(need)
    try:
        yield folder
    finally:
        folder.close()


def test_folder_is_private_and_goes_when_closed(without_private_mounts: None) -> None:
    with opened() as ram:
        assert stat.S_IMODE(ram.path.stat().st_mode) == 0o700
        assert filesystem_type(ram.path) == "tmpfs"
        (ram.path / "secret").write_text("x")
    assert not ram.path.exists()


def test_name_alone_makes_no_ram(without_private_mounts: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder on the disk that XDG_RUNTIME_DIR names is not used."""
    pretended = tmp_path / "run/user/0"
    pretended.mkdir(parents=True)
    assert filesystem_type(pretended) not in ("tmpfs", "ramfs")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(pretended))
    with opened() as ram:
        assert str(ram.path).startswith("/dev/shm/")
    assert not list(pretended.iterdir())


@pytest.mark.needs("root", "mount", "setpriv")
@pytest.mark.parametrize(
    ("user", "owner", "mode", "used"),
    [
        (NOBODY, NOBODY, 0o700, True),
        (NOBODY, NOBODY, 0o755, False),
        (NOBODY, 0, 0o777, False),
        (0, 0, 0o700, False),
        (0, NOBODY, 0o700, False),
    ],
)
def test_ram_folder_of_the_session_is_used_when_it_is_ours_and_closed(
    user: int, owner: int, mode: int, *, used: bool
) -> None:
    """Never by root, to whom `su` hands that of somebody else on."""
    open_way_to_python()
    script = "from backuplib.ram_folder import RamFolder; ram = RamFolder(); print(ram.path); ram.close()"
    with tmpfs(Path(f"/mnt/session-{os.getpid()}")) as session:
        os.chown(session, owner, owner)
        session.chmod(mode)
        argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", sys.executable, "-c", script]
        env = {**os.environ, "XDG_RUNTIME_DIR": str(session), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        path = subprocess.run(argv, env=env, stdout=subprocess.PIPE, text=True, check=True, cwd="/").stdout
    assert path.startswith(f"{session}/" if used else "/dev/shm/")


@contextmanager
def tmpfs(folder: Path, options: str = "size=64M") -> Iterator[Path]:
    """A tmpfs there meanwhile."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


@needs_root
@pytest.mark.parametrize("problem", ["too small", "too long a path", "not writable", "absent"])
def test_unfit_ram_folder_is_passed_over(
    without_private_mounts: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, problem: str
) -> None:
    folder = Path(f"/mnt/{os.getpid()}") if problem != "too long a path" else tmp_path / ("long" * 20)
    options = {"too small": "size=100k", "not writable": "size=64M,ro"}.get(problem, "size=64M")
    with tmpfs(folder, options):
        named = folder / "gone" if problem == "absent" else folder
        assert problem != "too long a path" or len(str(named)) > GPG_HOME_LIMIT - 30
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(named))
        with opened() as ram:
            assert str(ram.path).startswith("/dev/shm/")


def hidden_shm(script: str) -> list[str]:
    """A command to run another one under, in a mount namespace where this was done to /dev/shm; nothing mounts more."""
    setpriv = " ".join(WITHOUT_MOUNTS)
    return ["unshare", "--mount", "sh", "-c", f'{script} && exec {setpriv} "$@"', "sh"]


@needs_root
@pytest.mark.parametrize(
    "script",
    [
        "mkdir -p /var/tmp/no-ram && mount --bind /var/tmp/no-ram /dev/shm",
        "mount -t tmpfs -o size=64k none /dev/shm",
        "mount -t tmpfs -o ro none /dev/shm",
    ],
    ids=["on a disk", "too small", "read-only"],
)
def test_without_any_ram_folder_it_is_refused_and_nothing_goes_to_a_disk(shop: Shop, keys: Keys, script: str) -> None:
    """Never /tmp as a fallback."""
    backup = shop.create_backup()
    before = shop.snapshot()
    done = shop.restore(backup, "--force", key=keys.rsa, wrapper=hidden_shm(script))
    assert done.ended == (REFUSED, "no-memory"), done.text
    assert "/dev/shm" in done.error["message"]
    assert shop.snapshot() == before
    assert not list(Path("/var/tmp").glob(f"no-ram/{PREFIX}*"))


@needs_root
def test_database_larger_than_the_ram_folder_is_refused(make_shop: MakeShop, keys: Keys) -> None:
    """SQLCipher is checked in a file there."""
    shop = make_shop("sqlcipher")
    with closing(shop.connect()) as connection:
        for _ in range(8):
            connection.execute("INSERT INTO customers (name, photo) VALUES ('large', randomblob(1000000))")
    backup = shop.create_backup()
    before = shop.snapshot()
    small = hidden_shm("mount -t tmpfs -o size=4M none /dev/shm")
    done = shop.restore(backup, "--force", key=keys.rsa, wrapper=small)
    assert done.ended == (REFUSED, "no-memory"), done.text
    assert shop.snapshot() == before


def test_leftovers_of_dead_processes_are_removed_and_those_of_the_living_are_not(without_private_mounts: None) -> None:
    """After a power loss nothing is left of a RAM folder; after SIGKILL of everything, its folder is."""
    with opened() as living:
        dead = Path(f"/dev/shm/{PREFIX}dead{os.getpid()}")
        dead.mkdir(mode=0o700)
        (dead / "secret").write_text("x")
        remove_leftovers()
        wait_until(lambda: not dead.exists(), f"{dead} is gone: a run of another test may be removing it just now", 5)
        assert living.path.exists()


def test_leftover_of_somebody_else_is_not_removed(without_private_mounts: None) -> None:
    """A link planted under such a name is not followed."""
    target = Path(f"/dev/shm/precious-{os.getpid()}")
    link = Path(f"/dev/shm/{PREFIX}link{os.getpid()}")
    target.mkdir()
    link.symlink_to(target)
    try:
        remove_leftovers()
        assert target.exists()
    finally:
        link.unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)


# --- swap ------------------------------------------------------------------------------------------------------------

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
SWAPS = {
    "none": (HEAD, False),
    "empty": ("", False),
    "file": (HEAD + "/swapfile                               file\t\t2097148\t\t0\t\t-2\n", True),
    "partition": (HEAD + "/dev/sda5                               partition\t998396\t\t780\t\t-2\n", True),
    "zram": (HEAD + "/dev/zram0                              partition\t4194300\t\t0\t\t100\n", False),
    "zram and file": (
        HEAD + "/dev/zram0                              partition\t4194300\t\t0\t\t100\n"
        "/swapfile                               file\t\t2097148\t\t0\t\t-2\n",
        True,
    ),
    "device mapper": (HEAD + "/dev/dm-1                               partition\t8388604\t\t0\t\t-2\n", True),
    "blank in the name": (HEAD + "/my\\040swap                              file\t\t8188\t\t0\t\t-2\n", True),
    "deleted": (HEAD + "/swapfile\\040(deleted)                   file\t\t8188\t\t0\t\t-2\n", True),
    "named like zram": (HEAD + "/data/dev/zram0                         file\t\t8188\t\t0\t\t-2\n", True),
}


@pytest.mark.parametrize("name", SWAPS)
def test_swap_is_read_from_what_the_kernel_writes(name: str) -> None:
    text, expected = SWAPS[name]
    assert swap_on_disk(text) is expected


@pytest.mark.needs("swapon")
def test_swap_of_this_machine_is_what_swapon_says() -> None:
    swapon = str(find("swapon"))
    shown = subprocess.run([swapon, "--show=NAME", "--noheadings"], capture_output=True, text=True, check=True).stdout
    names = [line for line in shown.splitlines() if "zram" not in line]
    assert swap_on_disk() == bool(names)


@pytest.fixture
def swap_wrapper(tmp_path: Path) -> list[str]:
    """A command to run others under, where /proc/swaps tells of a swap file, in what a kernel with one wrote.

    Real swap is the whole machine's, and tests that run beside this one would see it: see the long form.
    """
    require("root", "mount")
    listing = tmp_path / "swaps"
    listing.write_text(SWAPS["file"][0])
    return ["unshare", "--mount", "sh", "-c", f'mount --bind {listing} /proc/swaps && exec "$@"', "sh"]


@pytest.mark.long
@needs_root
@pytest.mark.needs("mkswap", "swapon")
def test_real_swap_file_is_seen_and_refused(shop: Shop, keys: Keys, tmp_path: Path) -> None:
    """With swapon; in the long form only, since swap is the whole machine's and other tests would see it."""
    backup = shop.create_backup()
    file = tmp_path / "swapfile"
    subprocess.run(["dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=4", "status=none"], check=True)
    file.chmod(0o600)
    subprocess.run(["mkswap", str(file)], check=True, capture_output=True)
    switched = subprocess.run(["swapon", str(file)], capture_output=True, text=True, check=False)
    if switched.returncode != 0:
        skip("swap")  # in a container, or on a file system that takes no swap file
    try:
        assert swap_on_disk()
        refused = shop.restore(backup, "--verify-only", key=keys.rsa, wrapper=WITHOUT_MOUNTS)
        private = shop.restore(backup, "--verify-only", key=keys.rsa)
    finally:
        subprocess.run(["swapoff", str(file)], check=True)
    assert refused.ended == (REFUSED, "swap-enabled"), refused.text
    assert private.code == 0, private.text


def test_with_swap_root_is_not_asked_since_its_folder_is_never_swapped(
    shop: Shop, keys: Keys, swap_wrapper: list[str]
) -> None:
    backup = shop.create_backup()
    done = shop.restore(backup, "--force", key=keys.rsa, wrapper=swap_wrapper)
    assert done.code == 0, done.text
    assert "swap is on" not in done.text.lower()


def test_with_swap_and_no_private_mount_it_is_refused_without_a_terminal(
    shop: Shop, keys: Keys, swap_wrapper: list[str]
) -> None:
    backup = shop.create_backup()
    before = shop.snapshot()
    done = shop.restore(backup, "--force", key=keys.rsa, wrapper=[*swap_wrapper, *WITHOUT_MOUNTS])
    assert done.ended == (REFUSED, "swap-enabled"), done.text
    for remedy in ("--allow-swap", "swapoff"):
        assert remedy in done.error["hint"]
    assert shop.snapshot() == before


def test_with_swap_allowed_it_goes_on(shop: Shop, keys: Keys, swap_wrapper: list[str]) -> None:
    backup = shop.create_backup()
    wrapper = [*swap_wrapper, *WITHOUT_MOUNTS]
    done = shop.restore(backup, "--force", "--allow-swap", key=keys.rsa, wrapper=wrapper)
    assert done.code == 0, done.text
    (said,) = [warning for warning in done.report["warnings"] if warning.startswith("swap is on")]
    assert "RAM folder" in said
    assert "this process" not in said, "its memory is locked"


@needs_root
@pytest.mark.needs("prlimit", "setpriv")
def test_with_swap_memory_that_cannot_be_locked_is_said_once(
    make_shop: MakeShop, keys: Keys, swap_wrapper: list[str]
) -> None:
    shop = make_shop("sqlite")
    backup = shop.create_backup()
    unlocked = ["prlimit", "--memlock=65536", "setpriv", "--bounding-set=-ipc_lock"]
    done = shop.restore(backup, "--verify-only", key=keys.rsa, wrapper=[*swap_wrapper, *unlocked])
    assert done.code == 0, done.text
    (said,) = [warning for warning in done.report["warnings"] if warning.startswith("swap is on")]
    assert "this process" in said
    assert "RAM folder" not in said
    assert done.err.count("locked") == 1
    done = shop.restore(backup, "--verify-only", key=keys.rsa, wrapper=unlocked)
    assert "swap is on" not in done.text or swap_on_disk(), "nothing is at stake"


@needs_root
@pytest.mark.parametrize("answer", ["y", "n"])
def test_with_swap_the_operator_is_asked_on_a_terminal(
    make_shop: MakeShop, keys: Keys, swap_wrapper: list[str], terminal: StartTerminal, answer: str
) -> None:
    """The wrapper stands in for the Python that the terminal starts."""
    shop = make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=keys.open.public_b64)
    backup = shop.create_backup()
    inner = shop.path / "inner.py"
    (shop.path / "restore_backup.py").rename(inner)
    command = [*swap_wrapper, *WITHOUT_MOUNTS]
    (shop.path / "restore_backup.py").write_text(
        f"import os, sys\nos.execvp({command[0]!r}, {command!r} + [sys.executable, {str(inner)!r}] + sys.argv[1:])\n"
    )
    before = shop.snapshot()
    session = terminal(shop, backup, "--verify-only")
    session.expect("Swap is on")
    session.send(answer + "\n")
    if answer == "y":
        session.expect("private key")
        session.send(keys.open.private_b64 + "\n")
    assert session.wait() == (0 if answer == "y" else REFUSED), session.output
    assert shop.snapshot() == before


# --- noswap where the kernel has it ----------------------------------------------------------------------------------


@needs_root
@pytest.mark.needs("strace")
def test_kernel_that_does_not_know_noswap_gets_a_folder_in_shm(shop: Shop, keys: Keys) -> None:
    """Before Linux 6.4 the mount fails: strace makes it fail here."""
    backup = shop.create_backup()
    inject = "inject=mount:error=EINVAL:when=2+"  # the first mount makes the namespace private
    strace = ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=mount", "-e", inject]
    done = shop.restore(backup, "--verify-only", key=keys.rsa, wrapper=strace)
    assert done.code == 0, done.text


@needs_root
def test_where_nothing_can_be_mounted_in_run_the_folder_is_in_shm(shop: Shop, keys: Keys) -> None:
    """As in a container whose own filesystem is read-only."""
    backup = shop.create_backup()
    read_only = "mount --bind /run /run && mount -o remount,bind,ro /run"
    wrapper = ["unshare", "--mount", "sh", "-c", f'{read_only} && exec "$@"', "sh"]
    done = shop.restore(backup, "--verify-only", "--allow-swap", key=keys.rsa, wrapper=wrapper)
    assert done.code == 0, done.text


def test_no_ram_is_told_with_what_to_do(without_private_mounts: None) -> None:
    with pytest.raises(RefusedError) as refused:
        RamFolder(1 << 60)
    assert "/dev/shm" in str(refused.value)
    assert "remount" in refused.value.hint
