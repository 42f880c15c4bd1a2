"""Servers that are none of ours, as a `web_server` starts them: they speak HTTP in ways that uvicorn does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from gatewayrig import Front, service
from walkrig import Puppet, Stage

from apothic.protocol.session import StartContainer

HEAD = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    b"/trailers": (
        HEAD + b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-Sum: 7\r\nHost: e\r\n\r\n"
    ),
    b"/early": b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\nok",
    b"/old": b"HTTP/1.0 200 OK\r\nX-Old: 1\r\n\r\nuntil the end",
    b"/moved": b"HTTP/1.1 301 Moved\r\nLocation: /there?x\r\nContent-Length: 0\r\n\r\n",
    b"/twice": HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"/nonsense": b"SSH-2.0-OpenSSH_9.2\r\n",
    b"/half": HEAD + b"Content-Length: 100\r\n\r\nonly this",
    b"/more": HEAD + b"Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
    b"/upgraded": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nbytes",
}
ENDS = {b"/old", b"/half"}


class Foreign:
    """A server that answers byte for byte, and counts its connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.asked: list[bytes] = []
        self.tasks: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.asked.append(head)
                target = head.split(b" ")[1]
                writer.write(ANSWERS.get(target, HEAD + b"Content-Length: 2\r\n\r\nok"))
                if target in ENDS:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture
async def foreign(stage: Stage, agent: Puppet, tmp_path: Path) -> AsyncIterator[tuple[Front, Foreign]]:
    front, made = Front(stage, agent, tmp_path), Foreign()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    await front.open()
    await stage.deploy("shop", service(kind="web_server"))
    await front.ready(await agent.next(StartContainer), f"port:{server.sockets[0].getsockname()[1]}")
    yield front, made
    await front.close()
    server.close()
    await asyncio.gather(*filter(None, made.tasks))


async def test_trailers_and_early_hints_are_passed_on(foreign: tuple[Front, Foreign]) -> None:
    client = await foreign[0].connect()
    await client.send(b"GET /shop/web/trailers HTTP/1.1\r\nHost: localhost\r\n\r\n")
    status, headers = await client.head()
    assert status == 200 and ("trailer", "X-Sum") in headers
    assert await client.chunk() == b"abc" and await client.chunk() == b""
    assert await client.reader.readuntil(b"\r\n\r\n") == b"X-Sum: 7\r\n\r\n"
    await client.send(b"GET /shop/web/early HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert await client.head() == (103, [("link", "</a>; rel=preload")])
    assert (await client.answer()).body == b"ok"


async def test_an_answer_that_ends_with_its_connection_is_whole_for_every_client(
    foreign: tuple[Front, Foreign],
) -> None:
    client = await foreign[0].connect()
    for _ in range(2):  # in chunks, so that the client's connection goes on
        seen = await client.ask("GET /shop/web/old HTTP/1.1")
        assert seen.body == b"until the end" and seen["transfer-encoding"] == "chunked"
    await client.send(b"GET /shop/web/old HTTP/1.0\r\n\r\n")
    assert (await client.answer()).body == b"until the end"


async def test_a_redirect_leads_below_the_mount(foreign: tuple[Front, Foreign]) -> None:
    assert (await foreign[0].ask("GET /shop/web/moved HTTP/1.1"))["location"] == "/shop/web/there?x"


@pytest.mark.parametrize("path", ["twice", "nonsense", "upgraded"])
async def test_what_is_no_answer_is_a_502(foreign: tuple[Front, Foreign], path: str) -> None:
    front, _ = foreign
    asked = asyncio.create_task(front.ask(f"POST /shop/web/{path} HTTP/1.1"))
    assert (await front.stage.settled(asked, 0.1)).status == 502


async def test_half_an_answer_is_not_taken_for_a_whole_one(foreign: tuple[Front, Foreign]) -> None:
    client = await foreign[0].connect()
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.ask("GET /shop/web/half HTTP/1.1")


async def test_an_answer_that_nobody_asked_for_reaches_nobody(foreign: tuple[Front, Foreign]) -> None:
    client = await foreign[0].connect()
    for _ in range(3):
        assert (await client.ask("GET /shop/web/more HTTP/1.1")).body == b"ok"
        assert (await client.ask("GET /shop/web/ HTTP/1.1")).body == b"ok"


async def test_what_cannot_be_asked_twice_gets_a_connection_of_its_own(foreign: tuple[Front, Foreign]) -> None:
    front, server = foreign
    for _ in range(3):
        await front.ask("GET /shop/web/ HTTP/1.1")
    assert server.connections == 1
    for count in (2, 3):
        await front.ask("POST /shop/web/ HTTP/1.1", b"x")
        assert server.connections == count
    assert b"x-forwarded-prefix: /shop/web\r\n" in server.asked[0]
