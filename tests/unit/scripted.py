"""A control plane that answers by a script, for what reads its streams: no socket, no process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from apothic import Job
from apothic.errors import ServerUnavailableError
from apothic.protocol import messages as m
from apothic.protocol import values
from apothic.protocol.events import END, ITEM, LOG, RESET, SNAPSHOT, STATUS, frame
from apothic.protocol.lifecycle import Status
from apothic.protocol.session import Packed

JOB = "job_0123456789abcdefghjkmnpqrs"
HANG: Any = object()  # a read that never ends
CUT = ServerUnavailableError("cut", url="http://scripted")


class Answer:
    """One connection: what each read gives, then its end."""

    def __init__(
        self,
        *steps: Any,
        status: int = 200,
        content_type: str = "text/event-stream; charset=utf-8",
        job: str | None = None,
    ) -> None:
        self.job = job
        self.status = status
        self.content_type = content_type
        self.closed = False
        self.reads = 0
        self._steps = list(steps)

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        self.reads += 1
        if not self._steps:
            return b""
        step = self._steps.pop(0)
        if step is HANG:
            await asyncio.Event().wait()
        if isinstance(step, Exception):
            raise step
        return step.encode() if isinstance(step, str) else bytes(step)

    def close(self) -> None:
        self.closed = True


class Client:
    """Stands for a `ControlPlaneClient`. Connections and pages are taken from the script in turn, and `asked` noted."""

    def __init__(self, *answers: Any, pages: Sequence[Any] = (), view: m.JobView | None = None) -> None:
        self.paged_until = 0.0
        self.asked: list[m.FollowJob] = []
        self.polled: list[m.FollowJob] = []
        self.blobs: dict[str, bytes] = {}
        self.other: list[str] = []
        self.view = view or job_view()
        self.result: m.JobResult | None = None
        self.answers = list(answers)
        self.pages = list(pages)

    async def open(self, route: Any, ask: m.FollowJob, *, accept: str) -> Answer:
        assert (route.name, accept) == ("events", "text/event-stream")
        self.asked.append(ask)
        answer = self.answers.pop(0) if self.answers else Answer(status=204)
        if callable(answer):
            answer = answer(ask)
        if answer is HANG:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    async def _ask(self, route: Any, ask: Any, timeout_s: float | None) -> Any:
        await asyncio.sleep(0)
        if route.name == "events":
            self.polled.append(ask)
            page = self.pages.pop(0) if self.pages else EMPTY
            if page is HANG:
                await asyncio.Event().wait()
            if isinstance(page, Exception):
                raise page
            return page
        self.other.append(route.name)
        if route.name == "show_job":
            return self.view
        assert route.name == "result" and self.result is not None
        return self.result

    async def fetch(self, sha256: str, dest: Path) -> None:
        dest.write_bytes(self.blobs[sha256])


EMPTY = m.EventPage(events=[], next_index=-1, head_index=-1, oldest_index=None, end=False)


def job(client: Client) -> Job:
    """Return the job's handle."""
    return Job(JOB, client)  # type: ignore[arg-type]


def job_view(*, is_generator: bool = True, status: str = "running", failure: m.Failure | None = None) -> m.JobView:
    """Return what the server says of the job."""
    return m.JobView(
        id=JOB, app="a", function="count", function_id="fn_1", deployment_id="dep_1", status=Status(status), attempt=1,
        created_at=0.0, is_generator=is_generator, failure=failure,
    )  # fmt: skip


# --- what a server sends ----------------------------------------------------------------------------------------


def sent(event: str, data: dict[str, Any], index: int | None) -> str:
    """Return a frame."""
    return frame(event, msgspec.json.encode(data).decode(), index)


def greeting(after: int) -> str:
    """Return the first bytes of a stream."""
    return f"retry: 1000\nid: {after}\n\n"


def item(index: int, number: int, value: Any = None, **more: Any) -> str:
    """Return the frame of an item, by default of its own number."""
    wire = told(values.pack(number if value is None else value, payload_limit=1 << 30).packed)
    return sent(ITEM, {"item_index": number, "attempt": 1, "value": wire} | more, index)


def told(packed: Packed) -> dict[str, Any]:
    """Return a value as an event's data has it."""
    wire: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(values.to_wire(packed, binary=False)))
    return wire


def line(index: int, number: int) -> str:
    """Return the frame of a line of output."""
    return sent(LOG, {"stream": "stdout", "text": f"line {number}", "attempt": 1, "at": 0.0, "line": number}, index)


def status(index: int, status: str, attempt: int) -> str:
    """Return the frame of a move."""
    return sent(STATUS, {"status": status, "attempt": attempt, "at": 0.0}, index)


def end(index: int, status: str = "succeeded") -> str:
    """Return the last frame of all."""
    return sent(END, {"status": status, "attempts": 1, "last_index": index}, index)


def reset(index: int, reason: str = "window_rotated", **more: Any) -> dict[str, Any]:
    """Return the data of a reset."""
    return {
        "reason": reason, "requested_index": -1, "resume_index": index, "oldest_index": None, "head_index": index,
        "retained_from": {}, "trimmed": {}, "status": "running", "attempt": 1,
    } | more  # fmt: skip


def declared(index: int, reason: str = "window_rotated", **more: Any) -> str:
    """Return the frame of a reset."""
    return sent(RESET, reset(index, reason, **more), index)


def snapshot(as_of: int, *, attempt: int = 1, lines: int = 0, items: int = 0) -> dict[str, Any]:
    """Return the data of a snapshot."""
    return {
        "as_of_index": as_of, "status": "running", "attempt": attempt, "counts": {LOG: lines, ITEM: items},
        "result": None, "error": None,
    }  # fmt: skip


def pictured(as_of: int, **more: Any) -> str:
    """Return the frame of a snapshot."""
    return sent(SNAPSHOT, snapshot(as_of, **more), None)


def page(*frames: str, next_index: int, end: bool = False, **more: Any) -> m.EventPage:
    """Return what a server that is asked for pages says instead of those frames."""
    events = []
    for text in frames:
        lines = dict(each.split(": ", 1) for each in text.strip().splitlines())
        data = msgspec.json.decode(lines["data"])
        events.append(m.Event(event=lines["event"], index=int(lines["id"]), data=data))
    return m.EventPage(events=events, next_index=next_index, head_index=next_index, oldest_index=0, end=end, **more)


def cut_after(make: Callable[[int], str], size: int, how: Any = None) -> Callable[[m.FollowJob], Answer]:
    """Return a connection that sends what `make` gives for its cursor, and breaks off after so many bytes."""

    def answer(ask: m.FollowJob) -> Answer:
        data = make(ask.after if ask.after is not None else -1).encode()[:size]
        return Answer(*([data] if data else []), *([how] if how is not None else []))

    return answer
