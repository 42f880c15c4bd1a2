"""A real server in a process of its own, with a data directory of its own, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from apothic import App, ControlPlaneClient

ROOT = Path(__file__).resolve().parent.parent
STOP_S = 30.0


def environment(data_dir: Path, home: Path, **more: str) -> dict[str, str]:
    """Return this process's environment, without settings of its own and with none of this machine's files."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("APOTHIC_")}
    paths = [str(ROOT / "src"), *filter(None, [inherited.get("PYTHONPATH")])]
    told = {
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "APOTHIC_DATA_DIR": str(data_dir),
        "APOTHIC_CONFIG_PATH": str(home / "no-such-config.toml"),
        "APOTHIC_AUTOSTART": "0",
    }
    return inherited | told | more


class Server:
    """A server that runs: where it is, and how to stop, kill and start it again."""

    def __init__(self, data_dir: Path, settings: Mapping[str, Any]) -> None:
        self.data_dir = data_dir
        self.home = data_dir.parent / f"{data_dir.name}-home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.settings = dict(settings)
        self.base_url = self.gateway_url = ""
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[ControlPlaneClient] = []

    def start(self, **more: str) -> None:
        """Start it, and wait until it accepts requests. `more` are environment variables."""
        words = [f"--{name.replace('_', '-')}={value}" for name, value in ({"port": 0} | self.settings).items()]
        command = [
            sys.executable, "-m", "apothic", "server", "--json", f"--data-dir={self.data_dir}",
            "--gateway-port=0", *words,
        ]  # fmt: skip
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with (self.data_dir / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd=self.home,
                env=environment(self.data_dir, self.home, **more),
            )  # fmt: skip
        assert self._process.stdout is not None
        told: dict[str, Any] = {}
        with self._process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    told = json.loads(line)
                    break
        assert "base_url" in told, f"the server did not start: {told}\n{self.log()}"
        self.base_url, self.gateway_url, self.pid = told["base_url"], told["gateway_url"], told["pid"]

    def client(self, *, timeout_s: float = 60.0) -> ControlPlaneClient:
        """Return a client of this server that has the admin key."""
        key = (self.data_dir / "admin.key").read_text().strip()
        client = ControlPlaneClient(self.base_url, api_key=key, timeout_s=timeout_s)
        self._clients.append(client)
        return client

    @contextlib.contextmanager
    def lending(self, *apps: App, deploy: bool = True, timeout_s: float = 60.0) -> Iterator[ControlPlaneClient]:
        """Lend a client to apps of the tests' modules for the length of a block, and deploy them."""
        client = self.client(timeout_s=timeout_s)
        for app in apps:
            app._client = client
            if deploy:
                app.deploy()
        try:
            yield client
        finally:
            for app in apps:
                app._client = None
                app.forget()

    def log(self) -> str:
        """Return what it wrote to stderr."""
        return (self.data_dir / "server.log").read_text(errors="replace")

    def kill(self) -> None:
        """End the control plane as a crash would. Its agent stays."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the control plane and everything below it, and wait until it is gone."""
        for client in self._clients:
            client.close()
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        end_leftovers(self.data_dir)


def leftovers(data_dir: Path) -> list[psutil.Process]:
    """Return the processes that name the data directory in their command line or environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            told = " ".join(process.cmdline()) + "\n" + process.environ().get("APOTHIC_DATA_DIR", "")
            if process.pid != os.getpid() and str(data_dir) in told:
                found.append(process)
    return found


def end_leftovers(data_dir: Path) -> None:
    """Kill what a killed server left behind: its agent, and what that runs."""
    until = time.monotonic() + STOP_S
    while (left := leftovers(data_dir)) and time.monotonic() < until:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=5)


@contextlib.contextmanager
def serving(data_dir: Path, **settings: Any) -> Iterator[Server]:
    """Run a server for the length of a block. Settings are those of `apothic server`."""
    server = Server(data_dir, settings)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def until(look: Callable[[], Any], within_s: float = 30.0, what: str = "it") -> Any:
    """Look until there is something to be seen, and return it. Fails after `within_s`."""
    over = time.monotonic() + within_s
    while not (seen := look()):
        assert time.monotonic() < over, f"{what} did not come within {within_s:g} s"
        time.sleep(0.01)
    return seen


def asleep(pid: int) -> None:
    """Wait until a process waits itself, with all that it was doing done: at each of a hundred looks in a row."""
    over = time.monotonic() + 30
    looks = 0
    while looks < 100:
        looks = looks + 1 if psutil.Process(pid).status() == psutil.STATUS_SLEEPING else 0
        assert time.monotonic() < over, "it never rests"
