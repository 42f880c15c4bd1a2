"""The real command on streams: watch, attach, follow, story, and generators that are called and run."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandbench import APOTHIC, Runs, Server, environment
from rig import asleep

PRESS = """
import os
import time

import apothic

app = apothic.App("press")


@app.function(stream_window=3)
def pages(count: int):
    for number in range(count):
        yield f"page {number}"
    return count


@app.function()
def both(count: int):
    for number in range(count):
        print("printing", number)
        yield {"page", number}


@app.function(retries=apothic.Retries(1, initial_delay_s=0))
def breaks(count: int):
    yield from range(count) if apothic.current_job().attempt > 1 else ()
    raise ValueError("out of paper")


@app.function()
def held(path: str):
    yield "first"
    while not os.path.exists(path):
        time.sleep(0.01)
    yield "second"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "press.py").write_text(PRESS)
    return folder


@pytest.fixture
def run(run: Runs, home: Path) -> Runs:
    run("deploy", home / "press.py").ok()
    return run


def ended(run: Runs, function: str, *words: object) -> str:
    """Return a job that has ended."""
    job = run("call", "press", function, *words, "--detach").ok().out.strip()
    run("job", "wait", job)
    return str(job)


def test_watch_shows_each_event_on_a_line(run: Runs) -> None:
    shown = run("job", "watch", ended(run, "pages", 2)).ok().out.splitlines()
    assert [line.split(maxsplit=1) for line in shown] == [
        ["0", "status    queued"], ["1", "status    starting (attempt 1)"], ["2", "status    running (attempt 1)"],
        ["3", 'item 0    "page 0"'], ["4", 'item 1    "page 1"'], ["5", "status    succeeded (attempt 1)"],
        ["6", "result    2 (2 items)"], ["7", "end       succeeded after 1 attempt"],
    ]  # fmt: skip


def test_watch_filters_and_goes_on_from_an_index(run: Runs) -> None:
    job = ended(run, "pages", 3)
    for types in ("stream_item", "job.stream_item"):
        shown = run("job", "watch", job, "--types", types, "--after", 4, "--json").ok().out.splitlines()
        assert [(one["event"], one["index"]) for one in map(json.loads, shown)] == [
            ("job.stream_item", 5), ("job.end", 8),
        ]  # fmt: skip


def test_watch_begins_with_a_snapshot_when_asked(run: Runs) -> None:
    (shown,) = run("job", "watch", ended(run, "pages", 2), "--snapshot").ok().out.splitlines()
    assert shown.split(maxsplit=2) == ["-", "snapshot", "succeeded (attempt 1) as of 7: 0 log lines, 2 items so far"]


def test_watch_declares_what_is_gone(run: Runs) -> None:
    shown = run("job", "watch", ended(run, "pages", 10), "--types", "stream_item").ok().out.splitlines()
    assert shown[0].split(maxsplit=2) == ["-", "reset", "7 items are gone; it goes on behind 9"]
    assert shown[1].endswith('item 7    "page 7"') and len(shown) == 5


def test_values_that_are_no_json_are_shown_and_not_unpickled(run: Runs) -> None:
    shown = run("job", "watch", ended(run, "both", 1), "--types", "log,stream_item").ok().out
    assert "printing 0" in shown and "'page'" in shown


def test_watch_and_attach_exit_with_1_for_a_job_that_failed(run: Runs) -> None:
    job = ended(run, "breaks", 1)
    watched = run("job", "watch", job, "--types", "error")
    assert watched.status == 1 and "user: ValueError: out of paper" in watched.out
    assert run("attach", f"{job}@1000").status == 1


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """What `held` waits for; it does not wait longer than the test."""
    gate = tmp_path / "gate"
    yield gate
    gate.touch()


def test_an_interrupt_prints_the_way_back(run: Runs, home: Path, server: Server, gate: Path) -> None:
    job = run("call", "press", "held", gate, "--detach").ok().out.strip()
    with subprocess.Popen(
        [*APOTHIC, "job", "watch", job, "--types", "stream_item"],
        env=environment(home, APOTHIC_DATA_DIR=str(server.data_dir)), cwd=home,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as watching:  # fmt: skip
        assert watching.stdout and watching.stderr
        assert watching.stdout.readline().endswith('"first"\n')
        asleep(watching.pid)  # an interrupt between showing an event and noting its place would show it once more
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 130
        told = watching.stderr.read()
    assert f"to go on from here: apothic attach {job}@3+i" in told and "Traceback" not in told
    gate.touch()
    shown = run(*told.splitlines()[0].split("apothic ")[1].split()).ok().out
    assert "first" not in shown and '"second"' in shown and "end" in shown


@pytest.mark.parametrize("text", ["nonsense", "job_nonsense@3", "job_" + "0" * 26 + "@x"])
def test_what_is_no_checkpoint_is_refused(run: Runs, text: str) -> None:
    ran = run("attach", text)
    assert (ran.status, ran.err.count("\n")) == (1, 2) and "checkpoint" in ran.err


def test_jobs_that_are_not_there(run: Runs) -> None:
    for words in (("job", "watch"), ("job", "story"), ("job", "logs", "-f"), ("attach",)):
        ran = run(*words, "job_" + "0" * 26)
        assert (ran.status, ran.err.count("\n")) == (1, 2), words


def test_a_filter_that_is_none_is_a_usage_error(run: Runs) -> None:
    ran = run("job", "watch", "job_" + "0" * 26, "--types", "logs")
    assert ran.status == 2 and "job.stream_item" in ran.err


def test_a_story_tells_each_attempt(run: Runs) -> None:
    job = ended(run, "breaks", 2)
    told = run("job", "story", job).ok().out
    steps = [line.split("  ")[-1].strip() for line in told.splitlines()[1:5]]
    assert steps == [
        "queued", "starting (attempt 1)", "running (attempt 1)",
        "retrying (attempt 1, backoff, user: ValueError: out of paper)",
    ]  # fmt: skip
    assert "user: ValueError: out of paper" in told and "Traceback" in told and told.endswith("2 items\n")
    document = run("job", "story", job, "--json").json
    assert document["job"]["status"] == "failed" and document["snapshot"]["counts"]["job.stream_item"] == 2
    assert [one["event"] for one in document["events"]][-3:] == ["job.status", "job.error", "job.end"]


def test_calling_a_generator_prints_what_it_yields(run: Runs) -> None:
    ran = run("call", "press", "pages", 2).ok()
    assert ran.out == '"page 0"\n"page 1"\n2\n'
    documents = [json.loads(line) for line in run("call", "press", "pages", 1, "--json").ok().out.splitlines()]
    assert documents[0]["data"]["value"]["data"] == "page 0" and documents[-1]["value"]["data"] == 1
    ran = run("run", "press.py::both", "1").ok()
    assert "'page'" in ran.out and "null" not in ran.out and "printing 0" in ran.err


def test_a_call_that_takes_too_long_is_left_to_go_on(run: Runs, gate: Path) -> None:
    ran = run("call", "press", "held", gate, "--timeout-s", "3")
    assert ran.status == 1 and '"first"' in ran.out and "hint: it goes on" in ran.err
