"""The decoders that stand at the door of the server and of the agent: what they refuse, they refuse by name."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import msgspec
import pytest
from fuzzground import Progress, cases, seed
from hostile import ODD, Builder, damaged, frame_of, mutate, packed
from msgspec import inspect

from apothic.agent.frames import FrameError, News, news
from apothic.errors import ApothicError
from apothic.protocol import values
from apothic.protocol.messages import AppManifest, Submit, Value

NEWS = inspect.type_info(News)
KINDS = {kind: inspect.type_info(kind) for kind in (Value, Submit, AppManifest)}
BUILDER = Builder(["json", "pickle", "Z0", "=", "gASVBAAAAAAAAABLAS4=", "0" * 64])


def one_value(dice: random.Random) -> None:
    """Decode a hostile value in either codec and take it as far as the server does."""
    made = BUILDER.build(KINDS[Value], dice)
    made = mutate(made, dice) if dice.random() < 0.6 else made
    binary = dice.random() < 0.5
    try:
        data = packed(made) if binary else msgspec.json.encode(made)
        data = damaged(data, dice) if dice.random() < 0.3 else data
        value = (msgspec.msgpack if binary else msgspec.json).decode(data, type=Value)
    except (ValueError, RecursionError):
        return
    try:
        stored = values.from_wire(value)
        for codec in (True, False):
            told = values.to_wire(stored, binary=codec)
            msgspec.msgpack.encode(told) if codec else msgspec.json.encode(told)
    except ApothicError:
        pass


def one_message(dice: random.Random) -> None:
    """Decode a hostile submission or manifest, as the door does: first to plain data, then to the type."""
    kind = dice.choice([Submit, AppManifest])
    made = BUILDER.build(KINDS[kind], dice)
    for _ in range(dice.randrange(3)):
        made = mutate(made, dice)
    try:
        ask: Any = msgspec.convert(msgspec.msgpack.decode(packed(made)), kind)
    except (ValueError, RecursionError):
        return
    if isinstance(ask, Submit):
        with contextlib.suppress(ApothicError):
            values.plain_arguments(ask.args, ask.kwargs)


def one_stream(dice: random.Random) -> None:
    """Feed a splitter of frames in pieces."""
    splitter = news()
    bodies = [frame_of(BUILDER, NEWS, dice) for _ in range(dice.randint(1, 4))]
    data = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    data = damaged(data, dice) if dice.random() < 0.3 else data
    try:
        while data:
            size = dice.choice((1, 3, 50, len(data)))
            list(splitter.feed(data[:size]))
            data = data[size:]
    except FrameError:
        pass


def shower(chosen: int, count: int) -> None:
    """Run that many cases."""
    for number in range(count):
        dice = random.Random(f"{chosen}/{number}")
        dice.choice([one_value, one_message, one_stream])(dice)


def test_decoders_refuse_by_name() -> None:
    assert len(ODD) > 20
    shower(seed(), 3_000)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_decoders_refuse_by_name_in_many_cases() -> None:
    chosen, progress = seed(), Progress("decoders")
    while progress.done < cases(30_000):
        shower(chosen, 3_000)
        progress.add(3_000)
        chosen += 1
    progress.tell()
