"""Blobs: streamed both ways, checked, and nothing left of what breaks off."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from walkrig import Puppet, Stage, spec

from apothic.protocol.messages import AppManifest, SourceFile

DATA = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(DATA).hexdigest()
PARTS = [DATA[n : n + 100_000] for n in range(0, len(DATA), 100_000)]


def files(stage: Stage) -> list[Path]:
    return [path for path in (stage.data_dir / "blobs").rglob("*") if path.is_file()]


async def test_there_and_back(stage: Stage) -> None:
    assert (await stage.ask(f"HEAD /v1/blobs/{SHA256}")).status == 404
    for _ in range(2):
        put = await stage.ask(f"PUT /v1/blobs/{SHA256}", body=PARTS)
        assert (put.status, put.json()) == (200, {"sha256": SHA256, "size": len(DATA)})
    head = await stage.ask(f"HEAD /v1/blobs/{SHA256}")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(DATA)), b"")
    got = await stage.ask(f"GET /v1/blobs/{SHA256}")
    assert (got.status, got.body == DATA) == (200, True)
    assert files(stage) == [stage.data_dir / "blobs" / SHA256[:2] / SHA256]


async def test_an_empty_blob(stage: Stage) -> None:
    nothing = hashlib.sha256(b"").hexdigest()
    assert (await stage.ask(f"PUT /v1/blobs/{nothing}")).json()["size"] == 0
    assert (await stage.ask(f"GET /v1/blobs/{nothing}")).body == b""


async def test_bytes_of_another_hash_are_refused(stage: Stage) -> None:
    answer = await stage.ask(f"PUT /v1/blobs/{SHA256}", body=DATA + b"!")
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert files(stage) == []
    assert (await stage.ask(f"GET /v1/blobs/{SHA256}")).status == 404


async def test_an_upload_that_breaks_off_leaves_nothing(stage: Stage) -> None:
    answer = await stage.ask(f"PUT /v1/blobs/{SHA256}", body=[*PARTS[:3], None])
    assert answer.status == 400
    assert files(stage) == []


@pytest.mark.parametrize("stage", [{"payload_limit": 1000}], indirect=True)
async def test_a_blob_over_the_limit_is_413(stage: Stage) -> None:
    answer = await stage.ask(f"PUT /v1/blobs/{SHA256}", body=[b"x" * 600, b"y" * 600])
    assert (answer.status, answer.code) == (413, "payload_too_large")
    assert answer.json()["error"]["details"] == {"size": 1200, "limit": 1000, "what": "a blob"}
    assert files(stage) == []
    assert (await stage.ask(f"PUT /v1/blobs/{hashlib.sha256(b'x' * 1000).hexdigest()}", body=b"x" * 1000)).status == 200


@pytest.mark.parametrize("name", ["x", "A" * 64, "..", "%2e%2e%2fadmin.key", "0" * 63, "0" * 63 + "é", "%00" * 64])
async def test_what_is_no_hash_names_nothing(stage: Stage, name: str) -> None:
    for method in ("PUT", "GET", "HEAD"):
        assert (await stage.ask(f"{method} /v1/blobs/{name}", body=b"x")).status in (400, 404)
    assert files(stage) == []


async def test_a_full_disk_is_507(stage: Stage) -> None:
    import errno

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    stage.probe.on("blob.before", full)
    answer = await stage.ask(f"PUT /v1/blobs/{SHA256}", body=DATA)
    assert (answer.status, answer.code) == (507, "storage_full")
    assert files(stage) == []
    stage.probe.on("blob.before", lambda: None)
    assert (await stage.ask(f"PUT /v1/blobs/{SHA256}", body=DATA)).status == 200


async def test_a_deployment_says_which_blobs_are_missing(stage: Stage, agent: Puppet) -> None:
    manifest = AppManifest(
        app="app", functions=[spec()], files=[SourceFile(path="a.py", sha256=SHA256, size=len(DATA))]
    )
    path = "POST /v1/apps/app/deployments"
    assert await stage.got(path, manifest) == {"missing": [SHA256], "deployment": None}
    await stage.ask(f"PUT /v1/blobs/{SHA256}", body=DATA)
    deployed = await stage.got(path, manifest)
    assert (deployed["missing"], deployed["deployment"]["status"]) == ([], "starting")


async def test_an_input_by_reference(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    value = {"encoding": "pickle", "sha256": SHA256, "size": len(DATA)}
    missing = await stage.ask(f"POST /v1/functions/{function}/jobs", {"input": value})
    assert missing.status == 400 and "PUT" in missing.json()["error"]["hint"]
    await stage.ask(f"PUT /v1/blobs/{SHA256}", body=DATA)
    await stage.submit(function, body={"input": value, "args": None})
    given = await agent.work()
    assert (given.input.sha256, given.input.size, given.input.data) == (SHA256, len(DATA), None)
