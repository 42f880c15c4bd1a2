"""The HTTP door: who is let in, what is understood, and that garbage never becomes a 500."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from walkrig import Puppet, Stage, ask

from apothic.errors import QueueFullError
from apothic.protocol.routes import ROUTES

METRICS = ("GET", "/metrics")
DOORS = [(route.method, route.path) for route in ROUTES] + [METRICS, ("GET", "/docs"), ("GET", "/openapi.json")]
FOREIGN: list[dict[str, str]] = [
    {"host": "evil.example"},
    {"host": "evil.example:8700"},
    {"host": ""},
    {"host": "[::1"},
    {"host": "127.0.0.1.evil.example"},
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://["},
    {"origin": "http://127.0.0.1:9999"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


def filled(path: str) -> str:
    """Put something into the braces of a route's path."""
    for route in ROUTES:
        if route.path == path:
            for name in route.in_path:
                path = path.replace(f"{{{name}}}", "0" * 64)
    return path


async def test_a_foreign_page_is_refused_on_every_route(stage: Stage) -> None:
    for method, path in DOORS:
        for headers in FOREIGN:
            answer = await stage.ask(f"{method} {filled(path)}", headers=headers)
            assert (answer.status, answer.code) == (403, "auth"), (method, path, headers)


async def test_our_own_names_are_let_in(stage: Stage) -> None:
    import socket

    for host in ("localhost", "localhost:8700", "127.0.0.1:1", "[::1]:8700", "192.168.1.7", socket.gethostname()):
        assert (await stage.ask("GET /v1/apps", headers={"host": host})).status == 200, host
    own = {"origin": "http://127.0.0.1:8700", "sec-fetch-site": "same-origin"}
    assert (await stage.ask("GET /v1/apps", headers=own)).status == 200


async def test_every_route_that_needs_a_key_says_401_without_one(stage: Stage) -> None:
    open_doors = {"/healthz", "/readyz", "/docs", "/openapi.json"}
    for method, path in DOORS:
        answer = await stage.ask(f"{method} {filled(path)}", key=None)
        if path in open_doors:
            assert answer.status in (200, 503), path
        else:
            assert (answer.status, answer.code) == (401, "auth"), path


async def test_what_is_not_there(stage: Stage) -> None:
    for path in ("/", "/v1", "/v1/apps/", "/v1/apps/a/b/c", "/v2/apps", "//v1/apps", "/v1/functions/x/jobs/y"):
        answer = await stage.ask(f"GET {path}")
        assert (answer.status, answer.code) == (404, "not_found"), path
        assert answer.json()["error"]["hint"]


async def test_a_wrong_method_names_the_right_ones(stage: Stage) -> None:
    answer = await stage.ask("PATCH /v1/apps")
    assert (answer.status, answer.code) == (405, "invalid_request")
    assert "GET" in answer.json()["error"]["message"]


async def test_a_body_of_another_type_is_415(stage: Stage) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/pickle", ""):
        answer = await stage.ask("POST /v1/keys", {"name": "k"}, headers={"content-type": kind})
        assert (answer.status, answer.code) == (415, "invalid_request"), kind
    good = await stage.ask("POST /v1/keys", {"name": "k"}, headers={"content-type": "Application/JSON; charset=utf-8"})
    assert good.status == 200


@pytest.mark.parametrize(
    ("line", "query", "body"),
    [
        ("GET /v1/jobs", {"limit": "many"}, None),
        ("GET /v1/jobs", {"status": "sleeping"}, None),
        ("GET /v1/jobs", {"colour": "red"}, None),
        ("POST /v1/keys", {}, []),
        ("POST /v1/keys", {}, {"name": 7}),
        ("POST /v1/keys", {}, {}),
        ("POST /v1/functions/f/jobs", {}, {"function": "other", "args": []}),
        ("POST /v1/functions/f/jobs", {}, {"wait_s": 3}),
        ("POST /v1/functions/f/jobs", {}, {"accept": ["xml"]}),
        ("POST /v1/functions/f/jobs", {}, {"input": {"encoding": "json", "data": 1}, "args": []}),
        ("POST /v1/functions/f/jobs", {}, {"options": {"timeout_s": -1}}),
        ("POST /v1/functions/f/jobs", {}, {"options": {"expires_in_s": 0}}),
        ("POST /v1/functions/f/jobs", {}, {"input": {"encoding": "pickle", "data": "!"}}),
        ("POST /v1/functions/f/jobs", {}, {"input": {"encoding": "json", "sha256": "x"}}),
    ],
)
async def test_what_cannot_be_understood_is_400_and_says_why(
    stage: Stage, line: str, query: dict[str, str], body: Any
) -> None:
    answer = await stage.ask(line, body, query=query)
    assert (answer.status, answer.code) == (400, "invalid_request")
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "hint", "details"} and error["message"]


async def test_a_number_that_is_too_long_is_400(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent))
    answer = await stage.ask(f"GET /v1/jobs/{job}/logs", query={"after": "9" * 30})
    assert (answer.status, answer.code) == (400, "invalid_request")


async def test_a_value_over_the_inline_limit_is_told_to_be_a_blob(stage: Stage, agent: Puppet) -> None:
    path = f"POST /v1/functions/{await stage.live(agent)}/jobs"
    answer = await stage.ask(path, {"args": ["x" * 70_000]})
    assert answer.status == 400
    assert "/v1/blobs/" in answer.json()["error"]["hint"]


async def test_a_body_over_the_limit_is_413(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apothic.control.http.LARGEST_BODY", 1000)
    answer = await stage.ask("POST /v1/keys", headers={"content-type": "application/json"}, body=[b"x" * 600] * 2)
    assert (answer.status, answer.code) == (413, "payload_too_large")
    assert answer.json()["error"]["details"] == {"size": 1200, "limit": 1000, "what": "the request's body"}


async def test_a_client_that_leaves_in_the_middle_changes_nothing(stage: Stage) -> None:
    headers = {"content-type": "application/json"}
    answer = await stage.ask("POST /v1/keys", headers=headers, body=[b'{"name": "k"}', None])
    assert answer.status == 400
    assert len((await stage.got("GET /v1/keys"))["keys"]) == 2


async def test_messagepack_says_the_same(stage: Stage, agent: Puppet) -> None:
    both = {"accept": "application/msgpack", "content-type": "application/msgpack"}
    path = f"POST /v1/functions/{await stage.live(agent)}/jobs"
    value = {"encoding": "pickle", "data": b"\x80\x05N."}
    answer = await stage.ask(path, headers=both, body=msgspec.msgpack.encode({"input": value}))
    assert (answer.status, answer.headers["content-type"]) == (202, "application/msgpack")
    job = msgspec.msgpack.decode(answer.body)["job"]["id"]
    assert (await agent.work()).input.data == b"\x80\x05N."
    missing = await stage.ask("GET /v1/jobs/x", headers=both)
    assert msgspec.msgpack.decode(missing.body)["error"]["code"] == "not_found"
    assert await stage.status(job) == "starting"


async def test_a_bug_of_ours_is_500_without_a_traceback(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def breaks(asker: Any, ask: Any) -> Any:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(stage.control.plane, "list_apps", breaks)
    answer = await stage.ask("GET /v1/apps")
    assert (answer.status, answer.code) == (500, "internal")
    assert b"secret" not in answer.body and b"ZeroDivision" not in answer.body


async def test_an_error_of_the_plane_keeps_its_own_status(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(asker: Any, ask: Any) -> Any:
        raise QueueFullError("full", details={"retry_after_s": 7.0})

    monkeypatch.setattr(stage.control.plane, "list_apps", full)
    answer = await stage.ask("GET /v1/apps")
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KNOWN = ("args", "kwargs", "input", "idempotency_key", "accept", "options", "jobs", "name", "scopes", "expires_in_s",
         "app", "functions", "files", "deployment_id", "encoding", "data", "sha256", "size", "run_at")  # fmt: skip
SHAPED = st.recursive(
    JUNK, lambda inner: st.dictionaries(st.sampled_from(KNOWN), inner, max_size=5), max_leaves=6
)  # fmt: skip
BODIES = st.binary(max_size=60) | SHAPED.map(msgspec.json.encode) | SHAPED.map(lambda value: _pack(value))


def _pack(value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:
        return b"\xcf" + b"\xff" * 8


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    bodies=st.lists(st.tuples(st.sampled_from([r for r in ROUTES if r.body]), BODIES, st.booleans()), max_size=8),
    queries=st.lists(
        st.tuples(st.sampled_from([r for r in ROUTES if not r.raw]), st.text(max_size=5), st.text(max_size=30)),
        max_size=4,
    ),
)
def test_garbage_is_never_a_500(bodies: list[Any], queries: list[Any]) -> None:
    async def throw() -> None:
        with tempfile.TemporaryDirectory() as folder:
            stage = await Stage(Path(folder) / "data").open()
            agent = await stage.agent()
            function = await stage.live(agent)
            auth = {"authorization": f"Bearer {stage.key}"}
            try:
                for route, body, packed in bodies:
                    kind = "application/msgpack" if packed else "application/json"
                    path = route.path.replace("{function}", function).replace("{app}", "app")
                    headers = auth | {"content-type": kind}
                    answer = await ask(stage.control.http, route.method, path, body=body, headers=headers)
                    assert answer.status < 500, (route.name, body, answer)
                for route, name, text in queries:
                    known = sorted(set(route.ask.__struct_fields__) - set(route.in_path))
                    name = known[len(name) % len(known)] if known and len(name) < 4 else name
                    if route.name == "readyz" or name == "wait_s":
                        continue
                    path = filled(route.path)
                    answer = await ask(stage.control.http, route.method, path, headers=auth, query={name: text})
                    assert answer.status < 500, (route.name, name, text, answer)
            finally:
                await stage.close()

    asyncio.run(throw())


async def test_a_field_that_nobody_knows_is_refused(stage: Stage) -> None:
    answer = await stage.ask("POST /v1/keys", {"name": "x", "colour": 1})

    assert (answer.status, answer.code) == (400, "invalid_request")
    assert "colour" in answer.json()["error"]["message"]
