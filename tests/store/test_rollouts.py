"""Random lives of deployments with services: agents come and go, containers do, and the rules of the store hold.

SEED begins other lives; ROUND and ROUNDS say which of them.
"""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from storerig import LEASE_S, Store, broken, spec
from webrig import BROKEN, LOST, Web, web

from apothic.errors import ConflictError, NotFoundError
from apothic.protocol.messages import FunctionSpec
from apothic.protocol.session import ContainerNews, StartContainer, StopContainer

AGENTS = {"agt_a": 2.0, "agt_b": 1.5}
STEPS = 120
MOST_ROUNDS = 40  # of two seconds; for some a port has to change hands twice, after its holders' turns
DEEDS = [
    "deploy", "deploy", "again", "stop", "activate", "ready", "ready", "ready", "break", "die", "want", "want", "use",
    "finish", "finish", "time", "time", "cut", "back", "lose", "restart",
]  # fmt: skip


def drawn(dice: random.Random) -> list[FunctionSpec]:
    """Return the functions of a version: some services, two of which want the same port, and some that run jobs."""
    cpu = dice.choice([0.5, 0.6, 0.7])
    pool = [
        web("a", cpu=cpu, max_containers=2, keep_warm_s=5),
        web("b", "web_server", 8123, cpu=cpu, max_containers=2),
        web("c", "web_server", 8123, cpu=cpu),
        spec("f", cpu=cpu),
    ]
    return dice.sample(pool, dice.randint(1, len(pool)))


class Life:
    """A store, its agents and containers, and what happens to them."""

    def __init__(self, store: Store, seed: str) -> None:
        self.store = store
        self.bench = Web(store)
        self.dice = random.Random(seed)
        self.here: set[str] = set()  # agents that are connected
        self.containers: dict[str, tuple[str, str]] = {}  # on the agents: their agent, and their state there
        self.told: set[str] = set()  # those that are to stop
        self.made: list[list[FunctionSpec]] = []

    async def begin(self) -> None:
        for agent in AGENTS:
            await self.back(agent)

    async def back(self, agent: str) -> None:
        """Let an agent say hello."""
        self.here.add(agent)
        mine = [
            ContainerNews(id=name, state="ready" if state == "ready" else "starting", address="unix:/x")
            for name, (whose, state) in self.containers.items()
            if whose == agent
        ]
        heard = await self.store.hello(agent, cpu=AGENTS[agent], containers=mine)
        for name in heard.dead_containers:
            del self.containers[name]
        self.told |= set(heard.stopping)

    def hear(self) -> None:
        """Take what was pushed to the agents that are connected."""
        for agent, frame in self.store.frames:
            if agent in self.here and isinstance(frame, StartContainer):
                self.containers[frame.container] = agent, "starting"
            elif agent in self.here and isinstance(frame, StopContainer):
                self.told.add(frame.container)
        self.store.frames.clear()

    async def news(self, name: str, **news: object) -> None:
        agent, _ = self.containers[name]
        await self.store.news(agent, ContainerNews(id=name, **news))  # type: ignore[arg-type]

    async def end(self, name: str, **why: object) -> None:
        await self.news(name, state="gone", **why)
        del self.containers[name]

    async def ready(self, name: str) -> None:
        self.containers[name] = self.containers[name][0], "ready"
        await self.news(name, state="ready", address=f"unix:/{name}")

    def some(self, state: str) -> str | None:
        """Return a container in that state whose agent is connected."""
        known = [name for name, (agent, its) in self.containers.items() if its == state and agent in self.here]
        return self.dice.choice(known) if known else None

    async def step(self) -> None:
        """Let one thing happen."""
        with contextlib.suppress(NotFoundError, ConflictError):
            await self.deed(self.dice.choice(DEEDS))
        self.hear()
        await self.check()

    async def deed(self, deed: str) -> None:
        dice, agent = self.dice, self.dice.choice(list(AGENTS))
        starting, ready = self.some("starting"), self.some("ready")
        match deed:
            case "deploy":
                self.made.append(drawn(dice))
                await self.bench.deploy(*self.made[-1])
            case "again" if self.made:
                await self.bench.deploy(*dice.choice(self.made))
            case "stop":
                await self.store.catalog.stop_app("shop")
            case "activate":
                views = sorted(await self.store.catalog.deployments("shop"), key=lambda view: view.id)
                await self.store.catalog.activate("shop", dice.choice(views).id)
            case "ready" if starting is not None:
                await self.ready(starting)
            case "break" if starting is not None and dice.random() < 0.3:
                await self.end(starting, failure=BROKEN)
            case "die" if ready is not None:
                await self.end(ready, failure=dice.choice([LOST, None]))
            case "want":
                live = [served.version for served in (await self.bench.table()).live]
                await self.bench.services.want({version: dice.randint(0, 3) for version in live})
            case "use":
                names = [serving.container for serving in (await self.bench.table()).containers]
                busy = [name for name in names if dice.random() < 0.5]
                now = self.store.clock.monotonic()
                await self.bench.services.used(busy, {name: now for name in names if name not in busy})
            case "finish":
                for name in sorted(self.told & self.containers.keys()):
                    if self.containers[name][0] in self.here:
                        await self.end(name)
            case "time":
                await self.pass_time(dice.choice([0.5, 2.0, 6.0]))
            case "cut":
                await self.cut(agent)
            case "back":
                await self.back(agent)
            case "lose":
                await self.cut(agent)
                await self.pass_time(LEASE_S + 1)
            case "restart":
                await self.store.fleet.restart()
                for each in sorted(self.here):
                    await self.back(each)

    async def cut(self, agent: str) -> None:
        self.hear()
        self.here.discard(agent)
        await self.store.fleet.disconnected(agent)

    async def pass_time(self, seconds: float) -> None:
        await self.store.clock.advance(seconds)
        await self.store.fleet.sweep()

    async def check(self) -> None:
        """Look at what must hold at every moment; the auditor has the rest."""
        shared = await self.store.rows(
            "SELECT agent_id, port FROM containers JOIN services USING (version) WHERE port IS NOT NULL "
            "GROUP BY agent_id, port HAVING count(*) > 1"
        )
        assert shared == [], "two containers of one agent have the same port"
        many = await self.store.rows(
            "SELECT versions.id FROM versions JOIN containers ON version = versions.id "
            "WHERE state <> 'stopping' OR idle_since IS NULL AND version IN (SELECT version FROM services) "
            "GROUP BY versions.id HAVING count(*) > max_containers"
        )
        assert many == [], "there are more containers than there may be"
        table = await self.bench.table()
        usable = {serving.container for serving in table.containers if serving.usable}
        assert usable <= {
            name for name, (agent, its) in self.containers.items() if its == "ready" and agent in self.here
        }
        assert broken(self.store.path) == {}

    async def round(self) -> None:
        """Let all that was begun be finished, and a little time pass."""
        self.hear()
        for name, (_, state) in list(self.containers.items()):
            if name in self.told:
                await self.end(name)
            elif state == "starting":
                await self.ready(name)
        await self.pass_time(2.0)
        self.hear()

    async def settle(self) -> None:
        """Nothing may stay half done: what starts gets live, what drains ends, and what is live can be asked."""
        for agent in AGENTS:
            await self.back(agent)
        table = await self.bench.table()
        await self.bench.services.used([], {each.container: -1_000.0 for each in table.containers})
        for _ in range(MOST_ROUNDS):
            newest = await self.store.rows(
                "SELECT status FROM deployment_events AS each WHERE idx = (SELECT max(idx) FROM deployment_events "
                "WHERE deployment_id = each.deployment_id)"
            )
            if not {status for (status,) in newest} & {"building", "starting", "ready", "draining"}:
                break
            await self.round()
        else:
            raise AssertionError(f"something is still under way: {newest}")
        for served in (await self.bench.table()).live:
            for _ in range(MOST_ROUNDS):
                if any(c.version == served.version and c.usable for c in (await self.bench.table()).containers):
                    break
                await self.bench.services.want({served.version: 1})
                await self.round()
            else:
                raise AssertionError(f"{served.name} is live and has no container")
            await self.bench.services.want({served.version: 0})
        await self.check()


async def lives(folder: Path, seed: str, first: int, last: int) -> None:
    """Play some lives, each in a store of its own."""
    folder.mkdir(exist_ok=True)
    for number in range(first, last):
        store = Store(folder / f"{number}.db")
        store.db.open()
        life = Life(store, f"{seed}/{number}")
        # Ids decide the order of what is otherwise equal; the same seed has to be the same life.
        chance = SimpleNamespace(randbits=life.dice.getrandbits, token_hex=lambda n: f"{n}")
        with patch("apothic.protocol.ids.secrets", chance), patch("apothic.store.dispatch.secrets", chance):
            await life.begin()
            for _ in range(STEPS):
                await life.step()
            await life.settle()
        await store.db.close()
        store.path.unlink()
        print(f"SEED={seed} ROUND={number + 1}: {number + 1:,} of {last:,} lives", flush=True)


async def test_deployments_and_their_services_keep_the_rules(tmp_path: Path) -> None:
    await lives(tmp_path / "lives", os.environ.get("SEED", "1"), 0, 4)


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_two_thousand_lives(tmp_path: Path) -> None:
    seed = os.environ.get("SEED") or random.randbytes(4).hex()
    await lives(tmp_path / "lives", seed, int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "2000")))
