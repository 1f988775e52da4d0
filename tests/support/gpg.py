"""What differs between releases of gpg."""

import re
import subprocess

import pytest


def version() -> tuple[int, ...]:
    """Of the gpg on PATH: (2, 2, 40)."""
    first_line = subprocess.run(["gpg", "--version"], check=True, capture_output=True, text=True).stdout.split("\n")[0]
    return tuple(map(int, re.findall(r"\d+", first_line)))


gpg_24_says_otherwise = pytest.mark.xfail(
    condition=version() >= (2, 4),
    reason="gpg 2.4 says other things: mended with 'Keys and messages'",
    strict=True,
)
