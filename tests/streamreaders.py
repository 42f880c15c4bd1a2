"""Readers of a job's stream, each judged by a `Reading` of its own: here those who ask for one page after the other."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from streammodel import Reading, Told
from streamplay import Played

from apothic.protocol.events import RESET
from apothic.store.stream import PAGE_EVENTS, Wish

T = TypeVar("T")


class Sheet(NamedTuple):
    """A page, however it came."""

    events: list[Told]
    reset: Any
    next_index: int
    head: int
    end: bool
    oldest: int | None


class Reader(ABC):
    """Somebody who reads a job behind a place, and may leave and come back. `limit` bounds a page."""

    def __init__(self, played: Played, types: Iterable[str], start: int, limit: int = PAGE_EVENTS) -> None:
        self.played = played
        self.book = played.book
        self.reading = Reading(played.book, types, start)
        self.limit = limit

    @abstractmethod
    async def advance(self, cut: int | None = None) -> None:
        """Read on for a bit. With `cut`, be cut off behind one of the frames that came, or before the first."""

    async def settle(self) -> None:
        """Something has happened in the job; who is connected hears of it."""
        return

    async def stop(self) -> None:
        """Stop reading what comes, or begin again."""
        return

    async def leave(self) -> None:
        """Lose the connection, if there is one, and with it what was not taken."""
        return

    @abstractmethod
    async def finish(self) -> None:
        """Read all that there is; nothing may be missing then."""


class Pages(Reader):
    """Asks the store for pages."""

    async def advance(self, cut: int | None = None) -> None:
        await self._turn(cut)

    async def finish(self) -> None:
        while not self.reading.over and await self._turn(None):
            pass
        assert self.reading.over or not self.book.ended, "the end was never told"

    async def fetch(self, after: int) -> Sheet:
        wish = Wish(self.played.id, after, self.reading.types, limit=self.limit, oldest=True)
        page = await self.played.ground.stream.page(wish)
        events = [Told(kind, json.loads(data), index) for index, kind, data in page.events]
        told = None
        if page.reset is not None:
            place, told = page.reset[0], json.loads(page.reset[1])
            assert place == told["resume_index"]
        assert page.more == (page.next_index < page.head)
        return Sheet(events, told, page.next_index, page.head, page.end, page.oldest)

    async def _turn(self, cut: int | None) -> bool:
        """Read a page, or its beginning; return whether another one may bring more."""
        reading, head = self.reading, self.book.head
        if reading.over:
            return False
        asked = reading.connect()
        sheet = await self.fetch(asked)
        assert sheet.head == head and len(sheet.events) <= self.limit
        kept = self.book.kept(reading.wanted, head)
        assert sheet.oldest == (kept[0] if kept else None)
        assert sheet.end == (self.book.ended and sheet.next_index >= head)
        frames = [*sheet.events]
        if sheet.reset is not None:
            frames.append(Told(RESET, sheet.reset, sheet.reset["resume_index"]))
        for told in before_cut(frames, cut):
            reading.take(told, head, head, asked)
        if cut is not None:
            return True
        if not reading.over:
            reading.take(Told("", None, sheet.next_index), head, head)
            if sheet.end:
                reading.nothing_more(head)
            elif sheet.next_index >= head and sheet.reset is None:
                reading.caught_up(head)
                return False
            assert frames or sheet.end, "a page brings something, or there is nothing"
        assert sheet.next_index == reading.place
        return True


def before_cut(frames: list[T], cut: int | None) -> list[T]:
    """Return what comes through: all, or as many as `cut` says, counted round, so that every cut is equally likely."""
    return frames if cut is None else frames[: cut % (len(frames) + 1)]
