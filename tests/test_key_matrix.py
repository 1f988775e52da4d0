"""Keys and messages of three implementations: each message opens with its key, and with no other; gpg does the work.

GnuPG and Sequoia are programs, PGPy is a package. What OpenPGP.js 6 makes and GnuPG does not read is kept here.
"""

import base64
import io
import itertools
import os
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backuplib.errors import DecryptionError
from backuplib.openpgp import Keyring
from backuplib.ram_folder import RamFolder
from backuplib.secret import Secret
from tests.support.keys import GpgHome, gpg_home

pytestmark = [pytest.mark.deep, pytest.mark.needs("sq")]

CONTENT = os.urandom(100_000)
LIMIT = 10**7


@dataclass(frozen=True)
class Pair:
    """A key pair as its implementation exports it."""

    private: bytes
    public: bytes
    passphrase: str | None


def by_gnupg(algorithm: str, subkey: str, passphrase: str | None) -> Callable[[GpgHome, Path], Pair]:
    def make(home: GpgHome, _: Path) -> Pair:
        unlock, name = ("--passphrase-fd", "0"), f"{algorithm}-{subkey}-{passphrase}@example.org"
        given = (passphrase or "").encode()
        home.run(*unlock, "--quick-generate-key", name, algorithm, "sign,cert", "never", stdin=given)
        listing = home.run("--with-colons", "--list-keys", name).decode()
        fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
        home.run(*unlock, "--quick-add-key", fingerprint, subkey, "encr", "never", stdin=given)
        private = home.run(*unlock, "--export-secret-keys", fingerprint, stdin=given)
        return Pair(private, home.run("--export", fingerprint), passphrase)

    return make


def sq(*arguments: object, stdin: bytes = b"") -> bytes:
    command = ["sq", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=True, timeout=60).stdout


def by_sequoia(suite: str, *user_id: str) -> Callable[[GpgHome, Path], Pair]:
    def make(_: GpgHome, folder: Path) -> Pair:
        sq("key", "generate", "--cipher-suite", suite, *user_id, "--export", folder / "k", "--rev-cert", folder / "r")
        certificate = sq("key", "extract-cert", folder / "k")
        return Pair(sq("dearmor", folder / "k"), sq("dearmor", stdin=certificate), None)

    return make


def pgpy() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        return pytest.importorskip("pgpy")


def by_pgpy(algorithm: str, size: object, subkey: str, subkey_size: object, passphrase: str | None) -> Any:
    def make(_: GpgHome, __: Path) -> Pair:
        package = pgpy()
        constants = package.constants

        def new(kind: str, of_size: object) -> Any:
            known = getattr(constants.EllipticCurveOID, of_size) if isinstance(of_size, str) else of_size
            return package.PGPKey.new(getattr(constants.PubKeyAlgorithm, kind), known)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flags, key = constants.KeyFlags, new(algorithm, size)
            hashes, ciphers = [constants.HashAlgorithm.SHA256], [constants.SymmetricKeyAlgorithm.AES256]
            user_id = package.PGPUID.new("PGPy", email="pgpy@example.org")
            key.add_uid(user_id, usage={flags.Sign, flags.Certify}, hashes=hashes, ciphers=ciphers)
            key.add_subkey(new(subkey, subkey_size), usage={flags.EncryptCommunications, flags.EncryptStorage})
            public = bytes(key.pubkey)
            if passphrase:
                key.protect(passphrase, ciphers[0], hashes[0])
            return Pair(bytes(key), public, passphrase)

    return make


KEYS: dict[str, Callable[[GpgHome, Path], Pair]] = {
    "GnuPG RSA": by_gnupg("rsa2048", "rsa2048", "päss 1"),
    "GnuPG cv25519": by_gnupg("ed25519", "cv25519", None),
    "GnuPG P-256": by_gnupg("nistp256", "nistp256", "x"),
    "GnuPG P-384": by_gnupg("nistp384", "nistp384", None),
    "GnuPG P-521": by_gnupg("nistp521", "nistp521", "🔑"),
    "Sequoia cv25519": by_sequoia("cv25519", "--userid", "sq@example.org"),
    "Sequoia RSA": by_sequoia("rsa3k", "--userid", "sq@example.org"),
    "Sequoia without a user ID": by_sequoia("cv25519"),
    "PGPy RSA": by_pgpy("RSAEncryptOrSign", 2048, "RSAEncryptOrSign", 2048, "secret"),
    "PGPy cv25519": by_pgpy("EdDSA", "Ed25519", "ECDH", "Curve25519", "secret"),
    "PGPy P-256": by_pgpy("ECDSA", "NIST_P256", "ECDH", "NIST_P256", None),
}


def gnupg_encrypts(public: bytes, _: Path) -> bytes:
    """As the program makes its backups."""
    message: list[bytes] = []
    with RamFolder(LIMIT) as ram:
        keyring = Keyring(ram)
        keyring.encrypt(io.BytesIO(CONTENT), keyring.import_public(public), message.append)
    return b"".join(message)


def sequoia_encrypts(public: bytes, folder: Path) -> bytes:
    (folder / "to").write_bytes(public)
    return sq("encrypt", "--binary", "--compression", "none", "--recipient-cert", folder / "to", stdin=CONTENT)


def pgpy_encrypts(public: bytes, _: Path) -> bytes:
    package = pgpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        key, _rest = package.PGPKey.from_blob(public)
        return bytes(key.encrypt(package.PGPMessage.new(CONTENT, format="b")))


WRITERS = {"GnuPG": gnupg_encrypts, "Sequoia": sequoia_encrypts, "PGPy": pgpy_encrypts}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """All keys, made once."""
    with gpg_home() as home:
        return {name: make(home, tmp_path_factory.mktemp("key")) for name, make in KEYS.items()}


def opened(private: bytes, passphrase: str | None, message: bytes) -> bytes:
    """What the message holds, as a restore gets at it."""
    received: list[bytes] = []
    with RamFolder(LIMIT) as ram:
        keyring = Keyring(ram)
        key = keyring.import_private(Secret(private))
        keyring.refuse_unopenable(message, len(message))
        assert key.protected == (passphrase is not None)
        keyring.decrypt(io.BytesIO(message), Secret(passphrase) if passphrase else None, received.append, LIMIT)
    return b"".join(received)


def refusal(private: bytes, passphrase: str | None, message: bytes) -> str:
    """The identity of the error that it ends in."""
    with pytest.raises(DecryptionError) as raised:
        opened(private, passphrase, message)
    assert raised.value.hint
    return raised.value.id


PAIRS = [pair for pair in itertools.product(KEYS, WRITERS) if pair != ("Sequoia without a user ID", "PGPy")]
"""PGPy encrypts to no key without a user ID."""


@pytest.mark.parametrize(("name", "writer"), PAIRS)
def test_message_opens_with_its_key_alone(pairs: dict[str, Pair], tmp_path: Path, name: str, writer: str) -> None:
    pair = pairs[name]
    message = WRITERS[writer](pair.public, tmp_path)
    assert opened(pair.private, pair.passphrase, message) == CONTENT
    other = next(other for key, other in pairs.items() if key != name and other.passphrase is None)
    assert refusal(other.private, None, message) == "wrong-key"
    assert refusal(pair.public, None, message) == "key-has-no-secret-part"
    if pair.passphrase:
        assert refusal(pair.private, "wrong", message) == "wrong-passphrase"


# --- what GnuPG does not read, by OpenPGP.js 6.3 --------------------------------------------------------------------

V6_KEY = """
    xUsGaweqYBsAAAAgCC7nuwOVIJFrh2q8MF9awEKouu4i5qqoWiA3xJiSAdcANAIVQPgvgzzDsPoVobf5Rxq6uGIlwKXwHy4dM66JHvrCuwYfGwoA
    AABMBYJrB6pgAwsJBwUVCggODAQWAAIBApsDAh4JIqEGZlSiyINnvK7piZMLCMcAx30/9Y5vFVo2xZRmRoztNZ4NJwkDBwMJAQcBCQIHAgAAAADR
    xCBRv6ZW7A8Z4DiYKFxGo5HyrHUceiB1N/tJi7LsbAI3epWQ/jszZDQ/pXKsXUybsDa8zOFkaPqPe3ydtcMb/c5n3SmS4yJmazEYsrvB4rTHybUl
    I9fM8mTUmDCKLKqw/wbNF1Nob3AgPHNob3BAZXhhbXBsZS5vcmc+wpsGExsKAAAALAWCaweqYAIZASKhBmZUosiDZ7yu6YmTCwjHAMd9P/WObxVa
    NsWUZkaM7TWeAAAAAEhsIOcqTpGb+5WS9bMAxbxGCCw8Ruj42YxMOHJOobSdGFV9RCGpeGabSxqettskGxVdsl4fhnR68lRYaOeI/kOi9fTW6MLS
    6JeEsghpaYLfJfTyaRMXehOZa1XGJ5NfRveLBsdLBmsHqmAZAAAAIJpnbtU0RUxVYkV4d7GIQvkX4oof4LxbQzMvUeJFMfs9ANBItRKe+iMFRH6p
    skgyisUkEhFUGH/sppxvN4LKB5BUwpsGGBsKAAAALAWCaweqYAKbDCKhBmZUosiDZ7yu6YmTCwjHAMd9P/WObxVaNsWUZkaM7TWeAAAAAI+lIKq5
    eQfb0oRwaHWY4/vjuXLGdzPBSZCCjVbxHf0O2G3vTkBCwwzn+UgX3y4SD87hp/QY9o4uT1gKa6Bw8oUj5Xh2GmegpKRukO+Uy2Fb2iDAL0nWBZfD
    wRNqWjGoBPDWAA==
"""
V6_MSG = """
    wW0GIQb+XF42Pkd+vy1Jk04sVfrANVxqUwiXzZ683XePcWETSRkyuCbc1cNEegdWkf2rnXQiDZKPyAIDSOwJmEYGL+doIChg2bPVL2G5xuPNqt/D
    0XID3I+zMJuOUykhlHXVe5RucqEkUmYTQQ1A0sA0AgkDDErBho8SeOUC+bhrEsfvnWCwomMPBaXrHgd/hBI80lskIX0djmpcvH3tB7UU7/a3aGbC
    qjt8NhQRWHrIRbEATL9r4ZmC4CxnYOqltsP/GbJmSMSQ7hLEth9icXfKZMvmAnNdAVXXT14RYJPrfIueb9H3FvWC4mIbV6JcpgqOoUCr35n6XTp8
    SejzZDHZ5Qu/omz3fvi6rVHuBwi6UjvvwMou4uGqKz11FCIs+mC+vEP0juQAr9KLKxrKL5xmi2znAFRK2UvpI3tlFD7X/IJg1KdiKTs1+LGa22zA
    LWZeiGVjqZlVGFaXCh85HWs5Vtg42Q==
"""
X25519_KEY = """
    xUkEaweqYBumss3mYR3TXFX7j2vTy4KS1happjyEYePl7dlTbXQppwDTTQcwy6T0x5T76N/en4R/xsGMHqm+cdvG5znlTdkbkBPXzRdTaG9wIDxz
    aG9wQGV4YW1wbGUub3JnPsLADwQTGwoAhQWCaweqYAMLCQcJEB1MK8ZCBpGJRRQAAAAAABwAIHNhbHRAbm90YXRpb25zLm9wZW5wZ3Bqcy5vcmdt
    N3OE0o6E7x2G8GfyEj5MEhCRH1cMe+X8Wu7uRvlbJwUVCggODAQWAAIBAhkBApsDAh4BFiEELveCkA9QX4P9Nw6DHUwrxkIGkYkAAF5VQCUnBM0V
    wQ6e1c9NOUpPE+XTbn2MWGXqGqqOGcqzJ84PZLJdTQ/+mBcKBtrFdPOYGdZysZSwnvF9I/rgK/q8BMdJBGsHqmAZcbfEuTESYNJHq8V1P02dlnGZ
    QHQsFZ54MYCJFFcepBEAIG/mUYJohAfmziJ6VGtKOkYPangS4AQfVXq9njQx8n4NGcK6BBgbCgBwBYJrB6pgCRAdTCvGQgaRiUUUAAAAAAAcACBz
    YWx0QG5vdGF0aW9ucy5vcGVucGdwanMub3Jn3jk9vV1BRLtGIAYHB5FA5ZaONvdN9INIe7Cg5WBhQdoCmwwWIQQu94KQD1Bfg/03DoMdTCvGQgaR
    iQAAIYcZIRLf0YC+EG6C0H7zaQEvXhcg/xGeEXEbfyPknyMsfp4TRei7jdapcMIfgv9NLyuH/IPLEq2hMWOobm4c6rkD
"""
X25519_MSG = """
    wVQDDCSnBYGB2/8Zkc58cq6pqZWMksGUOj4eLvaJRhxFHfQvZebLX/D3J3gpCQ8ag9dkXdUf6LB4fbTvo38yP/FGUntM9spEpyzEB2OdAD9+MYNU
    r17SwBkBPcQZkyGB+Vq47tJ+UD1AR4KkRylEg3QWpYMsr7aVt+hXZT/tfXy8Epp4/Y0nQ0aCi1sHPiz1/HAsxXctyvi6YUNB8u1W71fm5eBSE/Hl
    2qeDNYJvQKH1/tkz9LvkdYHGgVI5W/ccb57CnvGgoU5FpBUBgwAjR7r99y9PObnJ+CwLiAsuW9CfXd60ugzflGFraAxV8mWwlK5MmJ1LKsfXYs1H
    k0Fo/DiC79SDaAk61lGODtETGdWF/YZxlm5mmDLpqFC1V8jYwWoxdY5ARncwmHJWQ9qgu21p
"""
AEAD_KEY = """
    xVgEaweqYBYJKwYBBAHaRw8BAQdA4vpUqHJ+aM2w+hWfXhIXHBmVxlXNGDF1DTJ3aCJLK44AAQDQ8VsI5GInfR6T8c//bH8zmG0egbdAuBMjtHWX
    UQjjlg+4zRdTaG9wIDxzaG9wQGV4YW1wbGUub3JnPsLAIQQTFgoAkwWCaweqYAMLCQcJEL1hVvG5puuoRRQAAAAAABwAIHNhbHRAbm90YXRpb25z
    Lm9wZW5wZ3Bqcy5vcmfUC4OvD1SrdDYp2WL61WxbutDP5QUWNJ1NcSDBUc5vIwUVCggODAQWAAIBAhkBApsDAh4JFiEEG4VizSVHyA8JYFNJvWFW
    8bmm66gNJwkDBwMJAQcBCQIHAgAAEnUA/RHZ63FuW5inngETDl9DFgm/SnlydyRvJNlENGhGpgaCAQDs7uQQv8n1V839nCNBMs+XOU+i4+K4UgIl
    JXdbrc0fAMddBGsHqmASCisGAQQBl1UBBQEBB0COFCgOihte+u15T1ugyPNkiUwCC+hzmxMFTZnK737KVAMBCAcAAP9I27zEFPQYfwCqabrQMdJv
    eOkWA1/z4KW6R5RiWSWr8BGxwr4EGBYKAHAFgmsHqmAJEL1hVvG5puuoRRQAAAAAABwAIHNhbHRAbm90YXRpb25zLm9wZW5wZ3Bqcy5vcmcMt7sA
    1UznPOnDGrQ7jL5Q8JTmsca0/CTa+sWZLLX/ZQKbDBYhBBuFYs0lR8gPCWBTSb1hVvG5puuoAAAnbwD+OGwk7+d6RALxQGhrjSvHxONvGhIZ6fVD
    XzndmcZAOrEA/2sP56ksGWBPQNaVVZbsjF+qom8qilhp9lFf0aJ/dYQJ
"""
AEAD_MSG = """
    wWwGFQQBjVsivngpiSMGrm76mmHVZSHVzhIBB0DGF7KZ+KnVEbWYbPA0xy0pPuRwamM5EUHA3Yr+PrQ/GjAXaEBd8flBlVmFKhB9+QAOl4SO1F1O
    xnepdOO9ooTKrLpvtGO+65tQP0XXqFAaP03SwDQCCQMM9O3WVoctWb1kCYBcjwg1uFwbGhpctqyTUrqq/Q/GMX7raFH90QK9K9GGuWPQ/V4TZRYZ
    /9FDKR4Id93nXA0V1C+1gEo81rw/Or3GSFDm7N6BXFuhzzRQCzSd1lU15TYlCCGQrNGLqEAES08E1WB2zzVF3vuoHVQImPmpBrxvabg7Qjsl4E8f
    sJMLpqVjma8AY4oWMv1fzK1YspvIpp+le2ERwp/vY+dbnob6IPdAmCAaOHn62xnhQPpA/ZK9MuY/NCZgFwTr1JyH4c9Nqcm3kbenHbYWy3x/orj6
    duJfL6/rtHGXh2Zo9Nuu6xuJ3+Kv
"""
ARGON2_KEY = """
    xYgEaweqYBYJKwYBBAHaRw8BAQdALf4Y6+XmNUNEDfG4eT89f1KcBkDRX4ojn+0clOxdFmb9CQMEOF3MvD6akHRUDmDkmOgJjgMEEFLx7JNj41xQ
    cp+fU29mTIABRboHCKg6DxbNPcTVh02Yo5FgsKa4fxWjJZ2/ySuUEy7LN7Ocifk/74YbRYbXzRdTaG9wIDxzaG9wQGV4YW1wbGUub3JnPsLAIQQT
    FgoAkwWCaweqYAMLCQcJENCBTODUmYDvRRQAAAAAABwAIHNhbHRAbm90YXRpb25zLm9wZW5wZ3Bqcy5vcmf4kUrPBq9X/i4CZSxuEFBIk/Xcuarr
    tEOe90Lz3UsV5QUVCggODAQWAAIBAhkBApsDAh4JFiEE3lwyUro062XocYMd0IFM4NSZgO8NJwkDBwMJAQcBCQIHAgAAn88A/AoC/CBKTwO1HFpk
    k6c/sGt7tnlieMUXd7tgUm9kNHTMAQDGqAuMf+lUzHbGYOyltAEm0twbY9RQRJtQGZVPsCa6AceNBGsHqmASCisGAQQBl1UBBQEBB0DMfKMhBUTp
    2p25aDLTSUnJIAr0nyBA7YKzIQffSRHkKAMBCAf9CQMEl97MPObNWzWgi/blwsZ9XwMEEFu1kArpGUYY8fe6GYrwrtDqr2CGTlvZnUmdvDZyX44l
    1CKRgzO+3BBcjoQcFjCkRM/tZl1pTR7Qh5TKIuOIwr4EGBYKAHAFgmsHqmAJENCBTODUmYDvRRQAAAAAABwAIHNhbHRAbm90YXRpb25zLm9wZW5w
    Z3Bqcy5vcmecw2K9Iir6sBYrecfFHbkbc4wkNR6WyzDHMr1y/YtpggKbDBYhBN5cMlK6NOtl6HGDHdCBTODUmYDvAABB/AEAs0U2jvgLG1KGWEu6
    bm26mUsbklfU9YEJF4XWUUb151YA/3xM332oz+Edp1bh2trPZOm4EO/i9iG9tDGWi27+uMkA
"""
ARGON2_MSG = """
    wWwGFQSV16h4UcrErgSZ8uq6Vu4/E5rKlxIBB0DaaL5xS4aPF96KBelR8LaBphAswj9D6SiTnQFPS68EGzA3blIZdJUsDUJPdQqwI/Bx6pVsPkdy
    wREz4NRNBIFnZBi9ElcFmt0+vsv6nW/6O7nSwDQCCQMMyd2Vi/YwfDz88E6+ZMs8WQG+VvPAbBFBxCuD9QYwStHmfvFevrYqdG5Ch+Y7tZm5Ffii
    FdudUIMymy/kpIQZMloTLC21Y/rBDotrD0pMV9ZhsX9Lj5dFw0UfAvBmJsVaswcyzonkNCt7BtcM8izLQlbALgdocauJS/Z8CSJBsfpcZ+hZpSfT
    NNiuLxNYiDQyt63Sut1QudnDBAbRGdXBDW70kdT+ihG8svp3TOw4ByLNicAv14llwfpveF6Lw+8j3mnbJpQZibBXnFswwu9FXwS9mtMe5YUx+aYf
    zx9c5uOAe9OuhOgXnHx3QfXA5YvF
"""
AEAD_SECRET_KEY = """
    xX8EaweqYhYJKwYBBAHaRw8BAQdAVougGFlL5tkJFRJ2GwSbLXORLZ8GmvPtBVTmuxImt3P9CQMDCC0+O98/txr34OnG8xFsmMcmVWvJaC9Xk4LU
    WceQBCnJ/g3MLUqWRCMvl3XZMnf1gmjlfk4w9IbW1DtAHoptA0BOLJ6NfBrhzRdTaG9wIDxzaG9wQGV4YW1wbGUub3JnPsLAIQQTFgoAkwWCaweq
    YgMLCQcJEMC4QbQwToi0RRQAAAAAABwAIHNhbHRAbm90YXRpb25zLm9wZW5wZ3Bqcy5vcmfk9G16BlZZ3ipbVhMxcyzjC6cUslZQRQNEiuv7YGpD
    HAUVCggODAQWAAIBAhkBApsDAh4JFiEEHxquwTGSfOR62MpBwLhBtDBOiLQNJwkDBwMJAQcBCQIHAgAAdEwBAJ7AU2KM+D2LHUwhIhWl6dGRD5wB
    UXLX//ds9JHpSSGMAP0dmmXCg8iC8khr2AEzpv0LHX9DC0suxSlyvy/8gKB6CceEBGsHqmISCisGAQQBl1UBBQEBB0BLIWSceN8W31CpvgIUG4hP
    nz4iVybZ54XtvsPUcaPeOAMBCAf9CQMDCJ+ySzYAuT2p4KprslKqUswkSAATeqQcX2nPV6XqJxHQFJsR6US4SNoHRSuFpBAE3IYuRyh4deRYkclF
    8RrK9h7e1HU88Pedwr4EGBYKAHAFgmsHqmIJEMC4QbQwToi0RRQAAAAAABwAIHNhbHRAbm90YXRpb25zLm9wZW5wZ3Bqcy5vcmd8WT9rH6cNSWWa
    M6mSONhx/oq6WkcTD4cV6o9VIVMJXwKbDBYhBB8arsExknzketjKQcC4QbQwToi0AABVvgD/aEEZjg1HdMIMX14tNfRWLLjTUtcmenXSsxCvr20/
    egkA/iiqiTggRSqWsptpatAwDUX7nfacACWPBQX2UGfTkacD
"""
AEAD_SECRET_MSG = """
    wWwGFQR+vLd6N+tl7TWrDDpDOYgB1JE22BIBB0Bfe7qU+x1x/+HHMKaEwht+l7DLmtiTTJ6eMrIYyKTAJzDecR+rUA8BGQlOOyFEGtCOAqoR6w7O
    jP11iIPLqlX830AULaykOK7IbR+ym40GzBHSwDQCCQMMfR5sozHxWZ7eWz6C5IclYwAiGDW74D9Vddx5Wj4IwNefDU1wy3Hrqs0RFtyp78q5nL7n
    pzDSi8gCf+5PR9tEtPjHyC/gsp/SoN05pn+zDaYOpqcUJm32TAdLyy5LY7gOzKdqn9WtJ+UXatPm3lf+di9ZHtAhVUTkM8GvqYOvsIf+tX16K/TK
    q+urvOMucjeaVjNXqQwIKN3SI0La7WOwl1+YVJKvNHSEVUbtXOYAZTkmlBbTXeshZBsU8jpzBRF1vUUUMBlEbqzL2bKD+bXe0oltg8aEdwLRQQ87
    djlwk+wVa4qPX+JLXqyiRZi7TFbD
"""

UNREAD = {
    "key of version 6": (V6_KEY, V6_MSG),
    "key of X25519": (X25519_KEY, X25519_MSG),
    "message with AEAD": (AEAD_KEY, AEAD_MSG),
    "key protected with Argon2": (ARGON2_KEY, ARGON2_MSG),
    "key protected with AEAD": (AEAD_SECRET_KEY, AEAD_SECRET_MSG),
}


@pytest.mark.parametrize("name", UNREAD)
def test_format_that_gnupg_does_not_read_is_named(name: str) -> None:
    key, message = (base64.b64decode(part) for part in UNREAD[name])
    assert refusal(key, None, message) == "unsupported-format"
