"""Puts the control plane together: the only place where its parts are constructed."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import ipaddress
import json
import logging
import os
import random
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import uvicorn
import uvloop

from apothic import __version__
from apothic.clock import Clock, SystemClock, wait_for
from apothic.config import Settings
from apothic.control.door import Door, SessionDoor
from apothic.control.gateway.gateway import Gateway
from apothic.control.http import Http
from apothic.control.hub import Hub
from apothic.control.keys import Keys, write_private
from apothic.control.plan import plan
from apothic.control.plane import Plane
from apothic.control.sessions import Sessions
from apothic.control.streams import Streams
from apothic.control.sweeps import clean, come_round, idle, sweep, unlock
from apothic.errors import ApothicError, ConfigError, ServerUnavailableError
from apothic.probe import Probe, from_environment
from apothic.protocol.session import Welcome
from apothic.store import folders
from apothic.store.blobs import Blobs
from apothic.store.catalog import Catalog
from apothic.store.collector import Collector
from apothic.store.db import Database
from apothic.store.dispatch import Dispatcher
from apothic.store.fleet import Fleet
from apothic.store.gauges import read_gauges
from apothic.store.holds import Holds
from apothic.store.jobs import Jobs
from apothic.store.retention import Retention
from apothic.store.schedules import Schedules
from apothic.store.services import Services
from apothic.store.stream import Stream

Announce = Callable[[str, str | None], None]


GARBAGE = 20_000  # objects that are made and not freed before the youngest are looked through

OTHER_FILES = 1_000  # than streams: requests, agents, services, the store

PROBE_S = 5.0  # how long /readyz waits for a write


class PortRefused(OSError):
    """A port cannot be listened on; `setting` is the one that names it."""

    def __init__(self, error: OSError, setting: str) -> None:
        super().__init__(error.errno, error.strerror)
        self.setting = setting


class Engine(Protocol):
    """Where agents come from."""

    async def keep(self, control: ControlPlane) -> None:
        """Keep agents alive, until cancelled."""
        ...

    async def ended(self, control: ControlPlane, within_s: float) -> None:
        """Wait until the agents it started are gone, and see to it."""
        ...


log = logging.getLogger("apothic.control")


class ControlPlane:
    """Every part of a control plane, made from settings, a clock and a probe."""

    def __init__(self, settings: Settings, clock: Clock, probe: Probe) -> None:
        data_dir = settings.data_dir
        self.hub = Hub()
        self.db = Database(data_dir / "apothic.db", clock=clock, probe=probe, durable=settings.durability == "full")
        self.catalog = Catalog(self.db, clock, self.hub.ring)
        self.jobs = Jobs(self.db, clock, self.hub.ring, random.Random())
        self.fleet = Fleet(self.db, clock, self.jobs, self.hub.ring, settings.lease_s)
        self.blobs = Blobs(data_dir / "blobs", self.db, clock, probe, settings.payload_limit)
        self.jobs.room.ceiling = settings.disk_ceiling
        self.retention = Retention(self.db, clock, self.hub.ring, self.jobs.room, settings.retention_days * 86400.0)
        self.collector = Collector(self.db, clock, self.blobs, self.jobs.room)
        self.keys = Keys(self.catalog, clock)
        welcome = Welcome(
            lease_s=settings.lease_s,
            grace_s=settings.grace_s,
            startup_timeout_s=settings.startup_timeout_s,
            payload_limit=settings.payload_limit,
            inline_limit=settings.inline_limit,
        )
        self.sessions = Sessions(self.fleet, welcome, probe, clock)
        self.services = Services(self.db, clock, self.hub.ring)
        self.gateway = Gateway(
            self.services, self.keys, self.hub, clock, self.sessions.push, hosts=gateway_hosts(settings),
            open_by_default=is_loopback(settings.host), startup_timeout_s=settings.startup_timeout_s,
            grace_s=settings.grace_s,
        )  # fmt: skip
        self.sessions.drain = self.gateway.push
        self.fleet.obituary = self.gateway.obituary
        dispatcher = Dispatcher(
            self.jobs, clock, plan=plan, push=self.gateway.push, sign=self.keys.sign, ring=self.hub.ring,
            lease_s=settings.lease_s,
        )  # fmt: skip
        dispatcher.obituary = self.gateway.obituary
        self.db.last_word = dispatcher.last_word
        self.schedules = Schedules(self.db, clock, self.jobs)
        self.holds = Holds(self.db, clock, self.jobs, self.sessions.push)
        self.streams = Streams(
            Stream(self.db, self.jobs), self.holds, self.hub, clock, settings.streams_max, random.Random()
        )
        self.plane = Plane(
            jobs=self.jobs, catalog=self.catalog, fleet=self.fleet, blobs=self.blobs, keys=self.keys, hub=self.hub,
            sessions=self.sessions, streams=self.streams, clock=clock, max_wait_s=settings.max_wait_s,
            inline_limit=settings.inline_limit,
        )  # fmt: skip
        self.http = Http(
            self.plane,
            self.keys,
            self.sessions,
            known_hosts(settings.host),
            partial(read_gauges, self.db, self.jobs.room),
            probe,
        )
        self.plane.problem = self._problems

    async def open(self, data_dir: Path) -> None:
        """Open the store and the keys, and begin this control plane's life."""
        self.blobs.clear()
        self.db.open()
        await self.keys.open(self.jobs)
        await self.keys.from_file(data_dir / "admin.key", "admin of this data directory", ["admin"])
        local = await self.keys.from_file(data_dir / "agent.key", "agent of this data directory", ["worker"])
        self.fleet.local_key = (await self.keys.check(local)).id
        await self.fleet.restart()
        await self.holds.restart()
        await self.schedules.restart()
        await self.collector.restart()

    async def _problems(self) -> list[str]:
        """Return what keeps this server from taking jobs. An agent can always be started: the engine sees to it."""
        try:
            async with asyncio.timeout(PROBE_S):
                await self.catalog.write_something()
        except TimeoutError:
            return [f"the store has taken no write for {PROBE_S:g} s"]
        except ApothicError as error:
            return [f"the store takes no writes: {error.message}"]
        return []


class _Server(uvicorn.Server):
    """uvicorn, with its start told and its signals left to us."""

    def __init__(self, config: uvicorn.Config, started: asyncio.Event) -> None:
        super().__init__(config)
        self._told = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._told.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(settings: Settings, engine: Engine, *, embedded: bool, announce: Announce) -> None:
    """Run a control plane, with the agents that `engine` starts, until SIGINT or SIGTERM.

    `announce(base_url, gateway_url)` is called once requests are accepted. Raises `PortRefused` when a port cannot be
    had, `ConfigError` for a data directory that cannot be used, `ServerUnavailableError` when it has a server already.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    # Threads that read give the interpreter up at each SQLite call and want it back; a busy event loop would keep it
    # for the default of 5 ms each time.
    sys.setswitchinterval(0.0002)
    # What a batch of jobs allocates is freed by itself; collecting each 700 objects looked at all jobs that wait for
    # their results over and over, a fifth of a busy server's time.
    gc.set_threshold(GARBAGE, 20, 50)
    open_files(settings.streams_max + OTHER_FILES)
    with (
        locked(settings.data_dir),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        bind(settings.host, settings.port) as api,
        bind(settings.host, settings.gateway_port, "gateway_port") as web,
    ):
        runner.run(_serve(settings, engine, api, web, embedded=embedded, announce=announce))


async def _serve(
    settings: Settings, engine: Engine, api: socket.socket, web: socket.socket, *, embedded: bool, announce: Announce
) -> None:
    clock = SystemClock()
    control = ControlPlane(settings, clock, from_environment(os.environ.get("APOTHIC_PROBE", "")))
    await control.open(settings.data_dir)
    base_url, gateway_url = url_of(api), settings.gateway_url or url_of(web)
    control.catalog.gateway_url = gateway_url
    stopping, started = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = _Server(_uvicorn(control.http), started)
    answering = asyncio.create_task(server.serve([api]))
    await started.wait()
    gc.freeze()  # what is there by now stays
    document = {"base_url": base_url, "gateway_url": gateway_url, "data_dir": str(settings.data_dir)}
    about = settings.data_dir / "server.json"
    write_private(about, json.dumps({**document, "pid": os.getpid(), "version": __version__}) + "\n")
    announce(base_url, gateway_url)
    loops = [
        asyncio.create_task(sweep(control.jobs, control.fleet, control.holds, control.sessions.drop, clock)),
        asyncio.create_task(control.gateway.serve(web)),
        asyncio.create_task(engine.keep(control)),
    ]
    loops.append(asyncio.create_task(unlock(control.plane.waits, control.fleet, clock)))
    loops.append(asyncio.create_task(come_round(control.schedules, clock)))
    loops += [asyncio.create_task(clean(each.step, clock)) for each in (control.retention, control.collector)]
    if embedded:
        idling = idle(
            clock, control.jobs, control.schedules, control.services, lambda: control.http.requests, stopping.set
        )
        loops.append(asyncio.create_task(idling))
    for loop in loops:
        loop.add_done_callback(partial(_ended, stopping))
    await stopping.wait()
    log.info("server.stopping")
    await _stop(control, engine, loops, clock, settings.grace_s)
    server.should_exit = True
    await answering
    await control.db.close()
    about.unlink(missing_ok=True)
    for loop in loops:
        if loop.done() and not loop.cancelled():
            loop.result()


def _ended(stopping: asyncio.Event, loop: asyncio.Task[None]) -> None:
    """Stop the server when one of its loops fails: without sweeps, or a gateway, it only seems to be well."""
    if not loop.cancelled() and loop.exception() is not None:
        log.error("server.failed error=%s", loop.exception())
        stopping.set()


def open_files(wanted: int) -> None:
    """Let this process open so many files, if it may: 1,024 is usual, and each stream is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


async def _stop(
    control: ControlPlane, engine: Engine, loops: list[asyncio.Task[None]], clock: Clock, grace_s: float
) -> None:
    """Let the agents finish what they can within the grace; then end the loops."""
    sweeping, serving, *others = loops
    for task in others:
        task.cancel()
    control.db.last_word = None  # what is given back waits for the next server
    closing = asyncio.create_task(control.gateway.close(grace_s))
    control.sessions.leave("the server stops")
    until = clock.monotonic() + grace_s + 10.0
    while len(control.sessions) and clock.monotonic() < until:
        control.sessions.changed.clear()
        await wait_for(clock, control.sessions.changed, until - clock.monotonic())
    await closing
    await engine.ended(control, 5.0)
    control.sessions.close()
    control.streams.close()
    sweeping.cancel()
    serving.cancel()
    await asyncio.gather(*loops, return_exceptions=True)


def _uvicorn(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Door,
        ws=SessionDoor,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        ws_max_size=256 * 1024 * 1024,
        # Pings find a half-open session; frames of a busy agent may hold them up for a while.
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        ws_per_message_deflate=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )


def bind(host: str, port: int, setting: str = "port") -> socket.socket:
    """Return a listening socket; port 0 takes a free one. Raises `PortRefused`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # IPPROTO_TCP aloud: without it asyncio leaves Nagle on for accepted sockets, 44 ms a request instead of 3
    # (uvicorn#3149).
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PortRefused(error, setting) from error
    listener.listen(2048)
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address that a client on this machine uses."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def known_hosts(host: str) -> set[str]:
    """Return the names by which this server may be addressed."""
    return {"localhost", host, socket.gethostname(), socket.getfqdn()} - {""}


def is_loopback(host: str) -> bool:
    """Tell whether a listener on this address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def gateway_hosts(settings: Settings) -> set[str] | None:
    """Return the names by which the gateway may be addressed; `None` for any, as it has those that others give it."""
    if not is_loopback(settings.host):
        return None
    told = urlsplit(settings.gateway_url).hostname if settings.gateway_url is not None else None
    return {*known_hosts(settings.host), "127.0.0.1", "::1", told or "localhost"}


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold the data directory; one server at a time has it.

    Raises `ConfigError` when the directory cannot be used, `ServerUnavailableError` when another server has it.
    """
    try:
        folders.make(data_dir)
        lock = (data_dir / "server.lock").open("a+")
    except OSError as error:
        raise ConfigError(
            f"the data directory {data_dir} cannot be used: {error.strerror}",
            hint="choose one you may write to, with --data-dir or APOTHIC_DATA_DIR",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerUnavailableError(
                f"a server runs in {data_dir} already", hint="`apothic status` shows it, `apothic down` ends it"
            ) from None
        yield
