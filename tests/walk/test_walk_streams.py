"""Streams as HTTP has them: the first bytes, signs of life, ends, limits, tokens, and readers that stop reading."""

from __future__ import annotations

from typing import Any

import pytest
from followrig import Follower
from walkrig import DONE, Puppet, Stage, items, spec

from apothic.control import streams
from apothic.protocol.session import Outcome

TYPES = ["job.status"] * 3
YIELDED = Outcome(value=DONE.value, items=3, ran_s=60.0)


async def running(stage: Stage, agent: Puppet, **options: Any) -> Any:
    """Return the assignment of a job that has begun."""
    function = await stage.live(agent, "app", spec(**options))
    await stage.submit(function)
    given = await agent.work()
    await agent.begin(given)
    return given


async def test_the_first_bytes_come_at_once_and_name_the_place(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    reader = await Follower(stage, given.job, after=2).open()
    assert (reader.status, reader.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert reader.headers["cache-control"] == "no-cache, no-transform"
    assert reader.headers["x-accel-buffering"] == "no"
    assert await reader.next() == ("", None, 2)
    assert await reader.quiet()
    await reader.cut()


async def test_a_whole_job_from_its_first_event_to_its_end(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    reader = await Follower(stage, given.job).open()
    await agent.tell(agent.report(given, said=items("a", {"b": 1})))
    await agent.finish(given, YIELDED, "bye")
    bookmark, *told = await reader.rest()
    assert bookmark == ("", None, -1)
    assert [one.event for one in told] == [
        *TYPES, "job.stream_item", "job.stream_item", "job.log", "job.status", "job.result", "job.end",
    ]  # fmt: skip
    assert [one.id for one in told] == list(range(9))
    assert told[4].data == {"item_index": 1, "attempt": 1, "value": {"encoding": "json", "data": {"b": 1}}}
    assert told[7].data == {"attempt": 1, "value": {"encoding": "json", "data": 42}, "items": 3}
    assert told[8].data == {"status": "succeeded", "attempts": 1, "last_index": 8}


async def test_a_reader_past_the_end_gets_204_and_a_watcher_its_snapshot(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    await agent.finish(given)
    past = Follower(stage, given.job, headers={"last-event-id": "5"}, after=0)
    assert (await past.refused()).status == 204
    watcher = await Follower(stage, given.job, after=5, snapshot=1).open()
    bookmark, snapshot = await watcher.rest()
    assert (bookmark.id, snapshot.event, snapshot.id) == (5, "job.snapshot", None)
    assert snapshot.data["result"] == {"value": {"encoding": "json", "data": 42}}
    assert snapshot.data["status"] == "succeeded" and snapshot.data["error"] is None


async def test_a_snapshot_and_what_follows_make_a_later_snapshot(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    await agent.tell(agent.report(given, said=items(1), texts=["one"]))
    reader = await Follower(stage, given.job, snapshot=1).open()
    assert (await reader.next()) == ("", None, 4)
    first = await reader.next()
    assert first is not None and first.data["as_of_index"] == 4
    assert first.data["counts"] == {"job.log": 1, "job.stream_item": 1}
    assert (first.data["result"], first.data["error"], first.data["cancel_requested"]) == (None, None, False)
    await agent.tell(agent.report(given, said=items(2, 3, first=1)))
    after = [await reader.next(), await reader.next()]
    assert [one and one.id for one in after] == [5, 6]
    await reader.cut()
    later = (await stage.got(f"GET /v1/jobs/{given.job}/events", query={"snapshot": 1, "limit": 1}))["snapshot"]
    assert later["as_of_index"] == 6 and later["counts"] == {"job.log": 1, "job.stream_item": 3}


async def test_a_waiting_jobs_snapshot_says_why_it_waits(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    await stage.submit(function)
    behind = await stage.submit(function)
    told = (await stage.got(f"GET /v1/jobs/{behind}/events", query={"snapshot": 1, "limit": 1}))["snapshot"]
    assert (told["status"], told["reason"]) == ("queued", "concurrency_limit")


async def test_signs_of_life_tell_the_place_when_it_has_moved(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    reader = await Follower(stage, given.job, type="job.result").open()
    await reader.next()
    assert await reader.quiet()
    await stage.clock.advance(streams.BEAT_S + 0.1)
    assert await reader.next() == ("", None, 2)  # what was passed over is dealt with
    await stage.clock.advance(streams.BEAT_S + 0.1)
    assert await reader.next() == ("", None, None)  # a comment
    await agent.tell(agent.report(given, texts=["x"] * 7))
    assert await reader.quiet()
    await stage.clock.advance(streams.BEAT_S + 0.1)
    assert await reader.next() == ("", None, 9)
    await reader.cut()


async def test_a_stream_is_closed_after_ten_minutes_and_goes_on_where_it_was(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    reader = await Follower(stage, given.job).open()
    for _ in range(60):
        await stage.clock.advance(streams.BEAT_S)
        assert (await reader.quiet()) is False
    told = await reader.rest()
    places = [one.id for one in told if one.id is not None]
    again = await Follower(stage, given.job, headers={"last-event-id": str(places[-1])}).open()
    assert await again.next() == ("", None, 2)
    await again.cut()


async def test_closing_the_server_ends_every_stream(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    reader = await Follower(stage, given.job).open()
    stage.control.streams.close()
    assert [one.event for one in await reader.rest()] == ["", *TYPES]


async def test_a_reader_that_takes_nothing_is_dropped(
    stage: Stage, agent: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STALL_S", 0.05)
    given = await running(stage, agent)
    reader = await Follower(stage, given.job).open()
    assert await reader.next() == ("", None, -1)
    reader.takes.clear()
    await agent.tell(agent.report(given, texts=["nobody reads this"]))
    assert reader._task is not None
    await reader._task
    assert reader.aborted and len(stage.control.streams) == 0


async def test_a_reader_that_leaves_is_forgotten_at_once(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    reader = await Follower(stage, given.job).open()
    await reader.next()
    assert len(stage.control.streams) == 1
    await reader.cut()
    assert len(stage.control.streams) == 0 and not reader.aborted


async def test_who_comes_back_is_not_shown_what_others_saw_before(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    first = await Follower(stage, given.job, after=2).open()
    await first.next()
    assert await first.quiet()  # it has seen that there is nothing behind 2
    await first.cut()
    await agent.tell(agent.report(given, texts=["nobody listens"]))
    second = await Follower(stage, given.job, after=2).open()
    await second.next()
    told = await second.next()
    assert told is not None and told.id == 3
    await second.cut()


async def test_streams_are_counted_and_refused_past_their_limits(
    stage: Stage, agent: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LARGEST_PER_KEY", 2)
    given = await running(stage, agent)
    open_ones = [await Follower(stage, given.job).open() for _ in range(2)]
    answer = await Follower(stage, given.job).refused()
    assert (answer.status, answer.headers["retry-after"]) == (429, "5")
    other = await stage.create_key("logs")
    third = await Follower(stage, given.job, headers={"authorization": f"Bearer {other}"}).open()
    assert third.status == 200
    monkeypatch.setattr(stage.control.streams, "_most", 3)
    answer = await Follower(stage, given.job, headers={"authorization": f"Bearer {other}"}).refused()
    assert answer.status == 429 and "streams_max" in answer.json()["error"]["hint"]
    for reader in (*open_ones, third):
        await reader.cut()
    again = await Follower(stage, given.job).open()
    assert again.status == 200
    await again.cut()


# --- who may --------------------------------------------------------------------------------------------------


async def test_a_stream_ends_within_a_minute_of_its_key(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    made = await stage.got("POST /v1/keys", {"name": "short", "scopes": ["logs"]})
    reader = await Follower(stage, given.job, headers={"authorization": f"Bearer {made['secret']}"}).open()
    await stage.got(f"DELETE /v1/keys/{made['key']['id']}")
    for _ in range(5):
        await stage.clock.advance(streams.BEAT_S)
        await reader.quiet()
    assert [one.event for one in await reader.rest()] == ["", *TYPES, *[""] * 4]


async def test_a_stream_token_opens_one_jobs_stream_and_nothing_else(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    other = await stage.submit(await stage.live(agent))
    made = await stage.got(f"POST /v1/jobs/{given.job}/stream-token")
    assert made["url"] == f"/v1/jobs/{given.job}/events?token={made['token']}"
    assert made["expires_at"] == stage.clock.now() + 300
    no_key = {"authorization": ""}
    reader = await Follower(stage, given.job, headers=no_key, token=made["token"]).open()
    assert reader.status == 200
    await reader.cut()
    for job, token in ((other, made["token"]), (given.job, made["token"][:-1] + "x"), (given.job, "apothic_stream_a")):
        refused = await Follower(stage, job, headers=no_key, token=token).refused()
        assert refused.status in (401, 404)
    for line in (f"GET /v1/jobs/{given.job}", f"POST /v1/jobs/{given.job}/cancel", "GET /v1/jobs"):
        assert (await stage.ask(line, key=made["token"])).status == 401
        assert (await stage.ask(line, key=None, query={"token": made["token"]})).status == 401
    await stage.clock.advance(301)
    assert (await Follower(stage, given.job, headers=no_key, token=made["token"]).refused()).status == 401


async def test_a_stream_token_ends_with_the_key_it_is_of(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    made = await stage.got("POST /v1/keys", {"name": "short", "scopes": ["logs"]})
    token = (await stage.got(f"POST /v1/jobs/{given.job}/stream-token", key=made["secret"]))["token"]
    await stage.got(f"DELETE /v1/keys/{made['key']['id']}")
    answer = await Follower(stage, given.job, headers={"authorization": ""}, token=token).refused()
    assert answer.status == 401


async def test_a_key_without_logs_reads_no_stream(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    key = await stage.create_key("read:jobs")
    answer = await Follower(stage, given.job, headers={"authorization": f"Bearer {key}"}).refused()
    assert (answer.status, answer.code) == (403, "auth")
    foreign = await stage.create_key("invoke:other/f")
    answer = await Follower(stage, given.job, headers={"authorization": f"Bearer {foreign}"}).refused()
    assert answer.status == 404


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"type": "job.lgo"}, "job.snapshot"),
        ({"after": -2}, "-1 for none"),
        ({"after": "x"}, "after"),
        ({"limit": 1001}, "1,000"),
        ({"tpye": "job.log"}, "no parameter"),
    ],
)
async def test_bad_parameters_are_named(stage: Stage, agent: Puppet, query: dict[str, Any], said: str) -> None:
    given = await running(stage, agent)
    answer = await Follower(stage, given.job, **query).refused()
    assert answer.status == 400 and said in str(answer.json()["error"])


async def test_a_job_that_is_not_there_has_no_stream(stage: Stage) -> None:
    for accept in ("text/event-stream", "application/json"):
        answer = await Follower(stage, "job_0123456789abcdefghjkmnpqrs", headers={"accept": accept}).refused()
        assert (answer.status, answer.code) == (404, "not_found")


async def test_a_last_event_id_that_is_no_index_is_refused(stage: Stage, agent: Puppet) -> None:
    given = await running(stage, agent)
    answer = await Follower(stage, given.job, headers={"last-event-id": "seven"}).refused()
    assert answer.status == 400 and "Last-Event-ID" in answer.json()["error"]["message"]


# --- pages ------------------------------------------------------------------------------------------------------


async def test_a_page_waits_for_news_and_says_where_to_go_on(stage: Stage, agent: Puppet) -> None:
    import asyncio

    given = await running(stage, agent)
    path = f"GET /v1/jobs/{given.job}/events"
    asked = asyncio.ensure_future(stage.got(path, query={"after": 2, "wait_s": 20}))
    await asyncio.sleep(0)
    await agent.tell(agent.report(given, texts=["news"]))
    page = await stage.settled(asked)
    assert [(one["event"], one["index"]) for one in page["events"]] == [("job.log", 3)]
    assert (page["next_index"], page["head_index"], page["end"], page["reset"]) == (3, 3, False, None)
    nothing = asyncio.ensure_future(stage.got(path, query={"after": 3, "wait_s": 20, "type": "job.result"}))
    page = await stage.settled(nothing)
    assert (page["events"], page["next_index"], page["end"]) == ([], 3, False)


async def test_messagepack_has_the_same_page(stage: Stage, agent: Puppet) -> None:
    import msgspec

    given = await running(stage, agent)
    await agent.finish(given)
    plain = await stage.got(f"GET /v1/jobs/{given.job}/events", query={"limit": 1000})
    packed = await stage.ask(f"GET /v1/jobs/{given.job}/events", headers={"accept": "application/msgpack"})
    assert msgspec.msgpack.decode(packed.body) == plain
    assert plain["oldest_index"] == 0


async def test_many_readers_of_one_job_take_turns_and_those_of_others_do_not_wait_for_them(
    stage: Stage, agent: Puppet
) -> None:
    function = await stage.live(agent, "app", spec(max_containers=2))
    crowd, alone = await stage.submit(function), await stage.submit(function)
    given = {}
    for _ in range(2):
        work = await agent.work()
        given[work.job] = work
        await agent.begin(work)
    many = [await Follower(stage, crowd, after=2).open() for _ in range(2 * streams.FEW)]
    one = await Follower(stage, alone, after=2).open()
    for reader in (*many, one):
        await reader.next()
    for job in (crowd, alone):
        await agent.tell(agent.report(given[job], said=items("a")))
    assert (await one.next()).data["item_index"] == 0
    assert await many[0].quiet()  # the clock stands still, and their turn comes with it
    await stage.clock.advance(len(many) * streams.SHARE_S)
    assert (await many[0].next()).data["item_index"] == 0
    for reader in (*many, one):
        await reader.cut()
