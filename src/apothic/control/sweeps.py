"""Small loops on the clock: leases, queue deadlines, delayed jobs, and the end of an embedded server that idles."""

from __future__ import annotations

import logging
from collections.abc import Callable

from apothic.clock import Clock
from apothic.store.fleet import Fleet
from apothic.store.jobs import Jobs

log = logging.getLogger("apothic.control")

# A lost lease, a passed deadline and an idle container are noticed within this. An idle sweep writes nothing, so it
# costs no sync.
PERIOD_S = 1.0
# An embedded server that nobody uses ends by itself after this long.
IDLE_S = 15 * 60.0


async def sweep(jobs: Jobs, fleet: Fleet, clock: Clock) -> None:
    """Sweep for ever. A failed round (a full disk, say) is logged, and the next one tries again."""
    while True:
        pause = PERIOD_S
        try:
            await jobs.expire()
            due = await fleet.sweep()
            if due is not None:
                pause = min(pause, max(due - clock.now(), 0.01))
        except Exception:
            log.exception("sweep.failed")
        await clock.sleep(pause)


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
