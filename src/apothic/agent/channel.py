"""The container's end of its socket, and the window in which a cancellation may strike.

A signal can arrive between any two steps of the main thread, also in the middle of a frame. So our own bookkeeping is
masked, as in a kernel: what comes meanwhile is remembered and acted on when the mask is lifted, and only if the job
that it is about still runs its user's code (replicate/cog#791 shows a late signal hitting the next input).
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType

from apothic.agent.frames import Cancel, Command, News, commands, encode

_CHUNK = 256 * 1024
Attempt = tuple[str, int]  # a job and the number of the try


class JobCancelled(BaseException):
    """Raised in a job's code when the job is cancelled or over its time. Catch it only to clean up."""


class Window:
    """Whether user code runs in the main thread, and for which job."""

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._depth = 0
        self._signalled = False
        self._open: Attempt | None = None
        self.cancelled: set[Attempt] = set()  # what is to stop; the channel fills it
        self.look: Callable[[], None] = lambda: None  # reads what the channel has, without waiting

    def open(self, attempt: Attempt) -> None:
        """Let a cancellation of `attempt` strike from now on; also one that came before."""
        self._open = attempt
        self._signalled = True
        with self.masked():
            pass

    def close(self) -> None:
        """Let nothing strike any more."""
        self._open = None

    def on_signal(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Take the agent's SIGUSR1: raise `JobCancelled` if that is what the channel says."""
        self._signalled = True
        if self._depth == 0:
            with self.masked():
                pass

    @contextlib.contextmanager
    def masked(self) -> Iterator[None]:
        """Keep a cancellation out of the body, and let it strike after it."""
        if threading.get_ident() != self._main:
            yield
            return
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        self.settle()

    def settle(self) -> None:
        """Act on a signal that came while the mask was up. For the main thread, with the mask down."""
        while self._signalled and self._depth == 0 and self._open is not None:
            self._depth += 1
            try:
                self._signalled = False
                self.look()
            finally:
                self._depth -= 1
            if self._open in self.cancelled:
                self._open = None  # it strikes once
                raise JobCancelled


class Channel:
    """Frames to and from the agent. Any thread may send; the main thread alone receives."""

    def __init__(self, sock: socket.socket, window: Window) -> None:
        self._sock = sock
        self._window = window
        self._splitter = commands()
        self._inbox: deque[Command] = deque()
        self._outgoing: deque[bytearray] = deque()
        self._lock = threading.RLock()
        self._sending = False
        self.at_end = False
        window.look = self.look

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        """Forget the socket; for a forked child, which has no business with it."""
        self._sock.close()

    def send(self, frame: News) -> None:
        """Send one frame, whole, after all that was sent before it. Raises `OSError` when the agent is gone."""
        with self._window.masked():
            self._outgoing.append(encode(frame))
            while self._outgoing:
                with self._lock:
                    if self._sending:
                        return  # a signal handler printed while this thread was sending; that takes it along
                    self._sending = True
                    try:
                        while self._outgoing:
                            self._write(self._outgoing.popleft())
                    finally:
                        self._sending = False

    def _write(self, data: bytearray) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self._sock.send(left, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                select.select([], [self._sock], [])

    def look(self) -> None:
        """Take in what has come, without waiting. Cancellations are noted, the rest waits in the inbox."""
        while True:
            try:
                data = self._sock.recv(_CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            self._take(data)
            if not data:
                return

    def receive(self) -> Command | None:
        """Wait for the next command; `None` when there will be none."""
        while not self._inbox:
            if self.at_end:
                return None
            self._take(self._sock.recv(_CHUNK))
        return self._inbox.popleft()

    def received(self) -> Iterator[Command]:
        """Yield what has come so far."""
        while self._inbox:
            yield self._inbox.popleft()

    def _take(self, data: bytes) -> None:
        if not data:
            self.at_end = True
        for frame in self._splitter.feed(data):
            if isinstance(frame, Cancel):
                self._window.cancelled.add((frame.job, frame.attempt))
            self._inbox.append(frame)
