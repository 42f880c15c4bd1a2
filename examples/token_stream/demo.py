"""A stream that survives: the reader is killed, then the server, and not one item is missing or comes twice.

A generator job counts tokens in the sources of the standard library and yields as it goes. A reader in a process of
its own follows it. Half-way, the reader gets `kill -9` and a new one goes on from the last checkpoint; then the server
gets `kill -9` and is started again, while the generator works on. At the end, the fingerprint of what was received is
compared with that of what was produced. Everything it starts ends with it, and its data directory goes with it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "data" / f"demo-stream-{os.getpid()}"
os.environ |= {"APOTHIC_DATA_DIR": str(DATA), "APOTHIC_AUTOSTART": "0"}  # the reader shall not start a server by itself
NOTES = DATA / "received.jsonl"
PATIENCE_S = 60.0

from rich.console import Console  # noqa: E402 — the data directory is named before anything reads it
from tokens import app, count_tokens, fingerprint  # noqa: E402

import apothic  # noqa: E402

screen = Console(highlight=False, soft_wrap=True)


def received() -> list[dict[str, Any]]:
    """Return what the readers have noted; a line that a kill has cut was not noted."""
    text = NOTES.read_text() if NOTES.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def read_from(place: str) -> subprocess.Popen[bytes]:
    """Start a reader at a job's id or a checkpoint."""
    return subprocess.Popen([sys.executable, str(HERE / "reader.py"), place, str(NOTES)])


def start_server() -> int:
    """Start a server in the background; return its process id."""
    subprocess.run([sys.executable, "-m", "apothic", "up", "--port", "0"], check=True, stdout=subprocess.DEVNULL)
    return int(json.loads((DATA / "server.json").read_text())["pid"])


def wait_until(what: str, ready: Callable[[], bool]) -> None:
    """Look until something is so. Raises `TimeoutError`."""
    until = time.monotonic() + PATIENCE_S
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} has not happened within {PATIENCE_S:g} s")
        time.sleep(0.02)


def grown(by: int) -> Callable[[], bool]:
    """Return a look at whether the readers have noted so many more items."""
    goal = len(received()) + by
    return lambda: len(received()) >= goal


def main() -> None:
    """Do all of it."""
    began = time.perf_counter()
    server = start_server()
    app.deploy()
    job = count_tokens.spawn()
    screen.print(f"server {server}, data directory {DATA}\njob {job.job_id} counts tokens and yields as it goes")

    reader = read_from(job.job_id)
    wait_until("the first items", grown(500))
    reader.kill()
    reader.wait()
    before = received()
    screen.print(
        f"[bold]kill -9[/] of reader {reader.pid} after {len(before):,} items: {before[-1]['item']['tokens']:,} tokens"
    )

    reader = read_from(before[-1]["checkpoint"])
    screen.print(f"reader {reader.pid} goes on from checkpoint {before[-1]['checkpoint']}")
    wait_until("more items", grown(500))
    os.kill(server, signal.SIGKILL)
    at_kill = len(received())
    screen.print(
        f"[bold]kill -9[/] of server {server} after {at_kill:,} items; the generator works on in its container"
    )
    server = start_server()
    screen.print(f"server {server} is up again; reader {reader.pid} has noticed nothing but a pause")
    if reader.wait(timeout=PATIENCE_S) != 0:
        sys.exit("the reader has failed")

    notes = received()
    told = apothic.Job.attach(job.job_id).wait()
    numbers = [note["item_index"] for note in notes]
    same = fingerprint([note["item"] for note in notes]) == told["fingerprint"]
    last = notes[-1]["item"]
    screen.print(
        f"{last['lines']:,} lines, {last['tokens']:,} tokens, {last['distinct']:,} distinct; most: {last['most']}"
    )
    screen.print(f"produced {told['items']:,} items, fingerprint {told['fingerprint'][:16]}…")
    screen.print(
        f"received {len(notes):,} items, in order {numbers == sorted(set(numbers))}, the same fingerprint: {same}"
    )
    if not same or numbers != list(range(told["items"])):
        sys.exit("items are missing, doubled, or out of order")
    view = subprocess.run(
        [sys.executable, "-m", "apothic", "job", "story", job.job_id], check=True, capture_output=True, text=True
    )
    screen.print(f"\n[bold]$ apothic job story {job.job_id}[/]\n{view.stdout.rstrip()}", markup=True)
    screen.print(f"\n[bold]none missing, none twice[/]; done in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    try:
        main()
    finally:
        subprocess.run([sys.executable, "-m", "apothic", "down"], check=False, stdout=subprocess.DEVNULL)
        shutil.rmtree(DATA, ignore_errors=True)
