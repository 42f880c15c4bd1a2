"""`apothic serve`, as a user runs it: what is saved is what answers."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commandbench import APOTHIC, Runs, Server, environment
from serving import WITHIN_S, Serving

APP = """
import apothic

print("importing {word}")
app = apothic.App("{name}")


@app.function()
def say() -> str:
    return "{word}"
"""


Serves = Callable[..., Serving]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def serves(home: Path, server: Server) -> Iterator[Serves]:
    started: list[Serving] = []

    def serve(target: str, *words: str) -> Serving:
        started.append(Serving(home, server, target, *words))
        return started[-1]

    yield serve
    for one in started:
        if one.process.returncode is None:
            one.end()


def written(file: Path, **words: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(APP.format(**words))


def test_what_is_saved_is_what_answers(home: Path, run: Runs, serves: Serves) -> None:
    file = home / "said.py"
    written(file, name="said", word="one")
    serving = serves("said.py")
    first = serving.event("deployed")
    assert (first["app"], first["changed"], first["sources"]) == ("said", True, [str(file)])
    assert serving.event("log")["text"] == "importing one"
    assert run("call", "said", "say").ok().out == '"one"\n'

    written(file, name="said", word="two")
    assert serving.event("changed")["files"] == [str(file)]
    second = serving.event("deployed")
    assert second["deployment_id"] != first["deployment_id"]
    assert serving.event("log")["text"] == "importing two"
    assert run("call", "said", "say").ok().out == '"two"\n'

    status, said = serving.end()
    assert status == 130
    assert f"said stays live: {second['deployment_id']}; to stop it: apothic app stop said\n" in said
    assert run("app", "show", "said", "--json").ok().json["app"]["deployment_id"] == second["deployment_id"]


def test_a_change_that_does_not_start_is_told_and_the_version_before_goes_on(
    home: Path, run: Runs, serves: Serves
) -> None:
    file = home / "broken.py"
    written(file, name="broken", word="good")
    serving = serves("broken.py")
    live = serving.event("deployed")["deployment_id"]

    # The container cannot import it, and we can: the file looks which of the two it is.
    written(file, name="broken", word="bad")
    file.write_text("import sys\nassert 'apothic.cli.main' in sys.modules, 'not there'\n" + file.read_text())
    failed = serving.event("failed")
    assert failed["error"]["code"] == "not_deployed"
    assert "not there" in failed["error"]["message"]
    assert run("call", "broken", "say").ok().out == '"good"\n'

    file.write_text("no Python\n")
    assert serving.event("failed")["error"]["code"] == "user"
    written(file, name="broken", word="better")
    assert serving.event("deployed")["deployment_id"] != live
    assert run("call", "broken", "say").ok().out == '"better"\n'

    status, said = serving.end()
    assert status == 130
    assert f"broken goes on as it was: {live}\n" in said
    assert "AssertionError: not there" in said and "SyntaxError" in said


def test_a_file_that_fails_from_the_start_is_waited_for(home: Path, serves: Serves) -> None:
    file = home / "late.py"
    file.write_text("import apothic\n")
    serving = serves("late.py", "--name", "later")
    assert "there is no app" in serving.event("failed")["error"]["message"]
    written(file, name="late", word="one")
    assert serving.event("deployed")["app"] == "later"


def test_every_file_of_a_package_is_watched(home: Path, run: Runs, serves: Serves) -> None:
    package = home / "parcel"
    written(package / "main.py", name="parcel", word="one")
    (package / "__init__.py").touch()
    (package / "__pycache__").mkdir()
    serving = serves("parcel/main.py::app")
    assert serving.event("deployed")["sources"] == [str(package)]
    (package / "__pycache__" / "main.pyc").touch()  # does not travel
    (package / "word.txt").write_text("new")
    assert serving.event("changed")["files"] == [str(package / "word.txt")]
    assert serving.event("deployed")["changed"]
    (package / "word.txt").unlink()
    assert serving.event("changed")["files"] == [str(package / "word.txt")]
    serving.event("deployed")


def test_what_cannot_be_served_ends_it(home: Path, serves: Serves) -> None:
    missing = serves("nowhere.py")
    assert missing.process.wait(WITHIN_S) == 1
    assert "there is no file nowhere.py" in missing.end()[1]
    written(home / "alone.py", name="alone", word="one")
    alone = serves("alone.py", "--url", "http://127.0.0.1:9")
    assert alone.event("failed")["error"]["code"] == "server_unavailable"
    assert alone.process.wait(WITHIN_S) == 3
    alone.end()


def test_in_words(home: Path, run: Runs, server: Server) -> None:
    written(home / "worded.py", name="worded", word="one")
    process = subprocess.Popen(
        [*APOTHIC, "serve", "worded.py"], env=environment(home, APOTHIC_DATA_DIR=str(server.data_dir)), cwd=home,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        assert process.stdout.readline().startswith("worded is live: dep_")
        assert process.stdout.readline() == "say | importing one\n"
        written(home / "worded.py", name="worded", word="two")
        assert process.stdout.readline() == f"changed: {home / 'worded.py'}\n"
        lines = [process.stdout.readline() for _ in range(2)]  # the container prints before it is proof of anything
        assert lines[0] == "say | importing two\n" and lines[1].startswith("worded is live: dep_")
    finally:
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        status = process.wait(WITHIN_S)
        process.stdout.close()
        process.stderr.close()
    assert status == 130
    assert said.startswith("watching its files; Ctrl-C ends that, and leaves the app as it is\n")
