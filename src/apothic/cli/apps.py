"""Apps and what they hold: deploy, run, call; list, show, stop, rollback."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from apothic.cli.connection import adopt, client, json_option, reaching, traceback_option
from apothic.cli.render import Screen, rhythm, table, when

if TYPE_CHECKING:
    from apothic.cli.source import Source
    from apothic.client.app import App
    from apothic.errors import ApothicError
    from apothic.protocol.messages import AppView, FunctionView

# So that `-2` is an argument, and so that what follows FILE belongs to the function.
_TAKES_ANYTHING = {"ignore_unknown_options": True}


@click.command()
@click.argument("target", metavar="FILE[::APP]")
@click.option("--name", help="Deploy it under another name.")
@click.option(
    "--on-cue", is_flag=True, hidden=True, help="Import FILE when a line comes in on stdin, nothing at its end."
)
@reaching
@click.pass_obj
def deploy(screen: Screen, target: str, name: str | None, on_cue: bool) -> None:
    """Deploy an app, show what changed, and where its services are."""
    import apothic.client.deployment  # noqa: F401 -- with all that it needs, before the cue
    from apothic.cli.source import load

    adopt()
    if on_cue and not sys.stdin.readline():
        return
    app = load(target).app()
    if name is not None:
        app = app.renamed(name)
    asker = app.client
    before = _live(asker, app.name)
    with screen.busy(f"deploying {app.name}"):
        deployment_id = app.deploy()
    after = _live(asker, app.name)
    functions = after.functions if after else []
    changes = changed(before.functions if before else [], functions)
    same = before is not None and before.deployment_id == deployment_id
    document = {"app": app.name, "deployment_id": deployment_id, "changed": not same, "functions": functions}
    document |= {"changes": changes, "urls": [one.service_url for one in functions if one.service_url]}
    document |= {"sources": [str(path) for path in app.origins()]}
    lines = [f"{app.name} is live: {deployment_id}" + (" (nothing changed)" if same else "")]
    lines += [f"  {mark} {what}" for what, mark in changes.items()]
    screen.show(document, "\n".join(lines + _urls(functions)))


def _urls(functions: list[FunctionView]) -> list[str]:
    return [f"  {one.name}: {one.service_url}" for one in functions if one.service_url]


def changed(before: list[FunctionView], after: list[FunctionView]) -> dict[str, str]:
    """Return what differs between two versions' functions: `+` new, `-` gone, `~` other options, by name."""
    was, now = ({one.name: one for one in views} for views in (before, after))
    marks = {name: "+" if name not in was else "-" for name in sorted(was.keys() ^ now.keys())}
    kept = sorted(was.keys() & now.keys())
    return marks | {name: "~" for name in kept if was[name].options != now[name].options}


def _live(asker: Any, app: str) -> AppView | None:
    from apothic.errors import NotFoundError
    from apothic.protocol import messages as m
    from apothic.protocol.routes import SHOW_APP

    try:
        found: AppView = asker.ask_blocking(SHOW_APP, m.ShowApp(app=app))
    except NotFoundError:
        return None
    return found


@click.command(context_settings=_TAKES_ANYTHING | {"allow_interspersed_args": False})
@click.argument("target", metavar="FILE[::FUNCTION]")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]...")
@click.option("--timeout-s", type=click.FloatRange(min=0), help="Wait at most so long; the job goes on after it.")
@reaching
@click.pass_context
def run(ctx: click.Context, target: str, words: tuple[str, ...], timeout_s: float | None) -> Any:
    """Run a local entrypoint, or one function remotely.

    Without a name, the file's only local entrypoint. Its parameters become options by their annotations:
    `apothic run app.py::main --help` shows them. Options of `run` itself stand before FILE.
    """
    from apothic.cli.parameters import ParameterCommand
    from apothic.cli.source import load

    adopt()
    source = load(target)
    screen: Screen = ctx.find_root().obj
    app, name, local = chosen(source)
    function = app.local_entrypoints[name] if local else app.functions[name].local

    def deed(args: list[Any], kwargs: dict[str, Any]) -> int:
        if local:
            return _run_here(screen, app, name, args, kwargs)
        return _run_there(screen, app, name, args, kwargs, timeout_s)

    command = ParameterCommand(f"{source.file}::{name}", function, deed)
    taken = {option for one in command.params for option in one.opts}
    command.params += [one for one in (json_option(), traceback_option()) if not taken.intersection(one.opts)]
    with command.make_context(f"run {source.file}::{name}", list(words), parent=ctx.parent) as inner:
        return command.invoke(inner)


def chosen(source: Source) -> tuple[App, str, bool]:
    """Return what `FILE[::name]` runs: its app, its name, and whether that is a local entrypoint."""
    from apothic.errors import ConfigError

    there = [(app, name, local) for app in source.apps().values() for name, local in _names(app)]
    if source.name:
        wanted = [one for one in there if one[1] == source.name]
        what = f"there is nothing called {source.name!r} to run in {source.file}"
    else:
        wanted = [one for one in there if one[2]] or there
        what = f"there is nothing to run in {source.file}"
    if len(wanted) == 1 or (source.name and wanted and wanted[0][2]):
        return wanted[0]
    if wanted:
        what = f"{source.file} has several things to run"
    for app in source.apps().values() if not wanted else ():
        service = app.functions.get(source.name)
        if service is not None:
            raise no_job(service.kind, f"{app.name}.{service.name}", f"apothic serve {source.file}")
    known = ", ".join(name for _, name, _ in there)
    raise ConfigError(what, hint=f"say which one: {source.file}::NAME, of {known or 'none'}")


def _names(app: App) -> list[tuple[str, bool]]:
    functions = [(name, False) for name, one in app.functions.items() if one.kind == "function"]
    return [(name, True) for name in app.local_entrypoints] + functions


def no_job(kind: str, where: str, instead: str) -> ApothicError:
    """Return the error of a service that is to run as a job."""
    from apothic.errors import InvalidRequestError
    from apothic.protocol.services import described

    return InvalidRequestError(f"{where} is {described(kind)}: it answers HTTP and runs no jobs", hint=instead)


def _run_here(screen: Screen, app: App, name: str, args: list[Any], kwargs: dict[str, Any]) -> int:
    from apothic.cli.following import shown_beside
    from apothic.cli.source import UserCodeError
    from apothic.errors import ApothicError

    try:
        with shown_beside(screen, app.client, app.name):
            app.run_local(entrypoint_name=name, args=tuple(args), kwargs=kwargs)
    except ApothicError:
        raise
    except Exception as error:
        raise UserCodeError(error) from None
    return 0


def _run_there(
    screen: Screen, app: App, name: str, args: list[Any], kwargs: dict[str, Any], timeout_s: float | None
) -> int:
    from apothic.cli.following import attend

    with screen.busy(f"deploying {app.name}"):
        app.deploy()
    job = app.functions[name].spawn(*args, **kwargs)
    return attend(screen, app.client, job.job_id, timeout_s=timeout_s)


@click.command(context_settings=_TAKES_ANYTHING)
@click.argument("app_name", metavar="APP")
@click.argument("function_name", metavar="FUNCTION")
@click.argument("words", nargs=-1, metavar="[ARGS]...")
@click.option("--kw", "named", multiple=True, metavar="NAME=VALUE", help="A keyword argument; may be given again.")
@click.option("--timeout-s", type=click.FloatRange(min=0), help="Wait at most so long; the job goes on after it.")
@click.option("--detach", is_flag=True, help="Print the job, and do not wait for it.")
@reaching
@click.pass_obj
def call(
    screen: Screen, app_name: str, function_name: str, words: tuple[str, ...], named: tuple[str, ...],
    timeout_s: float | None, detach: bool,
) -> int:  # fmt: skip
    """Call a deployed function. ARGS are JSON where they are valid JSON, else text."""
    import secrets

    from apothic.cli.following import attend, outcome, tell
    from apothic.cli.parameters import loosely
    from apothic.protocol import messages as m
    from apothic.protocol.routes import SUBMIT

    for word in words:
        if word.startswith("--"):
            raise click.NoSuchOption(word, ctx=click.get_current_context())
    pairs = [pair.partition("=") for pair in named]
    if any(not name or not equals for name, equals, _ in pairs):
        raise click.UsageError("--kw takes name=value", click.get_current_context())
    asker = client()
    ask = m.Submit(
        function=_function_id(asker, app_name, function_name),
        args=[loosely(word) for word in words],
        kwargs={name: loosely(value) for name, _, value in pairs},
        accept=["json", "pickle"],  # pickles are shown by the `repr` that the container made
        idempotency_key=secrets.token_hex(16),
    )
    job = asker.ask_blocking(SUBMIT, ask).job
    if detach:
        screen.show(job, job.id)
        return 0
    if job.is_generator:
        return attend(screen, asker, job.id, timeout_s=timeout_s)
    try:
        return tell(screen, outcome(asker, job.id, timeout_s=timeout_s))
    except KeyboardInterrupt:
        screen.note(f"job {job.id} goes on; to stop it: apothic job cancel {job.id}")
        raise


def _function_id(asker: Any, app: str, name: str) -> str:
    import difflib

    from apothic.errors import ConflictError, NotFoundError
    from apothic.protocol import messages as m
    from apothic.protocol.routes import FIND_FUNCTIONS

    functions = asker.ask_blocking(FIND_FUNCTIONS, m.FindFunctions(app=app)).functions
    for one in functions:
        if one.name == name:
            if one.kind != "function":
                raise no_job(one.kind, f"{app}.{name}", f"curl {one.service_url}" if one.service_url else "ask its URL")
            return str(one.id)
    if not functions:
        raise ConflictError(f"app {app!r} is stopped", hint="deploy it again, or: apothic app rollback " + app)
    near = difflib.get_close_matches(name, [one.name for one in functions], n=1)
    hint = f"did you mean {near[0]}?" if near else f"apothic app show {app} lists its functions"
    raise NotFoundError(f"there is no function {name!r} in app {app!r}", hint=hint)


@click.group()
def app() -> None:
    """Apps and their deployments."""


@app.command("list")
@reaching
@click.pass_obj
def list_(screen: Screen) -> None:
    """List the apps."""
    from apothic.protocol import messages as m
    from apothic.protocol.routes import LIST_APPS

    found = client().ask_blocking(LIST_APPS, m.ListApps())
    rows = [[one.name, _state(one), one.deployment_id, len(one.functions), when(one.created_at)] for one in found.apps]
    screen.show(found, lambda: table(["app", "state", "deployment", "functions", "created"], rows))


def _round(view: FunctionView) -> list[str | None]:
    last = view.last_tick
    told = [when(last.at), last.outcome, last.job] if last is not None else [None, None, None]
    return [view.name, rhythm(view.options.schedule), when(view.next_tick), *told]


def _state(view: AppView) -> str:
    return "stopped" if view.stopped else "live" if view.deployment_id else "not live"


@app.command()
@click.argument("name")
@reaching
@click.pass_obj
def show(screen: Screen, name: str) -> None:
    """Show one app: its functions and its deployments."""
    from apothic.protocol import messages as m
    from apothic.protocol.routes import LIST_DEPLOYMENTS, SHOW_APP

    asker = client()
    found = asker.ask_blocking(SHOW_APP, m.ShowApp(app=name))
    versions = asker.ask_blocking(LIST_DEPLOYMENTS, m.ListDeployments(app=name)).deployments
    functions = [[one.name, one.kind, one.id, one.service_url] for one in found.functions]
    scheduled = [_round(one) for one in found.functions if one.options.schedule is not None]
    rows = [[one.id, one.status, "live" if one.live else "", when(one.created_at)] for one in versions]
    text = "\n\n".join(
        [
            f"{found.name} ({_state(found)})",
            table(["function", "kind", "id", "url"], functions),
            *([table(["scheduled", "schedule", "next", "last", "outcome", "job"], scheduled)] if scheduled else []),
            table(["deployment", "status", "live", "created"], rows),
        ]
    )
    screen.show({"app": found, "deployments": versions}, text)


@app.command()
@click.argument("name")
@click.option("--function", help="Of this function only, by name.")
@click.option("-f", "--follow", is_flag=True, help="Go on until interrupted.")
@reaching
@click.pass_obj
def logs(screen: Screen, name: str, function: str | None, follow: bool) -> None:
    """Show what an app's containers printed that belongs to no job: at import, or past Python when jobs share a
    process. With --json, one line of JSON for each."""
    from apothic.cli.following import app_pages

    told = False
    for page in app_pages(client(), name, function, follow=follow):
        if page.trimmed and not told:
            screen.note(f"{page.trimmed:,} older lines are gone")
        told = True
        for line in page.lines:
            screen.show(line, f"{line.function} | {line.text}")


@app.command()
@click.argument("name")
@reaching
@click.pass_obj
def stop(screen: Screen, name: str) -> None:
    """Stop an app: it takes no more jobs."""
    from apothic.protocol import messages as m
    from apothic.protocol.routes import STOP_APP

    now = client().ask_blocking(STOP_APP, m.StopApp(app=name))
    screen.show(now, f"{now.name} is stopped; apothic app rollback {now.name} DEPLOYMENT makes a version live again")


@app.command()
@click.argument("name")
@click.argument("deployment", required=False)
@reaching
@click.pass_obj
def rollback(screen: Screen, name: str, deployment: str | None) -> None:
    """Make an older deployment live again: the one named, or the one before the live one."""
    from apothic.errors import ConflictError
    from apothic.protocol import messages as m
    from apothic.protocol.routes import ACTIVATE, LIST_DEPLOYMENTS

    asker = client()
    if deployment is None:
        versions = asker.ask_blocking(LIST_DEPLOYMENTS, m.ListDeployments(app=name)).deployments
        versions = sorted(versions, key=lambda one: one.created_at)
        live = next((place for place, one in enumerate(versions) if one.live), len(versions))
        older = [one.id for one in versions[:live] if one.status != "failed"]
        if not older:
            raise ConflictError(f"there is no older deployment of {name}", hint=f"apothic app show {name} lists them")
        deployment = older[-1]
    now = asker.ask_blocking(ACTIVATE, m.Activate(app=name, deployment=deployment))
    screen.show(now, "\n".join([f"{now.app} is {now.status}: {now.id}", *_urls(now.functions)]))
