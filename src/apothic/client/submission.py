"""How arguments become a job: packed where the caller is, uploaded when large, submitted in one request."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from math import isfinite
from typing import Any, Protocol, TypeVar

from msgspec.structs import replace

from apothic.client.combine import COMBINING, alone
from apothic.client.connection import ControlPlaneClient
from apothic.client.job import POLL_S, Job
from apothic.clock import SystemClock
from apothic.direct import on_loop
from apothic.errors import ConfigError, NotFoundError, PayloadTooLargeError, QueueFullError
from apothic.protocol import messages as m
from apothic.protocol import routes, values
from apothic.protocol.specs import Retries
from apothic.protocol.values import Envelope

T = TypeVar("T")

ACCEPT: list[m.Encoding] = ["json", "pickle"]
RETRY_S = 0.5  # between tries at a full queue, when the server does not say


def fresh_key() -> str:
    """Return an idempotency key that nobody else makes.

    It begins with the time, as an id does: random keys came to a page each of the store's index, whose pages are many.
    """
    return f"{int(SystemClock().now() * 1000):012x}{secrets.token_hex(10)}"


@dataclass(frozen=True)
class Address:
    """Where jobs of a function go: its id, and the deployment when it must be that one."""

    function: str
    deployment: str | None
    is_generator: bool


class Target(Protocol):
    """A function that jobs can be submitted to."""

    @property
    def name(self) -> str: ...

    @property
    def submitted_with(self) -> Submission: ...

    def client_here(self) -> ControlPlaneClient: ...

    async def address(self) -> Address:
        """Find out where jobs go; deploy what has to be."""
        ...

    def forget(self) -> None:
        """Drop what `address` has found out: the server does not know it any more."""
        ...


@dataclass(frozen=True)
class Submission:
    """What `with_options` sets for jobs."""

    options: m.CallOptions = field(default_factory=m.CallOptions)
    idempotency_key: str | None = None


def changed(
    before: Submission,
    *,
    timeout_s: float | None,
    retries: int | Retries | None,
    idempotency_key: str | None,
    expires_in_s: float | None,
    delivery: m.Delivery | None,
    run_at: float | datetime | None,
) -> Submission:
    """Return `before` with what is not `None` put in its place. Raises `ConfigError` that names the option."""
    told: dict[str, Any] = {}
    for name, value in (("timeout_s", timeout_s), ("expires_in_s", expires_in_s)):
        if value is not None:
            told[name] = _positive(name, value)
    if retries is not None:
        told["retries"] = retries if isinstance(retries, Retries) else Retries(retries)
    if delivery is not None:
        if delivery not in ("at_least_once", "at_most_once"):
            raise ConfigError(f"delivery cannot be {delivery!r}", hint="it is 'at_least_once' or 'at_most_once'")
        told["delivery"] = delivery
    if run_at is not None:
        told["run_at"] = _positive("run_at", run_at.timestamp() if isinstance(run_at, datetime) else run_at)
    key = before.idempotency_key if idempotency_key is None else idempotency_key
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= 200):
        raise ConfigError("idempotency_key cannot be that", hint="it is text of 1 to 200 characters")
    return Submission(replace(before.options, **told), key)


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value <= 0:
        raise ConfigError(f"{name} cannot be {value!r}", hint=f"{name} is a number of seconds above 0")
    return float(value)


def pack(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Envelope:
    """Pack the arguments of one job. To be called in the caller's thread: it runs code of the caller's classes."""
    return packer(target)(args, kwargs)


def packer(target: Target) -> Callable[[Sequence[Any], Mapping[str, Any]], Envelope]:
    """Return what packs the arguments of many jobs, as `pack` does those of one."""
    return partial(values.pack_arguments, payload_limit=target.client_here().settings.payload_limit, what=target.name)


async def send_value(client: ControlPlaneClient, envelope: Envelope, timeout_s: float | None) -> m.Value:
    """Return the message form of packed arguments, their bytes uploaded first when they are in a file."""
    packed = envelope.packed
    if envelope.file is not None and packed.sha256 is not None:
        try:
            await client.upload(envelope.file, packed.sha256, packed.size, given=True, timeout_s=timeout_s)
        except PayloadTooLargeError as error:
            # The server knows neither what the bytes are nor, when it gives up, how many there would be.
            raise PayloadTooLargeError(
                size=packed.size, limit=error.limit, what="what the arguments pack to", hint=error.hint
            ) from None
    return values.to_wire(packed, binary=True)


async def asked(client: ControlPlaneClient, ask: m.Submit, timeout_s: float) -> m.JobResult:
    """Send one submission and return what the server says of its job."""
    return await client._ask(routes.SUBMIT, ask, timeout_s)


async def submit(
    target: Target,
    envelope: Envelope,
    send: Callable[[ControlPlaneClient, m.Submit, float], Awaitable[T]],
    *,
    timeout_s: float,
    wait: bool = False,
    attached: bool = False,
) -> T:
    """Submit one job and return what `send` does; with `wait`, the answer may have its result already.

    Waits for room in a full queue; raises `QueueFullError` when there is none within `timeout_s` seconds. Deletes the
    file of `envelope`.
    """
    clock = SystemClock()
    until = clock.monotonic() + timeout_s
    client, submission = target.client_here(), target.submitted_with
    key = submission.idempotency_key or fresh_key()
    again = True
    try:
        while True:
            address = await target.address()
            left = max(until - clock.monotonic(), 1.0)
            ask = m.Submit(
                function=address.function,
                input=await send_value(client, envelope, left),
                idempotency_key=key,
                accept=ACCEPT,
                deployment_id=address.deployment,
                options=submission.options,
                attached=attached,
                wait_s=max(0.0, min(POLL_S, until - clock.monotonic())) if wait else 0.0,
            )
            try:
                return await send(client, ask, left)
            except NotFoundError:
                # The server's data may be gone; once more from the start, and no more than once.
                if not again:
                    raise
                again = False
                target.forget()
            except QueueFullError as full:
                pause = retry_after(full)
                if clock.monotonic() + pause > until:
                    raise
                await on_loop()
                await clock.sleep(pause)
    finally:
        envelope.discard()


async def spawn(target: Target, envelope: Envelope, *, timeout_s: float) -> Job:
    """Submit one job and return its handle once the job is on disk."""
    own_key = target.submitted_with.idempotency_key is not None  # its conflict is its own
    send = alone if own_key else COMBINING.submit
    return Job(await submit(target, envelope, send, timeout_s=timeout_s), target.client_here())


async def call(target: Target, envelope: Envelope, *, timeout_s: float) -> Any:
    """Submit one job and return its value: one request when it ends in time, then long polls."""
    clock = SystemClock()
    until = clock.monotonic() + timeout_s
    known = await submit(target, envelope, asked, timeout_s=timeout_s, wait=True)
    job = Job(known.job.id, target.client_here())
    return await job._wait(1.0, max(until - clock.monotonic(), 0.0), known)


def retry_after(full: QueueFullError) -> float:
    """Return how long to wait before asking a full queue again, in seconds."""
    told = full.details.get("retry_after_s")
    return min(max(float(told), 0.05), 5.0) if isinstance(told, int | float) else RETRY_S
