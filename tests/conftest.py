"""Fixtures. All real: gpg, SQLite and SQLCipher, terminals, containers. All safe under pytest-xdist.

    keys             Keys, the same in all workers: keys.rsa (with passphrase), keys.open (without), keys.other
    signing          the SigningFolder with the host's key, the same for all shops
    gpg              a GpgHome that has them, to encrypt and to make more keys in
    mode             "sqlite" and "sqlcipher", in turn
    make_shop        make_shop(mode, **settings) -> Shop with sample data; settings go to .env, None takes one out
    shop             make_shop(mode)
    tell             tell(text): a line under the results of all tests, such as how many faults there were
    terminal         terminal(shop, *args, stdin=None, env=None, pass_fds=()) -> Terminal running restore_backup.py
    docker           the image's name; needs a Docker engine that answers
    compose          Compose "v1" and "v2", in turn
    make_bot_shop    make_bot_shop(mode, compose, Bot(...), **settings) -> BotShop, not started; removed afterwards
    bot_shop         make_bot_shop(mode, compose), up and writing: both modes, both Composes
    prepare          prepare(mode, compose, Bot(...), services=("bot",), **settings) -> Scene: a bot, and its backup
    make_host        make_host(shop) -> Host, reached as `ssh host`; host is one with plain SQLite
    ssh_terminal     ssh_terminal(host, "-t", command) -> Terminal running the client

A test that needs more than Python, GnuPG and coreutils asks for it: @pytest.mark.needs("strace"), see support/needs.py.
In CI the variable SQLCIPHER4 names a `sqlcipher` program of version 4, to prove files with something not ours.

What the objects can do stands in the module of support/ that their class is in.
"""

import compileall
import json
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TypeVar
from zlib import crc32

import pytest

from backuplib.ram_folder import RamFolder
from backuplib.signing import SigningFolder
from tests.support.containers import (
    Bot,
    BotShop,
    Compose,
    compose_v1,
    compose_v2,
    import_image,
)
from tests.support.keys import GpgHome, Keys, gpg_home, shared_keys
from tests.support.matrix import Tell
from tests.support.needs import require
from tests.support.scene import Scene
from tests.support.shop import DB_PASS, ROOT, Shop, copy_program, fill_with_sample_data
from tests.support.ssh import Host, set_up_host
from tests.support.terminal import Terminal

MakeShop = Callable[..., Shop]
MakeBotShop = Callable[..., BotShop]
StartTerminal = Callable[..., Terminal]
MakeHost = Callable[[Shop], Host]
SshTerminal = Callable[..., Terminal]
Prepare = Callable[..., Scene]
AnyShop = TypeVar("AnyShop", bound=Shop)

ONE_MODE = pytest.mark.parametrize("mode", ["sqlite"])
"""For what comes before the database, or beside it, and so does not depend on how it is encrypted."""


def pytest_configure(config: pytest.Config) -> None:
    """Signals as a login shell has them: what a background job ignores, every program under test would ignore too.

    The program is compiled once, before the workers start, which copy it.
    """
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(ROOT / "backuplib", quiet=1)
        put_newest_rclone_first(config)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def put_newest_rclone_first(config: pytest.Config) -> None:
    """Let the programs under test find pip's rclone, if it is there, before Debian's, whether a venv is active or not.

    By a link in a folder of its own: pip's has other programs, too, which an operator's PATH has not.
    """
    newest = Path(sys.executable).with_name("rclone")
    if newest.exists():
        folder = config.cache.mkdir("programs")
        link = folder / "rclone"
        link.unlink(missing_ok=True)
        link.symlink_to(newest)
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


# --- what a test needs ---------------------------------------------------------------------------------------


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test for what its `needs` marks name and this machine does not have, before any fixture is made."""
    for mark in item.iter_markers("needs"):
        require(*mark.args)


EVERY_DAY, SAMPLE = 1, 2
"""Cases of a test that makes shops, and so runs the program: every day, and in CI; spread over all of them."""

MODE_MATTERS = {
    "backup",
    "bad_live_database",
    "conversion",
    "journal",
    "locked",
    "rescue",
    "restore",
    "secrets",
    "sql_dump",
}
"""Test modules whose subject is what lies in the database: CI runs a third of their cases in both modes."""

DEEP = {"drill", "fuzz", "into_a_bot", "messages_snapshot", "ram_folder", "rig", "unprivileged"}
"""Test modules that are deep as a whole: every one of their tests takes seconds, for what few changes touch."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deep: what runs under strace, or goes through more of the same cases; long: through all of them."""
    spare_a_mode(items)
    spare_a_compose(items)
    spare_half_a_matrix(items)
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if subject_of(item.nodeid) in DEEP or any("strace" in needs.args for needs in item.iter_markers("needs")):
            item.add_marker("deep")
        if "make_shop" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("long"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        deep = [item for item in cases if item.get_closest_marker("deep")]
        daily = spread([item for item in cases if item not in deep], SAMPLE)
        for item in {*cases} - {*daily, *spread(deep, SAMPLE - len(daily))}:
            item.add_marker("long")
        for item in {*daily} - {*spread(daily, EVERY_DAY)}:
            item.add_marker("deep")
    leave_out_what_was_proved_elsewhere(config, items)


def subject_of(nodeid: str) -> str:
    """The subject of a test module: its name without test_; none for unit tests."""
    return "" if nodeid.startswith("tests/unit/") else Path(nodeid.partition("::")[0]).stem.removeprefix("test_")


def spread(cases: list[pytest.Item], count: int) -> list[pytest.Item]:
    """So many of the cases, or all of them, evenly spread, the first among them."""
    return [cases[number * len(cases) // count] for number in range(count)] if len(cases) > count else cases


def leave_out_what_was_proved_elsewhere(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In CI, what has passed on the bare machine is not run again, except for the unit tests, which take seconds.

    PROVED_ELSEWHERE is the cache folder of that run.
    """
    file = Path(os.environ.get("PROVED_ELSEWHERE", ""), "v/passed")
    passed = {*json.loads(file.read_text())} if file.is_file() else set()
    done = [item for item in items if item.nodeid in passed and not item.nodeid.startswith("tests/unit/")]
    if done:
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item not in {*done}]


def spare_half_a_matrix(items: list[pytest.Item]) -> None:
    """The sample of a matrix is SQLite with a WAL or SQLCipher with a journal, in turn by test; long: all four."""
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if {"stage", "mode"} <= params.keys():
            test = item.nodeid.partition("[")[0]
            taken = [("wal", "sqlite"), ("journal", "sqlcipher")][crc32(test.encode()) % 2]
            if (params["stage"], params["mode"]) != taken:
                item.add_marker("long")


def spare_a_mode(items: list[pytest.Item]) -> None:
    """A case of both modes runs in one of them every day, a third of the cases in SQLCipher.

    In the other it is deep for a third of the cases of a module whose mode matters, else long.
    SQLCipher makes a key of the passphrase whenever it opens a database, which is most of what such a run takes.
    """
    cases: dict[tuple[str, str], dict[str, pytest.Function]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            params = dict(item.callspec.params)
            if (mode := params.pop("mode", None)) and "stage" not in params:
                cases.setdefault((item.nodeid.partition("[")[0], repr(params)), {})[str(mode)] = item
    turns: Counter[str] = Counter()
    for (test, _), in_mode in cases.items():
        if len(in_mode) == 2:
            turns[test] += 1
            every_day = "sqlcipher" if (crc32(test.encode()) + turns[test]) % 3 == 0 else "sqlite"
            matters = subject_of(test) in MODE_MATTERS or "/unit/" in test
            for mode in in_mode.keys() - {every_day}:
                in_mode[mode].add_marker("deep" if matters and turns[test] % 3 == 1 else "long")


def spare_a_compose(items: list[pytest.Item]) -> None:
    """Of a case with containers in several modes and Composes one runs, not the same one in each test; long: all."""
    cases: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        params = dict(item.callspec.params) if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if {"mode", "compose"} <= params.keys() and not item.get_closest_marker("long"):
            del params["mode"], params["compose"]
            cases.setdefault((item.nodeid.partition("[")[0], repr(params)), []).append(item)
    for (test, _), found in cases.items():
        for item in found:
            if item is not found[crc32(test.encode()) % len(found)]:
                item.add_marker("long")


# A skip is a failure in CI.
IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """CI installs all parts: what is skipped there is missing, and must not look like success."""
    report = yield
    fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself."""
    report = yield
    fail_if_skipped(report)
    return report


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI, turn a skip into a failure that keeps the reason."""
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which fails in CI: {reason}"


# --- figures that tests tell -----------------------------------------------------------------------------------------


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """tell(text): a line under the results, also when a worker runs the test, whose output nobody sees."""
    return lambda text: record_property("told", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests told, and note what has passed."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    terminalreporter.config.cache.set("passed", [report.nodeid for report in terminalreporter.stats.get("passed", ())])
    calls = [report for report in reports if isinstance(report, pytest.TestReport) and report.when == "call"]
    told = [str(text) for report in calls for name, text in report.user_properties if name == "told"]
    if told:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(sorted(told)))


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Three key pairs, made once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    return shared_keys(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


@pytest.fixture(scope="session")
def signing(tmp_path_factory: pytest.TempPathFactory) -> SigningFolder:
    """The folder of the host's signing key, the same for all shops of all workers: most tests only need it there."""
    folder = tmp_path_factory.getbasetemp()
    made = SigningFolder((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "signing")
    with RamFolder() as ram:
        made.sign("", ram)
    return made


@pytest.fixture(scope="session")
def gpg(keys: Keys) -> Iterator[GpgHome]:
    """A throwaway GnuPG home with the keys, for messages and further keys: gpg.generate(ECC, "name", "passphrase")."""
    with gpg_home() as home:
        home.run("--import", stdin=b"".join(key.private_binary for key in (keys.rsa, keys.open, keys.other)))
        yield home


# --- shops -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "sqlcipher"])
def mode(request: pytest.FixtureRequest) -> str:
    """Plain SQLite and SQLCipher in turn."""
    return str(request.param)


@pytest.fixture
def make_shop(tmp_path: Path, keys: Keys, signing: SigningFolder) -> MakeShop:
    """make_shop(mode, **settings): a shop folder with sample data in WAL mode, and Docker out of the game."""

    def make(mode: str, **settings: str | None) -> Shop:
        shop = Shop(path=new_folder(tmp_path), mode=mode)
        return set_up(shop, keys, {"SIGNING_DIR": str(signing.path), **settings})

    return make


@pytest.fixture
def shop(make_shop: MakeShop, mode: str) -> Shop:
    """A shop with sample data; backups are encrypted to keys.rsa; RUNTIME_ENVIRONMENT=TEST."""
    return make_shop(mode)


def new_folder(parent: Path) -> Path:
    """A folder whose name no other test has: Compose makes the project's name of it."""
    folder = parent / f"shop-{uuid.uuid4().hex[:10]}"
    folder.mkdir()
    (parent / f"{folder.name}-home").mkdir()
    return folder


def set_up(shop: AnyShop, keys: Keys, settings: dict[str, str | None]) -> AnyShop:
    """Program, .env, folders and sample data."""
    defaults: dict[str, str | None] = {"RUNTIME_ENVIRONMENT": "TEST", "PGP_PUBLIC_KEY_BASE64": keys.rsa.public_b64}
    if shop.mode == "sqlcipher":
        defaults |= {"DB_ENCRYPTION": "true", "DB_PASS": DB_PASS}
    copy_program(shop.path)
    shop.write_env(**{**defaults, **settings})
    shop.db_path.parent.mkdir()
    shop.backups.mkdir()
    with closing(shop.connect()) as connection:
        fill_with_sample_data(connection)
    return shop


# --- terminals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[StartTerminal]:
    """terminal(shop, *args): restore_backup.py on a terminal of its own, ended afterwards."""
    with ExitStack() as running:

        def start(
            shop: Shop,
            *args: object,
            stdin: int | None = None,
            env: dict[str, str] | None = None,
            pass_fds: tuple[int, ...] = (),
        ) -> Terminal:
            argv = [sys.executable, "restore_backup.py", *map(str, args)]
            started = Terminal(argv, cwd=shop.path, env=shop.environment(env), stdin=stdin, pass_fds=pass_fds)
            running.callback(started.end)
            return started

        yield start


# --- containers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def docker() -> str:
    """A Docker engine answers and has the image, whose name this is. Root, who can read the containers' folders."""
    require("root", "docker", "busybox")
    return import_image()


@pytest.fixture(params=["v1", "v2"])
def compose(request: pytest.FixtureRequest, docker: str, tmp_path: Path) -> Compose:
    """Both flavours in turn; each is the only one that a program finds."""
    require(f"docker compose {request.param}")
    folder = tmp_path / "docker-config"
    folder.mkdir()
    return {"v1": compose_v1, "v2": compose_v2}[request.param](folder)


@pytest.fixture
def make_bot_shop(tmp_path: Path, keys: Keys, signing: SigningFolder) -> Iterator[MakeBotShop]:
    """make_bot_shop(mode, compose, Bot(...), **settings): RUNTIME_ENVIRONMENT=PROD; up() is the test's business."""
    with ExitStack() as cleanup:

        def make(mode: str, compose: Compose, bot: Bot | None = None, **settings: str | None) -> BotShop:
            shop = BotShop(path=new_folder(tmp_path), mode=mode, env=compose.env, compose=compose, bot=bot or Bot())
            set_up(shop, keys, {"RUNTIME_ENVIRONMENT": "PROD", "SIGNING_DIR": str(signing.path), **settings})
            shop.write_compose_file()
            cleanup.callback(shop.down)
            return shop

        yield make


@pytest.fixture
def bot_shop(make_bot_shop: MakeBotShop, mode: str, compose: Compose) -> BotShop:
    """A shop whose bot is up and has written rows."""
    shop = make_bot_shop(mode, compose)
    shop.up()
    shop.wait_rows()
    return shop


@pytest.fixture
def prepare(make_bot_shop: MakeBotShop, keys: Keys) -> Prepare:
    """prepare(mode, compose, Bot(...), services=("bot",)): a Scene; the services run, or those named."""

    def build(
        mode: str,
        compose: Compose,
        bot: Bot | None = None,
        services: tuple[str, ...] = ("bot",),
        **settings: str | None,
    ) -> Scene:
        settings = {"PGP_PUBLIC_KEY_BASE64": keys.open.public_b64, **settings}
        shop = make_bot_shop(mode, compose, bot or Bot(health=True), **settings)
        expected = shop.rows()
        backup = shop.create_backup()
        shop.change_data()
        if services:
            shop.up(*services)
            if "bot" in services:
                shop.wait_rows()
                if shop.bot.health:
                    shop.wait_health("healthy")
        return Scene(shop, keys.open, backup, expected, time.time())

    return build


# --- over SSH --------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_host(tmp_path: Path, keys: Keys) -> Iterator[MakeHost]:
    """make_host(shop): its machine runs sshd, and the shop has changed since its backup BACKUP was made."""
    require("root", "sshd", "ssh", "ssh-keygen")
    with ExitStack() as cleanup:
        yield lambda shop: set_up_host(tmp_path / "ssh", shop, keys.rsa, cleanup)


@pytest.fixture
def host(make_host: MakeHost, make_shop: MakeShop) -> Host:
    """A host whose shop has plain SQLite and no Docker; the backup is encrypted."""
    return make_host(make_shop("sqlite"))


@pytest.fixture
def ssh_terminal() -> Iterator[SshTerminal]:
    """ssh_terminal(host, "-t", remote command): the client on a terminal of its own, ended afterwards."""
    with ExitStack() as running:

        def start(host: Host, option: str, remote: str) -> Terminal:
            started = Terminal(["ssh", option, "host", remote], cwd=host.folder / "away", env=host.away())
            running.callback(started.end)
            return started

        yield start
