"""Private keys by real tools, and the ways of handing them over: each opens the backup, or says why not."""

import base64
import os
import random
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import MakeShop, StartTerminal
from tests.support.containers import call
from tests.support.keys import IN_2020, PASSPHRASE, GpgHome, Key, Keys, gpg_home
from tests.support.needs import require
from tests.support.shop import Completed, Shop, filled_pipe
from tests.support.terminal import Terminal

CANNOT_DECRYPT = 4
NAME = "db_backup_20250130_120000.db.gz.gpg"


@pytest.fixture
def plain_shop(make_shop: MakeShop) -> Shop:
    """Keys are the same in both modes."""
    return make_shop("sqlite")


@dataclass(frozen=True)
class Case:
    """A private key as somebody exported it, and a message that it must open."""

    private: bytes
    passphrase: str | None
    message: bytes
    warning: str = ""


def hand_over(shop: Shop, private: bytes, passphrase: bytes | None, *args: object) -> Completed:
    """Restore the backup named NAME with this key on standard input."""
    unlock: list[object] = []
    descriptor = None
    if passphrase is not None:
        descriptor = filled_pipe(passphrase + b"\n")
        unlock = ["--passphrase-fd", descriptor]
    try:
        return shop.restore(
            shop.backups / NAME,
            "--key-stdin",
            *unlock,
            *args,
            stdin=private,
            pass_fds=[descriptor] if descriptor is not None else [],
        )
    finally:
        if descriptor is not None:
            os.close(descriptor)


# --- the matrix ------------------------------------------------------------------------------------------------------


def quick_key(
    home: GpgHome, primary: str, encryption: str, passphrase: str, *options: str, expire: str = "never"
) -> str:
    """A primary key with one subkey that encrypts; its fingerprint."""
    unlock = (*options, "--passphrase-fd", "0")
    name = f"{primary}-{encryption}-{random.random()}@example.org"
    home.run(*unlock, "--quick-generate-key", name, primary, "default", expire, stdin=passphrase.encode())
    listing = home.run("--with-colons", "--list-keys", name).decode()
    fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
    home.run(*unlock, "--quick-add-key", fingerprint, encryption, "encrypt", expire, stdin=passphrase.encode())
    return fingerprint


def export(home: GpgHome, passphrase: str, *which: str, command: str = "--export-secret-keys") -> bytes:
    """What the operator keeps, armored."""
    return home.run("--armor", "--passphrase-fd", "0", command, *which, stdin=passphrase.encode())


def by_gnupg(primary: str, encryption: str, passphrase: str) -> Callable[[GpgHome, bytes], Case]:
    """A key of GnuPG's with these algorithms."""

    def make(home: GpgHome, content: bytes) -> Case:
        fingerprint = quick_key(home, primary, encryption, passphrase)
        message = home.encrypt(content, "--recipient", fingerprint)
        return Case(export(home, passphrase, fingerprint), passphrase or None, message)

    return make


def with_several_subkeys(home: GpgHome, content: bytes) -> Case:
    """Three subkeys encrypt and one signs; the message is to the oldest."""
    fingerprint = quick_key(home, "ed25519", "cv25519", "one of many")
    listing = home.run("--with-colons", "--list-keys", fingerprint).decode()
    oldest = next(x.split(":")[4] for x in listing.splitlines() if x.startswith("sub:"))
    for algorithm, usage in (("rsa2048", "encrypt"), ("cv25519", "encrypt"), ("ed25519", "sign")):
        add = ("--quick-add-key", fingerprint, algorithm, usage, "never")
        home.run("--passphrase-fd", "0", *add, stdin=b"one of many")
    message = home.encrypt(content, "--recipient", f"{oldest}!")
    return Case(export(home, "one of many", fingerprint), "one of many", message)


def expired(home: GpgHome, content: bytes) -> Case:
    """The key expired years ago; the backup is older still."""
    fingerprint = quick_key(home, "ed25519", "cv25519", "old", IN_2020, expire="30d")
    message = home.encrypt(content, IN_2020, "--recipient", fingerprint)
    return Case(export(home, "old", fingerprint), "old", message, warning="expired")


def revoked(home: GpgHome, content: bytes) -> Case:
    """The operator has revoked the key after the backup was made."""
    fingerprint = quick_key(home, "ed25519", "cv25519", "gone")
    message = home.encrypt(content, "--recipient", fingerprint)
    certificate = (home.path / f"openpgp-revocs.d/{fingerprint}.rev").read_text().replace(":-----BEGIN", "-----BEGIN")
    home.run("--import", stdin=certificate.encode())
    return Case(export(home, "gone", fingerprint), "gone", message, warning="revoked")


def several_in_one_export(home: GpgHome, content: bytes) -> Case:
    """All keys of the operator in one export, the one that counts in the middle; all under one passphrase."""
    fingerprints = [quick_key(home, "ed25519", "cv25519", "same for all") for _ in range(3)]
    message = home.encrypt(content, "--recipient", fingerprints[1])
    return Case(export(home, "same for all", *fingerprints), "same for all", message)


def subkeys_only(home: GpgHome, content: bytes) -> Case:
    """The primary key stays in the safe: a stub stands for it."""
    fingerprint = quick_key(home, "rsa2048", "rsa2048", "subkeys")
    message = home.encrypt(content, "--recipient", fingerprint)
    return Case(export(home, "subkeys", fingerprint, command="--export-secret-subkeys"), "subkeys", message)


def one_subkey_alone(home: GpgHome, content: bytes) -> Case:
    """Only the subkey that decrypts was exported (KEY-ID!)."""
    fingerprint = quick_key(home, "ed25519", "cv25519", "alone")
    message = home.encrypt(content, "--recipient", fingerprint)
    listing = home.run("--with-colons", "--list-keys", fingerprint).decode()
    subkey = next(x.split(":")[4] for x in listing.splitlines() if x.startswith("sub:"))
    return Case(export(home, "alone", f"{subkey}!", command="--export-secret-subkeys"), "alone", message)


def by_sequoia(suite: str, passphrase: str | None) -> Callable[[GpgHome, bytes], Case]:
    """A key that Sequoia made, and a message by Sequoia to it."""

    def make(home: GpgHome, content: bytes) -> Case:
        require("sq")
        key, certificate = home.path / "sq.key", home.path / "sq.pgp"
        command = ["sq", "key", "generate", "--cipher-suite", suite, "--userid", "sq@example.org", "--export", str(key)]
        if passphrase is None:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        else:
            asked = Terminal([*command, "--with-password"], cwd=home.path, env=dict(os.environ))
            try:
                for _ in range(2):
                    asked.expect("(?i)password")
                    asked.send(passphrase + "\n")
                assert asked.wait(60) == 0, asked.output
            finally:
                asked.end()
        extract = ["sq", "key", "extract-cert", "--output", str(certificate), str(key)]
        subprocess.run(extract, check=True, capture_output=True, timeout=60)
        # GnuPG 2.2 takes the padding of Sequoia's default compression for damage.
        encryption = ["sq", "encrypt", "--compression", "none", "--recipient-cert", str(certificate)]
        message = subprocess.run(encryption, input=content, check=True, capture_output=True, timeout=60).stdout
        return Case(key.read_bytes(), passphrase, message)

    return make


MATRIX: dict[str, Callable[[GpgHome, bytes], Case]] = {
    "RSA-2048": by_gnupg("rsa2048", "rsa2048", "secret"),
    "RSA-3072, umlauts and quotes": by_gnupg("rsa3072", "rsa3072", PASSPHRASE),
    "RSA-4096, blanks at both ends": by_gnupg("rsa4096", "rsa4096", "  blanks at both ends  "),
    "cv25519, emoji": by_gnupg("ed25519", "cv25519", "🔑 schlüssel 密码"),
    "NIST P-256, shell characters": by_gnupg("nistp256", "nistp256", "$(id) `id` \\ ; ' \" $HOME *"),
    "NIST P-521": by_gnupg("nistp521", "nistp521", "x"),
    "Brainpool P-256, long": by_gnupg("brainpoolP256r1", "brainpoolP256r1", "0123456789" * 20),
    "RSA-2048 without passphrase": by_gnupg("rsa2048", "rsa2048", ""),
    "cv25519 without passphrase": by_gnupg("ed25519", "cv25519", ""),
    "several subkeys": with_several_subkeys,
    "expired": expired,
    "revoked": revoked,
    "several keys in one export": several_in_one_export,
    "subkeys only": subkeys_only,
    "one subkey alone": one_subkey_alone,
    "Sequoia cv25519": by_sequoia("cv25519", None),
    "Sequoia cv25519 with passphrase": by_sequoia("cv25519", "sëquoia 1"),
    "Sequoia RSA-3072": by_sequoia("rsa3k", None),
}


IN_EVERY_RUN = ("RSA-2048", "cv25519, emoji", "several subkeys", "expired", "subkeys only")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.deep) for name in MATRIX]
)
def test_key_opens_its_backup_and_a_wrong_passphrase_does_not(plain_shop: Shop, name: str) -> None:
    with gpg_home() as home:
        case = MATRIX[name](home, plain_shop.content())
    rows = plain_shop.rows()
    (plain_shop.backups / NAME).write_bytes(case.message)
    plain_shop.change_data()
    before = plain_shop.snapshot()
    given = None if case.passphrase is None else case.passphrase.encode()

    if given is not None:
        wrong = hand_over(plain_shop, case.private, given + b"x", "--force")
        assert wrong.ended == (CANNOT_DECRYPT, "wrong-passphrase"), wrong.text
        assert plain_shop.snapshot() == before

    done = hand_over(plain_shop, case.private, given, "--force")
    assert done.code == 0, done.text
    assert case.warning in done.text
    assert plain_shop.rows() == rows


def test_superfluous_passphrase_does_no_harm(plain_shop: Shop, gpg: GpgHome, keys: Keys) -> None:
    message = gpg.encrypt(plain_shop.content(), "--recipient", keys.open.fingerprint)
    (plain_shop.backups / NAME).write_bytes(message)
    done = hand_over(plain_shop, keys.open.private_armor.encode(), b"not needed", "--verify-only")
    assert done.code == 0, done.text


# --- forms of handing it over ----------------------------------------------------------------------------------------


@pytest.fixture
def backup(plain_shop: Shop, gpg: GpgHome, keys: Keys) -> Path:
    """A backup for keys.rsa and keys.open."""
    to = ("--recipient", keys.rsa.fingerprint, "--recipient", keys.open.fingerprint)
    path = plain_shop.backups / NAME
    path.write_bytes(gpg.encrypt(plain_shop.content(), *to))
    return path


def wrapped(text: bytes, width: int, end: bytes) -> bytes:
    """Broken into lines."""
    return end.join(text[i : i + width] for i in range(0, len(text), width)) + end


def b64(data: bytes) -> bytes:
    """In base64, one line without its end."""
    return base64.b64encode(data)


FORMS: dict[str, Callable[[Key], bytes]] = {
    "base64 of armor, one line": lambda key: b64(key.private_armor.encode()) + b"\n",
    "base64 of armor, no final newline": lambda key: b64(key.private_armor.encode()),
    "base64 of armor, wrapped at 76": lambda key: wrapped(b64(key.private_armor.encode()), 76, b"\n"),
    "base64 of armor, wrapped with CRLF": lambda key: wrapped(b64(key.private_armor.encode()), 64, b"\r\n"),
    "base64 of armor with CRLF inside": lambda key: b64(key.private_armor.replace("\n", "\r\n").encode()),
    "base64 of binary, one line": lambda key: b64(key.private_binary) + b"\n",
    "base64 of binary, wrapped": lambda key: wrapped(b64(key.private_binary), 60, b"\n"),
    "blanks around and between": lambda key: b" \t\n\n  " + wrapped(b64(key.private_binary), 50, b" \n\t ") + b"\n\n ",
    "base64 with a BOM": lambda key: b"\xef\xbb\xbf" + b64(key.private_armor.encode()) + b"\r\n",
    "base64 in UTF-16 with a BOM": lambda key: b64(key.private_armor.encode()).decode().encode("utf-16"),
    "armor in UTF-16 big endian": lambda key: b"\xfe\xff" + key.private_armor.encode("utf-16-be"),
    "base64 of an armor with a BOM": lambda key: b64(b"\xef\xbb\xbf" + key.private_armor.encode()),
    "armor": lambda key: key.private_armor.encode(),
    "armor with CRLF": lambda key: key.private_armor.replace("\n", "\r\n").encode(),
    "armor with a BOM": lambda key: b"\xef\xbb\xbf" + key.private_armor.encode(),
    "armor after some words": lambda key: b"My key, from the safe:\n\n" + key.private_armor.encode(),
    "armor without final newline": lambda key: key.private_armor.rstrip().encode(),
    "binary": lambda key: key.private_binary,
}


@pytest.mark.parametrize("form", FORMS)
def test_key_from_standard_input_is_understood_in_every_form(
    plain_shop: Shop, keys: Keys, backup: Path, form: str
) -> None:
    key = keys.rsa if "RSA" in form else keys.open
    done = hand_over(plain_shop, FORMS[form](key), None, "--verify-only")
    assert done.code == 0, done.text


@pytest.mark.parametrize("form", ["base64 of armor, one line", "binary"])
def test_long_rsa_key_from_standard_input(plain_shop: Shop, keys: Keys, backup: Path, form: str) -> None:
    assert keys.rsa.passphrase
    done = hand_over(plain_shop, FORMS[form](keys.rsa), keys.rsa.passphrase.encode(), "--verify-only")
    assert done.code == 0, done.text


# --- what is no usable key -------------------------------------------------------------------------------------------


def corrupted(data: bytes) -> bytes:
    """A few bytes in the middle changed."""
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0x55 for byte in data[middle : middle + 8]) + data[middle + 8 :]


BAD: dict[str, bytes | Callable[[Keys], bytes]] = {
    "empty": b"",
    "blanks only": b" \n\r\n\t ",
    "BOM only": b"\xef\xbb\xbf",
    "text": b"this is not a key",
    "base64 of text": b64(b"this is not a key, but long enough to be one"),
    "noise": random.Random(1).randbytes(1000),
    "NUL bytes": bytes(1000),
    "public key": lambda keys: keys.open.public_binary,
    "public key in base64": lambda keys: keys.open.public_b64.encode(),
    "truncated binary": lambda keys: keys.rsa.private_binary[:700],
    "truncated binary in base64": lambda keys: b64(keys.rsa.private_binary[:700]),
    "first bytes of a key": lambda keys: b64(keys.rsa.private_binary[:20]),
    "truncated armor": lambda keys: keys.rsa.private_armor[:2000].encode(),
    "truncated armor in base64": lambda keys: b64(keys.rsa.private_armor[:2000].encode()),
    "first line of an armor": b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n",
    "base64 cut within a group": lambda keys: keys.rsa.private_b64[:2001].encode(),
    "damaged binary": lambda keys: corrupted(keys.rsa.private_binary),
    "a message, not a key": b"-----BEGIN PGP MESSAGE-----\n\nhQ==\n-----END PGP MESSAGE-----\n",
    "a certificate of a web server": b"-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----",
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_usable_key_is_refused(plain_shop: Shop, keys: Keys, backup: Path, what: str) -> None:
    made = BAD[what]
    error = "key-has-no-secret-part" if what.startswith("public key") else "unusable-key"
    before = plain_shop.snapshot()
    done = hand_over(plain_shop, made if isinstance(made, bytes) else made(keys), None, "--force")
    assert done.ended == (CANNOT_DECRYPT, error), done.text
    assert "Nothing was touched" in done.err
    assert "gpg --export-secret-keys" in done.error["hint"]  # what to do next
    assert plain_shop.snapshot() == before


@pytest.mark.needs("root", "mount")
def test_missing_agent_is_not_taken_for_a_damaged_key(plain_shop: Shop, keys: Keys, backup: Path) -> None:
    """As after `apt-get install --no-install-recommends gpg`."""
    agent = call("gpgconf", "--list-components").split("gpg-agent:")[1].splitlines()[0].rpartition(":")[2]
    script = f'mount --bind /dev/null {agent}; exec "$@"'
    before = plain_shop.snapshot()
    done = plain_shop.restore(
        backup, "--force", key=keys.open, wrapper=["unshare", "--mount", "sh", "-euc", script, "sh"]
    )
    assert done.ended == (3, "missing-program"), done.text
    assert "gpg-agent" in done.error["message"]
    assert "apt-get install" in done.error["hint"]
    assert plain_shop.snapshot() == before


# --- on a terminal ---------------------------------------------------------------------------------------------------


def settings_of(terminal: Terminal) -> list[object]:
    """The terminal's settings: echo, line mode and all."""
    return termios.tcgetattr(terminal.master)


@pytest.mark.parametrize(
    "ending", ["damaged key", "public key", "no key", "Ctrl-C", "SIGTERM", "SIGHUP", "Ctrl-D", "wrong passphrases"]
)
def test_terminal_is_left_as_it_was(
    plain_shop: Shop, keys: Keys, backup: Path, terminal: StartTerminal, ending: str
) -> None:
    session = terminal(plain_shop, backup, "--verify-only")
    before = settings_of(session)
    session.expect("private key")
    if ending in ("Ctrl-C", "Ctrl-D"):
        session.send({"Ctrl-C": "LS0tLS1\x03", "Ctrl-D": "\x04"}[ending])
    elif ending.startswith("SIG"):
        session.process.send_signal(signal.Signals[ending])
    elif ending == "wrong passphrases":
        session.send(keys.rsa.private_b64 + "\n")
        for _ in range(3):
            session.expect("Passphrase of the private key: ")
            session.send("wrong\n")
    else:
        pasted = {"damaged key": keys.rsa.private_b64[:2000], "public key": keys.open.public_b64, "no key": "hello"}
        session.send(pasted[ending] + "\n\x04")
    code = session.wait()
    assert code == {"Ctrl-C": 130, "SIGTERM": 143, "SIGHUP": 129}.get(ending, CANNOT_DECRYPT), session.output
    assert settings_of(session) == before
    assert "Traceback" not in session.output


@pytest.mark.parametrize("form", ["one line", "many lines", "armor", "CRLF"])
def test_pasted_key_is_not_shown_and_works(
    plain_shop: Shop, keys: Keys, backup: Path, terminal: StartTerminal, form: str
) -> None:
    """The line is far longer than the 4095 characters that a terminal in line mode keeps."""
    session = terminal(plain_shop, backup, "--verify-only")
    session.expect("private key")
    one_line = keys.rsa.private_b64
    assert len(one_line) > 5000
    session.send(
        {
            "one line": one_line + "\n",
            "many lines": wrapped(one_line.encode(), 76, b"\n").decode() + "\x04",
            "armor": keys.rsa.private_armor,
            "CRLF": wrapped(one_line.encode(), 76, b"\r\n").decode() + "\x04",
        }[form]
    )
    session.expect("Passphrase of the private key: ")
    session.send(f"{keys.rsa.passphrase}\n")
    assert session.wait() == 0, session.output
    for secret in (one_line[1000:1040], keys.rsa.private_armor[1000:1030], PASSPHRASE):
        assert secret not in session.output


def test_passphrase_may_be_wrong_twice(plain_shop: Shop, keys: Keys, backup: Path, terminal: StartTerminal) -> None:
    session = terminal(plain_shop, backup, "--verify-only")
    session.expect("private key")
    session.send(keys.rsa.private_b64 + "\n")
    for given in ("wrong", "", PASSPHRASE):
        session.expect("Passphrase of the private key: ")
        session.send(given + "\n")
    assert session.wait() == 0, session.output


# --- where the passphrase comes from ---------------------------------------------------------------------------------


def test_passphrase_command_is_an_argument_list_not_a_shell_line(
    plain_shop: Shop, keys: Keys, backup: Path, tmp_path: Path
) -> None:
    file = tmp_path / "pass phrase; touch hacked"
    file.write_text(f"{PASSPHRASE}\nsecond line\n")
    command = f"cat '{file}'"
    key = replace(keys.rsa, passphrase=None)
    done = plain_shop.restore(backup, "--verify-only", "--passphrase-command", command, key=key)
    assert done.code == 0, done.text
    assert not (plain_shop.path / "hacked").exists()


@pytest.mark.parametrize("command", ["false", "no-such-command", "/etc/passwd", "it's", "", "   "])
def test_passphrase_command_that_cannot_run_is_refused(
    plain_shop: Shop, keys: Keys, backup: Path, command: str
) -> None:
    key = replace(keys.rsa, passphrase=None)
    done = plain_shop.restore(backup, "--verify-only", "--passphrase-command", command, key=key)
    assert done.ended == (3, "no-passphrase"), done.text
    assert "Traceback" not in done.text


@pytest.mark.parametrize(
    "given", [b"", b"\xff\xfe latin-1 \xf6", b"with NUL \0 inside"], ids=["empty", "not UTF-8", "NUL"]
)
def test_passphrase_that_cannot_be_one_is_told_so(plain_shop: Shop, keys: Keys, backup: Path, given: bytes) -> None:
    done = hand_over(plain_shop, keys.rsa.private_armor.encode(), given, "--verify-only")
    assert done.ended == (CANNOT_DECRYPT, "wrong-passphrase"), done.text
    assert "Traceback" not in done.text


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\nmore\n"], ids=["none", "LF", "CRLF", "more lines"])
def test_passphrase_descriptor_takes_the_first_line(plain_shop: Shop, keys: Keys, backup: Path, end: bytes) -> None:
    descriptor = filled_pipe(PASSPHRASE.encode() + end)
    try:
        options = ("--key-stdin", "--passphrase-fd", descriptor, "--verify-only")
        key = keys.rsa.private_b64.encode()
        done = plain_shop.restore(backup, *options, stdin=key, pass_fds=[descriptor])
    finally:
        os.close(descriptor)
    assert done.code == 0, done.text


@pytest.mark.parametrize("number", [1, 2])
def test_stream_that_the_passphrase_came_from_still_tells_how_it_ended(
    plain_shop: Shop, keys: Keys, backup: Path, number: int
) -> None:
    """As on a terminal, where the descriptors 0, 1 and 2 can be read and written alike."""
    ours, theirs = socket.socketpair()
    ours.sendall(f"{PASSPHRASE}\n".encode())
    ours.shutdown(socket.SHUT_WR)
    key = filled_pipe(keys.rsa.private_b64.encode())
    argv = [sys.executable, "restore_backup.py", str(backup), "--force", "--key-stdin", "--passphrase-fd", str(number)]
    with theirs:
        process = subprocess.Popen(
            argv,
            cwd=plain_shop.path,
            env=plain_shop.environment(),
            stdin=key,
            stdout=theirs.fileno() if number == 1 else subprocess.DEVNULL,
            stderr=theirs.fileno() if number == 2 else subprocess.DEVNULL,
        )
    os.close(key)
    with ours, ours.makefile("rb") as stream:
        said = stream.read().decode()
    assert process.wait(60) == 0
    assert ("Database restored successfully" if number == 1 else "Swapping") in said


@pytest.mark.parametrize("option", ["--passphrase-fd", "--backup-db-pass-fd"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 77, -1, 10**14])
def test_descriptor_that_is_not_there_is_refused(
    plain_shop: Shop, keys: Keys, backup: Path, option: str, number: int
) -> None:
    """Not even when the program itself has by then a file with that number open: its log has the first one."""
    key = replace(keys.rsa, passphrase=None)
    done = plain_shop.restore(backup, f"{option}={number}", "--force", key=key)
    assert done.ended == (3, "no-passphrase"), done.text
    assert f"{option} {number}" in done.error["message"]
    assert "Traceback" not in done.err


def test_protected_key_without_a_way_to_ask_says_which_option_helps(plain_shop: Shop, keys: Keys, backup: Path) -> None:
    done = plain_shop.restore(backup, "--verify-only", key=replace(keys.rsa, passphrase=None))
    assert done.ended == (3, "no-terminal"), done.text
    assert "--passphrase-fd" in done.error["hint"]


def test_key_without_a_way_to_ask_says_which_option_helps(plain_shop: Shop, backup: Path) -> None:
    done = plain_shop.restore(backup, "--verify-only")
    assert done.ended == (3, "no-terminal"), done.text
    assert "--key-stdin" in done.error["hint"]


def test_operators_own_gpg_home_is_not_read_and_not_written(
    plain_shop: Shop, keys: Keys, backup: Path, tmp_path: Path
) -> None:
    """Neither the one that GNUPGHOME names nor ~/.gnupg; a broken gpg.conf in them does no harm."""
    own = tmp_path / "gnupg"
    homes = (own, plain_shop.path.parent / f"{plain_shop.path.name}-home/.gnupg")
    for home in homes:
        home.mkdir(mode=0o700)
        (home / "gpg.conf").write_text("no-such-option\n")
    done = plain_shop.restore(backup, "--verify-only", key=keys.rsa, env={"GNUPGHOME": str(own)})
    assert done.code == 0, done.text
    for home in homes:
        assert [path.name for path in home.iterdir()] == ["gpg.conf"]
