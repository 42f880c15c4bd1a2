"""The handle of one job: its status, its logs, its result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from apothic.client.blocking import Facet, awaiting, blocking
from apothic.client.connection import ControlPlaneClient, client_for
from apothic.client.outcome import Outcome
from apothic.clock import SystemClock
from apothic.errors import InvalidRequestError, WaitTimeoutError
from apothic.protocol import ids, routes
from apothic.protocol import messages as m
from apothic.protocol.lifecycle import FINAL

POLL_S = 60.0  # the longest time that one request may wait
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

    @classmethod
    def attach(cls, text: str, *, client: ControlPlaneClient | None = None) -> Job:
        """Return the handle for a job id, from any machine. Asks nobody. Raises `InvalidRequestError` for other text.

        >>> Job.attach("job_0123456789abcdefghjkmnpqrs")
        <Job job_0123456789abcdefghjkmnpqrs>
        """
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

    @blocking
    async def status(self, /) -> str:
        """Return `queued`, `starting`, `running`, `retrying`, `cancelling`, or how it ended: `succeeded`, `failed`,
        `cancelled`, `timed_out`. Raises `NotFoundError` for a job that does not exist."""
        return (await self._client._ask(routes.SHOW_JOB, m.ShowJob(job=self._job_id), None)).status.value

    @blocking
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

    @blocking
    async def cancel(self, /) -> str:
        """Cancel the job; return its status at commit: `cancelled`, `cancelling`, or the final one it had already.

        Never raises for a job that has ended.
        """
        return (await self._client._ask(routes.CANCEL, m.CancelJob(job=self._job_id), None)).status.value

    @blocking
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
                await clock.sleep(pause)
        return await Outcome(self, known).value()

    def __repr__(self) -> str:
        return f"<Job {self._job_id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other._job_id == self._job_id

    def __hash__(self) -> int:
        return hash(self._job_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return Job, (self._job_id, self._client)


class JobAio(Facet[Job]):
    """The asynchronous side of `Job`."""

    status = awaiting(Job.status)
    logs = awaiting(Job.logs)
    cancel = awaiting(Job.cancel)
    wait = awaiting(Job.wait)
