"""Run a batch: several inputs in one call of a function that is written as `f(list) -> list`.

Each input is unpacked alone and each result packed alone, so what is wrong with one is no matter of the others. When
the call raises, nobody can tell whose fault it was: the inputs are run once more, each alone. That enters the code
twice, so a job that may run at most once fails with the rest instead (P29 of the field's promises: one bad item in a
batch does not fail the others; BentoML #3200 shows what becomes of it otherwise).
"""

from __future__ import annotations

from collections.abc import Generator, Set
from typing import Any

from apothic.agent.frames import Done, Failed, Run
from apothic.agent.items import Flow
from apothic.agent.perform import Performer, packing
from apothic.agent.window import Attempt

Reply = Done | Failed
Called = tuple[Any, BaseException | None]  # what the function returned, or what it raised


class Together:
    """One batch on its way: run it, then ask for the replies. `cancelled` holds the attempts that are to stop."""

    def __init__(self, performer: Performer, cancelled: Set[Attempt], runs: list[Run], flows: list[Flow]) -> None:
        self._performer = performer
        self._cancelled = cancelled
        self._runs = runs
        self._flows = {run.job: flow for run, flow in zip(runs, flows, strict=True)}
        self._replies: dict[str, Reply] = {}

    def plain(self) -> None:
        """Run the batch, in the thread and context it is called in."""
        steps = self._steps()
        try:
            given = next(steps)
            while True:
                given = steps.send(self._call(given))
        except StopIteration:
            return

    async def coroutine(self) -> None:
        """Run the batch of an `async def` function."""
        steps = self._steps()
        try:
            given = next(steps)
            while True:
                given = steps.send(await self._await(given))
        except StopIteration:
            return

    def replies(self, error: BaseException | None = None) -> list[Reply]:
        """Return what became of each input, in their order; `error` is why those that have no reply have none."""
        for run in self._runs:
            if run.job not in self._replies:
                assert error is not None
                self._fail(run, error)
        return [self._told(run) for run in self._runs]

    def _told(self, run: Run) -> Reply:
        """Return a reply, or that the job was stopped while the others of the batch went on."""
        reply = self._replies[run.job]
        if isinstance(reply, Done) and self._is_stopped(run):
            return self._performer.stopped(run)
        return reply

    # --- the steps

    def _steps(self) -> Generator[list[Any], Called, None]:
        """Yield the lists to call the function with; what came of each is sent in."""
        self._performer.enter(*self._runs)
        items = self._unpack()
        if not items:
            return
        value, error = yield [item for _, item in items]
        if error is None:
            self._divide([run for run, _ in items], value)
            return
        # Also after a SystemExit. A cancellation strikes once all are stopped, so that nothing is left to run again.
        for run, item in items if len(items) > 1 else []:
            if self._is_stopped(run) and isinstance(error, Exception):
                self._replies[run.job] = self._performer.stopped(run)
            elif not run.once and not self._is_stopped(run):
                self._performer.enter(run)
                value, alone = yield [item]
                if alone is None:
                    self._divide([run], value)
                else:
                    self._fail(run, alone)
        for run, _ in items:
            if run.job not in self._replies:
                self._fail(run, error)

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
        return (run.job, run.attempt) in self._cancelled

    def _fail(self, run: Run, error: BaseException, *, unpacking: bool = False) -> None:
        kind = packing(error) if unpacking and not isinstance(error, TypeError) else "user"
        self._replies[run.job] = self._performer.failed(run, error, kind)

    def _call(self, items: list[Any]) -> Called:
        try:
            return self._performer.entry(items), None
        except BaseException as error:
            self._performer.leave_fork(error)
            return None, error
        finally:
            self._performer.leave_fork(None)

    async def _await(self, items: list[Any]) -> Called:
        try:
            return await self._performer.entry(items), None
        except BaseException as error:
            self._performer.leave_fork(error)
            return None, error
        finally:
            self._performer.leave_fork(None)
