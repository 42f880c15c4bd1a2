"""One `async def` per deed; two ways to reach it: `job.status()` blocks, `await job.aio.status()` does not.

A handle's method is written once under `@blocking`, `@requesting`, `@streaming` or `@delivering`; its facet class names
it again with `awaiting` or `iterating`. A method may also be a plain function that returns a coroutine or an iterator:
what it does before that (packing the arguments) happens in the caller's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import linecache
import re
import sys
import warnings
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from functools import update_wrapper, wraps
from pathlib import Path
from types import FrameType, MethodType
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar, overload

from apothic.client.loop import LOOP, AwaitingCaller, BlockedCaller

H = TypeVar("H")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# Items that a stream may be ahead of its reader: enough to share one thread hop, little enough to stay lazy.
AHEAD = 128
_PACKAGE = str(Path(__file__).resolve().parent.parent)
_warned: set[tuple[str, int]] = set()


class Pump(Generic[T]):
    """Runs one async iterator from first to last in one task, so that scopes inside it hold; hands over in chunks."""

    def __init__(self, source: AsyncIterator[T]) -> None:
        self._source = source
        self._ready: deque[T] = deque()
        self._room = asyncio.Event()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def runs(self) -> bool:
        """Tell whether there is something to close: it has begun, in this process, which is not at its end."""
        return self._loop is not None and LOOP.runs(self._loop)

    async def _run(self) -> None:
        source = self._source
        try:
            async for item in source:
                self._ready.append(item)
                self._news.set()
                if len(self._ready) >= AHEAD:
                    self._room.clear()
                    await self._room.wait()
        finally:  # cancelling us does not close the generator: it is asleep at its `yield`
            if isinstance(source, AsyncGenerator):
                await source.aclose()

    async def take(self) -> list[T]:
        """Return what is ready, at least one item; an empty list at the end. Raises what the iterator raised.

        The first time, the iterator is begun: whoever is interrupted meanwhile has it to close.
        """
        if self._task is None:
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(lambda _: self._news.set())
        if not self._ready:
            self._news.clear()
            if not self._task.done():
                await self._news.wait()
        chunk = list(self._ready)
        self._ready.clear()
        self._room.set()
        if not chunk:
            self._task.result()
        return chunk

    async def close(self) -> None:
        """Cancel the iterator and wait for its `finally` blocks. Raises what they raise."""
        assert self._task is not None, "it has begun"
        finished = self._task.done()
        self._task.cancel()
        await asyncio.wait({self._task})
        if not finished and not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error


def iterate(source: AsyncIterator[T]) -> Generator[T, None, None]:
    """Iterate in a blocking way over what runs on our own loop. Closing it closes `source`, and waits for that."""
    caller = BlockedCaller()
    pump = Pump(source)
    try:
        while chunk := LOOP.block(pump.take, caller):
            yield from chunk
    finally:
        if pump.runs and LOOP.here():  # an abandoned iterator, collected on our own thread
            LOOP.leave(pump.close)
        elif pump.runs:
            LOOP.block(pump.close)


async def aiterate(source: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Iterate from any other loop over what runs on our own. Closing it closes `source`, and waits for that."""
    caller = AwaitingCaller(asyncio.get_running_loop())
    pump = Pump(source)
    try:
        while chunk := await LOOP.hop(pump.take, caller):
            for item in chunk:
                yield item
    finally:
        if pump.runs:
            await LOOP.hop(pump.close)


def deliver(source: AsyncIterator[Callable[[], T]]) -> Iterator[T]:
    """Do as `iterate`, and do each deed here, when what it returns is handed over."""
    with contextlib.closing(iterate(source)) as deeds:
        for deed in deeds:
            yield deed()


async def adeliver(source: AsyncIterator[Callable[[], T]]) -> AsyncIterator[T]:
    """Do as `aiterate`, and do each deed here, when what it returns is handed over."""
    async with contextlib.aclosing(aiterate(source)) as deeds:
        async for deed in deeds:
            yield deed()


class Facet(Generic[H]):
    """The `.aio` side of a handle."""

    def __init__(self, handle: H) -> None:
        self._handle = handle

    def __repr__(self) -> str:
        return f"{self._handle!r}.aio"


class blocking(Generic[H, P, R]):
    """Make an `async def` a method that blocks."""

    over: ClassVar[Callable[..., Any]] = staticmethod(LOOP.block)

    def __init__(self, fn: Callable[Concatenate[H, P], Coroutine[Any, Any, R]]) -> None:
        self.fn = fn
        update_wrapper(self, fn)

        @wraps(fn)
        def form(obj: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
            warn_if_looping(fn.__name__)
            value: R = self.over(lambda: fn(obj, *args, **kwargs))
            return value

        self._form: Any = form

    @overload
    def __get__(self, obj: None, owner: type[Any]) -> blocking[H, P, R]: ...
    @overload
    def __get__(self, obj: H, owner: type[Any]) -> Callable[P, R]: ...
    def __get__(self, obj: H | None, owner: type[Any]) -> blocking[H, P, R] | Callable[P, R]:
        return self if obj is None else MethodType(self._form, obj)

    def __call__(self, obj: H, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._form(obj, *args, **kwargs)  # type: ignore[no-any-return]


class requesting(blocking[H, P, R]):
    """Do as `blocking` for what is requests and their answers, in the caller's own thread: see `Loop.direct`."""

    over = staticmethod(LOOP.direct)


class awaiting(Generic[H, P, R]):
    """Name a `blocking` method once more in the facet."""

    def __init__(self, method: blocking[H, P, R]) -> None:
        fn = self.fn = method.fn
        self.__doc__ = fn.__doc__

        @wraps(fn)
        async def form(facet: Facet[H], /, *args: P.args, **kwargs: P.kwargs) -> R:
            return await LOOP.hop(lambda: fn(facet._handle, *args, **kwargs))

        self._form: Any = form

    @overload
    def __get__(self, obj: None, owner: type[Any]) -> awaiting[H, P, R]: ...
    @overload
    def __get__(self, obj: Facet[H], owner: type[Any]) -> Callable[P, Coroutine[Any, Any, R]]: ...
    def __get__(
        self, obj: Facet[H] | None, owner: type[Any]
    ) -> awaiting[H, P, R] | Callable[P, Coroutine[Any, Any, R]]:
        return self if obj is None else MethodType(self._form, obj)


class streaming(Generic[H, P, R]):
    """Make an async generator method one that iterates in a blocking way. It begins with the first item asked for."""

    over: ClassVar[Callable[..., Any]] = staticmethod(iterate)
    aover: ClassVar[Callable[..., Any]] = staticmethod(aiterate)

    def __init__(self, fn: Callable[Concatenate[H, P], AsyncIterator[R]]) -> None:
        self.fn = fn
        update_wrapper(self, fn)

        @wraps(fn)
        def form(obj: H, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
            warn_if_looping(fn.__name__)
            iterator: Iterator[R] = self.over(fn(obj, *args, **kwargs))
            return iterator

        self._form: Any = form

    @overload
    def __get__(self, obj: None, owner: type[Any]) -> streaming[H, P, R]: ...
    @overload
    def __get__(self, obj: H, owner: type[Any]) -> Callable[P, Iterator[R]]: ...
    def __get__(self, obj: H | None, owner: type[Any]) -> streaming[H, P, R] | Callable[P, Iterator[R]]:
        return self if obj is None else MethodType(self._form, obj)

    def __call__(self, obj: H, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        return self._form(obj, *args, **kwargs)  # type: ignore[no-any-return]


class delivering(streaming[H, P, R]):
    """Do as `streaming` does for an async generator of deeds: each is done at the caller, which gets what it returns.

    So what is the caller's own to do (reading a pickle, moving a handle's place) happens for an item that is handed
    over, and not for one that is only on its way.
    """

    over = staticmethod(deliver)
    aover = staticmethod(adeliver)

    def __init__(self, fn: Callable[Concatenate[H, P], AsyncIterator[Callable[[], R]]]) -> None:
        super().__init__(fn)  # type: ignore[arg-type]


class iterating(Generic[H, P, R]):
    """Name a `streaming` or `delivering` method once more in the facet."""

    def __init__(self, method: streaming[H, P, R]) -> None:
        fn = self.fn = method.fn
        self.__doc__ = fn.__doc__

        @wraps(fn)
        def form(facet: Facet[H], /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
            iterator: AsyncIterator[R] = method.aover(fn(facet._handle, *args, **kwargs))
            return iterator

        self._form: Any = form

    @overload
    def __get__(self, obj: None, owner: type[Any]) -> iterating[H, P, R]: ...
    @overload
    def __get__(self, obj: Facet[H], owner: type[Any]) -> Callable[P, AsyncIterator[R]]: ...
    def __get__(self, obj: Facet[H] | None, owner: type[Any]) -> iterating[H, P, R] | Callable[P, AsyncIterator[R]]:
        return self if obj is None else MethodType(self._form, obj)


def warn_if_looping(name: str) -> None:
    """Warn, once for each line, who blocks an event loop that is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    frame = user_frame()
    # A notebook always has a loop running, and there a blocking call is what one wants.
    if frame is None or (frame.f_globals.get("__name__") == "__main__" and "__file__" not in frame.f_globals):
        return
    place = (frame.f_code.co_filename, frame.f_lineno)
    if place in _warned or LOOP.here():
        return
    _warned.add(place)
    line = linecache.getline(*place, frame.f_globals).strip()
    warnings.warn_explicit(
        f"{name}() blocks the event loop that is running here; write\n    {_rewritten(line, name)}",
        RuntimeWarning,
        *place,
        source=None,
    )


def user_frame() -> FrameType | None:
    """Return the innermost frame of the current thread that is not this library's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return frame


def _rewritten(line: str, name: str) -> str:
    found = re.search(rf"([\w.\[\]\"']+)\.{name}\(", line)
    if found is None:
        return f"await ….aio.{name}(…)"
    loop = re.match(r"\s*for\s.*\sin\s+$", line[: found.start()])
    asked = f"{found[1]}.aio.{name}("
    if loop is not None:
        return f"async {line[: found.start()]}{asked}{line[found.end() :]}"
    return f"{line[: found.start()]}await {asked}{line[found.end() :]}"
