"""Schedules on a real server: jobs come by themselves, and the command shows them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandbench import Runs, Server

from apothic import ControlPlaneClient, Cron, Function, Job, Period
from apothic.protocol import messages as m
from apothic.protocol.routes import LIST_JOBS

WAIT_S = 60.0
ROUNDS = """
import apothic

app = apothic.App("rounds")


@app.function(schedule=apothic.Period(seconds=1))
def beat(word: str = "tick"):
    print(word, apothic.current_job().id)
    return word


@app.function(schedule=apothic.Period(seconds=1))
def items():
    yield from range(3)


@app.function(schedule=apothic.Cron("0 7 * * 1", timezone="Europe/Berlin"))
def weekly():
    return "never in this test"


@app.function()
def plain():
    return "when asked"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    (folder / "rounds.py").write_text(ROUNDS)
    return folder


@pytest.fixture
def client(server: Server) -> Iterator[ControlPlaneClient]:
    key = (server.data_dir / "admin.key").read_text().strip()
    with ControlPlaneClient(server.told["base_url"], api_key=key, timeout_s=WAIT_S) as made:
        yield made


def listed(client: ControlPlaneClient) -> list[m.JobView]:
    found: m.JobList = client.ask_blocking(LIST_JOBS, m.ListJobs(app="rounds"))
    return found.jobs


def shown(run: Runs) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in run("app", "show", "rounds", "--json").ok().json["app"]["functions"]}


def test_jobs_come_by_themselves_and_are_shown(home: Path, run: Runs, client: ControlPlaneClient) -> None:
    run("deploy", home / "rounds.py").ok()
    deadline = time.monotonic() + WAIT_S
    done: dict[str, m.JobView] = {}
    while len(done) < 2 or len(listed(client)) < 6:
        assert time.monotonic() < deadline, listed(client)
        done = {job.function: job for job in listed(client) if job.status == "succeeded"}
    assert set(done) == {"beat", "items"} == {job.function for job in listed(client)}
    job = Job.attach(done["beat"].id, client=client)
    assert job.wait() == "tick" and list(job.logs()) == [f"tick {job.job_id}"]
    assert list(Job.attach(done["items"].id, client=client).wait_gen()) == [0, 1, 2]

    functions = shown(run)
    last = functions["beat"]["last_tick"]
    assert last["outcome"] in ("job", "overlap", "missed") and functions["beat"]["next_tick"] > last["at"]
    assert (functions["weekly"]["last_tick"], functions["plain"]["next_tick"]) == (None, None)
    text = run("app", "show", "rounds").ok().out
    assert "SCHEDULED  SCHEDULE" in text
    assert "every 0:00:01" in text and "0 7 * * 1 Europe/Berlin" in text and text.count("plain") == 1

    assert Function.from_name("rounds", "weekly", client=client).schedule == Cron("0 7 * * 1", timezone="Europe/Berlin")
    assert Function.from_name("rounds", "beat", client=client).schedule == Period(seconds=1)
    assert Function.from_name("rounds", "plain", client=client).schedule is None


def test_none_come_once_the_app_is_stopped(home: Path, run: Runs, client: ControlPlaneClient) -> None:
    run("deploy", home / "rounds.py").ok()
    run("app", "stop", "rounds").ok()
    jobs = [job.id for job in listed(client)]
    deadline = time.monotonic() + 2.0  # in which four would have come
    while time.monotonic() < deadline:
        assert [job.id for job in listed(client)] == jobs
    assert shown(run) == {}
