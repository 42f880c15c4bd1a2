"""The agent's end of its session, against a control plane that says what it must not, or goes at a bad moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from apothic.agent.route import LocalRoute, RemoteRoute
from apothic.agent.session import Agent
from apothic.clock import SystemClock
from apothic.protocol.session import Downward, Hello, Leave, Renew, Upward, Welcome

PATIENCE_S = 20.0
WELCOME = Welcome(
    lease_s=30.0, grace_s=1.0, startup_timeout_s=20.0, payload_limit=1 << 20, inline_limit=1 << 16
)  # fmt: skip


class Plane:
    """Takes sessions as they come. A test reads and writes the frames of each."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.sessions: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self.refusals: list[int] = []  # statuses to answer with, first
        self.asked = 0
        self.at_the_door: Callable[[], None] = lambda: None

    async def serve(self, session: ServerConnection) -> None:
        self.sessions.put_nowait(session)
        await session.wait_closed()

    def process(self, session: ServerConnection, request: Request) -> Response | None:
        self.asked += 1
        self.at_the_door()
        return session.respond(self.refusals.pop(0), "no") if self.refusals else None

    async def next(self) -> ServerConnection:
        async with asyncio.timeout(PATIENCE_S):
            return await self.sessions.get()


async def tell(session: ServerConnection, frame: Downward) -> None:
    await session.send(msgspec.msgpack.encode(frame))


async def hear(session: ServerConnection, kind: type) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            frame = msgspec.msgpack.decode(await session.recv(decode=False), type=Upward)
            if isinstance(frame, kind):
                return frame


def at_work(name: str) -> int:
    return len([task for task in asyncio.all_tasks() if name in repr(task)])


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    made = Plane(tmp_path)
    listening: Server
    async with serve(made.serve, "127.0.0.1", 0, process_request=made.process, ping_interval=None) as listening:
        host, port = next(iter(listening.sockets)).getsockname()
        (tmp_path / "agent.key").write_text("key")
        (tmp_path / "server.json").write_text(json.dumps({"base_url": f"http://{host}:{port}"}))
        yield made


@pytest.fixture
async def agent(plane: Plane) -> AsyncIterator[Agent]:
    made = Agent(LocalRoute(plane.data_dir), plane.data_dir / "agent", SystemClock(), version="0")
    running = asyncio.create_task(made.run())
    yield made
    made._stop()
    await asyncio.wait_for(running, PATIENCE_S)


@pytest.mark.parametrize("bad", [b"\xc1", msgspec.msgpack.encode({"type": "nothing"}), b""])
async def test_a_frame_that_cannot_be_read_begins_a_new_session(plane: Plane, agent: Agent, bad: bytes) -> None:
    first = await plane.next()
    await hear(first, Hello)
    await tell(first, WELCOME)
    await first.send(bad)
    again = await plane.next()
    assert (await hear(again, Hello)).agent == agent.id


@pytest.mark.parametrize("code", [1001, 1007, 1008, 1013])
async def test_however_a_session_ends_there_is_a_next_one(plane: Plane, agent: Agent, code: int) -> None:
    for _ in range(2):
        session = await plane.next()
        await hear(session, Hello)
        await tell(session, WELCOME)
        await session.close(code)
    await hear(await plane.next(), Hello)


async def test_a_local_agent_comes_back_after_a_refusal(plane: Plane, agent: Agent) -> None:
    plane.refusals = [503, 403, 426]
    await (await plane.next()).close()
    await hear(await plane.next(), Hello)
    assert plane.asked == 5 and agent.refused is None


async def test_a_remote_agent_that_is_refused_at_first_ends(plane: Plane) -> None:
    server = LocalRoute(plane.data_dir).find()
    assert server is not None
    plane.refusals = [503, 401]
    agent = Agent(RemoteRoute(server.base_url, "key"), plane.data_dir / "agent", SystemClock(), version="0")
    await asyncio.wait_for(agent.run(), PATIENCE_S)
    assert agent.refused is not None and plane.asked == 2


async def test_a_second_welcome_changes_nothing(plane: Plane, agent: Agent) -> None:
    session = await plane.next()
    await hear(session, Hello)
    for _ in range(2):
        await tell(session, msgspec.structs.replace(WELCOME, lease_s=0.3))
    await hear(session, Renew)
    assert at_work("Agent._renew") == 1


async def test_each_session_is_watched_to_its_end(plane: Plane, agent: Agent) -> None:
    for _ in range(3):
        session = await plane.next()
        await hear(session, Hello)
        assert at_work("Wire.watch") == 1
        await session.close()


async def test_a_session_that_comes_to_nothing_is_closed(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    async def open(host: str) -> None:
        raise OSError("no such address")

    server = LocalRoute(plane.data_dir).find()
    assert server is not None
    agent = Agent(RemoteRoute(server.base_url, "key"), plane.data_dir / "agent", SystemClock(), version="0")
    monkeypatch.setattr(agent._relay, "open", open)
    running = asyncio.create_task(agent.run())
    for _ in range(2):
        session = await plane.next()
        await asyncio.wait_for(session.wait_closed(), PATIENCE_S)
    agent._stop()
    await asyncio.wait_for(running, PATIENCE_S)


async def test_a_welcome_before_the_hello_is_none(tmp_path: Path) -> None:
    heard = asyncio.Event()

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = ServerProtocol()
        protocol.receive_data(await reader.readuntil(b"\r\n\r\n"))
        (request,) = protocol.events_received()
        assert isinstance(request, Request)
        protocol.send_response(protocol.accept(request))
        protocol.send_binary(msgspec.msgpack.encode(WELCOME))
        writer.write(b"".join(protocol.data_to_send()))  # in one piece
        protocol.receive_data(await reader.read(65536))
        (hello,) = protocol.events_received()
        assert isinstance(hello, Frame)
        msgspec.msgpack.decode(hello.data, type=Hello)
        heard.set()
        writer.close()

    async with await asyncio.start_server(hasty, "127.0.0.1", 0) as listening:
        url = "http://{}:{}".format(*listening.sockets[0].getsockname())
        agent = Agent(RemoteRoute(url, "key"), tmp_path, SystemClock(), version="0")
        running = asyncio.create_task(agent.run())
        await asyncio.wait_for(heard.wait(), PATIENCE_S)
        assert not agent._met
        agent._stop()
        await asyncio.wait_for(running, PATIENCE_S)


async def test_an_agent_that_leaves_says_goodbye(plane: Plane, agent: Agent) -> None:
    session = await plane.next()
    await hear(session, Hello)
    await tell(session, WELCOME)
    await tell(session, Leave(reason="the test ends"))
    assert (await hear(session, Renew)).leaving
    with pytest.raises(ConnectionClosed) as caught:
        await hear(session, Hello)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1000


async def test_an_agent_that_is_over_while_it_connects_holds_no_session(plane: Plane, agent: Agent) -> None:
    session = await plane.next()
    plane.at_the_door = agent._stop
    await session.close()
    again = await plane.next()
    with pytest.raises(ConnectionClosed):
        await hear(again, Hello)
