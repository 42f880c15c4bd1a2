"""How a container's start ends: it is ready, or it tells why not. Once only."""

from __future__ import annotations

import threading

from msgspec.structs import replace

from apothic.agent.capture import Capture
from apothic.agent.channel import Channel
from apothic.agent.frames import Ready, StartFailed
from apothic.errors import ApothicError
from apothic.protocol.failures import describe


class Start:
    """The start of one container. Any thread may end it."""

    def __init__(self, channel: Channel, capture: Capture) -> None:
        self._channel = channel
        self._capture = capture
        self._lock = threading.Lock()
        self.over = False

    def ready(self) -> None:
        """Tell that it answers, after what it has printed so far."""
        with self._lock:
            if not self.over:
                self.over = True
                self._capture.finish_all()
                self._channel.send(Ready())

    def failed(self, error: BaseException, *, again: bool = False) -> None:
        """Tell why it will never answer; `again` when another try may do better."""
        with self._lock:
            if not self.over:
                self.over = True
                self._capture.finish_all()
                failure = replace(describe(error, attempt=0, kind="startup"), retriable=again, payload=None)
                if isinstance(error, ApothicError):
                    failure = replace(failure, message=str(error))  # nobody else will tell the hint
                self._channel.send(StartFailed(failure=failure))
