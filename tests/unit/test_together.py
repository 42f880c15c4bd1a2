"""A batch of a plain function whose cancellation comes between two of its calls."""

from __future__ import annotations

import contextlib
import contextvars
from pathlib import Path
from typing import Any

from channelends import Ends

from apothic.agent.frames import Cancel, Done, Failed, Run, Setup, encode
from apothic.agent.perform import Performer
from apothic.agent.together import Reply, Together
from apothic.context import leave
from apothic.protocol.messages import FunctionSpec
from apothic.protocol.specs import BatchingSpec, FunctionOptions
from apothic.protocol.values import pack_arguments


def run_of(n: int) -> Run:
    packed = pack_arguments((n,), {}, payload_limit=1024).packed
    return Run(job=f"job_{n}", attempt=1, input=packed, accept=["json"], job_token="", base_url="")


def test_one_that_is_cancelled_before_its_turn_is_not_entered_and_the_next_one_is(tmp_path: Path) -> None:
    entered: list[list[int]] = []

    def function(xs: list[int]) -> list[int]:
        entered.append(xs)
        if len(xs) > 1:
            ends.ours.sendall(encode(Cancel(job="job_0", attempt=1)))
            ends.window.on_signal()  # there are others in the batch, so it strikes when it is that one's turn
            raise ValueError
        return xs

    spec = FunctionSpec(name="f", module="app", qualname="f", options=FunctionOptions(batching=BatchingSpec(3, 0)))
    limits: dict[str, Any] = {"payload_limit": 1024, "inline_limit": 1024}
    setup = Setup(app="app", deployment="dep", function=spec, code_dir="", work_dir=str(tmp_path), **limits)
    runs, told = [run_of(n) for n in range(3)], list[Reply]()
    with contextlib.closing(Ends()) as ends:
        together = Together(
            Performer(setup, function), ends.window, runs, [ends.flow() for _ in runs],
            lambda _, reply: told.append(reply), ends.window.open,
        )  # fmt: skip
        contextvars.copy_context().run(together.plain)
    for run in runs:
        leave(run.job)

    assert entered == [[0, 1, 2], [1], [2]]
    assert [type(reply) for reply in told] == [Failed, Done, Done]
    assert isinstance(told[0], Failed) and told[0].cancelled
    assert together.rest() == []
