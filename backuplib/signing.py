"""Origin: who made a backup. Encrypting to a public key proves nothing about that: everybody can.

Backups are signed with a key of the host, without a passphrase, that its first backup makes. It lies in a folder of its
own, which only the user who makes the backups can read: outside the shop, where no bot reaches it.

The signature is a line of the checksum file, a comment to sha256sum: it covers the backup's name, its SHA-256 and its
kind, as they stand in that file. So it is looked at without the private key, before anything else; it holds for
backups that are not encrypted, too; and an older backup under a newer one's name is noticed.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backuplib import errors
from backuplib.backup_file import Backup, checksum_text, recorded_kind, recorded_signature, signature_line
from backuplib.files import CHUNK, fsync_folder, is_ours, open_folder, open_regular, replacing, write_all
from backuplib.formatting import quoted
from backuplib.openpgp import Keyring
from backuplib.ram_folder import RamFolder
from backuplib.secret import Secret

KEY, PUBLIC, TRUSTED = "key.asc", "public.asc", "trusted.asc"

THIS_HOST, TRUSTED_HOST, OTHER, NONE = "this host", "trusted host", "other", "none"
INVALID, UNKNOWN = "invalid", "unknown"

ELSEWHERE = "SIGNING_DIR in .env can be another folder, which nobody else can write but the user who makes the backups."

_NO_PUBLIC_KEY = "9"  # the reason in gpg's ERRSIG


@dataclass(frozen=True)
class Origin:
    """Who signed a backup; ``fingerprint`` is None where it is not known.

    ``told``: the same for people, as what follows "signed"; where that is not "by …", the reason alone.
    """

    state: str
    told: str
    fingerprint: str | None = None

    def __str__(self) -> str:
        """Return what stands behind "signed" in a list of facts."""
        return {NONE: "no: ", INVALID: "not validly: ", UNKNOWN: "not known: "}.get(self.state, "") + self.told

    def sentence(self, name: str) -> str:
        """Return the same of a backup of this name."""
        begin = {
            NONE: f"{name} is not signed: ",
            INVALID: f"{name} is not validly signed: ",
            UNKNOWN: f"who signed {name} is not known: ",
        }
        return begin.get(self.state, f"{name} is signed ") + self.told

    def as_dict(self) -> dict[str, str | None]:
        """Return it as --json shows it."""
        return {"state": self.state, "fingerprint": self.fingerprint}

    def refuse_unless_trusted(self, folder: Path, backup: Path) -> None:
        """Refuse, because of REQUIRE_SIGNATURE, what was signed neither here nor by a host that is trusted.

        :raises DecryptionError: saying who signed it instead.
        """
        if self.state in (THIS_HOST, TRUSTED_HOST):
            return
        message = f"REQUIRE_SIGNATURE is yes, and {self.sentence(backup.name)}"
        anyway = "If you know where it is from all the same, put REQUIRE_SIGNATURE=no in front of the command."
        another = errors.choose_another_backup_hint()
        if self.state == NONE:
            raise errors.SignatureMissingError(message, hint=f"{anyway} {another}")
        if self.state == OTHER:
            trusted = quoted(folder / TRUSTED)
            raise errors.SignatureOfAnotherError(
                message,
                hint="If that is a key of a machine of yours, append the public half from your papers to "
                f"{trusted} (RUNBOOK.md, section 9). {another}",
            )
        if self.state == INVALID:
            raise errors.SignatureInvalidError(message, hint=f"{anyway} {another}")
        raise errors.SignatureUncheckedError(message, hint=f"Remove what is in the way of that look. {anyway}")


class SigningFolder:
    """Where the host's signing key is, with the public halves that are trusted.

    :param shop: folders that the bot writes, in which it must not be.
    """

    def __init__(self, path: Path, shop: Sequence[Path] = ()) -> None:
        self.path, self._shop = Path(os.path.realpath(str(path))), shop
        self._made: tuple[str, str] | None = None  # fingerprint and public half of a key that was made just now

    # --- the key -------------------------------------------------------------------------------------------------

    def sign(self, text: str, ram: RamFolder) -> str:
        """Return the line that signs a checksum file's text; makes the host's key if there is none.

        :raises CannotSignError: when there is no key that can be used, saying why.
        """
        try:
            self._refuse_unsafe(make=True)
            keyring = Keyring(ram)
            signature = keyring.sign(text.encode(), keyring.import_signing_key(self._key(keyring)))
        except OSError as error:
            raise errors.CannotSignError(errors.explain(error), hint=ELSEWHERE) from None
        return signature_line(base64.b64encode(signature).decode())

    def _key(self, keyring: Keyring) -> Secret:
        """Return the host's key, made by the first who asks; the others wait for that."""
        folder = open_folder(self.path)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                return self._kept_key()
            host = re.sub(r"[^A-Za-z0-9.-]", "-", os.uname().nodename)
            key, public = keyring.make_signing_key(f"backups of {host}")
            for name, content in ((PUBLIC, public), (KEY, key.reveal_bytes())):  # the key last: it is there or not
                with replacing(self.path / name, ".new") as file:
                    write_all(file, content)
            self._made = keyring.import_signing_key(key), public.decode()
            return key
        finally:
            os.close(folder)

    def _kept_key(self) -> Secret:
        path = self.path / KEY
        with open_regular(path, os.O_RDONLY | os.O_NOFOLLOW) as file:
            if not is_ours(file.fileno()):
                raise errors.CannotSignError(
                    f"{path} is not this user's alone: others may have its key",
                    hint=f"If nobody has read it: chmod 600 {quoted(path)}. Else remove it, and the next backup makes "
                    "another one.",
                )
            return Secret(file.read(CHUNK))

    def _refuse_unsafe(self, *, make: bool = False) -> None:
        """Refuse a folder that the bot, or another user, can write, or what is above it; ``make`` it if it is missing.

        :raises CannotSignError: saying what is wrong with it.
        :raises OSError: when it is not there, or cannot be made.
        """
        for place in self._shop:
            if self.path.is_relative_to(os.path.realpath(str(place))):
                raise errors.CannotSignError(
                    f"the signing folder {self.path} is inside of {place}, which is the bot's", hint=ELSEWHERE
                )
        if make and not self.path.exists():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)  # another run may just have made it
            fsync_folder(self.path.parent)
        for folder in (self.path, *self.path.parents):
            own, status = folder == self.path, folder.stat()
            sticky = not own and status.st_mode & 0o1000
            open_to_others = status.st_mode & (0o077 if own else 0o022) and not sticky
            if open_to_others or status.st_uid not in ({os.geteuid()} if own else {0, os.geteuid()}):
                raise errors.CannotSignError(
                    f"{folder}, where the signing key is, is not this user's alone (mode "
                    f"{status.st_mode & 0o7777:04o}, owner {status.st_uid})",
                    hint=f"Look who wrote there, then: chmod 700 {quoted(self.path)}; or set another SIGNING_DIR.",
                )

    def announced(self) -> list[str]:
        """Return the lines that show the public half of a key that was made just now; none if none was."""
        if not self._made:
            return []
        fingerprint, public = self._made
        return [
            "🔏 From now on backups are signed, with a key of this host. Keep its public half at home and on paper:",
            f"   fingerprint {in_groups(fingerprint)}",
            f"   to see it again: cat {quoted(self.path / PUBLIC)}",
            *public.splitlines(),
        ]

    # --- whose signature it is -----------------------------------------------------------------------------------

    def origin(self, backup: Backup, ram: RamFolder) -> Origin:
        """Return who signed a backup under its name, with the checksum that stands beside it."""
        line = recorded_signature(backup.beside)
        if not line or backup.expected is None:
            return Origin(NONE, "there is no signature beside it")
        text = checksum_text(backup.name, backup.expected, recorded_kind(backup.beside))
        try:
            signature = base64.b64decode(line, validate=True)
            own, trusted = self.public_halves()
            keyring = Keyring(ram)
            hosts = dict.fromkeys(keyring.import_keys(trusted), TRUSTED_HOST)
            hosts |= dict.fromkeys(keyring.import_keys(own), THIS_HOST)
            events = keyring.verify(text.encode(errors="surrogateescape"), signature)
        except ValueError:
            return Origin(INVALID, "what stands beside it cannot be read")
        except (errors.OperatorError, OSError) as error:
            return Origin(UNKNOWN, f"the signature was not checked, {errors.explain(error)}")
        return judged(events, hosts)

    def public_halves(self) -> tuple[bytes, bytes]:
        """Return the public half of the host's own key, and those of other hosts that are trusted; empty without any.

        :raises CannotSignError: when others can write them.
        :raises OSError: when they cannot be read.
        """
        with contextlib.suppress(FileNotFoundError):
            self._refuse_unsafe()
        return self._read(PUBLIC), self._read(TRUSTED)

    def _read(self, name: str) -> bytes:
        try:
            with open_regular(self.path / name, os.O_RDONLY | os.O_NOFOLLOW) as file:
                return file.read(CHUNK)
        except FileNotFoundError:
            return b""

    def fingerprint(self) -> str | None:
        """Return the fingerprint of the host's own key; None when there is none yet.

        :raises OperatorError, OSError: when that cannot be told.
        """
        own, _ = self.public_halves()
        with RamFolder() as ram:
            return next(iter(Keyring(ram).import_keys(own)), None) if own else None


def judged(events: Sequence[tuple[str, str]], hosts: dict[str, str]) -> Origin:
    """Return what gpg's status lines on one signature say; see doc/DETAILS in its source.

    :param hosts: what the primary keys are whose signature counts, by their fingerprints.
    """
    said = {name: value.split() for name, value in events}
    names = [name for name, _ in events]
    key_id = next((said[name][0] for name in ("GOODSIG", "BADSIG", "ERRSIG", *_ENDED) if name in said), "")
    if names.count("NEWSIG") != 1 or not key_id:
        return Origin(INVALID, "what stands beside it is not one signature")
    primary = said["VALIDSIG"][-1] if "VALIDSIG" in said else None
    if ended := next((_ENDED[name] for name in _ENDED if name in said), None):
        return Origin(INVALID, f"{ended} (key ID {key_id})", primary)
    if "GOODSIG" in said and primary in hosts:
        state = hosts[primary]
        return Origin(state, "by this host" if state == THIS_HOST else f"by a trusted host (key ID {key_id})", primary)
    if "BADSIG" in said:
        reason = "it was renamed since, or replaced by somebody without that key"
        return Origin(INVALID, f"key ID {key_id} did not sign this file under this name; {reason}")
    error = said.get("ERRSIG", [])
    if error and error[5:6] != [_NO_PUBLIC_KEY]:
        return Origin(UNKNOWN, f"gpg cannot check the signature of key ID {key_id}")
    fingerprint = error[6] if error[6:] and error[6] != "-" else primary
    return Origin(OTHER, f"by somebody else (key ID {key_id})", fingerprint)


_ENDED = {
    "EXPSIG": "the signature has expired",
    "EXPKEYSIG": "the key of the signature has expired",
    "REVKEYSIG": "the key of the signature is revoked",
}


def in_groups(fingerprint: str) -> str:
    """Return a fingerprint as people compare it."""
    return " ".join(re.findall(".{1,4}", fingerprint))
