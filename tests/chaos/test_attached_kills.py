"""An attached reader and a window of three items: slow, cut off, or with its server killed, it sees every item."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from aftermath import broken, loaded
from proxy import proxied
from rig import Server, serving
from storm import free_port

from apothic import ControlPlaneClient, JobStreamResetError, RemoteFunction

ITEMS = 2_000
NARROW = f"""
import apothic

app = apothic.App("narrow")


@app.function(stream_window=3)
def narrow():
    yield from range({ITEMS})
    return {ITEMS}
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Server, ModuleType]]:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path / "data", port=free_port()))
        app = stack.enter_context(loaded(tmp_path, "narrow", NARROW, server.client()))
        app.app.deploy()
        yield server, app


def test_a_slow_reader_sees_every_item(running: tuple[Server, ModuleType]) -> None:
    server, app = running
    got = []
    for item in app.narrow.remote_gen():
        got.append(item)
        if len(got) % 500 == 0:
            time.sleep(0.3)  # it is the slowness of the reader that is tried
    assert got == list(range(ITEMS))
    assert broken(server.data_dir) == {}


def test_a_detached_reader_of_the_same_sees_a_declared_gap(running: tuple[Server, ModuleType]) -> None:
    _, app = running
    job = app.narrow.spawn()
    assert job.wait() == ITEMS
    with pytest.raises(JobStreamResetError) as caught:
        list(job.wait_gen())
    assert caught.value.event.lost == {"job.stream_item": ITEMS - 3}
    assert list(job.wait_gen(checkpoint=caught.value.checkpoint)) == list(range(ITEMS - 3, ITEMS))


def test_its_server_is_killed_in_the_middle(running: tuple[Server, ModuleType]) -> None:
    server, app = running
    stream = app.narrow.remote_gen()
    got = [next(stream) for _ in range(10)]
    server.kill()
    server.start()
    got += stream
    assert got == list(range(ITEMS))
    assert broken(server.data_dir) == {}


def test_its_connection_is_cut_again_and_again(running: tuple[Server, ModuleType]) -> None:
    server, _ = running
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(proxied(server.base_url))
        key = (server.data_dir / "admin.key").read_text().strip()
        client = stack.enter_context(ControlPlaneClient(proxy.base_url, api_key=key))
        got = []
        for item in RemoteFunction.from_name("narrow", "narrow", client=client).remote_gen():
            got.append(item)
            if len(got) % 400 == 1:
                proxy.cut()
    assert got == list(range(ITEMS))
