"""What every command has in common: its options, the settings they make, and the way to the control plane."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from apothic.config import FLAG, TABLE, Settings, load

if TYPE_CHECKING:
    from apothic.client.connection import ControlPlaneClient

D = TypeVar("D", bound=Callable[..., Any])

_GIVEN = "apothic.settings"  # in the context's `meta`, which all contexts of one command line share
_REACHING = ("base_url", "api_key", "profile", "data_dir")
_ALSO = {"base_url": ("--url",), "api_key": ("--key",)}


def shown(deed: D) -> D:
    """Give a command `--json` and `--traceback`."""
    for option in (json_option(), traceback_option()):
        deed = _with(deed, option)
    return deed


def reaching(deed: D) -> D:
    """Give a command what it takes to name a control plane, besides `--json` and `--traceback`."""
    return taking(*_REACHING)(shown(deed))


def taking(*names: str) -> Callable[[D], D]:
    """Give a command an option for each of those settings, as the table describes them."""

    def decorate(deed: D) -> D:
        for name in reversed(names):
            deed = _with(deed, _setting_option(name))
        return deed

    return decorate


def _with(deed: D, option: click.Option) -> D:
    if isinstance(deed, click.Command):
        deed.params.append(option)
    else:
        deed.__dict__.setdefault("__click_params__", []).append(option)
    return deed


def json_option() -> click.Option:
    """Return the option that asks for JSON."""

    def keep(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.find_root().obj.as_json |= value

    return click.Option(["--json"], is_flag=True, expose_value=False, callback=keep, help="Print JSON.", is_eager=True)


def traceback_option() -> click.Option:
    """Return the option that asks for tracebacks of our own."""

    def keep(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.find_root().obj.tracebacks |= value

    return click.Option(
        ["--traceback"],
        is_flag=True,
        expose_value=False,
        callback=keep,
        help="Print our own tracebacks.",
        is_eager=True,
    )


def _setting_option(name: str) -> click.Option:
    line = TABLE[name]

    def keep(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        ctx.meta.setdefault(_GIVEN, {})[name] = value

    words = [f"--{name.replace('_', '-')}", *_ALSO.get(name, ())]
    about = f"{line.about[0].upper()}{line.about[1:]} ({line.variable})."
    metavar = "0|1" if line.kind is FLAG else None
    return click.Option([name, *words], expose_value=False, callback=keep, help=about, metavar=metavar)


def settings() -> Settings:
    """Settle the settings of the running command. Raises `ConfigError`."""
    given = click.get_current_context().meta.get(_GIVEN, {})
    return load(given, environ=os.environ, cwd=Path.cwd(), home=Path.home())


def given_settings() -> dict[str, str]:
    """Return the settings that were given as arguments, as text."""
    given: dict[str, str | None] = click.get_current_context().meta.get(_GIVEN, {})
    return {name: value for name, value in given.items() if value is not None}


def adopt() -> None:
    """Let the settings that were given as arguments hold in all of this process.

    Apps in the user's files make clients of their own, and those must mean the same control plane.
    """
    settled = settings()
    for name in given_settings():
        os.environ[TABLE[name].variable] = str(getattr(settled, name))


def client() -> ControlPlaneClient:
    """Return a client for the control plane that the settings name; it is closed with the command."""
    from apothic.client.connection import ControlPlaneClient

    adopt()
    made = ControlPlaneClient()
    click.get_current_context().call_on_close(made.close)
    return made
