"""The two colours: one `async def`, reached by blocking and by awaiting."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from apothic.client.blocking import AHEAD, Facet, awaiting, blocking, delivering, iterating, streaming
from apothic.client.loop import CALLER, LOOP, at_caller
from apothic.context import CURRENT, CurrentJob

SEEN: ContextVar[str] = ContextVar("seen", default="nothing")


class Well:
    """A handle with one deed of each sort."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()
        self.drawn = 0
        self.poured = -1
        self.closed = False

    @blocking
    async def double(self, /, number: int, *, plus: int = 0) -> int:
        """Double it."""
        await asyncio.sleep(0)
        return number * 2 + plus

    @blocking
    async def thread(self, /) -> str:
        return threading.current_thread().name

    @blocking
    async def look(self, /) -> str:
        await asyncio.sleep(0)
        return SEEN.get()

    @blocking
    async def current(self, /) -> CurrentJob | None:
        return CURRENT.get()

    @blocking
    async def fail(self, /) -> None:
        raise LookupError("nothing there")

    @blocking
    async def hang(self, /) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            self.cancelled.set()
            raise

    @blocking
    def packed(self, /, thing: list[str]) -> Coroutine[Any, Any, str]:
        thing.append(threading.current_thread().name)
        return self._sent(thing)

    async def _sent(self, thing: list[str]) -> str:
        return f"{thing[-1]} then {threading.current_thread().name}"

    @blocking
    async def asked_back(self, /) -> str:
        return await at_caller(lambda: threading.current_thread().name)

    @streaming
    async def draw(self, /, count: int, fail: bool = False) -> AsyncIterator[int]:
        try:
            for number in range(count):
                self.drawn += 1
                yield number
                await asyncio.sleep(0)
            if fail:
                raise LookupError("dry")
        finally:
            await asyncio.sleep(0)
            self.closed = True

    @streaming
    async def scoped(self, /) -> AsyncIterator[int]:
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
            for number in range(3):
                yield number

    @streaming
    async def stall(self, /) -> AsyncIterator[int]:
        self.begun.set()
        try:
            await asyncio.Event().wait()
            yield 0
        finally:
            await asyncio.sleep(0)
            self.closed = True

    @delivering
    async def ladle(self, /, count: int, break_at: int = -1) -> AsyncIterator[Callable[[], tuple[int, str]]]:
        def deed(number: int) -> tuple[int, str]:
            if number == break_at:
                raise LookupError("spilt")
            self.poured = number
            return number, threading.current_thread().name

        try:
            for number in range(count):
                yield lambda number=number: deed(number)
        finally:
            await asyncio.sleep(0)
            self.closed = True

    @property
    def aio(self) -> WellAio:
        return WellAio(self)


class WellAio(Facet[Well]):
    double = awaiting(Well.double)
    thread = awaiting(Well.thread)
    look = awaiting(Well.look)
    current = awaiting(Well.current)
    fail = awaiting(Well.fail)
    hang = awaiting(Well.hang)
    packed = awaiting(Well.packed)
    asked_back = awaiting(Well.asked_back)
    draw = iterating(Well.draw)
    scoped = iterating(Well.scoped)
    stall = iterating(Well.stall)
    ladle = iterating(Well.ladle)


@pytest.fixture
def well() -> Iterator[Well]:
    yield Well()
    gc.collect()  # a coroutine that was never awaited would warn here


def test_a_deed_is_reached_by_blocking_and_by_awaiting(well: Well) -> None:
    assert well.double(4, plus=1) == 9
    assert asyncio.run(well.aio.double(4, plus=1)) == 9
    assert list(well.draw(3)) == [0, 1, 2]


def test_all_of_it_runs_on_the_librarys_own_thread(well: Well) -> None:
    assert well.thread() == "apothic"
    assert asyncio.run(well.aio.thread()) == "apothic"


def test_signatures_and_docstrings_are_the_methods_own(well: Well) -> None:
    import inspect

    for form in (well.double, well.aio.double):
        assert str(inspect.signature(form)) == "(number: 'int', *, plus: 'int' = 0) -> 'int'"
        assert inspect.getdoc(form) == "Double it."
    assert inspect.iscoroutinefunction(well.aio.double)
    assert Well.double(well, 4) == 8


def test_errors_come_out_as_they_are(well: Well) -> None:
    with pytest.raises(LookupError, match="nothing there"):
        well.fail()
    with pytest.raises(LookupError, match="nothing there"):
        asyncio.run(well.aio.fail())


def test_the_loop_is_made_anew_in_a_forked_child(well: Well) -> None:
    assert well.double(1) == 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of any fork beside threads
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            gc.collect()
            os._exit(0 if well.double(2) == 4 and list(well.draw(2)) == [0, 1] else 1)
        os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert well.double(3) == 6


def test_a_stream_that_was_begun_before_a_fork_is_the_parents(well: Well) -> None:
    numbers = well.draw(1_000)
    assert next(numbers) == 0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            numbers.close()  # type: ignore[attr-defined]
            os._exit(0)
        os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(numbers) == list(range(1, 1_000))


def test_blocking_on_the_librarys_own_loop_raises_and_names_aio(well: Well) -> None:
    class Nested(Well):
        @blocking
        async def inside(self, /) -> int:
            return self.double(2)

    with pytest.raises(RuntimeError, match=r"never return; await the same method of `\.aio`"):
        Nested().inside()


def test_ctrl_c_in_a_blocked_call_cancels_the_work_and_is_raised(well: Well) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        well.begun.wait()
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        well.hang()

    assert well.cancelled.is_set()  # it was waited for, so no patience is needed here


async def test_cancelling_the_caller_cancels_the_work_and_waits_for_it(well: Well) -> None:
    waiting = asyncio.create_task(well.aio.hang())
    await asyncio.to_thread(well.begun.wait)

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert well.cancelled.is_set()


def test_the_callers_context_is_seen(well: Well) -> None:
    job = CurrentJob(id="job_1", attempt=1, app="a", function="f", deployment_id="d", base_url="u", token="t")
    SEEN.set("blocking")
    token = CURRENT.set(job)
    try:
        assert well.look() == "blocking"
        assert well.current() is job
        assert asyncio.run(well.aio.current()) is job
    finally:
        CURRENT.reset(token)
        SEEN.set("nothing")


async def test_each_async_caller_has_its_own_context(well: Well) -> None:
    async def look(name: str) -> str:
        SEEN.set(name)
        return await well.aio.look()

    assert await asyncio.gather(*(look(str(n)) for n in range(20))) == [str(n) for n in range(20)]


def test_fifty_threads_share_the_loop(well: Well) -> None:
    found: list[int] = []

    def ask(number: int) -> None:
        found.append(well.double(number))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(found) == [2 * n for n in range(50)]


def test_what_stands_before_the_coroutine_happens_in_the_callers_thread(well: Well) -> None:
    here = threading.current_thread().name
    assert well.packed([]) == f"{here} then apothic"
    assert asyncio.run(well.aio.packed([])) == f"{here} then apothic"


def test_what_only_the_caller_may_do_is_done_in_its_thread(well: Well) -> None:
    here = threading.current_thread().name
    assert well.asked_back() == here
    assert asyncio.run(well.aio.asked_back()) == here
    assert CALLER.get() is None


def test_a_stream_hands_over_what_is_ready_in_chunks(well: Well) -> None:
    hops = 0
    block = LOOP.block

    async def turns() -> None:
        for _ in range(4 * AHEAD):  # a turn of the loop or two for each item
            await asyncio.sleep(0)

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal hops
        hops += 1
        if hops > 1:
            block(turns)  # a reader this slow finds the stream as far ahead as it may be
        return block(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LOOP, "block", counted)
        assert sum(1 for _ in well.draw(50 * AHEAD)) == 50 * AHEAD

    assert hops == 50 + 3  # what is there at once; one for each chunk; the end; its close


def test_a_stream_stays_lazy(well: Well) -> None:
    numbers = well.draw(1_000_000)
    assert next(numbers) == 0
    assert well.drawn <= 2 * AHEAD + 1
    numbers.close()  # type: ignore[attr-defined]


def test_a_stream_runs_whole_in_one_task(well: Well) -> None:
    assert list(well.scoped()) == [0, 1, 2]


async def test_a_stream_runs_whole_in_one_task_for_async_callers_too(well: Well) -> None:
    assert [number async for number in well.aio.scoped()] == [0, 1, 2]


def test_a_stream_gives_its_items_before_it_raises(well: Well) -> None:
    got: list[int] = []
    with pytest.raises(LookupError, match="dry"):
        for number in well.draw(3, fail=True):
            got.append(number)

    assert got == [0, 1, 2]


def test_leaving_a_stream_early_waits_for_its_finally_blocks(well: Well) -> None:
    for number in well.draw(1_000_000):
        if number == 3:
            break
    gc.collect()

    assert well.closed


async def test_leaving_an_async_stream_early_waits_for_its_finally_blocks(well: Well) -> None:
    async with contextlib.aclosing(well.aio.draw(1_000_000)) as numbers:  # type: ignore[type-var]
        async for number in numbers:
            if number == 3:
                break

    assert well.closed


@pytest.mark.parametrize("attempt", range(20))
async def test_leaving_a_stream_as_it_begins_waits_for_its_finally_blocks(well: Well, attempt: int) -> None:
    reading = asyncio.create_task(anext(well.aio.stall()))  # type: ignore[arg-type]
    while not well.begun.is_set():
        await asyncio.sleep(0)

    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    assert well.closed


def test_a_stream_that_nobody_began_leaves_nothing_behind(well: Well) -> None:
    numbers = well.draw(3)
    del numbers
    gc.collect()

    assert well.drawn == 0


def test_a_deed_of_a_stream_is_done_by_who_gets_what_it_returns_and_just_before(well: Well) -> None:
    here = threading.current_thread().name
    for number, thread in well.ladle(500):
        assert (well.poured, thread) == (number, here)
    assert well.poured == 499


async def test_a_deed_of_a_stream_is_done_on_the_callers_loop(well: Well) -> None:
    here = threading.current_thread().name
    async for number, thread in well.aio.ladle(500):
        assert (well.poured, thread) == (number, here)


@pytest.mark.parametrize("colour", ["blocking", "awaiting"])
def test_a_deed_that_raises_ends_its_stream_and_closes_the_source(well: Well, colour: str) -> None:
    got: list[int] = []

    async def collect() -> None:
        async for number, _ in well.aio.ladle(500, break_at=3):
            got.append(number)

    with pytest.raises(LookupError, match="spilt"):
        if colour == "blocking":
            for number, _ in well.ladle(500, break_at=3):
                got.append(number)
        else:
            asyncio.run(collect())
    assert got == [0, 1, 2]
    assert well.closed


def test_leaving_a_stream_of_deeds_early_waits_for_its_finally_blocks(well: Well) -> None:
    deeds = well.ladle(1_000_000)
    assert next(deeds)[0] == 0
    deeds.close()  # type: ignore[attr-defined]
    assert well.closed


async def test_blocking_inside_a_running_loop_warns_once_and_shows_the_way(well: Well) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            value = well.double(4)
    assert value == 8

    assert len(caught) == 1
    assert "value = await well.aio.double(4)" in str(caught[0].message)
    assert caught[0].filename == __file__


async def test_the_warning_shows_the_way_for_streams(well: Well) -> None:
    with pytest.warns(RuntimeWarning, match=r"async for _ in well\.aio\.draw\(2\):"):
        for _ in well.draw(2):
            pass


def test_the_end_of_the_process_is_quiet_while_work_hangs() -> None:
    program = (
        "import threading, asyncio\n"
        "from apothic.client.loop import LOOP\n"
        "begun = threading.Event()\n"
        "async def hang():\n"
        "    begun.set()\n"
        "    await asyncio.Event().wait()\n"
        "def ask():\n"
        "    try: LOOP.block(hang)\n"
        "    except asyncio.CancelledError: pass\n"
        "threading.Thread(target=ask, daemon=True).start()\n"
        "begun.wait()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_stream_that_is_still_open_does_not_hold_up_the_end_of_the_process() -> None:
    program = (
        "from apothic.client.blocking import iterate\n"
        "async def count():\n"
        "    try:\n"
        "        for n in range(1_000): yield n\n"
        "    finally: print('closed')\n"
        "numbers = iterate(count())\n"
        "print(next(numbers))\n"
    )
    ended = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\nclosed\n", "")


def test_handle_and_facet_name_the_same_deeds() -> None:
    deeds = {name for name, member in vars(Well).items() if isinstance(member, blocking | streaming)}
    assert deeds == {name for name in vars(WellAio) if not name.startswith("_")}
