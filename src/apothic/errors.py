"""Every exception of apothic, in one tree. Each has a stable `code`, an HTTP status, and a message of two lines:
what happened, then what to do.

    ApothicError
    ├── ConfigError                     a setting or an option is wrong (also a ValueError)
    ├── AuthError                       no key, a wrong key, or a key without the right
    ├── NotFoundError                   no such thing, or not yours to see
    ├── NotDeployedError                a local function that needs its deployment first
    ├── NotAServiceError                a URL was asked of a function that serves none
    ├── InvalidRequestError             a request that cannot be understood (also a ValueError)
    ├── ConflictError                   the thing is in another state than the request needs
    ├── QueueFullError                  the function's queue takes no more jobs
    ├── PayloadTooLargeError            a value over a limit: has size, limit, what
    ├── SerializationError              a value that cannot be packed or unpacked
    ├── ServerUnavailableError          no server answers: has url
    ├── VersionMismatchError            the two ends speak different versions
    ├── StorageFullError                the data directory's disk is full
    ├── WaitTimeoutError                waiting ended, the job goes on (also a TimeoutError): has job, jobs
    └── JobError                        how a job ended: has job
        ├── JobFailedError
        │   ├── RemoteError             an exception of the function that cannot be rebuilt here
        │   ├── WorkerLostError
        │   ├── OutOfMemoryError
        │   ├── QueueDeadlineError
        │   └── DeadlockError
        ├── JobCancelledError
        ├── JobTimedOutError
        └── JobGoneError                past its retention
    JobStreamResetError                 (an ApothicError) a stream declared a gap: has event, checkpoint
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar


class ApothicError(Exception):
    """Something in apothic went wrong."""

    code: ClassVar[str] = "internal"
    http: ClassVar[int] = 500

    def __init__(self, message: str = "", *, hint: str = "", details: dict[str, Any] | None = None) -> None:
        self.message = message or (self.__doc__ or self.code).strip().splitlines()[0]
        self.hint = hint
        self.details = dict(details or {})
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.details, self.__dict__.copy())


def _rebuild(
    cls: type[ApothicError], message: str, hint: str, details: dict[str, Any], state: dict[str, Any]
) -> ApothicError:
    error = cls.__new__(cls, message)
    Exception.__init__(error, message)
    error.__dict__.update({"message": message, "hint": hint, "details": details} | state)
    return error


class ConfigError(ApothicError, ValueError):
    """A setting or an option is wrong."""

    code, http = "config", 400


class AuthError(ApothicError):
    """The API key is missing, wrong, or lacks the right for this."""

    code, http = "auth", 401


class NotFoundError(ApothicError):
    """There is no such thing here, or it is not yours to see."""

    code, http = "not_found", 404


class NotDeployedError(ApothicError):
    """The function's app is not deployed."""

    code, http = "not_deployed", 409


class NotAServiceError(ApothicError):
    """The function answers no HTTP, so it has no URL."""

    code, http = "not_a_service", 409


class InvalidRequestError(ApothicError, ValueError):
    """The request cannot be understood."""

    code, http = "invalid_request", 400


class ConflictError(ApothicError):
    """The thing is in another state than this request needs."""

    code, http = "conflict", 409


class QueueFullError(ApothicError):
    """The function's queue takes no more jobs for now."""

    code, http = "queue_full", 429


class PayloadTooLargeError(ApothicError):
    """A value is over a size limit. Has `size` and `limit` in bytes and `what` was too large."""

    code, http = "payload_too_large", 413

    def __init__(
        self,
        message: str = "",
        *,
        size: int | None = None,
        limit: int | None = None,
        what: str = "value",
        hint: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        told = details or {}
        self.size: int = size if size is not None else int(told.get("size", 0))
        self.limit: int = limit if limit is not None else int(told.get("limit", 0))
        self.what: str = str(told.get("what", what))
        super().__init__(
            message or f"{self.what} has {self.size:,} bytes, over the limit of {self.limit:,}",
            hint=hint or "raise the server's payload_limit, or pass a path or URL instead of the bytes",
            details={"size": self.size, "limit": self.limit, "what": self.what},
        )


class SerializationError(ApothicError):
    """A value cannot be packed, or cannot be unpacked here."""

    code, http = "serialization", 422


class ServerUnavailableError(ApothicError):
    """No control plane answers. Has `url`."""

    code, http = "server_unavailable", 503

    def __init__(
        self, message: str = "", *, url: str = "", hint: str = "", details: dict[str, Any] | None = None
    ) -> None:
        self.url = url or str((details or {}).get("url", ""))
        super().__init__(message, hint=hint, details={"url": self.url} if self.url else None)


class VersionMismatchError(ApothicError):
    """The two ends speak different versions."""

    code, http = "version_mismatch", 426


class StorageFullError(ApothicError):
    """The data directory takes no more: its disk is full, or it is over its `disk_ceiling`."""

    code, http = "storage_full", 507


class WaitTimeoutError(ApothicError, TimeoutError):
    """Waiting took longer than `timeout_s`; the job goes on. Has `job`, or `jobs` when there were several."""

    code, http = "wait_timeout", 504

    def __init__(
        self,
        message: str = "",
        *,
        job: Any = None,
        jobs: list[Any] | None = None,
        hint: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        self.job = job
        self.jobs = list(jobs) if jobs is not None else ([job] if job is not None else [])


class JobError(ApothicError):
    """A job ended without a value. Has `job`, the handle of that job."""

    code, http = "job_error", 409

    def __init__(
        self, message: str = "", *, job: Any = None, hint: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        self.job = job


class JobFailedError(JobError):
    """The job failed. `details` has `kind`, `type`, `traceback` and, for a start-up failure, its log."""

    code = "job_failed"


class RemoteError(JobFailedError):
    """The function raised an exception that cannot be rebuilt here. `details` has its type and traceback."""

    code = "remote_error"


class WorkerLostError(JobFailedError):
    """The process that ran the job is gone."""

    code = "worker_lost"


class OutOfMemoryError(JobFailedError):
    """The process that ran the job was over its memory limit."""

    code = "oom"


class QueueDeadlineError(JobFailedError):
    """The job was not begun before its queue deadline."""

    code = "expired"


class DeadlockError(JobFailedError):
    """Every slot the job could have is held by jobs that wait for it."""

    code = "deadlock"


class JobCancelledError(JobError):
    """The job was cancelled."""

    code = "job_cancelled"


class JobTimedOutError(JobError):
    """The job ran longer than its function's `timeout_s`."""

    code = "job_timed_out"


class JobGoneError(JobError):
    """The job is past its retention: its events and its result are gone."""

    code, http = "job_gone", 410


class JobStreamResetError(ApothicError):
    """Events between the resume point and what is kept are gone. Has `event` and `checkpoint`, from where to go on."""

    code, http = "stream_reset", 409

    def __init__(
        self,
        message: str = "",
        *,
        event: Any = None,
        checkpoint: Any = None,
        hint: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint, details=details)
        self.event = event
        self.checkpoint = checkpoint


def family(cls: type[ApothicError] = ApothicError) -> Iterator[type[ApothicError]]:
    """Yield `cls` and all that is below it in the tree."""
    yield cls
    for sub in cls.__subclasses__():
        yield from family(sub)


def from_wire(code: str, message: str, hint: str = "", details: dict[str, Any] | None = None) -> ApothicError:
    """Rebuild the error that the other end named; an unknown code becomes a plain `ApothicError`."""
    for cls in family():
        if cls.code == code:
            return cls(message, hint=hint, details=details)
    return ApothicError(message, hint=hint, details={"code": code} | (details or {}))
