"""Which of the inputs that wait make the next batch of a batched function, and when. Pure."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Protocol, TypeVar

from apothic.protocol.specs import BatchingSpec


class Waiting(Protocol):
    """What waits: since when, and whether its input is here."""

    arrived_at: float

    @property
    def is_here(self) -> bool: ...

    @property
    def size(self) -> int:
        """How many bytes of a frame it takes."""
        ...


W = TypeVar("W", bound=Waiting)

# Inputs in one frame, at most; a full batch may be more than any frame can be.
LARGEST_BYTES = 64 * 1024 * 1024


def take(waiting: deque[W], spec: BatchingSpec | None, now: float) -> list[W]:
    """Take the next batch out of what waits; nothing while its oldest may wait on. Without a `spec`, one makes one.

    An input that is still on its way holds up no batch: it goes with the next. Inputs that are too large to travel
    together make smaller batches.
    """
    if spec is None:
        return [waiting.popleft()] if waiting and waiting[0].is_here else []
    is_due = pause_s(waiting, spec, now) == 0
    if not is_due and len(waiting) < spec.max_batch_size:
        return []  # without a look at each: this comes with every arrival
    here = list(islice((each for each in waiting if each.is_here), spec.max_batch_size))
    fitting = _fitting(here)
    if not is_due and len(here) < spec.max_batch_size and len(fitting) == len(here):
        return []
    for each in fitting:
        waiting.remove(each)
    return fitting


def pause_s(waiting: deque[W], spec: BatchingSpec, now: float) -> float | None:
    """Return how long to wait before the next look, or `None` when nothing is there that could become due."""
    oldest = next((each for each in waiting if each.is_here), None)
    return None if oldest is None else max(oldest.arrived_at + spec.wait_ms / 1000 - now, 0.0)


def _fitting(here: list[W]) -> list[W]:
    """Return as many of these as may travel together, at least one."""
    total = 0
    for count, each in enumerate(here):
        total += each.size
        if total > LARGEST_BYTES and count > 0:
            return here[:count]
    return here
