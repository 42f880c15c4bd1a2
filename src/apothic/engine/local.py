"""The server's own agent: a process beside it, started, watched, and left alone when the server dies."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import psutil

from apothic.clock import Clock
from apothic.protocol.messages import AgentView

log = logging.getLogger("apothic.control")

# Between two starts of an agent that dies at once: enough to read its log, too little to notice after a crash.
PAUSE_S = 1.0


class Fleet(Protocol):
    """What this asks of the control plane's fleet."""

    async def agents(self) -> list[AgentView]: ...

    async def dead(self, host: str, pid: int) -> None: ...


class Control(Protocol):
    """What this asks of a control plane."""

    @property
    def fleet(self) -> Fleet: ...


class LocalAgent:
    """Keeps one agent alive for a data directory. It runs in a session of its own and outlives a killed server."""

    def __init__(self, data_dir: Path, clock: Clock) -> None:
        self._data_dir = data_dir
        self._clock = clock
        self._early: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start the first agent, which waits for a server: both import for 0.2 s, and there may be two cores."""
        with contextlib.suppress(OSError):  # the server will say what is wrong with the directory
            self._early = self._spawn()

    def abandon(self) -> None:
        """End the first agent if no server has come about."""
        if self._early is not None:
            self._early.terminate()
            self._early.wait()

    async def keep(self, control: Control) -> None:
        """Start an agent whenever none runs, until cancelled; bury at once those that are dead."""
        self._process, self._early = self._early, None
        while True:
            if self._process is not None or not self._held():
                await _bury_dead(control)
                self._process = self._process or self._spawn()
                log.info("agent.started pid=%d", self._process.pid)
            if self._process is not None:
                await asyncio.to_thread(self._process.wait)
                self._process = None
                await _bury_dead(control)  # its jobs move at once; the next agent may take a moment
            await self._clock.sleep(PAUSE_S)

    async def ended(self, control: Control, within_s: float) -> None:
        """Wait until no agent runs any more; kill it when it takes too long."""
        until = self._clock.monotonic() + within_s
        if self._process is not None:
            self._process.terminate()  # one that has not said hello yet has not been told to leave
        while self._held() or (self._process is not None and self._process.poll() is None):
            if self._clock.monotonic() >= until:
                if self._process is not None:
                    self._process.kill()
                for agent in await control.fleet.agents():
                    if agent.host == socket.gethostname() and _runs(agent.pid):
                        psutil.Process(agent.pid).kill()
                return
            await self._clock.sleep(0.05)

    def _held(self) -> bool:
        """Tell whether a live agent holds the data directory's lock, ours or one that an earlier server left."""
        with (self._data_dir / "agent.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self._data_dir / "agent.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "apothic", "agent", "--local", f"--data-dir={self._data_dir}"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name != "APOTHIC_PROBE"},
            )


async def _bury_dead(control: Control) -> None:
    for agent in await control.fleet.agents():
        if agent.host == socket.gethostname() and not _runs(agent.pid):
            await control.fleet.dead(agent.host, agent.pid)


def _runs(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False
