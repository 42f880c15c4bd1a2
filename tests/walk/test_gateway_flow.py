"""Requests on their way: streamed, queued, tried again, drained, given up; time is the test's."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from gatewayrig import Front, answering, service

from apothic.protocol.messages import Failure
from apothic.protocol.session import StartContainer, StopContainer


class Site:
    """An ASGI application for each path; `hold` keeps `/slow` until it is set, `left` is set by who is cut off."""

    def __init__(self) -> None:
        self.hold = asyncio.Event()
        self.left = asyncio.Event()
        self.begun = asyncio.Event()
        self.deafness = asyncio.Event()
        self.count = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.count += 1
        self.begun.set()
        if scope["type"] == "websocket":
            await self.socket(receive, send)
            return
        await getattr(self, scope["path"].strip("/").replace("/", "_") or "root")(receive, send)

    async def root(self, receive: Any, send: Any) -> None:
        await answer(send, b"ok")

    async def slow(self, receive: Any, send: Any) -> None:
        gone = asyncio.create_task(receive())
        held = asyncio.create_task(self.hold.wait())
        while not held.done():
            await asyncio.wait([gone, held], return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and gone.result()["type"] == "http.disconnect":
                held.cancel()
                self.left.set()
                return
            if gone.done() and not held.done():
                gone = asyncio.create_task(receive())
        gone.cancel()
        await answer(send, b"at last")

    async def echo(self, receive: Any, send: Any) -> None:
        more = True
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.set()
                return
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})

    async def deaf(self, receive: Any, send: Any) -> None:
        await self.deafness.wait()

    async def endless(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.sent = 0
        while True:
            self.sent += 1
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})

    async def socket(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "chat"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": f"echo {message['text']}"})
        self.left.set()


async def answer(send: Any, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def site() -> Site:
    return Site()


async def soon(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), 10)


# --- one after the other, and both ways at once


async def test_a_connection_is_used_again_and_pipelined_requests_are_answered_in_order(
    front: Front, site: Site
) -> None:
    await front.serve(site)
    client = await front.connect()
    for _ in range(3):
        assert (await client.ask("GET /shop/web/ HTTP/1.1")).body == b"ok"
    await client.send(b"GET /shop/web/slow HTTP/1.1\r\nHost: localhost\r\n\r\n" + 2 * (
        b"GET /shop/web/ HTTP/1.1\r\nHost: localhost\r\n\r\n"
    ))  # fmt: skip
    site.hold.set()
    assert [(await client.answer()).body for _ in range(3)] == [b"at last", b"ok", b"ok"]


async def test_a_body_is_passed_on_piece_by_piece_in_both_directions(front: Front, site: Site) -> None:
    await front.serve(site)
    client = await front.connect()
    await client.send(b"POST /shop/web/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert (await client.head())[0] == 200
    for word in (b"one", b"two", b"three"):
        await client.send(b"%x\r\n%b\r\n" % (len(word), word))
        assert await client.chunk() == word  # before the next one is sent
    await client.send(b"0\r\n\r\n")
    assert await client.chunk() == b""


async def test_head_has_no_body_and_the_connection_goes_on(front: Front, site: Site) -> None:
    await front.serve(site)
    client = await front.connect()
    seen = await client.ask("HEAD /shop/web/ HTTP/1.1")
    assert (seen.status, seen["content-length"]) == (200, "2")
    assert (await client.ask("GET /shop/web/ HTTP/1.1")).body == b"ok"


async def test_who_waits_for_100_continue_gets_it_when_the_application_reads(front: Front, site: Site) -> None:
    await front.serve(site)
    client = await front.connect()
    await client.send(
        b"POST /shop/web/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    assert (await client.head())[0] == 100
    await client.send(b"hi")
    site.hold.set()
    assert (await client.answer()).body == b"at last"
    # An application that does not read answers at once, and nobody can tell whether a body will follow.
    client = await front.connect()
    await client.send(
        b"POST /shop/web/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    seen = await client.answer()
    assert (seen.status, seen["connection"]) == (200, "close")


async def test_an_old_client_gets_an_answer_without_chunks(front: Front, site: Site) -> None:
    await front.serve(site)
    client = await front.connect()
    await client.send(b"POST /shop/web/echo HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello")
    seen = await client.answer()
    assert seen.body == b"hello" and "transfer-encoding" not in seen and seen["connection"] == "close"


async def test_a_reader_that_takes_nothing_stops_the_application_and_nobody_else(front: Front, site: Site) -> None:
    await front.serve(site)
    client = await front.connect()
    await client.send(b"GET /shop/web/endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await soon(site.begun)
    before = -1
    while getattr(site, "sent", 0) != before:  # it goes on until every buffer on the way is full
        before = getattr(site, "sent", 0)
        await asyncio.sleep(0.3)
    assert before * 65_536 < 32 << 20
    assert (await front.ask("GET /shop/web/ HTTP/1.1")).body == b"ok"
    for _ in range(1_000):
        await client.reader.read(1 << 16)
    assert site.sent > before


async def test_a_websocket_is_opened_by_the_application_and_passes_through(front: Front, site: Site) -> None:
    import websockets

    await front.serve(site)
    url = f"ws://localhost:{front.port}/shop/web/room"
    async with websockets.connect(url, subprotocols=["other", "chat"]) as socket:  # type: ignore[list-item]
        assert (
            socket.subprotocol == "chat" and "permessage-deflate" in socket.response.headers["Sec-WebSocket-Extensions"]
        )
        for text in ("a", "b" * 100_000):
            await socket.send(text)
            assert await socket.recv() == f"echo {text}"
    await soon(site.left)
    assert socket.close_code == 1000


async def test_frames_that_break_the_rules_end_a_websocket(front: Front, site: Site) -> None:
    await front.serve(site)
    client = await front.connect()
    await client.ask(
        "GET /shop/web/ HTTP/1.1\nConnection: upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", headless=True,
    )  # fmt: skip
    await client.send(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"mask")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(client.reader.readexactly(1), 10)
    await soon(site.left)


# --- who leaves


async def test_a_client_that_leaves_is_a_disconnect_for_the_application(front: Front, site: Site) -> None:
    await front.serve(site)
    client = await front.connect()
    await client.send(b"GET /shop/web/slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await soon(site.begun)
    await client.close()
    await soon(site.left)


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_a_disconnect(front: Front, site: Site) -> None:
    await front.serve(site)
    client = await front.connect()
    await client.send(b"POST /shop/web/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc")
    assert (await client.head())[0] == 200
    await client.close()
    await soon(site.left)


async def test_a_client_that_leaves_while_its_body_is_not_read_is_noticed(front: Front, site: Site) -> None:
    await front.serve(site)
    client = await front.connect()
    await client.send(b"POST /shop/web/deaf HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n")
    await soon(site.begun)
    (door,) = front.stage.control.gateway.doors
    while not door._held:  # and no more: behind a full window the client's end could not be seen
        await client.send(b"x" * 16_384)
        await asyncio.sleep(0.001)
    client.writer.transport.abort()
    for _ in range(100):
        await front.stage.clock.advance(1.0)
        if not front.stage.control.gateway.doors:
            break
        await asyncio.sleep(0.02)
    assert front.stage.control.gateway.doors == set()
    site.deafness.set()


async def test_a_container_that_let_a_request_down_is_asked_again_after_a_moment(front: Front, site: Site) -> None:
    await front.serve(site, service("web"), service("other"))
    await front.ask("GET /shop/web/ HTTP/1.1")
    gateway = front.stage.control.gateway
    backend = next(b for b in gateway._backends.values() if gateway._versions[b.version].name == "shop.web")
    backend.doubt()
    await gateway._look()  # while it is doubted
    asked = asyncio.create_task(front.ask("GET /shop/web/ HTTP/1.1"))
    assert (await front.stage.settled(asked, 0.1)).body == b"ok"


# --- who waits


async def test_requests_wait_for_the_first_container_and_for_a_free_one(front: Front, site: Site) -> None:
    start = await front.serve(site, service(concurrent_requests=1, max_containers=2))
    asked = [asyncio.create_task(front.ask("GET /shop/web/slow HTTP/1.1")) for _ in range(3)]
    more = await front.start(site)  # a second container is wanted, and no third one
    assert more.container != start.container
    while site.count < 2:
        await asyncio.sleep(0.01)
    assert not any(task.done() for task in asked)
    site.hold.set()
    assert [seen.body for seen in await asyncio.gather(*asked)] == [b"at last"] * 3
    assert [frame for frame in await front.agent.frames() if isinstance(frame, StartContainer)] == []


async def test_past_max_pending_tasks_a_request_is_told_when_to_come_again(front: Front, site: Site) -> None:
    await front.serve(site, service(concurrent_requests=1, max_pending_tasks=1))
    asked = [asyncio.create_task(front.ask("GET /shop/web/slow HTTP/1.1")) for _ in range(3)]
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=10)
    (seen,) = [task.result() for task in done]
    assert seen.status == 503 and seen["retry-after"] == "1" and b"max_pending_tasks" in seen.body
    site.hold.set()
    assert sorted(seen.status for seen in await asyncio.gather(*asked)) == [200, 200, 503]


async def test_an_idle_service_stops_and_the_next_request_starts_it_again(front: Front, site: Site) -> None:
    start = await front.serve(site, service(keep_warm_s=60))
    assert (await front.ask("GET /shop/web/ HTTP/1.1")).status == 200
    for _ in range(50):  # it was used, so its time begins anew
        await front.stage.sweep(1.0)
    assert (await front.ask("GET /shop/web/ HTTP/1.1")).status == 200
    for _ in range(30):
        await front.stage.sweep(1.0)
    assert [frame for frame in await front.agent.frames() if isinstance(frame, StopContainer)] == []
    for _ in range(40):
        await front.stage.sweep(1.0)
    assert (await front.agent.next(StopContainer)).container == start.container
    await front.gone(start)
    asked = asyncio.create_task(front.ask("GET /shop/web/ HTTP/1.1"))
    await front.start(site)
    assert (await asked).body == b"ok"


async def test_a_service_that_does_not_start_refuses_those_who_wait_with_the_reason(front: Front, site: Site) -> None:
    start = await front.serve(site, service(keep_warm_s=0))
    await front.stage.sweep(1.0)
    assert (await front.agent.next(StopContainer)).container == start.container
    await front.gone(start)
    asked = asyncio.create_task(front.ask("GET /shop/web/ HTTP/1.1"))
    for _ in range(2):  # at the moment of the first failure it is still wanted
        again = await front.agent.next(StartContainer)
        failure = Failure(kind="startup", type="ImportError", message="no module named shop")
        await front.gone(again, failure=failure)
        if asked.done():
            break
    seen = await asyncio.wait_for(asked, 10)
    assert seen.status == 503 and b"no module named shop" in seen.body


async def test_who_waits_too_long_for_a_container_is_told_so(front: Front, site: Site) -> None:
    start = await front.serve(site, service(service_startup_timeout_s=0.2, keep_warm_s=0))
    await front.stage.sweep(1.0)
    await front.agent.next(StopContainer)
    await front.gone(start)
    seen = await front.ask("GET /shop/web/ HTTP/1.1")
    assert seen.status == 503 and b"within 0.2 s" in seen.body and seen["retry-after"] == "1"


# --- containers that end


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_an_idempotent_request_is_asked_of_another_container_and_others_are_told_why(
    front: Front, site: Site, method: str
) -> None:
    await front.gone(await front.serve(site))
    died = asyncio.Event()

    async def dying(scope: dict[str, Any], receive: Any, send: Any) -> None:
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        died.set()

    asked = asyncio.create_task(front.ask(f"{method} /shop/web/echo HTTP/1.1", b"whole"))
    start = await front.agent.next(StartContainer)
    async with answering(dying, front.folder / "dying.sock") as server:
        await front.ready(start, f"unix:{front.folder / 'dying.sock'}")
        await soon(died)
    await front.gone(start, failure=Failure(kind="oom", type="OutOfMemory", message="it used 12 MiB of memory"))
    if method == "PUT":
        await front.start(site)
        assert (await asked).body == b"whole"
    else:
        seen = await asked
        assert seen.status == 502 and b"it used 12 MiB of memory" in seen.body


async def test_a_container_that_lets_a_request_down_and_lives_is_given_up_after_some_tries(
    front: Front, site: Site
) -> None:
    await front.gone(await front.serve(site))
    tries = 0

    async def hostile(scope: dict[str, Any], receive: Any, send: Any) -> None:
        nonlocal tries
        tries += 1
        for connection in list(server.server_state.connections):
            connection.transport.abort()

    asked = asyncio.create_task(front.ask("GET /shop/web/ HTTP/1.1"))
    start = await front.agent.next(StartContainer)
    async with answering(hostile, front.folder / "hostile.sock") as server:
        await front.ready(start, f"unix:{front.folder / 'hostile.sock'}")
        seen = await front.stage.settled(asked, 0.1)
    assert seen.status == 502 and b"was lost before it answered" in seen.body and 1 < tries <= 3


async def test_a_container_is_told_to_stop_once_it_has_answered_what_it_has(front: Front, site: Site) -> None:
    start = await front.serve(site)
    asked = asyncio.create_task(front.ask("GET /shop/web/slow HTTP/1.1"))
    await soon(site.begun)
    await front.stage.deploy("shop", service(max_request_mb=7))
    await front.start(site)  # the new version is live
    assert (await front.ask("GET /shop/web/ HTTP/1.1")).body == b"ok"
    assert [frame for frame in await front.agent.frames() if isinstance(frame, StopContainer)] == []
    site.hold.set()
    assert (await asked).body == b"at last"
    assert (await front.agent.next(StopContainer)).container == start.container


async def test_what_was_read_first_is_never_taken_last(
    front: Front, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = front.stage.control.gateway
    table, was_read, go_on = gateway._store.table, asyncio.Event(), asyncio.Event()

    async def late() -> Any:
        found = await table()
        was_read.set()
        await go_on.wait()
        return found

    with monkeypatch.context() as slow:
        slow.setattr(gateway._store, "table", late)
        early = asyncio.create_task(gateway._look())
        await soon(was_read)
    serving = asyncio.create_task(front.serve(site))
    await asyncio.wait([serving], timeout=0.2)  # it shall not be there before the first look is over
    go_on.set()
    await early
    start = await serving
    assert set(gateway._backends) == {start.container}


async def test_a_gateway_that_closes_lets_containers_stop_once_they_have_answered(front: Front, site: Site) -> None:
    await front.serve(site, service("web"), service("other"))
    asked = asyncio.create_task(front.ask("GET /shop/web/slow HTTP/1.1"))
    await soon(site.begun)
    closing = asyncio.create_task(front.stage.control.gateway.close(600.0))
    first = await front.agent.next(StopContainer)  # of the one that has nothing to do
    assert not asked.done() and not closing.done()
    site.hold.set()
    assert (await asked).body == b"at last"
    assert (await front.agent.next(StopContainer)).container != first.container
    await front.stage.settled(closing)


# --- time


async def test_a_head_or_a_body_that_comes_too_slowly_ends_the_connection(front: Front, site: Site) -> None:
    await front.serve(site)
    head, body, chunks, quick = [await front.connect() for _ in range(4)]
    await head.send(b"GET /shop/web/ HTTP/1.1\r\nHost: loc")
    await body.send(b"POST /shop/web/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
    await chunks.send(b"POST /shop/web/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    await asyncio.gather(body.head(), chunks.head())
    for n in range(30):
        if not body.writer.is_closing() and not body.reader.at_eof():
            with suppress(ConnectionError):
                await body.send(b"b" * 20)  # 20 bytes a second
        await chunks.send(b"1\r\nc\r\n")  # a slow stream is no attack
        if n < 15:
            await quick.ask("GET /shop/web/ HTTP/1.1")
        await chunks.chunk()
        await front.stage.clock.advance(1.0)
    assert (await head.answer()).status == 408
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ValueError)):
        while True:
            await asyncio.wait_for(body.chunk(), 10)
    await chunks.send(b"0\r\n\r\n")
    assert await chunks.chunk() == b""
    assert (await quick.ask("GET /shop/web/ HTTP/1.1")).body == b"ok"
    for _ in range(62):
        await front.stage.clock.advance(1.0)
    assert await asyncio.wait_for(quick.reader.read(), 10) == b""  # idle


async def test_an_answer_that_does_not_begin_in_time_is_a_504_and_the_application_is_left(
    front: Front, site: Site
) -> None:
    await front.serve(site, service(timeout_s=30))
    asked = asyncio.create_task(front.ask("GET /shop/web/slow HTTP/1.1"))
    await soon(site.begun)
    for _ in range(32):
        await front.stage.clock.advance(1.0)
    seen = await asked
    assert seen.status == 504 and b"timeout_s" in seen.body
    await soon(site.left)


async def test_every_request_stands_in_the_log_of_its_app(front: Front, site: Site) -> None:
    await front.serve(site)
    await front.ask("GET /shop/web/?x=1 HTTP/1.1")
    await front.ask("DELETE /shop/other/ HTTP/1.1")
    for _ in range(250):
        await front.ask("POST /shop/web/ HTTP/1.1")
    await front.stage.clock.advance(1.5)
    for _ in range(100):
        lines = (await front.stage.got("GET /v1/apps/shop/logs"))["lines"]
        if lines:
            break
        await asyncio.sleep(0.05)
    assert lines[0]["text"].startswith("GET /shop/web/?x=1 200 ") and lines[0]["function"] == "web"
    assert lines[-1]["text"] == "… and 51 more requests" and len(lines) == 201
