"""A backup that is not proved sound changes nothing, and the operator reads which of the many things it is."""

import gzip
import json
import re
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeShop
from tests.support import writer
from tests.support.keys import GpgHome, Key, Keys
from tests.support.shop import BACKUP, Completed, Shop, cpu_time, everything

PAGE = 4096


@dataclass
class Attempt:
    """A restore that must be refused: what the tests change about it before it runs."""

    shop: Shop
    keys: Keys
    gpg: GpgHome
    database: bytes
    backup: Path
    key: Key | None
    env: dict[str, str] = field(default_factory=dict)
    args: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def encrypt(self, content: bytes, *options: str) -> None:
        """Make the backup: this content, encrypted to the key that the operator has."""
        recipient = ("--trust-model", "always", "--recipient", self.keys.open.fingerprint, "--encrypt")
        self.backup.write_bytes(self.gpg.run(*(options or recipient), stdin=content))

    def pack(self, database: bytes) -> None:
        """Make the backup: this database, gzipped and encrypted."""
        self.encrypt(gzip.compress(database, 1))

    def run(self, *args: str) -> Completed:
        """Restore over the live database."""
        return self.shop.restore(self.backup, "--force", *self.args, *args, key=self.key, env=self.env, **self.options)


@pytest.fixture
def make_attempt(make_shop: MakeShop, keys: Keys, gpg: GpgHome) -> Callable[[str], Attempt]:
    """An attempt that would succeed as it is, on a live database whose last rows only its WAL holds."""

    def make(mode: str) -> Attempt:
        shop = make_shop(mode)
        attempt = Attempt(shop, keys, gpg, shop.db_path.read_bytes(), shop.path / BACKUP, keys.open)
        attempt.pack(attempt.database)
        shop.leave_hot_wal()
        return attempt

    return make


# --- ways in which it goes wrong -------------------------------------------------------------------------------------


def wrong_key(attempt: Attempt) -> None:
    attempt.key = attempt.keys.other


def no_key_at_all(attempt: Attempt) -> None:
    attempt.key = None


def wrong_passphrase(attempt: Attempt) -> None:
    rsa = attempt.keys.rsa
    attempt.encrypt(gzip.compress(attempt.database), "--trust-model", "always", "-r", rsa.fingerprint, "--encrypt")
    attempt.key = Key(rsa.fingerprint, "wrong", rsa.public_binary, rsa.private_binary, rsa.private_armor)


def no_passphrase(attempt: Attempt) -> None:
    wrong_passphrase(attempt)
    attempt.key = None
    attempt.args = ["--key-stdin"]
    attempt.options["stdin"] = attempt.keys.rsa.private_b64.encode()


def flipped_bit_at_the_end(attempt: Attempt) -> None:
    content = bytearray(attempt.backup.read_bytes())
    content[-1] ^= 1
    attempt.backup.write_bytes(content)


def bad_crc(attempt: Attempt) -> None:
    content = bytearray(gzip.compress(attempt.database))
    content[-8] ^= 1
    attempt.encrypt(bytes(content))


def empty_database(attempt: Attempt) -> None:
    attempt.pack(b"")


def nothing_at_all(attempt: Attempt) -> None:
    attempt.encrypt(b"")


def database_without_a_table(attempt: Attempt) -> None:
    path = attempt.shop.path / "no-table.db"
    connection = attempt.shop.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.execute("DROP TABLE t")
    connection.close()
    attempt.pack(path.read_bytes())


def random_bytes(attempt: Attempt) -> None:
    attempt.pack(bytes((i * i * 31 + i // 7) % 251 for i in range(8 * PAGE)))


def text(attempt: Attempt) -> None:
    attempt.pack(b"Dear customer, your database is ready.\n" * 500)


def one_page_short(attempt: Attempt) -> None:
    attempt.pack(attempt.database[:-PAGE])


def one_page_long(attempt: Attempt) -> None:
    attempt.pack(attempt.database + bytes(PAGE))


def half_a_page_long(attempt: Attempt) -> None:
    attempt.pack(attempt.database + bytes(PAGE // 2))


def damaged_page(attempt: Attempt) -> None:
    content = bytearray(attempt.database)
    middle = len(content) // 2 // PAGE * PAGE
    content[middle : middle + 200] = b"\xa5" * 200
    attempt.pack(bytes(content))


def schema_that_is_no_text(attempt: Attempt) -> None:
    """SQLite names in its error what it stumbled over, and Python cannot decode that."""
    attempt.shop.break_schema()
    attempt.pack(attempt.shop.db_path.read_bytes())


def checksum_of_another_file(attempt: Attempt) -> None:
    Path(f"{attempt.backup}.sha256").write_text(f"{'0' * 64}  {attempt.backup.name}\n")


def checksum_that_is_none(attempt: Attempt) -> None:
    Path(f"{attempt.backup}.sha256").write_text("<html>404</html>\n")


def missing_file(attempt: Attempt) -> None:
    attempt.backup.unlink()


def folder_for_a_file(attempt: Attempt) -> None:
    attempt.backup.unlink()
    attempt.backup.mkdir()


Refusal = tuple[Callable[[Attempt], None], int, str]

WHATEVER_IT_HOLDS: list[Refusal] = [
    (wrong_key, 4, "wrong-key"),
    (no_key_at_all, 3, "no-terminal"),
    (wrong_passphrase, 4, "wrong-passphrase"),
    (no_passphrase, 3, "no-terminal"),
    (flipped_bit_at_the_end, 4, "damaged-message"),
    (bad_crc, 5, "damaged-gzip"),
    (empty_database, 5, "empty-backup"),
    (nothing_at_all, 5, "empty-backup"),
    (checksum_of_another_file, 3, "checksum-mismatch"),
    (checksum_that_is_none, 3, "checksum-unreadable"),
    (missing_file, 3, "backup-not-found"),
    (folder_for_a_file, 3, "not-a-backup"),
]
"""What ends before it matters whether the database is encrypted; see also test_keys.py and test_messages.py."""

BY_ITS_PAGES: list[Refusal] = [
    (database_without_a_table, 5, "empty-backup"),
    (random_bytes, 5, "not-a-database|wrong-db-pass"),
    (text, 5, "not-a-database|wrong-db-pass"),
    (one_page_short, 5, "damaged-database"),
    (one_page_long, 5, "damaged-database"),
    (half_a_page_long, 5, "damaged-database"),
    (damaged_page, 5, "damaged-database"),
    (schema_that_is_no_text, 5, "damaged-database"),
]
"""What each of the two engines has to notice."""

VALUES: dict[Callable[[Attempt], None], list[str]] = {
    no_key_at_all: ["--key-stdin"],
    no_passphrase: ["--passphrase-fd", "--passphrase-command"],
    one_page_short: ["1 page"],
    one_page_long: ["1 page"],
    half_a_page_long: ["0.5 page"],
}
"""What the error names besides the file, where its id leaves open what is wrong or what to do."""


def in_its_modes(*faults: Callable[[Attempt], None]) -> pytest.MarkDecorator:
    """These refusals, or all: in both modes where the engine decides, else in one."""
    return pytest.mark.parametrize(
        ("mode", "fault", "code", "error"),
        [
            pytest.param(mode, *refusal, id=f"{refusal[0].__name__}-{mode}")
            for refusals, modes in ((WHATEVER_IT_HOLDS, ["sqlite"]), (BY_ITS_PAGES, ["sqlite", "sqlcipher"]))
            for refusal in refusals
            for mode in modes
            if not faults or refusal[0] in faults
        ],
    )


def check_refused(attempt: Attempt, code: int, error: str, *args: str, values: Sequence[str] = ()) -> None:
    """The attempt ends with that code and one of those ids, names these values, and nothing has changed."""
    before = everything(attempt.shop)
    done = attempt.run(*args)
    assert done.code == code, done.text
    assert done.error["id"] in error.split("|"), done.text
    assert [value for value in values if value not in f"{done.error['message']} {done.error['hint']}"] == []
    assert "Nothing was touched" in done.err
    assert "Traceback" not in done.err
    assert everything(attempt.shop) == before


@in_its_modes()
def test_nothing_changes_for(
    make_attempt: Callable[[str], Attempt], mode: str, fault: Callable[[Attempt], None], code: int, error: str
) -> None:
    attempt = make_attempt(mode)
    fault(attempt)
    check_refused(attempt, code, error, values=VALUES.get(fault, ()))


# --- the mode, and the database's own passphrase ---------------------------------------------------------------------


def test_names_in_a_backup_cannot_steer_the_terminal(make_shop: MakeShop, mode: str) -> None:
    shop = make_shop(mode, PGP_PUBLIC_KEY_BASE64=None)
    fake = "✅ Database restored successfully"
    name = f"x\x1b[2J\x9b2J\r\n{fake}"
    with closing(shop.connect()) as connection:
        connection.execute(f'CREATE TABLE "{name}" (a)')
        connection.execute(f'CREATE INDEX "{name} by a" ON "{name}" (a)')
    backup = shop.create_backup()
    with closing(shop.connect()) as connection:
        connection.execute(f'DROP TABLE "{name}"')
    compared = shop.restore(backup, "--verify-only")
    dump = shop.backups / "dump.db"
    dump.write_text(f'BEGIN; CREATE TABLE "{name}" (a REFERENCES "{name}2" (a)); CREATE TABLE "{name}2" (a UNIQUE);'
                    f'INSERT INTO "{name}" VALUES (1); COMMIT;')  # fmt: skip
    loaded = shop.restore(dump, "--verify-only")
    for file, kind, changed in (("odd", "table", "(a NOT NULL, b NOT NULL)"), ("damaged", "index", "(a DESC)")):
        with closing(shop.connect(shop.path / f"{file}.db")) as connection:
            connection.execute(f'CREATE TABLE "{name}" (a)')
            connection.execute(f'CREATE INDEX "{name} by a" ON "{name}" (a)')
            connection.execute(f'INSERT INTO "{name}" VALUES (1), (2)')
            connection.execute("PRAGMA writable_schema=ON")
            replacing = "UPDATE sqlite_master SET sql = replace(sql, '(a)', ?) WHERE type = ?"
            connection.execute(replacing, (changed, kind))
    odd, damaged = (shop.restore(f"{file}.db", "--verify-only") for file in ("odd", "damaged"))
    for done, code in ((compared, 0), (loaded, 0), (odd, 0), (damaged, 5)):
        assert done.code == code, done.text
        assert fake[:20] in done.err  # where there is little room, no more is shown of it
        assert not [line for line in done.err.splitlines() if line.startswith(fake)], done.text
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.out + done.err)


def test_wrong_database_passphrase_changes_nothing(make_attempt: Callable[[str], Attempt]) -> None:
    attempt = make_attempt("sqlcipher")
    attempt.env = {"DB_PASS": "wrong"}
    check_refused(attempt, 5, "wrong-db-pass", values=["DB_PASS"])


def test_plaintext_backup_is_refused_where_the_database_is_encrypted(
    make_attempt: Callable[[str], Attempt], make_shop: MakeShop
) -> None:
    attempt = make_attempt("sqlcipher")
    attempt.pack(make_shop("sqlite").db_path.read_bytes())
    check_refused(attempt, 5, "convert-required", values=["SQLite", "--convert", "DB_ENCRYPTION=false"])


def test_encrypted_database_is_refused_where_the_database_is_plain(
    make_attempt: Callable[[str], Attempt], make_shop: MakeShop
) -> None:
    attempt = make_attempt("sqlite")
    attempt.pack(make_shop("sqlcipher").db_path.read_bytes())
    check_refused(attempt, 5, "not-a-database", values=["SQLCipher", "--convert", "DB_ENCRYPTION=true"])


# --- the same in other orders, without encryption, and without a restore ---------------------------------------------

IN_EVERY_ORDER = in_its_modes(
    wrong_key, wrong_passphrase, flipped_bit_at_the_end, bad_crc, empty_database, one_page_short
)


@IN_EVERY_ORDER
def test_verify_only_refuses_with_the_same_code_and_error(
    make_attempt: Callable[[str], Attempt], mode: str, fault: Callable[[Attempt], None], code: int, error: str
) -> None:
    attempt = make_attempt(mode)
    fault(attempt)
    check_refused(attempt, code, error, "--verify-only")


@IN_EVERY_ORDER
def test_stop_first_keeps_code_error_and_database(
    make_attempt: Callable[[str], Attempt], mode: str, fault: Callable[[Attempt], None], code: int, error: str
) -> None:
    attempt = make_attempt(mode)
    fault(attempt)
    rows, inode = attempt.shop.rows(), attempt.shop.db_path.stat().st_ino
    done = attempt.run("--stop-first")
    assert done.ended == (code, error), done.text
    assert "Traceback" not in done.err
    assert attempt.shop.rows() == rows
    assert attempt.shop.db_path.stat().st_ino == inode
    assert {path.name.removesuffix("-wal").removesuffix("-shm") for path in attempt.shop.db_path.parent.iterdir()} == {
        "shop.db"
    }


UNENCRYPTED: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("truncated.db.gz", lambda database: gzip.compress(database)[:-1000], "damaged-gzip"),
    ("garbage.db.gz", lambda database: gzip.compress(database) + b"x", "damaged-gzip"),
    ("short.db", lambda database: database[:-PAGE], "damaged-database"),
    ("long.db", lambda database: database + bytes(PAGE), "damaged-database"),
    ("empty.db", lambda _: b"", "empty-backup"),
    ("one-byte.db", lambda _: b"S", "not-a-database"),
    ("header-only.db", lambda database: database[:100], "not-a-database|damaged-database"),
]
ENGINE_DECIDES = ("short.db", "long.db", "header-only.db")


@pytest.mark.parametrize(
    ("mode", "name", "spoil", "error"),
    [
        pytest.param(mode, *case, id=f"{case[0]}-{mode}")
        for case in UNENCRYPTED
        for mode in (("sqlite", "sqlcipher") if case[0] in ENGINE_DECIDES else ("sqlite",))
    ],
)
def test_unencrypted_backup_that_is_not_sound_changes_nothing(
    make_attempt: Callable[[str], Attempt], mode: str, name: str, spoil: Callable[[bytes], bytes], error: str
) -> None:
    attempt = make_attempt(mode)
    attempt.key = None
    attempt.backup = attempt.shop.backups / name
    attempt.backup.write_bytes(spoil(attempt.database))
    check_refused(attempt, 5, error)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS id, 'x' AS a FROM n ORDER BY -i"


def test_larger_than_the_setting_allows_is_refused_naming_it(make_shop: MakeShop, keys: Keys) -> None:
    shop = make_shop("sqlite", MAX_DATABASE_MB="1")
    with closing(shop.connect()) as connection:
        connection.execute("CREATE TABLE big AS SELECT zeroblob(2000000)")
    encrypted = shop.create_backup()
    shop.write_env(PGP_PUBLIC_KEY_BASE64=None)
    plain = shop.create_backup()
    before = everything(shop)
    for done in (
        shop.restore(encrypted, "--verify-only", key=keys.rsa),
        shop.restore(plain, "--verify-only"),
        shop.run("database_backup.py", "verify", plain),
    ):
        assert done.code == 5, done.text
        assert done.error["id"] in ("too-large", ""), done.text  # the second command has no --json
        assert "1.0 MB" in done.err
        assert "MAX_DATABASE_MB" in done.err
    assert everything(shop) == before


def test_view_without_end_is_not_read(make_shop: MakeShop, keys: Keys) -> None:
    """Anybody who has the public key can make a backup; this one's full-text index takes its rows from a view."""
    shop = make_shop("sqlite")
    with closing(shop.connect()) as connection:
        connection.execute(f"CREATE VIEW endless AS {ENDLESS}")
        connection.execute("CREATE VIRTUAL TABLE trap USING fts5(a, content='endless', content_rowid='id')")
    backup = shop.create_backup()
    done = shop.restore(backup, "--verify-only", "--json", key=keys.rsa)
    assert done.code == 0, done.text
    assert json.loads(done.out)["tables"]["trap"] == {"live": None, "backup": None}


@pytest.mark.deep
def test_check_that_takes_long_can_be_left(make_shop: MakeShop) -> None:
    """A signal comes through while SQLite computes."""
    shop = make_shop("sqlite")
    backup = shop.backups / "slow.db"
    writer.make_slow_to_check(str(backup))
    with shop.start_restore(backup, "--force") as process:
        while cpu_time(process.pid) < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "SIGINT" in err


# --- what is asked of the command line -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (["--no-such-option"], "--no-such-option"),
        (["a.gpg", "b.gpg"], "b.gpg"),
        (["a.gpg", "--passphrase-fd", "three"], "--passphrase-fd"),
        (["a.gpg", "--passphrase-fd", "3", "--passphrase-command", "true"], "--passphrase-command"),
        (["a.gpg", "--key-stdin", "--passphrase-fd", "0"], "--passphrase-fd"),
    ],
)
def test_usage_errors_are_2_and_name_the_option(make_shop: MakeShop, args: list[str], option: str) -> None:
    shop = make_shop("sqlite")
    before = everything(shop)
    done = shop.restore(*args)
    assert done.ended == (2, "usage"), done.text
    assert option in done.error["message"]
    assert everything(shop) == before


def test_without_a_terminal_and_without_force_it_is_refused_before_anything_is_decrypted(
    make_attempt: Callable[[str], Attempt],
) -> None:
    attempt = make_attempt("sqlite")
    before = everything(attempt.shop)
    done = attempt.shop.restore(attempt.backup, key=attempt.key)
    assert done.ended == (3, "no-terminal"), done.text
    assert "--force" in done.error["hint"]
    assert "Decrypting" not in done.err
    assert everything(attempt.shop) == before


def test_without_a_terminal_and_without_a_file_it_is_refused(make_attempt: Callable[[str], Attempt]) -> None:
    attempt = make_attempt("sqlite")
    done = attempt.shop.restore("--force", key=attempt.key)
    assert done.ended == (3, "no-terminal"), done.text
    assert "--list" in done.error["hint"]


@pytest.mark.parametrize(
    "source",
    [
        ["--passphrase-fd", "77"],
        ["--passphrase-command", "false"],
        ["--passphrase-command", "no-such-command-anywhere"],
    ],
)
def test_passphrase_source_that_fails_is_refused_by_name(
    make_attempt: Callable[[str], Attempt], source: list[str]
) -> None:
    attempt = make_attempt("sqlite")
    wrong_passphrase(attempt)
    before = everything(attempt.shop)
    done = attempt.shop.restore(
        attempt.backup, "--force", "--key-stdin", *source, stdin=attempt.keys.rsa.private_b64.encode()
    )
    assert done.ended == (3, "no-passphrase"), done.text
    assert source[1] in done.error["message"]
    assert everything(attempt.shop) == before


def test_database_that_a_process_holds_open_is_refused_and_the_process_named(
    make_attempt: Callable[[str], Attempt], mode: str
) -> None:
    attempt = make_attempt(mode)
    with attempt.shop.held_open() as holder:
        before = attempt.shop.snapshot()
        for args in ((), ("--no-restart",)):
            done = attempt.run(*args)
            assert done.ended == (3, "database-in-use"), done.text
            assert f"pid {holder.pid}" in done.error["message"]
            assert attempt.shop.snapshot() == before


def test_compose_file_is_not_asked_for_when_the_backup_is_refused(make_attempt: Callable[[str], Attempt]) -> None:
    attempt = make_attempt("sqlite")
    attempt.shop.write_env(RUNTIME_ENVIRONMENT=None)
    missing_file(attempt)
    check_refused(attempt, 3, "backup-not-found")


def test_neither_environment_nor_compose_file_is_refused_with_the_ways_out(
    make_attempt: Callable[[str], Attempt],
) -> None:
    attempt = make_attempt("sqlite")
    attempt.shop.write_env(RUNTIME_ENVIRONMENT=None)
    check_refused(attempt, 3, "unusable-compose-file", values=["RUNTIME_ENVIRONMENT", "--compose-file", "--no-restart"])
    attempt.shop.write_env(RUNTIME_ENVIRONMENT="DEV")
    check_refused(attempt, 3, "unusable-compose-file", values=["docker-compose.dev.yml"])
