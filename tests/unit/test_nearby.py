"""Blobs of a server whose data directory is at hand: found, copied or linked, offered, and never half of one."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from io import FileIO
from pathlib import Path

import pytest

from apothic import nearby
from apothic.errors import InvalidRequestError
from apothic.nearby import Nearby

SHA256 = "ab" * 32


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    """A blob in a server's directory."""
    place = tmp_path / "blobs" / "ab" / SHA256
    place.parent.mkdir(parents=True)
    nearby.offers(tmp_path / "blobs").mkdir()
    place.write_bytes(b"the bytes")
    return place


@pytest.mark.parametrize("kernel", ["copies", "cannot"])
async def test_who_runs_the_code_of_others_gets_a_copy(
    tmp_path: Path, blob: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "cannot":

        def refused(*_: object) -> int:
            raise OSError(errno.EXDEV, "another file system")

        monkeypatch.setattr(os, "copy_file_range", refused)
    near = Nearby(tmp_path / "blobs")

    assert near.has(SHA256)
    assert await near.fetch(SHA256, tmp_path / "value")

    assert (tmp_path / "value").read_bytes() == b"the bytes"
    assert (tmp_path / "value").stat().st_mode & 0o777 == 0o600
    with (tmp_path / "value").open("r+b") as opened:
        opened.write(b"something else")
    assert blob.read_bytes() == b"the bytes"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs", "value"]


async def test_who_only_reads_gets_the_file_itself(tmp_path: Path, blob: Path) -> None:
    assert await Nearby(tmp_path / "blobs", links=True).fetch(SHA256, tmp_path / "value")
    blob.unlink()  # collected meanwhile
    assert (tmp_path / "value").read_bytes() == b"the bytes"


@pytest.mark.parametrize("links", [False, True])
async def test_what_is_not_there_is_not_found(tmp_path: Path, links: bool) -> None:
    near = Nearby(tmp_path / "blobs", links=links)
    assert not near.has(SHA256)
    assert not await near.fetch(SHA256, tmp_path / "value")
    assert list(tmp_path.iterdir()) == []


async def test_a_copy_that_is_given_up_leaves_nothing(
    tmp_path: Path, blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()
    copy = nearby._copy

    def slow(there: FileIO, here: FileIO) -> None:
        begun.set()
        go_on.wait(10)
        copy(there, here)
        over.set()

    monkeypatch.setattr(nearby, "_copy", slow)
    fetching = asyncio.ensure_future(Nearby(tmp_path / "blobs").fetch(SHA256, tmp_path / "value"))
    await asyncio.to_thread(begun.wait, 10)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    go_on.set()
    await asyncio.to_thread(over.wait, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["blobs"]


@pytest.mark.parametrize("given", [False, True])
async def test_an_offer_is_a_copy_unless_nobody_writes_to_it_again(tmp_path: Path, blob: Path, given: bool) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"offered")
    async with Nearby(tmp_path / "blobs").offering(source, given=given) as name:
        assert name is not None
        offer = nearby.offer(tmp_path / "blobs", name)
        assert offer.read_bytes() == b"offered"
        assert offer.samefile(source) == given
    assert not offer.exists()
    assert source.read_bytes() == b"offered"


async def test_where_there_is_no_such_directory_nothing_is_offered(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"offered")
    async with Nearby(tmp_path / "blobs").offering(tmp_path / "source", given=True) as name:
        assert name is None


@pytest.mark.parametrize("name", ["", "x", "../" * 10 + "aa", "A" * 32, "0" * 33, "0" * 31 + "\n"])
def test_what_is_no_name_of_an_offer_leads_nowhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        nearby.offer(tmp_path, name)
