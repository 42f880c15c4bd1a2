"""Every edge of resuming: cursors around the oldest and the newest event, every filter, and a trim at every moment."""

from __future__ import annotations

from itertools import combinations

from streamplay import Ground, Played
from streamreaders import Reader

from apothic.protocol.events import STORED

TRIMS = ("before", "in mid-read", "after")
FILTERS = [types for size in range(len(STORED) + 1) for types in combinations(STORED, size)]


async def check_edges(ground: Ground, kind: type[Reader], trim: str, *, ends: bool) -> int:
    """Read one job from each edge with each filter; return how many readers there were.

    The job has restarted its items. With the trim it loses lines and items of either attempt, and ends if it `ends`.
    """
    played = Played(ground, 5, "restart", 1)
    await played.submit()
    await played.say("lilil")
    await played.end("", "raised")
    await played.say("li")
    if trim == "before":
        await _trim(played, ends)
    readers = [kind(played, types, start, 2) for types in FILTERS for start in edges(played, types)]
    for reader in readers:
        if trim == "in mid-read":
            await reader.advance(2)
        if trim == "after":
            await reader.finish()
        await reader.leave()
    if trim != "before":
        await _trim(played, ends)
    for reader in readers:
        await reader.finish()
        assert reader.reading.over == ends
        await reader.leave()
    assert sum(reader.reading.tally["window_rotated"] for reader in readers) > 10
    assert sum(reader.reading.tally["attempt_restarted"] for reader in readers) > 10
    await played.conclude()
    return len(readers)


def edges(played: Played, types: tuple[str, ...]) -> list[int]:
    """Return the cursors from two below the oldest event of the types to one above it, and those around the head."""
    head = played.book.head
    oldest = (played.book.kept(types or STORED, head) or [head])[0]
    return sorted({at for at in (*range(oldest - 2, oldest + 2), *range(head - 1, head + 2)) if at >= -1})


async def _trim(played: Played, ends: bool) -> None:
    await played.say("lllliiil")
    await (played.end("lil", "done") if ends else played.say("lil"))
