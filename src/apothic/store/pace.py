"""How quick a function's jobs have been, and so how many may wait inside a container for the one before.

A hint, no truth: it is lost with the process, and only ever decides how many claims share a frame and a commit. One
claim a job costs a round trip and a commit each; functions of a millisecond would spend their time on those.
"""

from __future__ import annotations

# As much work as may wait in a container: what a free container elsewhere would at the most have to wait for.
AHEAD_S = 0.02
LARGEST_AHEAD = 128
# What a function is held for after jobs of its were given back because they waited behind a long one.
SLOW_S = 0.2
_WEIGHT = 0.3  # of the newest job


class Pace:
    """Mean run times by version, the newest weighing most. Used by the writer's thread alone."""

    def __init__(self) -> None:
        self._mean: dict[int, float] = {}

    def note(self, version: int, ran_s: float) -> None:
        """Take the run time of a job that has ended."""
        before = self._mean.get(version, ran_s)
        self._mean[version] = (1 - _WEIGHT) * before + _WEIGHT * ran_s

    def slow(self, version: int) -> None:
        """Take it that a job of this version runs long."""
        self._mean[version] = max(self._mean.get(version, 0.0), SLOW_S)

    def ahead(self, version: int) -> int:
        """Return how many jobs of a version a container may hold beyond its slots."""
        mean = self._mean.get(version)
        return 0 if mean is None else min(LARGEST_AHEAD, int(AHEAD_S / max(mean, 1e-6)))
