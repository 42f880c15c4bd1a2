"""A job from outside: its log lines as they come, and how it ended. Nothing here unpickles."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from apothic.cli.render import Screen, shown_value

if TYPE_CHECKING:
    from apothic.client.connection import ControlPlaneClient
    from apothic.client.stream import Arrival
    from apothic.protocol.messages import AppLogs, JobLogs, JobResult, LogLine

_WAIT_S = 30.0  # of one request; a server with a smaller limit answers sooner
_PAGE = 1_000
_EVERY_S = 0.25  # between looks at the jobs of a local entrypoint
_AT_ONCE = 50


def pages(client: ControlPlaneClient, job: str) -> Iterator[JobLogs]:
    """Yield the lines of a job that are kept now, page by page."""
    from apothic.protocol import messages as m
    from apothic.protocol.routes import LOGS

    after, page = -1, None
    while page is None or page.lines:
        page = client.ask_blocking(LOGS, m.ShowLogs(job=job, after=after, limit=_PAGE))
        yield page
        after = page.lines[-1].line if page.lines else after


def app_pages(
    client: ControlPlaneClient, app: str, function: str | None, *, follow: bool, after: int = -1
) -> Iterator[AppLogs]:
    """Yield the lines of an app that belong to no job, page by page; with `follow`, also those that are to come."""
    from apothic.protocol import messages as m
    from apothic.protocol.routes import APP_LOGS

    page = None
    while page is None or page.lines or follow:
        ask = m.ShowAppLogs(
            app=app, function=function, after=after, limit=_PAGE, wait_s=_WAIT_S if follow and page else 0
        )
        page = client.ask_blocking(APP_LOGS, ask)
        yield page
        after = page.lines[-1].line if page.lines else after


def arrivals(
    client: ControlPlaneClient,
    job: str,
    after: int | None,
    types: tuple[str, ...],
    *,
    snapshot: bool = False,
    timeout_s: float | None = None,
) -> Iterator[Arrival]:
    """Yield a job's events as they come, until its end, over restarts of the server; nothing is unpickled.

    Raises `WaitTimeoutError` after `timeout_s`.
    """
    from apothic.client.blocking import iterate
    from apothic.client.job import Job
    from apothic.client.patience import Patience
    from apothic.client.stream import Reader

    handle = Job(job, client)
    patience = Patience(handle, inf if timeout_s is None else timeout_s)
    reader = Reader(handle, after, types, patience, snapshot=snapshot)

    async def each() -> AsyncIterator[Arrival]:
        async for batch in reader.batches():
            for arrival in batch:
                yield arrival

    return iterate(each())


def lines(screen: Screen, client: ControlPlaneClient, job: str) -> Iterator[LogLine]:
    """Yield a job's lines as they come, until it has ended; of a gap, say how large it is."""
    from apothic.protocol.events import LOG

    for arrival in arrivals(client, job, None, (LOG,)):
        if arrival.event == LOG:
            yield _line(arrival)
        else:
            _tell_gap(screen, arrival)


def _line(arrival: Arrival) -> LogLine:
    import msgspec

    from apothic.protocol.messages import LogLine

    return msgspec.convert(arrival.data | {"index": arrival.index}, LogLine)


def _tell_gap(screen: Screen, arrival: Arrival) -> None:
    from apothic.cli.wording import gone
    from apothic.protocol.events import RESET

    if arrival.event == RESET:
        screen.note(f"{gone(arrival.data)} gone")


def watch(
    screen: Screen, client: ControlPlaneClient, job: str, after: int | None, types: tuple[str, ...], *, snapshot: bool
) -> int:
    """Show a job's events as they come; return the exit status. An interrupt tells how to go on."""
    from apothic.cli.wording import line
    from apothic.protocol import messages as m
    from apothic.protocol.events import END, JobStreamCheckpoint
    from apothic.protocol.lifecycle import Status
    from apothic.protocol.routes import SHOW_JOB

    place = -1 if after is None else after
    ended: str | None = None
    try:
        for arrival in arrivals(client, job, after, types, snapshot=snapshot):
            event, data, index = arrival.event, arrival.data, arrival.index
            screen.show(m.Event(event=event, index=index, data=data), partial(line, event, data, index))
            place = arrival.place
            if event == END:
                ended = data["status"]
    except KeyboardInterrupt:
        screen.note(f"to go on from here: apothic attach {JobStreamCheckpoint(job, place, types)}")
        raise
    if ended is None:  # the end came before `after`
        ended = client.ask_blocking(SHOW_JOB, m.ShowJob(job=job)).status
    return 0 if ended == Status.SUCCEEDED else 1


def outcome(client: ControlPlaneClient, job: str, *, timeout_s: float | None = None) -> JobResult:
    """Wait until the job has ended. Raises `WaitTimeoutError` after `timeout_s`; the job goes on then."""
    from apothic.clock import SystemClock
    from apothic.errors import WaitTimeoutError
    from apothic.protocol import messages as m
    from apothic.protocol.lifecycle import FINAL
    from apothic.protocol.routes import RESULT

    clock = SystemClock()
    begun = clock.monotonic()
    while True:
        left = _WAIT_S if timeout_s is None else begun + timeout_s - clock.monotonic()
        ended = client.ask_blocking(RESULT, m.ShowResult(job=job, wait_s=max(0.0, min(_WAIT_S, left))))
        if ended.job.status in FINAL:
            return ended
        if timeout_s is not None and clock.monotonic() - begun >= timeout_s:
            raise WaitTimeoutError(
                f"job {job} is {ended.job.status} after {timeout_s:g} s", hint=f"it goes on: apothic job wait {job}"
            )


def tell(screen: Screen, ended: JobResult) -> int:
    """Show how a job ended; return the exit status: 0 for a value, 1 for anything else."""
    failure = ended.job.failure
    if screen.as_json:
        screen.show(ended, "")
    elif ended.value is not None:
        screen.show(None, shown_value(ended.value))
    if ended.value is not None:
        return 0
    if failure is not None:
        screen.failure(failure)
    else:
        screen.usage(f"job {ended.job.id} is {ended.job.status}", f"apothic job show {ended.job.id} tells more")
    return 1


def attend(screen: Screen, client: ControlPlaneClient, job: str, *, timeout_s: float | None) -> int:
    """Show a job's log lines on stderr and its items as they come, then how it ended; return the exit status."""
    from apothic.cli.wording import value
    from apothic.protocol.events import ITEM, LOG
    from apothic.protocol.messages import Event

    try:
        for arrival in arrivals(client, job, None, (LOG, ITEM), timeout_s=timeout_s):
            if arrival.event == LOG:
                screen.log_beside(_line(arrival))
            elif arrival.event == ITEM:
                screen.show(Event(event=ITEM, index=arrival.index, data=arrival.data), partial(value, arrival.data))
            else:
                _tell_gap(screen, arrival)
        ended = outcome(client, job)
        nothing = ended.value is not None and ended.value.encoding == "json" and ended.value.data is None
        if ended.job.is_generator and nothing and not screen.as_json:
            return 0  # it has said all that it has to say
        return tell(screen, ended)
    except KeyboardInterrupt:
        screen.note(f"job {job} goes on; to stop it: apothic job cancel {job}")
        raise


@contextmanager
def shown_beside(screen: Screen, client: ControlPlaneClient, app: str) -> Iterator[None]:
    """While the body runs, show the log lines of jobs of that app that began since, the newest 50 at a time."""
    over = threading.Event()
    watch = _Watch(screen, client, app)

    def keep() -> None:
        while not over.wait(_EVERY_S):
            watch.look()

    thread = threading.Thread(target=keep, name="apothic-logs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        watch.look()


class _Watch:
    """The jobs of an app since now, and how far each one's lines have been shown."""

    def __init__(self, screen: Screen, client: ControlPlaneClient, app: str) -> None:
        from apothic.clock import SystemClock

        self._screen, self._client, self._app = screen, client, app
        self._since = SystemClock().now()
        self._shown: dict[str, int] = {}
        self._done: set[str] = set()

    def look(self) -> None:
        """Show what is new. Says nothing when the server cannot be asked: that is for the user's own code to tell."""
        from apothic.errors import ApothicError
        from apothic.protocol import messages as m
        from apothic.protocol.routes import LIST_JOBS, LOGS

        if self._client.base_url is None:
            return  # the user's code has asked nothing yet, and asking would start a server
        try:
            newest = self._client.ask_blocking(LIST_JOBS, m.ListJobs(app=self._app, limit=_AT_ONCE)).jobs
            fresh = [one.id for one in reversed(newest) if one.created_at >= self._since and one.id not in self._done]
            for job in dict.fromkeys([*self._shown, *fresh]):
                page = self._client.ask_blocking(LOGS, m.ShowLogs(job=job, after=self._shown.get(job, -1), limit=_PAGE))
                for line in page.lines:
                    self._screen.log_beside(line)
                    self._shown[job] = line.line
                self._shown.setdefault(job, -1)
                if page.ended and len(page.lines) < _PAGE:
                    del self._shown[job]
                    self._done.add(job)
        except ApothicError:
            return
