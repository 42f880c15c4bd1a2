"""Readers that are none of ours: a browser's own `EventSource`, and `curl` read by an independent library."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import sseclient
from browsers import browsing
from playwright.async_api import Page
from proxy import Proxy, proxied
from rig import Server
from yields import count, paced

from apothic import Job
from apothic.protocol import messages as m
from apothic.protocol import routes

FOLLOW = """url => {
    window.told = []; window.opened = 0;
    const source = window.source = new EventSource(url);
    source.onopen = () => window.opened++;
    for (const type of ["log", "stream_item", "status", "result", "error", "end", "reset"])
        source.addEventListener("job." + type, event =>
            window.told.push([event.type, event.lastEventId, JSON.parse(event.data)]));
}"""


pytestmark = pytest.mark.usefixtures("yielding")


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    async with browsing() as page:
        yield page


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxied(server.base_url) as proxy:
        yield proxy


async def stream_url(server: Server, job: Job) -> str:
    return (await server.client().ask(routes.STREAM_TOKEN, m.CreateStreamToken(job=job.job_id))).url


async def test_an_event_source_goes_on_by_itself_and_misses_nothing(server: Server, page: Page, proxy: Proxy) -> None:
    job = await paced.aio.spawn(300, 0.01)
    await page.goto(f"{proxy.base_url}/docs")
    await page.evaluate(FOLLOW, await stream_url(server, job))
    cuts = 0
    for seen in (60, 150, 240):
        await page.wait_for_function(f"window.told.length >= {seen}")
        cuts += bool(proxy.cut())
    await page.wait_for_function('window.told.some(([type]) => type === "job.end")')
    await page.wait_for_function("window.source.readyState === EventSource.CLOSED")  # the 204 behind the end
    told: list[tuple[str, str, dict[str, Any]]] = await page.evaluate("window.told")
    assert cuts == 3 and await page.evaluate("window.opened") >= 4
    assert [int(place) for _, place, _ in told] == list(range(len(told)))
    items = [data for kind, _, data in told if kind == "job.stream_item"]
    assert [item["value"]["data"] for item in items] == list(range(300))
    assert [kind for kind, _, _ in told[-3:]] == ["job.status", "job.result", "job.end"]


async def test_a_page_of_another_origin_reads_nothing(server: Server, page: Page, proxy: Proxy) -> None:
    job = await count.aio.spawn(1)
    await page.goto(f"{proxy.base_url}/docs")
    await page.evaluate(FOLLOW, server.base_url + await stream_url(server, job))
    await page.wait_for_function("window.source.readyState === EventSource.CLOSED")
    assert await page.evaluate("window.told") == []


def test_what_curl_prints_is_read_by_another_library(server: Server) -> None:
    job = count.spawn(50)
    job.wait()
    key = (server.data_dir / "admin.key").read_text().strip()
    command = ["curl", "-sN", "-H", f"Authorization: Bearer {key}", f"{server.base_url}/v1/jobs/{job.job_id}/events"]
    printed = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    told = [event for event in sseclient.SSEClient([printed]).events() if event.data]
    assert [int(event.id) for event in told] == list(range(len(told)))
    items = [json.loads(event.data) for event in told if event.event == "job.stream_item"]
    assert [item["value"]["data"] for item in items] == list(range(50))
    assert told[-1].event == "job.end"
