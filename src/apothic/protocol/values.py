"""A Python value ↔ bytes: JSON when it comes back equal and of the same types, else a pickle; inline, or in a file.

The control plane uses `to_wire`, `from_wire` and `plain_arguments`; they never unpickle, nor does their import.
"""

from __future__ import annotations

import binascii
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec

from apothic.errors import InvalidRequestError, SerializationError
from apothic.protocol import pickling
from apothic.protocol.messages import PickleHeader, Value
from apothic.protocol.pickling import TRAVELS, locate, type_name
from apothic.protocol.portrait import LONGEST, clip, portray, portray_arguments
from apothic.protocol.session import Packed
from apothic.protocol.spool import Spool, too_large

__all__ = [
    "INLINE_LIMIT", "TRAVELS", "Envelope", "from_wire", "locate", "pack", "pack_arguments", "plain_arguments",
    "to_wire", "unpack", "unpack_arguments", "unpack_wire",
]  # fmt: skip

INLINE_LIMIT = 64 * 1024
JSON_INT = 2**53  # past it, JavaScript and jq read another number than was written
JSON_DEPTH = 128  # every JSON reader manages this; the stdlib's gives up near 1,000
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Envelope:
    """A packed value and, when `packed.sha256` is set, the `file` with its bytes, which the owner deletes."""

    packed: Packed
    file: Path | None = None

    def discard(self) -> None:
        """Delete the file, if there is one."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)


# --- Python value → bytes ---------------------------------------------------------------------------------------


def pack(
    value: Any,
    *,
    payload_limit: int,
    inline_limit: int = INLINE_LIMIT,
    what: str = "value",
    allow_pickle: bool = True,
    spool_dir: Path | None = None,
) -> Envelope:
    """Pack one value; past `inline_limit` bytes into a file in `spool_dir`, without a second copy in memory.

    Raises `PayloadTooLargeError` past `payload_limit` bytes and `SerializationError` for what cannot be packed, or not
    as JSON when `allow_pickle` is false; both name `what`. No file is left behind by an error.

    >>> pack([1, "two"], payload_limit=1024).packed.data
    b'[1,"two"]'
    """
    text = _json_text(value, payload_limit, inline_limit, what, allow_pickle)
    if text is not None and len(text) <= min(inline_limit, payload_limit):
        return Envelope(Packed(encoding="json", data=text, size=len(text)))  # most items of a stream end here
    spool = Spool(keep=inline_limit, limit=payload_limit, what=what, directory=spool_dir)
    try:
        if text is not None:
            spool.write(text)
            return _envelope("json", spool)
        header = pickling.dump(value, spool, what)
        return _envelope("pickle", spool, header, portray(value, large=spool.size > inline_limit))
    except BaseException:
        spool.discard()
        raise


def pack_arguments(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    payload_limit: int,
    inline_limit: int = INLINE_LIMIT,
    what: str = "function",
    allow_pickle: bool = True,
    spool_dir: Path | None = None,
    whole: bool = False,
) -> Envelope:
    """Pack the arguments of one job. `what` is the function's name; errors say which of its arguments it was.

    As JSON they are `{"args": [...], "kwargs": {...}}`, as a pickle `(args, kwargs)`; `whole` is that of
    `pickling.dump`. Raises what `pack` raises.
    """
    positional, named = tuple(args), dict(kwargs)
    all_of_them = f"the arguments of {what}"
    spool = Spool(keep=inline_limit, limit=payload_limit, what=all_of_them, directory=spool_dir)
    try:
        form = {"args": list(positional), "kwargs": named}
        text = _json_text(form, payload_limit, inline_limit, all_of_them, allow_pickle)
        if text is not None:
            spool.write(text)
            return _envelope("json", spool)
        try:
            header = pickling.dump((positional, named), spool, all_of_them, whole=whole)
        except SerializationError:
            _blame(positional, named, what, whole)
            raise
        large = spool.size > inline_limit
        return _envelope("pickle", spool, header, portray_arguments(positional, named, large=large))
    except BaseException:
        spool.discard()
        raise


def _envelope(encoding: Any, spool: Spool, header: PickleHeader | None = None, shown: str | None = None) -> Envelope:
    spool.finish()
    if spool.file is None:
        packed = Packed(encoding=encoding, data=spool.data(), size=spool.size, header=header, repr=shown)
    else:
        packed = Packed(encoding=encoding, sha256=spool.sha256(), size=spool.size, header=header, repr=shown)
    return Envelope(packed, spool.file)


class _Nowhere:
    def write(self, data: Any, /) -> int:
        return len(data) if type(data) is bytes else memoryview(data).nbytes


def _blame(args: tuple[Any, ...], kwargs: dict[str, Any], what: str, whole: bool) -> None:
    # Only after a failure, so pickling each argument once more costs nobody who is well.
    named = [(f"argument {place} of {what}", item) for place, item in enumerate(args)]
    named += [(f"argument {name!r} of {what}", item) for name, item in kwargs.items()]
    for place, item in named:
        pickling.dump(item, _Nowhere(), place, whole=whole)


# --- JSON, when it survives -------------------------------------------------------------------------------------


def _json_text(value: Any, payload_limit: int, inline_limit: int, what: str, allow_pickle: bool) -> bytes | None:
    """Return `value` as JSON if it comes back from it unchanged, else `None`."""
    limit = min(inline_limit, payload_limit) if allow_pickle else payload_limit
    survey = _Survey(limit)
    obstacle = survey.obstacle(value, JSON_DEPTH)
    text = b""
    if obstacle is None:
        try:
            text = msgspec.json.encode(value)
        except UnicodeEncodeError:
            obstacle = ("", "text with a lone surrogate")
    if obstacle is None and (len(text) <= limit or not allow_pickle):
        return text
    if allow_pickle:
        return None
    if survey.spent > limit:
        raise too_large(survey.spent, limit, what)
    path, reason = obstacle or ("", "")
    raise SerializationError(
        f"cannot pack {what} as JSON: {reason}{f' at {path}' if path else ''}",
        hint="use plain dicts, lists, text and numbers, or a client that allows pickles",
    )


class _Survey:
    """Walks a value and tells what keeps it from JSON. `spent` never exceeds the bytes that the JSON would have."""

    __slots__ = ("limit", "spent")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.spent = 0

    def obstacle(self, value: Any, depth: int) -> tuple[str, str] | None:
        """Return where the first obstacle is and what it is, or None. Only exact types come back the same."""
        kind = type(value)
        self.spent += 1
        if value is None or kind is bool:
            pass
        elif kind is str:
            self.spent += len(value)
        elif kind is int:
            if not -JSON_INT <= value <= JSON_INT:
                return "", "an int beyond 2**53"
        elif kind is float:
            if not isfinite(value):
                return "", f"the float {value}"
        elif kind is list or kind is dict:
            if depth == 0:
                return "", f"nesting deeper than {JSON_DEPTH} levels"
            return self._in_list(value, depth) if kind is list else self._in_dict(value, depth)
        else:
            name = type_name(kind)
            return "", f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name} object"
        return ("", "too large") if self.spent > self.limit else None

    def _in_list(self, value: list[Any], depth: int) -> tuple[str, str] | None:
        if self.spent + len(value) > self.limit:
            self.spent += len(value)
            return "", "too large"
        for place, item in enumerate(value):
            found = self.obstacle(item, depth - 1)
            if found is not None:
                return f"[{place}]{found[0]}", found[1]
        return None

    def _in_dict(self, value: dict[Any, Any], depth: int) -> tuple[str, str] | None:
        if self.spent + len(value) > self.limit:
            self.spent += len(value)
            return "", "too large"
        for key, item in value.items():
            if type(key) is not str:
                return "", f"a dict key of type {type_name(type(key))}"
            self.spent += len(key)
            found = self.obstacle(item, depth - 1)
            if found is not None:
                return f"[{clip(key, 40)!r}]{found[0]}", found[1]
        return None


# --- bytes → Python value ---------------------------------------------------------------------------------------


def unpack(packed: Packed, file: Path | None = None, *, allow_pickle: bool = True, what: str = "value") -> Any:
    """Return the value. `file` has the bytes when `packed` names a blob; it is read, not deleted.

    Raises `SerializationError` when it cannot be read here, or is a pickle and `allow_pickle` is false.
    """
    if packed.encoding == "pickle" and not allow_pickle:
        raise SerializationError(
            f"{what} is a pickle, and pickles are not allowed here",
            hint="have it sent as plain JSON data, or allow pickles from whoever made it",
        )
    if packed.data is None and file is None:
        raise SerializationError(
            f"the bytes of {what} are in the blob {packed.sha256} and were not fetched", hint="fetch the blob first"
        )
    if packed.encoding == "json":
        return _read_json(packed.data if packed.data is not None else _bytes_of(file, what), what)
    if packed.data is not None:
        return pickling.load(io.BytesIO(packed.data), packed.header, what)
    assert file is not None
    try:
        source = file.open("rb")
    except OSError as error:
        raise _unreadable(what, error) from error
    with source:
        return pickling.load(source, packed.header, what)


def unpack_arguments(
    packed: Packed, file: Path | None = None, *, allow_pickle: bool = True, what: str = "the arguments"
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return `(args, kwargs)`. Raises `SerializationError` when it is anything else, and what `unpack` raises."""
    value = unpack(packed, file, allow_pickle=allow_pickle, what=what)
    if packed.encoding == "json" and isinstance(value, dict) and value.keys() <= {"args", "kwargs"}:
        args, kwargs = value.get("args", []), value.get("kwargs", {})
        if isinstance(args, list) and isinstance(kwargs, dict):
            return tuple(args), kwargs
    elif packed.encoding == "pickle" and type(value) is tuple and len(value) == 2:
        args, kwargs = value
        if type(args) is tuple and type(kwargs) is dict and all(type(name) is str for name in kwargs):
            return args, kwargs
    raise SerializationError(
        f"{what} are not the arguments of a function",
        hint='as JSON they are {"args": [...], "kwargs": {...}}, as a pickle the tuple (args, kwargs)',
    )


def unpack_wire(value: Value, file: Path | None = None, *, allow_pickle: bool = True, what: str = "value") -> Any:
    """Return the value of a message as it was decoded. Raises what `from_wire` and `unpack` raise."""
    if value.encoding == "json" and value.sha256 is None:
        return value.data  # the codec has made Python of it already
    return unpack(from_wire(value), file, allow_pickle=allow_pickle, what=what)


def _bytes_of(file: Path | None, what: str) -> bytes:
    assert file is not None
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unreadable(what, error) from error


def _unreadable(what: str, error: OSError) -> SerializationError:
    return SerializationError(f"the bytes of {what} cannot be read: {error}", hint="fetch the blob again")


def _read_json(data: bytes, what: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise SerializationError(f"{what} is not valid JSON: {error}", hint="have it packed again") from error


# --- stored form ↔ message --------------------------------------------------------------------------------------


def to_wire(packed: Packed, *, binary: bool) -> Value:
    """Make the message form: JSON as plain data; pickle bytes as they are for MessagePack (`binary`), else base64.

    Raises `SerializationError` when stored JSON is none.
    """
    header, shown = packed.header, packed.repr
    if packed.data is None:
        return Value(encoding=packed.encoding, sha256=packed.sha256, size=packed.size, header=header, repr=shown)
    if packed.encoding == "json":
        return Value(encoding="json", data=_read_json(packed.data, "a stored value"))
    data = packed.data if binary else binascii.b2a_base64(packed.data, newline=False).decode("ascii")
    return Value(encoding="pickle", data=data, header=header, repr=shown)


def from_wire(value: Value) -> Packed:
    """Make the stored form, checked. Pickle data may be bytes or base64; nobody looks into it.

    Raises `InvalidRequestError` that says what is wrong with the value.
    """
    shown = clip(value.repr, LONGEST) if value.repr is not None else None
    if value.sha256 is not None:
        if value.data is not None:
            raise _garbage("a value has either data or sha256, not both")
        if _SHA256.fullmatch(value.sha256) is None:
            raise _garbage("a value's sha256 is 64 lower-case hex digits")
        if value.size is None or value.size < 0:
            raise _garbage("a value that names a blob tells its size in bytes")
        return Packed(encoding=value.encoding, sha256=value.sha256, size=value.size, header=value.header, repr=shown)
    if value.encoding == "json":
        text = _plain_json(value.data)
        return Packed(encoding="json", data=text, size=len(text))
    data = _pickle_bytes(value.data)
    return Packed(encoding="pickle", data=data, size=len(data), header=value.header, repr=shown)


def plain_arguments(args: list[Any] | None, kwargs: dict[str, Any] | None) -> Packed:
    """Make the stored form of bare `args` and `kwargs`. Raises `InvalidRequestError` for what is no JSON."""
    return from_wire(Value(encoding="json", data={"args": args or [], "kwargs": kwargs or {}}))


def _pickle_bytes(data: Any) -> bytes:
    if isinstance(data, str):
        try:
            data = binascii.a2b_base64(data, strict_mode=True)
        except ValueError as error:
            raise _garbage(f"a pickle's data is base64 text: {error}") from error
    if not isinstance(data, bytes) or not data:
        raise _garbage("a pickle's data is base64 text in JSON and bytes in MessagePack, and never empty")
    return data


def _plain_json(data: Any) -> bytes:
    # MessagePack can bring more than JSON has: bytes, keys that are no text (json.dumps would quietly rename them),
    # timestamps, infinities.
    left = [(data, JSON_DEPTH)]
    while left:
        item, depth = left.pop()
        if isinstance(item, (dict, list)) and depth == 0:
            raise _garbage(f"JSON data is nested deeper than {JSON_DEPTH} levels")
        if isinstance(item, dict):
            if not all(type(key) is str for key in item):
                raise _garbage("JSON data has an object whose keys are not all text")
            left += [(inside, depth - 1) for inside in item.values()]
        elif isinstance(item, list):
            left += [(inside, depth - 1) for inside in item]
        elif not (item is None or type(item) in (str, int, float, bool)):
            raise _garbage(f"JSON data cannot hold {type(item).__name__}")
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:  # NaN, an infinity, a lone surrogate, an int of thousands of digits
        raise _garbage(f"JSON data cannot be kept: {error}") from error


def _garbage(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, hint="see Value in /openapi.json")
