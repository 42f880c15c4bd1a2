"""Bytes on a bare socket: the server answers or hangs up, and is as well afterwards as before."""

from __future__ import annotations

import asyncio
import random
import re

import pytest
from fuzzground import Progress, Target, cases, seed
from rawcases import Case, Raw

AT_ONCE = 16
ANSWER_S = 20.0  # to hang up once we have, under load
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


async def converse(address: tuple[str, int], case: Case) -> bytes:
    """Send the pieces, shut our side, and return all that comes until the server hangs up."""
    async with asyncio.timeout(ANSWER_S):
        reader, writer = await asyncio.open_connection(*address)
        try:
            for piece in case:
                writer.write(piece)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            return await reader.read(-1)
        except OSError:  # hung up on while we were still talking
            return b""
        finally:
            writer.close()


async def barrage(target: Target, chosen: int, count: int) -> None:
    """Send that many cases, several at once."""
    host = f"{target.address[0]}:{target.address[1]}"
    raw = Raw(host, target.key, target.agent_key, target.ids)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            case = raw.case(random.Random(f"{chosen}/{number}"))
            try:
                answer = await converse(target.address, case)
            except TimeoutError:
                pytest.fail(f"SEED={chosen} case {number} hangs: {case!r:.2000}")
            bad = [status for status in STATUS.findall(answer) if status >= b"500"]
            assert not bad, f"SEED={chosen} case {number}: {bad} to {case!r:.2000}: {answer!r:.1000}"

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))


async def test_garbage_on_a_socket_does_no_harm(target: Target) -> None:
    await barrage(target, seed(), 1_200)
    await asyncio.to_thread(target.check_whole)


async def test_who_says_nothing_to_the_end_holds_up_nobody(target: Target) -> None:
    begun = [b"", b"G", b"GET / HT", b"POST /v1/apps HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"]
    open_ends = [await asyncio.open_connection(*target.address) for _ in range(200)]
    for number, (_, writer) in enumerate(open_ends):
        writer.write(begun[number % len(begun)])
        await writer.drain()
    await asyncio.to_thread(target.check_whole)
    for _, writer in open_ends:
        writer.close()
    await asyncio.to_thread(target.check_whole)


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_much_garbage_on_a_socket_does_no_harm(target: Target) -> None:
    chosen, progress = seed(), Progress("raw sockets")
    while progress.done < cases(40_000):
        await barrage(target, chosen, 2_000)
        await asyncio.to_thread(target.check_whole)
        progress.add(2_000)
        chosen += 1
    progress.tell()
