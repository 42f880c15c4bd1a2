"""Web servers of the user's own: any process that listens on its port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import aiohttp
import psutil
import pytest
from containerbench import Bench
from servicebench import launch, own_log, refused, serve

from apothic.agent.ports import answers, free_port, listens, port_holder

PROCESS = """
    import subprocess, sys
    def f(port):
        child = subprocess.Popen([sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", str(port)])
        print(child.pid, flush=True)
"""


async def ask(address: str) -> str:
    way, _, port = address.partition(":")
    assert way == "port"
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/") as answer:
        assert answer.status == 200
        return await answer.text()


async def test_a_process_that_the_function_starts_is_served(bench: Bench) -> None:
    news = await serve(bench, "web_server", PROCESS, service={"startup_timeout_s": 30.0})
    assert "Directory listing" in await ask(news.address)
    child = int(own_log(bench, news.id)[0])
    bench.containers.stop(news.id, "no longer wanted")
    assert (await bench.gone(news.id)).failure is None
    assert not psutil.pid_exists(child)


@pytest.mark.parametrize(
    "body",
    [
        "import http.server; http.server.ThreadingHTTPServer(('127.0.0.1', port), http.server.SimpleHTTPRequestHandler)"
        ".serve_forever()",
        "import subprocess, sys; subprocess.run([sys.executable, '-m', 'http.server', str(port)])",
        "import http.server, threading; threading.Thread(target=http.server.ThreadingHTTPServer(('', port), "
        "http.server.SimpleHTTPRequestHandler).serve_forever, daemon=True).start()",
    ],
    ids=["blocks", "waits for a process", "a thread"],
)
@pytest.mark.parametrize("bench", [{"grace_s": 20.0, "kill_s": 20.0}], indirect=True)
async def test_every_way_to_run_a_server_ends_without_force(bench: Bench, body: str) -> None:
    code = f"def f(port):\n    {body}\n"
    news = await serve(bench, "web_server", code, service={"startup_timeout_s": 30.0})
    assert "Directory listing" in await ask(news.address)
    async with asyncio.timeout(18):
        bench.containers.stop(news.id, "no longer wanted")
        assert (await bench.gone(news.id)).failure is None


@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
async def test_a_server_of_its_own_finishes_what_it_answers(bench: Bench, tmp_path: object) -> None:
    code = """
        import asyncio, os, uvicorn
        async def app(scope, receive, send):
            if scope["type"] != "http": raise NotImplementedError
            print("asked", flush=True)
            while not os.path.exists(scope["query_string"].decode()): await asyncio.sleep(0.01)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})
        async def f(port):
            await uvicorn.Server(uvicorn.Config(app, port=port, log_config=None)).serve()
    """
    news = await serve(bench, "web_server", code, service={"startup_timeout_s": 30.0})
    port, gate = news.address.removeprefix("port:"), f"{tmp_path}/gate"
    async with aiohttp.ClientSession() as http:
        asked = asyncio.create_task(http.get(f"http://127.0.0.1:{port}/?{gate}"))
        await bench.until(lambda: "asked" in own_log(bench, news.id))
        bench.containers.stop(news.id, "no longer wanted")
        await bench.soon(lambda: not listens(int(port)))
        open(gate, "w").close()
        answer = await asked
        assert await answer.text() == "done"
    assert (await bench.gone(news.id)).failure is None


async def test_the_port_is_the_one_that_was_asked_for(bench: Bench) -> None:
    port = free_port()
    code = """
        import os, http.server
        def f():
            print("PORT", os.environ["PORT"], flush=True)
            http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), http.server.SimpleHTTPRequestHandler
                ).serve_forever()
    """
    news = await serve(bench, "web_server", code, service={"port": port, "startup_timeout_s": 30.0})
    assert news.address == f"port:{port}" and own_log(bench, news.id) == [f"PORT {port}"]
    await ask(news.address)


async def test_a_port_that_is_taken_names_who_has_it(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failure = await refused(bench, "web_server", PROCESS, service={"port": port})
    assert f"port {port} is taken by " in failure.message and f"(pid {os.getpid()})" in failure.message
    assert failure.retriable


async def test_a_server_that_never_listens_fails_the_start(bench: Bench) -> None:
    code = "def f():\n    print('elsewhere', flush=True)\n    import threading\n    threading.Event().wait()\n"
    failure = await refused(bench, "web_server", code, service={"startup_timeout_s": 0.5})
    assert failure.message.startswith("nothing listens on port ") and " after 0.5 s\nhint: " in failure.message
    assert failure.log_tail == "elsewhere"


async def test_a_function_that_raises_fails_the_start(bench: Bench) -> None:
    failure = await refused(bench, "web_server", "def f(port): raise LookupError('no server')")
    assert (failure.type, failure.message) == ("LookupError", "no server") and "app.py" in failure.traceback


async def test_a_server_process_that_dies_ends_its_container(bench: Bench) -> None:
    news = await serve(bench, "web_server", PROCESS, service={"startup_timeout_s": 30.0})
    os.kill(int(own_log(bench, news.id)[0]), signal.SIGKILL)
    failure = (await bench.gone(news.id)).failure
    assert failure is not None and failure.kind == "worker_lost" and "the server has ended" in (failure.log_tail or "")


async def test_an_agent_that_wants_it_no_more_before_it_listens(bench: Bench) -> None:
    code = "import threading\ndef f():\n    print('here', flush=True)\n    threading.Event().wait()\n"
    container = launch(bench, "web_server", code, service={"startup_timeout_s": 60.0})
    await bench.until(lambda: "here" in own_log(bench, container))
    bench.containers.stop(container, "no longer wanted")
    assert (await bench.gone(container)).failure is None


def test_ports_are_looked_at_without_knocking() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.setblocking(False)
        assert listens(port) and f"(pid {os.getpid()})" in port_holder(port)
        with pytest.raises(BlockingIOError):
            server.accept()
        assert answers(port)
    assert not listens(port) and not answers(port)
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert listens(server.getsockname()[1])
