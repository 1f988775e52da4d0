"""OpenPGP through gpg, in a throwaway keyring."""

import contextlib
import ctypes
import fcntl
import io
import logging
import os
import re
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from types import SimpleNamespace
from typing import IO, Any, cast

from backuplib import armor, errors
from backuplib.armor import Readable, begins_like_key
from backuplib.formatting import megabytes
from backuplib.processes import child_environment, run_command
from backuplib.ram_folder import MS_BIND, RamFolder
from backuplib.secret import Secret

WRONG_KEY_HINT = "It is the key's passphrase, not DB_PASS. Check the keyboard layout, and for a leading line break."
HIDDEN_RECIPIENT = "0000000000000000"  # key ID in a message to a hidden recipient (gpg -R)
# How long gpg may compute on a message, and a second more for each MB of it: thirty times what is usual, and packets
# without content can be packed to next to nothing.
GPG_SECONDS = 30

GPG_ERR_BAD_PASSPHRASE = 11  # libgpg-error; the low 16 bits of the code in a status line ERROR


@dataclass(frozen=True)
class ImportedKey:
    fingerprint: str
    protected: bool
    warnings: tuple[str, ...]


class Keyring:
    """A throwaway gpg home in a RAM folder; the user's own keyring and gpg settings are not used."""

    def __init__(self, ram: RamFolder) -> None:
        self.home = ram.path / "gnupg"
        self.home.mkdir(mode=0o700)
        # At its first use the agent re-encrypts an imported key, with a count calibrated to take a second or two. This
        # copy is in RAM and exists for seconds, so the lowest count is enough.
        (self.home / "gpg-agent.conf").write_text("s2k-count 65536\nallow-loopback-pinentry\n")
        self._gpg = _open_gpg(self.home, self._hide_system_settings())
        self._own_key_ids: frozenset[str] = frozenset()

    def _hide_system_settings(self) -> list[str]:
        """Hide /etc/gnupg, which no option disables, from our gpg; return the command to run gpg under.

        Without root that takes a user namespace; if the kernel denies one, gpg reads the system's settings.
        """
        if not Path("/etc/gnupg").is_dir():
            return []
        if RamFolder.private_mounts:
            empty = self.home.parent / "no-settings"
            empty.mkdir(mode=0o755)
            ctypes.CDLL(None).mount(os.fsencode(empty), b"/etc/gnupg", None, MS_BIND, None)
            return []
        script = 'mount -t tmpfs none /etc/gnupg && exec "$@"'
        hidden = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
        with contextlib.suppress(errors.CommandFailedError):
            run_command([*hidden, "true"], timeout=10)
            return hidden
        return []

    def import_public(self, key: bytes) -> str:
        """Import the key that backups are encrypted to and return its fingerprint.

        :raises WrongSettingError: when it is not a public key.
        """
        result = self._gpg.import_keys(key)
        if not result.fingerprints or result.sec_read:
            what = "is a PRIVATE key" if result.sec_read else "is not an OpenPGP public key"
            hint = "Set it to the output of: gpg --armor --export KEY-ID | base64 -w0"
            raise errors.WrongSettingError(f"PGP_PUBLIC_KEY_BASE64 {what}", hint=hint)
        return str(result.fingerprints[0])

    def import_private(self, key: Secret) -> ImportedKey:
        """Import a private key, binary or armored.

        :raises UnusableKeyError: when it is truncated, a public key only, or not a key.
        """
        result = self._gpg.import_keys(key.reveal_bytes())
        secret = self._gpg.list_keys(secret=True)
        if result.sec_read and not result.sec_imported:
            self._ask_agent("GETINFO version")  # raises when there is no agent; gpg does not tell
        if not result.sec_read or not result.sec_imported or not secret:
            if result.imported and not result.sec_read:
                raise errors.KeyHasNoSecretPartError("that is a public key, not a private key")
            if result.count or result.sec_read or begins_like_key(key.reveal_bytes()):
                raise errors.UnusableKeyError("the private key is truncated or corrupted")
            raise errors.UnusableKeyError("not an OpenPGP key")
        ids = {str(key["keyid"]) for key in secret} | {str(sub[0]) for key in secret for sub in key["subkeys"]}
        self._own_key_ids = frozenset(ids)
        return ImportedKey(str(secret[0]["fingerprint"]), self._protected(), _key_warnings(secret))

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

    def require_recipient(self, beginning: bytes) -> None:
        """Raise WrongKeyError when a message that begins so names other keys only: no passphrase is needed for that."""
        recipients = armor.recipients(beginning)
        if recipients and not self._own_key_ids & {*recipients} and HIDDEN_RECIPIENT not in recipients:
            raise _wrong_key(recipients, self._own_key_ids)

    def forget_private(self) -> None:
        """Delete the private keys."""
        fingerprints = [str(key["fingerprint"]) for key in self._gpg.list_keys(secret=True)]
        self._gpg.delete_keys(fingerprints, secret=True, expect_passphrase=False)

    def try_to_open(self, beginning: bytes, passphrase: Secret | None) -> None:
        """Try key and passphrase on the beginning of a message; the content is discarded.

        :raises DecryptionError: when they do not open it.
        """
        result = self._decrypt(io.BytesIO(beginning), passphrase, lambda _: None, len(beginning))
        if not any(name == "DECRYPTION_INFO" for name, _ in result.events):
            check_decryption(result.events, result.returncode, self._own_key_ids)

    def decrypt(self, message: Readable, passphrase: Secret | None, sink: Callable[[bytes], None], limit: int) -> None:
        """Decrypt a message to ``sink``; the content is authenticated only when this method returns.

        :param limit: maximum bytes of content.
        :raises DecryptionError: wrong key or passphrase, corrupted, truncated or unauthenticated message.
        :raises TooLargeError: when the content exceeds the limit.
        """
        result = self._decrypt(message, passphrase, sink, limit)
        if result.received > limit:
            raise errors.TooLargeError(limit)
        check_decryption(result.events, result.returncode, self._own_key_ids)
        if result.failure:
            raise result.failure

    def _decrypt(self, message: Readable, passphrase: Secret | None, sink: Callable[[bytes], None], limit: int) -> Any:
        """Run gpg on a message until the content exceeds the limit; return its result, whatever it says."""
        text = passphrase_text(passphrase)
        taken = received = 0

        def seconds() -> int:
            return GPG_SECONDS + taken // 1_000_000

        def count(data: bytes) -> None:
            nonlocal received
            received += len(data)
            if received <= limit:
                sink(data)
            else:  # gpg would go on unpacking a decompression bomb
                self._gpg.process.kill()

        def read(size: int) -> bytes:
            nonlocal taken
            data = message.read(size)
            taken += len(data)
            gpg = self._gpg.process.pid
            with contextlib.suppress(ProcessLookupError, ValueError):  # it has ended, or the host has a lower limit
                _, most = resource.prlimit(gpg, resource.RLIMIT_CPU)
                resource.prlimit(gpg, resource.RLIMIT_CPU, (seconds(), most))
            return data

        try:
            result = self._stream(
                count,
                lambda: self._gpg.decrypt_file(
                    armor.Unwrapped(SimpleNamespace(read=read)),
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
                f"gpg was ended after computing for {seconds()} s, much longer than {megabytes(taken)} take; it found "
                f"{megabytes(received)} of content",
                hint=errors.choose_another_backup_hint(),
            )
        result.received = received
        return result

    def encrypt(self, content: Readable, fingerprint: str, sink: Callable[[bytes], None]) -> None:
        """Encrypt to one public key, without compressing again; BackupFailedError when gpg fails, with its reason."""
        result = self._stream(
            sink,
            lambda: self._gpg.encrypt_file(
                content, [fingerprint], always_trust=True, armor=False, extra_args=["-z", "0", "--no-auto-key-locate"]
            ),
        )
        if result.failure:
            raise result.failure
        if not result.ok or result.returncode:
            raise errors.BackupFailedError(
                f"gpg cannot encrypt the backup: {result.status or 'no reason given'}",
                hint="Is the key in PGP_PUBLIC_KEY_BASE64 expired, revoked or without an encryption subkey? Show it: "
                "base64 -d | gpg --show-keys",
            )

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


def _open_gpg(home: Path, wrapper: list[str]) -> Any:
    """Return a python-gnupg interface that runs gpg in a session of its own, with a minimal environment.

    :param wrapper: the command to run gpg under, if any.
    """
    import gnupg

    class Crypt(gnupg.Crypt):  # type: ignore[misc]
        """Keeps every status line: python-gnupg drops those about authentication."""

        def __init__(self, gpg: Any) -> None:
            super().__init__(gpg)
            self.events: list[tuple[str, str]] = []
            gpg.result = self  # for when writing to gpg fails

        def handle_status(self, key: str, value: str) -> None:
            self.events.append((key, value))
            with contextlib.suppress(ValueError, LookupError):  # it fails on status lines of corrupted messages
                super().handle_status(key, value)

    class Gpg(gnupg.GPG):  # type: ignore[misc]
        buffer_size = 1 << 16  # larger pieces make isal slower
        result_map = gnupg.GPG.result_map | {"crypt": Crypt}
        process: Popen[bytes] | None = None

        def _open_subprocess(self, args: list[str], passphrase: bool = False) -> Popen[bytes]:
            argv = [*wrapper, *self.make_args(args, passphrase)]
            self.process = Popen(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=self.env, start_new_session=True)
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
        return Gpg(gnupghome=str(home), env=env, encoding="latin-1")
    except (OSError, ValueError) as error:
        raise errors.MissingProgramError(f"cannot run gpg: {error}", hint="Install it: apt-get install gnupg") from None


def check_decryption(events: list[tuple[str, str]], returncode: int, own_key_ids: frozenset[str]) -> None:
    """Raise unless gpg's status lines say that one complete, encrypted and authenticated message was read.

    gpg may output content, and exit with 0 or say DECRYPTION_OKAY, for messages that are not authenticated or not even
    encrypted. Status lines: https://github.com/gpg/gnupg/blob/master/doc/DETAILS.

    :raises DecryptionError: saying which of the many cases it is.
    """
    seen = {name for name, _ in events}
    recipients = [value.split()[0] for name, value in events if name == "ENC_TO"]
    # "pkdecrypt_failed 67108875", "proc_pkt.plaintext 89_X"
    codes = [re.match(r"\S+ (\d+)", value) for name, value in events if name == "ERROR"]
    bad_passphrase = any(code and int(code[1]) & 0xFFFF == GPG_ERR_BAD_PASSPHRASE for code in codes)
    info = next((value.split() for name, value in events if name == "DECRYPTION_INFO"), [])
    aead = len(info) > 2 and info[2] != "0"  # fields of DECRYPTION_INFO: MDC method, cipher, AEAD algorithm
    authentic = "GOODMDC" in seen or aead
    again = "Copy the backup file again, then compare it: sha256sum -c FILE.sha256"
    if "DECRYPTION_OKAY" in seen and authentic and returncode == 0:
        return
    if "DECRYPTION_INFO" not in seen:  # gpg did not reach the content
        if "MISSING_PASSPHRASE" in seen or bad_passphrase:
            raise errors.WrongPassphraseError("wrong passphrase for the private key", hint=WRONG_KEY_HINT)
        if HIDDEN_RECIPIENT in recipients and "NO_SECKEY" in seen:  # gpg does not tell the two cases apart
            raise errors.WrongPassphraseError(
                "wrong passphrase, or the backup is encrypted to another key (its recipient is hidden)",
                hint="Try again with the right passphrase, or with the other key.",
            )
        if recipients and not own_key_ids & {*recipients}:
            raise _wrong_key(recipients, own_key_ids)
        if "NEED_PASSPHRASE_SYM" in seen:
            raise errors.NotEncryptedError(
                "the backup is encrypted with a passphrase only, not to a key",
                hint="Such backups are not supported. Decrypt it manually, in a RAM folder: gpg -d",
            )
        if seen & {"PLAINTEXT", "SIG_ID", "GOODSIG", "ERRSIG", "ONEPASS"}:
            raise errors.NotEncryptedError(
                "the message is not encrypted: anybody could have made it",
                hint="Restore a backup that was encrypted to your key.",
            )
        raise errors.DamagedMessageError("the encrypted backup is corrupted: gpg cannot read its beginning", hint=again)
    if not authentic and (info[:1] == ["0"] or "DECRYPTION_OKAY" in seen):
        raise errors.UnauthenticatedMessageError(
            "the encrypted backup is not authenticated (no MDC): anybody could have changed its content",
            hint="Restore another backup.",
        )
    raise errors.DamagedMessageError("the encrypted backup is corrupted or truncated", hint=again)


def _wrong_key(recipients: list[str], own_key_ids: frozenset[str]) -> errors.WrongKeyError:
    return errors.WrongKeyError(
        f"wrong private key: the backup is encrypted to key ID {', '.join(recipients)}, the key given has "
        f"{', '.join(sorted(own_key_ids))}",
        hint="Use the private key with that ID (gpg --list-secret-keys --keyid-format long).",
    )


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
