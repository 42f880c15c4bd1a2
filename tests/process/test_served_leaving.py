"""An agent that leaves: its services answer until the control plane has led requests elsewhere."""

from __future__ import annotations

import asyncio

import pytest
from containerbench import Bench
from servicebench import asking, serve

CODE = "def f(): return 'here'"


@pytest.mark.parametrize("bench", [{"grace_s": 600.0}], indirect=True)
async def test_a_service_stays_until_it_is_told_to_stop(bench: Bench) -> None:
    news = await serve(bench, "endpoint", CODE)
    job = bench.start("def f(): return 1")
    await bench.ready(job)
    leaving = asyncio.create_task(bench.containers.drain("the agent leaves", 600.0))
    assert (await bench.gone(job)).state == "gone"  # what runs jobs does not wait
    async with asking(news) as http, http.get("/") as answer:
        assert await answer.text() == "here"
    assert bench.containers.news()[0].state == "ready" and not leaving.done()

    bench.containers.stop(news.id, "its requests go elsewhere", finish=True)

    assert (await bench.gone(news.id)).failure is None
    await leaving


async def test_a_service_that_nobody_stops_ends_after_the_grace(bench: Bench) -> None:
    news = await serve(bench, "endpoint", CODE)
    await bench.containers.drain("the agent leaves", 0.3)
    assert (await bench.gone(news.id)).failure is None
    assert bench.containers.live == {}


@pytest.mark.parametrize("bench", [{"grace_s": 600.0}], indirect=True)
async def test_a_control_plane_that_ends_itself_leads_no_requests(bench: Bench) -> None:
    news = await serve(bench, "endpoint", CODE)
    leaving = asyncio.create_task(bench.containers.drain("the agent leaves", 600.0))
    bench.containers.release()
    assert (await bench.gone(news.id)).failure is None
    await leaving


async def test_services_of_an_agent_elsewhere_are_told_by_their_relay(bench: Bench) -> None:
    bench.containers.site.relay = "10.0.0.7:4711"
    news = await serve(bench, "endpoint", CODE, secret="s")
    assert news.address == "relay:10.0.0.7:4711"
    assert bench.containers.news()[0].address == news.address
    assert bench.containers.live[news.id].door.secret == "s"  # type: ignore[union-attr]
