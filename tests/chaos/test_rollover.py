"""Requests while one version follows another, and some that do not start: every one of them is answered.

kuberay#3166 and ray#66252 tell of 503s in the moment of the switch, and mnfst/llm-gateway#2326 of requests that were
cut. SEED repeats a history; ROUNDS is how many deployments there are.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
from rig import Server, until
from storm import fresh_seed

from apothic.errors import NotDeployedError

CLIENTS = 5
EVERY_S = 0.1  # of each client: 50 requests a second in all

SOURCE = """
import asyncio
import apothic

app = apothic.App("rolling")

@app.asgi(cpu=0.1, memory_mb=256, max_containers=2)
def web():
    {trouble}

    async def application(scope, receive, send):
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await asyncio.sleep(0.02)
        told = b"{version} " + body
        headers = [(b"content-length", b"%d" % len(told))]
        await send({{"type": "http.response.start", "status": 200, "headers": headers}})
        await send({{"type": "http.response.body", "body": told}})
    return application
"""


class Visitors:
    """Clients that ask again and again, and remember what they were told."""

    def __init__(self, url: str) -> None:
        self.answers: Counter[int | str] = Counter()
        self.versions: set[str] = set()
        self.wrong: list[str] = []
        self._url = urlsplit(url)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._visit, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _visit(self, number: int) -> None:
        assert self._url.hostname is not None
        connection = http.client.HTTPConnection(self._url.hostname, self._url.port, timeout=60)
        count = 0
        while not self._over.wait(EVERY_S):
            count += 1
            method, sent = ("POST", f"{number}-{count}".encode()) if count % 2 else ("GET", None)
            try:
                connection.request(method, self._url.path, sent)
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.answers[type(error).__name__] += 1
                self.wrong.append(f"{method}: {error!r}")
                connection.close()
                continue
            self.answers[answer.status] += 1
            version, _, echoed = body.partition(b" ")
            if answer.status != 200 or echoed != (sent or b""):
                self.wrong.append(f"{method}: {answer.status} {body[:300]!r}")
            self.versions.add(version.decode())
        connection.close()


def loaded(folder: Path, version: int, trouble: str = "pass") -> ModuleType:
    """Write a version's file and import it anew."""
    path = folder / "rolling.py"
    path.write_text(SOURCE.format(version=version, trouble=trouble))
    spec = importlib.util.spec_from_file_location("rolling", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rolling"] = module
    exec(compile(path.read_text(), path, "exec"), module.__dict__)  # the loader's cache has seconds
    return module


def roll(tmp_path: Path, seed: str, rounds: int, broken: int) -> str:
    """Deploy `rounds` versions under load, of which so many do not start."""
    dice = random.Random(seed)
    bad = set(dice.sample(range(1, rounds), broken))
    server = Server(tmp_path / "data", {"grace_s": 5})
    server.start()
    client = server.client()
    began = time.monotonic()
    try:
        first = loaded(tmp_path, 0)
        first.app._client = client
        first.app.deploy()
        url = f"{server.gateway_url}/rolling/web/"
        with Visitors(url) as visitors:
            until(lambda: "0" in visitors.versions, 30, "version 0")
            for version in range(1, rounds):
                trouble = 'raise RuntimeError("out of order")' if version in bad else "pass"
                module = loaded(tmp_path, version, trouble)
                module.app._client = client
                if version in bad:
                    with pytest.raises(NotDeployedError, match="out of order"):
                        module.app.deploy()
                else:
                    module.app.deploy()
                    until(lambda version=version: str(version) in visitors.versions, 30, f"version {version}")
                assert visitors.wrong == [], f"at version {version}: {visitors.wrong[:5]}"
        assert visitors.wrong == [] and set(visitors.answers) == {200}
        assert visitors.versions == {str(version) for version in range(rounds) if version not in bad}
        took = time.monotonic() - began
        return f"SEED={seed}: {rounds} deployments, {broken} broken, answers {dict(visitors.answers)}, {took:.0f} s"
    finally:
        sys.modules.pop("rolling", None)
        server.stop()


def test_every_request_is_answered_while_versions_follow_each_other(tmp_path: Path) -> None:
    print(roll(tmp_path, os.environ.get("SEED", "1"), 8, 2))


@pytest.mark.soak
def test_a_hundred_deployments(tmp_path: Path) -> None:
    print(roll(tmp_path, os.environ.get("SEED") or fresh_seed(), int(os.environ.get("ROUNDS", "100")), 5))
