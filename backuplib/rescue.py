"""Rescue: a new database of what a safety backup that was made byte for byte still holds, or of a damaged database."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from backuplib import errors, files
from backuplib.backup_file import HEAD, outer_layer
from backuplib.credentials import tell_waiting
from backuplib.database import SIDECARS, SQLITE_MAGIC, Engine, check_database, sidecars
from backuplib.folder import resolved
from backuplib.formatting import aligned, plural, shortened, shown
from backuplib.gzip_stream import GzipDecoder
from backuplib.processes import child_environment
from backuplib.ram_folder import RamFolder, swap_on_disk
from backuplib.salvage import Salvage
from backuplib.secret import Secret
from backuplib.storage import is_plain, looks_encrypted

if TYPE_CHECKING:
    from backuplib.console import Report

RESULTS = Path("/dev/shm")  # noqa: S108 - looked at first
PAGE_SIZES = (4096, 1024, 8192, 2048, 16384, 32768, 65536, 512)


def rescue(source: str, target: Path | None, db_pass: Secret | None, report: Report) -> Path:
    """Write what can be read into a new database file, mode 0600, say what that is, and return its path.

    :param source: a safety backup named .raw.tar, or a database file with its sidecars beside it; "-": standard input.
    :param target: a new file; None: one in RAM.
    :raises UnsoundBackupError: when nothing can be read.
    :raises RefusedError, DecryptionError: when the source cannot be read, or the target not be written.
    """
    target = target or result_in_ram()
    with RamFolder() as ram:
        try:
            database = unpacked(source, ram, report.console.line)
        except OSError as error:
            raise errors.BackupNotFoundError(f"cannot unpack {source}: {errors.explain(error)}") from None
        engine = opening_engine(database, db_pass)
        try:
            checked, _ = check_database(engine, database)
            report.console.line(f"✅ Nothing is lost: {checked}")
        except errors.UnsoundBackupError as error:
            report.warn(shortened(str(error), 100))
            database = salvage(engine, database, report)
        write_result(database, target)
    if not engine.db_pass:
        report.warn(f"{shown(target)} is not encrypted: remove it when it is restored")
        if swap_on_disk():
            report.warn("swap is on: what is in RAM could be written to it")
    return target


def salvage(engine: Engine, damaged: Path, report: Report) -> Path:
    """Make a new database of what can be read of a damaged one, say what that is, and return its path.

    :raises UnsoundBackupError: when nothing can be read.
    """
    new = damaged.with_name("rescued.db")
    with report.console.step("🩹 Rescuing...") as step:
        saved = Salvage(engine, damaged, new)
        saved.run()
        total = sum(table.rows for table in saved.tables.values())
        step.done(f"{plural(total, 'row')} of {plural(len(saved.tables), 'table')}")
    rows = [(shortened(table.name, 40), f"{table.rows:,}", "; ".join(table.notes)) for table in saved.tables.values()]
    for line in aligned([("table", "rows", "what is missing"), *rows], right=(1,)):
        report.console.line(f"   {line}")
    for note in saved.notes:
        report.warn(note)
    if not total:
        raise errors.DamagedDatabaseError("nothing can be rescued: no row can be read")
    check_database(engine, new)
    return new


def result_in_ram() -> Path:
    """Return the name of a new file in RAM."""
    if not RESULTS.is_dir() or files.filesystem_type(RESULTS) != "tmpfs":
        raise errors.NoMemoryError(f"{RESULTS} is not in RAM", hint="Name the file for what is rescued: --to FILE")
    return RESULTS / f"rescued-{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}.db"


def write_result(database: Path, target: Path) -> None:
    """Copy a database to a new file."""
    try:
        with files.create_file(target) as file:
            try:
                with database.open("rb") as source:
                    shutil.copyfileobj(source, file, files.CHUNK)
                os.fsync(file.fileno())
            except BaseException:
                files.drop_quietly(target)
                raise
    except OSError as error:
        raise errors.CannotWriteError(
            f"cannot write {target}: {error.strerror}", hint="Name another file: --to FILE"
        ) from None


# --- what there is ---------------------------------------------------------------------------------------------------


def unpacked(source: str, ram: RamFolder, say: Callable[[str], object]) -> Path:
    """Put the files of a database into the RAM folder, without layers, and return the main one."""
    given, database = ram.path / "given", ram.path / "damaged.db"
    if source == "-" and sys.stdin.isatty():
        again = errors.restore_command("rescue", "-", script="database_backup.py")
        raise errors.UsageError("standard input is a terminal", hint=f"Pipe the file in: gpg -d FILE | {again}")
    if source == "-":
        tell_waiting(sys.stdin.fileno(), "the file on standard input", say)
    place = None if source == "-" else resolved(Path(source))
    with (
        files.open_regular(place) if place else io.FileIO(sys.stdin.fileno(), closefd=False) as file,
        files.create_file(given) as copy,
    ):
        shutil.copyfileobj(file, copy, files.CHUNK)
    unwrap(given, ram)
    if tarfile.is_tarfile(given):
        unpack_tar(given, database)
    else:
        given.rename(database)
        for path in sidecars(place) if place else []:
            files.copy_content(path, Path(f"{database}-{path.name.rpartition('-')[2]}"))
    if not database.exists() or not database.stat().st_size:  # SQLite would delete the WAL of such a one
        fold_wal(database)
    return database


def unwrap(given: Path, ram: RamFolder) -> None:
    """Take the layers of OpenPGP and gzip off a file in the RAM folder."""
    inner = given.with_name("inner")
    while True:
        with given.open("rb") as file:
            layer = outer_layer(file.read(HEAD), "", os.fstat(file.fileno()).st_size)
            if layer == "database":
                return
            with files.create_file(inner) as target:
                if layer == "openpgp":
                    decrypt(given, target)
                else:
                    file.seek(0)
                    decoder = GzipDecoder(lambda data: files.write_all(target, data), ram.free // 10 * 9)
                    for piece in iter(lambda: file.read(files.CHUNK), b""):
                        decoder.feed(piece)
                    decoder.finish()
        inner.replace(given)


def decrypt(message: Path, target: io.FileIO) -> None:
    """Decrypt with the keys of the person's own gpg, which asks for the passphrase itself."""
    try:
        done = subprocess.run(["gpg", "--decrypt", str(message)], stdout=target, env=child_environment(), check=False)
    except FileNotFoundError:
        raise errors.MissingProgramError(
            "gpg is not installed", hint="Install the package that provides gpg."
        ) from None
    if done.returncode:
        raise errors.GpgFailedError(
            f"gpg could not decrypt it (exit code {done.returncode})",
            hint="Decrypt it where the private key is, and send it here: gpg -d FILE | "
            f"{errors.rescue_from_elsewhere()}",
        )


def unpack_tar(archive: Path, database: Path) -> None:
    """Take the database and its sidecars out of a raw safety backup; nothing else, and under no name of theirs."""
    try:
        with tarfile.open(archive) as tar:
            for item in filter(tarfile.TarInfo.isreg, tar):
                suffix = next((suffix for suffix in SIDECARS if item.name.endswith(suffix)), "")
                if content := tar.extractfile(item):
                    with content, database.with_name(database.name + suffix).open("wb") as file:
                        shutil.copyfileobj(content, file, files.CHUNK)
    except tarfile.TarError as error:
        raise errors.NotADatabaseError(f"the archive is damaged: {error}") from None
    archive.unlink()


def fold_wal(database: Path) -> None:
    """Make a database of the pages that a WAL has committed; the main file is missing or empty."""
    wal = database.with_name(f"{database.name}-wal")
    if not wal.exists():
        raise errors.NotADatabaseError("there is no database in it")
    data = wal.read_bytes()
    size = int.from_bytes(data[8:12])
    frames = [data[at : at + 24 + size] for at in range(32, len(data) - size - 23, 24 + size)]
    whole = [frame for frame in frames if frame[8:16] == data[16:24]]  # the rest is older than the WAL's beginning
    while whole and not any(whole[-1][4:8]):  # not committed
        whole.pop()
    with database.open("wb") as file:
        for frame in whole:
            file.seek((int.from_bytes(frame[:4]) - 1) * size)
            file.write(frame[24:])
    wal.unlink()


# --- how it is opened ------------------------------------------------------------------------------------------------


def opening_engine(database: Path, db_pass: Secret | None) -> Engine:
    """Return what opens a database, which then has all that its sidecars hold; a plain one's header is mended.

    :raises WrongDbPassError: when it looks encrypted, and does not open.
    """
    engine = Engine(db_pass)
    if db_pass and not is_plain(database):
        if opens(engine, database):
            return engine
        if looks_encrypted(database):
            raise errors.WrongDbPassError(
                "DB_PASS does not open it: it is under another passphrase, or its first page is damaged",
                hint="With another passphrase: DB_PASS='…' in front of the command.",
            )
    elif not db_pass and looks_encrypted(database):
        raise errors.WrongDbPassError(
            "it looks encrypted, as by SQLCipher, and DB_ENCRYPTION is not true",
            hint="Put DB_ENCRYPTION=true DB_PASS='…' in front of the command.",
        )
    engine = Engine(None)
    if not opens(engine, database):
        mend_header(database, engine)
    return engine


def opens(engine: Engine, database: Path) -> bool:
    """Whether a database shows its schema; applies its sidecars."""
    try:
        with contextlib.closing(engine.connect(database)) as connection:
            connection.execute("PRAGMA writable_schema=ON")  # also when pages are missing, or parts of the schema
            return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    except engine.errors:
        return False


def mend_header(database: Path, engine: Engine) -> None:
    """Write a header that SQLite accepts over the damaged one of a plain database, with what is still plausible."""
    with database.open("r+b") as file:
        head = bytearray(file.read(100).ljust(100, b"\0"))
        head[:16] = SQLITE_MAGIC
        head[18:20] = b"\1\1"
        head[21:24] = bytes((64, 32, 32))
        for field_at, largest in ((44, 4), (56, 3)):  # format of the schema, encoding
            if not 1 <= int.from_bytes(head[field_at : field_at + 4]) <= largest:
                head[field_at : field_at + 4] = (largest if field_at == 44 else 1).to_bytes(4)
        given = bytes(head[16:18])
        for size in (given, *(bytes((number >> 8 & 255, number >> 16)) for number in PAGE_SIZES)):
            for reserved in (head[20], 0):
                head[16:18], head[20] = size, reserved
                file.seek(0)
                file.write(head)
                file.flush()
                if opens(engine, database):
                    return
    raise errors.NotADatabaseError("nothing can be rescued: neither a header nor the list of its tables can be read")
