"""What a handle knows of services: which functions can be one, that they run no jobs, and where they are found."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from apothic.client.connection import ControlPlaneClient
from apothic.clock import SystemClock
from apothic.errors import ConfigError, ConflictError, NotAServiceError, NotFoundError, WaitTimeoutError
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.protocol.services import ServiceSpec, described
from apothic.protocol.specs import FunctionOptions

LOOK_S = 1.0  # of one look at a deployment that starts; the server answers sooner when there is news
_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)")


# --- which functions --------------------------------------------------------------------------------------------


def check_options(options: FunctionOptions) -> None:
    """Refuse what only jobs have. Raises `ConfigError`."""
    if options.schedule is not None:
        raise ConfigError(
            "a service cannot have a schedule: it runs when it is asked",
            hint="schedule a function that asks the service's URL",
        )
    if options.max_retries:
        raise ConfigError(
            "a service cannot have retries: they are tries at a job, and a request is none",
            hint="leave retries out; an idempotent request whose container dies is tried again by itself",
        )


def check_service(fn: Callable[..., Any], kind: m.Kind, service: ServiceSpec, options: FunctionOptions) -> None:
    """Refuse a function that cannot be a service of that kind. Raises `ConfigError`."""
    name = fn.__qualname__
    if options.batching is not None:
        raise ConfigError(
            f"{name} cannot be batched: {described(kind)} answers one request at a time",
            hint="call a batched function from it, with await fn.aio.remote(...)",
        )
    if kind in ("endpoint", "fastapi_endpoint"):
        if kind == "endpoint":
            _check_path(fn, service.path)
        return
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise ConfigError(
            f"{name} is a generator, and cannot be {described(kind)}",
            hint="only an endpoint yields its answer; write @app.endpoint()",
        )
    if kind == "wsgi_app" and inspect.iscoroutinefunction(fn):
        raise ConfigError(
            f"{name} is async, and cannot be {described(kind)}", hint="return an ASGI app, and write @app.asgi()"
        )
    _check_called(fn, kind)


def _check_called(fn: Callable[..., Any], kind: m.Kind) -> None:
    signature = inspect.signature(fn)
    given = {"port": 0} if kind == "web_server" and "port" in signature.parameters else {}
    try:
        signature.bind(**given)
    except TypeError as error:
        with_port = " with no argument but `port`" if kind == "web_server" else " without arguments"
        raise ConfigError(
            f"{fn.__qualname__} cannot be {described(kind)}, which is called{with_port}: {error}",
            hint="give every parameter a default, or take it from the environment",
        ) from None


def _check_path(fn: Callable[..., Any], path: str) -> None:
    parameters = inspect.signature(fn).parameters
    kinds = {one.kind: name for name, one in parameters.items()}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        raise ConfigError(
            f"{fn.__qualname__} takes *{kinds[inspect.Parameter.VAR_POSITIONAL]}, and a request's values have names",
            hint="name the parameters, or take **others",
        )
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return
    for name in _PLACE.findall(path):
        if name not in parameters:
            raise ConfigError(
                f"path {path!r} has {{{name}}}, and {fn.__qualname__} has no parameter {name}",
                hint=f"add the parameter {name}, or take it out of the path",
            )


# --- no jobs ----------------------------------------------------------------------------------------------------


def refuse_jobs(kind: str, where: str) -> None:
    """Raise `TypeError` that names where a service answers when it is asked to run as a job."""
    if kind != "function":
        raise TypeError(f"{where} is {described(kind)}: it answers HTTP, at its get_web_url(), and runs no jobs")


# --- where it is found ------------------------------------------------------------------------------------------


async def web_url(client: ControlPlaneClient, app: str, name: str) -> str:
    """Return the URL of a deployed service. Waits while its first deployment starts, at most the client's `timeout_s`.

    Raises `NotAServiceError`, `NotFoundError`, `WaitTimeoutError`.
    """
    from apothic.client.remote import find  # which imports this

    clock = SystemClock()
    until = clock.monotonic() + client.timeout_s
    while True:
        try:
            return _url(await find(client, app, name))
        except NotFoundError:
            starting = await _starting(client, app, name)
            if starting is None:
                raise
        left = until - clock.monotonic()
        if left <= 0:
            raise WaitTimeoutError(
                f"{app}.{name} is {starting.status} after {client.timeout_s:g} s",
                hint="it goes on; a client with a larger timeout_s waits longer",
            )
        begun = clock.monotonic()
        look = m.ShowDeployment(deployment=starting.id, wait_s=min(LOOK_S, left))
        seen = await client._ask(routes.SHOW_DEPLOYMENT, look, max(left, 1.0))
        if seen.status == starting.status:
            await clock.sleep(max(0.0, min(LOOK_S, left) - (clock.monotonic() - begun)))


def _url(view: m.FunctionView) -> str:
    if view.kind == "function":
        raise no_service(view.app, view.name)
    if view.service_url is None:
        raise ConflictError(
            f"{view.app}.{view.name} has no URL: the control plane serves none",
            hint="start a control plane with a gateway",
        )
    return view.service_url


def no_service(app: str, name: str) -> NotAServiceError:
    """Return the error of a plain function that is asked for its URL."""
    return NotAServiceError(f"{app}.{name} is a plain function and serves no URL", hint=f"call it: {name}.remote(...)")


async def _starting(client: ControlPlaneClient, app: str, name: str) -> m.DeploymentView | None:
    try:
        found = await client._ask(routes.LIST_DEPLOYMENTS, m.ListDeployments(app=app), None)
    except NotFoundError:
        return None
    for view in found.deployments:
        if view.status in ("building", "starting") and any(one.name == name for one in view.functions):
            return view
    return None
