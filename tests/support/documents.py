"""The command blocks of README.md and RUNBOOK.md."""

import re

from tests.support.shop import ROOT


def runbook_blocks() -> list[tuple[str, str]]:
    """Situation and commands of each block in RUNBOOK.md that can be run."""
    text = (ROOT / "RUNBOOK.md").read_text(encoding="utf-8")
    found = re.findall(r"(?:<!-- ([^>]*) -->\n)?```(\w+)\n(.*?)```\n", text, re.DOTALL)
    assert found
    for mark, kind, code in found:
        assert kind == "text" or re.match(r"(not )?run: .", mark), f"say above it how it is to be run:\n{code}"
    return [(mark.removeprefix("run: "), code) for mark, _, code in found if mark.startswith("run: ")]


def blocks_for(situation: str) -> list[str]:
    """The blocks of RUNBOOK.md for a situation, in their order."""
    return [code for where, code in runbook_blocks() if where == situation]


def readme_blocks() -> list[str]:
    """The blocks of README.md, which are indented there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [re.sub("^ {4,6}", "", block, flags=re.MULTILINE) for block in re.findall(r"(?<=\n\n)(?: {4,6}.*\n)+", text)]


def ssh_blocks_of_the_readme() -> list[str]:
    """Those that go to the host, and need no terminal."""
    return [block for block in readme_blocks() if "ssh host" in block]
