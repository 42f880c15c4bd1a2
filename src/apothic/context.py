"""Which job this code runs in, if any. Set by the container around each input, read by user code and by handles."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class CurrentJob:
    """The job that is running here.

    `id` and `attempt` together make an idempotency key for third parties: delivery is at least once.
    """

    id: str
    attempt: int
    app: str
    function: str
    deployment_id: str
    base_url: str
    token: str

    def __repr__(self) -> str:
        return f"<CurrentJob {self.id} {self.app}.{self.function} attempt {self.attempt}>"


CURRENT: ContextVar[CurrentJob | None] = ContextVar("apothic_current_job", default=None)
_RUNNING: dict[str, CurrentJob] = {}


def current_job() -> CurrentJob | None:
    """Return the job this code runs in, or `None` outside of any container.

    A thread that the function starts has no context of its own: it belongs to the job that runs here, if there is
    just one.

    >>> current_job() is None
    True
    """
    job = CURRENT.get()
    if job is None and len(_RUNNING) == 1:
        return next(iter(_RUNNING.values()))
    return job


def enter(job: CurrentJob) -> None:
    """Make `job` the one of the current context. For containers."""
    CURRENT.set(job)
    _RUNNING[job.id] = job


def leave(job_id: str) -> None:
    """Forget a job that has ended. For containers."""
    _RUNNING.pop(job_id, None)
