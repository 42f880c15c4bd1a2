"""When a look at the waiting versions' own containers is enough."""

from __future__ import annotations

import pytest

from apothic.control.plan import plan
from apothic.store.picture import Picture, Place, Seat, Wanted


def wanted(due: int, *, slots: int = 1, per_container: int = 1, version: int = 1) -> Wanted:
    return Wanted(
        version=version, app="a", due=due, slots=slots, per_container=per_container, max_containers=4, cpu=1.0,
        memory_mb=1,
    )  # fmt: skip


def seat(taken: int = 0, *, slots: int = 1, state: str = "ready", connected: bool = True, version: int = 1) -> Seat:
    return Seat(
        container=f"ctr_{taken}", agent="agt", version=version, app="a", state=state, connected=connected, slots=slots,
        taken=taken, cpu=1.0, memory_mb=1, keep_warm_s=1.0, idle_since=None, current=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "seats", "easy"),
    [
        (wanted(1), [seat()], True),
        (wanted(1), [], False),
        (wanted(1), [seat(1)], False),
        (wanted(2), [seat(), seat(1)], False),
        (wanted(2), [seat(), seat()], True),
        (wanted(1), [seat(state="starting")], False),
        (wanted(1), [seat(state="stopping")], False),
        (wanted(1), [seat(connected=False)], False),
        (wanted(1), [seat(version=2)], False),
        (wanted(4, slots=4, per_container=4), [seat(slots=4)], True),
        # Past what a container is meant for, a further one is wanted, though it has room.
        (wanted(1, slots=4, per_container=2), [seat(2, slots=4)], False),
        (wanted(2, slots=4, per_container=2), [seat(1, slots=4)], False),
        # One that is meant for more jobs than it runs at once does not begin them here.
        (wanted(2, slots=1, per_container=5), [seat()], False),
    ],
)
def test_a_picture_is_easy_when_all_that_is_due_fits_into_what_containers_are_meant_for(
    asked: Wanted, seats: list[Seat], easy: bool
) -> None:
    assert Picture(now=0.0, wanted=(asked,), seats=tuple(seats), hosts=()).is_easy is easy


def test_every_version_has_to_fit() -> None:
    both = (wanted(1), wanted(1, version=2))
    assert not Picture(now=0.0, wanted=both, seats=(seat(),), hosts=()).is_easy
    assert Picture(now=0.0, wanted=both, seats=(seat(), seat(version=2)), hosts=()).is_easy


def test_a_short_look_places_what_fits_and_nothing_else() -> None:
    seats = (seat(2, slots=4), seat(1, slots=4), seat(0, slots=4, state="starting"), seat(3, slots=4, version=2))
    asked = (wanted(2, slots=4, per_container=3),)
    told = plan(Picture(now=0.0, wanted=asked, seats=seats, hosts=(), whole=False))
    assert told == [Place(1, "ctr_1", 2)]
    assert plan(Picture(now=0.0, wanted=asked, seats=seats[:1], hosts=(), whole=False)) == [Place(1, "ctr_2", 1)]
