"""Jobs that live for their reader: when leaving cancels them and when not. Against a scripted control plane."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from scripted import CUT, HANG, JOB, Answer, Client, declared, end, item

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

    def __init__(self, *answers: Any, is_generator: bool = True) -> None:
        super().__init__(*answers)
        self.is_generator = is_generator
        self.submitted: list[m.Submit] = []
        self.cancelled: list[str] = []
        self.holding: asyncio.Event | None = None
        self.full = False

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


@pytest.mark.parametrize("delay_s", [0.0, 0.05], ids=["as it arrives", "before it has arrived"])
async def test_leaving_cancels_a_job_that_is_on_its_way(delay_s: float) -> None:
    plane = Plane(Answer(HANG))
    holding = plane.holding = asyncio.Event()
    loop = LOOP.running()
    await left_while_submitting(plane, lambda: loop.call_soon_threadsafe(lambda: loop.call_later(delay_s, holding.set)))
    assert plane.cancelled == [JOB]


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
