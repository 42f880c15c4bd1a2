"""Drives `Containers` with real child processes below a temporary directory, without a control plane."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import shutil
import textwrap
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from apothic.agent.containers import Containers
from apothic.agent.outbox import Outbox
from apothic.clock import SystemClock
from apothic.protocol import values
from apothic.protocol.messages import FunctionSpec, SourceFile
from apothic.protocol.session import (
    Assignment,
    ContainerNews,
    Item,
    Line,
    Outcome,
    Packed,
    Report,
    Reports,
    StartContainer,
    Welcome,
)
from apothic.protocol.specs import FunctionOptions

MIB = 1024 * 1024


class Folder:
    """Blobs in a directory. A test may close the `gate`, or let `trouble` befall what is stored."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gate = asyncio.Event()
        self.gate.set()
        self.trouble: OSError | None = None
        root.mkdir()

    def keep(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        (self.root / name).write_bytes(data)
        return name

    async def fetch(self, sha256: str, dest: Path) -> None:
        shutil.copyfile(self.root / sha256, dest)

    async def store(self, path: Path, sha256: str, size: int) -> None:
        assert path.stat().st_size == size
        await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        shutil.copyfile(path, self.root / sha256)


class Bench:
    """A `Containers` whose outbox is read by the test."""

    def __init__(self, home: Path, **limits: Any) -> None:
        known = {
            "lease_s": 30.0, "grace_s": 0.3, "startup_timeout_s": 20.0, "payload_limit": 64 * MIB,
            "inline_limit": 64 * 1024,
        }  # fmt: skip
        kill_s = limits.pop("kill_s", 0.5)
        acknowledge = limits.pop("acknowledge", True)
        groups = limits.pop("groups", None)
        self.folder = Folder(home / "blobs")
        self.outbox = Outbox(SystemClock(), self._heard)
        self.containers = Containers(
            home, Welcome(**(known | limits)), self.outbox, self.folder, SystemClock(), kill_s=kill_s,
            groups=groups,
        )  # fmt: skip
        self.containers.site.base_url = "http://127.0.0.1:1"
        self.acknowledge = acknowledge
        self.paused: list[str] = []  # tokens of generators that get no credit
        self.reports: dict[str, list[Report]] = {}
        self.news: dict[str, list[ContainerNews]] = {}
        self.frames: list[Reports] = []
        self.pids: set[int] = set()
        self._changed = asyncio.Event()
        self._numbers = itertools.count(1)

    def _heard(self, frame: bytes) -> None:
        message = msgspec.msgpack.decode(frame, type=Reports)
        self.frames.append(message)
        for report in message.reports:
            told = self.reports.setdefault(report.token, [])
            assert report.seq == len(told)
            assert not told or told[-1].outcome is None, "news after the end"
            told.append(report)
        for item in message.containers:
            self.news.setdefault(item.id, []).append(item)
            if item.pid:
                self.pids.add(item.pid)
        if self.acknowledge:
            asyncio.get_running_loop().call_soon(self.outbox.acknowledged, message.number, self.paused)
        self._changed.set()

    async def until(self, holds: Any, seconds: float = 30.0) -> None:
        async with asyncio.timeout(seconds):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def soon(self, holds: Any, seconds: float = 30.0) -> None:
        """Wait until something holds that nobody tells."""
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.005)

    async def quiet(self) -> None:
        """Wait until nothing more comes: whatever runs waits for us."""
        while True:
            seen = len(self.frames)
            await asyncio.sleep(0.3)
            if len(self.frames) == seen:
                return

    # --- deeds

    def acknowledge_all(self) -> None:
        """Say that all that was told so far is on disk."""
        self.outbox.acknowledged(self.frames[-1].number, self.paused)

    def start(
        self, code: str, qualname: str = "f", *, files: Iterable[tuple[str, bytes]] = (), spec: Any = None,
        **options: Any,
    ) -> str:  # fmt: skip
        name = f"ctr_{next(self._numbers)}"
        sources = [("app.py", textwrap.dedent(code).encode()), *files]
        kept = [SourceFile(path=path, sha256=self.folder.keep(data), size=len(data)) for path, data in sources]
        function = FunctionSpec(
            name=qualname, module="app", qualname=qualname, options=FunctionOptions(**options), **(spec or {})
        )
        self.containers.start(
            StartContainer(container=name, deployment="dep_1", app="shop", function=function, files=kept)
        )
        return name

    async def ready(self, container: str) -> ContainerNews:
        """Wait until a container is ready or gone; return the last news."""
        await self.until(lambda: any(item.state != "starting" for item in self.news.get(container, [])))
        return self.news[container][-1]

    async def gone(self, container: str) -> ContainerNews:
        await self.until(lambda: any(item.state == "gone" for item in self.news.get(container, [])))
        return self.news[container][-1]

    def give(self, container: str, *args: Any, **more: Any) -> str:
        assignment = self.assignment(container, *args, **more)
        self.containers.assign(assignment)
        return assignment.token

    def give_all(self, container: str, *each: Any) -> list[str]:
        """Give several jobs of one argument in one frame."""
        assignments = [self.assignment(container, arg) for arg in each]
        self.containers.assign(*assignments)
        return [assignment.token for assignment in assignments]

    def assignment(
        self, container: str, *args: Any, timeout_s: float = 60.0, accept: Any = ("json", "pickle"), job: str = "",
        attempt: int = 1, packed: Any = None, **kwargs: Any,
    ) -> Assignment:  # fmt: skip
        number = next(self._numbers)
        token = f"token-{number}"
        if packed is None:
            packed = values.pack_arguments(args, kwargs, payload_limit=64 * MIB).packed
        return Assignment(
            container=container, job=job or f"job_{number}", attempt=attempt, token=token, input=packed,
            timeout_s=timeout_s, accept=list(accept), job_token="secret-of-the-job",
        )  # fmt: skip

    def cancel(self, token: str) -> None:
        for lease in self.containers.leases():
            if lease.token == token:
                self.containers.cancel(lease.job, token)

    async def outcome(self, token: str, seconds: float = 30.0) -> Outcome:
        await self.until(lambda: self.told(token) and self.told(token)[-1].outcome is not None, seconds)
        outcome = self.told(token)[-1].outcome
        assert outcome is not None
        return outcome

    async def value(self, token: str) -> Any:
        outcome = await self.outcome(token)
        assert outcome.value is not None, outcome
        return values.unpack(outcome.value, self._file(outcome.value))

    async def failure(self, token: str) -> Any:
        outcome = await self.outcome(token)
        assert outcome.failure is not None, outcome
        return outcome.failure

    async def run(self, code: str, *args: Any, **options: Any) -> Any:
        """Start a container for `f` and run it once."""
        return await self.value(self.give(self.start(code, **options), *args))

    # --- what was told

    def told(self, token: str) -> list[Report]:
        return self.reports.get(token, [])

    def lines(self, token: str) -> list[Line]:
        return [one for report in self.told(token) for one in report.said if isinstance(one, Line)]

    def text(self, token: str) -> list[str]:
        return [line.text for line in self.lines(token)]

    def items(self, token: str) -> list[Item]:
        return [one for report in self.told(token) for one in report.said if isinstance(one, Item)]

    def yielded(self, token: str) -> list[Any]:
        """Return the values of the items so far, after a check of their numbers."""
        items = self.items(token)
        assert [item.index for item in items] == list(range(len(items)))
        return [values.unpack(item.value, self._file(item.value)) for item in items]

    def said(self, token: str) -> list[Any]:
        """Return the lines and the values of the items in the order in which they were told."""
        return [
            one.text if isinstance(one, Line) else values.unpack(one.value, self._file(one.value))
            for report in self.told(token)
            for one in report.said
        ]

    def _file(self, packed: Packed) -> Path | None:
        return self.folder.root / packed.sha256 if packed.sha256 is not None else None

    async def printed(self, token: str, text: str) -> None:
        await self.until(lambda: text in self.text(token))

    async def close(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(20):
                await self.containers.close()
