"""WSGI apps in real containers: Flask and Django as they are, and what the adapter between has to get right."""

from __future__ import annotations

import asyncio

import pytest
from containerbench import Bench
from servicebench import asking, dial, own_log, serve

FLASK = """
    import os, time
    from flask import Flask, Response, jsonify, request, session, url_for
    app = Flask(__name__)
    app.secret_key = "k"

    @app.get("/")
    def home():
        return jsonify(url=url_for("item", id=7), full=url_for("item", id=7, _external=True))

    @app.route("/items/<int:id>", methods=["GET", "POST"])
    def item(id):
        return jsonify(id=id, form=request.form, script=request.script_root, path=request.path)

    @app.post("/length")
    def length():
        return str(len(request.get_data()))

    @app.post("/chunks")
    def chunks():
        return str(len(request.stream.read()))

    @app.get("/log")
    def log():
        app.logger.error("an error of the app")
        raise ValueError("broken")

    @app.get("/stream")
    def stream():
        def made():
            try:
                while True:
                    yield "x" * 10_000
                    time.sleep(0.001)
            finally:
                print("closed", flush=True)
        return Response(made())

    def f(): return app
"""


async def test_flask_finds_itself_below_its_mount(bench: Bench) -> None:
    news = await serve(bench, "wsgi_app", FLASK)
    async with asking(news) as http:
        async with http.get("/", headers={"Host": "shop.test"}) as answer:
            told = await answer.json()
        assert told == {"url": "/shop/f/items/7", "full": "http://shop.test/shop/f/items/7"}
        async with http.post("/items/3", data={"a": "1"}) as answer:
            assert await answer.json() == {"id": 3, "form": {"a": "1"}, "script": "/shop/f", "path": "/items/3"}
        async with http.get("/shop/f/items/3") as answer:
            assert answer.status == 404  # the mount is taken off once
        async with http.head("/") as answer:
            assert answer.status == 200 and await answer.read() == b""


async def test_bodies_come_whole_also_in_chunks(bench: Bench) -> None:
    async def pieces() -> object:
        for _ in range(50):
            yield b"x" * 10_000

    news = await serve(bench, "wsgi_app", FLASK)
    async with asking(news) as http:
        for path in ("/length", "/chunks"):
            async with http.post(path, data=pieces()) as answer:
                assert await answer.text() == "500000"
            async with http.post(path, data=b"x" * 300_000) as answer:
                assert await answer.text() == "300000"


async def test_what_it_logs_is_in_its_log(bench: Bench) -> None:
    news = await serve(bench, "wsgi_app", FLASK)
    async with asking(news) as http, http.get("/log") as answer:
        assert answer.status == 500
    await bench.until(lambda: any("an error of the app" in line for line in own_log(bench, news.id)))
    await bench.until(lambda: "ValueError: broken" in own_log(bench, news.id))
    said = [line for frame in bench.frames for said in frame.said for line in said.lines]
    assert {line.stream for line in said if "an error of the app" in line.text} == {"stderr"}


async def test_a_caller_that_leaves_ends_the_stream_and_frees_its_thread(bench: Bench) -> None:
    news = await serve(bench, "wsgi_app", FLASK, concurrent_requests=2)
    for count in range(1, 6):
        sock = dial(news)
        sock.sendall(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"200 OK" in sock.recv(1000)
        sock.close()
        await bench.until(lambda: own_log(bench, news.id).count("closed") == count, 20)  # noqa: B023
    async with asking(news) as http, asyncio.timeout(20), http.get("/") as answer:
        assert answer.status == 200


async def test_an_upload_whose_sender_leaves_is_no_whole_one(bench: Bench) -> None:
    code = """
        def f():
            def app(environ, start_response):
                try:
                    print("whole", len(environ["wsgi.input"].read()), flush=True)
                except OSError as error:
                    print("broken", error, flush=True)
                    raise
                start_response("200 OK", [])
                return [b""]
            return app
    """
    news = await serve(bench, "wsgi_app", code)
    sock = dial(news)
    sock.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nsome")
    sock.close()
    await bench.until(lambda: any(line.startswith(("broken", "whole")) for line in own_log(bench, news.id)))
    assert own_log(bench, news.id)[0] == "broken the caller left before its request was whole"


async def test_a_slow_reader_slows_its_generator(bench: Bench) -> None:
    code = """
        made = 0
        def f():
            def app(environ, start_response):
                global made
                start_response("200 OK", [])
                if environ["PATH_INFO"] == "/count":
                    yield str(made).encode()
                    return
                while True:
                    made += 1
                    yield b"x" * 100_000
            return app
    """
    news = await serve(bench, "wsgi_app", code)
    sock = dial(news)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert sock.recv(100)
    async with asking(news) as http:

        async def made() -> int:
            async with http.get("/count") as answer:
                return int(await answer.text())

        before, now = -1, await made()
        while now != before:
            await asyncio.sleep(0.2)
            before, now = now, await made()
        assert 0 < now < 100
    sock.close()


DJANGO = """
    import os
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import JsonResponse
    from django.urls import path, reverse

    def home(request):
        told = {"url": reverse("home"), "absolute": request.build_absolute_uri(), "secure": request.is_secure()}
        return JsonResponse(told)

    urlpatterns = [path("deep/", home, name="home")]

    def f():
        settings.configure(
            ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="k", DEBUG=False,
            MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        )
        return get_wsgi_application()
"""


async def test_django_reverses_below_its_mount(bench: Bench) -> None:
    news = await serve(bench, "wsgi_app", DJANGO)
    async with asking(news) as http:
        headers = {"Host": "shop.test", "X-Forwarded-Proto": "https"}
        async with http.get("/deep/", headers=headers) as answer:
            told = await answer.json()
        assert told == {"url": "/shop/f/deep/", "absolute": "https://shop.test/shop/f/deep/", "secure": True}
        async with http.get("/deep", headers=headers, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["location"]) == (301, "/shop/f/deep/")


async def test_a_websocket_is_refused(bench: Bench) -> None:
    news = await serve(bench, "wsgi_app", FLASK)
    async with asking(news) as http:
        with pytest.raises(Exception, match="403"):
            await http.ws_connect("/")
