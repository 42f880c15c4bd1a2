"""Services under load: large bodies in little memory, containers that are killed, clients that leave."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import hardy
import psutil
import pytest
from rig import Server, until

from apothic.protocol import messages as m
from apothic.protocol import routes

MIB = 1 << 20


@pytest.fixture(scope="module")
def gateway(server: Server) -> Iterator[str]:
    with server.lending(hardy.app):
        yield server.gateway_url


def connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)


class Memory(threading.Thread):
    """Watches how much a process holds; `grown` says by how much more than at first, in MiB."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._process = psutil.Process(pid)
        self._first = self._most = self._process.memory_info().rss
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.02):
            self._most = max(self._most, self._process.memory_info().rss)

    def __enter__(self) -> Memory:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    @property
    def grown(self) -> float:
        return (self._most - self._first) / MIB


def pass_through(server: Server, gateway: str, size: int) -> str:
    """Upload and download so many bytes, with a reader that is slower than the application."""
    import hashlib

    link = connect(gateway)
    link.request("GET", "/hardy/web/")
    link.getresponse().read()
    pieces = size // len(hardy.PIECE)
    whole = hashlib.sha256()
    for _ in range(pieces):
        whole.update(hardy.PIECE)
    with Memory(server.pid) as up:
        link.request("PUT", "/hardy/web/sum", (hardy.PIECE for _ in range(pieces)), encode_chunked=True,
                     headers={"Transfer-Encoding": "chunked"})  # fmt: skip
        assert link.getresponse().read().decode() == whole.hexdigest()
    with Memory(server.pid) as down:
        link.request("GET", f"/hardy/web/much?{pieces}")
        answer, got = link.getresponse(), hashlib.sha256()
        time.sleep(0.5)  # what comes meanwhile has to wait somewhere, and not in the gateway
        while piece := answer.read(MIB):
            got.update(piece)
        assert got.hexdigest() == whole.hexdigest()
    link.close()
    assert up.grown < 32 and down.grown < 32
    return f"{size // MIB:,} MiB: up +{up.grown:.1f} MiB, down +{down.grown:.1f} MiB"


def test_large_bodies_pass_through_in_little_memory(server: Server, gateway: str) -> None:
    print(pass_through(server, gateway, 128 * MIB))


@pytest.mark.soak
def test_a_gibibyte_passes_through_in_little_memory(server: Server, gateway: str) -> None:
    print(pass_through(server, gateway, 1024 * MIB))


def test_containers_killed_under_load_cost_no_idempotent_request(server: Server, gateway: str) -> None:
    over, told, wrong = threading.Event(), Counter[str](), []

    def visit(method: str) -> None:
        link = connect(gateway)
        while not over.wait(0.01):
            try:
                link.request(method, "/hardy/web/", b"x" if method == "POST" else None)
                answer = link.getresponse()
                body = answer.read().decode()
            except (OSError, http.client.HTTPException) as error:
                wrong.append(f"{method}: {error!r}")
                link.close()
                continue
            told[f"{method} {answer.status}"] += 1
            if answer.status == 502 and method == "POST":
                assert "was lost before it answered" in body and "signal 9" in body, body
            elif answer.status != 200:
                wrong.append(f"{method}: {answer.status} {body}")
        link.close()

    visitors = [threading.Thread(target=visit, args=(method,)) for method in ("GET", "GET", "PUT", "POST", "POST")]
    for visitor in visitors:
        visitor.start()
    try:
        for kills in range(1, 9):
            before = told.total()
            until(lambda before=before: told.total() >= before + 30, 60, "answers")
            link = connect(gateway)
            link.request("GET", "/hardy/web/pid")
            os.kill(int(link.getresponse().read()), 9)
            link.close()
            assert wrong == [], f"after {kills} kills: {wrong[:5]}"
    finally:
        over.set()
        for visitor in visitors:
            visitor.join(60)
    assert wrong == [] and {"GET 200", "PUT 200", "POST 200"} <= set(told)
    lines = server.client().ask_blocking(routes.APP_LOGS, m.ShowAppLogs(app="hardy")).lines
    assert any("/hardy/web/" in line.text for line in lines)


def test_a_request_that_kills_its_container_each_time_is_given_up_with_the_reason(gateway: str) -> None:
    link = connect(gateway)
    link.request("POST", "/hardy/web/die", b"")
    answer = link.getresponse()
    body = answer.read().decode()
    assert answer.status == 502 and "signal 9" in body
    link.request("GET", "/hardy/web/")
    assert link.getresponse().status == 200
    link.close()


@pytest.mark.parametrize(
    "target", ["/hardy/waits/?book={}", "/hardy/yields/?book={}", "/hardy/deaf/?{}"], ids=["waits", "yields", "deaf"]
)
def test_who_works_for_a_client_that_leaves_is_cancelled(gateway: str, tmp_path: Path, target: str) -> None:
    parts = urlsplit(gateway)
    link = socket.create_connection((parts.hostname, parts.port))  # type: ignore[arg-type]
    link.sendall(f"GET {target.format(tmp_path)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    until(lambda: (tmp_path / "begun").exists(), 60, "the handler")
    assert not (tmp_path / "left").exists()
    link.close()
    began = time.monotonic()
    until(lambda: (tmp_path / "left").exists(), 20, "the cancellation")
    print(f"cancelled after {time.monotonic() - began:.2f} s")
