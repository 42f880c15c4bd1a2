"""The window in which a cancellation may strike.

A signal can arrive between any two steps of the main thread, also in the middle of a frame. So our own bookkeeping is
masked, as in a kernel: what comes meanwhile is remembered and acted on when the mask is lifted, and only if the job
that it is about still runs its user's code (replicate/cog#791 shows a late signal hitting the next input).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FrameType, TracebackType

Attempt = tuple[str, int]  # a job and the number of the try


class JobCancelled(BaseException):
    """Raised in a job's code when the job is cancelled or over its time. Catch it only to clean up."""


class Window:
    """Whether user code runs in the main thread, and for which job."""

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._depth = 0
        self._signalled = False
        self._open: tuple[Attempt, ...] = ()
        self.cancelled: set[Attempt] = set()  # what is to stop; the channel fills it
        self.struck: set[Attempt] = set()  # what was stopped: a cancellation strikes once
        self.look: Callable[[], None] = lambda: None  # reads what the channel has, without waiting

    def open(self, *attempts: Attempt) -> None:
        """Let a cancellation of all these attempts strike from now on; also one that came before."""
        self._open = attempts
        if self.cancelled or self._signalled:
            self._signalled = True
            with self.masked():
                pass

    def close(self) -> None:
        """Let nothing strike any more."""
        self._open = ()

    def forget(self, attempt: Attempt) -> None:
        """Forget the cancellation of an attempt that has ended."""
        self.cancelled.discard(attempt)
        self.struck.discard(attempt)

    def strike(self, attempt: Attempt) -> None:
        """Raise `JobCancelled` if that attempt is to stop and was not told so."""
        if attempt in self.cancelled:
            self._strike(attempt)

    def _strike(self, *attempts: Attempt) -> None:
        if not self.struck.issuperset(attempts):
            self.struck.update(attempts)
            raise JobCancelled

    def on_signal(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Take the agent's SIGUSR1: raise `JobCancelled` if that is what the channel says."""
        self._signalled = True
        if self._depth == 0:
            with self.masked():
                pass

    def masked(self) -> Window:
        """Keep a cancellation out of the `with` block, and let it strike after it."""
        return self

    # No generator of contextlib's: each item of a generator passes here twice, and they take three times as long.

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:
            self._depth += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if threading.get_ident() == self._main:
            self._depth -= 1
            if self._signalled and kind is None:
                self.settle()

    def settle(self) -> None:
        """Act on a signal that came while the mask was up. For the main thread, with the mask down."""
        while self._signalled and self._depth == 0 and self._open:
            self._depth += 1
            try:
                self._signalled = False
                self.look()
            finally:
                self._depth -= 1
            # Of a batch nothing can be cut out: its code is interrupted once nobody wants what it runs for.
            if self.cancelled.issuperset(self._open):
                self._strike(*self._open)
