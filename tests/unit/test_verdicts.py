"""What becomes of a job whose attempt failed: budgets, pauses, modes of delivery, cancelling."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apothic.protocol.lifecycle import ARROWS, Move, Status
from apothic.protocol.messages import Failure, FailureKind
from apothic.protocol.specs import Retries
from apothic.store.verdicts import CRASH_BUDGET, DRAIN_MOVES, LOST, Facts, Verdict, after_drain, after_failure, delay

KINDS: tuple[Any, ...] = get_args(FailureKind)


def facts(**more: Any) -> Facts:
    known: dict[str, Any] = {
        "status": Status.RUNNING, "delivery": "at_least_once", "retries": Retries(0), "user_failures": 0, "crashes": 0,
        "drains": 0,
    }  # fmt: skip
    return Facts(**known | more)


def failure(kind: Any, *, retriable: bool = True) -> Failure:
    return Failure(kind=kind, type="T", message="m", retriable=retriable)


def test_at_most_once_is_not_moved_once_its_code_was_entered() -> None:
    assert after_drain(facts(delivery="at_most_once")) == Verdict(Move.FAIL)
    assert after_drain(facts(delivery="at_most_once", status=Status.STARTING)).move == Move.REQUEUE


def test_a_users_exception_costs_a_retry() -> None:
    three = Retries(3, jitter=False)
    for spent, pause in enumerate((1.0, 2.0, 4.0)):
        verdict = after_failure(facts(retries=three, user_failures=spent), failure("user"), 0.5)
        assert verdict == Verdict(Move.RETRY, pause, "user_failures")
    assert after_failure(facts(retries=three, user_failures=3), failure("user"), 0.5) == Verdict(Move.FAIL)


def test_a_time_limit_costs_a_retry_and_ends_as_timed_out() -> None:
    once = Retries(1)
    assert after_failure(facts(retries=once), failure("timeout"), 0.5).move == Move.RETRY
    assert after_failure(facts(retries=once, user_failures=1), failure("timeout"), 0.5) == Verdict(Move.EXPIRE)
    assert after_failure(facts(), failure("timeout"), 0.5) == Verdict(Move.EXPIRE)


@pytest.mark.parametrize("kind", ["worker_lost", "oom", "startup"])
def test_a_crash_costs_the_crash_budget(kind: Any) -> None:
    for spent in range(CRASH_BUDGET):
        verdict = after_failure(facts(crashes=spent), failure(kind), 1.0)
        assert verdict == Verdict(Move.RETRY, 2.0**spent, "crashes")
    assert after_failure(facts(crashes=CRASH_BUDGET), failure(kind), 1.0) == Verdict(Move.FAIL)
    assert after_failure(facts(), failure(kind, retriable=False), 1.0) == Verdict(Move.FAIL)
    assert CRASH_BUDGET == 3


def test_one_budget_does_not_pay_for_another() -> None:
    rich = facts(retries=Retries(5), crashes=CRASH_BUDGET)
    assert after_failure(rich, failure("worker_lost"), 0.5).move == Move.FAIL
    assert after_failure(rich, failure("user"), 0.5).budget == "user_failures"
    assert after_failure(facts(user_failures=9), failure("oom"), 0.5).budget == "crashes"


@pytest.mark.parametrize("kind", ["serialization", "payload_too_large", "expired", "cancelled", "unsatisfiable"])
def test_what_is_never_tried_again(kind: Any) -> None:
    assert after_failure(facts(retries=Retries(9)), failure(kind), 0.5) == Verdict(Move.FAIL)


def test_at_most_once_is_not_begun_twice() -> None:
    once = {"delivery": "at_most_once"}
    assert after_failure(facts(**once), failure("worker_lost"), 0.5).move == Move.FAIL
    assert after_failure(facts(**once, status=Status.STARTING), failure("worker_lost"), 0.5).move == Move.RETRY
    assert after_failure(facts(**once, retries=Retries(1)), failure("user"), 0.5).move == Move.RETRY
    # Its agent is out of reach, and may have entered its code in the moment before it could say so.
    lost = Failure(kind="worker_lost", type=LOST, message="", retriable=True)
    assert after_failure(facts(**once, status=Status.STARTING), lost, 0.5).move == Move.FAIL
    assert after_failure(facts(status=Status.STARTING), lost, 0.5).move == Move.RETRY


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_being_cancelled_is_not_tried_again(kind: Any) -> None:
    rich = facts(status=Status.CANCELLING, retries=Retries(9))
    by_itself = kind in ("user", "serialization", "payload_too_large")
    assert after_failure(rich, failure(kind), 0.5) == Verdict(Move.FAIL if by_itself else Move.BURY)
    assert after_drain(rich) == Verdict(Move.BURY)


def test_what_is_given_back_costs_a_move() -> None:
    assert after_drain(facts()) == Verdict(Move.REQUEUE, budget="drains")
    assert after_drain(facts(drains=DRAIN_MOVES - 1)).move == Move.REQUEUE
    assert after_drain(facts(drains=DRAIN_MOVES)) == Verdict(Move.FAIL)
    assert DRAIN_MOVES == 10


RETRIES = st.builds(
    Retries, st.integers(0, 50), initial_delay_s=st.floats(0, 50), backoff=st.floats(1, 100),
    max_delay_s=st.floats(50, 500), jitter=st.booleans(),
)  # fmt: skip


@given(retries=RETRIES, already=st.integers(0, 1000), dice=st.floats(0, 1, exclude_max=True))
def test_a_pause_is_bounded(retries: Retries, already: int, dice: float) -> None:
    pause = delay(retries, already, dice)
    assert 0 <= pause <= retries.max_delay_s
    if not retries.jitter:
        assert pause >= min(retries.initial_delay_s, retries.max_delay_s)
        assert pause <= delay(retries, already + 1, dice)


@given(
    status=st.sampled_from([Status.STARTING, Status.RUNNING, Status.CANCELLING]), kind=st.sampled_from(KINDS),
    retries=RETRIES, spent=st.integers(0, 60), retriable=st.booleans(), dice=st.floats(0, 1, exclude_max=True),
    delivery=st.sampled_from(["at_least_once", "at_most_once"]),
)  # fmt: skip
def test_every_verdict_is_a_move_that_the_table_has(
    status: Status, kind: Any, retries: Retries, spent: int, retriable: bool, dice: float, delivery: Any
) -> None:
    known = facts(
        status=status, retries=retries, user_failures=spent, crashes=spent, drains=spent, delivery=delivery
    )  # fmt: skip
    for verdict in (after_failure(known, failure(kind, retriable=retriable), dice), after_drain(known)):
        assert status in ARROWS[verdict.move]
        assert (verdict.budget is not None) == (verdict.move in (Move.RETRY, Move.REQUEUE))
