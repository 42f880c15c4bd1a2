"""Endpoints in real containers: what comes in, what goes out, and what goes wrong."""

from __future__ import annotations

import asyncio
import io

import pytest
from containerbench import Bench
from servicebench import asking, dial, own_log, refused, serve


async def test_parameters_come_by_name_and_the_value_goes_as_json(bench: Bench) -> None:
    code = """
        from dataclasses import dataclass
        @dataclass
        class Item:
            name: str
            price: float = 1.0
        def f(id: int, item: Item, tags: list[str] = ()):
            return {"id": id, "item": item, "tags": tags}
    """
    news = await serve(bench, "endpoint", code, service={"method": "POST", "path": "/items/{id}"})
    async with asking(news) as http:
        async with http.post("/items/7?tags=a&tags=b", json={"name": "n"}) as answer:
            assert answer.headers["content-type"] == "application/json"
            assert await answer.json() == {"id": 7, "item": {"name": "n", "price": 1.0}, "tags": ["a", "b"]}
        async with http.post("/items/x", json={"name": "n"}) as answer:
            assert answer.status == 422
            error = (await answer.json())["error"]
        assert error["code"] == "invalid_request" and error["details"] == {"parameter": "id", "in": "path"}
        assert error["message"] == "parameter 'id': Expected 'int', got 'str'"
        async with http.post("/items/7") as answer:
            assert answer.status == 422 and "'item': it is missing" in (await answer.json())["error"]["message"]
        async with http.post("/items/7", data=b"{", headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 422 and "no JSON" in (await answer.json())["error"]["message"]
        async with http.post("/items/7", data={"name": "n"}) as answer:
            assert answer.status == 422 and "Content-Type: application/json" in (await answer.json())["error"]["hint"]


async def test_only_its_path_and_its_methods_are_answered(bench: Bench) -> None:
    news = await serve(bench, "endpoint", "def f(a: int = 1): return 'text ž'")
    async with asking(news) as http:
        async with http.get("/") as answer:
            assert answer.headers["content-type"] == "text/plain; charset=utf-8" and await answer.text() == "text ž"
        async with http.head("/") as answer:
            assert (answer.status, answer.headers["content-length"], await answer.read()) == (200, "7", b"")
        async with http.options("/") as answer:
            assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
        async with http.post("/") as answer:
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
            assert (await answer.json())["error"]["code"] == "method_not_allowed"
        async with http.get("/other") as answer:
            assert answer.status == 404 and (await answer.json())["error"]["code"] == "not_found"
        with pytest.raises(Exception, match="403"):
            await http.ws_connect("/")


async def test_responses_of_all_sorts(bench: Bench) -> None:
    code = """
        import apothic
        from starlette.responses import RedirectResponse
        async def f(what: str):
            if what == "own":
                return apothic.Response({"made": 1}, 201, [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
            if what == "empty": return apothic.Response(b"", 204)
            if what == "html": return apothic.Response("<p>", media_type="text/html")
            if what == "bytes": return b"\\x00\\xff"
            if what == "starlette": return RedirectResponse("/there")
    """
    news = await serve(bench, "endpoint", code)
    async with asking(news) as http:
        async with http.get("/?what=own") as answer:
            assert answer.status == 201 and await answer.json() == {"made": 1}
            assert answer.headers.getall("set-cookie") == ["a=1", "b=2"]
        async with http.get("/?what=empty") as answer:
            assert answer.status == 204 and "content-length" not in answer.headers
        async with http.get("/?what=html") as answer:
            assert answer.headers["content-type"] == "text/html" and await answer.text() == "<p>"
        async with http.get("/?what=bytes") as answer:
            assert answer.headers["content-type"] == "application/octet-stream" and await answer.read() == b"\x00\xff"
        async with http.get("/?what=starlette", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["location"]) == (307, "/there")
        async with http.get("/?what=none") as answer:
            assert await answer.json() is None


@pytest.mark.parametrize("colour", ["def", "async def"])
async def test_a_generator_streams_as_it_goes(bench: Bench, colour: str, tmp_path: object) -> None:
    code = f"""
        import os, time
        {colour} f(gate: str):
            yield "one\\n"
            while not os.path.exists(gate): time.sleep(0.01)
            yield b"two\\n"
            yield {{"three": 3}}
    """
    news = await serve(bench, "endpoint", code)
    gate = f"{tmp_path}/gate"
    async with asking(news) as http:
        async with http.get(f"/?gate={gate}") as answer:
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert await answer.content.readline() == b"one\n"
            open(gate, "w").close()
            assert await answer.content.read() == b'two\n{"three":3}\n'
        async with http.get(f"/?gate={gate}", headers={"Accept": "text/event-stream"}) as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            assert await answer.content.read() == b'data: one\ndata: \n\ndata: two\ndata: \n\ndata: {"three":3}\n\n'
        async with http.head(f"/?gate={gate}") as answer:
            assert answer.status == 200 and await answer.read() == b""


async def test_a_slow_reader_slows_its_generator(bench: Bench) -> None:
    code = """
        made = 0
        def f(count: bool = False):
            if count: return made
            return stream()
        def stream():
            global made
            while True:
                made += 1
                yield b"x" * 100_000
    """
    news = await serve(bench, "endpoint", code)
    sock = dial(news)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert sock.recv(100)
    async with asking(news) as http:

        async def made() -> int:
            async with http.get("/?count=1") as answer:
                return int(await answer.text())

        before, now = -1, await made()
        while now != before:
            await asyncio.sleep(0.2)
            before, now = now, await made()
        assert 0 < now < 100  # of 10 MB that would be there, a few hundred kB wait
        sock.close()


@pytest.mark.parametrize("colour", ["def", "async def"])
async def test_a_caller_that_leaves_ends_the_stream(bench: Bench, colour: str) -> None:
    code = f"""
        import time
        {colour} f():
            try:
                while True:
                    yield "tick\\n"
                    {"time.sleep(0.01)" if colour == "def" else "import asyncio; await asyncio.sleep(0.01)"}
            finally:
                print("closed", flush=True)
    """
    news = await serve(bench, "endpoint", code)
    sock = dial(news)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"200 OK" in sock.recv(1000)
    sock.close()
    await bench.until(lambda: "closed" in own_log(bench, news.id), 20)


async def test_a_caller_that_leaves_while_the_body_is_not_read_is_noticed(bench: Bench) -> None:
    code = """
        import asyncio
        async def app(scope, receive, send):
            if scope["type"] != "http": raise NotImplementedError
            print("asked", flush=True)
            try:
                await asyncio.sleep(3600)
            finally:
                print("let go", flush=True)
        def f(): return app
    """
    news = await serve(bench, "asgi", code)
    sock = dial(news)
    sock.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 200_000)
    await bench.until(lambda: "asked" in own_log(bench, news.id))
    sock.close()
    await bench.until(lambda: "let go" in own_log(bench, news.id), 20)


async def test_a_failure_is_told_without_its_traceback(bench: Bench) -> None:
    code = """
        def f(how: str):
            if how == "raise": raise LookupError("the secret reason")
            if how == "exit": raise SystemExit(3)
            if how == "odd": return object()
            def stream():
                yield "some"
                raise LookupError("the late reason")
            return stream()
    """
    news = await serve(bench, "endpoint", code)
    async with asking(news) as http:
        for how in ("raise", "exit", "odd"):
            async with http.get(f"/?how={how}") as answer:
                assert answer.status == 500
                error = (await answer.json())["error"]
                assert (error["code"], error["message"]) == ("failed", "the function failed")
        await bench.until(lambda: "LookupError: the secret reason" in own_log(bench, news.id))
        await bench.until(lambda: any("cannot be JSON" in line for line in own_log(bench, news.id)))
        with pytest.raises(Exception, match="not completed"):
            async with http.get("/?how=late") as answer:
                await answer.read()
        await bench.until(lambda: "LookupError: the late reason" in own_log(bench, news.id))


async def test_plain_functions_run_at_the_same_time(bench: Bench) -> None:
    code = """
        import threading
        barrier = threading.Barrier(4)
        def f(): return barrier.wait(20) >= 0
    """
    news = await serve(bench, "endpoint", code, concurrent_requests=4)
    async with asking(news) as http:

        async def ask() -> bool:
            async with http.get("/") as answer:
                return bool(await answer.json())

        assert await asyncio.gather(*(ask() for _ in range(4))) == [True] * 4


async def test_a_body_that_would_fill_the_memory_is_refused(bench: Bench) -> None:
    code = "def f(a: list[int]): return len(a)"
    news = await serve(bench, "endpoint", code, service={"method": "POST"}, memory_mb=160)
    headers = {"Content-Type": "application/json"}
    async with asking(news) as http:
        async with http.post("/", data=io.BytesIO(b"[" + b"1," * 6_000_000 + b"1]"), headers=headers) as answer:
            assert answer.status == 413 and (await answer.json())["error"]["details"]["limit"] == 10 << 20
        async with http.post("/", data=b"[1,2]", headers=headers) as answer:
            assert await answer.json() == 2


async def test_a_function_that_no_request_can_call_fails_the_start(bench: Bench) -> None:
    failure = await refused(bench, "endpoint", "def f(*values): return values")
    assert "cannot take *values" in failure.message and "hint:" in failure.message


FASTAPI = """
    from pydantic import BaseModel
    class Item(BaseModel):
        name: str
    async def f(id: int, item: Item):
        return {"id": id, "name": item.name}
"""


async def test_a_fastapi_endpoint_has_an_app_of_its_own(bench: Bench) -> None:
    service = {"method": "POST", "path": "/items/{id}"}
    news = await serve(bench, "fastapi_endpoint", FASTAPI, service=service)
    async with asking(news) as http:
        async with http.post("/items/7", json={"name": "n"}) as answer:
            assert await answer.json() == {"id": 7, "name": "n"}
        async with http.post("/items/x", json={}) as answer:
            assert answer.status == 422
        async with http.get("/docs") as answer:
            assert "/shop/f/openapi.json" in await answer.text()
        async with http.get("/openapi.json") as answer:
            told = await answer.json()
        assert told["servers"] == [{"url": "/shop/f"}] and list(told["paths"]) == ["/items/{id}"]
    hidden = await serve(bench, "fastapi_endpoint", FASTAPI, service={**service, "docs": False})
    async with asking(hidden) as http:
        for page in ("/docs", "/redoc", "/openapi.json"):
            async with http.get(page) as answer:
                assert answer.status == 404


async def test_fastapi_that_is_missing_is_said(bench: Bench) -> None:
    missing = "import sys\n" + "sys.modules['fastapi'] = None\n" + "def f(): return 1\n"
    failure = await refused(bench, "fastapi_endpoint", missing)
    assert "fastapi cannot be imported" in failure.message and "hint: install fastapi" in failure.message
