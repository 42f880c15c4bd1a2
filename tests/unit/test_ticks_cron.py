"""`Cron` through clock changes, against the written rule.

All transitions from 2000 to 2037 of 14 zones, with 8 expressions, are some 5,000 cases and take half a minute:
`make soak` plays them all, `make test` a sample. SEED repeats a sample.
"""

from __future__ import annotations

import os
import random
import time
from zoneinfo import ZoneInfo

import pytest
from cronmodel import Expression, local_minutes, ran, transitions

from apothic.protocol.specs import Cron
from apothic.protocol.ticks import after

ZONES = (
    "Europe/Berlin", "America/New_York", "Europe/Dublin", "America/Havana", "America/Sao_Paulo", "Africa/Casablanca",
    "Asia/Tehran", "Asia/Amman", "Asia/Kathmandu", "Asia/Pyongyang", "Australia/Lord_Howe", "Pacific/Apia",
    "Antarctica/Troll", "Antarctica/Casey",
)  # fmt: skip
SHAPES = (
    "30 2 * * *",  # one set time, where most clocks change
    "0 0 * * *",  # midnight, where some do
    "15,45 0-4/2 * * 0,6",  # set times, several of which one change may skip or repeat
    "10 1,2,3,23 1-7 * 0",  # either the day or the weekday
    "*/15 * * * *",  # all day
    "*/20 1-3 * * *",  # minutes pass, in hours that are set
    "5 */2 * * *",  # hours pass, at a minute that is set
    "*/10 0,2,23 * 3,4,9-11 *",  # in months that are set
)
DAY = 1440
SAMPLE = 12


def cases() -> list[tuple[str, int]]:
    return [(zone, change) for zone in ZONES for change in transitions(zone)]


def differences(zone_name: str, change: int) -> list[str]:
    """Play a day and a half around a change, by the rule and by ours; return where they differ."""
    zone, first = ZoneInfo(zone_name), change - DAY // 4
    shown = local_minutes(zone, first, DAY // 4 + DAY + 60)
    wrong = []
    for text in SHAPES:
        ruled = list(ran(Expression(text), first, shown))
        cron, ours, at = Cron(text, timezone=zone_name), list[int](), first * 60.0 - 1
        while (tick := after(cron, 0.0, at)) is not None and tick < (first + len(shown)) * 60:
            ours.append(int(tick) // 60)
            at = tick
        if ours != ruled:
            wrong.append(f"{zone_name} {text!r} at {change * 60}: {sorted(set(ours) ^ set(ruled))}")
    return wrong


def test_the_zones_change_as_often_as_was_thought() -> None:
    counted = {zone: len(transitions(zone)) for zone in ZONES}
    assert counted["Europe/Berlin"] == 76 and counted["Asia/Kathmandu"] == 0
    assert sum(counted.values()) > 600


def test_a_sample_of_all_changes_is_as_the_rule_says() -> None:
    seed = int(os.environ.get("SEED", "0"))
    chosen = random.Random(seed).sample(cases(), SAMPLE)
    # Those that are unlike the others: a day left out, three hours and back, half an hour, midnight.
    odd = [(zone, change) for zone in ("Pacific/Apia", "Antarctica/Casey", "Asia/Pyongyang") for change in
           transitions(zone)]  # fmt: skip
    assert [wrong for case in chosen + odd for wrong in differences(*case)] == []


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_every_change_of_forty_years_is_as_the_rule_says() -> None:
    wrong, began = list[str](), time.monotonic()
    for n, (zone, change) in enumerate(cases(), 1):
        wrong += differences(zone, change)
        if n % 100 == 0:
            print(f"{n} changes, {n * len(SHAPES)} cases, {len(wrong)} wrong, {time.monotonic() - began:.0f} s")
    assert wrong == []


@pytest.mark.parametrize("back_s", [1, 59, 601, 1800, 3599, 3601])
def test_it_does_not_matter_from_where_one_looks(back_s: int) -> None:
    """The next tick after any instant is the first of the ticks after it, also from within a repeated hour."""
    for zone, change in (("Europe/Berlin", 1729990800), ("Australia/Lord_Howe", 1712415600)):
        for text in SHAPES:
            cron = Cron(text, timezone=zone)
            whole, at = list[float](), change - 86_400.0
            while at < change + 86_400 and (tick := after(cron, 0.0, at)) is not None:
                whole.append(tick)
                at = tick
            for instant in range(change - 4 * 3600, change + 4 * 3600, 1800):
                looked = after(cron, 0.0, instant + back_s)
                assert looked == next((tick for tick in whole if tick > instant + back_s), looked), (zone, text)
