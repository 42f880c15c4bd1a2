"""How a generator is driven inside a container: to its end, or to its clean-up, whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from channelends import KEY, Ends, item, numbers

from apothic.agent.channel import TOGETHER
from apothic.agent.frames import Cancel, Taken, encode
from apothic.agent.items import IN_FLIGHT_ITEMS, Flow, drive, drive_async
from apothic.agent.window import JobCancelled


@pytest.fixture
def ends() -> Iterator[Ends]:
    with contextlib.closing(Ends()) as made:
        yield made


# --- plain generators -------------------------------------------------------------------------------------------


def _shipper(flow: Flow) -> Callable[[Any], bool]:
    return lambda value: flow.ship(item(value))


def test_a_generator_is_run_to_its_end_and_its_value_returned(ends: Ends) -> None:
    def generator() -> Any:
        yield 0
        yield 1
        return "end"

    flow = ends.flow()

    assert drive(generator(), flow, _shipper(flow)) == "end"
    assert flow.sent == 2 and numbers(ends.items(2)) == [0, 1]


def test_a_generator_waits_for_credit_and_goes_on_with_it(ends: Ends) -> None:
    given: list[int] = []

    def pause() -> None:
        assert sum(len(frame.values) for frame in ends.items(flow.sent - sum(given))) == flow.sent - sum(given)
        given.append(flow.sent - sum(given))
        flow.taken(flow.sent)

    flow = ends.flow(pause)

    assert drive((n % 10 for n in range(600)), flow, _shipper(flow)) is None
    assert given == [IN_FLIGHT_ITEMS, IN_FLIGHT_ITEMS]


def test_a_generator_that_is_refused_an_item_is_closed(ends: Ends) -> None:
    told: list[str] = []

    def generator() -> Any:
        try:
            yield 1
        except GeneratorExit:
            told.append("closed")
            raise

    def ship(value: Any) -> bool:
        raise ValueError("no such item")

    with pytest.raises(ValueError, match="no such item"):
        drive(generator(), ends.flow(), ship)
    assert told == ["closed"]


def _cancelled(ends: Ends) -> Flow:
    """Return a flow whose generator is cancelled while it waits at its first `yield`."""

    def pause() -> None:
        ends.window.cancelled.add(KEY)

    flow = ends.flow(pause)
    while flow.sent < IN_FLIGHT_ITEMS - 1:
        flow.ship(item(0))
    return flow


def test_a_cancellation_strikes_at_a_yield_that_waits(ends: Ends) -> None:
    told: list[str] = []

    def generator() -> Any:
        try:
            yield 1
        except JobCancelled:
            told.append("cancelled")
            raise
        finally:
            told.append("cleaned")

    flow = _cancelled(ends)
    with pytest.raises(JobCancelled):
        drive(generator(), flow, _shipper(flow))
    assert told == ["cancelled", "cleaned"] and flow.sent == IN_FLIGHT_ITEMS


def test_a_generator_may_return_when_it_is_cancelled(ends: Ends) -> None:
    def generator() -> Any:
        try:
            yield 1
        except JobCancelled:
            return "well"

    flow = _cancelled(ends)
    assert drive(generator(), flow, _shipper(flow)) == "well"


def test_a_generator_that_goes_on_after_its_cancellation_is_closed(ends: Ends) -> None:
    told: list[str] = []

    def generator() -> Any:
        while True:
            try:
                yield 1
            except JobCancelled:
                told.append("cancelled")
            except GeneratorExit:
                told.append("closed")
                raise

    flow = _cancelled(ends)
    with pytest.raises(JobCancelled):
        drive(generator(), flow, _shipper(flow))
    assert told == ["cancelled", "closed"] and flow.sent == IN_FLIGHT_ITEMS


def test_a_generator_that_will_not_be_closed_is_an_error(ends: Ends) -> None:
    def generator() -> Any:
        for _ in range(3):
            with contextlib.suppress(BaseException):
                yield 1

    flow = _cancelled(ends)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        drive(generator(), flow, _shipper(flow))


def test_a_generator_that_catches_the_cancellation_in_its_own_code_is_closed_at_its_next_yield(ends: Ends) -> None:
    told: list[str] = []

    def generator() -> Any:
        try:
            ends.window.cancelled.add(KEY)
            ends.window.strike(KEY)  # as the signal does
        except JobCancelled:
            told.append("cancelled")
        try:
            yield 1
        except GeneratorExit:
            told.append("closed")
            raise

    flow = ends.flow()
    with pytest.raises(JobCancelled):
        drive(generator(), flow, _shipper(flow))
    assert told == ["cancelled", "closed"] and flow.sent == 0


def test_an_item_that_was_yielded_just_before_the_cancellation_is_sent(ends: Ends) -> None:
    def ship(value: Any) -> bool:
        if not struck:  # between the `yield` and the first step of the shipping
            struck.append(True)
            raise JobCancelled
        return flow.ship(item(value))

    def generator() -> Any:
        yield 7

    struck: list[bool] = []
    flow = ends.flow()
    with pytest.raises(JobCancelled):
        drive(generator(), flow, ship)
    assert numbers(ends.items(1)) == [7]


def test_the_main_thread_hears_of_credit_while_it_waits(ends: Ends) -> None:
    flow = ends.flow()
    ends.channel.on_taken = lambda frame: flow.taken(frame.upto)
    ends.ours.sendall(encode(Taken(job="job_1", attempt=1, upto=IN_FLIGHT_ITEMS)))

    drive((1 for _ in range(IN_FLIGHT_ITEMS + 1)), flow, _shipper(flow))

    assert flow.sent == IN_FLIGHT_ITEMS + 1


def test_credit_that_a_late_signal_takes_in_is_not_waited_for(ends: Ends) -> None:
    flow = ends.flow()
    ends.channel.on_taken = lambda frame: flow.taken(frame.upto)
    while flow.is_open:
        flow.ship(item(0))
    ends.window.open(KEY)
    before = signal.signal(signal.SIGUSR1, ends.window.on_signal)

    def late() -> None:
        while Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            pass  # until the main thread waits
        ends.window.look = look
        os.kill(os.getpid(), signal.SIGUSR1)

    def look() -> None:
        ends.ours.sendall(encode(Taken(job="job_1", attempt=1, upto=1)))  # it comes while the handler looks
        ends.channel.look()

    thread = threading.Thread(target=late)
    thread.start()
    try:
        while not flow.is_open:
            ends.channel.attend()
    finally:
        thread.join(10)
        signal.signal(signal.SIGUSR1, before)


def test_a_cancellation_that_comes_as_a_frame_strikes_once(ends: Ends) -> None:
    ends.window.open(KEY)
    ends.ours.sendall(encode(Cancel(job="job_1", attempt=1)))

    def generator() -> Any:
        try:
            yield from (1 for _ in range(IN_FLIGHT_ITEMS))
        finally:
            ends.window.on_signal()  # its signal, a little late

    flow = ends.flow()
    with pytest.raises(JobCancelled):
        drive(generator(), flow, _shipper(flow))


def test_a_generator_that_waits_ends_with_its_agent(ends: Ends) -> None:
    flow = ends.flow()
    ends.ours.shutdown(socket.SHUT_WR)

    with pytest.raises(BrokenPipeError):
        drive((1 for _ in range(IN_FLIGHT_ITEMS)), flow, _shipper(flow))


# --- async generators -------------------------------------------------------------------------------------------


class Asked:
    """An async generator that tells what happens to it; a flow that is cancelled while it waits for credit."""

    def __init__(self, ends: Ends, generator: Callable[[list[str]], Any]) -> None:
        self.told: list[str] = []
        self.flow = ends.flow(self._pause)
        while self.flow.sent < IN_FLIGHT_ITEMS - 1:
            self.flow.ship(item(0))
        self._window = ends.window
        self._generator = generator(self.told)

    async def _pause(self) -> None:
        self._window.struck.add(KEY)
        self._task.cancel()
        await asyncio.Event().wait()

    async def run(self) -> None:
        self._task = asyncio.create_task(drive_async(self._generator, self.flow, _shipper(self.flow)))
        await self._task


async def test_an_async_generator_cleans_up_when_it_is_cancelled_at_a_yield(ends: Ends) -> None:
    async def generator(told: list[str]) -> Any:
        try:
            yield 1
        except asyncio.CancelledError:
            told.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)
            told.append("cleaned")

    asked = Asked(ends, generator)
    with pytest.raises(asyncio.CancelledError):
        await asked.run()
    assert asked.told == ["cancelled", "cleaned"] and asked.flow.sent == IN_FLIGHT_ITEMS


async def test_an_async_generator_may_end_when_it_is_cancelled(ends: Ends) -> None:
    async def generator(told: list[str]) -> Any:
        try:
            yield 1
        except asyncio.CancelledError:
            told.append("well")

    asked = Asked(ends, generator)
    await asked.run()
    assert asked.told == ["well"]


async def test_an_async_generator_that_goes_on_after_its_cancellation_is_closed(ends: Ends) -> None:
    async def generator(told: list[str]) -> Any:
        while True:
            try:
                yield 1
            except asyncio.CancelledError:
                told.append("cancelled")
            except GeneratorExit:
                told.append("closed")
                raise

    asked = Asked(ends, generator)
    with pytest.raises(asyncio.CancelledError):
        await asked.run()
    assert asked.told == ["cancelled", "closed"]


async def test_an_async_generator_that_is_refused_an_item_is_closed(ends: Ends) -> None:
    told: list[str] = []

    async def generator() -> Any:
        try:
            yield 1
        finally:
            told.append("closed")

    def ship(value: Any) -> bool:
        raise ValueError("no such item")

    with pytest.raises(ValueError, match="no such item"):
        await drive_async(generator(), ends.flow(), ship)
    assert told == ["closed"]


async def test_an_async_generator_that_never_waits_lets_others_run(ends: Ends) -> None:
    async def generator() -> Any:
        for _ in range(IN_FLIGHT_ITEMS - 1):
            yield 1

    turns: list[int] = []
    flow = ends.flow()
    asyncio.get_running_loop().call_soon(lambda: turns.append(flow.sent))

    await drive_async(generator(), flow, _shipper(flow))

    assert turns and turns[0] <= TOGETHER + 1
