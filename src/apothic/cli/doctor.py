"""Probe the host, the store and the auditor's rules; say what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from apothic.cli.connection import reaching, settings
from apothic.cli.render import Screen

if TYPE_CHECKING:
    from apothic.config import Settings
    from apothic.protocol.findings import Finding


@click.command()
@reaching
@click.pass_obj
def doctor(screen: Screen) -> int:
    """Look over this machine, the data directory and its server; exit with 1 if anything is wrong."""
    from apothic.protocol.findings import State

    with screen.busy("looking"):
        found = list(_all(settings()))
    wrong = [finding for finding in found if finding.state == State.WRONG]
    document = {"ok": not wrong, "findings": found}
    screen.show(document, lambda: "\n".join(_line(finding) for finding in found))
    if not screen.as_json:
        screen.note(f"{len(wrong)} of {len(found)} wrong" if wrong else f"all {len(found)} well")
    return 1 if wrong else 0


def _all(settled: Settings) -> Iterator[Finding]:
    from apothic.agent.host import look
    from apothic.store.examine import examine

    yield from look()
    yield from examine(settled.data_dir)
    yield from _server(settled)


def _server(settled: Settings) -> Iterator[Finding]:
    from apothic import ControlPlaneClient
    from apothic.cli import local
    from apothic.cli.connection import client
    from apothic.errors import ApothicError
    from apothic.protocol import messages as m
    from apothic.protocol.findings import Finding, State
    from apothic.protocol.routes import LIST_AGENTS, READYZ

    if settled.base_url is None and local.running(settled.data_dir) is None:
        yield Finding("server", State.NOTE, "none is running here", "apothic up starts one")
        return
    asker: ControlPlaneClient = client()
    try:
        ready = asker.ask_blocking(READYZ, m.ShowHealth())
        agents = asker.ask_blocking(LIST_AGENTS, m.ListAgents()).agents
    except ApothicError as error:
        yield Finding("server", State.WRONG, error.message, error.hint)
        return
    if ready.problems:
        yield Finding("server", State.WRONG, "; ".join(ready.problems), "free some space, then look at its log")
    else:
        yield Finding("server", State.OK, f"{asker.base_url}, version {ready.version}, process {ready.pid}")
    away = [agent.id for agent in agents if not agent.connected]
    if not agents:
        yield Finding("agents", State.WRONG, "there is none, so no job can run", "look at the end of agent.log")
    elif away:
        yield Finding("agents", State.WRONG, f"no word from {', '.join(away)}", "look at those machines, or wait")
    else:
        cpu, memory = sum(agent.cpu for agent in agents), sum(agent.memory_mb for agent in agents)
        yield Finding("agents", State.OK, f"{len(agents)} connected, {cpu:g} cpu, {memory:,} MiB in all")


def _line(finding: Finding) -> str:
    said = f"{finding.state.value:<6} {finding.what}: {finding.said}"
    return f"{said}\n{'':<6} hint: {finding.hint}" if finding.hint else said
