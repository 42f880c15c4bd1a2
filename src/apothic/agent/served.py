"""A service inside its container: uvicorn in front of the user's app, on the socket that the agent has made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
import uvloop

from apothic.agent import apps
from apothic.agent.callers import HttpCaller, SocketCaller
from apothic.agent.channel import Channel
from apothic.agent.entry import service_of
from apothic.agent.frames import Moved, Setup, Stop
from apothic.agent.lifespan import Lifespan
from apothic.agent.start import Start
from apothic.agent.webserver import serve as serve_port
from apothic.clock import SystemClock
from apothic.context import serve_as

# Of the grace; what is left is for the app's own end, and for what was cancelled to clean up.
_ANSWERING = 0.8
_WS_LONGEST = 16 * 1024 * 1024


class _Server(uvicorn.Server):
    """uvicorn, with its start told and its signals left to the user's code."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(setup: Setup, entry: Callable[..., Any], channel: Channel, start: Start) -> int:
    """Serve until the agent says stop, or is gone; return the exit status."""
    if setup.function.kind == "web_server":
        return serve_port(setup, entry, channel, start, SystemClock())
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    return loop.run_until_complete(_serve(setup, entry, channel, start))


async def _serve(setup: Setup, entry: Callable[..., Any], channel: Channel, start: Start) -> int:
    assert setup.listener is not None
    listener = socket.socket(fileno=setup.listener)
    listener.set_inheritable(False)
    try:
        lifespan = Lifespan(await apps.make(setup, entry))
    except BaseException as error:
        start.failed(error)
        return 1
    server = _Server(_config(lifespan, setup), start.ready)
    asyncio.get_running_loop().add_reader(channel.fileno(), _obey, channel, server, setup)
    try:
        await server.serve(sockets=[listener])
    except SystemExit:  # how uvicorn says that the app's lifespan has failed
        if server.started:
            raise
    if not server.started:
        start.failed(lifespan.failure())
        return 1
    return 0


def _obey(channel: Channel, server: uvicorn.Server, setup: Setup) -> None:
    channel.look()
    for command in channel.received():
        if isinstance(command, Stop):
            server.should_exit = True
        elif isinstance(command, Moved):
            serve_as(service_of(setup, command.base_url))
    if channel.at_end:
        server.should_exit = server.force_exit = True


def _config(app: Any, setup: Setup) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its start and end are told by the agent
    return uvicorn.Config(
        app,
        http=HttpCaller,
        ws=SocketCaller,
        interface="asgi3",
        lifespan="auto",
        root_path=setup.mount,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # `callers.introduce` reads them
        ws_max_size=_WS_LONGEST,
        timeout_keep_alive=3600,
        timeout_graceful_shutdown=setup.grace_s * _ANSWERING,  # type: ignore[arg-type]  # `wait_for` takes it
    )
