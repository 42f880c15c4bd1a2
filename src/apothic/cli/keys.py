"""API keys: create, list, revoke."""

from __future__ import annotations

import click

from apothic.cli.connection import client, reaching
from apothic.cli.render import Screen, table, when


@click.group()
def key() -> None:
    """API keys."""


@key.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    help="What it may do: admin (default), deploy, invoke, invoke:APP/FUNCTION, read:jobs, logs, cancel or worker.",
)
@click.option("--expires-in-s", type=click.FloatRange(min=0, min_open=True), help="Seconds until it ends by itself.")
@reaching
@click.pass_obj
def create(screen: Screen, name: str, scopes: tuple[str, ...], expires_in_s: float | None) -> None:
    """Make a key. It is shown this once; only its hash is kept."""
    from apothic.protocol import messages as m
    from apothic.protocol.routes import CREATE_KEY

    ask = m.CreateKey(name=name, scopes=list(scopes) or ["admin"], expires_in_s=expires_in_s)
    made = client().ask_blocking(CREATE_KEY, ask)
    screen.show(made, made.secret)
    if not screen.as_json:
        screen.note(f"{made.key.id} may do: {', '.join(made.key.scopes)}. Set APOTHIC_API_KEY to the line above.")


@key.command("list")
@reaching
@click.pass_obj
def list_(screen: Screen) -> None:
    """List the keys, without their secrets."""
    from apothic.protocol import messages as m
    from apothic.protocol.routes import LIST_KEYS

    found = client().ask_blocking(LIST_KEYS, m.ListKeys())
    rows = [
        [one.id, one.name, ",".join(one.scopes), when(one.created_at), when(one.last_used_at), when(one.expires_at),
         "revoked" if one.revoked_at else "valid"]
        for one in found.keys
    ]  # fmt: skip
    screen.show(found, lambda: table(["id", "name", "scopes", "created", "last used", "expires", "state"], rows))


@key.command()
@click.argument("key_id", metavar="KEY")
@reaching
@click.pass_obj
def revoke(screen: Screen, key_id: str) -> None:
    """Revoke a key, by its id."""
    from apothic.protocol import messages as m
    from apothic.protocol.routes import REVOKE_KEY

    gone = client().ask_blocking(REVOKE_KEY, m.RevokeKey(key=key_id))
    screen.show(gone, f"{gone.id} ({gone.name}) is revoked")
