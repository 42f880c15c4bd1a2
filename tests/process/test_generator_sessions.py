"""A generator goes on while its agent's session breaks: each item comes once, and a pause ends in any case."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import psutil
import pytest
from aiohttp import WSMsgType, web
from chaos.aftermath import loaded
from test_sessions import Wire, remote_agent, scene

from apothic.agent.items import IN_FLIGHT_ITEMS
from apothic.agent.route import LocalRoute
from apothic.agent.session import Agent
from apothic.clock import SystemClock
from apothic.protocol.messages import FunctionSpec
from apothic.protocol.routes import SESSION_PATH
from apothic.protocol.session import (
    Acknowledge,
    Assignment,
    Downward,
    Hello,
    Item,
    Packed,
    Reports,
    Resume,
    StartContainer,
    Upward,
    Welcome,
    Work,
)
from apothic.protocol.specs import FunctionOptions

ITEMS = 3_000
STREAMER = f"""
import apothic

app = apothic.App("streamer")


@app.function()
def stream():
    for n in range({ITEMS}):
        yield n if n % 300 else bytes(100_000)
    print("attempt", apothic.current_job().attempt)
    return "end"
"""


def test_a_cut_session_neither_loses_nor_repeats_an_item(tmp_path: Path) -> None:
    with (
        scene(tmp_path, alone=True, lease_s=4) as it,
        contextlib.closing(Wire(it.server.base_url)) as wire,
        remote_agent(it, wire.base_url),
        loaded(tmp_path, "streamer", STREAMER, it.client) as app,
    ):
        job = app.stream.spawn()
        got = []
        for item in job.wait_gen(timeout_s=60):
            got.append(item)
            if len(got) in (10, 500, 501, 1_200, 2_500):
                wire.cut()
                wire.mend()
        assert got == [n if n % 300 else bytes(100_000) for n in range(ITEMS)]
        assert job.wait(timeout_s=30) == "end" and job.logs() == ["attempt 1"]
        assert it.server.log().count("session.hello") > 1


# --- against a control plane that is played by hand -----------------------------------------------------------------


class Plane:
    """Hears one agent: its reports by sequence, and nothing twice. Tells it what the test wants."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self.ended = False
        self.hellos: list[Hello] = []
        self.paused: list[str] = []
        self.acknowledging = True
        self._seq = 0
        self._number = -1
        self._socket: web.WebSocketResponse | None = None
        self._changed = asyncio.Event()
        self._work: list[Downward] = [
            StartContainer(
                container="ctr_1", deployment="dep_1", app="shop", files=[],
                function=FunctionSpec(name="f", module="made", qualname="f", options=FunctionOptions()),
            ),
            Work(
                assignments=[
                    Assignment(
                        container="ctr_1", job="job_1", attempt=1, token="token_1", timeout_s=60.0, accept=["json"],
                        input=Packed(encoding="json", data=b'{"args":[600]}'), job_token="",
                    )
                ]
            ),
        ]  # fmt: skip

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        self._socket = web.WebSocketResponse()
        await self._socket.prepare(request)
        async for message in self._socket:
            if message.type is WSMsgType.BINARY:
                await self._hear(msgspec.msgpack.decode(message.data, type=Upward))
                self._changed.set()
        return self._socket

    async def tell(self, frame: Downward) -> None:
        assert self._socket is not None
        await self._socket.send_bytes(msgspec.msgpack.encode(frame))

    async def _hear(self, frame: Upward) -> None:
        if isinstance(frame, Hello):
            self.hellos.append(frame)
            limits = {"payload_limit": 1 << 20, "inline_limit": 1 << 16, "startup_timeout_s": 20.0}
            await self.tell(Welcome(lease_s=30.0, grace_s=1.0, **limits))
            work, self._work = self._work, []
            for order in work:
                await self.tell(order)
        elif isinstance(frame, Reports):
            for report in frame.reports:
                if report.seq == self._seq:
                    self._seq += 1
                    self.items += [one.index for one in report.said if isinstance(one, Item)]
                    self.ended = report.outcome is not None
            self._number = max(self._number, frame.number)
            if self.acknowledging:
                await self.acknowledge()

    async def acknowledge(self) -> None:
        await self.tell(Acknowledge(number=self._number, paused=self.paused))

    async def cut(self) -> None:
        assert self._socket is not None
        await self._socket.close()

    async def until(self, count: int) -> None:
        """Wait until so many items came; with nothing left to come, see that it stays at that."""
        async with asyncio.timeout(30):
            while len(self.items) < count:
                self._changed.clear()
                await self._changed.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                while len(self.items) == count and not self.ended:
                    self._changed.clear()
                    await self._changed.wait()
        assert len(self.items) == count

    async def end(self) -> None:
        async with asyncio.timeout(30):
            while not self.ended:
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
async def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Plane]:
    (tmp_path / "made.py").write_text("def f(n):\n    for place in range(n): yield place\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    made = Plane()
    app = web.Application()
    app.router.add_get(SESSION_PATH, made.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await web.SockSite(runner, listener).start()
        (tmp_path / "agent.key").write_text("key")
        (tmp_path / "server.json").write_text(f'{{"base_url": "http://127.0.0.1:{listener.getsockname()[1]}"}}')
        agent = Agent(LocalRoute(tmp_path), tmp_path / "agent", SystemClock(), version="0.1.0")
        running = asyncio.create_task(agent.run())
        yield made
        agent._stop()
        await asyncio.wait_for(running, 20)
        await runner.cleanup()
    assert [child for child in psutil.Process().children(recursive=True) if child.pid not in before] == []


async def test_a_pause_holds_until_the_control_plane_ends_it(plane: Plane) -> None:
    plane.paused = ["token_1"]
    await plane.until(IN_FLIGHT_ITEMS)

    await plane.tell(Resume(token="token_1"))
    await plane.until(2 * IN_FLIGHT_ITEMS)

    plane.paused = []
    await plane.tell(Resume(token="token_1"))
    await plane.end()
    assert plane.items == list(range(600))


async def test_a_new_session_ends_a_pause(plane: Plane) -> None:
    plane.paused = ["token_1"]
    await plane.until(IN_FLIGHT_ITEMS)
    plane.paused = []

    await plane.cut()
    await plane.end()

    assert plane.items == list(range(600)) and len(plane.hellos) == 2


async def test_what_was_not_acknowledged_is_sent_again_and_the_generator_goes_on_with_the_next_session(
    plane: Plane,
) -> None:
    plane.acknowledging = False
    await plane.until(IN_FLIGHT_ITEMS)
    plane._seq, plane.items = 0, []  # it was never on disk
    plane.acknowledging = True

    await plane.cut()
    await plane.end()

    assert plane.items == list(range(600))
    assert [lease.token for lease in plane.hellos[1].leases] == ["token_1"]
