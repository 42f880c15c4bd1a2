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

from apothic.direct import DIRECT

T = TypeVar("T")

STOP_S = 20.0  # longer than what is left open at the process's end may take to cancel its jobs

_NEVER = "a blocking call on apothic's own loop would never return; await the same method of `.aio`"

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

    def runs(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Tell whether `loop` is this one and at work: not of a parent process, nor stopped as the process ends."""
        return loop is self._loop

    def at_stop(self, closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await `closer()` on the loop before it is stopped, at the end of this process; each one once."""
        if closer not in self._closers:
            self._closers.append(closer)

    def leave(self, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Let a coroutine run, if the loop does, and wait for nothing. May be called while garbage is collected."""
        if self._loop is not None:
            run: _Run[None] = _Run(self._loop, lambda _: None, copy_context())
            run.begin(make())

    def stop(self) -> None:
        """Cancel what runs, close what is open, end the thread. A later use starts a new loop."""
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None or self.here():
                return
            closers, self._closers = self._closers, []
        asyncio.run_coroutine_threadsafe(_wind_up(closers), loop).result(STOP_S)
        with self._lock:
            self._loop = self._thread = None
        loop.call_soon_threadsafe(loop.stop)
        thread.join(STOP_S)
        loop.close()

    def block(self, make: Callable[[], Coroutine[Any, Any, T]], caller: BlockedCaller | None = None) -> T:
        """Run a coroutine on the loop and wait for it in this thread, serving its errands.

        Raises `RuntimeError` on the library's own thread. Whatever interrupts the wait (Ctrl-C) cancels the coroutine,
        waits for its `finally` blocks, and is raised; a second interrupt does not wait.
        """
        if self.here():
            raise RuntimeError(_NEVER)
        context = copy_context()
        context.run(DIRECT.set, False)
        return self._wait_for(make(), caller or BlockedCaller(), context)

    def direct(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do as `block`, in this thread as far as the coroutine gets without a loop; from there on, on ours.

        It needs none for requests and their answers. Where it does, it has to await `on_loop` before. An interrupt is
        raised in the coroutine where it stands.
        """
        if self.here():
            raise RuntimeError(_NEVER)
        context = copy_context()
        context.run(CALLER.set, None)
        context.run(DIRECT.set, True)
        coro = make()
        try:
            context.run(coro.send, None)
        except StopIteration as ended:
            value: T = ended.value
            return value
        context.run(DIRECT.set, False)
        return self._wait_for(coro, BlockedCaller(), context)

    def _wait_for(self, coro: Coroutine[Any, Any, T], waiting: BlockedCaller, context: Context) -> T:
        context.run(CALLER.set, waiting)
        run: _Run[T] = _Run(self.running(), waiting.inbox.put, context)
        try:  # an interrupt may come as soon as the coroutine runs, before we wait
            run.begin(coro)
            while (news := waiting.inbox.get()) is not run:
                if isinstance(news, _Errand):
                    news.serve()
        except BaseException:
            run.cancel()
            while not run.over:  # its end may have been taken from the inbox just before the interrupt
                waiting.inbox.get()
            raise
        value: T = run.result()
        return value

    async def hop(self, make: Callable[[], Coroutine[Any, Any, T]], caller: AwaitingCaller | None = None) -> T:
        """Await a coroutine on the library's loop from any other. Cancellation goes through and is waited for."""
        coro = make()
        if self.here():
            return await coro
        home = asyncio.get_running_loop()
        context = copy_context()
        context.run(CALLER.set, caller or AwaitingCaller(home))
        context.run(DIRECT.set, False)
        ended: asyncio.Future[None] = home.create_future()

        def wake() -> None:
            if not ended.done():
                ended.set_result(None)

        run: _Run[T] = _Run(self.running(), lambda _: home.call_soon_threadsafe(wake), context)
        run.begin(coro)
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            run.cancel()
            await ended
            raise
        return run.result()


class _Run(Generic[T]):
    """One coroutine as a task on another thread's loop. `tell` is called there, with this, when it has ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[Any], Any], context: Context) -> None:
        self.over = False
        self._task: asyncio.Task[T] | None = None
        self._loop = loop
        self._tell = tell
        self._context = context

    def begin(self, coro: Coroutine[Any, Any, T]) -> None:
        def create() -> None:
            self._task = self._loop.create_task(coro, context=self._context)
            self._task.add_done_callback(self._ended)

        self._loop.call_soon_threadsafe(create)

    def cancel(self) -> None:
        """Cancel it; `tell` is called all the same, also when it was never begun."""

        def end() -> None:
            if self._task is None:
                self.over = True
                self._tell(self)
            else:
                self._task.cancel()

        self._loop.call_soon_threadsafe(end)

    def result(self) -> T:
        task, self._task = self._task, None
        assert task is not None
        return task.result()

    def _ended(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # asked for, so that asyncio does not report what an interrupted caller never sees
        self.over = True
        self._tell(self)


async def _wind_up(closers: list[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    own = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not own]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for closer in closers:
        await closer()


LOOP = Loop()
