"""The agent's websocket. What comes is acted on where it is read, what is to go is written at once: no task, no queue.

websockets speaks the protocol, without a socket of its own: 3 µs for a small frame that comes, 2 for one that goes.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.uri import WebSocketURI, parse_uri

from apothic.clock import Clock

CONNECT_S = 10.0
PING_S = 20.0  # of silence, then the other end is asked whether it is there
PONG_S = 10.0  # for it to say anything
CLOSE_S = 1.0  # for a connection to end that was ended

Hear = Callable[[bytes | bytearray | memoryview], None]
_DATA = (Opcode.BINARY, Opcode.TEXT, Opcode.CONT)


class Refused(ConnectionError):
    """The other end answered, and opened no websocket."""

    def __init__(self, status: int) -> None:
        super().__init__(f"it answers {status}")
        self.status = status


async def connect(url: str, key: str, on_frame: Hear, clock: Clock) -> Wire:
    """Open a websocket at an http or https URL and show `key` there. `on_frame` gets each binary message.

    Raises `Refused`, `TimeoutError`, another `OSError`.
    """
    if not key.isprintable():
        raise ConnectionError("the key is no single line")  # it would be more than one header
    try:
        uri = parse_uri("ws" + url[len("http") :])
        protocol = ClientProtocol(uri, max_size=None)
        request = protocol.connect()
        request.headers["Authorization"] = f"Bearer {key}"
    except (WebSocketException, ValueError) as error:
        raise ConnectionError(str(error)) from None
    wire = Wire(protocol, on_frame, clock)
    try:
        async with asyncio.timeout(CONNECT_S):
            await _reach(uri, wire)
            protocol.send_request(request)
            await wire.open()
    except BaseException as error:
        wire.abort()
        if isinstance(error, TimeoutError):
            raise TimeoutError(f"no answer within {CONNECT_S:.0f} s") from None
        raise
    return wire


async def _reach(uri: WebSocketURI, wire: Wire) -> None:
    """Connect to the first of its addresses that answers; one that swallows everything leaves time for the others."""
    loop = asyncio.get_running_loop()
    tls, name = (_tls(), uri.host) if uri.secure else (None, None)
    addresses = [found[4][0] for found in await loop.getaddrinfo(uri.host, uri.port, type=socket.SOCK_STREAM)]
    for left, address in zip(reversed(range(len(addresses))), addresses, strict=True):
        try:
            async with asyncio.timeout(CONNECT_S / len(addresses)):
                await loop.create_connection(lambda: wire, str(address), uri.port, ssl=tls, server_hostname=name)
            return
        except OSError:
            if not left:
                raise


@functools.cache
def _tls() -> ssl.SSLContext:
    made = ssl.create_default_context()
    made.set_alpn_protocols(["http/1.1"])
    return made


class Wire(asyncio.Protocol):
    """One websocket. Whoever has it open calls `ended` and `watch`."""

    def __init__(self, protocol: ClientProtocol, on_frame: Hear, clock: Clock) -> None:
        self.address = ""  # ours
        self._protocol = protocol
        self._on_frame = on_frame
        self._clock = clock
        self._transport: Any = None  # uvloop's is none by its type
        self._answered = asyncio.Event()
        self._over = asyncio.Event()
        self._trouble: Exception | None = None
        self._pieces: list[bytes | bytearray | memoryview] = []  # of a message that comes in several frames
        self._is_binary = False
        self._waiting: deque[bytes] = deque()  # for the other end to read what was written before
        self._is_full = False
        self._is_leaving = False
        self._heard_at = clock.monotonic()

    async def open(self) -> None:
        """Shake hands. Raises `Refused`, `ConnectionError`."""
        self._flush()
        await self._answered.wait()
        error = self._protocol.handshake_exc
        if isinstance(error, InvalidStatus):
            raise Refused(error.response.status_code)
        if error is not None:
            raise ConnectionError(str(error))

    async def ended(self) -> None:
        """Wait for the end of the connection. Raises what `on_frame` has raised."""
        await self._over.wait()
        if self._trouble is not None:
            raise self._trouble

    async def watch(self) -> None:
        """Ask the other end when it is silent, and break off when it stays so."""
        while self._protocol.state is State.OPEN:
            heard_at = self._heard_at
            await self._clock.sleep(heard_at + PING_S - self._clock.monotonic())
            if self._heard_at != heard_at or self._protocol.state is not State.OPEN:
                continue
            self._protocol.send_ping(b"")
            self._flush()
            await self._clock.sleep(PONG_S)
            if self._heard_at == heard_at:
                self.abort()
                return

    def send(self, frame: bytes) -> None:
        """Send a message: now, or when there is room. When the websocket has ended, nothing happens."""
        if self._protocol.state is not State.OPEN:
            return
        if self._is_full:
            self._waiting.append(frame)
            return
        self._protocol.send_binary(frame)
        self._flush()

    def close(self) -> None:
        """Say goodbye. What still comes is for nobody; the connection ends with the answer, or soon."""
        self._is_leaving = True
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            self._flush()
            self._end_soon()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:  # an empty one is the end, which closing brings about
                self._transport.write(data)

    def _end_soon(self) -> None:
        asyncio.get_running_loop().call_later(CLOSE_S, self.abort)

    # --- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.address = str(transport.get_extra_info("sockname")[0])

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._clock.monotonic()
        protocol = self._protocol
        protocol.receive_data(data)
        self._flush()
        try:
            for event in protocol.events_received():
                if isinstance(event, Frame) and event.opcode in _DATA and not self._is_leaving:
                    self._take(event)
        except Exception as error:
            self._trouble = error
            self.abort()
        if protocol.state is not State.CONNECTING or protocol.handshake_exc is not None:
            self._answered.set()
        if protocol.close_rcvd is not None or protocol.parser_exc is not None:
            self._transport.close()  # once the answer is written
            self._end_soon()

    def _take(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.CONT:
            self._is_binary = frame.opcode is Opcode.BINARY
        if not self._is_binary:
            return
        if frame.fin and not self._pieces:
            self._on_frame(frame.data)
            return
        self._pieces.append(frame.data)
        if frame.fin:
            whole = b"".join(self._pieces)
            self._pieces.clear()
            self._on_frame(whole)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        while self._waiting and not self._is_full:
            self.send(self._waiting.popleft())

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.receive_eof()
        self._answered.set()
        self._over.set()
