"""What a server does to its own process: files that it may open, and its end when one of its loops fails."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys

import pytest

from apothic.control.serve import _ended

CODE = """
import resource
from apothic.control.serve import open_files
soft, hard = {before}
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
open_files({wanted})
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
HARD = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 4096)


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [((256, HARD), 1000, 1000), ((256, HARD), 1_000_000, HARD), ((512, HARD), 300, 512)],
)
def test_as_many_files_as_are_wanted_and_allowed(before: tuple[int, int], wanted: int, after: int) -> None:
    code = CODE.format(before=before, wanted=wanted)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) == after


async def test_a_loop_that_fails_stops_the_server_and_one_that_is_cancelled_does_not() -> None:
    stopping = asyncio.Event()

    async def breaks() -> None:
        raise RuntimeError("a bug")

    cancelled = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    _ended(stopping, cancelled)
    assert not stopping.is_set()
    failed = asyncio.create_task(breaks())
    await asyncio.gather(failed, return_exceptions=True)
    _ended(stopping, failed)
    assert stopping.is_set()
