"""The table of moves, and that the page for users shows exactly it."""

from __future__ import annotations

import re
from pathlib import Path

from apothic.protocol.lifecycle import ARROWS, CLAIMABLE, FINAL, LEASED, Move, Status, diagram

PAGE = Path(__file__).parents[2] / "docs" / "lifecycle.md"


def test_every_move_has_an_arrow() -> None:
    assert set(ARROWS) == set(Move)
    assert all(arrows for arrows in ARROWS.values())


def test_final_is_where_no_arrow_begins() -> None:
    assert FINAL == {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.TIMED_OUT}
    assert not [source for arrows in ARROWS.values() for source in arrows if source in FINAL]


def test_leased_is_what_a_container_holds() -> None:
    assert LEASED == {Status.STARTING, Status.RUNNING, Status.CANCELLING}
    assert CLAIMABLE == {Status.QUEUED, Status.RETRYING}
    assert LEASED | CLAIMABLE | FINAL == set(Status)
    assert not LEASED & FINAL and not LEASED & CLAIMABLE


def test_every_status_can_be_reached_and_every_job_can_end() -> None:
    after = {status: {row[status] for row in ARROWS.values() if status in row} for status in Status}

    def reach(status: Status) -> set[Status]:
        seen, todo = set(), [status]
        while todo:
            here = todo.pop()
            if here not in seen:
                seen.add(here)
                todo += after[here]
        return seen

    assert reach(Status.QUEUED) == set(Status)
    assert all(reach(status) & FINAL for status in Status)


def test_a_lease_is_only_taken_by_a_claim() -> None:
    for move, arrows in ARROWS.items():
        for source, target in arrows.items():
            assert (source not in LEASED and target in LEASED) == (move == Move.CLAIM), (move, source)


def test_what_is_being_cancelled_only_ends() -> None:
    targets = {row[Status.CANCELLING] for row in ARROWS.values() if Status.CANCELLING in row}
    assert targets == {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}


def test_the_page_shows_the_diagram() -> None:
    fences = re.findall(r"```mermaid\n(.*?)\n```", PAGE.read_text("utf-8"), re.DOTALL)
    assert fences == [diagram()]


def test_the_page_names_every_status() -> None:
    text = PAGE.read_text("utf-8")
    assert [status for status in Status if f"`{status}`" not in text] == []
