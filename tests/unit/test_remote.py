"""Backups at a remote: a real rclone and a real WebDAV server, and a network that fails."""

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backuplib import errors, rclone
from backuplib.backup_file import BEFORE_A_RESTORE, LOCAL, ORDINARY, BackupInfo, checksum_text
from backuplib.processes import child_environment
from backuplib.pushing import push_missing, push_new
from backuplib.rclone import PLACE, Rclone
from backuplib.remote import NO_RECORD, Record, Remote, is_elsewhere, named, read_record, record_text, remotes, split
from tests.support.needs import find
from tests.support.remotes import Proxy, Server, free_port, serving

NAME = "db_backup_20250130_120000.db.gz"
CONTENT = b"\x1f\x8b\x08" + random.Random(20).randbytes(2_500_000)

pytestmark = pytest.mark.needs("rclone")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A WebDAV server."""
    with serving("webdav", tmp_path_factory.mktemp("remote")) as server:
        (server.folder / "files/x").mkdir()
        yield server


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """rclone is found; what this machine has configured for it is not."""
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{os.path.dirname(str(find('rclone')))}")
    monkeypatch.setenv("RCLONE_CONFIG", os.devnull)


@pytest.fixture
def there(server: Server, tmp_path: Path) -> Server:
    """The server, with a folder of the test's own as the place."""
    return replace(server, place=f"offsite:x/{tmp_path.name}")


def remote_of(server: Server, port: int | None = None) -> Remote:
    return Remote(server.place, {**server.variables(port), "RCLONE_CONFIG": os.devnull})


def make_backup(folder: Path, name: str = NAME, content: bytes = CONTENT, kind: str = ORDINARY) -> Path:
    """A backup with its checksum."""
    (folder / name).write_bytes(content)
    (folder / f"{name}.sha256").write_text(checksum_text(name, hashlib.sha256(content).hexdigest(), kind))
    return folder / name


def put(server: Server, content: bytes = CONTENT, checksum_of: bytes | None = CONTENT) -> None:
    """A backup at the server, and a checksum, perhaps that of another file."""
    folder = server.folder / "files" / server.place.partition(":")[2]
    folder.mkdir()
    (folder / NAME).write_bytes(content)
    if checksum_of is not None:
        (folder / f"{NAME}.sha256").write_text(f"{hashlib.sha256(checksum_of).hexdigest()}  {NAME}\n")


def read_all(remote: Remote) -> bytes:
    """What a backup there holds, read as a restore does it, checksum compared."""
    with closing(remote.open(NAME)) as backup:
        assert backup.layer == "gzip"
        assert backup.beginning() == CONTENT[: 1 << 20]
        backup.rewind()
        data = b"".join(iter(lambda: backup.read(70_000), b""))
        backup.verify()
        return data


# --- there and back --------------------------------------------------------------------------------------------------


def test_what_is_pushed_is_listed_and_comes_back(there: Server, tmp_path: Path) -> None:
    remote, backup = remote_of(there), make_backup(tmp_path, kind=BEFORE_A_RESTORE)
    info = BackupInfo.of(backup)
    assert info
    assert remote.backups() == []
    assert remote.lacking([info]) == [info]
    remote.push(backup)
    assert there.names() == {NAME, f"{NAME}.sha256"}
    beside = info.recorded_checksum()
    assert remote.backups() == [replace(info, path=Path(NAME), place=there.place, sha256=beside)]
    assert remote.lacking([info]) == []
    assert remote.size(NAME) == len(CONTENT)
    assert remote.checksum(NAME) == hashlib.sha256(CONTENT).hexdigest()
    assert read_all(remote) == CONTENT
    remote.remove(NAME)
    remote.remove(NAME)  # what is not there
    assert there.names() == set()
    assert remote.may_remove() is True


def test_nothing_complete_is_overwritten_and_the_rest_of_an_interrupted_copy_is(there: Server, tmp_path: Path) -> None:
    remote, backup = remote_of(there), make_backup(tmp_path)
    put(there, CONTENT[:1000], checksum_of=None)
    remote.push(backup)
    assert there.get(NAME) == CONTENT
    before = {name: there.get(name) for name in there.names()}
    other = make_backup(tmp_path, content=CONTENT[::-1])
    with pytest.raises(errors.RemoteConflictError, match="another backup"):
        remote.push(other)
    assert {name: there.get(name) for name in there.names()} == before


def test_damaged_backup_is_not_pushed(there: Server, tmp_path: Path) -> None:
    backup = make_backup(tmp_path)
    backup.write_bytes(CONTENT[:-1])
    with pytest.raises(errors.ChecksumMismatchError):
        remote_of(there).push(backup)
    assert there.names() == set()


def test_push_tells_each_remote_and_ends_with_what_failed(there: Server, tmp_path: Path) -> None:
    """The one that works has all, whatever the other one does."""
    new, old = make_backup(tmp_path), make_backup(tmp_path, "db_backup_20250129_120000.db.gz", b"\x1f\x8b\x08old")
    dead = Remote(
        "dead:x", {"RCLONE_CONFIG_DEAD_TYPE": "webdav", "RCLONE_CONFIG_DEAD_URL": f"http://127.0.0.1:{free_port()}"}
    )
    said: list[str] = []
    with pytest.raises(errors.NotEverywhereError) as caught:
        push_new([dead, remote_of(there)], new, said.append)
    assert caught.value.exit_code == 11
    assert str(new) in caught.value.state
    assert "does not answer" in str(caught.value)
    told = [line.split(":")[0] for line in said if line[0] != " "]
    assert told == ["⚠️  Not copied to dead", "✅ Copied to offsite"]
    said.clear()
    backups = [info for info in map(BackupInfo.of, (new, old)) if info]
    push_missing([remote_of(there)], backups, said.append)
    assert [old.name in said[0], "has all 2 backups" in said[-1], len(said)] == [True, True, 2]
    assert there.names() == {f"{path.name}{end}" for path in (new, old) for end in ("", ".sha256")}


def test_push_without_remotes_says_what_to_set() -> None:
    with pytest.raises(errors.WrongSettingError, match="BACKUP_REMOTES is not set"):
        push_missing([], [], print)


# --- what is wrong there ---------------------------------------------------------------------------------------------


def test_backup_that_is_not_there(there: Server) -> None:
    put(there)
    with pytest.raises(errors.BackupNotFoundError, match=f"there is no db_backup_x at {there.place}"):
        remote_of(there).open("db_backup_x")


@pytest.mark.parametrize("content", [CONTENT[:5000], CONTENT[:-1] + b"!"], ids=["cut", "other"])
def test_backup_that_is_not_the_one_of_its_checksum(there: Server, content: bytes) -> None:
    put(there, content)
    with closing(remote_of(there).open(NAME)) as backup, pytest.raises(errors.ChecksumMismatchError):
        backup.verify()


def test_backup_without_a_checksum_is_read_all_the_same(there: Server) -> None:
    put(there, checksum_of=None)
    with closing(remote_of(there).open(NAME)) as backup:
        assert backup.expected is None
        assert not backup.verify()
        assert backup.expected == hashlib.sha256(CONTENT).hexdigest()


# --- the network -----------------------------------------------------------------------------------------------------


def test_server_that_goes_away_in_the_stream_breaks_it(there: Server) -> None:
    """gpg sees only that the message ends: whoever reads on is told the same once more, until it is read anew."""
    put(there)
    with Proxy(there.port, "gone", after=1_200_000) as proxy:
        with closing(remote_of(there, proxy.port).open(NAME)) as backup:
            for _ in range(2):
                with pytest.raises(errors.RemoteError, match=r"broke off after [12]\.\d MB of 2\.5 MB") as caught:
                    backup.verify()
                assert caught.value.exit_code == 3
        assert proxy.hit.is_set()


def test_server_that_answers_no_more_is_given_up(there: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    put(there)
    with (
        Proxy(there.port, "stalls", after=1_200_000) as proxy,
        closing(remote_of(there, proxy.port).open(NAME)) as backup,
    ):
        monkeypatch.setattr(rclone, "STALL_SECONDS", 0.5)
        with pytest.raises(errors.RemoteStalledError, match=r"broke off after .* nothing came for"):
            backup.verify()


def test_bit_that_changes_on_the_way_is_seen(there: Server) -> None:
    put(there)
    with (
        Proxy(there.port, "corrupts", after=1_200_000) as proxy,
        closing(remote_of(there, proxy.port).open(NAME)) as backup,
        pytest.raises(errors.ChecksumMismatchError),
    ):
        backup.verify()


def test_remote_that_rclone_does_not_know() -> None:
    with pytest.raises(errors.RemoteUnknownError) as caught:
        Remote("nowhere:x", {"RCLONE_CONFIG": os.devnull}).backups()
    assert "listremotes" in caught.value.hint


def test_machine_without_rclone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for look in (lambda: Remote("offsite:x").backups(), lambda: Rclone("offsite:x", {}).stream("cat", "offsite:x")):
        with pytest.raises(errors.MissingRcloneError, match="rclone is not installed"):
            look()


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_variables_go_to_rclone_and_to_no_other_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does rclone get what is not its own, or what would make it print all that it sends."""
    for name in ("DB_PASS", "RCLONE_CONFIG_X_PASS", "RCLONE_VERBOSE", "PING_URL", "NOTIFY_URLS"):
        monkeypatch.setenv(name, "secret")
    ours = child_environment()
    assert "secret" not in ours.values()
    given = {"RCLONE_CONFIG_X_PASS": "secret", "RCLONE_DUMP": "auth", "RCLONE_VERBOSE": "2", "RCLONE_DRY_RUN": "true"}
    assert Rclone("x:", given).environment() == ours | {"RCLONE_CONFIG_X_PASS": "secret"}


@pytest.mark.parametrize(
    "said",
    [
        'ERROR : Propfind "http://shop:open sesame@host/x": dial tcp: connection refused',
        'ERROR : Put "https://host/x?X-Amz-Signature=open-sesame": dial tcp: no such host',
        "ERROR : login with open-sesame: connection refused",
    ],
)
def test_what_rclone_says_is_shown_without_secrets(said: str) -> None:
    error = Rclone("x:", {"RCLONE_CONFIG_X_PASS": "open-sesame"}).explained(f"2025/01/30 12:00:00 {said}\n")
    assert error.id == "remote-unreachable"
    assert "sesame" not in f"{error} {error.hint}"
    assert "2025" not in str(error)


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("AccessDenied: Access Denied status code: 403", "remote-denied"),
        ("sftp: permission denied", "remote-denied"),
        ("ssh: unable to authenticate, attempted methods [none publickey]", "remote-denied"),
        ("write: no space left on device", "remote-full"),
        ("507 Insufficient Storage", "remote-full"),
        ("dial tcp: lookup nas: no such host", "remote-unreachable"),
        ("dial tcp 127.0.0.1:1: i/o timeout", "remote-unreachable"),
        ("read tcp 127.0.0.1:1: i/o timeout", "remote-stalled"),
        ("unexpected EOF", "remote-broken"),
        ("directory not found", "backup-not-found"),
        ("something else", "remote-failed"),
        ("NOTICE: x: No host key validation is being performed\n2025/01/30 12:00:00 ERROR : oh", "remote-failed"),
    ],
)
def test_words_of_rclone_have_an_identity(said: str, known: str) -> None:
    error = Rclone("nas:x", {}).explained(f"2025/01/30 12:00:00 ERROR : {said}\n")
    assert error.id == known
    assert said.splitlines()[-1][-4:] in str(error)
    assert "nas:x" in str(error)


REFUSED = "dial tcp 127.0.0.1:1: connect: connection refused"


@pytest.mark.parametrize(
    ("place", "said", "known"),
    [
        ("y:x", f'Propfind "http://127.0.0.1:1/quota/x/": {REFUSED}', "remote-unreachable"),
        ("y:x", f"Propfind http://127.0.0.1:1/read-only/x/: {REFUSED}", "remote-unreachable"),
        ("y:x", "dial tcp: lookup quota.example.org: no such host", "remote-unreachable"),
        ("y:backups/401", "backups/401/db.507.gpg: unexpected EOF", "remote-broken"),
        ("y:read-only", 'S3 bucket read-only, object "forbidden": something else', "remote-failed"),
        ("y:x", "couldn't connect SSH: ssh: handshake failed: knownhosts: key is unknown", "remote-denied"),
        ("y:x", "couldn't connect to ssh-agent: dial unix /a: connect: connection refused", "remote-denied"),
        ("y:x", "couldn't connect SSH: something else", "remote-unreachable"),
        ("y:b", "mkdir b: permission denied", "remote-denied"),
    ],
)
def test_names_of_places_and_objects_choose_no_reason(place: str, said: str, known: str) -> None:
    error = Rclone(place, {}).explained(f"2025/01/30 12:00:00 ERROR : {said}\n", f"{place}/db.507.gpg")
    assert error.id == known


# --- what stands beside a backup -------------------------------------------------------------------------------------

INFO = BackupInfo(
    Path(NAME),
    datetime(2025, 1, 30, 12, tzinfo=UTC),
    9,
    encrypted=True,
    key_ids=("0123456789ABCDEF",),
    kind=BEFORE_A_RESTORE,
)


def test_record_says_again_what_was_written_down() -> None:
    assert read_record(record_text(INFO, "a" * 64), NAME) == Record(
        "a" * 64, BEFORE_A_RESTORE, INFO.created, INFO.key_ids
    )
    other = replace(INFO, path=Path("x.db"), key_ids=(), kind=ORDINARY)
    assert read_record(record_text(other, "b" * 64), "x.db") == Record("b" * 64, made=INFO.created)
    assert read_record(f"{'c' * 64}  backups/{NAME}", NAME) == Record("c" * 64)


@pytest.mark.parametrize("text", ["", "# keys: x\n", f"{'g' * 64}  x\n", "\0" * 100, "# kind: best\n"])
def test_record_that_names_nothing_says_nothing(text: str) -> None:
    assert read_record(text, "x") == NO_RECORD


@pytest.mark.parametrize("comment", ["# made: yesterday", "# kind: best", "# keys: \x1b[31m", "# made: 9999-99-99"])
def test_foreign_words_in_a_record_are_not_taken(comment: str) -> None:
    assert read_record(f"{'a' * 64}  x\n{comment}\n", "x") == replace(NO_RECORD, digest="a" * 64)


@dataclass(frozen=True)
class Folder:
    """A folder of this machine as a remote: rclone takes a fraction of what it does with a server."""

    path: Path

    @property
    def remote(self) -> Remote:
        return Remote(f"here:{self.path}", {"RCLONE_CONFIG_HERE_TYPE": "local", "RCLONE_CONFIG": os.devnull})

    def put(self, day: int, beside: str | None = "{digest}  {name}\n") -> str:
        """A backup of that day, with what stands beside it; its name."""
        name = f"db_backup_202501{day}_120000.db.gz.gpg"
        (self.path / name).write_bytes(name.encode())
        if beside is not None:
            digest = hashlib.sha256(name.encode()).hexdigest()
            (self.path / f"{name}.sha256").write_bytes(beside.format(digest=digest, name=name).encode())
        return name

    def said(self) -> dict[str, tuple[str, str, bool]]:
        """What the list says of each backup: its kind, why it may not be whole, and whether its checksum is known."""
        return {item.path.name: (item.kind, item.doubt, item.sha256 is not None) for item in self.remote.backups()}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty one."""
    (tmp_path / "there").mkdir()
    return Folder(tmp_path / "there")


WHOLE = (ORDINARY, "", True)


def test_checksum_file_says_something_of_its_own_backup_only(folder: Folder) -> None:
    """However it is written, and whatever others beside it say of that one."""
    newest, unended, windows, other_path = (
        folder.put(30),
        folder.put(28, "{digest}  {name}\n# kind: before a restore"),
        folder.put(29, "{digest} *{name}\r\n# kind: before a restore\r\n"),
        folder.put(27, "{digest}  backups/{name}"),
    )
    for strange in ("aa", "zz"):
        lines = f"{'a' * 64}  {newest}\n# kind: before a restore\n# made: 9999-01-01T00:00:00+00:00\n{'a' * 64}  "
        (folder.path / f"{strange}.sha256").write_text(lines)
    thief = folder.put(26, f"{'a' * 64}  {newest}\n# kind: before a restore\n{{digest}}  {{name}}")
    safety = (BEFORE_A_RESTORE, "", True)
    said = folder.said()
    assert said.pop(thief) == safety
    assert [*said.items()] == [(newest, WHOLE), (windows, safety), (unended, safety), (other_path, WHOLE)]


def test_what_has_no_checksum_is_listed_with_its_doubt_and_what_rclone_left_is_no_backup(folder: Folder) -> None:
    without, garbage, endless = (
        folder.put(30, None),
        folder.put(29, "garbage"),
        folder.put(28, "{digest}  {name}\n" + "x" * (1 << 16)),
    )
    (folder.path / f"{without}.98f6a636.partial").write_bytes(b"half")
    assert folder.said() == {
        without: (ORDINARY, "no checksum there: an interrupted copy, or somebody else's", False),
        garbage: (ORDINARY, "its checksum there cannot be understood", False),
        endless: (ORDINARY, "its checksum there cannot be understood", False),
    }


def test_truncated_object_is_copied_again_though_its_checksum_is_right(folder: Folder) -> None:
    name, content = folder.put(30), folder.put(30).encode()
    backup = make_backup(folder.path.parent, name, content)
    info = BackupInfo.of(backup)
    assert info
    assert folder.remote.push(backup) is False
    os.truncate(folder.path / name, 10)
    said: list[str] = []
    push_missing([folder.remote], [info], said.append)
    assert (folder.path / name).read_bytes() == content
    assert [line.split()[1] for line in said] == ["Copied", folder.remote.place]


# --- names on the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "place", "name"),
    [
        ("offsite:latest", "offsite:", "latest"),
        ("offsite:shopbot/latest", "offsite:shopbot", "latest"),
        ("nas:/srv/backups/x.gpg", "nas:/srv/backups", "x.gpg"),
        ("nas:/x.gpg", "nas:", "x.gpg"),
    ],
)
def test_place_and_name_are_told_apart(given: str, place: str, name: str) -> None:
    assert is_elsewhere(Path(given))
    assert split(Path(given)) == (place, name)


@pytest.mark.parametrize("given", ["/a/b:c", "backups/12:00.gpg", "latest", ":sftp,host=h,pass=x:y", "-x:y", "a b/c"])
def test_other_names_are_of_this_machine(given: str) -> None:
    assert not is_elsewhere(Path(given))
    assert not PLACE.fullmatch(given) or "/" in given.partition(":")[0]


def test_backup_of_a_list_is_named_with_its_place() -> None:
    assert INFO.place == LOCAL
    assert named(INFO) == Path(NAME)
    assert named(replace(INFO, place="offsite:shopbot")) == Path(f"offsite:shopbot/{NAME}")
    assert [remote.at("x") for remote in remotes(("a:", "a:b", "a:/"), {})] == ["a:x", "a:b/x", "a:/x"]
