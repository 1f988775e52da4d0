"""OpenPGP packets (RFC 9580), as far as they are readable without a key: what a key has, and who can open a message.

Everything here may be foreign or cut off: what cannot be parsed is left out, and no error is raised.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

HIDDEN_RECIPIENT = "0000000000000000"  # key ID in a message to a hidden recipient (gpg -R)
X25519, X448, ED25519, ED448 = 25, 26, 27, 28  # public-key algorithms that came with RFC 9580
_ENCRYPTING = (1, 2, 16, 18, X25519, X448)  # RSA, Elgamal, ECDH and the new ones

_SESSION_KEY, _PASSPHRASE, _USER_ID, _MARKER, _PADDING = 1, 3, 13, 10, 21
_PRIMARIES, _SUBKEYS, _SECRET = (5, 6), (7, 14), (5, 7)
_ENCRYPTED = (9, 18, 20)  # without MDC; SEIPD 1 (MDC) or 2 (AEAD); GnuPG's own AEAD
_MPIS = {1: 2, 2: 2, 3: 2, 16: 3, 17: 4}  # multiprecision integers in a public key, by algorithm
_FIXED = {X25519: 32, X448: 56, ED25519: 32, ED448: 57}  # bytes in a public key
_CURVES = (18, 19, 22)  # ECDH, which has a field more, ECDSA, EdDSA


class Packet(NamedTuple):
    """A packet, from ``start`` to ``end``, which is beyond the data when they end within it.

    One of partial lengths has the body of its first part.
    """

    tag: int
    body: bytes
    start: int
    end: int


@dataclass(frozen=True)
class KeyPart:
    """A primary key or subkey.

    ``secret``: "plain", "protected" by a passphrase, so with "aead" or "argon2", "absent", on a "card", "" in a public.
    """

    key_id: str
    version: int
    algorithm: int
    secret: str
    primary: bool
    encrypts: bool  # going by the algorithm


@dataclass(frozen=True)
class KeyPackets:
    """What an export of keys has; ``cut``: it ends within a packet."""

    parts: tuple[KeyPart, ...] = ()
    cut: bool = False


@dataclass(frozen=True)
class MessagePackets:
    """How a message begins: the key IDs it is encrypted to, and how many passphrases open it.

    ``container`` is the tag and version of the packet that follows, (0, 0) if none does; ``cut``: it ends before that.
    """

    recipients: tuple[str, ...] = ()
    passphrases: int = 0
    container: tuple[int, int] = (0, 0)
    newest: int = 0  # the highest version of its session key packets
    cut: bool = False

    @property
    def encrypted(self) -> bool:
        return bool(self.recipients or self.passphrases) and self.container[0] in _ENCRYPTED


def packets(data: bytes) -> Iterator[Packet]:
    """Yield the packets that data begin with, up to what is none."""
    start = 0
    while start < len(data) and data[start] & 0x80:
        try:
            tag, at, length = _header(data, start)
        except IndexError:
            return
        end = len(data) if length is None else at + abs(length)
        yield Packet(tag, data[at:end], start, end)
        if length is None or length < 0:
            return
        start = end


def packet_tag(first: int) -> int:
    """Return the tag that the first byte of a packet, in the new format or the old one, has."""
    return first & 0x3F if first & 0x40 else first >> 2 & 0x0F


def _header(data: bytes, start: int) -> tuple[int, int, int | None]:
    """Return a packet's tag, where its body begins, and its length: negative if partial, None: to the end."""
    first, at, tag = data[start], start + 1, packet_tag(data[start])
    if not first & 0x40:
        size = (1, 2, 4, 0)[first & 3]
        length = int.from_bytes(data[at : at + size]) if size else None
        data[at + size - 1]  # raises IndexError when the header is cut off
        return tag, at + size, length
    octet = data[at]
    if octet < 192:
        return tag, at + 1, octet
    if octet < 224:
        return tag, at + 2, (octet - 192 << 8) + data[at + 1] + 192
    if octet < 255:
        return tag, at + 1, -(1 << (octet & 0x1F))
    data[at + 4]
    return tag, at + 5, int.from_bytes(data[at + 1 : at + 5])


# --- messages ------------------------------------------------------------------------------------------------------


def read_message(head: bytes, *, all_of_it: bool = False) -> MessagePackets:
    """Return how a message begins; ``all_of_it``: the head is the whole file."""
    recipients: list[str] = []
    passphrases = newest = 0
    for packet in packets(head):
        if packet.tag in (_MARKER, _PADDING):
            continue
        version = packet.body[0] if packet.body else 0
        if packet.tag not in (_SESSION_KEY, _PASSPHRASE):
            found = (packet.tag, version)
            return MessagePackets(tuple(recipients), passphrases, found, newest)
        if packet.end > len(head):
            return MessagePackets(tuple(recipients), passphrases, newest=newest, cut=all_of_it)
        newest = max(newest, version)
        if packet.tag == _PASSPHRASE:
            passphrases += 1
        elif recipient := _recipient(packet.body):
            recipients.append(recipient)
    cut = all_of_it and bool(recipients or passphrases)
    return MessagePackets(tuple(recipients), passphrases, newest=newest, cut=cut)


def _recipient(body: bytes) -> str:
    """Return the key ID that a session key packet is encrypted to."""
    if body[:1] == b"\3" and len(body) > 9:
        return body[1:9].hex().upper()
    if body[:1] == b"\6" and len(body) > 2 and len(body) > 2 + body[1]:
        fingerprint = body[3 : 2 + body[1]]
        key_id = fingerprint[-8:] if body[2] == 4 else fingerprint[:8]
        return key_id.hex().upper() if key_id else HIDDEN_RECIPIENT
    return ""


# --- keys ----------------------------------------------------------------------------------------------------------


def read_keys(data: bytes) -> KeyPackets:
    """Return what an export has of keys."""
    found = list(packets(data))
    parts = [_key_part(packet) for packet in found if packet.tag in _PRIMARIES + _SUBKEYS]
    end = found[-1].end if found else 0
    return KeyPackets(
        tuple(part for part in parts if part),
        cut=end > len(data) or (end > 0 and data[end : end + 1] >= b"\x80"),
    )


def with_user_id(data: bytes, user_id: bytes) -> bytes:
    """Return keys as they are, but those that have no user ID with this one: gpg takes none without."""
    result, pending, start = b"", False, 0
    for packet in packets(data):
        if pending and packet.tag in (*_PRIMARIES, *_SUBKEYS, _USER_ID):
            if packet.tag != _USER_ID:
                result += data[start : packet.start] + bytes([0xC0 | _USER_ID, len(user_id)]) + user_id
                start = packet.start
            pending = False
        pending = pending or packet.tag in _PRIMARIES
    return result + data[start:]


def _key_part(packet: Packet) -> KeyPart | None:
    body = packet.body
    try:
        version = body[0]
        algorithm = body[7] if version < 4 else body[5]
        end = _public_end(body, version, algorithm) if packet.tag in _SECRET else len(body)
        secret = _secret_state(body[end:], version) if packet.tag in _SECRET else ""
    except (IndexError, KeyError):
        return None
    return KeyPart(
        _key_id(body[:end], version), version, algorithm, secret, packet.tag in _PRIMARIES, algorithm in _ENCRYPTING
    )


def _public_end(body: bytes, version: int, algorithm: int) -> int:
    """Return where the public part of a secret key ends."""
    if version >= 5:
        return 10 + int.from_bytes(body[6:10])

    def after_mpi(at: int) -> int:
        return at + 2 + (int.from_bytes(body[at : at + 2]) + 7) // 8

    at = 8 if version < 4 else 6
    if algorithm in _FIXED:
        return at + _FIXED[algorithm]
    if algorithm in _CURVES:
        at = after_mpi(at + 1 + body[at])
        return at + 1 + body[at] if algorithm == 18 else at
    for _ in range(_MPIS[algorithm]):
        at = after_mpi(at)
    return at


def _secret_state(secret: bytes, version: int) -> str:
    """Return what there is of the secret part, see :class:`KeyPart`."""
    usage = secret[0]
    at = 2 if version >= 5 and usage else 1  # version 5 and 6 have a count here
    if not usage:
        return "plain"
    if usage not in (253, 254, 255):
        return "protected"
    at += 2 if usage == 253 else 1  # the algorithms
    at += version == 6
    if secret[at] == 101 and secret[at + 2 : at + 5] == b"GNU":
        return "card" if secret[at + 5] == 2 else "absent"
    return "argon2" if secret[at] == 4 else "aead" if usage == 253 else "protected"


def _key_id(public: bytes, version: int) -> str:
    if version == 4:  # RFC 9580, section 5.5.4.2
        body = b"\x99" + len(public).to_bytes(2) + public
        return hashlib.sha1(body).digest()[-8:].hex().upper()  # noqa: S324 - a name, no protection
    if version in (5, 6):
        prefix = b"\x9a" if version == 5 else b"\x9b"
        return hashlib.sha256(prefix + len(public).to_bytes(4) + public).digest()[:8].hex().upper()
    return ""
