"""A job's events in words: a line each, for `watch` and `attach`; and the whole of a job in lines, for `story`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from apothic.cli.render import shown_value

if TYPE_CHECKING:
    from apothic.protocol.messages import JobView

NOUNS = {"job.log": "log line", "job.stream_item": "item"}
# Why a job is not at work: what docs/lifecycle.md says of each reason.
WAITS = {
    "delayed": "its `run_at` is still to come",
    "backoff": "it pauses before its next attempt",
    "concurrency_limit": "its function has all the containers it may have (`max_containers`), and they are full",
    "no_capacity": "no agent has room for another container of its function",
    "building_env": "its container is being started",
    "batching": "its batch is not full yet, and `wait_ms` not over",
    "paused": "its generator is far ahead of the reader it belongs to",
}


def line(event: str, data: dict[str, Any], index: int | None) -> str:
    """Return one event as a line of text: its index, its kind, and what it says.

    >>> line("job.status", {"status": "running", "attempt": 1}, 2)
    '    2  status    running (attempt 1)'
    """
    kind = event.removeprefix("job.")
    if kind == "stream_item":
        kind = f"item {data['item_index']}"
    said = _SAID.get(event, str)(data)
    return f"{'-' if index is None else index:>5}  {kind:<8}  {said}"


def _status(data: dict[str, Any]) -> str:
    told = [f"attempt {data['attempt']}"] if data.get("attempt") else []
    if data.get("reason"):
        told.append(str(data["reason"]))
    if data.get("detail"):
        told.append("{kind}: {type}: {message}".format(**data["detail"]))
    return str(data["status"]) + (f" ({', '.join(told)})" if told else "")


def _log(data: dict[str, Any]) -> str:
    return f"{'' if data['stream'] == 'stdout' else data['stream'] + ': '}{data['text']}"


def value(data: dict[str, Any]) -> str:
    """Return what an event's value is: JSON, or the `repr` that was made where it was packed."""
    import msgspec

    from apothic.protocol.messages import Value

    return shown_value(msgspec.convert(data.get("value") or data.get("ref"), Value))


def _result(data: dict[str, Any]) -> str:
    return value(data) + (f" ({amount(data['items'], 'item')})" if data.get("items") is not None else "")


def _error(data: dict[str, Any]) -> str:
    return f"{data['kind']}: {data['type']}: {data['message']}"


def _end(data: dict[str, Any]) -> str:
    return f"{data['status']} after {amount(data['attempts'], 'attempt')}"


def _reset(data: dict[str, Any]) -> str:
    if data["reason"] == "attempt_restarted":
        return f"attempt {data['attempt']} begins again: its items count from 0"
    if data["reason"] == "cursor_ahead":
        return f"there is no event {data['requested_index']} yet, the last is {data['head_index']}: from the start"
    return f"{gone(data)} gone; it goes on behind {data['resume_index']}"


def gone(data: dict[str, Any]) -> str:
    """Return what a reset says is lost: how much where that is known, else of which sort.

    >>> gone({"trimmed": {"job.log": 7}, "lost": {"job.log": 1}}), gone({"trimmed": {"job.log": 7}})
    ('1 log line is', 'log lines are')
    """
    lost: dict[str, int] = data.get("lost", {})
    known = [amount(lost[kind], noun) for kind, noun in NOUNS.items() if lost.get(kind)]
    unknown = [f"{noun}s" for kind, noun in NOUNS.items() if kind in data["trimmed"] and kind not in lost]
    told = known + unknown
    return f"{' and '.join(told) or 'events'} {'is' if len(told) == 1 and told[0].startswith('1 ') else 'are'}"


def _snapshot(data: dict[str, Any]) -> str:
    counts = ", ".join(amount(data["counts"].get(kind, 0), noun) for kind, noun in NOUNS.items())
    return f"{_status(data)} as of {data['as_of_index']}: {counts} so far"


_SAID = {
    "job.status": _status, "job.log": _log, "job.stream_item": value, "job.result": _result, "job.error": _error,
    "job.end": _end, "job.reset": _reset, "job.snapshot": _snapshot,
}  # fmt: skip


def amount(number: int, noun: str) -> str:
    """Return a number of things.

    >>> amount(1, "item"), amount(1200, "item")
    ('1 item', '1,200 items')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- a whole job ------------------------------------------------------------------------------------------------


def story(view: JobView, snapshot: dict[str, Any], moves: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """Return one job from its submission on, a line a move: when, how long after the one before, and why."""
    told = [f"{view.id}  {view.app}.{view.function}, deployment {view.deployment_id}"]
    before: float | None = None
    for event, data in moves:
        if event == "job.status":
            at = float(data["at"])
            step = "" if before is None else f"+{max(at - before, 0.0):.3f} s"
            before = at
            told.append(f"{_clock(at)}  {step:>12}  {_status(data)}")
        elif event == "job.error":
            told.append(f"{'':>28}{_error(data)}")
            told += [f"{'':>28}{text}" for text in str(data.get("traceback") or "").rstrip().splitlines()]
        elif event == "job.result":
            told.append(f"{'':>28}{_result(data)}")
    if view.ended_at is None:
        why = f", because {WAITS.get(view.reason, view.reason)}" if view.reason else ""
        ahead = f", {amount(view.ahead, 'job')} ahead of it" if view.ahead else ""
        told.append(f"{'now':>12}  {'':>12}  {view.status}{why}{ahead}")
    for kind, noun in NOUNS.items():
        if count := snapshot["counts"].get(kind, 0):
            kept = "" if kind not in snapshot["trimmed"] else ", the older ones are gone"
            told.append(f"{amount(count, noun)}{kept}")
    return "\n".join(told)


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
