"""What tests of streams share: the jobs of the app `gens`, and events told in short."""

from __future__ import annotations

from collections.abc import Iterable

from apothic import ControlPlaneClient, Job, JobStreamEvent
from apothic.protocol import messages as m
from apothic.protocol import routes


def newest(client: ControlPlaneClient, function: str) -> Job:
    """Return the job of that function that was submitted last."""
    (found,) = client.ask_blocking(routes.LIST_JOBS, m.ListJobs(app="gens", function=function, limit=1)).jobs
    return Job(found.id, client)


def submitted(client: ControlPlaneClient) -> int:
    """Return how many jobs there are."""
    return len(client.ask_blocking(routes.LIST_JOBS, m.ListJobs(app="gens", limit=500)).jobs)


def kinds(events: Iterable[JobStreamEvent]) -> list[str]:
    """Return the events' types, without what they have in common."""
    return [event.event.removeprefix("job.") for event in events]
