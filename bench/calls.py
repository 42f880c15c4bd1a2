"""Calls, jobs and the start, beside a bare HTTP round trip, a process pool, synced appends and every peer."""

from __future__ import annotations

import statistics

from bench import floors, ours, peers
from bench.table import Found, Line, show

CALLS, JOBS, SINGLES, MAPPED = 1_000, 5_000, 1_000, 20_000
RAYS = [("Ray task", "ray task", "no"), ("Ray actor", "ray actor", "no")]
RIVALS = [
    *RAYS,
    ("Celery, Redis", "celery", "queue and results; not a job at work"),
    ("taskiq, Redis", "taskiq", "yes"),
    ("DBOS, SQLite", "dbos sqlite", "yes"),
    ("DBOS, PostgreSQL", "dbos postgres", "yes"),
    ("pgqueuer, PostgreSQL", "pgqueuer", "jobs; it keeps no results"),
]


def measure(found: Found, beside: list[str]) -> None:
    """Run every warm workload, its floors and the peers, once."""
    _warm_calls(found)
    found.note("map", ours.map_rate(JOBS))
    found.note("pool map", floors.pool_map(JOBS))
    found.note("spawn", ours.spawn_rate(SINGLES))
    found.note("spawn 32", ours.spawn_rate_of_threads(3000, 32))
    found.note("spawn_map", ours.spawn_map_rate(MAPPED))
    found.note("append", 1 / statistics.median(floors.synced_appends(500)))
    found.note("mb_s", ours.megabytes_s())
    found.note("new container", ours.new_container_ms(10))
    words = ("--calls", str(CALLS), "--jobs", str(JOBS), "--singles", str(SINGLES))
    for script in peers.scripts("calls", beside):
        for figure, value in script.measured(*words).items():
            found.note(f"{script.name} {figure}", value)


def measure_start(found: Found) -> None:
    """Run what starts from nothing, the first result three times as it drifts most, and its floors."""
    for _ in range(3):
        seconds, memory = ours.from_nothing()
        found.note("first result", seconds)
        found.note("memory", memory)
    found.note("pool first result", floors.pool_first_result())
    bare = statistics.median(floors.interpreter(10))
    found.note("bare interpreter", bare * 1000)
    found.note("import", (statistics.median(floors.interpreter(10, "import apothic")) - bare) * 1000)
    found.note("help", ours.help_ms())


def _warm_calls(found: Found) -> None:
    for name, taken in (
        ("remote", ours.remote_calls(CALLS)),
        ("http", floors.http_round_trips(CALLS)),
        ("pool call", floors.pool_calls(CALLS)),
    ):
        ordered = sorted(each * 1000 for each in taken)
        for percent in (50, 95, 99):
            found.note(f"{name} p{percent}_ms", ordered[len(ordered) * percent // 100])


def report(found: Found, wanted: list[str]) -> None:
    """Print the table, and who is missing from it."""
    show("Calls", [*_calls(), *_jobs(), *_start()], found)
    for script in peers.scripts("calls", wanted):
        if not any(name.startswith(f"{script.name} ") for name in found.all()):
            print(f"\n{script.name.upper()} WAS LEFT OUT: see above.")


def _beside_all(title: str, unit: str, ours_name: str, figure: str, targets: dict[str, str]) -> list[Line]:
    return [
        Line(title, unit, ours_name, who, f"{name} {figure}", targets.get(name, ""), durable)
        for who, name, durable in RIVALS
    ]


def _calls() -> list[Line]:
    floor_names = ("bare HTTP round trip", "http"), ("process pool call", "pool call")
    p50, target = "remote p50_ms", {"http": "≤ 3 ×"}
    return [
        *(Line("warm `remote` p50", "ms", p50, who, f"{key} p50_ms", target.get(key, "")) for who, key in floor_names),
        *_beside_all("warm `remote` p50", "ms", p50, "p50_ms", {"ray actor": "≤ 0.5 ×"}),
        Line("warm `remote` p99", "ms", "remote p99_ms", "its own p50", p50, "≤ 4 ×", "yes"),
        *(Line("warm `remote` p99", "ms", "remote p99_ms", who, f"{key} p99_ms") for who, key in floor_names),
        *_beside_all("warm `remote` p99", "ms", "remote p99_ms", "p99_ms", {}),
    ]


def _jobs() -> list[Line]:
    many, one, append = "`map` of 5,000 no-ops", "`spawn` one by one", "synced appends of 4 KiB"
    at_work = "pgqueuer, its workers at work"
    return [
        Line(many, "calls/s", "map", "process pool, no chunks", "pool map", "≥ 3 ×"),
        *_beside_all(many, "calls/s", "map", "rate", {"ray actor": "≥ 8 ×"}),
        Line(one, "jobs/s", "spawn", append, "append", durable="yes"),
        *_beside_all(one, "jobs/s", "spawn", "submit_s", {"pgqueuer": "≥ 1.5 ×"}),
        Line(one, "jobs/s", "spawn", at_work, "pgqueuer submit_beside_s", "≥ 1.5 ×", "jobs; it keeps no results"),
        Line("`spawn` from 32 threads", "jobs/s", "spawn 32", append, "append", "≥ 5,000 jobs/s", "yes"),
        Line(f"`spawn_map` of {MAPPED:,}", "jobs/s", "spawn_map", append, "append", "≥ 20,000 jobs/s", "yes"),
        *_beside_all("10 MB argument and result", "MB/s", "mb_s", "mb_s", {"ray task": "≥ 1 ×"})[:-1],
    ]


def _start() -> list[Line]:
    start = "start of server to first result"
    return [
        Line("new container to first result", "ms", "new container", target="≤ 50 ms"),
        Line(start, "s", "first result", target="≤ 1.0 s"),
        Line(start, "s", "first result", "process pool", "pool first result"),
        Line(start, "s", "first result", "Ray, the first task", "ray first_s", "≤ 0.11 ×"),
        Line("`import apothic` over a bare start", "ms", "import", "bare start", "bare interpreter", "≤ 60 ms", "–"),
        Line("`apothic --help`", "ms", "help", "bare start", "bare interpreter", "≤ 150 ms", "–"),
        Line("idle: server, agent, one warm container, PSS", "MiB", "memory", target="≤ 90 MiB"),
    ]
