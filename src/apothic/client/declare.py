"""`Declaring`, the decorator that makes a handle of a function; `Serving`, those of an app that make services."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from apothic.client.function import Function, options_of, warn_of_ambiguity
from apothic.client.web import check_options, check_service
from apothic.protocol.messages import Kind
from apothic.protocol.services import CONCURRENCY, ServiceSpec
from apothic.protocol.specs import Cron, FunctionOptions, Period, Retries

if TYPE_CHECKING:
    from apothic.client.app import App

P = ParamSpec("P")
R = TypeVar("R")

_BY_DECORATOR = {"concurrency", "batching"}


class Declaring:
    """What `app.function(...)`, `app.endpoint(...)` and the others return: the decorator."""

    def __init__(
        self, app: App, options: dict[str, Any], kind: Kind = "function", service: ServiceSpec | None = None
    ) -> None:
        self._app = app
        self._options = options
        self._kind: Kind = kind
        self._service = service

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]]) -> Function[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> Function[P, R, R]: ...
    def __call__(self, fn: Callable[..., Any]) -> Function[..., Any, Any]:
        if isinstance(fn, Function) or not inspect.isfunction(fn):
            what = "a function that returns the app" if self._kind in ("asgi", "wsgi_app") else "a function"
            raise TypeError(f"@app.{self._kind}() takes {what}, not {type(fn).__name__}")
        if self._service is None:
            warn_of_ambiguity(fn, stacklevel=2)
            options = options_of(fn, self._options)
        else:
            options = options_of(fn, self._options, at_once=CONCURRENCY)
            check_service(fn, self._kind, self._service, options)
        return self._app._declare(Function(self._app, fn, options, self._kind, self._service))


class Serving:
    """The decorators of an app for functions that answer HTTP; docs/services.md says how each kind works.

    Each takes the options of `@app.function`, and three of its own: `service_startup_timeout_s`, the seconds that one
    may take to start; `requires_key`, whether requests need an API key (`None`: only where the gateway can be reached
    from other machines); `max_request_mb`, the largest body of a request. Each raises `ConfigError` that names the
    option, and what is allowed.
    """

    def endpoint(
        self,
        *,
        method: str = "GET",
        path: str = "/",
        schedule: Cron | Period | None = None,
        cpu: float = 1,
        memory_mb: int = 1024,
        gpu: str | list[str] | None = None,
        timeout_s: int = 600,
        retries: int | Retries | None = None,
        max_retries: int = 0,
        concurrent_requests: int = CONCURRENCY,
        max_pending_tasks: int = 10_000,
        max_containers: int = 1,
        tasks_per_container: int = 1,
        keep_warm_s: int = 600,
        stream_window: int = 10_000,
        image: Any = None,
        secrets: Any = None,
        volumes: Any = None,
        service_startup_timeout_s: float | None = None,
        requires_key: bool | None = None,
        max_request_mb: int = 2048,
    ) -> Declaring:
        """Declare a function that takes a request's parameters and returns the answer. Raises `ConfigError`."""
        return self._serving("endpoint", locals(), ServiceSpec(method=method, path=path))

    def asgi(
        self,
        *,
        schedule: Cron | Period | None = None,
        cpu: float = 1,
        memory_mb: int = 1024,
        gpu: str | list[str] | None = None,
        timeout_s: int = 600,
        retries: int | Retries | None = None,
        max_retries: int = 0,
        concurrent_requests: int = CONCURRENCY,
        max_pending_tasks: int = 10_000,
        max_containers: int = 1,
        tasks_per_container: int = 1,
        keep_warm_s: int = 600,
        stream_window: int = 10_000,
        image: Any = None,
        secrets: Any = None,
        volumes: Any = None,
        service_startup_timeout_s: float | None = None,
        requires_key: bool | None = None,
        max_request_mb: int = 2048,
    ) -> Declaring:
        """Declare a function that returns an ASGI app; it is called once in each container. Raises `ConfigError`."""
        return self._serving("asgi", locals(), ServiceSpec())

    def fastapi_endpoint(
        self,
        *,
        method: str = "GET",
        path: str = "/",
        docs: bool = True,
        schedule: Cron | Period | None = None,
        cpu: float = 1,
        memory_mb: int = 1024,
        gpu: str | list[str] | None = None,
        timeout_s: int = 600,
        retries: int | Retries | None = None,
        max_retries: int = 0,
        concurrent_requests: int = CONCURRENCY,
        max_pending_tasks: int = 10_000,
        max_containers: int = 1,
        tasks_per_container: int = 1,
        keep_warm_s: int = 600,
        stream_window: int = 10_000,
        image: Any = None,
        secrets: Any = None,
        volumes: Any = None,
        service_startup_timeout_s: float | None = None,
        requires_key: bool | None = None,
        max_request_mb: int = 2048,
    ) -> Declaring:
        """Declare a FastAPI path function, which gets a FastAPI app of its own, with `docs` at `docs`.

        FastAPI must be installed where the agent runs. Raises `ConfigError`.
        """
        return self._serving("fastapi_endpoint", locals(), ServiceSpec(method=method, path=path, docs=docs))

    def wsgi_app(
        self,
        *,
        schedule: Cron | Period | None = None,
        cpu: float = 1,
        memory_mb: int = 1024,
        gpu: str | list[str] | None = None,
        timeout_s: int = 600,
        retries: int | Retries | None = None,
        max_retries: int = 0,
        concurrent_requests: int = CONCURRENCY,
        max_pending_tasks: int = 10_000,
        max_containers: int = 1,
        tasks_per_container: int = 1,
        keep_warm_s: int = 600,
        stream_window: int = 10_000,
        image: Any = None,
        secrets: Any = None,
        volumes: Any = None,
        service_startup_timeout_s: float | None = None,
        requires_key: bool | None = None,
        max_request_mb: int = 2048,
    ) -> Declaring:
        """Declare a function that returns a WSGI app; it is called once in each container. Raises `ConfigError`."""
        return self._serving("wsgi_app", locals(), ServiceSpec())

    def web_server(
        self,
        port: int,
        *,
        startup_timeout: float = 5.0,
        schedule: Cron | Period | None = None,
        cpu: float = 1,
        memory_mb: int = 1024,
        gpu: str | list[str] | None = None,
        timeout_s: int = 600,
        retries: int | Retries | None = None,
        max_retries: int = 0,
        concurrent_requests: int = CONCURRENCY,
        max_pending_tasks: int = 10_000,
        max_containers: int = 1,
        tasks_per_container: int = 1,
        keep_warm_s: int = 600,
        stream_window: int = 10_000,
        image: Any = None,
        secrets: Any = None,
        volumes: Any = None,
        service_startup_timeout_s: float | None = None,
        requires_key: bool | None = None,
        max_request_mb: int = 2048,
    ) -> Declaring:
        """Declare a function that starts a server on `port`, within `startup_timeout` seconds.

        Port 0 is a free one, for each container its own: the function finds it in its parameter `port`, if it has
        one, and in the variable `PORT`. Raises `ConfigError`.
        """
        return self._serving("web_server", locals(), ServiceSpec(port=port, startup_timeout_s=startup_timeout))

    def _serving(self, kind: Kind, given: Mapping[str, Any], service: ServiceSpec) -> Declaring:
        options = {name: given[name] for name in FunctionOptions.__struct_fields__ if name not in _BY_DECORATOR}
        check_options(FunctionOptions(**options))  # so that the error points here
        return Declaring(cast("App", self), options, kind, service)
