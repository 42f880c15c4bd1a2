"""Every message survives both codecs, and every route fits its messages and its method."""

from __future__ import annotations

import inspect
import types
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apothic.control.plane import Plane
from apothic.protocol import messages, routes, session, upkeep
from apothic.protocol.routes import ROUTES
from apothic.protocol.services import ServiceSpec
from apothic.protocol.specs import BatchingSpec, ConcurrencySpec, Cron, FunctionOptions, Period, Retries

TEXT = st.text(max_size=6)
NUMBER = st.floats(allow_nan=False, allow_infinity=False, width=32)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
# These check themselves, so they are drawn from what is allowed.
CHECKED: dict[Any, st.SearchStrategy[Any]] = {
    Retries: st.builds(Retries, st.integers(0, 9), jitter=st.booleans()),
    FunctionOptions: st.builds(
        FunctionOptions,
        schedule=st.sampled_from([None, Cron("0 7 * * *", timezone="UTC"), Period(hours=1)]),
        cpu=st.sampled_from([0.5, 2]), gpu=st.sampled_from([None, "A", ["A", "B"]]),
        retries=st.sampled_from([None, 2, Retries(1, initial_delay_s=0.5)]),
        concurrency=st.sampled_from([None, ConcurrencySpec(4, 2)]),
        batching=st.sampled_from([None, BatchingSpec(8, 5)]),
    ),
    ServiceSpec: st.builds(
        ServiceSpec, method=st.sampled_from(["GET", "POST"]), path=st.sampled_from(["/", "/{a}/b"]), docs=st.booleans(),
        port=st.sampled_from([0, 8000]), startup_timeout_s=st.sampled_from([5.0, 0.5]),
    ),
}  # fmt: skip


def structs(module: types.ModuleType) -> list[type[msgspec.Struct]]:
    return [
        cls for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, msgspec.Struct) and cls.__module__ == module.__name__
    ]  # fmt: skip


def anything(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for a type that a message declares."""
    origin = get_origin(kind)
    if kind in CHECKED:
        return CHECKED[kind]
    if origin is Annotated:
        bare, meta = get_args(kind)
        most = min(meta.le, 2**53)
        return st.integers(meta.ge, most) if bare is int else st.floats(meta.ge, most)
    if origin in (Union, types.UnionType):
        return st.one_of([anything(each) for each in get_args(kind)])
    if origin is Literal:
        return st.sampled_from(get_args(kind))
    if origin is list:
        return st.lists(anything(get_args(kind)[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(TEXT, anything(get_args(kind)[1]), max_size=2)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind, include_extras=True)
        return st.builds(kind, **{name: anything(each) for name, each in hints.items()})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(kind)
    simple = {Any: PLAIN, str: TEXT, int: st.integers(-(2**53), 2**53), float: NUMBER, bool: st.booleans(),
              bytes: st.binary(max_size=6), type(None): st.none()}  # fmt: skip
    return simple[kind]


EVERY = structs(messages) + structs(upkeep) + structs(session)


@pytest.mark.parametrize("cls", EVERY, ids=[cls.__name__ for cls in EVERY])
def test_every_message_survives_both_codecs(cls: type[msgspec.Struct]) -> None:
    @settings(max_examples=15, deadline=None)
    @given(anything(cls))
    def survives(message: msgspec.Struct) -> None:
        for codec in (msgspec.json, msgspec.msgpack):
            assert codec.decode(codec.encode(message), type=cls) == message

    survives()


@pytest.mark.parametrize("way", [session.Upward, session.Downward], ids=["up", "down"])
def test_every_frame_is_known_by_its_tag(way: Any) -> None:
    tags = [cls.__struct_config__.tag for cls in get_args(way)]
    assert len(set(tags)) == len(tags) and None not in tags

    @settings(max_examples=40, deadline=None)
    @given(anything(way))
    def survives(frame: Any) -> None:
        back = msgspec.msgpack.decode(msgspec.msgpack.encode(frame), type=way)
        assert back == frame and type(back) is type(frame)

    survives()


def test_messages_are_frozen_and_named() -> None:
    assert len(EVERY) > 60
    for cls in EVERY:
        assert cls.__struct_config__.frozen, cls
        if cls.__struct_fields__:
            assert all(p.kind is p.KEYWORD_ONLY for p in inspect.signature(cls).parameters.values()), cls


def test_route_names_are_distinct() -> None:
    assert len({route.name for route in ROUTES}) == len(ROUTES)
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)
    named = {value for value in vars(routes).values() if isinstance(value, routes.Route)}
    assert named == set(ROUTES)


@pytest.mark.parametrize("route", ROUTES, ids=[route.name for route in ROUTES])
def test_a_routes_fields_are_fields_of_its_ask(route: routes.Route[Any, Any]) -> None:
    fields = set(route.ask.__struct_fields__)
    assert set(route.in_path) <= fields
    assert set(route.query) <= fields
    assert route.body in ("", "*") or route.body in fields
    assert not set(route.in_path) & set(route.query)
    if not route.body:
        assert route.query == ()  # all that is left comes from the query anyway
    elif route.body != "*":
        assert set(route.in_path) | set(route.query) | {route.body} == fields
    assert route.method in ("GET", "HEAD", "PUT", "POST", "DELETE")
    assert route.about and not route.about.endswith(".")


@pytest.mark.parametrize("route", ROUTES, ids=[route.name for route in ROUTES])
def test_every_route_is_answered_by_a_method_of_its_types(route: routes.Route[Any, Any]) -> None:
    method = getattr(Plane, route.name)
    hints = get_type_hints(method)
    assert hints["ask"] is route.ask
    if route.name != "get_blob":  # the bytes come with it
        assert hints["return"] is route.reply


def test_the_plane_answers_nothing_else() -> None:
    answers = {name for name, value in vars(Plane).items() if inspect.isfunction(value) and not name.startswith("_")}
    streams = {"follow", "follow_deployment"}  # they answer `events` and `deployment_events` as streams
    assert answers == {route.name for route in ROUTES} | streams
