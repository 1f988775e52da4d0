"""Prompts on a real terminal: the key without echo, the passphrase, the confirmation, the menus; and none of them."""

import base64
import gzip
import hashlib
import os
import re
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeShop, StartTerminal
from tests.support.keys import GpgHome, Key, Keys
from tests.support.shop import Shop, filled_pipe
from tests.support.strace import KILL, Hit, strace
from tests.support.terminal import PASSPHRASE, PASTE, Terminal, wait_for_quiet

pytestmark = pytest.mark.needs("root")
"""Without root nobody can tell who has the database open: without --force it is refused before it asks anything."""

CONFIRM = r"⚠️  Warning: This will restore over the configured database\. Continue\? \[y/N\] "

Ready = Callable[..., tuple[Shop, Path]]


@pytest.fixture
def ready(make_shop: MakeShop, keys: Keys, gpg: GpgHome) -> Ready:
    """ready(key, **settings): a shop that has changed since its backup was made; and that backup."""

    def make(key: Key, mode: str = "sqlite", **settings: str | None) -> tuple[Shop, Path]:
        shop = make_shop(mode, **settings)
        message = gpg.encrypt(gzip.compress(shop.db_path.read_bytes()), "--recipient", key.fingerprint)
        return shop, shop.back_up_then_change(message)

    return make


@pytest.fixture
def with_key_piped(terminal: StartTerminal) -> Callable[..., Terminal]:
    """with_key_piped(shop, key, *args): on a terminal, with the key on standard input."""

    def start(shop: Shop, key: Key, *args: object) -> Terminal:
        stdin = filled_pipe(key.private_b64.encode())
        try:
            return terminal(shop, *args, "--key-stdin", stdin=stdin)
        finally:
            os.close(stdin)

    return start


def modes(terminal: Terminal) -> list[object]:
    """How the terminal is set: echo, line editing, control characters."""
    return termios.tcgetattr(terminal.master)


def type_secret(terminal: Terminal, prompt: str, secret: str) -> None:
    """Answer a prompt that does not echo."""
    terminal.expect(prompt)
    wait_for_quiet(terminal)
    terminal.send(secret)


def long_line(key: Key) -> str:
    """A key whose base64 is one line of more than 10,000 characters: its armor has comments."""
    head, _, rest = key.private_armor.partition("\n")
    comment = "\n".join(["Comment: the key of the shop " + "x" * 40] * 120)
    text = base64.b64encode(f"{head}\n{comment}\n{rest}".encode()).decode()
    assert len(text) > 10_000
    return text


# --- the private key -------------------------------------------------------------------------------------------------


def one_long_line(key: Key) -> str:
    """One line and Enter."""
    return long_line(key) + "\n"


def one_long_line_and_control_d(key: Key) -> str:
    """One line, without Enter."""
    return long_line(key) + "\x04"


def many_lines_and_control_d(key: Key) -> str:
    """Lines of 64 characters, a blank one among them, Ctrl-D."""
    text = key.private_b64
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    return "\n".join([*lines[:10], "", *lines[10:]]) + "\n\x04"


def armored_lines(key: Key) -> str:
    """The armored key itself, and Ctrl-D."""
    return key.private_armor + "\x04"


@pytest.mark.parametrize("typed", [one_long_line, one_long_line_and_control_d, many_lines_and_control_d, armored_lines])
def test_key_is_pasted_without_echo_and_the_terminal_is_as_before(
    ready: Ready, terminal: StartTerminal, keys: Keys, typed: Callable[[Key], str]
) -> None:
    shop, backup = ready(keys.rsa)
    assert keys.rsa.passphrase
    at = terminal(shop, backup)
    before = modes(at)
    paste = typed(keys.rsa)
    type_secret(at, PASTE, paste)
    type_secret(at, PASSPHRASE, f"{keys.rsa.passphrase}\n")
    at.expect(CONFIRM)
    assert modes(at) == before
    at.send("y\n")
    assert at.wait() == 0, at.output
    assert shop.is_restored()
    assert keys.rsa.passphrase not in at.output
    assert not any(line in at.output for line in paste.split("\n") if len(line) > 20)


@pytest.mark.parametrize("paste", ["\x04", "\n\x04", "no key at all!\n\x04", "bm90IGEga2V5\n\x04"])
def test_what_is_no_key_is_refused_and_the_terminal_is_as_before(
    ready: Ready, terminal: StartTerminal, keys: Keys, paste: str
) -> None:
    shop, backup = ready(keys.open)
    before = shop.snapshot()
    at = terminal(shop, backup, "--json")
    settings = modes(at)
    type_secret(at, PASTE, paste)
    assert at.ended == (4, "unusable-key"), at.output
    assert "Traceback" not in at.output
    assert modes(at) == settings
    assert shop.snapshot() == before


def test_key_that_does_not_fit_is_refused_before_a_passphrase_is_asked_for(
    ready: Ready, terminal: StartTerminal, keys: Keys
) -> None:
    shop, backup = ready(keys.open)
    at = terminal(shop, backup, "--json")
    for _ in range(2):
        type_secret(at, PASTE, keys.other.private_b64 + "\n")
    assert at.ended == (4, "wrong-key"), at.output
    assert not shop.is_restored()


def test_other_key_than_the_backups_may_be_corrected_before_a_passphrase_is_asked_for(
    ready: Ready, terminal: StartTerminal, keys: Keys
) -> None:
    shop, backup = ready(keys.open)
    at = terminal(shop, backup, "--force")
    type_secret(at, PASTE, keys.rsa.private_b64 + "\n")  # which has a passphrase
    type_secret(at, r"wrong private key[\s\S]*" + PASTE, keys.open.private_b64 + "\n")
    assert at.wait() == 0, at.output
    assert shop.is_restored()
    assert "2 keys" not in at.output
    assert f"key {keys.open.fingerprint[:4]}" in at.output


# --- the passphrase --------------------------------------------------------------------------------------------------


def test_wrong_passphrase_may_be_corrected_twice(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys
) -> None:
    shop, backup = ready(keys.rsa, "sqlcipher")
    at = with_key_piped(shop, keys.rsa, backup, "--force")
    for passphrase in ("wrong", "", keys.rsa.passphrase):
        type_secret(at, PASSPHRASE, f"{passphrase}\n")
    assert at.wait() == 0, at.output
    assert shop.is_restored()


def test_third_wrong_passphrase_ends_it_with_4(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys
) -> None:
    shop, backup = ready(keys.rsa)
    before = shop.snapshot()
    at = with_key_piped(shop, keys.rsa, backup, "--force", "--json")
    for _ in range(3):
        type_secret(at, PASSPHRASE, "wrong\n")
    assert at.ended == (4, "wrong-passphrase"), at.output
    assert shop.snapshot() == before


def test_key_without_passphrase_is_not_asked_for_one(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys
) -> None:
    shop, backup = ready(keys.open)
    at = with_key_piped(shop, keys.open, backup)
    at.expect(CONFIRM)
    assert "🔑" not in at.output
    at.send("y\n")
    assert at.wait() == 0, at.output


def test_passphrase_from_elsewhere_is_not_asked_for(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys
) -> None:
    shop, backup = ready(keys.rsa)
    secret = shop.path / "passphrase"
    secret.write_text(f"{keys.rsa.passphrase}\n")
    at = with_key_piped(shop, keys.rsa, backup, "--passphrase-command", "cat passphrase")
    at.expect(CONFIRM)
    at.send("y\n")
    assert at.wait() == 0, at.output
    assert shop.is_restored()


# --- the confirmation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("YES", 0), ("n", 10), ("", 10), ("yep", 10), ("\x04", 10)])
def test_only_yes_is_yes(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys, answer: str, code: int
) -> None:
    shop, backup = ready(keys.open)
    before = shop.snapshot()
    at = with_key_piped(shop, keys.open, backup)
    at.expect(CONFIRM)
    at.send(answer if answer == "\x04" else f"{answer}\n")
    assert at.wait() == code, at.output
    assert shop.is_restored() == (code == 0)
    if code:
        assert shop.snapshot() == before
        assert [path.name for path in shop.backups.glob("db_backup_*")] == [backup.name]


def test_yes_that_was_typed_ahead_does_not_count(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys
) -> None:
    shop, backup = ready(keys.open)
    at = with_key_piped(shop, keys.open, backup)
    at.send("y\ny\n")
    at.expect(CONFIRM)
    time.sleep(0.5)
    assert at.process.poll() is None, at.output
    at.send("\n")
    assert at.wait() == 10, at.output
    assert not shop.is_restored()


def test_stop_first_asks_before_anything_is_stopped_or_decrypted(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys
) -> None:
    shop, backup = ready(keys.open)
    at = with_key_piped(shop, keys.open, backup, "--stop-first")
    at.expect(CONFIRM)
    assert "Decrypting" not in at.output
    at.send("n\n")
    assert at.wait() == 10
    assert not shop.is_restored()


def test_another_target_is_asked_about_only_if_it_exists(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys
) -> None:
    shop, backup = ready(keys.open)
    at = with_key_piped(shop, keys.open, backup, "--target-path", "copy.db")
    assert at.wait() == 0, at.output
    assert "[y/N]" not in at.output
    inode = (shop.path / "copy.db").stat().st_ino
    at = with_key_piped(shop, keys.open, backup, "--target-path", "copy.db")
    at.expect(r"[Oo]verwrite\? \[y/N\] ")
    at.send("n\n")
    assert at.wait() == 10
    assert (shop.path / "copy.db").stat().st_ino == inode


def test_verify_only_asks_for_nothing(ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys) -> None:
    shop, backup = ready(keys.open)
    at = with_key_piped(shop, keys.open, backup, "--verify-only")
    assert at.wait() == 0, at.output
    assert "[y/N]" not in at.output
    assert not shop.is_restored()


# --- leaving at a prompt ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "code"), [(["\x03"], 130), (["\x04", "\x04"], 10)], ids=["Ctrl-C", "Ctrl-D, as often as it takes"]
)
def test_passphrase_prompt_can_be_left(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys, typed: list[str], code: int
) -> None:
    shop, backup = ready(keys.rsa)
    before = shop.snapshot()
    at = with_key_piped(shop, keys.rsa, backup)
    settings = modes(at)
    for key in typed:
        type_secret(at, PASSPHRASE, key)
    assert at.wait(20) == code, at.output
    assert "Traceback" not in at.output
    assert modes(at) == settings
    assert shop.snapshot() == before


def test_control_c_while_the_key_is_pasted_leaves_the_terminal_as_it_was(
    ready: Ready, terminal: StartTerminal, keys: Keys
) -> None:
    shop, backup = ready(keys.open)
    before = shop.snapshot()
    at = terminal(shop, backup)
    settings = modes(at)
    type_secret(at, PASTE, keys.open.private_b64[:300])
    time.sleep(0.3)
    at.send("\x03")
    assert at.wait() == 130, at.output
    assert "Traceback" not in at.output
    assert modes(at) == settings
    assert shop.snapshot() == before


def test_control_c_at_the_confirmation_touches_nothing(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys
) -> None:
    shop, backup = ready(keys.open, "sqlcipher")
    before = shop.snapshot()
    at = with_key_piped(shop, keys.open, backup)
    at.expect(CONFIRM)
    at.send("\x03")
    assert at.wait() == 130, at.output
    assert "Traceback" not in at.output
    assert shop.snapshot() == before


# --- menus -----------------------------------------------------------------------------------------------------------


def three_backups(shop: Shop, backup: Path) -> None:
    """Beside the one that works, an older and a newer one that do not."""
    for stamp in ("20240101_000000", "20250201_000000"):
        (shop.backups / f"db_backup_{stamp}.db.gz.gpg").write_bytes(b"not this one")
    (shop.backups / "notes.txt").touch()
    assert backup.exists()


def test_menu_offers_the_backups_newest_first_and_takes_a_number(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys
) -> None:
    shop, backup = ready(keys.open)
    three_backups(shop, backup)
    at = with_key_piped(shop, keys.open)
    at.expect(r"1\b[^\n]*20250201_000000")
    at.expect(r"2\b[^\n]*20250130_120000")
    at.expect(r"3\b[^\n]*20240101_000000")
    at.expect(r"q\b.*: ")
    for nonsense in ("4\n", "0\n", "abc\n", "-1\n"):
        at.send(nonsense)
        at.expect(r"q\b.*: ")
    at.send("2\n")
    at.expect(CONFIRM)
    at.send("y\n")
    assert at.wait() == 0, at.output
    assert shop.is_restored()


def test_menu_shows_the_table_of_list_without_waiting_for_checksums(
    ready: Ready, terminal: StartTerminal, keys: Keys
) -> None:
    """Headings, numbers and all; the checksum of the file that is chosen is compared next."""
    shop, backup = ready(keys.open)
    three_backups(shop, backup)
    sound = hashlib.sha256(backup.read_bytes()).hexdigest()
    backup.with_name(f"{backup.name}.sha256").write_text(f"{sound}  {backup.name}\n")
    newest = shop.backups / "db_backup_20250201_000000.db.gz.gpg.sha256"
    newest.write_text(f"{sound}  {newest.stem}\n")
    (shop.backups / "db_backup_20240101_000000.db.gz.gpg.sha256").write_text("")
    listed = shop.restore("--list", as_json=False)
    assert listed.code == 0, listed.text
    table = [line for line in listed.out.splitlines() if "checksum" in line or "db_backup_" in line]
    assert [line.split()[-2] for line in table] == ["checksum", "MISMATCH", "ok", "unreadable"]
    with (shop.backups / "db_backup_20240101_000000.db.gz.gpg").open("wb") as file:
        file.truncate(64 << 30)  # holes: they take no room, and a minute to be read
    at = terminal(shop)
    at.expect(r"q\b.*: ", timeout=20)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", at.output)  # without its styles
    lines = shown.split("Which backup?")[1].splitlines()[1:-1]
    assert [line.split()[-1] for line in lines] == [line.split()[-1] for line in table]
    at.send("q\n")
    assert at.wait() == 10, at.output


def test_menu_keeps_the_newest_backups_on_the_screen(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys
) -> None:
    """A week of backups every six hours: a page at a time; any number that was shown is taken."""
    shop, _ = ready(keys.open)
    for day in range(1, 31):
        (shop.backups / f"db_backup_202503{day:02}_000000.db.gz.gpg").write_bytes(b"not this one")
    at = with_key_piped(shop, keys.open)
    at.expect(r"Number, m for older ones, or q to leave: ")
    assert len(at.output.split("Which backup?")[1].splitlines()) < 24
    at.send("m\n")
    at.expect(r"m for older ones")
    at.send("m\n")
    at.expect(r"31 [^\n]*20250130_120000")
    at.expect(r"Number, or q to leave: ")
    at.send("31\n")
    at.expect(CONFIRM)
    at.send("n\n")
    assert at.wait() == 10, at.output


def test_menu_is_left_with_q(ready: Ready, terminal: StartTerminal, keys: Keys) -> None:
    shop, backup = ready(keys.open)
    before = shop.snapshot()
    at = terminal(shop)
    at.expect(backup.name)
    at.expect(r"q\b.*: ")
    at.send("q\n")
    assert at.wait() == 10, at.output
    assert shop.snapshot() == before


def test_menu_without_any_backup_says_where_it_looked(make_shop: MakeShop, terminal: StartTerminal) -> None:
    shop = make_shop("sqlite")
    at = terminal(shop, "--json")
    assert at.ended == (3, "backup-not-found"), at.output
    assert "DB_BACKUP_PATH" in at.output


def test_compose_menu_goes_on_without_docker(ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys) -> None:
    shop, backup = ready(keys.open, "sqlite", RUNTIME_ENVIRONMENT=None)
    at = with_key_piped(shop, keys.open, backup)
    at.expect(r"1 production:\s+\S*docker-compose\.prod\.yml")
    at.expect(r"2 development:\s+\S*docker-compose\.dev\.yml")
    at.expect(r"3\b[^\n]*path")
    at.expect(r"4\b[^\n]*without Docker")
    at.expect(r"q\b.*: ")
    at.send("4\n")
    at.expect(CONFIRM)
    at.send("y\n")
    assert at.wait() == 0, at.output
    assert shop.is_restored()


def test_compose_menu_comes_also_when_the_file_is_missing_and_can_be_left(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys
) -> None:
    shop, backup = ready(keys.open, "sqlite", RUNTIME_ENVIRONMENT="PROD")
    before = shop.snapshot()
    at = with_key_piped(shop, keys.open, backup)
    at.expect(r"docker-compose\.prod\.yml")
    at.expect(r"q\b.*: ")
    at.send("q\n")
    assert at.wait() == 10, at.output
    assert shop.snapshot() == before


def test_compose_menu_takes_a_path_and_refuses_one_that_is_not_there(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys
) -> None:
    shop, backup = ready(keys.open, "sqlite", RUNTIME_ENVIRONMENT=None)
    at = with_key_piped(shop, keys.open, backup, "--json")
    at.expect(r"q\b.*: ")
    at.send("3\n")
    at.expect("[Pp]ath.*: ")
    at.send("no/such/compose.yml\n")
    assert at.ended == (3, "unusable-compose-file"), at.output
    assert "no/such/compose.yml" in at.output
    assert not shop.is_restored()


# --- standard input is a pipe, prompts are not -----------------------------------------------------------------------


def test_key_comes_from_the_pipe_while_passphrase_and_confirmation_come_from_the_terminal(
    ready: Ready, with_key_piped: Callable[..., Terminal], keys: Keys
) -> None:
    shop, backup = ready(keys.rsa, "sqlcipher")
    at = with_key_piped(shop, keys.rsa, backup)
    type_secret(at, PASSPHRASE, f"{keys.rsa.passphrase}\n")
    at.expect(CONFIRM)
    at.send("y\n")
    at.expect("✅ Database restored successfully")
    assert at.wait() == 0
    assert shop.is_restored()
    assert PASTE not in at.output


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (["--key-stdin"], "--force"),
        (["--force"], "--key-stdin"),
        (["--force", "--key-stdin"], "--passphrase-fd"),
        (["--force", "--key-stdin"], "--passphrase-command"),
    ],
)
def test_without_a_terminal_it_is_refused_at_once_with_the_option_named(
    ready: Ready, keys: Keys, args: list[str], option: str
) -> None:
    shop, backup = ready(keys.rsa)
    before = shop.snapshot()
    done = shop.restore(backup, *args, stdin=keys.rsa.private_b64.encode(), timeout=20)
    assert done.ended == (3, "no-terminal"), done.text
    assert option in done.error["hint"]
    assert shop.snapshot() == before


def test_piped_key_is_never_taken_for_the_passphrase(ready: Ready, keys: Keys) -> None:
    shop, backup = ready(keys.rsa)
    stdin = f"{keys.rsa.private_b64}\n{keys.rsa.passphrase}\ny\n".encode()
    done = shop.restore(backup, "--key-stdin", "--force", stdin=stdin, timeout=20)
    assert done.ended == (4, "unusable-key"), done.text
    assert not shop.is_restored()


@pytest.mark.needs("strace")
def test_prompt_can_be_left_after_a_restore_that_was_cut_off_is_undone(
    ready: Ready, keys: Keys, terminal: StartTerminal
) -> None:
    shop, backup = ready(keys.open)
    candidate = f"{shop.db_path}.restore-new"  # a compiled module is renamed, too, when it is imported first
    kill_at_the_swap = strace(shop.path / "strace.log", [Hit("rename", 1, KILL, (candidate,))])
    assert shop.restore(backup, "--force", key=keys.open, wrapper=kill_at_the_swap).code < 0
    at = terminal(shop, backup)
    at.expect("🩹")
    at.expect("Paste the private key")
    at.send("\x03")
    assert at.wait(20) == 130, at.output
    assert not shop.is_restored()
