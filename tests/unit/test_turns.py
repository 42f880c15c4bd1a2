"""Leaves: each turn is taken once, by the container or by its agent."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apothic.agent.turns import Leaves


def test_a_leave_is_taken_once(tmp_path: Path) -> None:
    agent, container = Leaves(tmp_path / "leaves"), Leaves(tmp_path / "leaves")

    assert list(agent.give(3)) == [1, 2, 3]
    assert container.take(1)
    assert agent.withdraw() == {2, 3}
    assert not container.take(2) and agent.withdraw() == set()
    agent.close()
    container.close()


def test_the_leave_of_a_later_one_is_kept_for_it(tmp_path: Path) -> None:
    agent, container = Leaves(tmp_path / "leaves"), Leaves(tmp_path / "leaves")

    agent.give(2)
    agent.withdraw()
    agent.give(2)

    assert [container.take(turn) for turn in (1, 2, 3, 4)] == [False, False, True, True]
    agent.close()
    container.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.one_of(st.integers(1, 5), st.just("take"), st.just("withdraw")), max_size=60))
def test_every_turn_is_begun_or_withdrawn(tmp_path: Path, steps: list[int | str]) -> None:
    path = tmp_path / "leaves"
    agent, container = Leaves(path), Leaves(path)
    agent.withdraw()  # what an earlier example has left
    sent: list[int] = []
    begun, back = set[int](), set[int]()
    for step in [*steps, "withdraw"]:
        if step == "take" and sent:
            turn = sent.pop(0)
            if container.take(turn):
                begun.add(turn)
        elif step == "withdraw":
            back |= agent.withdraw()
        elif isinstance(step, int):
            sent += agent.give(step)
    begun |= {turn for turn in sent if container.take(turn)}

    assert not begun & back
    assert begun | back == set(range(1, len(begun) + len(back) + 1))
    agent.close()
    container.close()
