"""The program that containers are forked from: `python -P -m apothic.agent.zygote FD PARENT`.

It has imported what each of them needs, which takes an interpreter of its own a tenth of a second, and then does
nothing but fork: Android starts its apps and Chromium its pages like that, and gave it the name. It has one thread for
ever, because a fork copies only the thread that asks for it, and the locks of all.

The containers of one zygote have the same hash seed and the same layout of their memory. They are one user's.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import sys
from collections.abc import Callable

import apothic
from apothic.agent import birth, entry, isolate, runner


def load_ahead(load: Callable[[], None]) -> None:
    """Import something before the forks that need it. Raises `SystemExit` when that has started a thread."""
    before = set(sys.modules)
    load()
    entry.ahead.update(sys.modules.keys() - before)
    gc.collect()
    gc.freeze()  # a look for garbage writes into each object that it sees, and a page that is written to is copied
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    if threads > 1:
        sys.exit(f"a zygote must have one thread, and there are {threads}")


def client() -> None:
    """Import what the modules of users begin with."""
    for name in apothic.__all__:
        getattr(apothic, name)


def services() -> None:
    """Import the web server of services, 60 ms and 6 MiB: not before there is one."""
    from apothic.agent import served  # noqa: F401


def serve(control: socket.socket) -> list[str]:
    """Fork a container for each order; return what it is told on its command line, in the container only."""
    control.send(birth.encode(birth.Born()))
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, birth.LONGEST, birth.DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        if not data:
            os._exit(0)  # the agent is gone
        try:
            pid, trouble = fork_orphan(), 0
        except OSError as error:
            pid, trouble = -1, error.errno or errno.EAGAIN
        if pid == 0:
            control.close()
            return become(birth.order_in(data), descriptors)
        for fd in descriptors:
            os.close(fd)
        listener = descriptors[3] if len(descriptors) == birth.DESCRIPTORS else None
        answer = birth.Born(errno=trouble) if trouble else birth.Born(pid, listener)
        control.send(birth.encode(answer))
        if listener is not None:
            load_ahead(services)  # the first one does it itself at the same time


def fork_orphan() -> int:
    """Fork twice; the process between ends at once, so the agent, who adopts orphans, becomes the parent.

    Return the pid, and 0 in itself. Raises `OSError`.
    """
    told, telling = os.pipe()
    try:
        try:
            between = os.fork()
            if between == 0:
                pid = _fork()
                if pid == 0:
                    return 0
                os.write(telling, str(pid).encode())
                os._exit(0)
        finally:
            os.close(telling)
        os.waitpid(between, 0)
        pid = int(os.read(told, 32) or -errno.EAGAIN)
    finally:
        os.close(told)
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return pid


def _fork() -> int:
    try:
        return os.fork()
    except OSError as error:
        return -(error.errno or errno.EAGAIN)


def become(order: birth.Order, descriptors: list[int]) -> list[str]:
    """Make this process what a fresh interpreter would be; return its arguments."""
    sock, out, err, *_ = descriptors
    os.setsid()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    os.environ.clear()
    os.environ.update(order.env)
    os.chdir(order.work_dir)
    # The agent speaks, or closes this, once it knows our pid: from then on it is our parent, or it is no more.
    go = select.poll()
    go.register(sock, select.POLLIN)
    go.poll()
    return [str(sock), sys.argv[2]]


def main() -> None:
    """Serve; return in a container, where nothing of ours is to be on the stack below its program."""
    isolate.follow(int(sys.argv[2]))
    load_ahead(client)
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv = [runner.__file__, *arguments]
    sys.modules["__main__"] = runner


if __name__ == "__main__":
    # As in the runner: its classes have one name.
    from apothic.agent.zygote import main as entered

    entered()
    runner.main()
