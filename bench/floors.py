"""What the machine does without us: a process pool, a bare HTTP round trip or interpreter, synced appends and lines."""

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


def synced_lines(lines: int) -> float:
    """Return the seconds until the output of a process that prints is in a file, synced after each read of the pipe."""
    code = f"for n in range({lines}): print(n, flush=n % 1000 == 0)"
    with tempfile.NamedTemporaryFile(dir=os.environ.get("TMPDIR", ".")) as file:
        began = time.perf_counter()
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            while data := os.read(process.stdout.fileno(), 1 << 16):
                os.write(file.fileno(), data)
                os.fdatasync(file.fileno())
        return time.perf_counter() - began


async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer any request with the same small JSON."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": BODY})


def serve(application: str, descriptor: int) -> None:
    """Run a plain ASGI application, `module:name`, on the server library and the loop that the product has."""
    import uvicorn
    import uvloop

    listener = socket.socket(fileno=descriptor)
    config = uvicorn.Config(application, http="httptools", lifespan="off", log_config=None, access_log=False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve([listener]))


@contextmanager
def bare_server(application: str) -> Iterator[tuple[str, int]]:
    """Run a plain ASGI application in a process of its own; give its address."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    code = f"from bench.floors import serve; serve({application!r}, {listener.fileno()})"
    server = subprocess.Popen([sys.executable, "-c", code], pass_fds=[listener.fileno()])
    try:
        yield listener.getsockname()
    finally:
        server.kill()
        server.wait()
        listener.close()


def http_round_trips(times: int) -> list[float]:
    """Time a small POST over a kept connection to a plain ASGI application on the same server library."""
    with bare_server("bench.floors:answer") as address:
        connection = http.client.HTTPConnection(*address)

        def ask() -> None:
            connection.request("POST", "/", BODY, {"content-type": "application/json"})
            connection.getresponse().read()

        timed(ask, 50)
        return timed(ask, times)
