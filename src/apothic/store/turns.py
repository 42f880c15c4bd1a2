"""Whose turn it is: when each app and each version last had a container, and since when each container serves.

A hint, no truth, as `pace.py` is: it is lost with the process, and only ever decides who gets a container next.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from apothic.store.picture import NEVER


class Turns:
    """Learns from each look at the containers. Used by the writer's thread alone."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, float]] = {}  # container → its state, and when it was first seen in it
        self._served: dict[str | int, float] = {}  # app or version → when it was last seen with a container
        self._hungry: dict[int, float] = {}  # version with work → since when it has had no container

    def look(self, seats: Sequence[sqlite3.Row], wanting: Sequence[int], now: float) -> None:
        """Take how the containers stand at this moment, and which versions have work."""
        before, self._seen = self._seen, {}
        for row in seats:
            known = before.get(row["id"])
            self._seen[row["id"]] = known if known is not None and known[0] == row["state"] else (row["state"], now)
            if row["state"] != "stopping":
                self._served[row["app"]] = self._served[row["version"]] = now

        fed = {row["version"] for row in seats if row["state"] != "stopping"}
        self._hungry = {version: self._hungry.get(version, now) for version in wanting if version not in fed}

    def hungry_since(self, version: int) -> float | None:
        """Return since when a version has had work and no container, if it has none."""
        return self._hungry.get(version)

    def since(self, container: str) -> float | None:
        """Return when a container was first seen in the state it is in."""
        known = self._seen.get(container)
        return known[1] if known is not None else None

    def served(self, name: str | int) -> float:
        """Return when an app or a version last had a container."""
        return self._served.get(name, NEVER)
