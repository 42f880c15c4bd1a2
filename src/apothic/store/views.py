"""Rows turned into the messages that the outside sees."""

from __future__ import annotations

import json
import sqlite3
from functools import lru_cache

import msgspec

from apothic.protocol.lifecycle import Status
from apothic.protocol.messages import (
    AgentView,
    AppManifest,
    DeploymentView,
    Failure,
    FunctionSpec,
    FunctionView,
    JobView,
    KeyView,
    TickView,
)
from apothic.protocol.services import SERVICE_KINDS, service_url
from apothic.protocol.session import Packed
from apothic.protocol.specs import Retries


class _Yields(msgspec.Struct):
    """The one thing that a job's view says of its function's spec; decoding all of it cost ten times as much."""

    is_generator: bool = False


_packed = msgspec.msgpack.Decoder(Packed)
_failure = msgspec.msgpack.Decoder(Failure)
_spec = msgspec.msgpack.Decoder(FunctionSpec)
_yields = msgspec.msgpack.Decoder(_Yields)
_manifest = msgspec.msgpack.Decoder(AppManifest)
_retries = msgspec.msgpack.Decoder(Retries)
encode = msgspec.msgpack.Encoder().encode


def packed(data: bytes) -> Packed:
    """Return a stored value."""
    return _packed.decode(data)


@lru_cache(256)  # a call's own is asked for at each submit, and read and checked anew it took as long as the insert
def spec(data: bytes) -> FunctionSpec:
    """Return a stored function spec."""
    return _spec.decode(data)


def manifest(data: bytes) -> AppManifest:
    """Return a stored manifest."""
    return _manifest.decode(data)


def retries(data: bytes) -> Retries:
    """Return a stored retry policy."""
    return _retries.decode(data)


def no_retries() -> Retries:
    """Return the policy of a function that names none."""
    return Retries(0)


def failure(data: bytes | None) -> Failure | None:
    """Return a stored failure, if there is one."""
    return None if data is None else _failure.decode(data)


def job(row: sqlite3.Row, *, reason: str | None = None, ahead: int | None = None) -> JobView:
    """Return a job as the outside sees it."""
    return JobView(
        id=row["id"],
        app=row["app"],
        function=row["function"],
        function_id=row["function_id"],
        deployment_id=row["deployment_id"],
        status=Status(row["status"]),
        attempt=row["attempt"],
        is_generator=_yields.decode(row["spec"]).is_generator,
        created_at=row["created_at"],
        run_at=row["run_at"] or None,
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        parent=row["parent"],
        retry_of=row["retry_of"],
        reason=reason,
        ahead=ahead,
        failure=failure(row["failure"]),
    )


def function(row: sqlite3.Row, app: str, gateway_url: str | None) -> FunctionView:
    """Return a function as one deployment has it. A service of a live one is found below `gateway_url`."""
    found = spec(row["spec"])
    url = None
    if gateway_url is not None and found.kind in SERVICE_KINDS and row["live"]:
        url = service_url(gateway_url, app, found.name)
    return FunctionView(
        id=row["function_id"],
        app=app,
        name=row["name"],
        kind=found.kind,
        deployment_id=row["deployment_id"],
        is_generator=found.is_generator,
        options=found.options,
        service_url=url,
        next_tick=row["next_at"],
        last_tick=_last_tick(row) if found.options.schedule is not None else None,
    )


def _last_tick(row: sqlite3.Row) -> TickView | None:
    return TickView(at=row["tick_at"], outcome=row["outcome"], job=row["job"]) if row["tick_at"] is not None else None


def deployment(row: sqlite3.Row, functions: list[sqlite3.Row], gateway_url: str | None) -> DeploymentView:
    """Return one version of an app."""
    failed = failure(row["failure"])
    return DeploymentView(
        id=row["id"],
        app=row["app"],
        status=row["status"],
        content_hash=row["content_hash"],
        created_at=row["created_at"],
        live=row["live_id"] == row["id"],
        functions=[function(each, row["app"], gateway_url) for each in functions],
        failure=failed,
        startup_log=failed.log_tail if failed is not None else "",
    )


def key(row: sqlite3.Row) -> KeyView:
    """Return a key without its secret."""
    return KeyView(
        id=row["id"],
        name=row["name"],
        scopes=json.loads(row["scopes"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        last_used_at=row["last_used_at"],
        revoked_at=row["revoked_at"],
    )


def agent(row: sqlite3.Row) -> AgentView:
    """Return one agent of the fleet."""
    return AgentView(
        id=row["id"],
        host=row["host"],
        pid=row["pid"],
        version=row["release"],
        connected=bool(row["connected"]),
        cpu=row["cpu"],
        memory_mb=row["memory_mb"],
        gpus=json.loads(row["gpus"]),
        containers=row["containers"],
        jobs=row["jobs"],
    )
