"""The user's items, read a chunk at a time where the caller is, and packed there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from apothic.client.loop import CALLER, Caller, at_caller
from apothic.clock import SystemClock
from apothic.protocol.values import Envelope

# A chunk ends after this long, so that the first items of a slow iterator are at work while the next are made.
CHUNK_S = 0.02
CHUNK_BYTES = 4 << 20
_END = object()


class Feed:
    """Reads an iterable, or an async one, in the thread or on the loop of whoever waits for us."""

    def __init__(self, items: Iterable[Any] | AsyncIterable[Any], pack: Callable[[Any], Envelope]) -> None:
        self.ended = False
        self._closed = False
        self._items = items
        self._pack = pack
        self._clock = SystemClock()
        self._iterator: Iterator[Any] | None = None
        self._arriving: AsyncIterator[Any] | None = None
        self._pending: asyncio.Task[Any] | None = None

    async def read(self, limit: int) -> list[Envelope]:
        """Return up to `limit` packed items; at the end an empty list. Raises whatever the iterable raises."""
        if self.ended:
            return []
        if not isinstance(self._items, AsyncIterable):
            return await at_caller(lambda: self._take(limit))
        return await _caller(self._items).step(lambda: self._take_arriving(limit))

    async def close(self) -> None:
        """Let go of an async iterable, on its own loop, and of what is read from now on."""
        self._closed = True
        if self._arriving is not None and not self.ended:
            with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nothing of it runs any more
                await _caller(self._items).step(self._let_go)

    def _take(self, limit: int) -> list[Envelope]:
        taken = _Chunk(limit, self._clock)
        try:
            if self._iterator is None:
                self._iterator = iter(self._items)  # type: ignore[arg-type]
            for item in self._iterator:
                if taken.add(self._pack(item)):
                    break
            else:
                self.ended = True
        except BaseException:
            taken.discard()
            raise
        if self._closed:  # nobody waits for these any more
            taken.discard()
        return taken.envelopes

    async def _take_arriving(self, limit: int) -> list[Envelope]:
        taken = _Chunk(limit, self._clock)
        try:
            if self._arriving is None:
                self._arriving = aiter(self._items)  # type: ignore[arg-type]
            while True:
                if self._pending is None:
                    self._pending = asyncio.ensure_future(_next(self._arriving))
                # What comes later than the chunk's time is kept for the next one, not cancelled.
                await asyncio.wait({self._pending}, timeout=taken.left_s if taken.envelopes else None)
                if not self._pending.done():
                    return taken.envelopes
                arrived, self._pending = self._pending, None
                item = arrived.result()
                if item is _END:
                    self.ended = True
                    return taken.envelopes
                if taken.add(self._pack(item)):
                    return taken.envelopes
        except BaseException:
            taken.discard()
            raise

    async def _let_go(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.wait({self._pending})
        close = getattr(self._arriving, "aclose", None)
        if close is not None:
            await close()


class _Chunk:
    def __init__(self, limit: int, clock: SystemClock) -> None:
        self.envelopes: list[Envelope] = []
        self._limit = limit
        self._clock = clock
        self._until = clock.monotonic() + CHUNK_S
        self._bytes = 0

    @property
    def left_s(self) -> float:
        return max(self._until - self._clock.monotonic(), 0.0)

    def add(self, envelope: Envelope) -> bool:
        """Take one; return whether the chunk is full."""
        self.envelopes.append(envelope)
        self._bytes += len(envelope.packed.data or b"")
        return len(self.envelopes) >= self._limit or self._bytes >= CHUNK_BYTES or self.left_s <= 0

    def discard(self) -> None:
        for envelope in self.envelopes:
            envelope.discard()


async def _next(items: AsyncIterator[Any]) -> Any:
    return await anext(items, _END)


def _caller(items: Any) -> Caller:
    caller = CALLER.get()
    if caller is None:
        raise TypeError(f"{type(items).__name__} is an async iterable, and nobody awaits here")
    return caller
