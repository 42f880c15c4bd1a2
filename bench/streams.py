"""Streams, beside a bare endpoint of server-sent events, a synced log of lines, and Ray's streaming generator."""

from __future__ import annotations

import http.client
import json
import statistics
from pathlib import Path

from bench import floors, hundred, ours_streams, peers, readers, sse
from bench.sources import count, say
from bench.table import Found, Line, show, spread

ITEMS = 50_000
READERS = 10
TIMES = 50


def measure(found: Found, beside: list[str], data_dir: Path) -> None:
    """Run every workload, its floor and its peer, once."""
    _ours(found, data_dir)
    with floors.bare_server("bench.sse:stream") as address:
        _floor(found, address)
    for script in peers.scripts("streams", beside):
        for figure, value in script.measured("--items", str(ITEMS), "--times", str(TIMES)).items():
            found.note(f"{script.name} {figure}", value)


def _ours(found: Found, data_dir: Path) -> None:
    ours_streams.read(1000)
    found.note("first", 1000 * statistics.median(ours_streams.read(10)[0] for _ in range(TIMES)))
    found.note("one reader", ITEMS / ours_streams.read(ITEMS)[1])
    seconds, job = ours_streams.read_by_many(READERS, ITEMS)
    found.note("ten readers", READERS * ITEMS / seconds)
    found.note("made for ten", ITEMS / ours_streams.ran(job))
    found.note("resume", 1000 * statistics.median(ours_streams.resume(job, ITEMS, TIMES)))
    found.note("items unread", ITEMS / ours_streams.unread(count, ITEMS))
    found.note("lines unread", ITEMS / ours_streams.unread(say, ITEMS))
    found.note("paced alone", hundred.alone())
    base_url = str(json.loads((data_dir / "server.json").read_text())["base_url"])
    found.note("paced crowded", hundred.crowded(base_url, data_dir))


def _floor(found: Found, address: tuple[str, int]) -> None:
    connection = http.client.HTTPConnection(*address)
    sse.read(connection, 1000, 1)
    found.note("bare first", 1000 * statistics.median(sse.read(connection, 10, 1)[0] for _ in range(TIMES)))
    for batch in (1, readers.BATCH):
        found.note(f"bare by {batch}", ITEMS / sse.read(connection, ITEMS, batch)[1])
    seconds = readers.crowd(READERS, "bare", ITEMS, lambda _: str(address[1]))
    found.note("bare ten readers", READERS * ITEMS / seconds)
    found.note("synced lines", ITEMS / floors.synced_lines(ITEMS))


def report(found: Found, wanted: list[str]) -> None:
    """Print the table, and who is missing from it."""
    one, batched = "bare SSE, an event a write", f"bare SSE, {readers.BATCH} events a write"
    ray = "Ray, streaming generator of an actor"
    lines = [
        Line("items to one reader", "items/s", "one reader", one, "bare by 1"),
        Line("items to one reader", "items/s", "one reader", batched, f"bare by {readers.BATCH}"),
        Line("items to one reader", "items/s", "one reader", ray, "ray items_s", "≥ 15 ×"),
        Line("items to ten readers, in all", "items/s", "ten readers", batched, "bare ten readers"),
        Line("time to the first item", "ms", "first", "bare SSE", "bare first"),
        Line("time to the first item", "ms", "first", ray, "ray first_ms", "≤ 0.3 ×"),
        Line("items appended, nobody reading", "items/s", "items unread", f"{ray}, the same", "ray unread_s"),
        Line(
            "items appended, nobody reading",
            "items/s",
            "items unread",
            "synced lines of a pipe",
            "synced lines",
            durable="yes",
        ),
        Line(
            "lines appended, nobody reading",
            "events/s",
            "lines unread",
            "synced lines of a pipe",
            "synced lines",
            durable="yes",
        ),
        Line(
            "a paced generator with 100 readers, one of a byte a second", "s", "paced crowded", "alone", "paced alone"
        ),
        Line("resumed, time to the first event", "ms", "resume", "bare SSE", "bare first"),
    ]
    show(f"Streams of {ITEMS:,} small items", lines, found)
    print(f"\nWith ten readers, the generator ran at {spread(found['made for ten'], 'items/s')}.")
    for script in peers.scripts("streams", wanted):
        if f"{script.name} items_s" not in found:
            print(f"\n{script.name.upper()} WAS LEFT OUT: see above.")
