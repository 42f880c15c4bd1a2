"""`RemoteFunction`, the handle of a function that is known by the names of its app and itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import datetime
from typing import Any, Self

from apothic.client import owned, submission
from apothic.client.blocking import Facet, awaiting, blocking, delivering, iterating, requesting, streaming
from apothic.client.connection import TIMEOUT_S, ControlPlaneClient, client_for
from apothic.client.fanout import Fanout, Items, single, spread
from apothic.client.job import Job
from apothic.client.mapped import refuse_generator, require_generator
from apothic.client.submission import Address, Submission
from apothic.client.web import refuse_jobs, web_url
from apothic.context import calling
from apothic.errors import NotFoundError
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.protocol.events import JobStreamEvent, check_types
from apothic.protocol.specs import BatchingSpec, ConcurrencySpec, Cron, Period, Retries
from apothic.protocol.values import Envelope


class RemoteFunction:
    """A deployed function, looked up by name when it is first used. It survives pickling, as the names."""

    def __init__(self, app_name: str, function_name: str, client: ControlPlaneClient) -> None:
        self._app_name = app_name
        self._name = function_name
        self._client = client
        self._submission = Submission()
        self._found: m.FunctionView | None = None

    @classmethod
    def from_name(
        cls,
        app_name: str,
        function_name: str,
        *,
        client: ControlPlaneClient | None = None,
        base_url: str | None = None,
    ) -> RemoteFunction:
        """Return the handle. Asks nobody: the look-up is at the first use, and raises `NotFoundError` there.

        >>> RemoteFunction.from_name("shop", "total").name
        'total'
        """
        return cls(app_name, function_name, client_for(client, base_url))

    # --- what it is: these look it up -------------------------------------------------------------------------

    @property
    def function_id(self) -> str:
        """Return the id, which stays the same from deployment to deployment."""
        return self._view().id

    @property
    def name(self) -> str:
        """Return the name; known without a look-up."""
        return self._name

    @property
    def kind(self) -> str:
        """Return `function`, or the sort of service that it is."""
        return self._view().kind

    @property
    def service_url(self) -> str | None:
        """Return where it is served; `None` for a function that is no service."""
        return self._view().service_url

    @property
    def schedule(self) -> Cron | Period | None:
        """Return when it runs by itself."""
        return self._view().options.schedule

    @property
    def timeout_s(self) -> int:
        """Return one attempt's run time, in seconds."""
        return self._view().options.timeout_s

    @property
    def retries(self) -> Retries | None:
        """Return how attempts that raised are tried again."""
        return self._view().options.user_retries

    @property
    def concurrency(self) -> ConcurrencySpec | None:
        """Return how many inputs share a container, if it was declared with `@concurrent`."""
        return self._view().options.concurrency

    @property
    def batching(self) -> BatchingSpec | None:
        """Return how inputs are batched, if they are."""
        return self._view().options.batching

    @property
    def app_name(self) -> str | None:
        """Return the app's name; known without a look-up."""
        return self._app_name

    @property
    def aio(self) -> RemoteFunctionAio:
        """Return the asynchronous side; `await remote.aio.hydrate()` looks it up."""
        return RemoteFunctionAio(self)

    def __repr__(self) -> str:
        return f"<RemoteFunction {self._app_name}.{self._name}>"

    def _copy(self) -> Self:
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._app_name, self._name, self._client, self._submission)

    def _view(self) -> m.FunctionView:
        return self._found or self.hydrate()

    @requesting
    async def hydrate(self, /) -> m.FunctionView:
        """Look it up, now. Raises `NotFoundError` that names what is missing."""
        return await self._look_up()

    async def _look_up(self) -> m.FunctionView:
        if self._found is None:
            self._found = await find(self._client, self._app_name, self._name)
        return self._found

    async def _look_up_function(self) -> m.FunctionView:
        view = await self._look_up()
        refuse_jobs(view.kind, f"{self._app_name}.{self._name}")
        return view

    # --- as jobs ------------------------------------------------------------------------------------------------

    def with_options(
        self,
        *,
        timeout_s: float | None = None,
        retries: int | Retries | None = None,
        idempotency_key: str | None = None,
        expires_in_s: float | None = None,
        delivery: m.Delivery | None = None,
        run_at: float | datetime | None = None,
    ) -> Self:
        """Return a handle whose jobs have other options; see `Function.with_options`. Raises `ConfigError`."""
        other = self._copy()
        other._submission = submission.changed(
            self._submission, timeout_s=timeout_s, retries=retries, idempotency_key=idempotency_key,
            expires_in_s=expires_in_s, delivery=delivery, run_at=run_at,
        )  # fmt: skip
        return other

    @requesting
    def spawn(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Job]:
        """Submit a job; return its handle once the job is on disk. See `Function.spawn`."""
        return submission.spawn(self, submission.pack(self, args, kwargs), timeout_s=self._client.timeout_s)

    @requesting
    def remote(self, /, *args: Any, timeout_s: float = TIMEOUT_S, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Run it as a job and return its value, waiting at most `timeout_s` seconds in all. See `Function.remote`."""
        return self._remote(submission.pack(self, args, kwargs), timeout_s)

    async def _remote(self, envelope: Envelope, timeout_s: float) -> Any:
        await self._refuse_generator("remote", "remote_gen", envelope)
        return await submission.call(self, envelope, timeout_s=timeout_s)

    @delivering
    def remote_gen(
        self, /, *args: Any, timeout_s: float = TIMEOUT_S, **kwargs: Any
    ) -> AsyncIterator[Callable[[], Any]]:
        """Run a generator function as a job and yield its items, waiting at most `timeout_s` seconds in all.

        See `Function.remote_gen`. Raises `TypeError` with the first item for a plain function: it is looked up then.
        """
        envelope = submission.pack(self, args, kwargs)

        async def check() -> None:
            view = await self._look_up_function()
            require_generator(view.is_generator, self._name, "remote_gen", "remote")

        return owned.items(self, envelope, timeout_s=timeout_s, check=check)

    @delivering
    def remote_events(
        self,
        /,
        *args: Any,
        snapshot: bool = False,
        event_types: list[str] | tuple[str, ...] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Callable[[], JobStreamEvent]]:
        """Run it as a job and yield the job's events, without limit of time. See `Function.remote_events`."""
        types = check_types(event_types)
        envelope = submission.pack(self, args, kwargs)
        return owned.events(self, envelope, timeout_s=self._client.timeout_s, types=types, snapshot=snapshot)

    @blocking
    def spawn_map(self, /, items: Items) -> Coroutine[Any, Any, list[Job]]:
        """Submit a job for each item; return the jobs in the order of the items. See `Function.spawn_map`."""
        return Fanout(self, items).jobs(timeout_s=self._client.timeout_s)

    @blocking
    async def map(self, /, items: Items, *, timeout_s: float = TIMEOUT_S, return_exceptions: bool = False) -> list[Any]:
        """Run it for each item; return the values in the order of the items. See `Function.map`."""
        return await self._fanned("map", items, timeout_s=timeout_s, return_exceptions=return_exceptions)

    @blocking
    async def starmap(
        self, /, items: Items, *, timeout_s: float = TIMEOUT_S, return_exceptions: bool = False
    ) -> list[Any]:
        """Do as `map` does, with each item spread over the parameters."""
        return await self._fanned("starmap", items, spread, timeout_s=timeout_s, return_exceptions=return_exceptions)

    @blocking
    async def for_each(self, /, items: Items, *, timeout_s: float = TIMEOUT_S) -> None:
        """Do as `map` does, and keep no values."""
        await self._fanned("for_each", items, timeout_s=timeout_s, keep=False)

    @streaming
    async def map_iter(
        self, /, items: Items, *, ordered: bool = True, return_exceptions: bool = False
    ) -> AsyncIterator[Any]:
        """Yield the values while they come. See `Function.map_iter`."""
        results = _Checked(self, "map_iter", items, single).results(
            timeout_s=self._client.timeout_s, ordered=ordered, return_exceptions=return_exceptions
        )
        try:
            async for result in results:
                yield result
        finally:
            await results.aclose()

    async def _fanned(
        self,
        method: str,
        items: Items,
        arguments: Callable[[Any], tuple[Any, ...]] = single,
        *,
        timeout_s: float,
        return_exceptions: bool = False,
        keep: bool = True,
    ) -> list[Any]:
        fanout = _Checked(self, method, items, arguments)
        return await fanout.collect(timeout_s=timeout_s, return_exceptions=return_exceptions, keep=keep)

    async def _refuse_generator(self, method: str, instead: str, envelope: Envelope | None = None) -> None:
        try:
            refuse_generator((await self._look_up_function()).is_generator, self._name, method, instead)
        except BaseException:
            if envelope is not None:
                envelope.discard()
            raise

    @blocking
    async def get_web_url(self, /) -> str:
        """Return the URL of the service; wait for one that is starting, at most the client's `timeout_s`.

        Raises `NotAServiceError` for a function that is none, `NotFoundError`.
        """
        return await web_url(self._client, self._app_name, self._name)

    # --- where jobs go ------------------------------------------------------------------------------------------

    @property
    def submitted_with(self) -> Submission:
        return self._submission

    def client_here(self) -> ControlPlaneClient:
        return self._client

    async def address(self) -> Address:
        view = await self._look_up_function()
        job = calling()
        own = job is not None and job.app == self._app_name
        return Address(view.id, job.deployment_id if job is not None and own else None, view.is_generator)

    def forget(self) -> None:
        self._found = None


class _Checked(Fanout):
    """A fan-out that learns, before anything is sent, whether its function is a generator."""

    def __init__(
        self, function: RemoteFunction, method: str, items: Items, arguments: Callable[[Any], tuple[Any, ...]]
    ) -> None:
        super().__init__(function, items, arguments)
        self._function = function
        self._method = method

    async def _submit_batch(self, envelopes: list[Envelope], until: float) -> int:
        await self._function._refuse_generator(self._method, "spawn_map or remote_gen")
        return await super()._submit_batch(envelopes, until)


class RemoteFunctionAio(Facet[RemoteFunction]):
    """The asynchronous side of `RemoteFunction`."""

    hydrate = awaiting(RemoteFunction.hydrate)
    spawn = awaiting(RemoteFunction.spawn)
    remote = awaiting(RemoteFunction.remote)
    remote_gen = iterating(RemoteFunction.remote_gen)
    remote_events = iterating(RemoteFunction.remote_events)
    spawn_map = awaiting(RemoteFunction.spawn_map)
    map = awaiting(RemoteFunction.map)
    starmap = awaiting(RemoteFunction.starmap)
    for_each = awaiting(RemoteFunction.for_each)
    map_iter = iterating(RemoteFunction.map_iter)
    get_web_url = awaiting(RemoteFunction.get_web_url)


def _again(app_name: str, function_name: str, client: ControlPlaneClient, submitted_with: Submission) -> RemoteFunction:
    function = RemoteFunction(app_name, function_name, client)
    function._submission = submitted_with
    return function


async def find(client: ControlPlaneClient, app_name: str, function_name: str) -> m.FunctionView:
    """Look a function up. Raises `NotFoundError` that names the app, or the function, that is missing."""
    found = await client._ask(routes.FIND_FUNCTIONS, m.FindFunctions(app=app_name, name=function_name), None)
    if found.functions:
        return found.functions[0]
    others = await client._ask(routes.FIND_FUNCTIONS, m.FindFunctions(app=app_name), None)
    if others.functions:
        known = ", ".join(sorted(view.name for view in others.functions))
        raise NotFoundError(f"app {app_name!r} has no function {function_name!r}", hint=f"it has {known}")
    raise NotFoundError(
        f"there is no app {app_name!r} with a live deployment, so no function {function_name!r}",
        hint="`apothic app list` shows the apps; `apothic deploy FILE` deploys one",
    )
