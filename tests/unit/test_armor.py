"""Keys and messages in the dress that people, mail and chat programs give them; and how packets begin.

No gpg is run here.
"""

import base64
import contextlib
import gzip
import io
import random
import re
from collections.abc import Callable

import pytest

from backuplib.armor import (
    ArmorError,
    Unwrapped,
    _crc24,
    begins_like_key,
    begins_like_message,
    leads_to_message,
    message_in,
    unwrap,
)
from backuplib.errors import UnusableKeyError
from backuplib.openpgp import decode_private_key
from backuplib.packets import read_message
from backuplib.secret import Secret

# --- beginnings ------------------------------------------------------------------------------------------------------

HEADS = {
    "RSA": "85010c03fbcf2caaf10121060108008f686d115dbb851e74",
    "ECDH": "845e0390deedf8a92773b9120107403246efb3f58f7bfb92",
    "hidden recipient": "85010c0300000000000000000107ff4dfbfb43c2d7860675",
    "new format": "c1c04c03fbcf2caaf10121060108008f686d115dbb851e74",
    "new format, short": "c15e0390deedf8a92773b9120107403246efb3f58f7bfb92",
}
"""Of messages to a public key."""

OTHER_HEADS = {
    "passphrase": "8c0d04090302034af37d4371ce8960d25401b82c56c945c8",
    "compressed": "a3019bc0cbccc0c5e8dd734dde77bbdd52c6d3af9318b2d9",
    "literal": "cb1462006b074e3468656c6c6f20776f726c640a00000000",
}
"""Of other messages, which a database that looks like noise could be taken for."""

KEY = base64.b64decode(
    "lFgEawdONBYJKwYBBAHaRw8BAQdA9nD4q4yHYYC2BZ297cZv3scNXK8R80wcI76Vj5CTanwAAPsGBD8gVy0lIWO2iNIiXh8durdh"
    "XQglaGP5qbfLD06gfw0ktBlvdGhlciA8b3RoZXJAZXhhbXBsZS5vcmc+iJAEExYIADgWIQQsMjuxIs1p76Kw5sLIF+odk8ek+QUC"
    "awdONAIbAwULCQgHAgYVCgkICwIEFgIDAQIeAQIXgAAKCRDIF+odk8ek+SlqAQC3jIiOuIjaV6/MVbQBRSd4bSIGubEc19x3fmwV"
    "tnYMRgEA8rWAGrjTyJRW2WFzDpPPWkKE05BCGoGX3GgbSjmVNQA="
)
"""A throwaway key, as `gpg --export-secret-keys` writes it."""


def armored(data: bytes, kind: str = "PRIVATE KEY BLOCK", headers: str = "", end: str = "\n") -> bytes:
    """As gpg writes it."""
    lines = re.findall(".{1,64}", base64.b64encode(data).decode())
    checksum = base64.b64encode(_crc24(data)).decode()
    begin = f"-----BEGIN PGP {kind}-----"
    return end.join(
        [begin, *headers.splitlines(), "", *lines, f"={checksum}", f"-----END PGP {kind}-----", ""]
    ).encode()


ARMOR = armored(KEY)


@pytest.mark.parametrize("head", HEADS.values(), ids=[*HEADS])
def test_message_to_a_key_is_known_for_sure(head: str) -> None:
    assert begins_like_message(bytes.fromhex(head), sure=True)
    assert begins_like_message(bytes.fromhex(head), sure=False)


def test_message_under_an_algorithm_that_does_not_encrypt_is_not_known_for_sure() -> None:
    """A database that looks like noise may begin like one."""
    head = bytearray.fromhex(HEADS["RSA"])
    head[12] = 17  # DSA
    assert not begins_like_message(bytes(head), sure=True)


@pytest.mark.parametrize("head", OTHER_HEADS.values(), ids=[*OTHER_HEADS])
def test_other_messages_are_known_but_not_for_sure(head: str) -> None:
    assert begins_like_message(bytes.fromhex(head), sure=False)
    assert not begins_like_message(bytes.fromhex(head), sure=True)


@pytest.mark.parametrize(
    "head",
    [b"", b"\x85", b"\x85\x01\x0c\x03", b"SQLite format 3\0" * 2, b"\x1f\x8b\x08" + bytes(30), b"\xff" * 40, KEY],
)
@pytest.mark.parametrize("sure", [True, False])
def test_what_is_no_message_is_not_taken_for_one(head: bytes, sure: bool) -> None:
    assert not begins_like_message(head, sure=sure)


def test_every_beginning_is_judged_without_reading_beyond_it() -> None:
    for first in range(256):
        for second in (0, 191, 192, 223, 224, 254, 255):
            for sure in (True, False):
                begins_like_message(bytes([first, second]) + bytes(14), sure=sure)  # raises no IndexError


@pytest.mark.parametrize(
    ("raw", "like"),
    [
        (KEY, True),
        (ARMOR, False),
        (bytes.fromhex("9503c6046b074e32010800b2"), True),  # secret, RSA
        (bytes.fromhex("9833046b074e3416092b0601"), True),  # public: it is told so later on
        (b"\xc5\x58\x04", True),
        (bytes.fromhex(HEADS["RSA"]), False),
        (base64.b64encode(KEY), False),
        (b"\xc5\x58\xff", False),
        ("Őrség".encode(), False),
        (b"\x95", False),
        (b"", False),
    ],
)
def test_begins_like_key(raw: bytes, like: bool) -> None:
    assert begins_like_key(raw) is like


# --- what people give as a key ---------------------------------------------------------------------------------------

# A larger one, whose base64 has all characters; nothing looks into its second packet but at its length.
LONG = KEY + b"\xb4\xff"[:1] + b"\xfa" + random.Random(1).randbytes(250)
CODE, LONG_ARMOR = base64.b64encode(LONG), armored(LONG)
TEXT, NBSP, ZERO = LONG_ARMOR.decode(), "\xa0", "\u200b"
PUBLIC = bytes.fromhex(
    "9833046b074e3416092b06010401da470f010107400000000000000000000000000000000000000000000000000000000000000000"
)


def lines(data: bytes, columns: int, end: bytes = b"\n") -> bytes:
    return end.join(data[i : i + columns] for i in range(0, len(data), columns))


def without_checksum(armor: bytes) -> bytes:
    return re.sub(rb"\n=[^\n]{4}\n", b"\n", armor)


WRAPPINGS = {
    "binary": LONG,
    "armor": LONG_ARMOR,
    "armor with headers": armored(LONG, headers="Version: GnuPG v2\nComment: a  b -- c\nHash: SHA512"),
    "armor, CRLF": armored(LONG, end="\r\n", headers="Version: GnuPG v2"),
    "armor, CR only": armored(LONG, end="\r", headers="Version: GnuPG v2"),
    "armor, literal \\n": armored(LONG, end="\\n", headers="Version: GnuPG v2"),
    "armor, literal \\r\\n, escaped twice": armored(LONG, end="\\\\r\\\\n"),
    "armor, blanks for line breaks": armored(LONG, end=" ", headers="Version: GnuPG v2\nComment: a b"),
    "armor, two blanks for line breaks": armored(LONG, end="  ", headers="Version: GnuPG v2\nComment: a b"),
    "armor, one line": armored(LONG, end=""),
    "armor without its empty line": LONG_ARMOR.replace(b"\n\n", b"\n", 1),
    "armor, empty lines everywhere": LONG_ARMOR.replace(b"\n", b"\n\n"),
    "armor without its checksum": without_checksum(LONG_ARMOR),
    "armor without its padding": re.sub(rb"=+\n", b"\n", LONG_ARMOR, count=1),
    "armor under the head of a mail": b"From: a@example.org\nSubject: key -- keep\n\n" + LONG_ARMOR + b"\n-- \nJoe",
    "armor, byte order mark": b"\xef\xbb\xbf\r\n" + LONG_ARMOR,
    "armor, UTF-16": TEXT.encode("utf-16"),
    "armor, UTF-16 big-endian with a mark": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "armor, UTF-16 without a mark": TEXT.encode("utf-16-le"),
    "armor, quoted": re.sub(rb"(?m)^", b"> > ", LONG_ARMOR),
    "armor, indented": re.sub(rb"(?m)^", b"\t   ", LONG_ARMOR),
    "armor, indented by no-break spaces": re.sub("(?m)^", NBSP, TEXT).encode(),
    "armor, no-break spaces of Latin-1": re.sub("(?m)^", NBSP, TEXT).encode("latin-1"),
    "armor, zero-width characters": TEXT.replace("\n", f"{ZERO}\n\ufeff").encode(),
    "armor, dashes made smart": TEXT.replace("-----", "\u2014\u2014-").encode(),
    "armor, dashes of Windows-1252": TEXT.replace("--", "\u2013").encode("cp1252"),
    "armor in quotes, NAME=": b'KEY="' + LONG_ARMOR.strip() + b'"\n',
    "armor in YAML": b"key: |\n" + re.sub(rb"(?m)^", b"  ", LONG_ARMOR),
    "armor in JSON": b'{"key": "' + armored(LONG, end="\\n").replace(b"/", rb"\/") + b'", "id": 7}',
    "armor in quoted-printable": re.sub(rb"=(?=[^\n]*\n)", b"=3D", LONG_ARMOR),
    "armor under a long note": b"The key of the shop. " * 100 + b"\n" + LONG_ARMOR,
    "public block, private block": armored(PUBLIC, "PUBLIC KEY BLOCK") + LONG_ARMOR,
    "private block, public block": LONG_ARMOR + armored(PUBLIC, "PUBLIC KEY BLOCK"),
    "base64": CODE,
    "base64, wrapped at 76": lines(CODE, 76),
    "base64, wrapped at 20": lines(CODE, 20),
    "base64, wrapped at 180, CRLF": lines(CODE, 180, b"\r\n"),
    "base64, indented and blank lines": b"\n\n  " + lines(CODE, 64, b"\n\n  ") + b" \t\n\n",
    "base64 in blocks of four": lines(CODE, 4, b" "),
    "base64 without padding": CODE.rstrip(b"="),
    "base64, url-safe": CODE.translate(bytes.maketrans(b"+/", b"-_")),
    "base64 in quotes": b'"' + CODE + b'"\n',
    "base64 in smart quotes": f"\u201c{CODE.decode()}\u201d".encode(),
    "base64, NAME=": b"PGP_PRIVATE_KEY_BASE64=" + CODE + b"\n",
    "base64, export NAME=": b"export KEY_='" + CODE + b"'\n",
    "base64, key:": b"key: " + CODE + b"\n",
    "base64, data:": b"data: " + base64.b64encode(LONG_ARMOR) + b"\n",
    "base64 in YAML": b"data:\n  key: >-\n    " + lines(CODE, 64, b"\n    "),
    "base64 in JSON": b'{"key": "' + CODE.replace(b"/", rb"\/") + b'"}',
    "base64, note above": b"Key of the shop, see 1Password:\n\n" + lines(CODE, 76),
    "base64, no-break space": CODE + NBSP.encode(),
    "base64, zero-width characters": CODE[:40] + ZERO.encode() + CODE[40:],
    "base64, byte order mark": b"\xef\xbb\xbf" + CODE,
    "base64, UTF-16": CODE.decode().encode("utf-16"),
    "base64, joined to another": base64.b64encode(LONG[: len(KEY)]) + base64.b64encode(LONG[len(KEY) :]),
    "base64 of armor": base64.b64encode(LONG_ARMOR),
    "base64 of armor in UTF-16": base64.b64encode(TEXT.encode("utf-16")),
    "base64 of armor under a comment": base64.b64encode(b"a comment\n" + LONG_ARMOR),
    "base64 twice": base64.b64encode(CODE),
    "base64 twice, wrapped, of armor": base64.encodebytes(base64.encodebytes(LONG_ARMOR)),
    "certutil": b"-----BEGIN CERTIFICATE-----\r\n" + lines(CODE, 64, b"\r\n") + b"\r\n-----END CERTIFICATE-----\r\n",
    "gzip": gzip.compress(LONG_ARMOR),
    "base64 of gzip": base64.b64encode(gzip.compress(LONG)),
}


@pytest.mark.parametrize("given", WRAPPINGS.values(), ids=[*WRAPPINGS])
def test_key_is_read_whatever_it_is_wrapped_in(given: bytes) -> None:
    assert unwrap(given) == LONG


@pytest.mark.parametrize("size", [len(LONG) - 2, len(LONG) - 1, len(LONG)], ids=[0, 1, 2])
def test_armor_without_checksum_is_read_whatever_its_length(size: int) -> None:
    data = LONG[: len(KEY)] + b"\xb4" + bytes([size - len(KEY) - 2]) + LONG[len(KEY) + 2 : size]
    assert unwrap(without_checksum(armored(data))) == data


def test_several_public_keys_are_all_there() -> None:
    one = armored(PUBLIC, "PUBLIC KEY BLOCK")
    other = PUBLIC.replace(b"\x6b", b"\x6c")
    for given in (one + armored(other, "PUBLIC KEY BLOCK"), base64.b64encode(PUBLIC) + base64.b64encode(other)):
        assert unwrap(given) == PUBLIC + other


ODD = {
    "nothing": (b"", "empty"),
    "blanks": (b" \r\n\xc2\xa0", "empty"),
    "a word": (b"hunter2", "too short: 7 characters"),
    "a word with an umlaut": ("schlüssel".encode(), "too short: 9"),
    "a path": (b"/root/key.asc\n", "path"),
    "a file's name": (b"my key.b64", "path"),
    "a fingerprint": (b"0C89 1A75 C447 1757 4234  047D 4B8C D61F 4DB7 3EA5", "fingerprint"),
    "a key ID": (b"0x4B8CD61F4DB73EA5", "fingerprint"),
    "an age key": (b"AGE-SECRET-KEY-1" + b"Q" * 58, "age"),
    "an SSH key": (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + b"Q" * 70 + b" me@host", "SSH"),
    "a private SSH key": (b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END", "OPENSSH PRIVATE KEY"),
    "an age file": (b"age-encryption.org/v1\n-> X25519 " + b"Q" * 43, "age"),
    "a database": (b"SQLite format 3\0" + bytes(84), "binary"),
    "an odd character": (CODE[:40] + b"%" + CODE[40:], r"character 41 is '%'"),
    "an odd character in armor": (
        LONG_ARMOR[:100] + "é".encode() + LONG_ARMOR[100:],
        "character 101 is U\\+00E9 LATIN",
    ),
    "base64 without its beginning": (lines(CODE, 76)[77:], "does not begin like OpenPGP"),
    "cut": (CODE[:-40], "ends within a packet"),
    "cut armor": (LONG_ARMOR[:-100], "no END line"),
    "a character lost": (CODE[:80] + CODE[81:], "a character is missing"),
    "a character changed": (LONG_ARMOR.replace(b"YJKw", b"YJKx", 1), "checksum"),
    "base64 of something": (base64.b64encode(bytes(range(100))), "does not begin like OpenPGP"),
    "wrapped too often": (
        base64.b64encode(base64.b64encode(base64.b64encode(base64.b64encode(base64.b64encode(CODE))))),
        "times",
    ),
    "a gzip bomb": (gzip.compress(bytes(1 << 25)), "gzip"),
    "half a gzip": (gzip.compress(LONG)[:200], "gzip"),
}


@pytest.mark.parametrize(("given", "says"), ODD.values(), ids=[*ODD])
def test_what_is_no_key_is_refused_saying_what_is_odd(given: bytes, says: str) -> None:
    with pytest.raises(UnusableKeyError, match=says) as raised:
        decode_private_key(Secret(given))
    assert not tells(given, raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.deep
@pytest.mark.parametrize("given", [*WRAPPINGS.values(), KEY], ids=[*WRAPPINGS, "a key that is open"])
def test_mutated_wrappings_are_read_or_refused_without_a_secret(given: bytes) -> None:
    """170 mutations of each, 10,000 in all."""
    luck = random.Random(given)
    for _ in range(170):
        mutated = bytearray(given)
        for _ in range(luck.randint(1, 3)):
            at, other = sorted(luck.choices(range(len(mutated) + 1), k=2))
            piece = luck.choice([b"", luck.randbytes(luck.randint(1, 4)), luck.choice(PIECES), mutated[at:other]])
            mutated[at : luck.choice([at, at, at + 1, other])] = piece
        raw = bytes(mutated)
        refusal = None
        try:
            decode_private_key(Secret(raw))
        except UnusableKeyError as error:
            refusal = error
        assert refusal is None or not tells(raw, refusal), refusal
        with contextlib.suppress(ArmorError):
            message_read(raw)


PIECES = [
    b"\n",
    b"\r",
    b"-----",
    b"=",
    b"\\n",
    b"%",
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"-----BEGIN PGP ",
    b": ",
    b" ",
]


def tells(given: bytes, error: UnusableKeyError) -> bool:
    """Whether five characters in a row that could be secret stand in an error."""
    said = f"{error} {error.hint}"
    runs = re.findall(r"[\w+/=]{20,}", given.decode("latin-1"))
    return any(run[i : i + 5] in said for run in runs for i in range(len(run) - 4))


# --- messages --------------------------------------------------------------------------------------------------------

MESSAGE = bytes.fromhex(HEADS["RSA"]) + random.Random(4).randbytes(70_000)


def message_read(given: bytes) -> bytes:
    """Through the stream, in pieces that fit nothing."""
    stream = Unwrapped(io.BytesIO(given))
    return b"".join(iter(lambda: stream.read(10_007), b""))


@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: data,
        lambda data: armored(data, "MESSAGE"),
        lambda data: without_checksum(armored(data, "MESSAGE", headers="Version: GnuPG v2", end="\r\n")),
        lambda data: b"From: a@example.org\n\n" + armored(data, "MESSAGE") + b"\n-- \nJoe",
        lambda data: armored(data, "MESSAGE", end="\\n"),
        lambda data: armored(data, "MESSAGE", end="\r"),
        lambda data: armored(data, "MESSAGE").decode().encode("utf-16"),
        lambda data: re.sub(rb"(?m)^", b"> ", armored(data, "MESSAGE")),
        lambda data: armored(data, "MESSAGE").replace(b"--", "\u2014".encode()),
        base64.encodebytes,
        lambda data: base64.b64encode(armored(data, "MESSAGE")),
    ],
    ids=["binary", "armor", "CRLF", "mail", "literal \\n", "CR", "UTF-16", "quoted", "dashes", "base64", "twice"],
)
def test_message_is_read_in_pieces_whatever_it_is_wrapped_in(wrap: Callable[[bytes], bytes], extra: int) -> None:
    data = MESSAGE + bytes(extra)
    assert message_read(wrap(data)) == data
    assert leads_to_message(wrap(data)[:5000]) == (wrap(data) != data)
    assert read_message(message_in(wrap(data)[:5000])).recipients == ("FBCF2CAAF1012106",)


def test_odd_character_in_a_message_is_told_with_its_place() -> None:
    armor = armored(MESSAGE, "MESSAGE")
    with pytest.raises(ArmorError, match=r"character 80001 is '\$'"):
        message_read(armor[:80_000] + b"$" + armor[80_000:])


def test_beginning_of_a_message_is_read_as_far_as_it_goes() -> None:
    armor = armored(MESSAGE, "MESSAGE")
    for size in range(1000, 1010):
        assert MESSAGE.startswith(message_read(armor[:size]))


def test_key_or_database_is_no_message_in_a_wrapping() -> None:
    for head in (KEY, ARMOR, MESSAGE, b"SQLite format 3\0" + bytes(4000), random.Random(5).randbytes(4096)):
        assert not leads_to_message(head)
    assert message_in(b"no message") == b""
