"""An answer's head and body leave together; a head that has no body yet does not wait for one."""

from __future__ import annotations

import asyncio
from typing import Any

from apothic.joined import Joined


class Paper(asyncio.Transport):
    """A transport that notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_over = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def writelines(self, pieces: Any) -> None:
        self.written.append(b"".join(pieces))

    def close(self) -> None:
        self.is_over = True

    def is_closing(self) -> bool:
        return self.is_over


async def test_a_head_and_its_body_are_one_write() -> None:
    paper = Paper()
    joined = Joined(paper, asyncio.get_running_loop())
    joined.hold()
    joined.write(b"head ")
    joined.write(b"body")
    await asyncio.sleep(0)
    assert paper.written == [b"head body"]
    joined.write(b"more")
    assert paper.written == [b"head body", b"more"]


async def test_a_head_alone_leaves_with_the_next_round() -> None:
    paper = Paper()
    joined = Joined(paper, asyncio.get_running_loop())
    joined.hold()
    joined.write(b"head")
    assert paper.written == []
    await asyncio.sleep(0)
    assert paper.written == [b"head"]
    joined.write(b"event")
    assert paper.written == [b"head", b"event"]


async def test_a_head_leaves_before_the_end_and_not_after_it() -> None:
    for closes_first in (False, True):
        paper = Paper()
        joined = Joined(paper, asyncio.get_running_loop())
        joined.hold()
        joined.write(b"head")
        (paper if closes_first else joined).close()
        await asyncio.sleep(0)
        assert paper.written == ([] if closes_first else [b"head"])
        assert joined.is_closing()
