"""What to do next, given how things stand. Pure: it does none of it.

For a version with due jobs, in this order: containers it has take them, up to what one is meant for; a new container is
started where there is room, or where one that has nothing to do makes room; the containers it has are filled up; else
the jobs wait. Who has no container at all comes before all this, and who waits while another holds more than its share
gets one of that one's: it begins nothing more, finishes what it runs, and ends. A service runs no jobs; it has as many
containers as are wanted of it, by the same rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from heapq import heapify, heappop, heappush
from math import ceil

from apothic.control.shares import Shares
from apothic.store.picture import Host, Picture, Place, Refuse, Seat, Start, Step, Stop, Wanted

# What a container serves at the least before it has to make room for another's. A call that had to start one
# took 0.15 to 0.27 s, so taking turns costs about a fifth of the time.
QUANTUM_S = 1.0
# How long room is waited for that a finishing container will leave. Its last job may take hours, while others beside
# it end every second.
PATIENCE_S = 5.0


class _Room:
    """What one agent has left, as the plan spends it, and what it will have when those that end are gone."""

    def __init__(self, host: Host, seats: list[Seat], now: float) -> None:
        self.host = host
        self.cpu = host.cpu - sum(seat.cpu for seat in seats)
        self.memory_mb = host.memory_mb - sum(seat.memory_mb for seat in seats)
        # What nobody knows the age of is not waited for.
        ending = [s for s in seats if s.state == "stopping" and s.since is not None and now - s.since < PATIENCE_S]
        self.later_cpu = self.cpu + sum(seat.cpu for seat in ending)
        self.later_memory_mb = self.memory_mb + sum(seat.memory_mb for seat in ending)
        self.ports = {seat.port for seat in seats if seat.port}
        self.later_ports = self.ports - {seat.port for seat in ending}

    def fits(self, wanted: Wanted) -> bool:
        enough = self.cpu >= wanted.cpu and self.memory_mb >= wanted.memory_mb
        return enough and wanted.port not in self.ports and self.will_fit(wanted)

    def will_fit(self, wanted: Wanted) -> bool:
        enough = self.later_cpu >= wanted.cpu and self.later_memory_mb >= wanted.memory_mb
        return enough and self.could_take(wanted)

    def could_take(self, wanted: Wanted) -> bool:
        """Tell whether only cpu and memory can stand in the way."""
        return could_ever(self.host, wanted) and wanted.port not in self.later_ports

    def take(self, wanted: Wanted) -> None:
        self.cpu -= wanted.cpu
        self.memory_mb -= wanted.memory_mb
        self.ports |= {wanted.port} - {0}
        self.later_ports |= {wanted.port} - {0}
        self.promise(wanted)

    def promise(self, wanted: Wanted, times: int = 1) -> None:
        """Keep what will be free for one that cannot have it yet."""
        self.later_cpu -= wanted.cpu * times
        self.later_memory_mb -= wanted.memory_mb * times

    def give_back(self, seat: Seat) -> None:
        self.cpu += seat.cpu
        self.memory_mb += seat.memory_mb
        self.gets_back(seat)

    def gets_back(self, seat: Seat) -> None:
        """Count on what a container leaves that finishes."""
        self.later_cpu += seat.cpu
        self.later_memory_mb += seat.memory_mb
        self.later_ports -= {seat.port}

    def without(self, seats: list[Seat], wanted: Wanted, *, later: bool = False) -> list[Seat] | None:
        """Return as many of the containers as would have to go, the first ones first; `None` if all are too few."""
        cpu = self.later_cpu if later else min(self.cpu, self.later_cpu)
        memory_mb = self.later_memory_mb if later else min(self.memory_mb, self.later_memory_mb)
        for count in range(len(seats) + 1):
            if cpu >= wanted.cpu and memory_mb >= wanted.memory_mb:
                return seats[:count]
            if count < len(seats):
                cpu, memory_mb = cpu + seats[count].cpu, memory_mb + seats[count].memory_mb
        return None


class _Need:
    """A version, its containers, and how many of its due jobs are still to be placed."""

    def __init__(self, wanted: Wanted, seats: list[Seat]) -> None:
        self.wanted = wanted
        self.left = wanted.due
        self.meant = min(wanted.slots, wanted.per_container)
        working = [seat for seat in seats if seat.state != "stopping"]
        # Ready before starting, and the fullest last, so that load spreads over what is warm.
        self.seats = sorted(
            (seat for seat in working if seat.connected), key=lambda s: (s.state != "ready", s.taken, s.container)
        )
        # One that ends, or whose agent is away, may still run something: it counts towards the limit.
        ending = sum(s.state == "stopping" and (s.taken > 0 or not s.connected) for s in seats)
        self.owned = len(working) + ending
        unfinished = wanted.due + sum(seat.taken for seat in working)
        target = max(wanted.containers, ceil(unfinished / wanted.per_container)) + ending
        self.target = min(wanted.max_containers, 1 + ending if wanted.proof else target)
        self.starts: list[Start] = []
        self.stuck = False  # there is no room for another container now
        self.waiting = False  # room is kept for it
        self.claimed: _Room | None = None  # where there will be room for it once others have had their turn

    @property
    def grows(self) -> bool:
        asked = self.left > 0 or self.wanted.containers > 0 or self.wanted.proof
        return asked and self.owned < self.target


class _Planner:
    def __init__(self, picture: Picture) -> None:
        self.now = picture.now
        self.hosts = picture.hosts
        self.seats = [seat for seat in picture.seats if seat.connected]
        self.rooms = [
            _Room(host, [s for s in self.seats if s.agent == host.agent], self.now)
            for host in picture.hosts
            if host.connected
        ]
        self.shares = Shares(picture)
        self.serving: dict[str, list[Seat]] = {}  # by agent: those of versions that have work, or requests
        self.unused: dict[str, list[Seat]] = {}
        self.stopped: set[str] = set()
        self.fed: Counter[str] = Counter()
        self.ahead: Counter[str] = Counter()
        self.steps: list[Step] = []
        self.wanted = {wanted.version for wanted in picture.wanted}
        seats: dict[int, list[Seat]] = {}
        for seat in picture.seats:
            seats.setdefault(seat.version, []).append(seat)
            if seat.connected and seat.state == "ready" and (seat.version in self.wanted or _has_requests(seat)):
                self.serving.setdefault(seat.agent, []).append(seat)
            if seat.connected and seat.state == "ready" and seat.taken == 0:
                self.unused.setdefault(seat.agent, []).append(seat)
        self.needs = [_Need(wanted, seats.get(wanted.version, [])) for wanted in picture.wanted]

    # --- the rounds

    def sweep(self) -> None:
        """Stop what has been idle for long enough, or belongs to a deployment that is no longer live."""
        for seat in self.seats:
            if _has_requests(seat) and seat.state == "ready" and not seat.current:
                self._stop(seat, "its deployment is no longer live", finish=True)
            if not self._idle(seat) or seat.version in self.wanted:
                continue
            since = seat.idle_since if seat.idle_since is not None else self.now
            if not seat.current:
                self._stop(seat, "its deployment is no longer live")
            elif self.now - since >= seat.keep_warm_s:
                self._stop(seat, "idle")

    def let_in(self) -> None:
        """Give those that have no container one, or keep the room for it that will soon be free."""
        for need in self._in_turn(need for need in self.needs if self.shares.starving(need.wanted) and need.grows):
            if not self._start(need) and not need.wanted.proof and not self._wait(need):
                self._claim(need)

    def fill(self) -> None:
        """Let every container have what it is meant for."""
        for need in self.needs:
            for seat in need.seats:
                self._place(need, seat, min(need.meant, seat.slots))

    def grow(self) -> None:
        """Start what more is wanted, one at a time for whoever holds least."""
        # A turn only ever moves back, so one that is still the same is still the least.
        turns = [(self.shares.turn(need.wanted), need) for need in self.needs if not need.stuck and not need.waiting]
        heapify(turns)
        while turns:
            turn, need = heappop(turns)
            now = self.shares.turn(need.wanted)
            if need.grows and (now != turn or self._start(need)):
                heappush(turns, (self.shares.turn(need.wanted), need))

    def top_up(self) -> None:
        """Fill free slots, then let containers of quick functions hold more than they run; the emptiest first."""
        for need in self.needs:
            for seat in need.seats:
                self._place(need, seat, seat.slots)
            for n, start in enumerate(need.starts):
                more = min(need.left, need.wanted.slots - start.count)
                need.starts[n] = replace(start, count=start.count + more)
                need.left -= more
            for seat in sorted(need.seats, key=lambda s: (s.taken, s.container)):
                if seat.state == "ready":
                    self._place(need, seat, seat.slots + seat.ahead, ahead=True)

    def level(self) -> None:
        """Let containers of those that hold more than their share finish, for those that still wait."""
        for need in self._in_turn(need for need in self.needs if need.grows and not need.waiting):
            # What it has just had to give up it does not take back from others while it still runs.
            given_up = need.owned > 0 and self.shares.starving(need.wanted)
            if need.grows and not need.wanted.proof and not given_up and not self._wait(need):
                self._retire(need)

    def made(self) -> list[Step]:
        """Return all steps, in an order in which they can be done."""
        seats = [seat for need in self.needs for seat in need.seats]
        # First in, first out: what waits in a container comes after all that begins.
        begin, wait = (
            [Place(s.version, s.container, given[s.container]) for s in seats if given[s.container]]
            for given in (self.fed, self.ahead)
        )
        return [*self.steps, *begin, *(start for need in self.needs for start in need.starts), *wait]

    # --- the steps

    def _in_turn(self, needs: Iterable[_Need]) -> list[_Need]:
        return sorted(needs, key=lambda need: self.shares.turn(need.wanted))

    def _place(self, need: _Need, seat: Seat, upto: int, *, ahead: bool = False) -> None:
        count = min(need.left, upto - seat.taken - self.fed[seat.container])
        if count > 0 and seat.container not in self.stopped:
            (self.ahead if ahead else self.fed)[seat.container] += count
            need.left -= count

    def _start(self, need: _Need) -> bool:
        wanted = need.wanted
        if self.hosts and not any(could_ever(host, wanted) for host in self.hosts):
            self.steps.append(Refuse(wanted.version, unsatisfiable(wanted, self.hosts)))
            need.target = 0
        room = self._room_for(wanted) if need.grows else None
        need.stuck = room is None
        if room is None:
            self._ask_for_port(need)
            return False
        room.take(wanted)
        count = min(need.left, need.meant)
        need.starts.append(Start(wanted.version, room.host.agent, count))
        need.left -= count
        need.owned += 1
        self.shares.gained(wanted)
        return True

    def _room_for(self, wanted: Wanted) -> _Room | None:
        fitting = [room for room in self.rooms if room.fits(wanted)]
        if fitting:
            return max(fitting, key=lambda room: (room.cpu, room.memory_mb))
        for room in self.rooms:
            if room.could_take(wanted) and wanted.port not in room.ports and self._make_room(room, wanted):
                return room
        # A proof only imports a module. Without this a deploy would wait for every long job of other apps to end.
        able = [r for r in self.rooms if wanted.proof and could_ever(r.host, wanted) and wanted.port not in r.ports]
        return max(able, key=lambda room: room.cpu) if able else None

    def _make_room(self, room: _Room, wanted: Wanted) -> bool:
        """Stop idle containers of others, if that makes room: those without work first, longest idle first.

        For one that has none, also those that are between two jobs, of who has held them for long enough.
        """
        idle = [seat for seat in self.unused.get(room.host.agent, []) if self._idle(seat)]
        if not idle:
            return False
        useless = sorted(
            (s for s in idle if s.version not in self.wanted), key=lambda s: (s.idle_since or 0.0, s.container)
        )
        if self.shares.starving(wanted) and not wanted.proof:
            useless += [seat for seat in self._owed(room, wanted) if seat in idle]
        chosen = room.without(useless, wanted)
        for seat in chosen or []:
            self._stop(seat, "room for others")
            room.give_back(seat)
        return chosen is not None

    def _ask_for_port(self, need: _Need) -> None:
        """Let the container finish that has the port which a web server has to have, where no agent has it free."""
        port, rooms = need.wanted.port, [room for room in self.rooms if could_ever(room.host, need.wanted)]
        if not need.grows or not port or any(port not in room.later_ports for room in rooms):
            return
        agents = {room.host.agent: room for room in rooms}
        holding = (s for s in self.seats if s.port == port and s.agent in agents and s.version != need.wanted.version)
        for seat in holding:
            unused = self._idle(seat) and seat.version not in self.wanted
            served = seat.since is not None and seat.since <= self.now - QUANTUM_S
            owed = self.shares.starving(need.wanted) or self.shares.over(seat, need.wanted)
            if seat.state == "ready" and seat.container not in self.stopped and (unused or (served and owed)):
                self._stop(seat, "its port is for another", finish=seat.taken > 0)
                agents[seat.agent].gets_back(seat)
                return

    def _wait(self, need: _Need) -> bool:
        """Keep room that is about to be free."""
        room = next((room for room in self.rooms if room.will_fit(need.wanted)), None)
        if room is not None:
            room.promise(need.wanted)
            need.waiting = True
        return room is not None

    def _claim(self, need: _Need) -> None:
        """Keep an agent clear whose containers will have had their turn: small ones would fill it again and again."""
        for room in self.rooms:
            seats = self._owed(room, need.wanted, soon=True)
            if room.could_take(need.wanted) and room.without(seats, need.wanted, later=True) is not None:
                room.promise(need.wanted)
                need.claimed = room
                return

    def _retire(self, need: _Need) -> None:
        """Let as few containers finish as it takes to make room, one at the most for who has some already."""
        if need.claimed is not None:
            need.claimed.promise(need.wanted, -1)
        best: tuple[_Room, list[Seat]] | None = None
        for room in self.rooms:
            owed = self._owed(room, need.wanted)
            chosen = room.without(owed, need.wanted, later=True) if room.could_take(need.wanted) else None
            if chosen is not None and (best is None or len(chosen) < len(best[1])):
                best = room, chosen
        if best is None or (len(best[1]) > 1 and not self.shares.starving(need.wanted)):
            return
        room, chosen = best
        for seat in chosen:
            self._take_back(seat)
            self._stop(seat, "its turn is over", finish=True)
            room.gets_back(seat)
        room.promise(need.wanted)
        need.waiting = True

    def _take_back(self, seat: Seat) -> None:
        """Leave in the queue what was to be placed."""
        for need in self.needs:
            if need.wanted.version == seat.version:
                need.left += self.fed.pop(seat.container, 0) + self.ahead.pop(seat.container, 0)

    def _owed(self, room: _Room, wanted: Wanted, *, soon: bool = False) -> list[Seat]:
        """Return containers that have had their turn, or will have, and should then be the other's; the first first."""
        until = self.now if soon else self.now - QUANTUM_S
        others = [
            s
            for s in self.serving.get(room.host.agent, [])
            if s.version != wanted.version and s.since is not None and s.since <= until
        ]
        served = [seat for seat in others if seat.container not in self.stopped]
        owed = sorted((seat for seat in served if self.shares.over(seat, wanted)), key=self.shares.most)
        # What needs more than all that its app holds here takes turns with the others too.
        if self.shares.starving(wanted):
            known = {seat.container for seat in owed}
            if all(s.container in known for s in self.seats if s.app == wanted.app and s.agent == room.host.agent):
                owed += sorted((s for s in served if s.container not in known), key=self.shares.most)
        return owed

    def _idle(self, seat: Seat) -> bool:
        return (
            seat.state == "ready"
            and seat.taken == 0
            and seat.container not in self.stopped
            and not self.fed[seat.container]
        )

    def _stop(self, seat: Seat, reason: str, *, finish: bool = False) -> None:
        self.stopped.add(seat.container)
        self.shares.lost(seat)
        self.steps.append(Stop(seat.container, reason, finish))


def plan(picture: Picture) -> list[Step]:
    """Return the steps to take, in order."""
    if not picture.whole:
        needs = [_Need(wanted, [s for s in picture.seats if s.version == wanted.version]) for wanted in picture.wanted]
        return [step for need in needs for step in _filled(need)]
    planner = _Planner(picture)
    planner.sweep()
    if picture.wanted:
        planner.let_in()
        planner.fill()
        planner.grow()
        planner.top_up()
        planner.level()
    return planner.made()


def _filled(need: _Need) -> Iterator[Place]:
    """Yield what containers that are ready can take of what each is meant for; the emptiest first."""
    for seat in need.seats:
        count = min(need.left, need.meant - seat.taken)
        if seat.state == "ready" and count > 0:
            need.left -= count
            yield Place(need.wanted.version, seat.container, count)


def could_ever(host: Host, wanted: Wanted) -> bool:
    """Tell whether the agent could run this with nothing else on it."""
    return host.cpu >= wanted.cpu and host.memory_mb >= wanted.memory_mb and _has_gpu(host, wanted)


def unsatisfiable(wanted: Wanted, hosts: tuple[Host, ...]) -> str:
    """Return the sentence for jobs that no agent can ever run."""
    has = "; ".join(f"cpu={host.cpu:g}, memory_mb={host.memory_mb}, gpus={list(host.gpus)}" for host in hosts)
    gpus = f", gpu={list(wanted.gpus)}" if wanted.gpus else ""
    return f"no agent can ever give cpu={wanted.cpu:g}, memory_mb={wanted.memory_mb}{gpus}; the agents have {has}"


def _has_requests(seat: Seat) -> bool:
    return seat.serves and seat.taken > 0


def _has_gpu(host: Host, wanted: Wanted) -> bool:
    return not wanted.gpus or any(gpu in host.gpus for gpu in wanted.gpus)
