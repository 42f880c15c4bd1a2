"""How generators are stopped: where they are, with their clean-up, and all that they yielded. Real child processes."""

from __future__ import annotations

import pytest
from containerbench import Bench

from apothic.agent.items import IN_FLIGHT_ITEMS

PATIENT = pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
UNHEARD = pytest.mark.parametrize("bench", [{"grace_s": 20.0, "acknowledge": False}], indirect=True)
WAYS = pytest.mark.parametrize(("kind", "at_once"), [("def", 1), ("def", 3), ("async def", 3)])
# Tells by what it is stopped, and how much it has yielded by then.
COUNTS = """
    {kind} f():
        n = 0
        try:
            while True:
                yield (n := n + 1)
        except BaseException as error:
            print(type(error).__name__, n)
            raise
        finally:
            print("cleaned up")
            {last}
"""


def _error(kind: str) -> str:
    return "JobCancelled" if kind == "def" else "CancelledError"


@UNHEARD
@WAYS
async def test_a_generator_that_waits_for_credit_is_cancelled_at_its_yield(
    bench: Bench, kind: str, at_once: int
) -> None:
    container = bench.start(COUNTS.format(kind=kind, last="yield 'never'"), concurrent_requests=at_once)
    token = bench.give(container)
    await bench.until(lambda: len(bench.items(token)) >= IN_FLIGHT_ITEMS)

    bench.cancel(token)

    failure = await bench.failure(token)
    assert failure.kind == "cancelled" and not failure.retriable and failure.exit is None
    numbers = list(range(1, IN_FLIGHT_ITEMS + 1))
    assert bench.said(token) == [*numbers, f"{_error(kind)} {IN_FLIGHT_ITEMS}", "cleaned up"]
    assert container in bench.containers.live


@PATIENT
@WAYS
async def test_whenever_it_strikes_no_item_is_lost(bench: Bench, kind: str, at_once: int) -> None:
    container = bench.start(COUNTS.format(kind=kind, last=""), concurrent_requests=at_once)
    for wanted in range(1, 1_000, 25):
        token = bench.give(container)
        await bench.until(lambda: len(bench.items(token)) >= wanted)  # noqa: B023

        bench.cancel(token)

        assert (await bench.failure(token)).kind == "cancelled"
        struck, cleaned = bench.text(token)
        name, count = struck.split()
        assert (name, cleaned) == (_error(kind), "cleaned up")
        assert bench.yielded(token) == list(range(1, int(count) + 1))
    assert len(bench.pids) == 1


@PATIENT
@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_generator_is_cancelled_in_the_middle_of_its_code(bench: Bench, kind: str) -> None:
    wait = "time.sleep(60)" if kind == "def" else "await asyncio.sleep(60)"
    code = f"""
        import asyncio, time
        {kind} f(wait):
            yield 1
            yield 2
            try:
                print("here")
                if wait: {wait}
            except BaseException as error:
                print(type(error).__name__)
                raise
            yield 3
    """
    container = bench.start(code)
    token = bench.give(container, True)
    await bench.printed(token, "here")

    bench.cancel(token)

    assert (await bench.failure(token)).kind == "cancelled"
    assert bench.said(token) == [1, 2, "here", _error(kind)]
    again = bench.give(container, False)
    await bench.outcome(again)
    assert bench.yielded(again) == [1, 2, 3] and len(bench.pids) == 1


@PATIENT
@WAYS
async def test_a_generator_over_its_time_is_stopped_with_its_items(bench: Bench, kind: str, at_once: int) -> None:
    code = COUNTS.format(kind=kind, last="").replace("n + 1)", "n + 1) if n < 99 else (n := wait(n + 1))")
    code += "\n    import signal, time\n    def wait(n):\n        time.sleep(0.001)\n        return n\n"
    container = bench.start(code, concurrent_requests=at_once)

    token = bench.give(container, timeout_s=0.5)

    assert (await bench.failure(token)).kind == "timeout"
    assert bench.yielded(token)[:100] == list(range(1, 101))
    assert bench.text(token)[-1] == "cleaned up" and container in bench.containers.live


@PATIENT
@WAYS
async def test_a_generator_that_goes_on_after_its_cancellation_is_closed(bench: Bench, kind: str, at_once: int) -> None:
    code = f"""
        {kind} f():
            while True:
                try:
                    yield 1
                except GeneratorExit:
                    print("closed")
                    raise
                except BaseException:
                    print("no")
    """
    container = bench.start(code, concurrent_requests=at_once)
    token = bench.give(container)
    await bench.until(lambda: bench.items(token))

    bench.cancel(token)

    assert (await bench.failure(token)).kind == "cancelled"
    assert bench.text(token) == ["no", "closed"] and container in bench.containers.live


@PATIENT
async def test_a_generator_that_catches_the_cancellation_and_returns_has_its_value_told(bench: Bench) -> None:
    code = """
        import time
        def f():
            yield 1
            try:
                print("here")
                time.sleep(60)
            except BaseException:
                return "done"
    """
    token = bench.give(bench.start(code))
    await bench.printed(token, "here")

    bench.cancel(token)

    assert await bench.value(token) == "done"
    assert (await bench.outcome(token)).items == 1


async def test_a_generator_that_ignores_everything_is_killed_and_its_items_kept(bench: Bench) -> None:
    code = """
        import signal
        for n in (signal.SIGTERM, signal.SIGUSR1): signal.signal(n, signal.SIG_IGN)
        def f():
            for n in range(1_000): yield n
            print("here")
            while True: signal.pause()
    """
    container = bench.start(code)
    token = bench.give(container)
    await bench.printed(token, "here")

    bench.cancel(token)

    failure = await bench.failure(token)
    assert (failure.kind, failure.exit) == ("cancelled", "signal 9")
    assert bench.said(token) == [*range(1_000), "here"]
    await bench.gone(container)


@PATIENT
async def test_a_lost_lease_stops_a_generator_in_silence(bench: Bench) -> None:
    container = bench.start("def f(n):\n    for _ in range(n): yield bytes(100_000)")
    token = bench.give(container, 1_000_000)
    await bench.until(lambda: len(bench.items(token)) >= 5)

    bench.containers.drop([token])

    await bench.outcome(bench.give(container, 1))
    assert not any(report.outcome for report in bench.told(token))
    assert list((bench.containers.site.home.parent / "files").iterdir()) == []
    assert list((bench.containers.site.home / container / "files").iterdir()) == []
    assert bench.containers.leases() == [] and container in bench.containers.live


async def test_a_generator_that_is_cancelled_before_it_begins_never_does(bench: Bench) -> None:
    container = bench.start("def f():\n    print('here')\n    yield 1")
    token = bench.give(container)  # the container is only starting

    bench.cancel(token)

    assert (await bench.failure(token)).kind == "cancelled"
    await bench.outcome(bench.give(container))
    assert bench.said(token) == []


async def test_items_that_are_not_due_end_the_container(bench: Bench) -> None:
    code = """
        import gc
        from apothic.agent.channel import Channel
        from apothic.agent.frames import Items
        from apothic.context import CURRENT
        from apothic.protocol.session import Packed
        def f():
            yield 1
            channel = next(o for o in gc.get_objects() if isinstance(o, Channel))
            channel.send(Items(job=CURRENT.get().id, first=7, values=[Packed(encoding="json", data=b"7")]))
            while True: yield 2  # what follows is not believed
    """
    token = bench.give(bench.start(code))

    assert (await bench.failure(token)).kind == "worker_lost"
    assert bench.yielded(token) == [1]


async def test_an_item_without_its_file_fails_the_attempt(bench: Bench) -> None:
    code = """
        import gc
        from apothic.agent.channel import Channel
        from apothic.agent.frames import Items
        from apothic.context import CURRENT
        from apothic.protocol.session import Packed
        def f():
            yield 1
            channel = next(o for o in gc.get_objects() if isinstance(o, Channel))
            value = Packed(encoding="pickle", sha256="0" * 64, size=1)
            channel.send(Items(job=CURRENT.get().id, first=1, values=[value], path="/etc/passwd"))
    """
    container = bench.start(code)
    token = bench.give(container)

    failure = await bench.failure(token)

    assert failure.kind == "serialization" and "file" in failure.message
    assert bench.yielded(token) == [1] and container in bench.containers.live
