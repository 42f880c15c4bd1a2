"""The server that a client finds by its data directory, and starts when none is running there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rig import Server, end_leftovers, environment

from apothic import App, ControlPlaneClient
from apothic.client import embedded
from apothic.errors import ServerUnavailableError
from apothic.protocol import messages as m
from apothic.protocol import routes

PROGRAM = """
import apothic
app = apothic.App("six-lines")

@app.function()
def triple(number: int) -> int:
    return 3 * number

if __name__ == "__main__":
    print(triple.remote(14))
"""


class Home:
    """A user's machine: a home, a data directory, a script."""

    def __init__(self, root: Path) -> None:
        self.data_dir = root / "data"
        self.home = root / "home"
        self.home.mkdir()
        self.script = root / "script.py"
        self.script.write_text(PROGRAM)

    def begin(self, **more: str) -> subprocess.Popen[str]:
        told = environment(self.data_dir, self.home, **{"APOTHIC_AUTOSTART": "1", **more})
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(self.script)],
            cwd=self.home, env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, **more: str) -> tuple[str, str, int]:
        process = self.begin(**more)
        out, err = process.communicate(timeout=60)
        return out, err, process.returncode

    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data_dir / "server.json").read_text())
        return found

    def servers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "server" in words and str(self.data_dir) in words:
                found.append(process)
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Home]:
    machine = Home(tmp_path)
    yield machine
    end_leftovers(machine.data_dir)


async def test_what_uploads_need_is_imported_while_a_server_starts(
    machine: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = 0

    async def library() -> None:
        nonlocal imported
        imported += 1

    monkeypatch.setattr(os, "environ", environment(machine.data_dir, machine.home))
    monkeypatch.setattr(embedded, "library", library)
    for _ in range(2):  # the second time the server is there
        await embedded.find_or_start(machine.data_dir, autostart=True)
        assert imported == 1


def test_six_lines_start_a_server_of_their_own_and_say_so_in_one_line(machine: Home) -> None:
    out, err, status = machine.run()

    assert (out, status) == ("42\n", 0)
    assert err.count("\n") == 1
    assert "started a local server" in err
    assert "apothic down" in err
    assert stat.S_IMODE(machine.data_dir.stat().st_mode) == 0o700

    again, quiet, status = machine.run()
    assert (again, quiet, status) == ("42\n", "", 0)
    assert len(machine.servers()) == 1


def test_clients_that_start_at_once_share_one_server(machine: Home) -> None:
    both = [machine.begin(), machine.begin()]
    told = [process.communicate(timeout=90) for process in both]

    assert [out for out, _ in told] == ["42\n", "42\n"]
    assert sum("started a local server" in err for _, err in told) == 1
    assert len(machine.servers()) == 1


def test_without_autostart_nothing_is_started_and_the_error_says_what_to_do(machine: Home) -> None:
    out, err, status = machine.run(APOTHIC_AUTOSTART="0")

    assert (out, status) == ("", 1)
    assert "ServerUnavailableError" in err
    assert "apothic up" in err
    assert machine.servers() == []


def test_a_data_directory_that_cannot_be_made_is_one_error(machine: Home) -> None:
    machine.data_dir.write_text("a file")
    _, err, status = machine.run()

    assert status == 1
    assert "ConfigError: the data directory" in err
    assert "APOTHIC_DATA_DIR" in err


def test_a_killed_server_is_started_again_under_the_client(machine: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(machine.data_dir, machine.home, APOTHIC_AUTOSTART="1").items():
        if name.startswith("APOTHIC_"):
            monkeypatch.setenv(name, value)
    with ControlPlaneClient(timeout_s=60) as client:
        before = client.ask_blocking(routes.HEALTHZ, m.ShowHealth()).pid
        os.kill(before, signal.SIGKILL)
        after = client.ask_blocking(routes.HEALTHZ, m.ShowHealth()).pid

        assert after != before
        assert client.base_url == machine.told()["base_url"]
        assert client.ask_blocking(routes.LIST_APPS, m.ListApps()).apps == []


def test_the_admin_key_is_used_for_the_loopback_server_of_the_data_directory_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("APOTHIC_CONFIG_PATH", str(tmp_path / "none.toml"))
    monkeypatch.setenv("APOTHIC_DATA_DIR", str(server.data_dir))
    with ControlPlaneClient(server.base_url) as client:
        assert isinstance(client.ask_blocking(routes.LIST_APPS, m.ListApps()).apps, list)

    key = (server.data_dir / "admin.key").read_text().strip()
    assert embedded.admin_key(server.data_dir, server.base_url) == key
    assert embedded.admin_key(server.data_dir, "http://127.0.0.1:9") is None
    assert embedded.admin_key(server.data_dir, server.base_url.replace("127.0.0.1", "10.0.0.1")) is None
    assert embedded.admin_key(tmp_path, server.base_url) is None


async def test_a_stale_server_file_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text('{"base_url": "http://127.0.0.1:9", "pid": 1}')
    assert await embedded.find(tmp_path) is None
    (tmp_path / "server.json").write_text("{")
    assert await embedded.find(tmp_path) is None
    with pytest.raises(ServerUnavailableError, match="APOTHIC_AUTOSTART=0"):
        await embedded.find_or_start(tmp_path, autostart=False)


def test_an_app_is_deployed_again_when_the_servers_data_is_gone(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", {})
    try:
        server.start()
        app = App("wiped", client=ControlPlaneClient(server.base_url, timeout_s=60))

        @app.function()
        def triple(number: int) -> int:
            return 3 * number

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("APOTHIC_DATA_DIR", str(server.data_dir))
            assert triple.remote(1) == 3
            server.settings["port"] = server.base_url.rpartition(":")[2]
            server.stop()
            shutil.rmtree(server.data_dir)
            server.start()

            assert triple.remote(2) == 6
            assert triple.map([3]) == [9]
    finally:
        server.stop()
