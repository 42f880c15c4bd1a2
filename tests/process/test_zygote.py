"""Containers are forked from a zygote: they are as fresh as interpreters of their own, and do not depend on it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from containerbench import Bench
from rig import until

from apothic.agent import launcher
from apothic.agent.ends import open_ends
from apothic.agent.process import Process

# What a program can see of its process, but for what is another's by its nature: numbers, places, a moment.
FACTS = """
    import asyncio, gc, os, random, resource, signal, sys, tempfile, threading, traceback, uuid

    DUMP = f"{sys.executable} -c 'import os; print(dict(os.environ))'"

    def status(name):
        for line in open("/proc/self/status"):
            if line.startswith(name + ":"):
                return line.split()[1:]

    def target(fd):
        try:
            return os.readlink(f"/proc/self/fd/{fd}").partition(":")[0].replace(os.path.dirname(os.getcwd()), "")
        except OSError:
            return None

    def f():
        import __main__

        home = os.path.dirname(os.getcwd())
        os.umask(mask := os.umask(0))
        return {
            "environment": {name: value.replace(home, "") for name, value in os.environ.items() if name[0] != "_"},
            "environment of programs": dict(os.environ) == eval(os.popen(DUMP).read()),
            "arguments": (len(sys.argv), sys.argv[0]),
            "main": (__main__.__spec__.name, sys.modules["__main__"] is __main__),
            "path": [place for place in sys.path[1:]],
            "flags": str(sys.flags),
            "temporary": tempfile.gettempdir() == os.environ["TMPDIR"],
            "directory": os.path.basename(os.getcwd()),
            "umask": mask,
            "leads": (os.getpid() == os.getsid(0), os.getpid() == os.getpgid(0)),
            "agent": os.getppid(),
            "signals": {number: str(signal.getsignal(number)).partition(" at ")[0] for number in range(1, 32)},
            "masked": (status("SigBlk"), status("SigIgn")),
            "wakeup": signal.set_wakeup_fd(-1),
            "open": sorted(filter(None, map(target, os.listdir("/proc/self/fd")))),
            "streams": (sys.stdin.name, sys.stdout.encoding, target(0), os.isatty(1)),
            "privileges": (status("NoNewPrivs"), status("Seccomp"), status("CapEff")),
            "core": resource.getrlimit(resource.RLIMIT_CORE),
            "threads": (threading.active_count(), threading.current_thread().name, status("Threads")),
            "policy": type(asyncio.get_event_loop_policy()).__name__,
            "collector": (gc.isenabled(), gc.get_threshold(), gc.get_debug()),
            "stack": [frame.name for frame in traceback.extract_stack()],
        }, (random.random(), uuid.uuid4().hex, next(tempfile._get_candidate_names()))
"""
WHO = "import os\n\ndef f():\n    return os.getpid()\n"


def zygote_of(bench: Bench) -> psutil.Process:
    (pid,) = bench.containers.site.launcher.pids
    return psutil.Process(pid)


def program(pid: int) -> str:
    return psutil.Process(pid).cmdline()[3]


@asynccontextmanager
async def benched(home: Path, **limits: Any) -> AsyncIterator[Bench]:
    home.mkdir(exist_ok=True)
    made = Bench(home, **limits)
    try:
        yield made
    finally:
        await made.close()


async def test_a_container_is_a_fork_and_its_parent_is_the_agent(bench: Bench) -> None:
    pid = (await bench.ready(bench.start(WHO))).pid

    assert program(pid) == "apothic.agent.zygote"
    assert psutil.Process(pid).ppid() == os.getpid()
    assert zygote_of(bench).children() == []
    assert zygote_of(bench).num_threads() == 1


async def test_a_fork_is_what_a_fresh_interpreter_would_be(bench: Bench, tmp_path: Path) -> None:
    another = bench.start(WHO)  # nothing of its is open in the one that comes after it
    await bench.ready(another)
    forked, drawn = await bench.run(FACTS)
    async with benched(tmp_path / "fresh") as other:
        other.containers.site.launcher._barren = True
        fresh, _ = await other.run(FACTS)
        assert program(next(iter(other.pids))) == "apothic.agent.runner"

    for facts in (forked, fresh):
        assert "/ctr_" in facts["environment"].pop("APOTHIC_CONTAINER")
    assert forked == fresh
    assert forked["agent"] == os.getpid()

    again, drawn_again = await bench.run(FACTS)
    assert all(one != other for one, other in zip(drawn, drawn_again, strict=True))
    assert again["open"] == fresh["open"]


async def test_the_environment_is_that_of_the_agent_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_BEFORE", "1")
    async with benched(tmp_path / "home") as bench:
        monkeypatch.delenv("LC_BEFORE")
        monkeypatch.setenv("LC_AFTER", "1")
        code = "import os\n\ndef f():\n    return sorted(os.environ)\n"
        assert {"LC_BEFORE", "LC_AFTER"}.intersection(await bench.run(code)) == {"LC_AFTER"}


async def test_a_container_does_nothing_before_the_agent_is_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    customize(
        tmp_path,
        monkeypatch,
        """
        def write(fd, data, write=os.write):
            threading.Event().wait(0.3)  # the process between the zygote and the container lives on
            return write(fd, data)
        os.write = write
        """,
    )
    async with benched(tmp_path / "home") as bench:
        assert program(await bench.run(WHO)) == "apothic.agent.zygote"


async def test_two_containers_at_once(bench: Bench) -> None:
    one, two = bench.start(WHO), bench.start(WHO)

    pids = {await bench.value(bench.give(one)), await bench.value(bench.give(two))}

    assert len(pids) == 2 and {program(pid) for pid in pids} == {"apothic.agent.zygote"}


async def test_a_zygote_that_is_killed_takes_nobody_along_and_is_replaced(bench: Bench) -> None:
    first = bench.start(WHO)
    pid = (await bench.ready(first)).pid
    before = zygote_of(bench)
    before.kill()
    await bench.soon(lambda: before.status() == psutil.STATUS_ZOMBIE)

    assert await bench.value(bench.give(first)) == pid
    second = await bench.run(WHO)
    assert program(second) == "apothic.agent.zygote"
    assert zygote_of(bench).pid != before.pid
    assert psutil.Process(second).ppid() == os.getpid()
    assert await bench.value(bench.give(first)) == pid


async def test_a_zygote_that_does_not_answer_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_ANSWER_S", 0.1)
    await bench.ready(bench.start(WHO))
    before = zygote_of(bench)
    before.suspend()

    assert program(await bench.run(WHO)) == "apothic.agent.zygote"
    assert not before.is_running()


async def test_a_fork_that_its_zygote_could_not_tell_of_any_more_does_not_answer_for_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.ready(bench.start(WHO))
    ask = launcher._Zygote._ask

    def unheard(*args: Any) -> Any:
        monkeypatch.setattr(launcher._Zygote, "_ask", ask)
        lost.append(ask(*args).pid)
        raise launcher._ZygoteGone("it was killed")

    lost: list[int] = []
    monkeypatch.setattr(launcher._Zygote, "_ask", unheard)
    pid = await bench.run(WHO)

    assert pid != lost[0]
    await bench.soon(lambda: psutil.Process(lost[0]).status() == psutil.STATUS_ZOMBIE)
    await bench.containers._end_leftovers()
    assert not psutil.pid_exists(lost[0])


async def test_where_no_fork_is_to_be_had_an_interpreter_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a fork fails, and once the fork of the fork does."""
    customize(
        tmp_path,
        monkeypatch,
        """
        def fork(fork=os.fork, first=os.getpid(), forks=[]):
            forks.append(1)
            if os.getpid() != first or len(forks) == 1:
                raise BlockingIOError(errno.EAGAIN, "no process")
            return fork()
        os.fork = fork
        """,
    )
    async with benched(tmp_path / "home") as bench:
        for _ in range(2):
            pid = await bench.run(WHO)
            assert program(pid) == "apothic.agent.runner"
            assert zygote_of(bench).children() == []
        assert len(zygote_of(bench).net_connections("unix")) == 1
        assert zygote_of(bench).num_fds() <= 5


async def test_a_zygote_with_a_thread_serves_nobody_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    customize(tmp_path, monkeypatch, "threading.Thread(target=threading.Event().wait, daemon=True).start()")
    async with benched(tmp_path / "home") as bench:
        for _ in range(2):
            assert program(await bench.run(WHO)) == "apothic.agent.runner"
        assert bench.containers.site.launcher.pids == []
    assert capfd.readouterr().err.count("a zygote must have one thread, and there are 2") <= launcher._TRIES


def customize(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let every zygote that is started from now on run code first."""
    head = "import errno, os, sys, threading\nif 'apothic.agent.zygote' in sys.orig_argv:\n"
    (folder / "sitecustomize.py").write_text(head + textwrap.indent(textwrap.dedent(code), "    "))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)


async def test_without_any_process_the_start_fails_and_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.ready(bench.start(WHO))
    zygote_of(bench).kill()

    def refuse(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    news = await bench.gone(bench.start(WHO))

    assert news.failure is not None and news.failure.retriable
    assert news.failure.message == "its process could not be started: [Errno 11] Resource temporarily unavailable"


async def test_a_container_that_is_stopped_before_the_zygote_is_ready_never_has_a_process(bench: Bench) -> None:
    container = bench.start(WHO)
    bench.containers.stop(container, "not wanted")

    assert (await bench.gone(container)).pid == 0
    assert program(await bench.run(WHO)) == "apothic.agent.zygote"


async def test_a_process_that_has_no_group_yet_is_killed_all_the_same() -> None:
    over = asyncio.Event()

    class Ears:
        def on_frame(self, frame: Any) -> None: ...

        def on_bytes(self, stream: Any, data: bytes) -> None: ...

        def has_room(self) -> bool:
            return True

        def on_exit(self) -> None:
            over.set()

    child = subprocess.Popen(["sleep", "60"])
    with open_ends() as (ours, _):
        process = Process(child.pid, ours, Ears())
    process.kill()
    await asyncio.wait_for(over.wait(), 10)
    process.reap()
    child.returncode = -signal.SIGKILL
    process.close()
    assert process.exit == "signal 9"


SERVICE = """
    def f():
        async def answer(scope, receive, send): ...
        return answer
"""
LOADED = "import sys\n\ndef f():\n    return 'uvicorn' in sys.modules\n"


async def test_what_serves_is_loaded_ahead_once_there_is_a_service(bench: Bench) -> None:
    assert not await bench.run(LOADED)
    for _ in range(2):
        assert (await bench.ready(bench.start(SERVICE, spec={"kind": "asgi"}))).state == "ready"
        assert await bench.run(LOADED)
    assert zygote_of(bench).num_threads() == 1


async def test_what_the_deployment_brings_is_taken_before_what_was_loaded_ahead(bench: Bench) -> None:
    await bench.ready(bench.start(SERVICE, spec={"kind": "asgi"}))
    code = "import secrets, uvicorn.config\n\ndef f():\n    return secrets.WHOSE, uvicorn.config.WHOSE, uvicorn.WHOSE\n"
    mine = b"WHOSE = 'mine'\n"
    files = [("secrets.py", mine), ("uvicorn/__init__.py", mine), ("uvicorn/config.py", mine)]

    assert await bench.value(bench.give(bench.start(code, files=files))) == ("mine",) * 3


AGENT = """
    import asyncio, os, socket, sys
    from pathlib import Path

    sys.path[:0] = {path!r}
    from containerbench import Bench
    from apothic.agent.process import Process

    def die(*_, **__):
        os._exit(86)

    def asked(*args, send=socket.send_fds):
        send(*args)
        die()

    async def main():
        {deed}
        bench = Bench(Path({home!r}))
        bench.start("import time\\ntime.sleep(600)")
        await asyncio.sleep(600)

    asyncio.run(main())
"""


@pytest.mark.parametrize(
    "deed",
    [
        pytest.param("socket.send_fds = asked", id="asked"),
        pytest.param("Process.__init__ = die", id="born"),
        pytest.param("Process.send = die", id="before its setup"),
    ],
)
def test_an_agent_that_dies_between_the_fork_and_the_setup_leaves_nothing_behind(tmp_path: Path, deed: str) -> None:
    code = textwrap.dedent(AGENT.format(path=sys.path, home=str(tmp_path), deed=deed))
    before = {child.pid for child in psutil.Process().children()}
    with subprocess.Popen([sys.executable, "-c", code]) as agent:
        try:
            assert agent.wait(30) == 86
        finally:
            agent.kill()
    until(lambda: not marked(str(tmp_path)), what="the end of all that it had started")
    for child in psutil.Process().children():
        if child.pid not in before:
            os.waitpid(child.pid, 0)  # orphans come to us if we have been an agent


def marked(mark: str) -> list[int]:
    """Return the processes whose environment names a directory."""
    found = []
    for pid in psutil.pids():
        with suppress(OSError):
            if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found
