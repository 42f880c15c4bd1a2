"""A hundred readers on one job, one of which reads a byte a second: each gets all of it, and costs little."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from urllib.parse import urlsplit

import psutil
import pytest
from rig import Server
from yields import paced, talk

from apothic import Job, JobResetEvent

READERS = 100
ITEMS = 400
LIMIT_S = 60.0
MIB = 1024 * 1024


pytestmark = pytest.mark.usefixtures("yielding")


class Raw:
    """A reader of nothing but bytes. It counts frames of items, and sees the end."""

    def __init__(self, server: Server, job: Job) -> None:
        parts = urlsplit(server.base_url)
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect((parts.hostname, parts.port))
        key = (server.data_dir / "admin.key").read_text().strip()
        self.socket.sendall(
            f"GET /v1/jobs/{job.job_id}/events HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: text/event-stream\r\n"
            f"Authorization: Bearer {key}\r\n\r\n".encode()
        )
        self.socket.setblocking(False)
        self.items = 0
        self.ended = False
        self._held = b""

    def read(self, size: int = 65536) -> None:
        """Take in what is there, at most `size` bytes."""
        with contextlib.suppress(BlockingIOError):
            data = self.socket.recv(size)
            text = self._held + data
            self.items += text.count(b"event: job.stream_item\n")
            self.ended = self.ended or b"event: job.end\n" in text or not data
            # Enough to see a mark that two reads have cut, and too little to count one twice.
            self._held = text[-len("event: job.stream_item") :] if data else b""


def test_a_hundred_readers_get_all_of_it_and_a_slow_one_holds_up_nobody(server: Server) -> None:
    process = psutil.Process(server.pid)
    list(paced.spawn(50, 0.0).wait_gen())
    before = process.memory_info().rss
    job = paced.spawn(ITEMS, 0.005, "x" * 500)
    readers = [Raw(server, job) for _ in range(READERS)]
    slow, quick = readers[0], readers[1:]
    most = before
    byte_at = until = time.monotonic()
    until += LIMIT_S
    with selectors.DefaultSelector() as selector:
        for reader in quick:
            selector.register(reader.socket, selectors.EVENT_READ, reader)
        while selector.get_map() and time.monotonic() < until:
            for key, _ in selector.select(0.2):
                key.data.read()
                if key.data.ended:
                    selector.unregister(key.data.socket)
            if time.monotonic() - byte_at >= 1.0:
                slow.read(1)
                byte_at = time.monotonic()
            most = max(most, process.memory_info().rss)
    assert [reader.items for reader in quick] == [ITEMS] * len(quick)
    assert job.wait() is None
    assert (most - before) / READERS < MIB
    assert slow.items < ITEMS
    for reader in readers:
        reader.socket.close()


@pytest.mark.parametrize("lines", [100_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
@pytest.mark.timeout(600)
def test_who_waits_for_the_result_of_a_flood_of_output_is_told_of_no_gap(server: Server, lines: int) -> None:
    job = talk.spawn(lines)
    told = [event.event for event in job.stream_events(event_types=["job.result"])]
    assert told == ["job.result", "job.end"]
    everything = [event for event in job.stream_events() if isinstance(event, JobResetEvent)]
    assert [reset.lost for reset in everything] == [{"job.log": lines - 10_000}]
