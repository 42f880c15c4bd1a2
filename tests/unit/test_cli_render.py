"""What reaches a terminal, and what must not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apothic.cli.render import Screen, clean, shown_value, table, when
from apothic.errors import JobFailedError, NotFoundError, PayloadTooLargeError
from apothic.protocol.failures import RemoteTraceback
from apothic.protocol.messages import Failure, LogLine, Value


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r\x1b\\x", "x"),
        ("\x1bcreset", "reset"),
        ("\x9b2Jclear", "clear"),
        ("a\x00b\x08c\x7fd\x85e", "abcde"),
        ("10%\r20%", "10% 20%"),
        ("a\r\nb\tc\n", "a\nb\tc\n"),
        ("\u202eevil\u202c", "evil"),
        ("\x1b]never ended", ""),
        ("größe 漢字 🙂", "größe 漢字 🙂"),
    ],
)
def test_control_sequences_are_taken_out(raw: str, shown: str) -> None:
    assert clean(raw) == shown


@given(st.text(alphabet=st.characters(), max_size=60))
def test_nothing_that_steers_a_terminal_is_left(raw: str) -> None:
    left = clean(raw)
    assert not any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 for c in left)
    assert clean(left) == left


def test_an_error_is_a_line_of_what_and_a_line_of_hint(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().error(NotFoundError("there is no app 'shpo'\nreally", hint="apothic app list shows them"))
    out, err = capsys.readouterr()
    assert (out, err) == ("", "really\nerror: there is no app 'shpo'\nhint: apothic app list shows them\n")


def test_every_error_has_a_hint_and_json_has_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.as_json = True
    screen.error(PayloadTooLargeError(size=5, limit=3, what="result"))
    out, err = capsys.readouterr()
    told = json.loads(out)["error"]
    assert (told["code"], told["details"]) == ("payload_too_large", {"size": 5, "limit": 3, "what": "result"})
    assert err.count("\n") == 2 and "\nhint: " in err
    screen.error(NotFoundError("gone"))
    assert "\nhint: " in capsys.readouterr().err


def test_our_traceback_only_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    for wanted in (False, True):
        screen = Screen()
        screen.tracebacks = wanted
        try:
            raise NotFoundError("x", hint="y")
        except NotFoundError as error:
            screen.error(error)
        assert ("Traceback" in capsys.readouterr().err) is wanted


def test_a_job_error_shows_the_remote_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().error(JobFailedError("it failed", details={"traceback": 'Traceback:\n  File "app.py", line 3\n'}))
    assert 'File "app.py", line 3\nerror: it failed\nhint: ' in capsys.readouterr().err


def test_a_job_error_with_a_remote_cause_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    error = JobFailedError("it failed", hint="look")
    error.__cause__ = RemoteTraceback("Traceback:\n  remote line\nKeyError: 1")
    Screen().error(error)
    assert "  remote line\nKeyError: 1" in (err := capsys.readouterr().err)
    assert err.endswith("error: it failed\nhint: look\n")


def test_a_failure_shows_remote_file_line_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    remote = 'Traceback (most recent call last):\n  File "app.py", line 3, in f\n    1 / 0\n\x1b[2J'
    Screen().failure(Failure(kind="user", type="ZeroDivisionError", message="division by zero", traceback=remote))
    out, err = capsys.readouterr()
    assert out == ""
    assert 'File "app.py", line 3' in err and "1 / 0" in err and "\x1b" not in err
    assert "error: ZeroDivisionError: division by zero\nhint: " in err


def test_users_own_exceptions_have_their_frames_and_none_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        Screen().show(object(), lambda: str(1 / 0))
    except ZeroDivisionError as error:
        Screen().user_error(error)
    err = capsys.readouterr().err
    assert __file__ in err and "ZeroDivisionError" in err and "cli/render.py" not in err
    assert "error: ZeroDivisionError: division by zero\nhint: your own code" in err


def test_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    line = LogLine(line=0, index=1, stream="stdout", text="\x1b[31mhello", attempt=1, at=0.0)
    screen = Screen()
    screen.log(line)
    screen.log_beside(line)
    assert capsys.readouterr() == ("hello\n", "hello\n")
    screen.as_json = True
    screen.log(line)
    assert json.loads(capsys.readouterr().out)["text"] == "\x1b[31mhello"


def test_values_are_json_or_a_repr_and_never_unpickled() -> None:
    assert shown_value(Value(encoding="json", data={"a": [1, None, "ü"]})) == '{"a":[1,null,"ü"]}'
    assert shown_value(Value(encoding="pickle", data=b"not a pickle", repr="array([1])")) == "array([1])"
    assert "12 bytes" in shown_value(Value(encoding="pickle", data=b"not a pickle"))


def test_tables() -> None:
    assert table(["a", "bb"], [[1, None], ["xyz", "\x1b[2Jy\nz"]]) == "A    BB\n1    -\nxyz  y z"
    assert table(["a"], []) == "A"
    assert when(None) == "-"


def test_a_lone_surrogate_is_shown_and_not_fatal(capfd: pytest.CaptureFixture[str]) -> None:
    Screen().note("half \udc80")
    assert "half" in capfd.readouterr().err
