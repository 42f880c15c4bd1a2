"""One attempt's news on their way to the outbox, in order: what is large is stored first, what comes behind it waits.

So an item is never told before its bytes are on disk, nor the line that was printed after it before the item.
"""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from apothic.agent.outbox import Outbox, Story, cost
from apothic.errors import ApothicError
from apothic.protocol.messages import Failure
from apothic.protocol.session import Item, Line, Outcome, Packed, Said

Store = Callable[[Path, str, int], Awaitable[None]]
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class _Held(NamedTuple):
    news: Sequence[Said] | Outcome
    file: Path | None
    size: int


class Passage:
    """Owns the files it is given. `on_told` hears that the end is told, `on_spoilt` that something is lost before."""

    def __init__(self, story: Story, outbox: Outbox, store: Store, spawn: Spawn) -> None:
        self.story = story
        self.failure: Failure | None = None  # what was lost: it can be no success any more
        self.on_told: Callable[[], None] = lambda: None
        self.on_spoilt: Callable[[], None] = lambda: None
        self._outbox = outbox
        self._store = store
        self._spawn = spawn
        self._held: deque[_Held] = deque()

    def began(self) -> None:
        """Tell that the function's code is entered."""
        self._outbox.began(self.story)

    def say(self, said: Sequence[Said], file: Path | None = None) -> None:
        """Tell lines, or items; `file` has the bytes of an item that comes alone."""
        self._pass(said, file, 0 if not self._held else sum(map(cost, said)))

    def end(self, outcome: Outcome, file: Path | None = None) -> None:
        """Tell how it ended; `file` has the bytes of its value."""
        self._pass(outcome, file, 0)

    def spoil(self, failure: Failure) -> None:
        """Tell no item from now on, and no success: something of it is lost."""
        if self.failure is None:
            self.failure = failure
            self.on_spoilt()

    def _pass(self, news: Sequence[Said] | Outcome, file: Path | None, size: int) -> None:
        if file is None and not self._held:
            self._tell(news)
            return
        self._held.append(_Held(news, file, size))
        self._outbox.hold(size)
        if len(self._held) == 1:
            self._spawn(self._release())

    async def _release(self) -> None:
        try:
            while self._held:
                news, file, size = self._held[0]
                if file is not None:
                    await self._put_away(news, file)
                self._held.popleft()
                self._tell(news)
                self._outbox.hold(-size)
        finally:
            for held in self._held:
                if held.file is not None:
                    held.file.unlink(missing_ok=True)

    async def _put_away(self, news: Sequence[Said] | Outcome, file: Path) -> None:
        first = news if isinstance(news, Outcome) else news[0]
        value = first.value if not isinstance(first, Line) else None
        try:
            if value is not None and value.sha256 is not None and not self.story.muted and self.failure is None:
                await self._store(file, value.sha256, value.size)
        except (ApothicError, OSError) as error:
            what = "the result" if isinstance(news, Outcome) else "an item"
            message = f"{what} could not be stored: {error}"
            attempt = self.story.lease.attempt
            self.spoil(
                Failure(kind="worker_lost", type=type(error).__name__, message=message, attempt=attempt, retriable=True)
            )
        finally:
            file.unlink(missing_ok=True)  # noqa: ASYNC240

    def _tell(self, news: Sequence[Said] | Outcome) -> None:
        if not isinstance(news, Outcome):
            left = news if self.failure is None else [one for one in news if not isinstance(one, Item)]
            self._outbox.said(self.story, left)
            return
        if self.failure is not None and news.value is not None:
            news = Outcome(failure=self.failure)
        self._outbox.ended(self.story, news)
        self.on_told()


def is_whole(values: list[Packed], file: Path | None) -> bool:
    """Tell whether all bytes are there: in the values, or of a single one in the file."""
    if file is not None:
        return len(values) == 1 and values[0].sha256 is not None
    return all(value.data is not None for value in values)


def claim(files: Path, path: str | None, keep: Callable[[Path], Path]) -> Path | None:
    """Take a file with a large value out of a container's `files`, which may end before the bytes are stored.

    What a container says is what user code may say: the name is believed, and that only for a plain file (a pipe would
    block who opens it, a link may lead anywhere).
    """
    if path is None:
        return None
    with contextlib.suppress(OSError, ValueError):
        found = files / Path(path).name
        if stat.S_ISREG(found.lstat().st_mode):
            return keep(found)
    return None
