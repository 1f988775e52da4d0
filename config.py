"""Settings of the bot and its backup tools: from the environment first, then from ``.env`` beside this file.

Relative paths are relative to this file's folder. Importing the module reads nothing: call :func:`load_settings`.
"""

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from backuplib import armor
from backuplib.errors import WrongSettingError
from backuplib.secret import Secret


class Environment(Enum):
    """Where the tool runs, with the bot's compose file."""

    PROD = "docker-compose.prod.yml"
    DEV = "docker-compose.dev.yml"
    TEST = ""


@dataclass(frozen=True)
class Settings:
    """Validated settings; paths are absolute. ``max_database_bytes`` 0: limited by memory only."""

    base_dir: Path
    environment: Environment | None
    db_path: Path
    db_pass: Secret | None
    backup_dir: Path
    retention_days: int
    max_database_bytes: int
    public_key: bytes | None = field(repr=False)

    @property
    def encrypted(self) -> bool:
        return self.db_pass is not None


def load_settings(base_dir: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read and validate the settings.

    :param base_dir: folder of ``.env`` and relative paths; by default this file's.
    :param environ: by default ``os.environ``.
    :raises WrongSettingError: naming the setting, its value (except secrets) and what it must be.
    """
    base = (base_dir or Path(__file__).parent).absolute()
    values = _Values(base, os.environ if environ is None else environ)
    name = values.text("DB_NAME", "shop.db")
    if name in (".", "..") or "/" in name or "\0" in name:
        raise _wrong("DB_NAME", name, "a file name without a folder, such as shop.db (the folder is DATA_DIR)")
    return Settings(
        base_dir=base,
        environment=values.environment(),
        db_path=base / values.text("DATA_DIR", "data") / name,
        db_pass=values.db_pass(),
        backup_dir=base / values.text("DB_BACKUP_PATH", "backups"),
        retention_days=values.number("DB_BACKUP_RETENTION_DAYS", 7, "days"),
        max_database_bytes=values.number("MAX_DATABASE_MB", 0, "megabytes, 0 for as much as fits") * 1_000_000,
        public_key=values.public_key(),
    )


class _Values:
    """Raw values by name, the environment before ``.env``; empty means not set."""

    def __init__(self, base: Path, environ: Mapping[str, str]) -> None:
        from dotenv import dotenv_values  # not needed for --help, so not imported with the module

        env_file = base / ".env"
        try:
            # interpolate=False: a passphrase may contain ${…}
            file = dotenv_values(env_file, interpolate=False) if env_file.is_file() else {}
        except (OSError, UnicodeDecodeError) as error:
            raise WrongSettingError(
                f"cannot read {env_file}: {error}",
                hint=f"Make it a UTF-8 file that you may read: ls -l {shlex.quote(str(env_file))}",
            ) from None
        self._values = {**{name: value or "" for name, value in file.items()}, **environ}

    def text(self, name: str, default: str) -> str:
        return self._values.get(name) or default

    def environment(self) -> Environment | None:
        value = self.text("RUNTIME_ENVIRONMENT", "").strip().upper()
        if not value:
            return None
        if value not in Environment.__members__:
            raise _wrong("RUNTIME_ENVIRONMENT", value, "PROD, DEV or TEST")
        return Environment[value]

    def db_pass(self) -> Secret | None:
        """The SQLCipher passphrase; None without encryption."""
        value = self.text("DB_ENCRYPTION", "false")
        if value not in ("true", "false"):  # bots compare with "true": to them, True and 1 mean no
            raise _wrong("DB_ENCRYPTION", value, "true or false, in lower case, as the bot compares it")
        if value == "false":
            return None
        passphrase = self.text("DB_PASS", "")
        if not passphrase:
            raise WrongSettingError(
                "DB_ENCRYPTION is true, but DB_PASS is not set",
                hint="Set DB_PASS in .env to the SQLCipher passphrase, in single quotes.",
            )
        if "\0" in passphrase:
            raise WrongSettingError("DB_PASS contains a NUL character", hint="SQLCipher cannot use it: remove it.")
        try:
            return Secret(passphrase)
        except UnicodeEncodeError:  # its message shows a character
            raise WrongSettingError(
                "DB_PASS is not UTF-8 text", hint="Write it in UTF-8, preferably in .env."
            ) from None

    def number(self, name: str, default: int, unit: str) -> int:
        value = self.text(name, str(default)).strip()
        if not re.fullmatch(r"[0-9]{1,6}", value):
            raise _wrong(name, value, f"a whole number of {unit}, such as {default}")
        return int(value)

    def public_key(self) -> bytes | None:
        value = self.text("PGP_PUBLIC_KEY_BASE64", "")
        if not value.strip():
            return None
        try:
            return armor.unwrap(value.encode(errors="surrogateescape"))
        except armor.ArmorError as error:
            raise WrongSettingError(
                f"PGP_PUBLIC_KEY_BASE64 {error}",
                hint="Set it to the output of: gpg --armor --export KEY-ID | base64 -w0",
            ) from None


def _wrong(name: str, value: str, right: str) -> WrongSettingError:
    return WrongSettingError(f"{name} is {value!r}", hint=f"In the environment or in .env it must be {right}.")
