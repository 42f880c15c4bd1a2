"""The agent's websocket, against another end that is played by hand: a blocking socket in a thread."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from apothic.agent import wire as module
from apothic.agent.wire import PING_S, PONG_S, Refused, Wire, connect
from apothic.clock import Clock, ManualClock, SystemClock

PATIENCE_S = 20.0
MIB = 1 << 20


class End:
    """The other end of one connection. Whatever blocks is called in a thread."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/session"
        self.request: Request | None = None
        self.closed = False
        self._protocol = ServerProtocol(max_size=None)
        self._frames: list[Frame] = []
        self.line: socket.socket | None = None

    def accept(self, tls: ssl.SSLContext | None = None) -> None:
        """Take a connection, and read its request."""
        self.line, _ = self.listener.accept()
        self.line.settimeout(PATIENCE_S)
        if tls is not None:
            self.line = tls.wrap_socket(self.line, server_side=True)
        while self.request is None:
            self._feed()

    def agree(self, with_it: bytes = b"", tls: ssl.SSLContext | None = None) -> None:
        """Open the websocket; send more in the same piece."""
        self.accept(tls)
        assert self.request is not None
        self._protocol.send_response(self._protocol.accept(self.request))
        self.write(b"".join(self._protocol.data_to_send()) + with_it)

    def write(self, data: bytes) -> None:
        assert self.line is not None
        self.line.sendall(data)

    def read(self) -> Frame | None:
        """Return the next frame that comes, none at the end. What is to be answered is answered only by a test."""
        while not self._frames and not self.closed:
            self._feed()
        return self._frames.pop(0) if self._frames else None

    def _feed(self) -> None:
        assert self.line is not None
        data = self.line.recv(65536)
        if data:
            self._protocol.receive_data(data)
        else:
            self.closed = True
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self.request = event
            elif isinstance(event, Frame):
                self._frames.append(event)

    def close(self) -> None:
        for one in (self.listener, self.line):
            if one is not None:
                one.close()


def frame(opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=False)


def message(data: bytes) -> bytes:
    return frame(Opcode.BINARY, data)


@pytest.fixture
def end() -> Iterator[End]:
    made = End()
    yield made
    made.close()


Hear = Callable[[Any], None]


@asynccontextmanager
async def joined(end: End, hear: Hear = print, clock: Clock | None = None, with_it: bytes = b"") -> AsyncIterator[Wire]:
    agreeing = asyncio.create_task(asyncio.to_thread(end.agree, with_it))
    wire = await connect(end.url, "the key", hear, clock or SystemClock())
    await agreeing
    try:
        yield wire
    finally:
        wire.abort()
        async with asyncio.timeout(PATIENCE_S):
            await wire._over.wait()


class Heard:
    """Collects what comes, and tells whether a task was at work for it."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.tasks: list[asyncio.Task[Any] | None] = []
        self._more = asyncio.Event()

    def __call__(self, data: Any) -> None:
        self.messages.append(bytes(data))
        self.tasks.append(asyncio.current_task())
        self._more.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.messages) < count:
                self._more.clear()
                await self._more.wait()


async def ended(wire: Wire) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await wire.ended()


# --- frames -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_frames_go_both_ways_without_a_task(end: End, make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def talk() -> None:
        heard, made = Heard(), 0
        loop = asyncio.get_running_loop()

        def count(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **more: Any) -> asyncio.Task[Any]:
            nonlocal made
            made += 1
            return asyncio.Task(work, loop=loop, **more)

        async with joined(end, heard) as wire:
            loop.set_task_factory(count)
            for n in range(50):
                await asyncio.to_thread(end.write, message(b"down %d" % n))
                await heard.until(n + 1)
                wire.send(b"up %d" % n)
                found = await asyncio.to_thread(end.read)
                assert found is not None and found.data == b"up %d" % n
            loop.set_task_factory(None)
        assert heard.messages == [b"down %d" % n for n in range(50)]
        assert set(heard.tasks) == {None} and made == 0

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(talk())


async def test_what_comes_in_one_piece_is_heard_in_one_turn_of_the_loop(end: End) -> None:
    heard, turns = Heard(), 0

    def turn() -> None:
        nonlocal turns
        turns += 1

    def hear(data: Any) -> None:
        heard(data)
        asyncio.get_running_loop().call_soon(turn)
        assert turns == 0

    async with joined(end, hear):
        await asyncio.to_thread(end.write, b"".join(message(b"%d" % n) for n in range(100)))
        await heard.until(100)
    assert heard.messages == [b"%d" % n for n in range(100)]


async def test_a_frame_is_on_its_way_when_send_returns(end: End) -> None:
    async with joined(end) as wire:
        wire.send(b"now")
        found = end.read()  # the loop stands still meanwhile
        assert found is not None and found.data == b"now"


async def test_a_message_comes_whole_however_it_is_cut(end: End) -> None:
    heard = Heard()
    async with joined(end, heard, with_it=message(b"with the answer")):
        parts = [
            frame(Opcode.BINARY, b"one ", fin=False),
            frame(Opcode.PING, b"between"),
            frame(Opcode.CONT, b"two ", fin=False),
            frame(Opcode.CONT, b"three"),
            frame(Opcode.TEXT, b"not ", fin=False),
            frame(Opcode.CONT, b"ours"),
            message(b""),
        ]
        for byte in b"".join(parts):
            await asyncio.to_thread(end.write, bytes([byte]))
        await heard.until(3)
        pong = await asyncio.to_thread(end.read)
    assert heard.messages == [b"with the answer", b"one two three", b""]
    assert pong is not None and (pong.opcode, pong.data) == (Opcode.PONG, b"between")


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 256 * MIB])
async def test_a_message_may_be_large(end: End, size: int) -> None:
    heard = Heard()
    async with joined(end, heard) as wire:
        data = bytes(size)
        await asyncio.to_thread(end.write, message(data))
        await heard.until(1)
        wire.send(heard.messages.pop())
        found = await asyncio.to_thread(end.read)
        assert found is not None and found.data == data


async def test_what_the_other_end_does_not_read_waits_in_order(end: End) -> None:
    count = 64
    async with joined(end) as wire:
        for n in range(count):
            wire.send(bytes([n]) * MIB)
        # Of what one cannot write, the transport has a piece or two, in a copy; the rest are the outbox's own bytes.
        assert wire._transport.get_write_buffer_size() <= 2 * MIB
        for n in range(count):
            found = await asyncio.to_thread(end.read)
            assert found is not None and found.data == bytes([n]) * MIB
        wire.send(b"the last")
        found = await asyncio.to_thread(end.read)
        assert found is not None and found.data == b"the last"


# --- the beginning ----------------------------------------------------------------------------------------------


async def test_the_key_is_shown(end: End) -> None:
    async with joined(end) as wire:
        assert wire.address == "127.0.0.1"
    assert end.request is not None and end.request.path == "/session"
    assert end.request.headers.get_all("Authorization") == ["Bearer the key"]
    assert end.request.headers["Host"] == f"127.0.0.1:{end.port}"


@pytest.mark.parametrize("status", [401, 403, 426, 503, 302])
async def test_a_refusal_has_its_status(end: End, status: int) -> None:
    def refuse() -> None:
        end.accept()
        end.write(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\nno" % status)

    refusing = asyncio.create_task(asyncio.to_thread(refuse))
    with pytest.raises(Refused) as caught:
        await connect(end.url, "the key", print, SystemClock())
    await refusing
    assert caught.value.status == status


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 403 No\r\n\r\n", b"garbage\r\n\r\n", b"HTTP/1.1 101 Yes\r\n\r\n"])
async def test_an_end_without_a_websocket_is_an_error(end: End, answer: bytes) -> None:
    def reply() -> None:
        end.accept()
        end.write(answer)
        end.close()

    replying = asyncio.create_task(asyncio.to_thread(reply))
    with pytest.raises(ConnectionError):
        await connect(end.url, "the key", print, SystemClock())
    await replying


async def test_who_never_answers_is_given_up(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 0.2)
    with pytest.raises(TimeoutError, match="no answer"):
        await connect(end.url, "the key", print, SystemClock())


@pytest.mark.parametrize("swallows", [False, True])
async def test_after_an_address_that_refuses_or_swallows_the_next_is_tried(
    end: End, swallows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    really = loop.create_connection

    async def found(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", (address, end.port)) for address in ("127.0.0.2", "127.0.0.1")]

    async def reach(make: Any, address: str, *more: Any, **named: Any) -> Any:
        if swallows and address == "127.0.0.2":
            await asyncio.Event().wait()
        return await really(make, address, *more, **named)

    monkeypatch.setattr(loop, "getaddrinfo", found)
    monkeypatch.setattr(loop, "create_connection", reach)
    monkeypatch.setattr(module, "CONNECT_S", 2.0)
    end.url = end.url.replace("127.0.0.1", "somewhere.test")
    async with joined(end) as wire:
        assert wire.address == "127.0.0.1"


@pytest.mark.parametrize("url", ["http://somebody@127.0.0.1", "http://127.0.0.1:port", "http://"])
async def test_what_is_no_address_is_an_error(url: str) -> None:
    with pytest.raises(ConnectionError):
        await connect(url, "the key", print, SystemClock())


async def test_a_key_with_a_line_end_is_an_error(end: End) -> None:
    with pytest.raises(ConnectionError, match="key"):
        await connect(end.url, "a\r\nb: c", print, SystemClock())


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_certificate_must_be_one_that_the_system_trusts(
    end: End, trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = trustme.CA()
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(tls)
    tls.set_alpn_protocols(["h2", "http/1.1"])
    if trusted:
        authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    module._tls.cache_clear()
    agreeing = asyncio.create_task(asyncio.to_thread(end.agree, b"", tls))
    heard = Heard()
    try:
        if trusted:
            wire = await connect(f"https://localhost:{end.port}/session", "the key", heard, SystemClock())
            await agreeing
            assert isinstance(end.line, ssl.SSLSocket) and end.line.selected_alpn_protocol() == "http/1.1"
            wire.send(b"up")
            found = await asyncio.to_thread(end.read)
            assert found is not None and found.data == b"up"
            await asyncio.to_thread(end.write, message(b"down"))
            await heard.until(1)
            wire.abort()
            await ended(wire)
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(f"https://localhost:{end.port}/session", "the key", heard, SystemClock())
            with pytest.raises(ssl.SSLError):
                await agreeing
    finally:
        module._tls.cache_clear()


# --- the end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1007, 1008, 1013])
async def test_an_end_by_the_other_is_answered_once_all_before_it_was_heard(
    end: End, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 600.0)
    heard = Heard()
    async with joined(end, heard) as wire:
        await asyncio.to_thread(end.write, message(b"last") + frame(Opcode.CLOSE, code.to_bytes(2, "big")))
        await ended(wire)
        answer = await asyncio.to_thread(end.read)
        assert answer is not None and (answer.opcode, answer.data) == (Opcode.CLOSE, code.to_bytes(2, "big"))
        assert await asyncio.to_thread(end.read) is None
        wire.send(b"nobody is there")
    assert heard.messages == [b"last"]


@pytest.mark.parametrize("bad", [b"\xc2\x00", b"\x83\x00", b"\x80\x00", b"\x82\x85aaaabbbbb"])
async def test_what_breaks_the_rules_ends_it(end: End, bad: bytes) -> None:
    heard = Heard()
    async with joined(end, heard) as wire:
        await asyncio.to_thread(end.write, message(b"good") + bad)
        await ended(wire)
        answer = await asyncio.to_thread(end.read)
        assert answer is not None and answer.opcode is Opcode.CLOSE and answer.data[:2] == (1002).to_bytes(2, "big")
    assert heard.messages == [b"good"]


async def test_a_cut_ends_it(end: End) -> None:
    async with joined(end) as wire:
        end.close()
        await ended(wire)


async def test_what_hearing_raises_ends_it_and_is_raised(end: End) -> None:
    def hear(data: Any) -> None:
        raise ValueError(bytes(data))

    async with joined(end, hear) as wire:
        await asyncio.to_thread(end.write, message(b"bad"))
        with pytest.raises(ValueError, match="bad"):
            await ended(wire)


async def test_a_goodbye_waits_for_its_answer_and_hears_nothing_more(end: End) -> None:
    heard = Heard()
    async with joined(end, heard) as wire:
        wire.close()
        goodbye = await asyncio.to_thread(end.read)
        assert goodbye is not None and goodbye.opcode is Opcode.CLOSE
        await asyncio.to_thread(end.write, message(b"late") + frame(Opcode.CLOSE, goodbye.data))
        await ended(wire)
    assert heard.messages == []


async def test_a_goodbye_that_nobody_answers_ends_it_soon(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.05)
    async with joined(end) as wire:
        wire.close()
        await ended(wire)


# --- silence ----------------------------------------------------------------------------------------------------


async def test_who_is_silent_is_asked_and_then_given_up(end: End) -> None:
    clock = ManualClock()
    async with joined(end, clock=clock) as wire:
        watching = asyncio.create_task(wire.watch())
        await asyncio.sleep(0)
        await clock.advance(PING_S)
        ping = await asyncio.to_thread(end.read)
        assert ping is not None and ping.opcode is Opcode.PING
        assert not wire._over.is_set()
        await clock.advance(PONG_S)
        await ended(wire)
        await watching


async def test_who_answers_is_asked_again_later(end: End) -> None:
    clock, heard = ManualClock(), Heard()
    async with joined(end, heard, clock) as wire:
        watching = asyncio.create_task(wire.watch())
        await asyncio.sleep(0)
        for n in range(3):
            await clock.advance(PING_S - PONG_S if n else PING_S)
            ping = await asyncio.to_thread(end.read)
            assert ping is not None and ping.opcode is Opcode.PING
            await asyncio.to_thread(end.write, frame(Opcode.PONG, ping.data) + message(b"%d" % n))
            await heard.until(n + 1)
            await clock.advance(PONG_S)
        assert not wire._over.is_set()
        watching.cancel()


async def test_who_speaks_is_not_asked(end: End) -> None:
    clock, heard = ManualClock(), Heard()
    async with joined(end, heard, clock) as wire:
        watching = asyncio.create_task(wire.watch())
        await asyncio.sleep(0)
        for n in range(4):
            await clock.advance(PING_S * 0.7)
            await asyncio.to_thread(end.write, message(b"%d" % n))
            await heard.until(n + 1)
        wire.send(b"asked for nothing")
        found = await asyncio.to_thread(end.read)
        assert found is not None and found.data == b"asked for nothing"
        watching.cancel()


def test_the_session_needs_no_web_client() -> None:
    code = "import sys, apothic.agent.session; print('aiohttp' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    assert told.strip() == "False"
