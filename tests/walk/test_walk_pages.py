"""What describes itself: /openapi.json, /docs, /metrics, health."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from walkrig import DONE, Puppet, Stage, spec

from apothic.errors import family
from apothic.protocol.routes import ROUTES


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for inner in part.values():
            yield from references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from references(inner)


async def test_openapi_describes_every_route_and_every_reference_resolves(stage: Stage) -> None:
    document = (await stage.ask("GET /openapi.json", key=None)).json()
    assert document["openapi"] == "3.1.0"
    for reference in references(document):
        found: Any = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        assert found
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in ROUTES} | {("GET", "/metrics")}
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names)) == len(ROUTES) + 1
    for cls in family():
        assert f"{cls.http} {cls.code}" in document["info"]["description"]


async def test_openapi_has_each_parameter_where_it_belongs(stage: Stage) -> None:
    document = (await stage.ask("GET /openapi.json", key=None)).json()
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        places = {(each["name"], each["in"]) for each in operation["parameters"]}
        assert {name for name, place in places if place == "path"} == set(route.in_path)
        assert all(each["schema"] for each in operation["parameters"])
        assert ("requestBody" in operation) == bool(route.body or (route.raw and route.method == "PUT"))
        assert (operation["security"] == []) == (route.scope is None)
        assert operation["summary"] == route.about
        if route.body == "*":
            fields = set(operation["requestBody"]["content"]["application/json"]["schema"]["properties"])
            assert fields == set(route.ask.__struct_fields__) - set(route.in_path) - set(route.query)


async def test_openapi_names_every_status_and_no_mistake_of_ours(stage: Stage) -> None:
    document = (await stage.ask("GET /openapi.json", key=None)).json()
    for methods in document["paths"].values():
        for method, operation in methods.items():
            told = set(operation["responses"])
            assert {"200", "400", "403"} <= told and not told & {"default", "500"}
            assert {"401"} <= told or operation["security"] == []
            assert {status for status in told if status >= "500"} <= {"503", "507"}
            assert "507" not in told or method not in ("get", "head")
            for status in told - {"200", "202"}:
                assert operation["responses"][status]["content"]["application/json"]["schema"]


async def test_docs_show_every_route_and_load_nothing(stage: Stage) -> None:
    answer = await stage.ask("GET /docs", key=None)
    text = answer.body.decode()
    assert answer.headers["content-type"].startswith("text/html")
    for route in ROUTES:
        assert f"<code>{route.path}</code>" in text
    assert "/metrics" in text
    assert "http://" not in text and "https://" not in text and "<script" not in text


async def test_health(stage: Stage) -> None:
    assert (await stage.got("GET /healthz", key=None))["ok"]
    assert (await stage.ask("GET /readyz", key=None)).status == 200  # an agent can be started when there is none

    def full() -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    stage.probe.on("commit.before", full)
    answer = await stage.ask("GET /readyz", key=None)
    assert answer.status == 503
    assert "takes no writes" in answer.json()["problems"][0]


async def test_metrics_count_what_there_is(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent, 'an "app"\\', spec("f", max_containers=1))
    for _ in range(3):
        await stage.submit(function)
    await agent.finish(await agent.work(), DONE)
    answer = await stage.ask("GET /metrics", key=await stage.create_key("read:jobs"))
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.body.decode().splitlines()
    for line in (
        'apothic_jobs{status="succeeded"} 1',
        'apothic_jobs{status="starting"} 1',
        'apothic_jobs{status="queued"} 1',
        'apothic_jobs{status="failed"} 0',
        'apothic_queue_length{app="an \\"app\\"\\\\",function="f"} 1',
        'apothic_agents{state="connected"} 1',
        'apothic_containers{state="ready"} 1',
    ):
        assert line in lines, answer.body.decode()
    (commits,) = [line for line in lines if line.startswith("apothic_commits_total ")]
    assert 0 < int(commits.split()[1]) <= stage.control.db.commits
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {line.partition("{")[0].split()[0] for line in lines if not line.startswith("#")} == typed
    assert (await stage.ask("GET /metrics", key=await stage.create_key("worker"))).status == 403
    assert (await stage.ask("POST /metrics")).status == 404
