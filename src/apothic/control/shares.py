"""Who holds how many containers, whose turn is next, and who holds more than its share.

Apps are equal, and so are the versions of an app: whoever holds least is next, and of those that hold the same the one
that has waited longest. That is a round robin when there is less room than there are apps.
"""

from __future__ import annotations

from collections import Counter

from apothic.store.picture import Picture, Seat, Wanted

# Some turns of a second, with the start of a container each.
OVERDUE_S = 5.0


class Shares:
    """Containers by app and by version, as the plan starts and ends them. Those that end do not count."""

    def __init__(self, picture: Picture) -> None:
        self._now = picture.now
        self._hungry = Counter(wanted.app for wanted in picture.wanted if wanted.hungry_since is not None)
        self._apps: Counter[str] = Counter()
        self._versions: Counter[int] = Counter()
        for seat in picture.seats:
            if seat.state != "stopping":
                self._change(seat, 1)

    def turn(self, wanted: Wanted) -> tuple[float, ...]:
        """Return what orders those that want a container: the least comes first."""
        if self.overdue(wanted):
            return (-1, wanted.hungry_since or 0.0, wanted.version)
        app, version = self._apps[wanted.app], self._versions[wanted.version]
        return (app, wanted.app_served, version, wanted.served, wanted.version)

    def starving(self, wanted: Wanted) -> bool:
        """Tell whether a version has no container at all."""
        return self._versions[wanted.version] == 0

    def overdue(self, wanted: Wanted) -> bool:
        """Tell whether a version has had no container for so long that it comes before all others.

        A large one may need more than all that its app holds, and while there are several that come before it by their
        share, the room is never whole. Of an app with many such versions one at a time may come first, about.
        """
        since = wanted.hungry_since
        return since is not None and self.starving(wanted) and self._now - since > OVERDUE_S * self._hungry[wanted.app]

    def over(self, seat: Seat, wanted: Wanted) -> bool:
        """Tell whether a container should be the other's: who has none takes turns, who has some evens out."""
        if self.overdue(wanted):
            return seat.version != wanted.version
        if seat.app != wanted.app:
            holds, has = self._apps[seat.app], self._apps[wanted.app]
        else:
            holds, has = self._versions[seat.version], self._versions[wanted.version]
        return seat.version != wanted.version and (has == 0 or holds > has + 1)

    def most(self, seat: Seat) -> tuple[float, ...]:
        """Return what orders those that may have to give one up: the least comes first."""
        since = seat.since if seat.since is not None else float("inf")
        return (-self._apps[seat.app], -self._versions[seat.version], since, seat.taken)

    def gained(self, which: Seat | Wanted) -> None:
        """Count a container that is started."""
        self._change(which, 1)

    def lost(self, which: Seat) -> None:
        """Count a container off that ends."""
        self._change(which, -1)

    def _change(self, which: Seat | Wanted, by: int) -> None:
        self._apps[which.app] += by
        self._versions[which.version] += by
