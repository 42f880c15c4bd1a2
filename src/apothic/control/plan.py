"""What to do next, given how things stand. Pure: it does none of it.

Four cases for a version with due jobs, in this order: a container with a free slot takes them; else a new container is
started where there is room; else a container that has nothing to do makes room; else the jobs wait.
"""

from __future__ import annotations

from math import ceil

from apothic.store.picture import Host, Picture, Place, Refuse, Seat, Start, Step, Stop, Wanted


class _Room:
    """What one agent has left, as the plan spends it."""

    def __init__(self, host: Host, seats: list[Seat]) -> None:
        self.host = host
        self.cpu = host.cpu - sum(seat.cpu for seat in seats)
        self.memory_mb = host.memory_mb - sum(seat.memory_mb for seat in seats)

    def fits(self, wanted: Wanted) -> bool:
        return self.cpu >= wanted.cpu and self.memory_mb >= wanted.memory_mb and _has_gpu(self.host, wanted)

    def take(self, wanted: Wanted) -> None:
        self.cpu -= wanted.cpu
        self.memory_mb -= wanted.memory_mb

    def give_back(self, seat: Seat) -> None:
        self.cpu += seat.cpu
        self.memory_mb += seat.memory_mb


class _Planner:
    def __init__(self, picture: Picture) -> None:
        self.now = picture.now
        self.wanted = {wanted.version for wanted in picture.wanted}
        self.hosts = picture.hosts
        self.seats = [seat for seat in picture.seats if seat.connected]
        self.lost_seats = [seat for seat in picture.seats if not seat.connected]
        self.rooms = [
            _Room(host, [s for s in self.seats if s.agent == host.agent]) for host in picture.hosts if host.connected
        ]
        self.stopped: set[str] = set()
        self.steps: list[Step] = []

    def serve(self, wanted: Wanted) -> None:
        """Place what can be placed of one version, and start what may be started."""
        mine = [seat for seat in self.seats if seat.version == wanted.version and seat.container not in self.stopped]
        left = wanted.due
        # Ready before starting, and the fullest last, so that load spreads over what is warm.
        for seat in sorted(mine, key=lambda s: (s.state != "ready", s.taken, s.container)):
            count = min(left, seat.slots - seat.taken) if seat.state != "stopping" else 0
            if count > 0:
                self.steps.append(Place(wanted.version, seat.container, count))
                left -= count
        owned = [s for s in mine if s.state != "stopping"]
        owned += [s for s in self.lost_seats if s.version == wanted.version]
        unfinished = wanted.due + sum(seat.taken for seat in owned)
        # Those of an agent that leaves still stand, but do nothing more.
        ending = sum(seat.state == "stopping" for seat in owned)
        target = min(wanted.max_containers, ceil(unfinished / wanted.per_container) + ending)
        if wanted.proof and not owned:
            self._start(wanted, 0)
            return
        for _ in range(target - len(owned)):
            if left <= 0 or not self._start(wanted, min(left, wanted.slots)):
                break
            left -= min(left, wanted.slots)
        self._queue_ahead(wanted, mine, left)

    def _queue_ahead(self, wanted: Wanted, mine: list[Seat], left: int) -> None:
        """Let containers of a quick function hold more than they run; the emptiest first."""
        for seat in sorted(mine, key=lambda s: (s.taken, s.container)):
            room = seat.ahead - max(seat.taken - seat.slots, 0) if seat.state == "ready" else 0
            count = min(left, room)
            if count > 0:
                self.steps.append(Place(wanted.version, seat.container, count))
                left -= count

    def _start(self, wanted: Wanted, count: int) -> bool:
        if not self.hosts:
            return False
        if not any(could_ever(host, wanted) for host in self.hosts):
            self.steps.append(Refuse(wanted.version, unsatisfiable(wanted, self.hosts)))
            return False
        room = self._room_for(wanted)
        if room is None:
            return False
        room.take(wanted)
        self.steps.append(Start(wanted.version, room.host.agent, count))
        return True

    def _room_for(self, wanted: Wanted) -> _Room | None:
        fitting = [room for room in self.rooms if room.fits(wanted)]
        if fitting:
            return max(fitting, key=lambda room: (room.cpu, room.memory_mb))
        for room in self.rooms:
            if could_ever(room.host, wanted) and self._make_room(room, wanted):
                return room
        # A proof only imports a module. Without this a deploy would wait for every long job of other apps to end.
        able = [room for room in self.rooms if wanted.proof and could_ever(room.host, wanted)]
        return max(able, key=lambda room: room.cpu) if able else None

    def _make_room(self, room: _Room, wanted: Wanted) -> bool:
        """Stop idle containers of others, longest idle first, if that makes room."""
        idle = sorted(
            (s for s in self.seats if s.agent == room.host.agent and self._idle(s) and s.version not in self.wanted),
            key=lambda s: (s.idle_since or 0.0, s.container),
        )
        chosen: list[Seat] = []
        cpu, memory = room.cpu, room.memory_mb
        for seat in idle:
            if cpu >= wanted.cpu and memory >= wanted.memory_mb:
                break
            chosen.append(seat)
            cpu, memory = cpu + seat.cpu, memory + seat.memory_mb
        if cpu < wanted.cpu or memory < wanted.memory_mb:
            return False
        for seat in chosen:
            self._stop(seat, "room for others")
            room.give_back(seat)
        return True

    def _idle(self, seat: Seat) -> bool:
        return (
            seat.state == "ready"
            and seat.taken == 0
            and seat.container not in self.stopped
            and not any(isinstance(step, Place) and step.container == seat.container for step in self.steps)
        )

    def _stop(self, seat: Seat, reason: str) -> None:
        self.stopped.add(seat.container)
        self.steps.append(Stop(seat.container, reason))

    def sweep(self) -> None:
        """Stop what has been idle for long enough, or belongs to a deployment that is no longer live."""
        for seat in self.seats:
            if not self._idle(seat) or seat.version in self.wanted:
                continue
            since = seat.idle_since if seat.idle_since is not None else self.now
            if not seat.current:
                self._stop(seat, "its deployment is no longer live")
            elif self.now - since >= seat.keep_warm_s:
                self._stop(seat, "idle")


def plan(picture: Picture) -> list[Step]:
    """Return the steps to take, in order. The app that holds the fewest containers is served first."""
    planner = _Planner(picture)
    held: dict[str, int] = {}
    for seat in picture.seats:
        held[seat.app] = held.get(seat.app, 0) + 1
    planner.sweep()
    for wanted in sorted(picture.wanted, key=lambda w: (held.get(w.app, 0), w.app, w.version)):
        planner.serve(wanted)
    return planner.steps


def could_ever(host: Host, wanted: Wanted) -> bool:
    """Tell whether the agent could run this with nothing else on it."""
    return host.cpu >= wanted.cpu and host.memory_mb >= wanted.memory_mb and _has_gpu(host, wanted)


def unsatisfiable(wanted: Wanted, hosts: tuple[Host, ...]) -> str:
    """Return the sentence for jobs that no agent can ever run."""
    has = "; ".join(f"cpu={host.cpu:g}, memory_mb={host.memory_mb}, gpus={list(host.gpus)}" for host in hosts)
    gpus = f", gpu={list(wanted.gpus)}" if wanted.gpus else ""
    return f"no agent can ever give cpu={wanted.cpu:g}, memory_mb={wanted.memory_mb}{gpus}; the agents have {has}"


def _has_gpu(host: Host, wanted: Wanted) -> bool:
    return not wanted.gpus or any(gpu in host.gpus for gpu in wanted.gpus)
