"""The ASGI app behind a service, made from the user's function by its kind."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from apothic.agent.frames import Setup
from apothic.errors import ConfigError
from apothic.protocol.services import ServiceSpec


async def make(setup: Setup, entry: Callable[..., Any]) -> Any:
    """Return the app. Raises what the function raises; `ConfigError` for what is no app of the kind."""
    spec = setup.function
    service = spec.service or ServiceSpec()
    threads = spec.options.inputs_at_once
    if spec.kind == "endpoint":
        from apothic.agent.endpoint import Endpoint

        # Parsed, JSON takes some ten times its size, and a request shall not end the container.
        longest = min(spec.options.max_request_mb << 20, (spec.options.memory_mb << 20) // 16)
        return Endpoint(entry, service, threads=threads, longest=longest)
    if spec.kind == "fastapi_endpoint":
        return _fastapi(spec.name, entry, service)
    # A WSGI app is made as it is run, in a thread: Django refuses its database where an event loop runs.
    made = await asyncio.to_thread(entry) if spec.kind == "wsgi_app" else entry()
    app = await made if inspect.isawaitable(made) else made
    if spec.kind == "wsgi_app":
        from apothic.agent.wsgi import Wsgi

        _check(app, spec.name, "WSGI", ("environ", "start_response"))
        return Wsgi(app, threads=threads)
    _check(app, spec.name, "ASGI", ("scope", "receive", "send"))
    return app


def _check(app: Any, name: str, sort: str, takes: tuple[str, ...]) -> None:
    if callable(app) and _fits(app, len(takes)):
        return
    what = "nothing" if app is None else f"an object of type {type(app).__name__}"
    hint = f"return the app itself, a callable that takes ({', '.join(takes)})"
    if callable(app) and _fits(app, 5 - len(takes)):
        other, kind = ("WSGI", "wsgi_app") if sort == "ASGI" else ("ASGI", "asgi")
        what, hint = f"a {other} app", f"decorate it with @app.{kind}(...)"
    raise ConfigError(f"{name} returned {what}, no {sort} app", hint=hint)


def _fits(app: Any, count: int) -> bool:
    try:
        inspect.signature(app).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # it does not tell
        return True
    return True


def _fastapi(name: str, entry: Callable[..., Any], service: ServiceSpec) -> Any:
    try:
        from fastapi import FastAPI
    except ImportError as error:
        raise ConfigError(
            f"{name} is a FastAPI endpoint and fastapi cannot be imported: {error}",
            hint="install fastapi where the agent runs, or use @app.endpoint, which needs nothing",
        ) from None
    shown = {} if service.docs else {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = FastAPI(title=name, **shown)  # type: ignore[arg-type]
    app.add_api_route(service.path, entry, methods=[service.method])
    return app
