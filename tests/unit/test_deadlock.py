"""Deadlocks: jobs that wait for jobs that can never begin."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from apothic.control.deadlock import Waits, deadlocked
from apothic.control.plan import plan
from apothic.store.picture import Host, Picture, Seat, Standing, Wanted


def seat(container: str, version: int, taken: int = 1) -> Seat:
    return Seat(
        container=container, agent="agent", version=version, app="app", state="ready", connected=True, slots=1,
        taken=taken, cpu=1.0, memory_mb=100, keep_warm_s=600.0, idle_since=None if taken else 0.0, current=True,
    )  # fmt: skip


def wanted(version: int, max_containers: int = 1) -> Wanted:
    return Wanted(version, "app", 1, 1, 1, max_containers, 1.0, 100)


def standing(
    *, leased: dict[str, int], queued: dict[str, int], cpu: float = 2.0, limit: int = 1, idle: tuple[int, ...] = ()
) -> Standing:
    seats = [seat(f"container of {job}", version) for job, version in leased.items()]
    seats += [seat(f"idle {version}", version, taken=0) for version in idle]
    asked = tuple(wanted(version, limit) for version in sorted(set(queued.values())))
    return Standing(Picture(0.0, asked, tuple(seats), (Host("agent", cpu, 10_000),)), leased, queued)


def test_a_job_that_waits_for_its_own_only_slot_is_deadlocked() -> None:
    stand = standing(leased={"parent": 1}, queued={"child": 1})

    assert deadlocked({"parent": {"child"}}, stand, plan) == ["child"]


def test_a_job_that_only_submitted_another_is_not() -> None:
    stand = standing(leased={"parent": 1}, queued={"child": 1})

    assert deadlocked({}, stand, plan) == []


def test_a_slot_held_by_a_job_that_waits_for_nothing_will_be_free() -> None:
    stand = standing(leased={"parent": 1, "busy": 2}, queued={"child": 2})

    assert deadlocked({"parent": {"child"}}, stand, plan) == []


def test_a_chain_over_all_of_the_machine_is_deadlocked_at_its_leaf() -> None:
    stand = standing(leased={"a": 1, "b": 1}, queued={"c": 1}, limit=9)

    assert deadlocked({"a": {"b"}, "b": {"c"}}, stand, plan) == ["c"]


def test_two_chains_that_hold_each_others_slots_are_deadlocked() -> None:
    stand = standing(leased={"a": 1, "b": 2}, queued={"x": 2, "y": 1})

    assert deadlocked({"a": {"x"}, "b": {"y"}}, stand, plan) == ["x", "y"]


def test_room_that_an_idle_container_would_make_counts() -> None:
    stand = standing(leased={"parent": 1}, queued={"child": 2}, cpu=2.0, idle=(3,))

    assert deadlocked({"parent": {"child"}}, stand, plan) == []


def test_waiting_for_one_of_many_moves_when_one_of_them_does() -> None:
    stand = standing(leased={"parent": 1, "other": 2}, queued={"child": 1})

    assert deadlocked({"parent": {"child", "other"}}, stand, plan) == []


def test_what_has_ended_or_is_unknown_holds_nobody_up() -> None:
    stand = standing(leased={"parent": 1}, queued={})

    assert deadlocked({"parent": {"gone"}}, stand, plan) == []


@given(st.integers(1, 4), st.integers(0, 4))
def test_a_chain_of_one_function_is_deadlocked_exactly_when_it_has_no_slot_left(limit: int, depth: int) -> None:
    depth = min(depth, limit)
    chain = [f"job {n}" for n in range(depth + 1)]
    stand = standing(leased=dict.fromkeys(chain[:-1], 1), queued={chain[-1]: 1}, cpu=100.0, limit=limit)
    waits = {job: {behind} for job, behind in pairwise(chain)}

    assert bool(deadlocked(waits, stand, plan)) == (depth == limit)


def test_waits_are_known_while_the_request_is_open_and_counted() -> None:
    waits = Waits()

    with waits.on("a", ["x", "y"]), waits.on("a", ["x"]), waits.on(None, ["z"]):
        assert waits.now() == {"a": {"x", "y"}}
    assert waits.now() == {}
