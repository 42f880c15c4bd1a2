"""The ends of a container: a socket for frames and two pipes for what it prints, those of its agent and its own."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Ends:
    """One side: what it reads and writes. The agent's do not block."""

    sock: socket.socket
    out: int
    err: int

    def close(self) -> None:
        """Close all three."""
        for fd in (self.out, self.err):
            os.close(fd)
        self.sock.close()


@contextlib.contextmanager
def open_ends() -> Iterator[tuple[Ends, Ends]]:
    """Give the agent's ends and a container's. Afterwards the latter are closed here, after an error all are."""
    sock, their_sock = socket.socketpair()
    out, their_out = os.pipe2(os.O_CLOEXEC)
    err, their_err = os.pipe2(os.O_CLOEXEC)
    ours, theirs = Ends(sock, out, err), Ends(their_sock, their_out, their_err)
    sock.setblocking(False)
    os.set_blocking(out, False)
    os.set_blocking(err, False)
    try:
        yield ours, theirs
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
