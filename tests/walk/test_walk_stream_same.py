"""Server-sent events and polling bring the same: events, resets and snapshots, in one order, with the same data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from followrig import Follower
from streammodel import Told
from streamplay import Played
from walkreaders import StageGround
from walkrig import Stage

from apothic.control.streams import BEAT_S
from apothic.protocol.events import END, RESET, SNAPSHOT

# What a job does, step by step: what its attempt says ("lli" is two lines and an item), and how the attempt ends.
SCENARIOS: dict[str, tuple[str, int, list[tuple[str, str]]]] = {
    "nothing said": ("none", 5, [("", "done")]),
    "lines and items": ("none", 5, [("lil", ""), ("il", "done")]),
    "still running": ("none", 5, [("lil", "")]),
    "a window that rotates": ("none", 2, [("lilil", ""), ("iil", ""), ("l", "done")]),
    "a window of one": ("none", 1, [("lilil", ""), ("iil", "")]),
    "lines that flood": ("none", 3, [("i", ""), ("llllll", ""), ("llllll", ""), ("i", "done")]),
    "a failure": ("none", 3, [("lli", "raised")]),
    "a second attempt before any item": ("none", 3, [("ll", "raised"), ("li", "done")]),
    "a replay": ("replay", 3, [("lii", "raised"), ("iili", "done")]),
    "a replay of too little": ("replay", 3, [("lii", "raised"), ("i", "done")]),
    "a restart": ("restart", 5, [("lii", "raised"), ("li", ""), ("i", "done")]),
    "restarts and rotation": ("restart", 2, [("iiii", "raised"), ("illi", "drained"), ("iii", "")]),
    "a restart without an item yet": ("restart", 2, [("lii", "raised")]),
    "cancelled": ("none", 3, [("lii", ""), ("", "cancel"), ("l", "lost")]),
}
WITH_RESETS = {
    "a window that rotates", "a window of one", "lines that flood", "a restart", "restarts and rotation",
    "a restart without an item yet",
}  # fmt: skip
WISHES: dict[str, dict[str, Any]] = {
    "all": {},
    "small pages": {"limit": 2},
    "pages of one": {"limit": 1, "after": 1},
    "items": {"type": ["job.stream_item"], "limit": 2},
    "lines and results": {"type": ["job.log", "job.result"]},
    "the end alone": {"type": ["job.end"]},
    "from the middle": {"after": 4},
    "from behind the end": {"after": 100},
    "a snapshot": {"snapshot": 1},
    "a snapshot and what was missed": {"snapshot": 1, "after": 0, "limit": 2},
}


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[StageGround]:
    made = StageGround(tmp_path)
    await made.furnish()
    yield made
    await made.close()
    assert made.broken() == {}


async def polled(stage: Stage, job: str, wish: dict[str, Any]) -> tuple[list[Told], int]:
    """Read one page after the other, until one brings nothing; return also where to go on from."""
    found: list[Told] = []
    ask = {"limit": 1000} | wish
    while True:
        page = await stage.got(f"GET /v1/jobs/{job}/events", query=ask)
        told = _told(page)
        found += told
        if page["end"] or not told:
            return found, page["next_index"]
        # Behind a reset, who watches has to see afresh how the job stands; a stream does so by itself.
        again = "snapshot" in wish and page["reset"] is not None
        ask = {**ask, "after": page["next_index"], "snapshot": int(again)}


def _told(page: Any) -> list[Told]:
    found = [Told(SNAPSHOT, page["snapshot"], None)] if page["snapshot"] is not None else []
    found += [Told(one["event"], one["data"], one["index"]) for one in page["events"]]
    if page["reset"] is not None:
        found.append(Told(RESET, page["reset"], page["reset"]["resume_index"]))
    return found


async def followed(stage: Stage, reader: Follower, count: int) -> list[Told]:
    """Read so many frames, and what else comes up to a sign of life: by then the server has looked at all there is."""
    found: list[Told] = []
    while len(found) < count and (block := await reader.next()) is not None:
        found.append(Told(*block))
    await stage.clock.advance(BEAT_S)
    while (block := await stage.settled(asyncio.ensure_future(reader.next()), 1.0)) is not None and block.event:
        found.append(Told(*block))
    return found


async def step(played: Played, said: str, how: str) -> None:
    if how == "cancel":
        await played.cancel()
    else:
        await (played.end(said, how) if how else played.say(said))


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_both_transports_bring_the_same(ground: StageGround, scenario: str) -> None:
    stream, window, steps = SCENARIOS[scenario]
    played = Played(ground, window, stream, 2)
    await played.submit()
    for said, how in steps:
        await step(played, said, how)
    for name, wish in WISHES.items():
        pages, _ = await polled(ground.stage, played.id, wish)
        reader = await Follower(ground.stage, played.id, **wish).open()
        greeted = reader.status == 200 and await reader.next()
        assert (await followed(ground.stage, reader, len(pages)) if greeted else []) == pages, name
        await reader.cut()
        kinds = [told.event for told in pages]
        assert kinds.count(END) == (played.book.ended and name not in ("from behind the end", "a snapshot")), name
        assert (SNAPSHOT in kinds[:1]) == ("snapshot" in wish), name
        assert name != "all" or (RESET in kinds) == (scenario in WITH_RESETS)


@pytest.mark.parametrize("wish", ["all", "items", "lines and results"])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_both_transports_bring_the_same_while_it_happens(ground: StageGround, scenario: str, wish: str) -> None:
    stream, window, steps = SCENARIOS[scenario]
    played = Played(ground, window, stream, 2)
    await played.submit()
    reader = await Follower(ground.stage, played.id, **WISHES[wish]).open()
    assert await reader.next() == ("", None, -1)
    after = -1
    for said, how in [("", ""), *steps]:
        await step(played, said, how)
        pages, after = await polled(ground.stage, played.id, WISHES[wish] | {"after": after})
        assert await followed(ground.stage, reader, len(pages)) == pages
    await reader.cut()
