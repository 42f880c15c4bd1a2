"""The bench's own rules: what a target means, who is left out, and that a peer that fails is said and not guessed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def module(name: str) -> Any:
    return importlib.import_module(f"bench.{name}")


@pytest.mark.parametrize(
    ("target", "beside", "told"),
    [
        ("≤ 0.5 ×", 4.0, "met"),
        ("≤ 0.5 ×", 3.0, "**not met**"),
        ("≥ 8 ×", 0.25, "met"),
        ("≥ 8 ×", 0.26, "**not met**"),
        ("≥ 5,000 jobs/s", 1.0, "**not met**"),
        ("≤ 2 ms", None, "met"),
        ("≤ 1.9 ms", None, "**not met**"),
    ],
)
def test_a_target_is_of_the_ratio_or_of_our_own_figure(target: str, beside: float | None, told: str) -> None:
    table = module("table")
    found = table.Found()
    found.note("ours", 2.0)
    if beside is not None:
        found.note("theirs", beside)
    line = table.Line("a call", "ms", "ours", "theirs", "theirs" if beside is not None else "", target)
    assert line.text(found).endswith(f"| {target}: {told} |")


def test_a_target_without_figures_is_not_judged(capsys: pytest.CaptureFixture[str]) -> None:
    table = module("table")
    found = table.Found()
    found.note("ours", 2.0)
    lines = [table.Line("a call", "ms", "ours", "Ray", "ray", "≤ 0.5 ×"), table.Line("a job", "ms", "ours", "x", "x")]
    table.show("Calls", lines, found)
    told = capsys.readouterr().out
    assert "| a call | – | Ray | not measured | | | ≤ 0.5 ×: **not measured** |" in told
    assert "a job" not in told


def test_peers_are_chosen_by_name() -> None:
    peers = module("peers")
    assert peers.chosen("ray, celery") == ["ray", "celery"]
    assert peers.chosen("") == []
    with pytest.raises(ValueError, match="there is no peer 'rya'; there are ray, celery"):
        peers.chosen("rya")
    assert {each.peer for each in peers.SCRIPTS} == set(peers.PACKAGES)
    assert all((ROOT / "bench" / "peers" / each.file).exists() for each in peers.SCRIPTS)


def test_a_peer_that_fails_has_no_figures_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    homes, peers = module("homes"), module("peers")
    monkeypatch.setattr(homes, "python", lambda name: Path(sys.executable))
    monkeypatch.setattr(peers, "_HERE", tmp_path)
    (tmp_path / "good.py").write_text("print('starting'); print('{\"rate\": 2.5}'); print('bye')")
    (tmp_path / "bad.py").write_text("raise SystemExit('no broker')")
    assert peers.Script("good", "good", "calls", "good.py").measured() == {"rate": 2.5}
    assert peers.Script("bad", "bad", "calls", "bad.py").measured() == {}
    told = capsys.readouterr().err
    assert "BAD WAS LEFT OUT" in told
    assert "no broker" in told
