"""One connection of a client: requests come in, one after the other, and time and size are limited."""

from __future__ import annotations

import asyncio
import select
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from apothic.control.gateway import heads
from apothic.control.gateway.exchange import Exchange
from apothic.control.gateway.heads import Fields, Header
from apothic.control.gateway.refusals import Refusal
from apothic.control.gateway.upstream import BUFFER

if TYPE_CHECKING:
    from apothic.control.gateway.gateway import Gateway

LARGEST_HEAD = 32 * 1024
MOST_HEADERS = 200
IDLE_S = 60.0  # without a request, or without a byte of one that has begun, or without a byte taken of an answer
# As Apache's mod_reqtimeout has it by default: a head has 20 s, and a body of known length comes at 500 bytes a second
# after as long. Slower than that is an attack that holds connections (slow loris).
HEAD_S = 20.0
SLOWEST = 500.0
MOST_PIPELINED = 100
LINGER_S = 5.0  # as nginx's lingering_timeout
# Of the framing of a body in chunks, beside the data: extensions are read by nobody.
OVERHEAD, OVERHEAD_A_CHUNK = 32 * 1024, 16


class Door(asyncio.Protocol):
    """A client's connection."""

    transport: asyncio.Transport

    def __init__(self, gateway: Gateway) -> None:
        self.peer = "unknown"
        self._gateway = gateway
        self._parser = httptools.HttpRequestParser(self)
        self._exchanges: deque[Exchange] = deque()  # the first one is being answered
        self._reading: Exchange | None = None  # whose body is coming in
        self._tunnel: Exchange | None = None
        self._out: list[bytes] = []
        self._closing = False  # nothing more is read
        self._held = False
        self.full = False  # the client takes no more for now
        self._last_word: Refusal | None = None  # for what is no request, behind the answers that are due before it
        self._parted_at: float | None = None
        self._unread = 0  # bytes since the message began
        self._body = 0
        self._chunks = 0
        self._url = b""
        self._headers: list[Header] = []
        self._trailers: list[Header] = []
        self._fields: Fields | None = None  # of the last request
        self._next: Exchange | None = None  # begins once what came with it has been read
        self._begun_at: float | None = None  # when the first byte of the request came that is being read
        self.heard_at = gateway.clock.monotonic()
        self._backlog = 0
        self._moved_at = self.heard_at  # when the client last took a byte of what waits for it

    # --- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by name
        self.transport.set_write_buffer_limits(high=BUFFER)
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if isinstance(peer, tuple) else "unknown"
        self._gateway.doors.add(self)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._gateway.clock.monotonic()
        if self._tunnel is not None:
            self._tunnel.on_client_bytes(data)
            return
        if self._closing:
            return
        if self._begun_at is None:
            self._begun_at = self.heard_at
        self._unread += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(Refusal(400, "bad_request", "what came is no HTTP request"))
        else:
            if self._reading is None and self._unread > LARGEST_HEAD:
                self._refuse(Refusal(431, "bad_request", f"the head of a request has at most {LARGEST_HEAD:,} bytes"))
            elif self._unread - self._body > LARGEST_HEAD + OVERHEAD + OVERHEAD_A_CHUNK * self._chunks:
                self._refuse(Refusal(400, "bad_request", "the chunks of the body have too much beside the data"))
        following, self._next = self._next, None
        if following is not None:
            following.start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.doors.discard(self)
        self._closing = True
        for exchange in list(self._exchanges):
            exchange.on_gone()

    def pause_writing(self) -> None:
        self.full = True
        self._moved_at = self._gateway.clock.monotonic()
        self._backlog = self.transport.get_write_buffer_size()
        if self._exchanges:
            self._exchanges[0].on_client_full(True)

    def resume_writing(self) -> None:
        self.full = False
        if self._exchanges:
            self._exchanges[0].on_client_full(False)

    # --- the parser

    def on_message_begin(self) -> None:
        self._begun_at = self.heard_at
        self._url, self._headers, self._trailers = b"", [], []
        self._body = self._chunks = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self._headers if self._reading is None else self._trailers
        headers.append((name, value))
        if len(headers) > MOST_HEADERS:
            self._refuse(Refusal(431, "bad_request", f"a request has at most {MOST_HEADERS} headers"))

    def on_headers_complete(self) -> None:
        if self._closing:
            return
        parser = self._parser
        try:
            asked = heads.request(
                parser.get_method(), self._url, parser.get_http_version(), self._headers,
                keeps=parser.should_keep_alive() and not self._gateway.leaving, before=self._fields,
            )  # fmt: skip
            if asked.fields.size + len(self._url) > LARGEST_HEAD:
                raise Refusal(431, "bad_request", f"the head of a request has at most {LARGEST_HEAD:,} bytes")
            if asked.fields is not self._fields:
                self._gateway.check_host(asked.fields.host)
                self._fields = asked.fields
        except Refusal as refusal:
            self._refuse(refusal)
            return
        exchange = self._reading = Exchange(self._gateway, self, asked)
        self._exchanges.append(exchange)
        if len(self._exchanges) == 1:
            self._next = exchange
        elif len(self._exchanges) > MOST_PIPELINED:
            self._closing = True
            self.transport.abort()
        else:
            self.hold()

    def on_chunk_header(self) -> None:
        self._chunks += 1

    def on_body(self, data: bytes) -> None:
        self._body += len(data)
        if self._reading is not None:
            self._reading.on_body(data)

    def on_message_complete(self) -> None:
        reading, self._reading = self._reading, None
        self._begun_at = None
        self._unread = 0
        self._body = 0
        if reading is not None:
            reading.on_body_end(self._trailers)

    def _upgraded(self, rest: bytes) -> None:
        """Go on behind a request that wanted another protocol; all but websockets are ignored, as servers do."""
        last = self._exchanges[-1] if self._exchanges else None
        if self._closing or last is None:
            return
        if last.asked.fields.upgrades:
            if rest:
                # It may not speak before it is answered, and what it has said would have to be kept.
                self._refuse(Refusal(400, "bad_request", "a websocket's client waits for the answer"))
        else:
            self._parser = httptools.HttpRequestParser(self)
            if rest:
                self.data_received(rest)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what is no request, behind the answers that are due before it, and read no more."""
        if self._closing:
            return
        self._closing = True
        self._last_word = refusal
        if self._reading is not None and self._reading in self._exchanges:
            # The request that is wrong is itself on its way.
            begun, self._last_word = self._reading.status != 0, None
            if self._reading is self._exchanges[0]:
                if not begun:
                    self.push(refusal.answer(close=True))
                self._part()
            self._reading.on_gone()
        elif not self._exchanges:
            self._say_last()

    def _say_last(self) -> None:
        refusal, self._last_word = self._last_word, None
        if refusal is not None:
            self.push(refusal.answer(close=True))
            self._part()

    def _part(self) -> None:
        """Say no more, and read on for a moment: a connection closed with bytes unread is reset, answer and all."""
        self._closing = True
        self.flush()
        if self._begun_at is None or self._parted_at is not None or self.transport.is_closing():
            self.transport.close()
            return
        self._parted_at = self._gateway.clock.monotonic()
        self.transport.write_eof()
        self._held = False
        self.transport.resume_reading()

    # --- what exchanges ask of it

    def push(self, data: bytes) -> None:
        """Write with the next flush."""
        self._out.append(data)

    def flush(self) -> None:
        """Write what was pushed, in one go."""
        if self._out:
            out, self._out = self._out, []
            if not self.transport.is_closing():
                self.transport.write(out[0] if len(out) == 1 else b"".join(out))

    def hold(self) -> None:
        """Read no more for now."""
        if not self._held and not self.transport.is_closing():
            self._held = True
            self.transport.pause_reading()

    def go_on(self) -> None:
        """Read again, unless requests wait for their turn."""
        if self._held and len(self._exchanges) <= 1 and not self.transport.is_closing():
            self._held = False
            self.heard_at = self._gateway.clock.monotonic()
            if self._begun_at is not None:
                self._begun_at = self.heard_at  # the time that it was held is not the client's
                self._unread = self._body = 0
            self.transport.resume_reading()

    def abort(self) -> None:
        """Cut the connection."""
        self._closing = True
        self.transport.abort()

    def tunnel(self, exchange: Exchange) -> None:
        """Give all that comes from now on to an open websocket."""
        self._tunnel = exchange

    def answered(self, exchange: Exchange, *, keep: bool) -> None:
        """Take the next request once one is answered."""
        if exchange in self._exchanges:
            self._exchanges.remove(exchange)
        self.flush()
        if self.transport.is_closing():
            return
        if not keep:
            self._part()
        elif self._exchanges:
            self._exchanges[0].start()
        else:
            self._say_last()
        if not self._closing:
            self.go_on()
        if not self._exchanges and self._gateway.leaving:
            self.transport.close()

    # --- time

    def leave(self) -> None:
        """Close it if it has nothing to do."""
        if not self._exchanges and self._begun_at is None:
            self.transport.close()

    def check(self, now: float) -> None:
        """End what takes too long."""
        for exchange in list(self._exchanges):
            exchange.check(now)
        if self._parted_at is not None:
            if now - self._parted_at > LINGER_S:
                self.transport.close()
            return
        if self.full:
            waiting = self.transport.get_write_buffer_size()
            if waiting != self._backlog:
                self._backlog, self._moved_at = waiting, now
            elif now - self._moved_at > IDLE_S:
                self.abort()
            return
        if self._held and self._is_gone():
            self.abort()
        if self._tunnel is not None or self._held or self._closing:
            return
        if self._begun_at is None:
            if not self._exchanges and now - self.heard_at > IDLE_S:
                self._closing = True
                self.transport.close()
            return
        if self._is_slow(now):
            self._refuse(Refusal(408, "timeout", "the request came too slowly"))

    def _is_gone(self) -> bool:
        """Tell whether the client has left: a connection that is not read does not tell by itself.

        Behind more than the kernel holds for us its end cannot be seen.
        """
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def _is_slow(self, now: float) -> bool:
        assert self._begun_at is not None
        reads_s = now - self._begun_at
        if self._reading is None:
            return reads_s > HEAD_S
        known = self._reading.asked.fields.length is not None
        return now - self.heard_at > IDLE_S or (known and self._body < SLOWEST * (reads_s - HEAD_S))
