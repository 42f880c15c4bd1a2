"""What the machine can do without us: a process pool, a bare HTTP round trip, a bare interpreter, a synced append."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

BODY = json.dumps({"value": 1}).encode()


def identity(x: int) -> int:
    """Return what came."""
    return x


def timed(deed: Callable[[], Any], times: int) -> list[float]:
    """Return how long each of so many runs took, in seconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        deed()
        taken.append(time.perf_counter() - began)
    return taken


@contextmanager
def pool() -> Iterator[ProcessPoolExecutor]:
    """Hold a warm process pool of two."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        list(executor.map(identity, range(20)))
        yield executor


def pool_calls(times: int) -> list[float]:
    """Time single calls through a process pool."""
    with pool() as executor:
        return timed(lambda: executor.submit(identity, 1).result(), times)


def pool_map(items: int) -> float:
    """Return calls per second of a process pool's map, without chunks."""
    with pool() as executor:
        began = time.perf_counter()
        list(executor.map(identity, range(items)))
        return items / (time.perf_counter() - began)


def pool_first_result() -> float:
    """Return the seconds from nothing to the first result of a process pool."""
    began = time.perf_counter()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        executor.submit(identity, 1).result()
        return time.perf_counter() - began


def interpreter(times: int, code: str = "pass") -> list[float]:
    """Time a fresh interpreter that runs `code`."""
    return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True), times)


def synced_appends(times: int) -> list[float]:
    """Time the append of 4 KiB with fdatasync: what one durable write costs here at the least."""
    with tempfile.NamedTemporaryFile(dir=os.environ.get("TMPDIR", ".")) as file:

        def append() -> None:
            os.write(file.fileno(), b"x" * 4096)
            os.fdatasync(file.fileno())

        return timed(append, times)


async def _answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": BODY})


def _bare_server(descriptor: int) -> None:
    import uvicorn
    import uvloop

    listener = socket.socket(fileno=descriptor)
    config = uvicorn.Config(_answer, http="httptools", lifespan="off", log_config=None, access_log=False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve([listener]))


def http_round_trips(times: int) -> list[float]:
    """Time a small POST over a kept connection to a plain ASGI application on the same server library."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    code = f"from bench.floors import _bare_server; _bare_server({listener.fileno()})"
    server = subprocess.Popen([sys.executable, "-c", code], pass_fds=[listener.fileno()])
    try:
        connection = http.client.HTTPConnection(*listener.getsockname())

        def ask() -> None:
            connection.request("POST", "/", BODY, {"content-type": "application/json"})
            connection.getresponse().read()

        timed(ask, 50)
        return timed(ask, times)
    finally:
        server.kill()
        server.wait()
        listener.close()
