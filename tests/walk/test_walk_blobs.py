"""Blobs: streamed both ways, checked, and nothing left of what breaks off."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from walkrig import Answer, Puppet, Stage, spec

from apothic import nearby
from apothic.protocol.messages import AppManifest, SourceFile

DATA = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(DATA).hexdigest()
PARTS = [DATA[n : n + 100_000] for n in range(0, len(DATA), 100_000)]


def files(stage: Stage) -> list[Path]:
    return [path for path in (stage.data_dir / "blobs").rglob("*") if not path.is_dir()]


NAME = "0123456789abcdef" * 2


def place(stage: Stage) -> Path:
    """Where the offer of that name lies."""
    return nearby.offer(stage.data_dir / "blobs", NAME)


async def put_offer(stage: Stage, name: str = NAME) -> Answer:
    return await stage.ask(f"PUT /v1/blobs/{SHA256}", headers={nearby.HEADER: name})


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


# --- files that somebody with access to the directory has put there -----------------------------------------------


async def test_an_offered_file_becomes_the_blob(stage: Stage) -> None:
    place(stage).write_bytes(DATA)
    number = place(stage).stat().st_ino
    put = await put_offer(stage)
    assert (put.status, put.json()) == (200, {"sha256": SHA256, "size": len(DATA)})
    blob = stage.data_dir / "blobs" / SHA256[:2] / SHA256
    assert files(stage) == [blob]
    assert blob.stat().st_ino == number
    assert (await stage.ask(f"GET /v1/blobs/{SHA256}")).body == DATA
    assert (await stage.ask(f"HEAD /v1/blobs/{SHA256}")).status == 200


async def test_an_offer_of_other_bytes_is_refused(stage: Stage) -> None:
    place(stage).write_bytes(DATA + b"!")
    answer = await put_offer(stage)
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert files(stage) == []


async def test_an_offer_that_is_not_there_is_404(stage: Stage) -> None:
    assert (await put_offer(stage)).status == 404
    assert (await stage.ask(f"HEAD /v1/blobs/{SHA256}")).status == 404


@pytest.mark.parametrize("name", ["", "x", "../../admin.key", "/etc/passwd", "%00" * 32])
async def test_what_is_no_name_of_an_offer_is_400(stage: Stage, name: str) -> None:
    assert (await put_offer(stage, name)).status == 400


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
async def test_only_a_plain_file_is_an_offer(stage: Stage, tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").write_bytes(DATA)
    match kind:
        case "link":
            place(stage).symlink_to(tmp_path / "elsewhere")
        case "pipe":
            os.mkfifo(place(stage))
        case _:
            place(stage).mkdir()
    assert (await put_offer(stage)).status == 400
    assert (tmp_path / "elsewhere").read_bytes() == DATA
    stage.control.blobs.clear()  # at the next start
    assert place(stage).exists() == (kind == "directory")
    if kind == "directory":
        place(stage).rmdir()


@pytest.mark.parametrize("stage", [{"payload_limit": 1000}], indirect=True)
async def test_an_offer_over_the_limit_is_413(stage: Stage) -> None:
    place(stage).write_bytes(DATA)
    answer = await put_offer(stage)
    assert (answer.status, answer.code) == (413, "payload_too_large")
    assert files(stage) == []


async def test_whoever_may_store_no_blobs_may_offer_none(stage: Stage) -> None:
    place(stage).write_bytes(DATA)
    key = (await stage.got("POST /v1/keys", {"name": "reader", "scopes": ["read:jobs"]}))["secret"]
    answer = await stage.ask(f"PUT /v1/blobs/{SHA256}", headers={nearby.HEADER: NAME}, key=key)
    assert answer.status == 403
    assert files(stage) == [place(stage)]
    place(stage).unlink()


async def test_offers_that_a_crash_left_are_gone_at_the_next_start(stage: Stage) -> None:
    place(stage).write_bytes(DATA)
    stage.control.blobs.clear()
    assert files(stage) == []


@pytest.mark.parametrize("offered", [False, True])
async def test_the_server_hashes_each_byte_once(stage: Stage, monkeypatch: pytest.MonkeyPatch, offered: bool) -> None:
    hashed, sha256 = 0, hashlib.sha256

    class Counting:
        """A hash that counts."""

        def __init__(self, data: bytes = b"") -> None:
            self._digest = sha256(data)

        def update(self, data: bytes) -> None:
            nonlocal hashed
            hashed += len(data)
            self._digest.update(data)

        def hexdigest(self) -> str:
            return self._digest.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Counting)
    if offered:
        place(stage).write_bytes(DATA)
        await put_offer(stage)
    else:
        await stage.ask(f"PUT /v1/blobs/{SHA256}", body=PARTS)
    assert (await stage.ask(f"GET /v1/blobs/{SHA256}")).body == DATA
    assert hashed == len(DATA)
