"""A web server of the user's own: any process, or this one, that listens on the port it is given.

The function runs in the main thread, where a server may want its signals; it may return once it has started a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apothic.agent import ports
from apothic.agent.channel import Channel
from apothic.agent.entry import service_of
from apothic.agent.frames import Moved, Setup, Stop
from apothic.agent.start import Start
from apothic.agent.tree import below
from apothic.clock import SystemClock
from apothic.context import serve_as
from apothic.errors import ConfigError
from apothic.protocol.services import ServiceSpec

_LOOK_S = 0.02  # until it answers
_WATCH_S = 0.5  # from then on
_MISSES = 2  # a server that forks anew may not listen for a moment


def serve(setup: Setup, entry: Callable[..., Any], channel: Channel, start: Start, clock: SystemClock) -> int:
    """Run the server until the agent says stop, or nothing listens any more; return the exit status."""
    if ports.listens(setup.port):
        error = ConfigError(
            f"port {setup.port} is taken by {ports.port_holder(setup.port)}",
            hint="end that, or let the service have a free port: port 0, and take the parameter `port`",
        )
        start.failed(error, again=True)
        return 1
    return _WebServer(setup, entry, channel, start, clock).run()


class _WebServer:
    def __init__(
        self, setup: Setup, entry: Callable[..., Any], channel: Channel, start: Start, clock: SystemClock
    ) -> None:
        self._setup = setup
        self._port = setup.port
        self._service = setup.function.service or ServiceSpec()
        self._entry = entry
        self._channel = channel
        self._start = start
        self._clock = clock
        self._stopping = False
        self._over = threading.Event()

    def run(self) -> int:
        os.environ["PORT"] = str(self._port)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        for work in (self._watch, self._obey):
            threading.Thread(target=work, daemon=True).start()
        try:
            self._enter()
            self._over.wait()
        except BaseException as error:
            if not self._stopping:
                if self._start.over:
                    traceback.print_exception(error, file=sys.stderr)
                self._start.failed(error)
                return 1
        return 0 if self._stopping else 1

    def _enter(self) -> None:
        takes = inspect.signature(self._entry).parameters
        made = self._entry(port=self._port) if "port" in takes else self._entry()
        if inspect.iscoroutine(made):
            asyncio.run(made)

    def _watch(self) -> None:
        """Tell when the server answers, and notice when it does so no more."""
        until = self._clock.monotonic() + self._service.startup_timeout_s
        while not ports.answers(self._port):
            if self._clock.monotonic() > until:
                self._start.failed(self._silent())
                os._exit(1)  # the main thread is the user's, and may be blocked for ever
            self._clock.pause(_LOOK_S)
        self._start.ready()
        misses = 0
        while misses < _MISSES and not self._stopping:
            self._clock.pause(_WATCH_S)
            misses = 0 if ports.listens(self._port) else misses + 1
        if not self._stopping:
            sys.stderr.write(f"nothing listens on port {self._port} any more: the server has ended\n")
            sys.stderr.flush()
            os._exit(1)
        while _living():  # what they still answer is theirs to end, within the grace
            self._clock.pause(_LOOK_S)
        self._over.set()

    def _silent(self) -> ConfigError:
        port, waited = self._port, self._service.startup_timeout_s
        return ConfigError(
            f"nothing listens on port {port} after {waited:g} s",
            hint=f"the function has to start a server on 127.0.0.1:{port}, which it is given as parameter `port` and as"
            " the variable PORT; raise startup_timeout if it needs longer",
        )

    # --- its end

    def _obey(self) -> None:
        while True:
            command = self._channel.receive()
            if command is None:
                os._exit(1)  # the agent is gone
            if isinstance(command, Moved):
                serve_as(service_of(self._setup, command.base_url))
            if isinstance(command, Stop):
                break
        self._stopping = True
        for pid in _living():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    def _on_sigterm(self, _number: int, _frame: Any) -> None:
        """End, unless a server that runs as another process is about to: that one is given the time it is given."""
        self._stopping = True
        if not _living():
            raise SystemExit(0)


def _living() -> list[int]:
    """Return the processes below this one that have not ended."""
    return [pid for pid in below(os.getpid()) if _state(pid) not in ("", "Z")]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
