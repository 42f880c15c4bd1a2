"""Declaring: apps, functions, their options, local entrypoints. Nothing here asks a server."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

import apothic
from apothic import App, ControlPlaneClient, Cron, Function, LocalEntrypoint, Period, RemoteApp, Retries
from apothic.context import CURRENT, CurrentJob
from apothic.errors import ConfigError, NotDeployedError, NotFoundError

app = App("declared", client=ControlPlaneClient("http://127.0.0.1:9", api_key="any", timeout_s=1))


@app.function(retries=2, memory_mb=64)
def double(number: int, timeout: int = 3) -> int:
    """Double it."""
    return 2 * number


@app.function()
async def later(number: int) -> int:
    await asyncio.sleep(0)
    return number


@app.function()
def numbers(to: int) -> Any:
    yield from range(to)


@app.local_entrypoint()
def main(number: int = 1) -> int:
    return double(number)


@app.local_entrypoint(name="other")
async def second(number: int) -> int:
    return await later(number)


def test_functions_are_attributes_and_in_functions() -> None:
    assert app.double is app.functions["double"] is double
    assert list(app.functions) == ["double", "later", "numbers"]
    with pytest.raises(AttributeError, match="no function and no attribute 'missing'"):
        _ = app.missing


def test_what_an_app_has_of_its_own_wins_over_a_function_of_that_name() -> None:
    own = App("own")

    @own.function()
    def deploy() -> None: ...

    assert own.functions["deploy"] is deploy
    assert own.deploy is not deploy


def test_a_handle_tells_what_it_is_of() -> None:
    assert (double.name, double.kind, double.schedule, double.service_url) == ("double", "function", None, None)
    assert double.options.retries == Retries(2)
    assert (double.__doc__, double.__name__) == ("Double it.", "double")
    assert repr(double) == "<Function declared.double>"
    assert double.__apothic_entry__ is double.local


def test_calling_it_runs_it_here() -> None:
    assert double(2) == double.local(2) == 4
    assert asyncio.run(later(3)) == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [({"cpu": 0}, "cpu"), ({"memory_mb": "1"}, "memory_mb"), ({"retries": 1, "max_retries": 2}, "max_retries")],
)
def test_options_are_checked_where_they_are_written(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        app.function(**options)


def test_only_functions_can_be_declared() -> None:
    for wrong in (print, double, 3):
        with pytest.raises(TypeError, match="takes a function"):
            app.function()(wrong)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        app.function(double)  # type: ignore[call-arg]


def test_the_same_name_from_elsewhere_is_refused_and_from_the_same_place_replaced() -> None:
    own = App("own")

    def declare(number: int) -> Function[..., Any, Any]:
        def f() -> int:
            return number

        return own.function()(f)

    declare(1)
    assert declare(2) is own.f
    with pytest.raises(ConfigError, match="has a function 'f' already"):
        own.function()(_f())


def _f() -> Any:
    def f() -> None: ...

    return f


@pytest.mark.parametrize("name", ["", "a b", "-x", "ä", "x" * 64, "a/b", 3])
def test_an_app_has_a_name_that_fits_a_url(name: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        App(name)


def test_decorators_under_it_set_concurrency_and_batching() -> None:
    own = App("own")

    @own.function()
    @apothic.concurrent(max_inputs=8, target_inputs=4)
    def many() -> None: ...

    @own.function(concurrent_requests=8)
    @apothic.concurrent(max_inputs=8)
    def same() -> None: ...

    @own.function()
    @apothic.batched(max_batch_size=5, wait_ms=10)
    def batch(items: list[int]) -> list[int]:
        return items

    assert many.options.concurrency == apothic.ConcurrencySpec(8, 4)
    assert batch.options.batching == apothic.BatchingSpec(5, 10)
    with pytest.raises(ConfigError, match="concurrent_requests says 3 and @concurrent says 8"):
        own.function(concurrent_requests=3)(apothic.concurrent(max_inputs=8)(_f()))
    with pytest.raises(TypeError, match="stands under"):
        apothic.concurrent(max_inputs=2)(double)
    with pytest.raises(ConfigError, match="max_batch_size"):
        apothic.batched(max_batch_size=0, wait_ms=1)


@pytest.mark.parametrize("name", ["timeout_s", "snapshot", "event_types"])
def test_a_parameter_that_methods_have_too_is_warned_of(name: str) -> None:
    told: dict[str, Any] = {}
    exec(f"def f({name}): ...", told)
    with pytest.warns(UserWarning, match=name) as caught:
        App("own").function()(told["f"])
    assert caught[0].filename == __file__


def test_with_options_leaves_the_handle_as_it_was() -> None:
    other = double.with_options(
        timeout_s=5, retries=3, expires_in_s=60, delivery="at_most_once", run_at=datetime(2030, 1, 1, tzinfo=UTC)
    ).with_options(idempotency_key="k")

    chosen = other.submitted_with
    assert (chosen.options.timeout_s, chosen.options.retries) == (5.0, Retries(3))
    assert (chosen.options.expires_in_s, chosen.options.delivery) == (60.0, "at_most_once")
    assert (chosen.options.run_at, chosen.idempotency_key) == (1893456000.0, "k")
    assert double.submitted_with.options.timeout_s is None
    assert pickle.loads(pickle.dumps(other)).submitted_with == chosen


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": 0}, {"timeout_s": "1"}, {"expires_in_s": -1}, {"delivery": "maybe"}, {"idempotency_key": ""},
        {"idempotency_key": "x" * 201}, {"retries": -1}, {"run_at": float("nan")},
    ],
)  # fmt: skip
def test_call_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options)).replace("retries", "max_retries|retries")):
        double.with_options(**options)


def test_handles_pickle_as_references() -> None:
    assert pickle.loads(pickle.dumps(double)) is double
    assert copy.deepcopy(double) is double
    assert isinstance(pickle.loads(pickle.dumps(app)), RemoteApp)

    own = App("own")
    inner = own.function()(_f())
    again = pickle.loads(pickle.dumps(inner))
    assert (again.app_name, again.name) == ("own", "f")


def test_generators_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(TypeError, match="use remote_gen"):
        numbers.remote(3)
    for method in ("map", "starmap", "for_each", "map_iter"):
        with pytest.raises(TypeError, match="use spawn_map or remote_gen"):
            getattr(numbers, method)([1])
    with pytest.raises(TypeError, match="use remote_gen"):
        asyncio.run(numbers.aio.remote(3))


def test_the_manifest_says_what_each_function_is() -> None:
    found = {spec.name: spec for spec in app.manifest().functions}

    assert (found["double"].module, found["double"].qualname) == (__name__, "double")
    assert (found["later"].is_async, found["later"].is_generator) == (True, False)
    assert (found["numbers"].is_async, found["numbers"].is_generator) == (False, True)
    assert found["double"].options.memory_mb == 64
    assert app.manifest() == app.manifest()


def test_an_app_under_another_name_has_the_same_functions() -> None:
    other = app.renamed("else")
    assert (other.name, list(other.functions)) == ("else", list(app.functions))
    assert (repr(other.double), repr(double)) == ("<Function else.double>", "<Function declared.double>")


def test_local_entrypoints_run_here() -> None:
    assert isinstance(main, LocalEntrypoint)
    assert main(4) == 8
    assert list(app.local_entrypoints) == ["main", "other"]
    assert app.run_local(kwargs={"number": 2}) == 4
    assert app.run_local(entrypoint_name="other", args=[7]) == 7
    with pytest.raises(NotFoundError, match="no local entrypoint 'third'"):
        app.run_local(entrypoint_name="third")


async def test_local_entrypoints_run_on_the_callers_loop() -> None:
    assert await app.aio.run_local(entrypoint_name="other", args=[7]) == 7
    assert await app.aio.run_local(args=[2]) == 4


def test_nothing_is_deployed_from_inside_a_job() -> None:
    job = CurrentJob(
        id="job_1",
        attempt=1,
        app="declared",
        function="f",
        deployment_id="dep_1",
        base_url="http://127.0.0.1:9",
        token="t",
    )
    token = CURRENT.set(job)
    try:
        with pytest.raises(NotDeployedError, match="from inside a container"):
            app.deploy()
        assert app.deployment_id == "dep_1"
    finally:
        CURRENT.reset(token)
    assert app.deployment_id is None


def test_a_schedule_needs_a_function_that_runs_without_arguments() -> None:
    app = App("rounds")

    @app.function(schedule=Period(hours=1))
    def plain(times: int = 2, *rest: int, loud: bool = False, **more: int) -> int:
        return times

    @app.function(schedule=Cron("0 7 * * *", timezone="Europe/Berlin"))
    def items() -> Iterator[int]:
        yield 1

    assert plain.schedule == Period(hours=1)
    assert items.schedule == Cron("0 7 * * *", timezone="Europe/Berlin")
    for needy in (lambda word: word, lambda *, word: word):
        with pytest.raises(ConfigError, match=r"without arguments: missing a required .*'word'") as caught:
            app.function(schedule=Period(hours=1))(needy)
        assert "default" in caught.value.hint
    assert list(app.functions) == ["plain", "items"]
