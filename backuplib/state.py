"""What was found about the backups, and how monitoring systems read it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from backuplib.backup_file import LOCAL, BackupInfo
from backuplib.doctor import Finding
from backuplib.formatting import printable
from backuplib.monitoring import CODES, OK, WORST_FIRST, Figure, Gauge, Values, worst
from backuplib.openpgp import Recipient
from backuplib.proofs import Proof
from backuplib.running import Running

# Looks whose findings stand in the line when all is well; the first one's in any case
GOOD_NEWS = ("backup", "checksum", "remote", "proof")
ROOM = ("needed_bytes", "disk_free_bytes", "memory_needed_bytes", "memory_free_bytes")


@dataclass
class State:
    """What was found. A field that is None, or a place that is missing, is not known, or there is none."""

    database: str = ""
    findings: list[Finding] = field(default_factory=list)
    newest: dict[str, BackupInfo] = field(default_factory=dict)
    removable: dict[str, bool | None] = field(default_factory=dict)
    checksum: str | None = None
    proof: Proof | None = None
    running: Running | None = None
    interrupted: bool | None = None
    last_restore: dict[str, Any] | None = None
    recipients: list[Recipient] = field(default_factory=list)
    needed_bytes: int | None = None
    disk_free_bytes: int | None = None
    memory_needed_bytes: int | None = None
    memory_free_bytes: int | None = None
    figures: list[Figure] = field(default_factory=list)
    looked: int = field(default_factory=lambda: int(time.time()))

    @property
    def status(self) -> str:
        """The worst of what was found."""
        return worst(finding.status for finding in self.findings)

    @property
    def text(self) -> str:
        """What was found, in a line: what is wrong, the worst first, or else the good news; the age in any case."""
        told = {*(GOOD_NEWS if self.status == OK else GOOD_NEWS[:1]), *(["restore"] if self.running else [])}
        good = [item.text for item in self.findings if item.status == OK and item.name in told]
        bad = sorted((item for item in self.findings if item.status != OK), key=lambda i: WORST_FIRST.index(i.status))
        return "; ".join([*(item.text for item in bad), ", ".join(good)]).removesuffix("; ")

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, as --json shows it."""
        return {
            "status": self.status.upper(),
            "exit_code": CODES[self.status],
            "text": printable(self.text),
            "looked": datetime.fromtimestamp(self.looked).astimezone().isoformat(),
            "database": printable(self.database),
            "checks": [asdict(item) for item in self.findings],
            "backups": [
                {
                    "place": place,
                    "path": str(item.path),
                    "created": item.created.isoformat(),
                    "age_seconds": self.age_of(item),
                    "bytes": item.size,
                    "encrypted": item.encrypted,
                    "kind": item.kind,
                    "checksum": self.checksum if place == LOCAL else None,
                    "removable": self.removable.get(place),
                }
                for place, item in self.newest.items()
            ],
            "proof": self.proof and asdict(self.proof) | {"when": self.proof.when.isoformat()},
            "running": self.running and self.running.as_dict(),
            "interrupted": self.interrupted,
            "last_restore": self.last_restore,
            "public_keys": [
                {"fingerprint": item.fingerprint, "user_id": item.user_id, "expires": item.expires}
                for item in self.recipients
            ],
            "room": {name: getattr(self, name) for name in ROOM},
            "performance": [asdict(item) for item in self.figures],
        }

    def age_of(self, backup: BackupInfo) -> int:
        """How old a backup is, in seconds; clocks differ."""
        return max(0, self.looked - int(backup.created.timestamp()))

    def gauges(self) -> Iterator[Gauge]:
        """Return it as metrics."""
        names = dict.fromkeys(item.name for item in self.findings)
        codes: Values = {
            (("check", name),): CODES[worst(item.status for item in self.findings if item.name == name)]
            for name in names
        }
        made: Values = {(("place", place),): int(item.created.timestamp()) for place, item in self.newest.items()}
        sizes: Values = {(("place", place),): item.size for place, item in self.newest.items()}
        expiry: Values = {
            (("fingerprint", item.fingerprint),): item.expires for item in self.recipients if item.expires
        }
        running = None if self.interrupted is None else bool(self.running)
        one: dict[str, tuple[str, int | None]] = {
            "status": ("0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.", CODES[self.status]),
            "looked_timestamp_seconds": ("When this was looked up.", self.looked),
            "proof_timestamp_seconds": (
                "When a backup was last proved to restore.",
                int(self.proof.when.timestamp()) if self.proof else None,
            ),
            "restore_running": ("Whether a restore is running.", running),
            "restore_interrupted": ("Whether a restore was interrupted.", self.interrupted),
            "needed_bytes": ("What the next backup takes on the disk, about.", self.needed_bytes),
            "disk_free_bytes": ("Room where the backups are.", self.disk_free_bytes),
            "memory_needed_bytes": ("What the next backup takes in memory, about.", self.memory_needed_bytes),
            "memory_free_bytes": ("Memory that is available.", self.memory_free_bytes),
        }
        for name, (text, value) in one.items():
            yield Gauge(f"shopbot_backup_{name}", text, {} if value is None else {(): int(value)})
        yield Gauge("shopbot_backup_check_status", "The same for each of the looks.", codes)
        yield Gauge("shopbot_backup_newest_timestamp_seconds", "When the newest backup at a place was made.", made)
        yield Gauge("shopbot_backup_newest_size_bytes", "How large it is.", sizes)
        yield Gauge("shopbot_backup_key_expiry_timestamp_seconds", "When a public key expires.", expiry)
