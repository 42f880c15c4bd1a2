"""Agents, containers, leases: who runs what. Each method is one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from apothic.clock import Clock
from apothic.errors import AuthError
from apothic.protocol.lifecycle import Status
from apothic.protocol.messages import AgentView, Failure
from apothic.protocol.session import ContainerNews, Hello, Outcome, Report, Reports
from apothic.store import applogs, services, views
from apothic.store.attempts import Moves
from apothic.store.db import Database
from apothic.store.dispatch import read_picture
from apothic.store.events import Refused
from apothic.store.jobs import Jobs, Running
from apothic.store.pace import Pace
from apothic.store.pending import IllegalMove
from apothic.store.picture import Standing
from apothic.store.rollout import Rollout
from apothic.store.tx import Tx
from apothic.store.verdicts import LOST

Ring = Callable[[str], None]


class Reconciled(NamedTuple):
    """What an agent that says hello has to hear."""

    dead_leases: list[str]
    dead_containers: list[str]
    cancelling: list[Running]
    stopping: list[str]  # containers that are to stop, and whose agent has not heard of it


class Applied(NamedTuple):
    """Tokens of reports: those that no longer count, and those whose generators have to wait for their reader."""

    dead: list[str]
    paused: list[str]


class Overdue(NamedTuple):
    """A lease that ran out, and who held it."""

    agent: str
    token: str
    container: str


class Swept(NamedTuple):
    """When the next delayed job is due (wall time); the leases that were ended, and whose containers are to stop."""

    next_due: float | None
    overdue: list[Overdue]


class Fleet:
    """The tables of agents, containers and leases. `ring(deployment_id)` tells that a deployment has changed."""

    def __init__(self, db: Database, clock: Clock, jobs: Jobs, ring: Ring, lease_s: float) -> None:
        self._db = db
        self._clock = clock
        self._jobs = jobs
        self._ring = ring
        self._lease_s = lease_s
        self.local_key = ""  # the id of the key that agents of this data directory show
        self.obituary: services.Obituary = services.unheard

    async def restart(self) -> None:
        """Begin a control plane's life: no sessions, and a full new term for every lease, by the new clock."""

        def write(tx: Tx) -> None:
            until = self._clock.monotonic() + self._lease_s
            tx.run("disconnect_agents", gone_at=until)
            tx.run("renew_all", expires_at=until)
            tx.run("restart_idle", now=self._clock.monotonic())
            tx.run("forget_demands", app=None)  # the gateway is new as well
            tx.fleet_changed = True

        await self._db.write(write)

    async def admit(self, agent_id: str, key: str) -> None:
        """Raise `AuthError` if another key, which is still good, speaks for this agent."""
        await self._db.read(lambda tx: self._check_key(tx, agent_id, key))

    async def hello(self, hello: Hello, key: str, forget: Callable[[], None]) -> Reconciled:
        """Take an agent in, new or come back, and say what of its is dead or is to be cancelled.

        Raises `AuthError` as `admit` does; otherwise it is `key` that speaks for the agent from now on.

        What it was told to do and never heard of goes back to the queue. `forget` is called at the commit, after what
        earlier commits push and before what this one does: what they gave the agent has just been taken from it.
        """

        def write(tx: Tx) -> Reconciled:
            tx.reach("hello.before")
            tx.then(forget)
            now = self._clock.monotonic()
            self._check_key(tx, hello.agent, key)
            tx.run(
                "upsert_agent", id=hello.agent, host=hello.host, pid=hello.pid, release=hello.version,
                cpu=hello.cpu, memory_mb=hello.memory_mb, gpus=json.dumps(hello.gpus),
            )  # fmt: skip
            tx.run("bind_agent", id=hello.agent, key=key)
            moves = self._jobs.moves(tx)
            held = {lease.token for lease in hello.leases}
            has = {news.id for news in hello.containers if news.state != "gone"}
            known = {row["id"]: row["state"] for row in tx.all("containers_of_agent", agent_id=hello.agent)}
            for container in known:
                for job in tx.all("leased_jobs_of_container", container_id=container):
                    if job["token"] not in held:
                        moves.end(job, _unheld(job, "the agent was never told"), [], now)
            for container in known.keys() - has:
                self._container_gone(tx, moves, container, None)
            for news in hello.containers:
                if news.id in known:
                    self._container_news(tx, moves, news)
            tx.run("renew_leases", agent_id=hello.agent, expires_at=now + self._lease_s)
            services.changed(tx, self._ring)
            if hello.leaving:
                tx.run("disconnect_agent", id=hello.agent, gone_at=now + self._lease_s)
            alive = {row["token"] for row in tx.all("tokens_of_agent", agent_id=hello.agent)}
            tx.fleet_changed = True
            cancelling = tx.all("cancelling", agent_id=hello.agent)
            tx.reach("hello.after")
            return Reconciled(
                sorted(held - alive),
                sorted(has - known.keys()),
                [Running(row["id"], row["token"], hello.agent) for row in cancelling],
                [n.id for n in hello.containers if n.state in ("starting", "ready") and known.get(n.id) == "stopping"],
            )

        return await self._db.write(write)

    async def reports(self, agent_id: str, frame: Reports) -> Applied:
        """Apply an agent's news, each once."""

        def write(tx: Tx) -> Applied:
            moves, now = self._jobs.moves(tx), self._clock.monotonic()
            dead = self._reports(tx, moves, frame.reports, now)
            for said in frame.said:
                app = applogs.append(tx, agent_id, said)
                if app is not None:
                    tx.then(partial(self._ring, applogs.topic(app)))
            for news in frame.containers:
                row = tx.one("container", id=news.id)
                if row is not None and row["agent_id"] == agent_id:
                    self._container_news(tx, moves, news)
            return Applied(dead, moves.paused)

        return await self._db.write(write)

    def _reports(self, tx: Tx, moves: Moves, reports: list[Report], now: float) -> list[str]:
        """Apply reports, all together if that can be; return the tokens of those that no longer count."""

        def together() -> list[str]:
            held = moves.held([report.job for report in reports])
            dead = [report.token for report in reports if not moves.report(report, now, held)]
            moves.pending.flush()
            return dead

        if not reports:
            return []
        try:
            return tx.guarded(together)
        except (sqlite3.IntegrityError, IllegalMove, Refused):
            moves.drop()
            return [report.token for report in reports if not self._report(tx, moves, report, now)]

    def _report(self, tx: Tx, moves: Moves, report: Report, now: float) -> bool:
        """Apply one report. What can never be stored fails its own attempt: sent again, it would hold up all others."""

        def alone() -> bool:
            counts = moves.report(report, now, moves.held([report.job]))
            moves.pending.flush()
            return counts

        try:
            return tx.guarded(alone)
        except (sqlite3.IntegrityError, IllegalMove, Refused) as error:
            moves.pending.drop()
            job = moves.held([report.job]).get(report.job)
            if job is None or job["token"] != report.token:
                return False
            what = f"what its container reported cannot be stored: {error}"
            moves.end(job, Outcome(failure=Failure(kind="serialization", type="ReportRefused", message=what)), [], now)
            moves.pending.flush()  # the next one that is refused drops what is pending
            return True

    async def renew(self, agent_id: str) -> None:
        """Give all leases of an agent another term."""

        def write(tx: Tx) -> None:
            tx.reach("renew.before")
            tx.run("renew_leases", agent_id=agent_id, expires_at=self._clock.monotonic() + self._lease_s)
            tx.reach("renew.after")

        await self._db.write(write)

    async def disconnected(self, agent_id: str) -> None:
        """Note that a session ended; the agent has a lease's time to come back."""
        gone_at = self._clock.monotonic() + self._lease_s

        def write(tx: Tx) -> None:
            tx.run("disconnect_agent", id=agent_id, gone_at=gone_at)
            services.changed(tx, self._ring)

        await self._db.write(write)

    async def leaving(self, agent_id: str) -> list[str]:
        """Give a leaving agent nothing more, and all its leases another term: it counts as away, but still reports.

        Return its containers that serve, each once: they are to be told to stop when nothing is asked of them any more.
        """

        def write(tx: Tx) -> list[str]:
            until = self._clock.monotonic() + self._lease_s
            tx.run("agent_leaving", id=agent_id, gone_at=until)
            tx.run("renew_leases", agent_id=agent_id, expires_at=until)
            services.changed(tx, self._ring)
            serving = [row["container_id"] for row in tx.all("services_of_agent", agent_id=agent_id)]
            for container in serving:
                tx.run("container_stopping", id=container)
            return serving

        return await self._db.write(write)

    async def overslept(self, by_s: float) -> None:
        """Put every term off: this control plane itself stood still for so long, and heard nobody."""

        def write(tx: Tx) -> None:
            tx.run("put_off_leases", by=by_s)
            tx.run("put_off_agents", by=by_s)
            tx.run("put_off_holds", by=by_s)

        await self._db.write(write)

    async def dead(self, host: str, pid: int) -> None:
        """Bury an agent whose process is known to be dead, without waiting for its leases to run out."""

        def write(tx: Tx) -> None:
            for row in tx.all("agents"):
                if row["host"] == host and row["pid"] == pid:
                    self._agent_gone(tx, self._jobs.moves(tx), row["id"])

        await self._db.write(write)

    async def sweep(self, at: float | None = None) -> Swept:
        """End what nobody answers for any more at a moment of the monotonic clock: agents that stayed away, leases
        that were not renewed. An agent of such a lease counts as away until it says hello again.
        """

        def write(tx: Tx) -> Swept:
            tx.reach("sweep.before")
            moves, now = self._jobs.moves(tx), self._clock.monotonic() if at is None else at
            for row in tx.all("gone_agents", now=now):
                self._agent_gone(tx, moves, row["id"])
            overdue: list[Overdue] = []
            for job in tx.all("overdue_leases", now=now):
                # The attempt may well run on in there, so the container takes no other.
                tx.run("container_stopping", id=job["container_id"])
                container = tx.one("container", id=job["container_id"])
                assert container is not None
                # Stopped, or cut off: what it is given it loses, and each time a job pays for it.
                tx.run("disconnect_agent", id=container["agent_id"], gone_at=now + self._lease_s)
                overdue.append(Overdue(container["agent_id"], job["token"], container["id"]))
                moves.end(job, Outcome(failure=lost("its agent did not renew the lease")), [], now)
            tx.fleet_changed = True
            due = tx.one("next_due", now=moves.now)
            tx.reach("sweep.after")
            return Swept(due[0] if due is not None else None, overdue)

        return await self._db.write(write)

    async def standing(self, job_ids: list[str]) -> Standing:
        """Return how things stand, with the versions of all leased jobs and of those of the list that are queued."""

        def read(tx: Tx) -> Standing:
            now = self._clock.now()
            return Standing(
                read_picture(tx, now, self._clock.monotonic(), Pace()),
                {row["id"]: row["version"] for row in tx.all("leased_versions")},
                {row["id"]: row["version"] for row in tx.all("queued_versions", ids=json.dumps(job_ids), now=now)},
            )

        return await self._db.read(read)

    async def fail_deadlocked(self, job_id: str) -> None:
        """Fail a job that is queued for ever; one that is not queued any more stays as it is."""

        def write(tx: Tx) -> None:
            row = tx.one("job_row", id=job_id)
            if row is not None and row["status"] == Status.QUEUED:
                message = "every slot that this job could have is held by jobs that wait for it, or for one like it"
                self._jobs.moves(tx).fail_waiting(row, Failure(kind="deadlock", type="Deadlock", message=message))

        await self._db.write(write)

    async def agents(self) -> list[AgentView]:
        """Return the fleet."""
        return await self._db.read(lambda tx: [views.agent(row) for row in tx.all("agents")])

    # --- the steps ----------------------------------------------------------------------------------------------

    def _check_key(self, tx: Tx, agent_id: str, key: str) -> None:
        """Without this, one that may be an agent could be any: take over its session, and end its jobs."""
        bound = tx.one("key_of_agent", id=agent_id, now=self._clock.now())
        if bound is not None and bound["good"] and bound["key_id"] != key:
            raise AuthError(
                f"another key speaks for agent {agent_id}",
                hint=f"revoke {bound['key_id']}, or wait until the agent is gone",
            )

    def _agent_gone(self, tx: Tx, moves: Moves, agent_id: str) -> None:
        for row in tx.all("containers_of_agent", agent_id=agent_id):
            self._container_gone(tx, moves, row["id"], lost("its agent is gone"))
        tx.run("delete_agent", id=agent_id)
        services.changed(tx, self._ring)

    def _container_news(self, tx: Tx, moves: Moves, news: ContainerNews) -> None:
        row = tx.one("deployment_of_container", id=news.id)
        if row is None:
            return
        if news.state == "ready":
            tx.run("container_ready", id=news.id, now=self._clock.monotonic())
            if row["serves"]:
                tx.run("set_address", id=news.id, address=news.address, local=self.local_key)
                tx.run("note_proof", version=row["version"])
            else:
                tx.run("container_idle", id=news.id, now=self._clock.monotonic())
            if row["status"] == "starting":
                self._rollout(tx).prove(row["app"], row["id"])
        elif news.state == "stopping":
            tx.run("container_stopping", id=news.id)
        elif news.state == "gone":
            self._container_gone(tx, moves, news.id, news.failure)
        if row["serves"]:
            services.changed(tx, self._ring)
        tx.fleet_changed = True

    def _container_gone(self, tx: Tx, moves: Moves, container_id: str, failure: Failure | None) -> None:
        row = tx.one("deployment_of_container", id=container_id)
        if row is None:
            return
        now = self._clock.monotonic()
        for job in tx.all("leased_jobs_of_container", container_id=container_id):
            outcome = Outcome(failure=failure) if failure is not None else _unheld(job, "its container is gone")
            moves.end(job, outcome, [], now)
        tx.run("delete_container", id=container_id)
        if row["serves"]:
            tx.then(partial(self.obituary, container_id, row["version"], row["state"], failure))
            services.changed(tx, self._ring)
        # Whatever the container did wrong fails the deployment, at the first try: trying a module that ends its process
        # again would go on for ever. A lost agent is no fault of the deployment's.
        if row["status"] == "starting" and failure is not None and failure.kind != "worker_lost":
            self._rollout(tx).fail(row["id"], failure)
        self._rollout(tx).emptied(row["id"])
        tx.fleet_changed = True

    def _rollout(self, tx: Tx) -> Rollout:
        return Rollout(tx, self._clock.now(), self._ring)


def _unheld(job: sqlite3.Row, why: str) -> Outcome:
    """Return the end of an attempt that its agent does not have: one that has run was lost, another never began."""
    return Outcome(requeue=why) if job["status"] == Status.STARTING else Outcome(failure=lost(why))


def lost(why: str) -> Failure:
    """Return the failure of an attempt whose process is out of reach."""
    return Failure(kind="worker_lost", type=LOST, message=f"the worker is lost: {why}", retriable=True)
