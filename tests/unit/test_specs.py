"""Every option of a function, and every bound of it: checked where it is written, and again when it is read."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apothic.errors import ConfigError
from apothic.protocol.specs import YEAR_S, BatchingSpec, ConcurrencySpec, Cron, FunctionOptions, Period, Retries

WHOLE = {
    "memory_mb": (1, 1 << 24),
    "timeout_s": (1, YEAR_S),
    "max_retries": (0, 1_000),
    "concurrent_requests": (1, 10_000),
    "max_pending_tasks": (1, 100_000_000),
    "max_containers": (1, 10_000),
    "tasks_per_container": (1, 100_000_000),
    "keep_warm_s": (0, YEAR_S),
    "stream_window": (1, 100_000_000),
}


def raises(option: str, spec: Any, *args: Any, **kwargs: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        spec(*args, **kwargs)
    assert option in caught.value.message
    assert caught.value.hint
    return caught.value


def test_signatures_are_those_of_the_surface() -> None:
    def parameters(spec: Any) -> str:
        return str(inspect.signature(spec)).replace("apothic.protocol.specs.", "")

    assert parameters(ConcurrencySpec) == "(max_inputs: int, target_inputs: int | None = None)"
    assert parameters(BatchingSpec) == "(max_batch_size: int, wait_ms: int)"
    assert parameters(Cron) == "(expression: str, *, timezone: str = 'UTC')"
    assert [(p.name, p.default, p.kind) for p in inspect.signature(Period).parameters.values()] == [
        (name, 0, inspect.Parameter.KEYWORD_ONLY) for name in ("seconds", "minutes", "hours", "days", "weeks")
    ]
    assert parameters(Retries) == (
        "(max_retries: int, *, initial_delay_s: float = 1.0, backoff: float = 2.0, max_delay_s: float = 60.0, "
        "jitter: bool = True, stream: Literal['none', 'replay', 'restart'] = 'none')"
    )


def test_defaults_are_those_of_the_surface() -> None:
    options = FunctionOptions()
    assert msgspec.structs.asdict(options) == {
        "schedule": None, "cpu": 1, "memory_mb": 1024, "gpu": None, "timeout_s": 600, "retries": None, "max_retries": 0,
        "concurrent_requests": 1, "max_pending_tasks": 10_000, "max_containers": 1, "tasks_per_container": 1,
        "keep_warm_s": 600, "stream_window": 10_000, "image": None, "secrets": None, "volumes": None,
        "concurrency": None, "batching": None, "service_startup_timeout_s": None, "requires_key": None,
        "max_request_mb": 2_048,
    }  # fmt: skip
    assert all(p.kind is p.KEYWORD_ONLY for p in inspect.signature(FunctionOptions).parameters.values())


@pytest.mark.parametrize(("option", "low", "high"), [(name, *bounds) for name, bounds in WHOLE.items()])
def test_whole_numbers(option: str, low: int, high: int) -> None:
    for good in (low, high):
        assert getattr(FunctionOptions(**{option: good}), option) == good
    for bad in (low - 1, high + 1, 1.5, 5.0, "5", True, None, [5]):
        error = raises(option, FunctionOptions, **{option: bad})
        assert f"{low:,} to {high:,}" in error.hint
        assert option in error.hint


def test_cpu() -> None:
    for good in (0.001, 0.5, 1, 4_096):
        assert FunctionOptions(cpu=good).cpu == good
    assert type(FunctionOptions(cpu=1).cpu) is float
    for bad in (0, -1, 4_097, float("nan"), float("inf"), "1", True, None):
        raises("cpu", FunctionOptions, cpu=bad)


def test_gpu() -> None:
    assert FunctionOptions(gpu="A100").gpu == "A100"
    assert FunctionOptions(gpu="A100").gpus == ("A100",)
    assert FunctionOptions().gpus == ()
    names = ["A100", "H100"]
    options = FunctionOptions(gpu=names)
    names.append("T4")
    assert options.gpu == ["A100", "H100"]
    assert options.gpus == ("A100", "H100")
    for bad in ("", [], [""], [1], 1, ["x" * 65], ["A100", None], {"A100"}):
        raises("gpu", FunctionOptions, gpu=bad)


def test_retries_as_a_number_or_a_spec() -> None:
    assert FunctionOptions(retries=3).retries == Retries(3)
    assert FunctionOptions(retries=3).max_retries == 3
    assert FunctionOptions(max_retries=3).retries == Retries(3)
    assert FunctionOptions(max_retries=3) == FunctionOptions(retries=3) == FunctionOptions(retries=Retries(3))
    assert FunctionOptions(retries=Retries(2, jitter=False), max_retries=2).user_retries == Retries(2, jitter=False)
    assert FunctionOptions().user_retries is None
    assert FunctionOptions(retries=0).user_retries == Retries(0)
    for bad in (-1, 1_001, 1.5, "3", True):
        raises("retries", FunctionOptions, retries=bad)


def test_retries_and_max_retries_must_agree() -> None:
    for retries in (3, Retries(3)):
        error = raises("max_retries", FunctionOptions, retries=retries, max_retries=2)
        assert "3" in error.message and "2" in error.message


@pytest.mark.parametrize("option", ["image", "secrets", "volumes"])
def test_options_for_later_say_so(option: str) -> None:
    assert "not supported yet" in raises(option, FunctionOptions, **{option: ["x"]}).message


def test_specs_as_options() -> None:
    options = FunctionOptions(
        schedule=Period(hours=1), concurrency=ConcurrencySpec(8, 4), batching=BatchingSpec(16, wait_ms=10)
    )
    assert options.inputs_at_once == 8
    assert FunctionOptions(concurrent_requests=3).inputs_at_once == 3
    raises("schedule", FunctionOptions, schedule="* * * * *")
    raises("concurrency", FunctionOptions, concurrency=8)
    raises("batching", FunctionOptions, batching=ConcurrencySpec(1))


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="max_container"):
        FunctionOptions(max_container=2)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("initial_delay_s", [0, 60.0], [-0.1, 86_401, "1", True, None, float("nan")]),
        ("backoff", [1, 100], [0.9, 101, "2", True]),
        ("max_delay_s", [1, 86_400], [-1, 86_401, None]),
        ("jitter", [True, False], [1, None, "yes"]),
        ("stream", ["none", "replay", "restart"], ["", "None", 1, None]),
    ],
)
def test_retries(option: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert getattr(Retries(1, **{option: value}), option) == value
    for value in bad:
        raises(option, Retries, 1, **{option: value})


def test_retries_number_and_order_of_delays() -> None:
    for good in (0, 1_000):
        assert Retries(good).max_retries == good
    for bad in (-1, 1_001, 1.0, "1", None):
        raises("max_retries", Retries, bad)
    raises("max_delay_s", Retries, 1, initial_delay_s=10, max_delay_s=9)
    with pytest.raises(TypeError):
        Retries(1, 2.0)  # type: ignore[misc]


@pytest.mark.parametrize(
    "expression", ["* * * * *", "*/15 0-6 1,15 JAN-MAR MON", "0 0 L * *", "0 0 * * 5L", "30 0 12 * * *"]
)
def test_cron_takes_what_debian_takes(expression: str) -> None:
    assert Cron(expression, timezone="Europe/Berlin").expression == expression


@pytest.mark.parametrize(
    "expression", ["", "* * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 30 2 *", "@daily", "x" * 201, None, 5]
)
def test_cron_refuses_expressions(expression: Any) -> None:
    raises("expression", Cron, expression)


@pytest.mark.parametrize("zone", ["Europe/Nowhere", "", "America", "../etc/passwd", "/etc/passwd", None, 1, "a\0b"])
def test_cron_refuses_zones(zone: Any) -> None:
    raises("timezone", Cron, "* * * * *", timezone=zone)


@given(st.text(alphabet="0123456789*/-,#LW MONJAN", max_size=40))
def test_no_expression_raises_anything_else(expression: str) -> None:
    try:
        Cron(expression)
    except ConfigError as error:
        assert "expression" in error.message


def test_period() -> None:
    assert Period(seconds=1, minutes=2, hours=3, days=4, weeks=5).total_s == 1 + 2 * 60 + 3 * 3600 + 39 * 86_400
    assert Period(weeks=520).total_s <= 10 * YEAR_S
    for bad in (-1, "1", True, None, float("nan"), float("inf")):
        raises("minutes", Period, minutes=bad)
    for total in ({}, {"seconds": 0.5}, {"weeks": 530}):
        raises("Period", Period, **total)


def test_concurrency() -> None:
    assert ConcurrencySpec(10_000, 10_000).target_inputs == 10_000
    for bad in (0, 10_001, 1.0, "1", None, True):
        raises("max_inputs", ConcurrencySpec, bad)
    for bad in (0, 5, "1", 1.0):
        raises("target_inputs", ConcurrencySpec, 4, bad)


def test_batching() -> None:
    assert BatchingSpec(100_000, 3_600_000) == BatchingSpec(max_batch_size=100_000, wait_ms=3_600_000)
    for bad in (0, 100_001, 1.5, None):
        raises("max_batch_size", BatchingSpec, bad, 1)
    for bad in (-1, 3_600_001, 0.5, None):
        raises("wait_ms", BatchingSpec, 1, bad)


SAMPLES = [
    FunctionOptions(),
    FunctionOptions(gpu=["A100", "H100"], cpu=2, retries=3, schedule=Cron("0 7 * * *", timezone="Europe/Berlin")),
    FunctionOptions(gpu="T4", schedule=Period(days=1), concurrency=ConcurrencySpec(4), batching=BatchingSpec(2, 5)),
    FunctionOptions(retries=Retries(1, stream="replay", jitter=False)),
]


@pytest.mark.parametrize("options", SAMPLES)
def test_options_survive_the_wire(options: FunctionOptions) -> None:
    for codec in (msgspec.json, msgspec.msgpack):
        read = codec.decode(codec.encode(options), type=FunctionOptions)
        assert read == options
        assert hash(read) == hash(options)
        assert codec.encode(read) == codec.encode(options)
    assert pickle.loads(pickle.dumps(options)) == options
    with pytest.raises(AttributeError):
        options.cpu = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [
        '{"cpu": 0}',
        '{"memory_mb": 1.5}',
        '{"image": "x"}',
        '{"max_container": 2}',
        '{"gpu": []}',
        '{"retries": 3, "max_retries": 2}',
        '{"retries": {"max_retries": -1}}',
        '{"retries": {"max_retries": 1, "backoff": 0}}',
        '{"schedule": {"type": "cron", "expression": "nonsense"}}',
        '{"schedule": {"type": "cron", "expression": "* * * * *", "timezone": "Nowhere"}}',
        '{"schedule": {"type": "period"}}',
        '{"schedule": {"type": "never"}}',
        '{"concurrency": {"max_inputs": 0}}',
        '{"batching": {"max_batch_size": 1, "wait_ms": -1}}',
    ],
)
def test_wrong_options_on_the_wire_are_invalid_messages(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=FunctionOptions)
