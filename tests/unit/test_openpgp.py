"""What gpg's status lines mean; no gpg is run here.

The status lines are those of GnuPG 2.2.40, given a key with a passphrase. Key ID and fingerprints are the real ones.
"""

import re

import pytest

from backuplib.errors import (
    DamagedMessageError,
    DecryptionError,
    NotEncryptedError,
    UnauthenticatedMessageError,
    WrongKeyError,
    WrongPassphraseError,
)
from backuplib.openpgp import (
    _key_warnings,
    check_decryption,
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


# --- passphrases -----------------------------------------------------------------------------------------------------


def test_passphrase_is_given_as_it_is() -> None:
    assert passphrase_text(None) is None
    for given in (' pässwörd "x"\t'.encode(), b"s\xe9cret"):
        text = passphrase_text(Secret(given))
        assert text
        assert text.encode("latin-1") == given


@pytest.mark.parametrize("passphrase", [b"", b"hunter2\0", b"hunter2\nx", b"hunter2\rx"])
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
