"""One attempt inside an agent: what it was given, what it has printed and yielded, and how its end is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from apothic.agent.frames import Done, Failed, Run, Stream
from apothic.agent.lines import Assembler, Tail
from apothic.agent.passage import Passage
from apothic.clock import Clock
from apothic.protocol.messages import Failure, FailureKind
from apothic.protocol.session import Assignment, Item, Line, Outcome, Packed

Stop = Literal["cancelled", "timeout", "spoilt"]


class Attempt:
    """From its assignment to its outcome. `stop` says why it is being stopped, if it is.

    `told` hears when its end is told, `spoilt` when what it said is lost before that.
    """

    def __init__(
        self,
        assignment: Assignment,
        passage: Passage,
        clock: Clock,
        told: Callable[[Attempt], None] = lambda _: None,
        spoilt: Callable[[Attempt], None] = lambda _: None,
    ) -> None:
        self.given = assignment
        self.story = passage.story
        self.items = 0  # that it has yielded
        self.arrived_at = clock.monotonic()
        self.turn = 0  # of one that its container was sent ahead
        self.batch = 0  # what it runs in; a number of its own where there are no batches
        self.input_path: Path | None = None
        self.stop: Stop | None = None
        self.over = asyncio.Event()
        self.last: Outcome | None = None  # its end, to be told once what it left running is dead
        self.timer: asyncio.TimerHandle | None = None
        self.fetching: asyncio.Task[None] | None = None
        self._passage = passage
        passage.on_told = lambda: told(self)
        passage.on_spoilt = lambda: spoilt(self)
        self._clock = clock
        self._tail: Tail | None = None
        self._began_at = 0.0
        self._logs: dict[tuple[str, Stream], Assembler] = {}  # of what came by each way; most jobs print nothing

    def frame(self, base_url: str) -> Run:
        """Return what its container is told."""
        given = self.given
        return Run(
            job=given.job, attempt=given.attempt, input=given.input, accept=given.accept, job_token=given.job_token,
            input_path=str(self.input_path) if self.input_path is not None else None, base_url=base_url,
            once=given.once, turn=self.turn,
        )  # fmt: skip

    @property
    def is_here(self) -> bool:
        """Whether its input has come."""
        return self.fetching is None

    @property
    def size(self) -> int:
        """How many bytes its input takes in a frame."""
        return len(self.given.input.data or b"")

    def began(self) -> None:
        """Tell that its code is entered."""
        self._began_at = self._clock.monotonic()
        self._passage.began()

    @property
    def ran_s(self) -> float:
        """How long ago its code was entered."""
        return self._clock.monotonic() - self._began_at

    def printed(self, stream: Stream, data: bytes) -> None:
        """Take what Python code printed."""
        self._take_in("printed", stream, data)

    def piped(self, stream: Stream, data: bytes) -> None:
        """Take what came through a file descriptor."""
        self._take_in("piped", stream, data)

    def _take_in(self, way: str, stream: Stream, data: bytes) -> None:
        log = self._logs.get((way, stream))
        if log is None:
            log = self._logs[way, stream] = Assembler(stream)
        self._tell(log.feed(data, self._clock.now()))

    def _tell(self, lines: list[Line]) -> None:
        if lines:
            if self._tail is None:
                self._tail = Tail()
            self._tail.add(lines)
            self._passage.say(lines)

    def yielded(self, values: list[Packed], file: Path | None) -> None:
        """Take what its generator yielded; `file` has the bytes of a large one, which comes alone."""
        first, self.items = self.items, self.items + len(values)
        self._passage.say([Item(index=index, value=value) for index, value in enumerate(values, first)], file)

    def spoil(self, kind: FailureKind, type: str, message: str) -> None:
        """Fail it, because something that it said is not there."""
        self._passage.spoil(self.failure(kind, type, message))

    def close_log(self) -> None:
        """Tell the unfinished lines: nothing more will be printed."""
        for log in self._logs.values():
            self._tell(log.finish(self._clock.now()))

    def end(self, outcome: Outcome, file: Path | None = None) -> None:
        """Tell how it ended, once, after all that it said; `file` has the bytes of a large value."""
        if self.over.is_set():
            return
        self._release()
        self.close_log()
        self._passage.end(outcome, file)

    def _release(self) -> None:
        self.over.set()
        if self.timer is not None:
            self.timer.cancel()
        if self.fetching is not None:
            self.fetching.cancel()
        if self.input_path is not None:
            self.input_path.unlink(missing_ok=True)
            self.input_path = None

    def mute(self) -> None:
        """Tell nothing more: its lease is another's, or nobody's."""
        self.story.muted = True

    def verdict(self, frame: Done | Failed) -> Outcome:
        """Return what the container's answer means, given what was asked of it meanwhile."""
        failure = frame.failure if isinstance(frame, Failed) else None
        if self.stop in ("timeout", "spoilt"):  # it was over, whatever it did with the grace
            return Outcome(failure=self.stopped(failure))
        if isinstance(frame, Done):
            items = self.items if frame.items is not None else None
            # By the container's clock: of one that was sent ahead nobody else knows when it began. Within reason.
            return Outcome(
                value=frame.value, items=items, ran_s=min(frame.ran_s, self._clock.monotonic() - self.arrived_at)
            )
        if self.stop == "cancelled" and frame.cancelled:
            return Outcome(failure=self.stopped(failure))
        return Outcome(failure=frame.failure)

    def stopped(self, failure: Failure | None = None) -> Failure:
        """Return the failure of an attempt that was stopped; `failure` tells where its code was."""
        if self.stop == "spoilt" and self._passage.failure is not None:
            return self._passage.failure
        where = failure.traceback if failure is not None else ""
        if self.stop == "timeout":
            message = f"ran longer than its timeout_s of {self.given.timeout_s:g} s"
            return self.failure("timeout", "TimeoutError", message, traceback=where, retriable=True)
        return self.failure("cancelled", "JobCancelled", "the job was cancelled", traceback=where)

    def lost(self, kind: FailureKind, message: str, exit: str) -> Failure:
        """Return the failure of an attempt whose process is gone."""
        return replace(
            self.failure(kind, "MemoryError" if kind == "oom" else "ProcessDied", message, retriable=True),
            exit=exit, log_tail=self._tail.text() if self._tail is not None else "",
        )  # fmt: skip

    def failure(
        self, kind: FailureKind, type: str, message: str, *, traceback: str = "", retriable: bool = False
    ) -> Failure:
        """Return a failure of this attempt."""
        return Failure(
            kind=kind, type=type, message=message, traceback=traceback, attempt=self.given.attempt, retriable=retriable
        )
