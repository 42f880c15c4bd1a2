"""The gateway of a control plane on a manual clock, and a real server where a container would be."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from walkrig import Puppet, Stage

from apothic.control.serve import bind
from apothic.protocol.messages import FunctionSpec
from apothic.protocol.services import ServiceSpec
from apothic.protocol.session import ContainerNews, StartContainer
from apothic.protocol.specs import FunctionOptions

App = Callable[[dict[str, Any], Any, Any], Any]


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def answering(app: App, at: Path | socket.socket, root_path: str = "") -> AsyncIterator[_Uvicorn]:
    """Serve an ASGI application on a Unix socket, as a container does, or on any listening one."""
    if isinstance(at, Path):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.chdir(at.parent):  # the whole path is too long for a socket's name
            listener.bind(at.name)
        listener.listen(128)
    else:
        listener = at
    config = uvicorn.Config(
        app, http="httptools", ws="websockets-sansio", lifespan="off", log_config=None, access_log=False,
        timeout_keep_alive=3600, timeout_graceful_shutdown=1, root_path=root_path,
    )  # fmt: skip
    server = _Uvicorn(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield server
    finally:
        server.should_exit = True
        await task
        listener.close()


def service(name: str = "web", kind: Any = "asgi", **options: Any) -> FunctionSpec:
    """Return the spec of a service that needs next to nothing."""
    given = {"cpu": 0.01, "memory_mb": 1, "concurrent_requests": 10} | options
    return FunctionSpec(
        name=name, module="app", qualname=name, kind=kind, options=FunctionOptions(**given), service=ServiceSpec()
    )


class Front:
    """A stage whose gateway listens; `agent` plays the agent of the services' containers."""

    def __init__(self, stage: Stage, agent: Puppet, folder: Path) -> None:
        self.stage = stage
        self.agent = agent
        self.folder = folder
        self._servers: dict[str, contextlib.AsyncExitStack] = {}
        self._count = 0
        self._clients: list[Client] = []

    async def open(self) -> None:
        self.listener = bind("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.task = asyncio.create_task(self.stage.control.gateway.serve(self.listener))

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        for client in self._clients:
            await client.close()
        for server in self._servers.values():
            await server.aclose()
        self.listener.close()

    async def serve(self, app: App, *specs: FunctionSpec, root_path: str = "") -> StartContainer:
        """Deploy services of the app `shop`, with one container each in which `app` answers; return the last start."""
        await self.stage.deploy("shop", *(specs or (service(),)))
        start = None
        for _ in specs or (None,):
            start = await self.start(app, root_path)
        assert start is not None
        return start

    async def start(self, app: App, root_path: str = "") -> StartContainer:
        """Start the next container that is asked for."""
        start = await self.agent.next(StartContainer)
        self._count += 1
        path = self.folder / f"{self._count}.sock"
        server = self._servers[start.container] = contextlib.AsyncExitStack()
        await server.enter_async_context(answering(app, path, root_path))
        await self.ready(start, f"unix:{path}")
        return start

    async def ready(self, start: StartContainer, address: str) -> None:
        news = ContainerNews(id=start.container, state="ready", pid=7, address=address)
        self.agent.containers[start.container] = news
        await self.agent.tell(containers=[news])
        await self.stage.control.gateway._look()  # as it does a moment after the commit

    async def gone(self, start: StartContainer, **more: Any) -> None:
        """End a container, and tell that it is gone."""
        if start.container in self._servers:
            await self._servers.pop(start.container).aclose()
        self.agent.containers.pop(start.container, None)
        await self.agent.tell(containers=[ContainerNews(id=start.container, state="gone", pid=7, **more)])

    async def connect(self, port: int | None = None) -> Client:
        """Connect to the gateway, or to another port."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port)
        self._clients.append(Client(reader, writer))
        return self._clients[-1]

    async def ask(self, head: str, body: bytes = b"") -> Seen:
        """Ask once, over a connection of its own."""
        client = await self.connect()
        try:
            return await client.ask(head, body)
        finally:
            await client.close()


class Seen:
    """An answer as it came."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __getitem__(self, name: str) -> str:
        return next(value for key, value in self.headers if key == name)

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self.headers)


class Client:
    """A connection to the gateway, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, head: str, body: bytes = b"", *, headless: bool = False) -> Seen:
        """Send a request whose head is given in lines, without their ends, and read the answer."""
        lines = head.strip().split("\n")
        if not any(line.lower().startswith("host:") for line in lines):
            lines.append("Host: localhost")
        if body and not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in lines):
            lines.append(f"Content-Length: {len(body)}")
        await self.send("\r\n".join([*(line.strip() for line in lines), "", ""]).encode("latin-1") + body)
        return await self.answer(headless=headless or lines[0].startswith("HEAD"))

    async def head(self) -> tuple[int, list[tuple[str, str]]]:
        """Read the head of an answer."""
        raw = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = raw.strip().split("\r\n")
        pairs = [line.partition(":") for line in lines]
        return int(first.split(" ")[1]), [(name.lower(), value.strip()) for name, _, value in pairs]

    async def answer(self, *, headless: bool = False) -> Seen:
        """Read a whole answer."""
        status, headers = await self.head()
        told = dict(headers)
        if headless or status in (101, 204, 304):
            return Seen(status, headers, b"")
        if "content-length" in told:
            return Seen(status, headers, await self.reader.readexactly(int(told["content-length"])))
        if told.get("transfer-encoding") == "chunked":
            return Seen(status, headers, await self.chunks())
        return Seen(status, headers, await self.reader.read())

    async def chunk(self) -> bytes:
        size = int((await self.reader.readline()).strip(), 16)
        data = await self.reader.readexactly(size)
        if size:
            await self.reader.readexactly(2)
        return data

    async def chunks(self) -> bytes:
        out = b""
        while data := await self.chunk():
            out += data
        while (await self.reader.readline()).strip():
            pass
        return out

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
