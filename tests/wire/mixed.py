"""A function that is quick but for some of its inputs: the app that the test beside it deploys."""

from __future__ import annotations

import time
from pathlib import Path

import apothic

app = apothic.App("mixed")


@app.function(max_containers=2)
def quick_or_held(gate: str) -> int:
    while gate and not Path(gate).exists():
        time.sleep(0.01)
    return 1
