"""Lines that steer no terminal, streams that may break, and the one place where errors end."""

import contextlib
import io
import json
import os
import re
import signal
from pathlib import Path

import pytest

from backuplib.console import LOG_BYTES, LOG_NAME, RESTORED, Console, Report, Unbreakable, in_words
from backuplib.errors import (
    DamagedDatabaseError,
    ExitCode,
    FolderNotMountedError,
    OperatorError,
    RefusedError,
    RollbackFailedError,
    ServicesDownError,
    SettingsDifferError,
    UsageError,
    WrongKeyError,
)
from backuplib.processes import Interrupted, Signals

# --- words and streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_pictures_are_words_where_they_cannot_be_shown(encoding: str) -> None:
    text = in_words("✅ ok ❌ ⚠️  🔓 Decrypting…", encoding)
    text.encode(encoding)
    assert [text.count(word) for word in ("[ok]", "[FAILED]", "[!]", "...")] == [1, 1, 1, 1]
    assert "Decrypting" in text


def test_pictures_are_pictures_where_they_can_be_shown() -> None:
    assert in_words("✅ ⚠️  …", "utf-8") == "✅ ⚠️  …"


def test_reader_that_has_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True) as stream:
        unbreakable = Unbreakable(stream)
        assert unbreakable.write("text\n") == 5
        unbreakable.flush()
        assert not unbreakable.isatty()


def test_stream_that_is_closed_is_no_error() -> None:
    stream = io.StringIO()
    unbreakable = Unbreakable(stream)
    stream.close()
    unbreakable.write("text")
    assert not unbreakable.isatty()


@pytest.mark.parametrize("char", ["\x1b", "\r", "\b", "\t", "\x7f", "\x9b", "\0"])
def test_no_line_steers_the_terminal(report: Report, screen: io.StringIO, char: str) -> None:
    report.console.line(f"a{char}b")
    assert screen.getvalue() == "a b\n"


def test_json_stands_alone_on_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    console = Console(as_json=True)
    console.line("progress")
    console.result("result")
    console.json({"a": "ä"})
    assert json.loads(out.getvalue()) == {"a": "ä"}
    assert err.getvalue() == "progress\nresult\n"


def test_step_says_its_notes_and_its_result_or_that_it_failed(report: Report, screen: io.StringIO) -> None:
    with report.console.step("Checking...") as step:
        step.notes.append("a note")
        step.done("fine")
    note, result = screen.getvalue().splitlines()
    assert note == "a note"
    assert result.startswith("Checking...")
    assert result.endswith("fine")
    with pytest.raises(RefusedError), report.console.step("Failing..."):
        raise RefusedError("x")
    assert screen.getvalue().splitlines()[-1].endswith("[FAILED]")


# --- the log ---------------------------------------------------------------------------------------------------------


def test_log_is_bounded(report: Report, tmp_path: Path) -> None:
    """The one before is kept; nothing is written to what a planted link names."""
    log, before, victim = tmp_path / LOG_NAME, tmp_path / f"{LOG_NAME}.1", tmp_path / "victim"
    victim.write_text("as it was")
    before.symlink_to(victim)
    log.write_bytes(b"x" * LOG_BYTES)
    log.chmod(0o600)
    assert report.console.log_to(tmp_path) == log
    report.console.line("a line")
    report.console.close()
    assert log.read_text().endswith(" a line\n")
    assert (log.stat().st_size, before.lstat().st_size) == (len(log.read_text()), LOG_BYTES)
    assert [path.stat().st_mode & 0o777 for path in (log, before)] == [0o600, 0o600]
    assert victim.read_text() == "as it was"
    assert report.console.log_to(tmp_path) == log  # one that is small goes on
    report.console.close()
    assert log.read_text().endswith(" a line\n")


def test_log_that_cannot_be_renamed_is_told_and_written_all_the_same(
    report: Report, screen: io.StringIO, tmp_path: Path
) -> None:
    (tmp_path / f"{LOG_NAME}.1").mkdir()
    (tmp_path / LOG_NAME).write_bytes(b"x" * LOG_BYTES)
    (tmp_path / LOG_NAME).chmod(0o600)
    assert report.console.log_to(tmp_path)
    report.console.close()
    assert LOG_NAME in screen.getvalue()


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "open to others", "second name"])
def test_log_that_is_not_ours_alone_is_set_aside_and_neither_written_to_nor_waited_for(
    report: Report, screen: io.StringIO, tmp_path: Path, kind: str
) -> None:
    log, victim = tmp_path / LOG_NAME, tmp_path / "victim"
    if kind == "pipe":
        os.mkfifo(log)
    elif kind == "link":
        log.symlink_to(victim)
    elif kind == "folder":
        log.mkdir()
    else:
        log.write_text("planted")
        log.chmod(0o666)
        if kind == "second name":
            log.chmod(0o600)
            os.link(log, victim)
    planted = log.lstat()
    assert report.console.log_to(tmp_path) == log
    report.console.line("a line")
    report.console.close()
    assert log.read_text().endswith(" a line\n")
    assert log.stat().st_mode & 0o777 == 0o600
    aside = tmp_path / f"{LOG_NAME}.1"
    assert os.path.samestat(aside.lstat(), planted)
    assert kind != "second name" or aside.read_text() == "planted"
    assert LOG_NAME in screen.getvalue()


# --- the report ------------------------------------------------------------------------------------------------------


def test_report_has_null_for_what_there_is_none_of(report: Report) -> None:
    told = report.as_dict()
    json.dumps(told)
    assert not {"console", "signals", "started"} & {*told}
    assert told["backup"] is None
    assert told["safety_backup"] is None
    assert told["outcome"] == "failed"
    assert told["exit_code"] == 0
    assert told["error"] is None
    assert told["warnings"] == []


def test_phase_is_noted_also_when_it_fails(report: Report) -> None:
    with report.phase("first"):
        pass
    with pytest.raises(RefusedError), report.phase("second"):
        raise RefusedError("x")
    assert [phase["name"] for phase in report.phases] == ["first", "second"]
    assert all(phase["seconds"] >= 0 for phase in report.phases)


def test_warning_is_said_on_one_line_and_noted(report: Report, screen: io.StringIO) -> None:
    report.warn("table a\nb")
    assert len(screen.getvalue().splitlines()) == 1
    assert report.warnings == ["table a\nb"]


# --- where errors end ------------------------------------------------------------------------------------------------


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "identity"),
    [
        (UsageError("x"), 2, "usage"),
        (RefusedError("x"), 3, "refused"),
        (WrongKeyError("x"), 4, "wrong-key"),
        (RollbackFailedError("x"), 20, "rollback-failed"),
        (FolderNotMountedError("x"), 3, "folder-not-mounted"),
        (SettingsDifferError("x"), 3, "settings-differ"),
        (ModuleNotFoundError("x", name="isal"), 3, "missing-package"),
        (OSError(5, "Input/output error", "/srv/x"), 3, "disk-failure"),
        (ValueError("x"), 1, "unexpected"),
        (MemoryError(), 1, "unexpected"),
        (Interrupted(signal.SIGHUP), 129, "ended-by-signal"),
        (Interrupted(signal.SIGINT), 130, "ended-by-signal"),
        (Interrupted(signal.SIGTERM), 143, "ended-by-signal"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_error_ends_with_its_code_identity_and_state(
    report: Report, screen: io.StringIO, error: BaseException, code: int, identity: str
) -> None:
    with report.failures():
        fail(error)
    assert report.exit_code == code
    assert report.error
    assert report.error["id"] == identity
    assert ExitCode[next(item.name for item in ExitCode if item == code)].state in screen.getvalue()


def test_error_without_a_class_of_its_own_ends_like_any_other(report: Report) -> None:
    with report.failures():
        fail(OperatorError("x"))
    assert report.exit_code == 3


def test_success_is_no_error(report: Report) -> None:
    with report.failures():
        pass
    assert (report.exit_code, report.error) == (0, None)


def test_bug_is_told_with_its_traceback(report: Report, screen: io.StringIO) -> None:
    with report.failures():
        fail(ValueError("x"))
    assert "test_bug_is_told_with_its_traceback" in screen.getvalue()


def test_hint_and_state_of_an_error_are_said(report: Report, screen: io.StringIO) -> None:
    with report.failures():
        fail(RefusedError("what", hint="do this", state="All is well."))
    assert "do this" in screen.getvalue()
    assert "All is well." in screen.getvalue()
    assert ExitCode.REFUSED.state not in screen.getvalue()


def test_log_of_a_container_is_shown_and_written_down_nowhere(
    report: Report, screen: io.StringIO, tmp_path: Path
) -> None:
    """It may hold anything, the bot's customers included."""
    report.console.log_to(tmp_path)
    with report.failures():
        fail(ServicesDownError("service bot is unhealthy", services="but x", log="Alice paid\nTraceback\x1b[2J"))
    report.console.close()
    assert report.error
    assert "Alice paid\nTraceback" in report.error["message"]
    shown = screen.getvalue().splitlines()
    assert [line.partition("Alice")[2] for line in shown if "Alice" in line] == [" paid"]
    assert any("Traceback" in line and "\x1b" not in line for line in shown)
    kept = (tmp_path / LOG_NAME).read_text()
    assert "service bot is unhealthy" in kept
    assert "Alice" not in kept
    assert "Traceback" not in kept


def test_error_without_a_log_is_told_without_one(report: Report) -> None:
    with report.failures():
        fail(RefusedError("what"))
    assert report.error
    assert report.error["message"] == "what"


def test_line_that_is_not_to_be_recorded_is_shown_only(report: Report, screen: io.StringIO, tmp_path: Path) -> None:
    report.console.log_to(tmp_path)
    report.console.line("for the log")
    report.console.line("for the screen", record=False)
    report.console.close()
    assert screen.getvalue() == "for the log\nfor the screen\n"
    assert "for the screen" not in (tmp_path / LOG_NAME).read_text()


@pytest.mark.parametrize("sink", ["line", "result", "warn", "record"])
def test_what_others_have_written_begins_no_line_and_reorders_none(
    report: Report, screen: io.StringIO, tmp_path: Path, sink: str
) -> None:
    """On the screen and in the log alike, where it passed no other door."""
    foreign = "a\n✅ FORGED\rFORGED\u2028FORGED\x85FORGED \u202eb \u2066c\u200f \x1b[2J\x9b31m\udcff"
    report.console.log_to(tmp_path)
    say = report.warn if sink == "warn" else getattr(report.console, sink)
    say(foreign)
    report.console.close()
    for text in (screen.getvalue(), (tmp_path / LOG_NAME).read_text()):
        assert not any(re.match(r"\W*(\S+ \d+ )?\W*FORGED", line) and "│" not in line for line in text.splitlines())
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\u200f\udcff]", text)
    assert "FORGED" in (tmp_path / LOG_NAME).read_text()


def test_log_gets_less_than_the_screen_where_a_text_is_about_a_database(
    report: Report, screen: io.StringIO, tmp_path: Path
) -> None:
    report.console.log_to(tmp_path)
    with report.console.step("Check...") as step:
        step.done("ok, 14 tables", recorded="ok")
    report.warn("Canary lost 7 rows", "Canary, too", recorded="a finding")
    report.console.line("compared: Canary", record=False)
    with report.failures():
        fail(DamagedDatabaseError("Canary is damaged", hint="Look at Canary."))
    report.console.close()
    assert report.warnings == ["Canary lost 7 rows", "Canary, too"]
    assert screen.getvalue().count("Canary") == 5
    assert "14 tables" in screen.getvalue()
    log = (tmp_path / LOG_NAME).read_text()
    assert "Canary" not in log
    assert "14" not in re.sub(r"^\S+ \d+", "", log, flags=re.MULTILINE)
    assert log.count("a finding") == 2
    assert "ok" in log
    assert "outcome: unsound backup: damaged-database" in log


def test_failure_when_all_is_done_says_that_the_database_is_restored(report: Report, screen: io.StringIO) -> None:
    with report.failures():
        report.outcome = "restored"
        fail(OSError(5, "Input/output error"))
    assert RESTORED in screen.getvalue()


def test_signal_that_was_swallowed_counts_at_the_end(report: Report, signals: Signals) -> None:
    """As one that comes while SQLite calls back into Python."""

    def swallow() -> None:
        with contextlib.suppress(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)

    signals.install()
    with report.failures():
        swallow()
    assert report.exit_code == 143
