"""TCP ports of this machine: which is free, whether something listens on one, and who."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENING = b"0A"


def free_port() -> int:
    """Return a port of the loopback interface that nobody has at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def listens(port: int) -> bool:
    """Tell whether something listens on a port, without knocking: a server may log who only looks in."""
    wanted = b"%04X" % port
    for table in _TABLES:
        with contextlib.suppress(OSError):
            for line in table.read_bytes().splitlines()[1:]:
                words = line.split(None, 4)
                if words[3] == _LISTENING and words[1].endswith(wanted):
                    return True
    return False


def answers(port: int) -> bool:
    """Tell whether a connection to the loopback interface's port is taken."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def port_holder(port: int) -> str:
    """Return who listens on a port, for people."""
    import psutil

    try:
        found = [one for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr[1:2] == (port,)]
        pid = next((one.pid for one in found if one.pid), None)
        return f"{psutil.Process(pid).name()} (pid {pid})" if pid else "a process of another user"
    except psutil.Error:
        return "another process"
