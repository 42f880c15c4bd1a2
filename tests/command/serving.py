"""`apothic serve --json` in a process of its own, and what it tells."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

from commandbench import APOTHIC, Server, environment

WITHIN_S = 60.0


class Serving:
    """One run of it, until it is interrupted."""

    def __init__(self, home: Path, server: Server, target: str, *words: str) -> None:
        self.process = subprocess.Popen(
            [*APOTHIC, "serve", target, "--json", *words],
            env=environment(home, APOTHIC_DATA_DIR=str(server.data_dir)), cwd=home, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._events: dict[str, queue.Queue[dict[str, Any]]] = defaultdict(queue.Queue)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told = json.loads(line)
            self._events[told.get("event", "error")].put(told)

    def event(self, kind: str) -> dict[str, Any]:
        """Return the next event of that kind."""
        return self._events[kind].get(timeout=WITHIN_S)

    def end(self) -> tuple[int, str]:
        """Interrupt it as Ctrl-C does; return its exit status, and what it wrote to stderr."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        assert self.process.stdout is not None and self.process.stderr is not None
        said = self.process.stderr.read()
        status = self.process.wait(WITHIN_S)
        self._reader.join(WITHIN_S)
        self.process.stdout.close()
        self.process.stderr.close()
        return status, said
