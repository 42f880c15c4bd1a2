"""Where a service's container answers: a Unix socket in its home, or for a web server a port of this machine.

A socket's path holds 108 bytes and data directories are longer, so both ends go through `/proc/self/fd`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from apothic.agent.ports import free_port
from apothic.protocol.session import StartContainer

_NAME = "serve.sock"
_BACKLOG = 1024


class Door:
    """The door of one container. Raises `OSError` when it cannot be made."""

    def __init__(self, start: StartContainer, home: Path) -> None:
        service = start.function.service
        self.secret = start.secret
        self.listener: socket.socket | None = None  # ours until the process has it
        self.port = 0
        self._path = home / _NAME
        if start.function.kind == "web_server":
            self.port = (service.port if service is not None else 0) or free_port()
        else:
            self.listener = listen(self._path)

    @property
    def fd(self) -> int | None:
        """The listener's descriptor, which the process inherits."""
        return self.listener.fileno() if self.listener is not None else None

    @property
    def address(self) -> str:
        """What the control plane is told, where it can reach this machine's sockets."""
        return f"port:{self.port}" if self.port else f"unix:{self._path}"

    def hand_over(self) -> None:
        """Let go of the listener: once its process is gone, nobody shall be let in to wait for nothing."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None

    def connect(self) -> socket.socket:
        """Return a connection to the service, not blocking. Raises `OSError`: `BlockingIOError` for a full queue."""
        if self.port:
            sock = socket.create_connection(("127.0.0.1", self.port))
            sock.setblocking(False)
            return sock
        return connect(self._path)


def listen(path: Path) -> socket.socket:
    """Return a Unix socket that listens at `path`, for this user alone. Raises `OSError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short(path) as short:
            sock.bind(short)
            os.chmod(short, 0o600)  # noqa: PTH101
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: Path) -> socket.socket:
    """Return a connection, not blocking, to the Unix socket at `path`. Raises `OSError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        with _short(path) as short:
            sock.connect(short)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
