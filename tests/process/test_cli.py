"""The real command against a real server: every command, its text, its JSON, its exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from apothic.cli import local

SOURCE = str(Path(__file__).resolve().parents[2] / "src")
APOTHIC = [sys.executable, "-m", "apothic"]

SHOP = """
import os
import sys
import time

import apothic

app = apothic.App("shop")


class Price:
    def __repr__(self):
        return "Price(7)"


@app.function()
def add(a: int, b: int = 2) -> int:
    print("adding", a, b)
    print("\\x1b[31mto stderr", file=sys.stderr)
    return a + b


@app.function()
def price():
    return Price()


@app.function()
def shout(text: str, *, times: int = 1, loud: bool = False) -> str:
    return (text.upper() if loud else text) * times


@app.function()
def fail(word: str):
    print("about to fail")
    raise ValueError(f"no {word} here")


@app.function()
def wait_for(path: str):
    print("waiting")
    while not os.path.exists(path):
        time.sleep(0.01)
    return "it came"


@app.local_entrypoint()
def main(a: int, twice: bool = False):
    total = app.functions["add"].remote(a)
    print("total", total * (2 if twice else 1))


@app.local_entrypoint(name="break-it")
def break_it():
    return {}["missing"]
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("APOTHIC_")}
    return kept | {"HOME": str(home), "PYTHONPATH": SOURCE, "COLUMNS": "120"} | more


class Ran:
    """One run of the command."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def ok(self) -> Ran:
        assert self.status == 0, self.out + self.err
        return self


Runs = Callable[..., Ran]


def runner(home: Path, **env: str) -> Runs:
    def run(*words: object, **more: str) -> Ran:
        command = [*APOTHIC, *(str(word) for word in words)]
        done = subprocess.run(
            command, env=environment(home, **env) | more, cwd=home, capture_output=True, text=True, timeout=90
        )
        assert "Traceback" not in done.stderr or "--traceback" in words or 'File "' in done.stderr
        return Ran(done)

    return run


class Server:
    """A server in the foreground, in a process of its own."""

    def __init__(self, home: Path, *words: str) -> None:
        self.data_dir = home / "data"
        command = [
            *APOTHIC,
            "server",
            "--json",
            "--port",
            "0",
            "--gateway-port",
            "0",
            "--data-dir",
            str(self.data_dir),
            *words,
        ]
        self.process = subprocess.Popen(command, env=environment(home), cwd=home, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.told = json.loads(self.process.stdout.readline())

    def close(self) -> int:
        assert self.process.stdout
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        self.process.stdout.close()
        end_agent(self.data_dir)
        return status


def end_agent(data_dir: Path) -> None:
    pid = local.holder(data_dir / local.AGENT_LOCK)
    if pid:
        local.end(pid, 30)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "shop.py").write_text(SHOP)
    return folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    running = Server(home)
    yield running
    running.close()


@pytest.fixture
def run(home: Path, server: Server) -> Runs:
    return runner(home, APOTHIC_DATA_DIR=str(server.data_dir))


@pytest.fixture
def shop(home: Path, run: Runs) -> str:
    run("deploy", home / "shop.py").ok()
    return "shop"


# --- the server itself ------------------------------------------------------------------------------------------


def test_the_process_is_the_control_plane_and_says_where(server: Server) -> None:
    assert server.told["pid"] == server.process.pid
    assert server.told["data_dir"] == str(server.data_dir)
    with urllib.request.urlopen(server.told["base_url"] + "/healthz") as answer:
        assert json.load(answer)["pid"] == server.process.pid
    assert server.data_dir.stat().st_mode & 0o777 == 0o700
    assert (server.data_dir / "admin.key").stat().st_mode & 0o777 == 0o600


def test_a_taken_port_names_who_holds_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = runner(tmp_path)("server", "--port", port, "--gateway-port", 0, "--data-dir", tmp_path / "data")
    assert ran.status == 1
    assert f"port {port}" in ran.err and f"(pid {os.getpid()})" in ran.err and "--port 0" in ran.err
    assert ran.err.count("\n") == 2


def test_a_data_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for command in ("server", "up"):
        ran = runner(tmp_path)(command, "--port", 0, "--data-dir", tmp_path / "file/data")
        assert (ran.status, ran.err.count("\n")) == (1, 2)
        assert "cannot be written" in ran.err and "hint: " in ran.err


def test_sigterm_ends_server_and_agent(tmp_path: Path) -> None:
    running = Server(tmp_path)
    children = psutil.Process(running.process.pid).children(recursive=True)
    agent = local.holder(running.data_dir / local.AGENT_LOCK)
    assert running.process.stdout
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
    running.process.stdout.close()
    gone, alive = psutil.wait_procs(
        [*children, *([psutil.Process(agent)] if agent and psutil.pid_exists(agent) else [])], 30
    )
    assert not alive and gone is not None
    assert local.running(running.data_dir) is None


def test_up_status_down(tmp_path: Path) -> None:
    run = runner(tmp_path, APOTHIC_DATA_DIR=str(tmp_path / "data"))
    before = run("status", "--json")
    assert (before.status, before.json["running"]) == (3, False)
    told = run("up", "--port", 0, "--gateway-port", 0, "--json").ok().json
    try:
        assert psutil.Process(told["pid"]).is_running()
        assert os.getsid(told["pid"]) == told["pid"]
        again = run("up", "--json").ok().json
        assert again["pid"] == told["pid"] and again["base_url"] == told["base_url"]
        now = run("status", "--json").ok().json
        assert now["running"] and now["base_url"] == told["base_url"] and now["health"]["pid"] == told["pid"]
        assert told["base_url"] in run("status").ok().out
    finally:
        ended = run("down", "--json").ok().json["ended"]
    assert ended["server"] == told["pid"] and not any(map(psutil.pid_exists, ended.values()))
    assert not psutil.pid_exists(told["pid"])
    assert local.holder(tmp_path / "data" / local.AGENT_LOCK) is None
    assert "nothing was running" in run("down").ok().out


def test_up_tells_why_the_server_did_not_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = runner(tmp_path)("up", "--port", port, "--gateway-port", 0, "--data-dir", tmp_path / "data")
    assert ran.status == 1
    assert f"port {port}" in ran.err and "--port 0" in ran.err


def test_down_after_the_server_was_killed_ends_the_agent(tmp_path: Path) -> None:
    run = runner(tmp_path, APOTHIC_DATA_DIR=str(tmp_path / "data"))
    pid = run("up", "--port", 0, "--gateway-port", 0, "--json").ok().json["pid"]
    wait_until(lambda: bool(run("status", "--json").ok().json["agents"]))
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 30)
    assert set(run("down", "--json").ok().json["ended"]) == {"agent"}
    assert local.holder(tmp_path / "data" / local.AGENT_LOCK) is None


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(200):
        if true():
            return
    raise AssertionError("it never came true")


# --- who may ask ------------------------------------------------------------------------------------------------


def test_no_server(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    ran = runner(tmp_path)("job", "list", "--json", "--base-url", f"http://127.0.0.1:{port}", "--api-key", "x")
    assert (ran.status, ran.json["error"]["code"], ran.err.count("\n")) == (3, "server_unavailable", 2)
    assert str(port) in ran.err


def test_a_wrong_key(run: Runs, server: Server) -> None:
    ran = run("job", "list", "--json", "--api-key", "apothic_key_wrong", "--base-url", server.told["base_url"])
    assert (ran.status, ran.json["error"]["code"], ran.err.count("\n")) == (1, "auth", 2)


def test_keys(run: Runs, server: Server) -> None:
    made = run("key", "create", "laptop", "--json").ok().json
    url = server.told["base_url"]
    assert run("app", "list", APOTHIC_API_KEY=made["secret"], APOTHIC_BASE_URL=url).ok()
    assert made["key"]["id"] in run("keys", "list").ok().out
    assert made["secret"] not in run("keys", "list", "--json").ok().out
    assert "is revoked" in run("key", "revoke", made["key"]["id"]).ok().out
    assert run("app", "list", APOTHIC_API_KEY=made["secret"], APOTHIC_BASE_URL=url).status == 1
    shown = run("key", "create", "once").ok()
    assert shown.out.startswith("apothic_") and shown.out.count("\n") == 1


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


def test_deploy_under_another_name(home: Path, run: Runs) -> None:
    (home / "named.py").write_text(
        "import apothic\napp = apothic.App('named')\n@app.function()\ndef f():\n    return 1\n"
    )
    assert run("deploy", home / "named.py", "--name", "other", "--json").ok().json["app"] == "other"
    assert run("call", "other", "f").ok().out == "1\n"
    assert run("app", "show", "named").status == 1


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
    assert "total 42\n" in run("run", "shop.py::main", "40").ok().out
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
