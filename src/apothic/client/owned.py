"""Jobs that live for their reader: `remote_gen` and `remote_events`. Leaving them early cancels the job.

Losing the network does not, nor does an error that is raised to the reader: the job is there to be read on.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from apothic.client import handover
from apothic.client.combine import alone
from apothic.client.connection import ControlPlaneClient
from apothic.client.job import CANCEL_S, Job
from apothic.client.stream import EVENT_STREAM, FIRST_S
from apothic.client.submission import Target, submit
from apothic.clock import SystemClock
from apothic.errors import ServerUnavailableError
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.protocol.events import JobStreamEvent
from apothic.protocol.values import Envelope
from apothic.transport import Answer

T = TypeVar("T")
Deeds = AsyncGenerator[Callable[[], T], None]


async def _accepted() -> None:
    """Accept any function."""


def items(
    target: Target, envelope: Envelope, *, timeout_s: float, check: Callable[[], Awaitable[None]] = _accepted
) -> AsyncIterator[Callable[[], Any]]:
    """Submit one job, unless `check` raises, and yield a deed for each item, waiting at most `timeout_s` in all."""

    def read(job: Job, begun: float, opened: Answer | None) -> Deeds[Any]:
        return handover.items(job, None, timeout_s, begun=begun, attached=True, opened=opened)

    return _discarding(envelope, _owned(target, envelope, timeout_s, read, check=check, attached=True))


def events(
    target: Target, envelope: Envelope, *, timeout_s: float, types: tuple[str, ...], snapshot: bool
) -> AsyncIterator[Callable[[], JobStreamEvent]]:
    """Submit one job and yield a deed for each event, from the first on: a snapshot comes before them, not instead."""

    def read(job: Job, begun: float, opened: Answer | None) -> Deeds[JobStreamEvent]:
        return handover.events(job, -1, types, snapshot=snapshot)

    return _discarding(envelope, _owned(target, envelope, timeout_s, read))


async def _owned(
    target: Target,
    envelope: Envelope,
    timeout_s: float,
    read: Callable[[Job, float, Answer | None], Deeds[T]],
    *,
    check: Callable[[], Awaitable[None]] = _accepted,
    attached: bool = False,
) -> Deeds[T]:
    begun = SystemClock().monotonic()
    await check()
    job, opened = await submit(target, envelope, _sent, timeout_s=timeout_s, attached=attached)
    left = True
    try:
        async with contextlib.aclosing(read(job, begun, opened)) as deeds:
            async for deed in deeds:
                yield deed
        left = False
    except Exception:  # raised to the reader, who may read on: only who leaves has no more use for the job
        left = False
        raise
    finally:
        if left:
            await job._give_up()


async def _sent(client: ControlPlaneClient, ask: m.Submit, left: float) -> tuple[Job, Answer | None]:
    sending = asyncio.ensure_future(_begun(client, ask, left))
    try:
        return await asyncio.shield(sending)
    except asyncio.CancelledError:
        # What is on its way will be accepted, and only who knows the job can cancel it.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CANCEL_S):
                job, opened = await sending
                if opened is not None:
                    opened.close()
                await job._give_up()
        raise


async def _begun(client: ControlPlaneClient, ask: m.Submit, left: float) -> tuple[Job, Answer | None]:
    """Submit a job; return it, and the stream of its items if the answer is that: it saves a request."""
    if ask.attached and SystemClock().monotonic() >= client.paged_until:
        with contextlib.suppress(TimeoutError, ServerUnavailableError):  # as often as it takes, then: it has a key
            async with asyncio.timeout(min(left, FIRST_S)):
                opened = await client.open(routes.SUBMIT, ask, accept=EVENT_STREAM)
            if opened.job is not None:
                return Job(opened.job, client), opened
            opened.close()
    return Job(await alone(client, ask, left), client), None


def _discarding(envelope: Envelope, source: Deeds[T]) -> Deeds[T]:
    # An iterator that nobody began has no `finally` that runs.
    if envelope.file is not None:
        weakref.finalize(source, envelope.discard)
    return source
