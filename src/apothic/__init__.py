"""Run Python functions somewhere else: every call a durable job with one ordered event stream.

The public names, and nothing else. Each is imported when it is first used, so that `import apothic` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apothic import errors as errors
    from apothic.client.app import App as App
    from apothic.client.app import LocalEntrypoint as LocalEntrypoint
    from apothic.client.app import RemoteApp as RemoteApp
    from apothic.client.connection import ControlPlaneClient as ControlPlaneClient
    from apothic.client.executor import Executor as Executor
    from apothic.client.function import Function as Function
    from apothic.client.function import batched as batched
    from apothic.client.function import concurrent as concurrent
    from apothic.client.job import Job as Job
    from apothic.client.remote import RemoteFunction as RemoteFunction
    from apothic.context import CurrentJob as CurrentJob
    from apothic.context import current_batch as current_batch
    from apothic.context import current_job as current_job
    from apothic.errors import ApothicError as ApothicError
    from apothic.errors import JobStreamResetError as JobStreamResetError
    from apothic.protocol.events import JobEndEvent as JobEndEvent
    from apothic.protocol.events import JobErrorEvent as JobErrorEvent
    from apothic.protocol.events import JobLogEvent as JobLogEvent
    from apothic.protocol.events import JobResetEvent as JobResetEvent
    from apothic.protocol.events import JobResultEvent as JobResultEvent
    from apothic.protocol.events import JobSnapshotEvent as JobSnapshotEvent
    from apothic.protocol.events import JobStatusEvent as JobStatusEvent
    from apothic.protocol.events import JobStreamCheckpoint as JobStreamCheckpoint
    from apothic.protocol.events import JobStreamCursor as JobStreamCursor
    from apothic.protocol.events import JobStreamEvent as JobStreamEvent
    from apothic.protocol.events import JobStreamItemEvent as JobStreamItemEvent
    from apothic.protocol.messages import AppManifest as AppManifest
    from apothic.protocol.specs import BatchingSpec as BatchingSpec
    from apothic.protocol.specs import ConcurrencySpec as ConcurrencySpec
    from apothic.protocol.specs import Cron as Cron
    from apothic.protocol.specs import FunctionOptions as FunctionOptions
    from apothic.protocol.specs import Period as Period
    from apothic.protocol.specs import Retries as Retries
    from apothic.response import Response as Response

__version__ = "0.1.0"

_HOMES = {
    "apothic.client.app": ("App", "LocalEntrypoint", "RemoteApp"),
    "apothic.client.connection": ("ControlPlaneClient",),
    "apothic.client.executor": ("Executor",),
    "apothic.client.function": ("Function", "batched", "concurrent"),
    "apothic.client.job": ("Job",),
    "apothic.client.remote": ("RemoteFunction",),
    "apothic.context": ("CurrentJob", "current_batch", "current_job"),
    "apothic.errors": ("ApothicError", "JobStreamResetError"),
    "apothic.protocol.events": (
        "JobEndEvent",
        "JobErrorEvent",
        "JobLogEvent",
        "JobResetEvent",
        "JobResultEvent",
        "JobSnapshotEvent",
        "JobStatusEvent",
        "JobStreamCheckpoint",
        "JobStreamCursor",
        "JobStreamEvent",
        "JobStreamItemEvent",
    ),
    "apothic.protocol.messages": ("AppManifest",),
    "apothic.protocol.specs": ("BatchingSpec", "ConcurrencySpec", "Cron", "FunctionOptions", "Period", "Retries"),
    "apothic.response": ("Response",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ApothicError", "App", "AppManifest", "BatchingSpec", "ConcurrencySpec", "ControlPlaneClient", "Cron",
    "CurrentJob", "Executor", "Function", "FunctionOptions", "Job", "JobEndEvent", "JobErrorEvent", "JobLogEvent",
    "JobResetEvent", "JobResultEvent", "JobSnapshotEvent", "JobStatusEvent", "JobStreamCheckpoint", "JobStreamCursor",
    "JobStreamEvent", "JobStreamItemEvent", "JobStreamResetError", "LocalEntrypoint", "Period", "RemoteApp",
    "RemoteFunction", "Response", "Retries", "__version__", "batched", "concurrent", "current_batch", "current_job",
    "errors",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("apothic.errors")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'apothic' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
