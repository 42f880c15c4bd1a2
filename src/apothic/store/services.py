"""Versions that answer HTTP: which are live, where their containers are, and how many of those are wanted."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from apothic.clock import Clock
from apothic.protocol.messages import Failure, FunctionSpec
from apothic.protocol.services import SERVICE_KINDS, ServiceSpec
from apothic.protocol.specs import FunctionOptions
from apothic.store import applogs, views
from apothic.store.db import Database
from apothic.store.tx import Tx

SERVICES = "services"  # rung after each commit that changes what `Services.table` tells
# Why a service's container is gone, or cannot be: its id ('' for one that no agent can start), its version, the state
# that it was in, and what went wrong if something did.
Obituary = Callable[[str, int, str, Failure | None], None]


@dataclass(frozen=True)
class Served:
    """A service of a live deployment."""

    version: int
    deployment_id: str
    app: str
    name: str
    kind: str
    options: FunctionOptions
    service: ServiceSpec


@dataclass(frozen=True)
class Serving:
    """A container that answers at `address`; `usable` while it is ready and its agent is there."""

    container: str
    agent: str
    version: int
    address: str
    secret: str
    usable: bool


@dataclass(frozen=True)
class ServiceTable:
    """What is live, and every container that has told its address: those of versions that were live drain."""

    live: tuple[Served, ...]
    containers: tuple[Serving, ...]


@dataclass(frozen=True)
class ServiceLine:
    """A line of a service's access log; `container` is the gateway's own name when none answered."""

    app: str
    function: str
    container: str
    text: str
    at: float


class Services:
    """The tables of services and their addresses, as the gateway reads and writes them. `ring` takes a topic."""

    def __init__(self, db: Database, clock: Clock, ring: Callable[[str], None]) -> None:
        self._db = db
        self._clock = clock
        self._ring = ring

    async def table(self) -> ServiceTable:
        """Return how things stand, in one snapshot."""

        def read(tx: Tx) -> ServiceTable:
            return ServiceTable(
                live=tuple(_served(row) for row in tx.all("live_services")),
                containers=tuple(
                    Serving(
                        row["id"], row["agent_id"], row["version"], row["address"], row["secret"], bool(row["usable"])
                    )
                    for row in tx.all("service_containers")
                ),
            )

        return await self._db.read(read)

    async def want(self, demands: dict[int, int]) -> None:
        """Say how many containers of each version are wanted now; 0 takes it back. It holds until said anew."""

        def write(tx: Tx) -> None:
            for version, wanted in demands.items():
                tx.run("want_containers", version=version, wanted=wanted)
            tx.fleet_changed = True

        await self._db.write(write)

    async def used(self, busy: list[str], idle: dict[str, float]) -> None:
        """Note which containers have requests, and when (monotonic time) the last request of the others ended."""

        def write(tx: Tx) -> None:
            for container in busy:
                tx.run("service_idle", id=container, since=None)
            for container, since in idle.items():
                tx.run("service_idle", id=container, since=since)
            tx.fleet_changed = True

        await self._db.write(write)

    async def say(self, lines: list[ServiceLine]) -> None:
        """Store lines of access logs with what else belongs to no job; those of apps that are not here are dropped."""

        def write(tx: Tx) -> None:
            for app in dict.fromkeys(line.app for line in lines):
                if tx.one("app", name=app) is not None:
                    applogs.add(tx, app, [_columns(line) for line in lines if line.app == app])
                    tx.then(lambda app=app: self._ring(applogs.topic(app)))  # type: ignore[misc]

        await self._db.write(write)

    async def any(self) -> bool:
        """Tell whether a service is live."""
        return await self._db.read(lambda tx: tx.one("live_service") is not None)


def insert(tx: Tx, spec: FunctionSpec, deployment_id: str, function_id: str) -> None:
    """Note that a new version is a service, if it is one."""
    if spec.kind in SERVICE_KINDS:
        port = spec.service.port if spec.service is not None and spec.kind == "web_server" else 0
        tx.run("insert_service", deployment_id=deployment_id, function_id=function_id, port=port or None)


def unheard(container: str, version: int, state: str, failure: Failure | None) -> None:
    """Do nothing about an end: there is no gateway."""


def changed(tx: Tx, ring: Callable[[str], None]) -> None:
    """Tell after the commit that the table of services is another."""
    tx.then(lambda: ring(SERVICES))


def _served(row: sqlite3.Row) -> Served:
    spec = views.spec(row["spec"])
    return Served(
        version=row["version"],
        deployment_id=row["deployment_id"],
        app=row["app"],
        name=spec.name,
        kind=spec.kind,
        options=spec.options,
        service=spec.service or ServiceSpec(),
    )


def _columns(line: ServiceLine) -> applogs.Columns:
    return line.function, line.container, "stdout", line.text, line.at, False
