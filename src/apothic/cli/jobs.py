"""Jobs: list, show, logs, watch, story, wait, cancel, retry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from apothic.cli.connection import client, reaching
from apothic.cli.render import Screen, table, when
from apothic.cli.wording import WAITS

if TYPE_CHECKING:
    from apothic.protocol.messages import JobView

STATUSES = (
    "queued", "starting", "running", "retrying", "cancelling", "succeeded", "failed", "cancelled", "timed_out"
)  # fmt: skip


@click.group()
def job() -> None:
    """Jobs."""


@job.command("list")
@click.option("--app", help="Of this app only.")
@click.option("--function", help="Of this function only, by name or id.")
@click.option("--status", type=click.Choice(STATUSES), help="In this state only.")
@click.option("--after", help="Go on after this cursor, which the page before named.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, show_default=True, help="At most so many.")
@reaching
@click.pass_obj
def list_(
    screen: Screen, app: str | None, function: str | None, status: str | None, after: str | None, limit: int
) -> None:
    """List jobs, newest first."""
    from apothic.protocol import messages as m
    from apothic.protocol.lifecycle import Status
    from apothic.protocol.routes import LIST_JOBS

    state = Status(status) if status else None
    ask = m.ListJobs(app=app, function=function, status=state, after=after, limit=limit)
    found = client().ask_blocking(LIST_JOBS, ask)
    rows = [[one.id, one.app, one.function, one.status, one.attempt, when(one.created_at)] for one in found.jobs]
    screen.show(found, lambda: table(["job", "app", "function", "status", "attempt", "created"], rows))
    if found.next and not screen.as_json:
        screen.note(f"more: --after {found.next}")


@job.command()
@click.argument("job_id", metavar="JOB")
@reaching
@click.pass_obj
def show(screen: Screen, job_id: str) -> None:
    """Show one job: where it stands, why it waits, why it failed."""
    from apothic.protocol import messages as m
    from apothic.protocol.routes import SHOW_JOB

    found = client().ask_blocking(SHOW_JOB, m.ShowJob(job=job_id))
    screen.show(found, lambda: described(found))


def described(view: JobView) -> str:
    """Return a job in words, a line for each thing that there is to say."""
    told = {
        "job": view.id,
        "function": f"{view.app}.{view.function} ({view.function_id})",
        "deployment": view.deployment_id,
        "status": view.status + (f" ({view.reason})" if view.reason else ""),
        "because": WAITS.get(view.reason) if view.reason else None,
        "ahead": view.ahead,
        "attempt": view.attempt or None,
        "parent": view.parent,
        "retry of": view.retry_of,
        "created": when(view.created_at),
        "runs at": when(view.run_at) if view.run_at else None,
        "started": when(view.started_at) if view.started_at else None,
        "ended": when(view.ended_at) if view.ended_at else None,
    }
    lines = [f"{name:<10}  {value}" for name, value in told.items() if value is not None]
    failure = view.failure
    if failure is not None:
        exit_ = f", {failure.exit}" if failure.exit else ""
        lines.append(f"{'failure':<10}  {failure.kind}{exit_}: {failure.type}: {failure.message}")
        lines += [text.rstrip() for text in (failure.log_tail, failure.traceback) if text]
    return "\n".join(lines)


@job.command()
@click.argument("job_id", metavar="JOB")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
@reaching
@click.pass_obj
def logs(screen: Screen, job_id: str, follow: bool) -> None:
    """Show a job's output, stdout and stderr in order. With --json, one line of JSON for each."""
    from apothic.cli.following import lines, pages

    if follow:
        for line in lines(screen, client(), job_id):
            screen.log(line)
        return
    told = False
    for page in pages(client(), job_id):
        if page.trimmed and not told:
            screen.note(f"{page.trimmed:,} older lines are gone")
        told = True
        for line in page.lines:
            screen.log(line)


def _types(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...]:
    from apothic.protocol.events import check_types

    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    try:
        return check_types([name if name.startswith("job.") else f"job.{name}" for name in names])
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@job.command()
@click.argument("job_id", metavar="JOB")
@click.option("--after", type=click.IntRange(min=-1), help="Go on behind this index; the default is all there is.")
@click.option("--types", callback=_types, help="Of these types only, with commas between them: log,stream_item.")
@click.option("--snapshot", is_flag=True, help="Begin with how the job stands.")
@reaching
@click.pass_obj
def watch(screen: Screen, job_id: str, after: int | None, types: tuple[str, ...], snapshot: bool) -> int:
    """Show a job's events as they come, until its end; exit with 1 if it has failed. Restarts of the server are waited
    out. With --json, one line of JSON for each event."""
    from apothic.cli.following import watch

    return watch(screen, client(), job_id, after, types, snapshot=snapshot)


@click.command()
@click.argument("text", metavar="CHECKPOINT")
@reaching
@click.pass_obj
def attach(screen: Screen, text: str) -> int:
    """Go on with a job's stream from a checkpoint, job_…@index+types, or with a job's id from its start."""
    from apothic.cli.following import watch
    from apothic.protocol.events import JobStreamCheckpoint

    place = JobStreamCheckpoint.parse(text if "@" in text else f"{text}@-1")
    return watch(screen, client(), place.job_id, place.last_index, place.event_types, snapshot=False)


@job.command()
@click.argument("job_id", metavar="JOB")
@reaching
@click.pass_obj
def story(screen: Screen, job_id: str) -> None:
    """Explain one job: each move, when and why, its attempts and their errors, what it printed and yielded in sum."""
    from apothic.cli import wording
    from apothic.protocol import messages as m
    from apothic.protocol.events import ERROR, RESULT, STATUS
    from apothic.protocol.routes import EVENTS, SHOW_JOB

    asked = client()
    view = asked.ask_blocking(SHOW_JOB, m.ShowJob(job=job_id))
    # Of these types nothing is ever trimmed, and of a thousand moves the first tell the story.
    ask = m.FollowJob(job=job_id, after=-1, type=[STATUS, RESULT, ERROR], snapshot=True)
    page = asked.ask_blocking(EVENTS, ask)
    told = {"job": view, "snapshot": page.snapshot, "events": page.events}
    screen.show(told, lambda: wording.story(view, page.snapshot, [(one.event, one.data) for one in page.events]))


@job.command()
@click.argument("job_id", metavar="JOB")
@click.option("--timeout-s", type=click.FloatRange(min=0), help="Wait at most so long; the job goes on after it.")
@reaching
@click.pass_obj
def wait(screen: Screen, job_id: str, timeout_s: float | None) -> int:
    """Wait until a job has ended, and show its result."""
    from apothic.cli.following import outcome, tell

    return tell(screen, outcome(client(), job_id, timeout_s=timeout_s))


@job.command()
@click.argument("job_id", metavar="JOB")
@reaching
@click.pass_obj
def cancel(screen: Screen, job_id: str) -> None:
    """Cancel a job. Says what it is now; one that has ended stays as it is."""
    from apothic.protocol import messages as m
    from apothic.protocol.routes import CANCEL

    now = client().ask_blocking(CANCEL, m.CancelJob(job=job_id))
    screen.show(now, f"{job_id} is {now.status}")


@job.command()
@click.argument("job_id", metavar="JOB")
@reaching
@click.pass_obj
def retry(screen: Screen, job_id: str) -> None:
    """Submit an ended job's input once more, as a new job with the same options, and say which job that is."""
    from apothic.protocol import messages as m
    from apothic.protocol.routes import RETRY

    new = client().ask_blocking(RETRY, m.RetryJob(job=job_id))
    screen.show(new, f"{new.id} is {new.status}; apothic job watch {new.id} follows it")
