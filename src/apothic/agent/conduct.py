"""Three ways to run inputs in one process: in the main thread one by one, in threads, on an event loop.

The main thread is the only one that a signal can interrupt, so a plain function runs there unless it wants company.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import replace

from apothic.agent.capture import Capture
from apothic.agent.channel import Channel
from apothic.agent.frames import Batch, Cancel, Command, Done, Failed, Run, Setup, Stop, Taken
from apothic.agent.items import Flow
from apothic.agent.perform import Performer, Reply
from apothic.agent.together import OnServing, Together, nobody
from apothic.agent.turns import Leaves
from apothic.agent.window import JobCancelled, Window
from apothic.context import leave


class Conductor(Protocol):
    """Takes commands until it is told to stop, or the agent is gone. `queues`: it may be sent inputs ahead."""

    queues: bool

    def conduct(self) -> None: ...


class _Conductor(ABC):
    queues = False

    def __init__(
        self, channel: Channel, window: Window, capture: Capture, running: list[str], performer: Performer
    ) -> None:
        self.channel = channel
        self.window = window
        self.capture = capture
        self.running = running
        self.performer = performer
        self.flows: dict[str, Flow] = {}
        self.piped = False  # by the time of the last end, something lay in our pipes
        channel.on_taken = self.taken

    @abstractmethod
    def flow(self, run: Run) -> Flow:
        """Return what carries the job's items, if it has any."""

    def taken(self, frame: Taken) -> None:
        flow = self.flows.get(frame.job)
        if flow is not None and flow.attempt == (frame.job, frame.attempt):
            flow.taken(frame.upto)

    def begin(self, run: Run) -> Flow:
        self.capture.install()
        self.running.append(run.job)
        flow = self.flows[run.job] = self.flow(run)
        return flow

    def together(self, batch: Batch, on_serving: OnServing = nobody) -> Together:
        flows = [self.begin(run) for run in batch.runs]
        return Together(self.performer, self.window, batch.runs, flows, self.end, on_serving)

    def end(self, run: Run, reply: Reply) -> None:
        """Tell how an attempt ended."""
        self.capture.finish(run.job)
        self.running.remove(run.job)
        del self.flows[run.job]
        self.window.forget((run.job, run.attempt))
        leave(run.job)
        self.piped = self.capture.is_piped()
        self.channel.send(replace(reply, piped=True) if self.piped else reply)


class Solo(_Conductor):
    """One input at a time, in the main thread. SIGUSR1 raises `JobCancelled` in it."""

    def __init__(self, *parts: Any, leaves: Leaves | None = None) -> None:
        super().__init__(*parts)
        self._leaves = leaves
        self.queues = leaves is not None
        self._shut = False  # whatever was sent ahead is to come again

    def conduct(self) -> None:
        while True:
            command = self.channel.receive()
            if isinstance(command, Run):
                if self._may_begin(command):
                    self.end(command, self._shielded(command, self.begin(command)))
            elif isinstance(command, Batch):
                for run, reply in self._shielded_batch(self.together(command, self.window.open)):
                    self.end(run, reply)
            elif command is None or isinstance(command, Stop):
                return

    def _may_begin(self, run: Run) -> bool:
        """Tell whether an input's turn has come.

        Nothing that was sent ahead begins while the agent has to see to the one before: to what it wrote past Python,
        which is told from the next one's by nothing else, or to a large value, until which it still runs.
        """
        if run.turn == 0:
            self._shut = False
            return True
        return not self._shut and self._leaves is not None and self._leaves.take(run.turn)

    def end(self, run: Run, reply: Reply) -> None:
        super().end(run, reply)
        self._shut = self.piped or (isinstance(reply, Done) and reply.path is not None)

    def flow(self, run: Run) -> Flow:
        return Flow(run, self.channel, self.window, self.channel.attend)

    def _shielded(self, run: Run, flow: Flow) -> Reply:
        context = contextvars.copy_context()
        try:
            try:
                self.window.open((run.job, run.attempt))
                return context.run(self.performer.plain, run, flow)
            finally:
                self.window.close()
                self.window.cancelled.clear()
        except JobCancelled as error:  # it struck outside of the function: before, after, or while a value was packed
            return self.performer.failed(run, error, "user")

    def _shielded_batch(self, together: Together) -> list[tuple[Run, Reply]]:
        struck: JobCancelled | None = None
        try:
            try:
                contextvars.copy_context().run(together.plain)
            finally:
                self.window.close()
        except JobCancelled as error:
            struck = error
        with self.window.masked():
            self.window.look()
        rest = together.rest(struck)
        self.window.cancelled.clear()
        return rest


class Pool(_Conductor):
    """Several inputs of a plain function at once, each in a thread.

    A thread cannot be interrupted from outside, nor a batch in one; a generator in one is asked at its next `yield`.
    """

    def __init__(self, *parts: Any, threads: int) -> None:
        super().__init__(*parts)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="job")

    def conduct(self) -> None:
        while True:
            command = self.channel.receive()
            if isinstance(command, Run):
                begun = self.begin(command)
                self._threads.submit(contextvars.copy_context().run, self._perform, command, begun)
            elif isinstance(command, Batch):
                whole = self.together(command)
                self._threads.submit(contextvars.copy_context().run, self._perform_batch, whole)
            elif isinstance(command, Cancel):
                if (flow := self.flows.get(command.job)) is not None:
                    flow.wake()
            elif command is None or isinstance(command, Stop):
                return

    def flow(self, run: Run) -> Flow:
        bell = threading.Event()

        def pause() -> None:
            bell.wait()
            bell.clear()

        return Flow(run, self.channel, self.window, pause, bell.set)

    def _perform(self, run: Run, flow: Flow) -> None:
        self.end(run, self.performer.plain(run, flow))

    def _perform_batch(self, together: Together) -> None:
        together.plain()
        for run, reply in together.rest():
            self.end(run, reply)


class Tasks(_Conductor):
    """Inputs of an `async def` function, each in an asyncio task of its own on a loop in the main thread."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._live: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._batches: dict[asyncio.Task[None], Together] = {}
        self._over = False

    def conduct(self) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.add_reader(self.channel.fileno(), self._read, loop)
        while not self._over:
            try:
                self._obey(loop, *self.channel.received())
                if not self._over:
                    loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                # asyncio lets these two out of the loop when a task of the user's own making raises them.
                loop.call_exception_handler({"message": "a background task ended", "exception": error})

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        self.channel.look()
        self._obey(loop, *self.channel.received())
        if self.channel.at_end:
            self._end(loop)

    def _obey(self, loop: asyncio.AbstractEventLoop, *commands: Command) -> None:
        for command in commands:
            if isinstance(command, Run):
                work = self._perform(command, self.begin(command))
                task = loop.create_task(work, name=command.job, context=contextvars.copy_context())
                self._live[command.job] = command.attempt, task
                task.add_done_callback(partial(self._never_entered, command))
            elif isinstance(command, Batch):
                self._begin_batch(loop, command)
            elif isinstance(command, Cancel):
                self._cancel(command)
            elif isinstance(command, Stop):
                self._end(loop)

    def flow(self, run: Run) -> Flow:
        bell = asyncio.Event()

        async def pause() -> None:
            await bell.wait()
            bell.clear()

        return Flow(run, self.channel, self.window, pause, bell.set)

    def _cancel(self, command: Cancel) -> None:
        attempt, task = self._live.get(command.job, (0, None))
        if task is not None and attempt == command.attempt:
            # Of a batch nothing can be cut out: its code is interrupted once nobody wants what it runs for.
            serving = self._batches[task].serving if task in self._batches else {(command.job, attempt)}
            if serving <= self.window.cancelled and not serving <= self.window.struck:
                self.window.struck.update(serving)
                task.cancel()

    def _begin_batch(self, loop: asyncio.AbstractEventLoop, batch: Batch) -> None:
        together = self.together(batch)
        task = loop.create_task(together.coroutine(), context=contextvars.copy_context())
        self._live |= {run.job: (run.attempt, task) for run in batch.runs}
        self._batches[task] = together
        task.add_done_callback(self._batch_over)

    def _batch_over(self, task: asyncio.Task[None]) -> None:
        together = self._batches.pop(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        for run, reply in together.rest(error):
            self.end(run, reply)

    async def _perform(self, run: Run, flow: Flow) -> None:
        self.end(run, await self.performer.coroutine(run, flow))

    def _never_entered(self, run: Run, task: asyncio.Task[None]) -> None:
        """Answer for a task that could not: cancelled before its first step, it never enters its coroutine."""
        if self._live.get(run.job, (0, None))[1] is task:
            error = asyncio.CancelledError() if task.cancelled() else task.exception() or asyncio.CancelledError()
            self.end(run, self.performer.failed(run, error, "user"))

    def end(self, run: Run, reply: Reply) -> None:
        del self._live[run.job]
        if (run.job, run.attempt) in self.window.struck and isinstance(reply, Failed):
            reply = Failed(job=reply.job, failure=reply.failure, cancelled=True)
        super().end(run, reply)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        self._over = True
        loop.stop()


def choose(
    channel: Channel, window: Window, capture: Capture, running: list[str], performer: Performer, setup: Setup
) -> Conductor:
    """Return the way that fits the function."""
    parts = (channel, window, capture, running, performer)
    if is_async(performer.entry):
        return Tasks(*parts)
    at_once = setup.function.options.inputs_at_once
    if at_once > 1:
        return Pool(*parts, threads=at_once)
    return Solo(*parts, leaves=Leaves(Path(setup.leaves)) if setup.leaves is not None else None)


def is_async(entry: Callable[..., Any]) -> bool:
    """Tell whether calling `entry` gives a coroutine, or an async generator."""
    call = getattr(entry, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(entry) or inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(entry)
