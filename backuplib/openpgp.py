"""OpenPGP through gpg, in a throwaway keyring; what a key or a message begins with."""

import base64
import binascii
import contextlib
import ctypes
import fcntl
import io
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

from backuplib.errors import (
    BackupFailedError,
    CommandFailedError,
    DamagedMessageError,
    KeyHasNoSecretPartError,
    MissingProgramError,
    NotEncryptedError,
    TooLargeError,
    UnauthenticatedMessageError,
    UnusableKeyError,
    WrongKeyError,
    WrongPassphraseError,
    WrongSettingError,
)
from backuplib.processes import child_environment, run_command
from backuplib.ram_folder import _MS_BIND, RamFolder
from backuplib.secret import Secret


class Readable(Protocol):
    """What gpg is fed from."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, b"" at the end."""


@dataclass(frozen=True)
class ImportedKey:
    """A key in the throwaway keyring."""

    fingerprint: str
    protected: bool
    warnings: tuple[str, ...]


class Keyring:
    """A throwaway gpg home in a RAM folder; nobody's own keyring or gpg settings are read or written."""

    def __init__(self, ram: RamFolder) -> None:
        self.home = ram.path / "gnupg"
        self.home.mkdir(mode=0o700)
        # The agent encrypts an imported key anew at its first use, with a count calibrated to take a second or two.
        # This copy lives in RAM for seconds only, so the lowest count will do.
        (self.home / "gpg-agent.conf").write_text("s2k-count 65536\nallow-loopback-pinentry\n")
        self._gpg = _open_gpg(self.home, self._hide_system_settings())
        self._own_key_ids: frozenset[str] = frozenset()

    def _hide_system_settings(self) -> list[str]:
        """Keep /etc/gnupg, which no option turns off, from our gpg; return the command it is run under for that.

        Without root that takes a user namespace, and where the kernel gives none gpg reads what the system's owner set.
        """
        if not Path("/etc/gnupg").is_dir():
            return []
        if RamFolder.private_mounts:
            empty = self.home.parent / "no-settings"
            empty.mkdir(mode=0o755)
            ctypes.CDLL(None).mount(os.fsencode(empty), b"/etc/gnupg", None, _MS_BIND, None)
            return []
        hidden = [
            "unshare",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            'mount -t tmpfs none /etc/gnupg && exec "$@"',
            "sh",
        ]
        with contextlib.suppress(CommandFailedError):
            run_command([*hidden, "true"], timeout=10)
            return hidden
        return []

    def import_public(self, key: bytes) -> str:
        """Import the key that backups are encrypted with and return its fingerprint.

        :raises WrongSettingError: when it is not a public key.
        """
        result = self._gpg.import_keys(key)
        if not result.fingerprints or result.sec_read:
            what = "holds a PRIVATE key" if result.sec_read else "is not an OpenPGP public key"
            raise WrongSettingError(
                f"PGP_PUBLIC_KEY_BASE64 {what}", hint="Set it to the output of: gpg --export KEY-ID | base64 -w0"
            )
        return str(result.fingerprints[0])

    def import_private(self, key: Secret) -> ImportedKey:
        """Import the private key that opens the backup (binary or armored).

        :raises UnusableKeyError: when it is truncated, a public key only, or no key.
        """
        result = self._gpg.import_keys(key.reveal_bytes())
        secret = self._gpg.list_keys(secret=True)
        if result.sec_read and not result.sec_imported:
            self._ask_agent("GETINFO version")  # is it there at all? gpg does not say
        if not result.sec_read or not result.sec_imported or not secret:
            if result.imported and not result.sec_read:
                raise KeyHasNoSecretPartError("the private key cannot be used: that is a public key")
            if result.count or result.sec_read or begins_like_key(key.reveal_bytes()):
                what = "it is truncated or damaged"
            else:
                what = "it is not an OpenPGP key"
            raise UnusableKeyError(f"the private key cannot be used: {what}")
        ids = {str(key["keyid"]) for key in secret} | {str(sub[0]) for key in secret for sub in key["subkeys"]}
        self._own_key_ids = frozenset(ids)
        return ImportedKey(str(secret[0]["fingerprint"]), self._protected(), _key_warnings(secret))

    def _protected(self) -> bool:
        listing = self._ask_agent("KEYINFO --list")
        states = [line.split()[7] for line in listing.splitlines() if line.startswith("S KEYINFO")]
        return not states or "P" in states

    def _ask_agent(self, command: str) -> str:
        """Give the agent a command and return its answer.

        :raises MissingProgramError: when there is no agent.
        """
        env = child_environment(GNUPGHOME=str(self.home))
        try:
            return run_command(["gpg-connect-agent", "--homedir", str(self.home), command, "/bye"], timeout=30, env=env)
        except CommandFailedError as error:
            raise MissingProgramError(
                f"gpg-agent cannot be used: {error}", hint="Install it: apt-get install gnupg"
            ) from None

    def try_to_open(self, beginning: bytes, passphrase: Secret | None) -> None:
        """Find out from its beginning whether key and passphrase open a message; its content is thrown away.

        :raises DecryptionError: when they do not.
        """
        result = self._decrypt(io.BytesIO(beginning), passphrase, lambda _: None, len(beginning))
        if not any(name == "DECRYPTION_INFO" for name, _ in result.events):
            check_decryption(result.events, result.returncode, self._own_key_ids)

    def decrypt(self, message: Readable, passphrase: Secret | None, sink: Callable[[bytes], None], limit: int) -> None:
        """Decrypt a message, giving its content to ``sink`` piece by piece.

        The content counts only when this method returns: until then it is not authenticated.

        :param limit: bytes of content at which gpg stops.
        :raises DecryptionError: wrong key or passphrase, damaged, truncated or unauthenticated message.
        :raises TooLargeError: when there is more content than the limit.
        """
        result = self._decrypt(message, passphrase, sink, limit)
        if result.received > limit:
            raise TooLargeError(limit)
        check_decryption(result.events, result.returncode, self._own_key_ids)
        if result.failure:
            raise result.failure

    def _decrypt(self, message: Readable, passphrase: Secret | None, sink: Callable[[bytes], None], limit: int) -> Any:
        """Run gpg on a message, no longer than its content is within the limit; return its result, whatever it says."""
        text = passphrase_text(passphrase)
        received = 0

        def count(data: bytes) -> None:
            nonlocal received
            received += len(data)
            if received <= limit:
                sink(data)
            else:  # gpg by itself would write no more, but unpack a bomb to its end
                self._gpg.process.kill()

        result = self._stream(
            count,
            lambda: self._gpg.decrypt_file(
                message,
                passphrase=text,
                always_trust=True,
                # a signature is not what makes a backup authentic, and its key is not here
                extra_args=["--skip-verify", "--no-auto-key-retrieve"],
            ),
        )
        result.received = received
        return result

    def encrypt(self, content: Readable, fingerprint: str, sink: Callable[[bytes], None]) -> None:
        """Encrypt to one public key, without a second compression, giving the message to ``sink``.

        :raises BackupFailedError: when gpg cannot, with its last words.
        """
        result = self._stream(
            sink,
            lambda: self._gpg.encrypt_file(
                content, [fingerprint], always_trust=True, armor=False, extra_args=["-z", "0", "--no-auto-key-locate"]
            ),
        )
        if result.failure:
            raise result.failure
        if not result.ok or result.returncode:
            raise BackupFailedError(
                f"gpg cannot encrypt the backup: {result.status or 'no reason given'}",
                hint="Is the key of PGP_PUBLIC_KEY_BASE64 expired, revoked, or unable to encrypt? Look with: "
                "base64 -d | gpg --show-keys",
            )

    def _stream(self, sink: Callable[[bytes], None], work: Callable[[], Any]) -> Any:
        """Run a gpg operation whose output goes to the sink.

        :returns: gpg's result, with the sink's error (if any) as ``failure``: what gpg says of the message comes
            first, since content that is not authentic can make the sink fail in any way.
        """
        failure: Exception | None = None

        def on_data(data: bytes) -> bool:
            nonlocal failure
            if failure is None:
                try:
                    sink(data)
                except Exception as error:  # noqa: BLE001 - raised by the caller, in its own thread
                    failure = error
            return False  # anything else makes python-gnupg keep the whole output

        self._gpg.on_data = on_data
        try:
            work()
        except OSError:
            pass  # gpg ended before it had read everything: its result says why
        except BaseException:
            self._gpg.process.kill()
            raise
        result = self._gpg.result
        result.failure = failure
        return result


def passphrase_text(passphrase: Secret | None) -> str | None:
    """Return a passphrase as gpg takes it.

    :raises WrongPassphraseError: when it cannot be one.
    """
    if passphrase is None:
        return None
    again = WRONG_KEY_HINT
    raw = passphrase.reveal_bytes()
    if not raw:
        raise WrongPassphraseError("the passphrase is empty", hint=again)
    if b"\0" in raw or b"\n" in raw:
        raise WrongPassphraseError("the passphrase holds a NUL or a line break, which gpg does not take", hint=again)
    try:
        return passphrase.reveal()
    except UnicodeDecodeError:
        raise WrongPassphraseError(
            "the passphrase is not UTF-8 text", hint="Use a terminal that is set to UTF-8."
        ) from None


class _AsciiLines:
    """gpg's status lines: ASCII, one to a newline, whatever else a hostile message makes gpg print.

    python-gnupg would decode them as UTF-8, fail on what is none, and take U+2028 for the end of a line.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readline(self) -> str:
        """Return the next line, "" at the end."""
        return str(self._stream.readline().decode("ascii", "backslashreplace"))


def _open_gpg(home: Path, wrapper: list[str]) -> Any:
    """Return a python-gnupg interface whose children are out of the terminal's reach and see no secret of ours.

    :param wrapper: the command that gpg is run under, if any.
    """
    import gnupg

    class Crypt(gnupg.Crypt):  # type: ignore[misc]
        """Keeps every status line: python-gnupg drops those that tell whether the content is authentic."""

        def __init__(self, gpg: Any) -> None:
            super().__init__(gpg)
            self.events: list[tuple[str, str]] = []
            gpg.result = self  # kept, for when the writing to gpg fails

        def handle_status(self, key: str, value: str) -> None:
            self.events.append((key, value))
            with contextlib.suppress(ValueError, LookupError):  # it stumbles over lines that damaged messages cause
                super().handle_status(key, value)

    class Gpg(gnupg.GPG):  # type: ignore[misc]
        buffer_size = 1 << 16  # larger pieces make isal slower
        result_map = gnupg.GPG.result_map | {"crypt": Crypt}
        process: subprocess.Popen[bytes] | None = None

        def _open_subprocess(self, args: list[str], passphrase: bool = False) -> subprocess.Popen[bytes]:
            self.process = subprocess.Popen(
                [*wrapper, *self.make_args(args, passphrase)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.env,
                start_new_session=True,
            )
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError):  # beyond what the kernel gives to one user
                    fcntl.fcntl(cast(IO[bytes], pipe), fcntl.F_SETPIPE_SZ, 1 << 20)
            return self.process

        def _read_response(self, stream: Any, result: Any) -> None:
            super()._read_response(_AsciiLines(stream.stream), result)

    # Its debug log holds parts of the key, and it reports each error that is handled here.
    logging.getLogger("gnupg").setLevel(logging.CRITICAL)
    logging.getLogger("gnupg").propagate = False
    env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "GNUPGHOME": str(home)}
    try:
        return Gpg(gnupghome=str(home), env=env, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise MissingProgramError(f"gpg cannot be run: {error}", hint="Install it: apt-get install gnupg") from None


WRONG_KEY_HINT = (
    "It is the passphrase of the private key, not DB_PASS. Look at the keyboard layout, and for a line break before it."
)


GPG_ERR_BAD_PASSPHRASE = 11
"""From libgpg-error; the low 16 bits of the code in a status line ERROR."""


def _error_code(error: str) -> int:
    """Return the code in the value of a status line ERROR ("pkdecrypt_failed 67108875", "proc_pkt.plaintext 89_X")."""
    match = re.match(r"\S+ (\d+)", error)
    return int(match[1]) & 0xFFFF if match else 0


HIDDEN_RECIPIENT = "0000000000000000"
"""The key ID that a message to a hidden recipient carries (gpg -R)."""


def check_decryption(events: list[tuple[str, str]], returncode: int, own_key_ids: frozenset[str]) -> None:
    """Raise unless gpg's status lines say that one whole, encrypted and authenticated message was read.

    Status lines: https://github.com/gpg/gnupg/blob/master/doc/DETAILS. gpg also gives content, and exit code 0 or
    DECRYPTION_OKAY, for messages that are not authentic or not encrypted at all.

    :raises DecryptionError: saying which of the many things it is.
    """
    seen = {name for name, _ in events}
    recipients = [value.split()[0] for name, value in events if name == "ENC_TO"]
    errors = [value for name, value in events if name == "ERROR"]
    bad_passphrase = any(_error_code(error) == GPG_ERR_BAD_PASSPHRASE for error in errors)
    info = next((value.split() for name, value in events if name == "DECRYPTION_INFO"), [])
    aead = len(info) > 2 and info[2] != "0"  # fields of DECRYPTION_INFO: MDC method, cipher, AEAD algorithm
    authentic = "GOODMDC" in seen or aead
    again = "Take another copy of the backup file; compare it with: sha256sum -c FILE.sha256"
    if "DECRYPTION_OKAY" in seen and authentic and returncode == 0:
        return
    if "DECRYPTION_INFO" not in seen:  # it did not come to the content
        if "MISSING_PASSPHRASE" in seen or bad_passphrase:
            raise WrongPassphraseError("wrong passphrase for the private key", hint=WRONG_KEY_HINT)
        if HIDDEN_RECIPIENT in recipients and "NO_SECKEY" in seen:  # gpg says the same in both cases
            raise WrongPassphraseError(
                "wrong passphrase, or the backup is encrypted to another key (its recipient is hidden)",
                hint="Try again with the right passphrase, or with the other key.",
            )
        if recipients and not own_key_ids & {*recipients}:
            raise WrongKeyError(
                f"this private key does not open the backup: it is encrypted to key ID {', '.join(recipients)}, "
                f"and the key given has {', '.join(sorted(own_key_ids))}",
                hint="Use the private key with that ID (gpg --list-secret-keys --keyid-format long).",
            )
        if "NEED_PASSPHRASE_SYM" in seen:
            raise NotEncryptedError(
                "the backup is encrypted with a passphrase only, not to a key",
                hint="Such backups are not supported: decrypt it by hand with gpg -d in a RAM folder.",
            )
        if seen & {"PLAINTEXT", "SIG_ID", "GOODSIG", "ERRSIG", "ONEPASS"}:
            raise NotEncryptedError(
                "the message is not encrypted: anybody could have made it",
                hint="Restore a backup that was encrypted to your key.",
            )
        raise DamagedMessageError("the encrypted backup is damaged: gpg cannot read its beginning", hint=again)
    if not authentic and (info[:1] == ["0"] or "DECRYPTION_OKAY" in seen):
        raise UnauthenticatedMessageError(
            "the encrypted backup is not authenticated (no MDC): its content could have been changed by anybody",
            hint="Restore another backup.",
        )
    raise DamagedMessageError("the encrypted backup is damaged or incomplete", hint=again)


def _key_warnings(keys: Any) -> tuple[str, ...]:
    """Say what is unusual about keys that decrypt all the same."""
    warnings = []
    for key in keys:
        if key["trust"] == "r":
            warnings.append(f"key {key['keyid']} is revoked")
        elif key["trust"] == "e" or (key["expires"] and int(key["expires"]) < time.time()):
            warnings.append(f"key {key['keyid']} has expired")
    if len(keys) > 1:
        warnings.append(f"{len(keys)} keys were given")
    return tuple(warnings)


def decode_private_key(given: Secret) -> Secret:
    """Return the key as gpg reads it, from base64 of a binary or armored export, or from such an export itself.

    :raises UnusableKeyError: when it is empty or none of these.
    """
    raw = _strip_to_key(given.reveal_bytes())
    if not raw.strip():
        raise UnusableKeyError("no private key was given: the input is empty")
    if begins_like_key(raw):
        return Secret(raw)
    text = b"".join(raw.split())
    try:
        return Secret(_strip_to_key(base64.b64decode(text, validate=True)))
    except binascii.Error:
        what = "is truncated" if re.fullmatch(rb"[A-Za-z0-9+/]{20,}=*", text) else "is not base64, nor an OpenPGP key"
        raise UnusableKeyError(f"the private key {what}") from None


def _strip_to_key(raw: bytes) -> bytes:
    """Take away what editors and mail programs put before a key."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raw = raw.decode("utf-16", errors="replace").encode()
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    armor = raw.find(b"-----BEGIN PGP")
    return raw[max(armor, 0) :]


def begins_like_key(raw: bytes) -> bool:
    """Whether bytes begin like an export of a key: armored, or with a secret or public key packet (tags 5 and 6)."""
    if raw.startswith(b"-----BEGIN PGP") or not raw or not raw[0] & 0x80:
        return raw.startswith(b"-----BEGIN PGP")
    return (raw[0] & 0x3F if raw[0] & 0x40 else raw[0] >> 2 & 0x0F) in (5, 6)


OPENPGP_VERSIONS = {
    1: (3, 6),
    2: (3, 4, 5, 6),
    3: (4, 5, 6),
    4: (3, 6),
    8: (0, 1, 2, 3),
    11: b"btul",
    18: (1, 2),
    20: (1,),
}
"""First bytes of the bodies of OpenPGP packets that a message can begin with, by packet tag (RFC 9580, section 5)."""


OPENPGP_ALGORITHMS = (1, 2, 8, 16, 18, 25, 26)
"""Public-key algorithms that encrypt: RSA, Kyber as GnuPG 2.5 numbers it, Elgamal, ECDH, X25519, X448 (section 9.1)."""


def begins_like_message(head: bytes, *, sure: bool) -> bool:
    """Whether an OpenPGP message may begin here; if `sure`, only one that is encrypted to a public key."""
    if len(head) < 16 or not head[0] & 0x80:
        return False
    if head[0] & 0x40:  # new format: the length of the length is in its first byte
        tag = head[0] & 0x3F
        body = 1 + (1 if head[1] < 192 or 224 <= head[1] < 255 else 2 if head[1] < 224 else 5)
    else:
        tag = head[0] >> 2 & 0x0F
        body = 1 + (1, 2, 4, 0)[head[0] & 3]
    if sure:
        return tag == 1 and head[body] == 3 and head[body + 9] in OPENPGP_ALGORITHMS
    return head[body] in OPENPGP_VERSIONS.get(tag, ())
