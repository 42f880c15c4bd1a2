"""Which generators may go on: those whose items are on disk, unless the control plane has paused them."""

from __future__ import annotations

from collections.abc import Callable

from apothic.protocol.session import Lease


class Credit:
    """Tells `on_taken` below which item all are on disk: at once, or when a pause is over."""

    def __init__(self) -> None:
        self.on_taken: Callable[[Lease, int], None] = lambda lease, upto: None
        self._withheld: dict[str, tuple[Lease, int]] = {}
        self._early: set[str] = set()  # resumed before they were paused: the two may overtake each other

    def on_disk(self, lease: Lease, upto: int, *, paused: bool) -> None:
        """Take note that the items below `upto` are on disk."""
        if paused and lease.token not in self._early:
            self._withheld[lease.token] = lease, upto
            return
        self._early.discard(lease.token)
        self._withheld.pop(lease.token, None)
        self.on_taken(lease, upto)

    def resume(self, token: str) -> None:
        """Let a generator go on."""
        withheld = self._withheld.pop(token, None)
        if withheld is not None:
            self.on_taken(*withheld)
        else:
            self._early.add(token)

    def resume_all(self) -> None:
        """Let them all go on: a new session knows of no pause, and says so again where one is due."""
        for withheld in self._withheld.values():
            self.on_taken(*withheld)
        self._withheld.clear()
        self._early.clear()

    def ended(self, lease: Lease) -> None:
        """Forget one that has ended."""
        self._withheld.pop(lease.token, None)
        self._early.discard(lease.token)
