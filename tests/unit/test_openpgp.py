"""Forms of passphrases, and what is told of unusual keys; no gpg is run here."""

import pytest

from backuplib.errors import WrongPassphraseError
from backuplib.openpgp import _expiry, _key_warnings, passphrase_text
from backuplib.secret import Secret

# --- passphrases -----------------------------------------------------------------------------------------------------


def test_passphrase_is_given_as_it_is() -> None:
    assert passphrase_text(None) is None
    for given in (' pässwörd "x"\t'.encode(), b"s\xe9cret"):
        text = passphrase_text(Secret(given))
        assert text
        assert text.encode("latin-1") == given


@pytest.mark.parametrize("passphrase", [b"", b"hunter2\0", b"hunter2\nx", b"hunter2\rx"])
def test_what_gpg_does_not_take_is_refused_and_not_repeated(passphrase: bytes) -> None:
    with pytest.raises(WrongPassphraseError) as raised:
        passphrase_text(Secret(passphrase))
    assert "hunter2" not in repr(raised.value)
    assert raised.value.__cause__ is None


def test_unusual_keys_are_told_of() -> None:
    def key(key_id: str, trust: str = "u", expires: str = "") -> dict[str, str]:
        return {"keyid": key_id, "trust": trust, "expires": expires}

    assert _key_warnings([key("A")]) == ()
    assert _key_warnings([key("A", expires="4102444800")]) == ()
    for odd in (key("A", "r"), key("A", "e"), key("A", expires="1000000000")):
        (warning,) = _key_warnings([odd])
        assert "A" in warning
    assert len(_key_warnings([key("A"), key("B")])) == 1


@pytest.mark.parametrize(
    ("primary", "parts", "end"),
    [
        ("", [""], None),
        ("2000", [""], 2000),
        ("", ["1000", "3000"], 3000),  # as long as one part encrypts
        ("2000", ["1000", "3000"], 2000),
        ("", ["1000", ""], None),
    ],
)
def test_key_encrypts_until_its_own_end_or_that_of_its_last_encrypting_part(
    primary: str, parts: list[str], end: int | None
) -> None:
    signing = {"sign": {"cap": "s", "expires": "1", "trust": "u"}, "gone": {"cap": "e", "expires": "", "trust": "r"}}
    encrypting = {str(number): {"cap": "e", "expires": at, "trust": "u"} for number, at in enumerate(parts)}
    key = {"cap": "scESC", "expires": primary, "trust": "u", "subkey_info": signing | encrypting}
    assert _expiry(key) == end
