"""The app that is measured."""

from __future__ import annotations

import apothic

app = apothic.App("bench")


@app.function(max_containers=2, max_pending_tasks=50_000)
def noop(x: int) -> int:
    """Return what came."""
    return x


@app.function(max_containers=1, keep_warm_s=0)
def fresh(x: int) -> int:
    """Return what came, from a container that ends as soon as nothing is asked."""
    return x
