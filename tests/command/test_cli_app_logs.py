"""`apothic app logs`, as a user runs it: what no job printed is not lost."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from commandbench import APOTHIC, Runs, Server, environment

TALKER = """
import os
import time

import apothic

print("importing")
app = apothic.App("talker")


@app.function(concurrent_requests=2)
def both(folder: str, mine: str, other: str):
    open(os.path.join(folder, mine), "w").close()
    while not os.path.exists(os.path.join(folder, other)):
        time.sleep(0.01)
    print("Python says", mine)
    os.write(1, f"the descriptor says {mine}\\n".encode())
    open(os.path.join(folder, mine + "-written"), "w").close()
    while not os.path.exists(os.path.join(folder, other + "-written")):
        time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "talker.py").write_text(TALKER)
    return folder


def test_what_no_job_printed_is_shown_with_its_app(run: Runs, tmp_path: Path, server: Server) -> None:
    run("deploy", "talker.py").ok()
    assert run("app", "logs", "talker").ok().out == "both | importing\n"
    following = subprocess.Popen(
        [*APOTHIC, "app", "logs", "talker", "-f", "--json"],
        env=environment(tmp_path, APOTHIC_DATA_DIR=str(server.data_dir)), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert following.stdout is not None
    try:
        assert json.loads(following.stdout.readline())["text"] == "importing"
        jobs = [
            run("call", "--detach", "talker", "both", tmp_path, *names).ok().out.strip()
            for names in (("a", "b"), ("b", "a"))
        ]
        for job in jobs:
            run("job", "wait", job).ok()
        lines = [json.loads(following.stdout.readline()) for _ in range(2)]
        assert {line["text"] for line in lines} == {"the descriptor says a", "the descriptor says b"}
        assert [line["line"] for line in lines] == [1, 2]
    finally:
        following.kill()
        following.wait()
        following.stdout.close()
    assert [run("job", "logs", job).ok().out for job in jobs] == ["Python says a\n", "Python says b\n"]
    assert run("app", "logs", "talker", "--function", "none").ok().out == ""


def test_logs_of_an_app_that_is_not_there(run: Runs) -> None:
    missing = run("app", "logs", "nobody")
    assert missing.status == 1
    assert "there is no app 'nobody'" in missing.err
