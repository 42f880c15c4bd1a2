"""Requests over connections that stay open: `python -m bench.load HOST PORT PATH CONNECTIONS COUNT`. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

import uvloop


class Load:
    """Asks so many times in all, each connection one request after the other."""

    def __init__(self, host: str, port: int, path: str, count: int) -> None:
        self.request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
        self.left = count
        self.taken: list[float] = []
        self._where = host, port

    async def run(self, connections: int) -> float:
        """Return the seconds that it took."""
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        made = [await loop.create_connection(lambda: Asking(self), *self._where) for _ in range(connections)]
        await asyncio.gather(*(asking.over for _, asking in made))
        return time.perf_counter() - began


class Asking(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._load = load
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        if self._load.left <= 0:
            self._transport.close()
            return
        self._load.left -= 1
        self._began = time.perf_counter()
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, _, body = self._got.partition(b"\r\n\r\n")
        if body and (b"chunked" not in head.lower() or body.endswith(b"0\r\n\r\n")):
            assert head.startswith(b"HTTP/1.1 200"), head
            self._load.taken.append(time.perf_counter() - self._began)
            self._got = b""
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set_exception(exc) if exc is not None else self.over.set_result(None)


def main() -> None:
    """Measure and print."""
    host, port, path, connections, count = sys.argv[1:]
    load = Load(host, int(port), path, int(count))
    seconds = uvloop.run(load.run(int(connections)))
    taken = sorted(load.taken)
    assert len(taken) == int(count)
    told = {f"p{each}_ms": 1000 * taken[len(taken) * each // 100] for each in (50, 99)}
    print(json.dumps({"rate": len(taken) / seconds, **told}))


if __name__ == "__main__":
    main()
