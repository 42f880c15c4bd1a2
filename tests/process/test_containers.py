"""What a container runs, and how its answers and failures come back. Real child processes, no control plane."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from containerbench import Bench

from apothic.protocol import failures
from apothic.protocol.session import Packed

TESTS = Path(__file__).resolve().parent.parent


async def test_a_function_is_run_and_its_value_comes_back(bench: Bench) -> None:
    assert await bench.run("def f(a, b=2): return [a, b]", 1) == [1, 2]


async def test_began_and_outcome_of_a_fast_job_share_one_report(bench: Bench) -> None:
    container = bench.start("def f(): return 1")
    await bench.ready(container)

    shared = 0
    for _ in range(20):
        token = bench.give(container)
        await bench.outcome(token)
        assert bench.told(token)[0].began
        shared += len(bench.told(token)) == 1

    assert shared >= 10


async def test_a_container_runs_many_inputs_in_one_process(bench: Bench) -> None:
    container = bench.start("import os\ndef f(n): return [n, os.getpid()]")

    tokens = [bench.give(container, n) for n in range(20)]
    values = [await bench.value(token) for token in tokens]

    assert [value[0] for value in values] == list(range(20))
    assert len({value[1] for value in values}) == 1


async def test_an_async_function_is_awaited(bench: Bench) -> None:
    code = """
        import asyncio
        async def f(n):
            await asyncio.sleep(0)
            return n + 1
    """
    assert await bench.run(code, 1) == 2


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_inputs_run_at_once_where_the_function_allows_it(bench: Bench, kind: str) -> None:
    wait = "barrier.wait(10)" if kind == "def" else "await barrier.wait()"
    made = "threading" if kind == "def" else "asyncio"
    container = bench.start(
        f"""
        import asyncio, threading
        import apothic.context
        barrier = {made}.Barrier(3)
        {kind} f(n):
            {wait}
            print("I am", n)
            return apothic.context.current_job().id
        """,
        concurrent_requests=3,
    )

    tokens = [bench.give(container, n, job=f"job_{n}") for n in range(3)]

    for n, token in enumerate(tokens):
        assert await bench.value(token) == f"job_{n}"
        assert bench.text(token) == [f"I am {n}"]


async def test_the_current_job_is_known_inside(bench: Bench) -> None:
    code = """
        from apothic.context import current_job
        def f():
            job = current_job()
            return [job.id, job.attempt, job.app, job.function, job.deployment_id, job.base_url, job.token]
    """
    container = bench.start(code)

    value = await bench.value(bench.give(container, job="job_x", attempt=3))

    assert value == ["job_x", 3, "shop", "f", "dep_1", "http://127.0.0.1:1", "secret-of-the-job"]


async def test_the_environment_is_clean(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APOTHIC_API_KEY", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    code = """
        import os, resource, stat
        def f():
            status = dict(line.split(":", 1) for line in open("/proc/self/status"))
            return {
                "env": dict(os.environ),
                "stdin": os.readlink("/proc/self/fd/0"),
                "fds": [os.readlink(f"/proc/self/fd/{n}") for n in map(int, os.listdir("/proc/self/fd")) if n > 2
                        and os.path.exists(f"/proc/self/fd/{n}")],
                "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
                "umask": status["Umask"].strip(),
                "new_privs": status["NoNewPrivs"].strip(),
                "leads": os.getsid(0) == os.getpid() == os.getpgid(0),
                "private": stat.S_IMODE(os.stat(".").st_mode),
                "cwd": os.getcwd(),
            }
    """
    with open(TESTS / "nasty.py"):  # an inheritable one would show up below
        seen = await bench.run(code)

    assert "hunter2" not in str(seen["env"])
    assert {name for name in seen["env"] if name.startswith("APOTHIC_")} == {"APOTHIC_CONTAINER", "APOTHIC_AUTOSTART"}
    assert seen["stdin"] == "/dev/null"
    assert not any("nasty" in path or path.startswith("pipe:") for path in seen["fds"])
    assert sum(path.startswith("socket:") for path in seen["fds"]) == 1
    assert (seen["core"], seen["umask"], seen["new_privs"], seen["private"]) == (0, "0077", "1", 0o700)
    assert seen["leads"]
    assert seen["cwd"] != os.getcwd()


async def test_a_program_that_a_job_starts_does_not_get_the_socket(bench: Bench) -> None:
    code = """
        import subprocess
        def f():
            return subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True).stdout
    """
    assert "socket:" not in await bench.run(code)


async def test_modules_beside_the_functions_are_importable(bench: Bench) -> None:
    container = bench.start(
        "from shop.prices import price\ndef f(): return price",
        files=[("shop/__init__.py", b""), ("shop/prices.py", b"price = 7")],
    )

    assert await bench.value(bench.give(container)) == 7


async def test_a_function_that_travels_by_value_is_run(bench: Bench) -> None:
    import cloudpickle

    offset = 40
    sha256 = bench.folder.keep(cloudpickle.dumps(lambda n: n + offset))
    container = bench.start("", spec={"payload": sha256})

    assert await bench.value(bench.give(container, 2)) == 42


async def test_a_handle_offers_its_entry(bench: Bench) -> None:
    code = """
        class Handle:
            def __init__(self, entry): self.__apothic_entry__ = entry
            def __call__(self): raise AssertionError("not the handle")
        @Handle
        def f(): return "entered"
    """
    assert await bench.run(code) == "entered"


async def test_large_values_travel_as_files_both_ways(bench: Bench) -> None:
    data = os.urandom(1_000_000)
    packed = Packed(encoding="pickle", sha256=bench.folder.keep(_pickled(((data,), {}))), size=len(data))
    container = bench.start("def f(data): return data[::-1]")

    token = bench.give(container, packed=packed)

    assert await bench.value(token) == data[::-1]
    assert list((bench.containers.site.home.parent / "files").iterdir()) == []


def _pickled(value: Any) -> bytes:
    import pickle

    return pickle.dumps(value)


# --- failures ---------------------------------------------------------------------------------------------------


async def test_an_exception_fails_the_attempt_with_its_traceback(bench: Bench) -> None:
    code = """
        def f():
            return inner()
        def inner():
            raise ValueError("no such thing")
    """
    container = bench.start(code)

    failure = await bench.failure(bench.give(container))

    assert (failure.kind, failure.type, failure.message) == ("user", "ValueError", "no such thing")
    assert "app.py" in failure.traceback and "in inner" in failure.traceback
    assert "perform.py" not in failure.traceback
    assert failure.retriable and failure.attempt == 1


async def test_sixty_nasty_exceptions_come_back_and_the_container_lives(bench: Bench) -> None:
    code = "import nasty, os\ndef f(n):\n    if n < 0: return [os.getpid(), len(nasty.NASTY)]\n    nasty.NASTY[n]()"
    container = bench.start(code, files=[("nasty.py", (TESTS / "nasty.py").read_bytes())], memory_mb=4096)
    pid, count = await bench.value(bench.give(container, -1))
    assert count == 60

    for n in range(count):
        failure = await bench.failure(bench.give(container, n))
        assert failure.kind == "user", failure
        assert failure.type and failure.traceback
        assert isinstance(failures.rebuild(failure, "job_1"), Exception)

    assert (await bench.value(bench.give(container, -1)))[0] == pid


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    "deed", ["sys.exit(0)", "raise KeyboardInterrupt", "raise GeneratorExit", "raise asyncio.CancelledError", "exit()"]
)
async def test_what_ends_a_program_only_fails_the_attempt(bench: Bench, kind: str, deed: str) -> None:
    container = bench.start(f"import sys, asyncio, os\n{kind} f(do):\n    if do: {deed}\n    return os.getpid()")
    pid = await bench.value(bench.give(container, False))

    failure = await bench.failure(bench.give(container, True))

    assert failure.kind == "user"
    assert await bench.value(bench.give(container, False)) == pid


async def test_a_background_task_that_exits_does_not_end_the_container(bench: Bench) -> None:
    code = """
        import asyncio, sys
        async def leave(): sys.exit(3)
        async def f():
            task = asyncio.create_task(leave())
            await asyncio.sleep(0.01)
            return "still here"
    """
    assert await bench.run(code) == "still here"


async def test_a_value_that_cannot_be_encoded_says_what_it_is(bench: Bench) -> None:
    container = bench.start("import threading\ndef f(): return threading.Lock()")

    failure = await bench.failure(bench.give(container))

    assert failure.kind == "serialization" and "lock" in failure.message and not failure.retriable


async def test_a_value_that_the_caller_cannot_read_is_a_serialization_failure(bench: Bench) -> None:
    container = bench.start("def f(): return {1, 2}")

    failure = await bench.failure(bench.give(container, accept=["json"]))

    assert failure.kind == "serialization" and "set" in failure.message


@pytest.mark.parametrize("bench", [{"payload_limit": 100_000}], indirect=True)
async def test_a_value_over_the_limit_names_size_limit_and_what(bench: Bench) -> None:
    container = bench.start("def f(): return bytes(200_000)")

    failure = await bench.failure(bench.give(container))

    assert failure.kind == "payload_too_large" and not failure.retriable
    assert "100,000" in failure.message and "result of f" in failure.message


async def test_arguments_that_cannot_be_read_are_a_serialization_failure(bench: Bench) -> None:
    container = bench.start("def f(*args): return 1")

    failure = await bench.failure(bench.give(container, packed=Packed(encoding="pickle", data=b"\x80nonsense")))

    assert failure.kind == "serialization"
    assert await bench.value(bench.give(container)) == 1


async def test_a_forked_child_that_returns_is_not_the_job(bench: Bench) -> None:
    code = """
        import os
        def f():
            pid = os.fork()
            if pid == 0:
                print("from the child")
                return "child"
            os.waitpid(pid, 0)
            return "parent"
    """
    container = bench.start(code)

    token = bench.give(container)

    assert await bench.value(token) == "parent"
    assert bench.text(token) == ["from the child"]
    assert await bench.value(bench.give(container)) == "parent"


async def test_multiprocessing_works_inside(bench: Bench) -> None:
    code = """
        import multiprocessing
        def square(n): return n * n
        def f():
            answers = []
            for method in ("fork", "spawn"):
                with multiprocessing.get_context(method).Pool(2) as pool:
                    answers.append(pool.map(square, range(4)))
            return answers
    """
    assert await bench.run(code) == [[0, 1, 4, 9]] * 2


# --- starting ---------------------------------------------------------------------------------------------------


async def test_a_module_that_cannot_be_imported_fails_the_start(bench: Bench) -> None:
    container = bench.start('print("starting up")\nimport no_such_module\ndef f(): pass')
    token = bench.give(container)

    news = await bench.gone(container)

    assert news.failure is not None and news.failure.kind == "startup" and not news.failure.retriable
    assert "no_such_module" in news.failure.message and "app.py" in news.failure.traceback
    assert "starting up" in news.failure.log_tail
    assert (await bench.failure(token)).kind == "startup"


async def test_a_module_that_exits_on_import_fails_the_start(bench: Bench) -> None:
    container = bench.start('import os\nos.write(1, b"half a line")\nos._exit(3)\ndef f(): pass')

    news = await bench.gone(container)

    assert news.failure is not None and news.failure.kind == "startup" and news.failure.retriable
    assert news.failure.exit == "status 3" and news.failure.log_tail == "half a line"


@pytest.mark.parametrize("bench", [{"startup_timeout_s": 1.0}], indirect=True)
async def test_a_start_that_takes_too_long_fails(bench: Bench) -> None:
    container = bench.start('import signal\nprint("waiting")\nsignal.pause()\ndef f(): pass')

    news = await bench.gone(container)

    assert news.failure is not None and news.failure.kind == "startup"
    assert "1 s" in news.failure.message and news.failure.log_tail == "waiting"


async def test_a_missing_blob_fails_the_start(bench: Bench) -> None:
    container = bench.start("", spec={"payload": "0" * 64})

    news = await bench.gone(container)

    assert news.failure is not None and news.failure.kind == "startup" and news.failure.retriable


# --- stopping ---------------------------------------------------------------------------------------------------


async def test_an_idle_container_stops_and_runs_its_exit_functions(bench: Bench, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import atexit, pathlib\natexit.register(pathlib.Path({str(mark)!r}).touch)\ndef f(): pass"
    container = bench.start(code)
    await bench.value(bench.give(container))

    bench.containers.stop(container, "idle")

    news = await bench.gone(container)
    assert news.failure is None
    assert mark.exists()


@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
async def test_a_container_that_stops_finishes_its_work_and_gives_back_the_rest(bench: Bench) -> None:
    container = bench.start("import time\ndef f(): print('here'); time.sleep(0.2); return 1")
    first, second = bench.give(container), bench.give(container)
    await bench.printed(first, "here")

    bench.containers.stop(container, "scaled in")

    assert (await bench.outcome(second)).requeue == "scaled in"
    assert await bench.value(first) == 1
    await bench.gone(container)


async def test_what_does_not_finish_within_the_grace_is_given_back(bench: Bench) -> None:
    container = bench.start("import signal\ndef f(): print('here'); signal.pause()")
    token = bench.give(container)
    await bench.printed(token, "here")

    await bench.containers.drain("leaving", 0.2)

    assert (await bench.outcome(token)).requeue == "leaving"
    assert (await bench.gone(container)).failure is None


async def test_work_for_a_container_that_is_gone_is_given_back(bench: Bench) -> None:
    assert (await bench.outcome(bench.give("ctr_unknown"))).requeue is not None


async def test_an_input_that_cannot_be_fetched_fails_the_attempt(bench: Bench) -> None:
    container = bench.start("def f(): return 1")

    failure = await bench.failure(bench.give(container, packed=Packed(encoding="pickle", sha256="0" * 64, size=9)))

    assert failure.kind == "serialization" and "fetched" in failure.message
    assert await bench.value(bench.give(container)) == 1


async def test_work_that_comes_twice_is_run_once(bench: Bench) -> None:
    container = bench.start("def f(): print('here')")
    token = bench.give(container)
    held = bench.containers._held[token]

    bench.containers.assign(held.given)

    await bench.outcome(token)
    await bench.outcome(bench.give(container))
    assert bench.text(token) == ["here"]


async def test_a_lost_lease_is_stopped_in_silence_and_its_seat_is_free_again(bench: Bench) -> None:
    container = bench.start("import signal\ndef f(wait):\n    if wait:\n        print('here')\n        signal.pause()")
    token = bench.give(container, True)
    await bench.printed(token, "here")

    bench.containers.drop([token])

    await bench.outcome(bench.give(container, False))
    assert not any(report.outcome for report in bench.told(token))
    assert bench.containers.leases() == []


async def test_a_container_that_no_longer_counts_is_ended_at_once(bench: Bench) -> None:
    container = bench.start("import signal\ndef f(): print('here'); signal.pause()")
    token = bench.give(container)
    await bench.printed(token, "here")

    bench.containers.end([container])

    await bench.gone(container)
    assert not any(report.outcome for report in bench.told(token))


async def test_nothing_is_started_once_the_agent_is_leaving(bench: Bench) -> None:
    await bench.containers.drain("leaving", 0.1)

    container = bench.start("def f(): pass")

    assert (await bench.gone(container)).failure is None
    assert (await bench.outcome(bench.give(container))).requeue is not None


async def test_a_path_that_leaves_the_files_fails_the_start_for_good(bench: Bench) -> None:
    news = await bench.gone(bench.start("def f(): pass", files=[("../up.py", b"")]))

    assert news.failure is not None and news.failure.kind == "startup" and not news.failure.retriable
