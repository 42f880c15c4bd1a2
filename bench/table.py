"""What was found, and how it is shown: medians, ranges, and the ratio to what was measured beside it."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass


class Found:
    """The figures of all rounds, by name. What was left out, a peer that is not there, has none."""

    def __init__(self) -> None:
        self._figures: dict[str, list[float]] = {}

    def note(self, name: str, value: float) -> None:
        """Keep a figure, and say it, so that a long run can be followed."""
        self._figures.setdefault(name, []).append(value)
        print(f"  {name}: {figure(value)}", file=sys.stderr)

    def __contains__(self, name: str) -> bool:
        return name in self._figures

    def __getitem__(self, name: str) -> list[float]:
        return self._figures[name]


@dataclass(frozen=True)
class Line:
    """A line of the table: ours beside something else, each by the name it was noted under."""

    title: str
    unit: str
    ours: str
    beside_title: str
    beside: str

    def text(self, found: Found) -> str:
        """Return the line of a Markdown table."""
        ratio = statistics.median(found[self.ours]) / statistics.median(found[self.beside])
        mine, other = (spread(found[name], self.unit) for name in (self.ours, self.beside))
        return f"| {self.title} | {mine} | {self.beside_title} | {other} | {ratio:.2f} |"


def show(title: str, lines: Iterable[Line], found: Found) -> None:
    """Print a table of the lines whose both sides were measured."""
    print(f"\n## {title}\n\n| Workload | Ours | Beside it | in the same run | Ratio |\n|---|---|---|---|---|")
    for line in lines:
        if line.ours in found and line.beside in found:
            print(line.text(found))


def spread(values: list[float], unit: str) -> str:
    """Return the median and the range.

    >>> spread([1.0, 3.0, 250.0], "ms")
    '3.00 (1.00–250) ms'
    """
    return f"{figure(statistics.median(values))} ({figure(min(values))}–{figure(max(values))}) {unit}"


def figure(value: float) -> str:
    """Return a figure with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
