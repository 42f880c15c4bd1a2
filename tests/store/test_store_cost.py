"""What a write costs, in statements: many jobs take as many as few, and a single call reads no more than it needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from storerig import DONE, Store, new_job, spec

from apothic.protocol.session import ContainerNews, Outcome, Packed, Report, Reports
from apothic.store.tx import Tx

QUICK = Outcome(value=Packed(encoding="json", data=b"42"), ran_s=0.0001)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the queries that are run, by name."""
    counted: Counter[str] = Counter()

    def counting(method: str) -> None:
        real = getattr(Tx, method)

        def run(self: Tx, query: str, *rows: Any, **values: Any) -> Any:
            counted[query if values.get("whole", True) else f"{query}, near"] += 1
            return real(self, query, *rows, **values)

        monkeypatch.setattr(Tx, method, run)

    for method in ("run", "many", "one", "all"):
        counting(method)
    yield counted


async def test_many_jobs_take_as_many_statements_as_few(store: Store, statements: Counter[str]) -> None:
    function = await store.live("app", spec(max_containers=1, max_pending_tasks=1000))
    await store.finish((await placed(store, function))[0], QUICK)  # so that its container holds many ahead
    few, many = [], []
    for jobs, into in ((4, few), (100, many)):
        statements.clear()
        await store.jobs.submit_batch([new_job(function, key=f"{jobs}.{n}") for n in range(jobs)])
        into.append(statements.total())
        given = store.taken()
        assert len(given) == jobs
        statements.clear()
        reports = [
            Report(job=g.job, attempt=g.attempt, token=g.token, seq=0, at=1.0, began=True, outcome=QUICK) for g in given
        ]
        await store.fleet.reports("agt", Reports(number=0, reports=reports))
        into.append(statements.total())
    assert few == many
    assert max(many) < 30


async def placed(store: Store, function: str) -> list[Any]:
    await store.submit(function)
    for start in store.started():
        await store.news("agt", ContainerNews(id=start.container, state="ready", pid=7))
    return store.taken()


async def test_a_single_call_looks_at_its_own_containers_and_its_end_at_none(
    store: Store, statements: Counter[str]
) -> None:
    function = await store.live("app", spec())
    await store.live("other", spec())
    statements.clear()
    (given,) = await placed(store, function)
    assert statements["seats, near"] == 1
    assert not {"seats", "hosts", "proofs", "demands"} & statements.keys()
    statements.clear()
    await store.finish(given, DONE)
    assert not {"seats", "seats, near", "wanting", "hosts"} & statements.keys()
    assert statements.total() < 12


async def test_two_reports_of_a_frame_that_cannot_be_stored_leave_both_containers_idle(store: Store) -> None:
    function = await store.live("app", spec(max_containers=2, keep_warm_s=60))
    given = []
    for _ in range(2):
        await store.submit(function)
        for start in store.started():
            await store.news("agt", ContainerNews(id=start.container, state="ready", pid=7))
        given += store.taken()
    bad = Outcome(value=Packed(encoding="json", data=b"no json", size=7))
    reports = [
        Report(job=g.job, attempt=g.attempt, token=g.token, seq=0, at=1.0, began=True, outcome=bad) for g in given
    ]
    await store.fleet.reports("agt", Reports(number=0, reports=reports))
    assert [await store.status(g.job) for g in given] == ["failed", "failed"]
    assert len({g.container for g in given}) == 2
    assert await store.rows("SELECT count(*) FROM containers WHERE idle_since IS NULL") == [(0,)]
