"""What gpg's status lines mean, and what keys and messages begin with; no gpg is run here.

The status lines are those of GnuPG 2.2.40, given a key with a passphrase. Key ID and fingerprints are the real ones.
"""

import base64
import re

import pytest

from backuplib.errors import (
    DamagedMessageError,
    DecryptionError,
    NotEncryptedError,
    UnauthenticatedMessageError,
    UnusableKeyError,
    WrongKeyError,
    WrongPassphraseError,
)
from backuplib.openpgp import (
    _key_warnings,
    begins_like_key,
    begins_like_message,
    check_decryption,
    decode_private_key,
    passphrase_text,
)
from backuplib.secret import Secret

OWN = frozenset({"4B8CD61F4DB73EA5", "FBCF2CAAF1012106"})

FOUND = """\
ENC_TO FBCF2CAAF1012106 1 0
KEY_CONSIDERED 0C891A75C44717574234047D4B8CD61F4DB73EA5 0
DECRYPTION_KEY 326471CE6DF887BE2897E36AFBCF2CAAF1012106 0C891A75C44717574234047D4B8CD61F4DB73EA5 -
BEGIN_DECRYPTION
"""
"""The session key was found."""

WHOLE = """\
DECRYPTION_INFO 2 9 0
PLAINTEXT 62 1795640884
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
"""

BOTH = FOUND.replace("BEGIN", "ENC_TO 90DEEDF8A92773B9 18 0\nNO_SECKEY 90DEEDF8A92773B9\nBEGIN")
HIDDEN = FOUND.replace("FBCF2CAAF1012106 1", "0000000000000000 1")

AEAD = """\
DECRYPTION_INFO 0 9 2
PLAINTEXT 62 1795473443 a.db.gz
PLAINTEXT_LENGTH 153
DECRYPTION_OKAY
END_DECRYPTION
"""
"""GnuPG 2.3 and newer: no GOODMDC, but the algorithm of the authentication."""

FAILED = "DECRYPTION_FAILED\nEND_DECRYPTION\n"


def check(lines: str, returncode: int = 0, own: frozenset[str] = OWN) -> None:
    events = [(name, value) for name, _, value in (line.partition(" ") for line in lines.splitlines())]
    check_decryption(events, returncode, own)


@pytest.mark.parametrize(
    "lines",
    [FOUND + WHOLE, BOTH + WHOLE, HIDDEN + WHOLE, FOUND + AEAD],
    ids=["to us", "to two keys", "to a hidden key", "AEAD"],
)
def test_whole_and_authentic_message_is_accepted(lines: str) -> None:
    check(lines)


@pytest.mark.parametrize(
    ("lines", "missing"),
    [
        (WHOLE, "DECRYPTION_OKAY"),
        (WHOLE, "GOODMDC"),
        (AEAD, "DECRYPTION_OKAY"),
        (AEAD, "DECRYPTION_INFO"),
    ],
    ids=["MDC, okay", "MDC, good", "AEAD, okay", "AEAD, info"],
)
def test_no_line_that_makes_it_authentic_may_be_missing(lines: str, missing: str) -> None:
    cut = re.sub(rf"^{missing}.*\n", "", lines, flags=re.MULTILINE)
    assert cut != lines
    with pytest.raises(DecryptionError):
        check(FOUND + cut)


def test_exit_code_counts_as_well() -> None:
    with pytest.raises(DamagedMessageError):
        check(FOUND + WHOLE, returncode=2)


REFUSED = {
    "wrong passphrase": (
        """\
        ENC_TO FBCF2CAAF1012106 1 0
        KEY_CONSIDERED 0C891A75C44717574234047D4B8CD61F4DB73EA5 0
        ERROR pkdecrypt_failed 67108875
        BEGIN_DECRYPTION
        DECRYPTION_FAILED
        END_DECRYPTION
        """,
        WrongPassphraseError,
    ),
    "no passphrase": (
        """\
        ENC_TO FBCF2CAAF1012106 1 0
        NEED_PASSPHRASE FBCF2CAAF1012106 4B8CD61F4DB73EA5 1 0
        MISSING_PASSPHRASE
        ERROR pkdecrypt_failed 83886179
        BEGIN_DECRYPTION
        DECRYPTION_FAILED
        END_DECRYPTION
        """,
        WrongPassphraseError,
    ),
    "hidden recipient, which may be another key": (
        """\
        ENC_TO 0000000000000000 1 0
        CARDCTRL 6
        KEY_CONSIDERED 0C891A75C44717574234047D4B8CD61F4DB73EA5 0
        NO_SECKEY 0000000000000000
        BEGIN_DECRYPTION
        DECRYPTION_FAILED
        END_DECRYPTION
        """,
        WrongPassphraseError,
    ),
    "another key": (
        """\
        ENC_TO 90DEEDF8A92773B9 18 0
        NO_SECKEY 90DEEDF8A92773B9
        BEGIN_DECRYPTION
        DECRYPTION_FAILED
        END_DECRYPTION
        """,
        WrongKeyError,
    ),
    "passphrase only": (
        """\
        NEED_PASSPHRASE_SYM 9 3 2
        MISSING_PASSPHRASE_SYM
        BEGIN_DECRYPTION
        DECRYPTION_FAILED
        END_DECRYPTION
        """,
        NotEncryptedError,
    ),
    "signed or literal, which gpg takes without a word": ("PLAINTEXT 62 1795640884\n", NotEncryptedError),
    "signed, and verified all the same": (
        """\
        PLAINTEXT 62 1795640884
        NEWSIG
        KEY_CONSIDERED 0C891A75C44717574234047D4B8CD61F4DB73EA5 0
        GOODSIG 4B8CD61F4DB73EA5 shop <shop@example.org>
        """,
        NotEncryptedError,
    ),
    "without MDC": (
        FOUND
        + """\
        DECRYPTION_INFO 0 2 0
        PLAINTEXT 62 1795640884
        ERROR nomdc_with_legacy_cipher 152
        """
        + FAILED,
        UnauthenticatedMessageError,
    ),
    "without MDC, which gpg was told to ignore": (
        FOUND
        + """\
        DECRYPTION_INFO 0 2 0
        PLAINTEXT 62 1795640884
        DECRYPTION_OKAY
        END_DECRYPTION
        """,
        UnauthenticatedMessageError,
    ),
    "truncated": (FOUND + "DECRYPTION_INFO 2 9 0\n" + FAILED, DamagedMessageError),
    "flipped bit": (FOUND + "DECRYPTION_INFO 2 9 0\nPLAINTEXT 62 1795640884\nBADMDC\n" + FAILED, DamagedMessageError),
    "flipped bit in the session key": (
        """\
        ENC_TO FBCF2CAAF1012106 1 0
        KEY_CONSIDERED 0C891A75C44717574234047D4B8CD61F4DB73EA5 0
        ERROR pkdecrypt_failed 33554450
        BEGIN_DECRYPTION
        DECRYPTION_FAILED
        END_DECRYPTION
        """,
        DamagedMessageError,
    ),
    "truncated in its head": ("NODATA 3\n", DamagedMessageError),
    "noise": ("NODATA 1\nNODATA 2\nFAILURE decrypt 4294967295\n", DamagedMessageError),
    "nothing at all": ("", DamagedMessageError),
    "a second message behind the first": (
        FOUND
        + """\
        DECRYPTION_INFO 2 9 0
        PLAINTEXT 62 1795640884
        ENC_TO FBCF2CAAF1012106 1 0
        DECRYPTION_KEY 326471CE6DF887BE2897E36AFBCF2CAAF1012106 0C891A75C44717574234047D4B8CD61F4DB73EA5 -
        ERROR decryption.early_plaintext 89
        BEGIN_DECRYPTION
        DECRYPTION_INFO 2 9 0
        ERROR proc_pkt.plaintext 89_BAD_DATA
        DECRYPTION_FAILED
        END_DECRYPTION
        DECRYPTION_OKAY
        GOODMDC
        END_DECRYPTION
        """,
        DamagedMessageError,
    ),
}


@pytest.mark.parametrize(("lines", "kind"), REFUSED.values(), ids=[*REFUSED])
@pytest.mark.parametrize("returncode", [0, 2])
def test_what_gpg_says_is_told_apart(lines: str, kind: type[DecryptionError], returncode: int) -> None:
    """Whatever gpg's exit code: it is 0 for a message that anybody could have made."""
    if returncode == 0 and kind is DamagedMessageError and "GOODMDC" in lines:
        returncode = 2  # the exit code is what tells
    with pytest.raises(DecryptionError) as raised:
        check(re.sub(r"^ +", "", lines, flags=re.MULTILINE), returncode)
    assert type(raised.value) is kind
    assert raised.value.hint


def test_both_keys_are_named_when_they_differ() -> None:
    with pytest.raises(WrongKeyError) as raised:
        check(REFUSED["another key"][0].replace("        ", ""), 2)
    for key_id in ("90DEEDF8A92773B9", *OWN):
        assert key_id in str(raised.value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("pkdecrypt_failed 67108875", WrongPassphraseError),
        ("symkey_decrypt.maybe_error 11_BAD_PASSPHRASE", WrongPassphraseError),
        ("pkdecrypt_failed 33554450", DamagedMessageError),
        ("proc_pkt.plaintext 89_BAD_DATA", DamagedMessageError),
        ("odd", DamagedMessageError),
        ("", DamagedMessageError),
    ],
)
def test_code_of_an_error_line(value: str, kind: type[DecryptionError]) -> None:
    """Only one of them, in either way of writing, is a wrong passphrase's."""
    with pytest.raises(DecryptionError) as raised:
        check_decryption([("ERROR", value)], 2, OWN)
    assert type(raised.value) is kind


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
