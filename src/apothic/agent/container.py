"""One container as its agent sees it: it starts, takes inputs, may have to be stopped the hard way, and is gone."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import signal
from collections import deque
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from apothic.agent import batch, isolate
from apothic.agent.ahead import Ahead
from apothic.agent.attempt import Attempt, Stop
from apothic.agent.door import Door
from apothic.agent.ending import Ending
from apothic.agent.frames import (
    Batch,
    Cancel,
    Done,
    Failed,
    FrameError,
    Items,
    Moved,
    News,
    Output,
    Ready,
    StartFailed,
    Stream,
    Taken,
)
from apothic.agent.frames import Stop as StopFrame
from apothic.agent.launcher import LaunchError
from apothic.agent.memory import Memory
from apothic.agent.ownlog import OwnLog
from apothic.agent.passage import claim, is_whole
from apothic.agent.process import Process
from apothic.agent.site import Site, Where
from apothic.agent.tree import younger
from apothic.clock import wait_for
from apothic.errors import InvalidRequestError
from apothic.protocol.messages import Failure
from apothic.protocol.services import SERVICE_KINDS
from apothic.protocol.session import ContainerNews, Outcome, StartContainer
from apothic.protocol.specs import BatchingSpec

State = Literal["starting", "ready", "gone"]
# How long a job may wait for the one before it in the same container. Long enough for a hundred jobs of the quick
# functions that are given several at a time, short enough that nobody notices a job that turns out to be long.
_BEHIND_S = 0.05


class Container:
    """One child process for one function. Everything that happens to it is told to the site's outbox."""

    def __init__(self, start: StartContainer, site: Site) -> None:
        self.id = start.container
        self.state: State = "starting"
        self.stopping: str | None = None  # why it takes no more work
        self.over = asyncio.Event()  # it is gone, nothing of it is left
        self.idle = asyncio.Event()
        self.idle.set()
        self._settled = asyncio.Event()  # it is ready, or gone
        self.running: dict[str, Attempt] = {}
        self._start = start
        self._site = site
        self._home = site.home / start.container
        self._seats = start.function.options.inputs_at_once
        self._batching = start.function.options.batching
        self._batches = 0
        self.memory = Memory(start.function.options.memory_mb * 1024 * 1024, self._strike)
        self._waiting: deque[Attempt] = deque()
        self._telling: set[Attempt] = set()  # ended, but not told yet: something large is being stored
        self._given: dict[str, Attempt] = {}  # the newest of each job
        self._ahead: Ahead | None = None  # of one that takes inputs one by one
        self._behind: asyncio.TimerHandle | None = None
        self._ends = 0  # of jobs, to tell whether there was any within a while
        self._process: Process | None = None
        self._log = OwnLog(start.container, site.outbox, site.clock)
        self._failure: Failure | None = None  # of the start
        self.serves = start.function.kind in SERVICE_KINDS
        self.door: Door | None = None  # of a service
        self.asked = asyncio.Event()  # it was told to stop
        self._littered = False  # a job that was stopped has left processes; of several, nobody knows whose they are
        self._finishing = False  # what runs may run on; its end is nobody's doing but its own
        self._exiting = False
        self._dying: asyncio.Task[None] | None = None
        self._starter = site.spawn(self._bring_up())

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def address(self) -> str:
        """Where a service answers, as the control plane can reach it; empty before it does, and for all others."""
        if self.door is None or self.state != "ready":
            return ""
        return f"relay:{self._site.relay}" if self._site.relay else self.door.address

    @property
    def attempts(self) -> list[Attempt]:
        """All that it was given and that has not ended."""
        return [*self.running.values(), *(self._ahead or ()), *self._waiting]

    # --- its start

    async def _bring_up(self) -> None:
        spec = self._start.function
        limit_s = spec.options.service_startup_timeout_s or self._site.limits.startup_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                code = await self._site.bundles.directory(self._start.files)
                payload = await self._site.bundles.blob(spec.payload) if spec.payload is not None else None
                if self.stopping is None:
                    await self._launch(code, payload)
                    await self._settled.wait()
        except TimeoutError:
            await self._never_ready("TimeoutError", f"it was not ready within {limit_s:g} s", True)
        except asyncio.CancelledError:
            raise
        except LaunchError as error:
            await self._never_ready("OSError", f"its process could not be started: {error}", True)
        except Exception as error:
            again = not isinstance(error, InvalidRequestError)  # the files themselves are wrong
            await self._never_ready(type(error).__name__, f"its files could not be put in place: {error}", again)
        if self._process is None:
            self._gone()

    async def _launch(self, code: Path, payload: Path | None) -> None:
        work, tmp = self._home / "work", self._home / "tmp"
        for made in (self._home, work, tmp, self._home / "files"):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        env = isolate.environment(os.environ, mark=f"{self._site.mark}/{self.id}", tmp=tmp)
        door = self.door = Door(self._start, self._home) if self.serves else None
        try:
            child = await self._site.launcher.start(env, work, door.fd if door is not None else None)
            self._process = Process(child.pid, child.ends, self)
            if not self.serves and self._seats == 1 and self._batching is None:
                self._ahead = Ahead(self._home / "leaves", self._process, self._site)
        finally:
            if door is not None:
                door.hand_over()
        self.memory.group = self._site.groups.make(self.id, self.memory.limit, self._start.function.options.cpu)
        self.memory.group.take(self.pid)
        self._site.outbox.container(ContainerNews(id=self.id, state="starting", pid=self.pid))
        leaves, port = self._ahead.path if self._ahead is not None else None, door.port if door is not None else 0
        where = Where(self._home / "files", code, payload, leaves, child.listener, port)
        self._process.send(self._site.setup(self._start, where))

    def moved(self) -> None:
        """Tell a service that the control plane is elsewhere now."""
        if self.serves and self._process is not None:
            self._process.send(Moved(base_url=self._site.base_url))

    async def _never_ready(self, type: str, message: str, retriable: bool) -> None:
        if self.state == "starting":
            failure = Failure(kind="startup", type=type, message=message, retriable=retriable)
            self._failure = self._failure or failure
            await self.kill()

    # --- work

    def give(self, attempt: Attempt) -> None:
        """Take an attempt; it begins once `feed` finds the container ready, and a seat in it."""
        if self.stopping is not None or self.state == "gone":
            attempt.end(Outcome(requeue=self.stopping or "its container is gone"))
            return
        earlier = self._given.get(attempt.given.job)
        if earlier is not None and not earlier.over.is_set():
            # Its process tells the two apart by nothing: their output and ends would be mixed up. And as the control
            # plane takes a container that gives work back for one that is about to end, it ends.
            reason = "an earlier attempt of it still runs here"
            attempt.end(Outcome(requeue=reason))
            self._site.spawn(self.stop(reason, self._site.limits.grace_s))
            return
        self.idle.clear()
        self._given[attempt.given.job] = attempt
        self._waiting.append(attempt)

    def feed(self) -> None:
        """Begin what can begin."""
        now = self._site.clock.monotonic()
        while self.state == "ready" and not self._exiting and self._waiting and not self._ahead and self._has_seat:
            together = batch.take(self._waiting, self._batching, now)
            if not together:
                break
            self._begin(together)
        if self._ahead is not None and self.stopping is None and not self._exiting:
            self._ahead.send(self._waiting, self.running)
        queued = self._ahead or (self._waiting and self._waiting[0].is_here)
        if self._batching is not None:
            self._gather(self._batching, now)
        elif self._behind is None and self.state == "ready" and queued:
            self._behind = asyncio.get_running_loop().call_later(_BEHIND_S, self._give_back, self._ends)

    def _begin(self, together: list[Attempt]) -> None:
        assert self._process is not None
        runs = [attempt.frame(self._site.base_url) for attempt in together]
        self._process.send(runs[0] if self._batching is None else Batch(runs=runs))
        self._begun(together)

    def _begun(self, together: list[Attempt]) -> None:
        self._batches += 1
        for attempt in together:
            attempt.batch = self._batches
            self.running[attempt.given.job] = attempt
            attempt.began()
            attempt.timer = asyncio.get_running_loop().call_later(
                attempt.given.timeout_s, self.stop_attempt, attempt, "timeout"
            )

    def _withdraw(self) -> None:
        """Take back what was sent ahead and has not begun."""
        if self._ahead is not None:
            self._ahead.withdraw(self._waiting, self.running)

    def _gather(self, spec: BatchingSpec, now: float) -> None:
        """Look again when the oldest of what waits for its batch has waited for long enough."""
        if self._behind is not None:
            self._behind.cancel()
        can_begin = self.state == "ready" and not self._exiting and self._has_seat
        pause = batch.pause_s(self._waiting, spec, now) if can_begin else None
        self._behind = None if pause is None else asyncio.get_running_loop().call_later(pause, self.feed)

    def _give_back(self, ends: int) -> None:
        """Give back what waits behind a job that runs long, so that another container may have it."""
        self._behind = None
        if self._ends == ends and not self._has_seat:
            self._withdraw()
            while self._waiting:
                self._waiting.popleft().end(Outcome(requeue="it waited behind a long job", behind=True))
        self.feed()

    def fail_waiting(self, attempt: Attempt, failure: Failure) -> None:
        """End an attempt that cannot begin."""
        if attempt in self._waiting:
            self._waiting.remove(attempt)
            attempt.end(Outcome(failure=failure))
            self.feed()
            self._maybe_idle()

    def stop_attempt(self, attempt: Attempt, why: Stop) -> None:
        """Begin the ladder for one attempt, or leave it out if it has not begun."""
        if attempt.over.is_set() or attempt.stop is not None:
            return
        attempt.stop = why
        self._withdraw()
        if attempt in self._waiting:
            self.fail_waiting(attempt, attempt.stopped())
        else:
            self._site.spawn(self._climb(attempt))

    async def _climb(self, attempt: Attempt) -> None:
        """Ask; after the grace, end the container, other inputs and all: one cannot be cut out of a process."""
        assert self._process is not None
        self._process.send(Cancel(job=attempt.given.job, attempt=attempt.given.attempt))
        self._process.signal(signal.SIGUSR1)
        if not await wait_for(self._site.clock, attempt.over, self._site.limits.grace_s):
            self.stopping = self.stopping or "its container had to be ended to stop another job"
            await self.kill()

    async def kill(self) -> None:
        """SIGTERM to the group, SIGKILL after a while; return when nothing is left."""
        self.stopping = self.stopping or "its container was ended"
        self._finishing = False
        if self._process is not None:
            self._process.signal_group(signal.SIGTERM)
            if not await wait_for(self._site.clock, self.over, self._site.kill_s):
                self._process.kill()
            await self.over.wait()

    async def stop(self, reason: str, grace_s: float) -> None:
        """Take no more work, give back what has not begun, let the rest finish within the grace; then end.

        An infinite grace is for making room: nothing is cut short, and no job's budget pays.
        """
        self.asked.set()
        self.stopping = self.stopping or reason
        self._finishing = patient = grace_s == math.inf
        self._withdraw()
        while self._waiting:
            self._waiting.popleft().end(Outcome(requeue=reason, behind=patient))
        self._maybe_idle()
        if self._process is None:
            self._starter.cancel()
            self._gone()
            return
        if self.state == "ready" and await wait_for(self._site.clock, self.idle, grace_s):
            self._process.send(StopFrame())
            if await wait_for(self._site.clock, self.over, min(grace_s, self._site.limits.grace_s)):
                return
        await self.kill()

    def end_now(self) -> None:
        """SIGKILL, without any grace: its leases are lost."""
        self.stopping = self.stopping or "its container was ended"
        for attempt in self.attempts:
            attempt.mute()
        if self._process is not None:
            self._process.kill()

    def _strike(self) -> None:
        if self._process is not None:
            self._process.kill()

    # --- what its process says

    def on_frame(self, frame: News) -> None:
        if isinstance(frame, Output):
            attempt = self.running.get(frame.job) if frame.job is not None else None
            if attempt is not None:
                attempt.printed(frame.stream, frame.data)
            else:
                self._log.feed(frame.stream, frame.data)
        elif isinstance(frame, Items):
            self._yielded(frame)
        elif isinstance(frame, Done | Failed):
            self._ended(frame)
        elif isinstance(frame, Ready):
            self._ready(frame)
        elif isinstance(frame, StartFailed):
            self._failure = frame.failure

    def on_piped(self) -> None:
        """Make sure whose bytes they are: from now on this container gets its jobs one by one."""
        if self._ahead is not None and self._process is not None:
            self._ahead.open = False
            if self._ahead:
                self._withdraw()
                self._process.drain_socket()

    def on_bytes(self, stream: Stream, data: bytes) -> None:
        if len(self.running) == 1:
            next(iter(self.running.values())).piped(stream, data)
        else:
            self._log.feed(stream, data)

    def has_room(self) -> bool:
        return not self._site.outbox.full

    def resume(self) -> None:
        """Read again: there is room."""
        if self._process is not None and not self._exiting:
            self._process.resume()

    def _ready(self, frame: Ready) -> None:
        if self.state == "starting":
            self.state = "ready"
            if self._ahead is not None:
                self._ahead.open = frame.queues
            self._settled.set()
            self._site.outbox.container(
                ContainerNews(id=self.id, state="ready", pid=self.pid, address=self.address)
            )  # fmt: skip
            self.feed()

    def _yielded(self, frame: Items) -> None:
        attempt = self.running.get(frame.job)
        if attempt is None:
            return
        if frame.first != attempt.items:
            raise FrameError(f"item {frame.first} came where item {attempt.items} was due")
        file = claim(self._home / "files", frame.path, self._site.keep)
        if not is_whole(frame.values, file):
            attempt.spoil("serialization", "FileNotFoundError", "an item was announced as a file, and there is none")
        attempt.yielded(frame.values, file)

    def taken(self, attempt: Attempt, upto: int) -> None:
        """Let a generator go on: its items below `upto` are on disk."""
        if attempt.given.job in self.running and self._process is not None:
            self._process.send(Taken(job=attempt.given.job, attempt=attempt.given.attempt, upto=upto))

    def _ended(self, frame: Done | Failed) -> None:
        assert self._process is not None
        if frame.job not in self.running:
            return
        if isinstance(frame, Failed) and self.memory.starved():
            return  # it only saw a process of its own die; the end of this one tells why
        if frame.piped:  # what it printed past Python came before its end
            self.on_piped()
            self._process.drain_pipes()
        attempt = self.running[frame.job]
        outcome = attempt.verdict(frame)
        if attempt.stop is not None and outcome.failure is not None and younger(self.pid, attempt.ran_s):
            self._littered = True
        if self._littered and len(self.running) == 1:
            # A job that was stopped has left processes, which nobody but this one's end ends; only then is it told.
            self.stopping = self.stopping or "a job that was stopped has left processes"
            attempt.last = outcome
            self._process.kill()
            return
        del self.running[frame.job]
        self._ends += 1
        large = outcome.value is not None and outcome.value.sha256 is not None
        file = None
        if isinstance(frame, Done) and frame.path is not None:
            self._withdraw()  # the next one waits until this is stored
            file = claim(self._home / "files", frame.path, self._site.keep)
        if large and file is None:
            message = "the result was announced as a file, and there is none"
            outcome = Outcome(failure=attempt.failure("serialization", "FileNotFoundError", message))
        elif file is not None and not large:
            file.unlink(missing_ok=True)  # nobody wants it
            file = None
        self._telling.add(attempt)
        attempt.end(outcome, file)
        following = self._ahead.advance() if self._ahead else None
        if following is not None:
            self._begun([following])
        self.feed()
        self._maybe_idle()

    def told(self, attempt: Attempt) -> None:
        """Take note that the end of an attempt is told."""
        if self._given.get(attempt.given.job) is attempt:
            del self._given[attempt.given.job]
        if attempt in self._telling:
            self._telling.remove(attempt)
            self.feed()

    @property
    def _has_seat(self) -> bool:
        # A job whose result is on its way still runs, for all but us: the next one waits until its end is told.
        if self._seats == 1 and self._batching is None:
            return not (self.running or self._telling)
        return len({attempt.batch for attempt in (*self.running.values(), *self._telling)}) < self._seats

    def _maybe_idle(self) -> None:
        if not self.running and not self._waiting and not self._ahead:
            self.idle.set()

    # --- its end

    def on_exit(self) -> None:
        self._exiting = True
        self._dying = self._site.spawn(self._bury())

    async def _bury(self) -> None:
        process = self._process
        assert process is not None
        process.reap()
        self._withdraw()  # now, to know what has not begun when its last words are read
        self.memory.group.kill()
        await self._site.leftovers()
        process.drain()
        if process.exit == "signal 9":
            self.memory.reaped(process.peak_kb * 1024)
        ending = self._ending(process)
        for attempt in [*self.running.values(), *(self._ahead or ())]:
            attempt.close_log()
            attempt.end(ending.loss(attempt))
        self.running.clear()
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        process.close()
        self._gone()

    def _ending(self, process: Process) -> Ending:
        return Ending(process.exit, process.broken, self.serves, self.stopping, self._finishing, self.memory)

    def _gone(self) -> None:
        if self.state == "gone":
            return
        self._log.finish()
        failure = self._why()
        self.state = "gone"
        self.stopping = self.stopping or "its container is gone"
        while self._waiting:
            attempt = self._waiting.popleft()
            told = Outcome(requeue=self.stopping, behind=True)
            if failure is not None:
                told = Outcome(failure=replace(failure, attempt=attempt.given.attempt))
            attempt.end(told)
        self.idle.set()
        self._settled.set()
        self.over.set()
        self._site.outbox.container(ContainerNews(id=self.id, state="gone", pid=self.pid, failure=failure))
        self._site.forget(self)
        self._site.spawn(self.memory.group.remove(self._site.clock))
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().run_in_executor(None, lambda: shutil.rmtree(self._home, ignore_errors=True))

    def _why(self) -> Failure | None:
        """Return why it never became ready, or as a service is no more; `None` when it was told to stop before."""
        ending = self._ending(self._process) if self._process is not None else None
        if self.state == "starting":
            failure = self._failure or (ending.of_start() if ending is not None else None)
        else:
            failure = ending.of_service() if ending is not None else None
        return replace(failure, log_tail=self._log.tail.text()) if failure is not None else None
