"""What the gateway makes of heads and paths: refused, passed on, written anew."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apothic.control.gateway import heads
from apothic.control.gateway.frames import LARGEST_FRAME, FrameError, Meter
from apothic.control.gateway.paths import Place, place
from apothic.control.gateway.refusals import Refusal

HOST = (b"Host", b"gate.localhost:8701")


def asked(*headers: tuple[bytes, bytes], method: bytes = b"GET", version: str = "1.1", host: bool = True) -> Any:
    given_ = [HOST, *headers] if host else list(headers)
    return heads.request(method, b"/shop/web/x?q=1", version, given_, keeps=True)


def forwarded(*headers: tuple[bytes, bytes], keyed: bool = False, method: bytes = b"GET") -> dict[bytes, bytes]:
    head = heads.for_container(
        asked(*headers, method=method), b"/x?q=1", peer="10.1.2.3", mount="/shop/web", keyed=keyed
    )
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    assert first == method + b" /x?q=1 HTTP/1.1"
    return {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ([(b"Content-Length", b"3"), (b"Transfer-Encoding", b"chunked")], "1.1"),
        ([(b"Content-Length", b"3"), (b"Content-Length", b"3")], "1.1"),
        ([(b"Content-Length", b"+3")], "1.1"),
        ([(b"Content-Length", b"0x3")], "1.1"),
        ([(b"Transfer-Encoding", b"gzip, chunked")], "1.1"),
        ([(b"Transfer-Encoding", b"xchunked")], "1.1"),
        ([(b"Transfer-Encoding", b"chunked")], "1.0"),
        ([HOST], "1.1"),
        ([(b"Upgrade", b"websocket"), (b"Connection", b"upgrade"), (b"Content-Length", b"4")], "1.1"),
    ],
)
def test_a_head_whose_meaning_is_not_clear_is_refused(headers: list[tuple[bytes, bytes]], version: str) -> None:
    with pytest.raises(Refusal) as caught:
        asked(*headers, version=version)
    assert caught.value.status == 400


def test_other_versions_and_connect_are_refused() -> None:
    for version in ("0.9", "2.0", "1.2"):
        with pytest.raises(Refusal) as caught:
            asked(version=version)
        assert caught.value.status == 505
    with pytest.raises(Refusal) as caught:
        asked(method=b"CONNECT")
    assert caught.value.status == 405
    with pytest.raises(Refusal):
        asked(host=False)


def test_what_belongs_to_a_connection_and_what_we_say_ourselves_is_not_passed_on() -> None:
    sent = forwarded(
        (b"Connection", b"close, X-Secret, Host"), (b"X-Secret", b"1"), (b"TE", b"trailers"), (b"Keep-Alive", b"5"),
        (b"Upgrade", b"h2c"), (b"Proxy-Authorization", b"x"), (b"X-Forwarded-For", b"6.6.6.6"), (b"Forwarded", b"x"),
        (b"X-Forwarded-Host", b"evil"), (b"X-Real-IP", b"6.6.6.6"), (b"Apothic-User", b"root"), (b"X_Auth", b"root"),
        (b"Accept", b"*/*"), (b"X-Auth", b"me"), (b"Authorization", b"Basic x"),
    )  # fmt: skip
    assert sent == {
        b"host": b"gate.localhost:8701", b"accept": b"*/*", b"x-auth": b"me", b"authorization": b"Basic x",
        b"x-forwarded-for": b"10.1.2.3", b"x-forwarded-proto": b"http", b"x-forwarded-prefix": b"/shop/web",
        b"x-forwarded-host": b"gate.localhost:8701",
    }  # fmt: skip


def test_the_key_of_a_service_that_needs_one_is_not_shown_to_it() -> None:
    assert b"authorization" not in forwarded((b"Authorization", b"Bearer apothic_key_x"), keyed=True)


def test_the_length_of_a_body_is_written_once_and_in_one_way() -> None:
    assert forwarded((b"content-LENGTH", b"007"), method=b"POST")[b"content-length"] == b"7"
    chunked = forwarded((b"Transfer-Encoding", b"Chunked"), (b"Connection", b"transfer-encoding"), method=b"POST")
    assert chunked[b"transfer-encoding"] == b"chunked" and b"content-length" not in chunked


def test_fields_that_are_said_again_are_read_once_and_written_for_whom_they_go_to() -> None:
    first = asked((b"Authorization", b"Basic x"))
    again = heads.request(b"POST", b"/y", "1.1", [*first.fields.headers], keeps=True, before=first.fields)
    assert again.fields is first.fields and again.fields.written("p", "/a/b", False) is first.fields.written(
        "p", "/a/b", False
    )
    for mount, keyed in (("/a/b", False), ("/a/b", True), ("/a/c", True), ("/a/c", False)):
        head = heads.for_container(again, b"/y", peer="p", mount=mount, keyed=keyed)
        assert f"x-forwarded-prefix: {mount}\r\n".encode() in head and (b"Authorization" in head) is not keyed
    for version, headers in (("1.0", first.fields.headers), ("1.1", [HOST])):
        assert heads.request(b"GET", b"/", version, headers, keeps=True, before=first.fields).fields is not first.fields
    upgrade = asked((b"Connection", b"upgrade"), (b"Upgrade", b"websocket"))
    with pytest.raises(Refusal):
        heads.request(b"POST", b"/", "1.1", upgrade.fields.headers, keeps=True, before=upgrade.fields)


def test_an_answer_loses_what_was_between_us_and_the_container() -> None:
    told = heads.answer(
        200, b"Fine",
        [(b"Connection", b"close, X-Hop"), (b"X-Hop", b"1"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2")],
        method=b"GET",
    )  # fmt: skip
    assert told.until_end
    head = heads.for_client(told, chunked=True, close=False, mount=None)
    assert head == b"HTTP/1.1 200 Fine\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\ntransfer-encoding: chunked\r\n\r\n"


def test_an_answer_with_two_lengths_is_no_answer() -> None:
    with pytest.raises(ValueError, match="length"):
        heads.answer(200, b"OK", [(b"content-length", b"1"), (b"content-length", b"2")], method=b"GET")


@pytest.mark.parametrize(
    ("location", "seen"),
    [
        (b"/login?next=/", b"/shop/web/login?next=/"), (b"/shop/web/login", b"/shop/web/login"),
        (b"/shop/webbing", b"/shop/web/shop/webbing"), (b"//other.example/x", b"//other.example/x"),
        (b"https://other.example/", b"https://other.example/"), (b"login", b"login"),
    ],
)  # fmt: skip
def test_a_redirect_of_a_server_that_does_not_know_its_mount_leads_below_it(location: bytes, seen: bytes) -> None:
    told = heads.answer(302, b"Found", [(b"Location", location)], method=b"GET")
    assert b"Location: " + seen + b"\r\n" in heads.for_client(told, chunked=False, close=False, mount="/shop/web")
    assert b"Location: " + location + b"\r\n" in heads.for_client(told, chunked=False, close=False, mount=None)


def test_trailers_cannot_change_what_a_message_is() -> None:
    sent = heads.trailers([(b"X-Sum", b"1"), (b"Content-Length", b"9"), (b"Host", b"evil"), (b"Authorization", b"x")])
    assert sent == b"0\r\nX-Sum: 1\r\n\r\n"


def test_a_path_names_app_and_function_and_the_rest_is_not_touched() -> None:
    assert place(b"/shop/web/a%2Fb/../c//d?x=/../..", b"h") == Place("shop", "web", b"/a%2Fb/../c//d", b"?x=/../..")
    assert place(b"/shop/web", b"h").rest == b""
    assert place(b"/shop/web?q", b"h") == Place("shop", "web", b"", b"?q")
    assert place(b"http://H:1/shop/web/", b"h:1").target == b"/"


@pytest.mark.parametrize(
    "target",
    [
        b"/shop/web/..", b"/shop/web/../other", b"/shop/web/%2e%2e/x", b"/shop/web/..%2fx", b"/shop/web/a/..%5c..%5cx",
        b"/shop/web/a/../../x", b"/shop/web/%2E%2E%2F%2E%2E", b"/shop/web/a%00b", b"/shop/web/a\x7fb", b"shop/web/",
        b"*", b"/shop/web/#x", b"http://other/shop/web/", b"ftp://h/shop/web/",
    ],
)  # fmt: skip
def test_a_path_that_leads_out_of_its_service_is_refused(target: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        place(target, b"h")
    assert caught.value.status == 400


@pytest.mark.parametrize("target", [b"/", b"//", b"/shop", b"/shop/", b"/../shop/web/", b"/shop/%77eb/", b"/a b/c/"])
def test_a_path_without_a_service_is_not_found(target: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        place(target, b"h")
    assert caught.value.status in (400, 404)


@given(st.lists(st.sampled_from(["..", ".", "", "a", "%2e%2e", "b%2f..", "..%2f..", "%5c", "%252e%252e", ".%2e"])))
def test_no_path_that_is_let_through_leads_out(parts: list[str]) -> None:
    from pathlib import PurePosixPath
    from urllib.parse import unquote

    target = ("/shop/web/" + "/".join(parts)).encode()
    try:
        found = place(target, b"h")
    except Refusal:
        return
    seen: list[str] = []
    for step in PurePosixPath("/in" + unquote(found.rest.decode()).replace("\\", "/")).parts[1:]:
        if step == "..":
            seen.pop()
        else:
            seen.append(step)
        assert seen[:1] == ["in"]


def frame(payload: int, *, masked: bool, first: int = 0x82) -> bytes:
    mark = 0x80 if masked else 0
    if payload < 126:
        size = bytes([mark | payload])
    elif payload < 1 << 16:
        size = bytes([mark | 126]) + payload.to_bytes(2, "big")
    else:
        size = bytes([mark | 127]) + payload.to_bytes(8, "big")
    return bytes([first]) + size + (b"mask" if masked else b"") + b"x" * payload


@settings(deadline=None)
@given(st.lists(st.sampled_from([0, 1, 125, 126, 65_535, 65_536]), max_size=6), st.booleans(), st.integers(7, 70_000))
def test_frames_are_followed_however_they_are_cut(sizes: list[int], masked: bool, cut: int) -> None:
    data = b"".join(frame(size, masked=masked) for size in sizes)
    meter = Meter(masked=masked)
    for start in range(0, len(data), cut):
        meter.feed(data[start : start + cut])
    if data:
        with pytest.raises(FrameError):
            meter.feed(b"\x83\x00")  # at the edge of a frame it is seen that this opcode is none


@pytest.mark.parametrize(
    "data",
    [
        frame(1, masked=False), b"\x83\x80mask", b"\x82\xff" + (LARGEST_FRAME + 1).to_bytes(8, "big") + b"mask",
        frame(200, masked=True, first=0x89),
    ],
)  # fmt: skip
def test_what_breaks_the_rules_of_frames_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        Meter(masked=True).feed(data)
