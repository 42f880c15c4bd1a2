"""The calls of one executor on their way: sent in batches, waited for together, settled in one thread.

Everything that talks to the control plane runs on the library's loop; `_open` and the tasks are its own. The rest is
shared with the callers' threads, under one lock. Futures are settled in the pool's own thread: it unpickles the user's
values and runs the user's callbacks, which must not hold up the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Coroutine, Iterable
from contextvars import copy_context
from typing import Any

from apothic.client.future import Future
from apothic.client.job import CANCEL_S
from apothic.client.loop import CALLER, LOOP
from apothic.client.outcome import Outcome
from apothic.client.sending import Entry, Gatherer, Sender
from apothic.client.submission import Target
from apothic.errors import ApothicError, QueueFullError
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.protocol.lifecycle import Status
from apothic.protocol.values import Envelope

UNSENT = 1_000  # calls that are packed and wait to be sent; past it, submitting waits
CANCELS = 8


class Pool:
    """What an executor has outstanding. `slots` calls at a time count as running."""

    def __init__(self, target: Target, slots: int) -> None:
        self.target = target
        self._slots = slots
        self.reset()
        _POOLS.add(self)

    def reset(self) -> None:
        """Have nothing outstanding."""
        # Re-entrant: an executor that is collected closes its pool, in whichever thread and moment that happens.
        self._lock = threading.Condition()
        self._unsent: deque[Entry] = deque()
        self._line: deque[Entry] = deque()  # those that do not count as running, first come first
        self._outstanding = 0
        self._running = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        self._ready: deque[tuple[Entry, Outcome | Exception]] = deque()
        self._news = asyncio.Event()
        self._sender = Sender(self.target, self._unsent, self._lock, self._fail)
        self._gatherer = Gatherer(self.target, self._hand_over)
        self._sender.accepted = self._gatherer.add
        self._gatherer.ended = self._sender.ended
        self._tasks: list[asyncio.Task[None]] = []

    def abandon(self) -> None:
        """Leave what is outstanding to the process that this one was forked from."""
        for entry in [*self._unsent, *self._sender.sending, *self._gatherer.open.values()]:
            entry.left = True
            entry.future.let_go()
        _GRAVEYARD.append(dict(vars(self)))
        self.reset()

    # --- in: the callers' threads ---------------------------------------------------------------------------------

    def put(self, envelope: Envelope) -> Future[Any]:
        """Take one call. Waits while too many are unsent; raises `QueueFullError`, or `RuntimeError` once closed."""
        entry = Entry(envelope, Future())
        entry.future.bind(lambda: self._withdraw(entry))
        patience_s = self.target.client_here().timeout_s
        with self._lock:
            if not self._lock.wait_for(lambda: self._has_room() or self._closed, patience_s):
                raise QueueFullError(
                    f"{UNSENT:,} calls wait for room in the queue of {self.target.name} after {patience_s:g} s",
                    hint="raise max_pending_tasks or max_workers, or give the client a larger timeout_s",
                )
            self.check()
            self._outstanding += 1
            self._line.append(entry)
            self._promote()
            self._unsent.append(entry)
            self._wake(self._sender.news, start=True)
        return entry.future

    def _has_room(self) -> bool:
        return len(self._unsent) + len(self._sender.sending) < UNSENT

    def check(self) -> None:
        """Raise `RuntimeError` when no more calls are taken."""
        if self._closed or _EXITING:
            raise RuntimeError(f"cannot schedule new futures after {'interpreter ' if _EXITING else ''}shutdown")

    def _promote(self) -> None:
        # Functions are first in, first out, so these are the ones that the containers take up.
        while self._running < self._slots and self._line:
            entry = self._line.popleft()
            if not entry.left and not entry.withdrawn and entry.future.set_running_or_notify_cancel():
                entry.runs = True
                self._running += 1

    def _wake(self, event: asyncio.Event, *, start: bool = False) -> None:
        if start and self._thread is None:
            context = copy_context()  # with the job that this code runs in, if it does
            self._thread = threading.Thread(target=context.run, args=(self._work,), name="apothic-executor")
            self._thread.start()
        LOOP.running().call_soon_threadsafe(event.set)

    def _leave(self, entry: Entry) -> bool:
        """Take the entry off the books; tell whether it was still there."""
        with self._lock:
            if entry.left:
                return False
            entry.left = True
            entry.envelope.discard()
            self._outstanding -= 1
            self._running -= entry.runs
            self._promote()
            if self._closed and not self._outstanding:
                self._wake(self._news)
            return True

    # --- cancelling -----------------------------------------------------------------------------------------------

    def _withdraw(self, entry: Entry) -> bool:
        if not self._take_back(entry):
            if entry.runs or entry.left:
                return entry.future.cancelled()
            entry.withdrawn = True
            if not LOOP.block(lambda: self._cancel(entry)):
                entry.withdrawn = False
                return entry.future.cancelled()
        if self._leave(entry):
            entry.future.call_off()
        return True

    def _take_back(self, entry: Entry) -> bool:
        """Take a call back that has not been sent; tell whether it was so."""
        with self._lock:
            if entry.runs or entry.left:
                return False
            with contextlib.suppress(ValueError):
                self._unsent.remove(entry)
                self._lock.notify_all()
                return True
            return False

    async def _cancel(self, entry: Entry) -> bool:
        with contextlib.suppress(ApothicError, TimeoutError):
            async with asyncio.timeout(CANCEL_S):
                job = await self._sender.job_of(entry)
                if job is None:
                    return self._take_back(entry)  # a full queue did not take it
                view = await job._client._ask(routes.CANCEL, m.CancelJob(job=job.job_id), CANCEL_S)
                return view.status in (Status.CANCELLED, Status.CANCELLING)
        return False

    def cancel_all(self) -> None:
        """Cancel every call that does not count as running, the newest first."""
        with self._lock:
            entries = [entry for entry in self._line if not entry.left]
            self._line.clear()  # what is being cancelled does not begin to count as running
        sent = [entry for entry in reversed(entries) if not self._take_back(entry)]
        for entry in sent:
            entry.withdrawn = True
        refused = set(LOOP.block(lambda: self._cancel_each(sent))) if sent else set()
        for entry in entries:
            if entry in refused:
                entry.withdrawn = False
            elif self._leave(entry):
                entry.future.call_off()

    async def _cancel_each(self, entries: list[Entry]) -> list[Entry]:
        left = deque(entries)
        refused: list[Entry] = []

        async def work() -> None:
            while left:
                entry = left.popleft()
                if not await self._cancel(entry):
                    refused.append(entry)

        await asyncio.gather(*(work() for _ in range(CANCELS)))
        return refused

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls; the thread ends with the last that is outstanding."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            if self._thread is not None and self._thread.is_alive():
                self._wake(self._news)

    def join(self) -> None:
        """Wait until nothing is outstanding, unless this is the thread that would have to end."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # --- out: the pool's own thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        while ready := LOOP.block(self._take):
            while ready:
                self._settle(*ready.popleft())

    async def _take(self) -> deque[tuple[Entry, Outcome | Exception]]:
        if not self._tasks:
            self._tasks = [_alone(self._sender.run()), _alone(self._gatherer.run())]
        while not self._ready:
            if self._closed and not self._outstanding:
                for task in self._tasks:
                    task.cancel()
                return deque()
            self._news.clear()
            await self._news.wait()
        ready, self._ready = self._ready, deque()
        return ready

    def _hand_over(self, ended: Iterable[tuple[Entry, Outcome | Exception]]) -> None:
        self._ready.extend(ended)
        self._news.set()

    def _fail(self, entries: Iterable[Entry], error: Exception) -> None:
        self._hand_over((entry, error) for entry in entries)

    def _settle(self, entry: Entry, ended: Outcome | Exception) -> None:
        if not self._leave(entry):
            return
        future = entry.future
        if isinstance(ended, Exception):
            future.set_exception(ended)
        elif entry.withdrawn and ended.result.job.status == Status.CANCELLED:
            future.call_off()
        else:
            try:
                value = _value(ended)
            except BaseException as error:  # what comes out of a pickle may be anything
                future.set_exception(error)
            else:
                future.set_result(value)
        future.let_go()  # not before: until it is done, cancelling it asks here


def _value(ended: Outcome) -> Any:
    value = ended.result.value
    if value is None:
        raise ended.error()
    if value.sha256 is not None:
        return LOOP.block(ended.value)
    return value.data if ended.is_plain else ended.read()


def _alone(coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run it for longer than the thread that asks waits: that one serves no errands of it."""
    context = copy_context()
    context.run(CALLER.set, None)
    return asyncio.get_running_loop().create_task(coro, context=context)


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()
_EXITING = False
_GRAVEYARD: list[Any] = []  # a forked child's parent has those tasks still: here they are neither run nor destroyed


def _exit() -> None:
    # As with the standard ones: what was submitted is waited for, and nothing more is accepted.
    global _EXITING
    _EXITING = True
    pools = list(_POOLS)
    for pool in pools:
        pool.close()
    for pool in pools:
        pool.join()


def _forked() -> None:
    for pool in list(_POOLS):
        pool.abandon()


# Before the interpreter joins threads, and so before the loop is stopped; `atexit` would come too late for both. The
# newest goes first: after the standard thread pools had gone, the loop could not look up a name any more.
importlib.import_module("concurrent.futures.thread")
threading._register_atexit(_exit)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_forked)
