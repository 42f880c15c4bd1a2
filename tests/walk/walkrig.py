"""The whole control plane in this process: its ASGI application asked directly, an agent's session played by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlencode

import msgspec

from apothic.clock import ManualClock
from apothic.config import load
from apothic.control.serve import ControlPlane
from apothic.probe import Probe
from apothic.protocol.messages import AppManifest, FunctionSpec
from apothic.protocol.session import (
    Acknowledge,
    Assignment,
    ContainerNews,
    ContainerSaid,
    Downward,
    Hello,
    Item,
    Lease,
    Line,
    Outcome,
    Packed,
    Renew,
    Report,
    Reports,
    StartContainer,
    Upward,
    Welcome,
    Work,
)
from apothic.protocol.specs import FunctionOptions

HOST = "127.0.0.1:8700"
PATIENCE_S = 10.0  # of real time, before a thing that does not come fails the test
# A minute: of a slow function, containers hold no more jobs than they run.
DONE = Outcome(value=Packed(encoding="json", data=b"42", size=2), ran_s=60.0)
F = TypeVar("F")
App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json()["error"]["code"])


def scope_of(kind: str, method: str, path: str, headers: dict[str, str], query: str = "") -> dict[str, Any]:
    return {
        "type": kind, "method": method, "path": unquote(path), "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"), "scheme": "http", "http_version": "1.1",
        "headers": [(name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in headers.items()],
    }  # fmt: skip


async def ask(
    app: App, method: str, path: str, *, body: bytes | Iterable[bytes | None] = b"", headers: dict[str, str],
    query: dict[str, Any] | None = None,
) -> Answer:  # fmt: skip
    """Ask the application once. `None` among the pieces of a body is a client that leaves."""
    pieces = [body] if isinstance(body, bytes) else list(body)
    waiting = [
        {"type": "http.disconnect"}
        if piece is None
        else {"type": "http.request", "body": piece, "more_body": n + 1 < len(pieces)}
        for n, piece in enumerate(pieces)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    text = urlencode({name: value for name, value in (query or {}).items() if value is not None}, doseq=True)
    await app(scope_of("http", method, path, {"host": HOST} | headers, text), receive, send)
    assert [message["type"] for message in sent[:2]] == ["http.response.start", "http.response.body"]
    assert not sent[-1].get("more_body", False)
    names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], names, b"".join(message["body"] for message in sent[1:]))


class Stage:
    """A control plane on a clock that stands still, or on that of the one before. `key` is its admin key."""

    def __init__(self, data_dir: Path, clock: ManualClock | None = None, **settings: Any) -> None:
        given = {"data_dir": data_dir, "lease_s": 30.0, "durability": "fast"} | settings
        data_dir.mkdir(exist_ok=True)
        self.data_dir = data_dir
        self.clock = clock or ManualClock()
        self.probe = Probe()
        self.settings = load(given, environ={}, cwd=data_dir, home=data_dir)
        self.control = ControlPlane(self.settings, self.clock, self.probe)
        self.agents: list[Puppet] = []

    async def open(self) -> Stage:
        await self.control.open(self.data_dir)
        self.key = (self.data_dir / "admin.key").read_text().strip()
        self.agent_key = (self.data_dir / "agent.key").read_text().strip()
        return self

    async def close(self) -> None:
        for agent in self.agents:
            await agent.cut()
        await self.control.db.close()

    async def ask(self, line: str, json_body: Any = None, *, key: str | None = "", **more: Any) -> Answer:
        """Ask `"GET /v1/jobs"` with the admin key, or with `key` (`None`: without any)."""
        method, path = line.split(" ", 1)
        headers = dict(more.pop("headers", {}))
        if key is not None:
            headers["authorization"] = f"Bearer {key or self.key}"
        if json_body is not None:
            more["body"] = msgspec.json.encode(json_body)
            headers.setdefault("content-type", "application/json")
        return await ask(self.control.http, method, path, headers=headers, **more)

    async def got(self, line: str, json_body: Any = None, **more: Any) -> Any:
        """Ask, and return what a success says."""
        answer = await self.ask(line, json_body, **more)
        assert answer.status in (200, 202), answer
        return answer.json()

    async def agent(self, name: str = "agt_one", **more: Any) -> Puppet:
        puppet = Puppet(self, name, **more)
        await puppet.connect()
        return puppet

    async def sweep(self, seconds: float = 0.0) -> None:
        """Let time pass, then do one round of the sweeps, as their loop does every second."""
        await self.clock.advance(seconds)
        await self.control.jobs.expire()
        await self.control.holds.sweep()
        self.control.sessions.drop((await self.control.fleet.sweep()).overdue)

    async def settled(self, asked: asyncio.Future[F], by_s: float = 0.01) -> F:
        """Let a little time pass, again and again, until an answer is there."""
        async with asyncio.timeout(PATIENCE_S):
            while not asked.done():
                await self.clock.advance(by_s)
                await asyncio.sleep(0.001)
        return await asked

    async def deploy(self, app: str = "app", *specs: FunctionSpec) -> dict[str, Any]:
        """Deploy; return the deployment as it stands."""
        manifest = AppManifest(app=app, functions=list(specs) or [spec()])
        deployed = await self.got(f"POST /v1/apps/{app}/deployments", manifest)
        assert deployed["missing"] == []
        return dict(deployed["deployment"])

    async def live(self, agent: Puppet, app: str = "app", *specs: FunctionSpec) -> str:
        """Deploy an app, let its proof become ready; return its first function's id."""
        deployment = await self.deploy(app, *specs)
        if deployment["status"] == "starting":
            await agent.ready(await agent.next(StartContainer))
        return str(deployment["functions"][0]["id"])

    async def submit(self, function: str, *args: Any, **more: Any) -> str:
        """Submit with bare arguments; return the job's id."""
        body = {"args": list(args)} | more.pop("body", {})
        return str((await self.got(f"POST /v1/functions/{function}/jobs", body, **more))["job"]["id"])

    async def job(self, job: str) -> dict[str, Any]:
        return dict(await self.got(f"GET /v1/jobs/{job}"))

    async def status(self, job: str) -> str:
        return str((await self.job(job))["status"])

    async def create_key(self, *scopes: str, **more: Any) -> str:
        made = await self.got("POST /v1/keys", {"name": "a key", "scopes": list(scopes)} | more)
        return str(made["secret"])


def spec(name: str = "f", **options: Any) -> FunctionSpec:
    given = {"cpu": 0.01, "memory_mb": 1} | options
    return FunctionSpec(name=name, module="app", qualname=name, options=FunctionOptions(**given))


def items(*values: Any, first: int = 0) -> list[Item]:
    """Return what a generator yielded, as its agent reports it."""
    return [
        Item(index=first + n, value=Packed(encoding="json", data=msgspec.json.encode(value)))
        for n, value in enumerate(values)
    ]


class Puppet:
    """An agent's end of the session, moved by the test. It remembers frames until they are acknowledged."""

    def __init__(self, stage: Stage, name: str, *, key: str | None = None, **about: Any) -> None:
        self.name = name
        self.stage = stage
        self.key = key or stage.agent_key
        self.about: dict[str, Any] = {"host": "h", "pid": 1, "cpu": 64.0, "memory_mb": 1 << 16} | about
        self.containers: dict[str, ContainerNews] = {}
        self.held: dict[str, Assignment] = {}
        self.seqs: dict[str, int] = {}
        self.outbox: dict[int, Reports] = {}
        self.number = 0
        self.closed: int | None = None
        self._session: asyncio.Task[None] | None = None
        stage.agents.append(self)

    # --- the session

    async def connect(self) -> Welcome:
        """Open a session and say hello with all that is there; send again what was not acknowledged."""
        await self.open()
        await self.hello()
        welcome = await self.next(Welcome)
        for frame in list(self.outbox.values()):
            await self.say(frame)
        return welcome

    async def hello(self) -> None:
        """Say hello, and wait for nothing."""
        await self.say(
            Hello(
                agent=self.name, version="0", containers=list(self.containers.values()),
                leases=[Lease(job=g.job, attempt=g.attempt, token=g.token) for g in self.held.values()], **self.about,
            )
        )  # fmt: skip

    async def cut_unseen(self) -> None:
        """Lose the connection in a way that the control plane has not noticed yet."""
        self._session = None

    async def open(self, **headers: str) -> None:
        """Open the websocket and nothing more."""
        self._up: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._down: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._later: list[Downward] = []
        self.closed = None
        self._up.put_nowait({"type": "websocket.connect"})
        sent = {"host": HOST, "authorization": f"Bearer {self.key}"} | headers
        scope = scope_of("websocket", "GET", "/v1/agents/session", sent)
        self._session = asyncio.create_task(self.stage.control.http(scope, self._up.get, self._down.put))
        first = await asyncio.wait_for(self._down.get(), PATIENCE_S)
        if first["type"] == "websocket.close":
            self.closed = first["code"]

    async def cut(self) -> None:
        """Lose the connection, without a word."""
        if self._session is not None:
            self._up.put_nowait({"type": "websocket.disconnect", "code": 1006})
            await asyncio.wait_for(self._session, PATIENCE_S)
            self._session = None

    async def say(self, frame: Upward | bytes) -> None:
        data = frame if isinstance(frame, bytes) else msgspec.msgpack.encode(frame)
        await self._up.put({"type": "websocket.receive", "bytes": data})

    async def next(self, kind: type[F]) -> F:
        """Return the next frame of a kind; others are kept for later."""
        for n, frame in enumerate(self._later):
            if isinstance(frame, kind):
                self._later.pop(n)
                return frame
        while True:
            message = await asyncio.wait_for(self._down.get(), PATIENCE_S)
            if message["type"] == "websocket.close":
                self.closed = message["code"]
                raise ConnectionError(f"the session was closed: {message['code']}")
            frame = msgspec.msgpack.decode(message["bytes"], type=Downward)
            if isinstance(frame, Acknowledge):
                self.outbox = {number: kept for number, kept in self.outbox.items() if number > frame.number}
            if isinstance(frame, Work):
                self.held |= {given.token: given for given in frame.assignments}
            if isinstance(frame, kind):
                return frame
            self._later.append(frame)

    async def frames(self) -> list[Downward]:
        """Return what was sent down up to now: all that precedes the answer to a renewal."""
        from apothic.protocol.session import Renewed

        await self.say(Renew(number=7_000))
        await self.next(Renewed)
        frames, self._later = self._later, []
        return [frame for frame in frames if not isinstance(frame, Acknowledge)]

    # --- what an agent does

    async def ready(self, start: StartContainer) -> None:
        """Tell that a container can take inputs."""
        news = ContainerNews(id=start.container, state="ready", pid=7)
        self.containers[start.container] = news
        await self.tell(containers=[news])

    async def work(self) -> Assignment:
        """Return the next single assignment, starting containers as told."""
        while True:
            waiting = [frame for frame in self._later if isinstance(frame, StartContainer)]
            for start in waiting:
                self._later.remove(start)
                await self.ready(start)
            frame = await self.next(Work | StartContainer)  # type: ignore[arg-type]
            if isinstance(frame, StartContainer):
                await self.ready(frame)
                continue
            (given,) = frame.assignments
            return given

    def post(
        self,
        reports: list[Report],
        containers: list[ContainerNews] | None = None,
        said: list[ContainerSaid] | None = None,
    ) -> Reports:
        """Put a frame into the outbox."""
        frame = Reports(number=self.number, reports=reports, said=said or [], containers=containers or [])
        self.outbox[self.number] = frame
        self.number += 1
        return frame

    async def tell(
        self,
        *reports: Report,
        containers: list[ContainerNews] | None = None,
        said: list[ContainerSaid] | None = None,
    ) -> None:
        """Send a frame and wait until it is acknowledged."""
        frame = self.post(list(reports), containers, said)
        await self.say(frame)
        while (await self.next(Acknowledge)).number < frame.number:
            pass

    def report(self, given: Assignment, **what: Any) -> Report:
        """Make the next report of an attempt."""
        seq = self.seqs.get(given.token, 0)
        self.seqs[given.token] = seq + 1
        said = what.pop("said", []) + [Line(stream="stdout", text=text, at=1.0) for text in what.pop("texts", [])]
        if what.get("outcome") is not None:
            self.held.pop(given.token, None)
        at = self.stage.clock.now()
        return Report(job=given.job, attempt=given.attempt, token=given.token, seq=seq, at=at, said=said, **what)

    async def begin(self, given: Assignment) -> None:
        await self.tell(self.report(given, began=True))

    async def finish(self, given: Assignment, outcome: Outcome = DONE, *texts: str) -> None:
        """Begin, if it was not, and end an attempt."""
        await self.tell(self.report(given, began=given.token not in self.seqs, outcome=outcome, texts=texts))


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
