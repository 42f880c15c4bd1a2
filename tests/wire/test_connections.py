"""Connections that break the rules of HTTP and of websockets leave no traceback, and nobody waiting for them."""

from __future__ import annotations

import base64
import os
import socket
import struct

import pytest
from rig import Server

from apothic.protocol.routes import SESSION_PATH

ANSWER_S = 20.0


def exchange(server: Server, *pieces: bytes, shaken: bool = False) -> bytes:
    """Send the pieces, `shaken` after an answer to the first; return all that comes until the server hangs up."""
    host, _, port = server.base_url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=ANSWER_S) as line:
        said = b""
        try:
            for piece in pieces:
                line.sendall(piece)
                while shaken and b"\r\n\r\n" not in said:
                    said += line.recv(65536)
            line.shutdown(socket.SHUT_WR)
            while piece := line.recv(65536):
                said += piece
        except ConnectionError:  # it hung up on us
            return said
        return said


def head(server: Server, line: str, more: str = "") -> bytes:
    key = (server.data_dir / "agent.key").read_text().strip()
    host = server.base_url.removeprefix("http://")
    return f"{line} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n{more}\r\n".encode()


def handshake(server: Server) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return head(
        server, f"GET {SESSION_PATH}",
        f"upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n",
    )  # fmt: skip


def frame(opcode: int, body: bytes) -> bytes:
    return bytes([0x80 | opcode, 0x80 | 126]) + struct.pack(">H", len(body)) + bytes(4) + body


def check_log(server: Server, told: str) -> None:
    log = server.log()
    assert "Traceback" not in log and "http.bug" not in log, log[-4000:]
    assert told in log


@pytest.mark.parametrize("opcode", [1, 3])
def test_a_frame_that_is_not_binary_ends_a_session(server: Server, opcode: int) -> None:
    exchange(server, handshake(server), frame(opcode, b"\xe3\x00" * 200), shaken=True)
    check_log(server, "session.garbage" if opcode == 1 else "")


def test_frames_before_the_handshake_is_answered_end_the_connection(server: Server) -> None:
    for _ in range(20):  # whether they come before the answer is a matter of luck
        exchange(server, handshake(server) + b"\xff" * 300)
        exchange(server, handshake(server), b"\xff" * 300)
    check_log(server, "")


def test_garbage_behind_a_request_that_is_being_answered(server: Server) -> None:
    for _ in range(20):
        assert exchange(server, head(server, "GET /readyz"), b"\x00garbage\r\n\r\n").count(b" 500 ") == 0
        assert exchange(server, head(server, "GET /readyz") + b"\x00garbage\r\n\r\n").count(b" 500 ") == 0
    check_log(server, "Invalid HTTP request")
