"""Declaring services: what each decorator takes and refuses, and what their handles say. Nothing here asks a server."""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import apothic
from apothic import App, ControlPlaneClient, Cron, Function, Retries
from apothic.errors import ConfigError, NotAServiceError
from apothic.protocol.services import SERVICE_KINDS, ServiceSpec, described

app = App("shop", client=ControlPlaneClient("http://127.0.0.1:9", api_key="any", timeout_s=1))


@app.endpoint(method="post", path="/items/{id}", keep_warm_s=5)
def item(id: int, amount: int = 1) -> dict[str, int]:
    """Say what was asked for."""
    return {"id": id, "amount": amount}


@app.endpoint(requires_key=True)
async def letters(word: str) -> AsyncIterator[str]:
    for letter in word:
        yield letter


@app.asgi(service_startup_timeout_s=30, max_request_mb=1)
def web(title: str = "shop") -> Callable[..., Any]:
    async def answer(scope: Any, receive: Any, send: Any) -> None: ...

    return answer


@app.fastapi_endpoint(path="/hello", docs=False)
async def hello(name: str = "you") -> str:
    return f"hello {name}"


@app.wsgi_app()
@apothic.concurrent(max_inputs=4, target_inputs=2)
def site() -> Callable[..., Any]:
    return lambda environ, start: []


@app.web_server(0, startup_timeout=20, max_containers=3)
def files(port: int) -> None: ...


@app.function()
def plain() -> int:
    return 1


SERVICES = {"item": "endpoint", "letters": "endpoint", "web": "asgi", "hello": "fastapi_endpoint", "site": "wsgi_app",
            "files": "web_server"}  # fmt: skip


def test_each_kind_is_declared_with_what_its_decorator_was_given() -> None:
    assert {name: one.kind for name, one in app.functions.items()} == {**SERVICES, "plain": "function"}
    assert set(SERVICES.values()) == set(SERVICE_KINDS)
    specs = {spec.name: spec for spec in app.manifest().functions}
    assert {name: spec.kind for name, spec in specs.items()} == {**SERVICES, "plain": "function"}
    assert specs["item"].service == ServiceSpec(method="POST", path="/items/{id}")
    assert specs["hello"].service == ServiceSpec(path="/hello", docs=False)
    assert specs["files"].service == ServiceSpec(port=0, startup_timeout_s=20)
    assert specs["web"].service == specs["site"].service == ServiceSpec()
    assert specs["plain"].service is None
    assert specs["letters"].is_generator and specs["letters"].is_async
    assert msgspec.json.decode(msgspec.json.encode(specs["item"]), type=type(specs["item"])) == specs["item"]


def test_options_are_those_of_a_function_with_a_hundred_requests_at_once() -> None:
    assert (item.options.concurrent_requests, plain.options.concurrent_requests) == (100, 1)
    assert (item.options.keep_warm_s, web.options.keep_warm_s) == (5, 600)
    assert (web.options.service_startup_timeout_s, web.options.max_request_mb) == (30, 1)
    assert (letters.options.requires_key, item.options.requires_key) == (True, None)
    assert (site.options.inputs_at_once, web.options.inputs_at_once) == (4, 100)
    assert files.options.max_containers == 3


@pytest.mark.parametrize("kind", SERVICE_KINDS)
def test_every_decorator_has_every_option_of_a_function(kind: str) -> None:
    usual = inspect.signature(App.function).parameters
    here = inspect.signature(getattr(App, kind)).parameters
    assert {name: here[name] for name in usual if name not in ("self", "concurrent_requests")} == {
        name: one for name, one in usual.items() if name not in ("self", "concurrent_requests")
    }
    assert here["concurrent_requests"].default == 100
    first = {"endpoint": ["method", "path"], "fastapi_endpoint": ["method", "path", "docs"], "asgi": [], "wsgi_app": [],
             "web_server": ["port", "startup_timeout"]}[kind]  # fmt: skip
    last = ["service_startup_timeout_s", "requires_key", "max_request_mb"]
    assert list(here) == ["self", *first, *[name for name in usual if name != "self"], *last]


def test_calling_it_runs_it_here() -> None:
    assert item(3) == item.local(3, amount=1) == {"id": 3, "amount": 1}
    assert item.__doc__ == "Say what was asked for."
    assert callable(web())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"method": "FETCH"}, "method cannot be 'FETCH'"),
        ({"path": "items"}, "path cannot be 'items'"),
        ({"cpu": 0}, "cpu cannot be 0"),
        ({"requires_key": "yes"}, "requires_key cannot be 'yes'"),
        ({"max_request_mb": 0}, "max_request_mb cannot be 0"),
        ({"service_startup_timeout_s": -1}, "service_startup_timeout_s cannot be -1"),
        ({"schedule": Cron("* * * * *")}, "a service cannot have a schedule"),
        ({"retries": Retries(2)}, "a service cannot have retries"),
        ({"max_retries": 1}, "a service cannot have retries"),
        ({"image": "debian"}, "image is not supported yet"),
    ],
)
def test_options_are_checked_where_they_are_written(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        app.endpoint(**given)


def test_a_web_server_has_a_port_and_a_time() -> None:
    with pytest.raises(ConfigError, match="port cannot be 70000"):
        app.web_server(70_000)
    with pytest.raises(ConfigError, match="startup_timeout cannot be 0"):
        app.web_server(80, startup_timeout=0)


def required(name: str) -> None: ...
def generator() -> Iterator[str]:
    yield ""


async def agenerator() -> AsyncIterator[str]:
    yield ""


async def coroutine() -> None: ...
def two(port: int, name: str) -> None: ...
def positional(*words: str) -> None: ...
def anything(**parameters: str) -> dict[str, str]:
    return parameters


@pytest.mark.parametrize(
    ("decorate", "fn", "named"),
    [
        (app.asgi(), required, "required cannot be an asgi service, which is called without arguments: missing a requ"),
        (app.wsgi_app(), required, "required cannot be a wsgi_app service, which is called without arguments"),
        (app.web_server(0), two, "two cannot be a web_server service, which is called with no argument but `port`"),
        (app.asgi(), generator, "generator is a generator, and cannot be an asgi service"),
        (app.wsgi_app(), agenerator, "agenerator is a generator, and cannot be a wsgi_app service"),
        (app.web_server(0), generator, "generator is a generator, and cannot be a web_server service"),
        (app.wsgi_app(), coroutine, "coroutine is async, and cannot be a wsgi_app service"),
        (app.endpoint(), positional, "positional takes *words, and a request's values have names"),
        (app.endpoint(path="/{id}/{rest:path}"), required, "has {id}, and required has no parameter id"),
        (app.asgi(), apothic.batched(max_batch_size=2, wait_ms=1)(lambda items=(): items), "cannot be batched"),
        (app.endpoint(concurrent_requests=3), apothic.concurrent(max_inputs=4)(lambda: 1), "says 3 and @concurrent s"),
    ],
)
def test_what_cannot_be_a_service_is_refused(decorate: Any, fn: Callable[..., Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decorate(fn)
    assert named in str(caught.value)
    assert caught.value.hint
    assert fn.__name__ not in app.functions


def test_what_can_be_a_service_is_not_refused() -> None:
    other = App("other")
    assert other.asgi()(coroutine).kind == "asgi"
    assert other.web_server(0)(coroutine).kind == "web_server"
    assert other.endpoint(path="/{id}")(anything).kind == "endpoint"
    assert other.fastapi_endpoint(path="/{id}")(required).kind == "fastapi_endpoint"  # FastAPI has other ways to it
    assert other.endpoint()(generator).kind == "endpoint"


def test_only_functions_can_be_declared() -> None:
    with pytest.raises(TypeError, match=r"@app\.asgi\(\) takes a function that returns the app, not App"):
        app.asgi()(app)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"@app\.endpoint\(\) takes a function, not Function"):
        app.endpoint()(plain)


def test_a_parameter_that_methods_of_jobs_have_is_no_matter_here(recwarn: pytest.WarningsRecorder) -> None:
    @App("quiet").endpoint()
    def waits(timeout_s: float) -> float:
        return timeout_s

    assert len(recwarn) == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda: web.remote(), lambda: web.spawn(), lambda: web.map([1]), lambda: web.starmap([(1,)]),
        lambda: web.for_each([1]), lambda: web.map_iter([1]), lambda: web.spawn_map([1]),
        lambda: web.remote_gen(), lambda: web.remote_events(),  # type: ignore[misc]
        lambda: web.with_options(timeout_s=3).spawn(),
    ],
)  # fmt: skip
def test_a_service_runs_no_jobs_and_nothing_is_asked(ask: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"shop\.web is an asgi service: it answers HTTP, at its get_web_url\(\)"):
        ask()


async def test_nor_does_its_asynchronous_side() -> None:
    with pytest.raises(TypeError, match=r"shop\.item is an endpoint service"):
        await item.aio.spawn(1)
    with pytest.raises(TypeError, match=r"shop\.letters is an endpoint service"):
        letters.aio.remote_gen("abc")
    with pytest.raises(TypeError, match=r"shop\.letters is an endpoint service"):
        await letters.aio.map(["abc"])


def test_a_plain_function_has_no_url() -> None:
    assert plain.service_url is None
    with pytest.raises(NotAServiceError, match=r"shop\.plain is a plain function"):
        plain.get_web_url()


def test_no_server_is_started_to_know_that_there_is_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APOTHIC_BASE_URL", raising=False)
    monkeypatch.setenv("APOTHIC_DATA_DIR", str(tmp_path / "data"))
    lonely = App("lonely", client=ControlPlaneClient())
    assert lonely.endpoint()(anything).service_url is None
    assert not (tmp_path / "data").exists()


def test_a_service_keeps_its_kind_wherever_it_goes() -> None:
    renamed = app.renamed("market")
    assert {name: one.kind for name, one in renamed.functions.items()} == {**SERVICES, "plain": "function"}
    assert renamed.manifest().functions == app.manifest().functions
    assert pickle.loads(pickle.dumps(web)) is web
    assert web.with_options(timeout_s=1).kind == "asgi"
    assert isinstance(sys.modules[__name__].web, Function)


@pytest.mark.parametrize(("kind", "said"), [("asgi", "an asgi service"), ("endpoint", "an endpoint service"),
                                            ("wsgi_app", "a wsgi_app service")])  # fmt: skip
def test_a_kind_is_named_with_its_article(kind: str, said: str) -> None:
    assert described(kind) == said
