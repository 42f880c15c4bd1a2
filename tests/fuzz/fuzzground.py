"""What every fuzz test needs: a server with something in it, a seed, and how to tell that it has taken no harm.

SEED repeats a run; CASES is how many cases its long form sends.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import psutil
from aftermath import broken, loaded
from rig import Server, serving

from apothic import ControlPlaneClient
from apothic.protocol import messages as m
from apothic.protocol import routes

MIB = 1024 * 1024
# Decoding buffers and pages that the allocator keeps, for a server that begins with some 70 MiB. A leak of a kilobyte
# in each of 100,000 cases would be over it.
GROWTH = 96 * MIB
HEALTHY_S = 5.0

APP = """
import apothic

app = apothic.App({name!r})


@app.function(cpu=0.01, memory_mb=64)
def double(x=1):
    print("doubling", x)
    return 2 * x


@app.function(cpu=0.01, memory_mb=64)
def count(n=3):
    for number in range(n):
        print(number)
        yield number
    return n
"""


def seed() -> int:
    """Return the seed of this run, and say which it is."""
    given = int(os.environ.get("SEED", "1"))
    print(f"SEED={given}")
    return given


def cases(whole: int) -> int:
    """Return how many cases the long form sends."""
    return int(os.environ.get("CASES", str(whole)))


@dataclass
class Target:
    """A server, an admin's key made for the run, and real ids."""

    server: Server
    client: ControlPlaneClient
    key: str
    module: ModuleType
    ids: dict[str, str]
    born_with: int = 0  # bytes that it holds

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.server.base_url.removeprefix("http://").partition(":")
        return host, int(port)

    @property
    def agent_key(self) -> str:
        return (self.server.data_dir / "agent.key").read_text().strip()

    def resident(self) -> int:
        return int(psutil.Process(self.server.pid).memory_info().rss)

    def check(self) -> None:
        """Check that the server answers, has logged no bug, has not grown, and keeps the rules of its store."""
        with urllib.request.urlopen(f"{self.server.base_url}/healthz", timeout=HEALTHY_S) as answer:
            assert answer.status == 200
        before, bug, behind = self.server.log().partition("Traceback")
        assert bug == "", before[-1000:] + bug + behind[:4000]
        assert "http.bug" not in before, before
        self.born_with = self.born_with or self.resident()
        assert self.resident() < self.born_with + GROWTH, f"{self.resident():,} after {self.born_with:,} bytes"

    def check_whole(self) -> None:
        """Check all that, and that jobs are run as ever and nothing in the store is broken."""
        self.check()
        assert self.module.double.remote(21) == 42
        assert broken(self.server.data_dir) == {}


@contextlib.contextmanager
def targeting(folder: Path) -> Iterator[Target]:
    """Run a server with a deployed app, an ended job, and a key that may be revoked."""
    settings = {"lease_s": 2, "grace_s": 1, "max_wait_s": 0.2}
    with serving(folder / "data", **settings) as server:
        client = server.client()
        name = f"fuzzed_{random.randrange(1 << 40):x}"
        with loaded(folder, name, APP.format(name="fuzzed"), client) as module:
            module.app.deploy()
            assert list(module.count.remote_gen(3)) == [0, 1, 2]
            job = module.double.spawn(2)
            job.wait()
            ask = client.ask_blocking
            made = ask(routes.CREATE_KEY, m.CreateKey(name="of a run", scopes=["admin"]))
            doomed = ask(routes.CREATE_KEY, m.CreateKey(name="to be revoked", scopes=["invoke"]))
            functions = ask(routes.FIND_FUNCTIONS, m.FindFunctions(app="fuzzed", name="double")).functions
            ids = {
                "job": job.job_id, "app": "fuzzed", "function": functions[0].id,
                "deployment": functions[0].deployment_id, "key": doomed.key.id,
            }  # fmt: skip
            target = Target(server, client, made.secret, module, ids)
            target.check()
            yield target


class Progress:
    """Prints how far a long form is, now and then."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.done = 0
        self._begun = self._told = time.monotonic()

    def add(self, count: int = 1) -> None:
        self.done += count
        if time.monotonic() - self._told > 15:
            self.tell()

    def tell(self) -> None:
        self._told = time.monotonic()
        took = self._told - self._begun
        rate = self.done / max(took, 0.001)
        print(f"{self.what}: {self.done:,} cases in {took:.0f} s, {rate:.0f} a second", flush=True)
