"""The plan shares out what there is: who takes turns, who gives up what, and that nobody starves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import host, seat, steps, wanted

from apothic.control.plan import PATIENCE_S, QUANTUM_S, plan
from apothic.store.picture import NEVER, Host, Picture, Place, Refuse, Seat, Start, Stop, Wanted

FULL = host(cpu=2.0)
GREEDY = wanted(2, due=99, app="b")
OLD = 10.0 - QUANTUM_S  # a container that serves since then has had its turn
BUSY = (seat("c1", 2, app="b", taken=1, since=OLD), seat("c2", 2, app="b", taken=1, since=OLD - 1))


def test_who_has_nothing_gets_one_of_a_container_that_has_had_its_turn() -> None:
    assert steps(wanted(), GREEDY, *BUSY, FULL) == [Stop("c2", "its turn is over", finish=True)]
    young = [replace(each, since=OLD + 0.1) for each in BUSY]
    assert steps(wanted(), GREEDY, *young, FULL) == []
    unknown = [replace(each, since=None) for each in BUSY]
    assert steps(wanted(), GREEDY, *unknown, FULL) == []


def test_what_is_between_two_jobs_makes_room_at_once() -> None:
    free = replace(BUSY[0], taken=0)
    assert steps(wanted(), GREEDY, free, BUSY[1], FULL) == [Stop("c1", "room for others"), Start(1, "x", 1)]


def test_room_that_is_about_to_be_free_is_waited_for_and_kept() -> None:
    ending = replace(BUSY[1], state="stopping", since=9.5)
    assert steps(wanted(), GREEDY, BUSY[0], ending, FULL) == []
    # Half of it is free already: that half is not for who has more, or the other would never have all of it.
    large = wanted(cpu=2.0)
    assert steps(large, GREEDY, replace(ending, cpu=1.0), host(cpu=2.0)) == []
    assert steps(GREEDY, replace(ending, cpu=1.0), host(cpu=2.0)) == [Start(2, "x", 1)]


def test_a_last_job_that_takes_long_is_not_waited_for_any_longer() -> None:
    stuck = replace(BUSY[1], state="stopping", since=10.0 - PATIENCE_S)
    assert steps(wanted(), GREEDY, BUSY[0], stuck, FULL) == [Stop("c1", "its turn is over", finish=True)]


def test_as_many_finish_as_it_takes_and_no_more() -> None:
    many = [seat(f"c{n}", 2, app="b", taken=1, since=float(n)) for n in range(5)]
    made = steps(wanted(cpu=2.5), GREEDY, *many, host(cpu=5.5))
    assert [step.container for step in made if isinstance(step, Stop)] == ["c0", "c1"]
    assert all(isinstance(step, Stop) and step.finish for step in made)


def test_the_agent_where_the_fewest_have_to_go_gives_the_room() -> None:
    small = [seat(f"c{n}", 2, app="b", taken=1, since=0.0) for n in range(2)]
    large = seat("c9", 3, app="c", agent="y", taken=1, since=1.0, cpu=2.0)
    made = steps(wanted(cpu=2.0), GREEDY, wanted(3, due=9, app="c", cpu=2.0), *small, large, FULL, host("y", cpu=2.0))
    assert made == [Stop("c9", "its turn is over", finish=True)]


def test_who_has_some_evens_out_and_then_leaves_it() -> None:
    mine = seat("c0", 1, taken=1, since=0.0)
    three = [seat(f"c{n}", 2, app="b", taken=1, since=float(n)) for n in range(1, 4)]
    assert steps(wanted(due=9), GREEDY, mine, *three, host(cpu=4.0)) == [Stop("c1", "its turn is over", finish=True)]
    assert steps(wanted(due=9), GREEDY, mine, *three[:2], host(cpu=3.0)) == []
    assert steps(wanted(due=9, max_containers=1), GREEDY, mine, *three, host(cpu=4.0)) == []
    quick = replace(mine, ahead=32)
    assert steps(wanted(due=9), GREEDY, quick, *three, host(cpu=4.0)) == [Place(1, "c0", 9)]


def test_versions_of_an_app_share_alike() -> None:
    assert steps(wanted(1, app="b"), GREEDY, *BUSY, FULL) == [Stop("c2", "its turn is over", finish=True)]


def test_of_a_new_machine_each_gets_the_same() -> None:
    made = steps(wanted(1, due=99), GREEDY, wanted(3, due=99, app="c"), host(cpu=6.0))
    assert Counter(step.version for step in made if isinstance(step, Start)) == {1: 2, 2: 2, 3: 2}


def test_who_has_waited_longest_is_next() -> None:
    ones = [wanted(n, app=app, app_served=at) for n, app, at in ((1, "a", 3.0), (2, "b", NEVER), (3, "c", 1.0))]
    assert steps(*ones, host(cpu=2.0)) == [Start(2, "x", 1), Start(3, "x", 1)]


def test_what_a_container_would_have_been_given_stays_in_the_queue_when_its_turn_is_over() -> None:
    quick = [replace(each, ahead=9) for each in BUSY]
    assert steps(wanted(), replace(GREEDY, due=12), *quick, FULL) == [
        Stop("c2", "its turn is over", finish=True), Place(2, "c1", 9),
    ]  # fmt: skip


def test_a_container_is_filled_to_what_it_is_meant_for_then_one_more_is_started_then_they_are_filled_up() -> None:
    to_target = {"slots": 10, "per_container": 6}
    one = wanted(due=6, max_containers=2, **to_target)
    assert steps(one, seat(slots=10), host()) == [Place(1, "c1", 6)]
    assert steps(replace(one, due=7), seat(slots=10), host()) == [Place(1, "c1", 6), Start(1, "x", 1)]
    two = [seat("c1", slots=10, taken=6), seat("c2", slots=10, taken=6)]
    assert steps(replace(one, due=5), *two, host()) == [Place(1, "c1", 4), Place(1, "c2", 1)]
    assert steps(replace(one, due=20), seat(slots=10), host()) == [Place(1, "c1", 10), Start(1, "x", 10)]
    assert steps(replace(one, due=20), seat(slots=10), host(cpu=1.0)) == [Place(1, "c1", 10)]  # no room for a second


@dataclass
class World:
    """A machine whose jobs take whole seconds, run by the plan. `served` is when each version last began a job."""

    hosts: tuple[Host, ...]
    needs: dict[int, Wanted]
    lasts: int
    now: float = 100.0
    seats: dict[str, Seat] = field(default_factory=dict)
    ends: dict[str, list[float]] = field(default_factory=dict)
    served: dict[int, float] = field(default_factory=dict)
    had: dict[int | str, float] = field(default_factory=dict)
    hungry: dict[int, float] = field(default_factory=dict)

    def round(self) -> None:
        """Let a second pass: jobs end, containers get ready or go, then plan until nothing changes."""
        self.now += 1.0
        for name, each in list(self.seats.items()):
            self.ends[name] = [end for end in self.ends[name] if end > self.now]
            if each.state == "stopping" and not self.ends[name]:
                del self.seats[name]
            elif each.state == "starting":
                self.seats[name] = replace(each, state="ready", since=self.now)
        while self._step():
            pass

    def _step(self) -> bool:
        for each in self.seats.values():
            if each.state != "stopping":
                self.had[each.version] = self.had[each.app] = self.now
        fed = {each.version for each in self.seats.values() if each.state != "stopping"}
        self.hungry = {version: self.hungry.get(version, self.now) for version in self.needs if version not in fed}
        needs = [
            replace(
                n, served=self.had.get(n.version, NEVER), app_served=self.had.get(n.app, NEVER),
                hungry_since=self.hungry.get(n.version),
            )
            for n in self.needs.values()
        ]  # fmt: skip
        seats = [replace(each, taken=len(self.ends[name])) for name, each in self.seats.items()]
        made = plan(Picture(self.now, tuple(needs), tuple(seats), self.hosts))
        for step in made:
            if isinstance(step, Stop):
                self.seats[step.container] = replace(self.seats[step.container], state="stopping", since=self.now)
            elif isinstance(step, Start):
                name = f"c{len(self.ends)}"
                need = self.needs[step.version]
                self.seats[name] = seat(
                    name, step.version, app=need.app, agent=step.agent, state="starting", cpu=need.cpu,
                    slots=need.slots, since=self.now,
                )  # fmt: skip
                self.ends[name] = []
                self._begin(step.version, name, step.count)
            elif isinstance(step, Place):
                self._begin(step.version, step.container, step.count)
            assert not isinstance(step, Refuse)
        self.check()
        return bool(made)

    def _begin(self, version: int, container: str, count: int) -> None:
        self.ends[container] += [self.now + self.lasts + len(self.ends[container]) % 2 for _ in range(count)]
        self.served[version] = self.now

    def check(self) -> None:
        """Look at the limits."""
        alive = Counter(
            each.version for name, each in self.seats.items() if each.state != "stopping" or self.ends[name]
        )
        for version, count in alive.items():
            assert count <= self.needs[version].max_containers
        for name, each in self.seats.items():
            assert len(self.ends[name]) <= each.slots
        for each_host in self.hosts:
            # One that has nothing to do any more goes while the one that takes its place starts.
            used = sum(
                each.cpu for name, each in self.seats.items()
                if each.agent == each_host.agent and (each.state != "stopping" or self.ends[name])
            )  # fmt: skip
            assert used <= each_host.cpu


NEEDS = st.lists(
    st.builds(
        wanted, st.just(0), st.just(1000), app=st.sampled_from("abcd"), slots=st.integers(1, 3),
        per_container=st.integers(1, 3), max_containers=st.integers(1, 4), cpu=st.sampled_from([0.5, 1.0, 2.0]),
    ),
    min_size=2, max_size=6,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(needs=NEEDS, cpus=st.lists(st.sampled_from([2.0, 3.0, 4.0]), min_size=1, max_size=2), lasts=st.integers(1, 3))
def test_no_version_that_has_work_starves_whatever_the_others_have(
    needs: list[Wanted], cpus: list[float], lasts: int
) -> None:
    hosts = tuple(host(f"h{n}", cpu=cpu) for n, cpu in enumerate(cpus))
    world = World(hosts, {n: replace(need, version=n) for n, need in enumerate(needs)}, lasts)
    bound = len(needs) * (2 * lasts + 6)
    begun = world.now
    for _ in range(bound * 3):
        world.round()
        for version in world.needs:
            since = world.now - world.served.get(version, begun)
            assert since <= bound, f"{version} has waited {since} s: {world.seats}"


def test_a_large_one_has_its_turn_though_its_app_holds_small_ones_and_others_of_one_app_take_turns() -> None:
    """By shares, the other app's two came first each time, and the room was never whole."""
    small = wanted(0, 1000, app="b", slots=1, per_container=2, max_containers=2, cpu=0.5)
    large = wanted(1, 1000, app="b", slots=3, per_container=2, max_containers=3, cpu=2.0)
    others = [wanted(n, 1000, app="c", slots=2, per_container=3, max_containers=2, cpu=2.0) for n in (2, 3)]
    world = World((host("h0", cpu=3.0),), {need.version: need for need in (small, large, *others)}, 2)
    for _ in range(400):
        world.round()
        assert world.now - world.served.get(1, 100.0) <= 40.0, world.seats
