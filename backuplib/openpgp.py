"""OpenPGP through gpg, in a throwaway keyring."""

import contextlib
import ctypes
import fcntl
import io
import logging
import math
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import PIPE, Popen
from types import SimpleNamespace
from typing import IO, Any, cast

from backuplib import armor, errors
from backuplib.armor import Readable
from backuplib.formatting import megabytes, printable
from backuplib.packets import KeyPart, read_keys, read_message, with_user_id
from backuplib.processes import child_environment, run_command, start_apart
from backuplib.ram_folder import MS_BIND, RamFolder
from backuplib.reasons import WRONG_KEY_HINT, KeySaid, Said, refuse_key, refuse_message, self_signature_broken
from backuplib.secret import Secret

# How long gpg may compute on a message, and a second more for each MB of it: thirty times what is usual, and packets
# without content can be packed to next to nothing.
GPG_SECONDS = 30

HEAD = 1 << 16  # bytes of a message that hold the packets before its content
_SET_PUBLIC_KEY = "Set it to the output of: gpg --armor --export KEY-ID | base64 -w0"
# A clock that is behind is no reason not to restore; nor is a user ID that no signature binds to its key.
_OPTIONS = ["--ignore-time-conflict", "--ignore-valid-from", "--allow-non-selfsigned-uid"]
_NO_USER_ID = "no user ID"  # given to keys without one, which gpg would not take
_UNASKED = "-"  # a passphrase where none is needed: with any at all, gpg does not ask for one


@dataclass(frozen=True)
class ImportedKey:
    fingerprint: str
    protected: bool
    warnings: tuple[str, ...]
    parts: tuple[KeyPart, ...] = ()


@dataclass(frozen=True)
class Recipient:
    """A public key that backups are encrypted to, with the IDs of all its parts.

    ``expires``: when no part of it encrypts any more, in seconds since 1970; None: never.
    """

    fingerprint: str
    key_ids: frozenset[str]
    user_id: str
    expires: int | None = None


class _Reader:
    """Reads a message for gpg, which may compute the longer the more it is given; keeps the first bytes.

    :param pid: tells the process of gpg, which runs when it reads.
    """

    def __init__(self, source: Readable, pid: Callable[[], int]) -> None:
        self._source, self._pid = source, pid
        self.head, self.size = b"", 0

    @property
    def seconds(self) -> int:
        """How long gpg may compute for what it was given until now."""
        return GPG_SECONDS + self.size // 1_000_000

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self.head += data[: max(HEAD - self.size, 0)]
        self.size += len(data)
        with contextlib.suppress(ProcessLookupError, ValueError):  # it has ended, or the host has a lower limit
            _, most = resource.prlimit(self._pid(), resource.RLIMIT_CPU)
            resource.prlimit(self._pid(), resource.RLIMIT_CPU, (self.seconds, most))
        return data


class Keyring:
    """A throwaway gpg home in a RAM folder; the user's own keyring and gpg settings are not used."""

    def __init__(self, ram: RamFolder) -> None:
        self.home = ram.path / "gnupg"
        self.home.mkdir(mode=0o700, exist_ok=True)  # one folder, one keyring, opened by whoever needs it
        # At its first use the agent re-encrypts an imported key, with a count calibrated to take a second or two. This
        # copy is in RAM and exists for seconds, so the lowest count is enough.
        (self.home / "gpg-agent.conf").write_text("s2k-count 65536\nallow-loopback-pinentry\n")
        self._gpg = _open_gpg(self.home, self._hide_system_settings())
        self._key: ImportedKey | None = None

    def _hide_system_settings(self) -> list[str]:
        """Hide /etc/gnupg, which no option disables, from our gpg; return the command to run gpg under.

        Without root that takes a user namespace; if the kernel denies one, gpg reads the system's settings.
        """
        if not Path("/etc/gnupg").is_dir():
            return []
        if RamFolder.private_mounts:
            empty = self.home.parent / "no-settings"
            empty.mkdir(mode=0o755, exist_ok=True)
            ctypes.CDLL(None).mount(os.fsencode(empty), b"/etc/gnupg", None, MS_BIND, None)
            return []
        script = 'mount -t tmpfs none /etc/gnupg && exec "$@"'
        hidden = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
        with contextlib.suppress(errors.CommandFailedError):
            run_command([*hidden, "true"], timeout=10)
            return hidden
        return []

    def import_public(self, exported: bytes) -> list[Recipient]:
        """Import the keys that backups are encrypted to; every one of them is a recipient.

        :raises WrongSettingError: when they are no public keys.
        :raises UnusablePublicKeyError: when one of them cannot encrypt, naming it.
        """
        found = read_keys(exported)
        if any(part.secret for part in found.parts):
            raise errors.WrongSettingError("PGP_PUBLIC_KEY_BASE64 is a PRIVATE key", hint=_SET_PUBLIC_KEY)
        if not found.parts:
            raise errors.WrongSettingError("PGP_PUBLIC_KEY_BASE64 is not an OpenPGP public key", hint=_SET_PUBLIC_KEY)
        result = self._gpg.import_keys(with_user_id(exported, _NO_USER_ID.encode()))
        keys = self._gpg.list_keys()
        missing = {part.key_id for part in found.parts if part.primary} - {key["keyid"] for key in keys}
        if missing:
            raise errors.UnusablePublicKeyError(
                f"key {', '.join(sorted(missing))} in PGP_PUBLIC_KEY_BASE64 is of a kind that this gpg does not take"
            )
        recipients = []
        for key in keys:
            _refuse_unusable(key, broken=self_signature_broken(result.stderr))
            user_id = next((text for text in key["uids"] if text != _NO_USER_ID), "")
            user_id = user_id.encode("latin-1").decode(errors="replace")
            key_ids = frozenset([key["keyid"], *(sub[0] for sub in key["subkeys"])])
            recipients.append(Recipient(key["fingerprint"], key_ids, printable(user_id), _expiry(key)))
        return recipients

    def import_private(self, key: Secret) -> ImportedKey:
        """Import a private key, binary or armored.

        :raises DecryptionError: when it cannot be used, with the reason.
        """
        raw = key.reveal_bytes()
        packets = read_keys(raw)
        result = self._gpg.import_keys(with_user_id(raw, _NO_USER_ID.encode()))
        if result.sec_read and not result.sec_imported:
            self._ask_agent("GETINFO version")  # raises when there is no agent; gpg does not tell
        secret = self._gpg.list_keys(secret=True)
        encrypting = {key_id for key in self._gpg.list_keys() for key_id, usage in _usages(key) if "e" in usage}
        parts = tuple(replace(part, encrypts=part.key_id in encrypting) for part in packets.parts)
        packets = replace(packets, parts=parts if encrypting else packets.parts)
        refuse_key(KeySaid(packets, read_message(raw), result.stderr, len(secret)))
        self._key = ImportedKey(str(secret[0]["fingerprint"]), self._protected(), _key_warnings(secret), packets.parts)
        return self._key

    def _protected(self) -> bool:
        listing = self._ask_agent("KEYINFO --list")
        states = [line.split()[7] for line in listing.splitlines() if line.startswith("S KEYINFO")]
        return not states or "P" in states

    def _ask_agent(self, command: str) -> str:
        """Send the agent a command and return its answer; MissingProgramError when there is no agent."""
        env = child_environment(GNUPGHOME=str(self.home))
        try:
            return run_command(["gpg-connect-agent", "--homedir", str(self.home), command, "/bye"], timeout=30, env=env)
        except errors.CommandFailedError as error:
            raise errors.MissingProgramError(
                f"gpg-agent failed: {error}", hint="Install it: apt-get install gnupg"
            ) from None

    def refuse_unopenable(self, head: bytes, size: int) -> None:
        """Refuse a message that the imported key does not open, as far as its first bytes tell without a passphrase.

        :param size: of the whole message.
        :raises DecryptionError: with the reason.
        """
        self._refuse(armor.message_in(head)[:HEAD], whole=size == len(head))

    def forget_private(self) -> None:
        """Delete the private keys."""
        fingerprints = [str(key["fingerprint"]) for key in self._gpg.list_keys(secret=True)]
        self._gpg.delete_keys(fingerprints, secret=True, expect_passphrase=False)

    def try_to_open(self, beginning: bytes, passphrase: Secret | None) -> None:
        """Try key and passphrase on the beginning of a message; the content is discarded.

        :raises DecryptionError: when they do not open it.
        """
        result = self._decrypt(io.BytesIO(beginning), passphrase, lambda _: None, len(beginning))
        if not any(name == "DECRYPTION_KEY" for name, _ in result.events):
            self._refuse(result.head, whole=False, result=result)

    def decrypt(self, message: Readable, passphrase: Secret | None, sink: Callable[[bytes], None], limit: int) -> None:
        """Decrypt a message to ``sink``; the content is authenticated only when this method returns.

        :param limit: maximum bytes of content.
        :raises DecryptionError: wrong key or passphrase, corrupted, truncated or unauthenticated message.
        :raises TooLargeError: when the content exceeds the limit.
        """
        result = self._decrypt(message, passphrase, sink, limit)
        if result.received > limit:
            raise errors.TooLargeError(limit)
        self._refuse(result.head, whole=result.size == len(result.head), result=result)
        if result.failure:
            raise result.failure

    def _refuse(self, head: bytes, *, whole: bool, result: Any = None) -> None:
        """Raise the reason why a message was not opened, or will not be; ``whole``: the head is all of it."""
        key = self._key or ImportedKey("", protected=False, warnings=())
        said = Said(read_message(head, all_of_it=whole), key.parts, key.protected)
        if result is not None:
            said = replace(said, events=result.events, returncode=result.returncode, tried=True, log=result.stderr)
        refuse_message(said)

    def _decrypt(self, message: Readable, passphrase: Secret | None, sink: Callable[[bytes], None], limit: int) -> Any:
        """Run gpg on a message until the content exceeds the limit; return its result, whatever it says."""
        text = passphrase_text(passphrase) or _UNASKED
        received, reader = 0, _Reader(armor.Unwrapped(message), lambda: int(self._gpg.process.pid))

        def count(data: bytes) -> None:
            nonlocal received
            received += len(data)
            if received <= limit:
                sink(data)
            else:  # gpg would go on unpacking a decompression bomb
                self._gpg.process.kill()

        try:
            result = self._stream(
                count,
                lambda: self._gpg.decrypt_file(
                    reader,
                    passphrase=text,
                    always_trust=True,
                    # signatures are not checked: their keys are not in this keyring
                    extra_args=["--skip-verify", "--no-auto-key-retrieve"],
                ),
            )
        except armor.ArmorError as error:
            raise errors.DamagedMessageError(
                f"the encrypted backup {error}", hint=errors.choose_another_backup_hint()
            ) from None
        if result.returncode == -signal.SIGXCPU:
            raise errors.DecryptionTimeoutError(
                f"gpg was ended after computing for {reader.seconds} s, much longer than {megabytes(reader.size)} "
                f"take; it found {megabytes(received)} of content",
                hint=errors.choose_another_backup_hint(),
            )
        result.received, result.head, result.size = received, reader.head, reader.size
        return result

    def encrypt(self, content: Readable, recipients: Sequence[Recipient], sink: Callable[[bytes], None]) -> None:
        """Encrypt to public keys, without compressing again; BackupFailedError when gpg fails, with its reason."""
        fingerprints = [recipient.fingerprint for recipient in recipients]
        result = self._stream(
            sink,
            lambda: self._gpg.encrypt_file(
                content, fingerprints, always_trust=True, armor=False, extra_args=["-z", "0", "--no-auto-key-locate"]
            ),
        )
        if result.failure:
            raise result.failure
        if not result.ok or result.returncode:
            raise errors.BackupFailedError(
                f"gpg cannot encrypt the backup: {result.status or 'no reason given'}",
                hint="Is the key in PGP_PUBLIC_KEY_BASE64 expired, revoked or without an encryption subkey? "
                f"To see: {errors.restore_command('--check')}",
            )

    # --- signatures: see backuplib/signing.py ---------------------------------------------------------------------

    def make_signing_key(self, user_id: str) -> tuple[Secret, bytes]:
        """Make a key without a passphrase that signs and does not expire; return it and its public half, armored.

        :raises CannotSignError: when gpg cannot make one.
        """
        parameters = (
            f"Key-Type: eddsa\nKey-Curve: ed25519\nKey-Usage: sign\nName-Real: {user_id}\nExpire-Date: 0\n"
            "%no-protection\n%commit\n"
        )
        fingerprint = self._gpg.gen_key(parameters).fingerprint
        secret = fingerprint and self._gpg.export_keys(fingerprint, secret=True, expect_passphrase=False)
        if not secret:
            raise errors.CannotSignError("gpg cannot make a signing key", hint="See what it says: gpg --gen-key")
        return Secret(secret), str(self._gpg.export_keys(fingerprint)).encode()

    def import_keys(self, exported: bytes) -> list[str]:
        """Import keys, some of which gpg may not take, and return the fingerprints of those that it took."""
        return [str(item) for item in self._gpg.import_keys(exported).fingerprints] if exported else []

    def import_signing_key(self, key: Secret) -> str:
        """Import a key that signs, and return its fingerprint; CannotSignError when it is none."""
        result = self._gpg.import_keys(key.reveal_bytes())
        if not result.sec_read or not result.fingerprints:
            raise errors.CannotSignError("the signing key cannot be used: gpg does not take it")
        return str(result.fingerprints[0])

    def sign(self, content: bytes, fingerprint: str) -> bytes:
        """Return a detached signature; CannotSignError when gpg makes none."""
        self._gpg.on_data = None
        result = self._gpg.sign_file(io.BytesIO(content), keyid=fingerprint, clearsign=False, detach=True, binary=True)
        if not result.data or result.status != "signature created":
            raise errors.CannotSignError(f"gpg does not sign: {result.status or 'no reason given'}")
        return bytes(result.data)

    def verify(self, content: bytes, signature: bytes) -> Sequence[tuple[str, str]]:
        """Compare a detached signature with what it is of; return what gpg says, as status lines."""
        file = self.home / "signature"
        file.write_bytes(signature)
        options = ["--trust-model", "always", "--no-auto-key-retrieve"]
        return cast(Sequence[tuple[str, str]], self._gpg.verify_data(str(file), content, extra_args=options).events)

    def _stream(self, sink: Callable[[bytes], None], work: Callable[[], Any]) -> Any:
        """Run a gpg operation whose output goes to the sink, and return gpg's result.

        The sink's error becomes its ``failure``, to be raised only after gpg's own: content that is not authentic can
        make the sink fail in any way.
        """
        failure: Exception | None = None

        def on_data(data: bytes) -> bool:
            nonlocal failure
            if failure is None:
                try:
                    sink(data)
                except Exception as error:  # noqa: BLE001 - raised by the caller, in its own thread
                    failure = error
            return False  # else python-gnupg keeps the whole output

        self._gpg.on_data = on_data
        try:
            work()
        except OSError:
            pass  # gpg exited before it had read everything: its result says why
        except BaseException:
            self._gpg.process.kill()
            raise
        result = self._gpg.result
        result.failure = failure
        return result


def passphrase_text(passphrase: Secret | None) -> str | None:
    """Return a passphrase as python-gnupg takes it, a character for each byte, else raise WrongPassphraseError."""
    if passphrase is None:
        return None
    raw = passphrase.reveal_bytes()
    if not raw:
        raise errors.WrongPassphraseError("the passphrase is empty", hint=WRONG_KEY_HINT)
    if b"\0" in raw or b"\n" in raw or b"\r" in raw:
        raise errors.WrongPassphraseError(
            "the passphrase contains a NUL character or a line break", hint=WRONG_KEY_HINT
        )
    return raw.decode("latin-1")


class _Recording:
    """Keeps every status line: python-gnupg drops those about authentication."""

    def __init__(self, gpg: Any) -> None:
        super().__init__(gpg)  # type: ignore[call-arg]  # python-gnupg's result, which comes next
        self.events: list[tuple[str, str]] = []
        self.stderr = ""
        gpg.result = self  # for when writing to gpg fails

    def handle_status(self, key: str, value: str) -> None:
        self.events.append((key, value))
        with contextlib.suppress(ValueError, LookupError):  # it fails on status lines of corrupted messages
            super().handle_status(key, value)  # type: ignore[misc]  # the same


def _open_gpg(home: Path, wrapper: list[str]) -> Any:
    """Return a python-gnupg interface that runs gpg in a session of its own, with a minimal environment.

    :param wrapper: the command to run gpg under, if any.
    """
    import gnupg

    class Crypt(_Recording, gnupg.Crypt):  # type: ignore[misc]  # it has no types
        pass

    class Verify(_Recording, gnupg.Verify):  # type: ignore[misc]  # it has no types
        pass

    class Gpg(gnupg.GPG):  # type: ignore[misc]  # it has no types
        buffer_size = 1 << 16  # larger pieces make isal slower
        result_map = gnupg.GPG.result_map | {"crypt": Crypt, "verify": Verify}
        process: Popen[bytes] | None = None

        def _open_subprocess(self, args: list[str], passphrase: bool = False) -> Popen[bytes]:
            argv = [*wrapper, *self.make_args(args, passphrase)]
            self.process = start_apart(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=self.env)
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError):  # above the kernel's limit for a user
                    fcntl.fcntl(cast(IO[bytes], pipe), fcntl.F_SETPIPE_SZ, 1 << 20)
            return self.process

        def _read_response(self, stream: Any, result: Any) -> None:
            # Decoded as UTF-8, a hostile message could make the reader fail, or see a line end in U+2028.
            lines = SimpleNamespace(readline=lambda: stream.stream.readline().decode("ascii", "backslashreplace"))
            super()._read_response(lines, result)

    # Its debug log contains parts of the key, and it logs errors that are handled here.
    logging.getLogger("gnupg").setLevel(logging.CRITICAL)
    logging.getLogger("gnupg").propagate = False
    env = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "GNUPGHOME": str(home)}
    try:
        # latin-1: bytes pass unchanged, of passphrases and of user IDs, which need not be UTF-8
        return Gpg(gnupghome=str(home), env=env, encoding="latin-1", options=_OPTIONS)
    except (OSError, ValueError) as error:
        raise errors.MissingProgramError(f"cannot run gpg: {error}", hint="Install it: apt-get install gnupg") from None


def _refuse_unusable(key: Any, *, broken: bool) -> None:
    """Refuse a public key that gpg would not encrypt to, by its listing; ``broken``: its own signature is."""
    if "E" in key["cap"] and not broken:  # in upper case: the whole key, as it is today
        return
    parts = [key, *key.get("subkey_info", {}).values()]
    dates = [int(part["expires"]) for part in parts if part["expires"].isdigit() and "e" in part["cap"].lower()]
    if broken:
        what = "is corrupted: its own signature does not match it"
    elif key["trust"] == "r":
        what = "is revoked"
    elif key["trust"] == "e" or any(date < time.time() for date in dates):
        what = f"has expired ({time.strftime('%Y-%m-%d', time.gmtime(max(dates)))})" if dates else "has expired"
    else:
        what = "has no part that encrypts"
    raise errors.UnusablePublicKeyError(f"key {key['keyid']} in PGP_PUBLIC_KEY_BASE64 {what}")


def _expiry(key: Any) -> int | None:
    """Return when a usable public key encrypts no more: its own end, or that of the last of its encrypting parts."""
    parts = [key, *key.get("subkey_info", {}).values()]
    usable = [part for part in parts if "e" in part["cap"] and part["trust"] not in ("e", "r")]
    ends = [int(part["expires"]) if part["expires"].isdigit() else math.inf for part in (key, *usable)]
    end = min(ends[0], max(ends[1:], default=math.inf))
    return None if end == math.inf else int(end)


def _usages(key: Any) -> list[tuple[str, str]]:
    """Return the IDs of a listed key's parts, each with the letters of what it can do."""
    return [(key["keyid"], key["cap"]), *((key_id, info["cap"]) for key_id, info in key.get("subkey_info", {}).items())]


def _key_warnings(keys: Any) -> tuple[str, ...]:
    """Return what is unusual about keys that decrypt nevertheless."""
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
    """Return a private key as packets, whatever it is wrapped in.

    :raises UnusableKeyError: saying what is odd.
    """
    try:
        return Secret(armor.unwrap(given.reveal_bytes()))
    except armor.ArmorError as error:
        raise errors.UnusableKeyError(f"the private key {error}") from None
