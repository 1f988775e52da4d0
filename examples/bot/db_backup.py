"""Backups of the bot's database by the tool in ops/. Copy this file to utils/db_backup.py; callers stay as they are.

Each call runs database_backup.py in a process of its own: bot and tool both have a module `config`, and a second SQLite
in the bot's process could drop the locks of the bot's own connections. The settings, DB_PASS among them, reach it
through the environment, as they reach the bot.
"""

import contextlib
import logging
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import config  # the bot's

logger = logging.getLogger(__name__)

PROGRAM = Path(__file__).resolve().parents[1] / "ops" / "database_backup.py"
TIMEOUT = 3600.0  # seconds, after which a call has failed
NOT_EVERYWHERE = 11  # the exit code of what was done here, and not at every remote


class DatabaseBackup:
    """Makes, verifies, lists and removes backups of one database. A failure is logged and never raised."""

    def __init__(self, db_path: str, backup_dir: str) -> None:
        self.db_path = Path(db_path).absolute()
        self.backup_dir = Path(backup_dir).absolute()

    def create_backup(self, compress: bool = True, encrypt: bool = True) -> Path | None:
        """Make a backup and return its path; None when that failed."""
        options = ["--no-compress"] * (not compress) + ["--no-encrypt"] * (not encrypt)
        made = self._run("create", "--no-sign", *options)  # the host's key is kept from the bot
        return None if made is None else Path(made.rstrip("\n"))

    def verify_backup(self, backup_path: Path | str) -> bool:
        """Return whether a backup is what its checksum says and, if it is not encrypted, holds a sound database."""
        path = Path(backup_path).absolute()
        if not Path(f"{path}.sha256").is_file():
            logger.error("There is no checksum beside %s", path)
            return False
        return self._run("verify", str(path)) is not None

    def cleanup_old_backups(self, retention_days: int) -> int:
        """Remove backups older than that, whatever BACKUP_KEEP says, and return how many; 0 when that failed."""
        removed = self._run("prune", DB_BACKUP_RETENTION_DAYS=str(retention_days), BACKUP_KEEP="") or ""
        return sum(line.startswith("removed ") for line in removed.splitlines())

    def list_backups(self) -> list[dict[str, object]]:
        """Return the backups, newest first, as dictionaries: path, filename, size, created, compressed, encrypted."""
        found = []
        for path in self.backup_dir.glob("db_backup_*.db*"):
            if path.suffix != ".sha256":
                with contextlib.suppress(FileNotFoundError):  # it was just removed
                    found.append((path.stat(), path))
        return [
            {
                "path": path,
                "filename": path.name,
                "size": status.st_size,
                "created": datetime.fromtimestamp(status.st_mtime),  # noqa: DTZ006 - without a zone, as callers know it
                "compressed": ".gz" in path.suffixes,
                "encrypted": path.suffix == ".gpg",
            }
            for status, path in sorted(found, key=lambda item: item[0].st_mtime, reverse=True)
        ]

    def restore_backup(self, backup_path: Path | str, target_path: str | None = None) -> bool:  # noqa: ARG002
        """Return False and log what to do: a restore stops the bot, so it is run on the host."""
        name = Path(backup_path).name
        logger.error(
            "Nothing was restored. On the host run: ops/.venv/bin/python ops/restore_backup.py backups/%s", name
        )
        return False

    def _run(self, command: str, *arguments: str, **settings: str) -> str | None:
        """Run a command of database_backup.py and return its standard output; None when it failed."""
        paths = {"DATA_DIR": str(self.db_path.parent), "DB_NAME": self.db_path.name}
        environment = os.environ | paths | {"DB_BACKUP_PATH": str(self.backup_dir), "LC_ALL": "C.UTF-8"} | settings
        try:
            done = subprocess.run(
                [sys.executable, str(PROGRAM), command, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            logger.exception("database_backup.py %s did not come to its end", command)
            return None
        if done.returncode not in (0, NOT_EVERYWHERE):
            logger.error("database_backup.py %s: exit code %d\n%s", command, done.returncode, done.stderr.strip())
            return None
        if done.stderr:
            logger.warning("database_backup.py %s: %s", command, done.stderr.strip())
        return done.stdout


def get_backup_handler() -> DatabaseBackup:
    """Return the DatabaseBackup of the bot's settings."""
    return DatabaseBackup(f"data/{config.DB_NAME}", config.DB_BACKUP_PATH)  # type: ignore[attr-defined]
