"""The program rclone: how it is called, and what its failures mean."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from backuplib import errors, typed
from backuplib.formatting import printable, quoted, shortened, shown
from backuplib.processes import child_environment, command_output, start_apart

# A path at a remote as rclone takes it. With nothing before the colon, credentials could stand in it, and so in argv.
PLACE = re.compile(r"[\w.+@][\w.+@-]*:(?!//).*", re.DOTALL)

# A dead server costs seconds, one that answers no more less than a minute; who wants it tried again, calls again.
LOOK = ("--contimeout=5s", "--timeout=10s", "--retries=1", "--low-level-retries=2")
MOVE = ("--contimeout=10s", "--timeout=30s", "--retries=1", "--low-level-retries=3")
LOOK_SECONDS = 60.0
STALL_SECONDS = 20.0  # without a byte: less than rclone waits before it tries again in its own way
PIPE_BYTES = 1 << 20  # so that rclone and gpg take turns less often
MOST_SAID = 1 << 16  # bytes of its messages that are read

# Variables that change what a command does or says, and could make it print secrets
_UNWANTED = re.compile(r"RCLONE_(VERBOSE|QUIET|DUMP.*|LOG_.*|USE_JSON_LOG|DRY_RUN|INTERACTIVE|PROGRESS.*|STATS.*)")

_SECRET = re.compile(r".*(PASS|SECRET|KEY|TOKEN|AUTH|CREDENTIAL|SAS|HEADERS|COOKIE).*")  # names of variables
_ASIDE = re.compile(r"\b(NOTICE|INFO|DEBUG) *: (?!Failed )")  # a line that says no reason

_TRY = "What rclone says in full: {lsf}"

_NOT_PERMITTED = ("{place} does not permit that: {said}", f"Check its credentials, and what they may do there. {_TRY}")
_NO_ANSWER = ("{place} does not answer: {said}", f"Check the network and its server. {_TRY}")

_DENIED = (
    r"\b40[135]\b|access ?denied|forbidden|unauthorized|permission denied|not permitted|read-?only|object ?lock|"
    r"\bworm\b|method not allowed|unable to authenticate|SignatureDoesNotMatch|InvalidAccessKeyId|knownhosts|host key"
)
_NAMES = r"\"[^\"\n]*\"|\w+://\S+"  # what stands in quotes, and URLs: they tell where, and no reason

# What rclone's words mean, the first that fits: the error, the words, what is said, what to do
_REASONS: tuple[tuple[type[errors.OperatorError], str, str, str], ...] = (
    (
        errors.RemoteUnknownError,
        r"didn't find section in config file",
        "rclone has no remote of this name, which {place} takes: {said}",
        "To set it up: rclone config, or RCLONE_CONFIG_… in .env. Those that it has: {listremotes}",
    ),
    (
        errors.RemoteDeniedError,
        r"ssh-agent|SSH_AUTH_SOCK",  # which it dials, too
        *_NOT_PERMITTED,
    ),
    (
        errors.RemoteUnreachableError,
        r"\bdial\b|connection refused|no such host|no route to host|network is unreachable",
        *_NO_ANSWER,
    ),
    (
        errors.RemoteStalledError,
        r"i/o timeout|deadline exceeded|did not end within|Client\.Timeout|RequestTimeout",
        "{place} answers no more: {said}",
        f"Check the network and its server, or try again. {_TRY}",
    ),
    (
        errors.RemoteFullError,
        r"no space left|\b507\b|insufficient storage|quota|disk full|not enough space|storage ?full",
        "there is no room left at {place}: {said}",
        "Make room there, then copy what it lacks: {push}",
    ),
    (
        errors.RemoteDeniedError,
        _DENIED,
        *_NOT_PERMITTED,
    ),
    (
        errors.RemoteUnreachableError,
        r"couldn't connect",
        *_NO_ANSWER,
    ),
    (
        errors.BackupNotFoundError,
        r"directory not found|object not found|file does not exist|NoSuchKey|NoSuchBucket|or doesn't exist",
        "there is no such object at {place}: {said}",
        "See what is there: {lsf}",
    ),
    (
        errors.RemoteBrokenError,
        r"unexpected EOF|connection (reset|lost)|broken pipe|\bEOF\b|use of closed|server closed|response missing",
        "the connection to {place} broke: {said}",
        f"Try again. {_TRY}",
    ),
    (
        errors.RemoteFailedError,
        "",
        "rclone failed at {place}: {said}",
        _TRY,
    ),
)  # fmt: skip


def names_a_backup(text: str) -> bool:
    """Whether a text that was noted can name a backup: by an absolute path, or as REMOTE:PATH."""
    return "\0" not in text and (text.startswith("/") or PLACE.fullmatch(text) is not None)


@dataclass(frozen=True)
class Rclone:
    """rclone at one place.

    :param place: an rclone path, named in messages.
    :param variables: RCLONE_…, which it gets beside our own environment, and no other program does.
    """

    place: str
    variables: Mapping[str, str] = field(repr=False)

    def run(
        self, *arguments: str, way: Sequence[str] = LOOK, seconds: float = LOOK_SECONDS, given: bytes | None = None
    ) -> bytes:
        """Run it to its end, and return what it prints.

        :param given: its standard input.
        :raises RemoteError: with its reason.
        :raises BackupNotFoundError: for what is not there.
        """
        try:
            return command_output(_argv(arguments, way), timeout=seconds, env=self.environment(), given=given)
        except errors.MissingProgramError:
            raise _missing(self.place) from None
        except errors.CommandFailedError as error:
            raise self.explained(error.messages or str(error), *arguments) from None

    def stream(self, *arguments: str) -> Stream:
        """Start it, and return what it prints as a stream."""
        return Stream(self, _argv(arguments, MOVE))

    def environment(self) -> dict[str, str]:
        """Return our environment without secrets, and its own variables."""
        wanted = {name: text for name, text in self.variables.items() if not _UNWANTED.fullmatch(name)}
        return child_environment(**wanted)

    def explained(self, messages: str, *arguments: str) -> errors.OperatorError:
        """Return what its messages mean.

        :param arguments: it was given them; what they name is no reason, whatever it is called.
        """
        lines = [line.strip() for line in messages.splitlines() if line.strip() and not _ASIDE.search(line)]
        push = errors.restore_command("push", script="database_backup.py")
        paths = [text.partition(":")[2] for text in (self.place, *arguments) if text.startswith(self.place)]
        called = {name for path in paths for name in (path, path.rpartition("/")[2]) if name}
        named = "|".join(map(re.escape, sorted(called, key=len, reverse=True)))
        reason = re.sub(rf"{_NAMES}|(?<!\w)(?:{named or '(?!)'})(?!\w)", "", "\n".join(lines))
        kind, _, what, hint = next(one for one in _REASONS if re.search(one[1], reason, re.IGNORECASE))
        return kind(
            what.format(place=self.place, said=self._harmless(lines[-1] if lines else "no message")),
            hint=hint.format(
                place=quoted(self.place),
                push=push,
                lsf=self.to_type("lsf"),
                listremotes=self.to_type("listremotes", ""),
            ),
        )

    def to_type(self, command: str, place: str | None = None) -> str:
        """Return a command of rclone's about this place as it is typed in a shell, with the variables that .env has."""
        words = typed.joined(["rclone", command, *filter(None, [self.place if place is None else place])])
        if self.variables.keys() <= os.environ.keys():
            return words
        return f"(set -a; . <(grep ^RCLONE_ {quoted(shown(errors.FOLDER / '.env'))}); {words})"

    def _harmless(self, line: str) -> str:
        """Return a line that it printed without its time, and without what may be a secret."""
        said = re.sub(r"^[\d/]+ [\d:]+ (?:[A-Z]+ *: )*", "", line)
        for name, value in self.variables.items():
            said = said.replace(value, "***") if value and _SECRET.fullmatch(name) else said
        said = re.sub(r"://[^/@\"]+@", "://***@", re.sub(r"\?[^\s\"]+", "?…", said))
        return shortened(printable(said), 300)


class Stream:
    """What rclone prints while it goes on.

    gpg may have given up while a thread still reads for it: that one gets the end, and not what comes afterwards.

    :ivar failure: what has gone wrong, for whoever reads once more.
    :raises MissingRcloneError: when it is not installed.
    """

    def __init__(self, rclone: Rclone, argv: list[str]) -> None:
        self._rclone, self._arguments = rclone, argv[1:]
        self._reading = threading.Lock()
        self.failure: errors.OperatorError | None = None
        reading, writing = os.pipe()
        with contextlib.suppress(OSError):  # above the kernel's limit for a user
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        messages = os.memfd_create("rclone")
        try:
            self._child = start_apart(
                argv, stdin=subprocess.DEVNULL, stdout=writing, stderr=messages, env=rclone.environment()
            )
        except FileNotFoundError:
            os.close(reading)
            os.close(messages)
            raise _missing(rclone.place) from None
        finally:
            os.close(writing)
        self._pipe, self._messages = reading, messages

    def read(self, size: int) -> bytes:
        """Read on; empty at the end.

        :raises RemoteStalledError: when nothing comes any more.
        :raises RemoteError: when rclone says that this is not the end.
        """
        with self._reading:
            if self._pipe < 0:
                return b""
            if not select.select([self._pipe], [], [], STALL_SECONDS)[0]:
                raise self._rclone.explained(f"nothing came for {STALL_SECONDS:.0f} s: i/o timeout")
            data = os.read(self._pipe, size)
            if not data and self._child.wait(STALL_SECONDS):
                said = os.pread(self._messages, MOST_SAID, 0).decode(errors="replace")
                raise self._rclone.explained(said or f"exit code {self._child.returncode}", *self._arguments)
            return data

    def close(self) -> None:
        """End it."""
        self._child.kill()
        self._child.wait()
        with self._reading:
            if self._pipe >= 0:
                os.close(self._pipe)
                os.close(self._messages)
            self._pipe = -1


def _argv(arguments: Sequence[str], way: Sequence[str]) -> list[str]:
    """Return its command line; it asks nobody for the password of its configuration."""
    return ["rclone", *arguments, *way, "--ask-password=false"]


def _missing(place: str) -> errors.MissingRcloneError:
    return errors.MissingRcloneError(
        f"rclone is not installed, which {place} takes", hint="Install it, as root: apt-get install rclone"
    )
