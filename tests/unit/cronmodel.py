"""The written rule of Debian's cron through clock changes, played minute by minute.

From cron(8), and from what crond does each minute:

1. Once a minute of real time, crond looks at the local clock, and at how far that is from the minute it has served.
2. One minute further on: all jobs of that minute run.
3. A job whose minute or hour field begins with `*` is run by the local clock as it is, whatever that does.
4. All others are *set*. When the clock has gone forward by less than three hours, those of the minutes that were
   skipped run at once (a job once, however many of its minutes were skipped). When it has gone back by less than three
   hours, none runs until the clock is past what it has shown before.
5. Three hours or more are a correction: the new time is used at once.

Nothing of this is shared with the code under test: fields are parsed here, and only `zoneinfo` is asked for offsets.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

CORRECTION = 180
FIRST, LAST = (datetime(year, 1, 1, tzinfo=UTC) for year in (2000, 2038))


def numbers(field: str, low: int, high: int) -> frozenset[int]:
    """Return what a field names: `*`, `a`, `a-b`, each with `/n`, and lists of those."""
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = (f"{low}-{high}" if span == "*" else span).partition("-")
        found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return frozenset(found)


class Expression:
    """A cron expression, asked whether a local minute is one of its."""

    def __init__(self, text: str) -> None:
        minute, hour, day, month, weekday = text.split()
        self.settled = not minute.startswith("*") and not hour.startswith("*")
        self._either = not day.startswith("*") and not weekday.startswith("*")
        self._minutes, self._hours = numbers(minute, 0, 59), numbers(hour, 0, 23)
        self._days, self._months = numbers(day, 1, 31), numbers(month, 1, 12)
        self._weekdays = frozenset(number % 7 for number in numbers(weekday, 0, 7))
        self._dates: dict[int, bool] = {}

    def holds(self, local: int) -> bool:
        """Tell whether a local minute, counted from 1970, matches."""
        day, minute = divmod(local, 1440)
        if minute % 60 not in self._minutes or minute // 60 not in self._hours:
            return False
        if day not in self._dates:
            self._dates[day] = self._date(day)
        return self._dates[day]

    def _date(self, day: int) -> bool:
        date = datetime(1970, 1, 1) + timedelta(days=day)
        by_day, by_weekday = date.day in self._days, date.isoweekday() % 7 in self._weekdays
        return date.month in self._months and (by_day or by_weekday if self._either else by_day and by_weekday)


def local_minutes(zone: ZoneInfo, first: int, count: int) -> list[int]:
    """Return what the local clock shows at each of some minutes of real time."""
    shown = []
    for minute in range(first, first + count):
        offset = datetime.fromtimestamp(minute * 60, zone).utcoffset()
        assert offset is not None
        shown.append(minute + round(offset.total_seconds()) // 60)
    return shown


def ran(expression: Expression, first: int, shown: list[int]) -> Iterator[int]:
    """Yield the minutes of real time in which a job runs; all before them has been served."""
    served = shown[0] - 1
    for minute, local in enumerate(shown, first):
        shift = local - served - 1
        if not expression.settled or abs(shift) >= CORRECTION:
            runs = expression.holds(local)
            served = local
        else:
            runs = any(expression.holds(each) for each in range(served + 1, local + 1))
            served = max(served, local)
        if runs:
            yield minute


@functools.cache
def transitions(zone_name: str) -> tuple[int, ...]:
    """Return the minutes of real time, 2000 to 2037, at which a zone's offset changes."""
    zone, found = ZoneInfo(zone_name), []

    def offset(minute: int) -> timedelta | None:
        return datetime.fromtimestamp(minute * 60, zone).utcoffset()

    first, last = int(FIRST.timestamp()) // 60, int(LAST.timestamp()) // 60
    for early in range(first, last, 720):  # nowhere twice in half a day
        if offset(early) != offset(early + 720):
            found += [each for each in range(early + 1, early + 721) if offset(each - 1) != offset(each)]
    return tuple(found)
