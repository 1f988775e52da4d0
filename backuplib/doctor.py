"""What a restore would need, looked at without the key: `restore_backup.py --check`. It touches and asks nothing.

Each check is a method of :class:`Checkup`, in the order of :data:`CHECKS`. What the preflight of a restore refuses is
asked of the same functions; what cannot be looked at is said to be not known, and never to be right.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from backuplib import errors
from backuplib.backup_file import BackupFile, BackupInfo, backup_time
from backuplib.bot import Bot, named
from backuplib.console import Report
from backuplib.containers import SETTINGS, Container
from backuplib.database import Engine, size_of_files
from backuplib.files import stat_or_none
from backuplib.formatting import age, instant, megabytes, plural, printable, quoted, shown
from backuplib.journal import Journal
from backuplib.named import refuse_misnamed
from backuplib.openpgp import Recipient
from backuplib.packets import HIDDEN_RECIPIENT
from backuplib.processes import run_command
from backuplib.ram_folder import RamFolder, available_memory
from backuplib.remote import Remote, whole
from backuplib.running import running
from backuplib.secret import Secret
from backuplib.signing import INVALID, SigningFolder, in_groups
from backuplib.signing import UNKNOWN as UNKNOWN_SIGNER
from backuplib.storage import is_plain, journal_mode, looks_encrypted
from backuplib.style import Kind
from backuplib.target import Target, is_immutable, is_mount_point

OK, WARNING, PROBLEM, UNKNOWN = "ok", "warning", "problem", "unknown"
SIGNS = {OK: "✅", WARNING: "⚠️ ", PROBLEM: "❌", UNKNOWN: "⚠️ "}

EXPIRY_DAYS = 30  # a public key that expires sooner is told

COMPOSE_FILES = """docker ps --format '{{.Label "com.docker.compose.project.config_files"}}'"""

# What Remote.may_remove says
REMOVING = {
    True: "it lets us remove them",
    False: "it does not let us remove them",
    None: "whether it lets us remove them is not known",
}

EXPORT_KEY = "Set it in .env to the output of: gpg --armor --export KEY-ID | base64 -w0"


@dataclass(frozen=True)
class Finding:
    """What a check has found; ``hint`` says what to do about it."""

    name: str
    status: str
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Subject:
    """What a restore would work with, as settings and options have it.

    ``wrong``: the settings that cannot be used, by field. ``target``: as it is named, since not every link is followed.
    ``backup_file`` None: the newest one. ``memory_limit``: bytes that the restored database may have in memory.
    ``max_age_hours``: an older newest backup is late.
    """

    env_file: Path
    warnings: Sequence[str]
    wrong: Mapping[str, errors.RefusedError]
    target: Path
    db_pass: Secret | None
    backup_dir: Path
    backup_file: Path | None
    public_key: bytes | None
    signing: SigningFolder
    require_signature: bool
    services: Sequence[str]
    skip_backup: bool
    allow_swap: bool
    convert: bool
    memory_limit: int
    max_age_hours: int
    find_bot: Callable[[], Bot | None]
    list_backups: Callable[[], list[BackupInfo]]
    recipients: Callable[[], list[Recipient]]
    remotes: Sequence[Remote] = ()


def run(subject: Subject, report: Report) -> None:
    """Look at everything, print each finding, and put all of them into the report.

    :raises CheckFoundProblemsError: when something would refuse a restore.
    """
    for finding in Checkup(subject).findings():
        report.checks.append(asdict(finding))
        report.console.result(f"{SIGNS[finding.status]} {finding.name}: {printable(finding.text)}")
        if finding.hint:
            report.console.result(f"   {printable(finding.hint)}")
    report.outcome = "checked"
    statuses = [finding["status"] for finding in report.checks]
    rest = f"{plural(statuses.count(WARNING), 'warning')}, {statuses.count(UNKNOWN)} not known, {statuses.count(OK)} ok"
    if problems := statuses.count(PROBLEM):
        raise errors.CheckFoundProblemsError(
            f"a restore would be refused: {plural(problems, 'problem')}, {rest}",
            hint=f"Remove what is marked as a problem, then look again: {errors.restore_command('--check')}",
        )
    report.console.result(f"✅ Nothing was found that would refuse a restore: {rest}", kind=Kind.DONE)


class Checkup:
    """The checks. What one of them finds, those after it use.

    :ivar bot: the bot's containers; None: a restore would not touch Docker, or there are none.
    :ivar stopping: those that a restore would stop.
    :ivar backup: what would be restored.
    :ivar recipients: the public keys that backups are encrypted to; None: not known.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.target = Target(Path(os.path.realpath(subject.target)))
        self.bot: Bot | None = None
        self.stopping: list[Container] = []
        self.recipients: list[Recipient] | None = None
        self.backup: BackupInfo

    def findings(self) -> Iterator[Finding]:
        """Run the checks; an error that a restore would be refused with is a problem, and the others go on."""
        failed = {*self.subject.wrong}
        for name, (check, needed) in CHECKS.items():
            status, text, hint = "", "", ""
            if lacking := failed & needed:
                of = sorted({"settings" if item in self.subject.wrong else item for item in lacking})
                status, text = UNKNOWN, f"not looked at, because of {', '.join(of)}"
            else:
                try:
                    for said in check(self):
                        yield Finding(name, *said)
                except errors.OperatorError as error:
                    status, text, hint = PROBLEM, str(error), error.hint
                except ModuleNotFoundError as error:
                    status, text = UNKNOWN, f"not looked at: {errors.MissingPackageError(error.name)}"
                except OSError as error:
                    status, text = UNKNOWN, f"could not be looked at: {errors.explain(error)}"
            if status:
                failed.add(name)
                yield Finding(name, status, text, hint)

    # --- this machine ----------------------------------------------------------------------------------------

    def settings(self) -> Said:
        """Settings that are wrong, and what is odd about .env."""
        for error in self.subject.wrong.values():
            yield PROBLEM, str(error), error.hint
        for text in self.subject.warnings:
            yield WARNING, text
        if not self.subject.wrong and not self.subject.warnings:
            file = self.subject.env_file
            yield OK, f"from {shown(file)}" if file.exists() else f"from the environment: there is no {shown(file)}"

    def packages(self) -> Said:
        """Python packages that a restore imports."""
        encrypted = self.subject.db_pass or "db_pass" in self.subject.wrong
        needed = ["dotenv", "gnupg", "rich", "apsw", *(["sqlcipher3"] if encrypted else [])]
        loaded = []
        for name in needed:
            try:
                importlib.import_module(name)
                loaded.append(name)
            except ModuleNotFoundError as error:
                lacking = errors.MissingPackageError(error.name)
                yield PROBLEM, str(lacking), lacking.hint
            except ImportError as error:
                yield PROBLEM, f"the Python package {name} cannot be loaded: {error}", "Install it again."
        if loaded == needed:
            yield OK, ", ".join(loaded)

    def gpg(self) -> Said:
        """The programs of GnuPG, and their version."""
        try:
            versions = [run_command([program, "--version"], timeout=30) for program in ("gpg", "gpg-connect-agent")]
        except errors.MissingProgramError as error:
            if self.subject.public_key:
                raise
            yield WARNING, f"{error}: a backup that is encrypted could not be restored", error.hint
        else:
            yield OK, versions[0].partition("\n")[0]

    def ram(self) -> Said:
        """Whether the RAM folder is in RAM, and stays there."""
        with RamFolder() as folder:
            where, free = folder.path.parent, megabytes(folder.free)
            if not folder.swappable and (left := folder.unprotected()):
                yield WARNING, f"swap is on, and to it could be written: {'; '.join(left)}"
            elif not folder.swappable:
                yield OK, f"decrypted data stays in memory, in {where}: {free} free"
            elif self.subject.allow_swap:
                yield WARNING, "swap is on, and decrypted data could be written to it: --allow-swap accepts that"
            else:
                hint = "Run this as root, turn swap off (swapoff -a), or accept it: --allow-swap"
                yield PROBLEM, "swap is on, and decrypted data could be written to it", hint

    # --- the bot ---------------------------------------------------------------------------------------------

    def docker(self) -> Said:
        """Whether Docker answers, and has containers of the compose file."""
        bot = self.subject.find_bot()
        if bot is None:
            yield OK, "a restore does not touch Docker"
        elif not bot.seen:
            what = f"whether the bot has {shown(bot.folder)}, and its settings, are not known"
            yield (
                UNKNOWN,
                f"{bot.file} has no containers here: {what}",
                f"Name the file that it was started with: --compose-file. Those that run: {COMPOSE_FILES}",
            )
        else:
            self.bot = bot
            states = sorted(f"{item} {item.health or item.status}" for item in bot.seen)
            yield OK, f"{bot.file.name} runs as {bot.name}: {', '.join(states)}"

    def mounts(self) -> Said:
        """Whether the bot has the folder that is restored into."""
        if self.bot and not self.subject.services:
            self.bot.refuse_elsewhere()
            yield OK, f"{shown(self.bot.folder)} is a folder of {named(self.bot.compared())}"

    def bot_settings(self) -> Said:
        """Whether the bot runs with our settings; secrets are compared, and not shown."""
        if not self.bot:
            return
        differences = list(self.bot.differences(encrypted=self.subject.db_pass is not None))
        for error in differences:
            yield PROBLEM, str(error), error.hint
        if not self.bot.compared():
            yield UNKNOWN, f"not compared: no container has {shown(self.bot.folder)}"
        for item in self.bot.compared():
            ours = [name for name in SETTINGS if name in item.settings and (self.subject.db_pass or name != "DB_PASS")]
            if not ours:
                yield UNKNOWN, f"{item.name} has none of {', '.join(SETTINGS)} in its environment: not compared"
            elif not differences:
                yield OK, f"{item.name} runs with the same {', '.join(ours)}"

    def services(self) -> Said:
        """Which containers a restore would stop, and whether another one can write to the database."""
        if self.bot:
            self.stopping = self.bot.concerned(self.subject.services, ())
            self.bot.refuse_strangers(self.stopping)
            outlook = self.bot.outlook(self.stopping)
            yield OK, "; downtime ".join(outlook.values())

    # --- the database ----------------------------------------------------------------------------------------

    def database(self) -> Said:
        """Whether the target can be a database, is as DB_ENCRYPTION says, and opens with DB_PASS."""
        path, db_pass = self.target.path, self.subject.db_pass
        target = Target.resolve(self.subject.target)
        if not self.subject.convert:
            target.refuse_other_encryption(encrypted=db_pass is not None)
        size = size_of_files(path)
        if not size:
            yield WARNING, f"there is none at {path}: a restore would make one"
            return
        plain = is_plain(path)
        if not plain and not looks_encrypted(path):
            yield WARNING, f"{shown(path)} does not look like a database: a restore keeps it byte for byte"
        elif plain or not db_pass:
            what = "plain SQLite" if plain else "SQLCipher, by its looks"
            yield OK, f"{shown(path)}, {what}, {megabytes(size)}"
        elif self._opens(db_pass):
            yield OK, f"{shown(path)}, SQLCipher, opens with DB_PASS, {megabytes(size)}"
        else:
            text = f"{shown(path)} does not open with DB_PASS: another passphrase, or its first page is damaged"
            yield WARNING, text, "Compare DB_PASS in .env with the bot's: with this one no backup of it can be made."

    def _opens(self, db_pass: Secret) -> bool:
        """Whether the database's first page opens with a passphrase; a copy of it is tried, in RAM."""
        with RamFolder() as ram:
            return bool(journal_mode(Engine(db_pass), self.target.path, ram.path / "live-page.db"))

    def in_use(self) -> Said:
        """Whether somebody else than the bot has the database open."""
        hidden = self.target.refuse_holders([item.id for item in self.stopping])
        but = ", but what a restore stops" if self.stopping else ""
        yield (UNKNOWN, self.target.unseen(hidden)) if hidden else (OK, f"nobody has the database open{but}")

    def rights(self) -> Said:
        """Whether this user could replace the database and write backups: told by modes, nothing is written."""
        path, folder, backups = self.target.path, self.target.path.parent, existing(self.subject.backup_dir)
        sudo = "" if os.geteuid() == 0 else ", or run this with sudo"
        problems = []
        if not _writable(folder):
            problems.append((f"this user cannot write in {folder}", f"See: ls -ld {quoted(folder)}{sudo}"))
        elif is_mount_point(path):
            problems.append(
                (f"{path} is a mount point: it cannot be replaced by a rename", "Mount its folder instead.")
            )
        elif is_immutable(path):
            problems.append((f"{path} has an attribute that keeps it from being replaced", f"chattr -i {quoted(path)}"))
        elif not _replaceable(path):
            problems.append((f"{path} belongs to another user or group", f"See: ls -l {quoted(path)}{sudo}"))
        if not self.subject.skip_backup and not _writable(backups):
            text = f"this user cannot write in {backups}, so that no safety backup can be made"
            problems.append((text, f"See: ls -ld {quoted(backups)}{sudo}"))
        for text, hint in problems:
            yield PROBLEM, text, hint
        if not problems:
            yield (
                OK,
                f"this user may write in {shown(folder)} and {shown(backups)}, by their modes: nothing was written",
            )

    def last_restore(self) -> Said:
        """Whether a restore is running, or was interrupted."""
        folder = self.target.path.parent
        if not os.access(folder, os.R_OK | os.X_OK):
            yield UNKNOWN, f"no permission to look into {folder}"
            return
        if runs := running(self.target.lock_file):
            yield PROBLEM, f"a restore is running: {runs.who}, {runs.state}", "Wait for it to end."
            return
        journal = Journal.load(self.target)
        recover = f"To finish or undo it: {errors.restore_command('--recover')}"
        if journal and journal.disputed:
            decide = "Section 7 of RUNBOOK.md says how to decide which one is to stay."
            yield PROBLEM, f"a {journal.what_happened}, and {self.target.path} was replaced since", decide
        elif journal:
            yield WARNING, f"a {journal.what_happened}; the next one recovers first", recover
        else:
            yield OK, "none is running, and none was interrupted"

    # --- keys and backups ------------------------------------------------------------------------------------

    def public_key(self) -> Said:
        """Whether new backups are encrypted, to whom, and for how long that works."""
        if not self.subject.public_key:
            yield WARNING, "PGP_PUBLIC_KEY_BASE64 is not set: new backups are not encrypted", EXPORT_KEY
            return
        try:
            self.recipients = self.subject.recipients()
        except errors.OperatorError as error:
            if (
                size_of_files(self.target.path) and not self.subject.skip_backup
            ):  # then there is a safety backup to make
                raise
            yield WARNING, f"{error}: no backup can be made", error.hint
            return
        for recipient in self.recipients:
            text, left = f"backups are encrypted to {owner(recipient)}", 0.0
            if recipient.expires:
                left = (recipient.expires - time.time()) / 86400
                text += f", until {datetime.fromtimestamp(recipient.expires).astimezone():%Y-%m-%d}"
            if recipient.expires and left < EXPIRY_DAYS:
                extend = f"gpg --quick-set-expire {recipient.fingerprint} 2y"
                hint = f"Extend it where the private key is: {extend}, and once more with '*' behind it. {EXPORT_KEY}"
                yield WARNING, f"{text}: it expires in {plural(int(left), 'day')}", hint
            else:
                yield OK, text if recipient.expires else f"{text}, which does not expire"

    def signing(self) -> Said:
        """Whether new backups are signed, and whether only such ones restore."""
        folder, required = self.subject.signing, self.subject.require_signature
        rule = f"REQUIRE_SIGNATURE is {'yes' if required else 'no'}"
        try:
            fingerprint = folder.fingerprint()
        except (errors.OperatorError, OSError) as error:
            text = f"backups cannot be signed: {errors.explain(error)}; {rule}"
            yield PROBLEM if required else WARNING, text, getattr(error, "hint", "")
            return
        key = f"key of this host: {in_groups(fingerprint)}" if fingerprint else "no key here yet: a backup makes one"
        yield OK, f"{key}, in {folder.path}; {rule}"

    def signed_by(self) -> Said:
        """Who signed that backup."""
        with contextlib.closing(BackupFile(self.backup.path)) as file, RamFolder() as ram:
            origin = self.subject.signing.origin(file, ram)
        if self.subject.require_signature:
            origin.refuse_unless_trusted(self.subject.signing.path, self.backup.path)
        yield {INVALID: WARNING, UNKNOWN_SIGNER: UNKNOWN}.get(origin.state, OK), origin.sentence(self.backup.path.name)

    def newest_backup(self) -> Said:
        """Whether there is a backup, and when it was made."""
        create = errors.restore_command("create", script="database_backup.py")
        if self.subject.backup_file:
            self.backup = self._named(self.subject.backup_file)
        elif listed := [item for item in self.subject.list_backups() if ".raw.tar" not in item.path.name]:
            self.backup = listed[0]
        else:
            raise errors.BackupNotFoundError(
                f"there is no backup in {self.subject.backup_dir}",
                hint=f"To make one: {create}. Or check DB_BACKUP_PATH.",
            )
        made, path = self.backup.created, shown(self.backup.path)
        late = not self.subject.backup_file and time.time() - made.timestamp() > self.subject.max_age_hours * 3600
        text = f"{path}, {megabytes(self.backup.size)}, of {instant(made)}, {age(made.timestamp())}"
        if late:
            yield WARNING, text, f"Why has none been made since? To make one: {create}"
        else:
            prove = errors.restore_command("--verify-only", path)
            yield OK, text, f"Whether it restores with your key, only this proves: {prove}"

    def _named(self, file: Path) -> BackupInfo:
        """Return the backup that was named; what a restore refuses because of what it is, is refused."""
        refuse_misnamed(file, self.subject.backup_dir, self.target.path, self.subject.list_backups)
        with contextlib.closing(BackupFile(file)):  # refuses what cannot be read
            path = Path(os.path.realpath(file))
        if found := BackupInfo.of(path):
            return found
        if looks_encrypted(path):  # by SQLCipher: such a copy of a database has no mark of its own
            return BackupInfo(path, backup_time(path), path.stat().st_size, encrypted=False)
        raise errors.NotABackupError(f"{file} is not a backup", hint=errors.choose_another_backup_hint())

    def remotes(self) -> Said:
        """Whether each remote answers, has a backup that is not late, and lets us remove backups."""
        push = f"To copy what it lacks: {errors.restore_command('push', script='database_backup.py')}"
        for remote in self.subject.remotes:
            try:
                backups = remote.backups()
            except errors.RemoteError as error:
                yield WARNING, str(error), error.hint
                continue
            may = REMOVING[remote.may_remove()]
            if not backups:
                yield WARNING, f"{remote.place} has no backup; {may}", push
                continue
            made = whole(backups)[0].created
            text = f"{remote.place} has {plural(len(backups), 'backup')}, the newest of {instant(made)}"
            late = time.time() - made.timestamp() > self.subject.max_age_hours * 3600
            yield WARNING if late else OK, f"{text}, {age(made.timestamp())}; {may}", *([push] if late else [])

    def checksum(self) -> Said:
        """Whether that backup is the file that its checksum was made of."""
        with contextlib.closing(BackupFile(self.backup.path)) as file:
            recorded = file.expected
            file.verify()
        if recorded:
            yield OK, f"{self.backup.path.name} matches its checksum"
        else:
            yield UNKNOWN, f"no checksum beside {self.backup.path.name}: only its content can tell whether it is whole"

    def opened_by(self) -> Said:
        """Who can open that backup, and whether those can whom new ones are made for."""
        name, ids = self.backup.path.name, self.backup.key_ids
        if not self.backup.encrypted:
            yield WARNING, f"{name} is not encrypted: whoever can read the file can open it"
            return
        if not ids or HIDDEN_RECIPIENT in ids:
            yield UNKNOWN, f"{name} does not name the keys that open it"
            return
        owners = {key_id: owner(item) for item in self.recipients or () for key_id in item.key_ids}
        for key_id in ids:
            if key_id in owners:
                yield OK, f"key ID {key_id} opens {name}: {owners[key_id]}"
            elif self.recipients is None:
                yield UNKNOWN, f"key ID {key_id} opens {name}: whose it is, is not known here"
            else:
                hint = "Keep its private key as long as such backups count."
                yield WARNING, f"key ID {key_id} opens {name}, and is not in PGP_PUBLIC_KEY_BASE64", hint
        for item in self.recipients or ():
            if not item.key_ids & {*ids}:
                yield WARNING, f"{owner(item)} does not open {name}, only backups made from now on"

    def room(self) -> Said:
        """Whether memory and the disks hold what is coming, as far as its size is known."""
        live, packed = size_of_files(self.target.path), self.backup.size
        size, how, exact = self._size_unpacked(live)
        folder, backups = self.target.path.parent, self.subject.backup_dir
        kept = 0 if self.subject.skip_backup else live
        # Where, what it takes at the least, what it takes as far as that is known, and what is free
        places = (
            ("memory", packed, size, self.subject.memory_limit),
            ("memory", kept, kept, available_memory()),
            (shown(folder), packed, size, shutil.disk_usage(folder).free),
            (shown(backups), 0, packed, shutil.disk_usage(existing(backups)).free),
        )
        text = f"{self.backup.path.name} unpacked: {megabytes(size)}, {how}"
        if tight := [f"{where} has room for {megabytes(has)}" for where, _, needs, has in places if needs > has]:
            certain = exact or any(least > has for _, least, _, has in places)
            hint = f"Make room (df -h), stop other programs, or see MAX_DATABASE_MB in {shown(self.subject.env_file)}."
            yield PROBLEM if certain else WARNING, f"{text}; {', '.join(dict.fromkeys(tight))}", hint
        else:
            free = f"memory {megabytes(places[0][3])}, {shown(folder)} {megabytes(places[2][3])}"
            yield OK if exact or live else UNKNOWN, f"{text}; there is room for it: {free}"

    def _size_unpacked(self, live: int) -> tuple[int, str, bool]:
        """Return the size of the database in the backup, how that is known, and whether it is more than a guess."""
        with contextlib.closing(BackupFile(self.backup.path)) as file:
            if file.layer == "gzip":
                return _size_in_trailer(self.backup.path), "as its gzip trailer says", True
            if file.layer == "database":
                return file.size, "the size of the file", True
        if live:
            return live, "estimated by the live database", False
        return self.backup.size, "at the least: only the key tells more", False


def _size_in_trailer(path: Path) -> int:
    """Return how large a gzip file is when it is unpacked, up to 4 GiB, as its end says."""
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(), "little")


def owner(recipient: Recipient) -> str:
    """Return a key for people: its user ID and the end of its fingerprint, which is its ID."""
    return f"{recipient.user_id or 'a key without a user ID'} ({recipient.fingerprint[-16:]})"


def existing(folder: Path) -> Path:
    """Return a folder, or the one in which it would be made."""
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def _replaceable(path: Path) -> bool:
    """Whether this user may give a new file the owner and group of the one that it replaces."""
    status = stat_or_none(path)
    if status is None or os.geteuid() == 0:
        return True
    return status.st_uid == os.geteuid() and status.st_gid in {os.getegid(), *os.getgroups()}


Said = Iterator[tuple[str, ...]]  # status, text, and perhaps a hint

_FILE, _TARGET, _KEY, _BACKUP = "env_file", "db_path", "public_key", "newest-backup"

# Each check, with the settings and the checks without which it cannot be made
CHECKS: Mapping[str, tuple[Callable[[Checkup], Said], frozenset[str]]] = {
    "settings": (Checkup.settings, frozenset()),
    "packages": (Checkup.packages, frozenset()),
    "gpg": (Checkup.gpg, frozenset()),
    "memory": (Checkup.ram, frozenset()),
    "docker": (Checkup.docker, frozenset({_FILE, _TARGET, "environment", "db_pass"})),
    "mounts": (Checkup.mounts, frozenset({"docker"})),
    "bot-settings": (Checkup.bot_settings, frozenset({"docker"})),
    "services": (Checkup.services, frozenset({"docker"})),
    "database": (Checkup.database, frozenset({_FILE, _TARGET, "db_pass"})),
    "in-use": (Checkup.in_use, frozenset({_FILE, _TARGET, "docker", "services"})),
    "rights": (Checkup.rights, frozenset({_FILE, _TARGET})),
    "last-restore": (Checkup.last_restore, frozenset({_FILE, _TARGET})),
    "public-key": (Checkup.public_key, frozenset({_FILE, _KEY})),
    _BACKUP: (Checkup.newest_backup, frozenset({_FILE})),
    "checksum": (Checkup.checksum, frozenset({_BACKUP})),
    "opened-by": (Checkup.opened_by, frozenset({_BACKUP})),
    "signing": (Checkup.signing, frozenset({_FILE, "signing_dir", "require_signature"})),
    "signed-by": (Checkup.signed_by, frozenset({_BACKUP, "signing_dir", "require_signature"})),
    "remotes": (Checkup.remotes, frozenset({_FILE, "remotes"})),
    "room": (Checkup.room, frozenset({_BACKUP, _TARGET, "max_database_bytes"})),
}
