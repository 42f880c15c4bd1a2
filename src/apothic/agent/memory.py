"""What a container may hold in memory, and what becomes of it when it holds more."""

from __future__ import annotations

from collections.abc import Callable

from apothic.agent.cgroup import Group

_MIB = 1024 * 1024
_NEAR = 0.9  # of the limit: a process that was killed up there was killed for its memory


class Memory:
    """The limit of one container's process tree. `kill` ends it, once it is over."""

    def __init__(self, limit: int, kill: Callable[[], None]) -> None:
        self.limit = limit
        self.peak = 0
        self.over = False  # it was ended for its memory
        self.group = Group()
        self._kill = kill

    @property
    def enforced(self) -> bool:
        """Whether the kernel keeps it within its limit, so that nobody else has to look."""
        return self.group.limits_memory

    def is_near(self, held: int) -> bool:
        """Tell whether that much is near the limit, or over it."""
        return held >= _NEAR * self.limit

    def sampled(self, held: int) -> None:
        """Take a sample of what the tree holds; end it when that is over the limit."""
        self.peak = max(self.peak, held)
        if held > self.limit and not self.over:
            self.over = True
            self._kill()

    def starved(self) -> bool:
        """Tell whether the kernel has killed a process of it for its memory; if so, end it."""
        if not self.over and self.group.ooms():
            self.over = True
            self._kill()
        return self.over

    def reaped(self, peak: int) -> None:
        """Take what the kernel has counted for a process that a signal 9 has ended."""
        self.peak = max(self.peak, peak)

    def blame(self) -> None:
        """Take the kernel's word for how much it was, when it was the kernel that ended it."""
        if self.starved():
            self.peak = self.group.peak() or self.peak

    def used(self) -> str:
        """Return how much it was and may be, for people."""
        return f"{self.peak // _MIB:,} MiB of memory, its limit (memory_mb) is {self.limit // _MIB:,} MiB"
