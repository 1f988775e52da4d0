"""What is read from OpenPGP packets without a key: of gpg's keys and messages, and of those that gpg does not read."""

import pytest

from backuplib.packets import HIDDEN_RECIPIENT, packets, read_keys, read_message, with_user_id
from tests.support.keys import GpgHome, Keys


def test_parts_of_a_key_have_the_ids_that_gpg_shows(gpg: GpgHome, keys: Keys) -> None:
    for key in (keys.rsa, keys.open):
        listing = gpg.run("--with-colons", "--list-keys", key.fingerprint).decode()
        ids = [line.split(":")[4] for line in listing.splitlines() if line[:3] in ("pub", "sub")]
        secret = "protected" if key.passphrase else "plain"
        for exported, state in (
            (key.private_binary, secret),
            (key.public_binary, ""),
        ):
            found = read_keys(exported)
            assert [part.key_id for part in found.parts] == ids
            assert {part.secret for part in found.parts} == {state}
            assert [part.primary for part in found.parts] == [True, False]
            assert not found.cut


def test_key_that_is_cut_off_is_known_at_every_byte(keys: Keys) -> None:
    whole = keys.open.private_binary
    ends = {packet.end for packet in packets(whole)}
    for length in range(2, len(whole)):
        assert read_keys(whole[:length]).cut == (length not in ends)


def test_recipients_of_a_message(gpg: GpgHome, keys: Keys) -> None:
    ours, theirs = (read_keys(key.public_binary).parts[1].key_id for key in (keys.open, keys.rsa))
    to = ("--recipient", keys.open.fingerprint)
    both = read_message(gpg.encrypt(b"x", *to, "--recipient", keys.rsa.fingerprint))
    assert (both.recipients, both.passphrases, both.container) == ((ours, theirs), 0, (18, 1))
    assert read_message(gpg.encrypt(b"x", "--hidden-recipient", keys.open.fingerprint)).recipients == (
        HIDDEN_RECIPIENT,
    )
    symmetric = read_message(gpg.run("--passphrase", "x", "--symmetric", stdin=b"x"))
    assert (symmetric.recipients, symmetric.passphrases, symmetric.encrypted) == ((), 1, True)
    signed = read_message(gpg.run("--store", stdin=b"x"))
    assert not signed.encrypted


def test_message_that_ends_before_its_content_is_known(gpg: GpgHome, keys: Keys) -> None:
    message = gpg.encrypt(b"x", "--recipient", keys.open.fingerprint)
    content = next(packet for packet in packets(message) if packet.tag == 18)
    for length in range(2, len(message)):
        assert read_message(message[:length], all_of_it=True).cut == (length <= content.start + 1)
        assert not read_message(message[:length]).cut  # there may be more


def user_ids(exported: bytes) -> int:
    return sum(packet.tag == 13 for packet in packets(exported))


def test_user_id_is_given_only_to_keys_without_one(keys: Keys) -> None:
    exported = keys.open.public_binary
    assert with_user_id(exported, b"none") == exported
    found = list(packets(exported))
    bare = b"".join(exported[p.start : p.end] for p in found if p.tag != 13)
    assert user_ids(bare) == 0
    given = with_user_id(bare + exported, b"none")
    assert next(p.body for p in packets(given) if p.tag == 13) == b"none"
    assert user_ids(given) == 2
    assert user_ids(with_user_id(bare + bare, b"none")) == 2


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xc6", b"\x99", b"\x99\x01", bytes(range(256)), b"\xc6\xff\0\0", b"-----BEGIN"]
)
def test_foreign_bytes_raise_nothing(data: bytes) -> None:
    for start in range(len(data) + 1):
        read_keys(data[start:])
        read_message(data[start:], all_of_it=True)
        with_user_id(data[start:], b"none")


def test_flipped_bits_raise_nothing(keys: Keys) -> None:
    for at in range(len(keys.open.private_binary)):
        data = bytearray(keys.open.private_binary)
        for mask in (1, 0x40, 0x80, 0xFF):
            data[at] ^= mask
            read_keys(bytes(data))
            with_user_id(bytes(data), b"none")
