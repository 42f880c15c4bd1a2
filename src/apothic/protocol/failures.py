"""An exception ↔ a `Failure`: plain data always, the exception itself when it can be read back.

`describe` runs where the exception was raised, `rebuild` where somebody waits for it. A stored type name is never
looked up: only the names in `_PLAIN` become builtin exceptions, all else comes from a pickle or is a `RemoteError`.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import re
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from apothic.errors import (
    DeadlockError,
    JobCancelledError,
    JobError,
    JobFailedError,
    JobTimedOutError,
    OutOfMemoryError,
    QueueDeadlineError,
    RemoteError,
    WorkerLostError,
)
from apothic.protocol import pickling, values
from apothic.protocol.messages import Failure, FailureKind, Value
from apothic.protocol.spool import Spool
from apothic.protocol.trace import MESSAGE_LIMIT, format_trace, message_of, name_of, plain_text

__all__ = ["PAYLOAD_LIMIT", "RemoteTraceback", "describe", "rebuild", "revive"]

T = TypeVar("T")

PAYLOAD_LIMIT = 64 * 1024
_OURS = str(Path(__file__).resolve().parent.parent)
_FINAL = {"serialization", "payload_too_large", "expired", "cancelled", "unsatisfiable", "deadlock"}
_TAIL_LINES = 10
_TEXT_LITERAL = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""")

# Built from one message; what needs more (UnicodeDecodeError), ends the caller (SystemExit) or means something to the
# interpreter (StopIteration inside a generator) is not among them.
_PLAIN: dict[str, type[Exception]] = {
    cls.__name__: cls
    for cls in (
        ArithmeticError, AssertionError, AttributeError, BlockingIOError, BrokenPipeError, BufferError,
        ChildProcessError, ConnectionAbortedError, ConnectionError, ConnectionRefusedError,
        ConnectionResetError, EOFError, Exception, FileExistsError, FileNotFoundError, FloatingPointError,
        ImportError, IndentationError, IndexError, InterruptedError, IsADirectoryError, KeyError, LookupError,
        MemoryError, ModuleNotFoundError, NameError, NotADirectoryError, NotImplementedError, OSError,
        OverflowError, PermissionError, ProcessLookupError, RecursionError, ReferenceError, RuntimeError,
        SyntaxError, SystemError, TabError, TimeoutError, TypeError, UnboundLocalError, ValueError,
        ZeroDivisionError, Warning, BytesWarning, DeprecationWarning, FutureWarning, ImportWarning,
        PendingDeprecationWarning, ResourceWarning, RuntimeWarning, SyntaxWarning, UnicodeWarning, UserWarning,
    )
}  # fmt: skip

_KINDS: dict[FailureKind, tuple[type[JobError], str]] = {
    "user": (RemoteError, ""),
    "timeout": (JobTimedOutError, "give the function a larger timeout_s, or less to do at once"),
    "cancelled": (JobCancelledError, ""),
    "worker_lost": (
        WorkerLostError,
        "its last output is below, and whole in the job's logs; it was tried again, unless at_most_once",
    ),
    "oom": (OutOfMemoryError, "give the function a larger memory_mb, or less to do at once"),
    "expired": (QueueDeadlineError, "allow more time in the queue (expires_in_s), or more containers"),
    "deadlock": (DeadlockError, "raise max_containers, or do not wait inside a job for jobs of the same function"),
    "startup": (JobFailedError, "its start-up log is below; the module must import where the agent runs"),
    "serialization": (JobFailedError, "return plain data, or what both sides can import"),
    "payload_too_large": (JobFailedError, "raise the server's payload_limit, or return a path or URL instead"),
    "unsatisfiable": (JobFailedError, "ask for less cpu, memory_mb or gpu, or start an agent that has it"),
}


class RemoteTraceback(Exception):
    """Shows where an exception came from, above it, when it is printed. Its text is the traceback of the other side."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteTraceback, (self.text,)


# --- exception → failure ----------------------------------------------------------------------------------------


def describe(
    exc: BaseException,
    *,
    attempt: int,
    kind: FailureKind = "user",
    strip_frames_of: Sequence[str] = (_OURS,),
    payload_limit: int = PAYLOAD_LIMIT,
) -> Failure:
    """Tell what happened as plain data. Never raises, whatever the exception does when it is looked at.

    Frames of files below `strip_frames_of` are left out where they lead to the user's own. The exception itself is
    added when its pickle has at most `payload_limit` bytes and reads back here as the same type.
    """
    return Failure(
        kind=kind,
        type=_or("Exception", lambda: name_of(type(exc))),
        message=_or("its message cannot be read", lambda: message_of(exc)),
        traceback=_or("", lambda: format_trace(exc, tuple(strip_frames_of))),
        cause=_or(None, lambda: _cause(exc)),
        attempt=attempt,
        retriable=kind not in _FINAL,
        payload=_or(None, lambda: _payload(exc, payload_limit)) if kind == "user" else None,
    )


def _or(otherwise: T, deed: Callable[[], T]) -> T:
    # BaseException, because an exception's own methods may raise SystemExit as well as anything else.
    try:
        return deed()
    except BaseException:
        return otherwise


def _cause(exc: BaseException) -> str | None:
    cause = exc.__cause__
    if cause is None and not exc.__suppress_context__:
        cause = exc.__context__
    if cause is None:
        return None
    return f"{name_of(type(cause))}: {message_of(cause)}"[:MESSAGE_LIMIT]


def _payload(exc: BaseException, limit: int) -> Value | None:
    text, fallback = message_of(exc), None
    nothing: tuple[Value | None, Any] = (None, None)
    # As it wants to be pickled; then past an __init__ that takes other arguments than it passes on.
    for form in (exc, _Revival(exc)):
        value, again = _or(nothing, partial(_there_and_back, form, limit))
        if value is None or type(again) is not type(exc) or not _raisable(again):
            continue
        if message_of(again) == text:
            return value
        fallback = fallback or value  # a message that is never the same twice, with an address in it, say
    return fallback


def _there_and_back(form: Any, limit: int) -> tuple[Value | None, Any]:
    spool = Spool(keep=limit, limit=limit, what="the exception")
    header = pickling.dump(form, spool, "the exception")
    data = spool.data()
    again = pickling.load(io.BytesIO(data), header, "the exception")
    return Value(encoding="pickle", data=data, header=header), again


def _raisable(exc: Any) -> bool:
    """Tell whether a caller can have this raised: it does not end or confuse the caller, and can be printed."""
    if not isinstance(exc, Exception) or isinstance(exc, (StopIteration, StopAsyncIteration)):
        return False
    try:
        traceback.format_exception_only(exc)
    except BaseException:  # its attributes may do anything when the interpreter reads them
        return False
    return True


class _Revival:
    """Stands for an exception in a pickle that makes it again without its own `__init__`."""

    def __init__(self, exc: BaseException) -> None:
        self._exc = exc

    def __reduce__(self) -> tuple[Any, ...]:
        exc = self._exc
        parts: tuple[Any, ...] = tuple(_builtin(type(exc)).__reduce__(exc))
        told: dict[str, Any] = dict(parts[2] or {}) if len(parts) > 2 else {}
        for cls in type(exc).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                with contextlib.suppress(AttributeError):
                    told[name] = object.__getattribute__(exc, name)
        return revive, (type(exc), parts[1], told)


def _builtin(cls: type[BaseException]) -> type[BaseException]:
    found: type[BaseException] = next(base for base in cls.__mro__ if vars(builtins).get(base.__name__) is base)
    return found


def revive(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """Make an exception of that type with those `args` and attributes, without running an `__init__` of the user's."""
    if not issubclass(cls, BaseException):
        raise TypeError(f"{cls!r} is no exception")
    exc = cls.__new__(cls, *args)
    _builtin(cls).__init__(exc, *args)
    for name, item in state.items():
        object.__setattr__(exc, name, item)  # past a frozen dataclass's own
    return exc


# --- failure → exception ----------------------------------------------------------------------------------------


def rebuild(failure: Failure, job: Any, *, allow_pickle: bool = True) -> Exception:
    """Return the exception to raise in the caller, the remote traceback and a note that names `job` attached.

    The function's own exception where it can be read here, else a builtin one of that name, else a `JobError` with
    `.job`. Always an `Exception`: what would end or confuse the caller (`SystemExit`, `KeyboardInterrupt`,
    `CancelledError`, `StopIteration`) comes as a `RemoteError`.
    """
    exc, trouble = _own(failure, allow_pickle) if failure.kind == "user" else (None, "")
    if exc is None:
        exc = _ours(failure, job, trouble)
    if failure.traceback:
        # Past an overridden __setattr__: a frozen dataclass may be an exception.
        object.__setattr__(exc, "__cause__", RemoteTraceback(plain_text(failure.traceback)))
    name = getattr(job, "job_id", None) or job
    tries = f", attempt {failure.attempt}" if failure.attempt > 1 else ""
    _note(exc, f"raised by job {name}{tries}" if failure.kind == "user" else f"job {name}{tries}")
    if failure.log_tail and failure.kind in ("startup", "worker_lost", "oom"):
        lines = plain_text(failure.log_tail).splitlines()[-_TAIL_LINES:]
        _note(exc, "last output:\n" + "\n".join(f"  {line[:500]}" for line in lines))
    return exc


def _own(failure: Failure, allow_pickle: bool) -> tuple[Exception | None, str]:
    trouble = ""
    if failure.payload is not None and allow_pickle:
        try:
            exc = values.unpack_wire(failure.payload, what="the exception")
        except Exception as error:
            trouble = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            if _raisable(exc):
                return exc, ""
            trouble = "what was sent is no exception that can be raised"
    cls = _PLAIN.get(failure.type)
    return (cls(_argument(cls, failure.message)) if cls is not None else None), trouble


def _argument(cls: type[Exception], message: str) -> Any:
    # str(KeyError("x")) is "'x'", the repr of its key. Only one plain literal is read: the text comes from elsewhere.
    if cls is KeyError and _TEXT_LITERAL.fullmatch(message):
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(message)
    return message


def _ours(failure: Failure, job: Any, trouble: str) -> JobError:
    cls, hint = _KINDS[failure.kind]
    message = failure.message
    if cls is RemoteError:
        message = f"{failure.type}: {message}" if message else failure.type
        hint = f"it cannot be raised as itself here: {trouble}" if trouble else "its traceback is above"
    elif not message:
        message = (cls.__doc__ or "").strip().splitlines()[0]
    told = {
        "kind": failure.kind,
        "type": failure.type,
        "traceback": failure.traceback,
        "cause": failure.cause,
        "attempt": failure.attempt,
        "exit": failure.exit,
        "log": failure.log_tail,
    }
    details = {name: value for name, value in told.items() if value or name in ("kind", "type", "traceback")}
    return cls(plain_text(message), job=job, hint=hint, details=details)


def _note(exc: BaseException, text: str) -> None:
    try:
        exc.add_note(text)
    except Exception:  # an overridden __setattr__, or notes that are no list
        with contextlib.suppress(Exception):
            vars(exc)["__notes__"] = [text]
