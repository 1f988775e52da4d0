"""What keys and messages begin with, and the forms of keys and passphrases; no gpg is run here."""

import base64
import re

import pytest

from backuplib.errors import UnusableKeyError, WrongPassphraseError
from backuplib.openpgp import (
    _key_warnings,
    begins_like_key,
    begins_like_message,
    decode_private_key,
    passphrase_text,
)
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

ARMOR = (
    b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n"
    + b"\n".join(re.findall(rb".{1,64}", base64.b64encode(KEY)))
    + b"\n=abcd\n-----END PGP PRIVATE KEY BLOCK-----\n"
)


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
        (ARMOR, True),
        (bytes.fromhex("9503c6046b074e32010800b2"), True),  # secret, RSA
        (bytes.fromhex("9833046b074e3416092b0601"), True),  # public: it is told so later on
        (b"\xc5\x58\x04", True),
        (bytes.fromhex(HEADS["RSA"]), False),
        (base64.b64encode(KEY), False),
        (b"", False),
    ],
)
def test_begins_like_key(raw: bytes, like: bool) -> None:
    assert begins_like_key(raw) is like


# --- what people give as a key ---------------------------------------------------------------------------------------

B64, ARMOR_B64 = base64.b64encode(KEY), base64.b64encode(ARMOR)
WRAPPED = b"\n".join(re.findall(rb".{1,76}", B64))


@pytest.mark.parametrize(
    ("given", "key"),
    [
        (KEY, KEY),
        (ARMOR, ARMOR),
        (B64, KEY),
        (ARMOR_B64, ARMOR),
        (WRAPPED, KEY),
        (WRAPPED.replace(b"\n", b"\r\n") + b"\r\n", KEY),
        (b"\n\n  " + WRAPPED.replace(b"\n", b"\n  ") + b" \t\n\n", KEY),
        (b"\xef\xbb\xbf" + ARMOR, ARMOR),
        (b"\xef\xbb\xbf" + B64, KEY),
        (ARMOR.decode().encode("utf-16"), ARMOR),
        (b"On Thursday you wrote:\n\n" + ARMOR, ARMOR),
        (base64.b64encode(b"a comment\n" + ARMOR), ARMOR),
    ],
    ids=[
        "binary",
        "armored",
        "base64",
        "base64 of armored",
        "wrapped",
        "CRLF",
        "blanks around",
        "byte order mark",
        "byte order mark before base64",
        "UTF-16",
        "mail",
        "comment in base64",
    ],
)
def test_key_is_read_from_whatever_form_it_is_kept_in(given: bytes, key: bytes) -> None:
    assert decode_private_key(Secret(given)).reveal_bytes() == key


@pytest.mark.parametrize(
    "given", [b"", b" \r\n", B64[:-3], B64[:61], b"hunter2", b"{}", "schlüssel".encode(), b"SQLite format 3\0"]
)
def test_what_is_no_key_is_refused_and_not_repeated(given: bytes) -> None:
    with pytest.raises(UnusableKeyError) as raised:
        decode_private_key(Secret(given))
    if given.strip():
        assert given.decode() not in str(raised.value) + raised.value.hint


# --- passphrases -----------------------------------------------------------------------------------------------------


def test_passphrase_is_given_as_it_is() -> None:
    assert passphrase_text(None) is None
    assert passphrase_text(Secret(' pässwörd "x"\t')) == ' pässwörd "x"\t'


@pytest.mark.parametrize("passphrase", [b"", b"hunter2\0", b"hunter2\nx", b"hunter2\xff"])
def test_what_gpg_does_not_take_is_refused_and_not_repeated(passphrase: bytes) -> None:
    with pytest.raises(WrongPassphraseError) as raised:
        passphrase_text(Secret(passphrase))
    assert "hunter2" not in repr(raised.value)
    assert raised.value.__cause__ is None


def test_unusual_keys_are_told_of() -> None:
    def key(key_id: str, trust: str = "u", expires: str = "") -> dict[str, str]:
        return {"keyid": key_id, "trust": trust, "expires": expires}

    assert _key_warnings([key("A")]) == ()
    assert _key_warnings([key("A", expires="4102444800")]) == ()
    for odd in (key("A", "r"), key("A", "e"), key("A", expires="1000000000")):
        (warning,) = _key_warnings([odd])
        assert "A" in warning
    assert len(_key_warnings([key("A"), key("B")])) == 1
