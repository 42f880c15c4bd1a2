"""The last word of a transaction that changed the queue: look at the picture, plan, claim.

It runs in the writer's own transaction, so a job is accepted and given to a container in one commit, and two
dispatchers can never give out the same job.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from apothic.clock import Clock
from apothic.protocol import ids
from apothic.protocol.messages import Encoding, Failure
from apothic.protocol.services import SERVICE_KINDS
from apothic.protocol.session import Assignment, Downward, StartContainer, StopContainer, Work
from apothic.store import services, views
from apothic.store.attempts import Moves
from apothic.store.jobs import Jobs
from apothic.store.pace import Pace
from apothic.store.picture import Host, Picture, Place, Refuse, Seat, Start, Step, Stop, Wanted
from apothic.store.rollout import Rollout
from apothic.store.turns import Turns
from apothic.store.tx import Tx

Plan = Callable[[Picture], list[Step]]
Push = Callable[[str, Downward], None]  # (agent id, frame), called on the loop after the commit
Sign = Callable[[str, int], str]  # (job id, attempt), or (container id, 0) → the token it may call others with


class Dispatcher:
    """Reads the picture, lets `plan` decide, writes what it decided, and pushes it once it is on disk."""

    def __init__(
        self,
        jobs: Jobs,
        clock: Clock,
        *,
        plan: Plan,
        push: Push,
        sign: Sign,
        ring: Callable[[str], None],
        lease_s: float,
    ) -> None:
        self._jobs = jobs
        self._clock = clock
        self._plan = plan
        self._push = push
        self._sign = sign
        self._ring = ring
        self._lease_s = lease_s
        self.obituary: services.Obituary = services.unheard

    def last_word(self, tx: Tx) -> None:
        """Place all that can be placed now."""
        tx.reach("dispatch.before")
        picture = self._look(tx)
        if picture is None or not (steps := self._plan(picture)):
            return
        moves = self._jobs.moves(tx)
        frames: dict[str, list[Downward]] = {}
        agents = {seat.container: seat.agent for seat in picture.seats}
        serve = {seat.container for seat in picture.seats if seat.serves}
        for step in steps:
            match step:
                case Place(version, container, count):
                    work = self._claim(tx, moves, version, container, count)
                    frames.setdefault(agents[container], []).extend(work)
                case Start(version, agent, count):
                    container = ids.new("ctr", self._clock.now())
                    frames.setdefault(agent, []).append(self._start(tx, version, agent, container))
                    frames[agent] += self._claim(tx, moves, version, container, count)
                case Stop(container, reason, finish):
                    tx.run("container_stopping", id=container)
                    if container in serve:
                        services.changed(tx, self._ring)
                    stop = StopContainer(container=container, reason=reason, finish=finish)
                    frames.setdefault(agents[container], []).append(stop)
                case Refuse(version, message):
                    self._refuse(tx, moves, version, message)
        for agent, waiting in frames.items():
            for frame in joined(waiting):
                tx.then(partial(self._push, agent, frame))
        tx.reach("dispatch.after")

    def _look(self, tx: Tx) -> Picture | None:
        """Read as much of the picture as it takes; `None` when there is nothing to do.

        A single call finds a free container and later leaves one: the whole picture, of each container that there is,
        took longer than all else, twice.
        """
        now, monotonic, pace = self._clock.now(), self._clock.monotonic(), self._jobs.pace
        if not tx.fleet_changed:
            wants = tx.one("wants")
            assert wants is not None
            if not wants["others"] and not wants["jobs"]:
                return None
            if not wants["others"] and (near := read_picture(tx, now, monotonic, pace, whole=False)).is_easy:
                return near
        return read_picture(tx, now, monotonic, pace, self._jobs.turns)

    def _claim(self, tx: Tx, moves: Moves, version: int, container: str, count: int) -> list[Downward]:
        if count == 0:
            return []
        assignments = []
        moves.pending.flush()  # what another container was given just now waits no more
        due = tx.all("delayed_jobs", version=version, now=self._clock.now(), limit=count)
        if len(due) < count:
            due += tx.all("waiting_jobs", version=version, limit=count - len(due))
        for job in due:
            token = secrets.token_hex(16)
            attempt = moves.claim(job, container, token, self._clock.monotonic() + self._lease_s)
            assignments.append(
                Assignment(
                    container=container,
                    job=job["id"],
                    attempt=attempt,
                    token=token,
                    input=views.packed(job["input"]),
                    timeout_s=job["timeout_s"],
                    accept=_accept(job["accept"]),
                    job_token=self._sign(job["id"], attempt),
                    once=job["delivery"] == "at_most_once",
                )
            )
        moves.pending.idle(container, None)
        return [Work(assignments=assignments)] if assignments else []

    def _start(self, tx: Tx, version: int, agent: str, container: str) -> StartContainer:
        tx.run("insert_container", id=container, agent_id=agent, version=version)
        row = tx.one("version_start", id=version)
        assert row is not None
        spec, secret = views.spec(row["spec"]), ""
        if spec.kind in SERVICE_KINDS:
            secret = secrets.token_hex(16)
            tx.run("insert_address", id=container, secret=secret)
        if row["status"] == "starting":
            Rollout(tx, self._clock.now(), self._ring).start(row["deployment_id"])
        return StartContainer(
            container=container,
            deployment=row["deployment_id"],
            app=row["app"],
            function=spec,
            files=views.manifest(row["manifest"]).files,
            secret=secret,
            token=self._sign(container, 0) if secret else "",
        )

    def _refuse(self, tx: Tx, moves: Moves, version: int, message: str) -> None:
        failure = Failure(kind="unsatisfiable", type="Unsatisfiable", message=message)
        self._jobs.refusals += 1
        for job in tx.all("waiting_jobs_of_version", version=version):
            moves.fail_waiting(job, failure)
        row = tx.one("version_start", id=version)
        assert row is not None
        if row["status"] == "starting":
            Rollout(tx, self._clock.now(), self._ring).fail(row["deployment_id"], failure)
        elif views.spec(row["spec"]).kind in SERVICE_KINDS:
            tx.then(partial(self.obituary, "", version, "starting", failure))


def read_picture(
    tx: Tx, now: float, monotonic: float, pace: Pace, turns: Turns | None = None, *, whole: bool = True
) -> Picture:
    """Read how things stand, in the transaction's own snapshot. Without `turns` nobody has to make room for others.

    One that is not `whole` has nothing but versions with jobs and their containers.
    """
    seats = tx.all("seats", whole=whole)
    due = [(row, _due(tx, row, now, pace.ahead(row["id"]))) for row in tx.all("wanting")]
    demands = tx.all("demands") if whole else []
    if turns is None:
        turns = Turns()
    else:
        turns.look(seats, [row["id"] for row, count in due if count] + [row["id"] for row in demands], monotonic)
    wanted = [_wanted(row, count, turns) for row, count in due if count]
    wanted += [_wanted(row, 0, turns, containers=row["wanted"], port=row["port"] or 0) for row in demands]
    have = {each.version for each in wanted}
    proofs = [row for row in (tx.all("proofs") if whole else []) if row["id"] not in have]
    wanted += [_wanted(row, 0, turns, proof=True, containers=1, port=row["port"] or 0) for row in proofs]
    return Picture(
        now=monotonic,
        wanted=tuple(wanted),
        seats=tuple(_seat(row, pace, turns) for row in seats),
        hosts=tuple(
            Host(row["id"], row["cpu"], row["memory_mb"], tuple(json.loads(row["gpus"])), bool(row["connected"]))
            for row in (tx.all("hosts") if whole else [])
        ),
        whole=whole,
    )


@lru_cache(64)
def _accept(text: str) -> list[Encoding]:
    encodings: list[Encoding] = json.loads(text)
    return encodings


def joined(frames: list[Downward]) -> list[Downward]:
    """Let neighbouring work share a frame."""
    out: list[Downward] = []
    for frame in frames:
        if out and isinstance(frame, Work) and isinstance(last := out[-1], Work):
            out[-1] = Work(assignments=last.assignments + frame.assignments)
        else:
            out.append(frame)
    return out


def _due(tx: Tx, row: sqlite3.Row, now: float, ahead: int) -> int:
    placeable = row["max_containers"] * (max(row["slots"], row["per_container"]) + ahead)
    count = tx.one("due", version=row["id"], now=now, limit=placeable)
    assert count is not None
    return int(count[0])


def _seat(row: sqlite3.Row, pace: Pace, turns: Turns) -> Seat:
    has_requests = row["idle_since"] is None and row["state"] != "starting"
    return Seat(
        container=row["id"],
        agent=row["agent_id"],
        version=row["version"],
        app=row["app"],
        state=row["state"],
        connected=bool(row["connected"]),
        slots=row["slots"],
        taken=int(has_requests) if row["serves"] else row["taken"],
        cpu=row["cpu"],
        memory_mb=row["memory_mb"],
        keep_warm_s=row["keep_warm_s"],
        idle_since=row["idle_since"],
        current=row["status"] in ("live", "starting"),
        ahead=pace.ahead(row["version"]),
        since=turns.since(row["id"]),
        serves=bool(row["serves"]),
        port=row["port"] or 0,
    )


def _wanted(row: sqlite3.Row, due: int, turns: Turns, **more: Any) -> Wanted:
    return Wanted(
        version=row["id"],
        app=row["app"],
        due=due,
        slots=row["slots"],
        per_container=row["per_container"],
        max_containers=row["max_containers"],
        cpu=row["cpu"],
        memory_mb=row["memory_mb"],
        gpus=tuple(json.loads(row["gpu"] or "[]")),
        served=turns.served(row["id"]),
        app_served=turns.served(row["app"]),
        hungry_since=turns.hungry_since(row["id"]),
        **more,
    )
