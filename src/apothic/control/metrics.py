"""`GET /metrics`: the store's counts as Prometheus text."""

from __future__ import annotations

from collections.abc import Iterator

from apothic.store.gauges import Gauges

PATH = "/metrics"
SCOPE = "read:jobs"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(gauges: Gauges) -> bytes:
    """Return the text that Prometheus reads."""
    lines = [
        *_family("jobs", "gauge", "Jobs by status", [({"status": k}, n) for k, n in gauges.jobs.items()]),
        *_family(
            "queue_length", "gauge", "Jobs that are queued or wait for a retry, by function",
            [({"app": app, "function": name}, n) for (app, name), n in gauges.waiting.items()],
        ),
        *_family("agents", "gauge", "Agents by state", [({"state": k}, n) for k, n in gauges.agents.items()]),
        *_family(
            "containers", "gauge", "Containers by state", [({"state": k}, n) for k, n in gauges.containers.items()]
        ),
        *_family("commits_total", "counter", "Commits of the store since its process began", [({}, gauges.commits)]),
        *_family("held_bytes", "gauge", "Bytes that the data directory holds", [({}, gauges.held)]),
        *_family("jobs_gone_total", "counter", "Jobs deleted past their retention", [({}, gauges.gone)]),
        *_family("blobs_collected_total", "counter", "Blobs deleted that nothing named", [({}, gauges.collected)]),
    ]  # fmt: skip
    return ("\n".join(lines) + "\n").encode()


def _family(name: str, kind: str, about: str, samples: list[tuple[dict[str, str], int]]) -> Iterator[str]:
    yield f"# HELP apothic_{name} {about}"
    yield f"# TYPE apothic_{name} {kind}"
    for labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"apothic_{name}{{{inside}}} {value}" if inside else f"apothic_{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
