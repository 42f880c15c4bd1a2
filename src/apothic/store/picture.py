"""What the planner looks at, and what it may answer. Plain data, so that the plan can be a pure function."""

from __future__ import annotations

from dataclasses import dataclass

NEVER = float("-inf")


@dataclass(frozen=True)
class Wanted:
    """A version with due jobs, a service that wants containers, or one that must show that it starts (`proof`).

    `per_container` is how many jobs one container is meant for: past that a further one is wanted. `containers` is how
    many are wanted whatever its jobs say. `port` is held by one container on an agent, 0 is none.
    """

    version: int
    app: str
    due: int
    slots: int
    per_container: int
    max_containers: int
    cpu: float
    memory_mb: int
    gpus: tuple[str, ...] = ()
    proof: bool = False
    containers: int = 0
    port: int = 0
    served: float = NEVER  # when it last had a container, and when its app had one: whose turn it is
    app_served: float = NEVER
    hungry_since: float | None = None  # since when it has had no container, if it has none


@dataclass(frozen=True)
class Seat:
    """A container: how many of its slots are taken, and since when it has had nothing to do.

    Of one that `serves`, requests are all that is known: `taken` is 1 while it has any.
    """

    container: str
    agent: str
    version: int
    app: str
    state: str
    connected: bool
    slots: int
    taken: int
    cpu: float
    memory_mb: int
    keep_warm_s: float
    idle_since: float | None
    current: bool  # its deployment is live, or is being started
    ahead: int = 0  # how many jobs it may hold beyond its slots
    since: float | None = None  # when it was first seen in this state, as far as is known
    serves: bool = False
    port: int = 0  # that it holds on its agent's machine


@dataclass(frozen=True)
class Host:
    """An agent, and all that it has. Only a connected one can be given work."""

    agent: str
    cpu: float
    memory_mb: int
    gpus: tuple[str, ...] = ()
    connected: bool = True


@dataclass(frozen=True)
class Picture:
    """How things stand. `now` is the control plane's monotonic clock."""

    now: float
    wanted: tuple[Wanted, ...]
    seats: tuple[Seat, ...]
    hosts: tuple[Host, ...]
    whole: bool = True  # else there is nothing in it but versions with due jobs, and their containers

    @property
    def is_easy(self) -> bool:
        """Tell whether containers that are ready have room for all that is due, each for what it is meant for."""
        meant = {wanted.version: min(wanted.slots, wanted.per_container) for wanted in self.wanted}
        free = dict.fromkeys(meant, 0)
        for seat in self.seats:
            if seat.version in meant and seat.connected and seat.state == "ready":
                free[seat.version] += max(0, meant[seat.version] - seat.taken)
        return all(wanted.due <= free[wanted.version] for wanted in self.wanted)


@dataclass(frozen=True)
class Standing:
    """A picture, with the version of every leased job and of those queued ones that somebody asked about."""

    picture: Picture
    leased: dict[str, int]
    queued: dict[str, int]


@dataclass(frozen=True)
class Place:
    """Give the next `count` due jobs of a version to a container."""

    version: int
    container: str
    count: int


@dataclass(frozen=True)
class Start:
    """Start a container of a version on an agent, and give it the next `count` due jobs."""

    version: int
    agent: str
    count: int


@dataclass(frozen=True)
class Stop:
    """Stop a container that has nothing to do, or with `finish` one that works: it begins no more, and ends after."""

    container: str
    reason: str
    finish: bool = False


@dataclass(frozen=True)
class Refuse:
    """Fail the jobs that wait for something no agent can ever give."""

    version: int
    message: str


Step = Place | Start | Stop | Refuse
