"""Small loops on the clock: leases, queue deadlines, delayed jobs, and the end of an embedded server that idles."""

from __future__ import annotations

import logging
from collections.abc import Callable

from apothic.clock import Clock
from apothic.control.deadlock import Waits, deadlocked
from apothic.control.plan import plan
from apothic.errors import ApothicError
from apothic.store.fleet import Fleet, Overdue
from apothic.store.holds import Holds
from apothic.store.jobs import Jobs

Drop = Callable[[Overdue], None]  # tell an agent that a lease of its is over

log = logging.getLogger("apothic.control")

# A lost lease, a passed deadline and an idle container are noticed within this. An idle sweep writes nothing, so it
# costs no sync.
PERIOD_S = 1.0
# A process that was stopped, or whose machine slept, has renewals waiting in its sockets: its own absence is nobody's
# silence. A busy loop is late by a few ms.
LATE_S = 0.5
# An embedded server that nobody uses ends by itself after this long.
IDLE_S = 15 * 60.0


async def sweep(jobs: Jobs, fleet: Fleet, holds: Holds, drop: Drop, clock: Clock) -> None:
    """Sweep for ever, and tell the agents which leases were ended.

    A failed round (a full disk, say) is logged, and the next one tries again. The time between counts as our absence:
    nobody could renew anything.
    """
    pause, due_at = PERIOD_S, clock.monotonic()
    while True:
        late_s = clock.monotonic() - due_at
        pause = PERIOD_S
        try:
            if late_s > LATE_S:
                log.warning("sweep.overslept seconds=%.1f", late_s)
                await fleet.overslept(late_s)
                due_at = clock.monotonic()
            await jobs.expire()
            await holds.sweep()
            swept = await fleet.sweep()
            for lease in swept.overdue:
                drop(lease)
            if swept.next_due is not None:
                pause = min(pause, max(swept.next_due - clock.now(), 0.01))
            due_at = clock.monotonic() + pause
        except ApothicError as error:
            log.warning("sweep.failed error=%s", error.message)
        except Exception:
            log.exception("sweep.failed")
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
        try:
            standing = await fleet.standing(sorted({job for awaited in open_now.values() for job in awaited}))
            found = deadlocked(open_now, standing, plan)
            if both := [job for job in found if job in before]:
                log.warning("job.deadlock job=%s", both[-1])
                await fleet.fail_deadlocked(both[-1])
            before = set(found)
        except Exception:
            log.exception("unlock.failed")


async def idle(clock: Clock, jobs: Jobs, requests: Callable[[], int], stop: Callable[[], None]) -> None:
    """Call `stop` once there was neither a request nor an unfinished job for `IDLE_S`."""
    seen, since = requests(), clock.monotonic()
    while True:
        await clock.sleep(min(IDLE_S / 10, 30.0))
        if requests() != seen or await jobs.unfinished():
            seen, since = requests(), clock.monotonic()
        elif clock.monotonic() - since >= IDLE_S:
            log.info("server.idle seconds=%d", IDLE_S)
            stop()
            return
