"""What needs no key and is made from the route table: `/openapi.json`, and `/docs`, which shows it."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any, get_type_hints

import msgspec

from apothic import __version__
from apothic.control import metrics
from apothic.errors import family
from apothic.protocol.messages import ErrorReply
from apothic.protocol.routes import ROUTES, Route

METRICS_ABOUT = "Counts as Prometheus text"
# One server-sent event. OpenAPI 3.1 has no word for a sequence of them.
_FRAME = {"type": "object", "properties": {name: {"type": "string"} for name in ("id", "event", "data")}}


@dataclass(frozen=True)
class Page:
    """A page, made on first demand."""

    content_type: str
    body: Callable[[], bytes]


def find(method: str, path: str) -> Page | None:
    """Return the page at a path, if there is one."""
    return PAGES.get(path) if method == "GET" else None


@cache
def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of every route, from the declarations the server decodes with."""
    asks = [get_type_hints(route.ask)[route.body] if _named(route) else route.ask for route in ROUTES]
    kinds = [*asks, *(route.reply for route in ROUTES), ErrorReply]
    (schemas, components) = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for n, route in enumerate(ROUTES):
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(
            route, body=schemas[n], reply=schemas[len(ROUTES) + n], error=schemas[-1], components=components
        )
    paths[metrics.PATH] = {
        "get": {
            "operationId": "metrics",
            "summary": METRICS_ABOUT,
            "responses": {
                "200": {"description": "Done", "content": {"text/plain": {"schema": {"type": "string"}}}},
                **_refusals({400, 401, 403}, schemas[-1]),
            },
            "security": [{"key": []}],
            "x-scope": metrics.SCOPE,
        }
    }
    codes = sorted({f"{cls.http} {cls.code}" for cls in family()})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "apothic",
            "version": __version__,
            "description": "Errors are {error: {code, message, hint, details}}. Codes: " + ", ".join(codes),
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key"}},
        },
    }


def _named(route: Route[Any, Any]) -> bool:
    return route.body not in ("", "*")


def _operation(
    route: Route[Any, Any], *, body: dict[str, Any], reply: dict[str, Any], error: dict[str, Any], components: Any
) -> dict[str, Any]:
    # A named body is not in the components under the ask's own name; its other fields are plain.
    ask = components.get(route.ask.__name__) or msgspec.json.schema_components([route.ask])[1][route.ask.__name__]
    declared = ask["properties"]
    query = route.query or (() if route.body else tuple(name for name in declared if name not in route.in_path))
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.about,
        "parameters": [
            {"name": name, "in": place, "required": place == "path", "schema": declared[name]}
            for place, names in (("path", route.in_path), ("query", query))
            for name in names
        ],
        "responses": {
            "200": {"description": "Done", "content": _content(route, reply)},
            **_refusals(_statuses(route), error),
        },
    }
    if route.ask.__name__ in ("Submit", "ShowResult"):
        operation["responses"]["202"] = {"description": "Not ended yet", "content": _content(route, reply)}
    if route.body == "*":
        kept = {name: part for name, part in declared.items() if name not in (*route.in_path, *route.query)}
        required = [name for name in ask.get("required", ()) if name in kept]
        body = {"type": "object", "properties": kept, "required": required}
    if route.name == "readyz":
        operation["responses"]["503"] = {"description": "Not ready", "content": _content(route, reply)}
    if route.body:
        operation["requestBody"] = {"required": True, "content": _either(body)}
    elif route.raw and route.method == "PUT":
        operation["requestBody"] = {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}
    operation["security"] = [{"key": []}] if route.scope is not None else []
    if route.scope is not None:
        operation["x-scope"] = route.scope
    return operation


def _content(route: Route[Any, Any], reply: dict[str, Any]) -> dict[str, Any]:
    if route.raw and route.method == "GET":
        return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    content = _either(reply) if not route.raw else {"application/json": {"schema": reply}}
    return content | ({"text/event-stream": {"schema": _FRAME}} if route.streamed else {})


def _either(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}, "application/msgpack": {"schema": schema}}


def _statuses(route: Route[Any, Any]) -> set[int]:
    """Return the statuses under which a route refuses. A 500 is none of them: it is a bug wherever it comes."""
    told = {400, 403}  # 403 is also what a page of another origin is told
    if route.scope is not None:
        told |= {401, 404, 503}
    if route.method not in ("GET", "HEAD"):
        told |= {409, 507}
    if route.body or (route.raw and route.method == "PUT"):
        told |= {413, 415, 422}
    if "job" in route.in_path:
        told |= {410}
    if route.scope == "invoke" or route.streamed:
        told |= {429}
    return told


def _refusals(statuses: set[int], error: dict[str, Any]) -> dict[str, Any]:
    return {
        str(status): {"description": HTTPStatus(status).phrase, "content": _either(error)}
        for status in sorted(statuses)
    }


@cache
def docs() -> bytes:
    """Return the page for people: every route, its scope and its parameters. It loads nothing from elsewhere."""
    rows = "".join(
        f"<tr><td><code>{route.method}</code></td><td><code>{html.escape(route.path)}</code></td>"
        f"<td>{html.escape(route.about)}</td><td>{html.escape(route.scope or 'none needed')}</td></tr>"
        for route in ROUTES
    )
    rows += f"<tr><td><code>GET</code></td><td><code>{metrics.PATH}</code></td><td>{METRICS_ABOUT}</td>"
    rows += f"<td>{metrics.SCOPE}</td></tr>"
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>apothic {__version__}: HTTP interface</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #8884; vertical-align: top; }}
</style>
<h1>apothic {__version__}</h1>
<p>Send an API key as <code>Authorization: Bearer …</code>. Bodies are JSON, or MessagePack with
<code>application/msgpack</code>. The full description is <a href="/openapi.json">/openapi.json</a>.</p>
<table><thead><tr><th>Method</th><th>Path</th><th>What</th><th>Scope</th></tr></thead><tbody>{rows}</tbody></table>
</html>
""".encode()


PAGES = {
    "/openapi.json": Page("application/json", lambda: msgspec.json.encode(openapi())),
    "/docs": Page("text/html; charset=utf-8", docs),
}
