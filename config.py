"""Settings of the bot and its backup tools: from the environment first, then from ``.env`` beside this file.

Relative paths are relative to this file's folder. Importing the module reads nothing: call :func:`load_settings`.
"""

import errno
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TypeVar

from backuplib import armor
from backuplib.errors import MissingPackageError, RefusedError, WrongSettingError, explain
from backuplib.folder import anchored_folder
from backuplib.formatting import printable, quoted
from backuplib.notify import ping_address
from backuplib.rclone import PLACE
from backuplib.retention import Policy, PolicyError
from backuplib.secret import Secret

Value = TypeVar("Value")

# What stands in examples where a passphrase belongs; 'change me' is that of .env.example.
PLACEHOLDER = re.compile(
    r"(please )?change[ _-]?(me|this|it)\W*|(enter |insert )?your[ _-](db[ _-])?pass(word|phrase)?([ _-]here)?|"
    r"<.*>|x{3,}|\.{3}|placeholder|todo",
    re.IGNORECASE,
)

SIGNING_DIR = Path("/var/lib/restore-backup/signing")  # root's


class Environment(Enum):
    """Where the tool runs, with the bot's compose file."""

    PROD = "docker-compose.prod.yml"
    DEV = "docker-compose.dev.yml"
    TEST = ""


@dataclass(frozen=True)
class Settings:
    """Validated settings; paths are absolute. ``max_database_bytes`` 0: limited by memory only.

    ``warnings``: what is odd about them, for people; without any value that could be secret. ``remotes``: rclone paths;
    ``rclone``: the variables that rclone gets, and nothing else does.
    """

    base_dir: Path
    environment: Environment | None
    db_path: Path
    db_pass: Secret | None
    backup_dir: Path
    retention_days: int
    keep: Policy | None
    max_database_bytes: int
    public_key: bytes | None = field(repr=False)
    signing_dir: Path
    require_signature: bool
    max_age_hours: int = 26
    ping_url: Secret | None = None
    notify_urls: tuple[Secret, ...] = ()
    warnings: tuple[str, ...] = ()
    remotes: tuple[str, ...] = ()
    rclone: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def shop_folders(self) -> tuple[Path, ...]:
        """What a bot may write, or take into its image."""
        return self.base_dir, self.db_path.parent, self.backup_dir

    @property
    def policy(self) -> Policy:
        """What prune keeps."""
        return self.keep or Policy.younger_than(self.retention_days)

    @property
    def encrypted(self) -> bool:
        return self.db_pass is not None

    def with_open_folder(self) -> "Settings":
        """Return these with the backup folder opened: the same one from now on, whatever its name leads to later.

        One that is not there yet, or that this user may not see, goes by its name.

        :raises RefusedError: when a link of another user's is on the way to it, or the disk fails.
        """
        try:
            return replace(self, backup_dir=anchored_folder(self.backup_dir))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return self
        except OSError as error:
            folder = quoted(self.backup_dir)
            link = f"If that link is meant, set DB_BACKUP_PATH in .env to what it leads to: readlink -f {folder}"
            raise RefusedError(
                f"cannot open the backup folder {self.backup_dir}: {explain(error)}",
                hint=link if error.errno == errno.ELOOP else f"Check: ls -ld {folder}; dmesg | tail",
            ) from None


def load_settings(base_dir: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read and validate the settings.

    :param base_dir: folder of ``.env`` and relative paths; by default this file's.
    :param environ: by default ``os.environ``.
    :raises WrongSettingError: naming the setting, its value (except secrets) and what it must be.
    :raises MissingPackageError: without python-dotenv.
    """
    settings, wrong = survey_settings(base_dir, environ)
    for error in wrong.values():
        error.hint = " Also: ".join([error.hint, *settings.warnings])  # one of them may be the cause
        raise error
    return settings


def survey_settings(
    base_dir: Path | None = None, environ: Mapping[str, str] | None = None
) -> tuple[Settings, dict[str, RefusedError]]:
    """Read the settings as far as they are right; those that are wrong are returned by field, and have their default.

    "env_file" among them: ``.env`` cannot be read, so that only the environment counts.
    """
    base = (base_dir or Path(__file__).parent).absolute()
    values = _Values(os.environ if environ is None else environ)
    wrong: dict[str, RefusedError] = {}
    try:
        values.read(base / ".env")
    except ModuleNotFoundError as error:
        wrong["env_file"] = MissingPackageError(error.name)
    except RefusedError as error:
        wrong["env_file"] = error

    def valid(name: str, read: Callable[[], Value], otherwise: Value) -> Value:
        try:
            return read()
        except WrongSettingError as error:
            wrong[name] = error
            return otherwise

    settings = Settings(
        base_dir=base,
        environment=valid("environment", values.environment, None),
        db_path=valid("db_path", lambda: base / values.text("DATA_DIR", "data") / values.db_name(), base),
        db_pass=valid("db_pass", values.db_pass, None),
        backup_dir=base / values.text("DB_BACKUP_PATH", "backups"),
        retention_days=valid("retention_days", lambda: values.number("DB_BACKUP_RETENTION_DAYS", 7, "days"), 7),
        keep=valid("keep", values.keep, None),
        max_database_bytes=valid(
            "max_database_bytes",
            lambda: values.number("MAX_DATABASE_MB", 0, "megabytes, 0 for as much as fits") * 1_000_000,
            0,
        ),
        public_key=valid("public_key", values.public_key, None),
        signing_dir=valid("signing_dir", values.signing_dir, SIGNING_DIR),
        require_signature=valid("require_signature", values.require_signature, otherwise=False),
        max_age_hours=valid("max_age_hours", lambda: values.number("BACKUP_MAX_AGE_HOURS", 26, "hours"), 26),
        ping_url=values.ping_url(),
        notify_urls=values.notify_urls(),
        remotes=valid("remotes", values.remotes, ()),
        rclone=values.of_rclone(),
        warnings=tuple(values.warnings()),  # last, when all names that there are have been asked for
    )
    return settings, wrong


class _Values:
    """Raw values by name, the environment before ``.env``; empty means not set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._asked: set[str] = set()
        self._noted: list[str] = []
        self._values = dict(environ)

    def read(self, env_file: Path) -> None:
        """Add what stands in the file, and note what is odd about it; a file that is not there is empty.

        :raises WrongSettingError: when it cannot be read.
        """
        from dotenv.parser import parse_stream  # not needed for --help, so not imported with the module

        try:
            if not env_file.is_file():
                return
            with env_file.open(encoding="utf-8") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o7777
                bindings = list(parse_stream(file))  # which, unlike dotenv_values, leaves ${…} in a passphrase alone
        except (OSError, UnicodeDecodeError) as error:
            raise WrongSettingError(
                f"cannot read {env_file}: {error}",
                hint=f"Make it a UTF-8 file that you may read: ls -l {shlex.quote(str(env_file))}",
            ) from None
        if mode & 0o066:
            self._noted.append(
                f"{env_file} has mode {mode:04o}, so that others than its owner can read or change it: "
                f"chmod 600 {shlex.quote(str(env_file))}"
            )
        for statement in (binding.original for binding in bindings if binding.error):
            text = statement.string.strip()
            first = statement.line + statement.string.partition(text)[0].count("\n")
            last = first + text.count("\n")
            lines = f"line {first}" if first == last else f"lines {first} to {last}"
            self._noted.append(
                f"{env_file}, {lines}: cannot be parsed, and is not read; it must be NAME='value', with \\' for a quote"
            )
        self._values = {b.key: b.value or "" for b in bindings if b.key is not None} | self._values

    def warnings(self) -> Iterator[str]:
        """Say what is odd: about the file, names that are almost those of settings, placeholders."""
        yield from self._noted
        from difflib import get_close_matches

        unset = [name for name in self._asked if not self._values.get(name)]
        for name in self._values.keys() - self._asked:
            for right in get_close_matches(name.upper(), unset, n=1, cutoff=0.8):
                yield f"{printable(name)} is set, and {right} is not: is the name mistyped?"
        for name in sorted(self._asked):
            if PLACEHOLDER.fullmatch(self._values.get(name, "").strip()):
                yield f"{name} is a placeholder, as in .env.example, and not a value of your own"

    def text(self, name: str, default: str) -> str:
        self._asked.add(name)
        return self._values.get(name) or default

    def db_name(self) -> str:
        name = self.text("DB_NAME", "shop.db")
        if name in (".", "..") or "/" in name or "\0" in name:
            raise _wrong("DB_NAME", name, "a file name without a folder, such as shop.db (the folder is DATA_DIR)")
        return name

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

    def signing_dir(self) -> Path:
        """Where the host's signing key is: root's own folder, else one for the state of this user's programs."""
        if value := self.text("SIGNING_DIR", ""):
            if not value.startswith("/"):
                raise _wrong("SIGNING_DIR", value, "an absolute path, of a folder outside of the shop's")
            return Path(value)
        if os.geteuid() == 0:
            return SIGNING_DIR
        state = self._environ.get("XDG_STATE_HOME", "")
        home = Path(self._environ.get("HOME") or "/")
        return (Path(state) if state.startswith("/") else home / ".local/state") / "restore-backup/signing"

    def require_signature(self) -> bool:
        value = self.text("REQUIRE_SIGNATURE", "no")
        if value not in ("yes", "no"):
            raise _wrong("REQUIRE_SIGNATURE", value, "yes or no, in lower case")
        return value == "yes"

    def keep(self) -> Policy | None:
        """What prune keeps; None: it goes by the age."""
        value = self.text("BACKUP_KEEP", "")
        try:
            return Policy.parse(value) if value.strip() else None
        except PolicyError as error:
            right = f"such as last=24 hourly=48 daily=14 weekly=8 monthly=12 yearly=2, any of them: {error}"
            raise _wrong("BACKUP_KEEP", value, right) from None

    def remotes(self) -> tuple[str, ...]:
        """The places beside the backup folder."""
        places = tuple(dict.fromkeys(self.text("BACKUP_REMOTES", "").split()))
        for place in places:
            if not PLACE.fullmatch(place):
                right = "rclone paths, separated by blanks, such as offsite:shopbot; rclone listremotes shows the names"
                raise _wrong("BACKUP_REMOTES", place, right)
        return places

    def of_rclone(self) -> dict[str, str]:
        return {name: value for name, value in self._values.items() if name.startswith("RCLONE_")}

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

    def ping_url(self) -> Secret | None:
        """The dead-man switch; None without one, and where it cannot be asked: nothing else fails for that."""
        value = self.text("PING_URL", "").strip()
        try:
            return Secret(ping_address(value)) if value else None
        except ValueError:
            self._noted.append("PING_URL is not a URL that begins with https:// or http://: nobody is told")
            return None

    def notify_urls(self) -> tuple[Secret, ...]:
        """Addresses of apprise's."""
        urls = self.text("NOTIFY_URLS", "").split()
        if not all(url.isprintable() for url in urls):
            self._noted.append("NOTIFY_URLS has a character that cannot be printed, and is not used")
            return ()
        return tuple(map(Secret, urls))


def _wrong(name: str, value: str, right: str) -> WrongSettingError:
    return WrongSettingError(f"{name} is {value!r}", hint=f"In the environment or in .env it must be {right}.")
