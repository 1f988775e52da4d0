"""How lines look on a terminal: their kinds, where no colours are wanted, and breaks between words only."""

import contextlib
import os
import pty
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backuplib.console import LOG_NAME, Console, Report
from backuplib.errors import ServicesDownError
from backuplib.formatting import display_width
from backuplib.processes import Signals
from backuplib.style import Kind, drawn, kind_of, styled, wrapped

STYLE = re.compile(r"\x1b\[([0-9;]*)m")


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that has colours, where nothing is set against them."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


# --- kinds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("✅ Checksum verified", Kind.STEP),
        ("🔓 Decrypting backup...            ✅ key 9C18…D6A0", Kind.STEP),
        ("⚙️  Swapping...                     ❌", Kind.FAILURE),
        ("❌ Restore failed: x", Kind.FAILURE),
        ("⚠️  no checksum beside x... ✅ y", Kind.WARNING),
        ("💡 A connection lost", Kind.ASIDE),
        ("   backup    of 2025", Kind.PLAIN),
        ("   a table ✅ x", Kind.PLAIN),
        ("", Kind.PLAIN),
    ],
)
def test_mark_at_the_beginning_or_behind_a_label_tells_the_kind(text: str, kind: Kind) -> None:
    assert kind_of(text) is kind


def test_label_of_a_step_is_not_coloured() -> None:
    assert drawn("🔓 Decrypting...  ❌ no key", Kind.FAILURE, 80) == "🔓 Decrypting...  \x1b[31m❌ no key\x1b[0m"
    assert drawn("⚠️  wait... ✅ x", Kind.WARNING, 80) == "\x1b[33m⚠️  wait... ✅ x\x1b[0m"


def test_of_a_step_the_mark_is_coloured_and_of_a_fact_its_name() -> None:
    """A screen on which all is green shows nothing."""
    assert drawn("🔓 Decrypting...  ✅ key 1", Kind.STEP, 80) == "🔓 Decrypting...  \x1b[32m✅\x1b[0m key 1"
    assert drawn("✅ Checksum verified", Kind.STEP, 80) == "\x1b[32m✅\x1b[0m Checksum verified"
    assert drawn("   to undo  python x  y", Kind.FACT, 80) == "   \x1b[2mto undo\x1b[0m  python x  y"
    *_, last = drawn("   services  " + "word " * 20, Kind.FACT, 80).split("\n")
    assert last.strip().startswith("word")


def test_kinds_differ_for_the_eye() -> None:
    codes = {kind: STYLE.findall(styled("x", kind)) for kind in Kind}
    assert codes[Kind.PLAIN] == []
    assert codes[Kind.LOSS] == ["31", "0"]
    assert codes[Kind.QUESTION] == ["1", "0"]
    assert codes[Kind.STEP] == ["32", "0"]
    assert codes[Kind.DONE] == ["1;32", "0"]
    assert codes[Kind.WARNING] == ["33", "0"]
    assert codes[Kind.ASIDE] == ["2", "0"]


@pytest.mark.parametrize("setting", ["NO_COLOR=1", "TERM=dumb", "TERM="])
def test_nothing_is_styled_where_that_is_not_wanted(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv(*setting.split("="))
    assert [kind for kind in Kind if styled("x", kind) != "x"] == []


def test_empty_no_color_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert styled("x", Kind.LOSS) != "x"


# --- wrapping --------------------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from("ab .:(,/-✅⚠️❌│注…'"), max_size=200), st.integers(20, 120))
@example("❌ " + "/a" * 60 + " b", 80)
@example("   │ " + "x" * 200 + " y", 80)
@example("a  b  " + "c " * 60, 80)
def test_no_word_is_broken_and_no_line_too_long_but_for_one_long_word(text: str, columns: int) -> None:
    lines = wrapped(text, columns)
    words = [word for line in lines for word in line.split(" ") if word and word != "│"]
    assert words == [word for word in text.split(" ") if word and word != "│"]
    room = columns - text.count("\N{VARIATION SELECTOR-16}")
    for line in lines:
        *_, last = line.rstrip(" ").split(" ")
        assert display_width(line) <= columns or display_width(last) > room // 2


@pytest.mark.parametrize("columns", [80, 120])
def test_continuation_lines_stand_under_the_text(columns: int) -> None:
    prose = "word " * 60
    for head in (
        "✅ ",
        "⚠️  ",
        "   ",
        "🔄 Starting Docker containers...   ✅ ",
        "   services  ",
        "⚙️  Swapping...                     ✅ ",
    ):
        lines = wrapped(head + prose, columns)
        indents = {display_width(line[: len(line) - len(line.lstrip(" "))]) for line in lines[1:]}
        assert indents == {display_width(head)}
        assert max(map(display_width, lines)) <= columns
        assert len(lines) < 350 / (columns - display_width(head) - 5) + 1


def test_lines_of_a_log_keep_their_bar() -> None:
    lines = wrapped("   │ " + "word " * 40, 80)
    assert len(lines) > 2
    assert all(line.startswith("   │ word") for line in lines)


COMMAND = "python restore_backup.py backups/db_backup_20250130_120000.db.gz.gpg --target-path x"


@pytest.mark.parametrize(
    "text",
    [
        f"   Make it anew, and then do what it takes, such as this: {COMMAND}",
        f"   It is in another folder, so name it: {COMMAND} (paths are relative to the current folder)",
        f"⚠️  {'word ' * 12}; clean up with: {COMMAND}",
        f"   To stay with it, once you have looked: {COMMAND}. To go back to the old one, follow section 7.",
        f"   to undo   {COMMAND}",
        "   Make it, " + "word " * 12 + ": '/srv/my bot/.venv/bin/python' 'restore backup.py' --list",
    ],
)
def test_command_that_does_not_fit_has_a_line_of_its_own(text: str) -> None:
    command = COMMAND if COMMAND in text else text.rpartition(": ")[2]
    lines = wrapped(text, 80)
    assert command in re.sub(r" \\\n +", " ", "\n".join(lines))
    assert len(lines) > 1
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("file", ["backups/db_backup_20250130_120000.db.gz.gpg", "'my bot/a backup.db.gz.gpg'"])
def test_command_longer_than_a_line_goes_on_behind_a_backslash(file: str) -> None:
    command = f"python restore_backup.py --verify-only {file} --target-path x --key-stdin --force"
    first, *lines = wrapped(f"   Only this proves it: {command}", 80)
    assert first == "   Only this proves it:"
    assert len(lines) > 1
    assert all(len(line) <= 80 for line in lines)
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == shlex.split(command)


def test_blank_behind_a_question_stays() -> None:
    *_, last = wrapped("⚠️  " + "word " * 30 + "Continue? [y/N] ", 80)
    assert last.endswith("Continue? [y/N] ")


def test_short_lines_stay_as_they_are() -> None:
    text = "   table      now  backup   See what is there: python restore_backup.py --list"
    assert wrapped(text, 80) == [text]


# --- through the console ---------------------------------------------------------------------------------------------

FOREIGN = "❌ a\x1b[2J\rb\x9b31mc\a " + "word " * 40


def screen_of(act: Callable[[], object]) -> str:
    """What a terminal of 80 columns gets, with its line ends as they were written."""
    master, slave = pty.openpty()
    with (
        os.fdopen(slave, "w", encoding="utf-8") as terminal,
        contextlib.redirect_stderr(terminal),
        contextlib.redirect_stdout(terminal),
    ):
        act()
    shown = b""
    with contextlib.suppress(OSError), os.fdopen(master, "rb", buffering=0) as screen:  # EIO: that is all
        while piece := screen.read(65536):
            shown += piece
    return shown.decode().replace("\r\n", "\n")


def line_on_a_terminal(folder: Path, text: str) -> str:
    """A line, as the terminal and the log in a folder get it."""

    def act() -> None:
        console = Console()
        console.log_to(folder)
        console.line(text)
        console.close()

    return screen_of(act)


def fail(error: Exception) -> None:
    raise error


@pytest.fixture
def eighty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns in UTF-8."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("backuplib.console.shown_encoding", lambda _: "utf-8")


@pytest.mark.usefixtures("eighty")
def test_terminal_gets_colours_and_wrapped_lines_and_the_log_neither(tmp_path: Path) -> None:
    shown = line_on_a_terminal(tmp_path, FOREIGN)
    assert {*STYLE.findall(shown)} == {"31", "0"}
    plain = STYLE.sub("", shown)
    assert max(map(display_width, plain.splitlines())) <= 80
    assert len(plain.splitlines()) > 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", plain)
    (logged,) = (tmp_path / LOG_NAME).read_text().splitlines()
    assert logged.endswith(f"❌ a [2J b 31mc  {'word ' * 40}")


@pytest.mark.usefixtures("eighty")
def test_no_color_leaves_the_breaks_and_a_dumb_terminal_gets_what_a_pipe_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    styled_lines = STYLE.sub("", line_on_a_terminal(tmp_path, FOREIGN))
    monkeypatch.setenv("NO_COLOR", "1")
    assert line_on_a_terminal(tmp_path, FOREIGN) == styled_lines
    monkeypatch.setenv("TERM", "dumb")
    assert line_on_a_terminal(tmp_path, FOREIGN) == f"❌ a [2J b 31mc  {'word ' * 40}\n"


@pytest.mark.usefixtures("eighty")
def test_width_is_that_of_the_terminal_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    for columns, longest in ((40, range(35, 41)), (120, range(115, 121)), (0, range(75, 81))):
        monkeypatch.setattr(os, "get_terminal_size", lambda _, columns=columns: os.terminal_size((columns, 24)))
        shown = line_on_a_terminal(tmp_path, "word " * 40)
        assert max(map(len, shown.splitlines())) in longest


@pytest.mark.usefixtures("eighty")
@pytest.mark.parametrize("columns", ["0", "-3", "x", "1"])
def test_nonsense_in_columns_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = line_on_a_terminal(tmp_path, "word " * 40)
    assert max(map(len, shown.splitlines())) in range(75, 81)


@pytest.mark.usefixtures("eighty")
def test_what_was_asked_for_is_green_as_a_whole() -> None:
    def act() -> None:
        console = Console()
        console.result("✅ Database restored successfully", kind=Kind.DONE)
        console.result("   rows  5", kind=Kind.FACT)

    assert screen_of(act) == "\x1b[1;32m✅ Database restored successfully\x1b[0m\n   \x1b[2mrows\x1b[0m  5\n"


def test_pipe_gets_no_style_and_no_breaks(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.line(FOREIGN, kind=Kind.TOTAL_LOSS)
    console.result(FOREIGN)
    printed = capsys.readouterr()
    assert printed.out.count("\n") == printed.err.count("\n") == 1
    assert not STYLE.search(printed.out + printed.err)


@pytest.mark.usefixtures("eighty")
def test_log_of_a_container_is_dim_and_in_its_place(signals: Signals) -> None:
    def act() -> None:
        report = Report(Console(), signals)
        with report.failures():
            fail(ServicesDownError("service bot crashed", services="but x", log="Traceback\n" + "word " * 40))

    lines = screen_of(act).splitlines()
    assert lines[0] == "\x1b[31m❌ service bot crashed\x1b[0m"
    log = [line for line in lines if "│" in line]
    assert len(log) > 3
    assert all(re.fullmatch(r"   \x1b\[2m│ .*\x1b\[0m", line) for line in log)
    assert lines[-1] == "   \x1b[31mThe database is as it was before, but x.\x1b[0m"
