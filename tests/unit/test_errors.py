"""The tree of errors: codes, two-line messages, and the way over the wire and through pickle."""

from __future__ import annotations

import pickle

import msgspec
import pytest

from apothic import errors
from apothic.errors import ApothicError, family, from_wire
from apothic.protocol.messages import ErrorBody

ALL = list(family())
DETAILS = {"size": 5, "limit": 3, "what": "an item", "url": "http://h", "kind": "user"}


def named(classes: list[type[ApothicError]]) -> list[str]:
    return [cls.__name__ for cls in classes]


def test_codes_are_distinct_and_statuses_are_errors() -> None:
    codes = [cls.code for cls in ALL]
    assert len(set(codes)) == len(codes) == len(ALL)
    assert all(400 <= cls.http <= 599 for cls in ALL)
    assert all(code == code.lower() and code.replace("_", "").isalpha() for code in codes)


@pytest.mark.parametrize("cls", ALL, ids=named(ALL))
def test_what_happened_then_what_to_do(cls: type[ApothicError]) -> None:
    error = cls("it broke", hint="mend it", details=dict(DETAILS))
    assert str(error) == "it broke\nhint: mend it"
    assert (error.message, error.hint) == ("it broke", "mend it")
    assert all(DETAILS[name] == value for name, value in error.details.items())


@pytest.mark.parametrize("cls", ALL, ids=named(ALL))
def test_without_a_message_the_class_says_what_it_is(cls: type[ApothicError]) -> None:
    error = cls()
    assert error.message and "\n" not in error.message
    assert cls("m").message == "m"
    assert cls.__name__ in errors.__doc__  # the tree of the module's docstring


@pytest.mark.parametrize("cls", ALL, ids=named(ALL))
def test_over_the_wire(cls: type[ApothicError]) -> None:
    error = cls("it broke", hint="mend it", details=dict(DETAILS))
    body = ErrorBody(code=error.code, message=error.message, hint=error.hint, details=error.details)
    for codec in (msgspec.json, msgspec.msgpack):
        told = codec.decode(codec.encode(body), type=ErrorBody)
        back = from_wire(told.code, told.message, told.hint, told.details)
        assert type(back) is cls
        assert (str(back), back.details) == (str(error), error.details)
        for name in ("size", "limit", "what", "url"):
            assert getattr(back, name, None) == getattr(error, name, None)


@pytest.mark.parametrize("cls", ALL, ids=named(ALL))
def test_through_pickle(cls: type[ApothicError]) -> None:
    error = cls("it broke", hint="mend it", details=dict(DETAILS))
    error.extra = "kept"  # type: ignore[attr-defined]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(error, protocol))
        assert type(back) is cls
        assert (str(back), back.args, back.__dict__) == (str(error), error.args, error.__dict__)


def test_an_unknown_code_is_still_an_error() -> None:
    error = from_wire("from_the_future", "m", "h", {"a": 1})
    assert type(error) is ApothicError
    assert error.details == {"code": "from_the_future", "a": 1}


def test_builtin_kin() -> None:
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.InvalidRequestError, ValueError)
    assert issubclass(errors.WaitTimeoutError, TimeoutError)


def test_a_payload_error_names_size_limit_and_what() -> None:
    error = errors.PayloadTooLargeError(size=5000, limit=1000, what="the result")
    assert error.message == "the result has 5,000 bytes, over the limit of 1,000"
    assert error.details == {"size": 5000, "limit": 1000, "what": "the result"}
    assert error.hint


def test_waiting_errors_have_their_jobs() -> None:
    assert errors.WaitTimeoutError(job=1).jobs == [1]
    assert errors.WaitTimeoutError(jobs=[1, 2]).jobs == [1, 2]
    assert errors.WaitTimeoutError().jobs == []
