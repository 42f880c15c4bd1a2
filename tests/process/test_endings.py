"""How attempts are stopped, and how containers die. Real child processes, no control plane."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from containerbench import Bench
from rig import asleep

from apothic.agent import isolate, tree

IGNORES = "import signal\nfor n in (signal.SIGTERM, signal.SIGUSR1): signal.signal(n, signal.SIG_IGN)\n"


@pytest.mark.parametrize(
    "deed",
    ["time.sleep(60)", "while True: pass", "threading.Event().wait()", "subprocess.run(['sleep', '60'])",
     "for n in iter(int, 1): print('line')"],
)  # fmt: skip
@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
async def test_a_plain_function_is_interrupted_and_its_container_lives(bench: Bench, deed: str) -> None:
    code = f"""
        import os, subprocess, threading, time
        def f(do):
            if not do: return os.getpid()
            try:
                print("here")
                {deed}
            finally:
                print("cleaned up")
    """
    container = bench.start(code)
    pid = await bench.value(bench.give(container, False))
    token = bench.give(container, True)
    await bench.printed(token, "here")
    if "subprocess" in deed:  # interrupted while it starts a child, Python loses that, and the container has to end
        await bench.soon(lambda: [child.name() for child in psutil.Process(pid).children()] == ["sleep"])
        asleep(pid)

    bench.cancel(token)

    failure = await bench.failure(token)
    assert failure.kind == "cancelled" and not failure.retriable
    assert bench.text(token)[-1].endswith("cleaned up")  # it may have struck between a text and its newline
    assert await bench.value(bench.give(container, False)) == pid


async def test_an_async_function_is_cancelled(bench: Bench) -> None:
    code = """
        import asyncio
        async def f():
            print("here")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print("cancelled")
                raise
    """
    container = bench.start(code)
    token = bench.give(container)
    await bench.printed(token, "here")

    bench.cancel(token)

    assert (await bench.failure(token)).kind == "cancelled"
    assert bench.text(token) == ["here", "cancelled"]
    assert container in bench.containers.live


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
async def test_a_function_that_ends_anyway_has_its_value_told(bench: Bench, kind: str) -> None:
    wait = "time.sleep(60)" if kind == "def" else "await asyncio.sleep(60)"
    code = f"""
        import asyncio, time
        {kind} f():
            try:
                print("here")
                {wait}
            except BaseException:
                return "done"
    """
    token = bench.give(bench.start(code))
    await bench.printed(token, "here")

    bench.cancel(token)

    assert await bench.value(token) == "done"


async def test_a_job_that_ignores_everything_is_killed(bench: Bench) -> None:
    code = IGNORES + "import time\ndef f():\n    print('here')\n    while True: time.sleep(60)"
    container = bench.start(code)
    token = bench.give(container)
    await bench.printed(token, "here")

    bench.cancel(token)

    failure = await bench.failure(token)
    assert (failure.kind, failure.exit) == ("cancelled", "signal 9")
    await bench.gone(container)


async def test_a_job_that_catches_the_cancellation_again_and_again_is_ended(bench: Bench) -> None:
    code = """
        import time
        def f():
            print("here")
            while True:
                try: time.sleep(60)
                except BaseException: print("no")
    """
    token = bench.give(bench.start(code))
    await bench.printed(token, "here")

    bench.cancel(token)

    failure = await bench.failure(token)
    assert (failure.kind, failure.exit) == ("cancelled", "signal 15")
    assert bench.text(token) == ["here", "no"]


async def test_a_cancelled_job_is_told_only_when_its_descendants_are_dead(bench: Bench) -> None:
    code = IGNORES + (
        "import os, subprocess, time\n"
        "def f():\n"
        "    if os.fork() == 0:\n"  # a daemon: twice forked, in a session of its own, deaf, with a clean environment
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            os.execve('/bin/sleep', ['sleep', '300'], {})\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "    subprocess.Popen(['sleep', '300'])\n"
        "    print('here')\n"
        "    while True: time.sleep(60)\n"
    )
    container = bench.start(code)
    token = bench.give(container)
    await bench.printed(token, "here")
    family = psutil.Process((await bench.ready(container)).pid).children(recursive=True)
    assert [child.name() for child in family].count("sleep") == 2

    bench.cancel(token)

    await bench.failure(token)
    assert [child for child in family if child.is_running() and child.status() != "zombie"] == []


async def test_a_job_that_has_not_begun_is_cancelled_at_once(bench: Bench) -> None:
    container = bench.start("import signal\ndef f(): print('here'); signal.pause()")
    first, second = bench.give(container), bench.give(container)
    await bench.printed(first, "here")

    bench.cancel(second)

    assert (await bench.failure(second)).kind == "cancelled"
    assert not bench.told(second)[-1].began
    assert not any(report.outcome for report in bench.told(first))


async def test_a_late_cancellation_does_not_strike_the_next_job(bench: Bench) -> None:
    container = bench.start("def f(n):\n    for _ in range(n): pass\n    return 1")
    await bench.value(bench.give(container, 0))

    for n in range(200):
        token = bench.give(container, n)
        bench.cancel(token)
        outcome = await bench.outcome(token)
        assert outcome.value is not None or outcome.failure.kind == "cancelled"
        assert await bench.value(bench.give(container, n, job=bench.told(token)[-1].job, attempt=2)) == 1


async def test_stopping_one_of_several_inputs_gives_the_others_back(bench: Bench) -> None:
    code = IGNORES + "import time\ndef f():\n    print('here')\n    while True: time.sleep(60)"
    container = bench.start(code, concurrent_requests=2)
    first, second = bench.give(container), bench.give(container)
    await bench.printed(first, "here")
    await bench.printed(second, "here")

    bench.cancel(first)

    assert (await bench.failure(first)).kind == "cancelled"
    assert "another job" in str((await bench.outcome(second)).requeue)


async def test_a_job_over_its_time_is_stopped(bench: Bench) -> None:
    container = bench.start("import time\ndef f(): time.sleep(60)")

    failure = await bench.failure(bench.give(container, timeout_s=0.2))

    assert failure.kind == "timeout" and failure.retriable
    assert "0.2 s" in failure.message and "app.py" in failure.traceback
    assert container in bench.containers.live


async def test_a_job_over_its_time_is_timed_out_whatever_it_returns(bench: Bench) -> None:
    code = "import time\ndef f():\n    try: time.sleep(60)\n    except BaseException: return 1"

    assert (await bench.failure(bench.give(bench.start(code), timeout_s=0.2))).kind == "timeout"


# --- containers that die ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deed", "exit"),
    [("os._exit(0)", "status 0"), ("os._exit(7)", "status 7"), ("os.kill(os.getpid(), 9)", "signal 9"),
     ("ctypes.string_at(0)", "signal 11"), ("os.abort()", "signal 6")],
)  # fmt: skip
async def test_a_container_that_dies_fails_its_job_with_the_last_lines(bench: Bench, deed: str, exit: str) -> None:
    container = bench.start(f"import ctypes, os\ndef f():\n    print('last words')\n    {deed}")
    first, second = bench.give(container), bench.give(container)

    failure = await bench.failure(first)

    assert (failure.kind, failure.exit, failure.retriable) == ("worker_lost", exit, True)
    assert exit in failure.message
    assert failure.log_tail == "last words"
    assert (await bench.gone(container)).failure is None
    assert (await bench.outcome(second)).requeue is not None


async def test_a_container_killed_from_outside_loses_its_job(bench: Bench) -> None:
    container = bench.start("import signal\ndef f(): print('here'); signal.pause()")
    token = bench.give(container)
    await bench.printed(token, "here")

    os.kill((await bench.ready(container)).pid, signal.SIGKILL)

    assert (await bench.failure(token)).kind == "worker_lost"


async def test_an_idle_container_that_is_killed_is_told_as_gone(bench: Bench) -> None:
    container = bench.start("def f(): pass")

    os.kill((await bench.ready(container)).pid, signal.SIGKILL)

    assert (await bench.gone(container)).failure is None


async def test_a_job_over_its_memory_is_ended(bench: Bench) -> None:
    code = """
        def f():
            print("here")
            held = []
            while True: held.append(b"x" * 1_000_000)
    """
    failure = await bench.failure(bench.give(bench.start(code, memory_mb=150)))

    assert (failure.kind, failure.exit, failure.retriable) == ("oom", "signal 9", True)
    assert "150 MiB" in failure.message and failure.log_tail == "here"


async def test_the_memory_of_child_processes_counts(bench: Bench) -> None:
    code = """
        import subprocess, sys, time
        def f():
            child = subprocess.Popen([sys.executable, "-c", "x = b'x' * 300_000_000\\ninput()"], stdin=subprocess.PIPE)
            child.wait()
            time.sleep(60)  # a job that ends before anybody has looked is not blamed
    """
    assert (await bench.failure(bench.give(bench.start(code, memory_mb=150)))).kind == "oom"


async def test_a_container_killed_near_its_limit_was_killed_for_its_memory(bench: Bench) -> None:
    code = """
        import os
        def f():
            page = os.sysconf("SC_PAGE_SIZE")
            held = []
            while int(open("/proc/self/statm").read().split()[1]) * page < 145 << 20: held.append(b"x" * 500_000)
            os.kill(os.getpid(), 9)  # as the kernel would
    """
    failure = await bench.failure(bench.give(bench.start(code, memory_mb=150)))

    assert (failure.kind, failure.exit) == ("oom", "signal 9")


async def test_a_memory_error_is_a_plain_failure(bench: Bench) -> None:
    container = bench.start("def f(): return bytes(1 << 60)")

    failure = await bench.failure(bench.give(container))

    assert (failure.kind, failure.type) == ("user", "MemoryError")
    assert container in bench.containers.live


async def test_what_a_job_left_running_dies_with_the_container(bench: Bench) -> None:
    code = """
        import subprocess
        def f():
            return subprocess.Popen(["sleep", "300"], start_new_session=True).pid
    """
    container = bench.start(code)
    pid = await bench.value(bench.give(container))
    assert psutil.pid_exists(pid)

    bench.containers.stop(container, "idle")
    await bench.gone(container)

    assert not psutil.pid_exists(pid)


async def test_a_container_that_breaks_its_socket_is_gone(bench: Bench) -> None:
    container = bench.start("import os\ndef f(): os.closerange(3, 256)")

    assert (await bench.failure(bench.give(container))).kind == "worker_lost"
    assert (await bench.gone(container)).failure is None


async def test_containers_die_with_their_agent_and_the_next_one_ends_what_they_left(tmp_path: Path) -> None:
    program = """
        import asyncio, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from containerbench import Bench

        async def main():
            bench = Bench(Path(sys.argv[2]))
            container = bench.start("import subprocess\\ndef f(): return subprocess.Popen(['sleep', '300']).pid")
            left = await bench.value(bench.give(container))
            print((await bench.ready(container)).pid, left, flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
    """
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(program), str(Path(__file__).parent), str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert agent.stdout is not None
    pid, left = map(int, (await agent.stdout.readline()).split())
    container, leftover = os.pidfd_open(pid), os.pidfd_open(left)

    agent.kill()
    await agent.wait()
    await _readable(container)
    ended = tree.end_marked(f"{tmp_path}/", isolate.MARK)
    await _readable(leftover)

    assert ended == [left]


async def _readable(pidfd: int) -> None:
    """Wait until the process of `pidfd` has ended."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, over.set)
    async with asyncio.timeout(20):
        await over.wait()
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)
