"""How much there is of everything, for whoever watches from outside."""

from __future__ import annotations

from msgspec import Struct

from apothic.store.db import Database
from apothic.store.room import Room
from apothic.store.tx import Tx


class Gauges(Struct, frozen=True, kw_only=True):
    """Counts of one instant. `waiting` is by (app, function)."""

    jobs: dict[str, int]
    waiting: dict[tuple[str, str], int]
    agents: dict[str, int]
    containers: dict[str, int]
    commits: int
    held: int
    gone: int
    collected: int


async def read_gauges(db: Database, room: Room) -> Gauges:
    """Return the counts, all from one snapshot; what has happened is counted since this process began."""

    def read(tx: Tx) -> Gauges:
        return Gauges(
            jobs={row["status"]: row["n"] for row in tx.all("jobs_by_status")},
            waiting={(row["app"], row["name"]): row["n"] for row in tx.all("waiting_by_function")},
            agents={row["state"]: row["n"] for row in tx.all("agents_by_state")},
            containers={row["state"]: row["n"] for row in tx.all("containers_by_state")},
            commits=db.commits,
            held=room.held,
            gone=room.gone,
            collected=room.collected,
        )

    return await db.read(read)
