"""What a backup may hold instead of a database, recognised by how it begins: each kind with what to do."""

import re

from backuplib.armor import message_in
from backuplib.errors import NotADatabaseError
from backuplib.gzip_stream import GZIP_HEAD
from backuplib.packets import read_message

HEAD = 4096  # bytes that tell

# RFC 9580, sections 5.1, 5.3 and 5.13, and GnuPG's own: a SQLCipher database is noise, and may begin like one of these.
_VERSIONS = (3, 4, 5, 6)  # of the packets that lead to the session key
_CONTAINERS = ((18, 1), (18, 2), (20, 1))  # packet and version

_UNPACK = "Unpack it in a RAM folder, and restore the database that comes out, without a wrapping or compressed by gzip"
_DOWNLOAD = "Probably a download that failed: fetch it again"

# Kind, how it begins, what to do
_KINDS = [
    (name, re.compile(begin, re.DOTALL), hint)
    for name, begin, hint in (
        ("compressed by zstd", rb"\x28\xb5\x2f\xfd", f"{_UNPACK}: zstd -d"),
        ("compressed by xz", rb"\xfd7zXZ\x00", f"{_UNPACK}: xz -d"),
        ("compressed by bzip2", rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)", f"{_UNPACK}: bzip2 -d"),
        ("compressed by lz4", rb"\x04\x22\x4d\x18", f"{_UNPACK}: lz4 -d"),
        ("a zip archive", rb"PK(?:\x03\x04|\x05\x06)", f"{_UNPACK}: unzip"),
        ("a 7z archive", rb"7z\xbc\xaf\x27\x1c", f"{_UNPACK}: 7z x"),
        ("a tar archive", rb".{257}ustar", f"{_UNPACK}: tar -x. A safety backup named .raw.tar: RUNBOOK.md, section 4"),
        ("a dump of PostgreSQL", rb"PGDMP|\s*--\s+-- PostgreSQL database", "It belongs into that: pg_restore or psql"),
        ("a dump of MySQL or MariaDB", rb"(?:/\*.*?\*/;?\s*)?-- (?:MySQL|MariaDB) dump", "It belongs into that: mysql"),
        ("encrypted by age", rb"age-encryption\.org/v1|-----BEGIN AGE", "Decrypt it where its key is: age -d"),
        ("an HTML page", rb"\s*<(?i:!doctype html|html)", _DOWNLOAD),
        ("XML", rb"\s*<\?xml", _DOWNLOAD),
        ("JSON", rb'\s*(?:\{\s*"|\[\s*[\[{"])[^\x00-\x08\x0e-\x1f\x7f]*\Z', "It may be what a server said: see it"),
    )
]  # fmt: skip


def is_encrypted_message(head: bytes) -> bool:
    """Whether content that begins so is an encrypted message, armored or not, and no noise that happens to look so.

    A backup file is taken for one by less, :func:`backuplib.armor.begins_like_message`: gpg is asked of it then.
    """
    found = read_message(message_in(head) if head.lstrip().startswith(b"-----BEGIN PGP") else head)
    return found.encrypted and found.newest in _VERSIONS and found.container in _CONTAINERS


def refuse_other_content(head: bytes) -> None:
    """Refuse what is certainly no database, nor a wrapping that is opened here.

    :param head: how the content begins, up to HEAD bytes.
    :raises NotADatabaseError: naming what it is.
    """
    if head.startswith(GZIP_HEAD) and head[3:4] < b"\x20":
        raise NotADatabaseError("the backup is compressed by gzip too many times", hint=f"{_UNPACK}: gunzip")
    if is_encrypted_message(head):
        raise NotADatabaseError(
            "the backup holds another encrypted OpenPGP message", hint=f"Decrypt that first: gpg -d. {_UNPACK}"
        )
    for name, begin, hint in _KINDS:
        if begin.match(head):
            raise NotADatabaseError(f"the backup holds no database, but something else: it is {name}", hint=f"{hint}.")
