"""The same requests to the same application, behind bare uvicorn and behind the gateway: the answers are the same but
for `mirror.VARIES`, and the requests but for `mirror.ADDED` and `mirror.TAKEN`.

SEED repeats a run; CASES says how many.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gatewayrig import Client, Front, answering
from mirror import VARIES, mirror
from walkrig import Puppet, Stage

METHODS = ["GET", "GET", "GET", "POST", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "PROPFIND"]
PATHS = ["/", "/a", "/a/b/", "/a%20b", "/a%2Fb", "/%C3%A9", "/a//b", "/a/./b", "/a/../b", "/~x;y=1", "/*", "/a+b"]
QUERIES = ["x=1", "x=1&x=2", "q=%2F%3F", "empty=", "flag", "a=b=c", "u=%C3%A9", "s=a+b", "p=/../.."]
HEADERS = [
    "Accept: text/html, */*;q=0.5", "Accept-Encoding: gzip, br", "Cookie: a=1; b=2", "Cookie: c=3", "X-Empty:",
    "X-Long: " + "x" * 4000, "X-Latin: \xe9\xe8", "X-Twice: 1", "X-Twice: 2", "If-None-Match: \"file\"",
    "Authorization: Basic dTpw", "Content-Type: text/plain; charset=utf-8", "Content-Type: application/json",
    "Origin: http://elsewhere.example", "User-Agent: test/1.0 (x; y)", "X-Spaces:    a  b   ",
    "Cache-Control: no-cache", "TE: trailers", "Keep-Alive: timeout=5", "Connection: keep-alive, X-Hop", "X-Hop: 1",
    "X_Under: 1",    "X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6", "Apothic-User: root",
    "Proxy-Connection: keep-alive", "Accept-Language: de;q=0.7", "Referer: http://localhost/x?y#z",
]  # fmt: skip
WISHES = ["", "", "", "pieces=1", "pieces=7", "gzip=1", "cookies=3", "early=1", "status=204", "status=304",
          "status=404", "status=500", "status=201", "status=418", "file=1", "file=1", "file=1&pieces=3"]  # fmt: skip
RANGES = ["bytes=0-0", "bytes=100-199", "bytes=50000-", "bytes=99999999-", "bytes=5-2", "lines=1-2", "bytes=0-999999"]


@pytest.fixture
async def front(stage: Stage, agent: Puppet, tmp_path: Path) -> AsyncIterator[Front]:
    made = Front(stage, agent, tmp_path)
    await made.open()
    await made.serve(mirror, root_path="/shop/web")
    yield made
    await made.close()


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncIterator[int]:
    """The port of bare uvicorn with the same application."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    async with answering(mirror, listener, root_path="/shop/web"):
        yield listener.getsockname()[1]


def drawn(dice: random.Random) -> tuple[str, list[str], bytes, str]:
    """Draw a request: its method, its lines behind the first one, its body as it is sent, its target."""
    method = dice.choice(METHODS)
    query = "&".join(filter(None, [*dice.sample(QUERIES, dice.choice([0, 0, 1, 2])), dice.choice(WISHES)]))
    target = dice.choice(PATHS) + (f"?{query}" if query or dice.random() < 0.1 else "")
    headers = dice.sample(HEADERS, dice.randrange(8))
    if "file" in query:
        headers.append(f"Range: {dice.choice(RANGES)}")
    body = dice.randbytes(dice.choice([0, 1, 10, 1_000, 70_000, 300_000]))
    if method in ("GET", "HEAD") and dice.random() < 0.9:
        return method, headers, b"", target
    if "early" in query:
        body = body[:1_000]  # what an application has not read when it answers may be cut off, by either
    if dice.random() < 0.5:
        return method, [*headers, f"Content-Length: {len(body)}"], body, target
    sent, left = b"", body
    while left:
        piece, left = left[: (size := dice.choice([1, 7, 4096, 65_536]))], left[size:]
        sent += b"%x%b\r\n%b\r\n" % (len(piece), dice.choice([b"", b";ext=1", b';a="b"']), piece)
        if len(sent) > 400_000:
            break
    end = b"0\r\n" + dice.choice([b"", b"X-Trailer: 1\r\n"]) + b"\r\n"
    return method, [*headers, "Transfer-Encoding: chunked"], sent + end, target


async def asked(client: Client, request: tuple[str, list[str], bytes, str], mount: str, expects: bool) -> Any:
    method, headers, body, target = request
    lines = [f"{method} {mount}{target} HTTP/1.1", "Host: localhost", *headers, *(["Expect: 100-continue"] * expects)]
    raw = "\r\n".join([*lines, "", ""]).encode("latin-1")
    seen_100 = False
    if expects:
        await client.send(raw)
        status, told = await client.head()
        if status == 100:
            seen_100 = True
            await client.send(body)
            answer = await client.answer(headless=method == "HEAD")
        else:
            return status, [], b"", False, False
    else:
        await client.send(raw + body)
        answer = await client.answer(headless=method == "HEAD")
    told = sorted((name, value) for name, value in answer.headers if name not in VARIES)
    return answer.status, told, answer.body, seen_100, True


async def test_the_gateway_answers_as_the_applications_own_server_does(front: Front, bare: int) -> None:
    seed = os.environ.get("SEED", "1")
    clients: list[Client] = []

    async def fresh() -> list[Client]:
        for client in clients:
            await client.close()
        return [await front.connect(bare), await front.connect()]

    clients = await fresh()
    for case in range(int(os.environ.get("CASES", "1000"))):
        request = drawn(random.Random(f"{seed}/{case}"))
        expects = bool(request[2]) and "early" not in request[3] and case % 10 == 0
        one, other = [await asked(c, request, m, expects) for c, m in zip(clients, ["", "/shop/web"], strict=True)]
        assert one == other, f"SEED={seed} case {case}: {request[0]} {request[3]} {request[1]}"
        if "early" in request[3] and request[2]:
            clients = await fresh()


async def test_websockets_say_the_same(front: Front, bare: int) -> None:
    import websockets
    from websockets.exceptions import ConnectionClosed, InvalidStatus

    async def talk(url: str, dice: random.Random) -> list[Any]:
        told: list[Any] = []
        protocols = dice.sample(["chat", "super", "x"], dice.randrange(3))
        compression = dice.choice(["deflate", None])
        deny = "?deny=1" if dice.random() < 0.2 else "?x=1"
        try:
            async with websockets.connect(  # type: ignore[arg-type]
                f"{url}/room{deny}", subprotocols=protocols or None, compression=compression, max_size=None,
            ) as link:  # fmt: skip
                response = link.response
                told += [link.subprotocol, response.headers["x-room"], [str(e) for e in link.protocol.extensions]]
                for _ in range(dice.randrange(8)):
                    size = dice.choice([0, 1, 125, 126, 65_535, 65_536, 300_000])
                    sent = dice.choice([dice.randbytes(size), "é" * size, "close", [b"a" * size, b"b"], "ping"])
                    if sent == "ping":
                        await (await link.ping(b"are you there"))
                        continue
                    await link.send(sent)
                    told.append(await link.recv())
                await link.close(dice.choice([1000, 1001, 4000]), "bye")
        except ConnectionClosed as error:
            told.append(("closed", error.rcvd and (error.rcvd.code, error.rcvd.reason)))
        except InvalidStatus as error:
            told.append((error.response.status_code, error.response.headers["x-why"], error.response.body))
        else:
            told.append((link.close_code, link.close_reason))
        return told

    for case in range(40):
        one, other = [
            await talk(url, random.Random(f"ws/{case}"))
            for url in (f"ws://localhost:{bare}", f"ws://localhost:{front.port}/shop/web")
        ]
        assert one == other, f"case {case}"


async def test_what_the_application_leaves_unread_does_not_end_up_in_the_next_request(front: Front) -> None:
    client = await front.connect()
    for _ in range(3):
        await client.send(
            b"POST /shop/web/?early=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000
        )
        assert (await asyncio.wait_for(client.answer(), 10)).status == 200
        await client.send(b"x" * 100_000)
        assert (await client.ask("GET /shop/web/a HTTP/1.1")).status == 200
