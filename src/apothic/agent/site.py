"""What all containers of one agent share, passed to each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apothic.agent.bundles import Bundles
from apothic.agent.cgroup import Groups
from apothic.agent.frames import Setup
from apothic.agent.launcher import Launcher
from apothic.agent.outbox import Outbox
from apothic.clock import Clock
from apothic.protocol.services import SERVICE_KINDS, mount
from apothic.protocol.session import StartContainer, Welcome

if TYPE_CHECKING:
    import asyncio

    from apothic.agent.container import Container


@dataclass(frozen=True)
class Where:
    """What a container finds where: its directory for large values, its code, and what it shares with its agent."""

    files: Path
    code: Path
    payload: Path | None
    leaves: Path | None
    listener: int | None
    port: int


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
    launcher: Launcher
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    leftovers: Callable[[], Awaitable[None]]
    keep: Callable[[Path], Path]  # moves a file out of a container's directory
    forget: Callable[[Container], None]
    relay: str = ""  # HOST:PORT by which the services of an agent elsewhere are reached

    def setup(self, start: StartContainer, where: Where) -> Setup:
        """Return what a container is told first."""
        serves = start.function.kind in SERVICE_KINDS
        return Setup(
            app=start.app, deployment=start.deployment, function=start.function, code_dir=str(where.code),
            work_dir=str(where.files), payload_path=str(where.payload) if where.payload is not None else None,
            payload_limit=self.limits.payload_limit, inline_limit=self.limits.inline_limit,
            leaves=str(where.leaves) if where.leaves is not None else None, listener=where.listener, port=where.port,
            base_url=self.base_url, token=start.token, grace_s=self.limits.grace_s,
            mount=mount(start.app, start.function.name) if serves else "",
        )  # fmt: skip
