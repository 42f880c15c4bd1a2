"""What a request on connections that stay costs: counted, not timed."""

from __future__ import annotations

import asyncio
from typing import Any

from gatewayrig import Front, service


class Counted:
    """A transport that counts what is written to it."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self.writes += 1
        self._transport.write(data)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body = (await receive())["body"] or b"ok"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def test_a_request_costs_one_write_on_each_side_and_no_task(front: Front) -> None:
    await front.serve(app)
    client = await front.connect()
    assert (await client.ask("GET /shop/web/ HTTP/1.1")).status == 200
    gateway = front.stage.control.gateway
    (door,) = gateway.doors
    (backend,) = gateway._backends.values()
    (upstream,) = backend._idle
    client_side, container_side = Counted(door.transport), Counted(upstream.transport)
    door.transport, upstream.transport = client_side, container_side  # type: ignore[assignment]
    made: list[str] = []

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> Any:
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **more)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(make)
    for _ in range(5):
        assert (await client.ask("GET /shop/web/a.txt?x HTTP/1.1\nAccept: */*")).body == b"ok"
        assert (await client.ask("POST /shop/web/ HTTP/1.1", b"body")).body == b"body"
    loop.set_task_factory(None)
    assert container_side.writes == 10 and backend._idle == [upstream]
    assert client_side.writes <= 20  # the rig's uvicorn sends head and body by themselves
    assert [name for name in made if "RequestResponseCycle" not in name] == []


async def test_requests_that_change_nothing_in_what_is_wanted_tell_nothing(front: Front) -> None:
    await front.serve(app, service(max_containers=2))
    client = await front.connect()
    gateway = front.stage.control.gateway
    for _ in range(3):
        await client.ask("GET /shop/web/ HTTP/1.1")
    told: list[Any] = []
    (found,) = gateway._services.values()
    found._changed = told.append
    for _ in range(5):
        await client.ask("GET /shop/web/ HTTP/1.1")
    assert told == []
