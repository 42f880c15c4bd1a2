"""`apothic doctor` on sound and on spoilt directories, and `apothic job retry`, as a user runs them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from commandbench import Runs, Server, runner

from apothic.store.examine import filesystem

FLAKY = """
import os

import apothic

app = apothic.App("flaky")


@app.function()
def read(path: str) -> str:
    with open(path) as file:
        return file.read()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "flaky.py").write_text(FLAKY)
    return folder


def states(document: dict[str, Any]) -> dict[str, str]:
    return {finding["what"]: finding["state"] for finding in document["findings"]}


def test_a_failed_job_is_retried_as_a_new_one(run: Runs, home: Path) -> None:
    run("deploy", "flaky.py").ok()
    first = run("call", "--detach", "flaky", "read", home / "page").ok().out.strip()
    assert run("job", "wait", first).status == 1
    (home / "page").write_text("it is here now")
    new = run("job", "retry", first, "--json").ok().json
    assert new["retry_of"] == first
    assert new["id"] != first
    assert run("job", "wait", new["id"]).ok().out.strip() == '"it is here now"'
    assert f"retry of    {first}" in run("job", "show", new["id"]).ok().out
    assert run("job", "show", first, "--json").ok().json["status"] == "failed"


def test_a_job_that_is_not_there_cannot_be_retried(run: Runs) -> None:
    missing = run("job", "retry", "job_00000000000000000000000000")
    assert missing.status == 1
    assert "there is no job" in missing.err


def test_the_doctor_finds_a_running_server_well(run: Runs) -> None:
    found = run("doctor", "--json").ok().json
    assert found["ok"]
    assert set(states(found).values()) <= {"ok", "note"}
    assert {"python", "kernel", "sqlite", "store", "rules", "server", "agents", "data directory", "disk"} <= set(
        states(found)
    )
    told = run("doctor").ok()
    assert "server: http://127.0.0.1:" in told.out
    assert "wrong" not in told.out + told.err


def test_the_doctor_needs_no_server_and_starts_none(home: Path, tmp_path: Path) -> None:
    data = tmp_path / "none"
    found = runner(home, APOTHIC_DATA_DIR=str(data))("doctor", "--json").ok().json
    assert states(found)["data directory"] == states(found)["server"] == "note"
    assert not data.exists()


def test_the_doctor_names_what_is_wrong_and_what_to_do(home: Path, tmp_path: Path) -> None:
    server = Server(tmp_path)
    run = runner(home, APOTHIC_DATA_DIR=str(server.data_dir))
    try:
        run("deploy", "flaky.py").ok()
        job = run("call", "--detach", "flaky", "read", home / "flaky.py").ok().out.strip()
        run("job", "wait", job).ok()
    finally:
        server.close()
    connection = sqlite3.connect(server.data_dir / "apothic.db")
    connection.execute("DELETE FROM events WHERE type = 'job.end'")
    connection.commit()
    connection.close()
    server.data_dir.chmod(0o755)
    told = run("doctor")
    assert told.status == 1
    assert f"wrong  rule end_iff_final: broken by {job}" in told.out
    assert f"hint: chmod 700 {server.data_dir}" in told.out
    assert "this is a bug of apothic" in told.out
    assert told.err.strip().endswith("wrong")


def test_the_doctor_misses_a_blob_that_was_deleted(home: Path, tmp_path: Path) -> None:
    server = Server(tmp_path)
    run = runner(home, APOTHIC_DATA_DIR=str(server.data_dir))
    try:
        run("deploy", "flaky.py").ok()
    finally:
        server.close()
    assert states(run("doctor", "--json").ok().json)["blobs"] == "ok"
    blob = next(path for path in (server.data_dir / "blobs").glob("*/*") if path.is_file())
    blob.unlink()
    told = run("doctor")
    assert told.status == 1
    assert f"wrong  blobs: 1 files are missing or cut short: {blob.name}" in told.out


def test_the_doctor_looks_at_a_file_that_is_no_database(home: Path, tmp_path: Path) -> None:
    (tmp_path / "apothic.db").write_bytes(b"this is no database" * 1000)
    tmp_path.chmod(0o700)
    told = runner(home, APOTHIC_DATA_DIR=str(tmp_path))("doctor")
    assert told.status == 1
    assert "cannot be read: file is not a database" in told.out


def test_the_doctor_finds_a_page_that_was_overwritten(home: Path, tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.close()
    path = server.data_dir / "apothic.db"
    whole = bytearray(path.read_bytes())
    whole[4096 * 3 : 4096 * 4] = b"\xff" * 4096
    path.write_bytes(whole)
    told = runner(home, APOTHIC_DATA_DIR=str(server.data_dir))("doctor")
    assert told.status == 1
    assert "wrong  store:" in told.out


def test_a_file_system_is_found_by_its_longest_mount_point(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/a / ext4 rw 0 0\nserver:/x /srv/data nfs4 rw 0 0\n/dev/b /srv tmpfs rw 0 0\nshort\n")
    assert filesystem(Path("/srv/data/apothic"), mounts) == "nfs4"
    assert filesystem(Path("/srv/other"), mounts) == "tmpfs"
    assert filesystem(Path("/home"), mounts) == "ext4"
    assert filesystem(Path("/home"), tmp_path / "none") is None
