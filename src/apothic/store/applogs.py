"""What the containers of an app printed that belongs to no job: while a module is imported, and past Python's own
`print` when several jobs share a process."""

from __future__ import annotations

from apothic.protocol.messages import AppLine, AppLogs, ShowAppLogs
from apothic.protocol.session import ContainerSaid
from apothic.store.tx import Tx

# As many as a job keeps by default. It is for people who look for a cause; what a job prints is with the job.
KEPT = 10_000
LARGEST_PAGE = 10_000

Columns = tuple[str, str, str, str, float, bool]  # function, container, stream, text, time, goes on


def append(tx: Tx, agent_id: str, said: ContainerSaid) -> str | None:
    """Store a container's own lines, each once, and let go of the oldest; return the app that has new ones."""
    row = tx.one("container_app", id=said.container)
    if row is None or row["agent_id"] != agent_id:
        return None
    seen = row["said"] or 0  # a frame comes twice when its acknowledgement was lost
    lines = said.lines[max(0, seen - said.first) :]
    if not lines:
        return None
    told: list[Columns] = [
        (row["function"], said.container, line.stream, line.text, line.at, line.cont)
        for line in lines
        if line.stream != "system"
    ]
    add(tx, row["app"], told)
    tx.run("note_said", id=said.container, said=said.first + len(said.lines))
    return str(row["app"])


def add(tx: Tx, app: str, lines: list[Columns]) -> None:
    """Store lines behind those that are there, and let go of the oldest."""
    newest = tx.one("newest_app_line", app=app)
    assert newest is not None
    first = 0 if newest[0] is None else newest[0] + 1
    tx.many("insert_app_line", [(app, index, *line) for index, line in enumerate(lines, first)])
    tx.run("trim_app_lines", app=app, upto=first + len(lines) - 1 - KEPT)


def read(tx: Tx, ask: ShowAppLogs) -> AppLogs:
    """Return the lines that are kept behind `after`, of one function or of all."""
    rows = tx.all(
        "app_lines", app=ask.app, after=ask.after, function=ask.function, limit=max(0, min(ask.limit, LARGEST_PAGE))
    )
    oldest = tx.one("oldest_app_line", app=ask.app)
    return AppLogs(
        lines=[
            AppLine(
                line=row["idx"], function=row["function"], container=row["container_id"], stream=row["stream"],
                text=row["text"], at=row["at"], cont=bool(row["cont"]),
            )
            for row in rows
        ],
        trimmed=oldest[0] or 0 if oldest is not None else 0,
    )  # fmt: skip


def topic(app: str) -> str:
    """Return what is rung when an app has new lines."""
    return f"logs of {app}"
