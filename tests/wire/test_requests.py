"""How much is asked for what: requests, ways to the library's loop, tasks. Counted, not timed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import sums
import yields
from rig import Server

from apothic.client.loop import LOOP
from apothic.transport import Transport


class Count:
    """What was asked of the control plane, and how."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.requests: list[str] = []
        self.hops = 0
        self.tasks = 0
        for name in ("ask", "open"):
            patch.setattr(Transport, name, self._noting(getattr(Transport, name)))
        loop = LOOP.running()
        threadsafe, create = loop.call_soon_threadsafe, loop.create_task

        def call_soon_threadsafe(*args: Any, **more: Any) -> Any:
            self.hops += 1
            return threadsafe(*args, **more)

        def create_task(*args: Any, **more: Any) -> asyncio.Task[Any]:
            self.tasks += 1
            return create(*args, **more)

        patch.setattr(loop, "call_soon_threadsafe", call_soon_threadsafe)
        patch.setattr(loop, "create_task", create_task)

    def _noting(self, method: Any) -> Any:
        async def noted(transport: Transport, route: Any, *args: Any, **more: Any) -> Any:
            self.requests.append(route.name)
            return await method(transport, route, *args, **more)

        return noted


@pytest.fixture(scope="module")
def deployed(server: Server) -> Iterator[None]:
    with server.lending(sums.app), server.lending(yields.app):
        yield


@pytest.fixture
def count(deployed: None, monkeypatch: pytest.MonkeyPatch) -> Count:
    return Count(monkeypatch)


def test_a_call_is_one_request_in_the_thread_of_its_caller(count: Count) -> None:
    assert sums.square.remote(3) == 9
    assert (count.requests, count.hops, count.tasks) == (["submit"], 0, 0)

    job = sums.square.spawn(4)
    assert job.wait() == 16
    assert (count.requests, count.hops, count.tasks) == (["submit", "submit", "result"], 0, 0)


async def test_an_awaited_call_is_one_request_too(count: Count) -> None:
    assert await sums.square.aio.remote(3) == 9
    assert count.requests == ["submit"]


def test_a_generator_is_one_request(count: Count) -> None:
    assert list(yields.count.remote_gen(3)) == [0, 1, 2]
    assert count.requests == ["submit"]


def test_a_mapped_item_has_no_task_and_no_way_to_the_loop_of_its_own(count: Count) -> None:
    items = 2_000
    assert sums.square.map(range(items)) == [number * number for number in range(items)]
    assert count.tasks < items / 4
    assert count.hops < items / 10
    assert count.requests.count("submit_batch") <= 12
