"""Keys: what opens what, and when it no longer does."""

from __future__ import annotations

import pytest
from walkrig import DONE, Puppet, Stage, spec

from apothic.protocol.routes import ROUTES

SHOW = "GET /v1/apps"


async def test_a_revoked_key_opens_nothing(stage: Stage) -> None:
    made = await stage.got("POST /v1/keys", {"name": "k", "scopes": ["read:jobs"]})
    secret, key = made["secret"], made["key"]["id"]
    assert (await stage.ask(SHOW, key=secret)).status == 200
    assert (await stage.got(f"DELETE /v1/keys/{key}"))["revoked_at"] is not None
    assert (await stage.ask(SHOW, key=secret)).status == 401
    assert (await stage.ask("DELETE /v1/keys/key_none")).status == 404


async def test_a_key_that_was_revoked_elsewhere_is_believed_five_seconds(stage: Stage) -> None:
    made = await stage.got("POST /v1/keys", {"name": "k", "scopes": ["read:jobs"]})
    assert (await stage.ask(SHOW, key=made["secret"])).status == 200
    await stage.control.catalog.revoke_key(made["key"]["id"])  # as another control plane would
    await stage.clock.advance(5)
    assert (await stage.ask(SHOW, key=made["secret"])).status == 401


async def test_a_key_expires(stage: Stage) -> None:
    secret = await stage.create_key("read:jobs", expires_in_s=60)
    assert (await stage.ask(SHOW, key=secret)).status == 200
    await stage.clock.advance(59)
    assert (await stage.ask(SHOW, key=secret)).status == 200
    await stage.clock.advance(1)
    assert (await stage.ask(SHOW, key=secret)).status == 401


async def test_the_secret_is_shown_once_and_not_kept(stage: Stage) -> None:
    secret = await stage.create_key("admin")
    listed = await stage.ask("GET /v1/keys")
    assert secret not in listed.body.decode()
    files = [path for path in stage.data_dir.rglob("*") if path.is_file()]
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert (stage.data_dir / "admin.key").stat().st_mode & 0o777 == 0o600
    assert (stage.data_dir / "agent.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "wrong", ["", "x", "apothic_key_x", "apothic_job_a.1.b", "apothic_job_é", "\xff\xfe", "Bearer"]
)
async def test_a_wrong_key_is_401_and_says_no_more(stage: Stage, wrong: str) -> None:
    answer = await stage.ask(SHOW, key=None, headers={"authorization": f"Bearer {wrong}"})
    assert (answer.status, answer.code, answer.headers["www-authenticate"]) == (401, "auth", "Bearer")
    near = stage.key[:-1] + ("0" if stage.key[-1] != "0" else "1")
    assert (await stage.ask(SHOW, key=near)).body == answer.body


async def test_another_scheme_than_bearer_is_401(stage: Stage) -> None:
    for value in (f"Basic {stage.key}", stage.key, "Bearer"):
        assert (await stage.ask(SHOW, key=None, headers={"authorization": value})).status == 401
    assert (await stage.ask(SHOW, key=None, headers={"authorization": f"bearer {stage.key}"})).status == 200


SCOPES = {
    "deploy": {"deploy", "read:jobs", "blobs"},
    "invoke": {"invoke", "read:jobs", "logs", "cancel", "blobs"},
    "invoke:app/f": {"invoke", "read:jobs", "logs", "cancel", "blobs"},
    "read:jobs": {"read:jobs"},
    "logs": {"logs", "read:jobs"},
    "cancel": {"cancel", "read:jobs"},
    "worker": {"blobs"},
    "admin": {"admin", "deploy", "invoke", "read:jobs", "logs", "cancel", "blobs"},
}


@pytest.mark.parametrize("scope", sorted(SCOPES))
async def test_a_scope_opens_its_routes_and_no_others(stage: Stage, scope: str) -> None:
    secret = await stage.create_key(scope)
    for route in ROUTES:
        if route.scope is None:
            continue
        path = route.path
        for name in route.in_path:
            path = path.replace(f"{{{name}}}", "nothing")
        answer = await stage.ask(f"{route.method} {path}", key=secret)
        assert (answer.status == 403) == (route.scope not in SCOPES[scope]), (route.name, answer)
        assert answer.status not in (401, 500)


async def test_scopes_that_do_not_exist_are_refused(stage: Stage) -> None:
    for body in (
        {"name": "k", "scopes": ["everything"]}, {"name": "k", "scopes": ["invoke:app"]}, {"name": " "},
        {"name": "k", "expires_in_s": -1}, {"name": "k", "expires_in_s": 0},
    ):  # fmt: skip
        assert (await stage.ask("POST /v1/keys", body)).status == 400


async def test_another_scope_beside_one_function_opens_no_more_than_itself(stage: Stage, agent: Puppet) -> None:
    await stage.live(agent, "app", spec("f"), spec("g"))
    found = (await stage.got("GET /v1/functions", query={"name": "g"}))["functions"]
    foreign = await stage.submit(found[0]["id"])
    key = await stage.create_key("invoke:app/f", "read:jobs")

    assert (await stage.ask(f"GET /v1/jobs/{foreign}", key=key)).status == 200
    for line in ("GET /v1/jobs/{}/logs", "POST /v1/jobs/{}/cancel", "POST /v1/jobs/{}/retry"):
        assert (await stage.ask(line.format(foreign), key=key)).status == 404, line
    assert await stage.status(foreign) == "starting"


async def test_a_key_of_one_function_sees_that_function_alone(stage: Stage, agent: Puppet) -> None:
    mine = await stage.live(agent, "app", spec("f"), spec("g"))
    found = (await stage.got("GET /v1/functions", query={"name": "g"}))["functions"]
    other = found[0]["id"]
    key = await stage.create_key("invoke:app/f")
    job = await stage.submit(mine, key=key)
    answer = await stage.ask(f"POST /v1/functions/{other}/jobs", {"args": []}, key=key)
    assert (answer.status, answer.code) == (403, "auth")
    foreign = await stage.submit(other)
    for line in ("GET /v1/jobs/{}", "GET /v1/jobs/{}/result", "GET /v1/jobs/{}/logs", "POST /v1/jobs/{}/cancel",
                 "POST /v1/jobs/{}/retry"):  # fmt: skip
        assert (await stage.ask(line.format(foreign), key=key)).status == 404, line
        assert (await stage.ask(line.format(job), key=key)).status in (200, 202, 409), line
    assert (await stage.ask("POST /v1/jobs/results", {"jobs": [job, foreign]}, key=key)).status == 404
    listed = await stage.got("GET /v1/jobs", key=key)
    assert [each["id"] for each in listed["jobs"]] == [job]
    assert await stage.status(foreign) == "starting"
    every = await stage.create_key("invoke:app/*")
    assert await stage.submit(other, key=every)


async def test_a_jobs_token_is_good_while_it_runs(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    parent = await stage.submit(function)
    given = await agent.work()
    child = await stage.submit(function, key=given.job_token)
    assert (await stage.job(child))["parent"] == parent
    assert (await stage.ask(f"GET /v1/jobs/{child}", key=given.job_token)).status == 200
    for line in ("GET /v1/keys", "DELETE /v1/apps/app", "POST /v1/apps/app/deployments"):
        assert (await stage.ask(line, key=given.job_token)).status == 403
    forged = given.job_token.replace(f"{parent}.1", f"{child}.1")
    assert (await stage.ask(SHOW, key=forged)).status == 401
    await agent.finish(given, DONE)
    assert (await stage.ask(SHOW, key=given.job_token)).status == 401


async def test_the_token_of_an_earlier_attempt_is_dead(stage: Stage, agent: Puppet) -> None:
    await stage.submit(await stage.live(agent))
    first = await agent.work()
    await stage.sweep(31)
    await agent.cut()
    await agent.connect()
    await stage.sweep(2)
    second = await agent.work()
    assert (await stage.ask(SHOW, key=first.job_token)).status == 401
    assert (await stage.ask(SHOW, key=second.job_token)).status == 200
