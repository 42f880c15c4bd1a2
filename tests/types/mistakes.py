"""Calls that a type checker must refuse: each line that ends in `# wrong` gives an error, and no other does."""

from __future__ import annotations

from collections.abc import Iterator

from apothic import App, Executor, Job

app = App("mistaken")


@app.function()
def square(number: float, *, digits: int = 2) -> float:
    return round(number * number, digits)


@app.function()
def count(to: int) -> Iterator[int]:
    yield from range(to)


async def asynchronous(job: Job) -> None:
    square.aio.remote_gen(3.0)  # wrong
    count.aio.remote_gen("three")  # wrong
    job.aio.watch(checkpoint=3)  # wrong
    await square.aio.remote("three")  # wrong
    await square.aio.spawn(3.0, digit=1)  # wrong
    await job.aio.wait(3)  # wrong


def blocking(job: Job) -> None:
    square.remote("three")  # wrong
    square.remote(3.0, digits="one")  # wrong
    square.remote()  # wrong
    square.spawn(3.0, 2)  # wrong
    square.local("three")  # wrong
    square("three")  # wrong
    square.remote_gen(3.0)  # wrong
    count.remote_gen("three")  # wrong
    count.remote_gen(3, timeout_s=3)  # wrong
    square.remote_events(3.0, event_types="job.log")  # wrong
    job.stream_events(snapshot=True)  # wrong
    job.wait_gen(3)  # wrong
    square.map([1.0], timeout_s=3)  # wrong
    job.wait(3)  # wrong
    job.status(1)  # wrong


@app.function(memory=3)  # wrong
def misnamed() -> None: ...


@app.endpoint(methods="GET")  # wrong
def misspelt() -> None: ...


@app.endpoint()
def served(number: int) -> int:
    return number


def locally() -> None:
    served("three")  # wrong
    app.web_server()  # wrong
    app.asgi(path="/")  # wrong


def executed(executor: Executor) -> None:
    executor.submit(len, 3)  # wrong
    executor.submit(len)  # wrong
    executor.map(len, ["a"], chunksize="2")  # wrong
