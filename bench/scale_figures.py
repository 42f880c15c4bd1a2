"""What the scale study has found, by name."""

from __future__ import annotations


class Found(dict[str, list[float]]):
    """The figures of all rounds, by name."""

    def keep(self, name: str, value: float) -> None:
        """Keep one more figure of a name."""
        self.setdefault(name, []).append(value)
