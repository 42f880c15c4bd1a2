"""Handles of services, through a real server: what they are, where they are found, and what they do not do."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serves
from rig import ROOT, Server, environment, serving, until

from apothic import App, ControlPlaneClient, RemoteFunction
from apothic.errors import InvalidRequestError, NotAServiceError, NotDeployedError, NotFoundError, WaitTimeoutError
from apothic.protocol import messages as m
from apothic.protocol import routes


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[ControlPlaneClient]:
    client = server.client()
    serves.app._client = client
    yield client
    serves.app._client = None
    serves.app.forget()


@pytest.fixture
def remote(client: ControlPlaneClient) -> RemoteFunction:
    serves.app.deploy()
    return RemoteFunction.from_name("serves", "double", client=client)


def test_a_url_is_none_until_it_is_asked_for_and_then_stays(client: ControlPlaneClient) -> None:
    assert serves.web.service_url is None
    assert serves.app.deployment_id is None  # asking has deployed nothing
    url = serves.web.get_web_url()
    assert url.endswith("/serves/web/") and url.startswith("http://127.0.0.1:")
    assert serves.app.deployment_id is not None
    assert serves.web.service_url == serves.web.get_web_url() == url

    twin = App("serves", client=client)
    twin.function()(serves.whereabouts.local)
    twin.asgi(keep_warm_s=5)(serves.web.local)
    twin.deploy()
    assert twin.web.service_url == url
    assert twin.web.get_web_url() == url
    serves.app.deploy()


async def test_the_asynchronous_side_deploys_as_well(client: ControlPlaneClient) -> None:
    serves.app.forget()
    assert (await serves.double.aio.get_web_url()).endswith("/serves/double/")
    assert serves.app.deployment_id is not None


def test_what_another_process_has_deployed_is_found(remote: RemoteFunction) -> None:
    url = remote.service_url
    serves.app.forget()
    assert serves.double.service_url == url
    assert serves.app.deployment_id is None


def test_a_remote_function_knows_what_it_is(remote: RemoteFunction) -> None:
    assert (remote.kind, remote.service_url) == ("endpoint", serves.double.service_url)
    assert remote.get_web_url() == remote.service_url
    assert pickle.loads(pickle.dumps(remote)).name == "double"
    assert App.lookup("serves", client=remote._client).functions["web"].kind == "asgi"


def test_a_job_knows_where_the_services_of_its_app_are(remote: RemoteFunction) -> None:
    url = remote.get_web_url()
    assert tuple(serves.whereabouts.remote()) == (url, url)


@pytest.mark.parametrize(
    "ask",
    [
        lambda one: one.remote(1), lambda one: one.spawn(1), lambda one: one.map([1]), lambda one: one.starmap([(1,)]),
        lambda one: one.for_each([1]), lambda one: list(one.map_iter([1])), lambda one: one.spawn_map([1]),
        lambda one: list(one.remote_gen(1)), lambda one: list(one.remote_events(1)),
    ],
)  # fmt: skip
def test_a_service_runs_no_jobs(remote: RemoteFunction, ask: Callable[[RemoteFunction], Any]) -> None:
    with pytest.raises(TypeError, match=r"serves\.double is an endpoint service: it answers HTTP, at its get_web_url"):
        ask(remote)


def test_nor_does_the_control_plane_make_any(client: ControlPlaneClient, remote: RemoteFunction) -> None:
    with pytest.raises(InvalidRequestError, match=r"serves\.double is an endpoint service"):
        client.ask_blocking(routes.SUBMIT, m.Submit(function=remote.function_id, args=[1]))


def test_what_is_no_service_or_not_there(client: ControlPlaneClient, remote: RemoteFunction) -> None:
    with pytest.raises(NotAServiceError, match=r"serves\.whereabouts is a plain function"):
        RemoteFunction.from_name("serves", "whereabouts", client=client).get_web_url()
    with pytest.raises(NotFoundError, match="no function 'nothing'"):
        RemoteFunction.from_name("serves", "nothing", client=client).get_web_url()
    with pytest.raises(NotFoundError, match="no app 'nowhere'"):
        RemoteFunction.from_name("nowhere", "web", client=client).get_web_url()


def starting(client: ControlPlaneClient, app: str) -> bool:
    try:
        found = client.ask_blocking(routes.LIST_DEPLOYMENTS, m.ListDeployments(app=app))
    except NotFoundError:
        return False
    return [one.status for one in found.deployments] == ["starting"]


@pytest.fixture
def deploying() -> Iterator[Callable[[App], list[BaseException]]]:
    threads: list[threading.Thread] = []

    def deploy(app: App) -> list[BaseException]:
        failed: list[BaseException] = []

        def work() -> None:
            try:
                app.deploy()
            except NotDeployedError as error:
                failed.append(error)

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return failed

    yield deploy
    for thread in threads:
        thread.join(60)


def test_a_service_that_is_starting_is_waited_for(
    server: Server, client: ControlPlaneClient, deploying: Callable[[App], list[BaseException]], gate: Path
) -> None:
    app = serves.late("late", str(gate))
    app._client = client
    deploying(app)
    until(lambda: starting(client, "late"))
    hasty = server.client(timeout_s=0.1)
    with pytest.raises(WaitTimeoutError, match=r"late\.gated is starting after 0\.1 s"):
        RemoteFunction.from_name("late", "gated", client=hasty).get_web_url()
    threading.Timer(0.2, gate.touch).start()
    assert RemoteFunction.from_name("late", "gated", client=client).get_web_url().endswith("/late/gated/")


def test_one_that_does_not_start_is_not_found(
    client: ControlPlaneClient, deploying: Callable[[App], list[BaseException]], gate: Path
) -> None:
    app = serves.late("never", str(gate))
    app._client = client
    failed = deploying(app)
    until(lambda: starting(client, "never"))
    threading.Timer(0.2, gate.write_text, ["x"]).start()
    with pytest.raises(NotFoundError, match="no app 'never' with a live deployment"):
        RemoteFunction.from_name("never", "gated", client=client).get_web_url()
    assert "AssertionError" in str(until(lambda: failed)[0])


def test_a_script_asks_where_its_service_is(server: Server, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import apothic\napp = apothic.App('script')\n\n"
        "@app.endpoint()\ndef hello(name: str = 'you') -> str:\n    return f'hello {name}'\n\n"
        "if __name__ == '__main__':\n    print(hello.get_web_url())\n"
    )
    told = subprocess.run(
        [sys.executable, str(script)], env=environment(server.data_dir, tmp_path, PYTHONPATH=str(ROOT / "src")),
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert told.stdout.endswith("/script/hello/\n")


@pytest.mark.parametrize("name", ["asks", "asks_plainly"])
def test_a_service_calls_functions_of_its_own_deployment(remote: RemoteFunction, name: str) -> None:
    import json
    import urllib.request

    service = serves.app.functions[name]
    with urllib.request.urlopen(service.get_web_url()) as answer:
        told = json.load(answer)
    url = remote.get_web_url()
    assert told == [url, url, url, serves.app.deployment_id][: len(told)]


def test_a_service_finds_a_control_plane_that_came_back_elsewhere(tmp_path: Path) -> None:
    import json
    import urllib.request

    with serving(tmp_path / "data", lease_s=5, grace_s=1) as server:
        client = server.client()
        serves.app._client = client
        serves.app.forget()
        serves.app.deploy()

        def ask() -> list[str]:
            with urllib.request.urlopen(f"{server.gateway_url}/serves/asks_plainly/") as answer:
                return list(json.load(answer))

        before = ask()
        server.kill()
        server.start()
        until(lambda: server.client().ask_blocking(routes.LIST_AGENTS, m.ListAgents()).agents[0].connected, 30, "it")
        after = ask()
        assert before[1] != after[1] and after[1].startswith(server.gateway_url)
        serves.app._client = None
        serves.app.forget()
