"""One child process and its four ends: a socket for frames, two pipes for what it prints, a pidfd for its death.

Everything is read on the agent's loop as it becomes ready: no thread stands between a container and the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import Protocol

from apothic.agent.ends import Ends
from apothic.agent.frames import Command, FrameError, News, Stream, encode, news

_CHUNK = 64 * 1024  # twice as much would be mapped anew for each read, which costs more than the read
_PIPE = 64 * 1024  # what a Linux pipe holds: one read of this much empties it


class Ears(Protocol):
    """Who listens to a process."""

    def on_frame(self, frame: News) -> None: ...

    def on_bytes(self, stream: Stream, data: bytes) -> None: ...

    def on_exit(self) -> None:
        """Its main process has ended and is not reaped yet; call `reap`, then `drain`."""
        ...

    def on_piped(self) -> None:
        """Something lies in a pipe, and is taken in next."""
        ...

    def has_room(self) -> bool:
        """Whether more may be read for now."""
        ...


class Process:
    """A started container process and our ends of it. `status` and `peak_kb` are known once it is reaped."""

    def __init__(self, pid: int, ends: Ends, ears: Ears) -> None:
        self.pid = pid
        self.sock = ends.sock
        self._ears = ears
        self._loop = asyncio.get_running_loop()
        self._splitter = news()
        self._unsent = bytearray()
        self._reading = False
        self.broken = ""  # what was read on its socket that is no frame
        self.status: int | None = None
        self.peak_kb = 0
        self._pidfd = os.pidfd_open(pid)
        self._ends = ends
        self._pipes: dict[int, Stream] = {ends.out: "stdout", ends.err: "stderr"}
        self._loop.add_reader(self._pidfd, self._on_exit)
        self.resume()

    # --- in and out

    def send(self, *frames: Command) -> None:
        """Send frames in one piece; what the socket does not take at once follows when it can."""
        data = encode(frames[0]) if len(frames) == 1 else bytearray().join(map(encode, frames))
        if not self._unsent:
            try:
                sent = self.sock.send(data, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # it is dead, its pidfd says so
            if sent == len(data):
                return
            del data[:sent]
            self._loop.add_writer(self.sock.fileno(), self._send_rest)
        self._unsent += data

    def _send_rest(self) -> None:
        try:
            sent = self.sock.send(self._unsent, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            sent = len(self._unsent)
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self.sock.fileno())

    def pause(self) -> None:
        """Read nothing for now; the program blocks once its pipes are full."""
        if self._reading:
            self._reading = False
            for fd in (self.sock.fileno(), *self._pipes):
                self._loop.remove_reader(fd)

    def resume(self) -> None:
        """Read again."""
        if not self._reading and self.status is None:
            self._reading = True
            self._loop.add_reader(self.sock.fileno(), self._on_socket)
            for fd in self._pipes:
                self._loop.add_reader(fd, self._on_pipe, fd)

    def _on_socket(self) -> None:
        if not self._read_socket() and self._reading:
            self._loop.remove_reader(self.sock.fileno())
        elif not self._ears.has_room():
            self.pause()

    def _on_pipe(self, fd: int) -> None:
        self._ears.on_piped()
        if not self._read_pipe(fd) and self._reading:
            self._loop.remove_reader(fd)
        elif not self._ears.has_room():
            self.pause()

    def _read_socket(self) -> bool:
        """Take in one piece; return whether more may come."""
        try:
            data = self.sock.recv(_CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        try:
            for frame in self._splitter.feed(data):
                self._ears.on_frame(frame)
        except FrameError as error:
            self.broken = str(error)  # user code wrote into the socket, and nothing that follows can be trusted
            self.kill()
            return False
        return bool(data)

    def _read_pipe(self, fd: int) -> int:
        """Take in one piece; return its size, or -1 when there is nothing now."""
        try:
            data = os.read(fd, _PIPE)
        except BlockingIOError:
            return -1
        if data:
            self._ears.on_bytes(self._pipes[fd], data)
        return len(data)

    def drain_socket(self) -> None:
        """Take in what it has said before this moment."""
        with contextlib.suppress(OSError):
            while not self.broken and self.sock.recv(1, socket.MSG_PEEK):
                self._read_socket()

    def drain_pipes(self) -> None:
        """Take in what was written to the pipes before this moment."""
        for fd in self._pipes:
            self._read_pipe(fd)

    def drain(self) -> None:
        """Take in everything that is left, of a process that is dead."""
        self.pause()
        self._reading = False
        self.sock.setblocking(False)
        with contextlib.suppress(OSError, FrameError):
            while not self.broken and (data := self.sock.recv(_CHUNK)):
                for frame in self._splitter.feed(data):
                    self._ears.on_frame(frame)
        for fd in self._pipes:
            while self._read_pipe(fd) > 0:
                pass

    # --- its end

    def signal(self, number: int) -> None:
        """Signal the main process alone."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Signal its process group."""
        if self.status is None:  # once it is reaped, its number may be another's
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                self.signal(number)  # a fork that has not made its group yet, and is alone
            except PermissionError:
                pass

    def kill(self) -> None:
        """End the group at once."""
        self.signal_group(signal.SIGKILL)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._ears.on_exit()

    def reap(self) -> None:
        """Collect the dead main process, after the rest of its group was killed while its number was still its own."""
        self.kill()
        _, status, usage = os.wait4(self.pid, 0)
        self.status = status
        self.peak_kb = usage.ru_maxrss

    def close(self) -> None:
        """Close all four ends."""
        self.pause()
        with contextlib.suppress(Exception):
            self._loop.remove_writer(self.sock.fileno())
        os.close(self._pidfd)
        self._ends.close()

    @property
    def exit(self) -> str:
        """How it ended: "signal 9" or "status 0"."""
        assert self.status is not None
        code = os.waitstatus_to_exitcode(self.status)
        return f"signal {-code}" if code < 0 else f"status {code}"
