"""The restored database in memory."""

import contextlib
import ctypes
import functools
import io
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backuplib import errors
from backuplib.comparison import examine
from backuplib.database import (
    SMALLEST_PAGE,
    Engine,
    check_pages,
    missing_pages_text,
    written_by_newer,
)
from backuplib.files import CHUNK, create_file, write_all
from backuplib.findings import find_foreign_keys
from backuplib.formatting import megabytes
from backuplib.gzip_stream import MOST_LAYERS, Unzipper
from backuplib.inspection import PATIENCE_SECONDS, ROOM, Inspection
from backuplib.layers import HEAD, is_encrypted_message, refuse_other_content
from backuplib.storage import JOURNAL_BYTES, JOURNAL_MODES, begins_plain

LARGEST_PAGE = 65536  # bytes


class DatabaseImage:
    """The restored database as bytes in memory, filled from the decrypted stream: the only copy.

    :param limit: the most bytes that it may have.
    :param folder: in RAM: it becomes a file there, which SQLCipher can open, instead of a buffer.
    :param bare: the stream is the database itself; a SQLCipher database may begin like gzip by chance.
    """

    def __init__(self, limit: int, folder: Path | None = None, *, bare: bool = False) -> None:
        self.path = folder / f"image-{secrets.token_hex(4)}.db" if folder else None
        self.buffer = io.BytesIO()
        if self.path:
            create_file(self.path).close()
        self.header = b""
        self.plain = False  # whether it is an unencrypted SQLite database
        self.size = 0
        self._head = b""
        self._limit = limit
        self._unzipper = Unzipper(self._collect, limit, layers=0 if bare else MOST_LAYERS)

    def feed(self, data: bytes) -> None:
        """Take a piece of the backup's content, gzipped or not."""
        self._unzipper.feed(data)

    def finish(self) -> None:
        """Check that the stream is complete, else raise UnsoundBackupError."""
        self._unzipper.finish()
        with self.opened() as file:
            self._head = file.read(HEAD)
        self.header, self.plain = self._head[:100], begins_plain(self._head)

    @property
    def holds_message(self) -> bool:
        """Whether it is no database, but an OpenPGP message once more."""
        return is_encrypted_message(self._head)

    def refuse_other_content(self) -> None:
        """Refuse what is certainly no database; NotADatabaseError, naming it."""
        refuse_other_content(self._head)

    def _collect(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._limit:
            raise errors.TooLargeError(self._limit)
        try:
            if self.path:
                with io.FileIO(self.path, "a") as file:
                    write_all(file, data)
            else:
                self.buffer.write(data)
        except MemoryError:
            raise errors.TooLargeError(self.size - len(data)) from None
        except OSError as error:
            # A tmpfs of our own has all of the memory.
            shared = str(self.path).startswith("/dev/shm/")  # noqa: S108 - only compared
            enlarge = "Enlarge it (as root: mount -o remount,size=90% /dev/shm), or use" if shared else "Use"
            raise errors.NoMemoryError(
                f"the RAM folder is full: {error.strerror} after {megabytes(self.size - len(data))} of the database",
                hint=f"{enlarge} a machine with more memory.",
            ) from None

    @contextlib.contextmanager
    def opened(self) -> Iterator[io.FileIO | io.BytesIO]:
        """Open it for reading, from its beginning."""
        if self.path:
            with io.FileIO(self.path) as file:
                yield file
        else:
            self.buffer.seek(0)
            yield self.buffer

    @contextlib.contextmanager
    def probe(self, path: Path) -> Iterator[Path]:
        """Its first pages in a file of their own, sparse and long: if it is SQLCipher cut short, that opens there."""
        try:
            with create_file(path) as file, self.opened() as image:
                file.write(image.read(LARGEST_PAGE))
                file.truncate(16 * self.size)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def set_journal_mode(self, mode: str, engine: Engine) -> None:
        """Put the database into a journal mode, "wal" or "delete", which changes its first page only.

        What cannot be opened stays as it is: the check says what is wrong with it.
        """
        if self.path and self.size >= SMALLEST_PAGE:  # of an empty file, SQLite would make a database
            with (
                contextlib.suppress(*engine.errors),
                contextlib.closing(engine.connect(self.path)) as connection,
            ):
                connection.execute(f"PRAGMA journal_mode={mode}")
            with io.FileIO(self.path) as file:
                self.header = file.read(len(self.header))
        elif self.plain and self.header[JOURNAL_BYTES] in JOURNAL_MODES:
            (version,) = (version for version, name in JOURNAL_MODES.items() if name == mode)
            with self.buffer.getbuffer() as view:
                view[JOURNAL_BYTES] = version
                self.header = bytes(view[: len(self.header)])

    def write_to(self, file: io.FileIO, progress: Callable[[int], object] = lambda _: None) -> None:
        for piece in self._pieces(8 * CHUNK):
            write_all(file, piece)
            progress(file.tell())

    def is_in(self, file: io.FileIO) -> bool:
        """Whether a file has exactly these bytes."""
        file.seek(0)
        found = bytearray(CHUNK)
        for piece in self._pieces(CHUNK):
            count = file.readinto(memoryview(found)[: len(piece)])
            if found[:count] != bytes(piece):
                return False
        return not file.read(1)

    def _pieces(self, size: int) -> Iterator[bytes | memoryview]:
        if self.path:
            with io.FileIO(self.path) as file:
                yield from iter(lambda: file.read(size), b"")
        else:
            with self.buffer.getbuffer() as view:
                for start in range(0, len(view), size):
                    yield view[start : start + size]

    def wipe(self) -> None:
        """Overwrite and release the database in memory."""
        if self.path:
            self.path.unlink(missing_ok=True)
            return
        with self.buffer.getbuffer() as view:
            ctypes.memset((ctypes.c_char * len(view)).from_buffer(view), 0, len(view))
        self.buffer.close()

    def refuse_incomplete(self) -> None:
        """Refuse what is too short, before an engine opens it.

        SQLite file format, section 1.3: the header holds the page size (1 means 65536) and the number of pages.

        :raises UnsoundBackupError: saying what is missing.
        """
        if not self.size:
            raise errors.EmptyBackupError("the backup is empty")
        if self.size < SMALLEST_PAGE:
            raise errors.NotADatabaseError(f"not a database: the backup holds only {self.size} bytes")
        page_size = int.from_bytes(self.header[16:18]) if self.header[16:18] != b"\0\1" else 65536
        missing = int.from_bytes(self.header[28:32]) - self.size / max(page_size, SMALLEST_PAGE)
        if self.plain and missing > 0:
            raise errors.DamagedDatabaseError(f"the database is corrupted: {missing_pages_text(missing)}")


@contextlib.contextmanager
def opened_image(image: DatabaseImage, engine: Engine, *, beside: bool = False) -> Iterator[Any]:
    """Open a database image for checking, where it lies: SQLite in the buffer, SQLCipher in the RAM folder.

    :param beside: another connection may check it at the same time; CHECK constraints are for that one.
    """
    if image.path and beside:
        with contextlib.closing(engine.look(image.path, immutable=True)) as connection:
            yield connection
        return
    if image.path:
        # not as read-only: see opened_buffer
        with contextlib.closing(engine.look(image.path, mode="rw")) as connection:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # a database in WAL mode gets no -shm then
            yield connection
        return
    from backuplib.buffer_vfs import opened_buffer

    with image.buffer.getbuffer() as view, opened_buffer(view) as connection:
        yield connection


@contextlib.contextmanager
def begun_check(image: DatabaseImage, engine: Engine) -> Iterator[list[Inspection]]:
    """Check an image in two children, with :func:`examined` and :func:`examined_beside`, before any thread starts.

    :raises UnsoundBackupError: when the image is not whole.
    """
    image.refuse_incomplete()
    seconds, memory = PATIENCE_SECONDS + image.size / 1e6, image.size + ROOM
    engine.prepare(image.path)
    import backuplib.buffer_vfs  # noqa: F401 - a child without rights cannot

    with contextlib.ExitStack() as running:
        begun = []
        for work in (examined, examined_beside):
            look = functools.partial(work, image, engine)
            largest = 16 * image.size if image.path else 0  # of the probe
            begun.append(
                Inspection(look, seconds=seconds, memory=memory, largest_file=largest, unprivileged=not image.path)
            )
            running.callback(begun[-1].close)
        yield begun


def examined(image: DatabaseImage, engine: Engine, _: object = None) -> dict[str, Any]:
    """Return the contents of an image, with what was found, as JSON can hold them.

    :raises UnsoundBackupError: saying what is wrong with it.
    """
    with _explained(image, engine), opened_image(image, engine) as connection:
        return asdict(examine(engine, connection, image.size, newer=_may_be_newer(image), foreign_keys=False))


def examined_beside(image: DatabaseImage, engine: Engine, _: object = None) -> list[dict[str, Any]]:
    """Return the findings about foreign keys; SQLCipher's pages are checked, too.

    :raises UnsoundBackupError: when one is not authentic; what is wrong otherwise is told by :func:`examined`.
    """
    with _explained(image, engine), opened_image(image, engine, beside=True) as connection:
        if image.path:
            check_pages(connection)
        return [asdict(finding) for finding in find_foreign_keys(connection, newer=_may_be_newer(image))]


def _may_be_newer(image: DatabaseImage) -> bool:
    return image.path is not None or written_by_newer(image.header)


@contextlib.contextmanager
def _explained(image: DatabaseImage, engine: Engine) -> Iterator[None]:
    try:
        yield
    except engine.out_of_memory:
        raise MemoryError from None
    except engine.errors as error:
        raise explain_unreadable(image, engine, error) from None


def explain_unreadable(image: DatabaseImage, engine: Engine, error: Exception) -> errors.UnsoundBackupError:
    """Explain why an image is not a sound database of the configured mode."""
    if not image.path and not image.plain:
        return errors.NotADatabaseError(
            "neither an unencrypted SQLite database nor anything else that is recognised; it may be encrypted with "
            "SQLCipher",
            hint="If the bot uses SQLCipher, set DB_ENCRYPTION=true and DB_PASS in .env. If only this backup does, add "
            "--convert --backup-db-pass, which asks for its passphrase (without a terminal: --backup-db-pass-fd N). "
            f"{errors.choose_another_backup_hint()}",
        )
    if not image.path:
        return errors.DamagedDatabaseError(f"the database is corrupted: {error}")
    with (
        image.probe(image.path.with_suffix(f".{os.getpid()}")) as probe,
        contextlib.suppress(*engine.errors),
        contextlib.closing(engine.connect(probe, mode="ro", immutable=True)) as connection,
    ):
        connection.execute("PRAGMA writable_schema=ON")  # then it opens even with a corrupted schema
        missing = int(connection.execute("PRAGMA page_count").fetchone()[0]) - image.size / 4096
        what = missing_pages_text(missing) if missing > 0 else error
        return errors.DamagedDatabaseError(f"the database is corrupted: {what}")
    return errors.WrongDbPassError(
        "DB_PASS does not open the database in the backup: it has another passphrase or other cipher settings than "
        "SQLCipher's defaults, or it is neither a SQLCipher database nor anything else that is recognised",
        hint="If it was made with another passphrase, add --backup-db-pass, which asks for it (without a terminal: "
        "--backup-db-pass-fd N). If the bot shall use that passphrase again, set DB_PASS in .env. "
        "A bot with settings of its own (kdf_iter, cipher_use_hmac, "
        "cipher_plaintext_header_size) is not supported.",
    )
