"""The one reader of what keys and messages are wrapped in: text, armor, base64, gzip; and how OpenPGP packets begin."""

import binascii
import codecs
import functools
import io
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import AnyStr, Protocol

from backuplib.errors import UnsoundBackupError
from backuplib.formatting import plural
from backuplib.gzip_stream import GZIP_MAGIC, GzipDecoder
from backuplib.packets import packet_tag, packets

# First bytes of the bodies of packets that a message can begin with, by packet tag (RFC 9580, section 5)
_VERSIONS = {1: (3, 6), 2: (3, 4, 5, 6), 3: (4, 5, 6), 4: (3, 6), 8: (0, 1, 2, 3), 11: b"btul", 18: (1, 2), 20: (1,)}
# Algorithms that encrypt (section 9.1): RSA, Kyber as GnuPG 2.5 numbers it, Elgamal, ECDH, X25519, X448
_ALGORITHMS = (1, 2, 8, 16, 18, 25, 26)
_TO_A_KEY, _SECRET_KEY, _PUBLIC_KEY = 1, 5, 6  # packet tags
_KEY_VERSIONS = (2, 3, 4, 5, 6)
_KEY_TAGS = frozenset({_SECRET_KEY, _PUBLIC_KEY, 2, 7, 12, 13, 14, 17, 21})  # of the packets that an exported key has

PIECE = 1 << 16  # bytes; what tells how something is wrapped must be in the first piece
MOST_LAYERS = 6
MOST_NOTES = 8  # long words before base64, which could be its beginning
LARGEST_KEY = 1 << 24  # bytes, unwrapped
SHORTEST_KEY = 100  # characters; of what is shorter, which may be a passphrase, no character is named

# What stands for what after a way through mail, chat and word processors. A character for each character, so that
# places can be told; the lone surrogates are bytes of Windows-1252.
_BLANKS = "\t\v\f\x1c\x1d\x1e\x1f\x85\xa0\xad\u1680\u180e\u202f\u205f\u2060\u3000\ufeff\udca0" + "".join(
    map(chr, [*range(0x2000, 0x2010), *range(0x2028, 0x202F), *range(0x2061, 0x2070)])
)
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d\udc96\udc97"
_SAME = str.maketrans(_BLANKS + _DASHES + "\r", " " * len(_BLANKS) + "-" * len(_DASHES) + "\n")
_AROUND = " \n>|#*\"'`,;(){}[]<\u2018\u2019\u201c\u201d\u00ab\u00bb"  # around base64: blanks, quotes of all kinds
_REMOVED = str.maketrans("", "", _AROUND)
_ODD = re.compile(f"[^A-Za-z0-9+/={re.escape(_AROUND)}]")
_URL_SAFE = str.maketrans("-_", "+/")
_BEGIN = re.compile(r"--+ *BEGIN ([A-Z][A-Z0-9 ]{2,40}?) *--+")
_END = re.compile(r"--+ *END\b")
_HEADERS = re.compile(r"(?:[\s>|]*[A-Za-z][\w-]*:[^\n]*\n)*")
_HEADERS_IN_ONE_LINE = re.compile(r"(?:\s*[A-Za-z][\w-]*: .*? {2,})*")  # where line breaks became blanks
_RUN = re.compile(r"(?<![\w+/-])[\w+/-]{40,}")

# What is given instead of a key or message, by how it begins.
_OTHERS = {
    r"age-encryption\.org/|AGE-SECRET-KEY-|age1[0-9a-z]{50}": "is of age, not of OpenPGP",
    r"(ssh|ecdsa|sk-ssh)-[\w@.-]+ AAAA|openssh-key-v1|PuTTY-User-Key-File": "is an SSH key, not an OpenPGP key",
    r"(0x)?([0-9A-Fa-f]{4} {0,2}){4,16}$": "is a key ID or fingerprint, not the key itself",
    r"((~|\.{1,2})?/[^\n]{1,99}|[\w./ -]{1,99}\.(asc|gpg|pgp|key|txt|b64|base64))$": "is the path of a file",
}


class ArmorError(ValueError):
    """No OpenPGP packet is found; the message completes a sentence that begins with what was given."""


class Readable(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes: ...


def unwrap(given: bytes) -> bytes:
    """Return the OpenPGP packets of exported keys, whatever they are wrapped in; of the private blocks, if any.

    Only keys are sure to be complete, to the end of their last packet. What is in the packets is for gpg to say.

    :raises ArmorError: saying what is odd, and where.
    """
    key = b"".join(_unwrapped(iter([given]), of_key=True))
    if begins_like_key(key) and _ends_early(key):
        raise ArmorError("is incomplete: it ends within a packet")
    return key


def holds_private_key(given: bytes) -> bool:
    """Whether :func:`unwrap` finds a whole private key."""
    try:
        key = unwrap(given)
    except ArmorError:
        return False
    return begins_like_key(key) and _SECRET_KEY in {packet.tag for packet in packets(key)}


def leads_to_message(head: bytes) -> bool:
    """Whether bytes that begin so are a message in armor or base64; False when they begin like a packet themselves."""
    if begins_like_key(head) or begins_like_message(head, sure=False):
        return False
    if re.search(rb"^[\s>|]*-----BEGIN PGP MESSAGE-----", head, re.MULTILINE):
        return True  # whatever is odd in it: the reader says that
    return begins_like_message(message_in(head), sure=False)


class Unwrapped:
    """A message, read as binary packets, whatever it is wrapped in; ArmorError when no packet is found."""

    def __init__(self, source: Readable) -> None:
        self._pieces = _unwrapped(iter(functools.partial(source.read, PIECE), b""), of_key=False)
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, b"" at the end."""
        while not self._rest and (piece := next(self._pieces, None)) is not None:
            self._rest = piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def message_in(head: bytes) -> bytes:
    """Return the packets of a message which begins so, as far as they go; none when none are found."""
    try:
        return Unwrapped(io.BytesIO(head)).read(PIECE)
    except ArmorError:
        return b""


def _unwrapped(pieces: Iterator[bytes], *, of_key: bool) -> Iterator[bytes]:
    """Remove layer after layer until packets begin."""
    for _ in range(MOST_LAYERS):
        head = _at_least(PIECE, pieces, b"")
        pieces = itertools.chain([head], pieces)
        if begins_like_key(head) or begins_like_message(head, sure=False):
            yield from pieces
            return
        pieces = _gunzipped(pieces) if head.startswith(GZIP_MAGIC) else _from_text(_text(pieces), of_key=of_key)
    raise ArmorError(f"is wrapped more than {MOST_LAYERS - 1} times")


def _at_least(size: int, pieces: Iterator[AnyStr], start: AnyStr) -> AnyStr:
    """Return the first pieces, joined, until they have the size."""
    while len(start) < size and (piece := next(pieces, None)) is not None:
        start += piece
    return start


def _gunzipped(pieces: Iterable[bytes]) -> Iterator[bytes]:
    content: list[bytes] = []
    decoder = GzipDecoder(content.append, LARGEST_KEY)
    try:
        for piece in pieces:
            decoder.feed(piece)
            yield from content
            content.clear()
        decoder.finish()
    except UnsoundBackupError:
        raise ArmorError("is compressed, and its gzip data is corrupted, truncated or too large") from None


# --- text --------------------------------------------------------------------------------------------------------


def text_encoding(head: bytes) -> str:
    """Return the encoding of a text that begins so: UTF-16 with or without a byte order mark, else UTF-8."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if len(head) > 3 and 0 in head[:2] and head[:1] != head[1:2]:
        return "utf-16-le" if head[1] == 0 else "utf-16-be"
    return "utf-8-sig"


def plain_text(data: bytes) -> str:
    """Decode a text whatever its encoding; bytes that are not UTF-8 become lone surrogates."""
    encoding = text_encoding(data)
    return data.decode(encoding, "surrogateescape" if encoding == "utf-8-sig" else "replace")


def _text(pieces: Iterator[bytes]) -> Iterator[str]:
    r"""Decode a text to one of plain line breaks, blanks and dashes, character by character; ``\n`` is a line break."""
    head = next(pieces, b"")
    encoding = text_encoding(head)
    decoder = codecs.getincrementaldecoder(encoding)("surrogateescape" if encoding == "utf-8-sig" else "replace")
    kept = ""
    for piece in itertools.chain([head], pieces, [b""]):
        text = kept + decoder.decode(piece, final=not piece)
        kept = text[len(text.rstrip("\r\\-" + _DASHES)) :] if piece else ""  # these count together with what follows
        text = text[: len(text) - len(kept)].replace("\r\n", " \n")
        if "\\" in text:
            text = re.sub(r"\\[rt]", "  ", text.replace("\\n", " \n")).replace("\\", " ")
        yield text.translate(_SAME)


def _from_text(text: Iterator[str], *, of_key: bool) -> Iterator[bytes]:
    """Decode the armor in a text, else the base64."""
    head = _at_least(PIECE, text, "")
    if begin := _BEGIN.search(head):
        if not begin[1].startswith(("PGP ", "CERTIFICATE")):  # the latter is what certutil -encode writes
            raise ArmorError(f"is {begin[1]}, not OpenPGP")
        return _dearmored(head, text, of_key=of_key)
    starts = [run.start() for run in itertools.islice(_RUN.finditer(head), MOST_NOTES)]
    if not _ODD.search(head[: starts[0] if starts else None]):
        starts.insert(0, 0)  # all of it, perhaps wrapped in short lines
    start = next((start for start in starts if _is_wrapping(head[start:])), None)
    if start is None:
        raise ArmorError(_what_is_odd(head))
    rest = itertools.chain([head[start:]], text)
    return _base64((piece.translate(_URL_SAFE) for piece in rest), start, whole=of_key)


def _is_wrapping(text: str) -> bool:
    """Whether base64 begins here that holds packets, or what may lead to them."""
    letters = re.sub(r"[^A-Za-z0-9+/]", "", text[:PIECE].translate(_URL_SAFE))
    content = binascii.a2b_base64(letters[: len(letters) & ~3])
    return (
        begins_like_key(content)
        or begins_like_message(content, sure=False)
        or content.startswith(GZIP_MAGIC)
        or "--BEGIN " in content.decode(text_encoding(content), "replace").translate(_SAME)
        or re.fullmatch(rb"[\w+/=\s-]{40,}", content) is not None
    )


def _what_is_odd(text: str) -> str:
    """Say what a text is that holds neither armor nor base64 of OpenPGP; never what could be secret in it."""
    stripped = text.strip(_AROUND)
    for pattern, what in _OTHERS.items():
        if re.match(pattern, stripped):
            return what
    if not stripped:
        return "is empty"
    if re.search(r"[\x00-\x08\x0e-\x1a]", text):
        return "is binary data that does not begin like OpenPGP"
    if len(stripped) < SHORTEST_KEY:
        return f"is too short: {plural(len(stripped), 'character')}"
    if odd := _ODD.search(text.translate(_URL_SAFE)):
        return _named(odd, 0)
    return "is base64 of something that does not begin like OpenPGP"


def _named(odd: re.Match[str], before: int) -> str:
    name = unicodedata.name(odd[0], "")
    what = f"'{odd[0]}'" if "!" <= odd[0] <= "~" else f"U+{ord(odd[0]):04X} {name}".strip()
    return f"is not base64: character {before + odd.start() + 1} is {what}"


# --- armor and base64 --------------------------------------------------------------------------------------------


class _Scanner:
    """A text, read on from ``buffer``; ``place``: how many characters of it came before."""

    def __init__(self, buffer: str, text: Iterator[str]) -> None:
        self.buffer, self.place, self._text = buffer, 0, text

    def skip(self, count: int) -> None:
        self.place += count
        self.buffer = _at_least(PIECE, self._text, self.buffer[count:])

    def until(self, mark: str) -> Iterator[str]:
        """Return what comes before a mark, or before the end, in pieces."""
        while (end := self.buffer.find(mark)) < 0 and self.buffer:
            yield self.buffer
            self.skip(len(self.buffer))
        yield self.buffer[: max(end, 0)]
        self.skip(max(end, 0))


def _dearmored(head: str, text: Iterator[str], *, of_key: bool) -> Iterator[bytes]:
    """Decode the blocks of an armor; of keys the private ones, if there are any, and only complete ones."""
    wanted = "PRIVATE KEY" if of_key and "BEGIN PGP PRIVATE KEY" in head else ""
    scanner = _Scanner(head, text)
    while begin := _BEGIN.search(scanner.buffer):
        scanner.skip(begin.end())
        if wanted not in begin[1] or begin[1].endswith("SIGNED MESSAGE"):
            continue
        in_one_line = "\n" not in scanner.buffer.partition("--")[0].strip()
        if headers := (_HEADERS_IN_ONE_LINE if in_one_line else _HEADERS).match(scanner.buffer):
            scanner.skip(headers.end())
        if not of_key:  # a message has its own proof that it is whole
            yield from _base64(scanner.until("--"), scanner.place, whole=False)
            continue
        place, body = scanner.place, "".join(scanner.until("--"))
        data = b"".join(_base64([body], place, whole=True))
        if not _END.match(scanner.buffer):
            raise ArmorError("is incomplete: its armor has no END line")
        checksum = re.search(r"=([A-Za-z0-9+/]{4})\s*$", body)
        if checksum and binascii.a2b_base64(checksum[1]) != _crc24(data):
            raise ArmorError("does not match the checksum in its armor: something in it is missing or was changed")
        yield data


def _base64(pieces: Iterable[str], place: int, *, whole: bool) -> Iterator[bytes]:
    """Decode base64 and what it is joined to; without its padding, too, and whatever checksum of an armor follows.

    :param place: how many characters of the text came before.
    :param whole: it must end where bytes end, unlike the beginning of a message.
    """
    kept = ""
    for piece in pieces:
        if odd := _ODD.search(piece):
            raise ArmorError(_named(odd, place))
        place += len(piece)
        kept += piece.translate(_REMOVED)
        if "=" not in kept:
            full = len(kept) & ~3
            yield binascii.a2b_base64(kept[:full])
            kept = kept[full:]
    kept = re.sub("=3D(?==|$|.{4}$)", "=", kept)  # of quoted-printable mail
    parts = re.findall("([^=]+)(=*)", kept)
    if len(parts) > 1 and len(parts[-1][0]) == 4:  # the checksum, which begins with =
        parts[-2:] = [(parts[-2][0], parts[-2][1][1:])]
    for part, padding in parts:
        if whole and (len(part) % 4 == 1 or (padding and len(part + padding) % 4)):
            raise ArmorError("is not whole base64: a character is missing, or there is one too many")
        yield binascii.a2b_base64((part[:-1] if len(part) % 4 == 1 else part) + "==")


def _crc24(data: bytes) -> bytes:
    """Checksum of an armor (RFC 9580, section 6.1.1)."""
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc = crc << 1 ^ (0x1864CFB if crc & 0x800000 else 0)
    return (crc & 0xFFFFFF).to_bytes(3, "big")


# --- packets -----------------------------------------------------------------------------------------------------


def begins_like_key(head: bytes) -> bool:
    """Whether bytes begin like an exported key: with a secret or public key packet."""
    first = next(packets(head), None)
    if not first or not first.body:
        return False
    return first.tag in (_SECRET_KEY, _PUBLIC_KEY) and first.body[0] in _KEY_VERSIONS


def begins_like_message(head: bytes, *, sure: bool) -> bool:
    """Whether bytes may begin an OpenPGP message; if ``sure``, only one that is encrypted to a public key."""
    first = next(packets(head), None)
    if not first or not first.body or len(head) < 16:
        return False
    if sure:
        return first.tag == _TO_A_KEY and first.body[0] == 3 and len(first.body) > 9 and first.body[9] in _ALGORITHMS
    return first.body[0] in _VERSIONS.get(first.tag, ())


def _ends_early(key: bytes) -> bool:
    """Whether the last packet of a key is not all there; False when that cannot be told."""
    found = list(packets(key))
    end = found[-1].end
    rest = [packet_tag(first) for first in key[end : end + 1] if first & 0x80]  # of a header that is cut off
    tags = [*(packet.tag for packet in found), *rest]
    return _KEY_TAGS.issuperset(tags) and (end > len(key) or bool(rest))
