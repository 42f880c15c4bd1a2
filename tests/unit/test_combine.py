"""Spawns that leave together: who waits for whom, and what becomes of them when a request goes wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import warnings
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from apothic.client.combine import AT_ONCE, BATCH, Combining
from apothic.client.loop import LOOP
from apothic.errors import InvalidRequestError, NotFoundError, QueueFullError
from apothic.protocol import messages as m
from apothic.protocol.lifecycle import Status
from apothic.protocol.specs import Retries

PATIENCE_S = 20.0
FIRST = [f"first{n}" for n in range(AT_ONCE)]  # under way, while others wait
FULL = QueueFullError("full")
Told = m.Submit | m.SubmitBatch


class Watched(Combining):
    """Tells who has come, and can be interrupted as one leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Semaphore(0)
        self.interrupts: list[BaseException] = []

    def _enter(self, key: Hashable, spawn: Any) -> bool:
        leads = super()._enter(key, spawn)
        self.came.release()
        return leads

    def _leave(self, key: Hashable, spawn: Any) -> None:
        if self.interrupts:
            raise self.interrupts.pop()
        super()._leave(key, spawn)


class Server:
    """Stands for a client and its control plane: the first requests are held, others are answered by a rule."""

    def __init__(self) -> None:
        self.combining = Watched()
        self.asked: list[Told] = []
        self.gate = threading.Event()
        self.rule: Callable[[Told], Any] = lambda ask: None
        self.held = AT_ONCE
        self.left: list[float] = []
        self.way_is: tuple[Any, str | None] = self, None

    async def way(self) -> tuple[Any, str | None]:
        return self.way_is

    async def _ask(self, route: Any, ask: Told, timeout_s: float) -> Any:
        assert route.ask is type(ask)
        self.asked.append(ask)
        self.left.append(timeout_s)
        if len(self.asked) <= self.held:
            if threading.current_thread().name == "apothic":
                await asyncio.to_thread(self.gate.wait, PATIENCE_S)
            else:
                self.gate.wait(PATIENCE_S)
        said = self.rule(ask)
        if isinstance(said, BaseException):
            raise said
        if isinstance(ask, m.Submit):
            return m.JobResult(job=view(f"job of {ask.idempotency_key}"))
        jobs = [f"job of {job.idempotency_key}" for job in ask.jobs]
        return m.BatchSubmitted(jobs=jobs if said is None else jobs[:said])

    def submit(self, name: str, function: str = "fn_1", **more: Any) -> Coroutine[Any, Any, str]:
        ask = m.Submit(function=function, idempotency_key=name, **more)
        return self.combining.submit(self, ask, PATIENCE_S)  # type: ignore[arg-type]

    def seen(self) -> list[list[str | None]]:
        """Return the keys of each request."""
        return [
            [ask.idempotency_key] if isinstance(ask, m.Submit) else [job.idempotency_key for job in ask.jobs]
            for ask in self.asked
        ]


def view(job: str) -> m.JobView:
    return m.JobView(
        id=job, app="a", function="f", function_id="fn_1", deployment_id="dep_1", status=Status.QUEUED, attempt=0,
        created_at=0.0,
    )  # fmt: skip


class Crowd:
    """Threads, or tasks of the library's loop, that spawn one after another, each when the one before waits."""

    def __init__(self, server: Server, colour: str) -> None:
        self.server = server
        self.found: dict[str, Future[str]] = {}
        self._way = LOOP.direct if colour == "threads" else LOOP.block
        self._pool = ThreadPoolExecutor(16)

    def comes(self, *names: str, **more: Any) -> None:
        for name in names:
            self.found[name] = self._pool.submit(self._way, partial(self.server.submit, name, **more))
            assert self.server.combining.came.acquire(timeout=PATIENCE_S)

    def told(self) -> dict[str, Any]:
        """Let the server answer, and return what each was told, but for those that were first."""
        self.server.gate.set()
        told = {name: found.exception(PATIENCE_S) or found.result() for name, found in self.found.items()}
        return {name: said for name, said in told.items() if name not in FIRST}


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture(params=["threads", "tasks"])
def crowd(server: Server, request: pytest.FixtureRequest) -> Crowd:
    return Crowd(server, request.param)


def jobs(*names: str) -> dict[str, str]:
    return {name: f"job of {name}" for name in names}


def test_a_lone_spawn_goes_at_once_in_a_request_of_its_own_and_leaves_nothing_behind(server: Server) -> None:
    server.gate.set()
    for way in (LOOP.direct, LOOP.block):
        assert way(partial(server.submit, "a")) == "job of a"
    assert [type(ask) for ask in server.asked] == [m.Submit, m.Submit]
    assert all(PATIENCE_S - 5 < left <= PATIENCE_S for left in server.left)
    assert not server.combining._lanes and not server.combining._threads


def test_who_comes_while_requests_are_under_way_leaves_with_the_others_in_order(server: Server, crowd: Crowd) -> None:
    crowd.comes(*FIRST, "a", "b", "c", "d")
    assert crowd.told() == jobs("a", "b", "c", "d")
    assert server.seen()[AT_ONCE:] == [["a", "b", "c", "d"]]
    assert not server.combining._lanes and not server.combining._threads


def test_two_at_once_do_not_wait_for_each_other_and_nobody_overtakes_those_that_do(server: Server) -> None:
    async def several() -> list[str]:
        tasks = [asyncio.create_task(server.submit(name)) for name in ("1", "2", "a")]
        await asyncio.sleep(0)
        assert server.seen() == [["1"], ["2"]]
        (lane,) = server.combining._lanes.values()
        lane.leave(next(iter(lane.leading)))
        tasks.append(asyncio.create_task(server.submit("b")))
        await asyncio.sleep(0)
        server.gate.set()
        return await asyncio.gather(*tasks)

    assert LOOP.block(several) == [f"job of {name}" for name in ("1", "2", "a", "b")]
    assert server.seen()[2:] == [["a", "b"]]


def test_threads_and_tasks_do_not_wait_for_each_other(server: Server) -> None:
    crowd = Crowd(server, "threads")
    crowd.comes(*FIRST)
    assert LOOP.block(partial(server.submit, "a")) == "job of a"
    crowd.told()


def test_only_what_one_batch_can_say_of_all_leaves_together(server: Server, crowd: Crowd) -> None:
    crowd.comes(*FIRST, "a", "b")
    crowd.comes("other function", function="fn_2")
    crowd.comes("other deployment", deployment_id="dep_2")
    crowd.comes("other options", options=m.CallOptions(retries=Retries(2), timeout_s=3.0))
    server.way_is = server, "key of another job"
    crowd.comes("other key")
    server.way_is = object(), None
    crowd.comes("other server")
    others = ["other function", "other deployment", "other options", "other key", "other server"]
    assert crowd.told() == jobs("a", "b", *others)
    assert sorted(server.seen()) == sorted([["a", "b"], *([name] for name in (*FIRST, *others))])


def test_a_batch_has_as_many_as_the_server_takes(server: Server) -> None:
    async def many() -> list[str]:
        tasks = [asyncio.create_task(server.submit(f"{n}")) for n in range(AT_ONCE + BATCH + 10)]
        await asyncio.sleep(0)
        server.gate.set()
        return await asyncio.gather(*tasks)

    assert LOOP.block(many) == [f"job of {n}" for n in range(AT_ONCE + BATCH + 10)]
    assert sorted(map(len, server.seen())) == sorted([*[1] * AT_ONCE, 10, BATCH])


def test_those_that_a_full_queue_has_left_are_told_so_each_by_the_server(server: Server, crowd: Crowd) -> None:
    crowd.comes(*FIRST, "a", "b", "c")
    server.rule = lambda ask: (
        1 if isinstance(ask, m.SubmitBatch) else FULL if ask.idempotency_key in ("b", "c") else None
    )
    assert crowd.told() == jobs("a") | {"b": FULL, "c": FULL}
    assert sorted(server.seen()[AT_ONCE:]) == [["a", "b", "c"], ["b"], ["c"]]


@pytest.mark.parametrize("error", [InvalidRequestError("no such blob"), NotFoundError("gone")])
def test_an_error_that_is_one_inputs_fault_is_its_own(server: Server, crowd: Crowd, error: Exception) -> None:
    crowd.comes(*FIRST, "a", "b", "c")
    server.rule = lambda ask: error if isinstance(ask, m.SubmitBatch) or ask.idempotency_key == "b" else None
    assert crowd.told() == jobs("a", "c") | {"b": error}


def test_when_the_one_that_leads_is_interrupted_the_others_go_alone_under_their_keys(server: Server) -> None:
    crowd = Crowd(server, "threads")
    crowd.comes(*FIRST, "a", "b", "c")
    server.rule = lambda ask: KeyboardInterrupt() if isinstance(ask, m.SubmitBatch) else None
    told = crowd.told()
    assert isinstance(told.pop("a"), KeyboardInterrupt)
    assert told == jobs("b", "c")
    assert sorted(server.seen()[AT_ONCE:]) == [["a", "b", "c"], ["b"], ["c"]]


def test_an_interrupt_of_one_that_leaves_keeps_nobody_waiting(server: Server) -> None:
    crowd = Crowd(server, "threads")
    crowd.comes(*FIRST, "a", "b")
    server.combining.interrupts = [KeyboardInterrupt()]
    assert crowd.told() == jobs("a", "b")
    assert not server.combining.interrupts and not server.combining._lanes


def test_a_task_that_is_cancelled_while_it_waits_is_not_submitted(server: Server) -> None:
    async def several() -> list[str]:
        tasks = [asyncio.create_task(server.submit(name)) for name in (*FIRST, "a", "b", "c")]
        await asyncio.sleep(0)
        gone = tasks.pop(AT_ONCE)
        gone.cancel()
        server.gate.set()
        found = await asyncio.gather(*tasks)
        assert gone.cancelled()
        return found

    assert LOOP.block(several)[AT_ONCE:] == ["job of b", "job of c"]
    assert server.seen()[AT_ONCE:] == [["b", "c"]]


def test_one_that_was_to_lead_and_is_cancelled_hands_over(server: Server) -> None:
    async def several() -> list[str]:
        tasks = [asyncio.create_task(server.submit(name)) for name in (*FIRST, "a", "b", "c")]
        await asyncio.sleep(0)
        (lane,) = server.combining._lanes.values()
        heir = tasks.pop(AT_ONCE)
        for leader in list(lane.leading):
            lane.leave(leader)  # it is told, and has not run
        heir.cancel()
        server.gate.set()
        return await asyncio.gather(*tasks)

    assert LOOP.block(several)[AT_ONCE:] == ["job of b", "job of c"]
    assert server.seen()[AT_ONCE:] == [["b", "c"]]


def test_ctrl_c_takes_out_a_thread_that_waits(server: Server) -> None:
    crowd = Crowd(server, "threads")
    crowd.comes(*FIRST)

    caller, main = threading.get_ident(), threading.get_native_id()

    def interrupt() -> None:
        assert server.combining.came.acquire(timeout=PATIENCE_S)
        # A signal that comes just before a thread falls asleep does not wake it.
        while Path(f"/proc/self/task/{main}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            pass
        signal.pthread_kill(caller, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        LOOP.direct(partial(server.submit, "gone"))
    crowd.comes("a", "b")
    assert crowd.told() == jobs("a", "b")
    assert server.seen()[AT_ONCE:] == [["a", "b"]]


def test_a_signals_handler_does_not_wait_for_the_request_that_it_has_interrupted(server: Server) -> None:
    server.held = AT_ONCE - 1
    crowd = Crowd(server, "threads")
    crowd.comes(*FIRST[1:])
    inside: list[str] = []

    def handle(*_: Any) -> None:
        inside.append(LOOP.direct(partial(server.submit, "inside")))

    def disturb(ask: Told) -> None:
        if ask.idempotency_key == "outside":  # type: ignore[union-attr]
            signal.raise_signal(signal.SIGUSR1)

    server.rule = disturb
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        assert LOOP.direct(partial(server.submit, "outside")) == "job of outside"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert inside == ["job of inside"]
    crowd.told()


def test_a_forked_child_waits_for_nothing_that_its_parent_has_under_way(server: Server) -> None:
    crowd = Crowd(server, "threads")
    crowd.comes(*FIRST, "a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of any fork beside threads
        server.combining._lock.acquire()
        child = os.fork()
    if child == 0:
        try:
            signal.alarm(int(PATIENCE_S))
            os._exit(0 if LOOP.direct(partial(server.submit, "child")) == "job of child" else 1)
        finally:
            os._exit(2)
    server.combining._lock.release()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert crowd.told() == jobs("a")
