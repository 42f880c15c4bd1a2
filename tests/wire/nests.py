"""Functions that call functions: the app that the test beside it deploys."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import apothic

app = apothic.App("nests")


@app.function()
def deeper(left: int) -> int:
    return 0 if left == 0 else 1 + deeper.remote(left - 1)


@app.function()
def starter() -> str:
    return leaf.spawn(3).job_id


@app.function()
def leaf(number: int) -> int:
    return number * number


@app.function()
def threaded(number: int) -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(leaf.remote, number).result()


@app.function()
def squares(count: int) -> list[int]:
    return leaf.map(range(count))
