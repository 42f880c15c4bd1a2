"""What an agent and the control plane say over the agent's session: MessagePack frames, one tagged union each way.

A value travels here as the bytes that are stored (`Packed`): nobody between caller and container takes it apart.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from apothic.protocol.messages import Encoding, Failure, FunctionSpec, PickleHeader, SourceFile

# What the store can hold: SQLite's whole numbers end here, its NULL is what it makes of nan, and JSON knows no inf.
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Amount = Annotated[float, Meta(ge=0.0, le=1e15)]


class Packed(Struct, frozen=True, kw_only=True, omit_defaults=True, array_like=False):
    """A packed value: JSON text or pickle bytes in `data`, or a blob's name and size. Also the store's own form."""

    encoding: Encoding
    data: bytes | None = None
    sha256: str | None = None
    size: Count = 0
    header: PickleHeader | None = None
    repr: str | None = None


class Lease(Struct, frozen=True, kw_only=True):
    """The right to write to a job: its attempt, and the token that every write presents."""

    job: str
    attempt: Count
    token: str


# --- agent → control plane --------------------------------------------------------------------------------------


class ContainerNews(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a container stands now. `failure` says why one is gone that never became ready, or that served.

    `address` is where a service's container answers: `unix:PATH`, `port:NUMBER` of this machine's loopback, or
    `relay:HOST:PORT`.

    In a hello, `stopping` is one that takes no more work, or whose end is told by a frame that comes right after.
    """

    id: str
    state: Literal["starting", "ready", "stopping", "gone"]
    pid: Count = 0
    failure: Failure | None = None
    address: str = ""


class Hello(Struct, frozen=True, kw_only=True, tag="hello"):
    """The first frame of a session, also of a new one after a cut: who I am, what I have, what still runs."""

    agent: str
    version: str
    host: str
    pid: Count
    cpu: Amount
    memory_mb: Count
    gpus: list[str] = []
    containers: list[ContainerNews] = []
    leases: list[Lease] = []
    leaving: bool = False  # I finish what I have, and take no more
    address: str = ""  # HOST:PORT of the relay to its containers' services, of an agent that is elsewhere


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="line"):
    """One line of what an attempt printed."""

    stream: Literal["stdout", "stderr", "system"]
    text: str
    at: Amount
    cont: bool = False


class Item(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="item"):
    """What a generator yielded. `index` counts them from 0 within the attempt; a blob that `value` names is stored."""

    index: Count
    value: Packed


Said = Line | Item


class ContainerSaid(Struct, frozen=True, kw_only=True):
    """Lines that a container printed and that belong to no job, numbered from 0 within its life."""

    container: str
    first: Count
    lines: list[Line]


class Outcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an attempt ended: a `value`, a `failure`, or given back unbegun (`requeue` has the reason).

    `behind` is a job given back because it waited behind a long one: nobody's fault, so no budget pays. `items` is how
    many a generator has yielded in all; its `value` is what it returned.
    """

    value: Packed | None = None
    failure: Failure | None = None
    requeue: str | None = None
    behind: bool = False
    items: Count | None = None
    ran_s: Amount = 0.0  # from its begin to its end, by the agent's clock


class Report(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """News of one attempt. `seq` rises by 1 from 0 within it, so a report that comes twice counts once."""

    job: str
    attempt: Count
    token: str
    seq: Count
    at: Amount
    began: bool = False
    said: list[Said] = []  # lines and items, in the order in which they came
    outcome: Outcome | None = None


class Reports(Struct, frozen=True, kw_only=True, tag="reports", omit_defaults=True):
    """All that was ready at one moment. `number` rises by 1 within the agent's life and is acknowledged."""

    number: Count
    reports: list[Report] = []
    said: list[ContainerSaid] = []
    containers: list[ContainerNews] = []


class Renew(Struct, frozen=True, kw_only=True, tag="renew"):
    """All my leases, for another term. `leaving`: I finish what I have, and take no more."""

    number: Count
    leaving: bool = False


Upward = Hello | Reports | Renew

# --- control plane → agent --------------------------------------------------------------------------------------


class Welcome(Struct, frozen=True, kw_only=True, tag="welcome"):
    """The limits that hold here, and which of the agent's leases and containers no longer count."""

    lease_s: float
    grace_s: float
    startup_timeout_s: float
    payload_limit: int
    inline_limit: int
    dead_leases: list[str] = []  # tokens
    dead_containers: list[str] = []


class StartContainer(Struct, frozen=True, kw_only=True, tag="start"):
    container: str
    deployment: str
    app: str
    function: FunctionSpec
    files: list[SourceFile]
    secret: str = ""  # of a service: who connects by way of a relay has to know it
    token: str = ""  # what a service may call others with


class StopContainer(Struct, frozen=True, kw_only=True, tag="stop", omit_defaults=True):
    """Take no more work, and end: within the grace, or with `finish` once all that runs has ended, however long."""

    container: str
    reason: str
    finish: bool = False


class Assignment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt for a container. `job_token` is what the job may call others with."""

    container: str
    job: str
    attempt: int
    token: str
    input: Packed
    timeout_s: float
    accept: list[Encoding]
    job_token: str
    once: bool = False  # delivered at most once: its code must not be entered twice


class Work(Struct, frozen=True, kw_only=True, tag="work"):
    assignments: list[Assignment]


class CancelAttempt(Struct, frozen=True, kw_only=True, tag="cancel"):
    job: str
    token: str


class Acknowledge(Struct, frozen=True, kw_only=True, tag="ack", omit_defaults=True):
    """Everything up to frame `number` is on disk.

    `paused` are tokens of that frame whose generators get no leave to go on until a `Resume`: a reader is far behind.
    """

    number: int
    paused: list[str] = []


class Resume(Struct, frozen=True, kw_only=True, tag="resume"):
    """The generator may go on."""

    token: str


class Renewed(Struct, frozen=True, kw_only=True, tag="renewed"):
    number: int
    dead_leases: list[str] = []


class Leave(Struct, frozen=True, kw_only=True, tag="leave"):
    """Finish, or give back within the grace, and end."""

    reason: str


Downward = Welcome | StartContainer | StopContainer | Work | CancelAttempt | Acknowledge | Resume | Renewed | Leave
