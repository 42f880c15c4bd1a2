"""A route's message ↔ the parts of an HTTP request, and an answer's body → a message or the error that it names."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from apothic import errors
from apothic.protocol.messages import ErrorReply
from apothic.protocol.routes import Route

R = TypeVar("R", bound=Struct)

MSGPACK = "application/msgpack"
_decoders: dict[tuple[type[Struct], bool], Any] = {}
_forms: dict[str, Form] = {}


class Form:
    """Which fields of a route's message go where."""

    def __init__(self, route: Route[Any, Any]) -> None:
        fields = [field.name for field in msgspec.structs.fields(route.ask)]
        rest = [name for name in fields if name not in route.in_path]
        self._route = route
        self._query = [name for name in rest if not route.body or name in route.query]
        self._body = [name for name in rest if name not in self._query]
        self.has_body = bool(route.body)

    def path(self, message: Struct) -> str:
        """Return the path."""
        return self._route.path.format(
            **{name: quote(str(getattr(message, name)), safe="") for name in self._route.in_path}
        )

    def query(self, message: Struct) -> list[tuple[str, str]]:
        """Return the parameters: a list's name once for each member, a flag as 1 or not at all."""
        told: list[tuple[str, str]] = []
        for name in self._query:
            value = getattr(message, name)
            for one in value if isinstance(value, list) else [value]:
                if one is not None and one is not False:
                    told.append((name, "1" if one is True else str(one)))
        return told

    def body(self, message: Struct) -> bytes | None:
        """Return the body, if the route has one."""
        if not self.has_body:
            return None
        if self._route.body != "*":
            return msgspec.msgpack.encode(getattr(message, self._route.body))
        told = {name: getattr(message, name) for name in self._body}
        return msgspec.msgpack.encode({name: value for name, value in told.items() if value is not None})


def form_of(route: Route[Any, Any]) -> Form:
    """Return the route's form, made once."""
    form = _forms.get(route.name)
    if form is None:
        form = _forms[route.name] = Form(route)
    return form


def decode(kind: type[R], content_type: str, body: bytes) -> R:
    """Read an answer. Raises `VersionMismatchError` when it is no such message."""
    binary = content_type.startswith(MSGPACK)
    decoder = _decoders.get((kind, binary))
    if decoder is None:
        decoder = (msgspec.msgpack if binary else msgspec.json).Decoder(kind)
        _decoders[kind, binary] = decoder
    try:
        return decoder.decode(body)  # type: ignore[no-any-return]
    except msgspec.MsgspecError as error:
        raise errors.VersionMismatchError(
            f"the answer cannot be read as {kind.__name__}: {error}",
            hint="look whether a control plane of this version runs there",
        ) from None


def read_error(body: bytes, content_type: str) -> errors.ApothicError | None:
    """Return the error that a body names; `None` when it names none, so is not of ours."""
    if not body:
        return None
    try:
        codec = msgspec.msgpack if content_type.startswith(MSGPACK) else msgspec.json
        told = codec.decode(body, type=ErrorReply).error
    except msgspec.MsgspecError:
        return None
    return errors.from_wire(told.code, told.message, told.hint, told.details)
