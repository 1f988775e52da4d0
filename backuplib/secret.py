"""Passphrases and keys, kept out of logs and tracebacks."""


class Secret:
    """Bytes whose ``repr`` and ``str`` are ``***``. Wiping is best effort: Python may have made other copies."""

    __slots__ = ("_bytes",)

    def __init__(self, value: str | bytes | bytearray) -> None:
        self._bytes = bytearray(value.encode() if isinstance(value, str) else value)

    def reveal(self) -> str:
        """Return the secret as text (UTF-8)."""
        return self._bytes.decode()

    def reveal_bytes(self) -> bytes:
        return bytes(self._bytes)

    def wipe(self) -> None:
        """Overwrite the bytes with zeros."""
        self._bytes[:] = bytes(len(self._bytes))

    def __bool__(self) -> bool:
        return any(self._bytes)

    def __repr__(self) -> str:
        return "***"
