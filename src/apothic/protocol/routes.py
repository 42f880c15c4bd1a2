"""One line a thing that can be asked. The server decodes by it, the transport encodes by it, OpenAPI is made from it.

What stands in braces in a path is a field of the ask. The other fields come from the query when `body` is empty;
otherwise `query` names those that do, and the rest is the body: the field `body` alone, or (`"*"`) all that is left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from msgspec import Struct

from apothic.protocol import messages as m

A = TypeVar("A", bound=Struct)
R = TypeVar("R", bound=Struct)

_BRACES = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Route(Generic[A, R]):
    """One thing that can be asked of the control plane, and the only place that says so."""

    name: str
    method: str
    path: str
    ask: type[A]
    reply: type[R]
    about: str
    scope: str | None = "admin"  # None: no key is needed
    body: str = ""
    query: tuple[str, ...] = ()
    resend: bool = False  # asking twice does what asking once does, so the client may
    raw: bool = False  # the body is bytes, streamed
    streamed: bool = False  # the answer may be server-sent events instead

    @property
    def in_path(self) -> tuple[str, ...]:
        """The fields of the ask that stand in the path."""
        return tuple(_BRACES.findall(self.path))


def _route(name: str, line: str, ask: type[A], reply: type[R], about: str, **more: Any) -> Route[A, R]:
    method, path = line.split(" ")
    resend = more.pop("resend", method in ("GET", "HEAD", "PUT", "DELETE"))
    return Route(name, method, path, ask, reply, about, resend=resend, **more)


HEALTHZ = _route("healthz", "GET /healthz", m.ShowHealth, m.Health, "Alive", scope=None)
READYZ = _route("readyz", "GET /readyz", m.ShowHealth, m.Health, "Ready to take jobs: 200, else 503", scope=None)

DEPLOY = _route(
    "deploy", "POST /v1/apps/{app}/deployments", m.Deploy, m.Deployed, "Deploy an app, or learn what blobs are missing",
    scope="deploy", body="manifest", query=("wait_s",), resend=True,
)  # fmt: skip
LIST_DEPLOYMENTS = _route(
    "list_deployments", "GET /v1/apps/{app}/deployments", m.ListDeployments, m.DeploymentList, "Versions of an app",
    scope="read:jobs",
)  # fmt: skip
ACTIVATE = _route(
    "activate", "POST /v1/apps/{app}/deployments/{deployment}/activate", m.Activate, m.DeploymentView,
    "Make a version live", scope="deploy", resend=True,
)  # fmt: skip
SHOW_DEPLOYMENT = _route(
    "show_deployment", "GET /v1/deployments/{deployment}", m.ShowDeployment, m.DeploymentView,
    "One deployment; wait_s waits until it is live or has failed", scope="read:jobs",
)  # fmt: skip
DEPLOYMENT_EVENTS = _route(
    "deployment_events", "GET /v1/deployments/{deployment}/events", m.FollowDeployment, m.EventPage,
    "What becomes of a deployment: server-sent with Accept: text/event-stream, else a page", scope="read:jobs",
    streamed=True,
)  # fmt: skip
LIST_APPS = _route("list_apps", "GET /v1/apps", m.ListApps, m.AppList, "All apps", scope="read:jobs")
SHOW_APP = _route("show_app", "GET /v1/apps/{app}", m.ShowApp, m.AppView, "One app", scope="read:jobs")
STOP_APP = _route("stop_app", "DELETE /v1/apps/{app}", m.StopApp, m.AppView, "Stop an app", scope="deploy")
APP_LOGS = _route(
    "app_logs", "GET /v1/apps/{app}/logs", m.ShowAppLogs, m.AppLogs,
    "What an app's containers printed that belongs to no job", scope="logs",
)  # fmt: skip
FIND_FUNCTIONS = _route(
    "find_functions", "GET /v1/functions", m.FindFunctions, m.FunctionList, "Functions of live deployments",
    scope="read:jobs",
)  # fmt: skip
SHOW_FUNCTION = _route(
    "show_function", "GET /v1/functions/{function}", m.ShowFunction, m.FunctionView, "One function", scope="read:jobs"
)

SUBMIT = _route(
    "submit", "POST /v1/functions/{function}/jobs", m.Submit, m.JobResult,
    "Submit a job; with wait_s (at most 60) the answer holds the result if it comes in time (200), else 202. An "
    "attached job that is asked for as text/event-stream is answered with its stream",
    scope="invoke", body="*", query=("wait_s",), resend=True,
)  # fmt: skip
SUBMIT_BATCH = _route(
    "submit_batch", "POST /v1/functions/{function}/jobs/batch", m.SubmitBatch, m.BatchSubmitted,
    "Submit many in one transaction: the first that the queue has room for", scope="invoke", body="*", resend=True,
)  # fmt: skip
GATHER = _route(
    "gather", "POST /v1/jobs/results", m.GatherResults, m.Gathered,
    "Those of many jobs that have ended; wait_s waits until one has", scope="read:jobs", body="*", query=("wait_s",),
    resend=True,
)  # fmt: skip
LIST_JOBS = _route("list_jobs", "GET /v1/jobs", m.ListJobs, m.JobList, "Jobs, newest first", scope="read:jobs")
SHOW_JOB = _route("show_job", "GET /v1/jobs/{job}", m.ShowJob, m.JobView, "One job", scope="read:jobs")
RESULT = _route(
    "result", "GET /v1/jobs/{job}/result", m.ShowResult, m.JobResult,
    "How a job ended: 200, or 202 when it has not within wait_s (at most 60)", scope="read:jobs",
)  # fmt: skip
LOGS = _route("logs", "GET /v1/jobs/{job}/logs", m.ShowLogs, m.JobLogs, "The retained lines of a job", scope="logs")
EVENTS = _route(
    "events", "GET /v1/jobs/{job}/events", m.FollowJob, m.EventPage,
    "A job's events: server-sent with Accept: text/event-stream, else a page", scope="logs", streamed=True,
)  # fmt: skip
STREAM_TOKEN = _route(
    "stream_token", "POST /v1/jobs/{job}/stream-token", m.CreateStreamToken, m.StreamToken,
    "Make a token that opens this job's stream, read only, for 5 minutes", scope="logs", resend=True,
)  # fmt: skip
CANCEL = _route(
    "cancel", "POST /v1/jobs/{job}/cancel", m.CancelJob, m.JobStatus, "Cancel a job; answers its status",
    scope="cancel", resend=True,
)  # fmt: skip
RETRY = _route(
    "retry", "POST /v1/jobs/{job}/retry", m.RetryJob, m.JobView, "Submit an ended job's input once more",
    scope="invoke",
)  # fmt: skip

PUT_BLOB = _route(
    "put_blob", "PUT /v1/blobs/{sha256}", m.Blob, m.BlobView, "Store bytes under their SHA-256", scope="blobs",
    raw=True,
)  # fmt: skip
HEAD_BLOB = _route("head_blob", "HEAD /v1/blobs/{sha256}", m.Blob, m.BlobView, "Is it there?", scope="blobs", raw=True)
GET_BLOB = _route("get_blob", "GET /v1/blobs/{sha256}", m.Blob, m.BlobView, "The bytes", scope="blobs", raw=True)

LIST_KEYS = _route("list_keys", "GET /v1/keys", m.ListKeys, m.KeyList, "API keys, without their secrets")
CREATE_KEY = _route("create_key", "POST /v1/keys", m.CreateKey, m.KeyCreated, "Make a key; shown once", body="*")
REVOKE_KEY = _route("revoke_key", "DELETE /v1/keys/{key}", m.RevokeKey, m.KeyView, "Revoke a key")
LIST_AGENTS = _route("list_agents", "GET /v1/agents", m.ListAgents, m.AgentList, "The fleet", scope="read:jobs")

ROUTES: tuple[Route[Any, Any], ...] = (
    HEALTHZ, READYZ, DEPLOY, LIST_DEPLOYMENTS, ACTIVATE, SHOW_DEPLOYMENT, DEPLOYMENT_EVENTS, LIST_APPS, SHOW_APP,
    STOP_APP, APP_LOGS, FIND_FUNCTIONS, SHOW_FUNCTION, SUBMIT, SUBMIT_BATCH, GATHER, LIST_JOBS, SHOW_JOB, RESULT, LOGS,
    EVENTS, STREAM_TOKEN, CANCEL, RETRY, PUT_BLOB, HEAD_BLOB, GET_BLOB, LIST_KEYS, CREATE_KEY, REVOKE_KEY, LIST_AGENTS,
)  # fmt: skip

SESSION_PATH = "/v1/agents/session"  # the agent's websocket
