"""What is left after a fault: processes, leases, broken rules. And how a test gets an app into a server."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
from rig import Server, until

from apothic import ControlPlaneClient
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.store.schema import audit


@contextlib.contextmanager
def loaded(folder: Path, name: str, source: str, client: ControlPlaneClient | None) -> Iterator[ModuleType]:
    """Write a module of its own and import it; its app, if it has one, asks `client`."""
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        module.app._client = client
        yield module
    finally:
        sys.modules.pop(name, None)


def opened(data_dir: Path) -> contextlib.closing[sqlite3.Connection]:
    """Open a server's database, running or dead, for reading only."""
    return contextlib.closing(sqlite3.connect(f"file:{data_dir}/apothic.db?mode=ro", uri=True))


def broken(data_dir: Path) -> dict[str, list[str]]:
    """Return the rules that the store breaks, with the ids that break them. None should."""
    with opened(data_dir) as connection:
        return audit(connection)


def rows(data_dir: Path, sql: str, *values: Any) -> list[Any]:
    """Ask the database itself."""
    with opened(data_dir) as connection:
        return connection.execute(sql, values).fetchall()


def mentions(data_dir: Path) -> list[psutil.Process]:
    """Return every process that has the data directory in its command line, environment, or as where it stands."""
    found, text = [], str(data_dir)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            told = [*process.cmdline(), *process.environ().values(), process.cwd()]
            if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and text in "\n".join(told):
                found.append(process)
    return found


def gone(pid: int) -> bool:
    """Tell whether a process has ended; who has to collect it may be this process, which adopts orphans for a test."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def agent_pid(client: ControlPlaneClient) -> int:
    """Wait for a connected agent; return its process."""
    return int(until(lambda: [one.pid for one in agents(client) if one.connected], what="an agent")[0])


def agents(client: ControlPlaneClient) -> list[m.AgentView]:
    return client.ask_blocking(routes.LIST_AGENTS, m.ListAgents()).agents


def job_of(client: ControlPlaneClient, job: str) -> m.JobView:
    return client.ask_blocking(routes.SHOW_JOB, m.ShowJob(job=job))


def check_no_slot_leaks(server: Server, client: ControlPlaneClient) -> None:
    """Check that nothing is leased any more, and that the store keeps its rules."""
    until(lambda: not rows(server.data_dir, "SELECT * FROM leases"), what="the end of the last lease")
    until(lambda: not any(one.jobs for one in agents(client)), what="an agent without jobs")
    assert broken(server.data_dir) == {}


def end(server: Server) -> None:
    """Stop a server the polite way, and check that nothing of it is left: no process, no broken rule."""
    assert server._process is not None
    server._process.terminate()
    assert server._process.wait(30) == 0
    until(lambda: not mentions(server.data_dir), 10, "the end of all its processes")
    assert broken(server.data_dir) == {}
