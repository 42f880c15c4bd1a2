"""Listen and ring. A ring says that something has happened, never what: whoever hears it looks into the store."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Bell:
    """What one listener hears: an event, and the topics that rang since it last looked."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()
        self._topics: set[str] = set()

    def ring(self, topic: str) -> None:
        """Note the topic and wake the listener."""
        self._topics.add(topic)
        self.rung.set()

    def take(self) -> set[str]:
        """Return what rang, and listen anew."""
        topics, self._topics = self._topics, set()
        self.rung.clear()
        return topics


class Hub:
    """Who listens to what. Lives on one event loop; holds no truth, and may be lost at any moment."""

    def __init__(self) -> None:
        self._bells: dict[str, set[Bell]] = {}
        self._rings: dict[str, int] = {}
        self._count = itertools.count()

    def ring(self, topic: str) -> None:
        """Wake everyone who listens to the topic."""
        if topic in self._bells:
            self._rings[topic] = next(self._count)
            for bell in self._bells[topic]:
                bell.ring(topic)

    def rings(self, topic: str) -> int:
        """Return the number of a topic's newest ring, or of when somebody came to listen to it.

        No number comes twice, so between two equal answers nothing happened, not even while nobody listened.
        """
        return self._rings[topic]

    def listeners(self, topic: str) -> int:
        """Return how many listen to a topic."""
        return len(self._bells.get(topic, ()))

    @contextmanager
    def listen(self, topics: Iterable[str]) -> Iterator[Bell]:
        """Give a bell for these topics. Listen first, look second: what comes in between still rings."""
        bell, topics = Bell(), list(topics)
        for topic in topics:
            if topic not in self._bells:
                self._bells[topic], self._rings[topic] = set(), next(self._count)
            self._bells[topic].add(bell)
        try:
            yield bell
        finally:
            for topic in topics:
                bells = self._bells.get(topic)
                if bells is not None:
                    bells.discard(bell)
                    if not bells:
                        del self._bells[topic], self._rings[topic]

    def __repr__(self) -> str:
        return f"<Hub {sum(map(len, self._bells.values()))} listening>"
