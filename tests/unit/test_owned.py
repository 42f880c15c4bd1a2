"""Jobs that live for their reader: when leaving cancels them and when not. Against a scripted control plane."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
from scripted import CUT, HANG, JOB, Answer, Client, declared, end, greeting, item, page

from apothic import RemoteFunction
from apothic.client import patience
from apothic.client.loop import LOOP
from apothic.errors import JobStreamResetError, QueueFullError, WaitTimeoutError
from apothic.protocol import messages as m
from apothic.protocol.specs import FunctionOptions


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "BACKOFF_S", (0.0, 0.0))


class Plane(Client):
    """A control plane that has one function, takes jobs of it and notes what is cancelled."""

    timeout_s = 60.0
    settings = SimpleNamespace(payload_limit=1 << 30)

    def __init__(self, *answers: Any, is_generator: bool = True, streams: bool = False) -> None:
        super().__init__(*answers)
        self.is_generator = is_generator
        self.streams = streams  # answers a submission with the job's stream
        self.opened: list[Answer] = []
        self.submitted: list[m.Submit] = []
        self.cancelled: list[str] = []
        self.holding: asyncio.Event | None = None
        self.full = False

    async def open(self, route: Any, ask: Any, *, accept: str) -> Answer:
        if route.name != "submit":
            answer = await super().open(route, ask, accept=accept)
        elif not self.streams:
            answer = Answer(content_type="application/msgpack")
        else:
            await self._ask(route, ask, None)
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            answer.job = JOB
        self.opened.append(answer)
        return answer

    async def _ask(self, route: Any, ask: Any, timeout_s: float | None) -> Any:
        if route.name == "find_functions":
            view = m.FunctionView(
                id="fn_1", app="a", name="f", kind="function", deployment_id="dep_1", is_generator=self.is_generator,
                options=FunctionOptions(),
            )  # fmt: skip
            return m.FunctionList(functions=[view])
        if route.name == "submit":
            self.submitted.append(ask)
            if self.full:
                raise QueueFullError(details={"retry_after_s": 5.0})
            if self.holding is not None:
                await self.holding.wait()
            return m.JobResult(job=self.view)
        if route.name == "cancel":
            self.cancelled.append(ask.job)
            return m.JobStatus(status=self.view.status)
        return await super()._ask(route, ask, timeout_s)


def function(plane: Plane) -> RemoteFunction:
    return RemoteFunction("a", "f", plane)  # type: ignore[arg-type]


def test_items_are_held_for_the_reader_and_events_are_not() -> None:
    plane = Plane(Answer(item(0, 0) + end(1)), Answer(item(0, 0) + end(1)))
    assert list(function(plane).remote_gen()) == [0]
    assert [event.event for event in function(plane).remote_events(event_types=["job.log"])][-1] == "job.end"
    assert [ask.attached for ask in plane.submitted] == [True, False]
    assert [(ask.attached, ask.type, ask.after) for ask in plane.asked] == [
        (True, ["job.stream_item"], -1), (False, ["job.log"], -1),
    ]  # fmt: skip
    assert plane.cancelled == []


def test_a_generator_is_submitted_and_read_with_one_request() -> None:
    plane = Plane(Answer(greeting(-1), item(0, 0) + end(1)), streams=True)
    assert list(function(plane).remote_gen()) == [0]
    assert (len(plane.submitted), len(plane.opened), plane.asked, plane.polled) == (1, 1, [], [])
    assert plane.opened[0].closed


def test_a_stream_that_came_with_the_submission_is_read_on_where_it_was_cut() -> None:
    plane = Plane(Answer(item(0, 0), CUT), Answer(item(0, 0) + item(1, 1) + end(2)), streams=True)
    assert list(function(plane).remote_gen()) == [0, 1]
    assert [(ask.attached, ask.after) for ask in plane.asked] == [(True, 0)]
    assert len(plane.submitted) == 1


def test_a_submission_whose_answer_is_lost_is_sent_again_as_the_same() -> None:
    plane = Plane(CUT, Answer(item(0, 0) + end(1)), streams=True)
    assert list(function(plane).remote_gen()) == [0]
    assert len({ask.idempotency_key for ask in plane.submitted}) == 1
    assert (len(plane.submitted), len(plane.asked)) == (2, 1)


def test_where_streams_do_not_get_through_a_submission_is_not_answered_with_one() -> None:
    plane = Plane(streams=True)
    plane.paged_until = inf
    plane.pages = [page(item(0, 0), end(1), next_index=1, end=True)]
    assert list(function(plane).remote_gen()) == [0]
    assert plane.opened == []


def test_leaving_a_stream_that_came_with_the_submission_closes_it_and_cancels_the_job() -> None:
    plane = Plane(Answer(item(0, 0), HANG), streams=True)
    with contextlib.closing(function(plane).remote_gen()) as items:  # type: ignore[type-var]
        assert next(items) == 0
    assert (plane.cancelled, plane.opened[0].closed) == ([JOB], True)


def test_nothing_is_submitted_before_the_first_item_is_asked_for() -> None:
    plane = Plane()
    function(plane).remote_gen()
    function(plane).remote_events()
    assert plane.submitted == []


def test_leaving_early_cancels_the_job_once() -> None:
    plane = Plane(Answer(item(0, 0), HANG))
    items = function(plane).remote_gen()
    next(items)
    items.close()  # type: ignore[attr-defined]
    items.close()  # type: ignore[attr-defined]
    assert plane.cancelled == [JOB]


def raised(plane: Plane, **more: Any) -> None:
    for _ in function(plane).remote_gen(**more):
        pass


@pytest.mark.parametrize(
    ("answers", "error", "timeout_s"),
    [
        ([Answer(item(0, 0), HANG)], WaitTimeoutError, 0.1),
        ([Answer(item(0, 0) + declared(9))], JobStreamResetError, 30.0),
    ],
)
def test_after_an_error_the_job_goes_on(answers: list[Any], error: type[Exception], timeout_s: float) -> None:
    plane = Plane(*answers)
    with pytest.raises(error):
        raised(plane, timeout_s=timeout_s)
    assert plane.cancelled == []


def test_losing_the_network_does_not_cancel() -> None:
    plane = Plane(CUT, Answer(item(0, 0), CUT), CUT, CUT, Answer(item(1, 1)), CUT, Answer(end(2)))
    assert list(function(plane).remote_gen()) == [0, 1]
    assert plane.cancelled == []


def test_a_plain_function_is_refused_before_anything_is_submitted() -> None:
    plane = Plane(is_generator=False)
    with pytest.raises(TypeError, match=r"use remote$"):
        next(function(plane).remote_gen())
    assert plane.submitted == []


async def left_while_submitting(plane: Plane, then: Callable[[], Any] = lambda: None) -> None:
    reading = asyncio.create_task(anext(function(plane).aio.remote_gen()))  # type: ignore[arg-type]
    while not plane.submitted:
        await asyncio.sleep(0)
    reading.cancel()
    then()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("delay_s", [0.0, 0.05], ids=["as it arrives", "before it has arrived"])
async def test_leaving_cancels_a_job_that_is_on_its_way(delay_s: float, streams: bool) -> None:
    plane = Plane(Answer(HANG), streams=streams)
    holding = plane.holding = asyncio.Event()
    loop = LOOP.running()
    await left_while_submitting(plane, lambda: loop.call_soon_threadsafe(lambda: loop.call_later(delay_s, holding.set)))
    assert plane.cancelled == [JOB]
    assert all(answer.closed for answer in plane.opened)


async def test_leaving_while_the_queue_is_full_waits_for_nothing() -> None:
    plane = Plane()
    plane.full = True
    async with asyncio.timeout(4.0):  # the queue would be asked again after 5 s
        await left_while_submitting(plane)
    assert plane.cancelled == []


def test_a_control_plane_that_is_gone_does_not_keep_a_reader_from_leaving() -> None:
    plane = Plane(Answer(item(0, 0), HANG))
    ask = plane._ask

    async def gone(route: Any, *more: Any) -> Any:
        if route.name == "cancel":
            raise CUT
        return await ask(route, *more)

    plane._ask = gone  # type: ignore[method-assign]
    with contextlib.closing(function(plane).remote_gen()) as items:  # type: ignore[type-var]
        next(items)
