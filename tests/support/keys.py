"""Throwaway OpenPGP keys, made by the real gpg once a run of the tests."""

import base64
import fcntl
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PASSPHRASE = 'pässwörd "x" 1'

RSA = "Key-Type: RSA\nKey-Length: 3072\nKey-Usage: sign\nSubkey-Type: RSA\nSubkey-Length: 3072\nSubkey-Usage: encrypt\n"
ECC = "Key-Type: EDDSA\nKey-Curve: ed25519\nKey-Usage: sign\nSubkey-Type: ECDH\nSubkey-Curve: cv25519\n"


IN_2020 = "--faked-system-time=20200101T000000!"
"""An option of gpg's: what expires after 30 days has expired by now, and nobody has waited for it."""


@dataclass(frozen=True)
class Key:
    """One key pair. `passphrase` is None for a key without protection."""

    fingerprint: str
    passphrase: str | None
    public_binary: bytes
    private_binary: bytes
    private_armor: str

    @property
    def public_b64(self) -> str:
        """As in PGP_PUBLIC_KEY_BASE64."""
        return base64.b64encode(self.public_binary).decode()

    @property
    def private_b64(self) -> str:
        """The armored private key, once more in base64, in one line: what operators keep and paste."""
        return base64.b64encode(self.private_armor.encode()).decode()


@dataclass(frozen=True)
class Keys:
    """`rsa`: RSA-3072 with a difficult passphrase. `open`: cv25519, no passphrase. `other`: encrypts nothing here."""

    rsa: Key
    open: Key
    other: Key


class GpgHome:
    """A GnuPG home of our own in a short path (agent sockets do not fit in long ones); see `gpg_home`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, *args: str, stdin: bytes = b"") -> bytes:
        """gpg's standard output; CalledProcessError with its messages when it fails."""
        command = ["gpg", "--homedir", str(self.path), "--batch", "--yes", "--no-tty", "--pinentry-mode", "loopback"]
        return subprocess.run([*command, *args], input=stdin, capture_output=True, check=True, timeout=60).stdout

    def encrypt(self, content: bytes, *options: str) -> bytes:
        """A message; the options say to whom."""
        return self.run("--trust-model", "always", *options, "--encrypt", stdin=content)

    def generate(
        self, algorithm: str, name: str, passphrase: str | None, extra: str = "Expire-Date: 0\n", *options: str
    ) -> Key:
        """A new key. `extra`: more lines of gpg's unattended parameter file, such as the expiry; `options` of gpg."""
        protection = "%no-protection\n" if passphrase is None else f"Passphrase: {passphrase}\n"
        parameters = f"{algorithm}Name-Real: {name}\nName-Email: {name}@example.org\n{extra}{protection}%commit\n"
        self.run(*options, "--generate-key", stdin=parameters.encode())
        return self.export(name, passphrase)

    def export(self, name: str, passphrase: str | None) -> Key:
        """The key of that name as a value."""
        listing = self.run("--with-colons", "--list-secret-keys", f"={name} <{name}@example.org>").decode()
        fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
        secret = ("--passphrase-fd", "0", "--export-secret-keys", fingerprint)
        unlock = (passphrase or "").encode()
        return Key(
            fingerprint=fingerprint,
            passphrase=passphrase,
            public_binary=self.run("--export", fingerprint),
            private_binary=self.run(*secret, stdin=unlock),
            private_armor=self.run("--armor", *secret, stdin=unlock).decode(),
        )


@contextmanager
def gpg_home() -> Iterator[GpgHome]:
    """A GnuPG home that is gone afterwards, its agent too."""
    path = Path(tempfile.mkdtemp(prefix="gpg-"))
    # Fewer rounds than a real key has: these keys guard nothing, and protecting them costs seconds otherwise.
    (path / "gpg-agent.conf").write_text("s2k-count 65536\nallow-loopback-pinentry\n")
    try:
        yield GpgHome(path)
    finally:
        subprocess.run(["gpgconf", "--homedir", str(path), "--kill", "all"], check=False, timeout=30)
        shutil.rmtree(path, ignore_errors=True)


def make_keys(home: GpgHome) -> Keys:
    """The keys that most tests need."""
    return Keys(
        rsa=home.generate(RSA, "shop", PASSPHRASE),
        open=home.generate(ECC, "open", None),
        other=home.generate(ECC, "other", None),
    )


def shared_keys(folder: Path) -> Keys:
    """The same, made by the first process that asks and read by the others: they share the folder."""
    with (folder / "keys.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "keys"
        if not made.exists():
            with gpg_home() as home:
                made.write_bytes(pickle.dumps(make_keys(home)))
        keys: Keys = pickle.loads(made.read_bytes())
    return keys


def with_system_settings(folder: Path, line: str) -> list[str]:
    """A command to run another one under, as root: in its mount namespace /etc/gnupg/gpg.conf holds this line.

    `folder`: for what the mounts are made of.
    """
    settings = folder / "lower/gnupg/gpg.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"{line}\n")
    script = (
        f"mount -t tmpfs -o mode=755 none /etc/gnupg 2>/dev/null || {{ mkdir {folder}/etc; "
        f"mount -t overlay -o lowerdir={folder}/lower:/etc overlay /etc; }}; "
        f"cp {settings} /etc/gnupg/ 2>/dev/null; "
        f'grep -q {line} /etc/gnupg/gpg.conf || exit 99; exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, "sh"]
