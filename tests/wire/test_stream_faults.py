"""What networks and processes do to a stream: nothing is lost, nothing comes twice, nothing hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from proxy import Proxy, proxied
from rig import Server, serving
from yields import app, count, last_words, paced

from apothic import ControlPlaneClient, Job
from apothic.client import stream

ITEMS = 3_000


pytestmark = pytest.mark.usefixtures("yielding")


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxied(server.base_url) as proxy:
        yield proxy


@pytest.fixture
def through(server: Server, proxy: Proxy) -> Iterator[ControlPlaneClient]:
    """A client whose every connection passes the proxy."""
    with ControlPlaneClient(proxy.base_url, api_key=(server.data_dir / "admin.key").read_text().strip()) as client:
        yield client


def read(job: Job, got: list[Any]) -> threading.Thread:
    """Read a job's items in a thread."""

    def run() -> None:
        for item in job.wait_gen(timeout_s=60):
            got.append(item)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_connection_that_is_cut_again_and_again(through: ControlPlaneClient, proxy: Proxy) -> None:
    job = Job(paced.spawn(ITEMS, 0.0005).job_id, through)
    got: list[Any] = []
    reading = read(job, got)
    cuts = 0
    while reading.is_alive() and cuts < 12:
        reading.join(0.1)
        cuts += bool(proxy.cut())
    reading.join(60)
    assert got == list(range(ITEMS)) and cuts >= 3


def test_a_proxy_that_swallows_bytes_without_closing_is_noticed(
    through: ControlPlaneClient, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SILENCE_S", 1.0)
    monkeypatch.setattr(stream, "FIRST_S", 1.0)
    monkeypatch.setattr(stream, "PAGE_WAIT_S", 0.5)
    job = Job(paced.spawn(400, 0.01).job_id, through)
    got: list[Any] = []
    reading = read(job, got)
    swallowed = 0
    for _ in range(3):
        reading.join(0.5)
        swallowed += bool(proxy.swallow())
    reading.join(60)
    assert swallowed and got == list(range(400))


def test_a_server_that_refuses_connections_for_a_while_is_waited_for(through: ControlPlaneClient, proxy: Proxy) -> None:
    job = Job(count.spawn(10).job_id, through)
    proxy.refusing.set()
    got: list[Any] = []
    reading = threading.Thread(
        target=lambda: got.extend(event.event for event in job.stream_events(event_types=["job.end"])), daemon=True
    )
    reading.start()
    reading.join(1.0)
    assert reading.is_alive() and got == []
    proxy.refusing.clear()
    reading.join(30)
    assert got == ["job.end"]


@pytest.mark.parametrize("how", ["os._exit", "SIGKILL", "10 MB", "1 MB line", "invalid"])
def test_the_last_line_comes_before_the_end_however_it_ends(how: str) -> None:
    job = last_words.with_options(delivery="at_most_once").spawn(how)
    events = list(job.stream_events())
    assert [event.index for event in events if event.index is not None] == sorted(
        {event.index for event in events if event.index is not None}
    )
    assert events[-1].event == "job.end"
    lines = [event for event in events if event.event == "job.log"]
    assert lines[-1].text == "the last line"  # type: ignore[attr-defined]
    text = "".join(line.text for line in lines[:-1])  # type: ignore[attr-defined]
    if how == "10 MB":
        numbers = [int(line.text[:6]) for line in lines[:-1]]  # type: ignore[attr-defined]
        assert numbers == list(range(numbers[0], 10_000))
    elif how == "1 MB line":
        assert text == "y" * 1_000_000 and all(len(line.data["text"]) <= 16_384 for line in lines)
    elif how == "invalid":
        assert text == r"bad \xff\xfe bytes"


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_an_idle_stream_lives_through_half_an_hour_of_silence(tmp_path: Any) -> None:
    """With the real times: every connection falls silent within 100 s, without being closed."""
    import os

    minutes = float(os.environ.get("MINUTES", "30"))
    with serving(tmp_path / "data") as idle, proxied(idle.base_url) as proxy:
        app._client = idle.client()
        app.forget()
        app.deploy()
        key = (idle.data_dir / "admin.key").read_text().strip()
        job = Job(
            paced.with_options(timeout_s=3_600).spawn(2, minutes * 60).job_id,
            ControlPlaneClient(proxy.base_url, api_key=key),
        )
        got: list[Any] = []
        reading = threading.Thread(target=lambda: got.extend(job.wait_gen(timeout_s=7_200)), daemon=True)
        reading.start()
        begun = time.monotonic()
        while reading.is_alive() and time.monotonic() - begun < minutes * 120:
            reading.join(100)
            proxy.swallow()
            print(f"{time.monotonic() - begun:.0f} s, {proxy.accepted} connections", flush=True)
        assert got == [0, 1]
