"""The plan: a picture in, steps out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import ceil
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from apothic.control.plan import could_ever, plan
from apothic.store.picture import Host, Picture, Place, Refuse, Seat, Start, Step, Stop, Wanted


def wanted(version: int = 1, due: int = 1, **more: Any) -> Wanted:
    known: dict[str, Any] = {
        "app": "a", "slots": 1, "per_container": 1, "max_containers": 10, "cpu": 1.0, "memory_mb": 100,
    }  # fmt: skip
    return Wanted(version=version, due=due, **known | more)


def seat(container: str = "c1", version: int = 1, **more: Any) -> Seat:
    known: dict[str, Any] = {
        "agent": "x", "app": "a", "state": "ready", "connected": True, "slots": 1, "taken": 0, "cpu": 1.0,
        "memory_mb": 100, "keep_warm_s": 600.0, "idle_since": 0.0, "current": True,
    }  # fmt: skip
    return Seat(container=container, version=version, **known | more)


def host(agent: str = "x", cpu: float = 4.0, memory_mb: int = 4096, gpus: tuple[str, ...] = ()) -> Host:
    return Host(agent, cpu, memory_mb, gpus)


def steps(*things: Wanted | Seat | Host, now: float = 10.0) -> list[Step]:
    return plan(
        Picture(
            now=now,
            wanted=tuple(each for each in things if isinstance(each, Wanted)),
            seats=tuple(each for each in things if isinstance(each, Seat)),
            hosts=tuple(each for each in things if isinstance(each, Host)),
        )
    )


def test_a_free_slot_takes_a_job() -> None:
    assert steps(wanted(), seat(), host()) == [Place(1, "c1", 1)]
    assert steps(wanted(due=9, max_containers=1), seat(slots=4, taken=1), host()) == [Place(1, "c1", 3)]


def test_ready_before_starting_and_the_emptier_first() -> None:
    seats = [seat("c1", state="starting", slots=2), seat("c2", slots=2, taken=1), seat("c3", slots=2)]
    assert steps(wanted(due=4, max_containers=3), *seats, host()) == [
        Place(1, "c3", 2), Place(1, "c2", 1), Place(1, "c1", 1),
    ]  # fmt: skip


def test_a_container_that_is_stopping_or_away_takes_nothing() -> None:
    one = wanted(max_containers=1)
    assert steps(one, seat(state="stopping"), host()) == [Start(1, "x", 1)]
    # One that still runs something, or that is away and may come back with its jobs, is one of those that it may have.
    assert steps(one, seat(state="stopping", taken=1), host()) == []
    assert steps(wanted(max_containers=2), seat(state="stopping", taken=1), host()) == [Start(1, "x", 1)]
    assert steps(one, seat(connected=False, agent="y"), host()) == []
    assert steps(one, seat(version=2), host()) == [Start(1, "x", 1)]


def test_containers_wanted_are_unfinished_over_per_container() -> None:
    for due, per, limit in ((7, 3, 10), (7, 3, 2), (1, 5, 10), (4, 1, 4)):
        started = steps(wanted(due=due, per_container=per, slots=per, max_containers=limit), host(cpu=64.0))
        assert len(started) == min(limit, ceil(due / per))
        assert sum(step.count for step in started if isinstance(step, Start)) == min(due, limit * per)


def test_room_by_cpu_and_memory() -> None:
    assert len(steps(wanted(due=9), host(cpu=3.5))) == 3
    assert len(steps(wanted(due=9), host(memory_mb=250))) == 2
    busy = seat("c9", version=2, cpu=3.0, taken=1)
    assert steps(wanted(due=9), busy, host(cpu=4.0)) == [Start(1, "x", 1)]


def test_the_emptiest_agent_starts_it() -> None:
    assert steps(wanted(), host("x", cpu=2.0), host("y", cpu=8.0)) == [Start(1, "y", 1)]
    spread = steps(wanted(due=4), host("x", cpu=2.0), host("y", cpu=2.0))
    assert Counter(step.agent for step in spread if isinstance(step, Start)) == {"x": 2, "y": 2}


def test_a_gpu_is_matched_by_name() -> None:
    plain, fast = host("x"), host("y", gpus=("T4", "L4"))
    assert steps(wanted(gpus=("L4",)), plain, fast) == [Start(1, "y", 1)]
    assert steps(wanted(gpus=("H100", "T4")), plain, fast) == [Start(1, "y", 1)]
    (refused,) = steps(wanted(gpus=("H100",)), plain, fast)
    assert isinstance(refused, Refuse) and "H100" in refused.message


def test_what_nothing_can_ever_run_is_refused_with_what_there_is() -> None:
    (refused,) = steps(wanted(cpu=99.0), host(cpu=4.0))
    assert isinstance(refused, Refuse)
    assert "cpu=99" in refused.message and "cpu=4" in refused.message
    assert steps(wanted(cpu=99.0)) == []  # no agent is here yet: who knows what the first will have


def test_an_idle_container_of_another_makes_room_the_longest_idle_first() -> None:
    idle = [seat("c2", 2, idle_since=5.0), seat("c3", 3, idle_since=1.0)]
    assert steps(wanted(), *idle, host(cpu=2.0)) == [Stop("c3", "room for others"), Start(1, "x", 1)]
    assert steps(wanted(cpu=2.0), *idle, host(cpu=2.0))[:2] == [
        Stop("c3", "room for others"), Stop("c2", "room for others"),
    ]  # fmt: skip


def test_an_idle_container_that_has_work_of_its_own_is_not_stopped_to_make_room() -> None:
    first, second = wanted(version=1, app="a"), wanted(version=2, app="b")
    assert steps(first, second, seat("c2", 2), host(cpu=1.0)) == [Place(2, "c2", 1)]


def test_a_host_that_is_away_still_counts_for_what_can_ever_run() -> None:
    assert steps(wanted(cpu=3.0), host(cpu=2.0), Host("y", 4.0, 10_000, connected=False)) == []


def test_what_works_is_not_stopped_to_make_room() -> None:
    for busy in (seat("c2", 2, taken=1), seat("c2", 2, state="starting"), seat("c2", 2, state="stopping")):
        assert steps(wanted(), busy, host(cpu=1.0)) == []


def test_too_little_room_stops_nothing() -> None:
    assert steps(wanted(cpu=3.0), seat("c2", 2), seat("c3", 3, taken=1, cpu=2.0), host(cpu=3.0)) == []


def test_keep_warm() -> None:
    assert steps(seat(idle_since=0.0, keep_warm_s=10.0), host(), now=10.0) == [Stop("c1", "idle")]
    assert steps(seat(idle_since=0.0, keep_warm_s=10.0), host(), now=9.9) == []
    assert steps(seat(idle_since=None, keep_warm_s=10.0), host(), now=99.0) == []
    assert steps(seat(taken=1, keep_warm_s=0.0), host()) == []
    assert steps(wanted(due=1), seat(keep_warm_s=0.0), host()) == [Place(1, "c1", 1)]


def test_what_is_no_longer_live_is_stopped_once_it_is_idle() -> None:
    assert steps(seat(current=False), host()) == [Stop("c1", "its deployment is no longer live")]
    assert steps(seat(current=False, taken=1), host()) == []
    assert steps(wanted(), seat(current=False), host()) == [Place(1, "c1", 1)]  # its queue is worked off first


def test_a_proof_is_one_container_even_past_the_room() -> None:
    proof = wanted(due=0, proof=True)
    assert steps(proof, host()) == [Start(1, "x", 0)]
    assert steps(proof, seat("c2", 2, taken=1, cpu=4.0), host(cpu=4.0)) == [Start(1, "x", 0)]
    assert steps(proof, seat(state="starting"), host()) == []
    (refused,) = steps(replace(proof, cpu=99.0), host())
    assert isinstance(refused, Refuse)


def test_the_app_that_holds_less_is_served_first() -> None:
    greedy = [seat(f"c{n}", 2, app="b", taken=1) for n in range(3)]
    both = (wanted(2, due=9, app="b"), wanted(1, due=9, app="a"))
    assert steps(*both, *greedy, host(cpu=4.0)) == [Start(1, "x", 1)]


def test_a_quick_function_holds_jobs_ahead_once_all_slots_are_taken() -> None:
    full = wanted(due=9, max_containers=1)
    assert steps(full, seat(taken=1, ahead=3), host()) == [Place(1, "c1", 3)]
    assert steps(full, seat(taken=3, ahead=3), host()) == [Place(1, "c1", 1)]
    assert steps(full, seat(taken=4, ahead=3), host()) == []
    assert steps(full, seat(taken=1, ahead=3, state="starting"), host()) == []
    spread = steps(wanted(due=2, max_containers=2), seat("c1", taken=1, ahead=3), seat("c2", ahead=3), host())
    assert spread[0] == Place(1, "c2", 1)  # a free slot before any waiting


CPUS = st.sampled_from([0.5, 1.0, 2.0, 5.0])
WANTED = st.builds(
    wanted, st.integers(1, 4), st.integers(0, 12), app=st.sampled_from("ab"), slots=st.integers(1, 3),
    per_container=st.integers(1, 3), max_containers=st.integers(1, 4), cpu=CPUS, proof=st.booleans(),
    gpus=st.sampled_from([(), ("T4",)]), containers=st.sampled_from([0, 0, 2]),
)  # fmt: skip
SEATS = st.builds(
    seat, st.uuids().map(str), st.integers(1, 5), agent=st.sampled_from("xy"), app=st.sampled_from("ab"),
    state=st.sampled_from(["starting", "ready", "stopping"]), connected=st.booleans(), slots=st.integers(1, 3),
    taken=st.integers(0, 3), cpu=CPUS, keep_warm_s=st.sampled_from([0.0, 600.0]), current=st.booleans(),
    idle_since=st.sampled_from([None, 0.0, 9.0]), ahead=st.sampled_from([0, 0, 4]),
    since=st.sampled_from([None, 0.0, 9.5]),
)  # fmt: skip
HOSTS = st.builds(host, st.sampled_from("xy"), cpu=st.sampled_from([1.0, 4.0]), gpus=st.sampled_from([(), ("T4",)]))


@settings(max_examples=300, deadline=None)
@given(
    needs=st.lists(WANTED, max_size=4, unique_by=lambda w: w.version), seats=st.lists(SEATS, max_size=6),
    hosts=st.lists(HOSTS, max_size=2, unique_by=lambda h: h.agent),
)  # fmt: skip
def test_whatever_the_picture_the_plan_keeps_its_promises(
    needs: list[Wanted], seats: list[Seat], hosts: list[Host]
) -> None:
    picture = Picture(now=10.0, wanted=tuple(needs), seats=tuple(seats), hosts=tuple(hosts))
    made = plan(picture)
    assert plan(picture) == made  # pure
    by_container, by_version = {s.container: s for s in seats}, {w.version: w for w in needs}
    placed: Counter[str] = Counter()
    given_out: Counter[int] = Counter()
    started: Counter[int] = Counter()
    stopped = [step.container for step in made if isinstance(step, Stop)]
    assert len(set(stopped)) == len(stopped)
    for step in made:
        if isinstance(step, Place):
            assert by_container[step.container].version == step.version
            placed[step.container] += step.count
            given_out[step.version] += step.count
        elif isinstance(step, Start):
            assert could_ever({h.agent: h for h in hosts}[step.agent], by_version[step.version])
            started[step.version] += 1
            given_out[step.version] += step.count
        elif isinstance(step, Refuse):
            assert not any(could_ever(h, by_version[step.version]) for h in hosts)
    for container, count in placed.items():
        there = by_container[container]
        assert there.connected and there.state != "stopping" and container not in stopped
        assert count > 0 and there.taken + count <= max(there.slots, there.taken) + there.ahead
    for version, count in given_out.items():
        assert count <= by_version[version].due
    for version, count in started.items():
        alive = [
            s for s in seats
            if s.version == version and (s.taken or s.state != "stopping" or not s.connected)
            and not (s.container in stopped and not s.taken)
        ]  # fmt: skip
        assert len(alive) + count <= by_version[version].max_containers
    finishing = {step.container for step in made if isinstance(step, Stop) and step.finish}
    for container in stopped:
        there = by_container[container]
        assert there.state == "ready" and there.connected
        assert there.taken == 0 or (container in finishing and there.since == 0.0 and there.version in by_version)
    for each in hosts:
        mine = [step for step in made if isinstance(step, Start) and step.agent == each.agent]
        if not mine or any(by_version[step.version].proof for step in mine):
            continue  # a proof may go past the room
        left = [s for s in seats if s.container not in stopped or s.container in finishing]
        used = sum(s.cpu for s in left if s.agent == each.agent and s.connected)
        assert used + sum(by_version[step.version].cpu for step in mine) <= each.cpu
