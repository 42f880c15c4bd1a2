"""How the lines of a job's log become the list that `logs()` returns."""

from __future__ import annotations

from typing import Literal

from apothic.client.job import join
from apothic.protocol.messages import LogLine


def _line(
    number: int, stream: Literal["stdout", "stderr"], text: str, *, cont: bool = False, attempt: int = 1
) -> LogLine:
    return LogLine(line=number, index=0, stream=stream, text=text, attempt=attempt, at=1.0, cont=cont)


def _joined(*pages: list[LogLine]) -> list[str]:
    found: list[str] = []
    going_on: dict[tuple[str, int], int] = {}
    for page in pages:
        join(page, found, going_on)
    return found


def test_a_line_that_goes_on_takes_nothing_from_the_other_stream() -> None:
    lines = [
        _line(0, "stdout", "long ", cont=True),
        _line(1, "stderr", "also ", cont=True),
        _line(2, "stdout", "and longer", cont=True),
        _line(3, "stderr", "here"),
        _line(4, "stdout", "."),
        _line(5, "stdout", "next"),
    ]

    assert _joined(lines) == ["long and longer.", "also here", "next"]


def test_a_line_that_goes_on_takes_nothing_from_the_next_attempt() -> None:
    lines = [_line(0, "stdout", "cut off", cont=True), _line(1, "stdout", "again", attempt=2)]

    assert _joined(lines) == ["cut off", "again"]


def test_a_line_goes_on_over_the_end_of_a_page() -> None:
    first = [_line(0, "stdout", "one ", cont=True), _line(1, "stderr", "other")]

    assert _joined(first, [], [_line(2, "stdout", "line"), _line(3, "stdout", "", cont=True)]) == [
        "one line", "other", "",
    ]  # fmt: skip
