"""The server on this machine that a client finds by its data directory, and starts when none is running there."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from apothic.clock import Clock, SystemClock
from apothic.errors import ApothicError, ConfigError, ServerUnavailableError, from_wire
from apothic.transport import library

START_S = 60.0
LOOK_S = 0.05
ANSWER_S = 2.0
LOCKED_STATUS = 3  # how a server ends that finds another one in its data directory
_TAIL_BYTES = 2_000


@dataclass(frozen=True)
class Found:
    """A server as its `server.json` has it."""

    base_url: str
    pid: int


def is_loopback(base_url: str) -> bool:
    """Tell whether a URL names this machine by a loopback address.

    >>> is_loopback("http://127.0.0.1:8700"), is_loopback("https://jobs.example.org")
    (True, False)
    """
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def look(data_dir: Path) -> Found | None:
    """Read the data directory's `server.json`; `None` when there is none to be read."""
    try:
        told = json.loads((data_dir / "server.json").read_text())
        return Found(base_url=str(told["base_url"]), pid=int(told["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def admin_key(data_dir: Path, base_url: str) -> str | None:
    """Return the admin key if `base_url` is the loopback server of that data directory."""
    # Every request asks; reading both files anew was a third of what a call cost its caller.
    return _admin_key(data_dir, base_url, _stamp(f"{data_dir}/server.json"), _stamp(f"{data_dir}/admin.key"))


@lru_cache(16)
def _admin_key(data_dir: Path, base_url: str, *stamps: tuple[int, int, int] | None) -> str | None:
    found = look(data_dir)
    if found is None or not is_loopback(base_url) or urlsplit(found.base_url).port != urlsplit(base_url).port:
        return None
    try:
        return (data_dir / "admin.key").read_text().strip() or None
    except OSError:
        return None


def _stamp(file: str) -> tuple[int, int, int] | None:
    """Return what changes when a file is written."""
    try:
        told = Path(file).stat()
    except OSError:
        return None
    return told.st_ino, told.st_size, told.st_mtime_ns


async def find(data_dir: Path) -> Found | None:
    """Return the server of that data directory if it is alive."""
    found = look(data_dir)
    return found if found is not None and await _answers(found.base_url) else None


async def _answers(base_url: str) -> bool:
    parts = urlsplit(base_url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET /healthz HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
            finally:
                writer.close()
    except TimeoutError:
        return True  # it accepts and is slow: another one could not be started beside it
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return False
    return b"apothic-version:" in head.lower()


async def find_or_start(data_dir: Path, *, autostart: bool, clock: Clock | None = None) -> Found:
    """Return the server of that data directory, after starting it when none is running.

    Raises `ServerUnavailableError` when it may not or does not start, `ConfigError` when the directory cannot be used.
    """
    clock = clock or SystemClock()
    until = clock.monotonic() + START_S
    while (found := await find(data_dir)) is None:
        if not autostart:
            stale = look(data_dir)
            raise ServerUnavailableError(
                f"no control plane is running in {data_dir}, and APOTHIC_AUTOSTART=0 forbids to start one",
                url=stale.base_url if stale else "http://127.0.0.1:8700",
                hint="start one with `apothic up`, or set APOTHIC_BASE_URL to one that runs",
            )
        started = await _Start(data_dir).outcome(until - clock.monotonic())
        if started is not None:
            return started
        # Another client was faster: its server holds the lock, and is about to answer.
        if clock.monotonic() > until:
            raise ServerUnavailableError(
                f"another server holds {data_dir} and does not answer",
                hint=f"look into {data_dir / 'server.log'}; `apothic down` ends it",
            )
        await clock.sleep(LOOK_S)
    return found


class _Start:
    """One try to start a server, in a session of its own, so that it outlives us and our Ctrl-C."""

    def __init__(self, data_dir: Path) -> None:
        self._log = data_dir / "server.log"
        self._data_dir = data_dir
        # -P: a file of the user's that is called like one of our modules must not be taken for it.
        command = [
            sys.executable, "-P", "-m", "apothic", "server", "--data-dir", str(data_dir), "--port", "0",
            "--gateway-port", "0", "--embedded", "--json",
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name != "APOTHIC_API_KEY"}
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                self._from = log.tell()
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise ConfigError(
                f"the data directory {data_dir} cannot be used: {error.strerror or error}",
                hint="set APOTHIC_DATA_DIR to a directory that you can write",
            ) from None

    async def outcome(self, seconds: float) -> Found | None:
        """Return the server once it accepts requests; `None` if another one holds the data directory."""
        told: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        # This thread also waits for the process, so that it never is a zombie of ours.
        watch = threading.Thread(target=self._watch, args=(asyncio.get_running_loop(), told), daemon=True)
        watch.name = "apothic-server-watch"
        watch.start()
        # What a new server is asked first goes by way of it: 0.1 s of imports while there is nothing else to do.
        self._importing = asyncio.create_task(library())
        try:
            document = await asyncio.wait_for(told, max(seconds, 1.0))
        except TimeoutError:
            self._process.terminate()
            raise self._failed(f"did not start within {START_S:g} s") from None
        if document is not None and "base_url" in document:
            found = Found(base_url=str(document["base_url"]), pid=int(document["pid"]))
            sys.stderr.write(
                f"apothic: started a local server (process {found.pid}, data in {self._data_dir}); "
                "`apothic down` ends it\n"
            )
            sys.stderr.flush()
            return found
        status = await asyncio.to_thread(self._process.wait)
        if status == LOCKED_STATUS:
            return None
        if document is not None and "error" in document:
            wrong = document["error"]
            raise from_wire(wrong["code"], wrong["message"], wrong.get("hint", ""), wrong.get("details"))
        raise self._failed(f"ended with status {status}")

    def _watch(self, loop: asyncio.AbstractEventLoop, told: asyncio.Future[dict[str, Any] | None]) -> None:
        assert self._process.stdout is not None
        document: dict[str, Any] | None = None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    document = json.loads(line)
                    break
                except ValueError:
                    continue

        def tell() -> None:
            if not told.done():
                told.set_result(document)

        loop.call_soon_threadsafe(tell)
        self._process.wait()

    def _failed(self, what: str) -> ApothicError:
        with self._log.open("rb") as log:
            log.seek(self._from)
            tail = log.read()[-_TAIL_BYTES:].decode(errors="replace").strip()
        return ServerUnavailableError(
            f"the local server {what}" + (f"; the end of its log:\n{tail}" if tail else ""),
            hint=f"`apothic server --data-dir {self._data_dir}` runs it in the foreground; its log is {self._log}",
        )
