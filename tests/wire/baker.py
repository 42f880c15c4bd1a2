"""The app of batched functions that the tests beside it deploy."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import apothic

app = apothic.App("baker")


@app.function(cpu=0.1)
@apothic.batched(max_batch_size=8, wait_ms=150)
def sizes(items: list[int]) -> list[tuple[int, int]]:
    return [(item, len(items)) for item in items]


@app.function(cpu=0.1)
@apothic.batched(max_batch_size=500, wait_ms=20)
def double(items: list[int]) -> list[int]:
    return [2 * item for item in items]


@app.function(cpu=0.1)
@apothic.batched(max_batch_size=4, wait_ms=150)
async def eventually(items: list[int]) -> list[int]:
    await asyncio.sleep(0.001)
    return [item + len(items) for item in items]


@app.function(concurrent_requests=2, cpu=0.1)
@apothic.batched(max_batch_size=2, wait_ms=100)
def meet(items: list[str]) -> list[int]:
    """Two batches at once: each waits for the other's mark."""
    for item in items:
        Path(item).touch()
    while len(os.listdir(Path(items[0]).parent)) < 4:
        time.sleep(0.01)
    return [threading.get_ident()] * len(items)


class Unreadable:
    """Packs, and cannot be unpacked where it arrives."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("this item cannot be read")


@app.function(cpu=0.1)
@apothic.batched(max_batch_size=4, wait_ms=300)
def picky(items: list[Any]) -> list[Any]:
    """`"raise"` ends the call, `"apart"` is an error in its place, `"lock"` is a result that cannot be packed."""
    for item in items:
        if item == "raise":
            raise ValueError(f"a raise among {len(items)}")
    odd = {"apart": KeyError("apart"), "lock": threading.Lock()}
    return [odd.get(item, item) if isinstance(item, str) else item for item in items]


@app.function(cpu=0.1)
@apothic.batched(max_batch_size=2, wait_ms=300)
def short(items: list[Any]) -> Any:
    return items[0] if items[0] == "no list" else items[:-1]


@app.function(cpu=0.1)
@apothic.batched(max_batch_size=3, wait_ms=300)
def held(items: list[str]) -> list[str]:
    """Note that it runs, wait for a gate, and say which of it were there."""
    batch = apothic.current_batch()
    Path(items[0] + ".runs").write_text(f"{os.getpid()} {' '.join(f'{job.id}/{job.attempt}' for job in batch)}")
    print("a batch of", len(items))
    try:
        while not os.path.exists(items[0]):
            time.sleep(0.01)
    except BaseException:
        Path(items[0] + ".struck").touch()
        raise
    return [f"{len(items)}"] * len(items)


@app.function(cpu=0.1)
@apothic.batched(max_batch_size=3, wait_ms=300)
def lasting(items: list[float]) -> list[int]:
    time.sleep(max(items))
    return [len(items)] * len(items)


@app.function(cpu=0.1)
@apothic.batched(max_batch_size=2, wait_ms=100)
def whose(items: list[int]) -> list[str]:
    try:
        apothic.current_job()
    except RuntimeError as error:
        return [str(error)] * len(items)
    return ["nothing was raised"] * len(items)


@app.function(cpu=0.1)
@apothic.batched(max_batch_size=2, wait_ms=10_000)
def patient(items: list[int]) -> list[int]:
    return items
