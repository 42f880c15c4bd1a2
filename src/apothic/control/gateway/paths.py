"""Where a request is meant to go: `/{app}/{function}/…`, and nothing outside of it."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from apothic.control.gateway.refusals import Refusal
from apothic.protocol.services import mount

_NAME = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Most targets: a path none of whose parts begins with a dot or has anything to decode leads out of nothing.
_PLAIN = re.compile(
    rb"/([A-Za-z0-9_][A-Za-z0-9_.-]*)/([A-Za-z0-9_][A-Za-z0-9_.-]*)"
    rb"((?:/(?:[\w~!$&'()*+,;=:@-][\w~!$&'()*+,;=:@.-]*)?)*)(\?[^\x00-\x20\x7f#]*)?"
)
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_SEPARATORS = re.compile(rb"[/\\]")
_UNPRINTABLE = re.compile(rb"[\x00-\x20\x7f#]")


class Place(NamedTuple):
    """A service, and the target that its container is asked for; `rest` is empty without a slash behind the name."""

    app: str
    function: str
    rest: bytes
    query: bytes

    @property
    def mount(self) -> str:
        """Return the path that the service is at."""
        return mount(self.app, self.function)

    @property
    def target(self) -> bytes:
        """Return the request target for the container, with the query if there is one."""
        return self.rest + self.query


def place(target: bytes, host: bytes) -> Place:
    """Return what a request target means. Raises `Refusal`.

    Paths are never rewritten, because what looks the same to us may differ for the application; those that would lead
    out of the service once they are decoded are refused (nginx and its backends have disagreed about `/a/..%2f` often).
    """
    if (plain := _PLAIN.fullmatch(target)) is not None:
        return Place(plain[1].decode(), plain[2].decode(), plain[3], plain[4] or b"")
    if (absolute := _ABSOLUTE.fullmatch(target)) is not None:
        if absolute[1].lower() != host.lower():
            raise Refusal(400, "bad_request", "the target names another host than the Host header")
        target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]
    if not target.startswith(b"/") or _UNPRINTABLE.search(target):
        raise Refusal(400, "bad_request", "the request target is no path")
    path, mark, query = target.partition(b"?")
    parts = path.split(b"/")
    if len(parts) < 3 or not all(_NAME.fullmatch(name) for name in parts[1:3]):
        raise Refusal(404, "not_found", "there is no service at this path", hint="services are at /{app}/{function}/")
    _check_inside(parts[3:])
    rest = b"".join(b"/" + part for part in parts[3:])
    return Place(parts[1].decode(), parts[2].decode(), rest, mark + query)


def _check_inside(parts: list[bytes]) -> None:
    depth = 0
    for part in parts:
        decoded = unquote_to_bytes(part) if b"%" in part else part
        if b"\0" in decoded:
            raise Refusal(400, "bad_request", "the path has a NUL in it")
        for step in _SEPARATORS.split(decoded):
            depth += -1 if step == b".." else step not in (b"", b".")
            if depth < 0:
                raise Refusal(400, "bad_request", "the path leads out of the service")
