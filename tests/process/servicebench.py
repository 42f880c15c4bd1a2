"""Services in real containers of the bench, asked over the sockets that the agent tells."""

from __future__ import annotations

import contextlib
import os
import socket
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
from containerbench import Bench

from apothic.agent.door import connect
from apothic.protocol.messages import FunctionSpec, SourceFile
from apothic.protocol.services import ServiceSpec
from apothic.protocol.session import ContainerNews, StartContainer
from apothic.protocol.specs import FunctionOptions

URL = "http://service.test"


def launch(
    bench: Bench, kind: str, code: str, *, secret: str = "", name: str = "f", files: Any = (), service: Any = None,
    **options: Any,
) -> str:  # fmt: skip
    """Start a container for the service `f` of kind `kind`, without waiting."""
    container = f"ctr_s{next(bench._numbers)}"
    sources = [("app.py", textwrap.dedent(code).encode()), *files]
    kept = [SourceFile(path=path, sha256=bench.folder.keep(data), size=len(data)) for path, data in sources]
    function = FunctionSpec(
        name=name, module="app", qualname="f", kind=kind,  # type: ignore[arg-type]
        options=FunctionOptions(**{"concurrent_requests": 100, **options}), service=ServiceSpec(**(service or {})),
    )  # fmt: skip
    order = StartContainer(
        container=container, deployment="dep_1", app="shop", function=function, files=kept, secret=secret
    )
    bench.containers.start(order)
    return container


async def serve(bench: Bench, kind: str, code: str, **more: Any) -> ContainerNews:
    """Start a service and wait until it is ready."""
    news = await bench.ready(launch(bench, kind, code, **more))
    assert news.state == "ready", news.failure
    return news


async def refused(bench: Bench, kind: str, code: str, **more: Any) -> Any:
    """Start a service that cannot; return its failure."""
    news = await bench.gone(launch(bench, kind, code, **more))
    assert news.failure is not None and news.failure.kind == "startup", news
    assert not any(told.state == "ready" for told in bench.news[news.id])
    return news.failure


@contextlib.contextmanager
def short(path: str) -> Iterator[str]:
    """Give a path that fits into a socket's address."""
    folder = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{Path(path).name}"
    finally:
        os.close(folder)


@contextlib.asynccontextmanager
async def asking(news: ContainerNews) -> AsyncIterator[aiohttp.ClientSession]:
    """Give a client whose every URL below `http://service.test` leads to the service."""
    way, _, where = news.address.partition(":")
    assert way == "unix", news
    with short(where) as path:
        async with aiohttp.ClientSession(URL, connector=aiohttp.UnixConnector(path, limit=0)) as http:
            yield http


def dial(news: ContainerNews) -> socket.socket:
    """Return a plain connection to the service, blocking."""
    sock = connect(Path(news.address.removeprefix("unix:")))
    sock.settimeout(20)
    return sock


def own_log(bench: Bench, container: str) -> list[str]:
    """Return the lines that a container has printed for itself."""
    return [line.text for frame in bench.frames for said in frame.said if said.container == container
            for line in said.lines]  # fmt: skip
