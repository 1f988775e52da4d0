"""The systemd units in examples/: what is in them, for the tests that run it."""

import re

from tests.support.shop import ROOT

FOLDER_OF_UNITS = "/srv/shopbot/ops"
"""Where they expect the tool, which operators change."""


def commands_of(unit: str) -> list[str]:
    """The commands that systemd runs for a unit, in their order."""
    commands = re.findall(
        r"^Exec(?:Start|StopPost)=(.*)$", (ROOT / "examples" / unit).read_text(encoding="utf-8"), re.MULTILINE
    )
    assert commands
    return commands
