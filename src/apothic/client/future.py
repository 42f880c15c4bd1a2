"""`Future`, what an executor's `submit` returns: a standard one that knows its job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from apothic.client.job import Job

T = TypeVar("T")


class Future(futures.Future[T]):
    """The result of one submitted call, as in the standard library, and the `job` that it runs as."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: Job | None = None  # the job, once it is on disk
        self._withdraw: Callable[[], bool] | None = None
        self._known = threading.Event()  # the job is, or that there will be none; `_condition` is for results alone

    @property
    def job(self) -> Job:
        """Return the job's handle, once the job is on disk; wait for that when it is still on its way.

        Raises what stood in the way of submitting it, `CancelledError` when it was cancelled before it was sent.
        """
        if not self.done():
            self._known.wait()
        if self.accepted is None:
            self.result()
        assert self.accepted is not None, "a value comes from a job"
        return self.accepted

    def cancel(self) -> bool:
        """Cancel the call unless a worker has it already; tell whether it is cancelled.

        When its job has been sent, the control plane is asked, and has the last word.
        """
        withdraw = self._withdraw
        if withdraw is None or self.running() or self.done():
            return super().cancel()
        return withdraw()

    def set_exception(self, exception: BaseException | None) -> None:
        super().set_exception(exception)
        self._known.set()

    # --- for the pool ---------------------------------------------------------------------------------------------

    def bind(self, withdraw: Callable[[], bool]) -> None:
        """Ask `withdraw` before it is cancelled."""
        self._withdraw = withdraw

    def accept(self, job: Job) -> None:
        """Note the job: it is on disk."""
        self.accepted = job
        self._known.set()

    def call_off(self) -> None:
        """Be cancelled, and tell those who wait."""
        if super().cancel():
            self.set_running_or_notify_cancel()
        self._known.set()
        self.let_go()

    def let_go(self) -> None:
        """Drop what it needed while it was on its way."""
        self._withdraw = None
