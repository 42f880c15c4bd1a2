"""Each setting, and where it came from."""

from __future__ import annotations

from typing import Any

import click

from apothic.cli.connection import settings, shown, taking
from apothic.cli.render import Screen, table
from apothic.config import TABLE

_HIDDEN = "api_key"


@click.group()
def config() -> None:
    """Settings."""


@config.command()
@taking(*TABLE)
@shown
@click.pass_obj
def show(screen: Screen) -> None:
    """Show each setting and where it came from: argument, variable, project file, profile or default."""
    settled = settings()
    lines: list[dict[str, Any]] = []
    for name, line in TABLE.items():
        value = getattr(settled, name)
        told = value if value is None or isinstance(value, bool | int | float) else str(value)
        if name == _HIDDEN and value is not None:
            told = f"{str(value)[:12]}…"  # its kind and the start of its id tell keys apart, and open nothing
        source = settled.source(name)
        lines.append({"name": name, "value": told, "source": source, "variable": line.variable, "about": line.about})
    document = {"settings": lines}
    rows = [[line["name"], line["value"], line["source"], line["about"]] for line in lines]
    screen.show(document, lambda: table(["setting", "value", "from", "what it is"], rows))
