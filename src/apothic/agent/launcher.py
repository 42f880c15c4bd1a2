"""Starts the processes of containers: forked from a zygote, or with an interpreter of their own where none serves.

A fork is asked for and awaited in one go, without a turn of the loop in between: so nobody can stop a container that
has a process and no pid yet, and `Leftovers` sees none that it does not know. It takes as long as `subprocess` did.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apothic.agent import birth, isolate
from apothic.agent.ends import Ends, open_ends

_PYTHON = (sys.executable, "-P", "-m")
_ANSWER_S = 5.0  # a fork takes a millisecond or two: a zygote that is silent for so long is stopped, or stuck
_TRIES = 2  # a zygote that has died unnoticed is only found out when it is asked
_log = logging.getLogger("apothic.agent")


@dataclass(frozen=True)
class Child:
    """A process of ours that is a container's, our ends of it, and the number that its listener has there."""

    pid: int
    ends: Ends
    listener: int | None


class Launcher:
    """Has one zygote at any time. `mark` begins what names it and its forks in their environment.

    Make it in the main thread: the zygote ends with the thread that started it.
    """

    def __init__(self, mark: str) -> None:
        isolate.adopt_orphans()  # before there is a zygote: its grandchildren are to come to us
        self._mark = mark
        self._hearing = asyncio.Lock()
        self._zygote: _Zygote | None = _Zygote(mark)
        self._barren = False

    @property
    def pids(self) -> list[int]:
        """The processes of ours that are no containers."""
        return [self._zygote.pid] if self._zygote is not None else []

    async def start(self, env: Mapping[str, str], work_dir: Path, listener: int | None) -> Child:
        """Start a container in a session of its own. Raises `LaunchError`."""
        tries = 0 if self._barren else _TRIES
        try:
            for _ in range(tries):
                zygote = self._zygote = self._zygote or _Zygote(self._mark)
                try:
                    async with self._hearing:
                        await zygote.ready()
                    return zygote.fork(env, work_dir, listener)
                except _ZygoteGone as error:
                    _log.warning("the zygote is gone: %s", error)
                    if zygote is self._zygote:
                        self.close()
                        self._barren = zygote.barren
        except OSError as error:
            _log.warning("no container could be forked: %s", error)
        try:
            return _fresh(env, work_dir, listener)
        except OSError as error:
            raise LaunchError(str(error)) from error

    def close(self) -> None:
        """End the zygote; its containers stay."""
        if self._zygote is not None:
            self._zygote.end()
            self._zygote = None


class LaunchError(Exception):
    """The system has no process for a container."""


class _ZygoteGone(Exception):
    """It has died, or does not answer."""


class _Zygote:
    """The process that has imported what containers need."""

    def __init__(self, mark: str) -> None:
        self._ready = False
        # Packets: a message and its descriptors come whole, or not at all.
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._popen = subprocess.Popen(
                [*_PYTHON, "apothic.agent.zygote", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True,
                env=isolate.environment(os.environ, mark=f"{mark}/zygote", tmp=Path(mark)),
            )  # fmt: skip
        except BaseException:
            self._sock.close()
            raise
        finally:
            theirs.close()
        self._sock.setblocking(False)
        self.pid = self._popen.pid

    @property
    def barren(self) -> bool:
        """Whether it has given up by itself before it was ready, as the next one would."""
        return not self._ready and (self._popen.returncode or 0) > 0

    async def ready(self) -> None:
        """Wait until it has imported everything. Raises `_ZygoteGone`."""
        while not self._ready:
            try:
                self._answer()
                self._ready = True
            except BlockingIOError:
                await _readable(self._sock)

    def fork(self, env: Mapping[str, str], work_dir: Path, listener: int | None) -> Child:
        """Ask for a container. Raises `_ZygoteGone`, or the `OSError` of a fork that failed."""
        order = birth.encode(birth.Order(dict(env), str(work_dir)))
        if len(order) > birth.LONGEST:
            raise OSError(f"its environment of {len(order):,} bytes is too large")
        # The ends are of this try: one that was forked by a zygote that could not tell it any more finds them closed.
        with open_ends() as (ours, theirs):
            descriptors = [theirs.sock.fileno(), theirs.out, theirs.err, *([] if listener is None else [listener])]
            born = self._ask(order, descriptors)
            if born.errno:
                raise OSError(born.errno, os.strerror(born.errno))
            return Child(born.pid, ours, born.listener)

    def _ask(self, order: bytes, descriptors: list[int]) -> birth.Born:
        self._sock.settimeout(_ANSWER_S)
        try:
            socket.send_fds(self._sock, [order], descriptors)
            return self._answer()
        except OSError as error:
            raise _ZygoteGone(str(error)) from error
        finally:
            self._sock.setblocking(False)

    def _answer(self) -> birth.Born:
        try:
            data = self._sock.recv(birth.LONGEST)
        except BlockingIOError:
            raise
        except OSError as error:
            raise _ZygoteGone(str(error)) from error
        if not data:
            raise _ZygoteGone(f"it has ended, status {self._popen.wait()}")
        return birth.born_in(data)

    def end(self) -> None:
        self._sock.close()
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(signal.SIGKILL)
        self._popen.wait()


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    bell = asyncio.Event()
    loop.add_reader(sock, bell.set)
    try:
        await bell.wait()
    finally:
        loop.remove_reader(sock)


def _fresh(env: Mapping[str, str], work_dir: Path, listener: int | None) -> Child:
    """Start an interpreter. It takes ten times as long as a fork."""
    with open_ends() as (ours, theirs):
        inherited = (theirs.sock.fileno(),) if listener is None else (theirs.sock.fileno(), listener)
        # No callback before exec, so that subprocess may take its vfork path; the child confines itself.
        popen = subprocess.Popen(
            [*_PYTHON, "apothic.agent.runner", str(theirs.sock.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=theirs.out, stderr=theirs.err, pass_fds=inherited,
            cwd=work_dir, env=dict(env), start_new_session=True, umask=0o077,
        )  # fmt: skip
        popen.returncode = 0  # whoever has the pid collects it, as with a fork
        return Child(popen.pid, ours, listener)
