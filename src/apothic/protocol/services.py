"""What makes a function a service: its kind, the few things that only services have, and where it is found."""

from __future__ import annotations

import re

from msgspec import Struct
from msgspec.structs import force_setattr

from apothic.errors import ConfigError

SERVICE_KINDS = ("endpoint", "asgi", "fastapi_endpoint", "wsgi_app", "web_server")
# Requests at once in one container unless it says otherwise: they mostly wait for others, where jobs compute.
CONCURRENCY = 100
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_PATH = re.compile(r"/(?:[A-Za-z0-9._~@:+,;=$&!*'()-]|\{[A-Za-z_][A-Za-z0-9_]*(?::path)?\}|/)*")


class ServiceSpec(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Hold what a service's decorator was given beside the options, checked.

    `method` and `path` are those that an endpoint answers to, `path` with parameters as in `/items/{id}`. `docs` shows
    a FastAPI endpoint's own pages. `port` is where a web server listens, 0 for a free one, and `startup_timeout_s` how
    long it may take until it does. Raises `ConfigError`.

    >>> ServiceSpec(method="post", path="/items/{id}").method
    'POST'
    """

    method: str = "GET"
    path: str = "/"
    docs: bool = True
    port: int = 0
    startup_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        method = self.method.upper() if isinstance(self.method, str) else self.method
        if method not in METHODS:
            raise ConfigError(f"method cannot be {self.method!r}", hint=f"method is one of {', '.join(METHODS)}")
        force_setattr(self, "method", method)
        if not isinstance(self.path, str) or _PATH.fullmatch(self.path) is None:
            raise ConfigError(f"path cannot be {self.path!r}", hint="path begins with '/', such as '/items/{id}'")
        if type(self.docs) is not bool:
            raise ConfigError(f"docs cannot be {self.docs!r}", hint="docs is True or False")
        if type(self.port) is not int or not 0 <= self.port <= 65_535:
            raise ConfigError(f"port cannot be {self.port!r}", hint="port is a whole number from 0 to 65,535")
        wait = self.startup_timeout_s
        if type(wait) not in (int, float) or not 0.1 <= wait <= 86_400:
            raise ConfigError(
                f"startup_timeout cannot be {wait!r}", hint="it is a number of seconds from 0.1 to 86,400"
            )
        force_setattr(self, "startup_timeout_s", float(wait))


def described(kind: str) -> str:
    """Return a kind with its article, as messages say it.

    >>> described("asgi"), described("web_server")
    ('an asgi service', 'a web_server service')
    """
    return f"a{'n' if kind[0] in 'ae' else ''} {kind} service"


def mount(app: str, name: str) -> str:
    """Return the path below which a service's own paths begin."""
    return f"/{app}/{name}"


def service_url(gateway_url: str, app: str, name: str) -> str:
    """Return where a service is found; it stays the same from deployment to deployment."""
    return f"{gateway_url}{mount(app, name)}/"
