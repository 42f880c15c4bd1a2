"""Spawns of many threads and tasks against a real server: few requests, and each caller has its own job or error."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sums
from rig import Server

from apothic import Job, RemoteFunction
from apothic.client.combine import COMBINING
from apothic.client.loop import LOOP
from apothic.client.submission import ACCEPT, fresh_key
from apothic.errors import ConflictError, InvalidRequestError, QueueFullError
from apothic.protocol import messages as m
from apothic.transport import Transport

THREADS, EACH = 32, 20


@pytest.fixture(scope="module", autouse=True)
def deployed(server: Server) -> Iterator[None]:
    with server.lending(sums.app):
        yield


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each route was asked."""
    counted: Counter[str] = Counter()
    ask = Transport.ask

    async def noted(transport: Transport, route: Any, *args: Any, **more: Any) -> Any:
        counted[route.name] += 1
        return await ask(transport, route, *args, **more)

    monkeypatch.setattr(Transport, "ask", noted)
    return counted


def of(deed: Callable[[], Any]) -> Any:
    """Return what it returns, or what it raises."""
    try:
        return deed()
    except Exception as error:
        return error


def test_threads_that_spawn_share_requests(requests: Counter[str]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = list(pool.map(sums.square.spawn, range(THREADS * EACH)))
    assert requests.total() < len(jobs) / 4
    assert len({job.job_id for job in jobs}) == len(jobs)
    assert [job.wait() for job in jobs] == [number * number for number in range(len(jobs))]


async def test_tasks_that_spawn_share_requests(requests: Counter[str]) -> None:
    jobs = await asyncio.gather(*(sums.square.aio.spawn(number) for number in range(200)))
    assert requests.total() < len(jobs) / 10
    assert [await job.aio.wait() for job in jobs] == [number * number for number in range(len(jobs))]


def test_spawns_of_one_thread_are_a_request_each(requests: Counter[str]) -> None:
    for number in range(5):
        sums.square.spawn(number)
    assert requests == {"submit": 5}


def test_large_inputs_share_requests_too(requests: Counter[str]) -> None:
    values = [f"{number:x}" * 200_000 for number in range(12)]
    with ThreadPoolExecutor(len(values)) as pool:
        jobs = list(pool.map(sums.echo.spawn, values))
    assert requests["submit"] + requests["submit_batch"] <= len(values)
    assert [job.wait() for job in jobs] == values


def test_a_key_of_the_callers_means_the_same_job_and_its_conflict_is_the_callers_alone(requests: Counter[str]) -> None:
    keyed = sums.square.with_options(idempotency_key=fresh_key())
    with ThreadPoolExecutor(8) as pool:
        (first,) = {job.job_id: job for job in pool.map(keyed.spawn, [3] * 8)}.values()
    assert requests == {"submit": 8}
    deeds = [partial(keyed.spawn, 3), partial(sums.square.spawn, 4), partial(keyed.spawn, 5)] * 8
    with ThreadPoolExecutor(len(deeds)) as pool:
        told = list(pool.map(of, deeds))
    assert {job.job_id for job in told[::3]} == {first.job_id}
    assert [job.wait() for job in told[1::3]] == [16] * 8
    assert {type(error) for error in told[2::3]} == {ConflictError}


def test_a_full_queue_takes_what_it_has_room_for_and_refuses_the_rest(server: Server, gate: Path) -> None:
    hasty = RemoteFunction.from_name("sums", "held_narrow", client=server.client(timeout_s=0.5))
    with ThreadPoolExecutor(12) as pool:
        told = list(pool.map(lambda _: of(lambda: hasty.spawn(str(gate))), range(12)))
    jobs = [job for job in told if isinstance(job, Job)]
    assert 2 <= len(jobs) <= 3  # two wait, and one may run
    assert {type(error) for error in told if not isinstance(error, Job)} == {QueueFullError}
    assert len({job.job_id for job in jobs}) == len(jobs)
    gate.touch()
    assert [job.wait() for job in jobs] == ["let go"] * len(jobs)


def test_threads_wait_for_room_in_a_full_queue(requests: Counter[str]) -> None:
    with ThreadPoolExecutor(12) as pool:
        jobs = list(pool.map(sums.narrow.spawn, range(12)))
    assert [job.wait() for job in jobs] == [-number for number in range(12)]


@pytest.mark.parametrize("way", [LOOP.direct, LOOP.block])
def test_an_input_that_is_not_there_is_the_fault_of_one(way: Any, requests: Counter[str]) -> None:
    address = LOOP.block(sums.echo.address)
    client = sums.echo.client_here()

    def submit(number: int) -> Coroutine[Any, Any, str]:
        lost = m.Value(encoding="pickle", sha256="0" * 64, size=1 << 20)
        value = lost if number % 8 == 3 else m.Value(encoding="json", data={"args": [number], "kwargs": {}})
        ask = m.Submit(
            function=address.function, deployment_id=address.deployment, input=value, accept=ACCEPT,
            idempotency_key=fresh_key(),
        )  # fmt: skip
        return COMBINING.submit(client, ask, 30.0)

    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(lambda number: of(lambda: way(lambda: submit(number))), range(16)))
    assert requests["submit_batch"] > 0
    assert [n for n, each in enumerate(told) if isinstance(each, InvalidRequestError)] == [3, 11]
    assert len({each for each in told if isinstance(each, str)}) == 14
