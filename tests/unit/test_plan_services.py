"""The plan for services: as many containers as are wanted, whoever has requests finishes, and a port is held by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import host, seat, steps, wanted

from apothic.control.plan import PATIENCE_S, QUANTUM_S, plan
from apothic.store.picture import Host, Picture, Place, Seat, Start, Stop, Wanted

OLD = 10.0 - QUANTUM_S


def web(version: int = 1, containers: int = 1, **more: Any) -> Wanted:
    return wanted(version, 0, containers=containers, slots=100, **more)


def serving(container: str = "c1", version: int = 1, **more: Any) -> Seat:
    return seat(container, version, serves=True, slots=100, **more)


def busy(container: str = "c1", version: int = 1, **more: Any) -> Seat:
    return serving(container, version, taken=1, idle_since=None, **more)


def test_as_many_as_are_wanted_and_no_more_than_may_be() -> None:
    assert steps(web(), host()) == [Start(1, "x", 0)]
    assert steps(web(containers=3), serving(), host()) == [Start(1, "x", 0)] * 2
    assert steps(web(containers=3, max_containers=2), busy(), host()) == [Start(1, "x", 0)]
    assert steps(web(), serving(state="starting"), host()) == []
    assert steps(web(containers=9), host(cpu=2.5)) == [Start(1, "x", 0)] * 2


def test_one_that_drains_counts_towards_the_limit_as_long_as_it_has_requests() -> None:
    draining = busy(state="stopping")
    assert steps(web(max_containers=1), draining, host()) == []
    assert steps(web(max_containers=2), draining, host()) == [Start(1, "x", 0)]
    assert steps(web(max_containers=1), replace(draining, taken=0), host()) == [Start(1, "x", 0)]


def test_it_is_kept_warm_while_it_is_wanted_or_has_requests() -> None:
    assert steps(serving(idle_since=9.0), host()) == []
    assert steps(serving(idle_since=0.0, keep_warm_s=10.0), host()) == [Stop("c1", "idle")]
    assert steps(busy(keep_warm_s=0.0), host()) == []
    assert steps(web(), serving(idle_since=0.0, keep_warm_s=1.0), host()) == []


def test_what_is_no_longer_live_finishes_at_once() -> None:
    was, why = busy("c2", current=False), "its deployment is no longer live"
    assert steps(was, serving("c1", current=False), host()) == [Stop("c2", why, finish=True), Stop("c1", why)]
    assert steps(replace(was, state="stopping"), host()) == []
    assert steps(serving(current=False, state="starting"), host()) == []
    assert steps(seat("c1", taken=1, current=False), host()) == []  # a job's container ends by itself


def test_a_service_that_has_none_gets_the_room_of_who_has_had_its_turn() -> None:
    full = host(cpu=1.0)
    turn = Stop("c9", "its turn is over", finish=True)
    assert steps(web(), wanted(2, 9, app="b"), seat("c9", 2, app="b", taken=1, since=OLD), full) == [turn]
    # And the other way about: a job's function, of one that has requests all the time.
    assert steps(wanted(), busy("c9", 2, app="b", since=OLD), full) == [turn]
    assert steps(wanted(), busy("c9", 2, app="b", since=OLD + 0.1), full) == []
    idle = serving("c9", 2, app="b", since=OLD)
    assert steps(wanted(), idle, full) == [Stop("c9", "room for others"), Start(1, "x", 1)]


def test_every_service_of_a_deployment_shows_that_it_starts() -> None:
    proofs = [web(n, proof=True, cpu=4.0) for n in (1, 2)]
    assert sorted(steps(*proofs, host(cpu=4.0)), key=repr) == [Start(1, "x", 0), Start(2, "x", 0)]
    assert steps(web(proof=True), busy(state="stopping"), host()) == [Start(1, "x", 0)]


SITE = web(port=80)


def test_a_port_is_held_by_one_container_of_an_agent() -> None:
    two = web(containers=2, port=80)
    assert steps(two, host()) == [Start(1, "x", 0)]
    assert {step.agent for step in steps(two, host(), host("y")) if isinstance(step, Start)} == {"x", "y"}
    assert steps(two, serving(port=80), host()) == []
    assert steps(two, serving(port=80), host(), host("y", cpu=1.0)) == [Start(1, "y", 0)]
    assert steps(two, serving(port=80, state="starting"), busy("c2", 2, port=80, agent="y"), host(), host("y")) == []
    other = web(2, port=81)
    assert steps(SITE, other, host()) == [Start(1, "x", 0), Start(2, "x", 0)]
    assert len(steps(SITE, replace(SITE, version=2), host())) == 1


def test_who_has_the_port_finishes_for_another_and_then_it_is_started() -> None:
    why, holder = "its port is for another", busy("c2", 2, port=80, since=OLD)
    assert steps(SITE, holder, host()) == [Stop("c2", why, finish=True)]
    assert steps(replace(SITE, proof=True), holder, host()) == [Stop("c2", why, finish=True)]
    assert steps(SITE, replace(holder, since=OLD + 0.1), host()) == []
    assert steps(SITE, serving("c2", 2, port=80, since=9.9), host()) == [Stop("c2", why)]
    for since in (9.5, 10.0 - PATIENCE_S, None):
        assert steps(SITE, replace(holder, state="stopping", since=since), host()) == []
    assert steps(SITE, replace(holder, state="starting"), host()) == []
    # One that is wanted itself has its turn, though its first request may not be known yet.
    young = serving("c2", 2, port=80, since=9.9)
    assert steps(SITE, web(2, port=80), young, host()) == []
    assert steps(SITE, web(2, port=80), replace(young, since=OLD), host()) == [Stop("c2", why)]
    # And who has some elsewhere leaves another its only one.
    mine = busy("c1", 1, port=80, agent="y", since=OLD)
    assert steps(web(containers=2, port=80), mine, holder, host(), host("y")) == []
    assert steps(SITE, holder, host(), host("y")) == [Start(1, "y", 0)]
    assert steps(SITE, host()) == [Start(1, "x", 0)]


def test_two_that_want_one_port_take_one_from_another_once() -> None:
    holder = busy("c3", 3, port=80, since=OLD)
    stops = [step for step in steps(SITE, replace(SITE, version=2), holder, host()) if isinstance(step, Stop)]
    assert stops == [Stop("c3", "its port is for another", finish=True)]


def test_of_two_agents_one_gives_the_port() -> None:
    holders = [busy("c2", 2, port=80, since=OLD), busy("c3", 2, port=80, since=OLD, agent="y")]
    assert len(steps(SITE, *holders, host(), host("y"))) == 1
    assert len(steps(SITE, replace(SITE, version=3), *holders, host(), host("y"))) == 1


def test_nobody_makes_room_where_the_port_is_held() -> None:
    held = busy("c2", 2, port=80, since=9.9, cpu=2.0)
    assert steps(SITE, held, seat("c3", 3, cpu=2.0), host(cpu=4.0)) == []
    assert steps(SITE, replace(held, state="stopping"), seat("c3", 3, cpu=2.0), host(cpu=4.0)) == []
    others = [busy(f"c{n}", 2, app="b", since=0.0) for n in range(2, 5)]
    assert steps(web(containers=2, port=80), busy(port=80), *others, host(cpu=4.0)) == []
    turn = Stop("c2", "its turn is over", finish=True)
    assert steps(web(containers=2), busy(), *others, host(cpu=4.0)) == [turn]


PORTS = st.sampled_from([0, 0, 80, 81])
DEMANDS = st.builds(
    web, st.integers(1, 4), st.integers(1, 4), app=st.sampled_from("ab"), max_containers=st.integers(1, 4),
    cpu=st.sampled_from([0.5, 1.0, 2.0]), proof=st.booleans(), port=PORTS,
)  # fmt: skip
SEATS = st.builds(
    serving, st.uuids().map(str), st.integers(1, 5), agent=st.sampled_from("xy"), app=st.sampled_from("ab"),
    state=st.sampled_from(["starting", "ready", "stopping"]), connected=st.booleans(), taken=st.integers(0, 1),
    cpu=st.sampled_from([0.5, 1.0, 2.0]), keep_warm_s=st.sampled_from([0.0, 600.0]), current=st.booleans(),
    idle_since=st.sampled_from([None, 0.0, 9.0]), since=st.sampled_from([None, 0.0, 9.5]), port=PORTS,
)  # fmt: skip
HOSTS = st.lists(
    st.builds(host, st.sampled_from("xy"), cpu=st.sampled_from([1.0, 4.0])), max_size=2, unique_by=lambda h: h.agent
)


@settings(max_examples=300, deadline=None)
@given(
    needs=st.lists(DEMANDS, max_size=4, unique_by=lambda w: w.version), seats=st.lists(SEATS, max_size=6), hosts=HOSTS
)
def test_whatever_is_wanted_ports_and_limits_hold_and_requests_are_finished(
    needs: list[Wanted], seats: list[Seat], hosts: list[Host]
) -> None:
    made = plan(Picture(10.0, tuple(needs), tuple(seats), tuple(hosts)))
    by_container, by_version = {s.container: s for s in seats}, {w.version: w for w in needs}
    started: Counter[int] = Counter()
    held = {(s.agent, s.port) for s in seats if s.port and s.connected}
    for step in made:
        assert not isinstance(step, Place)
        if isinstance(step, Stop):
            there = by_container[step.container]
            assert there.state == "ready" and there.connected and (step.finish or there.taken == 0)
        elif isinstance(step, Start):
            started[step.version] += 1
            port = by_version[step.version].port
            assert not port or (step.agent, port) not in held
            held.add((step.agent, port))
    for version, count in started.items():
        alive = [s for s in seats if s.version == version and (s.taken or s.state != "stopping" or not s.connected)]
        gone = [step for step in made if isinstance(step, Stop) and not step.finish]
        left = len(alive) - sum(by_container[step.container].version == version for step in gone)
        assert left + count <= by_version[version].max_containers


JOBS = st.builds(
    wanted, st.integers(1, 4), st.just(99), app=st.sampled_from("ab"), max_containers=st.integers(1, 4),
    cpu=st.sampled_from([0.5, 1.0, 2.0]),
)  # fmt: skip


class World:
    """A machine on which everything goes on until it is told to finish; then it takes a second."""

    def __init__(self, needs: list[Wanted], cpu: float) -> None:
        self.now = 10.0
        self.needs = needs
        self.hosts = (host(cpu=cpu),)
        self.seats: dict[str, Seat] = {}
        self.had: dict[int | str, float] = {}
        self.hungry: dict[int, float] = {}
        self.number = 0

    def round(self) -> None:
        """Let a second pass, and plan."""
        self.now += 1.0
        for name, each in list(self.seats.items()):
            if each.state == "stopping":
                del self.seats[name]
            elif each.state == "starting":
                self.seats[name] = replace(each, state="ready", taken=1, idle_since=None, since=self.now)
        for each in self.seats.values():
            self.had[each.version] = self.had[each.app] = self.now
        fed = {each.version for each in self.seats.values()}
        self.hungry = {n.version: self.hungry.get(n.version, self.now) for n in self.needs if n.version not in fed}
        never = float("-inf")
        needs = [
            replace(
                need, served=self.had.get(need.version, never), app_served=self.had.get(need.app, never),
                hungry_since=self.hungry.get(need.version),
            )
            for need in self.needs
        ]  # fmt: skip
        for step in plan(Picture(self.now, tuple(needs), tuple(self.seats.values()), self.hosts)):
            if isinstance(step, Stop):
                self.seats[step.container] = replace(self.seats[step.container], state="stopping", since=self.now)
            elif isinstance(step, Start):
                self._start(next(need for need in needs if need.version == step.version))

    def _start(self, need: Wanted) -> None:
        self.number += 1
        name = f"c{self.number}"
        self.seats[name] = seat(
            name, need.version, app=need.app, cpu=need.cpu, port=need.port, state="starting", since=self.now,
            serves=need.due == 0,
        )  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    needs=st.lists(DEMANDS | JOBS, min_size=1, max_size=4, unique_by=lambda w: w.version),
    cpu=st.sampled_from([2.0, 4.0]),
)
def test_services_and_jobs_have_their_turns_however_long_the_others_go_on(needs: list[Wanted], cpu: float) -> None:
    world = World([replace(need, proof=False) for need in needs], cpu)
    for _ in range(60):
        world.round()
        assert all(world.now - since <= 20.0 for since in world.hungry.values()), (world.hungry, world.seats)
