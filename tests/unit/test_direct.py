"""Requests in the thread of their caller: no event loop, kept connections, answers of any length, interrupts."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from apothic.client.loop import CALLER, LOOP
from apothic.direct import DIRECT, on_loop
from apothic.errors import ConfigError, ServerUnavailableError
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.transport import Transport

BODY = b'{"ok":true,"pid":7,"version":"0"}'
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
PATIENCE_S = 20.0

Turn = Callable[[socket.socket], bool]  # answers one request; tells whether the connection goes on


class Server:
    """Answers requests in turn, as it is told to, and counts connections and requests."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.requests: list[bytes] = []
        self.connections = 0
        self.held = threading.Event()
        self.release = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        with line:
            going = True
            while going:
                request = b""
                while b"\r\n\r\n" not in request:
                    piece = line.recv(65536)
                    if not piece:
                        return
                    request += piece
                self.requests.append(request)
                going = self.turns.pop(0)(line) if self.turns else whole(line)

    def hold(self, line: socket.socket) -> bool:
        self.held.set()
        self.release.wait(PATIENCE_S)
        return whole(line)

    def close(self) -> None:
        self.release.set()
        self._listener.close()


def whole(line: socket.socket) -> bool:
    line.sendall(WHOLE)
    return True


def cut(line: socket.socket) -> bool:
    line.sendall(WHOLE[:-3])
    return False


def saying(*pieces: bytes, goes_on: bool = True) -> Turn:
    def turn(line: socket.socket) -> bool:
        for piece in pieces:
            line.sendall(piece)
        return goes_on

    return turn


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def asker(server: Server) -> Iterator[Transport]:
    asker = Transport(server.url, "key", first_patience_s=5.0)
    yield asker
    LOOP.block(asker.close)


def health(asker: Transport) -> m.Health:
    return LOOP.direct(lambda: asker.ask(routes.HEALTHZ, m.ShowHealth()))


def test_a_request_needs_neither_a_loop_nor_a_hop_to_one_and_keeps_its_connection(
    server: Server, asker: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Any:
        raise AssertionError("the loop was asked for")

    monkeypatch.setattr(LOOP, "running", refuse)
    assert [health(asker).ok for _ in range(3)] == [True] * 3
    assert (server.connections, len(server.requests)) == (1, 3)
    assert server.requests[0].startswith(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Authorization: Bearer key\r\n" in server.requests[0]


@pytest.mark.parametrize(
    "pieces",
    [
        [WHOLE[:20], WHOLE[20:70], WHOLE[70:]],
        [b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE],
        [b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + WHOLE],
        [
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
            b"%x\r\n%s\r\n" % (9, BODY[:9]), b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY) - 9, BODY[9:]),
        ],
    ],
    ids=["in pieces", "behind an interim answer", "both in one piece", "chunked"],
)  # fmt: skip
def test_an_answer_is_read_to_its_end_however_it_comes(server: Server, asker: Transport, pieces: list[bytes]) -> None:
    server.turns = [saying(*pieces)]
    assert health(asker).ok
    assert health(asker).ok
    assert server.connections == 1


@pytest.mark.parametrize("told", [b"", b"connection: close\r\ncontent-length: %d\r\n" % len(BODY)])
def test_a_connection_that_ends_with_its_answer_is_not_used_again(
    server: Server, asker: Transport, told: bytes
) -> None:
    said = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + told + b"\r\n" + BODY
    server.turns = [saying(said, goes_on=False)]
    assert health(asker).ok
    assert health(asker).ok
    assert server.connections == 2


def test_a_connection_that_was_closed_meanwhile_is_not_tried_even_where_nothing_may_be_resent(
    server: Server, asker: Transport
) -> None:
    made = b'{"key":{"id":"key_1","name":"k","scopes":[],"created_at":0.0},"secret":"s"}'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(made)
    server.turns = [saying(WHOLE, goes_on=False), saying(head + made)]
    assert health(asker).ok
    assert asker._connections is not None
    (idle,) = asker._connections._idle
    idle._news.poll(PATIENCE_S * 1000)  # the end has come

    LOOP.direct(lambda: asker.ask(routes.CREATE_KEY, m.CreateKey(name="k", scopes=[])))

    assert (server.connections, len(server.requests)) == (2, 2)


def test_a_lost_answer_is_asked_for_again_where_the_route_allows(server: Server, asker: Transport) -> None:
    server.turns = [cut]
    assert health(asker).ok
    assert len(server.requests) == 2

    server.turns = [cut]
    with pytest.raises(ServerUnavailableError, match="closed before the answer was whole"):
        LOOP.direct(lambda: asker.ask(routes.CREATE_KEY, m.CreateKey(name="k", scopes=[])))
    assert len(server.requests) == 3


@pytest.mark.parametrize("said", [b"garbage\r\n\r\n", WHOLE + WHOLE, b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n"])
def test_what_is_no_answer_is_a_server_that_is_none(server: Server, said: bytes) -> None:
    asker = Transport(server.url, first_patience_s=0.0)
    server.turns = [saying(said, goes_on=False)]
    with pytest.raises(ServerUnavailableError, match="no control plane answers at http"):
        health(asker)


def test_both_colours_say_the_same_of_who_is_not_there() -> None:
    asker = Transport("http://127.0.0.1:9", first_patience_s=0.0)
    said = []
    for way in (LOOP.direct, LOOP.block):
        with pytest.raises(ServerUnavailableError) as caught:
            way(lambda: asker.ask(routes.HEALTHZ, m.ShowHealth()))
        said.append(str(caught.value))
    LOOP.block(asker.close)
    assert said[0] == said[1]
    assert "Connection refused" in said[0]


@pytest.mark.parametrize("url", ["no url at all", "http://", "ftp://there", "http://a:port"])
def test_a_url_that_is_none_is_a_setting_that_is_wrong(url: str) -> None:
    with pytest.raises(ConfigError, match="is no URL"):
        health(Transport(url))


def test_a_key_cannot_bring_headers_of_its_own(server: Server) -> None:
    with pytest.raises(ConfigError, match="line end"):
        health(Transport(server.url, "key\r\nx: y"))
    assert server.requests == []


def test_ctrl_c_closes_the_connection_and_is_raised(server: Server, asker: Transport) -> None:
    main = threading.main_thread().ident
    assert main is not None
    server.turns = [server.hold]

    def interrupt() -> None:
        server.held.wait(PATIENCE_S)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        health(asker)

    assert asker._connections is not None and asker._connections._idle == []
    server.release.set()
    assert health(asker).ok
    assert server.connections == 2


def test_threads_have_a_connection_each(server: Server, asker: Transport) -> None:
    server.turns = [server.hold]
    found: list[bool] = []
    waiting = threading.Thread(target=lambda: found.append(health(asker).ok))
    waiting.start()
    server.held.wait(PATIENCE_S)
    assert health(asker).ok
    server.release.set()
    waiting.join(PATIENCE_S)

    assert (found, server.connections) == ([True], 2)


def test_a_forked_child_opens_a_connection_of_its_own(server: Server, asker: Transport) -> None:
    assert health(asker).ok
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of any fork beside threads
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if health(asker).ok else 1)
        finally:
            os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert health(asker).ok
    assert server.connections == 2


def test_what_needs_a_loop_goes_on_on_ours_and_errands_come_back() -> None:
    here = threading.current_thread().name
    seen: list[Any] = []

    async def deed() -> str:
        seen.append((threading.current_thread().name, DIRECT.get(), CALLER.get()))
        await on_loop()
        await asyncio.sleep(0)
        await on_loop()  # where one is already
        seen.append((threading.current_thread().name, DIRECT.get()))
        caller = CALLER.get()
        assert caller is not None
        return await caller.run(lambda: threading.current_thread().name)

    assert LOOP.direct(deed) == here
    assert seen == [(here, True, None), ("apothic", False)]
    assert not DIRECT.get()


def test_what_is_awaited_or_blocks_on_the_loop_is_not_direct_even_inside_of_what_is() -> None:
    async def look() -> bool:
        return DIRECT.get()

    async def inside(way: Callable[[Callable[[], Coroutine[Any, Any, bool]]], bool]) -> bool:
        return way(look)

    assert LOOP.direct(look) is True
    assert LOOP.direct(lambda: inside(LOOP.block)) is False
    assert LOOP.direct(lambda: inside(lambda make: asyncio.run(LOOP.hop(make)))) is False


def test_the_librarys_own_loop_is_not_blocked() -> None:
    async def inside() -> None:
        LOOP.direct(inside)

    with pytest.raises(RuntimeError, match="never return"):
        LOOP.block(inside)
