"""The access log: a line for each request in its app's log, written a second's worth at a time."""

from __future__ import annotations

from collections import Counter

from apothic.clock import Clock
from apothic.control.gateway.exchange import Exchange
from apothic.store.services import ServiceLine

# Of one service in a second. An app keeps 10,000 lines; what comes faster than this would push all else out of it.
MOST = 200


class Access:
    """Lines that are not written yet."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lines: list[ServiceLine] = []
        self._count: Counter[tuple[str, str]] = Counter()

    def add(self, exchange: Exchange) -> None:
        """Note a request that has been answered, or left."""
        served = exchange.service.served if exchange.service is not None else None
        if served is None:
            return
        self._count[served.app, served.name] += 1
        if self._count[served.app, served.name] > MOST:
            return
        took_ms = (self._clock.monotonic() - exchange.began) * 1000
        target = exchange.asked.target[:1_000].decode("latin-1")
        status = str(exchange.status) if exchange.status else "gone"
        text = f"{exchange.method.decode('latin-1')} {target} {status} {took_ms:.1f} ms"
        self._lines.append(
            ServiceLine(app=served.app, function=served.name, container=exchange.container, text=text,
                        at=self._clock.now())
        )  # fmt: skip

    def take(self) -> list[ServiceLine]:
        """Return the lines, and begin anew. What was left out is counted in a last line."""
        lines, self._lines = self._lines, []
        for (app, name), count in self._count.items():
            if count > MOST:
                text = f"… and {count - MOST:,} more requests"
                lines.append(ServiceLine(app=app, function=name, container="gateway", text=text, at=self._clock.now()))
        self._count.clear()
        return lines
