"""When a schedule comes round. Pure: instants are seconds since 1970, in and out.

A `Cron` is read in its zone by Debian cron's rules through clock changes. cronsim knows the expressions; it is asked
about local time alone, because its own way through zones goes wrong where a change is no whole hour (`*/15 2 * * *` in
Lord Howe misses 02:00) or falls on midnight, and it takes a change of a whole day for one of an hour.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim

from apothic.protocol.specs import Cron, Period

# cron(8): larger changes of the clock are corrections, and the new time is used at once.
CORRECTION_S = 3 * 3600
# No zone has changed and changed back within a day since 1970.
_STEP_S = 86_400


def after(schedule: Cron | Period, since: float, instant: float) -> float | None:
    """Return the first tick after an instant; `None` when none comes for 50 years. Periods are counted from `since`."""
    if isinstance(schedule, Period):
        return _period_after(schedule.total_s, since, instant)
    return _cron_after(schedule, instant)


def newest(schedule: Cron | Period, since: float, first: float, until: float) -> float | None:
    """Return the newest tick from `first`, which is one, up to `until`; `None` when `until` is before it."""
    if until < first:
        return None
    # Ever longer looks back: so many ticks are walked through as the last of them holds, not as the whole time does.
    look_s = 1.0
    while until - look_s > first:
        found = after(schedule, since, until - look_s)
        if found is not None and found <= until:
            return _last(schedule, since, found, until)
        look_s *= 2
    return _last(schedule, since, first, until)


def _last(schedule: Cron | Period, since: float, tick: float, until: float) -> float:
    while (later := after(schedule, since, tick)) is not None and later <= until:
        tick = later
    return tick


def _period_after(period: float, since: float, instant: float) -> float:
    n = max(1, math.floor((instant - since) / period))
    while since + n * period <= instant:  # the division may be a hair low
        n += 1
    return since + n * period


def _cron_after(cron: Cron, instant: float) -> float | None:
    zone = UTC if cron.timezone == "UTC" else ZoneInfo(cron.timezone)
    settled = _settled(cron.expression)
    done = _done_until(zone, instant, settled)
    tick = _next_local(cron.expression, done)
    while tick is not None:
        offset = _offset(zone, instant)
        there = tick - offset
        change = _change(zone, instant, there)
        if change is None:
            return there
        shift = _offset(zone, change) - offset
        began = change + offset + shift  # local time as the change leaves it
        if not settled or abs(shift) >= CORRECTION_S:
            tick = _next_local(cron.expression, began - 1)
        elif tick < began:
            return change  # its minute is skipped: it runs as soon as the clock has changed
        # else: what a repeated hour holds has run, and the clock comes to this one later
        instant = change
    return None


def _settled(expression: str) -> bool:
    """Tell whether a job runs at set times, and not by minutes or hours passing; a sixth field is none of cron's."""
    fields = expression.split()
    return len(fields) == 5 and not fields[0].startswith("*") and not fields[1].startswith("*")


def _done_until(zone: tzinfo, instant: float, settled: bool) -> int:
    """Return the local time up to which all has run: it stands still while the clock repeats an hour."""
    whole = math.floor(instant)
    local = whole + _offset(zone, whole)
    here = datetime.fromtimestamp(whole, zone)
    if not settled or not here.fold:
        return local
    shift = int((here.replace(fold=0).utcoffset() or timedelta()).total_seconds()) - _offset(zone, whole)
    change = _change(zone, whole - shift, whole)
    if shift >= CORRECTION_S or change is None:
        return local
    return max(local, change + _offset(zone, change - 1) - 1)


def _next_local(expression: str, local: int) -> int | None:
    naive = datetime.fromtimestamp(local, UTC).replace(tzinfo=None)
    try:
        found = next(CronSim(expression, naive))
    except (StopIteration, OverflowError):  # never, or not before the year 10,000
        return None
    return int(found.replace(tzinfo=UTC).timestamp())


def _offset(zone: tzinfo, instant: float) -> int:
    if isinstance(zone, timezone):
        return 0
    offset = datetime.fromtimestamp(instant, zone).utcoffset()
    return int(offset.total_seconds()) if offset is not None else 0


def _change(zone: tzinfo, start: float, end: float) -> int | None:
    """Return the first instant after `start`, up to `end`, from which the zone's offset is another one."""
    if isinstance(zone, timezone):
        return None
    low, offset = math.floor(start), _offset(zone, start)
    while low < end:
        high = min(low + _STEP_S, math.floor(end))
        if high <= low:
            return None
        if _offset(zone, high) == offset:
            low = high
            continue
        while high - low > 1:
            middle = (low + high) // 2
            if _offset(zone, middle) == offset:
                low = middle
            else:
                high = middle
        return high
    return None
