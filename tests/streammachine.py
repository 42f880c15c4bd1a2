"""Random lives of one job after the other, with readers of every kind beside it. A model judges what they are told."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from streamplay import ENDS, WINDOWS, Ground, Played
from streamreaders import Reader

from apothic.protocol.events import STORED
from apothic.store import stream

STEPS = 16  # of at most 31 s each: a server ends a connection by itself after eight minutes at the earliest
READERS = 4  # more of them would share the server's time, by its clock
CHUNK = 250  # histories that share a store and a seed
SAID = st.text("li", max_size=6)
MOVES = st.sampled_from(
    [
        "say",
        "raised",
        "raised",
        "lost",
        "drained",
        "done",
        "cancel",
        "lapse",
        "another server",
        "another server and agent",
    ]
)
FILTERS = st.sets(st.sampled_from(STORED)).map(sorted)
PLACES = st.sampled_from(["begin", "begin", "begin", "oldest", "head", "ahead"])
LIMITS = st.sampled_from([1, 2, 3, 1000])
CUTS = st.one_of(st.none(), st.integers(0, 11))
ACTS = st.sampled_from(["read", "read", "stop", "stop", "leave"])


class Histories(RuleBasedStateMachine):
    """One job on a ground that all histories of a chunk share. No rule is ever out of place, so that none is wasted."""

    ground: ClassVar[Ground]
    loop: ClassVar[asyncio.AbstractEventLoop]
    kinds: ClassVar[tuple[type[Reader], ...]]
    tally: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.played: Played | None = None
        self.readers: list[Reader] = []
        self.lives = 1

    def do(self, work: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(work)

    async def happens(self, work: Coroutine[Any, Any, Any]) -> None:
        """Let something happen to the job, and everyone who is connected hear of it."""
        await work
        for reader in self.readers:
            await reader.settle()

    @initialize(
        window=st.sampled_from(WINDOWS),
        stream=st.sampled_from(["none", "replay", "restart", "restart"]),
        retries=st.integers(0, 3),
        said=SAID,
    )
    def begins(self, window: int, stream: str, retries: int, said: str) -> None:
        self.played = Played(self.ground, window, stream, retries)
        self.do(self.played.submit())
        self.do(self.played.say(said))

    @rule(said=st.text("li", min_size=1, max_size=8))
    def says(self, said: str) -> None:
        self.moves("say", said)

    @rule(move=MOVES, said=SAID)
    def moves(self, move: str, said: str) -> None:
        played = self.played
        if move.startswith("another server") and self.lives == 1:
            self.lives += 1
            for reader in self.readers:
                self.do(reader.leave())
            self.do(self.happens(played.server_restarts(keeps=move == "another server")))
        elif played.held is None or move not in (*ENDS, "done", "cancel", "say"):
            self.do(self.happens(played.time_passes(31.0, renewed=move != "lapse")))
        elif move == "cancel":
            self.do(self.happens(played.cancel()))
        else:
            self.do(self.happens(played.say(said) if move == "say" else played.end(said, move)))

    @rule(kind=st.integers(0, 5), types=FILTERS, place=PLACES, by=st.integers(-2, 2), limit=LIMITS, cut=CUTS)
    def somebody_reads(
        self, kind: int, types: list[str], place: str, by: int, limit: int, cut: int | None
    ) -> None:  # fmt: skip
        if len(self.readers) == READERS:
            self.dismiss()
        head, kept = self.played.book.head, self.played.book.kept(types or STORED, self.played.book.head)
        start = {"begin": -1, "oldest": kept[0] + by if kept else by, "head": head + by, "ahead": head + 3 + by}[place]
        reader = self.kinds[kind % len(self.kinds)](self.played, types, max(start, -1), limit)
        self.readers.append(reader)
        self.do(reader.advance(cut))

    @rule(which=st.integers(0, READERS - 1), act=ACTS, cut=CUTS)
    def reads_on(self, which: int, act: str, cut: int | None) -> None:
        for reader in self.readers[which % max(len(self.readers), 1) :][:1]:
            self.do({"stop": reader.stop, "leave": reader.leave}[act]() if act != "read" else reader.advance(cut))

    def dismiss(self) -> None:
        """Let the first reader read all that there is, and go."""
        reader = self.readers[0]
        self.do(reader.finish())
        self.do(reader.leave())
        self.readers.pop(0)
        self.tally += reader.reading.tally + Counter(readings=1)

    def teardown(self) -> None:
        try:
            if sys.exception() is None:
                for reader in self.readers:
                    self.do(reader.finish())
                self.do(self.happens(self.played.conclude()))
                while self.readers:
                    self.dismiss()
        finally:
            for reader in self.readers:
                self.do(reader.leave())
            if self.played is not None:
                self.do(self.played.conclude())
            self.tally["histories"] += 1


def play(
    folder: Path, ground: type[Ground], kinds: tuple[type[Reader], ...], *, named: str, first: int, last: int
) -> None:  # fmt: skip
    """Play the histories from `first` to `last`, a chunk at a time, and tell how it goes."""
    begun, tally = time.monotonic(), Counter[str]()
    for start in range(first - first % CHUNK, last, CHUNK):
        count = min(CHUNK, last - start)
        # Pages end where they have enough events, and in every other chunk where they have enough bytes as well.
        with patch.object(stream, "PAGE_BYTES", 400 if start // CHUNK % 2 else stream.PAGE_BYTES):
            play_chunk(ground(folder / str(start)), f"{named}/{start}", count, {"kinds": kinds, "tally": tally})
        shutil.rmtree(folder / str(start))
        told = ", ".join(f"{number:,} {name or 'bookmarks'}" for name, number in sorted(tally.items()))
        print(f"SEED={named} START={start + count}: {told}, {time.monotonic() - begun:.0f} s", flush=True)


def play_chunk(ground: Ground, named: str, count: int, about: dict[str, Any]) -> None:
    """Play histories on one ground, by one seed."""
    ground.folder.mkdir()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(ground.furnish())
    machine = type("Histories", (Histories,), {"ground": ground, "loop": loop, **about})
    try:
        run_state_machine_as_test(
            seed(named)(machine),
            settings=settings(
                max_examples=count, stateful_step_count=STEPS, database=None, deadline=None,
                suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
                phases=(Phase.generate, Phase.shrink),
            ),
        )  # fmt: skip
    finally:
        loop.run_until_complete(ground.close())
        loop.close()
    assert ground.broken() == {}
