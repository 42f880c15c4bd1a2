"""What a generator yields, on its way to the disk: shipped in order, and only so far ahead as the credit allows.

A cancellation that finds the generator at a `yield` strikes there, so its `finally` runs as for any other function; one
that catches the cancellation and yields once more is closed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from inspect import GEN_CLOSED, getgeneratorstate
from types import AsyncGeneratorType
from typing import Any

from apothic.agent.channel import Channel
from apothic.agent.frames import Items, Run
from apothic.agent.window import JobCancelled, Window
from apothic.protocol.values import Envelope

# Contract: the job event stream, section 2. The one item that crosses the second goes, and the next one waits.
IN_FLIGHT_ITEMS = 256
IN_FLIGHT_BYTES = 1024 * 1024
_NOTHING = object()

Ship = Callable[[Any], bool]  # tells whether the item went at once


class Flow:
    """One job's items: how many were sent, and how many of them are on disk.

    `pause` waits in the conductor's own way until something may have changed, `wake` ends that. The job's own thread
    counts what is sent and the receiving one what is taken, each in numbers of its own: no item costs a lock.
    """

    def __init__(
        self,
        run: Run,
        channel: Channel,
        window: Window,
        pause: Callable[[], Any],
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.sent = 0
        self.attempt = (run.job, run.attempt)
        self.window = window
        self.pause = pause
        self.wake = wake
        self.refused: BaseException | None = None  # what was wrong with an item
        self._began_at = channel.clock.monotonic()
        self._job = run.job
        self._channel = channel
        self._sizes: deque[int] = deque()
        self._taken = 0
        self._sent_bytes = 0
        self._taken_bytes = 0

    @property
    def ran_s(self) -> float:
        """How long ago the job was begun here."""
        return self._channel.clock.monotonic() - self._began_at

    @property
    def is_open(self) -> bool:
        """Whether another item may go."""
        return self.sent - self._taken < IN_FLIGHT_ITEMS and self._sent_bytes - self._taken_bytes < IN_FLIGHT_BYTES

    @property
    def is_struck(self) -> bool:
        """Whether the code was told of its cancellation."""
        return self.attempt in self.window.struck

    def ship(self, envelope: Envelope) -> bool:
        """Send the next item; return whether it went at once. Its file, if it has one, is the agent's from now on."""
        packed = envelope.packed
        first, path = self.sent, str(envelope.file) if envelope.file is not None else None
        self._sizes.append(packed.size)
        self._sent_bytes += packed.size
        self.sent += 1
        return self._channel.gather(Items(job=self._job, first=first, values=[packed], path=path), packed.size)

    def taken(self, upto: int) -> None:
        """Take note that the items below `upto` are on disk."""
        while self._taken < min(upto, self.sent):
            self._taken_bytes += self._sizes.popleft()
            self._taken += 1
        self.wake()

    def hurry(self) -> None:
        """Send what waits for company: the generator itself is about to wait."""
        self._channel.flush()


# --- plain generators -------------------------------------------------------------------------------------------


def drive(generator: Generator[Any, Any, Any], flow: Flow, ship: Ship) -> Any:
    """Ship all that a generator yields and return what it returns. Whatever ends it, its clean-up has run."""
    returned: list[Any] = []
    source = _whole(generator, returned)
    try:
        deaf = _pump(source, flow, ship)
    except JobCancelled as error:
        if getgeneratorstate(source) == GEN_CLOSED:  # it went through the code
            raise
        try:
            source.throw(error)
        except StopIteration:
            return returned[0]
        deaf = True
    except BaseException:
        source.close()
        raise
    if deaf:
        source.close()
        raise JobCancelled
    return returned[0]


def _whole(generator: Generator[Any, Any, Any], returned: list[Any]) -> Generator[Any, Any, None]:
    returned.append((yield from generator))


def _pump(source: Generator[Any, Any, None], flow: Flow, ship: Ship) -> bool:
    """Ship items up to the end; return whether it was cancelled and did not listen."""
    value: Any = _NOTHING
    masked = flow.window.masked()
    try:
        # A `for`, because the interpreter takes no signal between what that yields and its variable, as it does behind
        # a call of `next`: what was yielded before a cancellation is never lost.
        for value in source:
            if flow.is_struck:
                return True
            with masked:
                ship(value)
                value = _NOTHING
            flow.window.strike(flow.attempt)
            if not flow.is_open:
                flow.hurry()
                while not flow.is_open:
                    flow.pause()
                    flow.window.strike(flow.attempt)
    except JobCancelled:
        if value is not _NOTHING:
            ship(value)
        raise
    return False


# --- async generators -------------------------------------------------------------------------------------------


async def drive_async(generator: AsyncGeneratorType[Any, Any], flow: Flow, ship: Ship) -> None:
    """Ship all that an async generator yields. Whatever ends it, its clean-up has run."""
    try:
        deaf = await _pump_async(generator, flow, ship)
    except asyncio.CancelledError as error:
        if generator.ag_frame is None:
            raise
        try:
            await generator.athrow(error)
        except StopAsyncIteration:
            return
        deaf = True
    except BaseException:
        await generator.aclose()
        raise
    if deaf:
        await generator.aclose()
        raise asyncio.CancelledError


async def _pump_async(generator: AsyncGeneratorType[Any, Any], flow: Flow, ship: Ship) -> bool:
    async for value in generator:
        if flow.is_struck:
            return True
        if ship(value):
            await asyncio.sleep(0)  # a generator that never waits itself would keep all else from the loop
        if not flow.is_open:
            flow.hurry()
            while not flow.is_open:
                await flow.pause()
    return False
