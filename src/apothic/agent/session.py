"""The agent's life: one outbound session over which work comes and news goes, and which may break at any time.

A cut changes nothing for what runs. The agent says hello again with what it has, and sends again, in order, whatever
was not acknowledged. A remote agent ends its containers itself when its leases have run out; a local one can see that
the server is gone, and waits for the next.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

import msgspec

from apothic.agent.containers import Containers
from apothic.agent.door import Door
from apothic.agent.launcher import Launcher
from apothic.agent.outbox import Outbox
from apothic.agent.relay import Relay
from apothic.agent.route import ABSENCE_S, Freight, Route, Server
from apothic.agent.wire import Refused, Wire, connect
from apothic.clock import Clock, wait_for
from apothic.protocol import ids
from apothic.protocol.routes import SESSION_PATH
from apothic.protocol.session import (
    Acknowledge,
    CancelAttempt,
    Downward,
    Hello,
    Leave,
    Renew,
    Renewed,
    Resume,
    StartContainer,
    StopContainer,
    Welcome,
    Work,
)

LAST_WORDS_S = 5.0  # for the last reports to be acknowledged, once everything has ended

_log = logging.getLogger("apothic.agent")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Downward).decode


class Agent:
    """Holds the session and the containers. `home` is its own directory; `version` is told in the hello."""

    def __init__(
        self, route: Route, home: Path, clock: Clock, *, version: str, gpus: tuple[str, ...] = (), kill_s: float = 5.0,
        launcher: Launcher | None = None,
    ) -> None:  # fmt: skip
        self.id = ids.new("agt", clock.now())
        self.refused: str | None = None  # what the control plane said when it did not let us in at all
        self._route = route
        self._home = home
        self._clock = clock
        self._version = version
        self._gpus = gpus
        self._kill_s = kill_s
        self._launcher = launcher
        self._freight = Freight(route, clock)
        self._outbox = Outbox(clock, self._post)
        self._containers: Containers | None = None
        self._relay = Relay(self._door, clock)
        self._welcome: Welcome | None = None
        self._met = False
        self._trouble = ""
        self._live = False  # welcomed: frames may go out
        self._over = asyncio.Event()
        self._departure: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._wire: Wire | None = None
        self._renewals = 0
        self._sent_at: dict[int, float] = {}
        self._heard_at = clock.monotonic()  # when what was last acknowledged had been sent

    async def run(self) -> None:
        """Serve until told to leave, or until nobody has been there for too long. Ends every container first."""
        fence = asyncio.create_task(self._guard())
        try:
            await self._keep_session()
        finally:
            fence.cancel()
            await self._relay.close()
            if self._containers is not None:
                await self._containers.close()
            await self._freight.close()

    def leave(self, reason: str) -> None:
        """Finish, or give back within the grace, and end."""
        if self._departure is None:
            _log.info("leaving: %s", reason)
            self._departure = asyncio.get_running_loop().create_task(self._depart(reason))

    # --- the session

    async def _keep_session(self) -> None:
        tries = 0
        while not self._over.is_set():
            server = self._route.find()
            answered = False
            if server is not None:
                try:
                    answered = await self._converse(server)
                except OSError as error:
                    if self._is_refusal(error):
                        return
                    self._complain(f"no session with {server.base_url}: {error}")
                except msgspec.MsgspecError as error:
                    _log.error("a frame cannot be read, starting anew: %s", error)
            tries = 0 if answered else tries + 1
            await wait_for(self._clock, self._over, self._route.pause(tries))

    def _is_refusal(self, error: Exception) -> bool:
        refused = isinstance(error, Refused) and error.status in (401, 403, 426)
        if refused:
            self._complain("the control plane refuses our key: it is wrong, expired, revoked, or no agent's")
            if not self._route.local and not self._met:
                self.refused = "it is wrong, expired, revoked, or no agent's"
                return True
        return False

    def _complain(self, trouble: str) -> None:
        """Say what keeps us from a session: once, however often it is tried."""
        if trouble != self._trouble:
            _log.warning("%s", trouble)
            self._trouble = trouble

    async def _converse(self, server: Server) -> bool:
        """Hold one session to its end; return whether we were welcome."""
        said_at = 0.0

        def hear(data: bytes | bytearray | memoryview) -> None:
            frame = _decode(data)
            if isinstance(frame, Welcome):
                if self._wire is not None:  # nobody is welcome before the hello
                    self._welcomed(frame, self._wire, server, said_at)
            else:
                self._take(frame)

        wire = await connect(server.base_url + SESSION_PATH, server.key, hear, self._clock)
        self._sent_at.clear()
        self._wire = wire
        if self._over.is_set():
            wire.close()
        watching = asyncio.create_task(wire.watch())
        try:
            if not self._route.local:
                # Where the control plane can reach us: the address from which we have reached it.
                await self._relay.open(wire.address)
            said_at = self._clock.monotonic()
            wire.send(_encode(self._hello()))
            await wire.ended()
        finally:
            was_welcome, self._live = self._renewing is not None, False
            watching.cancel()
            if self._renewing is not None:
                self._renewing.cancel()
            self._renewing = self._wire = None
            wire.abort()
            _log.info("the session has ended")
        return was_welcome

    def _hello(self) -> Hello:
        containers = self._containers
        return Hello(
            agent=self.id,
            version=self._version,
            host=socket.gethostname(),
            pid=os.getpid(),
            cpu=float(len(os.sched_getaffinity(0))),
            memory_mb=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
            gpus=list(self._gpus),
            # What has ended but was not acknowledged counts as held: the frames that tell it come right after.
            containers=[*(containers.news() if containers is not None else []), *self._outbox.ended_containers()],
            leases=[*(containers.leases() if containers is not None else []), *self._outbox.ended_leases()],
            leaving=self._departure is not None,
            address=self._relay.address,
        )

    def _door(self, container: str) -> Door | None:
        found = self._containers.live.get(container) if self._containers is not None else None
        return found.door if found is not None else None

    def _welcomed(self, welcome: Welcome, wire: Wire, server: Server, said_at: float) -> None:
        _log.info("welcomed by %s", server.base_url)
        self._welcome = welcome
        self._met = True
        self._heard_at = said_at
        if self._containers is None:
            self._containers = Containers(
                self._home, welcome, self._outbox, self._freight, self._clock, kill_s=self._kill_s,
                launcher=self._launcher,
            )  # fmt: skip
        self._containers.site.limits = welcome
        self._containers.moved(server.base_url)
        self._containers.site.relay = self._relay.address
        self._containers.drop(welcome.dead_leases)
        self._containers.end(welcome.dead_containers)
        for kept in self._outbox.unacknowledged():
            wire.send(kept)
        self._outbox.credit.resume_all()
        self._live = True
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew(welcome.lease_s / 3))

    def _take(self, frame: Downward) -> None:
        containers = self._containers
        if containers is None:
            return
        match frame:
            case Work(assignments=assignments):
                containers.assign(*assignments)
            case Acknowledge(number=number, paused=paused):
                self._outbox.acknowledged(number, paused)
            case Resume(token=token):
                self._outbox.credit.resume(token)
            case CancelAttempt(job=job, token=token):
                containers.cancel(job, token)
            case StartContainer():
                containers.start(frame)
            case StopContainer(container=container, reason=reason, finish=finish):
                containers.stop(container, reason, finish=finish)
            case Renewed(number=number):
                self._heard_at = max(self._heard_at, self._sent_at.pop(number, self._heard_at))
                containers.drop(frame.dead_leases)
            case Leave(reason=reason):
                containers.release()
                self.leave(reason)

    def _post(self, frame: bytes) -> None:
        if self._live and self._wire is not None:  # what is made before the welcome is sent after it
            self._wire.send(frame)

    async def _renew(self, every_s: float) -> None:
        while True:
            await self._clock.sleep(every_s)
            self._renew_now()

    def _renew_now(self) -> None:
        self._renewals += 1
        self._sent_at[self._renewals] = self._clock.monotonic()
        self._post(_encode(Renew(number=self._renewals, leaving=self._departure is not None)))

    # --- the end of a lease, and of the agent

    async def _guard(self) -> None:
        """End what runs when nobody has answered for too long."""
        while True:
            lease_s = self._welcome.lease_s if self._welcome is not None else 30.0
            await self._clock.sleep(min(1.0, lease_s / 10))
            silent_s = self._clock.monotonic() - self._heard_at
            if self._route.local:
                if silent_s > ABSENCE_S and not self._live:
                    _log.error("no server for %d s: ending", silent_s)
                    self._stop()
                    return
            elif silent_s > lease_s and self._containers is not None and self._containers.live:
                _log.error("the leases have run out: ending %d containers", len(self._containers.live))
                self._containers.end(list(self._containers.live))

    async def _depart(self, reason: str) -> None:
        if self._containers is not None and self._welcome is not None:
            self._renew_now()  # before anything is given back: it must not come here again
            if not self._live:
                self._containers.release()  # who would tell it is not there
            await self._containers.drain(reason, self._welcome.grace_s)
            until = self._clock.monotonic() + max(LAST_WORDS_S, self._welcome.grace_s)
            while (self._containers.leases() or not self._outbox.empty) and self._clock.monotonic() < until:
                await self._clock.sleep(0.01)
        self._stop()

    def _stop(self) -> None:
        self._over.set()
        if self._wire is not None:
            self._wire.close()
