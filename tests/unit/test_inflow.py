"""Bytes on their way into a file: few turns of a thread, a hash of all of them, and a file that is closed last."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from apothic import inflow
from apothic.inflow import PIECE, Inflow


class Counting(ThreadPoolExecutor):
    """Threads that count what they are asked to do."""

    turns = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.turns += 1
        return super().submit(fn, *args, **kwargs)


def opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)


@pytest.mark.parametrize("chunk", [1000, 65536, PIECE, 3 * PIECE])
async def test_a_mebibyte_takes_one_turn_of_a_thread(tmp_path: Path, chunk: int) -> None:
    threads = Counting()
    asyncio.get_running_loop().set_default_executor(threads)
    data = os.urandom(8 * PIECE + 17)

    with closing(Inflow(opened(tmp_path / "file"))) as into:
        for start in range(0, len(data), chunk):
            await into.take(data[start : start + chunk])
        found = await into.finish(sync=True)

    assert (found, into.size) == (hashlib.sha256(data).hexdigest(), len(data))
    assert (tmp_path / "file").read_bytes() == data
    assert threads.turns <= 9


async def test_nothing_at_all_is_a_file_too(tmp_path: Path) -> None:
    with closing(Inflow(opened(tmp_path / "file"))) as into:
        assert await into.finish(sync=False) == hashlib.sha256().hexdigest()
    assert (tmp_path / "file").read_bytes() == b""


async def test_it_is_synced_once_and_after_the_last_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    write, fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda *given: done.append("write") or write(*given))
    monkeypatch.setattr(os, "fsync", lambda *given: done.append("fsync") or fsync(*given))

    with closing(Inflow(opened(tmp_path / "file"))) as into:
        await into.take(b"x" * PIECE)
        await into.take(b"y")
        await into.finish(sync=True)

    assert done == ["write", "write", "fsync"]


async def test_a_disk_that_fails_is_told_at_the_next_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "write", full)
    with closing(Inflow(opened(tmp_path / "file"))) as into:
        await into.take(b"x" * PIECE)
        with pytest.raises(OSError, match="full"):
            await into.take(b"y" * PIECE)


async def test_the_file_is_closed_behind_the_thread_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number that was closed too early would be another file's by the time of the write."""
    begun, go_on = threading.Event(), threading.Event()
    put_in = inflow._put_in

    def slow(*given: Any) -> None:
        begun.set()
        go_on.wait(10)
        put_in(*given)

    monkeypatch.setattr(inflow, "_put_in", slow)
    file = opened(tmp_path / "file")
    into = Inflow(file)
    upload = asyncio.ensure_future(into.finish(sync=False))
    await asyncio.to_thread(begun.wait, 10)
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    into.close()

    os.fstat(file)  # still open
    closed = asyncio.Event()
    assert into._work is not None
    into._work.add_done_callback(lambda _: closed.set())
    go_on.set()
    await closed.wait()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)
