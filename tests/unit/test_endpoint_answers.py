"""What an endpoint's function returned, as bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import apothic
from apothic.agent.answers import chunk, encode, event, wants_events


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("value", "data", "kind"),
    [
        ({"a": [1, None, True]}, b'{"a":[1,null,true]}', "application/json"),
        (None, b"null", "application/json"), (1.5, b"1.5", "application/json"),
        (Point(1), b'{"x":1}', "application/json"),
        (numpy.arange(3), b"[0,1,2]", "application/json"), (numpy.int64(7), b"7", "application/json"),
        ("žluť", "žluť".encode(), "text/plain; charset=utf-8"), (bytearray(b"ab"), b"ab", "application/octet-stream"),
    ],
)  # fmt: skip
def test_a_value_has_its_bytes_and_its_media_type(value: Any, data: bytes, kind: str) -> None:
    assert encode(value) == (data, kind)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(TypeError, match="of type object cannot be JSON"):
        encode(object())


def test_a_chunk_is_what_was_yielded() -> None:
    assert (chunk("a"), chunk(b"b"), chunk({"c": 1})) == (b"a", b"b", b'{"c":1}\n')


@given(st.text())
def test_an_event_holds_any_text(text: str) -> None:
    frame = event(text)
    assert frame.endswith(b"\n\n") and b"\n\n" not in frame[:-2] and b"\r" not in frame
    lines = frame[:-2].decode().split("\n")
    assert all(line.startswith("data: ") for line in lines)
    assert "\n".join(line[6:] for line in lines) == text.replace("\r\n", "\n").replace("\r", "\n")


def test_an_event_of_another_value_is_json() -> None:
    assert event({"a": "x\ny"}) == b'data: {"a":"x\\ny"}\n\n' and event(b"\xff") == "data: �\n\n".encode()


def test_events_are_asked_for_by_accept() -> None:
    def asks(accept: bytes) -> bool:
        return wants_events({"headers": [(b"host", b"h"), (b"accept", accept)]})

    assert asks(b"Text/Event-Stream") and asks(b"text/html, text/event-stream;q=0.5")
    assert not asks(b"*/*") and not wants_events({"headers": []})


def test_a_response_keeps_what_it_was_given() -> None:
    response = apothic.Response({"a": 1}, 201, {"X-A": "1"}, "application/vnd.a+json")
    assert (response.status_code, response.headers) == (201, [("X-A", "1")])
    assert response.media_type == "application/vnd.a+json" and repr(response) == "Response({'a': 1}, 201)"
    pairs = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    assert apothic.Response(headers=pairs).headers == pairs and not isinstance(pairs, Mapping)
