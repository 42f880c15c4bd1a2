"""ASGI services in real containers: what the app sees, streaming both ways, leaving callers, and the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import aiohttp
import pytest
from containerbench import Bench
from servicebench import asking, dial, launch, own_log, refused, serve

ECHO = """
    import json
    def f():
        async def app(scope, receive, send):
            if scope["type"] != "http": raise NotImplementedError
            told = {k: scope[k] for k in ("path", "root_path", "method", "scheme", "client", "server")}
            told["raw_path"] = scope["raw_path"].decode()
            body = b""
            while True:
                message = await receive()
                body += message["body"]
                if not message["more_body"]: break
            told["body"] = body.decode()
            print("asked", flush=True)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": json.dumps(told).encode()})
        return app
"""


async def test_an_app_is_served_on_a_socket_in_the_containers_home(bench: Bench) -> None:
    news = await serve(bench, "asgi", ECHO)
    path = news.address.removeprefix("unix:")
    assert path.endswith(f"/{news.id}/serve.sock") and len(path) > 0
    assert os.stat(path).st_mode & 0o777 == 0o600

    async with asking(news) as http:
        headers = {"Host": "shop.test:8123", "X-Forwarded-For": "10.1.2.3", "X-Forwarded-Proto": "https"}
        async with http.post("/a%20b?x=1", data=b"hello", headers=headers) as answer:
            told = await answer.json(content_type=None)
    assert told == {
        "path": "/shop/f/a b", "raw_path": "/shop/f/a%20b", "root_path": "/shop/f", "method": "POST",
        "scheme": "https", "client": ["10.1.2.3", 0], "server": ["shop.test", 8123], "body": "hello",
    }  # fmt: skip
    await bench.until(lambda: "asked" in own_log(bench, news.id))


async def test_a_factory_may_be_async_and_what_it_raises_is_the_failure(bench: Bench) -> None:
    news = await serve(bench, "asgi", ECHO.replace("def f():", "async def f():"))
    async with asking(news) as http, http.get("/") as answer:
        assert answer.status == 200

    failure = await refused(bench, "asgi", "def f():\n    print('so far')\n    raise LookupError('no database')")
    assert (failure.type, failure.message, failure.retriable) == ("LookupError", "no database", False)
    assert "app.py" in failure.traceback and failure.log_tail == "so far"


@pytest.mark.parametrize(
    ("kind", "returned", "said", "hint"),
    [
        ("asgi", "None", "f returned nothing, no ASGI app", "(scope, receive, send)"),
        ("asgi", "7", "f returned an object of type int, no ASGI app", "return the app itself"),
        ("asgi", "lambda environ, start_response: []", "f returned a WSGI app, no ASGI app", "@app.wsgi_app"),
        ("wsgi_app", "lambda scope, receive, send: None", "f returned a ASGI app, no WSGI app", "@app.asgi"),
    ],
)
async def test_what_is_no_app_fails_the_start(bench: Bench, kind: str, returned: str, said: str, hint: str) -> None:
    failure = await refused(bench, kind, f"def f(): return {returned}")
    assert failure.message.startswith(said) and hint in failure.message


STARLETTE = """
    import asyncio, contextlib, os
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Route, WebSocketRoute

    @contextlib.asynccontextmanager
    async def lifespan(app):
        LIFESPAN
        print("up", flush=True)
        yield {"ready": True}
        print("down", flush=True)

    async def home(request):
        return JSONResponse({"url": str(request.url_for("home")), "state": request.state.ready})

    async def slow(request):
        print("working", flush=True)
        while not os.path.exists(request.query_params["until"]): await asyncio.sleep(0.01)
        return PlainTextResponse("done")

    async def stuck(request):
        print("stuck", flush=True)
        try:
            await asyncio.sleep(3600)
        finally:
            print("let go", flush=True)

    async def later(request):
        async def work():
            while not os.path.exists(request.query_params["until"]): await asyncio.sleep(0.01)
            print("worked later", flush=True)
        return PlainTextResponse("now", background=BackgroundTask(work))

    async def upload(request):
        form = await request.form()
        return JSONResponse({"name": form["file"].filename, "size": len(await form["file"].read())})

    async def talk(socket):
        await socket.accept()
        try:
            while True: await socket.send_text((await socket.receive_text()).upper())
        finally:
            print("talk over", flush=True)

    def f():
        return Starlette(lifespan=lifespan, routes=[
            Route("/", home), Route("/slow", slow), Route("/stuck", stuck), Route("/later", later),
            Route("/upload", upload, methods=["POST"]),
            WebSocketRoute("/talk", talk),
        ])
"""
SOUND = STARLETTE.replace("LIFESPAN", "pass")


async def test_a_whole_starlette_app(bench: Bench) -> None:
    news = await serve(bench, "asgi", SOUND)
    async with asking(news) as http:
        async with http.get("/", headers={"Host": "h.test"}) as answer:
            assert await answer.json() == {"url": "http://h.test/shop/f/", "state": True}
        form = aiohttp.FormData()
        form.add_field("file", b"x" * 300_000, filename="big.bin")
        async with http.post("/upload", data=form) as answer:
            assert await answer.json() == {"name": "big.bin", "size": 300_000}
        async with http.ws_connect("/talk") as talk:
            await talk.send_str("hello")
            assert (await talk.receive_str()) == "HELLO"
            await talk.close()
    await bench.until(lambda: "talk over" in own_log(bench, news.id))


async def test_bytes_stream_both_ways_at_once(bench: Bench) -> None:
    code = """
        def f():
            async def app(scope, receive, send):
                if scope["type"] != "http": raise NotImplementedError
                await send({"type": "http.response.start", "status": 200, "headers": []})
                more = True
                while more:
                    message = await receive()
                    more = message["more_body"]
                    await send({"type": "http.response.body", "body": message["body"].upper(), "more_body": more})
            return app
    """
    news = await serve(bench, "asgi", code)
    came: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def body() -> object:
        while (piece := await came.get()) is not None:
            yield piece

    async with asking(news) as http:
        came.put_nowait(b"one")
        async with http.post("/", data=body()) as answer:
            assert await answer.content.readany() == b"ONE"  # before the request is whole
            came.put_nowait(b"two")
            assert await answer.content.readany() == b"TWO"
            came.put_nowait(None)
            assert await answer.content.read() == b""


async def test_a_lifespan_that_fails_fails_the_start(bench: Bench) -> None:
    failure = await refused(bench, "asgi", STARLETTE.replace("LIFESPAN", "raise OSError('no disk')"))
    assert (failure.type, failure.message) == ("OSError", "no disk") and "lifespan" in failure.traceback


async def test_a_caller_that_leaves_cancels_its_handler(bench: Bench) -> None:
    news = await serve(bench, "asgi", SOUND)
    sock = dial(news)
    sock.sendall(b"GET /stuck HTTP/1.1\r\nHost: h\r\n\r\n")
    await bench.until(lambda: "stuck" in own_log(bench, news.id))
    sock.close()
    await bench.until(lambda: "let go" in own_log(bench, news.id), 20)
    assert not any("Traceback" in line for line in own_log(bench, news.id))
    async with asking(news) as http, http.get("/") as answer:
        assert answer.status == 200


async def test_work_behind_a_whole_answer_is_left_alone(bench: Bench, tmp_path: object) -> None:
    news = await serve(bench, "asgi", SOUND)
    gate = f"{tmp_path}/gate"
    sock = dial(news)
    sock.sendall(f"GET /later?until={gate} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    assert b"200 OK" in sock.recv(4096)
    sock.close()
    await asyncio.sleep(1.5)  # longer than a handler has
    open(gate, "w").close()
    await bench.until(lambda: "worked later" in own_log(bench, news.id))


@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
async def test_what_is_being_answered_is_finished_before_the_end(bench: Bench, tmp_path: object) -> None:
    news = await serve(bench, "asgi", SOUND)
    gate = f"{tmp_path}/gate"
    async with asking(news) as http:
        asked = asyncio.create_task(http.get(f"/slow?until={gate}"))
        await bench.until(lambda: "working" in own_log(bench, news.id))
        bench.containers.stop(news.id, "no longer wanted")
        await bench.soon(lambda: _refuses(news))
        assert not asked.done()
        open(gate, "w").close()
        answer = await asked
        assert (answer.status, await answer.text()) == (200, "done")
    end = await bench.gone(news.id)
    assert end.failure is None and own_log(bench, news.id)[-1] == "down"


def _refuses(news: object) -> bool:
    try:
        dial(news).close()  # type: ignore[arg-type]
    except OSError:
        return True
    return False


async def test_an_answer_that_takes_longer_than_the_grace_is_cut(bench: Bench) -> None:
    news = await serve(bench, "asgi", SOUND)
    sock = dial(news)
    sock.sendall(b"GET /stuck HTTP/1.1\r\nHost: h\r\n\r\n")
    await bench.until(lambda: "stuck" in own_log(bench, news.id))
    bench.containers.stop(news.id, "no longer wanted")
    assert (await bench.gone(news.id)).failure is None
    sock.close()


async def test_the_end_of_a_service_that_nobody_wanted_tells_why(bench: Bench) -> None:
    news = await serve(bench, "asgi", SOUND)
    os.kill(news.pid, signal.SIGKILL)
    failure = (await bench.gone(news.id)).failure
    assert failure is not None and (failure.kind, failure.exit) == ("worker_lost", "signal 9")
    assert "served ended (signal 9)" in failure.message and "up" in (failure.log_tail or "")


async def test_a_service_over_its_memory_tells_so(bench: Bench) -> None:
    code = """
        def f():
            async def app(scope, receive, send):
                if scope["type"] != "http": raise NotImplementedError
                kept = [b"x" * 1_000_000 for _ in range(2_000)]
            return app
    """
    news = await serve(bench, "asgi", code, memory_mb=200)
    sock = dial(news)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    failure = (await bench.gone(news.id)).failure
    sock.close()
    assert failure is not None and failure.kind == "oom" and "the service's processes used" in failure.message


async def test_a_start_has_the_time_that_its_option_says(bench: Bench) -> None:
    code = "import threading\ndef f(): threading.Event().wait()"
    failure = (await bench.gone(launch(bench, "asgi", code, service_startup_timeout_s=0.5))).failure
    assert failure is not None and failure.message == "it was not ready within 0.5 s"


async def test_the_processes_of_a_service_end_with_it(bench: Bench) -> None:
    code = SOUND.replace("def f():", "import subprocess\n    def f():\n        print(subprocess.Popen(['sleep', '600'])"
                         ".pid, flush=True)")  # fmt: skip
    news = await serve(bench, "asgi", code)
    await bench.until(lambda: bool(own_log(bench, news.id)))
    sleeper = int(own_log(bench, news.id)[0])
    bench.containers.stop(news.id, "no longer wanted")
    await bench.gone(news.id)
    assert not os.path.exists(f"/proc/{sleeper}")


async def test_its_place_is_told_again_after_a_cut(bench: Bench) -> None:
    news = await serve(bench, "asgi", ECHO)
    (again,) = bench.containers.news()
    assert (again.state, again.address) == ("ready", news.address)
    assert json.dumps(news.address)
