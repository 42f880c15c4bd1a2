"""`App`, what a program declares its functions on and deploys; `RemoteApp`, one that is deployed already."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from apothic.client import bundle, deployment
from apothic.client.blocking import Facet, awaiting, blocking, requesting
from apothic.client.connection import ControlPlaneClient, client_for
from apothic.client.declare import Declaring, Serving
from apothic.client.function import Function
from apothic.client.loop import LOOP, at_caller
from apothic.client.remote import RemoteFunction
from apothic.context import CurrentJob, CurrentService, calling
from apothic.direct import on_loop
from apothic.errors import ConfigError, NotDeployedError, NotFoundError
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.protocol.specs import Cron, FunctionOptions, Period, Retries

P = ParamSpec("P")
R = TypeVar("R")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")  # it stands in URLs and file names


class LocalEntrypoint(Generic[P, R]):
    """A function that is run here, by `app.run_local()` or `apothic run`, and calls the others."""

    def __init__(self, name: str, entry: Callable[P, R]) -> None:
        functools.update_wrapper(self, entry)
        self.name = name
        self._entry = entry

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._entry(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<LocalEntrypoint {self.name}>"


@dataclass(frozen=True)
class _Live:
    """What a deployment of ours has: it holds until another function is declared."""

    version: int
    deployment_id: str
    functions: dict[str, str]
    urls: dict[str, str | None]


class App(Serving):
    """A set of functions that are deployed together.

    Functions are its attributes by their names, and stand in `functions`. Nothing is sent before `deploy`, or before
    the first job of one of its functions, which deploys it.

    >>> app = App("greetings")
    >>> @app.function(max_containers=2)
    ... def greet(name: str) -> str:
    ...     return f"hello {name}"
    >>> greet("you"), app.greet is greet
    ('hello you', True)
    """

    def __init__(self, name: str, *, client: ControlPlaneClient | None = None) -> None:
        self._name = _checked(name)
        self._client = client
        self._functions: dict[str, Function[..., Any, Any]] = {}
        self._entrypoints: dict[str, LocalEntrypoint[..., Any]] = {}
        self._version = 0
        self._live: _Live | None = None
        self._lock: tuple[int, asyncio.Lock] | None = None

    @staticmethod
    def lookup(name: str, *, client: ControlPlaneClient | None = None, base_url: str | None = None) -> RemoteApp:
        """Return the deployed app of that name. Raises `NotFoundError` when there is none."""
        found = RemoteApp(name, client_for(client, base_url))
        found.hydrate()
        return found

    # --- what it has ------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Return the name, which is the app's identity on its control plane."""
        return self._name

    @property
    def client(self) -> ControlPlaneClient:
        """Return the client that was given, or this process's own."""
        return client_for(self._client)

    @property
    def functions(self) -> dict[str, Function[..., Any, Any]]:
        """Return the functions by name."""
        return dict(self._functions)

    @property
    def local_entrypoints(self) -> dict[str, LocalEntrypoint[..., Any]]:
        """Return the local entrypoints by name."""
        return dict(self._entrypoints)

    @property
    def deployment_id(self) -> str | None:
        """Return the deployment that this process has made or runs in; `None` before."""
        job = calling()
        if job is not None and job.app == self._name:
            return job.deployment_id
        return self._live.deployment_id if self._live is not None else None

    @property
    def aio(self) -> AppAio:
        """Return the asynchronous side."""
        return AppAio(self)

    def __getattr__(self, name: str) -> Function[..., Any, Any]:
        if not name.startswith("_") and name in self._functions:
            return self._functions[name]
        raise AttributeError(f"app {self.__dict__.get('_name', '')!r} has no function and no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<App {self._name}: {', '.join(self._functions) or 'no functions'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Where it arrives, only what has been deployed under the name can be meant.
        return _again, (self._name,)

    # --- declaring --------------------------------------------------------------------------------------------

    def function(
        self,
        *,
        schedule: Cron | Period | None = None,
        cpu: float = 1,
        memory_mb: int = 1024,
        gpu: str | list[str] | None = None,
        timeout_s: int = 600,
        retries: int | Retries | None = None,
        max_retries: int = 0,
        concurrent_requests: int = 1,
        max_pending_tasks: int = 10_000,
        max_containers: int = 1,
        tasks_per_container: int = 1,
        keep_warm_s: int = 600,
        stream_window: int = 10_000,
        image: Any = None,
        secrets: Any = None,
        volumes: Any = None,
    ) -> Declaring:
        """Declare a function of the app. The options are those of `FunctionOptions`.

        Raises `ConfigError` that names the option, and what is allowed.
        """
        options = {name: value for name, value in locals().items() if name != "self"}
        FunctionOptions(**options)  # so that the error points here
        return Declaring(self, options)

    def local_entrypoint(self, *, name: str | None = None) -> Callable[[Callable[P, R]], LocalEntrypoint[P, R]]:
        """Declare a function that is run here. Its name is the function's own, unless `name` is given."""

        def decorate(fn: Callable[P, R]) -> LocalEntrypoint[P, R]:
            entrypoint = LocalEntrypoint(name or fn.__name__, fn)
            self._entrypoints[entrypoint.name] = entrypoint
            return entrypoint

        return decorate

    def _declare(self, function: Function[..., Any, Any]) -> Function[..., Any, Any]:
        before, now = self._functions.get(function.name), function.local
        # The same name at the same place is a cell run again, or a module loaded again.
        if before is not None and (before.local.__module__, before.local.__qualname__) != (
            now.__module__, now.__qualname__,
        ):  # fmt: skip
            raise ConfigError(
                f"app {self._name!r} has a function {function.name!r} already, from {before.local.__module__}",
                hint="give one of them another name",
            )
        bundle.note_travels(now)
        self._functions[function.name] = function
        self._version += 1
        return function

    def renamed(self, name: str) -> App:
        """Return the same functions as an app of another name."""
        other = App(name, client=self._client)
        other._entrypoints = dict(self._entrypoints)
        for function in self._functions.values():
            other._declare(function.moved(other))
        return other

    # --- here -------------------------------------------------------------------------------------------------

    def run_local(
        self,
        *,
        entrypoint_name: str | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a local entrypoint in this process; return its value, awaited if it is awaitable.

        Without a name: the only one there is, or `main`. Raises `NotFoundError`.
        """
        value = self._entrypoint(entrypoint_name)(*(args or ()), **(kwargs or {}))
        if not inspect.isawaitable(value):
            return value

        async def finish() -> Any:
            return await value

        return asyncio.run(finish())

    def _entrypoint(self, name: str | None) -> LocalEntrypoint[..., Any]:
        if name is None:
            name = next(iter(self._entrypoints)) if len(self._entrypoints) == 1 else "main"
        try:
            return self._entrypoints[name]
        except KeyError:
            known = ", ".join(self._entrypoints) or "none"
            raise NotFoundError(
                f"app {self._name!r} has no local entrypoint {name!r}", hint=f"it has {known}"
            ) from None

    # --- deploying --------------------------------------------------------------------------------------------

    def manifest(self) -> m.AppManifest:
        """Return what a deployment would consist of. Reads and hashes the files that travel. Raises `ConfigError`."""
        return self._bundled()[0]

    def origins(self) -> list[Path]:
        """Return where the files are that travel: single files, and whole packages by their directories."""
        return bundle.origins({function.local.__module__ for function in self._functions.values()})

    def _bundled(self) -> tuple[m.AppManifest, dict[str, Path | bytes]]:
        specs: list[m.FunctionSpec] = []
        payloads: dict[str, Path | bytes] = {}
        for function in self._functions.values():
            spec, payload = _spec(function)
            specs.append(spec)
            if spec.payload is not None:
                payloads[spec.payload] = payload
        files = bundle.collect({function.local.__module__ for function in self._functions.values()})
        return m.AppManifest(app=self._name, functions=specs, files=files.files), files.sources | payloads

    @blocking
    async def deploy(self, /) -> str:
        """Deploy the app; return the deployment's id once it is live.

        The same content again is the same deployment. Raises `NotDeployedError` with the end of the start-up log when
        a module does not import; the deployment before stays live then.
        """
        if calling() is not None:
            raise NotDeployedError(
                f"app {self._name!r} cannot be deployed from inside a container",
                hint="deploy it from outside, beforehand",
            )
        async with self._only_one():
            return (await self._deploy(self._version)).deployment_id

    async def find(self, name: str) -> tuple[str, str | None]:
        """Return a function's id, and the deployment its jobs are bound to; deploy the app first when it is not."""
        job = calling()
        if job is not None:
            return await self._find_inside(job, name)
        version, live = self._version, self._live
        if live is None or live.version != version:
            await on_loop()
            async with self._only_one():
                live = self._live
                if live is None or live.version != version:
                    live = await self._deploy(version)
        return live.functions[name], None

    async def _find_inside(self, job: CurrentJob | CurrentService, name: str) -> tuple[str, str | None]:
        if job.app != self._name:
            found = await self.client._ask(routes.FIND_FUNCTIONS, m.FindFunctions(app=self._name, name=name), None)
            if not found.functions:
                raise NotDeployedError(
                    f"{self._name}.{name} is not deployed, and {job.described} cannot deploy it",
                    hint=f"deploy app {self._name!r} from outside, beforehand",
                )
            return found.functions[0].id, None
        if self._live is None or self._live.deployment_id != job.deployment_id:
            view = await self.client._ask(routes.SHOW_DEPLOYMENT, m.ShowDeployment(deployment=job.deployment_id), None)
            self._live = _live(-1, view)
        if name not in self._live.functions:
            raise NotDeployedError(
                f"{self._name}.{name} is not part of deployment {job.deployment_id}",
                hint="declare it where the module is imported, not inside a function",
            )
        return self._live.functions[name], job.deployment_id

    async def _deploy(self, version: int) -> _Live:
        manifest, sources = await at_caller(self._bundled)
        view = await deployment.deploy(self.client, manifest, sources)
        self._live = _live(version, view)
        return self._live

    def known_url(self, name: str) -> str | None:
        """Return where a service of the live deployment is found. Deploys nothing, and starts no server."""
        known = self._live.urls.get(name) if self._live is not None else None
        return known or LOOP.block(lambda: self._look_for_url(name))

    async def _look_for_url(self, name: str) -> str | None:
        if not await self.client.has_server():
            return None
        try:
            found = await self.client._ask(routes.FIND_FUNCTIONS, m.FindFunctions(app=self._name, name=name), None)
        except NotFoundError:
            return None
        return found.functions[0].service_url if found.functions else None

    def forget(self) -> None:
        """Deploy again before the next job: the control plane does not know the deployment any more."""
        self._live = None

    def _only_one(self) -> asyncio.Lock:
        # A lock that a parent process held when it forked would be held for ever here.
        if self._lock is None or self._lock[0] != os.getpid():
            self._lock = os.getpid(), asyncio.Lock()
        return self._lock[1]


class AppAio(Facet[App]):
    """The asynchronous side of `App`."""

    deploy = awaiting(App.deploy)

    async def run_local(
        self,
        *,
        entrypoint_name: str | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a local entrypoint on this event loop; return its value, awaited if it is awaitable."""
        value = self._handle._entrypoint(entrypoint_name)(*(args or ()), **(kwargs or {}))
        return await value if inspect.isawaitable(value) else value


class RemoteApp:
    """A deployed app, known by its name."""

    def __init__(self, name: str, client: ControlPlaneClient) -> None:
        self._name = name
        self._client = client
        self._functions: dict[str, RemoteFunction] | None = None

    @property
    def name(self) -> str:
        """Return the app's name."""
        return self._name

    @property
    def functions(self) -> dict[str, RemoteFunction]:
        """Return the functions of the live deployment by name, looked up at the first use.

        Raises `NotFoundError` when there is no such app.
        """
        return dict(self._functions if self._functions is not None else self.hydrate())

    @property
    def aio(self) -> RemoteAppAio:
        """Return the asynchronous side; `await app.aio.hydrate()` looks it up."""
        return RemoteAppAio(self)

    @requesting
    async def hydrate(self, /) -> dict[str, RemoteFunction]:
        """Look it up, now; return the functions by name. Raises `NotFoundError`."""
        try:
            view = await self._client._ask(routes.SHOW_APP, m.ShowApp(app=self._name), None)
        except NotFoundError:
            raise NotFoundError(
                f"there is no app {self._name!r}", hint="`apothic app list` shows the apps that are there"
            ) from None
        self._functions = {
            function.name: RemoteFunction(self._name, function.name, self._client) for function in view.functions
        }
        return self._functions

    def __repr__(self) -> str:
        return f"<RemoteApp {self._name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteApp, (self._name, self._client)


class RemoteAppAio(Facet[RemoteApp]):
    """The asynchronous side of `RemoteApp`."""

    hydrate = awaiting(RemoteApp.hydrate)


def _live(version: int, view: m.DeploymentView) -> _Live:
    ids = {function.name: function.id for function in view.functions}
    return _Live(version, view.id, ids, {function.name: function.service_url for function in view.functions})


def _again(name: str) -> RemoteApp:
    return RemoteApp(name, client_for())


def _spec(function: Function[..., Any, Any]) -> tuple[m.FunctionSpec, bytes]:
    entry = function.local
    home = bundle.home_of(entry)
    payload = b"" if home.module else bundle.by_value(entry)
    spec = m.FunctionSpec(
        name=function.name,
        module=home.module,
        qualname=home.qualname,
        payload=hashlib.sha256(payload).hexdigest() if payload else None,
        payload_size=len(payload),
        is_generator=inspect.isgeneratorfunction(entry) or inspect.isasyncgenfunction(entry),
        is_async=inspect.iscoroutinefunction(entry) or inspect.isasyncgenfunction(entry),
        options=function.options,
        kind=function._kind,
        service=function._service,
    )
    return spec, payload


def _checked(name: str) -> str:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"an app cannot be called {name!r}",
            hint="use up to 63 letters, digits, '-', '_' and '.', with a letter or digit first",
        )
    return name
