"""API keys, and the tokens that jobs call others with.

A key is `apothic_<kind>_<id>_<secret><checksum>`: 256 random bits, so its SHA-256 is all that is kept; the checksum
lets a scanner tell a key from noise. A job's token is signed, not stored, and opens nothing once the job has ended.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import zlib
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from pathlib import Path

from apothic.clock import Clock
from apothic.errors import AuthError, ConfigError, InvalidRequestError, JobGoneError, NotFoundError
from apothic.protocol import ids
from apothic.protocol.lifecycle import LEASED
from apothic.protocol.messages import CreateKey, KeyCreated, KeyView
from apothic.store.catalog import Catalog
from apothic.store.jobs import Jobs

# What a scope opens besides itself.
IMPLIES: dict[str, frozenset[str]] = {
    "admin": frozenset({"deploy", "invoke", "read:jobs", "logs", "cancel", "blobs", "worker", "admin"}),
    "deploy": frozenset({"read:jobs", "blobs"}),
    "invoke": frozenset({"read:jobs", "logs", "cancel", "blobs"}),
    "worker": frozenset({"blobs"}),
    "read:jobs": frozenset(),
    "logs": frozenset({"read:jobs"}),
    "cancel": frozenset({"read:jobs"}),
}
# How long a key that was looked up is believed, so that revoking holds within a few seconds everywhere.
BELIEVED_S = 5.0
# A browser's EventSource cannot show a key in a header, and a key has no business in a URL, which is logged everywhere.
STREAM_TOKEN, STREAM_TOKEN_S = "apothic_stream_", 300.0


@dataclass(frozen=True)
class Principal:
    """Who asks. `job` is set when it is a running job that calls others; `only`, when it may see that one job alone."""

    id: str
    scopes: tuple[str, ...]
    job: str | None = None
    only: str | None = None

    def may(self, scope: str) -> bool:
        """Tell whether this opens what needs `scope`."""
        held = {each.partition(":")[0] if each.startswith("invoke:") else each for each in self.scopes}
        return scope in held or any(scope in IMPLIES.get(each, ()) for each in held)

    def may_invoke(self, app: str, function: str) -> bool:
        """Tell whether this opens one function: `invoke`, or `invoke:<app>/<function>`, or `invoke:<app>/*`."""
        if any(scope in ("admin", "invoke") for scope in self.scopes):
            return True
        return bool({f"invoke:{app}/{function}", f"invoke:{app}/*"} & set(self.scopes))

    def may_everywhere(self, scope: str) -> bool:
        """Tell whether this opens `scope` for all functions, and not only by way of single ones."""
        held = [each for each in self.scopes if not each.startswith("invoke:")]
        return scope in held or any(scope in IMPLIES[each] for each in held)

    def sees(self, scope: str, app: str, function: str) -> bool:
        """Tell whether this opens `scope` for the jobs of one function."""
        return self.may_everywhere(scope) or self.may_invoke(app, function)


class Keys:
    """Makes, checks and ends keys."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self._seen: dict[str, tuple[float, KeyView]] = {}
        self._serving: dict[str, float] = {}  # container of a service → when it was last seen in the store
        self._secret = b""
        self._jobs: Jobs | None = None

    async def open(self, jobs: Jobs) -> None:
        """Read, or make, the secret that signs job tokens."""
        self._jobs = jobs
        self._secret = await self._catalog.secret("job tokens", secrets.token_bytes(32))

    async def from_file(self, path: Path, name: str, scopes: list[str]) -> str:
        """Return the key in a file of the data directory; make it on the first start, readable by its owner alone."""
        try:
            text = path.read_text().strip()  # noqa: ASYNC240 — once, before the first request
        except FileNotFoundError:
            text = new_text("key" if "admin" in scopes else "agent", self._clock.now())
            write_private(path, text + "\n")
        if not looks_right(text):
            raise ConfigError(f"{path} holds no key", hint="remove the file; the next start writes a new one")
        if await self._catalog.key_by_hash(hash_of(text)) is None:
            await self._catalog.add_key(ids.new("key", self._clock.now()), name, hash_of(text), scopes, None)
        return text

    async def create(self, ask: CreateKey) -> KeyCreated:
        """Make a key. Raises `InvalidRequestError` for a scope that does not exist."""
        for scope in ask.scopes:
            if scope not in IMPLIES and not (scope.startswith("invoke:") and scope.count("/") == 1):
                raise InvalidRequestError(
                    f"there is no scope {scope!r}", hint=f"scopes are {', '.join(IMPLIES)} and invoke:<app>/<function>"
                )
        if not ask.name.strip():
            raise InvalidRequestError("a key needs a name", hint="name it after who will hold it")
        if ask.expires_in_s is not None and not 0 < ask.expires_in_s < inf:
            raise InvalidRequestError("expires_in_s is a number of seconds above 0", hint="leave it out for no expiry")
        now = self._clock.now()
        text = new_text("agent" if ask.scopes == ["worker"] else "key", now)
        expires_at = now + ask.expires_in_s if ask.expires_in_s is not None else None
        view = await self._catalog.add_key(ids.new("key", now), ask.name, hash_of(text), ask.scopes, expires_at)
        return KeyCreated(key=view, secret=text)

    async def revoke(self, key_id: str) -> KeyView:
        """End a key at once here, and within seconds elsewhere. Raises `NotFoundError`."""
        view = await self._catalog.revoke_key(key_id)
        self._seen.clear()
        return view

    async def check(self, text: str) -> Principal:
        """Return who presents this text. Raises `AuthError`; the answer never says what was nearly right."""
        if text.startswith("apothic_job_"):
            return await self._check_job(text)
        if not looks_right(text):
            raise refused()
        view = await self._look_up(hash_of(text))
        if view is None or not self._holds(view):
            raise refused()
        return Principal(view.id, tuple(view.scopes))

    async def _look_up(self, secret_hash: str) -> KeyView | None:
        now = self._clock.monotonic()
        seen = self._seen.get(secret_hash)
        if seen is not None and now - seen[0] < BELIEVED_S:
            return seen[1]
        view = await self._catalog.key_by_hash(secret_hash)
        if view is not None:
            self._seen[secret_hash] = (now, view)
            # A minute is fine enough to see which keys are dead, and costs one write a minute.
            if view.last_used_at is None or self._clock.now() - view.last_used_at > 60:
                await self._catalog.use_key(view.id)
        return view

    def sign(self, job: str, attempt: int) -> str:
        """Return the token that an attempt may call others with, or a service's container (of attempt 0)."""
        body = f"{job}.{attempt}"
        return f"apothic_job_{body}.{self._mac(body)}"

    async def _check_job(self, text: str) -> Principal:
        body, _, mac = text.removeprefix("apothic_job_").rpartition(".")
        job, _, attempt = body.partition(".")
        # compare_digest takes no text beyond ASCII, and a header may hold any.
        if not text.isascii() or not hmac.compare_digest(mac, self._mac(body)) or self._jobs is None:
            raise refused()
        if ids.is_id(job, "ctr"):
            if not await self._serves(job):
                raise refused()
            return Principal(job, ("invoke",))
        try:
            view = await self._jobs.show(job)
        except (NotFoundError, JobGoneError):
            raise refused() from None
        if view.status not in LEASED or str(view.attempt) != attempt:
            raise refused()
        return Principal(job, ("invoke",), job=job)

    async def _serves(self, container: str) -> bool:
        """Tell whether a service's container is there. One that is gone may be believed for some seconds."""
        now = self._clock.monotonic()
        if now - self._serving.get(container, -inf) < BELIEVED_S:
            return True
        if not await self._catalog.serves(container):
            return False
        self._serving = {known: at for known, at in self._serving.items() if now - at < BELIEVED_S} | {container: now}
        return True

    def sign_stream(self, job: str, principal: Principal) -> tuple[str, float]:
        """Return a token that opens the stream of one job, read only, and until when. It ends with the key it is of."""
        expires_at = self._clock.now() + STREAM_TOKEN_S
        body = f"{job}.{principal.id}.{int(expires_at)}"
        return f"{STREAM_TOKEN}{body}.{self._mac(body)}", expires_at

    async def check_stream(self, text: str) -> Principal:
        """Return who presents a stream's token. Raises `AuthError`."""
        body, _, mac = text.removeprefix(STREAM_TOKEN).rpartition(".")
        if not (text.isascii() and text.startswith(STREAM_TOKEN) and hmac.compare_digest(mac, self._mac(body))):
            raise refused()
        job, key, expires_at = body.split(".")
        if int(expires_at) <= self._clock.now() or not await self.still_good(key):
            raise refused()
        return Principal(key, ("logs",), only=job)

    async def still_good(self, key_id: str) -> bool:
        """Tell whether a key, or the job that it stands for, still opens anything."""
        if ids.is_id(key_id, "job"):
            assert self._jobs is not None
            try:
                return (await self._jobs.show(key_id)).status in LEASED
            except (NotFoundError, JobGoneError):
                return False
        if ids.is_id(key_id, "ctr"):
            return await self._serves(key_id)
        view = await self._catalog.key(key_id)
        return view is not None and self._holds(view)

    def _holds(self, view: KeyView) -> bool:
        now = self._clock.now()
        return view.revoked_at is None and (view.expires_at is None or view.expires_at > now)

    def _mac(self, body: str) -> str:
        return hmac.digest(self._secret, body.encode(), "sha256").hex()


def refused() -> AuthError:
    """Return the one answer to whatever is not a good key."""
    return AuthError(
        "the API key is missing, wrong, expired or revoked",
        hint="pass api_key=, set APOTHIC_API_KEY, or make a key with `apothic key create`",
    )


def new_text(kind: str, now: float) -> str:
    """Return a fresh key."""
    body = f"apothic_{kind}_{ids.new('key', now).partition('_')[2]}_{secrets.token_hex(32)}"
    return body + _checksum(body)


def looks_right(text: str) -> bool:
    """Tell whether the checksum fits, before anything is looked up."""
    return text.isascii() and len(text) > 8 and text[-8:] == _checksum(text[:-8])


@lru_cache(256)  # of those that ask again and again
def hash_of(text: str) -> str:
    """Return what is kept of a key. A fast hash is right for 256 random bits."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
