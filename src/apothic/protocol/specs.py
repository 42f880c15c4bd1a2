"""What a function asks for: its options, and the small values they are made of. Both sides know them.

Each checks itself where it is made. A wrong option raises `ConfigError`, which names the option and what is allowed;
the same thing read from the wire raises `msgspec.ValidationError`, because `ConfigError` is a `ValueError` and msgspec
turns those that come out of `__post_init__` while decoding.
"""

from __future__ import annotations

import reprlib
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import force_setattr

from apothic.errors import ConfigError

YEAR_S = 366 * 24 * 3600

_CRON_LENGTH = 200  # cronsim's time grows with the text, and these come from the wire too
_GPU_LENGTH = 64


def _refuse(option: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{option} cannot be {reprlib.repr(value)}", hint=f"{option} is {allowed}")


def _check_whole(option: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise _refuse(option, value, f"a whole number from {low:,} to {high:,}")


def _checked_number(option: str, value: object, low: float, high: float) -> float:
    # `not low <= nan` is true, so this refuses nan as well.
    if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
        raise _refuse(option, value, f"a number from {low:,g} to {high:,g}")
    return float(value)  # type: ignore[arg-type]


def _check_kind(option: str, value: object, kind: type, *, optional: bool = True) -> None:
    if isinstance(value, kind) or (optional and value is None):
        return
    raise _refuse(option, value, f"a {kind.__name__}" + (" or None" if optional else ""))


class _Budget(Struct, frozen=True):
    max_retries: int


class Retries(_Budget, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say how often an attempt that raised is tried again, and how long to wait before each.

    `max_retries` counts tries after the first, 0 to 1,000. The n-th wait is `initial_delay_s * backoff ** n` seconds,
    at most `max_delay_s`; with `jitter`, a random part of that. `stream` says what becomes of items that a failed
    attempt has published: `none` (a generator that has published is not retried), `replay` or `restart`.
    Raises `ConfigError`.

    >>> Retries(3, initial_delay_s=0.5).max_retries
    3
    """

    initial_delay_s: float = 1.0
    backoff: float = 2.0
    max_delay_s: float = 60.0
    jitter: bool = True
    stream: Literal["none", "replay", "restart"] = "none"

    def __post_init__(self) -> None:
        _check_whole("max_retries", self.max_retries, 0, 1_000)
        for option, low, high in (
            ("initial_delay_s", 0.0, 86_400.0), ("backoff", 1.0, 100.0), ("max_delay_s", 0.0, 86_400.0),
        ):  # fmt: skip
            force_setattr(self, option, _checked_number(option, getattr(self, option), low, high))
        if self.max_delay_s < self.initial_delay_s:
            raise _refuse(
                "max_delay_s", self.max_delay_s, f"at least initial_delay_s, which is {self.initial_delay_s:g}"
            )
        _check_kind("jitter", self.jitter, bool, optional=False)
        if self.stream not in ("none", "replay", "restart"):
            raise _refuse("stream", self.stream, "'none', 'replay' or 'restart'")


class _Expression(Struct, frozen=True):
    expression: str


class Cron(_Expression, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="cron"):
    """Run at the times that a cron expression names, read as Debian's cron does, in `timezone` (an IANA name).

    Five fields: minute, hour, day of month, month, day of week; or six, with seconds first. Raises `ConfigError`.

    >>> Cron("0 7 * * MON-FRI", timezone="UTC").expression
    '0 7 * * MON-FRI'
    """

    timezone: str = "UTC"

    def __post_init__(self) -> None:
        _check_kind("expression", self.expression, str, optional=False)
        _check_kind("timezone", self.timezone, str, optional=False)
        _check_expression(self.expression)
        _check_zone(self.timezone)


def _check_expression(text: str) -> None:
    from datetime import UTC, datetime

    from cronsim import CronSim, CronSimError

    allowed = "five cron fields (minute hour day month weekday), such as '*/15 * * * *'"
    if len(text) > _CRON_LENGTH:
        raise _refuse("expression", text, f"{allowed}, at most {_CRON_LENGTH} characters")
    try:
        CronSim(text, datetime(2024, 1, 1, tzinfo=UTC))
    except (CronSimError, ValueError, TypeError, AssertionError) as error:
        raise _refuse("expression", text, f"{allowed}; cronsim says: {error}") from None


def _check_zone(name: str) -> None:
    from zoneinfo import ZoneInfo

    if name == "UTC":  # also on a machine without the zone database
        return
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: the name of a directory of the database, such as 'America'
        raise _refuse("timezone", name, "an IANA zone that this machine knows, such as 'Europe/Berlin'") from None


class Period(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="period"):
    """Run again and again, this long apart, counted from when the deployment went live.

    The sum of the parts is from one second to ten years. Raises `ConfigError`.

    >>> Period(hours=1, minutes=30).total_s
    5400.0
    """

    seconds: float = 0
    minutes: float = 0
    hours: float = 0
    days: float = 0
    weeks: float = 0

    def __post_init__(self) -> None:
        for part in ("seconds", "minutes", "hours", "days", "weeks"):
            force_setattr(self, part, _checked_number(part, getattr(self, part), 0, 10 * YEAR_S))
        if not 1 <= self.total_s <= 10 * YEAR_S:
            raise ConfigError(
                f"Period cannot be {self.total_s:g} s long",
                hint="the parts of a Period sum to 1 s at least, 10 years at most",
            )

    @property
    def total_s(self) -> float:
        """Return the length in seconds."""
        hours = self.hours + 24 * (self.days + 7 * self.weeks)
        return self.seconds + 60 * (self.minutes + 60 * hours)


class ConcurrencySpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Let one container run up to `max_inputs` inputs at once, and scale out past `target_inputs` (of its maximum).

    Raises `ConfigError`.
    """

    max_inputs: int
    target_inputs: int | None = None

    def __post_init__(self) -> None:
        _check_whole("max_inputs", self.max_inputs, 1, 10_000)
        if self.target_inputs is not None:
            _check_whole("target_inputs", self.target_inputs, 1, self.max_inputs)


class BatchingSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Give the function lists of up to `max_batch_size` inputs; the oldest waits `wait_ms` at most.

    Raises `ConfigError`.
    """

    max_batch_size: int
    wait_ms: int

    def __post_init__(self) -> None:
        _check_whole("max_batch_size", self.max_batch_size, 1, 100_000)
        _check_whole("wait_ms", self.wait_ms, 0, 3_600_000)


# Least and most of every option that is a whole number.
_WHOLE: dict[str, tuple[int, int]] = {
    "memory_mb": (1, 1 << 24),
    "timeout_s": (1, YEAR_S),
    "max_retries": (0, 1_000),
    "concurrent_requests": (1, 10_000),
    "max_pending_tasks": (1, 100_000_000),
    "max_containers": (1, 10_000),
    "tasks_per_container": (1, 100_000_000),
    "keep_warm_s": (0, YEAR_S),
    "stream_window": (1, 100_000_000),
    "max_request_mb": (1, 1 << 24),
}
_LATER = ("image", "secrets", "volumes")


class FunctionOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold what `@app.function(...)` was given, checked.

    `cpu` is in cores, `memory_mb` in MiB. `timeout_s` is one attempt's run time, `keep_warm_s` the idle seconds before
    a container stops. `retries` may be a number; it is kept as `Retries`, and `max_retries` is the same number.
    `gpu` is a name that an agent declares, or several of which any will do. `stream_window` is how many log lines, and
    how many stream items, one job keeps. The last three are for services: the seconds that one may take to start
    (`None`: what the server gives), whether requests need an API key (`None`: only where the gateway can be reached
    from other machines), the largest body of a request in MiB. Raises `ConfigError` for anything that is not allowed.

    >>> FunctionOptions(retries=2) == FunctionOptions(max_retries=2)
    True
    """

    schedule: Cron | Period | None = None
    cpu: float = 1
    memory_mb: int = 1024
    gpu: str | list[str] | None = None
    timeout_s: int = 600
    retries: int | Retries | None = None
    max_retries: int = 0
    concurrent_requests: int = 1
    max_pending_tasks: int = 10_000
    max_containers: int = 1
    tasks_per_container: int = 1
    keep_warm_s: int = 600
    stream_window: int = 10_000
    image: Any = None
    secrets: Any = None
    volumes: Any = None
    concurrency: ConcurrencySpec | None = None
    batching: BatchingSpec | None = None
    service_startup_timeout_s: float | None = None
    requires_key: bool | None = None
    max_request_mb: int = 2_048

    def __post_init__(self) -> None:
        for option in _LATER:
            if getattr(self, option) is not None:
                raise ConfigError(f"{option} is not supported yet", hint=f"leave {option} out")
        for option, (low, high) in _WHOLE.items():
            _check_whole(option, getattr(self, option), low, high)
        force_setattr(self, "cpu", _checked_number("cpu", self.cpu, 0.001, 4_096))
        if not isinstance(self.schedule, Cron | Period | None):
            raise _refuse("schedule", self.schedule, "a Cron, a Period or None")
        _check_kind("concurrency", self.concurrency, ConcurrencySpec)
        _check_kind("batching", self.batching, BatchingSpec)
        force_setattr(self, "gpu", _checked_gpu(self.gpu))
        _check_kind("requires_key", self.requires_key, bool)
        if (wait := self.service_startup_timeout_s) is not None:
            wait = _checked_number("service_startup_timeout_s", wait, 0.1, 86_400)
            force_setattr(self, "service_startup_timeout_s", wait)
        self._settle_retries()

    def _settle_retries(self) -> None:
        retries, short = self.retries, self.max_retries
        if retries is None:
            if short:
                force_setattr(self, "retries", Retries(short))
            return
        if not isinstance(retries, Retries):
            _check_whole("retries", retries, 0, 1_000)
            retries = Retries(retries)
        if short not in (0, retries.max_retries):
            raise ConfigError(
                f"retries says {retries.max_retries} and max_retries says {short}",
                hint="give one of the two; max_retries is the short form of retries",
            )
        force_setattr(self, "retries", retries)
        force_setattr(self, "max_retries", retries.max_retries)

    def __hash__(self) -> int:
        # The generated one would stumble over the list in `gpu`.
        plain = (getattr(self, name) for name in self.__struct_fields__ if name != "gpu")
        return hash((*plain, self.gpus))

    @property
    def user_retries(self) -> Retries | None:
        """Return `retries` as what it is kept as."""
        return self.retries if isinstance(self.retries, Retries) else None

    @property
    def gpus(self) -> tuple[str, ...]:
        """Return the names in `gpu`, of which any will do; empty for none."""
        return (self.gpu,) if isinstance(self.gpu, str) else tuple(self.gpu or ())

    @property
    def inputs_at_once(self) -> int:
        """Return how many inputs one container runs at a time; a batch counts as one."""
        return self.concurrency.max_inputs if self.concurrency else self.concurrent_requests

    @property
    def slots(self) -> int:
        """Return how many jobs one container runs at a time."""
        return self.inputs_at_once * (self.batching.max_batch_size if self.batching else 1)


def _checked_gpu(value: object) -> str | list[str] | None:
    if value is None:
        return None
    given: list[object] = list(value) if isinstance(value, list | tuple) else [value]
    names = [name for name in given if isinstance(name, str) and 0 < len(name) <= _GPU_LENGTH]
    if not names or len(names) < len(given):
        raise _refuse("gpu", value, f"a name of 1 to {_GPU_LENGTH} characters, a list of such names, or None")
    return value if isinstance(value, str) else names
