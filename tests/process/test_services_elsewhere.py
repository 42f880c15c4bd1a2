"""Services of agents elsewhere: reached by their relay, through the gateway, and handed over when one leaves."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

from chaos.aftermath import agents, loaded
from rig import Server, end_leftovers, environment, serving, until

SOURCE = """
import os
import subprocess
import sys

import apothic

app = apothic.App("far")


@app.asgi(memory_mb=256, cpu=0.1)
def echo():
    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-pid", str(os.getpid()).encode())]})
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})

    return app


@app.web_server(0, startup_timeout=60.0, memory_mb=256, cpu=0.1)
def files(port):
    subprocess.Popen([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)])
"""


@contextlib.contextmanager
def far_agent(server: Server, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run an agent that has nothing of the server's but its URL."""
    home = server.home / name
    home.mkdir()
    key = (server.data_dir / "agent.key").read_text().strip()
    command = [sys.executable, "-m", "apothic", "agent", "--url", server.base_url, "--key", key]
    with (home / "agent.log").open("wb") as output:
        env = environment(home / "data", home) | {"TMPDIR": str(home)}
        agent = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    try:
        client = server.client()
        until(lambda: any(one.pid == agent.pid and one.connected for one in agents(client)), what="the agent")
        yield agent
    finally:
        agent.terminate()
        try:
            agent.wait(30)
        finally:
            agent.kill()
            agent.wait()
            end_leftovers(home)


@contextlib.contextmanager
def scene(tmp_path: Path) -> Iterator[tuple[Server, ModuleType]]:
    """Run a server that has no agent of its own, and load the app."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with (data_dir / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with serving(data_dir, gateway_port=0, grace_s=20) as server:
            try:
                with loaded(tmp_path, "far", SOURCE, server.client()) as module:
                    yield server, module
            finally:
                lock.close()


def ask(url: str, body: bytes | None = None) -> tuple[int, bytes, str]:
    """Return status, body, and the pid of who answered."""
    at = urlsplit(url)
    assert at.hostname is not None
    with contextlib.closing(http.client.HTTPConnection(at.hostname, at.port, timeout=60)) as connection:
        connection.request("POST" if body is not None else "GET", at.path, body)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers.get("x-pid", "")


def test_a_service_of_another_machine_is_reached_through_its_relay(tmp_path: Path) -> None:
    with scene(tmp_path) as (server, module), far_agent(server, "one"):
        module.app.deploy()
        big = os.urandom(5_000_000)
        status, body, _ = ask(module.echo.get_web_url(), big)
        assert status == 200 and hashlib.sha256(body).digest() == hashlib.sha256(big).digest()
        status, body, _ = ask(module.files.get_web_url())
        assert status == 200 and b"Directory listing" in body
        addresses = _addresses(server)
        assert len(addresses) == 2 and all(one.startswith("relay:127.0.0.1:") for one in addresses)


def test_requests_go_on_while_an_agent_leaves(tmp_path: Path) -> None:
    with scene(tmp_path) as (server, module), far_agent(server, "one") as first:
        module.app.deploy()
        url = module.echo.get_web_url()
        before = ask(url)[2]
        statuses, stop = list[int](), threading.Event()

        def keep_asking() -> None:
            while not stop.is_set():
                statuses.append(ask(url, b"x")[0])

        asking = threading.Thread(target=keep_asking)
        with far_agent(server, "two"):
            asking.start()
            try:
                first.send_signal(signal.SIGTERM)
                until(lambda: ask(url)[2] != before, 60, "the other agent's container")
                assert first.wait(60) == 0
                said = len(statuses)
                until(lambda: len(statuses) > said + 20)
            finally:
                stop.set()
                asking.join()
        assert set(statuses) == {200}


def _addresses(server: Server) -> list[str]:
    from chaos.aftermath import opened

    with opened(server.data_dir) as connection:
        return [row[0] for row in connection.execute("SELECT address FROM addresses")]
