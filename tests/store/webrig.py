"""Services on a store: the gateway's side of them, and their agents'."""

from __future__ import annotations

from typing import Any

from storerig import Store

from apothic.protocol.messages import AppManifest, Failure, FunctionSpec
from apothic.protocol.services import ServiceSpec
from apothic.protocol.session import ContainerNews, StartContainer, StopContainer
from apothic.protocol.specs import FunctionOptions
from apothic.store.services import SERVICES, Services, ServiceTable

BROKEN = Failure(kind="startup", type="ImportError", message="no", log_tail="the end")
LOST = Failure(kind="worker_lost", type="WorkerLost", message="it died")


def web(name: str = "web", kind: Any = "asgi", port: int = 0, **options: Any) -> FunctionSpec:
    given = {"cpu": 0.01, "memory_mb": 1, "max_containers": 3} | options
    return FunctionSpec(
        name=name, module="app", qualname=name, kind=kind, service=ServiceSpec(port=port),
        options=FunctionOptions(**given),
    )  # fmt: skip


class Web:
    """The gateway's and the agent's sides of services, on a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.services = Services(store.db, store.clock, store.rung.append)
        self.ended: list[tuple[str, int, str, Failure | None]] = []
        store.fleet.obituary = store.dispatcher.obituary = lambda *told: self.ended.append(told)

    async def table(self) -> ServiceTable:
        return await self.services.table()

    async def deploy(self, *specs: FunctionSpec, app: str = "shop") -> str:
        return (await self.store.catalog.deploy(AppManifest(app=app, functions=list(specs)))).id

    async def ready(self, start: StartContainer, address: str = "", agent: str = "agt") -> str:
        told = address or f"unix:/run/{start.container}"
        await self.store.news(agent, ContainerNews(id=start.container, state="ready", pid=7, address=told))
        return start.container

    async def gone(self, container: str, failure: Failure | None = None) -> None:
        await self.store.news("agt", ContainerNews(id=container, state="gone", failure=failure))

    async def live(self, *specs: FunctionSpec) -> tuple[str, list[str]]:
        """Deploy, and let all that is started for it become ready."""
        return await self.live_on("agt", *specs)

    async def live_on(self, agent: str, *specs: FunctionSpec) -> tuple[str, list[str]]:
        """Do that on another agent."""
        deployment = await self.deploy(*specs)
        return deployment, [await self.ready(start, agent=agent) for start in self.store.started()]

    async def status(self, deployment: str) -> str:
        return (await self.store.catalog.deployment(deployment)).status

    def stops(self) -> dict[str, bool]:
        """Return the containers that were told to stop since the last look, and whether they may finish."""
        stops = {frame.container: frame.finish for _, frame in self.store.frames if isinstance(frame, StopContainer)}
        self.store.frames = [pair for pair in self.store.frames if not isinstance(pair[1], StopContainer)]
        return stops

    def rang(self) -> bool:
        rang = SERVICES in self.store.rung
        self.store.rung.clear()
        return rang
