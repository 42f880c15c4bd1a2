"""The container's end of its socket.

All that is sent goes through one queue, so what a generator yields and what it prints keep their order. Items may wait
in it for a millisecond, so that a fast generator costs one frame for many of them; whatever else is sent takes them
along.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator

from apothic.agent.frames import Cancel, Command, Items, News, Taken, commands, encode
from apothic.agent.window import Window
from apothic.clock import Clock, SystemClock

GATHER_S = 0.001  # items that come faster than this share a frame
TOGETHER = 64  # items in a frame, at most
_TOGETHER_BYTES = 64 * 1024
_CHUNK = 64 * 1024  # twice as much would be mapped anew for each read, which costs more than the read
_ATTEND_S = 0.1
_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)  # an int: each sum of two flags of an enum takes a microsecond


class Channel:
    """Frames to and from the agent. Any thread may send; the main thread alone receives."""

    def __init__(self, sock: socket.socket, window: Window, clock: Clock | None = None) -> None:
        self._sock = sock
        self._window = window
        self.clock = clock or SystemClock()
        self._splitter = commands()
        self._inbox: deque[Command] = deque()
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._outgoing: deque[bytearray | Items] = deque()
        self._lock = threading.RLock()
        self._sending = False
        self._sent_at = 0.0
        self._gathered = 0
        self._bell = threading.Event()  # items wait
        self._flusher: threading.Thread | None = None
        self.on_taken: Callable[[Taken], None] = lambda frame: None
        self.at_end = False
        window.look = self.look

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        """Forget the socket; for a forked child, which has no business with it."""
        self._sock.close()

    # --- out

    def send(self, frame: News) -> None:
        """Send one frame, whole, after all that was sent before it. Raises `OSError` when the agent is gone."""
        with self._window.masked():
            self._outgoing.append(encode(frame))
            self.flush()

    def gather(self, frame: Items, size: int) -> bool:
        """Send one item of that many bytes with those that come right behind it, within about 2 ms in any case.

        Return whether it went at once.
        """
        self._outgoing.append(frame)
        self._gathered += size  # two threads may make a little less of it, which is as good
        if (
            len(self._outgoing) >= TOGETHER
            or self._gathered >= _TOGETHER_BYTES
            or frame.path is not None
            or self.clock.monotonic() - self._sent_at >= GATHER_S
        ):
            self.flush()
            return True
        if not self._bell.is_set():
            self._bell.set()
            with self._lock:
                if self._flusher is None:
                    self._flusher = threading.Thread(target=self._keep_flushing, name="apothic-items", daemon=True)
                    self._flusher.start()
        return False

    def flush(self) -> None:
        """Send everything that waits."""
        with self._window.masked():
            while self._outgoing:
                with self._lock:
                    if self._sending:
                        return  # a signal handler printed while this thread was sending; that takes it along
                    self._sending = True
                    try:
                        self._gathered = 0
                        while self._outgoing:
                            self._write(self._next())
                        self._sent_at = self.clock.monotonic()
                    finally:
                        self._sending = False

    def _next(self) -> bytearray:
        """Take what is to be sent next, items of one job together."""
        first = self._outgoing.popleft()
        if not isinstance(first, Items):
            return first
        while first.path is None and len(first.values) < TOGETHER and self._outgoing:
            following = self._outgoing[0]
            if not isinstance(following, Items) or following.job != first.job or following.path is not None:
                break
            first.values.extend(following.values)
            self._outgoing.popleft()
        return encode(first)

    def _keep_flushing(self) -> None:
        """Send what a generator has yielded and then left: what runs between two `yield`s may block for minutes."""
        pause = threading.Event()
        with contextlib.suppress(OSError):  # the agent is gone, and this process about to be
            while True:
                self._bell.wait()
                self._bell.clear()
                pause.wait(GATHER_S)
                self.flush()

    def _write(self, data: bytearray) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self._sock.send(left, _SEND) :]
            except BlockingIOError:
                self._await(select.POLLOUT)

    def _await(self, event: int, seconds: float | None = None) -> None:
        # Not select(2): a descriptor has the number here that it had in the agent, which may be past what that takes.
        poll = select.poll()
        poll.register(self._sock, event)
        poll.poll(None if seconds is None else seconds * 1000)

    # --- in

    def look(self) -> None:
        """Take in what has come, without waiting. Cancellations and credit are noted, the rest waits in the inbox."""
        while True:
            try:
                data = self._sock.recv(_CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            self._take(data)
            if not data:
                return

    def attend(self) -> None:
        """Wait until something may have come, and take it in; a cancellation may strike meanwhile.

        Raises `BrokenPipeError` when nothing will come any more.
        """
        if self.at_end:
            raise BrokenPipeError("the agent is gone")
        # Not for ever: the handler of a late signal, of a job before, takes in what this would see.
        self._await(select.POLLIN, _ATTEND_S)
        with self._window.masked():  # or a signal would come between the bytes and the splitter
            self.look()

    def receive(self) -> Command | None:
        """Wait for the next command; `None` when there will be none."""
        while not self._inbox:
            if self.at_end:
                return None
            # Who blocks in a read of a Unix socket is woken by its peer's reads, too: for nothing, once for each job.
            self._readable.poll()
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
            if isinstance(frame, Taken):
                self.on_taken(frame)
                continue
            if isinstance(frame, Cancel):
                self._window.cancelled.add((frame.job, frame.attempt))
            self._inbox.append(frame)
