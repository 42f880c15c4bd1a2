"""The methods of `Function` that have keywords of their own: one job for each item, and a job's events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from apothic.client import owned
from apothic.client.blocking import Facet, awaiting, blocking, delivering, iterating, streaming
from apothic.client.connection import ControlPlaneClient
from apothic.client.fanout import Fanout, Items, single, spread
from apothic.client.job import Job
from apothic.client.submission import Address, Submission, pack
from apothic.protocol.events import JobStreamEvent, check_types


class Mapped(ABC):
    """A local function as a target of jobs. Apart from `Function` because nothing here has a type parameter."""

    _is_generator: bool
    _submission: Submission

    @delivering
    def remote_events(
        self,
        /,
        *args: Any,
        snapshot: bool = False,
        event_types: list[str] | tuple[str, ...] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Callable[[], JobStreamEvent]]:
        """Run it as a job and yield the job's events, without limit of time: those of `Job.watch`, from the first on.

        The job is this iterator's own, as that of `remote_gen`. Raises `ValueError` at once for a type that is none.
        """
        self._refuse_service()
        types = check_types(event_types)
        envelope = pack(self, args, kwargs)
        return owned.events(self, envelope, timeout_s=self._patience, types=types, snapshot=snapshot)

    @blocking
    def spawn_map(self, /, items: Items) -> Coroutine[Any, Any, list[Job]]:
        """Submit a job for each item; return the jobs in the order of the items.

        If `items` raises, what was submitted is cancelled and the same exception raised.
        """
        self._refuse_service()
        return Fanout(self, items).jobs(timeout_s=self._patience)

    @blocking
    def map(self, /, items: Items, *, return_exceptions: bool = False) -> Coroutine[Any, Any, list[Any]]:
        """Run it for each item; return the values in the order of the items.

        The first item that failed raises its exception, and items not yet begun are cancelled; with
        `return_exceptions`, exceptions stand in their places instead. Items are read as there is room for them; an
        empty input asks nothing of the server. After the client's `timeout_s`, raises `WaitTimeoutError` with `.jobs`.
        Ctrl-C, cancellation and an input that raises cancel what is unfinished.
        """
        return self._fanned("map", items, return_exceptions=return_exceptions)

    @blocking
    def starmap(self, /, items: Items, *, return_exceptions: bool = False) -> Coroutine[Any, Any, list[Any]]:
        """Do as `map` does, with each item spread over the parameters."""
        return self._fanned("starmap", items, spread, return_exceptions=return_exceptions)

    @blocking
    async def for_each(self, /, items: Items) -> None:
        """Do as `map` does, and keep no values."""
        await self._fanned("for_each", items, keep=False)

    @streaming
    def map_iter(self, /, items: Items, *, ordered: bool = True, return_exceptions: bool = False) -> AsyncIterator[Any]:
        """Yield the values while they come: in the order of the items, or, without `ordered`, as they are done.

        Otherwise as `map`. Leaving the loop early cancels what is unfinished.
        """
        self._refuse_service()
        refuse_generator(self._is_generator, self.name, "map_iter", "spawn_map or remote_gen")
        return Fanout(self, items).results(
            timeout_s=self._patience, ordered=ordered, return_exceptions=return_exceptions
        )

    def _fanned(
        self,
        method: str,
        items: Items,
        arguments: Callable[[Any], tuple[Any, ...]] = single,
        *,
        return_exceptions: bool = False,
        keep: bool = True,
    ) -> Coroutine[Any, Any, list[Any]]:
        self._refuse_service()
        refuse_generator(self._is_generator, self.name, method, "spawn_map or remote_gen")
        fanout = Fanout(self, items, arguments)
        return fanout.collect(timeout_s=self._patience, return_exceptions=return_exceptions, keep=keep)

    # --- what a job asks for ----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def _refuse_service(self) -> None: ...

    @abstractmethod
    def client_here(self) -> ControlPlaneClient: ...

    @abstractmethod
    async def address(self) -> Address: ...

    @abstractmethod
    def forget(self) -> None: ...

    @property
    def submitted_with(self) -> Submission:
        return self._submission

    @property
    def _patience(self) -> float:
        return self.client_here().timeout_s


class MappedAio(Facet[Mapped]):
    """The asynchronous side of `Mapped`."""

    remote_events = iterating(Mapped.remote_events)
    spawn_map = awaiting(Mapped.spawn_map)
    map = awaiting(Mapped.map)
    starmap = awaiting(Mapped.starmap)
    for_each = awaiting(Mapped.for_each)
    map_iter = iterating(Mapped.map_iter)


def refuse_generator(is_generator: bool, name: str, method: str, instead: str) -> None:
    """Raise `TypeError` that names the right method when a generator function is asked for one value."""
    if is_generator:
        raise TypeError(f"{name} is a generator function, which {method} cannot run: use {instead}")


def require_generator(is_generator: bool, name: str, method: str, instead: str) -> None:
    """Raise `TypeError` that names the right method when a plain function is asked for items."""
    if not is_generator:
        raise TypeError(f"{name} is no generator function, so {method} has nothing to yield: use {instead}")
