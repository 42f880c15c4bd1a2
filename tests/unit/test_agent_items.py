"""What a generator yields, on a container's socket: batched, soon, in order, and within the credit."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from channelends import Ends, item, numbers

from apothic.agent.channel import TOGETHER
from apothic.agent.frames import Output
from apothic.agent.items import IN_FLIGHT_BYTES, IN_FLIGHT_ITEMS, Flow
from apothic.clock import ManualClock


@pytest.fixture
def ends() -> Iterator[Ends]:
    with contextlib.closing(Ends()) as made:
        yield made


# --- batches ----------------------------------------------------------------------------------------------------


def test_items_that_come_fast_share_frames_in_order(ends: Ends) -> None:
    flow = ends.flow()

    with ends.channel._lock:  # nobody else sends what waits
        at_once = [flow.ship(item(n)) for n in range(200)]
        flow.hurry()
    frames = ends.items(200)

    assert numbers(frames) == list(range(200))
    assert [len(frame.values) for frame in frames] == [1, TOGETHER, TOGETHER, TOGETHER, 200 - 3 * TOGETHER - 1]
    assert [n for n, sent in enumerate(at_once) if sent] == [0, TOGETHER, 2 * TOGETHER, 3 * TOGETHER]


def test_many_bytes_are_a_batch_too(ends: Ends) -> None:
    flow = ends.flow()

    with ends.channel._lock:
        assert [flow.ship(item(n, size=30_000)) for n in range(7)] == [True, False, False, True, False, False, True]


def test_an_item_does_not_wait_for_the_next(ends: Ends) -> None:
    flow = ends.flow()

    flow.ship(item(0))
    assert not flow.ship(item(1))

    assert numbers(ends.items(2)) == [0, 1]  # nothing else is sent: somebody saw to it


def test_a_slow_item_goes_at_once(ends: Ends) -> None:
    clock = ManualClock()
    ends.channel.clock = clock
    flow = ends.flow()
    flow.ship(item(0))

    asyncio.run(clock.advance(0.002))

    assert flow.ship(item(1))


def test_what_is_printed_comes_behind_what_was_yielded_before(ends: Ends) -> None:
    flow = ends.flow()

    with ends.channel._lock:
        for n in range(3):
            flow.ship(item(n))
        ends.channel.send(Output(job="job_1", stream="stdout", data=b"line\n"))
        flow.ship(item(3))
        flow.hurry()

    assert numbers(ends.items(3)) == [0, 1, 2]
    assert ends.frame() == Output(job="job_1", stream="stdout", data=b"line\n")
    assert ends.frame().first == 3


def test_a_large_item_goes_alone_and_in_its_place(ends: Ends, tmp_path: Path) -> None:
    flow = ends.flow()

    with ends.channel._lock:
        flow.ship(item(0))
        flow.ship(item(1))
        assert flow.ship(item(2, size=100_000, file=tmp_path / "large"))
        flow.ship(item(3))
        flow.hurry()
    frames = [ends.frame() for _ in range(4)]

    assert [(frame.first, len(frame.values)) for frame in frames] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert [frame.path for frame in frames] == [None, None, str(tmp_path / "large"), None]


def test_items_of_two_jobs_do_not_share_a_frame(ends: Ends) -> None:
    one, other = ends.flow(), ends.flow()
    other._job = "job_2"

    with ends.channel._lock:
        for n in range(3):
            one.ship(item(n))
            other.ship(item(n))
        one.hurry()
    frames = [ends.frame() for _ in range(6)]

    assert [(frame.job, frame.first) for frame in frames] == [(f"job_{j}", n) for n in range(3) for j in (1, 2)]


def test_threads_that_yield_at_once_lose_nothing(ends: Ends) -> None:
    flows = [ends.flow() for _ in range(4)]
    for n, flow in enumerate(flows):
        flow._job = f"job_{n}"
    seen: dict[str, list[int]] = {f"job_{n}": [] for n in range(4)}

    def ship(flow: Flow) -> None:
        for n in range(2_000):
            flow.ship(item(n))

    threads = [threading.Thread(target=ship, args=(flow,)) for flow in flows]
    for thread in threads:
        thread.start()
    while sum(map(len, seen.values())) < 8_000:
        frame = ends.frame()
        assert frame.first == len(seen[frame.job]) and len(frame.values) <= TOGETHER
        seen[frame.job] += [int(value.data) for value in frame.values]
    for thread in threads:
        thread.join(10)

    assert all(numbers == list(range(2_000)) for numbers in seen.values())


# --- credit -----------------------------------------------------------------------------------------------------


def test_only_so_many_items_are_in_flight(ends: Ends) -> None:
    flow = ends.flow()
    while flow.is_open:
        flow.ship(item(0))
    assert flow.sent == IN_FLIGHT_ITEMS

    flow.taken(100)

    while flow.is_open:
        flow.ship(item(0))
    assert flow.sent == IN_FLIGHT_ITEMS + 100


def test_only_so_many_bytes_are_in_flight(ends: Ends) -> None:
    flow = ends.flow()
    while flow.is_open:
        flow.ship(item(0, size=300_000))
    assert flow.sent == 4  # the fourth crosses the limit

    flow.taken(1)
    assert flow.is_open
    flow.ship(item(0, size=IN_FLIGHT_BYTES * 3))
    assert not flow.is_open
    flow.taken(4)
    assert not flow.is_open  # a giant alone is too much
    flow.taken(5)
    assert flow.is_open


def test_what_is_taken_twice_or_was_never_sent_counts_for_nothing(ends: Ends) -> None:
    flow = ends.flow()
    for _ in range(10):
        flow.ship(item(0))

    for upto in (5, 5, 3, 1_000):
        flow.taken(upto)
    while flow.is_open:
        flow.ship(item(0))

    assert flow.sent == 10 + IN_FLIGHT_ITEMS
