"""Applications that know nothing of us: `httpbin`, Starlette with all it can do, FastAPI's own pages in a browser."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import others
import pytest
import swagger_ui
import websockets
from browsers import browsing
from playwright.async_api import Route
from rig import Server

SWAGGER = Path(swagger_ui.__file__).parent / "static"


@pytest.fixture(scope="module")
def gateway(server: Server) -> Iterator[str]:
    with server.lending(others.app):
        yield server.gateway_url


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:  # also of an address
        yield session


# --- httpbin


async def test_httpbin_sees_what_was_sent_and_where_it_is(gateway: str, http: aiohttp.ClientSession) -> None:
    url = f"{gateway}/others/bin"
    async with http.post(f"{url}/anything/a/b?x=1&x=2", json={"k": "ü"}, headers={"X-Mine": "1"}) as answer:
        told = await answer.json()
    assert told["url"] == f"{url}/anything/a/b?x=1&x=2"
    assert told["args"] == {"x": ["1", "2"]} and told["json"] == {"k": "ü"} and told["method"] == "POST"
    assert told["headers"]["X-Mine"] == "1" and told["origin"] == "127.0.0.1"


async def test_httpbin_redirects_below_its_mount_and_keeps_cookies(gateway: str, http: aiohttp.ClientSession) -> None:
    url = f"{gateway}/others/bin"
    async with http.get(f"{url}/redirect/3") as answer:
        assert str(answer.url) == f"{url}/get" and len(answer.history) == 3
    async with http.get(f"{url}/cookies/set?flavour=oat") as answer:
        assert (await answer.json())["cookies"] == {"flavour": "oat"}


async def test_httpbin_answers_in_all_its_ways(gateway: str, http: aiohttp.ClientSession) -> None:
    url = f"{gateway}/others/bin"
    for status in (200, 204, 304, 404, 418, 500, 503):
        async with http.get(f"{url}/status/{status}") as answer:
            assert answer.status == status
    for coding in ("gzip", "deflate"):
        async with http.get(f"{url}/{coding}") as answer:
            assert (await answer.json())["method"] == "GET" and answer.headers["content-encoding"] == coding
    async with http.get(f"{url}/range/1000", headers={"Range": "bytes=10-19"}) as answer:
        assert answer.status == 206 and await answer.read() == b"klmnopqrst"
    async with http.get(f"{url}/stream/5") as answer:
        assert [json.loads(line)["id"] async for line in answer.content] == list(range(5))
    async with http.get(f"{url}/bytes/100000?seed=1") as answer:
        assert len(await answer.read()) == 100_000
    async with http.get(f"{url}/basic-auth/me/secret", headers={"Authorization": "Basic bWU6c2VjcmV0"}) as answer:
        assert (await answer.json())["authenticated"] is True
    async with http.head(f"{url}/get") as answer:
        assert answer.status == 200 and await answer.read() == b""
    async with http.options(f"{url}/get") as answer:
        assert "GET" in answer.headers["allow"]


# --- Starlette


async def test_starlette_makes_links_to_itself(gateway: str, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{gateway}/others/star/") as answer:
        link = await answer.text()
    assert link == f"{gateway}/others/star/whole"
    async with http.get(link) as answer:
        assert await answer.read() == Path(asyncio.__file__).read_bytes() and "etag" in answer.headers
    async with http.get(link, headers={"Range": "bytes=0-9"}) as answer:
        assert answer.status == 206 and len(await answer.read()) == 10


async def test_starlette_talks_over_websockets(gateway: str) -> None:
    url = f"{gateway.replace('http', 'ws')}/others/star/room"
    async with websockets.connect(url) as one, websockets.connect(url) as other:
        for link, text in ((one, "hello"), (other, "é" * 50_000), (one, "again")):
            await link.send(text)
            assert json.loads(await link.recv()) == {"heard": text, "at": url}


async def test_starlette_sends_events_as_they_come(gateway: str, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{gateway}/others/star/ticks") as answer:
        assert answer.content_type == "text/event-stream"
        lines = [line.decode().strip() async for line in answer.content]
    assert [line for line in lines if line.startswith("data")] == [f"data: tick {n}" for n in range(3)]


async def test_background_tasks_go_on_when_the_client_has_left(gateway: str) -> None:
    url = f"{gateway}/others/star/later"
    async with aiohttp.ClientSession() as leaving, leaving.get(f"{url}?name=first") as answer:
        assert await answer.json() == []
    async with asyncio.timeout(30), aiohttp.ClientSession() as http:
        told: list[str] = []
        while "first" not in told:
            async with http.get(f"{url}?name=other") as answer:
                told = await answer.json()


async def test_files_are_uploaded(gateway: str, http: aiohttp.ClientSession) -> None:
    content = b"0123456789abcdef" * 100_000
    form = aiohttp.FormData({"word": "ångström"})
    form.add_field("large", io.BytesIO(content), filename="large.bin")
    form.add_field("empty", io.BytesIO(b""), filename="empty")
    async with http.post(f"{gateway}/others/star/upload", data=form) as answer:
        told = await answer.json()
    assert told["fields"] == ["ångström"]
    for name, sent in {"large": content, "empty": b""}.items():
        assert told["files"][name][1] == hashlib.sha256(sent).hexdigest()


# --- FastAPI, in a browser


async def from_here(route: Route) -> None:
    """Answer for the network of elsewhere, from which FastAPI's page loads its script: the wheel has the same files."""
    file = SWAGGER / route.request.url.rpartition("/")[2]
    await (route.fulfill(path=file) if file.is_file() else route.abort())


async def test_fastapis_pages_work_in_a_browser(gateway: str, tmp_path: Path) -> None:
    async with browsing() as page:
        await page.route(re.compile("^https:"), from_here)
        await page.goto(f"{gateway}/others/price/docs")
        title = await page.title()
        await page.wait_for_selector(".opblock")
        await page.click(".opblock-summary-control")
        await page.click("text=Try it out")
        await page.fill("tr[data-param-name=pieces] input", "3")
        await page.fill("tr[data-param-name=each] input", "2.5")
        await page.click("text=Execute")
        await page.wait_for_selector(".live-responses-table .response-col_status >> text=200")
        body = await page.inner_text(".live-responses-table .response-col_description pre")
        await page.screenshot(path=str(tmp_path / "docs.png"), full_page=True)
    assert json.loads(body) == {"total": 7.5, "currency": "SEK"}
    assert "others" in title or "price" in title
