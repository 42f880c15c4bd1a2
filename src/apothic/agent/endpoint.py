"""An endpoint: a plain function as a small ASGI app, without a framework."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import msgspec

from apothic.agent.answers import Answers, json
from apothic.agent.conduct import is_async
from apothic.agent.parameters import Parameters
from apothic.errors import ApothicError, InvalidRequestError, PayloadTooLargeError
from apothic.protocol.services import ServiceSpec

_BODILESS = ("GET", "HEAD", "OPTIONS")


class Endpoint:
    """Serves `entry` at the one path and method that `service` names. A body may have `longest` bytes.

    Raises `ConfigError` for a function that cannot be called by name.
    """

    def __init__(self, entry: Callable[..., Any], service: ServiceSpec, *, threads: int, longest: int) -> None:
        self._entry = entry
        self._async = is_async(entry)
        self._parameters = Parameters(entry, service.path)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="request")
        self._answers = Answers(self._threads)
        self._longest = longest
        methods = [service.method, *(["HEAD"] if service.method == "GET" else [])]
        self._methods = methods if "OPTIONS" in methods else [*methods, "OPTIONS"]
        self._method = service.method

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})  # before it was accepted: a plain refusal
            return
        path = self._parameters.match(scope["path"].removeprefix(scope["root_path"]) or "/")
        if path is None:
            await _refuse(send, 404, "not_found", f"there is nothing at {scope['path']}")
        elif scope["method"] not in self._methods:
            allowed = ", ".join(self._methods)
            message = f"{scope['method']} is not answered here, {allowed} {'is' if len(self._methods) == 1 else 'are'}"
            await _refuse(send, 405, "method_not_allowed", message, headers=[(b"allow", allowed.encode())])
        elif scope["method"] == "OPTIONS" and self._method != "OPTIONS":
            headers = [(b"allow", ", ".join(self._methods).encode())]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._answer(path, scope, receive, send)

    async def _answer(self, path: Mapping[str, str], scope: Any, receive: Any, send: Any) -> None:
        try:
            query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            given: tuple[Any, ...] = (path, query)
            if scope["method"] not in _BODILESS and self._parameters.wants_body({**query, **path}):
                data = await self._body(receive)
                given = (path, query, _read(data, scope)) if data else given
            args, kwargs = self._parameters.bind(*given)
        except _Left:
            return
        except ApothicError as error:
            status = 422 if isinstance(error, InvalidRequestError) else error.http
            await _refuse(send, status, error.code, error.message, hint=error.hint, details=error.details)
            return
        begun = False

        async def begin(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            result = await self._called(args, kwargs)
            await self._answers.send(result, scope, receive, begin)
        except (Exception, SystemExit) as error:
            traceback.print_exception(error, file=sys.stderr)
            if not begun:
                hint = "its traceback is in the service's log: apothic app logs"
                await _refuse(send, 500, "failed", "the function failed", hint=hint)
            # An answer that had begun is left unfinished: uvicorn cuts the connection, and nobody takes it for whole.

    async def _called(self, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if self._async:
            made = self._entry(*args, **kwargs)
            return await made if hasattr(made, "__await__") else made
        work = partial(contextvars.copy_context().run, self._entry, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _body(self, receive: Any) -> bytes:
        data = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Left
            data += message.get("body", b"")
            if len(data) > self._longest:
                hint = "send less, or raise the function's memory_mb or max_request_mb"
                raise PayloadTooLargeError(size=len(data), limit=self._longest, what="the JSON body", hint=hint)
            if not message.get("more_body", False):
                return bytes(data)


class _Left(Exception):
    """The caller left before its request was whole."""


def _read(data: bytes, scope: Any) -> Any:
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"application/json")
    plain = kind.split(b";")[0].strip().lower().decode("latin-1")
    if plain != "application/json" and not plain.endswith("+json"):
        raise InvalidRequestError(
            f"the body is {plain}, and it has to be JSON", hint="send it with Content-Type: application/json"
        )
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the body is no JSON: {error}") from None


async def _refuse(
    send: Any,
    status: int,
    code: str,
    message: str,
    *,
    hint: str = "",
    details: dict[str, Any] | None = None,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    body = json({"error": {"code": code, "message": message, "hint": hint, "details": details or {}}})
    own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body})
