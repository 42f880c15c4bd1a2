from __future__ import annotations

import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nasty

from apothic import errors
from apothic.protocol import failures
from apothic.protocol.failures import RemoteTraceback, describe, rebuild
from apothic.protocol.messages import Failure, FailureKind

JOB = SimpleNamespace(job_id="job_0123456789")
# Exceptions that cannot arrive as themselves, and why.
NEVER_THEMSELVES = {
    "raise_06_holds_lock", "raise_07_lock_in_args", "raise_42_own_group",  # a lock
    "raise_31_system_exit", "raise_32_system_exit_text", "raise_33_keyboard_interrupt", "raise_34_generator_exit",
    "raise_35_cancelled", "raise_36_base_only", "raise_37_stop_iteration", "raise_38_stop_async_iteration",
    "raise_41_base_group",  # they would end or confuse the caller
    "raise_25_getattribute_raises",  # nobody could print it
    *(["raise_26_notes_raise"] if sys.version_info < (3, 13) else []),  # nor this one; since 3.13 it prints
    "raise_43_groups_past_recursion",  # pickle itself gives up
}  # fmt: skip


def caught(deed: Callable[[], Any]) -> BaseException:
    try:
        deed()
    except BaseException as error:
        return error
    raise AssertionError(f"{deed} raised nothing")


def over_the_wire(failure: Failure, codec: str) -> Failure:
    """Once through the agent's session, once through HTTP in either codec."""
    there = msgspec.msgpack.decode(msgspec.msgpack.encode(failure), type=Failure)
    lib = msgspec.json if codec == "json" else msgspec.msgpack
    return lib.decode(lib.encode(there), type=Failure)


def said(error: BaseException) -> str | None:
    try:
        return str(error)
    except BaseException:
        return None


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_there_are_sixty_of_them() -> None:
    assert len(nasty.NASTY) == 60


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("deed", nasty.NASTY, ids=lambda deed: deed.__name__)
def test_every_nasty_exception_arrives_with_type_message_and_traceback(deed: Callable[[], None], codec: str) -> None:
    error = caught(deed)

    failure = over_the_wire(describe(error, attempt=2), codec)

    text = said(error)
    assert failure.kind == "user" and failure.attempt == 2 and failure.retriable
    assert failure.type.endswith(type(error).__qualname__)
    if text is None:
        assert "cannot be read" in failure.message
    elif len(text) < 8_000:
        assert failure.message == text.encode("utf-8", "backslashreplace").decode()
    else:
        assert "characters left out" in failure.message and len(failure.message) < 9_000
    assert "nasty.py" in failure.traceback and f"in {deed.__name__}\n" in failure.traceback
    assert len(failure.traceback) < 50_000
    assert len(msgspec.json.encode(failure)) < 200_000

    again = rebuild(failure, JOB)

    printed = shown(again)
    assert isinstance(again, Exception)
    assert f"in {deed.__name__}\n" in printed
    assert failure.type.rpartition(".")[2] in printed
    themselves = type(again) is type(error)
    if deed.__name__ in NEVER_THEMSELVES:
        assert not themselves
    elif failure.payload is not None:
        assert themselves
        if text is not None and deed.__name__ != "raise_59_args_that_refer_back":
            assert said(again) == text
    if not themselves:
        assert isinstance(again, errors.RemoteError) or type(again) is type(error)


@pytest.mark.parametrize("deed", nasty.NASTY, ids=lambda deed: deed.__name__)
def test_every_nasty_exception_is_told_without_pickles(deed: Callable[[], None]) -> None:
    failure = describe(caught(deed), attempt=1)

    again = rebuild(failure, JOB, allow_pickle=False)

    plain = type(again).__module__ == "builtins" and type(again).__name__ == failure.type
    assert plain or type(again) is errors.RemoteError
    assert f"in {deed.__name__}\n" in shown(again)


def test_most_of_them_arrive_as_themselves() -> None:
    themselves = [
        deed.__name__
        for deed in nasty.NASTY
        if type(rebuild(describe(error := caught(deed), attempt=1), JOB)) is type(error)
    ]

    assert len(themselves) >= 38, sorted({deed.__name__ for deed in nasty.NASTY} - set(themselves))


@pytest.mark.parametrize(
    ("deed", "attributes"),
    [
        (nasty.raise_02_two_arguments, {"code": 7, "reason": "two", "args": ("7: two",)}),
        (nasty.raise_03_wraps_its_message, {"args": ("wrapped text",)}),
        (nasty.raise_04_keywords_only, {"code": 4}),
        (nasty.raise_05_no_super_init, {"a": 1, "b": 2}),
        (nasty.raise_22_frozen_dataclass, {"code": 22, "text": "solid"}),
        (nasty.raise_55_unicode_error, {"object": b"\xff", "start": 0, "reason": "odd byte"}),
        (nasty.raise_56_errno_with_own_init, {"errno": 2, "filename": "/nowhere"}),
    ],
)
def test_attributes_travel_with_the_exception(deed: Callable[[], None], attributes: dict[str, Any]) -> None:
    again = rebuild(describe(caught(deed), attempt=1), JOB)

    assert {name: getattr(again, name) for name in attributes} == attributes


def test_members_of_a_group_travel() -> None:
    again = rebuild(describe(caught(nasty.raise_39_group), attempt=1), JOB)

    assert isinstance(again, ExceptionGroup)
    assert [type(member) for member in again.exceptions] == [ValueError, KeyError]


# --- the traceback ----------------------------------------------------------------------------------------------


RUNNERS = {
    "plain": "def run(deed):\n    return deed()\n",
    "asyncio": "import asyncio\ndef run(deed):\n    return asyncio.run(work(deed))\n"
    "async def work(deed):\n    return deed()\n",
    "thread": "from concurrent.futures import ThreadPoolExecutor\ndef run(deed):\n"
    "    with ThreadPoolExecutor(1) as pool:\n        return pool.submit(work, deed).result()\n"
    "def work(deed):\n    return deed()\n",
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_our_frames_are_left_out_and_the_users_stay(tmp_path: Path, runner: str) -> None:
    house, theirs = tmp_path / "house" / "runner.py", tmp_path / "theirs" / "app.py"
    for file, text in ((house, RUNNERS[runner]), (theirs, "def work():\n    return 1 / 0  # here\n")):
        file.parent.mkdir()
        file.write_text(text)
    ours, app = ({"__name__": "x"} for _ in range(2))
    exec(compile(house.read_text(), house, "exec"), ours)
    exec(compile(theirs.read_text(), theirs, "exec"), app)

    error = caught(lambda: ours["run"](app["work"]))
    failure = describe(error, attempt=1, strip_frames_of=(str(house.parent), __file__))

    assert failure.traceback.startswith(
        f'Traceback (most recent call last):\n  File "{theirs}", line 2, in work\n    return 1 / 0  # here\n'
    )
    assert failure.traceback.endswith("ZeroDivisionError: division by zero\n")
    assert failure.traceback.count("  File ") == 1


def test_frames_of_the_import_machinery_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    (tmp_path / "fails_at_import.py").write_text("x = 1\nraise OSError('no disk')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    error = caught(lambda: importlib.import_module("fails_at_import"))
    failure = describe(error, attempt=1, kind="startup", strip_frames_of=(__file__,))

    assert "importlib" not in failure.traceback
    assert 'fails_at_import.py", line 2, in <module>\n' in failure.traceback


def test_the_cause_is_told() -> None:
    failure = describe(caught(nasty.raise_58_library_errors), attempt=1)

    assert failure.cause is not None and failure.cause.startswith("subprocess.CalledProcessError: ")
    assert "json.decoder.JSONDecodeError" in failure.traceback
    assert describe(caught(nasty.raise_01_plain), attempt=1).cause is None


def test_frames_survive_huge_messages_all_along_the_chain() -> None:
    def first() -> None:
        raise RuntimeError("a" * 100_000)

    def second() -> None:
        try:
            first()
        except RuntimeError as error:
            raise LookupError("b" * 100_000) from error

    def third() -> None:
        try:
            second()
        except LookupError as error:
            raise ValueError("c" * 100_000) from error

    failure = describe(caught(third), attempt=1, strip_frames_of=())

    for name in ("in first\n", "in second\n", "in third\n", "RuntimeError: aaa", "LookupError: bbb", "ValueError: ccc"):
        assert name in failure.traceback


def test_an_exception_over_the_limit_has_no_payload() -> None:
    error = caught(nasty.raise_49_huge_attribute)

    assert describe(error, attempt=1).payload is None
    assert describe(error, attempt=1, payload_limit=40_000_000).payload is not None


def test_a_failure_of_ours_is_not_retried() -> None:
    error = caught(nasty.raise_01_plain)

    assert not describe(error, attempt=1, kind="serialization").retriable
    assert describe(error, attempt=1, kind="startup").retriable


# --- rebuilding -------------------------------------------------------------------------------------------------


def test_the_remote_traceback_and_the_job_are_shown() -> None:
    again = rebuild(describe(caught(nasty.raise_01_plain), attempt=3), JOB)

    printed = shown(again)
    assert type(again) is ValueError and str(again) == "plain"
    assert isinstance(again.__cause__, RemoteTraceback)
    assert "in raise_01_plain\n" in printed and 'raise ValueError("plain")' in printed
    assert printed.index("in raise_01_plain") < printed.index("direct cause")
    assert printed.rstrip().endswith("raised by job job_0123456789, attempt 3")
    assert str(pickle.loads(pickle.dumps(again.__cause__))) == str(again.__cause__)


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("timeout", errors.JobTimedOutError),
        ("cancelled", errors.JobCancelledError),
        ("worker_lost", errors.WorkerLostError),
        ("oom", errors.OutOfMemoryError),
        ("startup", errors.JobFailedError),
        ("serialization", errors.JobFailedError),
        ("payload_too_large", errors.JobFailedError),
        ("expired", errors.QueueDeadlineError),
        ("unsatisfiable", errors.JobFailedError),
        ("deadlock", errors.DeadlockError),
    ],
)
def test_each_kind_has_its_class(kind: FailureKind, cls: type[errors.JobError]) -> None:
    failure = Failure(kind=kind, type="ValueError", message="what happened", exit="signal 9")

    again = rebuild(failure, JOB)

    assert type(again) is cls
    assert again.job is JOB and again.message == "what happened"
    assert again.details["kind"] == kind and again.details["exit"] == "signal 9"


def test_every_kind_is_covered() -> None:
    assert set(failures._KINDS) == set(get_args(FailureKind))


def test_the_last_output_is_shown_when_the_process_is_gone() -> None:
    failure = Failure(kind="worker_lost", type="", message="gone", log_tail="one\n\x1b[31mtwo\n")

    printed = shown(rebuild(failure, JOB))

    assert "last output:\n  one\n  \\x1b[31mtwo" in printed


@pytest.mark.parametrize("name", ["os.system", "eval", "builtins.ValueError", "SystemExit", "StopIteration", "object"])
def test_a_stored_name_is_never_looked_up(name: str) -> None:
    again = rebuild(Failure(kind="user", type=name, message="echo pwned"), JOB)

    assert type(again) is errors.RemoteError
    assert again.message == f"{name}: echo pwned" and again.details["type"] == name


def test_every_plain_exception_is_built_from_its_message() -> None:
    for name, cls in failures._PLAIN.items():
        again = rebuild(Failure(kind="user", type=name, message="'text'"), JOB)

        assert type(again) is cls and issubclass(cls, Exception)
        assert str(again) == "'text'"
    for message, key in (("'key'", "key"), ('"it\'s"', "it's"), ("''-''", "''-''"), ("(((1", "(((1"), ("key", "key")):
        assert rebuild(Failure(kind="user", type="KeyError", message=message), JOB).args == (key,)


@pytest.mark.parametrize("thing", [SystemExit(1), KeyboardInterrupt(), StopIteration(), 5, "text", print])
def test_a_payload_that_is_no_exception_is_not_raised(thing: Any) -> None:
    from apothic.protocol import values

    packed = values.pack((thing,) if thing == 5 else thing, payload_limit=10_000)
    value = values.to_wire(packed.packed, binary=False)

    again = rebuild(Failure(kind="user", type="x.Y", message="m", payload=value), JOB)

    assert type(again) is errors.RemoteError


def test_a_payload_that_cannot_be_read_here_says_why() -> None:
    failure = msgspec.structs.replace(
        describe(caught(nasty.raise_02_two_arguments), attempt=1), message="7: two", type="gone.TwoArguments"
    )
    assert failure.payload is not None and failure.payload.header is not None
    header = msgspec.structs.replace(failure.payload.header, modules={"no_such_module_here": "9.1"})
    failure = msgspec.structs.replace(failure, payload=msgspec.structs.replace(failure.payload, header=header))

    again = rebuild(failure, JOB)

    assert type(again) is errors.RemoteError
    assert again.message == "gone.TwoArguments: 7: two" and "no_such_module_here 9.1" in again.hint


def test_it_is_printed_by_an_uncaught_exception(tmp_path: Path) -> None:
    script = tmp_path / "caller.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(nasty.__file__).parent)!r})\n"
        "import nasty\n"
        "from apothic.protocol.failures import describe, rebuild\n"
        "try:\n    nasty.raise_04_keywords_only()\n"
        "except Exception as error:\n    failure = describe(error, attempt=1)\n"
        "raise rebuild(failure, 'job_7')\n"
    )

    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)

    assert ran.returncode == 1
    assert "in raise_04_keywords_only\n" in ran.stderr and "raise KeywordsOnly(code=4)" in ran.stderr
    assert ran.stderr.rstrip().endswith("nasty.KeywordsOnly: code 4\nraised by job job_7")
