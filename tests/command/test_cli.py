"""The real command against a real server: apps, functions and jobs; text, JSON and exit status."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from commandbench import APOTHIC, SHOP, Runs, Server, environment


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "shop.py").write_text(SHOP)
    return folder


@pytest.fixture
def shop(home: Path, run: Runs) -> str:
    run("deploy", home / "shop.py").ok()
    return "shop"


# --- apps -------------------------------------------------------------------------------------------------------


def test_deploy_shows_what_changed(home: Path, run: Runs) -> None:
    file = home / "changing.py"
    head = "import apothic\napp = apothic.App('changing')\n"
    one = "@app.function()\ndef one():\n    return 1\n"
    two = "@app.function()\ndef two():\n    return 2\n"
    file.write_text(head + one)
    first = run("deploy", file).ok().out
    assert "changing is live: dep_" in first and "+ one" in first
    again = run("deploy", f"{file}::app", "--json").ok().json
    assert not again["changed"] and again["changes"] == {} and again["deployment_id"] in first
    file.write_text(head + one.replace("function()", "function(timeout_s=5)") + two)
    second = run("deploy", file, "--json").ok().json
    assert second["changed"] and second["changes"] == {"two": "+", "one": "~"}
    shown = run("app", "show", "changing", "--json").ok().json
    assert [one["id"] for one in shown["deployments"] if one["live"]] == [second["deployment_id"]]
    back = run("app", "rollback", "changing", "--json").ok().json
    assert back["id"] == again["deployment_id"]
    assert "changing" in run("apps", "list").ok().out
    assert "is stopped" in run("app", "stop", "changing").ok().out
    assert "stopped" in run("app", "show", "changing").ok().out
    ran = run("call", "changing", "one")
    assert ran.status == 1 and "app 'changing' is stopped" in ran.err and "apothic app rollback" in ran.err


def test_deploy_under_another_name(home: Path, run: Runs) -> None:
    (home / "named.py").write_text(
        "import apothic\napp = apothic.App('named')\n@app.function()\ndef f():\n    return 1\n"
    )
    assert run("deploy", home / "named.py", "--name", "other", "--json").ok().json["app"] == "other"
    assert run("call", "other", "f").ok().out == "1\n"
    assert run("app", "show", "named").status == 1


def test_an_app_with_a_client_of_its_own_goes_there(home: Path, run: Runs, server: Server) -> None:
    (home / "bound.py").write_text(
        "import apothic\n"
        f"there = apothic.ControlPlaneClient({server.told['base_url']!r})\n"
        "app = apothic.App('bound', client=there)\n@app.function()\ndef f():\n    return 'there'\n"
    )
    nowhere = {"APOTHIC_BASE_URL": "http://127.0.0.1:9"}
    assert "+ f" in run("deploy", "bound.py", **nowhere).ok().out
    ran = run("run", "bound.py::f", **nowhere).ok()
    assert (ran.out, ran.err) == ('"there"\n', "")


def test_a_module_that_cannot_be_imported_there(home: Path, run: Runs) -> None:
    (home / "only_here.py").write_text(
        "import os\nimport apothic\nprint('starting up')\nassert os.environ['ONLY_HERE']\n"
        "app = apothic.App('only_here')\n@app.function()\ndef f():\n    return 1\n"
    )
    ran = run("deploy", home / "only_here.py", ONLY_HERE="1")
    assert ran.status == 1
    assert "KeyError" in ran.err and "only_here.py" in ran.err and "\nhint: " in ran.err


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("nowhere.py", "there is no file nowhere.py"),
        ("shop.py::nothing", "there is no app 'nothing'"),
    ],
)
def test_what_cannot_be_deployed(run: Runs, target: str, told: str) -> None:
    ran = run("deploy", target)
    assert (ran.status, ran.err.count("\n")) == (1, 2)
    assert told in ran.err


# --- run and call -----------------------------------------------------------------------------------------------


def test_run_a_function(run: Runs) -> None:
    ran = run("run", "shop.py::add", "40").ok()
    assert ran.out == "42\n"
    assert "adding 40 2" in ran.err and "to stderr" in ran.err and "\x1b" not in ran.err
    assert run("run", "shop.py::add", "--b", "5", "-1").ok().out == "4\n"
    assert run("run", "shop.py::shout", "hey", "--times", "2", "--loud").ok().out == '"HEYHEY"\n'
    told = run("run", "shop.py::add", "40", "--json").ok().json
    assert (told["value"]["data"], told["job"]["status"]) == (42, "succeeded")


def test_run_a_local_entrypoint(run: Runs) -> None:
    ran = run("run", "shop.py::main", "40").ok()
    assert ran.out == "total 42\n"
    assert "adding 40 2" in ran.err  # what its jobs print is shown too
    assert "total 84\n" in run("run", "shop.py::main", "--a", "40", "--twice").ok().out
    ran = run("run", "shop.py::break-it")
    assert ran.status == 1
    assert 'shop.py", line' in ran.err and "KeyError: 'missing'" in ran.err and "cli/" not in ran.err


def test_run_says_what_there_is(run: Runs) -> None:
    ran = run("run", "shop.py")
    assert (ran.status, ran.err.count("\n")) == (1, 2)
    assert "main" in ran.err and "break-it" in ran.err
    assert run("run", "shop.py::nothing").status == 1
    assert "--twice" in run("run", "shop.py::main", "--help").ok().out


def test_run_refuses_wrong_arguments(run: Runs) -> None:
    for words, told in ((["x"], "'x' is no int"), ([], "a (int) is missing"), (["1", "--c", "2"], "--c")):
        ran = run("run", "shop.py::add", *words)
        assert (ran.status, ran.err.count("\n")) == (2, 2), ran.err
        assert told in ran.err


def test_a_remote_exception_is_shown_with_file_line_and_source(run: Runs, shop: str) -> None:
    for words in (["run", "shop.py::fail", "bread"], ["call", shop, "fail", "bread"]):
        ran = run(*words)
        assert (ran.status, ran.out) == (1, "")
        line = SHOP.splitlines().index('    raise ValueError(f"no {word} here")') + 1
        assert 'shop.py", line ' + str(line) in ran.err and "raise ValueError(f" in ran.err
        assert "error: ValueError: no bread here\nhint: " in ran.err


def test_call(run: Runs, shop: str) -> None:
    assert run("call", shop, "add", "1", "--kw", "b=-3").ok().out == "-2\n"
    assert run("call", shop, "shout", "plain words").ok().out == '"plain words"\n'
    assert run("call", shop, "price").ok().out == "Price(7)\n"
    assert run("call", shop, "add", "1", "--json").ok().json["value"]["data"] == 3


def test_call_what_is_not_there(run: Runs, shop: str) -> None:
    ran = run("call", shop, "ad", "1")
    assert ran.status == 1 and "did you mean add?" in ran.err
    ran = run("call", "shpo", "add")
    assert ran.status == 1 and "'shpo'" in ran.err and "Traceback" not in ran.err


# --- jobs -------------------------------------------------------------------------------------------------------


def test_jobs(run: Runs, shop: str, tmp_path: Path) -> None:
    job = run("call", shop, "wait_for", tmp_path / "it", "--detach").ok().out.strip()
    late = run("job", "wait", job, "--timeout-s", "0.1")
    assert late.status == 1 and "goes on" in late.err
    assert job in run("jobs", "list", "--app", shop).ok().out
    (tmp_path / "it").write_text("")
    assert run("job", "wait", job).ok().out == '"it came"\n'
    shown = run("job", "show", job).ok().out
    assert "succeeded" in shown and "shop.wait_for" in shown
    assert run("job", "show", job, "--json").ok().json["status"] == "succeeded"
    assert run("job", "logs", job).ok().out == "waiting\n"
    assert json.loads(run("job", "logs", "-f", job, "--json").ok().out)["text"] == "waiting"
    assert "is succeeded" in run("job", "cancel", job).ok().out


def test_cancel(run: Runs, shop: str, tmp_path: Path) -> None:
    job = run("call", shop, "wait_for", tmp_path / "never", "--detach").ok().out.strip()
    assert run("job", "cancel", job, "--json").ok().json["status"] in ("cancelled", "cancelling")
    ended = run("job", "wait", job, "--json")
    assert (ended.status, ended.json["job"]["status"]) == (1, "cancelled")


def test_a_job_that_is_not_there(run: Runs) -> None:
    for command in ("show", "logs", "wait", "cancel"):
        ran = run("job", command, "job_" + "0" * 26)
        assert (ran.status, ran.err.count("\n")) == (1, 2), command


def test_logs_are_followed_while_the_job_runs(run: Runs, home: Path, server: Server, shop: str, tmp_path: Path) -> None:
    job = run("call", shop, "wait_for", tmp_path / "it", "--detach").ok().out.strip()
    with subprocess.Popen(
        [*APOTHIC, "job", "logs", "-f", job], env=environment(home, APOTHIC_DATA_DIR=str(server.data_dir)), cwd=home,
        stdout=subprocess.PIPE, text=True,
    ) as following:  # fmt: skip
        assert following.stdout
        assert following.stdout.readline() == "waiting\n"
        assert following.poll() is None
        (tmp_path / "it").write_text("")
        assert following.wait(60) == 0


def test_an_interrupt_leaves_the_job_and_says_so(
    run: Runs, home: Path, server: Server, shop: str, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [*APOTHIC, "run", "shop.py::wait_for", str(tmp_path / "it")],
        env=environment(home, APOTHIC_DATA_DIR=str(server.data_dir)), cwd=home, stderr=subprocess.PIPE, text=True,
    ) as waiting:  # fmt: skip
        assert waiting.stderr
        assert waiting.stderr.readline() == "waiting\n"
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(60) == 130
        told = waiting.stderr.read()
    assert "goes on" in told and "apothic job cancel job_" in told and "Traceback" not in told
    (tmp_path / "it").write_text("")
    assert run("job", "wait", told.split("apothic job cancel ")[1].split()[0]).ok()
