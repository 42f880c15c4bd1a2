"""The app of jobs that do not want to end. Each holds a lock that its whole tree inherits: free means all are dead."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apothic
from apothic import Retries

app = apothic.App("stubborn")
SMALL = {"cpu": 0.02, "memory_mb": 100, "timeout_s": 120}


@contextlib.contextmanager
def held(book: str) -> Iterator[None]:
    """Hold the job's lock, in a way that children keep; say that it is here."""
    job = apothic.current_job()
    assert job is not None
    lock = os.open(f"{book}/{job.id}", os.O_WRONLY | os.O_CREAT, 0o600)
    os.set_inheritable(lock, True)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(lock, b"here")
    try:
        yield
    finally:
        os.close(lock)


def ignore() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # of a thread
            signal.signal(number, signal.SIG_IGN)


def daemon(deed: Callable[[], None]) -> None:
    """Run a deed in a process twice forked, in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            deed()
        os._exit(0)
    os.wait()


def deaf() -> None:
    ignore()
    while True:
        time.sleep(600)


def forks() -> None:
    daemon(lambda: os.execve("/bin/sleep", ["sleep", "600"], {}))
    time.sleep(600)


def gil() -> None:
    sum(range(10**14))  # one step of the interpreter, in which no signal is looked at


def native() -> None:
    while True:
        ctypes.PyDLL(None).sleep(600)


def system() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
    os.read(os.pipe()[0], 1)


def locked() -> None:
    with open("taken", "w") as first, open("taken", "w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_EX)


def catches() -> None:
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(600)


def bomb() -> None:
    ignore()
    for _ in range(5):
        if os.fork() == 0:
            os.setsid()
    time.sleep(600)


def respawns() -> None:
    def again() -> None:
        for _ in range(5_000):
            if os.fork() > 0:
                os._exit(0)
            os.setsid()
            time.sleep(0.01)

    daemon(again)
    time.sleep(600)


def spawns() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.run([sys.executable, "-c", code], start_new_session=True, close_fds=False)


DEEDS = [deaf, forks, gil, native, system, locked, catches, bomb, respawns, spawns]


@app.function(**SMALL, max_containers=30)
def solo(book: str, how: int) -> None:
    with held(book):
        DEEDS[how]()


@app.function(**SMALL, max_containers=30, concurrent_requests=2)
def threads(book: str, how: int) -> None:
    with held(book):
        DEEDS[how]()


@app.function(**SMALL, max_containers=30, concurrent_requests=2)
async def tasks(book: str, how: int) -> None:
    with held(book):
        await asyncio.sleep(0)
        DEEDS[how]()


# --- jobs that have not begun -----------------------------------------------------------------------------------


@app.function(**SMALL, max_containers=1)
def narrow(gate: str) -> None:
    while not os.path.exists(gate):
        time.sleep(0.01)


@app.function(**SMALL, max_containers=1)
def quick(gate: str) -> None:
    if gate:
        narrow.local(gate)


@app.function(**SMALL, max_containers=1, retries=Retries(5, initial_delay_s=600, max_delay_s=600, jitter=False))
def fails() -> None:
    raise ValueError("not now")


@app.function(**SMALL, max_containers=2)
def large(data: bytes) -> int:
    time.sleep(600)
    return len(data)


@app.function(**SMALL, max_containers=4)
def starts(gate: str) -> None:
    narrow.local(gate)


if "pytest" not in sys.modules and Path(FLAG := "{flag}").exists():
    # At the import of a container: sleep in one, spin in the next.
    if "sleep" in Path(FLAG).read_text():
        time.sleep(600)
    while True:
        pass
