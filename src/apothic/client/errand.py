"""What an executor's jobs run. Containers import it, so it is light."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def run(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call what was submitted. This is the function that an executor deploys."""
    return fn(*args, **kwargs)


def each(fn: Callable[..., Any], chunk: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call `fn` once for each tuple of arguments: a chunk of `Executor.map` is one job."""
    return [fn(*args) for args in chunk]
