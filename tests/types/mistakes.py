"""Calls that a type checker must refuse: each line that ends in `# wrong` gives an error, and no other does."""

from __future__ import annotations

from apothic import App, Job

app = App("mistaken")


@app.function()
def square(number: float, *, digits: int = 2) -> float:
    return round(number * number, digits)


async def asynchronous(job: Job) -> None:
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
    square.map([1.0], timeout_s=3)  # wrong
    job.wait(3)  # wrong
    job.status(1)  # wrong


@app.function(memory=3)  # wrong
def misnamed() -> None: ...
