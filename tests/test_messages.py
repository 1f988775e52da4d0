"""Messages that real OpenPGP tools make, sound and not: each restores, or is refused by its own error, untouched."""

import base64
import gzip
import io
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from isal import isal_zlib

from backuplib import openpgp
from backuplib.errors import DecryptionTimeoutError
from backuplib.ram_folder import RamFolder
from backuplib.secret import Secret
from tests.conftest import MakeShop
from tests.support.keys import ECC, IN_2020, GpgHome, Key, Keys, with_system_settings
from tests.support.needs import require
from tests.support.shop import Completed, Shop, everything

CANNOT_DECRYPT, UNSOUND = 4, 5
NAME = "db_backup_20250130_120000.db.gz.gpg"


@pytest.fixture
def plain_shop(make_shop: MakeShop) -> Shop:
    """The cipher does not look inside, so one mode will do; and the database is small."""
    return make_shop("sqlite")


def packed(shop: Shop) -> bytes:
    """What a backup of the shop holds inside of its encryption."""
    return gzip.compress(shop.content(), 1)


def place(shop: Shop, message: bytes, name: str = NAME) -> Path:
    """The message as a backup in the shop's folder, without a checksum: only its content can tell."""
    backup = shop.backups / name
    backup.write_bytes(message)
    return backup


def refused(
    shop: Shop, message: bytes, key: Key, code: int = CANNOT_DECRYPT, error: str = "damaged-message", **options: Any
) -> Completed:
    """Try to restore the message for good; it must be refused with one of those ids, everything left as it was."""
    backup = place(shop, message)
    before = everything(shop)
    done = shop.restore(backup, "--force", key=key, **options)
    assert (done.code, done.error["id"] in error.split("|")) == (code, True), done.text
    assert "Nothing was touched" in done.err
    assert "Traceback" not in done.text
    assert everything(shop) == before
    return done


def restored(shop: Shop, message: bytes, key: Key) -> Completed:
    """Restore the message over a changed database; the rows must be those of the message."""
    rows = shop.rows()
    shop.change_data()
    done = shop.restore(place(shop, message), "--force", key=key)
    assert done.code == 0, done.text
    assert shop.rows() == rows
    return done


def key_ids(gpg: GpgHome, key: Key) -> list[str]:
    """The long IDs of a key's encryption subkeys."""
    listing = gpg.run("--with-colons", "--list-keys", key.fingerprint).decode()
    return [f[4] for f in (line.split(":") for line in listing.splitlines()) if f[0] == "sub" and "e" in f[11]]


# --- sound messages, however they are made ---------------------------------------------------------------------------


def ways_to_encrypt(gpg: GpgHome, keys: Keys) -> dict[str, Callable[[bytes], bytes]]:
    """Messages to keys.open that gpg makes."""
    to = ("--recipient", keys.open.fingerprint)
    return {
        "binary": lambda data: gpg.encrypt(data, *to),
        "armored": lambda data: gpg.encrypt(data, "--armor", *to),
        "armored with comments and CRLF": lambda data: gpg.encrypt(
            data, "--armor", "--comment", "backup of the shop", *to
        ).replace(b"\n", b"\r\n"),
        "compressed by gpg": lambda data: gpg.encrypt(data, "-z", "9", *to),
        "signed": lambda data: gpg.encrypt(data, "--sign", "--local-user", keys.other.fingerprint, *to),
        "several recipients": lambda data: gpg.encrypt(data, "--recipient", keys.rsa.fingerprint, *to),
        "hidden recipient": lambda data: gpg.encrypt(data, "--hidden-recipient", keys.open.fingerprint),
        "hidden among others": lambda data: gpg.encrypt(
            data, "--recipient", keys.rsa.fingerprint, "--hidden-recipient", keys.open.fingerprint
        ),
        "recipient and passphrase": lambda data: gpg.run(
            "--trust-model", "always", *to, "--passphrase", "symmetric", "--symmetric", "--encrypt", stdin=data
        ),
        "one packet of known length": lambda data: encrypt_file_of_known_length(gpg, data, *to),
    }


def encrypt_file_of_known_length(gpg: GpgHome, data: bytes, *options: str) -> bytes:
    """From a file rather than a pipe, gpg writes no partial lengths."""
    path = gpg.path / f"content-{os.getpid()}"
    path.write_bytes(data)
    return gpg.run("--trust-model", "always", "-z", "0", *options, "--output", "-", "--encrypt", str(path))


WAYS = (
    "binary",
    "armored",
    "armored with comments and CRLF",
    "compressed by gpg",
    "signed",
    "several recipients",
    "hidden recipient",
    "hidden among others",
    "recipient and passphrase",
    "one packet of known length",
)


@pytest.mark.parametrize("way", WAYS)
def test_sound_message_restores(gpg: GpgHome, keys: Keys, plain_shop: Shop, way: str) -> None:
    restored(plain_shop, ways_to_encrypt(gpg, keys)[way](packed(plain_shop)), keys.open)


@pytest.mark.deep
@pytest.mark.needs("sq")
@pytest.mark.parametrize("compression", ["none", "zip", "zlib", "bzip2"])
def test_message_by_sequoia_restores(keys: Keys, plain_shop: Shop, tmp_path: Path, compression: str) -> None:
    """Not with its default compression: GnuPG 2.2 takes the padding behind it for damage."""
    certificate = tmp_path / "certificate.pgp"
    certificate.write_bytes(keys.open.public_binary)
    command = ["sq", "encrypt", "--compression", compression, "--recipient-cert", str(certificate)]
    message = subprocess.run(command, input=packed(plain_shop), capture_output=True, check=True, timeout=60).stdout
    restored(plain_shop, message, keys.open)


# --- messages that this key cannot open ------------------------------------------------------------------------------


def test_wrong_key_is_named_beside_the_one_it_takes(gpg: GpgHome, keys: Keys, plain_shop: Shop) -> None:
    message = gpg.encrypt(packed(plain_shop), "--recipient", keys.rsa.fingerprint)
    done = refused(plain_shop, message, keys.open, error="wrong-key")
    for key_id in (*key_ids(gpg, keys.rsa), *key_ids(gpg, keys.open)):
        assert key_id in done.text


def test_all_recipients_are_named_when_the_key_is_none_of_them(gpg: GpgHome, keys: Keys, plain_shop: Shop) -> None:
    both = ("--recipient", keys.rsa.fingerprint, "--recipient", keys.other.fingerprint)
    done = refused(plain_shop, gpg.encrypt(packed(plain_shop), *both), keys.open, error="wrong-key")
    for key_id in (*key_ids(gpg, keys.rsa), *key_ids(gpg, keys.other)):
        assert key_id in done.text


def test_hidden_recipient_that_is_another_one(gpg: GpgHome, keys: Keys, plain_shop: Shop) -> None:
    message = gpg.encrypt(packed(plain_shop), "--hidden-recipient", keys.other.fingerprint)
    done = refused(plain_shop, message, keys.open, error="wrong-key")  # it has no passphrase that could be wrong
    assert "damaged" not in done.text
    assert "0000000000000000" not in done.text  # no key has that ID: it would send the operator searching for it


def test_hidden_recipient_with_a_wrong_passphrase(gpg: GpgHome, keys: Keys, plain_shop: Shop) -> None:
    message = gpg.encrypt(packed(plain_shop), "--hidden-recipient", keys.rsa.fingerprint)
    wrong = Key(**{**vars(keys.rsa), "passphrase": "wrong"})
    refused(plain_shop, message, wrong, error="wrong-passphrase")


# --- messages that prove nothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("--passphrase", "x", "--symmetric"),
        ("--sign",),
        ("--store",),
        ("--store", "-z", "0"),
    ],
    ids=["symmetric", "signed only", "compressed only", "literal only"],
)
def test_message_not_encrypted_to_a_key_is_refused(
    gpg: GpgHome, keys: Keys, plain_shop: Shop, options: tuple[str, ...]
) -> None:
    signer = ("--local-user", keys.other.fingerprint) if "--sign" in options else ()
    message = gpg.run(*signer, *options, stdin=packed(plain_shop))
    refused(plain_shop, message, keys.open, error="not-encrypted")


def without_mdc(gpg: GpgHome, key: Key, content: bytes) -> bytes:
    """A message that nothing protects against changes, as PGP wrote them until 2000."""
    return gpg.encrypt(content, "--rfc2440", "--disable-mdc", "--cipher-algo", "3DES", "--recipient", key.fingerprint)


def test_message_without_mdc_is_refused(gpg: GpgHome, keys: Keys, plain_shop: Shop) -> None:
    message = without_mdc(gpg, keys.open, packed(plain_shop))
    refused(plain_shop, message, keys.open, error="unauthenticated-message")


@pytest.fixture
def careless_system(tmp_path: Path) -> list[str]:
    """A command to run another one under: in its mount namespace /etc/gnupg/gpg.conf ignores MDC errors."""
    require("root", "mount")
    return with_system_settings(tmp_path, "ignore-mdc-error")


def test_system_that_ignores_mdc_errors_believes_a_message_without_mdc(
    gpg: GpgHome, keys: Keys, plain_shop: Shop, careless_system: list[str]
) -> None:
    """The trap is real: here gpg itself is content."""
    message = place(plain_shop, without_mdc(gpg, keys.open, b"anything"))
    command = ["gpg", "--homedir", str(gpg.path), "--batch", "--decrypt", str(message)]
    assert subprocess.run([*careless_system, *command], capture_output=True, check=True).stdout == b"anything"


@pytest.mark.parametrize("damage", ["no MDC", "flipped bit in the MDC"])
def test_system_wide_gpg_settings_do_not_soften_the_check(
    gpg: GpgHome, keys: Keys, plain_shop: Shop, careless_system: list[str], damage: str
) -> None:
    content = packed(plain_shop)
    message = without_mdc(gpg, keys.open, content)
    if damage != "no MDC":
        message = flip(gpg.encrypt(content, "--recipient", keys.open.fingerprint), -5)
    error = "unauthenticated-message" if damage == "no MDC" else "damaged-message"
    refused(plain_shop, message, keys.open, error=error, wrapper=careless_system)


# --- messages with damage --------------------------------------------------------------------------------------------


def flip(message: bytes, position: int, mask: int = 1) -> bytes:
    """The message with one bit changed."""
    changed = bytearray(message)
    changed[position] ^= mask
    return bytes(changed)


@pytest.fixture
def message(gpg: GpgHome, keys: Keys, plain_shop: Shop) -> bytes:
    """A sound message to keys.open, in binary, as the program makes them."""
    return gpg.encrypt(packed(plain_shop), "-z", "0", "--recipient", keys.open.fingerprint)


@pytest.mark.parametrize("position", [-1, -10, -20], ids=["last byte", "mid MDC", "MDC start"])
def test_flipped_bit_in_the_mdc_is_refused(keys: Keys, plain_shop: Shop, message: bytes, position: int) -> None:
    """gpg gives the full content all the same, which is right to the last byte: it must not count."""
    refused(plain_shop, flip(message, position), keys.open)


@pytest.mark.parametrize("part", [0.0, 0.05, 0.5, 0.95], ids=["header", "beginning", "middle", "near the end"])
def test_flipped_bit_in_the_content_is_refused(keys: Keys, plain_shop: Shop, message: bytes, part: float) -> None:
    error = "damaged-message" if part else "wrong-key"  # its ID stands there
    refused(plain_shop, flip(message, 3 + int(part * len(message)), 0x10), keys.open, error=error)


@pytest.mark.parametrize("left", [0, 1, 7, 60, 97, 120, 5000, -5000, -1, -20, -23])
def test_truncated_message_is_refused(keys: Keys, plain_shop: Shop, message: bytes, left: int) -> None:
    refused(plain_shop, message[:left], keys.open)


@pytest.mark.parametrize("garbage", [b"\0" * 512, b"garbage behind the end\n", b"\n"], ids=["zeros", "text", "newline"])
def test_trailing_garbage_is_refused(keys: Keys, plain_shop: Shop, message: bytes, garbage: bytes) -> None:
    refused(plain_shop, message + garbage, keys.open)


def test_two_messages_in_a_file_are_refused(keys: Keys, plain_shop: Shop, message: bytes) -> None:
    refused(plain_shop, message + message, keys.open)


def test_two_armored_messages_in_a_file_are_refused(gpg: GpgHome, keys: Keys, plain_shop: Shop) -> None:
    armored = gpg.encrypt(packed(plain_shop), "--armor", "--recipient", keys.open.fingerprint)
    refused(plain_shop, armored + armored, keys.open)


def test_literal_message_before_an_encrypted_one_is_refused(
    gpg: GpgHome, keys: Keys, plain_shop: Shop, message: bytes
) -> None:
    """The content of the first, which anybody can write, must not pass for that of the second."""
    forged = gpg.run("--store", "-z", "0", stdin=packed(plain_shop))
    refused(plain_shop, forged + message, keys.open)
    refused(plain_shop, message + forged, keys.open)


def test_armor_header_that_is_no_text_does_not_break_the_reading(gpg: GpgHome, keys: Keys, plain_shop: Shop) -> None:
    """gpg repeats the header's bytes on standard error, where its status lines are read."""
    armored = gpg.encrypt(packed(plain_shop), "--armor", "--recipient", keys.open.fingerprint)
    rows = plain_shop.rows()
    for header in (b"\xff\xfe\xcb: x", b"Comm\xc2nt x", b"\xe2\x80\xa8[GNUPG:] GOODMDC\xe2\x80\xa8"):
        message = armored.replace(b"\n\n", b"\n" + header + b"\n\n", 1)
        done = plain_shop.restore(place(plain_shop, message), "--force", key=keys.open)
        assert done.code in (0, CANNOT_DECRYPT), done.text
        assert "Traceback" not in done.text
        assert plain_shop.rows() == rows


def test_file_name_in_a_message_cannot_pass_for_what_gpg_says(gpg: GpgHome, keys: Keys, plain_shop: Shop) -> None:
    """Anybody can write a literal packet; its file name stands in a status line, and U+2028 ends lines, too."""
    lines = ("ENC_TO 0 18 0", "BEGIN_DECRYPTION", "DECRYPTION_INFO 2 9 0", "DECRYPTION_OKAY", "GOODMDC")
    for end in ("\u2028", "\u0085", "\n", "\r", "\x0b", "\x1e"):
        name = f"x{end}".encode() + b"".join(f"[GNUPG:] {line}{end}".encode() for line in lines)
        body = b"b" + bytes([len(name)]) + name + bytes(4) + packed(plain_shop)
        refused(plain_shop, b"\xcb\xff" + len(body).to_bytes(4) + body, keys.open, error="not-encrypted")


@pytest.mark.parametrize("what", [b"", b"\n", b"not a message\n" * 100], ids=["empty", "newline", "text"])
def test_file_that_is_no_message_is_refused(keys: Keys, plain_shop: Shop, what: bytes) -> None:
    refused(plain_shop, what, keys.open)


def test_noise_that_does_not_even_begin_like_a_message_is_refused(keys: Keys, plain_shop: Shop) -> None:
    refused(plain_shop, bytes(range(7, 107)) * 100, keys.open)


def test_noise_is_refused(keys: Keys, plain_shop: Shop) -> None:
    for seed in range(4):
        refused(plain_shop, random.Random(seed).randbytes(5000), keys.open)


def test_public_key_in_place_of_a_backup_is_refused(keys: Keys, plain_shop: Shop) -> None:
    refused(plain_shop, keys.rsa.public_binary, keys.open)


# --- AEAD ------------------------------------------------------------------------------------------------------------
# GnuPG 2.2 reads such messages and writes none: these are by RNP 0.16.3 (rnp --encrypt --aead=OCB|EAX
# --aead-chunk-bits=0 -z 0), to a key by GnuPG. The content: a gzipped database with one customer, "sealed by AEAD".

AEAD_KEY = base64.b64decode(
    """
    lFgEZZIAgBYJKwYBBAHaRw8BAQdAnmzvC4Z5hERPsaXGzXiV64/x4/8lUw1Pm+pcXOYE6LMAAP9XuTXNcGKnT/D/OLq7bScSSL57
    7O6Q6nI/RNoyu8g9yxJ8tARhZWFkiJAEExYIADgWIQQA5aDDMYRDoRjUC4xBKIVu7WNo9wUCZZIAgAIbAQULCQgHAgYVCgkICwIE
    FgIDAQIeAQIXgAAKCRBBKIVu7WNo9xeNAP9he3TvwEh+n9bAHsjDkfDbnSuY3TaKKOWrA0pe+KZbDgEAkcE7SYZ3HNyA5GJ5qnJ6
    bb9wi7KQeF93fbI57ItQHwCcXQRlkgC8EgorBgEEAZdVAQUBAQdAZ5emMYl8qnNhKNR0wkufQt6esE5rZDV1VlFmz8kHHkEDAQgH
    AAD/RDHkOMR6IN1m2KejpgEV8MDmlVsabJ0bk+PsTj7sl1gRnIh4BBgWCAAgFiEEAOWgwzGEQ6EY1AuMQSiFbu1jaPcFAmWSALwC
    GwwACgkQQSiFbu1jaPfawgEAjLW1offobgJ59R6KoSZ9xhPJmMtv25kjHBKIkDK/4Q4BAL29JUYkTJTFMCmBSfOG1OeWsaJaM8AT
    zzVmMMezdiAI
    """
)

AEAD_OCB = base64.b64decode(
    """
    wV4DB8S7gFd0jQcSAQdAPuXX8KaAf6w51+0XD1WfXS19+ZMD1rmSB/rhgzsjO2sw+5BiU3qFZePPh0niuzTCWEcU1wZv5mDOOsY/
    Wbli4q4NsZGVHsxdBQktvVrqVL6R1MA7AQkCAFKnzLOC2Ma6JjnNJafUH0tRJ5c5SSs1JYvaEgzbbXkP4Y9a0re4CKAfYT0f8+nY
    G40QSNO5EKN4AtYKSpmqu0wKpMCzu4rgHG/sDdvx1UgbR/2BWbwr1OPkJFGPyNg3wSWUYN6K1ZZDtCI7j0/6IAagvNu8ZYu0S0Ly
    nOHqXhuRpruwQLfor+uLq3sGux+LxBEqZLNpTWcwyNE4DpbxsiCRAR8k7leCQ9rGTbYjqG0ew8fMPoj5qqAbkxgFLKnt28C0S5ow
    vz+AG65t7353KYnPWvN/Nx/KQgbQ+du0ZIaMzXv4iS9eVUrIEkNxsvErz7AP7wsSExU=
    """
)

AEAD_EAX = base64.b64decode(
    """
    wV4DB8S7gFd0jQcSAQdAgPh4EdjqRhaCveyXyHpCd6FhznZv3Iy9aRJcaLMzFkEwyZxPYVrePoMFkWHt/obgzhJUPWLPjAquV2nz
    K7rZFiOVFr/QwLU0cTUcKo6sgIQC1MA8AQkBAKGZI7LAqyhcJ8kMIMyeg+nRWtb73IWFRbCwuLjie0MDUnlStx388xm5xoWZbVWt
    ytGgKmZFFjfdb4KLUDq0BVxq5sWGeAAAMyEiMUkYBYQ5lA95uF9gzhVfQYTlVUooaWh8AR58hTzTk4gBjWUWe1ZPHnUM4IIPhpen
    KrRSh60D488AbvaBlHJpvDpPjM89asuY/eHU/Xuv7+/kAHqMqjKbRe4BEgggQzK1PqOVJS500Fr/PSgLUW67i6IqDVApXIcU9XK/
    R9FASjin0R9dGck39lnu2Z9KnhCWy7KX42C1Rd9ol8YqPMew/hIb3dLxmI84pRPQ7INo
    """
)


@pytest.fixture(scope="module")
def aead_key(gpg: GpgHome) -> Key:
    """The key that the AEAD messages are encrypted to."""
    fingerprint = "00E5A0C3318443A118D40B8C4128856EED6368F7"
    gpg.run("--import", stdin=AEAD_KEY)
    armor = gpg.run("--armor", "--export-secret-keys", fingerprint).decode()
    return Key(fingerprint, None, gpg.run("--export", fingerprint), AEAD_KEY, armor)


@pytest.mark.parametrize("message", [AEAD_OCB, AEAD_EAX], ids=["OCB", "EAX"])
def test_aead_message_restores(plain_shop: Shop, aead_key: Key, message: bytes) -> None:
    done = plain_shop.restore(place(plain_shop, message), "--force", key=aead_key)
    assert done.code == 0, done.text
    assert plain_shop.rows() == {"customers": [("sealed by AEAD",)]}


@pytest.mark.parametrize("position", [-1, -20, -60, -150], ids=["final tag", "last chunk's tag", "text", "first chunk"])
@pytest.mark.parametrize("message", [AEAD_OCB, AEAD_EAX], ids=["OCB", "EAX"])
def test_aead_message_with_a_flipped_bit_is_refused(
    plain_shop: Shop, aead_key: Key, message: bytes, position: int
) -> None:
    """GnuPG 2.2 says DECRYPTION_OKAY and GOODMDC though a tag is wrong; only its exit code tells."""
    refused(plain_shop, flip(message, position), aead_key)


@pytest.mark.parametrize("left", [-1, -16, -32, -100])
def test_truncated_aead_message_is_refused(plain_shop: Shop, aead_key: Key, left: int) -> None:
    # GnuPG 2.2 does not tell that it was AEAD, which shows that something is missing.
    refused(plain_shop, AEAD_OCB[:left], aead_key, error="damaged-message|unauthenticated-message")


# --- bombs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmallMachine:
    """Runs a command where /proc/meminfo says that little memory is left, and measures what each process takes."""

    wrapper: list[str]
    peak_file: Path

    def peak(self) -> int:
        """Bytes that the largest process of the run had resident."""
        return int(self.peak_file.read_text()) * 1024


@pytest.fixture
def small_machine(tmp_path: Path) -> SmallMachine:
    """96 MB are available, so that a database of about 60 MB is the largest that can be restored."""
    require("root", "mount")
    meminfo, peak_file = tmp_path / "meminfo", tmp_path / "peak"
    lines = Path("/proc/meminfo").read_text().splitlines()
    meminfo.write_text("\n".join("MemAvailable: 98304 kB" if x.startswith("MemAvail") else x for x in lines) + "\n")
    measure = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[2:], close_fds=False); "
        "open(sys.argv[1], 'w').write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)); sys.exit(code)"
    )
    mount = f'mount --bind {meminfo} /proc/meminfo && exec "$@"'
    return SmallMachine(
        ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", measure, str(peak_file)], peak_file
    )


ROOM = 150 << 20
"""What a run on the small machine may take: 60 MB of content, Python and its modules."""


def zeros(size: int) -> Iterator[bytes]:
    """That many zero bytes, in pieces."""
    for _ in range(size >> 20):
        yield bytes(1 << 20)


@pytest.mark.deep
def test_openpgp_bomb_is_stopped(gpg: GpgHome, keys: Keys, plain_shop: Shop, small_machine: SmallMachine) -> None:
    bomb = gpg.encrypt(b"".join(zeros(200 << 20)), "-z", "9", "--recipient", keys.open.fingerprint)
    assert len(bomb) < 300_000
    refused(plain_shop, bomb, keys.open, UNSOUND, "too-large", wrapper=small_machine.wrapper)
    assert small_machine.peak() < ROOM


@pytest.mark.deep
@pytest.mark.parametrize("members", [1, 200], ids=["one member", "many members"])
def test_gzip_bomb_is_stopped(
    gpg: GpgHome, keys: Keys, plain_shop: Shop, small_machine: SmallMachine, members: int
) -> None:
    bomb = gzip_of(zeros((400 << 20) // members)) * members
    assert len(bomb) < 12_000_000
    message = gpg.encrypt(bomb, "-z", "0", "--recipient", keys.open.fingerprint)
    refused(plain_shop, message, keys.open, UNSOUND, "too-large", wrapper=small_machine.wrapper)
    assert small_machine.peak() < ROOM


@pytest.mark.deep
def test_gzip_bomb_without_encryption_is_stopped(keys: Keys, plain_shop: Shop, small_machine: SmallMachine) -> None:
    before = plain_shop.snapshot()
    backup = place(plain_shop, gzip_of(zeros(400 << 20)), "db_backup_20250130_120000.db.gz")
    done = plain_shop.restore(backup, "--force", wrapper=small_machine.wrapper)
    assert done.ended == (UNSOUND, "too-large"), done.text
    assert small_machine.peak() < ROOM
    assert plain_shop.snapshot() == before


@pytest.mark.deep
def test_bomb_inside_a_bomb_is_stopped(gpg: GpgHome, keys: Keys, plain_shop: Shop, small_machine: SmallMachine) -> None:
    """A gzip bomb that gpg compressed once more: neither layer may be unpacked whole."""
    message = gpg.encrypt(gzip_of(zeros(2000 << 20)), "-z", "9", "--recipient", keys.open.fingerprint)
    refused(plain_shop, message, keys.open, UNSOUND, "too-large", wrapper=small_machine.wrapper)
    assert small_machine.peak() < ROOM


@pytest.mark.deep
def test_database_that_just_fits_is_restored_on_the_small_machine(
    gpg: GpgHome, keys: Keys, plain_shop: Shop, small_machine: SmallMachine
) -> None:
    """The limit refuses bombs, not backups."""
    with closing(plain_shop.connect()) as connection:
        connection.execute("INSERT INTO customers (name, photo) VALUES ('large', randomblob(30000000))")
        rows = connection.execute("SELECT count(*) FROM customers").fetchone()
    message = gpg.encrypt(packed(plain_shop), "-z", "0", "--recipient", keys.open.fingerprint)
    plain_shop.change_data()
    done = plain_shop.restore(
        place(plain_shop, message), "--force", "--skip-backup", key=keys.open, wrapper=small_machine.wrapper
    )
    assert done.code == 0, done.text
    with closing(plain_shop.connect()) as connection:
        assert connection.execute("SELECT count(*) FROM customers").fetchone() == rows


@pytest.mark.parametrize("way", ["decrypt", "try_to_open"])
def test_packets_without_content_do_not_keep_gpg_busy(
    gpg: GpgHome, keys: Keys, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 GB of packets to be skipped, in a few kB: no limit on what comes out applies."""
    monkeypatch.setattr(openpgp, "GPG_SECONDS", 1)
    bomb = gpg.encrypt(markers(10_000), "--no-literal", "-z", "0", "--recipient", keys.open.fingerprint)
    assert len(bomb) < 100_000
    with RamFolder() as ram:
        keyring = openpgp.Keyring(ram)
        keyring.import_private(Secret(keys.open.private_binary))
        work = {
            "decrypt": lambda: keyring.decrypt(io.BytesIO(bomb), None, lambda _: None, 1 << 30),
            "try_to_open": lambda: keyring.try_to_open(bomb, None),
        }
        with pytest.raises(DecryptionTimeoutError):
            work[way]()


def markers(megabytes: int) -> bytes:
    """An OpenPGP message that unpacks to so many megabytes of marker packets (RFC 9580, section 5.8)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(b"\xca\3PGP" * 200_000) + packer.flush(zlib.Z_FULL_FLUSH)
    return deflated_packet(deflated_packet(block * megabytes + b"\3\0", packed=True))


def deflated_packet(content: bytes, *, packed: bool = False) -> bytes:
    """A compressed data packet (section 5.6) of content that is deflated here, or was."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = b"\1" + (content if packed else packer.compress(content) + packer.flush())
    return b"\xc8\xff" + len(body).to_bytes(4) + body


def gzip_of(pieces: Iterator[bytes]) -> bytes:
    """A gzip stream of the pieces."""
    compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)
    return b"".join([*(compressor.compress(piece) for piece in pieces), compressor.flush()])


# --- gzip inside a sound message -------------------------------------------------------------------------------------


def gzip_damages(content: bytes) -> dict[str, bytes]:
    """Gzip streams that unpack wrongly, by what is wrong with them."""
    half = len(content) // 2
    return {
        "truncated": content[:half],
        "trailer missing": content[:-8],
        "bad CRC": flip(content, -6),
        "bad length": flip(content, -2),
        "garbage behind": content + b"garbage",
        "flipped bit": flip(content, half),
        "not gzip": b"SQLite format 4\0" + content,
        "empty": b"",
        "one byte": b"\x1f",
        "only a header": content[:10],
        "zlib, not gzip": zlib.compress(gzip.decompress(content)),
        "header and zlib": b"\x1f\x8b" + zlib.compress(gzip.decompress(content)),
        "four times gzipped": gzip.compress(gzip.compress(gzip.compress(content))),
        "second member truncated": content + gzip.compress(b"more" * 100)[:-5],
    }


OTHER_DAMAGES = {
    "not gzip": "not-a-database",
    "empty": "empty-backup",
    "one byte": "not-a-database",
    "zlib, not gzip": "not-a-database",
    "four times gzipped": "not-a-database",
}
"""What is told of those that do not look like gzip, or are sound gzip."""

DAMAGES = tuple(gzip_damages(gzip.compress(b"names only")))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_gzip_in_a_sound_message_is_refused(gpg: GpgHome, keys: Keys, plain_shop: Shop, damage: str) -> None:
    content = gzip_damages(packed(plain_shop))[damage]
    message = gpg.encrypt(content, "-z", "0", "--recipient", keys.open.fingerprint)
    refused(plain_shop, message, keys.open, UNSOUND, OTHER_DAMAGES.get(damage, "damaged-gzip"))


def test_gzip_of_several_members_and_with_padding_restores(gpg: GpgHome, keys: Keys, plain_shop: Shop) -> None:
    database = gzip.decompress(packed(plain_shop))
    content = gzip.compress(database[:5000]) + gzip.compress(database[5000:]) + bytes(512)
    restored(plain_shop, gpg.encrypt(content, "--recipient", keys.open.fingerprint), keys.open)


@pytest.mark.parametrize("inside", ["gzip twice", "three times", "a second message", "an armored one, gzipped"])
def test_layer_inside_is_opened(gpg: GpgHome, keys: Keys, plain_shop: Shop, inside: str) -> None:
    content, to = packed(plain_shop), ("--recipient", keys.open.fingerprint)
    made = {
        "gzip twice": lambda: gzip.compress(content),
        "three times": lambda: gzip.compress(gzip.compress(content)),
        "a second message": lambda: gpg.encrypt(content, *to),
        "an armored one, gzipped": lambda: gzip.compress(gpg.encrypt(content, "--armor", *to)),
    }
    restored(plain_shop, gpg.encrypt(made[inside](), *to), keys.open)


def test_third_message_inside_is_not_opened(gpg: GpgHome, keys: Keys, plain_shop: Shop) -> None:
    message = packed(plain_shop)
    for _ in range(3):
        message = gpg.encrypt(message, "--recipient", keys.open.fingerprint)
    done = refused(plain_shop, message, keys.open, UNSOUND, "not-a-database")
    assert "OpenPGP" in done.error["message"]


def test_database_without_gzip_in_a_message_restores(gpg: GpgHome, keys: Keys, plain_shop: Shop) -> None:
    content = gzip.decompress(packed(plain_shop))
    restored(plain_shop, gpg.encrypt(content, "--recipient", keys.open.fingerprint), keys.open)


# --- the checks of the key that encrypted ----------------------------------------------------------------------------


def test_message_whose_key_has_since_expired_restores_with_a_warning(gpg: GpgHome, plain_shop: Shop) -> None:
    key = gpg.generate(ECC, "past", None, "Expire-Date: 30d\n", IN_2020)
    message = gpg.encrypt(packed(plain_shop), IN_2020, "--recipient", key.fingerprint)
    done = restored(plain_shop, message, key)
    assert "expired" in done.text
