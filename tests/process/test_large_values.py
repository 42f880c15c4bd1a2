"""Large values: the control plane only ever streams them, and a limit that is exceeded names size, limit and what."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from chaos.aftermath import check_no_slot_leaks, job_of, loaded
from rig import Server, serving

from apothic import ControlPlaneClient, transport
from apothic.errors import JobFailedError, PayloadTooLargeError

MIB = 1024 * 1024

LARGE = """
import apothic

app = apothic.App("large")


@app.function(memory_mb=4096)
def echo(data: bytes) -> bytes:
    return data


@app.function(memory_mb=4096)
def make(size: int) -> bytes:
    return bytes(size)


kept = []


@app.function(max_containers=1)
def tamper(data: bytes) -> bytes:
    # Writes into all that lies around of this value, and of those before it.
    import os, pathlib, tempfile

    for number in kept:
        os.pwrite(number, b"tampered", 0)
    for path in (pathlib.Path(os.environ["TMPDIR"]).parents[2] / "files").glob("in-*"):
        path.write_bytes(b"tampered")
        kept.append(os.open(path, os.O_RDWR))
    real = tempfile.mkstemp

    def mkstemp(*given, **named):
        tempfile.mkstemp = real
        number, name = real(*given, **named)
        kept.append(os.dup(number))
        return number, name

    tempfile.mkstemp = mkstemp
    return data + bytes([len(kept)])
"""


class Peak:
    """The most memory that a process holds while the block runs, over what it held before."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._before = self._most = 0

    @property
    def growth(self) -> int:
        return self._most - self._before

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._most = max(self._most, self._process.memory_info().rss)

    def __enter__(self) -> Peak:
        self._before = self._most = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def there_and_back(server: Server, folder: Path, size: int) -> int:
    """Send bytes through a function and compare; return by how much the control plane grew."""
    client = server.client(timeout_s=600)
    with loaded(folder, "large", LARGE, client) as app:
        assert app.echo.remote(b"x" * MIB) == b"x" * MIB  # what is made once, at the first of its kind
        block = hashlib.shake_256(b"large").digest(MIB)
        data = b"".join(bytes([n % 251]) + block[1:] for n in range(size // MIB))
        with Peak(server.pid) as peak:
            back = app.echo.remote(data)
        assert len(back) == len(data) and back == data
        check_no_slot_leaks(server, client)
    return peak.growth


def test_128_mib_pass_through_a_control_plane_that_grows_by_less_than_32(server: Server, tmp_path: Path) -> None:
    growth = there_and_back(server, tmp_path, 128 * MIB)
    print(f"128 MiB: the control plane grew by {growth / MIB:.1f} MiB")
    assert growth < 32 * MIB


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_1_gib_passes_through_a_control_plane_that_grows_by_less_than_64(server: Server, tmp_path: Path) -> None:
    growth = there_and_back(server, tmp_path, 1024 * MIB)
    print(f"1 GiB: the control plane grew by {growth / MIB:.1f} MiB")
    assert growth < 64 * MIB


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, ControlPlaneClient, ModuleType]]:
    """A server that takes values of at most 1 MiB."""
    folder = tmp_path_factory.mktemp("narrow")
    with serving(folder / "data", lease_s=5, grace_s=1, payload_limit="1MiB") as server:
        client = server.client()
        with loaded(folder, "large", LARGE, client) as app:
            yield server, client, app


def test_an_argument_over_the_limit_names_size_limit_and_what(
    narrow: tuple[Server, ControlPlaneClient, ModuleType],
) -> None:
    server, client, app = narrow
    assert len(app.echo.remote(bytes(900_000))) == 900_000

    with pytest.raises(PayloadTooLargeError) as caught:
        app.echo.remote(bytes(3 * MIB))

    error = caught.value
    assert error.limit == MIB and 3 * MIB < error.size < 3 * MIB + 1000 and "arguments" in error.what
    assert f"{error.size:,}" in str(error) and f"{MIB:,}" in str(error) and error.what in str(error)
    assert "payload_limit" in error.hint
    assert len(app.echo.remote(bytes(900_000))) == 900_000
    check_no_slot_leaks(server, client)


def test_a_result_over_the_limit_names_size_limit_and_what(
    narrow: tuple[Server, ControlPlaneClient, ModuleType],
) -> None:
    server, client, app = narrow
    job = app.make.spawn(3 * MIB)

    with pytest.raises(JobFailedError) as caught:
        job.wait(timeout_s=60)

    failure = job_of(client, job.job_id).failure
    assert failure is not None and failure.kind == "payload_too_large"
    assert job_of(client, job.job_id).attempt == 1
    assert "result" in str(caught.value) and f"{MIB:,}" in str(caught.value)
    assert f"{3 * MIB:,}"[:4] in str(caught.value)
    assert "payload_limit" in str(caught.value)
    assert app.make.remote(10) == bytes(10)
    check_no_slot_leaks(server, client)


def test_what_user_code_holds_open_is_no_blob(server: Server, tmp_path: Path) -> None:
    with loaded(tmp_path, "large", LARGE, server.client()) as app:
        for turn in range(3):
            data = bytes([turn]) * MIB
            # Its own input, which it scribbled over, and its output before this one are within its reach.
            assert app.tamper.remote(data) == data + bytes([2 * turn + 1])
    blobs = list((server.data_dir / "blobs").glob("[0-9a-f][0-9a-f]/*"))
    assert len(blobs) >= 6
    for blob in blobs:
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name


def test_beside_the_server_a_caller_sends_and_gets_no_byte_of_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APOTHIC_DATA_DIR", str(server.data_dir))
    monkeypatch.setattr(transport, "_chunks_of", None)
    monkeypatch.setattr(transport, "_write_checked", None)
    with ControlPlaneClient() as client, loaded(tmp_path, "large", LARGE, client) as app:
        data = b"beside" * MIB
        assert app.echo.remote(data) == data
