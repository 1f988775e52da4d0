"""The journal of a restore that was interrupted."""

from typing import Any

from backuplib.journal import Journal
from backuplib.target import Target


def begun_journal(target: Target, **changes: Any) -> Journal:
    """One that has touched nothing yet, as it would be written."""
    values: dict[str, Any] = {
        "target": target.path,
        "state": "begun",
        "set_aside": target.path.with_name(f"{target.path.name}.backup-20250130-153045"),
        "candidate": target.candidate,
        "existed": True,
        "new_inode": None,
        "containers": (),
        "unhealthy": (),
        "safety_backup": None,
        "unsaved": True,
        "started": "2025-01-30T15:30:45+00:00",
        "backup": "",
        "made": "",
    }
    return Journal(**values | changes)
