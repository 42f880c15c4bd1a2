"""A manifest becomes a live deployment: say what there is, upload what is missing, wait until it has started."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from apothic.client.connection import ControlPlaneClient
from apothic.client.job import POLL_S
from apothic.clock import SystemClock
from apothic.errors import ConflictError, NotDeployedError, WaitTimeoutError
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.protocol.failures import RemoteTraceback

UPLOADS = 4
_LOG_LINES = 10


async def deploy(
    client: ControlPlaneClient, manifest: m.AppManifest, sources: Mapping[str, Path | bytes]
) -> m.DeploymentView:
    """Deploy; return the deployment once it is live.

    Raises `NotDeployedError` with the end of the start-up log, `WaitTimeoutError` after the client's `timeout_s`.
    """
    clock = SystemClock()
    until = clock.monotonic() + client.timeout_s

    def ask() -> m.Deploy:
        wait_s = max(0.0, min(POLL_S, until - clock.monotonic()))
        return m.Deploy(app=manifest.app, manifest=manifest, wait_s=wait_s)

    reply = await client._ask(routes.DEPLOY, ask(), client.timeout_s)
    if reply.missing:
        await _upload(client, reply.missing, manifest, sources)
        reply = await client._ask(routes.DEPLOY, ask(), client.timeout_s)
    view = reply.deployment
    if view is None:
        raise ConflictError(f"the files of app {manifest.app!r} changed while they were sent", hint="deploy once more")
    while view.status in ("building", "starting"):
        left = until - clock.monotonic()
        if left <= 0:
            raise WaitTimeoutError(
                f"deployment {view.id} of app {manifest.app!r} is {view.status} after {client.timeout_s:g} s",
                hint="it goes on; a client with a larger timeout_s waits longer",
            )
        begun = clock.monotonic()
        look = m.ShowDeployment(deployment=view.id, wait_s=min(POLL_S, left))
        view = await client._ask(routes.SHOW_DEPLOYMENT, look, max(left, 1.0))
        if view.status in ("building", "starting"):
            await clock.sleep(max(0.0, 1.0 - (clock.monotonic() - begun)))
    if view.status not in ("live", "ready"):
        raise _failed(view)
    return view


async def _upload(
    client: ControlPlaneClient, missing: list[str], manifest: m.AppManifest, sources: Mapping[str, Path | bytes]
) -> None:
    sizes = {file.sha256: file.size for file in manifest.files}
    sizes |= {spec.payload: spec.payload_size for spec in manifest.functions if spec.payload is not None}
    left = list(dict.fromkeys(missing))

    async def work() -> None:
        while left:
            sha256 = left.pop()
            await client.upload(sources[sha256], sha256, sizes[sha256])

    await asyncio.gather(*(work() for _ in range(UPLOADS)))


def _hint(failure: m.Failure | None) -> str:
    if failure is not None and failure.kind == "unsatisfiable":
        return "ask for less with cpu=, memory_mb= or gpu=, or join an agent that has it"
    if failure is None or failure.type in ("ImportError", "ModuleNotFoundError"):
        return "its modules must import where the agent runs; only the app's own package or file travels"
    if failure.type.endswith("ConfigError"):
        return failure.message.partition("\nhint: ")[2] or "leave that function out until a version that runs it"
    return "correct what its start-up log and traceback say, and deploy it again"


def _failed(view: m.DeploymentView) -> NotDeployedError:
    failure = view.failure
    what = f"it is {view.status}"
    if failure is not None:
        message = failure.message.partition("\nhint: ")[0]
        what = message if failure.type.endswith("ConfigError") else f"{failure.type}: {message}".rstrip(": ")
    log = view.startup_log or (failure.log_tail if failure is not None else "")
    tail = "\n".join(f"  {line}" for line in log.splitlines()[-_LOG_LINES:])
    error = NotDeployedError(
        f"app {view.app!r} did not start: {what}" + (f"\nthe end of its start-up log:\n{tail}" if tail else ""),
        hint=_hint(failure),
        details={"deployment_id": view.id, "startup_log": log},
    )
    if failure is not None and failure.traceback:
        error.__cause__ = RemoteTraceback(failure.traceback)
    return error
