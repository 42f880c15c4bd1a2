from __future__ import annotations

import decimal
import math
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest

from apothic.errors import PayloadTooLargeError, SerializationError
from apothic.protocol.messages import PickleHeader, Value
from apothic.protocol.session import Packed
from apothic.protocol.values import (
    pack,
    pack_arguments,
    plain_arguments,
    to_wire,
    unpack,
    unpack_arguments,
    unpack_wire,
)

LIMIT = 1 << 30


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# --- packing ----------------------------------------------------------------------------------------------------


def test_the_argument_and_the_type_in_the_way_are_named() -> None:
    with pytest.raises(SerializationError, match=r"^cannot pack argument 1 of resize: a _thread.lock object") as told:
        pack_arguments((b"fine", {"inside": [threading.Lock()]}), {"size": b"3"}, payload_limit=LIMIT, what="resize")
    assert told.value.hint
    with pytest.raises(SerializationError, match=r"^cannot pack argument 'source' of resize: a generator object"):
        pack_arguments((b"fine",), {"source": (n for n in range(3))}, payload_limit=LIMIT, what="resize")
    with (
        pytest.raises(SerializationError, match=r"^cannot pack the result of f: .*TextIOWrapper"),
        open("/dev/null", "w") as file,
    ):
        pack(file, payload_limit=LIMIT, what="the result of f")


class Awkward:
    def __reduce__(self) -> Any:
        raise SystemExit("not me")


def test_an_object_that_raises_while_it_is_packed_is_named() -> None:
    with pytest.raises(SerializationError, match=r"cannot pack value: a .*Awkward object \(SystemExit: not me\)"):
        pack(Awkward(), payload_limit=LIMIT)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": [1, (2,)]}, r"a tuple object at \['a'\]\[1\]"),
        ([2**60], r"an int beyond 2\*\*53 at \[0\]"),
        (math.nan, "the float nan"),
        ({1: 2}, "a dict key of type int"),
        (nested(129), "nesting deeper than 128 levels"),
        (["\ud800"], "text with a lone surrogate"),
        (decimal.Decimal(1), "a decimal.Decimal object"),
    ],
    ids=["tuple", "int", "nan", "key", "depth", "surrogate", "type"],
)
def test_without_pickles_the_obstacle_is_named(value: Any, said: str) -> None:
    with pytest.raises(SerializationError, match=f"cannot pack the result of f as JSON: {said}"):
        pack(value, payload_limit=LIMIT, what="the result of f", allow_pickle=False)


def test_without_pickles_large_json_goes_through_a_file(tmp_path: Path) -> None:
    value = {"rows": [[n, "x" * 10] for n in range(20_000)]}

    envelope = pack(value, payload_limit=LIMIT, allow_pickle=False, spool_dir=tmp_path)

    assert envelope.packed.encoding == "json" and envelope.file is not None
    assert unpack(envelope.packed, envelope.file, allow_pickle=False) == value
    with pytest.raises(PayloadTooLargeError, match="value: at least"):
        pack(value, payload_limit=100_000, allow_pickle=False, spool_dir=tmp_path)
    envelope.discard()
    assert not list(tmp_path.iterdir())


# --- reading ----------------------------------------------------------------------------------------------------


def test_a_missing_module_is_named_before_anything_is_unpickled() -> None:
    touched = pickle.dumps(Path("/nothing"))
    header = PickleHeader(python="3.13", cloudpickle="3.0.0", modules={"no_such_module": "9.1"})

    with pytest.raises(SerializationError, match=r"needs the module no_such_module 9\.1, which is not") as told:
        unpack(Packed(encoding="pickle", data=touched, size=len(touched), header=header))

    assert "Python 3.13, cloudpickle 3.0.0" in told.value.message
    assert f"here Python 3.{sys.version_info[1]}, cloudpickle" in told.value.message
    assert "install no_such_module" in told.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"garbage", pickle.dumps([1, 2, 3])[:-3], b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\x7f"]
)
def test_damaged_pickles_name_the_versions_of_both_sides(data: bytes) -> None:
    header = PickleHeader(python="3.12", cloudpickle="3.0.1", modules={"numpy": "1.0"})

    with pytest.raises(SerializationError, match="cannot unpack the result") as told:
        unpack(Packed(encoding="pickle", data=data, size=len(data), header=header), what="the result")

    assert told.value.__cause__ is not None
    for part in (
        "Python 3.12, cloudpickle 3.0.1, numpy 1.0",
        f"Python 3.{sys.version_info[1]}",
        f"numpy {numpy.__version__}",
    ):
        assert part in told.value.message


class ExitsWhenRead:
    def __reduce__(self) -> Any:
        return sys.exit, (4,)


def test_a_pickle_that_exits_while_it_is_read_is_an_error() -> None:
    packed = pack(ExitsWhenRead(), payload_limit=LIMIT).packed

    with pytest.raises(SerializationError, match="SystemExit"):
        unpack(packed)


def test_another_python_is_fine_when_the_pickle_can_be_read() -> None:
    packed = pack((1, 2), payload_limit=LIMIT).packed
    header = PickleHeader(python="3.99", cloudpickle="99.0")

    assert unpack(msgspec.structs.replace(packed, header=header)) == (1, 2)
    assert unpack(msgspec.structs.replace(packed, header=None)) == (1, 2)


def test_pickles_are_refused_where_they_are_not_allowed() -> None:
    wire = to_wire(pack((1, 2), payload_limit=LIMIT).packed, binary=False)

    with pytest.raises(SerializationError, match="is a pickle, and pickles are not allowed here"):
        unpack_wire(wire, allow_pickle=False)
    assert unpack_wire(Value(encoding="json", data=[1]), allow_pickle=False) == [1]


def test_a_blob_that_was_not_fetched_and_one_that_is_gone(tmp_path: Path) -> None:
    for encoding in ("json", "pickle"):
        packed = Packed(encoding=encoding, sha256="0" * 64, size=3)  # type: ignore[arg-type]
        with pytest.raises(SerializationError, match="were not fetched"):
            unpack(packed)
        with pytest.raises(SerializationError, match="cannot be read"):
            unpack(packed, tmp_path / "gone")


@pytest.mark.parametrize(
    "form", [[1], {"args": 1}, {"args": [], "kwargs": [], "x": 1}, {"other": 1}, (1, 2), ((), {1: 2}), "x"]
)
def test_arguments_of_another_shape_are_refused(form: Any) -> None:
    with pytest.raises(SerializationError, match="are not the arguments of a function"):
        unpack_arguments(pack(form, payload_limit=LIMIT).packed)


def test_bare_arguments_are_the_short_form() -> None:
    assert unpack_arguments(plain_arguments(["hello"], None)) == (("hello",), {})
    assert unpack_arguments(plain_arguments(None, {"n": 2**80})) == ((), {"n": 2**80})
