"""Calling deployed functions, through a real server, from everywhere."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import sums
from rig import Server

from apothic import App, ControlPlaneClient, Function, Job, RemoteFunction
from apothic.errors import (
    AuthError,
    InvalidRequestError,
    JobCancelledError,
    NotAServiceError,
    NotDeployedError,
    NotFoundError,
    QueueFullError,
    ServerUnavailableError,
    WaitTimeoutError,
)
from apothic.protocol import messages as m
from apothic.protocol import routes


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[ControlPlaneClient]:
    with server.lending(sums.app, deploy=False) as client:
        yield client


def named(name: str, client: ControlPlaneClient) -> RemoteFunction:
    sums.app.deploy()
    return RemoteFunction.from_name("sums", name, client=client)


# --- remote, spawn, wait ----------------------------------------------------------------------------------------


def test_the_first_call_deploys(client: ControlPlaneClient) -> None:
    assert sums.square.remote(4) == 16
    assert sums.app.deployment_id is not None
    assert sums.app.deploy() == sums.app.deployment_id


def test_all_arguments_are_the_functions_own(client: ControlPlaneClient) -> None:
    assert sums.add.remote(1, 2, times=3) == 9
    assert sums.add.remote(a=1, b=5) == 6


def test_an_async_function_gives_its_value(client: ControlPlaneClient) -> None:
    assert sums.greet.remote("you") == "hello you"


def test_the_body_runs_here_when_called_plainly() -> None:
    assert sums.square(3) == sums.square.local(3) == 9
    assert asyncio.run(sums.greet.local("you")) == "hello you"


def test_classes_of_the_module_travel_both_ways(client: ControlPlaneClient) -> None:
    assert sums.mirrored.remote(sums.Point(1, 2)) == sums.Point(2, 1)


@pytest.mark.parametrize("size", [10, 100_000, 5_000_000])
def test_values_of_any_size_travel_both_ways(client: ControlPlaneClient, size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path))
        assert sums.echo.remote(data) == data
        assert asyncio.run(sums.echo.aio.remote(data)) == data
    assert list(tmp_path.iterdir()) == []


def test_an_exception_arrives_as_itself_with_the_remote_traceback(client: ControlPlaneClient) -> None:
    with pytest.raises(sums.Refusal) as caught:
        sums.broken.remote(13)

    assert caught.value.code == 13
    assert 'raise Refusal(number, "a three")' in str(caught.value.__cause__)
    assert any("job_" in note for note in caught.value.__notes__)


def test_spawn_gives_a_job_that_is_waited_for_from_anywhere(client: ControlPlaneClient) -> None:
    job = sums.square.spawn(7)

    assert Job.attach(job.job_id, client=client).wait() == 49
    assert Job(job.job_id, client).wait(poll_interval_s=0.1, timeout_s=5) == 49
    assert job.status() == "succeeded"
    assert job.cancel() == "succeeded"


def test_attach_refuses_what_is_no_job_id() -> None:
    with pytest.raises(InvalidRequestError, match="is no job id"):
        Job.attach("jobs/7")


def test_a_job_that_does_not_exist_is_not_found(client: ControlPlaneClient) -> None:
    with pytest.raises(NotFoundError):
        Job("job_0123456789abcdefghjkmnpqrs", client).status()


def test_logs_are_lines_and_say_what_was_trimmed(client: ControlPlaneClient) -> None:
    job = sums.loud.spawn(20)
    job.wait()

    lines = job.logs()
    assert sorted(lines) == sorted([f"line {n}" for n in range(20)] + ["warned"])
    assert [line for line in lines if line != "warned"] == [f"line {n}" for n in range(20)]
    assert lines.trimmed == 0  # type: ignore[attr-defined]


def test_waiting_has_an_end_and_the_job_goes_on(client: ControlPlaneClient, gate: Path) -> None:
    job = sums.held.spawn(str(gate))
    with pytest.raises(WaitTimeoutError) as caught:
        job.wait(timeout_s=0.2)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.job == job

    gate.touch()
    assert caught.value.job.wait() == "let go"


def test_remote_has_a_timeout_of_its_own_by_name(client: ControlPlaneClient, gate: Path) -> None:
    with pytest.raises(WaitTimeoutError) as caught:
        named("held", client).remote(str(gate), timeout_s=0.2)

    gate.touch()
    assert caught.value.job.wait() == "let go"


def test_a_cancelled_job_raises_as_such(client: ControlPlaneClient, gate: Path) -> None:
    job = sums.held.spawn(str(gate))

    assert job.cancel() in ("cancelled", "cancelling")
    with pytest.raises(JobCancelledError) as caught:
        job.wait()
    assert caught.value.job == job
    assert job.cancel() == "cancelled"


async def test_cancelling_the_wait_leaves_the_job_alone(client: ControlPlaneClient, gate: Path) -> None:
    key = "left alone"
    waiting = asyncio.create_task(sums.held.with_options(idempotency_key=key).aio.remote(str(gate)))
    job = await sums.held.with_options(idempotency_key=key).aio.spawn(str(gate))
    while await job.aio.status() == "queued":
        await asyncio.sleep(0.01)

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.touch()

    assert await job.aio.wait() == "let go"


def test_ctrl_c_ends_the_waiting_at_once(client: ControlPlaneClient, gate: Path) -> None:
    sums.square.remote(1)
    main = threading.main_thread().ident
    assert main is not None
    job = sums.held.spawn(str(gate))

    def interrupt() -> None:
        while job.status() != "running":
            pass
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        job.wait()

    gate.touch()
    assert job.wait() == "let go"


def test_spawn_waits_for_room_in_a_full_queue_and_then_says_so(server: Server, gate: Path) -> None:
    sums.app.deploy()
    hasty = RemoteFunction.from_name("sums", "held_narrow", client=server.client(timeout_s=0.5))
    jobs: list[Job] = []
    with pytest.raises(QueueFullError):
        while True:
            jobs.append(hasty.spawn(str(gate)))
    assert len(jobs) <= 3  # two wait, and one may run
    with pytest.raises(QueueFullError):
        hasty.spawn_map([str(gate)])

    patient = RemoteFunction.from_name("sums", "held_narrow", client=server.client(timeout_s=60))
    threading.Timer(0.1, gate.touch).start()
    assert patient.remote(str(gate)) == "let go"
    assert [job.wait() for job in jobs] == ["let go"] * len(jobs)


# --- callers ----------------------------------------------------------------------------------------------------


def test_eight_threads_share_one_client(client: ControlPlaneClient) -> None:
    found: dict[int, int] = {}

    def ask(number: int) -> None:
        for n in range(5):
            found[number * 5 + n] = sums.square.remote(number * 5 + n)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {n: n * n for n in range(40)}


async def test_a_hundred_tasks_share_one_client(client: ControlPlaneClient) -> None:
    found = await asyncio.gather(*(sums.square.aio.remote(n) for n in range(100)))
    assert found == [n * n for n in range(100)]


def test_a_forked_child_calls_with_the_same_handles(client: ControlPlaneClient) -> None:
    assert sums.square.remote(2) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if sums.square.remote(3) == 9 and asyncio.run(sums.square.aio.remote(4)) == 16 else 2
        finally:
            os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sums.square.remote(5) == 25


def test_a_function_calls_another_function_of_its_app(client: ControlPlaneClient) -> None:
    assert sums.chained.remote(3) == 9 + 4


def test_many_first_calls_deploy_once(server: Server) -> None:
    app = App("together", client=server.client())
    asked: list[str] = []
    ask = app.client._ask

    async def counted(route: object, message: object, timeout_s: float | None) -> object:
        asked.append(route.name)  # type: ignore[attr-defined]
        return await ask(route, message, timeout_s)  # type: ignore[arg-type,type-var]

    app.client._ask = counted  # type: ignore[method-assign,assignment]

    @app.function(max_containers=2)
    def double(number: int) -> int:
        return 2 * number

    async def all_at_once() -> list[int]:
        return await asyncio.gather(*(double.aio.remote(n) for n in range(10)))

    assert asyncio.run(all_at_once()) == [2 * n for n in range(10)]
    assert asked.count("deploy") == 2  # what is missing, and then with it


# --- by name ----------------------------------------------------------------------------------------------------


def test_a_function_is_looked_up_by_name(client: ControlPlaneClient) -> None:
    remote = named("add", client)

    assert (remote.name, remote.app_name, remote.kind, remote.timeout_s) == ("add", "sums", "function", 600)
    assert (remote.retries, remote.concurrency, remote.batching, remote.schedule) == (None, None, None, None)
    assert remote.service_url is None
    assert remote.function_id.startswith("fn_")
    assert remote.remote(2, times=2) == 6
    assert remote.spawn(1).wait() == 2
    assert Function.from_name("sums", "add", client=client).remote(1) == 2


def test_looking_up_asks_nobody_before_the_first_use(client: ControlPlaneClient) -> None:
    missing = RemoteFunction.from_name("sums", "no_such_function", client=client)

    sums.app.deploy()
    with pytest.raises(NotFoundError, match="no function 'no_such_function'"):
        missing.remote(1)
    with pytest.raises(NotFoundError, match="no app 'no-such-app'"):
        _ = RemoteFunction.from_name("no-such-app", "f", client=client).kind


async def test_hydrate_looks_up_in_async_code(client: ControlPlaneClient) -> None:
    await sums.app.aio.deploy()
    remote = RemoteFunction.from_name("sums", "square", client=client)
    assert (await remote.aio.hydrate()).id == remote.function_id
    assert await remote.aio.remote(3) == 9


def test_an_app_is_looked_up_by_name(client: ControlPlaneClient) -> None:
    sums.app.deploy()
    found = App.lookup("sums", client=client)

    assert set(found.functions) == set(sums.app.functions)
    assert found.functions["square"].remote(6) == 36
    with pytest.raises(NotFoundError, match="no app 'no-such-app'"):
        App.lookup("no-such-app", client=client)


def test_a_plain_function_has_no_url(client: ControlPlaneClient) -> None:
    with pytest.raises(NotAServiceError):
        sums.square.get_web_url()
    with pytest.raises(NotAServiceError):
        named("square", client).get_web_url()
    assert sums.square.service_url is None


def test_a_generator_function_is_refused_before_anything_is_sent(client: ControlPlaneClient) -> None:
    with pytest.raises(TypeError, match="remote_gen"):
        sums.count.remote(3)


def test_handles_pickle_by_name_and_id(client: ControlPlaneClient) -> None:
    assert pickle.loads(pickle.dumps(sums.square)) is sums.square
    job = sums.square.spawn(3)
    again = pickle.loads(pickle.dumps(job))
    assert again == job
    assert b"apothic_" not in pickle.dumps(job)  # no key travels
    remote = pickle.loads(pickle.dumps(named("square", client)))
    assert (remote.app_name, remote.name) == ("sums", "square")


# --- deploying --------------------------------------------------------------------------------------------------


def test_a_module_that_does_not_import_fails_the_deployment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lame.py").write_text(
        "import os, apothic\n"
        "app = apothic.App('lame')\n"
        "@app.function()\n"
        "def f(): return 1\n"
        "print('so far so good', flush=True)\n"
        "if 'PYTEST_CURRENT_TEST' not in os.environ: raise ImportError('no legs')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import lame  # type: ignore[import-not-found]

    lame.app._client = server.client()
    with pytest.raises(NotDeployedError) as caught:
        lame.app.deploy()

    told = str(caught.value)
    assert "'lame' did not start" in told
    assert "ImportError: no legs" in told
    assert "so far so good" in caught.value.details["startup_log"]


def test_a_function_of_no_file_travels_by_value(server: Server) -> None:
    app = App("by-value", client=server.client())
    factor = 3

    @app.function()
    def times(number: int) -> int:
        return number * factor

    assert times.remote(5) == 15


def test_jobs_have_the_options_they_are_given(client: ControlPlaneClient, gate: Path) -> None:
    job = sums.square.with_options(idempotency_key="once").spawn(2)
    assert sums.square.with_options(idempotency_key="once").spawn(2) == job

    later = sums.square.with_options(run_at=time.time() + 3600).spawn(2)
    assert later.status() == "queued"
    assert client.ask_blocking(routes.SHOW_JOB, m.ShowJob(job=later.job_id)).run_at is not None
    assert later.cancel() == "cancelled"


# --- trouble ----------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_refused_with_url_and_hint(server: Server) -> None:
    with pytest.raises(AuthError) as caught, ControlPlaneClient(server.base_url, api_key="wrong") as stranger:
        RemoteFunction.from_name("sums", "square", client=stranger).remote(1)

    assert server.base_url in caught.value.message
    assert caught.value.hint


def test_no_server_is_told_with_url_and_hint() -> None:
    client = ControlPlaneClient("http://127.0.0.1:9", api_key="any")
    with pytest.raises(ServerUnavailableError) as caught:
        client.ask_blocking(routes.LIST_APPS, m.ListApps())

    assert caught.value.url == "http://127.0.0.1:9"
    assert "apothic up" in caught.value.hint


async def test_a_client_is_asked_from_any_loop_and_opens_again_after_closing(server: Server) -> None:
    async with server.client() as client:
        assert (await client.ask(routes.HEALTHZ, m.ShowHealth())).ok
        await client.aio.close()
        assert (await client.ask(routes.HEALTHZ, m.ShowHealth())).ok
