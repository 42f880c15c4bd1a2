"""Named points where a test may listen, stall or break. In production a point is one dictionary look-up.

A process of its own takes its probe from the environment: `APOTHIC_PROBE="commit.after=exit"` ends it with
`os._exit(86)` there; `commit.after=exit:7` at the seventh time.
"""

from __future__ import annotations

import os
from collections.abc import Callable

POINTS = (
    "commit.before",  # the writer's batch is done, not yet committed
    "commit.after",  # committed, nobody told
    "blob.before",  # a blob's bytes are on disk under a temporary name
    "blob.after",  # the blob has its name
    "dispatch.push",  # claimed and committed, the agent not yet told
    "report.reply",  # an agent's report is committed, its acknowledgement not yet sent
)

EXIT_STATUS = 86


class Probe:
    """Holds what shall happen at each point; empty unless a test fills it."""

    def __init__(self) -> None:
        self._deeds: dict[str, Callable[[], None]] = {}

    def reach(self, point: str) -> None:
        """Say that the program is at `point`."""
        deed = self._deeds.get(point)
        if deed is not None:
            deed()

    def on(self, point: str, deed: Callable[[], None]) -> None:
        """Run `deed` each time `point` is reached. Raises `KeyError` for a point that does not exist."""
        if point not in POINTS:
            raise KeyError(f"no probe point is called {point!r}; there are {', '.join(POINTS)}")
        self._deeds[point] = deed


def from_environment(text: str) -> Probe:
    """Make the probe that `APOTHIC_PROBE` describes, `point=exit[:n]` pairs separated by commas."""
    probe = Probe()
    for pair in filter(None, text.split(",")):
        point, _, deed = pair.partition("=")
        word, _, nth = deed.partition(":")
        if word != "exit":
            raise ValueError(f"APOTHIC_PROBE knows exit, not {word!r}")
        probe.on(point, _exits(int(nth or 1)))
    return probe


def _exits(nth: int) -> Callable[[], None]:
    left = nth

    def deed() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os._exit(EXIT_STATUS)

    return deed
