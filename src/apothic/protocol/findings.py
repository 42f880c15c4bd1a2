"""What a look at a machine or a store has found. `apothic doctor` puts the findings of all rooms together."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class State(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"  # as it may be, but worth to know
    WRONG = "wrong"


class Finding(Struct, frozen=True):
    """One thing that was looked at: how it stands, in a line, and what to do if it is not well."""

    what: str
    state: State
    said: str
    hint: str = ""
