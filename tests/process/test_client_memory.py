"""`map_iter` over a long generator: the client's memory is bounded by the window, not by the input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rig import Server, environment

APP = """
import apothic

app = apothic.App("doubles")


@app.function(max_containers=2, tasks_per_container=50)
def double(number: int) -> int:
    return number * 2
"""

# In a process of its own: its memory is that of a client and nothing else.
CALLER = """
import json, resource, sys, threading, time
import psutil
import doubles

count = int(sys.argv[1])
assert sum(doubles.double.map_iter(range(2_000))) == 1_999_000 * 2
process = psutil.Process()
before = most = process.memory_info().rss
begun = time.monotonic()
total = read = 0

def numbers():
    global read
    for number in range(count):
        read = number + 1
        yield number

ahead = 0
for place, result in enumerate(doubles.double.map_iter(numbers())):
    assert result == place * 2
    ahead = max(ahead, read - place)
    total += result
    if place % 200 == 0:
        most = max(most, process.memory_info().rss)
assert total == count * (count - 1)
print(json.dumps({"growth": most - before, "seconds": time.monotonic() - begun, "ahead": ahead}))
"""


def grown(server: Server, folder: Path, count: int) -> tuple[int, int]:
    """Map over that many integers in a client of its own; return by how much it grew, and how far it read ahead."""
    (folder / "doubles.py").write_text(APP)
    key = (server.data_dir / "admin.key").read_text().strip()
    env = environment(server.data_dir, folder, APOTHIC_BASE_URL=server.base_url, APOTHIC_API_KEY=key)
    env["PYTHONPATH"] = f"{folder}{os.pathsep}{env['PYTHONPATH']}"
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CALLER, str(count)], env=env, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    rate = count / told["seconds"]
    grown_mib = told["growth"] / 2**20
    print(f"{count:,} items: +{grown_mib:.1f} MiB, {rate:,.0f} jobs/s, {time.monotonic() - begun:.0f} s in all")
    return told["growth"], told["ahead"]


def check(server: Server, folder: Path, count: int) -> None:
    growth, ahead = grown(server, folder, count)
    assert growth < 100 * 2**20
    assert ahead <= 2_000  # the window, and what is being packed


@pytest.mark.timeout(900)
def test_a_map_over_a_generator_holds_little(server: Server, tmp_path: Path) -> None:
    check(server, tmp_path, int(os.environ.get("MAP_ITEMS", "100000")))


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_map_over_a_very_long_generator_holds_little(server: Server, tmp_path: Path) -> None:
    check(server, tmp_path, int(os.environ.get("MAP_ITEMS", "1000000")))
