"""`apothic serve`: deploys a file, again whenever what travels changes, and shows its app's log."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apothic.cli.connection import adopt, client, reaching
from apothic.cli.render import Screen

if TYPE_CHECKING:
    from apothic.client.connection import ControlPlaneClient
    from apothic.clock import SystemClock

LOOK_S = 0.2
SETTLE_S = 0.05  # an editor, or git, writes several files; a look between two of them sees a half
AGAIN_S = 1.0  # between tries to read the log of a server that does not answer

State = dict[Path, tuple[int, int] | None]


@click.command()
@click.argument("target", metavar="FILE[::APP]")
@click.option("--name", help="Deploy it under another name.")
@reaching
@click.pass_obj
def serve(screen: Screen, target: str, name: str | None) -> int:
    """Deploy an app, and again whenever its files change; show its log.

    What is deployed stays when this ends. A change that does not start is shown, and the version before goes on. With
    --json, one line of JSON for each event: `deployed`, `changed`, `failed` and `log`.
    """
    from apothic.cli.source import origin
    from apothic.clock import SystemClock

    adopt()
    clock = SystemClock()
    show = _Show(screen, clock)
    watch = Watch([origin(target)])
    try:
        with _deploying(target, name) as deploy:
            while True:
                watch.begin()
                begun = clock.monotonic()
                status, told = deploy()
                if status == 0:
                    show.deployed(told, clock.monotonic() - begun)
                else:
                    show.failed(told)
                    if status != 1 and not show.live:
                        return status  # no change of a file will mend that
                watch.end([Path(path) for path in told.get("sources", ())])
                show.changed(_next_change(watch, clock))
    except KeyboardInterrupt:
        show.stays()
        raise


def _next_change(watch: Watch, clock: SystemClock) -> list[Path]:
    """Wait until files differ from what was deployed, and no longer change; return them."""
    while not (found := watch.changed()):
        clock.pause(LOOK_S)
    while True:
        clock.pause(SETTLE_S)
        before, found = found, watch.changed()
        if found == before:
            return found


class Watch:
    """The files of an app, as they were when it was deployed last."""

    def __init__(self, origins: list[Path]) -> None:
        self._first = origins
        self._origins = origins
        self._seen: State = {}

    def begin(self) -> None:
        """Take the files as they are for those that are about to be deployed."""
        self._seen = _look(self._origins)

    def end(self, origins: list[Path]) -> None:
        """Watch `origins`, of which a deployment was made. What changed since `begin` counts as changed."""
        if origins:
            fresh = [one for one in origins if one not in self._origins]
            self._origins = sorted({*self._first, *origins})
            kept = {path: state for path, state in self._seen.items() if self._is_watched(path)}
            self._seen = _look(fresh) | kept

    def _is_watched(self, path: Path) -> bool:
        return any(path.is_relative_to(one) for one in self._origins)

    def changed(self) -> list[Path]:
        """Return the files that are not as they were."""
        now = _look(self._origins)
        return sorted(path for path in now.keys() | self._seen.keys() if now.get(path) != self._seen.get(path))


def _look(origins: list[Path]) -> State:
    from apothic.client.bundle import files_of
    from apothic.errors import ConfigError

    found: State = {}
    for origin in origins:
        try:
            for path in files_of(origin):
                found[path] = _state(path)
        except ConfigError:
            found[origin] = None  # it cannot travel as it is; deploying it says why
    return found


def _state(path: Path) -> tuple[int, int] | None:
    try:
        told = path.stat()
    except OSError:
        return None
    return told.st_mtime_ns, told.st_size


@contextmanager
def _deploying(target: str, name: str | None) -> Iterator[Deploy]:
    deploy = Deploy(target, name)
    try:
        yield deploy
    finally:
        deploy.close()


class Deploy:
    """Deploys in a process of its own each time, for a module can be imported anew nowhere else.

    The next process is there beforehand, with everything imported but the user's file: that is half of the time from
    a change to its answer.
    """

    def __init__(self, target: str, name: str | None) -> None:
        # -P: a file of the user's that is called like one of our modules must not be taken for it.
        self._command = [sys.executable, "-P", "-m", "apothic", "deploy", "--json", "--on-cue", target]
        self._command += ["--name", name] if name is not None else []
        self._next = self._start()

    def __call__(self) -> tuple[int, dict[str, Any]]:
        """Deploy; return the exit status, and what was printed: a deployment, or an error."""
        said, _ = self._next.communicate("now\n")
        status, lines = self._next.returncode, said.splitlines()
        self._next = self._start()
        return status, _document(lines)

    def _start(self) -> subprocess.Popen[str]:
        # A process group of its own: Ctrl-C is for the one that a person sees.
        return subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
        )

    def close(self) -> None:
        """End the process that waits for its cue, or the deployment that is under way."""
        self._next.terminate()
        self._next.communicate()


def _document(lines: list[str]) -> dict[str, Any]:
    """Return the last line of JSON: what the user's file prints while it is imported comes before."""
    for line in reversed(lines):
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict):
            return told
    return {}


class _Show:
    """What `serve` tells: from this thread, and from the one that reads the log."""

    def __init__(self, screen: Screen, clock: SystemClock) -> None:
        self._screen = screen
        self._clock = clock
        self._since = clock.now()
        self._lock = threading.Lock()
        self.live: dict[str, Any] = {}  # the deployment that was made last

    def deployed(self, told: dict[str, Any], seconds: float) -> None:
        """Tell what is live now; begin with the log, the first time."""
        first, self.live = not self.live, told
        services = [(one["name"], one["service_url"]) for one in told["functions"] if one.get("service_url")]
        same = "" if told["changed"] else ", nothing changed"
        lines = [f"{told['app']} is live: {told['deployment_id']} ({seconds:.1f} s{same})"]
        lines += [f"  {name}: {url}" for name, url in services]
        self._tell({"event": "deployed", "seconds": round(seconds, 3), **told}, "\n".join(lines))
        if first:
            self._screen.note("watching its files; Ctrl-C ends that, and leaves the app as it is")
            threading.Thread(target=self._tail, args=(client(), told["app"]), name="apothic-log", daemon=True).start()

    def failed(self, told: dict[str, Any]) -> None:
        """Tell that what was to be deployed is not; the process that tried has printed why."""
        if self._screen.as_json:
            self._tell({"event": "failed", **told}, "")
        goes_on = f"{self.live['app']} goes on as it was: {self.live['deployment_id']}" if self.live else ""
        self._screen.note(goes_on or "nothing is deployed yet; waiting for a change")

    def changed(self, files: list[Path]) -> None:
        """Tell which files are deployed now."""
        names = [str(path) for path in files]
        told = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"
        self._tell({"event": "changed", "files": names}, f"changed: {told}")

    def stays(self) -> None:
        """Tell what is left."""
        if self.live:
            app = self.live["app"]
            self._screen.note(f"{app} stays live: {self.live['deployment_id']}; to stop it: apothic app stop {app}")

    def _tell(self, document: dict[str, Any], text: str) -> None:
        with self._lock:
            self._screen.show(document, text)

    def _tail(self, asker: ControlPlaneClient, app: str) -> None:
        import asyncio

        import msgspec

        from apothic.cli.following import app_pages
        from apothic.errors import ApothicError

        after = -1
        while True:
            try:
                for page in app_pages(asker, app, None, follow=True, after=after):
                    for line in page.lines:
                        after = line.line
                        if line.at >= self._since:  # the app may be an old one
                            document = {"event": "log", **msgspec.to_builtins(line)}
                            self._tell(document, f"{line.function} | {line.text}")
            except ApothicError:
                self._clock.pause(AGAIN_S)
            except asyncio.CancelledError:
                return  # the library's loop has ended, and so does the process
