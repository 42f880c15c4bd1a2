"""`Function`, the handle of a function that this program declares: called here, or as jobs elsewhere."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar

from apothic.client import owned, submission
from apothic.client.blocking import adeliver, blocking, deliver, requesting, warn_if_looping
from apothic.client.bundle import home_of, remote_name
from apothic.client.connection import ControlPlaneClient
from apothic.client.job import Job
from apothic.client.loop import LOOP
from apothic.client.mapped import Mapped, MappedAio, refuse_generator, require_generator
from apothic.client.remote import RemoteFunction
from apothic.client.submission import Address, Submission
from apothic.client.web import no_service, refuse_jobs, web_url
from apothic.errors import ConfigError
from apothic.protocol import messages as m
from apothic.protocol.pickling import locate
from apothic.protocol.services import ServiceSpec
from apothic.protocol.specs import BatchingSpec, ConcurrencySpec, Cron, FunctionOptions, Period, Retries

if TYPE_CHECKING:
    from apothic.client.app import App

P = ParamSpec("P")
R = TypeVar("R")
L = TypeVar("L", covariant=True)
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_AMBIGUOUS = ("timeout_s", "snapshot", "event_types")
_CONCURRENCY, _BATCHING = "__apothic_concurrency__", "__apothic_batching__"


class Function(Mapped, Generic[P, R, L]):
    """A function of an app. `fn(...)` and `fn.local(...)` run it here; the other methods make jobs of it.

    The first job deploys the app, unless that has been done. All keywords of a method are the function's own, except
    where the method names some; `with_options` sets what belongs to the jobs.
    """

    def __init__(
        self,
        app: App,
        entry: Callable[P, L],
        options: FunctionOptions,
        kind: m.Kind = "function",
        service: ServiceSpec | None = None,
    ) -> None:
        if not inspect.isfunction(entry):
            raise TypeError(f"@app.function() takes a function, not {type(entry).__name__}")
        functools.update_wrapper(self, entry)
        self._app = app
        self._entry: Callable[P, L] = entry
        self._options = options
        self._kind: m.Kind = kind
        self._service = service
        self._submission = Submission()
        self._is_generator = inspect.isgeneratorfunction(entry) or inspect.isasyncgenfunction(entry)
        if options.schedule is not None:
            _check_bare(entry)
        if options.batching is not None:
            _check_batched(entry, options)

    # --- what it is -------------------------------------------------------------------------------------------

    @staticmethod
    def from_name(
        app_name: str,
        function_name: str,
        *,
        client: ControlPlaneClient | None = None,
        base_url: str | None = None,
    ) -> RemoteFunction:
        """Return the handle of a deployed function; it is looked up when it is first used."""
        return RemoteFunction.from_name(app_name, function_name, client=client, base_url=base_url)

    @property
    def name(self) -> str:
        """Return the name, by which others look it up."""
        return self._entry.__name__

    @property
    def options(self) -> FunctionOptions:
        """Return what it was declared with."""
        return self._options

    @property
    def kind(self) -> str:
        """Return `function`, or the sort of service that it is."""
        return self._kind

    @property
    def schedule(self) -> Cron | Period | None:
        """Return when it runs by itself."""
        return self._options.schedule

    @property
    def service_url(self) -> str | None:
        """Return where it is served, once a deployment is live; `None` before, and for a function that is no service.

        Deploys nothing: `get_web_url` does.
        """
        return None if self._kind == "function" else self._app.known_url(self.name)

    @property
    def aio(self) -> FunctionAio[P, R, L]:
        """Return the asynchronous side."""
        return FunctionAio(self)

    @property
    def __apothic_entry__(self) -> Callable[P, L]:
        return self._entry

    def __repr__(self) -> str:
        return f"<Function {self._app.name}.{self.name}>"

    def _copy(self) -> Self:
        other = object.__new__(type(self))  # copy.copy would pickle it, and that gives the same one
        vars(other).update(vars(self))
        return other

    def moved(self, app: App) -> Self:
        """Return the same function as one of another app."""
        other = self._copy()
        other._app = app
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        if self._submission != Submission():
            plain = self._app.functions.get(self.name) or self._copy()
            return _resubmitted, (plain, self._submission)
        home = home_of(self._entry)
        found: Any = sys.modules.get(self._entry.__module__) if home.module else None
        for part in home.qualname.split(".") if found is not None else ():
            found = getattr(found, part, None)
        if found is self:
            return locate, (remote_name(self._entry.__module__), home.qualname)
        return self.__apothic_away__()

    def __apothic_away__(self) -> tuple[Any, ...]:
        # Where its file does not travel to, only what has been deployed under the names can be meant.
        return _looked_up, (self._app.name, self.name)

    # --- here ---------------------------------------------------------------------------------------------------

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> L:
        return self._entry(*args, **kwargs)

    @property
    def local(self) -> Callable[P, L]:
        """Return the plain function: `fn.local(...)` runs the body in the caller's process."""
        return self._entry

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
        """Return a handle whose jobs have other options.

        `timeout_s` is one attempt's run time, `expires_in_s` the time by which a job must have begun, `run_at` the
        earliest time (a `datetime`, or seconds since 1970). The same `idempotency_key` means the same job.
        Raises `ConfigError`.
        """
        other = self._copy()
        other._submission = submission.changed(
            self._submission, timeout_s=timeout_s, retries=retries, idempotency_key=idempotency_key,
            expires_in_s=expires_in_s, delivery=delivery, run_at=run_at,
        )  # fmt: skip
        return other

    @requesting
    def spawn(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Job]:
        """Submit a job; return its handle once the job is on disk.

        Waits for room in a full queue as long as the client's `timeout_s`, then raises `QueueFullError`.
        """
        return self._spawn(args, kwargs)

    def _spawn(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Job]:
        self._refuse_service()
        return submission.spawn(self, submission.pack(self, args, kwargs), timeout_s=self._patience)

    @requesting
    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Run it as a job and return its value.

        Raises the function's own exception with the remote traceback, a `JobError` when the job ended otherwise,
        `WaitTimeoutError` after the client's `timeout_s`. Ctrl-C or cancellation ends the waiting; the job goes on.
        """
        return self._remote(args, kwargs)

    def _remote(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, R]:
        self._refuse_service()
        refuse_generator(self._is_generator, self.name, "remote", "remote_gen")
        return submission.call(self, submission.pack(self, args, kwargs), timeout_s=self._patience)

    def remote_gen(
        self: Function[P, Any, Iterator[T] | AsyncIterator[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Iterator[T]:
        """Run a generator function as a job and yield its items as they come.

        At the end raises what `remote` raises. The job is this iterator's own: leaving it early (`break`, `close()`,
        Ctrl-C) cancels the job, losing the network does not; after `WaitTimeoutError`, by the client's `timeout_s` in
        all, and `JobStreamResetError` the job goes on. Raises `TypeError` at once for a plain function.
        """
        warn_if_looping("remote_gen")
        return deliver(self._items(args, kwargs))

    def _items(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[Callable[[], Any]]:
        self._refuse_service()
        require_generator(self._is_generator, self.name, "remote_gen", "remote")
        return owned.items(self, submission.pack(self, args, kwargs), timeout_s=self._patience)

    @blocking
    def get_web_url(self, /) -> Coroutine[Any, Any, str]:
        """Return the URL of the service; deploy its app first, unless that has been done.

        Waits for one that is starting, at most the client's `timeout_s`. Raises `NotAServiceError` for a function that
        is none, and what `App.deploy` raises.
        """
        return self._web_url()

    async def _web_url(self) -> str:
        if self._kind == "function":
            raise no_service(self._app.name, self.name)
        await self._app.find(self.name)
        return await web_url(self.client_here(), self._app.name, self.name)

    # --- where jobs go ------------------------------------------------------------------------------------------

    def client_here(self) -> ControlPlaneClient:
        return self._app.client

    def _refuse_service(self) -> None:
        refuse_jobs(self._kind, f"{self._app.name}.{self.name}")

    async def address(self) -> Address:
        function, deployment = await self._app.find(self.name)
        return Address(function, deployment, self._is_generator)

    def forget(self) -> None:
        self._app.forget()


class FunctionAio(MappedAio, Generic[P, R, L]):
    """The asynchronous side of `Function`."""

    def __init__(self, handle: Function[P, R, L]) -> None:
        super().__init__(handle)
        self._function = handle

    async def spawn(self, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Submit a job; return its handle once the job is on disk."""
        return await LOOP.hop(lambda: self._function._spawn(args, kwargs))

    async def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it as a job and return its value."""
        return await LOOP.hop(lambda: self._function._remote(args, kwargs))

    def remote_gen(
        self: FunctionAio[P, Any, Iterator[T] | AsyncIterator[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncIterator[T]:
        """Run a generator function as a job and yield its items as they come. See `Function.remote_gen`."""
        return adeliver(self._function._items(args, kwargs))

    async def get_web_url(self, /) -> str:
        """Return the URL of the service. See `Function.get_web_url`."""
        return await LOOP.hop(self._function._web_url)


def _resubmitted(function: Any, submitted_with: Submission) -> Any:
    other = function._copy()
    other._submission = submitted_with
    return other


def _looked_up(app_name: str, function_name: str) -> RemoteFunction:
    return RemoteFunction.from_name(app_name, function_name)


# --- decorators under @app.function -----------------------------------------------------------------------------


def concurrent(*, max_inputs: int, target_inputs: int | None = None) -> Callable[[F], F]:
    """Let one container run up to `max_inputs` inputs of the function at once. Stands under `@app.function()`.

    Raises `ConfigError`.
    """
    return _marking(_CONCURRENCY, ConcurrencySpec(max_inputs, target_inputs))


def batched(*, max_batch_size: int, wait_ms: int) -> Callable[[F], F]:
    """Give the function, written as `f(list) -> list`, several inputs at a time. Stands under `@app.function()`.

    Raises `ConfigError`.
    """
    return _marking(_BATCHING, BatchingSpec(max_batch_size, wait_ms))


def _marking(mark: str, spec: ConcurrencySpec | BatchingSpec) -> Callable[[F], F]:
    def decorate(fn: F) -> F:
        if isinstance(fn, Function) or not callable(fn):
            raise TypeError("this decorator stands under @app.function(), directly above the function")
        setattr(fn, mark, spec)
        return fn

    return decorate


def options_of(fn: Callable[..., Any], given: dict[str, Any], *, at_once: int = 1) -> FunctionOptions:
    """Make a function's options of those given and those of the decorators under it. Raises `ConfigError`.

    `at_once` is what `concurrent_requests` is when nobody says.
    """
    concurrency: ConcurrencySpec | None = getattr(fn, _CONCURRENCY, None)
    short = given["concurrent_requests"]
    if concurrency is not None and short not in (at_once, concurrency.max_inputs):
        raise ConfigError(
            f"concurrent_requests says {short} and @concurrent says {concurrency.max_inputs}",
            hint="give one of the two; concurrent_requests is the short form",
        )
    return FunctionOptions(**given, concurrency=concurrency, batching=getattr(fn, _BATCHING, None))


def warn_of_ambiguity(fn: Callable[..., Any], *, stacklevel: int) -> None:
    """Warn of parameters that a method of the handle has as well."""
    clash = [name for name in inspect.signature(fn).parameters if name in _AMBIGUOUS]
    if clash:
        warnings.warn(
            f"{fn.__qualname__} has a parameter {clash[0]}, which methods of a looked-up function take for themselves: "
            "rename it, or pass it by position",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


def _check_batched(fn: Callable[..., Any], options: FunctionOptions) -> None:
    """Refuse a function that cannot be called with a list and return one."""
    name = fn.__qualname__
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise ConfigError(
            f"{name} is a generator, and cannot be batched", hint="return a list, one result for each item"
        )
    if options.schedule is not None:
        raise ConfigError(
            f"{name} cannot be batched and have a schedule", hint="schedule a function that calls this one"
        )
    try:
        inspect.signature(fn).bind([])
    except TypeError as error:
        raise ConfigError(
            f"{name} cannot be batched, because it does not take one list: {error}",
            hint="write it as f(items: list) -> list; callers pass single items",
        ) from None


def _check_bare(fn: Callable[..., Any]) -> None:
    """Refuse a function that a schedule cannot call, for it calls without arguments."""
    try:
        inspect.signature(fn).bind()
    except TypeError as error:
        raise ConfigError(
            f"{fn.__qualname__} cannot have a schedule, which calls it without arguments: {error}",
            hint="give every parameter a default, or schedule a function without parameters that calls this one",
        ) from None
