"""Periods, and the newest of the ticks that were missed. `Cron` through clock changes: `test_ticks_cron.py`."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from apothic.protocol.specs import Cron, Period
from apothic.protocol.ticks import after, newest

SINCE = 1_700_000_000.25


def test_a_period_ticks_at_its_beginning_plus_n_periods() -> None:
    period = Period(minutes=90)
    assert after(period, SINCE, SINCE) == SINCE + 5400
    assert after(period, SINCE, SINCE + 5399.9) == SINCE + 5400
    assert after(period, SINCE, SINCE + 5400) == SINCE + 10_800
    assert after(period, SINCE, SINCE - 1e6) == SINCE + 5400  # a clock that was put back


@pytest.mark.parametrize("seconds", [1, 1.1, 7.3, 86_399.7])
def test_the_nth_period_is_the_same_from_wherever_one_looks(seconds: float) -> None:
    period, dice = Period(seconds=seconds), random.Random(1)
    for _ in range(2_000):
        n = dice.randrange(1, 100_000)
        tick = SINCE + n * seconds
        assert after(period, SINCE, tick - dice.uniform(0, 0.9)) == tick
        assert after(period, SINCE, tick) == SINCE + (n + 1) * seconds


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("expression", "instant", "tick"),
    [
        ("* * * * *", "2026-01-01T00:00:00", "2026-01-01T00:01:00"),
        ("* * * * *", "2026-01-01T00:00:59.999", "2026-01-01T00:01:00"),
        ("0 0 29 2 *", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
        ("*/20 * * * * *", "2026-01-01T00:00:01", "2026-01-01T00:00:20"),
        ("0 7 L * *", "2026-02-01T00:00:00", "2026-02-28T07:00:00"),
    ],
)
def test_cron_in_utc(expression: str, instant: str, tick: str) -> None:
    assert after(Cron(expression), 0.0, utc(instant)) == utc(tick)


def test_a_cron_that_never_comes_has_no_tick() -> None:
    assert after(Cron("* * */20 * 1L"), 0.0, SINCE) is None


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Australia/Lord_Howe"])
@pytest.mark.parametrize("expression", ["*/7 * * * *", "30 2 * * *", "* 3-4 * * *", "0 0 1 * *"])
def test_the_newest_tick_is_the_last_of_all(expression: str, zone: str) -> None:
    cron, dice = Cron(expression, timezone=zone), random.Random(2)
    for _ in range(20):
        first = after(cron, 0.0, dice.uniform(1.6e9, 1.8e9))
        assert first is not None
        until = first + dice.choice([0, 1, 60, 86_400, 400_000]) * dice.random()
        tick = first
        while (later := after(cron, 0.0, tick)) is not None and later <= until:
            tick = later
        assert newest(cron, 0.0, first, until) == tick
        assert newest(cron, 0.0, first, first - 0.001) is None


def test_the_first_tick_counts_though_it_is_of_another_rhythm() -> None:
    """As when a deploy came between a tick that was due and the look at it."""
    assert newest(Period(hours=1), SINCE, SINCE - 20, SINCE + 5) == SINCE - 20
    assert newest(Period(hours=1), SINCE, SINCE - 20, SINCE + 3600) == SINCE + 3600
