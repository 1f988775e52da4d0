"""Names that others exchange while a restore or a backup runs: nothing is done to what they lead to meanwhile."""

import ctypes
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from backuplib.folder import PLACE
from tests.conftest import ONE_MODE, MakeShop
from tests.support.matrix import Tell
from tests.support.shop import Completed, FileState, Shop

RENAME_EXCHANGE, HERE = 2, -100  # linux/fs.h, linux/fcntl.h


def exchange(one: Path, other: Path) -> None:
    """Let two names change places."""
    ctypes.CDLL(None).renameat2(HERE, os.fsencode(one), HERE, os.fsencode(other), RENAME_EXCHANGE)


@contextmanager
def again_and_again(act: Callable[[], object]) -> Iterator[None]:
    """Do something all the time in another thread."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            with suppress(OSError):
                act()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def state_of(folder: Path) -> dict[str, FileState]:
    """Everything in a folder."""
    return {str(path.relative_to(folder)): FileState.of(path) for path in sorted(folder.rglob("*"))}


def act(shop: Shop, what: str, wrapper: Sequence[object] = ()) -> Completed:
    """Make a backup, or restore the newest one."""
    if what == "create":
        return shop.run("database_backup.py", "create", wrapper=wrapper)
    return shop.restore("--force", "latest", wrapper=wrapper)


@pytest.fixture
def changed(make_shop: MakeShop) -> Shop:
    """A shop whose database came apart from its backup, with rows that only the WAL holds."""
    shop = make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None)
    shop.create_backup()
    shop.change_data()
    shop.leave_hot_wal()
    return shop


# --- what is asked of the kernel -------------------------------------------------------------------------------------


def paths_below(log: Path, shop: Shop) -> list[str]:
    """The calls of a run that go to what is in data/ or backups/ by name; of the folder itself one asks with a dot."""
    names = "|".join(re.escape(str(folder)) for folder in (shop.db_path.parent, shop.backups))
    by_path = re.compile(rf'"(?:{names}|data|backups)/(?!\.")')
    return [line for line in log.read_text(errors="replace").splitlines() if by_path.search(line)]


@pytest.mark.needs("root", "strace", "private mounts")
@pytest.mark.parametrize("what", ["restore", "create"])
def test_nothing_in_data_or_backups_is_reached_by_name(changed: Shop, tmp_path: Path, what: str) -> None:
    log = tmp_path / "strace"
    done = act(changed, what, ["strace", "-f", "-qq", "-s", "300", "-e", "trace=%file", "-o", log])
    assert done.code == 0, done.text
    assert paths_below(log, changed) == []
    text = log.read_text(errors="replace")
    assert re.search(rf'"{PLACE}/\d+{changed.db_path}"', text), "the database is not reached otherwise either"
    assert not (Path(PLACE) / "1").exists()


NO_MOUNTS = ["mount:error=EPERM"]
NO_NAMESPACE = ["unshare:error=EPERM"]
NO_NOSYMFOLLOW = ["mount:error=EINVAL:when=4", "mount:error=EINVAL:when=6"]  # each folder's second one
NO_NOSWAP = ["mount:error=EINVAL:when=2"]


@pytest.mark.needs("root", "strace")
@pytest.mark.parametrize("missing", [NO_MOUNTS, NO_NAMESPACE, NO_NOSYMFOLLOW, NO_NOSWAP], ids=str)
def test_a_kernel_that_lacks_a_part_restores_all_the_same(changed: Shop, missing: list[str]) -> None:
    calls = {item.partition(":")[0] for item in missing}
    inject = [word for item in missing for word in ("-e", f"inject={item}")]
    wrapper = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", f"trace={','.join(calls)}", *inject]
    done = act(changed, "restore", wrapper)
    assert done.code == 0, done.text
    assert changed.is_restored()
    assert act(changed, "create", wrapper).code == 0


# --- exchanges -------------------------------------------------------------------------------------------------------

RUNS = pytest.mark.parametrize("runs", [2, pytest.param(25, marks=pytest.mark.long)])
ROOT_WITHOUT_MOUNTS = ("setpriv", "--bounding-set", "-sys_admin")
MOUNTS = pytest.mark.parametrize(
    "wrapper",
    [(), pytest.param(ROOT_WITHOUT_MOUNTS, marks=[pytest.mark.needs("setpriv", "root"), pytest.mark.long])],
    ids=["mounted", "not mounted"],
)


def race(shop: Shop, what: str, runs: int, tell: Tell) -> None:
    """Let the folder above data/ and backups/, and one with files of somebody else, change places all the time."""
    above, decoy = shop.path / "own", shop.path / "decoy"
    shutil.copytree(above, decoy)
    with closing(shop.connect(decoy / "data/shop.db")) as connection:
        connection.execute("INSERT INTO customers (name) VALUES ('of somebody else')")
    codes: list[int] = []
    for _ in range(runs):
        before = {state["data/shop.db"].inode: state for state in map(state_of, (above, decoy))}
        with again_and_again(lambda: exchange(above, decoy)):
            done = act(shop, what)
        codes.append(done.code)
        assert done.code in (0, 3, 6, 7, 8), done.text
        after = [state_of(above), state_of(decoy)]
        untouched = [state for state in after if state in before.values()]
        assert untouched, f"both folders were changed: {done.text}"
        touched = next((state for state in after if state not in before.values()), {})
        assert not [name for name in touched if ".restore-" in name or ".backup-" in name], sorted(touched)
    tell(f"{what}: {runs} runs in a folder that changed places, exit codes {sorted(codes)}")


@pytest.fixture
def below(make_shop: MakeShop) -> Shop:
    """A shop that has data/ and backups/ in a folder of the bot's."""
    return moved_below(make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None), "data", "backups")


def moved_below(shop: Shop, *names: str) -> Shop:
    """Move folders of a shop that is changed since its backup into one of their own."""
    shop.create_backup()
    shop.change_data()
    shop.content()
    (shop.path / "own").mkdir()
    for name in names:
        (shop.path / name).rename(shop.path / "own" / name)
    settings = {"data": "DATA_DIR", "backups": "DB_BACKUP_PATH"}
    shop.write_env(**{settings[name]: f"own/{name}" for name in names})
    return shop


@RUNS
@pytest.mark.parametrize("what", ["restore", "create"])
def test_a_folder_above_that_is_exchanged_all_the_time_moves_nothing_elsewhere(
    below: Shop, what: str, runs: int, tell: Tell
) -> None:
    race(below, what, runs, tell)


@pytest.mark.needs("root")
@RUNS
@pytest.mark.parametrize("what", ["restore", "create"])
def test_a_link_of_the_bots_in_the_place_of_data_leads_nowhere(
    make_shop: MakeShop, what: str, runs: int, tell: Tell
) -> None:
    shop = moved_below(make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=None), "data")
    elsewhere = shop.path / "elsewhere"
    shutil.copytree(shop.db_path.parent, elsewhere)
    link = shop.path / "own/link"
    link.symlink_to(elsewhere)
    for path in (shop.path / "own", link):
        os.chown(path, 1000, 1000, follow_symlinks=False)
    before, codes = state_of(elsewhere), []
    for _ in range(runs):
        with again_and_again(lambda: exchange(shop.db_path.parent, link)):
            done = act(shop, what)
        codes.append(done.code)
        assert done.code in (0, 3, 6, 7, 8), done.text
        assert state_of(elsewhere) == before, done.text
    tell(f"{what}: {runs} runs with a link in the place of data/, exit codes {sorted(codes)}")


@pytest.mark.needs("root")
@RUNS
@MOUNTS
@pytest.mark.parametrize("what", ["restore", "create"])
def test_a_database_that_is_a_link_now_and_then_leads_nowhere(
    changed: Shop, what: str, wrapper: Sequence[object], runs: int, tell: Tell
) -> None:
    secret = changed.path / "secret"
    shutil.copyfile(changed.db_path, secret)
    link = changed.db_path.with_name("link")
    link.symlink_to(secret)
    for path in (changed.db_path.parent, link):
        os.chown(path, 1000, 1000, follow_symlinks=False)
    before, codes = FileState.of(secret), []
    for _ in range(runs):
        with again_and_again(lambda: exchange(changed.db_path, link)):
            done = act(changed, what, wrapper)
        codes.append(done.code)
        assert done.code in (0, 3, 6, 7, 8, 20), done.text
        assert FileState.of(secret) == before, done.text
        assert not list(changed.path.glob("secret?*")), done.text
    tell(f"{what}: {runs} runs with a link at shop.db, exit codes {sorted(codes)}")


@pytest.mark.needs("root", "setpriv", "private mounts")
def test_it_is_said_where_a_folder_above_could_lead_sqlite_elsewhere(below: Shop) -> None:
    said = "rename the folders above"
    assert said not in act(below, "restore", ROOT_WITHOUT_MOUNTS).text
    os.chown(below.path / "own", 1000, 1000)
    done = act(below, "restore", ROOT_WITHOUT_MOUNTS)
    assert (done.code, said in done.text) == (0, True), done.text
    assert said not in act(below, "restore").text


# --- planted names ---------------------------------------------------------------------------------------------------

PLANTED = (
    "data/shop.db.restore-new",
    "data/shop.db.restore-probe",
    "data/shop.db.restore-probe2",
    "data/shop.db.restore-state.json.tmp",
    "backups/restore.log",
    "backups/restore.log.1",
    "backups/last-restore.json",
    "backups/last-restore.json.tmp",
    "backups/.db_backup_1_1.tmp",
)


@pytest.mark.needs("root")
def test_links_at_every_name_that_a_restore_makes_lead_nowhere(changed: Shop) -> None:
    secret = changed.path / "secret"
    secret.write_text("of root")
    for name in PLANTED:
        (changed.path / name).symlink_to(secret)
    for folder in (changed.db_path.parent, changed.backups):
        for path in (folder, *folder.iterdir()):
            os.chown(path, 1000, 1000, follow_symlinks=False)
    before = FileState.of(secret)
    done = act(changed, "restore")
    assert done.code == 0, done.text
    assert changed.is_restored()
    assert FileState.of(secret) == before
    assert not [name for name in os.listdir(changed.db_path.parent) if name.startswith("shop.db.")]


@pytest.mark.needs("root")
@pytest.mark.parametrize("what", ["--verify-only", "--list", "--check", "--force"])
def test_a_link_of_the_bots_in_the_place_of_backups_is_refused(changed: Shop, what: str) -> None:
    elsewhere = changed.path / "elsewhere"
    changed.backups.rename(elsewhere)
    changed.backups.symlink_to(elsewhere)
    os.lchown(changed.backups, 1000, 1000)
    before = state_of(elsewhere)
    backup = [] if what in ("--list", "--check") else [next(elsewhere.glob("*.gz"))]
    done = changed.restore(*backup, what)
    assert done.ended == (3, "refused"), done.text
    assert done.error["hint"].endswith(f"readlink -f {changed.backups}")
    assert state_of(elsewhere) == before


# --- honest use beside it --------------------------------------------------------------------------------------------


@ONE_MODE
@pytest.mark.parametrize("what", ["restore", "create"])
def test_folders_that_are_links_of_the_operators_work(shop: Shop, tmp_path: Path, what: str) -> None:
    shop.write_env(PGP_PUBLIC_KEY_BASE64=None)
    shop.create_backup()
    shop.change_data()
    for name in ("data", "backups"):
        (shop.path / name).rename(tmp_path / name)
        (shop.path / name).symlink_to(tmp_path / name)
    done = act(shop, what)
    assert done.code == 0, done.text
    assert shop.is_restored() == (what == "restore")
    assert (tmp_path / "data/shop.db").is_file()
    assert (shop.path / "data").is_symlink()
