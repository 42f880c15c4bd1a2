"""What editors and type checkers know of the handles. Checked by `test_types.py`, never run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from typing import Any, assert_type

import apothic
from apothic import App, Function, FunctionOptions, Job, JobStreamCheckpoint, JobStreamEvent, RemoteFunction

app = App("typed")


@app.function()
def square(number: float, *, digits: int = 2) -> float:
    return round(number * number, digits)


@app.function(max_containers=2, retries=apothic.Retries(3))
async def greet(name: str) -> str:
    return f"hello {name}"


@app.function()
@apothic.concurrent(max_inputs=10)
def length(words: list[str]) -> int:
    return len(words)


@app.function()
def count(to: int, *, step: int = 1) -> Iterator[int]:
    yield from range(0, to, step)


@app.function()
def spell(word: str) -> Generator[str, None, int]:
    yield from word
    return len(word)


@app.function()
async def tick(times: int) -> AsyncIterator[float]:
    for n in range(times):
        yield n / 2


@app.function()
async def tock(times: int) -> AsyncGenerator[bytes, None]:
    yield bytes(times)


@app.endpoint(method="POST", path="/{number}", keep_warm_s=5, requires_key=True)
def triple(number: int) -> dict[str, int]:
    return {"value": 3 * number}


@app.asgi(service_startup_timeout_s=30)
async def web() -> Callable[..., Any]:
    return triple


@app.web_server(0, startup_timeout=20)
def server(port: int) -> None: ...


@app.local_entrypoint()
def main(count: int = 3) -> None:
    assert_type(square.remote(3.0), float)


assert_type(square.remote(3.0, digits=1), float)
assert_type(square.spawn(3.0), Job)
assert_type(square.local(3.0), float)
assert_type(square(3.0), float)
assert_type(greet.remote("you"), str)
assert_type(greet.spawn("you"), Job)
here: Coroutine[Any, Any, str] = greet("you")
here = greet.local("you")
assert_type(length.remote(["a"]), int)
assert_type(main(4), None)

assert_type(square.map([1.0, 2.0]), list[Any])
assert_type(square.map([1.0], return_exceptions=True), list[Any])
assert_type(square.starmap([(1.0,)]), list[Any])
assert_type(square.for_each([1.0]), None)
assert_type(square.spawn_map([1.0]), list[Job])
assert_type(square.map_iter([1.0], ordered=False), Iterator[Any])
assert_type(square.get_web_url(), str)
assert_type(square.with_options(timeout_s=3).remote(1.0), float)

assert_type(triple(3), dict[str, int])
assert_type(triple.local(3), dict[str, int])
assert_type(triple.get_web_url(), str)
assert_type(triple.service_url, str | None)
opened: Coroutine[Any, Any, Callable[..., Any]] = web()
assert_type(server(8000), None)

assert_type(count.remote_gen(3, step=2), Iterator[int])
assert_type(spell.remote_gen("abc"), Iterator[str])
assert_type(tick.remote_gen(3), Iterator[float])
assert_type(tock.remote_gen(3), Iterator[bytes])
assert_type(count.with_options(timeout_s=3).remote_gen(3), Iterator[int])
assert_type(count.spawn(3), Job)
assert_type(spell.local("abc"), Generator[str, None, int])
assert_type(square.remote_events(3.0, snapshot=True, event_types=["job.log"]), Iterator[JobStreamEvent])

assert_type(square.name, str)
assert_type(square.options, FunctionOptions)
assert_type(square.kind, str)
assert_type(square.schedule, apothic.Cron | apothic.Period | None)
assert_type(square.service_url, str | None)
assert_type(Function.from_name("shop", "total"), RemoteFunction)


async def asynchronous(remote: RemoteFunction, job: Job) -> None:
    assert_type(await square.aio.remote(3.0), float)
    assert_type(await triple.aio.get_web_url(), str)
    assert_type(await remote.aio.get_web_url(), str)
    assert_type(await greet.aio.remote("you"), str)
    assert_type(await square.aio.spawn(3.0), Job)
    assert_type(await square.aio.map([1.0]), list[Any])
    assert_type(await square.aio.for_each([1.0]), None)
    assert_type(square.aio.map_iter([1.0]), AsyncIterator[Any])
    assert_type(count.aio.remote_gen(3), AsyncIterator[int])
    assert_type(spell.aio.remote_gen("abc"), AsyncIterator[str])
    assert_type(tick.aio.remote_gen(3), AsyncIterator[float])
    assert_type(tock.aio.remote_gen(3), AsyncIterator[bytes])
    assert_type(count.aio.remote_events(3), AsyncIterator[JobStreamEvent])
    assert_type(remote.aio.remote_gen(3, timeout_s=3), AsyncIterator[Any])
    assert_type(remote.aio.remote_events(3), AsyncIterator[JobStreamEvent])
    assert_type(job.aio.stream_events(last_index=3), AsyncIterator[JobStreamEvent])
    assert_type(job.aio.watch(snapshot=True), AsyncIterator[JobStreamEvent])
    assert_type(job.aio.wait_gen(on_reset="latest"), AsyncIterator[Any])
    assert_type(await job.aio.checkpoint(), JobStreamCheckpoint)
    assert_type(await app.aio.deploy(), str)
    assert_type(await remote.aio.spawn(1), Job)
    assert_type(await job.aio.status(), str)
    assert_type(await job.aio.logs(), list[str])
    assert_type(await job.aio.wait(timeout_s=3), Any)


def handles(remote: RemoteFunction, job: Job) -> None:
    assert_type(app.deploy(), str)
    assert_type(app.deployment_id, str | None)
    assert_type(remote.remote(1, timeout_s=3), Any)
    assert_type(remote.map([1], timeout_s=3), list[Any])
    assert_type(remote.timeout_s, int)
    assert_type(remote.retries, apothic.Retries | None)
    assert_type(job.status(), str)
    assert_type(job.logs(), list[str])
    assert_type(job.cancel(), str)
    assert_type(job.wait(poll_interval_s=0.1), Any)
    assert_type(job.wait_gen(timeout_s=3), Iterator[Any])
    assert_type(job.stream_events(event_types=("job.log",)), Iterator[JobStreamEvent])
    assert_type(job.watch(snapshot=True, cursor=apothic.JobStreamCursor(3)), Iterator[JobStreamEvent])
    assert_type(job.checkpoint(last_index=3), JobStreamCheckpoint)
    assert_type(remote.remote_gen(3, timeout_s=3), Iterator[Any])
    assert_type(remote.remote_events(3, snapshot=True), Iterator[JobStreamEvent])
    assert_type(told(next(iter(job.watch()))), str)
    assert_type(Job.attach("job_x"), Job)
    assert_type(apothic.current_job(), apothic.CurrentJob | None)
    waiting: Callable[..., Any] = job.wait
    del waiting


def told(event: JobStreamEvent) -> str:
    match event:
        case apothic.JobLogEvent(text, stream):
            assert_type(text, str)
            return text + stream
        case apothic.JobStreamItemEvent(value, item_index):
            return f"{value} {item_index + 1}"
        case apothic.JobStatusEvent(status, reason):
            return status + (reason or "")
        case apothic.JobErrorEvent(kind, message):
            return kind + message
        case apothic.JobEndEvent(status):
            return status
        case _:
            return event.event


def executed(executor: apothic.Executor) -> None:
    future = executor.submit(len, "words")
    assert_type(future.result(), int)
    assert_type(future.job, Job)
    assert_type(list(executor.map(len, ["a", "b"], chunksize=2)), list[int])
