"""Two apps that share a machine: the test beside it deploys both."""

from __future__ import annotations

import time
from pathlib import Path

import apothic

greedy = apothic.App("greedy")
modest = apothic.App("modest")


@greedy.function(max_containers=64, max_pending_tasks=100_000)
def no_op(number: int) -> int:
    return number


@greedy.function(max_containers=64)
def held(gate: str) -> str:
    while not Path(gate).exists():
        time.sleep(0.01)
    return "let go"


@modest.function()
def single() -> str:
    return "served"
