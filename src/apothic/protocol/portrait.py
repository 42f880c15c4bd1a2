"""A value drawn for people in at most 1,000 characters: safe, quick and small, whatever the value is."""

from __future__ import annotations

from itertools import islice
from typing import Any

LONGEST = 1_000
_ITEMS = 8
_DEPTH = 3
_TEXT = 120
_INT_BITS = 512
# Their repr is short however large what holds them is.
_SHORT = {"datetime", "uuid", "pathlib"}


def portray(value: Any, *, large: bool) -> str:
    """Draw `value`. Of a `large` one no `__repr__` is run that could take long: its size bounds what that costs."""
    return clip(_draw(value, _DEPTH, large), LONGEST)


def portray_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], *, large: bool) -> str:
    """Draw arguments as they would be written between the parentheses."""
    parts = [_draw(item, _DEPTH, large) for item in islice(args, _ITEMS)]
    parts += [f"{name}={_draw(item, _DEPTH, large)}" for name, item in islice(kwargs.items(), _ITEMS)]
    if len(args) > _ITEMS or len(kwargs) > _ITEMS:
        parts.append("…")
    return clip(f"({', '.join(parts)})", LONGEST)


def clip(text: str, longest: int) -> str:
    """Return `text` as a plain `str` of at most that many characters that every codec can encode."""
    if str.__len__(text) > longest:
        text = str.__getitem__(text, slice(0, longest - 1)) + "…"
    # Lone surrogates (undecodable file names, say) are legal in str and illegal in JSON and MessagePack.
    clean = str.encode(text, "utf-8", "backslashreplace").decode()
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def _draw(value: Any, depth: int, large: bool) -> str:
    try:
        return _draw_plain(value, depth, large) or _draw_object(value, depth, large)
    except (Exception, SystemExit):  # a __repr__ may raise anything
        return f"<{_kind(value)} object>"


def _draw_plain(value: Any, depth: int, large: bool) -> str:
    kind = type(value)
    if value is None or kind in (bool, float, complex):
        return repr(value)
    if kind is int:
        return repr(value) if value.bit_length() <= _INT_BITS else f"<int of {value.bit_length():,} bits>"
    if kind is str:
        return repr(value) if len(value) <= _TEXT else f"{value[:_TEXT]!r}… ({len(value):,} characters)"
    if kind in (bytes, bytearray):
        return repr(value) if len(value) <= _TEXT // 2 else f"{value[: _TEXT // 2]!r}… ({len(value):,} bytes)"
    if kind is dict:
        inside = [f"{_draw(k, depth - 1, large)}: {_draw(v, depth - 1, large)}" for k, v in _some(value.items(), depth)]
        return f"{{{_joined(inside, len(value))}}}"
    if kind in (list, tuple, set, frozenset):
        inside = [_draw(item, depth - 1, large) for item in _some(value, depth)]
        text = _joined(inside, len(value))
        if kind is list:
            return f"[{text}]"
        if kind is tuple:
            return f"({text},)" if len(value) == 1 else f"({text})"
        braces = f"{{{text}}}" if value else ""
        return braces if kind is set and value else f"{kind.__name__}({braces})"
    return ""


def _draw_object(value: Any, depth: int, large: bool) -> str:
    kind = type(value)
    if not large or kind.__module__ in _SHORT:
        return clip(repr(value), LONGEST)
    if hasattr(kind, "__dataclass_fields__"):
        names = _some(kind.__dataclass_fields__, depth)
        inside = [f"{name}={_draw(getattr(value, name), depth - 1, large)}" for name in names]
        return f"{kind.__qualname__}({_joined(inside, len(kind.__dataclass_fields__))})"
    if hasattr(kind, "shape") and hasattr(kind, "dtype"):
        return f"<{_kind(value)} of shape {value.shape}, {value.dtype}>"
    return f"<{_kind(value)} object>"


def _some(items: Any, depth: int) -> list[Any]:
    return list(islice(items, _ITEMS)) if depth > 0 else []


def _joined(inside: list[str], length: int) -> str:
    return ", ".join(inside if len(inside) == length else [*inside, f"… ({length:,} in all)"])


def _kind(value: Any) -> str:
    try:
        kind = type(value)
        return f"{kind.__module__}.{kind.__qualname__}"[:200]
    except Exception:
        return "unnamed"
