"""Requests that no client sends: broken lines, bombs of headers, two lengths, bad chunks, handshakes that are none."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Callable

from apothic.protocol.routes import ROUTES, SESSION_PATH

Case = list[bytes]  # what is sent, piece by piece
Dice = random.Random
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PRI", "get", "G\x00T", "")
VERSIONS = ("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/9.9", "HTTP/1.1 ", "ICY/1", "")
NASTY = (
    b"\x00", b"\xff\xfe", b"%00", b"%", b"..;/", b"/../..", b"\r", b"\n", b"\x7f", "\u2028".encode(), b"[::1", b"\\",
    b"'", b"?token=", b"?after=nan", b"?after=1e999", b"?limit=-1", b"?wait_s=inf", b"#", b"a" * 9_000,
)  # fmt: skip


class Raw:
    """Makes cases from a seed, for one server: where it is, which keys it knows, which ids."""

    def __init__(self, host: str, key: str, agent_key: str, ids: dict[str, str]) -> None:
        self._host = host.encode()
        self._keys = [key.encode(), agent_key.encode(), b"", b"apo_none", b"\xff\x00"]
        self._ids = ids
        self._kinds: list[Callable[[Dice], Case]] = [
            self.garbage, self.broken_line, self.header_bomb, self.two_lengths, self.bad_chunks, self.truncated,
            self.pipelined, self.nasty_path, self.hostile_body, self.mutated, self.handshake, self.frames,
        ]  # fmt: skip

    def case(self, dice: Dice) -> Case:
        """Return the next case."""
        return dice.choice(self._kinds)(dice)

    # --- parts

    def _path(self, dice: Dice) -> bytes:
        path = dice.choice(ROUTES).path
        for name, real in self._ids.items():
            path = path.replace(f"{{{name}}}", real if dice.random() < 0.7 else "0" * 64)
        return path.replace("{", "").replace("}", "").encode()

    def _head(self, dice: Dice, method: bytes = b"", path: bytes = b"", more: bytes = b"") -> bytes:
        method = method or dice.choice(("GET", "POST", "PUT", "HEAD")).encode()
        # What destroys what other cases aim at is left out: a stopped app would answer 409 to all that follows.
        path = path or self._path(dice)
        key = dice.choice(self._keys)
        shown = b"authorization: Bearer %s\r\n" % key if key else b""
        return b"%s %s HTTP/1.1\r\nhost: %s\r\n%s%s" % (method, path, self._host, shown, more)

    def _request(self, dice: Dice) -> bytes:
        body = b'{"args":[1]}' if dice.random() < 0.5 else dice.randbytes(dice.randrange(40))
        kind = dice.choice((b"application/json", b"application/msgpack", b"text/plain", b""))
        return self._head(dice, more=b"content-type: %s\r\ncontent-length: %d\r\n\r\n" % (kind, len(body))) + body

    # --- kinds

    def garbage(self, dice: Dice) -> Case:
        return [dice.randbytes(dice.choice((1, 7, 100, 5_000, 70_000)))]

    def broken_line(self, dice: Dice) -> Case:
        words = [dice.choice(METHODS).encode(), self._path(dice), dice.choice(VERSIONS).encode()]
        dice.shuffle(words)
        gap = dice.choice((b" ", b"  ", b"\t", b"", b"\x00", b"\r\n"))
        return [gap.join(words[: dice.randint(0, 3)]) + dice.choice((b"\r\n\r\n", b"\n\n", b"\r\r", b"")) + b"x" * 9]

    def header_bomb(self, dice: Dice) -> Case:
        kind = dice.randrange(4)
        if kind == 0:
            more = b"x: " + b"y" * dice.choice((10_000, 70_000, 300_000)) + b"\r\n"
        elif kind == 1:
            more = b"".join(b"h%d: 1\r\n" % n for n in range(dice.choice((500, 5_000))))
        elif kind == 2:
            more = dice.choice((b": empty\r\n", b"no colon\r\n", b"sp ace: 1\r\n", b"nul: \x00\r\n", b" folded\r\n"))
        else:
            more = b"host: evil.example\r\n" * dice.randint(1, 50)
        return [self._head(dice, more=more), b"\r\n"]

    def two_lengths(self, dice: Dice) -> Case:
        lengths = dice.sample(
            [b"content-length: 5\r\n", b"content-length: 7\r\n", b"content-length: -1\r\n", b"content-length: 1e3\r\n",
             b"transfer-encoding: chunked\r\n", b"transfer-encoding: gzip, chunked\r\n",
             b"transfer-encoding: identity\r\n", b"content-length: 99999999999999999999\r\n"], dice.randint(2, 3),
        )  # fmt: skip
        return [self._head(dice, b"POST", more=b"".join(lengths)) + b"\r\n0\r\n\r\nGET /v1/keys HTTP/1.1\r\n\r\n"]

    def bad_chunks(self, dice: Dice) -> Case:
        chunks = [b"5\r\nhello\r\n", b"fffffffffffffffff\r\n", b"-1\r\n", b"5;x=y\r\nhello\r\n", b"5\r\nhel", b"zz\r\n",
                  b"0\r\ntrailer: 1\r\n\r\n", b"5\nhello\n", b"\r\n", b"0x5\r\nhello\r\n"]  # fmt: skip
        head = self._head(dice, b"POST", more=b"content-type: application/json\r\ntransfer-encoding: chunked\r\n")
        return [head + b"\r\n", *dice.choices(chunks, k=dice.randint(1, 5))]

    def truncated(self, dice: Dice) -> Case:
        whole = self._request(dice)
        return [whole[: dice.randrange(len(whole))]]

    def pipelined(self, dice: Dice) -> Case:
        return [b"".join(self._request(dice) for _ in range(dice.randint(2, 30)))]

    def nasty_path(self, dice: Dice) -> Case:
        path = self._path(dice)
        at = dice.randrange(len(path))
        return [self._head(dice, path=path[:at] + dice.choice(NASTY) + path[at:]), b"\r\n"]

    def hostile_body(self, dice: Dice) -> Case:
        bodies = [b"[" * 50_000, b'{"a":' * 20_000, b"\x91" * 50_000, b'{"args":[' + b"9" * 5_000 + b"]}", b"\xc1",
                  b'{"args":["\\ud800"]}', b'{"args":[1e999,NaN]}', b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
                  b'{"input":{"encoding":"pickle","data":"gASV"}}', b'{"input":{"encoding":"pickle","data":"\xff"}}',
                  b'{"args":[],"args":{}}', b"null", b'"\x00"', b'{"kwargs":{"":1}}', b'{"wait_s":1e308,"args":[]}',
                  b'{"options":{"run_at":-1e308}}', b'{"options":{"expires_in_s":1e308}}', b'{"accept":[]}',
                  b'{"options":{"timeout_s":5e-324,"run_at":1e300}}', b'{"idempotency_key":"\\u0000"}']  # fmt: skip
        body = dice.choice(bodies)
        kind = dice.choice((b"application/json", b"application/msgpack"))
        path = b"/v1/functions/%s/jobs" % self._ids["function"].encode() if dice.random() < 0.6 else self._path(dice)
        more = b"content-type: %s\r\ncontent-length: %d\r\n\r\n" % (kind, len(body))
        return [self._head(dice, b"POST", path, more), body]

    def mutated(self, dice: Dice) -> Case:
        whole = bytearray(self._request(dice))
        for _ in range(dice.randint(1, 6)):
            at = dice.randrange(len(whole))
            match dice.randrange(3):
                case 0:
                    whole[at] = dice.randrange(256)
                case 1:
                    del whole[at : at + dice.randint(1, 20)]
                case _:
                    whole[at:at] = dice.randbytes(dice.randint(1, 10))
            whole = whole or bytearray(b"\n")
        return [bytes(whole)]

    def handshake(self, dice: Dice) -> Case:
        parts = [b"upgrade: websocket\r\n", b"connection: Upgrade\r\n", b"sec-websocket-version: 13\r\n",
                 b"sec-websocket-key: %s\r\n" % base64.b64encode(dice.randbytes(16))]  # fmt: skip
        extra = [b"sec-websocket-version: 99\r\n", b"sec-websocket-key: x\r\n", b"sec-websocket-protocol: \x01\r\n",
                 b"sec-websocket-extensions: ;;;\r\n", b"upgrade: h2c\r\n",
                 b"origin: http://evil.example\r\n"]  # fmt: skip
        chosen = dice.sample(parts, dice.randint(2, 4)) + dice.sample(extra, dice.randint(0, 2))
        path = SESSION_PATH.encode() if dice.random() < 0.8 else self._path(dice)
        return [self._head(dice, b"GET", path, b"".join(chosen)), b"\r\n", dice.randbytes(dice.randrange(60))]

    def frames(self, dice: Dice) -> Case:
        parts = (b"upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\n"
                 b"sec-websocket-key: %s\r\n\r\n" % base64.b64encode(dice.randbytes(16)))  # fmt: skip
        frames = [frame(dice) for _ in range(dice.randint(1, 6))]
        return [self._head(dice, b"GET", SESSION_PATH.encode(), parts), *frames]


def frame(dice: Dice) -> bytes:
    """Return one websocket frame: of any opcode, length and mask, right ones among them."""
    body = dice.randbytes(dice.choice((0, 1, 30, 126, 70_000)))
    told = len(body) if dice.random() < 0.7 else dice.choice((0, 125, 1 << 16, 1 << 40, (1 << 63) - 1, 1 << 63))
    opcode = dice.choice((0x82, 0x81, 0x80, 0x02, 0x88, 0x89, 0x8A, 0xF2, 0x83, 0x8F))
    masked = 0x80 if dice.random() < 0.9 else 0
    if told < 126:
        head = bytes([opcode, masked | told])
    elif told < 1 << 16:
        head = bytes([opcode, masked | 126]) + struct.pack(">H", told)
    else:
        head = bytes([opcode, masked | 127]) + struct.pack(">Q", told)
    return head + (b"\x00\x00\x00\x00" if masked else b"") + body
