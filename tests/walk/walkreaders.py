"""The two transports as readers that the model judges, and the ground on which they stand: the whole control plane."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from followrig import Follower
from streammodel import Told
from streamplay import Ground, Played
from streamreaders import Pages, Reader, Sheet, before_cut
from walkrig import PATIENCE_S, Stage

from apothic.protocol.events import ITEM, RESET


class StageGround(Ground):
    """A control plane in this process. Where it is opened again, it goes on by the same clock."""

    async def _open(self) -> Any:
        self.stage = await Stage(self.folder / "data", self.clock).open()
        return self.stage.control

    async def close(self) -> None:
        await self.stage.close()


class Polled(Pages):
    """Asks for pages over HTTP."""

    async def fetch(self, after: int) -> Sheet:
        query = {"after": after, "type": list(self.reading.types), "limit": self.limit}
        page = await self.played.ground.stage.got(f"GET /v1/jobs/{self.played.id}/events", query=query)
        events = [Told(one["event"], one["data"], one["index"]) for one in page["events"]]
        return Sheet(
            events, page["reset"], page["next_index"], page["head_index"], page["end"], page["oldest_index"]
        )  # fmt: skip


class Followed(Reader):
    """Server-sent events. What has come lies in a queue until it is taken; who leaves loses the rest of it.

    A connection is read as soon as anything happens, so the model knows between which two heads the server has read
    it, unless the reader has stopped: then the server is held up, and goes on from there later.
    """

    def __init__(self, played: Played, types: Iterable[str], start: int, limit: int) -> None:
        super().__init__(played, types, start, limit)
        self._follower: Follower | None = None
        self._stopped = False

    async def advance(self, cut: int | None = None) -> None:
        await self._connect()
        self._take(cut)
        if cut is not None:
            await self.leave()

    async def settle(self) -> None:
        if self._follower is None:
            return
        if self._stopped:
            if self._due():
                await asyncio.wait_for(self._follower.stuck.wait(), PATIENCE_S)
            return
        while self._due():
            try:
                block = await self._follower.next()
            except TimeoutError:
                raise AssertionError(f"nothing came behind {self._seen}, at a head of {self.book.head}") from None
            if block is None:
                assert self.book.ended and self._seen == self.book.head, "the server has closed the stream"
                self._whole = True
                return
            told = Told(*block)
            if told.event != "" or told.id is not None:
                self._seen = told.id
                self._came.append((told, self._since, self.book.head))
            if told.event == RESET:
                self._declared = told.id
                self._ahead = False
        self._since = self.book.head

    async def stop(self) -> None:
        await self._connect()
        if self._follower is not None and not self._whole:
            self._stopped = not self._stopped
            (self._follower.takes.clear if self._stopped else self._follower.takes.set)()
            await self.settle()

    async def leave(self) -> None:
        if self._follower is not None:
            follower, self._follower, self._stopped = self._follower, None, False
            await follower.cut()

    async def finish(self) -> None:
        if self._stopped:
            await self.stop()
        await self._connect()
        self._take(None)
        if not self.reading.over:
            assert not self.book.ended, "the end was never told"
            self.reading.caught_up(self.book.head)

    async def _connect(self) -> None:
        """Be connected, unless there is nothing more to be told, and have all that is there."""
        if self._follower is None and not self.reading.over:
            asked = self.reading.connect()
            stage, head = self.played.ground.stage, self.book.head
            place: dict[str, Any] = {"after": asked}
            if asked % 2:  # what an EventSource does that has lost its connection
                place = {"after": -1, "headers": {"last-event-id": str(asked)}}
            follower = Follower(stage, self.played.id, type=list(self.reading.types), limit=self.limit, **place)
            await follower.open()
            if follower.status == 204:
                self.reading.nothing_more(head)
                return
            assert follower.status == 200 and await follower.next() == ("", None, asked)
            self._follower = follower
            self._seen = self._declared = asked
            self._since, self._came, self._whole = head, list[tuple[Told, int, int]](), False
            self._ahead = asked > head
        await self.settle()

    def _due(self) -> bool:
        """Tell whether something has still to come, by what the model knows."""
        if self._whole:
            return False
        if self._ahead or self.book.ended:
            return True
        head, wanted = self.book.head, self.reading.wanted
        restarts = [index for index in self.book.restarts if index > self._declared] if ITEM in wanted else []
        return bool(restarts) or bool(self.book.between(wanted, self._seen, head))

    def _take(self, cut: int | None) -> None:
        if self._follower is not None:
            came, self._came = self._came, []
            for told, since, upto in before_cut(came, cut):
                self.reading.take(told, since, upto)
