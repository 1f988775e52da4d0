"""What a test needs beside Python, GnuPG, coreutils and a shell: `@pytest.mark.needs("strace", "root")`.

A name is one of CHECKS, or else the program of that name. What is missing is skipped as "needs NAME", and in no other
way; in CI, which installs everything, a skip is a failure. `require` is the marker for what only a running test knows.
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from backuplib.folder import PLACE

PATH = f"{os.path.dirname(sys.executable)}:{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
"""Where programs are looked for: where pip puts its own first, and where Debian has those of root, whoever asks."""

PLUGIN_FOLDERS = (
    "~/.docker/cli-plugins",
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
)


def require(*names: str) -> None:
    """Skip the test that asks unless all of them are there; the first that is not is named."""
    for name in names:
        if not is_there(name):
            skip(name)


def skip(name: str) -> NoReturn:
    """Skip the test that calls, for what has just proved to be missing."""
    pytest.skip(f"needs {name}")


@functools.cache
def is_there(name: str) -> bool:
    """Whether this machine has it; looked at once a process."""
    return CHECKS[name]() if name in CHECKS else find(name) is not None


def find(program: str) -> str | None:
    """The path of a program."""
    return shutil.which(program, path=PATH)


def output_of(*argv: str) -> str | None:
    """What a command prints on standard output; None if it cannot be run, or fails."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def works(*argv: str) -> bool:
    """Whether a command can be run and ends with 0."""
    return output_of(*argv) is not None


# --- programs of a certain version -----------------------------------------------------------------------------------


@functools.cache
def sqlcipher_program(version: int) -> str | None:
    """A `sqlcipher` of this version: the one installed, or the one that SQLCIPHER4 names, as .ci/run does."""
    for program in filter(None, (find("sqlcipher"), os.environ.get("SQLCIPHER4"))):
        if (output_of(program, "-batch", ":memory:", "PRAGMA cipher_version") or "").startswith(f"{version}."):
            return program
    return None


def compose_plugin() -> str | None:
    """The plugin of Compose 2: the one that COMPOSE_V2_PLUGIN names, one installed, or the one that .ci/run fetched."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "restore-backup-ci/docker/cli-plugins")
    places = [os.environ.get("COMPOSE_V2_PLUGIN", ""), *(f"{p}/docker-compose" for p in (*PLUGIN_FOLDERS, cache))]
    return next((place for place in map(os.path.expanduser, places) if os.path.isfile(place)), None)


# --- what the kernel lets us do --------------------------------------------------------------------------------------


def has_acls() -> bool:
    """The file system of temporary files keeps access control lists."""
    with tempfile.NamedTemporaryFile() as file:
        return bool(find("setfacl") and find("getfacl")) and works("setfacl", "-m", "u:1234:r", file.name)


CHECKS: dict[str, Callable[[], bool]] = {
    "root": lambda: os.geteuid() == 0,
    # Root in a container may have no right to.
    "mount": lambda: works("unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"),
    "private mounts": lambda: works("unshare", "--mount", "mount", "-t", "tmpfs", "none", PLACE),
    "strace": lambda: works("strace", "-o", "/dev/null", "true"),
    "setfacl": has_acls,
    "sqlcipher 3": lambda: sqlcipher_program(3) is not None,
    "sqlcipher 4": lambda: sqlcipher_program(4) is not None,
    "rclone 1.60": lambda: "v1.60" in (output_of("/usr/bin/rclone", "version") or ""),  # Debian's, beside the newest
    "docker": lambda: "Server Version" in (output_of("docker", "info") or ""),
    "docker compose v1": lambda: (output_of("docker-compose", "version", "--short") or "").startswith("1."),
    "docker compose v2": lambda: compose_plugin() is not None,
}
