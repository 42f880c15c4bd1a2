"""A TCP proxy that does to connections what networks do: cuts them, or swallows what they carry without a word."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit


class Proxy:
    """Passes bytes between its own port and one behind it, in threads of its own."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        assert parts.hostname is not None and parts.port is not None
        self._behind = parts.hostname, parts.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._deaf: set[socket.socket] = set()
        self.refusing = threading.Event()
        self.spares_reply: Callable[[], bool] = lambda: True  # asked for each piece that comes back; else all is cut
        self.accepted = 0
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def point(self, base_url: str) -> None:
        """Lead to another port from now on: a server that was started again."""
        parts = urlsplit(base_url)
        assert parts.hostname is not None and parts.port is not None
        self._behind = parts.hostname, parts.port

    def swallow(self) -> int:
        """Deliver nothing more on what is open now, in neither direction: connections stay open, and look well."""
        with self._lock:
            self._deaf |= self._open
            return len(self._open)

    def cut(self) -> int:
        """Cut every open connection; return how many sockets that were."""
        with self._lock:
            ending, self._open = self._open, set()
        for each in ending:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        return len(ending)

    def close(self) -> None:
        """Take no more connections, and cut those that are open."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                if self.refusing.is_set():
                    raise ConnectionRefusedError
                far = socket.create_connection(self._behind, timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, sink, source is far), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if back and not self.spares_reply():
                    break
                if source not in self._deaf:
                    sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._open.discard(each)
                self._deaf.discard(each)
        source.close()


@contextlib.contextmanager
def proxied(base_url: str) -> Iterator[Proxy]:
    """Hold a proxy before a server."""
    proxy = Proxy(base_url)
    try:
        yield proxy
    finally:
        proxy.close()
