"""The program of a container: `python -m apothic.agent.runner FD PARENT`. Runs one function of one deployment."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys

from apothic.agent import isolate
from apothic.agent.capture import Capture
from apothic.agent.channel import Channel
from apothic.agent.conduct import choose
from apothic.agent.entry import load, service_of
from apothic.agent.frames import Ready, Setup
from apothic.agent.perform import Performer
from apothic.agent.start import Start
from apothic.agent.window import Window
from apothic.context import serve_as
from apothic.protocol.services import SERVICE_KINDS


def run(fd: int, parent: int) -> int:
    """Serve the agent at the other end of socket `fd` until it says stop; return the exit status."""
    isolate.confine(parent)
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)  # no program that the user's code starts shall hold it
    sock.setblocking(True)
    window = Window()
    signal.signal(signal.SIGUSR1, window.on_signal)
    channel = Channel(sock, window)
    running: list[str] = []
    capture = Capture(channel, window, lambda: running)
    capture.replace()
    setup = channel.receive()
    if not isinstance(setup, Setup):
        return 1
    start = Start(channel, capture)
    try:
        entry = load(setup)
    except BaseException as error:
        start.failed(error)
        return 1
    if setup.function.kind in SERVICE_KINDS:
        serve_as(service_of(setup, setup.base_url))
        from apothic.agent.served import serve  # jobs do without a web server in their process

        return serve(setup, entry, channel, start)
    capture.finish_all()
    conductor = choose(channel, window, capture, running, Performer(setup, entry), setup)
    channel.send(Ready(queues=conductor.queues))
    conductor.conduct()
    return 0


def main() -> None:
    """Run, then end without waiting for threads that user code left behind; its exit functions do run."""
    status = 1
    try:
        status = run(int(sys.argv[1]), int(sys.argv[2]))
        atexit._run_exitfuncs()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the agent is gone
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                status = status or 1
        os._exit(status)


if __name__ == "__main__":
    # A pickle must find this module's classes under one name.
    from apothic.agent.runner import main as entered

    entered()
