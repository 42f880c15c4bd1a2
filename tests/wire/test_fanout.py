"""map, starmap, for_each, spawn_map, map_iter through a real server: order, errors, ends, memory."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sums
from rig import Server

from apothic import App, ControlPlaneClient, Job, RemoteFunction
from apothic.client import fanout
from apothic.errors import WaitTimeoutError
from apothic.protocol import messages as m
from apothic.protocol import routes


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[ControlPlaneClient]:
    with server.lending(sums.app) as client:
        yield client


class Dry(Exception):
    pass


def unfinished(client: ControlPlaneClient, function: str) -> list[str]:
    """Return the status of every job of the function that has not ended."""
    found = client.ask_blocking(routes.LIST_JOBS, m.ListJobs(app="sums", function=function, limit=500)).jobs
    ended = ("succeeded", "failed", "cancelled", "timed_out")
    return [job.status.value for job in found if job.status.value not in ended]


def statuses(client: ControlPlaneClient, function: str) -> list[str]:
    """Return the status of every job of the function, oldest first."""
    found = client.ask_blocking(routes.LIST_JOBS, m.ListJobs(app="sums", function=function, limit=500)).jobs
    return [job.status.value for job in reversed(found)]


# --- order and forms --------------------------------------------------------------------------------------------


def test_map_keeps_input_order(client: ControlPlaneClient) -> None:
    assert sums.square.map(range(700)) == [n * n for n in range(700)]


def test_starmap_spreads_each_item(client: ControlPlaneClient) -> None:
    assert sums.add.starmap([(1, 2), (3,), [4, 5]]) == [3, 4, 9]


def test_for_each_gives_nothing(client: ControlPlaneClient) -> None:
    assert sums.square.for_each(range(5)) is None  # type: ignore[func-returns-value]


def test_spawn_map_gives_jobs_in_input_order(client: ControlPlaneClient) -> None:
    jobs = sums.square.spawn_map(range(50))
    assert all(isinstance(job, Job) for job in jobs)
    assert [job.wait() for job in jobs] == [n * n for n in range(50)]


def test_map_iter_yields_in_order_or_as_they_come(client: ControlPlaneClient) -> None:
    assert list(sums.square.map_iter(range(100))) == [n * n for n in range(100)]
    assert sorted(sums.square.map_iter(range(100), ordered=False)) == [n * n for n in range(100)]


def test_map_iter_yields_while_others_run(client: ControlPlaneClient, gate: Path) -> None:
    done = gate.parent / "done"
    done.touch()
    results = sums.held.map_iter([str(done), str(gate)])
    assert next(results) == "let go"

    gate.touch()
    assert list(results) == ["let go"]


def test_a_looked_up_function_maps_too(client: ControlPlaneClient) -> None:
    remote = RemoteFunction.from_name("sums", "square", client=client)
    assert remote.map(range(30), timeout_s=60) == [n * n for n in range(30)]
    assert remote.starmap([(2,)]) == [4]
    assert list(remote.map_iter(range(3))) == [0, 1, 4]
    assert remote.for_each([1]) is None  # type: ignore[func-returns-value]
    assert [job.wait() for job in remote.spawn_map([5])] == [25]


async def test_the_async_forms_take_plain_and_async_iterables(client: ControlPlaneClient) -> None:
    home = asyncio.get_running_loop()

    async def numbers() -> AsyncIterator[int]:
        assert asyncio.get_running_loop() is home
        for n in range(40):
            yield n
            await asyncio.sleep(0)

    squares = [n * n for n in range(40)]
    assert await sums.square.aio.map(numbers()) == squares
    assert await sums.square.aio.map(range(40)) == squares
    assert [n async for n in sums.square.aio.map_iter(numbers())] == squares
    assert await asyncio.gather(*(job.aio.wait() for job in await sums.square.aio.spawn_map(numbers()))) == squares


def test_an_async_iterable_in_a_blocking_call_names_the_other_form(client: ControlPlaneClient) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"\.aio"):
        sums.square.map(numbers())


def test_large_items_travel_as_blobs_and_leave_no_files(
    client: ControlPlaneClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    items = [bytes([n]) * 100_000 for n in range(6)]
    assert sums.echo.map(items) == items
    assert list(tmp_path.iterdir()) == []


# --- laziness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["map", "starmap", "for_each", "spawn_map", "map_iter"])
def test_an_empty_input_asks_nobody(method: str) -> None:
    app = App("never-deployed", client=ControlPlaneClient("http://127.0.0.1:9", api_key="any", timeout_s=1))

    @app.function()
    def f(number: int) -> int:
        return number

    found = getattr(f, method)([])
    assert not (list(found) if found is not None else found)


def test_the_input_is_read_in_the_callers_thread_as_far_as_there_is_room(
    client: ControlPlaneClient, gate: Path
) -> None:
    read = 0
    threads = set()

    def gates() -> Iterator[str]:
        nonlocal read
        for _ in range(1_000_000):
            threads.add(threading.current_thread())
            read += 1
            yield str(gate)

    results = sums.held.map_iter(gates())
    gate.touch()
    assert list(itertools.islice(results, 3)) == ["let go"] * 3
    results.close()  # type: ignore[attr-defined]

    assert threads == {threading.current_thread()}
    assert read <= fanout.WINDOW + fanout.BATCH + 200
    assert set(unfinished(client, "held")) <= {"cancelling"}


def test_a_full_queue_makes_map_pump_slower(client: ControlPlaneClient) -> None:
    assert sums.narrow.map(range(60)) == [-n for n in range(60)]


def test_the_same_idempotency_key_means_the_same_jobs(client: ControlPlaneClient) -> None:
    first = sums.square.with_options(idempotency_key="fan").spawn_map(range(5))
    assert sums.square.with_options(idempotency_key="fan").spawn_map(range(5)) == first


# --- failures ---------------------------------------------------------------------------------------------------


def test_the_first_failing_item_in_input_order_raises(client: ControlPlaneClient) -> None:
    with pytest.raises(sums.Refusal) as caught:
        sums.broken.map(range(40))
    assert caught.value.code == 3


def test_exceptions_may_stand_in_their_places(client: ControlPlaneClient) -> None:
    found = sums.broken.map(range(15), return_exceptions=True)

    assert [n for n in found if isinstance(n, int)] == [n for n in range(15) if n % 10 != 3]
    assert [(place, error.code) for place, error in enumerate(found) if isinstance(error, sums.Refusal)] == [
        (3, 3),
        (13, 13),
    ]
    listed = list(sums.broken.map_iter(range(5), ordered=False, return_exceptions=True))
    assert sum(isinstance(item, sums.Refusal) for item in listed) == 1


def test_a_failure_cancels_what_has_not_begun(client: ControlPlaneClient, gate: Path) -> None:
    with pytest.raises(sums.Refusal):
        sums.held_or_broken.map(["", *[str(gate)] * 5])
    gate.touch()

    while unfinished(client, "held_or_broken"):
        pass
    found = statuses(client, "held_or_broken")
    assert found[0] == "failed"
    assert found.count("cancelled") >= 4  # one container: at most one of the others had begun
    assert found.count("succeeded") <= 1


@pytest.mark.parametrize("method", ["map", "spawn_map", "map_iter"])
def test_an_input_that_raises_cancels_and_raises_the_same(client: ControlPlaneClient, gate: Path, method: str) -> None:
    dry = Dry("no more")

    def gates() -> Iterator[str]:
        for _ in range(40):
            yield str(gate)
        raise dry

    with pytest.raises(Dry) as caught:
        found: Any = getattr(sums.held, method)(gates())
        list(found)

    assert caught.value is dry
    assert set(unfinished(client, "held")) <= {"cancelling"}


async def test_an_async_input_that_raises_cancels_and_raises_the_same(client: ControlPlaneClient, gate: Path) -> None:
    dry = Dry("no more")

    async def gates() -> AsyncIterator[str]:
        for _ in range(20):
            yield str(gate)
        raise dry

    with pytest.raises(Dry) as caught:
        await sums.held.aio.map(gates())

    assert caught.value is dry


async def test_cancelling_a_map_cancels_its_jobs_and_closes_its_input(client: ControlPlaneClient, gate: Path) -> None:
    closed = asyncio.Event()
    read = asyncio.Event()

    async def gates() -> AsyncIterator[str]:
        try:
            yield str(gate)
            read.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    mapping = asyncio.create_task(sums.held.aio.map(gates()))
    await read.wait()
    mapping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await mapping

    assert closed.is_set()


def test_time_over_leaves_the_jobs_and_hands_them_out(client: ControlPlaneClient, gate: Path) -> None:
    remote = RemoteFunction.from_name("sums", "held", client=client)
    with pytest.raises(WaitTimeoutError) as caught:
        remote.map([str(gate)] * 3, timeout_s=1)

    gate.touch()
    assert [job.wait() for job in caught.value.jobs] == ["let go"] * 3


@pytest.mark.parametrize("method", ["map", "starmap", "for_each", "map_iter"])
def test_a_generator_function_is_refused_before_anything_is_sent(client: ControlPlaneClient, method: str) -> None:
    with pytest.raises(TypeError, match="spawn_map"):
        getattr(sums.count, method)([1])
