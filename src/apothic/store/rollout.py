"""The moves of a deployment, each with its event: from its manifest to the last container that ran it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from apothic.errors import NotFoundError
from apothic.protocol.messages import Failure
from apothic.store import schedules, services, views
from apothic.store.tx import Tx, dumps


def no_deployment(deployment: str) -> NotFoundError:
    """Return the error for an id that is no deployment's."""
    return NotFoundError(f"there is no deployment {deployment}", hint="`apothic app show APP` lists an app's")


class Rollout:
    """Moves deployments within a transaction; `ring` is told of each that moved once that is on disk."""

    def __init__(self, tx: Tx, now: float, ring: Callable[[str], None]) -> None:
        self._tx = tx
        self._now = now
        self._ring = ring

    def build(self, deployment: str) -> None:
        """Note a new deployment, or one that is to be started again."""
        self._tell(deployment, "building")

    def again(self, app: str, deployment: str) -> None:
        """Start a deployment that had failed or was stopped. What of it still runs has shown already that it starts."""
        self._tx.run("set_deployment", id=deployment, status="starting", failure=None)
        self._tx.run("forget_proofs", id=deployment)
        self.build(deployment)
        if self._tx.one("ready_container", deployment_id=deployment) is not None:
            self.prove(app, deployment)

    def start(self, deployment: str) -> None:
        """Note that a container is told to start, so that the deployment can show that it does."""
        if self._newest(deployment) == "building":
            self._tell(deployment, "starting")

    def prove(self, app: str, deployment: str) -> None:
        """Let a deployment go live all of whose services have been ready, or that has none and had a ready container.

        One that was asked for before what is live now stays ready beside it.
        """
        if self._tx.one("unproved_service", id=deployment) is not None:
            return
        self._tell(deployment, "ready")
        if self._tx.one("newer_live", id=deployment) is None:
            self.go_live(app, deployment)
        else:
            self._tx.run("set_deployment", id=deployment, status="ready", failure=None)

    def go_live(self, app: str, deployment: str) -> None:
        """Let a deployment answer for its app, and its schedules begin; the one before stays ready."""
        self._retire(app)
        self._tx.run("retire_live", app=app)
        self._tx.run("set_deployment", id=deployment, status="live", failure=None)
        self._tx.run("go_live", name=app, id=deployment)
        schedules.hand_over(self._tx, app, deployment, self._now)
        self._tell(deployment, "live")

    def stop(self, app: str) -> None:
        """Take an app's live deployment away, and those that are being started."""
        self._retire(app)
        starting = self._tx.all("starting_deployments", app=app)
        self._tx.run("stop_deployments", app=app)
        self._tx.run("end_schedules", app=app)
        self._tx.run("stop_app", name=app)
        for row in starting:
            self._ring_later(row["id"])
            self.emptied(row["id"])
        services.changed(self._tx, self._ring)

    def fail(self, deployment: str, failure: Failure) -> None:
        """Record that a deployment did not start; what was live before stays so."""
        self._tx.run("set_deployment", id=deployment, status="failed", failure=views.encode(failure))
        self._tell(deployment, "failed", failure)

    def emptied(self, deployment: str) -> None:
        """Note that the last container is gone of a deployment that is not live any more."""
        if self._tx.one("abandoned", id=deployment) is not None and self._newest(deployment) != "stopped":
            self._tell(deployment, "stopped")

    def _retire(self, app: str) -> None:
        row = self._tx.one("app", name=app)
        self._tx.run("forget_demands", app=app)
        if row is not None and row["live"] is not None:
            has = self._tx.one("container_of_deployment", deployment_id=row["live"]) is not None
            self._tell(row["live"], "draining" if has else "stopped")

    def _newest(self, deployment: str) -> str | None:
        row = self._tx.one("newest_deployment_event", id=deployment)
        return row["status"] if row is not None else None

    def _tell(self, deployment: str, status: str, failure: Failure | None = None) -> None:
        told: dict[str, Any] = {"status": status, "at": self._now}
        if failure is not None:  # its traceback and what was printed are in the deployment
            told["failure"] = {"kind": failure.kind, "type": failure.type, "message": failure.message}
        self._tx.run("insert_deployment_event", id=deployment, status=status, data=dumps(told))
        self._ring_later(deployment)
        services.changed(self._tx, self._ring)

    def _ring_later(self, deployment: str) -> None:
        self._tx.then(partial(self._ring, deployment))
