"""Functions that scale out, by each of the options for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import apothic

app = apothic.App("scaled")
SMALL = {"cpu": 0.01, "memory_mb": 256}


async def held(gate: str) -> str:
    while not Path(gate).exists():
        await asyncio.sleep(0.01)
    return "let go"


@app.function(max_containers=2, **SMALL)
@apothic.concurrent(max_inputs=4, target_inputs=2)
async def to_target(gate: str) -> str:
    return await held(gate)


@app.function(max_containers=3, tasks_per_container=2, concurrent_requests=4, **SMALL)
async def by_tasks(gate: str) -> str:
    return await held(gate)


@app.function(keep_warm_s=0, **SMALL)
async def cold(gate: str) -> str:
    return await held(gate)
