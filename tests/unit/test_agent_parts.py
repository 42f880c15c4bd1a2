"""The parts of an agent that need no process: frames, lines, the outbox, bundles, the window of a cancellation."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apothic.agent.agent import _clear
from apothic.agent.attempt import Attempt
from apothic.agent.bundles import MAKING, Bundles
from apothic.agent.channel import Channel
from apothic.agent.frames import Cancel, FrameError, Output, Run, Stop, encode, news
from apothic.agent.isolate import environment
from apothic.agent.lines import LONGEST, Assembler, Tail
from apothic.agent.outbox import FRAME_BYTES, Outbox, Story
from apothic.agent.passage import Passage
from apothic.agent.route import Freight, LocalRoute, RemoteRoute
from apothic.agent.window import JobCancelled, Window
from apothic.clock import ManualClock
from apothic.errors import InvalidRequestError
from apothic.protocol.messages import SourceFile
from apothic.protocol.session import Assignment, ContainerNews, Lease, Line, Outcome, Packed, Reports

# --- frames -----------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=200), max_size=20), st.integers(1, 50))
def test_frames_come_whole_however_the_bytes_are_cut(texts: list[bytes], size: int) -> None:
    frames = [Output(job="job_1", stream="stdout", data=text) for text in texts]
    data = b"".join(bytes(encode(frame)) for frame in frames)
    splitter = news()

    got = [frame for start in range(0, len(data), size) for frame in splitter.feed(data[start : start + size])]

    assert got == frames


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\0\0\0\1x", b"\0\0\0\2\x81\xa4", b"\0\0\x80\0" + b"\x91" * 0x8000]
)
def test_what_is_no_frame_is_an_error(data: bytes) -> None:
    with pytest.raises(FrameError):
        list(news().feed(data))


# --- lines ------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=400), st.integers(1, 60))
def test_lines_are_the_same_however_the_bytes_are_cut(data: bytes, size: int) -> None:
    assembler = Assembler("stdout")

    lines = [line for start in range(0, len(data), size) for line in assembler.feed(data[start : start + size], 1.0)]
    lines += assembler.finish(2.0)

    wanted = data.split(b"\n")
    wanted = wanted if wanted[-1] else wanted[:-1]
    assert [line.text for line in lines] == [part.decode("utf-8", "backslashreplace") for part in wanted]


@given(st.text(alphabet="aä€😀", min_size=1, max_size=9), st.integers(1000, 100_000))
def test_a_long_line_is_split_between_characters(piece: str, size: int) -> None:
    text = piece * (LONGEST // len(piece))
    data = (text * 5 + "\n").encode()
    assembler = Assembler("stderr")

    lines = [line for start in range(0, len(data), size) for line in assembler.feed(data[start : start + size], 1.0)]

    assert "".join(line.text for line in lines) == text * 5
    assert [line.cont for line in lines] == [True] * (len(lines) - 1) + [False]
    assert all(len(line.text.encode()) <= LONGEST for line in lines)


def test_the_tail_keeps_the_last_lines() -> None:
    tail = Tail()

    tail.add([Line(stream="stdout", text=str(n), at=0.0) for n in range(1000)])

    assert tail.text().splitlines() == [str(n) for n in range(960, 1000)]


# --- the outbox -------------------------------------------------------------------------------------------------


def _story(n: int = 1) -> Story:
    return Story(Lease(job=f"job_{n}", attempt=1, token=f"token_{n}"))


def _outbox(**more: Any) -> tuple[Outbox, list[Reports]]:
    sent: list[Reports] = []
    outbox = Outbox(ManualClock(), lambda frame: sent.append(msgspec.msgpack.decode(frame, type=Reports)), **more)
    return outbox, sent


def _line(text: str) -> Line:
    return Line(stream="stdout", text=text, at=1.0)


async def _turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_what_is_ready_together_shares_a_frame() -> None:
    outbox, sent = _outbox()
    one, two = _story(1), _story(2)

    outbox.began(one)
    outbox.said(one, [_line("a")])
    outbox.ended(one, Outcome(requeue="x"))
    outbox.began(two)
    outbox.said(two, [_line("b")])
    outbox.container(ContainerNews(id="ctr_1", state="ready"))
    await _turn()

    assert [frame.number for frame in sent] == [0]
    assert [(r.token, r.seq, r.began, len(r.said), r.outcome is not None) for r in sent[0].reports] == [
        ("token_1", 0, True, 1, True),
        ("token_2", 0, True, 1, False),
    ]
    assert sent[0].containers[0].id == "ctr_1"


async def test_that_a_job_has_begun_waits_for_its_own_end() -> None:
    outbox, sent = _outbox()
    one, two = _story(1), _story(2)
    outbox.began(one)
    outbox.ended(one, Outcome(requeue="x"))
    outbox.began(two)
    await _turn()
    outbox.ended(two, Outcome(requeue="x"))
    await _turn()

    reports = [(r.token, r.seq, r.began, r.outcome is not None) for frame in sent for r in frame.reports]
    assert reports == [("token_1", 0, True, True), ("token_2", 0, True, True)]


async def test_that_a_long_job_has_begun_is_told_without_its_end() -> None:
    outbox, sent = _outbox()
    told = asyncio.Event()
    outbox.send = lambda frame: told.set()
    outbox.began(_story(1))

    await asyncio.wait_for(told.wait(), 10)
    assert not outbox.empty and sent == []


async def test_a_beginning_alone_is_told_soon() -> None:
    outbox, sent = _outbox()

    outbox.began(_story())
    async with asyncio.timeout(5):
        while not sent:
            await asyncio.sleep(0.001)

    assert sent[0].reports[0].began


async def test_frames_are_kept_in_order_until_acknowledged() -> None:
    outbox, sent = _outbox()
    story = _story()
    for n in range(3):
        outbox.said(story, [_line(str(n))])
        outbox.flush()
    outbox.ended(story, Outcome(requeue="x"))
    outbox.flush()
    assert [report.seq for frame in sent for report in frame.reports] == [0, 1, 2, 3]

    outbox.acknowledged(1)

    again = [msgspec.msgpack.decode(frame, type=Reports) for frame in outbox.unacknowledged()]
    assert again == sent[2:]
    assert outbox.ended_leases() == [story.lease] and not outbox.empty
    outbox.acknowledged(3)
    assert outbox.unacknowledged() == [] and outbox.empty and outbox.ended_leases() == []


async def test_a_container_whose_end_is_not_acknowledged_counts_as_there() -> None:
    outbox, _ = _outbox()

    outbox.container(ContainerNews(id="ctr_1", state="gone"))
    assert [news.id for news in outbox.ended_containers()] == ["ctr_1"]
    outbox.flush()
    assert [(news.id, news.state) for news in outbox.ended_containers()] == [("ctr_1", "stopping")]
    outbox.acknowledged(0)

    assert outbox.ended_containers() == []


async def test_frames_stay_near_their_cap_and_nothing_is_lost() -> None:
    sizes: list[int] = []
    frames: list[Reports] = []

    def heard(frame: bytes) -> None:
        sizes.append(len(frame))
        frames.append(msgspec.msgpack.decode(frame, type=Reports))

    outbox = Outbox(ManualClock(), heard)
    story = _story()
    texts = [f"{n:06}" + "x" * 16_000 for n in range(500)]

    outbox.said(story, [_line(text) for text in texts])
    outbox.ended(story, Outcome(value=Packed(encoding="pickle", data=b"y" * 60_000, size=60_000)))
    outbox.flush()

    assert max(sizes) <= FRAME_BYTES * 1.1 and len(sizes) >= 8
    assert [line.text for frame in frames for report in frame.reports for line in report.said] == texts
    assert frames[-1].reports[-1].outcome is not None


async def test_a_full_outbox_says_when_there_is_room_again() -> None:
    outbox, _ = _outbox(limit=10_000)
    rang: list[bool] = []
    outbox.on_room = lambda: rang.append(outbox.full)

    outbox.said(_story(), [_line("x" * 20_000)])
    assert outbox.full
    outbox.flush()
    assert outbox.full and rang == []
    outbox.acknowledged(0)

    assert rang == [False] and not outbox.full


async def test_room_is_told_when_the_frame_is_smaller_than_was_reckoned() -> None:
    outbox, _ = _outbox(limit=10_000)
    rang: list[bool] = []
    outbox.on_room = lambda: rang.append(True)

    outbox.said(_story(), [Line(stream="stdout", text="", at=1.0) for _ in range(210)])
    assert outbox.full
    outbox.flush()

    assert rang == [True]


async def test_a_lost_lease_is_told_of_no_more() -> None:
    outbox, sent = _outbox()
    story = _story()
    outbox.began(story)

    story.muted = True
    outbox.said(story, [_line("x")])
    outbox.ended(story, Outcome(requeue="x"))
    outbox.flush()

    assert sent == []


# --- an attempt -------------------------------------------------------------------------------------------------


async def test_an_attempt_ends_once() -> None:
    outbox, sent = _outbox()
    ended: list[Attempt] = []
    given_ = Assignment(
        container="c", job="j", attempt=1, token="t", input=Packed(encoding="json", data=b"{}"), timeout_s=1.0,
        accept=["json"], job_token="x",
    )  # fmt: skip
    passage = Passage(_story(), outbox, _Blobs().store, lambda work: asyncio.get_running_loop().create_task(work))
    attempt = Attempt(given_, passage, ManualClock(), ended.append)

    attempt.printed("stdout", b"half a line")
    attempt.end(Outcome(requeue="first"))
    attempt.end(Outcome(requeue="second"))
    outbox.flush()

    assert [line.text for line in sent[0].reports[0].said] == ["half a line"]
    outcome = sent[0].reports[0].outcome
    assert outcome is not None and outcome.requeue == "first"
    assert len(sent) == 1 and ended == [attempt]


# --- bundles ----------------------------------------------------------------------------------------------------


class _Blobs:
    def __init__(self, *contents: bytes) -> None:
        self.contents = {hashlib.sha256(data).hexdigest(): data for data in contents}
        self.fetched: list[str] = []

    async def fetch(self, sha256: str, dest: Path) -> None:
        self.fetched.append(sha256)
        await asyncio.sleep(0)
        dest.write_bytes(self.contents[sha256])

    async def store(self, path: Path, sha256: str, size: int) -> None:
        raise AssertionError("nothing is stored")


def _file(path: str, data: bytes = b"x = 1\n") -> SourceFile:
    return SourceFile(path=path, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


async def test_a_bundle_is_made_once_for_each_content(tmp_path: Path) -> None:
    blobs = _Blobs(b"x = 1\n", b"y = 2\n")
    bundles = Bundles(tmp_path, blobs)
    files = [_file("app.py"), _file("pkg/mod.py", b"y = 2\n")]

    first, second = await asyncio.gather(bundles.directory(files), bundles.directory(files[::-1]))
    third = await bundles.directory(files)
    other = await bundles.directory(files[:1])

    assert first == second == third != other
    assert (first / "pkg" / "mod.py").read_text() == "y = 2\n"
    assert sorted(path.name for path in first.rglob("*")) == ["app.py", "mod.py", "pkg"]
    assert {path.name for path in tmp_path.iterdir()} == {"code"}


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../up.py", "a/../../up.py", "", ".", "a//b.py", "a/./b.py", "a\0b", "a/", ".."]
)
async def test_a_path_that_leaves_the_bundle_is_refused(tmp_path: Path, path: str) -> None:
    blobs = _Blobs(b"x = 1\n")

    with pytest.raises(InvalidRequestError):
        await Bundles(tmp_path / "in", blobs).directory([_file("app.py"), _file(path)])

    assert blobs.fetched == [] and list(tmp_path.rglob("*")) == []


async def test_two_files_in_one_place_are_refused(tmp_path: Path) -> None:
    for paths in (("a.py", "a.py"), ("a", "a/b.py"), ("a/b.py", "a")):
        with pytest.raises(InvalidRequestError):
            await Bundles(tmp_path, _Blobs(b"x = 1\n")).directory([_file(path) for path in paths])


async def test_a_blob_with_other_bytes_is_refused(tmp_path: Path) -> None:
    blobs = _Blobs()
    blobs.contents["0" * 64] = b"something else"
    bundles = Bundles(tmp_path, blobs)

    with pytest.raises(InvalidRequestError):
        await bundles.directory([SourceFile(path="app.py", sha256="0" * 64, size=14)])
    with pytest.raises(InvalidRequestError):
        await bundles.blob("0" * 64)

    assert not any(path.is_file() for path in tmp_path.rglob("*"))


async def test_what_a_killed_agent_has_left_half_made_is_cleared_and_the_whole_is_kept(tmp_path: Path) -> None:
    bundles = Bundles(tmp_path / "bundles", _Blobs(b"x = 1\n"))
    whole = await bundles.directory([_file("app.py")])
    half = Path(tempfile.mkdtemp(prefix=MAKING, dir=tmp_path / "bundles"))
    (half / "code").mkdir()
    (half / "code" / "app.py").write_text("x")

    _clear(tmp_path)

    assert not half.exists()
    assert (whole / "app.py").exists() and await bundles.directory([_file("app.py")]) == whole


# --- the window of a cancellation -------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Any:
    ours, theirs = socket.socketpair()
    window = Window()
    channel = Channel(theirs, window)
    yield ours, window, channel
    ours.close()
    channel.close()


def _run_frame(job: str) -> Run:
    packed = Packed(encoding="json", data=b"{}")
    return Run(job=job, attempt=1, input=packed, accept=["json"], job_token="", base_url="")


def test_a_signal_strikes_only_the_open_attempt(ends: Any) -> None:
    ours, window, _ = ends
    ours.sendall(encode(Cancel(job="other", attempt=1)) + encode(Cancel(job="mine", attempt=2)))

    window.on_signal()  # closed: nothing is looked at
    window.open(("mine", 1))
    window.on_signal()
    window.close()

    with pytest.raises(JobCancelled):
        window.open(("mine", 2))


def test_a_signal_under_the_mask_strikes_when_it_is_lifted(ends: Any) -> None:
    ours, window, _ = ends
    window.open(("mine", 1))
    ours.sendall(encode(Cancel(job="mine", attempt=1)))
    passed = []

    with pytest.raises(JobCancelled), window.masked():
        window.on_signal()
        passed.append(True)

    assert passed == [True]
    window.on_signal()  # once


def test_what_else_was_read_on_a_signal_waits_for_its_turn(ends: Any) -> None:
    ours, window, channel = ends
    window.open(("mine", 1))
    ours.sendall(encode(_run_frame("next")) + encode(Stop()))

    window.on_signal()
    window.close()

    first = channel.receive()
    assert isinstance(first, Run) and first.job == "next"
    assert channel.receive() == Stop()


def test_the_end_of_the_socket_is_the_end(ends: Any) -> None:
    ours, _, channel = ends

    ours.shutdown(socket.SHUT_WR)

    assert channel.receive() is None


# --- small things -----------------------------------------------------------------------------------------------


def test_an_environment_is_made_from_a_list() -> None:
    parent = {"PATH": "/bin", "LC_ALL": "C", "TOKEN": "x", "APOTHIC_API_KEY": "x", "PYTHONPATH": f"src{os.pathsep}/abs"}

    made = environment(parent, mark="m", tmp=Path("/t"))

    ours = {"APOTHIC_CONTAINER", "APOTHIC_AUTOSTART", "TMPDIR", "PYTHONUNBUFFERED"}
    assert set(made) == {"PATH", "LC_ALL", "PYTHONPATH"} | ours
    assert made["PYTHONPATH"] == f"{Path('src').absolute()}{os.pathsep}/abs"


def test_a_local_route_follows_the_server(tmp_path: Path) -> None:
    route = LocalRoute(tmp_path)
    told = tmp_path / "server.json"
    assert route.find() is None

    (tmp_path / "agent.key").write_text("secret\n")
    told.write_text("{half")
    assert route.find() is None
    for port in (1, 2):
        told.write_text(f'{{"base_url": "http://127.0.0.1:{port}"}}')
        found = route.find()
        assert found is not None and (found.base_url, found.key) == (f"http://127.0.0.1:{port}", "secret")


async def test_the_agent_of_a_data_directory_reads_blobs_where_they_lie(tmp_path: Path) -> None:
    sha256 = hashlib.sha256(b"bytes").hexdigest()
    blob = tmp_path / "blobs" / sha256[:2] / sha256
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"bytes")
    freight = Freight(LocalRoute(tmp_path), ManualClock())  # there is no server to ask
    await freight.fetch(sha256, tmp_path / "value")
    await freight.close()

    assert (tmp_path / "value").read_bytes() == b"bytes"
    assert not (tmp_path / "value").samefile(blob)  # user code may write to it
    assert RemoteRoute("http://example.org", "k").nearby is None


def test_a_remote_route_tries_again_within_a_second() -> None:
    route = RemoteRoute("http://example.org/", "k")

    assert route.find() is not None
    assert all(0 < route.pause(tries) <= 1.0 for tries in range(100))


def test_a_local_agent_looks_often_for_a_server_that_is_about_to_be_there(tmp_path: Path) -> None:
    pauses = [LocalRoute(tmp_path).pause(tries) for tries in range(1, 100)]
    assert max(pauses[:50]) == 0.02 and min(pauses[50:]) == 0.2
