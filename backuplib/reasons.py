"""Why gpg takes no key or opens no message: what it said, and what the packets show → what is true → what to do.

Two tables, one for keys and one for messages: the first row that applies is the reason, and the last one is for what is
not known. gpg's words are those of 2.2 and 2.4 without translation; of its status lines see doc/DETAILS in its source.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from backuplib import errors
from backuplib.packets import (
    ED448,
    HIDDEN_RECIPIENT,
    X25519,
    KeyPackets,
    KeyPart,
    MessagePackets,
)

COPY_AGAIN = "Copy the backup file again, then compare it: sha256sum -c FILE.sha256"
EXPORT = "gpg --export-secret-keys KEY-ID | base64 -w0"
EXPORT_AGAIN = f"Export it again: {EXPORT}"
WRONG_KEY_HINT = "It is the key's passphrase, not DB_PASS. Check the keyboard layout, and for a leading line break."
_DECRYPT_ELSEWHERE = (
    "Decrypt the backup where the key is, with a program that reads it (Sequoia: sq decrypt), and restore the .db.gz "
    "that comes out"
)
_OTHER_EXPORT = f"Use an export that has it, such as the copy made before keytocard: {EXPORT}"

# Codes of libgpg-error: the low 16 bits of those in gpg's status lines
_CHECKSUM, _BAD_PASSPHRASE, _WRONG_SECKEY, _BAD_DATA = 10, 11, 18, 89
_UNSUPPORTED = {4, 12, 60, 69, 84}  # algorithm of the key, of the cipher; not supported, not implemented, unknown


class Reason(NamedTuple):
    """A row: when it applies, the error it is, and in words what is true and what to do, with the facts filled in."""

    applies: Callable[[Any], bool]
    error: type[errors.DecryptionError]
    true: str
    do: str


def _raise_first(table: Sequence[Reason], said: Any) -> None:
    """Raise what the first row says that applies."""
    for reason in table:
        if reason.applies(said):
            raise reason.error(reason.true.format(said=said), hint=reason.do.format(said=said))


def self_signature_broken(log: str) -> bool:
    """Whether gpg took a key without the signature that binds it to its user ID, because that does not match."""
    return "bad signature" in log and "accepted non self-signed user ID" in log


# --- keys ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeySaid:
    """What is known of a private key that was imported: its packets, and what gpg said and took."""

    packets: KeyPackets
    message: MessagePackets  # what it is as a message, if it is one
    log: str
    secrets: int  # keys with a secret part that gpg took

    @property
    def ids(self) -> str:
        return ", ".join(part.key_id for part in self.packets.parts if part.encrypts) or "that was given"

    @property
    def version(self) -> int:
        return max((part.version for part in self.packets.parts), default=0)

    def has(self, *secret: str) -> bool:
        """Whether a part's secret is in one of these states."""
        return any(part.secret in secret for part in self.packets.parts)

    def only(self, *secret: str) -> bool:
        """Whether all parts that decrypt are in one of these states."""
        found = [part for part in self.packets.parts if part.encrypts]
        return bool(found) and all(part.secret in secret for part in found)

    @property
    def new_algorithms(self) -> bool:
        return any(X25519 <= part.algorithm <= ED448 for part in self.packets.parts)


_NO_GPG_READS = f"GnuPG does not read that. {_DECRYPT_ELSEWHERE}"

KEY_REASONS = (
    Reason(
        lambda said: said.message.encrypted,
        errors.UnusableKeyError,
        "the private key is itself inside an encrypted message",
        "Decrypt that first (OpenKeychain and others ask for its backup code), and hand over what comes out: "
        "gpg -d FILE | base64 -w0. It is a private key if it is made by: gpg --export-secret-keys",
    ),
    Reason(
        lambda said: said.message.container[0] in (2, 4),
        errors.UnusableKeyError,
        "that is a signature, not a private key",
        EXPORT_AGAIN,
    ),
    Reason(
        lambda said: said.packets.parts and not any(part.secret for part in said.packets.parts),
        errors.KeyHasNoSecretPartError,
        "that is a public key, not a private key",
        EXPORT_AGAIN,
    ),
    Reason(
        lambda said: not said.secrets and said.version == 6,
        errors.UnsupportedFormatError,
        "the private key is of version 6 (RFC 9580), not version 4",
        _NO_GPG_READS,
    ),
    Reason(
        lambda said: not said.secrets and said.version == 5,
        errors.UnsupportedFormatError,
        "the private key is of version 5, which this machine's gpg does not read",
        f"GnuPG 2.3 and newer read it. {_DECRYPT_ELSEWHERE}",
    ),
    Reason(
        lambda said: not said.secrets and said.has("argon2"),
        errors.UnsupportedFormatError,
        "the private key is protected by a passphrase with Argon2",
        f"{_NO_GPG_READS}; or export the key with the program that made it, without that protection",
    ),
    Reason(
        lambda said: not said.secrets and said.has("aead"),
        errors.UnsupportedFormatError,
        "the private key is protected by a passphrase with AEAD",
        f"{_NO_GPG_READS}; or export the key with the program that made it, without that protection",
    ),
    Reason(
        lambda said: not said.secrets and said.new_algorithms,
        errors.UnsupportedFormatError,
        "the private key is of an algorithm in the format of RFC 9580 (X25519, Ed25519, X448 or Ed448)",
        _NO_GPG_READS,
    ),
    Reason(
        lambda said: said.only("card", "absent") and said.has("card"),
        errors.KeyHasNoSecretPartError,
        "the secret part of key ID {said.ids} is on a smartcard, not in the export that was given",
        _OTHER_EXPORT,
    ),
    Reason(
        lambda said: said.only("absent"),
        errors.KeyHasNoSecretPartError,
        "the export that was given has no secret part of key ID {said.ids}, which decrypts",
        _OTHER_EXPORT,
    ),
    Reason(
        lambda said: not said.secrets and said.packets.cut,
        errors.UnusableKeyError,
        "the private key is truncated: its end is missing",
        EXPORT_AGAIN,
    ),
    Reason(
        lambda said: self_signature_broken(said.log),
        errors.UnusableKeyError,
        "the private key is corrupted: its own signature does not match it",
        EXPORT_AGAIN,
    ),
    Reason(
        lambda said: not said.secrets and "CRC error" in said.log,
        errors.UnusableKeyError,
        "the private key is corrupted: the checksum of its armor does not match",
        EXPORT_AGAIN,
    ),
    Reason(
        lambda said: not said.secrets and not said.packets.parts,
        errors.UnusableKeyError,
        "not an OpenPGP key",
        EXPORT_AGAIN,
    ),
    Reason(
        lambda said: not said.secrets,
        errors.UnusableKeyError,
        "gpg does not take the private key, for a reason that is not known",
        f"See what it says, where the key is: base64 -d key.b64 | gpg --show-keys --verbose. {EXPORT_AGAIN}",
    ),
)


def refuse_key(said: KeySaid) -> None:
    """Raise the reason why a private key cannot be used; return when there is none."""
    _raise_first(KEY_REASONS, said)


# --- messages ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What is known of a message: its packets, the key's parts, and what gpg said when it was tried (status lines)."""

    message: MessagePackets
    parts: tuple[KeyPart, ...] = ()
    protected: bool = True
    events: Sequence[tuple[str, str]] = ()
    returncode: int | None = None  # None: it was not asked yet, or exited before it had read everything
    tried: bool = False
    log: str = ""
    seen: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seen", frozenset(name for name, _ in self.events))

    @property
    def recipients(self) -> tuple[str, ...]:
        return self.message.recipients or tuple(value.split()[0] for name, value in self.events if name == "ENC_TO")

    @property
    def hidden(self) -> bool:
        return HIDDEN_RECIPIENT in self.recipients

    @property
    def ours(self) -> list[KeyPart]:
        """The parts of the key that the message is encrypted to."""
        return [part for part in self.parts if part.key_id in self.recipients]

    def lacks_secret(self, *states: str) -> bool:
        """Whether all of those are in one of these states."""
        return bool(self.ours) and all(part.secret in states for part in self.ours)

    @property
    def to(self) -> str:
        return ", ".join(key_id for key_id in self.recipients if key_id != HIDDEN_RECIPIENT)

    @property
    def own_ids(self) -> str:
        return ", ".join(sorted({part.key_id for part in self.parts}))

    @property
    def lacking(self) -> str:
        return ", ".join(part.key_id for part in self.ours)

    @property
    def or_passphrase(self) -> str:
        return ", or with a passphrase instead" if self.message.passphrases else ""

    @property
    def codes(self) -> set[int]:
        """Of the errors that decrypting the session key with the key ended in."""
        found = (re.match(r"pkdecrypt_failed (\d+)", value) for name, value in self.events if name == "ERROR")
        return {int(code[1]) & 0xFFFF for code in found if code}

    @property
    def opened(self) -> bool:
        """Whether gpg had a session key, and reached the content."""
        return "DECRYPTION_INFO" in self.seen and ("DECRYPTION_KEY" in self.seen or not self.codes)

    @property
    def authentic(self) -> bool:
        """Whether gpg vouches for the content: by its MDC, or by AEAD (fields: MDC method, cipher, AEAD algorithm)."""
        info = self._info
        return "GOODMDC" in self.seen or (len(info) > 2 and info[2] != "0")

    @property
    def no_mdc(self) -> bool:
        return not self.authentic and (self._info[:1] == ["0"] or "DECRYPTION_OKAY" in self.seen)

    @property
    def _info(self) -> list[str]:
        return next((value.split() for name, value in self.events if name == "DECRYPTION_INFO"), [])

    @property
    def complete(self) -> bool:
        """Whether one complete, encrypted and authenticated message was read."""
        return "DECRYPTION_OKAY" in self.seen and self.authentic and self.returncode == 0

    @property
    def code(self) -> str:
        found = (re.match(r"[\w.]+ \d+", value) for name, value in self.events if name in ("ERROR", "FAILURE"))
        return next((f" ({code[0]})" for code in found if code), "")


MESSAGE_REASONS = (
    Reason(
        lambda said: said.message.cut,
        errors.DamagedMessageError,
        "the encrypted backup is truncated: it ends where its content should begin",
        COPY_AGAIN,
    ),
    Reason(
        lambda said: (said.message.passphrases or "NEED_PASSPHRASE_SYM" in said.seen) and not said.recipients,
        errors.NotEncryptedError,
        "the backup is encrypted with a passphrase only (gpg -c), not to a key",
        "Such backups are not supported. Decrypt it manually, in a RAM folder, and restore what comes out: gpg -d",
    ),
    Reason(
        lambda said: said.message.container == (18, 2) or said.message.newest == 6,
        errors.UnsupportedFormatError,
        "the backup is encrypted with AEAD in the format of RFC 9580 (to key ID {said.to})",
        f"{_NO_GPG_READS}. Let the program that makes the backups encrypt in the older format (SEIPD version 1)",
    ),
    Reason(
        lambda said: said.recipients and not said.ours and not said.hidden and said.message.container != (0, 0),
        errors.WrongKeyError,
        "wrong private key: the backup is encrypted to another key, ID {said.to}{said.or_passphrase}; the key given "
        "has {said.own_ids}",
        "Use the private key with that ID (gpg --list-secret-keys --keyid-format long).",
    ),
    Reason(
        lambda said: any(X25519 <= part.algorithm <= ED448 for part in said.ours),
        errors.UnsupportedFormatError,
        "the backup is encrypted to key ID {said.to}, which is X25519 or X448 in the format of RFC 9580",
        _NO_GPG_READS,
    ),
    Reason(
        lambda said: said.lacks_secret("card", "absent") and not said.lacks_secret("absent"),
        errors.KeyHasNoSecretPartError,
        "the secret part of key ID {said.lacking} is on a smartcard, not in the export that was given",
        _OTHER_EXPORT,
    ),
    Reason(
        lambda said: said.lacks_secret("absent"),
        errors.KeyHasNoSecretPartError,
        "the backup is encrypted to key ID {said.lacking}, and the export that was given lacks its secret part",
        _OTHER_EXPORT,
    ),
    # from here on gpg has tried
    Reason(
        lambda said: (said.returncode or 0) < 0,
        errors.GpgFailedError,
        "gpg was killed by a signal while it decrypted",
        "See why (memory?): dmesg | tail. Then try again.",
    ),
    Reason(
        lambda said: not said.opened and (_BAD_PASSPHRASE in said.codes or "MISSING_PASSPHRASE" in said.seen),
        errors.WrongPassphraseError,
        "wrong passphrase for the private key",
        WRONG_KEY_HINT,
    ),
    Reason(
        lambda said: not said.opened and said.hidden and "NO_SECKEY" in said.seen and said.protected,
        errors.WrongPassphraseError,
        "wrong passphrase, or the backup is encrypted to another key (its recipient is hidden)",
        "Try again with the right passphrase, or with the other key.",
    ),
    Reason(
        lambda said: not said.opened and said.hidden and "NO_SECKEY" in said.seen,
        errors.WrongKeyError,
        "wrong private key: the backup is encrypted to another one (its recipient is hidden); the key given has "
        "{said.own_ids}",
        "Use another private key.",
    ),
    Reason(
        lambda said: said.tried and not said.opened and said.recipients and not said.ours,
        errors.WrongKeyError,
        "wrong private key: the backup is encrypted to key ID {said.to}, the key given has {said.own_ids}",
        "Use the private key with that ID (gpg --list-secret-keys --keyid-format long).",
    ),
    Reason(
        lambda said: said.codes & _UNSUPPORTED and not said.opened,
        errors.UnsupportedFormatError,
        "the backup is encrypted to key ID {said.to} in a way that this machine's gpg does not support{said.code}",
        f"{_DECRYPT_ELSEWHERE}; or use a newer GnuPG",
    ),
    Reason(
        lambda said: said.codes & {_CHECKSUM, _WRONG_SECKEY, _BAD_DATA} and not said.opened,
        errors.DamagedMessageError,
        "the encrypted backup is corrupted: the session key at its beginning does not decrypt with the right key",
        COPY_AGAIN,
    ),
    Reason(
        lambda said: (
            "DECRYPTION_INFO" not in said.seen and said.seen & {"PLAINTEXT", "SIG_ID", "GOODSIG", "ERRSIG", "ONEPASS"}
        ),
        errors.NotEncryptedError,
        "the message is not encrypted: anybody could have made it",
        "Restore a backup that was encrypted to your key.",
    ),
    Reason(
        lambda said: said.opened and said.no_mdc,
        errors.UnauthenticatedMessageError,
        "the encrypted backup is not authenticated (no MDC): anybody could have changed its content",
        "Restore another backup.",
    ),
    Reason(
        lambda said: said.opened or bool(re.search(r"block_filter.*: (?:read error|pending bytes)", said.log)),
        errors.DamagedMessageError,
        "the encrypted backup is corrupted or truncated: it does not decrypt to an authentic end",
        COPY_AGAIN,
    ),
    Reason(
        lambda said: not said.recipients and said.tried,
        errors.DamagedMessageError,
        "gpg finds no OpenPGP message in the backup: it is corrupted, or another kind of file",
        COPY_AGAIN,
    ),
    Reason(
        lambda said: said.tried,
        errors.GpgFailedError,
        "gpg did not decrypt the backup, for a reason that is not known{said.code}",
        f"See what it says where the key is: gpg -d FILE > /dev/null. {errors.choose_another_backup_hint()}",
    ),
)


def refuse_message(said: Said) -> None:
    """Raise the reason why a message is not opened; return when it was, or as far as it can be told before gpg tries.

    gpg may output content, and exit with 0 or say DECRYPTION_OKAY, for messages that are not authenticated or not even
    encrypted.

    :raises DecryptionError: saying which of the many cases it is.
    """
    if not said.complete:
        _raise_first(MESSAGE_REASONS, said)
