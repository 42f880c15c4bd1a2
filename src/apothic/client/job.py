"""The handle of one job: its status, its logs, its result, its events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from apothic.client import handover
from apothic.client.blocking import Facet, awaiting, delivering, iterating, requesting, user_frame
from apothic.client.connection import ControlPlaneClient, client_for
from apothic.client.outcome import Outcome
from apothic.clock import SystemClock
from apothic.direct import on_loop
from apothic.errors import ApothicError, InvalidRequestError, WaitTimeoutError
from apothic.protocol import ids, routes
from apothic.protocol import messages as m
from apothic.protocol.events import (
    JobStreamCheckpoint,
    JobStreamCursor,
    JobStreamEvent,
    check_on_reset,
    check_types,
)
from apothic.protocol.lifecycle import FINAL

POLL_S = 60.0  # the longest time that one request may wait
CANCEL_S = 15.0  # for cancelling what nobody is there to read any more
_PAGE = 10_000


class LogLines(list[str]):
    """The retained lines of a job's output. `trimmed` older ones are gone."""

    trimmed: int = 0


def join(lines: Iterable[m.LogLine], found: list[str], going_on: dict[tuple[str, int], int]) -> None:
    """Append lines to `found`, one that goes on as one: `going_on` keeps its place, for each stream and attempt."""
    for line in lines:
        source = line.stream, line.attempt
        place = going_on.pop(source, len(found))
        if place == len(found):
            found.append("")
        found[place] += line.text
        if line.cont:
            going_on[source] = place


class Job:
    """One execution of a function. The handle is an id and a client: it pickles, and survives its process.

    >>> Job("job_0123456789abcdefghjkmnpqrs", ControlPlaneClient()).job_id
    'job_0123456789abcdefghjkmnpqrs'
    """

    def __init__(self, job_id: str, client: ControlPlaneClient) -> None:
        self._job_id = job_id
        self._client = client
        self._start: JobStreamCheckpoint | None = None
        self._stood: tuple[int, tuple[str, ...]] = (-1, ())

    @classmethod
    def attach(cls, text: str, *, client: ControlPlaneClient | None = None) -> Job:
        """Return the handle for a job id, or for a checkpoint's text, from any machine. Asks nobody.

        With a checkpoint, the handle stands there: where they are not told otherwise, `stream_events`, `watch` and
        `wait_gen` begin there, each time, with its filter. Raises `InvalidRequestError` for other text.

        >>> Job.attach("job_0123456789abcdefghjkmnpqrs@41").checkpoint().last_index
        41
        """
        if "@" in text:
            return _attached(JobStreamCheckpoint.parse(text), client_for(client))
        if not ids.is_id(text, "job"):
            raise InvalidRequestError(f"{text!r} is no job id", hint="a job id is job_ and 26 letters and digits")
        return cls(text, client_for(client))

    @property
    def job_id(self) -> str:
        """Return the id, by which the job is found again from anywhere."""
        return self._job_id

    @property
    def aio(self) -> JobAio:
        """Return the asynchronous side."""
        return JobAio(self)

    @requesting
    async def status(self, /) -> str:
        """Return `queued`, `starting`, `running`, `retrying`, `cancelling`, or how it ended: `succeeded`, `failed`,
        `cancelled`, `timed_out`. Raises `NotFoundError` for a job that does not exist."""
        return (await self._client._ask(routes.SHOW_JOB, m.ShowJob(job=self._job_id), None)).status.value

    @requesting
    async def logs(self, /) -> list[str]:
        """Return the retained lines, stdout and stderr in order of arrival; the list's `.trimmed` counts those gone."""
        found = LogLines()
        going_on: dict[tuple[str, int], int] = {}
        after, page = -1, None
        while page is None or len(page.lines) == _PAGE:
            page = await self._client._ask(routes.LOGS, m.ShowLogs(job=self._job_id, after=after, limit=_PAGE), None)
            found.trimmed = max(found.trimmed, page.trimmed)
            join(page.lines, found, going_on)
            after = page.lines[-1].line if page.lines else after
        return found

    @requesting
    async def cancel(self, /) -> str:
        """Cancel the job; return its status at commit: `cancelled`, `cancelling`, or the final one it had already.

        Never raises for a job that has ended, unless it is past its retention (`JobGoneError`).
        """
        return (await self._client._ask(routes.CANCEL, m.CancelJob(job=self._job_id), None)).status.value

    @requesting
    async def wait(self, /, *, poll_interval_s: float = 1.0, timeout_s: float = 600.0) -> Any:
        """Return the job's value, waiting at most `timeout_s` seconds in all.

        Raises the function's own exception, with the remote traceback, or a `JobError` for a job that ended otherwise;
        `WaitTimeoutError` when the time is over, while the job goes on. An answer comes at once; `poll_interval_s` is
        the pause between requests that the server does not let wait. Cancelling the wait leaves the job alone.
        """
        return await self._wait(poll_interval_s, timeout_s, None)

    async def _wait(self, poll_interval_s: float, timeout_s: float, known: m.JobResult | None) -> Any:
        clock = SystemClock()
        until = clock.monotonic() + timeout_s
        while known is None or known.job.status not in FINAL:
            begun = clock.monotonic()
            left = until - begun
            if known is not None and left <= 0:
                raise WaitTimeoutError(
                    f"job {self._job_id} is {known.job.status.value} after {timeout_s:g} s of waiting",
                    job=self,
                    hint="it goes on: wait again on the error's .job, or allow more with timeout_s",
                )
            wait_s = max(0.0, min(POLL_S, left))
            ask = m.ShowResult(job=self._job_id, wait_s=wait_s)
            known = await self._client._ask(routes.RESULT, ask, max(left, 1.0))
            pause = min(poll_interval_s, left) - (clock.monotonic() - begun)
            if known.job.status not in FINAL and pause > 0 and wait_s > 0:
                await on_loop()
                await clock.sleep(pause)
        return await Outcome(self, known).value()

    # --- its events -----------------------------------------------------------------------------------------------

    @delivering
    def stream_events(
        self,
        /,
        *,
        checkpoint: JobStreamCheckpoint | None = None,
        cursor: JobStreamCursor | None = None,
        last_index: int | None = None,
        event_types: list[str] | tuple[str, ...] | None = None,
    ) -> AsyncIterator[Callable[[], JobStreamEvent]]:
        """Yield the job's events, from the first one or behind a resume point, until its `job.end`.

        A gap is a `JobResetEvent` among them, and never raises. `event_types` are those that are wanted, all if none is
        named; `job.end` and `job.reset` come in any case. A lost connection or server is waited for, without limit.
        Raises `ValueError` at once for more than one resume point, a checkpoint of another job, a type that is none.
        """
        return handover.events(self, *self._resumed(checkpoint, cursor, last_index, event_types))

    @delivering
    def watch(
        self,
        /,
        *,
        snapshot: bool = False,
        checkpoint: JobStreamCheckpoint | None = None,
        cursor: JobStreamCursor | None = None,
        last_index: int | None = None,
        event_types: list[str] | tuple[str, ...] | None = None,
    ) -> AsyncIterator[Callable[[], JobStreamEvent]]:
        """Do as `stream_events`; with `snapshot`, begin with a `JobSnapshotEvent`, which says how the job stands.

        Then only what comes after it follows, or, with a resume point, what comes behind that. Each reset is followed
        by a fresh snapshot.
        """
        return handover.events(self, *self._resumed(checkpoint, cursor, last_index, event_types), snapshot=snapshot)

    @delivering
    def wait_gen(
        self,
        /,
        *,
        poll_interval_s: float = 1.0,
        timeout_s: float = 600.0,
        checkpoint: JobStreamCheckpoint | None = None,
        cursor: JobStreamCursor | None = None,
        last_index: int | None = None,
        on_reset: str = "raise",
    ) -> AsyncIterator[Callable[[], Any]]:
        """Yield the items of a generator function's job, waiting at most `timeout_s` seconds in all; then raise what
        the job failed with, if it did.

        A gap raises `JobStreamResetError`, which has the checkpoint behind it; with `on_reset` "continue" it is warned
        of once, and with "latest" the items begin anew with the next one to come. Raises `WaitTimeoutError` when the
        time is over, `TypeError` for a job of a plain function. However it is left, the job goes on.
        """
        after, _ = self._resumed(checkpoint, cursor, last_index, None)
        frame = user_frame()
        line = (frame.f_code.co_filename, frame.f_lineno) if frame is not None else ("apothic", 0)
        return handover.items(
            self, after, timeout_s, check=True, on_reset=check_on_reset(on_reset), line=line,
            poll_interval_s=poll_interval_s,
        )  # fmt: skip

    def checkpoint(
        self,
        *,
        cursor: JobStreamCursor | None = None,
        last_index: int | None = None,
        event_types: list[str] | tuple[str, ...] | None = None,
    ) -> JobStreamCheckpoint:
        """Return the place behind the last event that this handle has yielded, with the filter that it was read with.

        It has moved when the event is handed over, so saving it after an event was dealt with loses none. Before the
        first event: from where it reads, where it was attached, or -1. What is given stands in place of the handle's.
        """
        if cursor is not None and last_index is not None:
            raise ValueError("cursor and last_index were both given; they say the same")
        place, types = self._stood
        if cursor is not None:
            place = cursor.last_index
        return JobStreamCheckpoint(
            self._job_id,
            place if last_index is None else last_index,
            types if event_types is None else check_types(event_types),
        )

    def stand(self, place: int, types: tuple[str, ...]) -> None:
        """Move the handle's place: an event is being handed over."""
        self._stood = place, types

    def _resumed(
        self,
        checkpoint: JobStreamCheckpoint | None,
        cursor: JobStreamCursor | None,
        last_index: int | None,
        event_types: list[str] | tuple[str, ...] | None,
    ) -> tuple[int | None, tuple[str, ...]]:
        """Return from where to go on, and with which filter. Raises `ValueError`."""
        told = {"checkpoint": checkpoint, "cursor": cursor, "last_index": last_index}
        given = [name for name, value in told.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given, which are forms of the same: give one of them")
        if checkpoint is not None and checkpoint.job_id != self._job_id:
            raise ValueError(f"the checkpoint is one of {checkpoint.job_id}, and this is {self._job_id}")
        start = checkpoint or (self._start if not given else None)
        if last_index is not None:
            cursor = JobStreamCursor(last_index)
        after = start.last_index if start is not None else cursor.last_index if cursor is not None else None
        types = check_types(event_types) if event_types is not None or start is None else start.event_types
        return after, types

    async def _give_up(self) -> None:
        """Cancel the job because its reader is gone; not for long, and never raises for a server that is gone too."""
        with contextlib.suppress(ApothicError, TimeoutError):
            async with asyncio.timeout(CANCEL_S):
                await self._client._ask(routes.CANCEL, m.CancelJob(job=self._job_id), CANCEL_S)

    def __repr__(self) -> str:
        return f"<Job {self._job_id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other._job_id == self._job_id

    def __hash__(self) -> int:
        return hash(self._job_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Job, (self._job_id, self._client)) if self._start is None else (_attached, (self._start, self._client))


def _attached(checkpoint: JobStreamCheckpoint, client: ControlPlaneClient) -> Job:
    job = Job(checkpoint.job_id, client)
    job._start = checkpoint
    job.stand(checkpoint.last_index, checkpoint.event_types)
    return job


class JobAio(Facet[Job]):
    """The asynchronous side of `Job`."""

    status = awaiting(Job.status)
    logs = awaiting(Job.logs)
    cancel = awaiting(Job.cancel)
    wait = awaiting(Job.wait)
    stream_events = iterating(Job.stream_events)
    watch = iterating(Job.watch)
    wait_gen = iterating(Job.wait_gen)

    async def checkpoint(
        self,
        *,
        cursor: JobStreamCursor | None = None,
        last_index: int | None = None,
        event_types: list[str] | tuple[str, ...] | None = None,
    ) -> JobStreamCheckpoint:
        """Return the place behind the last event that the handle has yielded. See `Job.checkpoint`."""
        return self._handle.checkpoint(cursor=cursor, last_index=last_index, event_types=event_types)
