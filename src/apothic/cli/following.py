"""A job from outside: its log lines as they come, and how it ended. Nothing here unpickles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from apothic.cli.render import Screen, shown_value

if TYPE_CHECKING:
    from apothic.client.connection import ControlPlaneClient
    from apothic.protocol.messages import JobLogs, JobResult, LogLine

_WAIT_S = 30.0  # of one request; a server with a smaller limit answers sooner
_PAGE = 1_000


def pages(client: ControlPlaneClient, job: str, *, follow: bool, after: int = -1) -> Iterator[JobLogs]:
    """Yield the retained lines of a job, page by page; with `follow`, until the job has ended."""
    from apothic.protocol import messages as m
    from apothic.protocol.routes import LOGS

    while True:
        wait_s = _WAIT_S if follow else 0.0
        page = client.ask_blocking(LOGS, m.ShowLogs(job=job, after=after, limit=_PAGE, wait_s=wait_s))
        yield page
        if page.lines:
            after = page.lines[-1].line
        elif page.ended or not follow:
            return


def lines(client: ControlPlaneClient, job: str, *, follow: bool) -> Iterator[LogLine]:
    """Yield the retained lines of a job; with `follow`, until it has ended."""
    for page in pages(client, job, follow=follow):
        yield from page.lines


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
    """Show a job's log lines on stderr as they come, then how it ended; return the exit status."""
    try:
        for line in lines(client, job, follow=True):
            screen.log_beside(line)
        return tell(screen, outcome(client, job, timeout_s=timeout_s))
    except KeyboardInterrupt:
        screen.note(f"job {job} goes on; to stop it: apothic job cancel {job}")
        raise
