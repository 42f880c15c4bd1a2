"""What becomes of a job whose attempt failed. Pure: facts in, a verdict out.

Three budgets (contract: the life of a job, section 4): the function's own retries for what its code raised, a crash
budget for what the machine did, and drain moves for what we did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apothic.protocol.lifecycle import Move, Status
from apothic.protocol.messages import Delivery, Failure
from apothic.protocol.specs import Retries

# Celery, Ray and OasisLMF looped for ever on a job that kills its worker; DBOS and Oban cap it, as here.
CRASH_BUDGET = 3
DRAIN_MOVES = 10
SYSTEM_BACKOFF = Retries(CRASH_BUDGET, initial_delay_s=1.0, backoff=2.0, max_delay_s=60.0)

LOST = "WorkerLost"  # the type of a failure that no agent has told: it is out of reach itself

Budget = Literal["user_failures", "crashes", "drains"]


@dataclass(frozen=True)
class Facts:
    """What is known about the job at the moment its attempt ends."""

    status: Status
    delivery: Delivery
    retries: Retries
    user_failures: int
    crashes: int
    drains: int
    published: bool = False  # an item of it was stored, and may have been read

    @property
    def once(self) -> bool:
        """Whether no other attempt may follow: readers would get items twice, or others (Ray #54529, Modal's rule)."""
        return self.published and self.retries.stream == "none"


@dataclass(frozen=True)
class Verdict:
    """The move to make; after how many seconds, when it is a retry; which budget pays."""

    move: Move
    delay_s: float = 0.0
    budget: Budget | None = None


def after_failure(facts: Facts, failure: Failure, dice: float) -> Verdict:
    """Decide what follows a failed attempt; `dice` is a random number in [0, 1) for the jitter."""
    if facts.status == Status.CANCELLING:
        ended_by_itself = failure.kind in ("user", "serialization", "payload_too_large")
        return Verdict(Move.FAIL if ended_by_itself else Move.BURY)
    if failure.kind in ("user", "timeout"):
        final = Verdict(Move.EXPIRE if failure.kind == "timeout" else Move.FAIL)
        if facts.user_failures < facts.retries.max_retries and not facts.once:
            return Verdict(Move.RETRY, delay(facts.retries, facts.user_failures, dice), "user_failures")
        return final
    if failure.kind in ("worker_lost", "oom", "startup") and failure.retriable:
        # Of an agent that is gone nobody knows what it had begun and not yet told; a tempest found code entered twice.
        begun = facts.status == Status.RUNNING or failure.type == LOST
        once = facts.delivery == "at_most_once" and begun
        if facts.crashes < (0 if once or facts.once else CRASH_BUDGET):
            return Verdict(Move.RETRY, delay(SYSTEM_BACKOFF, facts.crashes, dice), "crashes")
    return Verdict(Move.FAIL)


def after_drain(facts: Facts) -> Verdict:
    """Decide what follows an attempt that was given back: the queue again, unless it was moved too often."""
    if facts.status == Status.CANCELLING:
        return Verdict(Move.BURY)
    if facts.delivery == "at_most_once" and facts.status == Status.RUNNING:
        return Verdict(Move.FAIL)  # its code was entered, and must not be entered again
    if facts.once:
        return Verdict(Move.FAIL)
    if facts.drains < DRAIN_MOVES:
        return Verdict(Move.REQUEUE, budget="drains")
    return Verdict(Move.FAIL)


def delay(retries: Retries, already: int, dice: float) -> float:
    """Return the pause before the next attempt: exponential, capped, with full jitter where asked for."""
    try:
        full = min(retries.initial_delay_s * retries.backoff**already, retries.max_delay_s)
    except OverflowError:  # 100.0 ** 155
        full = retries.max_delay_s if retries.initial_delay_s > 0 else 0.0
    return full * dice if retries.jitter else full
