"""Sixty exceptions that are hard to carry from one process to another.

Standard library only, so that an app may hold this file. Each `raise_NN_name` raises one; `NASTY` lists them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import zipfile
from collections.abc import Callable
from typing import Any, NoReturn


class TwoArguments(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code, self.reason = code, reason


class Wraps(Exception):
    def __init__(self, what: str) -> None:
        super().__init__(f"wrapped {what}")


class KeywordsOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class NoSuperInit(Exception):
    def __init__(self, a: int, b: int) -> None:
        self.a, self.b = a, b

    def __str__(self) -> str:
        return f"{self.a} is not {self.b}"


class HoldsLock(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class LockInArgs(Exception):
    pass


class StrRaises(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class ReprRaises(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr for you")


class StrExits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class StrIsNoText(Exception):
    def __str__(self) -> Any:
        return 42


class ReduceRaises(Exception):
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("never pickled")


class ReduceLies(Exception):
    def __reduce__(self) -> Any:
        return str, ("not an exception at all",)


class ReduceOther(Exception):
    def __reduce__(self) -> Any:
        return ValueError, ("quite another",)


class ReduceExits(Exception):
    def __reduce__(self) -> NoReturn:
        sys.exit("in reduce")


class SetstateRaises(Exception):
    def __setstate__(self, state: Any) -> NoReturn:
        raise RuntimeError("never read back")


class InitExits(Exception):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if not args:
            sys.exit("in init")

    def __reduce__(self) -> Any:
        return type(self), ()


class Meta(type):
    def __repr__(cls) -> str:
        raise RuntimeError("the class has no repr")


class OddClass(Exception, metaclass=Meta):
    pass


class HiddenModule(Exception):
    __module__ = None  # type: ignore[assignment]


class OtherModule(Exception):
    __module__ = "no.such.module"


class ClaimsBuiltin(Exception):
    __module__, __qualname__ = "builtins", "eval"


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int
    text: str

    def __str__(self) -> str:
        return f"frozen {self.code} {self.text}"


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__(f"slotted {code}")
        self.code = code


class SetattrRaises(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} cannot be set")


class GetattrRaises(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name in ("__notes__", "__dict__", "__suppress_context__", "args"):
            raise RuntimeError(f"{name} is private")
        return super().__getattribute__(name)


class NotesRaise(Exception):
    @property
    def __notes__(self) -> Any:
        raise RuntimeError("no notes")


class EqRaises(Exception):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    def __hash__(self) -> int:
        raise RuntimeError("not hashable")


class CustomNew(Exception):
    def __new__(cls, *args: Any) -> CustomNew:
        if len(args) != 2:
            raise TypeError("two arguments, please")
        return super().__new__(cls, *args)


class BaseOnly(BaseException):
    pass


class ErrnoLike(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "gone missing", path)


class Decodes(UnicodeDecodeError):
    def __init__(self, data: bytes) -> None:
        super().__init__("utf-8", data, 0, 1, "odd byte")


class OwnGroup(ExceptionGroup[Exception]):
    def derive(self, excs: Any) -> OwnGroup:
        return OwnGroup(self.message, excs)


def raise_01_plain() -> None:
    raise ValueError("plain")


def raise_02_two_arguments() -> None:
    raise TwoArguments(7, "two")


def raise_03_wraps_its_message() -> None:
    raise Wraps("text")


def raise_04_keywords_only() -> None:
    raise KeywordsOnly(code=4)


def raise_05_no_super_init() -> None:
    raise NoSuperInit(1, 2)


def raise_06_holds_lock() -> None:
    raise HoldsLock("locked")


def raise_07_lock_in_args() -> None:
    raise LockInArgs("a lock", threading.Lock())


def raise_08_str_raises() -> None:
    raise StrRaises("unreadable")


def raise_09_repr_raises() -> None:
    raise ReprRaises("readable")


def raise_10_str_exits() -> None:
    raise StrExits("leaves")


def raise_11_str_is_no_text() -> None:
    raise StrIsNoText("number")


def raise_12_reduce_raises() -> None:
    raise ReduceRaises("stays")


def raise_13_reduce_lies() -> None:
    raise ReduceLies("lies")


def raise_14_reduce_other() -> None:
    raise ReduceOther("other")


def raise_15_reduce_exits() -> None:
    raise ReduceExits("exits")


def raise_16_setstate_raises() -> None:
    error = SetstateRaises("state")
    error.extra = 1  # type: ignore[attr-defined]
    raise error


def raise_17_init_exits_on_reading() -> None:
    raise InitExits("once")


def raise_18_class_without_repr() -> None:
    raise OddClass("odd")


def raise_19_hidden_module() -> None:
    raise HiddenModule("hidden")


def raise_20_module_that_is_not() -> None:
    raise OtherModule("elsewhere")


def raise_21_claims_to_be_builtin() -> None:
    raise ClaimsBuiltin("__import__('os').abort()")


def raise_22_frozen_dataclass() -> None:
    raise Frozen(22, "solid")


def raise_23_slotted() -> None:
    raise Slotted(23)


def raise_24_setattr_raises() -> None:
    raise SetattrRaises("immutable")


def raise_25_getattribute_raises() -> None:
    raise GetattrRaises("secretive")


def raise_26_notes_raise() -> None:
    raise NotesRaise("without notes")


def raise_27_eq_and_hash_raise() -> None:
    raise EqRaises("incomparable")


def raise_28_custom_new() -> None:
    raise CustomNew("a", "b")


def raise_29_local_class() -> None:
    class Local(Exception):
        pass

    raise Local("here only")


def raise_30_made_by_type() -> None:
    raise type("Made", (Exception,), {"__init__": lambda self, **kw: None})(a=1)


def raise_31_system_exit() -> None:
    sys.exit(31)


def raise_32_system_exit_text() -> None:
    raise SystemExit("goodbye")


def raise_33_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


def raise_34_generator_exit() -> None:
    raise GeneratorExit("closing")


def raise_35_cancelled() -> None:
    raise asyncio.CancelledError("from inside")


def raise_36_base_only() -> None:
    raise BaseOnly("not an Exception")


def raise_37_stop_iteration() -> None:
    raise StopIteration("a value")


def raise_38_stop_async_iteration() -> None:
    raise StopAsyncIteration("async")


def raise_39_group() -> None:
    raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])


def raise_40_nested_groups() -> None:
    inner: Exception = TwoArguments(40, "innermost")
    for level in range(12):
        inner = ExceptionGroup(f"level {level}", [inner, OSError(level, "beside")])
    raise inner


def raise_41_base_group() -> None:
    raise BaseExceptionGroup("with an exit", [SystemExit(1), ValueError("beside it")])


def raise_42_own_group() -> None:
    raise OwnGroup("mine", [HoldsLock("inside")])


def raise_43_groups_past_recursion() -> None:
    inner: Exception = ValueError("deep")
    for _ in range(3_000):
        inner = ExceptionGroup("down", [inner])
    raise inner


def raise_44_own_cause() -> None:
    error = ValueError("because of myself")
    error.__cause__ = error
    raise error


def raise_45_circle_of_contexts() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__context__, second.__context__ = second, first
    raise first


def raise_46_long_chain() -> None:
    last: Exception | None = None
    for step in range(2_000):
        following = ValueError(f"step {step}")
        following.__cause__ = last
        last = following
    assert last is not None
    raise last


def raise_47_cause_that_cannot_be_read() -> None:
    raise ValueError("readable") from StrRaises("hidden")


def raise_48_huge_message() -> None:
    raise ValueError("x" * 20_000_000)


def raise_49_huge_attribute() -> None:
    error = ValueError("light text")
    error.baggage = bytes(30_000_000)  # type: ignore[attr-defined]
    raise error


def raise_50_huge_cause() -> None:
    raise ValueError("small") from RuntimeError("y" * 5_000_000)


def raise_51_recursion() -> None:
    def down() -> None:
        down()

    down()


def raise_52_thousands_of_frames() -> None:
    def even(left: int) -> None:
        if left == 0:
            raise ValueError("at the bottom")
        odd(left - 1)

    def odd(left: int) -> None:
        even(left - 1)

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        even(6_000)
    finally:
        sys.setrecursionlimit(before)


def raise_53_lone_surrogate() -> None:
    raise OSError(2, "No such file", os.fsdecode(b"caf\xe9"))


def raise_54_control_characters() -> None:
    raise ValueError("\x1b[2Jwiped\x00\r\nand on")


def raise_55_unicode_error() -> None:
    raise Decodes(b"\xff")


def raise_56_errno_with_own_init() -> None:
    raise ErrnoLike("/nowhere")


def raise_57_syntax() -> None:
    compile("def f(:\n  pass", "typed.py", "exec")


def raise_58_library_errors() -> None:
    try:
        json.loads("{broken")
    except json.JSONDecodeError as error:
        try:
            raise subprocess.CalledProcessError(3, ["ls", "RED"], b"out", b"err") from error
        except subprocess.CalledProcessError as second:
            raise urllib.error.HTTPError("http://x", 404, "Not Found", None, None) from second  # type: ignore[arg-type]


def raise_59_args_that_refer_back() -> None:
    error = ValueError("round")
    error.args = ("round", error)
    error.myself = error  # type: ignore[attr-defined]
    error.add_note("and noted \ud800")
    raise error


def raise_60_from_a_thread_and_a_pool() -> None:
    def work() -> None:
        try:
            sqlite3.connect(":memory:").execute("SELECT nothing FROM nowhere")
        except sqlite3.Error as error:
            raise zipfile.BadZipFile("in a pool") from error

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


NASTY: list[Callable[[], None]] = [deed for name, deed in sorted(globals().items()) if name.startswith("raise_")]
