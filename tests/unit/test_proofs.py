"""Proofs that a backup restores: facts that last, and nothing that others could invent."""

import errno
import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backuplib import proofs
from backuplib.proofs import MOST_BYTES, NAME, RESTORED, VERIFIED, Proof, UnknownProofsError, by_checksum, read, record

NOW = datetime(2025, 1, 30, 12, 0, tzinfo=UTC)
PROOF = Proof("a" * 64, "db_backup_20250130_110000.db.gz.gpg", NOW, VERIFIED)


def test_what_was_written_is_read_in_its_order(tmp_path: Path) -> None:
    assert read(tmp_path) == []
    later = Proof("b" * 64, "latin-1 \udce4 and \n", NOW + timedelta(hours=1), RESTORED, "1.0.0+dev")
    record(tmp_path, PROOF)
    record(tmp_path, later)
    assert read(tmp_path) == [PROOF, later]
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert json.loads((tmp_path / NAME).read_text().splitlines()[0]) == {
        "sha256": PROOF.sha256,
        "name": PROOF.name,
        "when": "2025-01-30T12:00:00+00:00",
        "how": "verified",
        "version": PROOF.version,
    }


def test_latest_proof_of_a_content_counts_whatever_the_order_and_the_zone() -> None:
    zoned = Proof(PROOF.sha256, "copy.gpg", datetime.fromisoformat("2025-01-30T12:30:00+05:45"), RESTORED)  # 06:45 UTC
    other = Proof("b" * 64, "other.gpg", NOW - timedelta(days=9), RESTORED)
    assert by_checksum([PROOF, zoned, other]) == {PROOF.sha256: PROOF, other.sha256: other}


GOOD = json.loads(PROOF.line())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"null",
        b'"' + b"a" * 70 + b'"',
        b"[" * 3000,
        b'{"when": ' + b"9" * 3000 + b"}",
        b"\xff\xfe",
        PROOF.line()[:-10],
        json.dumps(GOOD | {"more": 1}).encode(),
        json.dumps({name: value for name, value in GOOD.items() if name != "version"}).encode(),
        json.dumps(GOOD | {"sha256": "A" * 64}).encode(),
        json.dumps(GOOD | {"sha256": "a" * 64 + "\n"}).encode(),
        json.dumps(GOOD | {"sha256": None}).encode(),
        json.dumps(GOOD | {"name": "../etc/passwd"}).encode(),
        json.dumps(GOOD | {"name": ""}).encode(),
        json.dumps(GOOD | {"name": "x" * 256}).encode(),
        json.dumps(GOOD | {"when": "2025-01-30T12:00:00"}).encode(),
        json.dumps(GOOD | {"when": "9999-12-31T23:59:59-23:59"}).encode(),
        json.dumps(GOOD | {"when": 5}).encode(),
        json.dumps(GOOD | {"how": "believed"}).encode(),
        json.dumps(GOOD | {"how": ["verified"]}).encode(),
        json.dumps(GOOD | {"version": "1.0\u202e"}).encode(),
        json.dumps(GOOD | {"name": "x"}).encode() + b" " * 5000,
    ],
)
def test_lines_that_were_not_written_here_are_passed_over(tmp_path: Path, line: bytes) -> None:
    (tmp_path / NAME).write_bytes(PROOF.line() + line + b"\n" + PROOF.line())
    (tmp_path / NAME).chmod(0o600)
    assert read(tmp_path) == [PROOF, PROOF]


def test_line_that_a_power_cut_tore_does_not_spoil_the_next(tmp_path: Path) -> None:
    record(tmp_path, PROOF)
    with (tmp_path / NAME).open("ab") as file:
        file.write(PROOF.line()[:40])
    record(tmp_path, PROOF)
    assert read(tmp_path) == [PROOF, PROOF]


def test_file_stays_small_and_the_latest_proofs_are_kept(tmp_path: Path) -> None:
    first = Proof("f" * 64, "first", NOW, RESTORED)
    record(tmp_path, first)
    (tmp_path / NAME).write_bytes(first.line() + PROOF.line() * (MOST_BYTES // len(PROOF.line())))
    record(tmp_path, PROOF)
    assert (tmp_path / f"{NAME}.1").stat().st_size > MOST_BYTES - 1000
    assert (tmp_path / NAME).read_bytes() == PROOF.line()
    assert read(tmp_path)[0] == first
    (tmp_path / NAME).write_bytes(PROOF.line() * (MOST_BYTES // len(PROOF.line()) + 1))
    record(tmp_path, PROOF)
    assert first not in read(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * MOST_BYTES


def test_proofs_that_are_written_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    def many(digit: str) -> None:
        for _ in range(25):
            record(tmp_path, Proof(digit * 64, "x", NOW, RESTORED))

    threads = [threading.Thread(target=many, args=(digit,)) for digit in "0123"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(proof.sha256[0] for proof in read(tmp_path)) == sorted("0123" * 25)


@pytest.mark.parametrize("change", ["mode", "second name", pytest.param("owner", marks=pytest.mark.needs("root"))])
def test_what_others_may_have_written_is_not_believed_nor_written_on(tmp_path: Path, change: str) -> None:
    record(tmp_path, PROOF)
    planted = tmp_path / NAME
    if change == "owner":
        os.chown(planted, 65534, 65534)
    elif change == "mode":
        planted.chmod(0o666)
    else:
        os.link(planted, tmp_path / "second")
    with pytest.raises(UnknownProofsError):
        read(tmp_path)
    new = Proof("b" * 64, "new", NOW, RESTORED)
    record(tmp_path, new)
    assert read(tmp_path) == [new]
    assert (tmp_path / f"{NAME}.not-ours").read_bytes() == PROOF.line()


def test_file_that_fails_is_told_and_not_taken_for_a_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A regular file of this user's that has no end to append to; nor can the kernel's be given another name."""
    monkeypatch.setattr(proofs, "NAME", "mem")
    with pytest.raises(OSError, match="Invalid argument") as caught:
        record(Path(f"/proc/{os.getpid()}"), PROOF)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("what", ["link", "pipe", "folder"])
def test_what_was_planted_under_its_name_is_neither_followed_nor_waited_for(tmp_path: Path, what: str) -> None:
    elsewhere, planted = tmp_path / "elsewhere", tmp_path / NAME
    elsewhere.write_bytes(PROOF.line())
    if what == "link":
        planted.symlink_to(elsewhere)
    elif what == "pipe":
        os.mkfifo(planted)
    else:
        planted.mkdir()
    with pytest.raises(UnknownProofsError):
        read(tmp_path)
    new = Proof("b" * 64, "new", NOW, RESTORED)
    record(tmp_path, new)
    assert read(tmp_path) == [new]
    assert elsewhere.read_bytes() == PROOF.line()


def test_a_folder_that_is_not_there_is_an_error_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        record(tmp_path / "none", PROOF)
    assert read(tmp_path / "none") == []


def test_others_that_keep_planting_do_not_keep_us_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def always_planted(*_: object) -> object:
        raise FileExistsError

    monkeypatch.setattr(proofs, "create_file", always_planted)
    with pytest.raises(FileExistsError, match="others keep"):
        record(tmp_path, PROOF)
