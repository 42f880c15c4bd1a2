"""Whose turn it is in a container that was sent inputs ahead, so that it need not wait for its agent between two.

For each of them a leave lies in a pipe. The container takes it out before it begins; the agent takes out all that are
left when it wants the inputs back. A read of a pipe is atomic, so an input has begun or it has not, for both sides,
and a container that is deep in some computation need not be asked.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

_LEAVE = struct.Struct("=I")
_AT_ONCE = 4096 // _LEAVE.size  # what a pipe takes and gives in one piece


class Leaves:
    """One end of the pipe at `path`, which is made when it is not there."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            os.mkfifo(path, 0o600)
        # For both: a pipe that is open for one alone waits for the other when it is opened, and ends with it.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._given = 0
        self._taken = 0

    # --- the agent's side

    def give(self, count: int) -> Iterator[int]:
        """Put in leaves, at most a thousand at a time, and return their turns: 1, 2 and so on, over a lifetime."""
        turns = range(self._given + 1, self._given + count + 1)
        os.write(self._fd, b"".join(map(_LEAVE.pack, turns)))
        self._given += count
        return iter(turns)

    def withdraw(self) -> set[int]:
        """Take out all that were not taken; return their turns."""
        found: set[int] = set()
        while (turns := self._read(_AT_ONCE)) is not None:
            found.update(turns)
        return found

    def close(self) -> None:
        """Forget the pipe."""
        os.close(self._fd)

    # --- the container's side

    def take(self, turn: int) -> bool:
        """Take the leave of that turn; return whether it was still there. Turns are asked for as they rise."""
        while self._taken < turn:
            turns = self._read(1)
            if turns is None:
                return False
            self._taken = max(turns)
        return self._taken == turn  # else it is a later one's, and this one was withdrawn before that was given

    def _read(self, count: int) -> Iterable[int] | None:
        try:
            data = os.read(self._fd, count * _LEAVE.size)
        except BlockingIOError:
            return None
        return [turn for (turn,) in _LEAVE.iter_unpack(data)]
