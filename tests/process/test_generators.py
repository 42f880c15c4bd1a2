"""Generator functions in containers: every item once, in order, in time. Real child processes, no control plane."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from containerbench import MIB, Bench

from apothic.agent.items import IN_FLIGHT_ITEMS
from apothic.protocol import values

KINDS = pytest.mark.parametrize("kind", ["def", "async def"])
# Plain functions in the main thread, in threads, and coroutine functions on a loop.
WAYS = pytest.mark.parametrize(("kind", "at_once"), [("def", 1), ("def", 3), ("async def", 3)])


async def _run(bench: Bench, code: str, *args: object, **options: object) -> str:
    """Run `f` once, wait for its end, however that is, and return its token."""
    token = bench.give(bench.start(code, **options), *args)
    await bench.outcome(token)
    return token


@WAYS
async def test_what_is_yielded_and_returned_comes_back(bench: Bench, kind: str, at_once: int) -> None:
    end = "return 'end'" if kind == "def" else "return"
    code = f"""
        {kind} f(n):
            for place in range(n): yield {{"place": place}}
            {end}
    """
    token = await _run(bench, code, 5, concurrent_requests=at_once)

    outcome = await bench.outcome(token)
    assert bench.yielded(token) == [{"place": place} for place in range(5)]
    assert outcome.value is not None and values.unpack(outcome.value) == ("end" if kind == "def" else None)
    assert outcome.items == 5 and outcome.ran_s > 0


@KINDS
async def test_a_generator_may_yield_nothing(bench: Bench, kind: str) -> None:
    token = await _run(bench, f"{kind} f():\n    if False: yield 1")

    assert bench.yielded(token) == [] and (await bench.outcome(token)).items == 0


async def test_a_plain_function_has_no_count_of_items(bench: Bench) -> None:
    assert (await bench.outcome(await _run(bench, "def f(): return 1"))).items is None


@WAYS
async def test_ten_thousand_items_come_whole_and_in_few_frames(bench: Bench, kind: str, at_once: int) -> None:
    token = await _run(bench, f"{kind} f():\n    for n in range(10_000): yield n", concurrent_requests=at_once)

    assert bench.yielded(token) == list(range(10_000))
    assert (await bench.outcome(token)).items == 10_000
    assert len(bench.told(token)) < 2_500


@WAYS
async def test_prints_and_items_keep_their_order(bench: Bench, kind: str, at_once: int) -> None:
    code = f"""
        import sys
        {kind} f():
            for n in range(500):
                yield n
                if n % 7 == 0: print("line", n)
                if n % 11 == 0: sys.stderr.write(f"note {{n}}\\n")
    """
    token = await _run(bench, code, concurrent_requests=at_once)

    wanted: list[object] = []
    for n in range(500):
        wanted.append(n)
        wanted += [f"line {n}"] if n % 7 == 0 else []
        wanted += [f"note {n}"] if n % 11 == 0 else []
    assert bench.said(token) == wanted


# In the kernel, and holding the interpreter.
@pytest.mark.parametrize("deed", ["signal.sigwait(told)", "while not told & signal.sigpending(): pass"])
async def test_items_are_told_while_the_generator_goes_on_to_block(bench: Bench, deed: str) -> None:
    code = f"""
        import signal
        told = {{signal.SIGUSR2}}
        signal.pthread_sigmask(signal.SIG_BLOCK, told)
        def f():
            for n in range(3): yield n
            {deed}
            yield "after"
    """
    container = bench.start(code)
    pid = (await bench.ready(container)).pid
    token = bench.give(container)

    await bench.until(lambda: len(bench.items(token)) == 3)

    assert bench.yielded(token) == [0, 1, 2] and bench.told(token)[-1].outcome is None
    os.kill(pid, signal.SIGUSR2)
    await bench.outcome(token)
    assert bench.yielded(token) == [0, 1, 2, "after"]


@WAYS
async def test_generators_run_at_once_where_the_function_allows_it(bench: Bench, kind: str, at_once: int) -> None:
    wait = "barrier.wait(10)" if kind == "def" else "await barrier.wait()"
    made = "threading" if kind == "def" else "asyncio"
    code = f"""
        import asyncio, threading
        from apothic.context import current_job
        barrier = {made}.Barrier({at_once})
        {kind} f(n):
            for place in range(400):
                if place % 100 == 0: {wait}
                yield [n, place, current_job().id]
            print("end of", n)
    """
    container = bench.start(code, concurrent_requests=at_once)

    tokens = [bench.give(container, n, job=f"job_{n}") for n in range(at_once)]

    for n, token in enumerate(tokens):
        await bench.outcome(token)
        assert bench.said(token) == [*([n, place, f"job_{n}"] for place in range(400)), f"end of {n}"]


@WAYS
async def test_the_context_holds_from_one_item_to_the_next(bench: Bench, kind: str, at_once: int) -> None:
    code = f"""
        import contextvars, threading
        mine = contextvars.ContextVar("mine")
        {kind} f():
            mine.set("set once")
            yield threading.get_ident()
            yield mine.get()
            yield threading.get_ident()
    """
    container = bench.start(code, concurrent_requests=at_once)

    for token in [bench.give(container), bench.give(container)]:
        await bench.outcome(token)
        first, second, third = bench.yielded(token)
        assert first == third and second == "set once"


async def test_a_forked_child_that_comes_back_is_not_the_job(bench: Bench) -> None:
    code = """
        import os
        def f():
            yield "before"
            pid = os.fork()
            if pid == 0:
                print("from the child")
                yield "of the child"
                print("never")
            os.waitpid(pid, 0)
            yield "of the parent"
    """
    token = await _run(bench, code)

    assert bench.yielded(token) == ["before", "of the parent"]
    assert bench.text(token) == ["from the child"]


# --- how far ahead it may run -----------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("bench", [{"acknowledge": False}], indirect=True)
async def test_only_256_items_are_in_flight(bench: Bench, kind: str, at_once: int, tmp_path: Path) -> None:
    code = f"""
        {kind} f(mark):
            for n in range(600):
                yield n
                open(mark, "w").write(str(n))
    """
    mark = tmp_path / "mark"
    token = bench.give(bench.start(code, concurrent_requests=at_once), str(mark))
    for count in (IN_FLIGHT_ITEMS, 2 * IN_FLIGHT_ITEMS):
        await bench.until(lambda: len(bench.items(token)) >= count)  # noqa: B023
        await bench.quiet()
        assert len(bench.items(token)) == count
        assert mark.read_text() == str(count - 2)  # the last is yielded, and not resumed
        bench.acknowledge_all()

    bench.acknowledge = True
    await bench.outcome(token)
    assert bench.yielded(token) == list(range(600))


@pytest.mark.parametrize("bench", [{"acknowledge": False}], indirect=True)
async def test_what_is_acknowledged_in_part_lets_as_many_go(bench: Bench) -> None:
    token = bench.give(bench.start("def f():\n    for n in range(600): yield n"))
    await bench.until(lambda: len(bench.items(token)) >= IN_FLIGHT_ITEMS)
    await bench.quiet()
    said = {frame.number: sum(len(report.said) for report in frame.reports) for frame in bench.frames}
    number, first = next((number, count) for number, count in said.items() if count)

    bench.outbox.acknowledged(number)

    await bench.until(lambda: len(bench.items(token)) >= IN_FLIGHT_ITEMS + first)
    await bench.quiet()
    assert len(bench.items(token)) == IN_FLIGHT_ITEMS + first
    bench.acknowledge = True
    bench.acknowledge_all()
    await bench.outcome(token)


@pytest.mark.parametrize("bench", [{"acknowledge": False}], indirect=True)
async def test_only_a_mebibyte_is_in_flight(bench: Bench) -> None:
    token = bench.give(bench.start("def f():\n    for n in range(40): yield b'x' * 60_000"))
    await bench.until(lambda: len(bench.items(token)) >= 18)
    await bench.quiet()

    assert len(bench.items(token)) == 18 and 17 * 60_000 < MIB < 18 * 60_000
    bench.acknowledge = True
    bench.acknowledge_all()
    await bench.outcome(token)
    assert len(bench.yielded(token)) == 40


@pytest.mark.parametrize("bench", [{"acknowledge": False}], indirect=True)
async def test_an_item_over_a_mebibyte_is_in_flight_alone(bench: Bench) -> None:
    code = "def f():\n    for n in range(3):\n        yield n\n        yield bytes(3 << 20)"
    token = bench.give(bench.start(code))

    for count in (2, 4, 6):
        await bench.until(lambda: len(bench.items(token)) >= count)  # noqa: B023
        await bench.quiet()
        assert len(bench.items(token)) == count and bench.told(token)[-1].outcome is None
        bench.acknowledge_all()

    bench.acknowledge = True
    await bench.outcome(token)
    assert bench.yielded(token) == [0, bytes(3 << 20), 1, bytes(3 << 20), 2, bytes(3 << 20)]


@WAYS
async def test_a_paused_generator_goes_on_when_it_is_told(bench: Bench, kind: str, at_once: int) -> None:
    container = bench.start(f"{kind} f():\n    for n in range(600): yield n", concurrent_requests=at_once)
    await bench.ready(container)
    bench.paused = [f"token-{n}" for n in range(10)]
    token = bench.give(container)
    await bench.until(lambda: len(bench.items(token)) >= IN_FLIGHT_ITEMS)
    await bench.quiet()
    assert len(bench.items(token)) == IN_FLIGHT_ITEMS

    bench.outbox.credit.resume(token)
    await bench.until(lambda: len(bench.items(token)) >= 2 * IN_FLIGHT_ITEMS)
    await bench.quiet()
    assert len(bench.items(token)) == 2 * IN_FLIGHT_ITEMS

    bench.paused = []
    bench.outbox.credit.resume_all()
    await bench.outcome(token)
    assert bench.yielded(token) == list(range(600))


@pytest.mark.parametrize("bench", [{"acknowledge": False}], indirect=True)
async def test_one_generator_that_waits_does_not_keep_others(bench: Bench) -> None:
    waits = bench.give(bench.start("def f():\n    for n in range(1_000): yield n"))
    await bench.until(lambda: len(bench.items(waits)) >= IN_FLIGHT_ITEMS)

    assert await bench.run("def f(): return 1") == 1
    bench.acknowledge = True
    bench.acknowledge_all()
    await bench.outcome(waits)


# --- large items ------------------------------------------------------------------------------------------------


@KINDS
async def test_large_items_keep_their_place_among_small_ones_and_prints(bench: Bench, kind: str) -> None:
    end = "return bytes(200_000)" if kind == "def" else "return"
    code = f"""
        {kind} f():
            for n in range(6):
                yield n
                print("line", n)
                yield bytes([n]) * 200_000
                print("after", n)
            {end}
    """
    token = await _run(bench, code)

    wanted: list[object] = []
    for n in range(6):
        wanted += [n, f"line {n}", bytes([n]) * 200_000, f"after {n}"]
    assert bench.said(token) == wanted
    assert await bench.value(token) == (bytes(200_000) if kind == "def" else None)
    assert (await bench.outcome(token)).items == 12
    assert list((bench.containers.site.home.parent / "files").iterdir()) == []


async def test_the_lease_is_held_while_a_large_item_is_stored_and_nothing_overtakes_it(bench: Bench) -> None:
    bench.folder.gate.clear()
    token = bench.give(
        bench.start("def f():\n    print('first')\n    yield bytes(200_000)\n    print('second')\n    yield 2")
    )
    await bench.printed(token, "first")
    await bench.quiet()

    assert bench.said(token) == ["first"] and bench.told(token)[-1].outcome is None
    assert token in [lease.token for lease in bench.containers.leases()]
    bench.folder.gate.set()

    await bench.outcome(token)
    assert bench.said(token) == ["first", bytes(200_000), "second", 2]
    assert bench.containers.leases() == []


async def test_what_waits_behind_a_large_item_makes_the_outbox_full(bench: Bench) -> None:
    bench.folder.gate.clear()
    code = "def f():\n    yield bytes(200_000)\n    for n in range(260_000): print(f'{n:063}')"
    token = bench.give(bench.start(code))

    await bench.soon(lambda: bench.outbox.full)
    assert bench.lines(token) == []
    bench.folder.gate.set()

    await bench.outcome(token, seconds=60)
    assert [int(text) for text in bench.text(token)] == list(range(260_000))


async def test_a_large_item_that_cannot_be_stored_fails_the_attempt(bench: Bench) -> None:
    bench.folder.trouble = OSError("no space")
    code = """
        import signal
        def f():
            try:
                yield 0
                yield bytes(200_000)
                yield 2
                print("here")
                signal.pause()
            finally:
                print("cleaned up")
    """
    container = bench.start(code)
    token = bench.give(container)

    failure = await bench.failure(token)

    assert (failure.kind, failure.retriable) == ("worker_lost", True) and "no space" in failure.message
    assert bench.yielded(token) == [0] and bench.text(token)[-1] == "cleaned up"
    assert list((bench.containers.site.home.parent / "files").iterdir()) == []
    assert container in bench.containers.live and bench.containers.leases() == []


async def test_a_generator_that_has_ended_is_no_success_without_its_large_item(bench: Bench) -> None:
    bench.folder.gate.clear()
    bench.folder.trouble = OSError("no space")
    container = bench.start("def f():\n    yield bytes(200_000)\n    yield 1\n    print('the end')")
    token = bench.give(container)
    await bench.soon(lambda: bench.containers.live[container]._telling)
    bench.folder.gate.set()

    failure = await bench.failure(token)

    assert failure.kind == "worker_lost" and bench.yielded(token) == [] and bench.text(token) == ["the end"]


# --- how it fails -----------------------------------------------------------------------------------------------


@WAYS
async def test_what_was_yielded_before_an_exception_is_told_before_the_failure(
    bench: Bench, kind: str, at_once: int
) -> None:
    code = f"""
        {kind} f():
            for n in range(300): yield n
            raise ValueError("no more")
    """
    token = await _run(bench, code, concurrent_requests=at_once)

    failure = await bench.failure(token)
    assert (failure.kind, failure.type, failure.message) == ("user", "ValueError", "no more")
    assert "app.py" in failure.traceback and "items.py" not in failure.traceback
    assert bench.yielded(token) == list(range(300))


@WAYS
async def test_an_item_that_cannot_be_packed_closes_the_generator(bench: Bench, kind: str, at_once: int) -> None:
    code = f"""
        import threading
        {kind} f():
            try:
                yield 0
                yield threading.Lock()
                yield 2
            finally:
                print("closed")
    """
    token = await _run(bench, code, concurrent_requests=at_once)

    failure = await bench.failure(token)
    assert failure.kind == "serialization" and not failure.retriable
    assert "item 1 of f" in failure.message and "lock" in failure.message
    assert bench.said(token) == [0, "closed"]


@pytest.mark.parametrize("bench", [{"payload_limit": 100_000}], indirect=True)
async def test_an_item_over_the_limit_names_size_limit_and_what(bench: Bench) -> None:
    token = await _run(bench, "def f():\n    yield bytes(90_000)\n    yield bytes(200_000)")

    failure = await bench.failure(token)
    assert failure.kind == "payload_too_large" and "100,000" in failure.message and "item 1 of f" in failure.message
    assert bench.yielded(token) == [bytes(90_000)]


async def test_an_item_that_the_caller_cannot_read_is_a_serialization_failure(bench: Bench) -> None:
    container = bench.start("def f():\n    yield 1\n    yield {1, 2}")

    failure = await bench.failure(bench.give(container, accept=["json"]))

    assert failure.kind == "serialization" and "set" in failure.message


@KINDS
async def test_arguments_that_do_not_fit_fail_the_attempt(bench: Bench, kind: str) -> None:
    failure = await bench.failure(bench.give(bench.start(f"{kind} f(a): yield a")))

    assert (failure.kind, failure.type) == ("user", "TypeError")


@pytest.mark.parametrize(
    ("deed", "exit"), [("os._exit(3)", "status 3"), ("os.kill(os.getpid(), signal.SIGKILL)", "signal 9")]
)
async def test_a_process_that_dies_has_told_all_it_said(bench: Bench, deed: str, exit: str) -> None:
    code = f"""
        import os, signal
        def f():
            for n in range(1_000): yield n
            print("last words")
            {deed}
            yield "never"
    """
    token = await _run(bench, code)

    failure = await bench.failure(token)
    assert (failure.kind, failure.exit, failure.log_tail) == ("worker_lost", exit, "last words")
    assert bench.said(token) == [*range(1_000), "last words"]


async def test_what_a_killed_process_has_sent_waits_for_its_large_item(bench: Bench) -> None:
    bench.folder.gate.clear()
    container = bench.start("import signal\ndef f():\n    yield bytes(200_000)\n    yield 1\n    signal.pause()")
    token = bench.give(container)
    await bench.soon(lambda: [one.items for one in bench.containers.live[container].attempts] == [2])
    os.kill((await bench.ready(container)).pid, signal.SIGKILL)
    await bench.gone(container)
    assert [lease.token for lease in bench.containers.leases()] == [token]
    bench.folder.gate.set()

    assert (await bench.failure(token)).kind == "worker_lost"
    assert bench.yielded(token) == [bytes(200_000), 1]
