"""Gzip, piece by piece, in both directions."""

import io
import re
import zlib
from collections.abc import Callable
from typing import Any

from backuplib.errors import DamagedGzipError, TooLargeError
from backuplib.files import CHUNK

GZIP_MAGIC = b"\x1f\x8b"
GZIP_HEAD = GZIP_MAGIC + b"\x08"  # and the only method there is
MOST_LAYERS = 3  # gzip in gzip
PIECE = 1 << 16  # bytes; the rest of it is copied at the end of each member, of which there may be thousands


def _zlib() -> Any:
    """ISA-L's zlib, or Python's own, which is slower, where the package isal is missing: in a bot's image."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib


class GzipDecoder:
    """Decompresses a gzip stream of one or more members into ``sink``, up to ``limit`` bytes."""

    def __init__(self, sink: Callable[[bytes], object], limit: int) -> None:
        module = _zlib()
        self._new: Any = lambda: module.decompressobj(wbits=31)  # 31: gzip with header and checksum
        self._error: Any = module.error
        self._sink, self._limit, self._left = sink, limit, limit
        self._member: Any = None
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Decompress a piece.

        :raises DamagedGzipError: when it is corrupted or followed by other data.
        :raises TooLargeError: when the content exceeds the limit.
        """
        for start in range(0, len(data), PIECE):
            self._feed(data[start : start + PIECE])

    def _feed(self, data: bytes) -> None:
        while data:
            if self._member is None:
                if self._ended:
                    data = data.lstrip(b"\0")  # padding, which tapes and some copying tools add
                    if not data:
                        return
                    if data[:1] != b"\x1f":
                        raise _gzip_error("trailing data after the end of the stream")
                self._member = self._new()
            data = self._inflate(data)

    def _inflate(self, data: bytes) -> bytes:
        """Feed the current member and return what belongs to the next."""
        member = self._member
        while True:
            try:
                content = member.decompress(data, CHUNK)
            except self._error as error:
                raise _gzip_error(re.sub(r"^Error -\d+ (while decompressing data: )?", "", str(error))) from None
            self._left -= len(content)
            if self._left < 0:
                raise TooLargeError(self._limit)
            self._sink(content)
            if member.eof:
                self._member, self._ended = None, True
                return bytes(member.unused_data)
            data = member.unconsumed_tail
            if not data and len(content) < CHUNK:
                return b""

    def finish(self) -> None:
        """Check that the last member is complete, else raise DamagedGzipError."""
        if self._member is not None or not self._ended:
            raise _gzip_error("it is truncated")


class Unzipper:
    """Passes a stream to ``sink``: unzipped if it is gzip, and so on inwards, each layer up to ``limit`` bytes."""

    def __init__(
        self, sink: Callable[[bytes], object], limit: int, layers: int = MOST_LAYERS, magic: bytes = GZIP_MAGIC
    ) -> None:
        self._sink, self._limit, self._layers, self._magic = sink, limit, layers, magic
        self._head = b""
        self._feed: Callable[[bytes], object] | None = None
        self._decoder: GzipDecoder | None = None
        self._inner: Unzipper | None = None

    def feed(self, data: bytes) -> None:
        """Take a piece."""
        if self._feed is None:
            data = self._head = self._head + data
            if len(data) < len(GZIP_HEAD):
                return
            self._begin()
        elif data:
            self._feed(data)

    def _begin(self) -> None:
        self._feed = self._sink
        if self._layers and self._head.startswith(self._magic):
            # Further in, more has to be right: a SQLCipher database may begin like gzip by chance.
            self._inner = Unzipper(self._sink, self._limit, self._layers - 1, GZIP_HEAD)
            self._decoder = GzipDecoder(self._inner.feed, self._limit)
            self._feed = self._decoder.feed
        self._feed(self._head)

    def finish(self) -> None:
        """Check that all layers are complete, else raise DamagedGzipError."""
        if self._feed is None:
            self._begin()
        if self._decoder and self._inner:
            self._decoder.finish()
            self._inner.finish()


def _gzip_error(reason: str) -> DamagedGzipError:
    return DamagedGzipError(f"the compressed backup is corrupted: {reason}")


class GzipReader:
    """Reads a file as a gzip stream: level 0 stores (SQLCipher's pages do not compress), 1 to 3 are those of ISA-L."""

    def __init__(self, file: io.FileIO, level: int, progress: Callable[[int], object]) -> None:
        self._file, self._progress = file, progress
        self._compressor: Any = (_zlib() if level else zlib).compressobj(level, zlib.DEFLATED, 31)
        self._pending = io.BytesIO()

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes of the gzip stream, b"" at its end."""
        while not (data := self._pending.read(size)) and self._compressor:
            piece = self._file.read(CHUNK)
            self._progress(self._file.tell())  # bytes read from the file
            self._pending = io.BytesIO(self._compressor.compress(piece) if piece else self._compressor.flush())
            if not piece:
                self._compressor = None
        return data
