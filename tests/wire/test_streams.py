"""Generator functions and the events of jobs through a real server: what comes, and whose the job is."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import gens
import pytest
from genbench import kinds, newest, submitted
from gens import Dry, Point, count, draw, echo, endless, gated, large, plain, tick
from rig import Server

import apothic
from apothic import ControlPlaneClient, Job, RemoteFunction
from apothic.errors import JobCancelledError, NotFoundError, SerializationError, WaitTimeoutError
from apothic.protocol import messages as m
from apothic.protocol import routes


@pytest.fixture(scope="module", autouse=True)
def client(server: Server) -> Iterator[ControlPlaneClient]:
    with server.lending(gens.app) as client:
        yield client


def named(name: str, client: ControlPlaneClient) -> RemoteFunction:
    return RemoteFunction.from_name("gens", name, client=client)


# --- remote_gen -------------------------------------------------------------------------------------------------


def test_a_generator_runs_elsewhere_and_its_items_come_here() -> None:
    assert list(count.remote_gen(5)) == [0, 1, 2, 3, 4]
    assert list(count.remote_gen(5, start=3)) == [3, 4]
    assert list(count.remote_gen(0)) == []


async def test_an_asynchronous_generator_and_an_asynchronous_caller() -> None:
    assert list(await asyncio.to_thread(lambda: list(tick.remote_gen(3)))) == [0, 1, 2]
    assert [number async for number in tick.aio.remote_gen(3)] == [0, 1, 2]
    assert [number async for number in count.aio.remote_gen(3)] == [0, 1, 2]


async def test_by_name_as_well(client: ControlPlaneClient) -> None:
    assert [number async for number in named("count", client).aio.remote_gen(3, timeout_s=60.0)] == [0, 1, 2]
    assert list(await asyncio.to_thread(lambda: list(named("tick", client).remote_gen(3)))) == [0, 1, 2]


def test_items_come_while_the_generator_still_runs(gate: Path) -> None:
    items = gated.remote_gen(str(gate), 3, 2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    gate.touch()
    assert list(items) == [3, 4]


def test_items_of_every_sort_come_as_they_were_yielded() -> None:
    values = [1, "two", None, [3.5, {"a": [1]}], (1, 2), {3, 4}, b"bytes", Point(1, 2), "line\nend\r\n", "\u2028é"]
    found = list(echo.remote_gen(values))
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize("colour", ["blocking", "awaiting"])
def test_large_items_come_as_they_were_yielded(colour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [10, 3_000_000, 20, 100_000]

    async def collected() -> list[bytes]:
        return [data async for data in large.aio.remote_gen(sizes)]

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = list(large.remote_gen(sizes)) if colour == "blocking" else asyncio.run(collected())
    assert [(len(data), data[:1]) for data in found] == [(size, bytes([size % 251])) for size in sizes]
    assert list(tmp_path.iterdir()) == []


def test_many_items_come_each_once_and_in_order() -> None:
    assert list(count.remote_gen(30_000)) == list(range(30_000))


def test_what_the_generator_raises_comes_behind_its_items() -> None:
    found: list[int] = []
    with pytest.raises(Dry) as caught:
        found.extend(draw.remote_gen(3))
    assert found == [0, 1, 2]
    assert caught.value.drawn == 3
    assert "raise Dry(good)" in str(caught.value.__cause__)
    assert any("job_" in note for note in caught.value.__notes__)


def test_arguments_are_packed_at_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SerializationError, match="argument 0 of echo"):
        echo.remote_gen([threading.Lock()])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    unread = echo.remote_gen([b"x" * 1_000_000])
    assert len(list(tmp_path.iterdir())) == 1
    del unread
    assert list(tmp_path.iterdir()) == []


def test_a_method_for_the_other_kind_of_function_is_refused_before_anything_is_sent(
    client: ControlPlaneClient,
) -> None:
    before = submitted(client)
    with pytest.raises(TypeError, match=r"plain is no generator function.*use remote$"):
        plain.remote_gen(1)  # type: ignore[misc]
    with pytest.raises(TypeError, match=r"use remote$"):
        plain.aio.remote_gen(1)  # type: ignore[misc]
    with pytest.raises(TypeError, match=r"use remote$"):
        next(named("plain", client).remote_gen(1))
    with pytest.raises(TypeError, match="remote_gen"):
        count.remote(1)
    with pytest.raises(TypeError, match="remote_gen"):
        named("count", client).remote(1)
    with pytest.raises(TypeError, match="spawn_map or remote_gen"):
        count.map([1])
    assert submitted(client) == before


def test_a_name_that_is_not_there_is_not_found(client: ControlPlaneClient) -> None:
    with pytest.raises(NotFoundError, match="no_such_function"):
        next(named("no_such_function", client).remote_gen(1))


# --- whose job it is --------------------------------------------------------------------------------------------


def leave_by_break() -> None:
    for number in endless.remote_gen():
        if number == 2:
            break


def leave_by_close() -> None:
    numbers = endless.remote_gen()
    assert next(numbers) == 0
    numbers.close()  # type: ignore[attr-defined]


def leave_by_error() -> None:
    with contextlib.suppress(LookupError):
        for _ in endless.remote_gen():
            raise LookupError("enough")


def leave_events() -> None:
    for event in endless.remote_events():
        if event.event == "job.stream_item":
            break


def leave_by_cancellation() -> None:
    async def read(got: asyncio.Event) -> None:
        async for _ in endless.aio.remote_gen():
            got.set()

    async def main() -> None:
        got = asyncio.Event()
        reading = asyncio.create_task(read(got))
        await got.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(main())


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_close, leave_by_error, leave_events, leave_by_cancellation])
def test_leaving_early_cancels_the_job_and_its_finally_runs(
    leave: Callable[[], None], client: ControlPlaneClient
) -> None:
    leave()
    job = newest(client, "endless")
    assert job.status() in ("cancelling", "cancelled")
    with pytest.raises(JobCancelledError):
        job.wait()
    assert job.logs()[-1].startswith("let go at")


def test_ctrl_c_cancels_the_job(client: ControlPlaneClient) -> None:
    main = threading.main_thread().ident
    assert main is not None
    got = threading.Event()

    def interrupt() -> None:
        got.wait()
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        for number in endless.remote_gen():
            if number == 1:
                got.set()
    assert newest(client, "endless").status() in ("cancelling", "cancelled")


def test_patience_has_an_end_and_the_job_goes_on(client: ControlPlaneClient, gate: Path) -> None:
    found: list[int] = []
    with pytest.raises(WaitTimeoutError) as caught:
        found.extend(named("gated", client).remote_gen(str(gate), 2, 1, timeout_s=1.0))
    assert found == [0, 1]
    assert caught.value.job.status() == "running"
    gate.touch()
    assert list(caught.value.job.wait_gen()) == [0, 1, 2]


def test_a_generator_of_the_app_reads_another_ones_items(client: ControlPlaneClient) -> None:
    assert list(gens.doubled.remote_gen(4)) == [0, 2, 4, 6]
    assert gens.first_of.remote(3) == 0
    inner = client.ask_blocking(routes.LIST_JOBS, m.ListJobs(app="gens", function="count", limit=1)).jobs[0]
    assert inner.parent == newest(client, "first_of").job_id


# --- jobs of generators -----------------------------------------------------------------------------------------


def test_a_generators_job_is_read_again_and_again_and_has_a_value_of_its_own() -> None:
    job = count.spawn(3)
    assert list(job.wait_gen()) == list(job.wait_gen()) == [0, 1, 2]
    assert job.wait() == "counted to 3"
    assert [list(job.wait_gen()) for job in count.spawn_map([1, 2])] == [[0], [0, 1]]


async def test_a_generators_job_is_read_in_asynchronous_code() -> None:
    job = await tick.aio.spawn(3)
    assert [number async for number in job.aio.wait_gen(poll_interval_s=0.1, timeout_s=60.0)] == [0, 1, 2]
    assert await job.aio.wait() is None


def test_what_the_job_failed_with_is_raised_however_often_it_is_read() -> None:
    job = draw.spawn(2)
    for _ in range(2):
        found: list[int] = []
        with pytest.raises(Dry):
            found.extend(job.wait_gen())
        assert found == [0, 1]
    with pytest.raises(Dry):
        list(job.wait_gen(last_index=1_000))


def test_leaving_wait_gen_leaves_the_job_alone(gate: Path) -> None:
    job = gated.spawn(str(gate), 2, 1)
    for _ in job.wait_gen():
        break
    assert job.status() in ("starting", "running")
    gate.touch()
    assert list(job.wait_gen()) == [0, 1, 2]


def test_a_plain_functions_job_has_no_items() -> None:
    job = plain.spawn(1)
    with pytest.raises(TypeError, match=r"use wait\(\)"):
        next(iter(job.wait_gen()))
    assert job.wait() == -1


# --- events -----------------------------------------------------------------------------------------------------


def test_a_jobs_whole_story_in_one_order() -> None:
    job = count.spawn(2)
    events = list(job.stream_events())
    assert kinds(events) == [
        "status", "status", "status", "log", "stream_item", "stream_item", "status", "result", "end",
    ]  # fmt: skip
    assert [event.index for event in events] == list(range(9))
    assert [event.status for event in events if isinstance(event, apothic.JobStatusEvent)] == [
        "queued", "starting", "running", "succeeded",
    ]  # fmt: skip
    assert [event.value for event in events if isinstance(event, apothic.JobStreamItemEvent)] == [0, 1]
    (log,) = [event for event in events if isinstance(event, apothic.JobLogEvent)]
    assert (log.text, log.stream, log.line) == ("counting to 2", "stdout", 0)
    (result,) = [event for event in events if isinstance(event, apothic.JobResultEvent)]
    assert (result.value, result.items) == ("counted to 2", 2)
    assert isinstance(events[-1], apothic.JobEndEvent) and events[-1].status == "succeeded"


def test_a_failed_jobs_story_has_the_error_and_does_not_raise() -> None:
    events = list(draw.remote_events(1))
    (error,) = [event for event in events if isinstance(event, apothic.JobErrorEvent)]
    assert (error.kind, error.attempt) == ("user", 1)
    assert error.type.endswith("Dry") and "raise Dry(good)" in error.traceback
    assert isinstance(events[-1], apothic.JobEndEvent) and events[-1].status == "failed"


def test_events_of_a_job_that_one_submits_oneself() -> None:
    assert kinds(plain.remote_events(4, event_types=["job.log", "job.result"])) == ["log", "result", "end"]
    first, *events = count.remote_events(2, snapshot=True, event_types=("job.stream_item",))
    assert isinstance(first, apothic.JobSnapshotEvent)
    assert kinds(events) == ["stream_item", "stream_item", "end"]
    with pytest.raises(ValueError, match=r"job\.snapshot"):
        plain.remote_events(4, event_types=["log"])


async def test_events_in_asynchronous_code(client: ControlPlaneClient) -> None:
    events = [event async for event in named("plain", client).aio.remote_events(4, event_types=["job.result"])]
    assert kinds(events) == ["result", "end"]
    job = await count.aio.spawn(2)
    await job.aio.wait()
    assert kinds([event async for event in job.aio.stream_events(event_types=["job.status"])])[-1] == "end"
    assert (await job.aio.checkpoint()).event_types == ("job.status",)


def test_watching_from_a_snapshot_on(gate: Path) -> None:
    job = gated.spawn(str(gate), 2, 1)
    with contextlib.closing(job.wait_gen()) as items:  # type: ignore[type-var]
        assert [next(items), next(items)] == [0, 1]
    events = job.watch(snapshot=True)
    snapshot = next(events)
    assert isinstance(snapshot, apothic.JobSnapshotEvent)
    assert (snapshot.status, snapshot.counts["job.stream_item"], snapshot.result) == ("running", 2, None)
    assert job.checkpoint().last_index == snapshot.as_of_index
    gate.touch()
    rest = list(events)
    assert kinds(rest) == ["stream_item", "status", "result", "end"]
    assert rest[0].index == snapshot.as_of_index + 1

    ended = list(job.watch(snapshot=True))
    assert kinds(ended) == ["snapshot"]
    assert ended[0].status == "succeeded"  # type: ignore[attr-defined]
    assert kinds(job.watch(snapshot=True, last_index=rest[0].index)) == ["snapshot", "status", "result", "end"]


def test_a_job_that_does_not_exist_is_not_found(client: ControlPlaneClient) -> None:
    for read in ("stream_events", "watch", "wait_gen"):
        with pytest.raises(NotFoundError):
            list(getattr(Job("job_0123456789abcdefghjkmnpqrs", client), read)())
