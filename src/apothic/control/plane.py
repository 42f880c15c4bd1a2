"""The control plane: one method for each route. It commits, then rings; it never acts on news, only on the store."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from apothic import __version__
from apothic.clock import Clock, wait_for
from apothic.control.deadlock import Waits
from apothic.control.hub import Hub
from apothic.control.keys import Keys, Principal
from apothic.control.sessions import Sessions
from apothic.control.streams import Connection, Streams
from apothic.errors import AuthError, InvalidRequestError, JobGoneError
from apothic.protocol import messages as m
from apothic.protocol import values
from apothic.protocol.events import check_types
from apothic.protocol.lifecycle import FINAL
from apothic.protocol.services import SERVICE_KINDS, described
from apothic.protocol.session import Packed
from apothic.store.applogs import topic
from apothic.store.blobs import Blobs, Offer
from apothic.store.catalog import Catalog, MissingBlobs
from apothic.store.fleet import Fleet
from apothic.store.intake import NewJob
from apothic.store.jobs import Ended, Jobs, no_job
from apothic.store.stream import PAGE_EVENTS, Page, Wish

T = TypeVar("T")

# As many inputs as one transaction of about 20 ms holds; a client's pump sends no more at once either.
LARGEST_BATCH = 500
LARGEST_GATHER = 10_000
LONGEST_POLL_S = 25.0  # below the 30 s after which proxies end a request that is silent
# At 1,000 jobs outstanding an answer a job came to 140 jobs a second, an answer each 10 ms to a fifth of the server's
# time, an answer each 25 ms to half of that.
LINGER_S = 0.025


@dataclass(frozen=True)
class Asker:
    """Who asks, and whether the answer may hold bytes as they are (MessagePack) or needs them as text (JSON)."""

    principal: Principal
    binary: bool


class Plane:
    """Answers every route. Waiting answers listen first and look second, at most `max_wait_s`."""

    def __init__(
        self, *, jobs: Jobs, catalog: Catalog, fleet: Fleet, blobs: Blobs, keys: Keys, hub: Hub, sessions: Sessions,
        streams: Streams, clock: Clock, max_wait_s: float, inline_limit: int,
    ) -> None:  # fmt: skip
        self._jobs = jobs
        self._catalog = catalog
        self._fleet = fleet
        self._blobs = blobs
        self._keys = keys
        self._hub = hub
        self._sessions = sessions
        self._streams = streams
        self._clock = clock
        self._max_wait_s = max_wait_s
        self._inline_limit = inline_limit
        self.waits = Waits()
        self.problem: Callable[[], Awaitable[list[str]]] | None = None

    # --- health -------------------------------------------------------------------------------------------------

    async def healthz(self, asker: Asker, ask: m.ShowHealth) -> m.Health:
        return m.Health(ok=True, version=__version__, pid=os.getpid())

    async def readyz(self, asker: Asker, ask: m.ShowHealth) -> m.Health:
        problems = await self.problem() if self.problem is not None else []
        return m.Health(ok=not problems, version=__version__, pid=os.getpid(), problems=problems)

    # --- apps ---------------------------------------------------------------------------------------------------

    async def deploy(self, asker: Asker, ask: m.Deploy) -> m.Deployed:
        check_manifest(ask)
        self._jobs.room.check()
        missing = await self._catalog.missing_blobs(ask.manifest)
        if missing:
            return m.Deployed(missing=missing)
        try:
            view = await self._catalog.deploy(ask.manifest)
        except MissingBlobs as error:  # collected in between
            return m.Deployed(missing=error.hashes)
        return m.Deployed(deployment=await self._settled(view.id, ask.wait_s))

    async def show_deployment(self, asker: Asker, ask: m.ShowDeployment) -> m.DeploymentView:
        return await self._settled(ask.deployment, ask.wait_s)

    async def _settled(self, deployment_id: str, wait_s: float) -> m.DeploymentView:
        async def look() -> m.DeploymentView | None:
            view = await self._catalog.deployment(deployment_id)
            return None if view.status == "starting" else view

        view = await self._wait(deployment_id, wait_s, look)
        return view if view is not None else await self._catalog.deployment(deployment_id)

    async def deployment_events(self, asker: Asker, ask: m.FollowDeployment) -> m.EventPage:
        wait_s = min(self._bounded(ask.wait_s), LONGEST_POLL_S)
        return paged(asker, await self._streams.page(wish(ask, oldest=True), wait_s))

    async def follow_deployment(self, asker: Asker, ask: m.FollowDeployment, other: Connection) -> None:
        """Answer with server-sent events; what `deployment_events` is in pages."""
        await self._streams.serve(wish(ask), other, attached=False)

    async def list_deployments(self, asker: Asker, ask: m.ListDeployments) -> m.DeploymentList:
        return m.DeploymentList(deployments=await self._catalog.deployments(ask.app))

    async def activate(self, asker: Asker, ask: m.Activate) -> m.DeploymentView:
        return await self._catalog.activate(ask.app, ask.deployment)

    async def list_apps(self, asker: Asker, ask: m.ListApps) -> m.AppList:
        return m.AppList(apps=await self._catalog.apps())

    async def show_app(self, asker: Asker, ask: m.ShowApp) -> m.AppView:
        return await self._catalog.app(ask.app)

    async def stop_app(self, asker: Asker, ask: m.StopApp) -> m.AppView:
        return await self._catalog.stop_app(ask.app)

    async def app_logs(self, asker: Asker, ask: m.ShowAppLogs) -> m.AppLogs:
        await self._catalog.app(ask.app)
        if not asker.principal.may_everywhere("logs"):
            raise AuthError(f"this key may not read the logs of {ask.app}", hint="ask for a key with the scope logs")

        async def look() -> m.AppLogs | None:
            logs = await self._catalog.app_logs(ask)
            return logs if logs.lines else None

        logs = await self._wait(topic(ask.app), ask.wait_s, look)
        return logs if logs is not None else await self._catalog.app_logs(ask)

    async def find_functions(self, asker: Asker, ask: m.FindFunctions) -> m.FunctionList:
        if ask.app is not None:
            await self._catalog.app(ask.app)  # an app that is not there is an error, not an empty list
        return m.FunctionList(functions=await self._catalog.functions(ask.app, ask.name))

    async def show_function(self, asker: Asker, ask: m.ShowFunction) -> m.FunctionView:
        return await self._catalog.function(ask.function)

    # --- jobs ---------------------------------------------------------------------------------------------------

    async def submit(self, asker: Asker, ask: m.Submit) -> m.JobResult:
        await self._check_invoke(asker, ask.function)
        job, is_new = await self._jobs.take(
            NewJob(
                function_id=ask.function,
                input=self._input(ask.input, ask.args, ask.kwargs),
                accept=tuple(ask.accept),
                options=check_options(ask.options),
                deployment_id=ask.deployment_id,
                idempotency_key=check_key(ask.idempotency_key),
                parent=asker.principal.job,
                attached=ask.attached,
            )
        )
        try:
            return await self._result(asker, job, ask.wait_s, is_new=is_new)
        except JobGoneError:
            # Its key is remembered longer than the job. Who only submits is told which job it was.
            if ask.wait_s > 0:
                raise
            return m.JobResult(job=await self._jobs.remains(job))

    async def submit_batch(self, asker: Asker, ask: m.SubmitBatch) -> m.BatchSubmitted:
        if len(ask.jobs) > LARGEST_BATCH:
            raise InvalidRequestError(
                f"a batch has at most {LARGEST_BATCH} jobs, this one {len(ask.jobs)}", hint="send several batches"
            )
        await self._check_invoke(asker, ask.function)
        options = check_options(ask.options)
        batch = [
            NewJob(
                function_id=ask.function,
                input=self._input(job.input, job.args, job.kwargs),
                accept=tuple(ask.accept),
                options=options,
                deployment_id=ask.deployment_id,
                idempotency_key=check_key(job.idempotency_key),
                parent=asker.principal.job,
            )
            for job in ask.jobs
        ]
        taken = await self._jobs.submit_batch(batch)
        return m.BatchSubmitted(jobs=taken, retry_after_s=1.0 if len(taken) < len(batch) else None)

    async def _check_invoke(self, asker: Asker, function_id: str) -> None:
        if "invoke" in asker.principal.scopes or "admin" in asker.principal.scopes:
            return
        function = await self._catalog.function(function_id)
        if not asker.principal.may_invoke(function.app, function.name):
            raise AuthError(
                f"this key may not invoke {function.app}/{function.name}", hint="ask for a key with that scope"
            )

    def _input(self, value: m.Value | None, args: list[Any] | None, kwargs: dict[str, Any] | None) -> Packed:
        if value is not None:
            if args is not None or kwargs is not None:
                raise InvalidRequestError("give the input either as `input` or as `args` and `kwargs`, not both")
            packed = values.from_wire(value)
        else:
            packed = values.plain_arguments(args, kwargs)
        if packed.data is not None and len(packed.data) > self._inline_limit:
            raise InvalidRequestError(
                f"an input of {len(packed.data):,} bytes does not go inline, the limit is {self._inline_limit:,}",
                hint="PUT it to /v1/blobs/{sha256} and refer to it by sha256 and size",
            )
        return packed

    async def show_job(self, asker: Asker, ask: m.ShowJob) -> m.JobView:
        await self._check_sees(asker, "read:jobs", [ask.job])
        return await self._jobs.show(ask.job)

    async def _check_sees(self, asker: Asker, scope: str, jobs: list[str]) -> None:
        """Refuse the jobs of others: for a key of single functions they do not exist."""
        if asker.principal.only is not None:
            if any(job != asker.principal.only for job in jobs):
                raise no_job(next(job for job in jobs if job != asker.principal.only))
        elif not asker.principal.may_everywhere(scope):
            for job in jobs:
                if not asker.principal.sees(scope, *await self._jobs.whose(job)):
                    raise no_job(job)

    async def result(self, asker: Asker, ask: m.ShowResult) -> m.JobResult:
        await self._check_sees(asker, "read:jobs", [ask.job])
        return await self._result(asker, ask.job, ask.wait_s)

    async def _result(self, asker: Asker, job: str, wait_s: float, *, is_new: bool = False) -> m.JobResult:
        async def look() -> Ended | None:
            ended = await self._jobs.result(job)
            return ended if ended.job.status in FINAL else None

        with self.waits.on(asker.principal.job, [job]):
            # A new job cannot have ended, nor rung, before who was told of it listens: that is one step of one task.
            ended = await self._wait(job, wait_s, look, at_once=not is_new)
        return told(asker, ended if ended is not None else await self._jobs.result(job))

    async def gather(self, asker: Asker, ask: m.GatherResults) -> m.Gathered:
        if len(ask.jobs) > LARGEST_GATHER:
            raise InvalidRequestError(f"at most {LARGEST_GATHER} jobs can be waited for at once")
        await self._check_sees(asker, "read:jobs", ask.jobs)
        until = self._clock.monotonic() + self._bounded(ask.wait_s)
        with self._hub.listen(ask.jobs) as bell, self.waits.on(asker.principal.job, ask.jobs):
            ended, unknown = await self._jobs.ended(ask.jobs)
            if unknown:
                raise await self._jobs.missing(unknown)
            while not ended and (left := until - self._clock.monotonic()) > 0:
                await wait_for(self._clock, bell.rung, left)
                # What ends within a moment shares the answer: asking again costs a look at every job that is left.
                if len(ask.jobs) > 1:
                    await self._clock.sleep(LINGER_S)
                ended, unknown = await self._jobs.ended(sorted(bell.take()))
                if unknown and not ended:
                    raise await self._jobs.missing(unknown)
        return m.Gathered(results=[told(asker, each) for each in ended])

    async def list_jobs(self, asker: Asker, ask: m.ListJobs) -> m.JobList:
        jobs, after = await self._jobs.list(ask)
        jobs = [job for job in jobs if asker.principal.sees("read:jobs", job.app, job.function)]
        return m.JobList(jobs=jobs, next=after)

    async def logs(self, asker: Asker, ask: m.ShowLogs) -> m.JobLogs:
        await self._check_sees(asker, "logs", [ask.job])

        async def look() -> m.JobLogs | None:
            logs = await self._jobs.logs(ask.job, after=ask.after, limit=ask.limit)
            return logs if logs.lines or logs.ended else None

        logs = await self._wait(ask.job, ask.wait_s, look)
        return logs if logs is not None else await self._jobs.logs(ask.job, after=ask.after, limit=ask.limit)

    async def events(self, asker: Asker, ask: m.FollowJob) -> m.EventPage:
        await self._check_sees(asker, "logs", [ask.job])
        with self.waits.on(asker.principal.job, [ask.job]):
            page = await self._streams.page(wish(ask, oldest=True), min(self._bounded(ask.wait_s), LONGEST_POLL_S))
        return paged(asker, page)

    async def follow(self, asker: Asker, ask: m.FollowJob, other: Connection) -> None:
        """Answer with server-sent events; what `events` is in pages."""
        await self._check_sees(asker, "logs", [ask.job])
        with self.waits.on(asker.principal.job, [ask.job]):
            await self._streams.serve(wish(ask), other, attached=ask.attached)

    async def stream_token(self, asker: Asker, ask: m.CreateStreamToken) -> m.StreamToken:
        await self._check_sees(asker, "logs", [ask.job])
        await self._jobs.show(ask.job)
        token, expires_at = self._keys.sign_stream(ask.job, asker.principal)
        return m.StreamToken(token=token, expires_at=expires_at, url=f"/v1/jobs/{ask.job}/events?token={token}")

    async def cancel(self, asker: Asker, ask: m.CancelJob) -> m.JobStatus:
        await self._check_sees(asker, "cancel", [ask.job])
        status, running = await self._jobs.cancel(ask.job)
        if running is not None:
            self._sessions.cancel(running)
        return m.JobStatus(status=status)

    async def retry(self, asker: Asker, ask: m.RetryJob) -> m.JobView:
        await self._check_sees(asker, "invoke", [ask.job])
        job = await self._jobs.submit(await self._jobs.again(ask.job))
        return await self._jobs.show(job)

    # --- blobs, keys, fleet -------------------------------------------------------------------------------------

    async def put_blob(self, asker: Asker, ask: m.Blob, source: AsyncIterator[bytes] | Offer) -> m.BlobView:
        # An agent's key: what a running job brings forth is taken as long as the disk takes it.
        if "worker" not in asker.principal.scopes:
            self._jobs.room.check()
        return await self._blobs.put(ask.sha256, source)

    async def head_blob(self, asker: Asker, ask: m.Blob) -> m.BlobView:
        return await self._blobs.touch(ask.sha256)

    def get_blob(self, asker: Asker, ask: m.Blob) -> tuple[m.BlobView, AsyncIterator[bytes]]:
        return self._blobs.look(ask.sha256), self._blobs.chunks(ask.sha256)

    async def list_keys(self, asker: Asker, ask: m.ListKeys) -> m.KeyList:
        return m.KeyList(keys=await self._catalog.keys())

    async def create_key(self, asker: Asker, ask: m.CreateKey) -> m.KeyCreated:
        return await self._keys.create(ask)

    async def revoke_key(self, asker: Asker, ask: m.RevokeKey) -> m.KeyView:
        return await self._keys.revoke(ask.key)

    async def list_agents(self, asker: Asker, ask: m.ListAgents) -> m.AgentList:
        return m.AgentList(agents=await self._fleet.agents())

    # --- waiting ------------------------------------------------------------------------------------------------

    async def _wait(
        self, topic: str, wait_s: float, look: Callable[[], Awaitable[T | None]], *, at_once: bool = True
    ) -> T | None:
        """Look `at_once` and again at each ring until there is something, at most `wait_s` and `max_wait_s`."""
        until = self._clock.monotonic() + self._bounded(wait_s)
        with self._hub.listen([topic]) as bell:
            while True:
                seen = await look() if at_once else None
                at_once = True
                left = until - self._clock.monotonic()
                if seen is not None or left <= 0:
                    return seen
                await wait_for(self._clock, bell.rung, left)
                bell.take()

    def _bounded(self, wait_s: float) -> float:
        return min(wait_s, self._max_wait_s) if wait_s > 0 else 0.0  # nan is not above 0 either


def told(asker: Asker, ended: Ended) -> m.JobResult:
    """Return a job's end in the asker's codec."""
    value = values.to_wire(ended.value, binary=asker.binary) if ended.value is not None else None
    return m.JobResult(job=ended.job, value=value)


def wish(ask: m.FollowJob | m.FollowDeployment, *, oldest: bool = False) -> Wish:
    """Return what a reader asks for, checked. Raises `InvalidRequestError`."""
    if ask.after is not None and ask.after < -1:
        raise InvalidRequestError("after is the index that was dealt with last, or -1 for none")
    if not 1 <= ask.limit <= PAGE_EVENTS:
        raise InvalidRequestError(f"limit is a number of events from 1 to {PAGE_EVENTS:,}")
    if isinstance(ask, m.FollowDeployment):
        return Wish(ask.deployment, ask.after, limit=ask.limit, oldest=oldest, deployment=True)
    try:
        types = check_types(ask.type)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from None
    return Wish(ask.job, ask.after, types, ask.snapshot, ask.limit, oldest)


def paged(asker: Asker, page: Page) -> m.EventPage:
    """Return a page as a message. What is stored is JSON already; MessagePack needs it taken apart."""

    def read(text: str) -> Any:
        return msgspec.json.decode(text) if asker.binary else msgspec.Raw(text.encode())

    return m.EventPage(
        events=[m.Event(event=kind, index=index, data=read(data)) for index, kind, data in page.events],
        next_index=page.next_index,
        head_index=page.head,
        oldest_index=page.oldest,
        end=page.end,
        reset=read(page.reset[1]) if page.reset is not None else None,
        snapshot=read(page.snapshot) if page.snapshot is not None else None,
    )


def check_manifest(ask: m.Deploy) -> None:
    """Refuse a manifest that contradicts itself. Raises `InvalidRequestError`."""
    manifest = ask.manifest
    if manifest.app != ask.app:
        raise InvalidRequestError(f"the path says app {ask.app!r}, the manifest {manifest.app!r}")
    names = [spec.name for spec in manifest.functions]
    if len(names) != len(set(names)):
        raise InvalidRequestError("two functions of the manifest have the same name")
    for spec in manifest.functions:
        if not spec.payload and not (spec.module and spec.qualname):
            raise InvalidRequestError(f"function {spec.name!r} needs a module and a qualname, or a payload")
        if spec.kind in SERVICE_KINDS and spec.options.schedule is not None:
            raise InvalidRequestError(
                f"{spec.name!r} is {described(spec.kind)} and runs no jobs, so it has no schedule"
            )


def check_options(options: m.CallOptions) -> m.CallOptions:
    """Refuse numbers that make no sense. Raises `InvalidRequestError`."""
    if options.timeout_s is not None and not 0 < options.timeout_s <= 7 * 86400:
        raise InvalidRequestError("timeout_s is a number of seconds above 0, at most 7 days")
    if options.expires_in_s is not None and options.expires_in_s <= 0:
        raise InvalidRequestError("expires_in_s is a number of seconds above 0")
    return options


def check_key(key: str | None) -> str | None:
    """Refuse an idempotency key that is empty or over 200 characters. Raises `InvalidRequestError`."""
    # An empty key that counted as one made ghost executions elsewhere (dbos-transact-py#759).
    # For SQLite's length() a text ends at its first NUL.
    if key is not None and ("\0" in key or not 1 <= len(key) <= 200):
        raise InvalidRequestError("an idempotency key has 1 to 200 characters, no NUL", hint="leave it out for none")
    return key
