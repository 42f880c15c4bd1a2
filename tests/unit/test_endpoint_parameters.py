"""What an endpoint's function is called with."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest
from pydantic import BaseModel

from apothic.agent.parameters import Parameters
from apothic.errors import ConfigError, InvalidRequestError


@dataclass
class Point:
    x: int
    y: int = 0


class Named(msgspec.Struct):
    name: str


class Typed(TypedDict):
    name: str


class Modelled(BaseModel):
    name: str
    size: int


class Colour(Enum):
    RED = "red"


NOTHING: Any = object()


def call(entry: Callable[..., Any], path: str = "/", at: str = "/", body: Any = NOTHING, **query: Any) -> Any:
    parameters = Parameters(entry, path)
    given = parameters.match(at)
    assert given is not None
    texts = {name: value if isinstance(value, list) else [value] for name, value in query.items()}
    args, kwargs = parameters.bind(given, texts, *(() if body is NOTHING else (body,)))
    return entry(*args, **kwargs)


def wrong(*args: Any, **kwargs: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        call(*args, **kwargs)
    return caught.value


def test_the_path_the_query_and_the_body_give_in_this_order() -> None:
    def f(a: int, b: int = 2, c: int = 3) -> Any:
        return a, b, c

    assert call(f, "/{a}", "/1") == (1, 2, 3)
    assert call(f, "/{a}", "/1", b="5") == (1, 5, 3)
    assert call(f, "/{a}", "/1", {"a": 7, "b": 8, "c": 9}, b="5") == (1, 5, 9)
    assert call(f, body={"a": 7, "b": 8, "z": 0}) == (7, 8, 3)


def test_a_path_takes_one_part_or_the_rest() -> None:
    def f(a: str, rest: str = "") -> Any:
        return a, rest

    assert call(f, "/x/{a}/y", "/x/1 2/y") == ("1 2", "")
    assert call(f, "/{a}/{rest:path}", "/1/2/3.txt") == ("1", "2/3.txt")
    assert Parameters(f, "/x/{a}").match("/x/1/2") is None
    assert Parameters(f, "/a.b/{a}").match("/axb/1") is None


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "5", 5), (float, "1.5", 1.5), (bool, "true", True), (bool, "0", False), (str, "5", "5"),
        (int | None, "null", None), (int | None, "4", 4), (Literal["a", "b"], "a", "a"), (Colour, "red", Colour.RED),
        (datetime.date, "2024-02-29", datetime.date(2024, 2, 29)), (uuid.UUID, str(uuid.UUID(int=7)), uuid.UUID(int=7)),
        (Annotated[int, msgspec.Meta(ge=0)], "0", 0), (Any, "x", "x"),
    ],
)  # fmt: skip
def test_a_text_is_converted_by_the_annotation(kind: Any, text: str, value: Any) -> None:
    def f(given: Any) -> Any:
        return given

    f.__annotations__["given"] = kind
    assert call(f, given=text) == value


def test_a_list_takes_each_value_and_others_the_last() -> None:
    def f(many: list[int], few: tuple[str, ...] | None = None, one: int = 0) -> Any:
        return many, few, one

    assert call(f, many=["1", "2"], few=["a"], one=["3", "4"]) == ([1, 2], ("a",), 4)
    assert call(f, many="1") == ([1], None, 0)


def test_one_parameter_takes_a_whole_body() -> None:
    def point(p: Point) -> Any:
        return p

    def named(named: Named, twice: bool = False) -> Any:
        return named.name * (1 + twice)

    def typed(typed: Typed) -> Any:
        return typed

    def plain(data: dict[str, Any]) -> Any:
        return data

    def numbers(numbers: list[int], factor: int) -> Any:
        return [one * factor for one in numbers]

    def modelled(given: Modelled) -> Any:
        return given

    assert vars(call(point, body={"x": 1})) == {"x": 1, "y": 0}
    assert call(point, body={"p": {"x": 1, "y": 2}}) == Point(1, 2)
    assert call(named, body={"name": "n"}, twice="1") == "nn"
    assert call(typed, body={"name": "n"}) == {"name": "n"}
    assert call(plain, body={"any": 1}) == {"any": 1}
    assert call(numbers, body=[1, 2], factor="3") == [3, 6]
    assert call(numbers, body={"numbers": [1], "factor": 2}) == [2]
    assert call(modelled, body={"name": "a", "size": "7"}) == Modelled(name="a", size=7)


def test_what_is_wrong_is_named() -> None:
    def f(a: int, p: Point | None = None) -> Any:
        return a, p

    missing = wrong(f)
    assert missing.message == "parameter 'a': it is missing" and missing.details["parameter"] == "a"
    assert missing.hint == "give 'a' in the path, query or JSON body"
    text = wrong(f, a="x")
    assert (text.message, text.details) == (
        "parameter 'a': Expected 'int', got 'str'",
        {"parameter": "a", "in": "query"},
    )
    inside = wrong(f, body={"a": 1, "p": {"x": "no"}})
    assert inside.message == "parameter 'p': Expected 'int', got 'str' - at 'p.x'" and inside.details["in"] == "body"
    assert wrong(f, "/{a}", "/x").details["in"] == "path"
    assert "missing" in wrong(f, body={"x": 5}).message  # an int takes no object
    assert "size" in wrong(_modelled, body={"name": "a"}).message


def _modelled(given: Modelled) -> Any:
    return given


def test_other_names_go_where_they_are_wanted() -> None:
    def closed(a: int = 0) -> Any:
        return a

    def opened(a: int = 0, **others: Any) -> Any:
        return a, others

    def by_place(a: int, b: int = 2, /, *, c: int = 3) -> Any:
        return a, b, c

    assert call(closed, b="1") == 0
    assert call(opened, "/{id}", "/9", {"z": 1}, b="1") == (0, {"id": "9", "b": "1", "z": 1})
    assert call(by_place, a="1", c="5") == (1, 2, 5)


def test_a_callable_object_is_called_by_its_own_names() -> None:
    class Adder:
        def __call__(self, a: int, b: int) -> int:
            return a + b

    assert call(Adder(), a="1", b="2") == 3


def test_a_function_that_cannot_be_called_by_name_is_refused_at_the_start() -> None:
    def starred(*values: int) -> None: ...

    def plain(a: int) -> None: ...

    def odd(a: dict[int, Any] | list[int] | tuple[int, ...]) -> None: ...

    with pytest.raises(ConfigError, match=r"cannot take \*values"):
        Parameters(starred, "/")
    with pytest.raises(ConfigError, match=r"has \{b\}, and the function no such parameter"):
        Parameters(plain, "/{b}")
    with pytest.raises(ConfigError, match="parameter 'a' cannot be read from a request"):
        Parameters(odd, "/")
