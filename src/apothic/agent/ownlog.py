"""What a container prints that belongs to no job: told as its own, its end kept for the failure of its start."""

from __future__ import annotations

from apothic.agent.frames import Stream
from apothic.agent.lines import Assembler, Tail
from apothic.agent.outbox import Outbox
from apothic.clock import Clock
from apothic.protocol.session import ContainerSaid, Line


class OwnLog:
    """The log of one container."""

    def __init__(self, container: str, outbox: Outbox, clock: Clock) -> None:
        self.tail = Tail()
        self._container = container
        self._outbox = outbox
        self._clock = clock
        self._sources: dict[Stream, Assembler] = {"stdout": Assembler("stdout"), "stderr": Assembler("stderr")}
        self._told = 0

    def feed(self, stream: Stream, data: bytes) -> None:
        """Take bytes, and tell the lines that they complete."""
        self._tell(self._sources[stream].feed(data, self._clock.now()))

    def finish(self) -> None:
        """Tell what is unfinished."""
        for source in self._sources.values():
            self._tell(source.finish(self._clock.now()))

    def _tell(self, lines: list[Line]) -> None:
        if lines:
            self.tail.add(lines)
            self._outbox.own(ContainerSaid(container=self._container, first=self._told, lines=lines))
            self._told += len(lines)
