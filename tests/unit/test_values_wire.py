from __future__ import annotations

import base64
import dataclasses
import datetime
import math
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest

from apothic.errors import InvalidRequestError, SerializationError
from apothic.protocol import portrait
from apothic.protocol.messages import PickleHeader, Value
from apothic.protocol.session import Packed
from apothic.protocol.values import (
    from_wire,
    pack,
    pack_arguments,
    to_wire,
    unpack,
)

LIMIT = 1 << 30


@dataclasses.dataclass
class Point:
    x: int
    y: Any = None


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


class ExitsWhenRead:
    def __reduce__(self) -> Any:
        return sys.exit, (4,)


def carried(packed: Packed, *, binary: bool) -> Value:
    """The message form after it was encoded and decoded as HTTP does."""
    lib = msgspec.msgpack if binary else msgspec.json
    return lib.decode(lib.encode(to_wire(packed, binary=binary)), type=Value)


# --- messages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Value(encoding="pickle", data="no base64!"), "base64"),
        (Value(encoding="pickle", data="é"), "base64"),
        (Value(encoding="pickle", data=""), "never empty"),
        (Value(encoding="pickle", data=[1]), "base64"),
        (Value(encoding="pickle"), "base64"),
        (Value(encoding="json", data=math.nan), "cannot be kept"),
        (Value(encoding="json", data=[math.inf]), "cannot be kept"),
        (Value(encoding="json", data={1: 2}), "not all text"),
        (Value(encoding="json", data=[{"a": b"x"}]), "cannot hold bytes"),
        (Value(encoding="json", data=datetime.datetime.now()), "cannot hold datetime"),
        (Value(encoding="json", data="\ud800"), "cannot be kept"),
        (Value(encoding="json", data=nested(5_000)), "deeper than 128"),
        (Value(encoding="json", sha256="0" * 64, size=1, data=5), "not both"),
        (Value(encoding="json", sha256="../../etc/passwd", size=1), "64 lower-case hex"),
        (Value(encoding="json", sha256="0" * 64 + "\n", size=1), "64 lower-case hex"),
        (Value(encoding="json", sha256="0" * 64), "size in bytes"),
        (Value(encoding="json", sha256="0" * 64, size=-1), "size in bytes"),
    ],
)  # fmt: skip
def test_garbage_is_refused_with_a_reason(value: Value, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said) as told:
        from_wire(value)
    assert told.value.hint


def test_the_forms_of_a_value_on_the_wire() -> None:
    pickled = pack(b"\xff", payload_limit=LIMIT).packed

    assert to_wire(pickled, binary=True).data == pickled.data
    assert base64.b64decode(to_wire(pickled, binary=False).data) == pickled.data
    assert to_wire(pack({"a": [1.0, None]}, payload_limit=LIMIT).packed, binary=False).data == {"a": [1.0, None]}
    blob = Packed(
        encoding="pickle", sha256="ab" * 32, size=7, header=PickleHeader(python="3.11", cloudpickle="3"), repr="x"
    )
    assert from_wire(carried(blob, binary=False)) == blob == from_wire(carried(blob, binary=True))


def test_large_integers_of_other_callers_survive() -> None:
    value = msgspec.json.decode(b'{"encoding":"json","data":[123456789012345678901234567890,-0.0]}', type=Value)

    packed = from_wire(value)

    assert packed.data == b"[123456789012345678901234567890,-0.0]"
    assert unpack(packed) == [123456789012345678901234567890, -0.0]


def test_stored_json_that_is_none_is_an_error_of_ours() -> None:
    for data in (b"{", b"NaN", b"\xff", b"[" * 100_000):
        with pytest.raises(SerializationError, match="not valid JSON"):
            to_wire(Packed(encoding="json", data=data, size=len(data)), binary=False)


def test_the_wire_never_unpickles_nor_imports_a_pickler(tmp_path: Path) -> None:
    wire = to_wire(pack(ExitsWhenRead(), payload_limit=LIMIT).packed, binary=False)
    (tmp_path / "wire.json").write_bytes(msgspec.json.encode(wire))
    script = (
        "import sys, msgspec\n"
        "def hook(event, args):\n"
        "    if event == 'pickle.find_class': sys.exit('unpickled')\n"
        "sys.addaudithook(hook)\n"
        "from apothic.protocol import values, messages\n"
        f"wire = msgspec.json.decode(open({str(tmp_path / 'wire.json')!r}, 'rb').read(), type=messages.Value)\n"
        "packed = values.from_wire(wire)\n"
        "assert values.from_wire(values.to_wire(packed, binary=True)) == packed\n"
        "assert values.to_wire(packed, binary=False) == wire\n"
        "heavy = {'cloudpickle', 'tempfile', 'numpy', 'asyncio', 'sqlite3', 'aiohttp'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )

    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert ran.returncode == 0, ran.stderr


# --- for people -------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    drawn = pack(value, payload_limit=LIMIT, inline_limit=65536).packed.repr
    assert drawn is not None and len(drawn) <= 1000
    msgspec.json.encode(drawn)
    return drawn


class Untold:
    def __repr__(self) -> str:
        raise SystemExit("no")


class Surrogate:
    def __repr__(self) -> str:
        return "caf\udce9" * 1000


def test_a_pickle_is_drawn_for_people() -> None:
    assert shown((1, "two", b"3")) == "(1, 'two', b'3')"
    assert shown((1,)) == "(1,)" and shown(set()) == "set()" and shown({7}) == "{7}"
    assert shown(frozenset({7})) == "frozenset({7})" and shown(()) == "()"
    assert shown(Point(1, [2])) == "Point(x=1, y=[2])"
    assert shown((Untold(), 5)).endswith("Untold object>, 5)")
    assert shown(Surrogate()).startswith("caf\\udce9")
    assert shown(uuid.UUID(int=0)) == "UUID('00000000-0000-0000-0000-000000000000')"
    assert shown((10**5000,)) == "(<int of 16,610 bits>,)"
    args = pack_arguments((1, (2,)), {"size": b"3"}, payload_limit=LIMIT).packed
    assert args.repr == "(1, (2,), size=b'3')"


def test_what_is_huge_is_drawn_in_no_time() -> None:
    million = list(range(10**6))
    drawn = portrait.portray({"a": million, "b": bytes(10**8)}, large=True)
    assert "… (1,000,000 in all)" in drawn and "(100,000,000 bytes)" in drawn

    class Slow:
        def __repr__(self) -> str:
            raise AssertionError("a large object's own repr was run")

    assert "Slow object>" in portrait.portray([Slow()], large=True)
    assert portrait.portray(Point(1, million), large=True).startswith("Point(x=1, y=[0, 1, 2")
    assert len(portrait.portray(set(million), large=True)) < 200
    assert len(portrait.portray("x" * 10**8, large=True)) < 300
