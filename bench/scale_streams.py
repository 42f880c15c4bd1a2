"""Very many open event streams: what each costs, and how long news takes to one of them.

`python -m bench.scale_streams ADDRESS KEY STREAMS JOB…` opens them, prints a line when all are open, and then one for
each end of a stream: when it came, by the clock that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from pathlib import Path

from bench.scale_figures import Found
from bench.scale_http import Asker, held_up
from bench.scale_store import known, running

JOBS, RINGS = 100, 5


def measure(found: Found, data_dir: Path, streams: int) -> None:
    """Note the memory of the control plane before and with so many streams, its idle CPU, and the time of a ring."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the server inherits it
    functions, _ = known(data_dir)
    with running(data_dir, streams_max=streams + RINGS):
        asker = Asker(data_dir)
        with held_up(asker, functions):
            line = f"POST /v1/functions/{functions['made']}/jobs"
            jobs = [asker.ask(line, {"args": [0]})["job"]["id"] for _ in range(JOBS + 2 * RINGS)]
            shared, alone, few = jobs[:JOBS], jobs[JOBS : JOBS + RINGS], jobs[JOBS + RINGS :]
            found.keep("ring, ms, 20 streams open", _ring(asker, few, RINGS))
            before, began = asker.pss_mib(), time.perf_counter()
            with _reader(asker, streams, [*alone, *shared]) as reader:
                _line(reader)
                found.keep(f"{streams:,} streams opened, s", time.perf_counter() - began)
                found.keep("PSS before, MiB", before)
                found.keep("PSS with them, MiB", asker.pss_mib())
                found.keep("KiB a stream", 1024 * (asker.pss_mib() - before) / streams)
                found.keep("CPU of the idle server, %", 100 * asker.busy(lambda: time.sleep(15)) / 15)
                found.keep(f"ring, ms, {streams:,} streams open", _rung(asker, reader, alone))
                reader.kill()
            for job in shared:
                asker.ask(f"POST /v1/jobs/{job}/cancel", {})


def _reader(asker: Asker, streams: int, jobs: list[str]) -> subprocess.Popen[str]:
    key = asker.headers["Authorization"].split()[1]
    words = [sys.executable, "-m", "bench.scale_streams", asker.address, key, str(streams), *jobs]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def _line(reader: subprocess.Popen[str]) -> str:
    assert reader.stdout is not None
    line = reader.stdout.readline()
    assert line, "the reader has failed"
    return line


def _ring(asker: Asker, jobs: list[str], streams: int) -> float:
    with _reader(asker, streams, jobs) as reader:
        _line(reader)
        took = _rung(asker, reader, jobs)
        reader.kill()
    return took


def _rung(asker: Asker, reader: subprocess.Popen[str], jobs: list[str]) -> float:
    """Cancel jobs one by one, each with one stream; return the median of the milliseconds until its end is read."""
    taken = []
    for job in jobs:
        began = time.perf_counter()
        asker.ask(f"POST /v1/jobs/{job}/cancel", {})
        taken.append(1e3 * (float(_line(reader)) - began))
    return sorted(taken)[len(taken) // 2]


async def read(address: str, key: str, streams: int, jobs: list[str]) -> None:
    """Open the streams: one to each of the first jobs, the rest to all that are left."""
    host, port = address.split(":")
    opened = asyncio.Semaphore(100)

    async def follow(job: str, is_open: asyncio.Event) -> None:
        async with opened:
            reader, writer = await asyncio.open_connection(host, int(port), limit=4096)
            head = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n"
            writer.write(f"{head}Authorization: Bearer {key}\r\n\r\n".encode())
            await reader.readuntil(b"event: job.status")
            is_open.set()
        async for line in reader:
            if line.startswith(b"event: job.end"):
                print(time.perf_counter(), flush=True)

    first, rest = jobs[:RINGS], jobs[RINGS:] or jobs
    places = [*first, *(rest[n % len(rest)] for n in range(streams - len(first)))]
    events = [asyncio.Event() for _ in places]
    following = [asyncio.create_task(follow(*pair)) for pair in zip(places, events, strict=True)]
    await asyncio.gather(*(event.wait() for event in events))
    print("open", flush=True)
    await asyncio.gather(*following)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(read(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
