"""Why a key or a message is refused: the tables, tried with what gpg 2.2 and 2.4 really said."""

import itertools
from dataclasses import replace

import pytest

from backuplib.errors import (
    DamagedMessageError,
    DecryptionError,
    GpgFailedError,
    KeyHasNoSecretPartError,
    NotEncryptedError,
    UnauthenticatedMessageError,
    UnsupportedFormatError,
    UnusableKeyError,
    WrongKeyError,
    WrongPassphraseError,
)
from backuplib.packets import KeyPackets, KeyPart, MessagePackets
from backuplib.reasons import KeySaid, Said, refuse_key, refuse_message
from tests.support.gpg_said import SAID

RELEASES = ("2.2.40", "2.4.7")
PRIMARY = KeyPart("1111111111111111", 4, 1, "protected", primary=True, encrypts=False)
SUBKEY = KeyPart("A" * 16, 4, 1, "protected", primary=False, encrypts=True)

REFUSED: dict[str, type[DecryptionError]] = {
    "wrong passphrase": WrongPassphraseError,
    "wrong passphrase, hidden recipient": WrongPassphraseError,
    "wrong passphrase, or by another": WrongPassphraseError,
    "another key": WrongKeyError,
    "another key, hidden recipient": WrongPassphraseError,  # or the key: nothing tells
    "another key, or by a passphrase": WrongKeyError,
    "a passphrase only": NotEncryptedError,
    "signed only": NotEncryptedError,
    "no MDC": UnauthenticatedMessageError,
    "flipped bit in the MDC": DamagedMessageError,
    "flipped bit in the content": DamagedMessageError,
    "flipped bit in the session key": DamagedMessageError,
    "flipped bit in compressed content": DamagedMessageError,
    "truncated content": DamagedMessageError,
    "truncated head": DamagedMessageError,
    "two messages": DamagedMessageError,
    "something behind the end": DamagedMessageError,
    "secret part left out": KeyHasNoSecretPartError,
    "secret part on a card": KeyHasNoSecretPartError,
    "to X25519 of RFC 9580": UnsupportedFormatError,
    "AEAD of RFC 9580": UnsupportedFormatError,
    "noise": DamagedMessageError,
}

BEFORE_A_PASSPHRASE = {
    "another key",
    "another key, or by a passphrase",
    "a passphrase only",
    "truncated head",
    "secret part left out",
    "secret part on a card",
    "to X25519 of RFC 9580",
    "AEAD of RFC 9580",
}


def said(name: str, release: str | None) -> Said:
    """What is known of one of the messages after gpg has tried, or before (no release)."""
    subkey = SUBKEY
    if "secret part" in name:
        subkey = replace(SUBKEY, secret="card" if "card" in name else "absent")
    if "X25519" in name:
        subkey = replace(SUBKEY, key_id="E" * 16, algorithm=25)
    known = Said(SAID[name].message, (PRIMARY, subkey))
    if release is None:
        return known
    return replace(known, events=SAID[name].events(release), returncode=SAID[name].returncode(release), tried=True)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", [name for name in SAID if name.startswith("opened")])
def test_what_was_opened_is_believed(name: str, release: str) -> None:
    refuse_message(said(name, None))
    refuse_message(said(name, release))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", REFUSED)
def test_both_gpgs_are_understood_alike(name: str, release: str) -> None:
    with pytest.raises(DecryptionError) as raised:
        refuse_message(said(name, release))
    assert type(raised.value) is REFUSED[name]
    assert raised.value.hint
    if REFUSED[name] is not DamagedMessageError:
        assert "corrupted" not in str(raised.value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_packets_tell_is_told_before_gpg_tries(name: str) -> None:
    if name not in BEFORE_A_PASSPHRASE:
        refuse_message(said(name, None))
        return
    with pytest.raises(REFUSED[name]):
        refuse_message(said(name, None))


@pytest.mark.parametrize("release", RELEASES)
def test_wrong_passphrase_of_a_key_without_one_is_another_key(release: str) -> None:
    known = replace(said("another key, hidden recipient", release), protected=False)
    with pytest.raises(WrongKeyError) as raised:
        refuse_message(known)
    assert "0000000000000000" not in str(raised.value)  # no key has that ID


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", [name for name in SAID if name.startswith("opened")])
def test_no_line_that_makes_it_authentic_may_be_missing(name: str, release: str) -> None:
    known = said(name, release)
    for missing in ("DECRYPTION_OKAY", "GOODMDC"):
        with pytest.raises(DecryptionError):
            refuse_message(replace(known, events=[event for event in known.events if event[0] != missing]))
    for returncode in (2, None):
        with pytest.raises(DecryptionError):
            refuse_message(replace(known, returncode=returncode))


def test_aead_of_gnupg_is_authentic_without_mdc() -> None:
    """GnuPG 2.3 and newer: no GOODMDC, but the algorithm of the authentication."""
    events = [("ENC_TO", f"{'A' * 16} 1 0"), ("DECRYPTION_KEY", ""), ("DECRYPTION_INFO", "0 9 2")]
    known = Said(
        MessagePackets(("A" * 16,), container=(20, 1)),
        (SUBKEY,),
        events=[*events, ("DECRYPTION_OKAY", "")],
        returncode=0,
        tried=True,
    )
    refuse_message(known)
    for cut in (events, [*events[:2], ("DECRYPTION_OKAY", "")]):
        with pytest.raises(DecryptionError):
            refuse_message(replace(known, events=cut))


def test_gpg_that_was_killed_is_no_damage() -> None:
    known = replace(said("opened", "2.2.40"), returncode=-9, events=[("ENC_TO", f"{'A' * 16} 1 0")])
    with pytest.raises(GpgFailedError):
        refuse_message(known)


@pytest.mark.parametrize("value", ["pkdecrypt_failed 33554433", "odd", "", "get_passphrase 32870"])
def test_what_is_not_known_is_said_to_be_not_known(value: str) -> None:
    message = SAID["opened"].message
    with pytest.raises(GpgFailedError):
        refuse_message(Said(message, (SUBKEY,), events=[("ERROR", value)], returncode=2, tried=True))


def test_nothing_that_gpg_says_of_a_foreign_message_is_repeated() -> None:
    """User IDs and file names stand in its lines."""
    events = [("ERROR", "\x1b[2J hunter2"), ("PLAINTEXT", "62 0 hunter2"), ("FAILURE", "hunter2 x")]
    for message, tried in itertools.product((MessagePackets(), SAID["opened"].message), (True,)):
        with pytest.raises(DecryptionError) as raised:
            refuse_message(Said(message, (SUBKEY,), events=events, returncode=2, tried=tried))
        assert "hunter2" not in str(raised.value) + raised.value.hint


def test_both_keys_are_named_when_they_differ() -> None:
    with pytest.raises(WrongKeyError) as raised:
        refuse_message(said("another key", None))
    for key_id in ("C" * 16, PRIMARY.key_id, SUBKEY.key_id):
        assert key_id in str(raised.value)


# --- keys ------------------------------------------------------------------------------------------------------------

WHOLE = KeyPackets((PRIMARY, SUBKEY))


def key_with(**changed: object) -> KeyPackets:
    """A key whose parts differ so from a whole one."""
    return replace(WHOLE, parts=tuple(replace(part, **changed) for part in WHOLE.parts))  # type: ignore[arg-type]


BAD_SIGNATURE = """\
gpg: key 485E3A7724B68071: 1 bad signature
gpg: key 485E3A7724B68071: accepted non self-signed user ID "Shop <shop@example.org>"
"""

KEYS: dict[str, tuple[KeyPackets, str, int, type[DecryptionError], str]] = {
    "public": (key_with(secret=""), "", 0, KeyHasNoSecretPartError, "public key"),
    "public, to sign only": (KeyPackets((replace(PRIMARY, secret=""),)), "", 0, KeyHasNoSecretPartError, "public key"),
    "version 6": (key_with(version=6, secret="plain"), "", 0, UnsupportedFormatError, "version 6"),
    "version 5": (key_with(version=5, secret="plain"), "", 0, UnsupportedFormatError, "version 5"),
    "Argon2": (key_with(secret="argon2"), "read error: Not implemented", 0, UnsupportedFormatError, "Argon2"),
    "AEAD": (key_with(secret="aead"), "invalid cipher 253 - skipped", 0, UnsupportedFormatError, "AEAD"),
    "X25519": (key_with(algorithm=25), "secret key info missing", 0, UnsupportedFormatError, "X25519"),
    "on a card": (key_with(secret="card"), "", 1, KeyHasNoSecretPartError, "smartcard"),
    "left out": (key_with(secret="absent"), "", 1, KeyHasNoSecretPartError, SUBKEY.key_id),
    "cut off": (replace(WHOLE, cut=True), "", 0, UnusableKeyError, "truncated"),
    "another bit": (WHOLE, BAD_SIGNATURE, 1, UnusableKeyError, "corrupted"),
    "armor with another bit": (WHOLE, "gpg: CRC error; 1 - 2", 0, UnusableKeyError, "checksum"),
    "no key": (KeyPackets(), "no valid OpenPGP data found", 0, UnusableKeyError, "not an OpenPGP key"),
    "not known": (WHOLE, "gpg: something else", 0, UnusableKeyError, "not known"),
}


@pytest.mark.parametrize(("packets", "log", "secrets", "kind", "word"), KEYS.values(), ids=[*KEYS])
def test_key_is_refused_for_its_own_reason(
    packets: KeyPackets, log: str, secrets: int, kind: type[DecryptionError], word: str
) -> None:
    with pytest.raises(DecryptionError) as raised:
        refuse_key(KeySaid(packets, MessagePackets(), log, secrets))
    assert type(raised.value) is kind
    assert word in str(raised.value)
    assert raised.value.hint


@pytest.mark.parametrize("secret", ["plain", "protected"])
def test_whole_key_is_not_refused(secret: str) -> None:
    refuse_key(KeySaid(key_with(secret=secret), MessagePackets(), "", 1))


def test_key_in_an_encrypted_message_is_told_so() -> None:
    with pytest.raises(UnusableKeyError, match="inside an encrypted message"):
        refuse_key(KeySaid(KeyPackets(), SAID["a passphrase only"].message, "", 0))
