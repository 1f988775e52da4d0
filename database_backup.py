#!/usr/bin/env python3
"""Encrypted backups of the bot's SQLite or SQLCipher database.

A backup is a complete, consistent database file (committed WAL content included), compressed with gzip and encrypted
with OpenPGP, beside it a checksum in the format of sha256sum. What backup and restore both need is here as well:
commands, durable files, the RAM folder, the keyring, gunzip, and opening a database in either mode.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import io
import logging
import math
import os
import re
import resource
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import zlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Protocol, Self, TextIO, cast
from urllib.parse import quote

import config
from config import ExitCode, OperatorError, Secret, Settings, load_settings

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Mapping

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
"""Bytes handled at a time by every stream here."""

# --- errors ------------------------------------------------------------------------------------------------------


class BackupError(OperatorError):
    """A backup could not be made."""

    exit_code = ExitCode.NO_SAFETY_BACKUP


class UnreadableDatabaseError(BackupError):
    """The database cannot be opened, so that no consistent copy of it can be made."""


class RefusedError(OperatorError):
    """Something needed is missing or in the way; nothing was touched."""

    exit_code = ExitCode.REFUSED


class DecryptionError(OperatorError):
    """The backup cannot be decrypted, or its ciphertext is damaged or not authenticated."""

    exit_code = ExitCode.CANNOT_DECRYPT


class PassphraseError(DecryptionError):
    """The passphrase does not open the private key."""


class UnsoundBackupError(OperatorError):
    """What the backup holds is not a sound database."""

    exit_code = ExitCode.UNSOUND_BACKUP

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(printable(message), hint=hint)  # SQLite quotes names from the backup


class CommandError(OperatorError):
    """A command that this tool runs is missing, failed or did not end in time.

    :param output: what it wrote on standard output all the same.
    """

    def __init__(self, message: str, *, hint: str = "", output: str = "") -> None:
        super().__init__(message, hint=hint)
        self.output = output


# --- commands ----------------------------------------------------------------------------------------------------


def child_environment(**extra: str) -> dict[str, str]:
    """Return the environment for a child process: ours without the database passphrase."""
    return {name: value for name, value in os.environ.items() if name != "DB_PASS"} | extra


def run_command(
    argv: list[str], *, timeout: float, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """Run a command out of the terminal's reach and return its standard output.

    :param timeout: seconds after which it is killed.
    :raises CommandError: with the last lines of its standard error.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env=child_environment() if env is None else env,
            cwd=cwd,
            start_new_session=True,  # a Ctrl-C must not reach it
            check=False,
        )
    except FileNotFoundError:
        raise CommandError(f"{argv[0]} is not installed", hint=f"Install the package that has {argv[0]}.") from None
    except OSError as error:
        raise CommandError(f"{argv[0]} cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise CommandError(f"`{' '.join(argv[:4])} …` did not end within {timeout:.0f} s") from None
    output = done.stdout.decode(errors="replace")
    if done.returncode:
        last = " / ".join(done.stderr.decode(errors="replace").strip().splitlines()[-3:])
        raise CommandError(
            f"`{' '.join(argv)[:100]}` failed with exit code {done.returncode}: {last or 'no message'}", output=output
        )
    return output


def restore_command(*arguments: str) -> str:
    """Return a command line for restore_backup.py, to be copied into a shell as it is."""
    found, own = shutil.which("python"), sys.executable
    # In the same folder, too: the Pythons of virtual environments are links to one file, but have other packages.
    on_path = found and all(os.path.realpath(of(found)) == os.path.realpath(of(own)) for of in (str, os.path.dirname))
    python = "python" if on_path else shown(Path(own))
    return shlex.join([python, shown(Path(config.__file__).with_name("restore_backup.py")), *arguments])


def missing_module(error: ModuleNotFoundError) -> RefusedError:
    """Return the refusal for a Python that lacks a package, or a program folder that lacks a file."""
    if error.name in ("conversion", "drill", "sql_dump"):
        return RefusedError(f"there is no {error.name}.py", hint=f"Copy {error.name}.py beside restore_backup.py.")
    return RefusedError(
        f"{sys.executable} does not have the package {error.name}",
        hint="Use the Python that has it (. .venv/bin/activate), or install all: pip install -r requirements.txt",
    )


def another_backup() -> str:
    """Return the hint for a backup that is of no use."""
    return f"Restore another backup; to see them: {restore_command('--list')}"


def printable(text: str) -> str:
    """Return a name from a backup, or a text with some, as what can neither steer a terminal nor begin a line."""
    return "".join(char if char.isprintable() else "?" for char in text)


def shown(path: Path) -> str:
    """Return a path for people: relative to the current folder when it lies below it."""
    with contextlib.suppress(ValueError, OSError):
        return str(path.absolute().relative_to(Path.cwd()))
    return str(path)


def quoted(path: Path | str) -> str:
    """Return a path as it is typed in a shell."""
    return shlex.quote(str(path))


# --- durable files -----------------------------------------------------------------------------------------------


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_file(path: Path) -> io.FileIO:
    """Create a new file for reading and writing, mode 0600 from its first byte; never follows or reuses a name.

    :raises FileExistsError: when the name is taken, by a link too.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return io.FileIO(descriptor, "r+")


def open_regular(path: Path, flags: int = os.O_RDONLY) -> io.FileIO:
    """Open a file that may have been planted: a named pipe or a device would keep us waiting or never end.

    :param flags: those of open(2); O_CREAT makes it with mode 0600.
    :raises OSError: also when it is not a regular file.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return io.FileIO(descriptor, "r" if flags & os.O_ACCMODE == os.O_RDONLY else "a")


def write_all(file: io.FileIO, data: bytes | memoryview) -> None:
    """Write all of the data to an unbuffered file (one write may be short without an error)."""
    view = memoryview(data)
    while view:
        view = view[file.write(view[: 8 * CHUNK]) :]


NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
"""What link() says on filesystems without hard links."""


def name_without_replacing(file: str, name: Path) -> None:
    """Give a file a name that must be free; its old name may stay, as a second one.

    :raises FileExistsError: when the name is taken.
    """
    try:
        os.link(file, name)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if os.path.lexists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(name)) from None
        os.rename(file, name)


def flock(descriptor: int, operation: int) -> bool:
    """Take a kernel lock without waiting; False when someone else has it."""
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_owner(descriptor: int) -> str:
    """Say which process holds the lock on an open folder, and since when it runs."""
    status = os.fstat(descriptor)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if file in fields and "FLOCK" in fields and "->" not in fields:
            process = Path("/proc") / fields[fields.index(file) - 1]
            with contextlib.suppress(OSError):
                since = datetime.fromtimestamp(process.stat().st_ctime).astimezone()
                return f"{command_of(process)} (pid {process.name}) since {since:%H:%M:%S}"
    return "a process that cannot be seen from here"


def command_of(process: Path) -> str:
    """Return the command line of a process, given its folder in /proc, as far as a message has room."""
    try:
        program, *arguments = (process / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return "?"
    return " ".join([Path(program).name, *arguments]).strip()[:100] or "?"


def open_folder(folder: Path) -> int:
    """Open a folder, to lock it or to look names up in it, and return the descriptor."""
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


# --- the process -------------------------------------------------------------------------------------------------

CAP_IPC_LOCK, CAP_SYS_PTRACE = 14, 19
"""Numbers of capabilities (linux/capability.h): to lock any amount of memory; to look at any process."""


def has_capability(number: int) -> bool:
    """Whether this process has a capability."""
    match = re.search(r"^CapEff:\s+([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(match and int(match[1], 16) >> number & 1)


def harden_process() -> None:
    """Keep this process's memory out of core dumps, out of other processes, and out of the swap area if it may."""
    libc = ctypes.CDLL(None)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # inherited by gpg
    pr_set_dumpable = 4
    libc.prctl(pr_set_dumpable, 0, 0, 0, 0)
    # With a limit, locking makes later allocations fail; CAP_IPC_LOCK is above it.
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY or has_capability(CAP_IPC_LOCK):
        mcl_current_future_onfault = 1 | 2 | 4
        libc.mlockall(mcl_current_future_onfault)
    os.umask(0o077)


# --- RAM folder and keyring --------------------------------------------------------------------------------------

GPG_HOME_LIMIT = 80
"""Longest path of a gpg home in bytes; from about 90 on, its sockets no longer fit and imports fail silently."""

# A process of its own, so that it outlives a SIGKILL of ours: at the end of its input it ends the agent and removes
# the folder. It is the only clean-up there is; the normal end uses it too.
REAPER = """
trap '' HUP INT QUIT TERM PIPE
read -r ended # empty when we were killed
if [ -d "$1/gnupg" ]; then
    gpgconf --homedir "$1/gnupg" --kill all
    gpgconf --homedir "$1/gnupg" --remove-socketdir
    rm -rf "$1"/* # before the umount: an agent that starts only now notices that its home is gone
    # Our death may have left a gpg behind, which is starting an agent, with a few forks between.
    for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        left=$(printf %s "$1/gnupg" | grep -lsaF -f - /proc/[0-9]*/cmdline)
        for process in $left; do
            process=${process%/cmdline}
            kill -KILL "${process#/proc/}"
        done
        if [ -z "$left" ] && { [ "$ended" ] || [ "$round" -gt 5 ]; }; then break; fi
        sleep 0.1
    done
fi
umount -l "$1"
rm -rf "$1"
"""

_CLONE_NEWNS = 0x00020000
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MS_BIND = 1 << 12
_MS_REC_SLAVE = 1 << 14 | 1 << 19


def enter_private_mounts() -> None:
    """Give this process a mount namespace of its own, in which a RAM folder can be a tmpfs that is never swapped.

    For a command's start, before any thread runs. Needs root; without it the process stays as it is. Mounts made
    elsewhere afterwards still arrive here. The folder with gpg's system-wide settings is hidden from our gpg.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or libc.unshare(_CLONE_NEWNS) != 0:
        return
    RamFolder.private_mounts = libc.mount(b"none", b"/", None, _MS_REC_SLAVE, None) == 0


class RamFolder:
    """A private folder in RAM (mode 0700), gone with all it holds when closed, even if this process is killed.

    A tmpfs that cannot be swapped out when :func:`enter_private_mounts` worked, else a folder in XDG_RUNTIME_DIR or
    /dev/shm. Never on a disk.

    :param need: bytes that it has to hold.
    :raises RefusedError: when there is no RAM folder with that much room.
    """

    private_mounts: ClassVar[bool] = False

    def __init__(self, need: int = CHUNK) -> None:
        self._mounted = False
        if self.private_mounts and available_memory() >= need and os.access("/run", os.W_OK):
            self._make(Path("/run"))
            options = b"noswap,mode=0700,size=100%"  # noswap: Linux 6.4 and newer
            libc = ctypes.CDLL(None, use_errno=True)
            path = os.fsencode(self.path)
            self._mounted = not libc.mount(b"restore-backup", path, b"tmpfs", _MS_NOSUID_NODEV_NOEXEC, options)
            if self._mounted:
                return
            self.close()
        self._make(self._fitting_parent(need))

    def _make(self, parent: Path) -> None:
        """Make the folder, after the process that will remove it, and lock it as the sign that we live."""
        self._remove_leftovers(parent)
        self.path = parent / f"restore-backup-{secrets.token_hex(4)}"
        self._reaper = subprocess.Popen(
            ["/bin/sh", "-c", REAPER, "sh", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": ":".join(filter(None, (os.environ.get("PATH"), os.defpath)))},
            cwd="/",
            start_new_session=True,
        )
        self.path.mkdir(mode=0o700)
        self._lock = open_folder(self.path)
        flock(self._lock, fcntl.LOCK_EX)

    @staticmethod
    def _remove_leftovers(parent: Path) -> None:
        """Remove the folders of processes whose reaper was killed, too."""
        for left in parent.glob("restore-backup-*"):
            with contextlib.suppress(OSError):
                status = left.lstat()
                # a mount here is that of our parent process, whose lock lies under it
                ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
                if ours and status.st_dev == parent.stat().st_dev and time.time() - status.st_ctime > 10:
                    descriptor = open_folder(left)
                    if flock(descriptor, fcntl.LOCK_EX):
                        shutil.rmtree(left)
                    os.close(descriptor)

    def _fitting_parent(self, need: int) -> Path:
        refused = []
        for parent in filter(None, (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm")):  # noqa: S108 - looked at first
            reason = self._unfit(Path(parent), need)
            if not reason:
                return Path(parent)
            refused.append(f"{parent} {reason}")
        raise RefusedError(
            f"no RAM folder for {megabytes(need)}: {'; '.join(refused)}",
            hint="Make one larger (as root: mount -o remount,size=90% /dev/shm), or use a machine with more memory. "
            "Decrypted data is never put on a disk.",
        )

    @staticmethod
    def _unfit(folder: Path, need: int) -> str:
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            return "is not a folder that can be written"
        if filesystem_type(folder) not in ("tmpfs", "ramfs"):
            return "is not in RAM"
        if len(os.fsencode(folder)) + len("/restore-backup-12345678/gnupg") > GPG_HOME_LIMIT:
            return "has too long a path"
        if shutil.disk_usage(folder).free < need or available_memory() < need:
            return f"has room for {megabytes(min(shutil.disk_usage(folder).free, available_memory()))}"
        return ""

    @property
    def swappable(self) -> bool:
        """Whether what lies here could end up in a swap area on a disk."""
        return not self._mounted and swap_on_disk()

    @property
    def free(self) -> int:
        """Bytes that still fit."""
        return min(shutil.disk_usage(self.path).free, available_memory())

    def close(self) -> None:
        """End the gpg agent and remove the folder."""
        if self._reaper.stdin and not self._reaper.stdin.closed:
            os.close(self._lock)
            with contextlib.suppress(OSError):  # somebody has killed it
                self._reaper.stdin.write(b"ended\n")
                self._reaper.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on without us
                self._reaper.wait(timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def filesystem_type(path: Path) -> str:
    """Return the type of the filesystem that a path lies on, as the kernel names it ("ext4", "tmpfs", ...)."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == number:
            return rest.split()[0]
    return "unknown"


def swap_on_disk(swaps: str | None = None) -> bool:
    """Whether memory can be swapped out to anything but compressed RAM (zram).

    :param swaps: content of /proc/swaps; read when left out.
    """
    text = Path("/proc/swaps").read_text() if swaps is None else swaps
    return any(line and not line.startswith("/dev/zram") for line in text.splitlines()[1:])


def available_memory() -> int:
    """Bytes that programs can still allocate without swapping (MemAvailable of /proc/meminfo)."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def megabytes(size: float) -> str:
    """Return a size for people, in kB, MB or GB (powers of ten)."""
    unit, factor = next(((unit, factor) for unit, factor in (("GB", 1e9), ("MB", 1e6)) if size >= factor), ("kB", 1e3))
    return f"{size / factor:.0f} {unit}" if size >= 100 * factor else f"{size / factor:.1f} {unit}"


class Readable(Protocol):
    """What gpg is fed from."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, b"" at the end."""


@dataclass(frozen=True)
class ImportedKey:
    """A key in the throwaway keyring."""

    fingerprint: str
    protected: bool
    warnings: tuple[str, ...]


class Keyring:
    """A throwaway gpg home in a RAM folder; nobody's own keyring or gpg settings are read or written."""

    def __init__(self, ram: RamFolder) -> None:
        self.home = ram.path / "gnupg"
        self.home.mkdir(mode=0o700)
        # The agent encrypts an imported key anew at its first use, with a count calibrated to take a second or two.
        # This copy lives in RAM for seconds only, so the lowest count will do.
        (self.home / "gpg-agent.conf").write_text("s2k-count 65536\nallow-loopback-pinentry\n")
        self._gpg = _open_gpg(self.home, self._hide_system_settings())
        self._own_key_ids: frozenset[str] = frozenset()

    def _hide_system_settings(self) -> list[str]:
        """Keep /etc/gnupg, which no option turns off, from our gpg; return the command it is run under for that.

        Without root that takes a user namespace, and where the kernel gives none gpg reads what the system's owner set.
        """
        if not Path("/etc/gnupg").is_dir():
            return []
        if RamFolder.private_mounts:
            empty = self.home.parent / "no-settings"
            empty.mkdir(mode=0o755)
            ctypes.CDLL(None).mount(os.fsencode(empty), b"/etc/gnupg", None, _MS_BIND, None)
            return []
        hidden = [
            "unshare",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            'mount -t tmpfs none /etc/gnupg && exec "$@"',
            "sh",
        ]
        with contextlib.suppress(CommandError):
            run_command([*hidden, "true"], timeout=10)
            return hidden
        return []

    def import_public(self, key: bytes) -> str:
        """Import the key that backups are encrypted with and return its fingerprint.

        :raises OperatorError: when it is not a public key.
        """
        result = self._gpg.import_keys(key)
        if not result.fingerprints or result.sec_read:
            what = "holds a PRIVATE key" if result.sec_read else "is not an OpenPGP public key"
            raise OperatorError(
                f"PGP_PUBLIC_KEY_BASE64 {what}", hint="Set it to the output of: gpg --export KEY-ID | base64 -w0"
            )
        return str(result.fingerprints[0])

    def import_private(self, key: Secret) -> ImportedKey:
        """Import the private key that opens the backup (binary or armored).

        :raises DecryptionError: when it is truncated, a public key only, or no key.
        """
        result = self._gpg.import_keys(key.reveal_bytes())
        secret = self._gpg.list_keys(secret=True)
        if result.sec_read and not result.sec_imported:
            self._ask_agent("GETINFO version")  # is it there at all? gpg does not say
        if not result.sec_read or not result.sec_imported or not secret:
            if result.imported and not result.sec_read:
                what = "it holds a public key only"
            elif result.count or result.sec_read or begins_like_key(key.reveal_bytes()):
                what = "it is truncated or damaged"
            else:
                what = "it is not an OpenPGP key"
            raise DecryptionError(
                f"the private key cannot be used: {what}",
                hint="Export it again: gpg --export-secret-keys KEY-ID | base64 -w0",
            )
        ids = {str(key["keyid"]) for key in secret} | {str(sub[0]) for key in secret for sub in key["subkeys"]}
        self._own_key_ids = frozenset(ids)
        return ImportedKey(str(secret[0]["fingerprint"]), self._protected(), _key_warnings(secret))

    def _protected(self) -> bool:
        listing = self._ask_agent("KEYINFO --list")
        states = [line.split()[7] for line in listing.splitlines() if line.startswith("S KEYINFO")]
        return not states or "P" in states

    def _ask_agent(self, command: str) -> str:
        """Give the agent a command and return its answer.

        :raises CommandError: when there is no agent.
        """
        env = child_environment(GNUPGHOME=str(self.home))
        try:
            return run_command(["gpg-connect-agent", "--homedir", str(self.home), command, "/bye"], timeout=30, env=env)
        except CommandError as error:
            raise CommandError(f"gpg-agent cannot be used: {error}", hint="Install it: apt-get install gnupg") from None

    def try_to_open(self, beginning: bytes, passphrase: Secret | None) -> None:
        """Find out from its beginning whether key and passphrase open a message; its content is thrown away.

        :raises DecryptionError: when they do not.
        """
        result = self._decrypt(io.BytesIO(beginning), passphrase, lambda _: None, len(beginning))
        if not any(name == "DECRYPTION_INFO" for name, _ in result.events):
            check_decryption(result.events, result.returncode, self._own_key_ids)

    def decrypt(self, message: Readable, passphrase: Secret | None, sink: Callable[[bytes], None], limit: int) -> None:
        """Decrypt a message, giving its content to ``sink`` piece by piece.

        The content counts only when this method returns: until then it is not authenticated.

        :param limit: bytes of content at which gpg stops.
        :raises DecryptionError: wrong key or passphrase, damaged, truncated or unauthenticated message.
        :raises UnsoundBackupError: when there is more content than the limit.
        """
        result = self._decrypt(message, passphrase, sink, limit)
        if result.received > limit:
            raise too_large(limit)
        check_decryption(result.events, result.returncode, self._own_key_ids)
        if result.failure:
            raise result.failure

    def _decrypt(self, message: Readable, passphrase: Secret | None, sink: Callable[[bytes], None], limit: int) -> Any:
        """Run gpg on a message, no longer than its content is within the limit; return its result, whatever it says."""
        text = passphrase_text(passphrase)
        received = 0

        def count(data: bytes) -> None:
            nonlocal received
            received += len(data)
            if received <= limit:
                sink(data)
            else:  # gpg by itself would write no more, but unpack a bomb to its end
                self._gpg.process.kill()

        result = self._stream(
            count,
            lambda: self._gpg.decrypt_file(
                message,
                passphrase=text,
                always_trust=True,
                # a signature is not what makes a backup authentic, and its key is not here
                extra_args=["--skip-verify", "--no-auto-key-retrieve"],
            ),
        )
        result.received = received
        return result

    def encrypt(self, content: Readable, fingerprint: str, sink: Callable[[bytes], None]) -> None:
        """Encrypt to one public key, without a second compression, giving the message to ``sink``.

        :raises BackupError: when gpg cannot, with its last words.
        """
        result = self._stream(
            sink,
            lambda: self._gpg.encrypt_file(
                content, [fingerprint], always_trust=True, armor=False, extra_args=["-z", "0", "--no-auto-key-locate"]
            ),
        )
        if result.failure:
            raise result.failure
        if not result.ok or result.returncode:
            raise BackupError(
                f"gpg cannot encrypt the backup: {result.status or 'no reason given'}",
                hint="Is the key of PGP_PUBLIC_KEY_BASE64 expired, revoked, or unable to encrypt? Look with: "
                "base64 -d | gpg --show-keys",
            )

    def _stream(self, sink: Callable[[bytes], None], work: Callable[[], Any]) -> Any:
        """Run a gpg operation whose output goes to the sink.

        :returns: gpg's result, with the sink's error (if any) as ``failure``: what gpg says of the message comes
            first, since content that is not authentic can make the sink fail in any way.
        """
        failure: Exception | None = None

        def on_data(data: bytes) -> bool:
            nonlocal failure
            if failure is None:
                try:
                    sink(data)
                except Exception as error:  # noqa: BLE001 - raised by the caller, in its own thread
                    failure = error
            return False  # anything else makes python-gnupg keep the whole output

        self._gpg.on_data = on_data
        try:
            work()
        except OSError:
            pass  # gpg ended before it had read everything: its result says why
        except BaseException:
            self._gpg.process.kill()
            raise
        result = self._gpg.result
        result.failure = failure
        return result


def begins_like_key(raw: bytes) -> bool:
    """Whether bytes begin like an export of a key: armored, or with a secret or public key packet (tags 5 and 6)."""
    if raw.startswith(b"-----BEGIN PGP") or not raw or not raw[0] & 0x80:
        return raw.startswith(b"-----BEGIN PGP")
    return (raw[0] & 0x3F if raw[0] & 0x40 else raw[0] >> 2 & 0x0F) in (5, 6)


def passphrase_text(passphrase: Secret | None) -> str | None:
    """Return a passphrase as gpg takes it.

    :raises PassphraseError: when it cannot be one.
    """
    if passphrase is None:
        return None
    again = WRONG_KEY_HINT
    raw = passphrase.reveal_bytes()
    if not raw:
        raise PassphraseError("the passphrase is empty", hint=again)
    if b"\0" in raw or b"\n" in raw:
        raise PassphraseError("the passphrase holds a NUL or a line break, which gpg does not take", hint=again)
    try:
        return passphrase.reveal()
    except UnicodeDecodeError:
        raise PassphraseError("the passphrase is not UTF-8 text", hint="Use a terminal that is set to UTF-8.") from None


class _AsciiLines:
    """gpg's status lines: ASCII, one to a newline, whatever else a hostile message makes gpg print.

    python-gnupg would decode them as UTF-8, fail on what is none, and take U+2028 for the end of a line.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readline(self) -> str:
        """Return the next line, "" at the end."""
        return str(self._stream.readline().decode("ascii", "backslashreplace"))


def _open_gpg(home: Path, wrapper: list[str]) -> Any:
    """Return a python-gnupg interface whose children are out of the terminal's reach and see no secret of ours.

    :param wrapper: the command that gpg is run under, if any.
    """
    import gnupg

    class Crypt(gnupg.Crypt):  # type: ignore[misc]
        """Keeps every status line: python-gnupg drops those that tell whether the content is authentic."""

        def __init__(self, gpg: Any) -> None:
            super().__init__(gpg)
            self.events: list[tuple[str, str]] = []
            gpg.result = self  # kept, for when the writing to gpg fails

        def handle_status(self, key: str, value: str) -> None:
            self.events.append((key, value))
            with contextlib.suppress(ValueError, LookupError):  # it stumbles over lines that damaged messages cause
                super().handle_status(key, value)

    class Gpg(gnupg.GPG):  # type: ignore[misc]
        buffer_size = 1 << 16  # larger pieces make isal slower
        result_map = gnupg.GPG.result_map | {"crypt": Crypt}
        process: subprocess.Popen[bytes] | None = None

        def _open_subprocess(self, args: list[str], passphrase: bool = False) -> subprocess.Popen[bytes]:
            self.process = subprocess.Popen(
                [*wrapper, *self.make_args(args, passphrase)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.env,
                start_new_session=True,
            )
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError):  # beyond what the kernel gives to one user
                    fcntl.fcntl(cast(IO[bytes], pipe), fcntl.F_SETPIPE_SZ, 1 << 20)
            return self.process

        def _read_response(self, stream: Any, result: Any) -> None:
            super()._read_response(_AsciiLines(stream.stream), result)

    # Its debug log holds parts of the key, and it reports each error that is handled here.
    logging.getLogger("gnupg").setLevel(logging.CRITICAL)
    logging.getLogger("gnupg").propagate = False
    env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "GNUPGHOME": str(home)}
    try:
        return Gpg(gnupghome=str(home), env=env, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RefusedError(f"gpg cannot be run: {error}", hint="Install it: apt-get install gnupg") from None


WRONG_KEY_HINT = (
    "It is the passphrase of the private key, not DB_PASS. Look at the keyboard layout, and for a line break before it."
)

GPG_ERR_BAD_PASSPHRASE = 11
"""From libgpg-error; the low 16 bits of the code in a status line ERROR."""


def _error_code(error: str) -> int:
    """Return the code in the value of a status line ERROR ("pkdecrypt_failed 67108875", "proc_pkt.plaintext 89_X")."""
    match = re.match(r"\S+ (\d+)", error)
    return int(match[1]) & 0xFFFF if match else 0


HIDDEN_RECIPIENT = "0000000000000000"
"""The key ID that a message to a hidden recipient carries (gpg -R)."""


def check_decryption(events: list[tuple[str, str]], returncode: int, own_key_ids: frozenset[str]) -> None:
    """Raise unless gpg's status lines say that one whole, encrypted and authenticated message was read.

    Status lines: https://github.com/gpg/gnupg/blob/master/doc/DETAILS. gpg also gives content, and exit code 0 or
    DECRYPTION_OKAY, for messages that are not authentic or not encrypted at all.

    :raises DecryptionError: saying which of the many things it is.
    """
    seen = {name for name, _ in events}
    recipients = [value.split()[0] for name, value in events if name == "ENC_TO"]
    errors = [value for name, value in events if name == "ERROR"]
    bad_passphrase = any(_error_code(error) == GPG_ERR_BAD_PASSPHRASE for error in errors)
    info = next((value.split() for name, value in events if name == "DECRYPTION_INFO"), [])
    aead = len(info) > 2 and info[2] != "0"  # fields of DECRYPTION_INFO: MDC method, cipher, AEAD algorithm
    authentic = "GOODMDC" in seen or aead
    unprotected = "DECRYPTION_INFO" in seen and info[:1] == ["0"] and not aead
    again = "Take another copy of the backup file; compare it with: sha256sum -c FILE.sha256"
    if "DECRYPTION_OKAY" in seen and authentic and returncode == 0:
        return
    if "DECRYPTION_INFO" not in seen:  # it did not come to the content
        if "MISSING_PASSPHRASE" in seen or bad_passphrase:
            raise PassphraseError("wrong passphrase for the private key", hint=WRONG_KEY_HINT)
        if HIDDEN_RECIPIENT in recipients and "NO_SECKEY" in seen:  # gpg says the same in both cases
            raise PassphraseError(
                "wrong passphrase, or the backup is encrypted to another key (its recipient is hidden)",
                hint="Try again with the right passphrase, or with the other key.",
            )
        if recipients and not own_key_ids & {*recipients}:
            raise DecryptionError(
                f"this private key does not open the backup: it is encrypted to key ID {', '.join(recipients)}, "
                f"and the key given has {', '.join(sorted(own_key_ids))}",
                hint="Use the private key with that ID (gpg --list-secret-keys --keyid-format long).",
            )
        if "NEED_PASSPHRASE_SYM" in seen:
            raise DecryptionError(
                "the backup is encrypted with a passphrase only, not to a key",
                hint="Such backups are not this tool's: decrypt it by hand with gpg -d in a RAM folder.",
            )
        if seen & {"PLAINTEXT", "SIG_ID", "GOODSIG", "ERRSIG", "ONEPASS"}:
            raise DecryptionError(
                "the message is not encrypted: anybody could have made it",
                hint="Restore a backup that was encrypted to your key.",
            )
        raise DecryptionError("the encrypted backup is damaged: gpg cannot read its beginning", hint=again)
    if unprotected or ("DECRYPTION_OKAY" in seen and not authentic):
        raise DecryptionError(
            "the encrypted backup is not authenticated (no MDC): its content could have been changed by anybody",
            hint="Restore another backup.",
        )
    raise DecryptionError("the encrypted backup is damaged or not complete", hint=again)


def _key_warnings(keys: Any) -> tuple[str, ...]:
    """Say what is unusual about keys that decrypt all the same."""
    warnings = []
    for key in keys:
        if key["trust"] == "r":
            warnings.append(f"key {key['keyid']} is revoked")
        elif key["trust"] == "e" or (key["expires"] and int(key["expires"]) < time.time()):
            warnings.append(f"key {key['keyid']} has expired")
    if len(keys) > 1:
        warnings.append(f"{len(keys)} keys were given")
    return tuple(warnings)


# --- gunzip ------------------------------------------------------------------------------------------------------


class GzipDecoder:
    """Decompresses a gzip stream of one or more members, piece by piece.

    :param sink: is given the content.
    :param limit: bytes of content at which it stops.
    """

    def __init__(self, sink: Callable[[bytes], object], limit: int) -> None:
        from isal import isal_zlib

        self._new: Any = lambda: isal_zlib.decompressobj(wbits=31)  # 31: gzip with its header and checksum
        self._error: Any = isal_zlib.error
        self._sink = sink
        self._left = limit
        self._limit = limit
        self._member: Any = None
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Decompress a piece.

        :raises UnsoundBackupError: when it is damaged, goes on after its end, or exceeds the limit.
        """
        while data:
            if self._member is None:
                if self._ended:
                    data = data.lstrip(b"\0")  # padding, as tapes and some copying tools leave it
                    if not data:
                        return
                    if data[:1] != b"\x1f":
                        raise _gzip_error("there is something else behind its end")
                self._member = self._new()
            data = self._inflate(data)

    def _inflate(self, data: bytes) -> bytes:
        """Feed the current member and return what is left for the next."""
        member = self._member
        while True:
            try:
                content = member.decompress(data, CHUNK)
            except self._error as error:
                raise _gzip_error(str(error).rpartition(" -")[2] or str(error)) from None
            self._left -= len(content)
            if self._left < 0:
                raise too_large(self._limit)
            self._sink(content)
            if member.eof:
                self._member, self._ended = None, True
                return bytes(member.unused_data)
            data = member.unconsumed_tail
            if not data and len(content) < CHUNK:
                return b""

    def finish(self) -> None:
        """Say that the stream has ended.

        :raises UnsoundBackupError: when a member is not complete.
        """
        if self._member is not None or not self._ended:
            raise _gzip_error("it is cut off")


def too_large(limit: int) -> UnsoundBackupError:
    """Return the error for a backup that unpacks to more than a limit in bytes."""
    return UnsoundBackupError(
        f"the backup unpacks to more than {megabytes(limit)}, which is all that memory, or MAX_DATABASE_MB, allows",
        hint="Is it the right file? If it is, raise MAX_DATABASE_MB in .env, or restore on a machine with more memory.",
    )


def _gzip_error(reason: str) -> UnsoundBackupError:
    return UnsoundBackupError(f"the compressed backup is damaged: {reason}", hint=another_backup())


# --- databases in either mode ------------------------------------------------------------------------------------

SIDECARS = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database; the -wal and -journal hold data of it, the -shm does not."""

SQLITE_MAGIC = b"SQLite format 3\0"


def sidecars(database: Path) -> list[Path]:
    """Return the sidecars of a database that exist."""
    return [path for path in (database.with_name(database.name + suffix) for suffix in SIDECARS) if path.exists()]


def database_files(database: Path) -> list[Path]:
    """Return the database and its sidecars, those that exist."""
    return [path for path in [database, *sidecars(database)] if path.exists()]


def refuse_irregular(files: list[Path]) -> None:
    """Refuse what SQLite would open beside a database and wait for: a named pipe that somebody planted.

    :raises RefusedError: naming the file.
    """
    for path in files:
        if not path.is_file():
            raise RefusedError(f"{path} is not a regular file", hint=f"Look who made it, then remove it: ls -l {path}")


RAW_KEY = re.compile(r"x'(?:[0-9a-f]{64}|[0-9a-f]{96})'", re.IGNORECASE)
"""A SQLCipher passphrase of this form is the key itself, with or without a salt."""


DERIVATIONS = {4: ("sha512", 256_000), 3: ("sha1", 64_000), 2: ("sha1", 4_000), 1: ("sha1", 4_000)}
"""How each version of SQLCipher derives a key from a passphrase: PBKDF2 with HMAC of this hash, so many rounds."""


def raw_key(passphrase: Secret, salt: bytes, digest: str, rounds: int) -> str:
    """Return the key that a passphrase gives with a salt, as `PRAGMA key` takes it."""
    key = hashlib.pbkdf2_hmac(digest, passphrase.reveal_bytes(), salt, rounds, 32)
    return f"\"x'{key.hex()}{salt.hex()}'\""


def quoted_passphrase(passphrase: Secret) -> str:
    """Return a passphrase as `PRAGMA key` takes it, which takes no bound parameter."""
    return "'" + passphrase.reveal().replace("'", "''") + "'"


def quoted_identifier(name: str) -> str:
    """Return the name of a table or column as it stands in SQL."""
    return '"' + name.replace('"', '""') + '"'


class Engine:
    """Opens databases: SQLite, or SQLCipher when there is a passphrase."""

    def __init__(self, db_pass: Secret | None) -> None:
        self.db_pass = db_pass
        self._keys: dict[bytes, str] = {}

    @property
    def name(self) -> str:
        """Name for people."""
        return "SQLCipher" if self.db_pass else "SQLite"

    @property
    def _module(self) -> Any:
        if self.db_pass:
            import sqlcipher3.dbapi2 as module
        else:
            import sqlite3 as module
        return module

    @property
    def errors(self) -> tuple[type[Exception], type[UnicodeDecodeError]]:
        """The exceptions of this engine; those of sqlite3 and sqlcipher3 are not related.

        Damage in a schema can be quoted in the engine's message, which then is no UTF-8.
        """
        return (self._module.Error, UnicodeDecodeError)

    def connect(
        self,
        path: Path | str,
        *,
        mode: str = "rw",
        immutable: bool = False,
        timeout: float = 5.0,
        key_of: Path | None = None,
    ) -> sqlite3.Connection:
        """Open a database.

        :param mode: "ro" or "rw"; the file must exist.
        :param immutable: promise that nobody changes it: no lock, no sidecar, and existing ones are not read.
        :param timeout: seconds to wait for a lock.
        :param key_of: an existing database whose key and salt a new SQLCipher database shall have.
        """
        uri = "file:" + quote(os.fsencode(path)) + f"?mode={mode}" + ("&immutable=1" if immutable else "")
        connection: sqlite3.Connection = self._module.connect(
            uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
        )
        try:
            if self.db_pass:
                connection.execute("PRAGMA cipher_log_level=NONE")
                connection.execute(f"PRAGMA key = {self._key(Path(key_of or path), self.db_pass)}")
            distrust_schema(self._module, connection)
            connection.execute("PRAGMA temp_store=MEMORY")  # sorting would write rows into files in /var/tmp
        except BaseException:
            connection.close()
            raise
        return connection

    def _key(self, path: Path, db_pass: Secret) -> str:
        """Return the value for `PRAGMA key`, which takes no bound parameter.

        Each opening by passphrase costs SQLCipher 4 a derivation of 0.15 s (PBKDF2, HMAC-SHA-512, 256,000 rounds, salt
        in the first 16 bytes of the file), some of them while the bot is down. So it is done once; raw keys are given.
        """
        with io.FileIO(path) as file:
            salt = file.read(16)
        # no salt in a file that is empty; and what looks like a raw key is taken as one by SQLCipher
        if len(salt) < 16 or RAW_KEY.fullmatch(db_pass.reveal()):
            return quoted_passphrase(db_pass)
        if salt not in self._keys:
            self._keys[salt] = raw_key(db_pass, salt, *DERIVATIONS[4])
        return self._keys[salt]

    def connect_reader(self, path: Path) -> sqlite3.Connection:
        """Open a database that others may be using, to read it and leave no trace.

        Read-only where a WAL or journal holds data, since closing would fold or roll that into the database; else
        read-write, since closing a read-only connection would leave empty sidecars behind.
        """
        beside = (path.with_name(path.name + suffix) for suffix in ("-wal", "-journal"))
        mode = "ro" if any(sidecar.exists() for sidecar in beside) else "rw"
        return self.connect(path, mode=mode, timeout=30)


def distrust_schema(module: Any, connection: sqlite3.Connection) -> None:
    """Take from a hostile schema what it could do when it is read; cells are checked before they are used.

    SQLite 3.38 to 3.40 hold their own functions for JSON to be unsafe, and so sound databases to be damaged: there the
    functions that are unsafe are refused by name.
    """
    unsafe = _unsafe_functions(module)
    mistaken = {name for name in unsafe if name.startswith(("json", "->"))}

    def authorize(action: int, _first: str | None, name: str | None, _database: str | None, _source: str | None) -> int:
        refused = action == module.SQLITE_FUNCTION and name in unsafe - mistaken
        return int(module.SQLITE_DENY if refused else module.SQLITE_OK)

    if mistaken:
        connection.set_authorizer(authorize)
    connection.execute(f"PRAGMA trusted_schema={'ON' if mistaken else 'OFF'}")
    connection.execute("PRAGMA cell_size_check=ON")


@functools.cache
def _unsafe_functions(module: Any) -> frozenset[str]:
    innocuous = 0x200000
    with contextlib.closing(module.connect(":memory:")) as connection:
        rows = connection.execute("SELECT name FROM pragma_function_list WHERE NOT flags & ?", (innocuous,))
        return frozenset(name for (name,) in rows)


# --- layers of a backup file ---------------------------------------------------------------------------------------

GZIP_MAGIC = b"\x1f\x8b"

OPENPGP_VERSIONS = {
    1: (3, 6),
    2: (3, 4, 5, 6),
    3: (4, 5, 6),
    4: (3, 6),
    8: (0, 1, 2, 3),
    11: b"btul",
    18: (1, 2),
    20: (1,),
}
"""First bytes of the bodies of OpenPGP packets that a message can begin with, by packet tag (RFC 9580, section 5)."""

OPENPGP_ALGORITHMS = (1, 2, 8, 16, 18, 25, 26)
"""Public-key algorithms that encrypt: RSA, Kyber as GnuPG 2.5 numbers it, Elgamal, ECDH, X25519, X448 (section 9.1)."""


SQL_BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:--|/\*|(?i:BEGIN|CREATE|INSERT|PRAGMA)\b)")


def outer_layer(head: bytes, name: str, size: int) -> str:
    """Tell from its first bytes what a backup file is: "openpgp", "gzip" or "database".

    SQLCipher databases look like noise, so whatever is not known counts as a database, unless it is named .gpg. So do
    SQL dumps, whatever their name. But noise may look like an OpenPGP message, one in 650 does: what has whole pages
    (4096 bytes is SQLCipher's default, 1024 was until version 3) counts as one only if a public key can open it.

    :param size: of the file, in bytes.
    :raises DecryptionError: when the name says encrypted and the content does not.
    """
    like_database = size % 1024 == 0 and not name.endswith(".gpg")
    if head.startswith(b"-----BEGIN PGP") or _openpgp_packet(head, sure=like_database):
        return "openpgp"
    if head.startswith(GZIP_MAGIC + b"\x08"):
        return "gzip"
    if name.endswith(".gpg") and not head.startswith(SQLITE_MAGIC) and not SQL_BEGINS.match(head):
        what = "is empty" if not head else "does not begin like an OpenPGP message: it is damaged, or another file"
        raise DecryptionError(f"{name} {what}", hint=f"Take another copy of it. {another_backup()}")
    return "database"


def _openpgp_packet(head: bytes, *, sure: bool) -> bool:
    """Whether an OpenPGP message may begin here; if `sure`, only one that is encrypted to a public key."""
    if len(head) < 16 or not head[0] & 0x80:
        return False
    if head[0] & 0x40:  # new format: the length of the length is in its first byte
        tag = head[0] & 0x3F
        body = 1 + (1 if head[1] < 192 or 224 <= head[1] < 255 else 2 if head[1] < 224 else 5)
    else:
        tag = head[0] >> 2 & 0x0F
        body = 1 + (1, 2, 4, 0)[head[0] & 3]
    if sure:
        return tag == 1 and head[body] == 3 and head[body + 9] in OPENPGP_ALGORITHMS
    return head[body] in OPENPGP_VERSIONS.get(tag, ())


# --- backups -----------------------------------------------------------------------------------------------------

BACKUP_NAME = re.compile(r"db_backup_(\d{8}_\d{6})(\.raw\.tar|\.db)(\.gz)?(\.gpg)?")
"""Names of backups; a .raw.tar holds the files of a database that could not be read."""


@dataclass(frozen=True)
class BackupInfo:
    """A backup in the backup folder."""

    path: Path
    created: datetime
    size: int
    encrypted: bool

    def checksum_state(self, until: float = math.inf, progress: Callable[[int], object] = lambda _: None) -> str:
        """Return "ok", "MISMATCH", "none" or "unreadable", after reading the whole file; else "not read".

        :param until: a time of the monotonic clock at which reading ends.
        :param progress: is told the size of each piece that was read.
        """
        digest = hashlib.sha256()
        try:
            expected = recorded_checksum(self.path)
            if expected is None:
                return "none"
            with io.FileIO(self.path) as file:
                while piece := file.read(CHUNK):
                    if time.monotonic() > until:
                        return "not read"
                    digest.update(piece)
                    progress(len(piece))
        except (OSError, RefusedError):
            return "unreadable"
        return "ok" if digest.hexdigest() == expected else "MISMATCH"


def backup_time(path: Path) -> datetime:
    """Return when a backup was made: what its name says, else when the file was changed."""
    match = BACKUP_NAME.fullmatch(path.name)
    with contextlib.suppress(ValueError):
        if match:
            return datetime.strptime(match[1], "%Y%m%d_%H%M%S").astimezone()
    return datetime.fromtimestamp(path.stat().st_mtime).astimezone()


def file_sha256(file: io.FileIO) -> str:
    """Return the SHA-256 of a file from its beginning, in hexadecimal."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_path(backup: Path) -> Path:
    """Return the path of a backup's checksum file."""
    return backup.with_name(backup.name + ".sha256")


def recorded_checksum(backup: Path) -> str | None:
    """Return the SHA-256 that stands beside a backup, or None when there is none.

    :raises RefusedError: when the checksum file is there and cannot be understood.
    """
    path = checksum_path(backup)
    try:
        with open_regular(path) as file:
            text = file.read(CHUNK).decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RefusedError(f"cannot read {path}: {error.strerror}", hint=f"Look: ls -l {quoted(path)}") from None
    match = re.match(r"\\?([0-9a-fA-F]{64})\b", text)
    if not match:
        raise RefusedError(
            f"{path} is not a checksum of sha256sum", hint=f"If you trust the backup without it, move it away: {path}"
        )
    return match[1].lower()


class DatabaseBackup:
    """Makes, lists, verifies and removes backups of one database.

    :param settings: passphrase and public key; read with :func:`config.load_settings` when left out.
    :param engine: opens the database; one that has opened it before knows its key already.
    :param locked: the caller holds the lock on the database's folder (a restore does).
    :param quiet: nobody has the database open and it has no sidecars, so it is read without making any.
    """

    def __init__(
        self,
        db_path: Path | str,
        backup_dir: Path | str,
        *,
        settings: Settings | None = None,
        engine: Engine | None = None,
        locked: bool = False,
        quiet: bool = False,
    ) -> None:
        self.db_path = Path(db_path).absolute()
        self.backup_dir = Path(backup_dir).absolute()
        self._settings = settings or load_settings()
        self._engine = engine or Engine(self._settings.db_pass)
        self._locked = locked
        self._quiet = quiet
        self.progress: Callable[[int], object] = lambda _: None
        """Is told how many bytes of the database have been read for the backup."""

    def create_backup(self, compress: bool = True) -> Path:
        """Back up the database, consistent even while it is written to, and return the backup's path.

        No plaintext is written to a disk. The file appears under its name when it is complete and durable.

        :raises BackupError: when the database cannot be read or the backup cannot be written.
        :raises RefusedError: when there is no RAM folder that holds a copy.
        """
        if not self.db_path.is_file():
            raise UnreadableDatabaseError(
                f"there is no database {self.db_path}", hint="Check DATA_DIR and DB_NAME in .env."
            )
        if not self.db_path.stat().st_size:  # opening it would delete the sidecars beside it
            raise UnreadableDatabaseError(f"{self.db_path} is empty")
        refuse_irregular(sidecars(self.db_path))
        need = sum(path.stat().st_size for path in database_files(self.db_path))
        with self._no_restore_meanwhile(), RamFolder(need + CHUNK) as ram:
            copy = ram.path / "copy.db"
            try:
                self._copy_database(copy)
            except self._engine.errors as error:
                raise UnreadableDatabaseError(
                    f"cannot read {self.db_path} as a {self._engine.name} database: {error}",
                    hint="Check DB_ENCRYPTION and DB_PASS in .env.",
                ) from None
            return self._store(copy, ".db", ram, compress=compress)

    def create_raw_backup(self) -> Path:
        """Save the database's files byte for byte, sidecars included, as a tar: for one that cannot be read.

        :raises BackupError: when the files cannot be read or the backup cannot be written.
        """
        files = database_files(self.db_path)
        with RamFolder(sum(path.stat().st_size for path in files) + CHUNK) as ram:
            copy = ram.path / "raw.tar"
            try:
                with tarfile.open(copy, "w") as tar:
                    for path in files:
                        tar.add(path, arcname=path.name, recursive=False)
            except OSError as error:
                raise BackupError(
                    f"cannot read {self.db_path}: {error.strerror}",
                    hint=f"Look: ls -l {self.db_path}; dmesg | tail. When it cannot be had any more, restore without "
                    "keeping it: --skip-backup",
                ) from None
            return self._store(copy, ".raw.tar", ram, compress=True)

    def verify_backup(self, path: Path | str) -> str:
        """Check a backup as far as that goes without the private key, and say how far that was.

        :raises RefusedError: when the checksum does not match or the file is not there.
        :raises UnsoundBackupError: when an unencrypted backup does not hold a sound database.
        """
        backup = Path(path)
        try:
            file = open_regular(backup)
        except OSError as error:
            raise RefusedError(
                f"cannot read {backup}: {error.strerror}", hint=f"See what is there: {restore_command('--list')}"
            ) from None
        with file:
            checksum = check_checksum(backup, file)
            file.seek(0)
            layer = outer_layer(file.read(64), backup.name, os.fstat(file.fileno()).st_size)
            if layer == "openpgp":
                command = restore_command("--verify-only", shown(backup))
                return f"{checksum}; content not checked, since that takes the key: {command}"
            with RamFolder(CHUNK) as ram:
                copy = ram.path / "copy.db"
                with create_file(copy) as target:
                    room = ram.free // 10 * 9
                    decoder = GzipDecoder(target.write, min(room, self._settings.max_database_bytes or room))
                    feed = decoder.feed if layer == "gzip" else target.write
                    file.seek(0)
                    for piece in iter(lambda: file.read(CHUNK), b""):
                        feed(piece)
                    if layer == "gzip":
                        decoder.finish()
                try:
                    return f"{checksum}; {check_database(self._engine, copy)}"
                except UnsoundBackupError as error:  # an SQL dump, an older SQLCipher: a restore tells what it is
                    command = restore_command("--verify-only", shown(backup))
                    error.hint = error.hint or f"If the bot was older then, it may restore all the same: {command}"
                    raise

    def list_backups(self) -> list[BackupInfo]:
        """Return the backups in the backup folder, newest first.

        :raises RefusedError: when the folder cannot be read.
        """
        try:
            names = os.listdir(self.backup_dir)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RefusedError(
                f"cannot read the folder {self.backup_dir}: {error.strerror}",
                hint=f"Look: ls -ld {quoted(self.backup_dir)}; or run this as root.",
            ) from None
        found = [
            BackupInfo(path, backup_time(path), path.stat().st_size, path.name.endswith(".gpg"))
            for path in map(self.backup_dir.joinpath, names)
            if BACKUP_NAME.fullmatch(path.name) and path.is_file()
        ]
        return sorted(found, key=lambda backup: (backup.created, backup.path.name), reverse=True)

    def cleanup_old_backups(self, retention_days: int) -> list[Path]:
        """Remove backups older than that many days and return their paths. The newest one always stays."""
        limit = time.time() - retention_days * 86400
        removed = []
        for backup in self.list_backups()[1:]:
            if backup.created.timestamp() < limit:
                backup.path.unlink()
                checksum_path(backup.path).unlink(missing_ok=True)
                removed.append(backup.path)
        return removed

    @contextlib.contextmanager
    def _no_restore_meanwhile(self) -> Iterator[None]:
        """Share the lock that a restore takes for itself."""
        folder = open_folder(self.db_path.parent)
        try:
            if not self._locked and not flock(folder, fcntl.LOCK_SH):
                raise RefusedError(
                    f"a restore is at work in {self.db_path.parent}: {lock_owner(folder)}",
                    hint="Make the backup when the restore has ended.",
                )
            yield
        finally:
            os.close(folder)

    def _copy_database(self, copy: Path) -> None:
        create_file(copy).close()
        with (
            contextlib.closing(self._open_source(copy.with_name("killed.db"))) as source,
            contextlib.closing(self._engine.connect(copy, key_of=self.db_path)) as target,
        ):
            target.execute("PRAGMA journal_mode=OFF")
            target.execute("PRAGMA synchronous=OFF")
            source.backup(target)

    def _open_source(self, scratch: Path) -> sqlite3.Connection:
        """Open the database for the copy; when its writer was killed in a transaction, a copy of it in RAM."""
        if self._quiet:
            return self._engine.connect(self.db_path, mode="ro", immutable=True)
        connection = self._engine.connect_reader(self.db_path)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except self._engine.errors:
            connection.close()
            journal = self.db_path.with_name(self.db_path.name + "-journal")
            if not journal.exists():
                raise
            shutil.copyfile(journal, scratch.with_name(scratch.name + "-journal"))
            shutil.copyfile(self.db_path, scratch)
            return self._engine.connect(scratch, key_of=self.db_path)
        return connection

    def _store(self, copy: Path, kind: str, ram: RamFolder, *, compress: bool) -> Path:
        """Compress, encrypt and write a file in the RAM folder as a new backup."""
        suffix = kind + (".gz" if compress else "") + (".gpg" if self._settings.public_key else "")
        try:
            self.backup_dir.mkdir(parents=True, exist_ok=True)
            self.remove_leftovers()
            with self._temporary() as target, self._temporary() as checksum:
                digest = self._write(copy, target, ram, compress=compress)
                os.fsync(target.fileno())
                return self._publish(target, checksum, suffix, digest)
        except OSError as error:
            raise BackupError(
                f"cannot write the backup in {self.backup_dir}: {error.strerror}",
                hint=f"Check space and permissions: df -h {quoted(self.backup_dir)}; ls -ld {quoted(self.backup_dir)}",
            ) from None

    def _write(self, copy: Path, target: io.FileIO, ram: RamFolder, *, compress: bool) -> str:
        """Write the backup's content and return its SHA-256."""
        digest = hashlib.sha256()

        def sink(data: bytes) -> None:
            digest.update(data)
            write_all(target, data)

        with io.FileIO(copy) as plain:
            level = 0 if self._settings.encrypted else 1
            content: Readable = GzipReader(plain, level, self.progress) if compress else plain
            if self._settings.public_key:
                keyring = Keyring(ram)
                keyring.encrypt(content, keyring.import_public(self._settings.public_key), sink)
            else:
                logger.warning("PGP_PUBLIC_KEY_BASE64 is not set: the backup is not encrypted")
                for piece in iter(lambda: content.read(CHUNK), b""):
                    sink(piece)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[io.FileIO]:
        """A file without a lasting name in the backup folder; the lock on it tells that its process lives."""
        while True:
            path = self.backup_dir / f".db_backup_{os.getpid()}_{time.time_ns()}.tmp"
            file = create_file(path)
            if flock(file.fileno(), fcntl.LOCK_EX) and os.fstat(file.fileno()).st_nlink:
                break
            file.close()  # another process took it for a leftover before it was locked
        file.name = str(path)
        try:
            yield file
        finally:
            file.close()
            path.unlink(missing_ok=True)

    def _publish(self, target: io.FileIO, checksum: io.FileIO, suffix: str, digest: str) -> Path:
        """Give a complete backup its name: the first second of the clock from now on that is not taken.

        The checksum gets its name first, so that no backup is ever seen without one.
        """
        while True:
            path = self.backup_dir / f"db_backup_{datetime.now().astimezone():%Y%m%d_%H%M%S}{suffix}"
            with contextlib.suppress(FileExistsError):
                if not os.path.lexists(path):
                    checksum.seek(0)
                    write_all(checksum, f"{digest}  {path.name}\n".encode())
                    os.fsync(checksum.fileno())
                    name_without_replacing(checksum.name, checksum_path(path))
                    break
            time.sleep(1 - time.time() % 1)
        try:
            name_without_replacing(target.name, path)
        except OSError:
            checksum_path(path).unlink(missing_ok=True)
            raise
        fsync_folder(self.backup_dir)
        return path

    def remove_leftovers(self) -> None:
        """Remove the temporary files of backups whose process is gone; a living one holds a lock on its file."""
        for path in self.backup_dir.glob(".db_backup_*.tmp"):
            with contextlib.suppress(OSError), open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
                if flock(file.fileno(), fcntl.LOCK_EX):
                    if os.fstat(file.fileno()).st_nlink > 1:
                        self._remove_checksum_of_nothing(path)
                    path.unlink()

    def _remove_checksum_of_nothing(self, temporary: Path) -> None:
        """Remove the name that a checksum got before its process was killed, when its backup never got one."""
        for checksum in self.backup_dir.glob("db_backup_*.sha256"):
            if checksum.samefile(temporary) and not checksum.with_suffix("").exists():
                checksum.unlink()


class GzipReader:
    """Reads a file as a gzip stream.

    :param level: 0 stores (SQLCipher's pages do not compress), 1 to 3 are those of ISA-L.
    :param progress: is told how many bytes of the file have been read.
    """

    def __init__(self, file: io.FileIO, level: int, progress: Callable[[int], object]) -> None:
        from isal import isal_zlib

        self._file = file
        self._progress = progress
        self._compressor: Any = (
            isal_zlib.compressobj(level, isal_zlib.DEFLATED, 31) if level else zlib.compressobj(0, zlib.DEFLATED, 31)
        )
        self._pending = io.BytesIO()

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes of the gzip stream, b"" at its end."""
        while not (data := self._pending.read(size)) and self._compressor:
            piece = self._file.read(CHUNK)
            self._progress(self._file.tell())
            self._pending = io.BytesIO(self._compressor.compress(piece) if piece else self._compressor.flush())
            if not piece:
                self._compressor = None
        return data


def check_checksum(backup: Path, file: io.FileIO) -> str:
    """Compare a backup with the checksum beside it and say what was found.

    :raises RefusedError: when it does not match.
    """
    expected = recorded_checksum(backup)
    if expected is None:
        return "no checksum beside it"
    if file_sha256(file) != expected:
        raise RefusedError(
            f"{backup.name} does not match its checksum: the file was damaged or exchanged",
            hint=f"Copy it again from where it was made, or use another backup. To see: sha256sum {quoted(backup)}",
        )
    return "checksum ok"


def check_database(engine: Engine, path: Path) -> str:
    """Check a database file that nobody else has open, and say what was found.

    :raises UnsoundBackupError: when it is not a sound database of the engine.
    """
    try:
        with contextlib.closing(engine.connect(path, mode="ro", immutable=True)) as connection:
            tables = check_integrity(engine, connection, path.stat().st_size)
    except engine.errors as error:
        raise UnsoundBackupError(f"not a sound {engine.name} database: {error}") from None
    return f"database ok, {tables} tables"


def check_integrity(engine: Engine, connection: sqlite3.Connection, size: int | None) -> int:
    """Check an open database wholly and return the number of its tables.

    :param size: bytes of its file, when that is known and nobody writes to it: integrity_check does not notice a
        page too many, and cipher_integrity_check does not notice one that is missing.
    :raises UnsoundBackupError: saying what is wrong with it.
    """
    tables = check_structure(engine, connection, size)
    if engine.db_pass and size is not None:
        check_pages(connection)
    return tables


def check_structure(engine: Engine, connection: sqlite3.Connection, size: int | None) -> int:
    """Check size and structure of an open database and return the number of its tables.

    :raises UnsoundBackupError: saying what is wrong with it.
    """
    # With the default cache of 8 MB, pages are decrypted and their cells checked again and again. What SQLCipher has
    # decrypted once had better stay.
    kilobytes = 65536 if size is None else max(8192, size // 900 if engine.db_pass else min(size // 8192, 65536))
    connection.execute(f"PRAGMA cache_size = -{kilobytes}")
    tables: int = connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]
    # int: SQLCipher gives its page size as text
    pages, page_size = (int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "page_size"))
    if size is not None and pages * page_size != size:
        missing = (pages * page_size - size) / page_size
        what = f"{missing:g} pages are missing" if missing > 0 else f"it is {-missing:g} pages too long"
        raise UnsoundBackupError(f"the database is not whole: {what}", hint=another_backup())
    problems = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
    if problems != ["ok"]:
        raise UnsoundBackupError(f"the database is damaged: {problems[0]}", hint=another_backup())
    if not tables:
        raise UnsoundBackupError("the database holds no table: it is empty", hint=another_backup())
    return tables


def check_pages(connection: sqlite3.Connection) -> None:
    """Check the authentication code of each page of a SQLCipher database, of those that hold nothing as well.

    :raises UnsoundBackupError: saying which is wrong.
    """
    problems = [str(row[0]) for row in connection.execute("PRAGMA cipher_integrity_check")]
    if problems:
        raise UnsoundBackupError(f"the database is damaged: {problems[0]}", hint=another_backup())


# --- command line ------------------------------------------------------------------------------------------------


def _command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Make, list, verify and remove backups of the bot's database.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("create", help="make a backup and print its path")
    commands.add_parser("list", help="show the backups, newest first")
    commands.add_parser("verify", help="check a backup as far as that goes without the private key").add_argument(
        "file", type=Path
    )
    commands.add_parser("prune", help="remove backups older than DB_BACKUP_RETENTION_DAYS; the newest one stays")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = _command_line().parse_args(argv)
    logging.basicConfig(format="⚠️  %(message)s", level=logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    harden_process()
    try:
        settings = load_settings()
        if arguments.command == "create":
            enter_private_mounts()
        for line in _run(arguments, DatabaseBackup(settings.db_path, settings.backup_dir, settings=settings), settings):
            _say(line, sys.stdout)
    except OperatorError as error:
        _say("\n   ".join([f"❌ {error}", *filter(None, [error.hint])]), sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        refused = missing_module(error)
        _say(f"❌ {refused}\n   {refused.hint}", sys.stderr)
        return refused.exit_code
    except OSError as error:
        _say(f"❌ {error.filename or 'the backup'}: {error.strerror}", sys.stderr)
        return ExitCode.NO_SAFETY_BACKUP
    return ExitCode.DONE


def _run(arguments: argparse.Namespace, backups: DatabaseBackup, settings: Settings) -> Iterator[str]:
    if arguments.command == "create":
        yield str(backups.create_backup())
    elif arguments.command == "verify":
        yield f"✅ {arguments.file}: {backups.verify_backup(arguments.file)}"
    elif arguments.command == "prune":
        for path in backups.cleanup_old_backups(settings.retention_days):
            yield f"removed {path}"
    else:
        for backup in backups.list_backups():
            encrypted = "encrypted" if backup.encrypted else "NOT encrypted"
            size, checksum = megabytes(backup.size), backup.checksum_state()
            yield f"{backup.created:%Y-%m-%d %H:%M:%S}  {size:>9}  {encrypted:13}  checksum {checksum:8}  {backup.path}"


def _say(text: str, stream: TextIO) -> None:
    """Print a text; that it cannot be had (`| head`, a full disk) does not change how the command ends."""
    try:
        print(text, file=stream, flush=True)
    except OSError:  # and Python would try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
