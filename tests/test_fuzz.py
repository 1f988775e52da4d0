"""Mutated input on the way of the payload: ciphertext, gzip stream, database image.

What is accepted must decode to the very bytes that were put in; all else is refused in words, never by a bug's
traceback, and in bounded memory. A sample runs always; the long form (pytest -m long) runs over 10,000 inputs.
"""

import gzip
import io
import re
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backuplib.backup_file import outer_layer
from backuplib.console import Console, Report
from backuplib.credentials import Credentials
from backuplib.errors import CheckTimeoutError, DecryptionError, UnsoundBackupError
from backuplib.gzip_stream import GzipDecoder
from backuplib.image import DatabaseImage, begun_check
from backuplib.openpgp import Keyring
from backuplib.processes import Signals
from backuplib.ram_folder import RamFolder
from backuplib.secret import Secret
from backuplib.terminal import Terminal
from config import load_settings
from restore_backup import Options, Restorer
from tests.conftest import MakeShop
from tests.support import writer
from tests.support.keys import GpgHome, Keys
from tests.support.shop import DB_PASS

LIMIT = 16 << 20
"""Bytes of content that are enough here."""

ROOM = 300 << 20
"""Bytes by which this process may have grown at the end."""

ABOUT_ROWS = re.compile(r"NULL value in|CHECK constraint failed in|(TEXT|NUMERIC|non-\w+) value in|non-unique entry in")
"""What integrity_check says of rows that a constraint would refuse today, in a database that is whole."""

REFUSALS = (DecryptionError, UnsoundBackupError)
NAME = "db_backup_20250130_120000.db.gz.gpg"

# --- mutations -------------------------------------------------------------------------------------------------------

Edit = Callable[[bytes], bytes]


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    """One change: of bits, bytes or whole stretches; near both ends more often than the length alone would make it."""
    kind = draw(st.sampled_from(("flip", "set", "delete", "insert", "copy", "swap", "truncate", "append", "zero")))
    near = draw(st.sampled_from(("start", "end", "anywhere")))
    offset, length = draw(st.integers(0, 200)), draw(st.integers(1, 64))
    share = draw(st.floats(0, 1, exclude_max=True))
    mask, noise = draw(st.integers(1, 255)), draw(st.binary(min_size=1, max_size=64))

    def apply(data: bytes) -> bytes:
        if not data:
            return noise
        at = {"start": offset, "end": len(data) - 1 - offset, "anywhere": int(share * len(data))}[near]
        at = min(max(at, 0), len(data) - 1)
        head, stretch, tail = data[:at], data[at : at + length], data[at + length :]
        return {
            "flip": lambda: head + bytes([data[at] ^ mask]) + data[at + 1 :],
            "set": lambda: head + noise + data[at + len(noise) :],
            "delete": lambda: head + tail,
            "insert": lambda: head + noise + data[at:],
            "copy": lambda: head + stretch + stretch + tail,
            "swap": lambda: head + tail[:length] + stretch + tail[length:],
            "truncate": lambda: head,
            "append": lambda: data + noise,
            "zero": lambda: head + bytes(len(stretch)) + tail,
        }[kind]()

    return apply


mutations = st.lists(edits(), min_size=1, max_size=4)


def mutated(data: bytes, changes: list[Edit]) -> bytes:
    """The data after all of the changes."""
    for change in changes:
        data = change(data)
    return data


def fuzz(examples: int) -> settings:
    """That many inputs; always the same ones in the sample, so that a failure is nobody's bad luck."""
    return settings(
        max_examples=examples,
        derandomize=examples < 1000,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < ROOM, f"grew by {grown >> 20} MB"


# --- what the payload goes through -----------------------------------------------------------------------------------


def small_database(path: Path, passphrase: str | None) -> bytes:
    """A database with tables, an index, a view, a trigger, and text and blobs over several pages."""
    with closing(writer.connect(str(path), passphrase)) as connection:
        connection.execute("PRAGMA page_size = 4096" if passphrase else "PRAGMA page_size = 512")
        connection.execute("CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, photo BLOB)")
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, total REAL) STRICT")
        connection.execute("CREATE INDEX orders_by_customer ON orders (customer)")
        connection.execute("CREATE VIEW turnover AS SELECT customer, sum(total) FROM orders GROUP BY customer")
        connection.execute("CREATE TRIGGER gone AFTER DELETE ON orders BEGIN DELETE FROM customers WHERE id = -1; END")
        connection.execute("BEGIN")
        for i in range(40):
            connection.execute("INSERT INTO customers VALUES (?, ?, ?)", (i, f"name {i}", bytes([i]) * 300))
            connection.execute("INSERT INTO orders VALUES (?, ?, ?)", (i, i % 7, i * 1.5))
        connection.execute("DELETE FROM customers WHERE id > 30")
        connection.execute("COMMIT")
    return path.read_bytes()


@dataclass(frozen=True)
class Restores:
    """What a restore does to the payload, with the keyring and the RAM folder of one run kept for all inputs."""

    ram: RamFolder
    keyring: Keyring
    plain: Restorer
    encrypted: Restorer

    def decode(self, payload: bytes, name: str) -> DatabaseImage:
        """Phase 3. One of REFUSALS when the payload is not sound."""
        image = DatabaseImage(LIMIT)
        if outer_layer(payload[:64], name, len(payload)) == "openpgp":
            self.keyring.decrypt(io.BytesIO(payload), None, image.feed, LIMIT)
        else:
            image.feed(payload)
        image.finish()
        return image

    def check(self, content: bytes, restorer: Restorer) -> None:
        """Phase 4. One of REFUSALS when the database is not sound."""
        image = restorer.new_image(self.ram, LIMIT)
        image.feed(content)
        image.finish()
        try:
            with begun_check(image, restorer.engine) as check:
                restorer.check_integrity(check)
        finally:
            image.wipe()


@pytest.fixture(scope="module")
def restores(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restores]:
    """Everything of the program's that has to do with the payload."""
    folder = tmp_path_factory.mktemp("fuzz")

    def restorer(**environ: str) -> Restorer:
        return Restorer(
            load_settings(folder, {"RUNTIME_ENVIRONMENT": "TEST", **environ}),
            Options(),
            terminal=Terminal(),
            credentials=Credentials(Terminal()),
            report=Report(Console(), Signals()),
        )

    with RamFolder(LIMIT) as ram:
        keyring = Keyring(ram)
        keyring.import_private(Secret(keys.open.private_binary))
        yield Restores(ram, keyring, restorer(), restorer(DB_ENCRYPTION="true", DB_PASS=DB_PASS))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small plain database."""
    return small_database(tmp_path_factory.mktemp("fuzz") / "plain.db", None)


@pytest.fixture(scope="module")
def cipher_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small SQLCipher database."""
    return small_database(tmp_path_factory.mktemp("fuzz") / "cipher.db", DB_PASS)


@pytest.fixture(scope="module")
def messages(gpg: GpgHome, keys: Keys, database: bytes) -> list[bytes]:
    """The same backup as the program makes it, armored, and compressed by gpg."""
    content = gzip.compress(database, mtime=0)
    to = ("--recipient", keys.open.fingerprint)
    ways = (("-z", "0"), ("--armor", "-z", "0"), ("-z", "9"))
    return [gpg.encrypt(content, *way, *to) for way in ways]


def test_what_is_not_mutated_is_accepted(
    restores: Restores, messages: list[bytes], database: bytes, cipher_database: bytes
) -> None:
    """Else the tests below would show nothing."""
    for message in messages:
        assert restores.decode(message, NAME).buffer.getvalue() == database
    assert restores.decode(gzip.compress(database), "x.db.gz").buffer.getvalue() == database
    restores.check(database, restores.plain)
    restores.check(cipher_database, restores.encrypted)


@pytest.mark.deep
def test_check_has_a_time_limit(restores: Restores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a schema that has SQLite compute; the limit is made shorter here."""
    monkeypatch.setattr("backuplib.image.PATIENCE_SECONDS", 1.0)
    path = tmp_path / "slow.db"
    writer.make_slow_to_check(str(path))
    with pytest.raises(CheckTimeoutError, match="2 s"):
        restores.check(path.read_bytes(), restores.plain)


# --- the three layers ------------------------------------------------------------------------------------------------


def fuzz_ciphertext(examples: int, restores: Restores, messages: list[bytes], database: bytes) -> None:
    @fuzz(examples)
    @given(changes=mutations, which=st.integers(0, len(messages) - 1))
    def run(changes: list[Edit], which: int) -> None:
        try:
            image = restores.decode(mutated(messages[which], changes), NAME)
        except REFUSALS:
            return
        assert image.buffer.getvalue() == database

    run()


def fuzz_gzip(examples: int, restores: Restores, database: bytes) -> None:
    streams = [
        gzip.compress(database, mtime=0),
        gzip.compress(database, 1),
        gzip.compress(database, 0),
        gzip.compress(database[:9000]) + gzip.compress(database[9000:]) + bytes(32),
    ]

    @fuzz(examples)
    @given(changes=mutations, which=st.integers(0, len(streams) - 1), piece=st.sampled_from((1, 7, 1000, 1 << 16)))
    def run(changes: list[Edit], which: int, piece: int) -> None:
        stream = mutated(streams[which], changes)
        content = io.BytesIO()
        decoder = GzipDecoder(content.write, LIMIT)
        try:
            for start in range(0, len(stream), max(piece, len(stream) // 100)):
                decoder.feed(stream[start : start + max(piece, len(stream) // 100)])
            decoder.finish()
        except REFUSALS:
            return
        assert content.getvalue() == database

    run()


def fuzz_plain_image(examples: int, restores: Restores, database: bytes, folder: Path) -> None:
    copy = folder / "copy.db"

    @fuzz(examples)
    @given(changes=mutations)
    def run(changes: list[Edit]) -> None:
        content = mutated(database, changes)
        try:
            restores.check(content, restores.plain)
        except REFUSALS:
            return
        # Nothing in a plain database tells whether a row's text was changed: gzip and OpenPGP do. But it must be one.
        copy.write_bytes(content)
        uri = f"file:{copy}?immutable=1"
        two: list[Any] = [sqlite3.connect(uri, uri=True), apsw.Connection(uri, apsw.SQLITE_OPEN_URI | 1)]
        for connection in two:
            with closing(connection):
                found = [text for (text,) in connection.execute("PRAGMA integrity_check").fetchall()]
                assert found == ["ok"] or all(map(ABOUT_ROWS.match, found)), found
                assert connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0] > 0
        assert len(content) % 512 == 0

    run()


def fuzz_cipher_image(examples: int, restores: Restores, database: bytes) -> None:
    @fuzz(examples)
    @given(changes=mutations)
    def run(changes: list[Edit]) -> None:
        content = mutated(database, changes)
        try:
            restores.check(content, restores.encrypted)
        except REFUSALS:
            return
        assert content == database  # SQLCipher authenticates every page

    run()


@pytest.mark.deep
def test_mutated_ciphertext_is_refused(restores: Restores, messages: list[bytes], database: bytes) -> None:
    fuzz_ciphertext(100, restores, messages, database)


def test_mutated_gzip_is_refused(restores: Restores, database: bytes) -> None:
    fuzz_gzip(200, restores, database)


def test_mutated_database_is_refused_or_sound(restores: Restores, database: bytes, tmp_path: Path) -> None:
    fuzz_plain_image(40, restores, database, tmp_path)


@pytest.mark.deep
def test_mutated_cipher_database_is_refused(restores: Restores, cipher_database: bytes) -> None:
    fuzz_cipher_image(8, restores, cipher_database)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_mutated_ciphertext_is_refused_long(restores: Restores, messages: list[bytes], database: bytes) -> None:
    fuzz_ciphertext(4000, restores, messages, database)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_mutated_gzip_is_refused_long(restores: Restores, database: bytes) -> None:
    fuzz_gzip(6000, restores, database)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_mutated_database_is_refused_or_sound_long(restores: Restores, database: bytes, tmp_path: Path) -> None:
    fuzz_plain_image(9000, restores, database, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_mutated_cipher_database_is_refused_long(restores: Restores, cipher_database: bytes) -> None:
    fuzz_cipher_image(1000, restores, cipher_database)


# --- through the command line ----------------------------------------------------------------------------------------


@pytest.mark.deep
def test_mutated_backups_change_nothing(make_shop: MakeShop, keys: Keys) -> None:
    """A handful of each layer, restored for good: no code but 4 and 5, the target untouched to the inode."""
    shop = make_shop("sqlite", PGP_PUBLIC_KEY_BASE64=keys.open.public_b64)
    sound = shop.create_backup().read_bytes()
    stream = gzip.compress(shop.db_path.read_bytes(), 1)
    before = shop.snapshot()
    backup = shop.backups / NAME

    @fuzz(10)
    @given(changes=mutations, layer=st.sampled_from(("message", "gzip")))
    def run(changes: list[Edit], layer: str) -> None:
        original = sound if layer == "message" else stream
        data = mutated(original, changes)
        backup.with_name(NAME if layer == "message" else NAME.removesuffix(".gpg")).write_bytes(data)
        done = shop.restore(
            backup if layer == "message" else backup.with_suffix(""),
            *("--verify-only", "--force") if data == original else ("--force",),
            key=keys.open,
        )
        assert "Traceback" not in done.text
        assert done.code in ((0,) if data == original else (4, 5)), done.text
        assert shop.snapshot() == before

    run()
