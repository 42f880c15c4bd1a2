"""What the gateway refuses, and what arrives at a container: one well-formed request, or none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gatewayrig import Front, service


class Recorder:
    """An ASGI application that remembers what it was asked, and answers with the body it got."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.asked.append({**scope, "body": body})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-seen", b"1")]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def recorder(front: Front) -> Recorder:
    made = Recorder()
    await front.serve(made)
    return made


async def test_a_request_arrives_below_its_mount_and_its_answer_comes_back(front: Front, recorder: Recorder) -> None:
    seen = await front.ask("POST /shop/web/a/b?x=1&y HTTP/1.1", b"hello")
    assert (seen.status, seen.body, seen["x-seen"]) == (200, b"hello", "1")
    (asked,) = recorder.asked
    assert (asked["method"], asked["path"], asked["query_string"]) == ("POST", "/a/b", b"x=1&y")
    headers = dict(asked["headers"])
    assert headers[b"x-forwarded-prefix"] == b"/shop/web" and headers[b"x-forwarded-for"] == b"127.0.0.1"


HOSTILE = {
    "both lengths": (
        b"POST /shop/web/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "two lengths": b"POST /shop/web/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    "a length in a list": b"POST /shop/web/ HTTP/1.1\r\nHost: h\r\nContent-Length: 4, 4\r\n\r\nabcd",
    "an unknown coding": b"POST /shop/web/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "two codings": b"POST /shop/web/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
    "a bare LF": b"GET /shop/web/ HTTP/1.1\nHost: h\n\n",
    "a bare LF in a header": b"GET /shop/web/ HTTP/1.1\r\nHost: h\r\nX: a\nY: b\r\n\r\n",
    "a bare CR": b"GET /shop/web/ HTTP/1.1\r\nHost: h\r\nX: a\rY: b\r\n\r\n",
    "a NUL": b"GET /shop/web/ HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
    "a folded line": b"GET /shop/web/ HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n",
    "a space before the colon": b"GET /shop/web/ HTTP/1.1\r\nHost: h\r\nX : a\r\n\r\n",
    "a name that is no token": b"GET /shop/web/ HTTP/1.1\r\nHost: h\r\nX(y): a\r\n\r\n",
    "no host": b"GET /shop/web/ HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /shop/web/ HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "another authority": b"GET http://other/shop/web/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a chunk of nonsense": b"POST /shop/web/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a chunk without its end": (
        b"POST /shop/web/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n"
    ),
    "endless chunk extensions": (
        b"POST /shop/web/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"e" * 200_000
    ),
    "dots out of the mount": b"GET /shop/web/..%2f..%2fv1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a tunnel": b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a body behind an upgrade": (
        b"POST /shop/web/ HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"
        b"Content-Length: 30\r\n\r\nGET /shop/web/x HTTP/1.1\r\n\r\n"
    ),
    "an old version": b"GET /shop/web/ HTTP/0.9\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}  # fmt: skip


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
async def test_what_could_be_read_in_two_ways_is_refused_and_reaches_nobody(
    front: Front, recorder: Recorder, raw: bytes
) -> None:
    client = await front.connect()
    await client.send(raw + b"GET /shop/web/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = await asyncio.wait_for(client.reader.read(100_000), 10)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505"))
    assert b"smuggled" not in answer
    await client.close()
    assert [asked for asked in recorder.asked if asked["path"] != "/"] == []
    assert [asked["body"] for asked in recorder.asked] in ([], [b""])


async def test_what_was_asked_before_garbage_is_answered_before_it_is_refused(front: Front, recorder: Recorder) -> None:
    client = await front.connect()
    await client.send(b"POST /shop/web/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nok\0\0 garbage\r\n\r\n")
    assert (await client.answer()).body == b"ok"
    refused = await client.answer()
    assert refused.status == 400 and refused["connection"] == "close"
    assert await client.reader.read() == b""
    await client.close()


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /shop/web/ HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 33_000 + b"\r\n\r\n", 431),
        (b"GET /shop/web/ HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 300_000, 431),
        (b"GET /shop/web/" + b"x" * 33_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET /shop/web/ HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 300 + b"\r\n", 431),
    ],
    ids=["a header", "without an end", "a target", "many headers"],
)
async def test_a_head_that_is_too_large_is_refused(front: Front, recorder: Recorder, raw: bytes, status: int) -> None:
    client = await front.connect()
    await client.send(raw)
    seen = await client.answer()
    assert seen.status == status and seen["connection"] == "close"
    await client.close()
    assert recorder.asked == []


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1", "[::2]:8701"])
async def test_a_name_that_is_not_ours_is_refused(front: Front, recorder: Recorder, host: str) -> None:
    seen = await front.ask(f"GET /shop/web/ HTTP/1.1\nHost: {host}")
    assert seen.status == 421 and b"gateway_url" in seen.body
    assert recorder.asked == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8701", "LocalHost:1", "web.localhost:8701"])
async def test_names_of_this_machine_are_ours(front: Front, recorder: Recorder, host: str) -> None:
    assert (await front.ask(f"GET /shop/web/ HTTP/1.1\nHost: {host}")).status == 200
    assert dict(recorder.asked[0]["headers"])[b"host"] == host.encode()


async def test_a_body_over_the_limit_is_refused_by_its_length_and_by_its_bytes(
    front: Front, recorder: Recorder
) -> None:
    await front.serve(recorder, service(max_request_mb=1))
    client = await front.connect()
    seen = await client.ask("POST /shop/web/ HTTP/1.1\nContent-Length: 1048577", b"x")
    assert seen.status == 413 and b"max_request_mb" in seen.body
    await client.close()
    client = await front.connect()
    await client.send(b"POST /shop/web/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(20):
        await client.send(b"%x\r\n%b\r\n" % (1 << 16, b"x" * (1 << 16)))
    assert (await client.answer()).status == 413
    await client.close()
    assert recorder.asked == []
    assert (await front.ask("POST /shop/web/ HTTP/1.1", b"x" * (1 << 20))).status == 200


async def test_a_header_with_an_underscore_and_what_names_the_caller_do_not_arrive(
    front: Front, recorder: Recorder
) -> None:
    await front.ask("GET /shop/web/ HTTP/1.1\nX_Forwarded_For: 6.6.6.6\nX-Forwarded-For: 6.6.6.6\nApothic-Key: x")
    names = {name: value for name, value in recorder.asked[0]["headers"] if b"forwarded-for" in name or b"_" in name}
    assert names == {b"x-forwarded-for": b"127.0.0.1"}
    assert b"apothic-key" not in dict(recorder.asked[0]["headers"])


async def test_a_service_that_requires_a_key_wants_one_that_may_invoke_it(front: Front) -> None:
    recorder = Recorder()
    await front.serve(recorder, service(requires_key=True))
    for shown in ("", "Authorization: Bearer nonsense", "Authorization: Basic abc"):
        seen = await front.ask(f"GET /shop/web/ HTTP/1.1\n{shown}".strip())
        assert seen.status == 401 and seen["www-authenticate"] == "Bearer"
    other = await front.stage.create_key("invoke:shop/other")
    assert (await front.ask(f"GET /shop/web/ HTTP/1.1\nAuthorization: Bearer {other}")).status == 403
    assert recorder.asked == []
    right = await front.stage.create_key("invoke:shop/web")
    assert (await front.ask(f"GET /shop/web/ HTTP/1.1\nAuthorization: Bearer {right}")).status == 200
    assert b"authorization" not in dict(recorder.asked[0]["headers"])


@pytest.mark.parametrize("stage", [{"host": "0.0.0.0"}], indirect=True)
async def test_off_loopback_a_service_is_open_only_when_it_says_so(front: Front) -> None:
    await front.serve(Recorder(), service("web"), service("free", requires_key=False))
    assert (await front.ask("GET /shop/web/ HTTP/1.1")).status == 401
    assert (await front.ask("GET /shop/free/ HTTP/1.1")).status == 200


async def test_what_is_not_deployed_is_not_found_and_a_missing_slash_is_added(front: Front, recorder: Recorder) -> None:
    for path in ("/", "/shop", "/shop/other/", "/v1/jobs", "/shop/web2/"):
        assert (await front.ask(f"GET {path} HTTP/1.1")).status == 404
    seen = await front.ask("GET /shop/web?x=1 HTTP/1.1")
    assert (seen.status, seen["location"]) == (308, "/shop/web/?x=1")
    assert recorder.asked == []
