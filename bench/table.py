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

    def all(self) -> dict[str, list[float]]:
        """Return all figures, by name, in the order of the rounds."""
        return dict(self._figures)

    def __contains__(self, name: str) -> bool:
        return name in self._figures

    def __getitem__(self, name: str) -> list[float]:
        return self._figures[name]


@dataclass(frozen=True)
class Line:
    """A line of the table: ours beside something else, each by the name it was noted under.

    A target is as `≤ 0.5 ×`, which is one of the ratio, or as `≥ 5,000 jobs/s`, one of our own figure.
    """

    title: str
    unit: str
    ours: str
    beside_title: str = "–"
    beside: str = ""
    target: str = ""
    durable: str = "no"

    def text(self, found: Found) -> str:
        """Return the line of a Markdown table."""
        median, other, ratio, durable = statistics.median(found[self.ours]), "–", None, "–"
        if self.beside:
            ratio = median / statistics.median(found[self.beside])
            other, durable = spread(found[self.beside], self.unit), self.durable
        told = "–" if ratio is None else f"{ratio:.2f}"
        mine = spread(found[self.ours], self.unit)
        parts = self.title, mine, self.beside_title, other, durable, told, self._judged(median, ratio)
        return f"| {' | '.join(parts)} |"

    def _judged(self, median: float, ratio: float | None) -> str:
        if not self.target:
            return ""
        sign, number, unit = self.target.split(" ", 2)
        value, bound = ratio if unit == "×" and ratio is not None else median, float(number.replace(",", ""))
        met = value <= bound if sign == "≤" else value >= bound
        return f"{self.target}: {'met' if met else '**not met**'}"

    def measured(self, found: Found) -> bool:
        """Return whether there are figures of all that it names."""
        return self.ours in found and (not self.beside or self.beside in found)


def show(title: str, lines: Iterable[Line], found: Found) -> None:
    """Print a table of the lines whose sides were measured, and then the targets that could not be judged."""
    print(f"\n## {title}\n\n| Workload | Ours | Beside it | in the same run | durable | Ratio | Target |")
    print("|---|---|---|---|---|---|---|")
    for line in lines:
        if line.measured(found):
            print(line.text(found))
        elif line.target:
            print(f"| {line.title} | – | {line.beside_title} | not measured | | | {line.target}: **not measured** |")


def spread(values: list[float], unit: str) -> str:
    """Return the median and the range.

    >>> spread([1.0, 3.0, 250.0], "ms")
    '3.00 (1.00–250) ms'
    """
    return f"{figure(statistics.median(values))} ({figure(min(values))}–{figure(max(values))}) {unit}"


def figure(value: float) -> str:
    """Return a figure with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
