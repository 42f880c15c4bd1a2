"""How many jobs of a quick function may wait inside a container."""

from __future__ import annotations

from apothic.control.plan import plan
from apothic.store.pace import LARGEST_AHEAD, Pace
from apothic.store.picture import Host, Picture, Place, Seat, Wanted


def test_nothing_is_held_ahead_of_a_function_that_nobody_has_seen_run() -> None:
    assert Pace().ahead(1) == 0


def test_quick_functions_may_hold_many_and_slow_ones_none() -> None:
    pace = Pace()

    pace.note(1, 0.0001)
    pace.note(2, 0.005)
    pace.note(3, 0.5)

    assert pace.ahead(1) == LARGEST_AHEAD
    assert 0 < pace.ahead(2) < LARGEST_AHEAD
    assert pace.ahead(3) == 0


def test_a_function_that_kept_others_waiting_holds_none_until_it_is_quick_again() -> None:
    pace = Pace()
    pace.note(1, 0.0001)

    pace.slow(1)
    assert pace.ahead(1) == 0
    for _ in range(20):
        pace.note(1, 0.0001)

    assert pace.ahead(1) > 0


def _seat(container: str, taken: int, ahead: int) -> Seat:
    return Seat(
        container=container, agent="agent", version=1, app="app", state="ready", connected=True, slots=1, taken=taken,
        cpu=1.0, memory_mb=100, keep_warm_s=600.0, idle_since=None, current=True, ahead=ahead,
    )  # fmt: skip


def _placed(due: int, *seats: Seat) -> dict[str, int]:
    wanted = Wanted(1, "app", due, 1, 1, len(seats), 1.0, 100)
    counts: dict[str, int] = {}
    for step in plan(Picture(0.0, (wanted,), seats, (Host("agent", 8.0, 10_000),))):
        assert isinstance(step, Place)
        counts[step.container] = counts.get(step.container, 0) + step.count
    return counts


def test_free_slots_are_filled_before_anything_waits_ahead() -> None:
    assert _placed(2, _seat("a", 0, 10), _seat("b", 0, 10)) == {"a": 1, "b": 1}


def test_what_is_left_waits_ahead_up_to_the_limit() -> None:
    assert _placed(100, _seat("a", 0, 3), _seat("b", 2, 3)) == {"a": 4, "b": 2}


def test_a_slow_function_waits_in_the_queue() -> None:
    assert _placed(100, _seat("a", 1, 0)) == {}
