"""`sys.stdout` and `sys.stderr` inside a container: what Python prints goes to the agent with the job that printed it.

The text layer is the standard library's own, in write-through mode, so that each write reaches `_Tagged` at once and
in the context of the code that made it; two jobs in one process never share a half-written line.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import sys
import termios
import threading
from collections.abc import Callable
from typing import Any

from apothic.agent.channel import Channel
from apothic.agent.frames import Output, Stream
from apothic.agent.window import Window
from apothic.context import CURRENT, current_batch

_PIECE = 128 * 1024
_NOTHING = bytes(4)  # an int that is 0, for a system call
_STREAMS: tuple[tuple[Stream, int], ...] = (("stdout", 1), ("stderr", 2))
_HELD = 16 * 1024  # an unfinished line longer than this is sent as it is


class _Tagged(io.BufferedIOBase):
    """The bytes layer of one stream. Holds back unfinished lines, for each job its own, until they are flushed."""

    def __init__(self, name: Stream, fd: int, capture: Capture) -> None:
        self._stream: Stream = name
        self.name = f"<{name}>"
        self.mode = "wb"
        self._fd = fd
        self._capture = capture

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return False

    def write(self, data: Any, /) -> int:
        text = bytes(data)
        self._capture.write(self._stream, text)
        return len(text)

    def flush(self) -> None:
        if not self.closed:
            self._capture.flush(self._stream)


class Capture:
    """Replaces both streams. `running` names the jobs that run here now."""

    def __init__(self, channel: Channel, window: Window, running: Callable[[], list[str]]) -> None:
        self._channel = channel
        self._window = window
        self._running = running
        self._lock = threading.RLock()
        self._held: dict[tuple[tuple[str, ...], Stream], bytearray] = {}
        self._forked = False
        self._streams: dict[Stream, io.TextIOWrapper] = {}
        os.register_at_fork(after_in_child=self._fork)

    def install(self) -> None:
        """Put our streams in place, and again where user code has closed one."""
        for name, fd in _STREAMS:
            now = getattr(sys, name, None)
            if now is None or getattr(now, "closed", False):
                raw = _Tagged(name, fd, self)
                self._streams[name] = io.TextIOWrapper(
                    raw, encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=True
                )
                setattr(sys, name, self._streams[name])

    def replace(self) -> None:
        """Take the interpreter's own streams away and put ours in place."""
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout = sys.stderr = None
        self.install()

    def _jobs(self) -> tuple[str, ...]:
        """Return whose output it is: of a batch, that of each."""
        running = self._running()
        current = CURRENT.get()
        if current is None:
            return tuple(running) if len(running) == 1 else ()  # a thread that the job started
        if current.id not in running:
            return ()
        return tuple(job.id for job in current_batch()) or (current.id,)

    def write(self, stream: Stream, data: bytes) -> None:
        """Take bytes that code of the current context printed; whole lines go out at once."""
        if self._forked:
            _write_all(1 if stream == "stdout" else 2, data)
            return
        key = (self._jobs(), stream)
        with self._window.masked(), self._lock:
            held = self._held.pop(key, None)  # taken out first: a signal handler may print before we are done
            if held:
                data = bytes(held + data)
            end = len(data) if len(data) > _HELD else data.rfind(b"\n") + 1
            if end < len(data):
                self._held.setdefault(key, bytearray()).extend(data[end:])
            if end:
                self._send(key, data[:end])

    def flush(self, stream: Stream) -> None:
        """Send the current context's unfinished line."""
        if not self._forked:
            self._flush((self._jobs(), stream))

    def finish(self, job: str) -> None:
        """Send what is left of a job's output, before its end is told."""
        for name, _ in _STREAMS:
            own = self._streams.get(name)
            now = getattr(sys, name, None)
            if now is not own and now is not None:
                with contextlib.suppress(Exception):  # a stream of the user's own, in front of ours
                    now.flush()
            for jobs, stream in list(self._held):
                if job in jobs and stream == name:
                    self._flush((jobs, stream))

    def is_piped(self) -> bool:
        """Tell whether something lies in the pipes behind 1 and 2, of ours or of a program that was started here."""
        try:
            return any(fcntl.ioctl(fd, termios.FIONREAD, _NOTHING) != _NOTHING for _, fd in _STREAMS)
        except OSError:
            return True  # user code has closed them, or put something in their place: the agent looks for itself

    def finish_all(self) -> None:
        """Send every unfinished line."""
        for key in list(self._held):
            self._flush(key)

    def _flush(self, key: tuple[tuple[str, ...], Stream]) -> None:
        if key not in self._held:
            return
        with self._window.masked(), self._lock:
            held = self._held.pop(key, None)
            if held:
                self._send(key, bytes(held))

    def _send(self, key: tuple[tuple[str, ...], Stream], data: bytes) -> None:
        jobs, stream = key
        for job in jobs or (None,):
            for start in range(0, len(data), _PIECE):
                self._channel.send(Output(job=job, stream=stream, data=data[start : start + _PIECE]))

    def _fork(self) -> None:
        # The parent sends what was held; the child has the file descriptors, and no right to the socket.
        self._forked = True
        self._held.clear()
        self._channel.close()


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
