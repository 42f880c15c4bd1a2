"""A hundred readers of one paced generator, one of which reads a byte a second: what they cost the generator."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import apothic
from bench.ours_streams import ran
from bench.sources import paced

READERS = 100
ITEMS, PAUSE_S = 600, 0.005


def alone() -> float:
    """Return the seconds that the generator runs while nobody reads."""
    job = paced.spawn(ITEMS, PAUSE_S)
    job.wait()
    return ran(job)


def crowded(base_url: str, data_dir: Path) -> float:
    """Return the seconds that it runs with a hundred readers, all of whom but the slow one get all of it."""
    job = paced.spawn(ITEMS, PAUSE_S)
    readers = [_connected(base_url, (data_dir / "admin.key").read_text().strip(), job) for _ in range(READERS)]
    slow, quick = readers[0], readers[1:]
    read_at = time.monotonic()
    tails = dict.fromkeys(quick, b"")
    with selectors.DefaultSelector() as selector:
        for reader in quick:
            selector.register(reader, selectors.EVENT_READ)
        while tails:
            for key, _ in selector.select(0.2):
                data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                text = tails[key.fileobj] + data  # type: ignore[index]
                if b"event: job.end\n" in text or not data:
                    selector.unregister(key.fileobj)
                    del tails[key.fileobj]  # type: ignore[arg-type]
                else:
                    tails[key.fileobj] = text[-20:]  # type: ignore[index]
            if time.monotonic() - read_at >= 1.0:
                read_at = time.monotonic()
                with contextlib.suppress(BlockingIOError):
                    slow.recv(1)
    for reader in readers:
        reader.close()
    return ran(job)


def _connected(base_url: str, key: str, job: apothic.Job) -> socket.socket:
    parts = urlsplit(base_url)
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect((parts.hostname, parts.port))
    head = f"GET /v1/jobs/{job.job_id}/events HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: text/event-stream\r\n"
    reader.sendall(f"{head}Authorization: Bearer {key}\r\n\r\n".encode())
    reader.setblocking(False)
    return reader
