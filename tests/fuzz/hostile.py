"""Messages as nobody should send them: made after their types with the worst that a type allows, then mutated."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
from msgspec import inspect

Dice = random.Random
INTS = (0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 1_000_000)
FLOATS = (0.0, -0.0, 1.5, -1.0, math.nan, math.inf, -math.inf, 1e308, 5e-324, 1e18, 1.0)
TEXTS = ("", "x", "\x00", "a\x00b", "é" * 300, "../../etc/passwd", "'; DROP TABLE jobs;--", "\u2028\ufeff", "0" * 64)
ODD: tuple[Any, ...] = (*INTS, *FLOATS, *TEXTS, None, True, False, b"", b"\xff\x00", [], {}, [[]], {"type": "hello"})
LONG = 3_000  # members of an enormous list


class Builder:
    """Makes values of a type. `known` are ids that mean something to the server; they come up often."""

    def __init__(self, known: list[str]) -> None:
        self._known = known

    def build(self, kind: Any, dice: Dice, depth: int = 0) -> Any:
        """Return something that decodes as `kind`, in the plain form of the codec."""
        match kind:
            case inspect.StructType():
                return self._struct(kind, dice, depth)
            case inspect.UnionType():
                return self.build(dice.choice(kind.types), dice, depth)
            case inspect.ListType() | inspect.VarTupleType():
                count = dice.choice((0, 1, 1, 2, 3)) if depth < 5 else 0
                made = [self.build(kind.item_type, dice, depth + 1) for _ in range(count)]
                return made * LONG if made and depth < 3 and dice.random() < 0.01 else made
            case inspect.DictType():
                return {dice.choice(TEXTS): self.build(kind.value_type, dice, depth + 1)} if depth < 5 else {}
            case inspect.LiteralType():
                return dice.choice(kind.values)
            case inspect.EnumType():
                return dice.choice([member.value for member in kind.cls])
            case inspect.IntType():
                return dice.choice(INTS) if dice.random() < 0.5 else dice.randrange(4)
            case inspect.FloatType():
                return dice.choice(FLOATS)
            case inspect.BoolType():
                return dice.random() < 0.5
            case inspect.StrType():
                return dice.choice(self._known if dice.random() < 0.6 else TEXTS)
            case inspect.BytesType():
                return dice.choice((b"", b"42", b"\xff\xfe", b'{"a":1}', b"\x80\x05.", dice.randbytes(50)))
            case inspect.NoneType():
                return None
            case _:
                return dice.choice(ODD)

    def _struct(self, kind: inspect.StructType, dice: Dice, depth: int) -> dict[str, Any]:
        made = {kind.tag_field: kind.tag} if kind.tag_field is not None else {}
        for field in kind.fields:
            if field.required or dice.random() < 0.6:
                made[field.encode_name] = self.build(field.type, dice, depth + 1)
        return made


def mutate(value: Any, dice: Dice) -> Any:
    """Return the value with one place changed: another type, a missing or a foreign field, a nesting too deep."""
    if isinstance(value, dict) and value and dice.random() < 0.8:
        name = dice.choice(list(value))
        changed = dict(value)
        match dice.randrange(6):
            case 0:
                del changed[name]
            case 1:
                changed[dice.choice(TEXTS)] = dice.choice(ODD)
            case _:
                changed[name] = mutate(changed[name], dice)
        return changed
    if isinstance(value, list) and value and dice.random() < 0.8:
        at = dice.randrange(len(value))
        return [*value[:at], mutate(value[at], dice), *value[at + 1 :]]
    return dice.choice(ODD)


def packed(value: Any) -> bytes:
    """Return a value as MessagePack."""
    return msgspec.msgpack.encode(value)


def damaged(data: bytes, dice: Dice) -> bytes:
    """Return bytes with some of them changed, taken out or put in: text that is no UTF-8, lengths that lie."""
    harmed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(harmed) + 1)
        match dice.randrange(4):
            case 0 if at < len(harmed):
                harmed[at] = dice.choice((0xC1, 0xFF, 0xDD, 0xDF, 0xC6, 0xED, 0x00, dice.randrange(256)))
            case 1:
                del harmed[at : at + dice.randint(1, 9)]
            case 2:
                harmed[at:at] = dice.choice((b"\xed\xa0\x80", b"\xc0\x80", b"\xdd\xff\xff\xff\xff", b"\x91" * 2_000))
            case _:
                del harmed[at:]
    return bytes(harmed)


def frame_of(builder: Builder, kind: Any, dice: Dice) -> bytes:
    """Return one frame of a union: right, mutated, damaged, or nothing of the kind."""
    value = builder.build(kind, dice)
    luck = dice.random()
    if luck < 0.45:
        return packed(value)
    if luck < 0.75:
        for _ in range(dice.randint(1, 3)):
            value = mutate(value, dice)
        return packed(value)
    if luck < 0.95:
        return damaged(packed(value), dice)
    return dice.randbytes(dice.randrange(200))
