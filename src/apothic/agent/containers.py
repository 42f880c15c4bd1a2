"""All containers of an agent: start, feed, cancel, stop; their memory is watched, their remains are collected."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import math
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from apothic.agent.attempt import Attempt, Stop
from apothic.agent.bundles import Blobs, Bundles
from apothic.agent.cgroup import Groups
from apothic.agent.container import Container
from apothic.agent.launcher import Launcher
from apothic.agent.outbox import Outbox, Story
from apothic.agent.passage import Passage
from apothic.agent.site import Site
from apothic.agent.tree import Leftovers, tree_proportional, tree_resident
from apothic.clock import Clock, wait_for
from apothic.errors import ApothicError
from apothic.protocol.messages import Failure, FailureKind
from apothic.protocol.session import Assignment, ContainerNews, Lease, Outcome, StartContainer, Welcome

SAMPLE_S = 0.1
_log = logging.getLogger("apothic.agent")


class Containers:
    """Supervises child processes below the directory `home` and tells `outbox` what happens to them.

    Make it inside a running loop, in the main thread: the processes end with the thread that started them.
    """

    def __init__(
        self, home: Path, limits: Welcome, outbox: Outbox, blobs: Blobs, clock: Clock, *, kill_s: float = 5.0,
        groups: Groups | None = None, launcher: Launcher | None = None,
    ) -> None:  # fmt: skip
        launcher = Launcher(str(home)) if launcher is None else launcher
        groups = Groups() if groups is None else groups
        _log.info("containers are limited by %s", groups.level)
        self.live: dict[str, Container] = {}
        self._blobs = blobs
        self._clock = clock
        self._outbox = outbox
        self._closing = False
        self._jobs: set[asyncio.Task[None]] = set()
        self._held: dict[str, Attempt] = {}  # by token: what has not ended, large results under way included
        self._numbers = itertools.count()
        self._leftovers = Leftovers(clock)
        self._files = home / "files"
        self._files.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.site = Site(
            home=home / "containers", mark=str(home), limits=limits, base_url="", kill_s=kill_s, clock=clock,
            outbox=outbox, bundles=Bundles(home / "bundles", blobs), groups=groups, launcher=launcher,
            spawn=self._spawn, leftovers=self._end_leftovers, keep=self._keep, forget=self._forget,
        )  # fmt: skip
        outbox.on_room = self._resume
        outbox.credit.on_taken = self._taken
        self._watch = self._spawn(self._watch_memory())

    # --- what is asked of it

    def start(self, order: StartContainer) -> None:
        """Start a container; one of that id that is there already stays as it is."""
        if self._closing:
            self._outbox.container(ContainerNews(id=order.container, state="gone"))
        elif order.container not in self.live:
            _log.info("starting %s for %s.%s", order.container, order.app, order.function.name)
            self.live[order.container] = Container(order, self.site)

    def assign(self, *assignments: Assignment) -> None:
        """Give attempts to their containers, each once its input is here."""
        for assignment in assignments:
            self._assign(assignment)
        for name in {assignment.container for assignment in assignments}:
            if name in self.live:
                self.live[name].feed()

    def _assign(self, assignment: Assignment) -> None:
        if assignment.token in self._held:
            return
        lease = Lease(job=assignment.job, attempt=assignment.attempt, token=assignment.token)
        passage = Passage(Story(lease), self._outbox, self._blobs.store, self._spawn)
        attempt = Attempt(assignment, passage, self._clock, self._ended, self._spoilt)
        self._held[assignment.token] = attempt
        container = self.live.get(assignment.container)
        if container is None:
            attempt.end(Outcome(requeue="its container is gone"))
            return
        if assignment.input.sha256 is not None and assignment.input.data is None:
            attempt.fetching = self._spawn(self._fetch(container, attempt))
        container.give(attempt)

    def cancel(self, job: str, token: str) -> None:
        """Stop one attempt: ask, then force."""
        attempt = self._held.get(token)
        if attempt is not None and attempt.given.job == job:
            self._stop(attempt, "cancelled")

    def moved(self, base_url: str) -> None:
        """Take note of where the control plane is now."""
        if base_url != self.site.base_url:
            self.site.base_url = base_url
            for container in self.live.values():
                container.moved()

    def stop(self, container: str, reason: str, *, finish: bool = False) -> None:
        """Let a container finish, within the grace or however long it takes, and end."""
        if container in self.live:
            self._spawn(self.live[container].stop(reason, math.inf if finish else self.site.limits.grace_s))

    def drop(self, tokens: list[str]) -> None:
        """Stop the attempts of lost leases and tell nothing more of them."""
        for token in tokens:
            attempt = self._held.get(token)
            if attempt is not None:
                attempt.mute()
                self._stop(attempt, "cancelled")

    def end(self, containers: list[str]) -> None:
        """End containers that no longer count, at once."""
        for name in containers:
            if name in self.live:
                self._spawn(self._end(self.live[name]))

    async def drain(self, reason: str, grace_s: float) -> None:
        """Finish what can be finished within the grace, give the rest back, and end everything. Start nothing more."""
        self._closing = True
        async with asyncio.TaskGroup() as group:
            for container in list(self.live.values()):
                group.create_task(self._let_go(container, reason, grace_s))

    def release(self) -> None:
        """Let services end with their agent without being told one by one: nobody leads requests here any more."""
        for container in self.live.values():
            container.asked.set()

    async def _let_go(self, container: Container, reason: str, grace_s: float) -> None:
        if container.serves and container.state == "ready":
            # Requests are still led here. The control plane knows that we leave, and tells it to stop once it is empty.
            await wait_for(self._clock, container.asked, grace_s)
        await container.stop(reason, grace_s)

    async def close(self) -> None:
        """End everything at once and wait until nothing is left."""
        ending = list(self.live.values())
        async with asyncio.TaskGroup() as group:
            for container in ending:
                group.create_task(self._end(container))
        self._watch.cancel()
        for task in list(self._jobs):
            task.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        self.site.launcher.close()
        self.site.groups.close()

    # --- what is known of it

    def leases(self) -> list[Lease]:
        """Return every lease whose end is not told yet."""
        return [attempt.story.lease for attempt in self._held.values() if not attempt.story.muted]

    def news(self) -> list[ContainerNews]:
        """Return how each container stands."""
        return [
            ContainerNews(
                id=c.id, state="stopping" if c.stopping is not None else c.state, pid=c.pid, address=c.address
            )
            for c in self.live.values()
        ]

    def _stop(self, attempt: Attempt, why: Stop) -> None:
        container = self.live.get(attempt.given.container)
        if container is not None:
            container.stop_attempt(attempt, why)

    # --- what becomes of what an attempt said

    def _taken(self, lease: Lease, upto: int) -> None:
        attempt = self._held.get(lease.token)
        container = self.live.get(attempt.given.container) if attempt is not None else None
        if attempt is not None and container is not None:
            container.taken(attempt, upto)

    def _spoilt(self, attempt: Attempt) -> None:
        self._stop(attempt, "spoilt")

    def _ended(self, attempt: Attempt) -> None:
        self._held.pop(attempt.given.token, None)
        container = self.live.get(attempt.given.container)
        if container is not None:
            container.told(attempt)

    def _keep(self, path: Path) -> Path:
        return path.rename(self._files / f"out-{os.getpid()}-{next(self._numbers)}")

    # --- its own work

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._jobs.add(task)  # the loop alone would let it be collected
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("an error of apothic's own", exc_info=error)

    async def _end(self, container: Container) -> None:
        container.end_now()
        await container.stop("its container was ended", 0.0)

    def _forget(self, container: Container) -> None:
        _log.info("gone %s", container.id)
        self.live.pop(container.id, None)

    def _resume(self) -> None:
        for container in list(self.live.values()):
            container.resume()

    async def _end_leftovers(self) -> None:
        await self._leftovers.end(self._known)

    def _known(self) -> list[int]:
        return [*self.site.launcher.pids, *(container.pid for container in self.live.values())]

    async def _watch_memory(self) -> None:
        while True:
            await self._clock.sleep(SAMPLE_S)
            for container in list(self.live.values()):
                memory = container.memory
                if container.pid and memory.enforced:
                    memory.starved()
                elif container.pid:
                    held = tree_resident(container.pid)
                    if memory.is_near(held):  # perhaps only because shared pages count for each process
                        held = await asyncio.to_thread(tree_proportional, container.pid)
                    memory.sampled(held)

    # --- values that are too large to travel in a frame

    async def _fetch(self, container: Container, attempt: Attempt) -> None:
        packed = attempt.given.input
        assert packed.sha256 is not None
        path = self._files / f"in-{os.getpid()}-{next(self._numbers)}"
        try:
            await self._blobs.fetch(packed.sha256, path)
        except asyncio.CancelledError:
            path.unlink(missing_ok=True)
            raise
        except (ApothicError, OSError) as error:
            message = f"the input could not be fetched: {error}"
            # A full disk here says nothing against the input.
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            kind: FailureKind = "worker_lost" if full else "serialization"
            failure = attempt.failure(kind, type(error).__name__, message)
            failure = _retriable(failure) if full else failure
            attempt.fetching = None
            container.fail_waiting(attempt, failure)
            return
        attempt.fetching, attempt.input_path = None, path
        container.feed()


def _retriable(failure: Failure) -> Failure:
    return replace(failure, retriable=True)
