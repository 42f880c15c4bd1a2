"""The asking end against a real server: blobs, errors by name, versions, resending, forks."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rig import Server

from apothic import nearby, transport
from apothic.errors import (
    AuthError,
    ConfigError,
    NotFoundError,
    SerializationError,
    ServerUnavailableError,
    VersionMismatchError,
)
from apothic.nearby import Nearby
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.transport import Transport


@pytest.fixture
async def asker(server: Server) -> AsyncIterator[Transport]:
    asker = Transport(server.base_url, (server.data_dir / "admin.key").read_text().strip(), first_patience_s=0.3)
    yield asker
    await asker.close()


async def test_path_query_and_body_arrive_where_they_belong(asker: Transport) -> None:
    made = await asker.ask(routes.CREATE_KEY, m.CreateKey(name="a key", scopes=["read:jobs"]))
    listed = await asker.ask(routes.LIST_KEYS, m.ListKeys())
    assert made.key.id in {key.id for key in listed.keys}
    assert (await asker.ask(routes.REVOKE_KEY, m.RevokeKey(key=made.key.id))).revoked_at is not None
    assert (await asker.ask(routes.LIST_JOBS, m.ListJobs(app="a/b & c", limit=3))).jobs == []


async def test_a_file_goes_up_and_comes_down_by_its_hash(asker: Transport, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    sha256 = hashlib.sha256(data).hexdigest()
    (tmp_path / "up").write_bytes(data)

    assert not await asker.has_blob(sha256)
    assert (await asker.put_blob(tmp_path / "up", sha256, len(data))).size == len(data)
    assert await asker.has_blob(sha256)
    await asker.get_blob(sha256, tmp_path / "down")

    assert (tmp_path / "down").read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["down", "up"]


@pytest.fixture
async def beside(server: Server) -> AsyncIterator[Transport]:
    """A transport that has the server's directory at hand."""
    key = (server.data_dir / "admin.key").read_text().strip()
    asker = Transport(server.base_url, key, first_patience_s=0.3, nearby=Nearby(server.data_dir / "blobs"))
    yield asker
    await asker.close()


def stored(server: Server, sha256: str) -> Path:
    return server.data_dir / "blobs" / sha256[:2] / sha256


def fresh(path: Path) -> str:
    """Write a file whose like there was not, and return its hash."""
    data = os.urandom(100_000)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("given", [False, True])
async def test_beside_the_server_a_file_is_handed_over(
    server: Server, beside: Transport, tmp_path: Path, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_chunks_of", None)  # no byte of it is sent
    sha256 = fresh(tmp_path / "up")
    assert (await beside.put_blob(tmp_path / "up", sha256, 100_000, given=given)).size == 100_000
    assert stored(server, sha256).read_bytes() == (tmp_path / "up").read_bytes()
    assert stored(server, sha256).samefile(tmp_path / "up") == given
    assert await beside.has_blob(sha256)
    assert list(nearby.offers(server.data_dir / "blobs").iterdir()) == []


async def test_beside_the_server_what_is_there_is_not_handed_over_again(
    server: Server, beside: Transport, tmp_path: Path
) -> None:
    sha256 = fresh(tmp_path / "up")
    await beside.put_blob(tmp_path / "up", sha256, 100_000)
    number = stored(server, sha256).stat().st_ino
    assert (await beside.put_blob(tmp_path / "up", sha256, 100_000)).size == 100_000
    assert stored(server, sha256).stat().st_ino == number


async def test_beside_the_server_a_blob_comes_without_being_asked_for(
    server: Server, beside: Transport, tmp_path: Path
) -> None:
    sha256 = fresh(tmp_path / "up")
    await beside.put_blob(tmp_path / "up", sha256, 100_000)
    near = Nearby(server.data_dir / "blobs")
    nobody = Transport("http://127.0.0.1:9", first_patience_s=0.0, patience_s=0.0, nearby=near)
    await nobody.get_blob(sha256, tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()
    with pytest.raises(ServerUnavailableError):  # what is not there may be elsewhere
        await nobody.get_blob("0" * 64, tmp_path / "other")
    await nobody.close()


@pytest.mark.parametrize("whose", ["another's", "nobody's"])
async def test_a_directory_that_is_not_the_servers_is_no_way_to_it(server: Server, tmp_path: Path, whose: str) -> None:
    elsewhere = tmp_path / "blobs"
    if whose == "another's":
        nearby.offers(elsewhere).mkdir(parents=True)
    key = (server.data_dir / "admin.key").read_text().strip()
    asker = Transport(server.base_url, key, nearby=Nearby(elsewhere))
    sha256 = fresh(tmp_path / "up")
    await asker.put_blob(tmp_path / "up", sha256, 100_000, given=True)
    await asker.get_blob(sha256, tmp_path / "down")
    await asker.close()
    assert stored(server, sha256).read_bytes() == (tmp_path / "down").read_bytes()
    assert [path for path in elsewhere.rglob("*") if path.is_file()] == []


async def test_a_blob_that_is_not_there_is_not_found_and_leaves_no_file(asker: Transport, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        await asker.get_blob("0" * 64, tmp_path / "down")
    assert list(tmp_path.iterdir()) == []


async def test_damaged_bytes_never_become_the_file(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"other bytes"

    with pytest.raises(SerializationError, match="came damaged"):
        await transport._write_checked(chunks(), "0" * 64, tmp_path / "down")
    assert list(tmp_path.iterdir()) == []


async def test_bytes_with_another_hash_are_refused(asker: Transport) -> None:
    with pytest.raises(Exception, match=r"(?i)hash|sha"):
        await asker.put_blob(b"these", hashlib.sha256(b"those").hexdigest(), 5)


async def test_an_error_comes_back_as_its_class(asker: Transport) -> None:
    with pytest.raises(NotFoundError):
        await asker.ask(routes.SHOW_JOB, m.ShowJob(job="job_0123456789abcdefghjkmnpqrs"))


@pytest.mark.parametrize("key", [None, "wrong"])
async def test_no_key_and_a_wrong_one_are_told_with_url_and_hint(server: Server, key: str | None) -> None:
    asker = Transport(server.base_url, key)
    with pytest.raises(AuthError, match=server.base_url) as caught:
        await asker.ask(routes.LIST_APPS, m.ListApps())
    await asker.close()

    assert caught.value.details["url"] == server.base_url
    assert caught.value.hint


async def test_another_version_is_named_on_both_sides(asker: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = transport.__version__
    monkeypatch.setattr(transport, "__version__", "9.9.0")
    with pytest.raises(VersionMismatchError) as caught:
        await asker.ask(routes.LIST_APPS, m.ListApps())

    assert ours in caught.value.message
    assert "9.9.0" in caught.value.message


async def test_a_patch_version_is_no_other_version(asker: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor, _ = transport.__version__.split(".")
    monkeypatch.setattr(transport, "__version__", f"{major}.{minor}.999")
    assert (await asker.ask(routes.HEALTHZ, m.ShowHealth())).ok


async def test_nobody_there_is_told_after_a_little_patience() -> None:
    asker = Transport("http://127.0.0.1:9", first_patience_s=0.2)
    with pytest.raises(ServerUnavailableError) as caught:
        await asker.ask(routes.LIST_APPS, m.ListApps())
    await asker.close()

    assert caught.value.url == "http://127.0.0.1:9"


async def test_a_url_that_is_none_is_a_setting_that_is_wrong() -> None:
    asker = Transport("no url at all")
    with pytest.raises(ConfigError, match="is no URL"):
        await asker.ask(routes.LIST_APPS, m.ListApps())
    await asker.close()


async def test_who_answers_and_is_no_control_plane_is_told_apart(server: Server) -> None:
    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\nConnection: close\r\n\r\nnope\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(stranger, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        asker = Transport(f"http://127.0.0.1:{port}", first_patience_s=0.1)
        with pytest.raises(ServerUnavailableError, match="is no control plane"):
            await asker.ask(routes.LIST_APPS, m.ListApps())
        await asker.close()


async def test_what_may_be_resent_is_resent_after_a_lost_connection(server: Server) -> None:
    cut = 0

    async def cutting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal cut
        if cut < 2:
            cut += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()
            return
        host, port = server.base_url.removeprefix("http://").split(":")
        there, back = await asyncio.open_connection(host, int(port))
        request = await reader.readuntil(b"\r\n\r\n")
        back.write(
            request.replace(own.encode(), f"{host}:{port}".encode()).replace(
                b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"
            )
        )
        writer.write(await there.read())
        await writer.drain()
        back.close()
        writer.close()

    async with await asyncio.start_server(cutting, "127.0.0.1", 0) as listener:
        own = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        asker = Transport(f"http://{own}", first_patience_s=10)
        assert (await asker.ask(routes.HEALTHZ, m.ShowHealth())).ok
        assert cut == 2
        cut = 0
        with pytest.raises(ServerUnavailableError):  # a key may have been made: asking again would make another
            await asker.ask(routes.CREATE_KEY, m.CreateKey(name="once"))
        assert cut == 1
        await asker.close()
