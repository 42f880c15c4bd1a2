"""What a container was sent beyond the job that it runs, and may begin without a word from its agent."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

from apothic.agent.attempt import Attempt
from apothic.agent.process import Process
from apothic.agent.site import Site
from apothic.agent.turns import Leaves

# More than a function of any use does within the time that a control plane takes for one commit.
MOST = 256
MOST_BYTES = 1024 * 1024  # of inputs


class Ahead:
    """The agent's side of it. The leaves lie at `path`. It is `open` once the container says that it queues."""

    def __init__(self, path: Path, process: Process, site: Site) -> None:
        self.path = path
        self.open = False
        self._process = process
        self._site = site
        self._leaves = Leaves(path)
        self._sent: deque[Attempt] = deque()
        self._size = 0
        self._current: Attempt | None = None

    def __len__(self) -> int:
        return len(self._sent)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self._sent)

    def send(self, waiting: deque[Attempt], running: dict[str, Attempt]) -> None:
        """Let what waits begin as soon as what runs has ended.

        Not behind a job that is stopped: it may leave processes, and then its container is no place for another.
        """
        if self.open and waiting and running and all(attempt.stop is None for attempt in running.values()):
            runs = [attempt.frame(self._site.base_url) for attempt in self._take(waiting)]
            if runs:
                self._process.send(*runs)

    def _take(self, waiting: deque[Attempt]) -> list[Attempt]:
        taken: list[Attempt] = []
        while waiting and waiting[0].is_here and len(self._sent) + len(taken) < MOST and self._size < MOST_BYTES:
            taken.append(waiting.popleft())
            self._size += taken[-1].size
        for attempt, turn in zip(taken, self._leaves.give(len(taken)), strict=True):
            attempt.turn = turn
        self._sent += taken
        return taken

    def advance(self) -> Attempt | None:
        """Return whose turn it is when the one before has ended."""
        if not self._sent:
            return None
        self._current = self._sent.popleft()
        self._size -= self._current.size
        return self._current

    def withdraw(self, waiting: deque[Attempt], running: dict[str, Attempt]) -> None:
        """Let all that have not begun wait again."""
        if not self._sent and self._current is None:
            return
        turns = self._leaves.withdraw()
        back = [one for one in (self._current, *self._sent) if one is not None and one.turn in turns]
        self._sent = deque(one for one in self._sent if one.turn not in turns)
        self._size = sum(one.size for one in self._sent)
        self._current = None
        for one in reversed(back):
            one.turn = 0
            if one.given.job in running:  # its turn has come already, so it goes without
                self._process.send(one.frame(self._site.base_url))
            else:
                waiting.appendleft(one)

    def close(self) -> None:
        """Forget the leaves."""
        self._leaves.close()
