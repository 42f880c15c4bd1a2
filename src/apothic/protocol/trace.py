"""What an exception says, as text: type, message, traceback. Capped, and safe with exceptions that misbehave."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

from apothic.errors import ApothicError
from apothic.protocol.pickling import type_name

MESSAGE_LIMIT = 8_000  # characters
TRACE_LIMIT = 48_000
_FRAMES = 1_000  # CPython's own recursion limit; past it the outermost tenth and the innermost half are formatted
_LINE_LIMIT = 4_000  # a message inside a traceback, where it shares room with the frames
_CHAIN = 500  # exceptions looked at in one tree

_STDLIB = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(traceback.__file__).parent))
_PACKAGES = ("site-packages", "dist-packages")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def name_of(kind: type) -> str:
    """Return the type's name: builtins bare, others with their module; also when the type hides it."""
    try:
        return _clean(type_name(kind))[:500]
    except Exception:
        return _clean(type.__dict__["__name__"].__get__(kind))[:500]


def message_of(exc: BaseException) -> str:
    """Return `str(exc)`, cut with a note past 8,000 characters; what can be told when it raises.

    Of an error of ours only the message: its hint is for whoever caught it.
    """
    try:
        text = str(exc.message if isinstance(exc, ApothicError) else exc)
    except BaseException as error:
        text = f"<its message cannot be read: __str__ raised {name_of(type(error))}>"
    return cut(text, MESSAGE_LIMIT)


def cut(text: str, longest: int) -> str:
    """Return the beginning and the end of `text` in about that many characters, with a note of what is missing."""
    length = str.__len__(text)
    if length <= longest:
        return _clean(text)
    half = longest // 2
    head, tail = str.__getitem__(text, slice(0, half)), str.__getitem__(text, slice(length - half, length))
    return f"{_clean(head)}\n… ({length - 2 * half:,} characters left out) …\n{_clean(tail)}"


def plain_text(text: str) -> str:
    """Return `text` with control characters made visible: what comes from elsewhere may not steer a terminal."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def format_trace(exc: BaseException, ours: tuple[str, ...]) -> str:
    """Return the traceback with its chain as Python prints it, without the frames of `ours` that lead to the user's."""
    try:
        text = _format(exc, ours)
    except BaseException:  # a __notes__ that raises, groups nested past the recursion limit
        text = _format_simply(exc, ours)
    return cut(text, TRACE_LIMIT)


def _format(exc: BaseException, ours: tuple[str, ...]) -> str:
    depth = _depth(exc.__traceback__)
    limit = -_FRAMES // 2 if depth > _FRAMES else None
    told = traceback.TracebackException(type(exc), exc, exc.__traceback__, limit=limit, compact=True)
    if limit is not None:
        told.stack = _bridged(exc.__traceback__, told.stack, depth)
    left, seen = [told], 0
    while left and seen < _CHAIN:
        one = left.pop()
        seen += 1
        one.stack = _stripped(one.stack, ours)
        # The only way to keep a message of megabytes from pushing the frames out of the text.
        message = vars(one).get("_str")
        if isinstance(message, str) and len(message) > _LINE_LIMIT:
            vars(one)["_str"] = cut(message, _LINE_LIMIT)
        left += [other for other in (one.__cause__, one.__context__) if other is not None]
        left += getattr(one, "exceptions", None) or []
    return "".join(told.format())


def _format_simply(exc: BaseException, ours: tuple[str, ...]) -> str:
    frames = traceback.StackSummary.extract(traceback.walk_tb(exc.__traceback__), limit=_FRAMES // 2)
    lines = "".join(_stripped(frames, ours).format())
    return f"Traceback (most recent call last):\n{lines}{name_of(type(exc))}: {message_of(exc)}\n"


def _bridged(tb: TracebackType | None, inner: traceback.StackSummary, depth: int) -> traceback.StackSummary:
    outer = traceback.StackSummary.extract(traceback.walk_tb(tb), limit=_FRAMES // 10)
    gap = traceback.FrameSummary(f"… {depth - len(outer) - len(inner):,} frames left out …", 0, "…", lookup_line=False)
    return traceback.StackSummary.from_list([*outer, gap, *inner])


def _depth(tb: TracebackType | None) -> int:
    depth = 0
    while tb is not None:
        depth, tb = depth + 1, tb.tb_next
    return depth


def _stripped(stack: traceback.StackSummary, ours: tuple[str, ...]) -> traceback.StackSummary:
    """Drop what leads from us to the user: our frames, those of the library between them, the import machinery."""
    drop = 0
    for place, frame in enumerate(stack):
        if _below(frame.filename, ours):
            drop = place + 1
        elif not _is_library(frame.filename):
            break
    user = drop
    while drop and user < len(stack) and "importlib" in stack[user].filename and _is_library(stack[user].filename):
        user += 1
    return traceback.StackSummary.from_list(stack[user if user < len(stack) else drop :])


def _below(filename: str, folders: tuple[str, ...]) -> bool:
    return any(filename.startswith(f"{folder}/") or filename == folder for folder in folders)


def _is_library(filename: str) -> bool:
    if filename.startswith("<frozen "):
        return True
    return _below(filename, _STDLIB) and not any(f"/{name}/" in filename for name in _PACKAGES)


def _clean(text: str) -> str:
    # Lone surrogates are legal in str and in no codec; str.encode also makes a plain str of a subclass.
    return str.encode(text, "utf-8", "backslashreplace").decode()
