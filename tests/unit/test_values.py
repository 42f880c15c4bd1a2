from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import hashlib
import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apothic.errors import ConfigError, PayloadTooLargeError, SerializationError
from apothic.protocol.messages import Value
from apothic.protocol.session import Packed
from apothic.protocol.values import (
    from_wire,
    pack,
    pack_arguments,
    to_wire,
    unpack,
    unpack_arguments,
    unpack_wire,
)

LIMIT = 1 << 30


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


class Color(enum.Enum):
    RED = "red"


class Text(str):
    pass


Pair = collections.namedtuple("Pair", "left right")


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types all the way down, floats by their bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one.hex() == other.hex() and math.copysign(1, one) == math.copysign(1, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Point):
        return same(one.x, other.x) and same(one.y, other.y)
    return bool(one == other)


def carried(packed: Packed, *, binary: bool) -> Value:
    """The message form after it was encoded and decoded as HTTP does."""
    lib = msgspec.msgpack if binary else msgspec.json
    return lib.decode(lib.encode(to_wire(packed, binary=binary)), type=Value)


texts = st.text(st.characters(exclude_categories=["Cs"]))
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inside: st.lists(inside) | st.dictionaries(texts, inside),
    max_leaves=30,
)
rich = st.recursive(
    st.none()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.datetimes(timezones=st.just(datetime.UTC) | st.none())
    | st.timedeltas()
    | st.uuids()
    | st.just(Color.RED)
    | st.fractions()
    | st.complex_numbers(allow_nan=False),
    lambda inside: (
        st.lists(inside)
        | st.tuples(inside, inside)
        | st.dictionaries(st.text() | st.integers() | st.binary(), inside)
        | st.sets(st.integers() | st.text())
        | st.frozensets(st.binary())
        | st.builds(Point, st.integers(), inside)
        | st.builds(Pair, inside, inside)
    ),
    max_leaves=20,
)


# --- round trips ------------------------------------------------------------------------------------------------


@given(plain)
def test_what_json_carries_unchanged_travels_as_json(value: Any) -> None:
    packed = pack(value, payload_limit=LIMIT).packed

    assert packed.encoding == "json" and packed.header is None and packed.repr is None
    assert same(unpack(packed), value)
    assert same(json.loads(packed.data or b""), value)
    for binary in (True, False):
        wire = carried(packed, binary=binary)
        assert same(unpack_wire(wire), value)
        assert same(unpack(from_wire(wire)), value)


@given(rich)
@settings(max_examples=200)
def test_everything_else_travels_as_a_pickle(value: Any) -> None:
    packed = pack(value, payload_limit=LIMIT).packed

    assert same(unpack(packed), value)
    for binary in (True, False):
        wire = carried(packed, binary=binary)
        assert same(unpack_wire(wire), value)
        assert packed.encoding == "json" or from_wire(wire) == packed  # JSON has more than one spelling of 1e16


@given(st.lists(plain, max_size=4), st.dictionaries(texts, plain, max_size=3))
def test_arguments_travel_as_json(args: list[Any], kwargs: dict[str, Any]) -> None:
    packed = pack_arguments(args, kwargs, payload_limit=LIMIT).packed

    assert packed.encoding == "json"
    assert list(json.loads(packed.data or b"")) == ["args", "kwargs"]
    assert same(unpack_arguments(packed), (tuple(args), kwargs))


@given(st.lists(rich, max_size=3), st.dictionaries(texts, rich, max_size=3))
@settings(max_examples=50)
def test_arguments_travel_as_a_pickle(args: list[Any], kwargs: dict[str, Any]) -> None:
    packed = pack_arguments([*args, ()], kwargs, payload_limit=LIMIT).packed

    assert packed.encoding == "pickle"
    assert same(unpack_arguments(packed), ((*args, ()), kwargs))


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint64", "float16", "float64", "complex128", "U5", "S3", "M8[ns]", "O"]
)
@pytest.mark.parametrize("order", ["C", "F", "strided", "empty", "scalar"])
def test_numpy_arrays_travel(dtype: str, order: str) -> None:
    array = numpy.arange(24).astype("i8").astype(dtype).reshape(4, 6)
    array = {
        "C": array,
        "F": numpy.asfortranarray(array),
        "strided": array[::2, ::-3],
        "empty": array[:0],
        "scalar": array[1, 1],
    }[order]

    packed = pack(array, payload_limit=LIMIT).packed
    again = unpack(packed)

    assert type(again) is type(array)
    assert numpy.array_equal(again, array)
    if isinstance(array, numpy.ndarray):
        assert again.dtype == array.dtype and again.shape == array.shape
        if order in "CF":
            assert again.flags["F_CONTIGUOUS"] == array.flags["F_CONTIGUOUS"]
    if dtype != "O" or order != "scalar":
        assert packed.header is not None
        assert packed.header.modules == {"numpy": numpy.__version__}


def test_a_large_numpy_array_goes_through_a_file(tmp_path: Path) -> None:
    array = numpy.random.default_rng(7).random((300, 400))

    envelope = pack({"a": array}, payload_limit=LIMIT, spool_dir=tmp_path)

    assert envelope.file is not None and envelope.packed.size == envelope.file.stat().st_size > array.nbytes
    assert numpy.array_equal(unpack(envelope.packed, envelope.file)["a"], array)
    assert envelope.packed.repr == "{'a': <numpy.ndarray of shape (300, 400), float64>}"


@pytest.mark.parametrize(
    "value",
    [
        2**53 + 1, -(2**53) - 1, math.inf, -math.inf, (), (1,), b"", {1: 2}, {"a": (1,)}, [b"x"], Text("x"),
        {Text("k"): 1}, {None: 1}, {True: 1}, "\ud800", {"\udfff": 1}, ["a\ud800b"], Color.RED,
        collections.OrderedDict(a=1), numpy.float64(1.5),
    ],
    ids=repr,
)  # fmt: skip
def test_what_json_would_change_is_pickled(value: Any) -> None:
    packed = pack(value, payload_limit=LIMIT).packed

    assert packed.encoding == "pickle"
    assert same(unpack(packed), value)


def test_nan_and_negative_zero_keep_their_bits() -> None:
    assert math.isnan(unpack(pack(math.nan, payload_limit=LIMIT).packed))
    assert pack(-0.0, payload_limit=LIMIT).packed.data == b"-0.0"
    assert pack(2**53, payload_limit=LIMIT).packed.encoding == "json"


def test_shared_and_circular_values_keep_their_shape() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    again = unpack(pack(circle, payload_limit=LIMIT).packed)
    assert again[1] is again

    doubled: list[Any] = [0]
    for _ in range(100):
        doubled = [doubled, doubled]
    assert pack(doubled, payload_limit=LIMIT).packed.encoding == "pickle"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_deep_values_are_pickled_and_very_deep_ones_refused() -> None:
    assert pack(nested(128), payload_limit=LIMIT).packed.encoding == "json"
    assert pack(nested(129), payload_limit=LIMIT).packed.encoding == "pickle"
    assert same(unpack(pack(nested(200), payload_limit=LIMIT).packed), nested(200))
    with pytest.raises(SerializationError, match="the result of f: it is nested too deeply"):
        pack(nested(100_000), payload_limit=LIMIT, what="the result of f")


# --- sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_the_inline_limit_of_json(over: int, tmp_path: Path) -> None:
    text = "x" * (1000 - 2 + over)

    envelope = pack(text, payload_limit=LIMIT, inline_limit=1000, spool_dir=tmp_path)

    assert (envelope.packed.encoding == "json") == (over <= 0)
    assert (envelope.file is None) == (over <= 0)
    assert unpack(envelope.packed, envelope.file) == text


def pickle_of(size: int) -> bytes:
    data = bytes(size)
    while (length := pack(data, payload_limit=LIMIT).packed.size) != size:
        data = bytes(len(data) - (length - size))
    return data


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_the_inline_limit_of_pickles(over: int, tmp_path: Path) -> None:
    value = pickle_of(5000 + over)

    envelope = pack(value, payload_limit=LIMIT, inline_limit=5000, spool_dir=tmp_path)

    assert envelope.packed.size == 5000 + over
    if over <= 0:
        assert envelope.file is None and envelope.packed.sha256 is None and not list(tmp_path.iterdir())
    else:
        assert envelope.file is not None and envelope.packed.data is None
        assert envelope.packed.sha256 == hashlib.sha256(envelope.file.read_bytes()).hexdigest()
        assert envelope.file.stat().st_mode & 0o777 == 0o600
    assert unpack(envelope.packed, envelope.file) == value
    envelope.discard()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inline", [10, 100_000])
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_the_payload_limit(over: int, inline: int, tmp_path: Path) -> None:
    value = pickle_of(5000 + over)

    if over <= 0:
        assert pack(value, payload_limit=5000, inline_limit=inline, spool_dir=tmp_path).packed.size == 5000 + over
        return
    with pytest.raises(
        PayloadTooLargeError, match="the result of f: at least 5,001 bytes, over the limit of 5,000"
    ) as told:
        pack(value, payload_limit=5000, inline_limit=inline, what="the result of f", spool_dir=tmp_path)
    assert (told.value.size, told.value.limit, told.value.what) == (5001, 5000, "the result of f")
    assert not list(tmp_path.iterdir())


def test_packing_is_given_up_as_soon_as_the_limit_is_passed(tmp_path: Path) -> None:
    made = 0

    class Piece:
        def __reduce__(self) -> Any:
            nonlocal made
            made += 1
            return bytes, (made.to_bytes(4, "big") * 50_000,)

    with pytest.raises(PayloadTooLargeError) as told:
        pack([Piece() for _ in range(1000)], payload_limit=1_000_000, spool_dir=tmp_path)

    assert made < 10 and 1_000_000 < told.value.size < 1_500_000
    assert not list(tmp_path.iterdir())


def test_a_failure_half_way_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(SerializationError):
        pack([bytes(500_000), threading.Lock()], payload_limit=LIMIT, spool_dir=tmp_path)

    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-place"):
        pack(bytes(500_000), payload_limit=LIMIT, spool_dir=tmp_path / "no-such-place")


MEMORY = """
import resource, sys
from pathlib import Path
from apothic.protocol.values import pack, unpack
pack(bytes(100_000), payload_limit=1 << 30, spool_dir=Path(sys.argv[1])).discard()
data = b"x" * (256 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
envelope = pack(data, payload_limit=1 << 30, spool_dir=Path(sys.argv[1]))
packing = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
length = len(data)
del data
again = unpack(envelope.packed, envelope.file)
reading = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert len(again) == length and envelope.packed.size > length
envelope.discard()
print(packing // 1024, reading // 1024)
"""


def test_packing_and_reading_256_mib_keeps_one_copy_in_memory(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, timeout=100, check=False
    )

    assert ran.returncode == 0, ran.stderr
    packing, reading = map(int, ran.stdout.split())
    assert packing < 16 and reading < 16  # MiB over the one copy


def test_an_envelope_without_a_file_is_discarded_too() -> None:
    envelope = pack(1, payload_limit=LIMIT)

    envelope.discard()

    assert unpack(envelope.packed) == 1
