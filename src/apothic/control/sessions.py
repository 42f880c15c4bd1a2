"""The control plane's end of the agents' sessions: frames down as they come, news up in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from apothic.clock import Clock
from apothic.errors import ApothicError, AuthError, StorageFullError
from apothic.probe import Probe
from apothic.protocol.session import (
    Acknowledge,
    CancelAttempt,
    Downward,
    Hello,
    Leave,
    Renew,
    Renewed,
    Reports,
    StopContainer,
    Upward,
    Welcome,
)
from apothic.store.fleet import Fleet, Overdue
from apothic.store.jobs import Running

log = logging.getLogger("apothic.control")
_decode = msgspec.msgpack.Decoder(Upward).decode
_encode = msgspec.msgpack.Encoder().encode

OVERDUE = "its lease ran out"
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
SendNow = Callable[[bytes], bool]  # writes a frame at once, if that can be done
Allowed = Callable[[], Awaitable[bool]]


class Session:
    """One websocket of one agent."""

    def __init__(self, send: Send, send_now: SendNow) -> None:
        self._send = send
        self._send_now = send_now
        self._is_free = False  # all that was pushed is sent
        self._frames: asyncio.Queue[Downward | None] = asyncio.Queue()
        self.agent = ""
        self.dead: set[str] = set()  # tokens of reports that were refused

    def push(self, frame: Downward | None) -> None:
        """Send a frame as soon as those before it are sent; `None` closes the session."""
        if not (self._is_free and frame is not None and self._send_now(_encode(frame))):
            self._is_free = False
            self._frames.put_nowait(frame)

    def forget(self) -> None:
        """Drop what was pushed and not yet sent, but for the end: another session may be in this one's place."""
        is_over = False
        while not self._frames.empty():
            is_over |= self._frames.get_nowait() is None
        if is_over:
            self.push(None)

    async def send_all(self, welcome: Welcome) -> None:
        """Send the welcome, then whatever is pushed, until the session is closed."""
        frame: Downward | None = welcome
        while frame is not None:
            await self._send({"type": "websocket.send", "bytes": _encode(frame)})
            self._is_free = self._frames.empty()
            frame = await self._frames.get()
        await self._send({"type": "websocket.close", "code": 1001})


class Sessions:
    """All sessions by agent. What is pushed to an agent that is not here is dropped: its next hello sets it right."""

    def __init__(self, fleet: Fleet, welcome: Welcome, probe: Probe, clock: Clock) -> None:
        self._fleet = fleet
        self._clock = clock
        self._welcome = welcome
        self._probe = probe
        self._sessions: dict[str, Session] = {}
        self.changed = asyncio.Event()
        self.drain: Callable[[str, Downward], None] = self.push  # of a container that may have requests

    def push(self, agent: str, frame: Downward) -> None:
        """Send a frame to an agent."""
        session = self._sessions.get(agent)
        if session is not None:
            self._probe.reach("dispatch.push")
            session.push(frame)

    def cancel(self, running: Running) -> None:
        """Tell an agent to end an attempt."""
        self.push(running.agent, CancelAttempt(job=running.job, token=running.token))

    def drop(self, overdue: list[Overdue]) -> None:
        """Tell agents which leases are over, and their containers with them: what ran there may run on.

        Then the sessions end: those agents were silent for a whole term. Who wakes says hello, and is given work again.
        """
        for lease in overdue:
            self.push(lease.agent, Renewed(number=0, dead_leases=[lease.token]))
            self.push(lease.agent, StopContainer(container=lease.container, reason=OVERDUE))
        for agent in {lease.agent for lease in overdue} & self._sessions.keys():
            self._sessions[agent].push(None)

    def leave(self, reason: str) -> None:
        """Ask every agent to finish and end."""
        for agent in list(self._sessions):
            self.push(agent, Leave(reason=reason))

    def close(self) -> None:
        """Close every session; the agents keep their containers and come back."""
        for session in self._sessions.values():
            session.push(None)

    def __len__(self) -> int:
        return len(self._sessions)

    async def serve(
        self, receive: Receive, send: Send, key: str, allowed: Allowed, send_now: SendNow = lambda data: False
    ) -> None:
        """Run one session from hello to its end, or until `allowed` says that `key` opens it no longer."""
        session = Session(send, send_now)
        sending: asyncio.Task[None] | None = None
        applying: set[asyncio.Task[None]] = set()
        code = 0  # under which we end it
        try:
            while (message := await receive())["type"] == "websocket.receive":
                frame = _decode(message.get("bytes") or b"")
                if isinstance(frame, Hello):
                    if sending is not None:
                        raise ValueError("a session has one hello")
                    sending = await self._hello(session, frame, key)
                elif isinstance(frame, Renew) and not await allowed():
                    log.warning("session.key agent=%s", session.agent)
                    code = 1008
                    break
                elif sending is not None:
                    # Started in order, they reach the writer in order; none waits for the commit of the one before.
                    task = asyncio.create_task(self._apply(session, frame))
                    applying.add(task)
                    task.add_done_callback(applying.discard)
        except (ValueError, RecursionError) as error:  # what msgspec raises is all ValueError but for deep nesting
            log.warning("session.garbage agent=%s error=%s", session.agent, error)
            code = 1007
        except ApothicError as error:  # of the hello: on a full disk, for one. It will come again
            log.warning("session.refused agent=%s error=%s", session.agent, error.message)
            code = 1008 if isinstance(error, AuthError) else 1013
        finally:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                if sending is not None:
                    sending.cancel()
                    await sending
            if code:
                with contextlib.suppress(Exception):  # it has gone meanwhile, or was ended by us already
                    await send({"type": "websocket.close", "code": code})
            await self._ended(session)

    async def _hello(self, session: Session, hello: Hello, key: str) -> asyncio.Task[None]:
        session.agent = hello.agent
        await self._fleet.admit(hello.agent, key)  # before the session of whoever has that name is touched
        before = self._sessions.get(hello.agent)
        if before is not None:
            before.push(None)
        # Registered before the store knows the agent: what is pushed by that very commit waits behind the welcome. What
        # earlier commits push meanwhile is void, because the hello takes back what the agent has not heard of.
        self._sessions[hello.agent] = session
        reconciled = await self._fleet.hello(hello, key, session.forget)
        log.info("session.hello agent=%s pid=%d containers=%d", hello.agent, hello.pid, len(hello.containers))
        welcome = msgspec.structs.replace(
            self._welcome, dead_leases=reconciled.dead_leases, dead_containers=reconciled.dead_containers
        )
        for running in reconciled.cancelling:
            self.cancel(running)
        for container in reconciled.stopping:
            stop = StopContainer(container=container, reason="it was to stop already", finish=True)
            self.drain(hello.agent, stop)
        self.changed.set()
        self._probe.reach("hello.reply")
        return asyncio.create_task(session.send_all(welcome))

    async def _apply(self, session: Session, frame: Reports | Renew) -> None:
        try:
            if isinstance(frame, Reports):
                applied = await self._fleet.reports(session.agent, frame)
                session.dead.update(applied.dead)
                self._probe.reach("report.reply")
                session.push(Acknowledge(number=frame.number, paused=applied.paused))
            else:
                if frame.leaving:
                    for container in await self._fleet.leaving(session.agent):
                        stop = StopContainer(container=container, reason="its agent leaves", finish=True)
                        self.drain(session.agent, stop)
                else:
                    await self._fleet.renew(session.agent)
                self._probe.reach("renew.reply")
                dead, session.dead = sorted(session.dead), set()
                session.push(Renewed(number=frame.number, dead_leases=dead))
        except Exception as error:
            # Not acknowledged, so it will come again: on a full disk, once there is space.
            told, ours = str(error).partition("\n")[0], isinstance(error, ApothicError)
            log.warning(
                "session.refused agent=%s number=%d error=%s", session.agent, frame.number, told, exc_info=not ours
            )
            session.push(None)

    async def _ended(self, session: Session) -> None:
        if self._sessions.get(session.agent) is session:
            del self._sessions[session.agent]
            self.changed.set()
            log.info("session.ended agent=%s", session.agent)
            await self._disconnected(session.agent)

    async def _disconnected(self, agent: str) -> None:
        """Tell the store, once it can be told: an agent that seems connected would be given jobs, and lose them."""
        while agent not in self._sessions:
            try:
                await self._fleet.disconnected(agent)
                return
            except StorageFullError:
                await self._clock.sleep(1.0)
