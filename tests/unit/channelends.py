"""A container's channel whose other end is read by the test."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apothic.agent.channel import Channel
from apothic.agent.frames import Items, Run, news
from apothic.agent.items import Flow
from apothic.agent.window import Window
from apothic.clock import ManualClock
from apothic.protocol.session import Packed
from apothic.protocol.values import Envelope

RUN = Run(
    job="job_1", attempt=1, input=Packed(encoding="json", data=b"{}"), accept=["json"], job_token="", base_url=""
)  # fmt: skip
KEY = ("job_1", 1)


class Ends:
    """Both ends of a container's socket; the agent's is read by the test."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(10)
        self.window = Window()
        self.channel = Channel(theirs, self.window, ManualClock())  # it stands still: every item waits for company
        self._frames = news()
        self._waiting: list[Any] = []

    def close(self) -> None:
        self.ours.close()
        self.channel.close()

    def flow(self, pause: Callable[[], Any] | None = None, wake: Callable[[], None] = lambda: None) -> Flow:
        return Flow(RUN, self.channel, self.window, pause or self.channel.attend, wake)

    def frame(self) -> Any:
        """Return the next frame that was sent; wait for it."""
        while not self._waiting:
            self._waiting += self._frames.feed(self.ours.recv(1 << 20))
        return self._waiting.pop(0)

    def items(self, count: int) -> list[Items]:
        """Return the next frames of items, with at least so many in all."""
        frames: list[Items] = []
        while sum(len(frame.values) for frame in frames) < count:
            frames.append(self.frame())
        return frames


def item(n: int, size: int = 1, file: Path | None = None) -> Envelope:
    if file is not None:
        return Envelope(Packed(encoding="pickle", sha256="0" * 64, size=size), file)
    return Envelope(Packed(encoding="json", data=str(n).encode(), size=size))


def numbers(frames: list[Items]) -> list[int]:
    values = [int(value.data or b"-1") for frame in frames for value in frame.values]
    firsts = [frame.first for frame in frames]
    assert firsts == [sum(len(frame.values) for frame in frames[:n]) for n in range(len(frames))]
    return values
