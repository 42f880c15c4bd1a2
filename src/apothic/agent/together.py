"""Run a batch: several inputs in one call of a function that is written as `f(list) -> list`.

Each input is unpacked alone and each result packed alone, so what is wrong with one is no matter of the others. When
the call raises, nobody can tell whose fault it was: the inputs are run once more, each alone. That enters the code
twice, so a job that may run at most once fails with the rest instead (P29 of the field's promises: one bad item in a
batch does not fail the others; BentoML #3200 shows what becomes of it otherwise).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from apothic.agent.frames import Done, Failed, Run
from apothic.agent.items import Flow
from apothic.agent.perform import Performer, packing
from apothic.agent.window import Attempt, JobCancelled, Window

Reply = Done | Failed
OnServing = Callable[..., None]  # (*attempts)
Answer = Callable[[Run, Reply], None]
Called = tuple[Any, BaseException | None]  # what the function returned, or what it raised


def nobody(*_: Attempt) -> None:
    """Interrupt nothing: for code that nobody can interrupt, or that is interrupted from outside."""


class Together:
    """One batch on its way: run it, then ask for the replies that were not given to `answer` before.

    `serving` are the attempts that the running code is for: it is interrupted once all of them are to stop.
    `on_serving` hears of them, in the thread of the code.
    """

    def __init__(
        self, performer: Performer, window: Window, runs: list[Run], flows: list[Flow], answer: Answer,
        on_serving: OnServing = nobody,
    ) -> None:  # fmt: skip
        self._performer = performer
        self._cancelled = window.cancelled
        self._runs = runs
        self._flows = {run.job: flow for run, flow in zip(runs, flows, strict=True)}
        self._replies: dict[str, Reply] = {}
        self._answered: set[str] = set()
        self._answer = answer
        self._on_serving = on_serving
        self._awaits = False
        self.serving: frozenset[Attempt] = frozenset(map(_attempt, runs))

    def plain(self) -> None:
        """Run the batch, in the thread and context it is called in."""
        with contextlib.suppress(StopIteration):  # nothing in it waits, so its first step is its last
            self._run().send(None)

    async def coroutine(self) -> None:
        """Run the batch of an `async def` function."""
        self._awaits = True
        await self._run()

    def rest(self, error: BaseException | None = None) -> list[tuple[Run, Reply]]:
        """Return what became of those that are not answered; `error` is why those that have no reply have none."""
        for run in self._runs:
            if run.job not in self._replies:
                assert error is not None
                self._fail(run, error)
        return [(run, self._told(run)) for run in self._runs if run.job not in self._answered]

    def _told(self, run: Run) -> Reply:
        """Return a reply, or that the job was stopped while the others of the batch went on."""
        reply = self._replies[run.job]
        if isinstance(reply, Done) and self._is_stopped(run):
            return self._performer.stopped(run)
        return reply

    # --- the steps

    async def _run(self) -> None:
        self._serve(*self._runs)
        self._performer.enter(*self._runs)
        items = self._unpack()
        runs = [run for run, _ in items]
        self._serve()
        for run in self._runs:
            self._give(run)
        if not items:
            return
        self._serve(*runs)
        value, error = await self._call([item for _, item in items])
        if error is None:
            self._divide(runs, value)
            return
        self._serve()
        # Also after a SystemExit. A cancellation strikes once all are stopped, so that nothing is left to run again.
        for run, item in items if len(items) > 1 else []:
            if self._is_stopped(run) and isinstance(error, Exception):
                self._replies[run.job] = self._performer.stopped(run)
            elif not run.once and not self._is_stopped(run):
                await self._alone(run, item)
            self._give(run)
        for run in runs:
            if run.job not in self._replies:
                self._fail(run, error)

    async def _alone(self, run: Run, item: Any) -> None:
        """Run one input once more. What interrupts it is its own: the others are still wanted."""
        try:
            try:
                self._serve(run)
                self._performer.enter(run)
                value, error = await self._call([item])
                if error is None:
                    self._divide([run], value)
                else:
                    self._fail(run, error)
            finally:
                self._serve()
        except JobCancelled as error:  # it struck outside of the function
            self._fail(run, error)

    def _give(self, run: Run) -> None:
        """Answer one that has its reply at once: held back, it would run out of time while others run alone.

        Nothing may strike meanwhile, so nobody is served.
        """
        if run.job in self._replies:
            self._answered.add(run.job)
            self._answer(run, self._told(run))

    def _serve(self, *runs: Run) -> None:
        self.serving = frozenset(map(_attempt, runs))
        self._on_serving(*self.serving)

    def _unpack(self) -> list[tuple[Run, Any]]:
        items = []
        for run in self._runs:
            try:
                args, kwargs = self._performer.arguments(run)
                if len(args) != 1 or kwargs:
                    given = len(args) + len(kwargs)
                    raise TypeError(f"a batched function takes one item by position, and was given {given} arguments")
            except BaseException as error:
                self._fail(run, error, unpacking=True)
            else:
                items.append((run, args[0]))
        return items

    def _divide(self, runs: list[Run], values: Any) -> None:
        """Give each job its result."""
        wrong: Exception | None = None
        if not isinstance(values, list | tuple):
            wrong = TypeError(f"a batched function returns a list, and this one returned {type(values).__name__}")
        elif len(values) != len(runs):
            wrong = ValueError(
                f"a batched function returns as many results as it was given items: {len(runs)}, not {len(values)}"
            )
        if wrong is not None:
            for run in runs:
                self._fail(run, wrong)
            return
        for run, value in zip(runs, values, strict=True):
            if isinstance(value, BaseException):
                self._fail(run, value)
            else:
                self._replies[run.job] = self._performer.done(run, value, self._flows[run.job])

    def _is_stopped(self, run: Run) -> bool:
        return _attempt(run) in self._cancelled

    def _fail(self, run: Run, error: BaseException, *, unpacking: bool = False) -> None:
        kind = packing(error) if unpacking and not isinstance(error, TypeError) else "user"
        self._replies[run.job] = self._performer.failed(run, error, kind)

    async def _call(self, items: list[Any]) -> Called:
        try:
            value = self._performer.entry(items)
            return (await value if self._awaits else value), None
        except BaseException as error:
            self._performer.leave_fork(error)
            return None, error
        finally:
            self._performer.leave_fork(None)
            if self._awaits:
                _forget_cancellation()


def _attempt(run: Run) -> Attempt:
    return run.job, run.attempt


def _forget_cancellation() -> None:
    """Take back what was asked of this task: it was meant for the call that is over, and the next is another's."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
