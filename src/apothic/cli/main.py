"""The command line: the group of all commands, and what becomes of an error.

Exit status: 0, 1 for a user error or a failed job, 2 for a command written wrongly, 3 for a server that does not
answer or answers with an error of its own, 130 for an interrupt.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from apothic import __version__
from apothic.cli.connection import json_option, traceback_option
from apothic.cli.render import Screen
from apothic.cli.source import UserCodeError
from apothic.errors import ApothicError, JobError, VersionMismatchError, WaitTimeoutError

INTERRUPTED = 130
_PLURALS = {"jobs": "job", "apps": "app", "keys": "key"}


# The module of each command, which is imported when the command is asked for; the help asks for all. A server or an
# agent starts without the others: 40 ms of 110 until its own imports begin.
_MODULES = {
    "agent": "server", "app": "apps", "attach": "jobs", "call": "apps", "config": "configuration", "deploy": "apps",
    "doctor": "doctor", "down": "server", "job": "jobs", "key": "keys", "run": "apps", "serve": "serve",
    "server": "server", "status": "server", "up": "server",
}  # fmt: skip


class _Root(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = _PLURALS.get(cmd_name, cmd_name)
        if name not in _MODULES:
            return None
        command: click.Command = getattr(import_module(f"apothic.cli.{_MODULES[name]}"), name)
        return command


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.find_root().obj.show({"version": __version__}, f"apothic {__version__}")
        ctx.exit()


root = _Root(
    "apothic",
    help="Run Python functions somewhere else: every call a durable job.",
    params=[
        json_option(),
        traceback_option(),
        click.Option(["--version"], is_flag=True, expose_value=False, callback=_version, help="Print the version."),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def run() -> None:
    """Run the command that `sys.argv` names, and end the process with its status."""
    sys.exit(main(sys.argv[1:]))


def main(words: list[str]) -> int:
    """Run one command line; return its exit status."""
    screen = Screen()
    try:
        status = root.main(words, prog_name="apothic", standalone_mode=False, obj=screen)
        return status if isinstance(status, int) else 0
    except click.UsageError as error:
        screen.usage(error.format_message().split(" Did you mean")[0], _usage_hint(error))
        return 2
    except (click.Abort, KeyboardInterrupt):
        screen.note("interrupted")
        return INTERRUPTED
    except click.ClickException as error:
        screen.usage(error.format_message(), "apothic --help lists the commands")
        return error.exit_code
    except UserCodeError as error:
        screen.user_error(error.inner)
        return 1
    except ApothicError as error:
        screen.error(error)
        return status_of(error)
    except Exception as error:
        screen.crash(error)
        return 1


def status_of(error: ApothicError) -> int:
    """Return the exit status for an error: 3 when the server is to blame, else 1.

    >>> from apothic.errors import NotFoundError, ServerUnavailableError
    >>> status_of(ServerUnavailableError()), status_of(NotFoundError())
    (3, 1)
    """
    if isinstance(error, JobError | WaitTimeoutError):
        return 1
    return 3 if error.http >= 500 or isinstance(error, VersionMismatchError) else 1


def _usage_hint(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx else "apothic"
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        return f"did you mean {error.possibilities[0]}?"
    command = error.ctx.command if error.ctx else root
    if isinstance(command, click.Group) and "No such command" in error.message:
        wanted = error.message.split("'")[1]
        from difflib import get_close_matches

        near = get_close_matches(wanted, [*command.list_commands(error.ctx or click.Context(root)), *_PLURALS], n=1)
        if near:
            return f"did you mean {path} {near[0]}?"
    return f"{path} --help shows how it is used"
