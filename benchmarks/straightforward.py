"""The straightforward method, as a reference: one step after another, with all data in memory.

    straightforward.py BACKUP TARGET < binary private key without a passphrase

Prints the seconds of each stage as JSON.
"""

import gzip
import io
import json
import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import gnupg


def restore(backup: Path, target: Path, key: bytes) -> dict[str, float]:
    """Restore a plain SQLite database and return the seconds of each stage."""
    marks = [time.monotonic()]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as home:
        gpg = gnupg.GPG(gnupghome=home)
        gpg.import_keys(key)
        with backup.open("rb") as file:
            decrypted = gpg.decrypt_file(file, always_trust=True)
        if not decrypted.ok:
            raise SystemExit(decrypted.status)
    marks.append(time.monotonic())
    image = io.BytesIO(gzip.decompress(decrypted.data))
    marks.append(time.monotonic())
    checked = bytearray(image.getvalue())
    checked[18:20] = b"\1\1"  # a database in WAL mode cannot be opened in memory
    connection = sqlite3.connect(":memory:")
    connection.deserialize(checked)
    if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
        raise SystemExit("not sound")
    marks.append(time.monotonic())
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as temporary:
        temporary.write(image.getvalue())
        temporary.flush()
        os.fsync(temporary.fileno())
    os.rename(temporary.name, target)
    marks.append(time.monotonic())
    names = ("decrypt", "decompress", "check", "write")
    return {name: marks[index + 1] - marks[index] for index, name in enumerate(names)}


if __name__ == "__main__":
    print(json.dumps(restore(Path(sys.argv[1]), Path(sys.argv[2]), sys.stdin.buffer.read())))
