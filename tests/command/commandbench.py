"""The real command, run as a process, and a server of its own to run it against."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apothic.cli import local

SOURCE = str(Path(__file__).resolve().parents[2] / "src")
APOTHIC = [sys.executable, "-m", "apothic"]

SHOP = """
import os
import sys
import time

import apothic

app = apothic.App("shop")


class Price:
    def __repr__(self):
        return "Price(7)"


@app.function()
def add(a: int, b: int = 2) -> int:
    print("adding", a, b)
    print("\\x1b[31mto stderr", file=sys.stderr)
    return a + b


@app.function()
def price():
    return Price()


@app.function()
def shout(text: str, *, times: int = 1, loud: bool = False) -> str:
    return (text.upper() if loud else text) * times


@app.function()
def fail(word: str):
    print("about to fail")
    raise ValueError(f"no {word} here")


@app.function()
def wait_for(path: str):
    print("waiting")
    while not os.path.exists(path):
        time.sleep(0.01)
    return "it came"


@app.local_entrypoint()
def main(a: int, twice: bool = False):
    total = app.functions["add"].remote(a)
    print("total", total * (2 if twice else 1))


@app.local_entrypoint(name="break-it")
def break_it():
    return {}["missing"]
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("APOTHIC_")}
    return kept | {"HOME": str(home), "PYTHONPATH": SOURCE, "COLUMNS": "120"} | more


class Ran:
    """One run of the command."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def ok(self) -> Ran:
        assert self.status == 0, self.out + self.err
        return self


Runs = Callable[..., Ran]


def runner(home: Path, **env: str) -> Runs:
    def run(*words: object, **more: str) -> Ran:
        command = [*APOTHIC, *(str(word) for word in words)]
        done = subprocess.run(
            command, env=environment(home, **env) | more, cwd=home, capture_output=True, text=True, timeout=90
        )
        assert "Traceback" not in done.stderr or "--traceback" in words or 'File "' in done.stderr
        return Ran(done)

    return run


class Server:
    """A server in the foreground, in a process of its own."""

    def __init__(self, home: Path, *words: str) -> None:
        self.data_dir = home / "data"
        command = [
            *APOTHIC,
            "server",
            "--json",
            "--port",
            "0",
            "--gateway-port",
            "0",
            "--data-dir",
            str(self.data_dir),
            *words,
        ]
        self.process = subprocess.Popen(command, env=environment(home), cwd=home, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.told = json.loads(self.process.stdout.readline())

    def close(self) -> int:
        assert self.process.stdout
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self.process.stdout.close()
        end_agent(self.data_dir)
        return status


def end_agent(data_dir: Path) -> None:
    pid = local.holder(data_dir / local.AGENT_LOCK)
    if pid:
        local.end(pid, 30)
