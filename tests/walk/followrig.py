"""A reader of server-sent events on the in-process application: frame by frame, and cut off after any of them."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple
from urllib.parse import urlencode

from walkrig import HOST, PATIENCE_S, Answer, Stage, scope_of

MOST = 10_000  # chunks that wait to be read; a server that sends without end is told that there is no room


class Told(NamedTuple):
    """One block of a stream, as a client of the standard reads it. A comment has nothing at all."""

    event: str
    data: Any
    id: int | None


class Follower:
    """One connection. `takes` is cleared to let it take nothing more, as a reader does that has stopped reading.

    `stuck` is set while the server waits for it to take something.
    """

    def __init__(
        self, stage: Stage, job: str, *, of: str = "jobs", headers: dict[str, str] | None = None, **query: Any
    ) -> None:
        sent = {"host": HOST, "accept": "text/event-stream", "authorization": f"Bearer {stage.key}"} | (headers or {})
        sent = {name: text for name, text in sent.items() if text}
        text = urlencode({name: value for name, value in query.items() if value is not None}, doseq=True)
        self.scope = scope_of("http", "GET", f"/v1/{of}/{job}/events", sent, text)
        self.body = b""
        self.aborted = False
        self.scope["state"] = {"abort": self._abort}
        self.takes = asyncio.Event()
        self.takes.set()
        self.stuck = asyncio.Event()
        self.status = 0
        self.headers: dict[str, str] = {}
        self._app = stage.control.http
        self._gone = asyncio.Event()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(MOST)
        self._held = b""
        self._task: asyncio.Task[None] | None = None

    def _abort(self) -> None:
        self.aborted = True

    async def open(self) -> Follower:
        """Ask, and wait for the head of the answer."""
        started = asyncio.Event()
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": self.body, "more_body": False}
            await self._gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            self.stuck.set()
            await self.takes.wait()
            self.stuck.clear()
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                started.set()
                return
            if message.get("body"):
                self._chunks.put_nowait(message["body"])
            if not message.get("more_body", False):
                self._chunks.put_nowait(None)

        self._task = asyncio.create_task(self._app(self.scope, receive, send))
        self._task.add_done_callback(lambda _: started.set())
        await asyncio.wait_for(started.wait(), PATIENCE_S)
        return self

    async def refused(self) -> Answer:
        """Return the answer to a request that was no stream."""
        await self.open()
        body = b""
        while (chunk := await asyncio.wait_for(self._chunks.get(), PATIENCE_S)) is not None:
            body += chunk
        return Answer(self.status, self.headers, body)

    async def next(self) -> Told | None:
        """Return the next block; `None` when the server has closed the stream."""
        while b"\n\n" not in self._held:
            chunk = await asyncio.wait_for(self._chunks.get(), PATIENCE_S)
            if chunk is None:
                assert self._held == b"", "a stream ends behind a whole block"
                return None
            self._held += chunk
        block, _, self._held = self._held.partition(b"\n\n")
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line)
        data = json.loads(fields[b"data"]) if b"data" in fields else None
        return Told(fields.get(b"event", b"").decode(), data, int(fields[b"id"]) if b"id" in fields else None)

    async def quiet(self) -> bool:
        """Tell whether nothing waits to be read, after the server has had its turns."""
        for _ in range(20):
            await asyncio.sleep(0.001)
        return self._chunks.empty() and b"\n\n" not in self._held

    async def rest(self) -> list[Told]:
        """Return all blocks to the end of the stream."""
        found = []
        while (told := await self.next()) is not None:
            found.append(told)
        return found

    async def cut(self) -> None:
        """Leave."""
        self._gone.set()
        self.takes.set()
        assert self._task is not None
        await asyncio.wait_for(self._task, PATIENCE_S)
