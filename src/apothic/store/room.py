"""How much the data directory holds, and whether it takes more: what the sweep has seen, a second old at the most."""

from __future__ import annotations

from dataclasses import dataclass

from apothic.errors import StorageFullError


@dataclass
class Room:
    """Written by the sweep on the event loop, read by whoever stores something: single entries, and an old one does
    no harm. `gone` and `collected` count jobs and blobs since the process began."""

    ceiling: int | None = None
    held: int = 0
    full: bool = False
    haste: bool = False  # it was over the ceiling and is not yet well below: unwanted blobs wait less
    gone: int = 0
    collected: int = 0

    def check(self) -> None:
        """Raises `StorageFullError` while the directory is over its ceiling and nothing in it may be deleted."""
        if self.full:
            raise StorageFullError(
                f"the data directory holds {self.held:,} bytes, more than its disk_ceiling of {self.ceiling or 0:,}",
                hint="nothing that has ended is left to delete: let jobs end, or raise the server's disk_ceiling",
            )
