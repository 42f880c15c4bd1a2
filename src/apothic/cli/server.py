"""The control plane and its agents: in the foreground, in the background, and what runs where."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apothic.cli import local
from apothic.cli.connection import client, given_settings, reaching, settings, shown, taking
from apothic.cli.render import Screen, table
from apothic.config import TABLE
from apothic.errors import ApothicError, ConfigError, ServerUnavailableError, from_wire

if TYPE_CHECKING:
    from apothic.config import Settings
    from apothic.protocol.messages import Health

_OF_SERVER = tuple(name for name, line in TABLE.items() if line.audience in ("server", "both"))
_START_S = 60.0
_STOP_S = 60.0  # a server first lets its containers end: the grace, and 5 s more


@click.command()
@taking(*_OF_SERVER)
@click.option("--embedded", is_flag=True, hidden=True, help="End after 15 minutes without anything to do.")
@shown
@click.pass_obj
def server(screen: Screen, embedded: bool) -> None:
    """Run the control plane with a local agent, in the foreground."""
    from apothic.clock import SystemClock
    from apothic.engine.local import LocalAgent

    settled = settings()
    local.make_private(settled.data_dir)
    engine = LocalAgent(settled.data_dir, SystemClock())
    # Until the server hears it, a signal would end us alone.
    before = signal.signal(signal.SIGTERM, _ended)

    def announce(base_url: str, gateway_url: str | None) -> None:
        told = _document(base_url, gateway_url, settled.data_dir, os.getpid())
        screen.show(told, lambda: _lines(told))

    try:
        if local.holder(settled.data_dir / local.SERVER_LOCK) is None:
            engine.begin()
        from apothic.control.serve import main

        main(settled, engine, embedded=embedded, announce=announce)
    except OSError as error:
        raise _unlistenable(error, settled) from None
    finally:
        engine.abandon()
        signal.signal(signal.SIGTERM, before)


def _ended(number: int, _: object) -> None:
    sys.exit(128 + number)


def _document(base_url: str, gateway_url: str | None, data_dir: Path, pid: int) -> dict[str, Any]:
    return {"base_url": base_url, "gateway_url": gateway_url, "data_dir": str(data_dir), "pid": pid}


def _lines(told: dict[str, Any]) -> str:
    key = Path(told["data_dir"]) / "admin.key"
    return (
        f"API       {told['base_url']}\nservices  {told['gateway_url']}\n"
        f"data      {told['data_dir']} (the admin key is in {key})"
    )


def _unlistenable(error: OSError, settled: Settings) -> ApothicError:
    setting = getattr(error, "setting", "port")
    port, option = getattr(settled, setting), "--" + setting.replace("_", "-")
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} of {settled.host} is taken by {local.port_holder(port)}",
            hint=f"end that, or take a free port with {option} 0",
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.EACCES):
        return ConfigError(
            f"cannot listen on {settled.host}:{port}: {error.strerror}",
            hint=f"give an address of this machine with --host, and a port from 1024 up with {option}",
        )
    return ServerUnavailableError(f"the server cannot run: {error}", hint="apothic server --traceback tells more")


@click.command()
@taking(*_OF_SERVER)
@shown
@click.pass_obj
def up(screen: Screen) -> None:
    """Start the control plane with a local agent in the background; do nothing if it runs."""
    settled = settings()
    found = local.running(settled.data_dir)
    if found is not None:
        there = _document(found.base_url, found.gateway_url, settled.data_dir, found.pid)
        screen.show(there, lambda: _lines(there))
        if not screen.as_json:
            screen.note(f"it was running already, as process {found.pid}")
        return
    told = _start(settled, screen)
    screen.show(told, lambda: _lines(told))


def _start(settled: Settings, screen: Screen) -> dict[str, Any]:
    local.make_private(settled.data_dir)
    log = settled.data_dir / "server.log"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given_settings().items() if name != "data_dir"]
    command = [sys.executable, "-P", "-m", "apothic", "server", "--json", f"--data-dir={settled.data_dir}", *words]
    with log.open("ab") as output, screen.busy("starting the server"):
        offset = output.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )  # fmt: skip
        told = local.first_document(log, offset, lambda: process.poll() is None, _START_S)
    found = local.running(settled.data_dir)
    if process.poll() is not None and found is not None:  # somebody else was faster
        return _document(found.base_url, found.gateway_url, settled.data_dir, found.pid)
    if told is not None and "error" in told:
        wrong = told["error"]
        raise from_wire(wrong["code"], wrong["message"], wrong["hint"], wrong["details"])
    if told is None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        raise ServerUnavailableError("the server did not start", hint=f"the end of {log} tells why")
    # It stays after we are gone, so nobody here shall wait for it.
    process.returncode = 0
    return told


@click.command()
@taking("data_dir")
@shown
@click.pass_obj
def down(screen: Screen) -> None:
    """End the background server and its local agent, and wait until they are gone."""
    folder = settings().data_dir
    locks = {"server": local.SERVER_LOCK, "agent": local.AGENT_LOCK}
    ended = {what: pid for what, lock in locks.items() if (pid := _holder(folder, lock))}
    with screen.busy("stopping"):
        for what in ended:
            # The server takes its agent along, unless it was killed; whoever holds the lock now is asked.
            pid = _holder(folder, locks[what])
            if pid:
                local.end(pid, _STOP_S)
    said = " and ".join(f"the {what} (process {pid})" for what, pid in ended.items())
    document = {"data_dir": str(folder), "ended": ended}
    screen.show(document, f"ended {said}" if ended else f"nothing was running in {folder}")


def _holder(folder: Path, lock: str) -> int | None:
    pid = local.holder(folder / lock)
    if pid != 0:
        return pid
    found = local.running(folder)  # on a system that does not tell who holds a lock
    return found.pid if found and lock == local.SERVER_LOCK else None


@click.command()
@reaching
@click.pass_obj
def status(screen: Screen) -> int:
    """Say what runs where: the control plane, its agents, its apps."""
    settled = settings()
    found = local.running(settled.data_dir)
    if settled.base_url is None and found is None:
        document: dict[str, Any] = {"running": False, "data_dir": str(settled.data_dir)}
        screen.show(document, f"no server is running in {settled.data_dir}; apothic up starts one")
        return 3
    from apothic.protocol import messages as m
    from apothic.protocol.routes import HEALTHZ, LIST_AGENTS, LIST_APPS

    asker = client()
    health = asker.ask_blocking(HEALTHZ, m.ShowHealth())
    agents = asker.ask_blocking(LIST_AGENTS, m.ListAgents()).agents
    apps = asker.ask_blocking(LIST_APPS, m.ListApps()).apps
    document = {"running": True, "base_url": asker.base_url, "gateway_url": found.gateway_url if found else None}
    document |= {"data_dir": str(settled.data_dir), "health": health, "agents": agents, "apps": apps}
    rows = [
        [
            one.id,
            one.host,
            one.pid,
            "yes" if one.connected else "no",
            f"{one.cpu:g}",
            one.memory_mb,
            one.containers,
            one.jobs,
        ]
        for one in agents
    ]
    text = "\n\n".join(
        [
            _about(document, health),
            table(["agent", "host", "pid", "connected", "cpu", "memory mb", "containers", "jobs"], rows),
            table(["app", "deployment"], [[one.name, one.deployment_id] for one in apps]),
        ]
    )
    screen.show(document, text)
    return 0


def _about(document: dict[str, Any], health: Health) -> str:
    lines = [f"server    {document['base_url']}, version {health.version}, process {health.pid}"]
    lines += [f"services  {document['gateway_url']}"] if document["gateway_url"] else []
    return "\n".join([*lines, f"data      {document['data_dir']}"])


@click.command()
@click.option(
    "--url", metavar="URL", help="The control plane to join; without it, the local one of the data directory."
)
@click.option("--key", metavar="KEY", help="What to show it.")
@click.option("--gpu", "gpus", metavar="NAME", multiple=True, help="A GPU that this machine has; once for each.")
@click.option("--local", "is_local", is_flag=True, hidden=True, help="Be the agent that a server starts for itself.")
@taking("data_dir")
@shown
def agent(url: str | None, key: str | None, gpus: tuple[str, ...], is_local: bool) -> None:
    """Join this machine to a control plane, over one outbound connection."""
    from apothic.agent.agent import main

    settled = settings()
    main(settled, url=None if is_local else url or settled.base_url, key=key, gpus=gpus, local=is_local)
