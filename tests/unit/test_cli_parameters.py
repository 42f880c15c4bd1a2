"""Parameters of a function, as the command line takes them."""

from __future__ import annotations

import datetime
import enum
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import click
import pytest
from click.testing import CliRunner

from apothic.cli.parameters import ParameterCommand


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


def parse(function: Callable[..., Any], *words: str) -> tuple[list[Any], dict[str, Any]]:
    command = ParameterCommand("f", function, lambda args, kwargs: (args, kwargs))
    result: tuple[list[Any], dict[str, Any]] = command.main(list(words), standalone_mode=False)
    return result


def bound(function: Callable[..., Any], *words: str) -> Any:
    args, kwargs = parse(function, *words)
    return function(*args, **kwargs)


def plain(a: int, b: float = 2.0, *, name: str = "x", loud: bool = False) -> tuple[Any, ...]:
    return (a, b, name, loud)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["1"], (1, 2.0, "x", False)),
        (["1", "3"], (1, 3.0, "x", False)),
        (["--a", "1"], (1, 2.0, "x", False)),
        (["-a", "1"], (1, 2.0, "x", False)),
        (["--b", "4.5", "1"], (1, 4.5, "x", False)),
        (["-2", "-3.5"], (-2, -3.5, "x", False)),
        (["1", "--name", "7", "--loud"], (1, 2.0, "7", True)),
        (["1", "--no-loud", "--name=--odd"], (1, 2.0, "--odd", False)),
    ],
)
def test_numbers_text_and_flags(words: list[str], value: tuple[Any, ...]) -> None:
    assert bound(plain, *words) == value


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "a (int) is missing"),
        (["x"], "'x' is no int"),
        (["--a", "1.5"], "'1.5' is no int"),
        (["1", "2", "3"], "'3' is one argument too many"),
        (["1", "--nmae", "x"], "--name"),
        (["1", "--b", "much"], "'much' is no float"),
    ],
)
def test_what_is_wrong_is_named(words: list[str], told: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        parse(plain, *words)
    assert told in caught.value.format_message()


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "5", 5),
        (float, "5", 5.0),
        (str, "5", "5"),
        (bytes, "ab", b"ab"),
        (bool, "yes", True),
        (Path, "a/b", Path("a/b")),
        (Optional[int], "5", 5),  # noqa: UP045
        (int | None, "5", 5),
        (str | int, "5", 5),
        (str | int, "five", "five"),
        (Annotated[int, "how many"], "5", 5),
        (Literal["a", 2], "2", 2),
        (Colour, "RED", Colour.RED),
        (Colour, "b", Colour.BLUE),
        (datetime.datetime, "2026-01-02T03:04:05", datetime.datetime(2026, 1, 2, 3, 4, 5)),
        (datetime.date, "2026-01-02", datetime.date(2026, 1, 2)),
        (Decimal, "1.10", Decimal("1.10")),
        (uuid.UUID, "12345678123456781234567812345678", uuid.UUID(int=0x12345678123456781234567812345678)),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (Any, "[1, 2]", [1, 2]),
        (Any, "plain words", "plain words"),
        (object, "3", 3),
    ],
)
def test_annotations(annotation: Any, text: str, value: Any) -> None:
    def function(thing: Any) -> Any:
        return thing

    function.__annotations__["thing"] = annotation
    assert bound(function, text) == value
    if annotation is not bool:
        assert bound(function, f"--thing={text}") == value
    assert type(bound(function, text)) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [(Literal["a", "b"], "c"), (Colour, "GREEN"), (Decimal, "x"), (uuid.UUID, "x"), (int | float, "x"), (bool, "2")],
)
def test_annotations_refuse(annotation: Any, text: str) -> None:
    def function(thing: Any) -> Any: ...

    function.__annotations__["thing"] = annotation
    with pytest.raises(click.UsageError, match="thing"):
        parse(function, text)


def test_lists() -> None:
    def function(files: list[Path], numbers: tuple[int, ...] = ()) -> Any:
        return files, numbers

    assert bound(function, "a", "b") == ([Path("a"), Path("b")], ())
    assert bound(function, "--numbers", "1", "--numbers", "2", "a") == ([Path("a")], (1, 2))
    assert bound(function, "--files", "a", "--files", "b", "3", "4") == ([Path("a"), Path("b")], (3, 4))


def test_rest_and_position_only() -> None:
    def function(a: int, /, b: str = "b", *rest: int, key: int = 0) -> Any:
        return a, b, rest, key

    assert bound(function, "1") == (1, "b", (), 0)
    assert bound(function, "1", "x", "2", "3", "--key", "4") == (1, "x", (2, 3), 4)
    assert bound(function, "1", "--b", "x", "2") == (1, "x", (2,), 0)


def test_a_later_default_given_by_name_stays_where_it_is() -> None:
    def function(a: int = 1, b: int = 2, *rest: int) -> Any:
        return a, b, rest

    assert bound(function, "--b", "5") == (1, 5, ())


def test_underscores_both_ways_and_names_like_our_own() -> None:
    def function(batch_size: int, positional: int = 0, help_text: str = "") -> Any:
        return batch_size, positional, help_text

    assert bound(function, "--batch-size", "1", "--positional", "2") == (1, 2, "")
    assert bound(function, "--batch_size", "1", "--help-text", "x") == (1, 0, "x")


def test_help_shows_types_defaults_and_notes() -> None:
    def function(n: Annotated[int, "how many"], mode: Literal["fast", "slow"] = "fast") -> None:
        """Do the thing."""

    shown = CliRunner().invoke(ParameterCommand("f", function, lambda a, k: None), ["--help"]).output
    for word in ("Do the thing.", "--n", "INT", "how many", "(required)", "fast|slow", "(default: 'fast')"):
        assert word in shown


def test_annotations_that_exist_for_type_checkers_only_are_read_loosely() -> None:
    def function(thing: Nowhere) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return thing

    assert bound(function, "3") == 3
