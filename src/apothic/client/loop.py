"""The library's own event loop, in a thread of its own, and the ways into it.

All I/O of handles happens there, whoever asks: one connection pool, one lifetime, and user code that blocks its own
loop cannot stall ours. What only the caller may do (run the caller's iterator, unpickle the caller's classes) is sent
back to the caller, who serves such errands while it waits.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")

Deed = Callable[[], Any]

# An event loop that is collected takes its epoll set apart, and a forked child shares that set with its parent.
_GRAVEYARD: list[Any] = []


class Caller(Protocol):
    """Who waits for a coroutine on the library's loop, and does for it meanwhile what must happen over there."""

    asynchronous: bool

    async def run(self, deed: Callable[[], T]) -> T:
        """Run `deed` in the caller's thread; raise what it raises."""
        ...

    async def step(self, deed: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await what `deed` returns on the caller's event loop. Raises `TypeError` when the caller has none."""
        ...


CALLER: ContextVar[Caller | None] = ContextVar("apothic_caller", default=None)


async def at_caller(deed: Callable[[], T]) -> T:
    """Run `deed` where the caller of the current coroutine is; here, if nobody waits elsewhere."""
    caller = CALLER.get()
    return deed() if caller is None else await caller.run(deed)


class _Errand:
    """Something for a waiting thread to do. Without a deed: the coroutine it waits for has ended."""

    __slots__ = ("answer", "deed", "loop")

    def __init__(self, deed: Deed | None, answer: asyncio.Future[Any], loop: asyncio.AbstractEventLoop) -> None:
        self.deed = deed
        self.answer = answer
        self.loop = loop

    def serve(self) -> None:
        assert self.deed is not None
        if self.answer.cancelled():
            return
        try:
            value = self.deed()
        except StopIteration as error:  # no future can hold one
            self._reply(self.answer.set_exception, RuntimeError(f"{error!r} came out of a function"))
        except Exception as error:
            self._reply(self.answer.set_exception, error)
        else:
            self._reply(self.answer.set_result, value)

    def _reply(self, settle: Callable[[Any], None], outcome: Any) -> None:
        def deliver() -> None:
            if not self.answer.done():
                settle(outcome)

        self.loop.call_soon_threadsafe(deliver)


class BlockedCaller:
    """A thread that waits in a blocking call, or between two items of a stream."""

    asynchronous = False

    def __init__(self) -> None:
        self.inbox: SimpleQueue[Any] = SimpleQueue()

    async def run(self, deed: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        errand = _Errand(deed, loop.create_future(), loop)
        self.inbox.put(errand)
        return await errand.answer  # type: ignore[no-any-return]

    async def step(self, deed: Callable[[], Coroutine[Any, Any, T]]) -> T:
        raise TypeError("an async iterable needs the asynchronous form: await the method of `.aio`")


class AwaitingCaller:
    """A coroutine on an event loop of the user's."""

    asynchronous = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    async def run(self, deed: Callable[[], T]) -> T:
        async def once() -> T:
            return deed()

        return await self.step(once)

    async def step(self, deed: Callable[[], Coroutine[Any, Any, T]]) -> T:
        # The future is not cancelled with us but through its own loop, so that the caller's `finally` blocks run there.
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(deed(), self._loop))


class Loop:
    """The loop and its thread: made on first use, forgotten in a forked child."""

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.stop)

    def _forget(self) -> None:
        _GRAVEYARD.append(getattr(self, "_loop", None))
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closers: list[Callable[[], Coroutine[Any, Any, None]]] = []

    def running(self) -> asyncio.AbstractEventLoop:
        """Return the loop, started."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="apothic", daemon=True)
                self._thread.start()
            return self._loop

    def here(self) -> bool:
        """Tell whether this is the loop's thread."""
        return threading.current_thread() is self._thread

    def at_stop(self, closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await `closer()` on the loop before it is stopped, at the end of this process; each one once."""
        if closer not in self._closers:
            self._closers.append(closer)

    def stop(self) -> None:
        """Cancel what runs, close what is open, end the thread. A later use starts a new loop."""
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None or self.here():
                return
            closers, self._closers = self._closers, []
        asyncio.run_coroutine_threadsafe(_wind_up(closers), loop).result(10)
        with self._lock:
            self._loop = self._thread = None
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()

    def block(self, make: Callable[[], Coroutine[Any, Any, T]], caller: BlockedCaller | None = None) -> T:
        """Run a coroutine on the loop and wait for it in this thread, serving its errands.

        Raises `RuntimeError` on the library's own thread. Whatever interrupts the wait (Ctrl-C) cancels the coroutine,
        waits for its `finally` blocks, and is raised; a second interrupt does not wait.
        """
        if self.here():
            raise RuntimeError(
                "a blocking call on apothic's own loop would never return; await the same method of `.aio`"
            )
        coro = make()
        waiting = caller or BlockedCaller()
        context = copy_context()
        context.run(CALLER.set, waiting)
        job = _Run(self.running(), coro, waiting.inbox.put, context)
        try:
            while (news := waiting.inbox.get()) is not job.task:
                if isinstance(news, _Errand):
                    news.serve()
        except BaseException:
            job.cancel()
            while waiting.inbox.get() is not job.task:
                pass
            job.forget()
            raise
        return job.result()

    async def hop(self, make: Callable[[], Coroutine[Any, Any, T]], caller: AwaitingCaller | None = None) -> T:
        """Await a coroutine on the library's loop from any other. Cancellation goes through and is waited for."""
        coro = make()
        if self.here():
            return await coro
        home = asyncio.get_running_loop()
        context = copy_context()
        context.run(CALLER.set, caller or AwaitingCaller(home))
        ended: asyncio.Future[None] = home.create_future()

        def wake() -> None:
            if not ended.done():
                ended.set_result(None)

        def tell(_: Any) -> None:
            home.call_soon_threadsafe(wake)

        job = _Run(self.running(), coro, tell, context)
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            job.cancel()
            await ended
            job.forget()
            raise
        return job.result()


class _Run(Generic[T]):
    """One coroutine as a task on another thread's loop. `tell` is called there with the task when it has ended."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, T],
        tell: Callable[[Any], None],
        context: Context,
    ) -> None:
        self.task: asyncio.Task[T] | None = None
        self._loop = loop
        self._coro = coro
        self._tell = tell
        self._context = context
        loop.call_soon_threadsafe(self._begin, context=context)

    def _begin(self) -> None:
        self.task = self._loop.create_task(self._coro, context=self._context)
        self.task.add_done_callback(self._tell)

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(lambda: self.task and self.task.cancel())

    def forget(self) -> None:
        # Asking for it is what keeps asyncio from reporting an exception that nobody saw.
        if self.task is not None and not self.task.cancelled():
            self.task.exception()

    def result(self) -> T:
        task, self.task = self.task, None
        assert task is not None
        return task.result()


async def _wind_up(closers: list[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    own = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not own]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for closer in closers:
        await closer()


LOOP = Loop()
