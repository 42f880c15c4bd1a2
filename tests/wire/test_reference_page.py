"""One test for each line of the reference page that is built, named after it: what the line does, end to end."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import page
import pytest
from page import add, app, double, held
from rig import Server

from apothic import (
    ConcurrencySpec,
    ControlPlaneClient,
    Function,
    FunctionOptions,
    Job,
    RemoteFunction,
    Retries,
)
from apothic.errors import JobCancelledError, NotAServiceError

LINES = tomllib.loads((Path(__file__).parent.parent / "unit" / "reference.toml").read_text())


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[ControlPlaneClient]:
    client = server.client()
    app._client = client
    app.deploy()
    yield client
    app._client = None
    app.forget()


@pytest.fixture
def remote(client: ControlPlaneClient) -> RemoteFunction:
    return RemoteFunction.from_name("page", "double", client=client)


@pytest.fixture
def job(client: ControlPlaneClient) -> Job:
    return double.spawn(21)


def test_every_line_that_is_built_has_a_test_here() -> None:
    wanted = {
        f"test_{owner.lower()}_{'aio_' if line.get('async') else ''}{line['text'].split(' ->')[0].split('(')[0]}"
        for owner, told in LINES.items()
        for line in told.get("lines", [])
        if not line.get("later")
    }
    here = {name for name in vars(sys.modules[__name__]) if name.startswith("test_")}
    assert wanted - here == set()


# --- Function ---------------------------------------------------------------------------------------------------


def test_function_from_name(client: ControlPlaneClient) -> None:
    assert Function.from_name("page", "double", client=client).remote(4) == 8
    assert isinstance(Function.from_name("page", "double", base_url=client.base_url), RemoteFunction)


def test_function_name() -> None:
    assert double.name == "double"


def test_function_options() -> None:
    assert isinstance(double.options, FunctionOptions)
    assert (double.options.timeout_s, double.options.max_containers, add.options.max_containers) == (120, 2, 1)


def test_function_kind() -> None:
    assert double.kind == "function"


def test_function_schedule() -> None:
    assert double.schedule is None


def test_function_service_url() -> None:
    assert double.service_url is None


async def test_function_aio(client: ControlPlaneClient) -> None:
    assert await double.aio.remote(4) == 8
    assert await (await double.aio.spawn(5)).aio.wait() == 10
    assert await double.aio.map([1, 2]) == [2, 4]
    assert [each async for each in double.aio.map_iter([1, 2])] == [2, 4]


def test_function_spawn(client: ControlPlaneClient) -> None:
    job = add.spawn(1, b=2)
    assert isinstance(job, Job)
    assert job.wait() == 3


def test_function_remote(client: ControlPlaneClient) -> None:
    assert add.remote(1, b=2) == 3


def test_function_spawn_map(client: ControlPlaneClient) -> None:
    assert [job.wait() for job in double.spawn_map(iter([1, 2, 3]))] == [2, 4, 6]


def test_function_map(client: ControlPlaneClient) -> None:
    assert double.map(iter([3, 1, 2])) == [6, 2, 4]


def test_function_starmap(client: ControlPlaneClient) -> None:
    assert add.starmap([(1, 2), (3, 4)]) == [3, 7]


def test_function_for_each(client: ControlPlaneClient) -> None:
    assert double.for_each([1, 2]) is None  # type: ignore[func-returns-value]


def test_function_get_web_url() -> None:
    with pytest.raises(NotAServiceError, match=r"page\.double"):
        double.get_web_url()


async def test_function_aio_get_web_url() -> None:
    with pytest.raises(NotAServiceError, match=r"page\.double"):
        await double.aio.get_web_url()


# --- RemoteFunction ---------------------------------------------------------------------------------------------


def test_remotefunction_from_name(client: ControlPlaneClient) -> None:
    assert RemoteFunction.from_name("page", "add", client=client).remote(1, 2) == 3


def test_remotefunction_function_id(remote: RemoteFunction) -> None:
    assert remote.function_id.startswith("fn_")


def test_remotefunction_name(remote: RemoteFunction) -> None:
    assert remote.name == "double"


def test_remotefunction_kind(remote: RemoteFunction) -> None:
    assert remote.kind == "function"


def test_remotefunction_service_url(remote: RemoteFunction) -> None:
    assert remote.service_url is None


def test_remotefunction_schedule(remote: RemoteFunction) -> None:
    assert remote.schedule is None


def test_remotefunction_timeout_s(remote: RemoteFunction) -> None:
    assert remote.timeout_s == 120


def test_remotefunction_retries(remote: RemoteFunction) -> None:
    assert remote.retries == Retries(2, initial_delay_s=0.1)


def test_remotefunction_concurrency(client: ControlPlaneClient) -> None:
    assert RemoteFunction.from_name("page", "add", client=client).concurrency == ConcurrencySpec(3)


def test_remotefunction_batching(remote: RemoteFunction) -> None:
    assert remote.batching is None


def test_remotefunction_app_name(remote: RemoteFunction) -> None:
    assert remote.app_name == "page"


async def test_remotefunction_aio(remote: RemoteFunction) -> None:
    assert await remote.aio.remote(4) == 8
    assert await remote.aio.map([1, 2]) == [2, 4]


def test_remotefunction_spawn(remote: RemoteFunction) -> None:
    assert remote.spawn(3).wait() == 6


def test_remotefunction_remote(remote: RemoteFunction) -> None:
    assert remote.remote(3, timeout_s=60.0) == 6


def test_remotefunction_spawn_map(remote: RemoteFunction) -> None:
    assert [job.wait() for job in remote.spawn_map([1, 2])] == [2, 4]


def test_remotefunction_map(remote: RemoteFunction) -> None:
    assert remote.map([1, 2], timeout_s=60.0) == [2, 4]


def test_remotefunction_starmap(remote: RemoteFunction) -> None:
    assert remote.starmap([(1,), (2,)], timeout_s=60.0) == [2, 4]


def test_remotefunction_for_each(remote: RemoteFunction) -> None:
    assert remote.for_each([1, 2], timeout_s=60.0) is None  # type: ignore[func-returns-value]


def test_remotefunction_get_web_url(remote: RemoteFunction) -> None:
    with pytest.raises(NotAServiceError):
        remote.get_web_url()


async def test_remotefunction_aio_get_web_url(remote: RemoteFunction) -> None:
    with pytest.raises(NotAServiceError):
        await remote.aio.get_web_url()


# --- Job --------------------------------------------------------------------------------------------------------


def test_job___init__(client: ControlPlaneClient, job: Job) -> None:
    assert Job(job.job_id, client).wait() == 42


def test_job_job_id(job: Job) -> None:
    assert job.job_id.startswith("job_")


async def test_job_aio(client: ControlPlaneClient) -> None:
    assert await (await double.aio.spawn(2)).aio.wait() == 4


def test_job_status(job: Job) -> None:
    job.wait()
    assert job.status() == "succeeded"


def test_job_logs(job: Job) -> None:
    job.wait()
    logs = job.logs()
    assert logs == ["doubling 21"]
    assert logs.trimmed == 0  # type: ignore[attr-defined]


def test_job_cancel(client: ControlPlaneClient, tmp_path: Path) -> None:
    job = held.spawn(str(tmp_path / "gate"))
    assert job.cancel() in ("cancelled", "cancelling")
    with pytest.raises(JobCancelledError):
        job.wait()
    assert job.cancel() == "cancelled"


def test_job_wait(job: Job) -> None:
    assert job.wait(poll_interval_s=0.1, timeout_s=60.0) == 42


async def test_job_aio_status(job: Job) -> None:
    await job.aio.wait()
    assert await job.aio.status() == "succeeded"


async def test_job_aio_logs(job: Job) -> None:
    await job.aio.wait()
    assert await job.aio.logs() == ["doubling 21"]


async def test_job_aio_cancel(job: Job) -> None:
    await job.aio.wait()
    assert await job.aio.cancel() == "succeeded"


async def test_job_aio_wait(job: Job) -> None:
    assert await job.aio.wait(poll_interval_s=0.1, timeout_s=60.0) == 42


def test_the_app_is_found_by_its_own_name(client: ControlPlaneClient) -> None:
    assert set(page.app.functions) == {"double", "add", "held"}
