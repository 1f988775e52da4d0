"""Parsers of what monitoring systems read, as strict as their documents.

The Monitoring Plugins Development Guidelines, sections 2.1, 2.5 and 2.6; Prometheus' "Exposition formats".
"""

import re
from dataclasses import dataclass

STATUSES = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}

NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
RANGE = rf"@?(?:(?:{NUMBER}|~):(?:{NUMBER})?|{NUMBER})"
FIGURE = re.compile(
    rf"'(?P<label>(?:[^'=|\n]|'')+)'=(?P<value>{NUMBER})(?P<unit>s|us|ms|%|B|KB|MB|GB|TB|c|)"
    rf"(?:;(?P<warn>{RANGE})?(?:;(?P<crit>{RANGE})?(?:;(?P<min>{NUMBER})?(?:;(?P<max>{NUMBER})?)?)?)?)?"
)
LINE = re.compile(r"SHOPBOT BACKUP (?P<status>[A-Z]+) - (?P<text>[^|\n]+?)(?: \| (?P<data>[^|\n]+))?\n")


@dataclass(frozen=True)
class Plugin:
    """What a plugin has answered."""

    status: str
    text: str
    figures: dict[str, re.Match[str]]

    def value(self, label: str) -> int:
        return int(self.figures[label]["value"])

    def judged(self, label: str) -> str:
        """How a monitoring system judges a figure by the ranges that stand behind it."""
        figure = self.figures[label]
        for status, name in (("CRITICAL", "crit"), ("WARNING", "warn")):
            if figure[name] and alerts(figure[name], float(figure["value"])):
                return status
        return "OK"


def alerts(text: str, value: float) -> bool:
    """Whether a value is outside of a range; with an @, inside."""
    inside, text = text.startswith("@"), text.removeprefix("@")
    start, colon, end = text.rpartition(":")
    low = float("-inf") if start == "~" else float(start) if colon else 0.0
    high = float(end) if end else float("inf")
    return (low <= value <= high) == inside


def plugin(printed: str) -> Plugin:
    """Parse the output of a plugin, all of it; AssertionError for what is none."""
    line = LINE.fullmatch(printed)
    assert line, printed
    assert line["status"] in STATUSES
    assert line["text"].isprintable()
    assert len(printed) < 4096
    figures = [FIGURE.fullmatch(part) for part in re.split(r" (?=')", line["data"] or "")] if line["data"] else []
    found = {figure["label"]: figure for figure in figures if figure}
    assert len(found) == len(figures), line["data"]  # each is one, and no label comes twice
    return Plugin(line["status"], line["text"], found)


NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"(?P<name>{NAME})\{{(?P<labels>{LABEL}(?:,{LABEL})*)\}} (?P<value>-?[0-9]+)")


def metrics(printed: str) -> dict[str, dict[str, int]]:
    """Parse a textfile of Prometheus's; returns values by labels, by name. AssertionError for what is none."""
    assert printed.endswith("\n")
    found: dict[str, dict[str, int]] = {}
    current = helped = ""
    for line in printed.removesuffix("\n").split("\n"):
        if match := re.fullmatch(rf"# HELP ({NAME}) (?:[^\\\n]|\\[\\n])+", line):
            helped = match[1]
            assert helped not in found
        elif match := re.fullmatch(rf"# TYPE ({NAME}) gauge", line):
            current = match[1]
            assert current == helped
            found[current] = {}
        else:
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            assert sample["name"] == current
            assert sample["labels"] not in found[current]
            names = re.findall(r'(?:^|,)([a-zA-Z_][a-zA-Z0-9_]*)="', sample["labels"])
            assert len(names) == len({*names})
            found[current][sample["labels"]] = int(sample["value"])
    assert all(found.values())
    return found
