"""How far attached readers have got, as their connections know it. A hint, no truth: lost, more is kept for a while."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Readers:
    """By job: the index up to which its reader was sent everything; and the jobs whose generators wait for theirs.

    Written on the event loop, read by the writer's thread: single entries, and an old one does no harm.
    """

    sent: dict[int, int] = field(default_factory=dict)
    waiting: set[int] = field(default_factory=set)
