"""What the real gpg said of messages: its status lines, by release, with what the packets of each message show.

Made by GnuPG 2.2.40 and 2.4.7 from the same keys and messages. A key's parts are 1111… and AAAA…, which decrypts; BBBB…
and CCCC… are parts of other keys, DDDD… is a key that AEAD was used with, and EEEE… is X25519 of RFC 9580.
"""

from dataclasses import dataclass

from backuplib.packets import MessagePackets


@dataclass(frozen=True)
class GpgSaid:
    """The exit code and the status lines of each release."""

    message: MessagePackets
    said: dict[str, tuple[int, str]]

    def events(self, release: str) -> list[tuple[str, str]]:
        """The status lines, as names and values."""
        return [(name, value) for name, _, value in (x.partition(" ") for x in self.said[release][1].splitlines())]


SAID = {
    "opened": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                0,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
""",
            ),
            "2.4.7": (
                0,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
""",
            ),
        },
    ),
    "opened, to two keys": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA", "CCCCCCCCCCCCCCCC"), container=(18, 1), newest=3),
        {
            "2.2.40": (
                0,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
ENC_TO CCCCCCCCCCCCCCCC 1 0
NO_SECKEY CCCCCCCCCCCCCCCC
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
""",
            ),
            "2.4.7": (
                0,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
ENC_TO CCCCCCCCCCCCCCCC 1 0
DECRYPTION_KEY
NO_SECKEY CCCCCCCCCCCCCCCC
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
""",
            ),
        },
    ),
    "opened, hidden recipient": GpgSaid(
        MessagePackets(("0000000000000000",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                0,
                """\
ENC_TO 0000000000000000 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
""",
            ),
            "2.4.7": (
                0,
                """\
ENC_TO 0000000000000000 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
""",
            ),
        },
    ),
    "opened, or by a passphrase": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), passphrases=1, container=(18, 1), newest=4),
        {
            "2.2.40": (
                0,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
""",
            ),
            "2.4.7": (
                0,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
NEED_PASSPHRASE_SYM 9 3 2
ERROR symkey_decrypt.maybe_error 11_BAD_PASSPHRASE
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
""",
            ),
        },
    ),
    "wrong passphrase": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
ERROR pkdecrypt_failed 67108875
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
NO_SECKEY AAAAAAAAAAAAAAAA
ERROR pkdecrypt_failed 67108875
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "wrong passphrase, hidden recipient": GpgSaid(
        MessagePackets(("0000000000000000",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO 0000000000000000 1 0
NO_SECKEY 0000000000000000
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO 0000000000000000 1 0
NO_SECKEY 0000000000000000
ERROR pkdecrypt_failed 67108875
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "wrong passphrase, or by another": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), passphrases=1, container=(18, 1), newest=4),
        {
            "2.2.40": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
NEED_PASSPHRASE_SYM 9 3 2
ERROR pkdecrypt_failed 67108875
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
ERROR symkey_decrypt.maybe_error 11_BAD_PASSPHRASE
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
NEED_PASSPHRASE_SYM 9 3 2
ERROR symkey_decrypt.maybe_error 11_BAD_PASSPHRASE
NO_SECKEY AAAAAAAAAAAAAAAA
ERROR pkdecrypt_failed 67108875
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "another key": GpgSaid(
        MessagePackets(("CCCCCCCCCCCCCCCC",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO CCCCCCCCCCCCCCCC 1 0
NO_SECKEY CCCCCCCCCCCCCCCC
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO CCCCCCCCCCCCCCCC 1 0
NO_SECKEY CCCCCCCCCCCCCCCC
ERROR pkdecrypt_failed 33554449
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "another key, hidden recipient": GpgSaid(
        MessagePackets(("0000000000000000",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO 0000000000000000 18 0
NO_SECKEY 0000000000000000
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO 0000000000000000 18 0
NO_SECKEY 0000000000000000
ERROR pkdecrypt_failed 33554449
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "another key, or by a passphrase": GpgSaid(
        MessagePackets(("CCCCCCCCCCCCCCCC",), passphrases=1, container=(18, 1), newest=4),
        {
            "2.2.40": (
                2,
                """\
ENC_TO CCCCCCCCCCCCCCCC 1 0
NEED_PASSPHRASE_SYM 9 3 2
NO_SECKEY CCCCCCCCCCCCCCCC
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
ERROR symkey_decrypt.maybe_error 11_BAD_PASSPHRASE
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO CCCCCCCCCCCCCCCC 1 0
NEED_PASSPHRASE_SYM 9 3 2
ERROR symkey_decrypt.maybe_error 11_BAD_PASSPHRASE
NO_SECKEY CCCCCCCCCCCCCCCC
ERROR pkdecrypt_failed 33554449
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "a passphrase only": GpgSaid(
        MessagePackets((), passphrases=1, container=(18, 1), newest=4),
        {
            "2.2.40": (
                2,
                """\
NEED_PASSPHRASE_SYM 9 3 2
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
ERROR symkey_decrypt.maybe_error 11_BAD_PASSPHRASE
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
NEED_PASSPHRASE_SYM 9 3 2
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
ERROR symkey_decrypt.maybe_error 11_BAD_PASSPHRASE
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "signed only": GpgSaid(
        MessagePackets((), container=(8, 1)),
        {
            "2.2.40": (
                0,
                """\
PLAINTEXT
""",
            ),
            "2.4.7": (
                0,
                """\
PLAINTEXT
""",
            ),
        },
    ),
    "no MDC": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), container=(9, 114), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 0 2 0
PLAINTEXT
ERROR nomdc_with_legacy_cipher 152
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 0 2 0
PLAINTEXT
ERROR nomdc_with_legacy_cipher 152
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "flipped bit in the MDC": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
BADMDC
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
BADMDC
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "flipped bit in the content": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
BADMDC
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
BADMDC
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "flipped bit in the session key": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
ERROR pkdecrypt_failed 33554450
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
NO_SECKEY AAAAAAAAAAAAAAAA
ERROR pkdecrypt_failed 33554450
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "flipped bit in compressed content": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
ERROR zlib.inflate 33554521
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "truncated content": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "truncated head": GpgSaid(
        MessagePackets((), cut=True),
        {
            "2.2.40": (
                0,
                """\
NODATA 3
""",
            ),
            "2.4.7": (
                0,
                """\
NODATA 3
""",
            ),
        },
    ),
    "two messages": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
ERROR decryption.early_plaintext 89
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
ERROR proc_pkt.plaintext 89_BAD_DATA
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
ENC_TO AAAAAAAAAAAAAAAA 1 0
ERROR decryption.early_plaintext 89
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
ERROR proc_pkt.plaintext 89_BAD_DATA
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "something behind the end": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
NODATA 3
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
DECRYPTION_KEY
BEGIN_DECRYPTION
DECRYPTION_INFO 2 9 0
PLAINTEXT
DECRYPTION_OKAY
GOODMDC
END_DECRYPTION
NODATA 3
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "secret part left out": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
NO_SECKEY AAAAAAAAAAAAAAAA
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
NO_SECKEY AAAAAAAAAAAAAAAA
ERROR pkdecrypt_failed 67108983
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "secret part on a card": GpgSaid(
        MessagePackets(("AAAAAAAAAAAAAAAA",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
NO_SECKEY AAAAAAAAAAAAAAAA
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO AAAAAAAAAAAAAAAA 1 0
NO_SECKEY AAAAAAAAAAAAAAAA
ERROR pkdecrypt_failed 67108983
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "secret part left out, hidden recipient": GpgSaid(
        MessagePackets(("0000000000000000",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO 0000000000000000 1 0
NO_SECKEY 0000000000000000
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO 0000000000000000 1 0
NO_SECKEY 0000000000000000
ERROR pkdecrypt_failed 67108983
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "to X25519 of RFC 9580": GpgSaid(
        MessagePackets(("EEEEEEEEEEEEEEEE",), container=(18, 1), newest=3),
        {
            "2.2.40": (
                2,
                """\
ENC_TO EEEEEEEEEEEEEEEE 25 0
ERROR pkdecrypt_failed 4
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
""",
            ),
            "2.4.7": (
                2,
                """\
ENC_TO EEEEEEEEEEEEEEEE 25 0
NO_SECKEY EEEEEEEEEEEEEEEE
ERROR pkdecrypt_failed 33554449
BEGIN_DECRYPTION
DECRYPTION_FAILED
END_DECRYPTION
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "AEAD of RFC 9580": GpgSaid(
        MessagePackets(("DDDDDDDDDDDDDDDD",), container=(18, 2), newest=6),
        {
            "2.2.40": (
                2,
                """\
NODATA 3
""",
            ),
            "2.4.7": (
                2,
                """\
NODATA 3
FAILURE gpg-exit 33554433
""",
            ),
        },
    ),
    "noise": GpgSaid(
        MessagePackets(()),
        {
            "2.2.40": (
                2,
                """\
NODATA 1
NODATA 2
FAILURE decrypt 4294967295
""",
            ),
            "2.4.7": (
                2,
                """\
NODATA 1
NODATA 2
FAILURE decrypt 4294967295
""",
            ),
        },
    ),
}
