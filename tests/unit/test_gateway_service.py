"""Who gets the next request, and what is wanted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from apothic.clock import ManualClock
from apothic.control.gateway.backend import Backend
from apothic.control.gateway.refusals import Refusal
from apothic.control.gateway.service import Service
from apothic.protocol.services import ServiceSpec
from apothic.protocol.specs import ConcurrencySpec, FunctionOptions
from apothic.store.services import Served, Serving


def made(containers: int = 1, **options: Any) -> tuple[Service, list[Backend]]:
    clock = ManualClock()
    given = FunctionOptions(**({"concurrent_requests": 2, "max_containers": 4} | options))
    served = Served(1, "dep", "shop", "web", "asgi", given, ServiceSpec())
    backends = [Backend(Serving(f"ctr{n}", "agt", 1, "unix:/x", "s", True), clock) for n in range(containers)]
    service = Service(served, clock, 300.0, lambda _: None)
    service.set(served, backends)
    return service, backends


async def test_requests_are_spread_and_each_container_has_its_limit() -> None:
    service, backends = made(2)
    for _ in range(4):
        await service.acquire()
    assert [backend.busy for backend in backends] == [2, 2]
    waiting = asyncio.create_task(service.acquire())
    await asyncio.sleep(0)
    assert service.wanted == 3
    service.release(backends[1])
    assert await waiting is backends[1] and service.wanted == 0


@pytest.mark.parametrize(
    ("options", "load", "wanted"),
    [
        ({}, 3, 2), ({}, 100, 4), ({}, 2, 0), ({"max_containers": 1}, 9, 0), ({"tasks_per_container": 5}, 6, 2),
        ({"concurrency": ConcurrencySpec(10, 3)}, 7, 3), ({"concurrency": ConcurrencySpec(10)}, 7, 0),
    ],
)  # fmt: skip
async def test_as_many_containers_are_wanted_as_the_load_needs(options: dict[str, Any], load: int, wanted: int) -> None:
    service, _ = made(1, **options)
    tasks = [asyncio.create_task(service.acquire()) for _ in range(load)]
    await asyncio.sleep(0)
    assert service.wanted == wanted
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_gives_up_in_the_moment_of_getting_one_gives_it_back() -> None:
    service, (backend,) = made(1, concurrent_requests=1)
    await service.acquire()
    waiting = asyncio.create_task(service.acquire())
    await asyncio.sleep(0)
    service.release(backend)  # it is the waiting one's now, which has not run since
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert backend.busy == 0


async def test_who_has_left_does_not_wait_any_more() -> None:
    service, (backend,) = made(1, concurrent_requests=1, max_pending_tasks=1)
    await service.acquire()
    for _ in range(3):
        waiting = asyncio.create_task(service.acquire())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    service.release(backend)
    assert (await service.acquire()) is backend and backend.busy == 1


async def test_a_service_that_is_stopped_refuses_those_who_wait() -> None:
    service, _ = made(0)
    waiting = asyncio.create_task(service.acquire())
    await asyncio.sleep(0)
    service.stop()
    with pytest.raises(Refusal, match="has been stopped"):
        await waiting
    assert service.wanted == 0
