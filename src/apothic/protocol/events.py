"""A job's events as the outside sees them: types, a place in the stream, a checkpoint as one string, SSE frames.

The rules of the stream itself (what a cursor means, when a gap is declared) stand where it is read: `store/stream.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from apothic.errors import InvalidRequestError, SerializationError
from apothic.protocol import ids, values
from apothic.protocol.messages import Value

LOG, ITEM, STATUS = "job.log", "job.stream_item", "job.status"
RESULT, ERROR, END = "job.result", "job.error", "job.end"
RESET, SNAPSHOT = "job.reset", "job.snapshot"
DEPLOYMENT_STATUS = "deployment.status"  # the one type of a deployment's stream
STORED = (LOG, ITEM, STATUS, RESULT, ERROR, END)
EVENT_TYPES = (*STORED, RESET, SNAPSHOT)
# What can flood, and is therefore trimmed; each numbers its own events by this field of the data.
NUMBERED = {LOG: "line", ITEM: "item_index"}
ON_RESET = ("raise", "continue", "latest")
_LETTER = dict(zip(EVENT_TYPES, "lisrexzp", strict=True))
_CHECKPOINT = re.compile(rf"(job_[0-9a-z]+)@(-1|[0-9]{{1,19}})(?:\+([{''.join(_LETTER.values())}]+))?")
_LAST = (1 << 63) - 1


def check_types(event_types: Iterable[str] | None) -> tuple[str, ...]:
    """Return the filter in the order of `EVENT_TYPES`; empty means all. Raises `ValueError` that lists the names.

    >>> check_types(["job.result", "job.log"])
    ('job.log', 'job.result')
    """
    if isinstance(event_types, str):
        raise ValueError(f"event_types is a list of names, not the text {event_types!r}")
    asked = set(event_types or ())
    for name in asked - set(EVENT_TYPES):
        raise ValueError(f"there is no event type {name!r}; there are {', '.join(EVENT_TYPES)}")
    return tuple(name for name in EVENT_TYPES if name in asked)


def check_on_reset(on_reset: str) -> str:
    """Return the policy. Raises `ValueError` that lists the three."""
    if on_reset not in ON_RESET:
        raise ValueError(f"on_reset cannot be {on_reset!r}; it is {', '.join(map(repr, ON_RESET))}")
    return on_reset


# --- where one stands -------------------------------------------------------------------------------------------


def _check_index(last_index: int) -> None:
    if isinstance(last_index, bool) or not isinstance(last_index, int) or not -1 <= last_index <= _LAST:
        raise ValueError(f"last_index cannot be {last_index!r}; it is -1 for nothing yet, or the index last dealt with")


@dataclass(frozen=True, order=True)
class JobStreamCursor:
    """A place in a job's stream: everything up to and including `last_index` has been dealt with; -1 is nothing yet."""

    last_index: int = -1

    def __post_init__(self) -> None:
        _check_index(self.last_index)


@dataclass(frozen=True, order=True)
class JobStreamCheckpoint:
    """A job, a place in its stream and a filter: all that is needed to go on, from any process.

    `str(checkpoint)` is one short printable string, and `parse` reads it back. Checkpoints of one job sort by place.

    >>> here = JobStreamCheckpoint("job_0123456789abcdefghjkmnpqrs", 41, ("job.log",))
    >>> str(here)
    'job_0123456789abcdefghjkmnpqrs@41+l'
    >>> JobStreamCheckpoint.parse(str(here)) == here
    True
    """

    job_id: str
    last_index: int = -1
    event_types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_index(self.last_index)
        object.__setattr__(self, "event_types", check_types(self.event_types))

    def __str__(self) -> str:
        letters = "".join(_LETTER[name] for name in self.event_types)
        return f"{self.job_id}@{self.last_index}" + (f"+{letters}" if letters else "")

    @classmethod
    def parse(cls, text: str) -> JobStreamCheckpoint:
        """Read what `str` has written. Raises `InvalidRequestError` (a `ValueError`) for anything else."""
        found = _CHECKPOINT.fullmatch(text.strip())
        if found is None or not ids.is_id(found[1], "job") or int(found[2]) > _LAST:
            raise InvalidRequestError(
                f"{text[:100]!r} is no checkpoint", hint="a checkpoint is str(job.checkpoint()): job_…@index+types"
            )
        letters = found[3] or ""
        return cls(found[1], int(found[2]), tuple(name for name, letter in _LETTER.items() if letter in letters))


# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobStreamEvent:
    """One event of a job: `event` is its type's name, `data` a dict, `index` its place in the job's one order.

    `index` is `None` for what is made for one connection: `job.reset` and `job.snapshot`.
    """

    event: str
    data: Any
    index: int | None = None

    @property
    def attempt(self) -> int:
        """Return the number of the attempt that it belongs to; 0 before the first."""
        return int(self.data.get("attempt", 0))


class JobLogEvent(JobStreamEvent):
    """A line of output, without its line end."""

    __match_args__ = ("text", "stream")

    @property
    def text(self) -> str:
        """Return the line."""
        return str(self.data["text"])

    @property
    def stream(self) -> str:
        """Return `stdout`, `stderr` or `system`."""
        return str(self.data["stream"])

    @property
    def line(self) -> int:
        """Return its number among the job's lines, from 0."""
        return int(self.data["line"])

    @property
    def cont(self) -> bool:
        """Tell whether the line goes on in the next event: it was over 16 KiB."""
        return bool(self.data.get("cont", False))

    @property
    def at(self) -> float:
        """Return when it was printed, in seconds since 1970."""
        return float(self.data["at"])


@dataclass(frozen=True, eq=False)
class JobStreamItemEvent(JobStreamEvent):
    """An item that a generator function has yielded."""

    __match_args__ = ("value", "item_index")
    _value: Any = field(default=None, repr=False)

    @property
    def value(self) -> Any:
        """Return the item. Raises `SerializationError` when it cannot be read here."""
        return loaded(self._value, self.data)

    @property
    def item_index(self) -> int:
        """Return its number among the attempt's items, from 0."""
        return int(self.data["item_index"])


class JobStatusEvent(JobStreamEvent):
    """The job has moved."""

    __match_args__ = ("status", "reason")

    @property
    def status(self) -> str:
        """Return what it is now."""
        return str(self.data["status"])

    @property
    def reason(self) -> str | None:
        """Return why, where that needs saying."""
        reason: str | None = self.data.get("reason")
        return reason

    @property
    def detail(self) -> dict[str, Any] | None:
        """Return what a failed attempt's error was, when another attempt follows."""
        detail: dict[str, Any] | None = self.data.get("detail")
        return detail

    @property
    def at(self) -> float:
        """Return when, in seconds since 1970."""
        return float(self.data["at"])


@dataclass(frozen=True, eq=False)
class JobResultEvent(JobStreamEvent):
    """The job has succeeded."""

    __match_args__ = ("value",)
    _value: Any = field(default=None, repr=False)

    @property
    def value(self) -> Any:
        """Return the function's value; a generator's return value. Raises `SerializationError`, as an item's does."""
        return loaded(self._value, self.data)

    @property
    def items(self) -> int | None:
        """Return how many items a generator has yielded; `None` for a plain function."""
        items: int | None = self.data.get("items")
        return items


class JobErrorEvent(JobStreamEvent):
    """The job has not succeeded, and why."""

    __match_args__ = ("kind", "message")

    @property
    def kind(self) -> str:
        """Return the sort of failure: `user`, `timeout`, `cancelled`, `worker_lost`, …"""
        return str(self.data["kind"])

    @property
    def type(self) -> str:
        """Return the name of the exception's type."""
        return str(self.data["type"])

    @property
    def message(self) -> str:
        """Return what it said."""
        return str(self.data["message"])

    @property
    def traceback(self) -> str:
        """Return the remote traceback; empty when there is none."""
        return str(self.data.get("traceback", ""))


class JobEndEvent(JobStreamEvent):
    """The last event of every job."""

    __match_args__ = ("status",)

    @property
    def status(self) -> str:
        """Return how the job has ended."""
        return str(self.data["status"])

    @property
    def attempts(self) -> int:
        """Return how many attempts there were."""
        return int(self.data["attempts"])


class JobResetEvent(JobStreamEvent):
    """A gap, declared: events between `requested_index` and `resume_index` are gone, or their attempt is."""

    __match_args__ = ("reason",)

    @property
    def reason(self) -> str:
        """Return `window_rotated`, `cursor_ahead` or `attempt_restarted`."""
        return str(self.data["reason"])

    @property
    def requested_index(self) -> int:
        """Return the place from which the gap was met."""
        return int(self.data["requested_index"])

    @property
    def resume_index(self) -> int:
        """Return the place from which it goes on: the `last_index` to ask with."""
        return int(self.data["resume_index"])

    @property
    def head_index(self) -> int:
        """Return the highest index that there was."""
        return int(self.data["head_index"])

    @property
    def lost(self) -> dict[str, int]:
        """Return how many events of each type are lost, where this reader has seen enough to know exactly."""
        return dict(self.data.get("lost", {}))


@dataclass(frozen=True, eq=False)
class JobSnapshotEvent(JobStreamEvent):
    """How the job stood at `as_of_index`: state, without logs and items."""

    __match_args__ = ("status", "as_of_index")
    _value: Any = field(default=None, repr=False)

    @property
    def status(self) -> str:
        """Return the job's status."""
        return str(self.data["status"])

    @property
    def as_of_index(self) -> int:
        """Return the index of the last event that it takes into account."""
        return int(self.data["as_of_index"])

    @property
    def counts(self) -> dict[str, int]:
        """Return how many log lines and items there have been so far."""
        return dict(self.data["counts"])

    @property
    def result(self) -> Any:
        """Return the job's value once it has succeeded, else `None`. Raises `SerializationError`, as an item's does."""
        return None if self.data["result"] is None else loaded(self._value, self.data["result"])

    @property
    def error(self) -> dict[str, Any] | None:
        """Return the data of the job's error once it has failed."""
        error: dict[str, Any] | None = self.data["error"]
        return error


_CLASSES: dict[str, type[JobStreamEvent]] = {
    LOG: JobLogEvent, ITEM: JobStreamItemEvent, STATUS: JobStatusEvent, RESULT: JobResultEvent, ERROR: JobErrorEvent,
    END: JobEndEvent, RESET: JobResetEvent, SNAPSHOT: JobSnapshotEvent,
}  # fmt: skip
VALUED = (ITEM, RESULT, SNAPSHOT)
WHAT = "the value of an event"


class Loaded(NamedTuple):
    """A value that was read where its event came from: a blob that had to be fetched; or why it could not be."""

    value: Any = None
    error: Exception | None = None


def typed(event: str, data: Any, index: int | None = None, found: Loaded | None = None) -> JobStreamEvent:
    """Return the event as one of its own class. `found` is the value of one whose bytes are in a blob."""
    cls = _CLASSES.get(event, JobStreamEvent)
    return cls(event, data, index, found) if found is not None else cls(event, data, index)  # type: ignore[call-arg]


def loaded(found: Loaded | None, data: dict[str, Any]) -> Any:
    """Return the value of an event: what was fetched for it, or what its data holds. Raises `SerializationError`."""
    if found is not None:
        if found.error is not None:
            raise found.error
        return found.value
    inline = data.get("value")
    if isinstance(inline, dict) and inline.get("encoding") == "json":
        return inline.get("data")
    return values.unpack_wire(value_in(data), what=WHAT)


def value_in(data: dict[str, Any]) -> Value:
    """Return the value that an event's data holds or refers to. Raises `SerializationError` when there is none."""
    try:
        return msgspec.convert(data.get("value") or data.get("ref"), Value)
    except msgspec.ValidationError as error:
        raise SerializationError(f"{WHAT} cannot be read: {error}", hint="look at the event's .data") from None


# --- frames of server-sent events -------------------------------------------------------------------------------


class Frame(NamedTuple):
    """One frame as it was sent. Without an `event` it is a bookmark: all that matches up to `id` was sent."""

    event: str
    data: bytes
    id: int | None


def frame(event: str, data: str, index: int | None) -> str:
    """Return one frame. `data` is JSON, which has no raw line ends, so it is one line.

    >>> frame("job.end", "{}", 7)
    'id: 7\\nevent: job.end\\ndata: {}\\n\\n'
    """
    return (
        f"id: {index}\nevent: {event}\ndata: {data}\n\n" if index is not None else f"event: {event}\ndata: {data}\n\n"
    )


class Splitter:
    """Takes the bytes of a stream as they come, and gives whole frames. Comments and `retry` are passed over."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes. Raises `ValueError` on an id that is no number."""
        data = (self._held + data if self._held else data).replace(b"\r", b"")
        *blocks, self._held = data.split(b"\n\n")
        return [found for block in blocks if (found := _parse(block)) is not None]


def _parse(block: bytes) -> Frame | None:
    event, data, place = "", b"", None
    for line in block.split(b"\n"):
        name, _, text = line.partition(b": ")
        if name == b"data":
            data = text
        elif name == b"event":
            event = text.decode()
        elif name == b"id":
            place = int(text)
    return Frame(event, data, place) if event or place is not None else None
