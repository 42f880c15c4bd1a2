"""Teaches schemathesis MessagePack. It is loaded by name in its own process."""

from __future__ import annotations

from typing import Any

import msgspec
import schemathesis
from schemathesis import DeserializationContext, Response, SerializationContext


@schemathesis.serializer("application/msgpack")
def pack(context: SerializationContext, value: Any) -> bytes:
    """Encode a body; what MessagePack has no form for goes as its text."""
    try:
        return msgspec.msgpack.encode(value, enc_hook=str)
    except (OverflowError, UnicodeEncodeError):
        return msgspec.msgpack.encode(repr(value))


@schemathesis.deserializer("application/msgpack")
def unpack(context: DeserializationContext, response: Response) -> Any:
    """Decode an answer."""
    return msgspec.msgpack.decode(response.content)
