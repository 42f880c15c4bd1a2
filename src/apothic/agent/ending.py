"""How the process of a container ended, and what that means for its start, its service, and the jobs that it ran."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from apothic.agent.attempt import Attempt
from apothic.agent.memory import Memory
from apothic.protocol.messages import Failure, FailureKind
from apothic.protocol.session import Outcome


@dataclass(frozen=True)
class Ending:
    """`exit` is how it ended, `broken` what it said that is no frame; `stopping` is why it was told to stop, if it was.

    What runs in one that is `finishing` may run on: its end is nobody's doing but its own.
    """

    exit: str
    broken: str
    serves: bool
    stopping: str | None
    finishing: bool
    memory: Memory

    def loss(self, attempt: Attempt) -> Outcome:
        """Return what becomes of an attempt that ran in it."""
        if attempt.last is not None:
            return attempt.last
        if attempt.stop is not None:
            return Outcome(failure=replace(attempt.stopped(), exit=self.exit))
        kind, message = self._cause()
        if kind == "worker_lost" and self.stopping is not None and not self.finishing:
            return Outcome(requeue=self.stopping)
        return Outcome(failure=attempt.lost(kind, message, self.exit))

    def of_start(self) -> Failure | None:
        """Return why it never became ready; `None` when it was told to stop before."""
        if self.stopping is not None:
            return None
        kind, message = self._cause()
        if kind == "worker_lost":
            kind, message = "startup", f"the process ended ({self.exit}) while the function was imported"
        return Failure(kind=kind, type="ProcessDied", message=message, retriable=True, exit=self.exit)

    def of_service(self) -> Failure | None:
        """Return why a service that was ready has ended, when nobody had told it to."""
        if not self.serves or self.stopping is not None:
            return None
        kind, message = self._cause()
        return Failure(kind=kind, type="ProcessDied", message=message, exit=self.exit)

    def _cause(self) -> tuple[FailureKind, str]:
        memory = self.memory
        memory.blame()
        if memory.over or (self.exit == "signal 9" and memory.is_near(memory.peak) and self.stopping is None):
            whose = "the service's" if self.serves else "the job's"
            return "oom", f"{whose} processes used {memory.used()}"
        if self.broken:
            return "worker_lost", f"something wrote into the connection of its process to its agent: {self.broken}"
        return "worker_lost", f"the process that {'served' if self.serves else 'ran the job'} ended ({self.exit})"
