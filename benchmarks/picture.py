"""The chart in the README: restore time by stage, and downtime by size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams |= {"svg.hashsalt": "benchmark", "font.size": 9, "svg.fonttype": "none"}

from matplotlib import pyplot as plt  # noqa: E402 -- after the backend is chosen

COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb")
REST = "start-up and rest"
ORDER = ("decrypt", "decrypt and decompress", "decompress", "check", "write", "swap")


def draw(stages: Mapping[str, Mapping[str, float]], downtime: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Draw the stages of each contestant as stacked bars, and downtime over size."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(3, 2), layout="constrained")
    _bars(left, stages)
    _lines(right, downtime)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _bars(axes: Any, stages: Mapping[str, Mapping[str, float]]) -> None:
    merged = {who: _merge(parts) for who, parts in stages.items()}
    found = {name for parts in merged.values() for name in parts} - {*ORDER, REST}
    names = [name for name in ORDER if any(name in parts for parts in merged.values())] + sorted(found)
    left = dict.fromkeys(merged, 0.0)
    for index, name in enumerate([*names, REST]):
        widths = [parts.get(name, 0.0) for parts in merged.values()]
        colour = COLOURS[-1] if index == len(names) else COLOURS[index % (len(COLOURS) - 1)]
        axes.barh(list(merged), widths, left=list(left.values()), label=name, color=colour, height=0.6)
        left = {who: start + width for (who, start), width in zip(left.items(), widths, strict=True)}
    for who, end in left.items():
        axes.annotate(f"{end:.1f} s", (end, who), (4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_title("Restore: where the time goes")
    axes.margins(x=0.12)
    if merged:
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.4, -0.18), ncols=4, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _merge(parts: Mapping[str, float]) -> dict[str, float]:
    """Give the same work the same name; less than 1 % counts as rest."""
    both_at_once = "decompress" not in parts  # as in the tool; the straightforward method has two stages
    merged: dict[str, float] = {}
    for name, seconds in parts.items():
        alike = "decrypt and decompress" if name == "decrypt" and both_at_once else name
        alike = alike if seconds >= sum(parts.values()) / 100 else REST
        merged[alike] = merged.get(alike, 0.0) + seconds
    return merged


def _lines(axes: Any, downtime: Mapping[str, Mapping[int, float]]) -> None:
    for index, (who, by_size) in enumerate(downtime.items()):
        style = {"color": COLOURS[(0, 4, 3)[index % 3]], "linestyle": ("-", "-", "--")[index % 3]}
        axes.plot(list(by_size), list(by_size.values()), marker="o", label=who, **style)
    axes.set_xscale("log")
    axes.set_xticks(sizes := sorted({size for by_size in downtime.values() for size in by_size}), map(str, sizes))
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("size of the database (MB)")
    axes.set_ylabel("seconds")
    axes.set_title("Bot down")
    if downtime:
        axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
