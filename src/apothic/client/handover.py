"""From a job's stream into the caller's hands. What is yielded here are deeds: see `blocking.delivering`.

A deed moves the place of the job's handle, and reads the value, when its event is handed over, not when it came.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apothic.client.loop import at_caller
from apothic.client.outcome import Outcome, unpacked
from apothic.client.patience import Patience
from apothic.client.stream import Arrival, Reader
from apothic.errors import JobStreamResetError, WaitTimeoutError
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.protocol.events import (
    END,
    ITEM,
    RESET,
    SNAPSHOT,
    VALUED,
    WHAT,
    JobResetEvent,
    JobStreamCheckpoint,
    JobStreamEvent,
    Loaded,
    loaded,
    typed,
    value_in,
)

if TYPE_CHECKING:
    from apothic.client.job import Job
    from apothic.transport import Answer

ITEMS = (ITEM,)
_REASONS = {
    "window_rotated": "events were let go of before they were read",
    "cursor_ahead": "the stream does not reach as far as where it was to go on",
    "attempt_restarted": "the generator failed, and another attempt yields its items from the first one",
}


async def events(
    job: Job, after: int | None, types: tuple[str, ...], *, snapshot: bool = False
) -> AsyncGenerator[Callable[[], JobStreamEvent], None]:
    """Yield a deed for each event behind `after`, with no limit of time."""
    if after is not None:
        job.stand(after, types)
    patience = Patience(job)
    reader = Reader(job, after, types, patience, snapshot=snapshot)
    async with contextlib.aclosing(reader.batches()) as batches:
        async for batch in batches:
            for arrival in batch:
                found = await _fetched(job, arrival, patience) if _is_apart(arrival) else None
                yield partial(_event, job, types, arrival, found)


async def items(
    job: Job,
    after: int | None,
    timeout_s: float,
    *,
    begun: float | None = None,
    check: bool = False,
    on_reset: str = "raise",
    line: tuple[str, int] = ("apothic", 0),
    attached: bool = False,
    opened: Answer | None = None,
    poll_interval_s: float = 1.0,
) -> AsyncGenerator[Callable[[], Any], None]:
    """Yield a deed for each item behind `after`; then raise what the job failed with, if it did.

    Of a gap, `on_reset` says what to do: raise `JobStreamResetError`, or warn once, at the caller's `line`. With
    `check`, raises `TypeError` for a job of a plain function, which has no items.
    """
    patience = Patience(job, timeout_s, begun)
    if check:
        view = await patience.insist(lambda: job._client._ask(routes.SHOW_JOB, m.ShowJob(job=job.job_id), 0.0))
        if not view.is_generator:
            raise TypeError(f"{view.function} is no generator function: use wait() for the value of {job.job_id}")
    if after is not None:
        job.stand(after, ITEMS)
    reader = Reader(
        job,
        after,
        ITEMS,
        patience,
        attached=attached,
        opened=opened,
        latest=on_reset == "latest",
        poll_interval_s=poll_interval_s,
    )
    ended, warned = "", False
    async with contextlib.aclosing(reader.batches()) as batches:
        async for batch in batches:
            for arrival in batch:
                if arrival.event == ITEM:
                    found = await _fetched(job, arrival, patience) if "ref" in arrival.data else None
                    yield partial(_item, job, arrival, found)
                elif arrival.event == END:
                    ended = arrival.data["status"]
                elif arrival.event == RESET and on_reset == "raise":
                    raise _reset(job, arrival)
                elif arrival.event == RESET and on_reset == "continue" and not warned:
                    warned = True
                    told = _reset(job, arrival).message
                    await at_caller(partial(warnings.warn_explicit, told, UserWarning, *line))
    if ended != "succeeded":
        known = await patience.insist(lambda: job._client._ask(routes.RESULT, m.ShowResult(job=job.job_id), 0.0))
        if known.value is None:
            raise await at_caller(Outcome(job, known).error)


def _event(job: Job, types: tuple[str, ...], arrival: Arrival, found: Loaded | None) -> JobStreamEvent:
    event = typed(arrival.event, arrival.data, arrival.index, found)
    job.stand(arrival.place, types)
    return event


def _item(job: Job, arrival: Arrival, found: Loaded | None) -> Any:
    value = loaded(found, arrival.data)
    job.stand(arrival.place, ITEMS)
    return value


def _is_apart(arrival: Arrival) -> bool:
    return arrival.event in VALUED and "ref" in _holder(arrival)


def _holder(arrival: Arrival) -> dict[str, Any]:
    """Return the part of an event's data that holds its value."""
    return (arrival.data["result"] or {}) if arrival.event == SNAPSHOT else arrival.data


async def _fetched(job: Job, arrival: Arrival, patience: Patience) -> Loaded:
    """Return the value of an event whose bytes are in a blob, read where the caller is; or why it cannot be read."""
    try:
        value = value_in(_holder(arrival))
        with tempfile.TemporaryDirectory(prefix="apothic-") as folder:
            file = Path(folder) / "value"
            await patience.insist(lambda: job._client.fetch(str(value.sha256), file))
            return Loaded(await unpacked(value, file, WHAT))
    except WaitTimeoutError:
        raise
    except Exception as error:
        return Loaded(error=error)


def _reset(job: Job, arrival: Arrival) -> JobStreamResetError:
    event = JobResetEvent(arrival.event, arrival.data)
    lost = event.lost.get(ITEM)
    return JobStreamResetError(
        f"job {job.job_id}: {_REASONS.get(event.reason, event.reason)}"
        + (f"; {lost:,} items are lost" if lost else ""),
        event=event,
        checkpoint=JobStreamCheckpoint(job.job_id, arrival.place, ITEMS),
        hint="go on behind it from the error's .checkpoint, or have on_reset='continue' do so; "
        "the function's stream_window says how much is kept",
    )
