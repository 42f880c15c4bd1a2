"""Schedules in the control plane: the loop that looks, what is shown of them, and that they keep a server up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from walkrig import DONE, PATIENCE_S, Puppet, Stage, spec

from apothic.control.sweeps import IDLE_S, come_round, idle
from apothic.protocol.specs import Cron, Period


async def until(holds: Callable[[], Awaitable[Any]]) -> None:
    """Wait, while the clock stands still, until a thing holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def looking(stage: Stage) -> AsyncIterator[None]:
    """Run the loop that looks after schedules."""
    loop = asyncio.create_task(come_round(stage.control.schedules, stage.clock))
    yield
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


async def only(stage: Stage) -> dict[str, Any]:
    """Return the only function of the app, as the app shows it."""
    (function,) = (await stage.got("GET /v1/apps/app"))["functions"]
    return dict(function)


async def test_a_tick_becomes_a_job_and_is_shown(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent, "app", spec(schedule=Period(minutes=1)))
    since = stage.clock.now()
    shown = await only(stage)
    assert shown["options"]["schedule"]["minutes"] == 1
    assert (shown["next_tick"], shown["last_tick"]) == (since + 60, None)
    async with looking(stage):

        async def came() -> bool:
            return (await only(stage))["last_tick"] is not None

        for _ in range(60):
            await stage.clock.advance(1.0)
            await asyncio.sleep(0.005)
        await until(came)
        shown = await only(stage)
        job = shown["last_tick"]["job"]
        assert (shown["next_tick"], shown["last_tick"]) == (
            since + 120, {"at": since + 60, "outcome": "job", "job": job},
        )  # fmt: skip
        given = await agent.work()
        assert (given.job, given.input.data) == (job, b'{"args":[],"kwargs":{}}')
        await agent.finish(given, DONE)
    assert await stage.status(job) == "succeeded"
    for line in (f"GET /v1/functions/{function}", "GET /v1/functions"):
        found = await stage.got(line, query={} if function in line else {"app": "app"})
        view = found["functions"][0] if "functions" in found else found
        assert (view["next_tick"], view["last_tick"]["job"]) == (since + 120, job)


async def test_a_jump_of_the_clock_is_noticed_within_a_second(stage: Stage, agent: Puppet) -> None:
    await stage.live(agent, "app", spec(schedule=Cron("0 0 * * *")))
    due = (await only(stage))["next_tick"]
    async with looking(stage):
        await asyncio.sleep(0.01)
        stage.clock.jump(due - stage.clock.now())
        for _ in range(10):
            await stage.clock.advance(0.1)
            await asyncio.sleep(0.005)

        async def came() -> bool:
            last = (await only(stage))["last_tick"]
            return last is not None and (last["at"], last["outcome"]) == (due, "job")

        await until(came)


async def test_a_function_without_a_schedule_shows_none(stage: Stage, agent: Puppet) -> None:
    await stage.live(agent)
    shown = await only(stage)
    assert (shown["options"]["schedule"], shown["next_tick"], shown["last_tick"]) == (None, None, None)


async def test_a_schedule_keeps_an_embedded_server_up(stage: Stage, agent: Puppet) -> None:
    await stage.live(agent, "app", spec(schedule=Period(days=7)))
    stopped = asyncio.Event()
    control = stage.control
    idling = idle(stage.clock, control.jobs, control.schedules, control.services, lambda: 0, stopped.set)
    loop = asyncio.create_task(idling)

    async def pass_(seconds: float) -> None:
        for _ in range(round(seconds / 30)):
            await stage.clock.advance(30)
            await asyncio.sleep(0.005)

    await pass_(2 * IDLE_S)
    assert not stopped.is_set()
    await stage.control.catalog.stop_app("app")

    async def over() -> bool:
        await stage.clock.advance(30)
        return stopped.is_set()

    await pass_(IDLE_S / 2)
    assert not stopped.is_set()
    await until(over)
    await loop
