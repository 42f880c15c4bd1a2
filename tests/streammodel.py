"""A job's stream written down a second time: all that ever happened in it, and what a reader may and must be told.

Nothing here looks at the store. Whoever makes a job move keeps its `Book`; a `Reading` judges, frame by frame, what one
reader was told over as many connections as it took.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from apothic.protocol.events import END, ITEM, NUMBERED, RESET, STATUS, STORED


class Told(NamedTuple):
    """One frame. Without an `event` it is a bookmark: all that matches up to `id` was told."""

    event: str
    data: Any
    id: int | None


@dataclass(frozen=True)
class Entry:
    """One event that was appended, and what its data must say at least."""

    index: int
    kind: str
    says: dict[str, Any]


class Book:
    """All that was ever appended to one job, and at which head it was gone."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.entries: list[Entry] = []
        self.restarts: list[int] = []  # where items begin again at 0
        self._gone: dict[int, int] = {}

    @property
    def head(self) -> int:
        return len(self.entries) - 1

    @property
    def ended(self) -> bool:
        return self.ended_at(self.head)

    def write(self, event: str, **says: Any) -> int:
        """Append an event; return its index."""
        self.entries.append(Entry(len(self.entries), event, says))
        return self.head

    def trim(self) -> None:
        """Let go of the oldest of each type, as the transaction does that has just appended."""
        for kind in NUMBERED:
            for index in self.kept({kind}, self.head)[: -self.window]:
                self._gone[index] = self.head

    def count(self, kind: str) -> int:
        return sum(entry.kind == kind for entry in self.entries)

    # --- how it stood when `head` was the newest index

    def ended_at(self, head: int) -> bool:
        return head >= 0 and self.entries[head].kind == END

    def is_gone(self, index: int, head: int) -> bool:
        return self._gone.get(index, math.inf) <= head

    def between(self, wanted: Iterable[str], after: int, upto: int) -> list[int]:
        """Return the places of all events of the types behind `after` up to `upto`, kept or not."""
        return [entry.index for entry in self.entries[after + 1 : upto + 1] if entry.kind in wanted]

    def kept(self, wanted: Iterable[str], head: int) -> list[int]:
        return [index for index in self.between(wanted, -1, head) if not self.is_gone(index, head)]

    def lost(self, wanted: Iterable[str], head: int) -> int:
        """Return the highest place of the types that is gone, or -1."""
        return max((index for index in self.between(wanted, -1, head) if self.is_gone(index, head)), default=-1)

    def reset(self, wanted: frozenset[str], requested: int, head: int) -> dict[str, Any]:
        """Return what every reset says that is made at `head` for a reader who stands at `requested`."""
        kept = self.kept(wanted, head)
        numbered = [kind for kind in NUMBERED if kind in wanted and self.kept({kind}, head)]
        first = {kind: self.entries[self.kept({kind}, head)[0]] for kind in numbered}
        status = self.entries[self.between({STATUS}, -1, head)[-1]].says
        return {
            "head_index": head,
            "oldest_index": kept[0] if kept else None,
            "retained_from": {kind: first[kind].says[NUMBERED[kind]] for kind in numbered},
            "trimmed": {kind: mark for kind in numbered if (mark := self.lost({kind}, head)) > requested},
            "status": status["status"],
            "attempt": status["attempt"],
        }


class Reading:
    """What one reader was told behind `start`. Raises `AssertionError` at the first frame that cannot be right.

    `place` is how far all was told or declared; `cursor` is what the next connection asks for. They differ in one case:
    the reset that a restarted attempt opens has the index of the status event before it, so a reader that is cut off
    between the two goes on from one below (decided: "a page ends at a reset").
    """

    def __init__(self, book: Book, types: Iterable[str], start: int) -> None:
        self.book = book
        self.types = tuple(types)
        self.wanted = frozenset(self.types or STORED) | {END}
        self.over = False
        self.tally: Counter[str] = Counter()
        self._begin(start)

    def _begin(self, place: int) -> None:
        self.place = self.cursor = place
        self._owed: list[int] = []  # lost, passed over, and not declared yet
        self._opened = place  # restarts up to here were told, or lie before the reader
        self._floor = place  # no page of this connection was asked from before
        self._again = False

    def connect(self) -> int:
        """Begin a connection; return the cursor to ask with."""
        self._floor = self.cursor
        self._again = self.cursor < self.place
        return self.cursor

    def take(self, told: Told, since: int, upto: int, asked: int | None = None) -> None:
        """Take a frame that was read while the head was at least `since` and at most `upto`.

        `asked` is the cursor that its page was asked with, where that is known exactly.
        """
        assert not self.over, f"{told} came behind the end"
        self.tally[told.data["reason"] if told.event == RESET else told.event] += 1
        assert not self._again or (told.event, told.id) == (STATUS, self.place), f"{told} came first, not the status"
        if told.event == "":
            assert told.id is not None
            self._bookmark(told.id, upto)
        elif told.event == RESET:
            assert told.id is not None
            self._reset(told.id, told.data, since, upto, asked)
        else:
            assert told.id is not None and told.id <= upto
            self._event(told.event, told.id, told.data, since, upto)

    def nothing_more(self, head: int) -> None:
        """The reader heard that nothing follows ever."""
        assert self.book.ended_at(head) and self.place >= head, f"it was sent away at {self.place} of {head}"
        assert self._owed == [], f"{self._owed} were never declared"
        self.over = True

    def caught_up(self, head: int) -> None:
        """The reader has been told all that there was at `head`."""
        missed = self.book.between(self.wanted, self.place, head)
        assert missed == [], f"{missed} were never told"
        assert self._owed == [], f"{self._owed} were never declared"
        self._no_restart_before(head + 1)

    # --- the frames

    def _event(self, kind: str, index: int, data: Any, since: int, upto: int) -> None:
        entry = self.book.entries[index]
        assert kind == entry.kind and entry.says.items() <= data.items(), f"{entry} was told as {kind} {data}"
        assert kind in self.wanted, f"{kind} was not asked for"
        if self._again:
            self._again = False
            return
        assert index > self.place, f"{index} was told at {self.place}: again, or out of order"
        assert not self.book.is_gone(index, since), f"{index} was told when it was gone"
        self._no_restart_before(index)
        self._owed += self._missing(index - 1, upto)
        self.place = self.cursor = index
        if kind == STATUS and data["status"] == "starting" and data["attempt"] > 1:
            self.cursor = index - 1
        if kind == END:
            assert self._owed == [], f"{self._owed} were not declared before the end"
            self.over = True

    def _bookmark(self, place: int, upto: int) -> None:
        if place != self.place:
            assert self.place < place <= upto, f"a bookmark of {place} at {self.place}"
            self.caught_up(place)
        else:
            self._no_restart_before(place + 1)
        self.place = self.cursor = place

    def _reset(self, place: int, data: dict[str, Any], since: int, upto: int, asked: int | None) -> None:
        requested, head, reason = data["requested_index"], data["head_index"], data["reason"]
        assert since <= head <= upto, f"a head of {head}, between {since} and {upto}"
        assert requested == asked if asked is not None else requested >= self._floor, f"requested {requested}"
        assert data["resume_index"] == place
        for name, said in self.book.reset(self.wanted, requested, head).items():
            assert data[name] == said, f"{name} is {data[name]}, and should be {said}"
        if reason == "cursor_ahead":
            assert place == -1 and requested == self.place > head, f"{requested} is not ahead of {head}"
            assert not self.book.ended_at(head), "a job that has ended has simply nothing more"
            self._begin(-1)
            return
        assert self.book.between(self.wanted, self.place, requested) == [], "what was passed over is not requested"
        assert requested < place >= self.place, f"a reset at {place}, for one who stands at {self.place}"
        lost = self._owed + self._missing(place, head)
        if reason == "window_rotated":
            assert place == self.book.lost(self.wanted, head), "it is not where the loss ends"
            assert lost != [], "a reset without a loss"
            self._no_restart_before(place)
        else:
            assert reason == "attempt_restarted" and ITEM in self.wanted
            assert place == min(self._restarts(), default=None), "no attempt was restarted here"
            assert not requested < self.book.lost(self.wanted, head) < place, "a loss before it comes first"
            self._opened = place
        self.place = self.cursor = self._floor = place
        self._owed = []

    def _missing(self, upto: int, head: int) -> list[int]:
        """Return what was passed over up to a place; all of it must be gone."""
        missing = self.book.between(self.wanted, self.place, upto)
        there = [index for index in missing if not self.book.is_gone(index, head)]
        assert there == [], f"{there} were there and were passed over"
        return missing

    def _restarts(self) -> list[int]:
        return [index for index in self.book.restarts if index > self._opened] if ITEM in self.wanted else []

    def _no_restart_before(self, place: int) -> None:
        untold = [index for index in self._restarts() if index < place]
        assert untold == [], f"the restarts at {untold} were never told"
