"""Events as the outside sees them: places, checkpoints as text, classes, frames."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import apothic
from apothic import JobStreamCheckpoint, JobStreamCursor, JobStreamEvent
from apothic.errors import InvalidRequestError, SerializationError
from apothic.protocol import values
from apothic.protocol.events import (
    EVENT_TYPES,
    Frame,
    Loaded,
    Splitter,
    check_on_reset,
    check_types,
    frame,
    typed,
)

JOB = "job_0123456789abcdefghjkmnpqrs"
PLACES = st.integers(-1, 2**63 - 1)
FILTERS = st.lists(st.sampled_from(EVENT_TYPES)).map(tuple)


def packed(value: Any) -> dict[str, Any]:
    """Return a value as an event's data has it."""
    wire = values.to_wire(values.pack(value, payload_limit=1 << 20).packed, binary=False)
    told: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(wire))
    return told


# --- filters, policies, places ----------------------------------------------------------------------------------


@given(FILTERS)
def test_a_filter_is_put_in_order_and_holds_each_type_once(types: tuple[str, ...]) -> None:
    checked = check_types(types)
    assert set(checked) == set(types)
    assert checked == check_types(list(reversed(checked))) == check_types(checked)


def test_no_filter_and_an_empty_one_mean_all() -> None:
    assert check_types(None) == check_types([]) == check_types(()) == ()


@pytest.mark.parametrize("types", [["job.logs"], ("job.log", ""), [3]])
def test_a_type_that_is_none_is_refused_with_the_eight_names(types: Any) -> None:
    with pytest.raises(ValueError) as caught:
        check_types(types)
    assert len(EVENT_TYPES) == 8
    assert all(name in str(caught.value) for name in EVENT_TYPES)


def test_one_name_instead_of_a_list_of_them_is_told_apart() -> None:
    with pytest.raises(ValueError, match=r"a list of names, not the text 'job\.log'"):
        check_types("job.log")


def test_a_policy_is_one_of_three() -> None:
    assert [check_on_reset(policy) for policy in ("raise", "continue", "latest")] == ["raise", "continue", "latest"]
    with pytest.raises(ValueError, match="'raise', 'continue', 'latest'"):
        check_on_reset("ignore")


def test_a_place_begins_at_nothing_yet() -> None:
    assert JobStreamCursor() == JobStreamCursor(-1) < JobStreamCursor(0)
    assert JobStreamCheckpoint(JOB) == JobStreamCheckpoint(JOB, -1, ())


@pytest.mark.parametrize("index", [-2, 2**63, 1.0, "3", True, None])
def test_an_index_that_cannot_be_one_is_refused(index: Any) -> None:
    with pytest.raises(ValueError, match="last_index"):
        JobStreamCursor(index)
    with pytest.raises(ValueError, match="last_index"):
        JobStreamCheckpoint(JOB, index)


# --- checkpoints as text ----------------------------------------------------------------------------------------


@given(PLACES, FILTERS)
def test_a_checkpoint_comes_back_from_its_text_and_from_a_pickle(place: int, types: tuple[str, ...]) -> None:
    here = JobStreamCheckpoint(JOB, place, types)
    assert JobStreamCheckpoint.parse(str(here)) == here
    assert pickle.loads(pickle.dumps(here)) == here
    assert hash(JobStreamCheckpoint.parse(f" {here}\n")) == hash(here)
    assert str(here).isprintable() and str(here).isascii() and len(str(here)) <= 60


def test_checkpoints_sort_by_place_and_cannot_be_changed() -> None:
    early, late = JobStreamCheckpoint(JOB, 9), JobStreamCheckpoint(JOB, 10)
    assert max(late, early) is late
    with pytest.raises(AttributeError):
        early.last_index = 11  # type: ignore[misc]


def test_a_filter_of_any_form_makes_the_same_checkpoint() -> None:
    listed = JobStreamCheckpoint(JOB, 3, ["job.result", "job.log"])  # type: ignore[arg-type]
    assert listed == JobStreamCheckpoint(JOB, 3, ("job.log", "job.result"))
    assert len({listed, JobStreamCheckpoint(JOB, 3, ("job.log", "job.result"))}) == 1
    with pytest.raises(ValueError, match="no event type"):
        JobStreamCheckpoint(JOB, 3, ("job.nonsense",))


@pytest.mark.parametrize(
    "text",
    ["", JOB, f"{JOB}@", f"{JOB}@-2", f"{JOB}@1+", f"{JOB}@1+q", f"{JOB}@1 2", f"{JOB}@٣", f"{JOB}@{2**63}", "job_1@2",
     f"{JOB}@1+l\n{JOB}@2"],
)  # fmt: skip
def test_text_that_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="is no checkpoint"):
        JobStreamCheckpoint.parse(text)


@given(st.text(max_size=60))
def test_any_text_is_a_checkpoint_or_refused(text: str) -> None:
    try:
        JobStreamCheckpoint.parse(text)
    except InvalidRequestError as error:
        assert error.hint


# --- classes ----------------------------------------------------------------------------------------------------

ERROR = {"kind": "user", "type": "KeyError", "message": "'x'", "traceback": "…", "attempt": 2, "retriable": False}
RESET = {
    "reason": "window_rotated", "requested_index": 4, "resume_index": 9, "oldest_index": 10, "head_index": 12,
    "retained_from": {}, "trimmed": {}, "status": "running", "attempt": 1, "lost": {"job.log": 5},
}  # fmt: skip
SNAPSHOT = {
    "as_of_index": 7, "status": "succeeded", "attempt": 1, "counts": {"job.log": 1, "job.stream_item": 0},
    "result": {"value": packed({"a": 1})}, "error": None,
}  # fmt: skip
EVENTS = [
    typed("job.log", {"stream": "stderr", "text": "hi", "attempt": 1, "at": 1.5, "line": 3, "cont": True}, 0),
    typed("job.stream_item", {"item_index": 2, "attempt": 1, "value": packed([1, "a"])}, 1),
    typed("job.status", {"status": "retrying", "attempt": 1, "at": 2, "reason": "x", "detail": {"kind": "oom"}}, 2),
    typed("job.result", {"attempt": 1, "value": packed((1, 2)), "items": 3}, 3),
    typed("job.error", ERROR, 4),
    typed("job.end", {"status": "failed", "attempts": 2, "last_index": 5}, 5),
    typed("job.reset", RESET),
    typed("job.snapshot", SNAPSHOT),
]


def told(event: JobStreamEvent) -> Any:
    match event:
        case apothic.JobLogEvent(text, stream):
            return text, stream
        case apothic.JobStreamItemEvent(value, item_index):
            return value, item_index
        case apothic.JobStatusEvent(status, reason):
            return status, reason
        case apothic.JobResultEvent(value):
            return value
        case apothic.JobErrorEvent(kind, message):
            return kind, message
        case apothic.JobEndEvent(status):
            return status
        case apothic.JobResetEvent(reason):
            return reason
        case apothic.JobSnapshotEvent(status, as_of_index):
            return status, as_of_index
        case JobStreamEvent(name, data, index):
            return name, data, index


def test_every_type_has_a_class_that_works_in_match() -> None:
    assert [told(event) for event in EVENTS] == [
        ("hi", "stderr"), ([1, "a"], 2), ("retrying", "x"), (1, 2), ("user", "'x'"), "failed", "window_rotated",
        ("succeeded", 7),
    ]  # fmt: skip
    assert [event.event for event in EVENTS] == list(EVENT_TYPES)
    assert len({type(event) for event in EVENTS}) == 8


def test_every_property_has_what_the_data_says() -> None:
    log, item, status, result, error, end, reset, snapshot = (vars_of(event) for event in EVENTS)
    assert log | {"line": 3, "cont": True, "at": 1.5, "attempt": 1} == log
    assert item | {"value": [1, "a"], "item_index": 2, "attempt": 1} == item
    assert status | {"at": 2.0, "detail": {"kind": "oom"}} == status
    assert result | {"value": (1, 2), "items": 3} == result
    assert error | {"type": "KeyError", "traceback": "…", "attempt": 2} == error
    assert end | {"attempts": 2, "attempt": 0} == end
    assert reset | {"requested_index": 4, "resume_index": 9, "head_index": 12, "lost": {"job.log": 5}} == reset
    assert snapshot | {"counts": SNAPSHOT["counts"], "result": {"a": 1}, "error": None} == snapshot


def vars_of(event: JobStreamEvent) -> dict[str, Any]:
    return {name: getattr(event, name) for name in dir(type(event)) if isinstance(getattr(type(event), name), property)}


def test_events_are_compared_by_what_they_say_and_survive_pickling() -> None:
    again = [pickle.loads(pickle.dumps(event)) for event in EVENTS]
    assert again == EVENTS
    assert EVENTS[0] != EVENTS[1] and EVENTS[1] != JobStreamEvent("job.stream_item", EVENTS[1].data, 1)
    assert "item_index" in repr(EVENTS[1]) and "_value" not in repr(EVENTS[1])


def test_a_type_of_a_later_version_is_a_plain_event() -> None:
    assert type(typed("job.progress", {"done": 3}, 8)) is JobStreamEvent
    assert told(typed("job.progress", {"done": 3}, 8)) == ("job.progress", {"done": 3}, 8)


def test_a_snapshot_of_a_job_without_a_result_has_none() -> None:
    event = typed("job.snapshot", SNAPSHOT | {"status": "running", "result": None})
    assert event.result is None  # type: ignore[attr-defined]


def test_a_value_that_was_fetched_is_given_and_one_that_could_not_be_raises() -> None:
    data = {"item_index": 0, "attempt": 1, "ref": {"encoding": "json", "sha256": "0" * 64, "size": 3}}
    assert typed("job.stream_item", data, 1, Loaded({"big": 1})).value == {"big": 1}  # type: ignore[attr-defined]
    with pytest.raises(SerializationError, match="no legs"):
        typed("job.stream_item", data, 1, Loaded(error=SerializationError("no legs"))).value  # type: ignore[attr-defined] # noqa: B018
    with pytest.raises(SerializationError, match="were not fetched"):
        typed("job.stream_item", data, 1).value  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.parametrize("data", [{}, {"value": 3}, {"value": {"encoding": "xml"}}, {"ref": {"sha256": 3}}])
def test_a_value_that_is_none_says_so(data: dict[str, Any]) -> None:
    with pytest.raises(SerializationError, match="the value of an event"):
        typed("job.stream_item", {"item_index": 0} | data, 1).value  # type: ignore[attr-defined] # noqa: B018


# --- frames -----------------------------------------------------------------------------------------------------

FRAMES = st.builds(
    lambda event, data, index: (frame(event, msgspec.json.encode(data).decode(), index), event, data, index),
    st.sampled_from(EVENT_TYPES), st.dictionaries(st.text(), st.text() | st.integers()), st.none() | PLACES,
)  # fmt: skip


@given(st.lists(FRAMES), st.lists(st.integers(1, 40)), st.booleans())
def test_frames_are_whole_however_the_bytes_are_cut(frames: list[Any], cuts: list[int], windows: bool) -> None:
    data = ("retry: 1000\nid: 3\n\n" + ":\n\n".join(text for text, _, _, _ in frames)).encode()
    data = data.replace(b"\n", b"\r\n") if windows else data
    splitter, found = Splitter(), []
    for cut in [*cuts, len(data)]:
        found += splitter.feed(data[:cut])
        data = data[cut:]

    assert found[0] == Frame("", b"", 3)
    assert [(one.event, msgspec.json.decode(one.data), one.id) for one in found[1:]] == [
        (event, data, index) for _, event, data, index in frames
    ]


def test_what_is_not_whole_is_kept_back() -> None:
    splitter = Splitter()
    assert splitter.feed(b"id: 4\nevent: job.log\ndata: {}\n") == []
    assert splitter.feed(b"\nid: 5\n") == [Frame("job.log", b"{}", 4)]
    assert splitter.feed(b"\n") == [Frame("", b"", 5)]


def test_an_id_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError):
        Splitter().feed(b"id: five\n\n")
