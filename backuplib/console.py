"""What people read: lines, progress, the log file, and the report of a run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from backuplib import errors
from backuplib.files import fsync_folder, is_ours, open_regular
from backuplib.folder import anchored_folder
from backuplib.formatting import display_width, padded, printable
from backuplib.processes import Interrupted, Signals
from backuplib.style import Kind, drawn, is_dumb_terminal, kind_of

WORDS = str.maketrans({"✅": "[ok]", "❌": "[FAILED]", "⚠": "[!]", "…": "...", "\N{VARIATION SELECTOR-16}": ""})


def in_words(text: str, encoding: str) -> str:
    """Return a text as an encoding can show it: ✅ and ❌ as words, other pictures as nothing."""
    try:
        "✅…".encode(encoding)
    except UnicodeEncodeError:
        return text.translate(WORDS).encode(encoding, "ignore").decode(encoding)
    return text


def shown_encoding(encoding: str) -> str:
    """Return the encoding that is shown: in the locale C, Python writes UTF-8 and hides the setting from itself."""
    with contextlib.suppress(OSError):
        settings = dict(item.partition(b"=")[::2] for item in Path("/proc/self/environ").read_bytes().split(b"\0"))
        locale = next(filter(None, (settings.get(name) for name in (b"LC_ALL", b"LC_CTYPE", b"LANG"))), b"")
        if locale and not re.search(rb"utf-?8", locale, re.IGNORECASE):
            return "ascii"
    return encoding


FEWEST_COLUMNS = 20  # with fewer, or without any, a terminal is not set up


def columns_of(descriptor: int) -> int:
    """Return how many columns a terminal has: what COLUMNS says, else the kernel, else 80; too few do not count."""
    columns = 0
    with contextlib.suppress(OSError, ValueError):
        columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size(descriptor).columns
    return columns if columns >= FEWEST_COLUMNS else 80


# Control characters but the newline, what reorders or hides the signs around it, other line ends, lone surrogates.
_STEERING = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def harmless(text: str) -> str:
    """Return a text without what steers a terminal or reorders a line; it may have several lines."""
    return _STEERING.sub(" ", text)


def one_line(text: str) -> str:
    """Return a harmless text, in which no line but the first can be taken for a line of ours."""
    return harmless(text).rstrip("\n").replace("\n", "\n│ ")


def for_terminal(text: str, kind: Kind, descriptor: int, encoding: str) -> str:
    """Return a text as a terminal shows it: harmless, wrapped at words, in the style of its kind."""
    text = in_words(harmless(text), encoding)
    return text if is_dumb_terminal() else drawn(text, kind, columns_of(descriptor))


class Unbreakable(io.TextIOBase):
    """A stream whose reader may vanish (EIO, EPIPE) without an error: the log tells how the run ended."""

    encoding = ""  # rich draws with what this can show

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = shown_encoding(stream.encoding or "ascii")

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def fileno(self) -> int:
        """The descriptor; rich asks it for the width."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write what can be written."""
        text = in_words(text, self.encoding)
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()
        return len(text)


class Step:
    """One step of the run: ``progress`` takes the bytes done so far, ``say`` a line for now, ``done`` what it did.

    ``recorded`` is what the log says of what it did, where that is less than what is shown.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.result = self.recorded = ""
        self.notes: list[str] = []  # printed before the result line: on a terminal, when its progress is gone
        self.progress: Callable[[int], object] = lambda _: None
        self.say: Callable[..., object] = lambda _: None  # as Console.line

    def done(self, text: str, recorded: str | None = None) -> None:
        """Say what the step did; ``recorded``: in the log, where the text counts or names what a database holds."""
        self.result, self.recorded = text, text if recorded is None else recorded


def with_time(line: str, seconds: float) -> str:
    """Return a line with the time that something took, where that says something and fits into 80 columns."""
    timed = f"{line} ({seconds:.1f} s)"
    return timed if seconds >= 0.1 and display_width(timed) <= 80 else line


LOG_NAME, OUTCOME = "restore.log", "outcome: "
_LOG_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
LOG_BYTES = 1_000_000  # from which on a run begins a new log; the one before is kept as restore.log.1


class Console:
    """Lines for people on standard error and in the log file; results on standard output, unless JSON goes there."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._stream, self._output = Unbreakable(sys.stderr), Unbreakable(sys.stdout)
        self._results = self._stream if as_json else self._output
        self._log: io.FileIO | None = None

    def log_to(self, folder: Path) -> Path | None:
        """Keep a copy of all lines from now on in the log file of a folder; None when that cannot be written."""
        path = folder / LOG_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = anchored_folder(folder) / LOG_NAME
            self._rotate(path)
            self._log = open_regular(path, _LOG_FLAGS)
        except OSError as error:
            hint = errors.writing_hint(error, folder, "")
            self.line(f"⚠️  No log file: {path}: {error.strerror}{'. ' if hint else ''}{hint}")
            return None
        return path

    def _rotate(self, path: Path) -> None:
        """Give a log that is large, or not ours alone, another name, in the place of the one before.

        :raises OSError: when one that is not ours alone cannot be renamed; it is not written to.
        """
        try:
            with open_regular(path, _LOG_FLAGS) as log:
                ours, size = is_ours(log.fileno()), os.fstat(log.fileno()).st_size
        except OSError:  # a link, a pipe
            ours, size = False, 0
        if ours and size < LOG_BYTES:
            return
        aside = path.with_name(f"{LOG_NAME}.1")
        try:
            path.rename(aside)
            fsync_folder(path.parent)
        except OSError as error:
            if not ours:
                raise
            self.line(f"⚠️  {path} is large, and cannot be renamed: {error.strerror}")
        else:
            if not ours:
                self.line(f"⚠️  {path} belonged to others, or was open to them: it is {aside.name} now")

    def line(self, text: str, *, kind: Kind | None = None, record: bool | str = True) -> None:
        """Print a line, in which nothing steers the terminal.

        :param kind: how it looks on a terminal; None: as the mark at its beginning tells.
        :param record: whether it goes into the log file, too; or what goes there instead. The log is on a disk: what
            names or counts things in a database does not belong there.
        """
        self._print(text, self._stream, kind, record=record)

    def result(self, text: str, *, kind: Kind | None = None, record: bool | str = True) -> None:
        """Print a line that belongs to the result."""
        self._print(text, self._results, kind, record=record)

    def at_once(self, text: str) -> None:
        """Print a line of our own from a signal handler, which may have interrupted the printing of another one."""
        self.record(text)
        clear = "\r\x1b[K" if self._stream.isatty() and os.environ.get("TERM") != "dumb" else ""
        with contextlib.suppress(OSError, ValueError):
            os.write(self._stream.fileno(), f"{clear}{in_words(text, self._stream.encoding)}\n".encode())

    def json(self, data: object) -> None:
        """Print the JSON object."""
        print(json.dumps(data), file=self._output)

    def _print(self, text: str, stream: Unbreakable, kind: Kind | None, *, record: bool | str = True) -> None:
        text = one_line(text)
        if record:
            self.record(record if isinstance(record, str) else text)
        if stream.isatty():
            text = for_terminal(text, kind or kind_of(text), stream.fileno(), stream.encoding)
        print(text, file=stream)

    @contextlib.contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Step]:
        """A step that takes a while: progress on a terminal, a line when it is done; ``total`` in bytes, if known."""
        step, began = Step(label), time.monotonic()
        step.say = self.line
        head, ends = padded(label, 35), list[tuple[str, str]]()
        try:
            with self._progress(step, total):
                yield step
        except BaseException:
            ends = [(f"{head}❌", f"{head}❌")]
            raise
        else:
            if step.result:
                seconds = time.monotonic() - began
                shown, recorded = (
                    with_time(f"{head}✅ {text}".rstrip(), seconds) for text in (step.result, step.recorded)
                )
                ends = [(shown, recorded)]
        finally:
            for line, recorded in [*((note, note) for note in step.notes), *ends]:
                self.line(line, record=recorded)

    @contextlib.contextmanager
    def _progress(self, step: Step, total: int | None) -> Iterator[None]:
        if not self._stream.isatty() or is_dumb_terminal():
            yield
            return
        from rich import progress as rich
        from rich.console import Console as RichConsole

        columns = [rich.SpinnerColumn(), rich.TextColumn("{task.description}")]
        if total:  # no more than this fits into 80 columns
            columns += [rich.BarColumn(10), rich.DownloadColumn(), rich.TransferSpeedColumn()]
            columns += [rich.TimeRemainingColumn(compact=True)]
        else:
            columns += [rich.TimeElapsedColumn()]
        console = RichConsole(file=self._stream)  # type: ignore[arg-type]  # it has what rich calls
        with rich.Progress(*columns, console=console, transient=True, refresh_per_second=8) as progress:
            task = progress.add_task(step.label, total=total)
            step.progress = lambda done: progress.update(task, completed=done)

            def say(text: str, *, record: bool | str = True) -> None:
                progress.stop()
                self.line(text, record=record)
                progress.start()

            step.say = say
            yield

    def record(self, text: str) -> None:
        """Write a line to the log file only; of several, the others cannot be taken for lines of their own."""
        if self._log:
            stamp = datetime.now().astimezone().isoformat(timespec="seconds")
            with contextlib.suppress(OSError):
                self._log.write(f"{stamp} {os.getpid()} {one_line(text)}\n".encode(errors="replace"))

    def close(self) -> None:
        """Make the log durable."""
        if self._log:
            with contextlib.suppress(OSError):
                os.fsync(self._log.fileno())
            self._log.close()
            self._log = None


# What is so after a failure that comes when the restore is done.
RESTORED = f"The restored database is live; {errors.RUNNING}"


@dataclass
class Report:
    """What happened, for the operator and for --json."""

    console: Console = field(repr=False)
    signals: Signals = field(repr=False)
    backup: str = ""
    target: str = ""
    outcome: str = "failed"
    phases: list[dict[str, Any]] = field(default_factory=list)
    key_fingerprint: str | None = None
    database_bytes: int | None = None
    format: str | None = None
    conversion: str | None = None
    tables: dict[str, dict[str, int | None]] = field(default_factory=dict)
    rows: dict[str, int | None] = field(default_factory=dict)
    services: list[str] = field(default_factory=list)
    downtime_seconds: float | None = None
    safety_backup: str | None = None
    log: str | None = None
    backups: list[dict[str, Any]] = field(default_factory=list)
    running: dict[str, Any] | None = None
    interrupted: dict[str, Any] | None = None
    last_restore: dict[str, Any] | None = None
    drill: dict[str, object] = field(default_factory=dict)
    checks: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    exit_code: int = 0
    error: dict[str, str] | None = None
    started: float = field(default_factory=time.monotonic, repr=False)
    finished: float = field(default=0.0, repr=False)  # when it is expected to be, from the stop on (monotonic)
    _answered: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        self.signals.answer = self._answer

    def _answer(self) -> None:
        """Answer a key of the keyboard that interrupts nothing, at most once a second."""
        now = time.monotonic()
        if now - self._answered < 1:
            return
        self._answered, left = now, self.finished - now
        about = f", about {left:.0f} s more" if left >= 1 else ""
        self.console.at_once(
            "✋ The services are stopped: Ctrl-C starts them again; else it goes on by itself"
            if self.signals.can_be_taken_back
            else f"✋ Too late to stop: finishing{about}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the report as --json shows it: missing values are null."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.repr}
        return {name: None if value == "" else value for name, value in values.items()}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note how long something took: when it began, in seconds since the start, and the seconds it took.

        :raises Interrupted: before it begins, when a signal came that nobody raised.
        """
        self.signals.check()
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self.phases.append({"name": name, "began": round(began - self.started, 3), "seconds": round(seconds, 3)})

    def warn(self, *texts: str, recorded: str | None = None) -> None:
        """Say something that the operator should know, and note it; ``recorded``: what the log says instead."""
        for text in texts:
            self.warnings.append(text)
            self.console.line(f"⚠️  {printable(text)}", record=f"⚠️  {printable(text if recorded is None else recorded)}")

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        """The one place where errors end: each is reported, and gives the exit code."""
        try:
            try:
                yield
            finally:
                self.signals.ignore()  # to the last: Python's own end would hand them back to the kernel
                self.signals.check()
        except errors.OperatorError as error:
            self._fail(error)
        except Interrupted as interrupt:
            self._fail(errors.EndedBySignalError(interrupt.number))
        except ModuleNotFoundError as error:
            self._fail(errors.MissingPackageError(error.name))
        except OSError as error:
            self.console.record(errors.recorded_traceback(error))
            self._fail(errors.DiskFailureError(error))
        except Exception as error:  # noqa: BLE001 - a bug, told with its traceback and a code of its own
            self.console.line(traceback.format_exc(), kind=Kind.ASIDE, record=errors.recorded_traceback(error))
            self._fail(errors.UnexpectedError(f"{type(error).__name__}: {error}", recorded=type(error).__name__))

    def _fail(self, error: errors.OperatorError) -> None:
        """Print what happened, what state things are in, and what to do; note it."""
        self.exit_code = int(error.exit_code)
        message = f"{error}; its log ends: {error.log}" if error.log else str(error)
        self.error = {"id": error.id, "message": message, "hint": error.hint}
        bug = "This is a bug in the tool. " if error.exit_code == errors.ExitCode.UNEXPECTED else ""
        state = error.state or (RESTORED if self.outcome == "restored" else error.exit_code.state)
        self.console.line(f"❌ {error}", record=f"❌ {error.recorded}")
        for line in error.log.splitlines():
            self.console.line(f"   │ {line}", kind=Kind.ASIDE, record=False)
        down = error.exit_code in {errors.ExitCode.SERVICES_DOWN, errors.ExitCode.ROLLBACK_FAILED}
        self.console.line(f"   {bug}{state}", kind=Kind.FAILURE if down else Kind.PLAIN)
        if error.hint:
            self.console.line(f"   {error.hint}", record=not error.quotes_database)
        self.console.record(f"{OUTCOME}{error.exit_code.name.lower().replace('_', ' ')}: {error.recorded}")
