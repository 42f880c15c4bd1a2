"""Run one input: unpack it, call the function, pack what comes back. Whatever happens becomes a frame.

A generator function is run to its end; what it yields goes its own way meanwhile.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from apothic.agent.frames import Done, Failed, Run, Setup
from apothic.agent.items import Flow, drive, drive_async
from apothic.agent.window import JobCancelled
from apothic.context import CurrentJob, enter
from apothic.errors import PayloadTooLargeError
from apothic.protocol import values
from apothic.protocol.failures import describe
from apothic.protocol.messages import FailureKind

Reply = Done | Failed


class Performer:
    """Knows the function and its limits. Everything here runs code of the user's, pickles' included."""

    def __init__(self, setup: Setup, entry: Callable[..., Any]) -> None:
        self.entry = entry
        self._yields = inspect.isgeneratorfunction(entry) or inspect.isasyncgenfunction(entry)
        self._setup = setup
        self._name = setup.function.name
        self._spool_dir = Path(setup.work_dir)
        self._pid = os.getpid()

    def enter(self, *runs: Run) -> None:
        """Make `runs` the jobs of the current context: one, or those of a batch."""
        jobs = [
            CurrentJob(
                id=run.job,
                attempt=run.attempt,
                app=self._setup.app,
                function=self._name,
                deployment_id=self._setup.deployment,
                base_url=run.base_url,
                token=run.job_token,
            )
            for run in runs
        ]
        enter(*jobs, batched=self._setup.function.options.batching is not None)

    def arguments(self, run: Run) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Unpack the input. Raises `SerializationError`, or what its pickle raises."""
        path = Path(run.input_path) if run.input_path is not None else None
        return values.unpack_arguments(run.input, path, what=f"the arguments of {self._name}")

    def plain(self, run: Run, flow: Flow) -> Reply:
        """Run one input of a plain function, in the thread and context it is called in."""
        self.enter(run)
        try:
            args, kwargs = self.arguments(run)
        except BaseException as error:
            return self.failed(run, error, packing(error))
        try:
            value = self.entry(*args, **kwargs)
            if self._yields:
                value = drive(value, flow, partial(self._ship, run, flow))
        except BaseException as error:
            self.leave_fork(error)
            return self.failed(run, error, packing(error) if error is flow.refused else "user")
        self.leave_fork(None)
        del args, kwargs  # a large input goes before a large result is packed
        return self.done(run, value, flow)

    async def coroutine(self, run: Run, flow: Flow) -> Reply:
        """Run one input of an `async def` function, in a context of its own."""
        self.enter(run)
        try:
            args, kwargs = self.arguments(run)
        except BaseException as error:
            return self.failed(run, error, packing(error))
        try:
            made = self.entry(*args, **kwargs)
            value = await (drive_async(made, flow, partial(self._ship, run, flow)) if self._yields else made)
        except BaseException as error:
            self.leave_fork(error)
            return self.failed(run, error, packing(error) if error is flow.refused else "user")
        self.leave_fork(None)
        del args, kwargs
        return self.done(run, value, flow)

    def done(self, run: Run, value: Any, flow: Flow) -> Reply:
        """Pack a value, as the caller can read it."""
        try:
            envelope = self._pack(run, value, f"the result of {self._name}")
        except BaseException as error:
            return self.failed(run, error, packing(error))
        path = str(envelope.file) if envelope.file is not None else None
        return Done(
            job=run.job, value=envelope.packed, path=path, items=flow.sent if self._yields else None, ran_s=flow.ran_s
        )  # fmt: skip

    def _ship(self, run: Run, flow: Flow, value: Any) -> bool:
        self.leave_fork(None)
        try:
            return flow.ship(self._pack(run, value, f"item {flow.sent} of {self._name}"))
        except BaseException as error:
            flow.refused = error
            raise

    def _pack(self, run: Run, value: Any, what: str) -> values.Envelope:
        return values.pack(
            value,
            payload_limit=self._setup.payload_limit,
            inline_limit=self._setup.inline_limit,
            what=what,
            allow_pickle="pickle" in run.accept,
            spool_dir=self._spool_dir,
        )

    def failed(self, run: Run, error: BaseException, kind: FailureKind) -> Failed:
        """Tell how an attempt failed."""
        failure = describe(error, attempt=run.attempt, kind=kind)
        if not failure.message and isinstance(error, JobCancelled):
            failure = replace(failure, message="cancelled")
        return Failed(job=run.job, failure=failure, cancelled=_by_cancellation(error))

    def stopped(self, run: Run) -> Failed:
        """Tell that a job of a batch was stopped, which nobody in the batch noticed."""
        return self.failed(run, JobCancelled(), "user")

    def leave_fork(self, error: BaseException | None) -> None:
        """End a process that the function made by `os.fork` and that came back from it: the job is the parent's."""
        if os.getpid() == self._pid:
            return
        if error is not None and not isinstance(error, SystemExit):
            traceback.print_exception(error)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        code = error.code if isinstance(error, SystemExit) else error is not None
        os._exit(code if isinstance(code, int) else 1)


def packing(error: BaseException) -> FailureKind:
    if isinstance(error, PayloadTooLargeError):
        return "payload_too_large"
    return "serialization" if isinstance(error, Exception) or not _by_cancellation(error) else "user"


def _by_cancellation(error: BaseException) -> bool:
    """Tell whether `error` is the cancellation, or was raised while it was being dealt with."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        if isinstance(now, JobCancelled):
            return True
        seen.add(id(now))
        now = now.__cause__ or now.__context__
    return False
