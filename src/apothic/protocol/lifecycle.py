"""The life of a job: its states, and the only moves between them.

Rule 1: no other module names the status a job moves to; it names a `Move`. Rule 2: nothing here waits, reads or writes.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RETRYING = "retrying"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


class Move(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"  # an attempt is given to a container
    BEGIN = "begin"  # the function's code is entered
    SUCCEED = "succeed"
    FAIL = "fail"  # the function raised, or the budgets are spent
    EXPIRE = "expire"  # the attempt was over its time, and no retry is left
    RETRY = "retry"  # the attempt is over, another one follows
    REQUEUE = "requeue"  # drained or preempted: costs no try
    CANCEL = "cancel"
    BURY = "bury"  # a cancelled attempt's process tree is known to be dead


_S = Status
ARROWS: dict[Move, dict[Status, Status]] = {
    Move.CLAIM: {_S.QUEUED: _S.STARTING, _S.RETRYING: _S.STARTING},
    Move.BEGIN: {_S.STARTING: _S.RUNNING},
    # From cancelling as well: the attempt ended before the kill took effect.
    Move.SUCCEED: {_S.RUNNING: _S.SUCCEEDED, _S.CANCELLING: _S.SUCCEEDED},
    # From queued: the queue deadline, or a request no agent can meet. From starting: the start-up.
    Move.FAIL: {_S.QUEUED: _S.FAILED, _S.STARTING: _S.FAILED, _S.RUNNING: _S.FAILED, _S.CANCELLING: _S.FAILED},
    Move.EXPIRE: {_S.STARTING: _S.TIMED_OUT, _S.RUNNING: _S.TIMED_OUT},
    Move.RETRY: {_S.STARTING: _S.RETRYING, _S.RUNNING: _S.RETRYING},
    Move.REQUEUE: {_S.STARTING: _S.QUEUED, _S.RUNNING: _S.QUEUED},
    Move.CANCEL: {
        _S.QUEUED: _S.CANCELLED,
        _S.RETRYING: _S.CANCELLED,
        _S.STARTING: _S.CANCELLING,
        _S.RUNNING: _S.CANCELLING,
    },
    Move.BURY: {_S.CANCELLING: _S.CANCELLED},
}

FINAL = frozenset(Status) - {source for arrows in ARROWS.values() for source in arrows}
LEASED = frozenset({_S.STARTING, _S.RUNNING, _S.CANCELLING})
CLAIMABLE = frozenset(ARROWS[Move.CLAIM])


def diagram() -> str:
    """Draw the table as a Mermaid state diagram; `docs/lifecycle.md` holds exactly this."""
    lines = ["stateDiagram-v2", "    [*] --> queued: submit"]
    lines += [
        f"    {source.value} --> {target.value}: {move.value}"
        for move, arrows in ARROWS.items()
        for source, target in arrows.items()
    ]
    lines += [f"    {status.value} --> [*]" for status in Status if status in FINAL]
    return "\n".join(lines)
