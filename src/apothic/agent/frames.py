"""What an agent and one of its containers say over their socket: MessagePack behind a length, one union each way.

Bytes that a program prints travel as bytes: what is text, and where lines end, is decided once, by the agent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Struct

from apothic.protocol.messages import Encoding, Failure, FunctionSpec
from apothic.protocol.session import Amount, Count, Packed

Stream = Literal["stdout", "stderr"]
T = TypeVar("T")

PREFIX = 4
# A frame holds at most an inline value and its header; anything near this is a broken peer.
LONGEST = 256 * 1024 * 1024


class FrameError(Exception):
    """The other end sent what is no frame."""


# --- agent → container ------------------------------------------------------------------------------------------


class Setup(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="setup"):
    """The first frame: which function this container is for. Paths are absolute.

    A service gets the number of its `listener`, a Unix socket, or the `port` that a web server has to listen on.
    """

    app: str
    deployment: str
    function: FunctionSpec
    code_dir: str
    work_dir: str
    payload_path: str | None = None  # the function by value, when it has no module
    payload_limit: int
    inline_limit: int
    leaves: str | None = None  # the pipe that says which of the inputs sent ahead may begin
    listener: int | None = None
    port: int = 0
    base_url: str = ""  # where a service finds the control plane, and what it shows there
    token: str = ""
    mount: str = ""  # the path below which the service is found
    grace_s: float = 10.0  # for what is being answered, once it is told to stop


class Run(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="run"):
    """One attempt. `input_path` has the bytes when `input` names a blob.

    With a `turn` it was sent ahead, behind others: it begins after them, if its leave is still there then.
    """

    job: str
    attempt: int
    input: Packed
    input_path: str | None = None
    accept: list[Encoding]
    job_token: str
    base_url: str
    once: bool = False  # its code may be entered once, and not again
    turn: int = 0


class Batch(Struct, frozen=True, kw_only=True, tag="batch"):
    """Several attempts for one call of a batched function."""

    runs: list[Run]


class Cancel(Struct, frozen=True, kw_only=True, tag="cancel"):
    job: str
    attempt: int  # a late one must not strike the next attempt of the same job


class Stop(Struct, frozen=True, kw_only=True, tag="stop"):
    """No more work: end when idle; a service, once it has answered what it has, within the grace."""


class Taken(Struct, frozen=True, kw_only=True, tag="taken"):
    """The items of an attempt below `upto` are on disk, so that many more may be on their way."""

    job: str
    attempt: int
    upto: int


class Moved(Struct, frozen=True, kw_only=True, tag="moved"):
    """The control plane is elsewhere now. For services: jobs are told with their input."""

    base_url: str


Command = Setup | Run | Batch | Cancel | Stop | Taken | Moved

# --- container → agent ------------------------------------------------------------------------------------------


class Ready(Struct, frozen=True, kw_only=True, tag="ready"):
    """The function is imported; a service answers. `queues`: it may be sent inputs ahead, and runs them in turn."""

    queues: bool = False


class StartFailed(Struct, frozen=True, kw_only=True, tag="start_failed"):
    failure: Failure


class Output(Struct, frozen=True, kw_only=True, tag="output"):
    """What Python code printed. `job` is `None` when it belongs to no running job."""

    job: str | None
    stream: Stream
    data: bytes


class Items(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="items"):
    """What a generator yielded, in order from number `first` on.

    A value that names a blob comes alone, with its bytes in the file `path`, which the agent deletes.
    """

    job: str
    first: Count
    values: list[Packed]
    path: str | None = None


class Done(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="done"):
    """The function's value. `path` is the file with its bytes when `value` names a blob; the agent deletes it.

    `items` is how many a generator has yielded; its value is what it returned. `piped`: something lies in the pipes of
    stdout and stderr, and was written before this.
    """

    job: str
    value: Packed
    path: str | None = None
    items: Count | None = None
    ran_s: Amount = 0.0
    piped: bool = False


class Failed(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="failed"):
    """The attempt failed; `cancelled` when it was by the cancellation that was asked for."""

    job: str
    failure: Failure
    cancelled: bool = False
    piped: bool = False


News = Ready | StartFailed | Output | Items | Done | Failed

# --- bytes ------------------------------------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()


def encode(frame: Command | News) -> bytearray:
    """Return the frame with its length in front."""
    data = bytearray(PREFIX)
    _encoder.encode_into(frame, data, PREFIX)
    data[:PREFIX] = (len(data) - PREFIX).to_bytes(PREFIX, "big")
    return data


class Splitter(Generic[T]):
    """Takes bytes as they come and gives whole frames of one union."""

    def __init__(self, union: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(union)
        self._held = bytearray()
        self._wanted = 0  # with so many bytes the frame that is held in part is whole

    def feed(self, data: bytes) -> Iterator[T]:
        """Yield the frames that `data` completes. Raises `FrameError` on what is no frame."""
        if self._held:
            self._held += data
            if len(self._held) < self._wanted:
                return  # a large frame comes in many pieces, and is put together once
            data = bytes(self._held)
            self._held.clear()
        view, start = memoryview(data), 0
        self._wanted = 0
        try:
            while len(data) - start >= PREFIX:
                size = int.from_bytes(view[start : start + PREFIX], "big")
                if size > LONGEST:
                    raise FrameError(f"a frame of {size:,} bytes was announced, over the limit of {LONGEST:,}")
                end = start + PREFIX + size
                if len(data) < end:
                    self._wanted = PREFIX + size
                    break
                body = view[start + PREFIX : end]
                start = end
                try:
                    frame = self._decoder.decode(body)
                except (ValueError, RecursionError) as error:  # too deep a nesting is no error of msgspec's own
                    raise FrameError(f"a frame cannot be read: {error}") from error
                yield frame
        finally:
            if start < len(data):
                self._held += view[start:]


def commands() -> Splitter[Command]:
    """Return a splitter for what an agent sends."""
    return Splitter(Command)


def news() -> Splitter[News]:
    """Return a splitter for what a container sends."""
    return Splitter(News)
