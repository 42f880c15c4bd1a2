"""Messages about what is no job and no app: blobs, keys, the fleet, health. `messages.py` has them all."""

from __future__ import annotations

import msgspec
from msgspec import Struct


class Blob(Struct, frozen=True, kw_only=True):
    sha256: str


class BlobView(Struct, frozen=True, kw_only=True):
    sha256: str
    size: int


class ListKeys(Struct, frozen=True, kw_only=True):
    pass


class CreateKey(Struct, frozen=True, kw_only=True):
    name: str
    scopes: list[str] = msgspec.field(default_factory=lambda: ["admin"])
    expires_in_s: float | None = None


class KeyView(Struct, frozen=True, kw_only=True):
    id: str
    name: str
    scopes: list[str]
    created_at: float
    expires_at: float | None = None
    last_used_at: float | None = None
    revoked_at: float | None = None


class KeyCreated(Struct, frozen=True, kw_only=True):
    """`secret` is shown this once; only its hash is kept."""

    key: KeyView
    secret: str


class KeyList(Struct, frozen=True, kw_only=True):
    keys: list[KeyView]


class RevokeKey(Struct, frozen=True, kw_only=True):
    key: str


class ListAgents(Struct, frozen=True, kw_only=True):
    pass


class AgentView(Struct, frozen=True, kw_only=True):
    id: str
    host: str
    pid: int
    version: str
    connected: bool
    cpu: float
    memory_mb: int
    gpus: list[str]
    containers: int
    jobs: int


class AgentList(Struct, frozen=True, kw_only=True):
    agents: list[AgentView]


class ShowHealth(Struct, frozen=True, kw_only=True):
    pass


class Health(Struct, frozen=True, kw_only=True):
    """`ok`, or what is missing in `problems`."""

    ok: bool
    version: str
    pid: int
    problems: list[str] = []
