"""The agent as a program: `apothic agent`. One for each data directory, or one that joins a control plane elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from apothic import __version__
from apothic.agent import isolate
from apothic.agent.bundles import MAKING
from apothic.agent.launcher import Launcher
from apothic.agent.route import LocalRoute, RemoteRoute, Route
from apothic.agent.tree import end_marked
from apothic.clock import Clock, SystemClock
from apothic.config import Settings
from apothic.errors import AuthError, ConfigError

_log = logging.getLogger("apothic.agent")


def main(settings: Settings, *, url: str | None, key: str | None, local: bool, gpus: tuple[str, ...] = ()) -> None:
    """Run an agent until it is told to leave: of the server at `url`, or of the one of this data directory.

    `gpus` are the names that functions may ask for. A local one holds `agent.lock`; where another has it, this returns
    at once. Raises `AuthError` when the control plane refuses the key at the first try.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s agent %(message)s", stream=sys.stderr)
    clock = SystemClock()
    if local or url is None:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (settings.data_dir / "agent.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.info("another agent has this data directory")
                return
            home = settings.data_dir.resolve() / "agent"
            _clear(home)
            _serve(LocalRoute(settings.data_dir), home, clock, gpus)
        return
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError(f"{url!r} is no URL of a control plane", hint="give one such as http://192.168.1.5:8700")
    shown = key or settings.api_key
    if shown is None:
        raise AuthError("an agent needs a key", hint="make one with `apothic key create` and pass it with --key")
    home = Path(tempfile.mkdtemp(prefix="apothic-agent-")).resolve()
    try:
        refused = _serve(RemoteRoute(url, shown), home, clock, gpus)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if refused is not None:
        raise AuthError(
            f"the control plane at {url} refuses this agent's key: {refused}",
            hint="make one there with `apothic key create NAME --scope worker`",
        )


def _clear(home: Path) -> None:
    """End and remove what an agent that was killed has left here."""
    for pid in end_marked(f"{home}/", isolate.MARK):
        _log.warning("ended %d, left over by an agent before us", pid)
    for path in (home / "containers", home / "files", *(home / "bundles").glob(f"{MAKING}*")):
        shutil.rmtree(path, ignore_errors=True)


def _serve(route: Route, home: Path, clock: Clock, gpus: tuple[str, ...]) -> str | None:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.closing(Launcher(str(home))) as launcher:
        # Imported only now: meanwhile the zygote does its own imports.
        import uvloop

        from apothic.agent.session import Agent

        async def serve() -> str | None:
            agent = Agent(route, home, clock, version=__version__, gpus=gpus, launcher=launcher)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, agent.leave, signal.Signals(number).name)
            await agent.run()
            return agent.refused

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve())
