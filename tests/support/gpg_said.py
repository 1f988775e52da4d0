"""What the real gpg said of messages: its status lines, by release, with what the packets of each message show.

Made by GnuPG 2.2.40 and 2.4.7 from the same keys and messages. A key's parts are 1111… and AAAA…, which decrypts; CCCC…
is a part of another key, DDDD… of one that AEAD was used with, and EEEE… is X25519 of RFC 9580.
"""

from dataclasses import dataclass

from backuplib.packets import HIDDEN_RECIPIENT, MessagePackets


@dataclass(frozen=True)
class GpgSaid:
    """The exit code and the status lines of each release; of key IDs the one character that they consist of."""

    message: MessagePackets
    by_2_2_40: str
    by_2_4_7: str = ""  # the same, where nothing is said

    def _said(self, release: str) -> str:
        return self.by_2_4_7 or self.by_2_2_40 if release == "2.4.7" else self.by_2_2_40

    def returncode(self, release: str) -> int:
        """The exit code."""
        return int(self._said(release).partition(": ")[0])

    def events(self, release: str) -> list[tuple[str, str]]:
        """The status lines, as names and values."""
        lines = [line.partition(" ") for line in self._said(release).partition(": ")[2].split(", ")]
        return [
            (name, value[0] * 16 + value[1:] if name in ("ENC_TO", "NO_SECKEY") else value) for name, _, value in lines
        ]


A, C, D, E = (letter * 16 for letter in "ACDE")

SAID = {
    "opened": GpgSaid(
        MessagePackets((A,), container=(18, 1), newest=3),
        "0: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, DECRYPTION_OKAY, "
        "GOODMDC, END_DECRYPTION",
    ),
    "opened, to two keys": GpgSaid(
        MessagePackets((A, C), container=(18, 1), newest=3),
        "0: ENC_TO A 1 0, DECRYPTION_KEY, ENC_TO C 1 0, NO_SECKEY C, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, "
        "PLAINTEXT, DECRYPTION_OKAY, GOODMDC, END_DECRYPTION",
        "0: ENC_TO A 1 0, ENC_TO C 1 0, DECRYPTION_KEY, NO_SECKEY C, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, "
        "PLAINTEXT, DECRYPTION_OKAY, GOODMDC, END_DECRYPTION",
    ),
    "opened, hidden recipient": GpgSaid(
        MessagePackets((HIDDEN_RECIPIENT,), container=(18, 1), newest=3),
        "0: ENC_TO 0 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, DECRYPTION_OKAY, "
        "GOODMDC, END_DECRYPTION",
    ),
    "opened, or by a passphrase": GpgSaid(
        MessagePackets((A,), passphrases=1, container=(18, 1), newest=4),
        "0: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, DECRYPTION_OKAY, "
        "GOODMDC, END_DECRYPTION",
        "0: ENC_TO A 1 0, NEED_PASSPHRASE_SYM 9 3 2, ERROR symkey_decrypt.maybe_error 11_BAD_PASSPHRASE, "
        "DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, DECRYPTION_OKAY, GOODMDC, "
        "END_DECRYPTION",
    ),
    "wrong passphrase": GpgSaid(
        MessagePackets((A,), container=(18, 1), newest=3),
        "2: ENC_TO A 1 0, ERROR pkdecrypt_failed 67108875, BEGIN_DECRYPTION, DECRYPTION_FAILED, END_DECRYPTION",
        "2: ENC_TO A 1 0, NO_SECKEY A, ERROR pkdecrypt_failed 67108875, BEGIN_DECRYPTION, DECRYPTION_FAILED, "
        "END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "wrong passphrase, hidden recipient": GpgSaid(
        MessagePackets((HIDDEN_RECIPIENT,), container=(18, 1), newest=3),
        "2: ENC_TO 0 1 0, NO_SECKEY 0, BEGIN_DECRYPTION, DECRYPTION_FAILED, END_DECRYPTION",
        "2: ENC_TO 0 1 0, NO_SECKEY 0, ERROR pkdecrypt_failed 67108875, BEGIN_DECRYPTION, DECRYPTION_FAILED, "
        "END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "wrong passphrase, or by another": GpgSaid(
        MessagePackets((A,), passphrases=1, container=(18, 1), newest=4),
        "2: ENC_TO A 1 0, NEED_PASSPHRASE_SYM 9 3 2, ERROR pkdecrypt_failed 67108875, BEGIN_DECRYPTION, "
        "DECRYPTION_INFO 2 9 0, ERROR symkey_decrypt.maybe_error 11_BAD_PASSPHRASE, DECRYPTION_FAILED, "
        "END_DECRYPTION",
        "2: ENC_TO A 1 0, NEED_PASSPHRASE_SYM 9 3 2, ERROR symkey_decrypt.maybe_error 11_BAD_PASSPHRASE, "
        "NO_SECKEY A, ERROR pkdecrypt_failed 67108875, BEGIN_DECRYPTION, DECRYPTION_FAILED, END_DECRYPTION, "
        "FAILURE gpg-exit 33554433",
    ),
    "another key": GpgSaid(
        MessagePackets((C,), container=(18, 1), newest=3),
        "2: ENC_TO C 1 0, NO_SECKEY C, BEGIN_DECRYPTION, DECRYPTION_FAILED, END_DECRYPTION",
        "2: ENC_TO C 1 0, NO_SECKEY C, ERROR pkdecrypt_failed 33554449, BEGIN_DECRYPTION, DECRYPTION_FAILED, "
        "END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "another key, hidden recipient": GpgSaid(
        MessagePackets((HIDDEN_RECIPIENT,), container=(18, 1), newest=3),
        "2: ENC_TO 0 18 0, NO_SECKEY 0, BEGIN_DECRYPTION, DECRYPTION_FAILED, END_DECRYPTION",
        "2: ENC_TO 0 18 0, NO_SECKEY 0, ERROR pkdecrypt_failed 33554449, BEGIN_DECRYPTION, DECRYPTION_FAILED, "
        "END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "another key, or by a passphrase": GpgSaid(
        MessagePackets((C,), passphrases=1, container=(18, 1), newest=4),
        "2: ENC_TO C 1 0, NEED_PASSPHRASE_SYM 9 3 2, NO_SECKEY C, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, ERROR "
        "symkey_decrypt.maybe_error 11_BAD_PASSPHRASE, DECRYPTION_FAILED, END_DECRYPTION",
        "2: ENC_TO C 1 0, NEED_PASSPHRASE_SYM 9 3 2, ERROR symkey_decrypt.maybe_error 11_BAD_PASSPHRASE, "
        "NO_SECKEY C, ERROR pkdecrypt_failed 33554449, BEGIN_DECRYPTION, DECRYPTION_FAILED, END_DECRYPTION, "
        "FAILURE gpg-exit 33554433",
    ),
    "a passphrase only": GpgSaid(
        MessagePackets(passphrases=1, container=(18, 1), newest=4),
        "2: NEED_PASSPHRASE_SYM 9 3 2, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, ERROR symkey_decrypt.maybe_error "
        "11_BAD_PASSPHRASE, DECRYPTION_FAILED, END_DECRYPTION",
        "2: NEED_PASSPHRASE_SYM 9 3 2, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, ERROR symkey_decrypt.maybe_error "
        "11_BAD_PASSPHRASE, DECRYPTION_FAILED, END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "signed only": GpgSaid(
        MessagePackets(container=(8, 1)),
        "0: PLAINTEXT",
    ),
    "no MDC": GpgSaid(
        MessagePackets((A,), container=(9, 114), newest=3),
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 0 2 0, PLAINTEXT, ERROR "
        "nomdc_with_legacy_cipher 152, DECRYPTION_FAILED, END_DECRYPTION",
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 0 2 0, PLAINTEXT, ERROR "
        "nomdc_with_legacy_cipher 152, DECRYPTION_FAILED, END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "flipped bit in the MDC": GpgSaid(
        MessagePackets((A,), container=(18, 1), newest=3),
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, BADMDC, "
        "DECRYPTION_FAILED, END_DECRYPTION",
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, BADMDC, "
        "DECRYPTION_FAILED, END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "flipped bit in the content": GpgSaid(
        MessagePackets((A,), container=(18, 1), newest=3),
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, BADMDC, "
        "DECRYPTION_FAILED, END_DECRYPTION",
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, BADMDC, "
        "DECRYPTION_FAILED, END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "flipped bit in the session key": GpgSaid(
        MessagePackets((A,), container=(18, 1), newest=3),
        "2: ENC_TO A 1 0, ERROR pkdecrypt_failed 33554450, BEGIN_DECRYPTION, DECRYPTION_FAILED, END_DECRYPTION",
        "2: ENC_TO A 1 0, NO_SECKEY A, ERROR pkdecrypt_failed 33554450, BEGIN_DECRYPTION, DECRYPTION_FAILED, "
        "END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "flipped bit in compressed content": GpgSaid(
        MessagePackets((A,), container=(18, 1), newest=3),
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0",
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, ERROR zlib.inflate 33554521, "
        "FAILURE gpg-exit 33554433",
    ),
    "truncated content": GpgSaid(
        MessagePackets((A,), container=(18, 1), newest=3),
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, DECRYPTION_FAILED, "
        "END_DECRYPTION",
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, DECRYPTION_FAILED, "
        "END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "truncated head": GpgSaid(
        MessagePackets(cut=True),
        "0: NODATA 3",
    ),
    "two messages": GpgSaid(
        MessagePackets((A,), container=(18, 1), newest=3),
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, DECRYPTION_OKAY, "
        "GOODMDC, END_DECRYPTION, ENC_TO A 1 0, DECRYPTION_KEY, ERROR decryption.early_plaintext 89, "
        "BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, ERROR proc_pkt.plaintext 89_BAD_DATA, DECRYPTION_FAILED, "
        "END_DECRYPTION",
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, DECRYPTION_OKAY, "
        "GOODMDC, END_DECRYPTION, ENC_TO A 1 0, ERROR decryption.early_plaintext 89, DECRYPTION_KEY, "
        "BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, ERROR proc_pkt.plaintext 89_BAD_DATA, DECRYPTION_FAILED, "
        "END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "something behind the end": GpgSaid(
        MessagePackets((A,), container=(18, 1), newest=3),
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, DECRYPTION_OKAY, "
        "GOODMDC, END_DECRYPTION, NODATA 3",
        "2: ENC_TO A 1 0, DECRYPTION_KEY, BEGIN_DECRYPTION, DECRYPTION_INFO 2 9 0, PLAINTEXT, DECRYPTION_OKAY, "
        "GOODMDC, END_DECRYPTION, NODATA 3, FAILURE gpg-exit 33554433",
    ),
    "secret part left out": GpgSaid(
        MessagePackets((A,), container=(18, 1), newest=3),
        "2: ENC_TO A 1 0, NO_SECKEY A, BEGIN_DECRYPTION, DECRYPTION_FAILED, END_DECRYPTION",
        "2: ENC_TO A 1 0, NO_SECKEY A, ERROR pkdecrypt_failed 67108983, BEGIN_DECRYPTION, DECRYPTION_FAILED, "
        "END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "secret part on a card": GpgSaid(
        MessagePackets((A,), container=(18, 1), newest=3),
        "2: ENC_TO A 1 0, NO_SECKEY A, BEGIN_DECRYPTION, DECRYPTION_FAILED, END_DECRYPTION",
        "2: ENC_TO A 1 0, NO_SECKEY A, ERROR pkdecrypt_failed 67108983, BEGIN_DECRYPTION, DECRYPTION_FAILED, "
        "END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "secret part left out, hidden recipient": GpgSaid(
        MessagePackets((HIDDEN_RECIPIENT,), container=(18, 1), newest=3),
        "2: ENC_TO 0 1 0, NO_SECKEY 0, BEGIN_DECRYPTION, DECRYPTION_FAILED, END_DECRYPTION",
        "2: ENC_TO 0 1 0, NO_SECKEY 0, ERROR pkdecrypt_failed 67108983, BEGIN_DECRYPTION, DECRYPTION_FAILED, "
        "END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "to X25519 of RFC 9580": GpgSaid(
        MessagePackets((E,), container=(18, 1), newest=3),
        "2: ENC_TO E 25 0, ERROR pkdecrypt_failed 4, BEGIN_DECRYPTION, DECRYPTION_FAILED, END_DECRYPTION",
        "2: ENC_TO E 25 0, NO_SECKEY E, ERROR pkdecrypt_failed 33554449, BEGIN_DECRYPTION, DECRYPTION_FAILED, "
        "END_DECRYPTION, FAILURE gpg-exit 33554433",
    ),
    "AEAD of RFC 9580": GpgSaid(
        MessagePackets((D,), container=(18, 2), newest=6),
        "2: NODATA 3",
        "2: NODATA 3, FAILURE gpg-exit 33554433",
    ),
    "noise": GpgSaid(
        MessagePackets(),
        "2: NODATA 1, NODATA 2, FAILURE decrypt 4294967295",
    ),
}
