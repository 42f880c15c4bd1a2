"""Services on the command line: where they are, that they answer, and what becomes of a change."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandbench import Runs, Server
from rig import until
from serving import Serving

SHOP = """
import apothic

app = apothic.App("{name}")


@app.endpoint(cpu=0.1)
def price(item: str = "tea") -> dict:
    return {{"item": item, "price": {price}}}


@app.asgi(cpu=0.1)
def web():
    {setup}

    async def answer(scope, receive, send):
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": b"{word}"}})

    return answer


@app.function(cpu=0.1)
def plain() -> str:
    return "a job"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def written(file: Path, *, word: str = "hello", price: int = 1, setup: str = "pass") -> None:
    file.write_text(SHOP.format(name=file.stem, word=word, price=price, setup=setup))


def got(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def test_deploy_show_and_rollback_tell_the_urls(home: Path, run: Runs) -> None:
    written(home / "told.py")
    said = run("deploy", "told.py").ok().out
    lines = dict(line.strip().split(": ", 1) for line in said.splitlines() if "http" in line)
    assert set(lines) == {"price", "web"}
    assert lines["price"].endswith("/told/price/")
    assert got(lines["price"] + "?item=bread") == '{"item":"bread","price":1}'
    assert got(lines["web"]) == "hello"
    shown = run("app", "show", "told").ok().out
    assert "endpoint" in shown and "asgi" in shown and lines["web"] in shown

    written(home / "told.py", word="goodbye")
    told = run("deploy", "told.py", "--json").ok().json
    assert told["urls"] == [lines["price"], lines["web"]]
    assert told["sources"] == [str(home / "told.py")]
    assert got(lines["web"]) == "goodbye"
    back = run("app", "rollback", "told").ok().out.splitlines()
    assert back[0].startswith("told is live: dep_")
    assert [line.strip() for line in back[1:]] == [f"{name}: {url}" for name, url in lines.items()]
    assert got(lines["web"]) == "hello"


def test_a_service_is_not_run_and_not_called(home: Path, run: Runs) -> None:
    written(home / "asked.py")
    for words in (("run", "asked.py::web"), ("call", "asked", "web")):
        run("deploy", "asked.py").ok()
        ran = run(*words)
        assert ran.status == 1
        assert "error: asked.web is an asgi service: it answers HTTP and runs no jobs\n" in ran.err
    assert "hint: curl http://127.0.0.1:" in ran.err
    assert "hint: apothic serve asked.py\n" in run("run", "asked.py::web").err
    assert run("run", "asked.py").ok().out == '"a job"\n'  # which is all there is to run


@pytest.fixture
def serving(home: Path, server: Server) -> Iterator[Serving]:
    written(home / "served.py", word="one")
    started = Serving(home, server, "served.py")
    yield started
    if started.process.returncode is None:
        started.end()


def test_what_is_saved_is_what_answers_and_what_does_not_start_is_told(home: Path, serving: Serving) -> None:
    price, web = serving.event("deployed")["urls"]
    assert got(web) == "one"
    assert serving.event("log")["text"].startswith("GET /served/web/ 200")

    written(home / "served.py", word="two")
    until(lambda: got(web) == "two", 60, "the new version")
    assert serving.event("deployed")["urls"] == [price, web]

    written(home / "served.py", word="three", setup="print('about to fail'); raise RuntimeError('no database')")
    failed = serving.event("failed")["error"]
    assert "RuntimeError: no database" in failed["message"] and "about to fail" in failed["details"]["startup_log"]
    assert got(web) == "two"

    written(home / "served.py", word="four")
    until(lambda: got(web) == "four", 60, "the version after it")
    status, said = serving.end()
    assert status == 130
    assert "served goes on as it was: dep_" in said and "served stays live: dep_" in said
    assert got(web) == "four"


def test_no_request_is_lost_while_it_is_deployed_again(home: Path, serving: Serving) -> None:
    _, web = serving.event("deployed")["urls"]
    seen: set[str] = set()
    for word in ("five", "six", "seven"):
        written(home / "served.py", word=word)
        until(lambda: seen.add(got(web)) or word in seen, 60, word)  # noqa: B023
    assert {"five", "six", "seven"} <= seen


def test_serve_starts_a_server_where_there_is_none(home: Path, tmp_path: Path) -> None:
    from commandbench import APOTHIC, environment

    written(home / "lonely.py")
    env = environment(tmp_path, APOTHIC_DATA_DIR=str(tmp_path / "data"))
    process = subprocess.Popen(
        [*APOTHIC, "serve", "lonely.py"], env=env, cwd=home, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        assert process.stdout.readline().startswith("lonely is live: dep_")
        assert process.stdout.readline().startswith("  price: http://127.0.0.1:")
        url = process.stdout.readline().strip().removeprefix("web: ")
        assert got(url) == "hello"
    finally:
        process.terminate()
        said = process.stderr.read()
        process.wait(60)
        process.stdout.close()
        process.stderr.close()
        subprocess.run([*APOTHIC, "down"], env=env, capture_output=True, check=True, timeout=60)
    assert "started a local server" in said
