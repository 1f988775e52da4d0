"""Signed backups in the real program: what a restore says of their origin, and what REQUIRE_SIGNATURE refuses."""

import os
import re
import subprocess
from pathlib import Path

from backuplib.backup_file import BackupInfo, checksum_path, recorded_signature, text_beside
from backuplib.remote import record_text
from backuplib.signing import SigningFolder
from tests.conftest import ONE_MODE, MakeShop, StartTerminal
from tests.support.keys import Keys, gpg_home
from tests.support.shop import ROOT, Completed, Shop, everything

pytestmark = ONE_MODE


def refused(done: Completed, kind: str) -> None:
    """Exit 4, as this kind of error."""
    assert done.ended == (4, kind), done.text


def by_hand(shop: Shop, backup: Path, signing: SigningFolder) -> int:
    """The exit code of RUNBOOK.md's command, in a gpg home that has the public half."""
    (command,) = re.findall(r"^gpg --verify .*$", (ROOT / "RUNBOOK.md").read_text(), re.MULTILINE)
    with gpg_home() as home:
        home.run("--import", str(signing.path / "public.asc"))
        env = {**os.environ, "GNUPGHOME": str(home.path), "F": backup.name}
        return subprocess.run(["bash", "-c", command], cwd=shop.backups, env=env, check=False, timeout=30).returncode


def as_at_a_remote(backup: Path) -> None:
    """Replace its checksum file by the one that it has at a remote, as somebody who fetches both from there does."""
    info, beside = BackupInfo.of(backup), text_beside(backup) or ""
    assert info
    text = record_text(info, str(info.recorded_checksum()), recorded_signature(beside))
    assert len(text.splitlines()) > len(beside.splitlines())
    checksum_path(backup).write_text(text)


def test_backup_is_signed_here_and_refused_under_another_name_where_that_is_required(
    make_shop: MakeShop, mode: str, keys: Keys, signing: SigningFolder
) -> None:
    shop = make_shop(mode, REQUIRE_SIGNATURE="yes")
    before = shop.rows()
    backup = shop.create_backup()
    assert shop.sha256sum_accepts(backup)
    assert by_hand(shop, backup, signing) == 0
    as_at_a_remote(backup)
    assert by_hand(shop, backup, signing) == 0
    shop.change_data()
    done = shop.restore(backup, "--force", key=keys.rsa)
    assert done.code == 0, done.text
    report = done.report
    assert report["signature"] == {"state": "this host", "fingerprint": signing.fingerprint()}
    assert re.search(r"^ +signed +by this host$", done.err, re.MULTILINE)
    assert shop.rows() == before

    # Its safety backup, too; and an older backup cannot pass for a newer one.
    safety = Path(report["safety_backup"])
    newer = shop.backups / "db_backup_20991231_235959.db.gz.gpg"
    newer.write_bytes(safety.read_bytes())
    Path(f"{newer}.sha256").write_text(Path(f"{safety}.sha256").read_text().replace(safety.name, newer.name))
    assert shop.sha256sum_accepts(newer)
    assert by_hand(shop, newer, signing) == 1
    state = everything(shop)
    refused(shop.restore(newer, "--force", key=keys.rsa), "signature-invalid")
    assert everything(shop) == state
    undone = shop.restore(safety, "--verify-only", key=keys.rsa).report
    assert (undone["outcome"], undone["signature"]["state"]) == ("verified", "this host")


def test_unsigned_backup_restores_unless_a_signature_is_required(shop: Shop, keys: Keys) -> None:
    made = shop.run("database_backup.py", "create", "--no-sign")
    assert made.code == 0, made.text
    backup = shop.path / made.out.strip()
    assert "signature" not in Path(f"{backup}.sha256").read_text()
    assert "REQUIRE_SIGNATURE" not in made.err
    shop.change_data()
    state = everything(shop)
    required = {"REQUIRE_SIGNATURE": "yes"}
    for order in ([], ["--stop-first"]):
        done = shop.restore(backup, "--force", *order, key=keys.rsa, env=required)
        refused(done, "signature-missing")
    check = shop.restore("--check", env=required).report["checks"]
    assert {item["name"]: item["status"] for item in check}["signed-by"] == "problem"
    assert everything(shop) == state
    done = shop.restore(backup, "--force", key=keys.rsa)
    assert (done.code, done.report["signature"]) == (0, {"state": "none", "fingerprint": None}), done.text


def test_backup_of_another_machine_takes_its_public_half(
    shop: Shop, keys: Keys, tmp_path: Path, signing: SigningFolder
) -> None:
    backup = shop.create_backup()
    shop.change_data()
    new = SigningFolder(tmp_path / "new/signing")
    machine = {"SIGNING_DIR": str(new.path), "REQUIRE_SIGNATURE": "yes"}
    refused(shop.restore(backup, "--verify-only", key=keys.rsa, env=machine), "signature-of-another")
    allowed = shop.restore(backup, "--verify-only", key=keys.rsa, env=machine | {"REQUIRE_SIGNATURE": "no"})
    assert (allowed.code, f"by somebody else (key ID {str(signing.fingerprint())[-16:]})" in allowed.text) == (0, True)
    assert not new.path.exists()
    new.path.mkdir(mode=0o700, parents=True)
    (new.path / "trusted.asc").write_bytes((signing.path / "public.asc").read_bytes())
    done = shop.restore(backup, "--force", key=keys.rsa, env=machine)
    assert (done.code, done.report["signature"]["state"]) == (0, "trusted host"), done.text
    assert (new.path / "public.asc").read_text().strip() in done.err  # its own, made for the safety backup


def test_backup_that_is_taken_in_place_of_a_damaged_one_has_to_be_signed_too(
    make_shop: MakeShop, mode: str, terminal: StartTerminal
) -> None:
    """The damage is found after the signature was: it covers the checksum, not the file."""
    shop = make_shop(mode, PGP_PUBLIC_KEY_BASE64=None, REQUIRE_SIGNATURE="yes")
    backup = shop.create_backup()
    content = bytearray(backup.read_bytes())
    (shop.backups / "db_backup_20250130_120000.db.gz").write_bytes(content)  # planted, and older
    content[100] ^= 1
    backup.write_bytes(content)
    before = everything(shop)
    at = terminal(shop, "--json", "--force", "latest")
    at.expect(r"Take the next older one[^?]*\? \[y/N\] ")
    at.send("y\n")
    assert at.ended == (4, "signature-missing"), at.output
    assert everything(shop) == before


def test_without_a_key_a_backup_is_made_unsigned_unless_that_is_required(shop: Shop) -> None:
    place = {"SIGNING_DIR": str(shop.path / "data/signing")}
    made = shop.run("database_backup.py", "create", env=place)
    assert made.code == 0, made.text
    assert "not signed" in made.err
    assert (shop.path / made.out.strip()).exists()
    files = {*shop.backups.iterdir()}
    done = shop.run("database_backup.py", "create", env=place | {"REQUIRE_SIGNATURE": "yes"})
    assert (done.code, done.out) == (6, "")
    assert {*shop.backups.iterdir()} == files
    assert not (shop.path / "data/signing").exists()


def test_first_backup_prints_the_public_half_and_the_shop_gets_nothing_of_the_other(
    shop: Shop, tmp_path: Path, keys: Keys
) -> None:
    folder = SigningFolder(tmp_path / "first/signing")
    made = [shop.run("database_backup.py", "create", "--quiet", env={"SIGNING_DIR": str(folder.path)}) for _ in "12"]
    assert [done.code for done in made] == [0, 0]
    public = (folder.path / "public.asc").read_text().strip()
    assert public in made[0].err
    assert "PRIVATE" not in made[0].text
    assert made[1].err == ""
    body = re.findall(r"^[A-Za-z0-9+/]{40,}$", (folder.path / "key.asc").read_text(), re.MULTILINE)
    secret = [line for line in body if line not in public]
    assert secret
    for path in filter(Path.is_file, shop.path.rglob("*")):
        content = path.read_bytes()
        assert not [line for line in secret if line.encode() in content], path
        assert b"PGP PRIVATE KEY" not in content or "backuplib" in path.parts, path
    verified = shop.run(
        "database_backup.py", "verify", shop.path / made[1].out.strip(), env={"SIGNING_DIR": str(folder.path)}
    )
    assert "it is signed by this host" in verified.out
