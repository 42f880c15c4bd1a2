"""Bytes that a program prints → lines of a job's log."""

from __future__ import annotations

from collections import deque

from apothic.agent.frames import Stream
from apothic.protocol.session import Line

LONGEST = 16 * 1024  # bytes; a longer line is split, its parts but the last marked `cont`
_TAIL_LINES = 40
_TAIL_BYTES = 8 * 1024


class Assembler:
    """One source of bytes. Gives whole lines and keeps what is unfinished. Invalid UTF-8 becomes backslash escapes."""

    __slots__ = ("_held", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream: Stream = stream
        self._held = b""

    def feed(self, data: bytes, at: float) -> list[Line]:
        """Return the lines that `data` completes."""
        data = self._held + data if self._held else data
        *whole, rest = data.split(b"\n")
        found: list[Line] = []
        for line in whole:
            self._split(line, at, found)
        while len(rest) > LONGEST:
            piece = _cut(rest)
            found.append(self._line(rest[:piece], at, True))
            rest = rest[piece:]
        self._held = rest
        return found

    def finish(self, at: float) -> list[Line]:
        """Return the unfinished line, if there is one."""
        rest, self._held = self._held, b""
        return [self._line(rest, at, False)] if rest else []

    def _split(self, line: bytes, at: float, found: list[Line]) -> None:
        while len(line) > LONGEST:
            piece = _cut(line)
            found.append(self._line(line[:piece], at, True))
            line = line[piece:]
        found.append(self._line(line, at, False))

    def _line(self, data: bytes, at: float, cont: bool) -> Line:
        return Line(stream=self._stream, text=data.decode("utf-8", "backslashreplace"), at=at, cont=cont)


def _cut(line: bytes) -> int:
    """Return where to split, so that no character of valid UTF-8 is torn."""
    for end in range(LONGEST, LONGEST - 4, -1):
        if line[end] & 0xC0 != 0x80:
            return end
    return LONGEST


class Tail:
    """The last lines of a log, for the failure of a process that can no longer speak for itself."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)

    def add(self, lines: list[Line]) -> None:
        """Remember the last of `lines`."""
        self._lines.extend(line.text for line in lines[-_TAIL_LINES:])

    def text(self) -> str:
        """Return what is remembered, newest last, at most 8 KiB."""
        return "\n".join(self._lines)[-_TAIL_BYTES:]
