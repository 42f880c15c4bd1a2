"""What all containers of one agent share, passed to each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apothic.agent.bundles import Bundles
from apothic.agent.cgroup import Groups
from apothic.agent.outbox import Outbox
from apothic.clock import Clock
from apothic.protocol.session import Welcome

if TYPE_CHECKING:
    import asyncio

    from apothic.agent.container import Container


@dataclass
class Site:
    """Where containers live (`home`), what limits them, and to whom they tell what happens."""

    home: Path
    mark: str  # in the environment of everything that runs below; starts with what is this data directory's alone
    limits: Welcome
    base_url: str
    kill_s: float  # between SIGTERM and SIGKILL
    clock: Clock
    outbox: Outbox
    bundles: Bundles
    groups: Groups
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    leftovers: Callable[[], Awaitable[None]]
    keep: Callable[[Path], Path]  # moves a file out of a container's directory
    forget: Callable[[Container], None]
    relay: str = ""  # HOST:PORT by which the services of an agent elsewhere are reached
