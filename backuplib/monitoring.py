"""What monitoring systems read: the line of a plugin, and the text format of Prometheus.

The Monitoring Plugins Development Guidelines say how a plugin answers: one line, ``SERVICE STATUS - text | performance
data``, and an exit code. The performance data are figures, ``'label'=value[UOM];[warn];[crit];[min];[max]``. The text
may hold foreign names: none of them ends the line, or begins the performance data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from backuplib.formatting import printable, shortened

SERVICE = "SHOPBOT BACKUP"
OK, WARNING, CRITICAL, UNKNOWN = "ok", "warning", "critical", "unknown"
CODES = {OK: 0, WARNING: 1, CRITICAL: 2, UNKNOWN: 3}
WORST_FIRST = (CRITICAL, WARNING, UNKNOWN, OK)  # what is not known is told when nothing is known to be worse

MOST_TEXT = 600  # columns of the text; 4096 bytes are what monitoring systems keep of a line


@dataclass(frozen=True)
class Figure:
    """A figure of the performance data; ``warn`` and ``crit`` are ranges: 10 is "more than 10", 10: "less than 10".

    :param unit: "s" (seconds), "B" (bytes), or empty for a number of things.
    """

    label: str
    value: int
    unit: str = ""
    warn: str = ""
    crit: str = ""
    minimum: str = ""

    def __str__(self) -> str:
        label = re.sub(r"['=|]", "_", printable(self.label))
        return f"'{label}'={self.value}{self.unit};{self.warn};{self.crit};{self.minimum}".rstrip(";")


def worst(statuses: Iterable[str]) -> str:
    """Return the worst of several; of none, that it is not known."""
    return min(statuses, key=WORST_FIRST.index, default=UNKNOWN)


def plugin_line(status: str, text: str, figures: Iterable[Figure] = ()) -> str:
    """Return the line of a plugin."""
    said = shortened(text.replace("|", "/"), MOST_TEXT)
    data = " ".join(map(str, figures))
    return f"{SERVICE} {status.upper()} - {said}" + (f" | {data}" if data else "")


Values = Mapping[tuple[tuple[str, str], ...], int]


@dataclass(frozen=True)
class Gauge:
    """A metric of Prometheus's that goes up and down; ``values`` by labels."""

    name: str
    help: str
    values: Values


def exposition(gauges: Iterable[Gauge], **everywhere: str) -> str:
    """Return gauges in Prometheus's text format; those without a value are left out.

    :param everywhere: labels of all of them.
    """
    lines = []
    for gauge in gauges:
        if gauge.values:
            lines += [f"# HELP {gauge.name} {gauge.help}", f"# TYPE {gauge.name} gauge"]
        for labels, value in gauge.values.items():
            said = ",".join(f'{name}="{_escaped(text)}"' for name, text in (*everywhere.items(), *labels))
            lines.append(f"{gauge.name}{{{said}}} {value}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    """Return the value of a label; a name that is not UTF-8 would make the whole file useless."""
    return printable(text).replace("\\", "\\\\").replace('"', '\\"')
