"""Services in the store: what is live, where it answers, what is wanted of it, and how it comes and goes."""

from __future__ import annotations

import pytest
from storerig import LEASE_S, Store, spec
from webrig import BROKEN, LOST, Web, web

from apothic.errors import ConflictError, InvalidRequestError
from apothic.protocol.messages import AppManifest
from apothic.protocol.services import ServiceSpec
from apothic.protocol.session import ContainerNews, StartContainer
from apothic.store.applogs import topic
from apothic.store.services import ServiceLine, ServiceTable


@pytest.fixture
def bench(store: Store) -> Web:
    return Web(store)


async def version_of(store: Store, name: str, deployment: str) -> int:
    ((version,),) = await store.rows(
        "SELECT versions.id FROM versions JOIN functions ON functions.id = function_id WHERE name = ? AND "
        "deployment_id = ?", name, deployment,
    )  # fmt: skip
    return int(version)


async def test_the_table_tells_what_is_live_and_where_it_answers(bench: Web) -> None:
    assert await bench.table() == ServiceTable((), ())
    deployment = await bench.deploy(web(requires_key=True), spec("job"))
    (start,) = bench.store.started()  # the service is its proof, and no job function
    assert len(start.secret) == 32
    bench.rang()
    assert (await bench.table()).live == ()
    await bench.ready(start, "unix:/run/x")
    assert bench.rang()
    table = await bench.table()
    (served,), (serving,) = table.live, table.containers
    assert (served.deployment_id, served.app, served.name, served.kind) == (deployment, "shop", "web", "asgi")
    assert served.options.requires_key and served.service == ServiceSpec()
    assert (serving.container, serving.agent, serving.version) == (start.container, "agt", served.version)
    assert (serving.address, serving.secret, serving.usable) == ("unix:/run/x", start.secret, True)


async def test_a_job_s_container_has_neither_secret_nor_address(bench: Web) -> None:
    await bench.deploy(spec("job"))
    (start,) = bench.store.started()
    await bench.ready(start)
    assert start.secret == "" and await bench.table() == ServiceTable((), ())


async def test_it_goes_live_once_all_its_services_have_been_ready(bench: Web) -> None:
    deployment = await bench.deploy(web("a"), web("b"), spec("job"))
    first, second = bench.store.started()
    await bench.ready(first)
    assert await bench.status(deployment) == "starting" and bench.store.started() == []
    await bench.gone(first.container, LOST)  # it has shown that it starts
    assert await bench.status(deployment) == "starting" and bench.store.started() == []
    await bench.ready(second)
    assert await bench.status(deployment) == "live"


async def test_a_service_that_does_not_start_fails_the_deployment_and_leaves_the_old_one(bench: Web) -> None:
    old, (serving,) = await bench.live(web("a"))
    new = await bench.deploy(web("a"), web("b"))
    good, bad = bench.store.started()
    await bench.ready(good)
    await bench.gone(bad.container, BROKEN)
    view = await bench.store.catalog.deployment(new)
    assert (view.status, view.startup_log) == ("failed", "the end")
    assert await bench.status(old) == "live" and serving not in bench.stops()
    version = await version_of(bench.store, "b", new)
    assert bench.ended == [(bad.container, version, "starting", BROKEN)]


async def test_a_failed_start_of_a_live_service_is_told_and_changes_nothing(bench: Web) -> None:
    deployment, (container,) = await bench.live(web())
    version = (await bench.table()).live[0].version
    await bench.gone(container, LOST)
    await bench.services.want({version: 1})
    (start,) = bench.store.started()
    await bench.gone(start.container, BROKEN)
    assert await bench.status(deployment) == "live"
    assert bench.ended == [(container, version, "ready", LOST), (start.container, version, "starting", BROKEN)]
    assert len(bench.store.started()) == 1  # as long as it is wanted


async def test_as_many_as_are_wanted_are_started_and_idle_ones_end(bench: Web) -> None:
    _, (first,) = await bench.live(web(keep_warm_s=10, max_containers=2))
    version = (await bench.table()).live[0].version
    await bench.services.want({version: 1})
    assert bench.store.started() == []
    await bench.services.want({version: 5})
    (start,) = bench.store.started()
    second = await bench.ready(start)
    await bench.services.want({version: 0})
    await bench.services.used([first], {})
    await bench.store.clock.advance(11.0)
    await bench.store.fleet.sweep()
    assert bench.stops() == {second: False} and bench.rang()
    assert {each.container: each.usable for each in (await bench.table()).containers} == {first: True, second: False}
    await bench.services.used([], {first: bench.store.clock.monotonic() - 9.0})
    await bench.store.fleet.sweep()
    assert bench.stops() == {}
    await bench.store.clock.advance(1.0)
    await bench.store.fleet.sweep()
    assert bench.stops() == {first: False}
    await bench.gone(second)
    await bench.gone(first)
    assert (await bench.table()).containers == () and bench.store.started() == []


async def test_a_container_that_is_ready_says_so_again_and_keeps_its_requests(bench: Web) -> None:
    _, (container,) = await bench.live(web())
    await bench.services.used([container], {})
    await bench.store.fleet.disconnected("agt")
    bench.rang()
    assert not (await bench.table()).containers[0].usable
    news = ContainerNews(id=container, state="ready", address="unix:/elsewhere")
    await bench.store.hello(containers=[news])
    (serving,) = (await bench.table()).containers
    assert serving.usable and serving.address == "unix:/elsewhere" and bench.rang()
    assert await bench.store.rows("SELECT idle_since FROM containers") == [(None,)]


async def test_a_new_control_plane_knows_of_no_demand_and_of_no_request(bench: Web) -> None:
    _, (container,) = await bench.live(web(keep_warm_s=10, max_containers=2))
    version = (await bench.table()).live[0].version
    await bench.services.used([container], {})
    await bench.services.want({version: 1})
    await bench.store.clock.advance(100.0)
    await bench.store.fleet.restart()
    assert await bench.store.rows("SELECT wanted FROM services") == [(0,)]
    assert await bench.store.rows("SELECT idle_since FROM containers") == [(bench.store.clock.monotonic(),)]


async def test_what_is_live_no_longer_drains(bench: Web) -> None:
    old, (busy, idle) = await bench.live(web("a"), web("b"))
    await bench.services.used([busy], {})
    await bench.services.want({(await bench.table()).live[0].version: 1})
    new, _ = await bench.live(web("a"))
    assert bench.stops() == {busy: True, idle: False} and await bench.status(new) == "live"
    table = await bench.table()
    assert [served.deployment_id for served in table.live] == [new]
    assert {each.container: each.usable for each in table.containers}[busy] is False
    assert await bench.store.rows("SELECT sum(wanted) FROM services") == [(0,)]
    await bench.gone(busy)
    await bench.gone(idle)
    assert [told for _, told in await events(bench.store, old)][-2:] == ["draining", "stopped"]


async def events(store: Store, deployment: str) -> list[tuple[int, str]]:
    sql = "SELECT idx, status FROM deployment_events WHERE deployment_id = ? ORDER BY idx"
    return [(int(index), str(status)) for index, status in await store.rows(sql, deployment)]


async def test_a_deployment_that_is_started_again_shows_again_that_it_starts(bench: Web) -> None:
    deployment, (container,) = await bench.live(web())
    await bench.store.catalog.stop_app("shop")
    assert bench.stops() == {container: False} and bench.rang() and (await bench.table()).live == ()
    await bench.gone(container)
    assert await bench.deploy(web()) == deployment and await bench.status(deployment) == "starting"
    (start,) = bench.store.started()
    await bench.gone(start.container, BROKEN)
    assert await bench.status(deployment) == "failed"
    assert [told for _, told in await events(bench.store, deployment)] == [
        "building", "starting", "ready", "live", "draining", "stopped", "building", "starting", "failed",
    ]  # fmt: skip


async def test_what_runs_on_has_shown_that_its_deployment_starts(store: Store) -> None:
    """A stopped app that was deployed again while its last job still ran waited for that job, and then for ever."""
    function = await store.live()
    await store.submit(function)
    (given,) = store.taken()
    await store.report(given, began=True)
    await store.catalog.stop_app("app")
    view = await store.catalog.deploy(AppManifest(app="app", functions=[spec()]))
    assert view.status == "live"


async def test_two_agents_each_have_the_port_of_a_web_server_once(bench: Web) -> None:
    await bench.store.hello("agt_two")
    _, (container,) = await bench.live(web("site", "web_server", 8123))
    version = (await bench.table()).live[0].version
    await bench.services.want({version: 3})
    pushed = {agent for agent, frame in bench.store.frames if isinstance(frame, StartContainer)}
    (start,) = bench.store.started()
    ((agent,),) = await bench.store.rows("SELECT agent_id FROM containers WHERE id = ?", container)
    assert pushed == {"agt", "agt_two"} - {agent}
    await bench.ready(start, agent=pushed.pop())
    assert bench.store.started() == []


async def test_the_new_version_of_a_web_server_has_its_port_once_the_old_one_has_finished(bench: Web) -> None:
    _, (old,) = await bench.live(web("site", "web_server", 8123))
    await bench.services.used([old], {})
    new = await bench.deploy(web("site", "web_server", 8123, keep_warm_s=1))
    await bench.store.clock.advance(2.0)
    await bench.store.fleet.sweep()
    assert bench.stops() == {old: True} and bench.store.started() == []
    await bench.gone(old)
    (start,) = bench.store.started()
    await bench.ready(start, "port:8123")
    assert await bench.status(new) == "live"


async def test_only_a_web_server_holds_a_port(bench: Web) -> None:
    deployment = await bench.deploy(web("a", "web_server", 0), web("b", "asgi", 8123), web("c", "web_server", 8123))
    assert len(bench.store.started()) == 3
    ports = await bench.store.rows("SELECT port FROM services ORDER BY version")
    assert ports == [(None,), (None,), (8123,)] and await bench.status(deployment) == "starting"


async def test_a_job_of_a_service_is_refused(bench: Web) -> None:
    await bench.live(web())
    (view,) = await bench.store.catalog.functions("shop", "web")
    with pytest.raises(InvalidRequestError, match=r"shop\.web is an asgi service and runs no jobs") as caught:
        await bench.store.submit(view.id)
    assert caught.value.hint == "ask its URL"


async def test_a_url_is_told_of_what_is_live_once_there_is_a_gateway(bench: Web) -> None:
    old, _ = await bench.live(web(), spec("job"))
    catalog = bench.store.catalog
    assert {view.service_url for view in (await catalog.app("shop")).functions} == {None}
    catalog.gateway_url = "http://x:1"
    told = {view.name: view.service_url for view in (await catalog.app("shop")).functions}
    assert told == {"web": "http://x:1/shop/web/", "job": None}
    new = await bench.deploy(web(), web("b"))
    assert {view.service_url for view in (await catalog.deployment(new)).functions} == {None}
    for start in bench.store.started():
        await bench.ready(start)
    urls = {each.id: [view.service_url for view in each.functions] for each in await catalog.deployments("shop")}
    assert urls == {old: [None, None], new: ["http://x:1/shop/web/", "http://x:1/shop/b/"]}
    (view,) = await catalog.functions("shop", "b")
    assert view.service_url == (await catalog.function(view.id)).service_url == "http://x:1/shop/b/"


async def test_the_access_log_is_with_what_belongs_to_no_job(bench: Web) -> None:
    await bench.live(web())
    bench.rang()
    await bench.services.say(
        [
            ServiceLine(app="shop", function="web", container="gateway", text="GET / 503", at=1.0),
            ServiceLine(app="nowhere", function="web", container="gateway", text="GET / 404", at=1.0),
            ServiceLine(app="shop", function="web", container="ctr_x", text="GET / 200", at=2.0),
        ]
    )
    assert bench.store.rung == [topic("shop")]
    told = await bench.store.rows("SELECT app, idx, function, container_id, stream, text, at FROM app_lines")
    assert told == [
        ("shop", 0, "web", "gateway", "stdout", "GET / 503", 1.0),
        ("shop", 1, "web", "ctr_x", "stdout", "GET / 200", 2.0),
    ]


async def test_who_is_not_here_is_told_nothing_and_breaks_nothing(bench: Web) -> None:
    await bench.services.want({999: 2})
    await bench.services.used(["ctr_none"], {"ctr_other": 1.0})
    assert not await bench.services.any()
    await bench.live(spec("job"))
    assert not await bench.services.any()
    await bench.live(web())
    assert await bench.services.any()
    await bench.store.catalog.stop_app("shop")
    assert not await bench.services.any()


async def test_a_service_that_fits_on_no_agent_fails_its_deployment(bench: Web) -> None:
    deployment = await bench.deploy(web(cpu=999.0))
    view = await bench.store.catalog.deployment(deployment)
    assert view.status == "failed" and view.failure is not None and view.failure.kind == "unsatisfiable"


async def test_requests_are_counted_by_the_gateway_alone(bench: Web) -> None:
    """`used` must not touch the containers of job functions, whose idle times follow from their leases."""
    await bench.live(spec("job"))
    ((container, since),) = await bench.store.rows("SELECT id, idle_since FROM containers")
    await bench.services.used([container], {})
    assert await bench.store.rows("SELECT idle_since FROM containers") == [(since,)]


async def test_a_live_service_that_fits_on_no_agent_any_more_is_told_so(bench: Web) -> None:
    """Whoever waits for it would wait in vain: an agent that could run it has gone."""
    await bench.store.hello("agt_large", cpu=99.0)
    deployment, (container,) = await bench.live_on("agt_large", web(cpu=90.0))
    version = (await bench.table()).live[0].version
    await bench.store.fleet.disconnected("agt_large")
    await bench.store.clock.advance(LEASE_S + 1)
    await bench.store.fleet.sweep()
    bench.ended.clear()
    await bench.services.want({version: 1})
    ((name, told, state, failure),) = bench.ended
    assert (name, told, state) == ("", version, "starting") and container
    assert failure is not None and failure.kind == "unsatisfiable" and await bench.status(deployment) == "live"


async def test_what_was_stopped_before_it_had_started_cannot_be_activated(bench: Web) -> None:
    deployment = await bench.deploy(web())
    await bench.store.catalog.stop_app("shop")
    with pytest.raises(ConflictError, match="never started"):
        await bench.store.catalog.activate("shop", deployment)
    other, _ = await bench.live(web("other"))
    await bench.store.catalog.stop_app("shop")
    assert (await bench.store.catalog.activate("shop", other)).status == "live"
