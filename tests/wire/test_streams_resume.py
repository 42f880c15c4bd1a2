"""Going on later, gaps, pages, lost networks, many readers: streams of jobs through a real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gens
import pytest
from genbench import kinds, newest
from gens import Dry, count, draw, gated, narrow, plain, restarting
from proxy import proxied
from rig import Server, environment, serving

import apothic
from apothic import ControlPlaneClient, Job, JobStreamCheckpoint, JobStreamResetError
from apothic.errors import JobCancelledError
from apothic.protocol import messages as m


@pytest.fixture(scope="module", autouse=True)
def client(server: Server) -> Iterator[ControlPlaneClient]:
    with server.lending(gens.app) as client:
        yield client


# --- going on later ---------------------------------------------------------------------------------------------

READER = """
import sys
from apothic import ControlPlaneClient, Job
url, text, count = sys.argv[1:]
job = Job.attach(text, client=ControlPlaneClient(url))
for number, event in enumerate(job.stream_events(), 1):
    print(event.index, flush=True)
    if number == int(count):
        break
print(job.checkpoint())
"""


def test_one_process_goes_on_where_another_one_stopped(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    job = count.spawn(200)
    job.wait()
    monkeypatch.setenv("APOTHIC_API_KEY", (server.data_dir / "admin.key").read_text().strip())
    here, found = str(job.checkpoint(event_types=["job.stream_item", "job.log"])), []
    for size in (1, 50, 100, 1_000):
        command = [sys.executable, "-c", READER, server.base_url, here, str(size)]
        *indices, here = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        found += map(int, indices)

    events = list(job.stream_events(event_types=["job.stream_item", "job.log"]))
    assert found == [event.index for event in events]
    assert JobStreamCheckpoint.parse(here) == job.checkpoint()
    assert list(Job.attach(here, client=server.client()).watch()) == []


def test_every_place_is_one_to_go_on_from() -> None:
    job = count.spawn(3)
    whole = list(job.stream_events())
    for place in range(-1, len(whole)):
        assert list(job.stream_events(last_index=place)) == whole[place + 1 :]
        items = [event.value for event in whole[place + 1 :] if isinstance(event, apothic.JobStreamItemEvent)]
        assert list(job.wait_gen(last_index=place)) == items
    assert list(job.stream_events(last_index=len(whole) + 100)) == []


def test_items_are_read_on_from_a_saved_place() -> None:
    job = count.spawn(6)
    job.wait()
    items = job.wait_gen()
    assert [next(items) for _ in range(4)] == [0, 1, 2, 3]
    saved = pickle.loads(pickle.dumps(job.checkpoint()))
    assert list(job.wait_gen(checkpoint=saved)) == [4, 5]
    assert list(Job.attach(str(saved), client=job._client).wait_gen()) == [4, 5]


# --- gaps -------------------------------------------------------------------------------------------------------


def test_what_the_window_has_let_go_of_is_declared(gate: Path) -> None:
    job = narrow.spawn(50)
    job.wait()
    events = list(job.stream_events(event_types=["job.stream_item"]))
    assert isinstance(events[0], apothic.JobResetEvent)
    assert (events[0].reason, events[0].lost) == ("window_rotated", {"job.stream_item": 45})
    assert [event.value for event in events if isinstance(event, apothic.JobStreamItemEvent)] == [45, 46, 47, 48, 49]

    with pytest.raises(JobStreamResetError, match="45 items are lost") as caught:
        list(job.wait_gen())
    assert list(job.wait_gen(checkpoint=caught.value.checkpoint)) == [45, 46, 47, 48, 49]
    with pytest.warns(UserWarning, match="45 items are lost"):
        assert list(job.wait_gen(on_reset="continue")) == [45, 46, 47, 48, 49]
    assert list(job.wait_gen(on_reset="latest")) == []


def test_a_reset_brings_a_fresh_snapshot_to_who_watches_with_one() -> None:
    job = narrow.spawn(50)
    job.wait()
    events = kinds(job.watch(snapshot=True, last_index=-1))
    assert events[0] == "snapshot"
    at = events.index("reset")
    assert events[at + 1] == "snapshot" and events.count("snapshot") == 2


def test_from_the_latest_on_come_the_items_that_are_still_to_come(server: Server, gate: Path) -> None:
    client = server.client()
    job = Job(narrow.spawn(50, str(gate), 2).job_id, client)
    for event in job.stream_events(event_types=["job.stream_item"]):
        if isinstance(event, apothic.JobStreamItemEvent) and event.item_index == 49:
            break
    opened = client.open

    async def noted(route: Any, ask: m.FollowJob, **more: Any) -> Any:
        answer = await opened(route, ask, **more)
        if ask.after != -1:  # it stands at the head now
            gate.touch()
        return answer

    client.open = noted  # type: ignore[method-assign]
    assert list(job.wait_gen(on_reset="latest")) == [50, 51]


def test_an_attached_reader_loses_nothing_however_narrow_the_window_and_slow_the_reader() -> None:
    found: list[int] = []
    for number in narrow.remote_gen(2_000):
        found.append(number)
        if number < 20:
            time.sleep(0.01)
    assert found == list(range(2_000))


def test_a_generator_that_begins_again_is_declared() -> None:
    found: list[int] = []
    with pytest.raises(JobStreamResetError, match="another attempt") as caught:
        found.extend(restarting.remote_gen(3))
    assert found == [0, 1, 2]
    assert caught.value.event.reason == "attempt_restarted"
    job = Job(caught.value.checkpoint.job_id, restarting.client_here())
    assert list(job.wait_gen(checkpoint=caught.value.checkpoint)) == [0, 1, 2]
    with pytest.warns(UserWarning, match="another attempt"):
        assert list(job.wait_gen(on_reset="continue")) == [0, 1, 2, 0, 1, 2]
    events = kinds(job.stream_events(event_types=["job.stream_item", "job.status"]))
    assert events[events.index("reset") - 1] == "status"


# --- the other way ----------------------------------------------------------------------------------------------


def test_pages_bring_the_same_as_a_stream(server: Server, gate: Path) -> None:
    polling = server.client()
    jobs = [count.spawn(2_500), narrow.spawn(50), draw.spawn(3), plain.spawn(1)]
    for job in jobs:
        with contextlib.suppress(Dry):
            job.wait()
        streamed = list(job.watch(snapshot=True, last_index=-1))
        polling.paged_until = time.monotonic() + 600
        assert list(Job(job.job_id, polling).watch(snapshot=True, last_index=-1)) == streamed
    with pytest.warns(UserWarning):
        assert list(Job(jobs[1].job_id, polling).wait_gen(on_reset="continue")) == [45, 46, 47, 48, 49]


def test_pages_bring_what_comes_as_it_comes(server: Server, gate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polling = server.client()
    polling.paged_until = time.monotonic() + 600
    monkeypatch.setattr(gens.app, "_client", polling)
    items = gated.remote_gen(str(gate), 2, 1)
    assert [next(items), next(items)] == [0, 1]
    gate.touch()
    assert list(items) == [2]


# --- networks and servers ---------------------------------------------------------------------------------------


def test_losing_the_network_loses_no_item_and_does_not_cancel(
    server: Server, monkeypatch: pytest.MonkeyPatch, gate: Path
) -> None:
    with proxied(server.base_url) as proxy:
        key = (server.data_dir / "admin.key").read_text().strip()
        monkeypatch.setattr(gens.app, "_client", ControlPlaneClient(proxy.base_url, api_key=key, timeout_s=60.0))
        found: list[int] = []
        for number in gated.remote_gen(str(gate), 300, 300):
            found.append(number)
            if number in (0, 100, 299, 300):
                proxy.cut()
            if number == 299:
                gate.touch()
        gens.app.client.close()
    assert found == list(range(600))


def test_a_server_that_comes_back_on_another_port_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Path
) -> None:
    with serving(tmp_path / "data", lease_s=5, grace_s=1) as server:
        for name, value in environment(server.data_dir, server.home).items():
            if name.startswith("APOTHIC_"):
                monkeypatch.setenv(name, value)
        with ControlPlaneClient(timeout_s=60.0) as client:
            app = gens.app.renamed("moving")
            app._client = client
            job = app.functions["gated"].spawn(str(gate), 2, 2)
            items, events = job.wait_gen(), job.watch(event_types=["job.stream_item"])
            assert [next(items), next(items), next(events).value] == [0, 1, 0]  # type: ignore[attr-defined]
            before = server.base_url
            server.kill()
            server.start()
            assert server.base_url != before
            gate.touch()
            assert list(items) == [2, 3]
            assert kinds(events) == ["stream_item"] * 3 + ["end"]


# --- callers ----------------------------------------------------------------------------------------------------


def test_threads_and_loops_share_one_client() -> None:
    found: dict[str, list[int]] = {}

    def blocking(name: str) -> None:
        found[name] = list(count.remote_gen(300))

    def looping(name: str) -> None:
        async def one() -> list[int]:
            return [number async for number in count.aio.remote_gen(300)]

        async def main() -> None:
            for place, numbers in enumerate(await asyncio.gather(*(one() for _ in range(3)))):
                found[f"{name} {place}"] = numbers

        asyncio.run(main())

    threads = [threading.Thread(target=target, args=(f"{target.__name__} {n}",)) for n in range(3)
               for target in (blocking, looping)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    assert all(numbers == list(range(300)) for numbers in found.values())


def test_many_read_one_job() -> None:
    job = count.spawn(1_000)
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(list(job.wait_gen()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(1_000))] * 8


def test_a_forked_child_reads_with_the_same_handles() -> None:
    job = count.spawn(3)
    assert list(job.wait_gen()) == [0, 1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if list(job.wait_gen()) == list(count.remote_gen(3)) == [0, 1, 2] else 2
        finally:
            os._exit(status)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(count.remote_gen(2)) == [0, 1]


def test_an_iterator_that_is_still_open_does_not_hold_up_the_end_of_the_process(
    server: Server, monkeypatch: pytest.MonkeyPatch, client: ControlPlaneClient
) -> None:
    program = (
        "import sys\n"
        "from apothic import ControlPlaneClient, RemoteFunction\n"
        "client = ControlPlaneClient(sys.argv[1])\n"
        "numbers = RemoteFunction.from_name('gens', 'endless', client=client).remote_gen()\n"
        "print(next(numbers))\n"
    )
    monkeypatch.setenv("APOTHIC_API_KEY", (server.data_dir / "admin.key").read_text().strip())
    command = [sys.executable, "-W", "error", "-c", program, server.base_url]  # -X dev would tell of slow callbacks
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")
    with pytest.raises(JobCancelledError):
        newest(client, "endless").wait()
