"""A service's connections inside its container: who calls, and in how many pieces an answer leaves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from apothic.agent.callers import HttpCaller, introduce


class Pieces:
    """A transport that keeps what is written to it, piece by piece."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.pieces: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self.pieces.append(data)
        self._transport.write(data)

    def writelines(self, data: tuple[bytes, ...]) -> None:
        self.write(b"".join(data))


class Call:
    """A caller's end of a connection to an app."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
        self._sock, self._other = socket.socketpair()
        self._sock.setblocking(False)

    async def __aenter__(self) -> Call:
        def made() -> HttpCaller:
            return HttpCaller(config=self._config, server_state=ServerState(), app_state={})

        loop = asyncio.get_running_loop()
        _, self.caller = await loop.connect_accepted_socket(made, self._other)
        self.written = cast(Any, self.caller.transport)  # the one that `Joined` writes to is counted
        self.written._transport = Pieces(self.written._transport)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.caller.transport.abort()
        self._sock.close()

    async def ask(self) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")

    async def until(self, end: bytes) -> bytes:
        got = b""
        while not got.endswith(end):
            got += await asyncio.get_running_loop().sock_recv(self._sock, 65_536)
        return got

    @property
    def pieces(self) -> list[bytes]:
        return self.written._transport.pieces  # type: ignore[no-any-return]


async def test_an_answer_that_is_there_at_once_leaves_in_one_piece_and_sets_no_timer() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with Call(app) as call:
        for count in (1, 2, 3):
            await call.ask()
            await call.until(b"\r\n\r\nok")
            assert len(call.pieces) == count
            assert call.caller.timeout_keep_alive_task is None


async def test_a_head_does_not_wait_for_a_body_that_comes_later() -> None:
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"ok"})

    async with Call(app) as call:
        await call.ask()
        assert (await asyncio.wait_for(call.until(b"\r\n\r\n"), 10)).startswith(b"HTTP/1.1 200")
        go_on.set()
        assert await call.until(b"ok") == b"ok" and len(call.pieces) == 2


async def test_an_answer_whose_connection_is_closed_behind_it_is_whole() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async with Call(app) as call:
        await call.ask()
        assert (await call.until(b"\r\n\r\n")).endswith(b"connection: close\r\n\r\n")


@pytest.mark.parametrize(
    ("kind", "headers", "told"),
    [
        ("http", [(b"host", b"shop.test:81"), (b"x-forwarded-proto", b"https")], ("https", ("shop.test", 81), None)),
        ("websocket", [(b"host", b"h"), (b"x-forwarded-proto", b"https")], ("wss", ("h", 443), None)),
        ("http", [(b"x-forwarded-for", b"10.1.2.3, 10.9.9.9")], ("http", ("localhost", 80), ("10.1.2.3", 0))),
        ("http", [(b"host", b"[::1]:9"), (b"x-forwarded-proto", b"gopher")], ("http", ("[::1]", 9), None)),
    ],
)
def test_an_app_is_told_who_calls_whom(kind: str, headers: Any, told: Any) -> None:
    scope = {"type": kind, "scheme": "http" if kind == "http" else "ws", "headers": headers, "client": None}
    introduce(scope)
    assert (scope["scheme"], scope["server"], scope["client"]) == told
