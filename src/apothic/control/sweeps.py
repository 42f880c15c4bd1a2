"""Small loops on the clock: leases, queue deadlines, delayed jobs, and the end of an embedded server that idles."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from apothic.clock import Clock
from apothic.control.deadlock import Waits, deadlocked
from apothic.control.plan import plan
from apothic.errors import ApothicError
from apothic.store.fleet import Fleet, Overdue
from apothic.store.holds import Holds
from apothic.store.jobs import Jobs
from apothic.store.schedules import Schedules
from apothic.store.services import Services

Drop = Callable[[list[Overdue]], None]  # tell agents which of their leases are over

log = logging.getLogger("apothic.control")

# A lost lease, a passed deadline and an idle container are noticed within this. An idle sweep writes nothing, so it
# costs no sync.
PERIOD_S = 1.0
# A process that was stopped, or whose machine slept, has renewals waiting in its sockets: its own absence is nobody's
# silence. A busy loop is late by a few ms.
LATE_S = 0.5
# Wall time that falls back by more between two rounds was set; a clock that is slewed loses half a ms a second.
JUMP_S = 1.0
# Between two steps of deleting, of 10 ms each: what is deleted a second is still more than what runs.
STEP_PAUSE_S = 0.01
# An embedded server that nobody uses ends by itself after this long.
IDLE_S = 15 * 60.0


@contextmanager
def _outlived(what: str) -> Iterator[None]:
    """Log what a round of a loop fails of, a full disk say, so that there is a next round."""
    try:
        yield
    except ApothicError as error:
        log.warning("%s.failed error=%s", what, error.message)
    except Exception:
        log.exception("%s.failed", what)


async def sweep(jobs: Jobs, fleet: Fleet, holds: Holds, drop: Drop, clock: Clock) -> None:
    """Sweep for ever, and tell the agents which leases were ended.

    A failed round (a full disk, say) is logged, and the next one tries again. The time between counts as our absence:
    nobody could renew anything.
    """
    due_at = clock.monotonic()
    ahead = clock.now() - due_at  # of wall time before ours
    while True:
        # One reading for all of a round: whoever is stopped in the middle of it goes on with an old one, blames nobody
        # for its own absence, and sees that it was late in the next.
        at, pause = clock.monotonic(), PERIOD_S
        with _outlived("sweep"):
            if at - due_at > LATE_S:
                log.warning("sweep.overslept seconds=%.1f", at - due_at)
                await fleet.overslept(at - due_at)
                due_at = at
            back_s, ahead = ahead - (clock.now() - at), clock.now() - at
            if back_s > JUMP_S:
                log.warning("sweep.clock_put_back seconds=%.1f", back_s)
                await jobs.clock_put_back(back_s)
            await jobs.expire()
            await holds.sweep(at)
            swept = await fleet.sweep(at)
            drop(swept.overdue)
            if swept.next_due is not None:
                pause = min(pause, max(swept.next_due - clock.now(), 0.01))
            due_at = at + pause
        await clock.sleep(pause)


async def come_round(schedules: Schedules, clock: Clock) -> None:
    """Make the jobs of schedules for ever. It looks once a second at least, for wall time may jump."""
    while True:
        pause = PERIOD_S
        with _outlived("schedules"):
            due = await schedules.tick()
            if due is not None:
                pause = min(pause, max(due - clock.now(), 0.01))
        await clock.sleep(pause)


async def clean(step: Callable[[], Awaitable[bool]], clock: Clock) -> None:
    """Delete what is past its time for ever: in small steps, with room between them for other writes."""
    while True:
        pause = PERIOD_S
        with _outlived("clean"):
            pause = STEP_PAUSE_S if await step() else PERIOD_S
        await clock.sleep(pause)


async def unlock(waits: Waits, fleet: Fleet, clock: Clock) -> None:
    """End deadlocks for ever: of the queued jobs that can never begin, the newest fails, one a round.

    A job counts only when it was seen twice, so that a request between two long polls, or a container that is being
    told to the store, is no deadlock.
    """
    before: set[str] = set()
    while True:
        await clock.sleep(PERIOD_S)
        open_now = waits.now()
        if not open_now:
            before = set()
            continue
        with _outlived("unlock"):
            standing = await fleet.standing(sorted({job for awaited in open_now.values() for job in awaited}))
            found = deadlocked(open_now, standing, plan)
            if both := [job for job in found if job in before]:
                log.warning("job.deadlock job=%s", both[-1])
                await fleet.fail_deadlocked(both[-1])
            before = set(found)


async def idle(
    clock: Clock, jobs: Jobs, schedules: Schedules, services: Services, requests: Callable[[], int],
    stop: Callable[[], None],
) -> None:  # fmt: skip
    """Call `stop` once there was no request, no unfinished job, no schedule and no live service for `IDLE_S`."""
    seen, since = requests(), clock.monotonic()
    while True:
        await clock.sleep(min(IDLE_S / 10, 30.0))
        if requests() != seen or await jobs.unfinished() or await schedules.any() or await services.any():
            seen, since = requests(), clock.monotonic()
        elif clock.monotonic() - since >= IDLE_S:
            log.info("server.idle seconds=%d", IDLE_S)
            stop()
            return
