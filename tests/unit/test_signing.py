"""Who signed a backup: real keys and signatures, in folders of every kind of right and wrong."""

import base64
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from backuplib.backup_file import BEFORE_A_RESTORE, BackupFile, checksum_path, checksum_text
from backuplib.errors import (
    CannotSignError,
    OperatorError,
    SignatureInvalidError,
    SignatureMissingError,
    SignatureOfAnotherError,
    SignatureUncheckedError,
)
from backuplib.ram_folder import RamFolder
from backuplib.signing import INVALID, NONE, OTHER, THIS_HOST, TRUSTED_HOST, UNKNOWN, Origin, SigningFolder, judged
from tests.support.keys import ECC, GpgHome, gpg_home
from tests.support.shop import ROOT

NAME, DIGEST = "db_backup_20250130_120000.db.gz", "ab" * 32
OURS, THEIRS = "A" * 40, "B" * 40


@pytest.fixture
def ram() -> Iterator[RamFolder]:
    with RamFolder() as folder:
        yield folder


@pytest.fixture
def other(tmp_path: Path) -> SigningFolder:
    """Another host's."""
    return SigningFolder(tmp_path / "other/signing")


@pytest.fixture(scope="module")
def home() -> Iterator[GpgHome]:
    with gpg_home() as made:
        yield made


def signed(folder: SigningFolder, text: str) -> str:
    """The signature's line, made in a keyring of its own, as by another run."""
    with RamFolder() as ram:
        return folder.sign(text, ram)


def backup(tmp_path: Path, beside: str, name: str = NAME) -> BackupFile:
    """A backup with this beside it."""
    path = tmp_path / name
    path.touch()
    checksum_path(path).write_text(beside)
    with closing(BackupFile(path)) as file:
        return file


# --- whose it is ------------------------------------------------------------------------------------------------------


def test_signature_is_this_hosts_or_a_trusted_ones_or_somebody_elses(
    signing: SigningFolder, other: SigningFolder, tmp_path: Path, ram: RamFolder
) -> None:
    text = checksum_text(NAME, DIGEST, BEFORE_A_RESTORE)
    file = backup(tmp_path, text + signed(signing, text))
    assert signing.origin(file, ram).as_dict() == {"state": THIS_HOST, "fingerprint": signing.fingerprint()}

    foreign = other.origin(file, ram)  # which has no key yet
    assert foreign.as_dict() == {"state": OTHER, "fingerprint": signing.fingerprint()}
    signed(other, "")
    assert other.fingerprint() != signing.fingerprint()
    assert other.origin(file, ram).state == OTHER
    assert str(signing.fingerprint())[-16:] in foreign.told

    # two halves typed one below the other, and what was printed around them
    halves = (
        (other.path / "public.asc").read_text() + "\nthe old machine:\n" + (signing.path / "public.asc").read_text()
    )
    (other.path / "trusted.asc").write_text(halves)
    assert other.origin(file, ram).as_dict() == {"state": TRUSTED_HOST, "fingerprint": signing.fingerprint()}
    assert signing.origin(backup(tmp_path, checksum_text(NAME, DIGEST, BEFORE_A_RESTORE)), ram).state == NONE


def test_signature_counts_for_its_name_checksum_and_kind_alone(
    signing: SigningFolder, tmp_path: Path, ram: RamFolder
) -> None:
    text = checksum_text(NAME, DIGEST, BEFORE_A_RESTORE)
    line = signed(signing, text)
    newer = "db_backup_20260130_120000.db.gz"
    for name, beside in {
        NAME: text.replace("ab", "cd") + line,
        f"x{NAME}": text.replace(DIGEST, DIGEST) + line,
        newer: text.replace(NAME, newer) + line,
        f"y{NAME}": text.partition("#")[0].replace(NAME, f"y{NAME}") + line,
    }.items():
        assert signing.origin(backup(tmp_path, beside, name), ram).state == INVALID, name
    # A checksum that somebody put behind the signed ones is the one that counts, and nobody signed that.
    later = text + line + checksum_text(NAME, "cd" * 32, BEFORE_A_RESTORE)
    assert signing.origin(backup(tmp_path, later), ram).state == INVALID
    assert signing.origin(backup(tmp_path, (text + line).replace("\n", "\r\n")), ram).state == THIS_HOST


def test_what_is_no_signature_is_told(signing: SigningFolder, tmp_path: Path, ram: RamFolder) -> None:
    text = checksum_text(NAME, DIGEST, BEFORE_A_RESTORE)
    one = signed(signing, text)
    two = base64.b64encode(base64.b64decode(one.split()[2]) * 2).decode()
    junk = base64.b64encode(os.urandom(90)).decode()
    for line in ("# signature: A\n", f"# signature: {junk}\n", f"# signature: {two}\n"):
        assert signing.origin(backup(tmp_path, text + line), ram).state == INVALID, line
    for line in ("# signature: ü\n", f"# signature: {'A' * 5000}\n"):
        assert signing.origin(backup(tmp_path, text + line), ram).state == NONE, line


def test_key_that_has_ended_does_not_count(home: GpgHome, tmp_path: Path, ram: RamFolder) -> None:
    """Only an operator's own, put there by hand, can: ours do not expire."""
    key = home.generate(ECC, "brief", None, "Expire-Date: seconds=100\n", "--faked-system-time=20200101T000000!")
    text = checksum_text(NAME, DIGEST, BEFORE_A_RESTORE)
    early = "--faked-system-time=20200101T000010!"
    signature = home.run(early, "-u", key.fingerprint, "--detach-sign", stdin=text.encode())
    folder = SigningFolder(tmp_path / "signing")
    folder.path.mkdir(mode=0o700)
    (folder.path / "trusted.asc").write_bytes(key.public_binary)
    file = backup(tmp_path, f"{text}# signature: {base64.b64encode(signature).decode()}\n")
    assert folder.origin(file, ram).as_dict() == {"state": INVALID, "fingerprint": key.fingerprint}
    assert "expired" in folder.origin(file, ram).told


GOOD = [
    ("NEWSIG", ""),
    ("GOODSIG", f"{OURS[-16:]} backups of x"),
    ("VALIDSIG", f"{OURS} 2025-01-30 1 0 4 0 22 8 00 {OURS}"),
]


@pytest.mark.parametrize(
    ("events", "state"),
    [
        (GOOD, THIS_HOST),
        ([*GOOD[:2], ("VALIDSIG", f"{OURS} 2025-01-30 1 0 4 0 22 8 00 {THEIRS}")], OTHER),  # ours is only its subkey
        (GOOD[:2], OTHER),  # a good one whose key is not told in full
        ([*GOOD, *GOOD], INVALID),
        ([GOOD[0], ("REVKEYSIG", GOOD[1][1]), GOOD[2]], INVALID),
        ([GOOD[0], ("EXPSIG", GOOD[1][1]), GOOD[2]], INVALID),
        ([GOOD[0], ("BADSIG", GOOD[1][1])], INVALID),
        ([GOOD[0], ("ERRSIG", f"{OURS[-16:]} 22 8 00 1 4 -")], UNKNOWN),
        ([GOOD[0], ("ERRSIG", f"{THEIRS[-16:]} 22 8 00 1 9 {THEIRS}")], OTHER),
        ([], INVALID),
    ],
)
def test_only_a_good_signature_of_the_primary_key_in_full_counts(events: list[tuple[str, str]], state: str) -> None:
    assert judged(events, {OURS: THIS_HOST}).state == state


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (THIS_HOST, None),
        (TRUSTED_HOST, None),
        (NONE, SignatureMissingError),
        (OTHER, SignatureOfAnotherError),
        (INVALID, SignatureInvalidError),
        (UNKNOWN, SignatureUncheckedError),
    ],
)
def test_what_is_not_signed_by_a_host_that_counts_is_refused(state: str, error: type[OperatorError] | None) -> None:
    def judge() -> None:
        Origin(state, "by X").refuse_unless_trusted(Path("/signing"), Path(NAME))

    if error is None:
        judge()
        return
    with pytest.raises(error) as raised:
        judge()
    assert int(raised.value.exit_code) == 4
    assert NAME in str(raised.value)
    assert raised.value.hint


# --- the key and its folder ------------------------------------------------------------------------------------------


def test_key_is_for_this_user_alone_and_is_announced_once(other: SigningFolder) -> None:
    signed(other, "")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (other.path, *other.path.iterdir())}
    assert modes == {"signing": 0o700, "key.asc": 0o600, "public.asc": 0o600}
    assert b"PRIVATE" not in (other.path / "public.asc").read_bytes()
    lines = "\n".join(other.announced())
    assert (other.path / "public.asc").read_text().strip() in lines
    assert str(other.fingerprint()) in lines.replace(" ", "")
    again = SigningFolder(other.path)
    signed(again, "")
    assert again.announced() == []
    assert again.fingerprint() == other.fingerprint()


def test_several_that_make_the_folder_at_once_all_have_it(tmp_path: Path) -> None:
    def make(folder: SigningFolder, start: threading.Barrier) -> None:
        start.wait()
        folder._refuse_unsafe(make=True)

    with ThreadPoolExecutor(6) as pool:
        for number in range(60):
            start = threading.Barrier(6)
            folder = SigningFolder(tmp_path / f"{number}/signing")
            for made in [pool.submit(make, folder, start) for _ in range(6)]:
                made.result()


def test_two_that_make_the_key_at_once_have_the_same(other: SigningFolder) -> None:
    script = (
        "import sys; from pathlib import Path; from backuplib.signing import SigningFolder; "
        "from backuplib.ram_folder import RamFolder\n"
        "folder = SigningFolder(Path(sys.argv[1]))\n"
        "with RamFolder() as ram: folder.sign('', ram)\n"
        "print(folder.fingerprint(), len(folder.announced()) > 0)"
    )
    argv = [sys.executable, "-c", script, str(other.path)]
    running = [subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert {fingerprint for fingerprint, _ in said} == {other.fingerprint()}
    assert sorted(announced for _, announced in said) == ["False", "False", "True"]


def test_folder_that_others_can_reach_is_neither_signed_nor_believed_from(
    other: SigningFolder, tmp_path: Path, ram: RamFolder
) -> None:
    text = checksum_text(NAME, DIGEST, BEFORE_A_RESTORE)
    file = backup(tmp_path, text + signed(other, text))
    for place, mode in ((other.path, 0o750), (other.path, 0o702), (other.path.parent, 0o777)):
        before = place.stat().st_mode
        place.chmod(mode)
        with pytest.raises(CannotSignError) as raised:
            signed(other, "")
        assert str(place) in str(raised.value)
        assert other.origin(file, ram).state == UNKNOWN
        place.chmod(before)
    other.path.parent.chmod(0o1777)  # as /tmp
    assert other.origin(file, ram).state == THIS_HOST
    (other.path / "key.asc").chmod(0o640)
    with pytest.raises(CannotSignError, match="alone"):
        signed(other, "")


@pytest.mark.needs("root")
def test_folder_of_another_user_is_not_believed(other: SigningFolder, tmp_path: Path) -> None:
    signed(other, "")
    os.chown(other.path, 65534, -1)
    with pytest.raises(CannotSignError):
        other.fingerprint()


def test_shop_does_not_hold_the_key(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    (shop / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(shop)
    for folder in (shop / "data/signing", tmp_path / "link/signing"):
        with pytest.raises(CannotSignError, match="inside"):
            signed(SigningFolder(folder, [shop]), "")
        assert not folder.exists()


def test_damaged_key_signs_nothing(other: SigningFolder) -> None:
    signed(other, "")
    for content in (b"", b"no key", (other.path / "public.asc").read_bytes()):
        (other.path / "key.asc").write_bytes(content)
        with pytest.raises(CannotSignError):
            signed(other, "")
