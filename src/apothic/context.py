"""Which job, or which service, this code runs in. Set by the container; read by user code and by handles."""

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

    @property
    def described(self) -> str:
        """Say what this is, for errors."""
        return f"job {self.id} of app {self.app!r}"


@dataclass(frozen=True)
class CurrentService:
    """The service whose container this is; code of it calls others in its name."""

    app: str
    function: str
    deployment_id: str
    base_url: str
    token: str

    @property
    def described(self) -> str:
        """Say what this is, for errors."""
        return f"service {self.app}.{self.function}"


CURRENT: ContextVar[CurrentJob | None] = ContextVar("apothic_current_job", default=None)
_BATCH: ContextVar[tuple[CurrentJob, ...] | None] = ContextVar("apothic_current_batch", default=None)
_RUNNING: dict[str, CurrentJob] = {}
_service: CurrentService | None = None


def current_job() -> CurrentJob | None:
    """Return the job this code runs in, or `None` outside of any container.

    A thread that the function starts has no context of its own: it belongs to the job that runs here, if there is
    just one. Raises `RuntimeError` in a batched function, which runs several: `current_batch()` names them.

    >>> current_job() is None
    True
    """
    if _BATCH.get() is not None:
        raise RuntimeError(
            "this function runs a batch, not one job\nhint: current_batch() returns the jobs in it, in order"
        )
    return calling_job()


def current_batch() -> list[CurrentJob]:
    """Return the jobs that a batched function runs here, in the order of its items; empty anywhere else.

    >>> current_batch()
    []
    """
    return list(_BATCH.get() or ())


def calling_job() -> CurrentJob | None:
    """Return the job in whose name code of this context calls others: of a batch, the first."""
    job = CURRENT.get()
    if job is None and len(_RUNNING) == 1:
        return next(iter(_RUNNING.values()))
    return job


def calling() -> CurrentJob | CurrentService | None:
    """Return the job, or else the service, in whose name code of this context calls others."""
    return calling_job() or _service


def serve_as(service: CurrentService) -> None:
    """Make this the service of the process. For containers."""
    global _service
    _service = service


def enter(*jobs: CurrentJob, batched: bool = False) -> None:
    """Make these the jobs of the current context: one, or those of a batch. For containers."""
    CURRENT.set(jobs[0])
    _BATCH.set(jobs if batched else None)
    _RUNNING.update((job.id, job) for job in jobs)


def leave(job_id: str) -> None:
    """Forget a job that has ended. For containers."""
    _RUNNING.pop(job_id, None)
