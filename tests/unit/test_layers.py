"""What lies in a backup instead of a database is named; what may be one is not."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile

import pytest

from backuplib.database import SQLITE_MAGIC
from backuplib.errors import NotADatabaseError
from backuplib.layers import HEAD, refuse_other_content


def tarred() -> bytes:
    out, info = io.BytesIO(), tarfile.TarInfo("shop.db")
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(info)
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("shop.db", b"x" * 1000)
    return out.getvalue()


MESSAGE = bytes.fromhex("c10d03fbcf2caaf101210601000801d21201") + bytes(40)

OTHERS = {
    "gzip": gzip.compress(b"x"),
    "OpenPGP": MESSAGE,
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(20),
    "xz": lzma.compress(b"x" * 100),
    "bzip2": bz2.compress(b"x"),
    "bzip2, ": bz2.compress(b""),
    "lz4": b"\x04\x22\x4d\x18" + bytes(20),
    "zip": zipped(),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(20),
    "tar": tarred(),
    "PostgreSQL": b"PGDMP\x01\x0e",
    "PostgreSQL, ": b"--\n-- PostgreSQL database dump\n--\n",
    "MySQL": b"-- MySQL dump 10.13  Distrib 8.0\n",
    "MariaDB": b"/*M!999999\\- enable the sandbox mode */ \n-- MariaDB dump 10.19\n",
    "age": b"age-encryption.org/v1\n-> X25519",
    "HTML": b"<!DOCTYPE html><html>",
    "HTML, ": b"\n<html lang='de'>",
    "XML": b'<?xml version="1.0"?><Error>',
    "JSON": b'{"error": "no such object"}',
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_database_is_named_with_what_to_do(what: str) -> None:
    with pytest.raises(NotADatabaseError) as raised:
        refuse_other_content(OTHERS[what][:HEAD])
    assert what.removesuffix(", ") in str(raised.value)
    assert raised.value.hint
    assert "DB_PASS" not in str(raised.value) + raised.value.hint


@pytest.mark.parametrize(
    "head",
    [b"", b"x", SQLITE_MAGIC + bytes(80), b"BEGIN TRANSACTION;", b"-- a note\nCREATE TABLE t (a);", b"{" + bytes(99)],
)
def test_what_may_be_a_database_or_dump_is_not_refused(head: bytes) -> None:
    refuse_other_content(head)


@pytest.mark.parametrize(
    "salt",
    [
        "c31af9913efd165f62919d05e4265392b07ea325c9913efd165f62919dc94d",  # a passphrase's packet and one of content
        "c30a84f520a97fb796a37d46d2435d3927c20b9d",
        "8c19182351a064dfaff2b076a942013f02193c49",
        "c1010600",
    ],
)
def test_salt_that_looks_like_packets_is_not_taken_for_a_message(salt: str) -> None:
    refuse_other_content(bytes.fromhex(salt).ljust(100, b"\0"))


def test_noise_which_may_be_sqlcipher_is_not_refused() -> None:
    for _ in range(2000):
        refuse_other_content(os.urandom(64))
