"""What is shown, and how: the only file that prints. Text for people, or JSON documents for programs.

Text that comes from user code (logs, messages, tracebacks, the `repr` of values) is untrusted: control sequences are
taken out before it reaches a terminal.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apothic.errors import ApothicError
    from apothic.protocol.messages import Failure, LogLine, Value
    from apothic.protocol.specs import Cron, Period

# CSI, then the string kinds (OSC, DCS, SOS, PM, APC) to their end, then any other escape, then lone control characters.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x9b[0-?]*[ -/]*[@-~]|\x1b[\]PX^_].*?(?:\x07|\x1b\\|\x9c|$)|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]",
    re.DOTALL,
)
# Right-to-left overrides and their kin, which make a line read as something that it is not (CVE-2021-42574).
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
_HOME = Path(__file__).resolve().parents[1]


def clean(text: str) -> str:
    """Return `text` without what would steer a terminal; tabs and line ends stay.

    >>> clean("\\x1b[31mred\\x1b[0m\\x07")
    'red'
    """
    return _BIDI.sub("", _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", " ")))


def when(seconds: float | None) -> str:
    """Return a point in time as a person writes it, in the local zone."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def rhythm(schedule: Cron | Period | None) -> str | None:
    """Return a schedule as a person writes it.

    >>> from apothic.protocol.specs import Cron, Period
    >>> rhythm(Period(hours=1, seconds=30)), rhythm(Cron("0 7 * * *", timezone="Europe/Berlin"))
    ('every 1:00:30', '0 7 * * * Europe/Berlin')
    """
    from apothic.protocol.specs import Cron

    if schedule is None:
        return None
    if isinstance(schedule, Cron):
        return f"{schedule.expression} {schedule.timezone}"
    return f"every {timedelta(seconds=schedule.total_s)}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under a head, in columns; on one row of `-` where a cell is `None`."""
    cells = [[clean("-" if cell is None else str(cell)).replace("\n", " ") for cell in row] for row in rows]
    lines = [[title.upper() for title in head], *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def shown_value(value: Value) -> str:
    """Return a packed value as text: JSON when it is JSON, else the `repr` made where it was packed."""
    if value.encoding == "json" and value.sha256 is None:
        return encoded(value.data)
    return value.repr or f"<a value of {value.size or len(value.data or b''):,} bytes>"


def encoded(document: Any) -> str:
    """Return one line of JSON."""
    import msgspec

    return msgspec.json.encode(document).decode()


class Screen:
    """Where one command shows what it has to say. `as_json` and `tracebacks` are set by its options."""

    def __init__(self) -> None:
        self.as_json = False
        self.tracebacks = False
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a lone surrogate in a log line must not end the command
                stream.reconfigure(errors="backslashreplace")

    def show(self, document: Any, text: str | Callable[[], str]) -> None:
        """Print one document, or what it is in words."""
        said = encoded(document) if self.as_json else clean(text if isinstance(text, str) else text())
        print(said, flush=True)

    def note(self, text: str) -> None:
        """Print a line for people, on stderr."""
        print(clean(text), file=sys.stderr, flush=True)

    def log(self, line: LogLine) -> None:
        """Print one log line as the product of a command."""
        self.show(line, lambda: line.text)

    def log_beside(self, line: LogLine) -> None:
        """Print one log line beside the product of a command, on stderr."""
        text = clean(line.text)
        if line.stream == "stderr" and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            text = f"\x1b[2m{text}\x1b[0m"
        print(text, end="" if line.cont else "\n", file=sys.stderr, flush=True)

    def failure(self, failure: Failure) -> None:
        """Print why a job failed: what it printed last if it never ran, its remote traceback, one line of what."""
        if failure.log_tail:
            self.note(failure.log_tail.rstrip())
        if failure.traceback:
            self.note(failure.traceback.rstrip())
        last = f"{failure.type}: {failure.message}" if failure.type else failure.message
        self._sorry(last, _HINTS.get(failure.kind, "apothic job show tells more"))

    def error(self, error: ApothicError) -> None:
        """Print an error of ours: one line of what, one of what to do."""
        if self.tracebacks:
            self.note("".join(traceback.format_exception(error)).rstrip())
        what, _, rest = error.message.partition("\n")
        log = str(error.details.get("startup_log") or "") or rest
        for text in (log, _remote_traceback(error)):
            if text:
                self.note(text.rstrip())
        if self.as_json:
            body = {"code": error.code, "message": error.message, "hint": error.hint, "details": error.details}
            print(encoded({"error": _plain(body)}), flush=True)
        self._sorry(what, error.hint or "apothic --help lists the commands")

    def usage(self, message: str, hint: str) -> None:
        """Print that the command was written wrongly."""
        self._sorry(message, hint)

    def crash(self, error: BaseException) -> None:
        """Print an error that nobody foresaw."""
        if self.tracebacks:
            self.note("".join(traceback.format_exception(error)).rstrip())
        message = f"{type(error).__name__}: {error}"
        hint = "run it once more with --traceback, and report what it prints"
        if self.as_json:
            print(encoded({"error": {"code": "internal", "message": message, "hint": hint, "details": {}}}), flush=True)
        self._sorry(message, hint)

    def user_error(self, error: BaseException) -> None:
        """Print an exception of the user's own code, with the user's frames and none of ours."""
        told = traceback.TracebackException.from_exception(error, compact=True)
        if not self.tracebacks:
            _leave_out_our_frames(told)
        self.note("".join(told.format()).rstrip())
        message = f"{type(error).__name__}: {error}"
        hint = "your own code raised this here, before anything was sent; the lines above show where"
        if self.as_json:
            print(encoded({"error": {"code": "user", "message": message, "hint": hint, "details": {}}}), flush=True)
        self._sorry(message, hint)

    def _sorry(self, message: str, hint: str) -> None:
        self.note("error: " + " ".join(message.split()))
        self.note("hint: " + " ".join(hint.split()))

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show a spinner on a terminal while the body runs; say nothing elsewhere."""
        if self.as_json or not sys.stderr.isatty():
            yield
            return
        from rich.console import Console

        with Console(stderr=True).status(text):
            yield


_HINTS = {
    "user": "the function raised this; the lines above are its remote traceback",
    "timeout": "give the function a larger timeout_s",
    "cancelled": "somebody cancelled the job",
    "worker_lost": "the process that ran it is gone; the end of its log may tell why",
    "oom": "give the function a larger memory_mb",
    "startup": "correct what keeps the module from being imported, then deploy it again",
    "serialization": "return something that JSON or pickle can carry",
    "payload_too_large": "raise the server's payload_limit, or return a path or URL instead of the bytes",
    "expired": "nobody was free to begin it in time; raise max_containers, or expires_in_s",
    "unsatisfiable": "ask for less cpu, memory_mb or gpu, or add an agent that has it",
    "deadlock": "raise max_containers, so that jobs do not wait for the slot they hold",
}


def _remote_traceback(error: ApothicError) -> str:
    if error.__cause__ is not None:
        from apothic.protocol.failures import RemoteTraceback

        if isinstance(error.__cause__, RemoteTraceback):
            return error.__cause__.text
    return str(error.details.get("traceback") or "")


def _plain(body: dict[str, Any]) -> dict[str, Any]:
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(body, enc_hook=repr)
    return plain


def _leave_out_our_frames(told: traceback.TracebackException | None) -> None:
    while told is not None:
        stack = told.stack
        kept = [
            frame
            for frame in stack
            if not Path(frame.filename).is_relative_to(_HOME) and "importlib" not in frame.filename
        ]
        # What the library does below the user's last frame is of no use to the user either.
        stack[:] = [frame for frame in kept if not _machinery(frame.filename)] or kept
        for inner in told.exceptions or ():
            _leave_out_our_frames(inner)
        _leave_out_our_frames(told.__cause__)
        told = told.__context__ if not told.__suppress_context__ else None


def _machinery(filename: str) -> bool:
    return "/asyncio/" in filename or "/concurrent/futures/" in filename
