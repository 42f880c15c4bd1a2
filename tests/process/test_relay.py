"""The relay of an agent that is elsewhere, on both event loops: who is let in, and how bytes go."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from apothic.agent.door import Door, connect
from apothic.agent.relay import Relay
from apothic.clock import SystemClock
from apothic.protocol.messages import FunctionSpec
from apothic.protocol.services import ServiceSpec
from apothic.protocol.session import StartContainer
from apothic.protocol.specs import FunctionOptions

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
SECRET = "k" * 40


class Place:
    """A relay with one service behind it, whose end the test plays."""

    def __init__(self, home: Path, kind: str = "asgi") -> None:
        function = FunctionSpec(
            name="f", module="app", qualname="f", kind=kind, options=FunctionOptions(), service=ServiceSpec()  # type: ignore[arg-type]
        )  # fmt: skip
        order = StartContainer(
            container="ctr_1", deployment="dep", app="shop", function=function, files=[], secret=SECRET
        )
        self.door = Door(order, home)
        self.relay = Relay({"ctr_1": self.door}.get, SystemClock())
        self.writers: list[asyncio.StreamWriter] = []
        self.came: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def __aenter__(self) -> Place:
        await self.relay.open("127.0.0.1")

        async def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.writers.append(writer)
            await self.came.put((reader, writer))

        if self.door.port:
            self.server = await asyncio.start_server(enter, "127.0.0.1", self.door.port)
        else:
            self.server = await asyncio.start_unix_server(enter, sock=self.door.listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.relay.close()
        self.server.close()
        for writer in self.writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self.writers), return_exceptions=True)

    async def dial(self, line: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.relay.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        self.writers.append(writer)
        writer.write(line)
        return reader, writer

    async def enter(self) -> tuple[Any, Any, Any, Any]:
        """Return both ends of a connection that was let in."""
        reader, writer = await self.dial(f"APOTHIC ctr_1 {SECRET}\n".encode())
        assert await reader.readline() == b"OK\n"
        return reader, writer, *(await self.came.get())


def on_each_loop(make: Callable[[Place], Awaitable[None]], home: Path, kind: str = "asgi") -> None:
    for number, factory in enumerate(LOOPS):
        folder = home / str(number)
        folder.mkdir()

        async def run(folder: Path = folder) -> None:
            async with asyncio.timeout(30), Place(folder, kind) as place:
                await make(place)

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(run())


@pytest.mark.parametrize("kind", ["asgi", "web_server"])
def test_bytes_go_both_ways_and_each_half_ends_by_itself(tmp_path: Path, kind: str) -> None:
    async def made(place: Place) -> None:
        reader, writer, there, back = await place.enter()
        big = os.urandom(3_000_000)
        writer.write(big)
        writer.write_eof()
        assert hashlib.sha256(await there.read()).digest() == hashlib.sha256(big).digest()
        back.write(big[::-1])  # the other half is still open
        back.close()
        assert await reader.read() == big[::-1]
        writer.close()

    on_each_loop(made, tmp_path, kind)


@pytest.mark.parametrize(
    "line",
    [
        b"APOTHIC ctr_1 wrong\n", b"APOTHIC ctr_1 \n", b"APOTHIC ctr_2 " + SECRET.encode() + b"\n", b"GET / HTTP/1.1\n",
        b"APOTHIC ctr_1 " + SECRET.encode() + b"x\n", b"\n", b"\xff\xfe \xff \xff\n", b"x" * 100_000 + b"\n",
        b"HELLO ctr_1 " + SECRET.encode() + b"\n",
    ],
)  # fmt: skip
def test_who_does_not_know_the_secret_is_closed_out(tmp_path: Path, line: bytes) -> None:
    async def made(place: Place) -> None:
        reader, writer = await place.dial(line)
        with contextlib.suppress(ConnectionResetError):  # what it sent was not read to the end
            assert await reader.read() == b""
        assert place.came.empty()
        writer.close()

    on_each_loop(made, tmp_path)


def test_a_service_without_a_secret_is_not_to_be_had(tmp_path: Path) -> None:
    async def made(place: Place) -> None:
        place.door.secret = ""
        reader, writer = await place.dial(b"APOTHIC ctr_1 \n")
        assert await reader.read() == b""
        writer.close()

    on_each_loop(made, tmp_path)


def test_a_service_that_is_gone_closes_its_caller_out(tmp_path: Path) -> None:
    async def made(place: Place) -> None:
        place.server.close()
        await place.server.wait_closed()
        reader, writer = await place.dial(f"APOTHIC ctr_1 {SECRET}\n".encode())
        assert await reader.read() == b""
        writer.close()

    on_each_loop(made, tmp_path)


def test_a_side_that_breaks_off_breaks_the_other(tmp_path: Path) -> None:
    async def made(place: Place) -> None:
        _, writer, there, back = await place.enter()
        writer.transport.abort()
        with pytest.raises(ConnectionError):
            while True:
                back.write(b"x" * 100_000)
                await back.drain()
        reader, writer, there, back = await place.enter()
        back.transport.abort()
        assert await reader.read() == b""
        writer.close()
        assert there is not None

    on_each_loop(made, tmp_path)


def test_a_slow_reader_holds_its_writer(tmp_path: Path) -> None:
    async def made(place: Place) -> None:
        reader, writer, _, back = await place.enter()
        sent, full = 0, False
        while not full:
            back.write(b"x" * 100_000)
            sent += 100_000
            assert sent < 60_000_000  # what kernels hold between three sockets is far less
            try:
                async with asyncio.timeout(0.5):
                    await back.drain()
            except TimeoutError:
                full = True
        back.close()
        assert len(await reader.read()) == sent
        writer.close()

    on_each_loop(made, tmp_path)


async def test_a_full_queue_of_a_service_is_waited_for(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert place.door.listener is not None
    place.door.listener.listen(0)
    held = [connect(tmp_path / "serve.sock")]
    with pytest.raises(BlockingIOError):
        for _ in range(10):
            held.append(connect(tmp_path / "serve.sock"))
    await place.relay.open("127.0.0.1")
    reader, writer = await place.dial(f"APOTHIC ctr_1 {SECRET}\n".encode())
    answer = asyncio.create_task(reader.readline())
    taken = [await asyncio.to_thread(place.door.listener.accept) for _ in range(len(held) + 1)]
    assert await answer == b"OK\n"
    writer.close()
    await writer.wait_closed()
    await place.relay.close()
    for sock in (*held, *(one for one, _ in taken), place.door.listener):
        sock.close()


async def test_a_new_address_has_a_new_port_and_old_connections_stay(tmp_path: Path) -> None:
    async with Place(tmp_path) as place:
        first = place.relay.address
        await place.relay.open("127.0.0.1")
        assert place.relay.address == first
        reader, writer, _, back = await place.enter()
        await place.relay.open("::1")
        assert place.relay.address.startswith("[::1]:")
        back.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(first.rpartition(":")[2]))).close()
        writer.close()


async def test_who_says_nothing_is_closed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apothic.agent.relay.PREAMBLE_S", 0.1)
    async with Place(tmp_path) as place:
        reader, writer = await place.dial(b"APOTHIC ctr_1")
        assert await reader.read() == b""
        writer.close()
