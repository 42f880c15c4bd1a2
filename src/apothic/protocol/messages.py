"""Every message that HTTP carries, frozen. One declaration gives decoding with checks, both codecs, and OpenAPI.

What an agent and the control plane say to each other stands in `session.py`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from apothic.protocol.lifecycle import Status
from apothic.protocol.services import ServiceSpec
from apothic.protocol.specs import FunctionOptions, Retries
from apothic.protocol.upkeep import AgentList as AgentList
from apothic.protocol.upkeep import AgentView as AgentView
from apothic.protocol.upkeep import Blob as Blob
from apothic.protocol.upkeep import BlobView as BlobView
from apothic.protocol.upkeep import CreateKey as CreateKey
from apothic.protocol.upkeep import Health as Health
from apothic.protocol.upkeep import KeyCreated as KeyCreated
from apothic.protocol.upkeep import KeyList as KeyList
from apothic.protocol.upkeep import KeyView as KeyView
from apothic.protocol.upkeep import ListAgents as ListAgents
from apothic.protocol.upkeep import ListKeys as ListKeys
from apothic.protocol.upkeep import RevokeKey as RevokeKey
from apothic.protocol.upkeep import ShowHealth as ShowHealth

Encoding = Literal["json", "pickle"]
Delivery = Literal["at_least_once", "at_most_once"]
Kind = Literal["function", "endpoint", "asgi", "fastapi_endpoint", "wsgi_app", "web_server"]
TickOutcome = Literal["job", "overlap", "missed", "refused"]
DeploymentStatus = Literal["building", "starting", "live", "ready", "failed", "stopped"]
FailureKind = Literal[
    "user", "timeout", "cancelled", "worker_lost", "oom", "startup", "serialization", "payload_too_large",
    "expired", "unsatisfiable", "deadlock",
]  # fmt: skip


class PickleHeader(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What made a pickle, so that a reader can tell beforehand whether it can read it."""

    python: str
    cloudpickle: str
    modules: dict[str, str] = {}


class Value(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A Python value on the wire: inline in `data`, or by `sha256` and `size` in the blob store.

    `data` is JSON itself when `encoding` is json; pickle bytes otherwise (base64 in JSON messages).
    `repr` is for people, made where the value was packed, at most 1,000 characters.
    """

    encoding: Encoding
    data: Any = None
    sha256: str | None = None
    size: int | None = None
    header: PickleHeader | None = None
    repr: str | None = None


class ErrorBody(Struct, frozen=True, kw_only=True):
    """What went wrong, what to do about it."""

    code: str
    message: str
    hint: str = ""
    details: dict[str, Any] = {}


class ErrorReply(Struct, frozen=True, kw_only=True):
    """The body of every answer that is no success."""

    error: ErrorBody


class Failure(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why an attempt, or a whole job, did not succeed. `traceback` and `log_tail` are text for people."""

    kind: FailureKind
    type: str
    message: str
    traceback: str = ""
    cause: str | None = None
    attempt: int = 0
    retriable: bool = False
    exit: str | None = None  # how the process ended: "signal 9", "status 0"
    log_tail: str = ""
    payload: Value | None = None  # the exception itself, pickled, when the container could read it back


# --- apps -------------------------------------------------------------------------------------------------------


class SourceFile(Struct, frozen=True, kw_only=True):
    """One file that travels: where it goes, and its content by hash."""

    path: str
    sha256: str
    size: int


class FunctionSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One function of a manifest: found by `module` and `qualname`, or sent by value in the blob `payload`."""

    name: str
    module: str = ""
    qualname: str = ""
    payload: str | None = None
    payload_size: int = 0
    kind: Kind = "function"
    is_generator: bool = False
    is_async: bool = False
    options: FunctionOptions = FunctionOptions()
    service: ServiceSpec | None = None  # of a kind other than `function`


class AppManifest(Struct, frozen=True, kw_only=True):
    """Everything one version of an app consists of."""

    app: str
    functions: list[FunctionSpec]
    files: list[SourceFile] = []


class Deploy(Struct, frozen=True, kw_only=True):
    app: str
    manifest: AppManifest
    wait_s: float = 0.0


class TickView(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one tick of a schedule: a job, or none.

    `overlap`: the job of an earlier tick had not ended. `missed`: nobody looked in time. `refused`: the queue was full.
    """

    at: float
    outcome: TickOutcome
    job: str | None = None


class FunctionView(Struct, frozen=True, kw_only=True):
    """A function of a deployment, as the outside sees it. `next_tick` and `last_tick` are its schedule's."""

    id: str
    app: str
    name: str
    kind: Kind
    deployment_id: str
    is_generator: bool
    options: FunctionOptions
    service_url: str | None = None
    next_tick: float | None = None
    last_tick: TickView | None = None


class DeploymentView(Struct, frozen=True, kw_only=True):
    """One immutable version of an app. `startup_log` is the end of what a failed start printed."""

    id: str
    app: str
    status: DeploymentStatus
    content_hash: str
    created_at: float
    live: bool = False
    functions: list[FunctionView] = []
    failure: Failure | None = None
    startup_log: str = ""


class Deployed(Struct, frozen=True, kw_only=True):
    """Either the blobs that must be uploaded first, or the deployment."""

    missing: list[str] = []
    deployment: DeploymentView | None = None


class ShowDeployment(Struct, frozen=True, kw_only=True):
    deployment: str
    wait_s: float = 0.0


class ListDeployments(Struct, frozen=True, kw_only=True):
    app: str


class DeploymentList(Struct, frozen=True, kw_only=True):
    deployments: list[DeploymentView]


class Activate(Struct, frozen=True, kw_only=True):
    app: str
    deployment: str


class AppView(Struct, frozen=True, kw_only=True):
    name: str
    created_at: float
    deployment_id: str | None
    stopped: bool
    functions: list[FunctionView] = []


class ListApps(Struct, frozen=True, kw_only=True):
    pass


class AppList(Struct, frozen=True, kw_only=True):
    apps: list[AppView]


class ShowApp(Struct, frozen=True, kw_only=True):
    app: str


class StopApp(Struct, frozen=True, kw_only=True):
    app: str


class FindFunctions(Struct, frozen=True, kw_only=True):
    app: str | None = None
    name: str | None = None


class FunctionList(Struct, frozen=True, kw_only=True):
    functions: list[FunctionView]


class ShowFunction(Struct, frozen=True, kw_only=True):
    function: str


# --- jobs -------------------------------------------------------------------------------------------------------


class JobInput(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The arguments of one job: `input` as a packed value, or bare `args` and `kwargs` as plain JSON."""

    input: Value | None = None
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    idempotency_key: str | None = None


class CallOptions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a caller may set for one job; `None` means what the function says."""

    timeout_s: float | None = None
    retries: Retries | None = None
    expires_in_s: float | None = None
    delivery: Delivery = "at_least_once"
    run_at: float | None = None


class Submit(Struct, frozen=True, kw_only=True, omit_defaults=True):
    function: str
    input: Value | None = None
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    idempotency_key: str | None = None
    accept: list[Encoding] = msgspec.field(default_factory=lambda: ["json"])
    deployment_id: str | None = None
    options: CallOptions = CallOptions()
    attached: bool = False  # keep every item until the caller's own stream was sent it
    wait_s: float = 0.0


class SubmitBatch(Struct, frozen=True, kw_only=True, omit_defaults=True):
    function: str
    jobs: list[JobInput]
    accept: list[Encoding] = msgspec.field(default_factory=lambda: ["json"])
    deployment_id: str | None = None
    options: CallOptions = CallOptions()


class BatchSubmitted(Struct, frozen=True, kw_only=True):
    """The first `len(jobs)` of the batch are on disk; there was no room for the rest."""

    jobs: list[str]
    retry_after_s: float | None = None


class JobView(Struct, frozen=True, kw_only=True):
    """One job. Times are wall time in seconds since 1970; `reason` says why a waiting job waits."""

    id: str
    app: str
    function: str
    function_id: str
    deployment_id: str
    status: Status
    attempt: int
    created_at: float
    is_generator: bool = False
    run_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    parent: str | None = None
    retry_of: str | None = None
    reason: str | None = None
    ahead: int | None = None
    failure: Failure | None = None


class JobResult(Struct, frozen=True, kw_only=True):
    """A job, and once it has ended how: with a `value`, or with `job.failure`."""

    job: JobView
    value: Value | None = None


class ShowJob(Struct, frozen=True, kw_only=True):
    job: str


class ShowResult(Struct, frozen=True, kw_only=True):
    job: str
    wait_s: float = 0.0


class GatherResults(Struct, frozen=True, kw_only=True):
    """Ask for those of `jobs` that have ended; wait until one has, at most `wait_s`."""

    jobs: list[str]
    wait_s: float = 0.0


class Gathered(Struct, frozen=True, kw_only=True):
    results: list[JobResult]


class ListJobs(Struct, frozen=True, kw_only=True):
    app: str | None = None
    function: str | None = None
    status: Status | None = None
    after: str | None = None
    limit: int = 50


class JobList(Struct, frozen=True, kw_only=True):
    """Newest first. `next` goes into `after` for the next page; `None` on the last."""

    jobs: list[JobView]
    next: str | None = None


class ShowLogs(Struct, frozen=True, kw_only=True):
    job: str
    after: int = -1  # line number
    limit: int = 10_000
    wait_s: float = 0.0


class LogLine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a job's output. `line` numbers them from 0; `cont` marks one that goes on in the next."""

    line: int
    index: int
    stream: Literal["stdout", "stderr", "system"]
    text: str
    attempt: int
    at: float
    cont: bool = False


class JobLogs(Struct, frozen=True, kw_only=True):
    """`trimmed` older lines are gone; `ended` says that no more will come."""

    lines: list[LogLine]
    trimmed: int
    ended: bool


class ShowAppLogs(Struct, frozen=True, kw_only=True):
    app: str
    function: str | None = None
    after: int = -1  # the number of a line
    limit: int = 1_000
    wait_s: float = 0.0


class AppLine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line that a container of an app printed and that belongs to no job. `line` numbers them within the app."""

    line: int
    function: str
    container: str
    stream: Literal["stdout", "stderr"]
    text: str
    at: float
    cont: bool = False


class AppLogs(Struct, frozen=True, kw_only=True):
    """In the order in which they were stored. `trimmed` older lines of the app are gone."""

    lines: list[AppLine]
    trimmed: int


class FollowJob(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ask for the events of a job behind `after`, of the types named, or of all.

    `snapshot` puts the job's state first; without `after`, events follow from there. `limit` and `wait_s` are for pages
    of JSON; a stream of server-sent events needs neither. `attached` is the one stream for which items are kept.
    `token` opens it instead of a key.
    """

    job: str
    after: int | None = None
    type: list[str] = []
    snapshot: bool = False
    limit: int = 1_000
    wait_s: float = 0.0
    attached: bool = False
    token: str | None = None


class FollowDeployment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Ask for what became of a deployment behind `after`; `limit` and `wait_s` are for pages of JSON."""

    deployment: str
    after: int | None = None
    limit: int = 1_000
    wait_s: float = 0.0


class Event(Struct, frozen=True, kw_only=True):
    """One event; `data` as the stream's frame has it. The docs on streams say what is in it."""

    event: str
    index: int | None
    data: Any


class EventPage(Struct, frozen=True, kw_only=True):
    """A page of the events of a job or a deployment: the `snapshot` came before them, the `reset` comes behind them.

    `next_index` goes into `after` for the next page. `end` says that none follows: `job.end` is in this one, or before.
    What becomes of a deployment has no end: an older one can be made live again.
    """

    events: list[Event]
    next_index: int
    head_index: int
    oldest_index: int | None
    end: bool
    reset: Any = None
    snapshot: Any = None


class CreateStreamToken(Struct, frozen=True, kw_only=True):
    job: str


class StreamToken(Struct, frozen=True, kw_only=True):
    """For a browser's `EventSource`, which cannot show a key: `url` opens the one job's stream until `expires_at`."""

    token: str
    expires_at: float
    url: str


class CancelJob(Struct, frozen=True, kw_only=True):
    job: str


class RetryJob(Struct, frozen=True, kw_only=True):
    job: str


class JobStatus(Struct, frozen=True, kw_only=True):
    status: Status


def to_json(message: Struct) -> bytes:
    """Encode any message as JSON."""
    return msgspec.json.encode(message)
