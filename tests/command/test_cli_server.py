"""The command and its server: up and down, who may ask, what is said when it does not work."""

from __future__ import annotations

import errno
import http.server
import json
import os
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from commandbench import APOTHIC, SHOP, Runs, Server, environment, runner
from rig import until

from apothic.cli import local
from apothic.cli.main import main as cli
from apothic.control.serve import PortRefused


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "shop.py").write_text(SHOP)
    return folder


# --- the server itself ------------------------------------------------------------------------------------------


def test_the_process_is_the_control_plane_and_says_where(server: Server) -> None:
    assert server.told["pid"] == server.process.pid
    assert server.told["data_dir"] == str(server.data_dir)
    with urllib.request.urlopen(server.told["base_url"] + "/healthz") as answer:
        assert json.load(answer)["pid"] == server.process.pid
    assert server.data_dir.stat().st_mode & 0o777 == 0o700
    assert (server.data_dir / "admin.key").stat().st_mode & 0o777 == 0o600


def test_the_gateway_is_at_an_address_of_its_own(tmp_path: Path) -> None:
    for words, told in (([], None), (["--gateway-url", "https://apps.example.org/"], "https://apps.example.org")):
        server = Server(tmp_path, *words)
        try:
            url = server.told["gateway_url"]
            assert url == told or (told is None and url.startswith("http://127.0.0.1:"))
            assert url != server.told["base_url"]
            assert json.loads((server.data_dir / "server.json").read_text())["gateway_url"] == url
            run = runner(tmp_path, APOTHIC_DATA_DIR=str(server.data_dir))
            assert run("status", "--json").ok().json["gateway_url"] == url
            assert f"services  {url}" in run("status").ok().out
            assert f"services  {url}" in run("up").ok().out
        finally:
            assert server.close() == 0


def test_a_taken_port_names_who_holds_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = runner(tmp_path)("server", "--port", port, "--gateway-port", 0, "--data-dir", tmp_path / "data")
    assert ran.status == 1
    assert f"port {port}" in ran.err and f"(pid {os.getpid()})" in ran.err and "--port 0" in ran.err
    assert ran.err.count("\n") == 2


def test_a_taken_port_of_the_gateway_is_an_error_of_the_same_kind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = runner(tmp_path)("server", "--port", 0, "--gateway-port", port, "--data-dir", tmp_path / "data")
    assert ran.status == 1 and f"port {port}" in ran.err and f"(pid {os.getpid()})" in ran.err
    assert "--gateway-port 0" in ran.err


@pytest.fixture
def without_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], int]:
    """Run the command with a server that does not come about: `end` is all it does, once an agent has begun."""
    monkeypatch.setattr(os, "environ", environment(tmp_path))
    lock, seen = tmp_path / "data" / local.AGENT_LOCK, []

    def run(end: Callable[[], None]) -> int:
        def main(*_: Any, **__: Any) -> None:
            seen.append(until(lambda: local.holder(lock)))
            end()

        monkeypatch.setattr("apothic.control.serve.main", main)
        try:
            return cli(["server", "--data-dir", str(tmp_path / "data")])
        finally:
            assert seen and not psutil.pid_exists(seen[0]) and local.holder(lock) is None

    return run


def test_an_agent_begins_before_the_server_and_ends_if_there_is_none(
    without_server: Callable[[Callable[[], None]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    def end() -> None:
        raise PortRefused(OSError(errno.EADDRINUSE, "taken"), "port")

    assert without_server(end) == 1
    assert "is taken by" in capsys.readouterr().err


def test_a_signal_before_there_is_a_server_ends_its_agent_too(
    without_server: Callable[[Callable[[], None]], int],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        without_server(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert ended.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) is before


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


def runs(pid: int) -> bool:
    """Tell whether a process has not ended. Its parent may not have asked for its status yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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
    assert ended["server"] == told["pid"] and not any(map(runs, [told["pid"], *ended.values()]))
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


def test_a_second_server_in_the_same_data_directory(server: Server, run: Runs) -> None:
    ran = run("server", "--port", "0", "--gateway-port", "0")
    assert (ran.status, ran.err.count("\n")) == (3, 2)
    assert "already" in ran.err and "apothic down" in ran.err
    assert "another agent" not in (server.data_dir / "agent.log").read_text()  # none was begun


def test_a_server_of_another_version(run: Runs, home: Path) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Apothic-Version", "99.0.0")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            ran = run("job", "list", "--base-url", f"http://127.0.0.1:{other.server_address[1]}", "--api-key", "x")
        finally:
            other.shutdown()
            thread.join()
    assert (ran.status, ran.err.count("\n")) == (3, 2)
    assert "99.0.0" in ran.err


def test_one_is_started_when_none_runs_and_says_so_in_one_line(tmp_path: Path) -> None:
    run = runner(tmp_path, APOTHIC_DATA_DIR=str(tmp_path / "data"))
    refused = run("job", "list", APOTHIC_AUTOSTART="0")
    assert (refused.status, refused.err.count("\n")) == (3, 2)
    assert not (tmp_path / "data").exists()
    try:
        ran = run("job", "list", "--json").ok()
        assert ran.json["jobs"] == [] and ran.err.count("\n") == 1 and "apothic down" in ran.err
        assert run("job", "list").ok().err == ""
    finally:
        assert run("down", "--json").ok().json["ended"]


# --- another machine's agent --------------------------------------------------------------------------------------


def test_an_agent_joins_by_url_and_key(run: Runs, server: Server, home: Path) -> None:
    key = run("key", "create", "machine", "--scope", "worker", "--json").ok().json["secret"]
    words = ["agent", "--url", server.told["base_url"], "--key", key]
    with subprocess.Popen([*APOTHIC, *words], env=environment(home), cwd=home, stderr=subprocess.PIPE) as agent:
        wait_until(lambda: agent.pid in [one["pid"] for one in run("status", "--json").ok().json["agents"]])
        assert str(agent.pid) in run("status").ok().out
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) == 0


GPU_APP = """
import apothic

app = apothic.App("drawing")


@app.function(gpu=["a100", "h100"])
def draw(n: int) -> int:
    return n + 1
"""


def test_a_function_that_asks_for_a_gpu_runs_where_one_is_declared(run: Runs, server: Server, home: Path) -> None:
    (home / "drawing.py").write_text(GPU_APP)
    refused = run("deploy", "drawing.py")
    assert refused.status == 1
    assert "no agent can ever give" in refused.err and "h100" in refused.err
    key = run("key", "create", "gpus", "--scope", "worker", "--json").ok().json["secret"]
    words = ["agent", "--url", server.told["base_url"], "--key", key, "--gpu", "t4", "--gpu", "h100"]
    with subprocess.Popen([*APOTHIC, *words], env=environment(home), cwd=home, stderr=subprocess.PIPE) as agent:
        wait_until(lambda: agent.pid in [one["pid"] for one in run("status", "--json").ok().json["agents"]])
        run("deploy", "drawing.py").ok()
        assert run("call", "drawing", "draw", 1).ok().out.strip() == "2"
        told = next(one for one in run("status", "--json").ok().json["agents"] if one["pid"] == agent.pid)
        assert (told["gpus"], told["containers"]) == (["t4", "h100"], 1)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) == 0


def test_an_agent_with_a_wrong_key_is_refused(run: Runs, server: Server) -> None:
    ran = run("agent", "--url", server.told["base_url"], "--key", "apothic_key_wrong")
    assert ran.status == 1
    assert "error: " in ran.err and "hint: " in ran.err
