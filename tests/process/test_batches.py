"""Batched functions in real containers: how inputs become batches, and that what is wrong with one stays with it."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from containerbench import MIB, Bench

from apothic.protocol.session import Packed
from apothic.protocol.specs import BatchingSpec, ConcurrencySpec
from apothic.protocol.values import pack_arguments

KINDS = ("def", "async def")
LONG_MS = 600_000  # nothing begins for having waited


def of(size: int, wait_ms: int = LONG_MS) -> BatchingSpec:
    return BatchingSpec(size, wait_ms)


def shaped(kind: str, body: str) -> str:
    """Return the code of `f(xs)`; `PAUSE(s)` in it waits in the manner of its kind."""
    pause = "time.sleep" if kind == "def" else "await asyncio.sleep"
    lines = "".join(f"    {line}\n" for line in body.replace("PAUSE", pause).splitlines())
    return f"import apothic, asyncio, os, time\n{kind} f(xs):\n{lines}"


async def gated(bench: Bench, kind: str, tmp_path: Path, count: int, **options: Any) -> tuple[Path, str, list[str]]:
    """Start a batch that waits for its gate; return the gate, the container and the tokens."""
    gate = tmp_path / "gate"
    code = shaped(kind, f"print('in', len(xs), flush=True)\nwhile not os.path.exists({str(gate)!r}): PAUSE(0.01)\n"
                        "return [x * 10 for x in xs]")  # fmt: skip
    container = bench.start(code, batching=of(count), **options)
    tokens = [bench.give(container, n) for n in range(count)]
    await bench.printed(tokens[0], f"in {count}")
    return gate, container, tokens


# --- gathering --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_batch_begins_at_once_and_keeps_the_order(bench: Bench, kind: str) -> None:
    container = bench.start(shaped(kind, "return [[x, list(xs), os.getpid()] for x in xs]"), batching=of(3))

    tokens = [bench.give(container, n) for n in range(6)]
    told = [await bench.value(token) for token in tokens]

    assert [value[0] for value in told] == list(range(6))
    assert [value[1] for value in told] == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 3


async def test_the_oldest_waits_no_longer_than_it_may(bench: Bench) -> None:
    container = bench.start(shaped("def", "return [len(xs) for _ in xs]"), batching=of(100, 50))
    await bench.ready(container)

    tokens = [bench.give(container, n) for n in range(3)]

    assert [await bench.value(token) for token in tokens] == [3, 3, 3]


async def test_nothing_begins_while_a_batch_is_gathered(bench: Bench) -> None:
    container = bench.start(shaped("def", "return xs"), batching=of(2))
    await bench.ready(container)

    first = bench.give(container, 1)
    await bench.quiet()
    assert bench.told(first) == []

    second = bench.give(container, 2)
    assert [await bench.value(first), await bench.value(second)] == [1, 2]


async def test_what_comes_during_a_batch_goes_with_the_next(bench: Bench, tmp_path: Path) -> None:
    gate, container, tokens = await gated(bench, "def", tmp_path, 2)
    more = [bench.give(container, n) for n in (7, 8)]
    await bench.quiet()
    assert not any(bench.told(token) for token in more)

    gate.touch()

    assert [await bench.value(token) for token in (*tokens, *more)] == [0, 10, 70, 80]


async def test_an_agent_does_not_spin_while_a_container_starts(bench: Bench, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\ndef f(xs): return xs"
    container = bench.start(code, batching=of(2, 0))
    token = bench.give(container, 1)
    loop, turns = asyncio.get_running_loop(), 0

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal turns
        turns += 1
        return was(*args, **more)

    was = loop.call_later
    loop.call_later = counted  # type: ignore[method-assign]
    try:
        await bench.quiet()
    finally:
        del loop.call_later  # type: ignore[attr-defined]
    gate.touch()

    assert await bench.value(token) == 1
    assert turns < 200


@pytest.mark.parametrize("kind", KINDS)
async def test_several_batches_run_at_once_where_the_function_allows_it(bench: Bench, kind: str) -> None:
    wait = "barrier.wait(20)" if kind == "def" else "await barrier.wait()"
    made = "threading" if kind == "def" else "asyncio"
    code = f"import {made}\nbarrier = {made}.{'Barrier(2)' if kind == 'def' else 'Event()'}\n"
    if kind == "def":
        code += f"def f(xs):\n    {wait}\n    return xs\n"
    else:
        code += f"async def f(xs):\n    barrier.set() if 3 in xs else {wait}\n    return xs\n"
    container = bench.start(code, batching=of(2), concurrency=ConcurrencySpec(2))

    tokens = [bench.give(container, n) for n in range(4)]

    assert [await bench.value(token) for token in tokens] == [0, 1, 2, 3]


# --- what is wrong with one -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_only_those_fail_that_raise_alone(bench: Bench, kind: str) -> None:
    container = bench.start(shaped(kind, "return [100 // x for x in xs]"), batching=of(4))

    tokens = [bench.give(container, n) for n in (1, 2, 0, 4)]

    assert [await bench.value(tokens[n]) for n in (0, 1, 3)] == [100, 50, 25]
    failure = await bench.failure(tokens[2])
    assert (failure.kind, failure.type) == ("user", "ZeroDivisionError")


@pytest.mark.parametrize("kind", KINDS)
async def test_what_ends_the_program_hurts_nobody_else(bench: Bench, kind: str) -> None:
    code = shaped(kind, "if 0 in xs: raise SystemExit('no')\nreturn xs")
    container = bench.start(code, batching=of(3))

    tokens = [bench.give(container, n) for n in (1, 0, 2)]

    assert [await bench.value(tokens[0]), await bench.value(tokens[2])] == [1, 2]
    assert (await bench.failure(tokens[1])).type == "SystemExit"


async def test_a_batch_of_one_that_raises_simply_fails(bench: Bench) -> None:
    container = bench.start(shaped("def", "print('entered', flush=True)\nraise KeyError(xs[0])"), batching=of(1))
    token = bench.give(container, 1)

    assert (await bench.failure(token)).type == "KeyError"
    assert bench.text(token) == ["entered"]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_exception_in_an_items_place_is_its_own(bench: Bench, kind: str) -> None:
    body = "print('entered', flush=True)\nreturn [ValueError(x) if x % 2 else x for x in xs]"
    container = bench.start(shaped(kind, body), batching=of(4))

    tokens = [bench.give(container, n) for n in range(4)]

    assert [await bench.value(tokens[0]), await bench.value(tokens[2])] == [0, 2]
    for n in (1, 3):
        failure = await bench.failure(tokens[n])
        assert (failure.kind, failure.type, failure.message) == ("user", "ValueError", str(n))
    assert [bench.text(token) for token in tokens] == [["entered"]] * 4


async def test_an_input_that_cannot_be_unpacked_fails_alone(bench: Bench) -> None:
    container = bench.start(shaped("def", "return [len(xs) for _ in xs]"), batching=of(3))
    broken = Packed(encoding="json", data=b"[", size=1)

    tokens = [bench.give(container, 1), bench.give(container, packed=broken), bench.give(container, 3)]

    assert [await bench.value(tokens[0]), await bench.value(tokens[2])] == [2, 2]
    assert (await bench.failure(tokens[1])).kind == "serialization"


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2), {}), ((), {"x": 1})])
async def test_an_input_is_one_item_by_position(bench: Bench, args: Any, kwargs: Any) -> None:
    container = bench.start(shaped("def", "return xs"), batching=of(2))

    wrong, right = bench.give(container, *args, **kwargs), bench.give(container, 5)

    assert await bench.value(right) == 5
    failure = await bench.failure(wrong)
    assert (failure.kind, failure.type) == ("user", "TypeError")
    assert "one item" in failure.message


async def test_a_result_that_cannot_be_packed_fails_alone(bench: Bench) -> None:
    container = bench.start(shaped("def", "return [(i for i in xs) if x == 1 else x for x in xs]"), batching=of(3))

    tokens = [bench.give(container, n) for n in range(3)]

    assert [await bench.value(tokens[0]), await bench.value(tokens[2])] == [0, 2]
    assert (await bench.failure(tokens[1])).kind == "serialization"


async def test_each_result_is_packed_as_its_caller_can_read_it(bench: Bench) -> None:
    container = bench.start(shaped("def", "return [{x} for x in xs]"), batching=of(2))

    plain, rich = bench.give(container, 1, accept=("json",)), bench.give(container, 2)

    assert await bench.value(rich) == {2}
    assert (await bench.failure(plain)).kind == "serialization"


async def test_large_inputs_and_results_share_a_batch(bench: Bench) -> None:
    container = bench.start(shaped("def", "return [x * 2 for x in xs]"), batching=of(3))
    values = [bytes([n]) * (200_000 * n + 1) for n in range(3)]

    tokens = []
    for value in values:
        envelope = pack_arguments((value,), {}, payload_limit=64 * MIB)
        if envelope.file is not None:
            bench.folder.keep(envelope.file.read_bytes())
            envelope.discard()
        tokens.append(bench.give(container, packed=envelope.packed))

    assert [await bench.value(token) for token in tokens] == [value * 2 for value in values]


@pytest.mark.parametrize(
    ("body", "type", "said"),
    [
        ("return xs[:1]", "ValueError", ("3", "1")),
        ("return [*xs, 0]", "ValueError", ("3", "4")),
        ("return dict.fromkeys(xs)", "TypeError", ("list", "dict")),
        ("return None", "TypeError", ("list", "NoneType")),
    ],
)
async def test_a_wrong_answer_is_an_error_of_every_item(bench: Bench, body: str, type: str, said: Any) -> None:
    container = bench.start(shaped("def", f"print('entered', flush=True)\n{body}"), batching=of(3))

    tokens = [bench.give(container, n) for n in range(3)]

    for token in tokens:
        failure = await bench.failure(token)
        assert (failure.kind, failure.type) == ("user", type)
        assert all(word in failure.message for word in said), failure.message
        assert bench.text(token) == ["entered"]  # nobody's fault alone: it is not tried again


# --- stopping ---------------------------------------------------------------------------------------------------


async def test_what_waits_for_its_batch_is_cancelled_at_once(bench: Bench) -> None:
    container = bench.start(shaped("def", "return [len(xs) for _ in xs]"), batching=of(2))
    await bench.ready(container)
    token = bench.give(container, 1)
    bench.cancel(token)

    assert (await bench.failure(token)).kind == "cancelled"
    assert not any(report.began for report in bench.told(token))
    tokens = [bench.give(container, n) for n in range(2)]
    assert [await bench.value(each) for each in tokens] == [2, 2]


@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
async def test_one_that_is_cancelled_fails_alone(bench: Bench, kind: str, threads: int, tmp_path: Path) -> None:
    gate, container, tokens = await gated(bench, kind, tmp_path, 3, concurrent_requests=threads)
    bench.cancel(tokens[1])
    await bench.quiet()  # the code goes on
    gate.touch()

    assert [await bench.value(tokens[0]), await bench.value(tokens[2])] == [0, 20]
    assert (await bench.failure(tokens[1])).kind == "cancelled"
    assert len(bench.news[container]) == 2  # starting, ready


@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_is_over_its_time_fails_alone(bench: Bench, kind: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    container = bench.start(
        shaped(kind, f"while not os.path.exists({str(gate)!r}): PAUSE(0.01)\nreturn xs"), batching=of(2)
    )
    hasty, other = bench.give(container, 1, timeout_s=0.1), bench.give(container, 2)
    await bench.soon(lambda: any(held.stop == "timeout" for held in bench.containers.live[container].attempts))
    gate.touch()

    assert await bench.value(other) == 2
    assert (await bench.failure(hasty)).kind == "timeout"


@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
async def test_code_that_nobody_wants_any_more_is_interrupted(bench: Bench, kind: str, tmp_path: Path) -> None:
    _, container, tokens = await gated(bench, kind, tmp_path, 3)

    for token in tokens:
        bench.cancel(token)

    for token in tokens:
        assert (await bench.failure(token)).kind == "cancelled"
    assert len(bench.news[container]) == 2
    tokens = [bench.give(container, n) for n in range(3)]
    await bench.printed(tokens[0], "in 3")  # the same process serves on


@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_batch_whose_items_are_all_over_their_time_is_interrupted(bench: Bench, kind: str) -> None:
    container = bench.start(shaped(kind, "PAUSE(1000)"), batching=of(2))

    tokens = [bench.give(container, n, timeout_s=0.2) for n in range(2)]

    for token in tokens:
        failure = await bench.failure(token)
        assert (failure.kind, "0.2 s" in failure.message) == ("timeout", True)
    assert len(bench.news[container]) == 2


async def test_innocent_items_go_back_when_the_process_has_to_be_ended(bench: Bench, tmp_path: Path) -> None:
    _, container, tokens = await gated(bench, "def", tmp_path, 3)

    bench.cancel(tokens[1])

    assert (await bench.failure(tokens[1])).kind == "cancelled"
    for n in (0, 2):
        outcome = await bench.outcome(tokens[n])
        assert outcome.requeue == "its container had to be ended to stop another job"
    await bench.gone(container)


async def test_a_dead_process_is_the_loss_of_every_item(bench: Bench, tmp_path: Path) -> None:
    _, container, tokens = await gated(bench, "def", tmp_path, 3)

    os.kill(bench.containers.live[container].pid, signal.SIGKILL)

    for token in tokens:
        failure = await bench.failure(token)
        assert (failure.kind, failure.exit, failure.retriable) == ("worker_lost", "signal 9", True)


async def test_draining_gives_back_what_is_gathered_and_finishes_what_runs(bench: Bench, tmp_path: Path) -> None:
    gate, container, tokens = await gated(bench, "def", tmp_path, 2)
    waiting = bench.give(container, 5)
    leaving = asyncio.create_task(bench.containers.drain("the agent leaves", 20.0))
    assert (await bench.outcome(waiting)).requeue == "the agent leaves"

    gate.touch()

    assert [await bench.value(token) for token in tokens] == [0, 10]
    await leaving


async def test_one_that_is_stopped_is_not_run_again_alone(bench: Bench, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    body = (
        f"while not os.path.exists({str(gate)!r}): PAUSE(0.01)\nprint(xs)\nif len(xs) > 1: raise ValueError\nreturn xs"
    )
    container = bench.start(shaped("def", body), batching=of(3))
    tokens = [bench.give(container, n) for n in range(3)]
    await bench.until(lambda: all(bench.told(token) for token in tokens))
    bench.cancel(tokens[1])
    gate.touch()

    assert [await bench.value(tokens[0]), await bench.value(tokens[2])] == [0, 2]
    assert (await bench.failure(tokens[1])).kind == "cancelled"
    assert [bench.text(token) for token in tokens] == [["[0, 1, 2]", "[0]"], ["[0, 1, 2]"], ["[0, 1, 2]", "[2]"]]


def lingering(kind: str) -> str:
    """Return code whose batches raise, and that then runs one of the items for ever."""
    body = (
        "if len(xs) > 1: raise ValueError\nprint('alone', xs, flush=True)\nif 1 in xs: PAUSE(1000)\nreturn [xs[0] * 10]"
    )
    return shaped(kind, body)


@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("why", ["cancelled", "timeout"])
async def test_one_that_is_run_again_alone_is_interrupted_alone(bench: Bench, kind: str, why: str) -> None:
    container = bench.start(lingering(kind), batching=of(3))
    tokens = [bench.give(container, n, timeout_s=1.0 if (n, why) == (1, "timeout") else 60.0) for n in range(3)]
    await bench.printed(tokens[1], "alone [1]")
    if why == "cancelled":
        bench.cancel(tokens[1])

    assert (await bench.failure(tokens[1])).kind == why
    # The first had its reply already, and the last was run after it.
    assert [await bench.value(tokens[0]), await bench.value(tokens[2])] == [0, 20]
    assert len(bench.news[container]) == 2  # starting, ready


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
async def test_what_has_its_reply_waits_for_no_other(bench: Bench, kind: str, threads: int) -> None:
    container = bench.start(lingering(kind), batching=of(3), concurrent_requests=threads)
    broken = Packed(encoding="json", data=b"[", size=1)

    early = bench.give(container, 0, timeout_s=30.0)
    spoilt, late = bench.give(container, packed=broken), bench.give(container, 1)
    await bench.printed(late, "alone [1]")

    assert await bench.value(early) == 0
    assert (await bench.failure(spoilt)).kind == "serialization"
    assert bench.told(late)[-1].outcome is None  # and it runs on


@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_one_was_asked_is_not_asked_of_the_next(bench: Bench, kind: str) -> None:
    tidy = "asyncio.timeout(1000)" if kind == "async def" else "contextlib.nullcontext()"
    body = "\n".join((
        "if len(xs) > 1: raise ValueError",
        "print('alone', xs, flush=True)",
        "try:",
        "    PAUSE(1000 if xs == [0] else 0.01)",
        "except BaseException as error:",
        "    return [type(error).__name__]",  # it was asked, and would not
        f"{kind.removesuffix('def')}with {tidy}: PAUSE(0.01)",
        "return [asyncio.current_task().cancelling()]" if kind == "async def" else "return [0]",
    ))  # fmt: skip
    container = bench.start("import contextlib\n" + shaped(kind, body), batching=of(2))
    tokens = [bench.give(container, n) for n in range(2)]
    await bench.printed(tokens[0], "alone [0]")
    bench.cancel(tokens[0])

    assert await bench.value(tokens[1]) == 0
    assert (await bench.failure(tokens[0])).kind == "cancelled"


# --- inside -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_code_in_a_batch_knows_its_jobs_in_order(bench: Bench, kind: str) -> None:
    body = "batch = apothic.current_batch()\nreturn [[job.id, job.attempt, job.function] for job in batch]"
    container = bench.start(shaped(kind, body), batching=of(3))

    tokens = [bench.give(container, n, job=f"job_{n}", attempt=n + 1) for n in range(3)]

    assert [await bench.value(token) for token in tokens] == [[f"job_{n}", n + 1, "f"] for n in range(3)]


async def test_there_is_no_current_job_in_a_batch_not_even_in_one_of_one(bench: Bench) -> None:
    container = bench.start(shaped("def", "apothic.current_job()"), batching=of(1))

    failure = await bench.failure(bench.give(container, 1))

    assert failure.type == "RuntimeError"
    assert "current_batch()" in failure.message


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_batch_prints_is_in_the_log_of_each(bench: Bench, kind: str) -> None:
    container = bench.start(shaped(kind, "print('one')\nprint('two', end='')\nreturn xs"), batching=of(3))

    tokens = [bench.give(container, n) for n in range(3)]
    for token in tokens:
        await bench.outcome(token)

    assert [bench.text(token) for token in tokens] == [["one", "two"]] * 3
