"""Gzip, piece by piece, in both directions, with ISA-L and without; against Python's own gzip module."""

import gzip
import io
import random
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from backuplib import gzip_stream
from backuplib.errors import DamagedGzipError, TooLargeError
from backuplib.files import CHUNK
from backuplib.gzip_stream import GzipDecoder, GzipReader

CONTENT = random.Random(1).randbytes(3000) + b"a row like the one before it; " * 300
ONE = gzip.compress(CONTENT)


@pytest.fixture(autouse=True, params=["isal", "zlib"])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the package isal is there, or missing as in a bot's image."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    return str(request.param)


def decode(pieces: Iterable[bytes], limit: int = 10**6) -> bytes:
    content = bytearray()
    decoder = GzipDecoder(content.extend, limit)
    for piece in pieces:
        decoder.feed(piece)
    decoder.finish()
    return bytes(content)


def bytewise(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "content"),
    [
        (ONE, CONTENT),
        (gzip.compress(b""), b""),
        (ONE + gzip.compress(b"second"), CONTENT + b"second"),
        (gzip.compress(b"") + ONE, CONTENT),
        (ONE + b"\0" * 512, CONTENT),
        (ONE + b"\0" * 3 + gzip.compress(b"second") + b"\0", CONTENT + b"second"),
    ],
    ids=["one member", "empty", "two members", "empty one first", "padding", "padding between"],
)
def test_what_gzip_makes_is_read_however_it_is_cut(stream: bytes, content: bytes) -> None:
    assert decode([stream]) == content
    assert decode(bytewise(stream)) == content
    assert decode([stream[:11], b"", stream[11:]]) == content


def test_options_of_a_header_are_read() -> None:
    file = io.BytesIO()
    with gzip.GzipFile("shop.db", "wb", fileobj=file, mtime=1) as stream:
        stream.write(CONTENT)
    assert decode([file.getvalue()]) == CONTENT


@pytest.mark.parametrize("tail", [b"x", b"\0x", b"\n", b"\x1f", b"\x1f\x8b\x08", b"\x1fno member after all"])
def test_something_else_behind_the_end_is_refused(tail: bytes) -> None:
    for pieces in ([ONE + tail], [ONE, *bytewise(tail)]):
        with pytest.raises(DamagedGzipError):
            decode(pieces)


@pytest.mark.parametrize("length", [0, 1, 2, 9, 10, 11, 100, len(ONE) - 9, len(ONE) - 8, len(ONE) - 4, len(ONE) - 1])
def test_truncated_stream_is_refused(length: int) -> None:
    with pytest.raises(DamagedGzipError):
        decode([ONE[:length]])
    with pytest.raises(DamagedGzipError):
        decode([gzip.compress(b"first"), ONE[: length or 3]])


@pytest.mark.parametrize("index", [0, 1, 2, 1500, len(ONE) - 8, len(ONE) - 1], ids=str)
def test_flipped_bit_is_refused(index: int) -> None:
    """In the header, the content, its checksum, its length."""
    damaged = bytearray(ONE)
    damaged[index] ^= 1
    with pytest.raises(DamagedGzipError):
        decode([bytes(damaged)])


def test_limit_is_the_most_that_is_taken() -> None:
    assert decode([ONE], limit=len(CONTENT)) == CONTENT
    with pytest.raises(TooLargeError):
        decode([ONE], limit=len(CONTENT) - 1)


def test_limit_holds_for_all_members_together() -> None:
    with pytest.raises(TooLargeError):
        decode([ONE, ONE], limit=2 * len(CONTENT) - 1)


def test_bomb_is_left_when_the_limit_is_reached() -> None:
    bomb, given = gzip.compress(bytes(9 * CHUNK)), 0

    def sink(data: bytes) -> None:
        nonlocal given
        given += len(data)

    with pytest.raises(TooLargeError):
        GzipDecoder(sink, 3 * CHUNK).feed(bomb)
    assert given <= 3 * CHUNK


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_what_the_reader_makes_is_gzip(tmp_path: Path, level: int, size: int) -> None:
    content = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(content)
    told: list[int] = []
    with io.FileIO(tmp_path / "file") as file:
        reader = GzipReader(file, level, told.append)
        stream = b"".join(iter(lambda: reader.read(70_001), b""))
        assert reader.read(10) == b""
    assert gzip.decompress(stream) == content
    assert decode([stream], limit=size) == content
    assert told[-1] == size
    assert told == sorted(told)


def test_reader_gives_no_more_than_it_was_asked_for(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(5000)
    (tmp_path / "file").write_bytes(content)
    with io.FileIO(tmp_path / "file") as file:
        reader = GzipReader(file, 1, lambda _: None)
        pieces = list(iter(lambda: reader.read(7), b""))
    assert max(map(len, pieces)) == 7
    assert gzip.decompress(b"".join(pieces)) == content


def test_without_isal_it_is_zlib_that_works(package: str) -> None:
    assert gzip_stream._zlib().__name__ == {"isal": "isal.isal_zlib", "zlib": "zlib"}[package]


def test_level_0_stores(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    with io.FileIO(tmp_path / "file") as file:
        reader = GzipReader(file, 0, lambda _: None)
        assert len(b"".join(iter(lambda: reader.read(CHUNK), b""))) > 100_000
