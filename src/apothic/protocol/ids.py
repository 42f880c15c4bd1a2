"""Ids: a prefix that tells the type, 48 bits of time in milliseconds, 80 random bits, in lower-case base 32.

They sort by the time they were made; the random part is what makes a job id unguessable.
"""

from __future__ import annotations

import re
import secrets
from typing import NewType

JobId = NewType("JobId", str)
AppName = NewType("AppName", str)
DeploymentId = NewType("DeploymentId", str)
FunctionId = NewType("FunctionId", str)
AgentId = NewType("AgentId", str)
ContainerId = NewType("ContainerId", str)
KeyId = NewType("KeyId", str)

# Crockford's alphabet: no i, l, o, u, so that an id read aloud or typed from a screen survives.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_BODY = 26  # ceil(128 bits / 5)
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]  # two digits at once
_SHIFTS = range(120, -10, -10)
PREFIXES = ("job", "dep", "fn", "agt", "ctr", "key")
_SHAPE = re.compile(rf"({'|'.join(PREFIXES)})_[{_ALPHABET}]{{{_BODY}}}")


def new(prefix: str, now: float) -> str:
    """Return a fresh id; `now` is wall time in seconds."""
    number = (int(now * 1000) & ((1 << 48) - 1)) << 80 | secrets.randbits(80)
    return f"{prefix}_{''.join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])}"


def is_id(text: str, prefix: str) -> bool:
    """Tell whether `text` has the shape of an id of that type."""
    found = _SHAPE.fullmatch(text)
    return found is not None and found[1] == prefix


def new_job(now: float) -> JobId:
    """Return a fresh job id."""
    return JobId(new("job", now))
