"""Jobs that live for their reader: `remote_gen` and `remote_events`. Leaving them early cancels the job.

Losing the network does not, nor does an error that is raised to the reader: the job is there to be read on.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from apothic.client import handover
from apothic.client.job import Job
from apothic.client.submission import Target, submit
from apothic.clock import SystemClock
from apothic.protocol.events import JobStreamEvent
from apothic.protocol.values import Envelope

T = TypeVar("T")
Deeds = AsyncGenerator[Callable[[], T], None]


async def _accepted() -> None:
    """Accept any function."""


def items(
    target: Target, envelope: Envelope, *, timeout_s: float, check: Callable[[], Awaitable[None]] = _accepted
) -> AsyncIterator[Callable[[], Any]]:
    """Submit one job, unless `check` raises, and yield a deed for each item, waiting at most `timeout_s` in all."""

    def read(job: Job, begun: float) -> Deeds[Any]:
        return handover.items(job, None, timeout_s, begun=begun, attached=True)

    return _discarding(envelope, _owned(target, envelope, timeout_s, read, check=check, attached=True))


def events(
    target: Target, envelope: Envelope, *, timeout_s: float, types: tuple[str, ...], snapshot: bool
) -> AsyncIterator[Callable[[], JobStreamEvent]]:
    """Submit one job and yield a deed for each event, from the first on: a snapshot comes before them, not instead."""

    def read(job: Job, begun: float) -> Deeds[JobStreamEvent]:
        return handover.events(job, -1, types, snapshot=snapshot)

    return _discarding(envelope, _owned(target, envelope, timeout_s, read))


async def _owned(
    target: Target,
    envelope: Envelope,
    timeout_s: float,
    read: Callable[[Job, float], Deeds[T]],
    *,
    check: Callable[[], Awaitable[None]] = _accepted,
    attached: bool = False,
) -> Deeds[T]:
    begun = SystemClock().monotonic()
    await check()
    job, _ = await submit(target, envelope, timeout_s=timeout_s, wait=False, attached=attached, owned=True)
    left = True
    try:
        async with contextlib.aclosing(read(job, begun)) as deeds:
            async for deed in deeds:
                yield deed
        left = False
    except Exception:  # raised to the reader, who may read on: only who leaves has no more use for the job
        left = False
        raise
    finally:
        if left:
            await job._give_up()


def _discarding(envelope: Envelope, source: Deeds[T]) -> Deeds[T]:
    # An iterator that nobody began has no `finally` that runs.
    if envelope.file is not None:
        weakref.finalize(source, envelope.discard)
    return source
