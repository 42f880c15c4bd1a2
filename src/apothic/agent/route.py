"""Where an agent's control plane is. A local one may come back on another port, and says so in `server.json`."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from apothic.clock import Clock
from apothic.nearby import Nearby
from apothic.transport import Transport

LOCAL_PAUSE_S = 0.2
SOON_S, SOON = 0.02, 50  # for so many tries: the server that has started us, or the next one, is about to be there
REMOTE_PAUSE_S = (0.1, 1.0)  # first and longest
ABSENCE_S = 600.0  # how long a local agent waits for a new server; a blob waits as long


@dataclass(frozen=True)
class Server:
    """One address, and the key to show there."""

    base_url: str
    key: str


class Route(Protocol):
    """Knows the way to the control plane."""

    local: bool
    nearby: Nearby | None  # its blobs, if they are at hand

    def find(self) -> Server | None:
        """Return where it is now, or `None` when it is not there."""
        ...

    def pause(self, tries: int) -> float:
        """Return the seconds to wait before the next try, after that many in vain."""
        ...


class LocalRoute:
    """The server of a data directory on this machine."""

    local = True

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.nearby: Nearby | None = Nearby(data_dir / "blobs")

    def find(self) -> Server | None:
        try:
            told = json.loads((self._data_dir / "server.json").read_text())
            return Server(str(told["base_url"]), (self._data_dir / "agent.key").read_text().strip())
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def pause(self, tries: int) -> float:
        return SOON_S if tries <= SOON else LOCAL_PAUSE_S


class RemoteRoute:
    """A control plane at a URL."""

    local = False

    def __init__(self, base_url: str, key: str) -> None:
        self.nearby: Nearby | None = None
        self._server = Server(base_url.rstrip("/"), key)

    def find(self) -> Server | None:
        return self._server

    def pause(self, tries: int) -> float:
        # At most a second: whoever comes back is noticed at once. Spread, so that a fleet does not come as one.
        first, longest = REMOTE_PAUSE_S
        return float(min(longest, first * 2 ** min(tries, 8)) * random.uniform(0.5, 1.0))


class Freight:
    """Blobs, to and from the control plane, wherever that is at the moment."""

    def __init__(self, route: Route, clock: Clock) -> None:
        self._route = route
        self._clock = clock
        self._transport: Transport | None = None

    def _carrier(self) -> Transport:
        if self._transport is None:
            server = self._route.find()
            self._transport = Transport(
                server.base_url if server is not None else "http://127.0.0.1:1",
                self._key,
                clock=self._clock,
                relocate=self._relocate,
                first_patience_s=ABSENCE_S,
                patience_s=ABSENCE_S,
                nearby=self._route.nearby,
            )
        return self._transport

    def _key(self) -> str | None:
        server = self._route.find()
        return server.key if server is not None else None

    async def _relocate(self) -> str:
        while (server := self._route.find()) is None:
            await self._clock.sleep(LOCAL_PAUSE_S)
        return server.base_url

    async def fetch(self, sha256: str, dest: Path) -> None:
        await self._carrier().get_blob(sha256, dest)

    async def store(self, path: Path, sha256: str, size: int) -> None:
        await self._carrier().put_blob(path, sha256, size)

    async def close(self) -> None:
        """Close its connections."""
        if self._transport is not None:
            await self._transport.close()
            await asyncio.sleep(0)  # the loop takes its sockets down
